//! What is to be done next.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::certificates::{self, KUBECONFIG_LIFE};
use super::contents::{self, ContentsPlan};
use super::credentials::{self, Bearer};
use super::desired::{Desired, short_digest};
use super::evidence::{self, Fate, LogsPlan};
use super::expiry::{expiry, is_recorded};
use super::exposure;
use super::host_loss;
use super::names::Identity;
use super::objects::{self, attempt_of, digests_of};
use super::observed::{Observed, created_at, is_ready};
use super::orders;
use super::power;
use super::preload;
use super::registries::{self, RegistriesPlan};
use super::serving_names;
use super::settings::CleanupPolicy;
use super::settle;
use super::situation::{Situation, later, situation};
use super::users;
use super::wire::Orders;
use crate::api::KindClusterStatus;
use crate::api::conditions;
use crate::api::reasons::Reason;

/// A cluster at rest is looked at this often, in case an event was missed.
const REST: Duration = Duration::from_hours(1);

/// A cluster that is being deleted is looked at this often.
const DELETION_LOOK: Duration = Duration::from_secs(30);

/// What is to be done, in order. The first step that fails ends the pass.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Step {
    /// Our finalizer, before anything else exists.
    AddFinalizer,
    /// The Secret with the cluster's keys; made once, and the cluster's own never change.
    CreateKeys,
    /// New keys for the channel to the agent, in that Secret.
    RenewChannel {
        /// UID of the Secret: another one of the same name stays as it is.
        uid: String,
    },
    /// The Secret with what registries want to see, read from the user's namespace.
    ApplyRegistries(Box<RegistriesPlan>),
    /// The policy of the pod.
    ApplyNetworkPolicy(Box<NetworkPolicy>),
    /// The Service in front of the API server.
    ApplyService(Box<Service>),
    /// The claim on the volume that the pod lives on.
    ApplyVolumeClaim(Box<PersistentVolumeClaim>),
    /// The pod of the next attempt.
    CreatePod(Box<Pod>),
    /// The kubeconfig in the user's namespace.
    PublishKubeconfig(Box<KubeconfigPlan>),
    /// A further Secret with credentials in the user's namespace. What refuses it holds nothing else up.
    PublishFurther(Box<KubeconfigPlan>),
    /// Takes a published kubeconfig away, if it is ours.
    RetractKubeconfig {
        /// Name of the Secret.
        secret: String,
    },
    /// Tells the agent what is wanted of it.
    Order(Orders),
    /// Gives the agent what is to be in the cluster, partly read from the user's namespace.
    SendContents(Box<ContentsPlan>),
    /// The logs of a failed attempt, in the user's namespace.
    KeepLogs(Box<LogsPlan>),
    /// Takes them away, if they are ours.
    DropLogs {
        /// Name of the Secret.
        secret: String,
    },
    /// Deletes the object itself, if nobody has changed it since it was read.
    Expire,
    /// Deletes a child of exactly this UID.
    Delete(Child),
    /// Our finalizer, when a live list has shown that nothing is left.
    RemoveFinalizer,
}

impl Step {
    /// Every kind of step, for tests that stop the operator behind each.
    pub const NAMES: [&'static str; 18] = [
        "AddFinalizer",
        "CreateKeys",
        "RenewChannel",
        "ApplyRegistries",
        "ApplyNetworkPolicy",
        "ApplyService",
        "ApplyVolumeClaim",
        "CreatePod",
        "PublishKubeconfig",
        "PublishFurther",
        "RetractKubeconfig",
        "Order",
        "SendContents",
        "KeepLogs",
        "DropLogs",
        "Expire",
        "Delete",
        "RemoveFinalizer",
    ];

    /// Its name, for logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::CreateKeys => "CreateKeys",
            Self::RenewChannel { .. } => "RenewChannel",
            Self::ApplyRegistries(_) => "ApplyRegistries",
            Self::ApplyNetworkPolicy(_) => "ApplyNetworkPolicy",
            Self::ApplyService(_) => "ApplyService",
            Self::ApplyVolumeClaim(_) => "ApplyVolumeClaim",
            Self::CreatePod(_) => "CreatePod",
            Self::PublishKubeconfig(_) => "PublishKubeconfig",
            Self::PublishFurther(_) => "PublishFurther",
            Self::RetractKubeconfig { .. } => "RetractKubeconfig",
            Self::Order(_) => "Order",
            Self::SendContents(_) => "SendContents",
            Self::KeepLogs(_) => "KeepLogs",
            Self::DropLogs { .. } => "DropLogs",
            Self::Expire => "Expire",
            Self::Delete(_) => "Delete",
            Self::RemoveFinalizer => "RemoveFinalizer",
        }
    }
}

/// A child that is to be deleted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Child {
    /// What it is.
    pub kind: ChildKind,
    /// Its name.
    pub name: String,
    /// Its UID: another object of the same name stays.
    pub uid: String,
}

/// The kinds of children.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChildKind {
    /// A pod.
    Pod,
    /// A Service.
    Service,
    /// A network policy.
    NetworkPolicy,
    /// The Secret with the keys, or the one with what registries want to see.
    Keys,
    /// The claim on the cluster's volume.
    VolumeClaim,
}

/// What a published kubeconfig is made of, credentials apart.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeconfigPlan {
    /// Whose it is.
    pub identity: Identity,
    /// Name of the Secret.
    pub secret: String,
    /// Who proves itself with it.
    pub bearer: Bearer,
    /// URL for clients inside the host cluster.
    pub internal: String,
    /// URL for others.
    pub external: Option<String>,
    /// The name that the API server's certificate is checked against.
    pub tls_server_name: String,
    /// Life of the credentials.
    pub lifetime: Duration,
    /// Digest of all this and of the keys' identity.
    pub digest: String,
    /// This installation.
    pub install: String,
}

/// What is to be done. Pure and total.
pub fn decide(now: Timestamp, seen: &Observed) -> Plan {
    let Plan { steps, wake_at } = plan(now, seen);
    // What is said about the expiry changes in time, whatever else is waited for.
    let expiry = expiry(now, seen).and_then(|expiry| expiry.next_change(now));
    Plan { steps, wake_at: wake_at.into_iter().chain(expiry).min() }
}

fn plan(now: Timestamp, seen: &Observed) -> Plan {
    let rest = Some(later(now, REST + Duration::from_secs(spread(&seen.identity.uid))));
    match situation(now, seen) {
        Situation::Paused | Situation::Refused(_) | Situation::Stalled(_) | Situation::Asleep | Situation::Queued { .. } => {
            Plan { steps: vec![], wake_at: rest }
        }
        // Settle puts the failure on record, observe takes a live look; the next pass acts on it.
        Situation::Failed(_) | Situation::Recreate(_) | Situation::Unsure => Plan { steps: vec![], wake_at: Some(now) },
        // Whoever has made it hears first that it was seen: there is nothing yet that the finalizer is for.
        Situation::Unfinalized if seen.cluster.status.is_none() => Plan { steps: vec![], wake_at: Some(now) },
        Situation::Unfinalized => Plan { steps: vec![Step::AddFinalizer], wake_at: rest },
        // As with a failure, it is on record first.
        Situation::Expired if !is_recorded(seen) => Plan { steps: vec![], wake_at: Some(now) },
        Situation::Expired => Plan { steps: vec![Step::Expire], wake_at: rest },
        Situation::Deleting => Plan { steps: deletion(now, seen), wake_at: Some(next_look(now, seen)) },
        Situation::BackingOff { until, .. } => Plan { steps: vec![], wake_at: Some(until) },
        Situation::Discard(pod) => discard(rest, evidence::fate(now, seen, pod), pod),
        Situation::Replaced(pod) | Situation::Outdated(pod) => Plan { steps: delete(ChildKind::Pod, &pod.metadata).into_iter().collect(), wake_at: rest },
        // Somebody has deleted the claim: the next one has its name, so this one has to be gone.
        Situation::Create { .. } if seen.children.claims.iter().any(|claim| claim.metadata.deletion_timestamp.is_some()) => {
            Plan { steps: vec![], wake_at: Some(later(now, DELETION_LOOK)) }
        }
        Situation::Create { desired, attempt } => {
            let mut steps = old_keys(now, seen);
            steps.extend(surroundings(seen));
            steps.extend(service(seen, attempt));
            steps.extend(claim(seen, &desired));
            steps.extend(registries(now, seen, &desired, None));
            steps.push(Step::CreatePod(Box::new(objects::pod(&seen.cluster, &desired, &seen.settings, attempt))));
            Plan { steps, wake_at: rest }
        }
        Situation::Creating { pod, desired, deadline } => {
            let mut steps = surroundings(seen);
            steps.extend(service(seen, attempt_of(pod)));
            if let Some(desired) = desired {
                // Taken away before a node has taken the pod.
                steps.extend(claim(seen, &desired).filter(|_| seen.children.claims.is_empty()));
                steps.extend(registries(now, seen, &desired, Some(pod)));
            }
            Plan { steps, wake_at: Some(deadline) }
        }
        Situation::Running { pod, .. } if power::needs_no_pod(seen) => {
            Plan { steps: delete(ChildKind::Pod, &pod.metadata).into_iter().collect(), wake_at: rest }
        }
        Situation::Running { pod, desired } => {
            let mut steps = surroundings(seen);
            steps.extend(channel(now, seen));
            // Before what may be refused: a cluster can be suspended whatever else is wrong.
            steps.extend(orders::due(seen).map(Step::Order));
            // A port of the host's nodes may be taken.
            steps.extend(service(seen, attempt_of(pod)));
            if let Ok(desired) = &desired {
                steps.extend(publication(now, seen, desired));
                steps.extend(credentials::steps(now, seen, desired));
                // Last: a Secret of the user's that has gone is to stop nothing else.
                steps.extend(registries(now, seen, desired, Some(pod)));
            }
            steps.extend(contents::due(now, seen).map(|plan| Step::SendContents(Box::new(plan))));
            let renewal = certificates::kubeconfig_renewal(seen).filter(|at| *at > now);
            let further = desired.as_ref().ok().and_then(|desired| credentials::next_look(now, seen, desired));
            let wakes = [renewal, further, host_loss::given_up_at(seen), exposure::next_change(now, seen)];
            Plan { steps, wake_at: rest.into_iter().chain(wakes.into_iter().flatten()).min() }
        }
    }
}

/// The end of a failed attempt's pod.
fn discard(rest: Option<Timestamp>, fate: Fate, pod: &Pod) -> Plan {
    let logs = match fate {
        Fate::Held(until) => return Plan { steps: vec![], wake_at: Some(until) },
        Fate::Logged(plan) => Some(Step::KeepLogs(Box::new(plan))),
        Fate::Gone => None,
    };
    Plan { steps: logs.into_iter().chain(delete(ChildKind::Pod, &pod.metadata)).collect(), wake_at: rest }
}

/// Up to ten minutes, other for each cluster, so that they do not all wake at once.
fn spread(uid: &str) -> u64 {
    u64::from_str_radix(&short_digest(uid)[..4], 16).unwrap_or(0) % 600
}

/// Keys that would not outlive a new cluster, with a new Secret in their place. Who holds a kubeconfig of the old ones needs a new one.
fn old_keys(now: Timestamp, seen: &Observed) -> Vec<Step> {
    let old = seen.children.keys.iter().filter(|keys| certificates::authorities_are_old(now, seen) && keys.name.as_deref() == Some(&seen.identity.keys()));
    let gone: Vec<Step> = old.filter_map(|keys| delete(ChildKind::Keys, keys)).collect();
    let made = (!gone.is_empty()).then_some(Step::CreateKeys);
    gone.into_iter().chain(made).collect()
}

/// New keys for the channel to the agent, when it is time.
fn channel(now: Timestamp, seen: &Observed) -> Option<Step> {
    let keys = seen.children.keys.iter().find(|keys| keys.name.as_deref() == Some(&seen.identity.keys()))?;
    certificates::channel_is_due(now, seen).then(|| Some(Step::RenewChannel { uid: keys.uid.clone()? }))?
}

/// What has to be there before the pod, and stay.
fn surroundings(seen: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if !seen.children.keys.iter().any(|keys| keys.name.as_deref() == Some(&seen.identity.keys())) {
        steps.push(Step::CreateKeys);
    }
    let policy = objects::network_policy(&seen.cluster, &seen.identity, &seen.settings);
    if !seen.children.policies.iter().any(|have| objects::matches(&policy.metadata, &have.metadata) && objects::matches(&policy.spec, &have.spec)) {
        steps.push(Step::ApplyNetworkPolicy(Box::new(policy)));
    }
    steps
}

/// The Service, if it is not there as it should be; where it has to change its class, in two steps.
fn service(seen: &Observed, attempt: i64) -> Vec<Step> {
    let service = objects::service(&seen.cluster, &seen.identity, &seen.settings, attempt);
    if seen.children.services.iter().any(|have| objects::matches(&service.metadata, &have.metadata) && objects::matches(&service.spec, &have.spec)) {
        return vec![];
    }
    let have = seen.children.services.iter().find(|have| have.metadata.name == service.metadata.name);
    let between = have.and_then(|have| objects::before_another_class(&service, have));
    between.into_iter().chain([service]).map(|service| Step::ApplyService(Box::new(service))).collect()
}

/// The claim, if it is not there as it should be. Compared only before a pod is made: a larger size is for the next one.
fn claim(seen: &Observed, desired: &Desired) -> Option<Step> {
    let claim = objects::volume_claim(&seen.cluster, desired, &seen.settings)?;
    let there = seen.children.claims.iter().any(|have| objects::matches(&claim.metadata, &have.metadata) && objects::matches(&claim.spec, &have.spec));
    (!there).then(|| Step::ApplyVolumeClaim(Box::new(claim)))
}

/// The copy of what the registries refer to: made anew for each pod, and from time to time while it runs, so that a change arrives. A pod keeps the
/// list of registries that it was made with.
fn registries(now: Timestamp, seen: &Observed, desired: &Desired, pod: Option<&Pod>) -> Option<Step> {
    if pod.is_some_and(|pod| digests_of(pod).get(registries::DIGEST) != desired.digests.get(registries::DIGEST)) {
        return None;
    }
    let copy = seen.children.keys.iter().find(|meta| meta.name.as_deref() == Some(&seen.identity.registries()));
    let plan = registries::plan(now, &seen.cluster, &seen.identity, &seen.settings);
    if plan.sources.is_empty() {
        // Nobody needs it any more.
        return copy.filter(|copy| copy.deletion_timestamp.is_none()).and_then(|copy| delete(ChildKind::Keys, copy));
    }
    let current = pod.is_some() && copy.is_some_and(|copy| plan.is_current(now, copy));
    (!current).then(|| Step::ApplyRegistries(Box::new(plan)))
}

/// The kubeconfig, once there is something to reach with it.
fn publication(now: Timestamp, seen: &Observed, desired: &Desired) -> Option<Step> {
    let status = seen.status();
    if !seen.report.as_ref().is_some_and(|report| report.control_plane_ready) || !credentials::may_publish(&status, desired) {
        return None;
    }
    let plan = kubeconfig(seen, desired)?;
    let current = status.kubeconfig_secret_ref.is_some_and(|published| {
        let renew = certificates::kubeconfig_renewal(seen).is_some_and(|time| now >= time);
        published.name == plan.secret && published.digest.as_deref() == Some(&plan.digest) && !renew
    });
    (!current).then(|| Step::PublishKubeconfig(Box::new(plan)))
}

/// What the kubeconfig is to say. `None` until the Service has what it needs.
pub fn kubeconfig(seen: &Observed, desired: &Desired) -> Option<KubeconfigPlan> {
    seen.children.services.iter().find(|service| service.metadata.name.as_deref() == Some(&desired.identity.child()))?;
    let keys = seen.children.keys.iter().find(|keys| keys.name.as_deref() == Some(&desired.identity.keys()))?;
    let tls_server_name = desired.identity.service_dns_name(&seen.settings.clusters_namespace);
    let internal = exposure::internal_url(&tls_server_name);
    let external = exposure::external_url(seen);
    let lifetime = desired.kubeconfig_lifetime;
    // Nothing for the usual one, so that those that earlier operators have published stay.
    let of_lifetime = if lifetime == KUBECONFIG_LIFE { String::new() } else { format!(" {}", lifetime.as_secs()) };
    let digest = short_digest(&format!("{internal} {external:?} {tls_server_name} {}{of_lifetime}", keys.uid.as_deref().unwrap_or_default()));
    Some(KubeconfigPlan {
        identity: desired.identity.clone(),
        secret: desired.kubeconfig_secret.clone(),
        bearer: Bearer::Admin,
        internal,
        external,
        tls_server_name,
        lifetime,
        digest,
        install: seen.settings.install.clone(),
    })
}

/// When the end of a deleted cluster has taken longer than the operator's owner wants to wait without a word.
fn overdue_at(seen: &Observed) -> Option<Timestamp> {
    seen.cluster.metadata.deletion_timestamp.as_ref().map(|time| later(time.0, seen.settings.cleanup.timeout))
}

/// Whether it has.
pub fn is_overdue(now: Timestamp, seen: &Observed) -> bool {
    !seen.children.is_empty() && overdue_at(seen).is_some_and(|time| now >= time)
}

/// When to look at a deletion again, if nothing happens before.
fn next_look(now: Timestamp, seen: &Observed) -> Timestamp {
    let regular = later(now, DELETION_LOOK);
    overdue_at(seen).filter(|time| *time > now).map_or(regular, |time| time.min(regular))
}

/// Whether it is on record that the end of the cluster could not be seen.
fn said_unverified(seen: &Observed) -> bool {
    conditions::has_reason(&seen.status().conditions, conditions::DELETING, Reason::CleanupUnverified)
}

fn deletion(now: Timestamp, seen: &Observed) -> Vec<Step> {
    let mut steps = credentials::retraction(seen);
    if let Some(published) = seen.status().kubeconfig_secret_ref {
        steps.push(Step::RetractKubeconfig { secret: published.name });
    }
    if let Some(bundle) = seen.status().last_failure.and_then(|failure| failure.bundle_ref) {
        steps.push(Step::DropLogs { secret: bundle.name });
    }
    let children = &seen.children;
    // With their content, and so after those who work on it; but whoever is not waited for any longer does not keep them either.
    let claims = if (children.live && children.pods.is_empty()) || is_overdue(now, seen) { &children.claims[..] } else { &[] };
    let lists = [
        (ChildKind::Pod, children.pods.iter().map(|pod| &pod.metadata).collect::<Vec<_>>()),
        (ChildKind::Service, children.services.iter().map(|service| &service.metadata).collect()),
        (ChildKind::NetworkPolicy, children.policies.iter().map(|policy| &policy.metadata).collect()),
        (ChildKind::Keys, children.keys.iter().collect()),
        (ChildKind::VolumeClaim, claims.iter().map(|claim| &claim.metadata).collect()),
    ];
    for (kind, metas) in lists {
        steps.extend(metas.into_iter().filter(|meta| meta.deletion_timestamp.is_none()).filter_map(|meta| delete(kind, meta)));
    }
    let verified = children.live && children.is_empty();
    let abandoned = seen.settings.cleanup.policy == CleanupPolicy::Abandon && is_overdue(now, seen) && said_unverified(seen);
    if (verified || abandoned) && seen.cluster.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == crate::api::FINALIZER) {
        // An operator that was killed between publishing and saying so has left no word of it.
        let unrecorded = seen.cluster.spec.kubeconfig.as_ref().and_then(|kubeconfig| kubeconfig.secret_name.clone());
        steps.push(Step::RetractKubeconfig { secret: unrecorded.unwrap_or_else(|| seen.identity.default_kubeconfig_secret()) });
        steps.push(Step::RemoveFinalizer);
    }
    steps
}

fn delete(kind: ChildKind, meta: &ObjectMeta) -> Option<Step> {
    Some(Step::Delete(Child { kind, name: meta.name.clone()?, uid: meta.uid.clone()? }))
}

/// Whether a cluster's agent should be listened to: while something moves, or when nothing has been heard of it yet.
pub fn is_moving(status: &KindClusterStatus, seen_report: bool) -> bool {
    // What is still to be changed in a cluster that is suspended is changed when it runs again.
    let rests = power::rests(status);
    let ready = conditions::is_true(&status.conditions, conditions::READY);
    let changes =
        [serving_names::is_changing, preload::is_under_way, exposure::is_changing, contents::is_changing, users::is_changing, settle::is_policy_unproven];
    !seen_report || !rests && (!ready || changes.iter().any(|changing| changing(status)))
}

/// Whether a cluster is as it is wanted, as far as its status says, and this pass has nothing to do nor anything before it is looked at in any case. If it then has
/// nothing to say either, the agent need not be asked, not even by an operator that has never heard it.
pub fn rests(now: Timestamp, seen: &Observed, plan: &Plan) -> bool {
    let meta = &seen.cluster.metadata;
    let is_settled = |status: &KindClusterStatus| status.observed_generation == meta.generation && !is_moving(status, true);
    plan.steps.is_empty()
        && plan.wake_at.is_none_or(|at| at >= later(now, REST))
        && meta.deletion_timestamp.is_none()
        && seen.cluster.status.as_ref().is_some_and(is_settled)
        && !certificates::is_any_due(now, seen)
        && seen.children.current_pod().is_some_and(is_ready)
}

/// Whether a pod takes one of the slots for clusters under creation.
pub fn takes_slot(status: &KindClusterStatus, pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && status.cluster_attempt != Some(attempt_of(pod)) && created_at(&pod.metadata) > Timestamp::UNIX_EPOCH
}
