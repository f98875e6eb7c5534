//! The Docker daemon of this machine: used where it answers, started where none does, stopped again if we started it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::apt::{self, Need};
use crate::cache::Cache;
use crate::command::{last_lines, output, pipe, succeeds, succeeds_within, wait_for};
use crate::machine::Machine;
use crate::progress::note;

const SHIM: &str = include_str!("../scripts/runtime-shim.sh");
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const START_WITHIN: Duration = Duration::from_mins(1);
const STOP_WITHIN: Duration = Duration::from_mins(1);

/// The daemon that we started: enough to end that process and no other.
#[derive(Debug, Deserialize, Serialize)]
struct Started {
    pid: u32,
    /// When the process started, in clock ticks since boot: a later process with the same number has another.
    start_time: u64,
}

/// A Docker daemon that answers.
#[derive(Clone, Debug)]
pub struct Docker {
    run: PathBuf,
    /// Whether this call started it.
    pub started: bool,
}

impl Docker {
    /// A daemon that answers, started if need be. On machines that cannot grant every capability its containers go
    /// through `runtime_wrapper`, an OCI runtime in front of runc; without one the lab's own shim is used.
    pub fn ensure(cache: &Cache, runtime_wrapper: Option<&Path>) -> Result<Self> {
        apt::ensure(&[Need::Docker])?;
        let run = cache.run_directory()?;
        let machine = Machine::look()?;
        if answers() {
            let docker = Self { run, started: false };
            if machine.needs_runtime_shim() && docker.run(&["info", "--format", "{{.DefaultRuntime}}"])? == "runc" {
                note(format!(
                    "this Docker daemon runs containers by plain runc, which cannot start privileged ones without {:?}; stop it and the lab starts one that can",
                    machine.missing_capabilities
                ));
            }
            return Ok(docker);
        }
        let mut configuration = json!({ "log-opts": { "max-size": "10m" } });
        if machine.needs_runtime_shim() {
            let wrapper = match runtime_wrapper {
                Some(path) => path.to_owned(),
                None => install_shim(&run, &machine)?,
            };
            configuration["runtimes"] = json!({ "nestling-lab": { "path": wrapper } });
            configuration["default-runtime"] = json!("nestling-lab");
        }
        start(&run, &configuration)?;
        Ok(Self { run, started: true })
    }

    /// A `docker` command to add arguments to.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_CLI_HINTS", "false");
        command
    }

    /// Runs `docker` with arguments and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(self.command().args(arguments))
    }

    /// Whether `docker` with these arguments succeeds.
    pub fn succeeds(&self, arguments: &[&str]) -> bool {
        succeeds(self.command().args(arguments))
    }

    /// Loads an image archive, plain or compressed by zstd, unless an image of that name is there.
    pub fn load(&self, reference: &str, archive: &Path) -> Result<()> {
        if self.succeeds(&["image", "inspect", reference]) {
            return Ok(());
        }
        note(format!("loading {reference}"));
        if archive.extension().is_some_and(|extension| extension == "zst") {
            let mut unpack = Command::new("zstd");
            if !pipe(unpack.arg("-dcq").arg(archive), self.command().args(["load", "-q"]).stdout(Stdio::null()))? {
                bail!("docker load of {} failed", archive.display());
            }
        } else {
            output(self.command().args(["load", "-q", "-i"]).arg(archive))?;
        }
        if !self.succeeds(&["image", "inspect", reference]) {
            bail!("{} does not hold {reference}", archive.display());
        }
        Ok(())
    }

    /// Ends the daemon if the lab started it, now or in an earlier run; any other daemon is left alone.
    pub fn stop_if_ours(cache: &Cache) -> Result<()> {
        let state = cache.run_directory()?.join(STATE);
        let Ok(content) = fs::read(&state) else { return Ok(()) };
        let started: Started = serde_json::from_slice(&content).with_context(|| format!("{} is damaged", state.display()))?;
        if start_time(started.pid) == Some(started.start_time) {
            note("stopping the Docker daemon that the lab started");
            output(Command::new("kill").arg(started.pid.to_string()))?;
            wait_for("dockerd ends after SIGTERM", STOP_WITHIN, || Ok(start_time(started.pid) != Some(started.start_time)))?;
        }
        fs::remove_file(&state).with_context(|| format!("cannot remove {}", state.display()))
    }

    /// Where this daemon's log is, if the lab started it.
    pub fn log(&self) -> PathBuf {
        self.run.join(LOG)
    }
}

const STATE: &str = "dockerd.json";
const LOG: &str = "dockerd.log";

fn answers() -> bool {
    succeeds_within(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]), ANSWER_WITHIN)
}

fn install_shim(run: &Path, machine: &Machine) -> Result<PathBuf> {
    apt::ensure(&[Need::Jq])?;
    let runc = output(Command::new("sh").args(["-c", "PATH=$PATH:/usr/sbin:/sbin command -v runc"])).context("no runc on the PATH")?;
    let dropped = serde_json::to_string(&machine.missing_capabilities)?;
    let path = run.join("runtime-shim");
    let (shebang, body) = SHIM.split_once('\n').context("the shim has no first line")?;
    fs::write(&path, format!("{shebang}\ndrop='{dropped}'\nrunc='{runc}'\n{body}"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn start(run: &Path, configuration: &serde_json::Value) -> Result<()> {
    note("starting a Docker daemon: none answers");
    let file = run.join("daemon.json");
    fs::write(&file, serde_json::to_vec_pretty(configuration)?)?;
    let log_path = run.join(LOG);
    let log = File::create(&log_path)?;
    // A session of its own: the daemon outlives the terminal that this runs in.
    let mut child = Command::new("setsid")
        .arg("dockerd")
        .arg("--config-file")
        .arg(&file)
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start dockerd")?;
    let pid = child.id();
    let ready = wait_for("dockerd answers", START_WITHIN, || {
        if let Some(status) = child.try_wait()? {
            bail!("dockerd ended with {status}");
        }
        Ok(answers())
    });
    if let Err(error) = ready {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        // It may have ended by itself.
        let _ = child.kill();
        return Err(error.context(format!("no Docker daemon; it said last:\n{}", last_lines(&log, 15))));
    }
    let started = Started { pid, start_time: start_time(pid).context("dockerd is gone")? };
    Ok(fs::write(run.join(STATE), serde_json::to_vec(&started)?)?)
}

/// When a process started, in clock ticks since boot; `None` where there is no such process, or only its remains.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_an_odd_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(parse_start_time(stat), Some(12345));
    }

    #[test]
    fn a_dead_process_has_no_start_time() {
        assert_eq!(parse_start_time("7 (a) Z 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"), None);
    }

    #[test]
    fn the_shim_drops_capabilities_from_both_kinds_of_file() {
        if !succeeds(Command::new("jq").arg("--version")) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine { cgroup_v1: true, missing_capabilities: ["CAP_SYS_RESOURCE"].into() };
        let shim = directory.path().join("shim");
        let (shebang, body) = SHIM.split_once('\n').unwrap();
        let dropped = serde_json::to_string(&machine.missing_capabilities).unwrap();
        fs::write(&shim, format!("{shebang}\ndrop='{dropped}'\nrunc=true\n{body}")).unwrap();
        let config = directory.path().join("config.json");
        fs::write(&config, r#"{"process":{"capabilities":{"bounding":["CAP_SYS_RESOURCE","CAP_CHOWN"],"ambient":null}}}"#).unwrap();
        output(Command::new("sh").arg(&shim).args(["create", "--bundle"]).arg(directory.path()).arg("id")).unwrap();
        let process = directory.path().join("process.json");
        fs::write(&process, r#"{"capabilities":{"effective":["CAP_CHOWN","CAP_SYS_RESOURCE"]}}"#).unwrap();
        output(Command::new("sh").arg(&shim).args(["exec", "--process"]).arg(&process).arg("id")).unwrap();
        assert_eq!(fs::read_to_string(config).unwrap().trim(), r#"{"process":{"capabilities":{"bounding":["CAP_CHOWN"],"ambient":[]}}}"#);
        assert_eq!(fs::read_to_string(process).unwrap().trim(), r#"{"capabilities":{"effective":["CAP_CHOWN"]}}"#);
    }
}
