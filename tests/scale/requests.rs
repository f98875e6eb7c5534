//! What an audit log says of one user's requests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    verb: String,
    #[serde(default)]
    object_ref: ObjectRef,
    request_received_timestamp: Timestamp,
}

#[derive(Default, Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

/// How many requests there were, by verb and resource.
pub type Requests = BTreeMap<String, u64>;

/// The requests that were received in this time. A watch counts when it begins.
pub fn requests(log: &Path, from: Timestamp, to: Timestamp) -> Requests {
    let mut found = Requests::new();
    for line in BufReader::new(File::open(log).unwrap()).lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Event>(&line.unwrap()) else { continue };
        let counts = event.stage == if event.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
        if !counts || event.request_received_timestamp < from || event.request_received_timestamp >= to {
            continue;
        }
        let ObjectRef { resource, subresource } = event.object_ref;
        let slash = if subresource.is_empty() { "" } else { "/" };
        *found.entry(format!("{} {resource}{slash}{subresource}", event.verb)).or_default() += 1;
    }
    found
}

/// Those that change something, leases apart.
pub fn writes(requests: &Requests) -> u64 {
    let is_write = |what: &str| !["get ", "list ", "watch "].iter().any(|verb| what.starts_with(verb)) && !what.ends_with(" leases");
    requests.iter().filter(|(what, _)| is_write(what)).map(|(_, count)| count).sum()
}

/// Those that an operator at rest does not make.
pub fn restless(requests: &Requests) -> Requests {
    requests.iter().filter(|(what, _)| !what.ends_with(" leases") && !what.starts_with("watch ")).map(|(what, count)| (what.clone(), *count)).collect()
}
