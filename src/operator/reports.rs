//! What the agents say: the newest report of each cluster's current pod, and one listener per cluster that moves. And what they are told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use nestling_core::plan::names::Identity;
use nestling_core::plan::objects::attempt_of;
use nestling_core::plan::observed::is_ready;
use nestling_core::plan::wire::{AGENT_PORT, AgentReport, Contents, Orders};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use super::agent_client::{AgentClient, AgentError, Target};
use super::key::{Key, Triggers};
use super::metrics::Metrics;
use super::packed::{Packed, Packer};

/// Least time between two answers, so that an agent that talks without end does not keep the operator busy.
const BREATH: Duration = Duration::from_millis(250);

/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A report older than this is asked for again when its cluster is looked at next: the hourly pass of a cluster at rest.
const OLD: Duration = Duration::from_mins(50);

/// So many agents of clusters at rest are asked at once.
const LOOKS: usize = 64;

/// The reports and the listeners.
pub struct Reports {
    entries: Mutex<HashMap<Key, Entry>>,
    client: AgentClient,
    packer: Packer,
    looks: Semaphore,
    /// Where all agents are asked, if not at their pods' addresses.
    address: Option<SocketAddr>,
    triggers: Triggers,
    metrics: Arc<Metrics>,
}

/// What is expected of an agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interest {
    /// The last word on its cluster is not spoken: it is listened to.
    Moves,
    /// What it says may matter: it is asked, unless it has been lately.
    Asks,
    /// Nothing is to be done, whatever it has said to an earlier operator: it is asked as rarely as those that this operator has heard.
    Rests,
}

/// What is known of one cluster's current pod.
struct Entry {
    pod_uid: String,
    since: Instant,
    heard: Option<Heard>,
    listener: Option<Listener>,
}

/// What an agent has said last.
struct Heard {
    revision: u64,
    control_plane_ready: bool,
    report: Packed,
    at: Instant,
}

/// A task that asks an agent.
struct Listener {
    target: Target,
    how: Asking,
    task: AbortOnDropHandle<()>,
}

/// How an agent is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asking {
    /// Until it has answered, when it is its turn: nothing is expected of it.
    Once,
    /// Again and again, and at once.
    On,
}

impl Reports {
    /// No reports yet.
    pub fn new(client: AgentClient, address: Option<SocketAddr>, triggers: Triggers, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), client, packer: Packer::default(), looks: Semaphore::new(LOOKS), address, triggers, metrics })
    }

    /// The channel to the agents.
    pub fn client(&self) -> &AgentClient {
        &self.client
    }

    /// The newest report of exactly this pod.
    pub fn newest(&self, key: &Key, pod: &Pod) -> Option<AgentReport> {
        let entries = self.entries();
        let entry = entries.get(key).filter(|entry| Some(&entry.pod_uid) == pod.metadata.uid.as_ref())?;
        entry.heard.as_ref()?.report.unpack().inspect_err(|error| error!(%error, "a report is lost")).ok()
    }

    /// Starts or stops listening, after a pass.
    pub fn tend(self: &Arc<Self>, key: &Key, identity: &Identity, pod: Option<&Pod>, interest: Interest) {
        let mut entries = self.entries();
        let Some((pod, uid)) = pod.and_then(|pod| Some((pod, pod.metadata.uid.clone()?))) else {
            entries.remove(key);
            return;
        };
        if entries.get(key).is_none_or(|entry| entry.pod_uid != uid) {
            entries.insert(key.clone(), Entry { pod_uid: uid, since: Instant::now(), heard: None, listener: None });
        }
        let Some(entry) = entries.get_mut(key) else { return };
        let heard = entry.heard.as_ref().map(|heard| heard.at).or_else(|| (interest == Interest::Rests).then_some(entry.since));
        let old = heard.is_none_or(|at| at.elapsed() >= OLD);
        let disagrees = entry.heard.as_ref().is_some_and(|heard| heard.control_plane_ready != is_ready(pod));
        let how = if interest == Interest::Moves || disagrees { Asking::On } else { Asking::Once };
        let target = self.target(identity, pod).filter(|_| how == Asking::On || old);
        let goes_on =
            |listener: &Listener| Some(&listener.target) == target.as_ref() && (listener.how == how || how == Asking::Once) && !listener.task.is_finished();
        if entry.listener.as_ref().is_some_and(goes_on) {
            return;
        }
        entry.listener = target.map(|target| {
            let task = tokio::spawn(Self::listen(Arc::clone(self), key.clone(), target.clone(), how));
            Listener { target, how, task: AbortOnDropHandle::new(task) }
        });
    }

    /// Gives the agent in a pod its orders, and takes the report that it answers with.
    ///
    /// # Errors
    /// If it cannot be reached, or does not take them.
    pub async fn order(&self, identity: &Identity, pod: &Pod, orders: &Orders) -> Result<(), AgentError> {
        let target = self.target(identity, pod).ok_or_else(|| AgentError::Unreachable("the pod has no address".into()))?;
        let answer = self.client.order(&target, orders).await;
        self.answered(identity, pod, &target, answer)
    }

    /// Gives the agent in a pod what is to be in its cluster, and takes the report that it answers with.
    ///
    /// # Errors
    /// If it cannot be reached, or does not take them.
    pub async fn fill(&self, identity: &Identity, pod: &Pod, contents: &Contents) -> Result<(), AgentError> {
        let target = self.target(identity, pod).ok_or_else(|| AgentError::Unreachable("the pod has no address".into()))?;
        let answer = self.client.fill(&target, contents).await;
        self.answered(identity, pod, &target, answer)
    }

    /// Keeps the report with which an agent has answered.
    fn answered(&self, identity: &Identity, pod: &Pod, target: &Target, answer: Result<AgentReport, AgentError>) -> Result<(), AgentError> {
        self.metrics.agent_request(answer.as_ref().map_or_else(AgentError::reason, |_| "ordered"));
        let report = answer?;
        let key = Key { namespace: identity.namespace.clone(), name: identity.name.clone() };
        let new = self.newest(&key, pod).is_none_or(|known| known.revision != report.revision);
        self.heard(&key, target, &report, new);
        Ok(())
    }

    /// The object is gone.
    pub fn forget(&self, key: &Key) {
        self.entries().remove(key);
    }

    /// The logs of the agent in this pod.
    pub async fn logs(&self, identity: &Identity, pod: &Pod) -> Result<Bytes, AgentError> {
        let target = self.target(identity, pod).ok_or_else(|| AgentError::Unreachable("the pod has no address".into()))?;
        self.client.logs(&target).await
    }

    /// Whom to ask; `None` while the pod has no address.
    fn target(&self, identity: &Identity, pod: &Pod) -> Option<Target> {
        Some(Target {
            pod_uid: pod.metadata.uid.clone()?,
            address: self.address_of(pod)?,
            server_name: identity.agent_server_name(),
            cluster_uid: identity.uid.clone(),
            attempt: attempt_of(pod),
        })
    }

    fn address_of(&self, pod: &Pod) -> Option<SocketAddr> {
        if self.address.is_some() {
            return self.address;
        }
        let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some(SocketAddr::new(address, u16::try_from(AGENT_PORT).ok()?))
    }

    /// Asks one agent, for ever or until it has answered.
    async fn listen(self: Arc<Self>, key: Key, target: Target, how: Asking) {
        let mut connection = None;
        let mut after = None;
        let mut pause = PAUSES.0;
        loop {
            // Never closed.
            let place = if how == Asking::Once { self.looks.acquire().await.ok() } else { None };
            let answer = self.client.ask(&mut connection, &target, after).await;
            drop(place);
            let breath = match answer {
                Ok(report) => {
                    let new = after.is_none_or(|after| report.revision > after);
                    self.metrics.agent_request(if new { "report" } else { "unchanged" });
                    after = Some(report.revision.max(after.unwrap_or(0)));
                    pause = PAUSES.0;
                    self.heard(&key, &target, &report, new);
                    if how == Asking::Once {
                        return;
                    }
                    BREATH
                }
                Err(error) => {
                    debug!(%key, %error, "no report from the agent");
                    self.metrics.agent_request(error.reason());
                    let now = pause;
                    pause = (pause * 2).min(PAUSES.1);
                    now
                }
            };
            sleep(breath).await;
        }
    }

    /// Keeps a report, if its pod is still the current one, and has the cluster looked at if it is new. Agents are listened to and told things at the
    /// same time, so a report may arrive behind a newer one: that one stays, since nobody would be told of it again.
    fn heard(&self, key: &Key, target: &Target, report: &AgentReport, new: bool) {
        let packed = match self.packer.pack(report) {
            Ok(packed) => packed,
            Err(error) => return error!(%error, "a report cannot be kept"),
        };
        let now = Heard { revision: report.revision, control_plane_ready: report.control_plane_ready, report: packed, at: Instant::now() };
        {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(key).filter(|entry| entry.pod_uid == target.pod_uid) else { return };
            match &mut entry.heard {
                Some(known) if now.revision < known.revision => return,
                Some(known) if !new => {
                    known.at = now.at;
                    return;
                }
                heard => *heard = Some(now),
            }
        }
        self.triggers.fire(key.clone());
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::StreamExt;
    use futures::channel::mpsc::UnboundedReceiver;
    use jiff::Timestamp;
    use serde_json::json;
    use tokio::time::timeout;

    use crate::operator::agent_client;
    use crate::operator::agent_client::tests::{client, fake_agent, identity, key, report};
    use crate::operator::pki::Authority;

    const SOON: Duration = Duration::from_secs(10);

    fn pod(uid: &str) -> Pod {
        agent_client::tests::pod(uid, 1)
    }

    async fn reports(body: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> (Arc<Reports>, UnboundedReceiver<Key>) {
        let agents = Authority::new("agents", Timestamp::now()).unwrap();
        let address = fake_agent(&agents, body).await;
        let (triggers, keys) = Triggers::new();
        (Reports::new(client(&agents), Some(address), triggers, Arc::new(Metrics::new())), keys)
    }

    #[tokio::test]
    async fn an_answer_that_was_overtaken_changes_nothing() {
        let (reports, mut keys) = reports(|_| report(7)).await;
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Asks);
        let target = reports.target(&identity(), &pod("a")).unwrap();
        let heard = |revision: u64| reports.heard(&key(), &target, &AgentReport { revision, ..AgentReport::default() }, true);
        heard(5);
        assert_eq!(timeout(SOON, keys.next()).await.unwrap(), Some(key()));
        heard(4);
        assert_eq!(reports.newest(&key(), &pod("a")).unwrap().revision, 5);
        heard(6);
        assert_eq!(reports.newest(&key(), &pod("a")).unwrap().revision, 6);
    }

    #[tokio::test]
    async fn news_are_kept_and_trigger_a_pass_until_nothing_moves() {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let (reports, mut keys) = reports(move |_| report(count.fetch_add(1, Ordering::Relaxed) + 1)).await;
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Moves);
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Moves);
        for _ in 0..2 {
            assert_eq!(timeout(SOON, keys.next()).await.unwrap(), Some(key()));
        }
        assert!(reports.newest(&key(), &pod("a")).unwrap().revision >= 2);
        assert_eq!(reports.newest(&key(), &pod("b")), None, "another pod's report is nobody's business");
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Asks);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = asked.load(Ordering::Relaxed);
        tokio::time::sleep(2 * BREATH).await;
        assert_eq!(asked.load(Ordering::Relaxed), before, "a cluster at rest is not asked");
        reports.tend(&key(), &identity(), None, Interest::Moves);
        assert_eq!(reports.newest(&key(), &pod("a")), None);
    }

    #[tokio::test]
    async fn who_rests_is_asked_when_it_matters_or_after_an_hour() {
        let (reports, mut keys) = reports(|_| report(1)).await;
        let tend = |interest| reports.tend(&key(), &identity(), Some(&pod("a")), interest);
        let is_asked = || reports.entries().get(&key()).unwrap().listener.is_some();
        tend(Interest::Rests);
        assert!(!is_asked());
        reports.entries().get_mut(&key()).unwrap().since -= OLD;
        tend(Interest::Rests);
        assert!(is_asked());
        reports.forget(&key());
        tend(Interest::Rests);
        tend(Interest::Asks);
        timeout(SOON, keys.next()).await.unwrap();
        assert_eq!(reports.newest(&key(), &pod("a")).unwrap().revision, 1);
    }

    #[tokio::test]
    async fn a_pod_that_disagrees_with_its_last_report_is_asked_again() {
        let (reports, mut keys) = reports(|_| report(1)).await;
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Moves);
        timeout(SOON, keys.next()).await.unwrap();
        let mut ready = pod("a");
        ready.status = Some(serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "True"}]})).unwrap());
        reports.tend(&key(), &identity(), Some(&ready), Interest::Asks);
        assert!(reports.entries().get(&key()).unwrap().listener.is_some());
        reports.tend(&key(), &identity(), Some(&pod("a")), Interest::Asks);
        assert!(reports.entries().get(&key()).unwrap().listener.is_none());
    }
}
