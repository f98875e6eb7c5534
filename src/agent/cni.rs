//! The first node's pod network, until the cluster's own takes over.
//!
//! A kubelet looks only every five seconds whether there is a network (`updateRuntimeUp`), and kindnet writes its configuration when its pod has started: a node would not be
//! ready for seconds after all else is. The first node's range is known before: it is the first that there is. So the node begins with what kindnet will write, and the
//! cluster is not ready before kindnet has written it.

use std::io;
use std::time::Duration;

use ipnet::Ipv4Net;
use nestling_core::api::kind_config::KindConfig;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::AgentFailure;
use serde_json::json;

use super::docker::Docker;
use super::failure::failure;
use super::node_files;
use super::wait::{OFTEN, until};

/// The file that kindnet writes (`images/kindnetd/cmd/kindnetd/cni.go` of kind).
const FILE: &str = "/etc/cni/net.d/10-kindnet.conflist";

/// Length of a node's part of the pods' range (`--node-cidr-mask-size` of `kube-controller-manager`).
const NODE_PREFIX: u8 = 24;

/// Time for kindnet to take over after everything is installed.
const TAKEN_OVER: Duration = Duration::from_mins(2);

/// What one node began with.
#[derive(Debug)]
pub struct Beginning {
    node: String,
    text: String,
}

/// Lets the network of this node begin, in a cluster with kind's own CNI.
///
/// # Errors
/// Those of the file system. The cluster comes up without it.
pub async fn begin(docker: &Docker, node: &str, config: &KindConfig, pods: Ipv4Net, mtu: u32) -> io::Result<Option<Beginning>> {
    let own = config.networking.as_ref().and_then(|networking| networking.disable_default_cni) != Some(true);
    let (true, Some(range)) = (own, first_range(pods)) else { return Ok(None) };
    let pid = docker.pid(node).await.ok_or(io::ErrorKind::NotFound)?;
    let text = conflist(range, mtu);
    node_files::replace(pid, FILE, &text)?;
    Ok(Some(Beginning { node: node.to_owned(), text }))
}

/// The part of the pods' range that the first node gets.
fn first_range(pods: Ipv4Net) -> Option<Ipv4Net> {
    pods.subnets(NODE_PREFIX).ok()?.next()
}

/// What kindnet writes, in other words: so it can be told apart.
fn conflist(range: Ipv4Net, mtu: u32) -> String {
    // The name decides where `host-local` keeps the addresses that are taken, so it must be kindnet's.
    json!({
        "cniVersion": "0.3.1",
        "name": "kindnet",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "mtu": mtu,
                "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": range}]]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

impl Beginning {
    /// Waits until kindnet has taken over.
    ///
    /// # Errors
    /// [`Reason::ControlPlaneUnhealthy`] if it has not within two minutes.
    pub async fn taken_over(&self, docker: &Docker) -> Result<(), AgentFailure> {
        let over = until("kindnet", TAKEN_OVER, OFTEN, || async {
            let text = node_files::read(docker.pid(&self.node).await?, FILE).ok()?;
            (text != self.text).then_some(())
        });
        let late = |_| {
            failure(Reason::ControlPlaneUnhealthy, format!("kindnet has not taken over the pod network of {} within {} s", self.node, TAKEN_OVER.as_secs()))
        };
        over.await.map_err(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_gets_the_first_range() {
        assert_eq!(first_range("10.245.0.0/16".parse().unwrap()), Some("10.245.0.0/24".parse().unwrap()));
        assert_eq!(first_range("10.245.7.0/25".parse().unwrap()), None);
    }

    #[test]
    fn the_network_is_kindnets() {
        let conflist: serde_json::Value = serde_json::from_str(&conflist("10.245.0.0/24".parse().unwrap(), 1450)).unwrap();
        assert_eq!(conflist["name"], "kindnet");
        assert_eq!(conflist.pointer("/plugins/0/ipam/ranges/0/0/subnet").unwrap(), "10.245.0.0/24");
        assert_eq!(conflist.pointer("/plugins/0/mtu").unwrap(), 1450);
    }
}
