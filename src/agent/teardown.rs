//! The end: everything that would outlive the pod, or keep the kubelet from removing it, is taken down.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use nestling_core::plan::wire::DATA_ROOT;
use nix::mount::{MntFlags, umount2};
use tokio::process::Command;
use tokio::time::timeout;

use super::docker::{Docker, Error};
use super::dockerd::Dockerd;
use super::kind::Kind;

/// Time for thawing all containers.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// Time for `kind delete cluster`, which takes seconds.
const DELETE_LIMIT: Duration = Duration::from_secs(45);

/// Time for removing what kind left.
const REMOVE_LIMIT: Duration = Duration::from_secs(15);

/// Time for detaching one loop device.
const DETACH_LIMIT: Duration = Duration::from_secs(2);

/// Takes the cluster and Docker down, within about 95 seconds at worst; the pod has 120. Never fails: what cannot be removed is
/// told in the log, and the rest goes on.
pub async fn run(kind: &Kind, cluster: &str, dockerd: &Dockerd) {
    if let Ok(Ok(docker)) = timeout(THAW_LIMIT, Docker::connect()).await {
        remove_cluster(kind, cluster, &docker).await;
    }
    dockerd.stop().await;
    unmount();
    detach_loop_devices().await;
    tracing::info!("teardown complete");
}

async fn remove_cluster(kind: &Kind, cluster: &str, docker: &Docker) {
    // On cgroup v1 a frozen process cannot be killed.
    let _ = timeout(THAW_LIMIT, thaw(cluster, docker)).await;
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

/// Thaws every frozen container of a cluster.
async fn thaw(cluster: &str, docker: &Docker) {
    let containers = docker.containers(cluster).await.unwrap_or_default();
    join_all(containers.iter().filter(|container| container.paused).map(|container| docker.thaw(&container.name))).await;
}

/// Detaches what is still mounted below the data-root: the kubelet cannot remove a volume with a mount in it.
fn unmount() {
    for path in mounts_below(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), DATA_ROOT) {
        if let Err(error) = umount2(path.as_str(), MntFlags::MNT_DETACH) {
            tracing::warn!("cannot unmount {path}: {error}");
        }
    }
}

/// Mount points strictly below a directory, the last one mounted first (`/proc/<pid>/mountinfo`, proc(5)).
fn mounts_below(mountinfo: &str, directory: &str) -> Vec<String> {
    let below = format!("{directory}/");
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut points: Vec<String> = points.filter(|point| point.starts_with(&below)).collect();
    points.reverse();
    points
}

/// Undoes the kernel's octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

/// Detaches the loop devices whose file is below the data-root. All others are somebody else's: the kernel has one list for the
/// whole machine.
async fn detach_loop_devices() {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for device in devices.filter(|device| device.file_name().to_string_lossy().starts_with("loop")) {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if is_ours(&backing) {
            let path = Path::new("/dev").join(device.file_name());
            let detach = Command::new("losetup").arg("-d").arg(&path).stdin(Stdio::null()).kill_on_drop(true).status();
            let done = timeout(DETACH_LIMIT, detach).await;
            tracing::info!(device = %path.display(), ok = matches!(done, Ok(Ok(status)) if status.success()), "detached");
        }
    }
}

fn is_ours(backing_file: &str) -> bool {
    Path::new(backing_file.trim_end()).strip_prefix(DATA_ROOT).is_ok_and(|rest| !rest.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn mounts_are_undone_from_the_last() {
        let mountinfo = "30 1 8:1 / / rw - ext4 /dev/sda1 rw
31 30 8:1 /v /var/lib/docker rw - ext4 /dev/sda1 rw
32 31 0:40 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw
33 31 0:41 / /var/lib/docker/with\\040blank rw - tmpfs tmpfs rw
34 30 8:1 / /var/lib/docker2 rw - ext4 /dev/sda1 rw
";
        assert_eq!(mounts_below(mountinfo, "/var/lib/docker"), ["/var/lib/docker/with blank", "/var/lib/docker/overlay2/a/merged"]);
    }

    #[rstest]
    #[case("/var/lib/docker/volumes/x/disk.img\n", true)]
    #[case("/var/lib/docker/volumes/x/disk.img (deleted)\n", true)]
    #[case("/var/lib/docker2/disk.img\n", false)]
    #[case("/home/disk.img\n", false)]
    #[case("", false)]
    fn only_our_devices_are_detached(#[case] backing: &str, #[case] ours: bool) {
        assert_eq!(is_ours(backing), ours);
    }
}
