//! Docker's containerd, under the agent's own hand. The Docker daemon would start one itself and ask it before it listens; its next try comes a second later
//! (gRPC's first pause), in every creation and every return of a pod.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::RUN_DIRECTORY;
use super::output::{Tail, keep};
use super::wait::until;

/// Where it listens.
pub const SOCKET: &str = "/run/docker/containerd/containerd.sock";

/// Its configuration, with the directories that a containerd of the Docker daemon's own has: what lies on a volume is found again.
const CONFIGURATION: &str = r#"version = 2
root = "/var/lib/docker/containerd/daemon"
state = "/run/docker/containerd/daemon"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
  address = "/run/docker/containerd/containerd.sock"
"#;

/// Time for it to listen. It takes a tenth of a second; the rest is for a machine without any.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two looks at a socket that will be there in a moment.
const LOOK: Duration = Duration::from_millis(5);

/// Time for it to end. What it runs goes on without it.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Pause before one that has died is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// A containerd that runs until it is stopped. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Containerd {
    stopping: CancellationToken,
    ended: CancellationToken,
}

/// How it is started: whose `PATH` has its runtime, and which variables it sees.
#[derive(Clone, Debug)]
pub struct Environment(pub Vec<(&'static str, String)>);

/// Starts it, and returns when it listens.
///
/// # Errors
/// If it cannot be started, or does not listen in time.
pub async fn start(environment: Environment, log: Tail) -> io::Result<Containerd> {
    let file = Path::new(RUN_DIRECTORY).join("containerd.toml");
    std::fs::write(&file, CONFIGURATION)?;
    let first = spawn(&file, &environment, &log)?;
    let containerd = Containerd { stopping: CancellationToken::new(), ended: CancellationToken::new() };
    tokio::spawn(containerd.clone().follow(first, move || spawn(&file, &environment, &log)));
    let listens = until("containerd", START_LIMIT, LOOK, || async { UnixStream::connect(SOCKET).await.ok() });
    listens.await.map_err(|late| io::Error::new(io::ErrorKind::TimedOut, late.to_string()))?;
    Ok(containerd)
}

fn spawn(file: &PathBuf, environment: &Environment, log: &Tail) -> io::Result<Child> {
    let mut child = Command::new("containerd")
        .arg("--config")
        .arg(file)
        .envs(environment.0.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    if let Some(output) = child.stderr.take() {
        tokio::spawn(keep(output, log.clone(), Some(Path::new(RUN_DIRECTORY).join("containerd.log"))));
    }
    Ok(child)
}

impl Containerd {
    /// Starts it again when it dies: what it runs has gone on, and the Docker daemon waits for it.
    async fn follow(self, first: Child, again: impl Fn() -> io::Result<Child>) {
        let mut child = Ok(first);
        while !self.stopping.is_cancelled() {
            match &mut child {
                Ok(running) => tokio::select! {
                    status = running.wait() => tracing::warn!(?status, "containerd has ended"),
                    () = self.stopping.cancelled() => break,
                },
                Err(error) => tracing::warn!("containerd cannot be started: {error}"),
            }
            sleep(AGAIN).await;
            child = again();
        }
        if let Ok(child) = &mut child {
            end(child).await;
        }
        self.ended.cancel();
    }

    /// Stops it, in the end by force. To be called when the Docker daemon has ended.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.ended.cancelled().await;
    }
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if timeout(STOP_LIMIT, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> io::Result<Child> {
        Command::new("sleep").arg("600").process_group(0).spawn()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_dies_is_started_again_and_one_that_is_stopped_is_not() {
        let containerd = Containerd { stopping: CancellationToken::new(), ended: CancellationToken::new() };
        let (told, mut started) = tokio::sync::mpsc::unbounded_channel();
        let again = move || {
            let child = sleeper()?;
            let _ = told.send(child.id().unwrap());
            Ok(child)
        };
        let dead = Command::new("true").spawn().unwrap();
        let following = tokio::spawn(containerd.clone().follow(dead, again));
        let pid = started.recv().await.unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        containerd.stop().await;
        following.await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(started.recv().await.is_none());
    }
}
