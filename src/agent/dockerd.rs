//! The Docker daemon: its configuration, its start, its end. Its containerd comes first ([`containerd`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::{AgentFailure, DATA_ROOT, NetworkPlan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use super::containerd::{self, Containerd, Environment};
use super::docker::Docker;
use super::failure::{evident, failure, judge};
use super::fault::disabled;
use super::oci_runtime;
use super::other_names;
use super::output::{Tail, keep};
use super::wait::{OFTEN, until};
use super::{DOCKER_SOCKET, RUN_DIRECTORY};

/// Time for the daemon to answer. It takes less than a second; the rest is for a machine without any.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Time for the daemon to stop its containers and itself.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of output that are kept in memory, for evidence.
const LOG_LIMIT: usize = 32 << 10;

/// What the daemon's configuration depends on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address ranges.
    pub network: NetworkPlan,
    /// MTU of the pod, in bytes.
    pub mtu: u32,
    /// What runs containers ([`oci_runtime::choice`]).
    pub runtime: &'static str,
    /// Whether [`oci_runtime`] has to stand before it.
    pub restricted: bool,
    /// What it is to know of registries, as fields of its configuration.
    pub registries: Map<String, Value>,
    /// Directory that comes first in the daemon's `PATH`.
    pub programs: PathBuf,
}

/// A daemon. Clones are the same one; it ends with [`Dockerd::stop`] or the process.
#[derive(Clone, Debug)]
pub struct Dockerd {
    pid: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
    log: Tail,
    containerd: Containerd,
}

/// What the daemon calls it. A container keeps this name for good, and may come back on a host that needs the wrapper where the first did not.
const RUNTIME_NAME: &str = "nestling";

/// The daemon's configuration (`daemon.json`), for Docker 25 to 29.
fn configuration(settings: &Settings, wrapper: &Path) -> Value {
    let network = &settings.network;
    let bridge = network.bridge.hosts().next().map(|first| format!("{first}/{}", network.bridge.prefix_len()));
    let mut configuration = json!({
        // No TCP: whoever reaches it is root on the host's node.
        "hosts": [format!("unix://{DOCKER_SOCKET}")],
        "containerd": containerd::SOCKET,
        "data-root": DATA_ROOT,
        // Without a name Docker falls back to vfs, which is slow and large, where overlay2 cannot be had.
        "storage-driver": "overlay2",
        "mtu": settings.mtu,
        "bip": bridge,
        // kind's network is made with this range; any further network then fails rather than take a range of the host's.
        "default-address-pools": [{"base": network.nodes.to_string(), "size": network.nodes.prefix_len()}],
        "iptables": true,
        "ip6tables": false,
        "ipv6": false,
        // kind reads systemd's lines from the log, so there must be one.
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "runtimes": {RUNTIME_NAME: {"path": if settings.restricted { wrapper } else { Path::new(settings.runtime) }}},
        "default-runtime": RUNTIME_NAME,
        "live-restore": false,
    });
    for (prevention, field) in [("address-pools", "default-address-pools"), ("log-bounds", "log-opts")] {
        if disabled(prevention)
            && let Some(fields) = configuration.as_object_mut()
        {
            fields.remove(field);
        }
    }
    for (key, value) in &settings.registries {
        configuration[key] = value.clone();
    }
    configuration
}

/// Writes the configuration and starts the daemon, without waiting for it.
///
/// # Errors
/// [`Reason::DockerFailed`] if it cannot be started.
pub async fn start(settings: &Settings) -> Result<Dockerd, AgentFailure> {
    launch(settings).await.map_err(|error| failure(Reason::DockerFailed, format!("the Docker daemon cannot be started: {error}")))
}

async fn launch(settings: &Settings) -> std::io::Result<Dockerd> {
    let directory = Path::new(RUN_DIRECTORY);
    let wrapper = directory.join(oci_runtime::NAME);
    other_names::link(&wrapper)?;
    let file = directory.join("daemon.json");
    fs::write(&file, configuration(settings, &wrapper).to_string())?;
    // Left by a daemon that was killed; Docker takes it for a running one when another process has the number by now.
    let _ = fs::remove_file("/var/run/docker.pid");

    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let environment = vec![
        ("PATH", format!("{}:{path}", settings.programs.display())),
        // Keeps the daemons from loading AppArmor profiles into the host's kernel (containerd `pkg/apparmor`).
        ("container", if disabled("profiles") { "" } else { "docker" }.to_owned()),
        (oci_runtime::RUNTIME_VARIABLE, settings.runtime.to_owned()),
    ];
    let log = Tail::new(LOG_LIMIT);
    let containerd = containerd::start(Environment(environment.clone()), log.clone()).await?;
    let mut child = Command::new("dockerd")
        .arg("--config-file")
        .arg(&file)
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A signal to the agent's group must not reach the daemon before its containers are gone.
        .process_group(0)
        .spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).ok_or_else(|| std::io::Error::other("no process id"))?;
    if let Some(output) = child.stderr.take() {
        tokio::spawn(keep(output, log.clone(), Some(directory.join("dockerd.log"))));
    }
    if let Some(output) = child.stdout.take() {
        tokio::spawn(keep(output, log.clone(), None));
    }
    let (sender, ended) = watch::channel(None);
    tokio::spawn(async move {
        let status = child.wait().await;
        sender.send_replace(status.ok());
    });
    Ok(Dockerd { pid, ended, log, containerd })
}

impl Dockerd {
    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// What the daemon's last lines tell of, if it has ended or does not answer in time.
    pub async fn ready(&self) -> Result<Docker, AgentFailure> {
        let answer = until("the Docker daemon", START_LIMIT, OFTEN, || async { Docker::connect().await.ok() });
        tokio::select! {
            failure = self.died() => Err(failure),
            docker = answer => docker.map_err(|error| self.failed(&error.to_string())),
        }
    }

    /// Waits until the daemon has ended.
    pub async fn died(&self) -> AgentFailure {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        // Its last lines are still on their way through the pipe.
        tokio::time::sleep(OFTEN).await;
        self.failed(&status.map_or_else(|| "the Docker daemon has ended".to_owned(), |status| format!("the Docker daemon has ended ({status})")))
    }

    /// A failure of the daemon, with its last lines as evidence.
    pub fn failed(&self, message: &str) -> AgentFailure {
        self.judged(message, Reason::DockerFailed)
    }

    /// The failure of a daemon that lives and does not answer any more.
    pub fn unresponsive(&self) -> AgentFailure {
        self.judged("the Docker daemon does not answer any more", Reason::DockerUnresponsive)
    }

    fn judged(&self, message: &str, otherwise: Reason) -> AgentFailure {
        let logs = [self.log.text()];
        let (reason, log) = judge(&logs, otherwise);
        evident(reason, message, log)
    }

    /// Lets a daemon go on that was stopped: it cannot end what it runs, nor itself, before that.
    pub fn wake(&self) {
        if self.ended.borrow().is_none() {
            let _ = kill(self.pid, Signal::SIGCONT);
        }
    }

    /// Stops the daemon with all that it runs, in the end by force.
    pub async fn stop(&self) {
        self.end().await;
        self.containerd.stop().await;
    }

    async fn end(&self) {
        for (signal, limit) in [(Signal::SIGTERM, STOP_LIMIT), (Signal::SIGKILL, Duration::from_secs(5))] {
            let mut ended = self.ended.clone();
            // The number is free for others as soon as the process has been waited for.
            if ended.borrow().is_some() {
                return;
            }
            let _ = kill(self.pid, signal);
            if timeout(limit, ended.wait_for(Option::is_some)).await.is_ok() {
                return;
            }
            tracing::warn!(%signal, "the Docker daemon did not end within {} s", limit.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::report::tests::settings;

    fn daemon(restricted: bool) -> Settings {
        Settings {
            network: settings().network,
            mtu: 1450,
            runtime: oci_runtime::choice(true),
            restricted,
            registries: Map::new(),
            programs: "/run/nestling/bin".into(),
        }
    }

    #[test]
    fn the_configuration_is_closed_and_bounded() {
        insta::assert_json_snapshot!(configuration(&daemon(false), Path::new("/wrapper")));
    }

    #[test]
    fn a_host_that_withholds_capabilities_gets_the_wrapper() {
        let configuration = configuration(&daemon(true), Path::new("/wrapper"));
        assert_eq!(configuration["runtimes"], json!({"nestling": {"path": "/wrapper"}}));
        assert_eq!(configuration["default-runtime"], "nestling");
    }

    #[test]
    fn a_host_that_does_not_share_its_disks_gets_runc() {
        let configuration = configuration(&Settings { runtime: oci_runtime::choice(false), ..daemon(false) }, Path::new("/wrapper"));
        assert_eq!(configuration["runtimes"], json!({"nestling": {"path": "runc"}}));
    }

    #[test]
    fn registries_are_part_of_the_configuration() {
        let registries = json!({"insecure-registries": ["10.0.0.7:5000"]}).as_object().cloned().unwrap();
        let configuration = configuration(&Settings { registries, ..daemon(false) }, Path::new("/wrapper"));
        assert_eq!(configuration["insecure-registries"], json!(["10.0.0.7:5000"]));
    }
}
