//! Linux capabilities: their names, and which of them the pod may hold at all.

use std::fs;

/// Names in the order of their numbers (`include/uapi/linux/capability.h`).
const NAMES: [&str; 41] = [
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

/// A set of capabilities, as the kernel writes it: one bit each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The bounding set of this process: what no child of it can exceed. `None` where `/proc` does not tell.
    pub fn bounding() -> Option<Self> {
        Self::parse_bounding(&fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse_bounding(status: &str) -> Option<Self> {
        let hexadecimal = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(hexadecimal.trim(), 16).ok().map(Self)
    }

    /// Whether the capability of this name is in the set. A name that is not known counts as held: what a newer kernel brings is
    /// not ours to take away.
    pub fn holds(self, name: &str) -> bool {
        NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)).is_none_or(|bit| self.0 & (1 << bit) != 0)
    }

    /// Names of the kernel's capabilities that are not in the set.
    ///
    /// `last` is the number of the last one that this kernel knows (`/proc/sys/kernel/cap_last_cap`).
    pub fn missing(self, last: usize) -> Vec<&'static str> {
        NAMES.iter().take(last + 1).copied().filter(|name| !self.holds(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("Name:\tagent\nCapBnd:\t000001ffffffffff\n", &[])]
    #[case("CapBnd:\t000001fffeffffff\n", &["CAP_SYS_RESOURCE"])]
    #[case("CapBnd:\t000001fffe1fffff\n", &["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE"])]
    fn missing_ones_are_named(#[case] status: &str, #[case] missing: &[&str]) {
        assert_eq!(Capabilities::parse_bounding(status).unwrap().missing(40), missing);
    }

    #[test]
    fn an_older_kernel_lacks_nothing_that_it_does_not_know() {
        assert!(Capabilities((1 << 38) - 1).missing(37).is_empty());
    }

    #[test]
    fn unknown_names_are_left_alone() {
        assert!(Capabilities(0).holds("CAP_FROM_THE_FUTURE"));
        assert!(!Capabilities(0).holds("cap_chown"));
    }
}
