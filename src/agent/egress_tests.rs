//! Real packets through real network namespaces: a nested node, the pod and the host, each with its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command as Program;
use std::time::Duration;

use nestling_core::plan::egress::CHAIN;
use nix::sched::{CloneFlags, setns};
use rstest::rstest;

use super::*;
use crate::agent::alone::is_root;
use crate::agent::facts::Surroundings;
use crate::agent::network::{self, Backend};
use crate::agent::report::tests::settings;

/// Long for a connection between two namespaces, short for a test that waits for it in vain.
const LONG: Duration = Duration::from_millis(500);

/// What the host serves: its API by Service and by node, names, another cluster, an exception, metadata, the world.
const HOST: [&str; 7] = ["10.96.0.1", "172.18.0.2", "10.96.0.10", "10.244.9.9", "10.96.7.7", "169.254.169.254", "203.0.113.7"];

/// Three namespaces in a row, `nested` - `pod` - `host`.
struct Wires {
    prefix: String,
}

impl Wires {
    /// `None`, with the reason printed, where they cannot be had.
    fn lay(name: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let wires = Self { prefix: format!("nestling-egress-{}-{name}", std::process::id()) };
        for place in ["nested", "pod", "host"] {
            if let Err(error) = ip(&["netns", "add", &wires.name(place)]) {
                println!("skipped: no network namespaces here: {error}");
                return None;
            }
            wires.ip(place, &["link", "set", "lo", "up"]);
        }
        wires.join("pod", "br-kind", "172.31.255.1/24", "nested", "172.31.255.2/24");
        wires.join("pod", "eth0", "10.244.0.5/24", "host", "10.244.0.1/24");
        wires.ip("nested", &["route", "add", "default", "via", "172.31.255.1"]);
        wires.ip("pod", &["route", "add", "default", "via", "10.244.0.1"]);
        wires.ip("host", &["route", "add", "172.31.255.0/24", "via", "10.244.0.5"]);
        for address in HOST {
            wires.ip("host", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        wires.within("pod", || fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        Some(wires)
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn ip(&self, place: &str, arguments: &[&str]) {
        ip(&[&["-n", &self.name(place)], arguments].concat()).unwrap();
    }

    fn join(&self, one: &str, interface: &str, address: &str, other: &str, peer_address: &str) {
        let netns = self.name(other);
        self.ip(one, &["link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", &netns]);
        for (place, interface, address) in [(one, interface, address), (other, "eth0", peer_address)] {
            self.ip(place, &["address", "add", address, "dev", interface]);
            self.ip(place, &["link", "set", interface, "up"]);
        }
    }

    /// Does something in a namespace. A namespace belongs to a thread, and sockets and children to the one they were made in.
    fn within<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/var/run/netns/{}", self.name(place))).unwrap();
        let enter = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    /// The same for what waits.
    fn run<T: Send>(&self, place: &str, work: impl Future<Output = T> + Send) -> T {
        self.within(place, || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work))
    }

    fn connects(&self, from: &str, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        self.within(from, || TcpStream::connect_timeout(&to, LONG).is_ok())
    }

    fn listen(&self, place: &str, ports: &[u16]) -> Vec<TcpListener> {
        // The kernel takes connections for whoever listens; nobody needs to accept.
        self.within(place, || ports.iter().map(|port| TcpListener::bind(("0.0.0.0", *port)).unwrap()).collect())
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for place in ["nested", "pod", "host"] {
            let _ = ip(&["netns", "delete", &self.name(place)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Program::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))) }
}

/// The guard as the agent makes it in such a pod.
fn of_the_pod(allowed: &str) -> Guard {
    let network = NetworkPlan { host: ["10.96.0.0/16", "172.18.0.2/32", "10.244.0.0/16"].map(|net| net.parse().unwrap()).to_vec(), ..settings().network };
    let surroundings = Surroundings { nameservers: vec!["10.96.0.10".parse().unwrap()], uplink: vec!["10.244.0.0/24".parse().unwrap()] };
    let plan = EgressPlan { allowed: vec![allowed.parse().unwrap()], ..EgressPlan::default() };
    guard(&plan, &network, &surroundings).unwrap()
}

#[rstest]
#[case(Backend::Nft)]
#[case(Backend::Legacy)]
fn nested_packets_do_not_reach_the_host(#[case] backend: Backend) {
    let Some(wires) = Wires::lay(if backend == Backend::Nft { "nft" } else { "old" }) else { return };
    let directory = tempfile::tempdir().unwrap();
    let programs = directory.path();
    network::link(backend, programs).unwrap();
    if let Err(error) = wires.run("pod", save(programs)) {
        println!("skipped: {backend:?} has no table {TABLE} here: {error}");
        return;
    }
    let _host = wires.listen("host", &[53, 80, 443, 6443]);
    let _nested = wires.listen("nested", &[8080]);
    let names = wires.within("host", || UdpSocket::bind("0.0.0.0:53").unwrap());
    names.set_read_timeout(Some(LONG)).unwrap();
    let asks = |server: &str| {
        wires.within("nested", || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"name", (server, 53)).unwrap());
        names.recv_from(&mut [0; 16]).is_ok()
    };
    let forbidden = ["10.96.0.1:443", "172.18.0.2:6443", "10.96.0.10:80", "10.244.9.9:6443", "10.244.0.1:443", "169.254.169.254:80", "169.254.169.254:53"];
    let allowed = ["10.96.0.10:53", "10.96.7.7:443", "203.0.113.7:443"];

    // Without the guard everything can be reached, or the rest would prove nothing.
    for to in forbidden.iter().chain(&allowed) {
        assert!(wires.connects("nested", to), "{to}");
    }
    assert!(asks("10.96.0.1"));

    let guard = of_the_pod("10.96.7.7/32");
    // Twice, as an agent that is started again does.
    for _ in 0..2 {
        wires.run("pod", raise(&guard, programs)).unwrap();
    }
    for to in forbidden {
        assert!(!wires.connects("nested", to), "{to}");
    }
    for to in allowed {
        assert!(wires.connects("nested", to), "{to}");
    }
    assert!(asks("10.96.0.10") && !asks("10.96.0.1") && !asks("169.254.169.254"));
    // The pod itself, and whoever comes in, are not held up.
    assert!(wires.connects("pod", "10.96.0.1:443"));
    assert!(wires.connects("host", "172.31.255.2:8080"));

    // Another guard takes the place of this one, in one step.
    let other = of_the_pod("10.96.0.1/32");
    wires.run("pod", raise(&other, programs)).unwrap();
    assert!(wires.connects("nested", "10.96.0.1:443") && !wires.connects("nested", "10.96.7.7:443"));

    // What undoes the guard is seen, and mended.
    let save_text = || wires.run("pod", save(programs)).unwrap();
    for sabotage in ["-I FORWARD 1 -j ACCEPT\n".to_owned(), format!("-F {CHAIN}\n"), format!("-D FORWARD -j {CHAIN}\n")] {
        let input = format!("*{TABLE}\n{sabotage}COMMIT\n");
        wires.run("pod", run(programs, "iptables-restore", &["--wait", "10", "--noflush"], &input)).unwrap();
        assert!(wires.connects("nested", "10.96.7.7:443"), "{sabotage} opens the way:\n{}", save_text());
        let failure = wires.run("pod", check(&other, programs)).unwrap_err();
        assert_eq!(failure.reason, Reason::EgressGuardFailed);
        wires.run("pod", raise(&other, programs)).unwrap();
        assert!(!wires.connects("nested", "10.96.7.7:443"), "{sabotage} is mended:\n{}", save_text());
        assert_eq!(save_text().matches(&format!("-A FORWARD -j {CHAIN}")).count(), 1);
    }
}

#[tokio::test]
async fn programs_that_fail_are_quoted() {
    let directory = tempfile::tempdir().unwrap();
    let guard = of_the_pod("10.96.7.7/32");
    let failure = raise(&guard, directory.path()).await.unwrap_err();
    assert_eq!(failure.reason, Reason::EgressGuardFailed);
    assert!(failure.log_tail.contains("cannot run iptables-save"), "{failure:?}");
}

#[test]
fn the_guard_knows_what_the_pod_sees() {
    let guard = of_the_pod("10.96.7.7/32");
    assert!(guard.denied.contains(&"10.244.0.0/24".parse().unwrap()));
    let off = EgressPlan { guard: false, ..EgressPlan::default() };
    assert_eq!(super::guard(&off, &settings().network, &Surroundings::default()), None);
}

#[test]
fn forwarding_of_ipv6_is_switched_off() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "1\n").unwrap();
    close_ipv6(file.path()).unwrap();
    assert_eq!(fs::read_to_string(file.path()).unwrap(), "0");
    close_ipv6(Path::new("/nowhere/forwarding")).unwrap();
}
