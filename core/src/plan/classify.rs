//! Error text to reason: what the tools underneath print, as data. The first match wins.

use crate::api::reasons::Reason;

/// One row: all of the parts must occur in the text.
pub struct Row {
    /// Parts that must all occur.
    pub parts: &'static [&'static str],
    /// What they mean.
    pub reason: Reason,
}

const fn row(parts: &'static [&'static str], reason: Reason) -> Row {
    Row { parts, reason }
}

/// The table. Sources of the texts: the projects named beside each group.
pub const TABLE: &[Row] = &[
    // Kubernetes: pod-security-admission, kubelet.
    row(&["violates PodSecurity"], Reason::PodSecurity),
    row(&["exceeded quota"], Reason::QuotaExceeded),
    row(&["kubelet is configured to not run on a host using cgroup v1"], Reason::UnsupportedCgroupV1),
    row(&["exceeds the total limit of containers"], Reason::StorageEvicted),
    row(&["Usage of EmptyDir volume"], Reason::StorageEvicted),
    row(&["low on resource: ephemeral-storage"], Reason::StorageEvicted),
    // The kernel, as systemd, runc and containerd report it.
    row(&["too many open files"], Reason::InotifyLimitTooLow),
    row(&["Failed to allocate directory watch"], Reason::InotifyLimitTooLow),
    row(&["no space left on device", "inotify"], Reason::InotifyLimitTooLow),
    row(&["Structure needs cleaning"], Reason::CgroupDelegation),
    row(&["needs /sys/fs/cgroup/cgroup.procs to be empty"], Reason::CgroupDelegation),
    row(&["no space left on device", "cgroup"], Reason::HostCgroupsLeaked),
    row(&["no space left on device"], Reason::DataRootFull),
    row(&["failed to mount overlay"], Reason::DataRootUnsupported),
    row(&["not supported over overlayfs"], Reason::DataRootUnsupported),
    row(&["failed to get rootfs info"], Reason::DataRootUnsupported),
    row(&["unable to apply caps"], Reason::CapabilityMissing),
    row(&["failed to create new OS thread"], Reason::PidsLimitTooLow),
    row(&["Resource temporarily unavailable"], Reason::PidsLimitTooLow),
    // Docker: libnetwork.
    row(&["failed to create NAT chain"], Reason::IptablesUnavailable),
    row(&["Table does not exist"], Reason::IptablesUnavailable),
    row(&["Could not fetch rule set generation id"], Reason::IptablesUnavailable),
    row(&["RULE_APPEND failed"], Reason::IptablesUnavailable),
    row(&["non-overlapping IPv4 address pool"], Reason::AddressPoolExhausted),
    row(&["Pool overlaps with other one"], Reason::AddressPoolExhausted),
    // CoreDNS.
    row(&["plugin/loop: Loop"], Reason::CIDROverlap),
    // Registries.
    row(&["toomanyrequests"], Reason::RegistryRateLimited),
    row(&["insufficient_scope"], Reason::RegistryAuth),
    row(&["no basic auth credentials"], Reason::RegistryAuth),
    row(&["pull access denied"], Reason::RegistryAuth),
    row(&["certificate signed by unknown authority"], Reason::RegistryCA),
    row(&["exec format error"], Reason::ArchMismatch),
    row(&["failed to pull image"], Reason::NodeImagePullFailed),
    row(&["manifest unknown"], Reason::NodeImagePullFailed),
    // kind. After the rows above found nothing more exact.
    row(&["could not find a log line that matches"], Reason::NodeBootTimeout),
    row(&["failed to init node with kubeadm"], Reason::KubeadmInitFailed),
    row(&["failed to join node with kubeadm"], Reason::KubeadmJoinFailed),
];

/// The reason that a text tells of; `otherwise` if none is known.
pub fn classify(text: &str, otherwise: Reason) -> Reason {
    TABLE.iter().find(|row| row.parts.iter().all(|part| text.contains(part))).map_or(otherwise, |row| row.reason)
}

/// What a log of several lines tells of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The reason.
    pub reason: Reason,
    /// Place of its row in the [`TABLE`]: the lower, the more exact.
    pub rank: usize,
    /// Number of the first line that says so, from 0.
    pub line: usize,
}

/// The most exact thing that any line of a log tells of. All parts of a row must be in one line: in a long log
/// every word occurs somewhere.
pub fn classify_log(log: &str) -> Option<Finding> {
    TABLE.iter().enumerate().find_map(|(rank, row)| {
        let line = log.lines().position(|line| row.parts.iter().all(|part| line.contains(part)))?;
        Some(Finding { reason: row.reason, rank, line })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\": privileged", Reason::PodSecurity)]
    #[case("mkdir /sys/fs/cgroup/docker: no space left on device (cgroup)", Reason::HostCgroupsLeaked)]
    #[case("write /var/lib/docker/x: no space left on device", Reason::DataRootFull)]
    #[case("Failed to allocate directory watch: Too many open files", Reason::InotifyLimitTooLow)]
    #[case("ERROR: failed to create cluster: could not find a log line that matches \"Reached target\"", Reason::NodeBootTimeout)]
    #[case("ERROR: failed to create cluster: failed to init node with kubeadm: command \"docker exec\"", Reason::KubeadmInitFailed)]
    #[case("something else", Reason::KindFailed)]
    fn texts_seen_in_the_wild(#[case] text: &str, #[case] reason: Reason) {
        assert_eq!(classify(text, Reason::KindFailed), reason);
    }

    #[test]
    fn parts_of_different_lines_are_not_put_together() {
        let log = "cgroup of the node\nwrite /x: no space left on device\nfailed to init node with kubeadm";
        let found = classify_log(log).unwrap();
        assert_eq!((found.reason, found.line), (Reason::DataRootFull, 1));
        assert_eq!(classify_log("all is well"), None);
    }

    #[test]
    fn every_row_can_be_reached() {
        for row in TABLE {
            assert_eq!(classify(&row.parts.join(" "), Reason::KindFailed), row.reason, "{:?}", row.parts);
        }
    }
}
