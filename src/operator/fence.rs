//! No write without the lease, and no orders to agents: a client that refuses to send one when the last renewal is too long ago.
//!
//! A process that was stopped for a while (SIGSTOP, a frozen machine, a starved node) goes on exactly where it was, before any timer has told it
//! that somebody else leads by now. So the age of the lease is looked at for each request, right before it is sent. What was sent before that and
//! arrives late is refused by its preconditions or changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Request;
use hyper::http::Method;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tokio::time::{Duration, Instant};
use tower::filter::FilterLayer;

/// A request that was not sent.
#[derive(Debug, thiserror::Error)]
#[error("not sent: the lease was last renewed {}s ago", age.as_secs())]
pub struct NotLeading {
    age: Duration,
}

/// When the lease was last renewed, and how long that holds.
#[derive(Clone, Debug)]
pub struct Fence {
    renewed: Arc<Mutex<Instant>>,
    good_for: Duration,
}

impl Fence {
    /// A lease that was acquired by a call begun at this time.
    pub fn new(acquired: Instant, good_for: Duration) -> Self {
        Self { renewed: Arc::new(Mutex::new(acquired)), good_for }
    }

    /// It was renewed by a call begun at this time.
    pub fn renew(&self, begun: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = begun;
    }

    /// Time since the last renewal.
    pub fn age(&self) -> Duration {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether something may be changed now, here or elsewhere.
    ///
    /// # Errors
    /// If the lease is too old.
    pub fn check(&self) -> Result<(), NotLeading> {
        let age = self.age();
        if age < self.good_for { Ok(()) } else { Err(NotLeading { age }) }
    }

    /// Lets a request through, unless it may change something and the lease is too old.
    fn pass<B>(&self, request: Request<B>) -> Result<Request<B>, NotLeading> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if !reads {
            self.check()?;
        }
        Ok(request)
    }

    /// A client for everything that only the leader may do.
    ///
    /// # Errors
    /// If the configuration is of no use, such as a certificate that cannot be read.
    pub fn client(&self, config: Config) -> Result<Client, kube::Error> {
        let fence = self.clone();
        let layer = FilterLayer::new(move |request: Request<Body>| fence.pass(request));
        Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(Method::PATCH, 9, true)]
    #[case(Method::PATCH, 10, false)]
    #[case(Method::POST, 10, false)]
    #[case(Method::PUT, 10, false)]
    #[case(Method::DELETE, 10, false)]
    #[case(Method::GET, 10, true)]
    #[tokio::test(start_paused = true)]
    async fn writes_need_a_lease(#[case] method: Method, #[case] age: u64, #[case] passes: bool) {
        let fence = Fence::new(Instant::now(), Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(age)).await;
        let request = || Request::builder().method(method.clone()).body(()).unwrap();
        assert_eq!(fence.pass(request()).is_ok(), passes);
        fence.renew(Instant::now());
        assert!(fence.pass(request()).is_ok());
    }
}
