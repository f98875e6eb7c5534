//! PID 1 of the pod: sets up the control groups, starts the machine, passes signals on, reaps.
//!
//! Orphans of the whole pod (containerd's shims above all) become children of PID 1. It has one thread and no runtime: the
//! machine may crash, this must not.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::TERMINATION_LOG;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cgroup;
use super::failure::{failure, leave};
use super::fault::disabled;
use super::freezer;

/// Tells the machine why the control groups could not be set up; the machine reports it like any other failure.
pub const CGROUP_FAILURE_VARIABLE: &str = "NESTLING_CGROUP_FAILURE";

/// Exit codes with which the machine has said all there is to say.
const SPOKEN: [u8; 2] = [0, 1];

/// Runs PID 1 until the machine has ended; the exit code is the machine's.
pub fn run() -> ExitCode {
    match supervise() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            crashed(&format!("the agent cannot be started: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> std::io::Result<u8> {
    if getpid().as_raw() != 1 {
        // Somebody else is PID 1 (shareProcessNamespace): without this, orphans would go there.
        prctl::set_child_subreaper(true)?;
    }
    let cgroups = cgroup::prepare();
    // Before the machine exists: its end must not be missed.
    let mut signals = Signals::new([SIGCHLD, SIGTERM, SIGINT])?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["agent", "--supervised"]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KUBERNETES_") && !disabled("environment")) {
        command.env_remove(name);
    }
    if let Err(error) = cgroups {
        command.env(CGROUP_FAILURE_VARIABLE, error.to_string());
    }
    let machine = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(std::io::Error::other)?);
    for signal in signals.forever() {
        if signal == SIGCHLD {
            if let Some(code) = reap(machine) {
                // Whatever the machine has left frozen would outlive the pod.
                freezer::thaw_all();
                return Ok(code);
            }
        } else if let Ok(signal) = Signal::try_from(signal) {
            // ESRCH: it has just ended, and SIGCHLD is on its way.
            let _ = kill(machine, signal);
        }
    }
    Ok(1)
}

/// Takes every ended child off the kernel's list; the exit code if the machine was among them.
fn reap(machine: Pid) -> Option<u8> {
    let mut code = None;
    let whom = disabled("orphans").then_some(machine);
    loop {
        match waitpid(whom, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == machine => {
                let status = u8::try_from(status).unwrap_or(1);
                if !SPOKEN.contains(&status) {
                    crashed(&format!("the agent ended with exit code {status}"));
                }
                code = Some(status);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == machine => {
                crashed(&format!("the agent was killed by {signal}"));
                code = Some(u8::try_from(128 + signal as i32).unwrap_or(1));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// Leaves word of a crash, unless the machine has left better word.
fn crashed(message: &str) {
    eprintln!("{message}");
    let log = Path::new(TERMINATION_LOG);
    if fs::metadata(log).is_ok_and(|log| log.len() == 0) {
        let _ = leave(&failure(Reason::AgentCrashed, message), log);
    }
}

/// What [`run`] could not do with the control groups.
pub fn cgroup_failure() -> Result<(), String> {
    std::env::var(CGROUP_FAILURE_VARIABLE).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::alone::run_alone;

    /// Orphans that wait for an end, then the end, then a look at what became of them. `$1` is a pipe that holds them, `$PPID` the process under test.
    const MACHINE: &str = r#"
        of() { cat /proc/[0-9]*/stat 2>/dev/null | grep -c "^[0-9]* ([^)]*) $1 $PPID "; }
        made=0
        while [ $made -lt 1000 ]; do (read -r line <"$1" &); made=$((made + 1)); done
        # One more is this shell.
        looks=0
        until [ "$(of S)" -ge 1001 ]; do looks=$((looks + 1)); [ $looks -lt 200 ] || exit 3; sleep 0.1; done
        : >"$1"
        until [ "$(of S)" -eq 1 ] && [ "$(of Z)" -eq 0 ]; do looks=$((looks + 1)); [ $looks -lt 400 ] || exit 4; sleep 0.1; done
        exit 1
    "#;

    /// Not for itself: it takes every child of its process. [`a_thousand_orphans_leave_no_zombie`] runs it in one of its own.
    #[test]
    #[ignore = "takes the children of other tests"]
    #[expect(clippy::zombie_processes, reason = "what is tested waits for it")]
    fn alone() {
        prctl::set_child_subreaper(true).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut signals = Signals::new([SIGCHLD]).unwrap();
        let machine = Command::new("sh").args(["-c", MACHINE, "sh"]).arg(&pipe).spawn().unwrap();
        let machine = Pid::from_raw(i32::try_from(machine.id()).unwrap());
        // 1 says that all went well: the shell itself fails with others.
        assert_eq!(signals.forever().find_map(|_| reap(machine)), Some(1));
    }

    #[test]
    fn a_thousand_orphans_leave_no_zombie() {
        run_alone(&[], "agent::init::tests::alone");
    }
}
