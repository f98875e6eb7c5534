//! The operator, a real process, with many clusters on a real API server. Pods and agents are a declared fake. One test counts requests of a few
//! clusters; the benchmark (`cargo xtask bench operator`) takes times and memory of many.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures of a benchmark, all of them small")]

#[path = "scale/load.rs"]
mod load;
#[path = "scale/process.rs"]
mod process;
#[path = "scale/replay.rs"]
mod replay;
#[path = "scale/requests.rs"]
mod requests;
mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use kube::{Api, Client};
use load::{Load, TEAM, spread};
use nestling_core::api::KindCluster;
use nestling_lab::{ControlPlane, ControlPlaneOptions};
use process::usage;
use replay::Replay;
use requests::{Requests, requests, restless, writes};
use serde_json::{Value, json};
use support::fake_host::FakeHost;
use support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE, Operator, Options, POD_IMAGE, THE_SAME_POD};
use support::plane::Plane;
use support::wait::until;
use tempfile::NamedTempFile;
use tokio::time::sleep;

/// Whom the API server takes the operator for.
const USER: &str = "nestling-operator";

/// Clusters under creation at once: none waits for its turn, which would be a measure of that number.
const MAX_CREATING: u32 = 1000;

/// What the operator does at once; so does the driver without it.
const CONCURRENCY: usize = 16;

/// With so many more the driver's own times are taken: for minutes with 10,000, because the slow ones come together, once or twice a minute.
const PACED: usize = 1000;

/// How many API writes one cluster may cost from its creation to readiness.
const WRITES: u64 = 12;

/// A plane with the fake host, and a watch of the clusters.
struct Stage {
    plane: Plane,
    host: FakeHost,
    load: Load,
    kubeconfig: NamedTempFile,
    admin: SocketAddr,
}

impl Stage {
    async fn set(options: ControlPlaneOptions) -> Self {
        let plane = Plane::start_with(options.with_service_range("10.0.0.0/16")).await;
        for name in [OPERATOR_NAMESPACE, CLUSTERS_NAMESPACE, TEAM] {
            plane.namespace(name).await;
        }
        let host = FakeHost::start(plane.client.clone()).await;
        host.thorough.store(true, Ordering::Relaxed);
        let load = Load::new(plane.client.clone());
        let kubeconfig = NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), plane.control_plane.kubeconfig_for(USER, Some("system:masters")).unwrap()).unwrap();
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        Self { plane, host, load, kubeconfig, admin }
    }

    fn operator(&self) -> Operator {
        let options = Options {
            agents: self.host.address,
            max_creating: MAX_CREATING,
            die_after: None,
            kubeconfig: Some(self.kubeconfig.path().to_owned()),
            pod_image: POD_IMAGE,
            identity: THE_SAME_POD,
            admin: Some(self.admin),
        };
        Operator::start(&self.plane, &options)
    }

    /// What the operator says at this path.
    async fn ask(&self, path: &str) -> Result<String, String> {
        let said = |error: &dyn std::error::Error| error.to_string();
        let stream = tokio::net::TcpStream::connect(self.admin).await.map_err(|error| said(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| said(&error))?;
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "operator").body(http_body_util::Full::<Bytes>::default()).unwrap();
        let answer = sender.send_request(request).await.map_err(|error| said(&error))?;
        let good = answer.status().is_success();
        let text = answer.into_body().collect().await.map_err(|error| said(&error))?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        if good { Ok(text) } else { Err(text) }
    }

    /// How many passes and answers of agents there have been.
    async fn counts(&self) -> Result<(u64, u64), String> {
        let text = self.ask("/metrics").await?;
        let of = |name: &str| -> u64 {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).map(|value| value as u64).sum()
        };
        Ok((of("nestling_reconcile_duration_seconds_count"), of("nestling_agent_requests_total")))
    }

    /// Waits until so many passes are done and nothing happens for two seconds, and tells when the last thing happened.
    async fn at_rest(&self, least: u64, limit: Duration) -> Instant {
        let start = Instant::now();
        let mut newest = (Instant::now(), (0, 0));
        loop {
            assert!(start.elapsed() < limit, "waited {limit:?} for {least} passes and then rest; last (passes, answers of agents): {:?}", newest.1);
            if let Ok(counts) = self.counts().await {
                if counts != newest.1 {
                    newest = (Instant::now(), counts);
                }
                if counts.0 >= least && newest.0.elapsed() > Duration::from_secs(2) {
                    return newest.0;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn requests(&self, from: Timestamp) -> Requests {
        requests(&self.plane.control_plane.audit_log(), from, Timestamp::now())
    }
}

/// The requests of each cluster, on the average.
fn each(requests: &Requests, clusters: usize) -> Value {
    requests.iter().map(|(what, count)| (what.clone(), json!((*count as f64 / clusters as f64 * 100.0).round() / 100.0))).collect()
}

/// The writes of one cluster's way to readiness.
async fn record() -> Replay {
    let stage = Stage::set(ControlPlane::options().with_audit(true)).await;
    let _operator = stage.operator();
    stage.load.warm_up().await;
    stage.at_rest(1, Duration::from_mins(1)).await;
    let cluster = Api::<KindCluster>::namespaced(stage.plane.client.clone(), TEAM).get("crane-00000").await.unwrap();
    Replay::new(&stage.plane.control_plane.audit().unwrap(), USER, &cluster)
}

/// The driver, with what the operator would write, but without the operator: how many clusters it gets done per second when there are about so many of them,
/// and what it takes for a few more, at half of that. The API server takes longer for each Service the more there are, so each number has its own limit, and
/// the mean of the way there is more than anybody sustains at its end.
async fn alone(replay: Arc<Replay>, clusters: usize) -> (f64, Value) {
    let stage = Stage::set(ControlPlane::options()).await;
    let (sender, created) = tokio::sync::mpsc::unbounded_channel();
    *stage.load.created.lock().unwrap() = Some(sender);
    let client: Client = stage.plane.client.clone();
    let writing = tokio::spawn(replay.run(client, created, CONCURRENCY));
    stage.load.warm_up().await;
    stage.load.create(1..clusters + 1, None).await;
    stage.load.all_ready(clusters + 1, limit(clusters)).await;
    let (sustained, on_the_way) = (stage.load.sustained(), clusters as f64 / stage.load.took().as_secs_f64());
    stage.load.forget();
    let all = clusters + clusters.min(PACED) + 1;
    stage.load.create(clusters + 1..all, Some(sustained / 2.0)).await;
    stage.load.all_ready(all, limit(all)).await;
    until("the pods", limit(all), async || {
        let ready = stage.host.pods_ready.lock().unwrap().len();
        if ready >= all { Ok(()) } else { Err(format!("{ready} of {all}")) }
    })
    .await;
    writing.abort();
    (sustained, json!({"clustersPerSecond": sustained, "clustersPerSecondOnTheWay": on_the_way, "firstStatusMsAtHalf": spread(stage.load.first_status())}))
}

fn limit(clusters: usize) -> Duration {
    Duration::from_mins(2) + Duration::from_millis(200) * u32::try_from(clusters).unwrap()
}

/// The operator, with so many clusters: until they are ready, at rest, and started anew.
async fn with_operator(clusters: usize, rate: Option<f64>, rest: Duration) -> Value {
    let stage = Stage::set(ControlPlane::options().with_requests_of(USER)).await;
    let mut operator = stage.operator();
    until("the operator", Duration::from_mins(1), async || stage.ask("/readyz").await).await;
    let empty = usage(operator.id());
    stage.load.warm_up().await;
    stage.at_rest(1, limit(1)).await;
    let start = Timestamp::now();
    stage.load.create(1..clusters + 1, rate).await;
    stage.load.all_ready(clusters + 1, limit(clusters)).await;
    let ready = usage(operator.id());
    stage.at_rest(u64::try_from(clusters).unwrap(), limit(clusters)).await;
    let until_ready = stage.requests(start);

    let begun = Timestamp::now();
    sleep(rest).await;
    let at_rest = stage.requests(begun);
    let resting = usage(operator.id());

    operator.kill();
    let restarted = (Instant::now(), Timestamp::now());
    let operator = stage.operator();
    until("the caches", limit(clusters), async || stage.ask("/readyz").await).await;
    let filled = restarted.0.elapsed();
    let steady = stage.at_rest(u64::try_from(clusters).unwrap(), limit(clusters)).await.duration_since(restarted.0);
    let restart = stage.requests(restarted.1);
    let anew = usage(operator.id());
    json!({
        "clusters": clusters,
        "clustersPerSecond": {"asked": rate, "ready": (clusters as f64 / stage.load.took().as_secs_f64() * 10.0).round() / 10.0},
        "firstStatusMs": spread(stage.load.first_status()),
        "podReadyToReadyMs": spread(stage.load.pod_to_ready(&stage.host.pods_ready.lock().unwrap())),
        "requestsPerCluster": each(&until_ready, clusters),
        "writesPerCluster": writes(&until_ready) as f64 / clusters as f64,
        "usage": {"empty": empty.json(), "ready": ready.json(), "rest": resting.json(), "restarted": anew.json()},
        "rest": {"seconds": rest.as_secs(), "requests": at_rest},
        "restart": {"cachesSeconds": filled.as_secs_f64(), "steadySeconds": steady.as_secs_f64(), "requests": restart},
    })
}

/// How many API writes a cluster costs, and that none of them costs anything when nothing happens.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_costs_few_writes_and_at_rest_nothing() {
    const CLUSTERS: usize = 60;
    // Not so many at once that each takes long: progress that takes long is told.
    let found = with_operator(CLUSTERS, Some(4.0), Duration::from_secs(15)).await;
    support::record("scale", &found);
    assert!(found["writesPerCluster"].as_f64().unwrap() <= WRITES as f64, "{found:#}");
    let at_rest: Requests = serde_json::from_value(found["rest"]["requests"].clone()).unwrap();
    assert_eq!(restless(&at_rest), Requests::new(), "{found:#}");
    assert!(at_rest.keys().any(|what| what.ends_with(" leases")), "the log shows what there is: {found:#}");
    let restart: Requests = serde_json::from_value(found["restart"]["requests"].clone()).unwrap();
    assert_eq!(writes(&restart), 0, "a new operator has nothing to write: {found:#}");
}

/// Times and memory; judged by whoever reads the report.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark: cargo xtask bench operator"]
async fn benchmark() {
    let of = |name: &str| std::env::var(name).ok();
    let clusters: Vec<usize> = of("NESTLING_SCALE_CLUSTERS").as_deref().unwrap_or("100").split(',').map(|count| count.parse().unwrap()).collect();
    let rest = Duration::from_secs(of("NESTLING_SCALE_REST").map_or(60, |seconds| seconds.parse().unwrap()));
    let asked: Option<f64> = of("NESTLING_SCALE_RATE").map(|rate| rate.parse().unwrap());
    let replay = if asked.is_some() { None } else { Some(Arc::new(record().await)) };
    let mut report = json!({"operator": [], "writesPerCluster": replay.as_ref().map(|replay| replay.len())});
    for count in clusters {
        let (rate, driver) = match &replay {
            Some(replay) => {
                let (sustained, driver) = alone(replay.clone(), count).await;
                (Some(sustained / 2.0), driver)
            }
            None => (asked.filter(|rate| *rate > 0.0), Value::Null),
        };
        let mut found = with_operator(count, rate, rest).await;
        found["driver"] = driver;
        eprintln!("{found:#}");
        report["operator"].as_array_mut().unwrap().push(found);
    }
    if let Some(file) = of("NESTLING_SCALE_REPORT") {
        std::fs::write(file, format!("{report:#}\n")).unwrap();
    }
}
