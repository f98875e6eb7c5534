//! Preventions that a test leaves out, to see that something notices. Compiled to nothing without the feature `fault-injection`.

/// Whether a test wants to do without this prevention.
#[cfg(not(feature = "fault-injection"))]
pub fn disabled(_: &str) -> bool {
    false
}

/// Whether a test wants to do without this prevention: `NESTLING_DISABLE` is a list of names with commas between them.
#[cfg(feature = "fault-injection")]
pub fn disabled(prevention: &str) -> bool {
    std::env::var("NESTLING_DISABLE").is_ok_and(|names| lists(&names, prevention))
}

#[cfg(feature = "fault-injection")]
fn lists(names: &str, prevention: &str) -> bool {
    names.split(',').any(|name| name == prevention)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_out_unless_it_is_named() {
        assert!(!disabled("cgroup-isolation"));
    }

    #[cfg(feature = "fault-injection")]
    #[test]
    fn names_are_whole_words() {
        assert!(lists("cpu-limit,cgroup-mount-order", "cgroup-mount-order"));
        assert!(!lists("cpu-limits", "cpu-limit"));
    }
}
