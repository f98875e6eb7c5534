//! What is said about a cluster that is waited for. Pure: text from an object and the time that has passed.

use std::fmt::Write;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use nestling_core::api::conditions::{self, CONTROL_PLANE_READY, DELETING, READY, STALLED, SUSPENDED};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, KindClusterStatus};
use nestling_core::plan::power;

use super::Goal;
use super::failure::command;

/// How many lines of evidence are shown; the rest is in the status.
const EVIDENCE_LINES: usize = 30;

impl Goal {
    /// The type of the condition.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Ready => READY,
            Self::ControlPlaneReady => CONTROL_PLANE_READY,
            Self::Suspended => SUSPENDED,
        }
    }
}

/// Where a cluster stands, seen from somebody who waits for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is still on its way.
    Underway,
    /// It is there.
    Reached,
    /// It does not get there without a change.
    Stalled,
    /// It is being deleted.
    Deleting,
}

/// Where a cluster stands. Only what was said about the newest spec counts.
pub fn verdict(cluster: &KindCluster, goal: Goal) -> Verdict {
    if cluster.metadata.deletion_timestamp.is_some() {
        return Verdict::Deleting;
    }
    let holds = |type_: &str| current(cluster, type_).is_some_and(|condition| condition.status == "True");
    let reached = if goal == Goal::Suspended { asleep(cluster).is_some() } else { holds(goal.condition()) };
    if reached {
        Verdict::Reached
    } else if holds(STALLED) || asleep(cluster).is_some() || (goal == Goal::Suspended && awake(cluster).is_some()) {
        Verdict::Stalled
    } else {
        Verdict::Underway
    }
}

fn current<'a>(cluster: &'a KindCluster, type_: &str) -> Option<&'a Condition> {
    let condition = conditions::get(&cluster.status.as_ref()?.conditions, type_)?;
    (condition.observed_generation == cluster.metadata.generation).then_some(condition)
}

/// The condition of a cluster that is suspended and stays so until somebody wants it to run.
fn asleep(cluster: &KindCluster) -> Option<&Condition> {
    current(cluster, SUSPENDED).filter(|_| cluster.status.as_ref().is_some_and(power::rests))
}

/// The condition of a cluster that is not going to be suspended, whatever its spec says.
fn awake(cluster: &KindCluster) -> Option<&Condition> {
    let stays = |reason: &str| matches!(Reason::parse(reason), Some(Reason::FreezeUnsupported | Reason::AgentOutdated | Reason::NotSuspended));
    current(cluster, SUSPENDED).filter(|condition| condition.status == "False" && stays(&condition.reason))
}

/// What is going on, in one line without a time: two equal ones are no news.
pub fn news(cluster: &KindCluster, goal: Goal) -> String {
    let Some(condition) = current(cluster, goal.condition()) else { return "waiting for the operator to look at the newest spec".to_owned() };
    match one_line(&condition.message) {
        message if !message.is_empty() => format!("{}: {message}", condition.reason),
        _ => match Reason::parse(&condition.reason) {
            Some(reason) => format!("{}: {}", condition.reason, reason.meaning()),
            None => condition.reason.clone(),
        },
    }
}

/// One line for a pipe.
pub fn line(elapsed: Duration, news: &str) -> String {
    format!("[{:>4}s] {news}", elapsed.as_secs())
}

/// The live view for a terminal. `elapsed` counts from the start of `wait`, `unseen` from the newest sight of the object: the running stage
/// has taken that much longer than its status says.
pub fn screen(cluster: &KindCluster, goal: Goal, elapsed: Duration, unseen: Duration) -> Vec<String> {
    let empty = KindClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&empty);
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let reached = verdict(cluster, goal) == Verdict::Reached;
    let mut lines = vec![title(name, status)];
    let last = status.stages.len().saturating_sub(1);
    for (index, stage) in status.stages.iter().enumerate() {
        let running = index == last && !reached;
        let mut taken = Duration::from_millis(u64::try_from(stage.milliseconds).unwrap_or_default());
        if running {
            taken += unseen;
        }
        lines.push(format!("  {} {:<26} {:>7}", if running { '•' } else { '✓' }, stage.name, seconds(taken)));
    }
    if !reached {
        lines.push(format!("  {}", news(cluster, goal)));
        lines.push(format!("  waiting for {}, {} so far", goal.condition(), clock(elapsed)));
    }
    lines
}

/// The live view of several clusters: a line for each that is underway.
pub fn board<'a>(underway: impl Iterator<Item = &'a KindCluster>, goal: Goal, elapsed: Duration) -> Vec<String> {
    let mut lines: Vec<String> =
        underway.map(|cluster| format!("  {:<20} {}", cluster.metadata.name.as_deref().unwrap_or_default(), news(cluster, goal))).collect();
    lines.push(format!("  waiting for {}, {} so far", goal.condition(), clock(elapsed)));
    lines
}

fn title(name: &str, status: &KindClusterStatus) -> String {
    let mut title = name.to_owned();
    let parts = [
        status.version.clone(),
        status.attempt.map(|attempt| format!("attempt {attempt}")),
        status.nodes_ready.as_ref().map(|ready| format!("nodes {ready}")),
        status.pod_ref.as_ref().and_then(|pod| pod.node_name.as_ref()).map(|node| format!("on {node}")),
    ];
    for part in parts.into_iter().flatten() {
        title += "  ";
        title += &part;
    }
    title
}

/// The last words on a cluster that is there.
pub fn success(cluster: &KindCluster, goal: Goal, elapsed: Duration) -> String {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    format!("{name} is {} ({} waited)", goal.condition(), clock(elapsed))
}

/// The last words on a cluster that does not get to the goal: the reason, what happened and the evidence; and what to do about it.
pub fn stalled(cluster: &KindCluster, goal: Goal) -> (String, String) {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(condition) = asleep(cluster) {
        return (format!("{name} is suspended: {}", condition.reason), format!("Wake it up: `{}`.", command(&format!("start -n {namespace} {name}"))));
    }
    let describe = format!("See `{}`.", command(&format!("describe -n {namespace} {name}")));
    if let Some(condition) = awake(cluster).filter(|_| goal == Goal::Suspended && current(cluster, STALLED).is_none_or(|stalled| stalled.status != "True")) {
        let remedy = Reason::parse(&condition.reason).map(Reason::remedy).filter(|remedy| !remedy.is_empty());
        return (format!("{name} stays awake: {}", condition.reason), remedy.map_or(describe, str::to_owned));
    }
    let Some(condition) = current(cluster, STALLED) else { return (format!("{name} is stalled"), describe) };
    let mut text = format!("{name} is stalled: {}\n", condition.reason);
    let remedy = Reason::parse(&condition.reason).map_or("", Reason::remedy);
    // Mostly it is in the message already.
    let message = if remedy.is_empty() { condition.message.clone() } else { condition.message.replace(remedy, "").replace("  ", " ") };
    if !message.trim().is_empty() {
        let _ = writeln!(text, "{}", message.trim());
    }
    let failure = cluster.status.as_ref().and_then(|status| status.last_failure.as_ref()).filter(|failure| failure.reason == condition.reason);
    if let Some(tail) = failure.and_then(|failure| failure.log_tail.as_deref()).filter(|tail| !tail.trim().is_empty()) {
        let lines: Vec<&str> = tail.trim_end().lines().collect();
        text += "Evidence:\n";
        for line in &lines[lines.len().saturating_sub(EVIDENCE_LINES)..] {
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    if let Some(bundle) = failure.and_then(|failure| failure.bundle_ref.as_ref()) {
        let _ = writeln!(text, "Logs of attempt {}:", bundle.attempt);
        let _ = writeln!(text, "  kubectl get secret -n {namespace} {} -o jsonpath='{{.data.logs\\.tar\\.gz}}' | base64 -d | tar xz", bundle.name);
    }
    (text, if remedy.is_empty() { describe } else { remedy.to_owned() })
}

/// How far the deletion of a cluster is.
pub fn deletion(cluster: &KindCluster) -> String {
    let deleting = cluster.status.as_ref().and_then(|status| conditions::get(&status.conditions, DELETING));
    match deleting.filter(|condition| condition.status == "True") {
        Some(condition) => format!("{}: {}", condition.reason, one_line(&condition.message)),
        None => "the operator has not looked at it yet".to_owned(),
    }
}

/// The last words when the time is over.
pub fn timed_out(cluster: Option<&KindCluster>, goal: Goal, elapsed: Duration) -> String {
    let what = cluster.map_or_else(|| "the host cluster has not answered".to_owned(), |cluster| news(cluster, goal));
    format!("{} did not come true in {}; at last: {what}", goal.condition(), clock(elapsed))
}

/// Messages of a kubelet have several lines.
pub fn one_line(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Evidence comes out of a pod in which users are root: it must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() && character != '\t' { '·' } else { character }).collect()
}

pub fn seconds(duration: Duration) -> String {
    format!("{}.{}s", duration.as_secs(), duration.subsec_millis() / 100)
}

fn clock(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, 0) => format!("{minutes}m"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const SEEN: Duration = Duration::from_millis(1500);

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn cluster(mut status: Value, conditions: &[Value]) -> KindCluster {
        status["conditions"] = conditions.into();
        let value =
            json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": "crane", "generation": 2}, "spec": {}, "status": status});
        serde_json::from_value(value).unwrap()
    }

    fn underway() -> KindCluster {
        let status = json!({
            "version": "v1.34.4", "attempt": 2, "nodesReady": "0/3", "podRef": {"namespace": "clusters", "name": "p", "nodeName": "host-1"},
            "stages": [{"name": "Preflight", "milliseconds": 140}, {"name": "StartingDocker", "milliseconds": 2310}, {"name": "StartingControlPlane", "milliseconds": 9020}]});
        cluster(status, &[condition(READY, "False", "StartingControlPlane", "")])
    }

    fn last_words(cluster: &KindCluster) -> String {
        let (what, next) = stalled(cluster, Goal::Ready);
        format!("{what}→ {next}")
    }

    #[test]
    fn a_cluster_on_its_way() {
        insta::assert_snapshot!(screen(&underway(), Goal::Ready, Duration::from_secs(83), SEEN).join("\n"));
        insta::assert_snapshot!(line(Duration::from_secs(83), &news(&underway(), Goal::Ready)));
    }

    #[test]
    fn a_ready_cluster() {
        let mut ready = underway();
        ready.status.as_mut().unwrap().conditions = vec![serde_json::from_value(condition(READY, "True", "ClusterReady", "")).unwrap()];
        insta::assert_snapshot!(screen(&ready, Goal::Ready, Duration::from_secs(83), SEEN).join("\n"));
        insta::assert_snapshot!(success(&ready, Goal::Ready, Duration::from_secs(83)));
    }

    #[test]
    fn who_waits_for_a_cluster_that_sleeps_is_told() {
        let told = |status: &str, reason: &str| {
            let message = "Set spec.powerState to Running to go on.";
            let asleep = cluster(json!({}), &[condition(READY, "False", reason, message), condition(SUSPENDED, status, reason, message)]);
            (verdict(&asleep, Goal::Ready), stalled(&asleep, Goal::Ready))
        };
        let (what, next) = ("crane is suspended: Frozen".to_owned(), "Wake it up: `nestling start -n  crane`.".to_owned());
        assert_eq!(told("True", "Frozen"), (Verdict::Stalled, (what, next)));
        for (status, reason) in [("True", "Resuming"), ("False", "SuspendsWhenReady")] {
            assert_eq!(told(status, reason).0, Verdict::Underway, "{reason}");
        }
    }

    #[rstest]
    #[case::frozen("True", "Frozen", Verdict::Reached)]
    #[case::freezing("False", "Freezing", Verdict::Underway)]
    #[case::another_state_first("True", "Stopping", Verdict::Underway)]
    #[case::not_ready_yet("False", "SuspendsWhenReady", Verdict::Underway)]
    #[case::never("False", "FreezeUnsupported", Verdict::Stalled)]
    #[case::somebody_wants_it_awake("False", "NotSuspended", Verdict::Stalled)]
    fn who_waits_for_sleep(#[case] status: &str, #[case] reason: &str, #[case] expected: Verdict) {
        let cluster = cluster(json!({}), &[condition(SUSPENDED, status, reason, "")]);
        assert_eq!(verdict(&cluster, Goal::Suspended), expected);
        if expected == Verdict::Stalled {
            let (what, next) = stalled(&cluster, Goal::Suspended);
            assert_eq!(what, format!("crane stays awake: {reason}"));
            assert!(!next.is_empty());
        }
    }

    #[test]
    fn several_on_one_screen() {
        insta::assert_snapshot!(board([underway(), underway()].iter(), Goal::Ready, Duration::from_secs(83)).join("\n"));
    }

    #[test]
    fn an_object_that_nobody_looked_at() {
        let fresh = cluster(json!({}), &[]);
        insta::assert_snapshot!(screen(&fresh, Goal::Ready, Duration::from_secs(1), SEEN).join("\n"));
        insta::assert_snapshot!(timed_out(Some(&fresh), Goal::Ready, Duration::from_mins(15)));
        insta::assert_snapshot!(timed_out(None, Goal::ControlPlaneReady, Duration::from_secs(5)));
    }

    #[test]
    fn a_stalled_cluster_shows_its_evidence() {
        let mut tail: Vec<String> = (0..40).map(|number| format!("line {number}")).collect();
        tail.push("\x1b]0;title\x07 exec: not found".to_owned());
        let status = json!({"lastFailure": {"reason": "KubeadmInitFailed", "message": "m", "time": null, "logTail": tail.join("\n")}});
        let message = "kubeadm: unknown field. See the evidence; often a patch in spec.config that kubeadm refuses. No further attempt is made (attempt 3).";
        insta::assert_snapshot!(last_words(&cluster(status, &[condition(STALLED, "True", "KubeadmInitFailed", message)])));
    }

    #[test]
    fn a_stalled_cluster_says_where_its_logs_are() {
        let bundle = json!({"name": "crane-logs", "attempt": 3});
        let status = json!({"lastFailure": {"reason": "KubeadmInitFailed", "message": "m", "time": null, "bundleRef": bundle}});
        let (said, _) = stalled(&cluster(status, &[condition(STALLED, "True", "KubeadmInitFailed", "m")]), Goal::Ready);
        assert!(said.contains("Logs of attempt 3:\n  kubectl get secret -n "), "{said}");
        assert!(said.ends_with(" crane-logs -o jsonpath='{.data.logs\\.tar\\.gz}' | base64 -d | tar xz\n"), "{said}");
    }

    #[test]
    fn evidence_of_another_failure_is_not_shown_and_the_remedy_only_once() {
        let status = json!({"lastFailure": {"reason": "PodLost", "message": "m", "time": null, "logTail": "old"}});
        insta::assert_snapshot!(last_words(&cluster(status, &[condition(STALLED, "True", "ConfigFieldOwned", "networking.apiServerPort is set")])));
    }

    #[rstest]
    #[case::reached(READY, "True", 2, Verdict::Reached)]
    #[case::reached_for_an_older_spec(READY, "True", 1, Verdict::Underway)]
    #[case::not_reached(READY, "False", 2, Verdict::Underway)]
    #[case::stalled(STALLED, "True", 2, Verdict::Stalled)]
    #[case::stalled_for_an_older_spec(STALLED, "True", 1, Verdict::Underway)]
    #[case::the_other_goal(CONTROL_PLANE_READY, "True", 2, Verdict::Underway)]
    fn verdicts(#[case] type_: &str, #[case] status: &str, #[case] generation: i64, #[case] expected: Verdict) {
        let mut seen = condition(type_, status, "Settled", "");
        seen["observedGeneration"] = generation.into();
        let mut cluster = cluster(json!({}), &[seen]);
        assert_eq!(verdict(&cluster, Goal::Ready), expected);
        cluster.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        assert_eq!(verdict(&cluster, Goal::Ready), Verdict::Deleting);
    }
}
