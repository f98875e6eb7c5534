//! Metrics. No label ever carries an object's name: there is no bound to those.

use std::collections::BTreeMap;
use std::time::Duration;

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

/// What is only known when somebody asks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// `KindCluster`s by the reason of their condition `Ready`.
    pub clusters: BTreeMap<String, i64>,
    /// Clusters under creation.
    pub creating: usize,
    /// Clusters that wait for their turn.
    pub queued: usize,
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconcile_duration: Histogram,
    reconcile_errors: Family<ReasonLabel, Counter>,
    steps: Family<StepLabels, Counter>,
    clusters: Family<ReasonLabel, Gauge>,
    time_to_ready: Histogram,
    deletion_duration: Histogram,
    agent_requests: Family<ResultLabel, Counter>,
    creating: Gauge,
    queued: Gauge,
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
            // From 10 seconds to 1.4 hours.
            time_to_ready: Histogram::new(exponential_buckets(10.0, 1.5, 16)),
            deletion_duration: Histogram::new(exponential_buckets(0.5, 2.0, 12)),
            agent_requests: Family::default(),
            creating: Gauge::default(),
            queued: Gauge::default(),
            leader: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("reconcile_duration_seconds", "Duration of one pass over a KindCluster", metrics.reconcile_duration.clone());
        registry.register("reconcile_errors", "Passes that failed, by reason", metrics.reconcile_errors.clone());
        registry.register("steps", "Writes to the host cluster, by kind and result", metrics.steps.clone());
        registry.register("clusters", "KindClusters, by the reason of their condition Ready", metrics.clusters.clone());
        registry.register("time_to_ready_seconds", "From the creation of a KindCluster, or of its new pod, to Ready", metrics.time_to_ready.clone());
        registry.register("deletion_duration_seconds", "From the deletion of a KindCluster to the end of its finalizer", metrics.deletion_duration.clone());
        registry.register("agent_requests", "Requests to agents, by result", metrics.agent_requests.clone());
        registry.register("creating", "Clusters under creation", metrics.creating.clone());
        registry.register("queued", "Clusters that wait for their turn to be created", metrics.queued.clone());
        registry.register("leader", "Whether this process is the leader", metrics.leader.clone());
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
    pub fn ready_after(&self, seconds: f64) {
        self.time_to_ready.observe(seconds);
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
        self.creating.set(i64::try_from(now.creating).unwrap_or(i64::MAX));
        self.queued.set(i64::try_from(now.queued).unwrap_or(i64::MAX));
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
        metrics.ready_after(40.0);
        metrics.deleted_after(4.0);
        metrics.leads(true);
        let text = metrics.scrape(&Snapshot { clusters: BTreeMap::from([("ClusterReady".into(), 2)]), creating: 1, queued: 3 });
        for line in [
            "nestling_reconcile_duration_seconds_count 1",
            "nestling_reconcile_errors_total{reason=\"HostUnavailable\"} 1",
            "nestling_steps_total{step=\"CreatePod\",result=\"done\"} 1",
            "nestling_clusters{reason=\"ClusterReady\"} 2",
            "nestling_time_to_ready_seconds_count 1",
            "nestling_deletion_duration_seconds_count 1",
            "nestling_agent_requests_total{result=\"report\"} 1",
            "nestling_creating 1",
            "nestling_queued 3",
            "nestling_leader 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!metrics.scrape(&Snapshot::default()).contains("ClusterReady"), "reasons that nobody has any more go away");
    }
}
