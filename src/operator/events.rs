//! Events for users: one per transition that is worth telling.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use nestling_core::api::conditions::clip;
use nestling_core::api::{FIELD_MANAGER, KindCluster};
use nestling_core::plan::notes::Note;
use tokio::time::timeout;
use tracing::warn;

/// The API takes 1024 bytes.
const TEXT_LIMIT: usize = 1000;

/// An event is not worth a longer wait.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who tells.
const CONTROLLER: &str = "nestling.dev/operator";

/// Tells users. Not by kube's `Recorder`, which keeps every event for minutes and goes through all of them for each new one, to find repetitions: there are
/// none here, since each event is a transition.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

impl Events {
    /// Events in the name of this process.
    pub fn new(client: Client, identity: &str) -> Self {
        Self { client, instance: clip(identity, 128).to_owned() }
    }

    /// Publishes notes. An event that cannot be written is logged and forgotten: the status says the same.
    pub async fn publish(&self, cluster: &KindCluster, notes: Vec<Note>) {
        let api: Api<Event> = Api::namespaced(self.client.clone(), cluster.metadata.namespace.as_deref().unwrap_or_default());
        for note in notes {
            let event = self.event(Timestamp::now(), cluster, &note);
            match timeout(TIMEOUT, api.create(&PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }, &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => warn!(reason = note.reason, %error, "cannot write an event"),
                Err(_) => warn!(reason = note.reason, "gave up waiting for the host's API server to take an event"),
            }
        }
    }

    fn event(&self, now: Timestamp, cluster: &KindCluster, note: &Note) -> Event {
        let name = cluster.metadata.name.as_deref().unwrap_or_default();
        Event {
            // As everybody names them.
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: cluster.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(note.reason.to_owned()),
            note: Some(clip(&note.message, TEXT_LIMIT).to_owned()),
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(cluster.object_ref(&())),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::mock::{Answer, Mock};
    use nestling_core::api::KindClusterSpec;
    use serde_json::json;

    #[tokio::test]
    async fn each_note_is_an_event_about_the_object() {
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            let path = "/apis/events.k8s.io/v1/namespaces/marsh/events";
            let sent = mock.expect("POST", path, Answer::ok(json!({"metadata": {"name": "e"}, "eventTime": null}))).await;
            assert_eq!((&sent["reason"], &sent["type"], &sent["regarding"]["uid"]), (&json!("Ready"), &json!("Normal"), &json!("u")));
            assert_eq!(
                (&sent["regarding"]["kind"], &sent["reportingController"], &sent["reportingInstance"]),
                (&json!("KindCluster"), &json!(CONTROLLER), &json!("heron"))
            );
            let refused = mock.expect("POST", path, Answer::refused(403, "Forbidden", "no")).await;
            assert_eq!((&refused["type"], refused["note"].as_str().unwrap().len()), (&json!("Warning"), TEXT_LIMIT));
            mock.done().await;
        });
        let mut cluster = KindCluster::new("crane", KindClusterSpec::default());
        (cluster.metadata.namespace, cluster.metadata.uid) = (Some("marsh".into()), Some("u".into()));
        let note = |warning, message: String| Note { warning, reason: "Ready", message };
        Events::new(client, "heron").publish(&cluster, vec![note(false, "the cluster is ready".into()), note(true, "x".repeat(2000))]).await;
        server.await.unwrap();
    }
}
