//! The driver without the operator: what the operator wrote for one cluster, from an audit log, written again for each of many. What this takes is the
//! API server's and the driver's own.

use std::sync::Arc;

use hyper::Request;
use kube::api::ObjectMeta;
use kube::{Client, ResourceExt};
use nestling_core::api::KindCluster;
use nestling_core::plan::names::Identity;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

/// One write, as text with the names of the cluster that it was for.
struct Write {
    method: &'static str,
    uri: String,
    content_type: &'static str,
    body: Value,
    of_cluster: bool,
}

/// Writes of one cluster's way from its creation to readiness.
pub struct Replay {
    writes: Vec<Write>,
    from: Identity,
}

fn identity(meta: &ObjectMeta) -> Identity {
    Identity { namespace: meta.namespace.clone().unwrap(), name: meta.name.clone().unwrap(), uid: meta.uid.clone().unwrap() }
}

impl Replay {
    /// Those of this user, for the only cluster that there was.
    pub fn new(events: &[Value], user: &str, cluster: &KindCluster) -> Self {
        let ours = events.iter().filter(|event| event["user"]["username"] == user && event["objectRef"]["resource"] != "leases");
        let about = |event: &&Value| event["requestObject"].to_string().contains(&cluster.name_any());
        // What was refused was written again.
        let taken = |event: &&Value| event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300);
        let writes = ours.filter(about).filter(taken).map(|event| {
            let uri = event["requestURI"].as_str().unwrap().to_owned();
            let body = event["requestObject"].clone();
            let (method, content_type) = match event["verb"].as_str().unwrap() {
                "create" => ("POST", "application/json"),
                "update" => ("PUT", "application/json"),
                "patch" if body.is_array() => ("PATCH", "application/json-patch+json"),
                "patch" if uri.contains("force=") => ("PATCH", "application/apply-patch+yaml"),
                "patch" => ("PATCH", "application/merge-patch+json"),
                other => panic!("a cluster on its way to readiness needs no {other}: {event}"),
            };
            Write { method, content_type, of_cluster: event["objectRef"]["resource"] == "kindclusters", uri, body }
        });
        Self { writes: writes.collect(), from: identity(&cluster.metadata) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Writes it all for each cluster that comes, for so many at once.
    pub async fn run(self: Arc<Self>, client: Client, mut created: mpsc::UnboundedReceiver<KindCluster>, at_once: usize) {
        let places = Arc::new(Semaphore::new(at_once));
        while let Some(cluster) = created.recv().await {
            let place = places.clone().acquire_owned().await.unwrap();
            let (replay, client) = (self.clone(), client.clone());
            tokio::spawn(async move {
                replay.of(&client, &cluster).await;
                drop(place);
            });
        }
    }

    async fn of(&self, client: &Client, cluster: &KindCluster) {
        let to = identity(&cluster.metadata);
        let rename = |text: &str| text.replace(&self.from.uid, &to.uid).replace(&self.from.child(), &to.child()).replace(&self.from.name, &to.name);
        let mut version = cluster.resource_version().unwrap();
        for write in &self.writes {
            let mut body = write.body.clone();
            if write.of_cluster {
                if let Some(operations) = body.as_array_mut() {
                    for operation in operations.iter_mut().filter(|operation| operation["path"] == "/metadata/resourceVersion") {
                        operation["value"] = json!(version);
                    }
                } else {
                    body["metadata"]["resourceVersion"] = json!(version);
                }
            }
            let request = Request::builder().method(write.method).uri(rename(&write.uri)).header("content-type", write.content_type);
            let answer: Value = client.request(request.body(rename(&body.to_string()).into_bytes()).unwrap()).await.unwrap();
            if write.of_cluster {
                answer["metadata"]["resourceVersion"].as_str().unwrap().clone_into(&mut version);
            }
        }
    }
}
