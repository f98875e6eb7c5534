//! Is the host fit? Every known way in which it is not has a reason of its own, found before kind starts.

use nestling_core::api::reasons::Reason;
use nestling_core::plan::cidr::overlap;
use nestling_core::plan::problem::Problem;
use nestling_core::plan::wire::NetworkPlan;

use super::cgroup::Version;
use super::facts::{Facts, FileSystem};

const GIBIBYTE: u64 = 1 << 30;

/// Capabilities without which a node does not come up. Others are taken out of what containers ask for
/// ([`oci_runtime`](super::oci_runtime)).
const NEEDED: [&str; 16] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// Two single-node clusters ran with 128 instances, the kernel's default; kind's documentation advises 512.
const INOTIFY_INSTANCES: (u64, u64) = (128, 512);

/// As advised by kind's documentation, and what still did.
const INOTIFY_WATCHES: (u64, u64) = (65_536, 524_288);

/// What is asked of the host.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// Number of nodes.
    pub nodes: u64,
    /// Whether cgroup v1 will do.
    pub allow_cgroup_v1: bool,
    /// Ranges of the cluster.
    pub network: &'a NetworkPlan,
}

/// Judges the host; the result is what is worth knowing about a host that is fit.
///
/// # Errors
/// The first thing that makes it unfit.
pub fn check(facts: &Facts, demand: Demand<'_>) -> Result<Vec<String>, Problem> {
    let mut warnings = Vec::new();
    if facts.cgroup == Version::V1 {
        if !demand.allow_cgroup_v1 {
            return Err(Problem::new(Reason::UnsupportedCgroupV1, "the host uses cgroup v1"));
        }
        warnings.push("The host uses cgroup v1, which Kubernetes is about to drop.".to_owned());
    }
    check_capabilities(facts, &mut warnings)?;
    check_limits(facts, demand, &mut warnings)?;
    check_disk(facts, demand, &mut warnings)?;
    check_addresses(facts, demand.network)?;
    if facts.mtu.is_none() {
        warnings.push("The pod has no default route; the MTU is taken to be 1500.".to_owned());
    }
    if !facts.kmsg {
        return Err(Problem::new(Reason::KmsgUnreadable, "/dev/kmsg cannot be read"));
    }
    Ok(warnings)
}

fn check_capabilities(facts: &Facts, warnings: &mut Vec<String>) -> Result<(), Problem> {
    let needed: Vec<&str> = facts.missing_capabilities.iter().copied().filter(|name| NEEDED.contains(name)).collect();
    if !needed.is_empty() {
        return Err(Problem::new(Reason::CapabilityMissing, format!("the pod cannot have {}", needed.join(", "))));
    }
    if !facts.missing_capabilities.is_empty() {
        warnings.push(format!("The pod cannot have {}; nodes do without.", facts.missing_capabilities.join(", ")));
    }
    Ok(())
}

fn check_limits(facts: &Facts, demand: Demand<'_>, warnings: &mut Vec<String>) -> Result<(), Problem> {
    let inotify = [
        ("fs.inotify.max_user_instances", facts.inotify_instances, INOTIFY_INSTANCES),
        ("fs.inotify.max_user_watches", facts.inotify_watches, INOTIFY_WATCHES),
    ];
    for (name, value, (least, advised)) in inotify {
        match value {
            Some(value) if value < least => {
                return Err(Problem::new(Reason::InotifyLimitTooLow, format!("{name} is {value}, below {least}")));
            }
            Some(value) if value < advised => warnings.push(format!("{name} is {value}; {advised} is advised.")),
            _ => {}
        }
    }
    let least = 1024 + 1024 * demand.nodes;
    match facts.pids_limit {
        Some(limit) if limit < least => {
            Err(Problem::new(Reason::PidsLimitTooLow, format!("the pod may have {limit} processes, {} nodes need {least}", demand.nodes)))
        }
        _ => Ok(()),
    }
}

fn check_disk(facts: &Facts, demand: Demand<'_>, warnings: &mut Vec<String>) -> Result<(), Problem> {
    let unsupported = |what: &str| Err(Problem::new(Reason::DataRootUnsupported, format!("Docker's data-root is on {what}")));
    match facts.data_root {
        Some(FileSystem::Ext | FileSystem::Xfs) => {}
        Some(FileSystem::Overlay) => return unsupported("overlay"),
        Some(FileSystem::Tmpfs) => return unsupported("tmpfs"),
        Some(FileSystem::Nfs) => return unsupported("NFS"),
        Some(FileSystem::Fuse) => return unsupported("FUSE"),
        Some(FileSystem::Btrfs) => warnings.push("Docker's data-root is on Btrfs, on which kubelets may fail.".to_owned()),
        Some(FileSystem::Other(magic)) => warnings.push(format!("Docker's data-root is on an unknown file system (0x{magic:x}).")),
        None => return unsupported("a path that cannot be read"),
    }
    let least = (3 + demand.nodes) * GIBIBYTE;
    match facts.disk_free {
        Some(free) if free < least => {
            Err(Problem::new(Reason::DiskTooSmall, format!("{} MiB are free, {} nodes need {} MiB", free >> 20, demand.nodes, least >> 20)))
        }
        _ => Ok(()),
    }
}

fn check_addresses(facts: &Facts, network: &NetworkPlan) -> Result<(), Problem> {
    let ours = [("pod range", &network.pods), ("Service range", &network.services), ("node range", &network.nodes), ("bridge's range", &network.bridge)];
    for (what, range) in ours {
        if let Some((whose, other)) = facts.addresses.iter().find(|(_, other)| overlap(range, other)) {
            return Err(Problem::new(Reason::CIDROverlap, format!("the cluster's {what} {range} overlaps {whose}, {other}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::report::tests::settings;
    use rstest::rstest;

    fn fit() -> Facts {
        Facts {
            cgroup: Version::V2,
            missing_capabilities: vec![],
            inotify_instances: Some(8192),
            inotify_watches: Some(1 << 20),
            pids_limit: None,
            data_root: Some(FileSystem::Ext),
            disk_free: Some(100 * GIBIBYTE),
            addresses: vec![("the pod's address on eth0".into(), "10.244.0.7/32".parse().unwrap())],
            mtu: Some(1450),
            kmsg: true,
            memory_bytes: 24 << 30,
            cpu_millis: 4000,
        }
    }

    fn judge(facts: &Facts, nodes: u64, allow_cgroup_v1: bool) -> Result<Vec<String>, Problem> {
        check(facts, Demand { nodes, allow_cgroup_v1, network: &settings().network })
    }

    #[test]
    fn a_fit_host_raises_no_word() {
        assert_eq!(judge(&fit(), 3, false), Ok(vec![]));
    }

    #[rstest]
    #[case::cgroup(|facts: &mut Facts| facts.cgroup = Version::V1, Reason::UnsupportedCgroupV1)]
    #[case::admin(|facts: &mut Facts| facts.missing_capabilities = vec!["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"], Reason::CapabilityMissing)]
    #[case::instances(|facts: &mut Facts| facts.inotify_instances = Some(64), Reason::InotifyLimitTooLow)]
    #[case::watches(|facts: &mut Facts| facts.inotify_watches = Some(8192), Reason::InotifyLimitTooLow)]
    #[case::pids(|facts: &mut Facts| facts.pids_limit = Some(2047), Reason::PidsLimitTooLow)]
    #[case::overlay(|facts: &mut Facts| facts.data_root = Some(FileSystem::Overlay), Reason::DataRootUnsupported)]
    #[case::nfs(|facts: &mut Facts| facts.data_root = Some(FileSystem::Nfs), Reason::DataRootUnsupported)]
    #[case::unreadable(|facts: &mut Facts| facts.data_root = None, Reason::DataRootUnsupported)]
    #[case::disk(|facts: &mut Facts| facts.disk_free = Some(3 * GIBIBYTE), Reason::DiskTooSmall)]
    #[case::route(|facts: &mut Facts| facts.addresses.push(("a route".into(), "10.97.3.0/24".parse().unwrap())), Reason::CIDROverlap)]
    #[case::nameserver(|facts: &mut Facts| facts.addresses.push(("a nameserver".into(), "172.31.254.1/32".parse().unwrap())), Reason::CIDROverlap)]
    #[case::kmsg(|facts: &mut Facts| facts.kmsg = false, Reason::KmsgUnreadable)]
    fn an_unfit_host_is_named(#[case] spoil: fn(&mut Facts), #[case] reason: Reason) {
        let mut facts = fit();
        spoil(&mut facts);
        assert_eq!(judge(&facts, 1, false).unwrap_err().reason, reason);
    }

    #[rstest]
    #[case::cgroup(|facts: &mut Facts| facts.cgroup = Version::V1, "cgroup v1")]
    #[case::wrapper(|facts: &mut Facts| facts.missing_capabilities = vec!["CAP_SYS_RESOURCE"], "CAP_SYS_RESOURCE")]
    #[case::instances(|facts: &mut Facts| facts.inotify_instances = Some(128), "512")]
    #[case::btrfs(|facts: &mut Facts| facts.data_root = Some(FileSystem::Btrfs), "Btrfs")]
    #[case::route(|facts: &mut Facts| facts.mtu = None, "1500")]
    fn what_can_be_lived_with_is_told(#[case] spoil: fn(&mut Facts), #[case] word: &str) {
        let mut facts = fit();
        spoil(&mut facts);
        let warnings = judge(&facts, 1, true).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{warnings:?}");
    }

    #[test]
    fn more_nodes_need_more() {
        let facts = Facts { pids_limit: Some(4096), ..fit() };
        assert!(judge(&facts, 3, false).is_ok());
        assert_eq!(judge(&facts, 4, false).unwrap_err().reason, Reason::PidsLimitTooLow);
        let facts = Facts { disk_free: Some(6 * GIBIBYTE), ..fit() };
        assert!(judge(&facts, 3, false).is_ok());
        assert_eq!(judge(&facts, 4, false).unwrap_err().reason, Reason::DiskTooSmall);
    }
}
