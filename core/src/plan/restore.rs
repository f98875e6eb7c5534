//! Objects that a backup has brought back: with another UID, without their pods, with or without status and finalizer. Where they stand at first, and
//! what that leads to. The same on a real API server: `tests/reconcile/restore.rs`.

use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};

use super::observed::{Children, Observed};
use super::settle::{Outcome, settle};
use super::situation::{Situation, situation};
use super::testing::{self, NOW};

/// What the status said of a cluster that ran as its third attempt.
fn ran() -> Value {
    json!({"attempt": 3, "clusterAttempt": 3, "clusterUID": "nested", "version": "v1.34.4", "image": "kindest/node:v1.34.4@sha256:aa",
        "podRef": {"namespace": "clusters", "name": "c-crane-x-3"}, "readyTime": "2027-01-15T07:00:00Z",
        "kubeconfigSecretRef": {"name": "crane-kubeconfig", "digest": "d"}})
}

/// Of one that was under creation.
fn began() -> Value {
    json!({"attempt": 1, "podRef": {"namespace": "clusters", "name": "c-crane-x-1"}})
}

/// Of one that had been given up, under this generation.
fn given_up(generation: i64) -> Value {
    let failure = json!({"reason": "KindFailed", "message": "m", "time": "2027-01-15T07:00:00Z", "attempt": 3, "generation": generation, "count": 3});
    json!({"attempt": 3, "lastFailure": failure})
}

fn restored(spec: &str, status: &Value, finalizer: bool) -> Observed {
    let mut seen = testing::observed(testing::cluster(spec));
    seen.cluster.metadata.uid = Some("0b5c5c4e-0000-4000-8000-00000000000f".into());
    seen.identity = testing::identity(&seen.cluster);
    seen.cluster.metadata.finalizers = seen.cluster.metadata.finalizers.filter(|_| finalizer);
    seen.cluster.status = serde_json::from_value(status.clone()).unwrap();
    seen.children = Children { live: true, ..Children::default() };
    seen
}

fn name(seen: &Observed) -> String {
    match situation(Timestamp::from_second(NOW).unwrap(), seen) {
        Situation::Create { attempt, .. } => format!("Create {attempt}"),
        Situation::Failed(failure) => format!("Failed {}", failure.reason),
        Situation::Stalled(failure) => format!("Stalled {}", failure.reason),
        other => format!("{other:?}").split([' ', '(', '{']).next().unwrap().to_owned(),
    }
}

#[rstest]
#[case::nothing_but_the_spec("{}", Value::Null, true, "Create 1", "Create 1")]
#[case::of_a_cluster_that_ran("{}", ran(), true, "Failed PodLost", "Create 4")]
#[case::of_one_whose_loss_is_the_end("{lifecycle: {podLossPolicy: Fail}}", ran(), true, "Failed PodLost", "Stalled PodLost")]
#[case::of_one_that_was_to_survive("{storage: {type: Persistent}, lifecycle: {podLossPolicy: Resume}}", ran(), true, "Failed PodLost", "Create 4")]
#[case::of_one_under_creation("{}", began(), true, "Failed PodLost", "BackingOff")]
#[case::of_one_that_was_given_up("{}", given_up(1), true, "Stalled KindFailed", "Stalled KindFailed")]
#[case::of_one_that_was_given_up_under_an_older_spec("{}", given_up(7), true, "Create 4", "Create 4")]
#[case::paused("{paused: true}", ran(), true, "Paused", "Paused")]
#[case::without_our_finalizer("{}", ran(), false, "Unfinalized", "Unfinalized")]
#[case::impossible_by_now("{networking: {serviceCIDRs: [10.96.0.0/16]}}", Value::Null, true, "Refused", "Refused")]
fn stands(#[case] spec: &str, #[case] status: Value, #[case] finalizer: bool, #[case] first: &str, #[case] then: &str) {
    let mut seen = restored(spec, &status, finalizer);
    assert_eq!(name(&seen), first);
    seen.cluster.status = Some(settle(Timestamp::from_second(NOW).unwrap(), &seen, &Outcome::default()));
    assert_eq!(name(&seen), then);
}
