//! Where a cluster stands. `decide` and `settle` both start from here, so that what is done and what is said never differ.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::classify::classify;
use super::desired::{DEFAULT_CREATION_TIMEOUT, Desired, desire};
use super::expiry::expiry;
use super::host_loss;
use super::objects::{attempt_of, digests_of};
use super::observed::{Observed, Turn, created_at};
use super::power;
use super::problem::Problem;
use super::recreation;
use super::volume;
use super::wire::{AgentFailure, AgentReport, Stage};
use crate::api::conditions::{clip, clip_start};
use crate::api::reasons::Reason;
use crate::api::{FINALIZER, KindClusterStatus, LastFailure, PodLossPolicy, Recreation};

/// Pause after the first failed attempt; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// An agent answers within a second or two of its start.
const AGENT_ANSWERS_WITHIN: Duration = Duration::from_mins(1);

/// Longest message and evidence of a failure, in bytes. They come out of a pod in which users are root.
pub(super) const MESSAGE_LIMIT: usize = 1024;
const EVIDENCE_LIMIT: usize = 2048;

/// Where a cluster stands.
#[derive(Clone, Debug)]
pub enum Situation<'a> {
    /// `spec.paused`: nothing is changed.
    Paused,
    /// The object is being deleted.
    Deleting,
    /// Our finalizer is missing; nothing may exist before it does.
    Unfinalized,
    /// The cluster's time is over: the object is deleted.
    Expired,
    /// There is no pod in the caches, which may only be behind: nothing is decided before a live look.
    Unsure,
    /// The spec cannot be carried out and nothing runs.
    Refused(Problem),
    /// No further attempt will be made.
    Stalled(LastFailure),
    /// The cluster is to be replaced on purpose, which is not on record yet.
    Recreate(Recreation),
    /// The pod of a cluster that is replaced on purpose; it can go.
    Replaced(&'a Pod),
    /// The next attempt comes at this time.
    BackingOff {
        /// When.
        until: Timestamp,
        /// What the last one failed of.
        failure: LastFailure,
    },
    /// The cluster has stopped, and waits on its volume until it is to run; there is no pod.
    Asleep,
    /// Others are created first.
    Queued {
        /// How many.
        before: usize,
    },
    /// The next attempt can be made.
    Create {
        /// What is to be made.
        desired: Box<Desired>,
        /// Its number.
        attempt: i64,
    },
    /// An attempt has failed, which is not on record yet.
    Failed(LastFailure),
    /// A failed attempt is on record; its pod can go.
    Discard(&'a Pod),
    /// The pod was made from another spec and has not become a cluster yet.
    Outdated(&'a Pod),
    /// A pod that is to become a cluster.
    Creating {
        /// The pod.
        pod: &'a Pod,
        /// What it was to be; `None` if the spec has become impossible since.
        desired: Option<Box<Desired>>,
        /// When the attempt ends.
        deadline: Timestamp,
    },
    /// A pod that has become a cluster.
    Running {
        /// The pod.
        pod: &'a Pod,
        /// What it is to be.
        desired: Result<Box<Desired>, Problem>,
    },
}

/// Finds out where a cluster stands. Pure and total.
pub fn situation(now: Timestamp, seen: &Observed) -> Situation<'_> {
    let cluster = &seen.cluster;
    if cluster.spec.paused {
        return Situation::Paused;
    }
    if cluster.metadata.deletion_timestamp.is_some() {
        return Situation::Deleting;
    }
    if !cluster.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER) {
        return Situation::Unfinalized;
    }
    if expiry(now, seen).is_some_and(|expiry| expiry.is_over(now)) {
        return Situation::Expired;
    }
    let desired = desire(cluster, &seen.identity, &seen.settings);
    let status = seen.status();
    match seen.children.current_pod() {
        Some(pod) => with_pod(now, seen, &status, desired, pod),
        // A cache that is behind shows no pod either, and perhaps an object that is long deleted.
        None if !seen.children.live => Situation::Unsure,
        None => without_pod(now, seen, &status, desired),
    }
}

/// Whether this attempt has been a cluster.
pub fn is_established(status: &KindClusterStatus, attempt: i64) -> bool {
    status.cluster_attempt == Some(attempt)
}

/// Whether this attempt is to bring an earlier one's cluster back.
pub fn is_resuming(status: &KindClusterStatus, attempt: i64) -> bool {
    status.cluster_attempt.is_some_and(|before| before < attempt && !recreation::is_over(status, before))
}

fn with_pod<'a>(now: Timestamp, seen: &'a Observed, status: &KindClusterStatus, desired: Result<Desired, Problem>, pod: &'a Pod) -> Situation<'a> {
    let attempt = attempt_of(pod);
    if recreation::is_over(status, attempt) {
        return Situation::Replaced(pod);
    }
    // Not for a spec of which no cluster could be made.
    if matches!(&desired, Ok(desired) if desired.violation.is_none())
        && let Some(recreation) = recreation::asked(seen)
    {
        return Situation::Recreate(recreation);
    }
    if status.last_failure.as_ref().is_some_and(|failure| failure.attempt == attempt) {
        return Situation::Discard(pod);
    }
    let established = is_established(status, attempt);
    // A cluster that sleeps needs no pod, and so no node.
    let node_lost = || host_loss::failure(now, seen).filter(|_| established && !power::needs_no_pod(seen));
    if let Some(failure) = ended(pod).or_else(|| reported(seen.report.as_ref())).or_else(node_lost) {
        return Situation::Failed(record(now, seen, status, attempt, &failure));
    }
    if established || seen.report.as_ref().is_some_and(|report| report.control_plane_ready) {
        return Situation::Running { pod, desired: desired.map(Box::new) };
    }
    if let Ok(desired) = &desired
        && desired.digests != digests_of(pod)
    {
        return Situation::Outdated(pod);
    }
    let timeout = desired.as_ref().map_or(DEFAULT_CREATION_TIMEOUT, |desired| desired.creation_timeout);
    let deadline = later(created_at(&pod.metadata), timeout);
    if now >= deadline {
        let (reason, message) = progress(now, pod, seen.report.as_ref(), &seen.children.claims);
        let failure = AgentFailure {
            reason: Reason::CreationTimeout,
            message: format!(
                "not ready within {}: still at {reason}{}",
                readable(timeout),
                if message.is_empty() { String::new() } else { format!(" ({message})") }
            ),
            log_tail: String::new(),
        };
        return Situation::Failed(record(now, seen, status, attempt, &failure));
    }
    Situation::Creating { pod, desired: desired.ok().map(Box::new), deadline }
}

fn without_pod<'a>(now: Timestamp, seen: &'a Observed, status: &KindClusterStatus, desired: Result<Desired, Problem>) -> Situation<'a> {
    let last = status.attempt.unwrap_or(0).max(seen.children.newest_attempt());
    if let Some(recreation) = recreation::asked(seen) {
        return Situation::Recreate(recreation);
    }
    let over = recreation::is_over(status, last);
    let recorded = status.last_failure.as_ref().filter(|failure| failure.attempt == last && !over);
    // Whoever took the pod away: nothing was lost with it.
    if recorded.is_none() && !over && is_established(status, last) && power::needs_no_pod(seen) {
        return Situation::Asleep;
    }
    // A pod that we took away ourselves leaves no reference behind.
    if recorded.is_none() && !over && status.pod_ref.is_some() && status.attempt == Some(last) {
        let going = seen.children.pods.iter().find(|pod| attempt_of(pod) == last);
        let gone = || AgentFailure { reason: Reason::PodLost, message: "the pod is gone".to_owned(), log_tail: String::new() };
        let failure = going.and_then(host_loss::disruption).unwrap_or_else(gone);
        return Situation::Failed(record(now, seen, status, last, &failure));
    }
    let desired = match desired {
        Ok(Desired { violation: Some(problem), .. }) | Err(problem) => return Situation::Refused(problem),
        Ok(desired) => desired,
    };
    if let Some(failure) = recorded {
        if is_established(status, last) {
            if desired.pod_loss_policy == PodLossPolicy::Fail {
                return Situation::Stalled(failure.clone());
            }
        } else if failure.generation == seen.generation() {
            if failure.count > desired.backoff_limit {
                return Situation::Stalled(failure.clone());
            }
            let until = later(failure.seen_at().unwrap_or(now), pause(failure.count));
            if now < until {
                return Situation::BackingOff { until, failure: failure.clone() };
            }
        }
    }
    match seen.turn {
        Turn::Queued { before } => Situation::Queued { before },
        Turn::Granted => Situation::Create { desired: Box::new(desired), attempt: last + 1 },
    }
}

/// A failure as it goes on record. Attempts in a row are counted; a newer spec, a cluster that had been there, or a wish for a new one starts anew. A pod that is
/// taken away while it brings a cluster back has not failed of the cluster: nothing gives up for that.
fn record(now: Timestamp, seen: &Observed, status: &KindClusterStatus, attempt: i64, failure: &AgentFailure) -> LastFailure {
    let generation = seen.generation();
    let counts = |last: &&LastFailure| last.generation == generation && !is_established(status, last.attempt) && !recreation::is_over(status, last.attempt);
    let before = status.last_failure.as_ref().filter(counts).map_or(0, |last| last.count);
    let taken_away = matches!(failure.reason, Reason::PodLost | Reason::PodEvicted | Reason::HostNodeLost) && is_resuming(status, attempt);
    LastFailure {
        reason: failure.reason.as_str().to_owned(),
        message: failure.reason.explain(clip(&failure.message, MESSAGE_LIMIT)),
        time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now)),
        attempt,
        generation,
        count: if is_established(status, attempt) { 0 } else { before + i32::from(!taken_away) },
        log_tail: Some(clip_start(&failure.log_tail, EVIDENCE_LIMIT).to_owned()).filter(|tail| !tail.is_empty()),
        // Those of an earlier attempt stay until there are newer ones.
        bundle_ref: status.last_failure.as_ref().and_then(|last| last.bundle_ref.clone()),
    }
}

fn pause(count: i32) -> Duration {
    FIRST_PAUSE * 2_u32.saturating_pow(u32::try_from(count - 1).unwrap_or(0).min(6))
}

/// `time` and then `wait`; the end of time if that is beyond it.
pub fn later(time: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|wait| time.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

/// As people write durations, in whole seconds, such as `1h30m`.
pub fn readable(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text = parts.into_iter().filter(|(number, _)| *number > 0).map(|(number, unit)| number.to_string() + unit).collect::<String>();
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// How a pod ended, if it did.
fn ended(pod: &Pod) -> Option<AgentFailure> {
    let status = pod.status.as_ref()?;
    let terminated = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.terminated.as_ref());
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) || terminated.is_some();
    if !over {
        return None;
    }
    let failure = |reason, message: String| AgentFailure { reason, message, log_tail: String::new() };
    if status.reason.as_deref() == Some("Evicted") {
        let message = status.message.clone().unwrap_or_default();
        return Some(failure(classify(&message, Reason::PodEvicted), message));
    }
    let Some(terminated) = terminated else {
        return Some(failure(Reason::PodLost, status.message.clone().unwrap_or_else(|| "the pod ended".to_owned())));
    };
    if terminated.reason.as_deref() == Some("OOMKilled") {
        return Some(failure(Reason::OutOfMemory, "the pod was killed for the memory it used".to_owned()));
    }
    if terminated.exit_code == 0 {
        // The end of an agent that was told to end, and took the cluster down.
        return Some(failure(Reason::PodLost, "the pod was told to end".to_owned()));
    }
    let said = terminated.message.as_deref().unwrap_or_default();
    Some(serde_json::from_str(said).unwrap_or_else(|_| AgentFailure {
        reason: Reason::AgentCrashed,
        message: format!("the agent ended with exit code {}", terminated.exit_code),
        log_tail: said.to_owned(),
    }))
}

fn reported(report: Option<&AgentReport>) -> Option<AgentFailure> {
    report.and_then(|report| report.failure.clone())
}

/// What an attempt is busy with: the agent's word, or before there is one, the pod's own state.
pub fn progress(now: Timestamp, pod: &Pod, report: Option<&AgentReport>, claims: &[PersistentVolumeClaim]) -> (Reason, String) {
    if let Some(report) = report {
        return match report.stage {
            Stage::Serving if !report.control_plane_ready => (Reason::WaitingForControlPlane, String::new()),
            stage => (stage.reason(), String::new()),
        };
    }
    if let Some(trouble) = volume::trouble(now, pod, claims).filter(|_| pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none())) {
        return trouble;
    }
    let Some(status) = &pod.status else { return (Reason::PodPending, String::new()) };
    let unscheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return (Reason::Unschedulable, condition.message.clone().unwrap_or_default());
    }
    let waiting = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.waiting.as_ref());
    if let Some(waiting) = waiting {
        let message = waiting.message.clone().unwrap_or_default();
        return match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => (Reason::PodImagePullFailed, message),
            "CreateContainerError" | "CreateContainerConfigError" | "RunContainerError" => (Reason::PodStartFailed, message),
            _ => (Reason::PodStarting, message),
        };
    }
    if status.phase.as_deref() != Some("Running") {
        return (Reason::PodPending, String::new());
    }
    let running = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    match running {
        Some(since) if now >= later(since.0, AGENT_ANSWERS_WITHIN) => {
            (Reason::AgentUnreachable, format!("the agent has not answered since it was started at {}", since.0))
        }
        _ => (Reason::Progressing, "waiting for the agent".to_owned()),
    }
}
