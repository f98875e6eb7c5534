//! Running other programs so that a failure says which one, and what it said last.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const LINES_SHOWN: usize = 25;
const POLL: Duration = Duration::from_millis(20);

/// Runs two commands, the first one's output being the second one's input, and tells whether both went well.
pub fn pipe(from: &mut Command, to: &mut Command) -> Result<bool> {
    let mut writer = from.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{}`", describe(from)))?;
    let stream = writer.stdout.take().context("a command has no output")?;
    let read = to.stdin(stream).status().with_context(|| format!("cannot start `{}`", describe(to)))?;
    Ok(writer.wait()?.success() && read.success())
}

/// Runs a command to its end and returns its standard output, trimmed; output is shown only where it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !result.status.success() {
        let mut text = String::from_utf8_lossy(&result.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&result.stderr));
        bail!("`{shown}` ended with {}:\n{}", result.status, last_lines(&text, LINES_SHOWN));
    }
    Ok(String::from_utf8_lossy(&result.stdout).trim().to_owned())
}

/// Runs a command and says only whether it succeeded.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Like [`succeeds`], but a command that has not ended in time is ended and counts as failed.
pub fn succeeds_within(command: &mut Command, limit: Duration) -> bool {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else { return false };
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return status.success();
        }
        thread::sleep(POLL);
    }
    // It may have ended between the last look and now; either way it is no longer waited for.
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Asks again and again until the answer is yes; the error names what was waited for.
pub fn wait_for(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !ready()? {
        if start.elapsed() > limit {
            bail!("{what}: not so after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The last lines of a text, for an error message.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words.into_iter().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_program_and_its_last_words() {
        let error = output(Command::new("sh").args(["-c", "echo said; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("said"), "{error}");
    }

    #[test]
    fn both_ends_of_a_pipe_count() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        for (from, to, good) in [("echo said", "grep -q said", true), ("echo said", "grep -q other", false), ("echo said; exit 3", "cat > /dev/null", false)] {
            assert_eq!(pipe(&mut shell(from), &mut shell(to)).unwrap(), good, "{from} | {to}");
        }
    }

    #[test]
    fn a_command_that_does_not_end_counts_as_failed() {
        assert!(!succeeds_within(Command::new("sleep").arg("30"), Duration::from_millis(50)));
    }

    #[test]
    fn a_wait_is_bounded_and_says_for_what() {
        let error = wait_for("the moon", Duration::from_millis(1), || Ok(false)).unwrap_err();
        assert!(error.to_string().starts_with("the moon"));
    }

    #[test]
    fn last_lines_of_a_short_text_are_all_of_it() {
        assert_eq!(last_lines("a\nb\n", 5), "a\nb");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
    }
}
