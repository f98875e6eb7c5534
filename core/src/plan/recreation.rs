//! Replacing a cluster on purpose: the annotation `nestling.dev/recreate`.
//!
//! As with a failure, it goes on record first: the status remembers the value and the newest attempt of that moment. From then on that attempt and all before
//! it are over, whatever became of them, and however often the operator is interrupted.

use super::observed::Observed;
use crate::api::conditions::clip;
use crate::api::{KindClusterStatus, Recreation, annotations};

/// Most bytes of the annotation's value that count.
const LIMIT: usize = 256;

/// The recreation that is asked for and not yet on record.
pub fn asked(seen: &Observed) -> Option<Recreation> {
    let value = clip(seen.cluster.metadata.annotations.as_ref()?.get(annotations::RECREATE)?, LIMIT);
    let status = seen.status();
    if status.recreation.as_ref().is_some_and(|recorded| recorded.value == value) {
        return None;
    }
    let newest = status.attempt.unwrap_or(0).max(seen.children.newest_attempt());
    Some(Recreation { value: value.to_owned(), attempt: newest })
}

/// Whether an attempt is over because somebody wanted the next one.
pub fn is_over(status: &KindClusterStatus, attempt: i64) -> bool {
    status.recreation.as_ref().is_some_and(|recorded| attempt <= recorded.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{self, READY, STALLED};
    use crate::api::reasons::Reason;
    use crate::api::{KindClusterStatus, LastFailure, PodRef};
    use crate::plan::decide::{Step, decide};
    use crate::plan::notes::notes;
    use crate::plan::observed::Children;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::{AgentReport, NodeReport, Stage};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn annotate(seen: &mut Observed, value: &str) {
        seen.cluster.metadata.annotations.get_or_insert_default().insert(annotations::RECREATE.to_owned(), value.to_owned());
    }

    /// One pass: steps, `Ready` and events.
    fn pass(seen: &mut Observed) -> (Vec<&'static str>, String, Vec<&'static str>) {
        let now = Timestamp::from_second(NOW).unwrap();
        let plan = decide(now, seen);
        let before = seen.status();
        let after = settle(now, seen, &Outcome { done: plan.steps.clone(), ..Outcome::default() });
        let told = notes(&before, &after).iter().map(|note| note.reason).collect();
        let ready = conditions::get(&after.conditions, READY).map(|ready| format!("{} {}", ready.status, ready.reason)).unwrap_or_default();
        seen.cluster.status = Some(after);
        (plan.steps.iter().map(Step::name).collect(), ready, told)
    }

    fn serving(uid: &str) -> AgentReport {
        AgentReport {
            stage: Stage::Serving,
            control_plane_ready: true,
            nested_uid: Some(uid.into()),
            nodes: vec![NodeReport { name: "n".into(), control_plane: true, ready: true }],
            ..AgentReport::default()
        }
    }

    fn running(spec: &str) -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 60);
        seen.report = Some(serving("first"));
        assert_eq!(pass(&mut seen).1, "True ClusterReady");
        seen
    }

    #[test]
    fn a_cluster_is_replaced_once_per_value() {
        for policy in ["Recreate", "Fail"] {
            let mut seen = running(&format!("lifecycle: {{podLossPolicy: {policy}}}"));
            annotate(&mut seen, "monday");
            assert_eq!(pass(&mut seen), (vec![], "False Recreating".into(), vec!["Recreating"]), "on record first");
            let (steps, ready, told) = pass(&mut seen);
            assert_eq!((steps, ready.as_str(), told.len()), (vec!["Delete"], "False Recreating", 0));
            seen.children = Children { live: true, pods: vec![], ..seen.children };
            seen.report = None;
            assert_eq!(pass(&mut seen).0, ["ApplyService", "CreatePod"]);
            let mut made = testing::with_pod(testing::observed(testing::cluster("{}")), 5).children.pods.remove(0);
            made.metadata.labels.get_or_insert_default().insert(crate::api::labels::ATTEMPT.to_owned(), "2".to_owned());
            seen.children.pods.push(made);
            seen.report = Some(serving("second"));
            let now = Timestamp::from_second(NOW).unwrap();
            let before = seen.status();
            let after = settle(now, &seen, &Outcome::default());
            let replaced = notes(&before, &after).into_iter().find(|note| note.reason == "ClusterReplaced").unwrap();
            assert!(!replaced.warning && replaced.message.contains("nestling.dev/recreate"), "{replaced:?}");
            seen.cluster.status = Some(after);
            assert!(!pass(&mut seen).0.contains(&"Delete"), "the same value does nothing more");
            annotate(&mut seen, "tuesday");
            assert_eq!(pass(&mut seen).1, "False Recreating");
        }
    }

    #[test]
    fn an_interrupted_replacement_is_no_loss() {
        let mut seen = running("lifecycle: {podLossPolicy: Fail}");
        annotate(&mut seen, "monday");
        pass(&mut seen);
        // The pod was deleted and nobody could say so.
        seen.children = Children { live: true, pods: vec![], ..seen.children };
        seen.report = None;
        assert!(seen.status().pod_ref.is_some());
        assert_eq!(pass(&mut seen).0, ["ApplyService", "CreatePod"]);
        assert_eq!(seen.status().last_failure, None);
    }

    #[test]
    fn a_stalled_cluster_starts_with_all_its_attempts() {
        let mut seen = testing::observed(testing::cluster("lifecycle: {backoffLimit: 0}"));
        let failure = LastFailure {
            reason: Reason::KindFailed.as_str().into(),
            time: Some(Time(Timestamp::from_second(NOW).unwrap())),
            attempt: 3,
            generation: 1,
            count: 3,
            ..LastFailure::default()
        };
        seen.cluster.status = Some(KindClusterStatus { attempt: Some(3), last_failure: Some(failure), ..KindClusterStatus::default() });
        pass(&mut seen);
        assert!(conditions::is_true(&seen.status().conditions, STALLED));
        annotate(&mut seen, "again");
        assert_eq!(pass(&mut seen).1, "False Recreating");
        assert_eq!(pass(&mut seen).0.last(), Some(&"CreatePod"));
        // The next failure is the first one.
        let status = seen.cluster.status.as_mut().unwrap();
        status.attempt = Some(4);
        status.pod_ref = Some(PodRef { name: "gone".into(), ..PodRef::default() });
        pass(&mut seen);
        assert_eq!(seen.status().last_failure.map(|failure| (failure.attempt, failure.count)), Some((4, 1)));
    }

    #[test]
    fn a_new_object_that_has_the_annotation_is_made_once() {
        let mut seen = testing::observed(testing::cluster("{}"));
        annotate(&mut seen, "");
        let (steps, _, told) = pass(&mut seen);
        assert_eq!((steps.len(), told.len()), (0, 0));
        assert_eq!(pass(&mut seen).0.last(), Some(&"CreatePod"));
        assert_eq!(seen.status().recreation, Some(Recreation::default()));
    }

    #[test]
    fn nothing_is_given_up_for_a_spec_that_cannot_be_carried_out() {
        let mut seen = running("{}");
        seen.cluster.spec.networking = testing::cluster("networking: {podCIDRs: [10.96.0.0/12]}").spec.networking;
        annotate(&mut seen, "monday");
        let (steps, ready, _) = pass(&mut seen);
        assert_eq!((steps.len(), ready.as_str(), seen.status().recreation), (0, "True ClusterReady", None));
        seen.cluster.spec.networking = None;
        assert_eq!(pass(&mut seen).1, "False Recreating");
    }

    #[test]
    fn paused_replaces_nothing() {
        let mut seen = running("{}");
        seen.cluster.spec.paused = true;
        annotate(&mut seen, "monday");
        assert!(pass(&mut seen).0.is_empty() && seen.status().recreation.is_none());
    }
}
