//! Is the host fit? Every known way in which it is not has a reason of its own, found before kind starts.

use nestling_core::api::reasons::Reason;
use nestling_core::plan::cidr::overlap;
use nestling_core::plan::findings::{Finding, judge};
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

/// An idle cluster has 300; the kernel's own default follows the machine's memory (46647 with 6 GiB) and is never less than 8192. kind's documentation
/// advises the larger number.
const INOTIFY_WATCHES: (u64, u64) = (8_192, 524_288);

/// What is asked of the host.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// Number of nodes.
    pub nodes: u64,
    /// Whether cgroup v1 will do.
    pub allow_cgroup_v1: bool,
    /// Ranges of the cluster; `None` where there is no cluster yet.
    pub network: Option<&'a NetworkPlan>,
    /// Whether the cluster is there already, so that the disk needs no room for it.
    pub there: bool,
}

/// Judges the host; the result is what is worth knowing about a host that is fit.
///
/// # Errors
/// The first thing that makes it unfit.
pub fn check(facts: &Facts, demand: Demand<'_>) -> Result<Vec<String>, Problem> {
    judge(examine(facts, demand))
}

/// Everything that is to be said about the host, the worst of each kind first.
pub fn examine(facts: &Facts, demand: Demand<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.cgroup == Version::V1 {
        findings.push(if demand.allow_cgroup_v1 {
            Finding::warning(Reason::UnsupportedCgroupV1, "The host uses cgroup v1, which Kubernetes is about to drop.")
        } else {
            Finding::problem(Reason::UnsupportedCgroupV1, "The host uses cgroup v1.")
        });
    }
    findings.extend(capabilities(facts));
    findings.extend(inotify(facts));
    findings.extend(processes(facts, demand));
    findings.extend(data_root(facts));
    findings.extend(disk(facts, demand));
    findings.extend(demand.network.and_then(|network| addresses(facts, network)));
    if facts.mtu.is_none() {
        findings.push(Finding::warning(Reason::NoDefaultRoute, "The pod has no default route; the MTU is taken to be 1500."));
    }
    findings.extend(sysctls(facts));
    if !facts.kmsg {
        findings.push(Finding::problem(Reason::KmsgUnreadable, "/dev/kmsg cannot be read."));
    }
    findings
}

fn capabilities(facts: &Facts) -> Option<Finding> {
    let needed: Vec<&str> = facts.missing_capabilities.iter().copied().filter(|name| NEEDED.contains(name)).collect();
    if !needed.is_empty() {
        return Some(Finding::problem(Reason::CapabilityMissing, format!("The pod cannot have {}.", needed.join(", "))));
    }
    let missing = facts.missing_capabilities.join(", ");
    (!missing.is_empty()).then(|| Finding::warning(Reason::CapabilityMissing, format!("The pod cannot have {missing}; nodes do without.")))
}

fn inotify(facts: &Facts) -> Vec<Finding> {
    let limits = [
        ("fs.inotify.max_user_instances", facts.inotify_instances, INOTIFY_INSTANCES),
        ("fs.inotify.max_user_watches", facts.inotify_watches, INOTIFY_WATCHES),
    ];
    let finding = |(name, value, (least, advised)): (&str, Option<u64>, (u64, u64))| match value? {
        value if value < least => Some(Finding::problem(Reason::InotifyLimitTooLow, format!("{name} is {value}, below {least}."))),
        value if value < advised => Some(Finding::warning(Reason::InotifyLimitTooLow, format!("{name} is {value}; {advised} is advised."))),
        _ => None,
    };
    limits.into_iter().filter_map(finding).collect()
}

/// A host with a kubelet of its own has these values already, unless somebody changed them afterwards.
fn sysctls(facts: &Facts) -> Option<Finding> {
    let changes: Vec<String> = facts.sysctls.iter().map(|((key, wanted), value)| format!("{key} from {value} to {wanted}")).collect();
    (!changes.is_empty())
        .then(|| Finding::warning(Reason::HostSysctlsChange, format!("The nodes' kubelets change the whole machine's {}.", changes.join(", "))))
}

fn processes(facts: &Facts, demand: Demand<'_>) -> Option<Finding> {
    let least = 1024 + 1024 * demand.nodes;
    let limit = facts.pids_limit.filter(|limit| *limit < least)?;
    Some(Finding::problem(Reason::PidsLimitTooLow, format!("The pod may have {limit} processes, {} node(s) need {least}.", demand.nodes)))
}

fn data_root(facts: &Facts) -> Option<Finding> {
    let unsupported = |what: &str| Some(Finding::problem(Reason::DataRootUnsupported, format!("Docker's data-root is on {what}.")));
    let doubtful = |message: String| Some(Finding::warning(Reason::DataRootUnsupported, message));
    match facts.data_root {
        Some(FileSystem::Ext | FileSystem::Xfs) => None,
        Some(FileSystem::Overlay) => unsupported("overlay"),
        Some(FileSystem::Tmpfs) => unsupported("tmpfs"),
        Some(FileSystem::Nfs) => unsupported("NFS"),
        Some(FileSystem::Fuse) => unsupported("FUSE"),
        Some(FileSystem::Btrfs) => doubtful("Docker's data-root is on Btrfs, on which kubelets may fail.".to_owned()),
        Some(FileSystem::Other(magic)) => doubtful(format!("Docker's data-root is on an unknown file system (0x{magic:x}).")),
        None => unsupported("a path that cannot be read"),
    }
}

fn disk(facts: &Facts, demand: Demand<'_>) -> Option<Finding> {
    let least = (3 + demand.nodes) * GIBIBYTE;
    let free = facts.disk_free.filter(|free| *free < least && !demand.there)?;
    Some(Finding::problem(Reason::DiskTooSmall, format!("{} MiB are free, {} node(s) need {} MiB.", free >> 20, demand.nodes, least >> 20)))
}

fn addresses(facts: &Facts, network: &NetworkPlan) -> Option<Finding> {
    let ours = [("pod range", &network.pods), ("Service range", &network.services), ("node range", &network.nodes), ("bridge's range", &network.bridge)];
    ours.into_iter().find_map(|(what, range)| {
        let (whose, other) = facts.addresses.iter().find(|(_, other)| overlap(range, other))?;
        Some(Finding::problem(Reason::CIDROverlap, format!("The cluster's {what} {range} overlaps {whose}, {other}.")))
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::agent::report::tests::settings;
    use rstest::rstest;

    /// A host that is fit.
    pub fn fit() -> Facts {
        Facts {
            cgroup: Version::V2,
            missing_capabilities: vec![],
            inotify_instances: Some(8192),
            inotify_watches: Some(1 << 20),
            pids_limit: None,
            data_root: Some(FileSystem::Ext),
            disk_shared: true,
            disk_size: Some(200 * GIBIBYTE),
            disk_free: Some(100 * GIBIBYTE),
            addresses: vec![("the pod's address on eth0".into(), "10.244.0.7/32".parse().unwrap())],
            mtu: Some(1450),
            sysctls: vec![],
            kmsg: true,
            memory_bytes: 24 << 30,
            cpu_millis: 4000,
        }
    }

    fn judged(facts: &Facts, nodes: u64, allow_cgroup_v1: bool) -> Result<Vec<String>, Problem> {
        check(facts, Demand { nodes, allow_cgroup_v1, network: Some(&settings().network), there: false })
    }

    #[test]
    fn a_fit_host_raises_no_word() {
        assert_eq!(judged(&fit(), 3, false), Ok(vec![]));
    }

    #[rstest]
    #[case::cgroup(|facts: &mut Facts| facts.cgroup = Version::V1, Reason::UnsupportedCgroupV1)]
    #[case::admin(|facts: &mut Facts| facts.missing_capabilities = vec!["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"], Reason::CapabilityMissing)]
    #[case::instances(|facts: &mut Facts| facts.inotify_instances = Some(64), Reason::InotifyLimitTooLow)]
    #[case::watches(|facts: &mut Facts| facts.inotify_watches = Some(8191), Reason::InotifyLimitTooLow)]
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
        assert_eq!(judged(&facts, 1, false).unwrap_err().reason, reason);
    }

    #[rstest]
    #[case::cgroup(|facts: &mut Facts| facts.cgroup = Version::V1, "cgroup v1")]
    #[case::wrapper(|facts: &mut Facts| facts.missing_capabilities = vec!["CAP_SYS_RESOURCE"], "CAP_SYS_RESOURCE")]
    #[case::instances(|facts: &mut Facts| facts.inotify_instances = Some(128), "512")]
    #[case::watches(|facts: &mut Facts| facts.inotify_watches = Some(46_647), "524288")]
    #[case::btrfs(|facts: &mut Facts| facts.data_root = Some(FileSystem::Btrfs), "Btrfs")]
    #[case::route(|facts: &mut Facts| facts.mtu = None, "1500")]
    #[case::sysctls(|facts: &mut Facts| facts.sysctls = vec![(("kernel.panic", 10), 60)], "kernel.panic from 60 to 10")]
    fn what_can_be_lived_with_is_told(#[case] spoil: fn(&mut Facts), #[case] word: &str) {
        let mut facts = fit();
        spoil(&mut facts);
        let warnings = judged(&facts, 1, true).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{warnings:?}");
    }

    #[test]
    fn everything_is_found_at_once() {
        let facts = Facts { cgroup: Version::V1, missing_capabilities: vec!["CAP_SYS_RESOURCE"], inotify_instances: Some(64), kmsg: false, ..fit() };
        let found = examine(&facts, Demand { nodes: 1, allow_cgroup_v1: false, network: None, there: false });
        let reasons: Vec<Reason> = found.iter().map(|finding| finding.reason).collect();
        assert_eq!(reasons, [Reason::UnsupportedCgroupV1, Reason::CapabilityMissing, Reason::InotifyLimitTooLow, Reason::KmsgUnreadable]);
        assert!(found.iter().all(|finding| !finding.reason.remedy().is_empty()));
    }

    #[test]
    fn more_nodes_need_more() {
        let facts = Facts { pids_limit: Some(4096), ..fit() };
        assert!(judged(&facts, 3, false).is_ok());
        assert_eq!(judged(&facts, 4, false).unwrap_err().reason, Reason::PidsLimitTooLow);
        let facts = Facts { disk_free: Some(6 * GIBIBYTE), ..fit() };
        assert!(judged(&facts, 3, false).is_ok());
        assert_eq!(judged(&facts, 4, false).unwrap_err().reason, Reason::DiskTooSmall);
    }
}
