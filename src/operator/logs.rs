//! The logs of failed attempts, on their way from the agent to the user's namespace. Bounded in number and size, and never looked into: they come out of pods in
//! which users are root.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use nestling_core::plan::names::Identity;
use nestling_core::plan::objects::attempt_of;
use nestling_core::plan::observed::Logs;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::key::{Key, Triggers};
use super::metrics::Metrics;
use super::reports::Reports;

/// Logs that are fetched or held at one time; 8 MiB of them at most. Others wait, and may go without.
const AT_ONCE: usize = 16;

/// The logs that are awaited or held.
pub struct LogStore {
    entries: Mutex<HashMap<Key, Entry>>,
    places: Arc<Semaphore>,
    reports: Arc<Reports>,
    triggers: Triggers,
    metrics: Arc<Metrics>,
}

/// Those of one failed attempt.
struct Entry {
    pod_uid: String,
    attempt: i64,
    state: State,
    /// Ends the request when dropped.
    _task: AbortOnDropHandle<()>,
}

enum State {
    Asked,
    Held(Bytes, #[expect(dead_code, reason = "it gives the place back when dropped")] OwnedSemaphorePermit),
    Failed,
}

impl LogStore {
    /// Holds nothing yet.
    pub fn new(reports: Arc<Reports>, triggers: Triggers, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), places: Arc::new(Semaphore::new(AT_ONCE)), reports, triggers, metrics })
    }

    /// What is known of the logs of this pod.
    pub fn of(&self, key: &Key, pod: &Pod) -> Logs {
        match self.entries().get(key).filter(|entry| Some(&entry.pod_uid) == pod.metadata.uid.as_ref()).map(|entry| &entry.state) {
            None | Some(State::Asked) => Logs::Awaited,
            Some(State::Held(..)) => Logs::Held,
            Some(State::Failed) => Logs::Unavailable,
        }
    }

    /// The archive of this attempt.
    pub fn archive(&self, key: &Key, attempt: i64) -> Option<Bytes> {
        match &self.entries().get(key).filter(|entry| entry.attempt == attempt)?.state {
            State::Held(archive, _) => Some(archive.clone()),
            State::Asked | State::Failed => None,
        }
    }

    /// Asks for the logs of this pod, once, or forgets what is there if they are not wanted.
    pub fn tend(self: &Arc<Self>, key: &Key, identity: &Identity, pod: Option<&Pod>, wanted: bool) {
        let mut entries = self.entries();
        let Some((pod, pod_uid)) = pod.filter(|_| wanted).and_then(|pod| Some((pod, pod.metadata.uid.clone()?))) else {
            entries.remove(key);
            return;
        };
        if entries.get(key).is_some_and(|entry| entry.pod_uid == pod_uid) {
            return;
        }
        let task = tokio::spawn(Arc::clone(self).fetch(key.clone(), identity.clone(), pod.clone(), pod_uid.clone()));
        entries.insert(key.clone(), Entry { pod_uid, attempt: attempt_of(pod), state: State::Asked, _task: AbortOnDropHandle::new(task) });
    }

    async fn fetch(self: Arc<Self>, key: Key, identity: Identity, pod: Pod, pod_uid: String) {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
        let state = match self.reports.logs(&identity, &pod).await {
            Ok(archive) => {
                self.metrics.agent_request("logs");
                State::Held(archive, place)
            }
            Err(error) => {
                info!(%key, %error, "no logs from the agent");
                self.metrics.agent_request(error.reason());
                State::Failed
            }
        };
        {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(&key).filter(|entry| entry.pod_uid == pod_uid) else { return };
            entry.state = state;
        }
        self.triggers.fire(key);
    }

    /// The object is gone.
    pub fn forget(&self, key: &Key) {
        self.entries().remove(key);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::time::Duration;

    use futures::StreamExt;
    use futures::channel::mpsc::UnboundedReceiver;
    use jiff::Timestamp;
    use nestling_core::plan::wire::BUNDLE_LIMIT;
    use tokio::time::timeout;

    use crate::operator::agent_client;
    use crate::operator::agent_client::tests::{client, fake_agent, identity, key};
    use crate::operator::pki::Authority;

    const SOON: Duration = Duration::from_secs(10);

    fn pod(uid: &str) -> Pod {
        agent_client::tests::pod(uid, 3)
    }

    /// A store whose agents answer so.
    pub async fn store(body: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> (Arc<LogStore>, UnboundedReceiver<Key>) {
        let agents = Authority::new("agents", Timestamp::now()).unwrap();
        let address = fake_agent(&agents, body).await;
        let (triggers, keys) = Triggers::new();
        let metrics = Arc::new(Metrics::new());
        let reports = Reports::new(client(&agents), Some(address), triggers.clone(), Arc::clone(&metrics));
        (LogStore::new(reports, triggers, metrics), keys)
    }

    #[tokio::test]
    async fn logs_are_fetched_once_and_forgotten_when_nobody_wants_them() {
        let (store, mut keys) = store(|uri| if uri == "/v1/bundle" { "archive".into() } else { "no".into() }).await;
        store.tend(&key(), &identity(), Some(&pod("a")), true);
        assert_eq!(store.of(&key(), &pod("a")), Logs::Awaited);
        assert_eq!(timeout(SOON, keys.next()).await.unwrap(), Some(key()));
        store.tend(&key(), &identity(), Some(&pod("a")), true);
        assert_eq!(store.of(&key(), &pod("a")), Logs::Held);
        assert_eq!(store.of(&key(), &pod("b")), Logs::Awaited, "another pod's");
        assert_eq!(store.archive(&key(), 3).as_deref(), Some(&b"archive"[..]));
        assert_eq!(store.archive(&key(), 4), None, "another attempt's");
        assert_eq!(store.places.available_permits(), AT_ONCE - 1);
        store.tend(&key(), &identity(), Some(&pod("a")), false);
        assert_eq!((store.archive(&key(), 3), store.places.available_permits()), (None, AT_ONCE));
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_taken() {
        let (store, mut keys) = store(|_| "x".repeat(BUNDLE_LIMIT + 1)).await;
        store.tend(&key(), &identity(), Some(&pod("a")), true);
        timeout(SOON, keys.next()).await.unwrap();
        assert_eq!(store.of(&key(), &pod("a")), Logs::Unavailable);
        assert_eq!(store.places.available_permits(), AT_ONCE);
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_given_up() {
        let (store, mut keys) = store(|_| String::new()).await;
        // Its certificate is another's.
        let other = Identity { uid: "other".into(), ..identity() };
        store.tend(&key(), &other, Some(&pod("a")), true);
        timeout(SOON, keys.next()).await.unwrap();
        assert_eq!(store.of(&key(), &pod("a")), Logs::Unavailable);
    }
}
