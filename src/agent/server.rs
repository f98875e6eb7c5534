//! What others may ask the agent: the operator over mTLS for the report and for logs, and to take orders and what is to be in the cluster; the kubelet in the clear for its health.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nestling_core::plan::wire::{
    AgentReport, BUNDLE_PATH, CONTENTS_LIMIT, CONTENTS_PATH, Contents, MAX_WAIT_SECONDS, OPERATOR_NAME, ORDERS_LIMIT, ORDERS_PATH, Orders, STATUS_PATH, Stage,
    keys,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::contents::Store;
use super::logs::Logs;
use super::report::Report;

/// Most connections at once. There is one operator.
const CONNECTIONS: usize = 32;

/// Time for the TLS handshake, and for the head of a request.
const LIMIT: Duration = Duration::from_secs(10);

/// Life of a connection; a client comes back. Bounds what a client that never ends can hold.
const CONNECTION_LIMIT: Duration = Duration::from_mins(10);

/// How often the agent looks whether its own keys have changed.
const RELOAD_EVERY: Duration = Duration::from_mins(1);

/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 16 << 10;

/// Age of the machine's last sign of life at which it counts as dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Why the server cannot be opened. Never holds a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or is no PEM.
    #[error("cannot read {file}: {source}")]
    File {
        /// Its name in the keys' directory.
        file: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not fit.
    #[error("the agent's certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority cannot be used.
    #[error("the agent's authority cannot be used: {0}")]
    Authority(#[from] rustls::server::VerifierBuilderError),
    /// The port cannot be had.
    #[error("cannot listen on port {port}: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// Opens a port on all addresses of the pod.
///
/// # Errors
/// [`Error::Listen`].
pub async fn listen(port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map_err(|source| Error::Listen { port, source })
}

/// TLS with a client certificate of the agent channel's own authority.
///
/// # Errors
/// The first file that does not do.
pub fn tls(keys_directory: &Path) -> Result<TlsAcceptor, Error> {
    let file = |file: &'static str| move |source| Error::File { file, source };
    let certificates =
        |name: &'static str| CertificateDer::pem_file_iter(keys_directory.join(name)).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(file(name));
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(keys::AGENT_AUTHORITY)? {
        authorities.add(certificate)?;
    }
    let chain = certificates(keys::AGENT_CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_file(keys_directory.join(keys::AGENT_KEY)).map_err(file(keys::AGENT_KEY))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone()).build()?;
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?.with_client_cert_verifier(clients).with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Keeps up with the files: the operator makes them anew from time to time, and the kubelet brings them here. What does not do is left out.
pub async fn reload(keys_directory: &Path, tls: &watch::Sender<TlsAcceptor>) -> Infallible {
    let mut files = channel_files(keys_directory);
    loop {
        sleep(RELOAD_EVERY).await;
        refresh(keys_directory, &mut files, tls);
    }
}

/// One look at the files.
fn refresh(keys_directory: &Path, last: &mut Option<[Vec<u8>; 3]>, sender: &watch::Sender<TlsAcceptor>) {
    let files = channel_files(keys_directory);
    if files.is_none() || files == *last {
        return;
    }
    match tls(keys_directory) {
        Ok(acceptor) => {
            tracing::info!("the keys of the channel to the operator have changed");
            sender.send_replace(acceptor);
            *last = files;
        }
        // Perhaps one was read before and another after a change: there is a next time.
        Err(error) => tracing::warn!("the new keys of the channel to the operator cannot be used: {error}"),
    }
}

/// The content of the files, for comparison only.
fn channel_files(keys_directory: &Path) -> Option<[Vec<u8>; 3]> {
    let read = |name: &str| std::fs::read(keys_directory.join(name)).ok();
    Some([read(keys::AGENT_AUTHORITY)?, read(keys::AGENT_CERTIFICATE)?, read(keys::AGENT_KEY)?])
}

/// Serves the report and the logs to the operator and takes its orders, for ever.
pub async fn serve_operator(listener: TcpListener, tls: watch::Receiver<TlsAcceptor>, contents: Store, logs: Arc<Logs>) {
    let router = router(contents, logs);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (tls, router) = (tls.borrow().clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = timeout(CONNECTION_LIMIT, serve(stream, tls, router)).await.unwrap_or(Ok(())) {
                tracing::debug!(%peer, "agent channel: {error}");
            }
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, router: Router) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = timeout(LIMIT, tls.accept(stream)).await??;
    let client = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    if !client.is_some_and(|certificate| is_operator(certificate)) {
        return Err(format!("the client is not {OPERATOR_NAME}").into());
    }
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(LIMIT.max(Duration::from_secs(MAX_WAIT_SECONDS))).max_buf_size(HEAD_LIMIT);
    http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await?;
    Ok(())
}

/// Whether a certificate, whose chain has been checked, is the operator's: by its name or one of its DNS names.
fn is_operator(certificate: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let names = certificate.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
    certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(OPERATOR_NAME))
        || names.into_iter().flatten().any(|name| matches!(name, GeneralName::DNSName(name) if *name == OPERATOR_NAME))
}

fn router(contents: Store, logs: Arc<Logs>) -> Router {
    let report = contents.report().clone();
    let logs = Router::new().route(BUNDLE_PATH, get(bundle)).with_state(logs);
    let contents = Router::new().route(CONTENTS_PATH, put(take_contents)).layer(DefaultBodyLimit::max(CONTENTS_LIMIT)).with_state(contents);
    let orders = Router::new().route(STATUS_PATH, get(status)).route(ORDERS_PATH, put(take_orders)).layer(DefaultBodyLimit::max(ORDERS_LIMIT));
    orders.with_state(report).merge(logs).merge(contents)
}

#[derive(Debug, Deserialize)]
struct LongPoll {
    after: Option<u64>,
    #[serde(default)]
    wait: u64,
}

/// Answers when the report is another than the one that the client has. Not only when it is newer: an agent that was
/// restarted counts from the beginning.
async fn status(State(report): State<Report>, Query(poll): Query<LongPoll>) -> Json<AgentReport> {
    let mut report = report.subscribe();
    if let Some(after) = poll.after {
        let limit = Duration::from_secs(poll.wait.min(MAX_WAIT_SECONDS));
        let _ = timeout(limit, report.wait_for(|report| report.revision != after)).await;
    }
    let report = report.borrow().clone();
    Json(report)
}

/// Notes the newest orders; whoever carries them out follows the report. Answers with what the report says then.
async fn take_orders(State(report): State<Report>, Json(orders): Json<Orders>) -> Json<AgentReport> {
    report.update_orders(|known| known.received = orders);
    let report = report.subscribe().borrow().clone();
    Json(report)
}

/// Takes what is to be in the cluster; whoever carries it out follows. Answers with what the report says then.
async fn take_contents(State(store): State<Store>, Json(contents): Json<Contents>) -> Json<AgentReport> {
    store.take(contents);
    let report = store.report().subscribe().borrow().clone();
    Json(report)
}

/// Gathers the logs and answers with them.
async fn bundle(State(logs): State<Arc<Logs>>) -> Result<Vec<u8>, StatusCode> {
    logs.archive().await.map_err(|error| {
        tracing::warn!("no archive of logs: {error}");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}

/// What the kubelet asks about.
#[derive(Clone, Debug)]
pub struct Health {
    /// The report.
    pub report: watch::Receiver<AgentReport>,
    /// When the machine's loop last went round.
    pub alive: watch::Receiver<Instant>,
}

/// Serves `/livez` and `/readyz` to the kubelet, for ever.
pub async fn serve_health(listener: TcpListener, health: Health) {
    let router = Router::new()
        .route("/livez", get(|State(health): State<Health>| async move { code(health.alive.borrow().elapsed() < SILENCE_LIMIT) }))
        .route("/readyz", get(|State(health): State<Health>| async move { code(is_ready(&health.report.borrow())) }))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("health: {error}");
    }
}

const fn code(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Whether the pod counts as ready. Only a signal: each change of it wakes the operator, so a node that fails must change it, and so must whatever
/// else the operator is to hear of a cluster at rest.
fn is_ready(report: &AgentReport) -> bool {
    let nodes_ready = !report.nodes.is_empty() && report.nodes.iter().all(|node| node.ready);
    report.stage == Stage::Serving && report.control_plane_ready && nodes_ready && report.dead_containers.is_empty() && report.storage_pressure.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use nestling_core::api::PowerState;
    use nestling_core::plan::wire::{DeadContainer, NodeReport, StoragePressure};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt;

    use crate::agent::report::tests::settings;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: String,
    }

    fn authority() -> Authority {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(parameters, key), certificate }
    }

    impl Authority {
        /// A certificate and its key.
        fn issue(&self, common_name: &str, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut parameters = CertificateParams::new(names).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, common_name);
            let key = KeyPair::generate().unwrap();
            (parameters.signed_by(&key, &self.issuer).unwrap(), key)
        }
    }

    #[rstest]
    #[case(OPERATOR_NAME, &[], true)]
    #[case("x", &["a", OPERATOR_NAME], true)]
    #[case("x", &["operator.nestling.evil"], false)]
    #[case("Operator.nestling", &[], false)]
    fn the_operator_is_known_by_name(#[case] common_name: &str, #[case] names: &[&str], #[case] expected: bool) {
        assert_eq!(is_operator(authority().issue(common_name, names).0.der()), expected);
        assert!(!is_operator(b"nonsense"));
    }

    async fn ask(router: &Router, path: &str) -> (StatusCode, Vec<u8>) {
        let answer = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        (answer.status(), to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_waits_for_another_revision() {
        let report = Report::new(&settings());
        let router = router(Store::new(report.clone()), logs(&report));
        let revision = |body: Vec<u8>| serde_json::from_slice::<AgentReport>(&body).unwrap().revision;
        let started = Instant::now();
        assert_eq!(revision(ask(&router, STATUS_PATH).await.1), 1);
        assert_eq!(revision(ask(&router, "/v1/status?after=99&wait=30").await.1), 1);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(revision(ask(&router, "/v1/status?after=1&wait=9999").await.1), 1);
        assert_eq!(started.elapsed(), Duration::from_secs(MAX_WAIT_SECONDS));
        let (answer, ()) = tokio::join!(ask(&router, "/v1/status?after=1&wait=30"), async { report.enter(Stage::Dockerd) });
        assert_eq!(revision(answer.1), 2);
        assert_eq!(ask(&router, "/v1/status?after=x").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&router, "/v1/secrets").await.0, StatusCode::NOT_FOUND);
    }

    fn logs(report: &Report) -> Arc<Logs> {
        Arc::new(Logs::new("demo", report.subscribe()))
    }

    #[tokio::test]
    async fn orders_are_read_with_care_and_taken_any_number_of_times() {
        let report = Report::new(&settings());
        let router = router(Store::new(report.clone()), logs(&report));
        let put = async |body: String| {
            let request = Request::put(ORDERS_PATH).header("content-type", "application/json").body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            (answer.status(), to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec())
        };
        for _ in 0..2 {
            let (code, body) = put(r#"{"power":"Frozen","later":1}"#.to_owned()).await;
            assert_eq!(code, StatusCode::OK);
            let answer: AgentReport = serde_json::from_slice(&body).unwrap();
            let orders = answer.orders.unwrap();
            assert_eq!((answer.revision, orders.received.power, orders.carried_out.power), (2, PowerState::Frozen, PowerState::Running));
        }
        for (body, expected) in [
            (r#"{"power":"Dreaming"}"#.to_owned(), StatusCode::UNPROCESSABLE_ENTITY),
            ("no".to_owned(), StatusCode::BAD_REQUEST),
            (format!(r#"{{"x":"{}"}}"#, "x".repeat(ORDERS_LIMIT)), StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            assert_eq!(put(body).await.0, expected);
        }
        assert_eq!(report.subscribe().borrow().revision, 2, "what is refused changes nothing");
    }

    #[test]
    fn what_goes_wrong_at_rest_is_seen() {
        let node = |ready| NodeReport { name: "n".into(), control_plane: true, ready };
        let mut report = AgentReport { stage: Stage::Serving, control_plane_ready: true, nodes: vec![node(true)], ..AgentReport::default() };
        assert!(is_ready(&report));
        report.nodes.push(node(false));
        assert!(!is_ready(&report));
        report.nodes.pop();
        report.storage_pressure = Some(StoragePressure { used_bytes: 9, limit_bytes: 10 });
        assert!(!is_ready(&report));
        report.storage_pressure = None;
        report.dead_containers.push(DeadContainer { name: "n".into(), exit_code: 137, starts: 1 });
        assert!(!is_ready(&report));
        report.dead_containers.clear();
        assert!(is_ready(&report));
        report.nodes.clear();
        assert!(!is_ready(&report));
    }

    /// The first bytes of the answer that a client with this certificate gets, none if it is turned away.
    async fn answer(ours: &Authority, client: Option<(rcgen::Certificate, KeyPair)>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = ours.issue("agent", &["uid.agent.nestling"]);
        for (file, text) in
            [(keys::AGENT_AUTHORITY, ours.certificate.clone()), (keys::AGENT_CERTIFICATE, certificate.pem()), (keys::AGENT_KEY, key.serialize_pem())]
        {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_sender, acceptor) = watch::channel(tls(directory.path()).unwrap());
        let report = Report::new(&settings());
        tokio::spawn(serve_operator(listener, acceptor, Store::new(report.clone()), logs(&report)));

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ours.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match client {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate.der().clone()], PrivateKeyDer::from(key)).unwrap(),
            None => config.with_no_client_auth(),
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(address).await.unwrap();
        let Ok(mut stream) = connector.connect("uid.agent.nestling".try_into().unwrap(), stream).await else { return String::new() };
        let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn new_keys_are_taken_over_when_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
        let (ours, next) = (authority(), authority());
        let (certificate, key) = ours.issue("agent", &["uid.agent.nestling"]);
        for (file, text) in [(keys::AGENT_AUTHORITY, &ours.certificate), (keys::AGENT_CERTIFICATE, &certificate.pem()), (keys::AGENT_KEY, &key.serialize_pem())]
        {
            write(file, text);
        }
        let (sender, mut acceptor) = watch::channel(tls(directory.path()).unwrap());
        let mut files = channel_files(directory.path());
        let mut changed = || {
            refresh(directory.path(), &mut files, &sender);
            let changed = acceptor.has_changed().unwrap();
            acceptor.mark_unchanged();
            changed
        };
        assert!(!changed());
        let (certificate, key) = next.issue("agent", &["uid.agent.nestling"]);
        write(keys::AGENT_CERTIFICATE, &certificate.pem());
        assert!(!changed(), "a certificate without its key");
        write(keys::AGENT_KEY, &key.serialize_pem());
        assert!(changed() && !changed());
        write(keys::AGENT_AUTHORITY, &(next.certificate + &ours.certificate));
        assert!(changed());
        std::fs::remove_file(directory.path().join(keys::AGENT_KEY)).unwrap();
        assert!(!changed());
    }

    #[tokio::test]
    async fn only_the_operator_gets_an_answer() {
        let (ours, other) = (authority(), authority());
        let good = answer(&ours, Some(ours.issue(OPERATOR_NAME, &[]))).await;
        assert!(good.starts_with("HTTP/1.1 200") && good.contains("\"attempt\":2"), "{good}");
        assert_eq!(answer(&ours, Some(ours.issue("somebody", &["else"]))).await, "");
        assert_eq!(answer(&ours, Some(other.issue(OPERATOR_NAME, &[]))).await, "");
        assert_eq!(answer(&ours, None).await, "");
    }
}
