//! The end: everything that would outlive the pod, or keep the kubelet from removing it, is taken down.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use nestling_core::plan::wire::DATA_ROOT;
use nix::mount::{MntFlags, umount2};
use tokio::fs::remove_dir_all;
use tokio::time::timeout;

use super::docker::{Docker, Error};
use super::dockerd::Dockerd;
use super::fault::disabled;
use super::kind::Kind;
use super::loop_devices;
use super::mountinfo::{self, Mount};
use super::{nodes, own_parts};

/// Time for thawing all containers.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// Time for `kind delete cluster`, which takes seconds.
const DELETE_LIMIT: Duration = Duration::from_secs(45);

/// Time for removing what kind left.
const REMOVE_LIMIT: Duration = Duration::from_secs(15);

/// Time for removing what nodes had of their own.
const PARTS_LIMIT: Duration = Duration::from_secs(5);

/// Time for a node of a cluster that stays to end its work and to write down its state. Workers and control planes end one after the other.
const NODE_LIMIT: Duration = Duration::from_secs(25);

/// Time for all of them, after which Docker ends them by force; state that is on the volume survives that, too.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Takes the cluster and Docker down, within about 110 seconds at worst; the pod has 120. A cluster that is to stay on its volume (`keep`) is only
/// stopped. Never fails: what cannot be removed is told in the log, and the rest goes on.
pub async fn run(kind: &Kind, cluster: &str, keep: bool, dockerd: &Dockerd) {
    // A daemon that was stopped answers nobody.
    dockerd.wake();
    let docker = timeout(THAW_LIMIT, Docker::connect()).await;
    if let Ok(Ok(docker)) = &docker {
        // Before anything else: on cgroup v1 a frozen process cannot be killed, and a pod that is deleted by force has two seconds.
        let _ = timeout(THAW_LIMIT, thaw(cluster, docker)).await;
    }
    let devices = if disabled("loop-devices") { Vec::new() } else { loop_devices::find().await };
    if let Ok(Ok(docker)) = docker {
        if keep {
            let stopped = timeout(STOP_LIMIT, nodes::stop(&docker, cluster, NODE_LIMIT)).await;
            tracing::info!(in_order = stopped.unwrap_or(false), "the cluster stays on its volume");
        } else {
            remove_cluster(kind, cluster, &docker).await;
        }
    }
    dockerd.stop().await;
    unmount();
    if !keep {
        remove_parts(&own_parts::all(Path::new(DATA_ROOT))).await;
    }
    loop_devices::detach(&devices).await;
    tracing::info!("teardown complete");
}

async fn remove_cluster(kind: &Kind, cluster: &str, docker: &Docker) {
    if timeout(DELETE_LIMIT, kind.delete()).await.unwrap_or(false) {
        return;
    }
    if !timeout(REMOVE_LIMIT, remove_containers(cluster, docker)).await.is_ok_and(|removed| removed.is_ok()) {
        tracing::warn!("some containers could not be removed; they end with Docker");
    }
}

async fn remove_containers(cluster: &str, docker: &Docker) -> Result<(), Error> {
    let left = docker.containers(cluster).await?;
    try_join_all(left.iter().map(|container| docker.remove(&container.name))).await.map(drop)
}

/// Thaws every frozen container of a cluster. Also those that do not look frozen yet: one that is just being frozen has Docker's lock until it is, and
/// the others only refuse.
async fn thaw(cluster: &str, docker: &Docker) {
    let containers = docker.containers(cluster).await.unwrap_or_default();
    join_all(containers.iter().filter(|container| container.running).map(|container| docker.thaw(&container.name))).await;
}

/// Detaches what is still mounted below the data-root: the kubelet cannot remove a volume with a mount in it.
fn unmount() {
    for path in points_below(mountinfo::of("self"), DATA_ROOT) {
        if let Err(error) = umount2(path.as_str(), MntFlags::MNT_DETACH) {
            tracing::warn!("cannot unmount {path}: {error}");
        }
    }
}

/// Removes what nodes had of their own, of which Docker knows nothing: a volume that outlives the cluster shall keep none of its Secrets.
async fn remove_parts(parts: &Path) {
    match timeout(PARTS_LIMIT, remove_dir_all(parts)).await {
        Ok(Err(error)) if error.kind() != ErrorKind::NotFound => tracing::warn!("cannot remove what nodes had of their own: {error}"),
        Ok(_) => {}
        Err(_) => tracing::warn!("what nodes had of their own was not removed within {} s", PARTS_LIMIT.as_secs()),
    }
}

/// Mount points strictly below a directory, the last one mounted first.
fn points_below(mounts: Vec<Mount>, directory: &str) -> Vec<String> {
    let below = format!("{directory}/");
    let mut points: Vec<String> = mounts.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(&below)).collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_undone_from_the_last() {
        let mountinfo = "30 1 8:1 / / rw - ext4 /dev/sda1 rw
31 30 8:1 /v /var/lib/docker rw - ext4 /dev/sda1 rw
32 31 0:40 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw
33 31 0:41 / /var/lib/docker/with\\040blank rw - tmpfs tmpfs rw
34 30 8:1 / /var/lib/docker2 rw - ext4 /dev/sda1 rw
";
        assert_eq!(points_below(mountinfo::parse(mountinfo), "/var/lib/docker"), ["/var/lib/docker/with blank", "/var/lib/docker/overlay2/a/merged"]);
    }
}
