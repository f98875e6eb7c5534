//! Progress for a person: one line a step on standard error, with the time since the start.

use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints one line of progress, with the seconds since the first one.
pub fn note(message: impl AsRef<str>) {
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    eprintln!("[{elapsed:7.1}s] {}", message.as_ref());
}
