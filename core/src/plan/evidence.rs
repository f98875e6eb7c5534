//! The logs of a failed attempt: fetched from its agent and kept in the user's namespace, before the pod goes.
//!
//! They are worth a short wait and nothing more: an agent that does not answer, or a Secret that cannot be written, keeps neither the pod nor the next attempt.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::names::Identity;
use super::objects::attempt_of;
use super::observed::{Logs, Observed};
use super::situation::{Situation, later};
use super::wire::BUNDLE_SECONDS;

/// How long a failed pod is held for its logs, from when the failure went on record: the agent's own bound, and time to ask for them and to write them down.
const HOLD: Duration = Duration::from_secs(BUNDLE_SECONDS + 25);

/// How long it is tried to write them down.
const TRIED: Duration = Duration::from_mins(2);

/// Logs that are to be written down.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogsPlan {
    /// Whose they are.
    pub identity: Identity,
    /// Name of the Secret.
    pub secret: String,
    /// The attempt that they are of.
    pub attempt: i64,
    /// This installation.
    pub install: String,
}

/// What becomes of the pod of a failed attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is held until then.
    Held(Timestamp),
    /// It goes after its logs are written down.
    Logged(LogsPlan),
    /// It goes.
    Gone,
}

/// What becomes of the pod of a failed attempt, whose failure is on record.
pub fn fate(now: Timestamp, seen: &Observed, pod: &Pod) -> Fate {
    let status = seen.status();
    let attempt = attempt_of(pod);
    let Some(failure) = status.last_failure.filter(|failure| failure.attempt == attempt) else { return Fate::Gone };
    if failure.bundle_ref.as_ref().is_some_and(|bundle| bundle.attempt == attempt) {
        return Fate::Gone;
    }
    let failed_at = failure.time.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    match seen.logs {
        Logs::Held if now >= later(failed_at, TRIED) => Fate::Gone,
        Logs::Held => Fate::Logged(LogsPlan { identity: seen.identity.clone(), secret: secret(seen), attempt, install: seen.settings.install.clone() }),
        Logs::Unavailable => Fate::Gone,
        Logs::Awaited => {
            let until = later(failed_at, HOLD);
            if now < until && can_be_asked(pod) { Fate::Held(until) } else { Fate::Gone }
        }
    }
}

/// Whether the agent is to be asked for its logs. Its pod is then held.
pub fn is_asked(now: Timestamp, seen: &Observed, stands: &Situation<'_>) -> bool {
    matches!(stands, Situation::Discard(pod) if !matches!(fate(now, seen, pod), Fate::Gone))
}

/// The Secret, unless the user has given that name to the kubeconfig.
fn secret(seen: &Observed) -> String {
    let name = seen.identity.logs_secret();
    let wished = seen.cluster.spec.kubeconfig.as_ref().and_then(|kubeconfig| kubeconfig.secret_name.as_ref());
    let published = seen.status().kubeconfig_secret_ref.map(|published| published.name);
    if wished == Some(&name) || published.as_ref() == Some(&name) { format!("{name}-of-failure") } else { name }
}

/// Whether there is an agent at all.
fn can_be_asked(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let runs = status.container_statuses.iter().flatten().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
    runs && status.pod_ip.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::reasons::Reason;
    use crate::api::{BundleRef, KindClusterStatus, KubeconfigSecretRef, LastFailure};
    use crate::plan::decide::{Step, decide};
    use crate::plan::notes::notes;
    use crate::plan::problem::Problem;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    /// A cluster whose first attempt failed so many seconds ago; the agent is still there.
    fn failed(seconds: i64, logs: Logs) -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 60);
        let failure = LastFailure {
            reason: Reason::KubeadmInitFailed.as_str().into(),
            message: "it broke.".into(),
            time: Some(Time(Timestamp::from_second(NOW - seconds).unwrap())),
            attempt: 1,
            generation: 1,
            count: 1,
            ..LastFailure::default()
        };
        seen.cluster.status = Some(KindClusterStatus { last_failure: Some(failure), attempt: Some(1), ..KindClusterStatus::default() });
        seen.children.pods[0].status = serde_json::from_value(serde_json::json!({
            "phase": "Running", "podIP": "10.244.0.9",
            "containerStatuses": [{"name": "cluster", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}}}],
        }))
        .unwrap();
        seen.logs = logs;
        seen
    }

    fn steps(seen: &Observed) -> Vec<&'static str> {
        decide(now(), seen).steps.iter().map(Step::name).collect()
    }

    #[rstest]
    #[case(1, Logs::Awaited, &[])]
    #[case(44, Logs::Awaited, &[])]
    #[case(45, Logs::Awaited, &["Delete"])]
    #[case(1, Logs::Unavailable, &["Delete"])]
    #[case(1, Logs::Held, &["KeepLogs", "Delete"])]
    #[case(119, Logs::Held, &["KeepLogs", "Delete"])]
    #[case(120, Logs::Held, &["Delete"])]
    fn a_failed_pod_is_held_for_its_logs_and_no_longer(#[case] seconds: i64, #[case] logs: Logs, #[case] expected: &[&str]) {
        let seen = failed(seconds, logs);
        assert_eq!(steps(&seen), expected);
        if expected.is_empty() {
            assert_eq!(decide(now(), &seen).wake_at, Some(Timestamp::from_second(NOW - seconds + 45).unwrap()));
        }
    }

    #[test]
    fn who_cannot_answer_is_not_waited_for() {
        let mut seen = failed(1, Logs::Awaited);
        seen.children.pods[0].status.as_mut().unwrap().pod_ip = None;
        assert_eq!(steps(&seen), ["Delete"]);
        let mut seen = failed(1, Logs::Awaited);
        seen.children.pods[0].status.as_mut().unwrap().container_statuses = None;
        assert_eq!(steps(&seen), ["Delete"]);
    }

    #[test]
    fn what_was_kept_is_said_once_and_not_fetched_again() {
        let mut seen = failed(1, Logs::Held);
        let plan = decide(now(), &seen);
        let kept = settle(now(), &seen, &Outcome { done: plan.steps[..1].to_vec(), ..Outcome::default() });
        assert_eq!(kept.last_failure.as_ref().unwrap().bundle_ref, Some(BundleRef { name: "crane-logs".into(), attempt: 1 }));
        let told: Vec<_> = notes(&seen.status(), &kept).into_iter().filter(|note| note.reason == "LogsKept" || note.warning).collect();
        assert_eq!(told.len(), 1, "the failure itself was told before: {told:?}");
        assert!(!told[0].warning && told[0].message.contains("crane-logs"), "{told:?}");
        seen.cluster.status = Some(kept);
        assert_eq!(steps(&seen), ["Delete"]);
    }

    #[test]
    fn logs_that_could_not_be_kept_do_not_hold_the_pod() {
        let seen = failed(1, Logs::Held);
        let refused = Problem::new(Reason::HostRefused, "Secret crane-logs exists and is not this cluster's");
        let done = decide(now(), &seen).steps;
        let status = settle(now(), &seen, &Outcome { done, logs_refused: Some(refused), ..Outcome::default() });
        let failure = status.last_failure.as_ref().unwrap();
        assert_eq!(failure.bundle_ref, None);
        assert!(failure.message.contains("crane-logs exists"), "{}", failure.message);
        assert!(!notes(&seen.status(), &status).iter().any(|note| note.warning), "no new failure");
    }

    #[test]
    fn a_later_failure_without_logs_keeps_those_of_the_last() {
        let mut seen = failed(1, Logs::Awaited);
        let mut status = seen.status();
        status.last_failure.as_mut().unwrap().bundle_ref = Some(BundleRef { name: "crane-logs".into(), attempt: 1 });
        status.attempt = Some(2);
        status.pod_ref = Some(crate::api::PodRef::default());
        seen.cluster.status = Some(status);
        seen.children.pods.clear();
        let failure = settle(now(), &seen, &Outcome::default()).last_failure.unwrap();
        assert_eq!((failure.reason.as_str(), failure.attempt), ("PodLost", 2));
        assert_eq!(failure.bundle_ref, Some(BundleRef { name: "crane-logs".into(), attempt: 1 }));
    }

    #[test]
    fn the_kubeconfigs_secret_is_never_written_over() {
        for (spec, published) in [("{kubeconfig: {secretName: crane-logs}}", None), ("{}", Some("crane-logs"))] {
            let mut seen = failed(1, Logs::Held);
            seen.cluster.spec = testing::cluster(spec).spec;
            let status = seen.cluster.status.as_mut().unwrap();
            status.kubeconfig_secret_ref = published.map(|name| KubeconfigSecretRef { name: name.into(), ..KubeconfigSecretRef::default() });
            let Fate::Logged(plan) = fate(now(), &seen, &seen.children.pods[0]) else { panic!("no logs") };
            assert_eq!(plan.secret, "crane-logs-of-failure");
        }
    }

    #[test]
    fn logs_go_with_the_object() {
        let mut seen = failed(1, Logs::Awaited);
        seen.cluster.metadata.deletion_timestamp = Some(Time(now()));
        seen.cluster.status.as_mut().unwrap().last_failure.as_mut().unwrap().bundle_ref = Some(BundleRef { name: "crane-logs".into(), attempt: 1 });
        assert_eq!(steps(&seen)[0], "DropLogs");
    }
}
