//! `nestling describe`: a cluster on one screen.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{self, EXPIRING, READY, STALLED, UP_TO_DATE, clip};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, KindClusterStatus, PowerState};
use nestling_core::plan::power;

use super::failure::command;
use super::host::{Host, connect};
use super::output::columns;
use super::progress::{deletion, one_line, printable, seconds};
use super::select::select;
use super::{DescribeArgs, HostArgs};

/// How many events are shown, the newest.
const EVENTS: usize = 8;

/// How many lines of evidence are shown; the rest is in the status.
const EVIDENCE_LINES: usize = 8;

/// How much of a message fits into a line.
const MESSAGE: usize = 110;

/// Shows clusters.
pub async fn run(host: HostArgs, args: DescribeArgs) -> Result<()> {
    let host = connect(host).await?;
    let clusters = select(&host, &args.selection).await?;
    for (index, cluster) in clusters.iter().enumerate() {
        let events = events(&host, cluster).await;
        let gap = if index > 0 { "\n" } else { "" };
        write!(std::io::stdout(), "{gap}{}", screen(cluster, &events, Timestamp::now()))?;
    }
    Ok(())
}

/// The events of a cluster, oldest first, or why there are none to show. They are not worth a failure.
async fn events(host: &Host, cluster: &KindCluster) -> Result<Vec<Event>, String> {
    let uid = cluster.uid().unwrap_or_default();
    let params = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let api: Api<Event> = Api::namespaced(host.client.clone(), &host.namespace);
    match api.list(&params).await {
        Ok(mut list) => {
            list.items.sort_by_key(time_of);
            Ok(list.items)
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Err("you may not list events in this namespace".to_owned()),
        Err(error) => Err(format!("they cannot be read: {error}")),
    }
}

/// When an event was seen last.
fn time_of(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0).or(event.metadata.creation_timestamp.as_ref().map(|time| time.0));
    series.or(last).or(first)
}

/// The screen.
fn screen(cluster: &KindCluster, events: &Result<Vec<Event>, String>, now: Timestamp) -> String {
    let empty = KindClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&empty);
    let mut text = columns(&facts(cluster, status, now));
    text += "\nConditions:\n";
    text += &indented(&conditions_table(status, now));
    if !status.stages.is_empty() {
        text += "\nStages:\n";
        let rows: Vec<Vec<String>> = status.stages.iter().map(|stage| vec![stage.name.clone(), took(stage.milliseconds)]).collect();
        text += &indented(&columns(&rows));
    }
    if let Some(failure) = &status.last_failure {
        let when = failure.time.as_ref().map(|time| format!(", {} ago", age(time.0, now))).unwrap_or_default();
        let _ = writeln!(text, "\nLast failure: {} (attempt {}{when})", failure.reason, failure.attempt);
        let lines: Vec<&str> = failure.log_tail.as_deref().unwrap_or_default().trim_end().lines().collect();
        for line in &lines[lines.len().saturating_sub(EVIDENCE_LINES)..] {
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    text += "\nEvents:\n";
    text += &indented(&match events {
        Ok(events) if events.is_empty() => "none\n".to_owned(),
        Ok(events) => events_table(events, now),
        Err(why) => format!("{why}\n"),
    });
    let _ = writeln!(text, "\n→ {}", next(cluster, status));
    text
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "  " + line + "\n")
}

/// What there is to say in a few words each.
fn facts(cluster: &KindCluster, status: &KindClusterStatus, now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push(vec![format!("{name}:"), value]);
        }
    };
    let metadata = &cluster.metadata;
    row("Name", Some(cluster.name_any()));
    row("Namespace", metadata.namespace.clone());
    row("Age", metadata.creation_timestamp.as_ref().map(|time| age(time.0, now)));
    row("Version", status.version.clone());
    row("Image", status.image.clone());
    let counted = |what: &str, count: Option<nestling_core::api::NodeCount>| count.map(|count| format!("{what} {}/{}", count.ready, count.total));
    let counts: Vec<String> = [counted("control planes", status.control_planes), counted("workers", status.workers)].into_iter().flatten().collect();
    let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
    row("Nodes", status.nodes_ready.as_ref().map(|ready| format!("{ready} ready{counts}")));
    let wanted = cluster.spec.power_state.unwrap_or_default();
    let actual = status.power_state.unwrap_or_default();
    let power = if wanted == actual { actual.to_string() } else { format!("{actual}, to be {wanted}") };
    row("Power", (wanted, actual).ne(&(PowerState::Running, PowerState::Running)).then_some(power));
    row("Expires", status.expiration_time.as_ref().map(|time| format!("{} ({})", time.0, left(time.0, now))));
    row("Attempt", status.attempt.map(|attempt| attempt.to_string()));
    let pod = status.pod_ref.as_ref();
    row("Runs on", pod.and_then(|pod| pod.node_name.as_ref().map(|node| format!("node {node}, as pod {}/{}", pod.namespace, pod.name))));
    row("Kubeconfig", status.kubeconfig_secret_ref.as_ref().map(|secret| format!("Secret {}", secret.name)));
    for endpoint in &status.endpoints {
        row(&format!("{:?}", endpoint.type_), Some(endpoint.url.clone()));
    }
    rows
}

fn conditions_table(status: &KindClusterStatus, now: Timestamp) -> String {
    if status.conditions.is_empty() {
        return "the operator has not looked at it yet\n".to_owned();
    }
    let row = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        let message = one_line(&condition.message);
        let shown = clip(&message, MESSAGE);
        let dots = if shown.len() < message.len() { "…" } else { "" };
        [&condition.type_, &condition.status, &age(condition.last_transition_time.0, now), &condition.reason, &format!("{shown}{dots}")]
            .map(Clone::clone)
            .to_vec()
    };
    let header = ["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"].map(str::to_owned).to_vec();
    columns(&[vec![header], status.conditions.iter().map(row).collect()].concat())
}

fn events_table(events: &[Event], now: Timestamp) -> String {
    let row = |event: &Event| {
        let seen = time_of(event).map(|time| age(time, now)).unwrap_or_default();
        let message = one_line(event.message.as_deref().unwrap_or_default());
        vec![seen, event.type_.clone().unwrap_or_default(), event.reason.clone().unwrap_or_default(), clip(&message, MESSAGE).to_owned()]
    };
    columns(&events[events.len().saturating_sub(EVENTS)..].iter().map(row).collect::<Vec<_>>())
}

/// The one thing to do next.
fn next(cluster: &KindCluster, status: &KindClusterStatus) -> String {
    let name = format!("-n {} {}", cluster.namespace().unwrap_or_default(), cluster.name_any());
    let condition = |type_: &str| conditions::get(&status.conditions, type_);
    let remedy = |reason: &str| Reason::parse(reason).map(Reason::remedy).filter(|remedy| !remedy.is_empty()).map(str::to_owned);
    let is_true = |type_: &str| condition(type_).is_some_and(|condition| condition.status == "True");
    if cluster.metadata.deletion_timestamp.is_some() {
        return format!("It is being deleted: {}.", deletion(cluster).trim_end_matches('.'));
    }
    if let Some(stalled) = condition(STALLED).filter(|condition| condition.status == "True") {
        return remedy(&stalled.reason).unwrap_or_else(|| one_line(&stalled.message));
    }
    if power::rests(status) {
        return command(&format!("start {name}"));
    }
    if !is_true(READY) {
        let reason = condition(READY).map(|condition| condition.reason.as_str()).unwrap_or_default();
        return remedy(reason).unwrap_or_else(|| command(&format!("wait {name}")));
    }
    if is_true(EXPIRING) {
        return command(&format!("extend {name} 2h"));
    }
    let outdated = condition(UP_TO_DATE).filter(|condition| condition.status == "False");
    outdated.and_then(|condition| remedy(&condition.reason)).unwrap_or_else(|| command(&format!("kubeconfig {name}")))
}

fn took(milliseconds: i64) -> String {
    seconds(std::time::Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default()))
}

/// How long ago, as kubectl says it.
fn age(then: Timestamp, now: Timestamp) -> String {
    span(now.duration_since(then).as_secs())
}

fn left(end: Timestamp, now: Timestamp) -> String {
    let seconds = end.duration_since(now).as_secs();
    if seconds > 0 { format!("in {}", span(seconds)) } else { "over".to_owned() }
}

/// At most two units.
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, smaller: &str| if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{smaller}") };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..172_800 => two(hours, "h", minutes % 60, "m"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2027-01-15T09:00:00Z".parse().unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2027-01-15T08:58:30Z"})
    }

    fn cluster(status: Value, conditions: &[Value]) -> KindCluster {
        let mut status = status;
        status["conditions"] = conditions.into();
        let metadata = json!({"namespace": "marsh", "name": "crane", "creationTimestamp": "2027-01-15T08:00:00Z"});
        serde_json::from_value(json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "spec": {}, "status": status}))
            .unwrap()
    }

    fn event(reason: &str, message: &str) -> Event {
        let times = json!({"eventTime": "2027-01-15T08:00:01.000000Z", "series": {"count": 2, "lastObservedTime": "2027-01-15T08:59:00.000000Z"}});
        let mut value = json!({"metadata": {}, "involvedObject": {}, "type": "Normal", "reason": reason, "message": message});
        value.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_ready_cluster() {
        let status = json!({
            "version": "v1.34.4", "image": "kindest/node:v1.34.4", "nodesReady": "3/3", "controlPlanes": {"total": 1, "ready": 1}, "workers": {"total": 2, "ready": 2},
            "attempt": 1, "powerState": "Running", "expirationTime": "2027-01-15T16:00:00Z", "kubeconfigSecretRef": {"name": "crane-kubeconfig"},
            "podRef": {"namespace": "nestling-clusters", "name": "c-crane-1", "nodeName": "host-1"},
            "endpoints": [{"type": "Internal", "url": "https://c-crane.nestling-clusters.svc:6443"}, {"type": "External", "url": "https://192.0.2.7:31000"}],
            "stages": [{"name": "Preflight", "milliseconds": 140}, {"name": "StartingControlPlane", "milliseconds": 19_020}],
        });
        let conditions = [condition(READY, "True", "ClusterReady", ""), condition(EXPIRING, "False", "NotExpiring", "the cluster expires at 2027")];
        let text = screen(&cluster(status, &conditions), &Ok(vec![event("ClusterReady", "crane is ready")]), now());
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_stalled_cluster() {
        let tail = "one\ntwo\x1b]0;title\x07\n";
        let status = json!({"attempt": 3, "lastFailure": {"reason": "KubeadmInitFailed", "message": "m", "time": "2027-01-15T08:40:00Z", "attempt": 3, "logTail": tail}});
        let long = "word ".repeat(60);
        let conditions = [condition(READY, "False", "KubeadmInitFailed", &long), condition(STALLED, "True", "KubeadmInitFailed", &long)];
        let text = screen(&cluster(status, &conditions), &Err("you may not list events in this namespace".into()), now());
        insta::assert_snapshot!(text);
    }

    #[test]
    fn an_object_that_nobody_looked_at() {
        insta::assert_snapshot!(screen(&KindCluster { status: None, ..cluster(json!({}), &[]) }, &Ok(vec![]), now()));
    }

    #[rstest]
    #[case::underway(json!([condition(READY, "False", "StartingControlPlane", "")]), "nestling wait -n marsh crane")]
    #[case::ready(json!([condition(READY, "True", "ClusterReady", "")]), "nestling kubeconfig -n marsh crane")]
    #[case::asleep(json!([condition(READY, "False", "Frozen", ""), condition("Suspended", "True", "Frozen", "")]), "nestling start -n marsh crane")]
    #[case::expiring(json!([condition(READY, "True", "ClusterReady", ""), condition(EXPIRING, "True", "ExpiresSoon", "")]), "nestling extend -n marsh crane 2h")]
    #[case::stalled_without_a_remedy(json!([condition(STALLED, "True", "Unheard", "do this")]), "do this")]
    fn the_next_step(#[case] conditions: Value, #[case] expected: &str) {
        let cluster = cluster(json!({}), conditions.as_array().unwrap());
        assert_eq!(next(&cluster, cluster.status.as_ref().unwrap()), expected);
    }

    #[test]
    fn every_remedy_is_told() {
        for reason in Reason::ALL.iter().filter(|reason| !reason.remedy().is_empty()) {
            let cluster = cluster(json!({}), &[condition(STALLED, "True", reason.as_str(), "")]);
            assert_eq!(next(&cluster, cluster.status.as_ref().unwrap()), reason.remedy());
        }
    }

    #[test]
    fn spans() {
        for (seconds, text) in [(-5, "0s"), (119, "119s"), (125, "2m5s"), (600, "10m"), (10_800, "3h"), (11_000, "3h3m"), (200_000, "2d7h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
