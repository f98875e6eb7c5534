//! How long to wait before an object is tried again.

use std::collections::HashMap;
use std::time::Duration;

use super::key::Key;

/// Longest pause.
const LONGEST: Duration = Duration::from_mins(5);

/// Failures in a row, per object.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<Key, u32>);

impl Backoff {
    /// The pause after one more failure: `first`, then twice as long each time, five minutes at most.
    pub fn after_failure(&mut self, key: &Key, first: Duration) -> Duration {
        let failures = self.0.entry(key.clone()).or_insert(0);
        let pause = first.saturating_mul(2_u32.saturating_pow((*failures).min(16)));
        *failures += 1;
        pause.min(LONGEST)
    }

    /// All is well with this object, or it is gone.
    pub fn reset(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_start_anew() {
        let mut backoff = Backoff::default();
        let key = Key { namespace: "marsh".into(), name: "crane".into() };
        let pauses: Vec<u64> = (0..11).map(|_| backoff.after_failure(&key, Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        backoff.reset(&key);
        assert_eq!(backoff.after_failure(&key, Duration::from_secs(30)).as_secs(), 30);
    }
}
