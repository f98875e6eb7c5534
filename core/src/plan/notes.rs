//! The events that a change of the status is worth.

use super::settle::{new_failure, reason_of};
use super::{exposure, power, recreation};
use crate::api::conditions;
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, LastFailure};

/// An event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    /// Whether it is a warning.
    pub warning: bool,
    /// Its reason.
    pub reason: &'static str,
    /// Its text.
    pub message: String,
}

/// The events that the change from one status to the next is worth. Made from the statuses alone, so that a transition is told once and a pass
/// that changes nothing tells nothing.
pub fn notes(before: &KindClusterStatus, after: &KindClusterStatus) -> Vec<Note> {
    let became = |type_: &str, wanted: &str| {
        let is = |status: &KindClusterStatus| conditions::get(&status.conditions, type_).is_some_and(|condition| condition.status == wanted);
        is(after) && !is(before)
    };
    let message_of = |type_: &str| conditions::get(&after.conditions, type_).map(|condition| condition.message.clone()).unwrap_or_default();
    let failure = new_failure(before, after);
    let mut notes = of_attempts(before, after, failure);
    let mut note = |warning, reason, message: String| notes.push(Note { warning, reason, message });
    // Who is told that the cluster is ready knows this, too.
    if became(conditions::KUBECONFIG_PUBLISHED, "True") && !became(conditions::READY, "True") {
        note(false, "KubeconfigPublished", message_of(conditions::KUBECONFIG_PUBLISHED));
    }
    if became(conditions::MANIFESTS_APPLIED, "True") && conditions::has_reason(&after.conditions, conditions::MANIFESTS_APPLIED, Reason::ManifestsApplied) {
        note(false, Reason::ManifestsApplied.as_str(), message_of(conditions::MANIFESTS_APPLIED));
    }
    if became(conditions::READY, "True") {
        note(false, "Ready", "the cluster is ready".to_owned());
    }
    let unpublished = |status| reason_while(status, conditions::KUBECONFIG_PUBLISHED, "False").filter(|reason| *reason != Reason::PublishingKubeconfig);
    // One that keeps the cluster from being ready is told below.
    if let Some(reason) = unpublished(after).filter(|reason| unpublished(before) != Some(*reason) && conditions::is_true(&after.conditions, conditions::READY))
    {
        note(true, reason.as_str(), message_of(conditions::KUBECONFIG_PUBLISHED));
    }
    let said = |status: &KindClusterStatus| {
        conditions::get(&status.conditions, conditions::SUSPENDED).and_then(|have| Some((have.status.clone(), Reason::parse(&have.reason)?)))
    };
    let suspension = said(after).filter(|now_said| said(before).as_ref() != Some(now_said));
    if let Some((_, reason)) = &suspension {
        match reason {
            Reason::FreezeUnsupported | Reason::AgentOutdated | Reason::PowerChangeFailed => note(true, reason.as_str(), message_of(conditions::SUSPENDED)),
            reason if power::is_wanted(*reason) => note(false, reason.as_str(), message_of(conditions::SUSPENDED)),
            _ if became(conditions::SUSPENDED, "False") && conditions::is_true(&before.conditions, conditions::SUSPENDED) => {
                note(false, "Resumed", "the cluster runs again".to_owned());
            }
            _ => {}
        }
    }
    // A failure, a deletion, a change of power and what stalls a cluster have events of their own.
    let told_otherwise = failure.is_some()
        || after.recreation != before.recreation
        || became(conditions::STALLED, "True")
        || became(conditions::DELETING, "True")
        || suspension.is_some_and(|(_, reason)| power::is_wanted(reason) || reason == Reason::PowerChangeFailed);
    if conditions::is_true(&before.conditions, conditions::READY) && became(conditions::READY, "False") && !told_otherwise {
        let reason = reason_while(after, conditions::READY, "False");
        note(true, reason.unwrap_or(Reason::Progressing).as_str(), message_of(conditions::READY));
    }
    // The failure that stalls a cluster has been told when it happened, which may have been before its logs were kept.
    let told = |reason: Reason| before.last_failure.as_ref().is_some_and(|failure| failure.reason == reason.as_str());
    if became(conditions::STALLED, "True") && failure.is_none() {
        let reason = reason_while(after, conditions::STALLED, "True").unwrap_or(Reason::KindFailed);
        if !told(reason) {
            note(true, reason.as_str(), message_of(conditions::STALLED));
        }
    }
    let unreached = |status| reason_while(status, conditions::ENDPOINTS_READY, "False");
    if let Some(reason) = unreached(after).filter(|reason| exposure::is_told(*reason) && unreached(before) != Some(*reason)) {
        note(true, reason.as_str(), message_of(conditions::ENDPOINTS_READY));
    }
    if became(conditions::DISK_PRESSURE, "True") {
        note(true, Reason::StorageNearlyFull.as_str(), message_of(conditions::DISK_PRESSURE));
    }
    if became(conditions::CERTIFICATES_VALID, "False") {
        note(true, Reason::CertificateExpiring.as_str(), message_of(conditions::CERTIFICATES_VALID));
    }
    if became(conditions::NETWORK_POLICY_ENFORCED, "False") {
        note(true, Reason::NotEnforced.as_str(), message_of(conditions::NETWORK_POLICY_ENFORCED));
    }
    let expiring = |status| reason_while(status, conditions::EXPIRING, "True");
    if let Some(reason) = expiring(after).filter(|reason| expiring(before) != Some(*reason)) {
        note(reason == Reason::ExpiresSoon, reason.as_str(), message_of(conditions::EXPIRING));
    }
    if became(conditions::PAUSED, "True") {
        note(false, "Paused", message_of(conditions::PAUSED));
    }
    if became(conditions::DELETING, "True") {
        note(false, "Deleting", message_of(conditions::DELETING));
    }
    notes
}

/// The reason of a condition while that has this status.
fn reason_while(status: &KindClusterStatus, type_: &str, wanted: &str) -> Option<Reason> {
    conditions::get(&status.conditions, type_).filter(|have| have.status == wanted).and_then(|have| Reason::parse(&have.reason))
}

/// Of attempts that begin, fail, and follow each other.
fn of_attempts(before: &KindClusterStatus, after: &KindClusterStatus, failure: Option<&LastFailure>) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |warning, reason, message: String| notes.push(Note { warning, reason, message });
    if after.pod_ref != before.pod_ref && after.attempt != before.attempt {
        note(
            false,
            "CreatingCluster",
            format!("attempt {} runs in pod {}", after.attempt.unwrap_or(0), after.pod_ref.as_ref().map_or("", |pod| pod.name.as_str())),
        );
    }
    if let Some(failure) = failure {
        note(true, reason_of(failure).as_str(), failure.message.clone());
    }
    let bundle = |status: &KindClusterStatus| status.last_failure.as_ref().and_then(|failure| failure.bundle_ref.clone());
    if let Some(kept) = bundle(after).filter(|kept| bundle(before).as_ref() != Some(kept)) {
        note(false, "LogsKept", format!("the logs of attempt {} are in Secret {}", kept.attempt, kept.name));
    }
    if before.cluster_uid.is_some() && after.cluster_uid != before.cluster_uid && after.cluster_uid.is_some() {
        let on_purpose = before.cluster_attempt.is_some_and(|attempt| recreation::is_over(after, attempt));
        let why = if on_purpose { "as nestling.dev/recreate asked, " } else { "the cluster was lost and " };
        note(!on_purpose, "ClusterReplaced", format!("{why}a new, empty one has taken its place"));
    }
    if let Some(recreation) = after.recreation.as_ref().filter(|recreation| after.recreation != before.recreation && recreation.attempt > 0) {
        note(false, Reason::Recreating.as_str(), format!("attempt {} ends and a new, empty cluster follows: nestling.dev/recreate", recreation.attempt));
    }
    if let (Some(from), Some(to)) = (before.cluster_attempt, after.cluster_attempt)
        && from != to
        && after.cluster_uid == before.cluster_uid
    {
        note(false, "ClusterResumed", format!("attempt {to} has brought the cluster of attempt {from} back from its volume"));
    }
    notes
}
