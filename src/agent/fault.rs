//! Preventions that a test leaves out, to see that something notices. Compiled to nothing without the feature `fault-injection`.

/// Whether a test wants to do without this prevention.
#[cfg(not(feature = "fault-injection"))]
pub fn disabled(_: &str) -> bool {
    false
}

/// Whether a test wants to do without this prevention: `NESTLING_DISABLE` is a list of names with commas between them.
#[cfg(feature = "fault-injection")]
pub fn disabled(prevention: &str) -> bool {
    std::env::var("NESTLING_DISABLE").is_ok_and(|names| names.split(',').any(|name| name == prevention))
}
