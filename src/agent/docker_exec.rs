//! `docker exec` for kind, by Docker's API: this program under the name `docker`, first on kind's path.
//!
//! kind works by commands in its nodes, some forty for each, and starts the docker CLI for every one, which is a third of what they cost (decision 0029).
//! Whatever is not an `exec` as kind gives it is left to the docker CLI, which is next on the path.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::ExecConfig;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::exec::{Input, Output, exec, exit_code};
use super::{DOCKER_SOCKET, RUN_DIRECTORY, other_names};

/// The name under which this program is the docker CLI.
pub const NAME: &str = "docker";

/// Where it has that name.
fn directory() -> PathBuf {
    Path::new(RUN_DIRECTORY).join("kind")
}

/// Gives it that name.
///
/// # Errors
/// Those of the file system.
pub fn link() -> std::io::Result<()> {
    other_names::link(&directory().join(NAME))
}

/// The path for kind: this program comes before the docker CLI.
pub fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(directory()).chain(std::env::split_paths(&path));
    // Only a colon in a name can be wrong, and these come from a path.
    std::env::join_paths(places).unwrap_or_else(|_| path.clone())
}

/// Does what the docker CLI does with these arguments, or becomes the docker CLI.
pub fn run(arguments: &[OsString]) -> ExitCode {
    let Some((container, config)) = parse(arguments) else { return become_docker(arguments) };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let code = runtime.block_on(run_here(&container, config));
    // A read of the standard input may never end.
    runtime.shutdown_background();
    match code {
        Ok(code) => ExitCode::from(code),
        Err(Error::DockerResponseServerError { message, .. }) => failed(&format!("Error response from daemon: {message}")),
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

/// The container, and what is to be done in it: `exec [--privileged] [-i] [-e NAME=VALUE]… CONTAINER COMMAND…`, as kind's Docker provider writes it
/// (`nodeCmd.Run`, `pkg/cluster/internal/providers/docker/node.go`).
fn parse(arguments: &[OsString]) -> Option<(String, ExecConfig)> {
    let mut words = arguments.iter().map(|word| word.to_str());
    let mut config = ExecConfig { attach_stdout: Some(true), attach_stderr: Some(true), ..ExecConfig::default() };
    if words.next()?? != "exec" {
        return None;
    }
    let container = loop {
        match words.next()?? {
            "--privileged" => config.privileged = Some(true),
            "-i" => config.attach_stdin = Some(true),
            "-e" => config.env.get_or_insert_default().push(Some(words.next()??).filter(|variable| variable.contains('='))?.to_owned()),
            option if option.starts_with('-') => return None,
            container => break container.to_owned(),
        }
    };
    let command: Vec<String> = words.map(|word| word.map(str::to_owned)).collect::<Option<_>>()?;
    (!command.is_empty()).then_some((container, ExecConfig { cmd: Some(command), ..config }))
}

/// Runs a command with this process's own input and outputs; its exit code.
async fn run_here(container: &str, config: ExecConfig) -> Result<u8, Error> {
    // Only the beginnings of answers are bounded, and a machine may be slow.
    const LIMIT: Duration = Duration::from_mins(10);
    let docker = Docker::connect_with_unix(DOCKER_SOCKET, LIMIT.as_secs(), API_DEFAULT_VERSION)?;
    let has_input = config.attach_stdin == Some(true);
    let give = async |mut input: Input| {
        if !has_input {
            return Ok(());
        }
        let copied = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
        input.shutdown().await?;
        copied.map(drop)
    };
    let ((), id) = exec(&docker, container, config, give, print).await?;
    let code = exit_code(&docker, &id).await?;
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Prints what a command prints.
async fn print(mut output: Output) -> Result<(), Error> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(piece) = output.next().await {
        match piece? {
            LogOutput::StdErr { message } => stderr.write_all(&message).await?,
            other => stdout.write_all(&other.into_bytes()).await?,
        }
    }
    stdout.flush().await?;
    stderr.flush().await?;
    Ok(())
}

/// Becomes the next program of that name on the path. Returns only where there is none.
fn become_docker(arguments: &[OsString]) -> ExitCode {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let next = std::env::split_paths(&path).filter(|place| *place != directory()).map(|place| place.join(NAME)).find(|program| program.is_file());
    let Some(program) = next else { return failed("there is no docker CLI on the path") };
    failed(&format!("cannot start {}: {}", program.display(), Command::new(&program).args(arguments).exec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parsed(line: &str) -> Option<(String, ExecConfig)> {
        parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn kinds_commands_are_understood() {
        let (container, config) = parsed("exec --privileged -i -e A=b -e C= crane-control-plane cp -i /dev/stdin /kind/version").unwrap();
        assert_eq!((container.as_str(), config.privileged, config.attach_stdin, config.tty), ("crane-control-plane", Some(true), Some(true), None));
        assert_eq!(config.env.unwrap(), ["A=b", "C="]);
        assert_eq!(config.cmd.unwrap(), ["cp", "-i", "/dev/stdin", "/kind/version"]);
        let (_, config) = parsed("exec node true").unwrap();
        assert_eq!((config.privileged, config.attach_stdin, config.env), (None, None, None));
    }

    #[rstest]
    #[case::another_verb("ps -a")]
    #[case::another_option("exec -it node sh")]
    #[case::another_option_with_a_value("exec --user 0 node sh")]
    #[case::a_variable_of_the_callers("exec -e PATH node sh")]
    #[case::no_command("exec node")]
    #[case::nothing("exec")]
    fn all_else_is_the_clis(#[case] line: &str) {
        assert_eq!(parsed(line), None);
    }
}
