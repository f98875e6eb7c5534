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
    // The kernel, as systemd, crun, runc and containerd report it.
    row(&["too many open files"], Reason::InotifyLimitTooLow),
    row(&["Failed to allocate directory watch"], Reason::InotifyLimitTooLow),
    row(&["no space left on device", "inotify"], Reason::InotifyLimitTooLow),
    row(&["Structure needs cleaning"], Reason::CgroupDelegation),
    row(&["needs /sys/fs/cgroup/cgroup.procs to be empty"], Reason::CgroupDelegation),
    row(&["no space left on device", "cgroup"], Reason::HostCgroupsLeaked),
    row(&["no space left on device"], Reason::DataRootFull),
    row(&["failed to mount overlay"], Reason::DataRootUnsupported),
    row(&["not supported over overlayfs"], Reason::DataRootUnsupported),
    row(&["without d_type support"], Reason::DataRootUnsupported),
    row(&["failed to get rootfs info"], Reason::DataRootUnsupported),
    row(&["cached partitions map"], Reason::DataRootUnsupported),
    row(&["open /dev/kmsg"], Reason::KmsgUnreadable),
    row(&["capset: Operation not permitted"], Reason::CapabilityMissing),
    row(&["unable to apply caps"], Reason::CapabilityMissing),
    row(&["failed to create new OS thread"], Reason::PidsLimitTooLow),
    row(&["Resource temporarily unavailable"], Reason::PidsLimitTooLow),
    // Docker: libnetwork. IPv6 first: the texts are the same but for the program.
    row(&["ip6tables", "failed to create NAT chain"], Reason::IPv6Unavailable),
    row(&["ip6tables", "Table does not exist"], Reason::IPv6Unavailable),
    row(&["ip6tables", "RULE_APPEND failed"], Reason::IPv6Unavailable),
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
    row(&["content digest sha256:", "not found"], Reason::ImageStoreIncompatible),
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

    /// Texts as the tools print them, with the reason that a user is told.
    #[rustfmt::skip]
    const SEEN: &[(&str, Reason)] = &[
        (r#"pods "c-demo-1" is forbidden: violates PodSecurity "baseline:latest": privileged (container "cluster" must not set securityContext.privileged=true)"#, Reason::PodSecurity),
        (r#"pods "c-demo-1" is forbidden: exceeded quota: compute, requested: requests.memory=2Gi, used: requests.memory=7Gi, limited: requests.memory=8Gi"#, Reason::QuotaExceeded),
        ("kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be removed in a future release", Reason::UnsupportedCgroupV1),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 20Gi. ", Reason::StorageEvicted),
        (r#"Usage of EmptyDir volume "data" exceeds the limit "20Gi". "#, Reason::StorageEvicted),
        ("The node was low on resource: ephemeral-storage. Threshold quantity: 2139512454, available: 1968204Ki. ", Reason::StorageEvicted),
        (r#"{"level":"fatal","error":"too many open files","msg":"failed to watch"}"#, Reason::InotifyLimitTooLow),
        ("Failed to allocate directory watch: Too many open files", Reason::InotifyLimitTooLow),
        ("inotify_add_watch /sys/fs/cgroup/kubelet.slice: no space left on device", Reason::InotifyLimitTooLow),
        ("Failed to create /init.scope control group: Structure needs cleaning", Reason::CgroupDelegation),
        ("ERROR: this script needs /sys/fs/cgroup/cgroup.procs to be empty (for writing the top-level cgroup.subtree_control)", Reason::CgroupDelegation),
        ("mkdir /sys/fs/cgroup/memory/kubepods/burstable/pod0b5c5c4e: no space left on device", Reason::HostCgroupsLeaked),
        ("write /var/lib/docker/overlay2/a/diff/usr/bin/x: no space left on device", Reason::DataRootFull),
        ("failed to mount overlay: invalid argument  storage-driver=overlay2", Reason::DataRootUnsupported),
        ("'overlay2' is not supported over overlayfs, a mount_program is required", Reason::DataRootUnsupported),
        ("failed to start daemon: error initializing graphdriver: overlay2: the backing xfs filesystem is formatted without d_type support, which leads to incorrect behavior. Reformat the filesystem with ftype=1 to enable d_type support. Backing filesystems without d_type support are not supported.", Reason::DataRootUnsupported),
        (r#"failed to get rootfs info: failed to get device for dir "/var/lib/kubelet": no such device"#, Reason::DataRootUnsupported),
        ("could not find device with major: 0, minor: 40 in cached partitions map", Reason::DataRootUnsupported),
        (r#""Failed to run kubelet" err="failed to create kubelet: open /dev/kmsg: no such file or directory""#, Reason::KmsgUnreadable),
        ("docker: Error response from daemon: OCI runtime create failed: crun: capset: Operation not permitted: OCI permission denied: unknown", Reason::CapabilityMissing),
        ("runc create failed: unable to start container process: unable to apply caps: operation not permitted", Reason::CapabilityMissing),
        ("runtime: failed to create new OS thread (have 9 already; errno=11)", Reason::PidsLimitTooLow),
        ("sh: fork: retry: Resource temporarily unavailable", Reason::PidsLimitTooLow),
        ("failed to create NAT chain DOCKER: iptables failed: ip6tables --wait -t nat -N DOCKER: ip6tables v1.8.11 (nf_tables): TABLE_ADD failed (Not supported): table nat", Reason::IPv6Unavailable),
        ("Failed to Setup IP tables: Unable to enable NAT rule:  (iptables failed: ip6tables --wait -t nat -I POSTROUTING: ip6tables v1.8.7 (legacy): can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?)", Reason::IPv6Unavailable),
        ("iptables failed: ip6tables --wait -I FORWARD -j DOCKER-USER: ip6tables v1.8.10 (nf_tables): RULE_APPEND failed (No such file or directory): rule in chain FORWARD", Reason::IPv6Unavailable),
        ("failed to create NAT chain DOCKER: iptables failed: iptables --wait -t nat -N DOCKER: iptables v1.8.10 (nf_tables): TABLE_ADD failed (Not supported): table nat", Reason::IptablesUnavailable),
        ("iptables v1.8.7 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)", Reason::IptablesUnavailable),
        ("iptables v1.8.10 (nf_tables): Could not fetch rule set generation id: Invalid argument", Reason::IptablesUnavailable),
        ("iptables v1.8.10 (nf_tables): RULE_APPEND failed (No such file or directory): rule in chain DOCKER-ISOLATION-STAGE-1", Reason::IptablesUnavailable),
        ("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network", Reason::AddressPoolExhausted),
        ("Error response from daemon: Pool overlaps with other one on this address space", Reason::AddressPoolExhausted),
        (r#"[FATAL] plugin/loop: Loop (127.0.0.1:41342 -> :53) detected for zone ".", see https://coredns.io/plugins/loop#troubleshooting"#, Reason::CIDROverlap),
        ("toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading", Reason::RegistryRateLimited),
        ("server message: insufficient_scope: authorization failed", Reason::RegistryAuth),
        (r#"Error response from daemon: Get "https://registry.example/v2/node/manifests/v1": no basic auth credentials"#, Reason::RegistryAuth),
        ("pull access denied for team/node, repository does not exist or may require 'docker login'", Reason::RegistryAuth),
        (r#"Get "https://registry.example/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority"#, Reason::RegistryCA),
        ("ctr: content digest sha256:a1ed56cf: not found", Reason::ImageStoreIncompatible),
        ("exec /usr/local/bin/entrypoint: exec format error", Reason::ArchMismatch),
        (r#"ERROR: failed to create cluster: failed to pull image "kindest/node:v9": command "docker pull kindest/node:v9" failed with error: exit status 1"#, Reason::NodeImagePullFailed),
        ("Error response from daemon: manifest for kindest/node:v9 not found: manifest unknown: manifest unknown", Reason::NodeImagePullFailed),
        (r#"ERROR: failed to create cluster: could not find a log line that matches "Reached target .*Multi-User System.*|detected cgroup v1""#, Reason::NodeBootTimeout),
        (r#"ERROR: failed to create cluster: failed to init node with kubeadm: command "docker exec --privileged demo-control-plane kubeadm init" failed"#, Reason::KubeadmInitFailed),
        (r#"ERROR: failed to create cluster: failed to join node with kubeadm: command "docker exec --privileged demo-worker kubeadm join" failed"#, Reason::KubeadmJoinFailed),
    ];

    fn first(text: &str) -> Option<usize> {
        TABLE.iter().position(|row| row.parts.iter().all(|part| text.contains(part)))
    }

    #[test]
    fn texts_seen_in_the_wild() {
        for (text, reason) in SEEN {
            assert_eq!(classify(text, Reason::KindFailed), *reason, "{text}");
            assert!(!reason.remedy().is_empty(), "{reason} has no remedy");
        }
    }

    #[test]
    fn every_row_has_a_text_that_was_seen() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(SEEN.iter().any(|(text, _)| first(text) == Some(index)), "nothing tests the row {:?}", row.parts);
        }
    }

    #[rstest]
    #[case("something else")]
    // These two the agent mends itself: it removes what an earlier run left before kind starts.
    #[case("ERROR: failed to create cluster: node(s) already exist for a cluster with the name \"demo\"")]
    #[case("ERROR: failed to lock config file: open /run/nestling/kubeconfig.lock: file exists")]
    fn other_texts_say_nothing(#[case] text: &str) {
        assert_eq!(classify(text, Reason::KindFailed), Reason::KindFailed);
    }

    #[test]
    fn parts_of_different_lines_are_not_put_together() {
        let log = "cgroup of the node\nwrite /x: no space left on device\nfailed to init node with kubeadm";
        let found = classify_log(log).unwrap();
        assert_eq!((found.reason, found.line), (Reason::DataRootFull, 1));
        assert_eq!(classify_log("all is well"), None);
    }
}
