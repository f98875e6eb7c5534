//! Asking one agent for its report and its logs, and giving it orders and what is to be in its cluster: HTTP over mutual TLS. What it answers is untrusted: users are root in its pod.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use nestling_core::plan::wire::{
    AgentReport, BUNDLE_LIMIT, BUNDLE_PATH, BUNDLE_SECONDS, CONTENTS_PATH, Contents, ORDERS_PATH, Orders, REPORT_LIMIT, STATUS_PATH,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::pki::{Authority, Issued};

/// Bound of connecting, TLS included.
const CONNECT: Duration = Duration::from_secs(5);

/// How long the agent may wait for something new before it answers.
const WAIT: Duration = Duration::from_secs(20);

/// Bound of an answer beyond [`WAIT`].
const GRACE: Duration = Duration::from_secs(10);

/// Whom to ask and what to believe.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// UID of the pod.
    pub pod_uid: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The name in its certificate.
    pub server_name: String,
    /// UID of the `KindCluster` it must work for.
    pub cluster_uid: String,
    /// The attempt that it must be.
    pub attempt: i64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection.
    #[error("failed to connect to the agent: {0}")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection broke.
    #[error("failed to ask the agent: {0}")]
    Broken(#[source] hyper::Error),
    /// No answer in time.
    #[error("no answer while waiting for the agent")]
    TimedOut,
    /// An answer other than a report.
    #[error("the agent answers with status {0}")]
    Refused(u16),
    /// A report that is too large, not readable or not this cluster's.
    #[error("the agent's answer is not acceptable: {0}")]
    Invalid(String),
}

impl AgentError {
    /// Label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::TimedOut => "timeout",
            Self::Refused(_) => "refused",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// The operator's side of the channel to all agents.
pub struct AgentClient(Mutex<TlsConnector>);

/// An open connection; closed when dropped.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl AgentClient {
    /// Believes certificates of `agents` and of the authority before it only, and shows `own`.
    pub fn new(agents: &Authority, own: &Issued) -> Result<Self, rustls::Error> {
        Ok(Self(Mutex::new(connector(agents, own)?)))
    }

    /// From now on believes these and shows that. Open connections stay.
    pub fn adopt(&self, agents: &Authority, own: &Issued) -> Result<(), rustls::Error> {
        let connector = connector(agents, own)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = connector;
        Ok(())
    }

    /// Asks for a report newer than revision `after`; `None`: for whatever there is, at once.
    pub async fn ask(&self, connection: &mut Option<Connection>, target: &Target, after: Option<u64>) -> Result<AgentReport, AgentError> {
        let mut open = match connection.take().filter(|open| !open.sender.is_closed()) {
            Some(open) => open,
            None => self.connect(target).await?,
        };
        let wait = after.map_or(Duration::ZERO, |_| WAIT);
        let uri = format!("{STATUS_PATH}?after={}&wait={}", after.unwrap_or(0), wait.as_secs());
        let request = Request::get(uri).header(HOST, &target.server_name).body(Full::default());
        let report = timeout(wait + GRACE, exchange(&mut open, target, request)).await.map_err(|_| AgentError::TimedOut)??;
        *connection = Some(open);
        Ok(report)
    }

    /// Gives orders, over a connection of their own; answers with the report as it is then.
    pub async fn order(&self, target: &Target, orders: &Orders) -> Result<AgentReport, AgentError> {
        self.put(target, ORDERS_PATH, orders).await
    }

    /// Gives what is to be in the cluster, over a connection of its own; answers with the report as it is then.
    pub async fn fill(&self, target: &Target, contents: &Contents) -> Result<AgentReport, AgentError> {
        self.put(target, CONTENTS_PATH, contents).await
    }

    async fn put<T: Serialize>(&self, target: &Target, path: &str, document: &T) -> Result<AgentReport, AgentError> {
        let body = serde_json::to_vec(document).map_err(|error| AgentError::Invalid(error.to_string()))?;
        let request = Request::put(path).header(HOST, &target.server_name).header(CONTENT_TYPE, "application/json").body(Full::from(body));
        let mut open = self.connect(target).await?;
        timeout(GRACE, exchange(&mut open, target, request)).await.map_err(|_| AgentError::TimedOut)?
    }

    /// Asks for the logs of a failed attempt, over a connection of their own: an archive that nobody has looked into.
    pub async fn logs(&self, target: &Target) -> Result<Bytes, AgentError> {
        let request = Request::get(BUNDLE_PATH).header(HOST, &target.server_name).body(Full::default());
        let mut open = self.connect(target).await?;
        let limit = Duration::from_secs(BUNDLE_SECONDS) + GRACE;
        timeout(limit, fetch(&mut open, request, BUNDLE_LIMIT)).await.map_err(|_| AgentError::TimedOut)?
    }

    async fn connect(&self, target: &Target) -> Result<Connection, AgentError> {
        timeout(CONNECT, self.dial(target)).await.map_err(|_| AgentError::Unreachable("no connection in time".into()))?
    }

    async fn dial(&self, target: &Target) -> Result<Connection, AgentError> {
        let unreachable = |error: std::io::Error| AgentError::Unreachable(error.into());
        let name = ServerName::try_from(target.server_name.clone()).map_err(|error| AgentError::Unreachable(error.into()))?;
        let stream = TcpStream::connect(target.address).await.map_err(unreachable)?;
        let tls = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stream = tls.connect(name, stream).await.map_err(unreachable)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(AgentError::Broken)?;
        let driver = tokio::spawn(async move {
            // How it ends shows in the sender.
            let _ = driver.await;
        });
        Ok(Connection { sender, driver: driver.abort_handle() })
    }
}

fn connector(agents: &Authority, own: &Issued) -> Result<TlsConnector, rustls::Error> {
    let unreadable = |what: &str| rustls::Error::General(format!("{what} cannot be read"));
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| unreadable("a certificate"));
    let mut roots = RootCertStore::empty();
    let mut shown = vec![certificate(&own.certificate)?];
    roots.add(certificate(&agents.certificate)?)?;
    if let Some(before) = &agents.before {
        roots.add(certificate(&before.certificate)?)?;
        // For agents that know only the authority before.
        shown.push(certificate(&before.successor)?);
    }
    let key = PrivateKeyDer::from_pem_slice(own.key.expose().as_bytes()).map_err(|_| unreadable("the key"))?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(shown, key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

type Made = hyper::http::Result<Request<Full<Bytes>>>;

/// A report, in answer to this.
async fn exchange(open: &mut Connection, target: &Target, request: Made) -> Result<AgentReport, AgentError> {
    read_report(&fetch(open, request, REPORT_LIMIT).await?, target)
}

/// What is answered, if it is no larger than `limit` bytes.
async fn fetch(open: &mut Connection, request: Made, limit: usize) -> Result<Bytes, AgentError> {
    let request = request.map_err(|error| AgentError::Invalid(error.to_string()))?;
    open.sender.ready().await.map_err(AgentError::Broken)?;
    let answer = open.sender.send_request(request).await.map_err(AgentError::Broken)?;
    if answer.status() != hyper::StatusCode::OK {
        return Err(AgentError::Refused(answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), limit).collect().await.map_err(|error| AgentError::Invalid(error.to_string()))?;
    Ok(body.to_bytes())
}

/// Reads a report and checks whose it is.
fn read_report(bytes: &[u8], target: &Target) -> Result<AgentReport, AgentError> {
    // Where, not what: the text is somebody else's.
    let report: AgentReport = serde_json::from_slice(bytes).map_err(|error| AgentError::Invalid(format!("line {} column {}", error.line(), error.column())))?;
    if report.cluster_uid != target.cluster_uid || report.attempt != target.attempt {
        return Err(AgentError::Invalid("it is another cluster's".to_owned()));
    }
    Ok(report)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::convert::Infallible;

    use hyper::service::service_fn;
    use hyper::{Response, StatusCode};
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::Pod;
    use nestling_core::api::PowerState;
    use nestling_core::plan::names::Identity;
    use nestling_core::plan::wire::keys;
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use crate::operator::key::Key;
    use crate::operator::pki::{cluster_keys, operator_certificate};

    pub const UID: &str = "0b5c5c4e-0000-4000-8000-000000000001";

    /// The cluster that the agent serves.
    pub fn identity() -> Identity {
        Identity { namespace: "marsh".into(), name: "crane".into(), uid: UID.into() }
    }

    pub fn key() -> Key {
        Key { namespace: "marsh".into(), name: "crane".into() }
    }

    /// A pod of this UID, of this attempt.
    pub fn pod(uid: &str, attempt: i64) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": uid, "labels": {"nestling.dev/attempt": attempt.to_string()}}})).unwrap()
    }

    /// An agent on loopback that answers each request with what `body` says.
    pub async fn fake_agent(agents: &Authority, body: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> SocketAddr {
        fake_server(agents, move |uri, _| (StatusCode::OK, body(uri))).await
    }

    /// An agent on loopback that answers each request, by its path and content.
    pub async fn fake_server(agents: &Authority, answer: impl Fn(&str, &str) -> (StatusCode, String) + Clone + Send + Sync + 'static) -> SocketAddr {
        let made = cluster_keys(&identity(), agents, Timestamp::now()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&made[keys::AGENT_AUTHORITY].0) {
            roots.add(authority.unwrap()).unwrap();
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(&made[keys::AGENT_CERTIFICATE].0).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&made[keys::AGENT_KEY].0).unwrap();
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (answer, uri) = (answer.clone(), request.uri().to_string());
                        async move {
                            let content = request.into_body().collect().await.unwrap().to_bytes();
                            let (code, text) = answer(&uri, &String::from_utf8_lossy(&content));
                            let mut response = Response::new(Full::new(Bytes::from(text)));
                            *response.status_mut() = code;
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        address
    }

    pub fn client(agents: &Authority) -> AgentClient {
        AgentClient::new(agents, &operator_certificate(agents, Timestamp::now()).unwrap()).unwrap()
    }

    pub fn target(address: SocketAddr) -> Target {
        Target { pod_uid: "pod".into(), address, server_name: format!("{UID}.agent.nestling"), cluster_uid: UID.into(), attempt: 1 }
    }

    pub fn report(revision: u64) -> String {
        format!(r#"{{"revision":{revision},"clusterUid":"{UID}","attempt":1,"stage":"Dockerd"}}"#)
    }

    fn agents() -> Authority {
        Authority::new("agents", Timestamp::now()).unwrap()
    }

    #[tokio::test]
    async fn a_report_comes_over_mutual_tls_and_the_connection_is_kept() {
        let agents = agents();
        let address = fake_agent(&agents, |uri| if uri == "/v1/status?after=0&wait=0" { report(1) } else { report(2) }).await;
        let client = client(&agents);
        let mut connection = None;
        assert_eq!(client.ask(&mut connection, &target(address), None).await.unwrap().revision, 1);
        assert!(connection.is_some());
        assert_eq!(client.ask(&mut connection, &target(address), Some(1)).await.unwrap().revision, 2);
    }

    #[tokio::test]
    async fn orders_are_answered_with_the_report() {
        let agents = agents();
        let address = fake_server(&agents, |uri, content| {
            assert_eq!((uri, content), ("/v1/orders", r#"{"power":"Frozen"}"#));
            (StatusCode::OK, report(7))
        })
        .await;
        let orders = Orders { power: PowerState::Frozen, ..Orders::default() };
        assert_eq!(client(&agents).order(&target(address), &orders).await.unwrap().revision, 7);
        // An agent of a release that takes none.
        let address = fake_server(&agents, |_, _| (StatusCode::NOT_FOUND, String::new())).await;
        assert!(matches!(client(&agents).order(&target(address), &orders).await, Err(AgentError::Refused(404))));
    }

    #[tokio::test]
    async fn another_authoritys_agent_is_not_believed_nor_one_of_another_name() {
        let agents = agents();
        let address = fake_agent(&Authority::new("others", Timestamp::now()).unwrap(), |_| report(1)).await;
        let error = client(&agents).ask(&mut None, &target(address), None).await.unwrap_err();
        assert_eq!(error.reason(), "unreachable", "{error}");
        let address = fake_agent(&agents, |_| report(1)).await;
        let other = Target { server_name: "other.agent.nestling".into(), ..target(address) };
        let error = client(&agents).ask(&mut None, &other, None).await.unwrap_err();
        assert_eq!(error.reason(), "unreachable", "{error}");
    }

    #[tokio::test]
    async fn large_unreadable_and_foreign_reports_are_refused() {
        let agents = agents();
        let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(REPORT_LIMIT));
        let foreign = report(1).replace(UID, "other");
        let earlier = report(1).replace(r#""attempt":1"#, r#""attempt":2"#);
        for body in [large, foreign, earlier, "no".to_owned()] {
            let shown = body.clone();
            let address = fake_agent(&agents, move |_| body.clone()).await;
            let error = client(&agents).ask(&mut None, &target(address), None).await.unwrap_err();
            assert_eq!(error.reason(), "invalid", "{} {error}", &shown[..shown.len().min(80)]);
        }
    }

    #[tokio::test]
    async fn agents_of_both_authorities_and_the_operator_know_each_other_while_they_change() {
        let old = agents();
        let before = fake_agent(&old, |_| report(1)).await;
        let channel = client(&old);
        let new = old.successor("agents 2", Timestamp::now()).unwrap();
        let after = fake_agent(&new, |_| report(2)).await;
        let refused = channel.ask(&mut None, &target(after), None).await.unwrap_err();
        assert_eq!(refused.reason(), "unreachable", "who has not heard of the new one does not believe it");
        channel.adopt(&new, &operator_certificate(&new, Timestamp::now()).unwrap()).unwrap();
        for (address, revision) in [(before, 1), (after, 2)] {
            assert_eq!(channel.ask(&mut None, &target(address), None).await.unwrap().revision, revision);
        }
    }
}
