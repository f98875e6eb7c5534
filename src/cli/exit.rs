//! How the program ends.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use super::failure::Failure;

/// Exit code of everything that has no code of its own.
pub const FAILED: u8 = 1;
/// A cluster does not get there without a change; a node of the host cannot run clusters.
pub const STALLED: u8 = 2;
/// The time is over.
pub const TIMED_OUT: u8 = 3;
/// There is no such object, or not for long.
pub const GONE: u8 = 4;

/// The end of a command that was run, or of this process by a signal: an exit code of which nothing more is said.
#[derive(Debug)]
pub struct Passed {
    code: u8,
}

impl Passed {
    /// With this exit code.
    pub fn code(code: u8) -> Self {
        Self { code }
    }

    /// As shells tell a signal.
    pub fn signal(number: i32) -> Self {
        Self { code: u8::try_from(128 + number).unwrap_or(FAILED) }
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "exit code {}", self.code)
    }
}

impl std::error::Error for Passed {}

/// Ends after an error of the command line. clap's own code for it is 2, which here means a stalled cluster.
pub fn usage(error: &clap::Error) -> ExitCode {
    // There is nobody left to tell if this fails.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

/// Ends with this result.
pub fn report(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    // `nestling crd | head` is no failure.
    if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    if let Some(passed) = error.downcast_ref::<Passed>() {
        return ExitCode::from(passed.code);
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        eprintln!("error: {failure}");
        return ExitCode::from(failure.code());
    }
    eprintln!("error: {}\n→ Try again; if it stays so, report it with what you have called.", chain(&error));
    ExitCode::from(FAILED)
}

/// An error with its causes, without those that the error before them has told already.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn no_cause_is_told_twice() {
        assert_eq!(chain(&anyhow!("no such file").context("cannot read f: no such file").context("no host")), "no host: cannot read f: no such file");
    }
}
