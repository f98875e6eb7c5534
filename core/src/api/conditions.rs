//! The condition types of a [`KindCluster`](super::KindCluster) and the rules for writing them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::reasons::Reason;

/// Longest message of a condition, in bytes. The API allows 32 KiB; a reader does not.
const MESSAGE_LIMIT: usize = 2048;

/// The summary: the published kubeconfig reaches a healthy API server, all nodes are ready, and what was to be in the cluster has been.
pub const READY: &str = "Ready";
/// kstatus: the operator is at work on this generation.
pub const RECONCILING: &str = "Reconciling";
/// kstatus: nothing more will happen until somebody changes something; the reason says what.
pub const STALLED: &str = "Stalled";
/// The pod runs and found its host fit.
pub const HOST_READY: &str = "HostReady";
/// The cluster's API server answers `/readyz`.
pub const CONTROL_PLANE_READY: &str = "ControlPlaneReady";
/// Every node of the cluster is ready.
pub const NODES_READY: &str = "NodesReady";
/// The Secret with the kubeconfig is written.
pub const KUBECONFIG_PUBLISHED: &str = "KubeconfigPublished";
/// Every address that `spec.access` and `spec.ports` ask for is there: the load balancer's, and the published ports.
pub const ENDPOINTS_READY: &str = "EndpointsReady";
/// What `spec.manifests` lists has been applied inside the cluster as it is now; `True` also of an empty list.
pub const MANIFESTS_APPLIED: &str = "ManifestsApplied";
/// The host's CNI enforces the pod's NetworkPolicy, as far as the pod itself can tell.
pub const NETWORK_POLICY_ENFORCED: &str = "NetworkPolicyEnforced";
/// The volume of the cluster is about to be full; beyond its size the host ends the pod, or, where it is persistent, nothing more can be written.
pub const DISK_PRESSURE: &str = "DiskPressure";
/// The certificates of the cluster's nodes are renewed in time; `False` with `CertificateExpiring` says which one is not.
pub const CERTIFICATES_VALID: &str = "CertificatesValid";
/// What runs is what the spec says; `False` with `RecreateRequired` names what only a new cluster can take over.
pub const UP_TO_DATE: &str = "UpToDate";
/// `spec.powerState` has frozen or stopped the cluster.
pub const SUSPENDED: &str = "Suspended";
/// The cluster is about to be deleted because its time is over; the message says when. `False` if that is far or never.
pub const EXPIRING: &str = "Expiring";
/// `spec.paused` is set.
pub const PAUSED: &str = "Paused";
/// The object is being deleted; the message says what is left.
pub const DELETING: &str = "Deleting";

/// Every type, in the order in which `kubectl describe` shows them.
pub const ALL: [&str; 17] = [
    READY,
    RECONCILING,
    STALLED,
    HOST_READY,
    CONTROL_PLANE_READY,
    NODES_READY,
    KUBECONFIG_PUBLISHED,
    ENDPOINTS_READY,
    MANIFESTS_APPLIED,
    NETWORK_POLICY_ENFORCED,
    DISK_PRESSURE,
    CERTIFICATES_VALID,
    UP_TO_DATE,
    SUSPENDED,
    EXPIRING,
    PAUSED,
    DELETING,
];

/// What a condition is to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// `True`, `False` or `Unknown` (`None`).
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl Claim {
    /// A condition that holds.
    pub fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: Some(true), reason, message: message.into() }
    }

    /// A condition that does not hold.
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: Some(false), reason, message: message.into() }
    }

    /// A condition of which nothing is known.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: None, reason, message: message.into() }
    }
}

/// Writes one condition. `lastTransitionTime` moves only when `status` does.
pub fn set(conditions: &mut Vec<Condition>, now: Timestamp, generation: Option<i64>, type_: &str, claim: &Claim) {
    let status = match claim.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let unchanged_since = get(conditions, type_).filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    let condition = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: claim.reason.as_str().to_owned(),
        message: clip(&claim.message, MESSAGE_LIMIT).to_owned(),
        last_transition_time: unchanged_since.unwrap_or(Time(now)),
        observed_generation: generation,
    };
    match conditions.iter_mut().find(|old| old.type_ == type_) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// The condition of this type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Whether the condition of this type has this reason.
pub fn has_reason(conditions: &[Condition], type_: &str, reason: Reason) -> bool {
    get(conditions, type_).is_some_and(|condition| condition.reason == reason.as_str())
}

/// The longest prefix of at most `limit` bytes that does not cut a character.
pub fn clip(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let end = (0..=limit).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

/// The longest suffix of at most `limit` bytes that does not cut a character: the newest lines of a log.
pub fn clip_start(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let start = (text.len() - limit..=text.len()).find(|&start| text.is_char_boundary(start)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(&mut conditions, at(1), Some(1), READY, &Claim::no(Reason::Pending, "a"));
        set(&mut conditions, at(2), Some(2), READY, &Claim::no(Reason::Queued, "b"));
        let ready = get(&conditions, READY).unwrap();
        assert_eq!((ready.last_transition_time.0, ready.message.as_str(), ready.observed_generation), (at(1), "b", Some(2)));
        set(&mut conditions, at(3), Some(2), READY, &Claim::yes(Reason::ClusterReady, ""));
        assert_eq!(get(&conditions, READY).unwrap().last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn clipping_never_cuts_a_character() {
        assert_eq!(clip("aé🐣", 4), "aé");
        assert_eq!(clip("aé🐣", 7), "aé🐣");
        assert_eq!(clip_start("aé🐣", 5), "🐣");
        assert_eq!(clip_start("aé🐣", 0), "");
    }
}
