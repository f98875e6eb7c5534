//! Loop devices of the cluster. The kernel has one list of them for the whole machine and forgets none when a container ends, so those of
//! nested pods have to be told from everybody else's. The paths in the list alone do not help: each is of the mount namespace in which it was attached. A
//! file is ours if the data-root has its inode, if it lies on a file system that only nested processes have mounted, or if a nested process has that very file at that path.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nestling_core::plan::wire::DATA_ROOT;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use serde_json::Value;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use walkdir::{DirEntryExt, WalkDir};

use super::mountinfo::{self, Mount};

/// Time for one call of losetup.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Time for going through the data-root.
const WALK_LIMIT: Duration = Duration::from_secs(5);

/// A loop device with the file behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Attached {
    /// Path of the device.
    name: String,
    /// Device number of the file system that has the file, as `major:minor`.
    file_system: String,
    /// Inode of the file.
    inode: u64,
    /// Path of the file for those who attached it.
    file: String,
}

/// Devices whose file is the cluster's. To be called while its nodes are there: once they are gone, their files have no names and their file systems no mounts.
pub async fn find() -> Vec<String> {
    let _ = spawn_blocking(make_nodes).await;
    let Some(list) = losetup(&["--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO,BACK-FILE"]).await else {
        tracing::warn!("cannot list loop devices");
        return Vec::new();
    };
    // No output at all where there is no device.
    let attached = parse(&serde_json::from_slice(&list.stdout).unwrap_or_default());
    if attached.is_empty() {
        return Vec::new();
    }
    spawn_blocking(move || {
        let named = named_by_nested(&attached);
        let mut ours = ours(attached, Path::new(DATA_ROOT), &nested_file_systems());
        ours.extend(named.into_iter().filter(|name| !ours.contains(name)).collect::<Vec<_>>());
        ours
    })
    .await
    .unwrap_or_default()
}

/// Detaches them.
pub async fn detach(devices: &[String]) {
    if devices.is_empty() {
        return;
    }
    let arguments: Vec<&str> = std::iter::once("--detach").chain(devices.iter().map(String::as_str)).collect();
    let done = losetup(&arguments).await;
    tracing::info!(?devices, ok = done.is_some_and(|output| output.status.success()), "detached");
}

/// What losetup answers; nothing if it cannot be run or does not end in time.
async fn losetup(arguments: &[&str]) -> Option<Output> {
    let run = Command::new("losetup").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(CALL_LIMIT, run).await.ok()?.ok()
}

/// A pod has the device nodes that its host had when it began; losetup needs one for each device.
fn make_nodes() {
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = device.file_name();
        let node = Path::new("/dev").join(&name);
        if !name.to_string_lossy().starts_with("loop") || node.exists() {
            continue;
        }
        let number = fs::read_to_string(device.path().join("dev")).unwrap_or_default();
        let Some((Ok(major), Ok(minor))) = number.trim().split_once(':').map(|(major, minor)| (major.parse(), minor.parse())) else { continue };
        if let Err(error) = mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor)) {
            tracing::warn!("cannot make {}: {error}", node.display());
        }
    }
}

/// Reads losetup's list.
fn parse(list: &Value) -> Vec<Attached> {
    let device = |device: &Value| {
        Some(Attached {
            name: device["name"].as_str()?.to_owned(),
            // losetup pads the numbers.
            file_system: device["back-maj:min"].as_str()?.trim().to_owned(),
            inode: device["back-ino"].as_u64()?,
            file: device["back-file"].as_str().unwrap_or_default().to_owned(),
        })
    };
    list["loopdevices"].as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(device).collect()
}

/// Those whose file is below `root`, or on one of these file systems.
fn ours(attached: Vec<Attached>, root: &Path, nested: &HashSet<String>) -> Vec<String> {
    let disk = fs::metadata(root).map(|root| format!("{}:{}", major(root.dev()), minor(root.dev()))).unwrap_or_default();
    let wanted: HashSet<u64> = attached.iter().filter(|device| device.file_system == disk).map(|device| device.inode).collect();
    let found = inodes_below(root, wanted);
    let is_ours = |device: &Attached| nested.contains(&device.file_system) || device.file_system == disk && found.contains(&device.inode);
    attached.into_iter().filter(is_ours).map(|device| device.name).collect()
}

/// Which of these inodes have a name below `root`, on its own file system.
fn inodes_below(root: &Path, mut wanted: HashSet<u64>) -> HashSet<u64> {
    let mut found = HashSet::new();
    let end = Instant::now() + WALK_LIMIT;
    for entry in WalkDir::new(root).same_file_system(true) {
        if wanted.is_empty() {
            break;
        }
        if Instant::now() > end {
            tracing::warn!("gave up after {WALK_LIMIT:?} to look for the files of {} loop devices", wanted.len());
            break;
        }
        // Files come and go.
        if let Some(inode) = entry.ok().and_then(|entry| wanted.take(&entry.ino())) {
            found.insert(inode);
        }
    }
    found
}

/// File systems in the mount namespaces of nested processes.
fn nested_file_systems() -> HashSet<String> {
    only_nested(&mountinfo::of("self"), processes().flat_map(|process| mountinfo::of(&process)), DATA_ROOT)
}

fn processes() -> impl Iterator<Item = String> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Devices whose file a nested process has under that very name. An overlay whose layers are on several file systems gives its files a number that no mount has
/// (`pseudo_dev` in the kernel's `fs/overlayfs`); such are the overlays of nodes and of what runs in them.
fn named_by_nested(attached: &[Attached]) -> Vec<String> {
    let known: HashSet<String> = mountinfo::of("self").into_iter().map(|mount| mount.device).collect();
    let mut left: Vec<&Attached> = attached.iter().filter(|device| device.file_system.starts_with("0:") && !known.contains(&device.file_system)).collect();
    let mut found = Vec::new();
    for process in processes() {
        if left.is_empty() {
            break;
        }
        let Ok(root) = File::open(format!("/proc/{process}/root")) else { continue };
        left.retain(|device| {
            let is = is_in(&root, device);
            if is {
                found.push(device.name.clone());
            }
            !is
        });
    }
    found
}

/// Whether this directory, as a root, has the file of a device under the device's own name for it.
fn is_in(root: &File, device: &Attached) -> bool {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let seen = openat2(root, device.file.as_str(), how).map(File::from).map_err(io::Error::from).and_then(|file| file.metadata());
    seen.is_ok_and(|seen| seen.ino() == device.inode && format!("{}:{}", major(seen.dev()), minor(seen.dev())) == device.file_system)
}

/// File systems that hold files, have no device of their own and are nowhere in the pod's own mounts but below the data-root, where Docker mounts
/// those of the nodes. What the host has given the pod is thus not among them.
fn only_nested(own: &[Mount], all: impl Iterator<Item = Mount>, data_root: &str) -> HashSet<String> {
    let own: HashSet<&str> = own.iter().filter(|mount| !Path::new(&mount.point).starts_with(data_root)).map(|mount| mount.device.as_str()).collect();
    let holds_files = |mount: &Mount| ["overlay", "tmpfs"].contains(&mount.kind.as_str()) && mount.device.starts_with("0:");
    all.filter(|mount| holds_files(mount) && !own.contains(mount.device.as_str())).map(|mount| mount.device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_our_devices_are_found() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volumes/abc/_data/lib/kubelet");
        fs::create_dir_all(&volume).unwrap();
        // The same path as one of ours, but another file: the host has a data-root as well.
        let (ours_file, foreign) = (volume.join("disk.img"), tempfile::NamedTempFile::new_in(root.path().parent().unwrap()).unwrap());
        fs::write(&ours_file, "").unwrap();
        let device = |name: &str, file: &Path| {
            let seen = fs::metadata(file).unwrap();
            json!({"name": name, "back-maj:min": format!("  {}:{}  ", major(seen.dev()), minor(seen.dev())), "back-ino": seen.ino()})
        };
        let inode = fs::metadata(&ours_file).unwrap().ino();
        let list = json!({"loopdevices": [
            device("/dev/loop0", &ours_file),
            device("/dev/loop1", foreign.path()),
            {"name": "/dev/loop2", "back-maj:min": "  0:77", "back-ino": 5},
            {"name": "/dev/loop3", "back-maj:min": "  0:78", "back-ino": 5},
            // The inode alone says nothing.
            {"name": "/dev/loop4", "back-maj:min": "250:99", "back-ino": inode},
            {"name": "/dev/loop5"},
        ]});
        assert_eq!(ours(parse(&list), root.path(), &["0:77".to_owned()].into()), ["/dev/loop0", "/dev/loop2"]);
        assert!(parse(&Value::Null).is_empty());
    }

    #[test]
    fn a_file_is_known_by_its_name_and_number() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("disk.img"), "").unwrap();
        let seen = fs::metadata(root.path().join("disk.img")).unwrap();
        let file_system = format!("{}:{}", major(seen.dev()), minor(seen.dev()));
        let device = Attached { name: "/dev/loop0".into(), file_system, inode: seen.ino(), file: "/disk.img".into() };
        let directory = File::open(root.path()).unwrap();
        assert!(is_in(&directory, &device));
        for other in [
            Attached { inode: seen.ino() + 1, ..device.clone() },
            Attached { file_system: "0:77".into(), ..device.clone() },
            Attached { file: "/other.img".into(), ..device },
        ] {
            assert!(!is_in(&directory, &other), "{other:?}");
        }
    }

    #[test]
    fn what_the_host_gave_the_pod_is_not_the_clusters() {
        let mounts = |text: &str| mountinfo::parse(text);
        let own = mounts(
            "1 0 0:10 / / rw - overlay overlay rw
2 1 0:11 / /dev rw - tmpfs tmpfs rw
3 1 254:1 /volume /var/lib/docker rw - ext4 /dev/vda1 rw
4 3 0:20 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw
",
        );
        let nested = mounts(
            "5 0 0:20 / / rw - overlay overlay rw
6 5 0:21 / /run rw - tmpfs tmpfs rw
7 5 254:1 /volume/volumes/b/_data /var rw - ext4 /dev/vda1 rw
8 5 0:11 /x /x rw - tmpfs tmpfs rw
9 5 0:5 / /proc rw - proc proc rw
",
        );
        let found = only_nested(&own, own.iter().cloned().chain(nested), "/var/lib/docker");
        assert_eq!(found, ["0:20", "0:21"].map(str::to_owned).into());
    }
}
