//! How often it is told how far a cluster under creation is.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::conditions::{self, READY};
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, PodRef};

/// Least time between two statuses that tell of nothing but progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// The same for a cluster that waits for its turn: each that is created before it changes its place, and many wait.
const PLACE: Duration = Duration::from_secs(30);

/// Conditions whose status somebody waits for.
const WAITED_FOR: [&str; 7] = [
    READY,
    conditions::CONTROL_PLANE_READY,
    conditions::NODES_READY,
    conditions::KUBECONFIG_PUBLISHED,
    conditions::STALLED,
    conditions::SUSPENDED,
    conditions::DELETING,
];

/// How long after the status before it this one may wait to be written; `None`: not at all. What it tells is then told by a later one, with all that
/// has come meanwhile. Pure.
pub fn may_wait(before: &KindClusterStatus, after: &KindClusterStatus) -> Option<Duration> {
    let is_ready = |status: &KindClusterStatus| conditions::is_true(&status.conditions, READY);
    let only_progress = !is_ready(before) && !is_ready(after) && lasting(before) == lasting(after);
    let queued = |status: &KindClusterStatus| conditions::has_reason(&status.conditions, READY, Reason::Queued);
    only_progress.then(|| if queued(before) && queued(after) { PLACE } else { PROGRESS })
}

/// A status without what changes from step to step.
fn lasting(status: &KindClusterStatus) -> KindClusterStatus {
    KindClusterStatus {
        conditions: status.conditions.iter().map(lasting_condition).collect(),
        pod_ref: status.pod_ref.clone().map(|pod| PodRef { node_name: None, ..pod }),
        stages: vec![],
        kind_version: None,
        endpoints: vec![],
        ports: vec![],
        load_balancer_cidrs: vec![],
        control_planes: None,
        workers: None,
        nodes_ready: None,
        ..status.clone()
    }
}

fn lasting_condition(condition: &Condition) -> Condition {
    let calm = |reason: Reason| reason.is_on_the_way() || reason.is_as_it_should_be() || reason == Reason::NoPod;
    if !Reason::parse(&condition.reason).is_some_and(calm) {
        return condition.clone();
    }
    let mut lasting = Condition { reason: String::new(), message: String::new(), ..condition.clone() };
    if !WAITED_FOR.contains(&condition.type_.as_str()) {
        lasting.status = String::new();
        lasting.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    lasting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeCount, StageTime};
    use serde_json::json;

    fn status(ready: &str, reason: &str, message: &str) -> KindClusterStatus {
        let condition = |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let pod = json!({"namespace": "clusters", "name": "p", "uid": "u"});
        serde_json::from_value(json!({"attempt": 1, "podRef": pod, "conditions": [condition("Ready", ready), condition("ControlPlaneReady", "False"), condition("HostReady", "Unknown")]})).unwrap()
    }

    #[test]
    fn progress_may_wait_and_nothing_else() {
        let before = status("False", "StartingDocker", "");
        let mut further = status("False", "StartingControlPlane", "kind is at it");
        further.stages = vec![StageTime { name: "StartingDocker".into(), milliseconds: 700 }];
        further.pod_ref.as_mut().unwrap().node_name = Some("n".into());
        further.control_planes = Some(NodeCount { total: 1, ready: 0 });
        assert_eq!(may_wait(&before, &further), Some(PROGRESS));
        assert_eq!(may_wait(&status("False", "Queued", "7 cluster(s) are created first"), &status("False", "Queued", "6")), Some(PLACE));
        assert_eq!(may_wait(&status("False", "Pending", ""), &status("False", "Queued", "6")), Some(PROGRESS));

        let changed = |change: &dyn Fn(&mut KindClusterStatus)| {
            let mut after = further.clone();
            change(&mut after);
            may_wait(&before, &after)
        };
        assert_eq!(changed(&|status| status.conditions[1].status = "True".into()), None, "what kubectl waits for");
        let host = |value: &'static str, reason: &'static str| {
            move |status: &mut KindClusterStatus| (status.conditions[2].status, status.conditions[2].reason) = (value.into(), reason.into())
        };
        assert_eq!(changed(&host("True", "HostFit")), Some(PROGRESS));
        assert_eq!(changed(&host("False", "UnsupportedCgroupV1")), None);
        assert_eq!(changed(&|status| status.conditions[1].reason = "KindFailed".into()), None);
        assert_eq!(changed(&|status| status.attempt = Some(2)), None);
        assert_eq!(changed(&|status| status.pod_ref.as_mut().unwrap().uid = Some("another".into())), None);
        assert_eq!(may_wait(&KindClusterStatus::default(), &before), None, "the first status");
        assert_eq!(may_wait(&before, &status("True", "ClusterReady", "")), None);
        assert_eq!(may_wait(&status("True", "ClusterReady", ""), &before), None);
        assert_eq!(may_wait(&status("True", "ClusterReady", ""), &status("True", "ClusterReady", "")), None);
    }
}
