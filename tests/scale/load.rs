//! Creates KindClusters, and sees when they are first heard of and when they are ready.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::PostParams;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use nestling_core::api::conditions::{self, READY};
use nestling_core::api::{KindCluster, KindClusterSpec};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

/// Namespace of the KindClusters.
pub const TEAM: &str = "team";

/// So many creations are under way at once where no rate is given.
const AT_ONCE: usize = 16;

/// When things happened to one cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The creation was sent.
    pub applied: Option<Instant>,
    /// A watch showed a status.
    pub first_status: Option<Instant>,
    /// A watch showed that it is ready.
    pub ready: Option<Instant>,
}

/// What has been seen so far.
#[derive(Clone)]
pub struct Load {
    clusters: Api<KindCluster>,
    times: Arc<Mutex<HashMap<String, Times>>>,
    ready: Arc<watch::Sender<usize>>,
    /// Every object, when it is seen first.
    pub created: Arc<Mutex<Option<tokio::sync::mpsc::UnboundedSender<KindCluster>>>>,
}

impl Load {
    /// Begins to watch.
    pub fn new(client: Client) -> Self {
        let load = Self { clusters: Api::namespaced(client, TEAM), times: Arc::default(), ready: Arc::new(watch::channel(0).0), created: Arc::default() };
        tokio::spawn(load.clone().look());
        load
    }

    async fn look(self) {
        let mut events = watcher(self.clusters.clone(), watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(cluster) | watcher::Event::InitApply(cluster)) => self.saw(cluster),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn saw(&self, cluster: KindCluster) {
        let now = Instant::now();
        let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
        let (said, ready) = (!conditions.is_empty(), conditions::is_true(conditions, READY));
        let mut all = self.times.lock().unwrap();
        let times = all.entry(cluster.name_any()).or_default();
        if said && times.first_status.is_none() {
            times.first_status = Some(now);
        }
        if ready && times.ready.is_none() {
            times.ready = Some(now);
            self.ready.send_modify(|count| *count += 1);
        }
        drop(all);
        if cluster.metadata.resource_version.is_some()
            && !said
            && cluster.metadata.finalizers.is_none()
            && let Some(created) = self.created.lock().unwrap().as_ref()
        {
            let _ = created.send(cluster);
        }
    }

    /// Creates a cluster that is not counted, and waits until it is ready: for the first one, the API server makes ready for its kind.
    pub async fn warm_up(&self) {
        self.create(0..1, None).await;
        self.all_ready(1, Duration::from_mins(1)).await;
        self.forget();
    }

    /// From now on only those count that are created from now on; how many are ready stays.
    pub fn forget(&self) {
        self.times.lock().unwrap().clear();
    }

    /// Creates clusters of these numbers, so many per second, or as fast as the API server takes them.
    pub async fn create(&self, numbers: Range<usize>, rate: Option<f64>) {
        let start = tokio::time::Instant::now();
        let mut tasks = JoinSet::new();
        for (place, number) in numbers.enumerate() {
            if let Some(rate) = rate {
                sleep_until(start + Duration::from_secs_f64(f64::from(u32::try_from(place).unwrap()) / rate)).await;
            } else if tasks.len() >= AT_ONCE {
                tasks.join_next().await.unwrap().unwrap();
            }
            let load = self.clone();
            tasks.spawn(async move {
                let name = format!("crane-{number:05}");
                load.times.lock().unwrap().entry(name.clone()).or_default().applied = Some(Instant::now());
                load.clusters.create(&PostParams::default(), &KindCluster::new(&name, KindClusterSpec::default())).await.unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }

    /// Waits until so many are ready.
    pub async fn all_ready(&self, count: usize, limit: Duration) {
        let mut ready = self.ready.subscribe();
        let waited = tokio::time::timeout(limit, ready.wait_for(|ready| *ready >= count)).await;
        assert!(waited.is_ok(), "waited {limit:?} for {count} clusters; ready: {}", *self.ready.borrow());
    }

    /// From each creation to the first status.
    pub fn first_status(&self) -> Vec<Duration> {
        self.times.lock().unwrap().values().filter_map(|times| Some(times.first_status?.duration_since(times.applied?))).collect()
    }

    /// From the readiness of each pod to that of the cluster.
    pub fn pod_to_ready(&self, pods: &HashMap<String, Instant>) -> Vec<Duration> {
        let times = self.times.lock().unwrap();
        times.iter().filter_map(|(name, times)| Some(times.ready?.saturating_duration_since(*pods.get(name)?))).collect()
    }

    /// How many became ready per second, of the last fifth of them.
    pub fn sustained(&self) -> f64 {
        let times = self.times.lock().unwrap();
        rate_at_the_end(begun(&times), times.values().filter_map(|times| times.ready).collect())
    }

    /// From the first creation to the last readiness.
    pub fn took(&self) -> Duration {
        let times = self.times.lock().unwrap();
        let last = times.values().filter_map(|times| times.ready).max();
        last.zip(begun(&times)).map_or(Duration::ZERO, |(last, first)| last.duration_since(first))
    }
}

/// The first creation.
fn begun(times: &HashMap<String, Times>) -> Option<Instant> {
    times.values().filter_map(|times| times.applied).min()
}

/// How many per second the last fifth of these moments were, or the last one: what is held where there are that many, as each takes longer than the one before.
fn rate_at_the_end(begun: Option<Instant>, mut moments: Vec<Instant>) -> f64 {
    moments.sort();
    let last = (moments.len() / 5).max(1);
    let from = moments.iter().rev().nth(last).copied().or(begun);
    let took = from.zip(moments.last()).map_or(Duration::ZERO, |(from, to)| to.duration_since(from));
    f64::from(u32::try_from(last).unwrap()) / took.as_secs_f64()
}

/// Median, 99th percentile and worst of these, in milliseconds.
pub fn spread(mut all: Vec<Duration>) -> Value {
    all.sort();
    let at = |percent: usize| all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).map_or(f64::NAN, |time| (time.as_secs_f64() * 1e4).round() / 10.0);
    json!({"count": all.len(), "p50": at(50), "p99": at(99), "max": at(100)})
}
