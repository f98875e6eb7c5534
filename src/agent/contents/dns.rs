//! One question to a nameserver, from inside of a node: as a pod there would ask it.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::agent::node_files;

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Where the kubelet's configuration is, which says what it gives to pods.
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// Largest answer without EDNS, in bytes (RFC 1035).
const ANSWER_LIMIT: usize = 512;

/// The name of every cluster's own API.
const NAME: &str = "kubernetes.default.svc";

const PORT: u16 = 53;

/// Whether the nameserver that a node gives to its pods resolves the name of the cluster's API. The node is that whose first process is `pid`.
pub async fn resolves(pid: u32) -> Result<(), String> {
    let config = node_files::read(pid, KUBELET_CONFIG).map_err(|error| format!("cannot read the kubelet's configuration: {error}"))?;
    let (server, domain) = nameserver(&config).ok_or("the kubelet is configured with no nameserver")?;
    let name = format!("{NAME}.{domain}");
    let question = question(rand::random(), &name).ok_or_else(|| format!("{name} is no name"))?;
    let (sender, receiver) = oneshot::channel();
    // A network namespace belongs to a thread: this one ends with its question.
    std::thread::Builder::new()
        .name("dns".to_owned())
        .spawn(move || {
            let _ = sender.send(ask(pid, server, &question));
        })
        .map_err(|error| format!("no thread to ask with: {error}"))?;
    let answered = receiver.await.unwrap_or_else(|_| Err("the question has got lost".to_owned()));
    answered.map_err(|error| format!("{server} does not resolve {name}: {error}"))
}

/// What pods are given, by the kubelet's configuration: the first nameserver, and the cluster's domain.
fn nameserver(config: &str) -> Option<(Ipv4Addr, String)> {
    let config: Value = serde_saphyr::from_str(config).ok()?;
    let server = config["clusterDNS"].get(0)?.as_str()?.parse().ok()?;
    let domain = config["clusterDomain"].as_str().filter(|domain| !domain.is_empty()).unwrap_or("cluster.local");
    Some((server, domain.trim_end_matches('.').to_owned()))
}

/// Asks from the network namespace of a process.
fn ask(pid: u32, server: Ipv4Addr, question: &[u8]) -> Result<(), String> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| format!("the node has no network: {error}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| format!("the node's network cannot be entered: {error}"))?;
    exchange((server, PORT), question).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => format!("no answer within {} s", LIMIT.as_secs()),
        _ => error.to_string(),
    })
}

fn exchange(server: (Ipv4Addr, u16), question: &[u8]) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(server)?;
    socket.send(question)?;
    let mut answer = [0; ANSWER_LIMIT];
    let length = socket.recv(&mut answer)?;
    if is_answered(&answer[..length], question) { Ok(()) } else { Err(std::io::Error::other("the answer holds no address")) }
}

/// A question for the IPv4 addresses of a name (RFC 1035, 4.1); `None` for what is no name.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    // The server is to ask on, if it must; one question, nothing else.
    let mut packet = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        packet.push(length);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    Some(packet)
}

/// Whether this answers that question, without an error and with at least one record.
fn is_answered(answer: &[u8], question: &[u8]) -> bool {
    let Some(head) = answer.first_chunk::<12>() else { return false };
    let (is_response, code, records) = (head[2] & 0x80 != 0, head[3] & 0x0f, u16::from_be_bytes([head[6], head[7]]));
    head[..2] == question[..2] && is_response && code == 0 && records > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("clusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\n", Some(("10.96.0.10", "cluster.local")))]
    #[case("clusterDNS:\n- 10.97.0.10\n- 8.8.8.8\n", Some(("10.97.0.10", "cluster.local")))]
    #[case("{clusterDNS: [10.96.0.10], clusterDomain: a.example.}", Some(("10.96.0.10", "a.example")))]
    #[case("clusterDomain: a", None)]
    #[case("clusterDNS: []", None)]
    #[case("clusterDNS: [x]", None)]
    #[case("{", None)]
    fn the_kubelet_says_whom_pods_ask(#[case] config: &str, #[case] expected: Option<(&str, &str)>) {
        assert_eq!(nameserver(config), expected.map(|(server, domain)| (server.parse().unwrap(), domain.to_owned())));
    }

    #[test]
    fn a_question_is_a_packet() {
        assert_eq!(question(0x0102, "a.bc").unwrap(), b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bc\x00\x00\x01\x00\x01");
        assert_eq!(question(1, "a..b"), None);
        assert_eq!(question(1, &"a".repeat(64)), None);
    }

    /// With a nameserver on loopback that answers each question with these flags and this number of records.
    #[rstest]
    #[case([0x85, 0x00], 1, true, true)]
    #[case::no_such_name([0x85, 0x03], 0, true, false)]
    #[case::no_address([0x85, 0x00], 0, true, false)]
    #[case::server_fails([0x85, 0x02], 1, true, false)]
    #[case::no_answer_but_a_question([0x05, 0x00], 1, true, false)]
    #[case::to_another_question([0x85, 0x00], 1, false, false)]
    fn only_an_address_is_an_answer(#[case] flags: [u8; 2], #[case] records: u8, #[case] same: bool, #[case] good: bool) {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            let mut packet = [0; ANSWER_LIMIT];
            let (length, client) = server.recv_from(&mut packet).unwrap();
            packet[2..4].copy_from_slice(&flags);
            packet[7] = records;
            packet[1] ^= u8::from(!same);
            server.send_to(&packet[..length], client).unwrap();
        });
        assert_eq!(exchange((Ipv4Addr::LOCALHOST, port), &question(7, "a.b").unwrap()).is_ok(), good);
        answering.join().unwrap();
    }
}
