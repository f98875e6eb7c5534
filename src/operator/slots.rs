//! How many clusters are created at once, and whose turn it is.
//!
//! Creating a cluster is the heaviest thing that happens on the host. Slots are granted in the order of the objects' creation; what waits is
//! told how many come first.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nestling_core::plan::decide::takes_slot;
use nestling_core::plan::observed::{Observed, Turn};
use nestling_core::plan::situation::Situation;
use tokio::time::Instant;

use super::key::{Key, Triggers};

/// So many of those that wait are told of their new position when a slot becomes free.
const TOLD: usize = 32;

/// Who creates and who waits.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    holders: BTreeSet<Key>,
    waiting: BTreeSet<(Timestamp, Key)>,
    since: HashMap<Key, Timestamp>,
}

impl Slots {
    /// `max` clusters at once; at least one.
    pub fn new(max: usize) -> Self {
        Self { max: max.max(1), holders: BTreeSet::new(), waiting: BTreeSet::new(), since: HashMap::new() }
    }

    /// Asks for a slot for an object created at this time; queues it if there is none.
    pub fn ask(&mut self, key: &Key, created: Timestamp) -> Turn {
        if self.holders.contains(key) {
            return Turn::Granted;
        }
        self.leave(key);
        let entry = (created, key.clone());
        let before = self.waiting.range(..&entry).count();
        // Nobody overtakes: whoever comes first keeps the slots that are free for it until it asks or leaves.
        if self.holders.len() + before < self.max {
            self.holders.insert(key.clone());
            return Turn::Granted;
        }
        self.waiting.insert(entry);
        self.since.insert(key.clone(), created);
        Turn::Queued { before: self.holders.len() + before }
    }

    /// A pod is there already: it holds a slot, even one too many.
    pub fn hold(&mut self, key: &Key) {
        self.leave(key);
        self.holders.insert(key.clone());
    }

    /// Neither creates nor waits any more. Returns who should ask or be told now; nobody if nothing has changed.
    pub fn release(&mut self, key: &Key) -> Vec<Key> {
        let left = self.holders.remove(key) | self.leave(key);
        if !left {
            return Vec::new();
        }
        self.waiting.iter().take(TOLD).map(|(_, key)| key.clone()).collect()
    }

    /// How many create and how many wait.
    pub fn counts(&self) -> (usize, usize) {
        (self.holders.len(), self.waiting.len())
    }

    fn leave(&mut self, key: &Key) -> bool {
        let Some(created) = self.since.remove(key) else { return false };
        self.waiting.remove(&(created, key.clone()))
    }
}

/// What a cluster wants of the slots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Want {
    /// To be created.
    Ask,
    /// Its pod is at work on it.
    Hold,
    /// Nothing.
    Nothing,
}

/// What a cluster in this situation wants.
pub fn want(seen: &Observed, stands: &Situation<'_>) -> Want {
    match stands {
        Situation::Create { .. } | Situation::Queued { .. } => Want::Ask,
        Situation::Creating { pod, .. } if takes_slot(&seen.status(), pod) => Want::Hold,
        // A failed attempt keeps the host busy until its pod is deleted.
        Situation::Failed(_) | Situation::Discard(_) | Situation::Recreate(_) | Situation::Replaced(_) | Situation::Outdated(_) | Situation::Paused
            if seen.children.current_pod().is_some_and(|pod| takes_slot(&seen.status(), pod)) =>
        {
            Want::Hold
        }
        _ => Want::Nothing,
    }
}

/// [`Slots`] that wake whose turn it has become.
#[derive(Debug)]
pub struct SlotQueue {
    slots: Mutex<Slots>,
    /// When each of those that wait was queued first. An operator that starts begins anew.
    queued: Mutex<HashMap<Key, Instant>>,
    triggers: Triggers,
}

impl SlotQueue {
    /// `max` clusters at once.
    pub fn new(max: usize, triggers: Triggers) -> Self {
        Self { slots: Mutex::new(Slots::new(max)), queued: Mutex::default(), triggers }
    }

    /// See [`Slots::ask`].
    pub fn ask(&self, key: &Key, created: Timestamp) -> Turn {
        let turn = self.with(|slots| slots.ask(key, created));
        match turn {
            Turn::Queued { .. } => {
                self.queued().entry(key.clone()).or_insert_with(Instant::now);
            }
            Turn::Granted => self.leaves(key),
        }
        turn
    }

    /// See [`Slots::hold`].
    pub fn hold(&self, key: &Key) {
        self.leaves(key);
        self.with(|slots| slots.hold(key));
    }

    /// See [`Slots::release`].
    pub fn release(&self, key: &Key) {
        self.leaves(key);
        for next in self.with(|slots| slots.release(key)) {
            self.triggers.fire(next);
        }
    }

    /// A cluster that cannot be looked at does not hold up those behind it. What it holds it keeps.
    pub fn give_way(&self, key: &Key) {
        self.leaves(key);
        for next in self.with(|slots| if slots.holders.contains(key) { Vec::new() } else { slots.release(key) }) {
            self.triggers.fire(next);
        }
    }

    /// How many create and how many wait.
    pub fn counts(&self) -> (usize, usize) {
        self.with(|slots| slots.counts())
    }

    /// How long the one that has waited longest has waited.
    pub fn longest_wait(&self) -> Duration {
        self.queued().values().map(Instant::elapsed).max().unwrap_or_default()
    }

    fn leaves(&self, key: &Key) {
        self.queued().remove(key);
    }

    fn queued(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Slots) -> T) -> T {
        change(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: usize) -> Key {
        Key { namespace: "marsh".into(), name: format!("crane-{number}") }
    }

    fn at(second: usize) -> Timestamp {
        Timestamp::from_second(i64::try_from(second).unwrap()).unwrap()
    }

    #[test]
    fn the_oldest_comes_first_and_is_woken() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.ask(&key(9), at(9)), Turn::Granted);
        assert_eq!(slots.ask(&key(5), at(5)), Turn::Queued { before: 1 });
        assert_eq!(slots.ask(&key(3), at(3)), Turn::Queued { before: 1 });
        assert_eq!(slots.ask(&key(5), at(5)), Turn::Queued { before: 2 });
        assert_eq!(slots.release(&key(9)), [key(3), key(5)]);
        assert_eq!(slots.ask(&key(5), at(5)), Turn::Queued { before: 1 }, "key 3 comes first even if it asks later");
        assert_eq!(slots.ask(&key(3), at(3)), Turn::Granted);
        assert_eq!(slots.ask(&key(3), at(3)), Turn::Granted, "asking again changes nothing");
        assert_eq!(slots.counts(), (1, 1));
    }

    #[test]
    fn whoever_leaves_the_queue_makes_room() {
        let mut slots = Slots::new(1);
        slots.hold(&key(0));
        slots.ask(&key(1), at(1));
        slots.ask(&key(2), at(2));
        assert_eq!(slots.release(&key(1)), [key(2)], "the next one is told of its new position");
        assert!(slots.release(&key(1)).is_empty(), "nothing has changed");
        slots.release(&key(0));
        assert_eq!(slots.ask(&key(2), at(2)), Turn::Granted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_lasts_until_the_turn_comes() {
        let (triggers, _keys) = Triggers::new();
        let queue = SlotQueue::new(1, triggers);
        queue.ask(&key(0), at(0));
        assert_eq!(queue.longest_wait(), Duration::ZERO, "who is being created does not wait");
        for number in [1, 2] {
            queue.ask(&key(number), at(number));
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        queue.ask(&key(1), at(1));
        assert_eq!(queue.longest_wait(), Duration::from_secs(20), "asking again does not begin a new wait");
        queue.release(&key(0));
        queue.ask(&key(1), at(1));
        assert_eq!(queue.longest_wait(), Duration::from_secs(10));
        queue.give_way(&key(2));
        assert_eq!(queue.longest_wait(), Duration::ZERO);
    }

    #[test]
    fn a_restart_may_find_more_than_allowed_but_grants_none() {
        let mut slots = Slots::new(1);
        slots.hold(&key(0));
        slots.hold(&key(1));
        assert_eq!(slots.ask(&key(2), at(0)), Turn::Queued { before: 2 });
        slots.release(&key(0));
        assert_eq!(slots.ask(&key(2), at(0)), Turn::Queued { before: 1 });
    }

    proptest! {
        /// Clusters ask, finish and give up in any order, and every key that is woken asks again.
        #[test]
        fn never_too_many_and_nobody_starves(max in 1..5_usize, moves in prop::collection::vec((0..12_usize, 0..3_u8), 0..80)) {
            let mut slots = Slots::new(max);
            let mut woken: Vec<Key> = Vec::new();
            let number = |key: &Key| key.name.trim_start_matches("crane-").parse::<usize>().unwrap();
            for (index, action) in moves {
                match action {
                    0 | 1 => { slots.ask(&key(index), at(index)); }
                    _ => woken.extend(slots.release(&key(index))),
                }
                while let Some(next) = woken.pop() {
                    if slots.since.contains_key(&next) {
                        slots.ask(&next, at(number(&next)));
                    }
                }
                prop_assert!(slots.holders.len() <= max, "{slots:?}");
                prop_assert!(slots.waiting.is_empty() || slots.holders.len() == max, "a slot is free while somebody waits: {slots:?}");
                prop_assert!(slots.waiting.iter().all(|(_, key)| !slots.holders.contains(key)));
                prop_assert_eq!(slots.waiting.len(), slots.since.len());
            }
            // Holders finish one after the other: everybody gets a turn.
            let mut order = Vec::new();
            while let Some(done) = slots.holders.iter().next().cloned() {
                order.push(done.clone());
                for next in slots.release(&done) {
                    slots.ask(&next, at(number(&next)));
                }
                prop_assert!(order.len() <= 12);
            }
            prop_assert!(slots.waiting.is_empty());
        }
    }
}
