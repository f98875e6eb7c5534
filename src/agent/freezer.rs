//! The last resort against processes that nothing can end: on cgroup v1 a frozen process survives even SIGKILL, and with it the pod, until it is
//! thawed. On v2 a kill goes through.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup;

/// Thaws every process of this pod on cgroup v1, without Docker: for PID 1, when there is nobody else left to do it.
pub fn thaw_all() {
    let tree = Path::new(cgroup::ROOT).join("freezer");
    let own = group_of("self").unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| group_of(entry.file_name().to_str()?));
    for group in groups(&own, processes) {
        let state = tree.join(group).join("freezer.state");
        if fs::read_to_string(&state).is_ok_and(|state| state.trim() != "THAWED")
            && let Err(error) = fs::write(&state, "THAWED")
        {
            eprintln!("cannot thaw {}: {error}", state.display());
        }
    }
}

/// Path of a process's group in the freezer's tree; `None` on v2 and for what is no process.
fn group_of(process: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    parse(&groups).map(str::to_owned)
}

/// The same of the lines of `/proc/<pid>/cgroup`: `4:freezer:/path`.
fn parse(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "freezer").then_some(path)
    })
}

/// The groups of these processes below the root of the tree that this process sees, and those above them, which may be what is frozen; the uppermost
/// first. A container may see its own group as the root of the mount, whatever its path says.
fn groups(own: &str, processes: impl Iterator<Item = String>) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for path in processes {
        let path = Path::new(&path);
        for below in [path.strip_prefix(own).ok(), path.strip_prefix("/").ok()].into_iter().flatten() {
            found.extend(below.ancestors().filter(|group| *group != Path::new("")).map(Path::to_owned));
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found() {
        assert_eq!(parse("5:pids:/a\n4:freezer:/pod/docker/x\n1:name=systemd:/b\n"), Some("/pod/docker/x"));
        assert_eq!(parse("0::/init\n"), None);
    }

    #[test]
    fn groups_are_looked_for_below_what_the_pod_sees_and_come_before_their_children() {
        let processes = ["/pod", "/pod/docker/x/kubelet", "/pod/docker/y"].map(str::to_owned);
        let found = groups("/pod", processes.into_iter());
        let found: Vec<&str> = found.iter().filter_map(|group| group.to_str()).collect();
        assert_eq!(found, ["docker", "docker/x", "docker/x/kubelet", "docker/y", "pod", "pod/docker", "pod/docker/x", "pod/docker/x/kubelet", "pod/docker/y"]);
        assert!(groups("/", std::iter::once("/".to_owned())).is_empty(), "the root is not ours");
    }
}
