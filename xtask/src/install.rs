//! Nestling on a host cluster, from its own chart.

use std::process::Command;

use anyhow::Result;
use nestling_lab::command::output;
use nestling_lab::progress::note;
use nestling_lab::{HostCluster, LabPaths};

use crate::images::Images;

/// Namespace and release of the operator.
pub const RELEASE: &str = "nestling";
/// Namespace of the operator.
pub const NAMESPACE: &str = "nestling-system";

/// Images as pods of the host cluster name them.
pub struct Pushed {
    /// The operator's.
    pub operator: String,
    /// The pods'.
    pub node: String,
}

/// Hands the images to the host cluster.
pub fn push(host: &HostCluster, images: &Images) -> Result<Pushed> {
    note("handing the images to the host cluster");
    Ok(Pushed { operator: host.push(&images.operator)?, node: host.push(&images.node)? })
}

/// The arguments of `helm` that fit the chart to the lab: its images, and a machine that may have cgroup v1.
pub fn values(paths: &LabPaths, pushed: &Pushed) -> Result<Vec<String>> {
    let mut values = ["--set", "allowCgroupV1=true", "--set", "power.allowFreezeOnCgroupV1=true"].map(str::to_owned).to_vec();
    for (key, reference) in [("image", &pushed.operator), ("nodeImage", &pushed.node)] {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        values.extend(["--set".to_owned(), format!("{key}.repository={repository}"), "--set".to_owned(), format!("{key}.tag={tag}")]);
    }
    values.extend(["--set".to_owned(), format!("nodeImages.{}={}", key_of("v1.34.4"), paths.node_image_ref()?)]);
    Ok(values)
}

/// A version as a key of `--set`: a dot there separates levels, unless it is escaped.
pub fn key_of(version: &str) -> String {
    version.replace('.', "\\.")
}

/// Installs the chart, or upgrades it, and waits until the operator runs.
pub fn install(paths: &LabPaths, host: &HostCluster, pushed: &Pushed, more: &[&str]) -> Result<()> {
    note("installing the chart");
    output(
        helm(paths, host)?
            .args(["upgrade", "--install", RELEASE])
            .arg(crate::root().join("charts/nestling"))
            .args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"])
            .args(values(paths, pushed)?)
            .args(more),
    )
    .map(drop)
}

/// `helm`, for this host cluster.
pub fn helm(paths: &LabPaths, host: &HostCluster) -> Result<Command> {
    let mut helm = Command::new(paths.bin("helm")?);
    helm.arg("--kubeconfig").arg(host.kubeconfig());
    Ok(helm)
}
