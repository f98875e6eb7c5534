//! Nodes that are there already: brought back to work on whatever machine the pod is now, or put to rest.
//!
//! Docker gives a container's address back when it stops and gives the next free one when it starts. kind's entrypoint repairs what one node says of itself
//! (manifests, kubelet, the API server's certificate), but not what others know of it, such as the members of etcd and their certificates. So each node gets
//! the address back that it had, as a fixed one; the entrypoint then finds nothing to repair, and is there for the case that the address cannot be had.
//!
//! A node of a cluster that is kept never starts by itself ([`Docker::leave_starts_to_us`]): what the machine is like has to be in its files before.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use ipnet::Ipv4Net;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::kubelet_config;
use nestling_core::plan::wire::AgentFailure;

use tokio::time::timeout;

use super::docker::{Container, Docker, Error};
use super::failure::{failure, from_problem};
use super::node_files;

/// kind's role of a control plane.
pub const CONTROL_PLANE: &str = "control-plane";
const WORKER: &str = "worker";
/// kind's role of what stands before several control planes, and is no node.
pub const LOAD_BALANCER: &str = "external-load-balancer";

/// What Docker says of a fixed address that somebody else has.
const TAKEN: &str = "Address already in use";

/// What the machine is like on which nodes come back.
#[derive(Clone, Debug)]
pub struct Landing {
    /// Range of kind's network.
    pub network: Ipv4Net,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// What each kubelet must leave alone here ([`reserved`](nestling_core::plan::kind_config::reserved)).
    pub reserved: BTreeMap<&'static str, String>,
    /// The addresses that the nodes had.
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

/// Brings every node of a cluster back that does not run: thaws what is frozen and starts what has stopped. Nodes that run are left alone. Does not wait for what
/// runs in them. Bounded by the limits of the single requests to Docker.
///
/// # Errors
/// Docker's, as [`Reason::ResumeFailed`], or what is wrong with a node's own files. Some nodes may be back then; a second call goes on.
pub async fn bring_back(docker: &Docker, cluster: &str, landing: &Landing) -> Result<(), AgentFailure> {
    let containers = docker.containers(cluster).await.map_err(docker_failed)?;
    // A control plane that finds silent workers behind it would move their pods.
    for group in in_order(&containers, |container| container.paused, [WORKER, LOAD_BALANCER, CONTROL_PLANE]) {
        try_join_all(group.iter().map(|name| docker.thaw(name))).await.map_err(docker_failed)?;
    }
    let stopped = |container: &Container| !container.running;
    for container in containers.iter().filter(|container| stopped(container) && container.role != LOAD_BALANCER) {
        prepare(docker, &container.name, landing).await?;
    }
    let resting: Vec<&Container> = containers.iter().filter(|container| stopped(container)).collect();
    if !resting.is_empty() {
        move_in(docker, &resting, landing).await.map_err(docker_failed)?;
    }
    // All control planes at once: etcd needs most of them to begin. The load balancer looks for their names, workers for its.
    for group in in_order(&containers, stopped, [CONTROL_PLANE, LOAD_BALANCER, WORKER]) {
        try_join_all(group.iter().map(|name| start(docker, name))).await.map_err(docker_failed)?;
    }
    Ok(())
}

/// Freezes all nodes that run, within `limit`.
///
/// # Errors
/// Docker's. Some nodes may be frozen then.
pub async fn freeze(docker: &Docker, cluster: &str, limit: Duration) -> Result<(), AgentFailure> {
    let freezing = async {
        let containers = docker.containers(cluster).await?;
        // The reverse of the way back: a control plane must not miss its workers.
        for group in in_order(&containers, |container| container.running && !container.paused, [CONTROL_PLANE, LOAD_BALANCER, WORKER]) {
            try_join_all(group.iter().map(|name| docker.freeze(name))).await?;
        }
        Ok::<_, Error>(())
    };
    match timeout(limit, freezing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failure(Reason::DockerFailed, format!("a node cannot be frozen: {error}"))),
        Err(_) => Err(failure(Reason::DockerFailed, format!("the nodes were not frozen within {} s", limit.as_secs()))),
    }
}

/// Stops all nodes, control planes last, each within `limit`; then by force. Tells whether all have stopped.
pub async fn stop(docker: &Docker, cluster: &str, limit: Duration) -> bool {
    let Ok(containers) = docker.containers(cluster).await else { return false };
    // On cgroup v1 a frozen process cannot be killed.
    join_all(containers.iter().filter(|container| container.paused).map(|container| docker.thaw(&container.name))).await;
    let mut stopped = true;
    for roles in [&[WORKER, LOAD_BALANCER][..], &[CONTROL_PLANE][..]] {
        let group = containers.iter().filter(|container| container.running && roles.contains(&container.role.as_str()));
        stopped &= join_all(group.map(|container| docker.stop(&container.name, limit))).await.iter().all(Result::is_ok);
    }
    stopped
}

/// Names of all nodes, whether they run or not.
///
/// # Errors
/// Docker's.
pub async fn names(docker: &Docker, cluster: &str) -> Result<Vec<String>, Error> {
    let containers = docker.containers(cluster).await?;
    Ok(containers.into_iter().filter(|container| container.role != LOAD_BALANCER).map(|container| container.name).collect())
}

/// Addresses of all nodes that run, by name.
pub async fn addresses(docker: &Docker, cluster: &str) -> BTreeMap<String, Ipv4Addr> {
    let containers = docker.containers(cluster).await.unwrap_or_default();
    let look = async |container: Container| docker.address(&container.name).await.map(|address| (container.name, address));
    join_all(containers.into_iter().map(look)).await.into_iter().flatten().collect()
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn docker_failed(error: Error) -> AgentFailure {
    failure(Reason::ResumeFailed, format!("a node cannot be started again: {error}"))
}

/// Names of the containers that are `wanted`, grouped by role in this order.
fn in_order(containers: &[Container], wanted: impl Fn(&Container) -> bool, roles: [&str; 3]) -> Vec<Vec<String>> {
    let of = |role| containers.iter().filter(|container| container.role == role && wanted(container)).map(|container| container.name.clone()).collect();
    roles.into_iter().map(of).collect()
}

/// Writes what the machine is like into a node that has stopped.
async fn prepare(docker: &Docker, node: &str, landing: &Landing) -> Result<(), AgentFailure> {
    let unreadable = |error: std::io::Error| failure(Reason::ResumeFailed, format!("the files of {node} cannot be changed: {error}"));
    let directory = docker.directory(node, "/var").await.map_err(docker_failed)?;
    let directory = directory.ok_or_else(|| failure(Reason::ResumeFailed, format!("{node} has no volume at /var, as kind's nodes have")))?;
    let reserved = landing.reserved.clone();
    tokio::task::spawn_blocking(move || describe_machine(&directory, &reserved).map(|outcome| outcome.map_err(|problem| from_problem(&problem))))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(unreadable)?
}

fn describe_machine(directory: &Path, reserved: &BTreeMap<&'static str, String>) -> std::io::Result<Result<(), nestling_core::plan::problem::Problem>> {
    let text = node_files::read_below(directory, kubelet_config::FILE)?;
    match kubelet_config::with_reservations(&text, reserved) {
        Ok(None) => {}
        Ok(Some(text)) => node_files::replace_below(directory, kubelet_config::FILE, &text)?,
        Err(problem) => return Ok(Err(problem)),
    }
    for file in kubelet_config::OF_THE_MACHINE {
        node_files::remove_below(directory, file)?;
    }
    Ok(Ok(()))
}

/// Gives the nodes kind's network as it is to be here, and their places in it.
async fn move_in(docker: &Docker, nodes: &[&Container], landing: &Landing) -> Result<(), Error> {
    for node in nodes {
        docker.leave_network(&node.name).await?;
    }
    docker.ensure_network(landing.network, landing.mtu).await?;
    for node in nodes {
        docker.join_network(&node.name, landing.addresses.get(&node.name).copied()).await?;
    }
    Ok(())
}

/// Starts one node that has stopped, on the machine on which it ran before, at the address that it had.
///
/// # Errors
/// Docker's. The node may be left out of kind's network then; a second call goes on.
pub async fn start_again(docker: &Docker, node: &str, address: Option<Ipv4Addr>) -> Result<(), Error> {
    docker.leave_network(node).await?;
    docker.join_network(node, address).await?;
    start(docker, node).await
}

async fn start(docker: &Docker, node: &str) -> Result<(), Error> {
    match docker.start(node).await {
        Err(error) if error.to_string().contains(TAKEN) => {
            tracing::warn!(node, "its address is taken; it gets another one, and kind's entrypoint has to repair the node");
            docker.leave_network(node).await?;
            docker.join_network(node, None).await?;
            docker.start(node).await
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn container(name: &str, role: &str, running: bool, paused: bool) -> Container {
        Container { name: name.into(), role: role.into(), running, paused }
    }

    #[test]
    fn frozen_workers_come_before_and_stopped_ones_after_their_control_planes() {
        let all = [
            container("control-plane", CONTROL_PLANE, true, true),
            container("control-plane2", CONTROL_PLANE, false, false),
            container("control-plane3", CONTROL_PLANE, false, false),
            container("lb", LOAD_BALANCER, false, false),
            container("worker", WORKER, true, true),
            container("worker2", WORKER, true, false),
            container("worker3", WORKER, false, false),
        ];
        let frozen = in_order(&all, |container| container.paused, [WORKER, LOAD_BALANCER, CONTROL_PLANE]);
        assert_eq!(frozen, [vec!["worker"], vec![], vec!["control-plane"]]);
        let stopped = in_order(&all, |container| !container.running, [CONTROL_PLANE, LOAD_BALANCER, WORKER]);
        assert_eq!(stopped, [vec!["control-plane2", "control-plane3"], vec!["lb"], vec!["worker3"]]);
    }

    #[test]
    fn a_node_is_told_what_its_new_machine_is_like() {
        let directory = tempfile::tempdir().unwrap();
        let kubelet = directory.path().join("lib/kubelet");
        fs::create_dir_all(&kubelet).unwrap();
        let state = kubelet.join("cpu_manager_state");
        let reserved = BTreeMap::from([("memory", "4096Ki".to_owned())]);
        assert!(describe_machine(directory.path(), &reserved).is_err(), "a node without a kubelet");
        fs::write(kubelet.join("config.yaml"), "kind: KubeletConfiguration\nsystemReserved: {memory: 1Ki}\nmaxPods: 7\n").unwrap();
        fs::write(&state, "{}").unwrap();
        describe_machine(directory.path(), &reserved).unwrap().unwrap();
        let written = fs::read_to_string(kubelet.join("config.yaml")).unwrap();
        assert!(written.contains("memory: 4096Ki") && written.contains("maxPods: 7"), "{written}");
        assert!(!state.exists() && fs::read_dir(&kubelet).unwrap().count() == 1);
        fs::write(kubelet.join("config.yaml"), "kind: Pod").unwrap();
        assert!(describe_machine(directory.path(), &reserved).unwrap().is_err());
    }
}
