//! The cluster that the agent serves, by way of its API server and of its nodes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, ObjectMeta, TypeMeta};
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use kube::{Client, Error};
use nestling_core::api::DeploymentReference;
use nestling_core::plan::contents::Gate;
use serde_json::Value;
use tokio::time::timeout;

use super::{Cluster, Record, dns};
use crate::agent::certificates::Place;

/// Who has set a field, as others see it.
const MANAGER: &str = "nestling";

/// The note of what was applied, in `kube-system`.
const NOTE: &str = "nestling-manifests";
const NOTE_NAMESPACE: &str = "kube-system";

/// Namespace of what names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Time for one request: webhooks may take ten seconds each.
const LIMIT: Duration = Duration::from_secs(30);

/// The cluster.
pub struct Inside<'a> {
    client: Client,
    place: &'a Place<'a>,
    /// Kinds that were found.
    kinds: Mutex<BTreeMap<(String, String), (ApiResource, ApiCapabilities)>>,
}

impl<'a> Inside<'a> {
    /// With a client of its API server.
    pub fn new(client: Client, place: &'a Place<'a>) -> Self {
        Self { client, place, kinds: Mutex::default() }
    }

    async fn kind(&self, object: &Value) -> Result<(ApiResource, ApiCapabilities), Refusal> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let key = (text("apiVersion"), text("kind"));
        if let Ok(kinds) = self.kinds.lock()
            && let Some(found) = kinds.get(&key)
        {
            return Ok(found.clone());
        }
        let types = TypeMeta { api_version: key.0.clone(), kind: key.1.clone() };
        let kind = GroupVersionKind::try_from(&types).map_err(|_| Refusal::NoKind)?;
        let found = within(pinned_kind(&self.client, &kind)).await.map_err(|refusal| match refusal {
            Refusal::Kube(error) if matches!(&*error, Error::Discovery(_)) || matches!(&*error, Error::Api(status) if status.code == 404) => Refusal::NoKind,
            other => other,
        })?;
        if let Ok(mut kinds) = self.kinds.lock() {
            kinds.insert(key, found.clone());
        }
        Ok(found)
    }

    async fn apply_object(&self, object: &Value) -> Result<(), Refusal> {
        let (resource, capabilities) = self.kind(object).await?;
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE), &resource),
        };
        let name = text("/metadata/name").unwrap_or_default();
        // The manifest wins over who has changed a field by hand: it was changed last.
        within(api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))).await.map(drop)
    }

    async fn is_available(&self, wanted: &DeploymentReference) -> Result<(), String> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &wanted.namespace);
        let found = within(api.get_opt(&wanted.name)).await.map_err(|refusal| refusal.text(false))?;
        availability(&found.ok_or("there is none of that name")?)
    }

    async fn resolves(&self) -> Result<(), String> {
        for node in self.place.control_planes().await? {
            if let Some(pid) = self.place.docker.pid(&node).await {
                return dns::resolves(pid).await;
            }
        }
        Err("no control plane runs".to_owned())
    }
}

/// Whether a Deployment is available, in its newest form.
fn availability(deployment: &Deployment) -> Result<(), String> {
    let status = deployment.status.clone().unwrap_or_default();
    if status.observed_generation < deployment.metadata.generation {
        return Err("its controller has not seen it yet".to_owned());
    }
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "Available");
    if condition.is_some_and(|condition| condition.status == "True") {
        return Ok(());
    }
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    Err(format!("{} of {wanted} replicas are available", status.available_replicas.unwrap_or(0)))
}

impl Cluster for Inside<'_> {
    async fn record(&self) -> Result<Record, String> {
        let notes: Api<Secret> = Api::namespaced(self.client.clone(), NOTE_NAMESPACE);
        let found = within(notes.get_opt(NOTE)).await.map_err(|refusal| refusal.text(true))?;
        let text = |(name, digest): (String, ByteString)| Some((name, String::from_utf8(digest.0).ok()?));
        Ok(found.and_then(|note| note.data).unwrap_or_default().into_iter().filter_map(text).collect())
    }

    async fn note(&self, record: &Record) -> Result<(), String> {
        let notes: Api<Secret> = Api::namespaced(self.client.clone(), NOTE_NAMESPACE);
        let note = Secret {
            metadata: ObjectMeta { name: Some(NOTE.to_owned()), ..ObjectMeta::default() },
            data: Some(record.iter().map(|(name, digest)| (name.clone(), ByteString(digest.clone().into_bytes()))).collect()),
            ..Secret::default()
        };
        within(notes.patch(NOTE, &PatchParams::apply(MANAGER).force(), &Patch::Apply(note))).await.map(drop).map_err(|refusal| refusal.text(true))
    }

    async fn apply(&self, object: &Value, quiet: bool) -> Result<(), String> {
        let quiet = quiet || object["kind"] == "Secret";
        self.apply_object(object).await.map_err(|refusal| refusal.text(quiet))
    }

    async fn look(&self, gate: &Gate) -> Result<(), String> {
        match gate {
            Gate::Dns => self.resolves().await,
            Gate::Deployment(deployment) => self.is_available(deployment).await,
        }
    }
}

/// What was not done.
#[derive(Debug)]
enum Refusal {
    NoKind,
    TimedOut,
    Kube(Box<Error>),
}

impl Refusal {
    /// For people. `quiet`: without the API server's own words, which may quote what it was sent.
    fn text(&self, quiet: bool) -> String {
        match self {
            Self::NoKind => "the cluster does not know its kind (yet)".to_owned(),
            Self::TimedOut => format!("no answer within {} s", LIMIT.as_secs()),
            Self::Kube(error) => match &**error {
                Error::Api(status) if quiet || status.message.is_empty() => format!("refused: {} {}", status.code, status.reason),
                Error::Api(status) => status.message.clone(),
                _ => "the API server does not answer".to_owned(),
            },
        }
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    timeout(LIMIT, request).await.map_err(|_| Refusal::TimedOut)?.map_err(|error| Refusal::Kube(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "conditions": [{"type": "Available", "status": "True"}]}}), None)]
    #[case(json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2, "conditions": [{"type": "Available", "status": "True"}]}}), Some("not seen"))]
    #[case(json!({"metadata": {"generation": 1}}), Some("not seen"))]
    #[case(json!({"metadata": {"generation": 1}, "spec": {"replicas": 3, "selector": {}, "template": {}},
        "status": {"observedGeneration": 1, "availableReplicas": 1, "conditions": [{"type": "Available", "status": "False"}]}}), Some("1 of 3"))]
    fn deployments_are_available_in_their_newest_form(#[case] deployment: Value, #[case] expected: Option<&str>) {
        let found = availability(&serde_json::from_value(deployment).unwrap());
        assert!(found.as_ref().err().map(String::as_str).zip(expected).is_none_or(|(found, part)| found.contains(part)), "{found:?}");
        assert_eq!(found.is_ok(), expected.is_none());
    }

    #[test]
    fn what_a_server_says_of_a_secret_is_not_repeated() {
        let status = Status { message: "Secret \"s\" is invalid: data[k]: \"hidden\"".into(), reason: "Invalid".into(), code: 422, ..Status::default() };
        let refusal = Refusal::Kube(Box::new(Error::Api(Box::new(status))));
        assert_eq!(refusal.text(true), "refused: 422 Invalid");
        assert!(refusal.text(false).contains("hidden"));
        let broken = serde_json::from_str::<u8>("\"hidden\"").unwrap_err();
        assert!(!Refusal::Kube(Box::new(Error::SerdeError(broken))).text(false).contains("hidden"));
    }
}
