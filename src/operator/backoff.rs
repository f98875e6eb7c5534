//! How long to wait before an object is tried again, and which step is not worth trying before.

use std::collections::HashMap;
use std::time::Duration;

use nestling_core::plan::problem::Problem;
use tokio::time::Instant;

use super::key::Key;

/// Longest pause after what may pass by itself.
const LONGEST: Duration = Duration::from_mins(5);

/// Longest pause where somebody else is to help: who has done so should not wait long for the effect.
const LONGEST_REFUSED: Duration = Duration::from_mins(1);

/// Failures in a row, per object.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<Key, Entry>);

#[derive(Debug, Default)]
struct Entry {
    failures: u32,
    held: Option<(Held, Instant)>,
}

/// A step that the host has refused and would refuse again. Passes go on, because there is more to see and to say; but they leave this step out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    /// Name of the step.
    pub step: &'static str,
    /// Generation of the spec that it was refused for: another one is tried at once.
    pub generation: i64,
    /// Why it was refused.
    pub problem: Problem,
}

impl Backoff {
    /// The pause after one more failure: `first`, then twice as long each time, five minutes at most.
    pub fn after_failure(&mut self, key: &Key, first: Duration) -> Duration {
        let entry = self.0.entry(key.clone()).or_default();
        let pause = first.saturating_mul(2_u32.saturating_pow(entry.failures.min(16)));
        entry.failures += 1;
        entry.held = None;
        pause.min(LONGEST)
    }

    /// As [`Self::after_failure`], one minute at most, during which the refused step is held.
    pub fn after_refusal(&mut self, key: &Key, first: Duration, held: Held) -> Duration {
        let pause = self.after_failure(key, first).min(LONGEST_REFUSED);
        if let Some(entry) = self.0.get_mut(key) {
            entry.held = Some((held, Instant::now() + pause));
        }
        pause
    }

    /// The step that is held for this generation, and for how much longer.
    pub fn held(&self, key: &Key, generation: i64) -> Option<(Held, Duration)> {
        let (held, until) = self.0.get(key)?.held.as_ref()?;
        let left = until.saturating_duration_since(Instant::now());
        (held.generation == generation && !left.is_zero()).then(|| (held.clone(), left))
    }

    /// All is well with this object, or it is gone.
    pub fn reset(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestling_core::api::reasons::Reason;

    fn key() -> Key {
        Key { namespace: "marsh".into(), name: "crane".into() }
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_start_anew() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..11).map(|_| backoff.after_failure(&key(), Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        backoff.reset(&key());
        assert_eq!(backoff.after_failure(&key(), Duration::from_secs(1)).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_step_is_held_for_its_generation_until_the_pause_is_over() {
        let mut backoff = Backoff::default();
        let held = Held { step: "CreatePod", generation: 3, problem: Problem::new(Reason::PodSecurity, "no") };
        let pauses: Vec<u64> = (0..3).map(|_| backoff.after_refusal(&key(), Duration::from_secs(30), held.clone()).as_secs()).collect();
        assert_eq!(pauses, [30, 60, 60]);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(backoff.held(&key(), 3), Some((held, Duration::from_secs(1))));
        assert_eq!(backoff.held(&key(), 4), None, "an edited spec is tried at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(backoff.held(&key(), 3), None);
    }
}
