//! `nestling relay`: what runs in a relay pod. It ends by itself, because whoever started it may be gone without a word.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::lookup_host;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::{Relay, Resolve};

/// Time for a name.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// What to pass on where, and for how long.
#[derive(clap::Args, Clone, Debug)]
pub struct RelayArgs {
    /// Where to
    #[arg(long, value_name = "HOST:PORT")]
    pub target: String,
    /// Port on loopback, which is where a port-forward comes in; 0 for any
    #[arg(long)]
    pub port: u16,
    /// End when no connection has been open for so many seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_seconds: u64,
    /// End after so many seconds, come what may
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_seconds: u64,
}

/// A name, looked up for each connection that needs it.
struct Named(String);

impl Resolve for Named {
    async fn resolve(&self) -> Vec<Option<SocketAddr>> {
        match timeout(LOOKUP_LIMIT, lookup_host(&self.0)).await {
            Ok(Ok(addresses)) => addresses.map(Some).collect(),
            Ok(Err(error)) => {
                eprintln!("cannot look up {}: {error}", self.0);
                vec![]
            }
            Err(_) => {
                eprintln!("no answer about {} within {} s", self.0, LOOKUP_LIMIT.as_secs());
                vec![]
            }
        }
    }
}

/// Passes connections on until nobody wants any.
///
/// # Errors
/// Those of the socket.
pub async fn run(args: RelayArgs) -> Result<()> {
    let mut ended = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let relay = Relay::open((Ipv4Addr::LOCALHOST, args.port).into(), Named(args.target.clone()), super::places()).await.context("cannot listen")?;
    println!("passing connections to {} on to {}", relay.address()?, args.target);
    let why = tokio::select! {
        never = relay.run() => match never {},
        () = relay.idle(Duration::from_secs(args.idle_seconds)) => "nobody has used it for a while",
        () = sleep(Duration::from_secs(args.limit_seconds)) => "its time is over",
        _ = ended.recv() => "it was told to",
    };
    println!("ended: {why}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    const SOON: Duration = Duration::from_secs(10);

    fn args(target: String, port: u16, idle_seconds: u64, limit_seconds: u64) -> RelayArgs {
        RelayArgs { target, port, idle_seconds, limit_seconds }
    }

    #[tokio::test]
    async fn it_ends_when_nobody_comes() {
        let start = Instant::now();
        timeout(SOON, run(args("127.0.0.1:1".into(), 0, 1, 60))).await.expect("idle").unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn it_ends_at_its_limit_though_it_is_used() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("localhost:{}", target.local_addr().unwrap().port());
        tokio::spawn(async move {
            let (mut client, _) = target.accept().await.unwrap();
            client.write_all(b"word").await.unwrap();
            std::future::pending::<()>().await;
        });
        // Free a moment ago, and nobody else's in this process.
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let running = tokio::spawn(run(args(name, port, 1, 3)));
        let mut client = loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                Ok(client) => break client,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
        let mut word = [0; 4];
        timeout(SOON, client.read_exact(&mut word)).await.expect("the name leads to the target").unwrap();
        assert_eq!(&word, b"word");
        sleep(Duration::from_millis(1500)).await;
        assert!(!running.is_finished(), "it is in use");
        timeout(SOON, running).await.expect("its time is over").unwrap().unwrap();
        let after = timeout(SOON, client.read(&mut word)).await.expect("no connection hangs");
        assert!(after.is_err() || after.is_ok_and(|bytes| bytes == 0));
    }
}
