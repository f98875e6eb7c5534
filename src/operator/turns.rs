//! Whose pass comes next. Who has waited longest does: kube's queue hands out those that wait in the order of a hash table (`Scheduler::pending` of
//! kube-runtime 5), and in a rush the same ones would come last again and again.

use tokio::sync::{Semaphore, SemaphorePermit};

/// So many passes for each one at work are taken out of kube's queue and wait here. A bound, because all that are taken out are looked at whenever one of
/// them moves.
const IN_LINE: u16 = 16;

/// Two lines, and how many of each are at work.
pub struct Turns {
    /// Objects of which nothing was said yet. Their first pass is one short write, and does not wait for passes that take long.
    new: Semaphore,
    /// All others.
    known: Semaphore,
}

impl Turns {
    /// So many of each line at once.
    pub fn new(concurrency: u16) -> Self {
        let line = || Semaphore::new(usize::from(concurrency));
        Self { new: line(), known: line() }
    }

    /// How many kube's queue may hand out at once.
    pub fn in_line(concurrency: u16) -> u16 {
        concurrency.saturating_mul(IN_LINE)
    }

    /// Waits for a turn, which lasts until what is returned is dropped; `None`: there are no more.
    pub async fn take(&self, is_new: bool) -> Option<SemaphorePermit<'_>> {
        let line = if is_new { &self.new } else { &self.known };
        line.acquire().await.ok()
    }

    /// Nobody gets a turn any more.
    pub fn close(&self) {
        self.new.close();
        self.known.close();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_has_waited_longest_is_next() {
        let turns = Turns::new(1);
        let at_work = turns.take(false).now_or_never().flatten();
        let (mut first, mut second) = (Box::pin(turns.take(false)), Box::pin(turns.take(false)));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(at_work);
        assert!((&mut second).now_or_never().is_none(), "the second came first");
        assert!(first.now_or_never().flatten().is_some());
    }

    #[test]
    fn who_is_new_waits_for_those_only_that_are_new_as_well() {
        let turns = Turns::new(1);
        let _at_work = turns.take(false).now_or_never().flatten().unwrap();
        let new = turns.take(true).now_or_never().flatten();
        assert!(new.is_some());
        assert!(turns.take(true).now_or_never().is_none());
    }

    #[test]
    fn in_the_end_nobody_gets_a_turn() {
        let turns = Turns::new(1);
        let at_work = turns.take(false).now_or_never().flatten();
        let mut waiting = Box::pin(turns.take(false));
        assert!((&mut waiting).now_or_never().is_none());
        turns.close();
        drop(at_work);
        assert!(waiting.now_or_never().unwrap().is_none());
        assert!(turns.take(true).now_or_never().unwrap().is_none());
    }
}
