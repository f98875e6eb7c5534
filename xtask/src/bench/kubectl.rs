//! kubectl, for one cluster.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestling_lab::command::{output, succeeds};
use serde_json::Value;

/// Pause between two tries. Each is a process of some 60 ms of CPU, and the cores are the cluster's.
const PAUSE: Duration = Duration::from_millis(250);

/// The same where what is measured is shorter than a second, and the cluster has little to do.
const SHORT_PAUSE: Duration = Duration::from_millis(20);

/// A cluster as kubectl sees it.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// For the cluster of this kubeconfig.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// The program, for another cluster.
    pub fn program(&self) -> PathBuf {
        self.program.clone()
    }

    /// A command to add arguments to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// Runs it, and returns what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(self.command().args(arguments))
    }

    /// Reads what it prints as JSON.
    ///
    /// # Errors
    /// What it says when it fails, or output that is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {arguments:?} printed no JSON"))
    }

    /// `kubectl apply` or `create` of an object.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn put(&self, verb: &str, object: &Value) -> Result<()> {
        let file = tempfile::NamedTempFile::with_suffix(".json")?;
        fs::write(file.path(), object.to_string())?;
        output(self.command().args(["--request-timeout=10s", verb, "-f"]).arg(file.path())).map(drop)
    }

    /// Waits until the API server answers: one that starts, until it says that it is ready; one that was frozen, and is asked more often, until it gives an object. That
    /// one never ceased to be ready, but asks etcd once a second only whether it is well, and repeats until then what it heard before (`newETCD3Check` of
    /// `k8s.io/apiserver`).
    ///
    /// # Errors
    /// If it does not in this time.
    pub fn api_answers(&self, was: Was, limit: Duration) -> Result<()> {
        let (pause, path) = match was {
            Was::Frozen => (SHORT_PAUSE, "/api/v1/namespaces/default"),
            Was::Stopped => (PAUSE, "/readyz"),
        };
        every(pause, "the API server answers", limit, || {
            if succeeds(self.command().args(["--request-timeout=1s", "get", "--raw", path])) { Ok(()) } else { bail!("no answer to {path}") }
        })
    }
}

/// What a cluster was that comes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Was {
    /// All its processes were there.
    Frozen,
    /// None was.
    Stopped,
}

/// Tries until it succeeds.
///
/// # Errors
/// The last error, with what was waited for.
pub fn again<T>(what: &str, limit: Duration, step: impl FnMut() -> Result<T>) -> Result<T> {
    every(PAUSE, what, limit, step)
}

fn every<T>(pause: Duration, what: &str, limit: Duration, mut step: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match step() {
            Err(error) if start.elapsed() > limit => return Err(error.context(format!("{what}: not so after {} s", limit.as_secs()))),
            Err(_) => thread::sleep(pause),
            good => return good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_at_first_is_tried_again() {
        let mut left = 2;
        let found = again("it", Duration::from_secs(5), || {
            left -= 1;
            if left == 0 { Ok("there") } else { bail!("not yet") }
        });
        assert_eq!(found.unwrap(), "there");
    }

    #[test]
    fn what_never_comes_is_named_with_the_last_error() {
        let error = again::<()>("the moon", Duration::ZERO, || bail!("dark")).unwrap_err();
        assert_eq!(format!("{error:#}"), "the moon: not so after 0 s: dark");
    }
}
