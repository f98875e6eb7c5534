//! The first application in a cluster: the stages "App Running" and "DNS Answering" of minikube's time-to-k8s.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::kubectl::{Kubectl, again};
use super::setup::TOOLS;

const APP: &str = "bench-app";

/// Most time that a pod may take.
const LIMIT: Duration = Duration::from_mins(4);

/// Asks for its own Service until there is an answer. One try ends after a second, whatever resolv.conf says.
const ASK: &str = "export RES_OPTIONS='timeout:1 attempts:1'; end=$((SECONDS + 120))
until getent hosts bench-app.default.svc.cluster.local >/dev/null; do [ $SECONDS -lt $end ] || exit 1; sleep 0.05; done";

/// When, in seconds since the start of the cluster's creation.
pub struct Times {
    /// The pod of a Deployment runs and is ready.
    pub running: f64,
    /// In that pod, the name of a Service resolves.
    pub dns: f64,
}

/// Puts an application into a cluster that is ready.
///
/// # Errors
/// What kubectl says, or what did not come in time.
pub fn start(kubectl: &Kubectl, since: Instant) -> Result<Times> {
    kubectl.put("apply", &manifests())?;
    kubectl.run(&["wait", "deployment", APP, "--for=condition=Available", "--timeout=4m"])?;
    let running = since.elapsed().as_secs_f64();
    let target = format!("deployment/{APP}");
    again("a name resolves in a pod", LIMIT, || kubectl.run(&["exec", &target, "--", "bash", "-c", ASK]))?;
    Ok(Times { running, dns: since.elapsed().as_secs_f64() })
}

/// Creates a pod as soon as the API server takes it, and waits until it runs.
///
/// # Errors
/// What did not come in time.
pub fn new_pod(kubectl: &Kubectl, name: &str) -> Result<()> {
    let pod = pod(name);
    again("the API server takes a new pod", LIMIT, || match kubectl.put("create", &pod) {
        // The answer to an earlier try was lost.
        Err(error) if format!("{error:#}").contains("AlreadyExists") => Ok(()),
        done => done,
    })?;
    // A watch may break while the API server starts.
    again("the new pod runs", LIMIT, || kubectl.run(&["wait", "pod", name, "--for=jsonpath={.status.phase}=Running", "--timeout=60s"]))?;
    let phase = kubectl.run(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
    ensure!(phase == "Running", "the new pod is {phase}");
    Ok(())
}

/// Removes a pod of [`new_pod`].
///
/// # Errors
/// What kubectl says.
pub fn delete_pod(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(&["delete", "pod", name, "--now", "--timeout=1m"]).map(drop)
}

fn container() -> Value {
    json!({"name": "app", "image": TOOLS, "imagePullPolicy": "Never", "command": ["sleep", "infinity"]})
}

fn pod(name: &str) -> Value {
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container()]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn manifests() -> Value {
    let labels = json!({"app": APP});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": APP}, "spec": {"selector": labels, "ports": [{"port": 80}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP}, "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container()]}},
        }},
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Pod, Service};

    #[test]
    fn the_manifests_are_what_they_say_and_the_name_asked_for_is_the_services() {
        let list = manifests();
        let service: Service = serde_json::from_value(list["items"][0].clone()).unwrap();
        let deployment: Deployment = serde_json::from_value(list["items"][1].clone()).unwrap();
        let (template, selector) = (deployment.spec.unwrap().template, service.spec.unwrap().selector);
        assert_eq!(template.metadata.unwrap().labels, selector);
        assert!(ASK.contains(&format!("{}.default.svc", service.metadata.name.unwrap())));
        let pod: Pod = serde_json::from_value(pod("x")).unwrap();
        assert_eq!(pod.spec.unwrap().containers[0].image.as_deref(), Some(TOOLS));
    }
}
