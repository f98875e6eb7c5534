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

/// Until the next look when the last one told something, and when it has to be confirmed: a CNI needs a moment to learn of a new pod.
const PAUSE: (Duration, Duration) = (Duration::from_mins(10), Duration::from_secs(15));

/// Until the next look after one that proves nothing.
const UNSURE: Duration = Duration::from_mins(1);

/// Connections in a row after which the policy counts as not enforced.
const PATIENCE: u32 = 3;

/// Where names are served.
const DNS: u16 = 53;

/// Looks from time to time, for ever.
pub async fn follow(report: Report, api: SocketAddrV4, nameservers: Vec<Ipv4Addr>) -> Infallible {
    let nameservers: Vec<SocketAddrV4> = nameservers.into_iter().map(|address| SocketAddrV4::new(address, DNS)).collect();
    let mut open = 0;
    loop {
        let (seen, pause) = judge(look(api, &nameservers).await, &mut open);
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

/// What to report after a look, if anything, and when to look again. `open` counts connections in a row.
fn judge(seen: PolicyProbe, open: &mut u32) -> (Option<PolicyProbe>, Duration) {
    *open = if seen == PolicyProbe::Open { *open + 1 } else { 0 };
    match seen {
        PolicyProbe::Blocked => (Some(seen), PAUSE.0),
        PolicyProbe::Open if *open >= PATIENCE => (Some(seen), PAUSE.0),
        PolicyProbe::Open => (None, PAUSE.1),
        PolicyProbe::Unknown => (Some(seen), UNSURE),
    }
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
    fn a_cni_that_is_late_is_not_accused() {
        let mut open = 0;
        let mut told = Vec::new();
        for seen in [PolicyProbe::Open, PolicyProbe::Open, PolicyProbe::Blocked, PolicyProbe::Open, PolicyProbe::Open, PolicyProbe::Open, PolicyProbe::Unknown]
        {
            told.push(judge(seen, &mut open).0);
        }
        let (blocked, opened, unknown) = (Some(PolicyProbe::Blocked), Some(PolicyProbe::Open), Some(PolicyProbe::Unknown));
        assert_eq!(told, [None, None, blocked, None, None, opened, unknown]);
    }
}
