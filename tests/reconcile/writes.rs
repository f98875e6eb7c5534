//! What an audit log says of those who compete for a lease: whether each of their writes came from the holder.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

/// What is to be said of a write.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// By the one that held the lease.
    ByTheHolder,
    /// By another, and refused, mostly by its precondition.
    Refused,
    /// By another, and it changed nothing.
    WithoutEffect,
    /// By another, and it changed something.
    Astray,
}

/// A write with its verdict.
#[derive(Debug)]
pub struct Judged {
    pub verdict: Verdict,
    /// For people.
    pub text: String,
    /// How long before it the writer had renewed the lease, in seconds; for the holder's.
    pub lease_age: Option<f64>,
}

fn time(event: &Value, field: &str) -> Timestamp {
    event[field].as_str().unwrap().parse().unwrap()
}

fn user(event: &Value) -> &str {
    event["user"]["username"].as_str().unwrap_or_default()
}

fn succeeded(event: &Value) -> bool {
    event["responseStatus"]["code"].as_i64().is_some_and(|code| code < 300)
}

fn object(event: &Value) -> String {
    let part = |name: &str| event["objectRef"][name].as_str().unwrap_or_default().to_owned();
    // The name of what is created stands in the answer only.
    let name = [part("name"), event["responseObject"]["metadata"]["name"].as_str().unwrap_or_default().to_owned()].into_iter().find(|name| !name.is_empty());
    format!("{}/{}/{}", part("resource"), part("namespace"), name.unwrap_or_default())
}

fn is_lease(event: &Value, lease: &str) -> bool {
    event["objectRef"]["resource"] == "leases" && object(event).ends_with(&format!("/{lease}"))
}

/// A lease from one write of it to the next.
struct Reign<'a> {
    since: Timestamp,
    /// The user whose process holds it; `None` if it was given up.
    holder: Option<&'a str>,
}

/// Judges the writes of these users, in the order of the log. The lease's own history is in the same log.
pub fn judge(events: &[Value], users: &[&str], lease: &str) -> Vec<Judged> {
    let mut reigns: Vec<Reign<'_>> = events
        .iter()
        .filter(|event| is_lease(event, lease) && succeeded(event))
        .map(|event| {
            let held = event["responseObject"]["spec"]["holderIdentity"].as_str().is_some_and(|holder| !holder.is_empty());
            Reign { since: time(event, "stageTimestamp"), holder: held.then(|| user(event)) }
        })
        .collect();
    reigns.sort_by_key(|reign| reign.since);
    let mut before: HashMap<String, &Value> = HashMap::new();
    let mut judged = Vec::new();
    let mut in_order: Vec<&Value> = events.iter().collect();
    in_order.sort_by_key(|event| time(event, "stageTimestamp"));
    for event in in_order {
        if users.contains(&user(event)) {
            judged.push(if is_lease(event, lease) { judge_lease(event) } else { judge_other(event, &reigns, before.get(&object(event)).copied()) });
        }
        if succeeded(event) {
            before.insert(object(event), event);
        }
    }
    judged
}

/// Writes of the lease itself need no holder: they are made on what was read, or not at all.
fn judge_lease(event: &Value) -> Judged {
    let guarded = event["verb"] == "create" || event["requestObject"]["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty());
    let verdict = match (guarded, succeeded(event)) {
        (false, _) => Verdict::Astray,
        (true, true) => Verdict::ByTheHolder,
        (true, false) => Verdict::Refused,
    };
    Judged { verdict, text: describe(event), lease_age: None }
}

fn judge_other(event: &Value, reigns: &[Reign<'_>], before: Option<&Value>) -> Judged {
    let received = time(event, "requestReceivedTimestamp");
    let reign = reigns.iter().rev().find(|reign| reign.since <= received);
    let version = |event: &Value| event["responseObject"]["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let deleted = |event: &Value| event["responseObject"]["metadata"]["deletionTimestamp"].is_string();
    let unchanged = before.is_some_and(|before| match event["verb"].as_str() {
        Some("delete") => deleted(before),
        _ => version(event).is_some() && version(event) == version(before),
    });
    let verdict = match reign.and_then(|reign| reign.holder) {
        Some(holder) if holder == user(event) => Verdict::ByTheHolder,
        _ if !succeeded(event) => Verdict::Refused,
        _ if unchanged => Verdict::WithoutEffect,
        _ => Verdict::Astray,
    };
    let lease_age = reign.filter(|_| verdict == Verdict::ByTheHolder).map(|reign| received.duration_since(reign.since).as_secs_f64());
    Judged { verdict, text: describe(event), lease_age }
}

fn describe(event: &Value) -> String {
    format!("{} {} {} {} {}", event["requestReceivedTimestamp"], user(event), event["verb"], object(event), event["responseStatus"]["code"])
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "a literal is passed more easily")]
mod tests {
    use super::Verdict::{Astray, ByTheHolder, Refused, WithoutEffect};
    use super::*;
    use serde_json::json;

    fn event(second: u32, user: &str, verb: &str, resource: &str, code: u16, answer: Value) -> Value {
        let at = format!("2026-01-01T00:00:{second:02}.000000Z");
        json!({"verb": verb, "user": {"username": user}, "objectRef": {"resource": resource, "namespace": "n", "name": "x"}, "responseStatus": {"code": code},
            "requestObject": {"metadata": {"resourceVersion": "1"}}, "responseObject": answer, "requestReceivedTimestamp": at, "stageTimestamp": at})
    }

    fn version(version: &str) -> Value {
        json!({"metadata": {"resourceVersion": version}})
    }

    fn holder(name: Value) -> Value {
        json!({"spec": {"holderIdentity": name}})
    }

    #[test]
    fn only_the_holder_may_change_anything() {
        let log = [
            event(1, "a", "create", "leases", 201, holder(json!("pod-a"))),
            event(2, "a", "patch", "pods", 200, version("5")),
            // Before it holds the lease,
            event(3, "b", "patch", "pods", 409, Value::Null),
            event(4, "b", "patch", "pods", 200, version("5")),
            event(5, "b", "patch", "pods", 200, version("6")),
            // and after.
            event(6, "b", "update", "leases", 200, holder(json!("pod-b"))),
            event(7, "b", "patch", "pods", 200, version("7")),
            event(8, "a", "delete", "pods", 200, version("8")),
            // Nobody holds it.
            event(9, "b", "update", "leases", 200, holder(Value::Null)),
            event(10, "b", "create", "services", 201, version("9")),
            // Not one of them.
            event(11, "kubelet", "patch", "pods", 200, version("10")),
        ];
        let verdicts: Vec<Verdict> = judge(&log, &["a", "b"], "x").iter().map(|judged| judged.verdict).collect();
        assert_eq!(verdicts, [ByTheHolder, ByTheHolder, Refused, WithoutEffect, Astray, ByTheHolder, ByTheHolder, Astray, ByTheHolder, Astray]);
    }

    #[test]
    fn a_lease_is_not_written_blindly() {
        let mut blind = event(1, "a", "update", "leases", 200, holder(json!("pod-a")));
        blind["requestObject"] = json!({"metadata": {}});
        assert_eq!(judge(&[blind], &["a"], "x")[0].verdict, Astray);
    }
}
