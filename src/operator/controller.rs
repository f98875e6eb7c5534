//! The loop: what asks for a pass, the pass itself, and what follows from how it ended.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config, Error as ControllerError, ReconcileRequest};
use kube::{Client, Resource};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, KindClusterStatus};
use nestling_core::plan::decide::{Step, decide, is_moving, rests, takes_slot};
use nestling_core::plan::evidence::is_asked;
use nestling_core::plan::milestones::{became_ready, failed};
use nestling_core::plan::notes::notes;
use nestling_core::plan::observed::{Observed, created_at};
use nestling_core::plan::problem::Problem;
use nestling_core::plan::progress::may_wait;
use nestling_core::plan::settle::settle;
use nestling_core::plan::situation::situation;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info_span, warn};

use super::act::{Acted, Actor, CutShort};
use super::backoff::{Backoff, Held};
use super::call::{CallError, Trouble};
use super::events::Events;
use super::kept::Kept;
use super::key::Key;
use super::logs::LogStore;
use super::metrics::{Metrics, Said, Snapshot};
use super::observe::{ObserveError, Observer};
use super::own_writes::OwnWrites;
use super::reports::{Interest, Reports};
use super::slots::{SlotQueue, Want, want};
use super::status;
use super::turns::Turns;

/// Several changes at once make one pass.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// First pause after an error.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// First pause where only somebody else can help: at most three attempts a minute.
const AFTER_REFUSAL: Duration = Duration::from_secs(30);

/// First pause where what was seen was out of date.
const AFTER_STALE: Duration = Duration::from_millis(200);

/// A namespace that is being deleted soon deletes the object as well.
const AFTER_TERMINATING: Duration = Duration::from_secs(5);

/// The step that a slot is for, and those before it that wait for others.
const FOR_THE_POD: [&str; 3] = ["CreatePod", "ApplyRegistries", "ApplyVolumeClaim"];

/// Longest pause between two passes.
const LONGEST: Duration = Duration::from_hours(2);

/// Everything that passes share.
pub struct Context {
    /// Towards the host cluster.
    pub client: Client,
    /// Reads.
    pub observer: Observer,
    /// Writes.
    pub actor: Actor,
    /// Who may be created.
    pub slots: SlotQueue,
    /// What the agents say.
    pub reports: Arc<Reports>,
    /// What failed attempts have left.
    pub logs: Arc<LogStore>,
    /// What users are told.
    pub events: Events,
    /// What operators of the operator are told.
    pub metrics: Arc<Metrics>,
    /// Pauses after errors.
    pub backoff: Mutex<Backoff>,
    /// What the caches may not show yet.
    pub own_writes: Mutex<OwnWrites>,
    /// When the status of a cluster that moves was written last.
    pub told: Mutex<HashMap<Key, Instant>>,
}

/// What became of a status.
enum Told {
    /// It says nothing new, or is written.
    Said,
    /// It is not worth a write before this time is over.
    Later(Duration),
    /// There is no object any more.
    Gone,
}

/// A pass that did not do what it should. Never `ok`, `not yet` or the like.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The object cannot be read: it was written under another schema.
    #[error("the KindCluster cannot be read: {0}")]
    Unreadable(String),
    /// Nothing was seen.
    #[error("failed to observe: {0}")]
    Observe(#[from] ObserveError),
    /// A step failed; the status says so.
    #[error("failed at step {step}: {problem}")]
    Step {
        /// The step.
        step: &'static str,
        /// Generation of the spec that it was for.
        generation: i64,
        /// What is the matter.
        problem: Problem,
    },
    /// What was seen is out of date.
    #[error("what was seen is out of date")]
    Stale,
    /// The namespace is being deleted.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// The status was not written.
    #[error(transparent)]
    Status(CallError),
}

impl ReconcileError {
    /// Label for metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "Unreadable",
            Self::Observe(error) => error.reason(),
            Self::Step { problem, .. } => problem.reason.as_str(),
            Self::Stale => "Conflict",
            Self::NamespaceTerminating => "NamespaceTerminating",
            Self::Status(error) => error.reason(),
        }
    }

    /// The first pause; `None`: nothing but a change of the object helps.
    fn first_pause(&self) -> Option<Duration> {
        match self {
            Self::Unreadable(_) => None,
            Self::Stale => Some(AFTER_STALE),
            Self::NamespaceTerminating => Some(AFTER_TERMINATING),
            Self::Step { problem, .. } if waits_for_a_person(problem.reason) => Some(AFTER_REFUSAL),
            Self::Observe(_) | Self::Step { .. } | Self::Status(_) => Some(AFTER_ERROR),
        }
    }
}

/// The host has answered and will answer the same again.
fn waits_for_a_person(reason: Reason) -> bool {
    reason.is_about_a_reference()
        || matches!(
            reason,
            Reason::PodSecurity | Reason::QuotaExceeded | Reason::HostRefused | Reason::KubeconfigSecretConflict | Reason::KubeconfigWriteFailed
        )
}

/// Does passes until `shutdown`, and then those under way to their end.
pub async fn run(context: Arc<Context>, keys: UnboundedReceiver<Key>, concurrency: u16, shutdown: CancellationToken) {
    let store = context.observer.caches.clusters.clone();
    let turns = Arc::new(Turns::new(concurrency));
    let lines = Arc::clone(&turns);
    let queue = requests(keys).take_until(async move {
        shutdown.cancelled_owned().await;
        lines.close();
    });
    let config = Config::default().debounce(DEBOUNCE).concurrency(Turns::in_line(concurrency));
    let results = applier(
        |object: Arc<Kept>, context: Arc<Context>| Box::pin(in_turn(Arc::clone(&turns), object, context)),
        |object, error: &ReconcileError, context| after_error(&object, error, &context),
        Arc::clone(&context),
        store,
        queue,
        config,
    );
    results
        .for_each(|result| {
            if let Err(ControllerError::ObjectNotFound(object)) = &result {
                debug!(%object, "the object is gone");
            } else if let Err(error @ (ControllerError::QueueError(_) | ControllerError::RunnerError(_))) = &result {
                warn!(%error, "the queue of passes is not well");
            }
            std::future::ready(())
        })
        .await;
}

fn requests(keys: UnboundedReceiver<Key>) -> impl Stream<Item = Result<ReconcileRequest<Kept>, Infallible>> {
    keys.map(|key| Ok(ReconcileRequest::from(key.reference())))
}

/// One pass over one object, when it is its turn.
async fn in_turn(turns: Arc<Turns>, object: Arc<Kept>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let Some(key) = Key::of(object.meta()) else { return Ok(Action::await_change()) };
    // After the first status the cache may be behind.
    let is_new = object.is_new() && !locked(&context.own_writes).has(&key);
    // None when the process ends: who has not begun does not begin.
    let Some(_turn) = turns.take(is_new).await else { return Ok(Action::await_change()) };
    let newest = context.observer.caches.clusters.get(&key.reference());
    spawned(newest.unwrap_or(object), context).await
}

/// One pass over one object, on whatever processor is free: what drives the passes is a single task.
async fn spawned(object: Arc<Kept>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let pass = AbortOnDropHandle::new(tokio::spawn(reconcile(object, context).in_current_span()));
    match pass.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The process ends.
        Err(Err(_)) => Ok(Action::await_change()),
    }
}

/// One pass over one object.
async fn reconcile(object: Arc<Kept>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let Some(key) = Key::of(object.meta()) else { return Ok(Action::await_change()) };
    let meta = object.meta();
    let span = info_span!(
        "reconcile",
        namespace = key.namespace,
        name = key.name,
        uid = meta.uid.as_deref().unwrap_or_default(),
        generation = meta.generation.unwrap_or(0)
    );
    let started = Instant::now();
    let result = async {
        let result = match object.cluster().map_err(ReconcileError::Unreadable) {
            Ok(cluster) => Box::pin(context.pass(&key, cluster)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            // Usual between caches that lag and a namespace that goes.
            if matches!(error, ReconcileError::Stale | ReconcileError::NamespaceTerminating) {
                debug!(%error, "pass cut short");
            } else {
                warn!(%error, reason = error.reason(), "pass failed");
            }
        }
        result
    }
    .instrument(span)
    .await;
    context.metrics.reconciled(started.elapsed());
    result
}

/// Counts an error and says when to try again.
fn after_error(object: &Kept, error: &ReconcileError, context: &Context) -> Action {
    context.metrics.reconcile_error(error.reason());
    let (Some(key), Some(first)) = (Key::of(object.meta()), error.first_pause()) else { return Action::await_change() };
    let mut backoff = locked(&context.backoff);
    Action::requeue(match error {
        ReconcileError::Step { step, generation, problem } if waits_for_a_person(problem.reason) => {
            backoff.after_refusal(&key, first, Held { step, generation: *generation, problem: problem.clone() })
        }
        _ => backoff.after_failure(&key, first),
    })
}

impl Context {
    /// Observe, decide, act, settle.
    async fn pass(&self, key: &Key, cached: KindCluster) -> Result<Action, ReconcileError> {
        let cluster = locked(&self.own_writes).newest(key, cached);
        let now = Timestamp::now();
        let observed = Box::pin(self.observer.observe(cluster)).await.inspect_err(|_| self.slots.give_way(key))?;
        let Some(mut seen) = observed else { return Ok(self.gone(key)) };
        let held = locked(&self.backoff).held(key, seen.generation());
        self.take_turn(now, key, &mut seen, held.as_ref().map(|(held, _)| held));

        let plan = decide(now, &seen);
        let at_rest = rests(now, &seen, &plan);
        let acted = self.actor.act(&seen, plan.steps, held.as_ref().map(|(held, _)| held)).await;
        self.after_acting(now, key, &seen, &acted);
        let finished = acted.outcome.done.iter().any(|step| matches!(step, Step::RemoveFinalizer));
        if finished || acted.cut_short == Some(CutShort::Gone) {
            return Ok(self.gone(key));
        }

        let after = settle(now, &seen, &acted.outcome);
        self.reports.tend(key, &seen.identity, seen.children.current_pod(), interest(&seen, at_rest, &after));
        self.logs.tend(key, &seen.identity, seen.children.current_pod(), is_asked(now, &seen, &situation(now, &seen)));
        let mut wake_at = plan.wake_at;
        match self.write_status(key, &seen, &acted, &after).await? {
            Told::Said => self.tell(now, &seen, &after).await,
            Told::Later(pause) => wake_at = wake_at.into_iter().chain(now.checked_add(pause).ok()).min(),
            Told::Gone => return Ok(self.gone(key)),
        }

        if let Some((_, left)) = held.filter(|_| acted.held) {
            return Ok(Action::requeue(left));
        }
        match (acted.outcome.failed, acted.cut_short) {
            (Some((step, problem)), _) => Err(ReconcileError::Step { step: step.name(), generation: seen.generation(), problem }),
            (None, Some(CutShort::NamespaceTerminating)) => Err(ReconcileError::NamespaceTerminating),
            (None, Some(_)) => Err(ReconcileError::Stale),
            (None, None) => {
                locked(&self.backoff).reset(key);
                Ok(requeue(now, wake_at))
            }
        }
    }

    /// Settles with the slots what this pass may do.
    fn take_turn(&self, now: Timestamp, key: &Key, seen: &mut Observed, held: Option<&Held>) {
        match want(seen, &situation(now, seen)) {
            // What the host refuses keeps nobody else from a slot.
            Want::Ask if held.is_some_and(|held| FOR_THE_POD.contains(&held.step)) => self.slots.release(key),
            Want::Ask => seen.turn = self.slots.ask(key, created_at(&seen.cluster.metadata)),
            Want::Hold => self.slots.hold(key),
            Want::Nothing => self.slots.release(key),
        }
    }

    /// Gives back a slot that led to no pod, and counts a finished deletion.
    fn after_acting(&self, now: Timestamp, key: &Key, seen: &Observed, acted: &Acted) {
        if acted.outcome.failed.is_some() && !acted.held && seen.children.current_pod().is_none() {
            self.slots.release(key);
        }
        let finished = acted.outcome.done.iter().any(|step| matches!(step, Step::RemoveFinalizer));
        if let Some(deleted) = seen.cluster.metadata.deletion_timestamp.as_ref().filter(|_| finished) {
            self.metrics.deleted_after(now.duration_since(deleted.0).as_secs_f64());
        }
    }

    /// Writes the status if it says anything new.
    async fn write_status(&self, key: &Key, seen: &Observed, acted: &Acted, after: &KindClusterStatus) -> Result<Told, ReconcileError> {
        let read = seen.cluster.metadata.resource_version.clone().unwrap_or_default();
        if let Some(cluster) = &acted.cluster {
            locked(&self.own_writes).record(key, &read, cluster.clone());
        }
        if seen.cluster.status.as_ref() == Some(after) {
            return Ok(Told::Said);
        }
        let since = locked(&self.told).get(key).map(Instant::elapsed);
        let wait = may_wait(&seen.status(), after).zip(since).and_then(|(least, since)| least.checked_sub(since));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Ok(Told::Later(wait));
        }
        let base = acted.cluster.clone().unwrap_or_else(|| seen.cluster.clone());
        let version = base.metadata.resource_version.clone().unwrap_or_default();
        match status::write(&self.client, base, after.clone()).await {
            Ok(Some(written)) => {
                locked(&self.own_writes).record(key, &version, written);
                let mut told = locked(&self.told);
                if is_moving(after, true) {
                    told.insert(key.clone(), Instant::now())
                } else {
                    told.remove(key)
                };
                Ok(Told::Said)
            }
            Ok(None) => Ok(Told::Gone),
            Err(error) if error.trouble() == Trouble::Conflict => Err(ReconcileError::Stale),
            Err(error) => Err(ReconcileError::Status(error)),
        }
    }

    /// Tells what has changed.
    async fn tell(&self, now: Timestamp, seen: &Observed, after: &KindClusterStatus) {
        let before = seen.status();
        if let Some(creation) = became_ready(now, seen, after) {
            self.metrics.ready(&creation);
        }
        if let Some(failure) = failed(&before, after) {
            self.metrics.failed(failure);
        }
        self.events.publish(&seen.cluster, notes(&before, after)).await;
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &Key) {
        self.slots.release(key);
        self.reports.forget(key);
        self.logs.forget(key);
        locked(&self.backoff).reset(key);
        locked(&self.own_writes).forget(key);
        locked(&self.told).remove(key);
    }

    fn gone(&self, key: &Key) -> Action {
        self.forget(key);
        Action::await_change()
    }

    /// Gives slots to the clusters that an earlier process has begun to create. Before the first pass.
    pub fn restore_slots(&self) {
        let caches = &self.observer.caches;
        // One that is ready has been created: that it is ready no more is on record before another pod is.
        for object in caches.clusters.state().iter().filter(|object| !object.said().is_some_and(Said::is_ready)) {
            let (Some(key), Ok(cluster)) = (Key::of(object.meta()), object.cluster()) else { continue };
            let children = caches.children(cluster.metadata.uid.as_deref().unwrap_or_default());
            let status = cluster.status.unwrap_or_default();
            if children.current_pod().is_some_and(|pod| takes_slot(&status, pod)) {
                self.slots.hold(&key);
            }
        }
    }

    /// The numbers of the moment.
    pub fn snapshot(&self) -> Snapshot {
        let (creating, queued) = self.slots.counts();
        let mut snapshot = Snapshot::new(creating, queued, self.slots.longest_wait());
        for object in self.observer.caches.clusters.state() {
            snapshot.count(object.said());
        }
        snapshot
    }
}

/// What is expected of a cluster's agent after a pass. `at_rest`: before it, the cluster [rested](rests).
fn interest(seen: &Observed, at_rest: bool, after: &KindClusterStatus) -> Interest {
    let going = seen.cluster.metadata.deletion_timestamp.is_some() || seen.cluster.spec.paused;
    let over = after.last_failure.as_ref().is_some_and(|failure| Some(failure.attempt) == after.attempt);
    if !going && !over && is_moving(after, true) {
        Interest::Moves
    } else if at_rest && seen.cluster.status.as_ref() == Some(after) {
        Interest::Rests
    } else {
        Interest::Asks
    }
}

fn requeue(now: Timestamp, wake_at: Option<Timestamp>) -> Action {
    let Some(wake_at) = wake_at else { return Action::await_change() };
    let pause = Duration::try_from(wake_at.duration_since(now)).unwrap_or_default();
    Action::requeue(pause.min(LONGEST))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
