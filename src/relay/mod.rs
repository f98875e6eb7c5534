//! A port, passed on at TCP level: the front door of a cluster's pod, its published ports ([`crate::agent`]), and the whole of a pod through which the command line
//! reaches a cluster.
//!
//! There may be several ways to a target, and the first one that takes a connection is used. TLS goes through untouched, so clients verify the cluster itself. When the target does not take connections, they are
//! closed at once rather than left waiting.
//!
//! What is relayed is the pod's own traffic on both sides, and so not forwarded: neither it nor an answer passes the egress guard.

mod process;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use process::{RelayArgs, run};

/// Most connections at once through a front door, and through all other doors of a pod together; each takes two file descriptors.
const CONNECTIONS: usize = 4096;

/// Time for a connection to the target.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long one way may be silent before the next one is tried beside it. A node without an endpoint of its own drops what comes for a Service with
/// `externalTrafficPolicy: Local`.
const SILENCE: Duration = Duration::from_millis(250);

/// Pause after the kernel refused to hand out a connection (no file descriptors).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Tells where the target is at the moment. Containers get other addresses when they are restarted.
pub trait Resolve: Send + Sync + 'static {
    /// Whether all ways are as good as the first one. If not, the others are ways round it for as long as it is closed.
    const INTERCHANGEABLE: bool = false;

    /// The ways to it, the best one first; `None` for one that is closed.
    fn resolve(&self) -> impl Future<Output = Vec<Option<SocketAddr>>> + Send;
}

/// A door that is open. When it is dropped, it is shut: connections through it end, and further ones are refused at once.
#[derive(Debug)]
pub struct Relay<R> {
    listener: TcpListener,
    target: Arc<Target<R>>,
    shut: CancellationToken,
    _shutter: DropGuard,
    /// Connections that are open; each change is told.
    open: watch::Sender<usize>,
}

#[derive(Debug)]
struct Target<R> {
    resolver: R,
    known: Mutex<Option<SocketAddr>>,
    places: Arc<Semaphore>,
}

/// Room for connections, for one door or several.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS))
}

impl<R: Resolve> Relay<R> {
    /// Opens the door at this address.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn open(address: SocketAddr, resolver: R, places: Arc<Semaphore>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let shut = CancellationToken::new();
        Ok(Self {
            listener,
            _shutter: shut.clone().drop_guard(),
            shut,
            open: watch::Sender::new(0),
            target: Arc::new(Target { resolver, known: Mutex::default(), places }),
        })
    }

    /// Passes connections on, for ever.
    pub async fn run(&self) -> std::convert::Infallible {
        loop {
            match self.listener.accept().await {
                Ok((client, _)) => {
                    // No place: dropping it closes it.
                    if let Ok(place) = self.target.places.clone().try_acquire_owned() {
                        let (target, shut, open) = (self.target.clone(), self.shut.clone(), self.open.clone());
                        open.send_modify(|open| *open += 1);
                        tokio::spawn(async move {
                            shut.run_until_cancelled(target.pass_on(client)).await;
                            open.send_modify(|open| *open -= 1);
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!("a door of the pod: {error}");
                    sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    /// Returns when no connection has been open for this long.
    pub async fn idle(&self, limit: Duration) {
        let mut open = self.open.subscribe();
        loop {
            // It cannot be closed: its sender is in this very object.
            let _ = open.wait_for(|open| *open == 0).await;
            if timeout(limit, open.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Where the door is.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl<R: Resolve> Target<R> {
    async fn pass_on(&self, mut client: TcpStream) {
        let Some(mut server) = self.connect().await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }

    /// Connects to where the target was, and where that fails, to where it is now.
    async fn connect(&self) -> Option<TcpStream> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = known {
            if let Some(server) = dial(address).await {
                return Some(server);
            }
            self.remember(None);
        }
        let (place, address, server) = first(self.resolver.resolve().await).await?;
        if place == 0 || R::INTERCHANGEABLE {
            self.remember(Some(address));
        }
        Some(server)
    }

    fn remember(&self, address: Option<SocketAddr>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

/// The first way that takes a connection, with its place. A way that is closed or silent gives the next one its turn.
async fn first(ways: Vec<Option<SocketAddr>>) -> Option<(usize, SocketAddr, TcpStream)> {
    let mut left = ways.into_iter().enumerate().filter_map(|(place, address)| Some((place, address?))).collect::<Vec<_>>().into_iter();
    let mut under_way = FuturesUnordered::new();
    loop {
        match left.next() {
            Some((place, address)) => under_way.push(async move { Some((place, address, dial(address).await?)) }),
            None if under_way.is_empty() => return None,
            None => {}
        }
        tokio::select! {
            Some(found) = under_way.next() => if found.is_some() { return found },
            () = sleep(SILENCE), if left.len() > 0 => {}
        }
    }
}

async fn dial(address: SocketAddr) -> Option<TcpStream> {
    timeout(CONNECT_LIMIT, TcpStream::connect(address)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// The addresses may change, as a container's does.
    struct At(Arc<Mutex<Vec<Option<SocketAddr>>>>);

    impl Resolve for At {
        async fn resolve(&self) -> Vec<Option<SocketAddr>> {
            self.0.lock().unwrap().clone()
        }
    }

    /// A server that answers every connection with one word.
    async fn says(word: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(word.as_bytes()).await.unwrap();
            }
        });
        (address, task)
    }

    /// A server that says one word and then nothing for ever.
    async fn holds(word: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(word.as_bytes()).await.unwrap();
                held.push(client);
            }
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_door_that_is_shut_refuses_at_once_and_ends_what_went_through_it() {
        // Takes connections and never says more than a word, as what is frozen behind the door.
        let (target, _task) = holds("word").await;
        let relay = Relay::open(LOOPBACK, At(Arc::new(Mutex::new(vec![Some(target)]))), places()).await.unwrap();
        let door = relay.address().unwrap();
        let running = tokio::spawn(async move { relay.run().await });
        let mut open = TcpStream::connect(door).await.unwrap();
        let mut word = [0; 4];
        open.read_exact(&mut word).await.unwrap();
        running.abort();
        let _ = running.await;
        let ended = timeout(CONNECT_LIMIT, open.read(&mut word)).await.expect("no connection hangs");
        assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0));
        let refused = timeout(CONNECT_LIMIT, TcpStream::connect(door)).await.expect("nobody waits");
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        // And it can be opened again, whatever of the old connections is left in the kernel.
        Relay::open(door, At(Arc::default()), places()).await.unwrap();
    }

    #[tokio::test]
    async fn it_is_idle_only_while_no_connection_is_open() {
        const IDLE: Duration = Duration::from_millis(300);
        let (target, holding) = holds("word").await;
        let relay = Arc::new(Relay::open(LOOPBACK, At(Arc::new(Mutex::new(vec![Some(target)]))), places()).await.unwrap());
        let door = relay.address().unwrap();
        let running = relay.clone();
        tokio::spawn(async move { running.run().await });
        let start = tokio::time::Instant::now();
        timeout(CONNECT_LIMIT, relay.idle(IDLE)).await.expect("nobody has come");
        assert!(start.elapsed() >= IDLE);
        let mut open = TcpStream::connect(door).await.unwrap();
        open.read_exact(&mut [0; 4]).await.unwrap();
        timeout(IDLE * 3, relay.idle(IDLE)).await.expect_err("somebody is there, though silent");
        // Either end may have something to say after the other has ended.
        drop(open);
        holding.abort();
        timeout(CONNECT_LIMIT, relay.idle(IDLE)).await.expect("nobody is left");
    }

    #[tokio::test]
    async fn connections_follow_the_target() {
        let place = Arc::new(Mutex::new(vec![]));
        let relay = Relay::open(LOOPBACK, At(place.clone()), places()).await.unwrap();
        let door = relay.address().unwrap();
        tokio::spawn(async move { relay.run().await });
        let ask = async || {
            let mut text = String::new();
            let mut stream = TcpStream::connect(door).await.unwrap();
            // Closed at once reads as an end or as a reset.
            let _ = timeout(CONNECT_LIMIT, stream.read_to_string(&mut text)).await.expect("no connection hangs");
            text
        };
        assert_eq!(ask().await, "");
        let (first, task) = says("first").await;
        *place.lock().unwrap() = vec![Some(first)];
        assert_eq!(ask().await, "first");
        task.abort();
        let _ = task.await;
        let (second, task) = says("second").await;
        *place.lock().unwrap() = vec![Some(second)];
        assert_eq!(ask().await, "second");
        // A way round, until the best way is open again.
        task.abort();
        let _ = task.await;
        let (third, _task) = says("third").await;
        *place.lock().unwrap() = vec![Some(second), None, Some(third)];
        assert_eq!(ask().await, "third");
        *place.lock().unwrap() = vec![Some(says("again").await.0), None, Some(third)];
        assert_eq!(ask().await, "again");
    }

    /// A way that says nothing at all: a listener whose backlog is full.
    async fn silent() -> (SocketAddr, Vec<TcpStream>, tokio::net::TcpListener) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            held.push(stream);
        }
        (address, held, listener)
    }

    #[tokio::test]
    async fn a_way_that_is_silent_does_not_keep_the_others_from_being_tried() {
        let (silent, _held, _listener) = silent().await;
        let (answers, _task) = says("word").await;
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let started = tokio::time::Instant::now();
        let (place, address, _) = first(vec![None, Some(silent), Some(closed), Some(answers)]).await.unwrap();
        assert_eq!((place, address), (3, answers));
        assert!(started.elapsed() < CONNECT_LIMIT, "{:?}", started.elapsed());
        // And where nothing is, nobody waits.
        let started = tokio::time::Instant::now();
        assert!(first(vec![Some(closed), None, Some(closed)]).await.is_none() && first(vec![]).await.is_none());
        assert!(started.elapsed() < SILENCE, "{:?}", started.elapsed());
    }
}
