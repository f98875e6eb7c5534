//! The golden state: what an API server writes when it first starts, sealed once from a cluster of the real kind CLI, so that no later API server of this node image has to.
//! The cluster and its keys are gone when it is sealed.

use anyhow::{Result, bail};

use crate::command::pipe;
use crate::docker::Docker;
use crate::host::with_bare_cluster;
use crate::kind::Kind;
use crate::part::Part;
use crate::workshop::Workshop;

/// The directory of the store with the golden state, and with the name of its node image.
pub const GOLDEN: &str = "golden";

/// Where the store's part keeps what an administrator of the sealed cluster had in hand, for the test that it opens no other.
pub const GOLDEN_KUBECONFIG: &str = "golden.kubeconfig";

/// Name of the cluster that is sealed.
const CLUSTER: &str = "nestling-golden";

/// Seals, inside of a node.
const SEAL: &str = include_str!("../scripts/seal.sh");

/// Makes a cluster of a node image that Docker has, seals its state into the `directory` of a container, and deletes the cluster.
pub fn seal(docker: &Docker, workshop: &Workshop, node: &str, (container, directory): (&str, &str)) -> Result<()> {
    let cli = Kind::new(workshop.program(Part::Kind, "kind")?, workshop.out.join(GOLDEN_KUBECONFIG));
    // kind removes from a kubeconfig what it deletes.
    let kept = workshop.out.join("kept.kubeconfig");
    with_bare_cluster(docker, &cli, CLUSTER, node, |_| {
        std::fs::copy(workshop.out.join(GOLDEN_KUBECONFIG), &kept)?;
        let (mut from, mut to) = (docker.command(), docker.command());
        from.args(["exec", &format!("{CLUSTER}-control-plane"), "bash", "-c", SEAL]);
        to.args(["exec", "-i", container, "tar", "-C", directory, "--numeric-owner", "-xpf", "-"]);
        if !pipe(&mut from, &mut to)? {
            bail!("the state of a cluster of {node} cannot be sealed");
        }
        Ok(())
    })?;
    Ok(std::fs::rename(kept, workshop.out.join(GOLDEN_KUBECONFIG))?)
}
