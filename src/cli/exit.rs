//! How the program ends.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

/// Exit code of everything that has no code of its own.
const FAILED: u8 = 1;

/// An end with a code of its own. What it says goes to standard error as it is.
#[derive(Debug)]
pub struct Ending {
    /// The exit code.
    pub code: u8,
    /// What to say; may have several lines.
    pub message: String,
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.message.trim_end())
    }
}

impl std::error::Error for Ending {}

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
    if let Some(ending) = error.downcast_ref::<Ending>() {
        eprintln!("{ending}");
        return ExitCode::from(ending.code);
    }
    eprintln!("error: {}", chain(&error));
    ExitCode::from(FAILED)
}

/// An error with its causes, without those that the error before them has told already.
fn chain(error: &anyhow::Error) -> String {
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
