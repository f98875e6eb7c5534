//! The end: everything that would outlive the pod, or keep the kubelet from removing it, is taken down.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use nestling_core::plan::wire::DATA_ROOT;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{major, minor};
use serde_json::Value;
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
/// whole machine, and a path in it may be of another mount namespace. So the file must be the very one, by device and inode.
async fn detach_loop_devices() {
    let columns = ["--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE"];
    let list = Command::new("losetup").args(columns).stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(Ok(list)) = timeout(DETACH_LIMIT, list).await else { return };
    // No output at all where there is no device.
    let list = serde_json::from_slice(&list.stdout).unwrap_or_default();
    for device in ours(&list, Path::new(DATA_ROOT)) {
        let detach = Command::new("losetup").arg("-d").arg(&device).stdin(Stdio::null()).kill_on_drop(true).status();
        let done = timeout(DETACH_LIMIT, detach).await;
        tracing::info!(device, ok = matches!(done, Ok(Ok(status)) if status.success()), "detached");
    }
}

/// The devices of losetup's list whose file is below `root`.
fn ours(list: &Value, root: &Path) -> Vec<String> {
    let devices = list["loopdevices"].as_array().map_or(&[][..], Vec::as_slice);
    let is_ours = |device: &&Value| {
        let (Some(path), Some(number)) = (device["back-file"].as_str(), device["back-maj:min"].as_str()) else { return false };
        candidates(Path::new(path), root).iter().any(|candidate| {
            fs::metadata(candidate)
                .is_ok_and(|file| number.trim() == format!("{}:{}", major(file.dev()), minor(file.dev())) && device["back-ino"].as_u64() == Some(file.ino()))
        })
    };
    devices.iter().filter(is_ours).filter_map(|device| device["name"].as_str().map(str::to_owned)).collect()
}

/// Where a backing file may be as we see it: at its path, if that is below the root, or in the volume that a node has for its `/var`.
fn candidates(path: &Path, root: &Path) -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> = path.strip_prefix(root).map(|_| path.to_owned()).into_iter().collect();
    if let Ok(inside) = path.strip_prefix("/var") {
        let volumes = fs::read_dir(root.join("volumes")).into_iter().flatten().flatten();
        candidates.extend(volumes.map(|volume| volume.path().join("_data").join(inside)));
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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

    #[test]
    fn only_our_devices_are_detached() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volumes/abc/_data/lib");
        fs::create_dir_all(&volume).unwrap();
        let (direct, nested) = (root.path().join("a disk.img"), volume.join("disk.img"));
        let foreign = tempfile::NamedTempFile::new().unwrap();
        let device = |name: &str, file: &Path, path: &Path| {
            let seen = fs::metadata(file).unwrap();
            // losetup pads the numbers.
            json!({"name": name, "back-maj:min": format!("  {}:{}  ", major(seen.dev()), minor(seen.dev())), "back-ino": seen.ino(), "back-file": path})
        };
        for file in [&direct, &nested] {
            fs::write(file, "").unwrap();
        }
        let in_node = Path::new("/var/lib/disk.img");
        let list = json!({"loopdevices": [
            device("/dev/loop0", &direct, &direct),
            device("/dev/loop1", &nested, in_node),
            // The same path, but another file: the host has a data-root as well.
            device("/dev/loop2", foreign.path(), &direct),
            device("/dev/loop3", foreign.path(), in_node),
            device("/dev/loop4", foreign.path(), foreign.path()),
            json!({"name": "/dev/loop5"}),
        ]});
        assert_eq!(ours(&list, root.path()), ["/dev/loop0", "/dev/loop1"]);
        assert!(ours(&Value::Null, root.path()).is_empty());
    }
}
