//! FAKE: the kubelet and the agents of a host without nodes. They do what a test says, at once, so that histories which no real cluster can be made
//! to take on command (an agent that fails just so, an operator killed behind each step) can be tried on a real API server.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{PowerState, labels};
use nestling_core::plan::wire::{
    AgentFailure, AgentReport, BUNDLE_PATH, CONTENTS_PATH, Contents, ContentsReport, GateReport, ManifestReport, ManifestState, NodeReport, ORDERS_PATH,
    Orders, OrdersReport, PolicyProbe, STATUS_PATH, Stage, keys,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::operator::CLUSTERS_NAMESPACE;

/// The node of all pods.
pub const NODE: &str = "fake";

/// What comes before the longest stage.
const ON_THE_WAY: [Stage; 7] =
    [Stage::Cgroups, Stage::Network, Stage::Dockerd, Stage::NodeImage, Stage::EnsuringNodeImage, Stage::PreparingNodes, Stage::WritingConfiguration];

/// How an agent turns out.
#[derive(Clone, Debug, PartialEq)]
pub enum Luck {
    /// The cluster comes up.
    Ready,
    /// The cluster comes up, with an agent of a release that takes no orders.
    ReadyButOutdated,
    /// kind fails so.
    Fails(Reason, String),
    /// The pod ends without a word.
    Crashes,
    /// Nothing ever happens.
    Hangs,
}

/// The fake. Ends with its runtime.
pub struct FakeHost {
    /// Where all agents are.
    pub address: SocketAddr,
    agents: Arc<Agents>,
    pods: Api<Pod>,
    luck: Arc<Mutex<HashMap<String, Luck>>>,
    /// How many pods have been started, by cluster name.
    pub started: Arc<Mutex<HashMap<String, usize>>>,
    /// Whether the node has gone silent: pods that are deleted do not end.
    pub silent: Arc<AtomicBool>,
    /// Whether agents keep a request for logs waiting.
    pub mute: Arc<AtomicBool>,
    /// The largest number of pods that were being created at one time.
    pub most_creating: Arc<Mutex<usize>>,
    /// Whether agents tell of every stage on their way, as real ones do; of the longest only, if not.
    pub thorough: Arc<AtomicBool>,
    /// When the kubelet found the pod of a cluster ready, by cluster name.
    pub pods_ready: Arc<Mutex<HashMap<String, Instant>>>,
}

#[derive(Default)]
struct Agents {
    /// What they all do TLS with. They ask for the operator's certificate; who may show which is tested with the real agent.
    tls: OnceLock<TlsAcceptor>,
    pods_ready: Arc<Mutex<HashMap<String, Instant>>>,
    thorough: Arc<AtomicBool>,
    mute: Arc<AtomicBool>,
    /// By server name.
    certificates: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    /// The newest agent of each cluster, by UID.
    reports: Mutex<HashMap<String, watch::Sender<AgentReport>>>,
    /// What agents were given to be in their clusters, in order.
    contents: Mutex<Vec<Contents>>,
    /// Nested UIDs of the clusters that are on volumes, by UID.
    volumes: Mutex<HashMap<String, String>>,
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Agents")
    }
}

impl ResolvesServerCert for Agents {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificates.lock().unwrap().get(hello.server_name()?).cloned()
    }
}

impl FakeHost {
    /// Starts it.
    pub async fn start(client: Client) -> Self {
        let agents = Arc::new(Agents::default());
        let luck: Arc<Mutex<HashMap<String, Luck>>> = Arc::default();
        let started: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let most_creating: Arc<Mutex<usize>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent: Arc<AtomicBool> = Arc::default();
        let mute = agents.mute.clone();
        let pods_ready = agents.pods_ready.clone();
        let thorough = agents.thorough.clone();
        let pods = Api::namespaced(client.clone(), CLUSTERS_NAMESPACE);
        let node = json!({"metadata": {"name": NODE}});
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        tokio::spawn(kubelet(client, agents.clone(), luck.clone(), started.clone(), most_creating.clone(), silent.clone()));
        tokio::spawn(serve(listener, agents.clone()));
        Self { address, agents, pods, luck, started, silent, mute, most_creating, thorough, pods_ready }
    }

    /// Changes what the agent of this cluster says, and then what the kubelet finds of its pod.
    pub async fn change(&self, cluster: &str, ready: bool, change: impl FnOnce(&mut AgentReport)) {
        let of_cluster = ListParams::default().labels(&format!("{}={cluster}", labels::CLUSTER_NAME));
        let pod = self.pods.list(&of_cluster).await.unwrap().items.remove(0);
        self.agents.reports.lock().unwrap()[&pod.labels()[labels::CLUSTER_UID]].send_modify(|report| {
            report.revision += 1;
            change(report);
        });
        let found = json!({"status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        self.pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(found)).await.unwrap();
    }

    /// What agents were given to be in their clusters so far, in order.
    pub fn contents(&self) -> Vec<Contents> {
        self.agents.contents.lock().unwrap().clone()
    }

    /// How the next agents of this cluster turn out; `Ready` if nothing is said.
    pub fn set_luck(&self, cluster: &str, luck: Luck) {
        self.luck.lock().unwrap().insert(cluster.to_owned(), luck);
    }
}

async fn kubelet(
    client: Client,
    agents: Arc<Agents>,
    luck: Arc<Mutex<HashMap<String, Luck>>>,
    started: Arc<Mutex<HashMap<String, usize>>>,
    most_creating: Arc<Mutex<usize>>,
    silent: Arc<AtomicBool>,
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), CLUSTERS_NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client, CLUSTERS_NAMESPACE);
    let creating: Arc<Mutex<std::collections::HashSet<String>>> = Arc::default();
    let mut known = std::collections::HashSet::new();
    let mut events = watcher(pods.clone(), watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        let pod = match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => pod,
            Ok(watcher::Event::Delete(pod)) => {
                creating.lock().unwrap().remove(&pod.uid().unwrap());
                continue;
            }
            Ok(_) => continue,
            // Without a pause this would spin when the API server has ended before us.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let uid = pod.uid().unwrap();
        if pod.metadata.deletion_timestamp.is_some() {
            creating.lock().unwrap().remove(&uid);
            if silent.load(Ordering::Relaxed) {
                continue;
            }
            let pods = pods.clone();
            tokio::spawn(async move {
                // A real one takes its time, too.
                tokio::time::sleep(Duration::from_millis(100)).await;
                // Not another one of that name, which may be there by now.
                let this = Preconditions { uid: Some(uid), ..Preconditions::default() };
                let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0).preconditions(this)).await;
            });
            continue;
        }
        if !known.insert(uid.clone()) {
            continue;
        }
        {
            let mut creating = creating.lock().unwrap();
            creating.insert(uid.clone());
            let mut most = most_creating.lock().unwrap();
            *most = (*most).max(creating.len());
        }
        *started.lock().unwrap().entry(pod.labels()[labels::CLUSTER_NAME].clone()).or_default() += 1;
        let luck = luck.lock().unwrap().get(&pod.labels()[labels::CLUSTER_NAME]).cloned().unwrap_or(Luck::Ready);
        let (pods, secrets, agents, creating) = (pods.clone(), secrets.clone(), agents.clone(), creating.clone());
        tokio::spawn(async move {
            let ready = run(&pods, &secrets, &agents, &pod, luck).await;
            if ready {
                creating.lock().unwrap().remove(&uid);
            }
        });
    }
}

/// One pod's life. Answers whether it became a cluster.
async fn run(pods: &Api<Pod>, secrets: &Api<Secret>, agents: &Arc<Agents>, pod: &Pod, luck: Luck) -> bool {
    let name = pod.name_any();
    let uid = pod.labels()[labels::CLUSTER_UID].clone();
    let attempt: i64 = pod.labels()[labels::ATTEMPT].parse().unwrap();
    // Bound to a node, so that deletion waits for the kubelet.
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}});
    let _: Result<serde_json::Value, _> = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    let secret_name = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap().iter().find_map(|volume| volume.secret.as_ref()?.secret_name.clone()).unwrap();
    let Ok(secret) = secrets.get(&secret_name).await else { return false };
    let data = secret.data.unwrap();
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&data[keys::AGENT_CERTIFICATE].0).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&data[keys::AGENT_KEY].0).unwrap();
    let signing = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    agents.tls.get_or_init(|| acceptor(agents, &data[keys::AGENT_AUTHORITY].0));
    agents.certificates.lock().unwrap().insert(format!("{uid}.agent.nestling"), Arc::new(CertifiedKey::new(certificates, signing)));
    let (sender, _) =
        watch::channel(AgentReport { schema: 1, revision: 1, cluster_uid: uid.clone(), attempt, stage: Stage::Preflight, ..AgentReport::default() });
    if luck != Luck::ReadyButOutdated {
        sender.send_modify(|report| {
            report.cgroup_v1 = Some(true);
            report.policy_probe = PolicyProbe::Blocked;
            report.orders = Some(OrdersReport::default());
            report.open_ports = Some(BTreeSet::new());
            report.contents = Some(ContentsReport::default());
        });
    }
    agents.reports.lock().unwrap().insert(uid.clone(), sender.clone());

    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
        "containerStatuses": [{"name": "cluster", "ready": false, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}]}});
    let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
    let say = |change: &dyn Fn(&mut AgentReport)| {
        sender.send_modify(|report| {
            report.revision += 1;
            change(report);
        });
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let resumes = nestling_core::plan::objects::resumes(pod);
    if agents.thorough.load(Ordering::Relaxed) {
        for stage in ON_THE_WAY {
            say(&|report| report.stage = stage);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    say(&|report| report.stage = if resumes { Stage::Resuming } else { Stage::StartingControlPlane });
    tokio::time::sleep(Duration::from_millis(100)).await;
    match luck {
        Luck::Hangs => {}
        Luck::Fails(reason, message) => say(&|report| {
            report.stage = Stage::Failed;
            report.failure = Some(AgentFailure { reason, message: message.clone(), log_tail: "the last line of evidence".into() });
        }),
        Luck::Crashes => {
            let terminated = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "cluster", "ready": false, "restartCount": 0, "image": "i",
                "imageID": "i", "state": {"terminated": {"exitCode": 139, "reason": "Error"}}}]}});
            let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(terminated)).await;
        }
        Luck::Ready | Luck::ReadyButOutdated => {
            let nested = {
                let mut volumes = agents.volumes.lock().unwrap();
                if !resumes {
                    volumes.insert(uid.clone(), format!("nested-{attempt}"));
                }
                volumes.get(&uid).cloned().expect("a pod was told to bring back what has never been")
            };
            say(&|report| {
                report.stage = Stage::Serving;
                report.control_plane_ready = true;
                report.nested_uid = Some(nested.clone());
                report.server_version = Some("v1.34.4".into());
                report.kind_version = Some("v0.33.0".into());
                report.nodes = vec![NodeReport { name: "n-control-plane".into(), control_plane: true, ready: true }];
            });
            let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "cluster", "ready": true, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}}]}});
            let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(ready)).await;
            agents.pods_ready.lock().unwrap().insert(pod.labels()[labels::CLUSTER_NAME].clone(), Instant::now());
            return true;
        }
    }
    false
}

#[derive(serde::Deserialize)]
struct Poll {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: u64,
}

/// Takes orders, and carries them out a moment later.
async fn take_orders(State(report): State<watch::Sender<AgentReport>>, Json(orders): Json<Orders>) -> Json<AgentReport> {
    report.send_modify(|report| {
        report.revision += 1;
        let known = report.orders.get_or_insert_default();
        known.received = orders.clone();
        report.control_plane_ready &= known.carried_out.power == orders.power;
    });
    let carried_out = report.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        carried_out.send_modify(|report| {
            report.revision += 1;
            report.control_plane_ready = orders.power == PowerState::Running;
            report.open_ports = Some(if report.control_plane_ready { orders.ports.clone() } else { BTreeSet::new() });
            report.orders.get_or_insert_default().carried_out = orders;
        });
    });
    let now = report.borrow().clone();
    Json(now)
}

/// Takes contents, and has all of it in the cluster a moment later.
async fn take_contents(State((report, agents)): State<(watch::Sender<AgentReport>, Arc<Agents>)>, Json(contents): Json<Contents>) -> Json<AgentReport> {
    let of_state = |state: ManifestState, met: bool| ContentsReport {
        received: contents.edition.clone(),
        manifests: contents.manifests.iter().map(|manifest| ManifestReport { name: manifest.name.clone(), state, message: String::new() }).collect(),
        gates: nestling_core::plan::contents::gates(&contents.readiness)
            .iter()
            .map(|gate| GateReport { gate: gate.to_string(), met, message: String::new() })
            .collect(),
    };
    let (now, then) = (of_state(ManifestState::Applying, false), of_state(ManifestState::Applied, true));
    agents.contents.lock().unwrap().push(contents);
    let say = |report: &watch::Sender<AgentReport>, said: ContentsReport| {
        report.send_modify(|report| {
            report.revision += 1;
            report.contents = Some(said);
        });
    };
    say(&report, now);
    let answer = report.borrow().clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(&report, then);
    });
    Json(answer)
}

async fn status(State(report): State<watch::Sender<AgentReport>>, Query(poll): Query<Poll>) -> Json<AgentReport> {
    let mut report = report.subscribe();
    let newer = report.wait_for(|report| report.revision > poll.after);
    let _ = tokio::time::timeout(Duration::from_secs(poll.wait), newer).await;
    Json(report.borrow().clone())
}

/// TLS as the real agents do it: with each other's certificates, of this authority.
fn acceptor(agents: &Arc<Agents>, authority: &[u8]) -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    TlsAcceptor::from(Arc::new(rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_cert_resolver(agents.clone())))
}

async fn serve(listener: tokio::net::TcpListener, agents: Arc<Agents>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let agents = agents.clone();
        tokio::spawn(async move {
            // Before there is an agent there is nobody to speak to.
            let Some(tls) = agents.tls.get().cloned() else { return };
            let Ok(stream) = tls.accept(stream).await else { return };
            let uid = stream.get_ref().1.server_name().unwrap_or_default().split('.').next().unwrap_or_default().to_owned();
            let Some(report) = agents.reports.lock().unwrap().get(&uid).cloned() else { return };
            let contents = Router::new().route(CONTENTS_PATH, put(take_contents)).with_state((report.clone(), agents.clone()));
            let mute = agents.mute.load(Ordering::Relaxed);
            let logs = async move || {
                if mute {
                    std::future::pending::<()>().await;
                }
                format!("the logs of {uid}")
            };
            let app = Router::new()
                .route(STATUS_PATH, get(status))
                .route(ORDERS_PATH, put(take_orders))
                .with_state(report)
                .route(BUNDLE_PATH, get(logs))
                .merge(contents);
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
        });
    }
}
