//! `/livez`, `/readyz` and `/metrics`.
//!
//! *Live* is a process that answers at all: being restarted helps against nothing else. *Ready* is one that does its part, which for an operator
//! that is not the leader is to stand by. A process that is not ready says what it waits for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::{Metrics, Snapshot};

/// Named conditions of being ready.
#[derive(Clone, Debug, Default)]
pub struct Gates(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Gates {
    /// Something is to be waited for.
    pub fn close(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, false);
    }

    /// It has come.
    pub fn open(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, true);
    }

    /// What is still waited for.
    pub fn closed(&self) -> Vec<&'static str> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.iter().filter(|(_, open)| !**open).map(|(name, _)| *name).collect()
    }
}

/// What can be told, once there is something to tell.
type Source = Box<dyn Fn() -> Snapshot + Send + Sync>;

/// What the server needs.
#[derive(Default)]
pub struct Admin {
    /// The conditions of being ready.
    pub gates: Gates,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Where the numbers of the moment come from; nothing before this process leads.
    pub source: OnceLock<Source>,
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, admin: Arc<Admin>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    axum::serve(listener, router(admin)).await
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new().route("/livez", get(|| async { "alive\n" })).route("/readyz", get(readyz)).route("/metrics", get(metrics)).with_state(admin)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    let closed = admin.gates.closed();
    if closed.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", closed.join(", "))) }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> ([(&'static str, &'static str); 1], String) {
    let now = admin.source.get().map(|source| source()).unwrap_or_default();
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], admin.metrics.scrape(&now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    async fn ask(admin: &Arc<Admin>, path: &str) -> (u16, String) {
        let answer = router(Arc::clone(admin)).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_process_that_is_not_ready_says_what_it_waits_for() {
        let admin = Arc::new(Admin::default());
        admin.gates.close("the cache of pods");
        admin.gates.close("the lease");
        admin.gates.open("the lease");
        assert_eq!(ask(&admin, "/readyz").await, (503, "waiting for: the cache of pods\n".to_owned()));
        assert_eq!(ask(&admin, "/livez").await.0, 200);
        admin.gates.open("the cache of pods");
        assert_eq!(ask(&admin, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn metrics_are_of_the_moment() {
        let admin = Arc::new(Admin::default());
        assert!(ask(&admin, "/metrics").await.1.contains("nestling_queued 0"));
        let source: Source = Box::new(|| Snapshot { queued: 7, ..Snapshot::default() });
        assert!(admin.source.set(source).is_ok());
        assert!(ask(&admin, "/metrics").await.1.contains("nestling_queued 7"));
    }
}
