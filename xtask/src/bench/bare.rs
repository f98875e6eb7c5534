//! A cluster that the kind command line makes on the machine's own Docker. It goes with its value, also after a failure.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use nestling_lab::Docker;
use nestling_lab::kind::{Kind, Stage, cluster_config, remove_nodes};
use nestling_lab::machine::Machine;
use serde_json::Value;

use super::cgroup::Groups;
use super::kubectl::{Kubectl, again};
use super::setup::Setup;

/// The beginning of all names, so that what is left can be told from other clusters.
pub const PREFIX: &str = "nestling-bench-bare";

/// The label by which kind finds a cluster's containers.
const CLUSTER_LABEL: &str = "io.x-k8s.kind.cluster";

/// Removes the clusters of a run that was broken off.
///
/// # Errors
/// What Docker says.
pub fn remove_left(docker: &Docker) -> Result<()> {
    let (filter, format) = (format!("label={CLUSTER_LABEL}"), format!("{{{{.Label \"{CLUSTER_LABEL}\"}}}}"));
    let listed = docker.run(&["ps", "--all", "--filter", &filter, "--format", &format])?;
    let names: BTreeSet<&str> = listed.lines().filter(|name| name.starts_with(PREFIX)).collect();
    names.into_iter().try_for_each(|name| remove_nodes(docker, name))
}

/// The cluster.
pub struct Bare<'a> {
    setup: &'a Setup,
    kind: Kind,
    name: String,
    kubeconfig: PathBuf,
    start: Instant,
}

impl<'a> Bare<'a> {
    /// `kind create cluster --wait` with kind's defaults, and what this machine's cgroups need; how long it took, and each stage. Clusters that are there at the
    /// same time need different numbers.
    ///
    /// # Errors
    /// What kind says.
    pub fn create(setup: &'a Setup, number: u32, nodes: usize) -> Result<(Self, f64, Vec<Stage>)> {
        let name = format!("{PREFIX}-{number}");
        let kubeconfig = setup.paths.cache().run_directory()?.join(format!("{name}.kubeconfig"));
        let kind = Kind::new(setup.paths.bin("kind")?, kubeconfig.clone());
        // Whatever happens from here on, it is removed.
        let mut bare = Self { setup, kind, name, kubeconfig, start: Instant::now() };
        bare.remove()?;
        let config = cluster_config(&Machine::look()?, nodes);
        bare.start = Instant::now();
        let stages = bare.kind.create(&bare.name, &setup.node_image, &config)?;
        let seconds = bare.start.elapsed().as_secs_f64();
        Ok((bare, seconds, stages))
    }

    /// When kind was started.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// kubectl, for this cluster.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.setup.host.program(), self.kubeconfig.clone())
    }

    /// The container of its only node, by its whole ID.
    ///
    /// # Errors
    /// If there is not one, or what kind and Docker say.
    pub fn container(&self) -> Result<String> {
        let nodes = self.kind.nodes(&self.name)?;
        ensure!(nodes.len() == 1, "the bare cluster {} has the nodes {nodes:?}, not one", self.name);
        self.setup.docker.run(&["inspect", "--format", "{{.Id}}", &nodes[0]])
    }

    /// The control groups of its only node.
    ///
    /// # Errors
    /// If they are not found.
    pub fn groups(&self) -> Result<Groups> {
        Groups::find(&[self.container()?])
    }

    /// `docker <verb>` of its only node; how long it took.
    ///
    /// # Errors
    /// What Docker says.
    pub fn docker(&self, verb: &str) -> Result<f64> {
        let container = self.container()?;
        let start = Instant::now();
        self.setup.docker.run(&[verb, &container])?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// `kind delete cluster`; how long it took.
    ///
    /// # Errors
    /// What kind says.
    pub fn delete(self) -> Result<f64> {
        let start = Instant::now();
        self.kind.delete(&self.name)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn remove(&self) -> Result<()> {
        remove_nodes(&self.setup.docker, &self.name)?;
        if self.kubeconfig.exists() {
            fs::remove_file(&self.kubeconfig).with_context(|| format!("cannot remove {}", self.kubeconfig.display()))?;
        }
        Ok(())
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the bare cluster {} is left: {error:#}", self.name);
        }
    }
}

/// Waits until every node has said since then that it is ready. What it said before a stop still stands in the API afterwards.
///
/// # Errors
/// If it does not in this time.
pub fn nodes_ready_since(kubectl: &Kubectl, since: Timestamp, limit: Duration) -> Result<()> {
    again("all nodes are Ready, by a word that is newer than the start", limit, || {
        let nodes = kubectl.json(&["--request-timeout=2s", "get", "nodes"])?;
        ensure!(ready_since(&nodes, since), "not all are");
        Ok(())
    })
}

fn ready_since(nodes: &Value, since: Timestamp) -> bool {
    let ready = |node: &Value| {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|condition| {
            let heartbeat = condition["lastHeartbeatTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
            // The API counts in whole seconds.
            condition["type"] == "Ready" && condition["status"] == "True" && heartbeat.is_some_and(|at| at.as_second() >= since.as_second())
        })
    };
    nodes["items"].as_array().is_some_and(|nodes| !nodes.is_empty() && nodes.iter().all(ready))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(status: &str, heartbeat: &str) -> Value {
        json!({"status": {"conditions": [
            {"type": "MemoryPressure", "status": "True", "lastHeartbeatTime": "2026-11-26T09:00:00Z"},
            {"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat},
        ]}})
    }

    #[test]
    fn only_a_new_word_counts() {
        let since: Timestamp = "2026-11-26T08:00:00.7Z".parse().unwrap();
        let ready = |nodes: &[Value]| ready_since(&json!({"items": nodes}), since);
        let (old, new) = (node("True", "2026-11-26T07:59:59Z"), node("True", "2026-11-26T08:00:00Z"));
        assert!(ready(std::slice::from_ref(&new)));
        assert!(!ready(std::slice::from_ref(&old)), "said before the start");
        assert!(!ready(&[new.clone(), old]));
        assert!(!ready(&[new, node("False", "2026-11-26T08:00:05Z")]));
        assert!(!ready(&[]), "no node is not all nodes");
    }
}
