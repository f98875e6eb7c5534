//! Events for users: one per transition that is worth telling.

use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use nestling_core::api::KindCluster;
use nestling_core::api::conditions::clip;
use nestling_core::plan::notes::Note;
use tokio::time::timeout;
use tracing::warn;

/// The API takes 1024 bytes.
const TEXT_LIMIT: usize = 1000;

/// An event is not worth a longer wait.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Tells users.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, identity: &str) -> Self {
        Self(Recorder::new(client, Reporter { controller: "nestling.dev/operator".to_owned(), instance: Some(clip(identity, 128).to_owned()) }))
    }

    /// Publishes notes. An event that cannot be written is logged and forgotten: the status says the same.
    pub async fn publish(&self, cluster: &KindCluster, notes: Vec<Note>) {
        let reference = cluster.object_ref(&());
        for note in notes {
            let event = Event {
                type_: if note.warning { EventType::Warning } else { EventType::Normal },
                reason: note.reason.to_owned(),
                note: Some(clip(&note.message, TEXT_LIMIT).to_owned()),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            match timeout(TIMEOUT, self.0.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(reason = note.reason, %error, "cannot write an event"),
                Err(_) => warn!(reason = note.reason, "gave up waiting for the host's API server to take an event"),
            }
        }
    }
}
