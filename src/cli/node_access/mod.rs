//! Access to the nodes of a nested cluster with nothing but its kubeconfig: by short-lived privileged pods in it.

mod exec;
mod input;

use std::time::Duration;

use anyhow::Result;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use nestling_core::plan::objects::{NODE_POD_LABEL, NODE_POD_NAMESPACE, image_on, node_pod};
use tokio::time::{Instant, sleep, timeout};

pub use exec::{on_terminal, pass, run};
pub use input::Input;

use super::exit::{GONE, TIMED_OUT};
use super::failure::{Failure, command};
use super::host::refused;

/// How long a pod may take to run. Its image is there.
const START_LIMIT: Duration = Duration::from_mins(2);

/// Pause between two looks at it.
const PAUSE: Duration = Duration::from_millis(200);

/// How long taking the pods back may take, at the end of a verb.
const REMOVE_LIMIT: Duration = Duration::from_secs(20);

/// Pods, one for each of some nodes. They are taken back with [`NodePods::remove`], whatever came of the work; what is left of a verb that was killed ends by
/// itself, and the next verb clears it away.
pub struct NodePods {
    /// Their API.
    pub pods: Api<Pod>,
    run: String,
}

impl NodePods {
    /// A verb that has no pods yet.
    pub fn new(client: &Client) -> Self {
        Self { pods: Api::namespaced(client.clone(), NODE_POD_NAMESPACE), run: format!("{:016x}", rand::random::<u64>()) }
    }

    /// Makes a pod on this node and waits until it runs; its name. It lives for so long at most.
    ///
    /// # Errors
    /// What keeps it from running, and what to do about that.
    pub async fn start(&self, node: &Node, life: Duration) -> Result<String> {
        let name = node.name_any();
        let Some(image) = image_on(node) else {
            let next = format!("See whether the node is ready: `kubectl describe node {name}`. Then try again.");
            return Err(Failure::new(format!("node {name} does not say which images it has"), next).into());
        };
        let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let pod = node_pod(&name, &image, &self.run, seconds);
        let made = self.pods.create(&PostParams::default(), &pod).await.map_err(|error| answer(error, "create a privileged pod in its kube-system"))?;
        let pod = made.name_any();
        let begin = Instant::now();
        loop {
            let seen = self.pods.get(&pod).await.map_err(|error| answer(error, "read a pod in its kube-system"))?;
            let status = seen.status.unwrap_or_default();
            match status.phase.as_deref() {
                Some("Running") => return Ok(pod),
                Some("Failed" | "Succeeded") => {
                    let why = status.message.or(status.reason).unwrap_or_else(|| "it has ended".to_owned());
                    return Err(Failure::new(format!("the pod on node {name} does not run: {why}"), "Try again; the node may be short of resources.").into());
                }
                _ => {}
            }
            if begin.elapsed() > START_LIMIT {
                let waiting = status.container_statuses.iter().flatten().find_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone());
                let why = waiting.map(|why| format!(": {why}")).unwrap_or_default();
                let what = format!("the pod on node {name} does not run after {} s{why}", START_LIMIT.as_secs());
                return Err(Failure::new(what, format!("See whether the node is ready: `kubectl get node {name}`.")).with_code(TIMED_OUT).into());
            }
            sleep(PAUSE).await;
        }
    }

    /// Takes all pods of this verb back, and those that have ended of earlier ones. What cannot be taken back ends by itself.
    pub async fn remove(&self) {
        let removing = async {
            let Ok(left) = self.pods.list(&ListParams::default().labels(NODE_POD_LABEL)).await else { return };
            let ended =
                |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Failed" || phase == "Succeeded");
            let ours = |pod: &Pod| pod.labels().get(NODE_POD_LABEL) == Some(&self.run);
            let params = DeleteParams::default().grace_period(0);
            let names: Vec<String> = left.iter().filter(|pod| ours(pod) || ended(pod)).map(ResourceExt::name_any).collect();
            futures::future::join_all(names.iter().map(|name| self.pods.delete(name, &params))).await;
        };
        if timeout(REMOVE_LIMIT, removing).await.is_err() {
            eprintln!("the pods with the label {NODE_POD_LABEL}={} in kube-system could not be deleted in time; they end by themselves", self.run);
        }
    }
}

/// The nodes of a cluster: those that are named, or all.
///
/// # Errors
/// If one that is named does not exist (exit code [`GONE`]), or if they cannot be listed.
pub async fn nodes(client: &Client, cluster: &str, wanted: &[String]) -> Result<Vec<Node>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let listed = nodes.list(&ListParams::default()).await.map_err(|error| answer(error, "list its nodes"))?.items;
    let names: Vec<String> = listed.iter().map(ResourceExt::name_any).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        let next = format!("Name one of them: {}.", names.join(", "));
        return Err(Failure::new(format!("{cluster} has no node {unknown}"), next).with_code(GONE).into());
    }
    if listed.is_empty() {
        let next = format!("Wait until it is ready: `{}`.", command(&format!("wait {cluster}")));
        return Err(Failure::new(format!("{cluster} has no node"), next).into());
    }
    Ok(listed.into_iter().filter(|node| wanted.is_empty() || wanted.contains(&node.name_any())).collect())
}

/// As [`NodePods::start`], on each of these nodes; node and pod, in the order of the nodes.
///
/// # Errors
/// Those of the first node where it fails.
pub async fn start_all(pods: &NodePods, nodes: &[Node], life: Duration) -> Result<Vec<(String, String)>> {
    try_join_all(nodes.iter().map(|node| async { Ok((node.name_any(), pods.start(node, life).await?)) })).await
}

/// An answer of the nested API server in words.
fn answer(error: kube::Error, what: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            let next = "Use a kubeconfig of its administrator; in a cluster with Pod Security of its own, kube-system has to allow privileged pods.";
            Failure::new(format!("the nested cluster does not let you {what}: {}", status.message), next).into()
        }
        kube::Error::Api(status) => refused(status.code, &status.message, &format!("{what} in the nested cluster")).into(),
        other => Failure::new(format!("cannot {what}: {other}"), "The nested cluster does not answer; try again in a moment.").into(),
    }
}
