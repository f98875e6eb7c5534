//! What systemd does before a node's kubelet starts, whenever that is: a drop-in beside kind's own.
//!
//! The kubelet starts when containerd is there; as kind has it, it starts at once, dies and waits for a second. And before any pod can run, the node refuses what is sent to the range of Services and was
//! not sent on to a pod. Until kube-proxy has written its rules, such a packet would leave the node and never be answered: CoreDNS, which asks the API server by the address of its
//! Service, would wait 30 s for an answer (client-go's `Dialer`) before it tries again. One that is refused tries again at once. kube-proxy's rules come before (they are in `nat`), so
//! what is refused from then on is what has no Service, as with kube-proxy's `nftables`.

use ipnet::Ipv4Net;

use super::docker::Docker;
use super::{node_files, nodes};

/// Beside kind's own (`images/base/files/etc/systemd/system/kubelet.service.d`).
const FILE: &str = "/etc/systemd/system/kubelet.service.d/20-nestling.conf";

/// Writes it into all nodes that run. Without it, all takes longer.
pub async fn write(docker: &Docker, cluster: &str, services: Ipv4Net) {
    let text = text(services);
    for node in nodes::names(docker, cluster).await.unwrap_or_default() {
        let Some(pid) = docker.pid(&node).await else { continue };
        if let Err(error) = node_files::replace(pid, FILE, &text) {
            tracing::warn!(node, "its kubelet starts as kind has it: {error}");
        }
    }
}

fn text(services: Ipv4Net) -> String {
    let rule = format!("FORWARD -d {services} -j REJECT");
    // A node without iptables starts all the same.
    format!(
        "[Unit]\nAfter=containerd.service\n\n[Service]\nExecStartPre=-/bin/sh -c 'iptables --wait --check {rule} 2>/dev/null || iptables --wait --append {rule}'\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_answers_for_is_refused_once_and_no_start_fails_for_it() {
        let text = text("10.97.0.0/16".parse().unwrap());
        let (_, command) = text.split_once("ExecStartPre=-").unwrap();
        assert_eq!(command.matches("FORWARD -d 10.97.0.0/16 -j REJECT").count(), 2, "{command}");
        assert_eq!(command.matches('\'').count(), 2, "{command}");
        // systemd would take it for a specifier.
        assert!(!text.contains('%'), "{text}");
    }
}
