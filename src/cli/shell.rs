//! `nestling shell`: a command, or a shell, with a way to a cluster.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::exit::Passed;
use super::failure::Failure;
use super::host::connect;
use super::reach::{Interruption, Way, interrupted, open};
use super::temporary::TemporaryKubeconfig;
use super::{HostArgs, ShellArgs};

/// Exit code of a command that cannot be run, as shells have it.
const CANNOT_RUN: u8 = 126;
/// Exit code of a command that there is not, as shells have it.
const NOT_FOUND: u8 = 127;

/// How long a command that was told to end may take before it is killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Runs the command and ends as it ends.
pub async fn run(host: HostArgs, args: ShellArgs) -> Result<()> {
    let host = connect(host).await?;
    let way = open(&host, &args.name, &args.reach, None).await?;
    let ended = run_in(&way, &args.command).await;
    way.close().await;
    let status = ended?;
    if status.success() { Ok(()) } else { Err(passed(status).into()) }
}

fn passed(status: ExitStatus) -> Passed {
    match (status.code(), status.signal()) {
        (Some(code), _) => Passed::code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => Passed::signal(signal.unwrap_or(0)),
    }
}

async fn run_in(way: &Way, words: &[OsString]) -> Result<ExitStatus> {
    let metadata = &way.cluster.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let kubeconfig = TemporaryKubeconfig::new(&way.kubeconfig, name)?;
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let (program, arguments) = words.split_first().map_or((&shell, &[][..]), |(program, arguments)| (program, arguments));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("KUBECONFIG", kubeconfig.path())
        .env("NESTLING_CLUSTER", name)
        .env("NESTLING_NAMESPACE", metadata.namespace.as_deref().unwrap_or_default());
    if words.is_empty() {
        // Shells whose own files set a prompt keep theirs.
        command.env("PS1", format!("({name}) {}", std::env::var("PS1").unwrap_or_else(|_| "\\$ ".to_owned())));
        if std::io::stdin().is_terminal() {
            eprintln!("{name} is reached {}, until this shell ends", way.how);
        }
    }
    let child = command.spawn().map_err(|error| cannot_run(program, &error))?;
    wait(child).await
}

fn cannot_run(program: &OsString, error: &std::io::Error) -> Failure {
    let (code, next) = match error.kind() {
        ErrorKind::NotFound => (NOT_FOUND, "Check the command behind `--`, and PATH."),
        _ => (CANNOT_RUN, "Check the command behind `--`."),
    };
    Failure::new(format!("cannot run {}: {error}", program.display()), next).with_code(code)
}

/// Waits for the end of the command, however it comes. What this process is told, the command is told.
async fn wait(mut child: Child) -> Result<ExitStatus> {
    let lost = "cannot wait for the command";
    loop {
        let signal = tokio::select! {
            status = child.wait() => return status.context(lost),
            signal = interrupted() => signal?,
        };
        // A terminal tells both; and shells there go on after Ctrl-C.
        if signal == Interruption::Interrupt && std::io::stdin().is_terminal() {
            continue;
        }
        tell(&child, signal);
        if signal == Interruption::Interrupt {
            continue;
        }
        if let Ok(status) = timeout(END_LIMIT, child.wait()).await {
            return status.context(lost);
        }
        child.kill().await.context("cannot end the command")?;
        return child.wait().await.context(lost);
    }
}

/// Passes a signal on. Shells end of no other than the loss of their terminal.
fn tell(child: &Child, signal: Interruption) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    let signals: &[Signal] = match signal {
        Interruption::Hangup => &[Signal::SIGHUP],
        Interruption::Interrupt => &[Signal::SIGINT],
        Interruption::Terminate => &[Signal::SIGTERM, Signal::SIGHUP],
    };
    for signal in signals {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), *signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(script: &str) -> ExitStatus {
        wait(Command::new("sh").args(["-c", script]).spawn().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn it_ends_as_its_command_ends() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143)] {
            assert_eq!(passed(status(script).await).to_string(), format!("exit code {code}"), "{script}");
        }
    }

    #[test]
    fn a_command_that_cannot_run_has_the_code_of_shells() {
        assert_eq!(cannot_run(&"nothing".into(), &ErrorKind::NotFound.into()).code(), 127);
        assert_eq!(cannot_run(&"/".into(), &ErrorKind::PermissionDenied.into()).code(), 126);
    }
}
