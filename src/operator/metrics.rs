//! Metrics. No label ever carries an object's name: there is no bound to those.

use std::collections::BTreeMap;
use std::time::Duration;

use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, conditions};
use nestling_core::plan::milestones::{Creation, Failure};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StepLabels {
    step: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ConditionLabels {
    r#type: &'static str,
    status: &'static str,
}

/// The states of a condition.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// The place of the last of them.
const UNKNOWN: u8 = 2;

/// How a cluster can end that had been there. Counted from the beginning: the first increase of a counter that was not there before is not seen as one.
const LOSSES: [Reason; 9] = [
    Reason::PodLost,
    Reason::HostNodeLost,
    Reason::PodEvicted,
    Reason::StorageEvicted,
    Reason::OutOfMemory,
    Reason::AgentCrashed,
    Reason::DockerFailed,
    Reason::DockerUnresponsive,
    Reason::DataRootFull,
];

/// What is counted of one cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Said {
    /// The reason of its condition `Ready`.
    ready: Box<str>,
    /// Index into [`STATUSES`] of each condition, in the order of [`conditions::ALL`].
    statuses: [u8; conditions::ALL.len()],
}

impl Said {
    /// By a cluster. A condition that is not there is `Unknown`.
    pub fn of(cluster: &KindCluster) -> Self {
        let have = cluster.status.as_ref().map_or(&[][..], |status| status.conditions.as_slice());
        let status = |type_: &str| {
            let said = conditions::get(have, type_).map_or("", |condition| condition.status.as_str());
            STATUSES.iter().position(|status| *status == said).and_then(|index| u8::try_from(index).ok()).unwrap_or(UNKNOWN)
        };
        let ready = conditions::get(have, conditions::READY).map_or(Reason::Pending.as_str(), |ready| ready.reason.as_str());
        Self { ready: ready.into(), statuses: conditions::ALL.map(status) }
    }

    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        &*self.ready == Reason::ClusterReady.as_str()
    }
}

/// What is only known when somebody asks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// `KindCluster`s by the reason of their condition `Ready`.
    pub clusters: BTreeMap<String, i64>,
    /// `KindCluster`s by type and status of a condition.
    pub conditions: BTreeMap<(&'static str, &'static str), i64>,
    /// Clusters under creation.
    pub creating: usize,
    /// Clusters that wait for their turn.
    pub queued: usize,
    /// How long the one of them that has waited longest has waited.
    pub longest_wait: Duration,
}

impl Snapshot {
    /// No clusters yet, and every condition at zero: one that nobody has any more is seen to be gone.
    pub fn new(creating: usize, queued: usize, longest_wait: Duration) -> Self {
        let conditions = conditions::ALL.into_iter().flat_map(|type_| STATUSES.map(|status| ((type_, status), 0))).collect();
        Self { clusters: BTreeMap::new(), conditions, creating, queued, longest_wait }
    }

    /// Counts a cluster; `None` is one that cannot be read.
    pub fn count(&mut self, cluster: Option<&Said>) {
        let Some(said) = cluster else {
            *self.clusters.entry("Unreadable".to_owned()).or_default() += 1;
            return;
        };
        match self.clusters.get_mut(&*said.ready) {
            Some(count) => *count += 1,
            None => {
                self.clusters.insert(said.ready.to_string(), 1);
            }
        }
        for (type_, status) in conditions::ALL.into_iter().zip(said.statuses) {
            let status = STATUSES.get(usize::from(status)).copied().unwrap_or("Unknown");
            *self.conditions.entry((type_, status)).or_default() += 1;
        }
    }
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile_duration: Histogram,
    reconcile_errors: Family<ReasonLabel, Counter>,
    steps: Family<StepLabels, Counter>,
    clusters: Family<ReasonLabel, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    attempts: Family<ResultLabel, Counter>,
    attempt_failures: Family<ReasonLabel, Counter>,
    losses: Family<ReasonLabel, Counter>,
    time_to_ready: Histogram,
    stage_duration: Family<StageLabel, Histogram, fn() -> Histogram>,
    deletion_duration: Histogram,
    agent_requests: Family<ResultLabel, Counter>,
    creating: Gauge,
    queued: Gauge,
    longest_wait: Gauge,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("nestling"),
            reconcile_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            reconcile_errors: Family::default(),
            steps: Family::default(),
            clusters: Family::default(),
            conditions: Family::default(),
            attempts: Family::default(),
            attempt_failures: Family::default(),
            losses: Family::default(),
            // From 10 seconds to 1.4 hours.
            time_to_ready: Histogram::new(exponential_buckets(10.0, 1.5, 16)),
            // From a quarter of a second to 8.5 minutes.
            stage_duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.25, 2.0, 12))),
            deletion_duration: Histogram::new(exponential_buckets(0.5, 2.0, 12)),
            agent_requests: Family::default(),
            creating: Gauge::default(),
            queued: Gauge::default(),
            longest_wait: Gauge::default(),
            leader: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("reconcile_duration_seconds", "Duration of one pass over a KindCluster", metrics.reconcile_duration.clone());
        registry.register("reconcile_errors", "Passes that failed, by reason", metrics.reconcile_errors.clone());
        registry.register("steps", "Writes to the host cluster, by kind and result", metrics.steps.clone());
        registry.register("clusters", "KindClusters, by the reason of their condition Ready", metrics.clusters.clone());
        registry.register("cluster_conditions", "KindClusters, by type and status of a condition", metrics.conditions.clone());
        registry.register("attempts", "Attempts to create a cluster that have ended, by result: ready or failed", metrics.attempts.clone());
        registry.register("attempt_failures", "Attempts to create a cluster that failed, by reason", metrics.attempt_failures.clone());
        registry.register("cluster_losses", "Clusters that were lost with their pod, by reason", metrics.losses.clone());
        registry.register("time_to_ready_seconds", "From the creation of a KindCluster, or of its new pod, to Ready", metrics.time_to_ready.clone());
        registry.register("stage_duration_seconds", "How the time to ready was spent, by stage", metrics.stage_duration.clone());
        registry.register("deletion_duration_seconds", "From the deletion of a KindCluster to the end of its finalizer", metrics.deletion_duration.clone());
        registry.register("agent_requests", "Requests to agents, by result", metrics.agent_requests.clone());
        registry.register("creating", "Clusters under creation", metrics.creating.clone());
        registry.register("queued", "Clusters that wait for their turn to be created", metrics.queued.clone());
        registry.register("queue_longest_wait_seconds", "How long the cluster that has waited longest for its turn has waited", metrics.longest_wait.clone());
        registry.register("leader", "Whether this process is the leader", metrics.leader.clone());
        for result in ["ready", "failed"] {
            metrics.attempts.get_or_create(&ResultLabel { result }).inc_by(0);
        }
        for reason in Reason::ALL.iter().filter(|reason| reason.ends_attempts()) {
            metrics.attempt_failures.get_or_create(&ReasonLabel { reason: reason.as_str().to_owned() }).inc_by(0);
        }
        for reason in LOSSES {
            metrics.losses.get_or_create(&ReasonLabel { reason: reason.as_str().to_owned() }).inc_by(0);
        }
        metrics
    }

    /// One pass is over.
    pub fn reconciled(&self, took: Duration) {
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    /// A pass failed.
    pub fn reconcile_error(&self, reason: &str) {
        self.reconcile_errors.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// A step was carried out, or not.
    pub fn step(&self, step: &'static str, result: &'static str) {
        self.steps.get_or_create(&StepLabels { step, result }).inc();
    }

    /// A cluster became ready.
    pub fn ready(&self, creation: &Creation) {
        self.attempts.get_or_create(&ResultLabel { result: "ready" }).inc();
        self.time_to_ready.observe(creation.total);
        for (stage, seconds) in &creation.stages {
            self.stage_duration.get_or_create(&StageLabel { stage: stage.as_str() }).observe(*seconds);
        }
    }

    /// An attempt failed, or a cluster was lost.
    pub fn failed(&self, failure: Failure) {
        let (family, reason) = match failure {
            Failure::Attempt(reason) => {
                self.attempts.get_or_create(&ResultLabel { result: "failed" }).inc();
                (&self.attempt_failures, reason)
            }
            Failure::Cluster(reason) => (&self.losses, reason),
        };
        family.get_or_create(&ReasonLabel { reason: reason.as_str().to_owned() }).inc();
    }

    /// A cluster is gone.
    pub fn deleted_after(&self, seconds: f64) {
        self.deletion_duration.observe(seconds);
    }

    /// An agent was asked.
    pub fn agent_request(&self, result: &'static str) {
        self.agent_requests.get_or_create(&ResultLabel { result }).inc();
    }

    /// This process leads, or does not.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// All of it as text.
    pub fn scrape(&self, now: &Snapshot) -> String {
        self.clusters.clear();
        for (reason, count) in &now.clusters {
            self.clusters.get_or_create(&ReasonLabel { reason: reason.clone() }).set(*count);
        }
        self.conditions.clear();
        for ((type_, status), count) in &now.conditions {
            self.conditions.get_or_create(&ConditionLabels { r#type: type_, status }).set(*count);
        }
        self.creating.set(i64::try_from(now.creating).unwrap_or(i64::MAX));
        self.queued.set(i64::try_from(now.queued).unwrap_or(i64::MAX));
        self.longest_wait.set(i64::try_from(now.longest_wait.as_secs()).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_documented_name() {
        let metrics = Metrics::new();
        metrics.reconciled(Duration::from_millis(3));
        metrics.reconcile_error("HostUnavailable");
        metrics.step("CreatePod", "done");
        metrics.agent_request("report");
        metrics.ready(&Creation { total: 40.0, stages: vec![(Reason::Queued, 8.0), (Reason::StartingDocker, 2.5)] });
        metrics.failed(Failure::Attempt(Reason::KubeadmInitFailed));
        metrics.failed(Failure::Cluster(Reason::PodEvicted));
        metrics.deleted_after(4.0);
        metrics.leads(true);
        let clusters = BTreeMap::from([("ClusterReady".into(), 2)]);
        let text = metrics.scrape(&Snapshot { clusters, ..Snapshot::new(1, 3, Duration::from_millis(90_500)) });
        for line in [
            "nestling_reconcile_duration_seconds_count 1",
            "nestling_reconcile_errors_total{reason=\"HostUnavailable\"} 1",
            "nestling_steps_total{step=\"CreatePod\",result=\"done\"} 1",
            "nestling_clusters{reason=\"ClusterReady\"} 2",
            "nestling_cluster_conditions{type=\"Stalled\",status=\"True\"} 0",
            "nestling_attempts_total{result=\"ready\"} 1",
            "nestling_attempts_total{result=\"failed\"} 1",
            "nestling_attempt_failures_total{reason=\"KubeadmInitFailed\"} 1",
            "nestling_cluster_losses_total{reason=\"PodEvicted\"} 1",
            "nestling_attempt_failures_total{reason=\"CreationTimeout\"} 0",
            "nestling_cluster_losses_total{reason=\"PodLost\"} 0",
            "nestling_cluster_losses_total{reason=\"HostNodeLost\"} 0",
            "nestling_time_to_ready_seconds_count 1",
            "nestling_stage_duration_seconds_sum{stage=\"StartingDocker\"} 2.5",
            "nestling_deletion_duration_seconds_count 1",
            "nestling_agent_requests_total{result=\"report\"} 1",
            "nestling_creating 1",
            "nestling_queued 3",
            "nestling_queue_longest_wait_seconds 90",
            "nestling_leader 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!metrics.scrape(&Snapshot::default()).contains("ClusterReady"), "reasons that nobody has any more go away");
    }

    #[test]
    fn clusters_are_counted_by_reason_and_condition() {
        let cluster = |conditions: serde_json::Value| {
            let cluster = serde_json::json!({"metadata": {"name": "crane"}, "spec": {}, "status": {"conditions": conditions}});
            Said::of(&serde_json::from_value(cluster).unwrap())
        };
        let condition = |type_: &str, status: &str, reason: &str| serde_json::json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut now = Snapshot::new(0, 0, Duration::ZERO);
        now.count(None);
        now.count(Some(&cluster(serde_json::json!([]))));
        now.count(Some(&cluster(serde_json::json!([condition("Ready", "True", "ClusterReady"), condition("Foreign", "True", "X")]))));
        now.count(Some(&cluster(serde_json::json!([condition("Ready", "False", "PodLost"), condition("Stalled", "True", "PodLost")]))));
        let reasons: Vec<(&str, i64)> = now.clusters.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        assert_eq!(reasons, [("ClusterReady", 1), ("Pending", 1), ("PodLost", 1), ("Unreadable", 1)]);
        let of = |type_: &'static str| STATUSES.map(|status| now.conditions[&(type_, status)]);
        assert_eq!((of("Ready"), of("Stalled"), of("Paused")), ([1, 1, 1], [1, 0, 2], [0, 0, 3]));
        assert_eq!(now.conditions.len(), conditions::ALL.len() * STATUSES.len(), "no label from outside");
    }
}
