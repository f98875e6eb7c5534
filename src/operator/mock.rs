//! A scripted API server for tests: each expected request in order, with its answer; and what a pass over its object would have seen.

use std::sync::Arc;
use std::time::Duration;

use hyper::http::{Request, Response};
use kube::Client;
use kube::client::Body;
use nestling_core::api::KindCluster;
use nestling_core::plan::observed::{Children, Logs, Observed, Turn, identity};
use nestling_core::plan::settings::Settings;
use serde_json::{Value, json};
use tower_test::mock::{self, Handle};

/// What a pass would have seen of this KindCluster, of which nothing is there yet.
pub fn seen(cluster: Value) -> Observed {
    let cluster: KindCluster = serde_json::from_value(cluster).unwrap();
    let settings = Settings { install: "reed".into(), clusters_namespace: "clusters".into(), ..Settings::default() };
    Observed {
        identity: identity(&cluster).unwrap(),
        cluster,
        settings: Arc::new(settings),
        children: Children::default(),
        report: None,
        logs: Logs::default(),
        host_node: None,
        turn: Turn::Granted,
    }
}

/// An answer.
pub struct Answer {
    code: u16,
    body: Value,
}

impl Answer {
    pub fn ok(body: Value) -> Self {
        Self { code: 200, body }
    }

    pub fn missing() -> Self {
        Self::refused(404, "NotFound", "not found")
    }

    pub fn refused(code: u16, reason: &str, message: &str) -> Self {
        Self {
            code,
            body: json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message, "details": {}}),
        }
    }

    /// The answer to a JSON patch whose `test` does not hold.
    pub fn failed_test() -> Self {
        Self::refused(422, "Invalid", "the server rejected our request due to an error in our request")
    }
}

/// The server's side.
pub struct Mock(Handle<Request<Body>, Response<Body>>);

impl Mock {
    pub fn new() -> (Client, Self) {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        (Client::new(service, "default"), Self(handle))
    }

    /// Expects one request and returns its body (`Null` if empty). Waits a minute of (paused) time at most.
    pub async fn expect(&mut self, method: &str, path: &str, answer: Answer) -> Value {
        let waiting_for = format!("{method} {path}");
        let next = tokio::time::timeout(Duration::from_mins(1), self.0.next_request()).await;
        let (request, send) = next.unwrap_or_else(|_| panic!("never called: {waiting_for}")).unwrap_or_else(|| panic!("client gone before {waiting_for}"));
        assert_eq!(format!("{} {}", request.method(), request.uri().path()), waiting_for);
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let body = Response::builder().status(answer.code).header("content-type", "application/json");
        send.send_response(body.body(Body::from(serde_json::to_vec(&answer.body).unwrap())).unwrap());
        if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() }
    }

    /// No further request comes.
    pub async fn done(mut self) {
        if let Ok(Some((request, _))) = tokio::time::timeout(Duration::from_millis(50), self.0.next_request()).await {
            panic!("unexpected: {} {}", request.method(), request.uri());
        }
    }
}
