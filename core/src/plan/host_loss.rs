//! A node of the host that does not answer any more, and what that means for the cluster on it.
//!
//! The host's control plane marks the node after about a minute and takes the pods away five minutes later (`node.kubernetes.io/unreachable`, to be tolerated for 300 s
//! unless the pod says otherwise). Their end is not seen until the node is back or deleted: nobody knows whether they still run. A StatefulSet waits for that; a
//! MachineHealthCheck of Cluster API goes on without. An ephemeral cluster goes on without, too: nothing is shared with the old pod, and the Service selects the new one.
//! A persistent volume is claimed for one pod alone, so that the host itself keeps the new pod waiting for the old one.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::observed::{HostNode, Observed, is_ready};
use super::situation::later;
use super::wire::AgentFailure;
use crate::api::conditions::Claim;
use crate::api::reasons::Reason;

/// A little longer than the host's own control plane takes: for pods that tolerate everything, which it never takes away.
const GIVEN_UP_AFTER: Duration = Duration::from_mins(6);

/// What is said of a cluster whose node does not answer and is not given up yet.
pub fn claim(seen: &Observed) -> Option<Claim> {
    let HostNode::NotReady { since } = seen.host_node? else { return None };
    let message = format!("node {} has not been ready since {since}", name(seen));
    Some(Claim::no(Reason::HostNodeNotReady, Reason::HostNodeNotReady.explain(&message)))
}

/// When the node is given up, if it does not come back before.
pub fn given_up_at(seen: &Observed) -> Option<Timestamp> {
    match seen.host_node? {
        HostNode::NotReady { since } => Some(later(since, GIVEN_UP_AFTER)),
        HostNode::Ready | HostNode::Gone => None,
    }
}

/// The end of a cluster whose node is given up.
pub fn failure(now: Timestamp, seen: &Observed) -> Option<AgentFailure> {
    let message = match seen.host_node? {
        HostNode::Gone => format!("node {} is not part of the host any more", name(seen)),
        HostNode::NotReady { since } if now >= later(since, GIVEN_UP_AFTER) => format!("node {} has not been ready since {since}", name(seen)),
        HostNode::Ready | HostNode::NotReady { .. } => return None,
    };
    Some(AgentFailure { reason: Reason::HostNodeLost, message, log_tail: String::new() })
}

/// Why a pod that somebody has deleted was deleted, in the host's own words (`DisruptionTarget`, `pkg/controller/tainteviction` and others).
pub fn disruption(pod: &Pod) -> Option<AgentFailure> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.into_iter().find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")?;
    let reason = match found.reason.as_deref().unwrap_or_default() {
        // The taint may be a person's own: then the node answers.
        "DeletionByTaintManager" if !is_ready(pod) => Reason::HostNodeLost,
        "DeletionByPodGC" => Reason::HostNodeLost,
        _ => Reason::PodLost,
    };
    let words = found.message.clone().unwrap_or_default();
    Some(AgentFailure { reason, message: format!("the pod was taken away: {words}"), log_tail: String::new() })
}

fn name(seen: &Observed) -> &str {
    seen.children.current_pod().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()).unwrap_or("of the pod")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{self, HOST_READY, READY};
    use crate::api::{KindClusterStatus, PowerState, labels};
    use crate::plan::decide::{Step, decide};
    use crate::plan::notes::notes;
    use crate::plan::objects::resumes;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::AgentReport;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;
    use serde_json::json;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn since(seconds: i64) -> HostNode {
        HostNode::NotReady { since: Timestamp::from_second(NOW - seconds).unwrap() }
    }

    /// A cluster that was well when its agent was heard last.
    fn established(policy: &str, node: Option<HostNode>) -> Observed {
        let storage = if policy == "Resume" { "Persistent" } else { "Ephemeral" };
        let spec = format!("{{lifecycle: {{podLossPolicy: {policy}}}, storage: {{type: {storage}}}}}");
        let mut seen = testing::with_pod(testing::observed(testing::cluster(&spec)), 3600);
        seen.cluster.status = Some(KindClusterStatus {
            attempt: Some(1),
            cluster_attempt: Some(1),
            cluster_uid: Some("old".into()),
            pod_ref: Some(crate::api::PodRef::default()),
            ..KindClusterStatus::default()
        });
        seen.children.pods[0].spec.as_mut().unwrap().node_name = Some("crane-worker".into());
        seen.report = Some(AgentReport { control_plane_ready: true, ..AgentReport::default() });
        seen.host_node = node;
        seen
    }

    fn settled(seen: &Observed) -> KindClusterStatus {
        settle(now(), seen, &Outcome::default())
    }

    fn claim_of(status: &KindClusterStatus, type_: &str) -> String {
        let condition = conditions::get(&status.conditions, type_).unwrap();
        format!("{} {}", condition.status, condition.reason)
    }

    #[test]
    fn a_silent_node_is_said_at_once_and_waited_for() {
        let seen = established("Recreate", Some(since(359)));
        let status = settled(&seen);
        assert_eq!(claim_of(&status, READY), "False HostNodeNotReady");
        assert_eq!(claim_of(&status, HOST_READY), "False HostNodeNotReady");
        assert!(conditions::get(&status.conditions, READY).unwrap().message.contains("crane-worker"));
        assert_eq!(status.last_failure, None);
        let plan = decide(now(), &seen);
        assert_eq!(plan.wake_at, Some(Timestamp::from_second(NOW + 1).unwrap()));
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::Delete(_) | Step::CreatePod(_))));
    }

    #[rstest]
    #[case(Some(since(360)), true)]
    #[case(Some(HostNode::Gone), true)]
    #[case(Some(since(359)), false)]
    #[case(Some(HostNode::Ready), false)]
    #[case(None, false)]
    fn a_node_is_given_up_after_six_minutes_or_when_it_is_gone(#[case] node: Option<HostNode>, #[case] lost: bool) {
        let seen = established("Recreate", node);
        let failure = settled(&seen).last_failure;
        assert_eq!(failure.as_ref().map(|failure| failure.reason.as_str()), lost.then_some("HostNodeLost"));
        if lost {
            assert!(notes(&seen.status(), &settled(&seen)).iter().any(|note| note.warning && note.reason == "HostNodeLost"));
        }
    }

    /// The pod never ends: nobody is there to end it.
    fn given_up(policy: &str) -> Observed {
        let mut seen = established(policy, Some(HostNode::Gone));
        seen.cluster.status = Some(settled(&seen));
        assert_eq!(decide(now(), &seen).steps.iter().map(Step::name).collect::<Vec<_>>(), ["Delete"]);
        seen.cluster.status.as_mut().unwrap().pod_ref = None;
        seen.children.pods[0].metadata.deletion_timestamp = Some(Time(now()));
        seen.host_node = None;
        seen.report = None;
        seen
    }

    #[test]
    fn a_pod_that_never_ends_keeps_the_policy_from_nothing() {
        let seen = given_up("Recreate");
        let steps = decide(now(), &seen).steps;
        let Some(Step::CreatePod(pod)) = steps.last() else { panic!("{steps:?}") };
        assert!(pod.metadata.name.as_deref().unwrap().ends_with("-2"));
        let service = steps.iter().find_map(|step| if let Step::ApplyService(service) = step { Some(service) } else { None });
        assert_eq!(service.unwrap().spec.as_ref().unwrap().selector.as_ref().unwrap()["nestling.dev/attempt"], "2", "the old pod is behind nothing any more");
        let seen = given_up("Fail");
        assert_eq!(claim_of(&settled(&seen), conditions::STALLED), "True HostNodeLost");
        assert!(decide(now(), &seen).steps.is_empty());
    }

    #[test]
    fn a_cluster_that_is_to_survive_comes_back_from_its_volume() {
        let seen = given_up("Resume");
        let steps = decide(now(), &seen).steps;
        let Some(Step::CreatePod(pod)) = steps.last() else { panic!("{steps:?}") };
        assert!(pod.metadata.name.as_deref().unwrap().ends_with("-2") && resumes(pod));
        // The pod of that attempt is lost in the same way before it has brought anything back: that is no failure of the cluster.
        let mut seen = seen;
        let status = seen.cluster.status.as_mut().unwrap();
        (status.attempt, status.pod_ref) = (Some(2), Some(crate::api::PodRef::default()));
        let lost = &mut seen.children.pods[0];
        lost.metadata.labels.as_mut().unwrap().insert(labels::ATTEMPT.into(), "2".into());
        lost.status = serde_json::from_value(json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]})).unwrap();
        let failure = settled(&seen).last_failure.unwrap();
        assert_eq!((failure.reason.as_str(), failure.attempt, failure.count), ("HostNodeLost", 2, 0));
    }

    #[test]
    fn a_cluster_that_sleeps_is_not_lost_with_a_node() {
        let mut seen = established("Resume", Some(HostNode::Gone));
        seen.cluster.spec.power_state = Some(PowerState::Stopped);
        seen.report = None;
        let status = seen.cluster.status.as_mut().unwrap();
        status.power_state = Some(PowerState::Stopped);
        conditions::set(&mut status.conditions, now(), None, conditions::SUSPENDED, &Claim::yes(Reason::Stopped, ""));
        assert_eq!(settled(&seen).last_failure, None);
        assert_eq!(decide(now(), &seen).steps.iter().map(Step::name).collect::<Vec<_>>(), ["Delete"]);
        seen.children.pods[0].metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(settled(&seen).last_failure, None);
        assert!(decide(now(), &seen).steps.is_empty());
    }

    #[rstest]
    #[case("DeletionByTaintManager", "False", "HostNodeLost")]
    #[case("DeletionByTaintManager", "True", "PodLost")]
    #[case("DeletionByPodGC", "True", "HostNodeLost")]
    #[case("EvictionByEvictionAPI", "True", "PodLost")]
    #[case("PreemptionByScheduler", "True", "PodLost")]
    fn who_took_the_pod_away_is_told(#[case] by: &str, #[case] ready: &str, #[case] reason: &str) {
        let mut seen = established("Recreate", None);
        seen.children.pods[0].metadata.deletion_timestamp = Some(Time(now()));
        seen.children.pods[0].status = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": ready}, {"type": "DisruptionTarget", "status": "True", "reason": by, "message": "the words of the host"},
        ]}))
        .unwrap();
        let failure = settled(&seen).last_failure.unwrap();
        assert_eq!(failure.reason, reason);
        assert!(failure.message.contains("the words of the host"), "{}", failure.message);
    }
}
