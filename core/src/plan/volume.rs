//! What keeps a pod from its volume, in the words of the host.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::observed::created_at;
use super::situation::later;
use crate::api::reasons::Reason;

/// A provisioner makes a volume in seconds, one of a cloud in a minute or so.
const MADE_WITHIN: Duration = Duration::from_mins(2);

/// The node that the scheduler has chosen, for which a provisioner is to make the volume (`pkg/controller/volume/persistentvolume/util`).
const CHOSEN_NODE: &str = "volume.kubernetes.io/selected-node";

/// The provisioner of a claim.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// Why a pod that no node has taken waits for its volume; `None` if it does not, as far as can be seen. A claim that is `Pending` says nothing alone: many
/// classes wait for the pod to be scheduled.
pub fn trouble(now: Timestamp, pod: &Pod, claims: &[PersistentVolumeClaim]) -> Option<(Reason, String)> {
    let claim = claims.first()?;
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if phase == "Lost" {
        return Some((Reason::VolumeLost, format!("PersistentVolumeClaim {name} is Lost")));
    }
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let refused = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(words) = refused.and_then(|condition| condition.message.as_deref()) {
        return about_volumes(words).map(|reason| (reason, format!("PersistentVolumeClaim {name} is {phase}: {words}")));
    }
    let annotation = |key: &str| claim.metadata.annotations.as_ref()?.get(key);
    let node = annotation(CHOSEN_NODE).filter(|_| phase == "Pending" && now >= later(created_at(&pod.metadata), MADE_WITHIN))?;
    let provisioner = annotation(PROVISIONER).map_or("its provisioner", String::as_str);
    Some((Reason::VolumePending, format!("PersistentVolumeClaim {name} is {phase}: {provisioner} has made no volume for node {node}")))
}

/// Whether the scheduler speaks of volumes (`pkg/scheduler/framework/plugins/volume*`).
fn about_volumes(words: &str) -> Option<Reason> {
    let words = words.to_lowercase();
    if words.contains("readwriteoncepod") {
        return Some(Reason::DataRootInUse);
    }
    ["volume", "pvc(s)", "free storage"].iter().any(|part| words.contains(part)).then_some(Reason::VolumePending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    const AT: i64 = 1_800_000_000;

    fn pod(condition: Option<&str>) -> Pod {
        let created = Timestamp::from_second(AT).unwrap().to_string();
        let conditions = condition.map(|message| json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]));
        serde_json::from_value(json!({"metadata": {"name": "p", "creationTimestamp": created}, "status": {"conditions": conditions}})).unwrap()
    }

    fn claim(phase: &str, node: Option<&str>) -> Vec<PersistentVolumeClaim> {
        let annotations = node.map(|node| json!({CHOSEN_NODE: node, PROVISIONER: "rancher.io/local-path"}));
        vec![serde_json::from_value(json!({"metadata": {"name": "c-data", "annotations": annotations}, "status": {"phase": phase}})).unwrap()]
    }

    fn found(seconds: i64, condition: Option<&str>, claims: &[PersistentVolumeClaim]) -> Option<Reason> {
        trouble(Timestamp::from_second(AT + seconds).unwrap(), &pod(condition), claims).map(|(reason, message)| {
            assert!(message.contains("c-data"), "{message}");
            reason
        })
    }

    #[rstest]
    #[case("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found", Some(Reason::VolumePending))]
    #[case("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't find available persistent volumes to bind.", Some(Reason::VolumePending))]
    #[case("0/1 nodes are available: 1 node(s) had volume node affinity conflict.", Some(Reason::VolumePending))]
    #[case("0/1 nodes are available: 1 node(s) did not have enough free storage.", Some(Reason::VolumePending))]
    #[case("0/1 nodes are available: 1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).", Some(Reason::VolumePending))]
    #[case(
        "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.",
        Some(Reason::DataRootInUse)
    )]
    #[case("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient ephemeral-storage.", None)]
    fn the_schedulers_words_are_understood(#[case] words: &str, #[case] expected: Option<Reason>) {
        assert_eq!(found(1, Some(words), &claim("Pending", None)), expected);
        assert_eq!(found(1, Some(words), &[]), None, "a cluster without a volume waits for none");
    }

    #[test]
    fn a_claim_may_wait_for_its_pod_but_not_its_pod_for_ever() {
        assert_eq!(found(1000, None, &claim("Pending", None)), None);
        assert_eq!(found(119, None, &claim("Pending", Some("crane-1"))), None);
        assert_eq!(found(120, None, &claim("Pending", Some("crane-1"))), Some(Reason::VolumePending));
        assert_eq!(found(120, None, &claim("Bound", Some("crane-1"))), None);
        assert_eq!(found(1, None, &claim("Lost", None)), Some(Reason::VolumeLost));
    }
}
