//! Runs a suite with its output in sight, and has what its failed tests said in its error: the last lines of a long run are those that are read.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};

/// Lines of a panic's message that are repeated.
const LINES: usize = 30;

/// Runs a command of cargo that tests.
///
/// # Errors
/// If it cannot be run, or fails: the last panic of each failed test, and how the command ended.
pub fn run(command: &mut Command) -> Result<()> {
    // Backtraces bury what was said, also by tests that expect a panic.
    command.env("RUST_BACKTRACE", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
    if io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let lines = Mutex::new(Vec::new());
    thread::scope(|scope| {
        if let Some(stdout) = child.stdout.take() {
            scope.spawn(|| pass_on(BufReader::new(stdout), io::stdout(), &lines));
        }
        if let Some(stderr) = child.stderr.take() {
            scope.spawn(|| pass_on(BufReader::new(stderr), io::stderr(), &lines));
        }
    });
    let status = child.wait().with_context(|| format!("cannot wait for {command:?}"))?;
    if !status.success() {
        let lines = lines.into_inner().unwrap_or_default();
        bail!("{command:?} ended with {status}\n{}", failures(&lines).join("\n"));
    }
    Ok(())
}

fn pass_on(mut from: impl BufRead, mut to: impl Write, lines: &Mutex<Vec<String>>) {
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        // Whoever reads may have gone; the run goes on.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        if let Ok(mut lines) = lines.lock() {
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        line.clear();
    }
}

/// The last panic of each test that the runner lists as failed. A panic that a test expects and catches is none of these.
fn failures(lines: &[String]) -> Vec<String> {
    let begins = |line: &String| line.starts_with("thread '") && line.contains("panicked at");
    let mut told = Vec::new();
    // The runner lists the names last, indented, below this word.
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| *line == "failures:") {
        for name in lines[at + 1..].iter().map_while(|line| line.strip_prefix("    ")).filter(|name| !name.contains(' ')) {
            let Some(panic) = lines.iter().rposition(|line| begins(line) && line.starts_with(&format!("thread '{name}'"))) else { continue };
            let message = lines[panic + 1..].iter().take(LINES).take_while(|line| !begins(line) && !line.starts_with("note: run with"));
            told.push([lines[panic].as_str()].into_iter().chain(message.map(String::as_str)).collect::<Vec<_>>().join("\n"));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_quoted_and_an_expected_panic_is_not() {
        let output = "test good ... ok\n\nthread 'good' (7) panicked at a.rs:1:1:\nas it should\n\nthread 'module::bad' (8) panicked at b.rs:2:2:\nwaited 3 s\nlast: nothing\n\
                      note: run with `RUST_BACKTRACE=1`\ntest module::bad ... FAILED\n\nfailures:\n\nfailures:\n    module::bad\n\ntest result: FAILED.";
        let lines: Vec<String> = output.lines().map(str::to_owned).collect();
        assert_eq!(failures(&lines), ["thread 'module::bad' (8) panicked at b.rs:2:2:\nwaited 3 s\nlast: nothing"]);
    }

    #[test]
    fn what_a_suite_says_passes_through() {
        assert!(run(&mut Command::new("true")).is_ok());
        let error =
            run(Command::new("sh").args(["-c", "echo \"thread 't' (1) panicked at x:\"; echo why; printf 'failures:\\n    t\\n'; exit 3"])).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("panicked at x:\nwhy\nfailures:\n    t"), "{error}");
    }
}
