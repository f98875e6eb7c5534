//! Is the pod's NetworkPolicy enforced? No API tells. The pod finds out: it tries to reach the host's API server, which its policy forbids.
//!
//! The agent's own connections are not forwarded, so the egress guard does not touch them: what stops them is the host's CNI.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nestling_core::plan::wire::PolicyProbe;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::report::Report;

/// Time for a connection inside a host cluster.
const LIMIT: Duration = Duration::from_secs(3);

/// Until the next look after the last word.
const PAUSE: Duration = Duration::from_mins(10);

/// Until the next look before it: a CNI needs a moment to learn of a new pod.
const MOMENT: Duration = Duration::from_secs(3);

/// Looks in a row, in none of which the policy held, after which what the last of them saw is the word: half a minute if all connections come
/// about, a minute and a half if none does.
const PATIENCE: u32 = 10;

/// Where names are served.
const DNS: u16 = 53;

/// Looks from time to time, for ever.
pub async fn follow(report: Report, api: SocketAddrV4, nameservers: Vec<Ipv4Addr>) -> Infallible {
    let nameservers: Vec<SocketAddrV4> = nameservers.into_iter().map(|address| SocketAddrV4::new(address, DNS)).collect();
    let mut doubts = 0;
    loop {
        let (seen, pause) = judge(look(api, &nameservers).await, &mut doubts);
        if let Some(seen) = seen {
            report.update(|report| report.policy_probe = seen);
        }
        sleep(pause).await;
    }
}

/// One look. That the API server does not answer proves something only if the pod reaches anything at all: its policy allows nameservers.
async fn look(api: SocketAddrV4, nameservers: &[SocketAddrV4]) -> PolicyProbe {
    if connects(api).await {
        return PolicyProbe::Open;
    }
    for nameserver in nameservers {
        if connects(*nameserver).await {
            return PolicyProbe::Blocked;
        }
    }
    PolicyProbe::Unknown
}

async fn connects(to: SocketAddrV4) -> bool {
    matches!(timeout(LIMIT, TcpStream::connect(to)).await, Ok(Ok(_)))
}

/// What to report after a look, if anything, and when to look again. `doubts` counts looks in a row in which the policy did not hold.
fn judge(seen: PolicyProbe, doubts: &mut u32) -> (Option<PolicyProbe>, Duration) {
    *doubts = if seen == PolicyProbe::Blocked { 0 } else { doubts.saturating_add(1) };
    if *doubts == 0 || *doubts >= PATIENCE { (Some(seen), PAUSE) } else { (None, MOMENT) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn listener() -> (TcpListener, SocketAddrV4) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    }

    async fn closed() -> SocketAddrV4 {
        listener().await.1
    }

    #[tokio::test]
    async fn silence_proves_something_only_beside_an_answer() {
        let (_api, api) = listener().await;
        let (_names, names) = listener().await;
        assert_eq!(look(api, &[names]).await, PolicyProbe::Open);
        assert_eq!(look(closed().await, &[closed().await, names]).await, PolicyProbe::Blocked);
        assert_eq!(look(closed().await, &[closed().await]).await, PolicyProbe::Unknown);
        assert_eq!(look(closed().await, &[]).await, PolicyProbe::Unknown);
    }

    #[test]
    fn a_cni_that_is_late_is_not_accused_and_there_is_a_last_word() {
        let mut doubts = 0;
        let mut judged = |seen| judge(seen, &mut doubts);
        for last in [PolicyProbe::Open, PolicyProbe::Unknown] {
            for early in [PolicyProbe::Open, PolicyProbe::Unknown] {
                assert_eq!(judged(early), (None, MOMENT));
            }
            assert_eq!(judged(PolicyProbe::Blocked), (Some(PolicyProbe::Blocked), PAUSE));
            for _ in 1..PATIENCE {
                assert_eq!(judged(last), (None, MOMENT));
            }
            assert_eq!(judged(last), (Some(last), PAUSE));
            assert_eq!(judged(last), (Some(last), PAUSE), "it stays the word until the policy holds");
            assert_eq!(judged(PolicyProbe::Blocked), (Some(PolicyProbe::Blocked), PAUSE));
        }
    }
}
