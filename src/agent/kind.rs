//! The kind CLI, the only creator of clusters.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use nestling_core::api::kind_config::KindConfig;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::registries::NODE_DIRECTORY;
use nestling_core::plan::wire::{AgentFailure, Stage};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::docker::Docker;
use super::docker_exec;
use super::failure::{evident, failure, judge};
use super::output::{Tail, presentable};
use super::report::Report;
use super::{DOCKER_SOCKET, RUN_DIRECTORY};

/// Bytes of kind's output that are kept as evidence. It prints what the failed command in the node has printed.
const OUTPUT_LIMIT: usize = 32 << 10;

/// Time for one look into a node after a failure.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Nodes that are looked into after a failure.
const LOOKED_INTO: usize = 3;

/// Variables that kind may see, besides those that it gets: a proxy for the nodes.
const PASSED_ON: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];

/// The CLI, for one cluster.
#[derive(Clone, Debug)]
pub struct Kind {
    cluster: String,
}

impl Kind {
    /// For the cluster of this name.
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned() }
    }

    /// Names of the containers of so many control planes, the first one first (`MakeNodeNamer` in kind's providers).
    pub fn control_planes(&self, count: usize) -> Vec<String> {
        let name = |number: usize| format!("{}-control-plane{}", self.cluster, if number == 1 { String::new() } else { number.to_string() });
        (1..=count).map(name).collect()
    }

    /// Name of the container before several control planes.
    pub fn load_balancer(&self) -> String {
        format!("{}-external-load-balancer", self.cluster)
    }

    fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new("kind");
        command
            .args(arguments)
            .env_clear()
            .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("PATH", docker_exec::path())
            .env("HOME", RUN_DIRECTORY)
            // Credentials of registries, where there are any.
            .env("DOCKER_CONFIG", NODE_DIRECTORY)
            .env("DOCKER_HOST", format!("unix://{DOCKER_SOCKET}"))
            .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
            // kind and the docker CLI are short work: threads for more than one processor only cost (a fifth of the CLI's time).
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn kubeconfig() -> PathBuf {
        Path::new(RUN_DIRECTORY).join("kubeconfig")
    }

    /// Version of the CLI, like `v0.33.0`.
    pub async fn version() -> Option<String> {
        let output = timeout(LOOK_LIMIT, Self::command(&["version"]).output()).await.ok()?.ok()?;
        // `kind v0.33.0 go1.25.1 linux/amd64`
        String::from_utf8_lossy(&output.stdout).split_whitespace().find(|word| word.starts_with('v')).map(str::to_owned)
    }

    /// Creates the cluster and tells its steps to the report. Ends kind and all it has started when it is dropped.
    ///
    /// # Errors
    /// What went wrong, found in kind's output and in the nodes; they are kept.
    pub async fn create(&self, config: &KindConfig, docker: &Docker, report: &Report, secrets: &[&str]) -> Result<(), AgentFailure> {
        let broken = |error: String| failure(Reason::KindFailed, format!("kind cannot be run: {error}"));
        let file = Path::new(RUN_DIRECTORY).join("kind.yaml");
        let text = serde_saphyr::to_string(config).map_err(|error| broken(error.to_string()))?;
        write_private(&file, &text).map_err(|error| broken(error.to_string()))?;
        docker_exec::link().map_err(|error| broken(error.to_string()))?;
        clear_lock(&Self::kubeconfig());

        let output = Tail::new(OUTPUT_LIMIT);
        let status = self.run_create(&file, report, &output, secrets).await.map_err(|error| broken(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let mut logs = vec![output.text()];
        logs.extend(self.evidence(docker).await.into_iter().map(|log| presentable(&log, secrets)));
        let (reason, log) = judge(&logs, Reason::KindFailed);
        Err(evident(reason, error_line(&logs[0]), log))
    }

    async fn run_create(&self, file: &Path, report: &Report, output: &Tail, secrets: &[&str]) -> std::io::Result<std::process::ExitStatus> {
        let (file, kubeconfig) = (file.display().to_string(), Self::kubeconfig().display().to_string());
        let arguments = ["create", "cluster", "--name", &self.cluster, "--config", &file, "--retain", "--wait", "0s", "--kubeconfig", &kubeconfig];
        let mut child = Self::command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let mut group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let follow = async |stream: Option<&mut (dyn AsyncRead + Send + Unpin)>| {
            let Some(stream) = stream else { return };
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let line = presentable(&line, secrets);
                if let Some(stage) = Stage::from_kind_line(&line) {
                    report.enter(stage);
                }
                tracing::info!(target: "kind", "{line}");
                output.push(&line);
            }
        };
        let (mut stdout, mut stderr) = (stdout, stderr);
        let (status, (), ()) = tokio::join!(
            child.wait(),
            follow(stdout.as_mut().map(|stream| stream as &mut (dyn AsyncRead + Send + Unpin))),
            follow(stderr.as_mut().map(|stream| stream as &mut (dyn AsyncRead + Send + Unpin))),
        );
        // The number is free for others from now on.
        group.0 = None;
        status
    }

    /// What the nodes themselves say.
    pub async fn evidence(&self, docker: &Docker) -> Vec<String> {
        let journals = ["kubelet", "containerd"].map(|unit| ["journalctl", "--no-pager", "--output", "cat", "-n", "40", "-u", unit]);
        let journals = &journals;
        let containers = docker.containers(&self.cluster).await.unwrap_or_default();
        let looks = containers.iter().take(LOOKED_INTO).map(|container| async {
            let name = container.name.as_str();
            let (printed, journals) = tokio::join!(
                timeout(LOOK_LIMIT, docker.logs(name, 60)),
                join_all(journals.iter().map(|journal| timeout(LOOK_LIMIT, docker.output(name, journal)))),
            );
            std::iter::once(printed).chain(journals).filter_map(|look| look.ok()?.ok()).collect::<Vec<_>>()
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    /// Deletes the cluster; tells whether that went well. Ends kind when it is dropped.
    pub async fn delete(&self) -> bool {
        clear_lock(&Self::kubeconfig());
        let kubeconfig = Self::kubeconfig().display().to_string();
        let run = Self::command(&["delete", "cluster", "--name", &self.cluster, "--kubeconfig", &kubeconfig]).output().await;
        match run {
            Ok(output) if output.status.success() => true,
            Ok(output) => {
                tracing::warn!("kind delete cluster: {}", presentable(&String::from_utf8_lossy(&output.stderr), &[]).trim());
                false
            }
            Err(error) => {
                tracing::warn!("kind delete cluster: {error}");
                false
            }
        }
    }
}

/// A process group that is killed when nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Removes the lock that a kind leaves which was killed (`<kubeconfig>.lock`): the next one would fail on it. No other kind runs.
fn clear_lock(kubeconfig: &Path) {
    let mut lock = kubeconfig.as_os_str().to_owned();
    lock.push(".lock");
    let _ = std::fs::remove_file(lock);
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// kind's own account of its failure.
fn error_line(output: &str) -> String {
    let line = output.lines().rev().find_map(|line| line.trim().strip_prefix("ERROR: "));
    line.unwrap_or("kind create cluster failed").trim_start_matches("failed to create cluster: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_found_in_the_output() {
        let output =
            " ✗ Starting control-plane 🕹️\nERROR: failed to create cluster: failed to init node with kubeadm: command \"x\" failed\n\nCommand Output: I1122\n";
        assert_eq!(error_line(output), "failed to init node with kubeadm: command \"x\" failed");
        assert_eq!(error_line(""), "kind create cluster failed");
    }

    #[test]
    fn containers_are_named_as_kind_names_them() {
        assert_eq!(Kind::new("demo").control_planes(3), ["demo-control-plane", "demo-control-plane2", "demo-control-plane3"]);
        assert_eq!(Kind::new("demo").load_balancer(), "demo-external-load-balancer");
    }

    #[tokio::test]
    async fn a_dropped_group_is_killed() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).process_group(0).spawn().unwrap();
        drop(Group::of(&child));
        assert!(!child.wait().await.unwrap().success());
    }

    #[test]
    fn a_stale_lock_goes_and_the_kubeconfig_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (kubeconfig, lock) = (directory.path().join("kube.config"), directory.path().join("kube.config.lock"));
        std::fs::write(&kubeconfig, "kept").unwrap();
        // As kind makes it.
        OpenOptions::new().write(true).create_new(true).mode(0o000).open(&lock).unwrap();
        clear_lock(&kubeconfig);
        assert!(!lock.exists());
        assert_eq!(std::fs::read_to_string(&kubeconfig).unwrap(), "kept");
        clear_lock(&kubeconfig);
    }

    #[test]
    fn the_configuration_is_for_root_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kind.yaml");
        write_private(&file, "x").unwrap();
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
