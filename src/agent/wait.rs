//! Waiting, always with an end.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often something on the critical path is looked at.
pub const OFTEN: Duration = Duration::from_millis(50);

/// Something did not come in time.
#[derive(Debug, Eq, PartialEq)]
pub struct TimedOut {
    what: String,
    limit: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "gave up waiting for {} after {} s", self.what, self.limit.as_secs())
    }
}

/// Asks `probe` every `interval` until it has an answer.
///
/// # Errors
/// [`TimedOut`] when there is none after `limit`. A probe that hangs is cut off as well.
pub async fn until<T, F>(what: &str, limit: Duration, interval: Duration, mut probe: impl FnMut() -> F) -> Result<T, TimedOut>
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + limit;
    let asking = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            sleep(interval).await;
        }
    };
    tokio::time::timeout_at(end, asking).await.map_err(|_| TimedOut { what: what.to_owned(), limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_ends_the_wait() {
        let mut left = 3;
        let answer = until("three", Duration::from_secs(5), Duration::from_millis(1), || {
            left -= 1;
            std::future::ready((left == 0).then_some("done"))
        });
        assert_eq!(answer.await, Ok("done"));
    }

    #[tokio::test]
    async fn a_hanging_probe_is_cut_off() {
        let waited = until::<(), _>("Godot", Duration::from_millis(20), OFTEN, std::future::pending).await;
        assert_eq!(waited.unwrap_err().to_string(), "gave up waiting for Godot after 0 s");
    }
}
