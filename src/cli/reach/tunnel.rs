//! A port on this machine's loopback, each connection of which is carried to a cluster's API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::relay::Relays;
use crate::cli::exit::chain;
use crate::cli::failure::Failure;

/// Time for a connection to an endpoint.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Pause after the kernel refused to hand out a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Where a tunnel leads.
pub enum Route {
    /// To this `host:port`.
    Direct(String),
    /// Through a relay pod.
    Relay(Box<Relays>),
}

/// An open tunnel.
pub struct Tunnel {
    address: SocketAddr,
    route: Arc<Route>,
    carrying: AbortOnDropHandle<()>,
}

impl Tunnel {
    /// Opens one on this port, or on any that is free.
    ///
    /// # Errors
    /// If the port is taken.
    pub async fn open(port: Option<u16>, route: Route) -> Result<Self> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
        let taken = |error| Failure::new(format!("cannot listen on {wanted}: {error}"), "Choose another --port, or leave it out.");
        let listener = TcpListener::bind(wanted).await.map_err(taken)?;
        let address = listener.local_addr()?;
        let route = Arc::new(route);
        let carrying = AbortOnDropHandle::new(tokio::spawn(carry(listener, route.clone())));
        Ok(Self { address, route, carrying })
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until there is a relay pod that runs, and names it.
    ///
    /// # Errors
    /// Says what keeps it from running.
    pub async fn ready(&self) -> Result<String> {
        match &*self.route {
            Route::Relay(relays) => relays.running().await,
            Route::Direct(server) => Ok(server.clone()),
        }
    }

    /// Closes it: connections end, and relay pods are deleted.
    pub async fn close(self) {
        self.carrying.abort();
        let _ = self.carrying.await;
        if let Route::Relay(relays) = &*self.route {
            relays.remove().await;
        }
    }
}

/// Carries connections for ever. They end with it.
async fn carry(listener: TcpListener, route: Arc<Route>) {
    let mut connections = JoinSet::new();
    let told = Arc::new(Mutex::new(String::new()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((client, _)) => {
                let (route, told) = (route.clone(), told.clone());
                connections.spawn(async move {
                    // Whoever has called sees no more than that the connection ends. Every trouble is told once.
                    if let Err(error) = pass(client, &route).await {
                        let said = chain(&error);
                        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                        if *told != said {
                            eprintln!("nestling: a connection to the cluster has failed: {said}");
                            *told = said;
                        }
                    }
                });
            }
            Err(_) => sleep(REFUSED_PAUSE).await,
        }
    }
}

async fn pass(mut client: TcpStream, route: &Route) -> Result<()> {
    // Not told why: clients must work without as well.
    let _ = client.set_nodelay(true);
    match route {
        Route::Direct(server) => {
            let mut server = timeout(CONNECT_LIMIT, TcpStream::connect(server)).await??;
            let _ = server.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut server).await;
            Ok(())
        }
        Route::Relay(relays) => {
            let mut forward = relays.dial().await?;
            let carried = copy_bidirectional(&mut client, &mut forward.stream);
            tokio::select! {
                // How a connection ended is between its two ends.
                _ = carried => Ok(()),
                Some(trouble) = forward.trouble => Err(Failure::new(trouble, "Try again.").into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SOON: Duration = Duration::from_secs(10);

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(SOON, what).await.expect("nothing hangs")
    }

    #[tokio::test]
    async fn a_tunnel_carries_until_it_is_closed() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = target.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut client, _)) = target.accept().await {
                let mut word = [0; 4];
                client.read_exact(&mut word).await.unwrap();
                client.write_all(&word).await.unwrap();
                held.push(client);
            }
        });
        let tunnel = Tunnel::open(None, Route::Direct(server)).await.unwrap();
        let door = tunnel.address();
        assert!(door.ip().is_loopback());
        let mut client = TcpStream::connect(door).await.unwrap();
        client.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        soon(client.read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"word");

        let taken = Tunnel::open(Some(door.port()), Route::Direct(String::new())).await.err().unwrap();
        assert!(taken.to_string().contains("--port"), "{taken}");

        soon(tunnel.close()).await;
        let after = soon(client.read(&mut word)).await;
        assert!(after.is_err() || after.is_ok_and(|bytes| bytes == 0));
        assert!(soon(TcpStream::connect(door)).await.is_err());
    }
}
