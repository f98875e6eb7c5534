//! A KindCluster. It goes with its value, also after a failure.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use nestling_lab::command::output;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::cgroup::Groups;
use super::kubectl::Kubectl;
use super::setup::{LABEL, NAMESPACE, Setup};

/// How much a cluster asks of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Size {
    /// What a user gets who says nothing.
    Default,
    /// The same, but so little CPU is asked for that ten fit on a host with two cores. They may use more.
    Small,
}

/// The cluster.
pub struct Nested<'a> {
    setup: &'a Setup,
    name: String,
    start: Instant,
    kubeconfig: Option<NamedTempFile>,
    deleted: bool,
}

/// A cluster that has become ready.
pub struct Ready {
    /// Seconds since `kubectl apply`.
    pub seconds: f64,
    /// The stages of its status, in order, with the seconds of each.
    pub stages: Vec<(String, f64)>,
}

/// A cluster's pod.
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node of the host that it runs on: the name of that node's container, too.
    pub node: String,
}

impl<'a> Nested<'a> {
    /// `kubectl apply`. Its API server is to be reached from this machine, by a port of the host's node.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn apply(setup: &'a Setup, name: &str, nodes: usize, size: Size) -> Result<Self> {
        let object = json!({
            "apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL: "true"}},
            "spec": spec(nodes, size),
        });
        let start = Instant::now();
        let nested = Self { setup, name: name.to_owned(), start, kubeconfig: None, deleted: false };
        setup.host.put("apply", &object)?;
        Ok(nested)
    }

    /// Since `kubectl apply`.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Waits until it is Ready.
    ///
    /// # Errors
    /// If it is not within ten minutes, with its conditions.
    pub fn ready(&self) -> Result<Ready> {
        self.wait("Ready=True", "10m")?;
        let seconds = self.start.elapsed().as_secs_f64();
        Ok(Ready { seconds, stages: stages(&self.object()?) })
    }

    /// kubectl for it, from this machine, by its published Secret.
    ///
    /// # Errors
    /// If the Secret does not hold the address outside of the host.
    pub fn kubectl(&mut self) -> Result<Kubectl> {
        let secret = format!("{}-kubeconfig", self.name);
        let text = self.setup.host.run(&["get", "secret", "-n", NAMESPACE, &secret, "-o", "go-template={{.data.external | base64decode}}"])?;
        let file = NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        let kubectl = Kubectl::new(self.setup.host.program(), file.path().to_owned());
        self.kubeconfig = Some(file);
        Ok(kubectl)
    }

    /// Orders a power state.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn order(&self, state: &str) -> Result<()> {
        let patch = json!({"spec": {"powerState": state}}).to_string();
        self.setup.host.run(&["patch", "kindcluster", "-n", NAMESPACE, &self.name, "--type=merge", "-p", &patch]).map(drop)
    }

    /// Orders a state that suspends, and waits until it is there; how long that took.
    ///
    /// # Errors
    /// If it is not within five minutes.
    pub fn suspend(&self, state: &str) -> Result<f64> {
        let start = Instant::now();
        self.order(state)?;
        self.wait("Suspended=True", "5m")?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Waits for a condition of it, by `kubectl wait`.
    ///
    /// # Errors
    /// If it does not come in this time, with its conditions.
    pub fn wait(&self, condition: &str, timeout: &str) -> Result<()> {
        let (condition, timeout) = (format!("--for=condition={condition}"), format!("--timeout={timeout}"));
        let waited = self.setup.host.run(&["wait", "kindcluster", "-n", NAMESPACE, &self.name, &condition, &timeout]);
        waited.map(drop).with_context(|| format!("the KindCluster {}: {}", self.name, self.object().map_or_else(|error| error.to_string(), |it| describe(&it))))
    }

    /// The pod that it runs in.
    ///
    /// # Errors
    /// If its status does not name one.
    pub fn pod(&self) -> Result<Pod> {
        let object = self.object()?;
        let field = |name: &str| {
            let text = object.pointer(&format!("/status/podRef/{name}")).and_then(Value::as_str);
            text.map(str::to_owned).with_context(|| format!("status.podRef of {} has no {name}", self.name))
        };
        Ok(Pod { namespace: field("namespace")?, name: field("name")?, uid: field("uid")?, node: field("nodeName")? })
    }

    /// The control groups of its pod.
    ///
    /// # Errors
    /// If they are not found.
    pub fn groups(&self) -> Result<Groups> {
        let uid = self.pod()?.uid;
        // The second is systemd's way of writing it.
        Groups::find(&[format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))])
    }

    /// Deletes it and waits until it is gone; how long that took.
    ///
    /// # Errors
    /// If it is not within ten minutes.
    pub fn delete(mut self) -> Result<f64> {
        let start = Instant::now();
        self.setup.host.run(&["delete", "kindcluster", "-n", NAMESPACE, &self.name, "--timeout=10m"])?;
        self.deleted = true;
        Ok(start.elapsed().as_secs_f64())
    }

    fn object(&self) -> Result<Value> {
        self.setup.host.json(&["get", "kindcluster", "-n", NAMESPACE, &self.name])
    }
}

impl Drop for Nested<'_> {
    fn drop(&mut self) {
        if self.deleted {
            return;
        }
        let gone = output(self.setup.host.command().args(["delete", "kindcluster", "-n", NAMESPACE, &self.name, "--ignore-not-found", "--timeout=10m"]));
        if let Err(error) = gone {
            eprintln!("the KindCluster {} is left: {error:#}", self.name);
        }
    }
}

fn spec(nodes: usize, size: Size) -> Value {
    let mut spec = json!({"access": {"service": {"type": "NodePort"}}});
    if nodes > 1 {
        spec["nodes"] = json!({"controlPlanes": 1, "workers": nodes - 1});
    }
    if size == Size::Small {
        spec["resources"] = json!({"requests": {"cpu": "50m"}});
    }
    spec
}

fn stages(object: &Value) -> Vec<(String, f64)> {
    let stages = object.pointer("/status/stages").and_then(Value::as_array);
    let one = |stage: &Value| Some((stage["name"].as_str()?.to_owned(), stage["milliseconds"].as_f64()? / 1000.0));
    stages.into_iter().flatten().filter_map(one).collect()
}

fn describe(object: &Value) -> String {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    let line =
        |condition: &Value| format!("{}={} {} {}", text(condition, "type"), text(condition, "status"), text(condition, "reason"), text(condition, "message"));
    let lines: Vec<String> = conditions.into_iter().flatten().map(line).collect();
    format!("{}\nlast failure: {}", lines.join("\n"), object.pointer("/status/lastFailure").unwrap_or(&Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestling_core::api::KindClusterSpec;

    #[test]
    fn what_is_asked_for_is_a_spec() {
        for (nodes, size) in [(1, Size::Default), (1, Size::Small), (3, Size::Default), (3, Size::Small)] {
            let read: KindClusterSpec = serde_json::from_value(spec(nodes, size)).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), spec(nodes, size), "a field is not known");
        }
    }

    #[test]
    fn stages_are_read_in_order() {
        let object = json!({"status": {"stages": [{"name": "Preflight", "milliseconds": 250}, {"name": "StartingDocker", "milliseconds": 1500}]}});
        assert_eq!(stages(&object), [("Preflight".to_owned(), 0.25), ("StartingDocker".to_owned(), 1.5)]);
        assert!(stages(&json!({})).is_empty());
    }

    #[test]
    fn a_failure_shows_conditions() {
        let object = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Queued", "message": "2 before it"}]}});
        assert_eq!(describe(&object), "Ready=False Queued 2 before it\nlast failure: null");
    }
}
