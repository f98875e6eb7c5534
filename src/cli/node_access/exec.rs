//! Commands in such a pod.

use std::convert::Infallible;
use std::io;

use anyhow::{Context, Result};
use futures::SinkExt;
use futures::channel::mpsc::Sender;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::{AttachParams, TerminalSize};
use nestling_core::plan::objects::in_node;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, SimplexStream, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::input::{Input, unframed};
use crate::cli::failure::Failure;

/// Bytes that wait in either direction.
const BUFFER: usize = 256 << 10;

/// Most bytes that are kept of what a command complains of, and of what it prints.
const KEPT: (usize, usize) = (4 << 10, 1 << 20);

/// The standard input of a command in a node.
pub type Stdin = WriteHalf<SimplexStream>;

/// How a command has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: u8,
    /// The end of what it printed.
    pub output: String,
    /// The end of what it complained of.
    pub complaint: String,
}

/// Runs a command in a node to its end. `input` writes to its standard input for as long as it likes; what the command does not read is lost.
///
/// # Errors
/// If it cannot be run, or the connection breaks.
pub async fn run(pods: &Api<Pod>, pod: &str, words: &[String], input: impl AsyncFnOnce(&mut Stdin) -> io::Result<()>) -> Result<Ended> {
    let mut process = attach(pods, pod, words, true).await?;
    let (mut stdin, status) = (process.stdin(), process.take_status());
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let ended = async { tokio::join!(last(status), keep(stdout, KEPT.1), keep(stderr, KEPT.0)) };
    let (status, output, complaint) = tokio::select! {
        ended = ended => ended,
        never = write(&mut stdin, input) => match never {},
    };
    Ok(Ended { code: code(&status?)?, output: output?, complaint: complaint?.trim().to_owned() })
}

/// Runs a command in a node to its end with the outputs of this process, and with an input that ends where this one does; the exit code.
///
/// # Errors
/// As [`run`].
pub async fn pass(pods: &Api<Pod>, pod: &str, words: &[String], input: Option<Input>) -> Result<u8> {
    let words = if input.is_some() { unframed(words) } else { words.to_vec() };
    let mut process = attach(pods, pod, &words, input.is_some()).await?;
    let (mut stdin, status) = (process.stdin(), process.take_status());
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (mut own, mut errors) = (tokio::io::stdout(), tokio::io::stderr());
    let ended = async { tokio::join!(last(status), copy(stdout, &mut own), copy(stderr, &mut errors)) };
    let input = async {
        match input {
            Some(input) => write(&mut stdin, async |stdin: &mut Stdin| input.frame(stdin).await).await,
            None => std::future::pending().await,
        }
    };
    let (status, shown, complained) = tokio::select! {
        ended = ended => ended,
        never = input => match never {},
    };
    shown?;
    complained?;
    code(&status?)
}

/// Runs a command in a node on this process's terminal to its end; the exit code.
///
/// # Errors
/// As [`run`], and if this process has no terminal.
pub async fn on_terminal(pods: &Api<Pod>, pod: &str, words: &[String]) -> Result<u8> {
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let params = AttachParams::interactive_tty().max_stdin_buf_size(BUFFER).max_stdout_buf_size(BUFFER);
    let mut process = pods.exec(pod, in_node(words, Some(&terminal)), &params).await.context("cannot run a command in the node")?;
    let (mut stdin, status, stdout) = (process.stdin(), process.take_status(), process.stdout());
    let sizes = process.terminal_size().context("the connection takes no terminal")?;
    let changes = signal(SignalKind::window_change()).context("cannot listen for signals")?;
    let _raw = Raw::set().context("cannot use the terminal")?;
    let mut own = tokio::io::stdout();
    let ended = async { tokio::join!(last(status), copy(stdout, &mut own)) };
    let (status, shown) = tokio::select! {
        ended = ended => ended,
        never = write(&mut stdin, async |stdin: &mut Stdin| Input::standard().copy(stdin).await) => match never {},
        never = tell_sizes(sizes, changes) => match never {},
    };
    shown?;
    code(&status?)
}

async fn attach(pods: &Api<Pod>, pod: &str, words: &[String], input: bool) -> Result<kube::api::AttachedProcess> {
    let params = AttachParams::default().stdin(input).stdout(true).stderr(true).max_stdin_buf_size(BUFFER).max_stdout_buf_size(BUFFER);
    pods.exec(pod, in_node(words, None), &params).await.context("cannot run a command in the node")
}

/// Writes the input and then keeps it open: before version 5 of the protocol, closing it ends the connection, and what the command still prints is lost.
async fn write(stdin: &mut Option<Stdin>, input: impl AsyncFnOnce(&mut Stdin) -> io::Result<()>) -> Infallible {
    if let Some(stdin) = stdin {
        // A command that has ended reads no more; its exit code tells what came of it.
        let _ = input(stdin).await;
    }
    std::future::pending().await
}

/// Tells the size of this terminal, now and whenever it changes.
async fn tell_sizes(mut sizes: Sender<TerminalSize>, mut changes: Signal) -> Infallible {
    loop {
        if let Some((width, height)) = terminal_size::terminal_size() {
            // That a connection has ended is noticed elsewhere.
            let _ = sizes.send(TerminalSize { width: width.0, height: height.0 }).await;
        }
        if changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// The status that ends a command.
async fn last(status: Option<impl Future<Output = Option<Status>>>) -> Result<Status> {
    let broken = "the connection to the node has broken off";
    status.context(broken)?.await.context(broken)
}

/// The end of an output.
async fn keep(from: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<String> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(String::from_utf8_lossy(&kept).into_owned()),
            read => kept.extend_from_slice(&buffer[..read]),
        }
        kept.drain(..kept.len().saturating_sub(limit));
    }
}

/// Copies an output piece by piece, each at once.
async fn copy(from: Option<impl AsyncRead + Unpin>, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read]).await?,
        }
        to.flush().await?;
    }
}

/// The exit code in the status that ends a command.
fn code(status: &Status) -> Result<u8> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let mut causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes.find(|cause| cause.reason.as_deref() == Some("ExitCode")).and_then(|cause| cause.message.as_ref()?.parse().ok());
    code.ok_or_else(|| {
        let what = format!("the command could not be run in the node: {}", status.message.clone().unwrap_or_default());
        Failure::new(what, "Check that the node is ready and has the command, then try again.").into()
    })
}

/// The terminal gives every key on as it is, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> nix::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell if this fails.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({"status": "Success"}), Some(0))]
    #[case(json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": "42"}]}}), Some(42))]
    #[case(json!({"status": "Failure", "message": "no such program"}), None)]
    fn the_exit_code_is_in_the_status(#[case] status: Value, #[case] expected: Option<u8>) {
        let ended = code(&serde_json::from_value(status).unwrap());
        assert_eq!(ended.as_ref().ok(), expected.as_ref());
        assert!(expected.is_some() || ended.unwrap_err().to_string().contains("no such program"));
    }

    #[tokio::test]
    async fn of_a_long_output_the_end_is_kept() {
        let text = "x".repeat(100_000) + "end";
        assert_eq!(keep(Some(text.as_bytes()), 7).await.unwrap(), "xxxxend");
        assert_eq!(keep(None::<&[u8]>, 7).await.unwrap(), "");
    }
}
