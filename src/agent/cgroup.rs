//! The pod's control groups.
//!
//! On cgroup v2 container runtimes give a privileged pod the host's cgroup namespace (containerd
//! `internal/cri/server/container_create.go`): Docker would put its containers beside the pod, where the pod's limits do not bind
//! them and nobody removes them. So the first act of PID 1 is to make the pod's own group the root of what it sees, and to hand
//! its controllers on to groups below. On v1 there is nothing to do: Docker finds its way.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::fault::disabled;

/// Where control groups are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The group that all processes of the agent and of Docker are moved to: a group with processes of its own cannot hand on controllers.
const OWN_GROUP: &str = "init";

/// Time for moving processes and enabling controllers together, which is a matter of milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// Controllers that a kubelet insists on.
const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];

/// Which of the kernel's two interfaces is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// One tree for each controller.
    V1,
    /// One tree.
    V2,
}

/// Why the groups could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call was refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// A file could not be read or written.
    #[error("cannot {what}: {source}")]
    File {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Processes stayed where they were.
    #[error("processes {pids} stay in the pod's root cgroup")]
    Occupied {
        /// The processes.
        pids: String,
    },
    /// A controller cannot be handed on.
    #[error("the controller {controller} cannot be handed on to the nodes: {cause}")]
    Controller {
        /// Its name.
        controller: String,
        /// Why.
        cause: String,
    },
}

/// The version in use. A host with v1 may have an empty v2 tree at `unified`, so only the root counts.
pub fn version() -> Version {
    match statfs(ROOT) {
        Ok(stat) if stat.filesystem_type() == CGROUP2_SUPER_MAGIC => Version::V2,
        _ => Version::V1,
    }
}

/// Sets the pod's groups up. Must run before this process has a second thread: a namespace belongs to a thread.
///
/// # Errors
/// The step that was refused, at the latest after [`LIMIT`].
pub fn prepare() -> Result<(), Error> {
    if version() == Version::V1 || disabled("cgroup-isolation") {
        return Ok(());
    }
    isolate()?;
    let root = Path::new(ROOT);
    let end = Instant::now() + LIMIT;
    evacuate(root, end)?;
    enable_controllers(root, end)?;
    if !disabled("cpu-limit") {
        copy_cpu_limit(root);
    }
    Ok(())
}

fn isolate() -> Result<(), Error> {
    let refused = |what| move |source| Error::System { what, source };
    let none = None::<&str>;
    if disabled("cgroup-mount-order") {
        let _ = mount(Some("cgroup2"), ROOT, Some("cgroup2"), MsFlags::empty(), none);
    }
    // First the namespaces, then the mount: a mount made in the host's namespace applies its options to the host's tree.
    unshare(CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS).map_err(refused("unshare the cgroup and mount namespaces"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(refused("make the pod's mounts private"))?;
    // The old mount shows the host's tree. Where it cannot be taken away, it is at least covered.
    let _ = umount2(ROOT, MntFlags::MNT_DETACH);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("cgroup2"), ROOT, Some("cgroup2"), flags, none).map_err(refused("mount cgroup2"))?;
    // Docker and the nodes expect to share mounts among themselves, as below systemd; nothing of it leaves this namespace.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).map_err(refused("share mounts within the pod"))
}

/// Moves every process of the root to [`OWN_GROUP`]. Others may be on their way in (`kubectl exec`), hence the rounds.
fn evacuate(root: &Path, end: Instant) -> Result<(), Error> {
    let target = root.join(OWN_GROUP);
    match fs::create_dir(&target) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => return Err(Error::File { what: format!("create {}", target.display()), source }),
        _ => {}
    }
    loop {
        let pids = read(&root.join("cgroup.procs"))?;
        if pids.trim().is_empty() {
            return Ok(());
        }
        // 0 is a process outside of the pod's PID namespace: a runtime about to enter.
        for pid in pids.lines().filter(|pid| *pid != "0") {
            match fs::write(target.join("cgroup.procs"), pid) {
                Err(source) if source.raw_os_error() != Some(Errno::ESRCH as i32) => {
                    return Err(Error::File { what: format!("move process {pid} to {}", target.display()), source });
                }
                _ => {}
            }
        }
        if Instant::now() > end {
            return Err(Error::Occupied { pids: pids.split_whitespace().take(10).collect::<Vec<_>>().join(", ") });
        }
        sleep(Duration::from_millis(1));
    }
}

/// Hands the controllers on, one by one: written together, one refused controller would refuse them all.
fn enable_controllers(root: &Path, end: Instant) -> Result<(), Error> {
    let available = read(&root.join("cgroup.controllers"))?;
    if let Some(missing) = REQUIRED.into_iter().find(|required| !names(&available, required)) {
        return Err(Error::Controller { controller: missing.to_owned(), cause: "the pod itself does not have it".to_owned() });
    }
    for controller in available.split_whitespace() {
        while let Err(source) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            // Somebody has come in since the evacuation.
            if source.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < end {
                sleep(PAUSE);
                evacuate(root, end)?;
            } else if REQUIRED.contains(&controller) {
                return Err(Error::Controller { controller: controller.to_owned(), cause: source.to_string() });
            } else {
                break;
            }
        }
    }
    Ok(())
}

/// Whether containers can have a share of the disks' time, as each one of Docker's asks for. Kernels and hosts without it are rare; nodes do without.
pub fn shares_disks() -> bool {
    version() == Version::V1 || hands_on(Path::new(ROOT), "io")
}

fn hands_on(root: &Path, controller: &str) -> bool {
    read(&root.join("cgroup.subtree_control")).is_ok_and(|handed_on| names(&handed_on, controller))
}

/// Whether one of the kernel's lists has this controller.
fn names(list: &str, controller: &str) -> bool {
    list.split_whitespace().any(|word| word == controller)
}

/// Repeats the pod's CPU limit where Docker runs: Go programs size themselves by the group that they are in.
fn copy_cpu_limit(root: &Path) {
    if let Ok(limit) = fs::read_to_string(root.join("cpu.max"))
        && !limit.starts_with("max")
    {
        let _ = fs::write(root.join(OWN_GROUP).join("cpu.max"), limit.trim());
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { what: format!("read {}", path.display()), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory is not a cgroup: writes only replace text. Enough to see which files are touched.
    fn tree(procs: &str, controllers: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [("cgroup.procs", procs), ("cgroup.controllers", controllers), ("cpu.max", "200000 100000\n")] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_missing_controller_is_named() {
        let tree = tree("", "cpuset cpu io pids\n");
        assert!(enable_controllers(tree.path(), Instant::now()).unwrap_err().to_string().contains("memory"));
    }

    #[test]
    fn only_what_is_handed_on_can_be_had() {
        let tree = tree("", "cpu memory pids io\n");
        assert!(!hands_on(tree.path(), "io"));
        fs::write(tree.path().join("cgroup.subtree_control"), "cpu io memory pids\n").unwrap();
        assert!(hands_on(tree.path(), "io"));
        assert!(!hands_on(tree.path(), "i"));
    }

    #[test]
    fn the_cpu_limit_is_repeated() {
        let tree = tree("", "cpu memory pids\n");
        evacuate(tree.path(), Instant::now()).unwrap();
        enable_controllers(tree.path(), Instant::now()).unwrap();
        copy_cpu_limit(tree.path());
        assert_eq!(fs::read_to_string(tree.path().join("init/cpu.max")).unwrap(), "200000 100000");
    }

    #[test]
    fn processes_that_stay_end_the_wait() {
        let error = evacuate(tree("1\n0\n", "").path(), Instant::now() + PAUSE).unwrap_err();
        assert!(error.to_string().contains("processes 1, 0 stay"), "{error}");
    }
}
