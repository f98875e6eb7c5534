//! What a verb could not do: always with what to do next, and with an exit code.

use std::fmt;

use super::exit::FAILED;
use super::program;

/// What could not be done. It goes to standard error: what happened, then, on a line of its own behind an arrow, what to do next.
#[derive(Debug, Eq, PartialEq)]
pub struct Failure {
    code: u8,
    what: String,
    next: String,
}

impl Failure {
    /// What happened (no capital, no full stop), and what to do next (a sentence or a command). Neither may be empty.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        let (what, next) = (what.into().trim_end().to_owned(), next.into().trim_end().to_owned());
        debug_assert!(!what.is_empty() && !next.is_empty(), "{what:?} {next:?}");
        Self { code: FAILED, what, next }
    }

    /// The same with another exit code than [`FAILED`]: one of those in [`super::exit`].
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// What to do next.
    pub fn next(&self) -> &str {
        &self.next
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n→ {}", self.what, self.next)
    }
}

impl std::error::Error for Failure {}

/// A command of this program that the user can copy, such as `kubectl nestling get -n marsh`.
pub fn command(words: &str) -> String {
    format!("{} {words}", program())
}
