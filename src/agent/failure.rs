//! From what went wrong to what is said about it.

use std::fs;
use std::path::Path;

use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify_log;
use nestling_core::plan::problem::Problem;
use nestling_core::plan::wire::AgentFailure;

use super::output;

/// Most bytes of evidence in a report.
const LOG_LIMIT: usize = 2048;

/// Most bytes of a message.
const MESSAGE_LIMIT: usize = 1024;

/// Most bytes that the kubelet takes from a termination log are 4096 (`MaxContainerTerminationMessageLength`).
const TERMINATION_LIMIT: usize = 4000;

/// A failure without evidence.
pub fn failure(reason: Reason, message: impl AsRef<str>) -> AgentFailure {
    evident(reason, message, "")
}

/// A failure with the last lines of `log` as evidence.
pub fn evident(reason: Reason, message: impl AsRef<str>, log: &str) -> AgentFailure {
    AgentFailure {
        reason,
        message: output::head(&output::presentable(message.as_ref(), &[]), MESSAGE_LIMIT).trim().to_owned(),
        log_tail: output::last(&output::presentable(log, &[]), LOG_LIMIT).to_owned(),
    }
}

/// What a pure check found.
pub fn from_problem(problem: &Problem) -> AgentFailure {
    failure(problem.reason, &problem.message)
}

/// The reason that a number of logs tell of, and the log that tells it best, cut behind the telling line.
///
/// The first log is the tool's own and stands where none says more.
pub fn judge(logs: &[String], otherwise: Reason) -> (Reason, &str) {
    let own = logs.first().map_or("", String::as_str);
    let found = logs.iter().filter_map(|log| classify_log(log).map(|found| (found, log)));
    match found.min_by_key(|(found, _)| found.rank) {
        Some((found, log)) => {
            // A few lines behind the telling one show what came of it.
            let end = log.match_indices('\n').map(|(at, _)| at).nth(found.line + 8).unwrap_or(log.len());
            (found.reason, &log[..end])
        }
        None => (otherwise, own),
    }
}

/// A failure as JSON that fits into the termination log.
fn termination_message(failure: &AgentFailure) -> String {
    let mut failure = failure.clone();
    loop {
        let text = serde_json::to_string(&failure).unwrap_or_default();
        if text.len() <= TERMINATION_LIMIT {
            return text;
        }
        // JSON escapes make a text longer than it is.
        if failure.log_tail.is_empty() {
            failure.message = output::head(&failure.message, failure.message.len() / 2).to_owned();
        } else {
            failure.log_tail = output::last(&failure.log_tail, failure.log_tail.len() / 2).to_owned();
        }
    }
}

/// Leaves a failure for the kubelet, so that it is known also when nobody asked the agent in time.
///
/// # Errors
/// Those of the file system.
pub fn leave(failure: &AgentFailure, termination_log: &Path) -> std::io::Result<()> {
    fs::write(termination_log, termination_message(failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_better_than_kind() {
        let kind = "ERROR: failed to create cluster: could not find a log line that matches \"x\"".to_owned();
        let node = format!("boot\nFailed to allocate directory watch: Too many open files\n{}", "later\n".repeat(50));
        let logs = [kind.clone(), node];
        let (reason, log) = judge(&logs, Reason::KindFailed);
        assert_eq!(reason, Reason::InotifyLimitTooLow);
        assert_eq!(log.lines().count(), 10);
        assert_eq!(judge(&[kind, "fine".to_owned()], Reason::KindFailed).0, Reason::NodeBootTimeout);
        assert_eq!(judge(&["odd".to_owned(), "fine".to_owned()], Reason::KindFailed), (Reason::KindFailed, "odd"));
    }

    #[test]
    fn the_termination_log_is_never_too_long() {
        let failure = evident(Reason::KindFailed, "\"".repeat(9_000), &"\\\n".repeat(9_000));
        assert!(failure.log_tail.len() <= LOG_LIMIT && failure.message.len() <= MESSAGE_LIMIT);
        let text = termination_message(&failure);
        assert!(text.len() <= TERMINATION_LIMIT);
        let back: AgentFailure = serde_json::from_str(&text).unwrap();
        assert_eq!(back.reason, Reason::KindFailed);
        assert_eq!(back.message, failure.message);
    }
}
