//! The promise of the core, tried on a model of the host cluster: for any history of stale reads, failed writes, killed operators, lost pods and
//! edited specs and restores from a backup, repeated passes converge; no cluster ever has two pods at work; the finalizer goes last.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use proptest::prelude::*;

use super::contents::{self, ContentsPlan, Source};
use super::decide::{Child, ChildKind, Step, decide, is_moving, rests};
use super::objects::{attempt_of, resumes};
use super::observed::{Children, Logs, Observed, Turn, needs_live, only_attempt};
use super::problem::Problem;
use super::recreation;
use super::settle::{Outcome, settle};
use super::wire::{AgentReport, AgentSettings, ContentsReport, GateReport, ManifestReport, ManifestState, NodeReport, Orders, OrdersReport, Stage};
use super::{names::Identity, testing};
use crate::api::conditions::{self, READY, STALLED, SUSPENDED};
use crate::api::reasons::Reason;
use crate::api::{
    ArgoCd, FINALIZER, KindCluster, KindClusterStatus, Kubeconfig, KubeconfigUser, LocalReference, Manifest, PodLossPolicy, PowerState, PublishedPort,
    Readiness, Registry, StorageType, annotations,
};

/// How the next pods turn out.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Ready,
    KindFails,
    Crashes,
    Hangs,
}

/// What happens between two moments.
#[derive(Clone, Debug)]
enum Happening {
    /// The operator takes a pass on fresh caches.
    Pass,
    /// The operator takes a pass on caches that are this many changes behind.
    StalePass(usize),
    /// A write fails, so many steps into the pass.
    FailedPass(usize),
    /// The operator is killed, so many steps into the pass, before the status is written.
    KilledPass(usize),
    /// Time goes by, pods get on.
    Seconds(i64),
    /// Somebody deletes the pod.
    LosePod,
    /// The host's kubelet ends the pod.
    EvictPod,
    /// The pod ends by itself.
    CrashPod,
    /// The user edits the spec.
    Edit(bool),
    /// The user names a registry with credentials, or none.
    Registries(bool),
    /// The user lets the cluster live for so many seconds, or for ever.
    Ttl(Option<u64>),
    /// The user freezes or stops the cluster, or lets it run.
    Power(PowerState),
    /// The user names the API server otherwise, or not.
    Names(bool),
    /// The user wants an image in every node, or none.
    Preload(bool),
    /// The user publishes a port, or none.
    Ports(bool),
    /// The user lists a manifest, another one or none.
    Manifests(u8),
    /// The user lets somebody else and Argo CD in, or nobody.
    Users(bool),
    /// The user gives the administrator's Secret a name, or none.
    SecretName(bool),
    /// The user asks for a new cluster in the place of this one.
    Recreate(u8),
    /// The user pauses or resumes.
    Pause(bool),
    /// The user deletes the object.
    Delete,
    /// The object is lost with all of its children and comes back from a backup, with or without its status and our finalizer.
    Restore(bool, bool),
    /// The next pods turn out like this.
    Luck(Luck),
    /// This becomes of the logs of pods that fail from now on.
    Logs(Logs),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => Just(Happening::Pass),
        4 => (1..4_usize).prop_map(Happening::StalePass),
        3 => (0..4_usize).prop_map(Happening::FailedPass),
        3 => (0..5_usize).prop_map(Happening::KilledPass),
        6 => (1..400_i64).prop_map(Happening::Seconds),
        1 => Just(Happening::LosePod),
        1 => Just(Happening::CrashPod),
        1 => Just(Happening::EvictPod),
        1 => any::<bool>().prop_map(Happening::Edit),
        1 => any::<bool>().prop_map(Happening::Registries),
        1 => prop::option::of(1..6000_u64).prop_map(Happening::Ttl),
        2 => prop_oneof![Just(PowerState::Running), Just(PowerState::Frozen), Just(PowerState::Stopped)].prop_map(Happening::Power),
        1 => any::<bool>().prop_map(Happening::Names),
        1 => any::<bool>().prop_map(Happening::Preload),
        1 => any::<bool>().prop_map(Happening::Ports),
        1 => (0..3_u8).prop_map(Happening::Manifests),
        2 => any::<bool>().prop_map(Happening::Users),
        1 => any::<bool>().prop_map(Happening::SecretName),
        1 => (0..3_u8).prop_map(Happening::Recreate),
        1 => any::<bool>().prop_map(Happening::Pause),
        1 => Just(Happening::Delete),
        1 => prop_oneof![Just(Logs::Awaited), Just(Logs::Held), Just(Logs::Unavailable)].prop_map(Happening::Logs),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(status, finalizer)| Happening::Restore(status, finalizer)),
        2 => prop_oneof![Just(Luck::Ready), Just(Luck::KindFails), Just(Luck::Crashes), Just(Luck::Hangs)].prop_map(Happening::Luck),
    ]
}

/// The images that a pod was made with.
fn preloaded(pod: &Pod) -> Vec<String> {
    let settings = pod.metadata.annotations.as_ref().and_then(|all| all.get(annotations::SETTINGS));
    settings.and_then(|text| serde_json::from_str::<AgentSettings>(text).ok()).map(|settings| settings.preload).unwrap_or_default()
}

/// The host cluster. `None` as cluster: the object is gone.
struct World {
    now: Timestamp,
    cluster: Option<KindCluster>,
    version: u64,
    children: Children,
    /// Earlier states, the newest last, for stale reads.
    history: Vec<(KindCluster, u64, Children)>,
    luck: Luck,
    logs: Logs,
    next_uid: u64,
    identity: Identity,
    /// The pod whose agent got orders, these, and when.
    orders: Option<(String, Orders, Timestamp)>,
    /// The pod whose agent got contents, these, and when.
    contents: Option<(String, ContentsReport, Timestamp)>,
    /// The further Secrets with credentials that are there.
    published: BTreeSet<String>,
    /// The administrator's.
    admins: BTreeSet<String>,
    /// Nested UID of the whole cluster on the volume.
    on_volume: Option<String>,
    /// The object was restored: what it says of a cluster on a volume is another object's.
    restored: bool,
}

/// What survives a pod.
type Survival = (StorageType, PodLossPolicy);

impl World {
    fn new((storage, policy): Survival) -> Self {
        let mut cluster =
            testing::cluster(&format!("{{storage: {{type: {storage:?}}}, lifecycle: {{creationTimeout: 2m, backoffLimit: 1, podLossPolicy: {policy:?}}}}}"));
        let identity = testing::identity(&cluster);
        let now = Timestamp::from_second(1_000_000).unwrap();
        cluster.metadata.creation_timestamp = Some(Time(now));
        Self {
            now,
            cluster: Some(cluster),
            version: 0,
            children: Children::default(),
            history: vec![],
            luck: Luck::Ready,
            logs: Logs::Awaited,
            next_uid: 0,
            identity,
            orders: None,
            contents: None,
            published: BTreeSet::new(),
            admins: BTreeSet::new(),
            on_volume: None,
            restored: false,
        }
    }

    fn changed(&mut self) {
        if let Some(cluster) = &self.cluster {
            // `resourceVersion` of the object alone: a child's change does not move it.
            self.version += u64::from(self.history.last().is_none_or(|(before, ..)| before != cluster));
            self.history.push((cluster.clone(), self.version, self.children.clone()));
        }
    }

    fn meta(&mut self, wanted: &ObjectMeta) -> ObjectMeta {
        self.next_uid += 1;
        ObjectMeta { uid: Some(format!("uid-{}", self.next_uid)), creation_timestamp: Some(Time(self.now)), ..wanted.clone() }
    }

    /// What the agent in the newest pod says.
    fn report(&self, pod: Option<&Pod>) -> Option<AgentReport> {
        // One that is gone, and that only a stale cache still shows, says nothing any more.
        let pod = pod.filter(|pod| self.children.pods.iter().any(|have| have.metadata.uid == pod.metadata.uid))?;
        let age = self.now.duration_since(pod.metadata.creation_timestamp.as_ref()?.0).as_secs();
        let luck = pod.metadata.annotations.as_ref()?.get("luck")?.as_str();
        let mut report = AgentReport { attempt: attempt_of(pod), stage: Stage::PreparingNodes, ..AgentReport::default() };
        if age >= 30 && luck == "Ready" {
            report.stage = Stage::Serving;
            report.control_plane_ready = true;
            report.nested_uid = if resumes(pod) { self.on_volume.clone() } else { pod.metadata.uid.clone() };
            report.nodes = vec![NodeReport { name: "n".into(), control_plane: true, ready: true }];
        }
        if age >= 30 && luck == "Ready" && resumes(pod) && self.on_volume.is_none() {
            let message = "the volume holds no whole cluster".to_owned();
            report = AgentReport { stage: Stage::Failed, attempt: report.attempt, ..AgentReport::default() };
            report.failure = Some(super::wire::AgentFailure { reason: Reason::ResumeFailed, message, log_tail: String::new() });
        }
        if age >= 30 && luck == "KindFails" {
            report.stage = Stage::Failed;
            report.failure = Some(super::wire::AgentFailure { reason: Reason::KubeadmInitFailed, message: "no".into(), log_tail: "tail".into() });
        }
        let mut said = OrdersReport::default();
        if let Some((ordered, orders, since)) = &self.orders
            && pod.metadata.uid.as_ref() == Some(ordered)
        {
            said.received = orders.clone();
            // It takes its time.
            if self.now.duration_since(*since).as_secs() >= 5 {
                said.carried_out = orders.clone();
            }
            if orders.power != PowerState::Running || said.received.power != said.carried_out.power {
                assert!(report.stage == Stage::Serving, "orders to an agent that serves no cluster");
                report.control_plane_ready = said.carried_out.power == PowerState::Running && said.received.power == said.carried_out.power;
            }
        }
        if report.stage == Stage::Serving {
            said.carried_out.preload.get_or_insert_with(|| preloaded(pod));
        }
        let mut contents = ContentsReport::default();
        if let Some((given, all, since)) = &self.contents
            && pod.metadata.uid.as_ref() == Some(given)
        {
            contents.clone_from(all);
            // It takes its time.
            if self.now.duration_since(*since).as_secs() >= 5 {
                contents.manifests.iter_mut().for_each(|manifest| manifest.state = ManifestState::Applied);
                contents.gates.iter_mut().for_each(|gate| gate.met = true);
            }
        }
        report.contents = Some(contents);
        report.cgroup_v1 = Some(false);
        report.open_ports = Some(if report.control_plane_ready { said.carried_out.ports.clone() } else { [].into() });
        report.orders = Some(said);
        (age >= 5).then_some(report)
    }

    fn pass(&mut self, behind: usize, fail_at: Option<usize>, kill_at: Option<usize>) {
        let earlier = (behind > 0).then(|| self.history.len().checked_sub(1 + behind)).flatten();
        let (mut cluster, mut version, mut children) = match (earlier, &self.cluster) {
            (Some(index), _) => self.history[index].clone(),
            (None, Some(cluster)) => (cluster.clone(), self.version, self.children.clone()),
            (None, None) => return,
        };
        if needs_live(&cluster, &children) {
            let Some(current) = &self.cluster else { return };
            (cluster, version) = (current.clone(), self.version);
            children = Children { live: true, ..self.children.clone() };
            if let Some(attempt) = only_attempt(&cluster) {
                children.pods.retain(|pod| attempt_of(pod) == attempt);
            }
        }
        let report = self.report(children.current_pod());
        let seen = Observed {
            cluster,
            identity: self.identity.clone(),
            settings: Arc::new(testing::settings()),
            children,
            report,
            logs: self.logs,
            host_node: None,
            turn: Turn::Granted,
        };
        let plan = decide(self.now, &seen);
        assert!(plan.steps.is_empty() || !self.would_rest_unheard(&seen), "an operator that has not heard the agent would not ask it: {:#?}", plan.steps);
        let mut outcome = Outcome::default();
        for (index, step) in plan.steps.into_iter().enumerate() {
            if kill_at == Some(index) {
                return;
            }
            let fails = fail_at == Some(index) || matches!(step, Step::Expire) && version != self.version;
            let result = if fails { Err(Problem::new(Reason::HostUnavailable, "gone fishing")) } else { self.act(&step) };
            match result {
                Ok(()) => outcome.done.push(step),
                Err(problem) => {
                    outcome.failed = Some((step, problem));
                    break;
                }
            }
        }
        if kill_at.is_some() {
            return;
        }
        let status = settle(self.now, &seen, &outcome);
        let policy = seen.cluster.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pod_loss_policy);
        let on_purpose = seen.status().cluster_attempt.is_some_and(|attempt| recreation::is_over(&status, attempt));
        if let (Some(PodLossPolicy::Resume), Some(before), false) = (policy, seen.status().cluster_uid, on_purpose) {
            assert_eq!(status.cluster_uid, Some(before), "another cluster in the place of one that was to survive");
        }
        // The write carries the version that was read.
        if version == self.version
            && let Some(cluster) = &mut self.cluster
            && cluster.status.as_ref() != Some(&status)
        {
            cluster.status = Some(status);
            self.changed();
        }
    }

    /// Whether an operator that starts now would leave the cluster at rest.
    fn would_rest_unheard(&self, seen: &Observed) -> bool {
        let unheard = Observed { report: None, ..seen.clone() };
        let after = settle(self.now, &unheard, &Outcome::default());
        rests(self.now, &unheard, &decide(self.now, &unheard)) && unheard.cluster.status == Some(after)
    }

    fn expire(&mut self) -> Option<()> {
        let cluster = self.cluster.as_ref()?;
        let ttl = cluster.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.ttl).expect("ended without an expiry");
        let age = self.now.duration_since(cluster.metadata.creation_timestamp.as_ref().unwrap().0);
        assert!(age >= std::time::Duration::from(ttl).try_into().unwrap(), "ended before its time");
        assert!(!cluster.spec.paused, "ended while paused");
        self.happen(&Happening::Delete);
        Some(())
    }

    /// `None` where the name is not on record: from a state of the object before one's own last write, as below.
    fn publish(&mut self, secret: &str) -> Option<()> {
        let status = self.status();
        let mut known = status.kubeconfig_secret_ref.iter().chain(&status.further_secret_refs);
        (status.kubeconfig_secret_ref.is_none() || known.any(|have| have.name == secret)).then(|| _ = self.admins.insert(secret.to_owned()))
    }

    /// `None` from a state of the object before one's own last write, which an operator does not go back to (`own_writes.rs`).
    fn publish_further(&mut self, secret: &str) -> Option<()> {
        self.status().further_secret_refs.iter().find(|have| have.name == secret)?;
        self.published.insert(secret.to_owned());
        Some(())
    }

    /// `None` from a state of the object before one's own last write, as above.
    fn retract(&mut self, secret: &str) -> Option<()> {
        let ending = self.cluster.as_ref().is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some());
        let status = self.status();
        let mut vouched = status.further_secret_refs.iter().chain(&status.kubeconfig_secret_ref).filter(|have| have.digest.is_some());
        (ending || !vouched.any(|have| have.name == secret)).then(|| drop((self.published.take(secret), self.admins.take(secret))))
    }

    fn act(&mut self, step: &Step) -> Result<(), Problem> {
        let conflict = || Problem::new(Reason::HostUnavailable, "conflict");
        match step {
            Step::AddFinalizer => {
                let cluster = self.cluster.as_mut().ok_or_else(conflict)?;
                if cluster.metadata.deletion_timestamp.is_some() {
                    return Err(conflict());
                }
                cluster.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            }
            Step::RemoveFinalizer => {
                assert!(self.children.is_empty(), "the finalizer goes last: {:?}", self.children);
                assert!(self.published.is_empty(), "credentials of a cluster that is gone: {:?}", self.published);
                assert!(self.cluster.as_ref().is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some()));
                self.cluster = None;
            }
            Step::CreateKeys => {
                if self.secret(&self.identity.keys()).is_none() {
                    let meta = self.meta(&ObjectMeta { name: Some(self.identity.keys()), ..ObjectMeta::default() });
                    self.children.keys.push(meta);
                }
            }
            Step::RenewChannel { uid } => assert!(self.children.keys.iter().any(|keys| keys.uid.as_ref() == Some(uid))),
            Step::ApplyRegistries(plan) => {
                let meta = self.meta(&plan.metadata);
                self.children.keys.retain(|have| have.name != meta.name);
                self.children.keys.push(meta);
            }
            Step::ApplyNetworkPolicy(policy) => {
                let mut policy = (**policy).clone();
                policy.metadata = self.meta(&policy.metadata);
                self.children.policies = vec![policy];
            }
            Step::ApplyService(service) => {
                let mut service = (**service).clone();
                service.metadata = self.meta(&service.metadata);
                self.children.services = vec![service];
            }
            Step::ApplyVolumeClaim(claim) => {
                let mut claim = (**claim).clone();
                claim.metadata = self.meta(&claim.metadata);
                self.children.claims = vec![claim];
            }
            Step::CreatePod(pod) => {
                if self.children.pods.iter().any(|have| have.metadata.name == pod.metadata.name) {
                    return Err(conflict());
                }
                assert!(self.children.current_pod().is_none(), "two pods at work");
                assert_eq!(mounts_registries(pod), self.secret(&self.identity.registries()).is_some(), "credentials where they are needed, and only there");
                assert_eq!(mounts_claim(pod), !self.children.claims.is_empty(), "a volume where it is needed, and only there");
                self.begin(pod);
                let mut pod = (**pod).clone();
                pod.metadata = self.meta(&pod.metadata);
                pod.metadata.annotations.get_or_insert_default().insert("luck".into(), format!("{:?}", self.luck));
                pod.status = Some(running());
                self.children.pods.push(pod);
            }
            Step::PublishKubeconfig(plan) => self.publish(&plan.secret).ok_or_else(conflict)?,
            Step::DropLogs { .. } => {}
            Step::PublishFurther(plan) => self.publish_further(&plan.secret).ok_or_else(conflict)?,
            Step::RetractKubeconfig { secret } => self.retract(secret).ok_or_else(conflict)?,
            Step::Order(orders) => {
                let pod = self.children.current_pod().and_then(|pod| pod.metadata.uid.clone()).ok_or_else(conflict)?;
                self.orders = Some((pod, orders.clone(), self.now));
            }
            Step::SendContents(plan) => self.fill(plan)?,
            Step::KeepLogs(plan) => {
                let failed = self.status().last_failure.expect("logs of no failure");
                assert_eq!(failed.attempt, plan.attempt, "logs of another attempt");
            }
            Step::Expire => self.expire().ok_or_else(conflict)?,
            Step::Delete(child) => self.delete(child),
        }
        self.changed();
        Ok(())
    }

    fn delete(&mut self, child: &Child) {
        let is = |meta: &ObjectMeta| meta.uid.as_deref() == Some(child.uid.as_str());
        match child.kind {
            // A pod takes its time.
            ChildKind::Pod => {
                let now = self.now;
                for pod in self.children.pods.iter_mut().filter(|pod| is(&pod.metadata)) {
                    pod.metadata.deletion_timestamp.get_or_insert(Time(now));
                }
            }
            ChildKind::Service => self.children.services.retain(|have| !is(&have.metadata)),
            ChildKind::NetworkPolicy => self.children.policies.retain(|have| !is(&have.metadata)),
            ChildKind::Keys => self.children.keys.retain(|have| !is(have)),
            ChildKind::VolumeClaim => {
                let overdue = self
                    .cluster
                    .as_ref()
                    .and_then(|cluster| cluster.metadata.deletion_timestamp.as_ref())
                    .is_some_and(|since| self.now.duration_since(since.0) >= SignedDuration::try_from(testing::settings().cleanup.timeout).unwrap());
                assert!(self.children.pods.is_empty() || overdue, "the volume goes after the pods that work on it");
                // Kubernetes keeps it for as long as a pod has it.
                for claim in self.children.claims.iter_mut().filter(|claim| is(&claim.metadata)) {
                    claim.metadata.deletion_timestamp.get_or_insert(Time(self.now));
                }
                self.release_claims();
            }
        }
    }

    /// The agent gets what is to be in its cluster.
    fn fill(&mut self, plan: &ContentsPlan) -> Result<(), Problem> {
        let conflict = || Problem::new(Reason::HostUnavailable, "conflict");
        let pod = self.children.current_pod().and_then(|pod| pod.metadata.uid.clone()).ok_or_else(conflict)?;
        let contents = plan.contents(vec![])?;
        // What is applied is not applied twice.
        let known = self.report(self.children.current_pod()).ok_or_else(conflict)?.contents.unwrap_or_default();
        let state = |name: &String| known.manifests.iter().find(|manifest| manifest.name == *name).map(|manifest| manifest.state).unwrap_or_default();
        let manifest = |source: &Source| ManifestReport { name: source.name.clone(), state: state(&source.name), ..ManifestReport::default() };
        let gates = contents::gates(&contents.readiness).iter().map(|gate| GateReport { gate: gate.to_string(), ..GateReport::default() }).collect();
        let said = ContentsReport { received: contents.edition, manifests: plan.sources.iter().map(manifest).collect(), gates };
        self.contents = Some((pod, said, self.now));
        Ok(())
    }

    /// A pod that is to bring a cluster back finds one; another one begins with an empty volume, on which nothing is that was to survive.
    fn begin(&mut self, pod: &Pod) {
        if resumes(pod) {
            assert!(self.on_volume.is_some() || self.restored, "nothing to come back to");
            return;
        }
        let policy = self.cluster.as_ref().and_then(|cluster| cluster.spec.lifecycle.as_ref()?.pod_loss_policy);
        let status = self.status();
        let given_up = status.cluster_uid.is_none() || status.cluster_attempt.is_none_or(|attempt| recreation::is_over(&status, attempt));
        assert!(policy != Some(PodLossPolicy::Resume) || given_up, "a cluster that was to survive is lost");
        self.on_volume = None;
    }

    fn release_claims(&mut self) {
        if self.children.pods.is_empty() {
            self.children.claims.retain(|claim| claim.metadata.deletion_timestamp.is_none());
        }
    }

    fn seconds(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let now = self.now;
        let before = self.children.pods.clone();
        self.children.pods.retain(|pod| pod.metadata.deletion_timestamp.as_ref().is_none_or(|time| now.duration_since(time.0).as_secs() < 6));
        for pod in &mut self.children.pods {
            let crashes = pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.get("luck").is_some_and(|luck| luck == "Crashes"));
            if crashes && now.duration_since(pod.metadata.creation_timestamp.as_ref().unwrap().0).as_secs() >= 20 {
                crash(pod);
            }
        }
        let whole = |pod: &&Pod| self.report(Some(pod)).is_some_and(|report| report.stage == Stage::Serving && !resumes(pod) && mounts_claim(pod));
        if let Some(pod) = self.children.pods.iter().find(whole) {
            self.on_volume = pod.metadata.uid.clone();
        }
        self.release_claims();
        if self.children.pods != before {
            self.changed();
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Pass => self.pass(0, None, None),
            Happening::StalePass(behind) => self.pass(behind, None, None),
            Happening::FailedPass(at) => self.pass(0, Some(at), None),
            Happening::KilledPass(at) => self.pass(0, None, Some(at)),
            Happening::Seconds(seconds) => self.seconds(seconds),
            Happening::LosePod => {
                self.children.pods.clear();
                self.release_claims();
                self.changed();
            }
            Happening::EvictPod => {
                for pod in &mut self.children.pods {
                    crash(pod);
                    pod.status.get_or_insert_default().reason = Some("Evicted".into());
                }
                self.changed();
            }
            Happening::CrashPod => {
                self.children.pods.iter_mut().for_each(crash);
                self.changed();
            }
            Happening::Luck(luck) => self.luck = luck,
            Happening::Logs(logs) => self.logs = logs,
            Happening::Edit(possible) => self.edit(|cluster| cluster.spec.image = Some(if possible { "a:v1.34.4" } else { "b:v1.33.0" }.to_owned())),
            Happening::Registries(some) => self.edit(|cluster| cluster.spec.registries = if some { vec![registry()] } else { vec![] }),
            Happening::Ttl(seconds) => self.edit(|cluster| {
                cluster.spec.lifecycle.get_or_insert_default().ttl = seconds.map(|seconds| std::time::Duration::from_secs(seconds).into());
            }),
            Happening::Power(power) => self.edit(|cluster| cluster.spec.power_state = Some(power)),
            Happening::Names(some) => self.edit(|cluster| {
                cluster.spec.access.get_or_insert_default().cert_sans = if some { vec!["a.example".to_owned()] } else { vec![] };
            }),
            Happening::Preload(some) => self.edit(|cluster| {
                cluster.spec.preload.get_or_insert_default().images = if some { vec!["a.example/a:1".to_owned()] } else { vec![] };
            }),
            Happening::Ports(some) => self.edit(|cluster| {
                let port = PublishedPort { name: "web".to_owned(), port: 80, target_node_port: 30080, ..PublishedPort::default() };
                cluster.spec.ports = if some { vec![port] } else { vec![] };
            }),
            Happening::Manifests(which) => self.edit(|cluster| {
                let manifest =
                    |name: &str| Manifest { name: name.to_owned(), config_map_ref: Some(LocalReference { name: "map".into() }), ..Manifest::default() };
                cluster.spec.manifests = ["a", "b"].map(manifest).into_iter().take(which.into()).collect();
                cluster.spec.readiness = Some(Readiness { dns: which > 0, ..Readiness::default() });
            }),
            Happening::Users(some) => self.edit(|cluster| {
                let secret_name = cluster.spec.kubeconfig.as_ref().and_then(|kubeconfig| kubeconfig.secret_name.clone());
                cluster.spec.kubeconfig = Some(Kubeconfig { secret_name, ..if some { kubeconfig() } else { Kubeconfig::default() } });
            }),
            Happening::SecretName(some) => self.edit(|cluster| cluster.spec.kubeconfig.get_or_insert_default().secret_name = some.then(|| "other".to_owned())),
            Happening::Recreate(value) => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.metadata.annotations.get_or_insert_default().insert(annotations::RECREATE.to_owned(), value.to_string());
                }
                self.changed();
            }
            Happening::Pause(paused) => self.edit(|cluster| cluster.spec.paused = paused),
            Happening::Delete => {
                let now = self.now;
                if let Some(cluster) = &mut self.cluster {
                    if cluster.metadata.finalizers.iter().flatten().next().is_some() {
                        cluster.metadata.deletion_timestamp.get_or_insert(Time(now));
                    } else {
                        assert!(self.children.is_empty(), "something existed before the finalizer: {:?}", self.children);
                        self.cluster = None;
                    }
                }
                self.changed();
            }
            Happening::Restore(status, finalizer) => self.restore(status, finalizer),
        }
    }

    fn restore(&mut self, status: bool, finalizer: bool) {
        let Some(mut cluster) = self.cluster.take() else { return };
        let mut meta = self.meta(&cluster.metadata);
        meta.deletion_timestamp = None;
        meta.generation = Some(1);
        meta.finalizers = meta.finalizers.filter(|_| finalizer);
        cluster.metadata = meta;
        cluster.status = cluster.status.filter(|_| status);
        self.identity = testing::identity(&cluster);
        self.children = Children::default();
        // Their owner is gone.
        (self.published, self.admins) = Default::default();
        (self.on_volume, self.restored) = (None, true);
        // Of another object, which no cache mixes up with this one.
        self.history.clear();
        self.cluster = Some(cluster);
        self.changed();
    }

    fn edit(&mut self, change: impl Fn(&mut KindCluster)) {
        if let Some(cluster) = &mut self.cluster {
            let before = cluster.spec.clone();
            change(cluster);
            if cluster.spec != before {
                cluster.metadata.generation = cluster.metadata.generation.map(|generation| generation + 1);
            }
        }
        self.changed();
    }

    fn secret(&self, name: &str) -> Option<&ObjectMeta> {
        self.children.keys.iter().find(|have| have.name.as_deref() == Some(name))
    }

    fn status(&self) -> KindClusterStatus {
        self.cluster.as_ref().and_then(|cluster| cluster.status.clone()).unwrap_or_default()
    }

    /// Nothing disturbs any more; every pod succeeds, and no time is over.
    fn calm(&mut self) {
        self.happen(&Happening::Ttl(None));
        self.calm_to_its_end();
    }

    fn calm_to_its_end(&mut self) {
        self.luck = Luck::Ready;
        self.edit(|cluster| cluster.spec.paused = false);
        let end = self.now.checked_add(SignedDuration::from_mins(20)).unwrap();
        while self.now < end {
            let before = self.history.len();
            self.pass(0, None, None);
            let moves = self.history.len() != before;
            if moves {
                self.pass(0, None, None);
            }
            // Where nothing moves, only time helps.
            self.seconds(if moves { 10 } else { 120 });
        }
    }
}

/// What takes pods away, and passes that see it or not.
fn losses() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Pass),
        2 => (1..4_usize).prop_map(Happening::StalePass),
        2 => (0..4_usize).prop_map(Happening::FailedPass),
        2 => (0..5_usize).prop_map(Happening::KilledPass),
        6 => (1..100_i64).prop_map(Happening::Seconds),
        3 => Just(Happening::LosePod),
        2 => Just(Happening::EvictPod),
    ]
}

fn kubeconfig() -> Kubeconfig {
    let users = vec![KubeconfigUser { name: "ci".into(), cluster_role: Some("view".into()), ..KubeconfigUser::default() }];
    Kubeconfig { users, argo_cd: Some(ArgoCd::default()), ..Kubeconfig::default() }
}

fn registry() -> Registry {
    let credentials_secret_ref = Some(LocalReference { name: "login".into() });
    Registry { host: "r.example".into(), credentials_secret_ref, ..Registry::default() }
}

fn mounts_registries(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.name == "registries")
}

fn mounts_claim(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.persistent_volume_claim.is_some())
}

fn survival() -> impl Strategy<Value = Survival> {
    prop_oneof![
        Just((StorageType::Ephemeral, PodLossPolicy::Recreate)),
        Just((StorageType::Persistent, PodLossPolicy::Recreate)),
        Just((StorageType::Persistent, PodLossPolicy::Resume)),
    ]
}

/// An agent is there to be asked.
fn running() -> PodStatus {
    PodStatus {
        phase: Some("Running".into()),
        pod_ip: Some("10.244.0.9".into()),
        container_statuses: Some(vec![ContainerStatus {
            state: Some(ContainerState { running: Some(ContainerStateRunning::default()), ..Default::default() }),
            ..Default::default()
        }]),
        ..Default::default()
    }
}

fn crash(pod: &mut Pod) {
    pod.status = Some(PodStatus {
        phase: Some("Failed".into()),
        container_statuses: Some(vec![ContainerStatus {
            state: Some(ContainerState { terminated: Some(ContainerStateTerminated { exit_code: 1, ..Default::default() }), ..Default::default() }),
            ..Default::default()
        }]),
        ..Default::default()
    });
}

/// Random histories in one run of all properties together, at least; `PROPTEST_CASES` is the number for each of them, where it is larger.
const HISTORIES: u32 = 10_000;

const PROPERTIES: u32 = 5;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(HISTORIES.div_ceil(PROPERTIES)), ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn repeated_passes_converge(survival in survival(), happenings in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(survival);
        for happening in &happenings {
            world.happen(happening);
        }
        world.calm();
        match &world.cluster {
            None => prop_assert!(world.children.is_empty()),
            Some(cluster) => {
                let status = world.status();
                let ready = conditions::is_true(&status.conditions, READY);
                let stalled = conditions::is_true(&status.conditions, STALLED);
                let suspended = conditions::is_true(&status.conditions, SUSPENDED);
                prop_assert!(cluster.metadata.deletion_timestamp.is_none(), "deletion hangs: {status:?}");
                prop_assert!([ready, stalled, suspended].into_iter().filter(|holds| *holds).count() == 1, "neither ready nor suspended nor given up: {status:#?}");
                prop_assert_eq!(status.conditions.len(), conditions::ALL.len());
                let asked = cluster.spec.power_state.unwrap_or_default();
                if ready {
                    let spec = cluster.spec.kubeconfig.clone().unwrap_or_default();
                    let names = if spec.users.is_empty() { vec![] } else { vec!["crane-argocd", "crane-kubeconfig-ci"] };
                    prop_assert_eq!(world.published.iter().map(String::as_str).collect::<Vec<_>>(), names);
                    let name = spec.secret_name.unwrap_or_else(|| "crane-kubeconfig".to_owned());
                    prop_assert!(world.admins.contains(&name), "{name} of {:?}: {status:#?}", world.admins);
                    prop_assert_eq!(status.kubeconfig_secret_ref.as_ref().map(|have| &have.name), Some(&name));
                }
                if !stalled {
                    prop_assert_eq!(status.power_state, Some(asked));
                    prop_assert_eq!(suspended, asked != PowerState::Running);
                    prop_assert!(!is_moving(&status, true), "at rest nobody is asked: {status:#?}");
                }
                if asked == PowerState::Stopped && survival == (StorageType::Persistent, PodLossPolicy::Resume) && suspended {
                    prop_assert!(world.children.pods.is_empty(), "it needs no pod");
                    prop_assert!(world.on_volume.is_some() || world.restored, "and can come back");
                } else if ready || suspended {
                    prop_assert_eq!(world.children.pods.len(), 1);
                    let asked = cluster.metadata.annotations.as_ref().and_then(|annotations| annotations.get(annotations::RECREATE));
                    let given = world.contents.as_ref().filter(|(pod, ..)| world.children.pods[0].metadata.uid.as_ref() == Some(pod));
                    let names = |(_, report, _): &(String, ContentsReport, Timestamp)| report.manifests.iter().map(|manifest| manifest.name.clone()).collect::<Vec<_>>();
                    let listed: Vec<String> = cluster.spec.manifests.iter().map(|manifest| manifest.name.clone()).collect();
                    prop_assert!(!ready || given.map(names).unwrap_or_default() == listed, "a ready cluster holds what is listed");
                    prop_assert_eq!(status.recreation.as_ref().map(|recreation| &recreation.value), asked);
                    let over = status.recreation.as_ref().map_or(0, |recreation| recreation.attempt);
                    prop_assert!(attempt_of(&world.children.pods[0]) > over, "a cluster that was to be replaced is still there");
                    let copied = world.secret(&world.identity.registries()).is_some();
                    prop_assert_eq!(mounts_registries(&world.children.pods[0]), copied, "a pod has the Secret that it mounts, and no other is left");
                } else {
                    prop_assert!(world.children.pods.is_empty(), "given up, but still consuming");
                }
            }
        }
    }

    #[test]
    fn losses_never_take_a_cluster_that_is_to_survive(happenings in prop::collection::vec(losses(), 1..60)) {
        let mut world = World::new((StorageType::Persistent, PodLossPolicy::Resume));
        while world.status().ready_time.is_none() {
            world.pass(0, None, None);
            world.seconds(5);
        }
        let first = world.status();
        prop_assert!(conditions::is_true(&first.conditions, READY));
        let mut lost = false;
        for happening in &happenings {
            lost |= matches!(happening, Happening::LosePod | Happening::EvictPod);
            world.happen(happening);
        }
        world.calm();
        let last = world.status();
        prop_assert!(conditions::is_true(&last.conditions, READY), "{last:#?}");
        prop_assert_eq!(&last.cluster_uid, &first.cluster_uid);
        prop_assert!(!lost || last.attempt > first.attempt);
    }

    #[test]
    fn at_rest_nothing_is_written(survival in survival(), happenings in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(survival);
        for happening in &happenings {
            world.happen(happening);
        }
        world.calm();
        // The last seconds of calm may have brought the hour at which something is read anew.
        world.pass(0, None, None);
        let changes = world.history.len();
        for _ in 0..20 {
            world.pass(0, None, None);
        }
        prop_assert_eq!(world.history.len(), changes);
    }

    #[test]
    fn an_expiry_always_comes(survival in survival(), happenings in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(survival);
        for happening in &happenings {
            world.happen(happening);
        }
        world.happen(&Happening::Ttl(Some(600)));
        world.calm_to_its_end();
        prop_assert!(world.cluster.is_none(), "{:#?}", world.status());
        prop_assert!(world.children.is_empty());
    }

    #[test]
    fn deletion_always_ends(survival in survival(), happenings in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new(survival);
        for happening in &happenings {
            world.happen(happening);
        }
        world.happen(&Happening::Delete);
        world.calm();
        prop_assert!(world.cluster.is_none(), "{:#?}", world.status());
        prop_assert!(world.children.is_empty());
    }
}
