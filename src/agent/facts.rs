//! What the machine under the pod is like: read once, judged in [`preflight`](super::preflight).

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;
use nix::sys::statfs::{Statfs, statfs};

use super::capabilities::Capabilities;
use super::cgroup::{self, Version};

/// A file of the pod that the host's kubelet writes, beside the pod's ephemeral volumes.
const OF_THE_KUBELET: &str = "/etc/hosts";

/// What was found. `None` is what could not be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Version of control groups.
    pub cgroup: Version,
    /// Kernel capabilities that the pod cannot have.
    pub missing_capabilities: Vec<&'static str>,
    /// `fs.inotify.max_user_instances`.
    pub inotify_instances: Option<u64>,
    /// `fs.inotify.max_user_watches`.
    pub inotify_watches: Option<u64>,
    /// Most processes that the pod may have; `None` is no limit.
    pub pids_limit: Option<u64>,
    /// File system of Docker's data-root.
    pub data_root: Option<FileSystem>,
    /// Whether the host's kubelet keeps the pod's own files on the same file system.
    pub disk_shared: bool,
    /// Bytes of that file system.
    pub disk_size: Option<u64>,
    /// Bytes that are free there.
    pub disk_free: Option<u64>,
    /// Addresses that the pod must still reach, with what they are.
    pub addresses: Vec<(String, Ipv4Net)>,
    /// MTU of the pod's default route, in bytes.
    pub mtu: Option<u32>,
    /// Those of [`NODE_SYSCTLS`] that have another value, with the value.
    pub sysctls: Vec<(NodeSysctl, i64)>,
    /// Whether `/dev/kmsg` can be read.
    pub kmsg: bool,
    /// Memory of the machine in bytes.
    pub memory_bytes: i64,
    /// Processors of the machine in thousandths.
    pub cpu_millis: i64,
}

/// A key of the whole machine's and the value that each kubelet gives it.
pub type NodeSysctl = (&'static str, i64);

/// What every kubelet sets, also a nested one (`pkg/kubelet/cm/container_manager_linux.go`, `pkg/util/sysctl`).
pub const NODE_SYSCTLS: [NodeSysctl; 6] = [
    ("vm.overcommit_memory", 1),
    ("vm.panic_on_oom", 0),
    ("kernel.panic", 10),
    ("kernel.panic_on_oops", 1),
    ("kernel.keys.root_maxkeys", 1_000_000),
    ("kernel.keys.root_maxbytes", 25_000_000),
];

/// What the pod's network is like, as far as it matters to what may leave it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surroundings {
    /// The pod's nameservers, but those of the pod itself.
    pub nameservers: Vec<Ipv4Addr>,
    /// Networks on the interface that leads out of the pod: its gateway and its neighbours.
    pub uplink: Vec<Ipv4Net>,
}

impl Surroundings {
    /// Reads them.
    pub fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::of(&read("/proc/net/route"), &read("/etc/resolv.conf"))
    }

    fn of(routes: &str, resolv_conf: &str) -> Self {
        let uplink = default_interface(routes);
        let on_uplink = parse_routes(routes).into_iter().filter(|route| route.network.prefix_len() > 0 && Some(&route.interface) == uplink.as_ref());
        Self { nameservers: nameservers(resolv_conf).into_iter().map(|(_, net)| net.addr()).collect(), uplink: on_uplink.map(|route| route.network).collect() }
    }
}

/// File systems as far as they matter to Docker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileSystem {
    /// ext2 to ext4: all have one number.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Overlay; cannot hold the upper directories of another one.
    Overlay,
    /// Memory.
    Tmpfs,
    /// NFS.
    Nfs,
    /// FUSE and virtiofs.
    Fuse,
    /// Something else, by its number (`include/uapi/linux/magic.h`).
    Other(i64),
}

impl FileSystem {
    fn of(magic: i64) -> Self {
        match magic {
            0xEF53 => Self::Ext,
            0x5846_5342 => Self::Xfs,
            0x9123_683E => Self::Btrfs,
            0x794C_7630 => Self::Overlay,
            0x0102_1994 => Self::Tmpfs,
            0x6969 => Self::Nfs,
            0x6573_5546 => Self::Fuse,
            other => Self::Other(other),
        }
    }
}

/// Reads everything. Blocks for some milliseconds.
pub fn gather(data_root: &str) -> Facts {
    let disk = statfs(data_root).ok();
    let bytes = |blocks: fn(&Statfs) -> u64| disk.as_ref().map(|disk| blocks(disk) * u64::try_from(disk.block_size()).unwrap_or(0));
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let sysctl = |key: &str| fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).ok()?.trim().parse().ok();
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let last_capability = number("/proc/sys/kernel/cap_last_cap").and_then(|last| usize::try_from(last).ok());
    Facts {
        cgroup: cgroup::version(),
        missing_capabilities: Capabilities::bounding().map(|held| held.missing(last_capability.unwrap_or(usize::MAX - 1))).unwrap_or_default(),
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
        inotify_watches: number("/proc/sys/fs/inotify/max_user_watches"),
        pids_limit: pids_limit(),
        data_root: disk.as_ref().map(|disk| FileSystem::of(disk.filesystem_type().0)),
        disk_shared: device(Path::new(data_root)).is_some_and(|device_of_data| device(Path::new(OF_THE_KUBELET)) == Some(device_of_data)),
        disk_size: bytes(Statfs::blocks),
        disk_free: bytes(Statfs::blocks_available),
        addresses: addresses(&routes),
        mtu: default_interface(&routes).and_then(|name| number(&format!("/sys/class/net/{name}/mtu"))).and_then(|mtu| u32::try_from(mtu).ok()),
        sysctls: NODE_SYSCTLS.into_iter().filter_map(|known| Some((known, sysctl(known.0)?))).filter(|((_, wanted), value)| value != wanted).collect(),
        // Opening is the test: a read would block.
        kmsg: File::open("/dev/kmsg").is_ok(),
        memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        cpu_millis: cpu_millis(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    }
}

/// The file system that a file is on.
fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.dev())
}

/// The lowest of the limits on the number of processes, from this process's own group up to the root of what the pod sees.
fn pids_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (version, path) = pids_group(&groups)?;
    let tree = pids_tree(version);
    // A container of v1 sees its own group as the root of the mount, whatever its path says.
    let groups = Path::new(path.trim_start_matches('/')).ancestors().map(|group| tree.join(group).join("pids.max"));
    groups.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

/// Where the groups that count processes are mounted.
fn pids_tree(version: Version) -> PathBuf {
    match version {
        Version::V1 => Path::new(cgroup::ROOT).join("pids"),
        Version::V2 => Path::new(cgroup::ROOT).to_owned(),
    }
}

/// The group that counts processes, of the lines of `/proc/<pid>/cgroup`: `4:pids:/path` on v1, `0::/path` on v2.
fn pids_group(groups: &str) -> Option<(Version, &str)> {
    let mut found = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        if controllers.split(',').any(|controller| controller == "pids") {
            return Some((Version::V1, path));
        }
        if controllers.is_empty() {
            found = Some((Version::V2, path));
        }
    }
    found
}

/// Interfaces that Docker made, of which an agent that was restarted still finds the last one's.
fn is_dockers(interface: &str) -> bool {
    interface == "lo" || interface.starts_with("docker") || interface.starts_with("br-") || interface.starts_with("veth")
}

fn addresses(routes: &str) -> Vec<(String, Ipv4Net)> {
    let mut found = Vec::new();
    for interface in getifaddrs().into_iter().flatten().filter(|interface| !is_dockers(&interface.interface_name)) {
        if let Some(address) = interface.address.as_ref().and_then(|address| address.as_sockaddr_in()) {
            found.push((format!("the pod's address on {}", interface.interface_name), Ipv4Net::from(address.ip())));
        }
    }
    let networks = parse_routes(routes).into_iter().filter(|route| route.network.prefix_len() > 0 && !is_dockers(&route.interface));
    found.extend(networks.map(|route| (format!("the pod's route over {}", route.interface), route.network)));
    found.extend(nameservers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()));
    found
}

fn nameservers(resolv_conf: &str) -> Vec<(String, Ipv4Net)> {
    let addresses = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok());
    addresses.filter(|address| !address.is_loopback()).map(|address| ("the pod's nameserver".to_owned(), Ipv4Net::from(address))).collect()
}

#[derive(Debug, Eq, PartialEq)]
struct Route {
    interface: String,
    network: Ipv4Net,
    metric: u32,
}

/// Reads `/proc/net/route`: addresses are hexadecimal in the byte order of the machine.
fn parse_routes(text: &str) -> Vec<Route> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, _, _, _, metric, mask, ..] = fields[..] else { return None };
        let network = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
        Some(Route { interface: interface.to_owned(), network, metric: metric.parse().ok()? })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// The interface that leads out of the pod.
fn default_interface(routes: &str) -> Option<String> {
    let defaults = parse_routes(routes).into_iter().filter(|route| route.network.prefix_len() == 0);
    defaults.min_by_key(|route| route.metric).map(|route| route.interface)
}

/// `MemTotal`: what each kubelet takes for its own.
fn memory_bytes(meminfo: &str) -> i64 {
    let kibibytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<i64>().ok());
    kibibytes.unwrap_or(0) << 10
}

/// Number of processors in thousandths, not cut by the pod's own limit: a kubelet does not see it either.
fn cpu_millis(cpuinfo: &str) -> i64 {
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor") && line.contains(':')).count();
    i64::try_from(processors).unwrap_or(0) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::alone::{is_root, run_alone};
    use crate::agent::preflight::{Demand, examine};
    use nestling_core::api::reasons::Reason;
    use nestling_core::plan::findings::{Finding, Severity};
    use nix::mount::{MsFlags, mount};
    use rstest::rstest;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t00000000\t010011AC\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t00000000\t0100F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000F40A\t0100F40A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
";

    #[test]
    fn routes_are_read() {
        assert_eq!(default_interface(ROUTES).as_deref(), Some("eth0"));
        assert_eq!(parse_routes(ROUTES)[2].network.to_string(), "10.244.0.0/16");
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn surroundings_are_those_of_the_way_out() {
        let routes = format!("{ROUTES}net1\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n");
        let found = Surroundings::of(&routes, "nameserver 10.96.0.10\nnameserver 127.0.0.11\n");
        assert_eq!(found.uplink, ["10.244.0.0/16".parse().unwrap()]);
        assert_eq!(found.nameservers, ["10.96.0.10".parse::<Ipv4Addr>().unwrap()]);
    }

    #[rstest]
    #[case("12:pids:/kubepods/pod1/x\n0::/\n", Some((Version::V1, "/kubepods/pod1/x")))]
    #[case("5:cpu,pids:/a\n", Some((Version::V1, "/a")))]
    #[case("0::/init\n", Some((Version::V2, "/init")))]
    #[case("", None)]
    fn groups_are_read(#[case] text: &str, #[case] expected: Option<(Version, &str)>) {
        assert_eq!(pids_group(text), expected);
    }

    #[test]
    fn a_machine_is_measured() {
        assert_eq!(memory_bytes("MemTotal:       24000000 kB\nMemFree: 1 kB\n"), 24_000_000 << 10);
        assert_eq!(cpu_millis("processor\t: 0\nmodel name : x\n\nprocessor\t: 1\n"), 2000);
        let found = nameservers("search x\nnameserver 10.96.0.10\nnameserver ::1\nnameserver 127.0.0.11\n");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = gather("/");
        assert!(gather(OF_THE_KUBELET).disk_shared && !gather("/proc").disk_shared);
        assert!(facts.memory_bytes > 0 && facts.cpu_millis > 0 && facts.data_root.is_some() && facts.disk_free.is_some());
    }

    /// What is said of this reason about the machine as this process sees it.
    fn told(reason: Reason, data_root: &str) -> Vec<Finding> {
        let demand = Demand { nodes: 1, allow_cgroup_v1: true, network: None, there: false };
        examine(&gather(data_root), demand).into_iter().filter(|finding| finding.reason == reason && finding.severity == Severity::Problem).collect()
    }

    fn mount_over(target: &Path, kind: &str, options: Option<&str>) {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options).unwrap();
    }

    #[test]
    #[ignore = "needs mounts of its own"]
    fn on_other_file_systems() {
        let directory = tempfile::tempdir().unwrap();
        let memory = directory.path();
        mount_over(memory, "tmpfs", None);
        let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| memory.join(name));
        for directory in [&lower, &upper, &work, &merged] {
            fs::create_dir(directory).unwrap();
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount_over(&merged, "overlay", Some(&options));
        for (place, name) in [(memory, "tmpfs"), (&*merged, "overlay")] {
            let found = told(Reason::DataRootUnsupported, place.to_str().unwrap());
            assert!(found.len() == 1 && found[0].message.contains(name), "{name}: {found:?}");
        }
    }

    #[test]
    #[ignore = "needs mounts of its own"]
    fn without_the_kernels_log() {
        assert_eq!(told(Reason::KmsgUnreadable, "/"), []);
        mount_over(Path::new("/dev"), "tmpfs", None);
        assert_eq!(told(Reason::KmsgUnreadable, "/").len(), 1);
    }

    /// The kernel itself is asked, in mounts of the test's own.
    #[rstest]
    #[case("on_other_file_systems")]
    #[case("without_the_kernels_log")]
    fn mounts_are_seen_as_they_are(#[case] test: &str) {
        if is_root() {
            run_alone(&["unshare", "--mount"], &format!("agent::facts::tests::{test}"));
        }
    }

    const GROUP: &str = "NESTLING_TEST_GROUP";

    /// A group of this many processes, below the one that this process is in.
    fn group_of(limit: &str) -> Result<PathBuf, std::io::Error> {
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let (version, path) = pids_group(&groups).ok_or_else(|| std::io::Error::other("no group counts processes"))?;
        let group = pids_tree(version).join(path.trim_start_matches('/')).join(format!("nestling-test-{}", std::process::id()));
        fs::create_dir(&group)?;
        fs::write(group.join("pids.max"), limit).inspect_err(|_| drop(fs::remove_dir(&group)))?;
        Ok(group)
    }

    #[test]
    #[ignore = "enters another control group"]
    fn in_a_group_of_few_processes() {
        assert_eq!(told(Reason::PidsLimitTooLow, "/"), []);
        let group = std::env::var(GROUP).unwrap();
        fs::write(Path::new(&group).join("cgroup.procs"), std::process::id().to_string()).unwrap();
        assert_eq!(gather("/").pids_limit, Some(1500));
        let found = told(Reason::PidsLimitTooLow, "/");
        assert!(found.len() == 1 && found[0].message.contains("1500"), "{found:?}");
    }

    #[test]
    fn a_limit_of_the_kernel_is_found() {
        if !is_root() {
            return;
        }
        match group_of("1500") {
            Ok(group) => {
                run_alone(&["env", &format!("{GROUP}={}", group.display())], "agent::facts::tests::in_a_group_of_few_processes");
                fs::remove_dir(group).unwrap();
            }
            Err(error) => println!("skipped: no group can be made here: {error}"),
        }
    }
}
