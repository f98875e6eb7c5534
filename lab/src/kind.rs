//! The kind command line, and the cluster configuration that this machine needs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::command::{last_lines, output, succeeds};
use crate::docker::Docker;
use crate::machine::Machine;

/// Without the privilege to lower a score, every container start fails unless containerd is told not to try.
const RESTRICT_OOM_SCORE: &str = r#"[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
"#;
/// On cgroup v1 the systemd driver works for the first cluster after boot and fails for every later one.
const CGROUPFS_CONTAINERD: &str = r#"[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.test-handler.options]
  SystemdCgroup = false
"#;
const CGROUPFS_KUBELET: &str = "kind: KubeletConfiguration\ncgroupDriver: cgroupfs\ncgroupRoot: /kubelet\n";

/// One stage of a cluster's creation, as kind prints it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// kind's words.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// The kind program and the kubeconfig that it writes to.
#[derive(Clone, Debug)]
pub struct Kind {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kind {
    /// A kind program that writes to its own kubeconfig and never to the user's.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// Creates a cluster, waits until it is ready, and returns how long each stage took.
    pub fn create(&self, name: &str, image: &str, config: &Value) -> Result<Vec<Stage>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), serde_json::to_vec_pretty(config)?)?;
        let mut child = self
            .command()
            .args(["create", "cluster", "--name", name, "--image", image, "--wait", "5m", "--config"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kind")?;
        let lines = BufReader::new(child.stderr.take().context("kind has no error stream")?).lines();
        let mut clock = StageClock::new(Instant::now());
        let mut text = String::new();
        for line in lines {
            let line = line?;
            clock.line(&line, Instant::now());
            text.push_str(&line);
            text.push('\n');
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("kind create cluster {name} ended with {status}:\n{}", last_lines(&text, 40));
        }
        Ok(clock.stages)
    }

    /// Deletes a cluster; one that is not there is deleted already.
    pub fn delete(&self, name: &str) -> Result<()> {
        output(self.command().args(["delete", "cluster", "--name", name])).map(drop)
    }

    /// The names of a cluster's node containers.
    pub fn nodes(&self, name: &str) -> Result<Vec<String>> {
        let listed = output(self.command().args(["get", "nodes", "--name", name]))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Whether every node of the cluster says that it is ready.
    pub fn is_ready(&self, kubectl: &Path, nodes: usize) -> bool {
        let kubectl = || {
            let mut command = Command::new(kubectl);
            command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=5s");
            command
        };
        let conditions = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status}{"\n"}{end}"#;
        succeeds(kubectl().args(["get", "--raw", "/readyz"]))
            && output(kubectl().args(["get", "nodes", "-o", conditions])).is_ok_and(|ready| ready.lines().filter(|line| *line == "True").count() == nodes)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).env("KIND_EXPERIMENTAL_PROVIDER", "docker");
        command
    }
}

/// Removes a cluster's node containers with their volumes, as `kind delete cluster` does, where the program itself may
/// not be built any more.
pub fn remove_nodes(docker: &Docker, name: &str) -> Result<()> {
    let label = format!("label=io.x-k8s.kind.cluster={name}");
    let listed = docker.run(&["ps", "-aq", "--filter", &label])?;
    if listed.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["rm", "-f", "-v"];
    arguments.extend(listed.lines());
    docker.run(&arguments).map(drop)
}

/// The configuration of a cluster that works on this machine: kind's defaults and only the patches it needs.
pub fn cluster_config(machine: &Machine, nodes: usize) -> Value {
    let mut containerd = Vec::new();
    let mut kubeadm = Vec::new();
    if machine.restricts_oom_score() {
        containerd.push(RESTRICT_OOM_SCORE);
    }
    if machine.cgroup_v1 {
        containerd.push(CGROUPFS_CONTAINERD);
        kubeadm.push(CGROUPFS_KUBELET);
    }
    let roles: Vec<Value> = (0..nodes).map(|node| json!({ "role": if node == 0 { "control-plane" } else { "worker" } })).collect();
    json!({
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "nodes": roles,
        "containerdConfigPatches": containerd,
        "kubeadmConfigPatches": kubeadm,
    })
}

/// Measures the time between the lines in which kind says that a stage is over.
struct StageClock {
    since: Instant,
    stages: Vec<Stage>,
}

impl StageClock {
    fn new(since: Instant) -> Self {
        Self { since, stages: Vec::new() }
    }

    fn line(&mut self, line: &str, now: Instant) {
        if let Some((_, words)) = line.split_once('✓') {
            let name: String = words.chars().filter(char::is_ascii).collect();
            self.stages.push(Stage { name: name.trim().to_owned(), seconds: (now - self.since).as_secs_f64() });
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn machine(cgroup_v1: bool, missing: &[&'static str]) -> Machine {
        Machine { cgroup_v1, missing_capabilities: missing.iter().copied().collect() }
    }

    #[test]
    fn an_ordinary_machine_gets_kinds_defaults() {
        let config = cluster_config(&machine(false, &[]), 2);
        assert_eq!(config["containerdConfigPatches"], json!([]));
        assert_eq!(config["kubeadmConfigPatches"], json!([]));
        assert_eq!(config["nodes"], json!([{ "role": "control-plane" }, { "role": "worker" }]));
    }

    #[test]
    fn an_old_or_hardened_machine_gets_the_patches_it_needs() {
        let config = cluster_config(&machine(true, &["CAP_SYS_RESOURCE"]), 1);
        assert_eq!(config["containerdConfigPatches"].as_array().unwrap().len(), 2);
        assert!(config["kubeadmConfigPatches"][0].as_str().unwrap().contains("cgroupDriver: cgroupfs"));
    }

    #[test]
    fn stages_are_timed_between_the_lines_that_end_them() {
        let start = Instant::now();
        let mut clock = StageClock::new(start);
        clock.line(" • Preparing nodes 📦   ...", start + Duration::from_secs(1));
        clock.line(" ✓ Preparing nodes 📦 ", start + Duration::from_secs(2));
        clock.line(" ✓ Writing configuration 📜", start + Duration::from_secs(5));
        assert_eq!(clock.stages, [Stage { name: "Preparing nodes".into(), seconds: 2.0 }, Stage { name: "Writing configuration".into(), seconds: 3.0 }]);
    }
}
