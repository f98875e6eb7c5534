//! The operator as a process of its own, against a bare control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::plane::Plane;

/// Namespace that the operator lives in.
pub const OPERATOR_NAMESPACE: &str = "nestling-system";
/// Namespace that clusters run in.
pub const CLUSTERS_NAMESPACE: &str = "nestling-clusters";

/// How to start it.
pub struct Options {
    /// Where every agent is found: a fake one.
    pub agents: SocketAddr,
    /// `--max-creating`.
    pub max_creating: u32,
    /// Kill it behind the n-th execution of this step.
    pub die_after: Option<(String, u32)>,
    /// The kubeconfig to use; the control plane's own if `None`.
    pub kubeconfig: Option<PathBuf>,
    /// Image of the clusters' pods: that of its release.
    pub pod_image: &'static str,
    /// Its name among those that compete for the lease.
    pub identity: &'static str,
    /// Where it serves `/metrics`; where nobody finds them if `None`.
    pub admin: Option<SocketAddr>,
}

/// Any free port.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Image of the clusters' pods; nobody runs it.
pub const POD_IMAGE: &str = "nestling/node:test";

/// Identity of the only operator there is: a container that is started again is in the same pod, and its lease is its own.
pub const THE_SAME_POD: &str = "the-same-pod";

/// A running operator. Dropping it kills it.
pub struct Operator {
    child: Child,
}

impl Operator {
    /// Starts it.
    pub fn start(plane: &Plane, options: &Options) -> Self {
        Self::start_with(plane, options, &[])
    }

    /// Starts it with further arguments.
    pub fn start_with(plane: &Plane, options: &Options, arguments: &[&str]) -> Self {
        let log = std::env::var_os("NESTLING_TEST_OPERATOR_LOG")
            .map_or_else(Stdio::null, |path| Stdio::from(std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command
            .args(["operator", "--namespace", OPERATOR_NAMESPACE, "--clusters-namespace", CLUSTERS_NAMESPACE])
            .args(["--pod-image", options.pod_image, "--allow-cgroup-v1", "--log-format", "text"])
            .args(["--admin-address", &options.admin.unwrap_or(NOWHERE).to_string()])
            .args(["--identity", options.identity])
            .args(["--agent-address-override", &options.agents.to_string()])
            .args(["--max-creating", &options.max_creating.to_string()])
            .args(arguments)
            .env("KUBECONFIG", options.kubeconfig.as_deref().unwrap_or_else(|| plane.control_plane.kubeconfig()))
            .env("RUST_LOG", std::env::var("NESTLING_TEST_OPERATOR_LOG_LEVEL").as_deref().unwrap_or("info,nestling=debug"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some((step, count)) = &options.die_after {
            command.env("NESTLING_FAULT_EXIT_AFTER_STEP", format!("{step}:{count}"));
        }
        Self { child: command.spawn().unwrap() }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal, such as SIGSTOP.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is over.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself; `false` if it has not within the limit.
    pub async fn ended(&mut self, limit: Duration) -> bool {
        let start = std::time::Instant::now();
        while start.elapsed() < limit {
            if self.has_ended() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
