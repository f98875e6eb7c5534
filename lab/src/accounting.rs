//! What there is on this machine and in the nodes of a host cluster, by kind, so that a before and an after can be compared: a deleted cluster must
//! leave nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::output;
use crate::docker::Docker;

/// Keys of sysctls that a kubelet or the kernel itself moves, each with its reason. Everything else must be as before.
const MOVING_SYSCTLS: &[(&str, &str)] = &[
    ("dev.cdrom", "text of a driver"),
    ("fs.aio-nr", "a counter"),
    ("fs.dentry-state", "a counter"),
    ("fs.file-nr", "a counter"),
    ("fs.inode-nr", "a counter"),
    ("fs.inode-state", "a counter"),
    ("fs.quota", "counters"),
    ("kernel.keys.root_max", "every kubelet sets these to the same value (container_manager_linux.go)"),
    ("kernel.ns_last_pid", "a counter"),
    ("kernel.panic", "every kubelet sets it to 10 (container_manager_linux.go)"),
    ("kernel.panic_on_oops", "every kubelet sets it to 1 (container_manager_linux.go)"),
    ("kernel.pty.nr", "a counter"),
    ("kernel.random", "entropy and fresh UUIDs"),
    ("net.netfilter.nf_conntrack_count", "a counter"),
    ("net.ipv4.tcp_mem", "follows free memory"),
    ("vm.overcommit_memory", "every kubelet sets it to 1 (container_manager_linux.go)"),
    ("vm.panic_on_oom", "every kubelet sets it to 0 (container_manager_linux.go)"),
];

/// Name of the kind of control groups.
const CGROUP: &str = "cgroup";

/// Beginning of the names of the kinds of a kubelet's directories of pods.
const KUBELET: &str = "kubelet directory";

/// What there was at one moment: by kind, a set of names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    kinds: BTreeMap<String, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at the machine, and into the named containers (the nodes of a host cluster).
    ///
    /// # Errors
    /// If Docker does not answer or a tool is missing.
    pub fn take(docker: Option<&Docker>, nodes: &[String]) -> Result<Self> {
        let mut snapshot = Self::default();
        snapshot.put("mount", mounts(&fs::read_to_string("/proc/self/mountinfo")?));
        snapshot.put(CGROUP, cgroups());
        snapshot.put("loop device", loop_devices());
        snapshot.put("network interface", names(Path::new("/sys/class/net")));
        snapshot.put("sysctl", sysctls(&output(Command::new("sysctl").arg("-a"))?));
        snapshot.put("firewall rule", rules(&output(&mut Command::new("iptables-save")).unwrap_or_default()));
        if let Some(docker) = docker {
            snapshot.put("container", lines(&docker.run(&["ps", "--all", "--format", "{{.Names}}"])?));
            snapshot.put("network", lines(&docker.run(&["network", "ls", "--format", "{{.Name}}"])?));
            snapshot.put("volume", lines(&docker.run(&["volume", "ls", "--quiet"])?));
            for node in nodes {
                let inside = |arguments: &[&str]| docker.run(&[&["exec", node], arguments].concat());
                snapshot.put(&format!("mount in {node}"), mounts(&inside(&["cat", "/proc/self/mountinfo"])?));
                snapshot.put(&format!("network interface in {node}"), lines(&inside(&["ls", "/sys/class/net"])?));
                snapshot.put(&format!("firewall rule in {node}"), rules(&inside(&["iptables-save"])?));
                snapshot.put(&format!("{KUBELET} in {node}"), lines(&inside(&["ls", "/var/lib/kubelet/pods"])?));
            }
        }
        Ok(snapshot)
    }

    /// What is there now and was not before (`+`), and the other way round (`-`), one line each. Control groups only come: those of the machine's other
    /// programs go when these end, and nobody can remove one that is in use. So do the kubelets' directories of pods, which go some time after their pods.
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let kinds: BTreeSet<&String> = self.kinds.keys().chain(before.kinds.keys()).collect();
        let mut lines = Vec::new();
        for kind in kinds {
            let (now, then) = (self.kinds.get(kind).unwrap_or(&none), before.kinds.get(kind).unwrap_or(&none));
            lines.extend(now.difference(then).map(|name| format!("+ {kind}: {name}")));
            lines.extend(then.difference(now).filter(|_| kind != CGROUP && !kind.starts_with(KUBELET)).map(|name| format!("- {kind}: {name}")));
        }
        lines
    }

    fn put(&mut self, kind: &str, names: BTreeSet<String>) {
        self.kinds.insert(kind.to_owned(), names);
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Mount points. The fifth field of mountinfo (proc(5)).
fn mounts(mountinfo: &str) -> BTreeSet<String> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// All directories below the cgroup hierarchies, on cgroup v1 as well as v2.
fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found.insert(entry.path().to_string_lossy().into_owned());
            open.push(entry.path());
        }
    }
    found
}

fn loop_devices() -> BTreeSet<String> {
    let devices = names(Path::new("/sys/block")).into_iter().filter(|name| name.starts_with("loop"));
    devices.filter_map(|name| Some(format!("{name} {}", fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?.trim()))).collect()
}

fn sysctls(text: &str) -> BTreeSet<String> {
    // Per-interface keys come and go with their interfaces, which are counted on their own.
    let per_interface = |line: &str| line.contains(".conf.") || line.contains(".neigh.");
    let moving = |line: &str| MOVING_SYSCTLS.iter().any(|(key, _)| line.starts_with(key));
    text.lines().filter(|line| !per_interface(line) && !moving(line)).map(str::to_owned).collect()
}

/// Rules without their counters and comments; how often a rule stands there is part of it.
fn rules(text: &str) -> BTreeSet<String> {
    let mut table = "";
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if line.starts_with('-') || line.starts_with(':') {
            let rule = line.split(" [").next().unwrap_or(line);
            *seen.entry(format!("{table} {rule}")).or_default() += 1;
        }
    }
    seen.into_iter().map(|(rule, count)| if count == 1 { rule } else { format!("{count} times {rule}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_compared_without_counters() {
        let one = rules("# now\n*nat\n:POSTROUTING ACCEPT [1:60]\n-A POSTROUTING -j MASQUERADE\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n");
        let other = rules("*nat\n:POSTROUTING ACCEPT [9:70]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n");
        assert!(one.contains("nat 2 times -A POSTROUTING -j MASQUERADE") || one.contains("2 times nat -A POSTROUTING -j MASQUERADE"));
        assert_eq!(one.difference(&other).count(), 1);
    }

    #[test]
    fn what_came_and_what_went_is_told() {
        let mut before = Snapshot::default();
        before.put("mount", lines("/a\n/b"));
        before.put(CGROUP, lines("/a\n/b"));
        before.put("kubelet directory in a", lines("u\nv"));
        let mut after = Snapshot::default();
        after.put("mount", lines("/b\n/c"));
        after.put(CGROUP, lines("/b\n/c"));
        after.put("kubelet directory in a", lines("v\nw"));
        assert_eq!(after.difference(&before), ["+ cgroup: /c", "+ kubelet directory in a: w", "+ mount: /c", "- mount: /a"]);
        assert_eq!(after.difference(&after.clone()), Vec::<String>::new());
    }

    #[test]
    fn sysctls_of_interfaces_and_counters_are_left_out() {
        let kept = sysctls("kernel.panic = 10\nvm.swappiness = 60\nnet.ipv4.conf.eth0.forwarding = 1\nfs.file-nr = 1 2 3\n");
        assert_eq!(kept, lines("vm.swappiness = 60"));
    }
}
