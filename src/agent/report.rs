//! The agent's report: written by the machine, read by the server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nestling_core::plan::wire::{AgentFailure, AgentReport, AgentSettings, ContentsReport, OrdersReport, PolicyProbe, SCHEMA, Stage, StageDuration};
use tokio::sync::watch;

use super::output;

/// Most warnings in a report, and most bytes of one: a report has a limit.
const WARNINGS: (usize, usize) = (16, 256);

/// The handle on the report. Clones write the same one.
#[derive(Clone, Debug)]
pub struct Report {
    sender: watch::Sender<AgentReport>,
    entered: Arc<Mutex<Instant>>,
}

impl Report {
    /// A report about nothing yet.
    pub fn new(settings: &AgentSettings) -> Self {
        let report = AgentReport {
            schema: SCHEMA,
            revision: 1,
            cluster_uid: settings.cluster_uid.clone(),
            attempt: settings.attempt,
            stage: Stage::Preflight,
            orders: Some(OrdersReport::default()),
            open_ports: Some(BTreeSet::new()),
            contents: Some(ContentsReport::default()),
            policy_probe: if settings.egress.host_api.is_some() { PolicyProbe::Pending } else { PolicyProbe::Unknown },
            ..AgentReport::default()
        };
        Self { sender: watch::Sender::new(report), entered: Arc::new(Mutex::new(Instant::now())) }
    }

    /// For readers; woken by every change.
    pub fn subscribe(&self) -> watch::Receiver<AgentReport> {
        self.sender.subscribe()
    }

    /// Changes the report. A change to nothing wakes nobody.
    pub fn update(&self, change: impl FnOnce(&mut AgentReport)) {
        self.sender.send_if_modified(|report| {
            let mut next = report.clone();
            change(&mut next);
            next.warnings.truncate(WARNINGS.0);
            for warning in &mut next.warnings {
                warning.truncate(output::head(warning, WARNINGS.1).len());
            }
            let changed = next != *report;
            if changed {
                next.revision = report.revision + 1;
                *report = next;
            }
            changed
        });
    }

    /// Changes what is said of the orders.
    pub fn update_orders(&self, change: impl FnOnce(&mut OrdersReport)) {
        self.update(|report| change(report.orders.get_or_insert_default()));
    }

    /// Goes on to a stage.
    pub fn enter(&self, stage: Stage) {
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        let milliseconds = i64::try_from(entered.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.update(|report| {
            if advance(report, stage, milliseconds) {
                tracing::info!(?stage, "entered");
                *entered = Instant::now();
            }
        });
    }

    /// Ends the attempt.
    pub fn fail(&self, failure: AgentFailure) {
        tracing::error!(reason = %failure.reason, message = failure.message, "failed");
        self.enter(Stage::Failed);
        self.update(|report| {
            report.control_plane_ready = false;
            report.failure.get_or_insert(failure);
        });
    }
}

/// Whether the report goes on to `stage`: a stage is entered once, and a failure is only left for good.
fn advance(report: &mut AgentReport, stage: Stage, milliseconds: i64) -> bool {
    if report.stage == stage || report.stage == Stage::Terminating || (report.stage == Stage::Failed && stage != Stage::Terminating) {
        return false;
    }
    match report.stages.iter_mut().find(|past| past.stage == report.stage) {
        // kind ensures several node images, one after the other.
        Some(past) => past.milliseconds += milliseconds,
        None => report.stages.push(StageDuration { stage: report.stage, milliseconds }),
    }
    report.stage = stage;
    true
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use nestling_core::api::reasons::Reason;
    use nestling_core::plan::wire::{EgressPlan, NetworkPlan, PodLimits};

    use crate::agent::failure::failure;

    /// Settings of a cluster with one node.
    pub fn settings() -> AgentSettings {
        AgentSettings {
            schema: SCHEMA,
            cluster_uid: "uid".into(),
            cluster_name: "demo".into(),
            attempt: 2,
            image: "kindest/node:v1.34.4".into(),
            config: None,
            control_planes: 1,
            workers: 0,
            network: NetworkPlan {
                pods: "10.245.0.0/16".parse().unwrap(),
                services: "10.97.0.0/16".parse().unwrap(),
                nodes: "172.31.255.0/24".parse().unwrap(),
                bridge: "172.31.254.0/24".parse().unwrap(),
                host: vec![],
            },
            cert_sans: vec!["localhost".into()],
            limits: PodLimits { memory_bytes: 3 << 30, cpu_millis: Some(2000), storage_bytes: 10 << 30 },
            allow_cgroup_v1: false,
            registries: vec![],
            preload: vec![],
            egress: EgressPlan::default(),
            persistent: false,
            resume: false,
            keep: false,
        }
    }

    #[test]
    fn revisions_grow_with_changes_only() {
        let report = Report::new(&settings());
        let reader = report.subscribe();
        report.update(|report| report.kind_version = Some("v0.33.0".into()));
        report.update(|report| report.kind_version = Some("v0.33.0".into()));
        assert_eq!(reader.borrow().revision, 2);
        report.update(|report| report.warnings = vec!["ä".repeat(500); 40]);
        assert_eq!((reader.borrow().warnings.len(), reader.borrow().warnings[0].len()), (16, 256));
    }

    #[test]
    fn a_failure_is_left_only_for_good() {
        let report = Report::new(&settings());
        let reader = report.subscribe();
        report.enter(Stage::Dockerd);
        report.fail(failure(Reason::DockerFailed, "first"));
        report.fail(failure(Reason::KindFailed, "second"));
        report.enter(Stage::Serving);
        assert_eq!(reader.borrow().stage, Stage::Failed);
        assert_eq!(reader.borrow().failure.as_ref().unwrap().message, "first");
        report.enter(Stage::Terminating);
        report.enter(Stage::Serving);
        assert_eq!(reader.borrow().stage, Stage::Terminating);
        let stages: Vec<_> = reader.borrow().stages.iter().map(|past| past.stage).collect();
        assert_eq!(stages, [Stage::Preflight, Stage::Dockerd, Stage::Failed]);
    }

    #[test]
    fn a_stage_that_comes_twice_is_added_up() {
        let mut report = AgentReport { stage: Stage::EnsuringNodeImage, ..AgentReport::default() };
        for (stage, milliseconds) in [(Stage::PreparingNodes, 5), (Stage::EnsuringNodeImage, 1), (Stage::PreparingNodes, 7)] {
            assert!(advance(&mut report, stage, milliseconds));
        }
        assert_eq!(report.stages[0], StageDuration { stage: Stage::EnsuringNodeImage, milliseconds: 12 });
    }
}
