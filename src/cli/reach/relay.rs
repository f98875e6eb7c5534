//! Relay pods: made when one is needed, waited for, used by port-forwards, deleted.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use data_encoding::HEXLOWER;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::plan::objects::{RELAY_LABEL, RELAY_PORT, RelayOrder, relay_pod};
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::exit::TIMED_OUT;
use crate::cli::failure::Failure;
use crate::cli::host::{Host, explain};

/// Time for the host to open a port-forward.
const FORWARD_LIMIT: Duration = Duration::from_secs(20);

/// Time for the deletion of pods at the end.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at a pod.
const PAUSE: Duration = Duration::from_millis(300);

/// What takes longer than this is told.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a pod's container never starts, in the kubelet's words. What else it waits for may come.
const HOPELESS: [&str; 5] = ["ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CrashLoopBackOff"];

/// The relay pods of one tunnel: one after the other, because each ends by itself when nobody has used it for a while.
pub struct Relays {
    pods: Api<Pod>,
    namespace: String,
    order: RelayOrder,
    /// Time for a pod to run.
    limit: Duration,
    /// The newest. One is made at a time.
    current: tokio::sync::Mutex<Option<String>>,
    /// Names of all that were asked for, before there was an answer.
    made: Mutex<BTreeSet<String>>,
    /// Held while a request for one is under way, which whoever waits for it may not live to see answered.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// A connection through a pod.
pub struct Forward {
    /// Both directions.
    pub stream: DuplexStream,
    /// What the host says when it cannot go on; `None` at the end.
    pub trouble: Pin<Box<dyn Future<Output = Option<String>> + Send>>,
}

impl Relays {
    /// None yet.
    pub fn new(host: &Host, order: RelayOrder, limit: Duration) -> Self {
        Self {
            pods: Api::namespaced(host.client.clone(), &host.namespace),
            namespace: host.namespace.clone(),
            order,
            limit,
            current: tokio::sync::Mutex::default(),
            made: Mutex::default(),
            asking: Arc::default(),
        }
    }

    /// The name of a pod that runs; a new one if there is none.
    ///
    /// # Errors
    /// Says what keeps one from running.
    pub async fn running(&self) -> Result<String> {
        let mut current = self.current.lock().await;
        if let Some(name) = &*current {
            let pod = self.pods.get_opt(name).await.map_err(|error| explain(error, &format!("read pods in namespace {}", self.namespace)))?;
            if pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none() && matches!(state(&pod), State::Runs)) {
                return Ok(name.clone());
            }
        }
        let name = self.start().await?;
        *current = Some(name.clone());
        Ok(name)
    }

    async fn start(&self) -> Result<String> {
        self.clear().await;
        let order = RelayOrder { suffix: HEXLOWER.encode(&rand::random::<[u8; 4]>()), ..self.order.clone() };
        let name = order.name();
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let (pods, asking) = (self.pods.clone(), self.asking.clone().lock_owned().await);
        let asked = tokio::spawn(async move {
            let _asking = asking;
            pods.create(&PostParams::default(), &relay_pod(&order)).await
        });
        asked.await?.map_err(|error| refused(error, &self.namespace))?;
        self.wait(&name).await?;
        Ok(name)
    }

    async fn wait(&self, name: &str) -> Result<()> {
        let start = Instant::now();
        let mut told = String::new();
        loop {
            let pod = self.pods.get(name).await.map_err(|error| explain(error, &format!("read pod {name} in namespace {}", self.namespace)))?;
            let waits_for = match state(&pod) {
                State::Runs => return Ok(()),
                State::Never(why) => return Err(never(name, &self.namespace, &self.order.image, &why).into()),
                State::Waits(what) => what,
            };
            if start.elapsed() > self.limit {
                let what = format!("relay pod {name} in namespace {} does not run after {} s: {waits_for}", self.namespace, self.limit.as_secs());
                let next =
                    "Give it longer with --relay-timeout, remove what it waits for, or expose the cluster (spec.access.service.type) to need no relay pod.";
                return Err(Failure::new(what, next).with_code(TIMED_OUT).into());
            }
            if start.elapsed() > PATIENCE && told != waits_for {
                eprintln!("waiting for relay pod {name} in namespace {}: {waits_for}", self.namespace);
                told = waits_for;
            }
            sleep(PAUSE).await;
        }
    }

    /// Opens a connection through a pod.
    ///
    /// # Errors
    /// Says why there is none.
    pub async fn dial(&self) -> Result<Forward> {
        let name = self.running().await?;
        let what = format!("open a port-forward to pod {name} in namespace {}", self.namespace);
        let Ok(opened) = timeout(FORWARD_LIMIT, self.pods.portforward(&name, &[RELAY_PORT])).await else {
            let what = format!("no answer within {} s to the request to {what}", FORWARD_LIMIT.as_secs());
            return Err(Failure::new(what, "Check that the host's API server and the kubelet of that pod's node answer, then try again.").into());
        };
        let mut forwarder = opened.map_err(|error| explain(error, &what))?;
        match (forwarder.take_stream(RELAY_PORT), forwarder.take_error(RELAY_PORT)) {
            (Some(stream), Some(trouble)) => Ok(Forward { stream, trouble: Box::pin(trouble) }),
            // The port was asked for.
            _ => Err(Failure::new(format!("cannot {what}"), "Try again.").into()),
        }
    }

    /// Deletes what was made.
    pub async fn remove(&self) {
        // What comes into being after its deletion would stay.
        let _asking = timeout(REMOVE_LIMIT, self.asking.lock()).await;
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let at_once = DeleteParams::default();
        let deletions = join_all(made.iter().map(async |name| (name, timeout(REMOVE_LIMIT, self.pods.delete(name, &at_once)).await)));
        for (name, deletion) in deletions.await {
            let why = match deletion {
                Ok(Ok(_)) => continue,
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", REMOVE_LIMIT.as_secs()),
            };
            eprintln!("pod {name} in namespace {} could not be deleted ({why}); it ends by itself within minutes", self.namespace);
        }
    }

    /// Deletes relay pods that have ended by themselves, whoever left them. That this may fail is no reason not to go on.
    async fn clear(&self) {
        let (label, value) = RELAY_LABEL;
        let relays = ListParams::default().labels(&format!("{label}={value}"));
        let Ok(found) = self.pods.list(&relays).await else { return };
        for pod in found.iter().filter(|pod| has_ended(pod)) {
            let _ = self.pods.delete(&pod.name_any(), &DeleteParams::default()).await;
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase))
}

/// How far a pod is.
#[derive(Debug, Eq, PartialEq)]
enum State {
    Runs,
    /// For this.
    Waits(String),
    /// It does not run, because of this.
    Never(String),
}

fn state(pod: &Pod) -> State {
    let status = pod.status.clone().unwrap_or_default();
    let container = status
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == "relay")
        .and_then(|container| container.state.clone())
        .unwrap_or_default();
    let said = |reason: Option<&String>, message: Option<&String>| {
        let parts: Vec<&str> = [reason, message].into_iter().flatten().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
        parts.join(": ")
    };
    if has_ended(pod) {
        let why = match &container {
            ContainerState { terminated: Some(ended), .. } => said(ended.reason.as_ref(), ended.message.as_ref()),
            _ => said(status.reason.as_ref(), status.message.as_ref()),
        };
        return State::Never(if why.is_empty() { "it has ended".to_owned() } else { why });
    }
    if container.running.is_some() {
        return State::Runs;
    }
    if let Some(waiting) = container.waiting {
        let what = said(waiting.reason.as_ref(), waiting.message.as_ref());
        let hopeless = waiting.reason.is_some_and(|reason| HOPELESS.contains(&reason.as_str()));
        return if hopeless { State::Never(what) } else { State::Waits(what) };
    }
    let unscheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    match unscheduled {
        Some(condition) => State::Waits(said(condition.reason.as_ref(), condition.message.as_ref())),
        None => State::Waits("the host has not started it yet".to_owned()),
    }
}

/// What is to be said of a pod that does not run.
fn never(name: &str, namespace: &str, image: &str, why: &str) -> Failure {
    let next = if why.contains("Image") {
        "Name an image that can be pulled with --relay-image, or a Secret to pull it with (--relay-pull-secret); a cluster that is exposed (spec.access.service.type) needs no relay pod."
    } else {
        "Try again; a cluster that is exposed (spec.access.service.type) needs no relay pod."
    };
    Failure::new(format!("relay pod {name} in namespace {namespace} does not run (image {image}): {why}"), next)
}

/// What is to be said when the host takes no pod.
fn refused(error: kube::Error, namespace: &str) -> anyhow::Error {
    let kube::Error::Api(status) = &error else { return explain(error, &format!("create a relay pod in namespace {namespace}")) };
    let said = &status.message;
    let exposed = "a cluster that is exposed (spec.access.service.type) needs no relay pod";
    let next = match status.code {
        403 if said.contains("exceeded quota") => {
            format!("Free what the quota counts (the pod wants 16Mi of memory and 10m of CPU, at most 64Mi and 1); {exposed}.")
        }
        403 if said.contains("PodSecurity") => {
            "Give --relay-image a newer image of the operator, or look at what else changes pods in this namespace.".to_owned()
        }
        403 if said.contains("cannot create resource") => {
            format!("Ask for the ClusterRole kindcluster-connect in this namespace: `kubectl create rolebinding`; {exposed}.")
        }
        400 | 403 | 422 => format!("Ask the host cluster's administrator what pods this namespace takes, and choose the image with --relay-image; {exposed}."),
        _ => return explain(error, &format!("create a relay pod in namespace {namespace}")),
    };
    Failure::new(format!("namespace {namespace} does not take the relay pod that leads to the cluster: {said}"), next).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case::new(json!({}), State::Waits("the host has not started it yet".into()))]
    #[case::no_room(json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}),
        State::Waits("Unschedulable: 0/1 nodes".into()))]
    #[case::pulling(json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating", "")]}), State::Waits("ContainerCreating".into()))]
    #[case::first_try(json!({"phase": "Pending", "containerStatuses": [waiting("ErrImagePull", "no such tag")]}), State::Waits("ErrImagePull: no such tag".into()))]
    #[case::no_image(json!({"phase": "Pending", "containerStatuses": [waiting("ImagePullBackOff", "no such tag")]}), State::Never("ImagePullBackOff: no such tag".into()))]
    #[case::runs(json!({"phase": "Running", "containerStatuses": [container(&json!({"running": {}}))]}), State::Runs)]
    #[case::idle(json!({"phase": "Succeeded", "containerStatuses": [container(&json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))]}), State::Never("Completed".into()))]
    #[case::evicted(json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}), State::Never("Evicted: disk".into()))]
    fn states(#[case] status: Value, #[case] expected: State) {
        let mut pod = json!({"metadata": {}});
        pod["status"] = status;
        assert_eq!(state(&serde_json::from_value(pod).unwrap()), expected);
    }

    fn container(state: &Value) -> Value {
        json!({"name": "relay", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
    }

    fn waiting(reason: &str, message: &str) -> Value {
        container(&json!({"waiting": {"reason": reason, "message": message}}))
    }

    #[rstest]
    #[case::quota(403, "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1", "Free what the quota counts")]
    #[case::right(403, "pods is forbidden: User \"u\" cannot create resource \"pods\" in API group \"\"", "kindcluster-connect")]
    #[case::webhook(400, "admission webhook \"w\" denied the request: only from our registry", "--relay-image")]
    #[case::busy(500, "etcdserver: request timed out", "try again")]
    fn refusals_say_what_to_do(#[case] code: u16, #[case] message: &str, #[case] next: &str) {
        let error = kube::Error::Api(Box::new(Status { code, message: message.to_owned(), ..Status::default() }));
        let said = refused(error, "marsh").to_string();
        assert!(said.contains(message) && said.contains(next), "{said}");
    }
}
