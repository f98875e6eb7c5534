//! What `extraMounts` may name. Their `hostPath` is a path of the pod, where the keys of the cluster, the agent's own key and Docker's socket are.
//!
//! A path is taken as it stands, so it must be written plainly: kind would read a relative one from its own directory, Docker takes a colon for the
//! end of the path, and the kernel follows the links of the pod. This holds against a configuration, not against root in a node, who is privileged.

use super::kind_config::is_below;
use super::problem::Problem;
use crate::api::kind_config::{KindMount, KindNode};
use crate::api::reasons::Reason;

/// Directories of the pod that no node may mount: the system's own, where also the keys, the sockets and Docker's data are.
const PRIVATE: &[&str] = &[
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt/nestling",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/cache",
    "/var/lib",
    "/var/lock",
    "/var/log",
    "/var/run",
];

/// Links to elsewhere in a directory that nodes may mount.
const LINKS: &[&str] = &["/dev/core", "/dev/fd", "/dev/stderr", "/dev/stdin", "/dev/stdout"];

/// What nodes may mount of [`PRIVATE`]; kind itself does.
const OPEN: &[&str] = &["/lib/modules", "/usr/lib/modules"];

/// Where kubeadm finds the cluster's keys in a node.
const NODE_KEYS: &str = "/etc/kubernetes/pki";

/// Refuses mounts that reach what is not the user's.
///
/// # Errors
/// [`Reason::ConfigFieldOwned`], naming the place.
pub fn check(nodes: &[KindNode]) -> Result<(), Problem> {
    let owned = |place: String, why: &str| Err(Problem::new(Reason::ConfigFieldOwned, format!("config.{place} {why}")));
    let all: Vec<(String, &KindMount)> = nodes
        .iter()
        .enumerate()
        .flat_map(|(node, kind_node)| {
            kind_node.extra_mounts.iter().enumerate().map(move |(index, mount)| (format!("nodes[{node}].extraMounts[{index}]"), mount))
        })
        .collect();
    for (place, mount) in &all {
        let source = mount.host_path.as_deref().unwrap_or_default();
        if !is_plain(source) {
            return owned(format!("{place}.hostPath"), "must be an absolute path without colons, dots and doubled slashes");
        }
        if let Some(private) = private(source) {
            return owned(format!("{place}.hostPath"), &format!("reaches {private}, which belongs to the pod that runs the cluster"));
        }
        // What is inside of a mount can be replaced by a link from within, which is followed when a node starts again.
        if all.iter().filter_map(|(_, other)| other.host_path.as_deref()).any(|other| is_below(source, other) && !is_below(other, source)) {
            return owned(format!("{place}.hostPath"), "is inside of another mount");
        }
        let target = mount.container_path.as_deref().unwrap_or_default();
        if target.contains(':') || is_below(target, NODE_KEYS) {
            return owned(format!("{place}.containerPath"), "is the operator's");
        }
    }
    Ok(())
}

fn is_plain(path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let path = path.strip_suffix('/').unwrap_or(path);
    path.is_empty()
        || path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(|character: char| character == ':' || character.is_control()))
}

/// The private directory that a mount of `path` would show. A mount of / or /var would hold one as well.
fn private(path: &str) -> Option<&'static str> {
    if OPEN.iter().any(|open| is_below(path, open)) {
        return None;
    }
    let directory = PRIVATE.iter().find(|private| is_below(path, private) || is_below(private, path));
    directory.or_else(|| LINKS.iter().find(|link| is_below(path, link))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn node(mounts: &[(&str, &str)]) -> KindNode {
        let mount =
            |(host, container): &(&str, &str)| KindMount { host_path: Some((*host).into()), container_path: Some((*container).into()), ..KindMount::default() };
        KindNode { extra_mounts: mounts.iter().map(mount).collect(), ..KindNode::default() }
    }

    #[rstest]
    #[case("/etc/nestling/keys", "/etc")]
    #[case("/run/nestling/pki", "/run")]
    #[case("/var/run/docker.sock", "/var/run")]
    #[case("/run/docker/containerd/containerd.sock", "/run")]
    #[case("/run", "/run")]
    #[case("/run/", "/run")]
    #[case("/", "/bin")]
    #[case("/var", "/var/cache")]
    #[case("/opt", "/opt/nestling")]
    #[case("/var/lib/docker/volumes", "/var/lib")]
    #[case("/proc/1/root/etc/nestling", "/proc")]
    #[case("/sys/fs/cgroup", "/sys")]
    #[case("/usr/local/bin/nestling", "/usr")]
    #[case("/lib/systemd", "/lib")]
    #[case("/dev/fd/3", "/dev/fd")]
    #[case("/root/.docker", "/root")]
    #[case("", "absolute")]
    #[case("keys", "absolute")]
    #[case("./run", "absolute")]
    #[case("~/x", "absolute")]
    #[case("/tmp/../run", "absolute")]
    #[case("/./run", "absolute")]
    #[case("//run", "absolute")]
    #[case("/run:/x", "absolute")]
    #[case("/tmp/\n", "absolute")]
    fn what_is_the_pods_cannot_be_mounted(#[case] path: &str, #[case] said: &str) {
        let problem = check(&[node(&[(path, "/x")])]).unwrap_err();
        assert_eq!(problem.reason, Reason::ConfigFieldOwned);
        assert!(problem.message.contains("nodes[0].extraMounts[0].hostPath") && problem.message.contains(said), "{problem}");
    }

    #[rstest]
    #[case("/lib/modules")]
    #[case("/usr/lib/modules/6.18.0")]
    #[case("/dev")]
    #[case("/dev/net/tun")]
    #[case("/dev/null")]
    #[case("/mnt/data/")]
    #[case("/tmp/x")]
    #[case("/var/local/x")]
    #[case("/runner")]
    #[case("/home/me/..data")]
    fn what_is_the_users_can_be_mounted(#[case] path: &str) {
        assert_eq!(check(&[node(&[(path, "/x")]), node(&[(path, "/x")])]), Ok(()));
    }

    #[rstest]
    #[case("/etc/kubernetes//pki/ca.key")]
    #[case("/etc/kubernetes/x/../pki")]
    #[case("ro:rw")]
    fn the_keys_in_a_node_cannot_be_covered(#[case] path: &str) {
        let problem = check(&[node(&[("/tmp/x", path)])]).unwrap_err();
        assert!(problem.message.contains("containerPath"), "{problem}");
    }

    #[test]
    fn a_mount_inside_of_another_nodes_mount_is_refused() {
        let problem = check(&[node(&[("/tmp/x", "/x")]), node(&[("/mnt/y", "/y"), ("/tmp/x/inner", "/z")])]).unwrap_err();
        assert!(problem.message.starts_with("config.nodes[1].extraMounts[1].hostPath is inside"), "{problem}");
    }
}
