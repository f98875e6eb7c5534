//! Why something asked for cannot be done.

use crate::api::reasons::Reason;

/// A reason with its particulars. Not an error of the program: it is shown to the user as a condition.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Problem {
    /// The reason.
    pub reason: Reason,
    /// What exactly, without the remedy.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// What happened and what to do about it.
    pub fn explain(&self) -> String {
        self.reason.explain(&self.message)
    }
}
