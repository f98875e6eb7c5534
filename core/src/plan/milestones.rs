//! What the change from one status to the next is worth to metrics. Made as events are: a milestone is counted once, by the pass that writes it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::observed::{Observed, created_at};
use super::settle::{new_failure, reason_of};
use super::situation::is_established;
use crate::api::conditions;
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, StageTime};

/// A cluster has become ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// Seconds from the creation of the object, or of the pod of a further attempt.
    pub total: f64,
    /// How they were spent: the reasons that `Ready` gave meanwhile, with seconds. [`Reason::WaitingForNodes`] is all that follows the agent's last
    /// stage.
    pub stages: Vec<(Reason, f64)>,
}

/// A failure has gone on record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Of an attempt that had not become a cluster.
    Attempt(Reason),
    /// Of a cluster: its pod is lost, and with it all that it held, unless that is on a volume from which it comes back.
    Cluster(Reason),
}

/// The creation that has come to its end with this status, if one has.
pub fn became_ready(now: Timestamp, seen: &Observed, after: &KindClusterStatus) -> Option<Creation> {
    let before = seen.status();
    let is_ready = |status: &KindClusterStatus| conditions::is_true(&status.conditions, conditions::READY);
    if !is_ready(after) || is_ready(&before) || before.ready_time.is_some() {
        return None;
    }
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64().max(0.0);
    let pod = seen.children.current_pod();
    let (object, pod_created) = (created_at(&seen.cluster.metadata), pod.map(|pod| created_at(&pod.metadata)));
    // A second attempt has its own clock: what came before it is on record as a failure.
    let first = after.attempt.is_none_or(|attempt| attempt <= 1);
    let total = seconds(pod_created.filter(|_| !first).unwrap_or(object), now);

    let mut stages: Vec<(Reason, f64)> = pod_created.filter(|_| first).map(|created| (Reason::Queued, seconds(object, created))).into_iter().collect();
    let started = pod.and_then(started_at);
    stages.extend(pod_created.zip(started).map(|(created, started)| (Reason::PodPending, seconds(created, started))));
    stages.extend(after.stages.iter().filter_map(stage));
    if started.is_some() {
        let told: f64 = stages.iter().map(|(_, seconds)| seconds).sum();
        stages.push((Reason::WaitingForNodes, (total - told).max(0.0)));
    }
    Some(Creation { total, stages })
}

/// The failure that is in this status and was not in the one before.
pub fn failed(before: &KindClusterStatus, after: &KindClusterStatus) -> Option<Failure> {
    let failure = new_failure(before, after)?;
    let reason = reason_of(failure);
    Some(if is_established(before, failure.attempt) { Failure::Cluster(reason) } else { Failure::Attempt(reason) })
}

/// When the containers of a pod were started.
fn started_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    containers.filter_map(|container| Some(container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)).max()
}

/// A name that is no reason was not written by us.
fn stage(time: &StageTime) -> Option<(Reason, f64)> {
    let milliseconds = u32::try_from(time.milliseconds).ok()?;
    Some((Reason::parse(&time.name)?, f64::from(milliseconds) / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LastFailure;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(NOW + second).unwrap()
    }

    /// A cluster that was asked for 100 seconds ago, with a pod that was made 40 seconds ago and has run for 35.
    fn seen() -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 40);
        seen.cluster.metadata.creation_timestamp = Some(Time(at(-100)));
        let status = serde_json::json!({"containerStatuses": [
            {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": at(-35).to_string()}}},
        ]});
        seen.children.pods[0].status = serde_json::from_value(status).unwrap();
        seen
    }

    fn ready(seen: &Observed) -> KindClusterStatus {
        let mut status = settle(at(0), seen, &Outcome::default());
        for condition in &mut status.conditions {
            if condition.type_ == conditions::READY {
                *condition = Condition { status: "True".into(), ..condition.clone() };
            }
        }
        let stage = |name: &str, milliseconds| StageTime { name: name.into(), milliseconds };
        status.stages = vec![stage("StartingDocker", 4_000), stage("StartingControlPlane", 20_500), stage("NoSuchReason", 1), stage("Preflight", -1)];
        status
    }

    #[test]
    fn the_stages_add_up_to_the_time_to_ready() {
        let seen = seen();
        let creation = became_ready(at(0), &seen, &ready(&seen)).unwrap();
        let expected = [
            (Reason::Queued, 60.0),
            (Reason::PodPending, 5.0),
            (Reason::StartingDocker, 4.0),
            (Reason::StartingControlPlane, 20.5),
            (Reason::WaitingForNodes, 10.5),
        ];
        assert_eq!((creation.total, &creation.stages[..]), (100.0, &expected[..]));
    }

    #[test]
    fn a_further_attempt_counts_from_its_pod() {
        let seen = seen();
        let after = KindClusterStatus { attempt: Some(2), ..ready(&seen) };
        let creation = became_ready(at(0), &seen, &after).unwrap();
        assert_eq!((creation.total, creation.stages[0]), (40.0, (Reason::PodPending, 5.0)));
    }

    #[test]
    fn a_cluster_becomes_ready_once() {
        let mut seen = seen();
        let mut after = ready(&seen);
        assert_eq!(became_ready(at(0), &seen, &settle(at(0), &seen, &Outcome::default())), None, "not ready");
        after.ready_time = Some(Time(at(0)));
        seen.cluster.status = Some(after.clone());
        assert_eq!(became_ready(at(1), &seen, &after), None, "it is already");
        seen.cluster.status.as_mut().unwrap().conditions.clear();
        assert_eq!(became_ready(at(1), &seen, &after), None, "it comes back");
    }

    #[test]
    fn a_clock_that_runs_behind_takes_no_time_away() {
        let seen = seen();
        let creation = became_ready(at(-200), &seen, &ready(&seen)).unwrap();
        assert!((0.0..0.001).contains(&creation.total));
        assert!(creation.stages.iter().all(|(_, seconds)| *seconds >= 0.0));
    }

    #[test]
    fn a_failure_is_of_an_attempt_or_of_a_cluster_and_is_counted_once() {
        let before = KindClusterStatus { attempt: Some(2), ..KindClusterStatus::default() };
        let failure = LastFailure { reason: "PodEvicted".into(), attempt: 2, ..LastFailure::default() };
        let after = KindClusterStatus { last_failure: Some(failure.clone()), ..before.clone() };
        assert_eq!(failed(&before, &after), Some(Failure::Attempt(Reason::PodEvicted)));
        assert_eq!(failed(&after, &after), None);
        let established = KindClusterStatus { cluster_attempt: Some(2), ..before.clone() };
        assert_eq!(failed(&established, &after), Some(Failure::Cluster(Reason::PodEvicted)));
        // What a newer version may write is no new value of a label.
        let unknown = KindClusterStatus { last_failure: Some(LastFailure { reason: "Whatever".into(), ..failure }), ..before.clone() };
        assert_eq!(failed(&before, &unknown), Some(Failure::Attempt(Reason::KindFailed)));
    }
}
