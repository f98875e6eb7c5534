//! What this machine is: its cgroup version, the capabilities it can grant, and the kernel settings the lab raises.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
const ENOUGH_INSTANCES: u64 = 8192;

/// Every capability by bit number, as the kernel numbers them.
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The facts that change how clusters are made on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Machine {
    /// Whether it has the old cgroup hierarchies.
    pub cgroup_v1: bool,
    /// The capabilities that not even root can have here.
    pub missing_capabilities: BTreeSet<&'static str>,
}

impl Machine {
    /// Looks at this machine.
    pub fn look() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").context("cannot read the last capability")?;
        Ok(Self {
            cgroup_v1: !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            missing_capabilities: missing_capabilities(&status, last.trim().parse()?)?,
        })
    }

    /// Whether containers need the shim that drops what cannot be granted.
    pub fn needs_runtime_shim(&self) -> bool {
        !self.missing_capabilities.is_empty()
    }

    /// Whether containerd must not try to lower a process's out-of-memory score.
    pub fn restricts_oom_score(&self) -> bool {
        self.missing_capabilities.contains("CAP_SYS_RESOURCE")
    }
}

/// The capabilities up to the kernel's last that are not in the bounding set of a `/proc/<pid>/status`.
fn missing_capabilities(status: &str, last: usize) -> Result<BTreeSet<&'static str>> {
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd line in the process status")?;
    let bounding = u64::from_str_radix(bounding.trim(), 16).context("the bounding set is no number")?;
    Ok(CAPABILITIES.iter().take(last + 1).enumerate().filter(|(bit, _)| bounding >> bit & 1 == 0).map(|(_, name)| *name).collect())
}

/// Raises the limit on inotify instances where it is too low for nested clusters, and returns the value it had.
pub fn raise_inotify_instances() -> Result<Option<u64>> {
    let current: u64 = fs::read_to_string(INSTANCES)?.trim().parse().with_context(|| format!("{INSTANCES} is no number"))?;
    if current >= ENOUGH_INSTANCES {
        return Ok(None);
    }
    set_inotify_instances(ENOUGH_INSTANCES)?;
    Ok(Some(current))
}

/// Sets the limit on inotify instances.
pub fn set_inotify_instances(value: u64) -> Result<()> {
    fs::write(INSTANCES, value.to_string()).with_context(|| format!("cannot set {INSTANCES} (are you root?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        let missing = missing_capabilities("Name:\tx\nCapBnd:\t000001fffeffffff\n", 40).unwrap();
        assert_eq!(missing, BTreeSet::from(["CAP_SYS_RESOURCE"]));
    }

    #[test]
    fn capabilities_that_the_kernel_does_not_know_are_not_missing() {
        assert!(missing_capabilities("CapBnd:\t0000003fffffffff\n", 37).unwrap().is_empty());
    }

    #[test]
    fn a_status_without_a_bounding_set_is_an_error() {
        assert!(missing_capabilities("Name: x\n", 40).is_err());
    }
}
