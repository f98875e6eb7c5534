//! One operator at work at a time: a Lease, every write of which carries the `resourceVersion` that was read.
//!
//! Clocks of different machines are not compared. The holder counts from its own last successful renewal; the others count from when they saw
//! the record change. The holder gives up well before the others may take over; a [`Fence`] keeps it from sending writes when it wakes up too late
//! to know. A leader that is lost is followed within [`DURATION`] and two looks.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Record, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::fence::Fence;

/// How long a record that does not change keeps others away.
const DURATION: Duration = Duration::from_secs(15);

/// How often the holder renews it.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// The holder gives up when it has not renewed the record for so long. The difference to [`DURATION`] is for calls under way.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// How often the others look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bound of one call.
const CALL: Duration = Duration::from_secs(4);

/// Why this process is not the leader any more.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another one holds it.
    #[error("the lease was taken over by {0}")]
    TakenOver(String),
    /// It could not be renewed in time.
    #[error("the lease could not be renewed for {}s", GIVE_UP_AFTER.as_secs())]
    NotRenewed,
}

/// What to do about a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Move {
    /// There is none: make it.
    Create,
    /// It is free, or its holder is silent: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// It is another's: wait.
    Wait,
}

/// Decides what to do about a record that has not changed for `unchanged`. Pure.
///
/// A record with our own identity is renewed at once: the identity is the pod's name, so only an earlier run of this very container can have
/// written it, and that one has ended.
pub fn lease_decision(me: &str, record: Option<&LeaseSpec>, unchanged: Duration) -> Move {
    let Some(record) = record else { return Move::Create };
    match record.holder_identity.as_deref() {
        None | Some("") => Move::Take,
        Some(holder) if holder == me => Move::Renew,
        Some(_) => {
            let theirs = record.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs);
            if unchanged >= theirs { Move::Take } else { Move::Wait }
        }
    }
}

/// The next record after a move.
fn next_record(mut record: Record, me: &str, decision: Move, now: Timestamp) -> Record {
    let spec = record.spec.get_or_insert_default();
    if decision != Move::Renew {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |before| before + 1));
    }
    spec.holder_identity = Some(me.to_owned());
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.renew_time = Some(MicroTime(now));
    record
}

/// The lease that operators of one installation compete for.
#[derive(Clone)]
pub struct Lease {
    api: Api<Record>,
    name: String,
    me: String,
}

/// The lease, held.
pub struct Held {
    lease: Lease,
    record: Record,
    fence: Fence,
}

impl Lease {
    /// The lease of this name; `me` is unique among living processes.
    pub fn new(client: Client, namespace: &str, name: String, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), name, me }
    }

    /// Waits until the lease is ours. `standing_by` is called after each look at it.
    pub async fn acquire(&self, standing_by: impl Fn()) -> Held {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(Some(held)) => return held,
                Ok(None) => standing_by(),
                Err(error) => warn!(%error, "cannot look at the lease"),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Held>, kube::Error> {
        let found = bounded(self.api.get_opt(&self.name)).await?;
        let unchanged = match &found {
            None => Duration::ZERO,
            Some(record) => {
                let version = record.metadata.resource_version.clone().unwrap_or_default();
                match seen {
                    Some((before, since)) if *before == version => since.elapsed(),
                    _ => {
                        *seen = Some((version, Instant::now()));
                        Duration::ZERO
                    }
                }
            }
        };
        let spec = found.as_ref().map(|record| record.spec.clone().unwrap_or_default());
        let decision = lease_decision(&self.me, spec.as_ref(), unchanged);
        if decision == Move::Wait {
            let holder = found.and_then(|record| record.spec?.holder_identity).unwrap_or_default();
            debug!(holder, "the lease is held by another operator");
            return Ok(None);
        }
        let renewed = Instant::now();
        let written = self.write(found, decision).await;
        match written {
            Ok(record) => {
                info!(?decision, "the lease is ours");
                Ok(Some(Held::new(self.clone(), record, renewed)))
            }
            // Somebody else was first.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, found: Option<Record>, decision: Move) -> Result<Record, kube::Error> {
        let exists = found.is_some();
        let base = found.unwrap_or_else(|| Record { metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }, ..Record::default() });
        let record = next_record(base, &self.me, decision, Timestamp::now());
        let params = PostParams::default();
        if exists { bounded(self.api.replace(&self.name, &params, &record)).await } else { bounded(self.api.create(&params, &record)).await }
    }
}

impl Held {
    fn new(lease: Lease, record: Record, acquired: Instant) -> Self {
        Self { lease, record, fence: Fence::new(acquired, GIVE_UP_AFTER) }
    }

    /// What keeps writes from being sent when the lease is not ours any more.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Renews the lease until it is lost.
    pub async fn keep(&mut self) -> LeaseError {
        loop {
            sleep(RENEW_EVERY.min(GIVE_UP_AFTER.saturating_sub(self.fence.age()))).await;
            if self.fence.age() >= GIVE_UP_AFTER {
                return LeaseError::NotRenewed;
            }
            if let Err(holder) = self.renew().await {
                return LeaseError::TakenOver(holder);
            }
        }
    }

    /// One renewal. A call that fails is no loss yet; a record in another's name is.
    async fn renew(&mut self) -> Result<(), String> {
        let started = Instant::now();
        match self.lease.write(Some(self.record.clone()), Move::Renew).await {
            Ok(record) => {
                self.record = record;
                self.fence.renew(started);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => match bounded(self.lease.api.get(&self.lease.name)).await {
                Ok(record) => {
                    let holder = record.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
                    if holder != self.lease.me {
                        return Err(holder);
                    }
                    // An earlier call of ours was carried out after all.
                    self.record = record;
                    self.try_again().await;
                }
                Err(error) => {
                    warn!(%error, "cannot look at the lease");
                    self.try_again().await;
                }
            },
            Err(error) => {
                warn!(%error, "cannot renew the lease");
                self.try_again().await;
            }
        }
        Ok(())
    }

    /// A failed renewal is repeated sooner than the next one is due.
    async fn try_again(&self) {
        sleep(Duration::from_millis(200)).await;
    }

    /// Frees the lease, so that the next leader need not wait for it to run out. Best effort.
    pub async fn vacate(self) {
        let freed = async {
            let mut record = bounded(self.lease.api.get(&self.lease.name)).await?;
            if record.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) != Some(&self.lease.me) {
                return Ok(());
            }
            if let Some(spec) = &mut record.spec {
                spec.holder_identity = None;
            }
            bounded(self.lease.api.replace(&self.lease.name, &PostParams::default(), &record)).await.map(drop)
        };
        match freed.await {
            Ok(()) => info!("the lease is free"),
            Err(error) => warn!(%error, "cannot free the lease; it runs out by itself"),
        }
    }
}

/// One call, bounded.
async fn bounded<T>(future: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    timeout(CALL, future).await.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::mock::{Answer, Mock};
    use rstest::rstest;
    use serde_json::{Value, json};

    fn spec(holder: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.into()), lease_duration_seconds: Some(15), ..LeaseSpec::default() }
    }

    #[rstest]
    #[case(None, 0, Move::Create)]
    #[case(Some(LeaseSpec::default()), 0, Move::Take)]
    #[case(Some(spec("")), 0, Move::Take)]
    #[case(Some(spec("me")), 0, Move::Renew)]
    #[case(Some(spec("other")), 0, Move::Wait)]
    #[case(Some(spec("other")), 14, Move::Wait)]
    #[case(Some(spec("other")), 15, Move::Take)]
    #[case(Some(LeaseSpec { lease_duration_seconds: Some(60), ..spec("other") }), 59, Move::Wait)]
    #[case(Some(LeaseSpec { lease_duration_seconds: None, ..spec("other") }), 15, Move::Take)]
    fn decisions(#[case] record: Option<LeaseSpec>, #[case] unchanged: u64, #[case] expected: Move) {
        assert_eq!(lease_decision("me", record.as_ref(), Duration::from_secs(unchanged)), expected);
    }

    #[test]
    fn a_change_of_holder_is_counted_and_a_renewal_is_not() {
        let now = Timestamp::from_second(7).unwrap();
        let first = next_record(Record::default(), "a", Move::Create, now);
        let renewed = next_record(first.clone(), "a", Move::Renew, now);
        let taken = next_record(renewed.clone(), "b", Move::Take, now);
        let transitions = |record: &Record| record.spec.as_ref().unwrap().lease_transitions;
        assert_eq!((transitions(&first), transitions(&renewed), transitions(&taken)), (Some(0), Some(0), Some(1)));
    }

    fn record(holder: &str, version: &str) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "nestling", "namespace": "operators", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
        })
    }

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/operators/leases";

    #[tokio::test(start_paused = true)]
    async fn of_two_that_create_it_one_waits() {
        let (client, mock) = Mock::new();
        let lease = Lease::new(client, "operators", "nestling".into(), "me".into());
        let server = tokio::spawn(async move {
            let mut mock = mock;
            mock.expect("GET", &format!("{PATH}/nestling"), Answer::missing()).await;
            let sent = mock.expect("POST", PATH, Answer::refused(409, "AlreadyExists", "leases \"nestling\" already exists")).await;
            assert_eq!(sent["spec"]["holderIdentity"], "me");
            mock.expect("GET", &format!("{PATH}/nestling"), Answer::ok(record("other", "5"))).await;
            // Silent for fifteen seconds: it is taken, on condition that it is still the record that was read.
            for _ in 0..14 {
                mock.expect("GET", &format!("{PATH}/nestling"), Answer::ok(record("other", "5"))).await;
            }
            mock.expect("GET", &format!("{PATH}/nestling"), Answer::ok(record("other", "5"))).await;
            let sent = mock.expect("PUT", &format!("{PATH}/nestling"), Answer::ok(record("me", "6"))).await;
            assert_eq!((sent["metadata"]["resourceVersion"].as_str(), sent["spec"]["holderIdentity"].as_str()), (Some("5"), Some("me")));
            mock
        });
        let held = lease.acquire(|| ()).await;
        assert_eq!(held.record.metadata.resource_version.as_deref(), Some("6"));
        server.await.unwrap().done().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_was_replaced_stops() {
        let (client, mut mock) = Mock::new();
        let lease = Lease::new(client, "operators", "nestling".into(), "me".into());
        let record_of_mine = serde_json::from_value(record("me", "6")).unwrap();
        let mut held = Held::new(lease, record_of_mine, Instant::now());
        let server = tokio::spawn(async move {
            mock.expect("PUT", &format!("{PATH}/nestling"), Answer::refused(409, "Conflict", "modified")).await;
            mock.expect("GET", &format!("{PATH}/nestling"), Answer::ok(record("other", "9"))).await;
            mock.done().await;
        });
        assert!(matches!(held.keep().await, LeaseError::TakenOver(holder) if holder == "other"));
        server.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_hears_nothing_stops_before_the_others_may_take_over() {
        let (client, mock) = Mock::new();
        let lease = Lease::new(client, "operators", "nestling".into(), "me".into());
        let started = Instant::now();
        let mut held = Held::new(lease, serde_json::from_value(record("me", "6")).unwrap(), started);
        assert!(matches!(held.keep().await, LeaseError::NotRenewed));
        assert!(started.elapsed() < DURATION, "{:?}", started.elapsed());
        drop(mock);
    }
}
