//! What all measurements need: the host cluster with Nestling on it, the machine's Docker, the images.

use std::time::Duration;

use anyhow::Result;
use nestling_lab::node_image::TOOLS_IMAGE;
use nestling_lab::{Docker, HostCluster, LabPaths, Part};

use super::bare;
use super::kubectl::Kubectl;
use crate::{images, install};

/// After something was deleted, before the next thing is measured.
pub const QUIET: Duration = Duration::from_secs(5);

/// The image with a shell that every node carries, bare and nested.
pub const TOOLS: &str = TOOLS_IMAGE;

/// Where KindClusters and their Secrets are.
pub const NAMESPACE: &str = "default";

/// The label of all KindClusters of the benchmark.
pub const LABEL: &str = "nestling-bench";

/// The lab, ready to measure.
pub struct Setup {
    /// The lab's programs.
    pub paths: LabPaths,
    /// The host cluster.
    pub host: Kubectl,
    /// The Docker daemon that the host cluster and bare kind's clusters run on.
    pub docker: Docker,
    /// The node image of both.
    pub node_image: String,
    /// The image of nested clusters' pods, as the host names it.
    pub pod_image: String,
}

impl Setup {
    /// Installs Nestling on the host cluster, and removes what a run that was broken off has left.
    ///
    /// # Errors
    /// What Docker, helm or kubectl say.
    pub fn prepare(paths: LabPaths, cluster: &HostCluster, images: &images::Images) -> Result<Self> {
        let pushed = install::push(cluster, images)?;
        install::install(&paths, cluster, &pushed, &[])?;
        let docker = cluster.docker().clone();
        let node_image = paths.load(&docker, Part::NodeImage)?;
        let host = Kubectl::new(paths.bin("kubectl")?, cluster.kubeconfig().to_owned());
        bare::remove_left(&docker)?;
        host.run(&["delete", "kindclusters", "-n", NAMESPACE, "-l", LABEL, "--timeout=10m"])?;
        Ok(Self { paths, host, docker, node_image, pod_image: pushed.node })
    }
}
