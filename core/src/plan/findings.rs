//! What a look at a host's node finds: what keeps clusters from running there, and what can be lived with.

use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::api::reasons::Reason;

/// How bad it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Clusters run, and it is worth knowing.
    Warning,
    /// Clusters are refused.
    Problem,
}

/// One thing that was found.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The reason, whose remedy helps.
    pub reason: Reason,
    /// What exactly, as a sentence.
    pub message: String,
}

impl Finding {
    /// Something that clusters can live with.
    pub fn warning(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, reason, message: message.into() }
    }

    /// Something that keeps clusters from running.
    pub fn problem(reason: Reason, message: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, reason, message: message.into() }
    }
}

/// Splits findings into the first problem, if there is one, and what can be lived with.
///
/// # Errors
/// The first problem.
pub fn judge(findings: Vec<Finding>) -> Result<Vec<String>, Problem> {
    match findings.iter().find(|finding| finding.severity == Severity::Problem) {
        Some(problem) => Err(Problem::new(problem.reason, problem.message.trim_end_matches('.'))),
        None => Ok(findings.into_iter().map(|finding| finding.message).collect()),
    }
}
