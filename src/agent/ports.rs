//! The published ports: NodePorts of the cluster, each relayed at a port of the pod under the same number. Opened and closed as ordered, while the cluster runs.
//!
//! Any node will do for a NodePort. Workers come first: pods are there, where there are workers at all.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use nestling_core::api::kind_config::KindConfig;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::OrdersReport;
use tokio::time::timeout;

use super::docker::Docker;
use super::failure::failure;
use super::nodes;
use super::report::Report;
use crate::relay::{self, Relay, Resolve};

/// Pause before a port that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(15);

/// The nodes of a cluster, at one port.
#[derive(Debug)]
pub struct NodePort {
    /// Where they are.
    pub docker: Docker,
    /// The cluster's name.
    pub cluster: String,
    /// The port.
    pub port: u16,
}

impl Resolve for NodePort {
    const INTERCHANGEABLE: bool = true;

    async fn resolve(&self) -> Vec<Option<SocketAddr>> {
        // A daemon that does not answer is watched by others.
        let Ok(containers) = self.docker.containers(&self.cluster).await else { return vec![] };
        let nodes = in_order(containers.iter().filter(|container| container.running).map(|container| (container.role.as_str(), container.name.as_str())));
        let addresses = join_all(nodes.iter().map(|name| self.docker.address(name))).await;
        addresses.into_iter().map(|address| Some((address?, self.port).into())).collect()
    }
}

/// Names of the nodes among containers, given with their roles.
fn in_order<'a>(containers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<&'a str> {
    let mut nodes: Vec<(bool, &str)> =
        containers.filter(|(role, _)| *role != nodes::LOAD_BALANCER).map(|(role, name)| (role == nodes::CONTROL_PLANE, name)).collect();
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, name)| name).collect()
}

/// Ports of the pod that kind maps to a node: Docker's, also at moments at which nothing listens there because the node is being started.
pub fn mapped(config: Option<&KindConfig>) -> BTreeSet<u16> {
    let nodes = config.into_iter().flat_map(|config| config.nodes.iter().flatten());
    nodes.flat_map(|node| &node.extra_port_mappings).filter_map(|mapping| u16::try_from(mapping.host_port?).ok()).collect()
}

/// Carries out the orders about ports, for ever. When it is dropped, all of them are closed. `taken` are not to be had; `target` tells what is behind a port.
pub async fn follow<R: Resolve>(taken: &BTreeSet<u16>, target: impl Fn(u16) -> R, report: &Report) -> Infallible {
    let places = relay::places();
    let mut open: BTreeMap<u16, Relay<R>> = BTreeMap::new();
    let mut changes = report.subscribe();
    loop {
        let ordered = changes.borrow().orders.clone().unwrap_or_default().received.ports;
        open.retain(|port, _| ordered.contains(port));
        let mut problems = Vec::new();
        for port in &ordered {
            if open.contains_key(port) {
                continue;
            }
            let opened = if taken.contains(port) {
                Err(format!("port {port} of the pod belongs to an entry of config.nodes[].extraPortMappings"))
            } else {
                Relay::open((Ipv4Addr::UNSPECIFIED, *port).into(), target(*port), places.clone())
                    .await
                    .map_err(|error| format!("port {port} of the pod: {error}"))
            };
            match opened {
                Ok(relay) => {
                    tracing::info!(port, "published");
                    open.insert(*port, relay);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let problem = (!problems.is_empty()).then(|| failure(Reason::PortInUse, problems.join("; ")));
        if let Some(problem) = &problem {
            tracing::warn!("not all ports can be published: {}", problem.message);
        }
        tell(report, open.keys().copied().collect(), |orders| orders.set_failure(Reason::PortInUse, problem));
        let others = changes.wait_for(|report| report.orders.as_ref().is_some_and(|orders| orders.received.ports != ordered));
        let news = async {
            if problems.is_empty() {
                if others.await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else {
                let _ = timeout(AGAIN, others).await;
            }
        };
        let relaying = async {
            join_all(open.values().map(Relay::run)).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = news => {}
            () = relaying => {}
        }
    }
}

/// Says that no port is open: the cluster is suspended, or about to end.
pub fn closed(report: &Report) {
    tell(report, BTreeSet::new(), |_| {});
}

fn tell(report: &Report, open: BTreeSet<u16>, change: impl FnOnce(&mut OrdersReport)) {
    report.update(|report| {
        let orders = report.orders.get_or_insert_default();
        orders.carried_out.ports.clone_from(&open);
        change(orders);
        report.open_ports = Some(open);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestling_core::plan::wire::{AgentReport, Orders};
    use tokio::net::{TcpListener, TcpStream};

    use crate::agent::report::tests::settings;

    #[test]
    fn workers_come_first_and_load_balancers_not_at_all() {
        let containers = [("external-load-balancer", "lb"), ("control-plane", "cp"), ("worker", "w2"), ("worker", "w1"), ("control-plane", "cp2")];
        assert_eq!(in_order(containers.into_iter()), ["w1", "w2", "cp", "cp2"]);
    }

    #[test]
    fn what_kind_maps_is_taken() {
        let config: KindConfig = serde_saphyr::from_str(
            "nodes: [{extraPortMappings: [{containerPort: 80, hostPort: 30080}, {containerPort: 81}, {containerPort: 82, hostPort: -1}]}, {role: worker}]",
        )
        .unwrap();
        assert_eq!((mapped(Some(&config)), mapped(None)), ([30080].into(), [].into()));
    }

    struct Nowhere;

    impl Resolve for Nowhere {
        async fn resolve(&self) -> Vec<Option<SocketAddr>> {
            vec![]
        }
    }

    /// A port that nobody has at the moment.
    async fn free() -> u16 {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap().local_addr().unwrap().port()
    }

    async fn until(report: &Report, what: impl FnMut(&AgentReport) -> bool) -> AgentReport {
        timeout(Duration::from_secs(10), report.subscribe().wait_for(what)).await.unwrap().unwrap().clone()
    }

    fn order(report: &Report, ports: &[u16]) {
        report.update_orders(|orders| orders.received = Orders { ports: ports.iter().copied().collect(), ..Orders::default() });
    }

    #[tokio::test]
    async fn doors_open_and_close_as_ordered_and_say_what_is_taken() {
        let report = Report::new(&settings());
        let following = report.clone();
        let task = tokio::spawn(async move { follow(&[1].into(), |_| Nowhere, &following).await });
        let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let (first, second, taken) = (free().await, free().await, other.local_addr().unwrap().port());
        let connects = async |port: u16| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok();
        let open = |report: &AgentReport| report.open_ports.clone().unwrap();

        order(&report, &[1, first, taken]);
        let said = until(&report, |report| report.orders.as_ref().unwrap().failure(Reason::PortInUse).is_some()).await;
        assert_eq!((open(&said), &said.orders.as_ref().unwrap().carried_out.ports), ([first].into(), &[first].into()));
        let message = &said.orders.unwrap().failures[0].message;
        assert!(message.contains("port 1 of the pod belongs to") && message.contains(&format!("port {taken} of the pod: Address already in use")), "{message}");
        assert!(connects(first).await);

        order(&report, &[second]);
        let said = until(&report, |report| open(report) == [second].into()).await;
        assert_eq!(said.orders.unwrap().failures, vec![], "nobody asks for what was taken any more");
        assert!(connects(second).await && !connects(first).await);

        // Suspended: closed when it is said.
        task.abort();
        let _ = task.await;
        closed(&report);
        assert!(!connects(second).await);
        assert_eq!(open(&report.subscribe().borrow()), [].into());
    }
}
