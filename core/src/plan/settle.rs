//! What is to be said: the status after a pass, and the events that its changes are worth.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::certificates::{self, Validity};
use super::contents;
use super::credentials;
use super::decide::{KubeconfigPlan, Step, is_overdue, kubeconfig};
use super::desired::{Desired, desire};
use super::expiry;
use super::exposure;
use super::host_loss;
use super::objects::{attempt_of, changed_since, resumes};
use super::observed::Observed;
use super::power;
use super::preload;
use super::problem::Problem;
use super::serving_names;
use super::situation::{MESSAGE_LIMIT, Situation, is_resuming, progress, readable, situation};
use super::users;
use super::wire::{AgentReport, DeadContainer, PolicyProbe, StoragePressure};
use crate::api::conditions::{self, Claim, clip};
use crate::api::reasons::Reason;
use crate::api::{BundleRef, KindClusterStatus, KubeconfigSecretRef, LastFailure, NodeCount, PodRef, StageTime};

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The steps that were carried out, in order.
    pub done: Vec<Step>,
    /// The step that failed, and why.
    pub failed: Option<(Step, Problem)>,
    /// When the credentials that were published in this pass end, by the name of the Secret.
    pub credentials_end: BTreeMap<String, Timestamp>,
    /// Why further Secrets with credentials were not written though their step is done, by name: they are not worth a failure of their own.
    pub refused: BTreeMap<String, Problem>,
    /// Why the logs of a failed attempt were not kept though their step is done: they are not worth a failure of their own.
    pub logs_refused: Option<Problem>,
}

/// The claims of one pass; what is left `None` stays as it was said last.
struct Claims {
    ready: Claim,
    reconciling: Claim,
    stalled: Claim,
    host: Option<Claim>,
    control_plane: Option<Claim>,
    nodes: Option<Claim>,
    kubeconfig: Option<Claim>,
    endpoints: Option<Claim>,
    manifests: Option<Claim>,
    policy: Option<Claim>,
    disk: Option<Claim>,
    certificates: Option<Claim>,
    up_to_date: Option<Claim>,
}

impl Claims {
    /// Nothing runs, and that is because of `reason`.
    fn idle(reason: Reason, message: &str) -> Self {
        let nothing = Claim::no(Reason::NoPod, "there is no pod");
        Self {
            ready: Claim::no(reason, message),
            reconciling: Claim::yes(reason, message),
            stalled: not_stalled(),
            host: Some(nothing.clone()),
            control_plane: Some(nothing.clone()),
            nodes: Some(nothing.clone()),
            kubeconfig: None,
            endpoints: Some(Claim::unknown(Reason::NoPod, "there is no pod")),
            manifests: Some(nothing),
            policy: Some(Claim::unknown(Reason::NoPod, "there is no pod")),
            disk: Some(Claim::unknown(Reason::NoPod, "there is no pod")),
            certificates: Some(Claim::unknown(Reason::NoPod, "there is no pod")),
            up_to_date: None,
        }
    }

    /// Nothing runs, and nothing is to.
    fn asleep() -> Self {
        let Claim { reason, message, .. } = power::claim_asleep();
        Self { reconciling: Claim::no(Reason::Settled, ""), ..Self::idle(reason, &message) }
    }

    /// What there is of the cluster is not looked at: all that is said of it stays as it was seen last.
    fn unseen(ready: Claim, reconciling: Claim, stalled: Claim) -> Self {
        Self {
            ready,
            reconciling,
            stalled,
            host: None,
            control_plane: None,
            nodes: None,
            kubeconfig: None,
            endpoints: None,
            manifests: None,
            policy: None,
            disk: None,
            certificates: None,
            up_to_date: None,
        }
    }

    /// Nothing will happen until somebody changes something.
    fn stalled(reason: Reason, message: &str) -> Self {
        Self { reconciling: Claim::no(reason, message), stalled: Claim::yes(reason, message), ..Self::idle(reason, message) }
    }
}

fn not_stalled() -> Claim {
    Claim::no(Reason::NotStalled, "")
}

/// The status after a pass. Pure; written always, also after a failure.
pub fn settle(now: Timestamp, seen: &Observed, done: &Outcome) -> KindClusterStatus {
    let mut status = seen.status();
    let generation = seen.cluster.metadata.generation;
    status.observed_generation = generation;
    let stands = situation(now, seen);
    record_facts(now, seen, done, &stands, &mut status);
    status.expiration_time = expiry::expiry(now, seen).map(|expiry| Time(expiry.at));

    let mut claims = match &stands {
        Situation::Paused => return paused(now, seen, status),
        Situation::Unsure => return seen.status(),
        Situation::Deleting => deleting(now, seen),
        Situation::Expired => expired(seen),
        Situation::Unfinalized => Claims::idle(Reason::Pending, "the object was accepted"),
        Situation::Refused(problem) => Claims::stalled(problem.reason, &problem.explain()),
        Situation::Stalled(failure) => {
            let kept = if is_resuming(&status, failure.attempt) { " The cluster is still on its volume." } else { "" };
            let logs =
                failure.bundle_ref.as_ref().map_or(String::new(), |bundle| format!(" Logs of attempt {} are in Secret {}.", bundle.attempt, bundle.name));
            Claims::stalled(reason_of(failure), &format!("{} No further attempt is made (attempt {}).{kept}{logs}", failure.message, failure.attempt))
        }
        Situation::BackingOff { failure, until } => Claims::idle(reason_of(failure), &format!("{} The next attempt is made at {until}.", failure.message)),
        Situation::Asleep => Claims::asleep(),
        Situation::Queued { before } => Claims::idle(Reason::Queued, &format!("{before} cluster(s) are created first")),
        Situation::Create { desired, attempt } => {
            let reason = if desired.agent.resume { Reason::Resuming } else { Reason::PodPending };
            Claims::idle(reason, &format!("attempt {attempt} is being started"))
        }
        Situation::Failed(failure) => Claims::idle(reason_of(failure), &failure.message),
        Situation::Discard(_) => match &status.last_failure {
            Some(failure) => Claims::idle(reason_of(failure), &failure.message),
            None => Claims::idle(Reason::Progressing, ""),
        },
        Situation::Recreate(_) | Situation::Replaced(_) => Claims::idle(Reason::Recreating, &Reason::Recreating.explain("")),
        Situation::Outdated(_) => Claims::idle(Reason::Progressing, "the spec has changed; the attempt starts anew"),
        Situation::Creating { pod, desired, .. } => creating(now, seen, pod, desired.as_deref()),
        Situation::Running { pod, desired } => running(now, seen, pod, desired.as_deref(), &status, done),
    };
    if claims.ready.status == Some(true) {
        status.ready_time.get_or_insert(Time(now));
    }
    if let Some((step, problem)) = &done.failed {
        after_failure(step, problem, &stands, &mut claims);
    }
    write(now, &mut status, generation, &claims);
    let deleting = match &stands {
        Situation::Deleting => deletion(now, seen),
        _ => Claim::no(Reason::NotDeleting, ""),
    };
    // Why it was deleted stays on record.
    if !matches!(stands, Situation::Deleting) || conditions::get(&status.conditions, conditions::EXPIRING).is_none() {
        conditions::set(&mut status.conditions, now, generation, conditions::EXPIRING, &expiry::claim(now, seen));
    }
    let suspended = match &stands {
        Situation::Running { .. } => power::claim(seen),
        Situation::Asleep => Some(power::claim_asleep()),
        Situation::Deleting | Situation::Expired => None,
        _ => Some(power::claim_without_cluster(seen)),
    };
    let suspended = suspended.unwrap_or_else(|| kept(&status, conditions::SUSPENDED));
    conditions::set(&mut status.conditions, now, generation, conditions::SUSPENDED, &suspended);
    conditions::set(&mut status.conditions, now, generation, conditions::PAUSED, &Claim::no(Reason::NotPaused, ""));
    conditions::set(&mut status.conditions, now, generation, conditions::DELETING, &deleting);
    status
}

/// Only what `paused` itself says changes, and what time does; everything else stays as it was seen last.
fn paused(now: Timestamp, seen: &Observed, mut status: KindClusterStatus) -> KindClusterStatus {
    let generation = seen.cluster.metadata.generation;
    let message = Reason::Paused.explain("the operator changes nothing");
    for type_ in conditions::ALL {
        if conditions::get(&status.conditions, type_).is_none() {
            conditions::set(&mut status.conditions, now, generation, type_, &Claim::unknown(Reason::Paused, &message));
        }
    }
    conditions::set(&mut status.conditions, now, generation, conditions::RECONCILING, &Claim::no(Reason::Paused, &message));
    conditions::set(&mut status.conditions, now, generation, conditions::EXPIRING, &expiry::claim(now, seen));
    conditions::set(&mut status.conditions, now, generation, conditions::PAUSED, &Claim::yes(Reason::Paused, &message));
    status
}

fn write(now: Timestamp, status: &mut KindClusterStatus, generation: Option<i64>, claims: &Claims) {
    let pending = Claim::unknown(Reason::Pending, "");
    let all: [(&str, Option<&Claim>); 13] = [
        (conditions::READY, Some(&claims.ready)),
        (conditions::RECONCILING, Some(&claims.reconciling)),
        (conditions::STALLED, Some(&claims.stalled)),
        (conditions::HOST_READY, claims.host.as_ref()),
        (conditions::CONTROL_PLANE_READY, claims.control_plane.as_ref()),
        (conditions::NODES_READY, claims.nodes.as_ref()),
        (conditions::KUBECONFIG_PUBLISHED, claims.kubeconfig.as_ref()),
        (conditions::ENDPOINTS_READY, claims.endpoints.as_ref()),
        (conditions::MANIFESTS_APPLIED, claims.manifests.as_ref()),
        (conditions::NETWORK_POLICY_ENFORCED, claims.policy.as_ref()),
        (conditions::DISK_PRESSURE, claims.disk.as_ref()),
        (conditions::CERTIFICATES_VALID, claims.certificates.as_ref()),
        (conditions::UP_TO_DATE, claims.up_to_date.as_ref()),
    ];
    for (type_, claim) in all {
        let first = conditions::get(&status.conditions, type_).is_none().then_some(&pending);
        if let Some(claim) = claim.or(first) {
            conditions::set(&mut status.conditions, now, generation, type_, claim);
        }
    }
}

/// What is plainly seen or done, without a judgement.
fn record_facts(now: Timestamp, seen: &Observed, done: &Outcome, stands: &Situation<'_>, status: &mut KindClusterStatus) {
    if let Ok(desired) = desire(&seen.cluster, &seen.identity, &seen.settings)
        && matches!(stands, Situation::Create { .. } | Situation::Creating { .. } | Situation::Queued { .. })
    {
        status.version = desired.version;
        status.image = Some(desired.image);
    }
    match stands {
        Situation::Failed(failure) => {
            status.last_failure = Some(failure.clone());
            status.attempt = Some(failure.attempt);
            status.ready_time = None;
            status.nodes_ready = None;
            status.power_state = None;
            if let Some(pod) = seen.children.current_pod() {
                record_beginning(pod, status);
            }
        }
        Situation::Recreate(recreation) => {
            status.recreation = Some(recreation.clone());
            status.ready_time = None;
            status.nodes_ready = None;
            status.power_state = None;
        }
        Situation::Creating { pod, .. } | Situation::Running { pod, .. } => record_pod(pod, seen.report.as_ref(), status),
        // Whoever took it away.
        Situation::Asleep => status.pod_ref = None,
        _ => {}
    }
    if matches!(stands, Situation::Running { .. }) && seen.report.is_some() {
        status.power_state = Some(power::actual(seen).unwrap_or_default());
    }
    if let Situation::Running { pod, .. } = stands
        && let Some(report) = seen.report.as_ref().filter(|report| report.control_plane_ready)
    {
        status.cluster_attempt = Some(attempt_of(pod));
        status.cluster_uid.clone_from(&report.nested_uid);
        if report.server_version.is_some() {
            status.version.clone_from(&report.server_version);
        }
    }
    status.endpoints = exposure::endpoints(seen);
    status.ports = exposure::ports(seen);
    status.relay_image = Some(seen.settings.relay_image.clone()).filter(|image| !image.is_empty());
    if let Situation::Running { desired: Ok(desired), .. } = stands {
        credentials::record(seen, desired, status);
    }
    for step in &done.done {
        match step {
            Step::CreatePod(pod) => record_pod(pod, None, status),
            Step::Delete(child) if status.pod_ref.as_ref().is_some_and(|pod| pod.name == child.name) => status.pod_ref = None,
            Step::PublishKubeconfig(plan) => credentials::record_admin(published(now, plan, done), status),
            Step::PublishFurther(plan) if !done.refused.contains_key(&plan.secret) => {
                if let Some(have) = status.further_secret_refs.iter_mut().find(|have| have.name == plan.secret) {
                    *have = published(now, plan, done);
                }
            }
            Step::RetractKubeconfig { secret } => {
                status.kubeconfig_secret_ref.take_if(|published| published.name == *secret);
                status.further_secret_refs.retain(|published| published.name != *secret);
            }
            Step::KeepLogs(plan) => {
                if let Some(failure) = status.last_failure.as_mut().filter(|failure| failure.attempt == plan.attempt) {
                    match &done.logs_refused {
                        None => failure.bundle_ref = Some(BundleRef { name: plan.secret.clone(), attempt: plan.attempt }),
                        Some(problem) => {
                            let message = format!("{} Its logs were not kept: {}.", failure.message, problem.message);
                            clip(&message, MESSAGE_LIMIT).clone_into(&mut failure.message);
                        }
                    }
                }
            }
            Step::DropLogs { secret } => {
                if let Some(failure) = &mut status.last_failure {
                    failure.bundle_ref.take_if(|bundle| bundle.name == *secret);
                }
            }
            _ => {}
        }
    }
}

/// What was published in this pass.
fn published(now: Timestamp, plan: &KubeconfigPlan, done: &Outcome) -> KubeconfigSecretRef {
    let ends = done.credentials_end.get(&plan.secret).copied();
    KubeconfigSecretRef {
        name: plan.secret.clone(),
        digest: Some(plan.digest.clone()),
        expiration_time: ends.map(Time),
        renewal_time: ends.map(|ends| Time(Validity { begins: now, ends }.renew_at())),
    }
}

/// An attempt that brings nothing back begins with an empty volume: there is nothing left that a later one could bring back.
fn record_beginning(pod: &Pod, status: &mut KindClusterStatus) {
    if !resumes(pod) && is_resuming(status, attempt_of(pod)) {
        status.cluster_attempt = None;
    }
}

fn record_pod(pod: &Pod, report: Option<&AgentReport>, status: &mut KindClusterStatus) {
    let attempt = attempt_of(pod);
    if status.attempt != Some(attempt) {
        status.ready_time = None;
        status.nodes_ready = None;
        status.power_state = None;
        status.control_planes = None;
        status.workers = None;
        status.load_balancer_cidrs.clear();
        status.stages.clear();
    }
    record_beginning(pod, status);
    status.attempt = Some(attempt);
    status.pod_ref = Some(PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone(),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
    });
    let Some(report) = report else { return };
    if report.kind_version.is_some() {
        status.kind_version.clone_from(&report.kind_version);
    }
    status.load_balancer_cidrs = report.load_balancer_cidr.iter().map(ToString::to_string).collect();
    let count = |control_plane: bool| {
        let of_role = report.nodes.iter().filter(|node| node.control_plane == control_plane);
        let (total, ready) = of_role.fold((0, 0), |(total, ready), node| (total + 1, ready + i32::from(node.ready)));
        NodeCount { total, ready }
    };
    if !report.nodes.is_empty() {
        let (control_planes, workers) = (count(true), count(false));
        status.nodes_ready = Some(format!("{}/{}", control_planes.ready + workers.ready, control_planes.total + workers.total));
        status.control_planes = Some(control_planes);
        status.workers = Some(workers);
    }
    status.stages =
        report.stages.iter().take(32).map(|stage| StageTime { name: stage.stage.reason().as_str().to_owned(), milliseconds: stage.milliseconds }).collect();
}

/// The failure that is in this status and was not in the one before.
pub(super) fn new_failure<'a>(before: &KindClusterStatus, after: &'a KindClusterStatus) -> Option<&'a LastFailure> {
    after.last_failure.as_ref().filter(|failure| !before.last_failure.as_ref().is_some_and(|before| before.is(failure)))
}

/// The reason of a failure; one that is not known reads as [`Reason::KindFailed`].
pub(super) fn reason_of(failure: &LastFailure) -> Reason {
    Reason::parse(&failure.reason).unwrap_or(Reason::KindFailed)
}

fn creating(now: Timestamp, seen: &Observed, pod: &Pod, desired: Option<&Desired>) -> Claims {
    let (reason, message) = progress(now, pod, seen.report.as_ref(), &seen.children.claims);
    let message = if reason.remedy().is_empty() && message.is_empty() { reason.meaning().to_owned() } else { reason.explain(&message) };
    // What a creation is told by, step by step, is a matter of seconds here; what hinders has a remedy and keeps its name.
    let reason = if resumes(pod) && reason.remedy().is_empty() { Reason::Resuming } else { reason };
    let host = match &seen.report {
        Some(report) if report.stage > super::wire::Stage::Preflight => Claim::yes(Reason::HostFit, report.warnings.join(" ")),
        _ => Claim::unknown(reason, &message),
    };
    let not_yet = Claim::no(reason, &message);
    Claims {
        host: Some(host),
        control_plane: Some(not_yet.clone()),
        nodes: Some(not_yet.clone()),
        endpoints: Some(Claim::unknown(Reason::Pending, "")),
        manifests: Some(not_yet),
        policy: Some(policy(seen.report.as_ref())),
        disk: Some(disk(seen.report.as_ref())),
        certificates: Some(Claim::unknown(Reason::Pending, "")),
        up_to_date: Some(match desired {
            Some(Desired { violation: Some(problem), .. }) => Claim::no(problem.reason, problem.explain()),
            Some(_) => in_sync(),
            None => Claim::no(Reason::RecreateRequired, "the spec cannot be carried out any more"),
        }),
        ..Claims::idle(reason, &message)
    }
}

/// Whether the cluster's volume has room, as its agent sees it.
fn disk(report: Option<&AgentReport>) -> Claim {
    let Some(report) = report else { return Claim::unknown(Reason::Pending, "the agent has not been heard yet") };
    match report.storage_pressure {
        Some(pressure) => Claim::yes(Reason::StorageNearlyFull, Reason::StorageNearlyFull.explain(&fullness(pressure))),
        None => Claim::no(Reason::StorageSufficient, ""),
    }
}

fn fullness(pressure: StoragePressure) -> String {
    let text = |bytes: i64| format!("{} MiB", bytes >> 20);
    format!("the cluster held {} of {} when this was seen first", text(pressure.used_bytes), text(pressure.limit_bytes))
}

/// Whether the pod still tries what its policy keeps it from. A cluster may be ready before that is known.
pub fn is_policy_unproven(status: &KindClusterStatus) -> bool {
    conditions::has_reason(&status.conditions, conditions::NETWORK_POLICY_ENFORCED, Reason::Pending)
}

/// There is no API that tells whether policies are enforced: what the pod could not do is the only proof.
fn policy(report: Option<&AgentReport>) -> Claim {
    let explained = |reason: Reason| reason.explain("");
    match report.map(|report| report.policy_probe) {
        None => Claim::unknown(Reason::Pending, ""),
        Some(PolicyProbe::Pending) => Claim::unknown(Reason::Pending, "the pod tries whether it is kept from the host's API server"),
        Some(PolicyProbe::Blocked) => Claim::yes(Reason::ProbeBlocked, explained(Reason::ProbeBlocked)),
        Some(PolicyProbe::Open) => Claim::no(Reason::NotEnforced, explained(Reason::NotEnforced)),
        Some(PolicyProbe::Unknown) => Claim::unknown(Reason::ProbeInconclusive, explained(Reason::ProbeInconclusive)),
    }
}

fn in_sync() -> Claim {
    Claim::yes(Reason::InSync, "")
}

fn running(now: Timestamp, seen: &Observed, pod: &Pod, desired: Result<&Desired, &Problem>, status: &KindClusterStatus, done: &Outcome) -> Claims {
    let up_to_date = up_to_date(now, seen, pod, desired);
    // What the agent said last may be long past.
    let node = host_loss::claim(seen);
    let Some(report) = &seen.report else {
        // Nothing new has been heard: what was said last stands, unless the pod itself says that it is not ready.
        let (ready, reconciling) = match &node {
            Some(claim) => (claim.clone(), Claim::yes(claim.reason, &claim.message)),
            None => (kept(status, conditions::READY), kept(status, conditions::RECONCILING)),
        };
        // Only the agent knows what a cluster was made with that it has taken over.
        let up_to_date = Some(up_to_date).filter(|_| !resumes(pod));
        return Claims { up_to_date, host: node, ..Claims::unseen(ready, reconciling, not_stalled()) };
    };
    if let Some(hindrance) = power::hindrance(seen) {
        return suspended(report, node, hindrance, up_to_date);
    }
    let dead = (!report.dead_containers.is_empty()).then(|| Claim::no(Reason::NodeContainerDead, Reason::NodeContainerDead.explain(&dead(report))));
    let control_plane = if report.control_plane_ready {
        Claim::yes(Reason::ApiServerReady, "")
    } else if let Some(dead) = &dead {
        dead.clone()
    } else if let Some(pressure) = report.storage_pressure {
        // The usual end of etcd on a full disk.
        let message = format!("the API server does not answer /readyz, and {}", fullness(pressure));
        Claim::no(Reason::StorageNearlyFull, Reason::StorageNearlyFull.explain(&message))
    } else {
        Claim::no(Reason::ControlPlaneUnhealthy, Reason::ControlPlaneUnhealthy.explain("the API server does not answer /readyz"))
    };
    let expected = desired.map_or(0, |desired| usize::try_from(desired.node_count).unwrap_or(0));
    let waiting: Vec<&str> = report.nodes.iter().filter(|node| !node.ready).map(|node| node.name.as_str()).collect();
    let nodes = if let Some(dead) = dead {
        dead
    } else if waiting.is_empty() && !report.nodes.is_empty() && report.nodes.len() >= expected {
        Claim::yes(Reason::AllNodesReady, "")
    } else {
        let message =
            if waiting.is_empty() { format!("{} of {expected} nodes have joined", report.nodes.len()) } else { format!("not ready: {}", waiting.join(", ")) };
        Claim::no(Reason::WaitingForNodes, Reason::WaitingForNodes.explain(&message))
    };
    let wanted = desired.ok().and_then(|desired| kubeconfig(seen, desired));
    let kubeconfig = match (&status.kubeconfig_secret_ref, wanted) {
        (Some(published), wanted)
            if wanted.as_ref().is_none_or(|wanted| published.name == wanted.secret && published.digest.as_deref() == Some(&wanted.digest)) =>
        {
            Claim::yes(Reason::Published, format!("in Secret {}", published.name))
        }
        _ => Claim::no(Reason::PublishingKubeconfig, "the kubeconfig is about to be published"),
    };
    let was_ready = conditions::is_true(&status.conditions, conditions::READY);
    let (kubeconfig, hinders) = credentials::claim(kubeconfig, was_ready, seen, desired.ok(), status, done);
    let manifests = contents::claim(seen, report);
    // What is to be in the cluster is waited for only once. Manifests come before nodes: among them may be the CNI that these wait for.
    let first = status.ready_time.is_none();
    let gates = contents::hindrance(seen, report).filter(|_| first);
    let all = [
        Some(node.as_ref().unwrap_or(&control_plane)),
        Some(&control_plane),
        Some(&manifests).filter(|_| first),
        Some(&nodes),
        Some(&kubeconfig).filter(|_| hinders),
        gates.as_ref(),
    ];
    let hindrance = all.into_iter().flatten().find(|claim| claim.status != Some(true)).cloned();
    let (ready, reconciling) = match &hindrance {
        None if manifests.reason == Reason::ApplyingManifests => (Claim::yes(Reason::ClusterReady, ""), Claim::yes(manifests.reason, &manifests.message)),
        None => (Claim::yes(Reason::ClusterReady, ""), Claim::no(Reason::Settled, "")),
        Some(claim) => (Claim::no(claim.reason, &claim.message), Claim::yes(claim.reason, &claim.message)),
    };
    // Of these nobody tries on.
    let stuck = hindrance.or_else(|| Some(manifests.clone()).filter(|claim| claim.status != Some(true))).filter(contents::is_stuck);
    let (reconciling, stalled) = match stuck {
        Some(claim) => (Claim::no(claim.reason, &claim.message), Claim::yes(claim.reason, claim.message)),
        None => (reconciling, not_stalled()),
    };
    Claims {
        ready,
        reconciling,
        stalled,
        host: Some(node.unwrap_or_else(|| Claim::yes(Reason::HostFit, report.warnings.join(" ")))),
        control_plane: Some(control_plane),
        nodes: Some(nodes),
        kubeconfig: Some(kubeconfig),
        endpoints: Some(exposure::claim(now, seen)),
        manifests: Some(manifests),
        policy: Some(policy(Some(report))),
        disk: Some(disk(Some(report))),
        certificates: Some(certificates::claim(now, report.certificates.as_ref())),
        up_to_date: Some(up_to_date),
    }
}

/// What has died, for people.
fn dead(report: &AgentReport) -> String {
    let one = |container: &DeadContainer| {
        let again = match container.starts {
            0 => "is started again".to_owned(),
            starts => format!("was started again {starts} time(s)"),
        };
        format!("{} ended with exit code {} and {again}", clip(&container.name, 128), container.exit_code)
    };
    report.dead_containers.iter().take(3).map(one).collect::<Vec<_>>().join("; ")
}

/// The cluster does not run, by wish of its user; or is on its way there or back.
fn suspended(report: &AgentReport, node: Option<Claim>, hindrance: Claim, up_to_date: Claim) -> Claims {
    let at_rest = matches!(hindrance.reason, Reason::Frozen | Reason::Stopped);
    Claims {
        reconciling: if at_rest { Claim::no(Reason::Settled, "") } else { Claim::yes(hindrance.reason, hindrance.message.clone()) },
        stalled: not_stalled(),
        host: Some(node.unwrap_or_else(|| Claim::yes(Reason::HostFit, report.warnings.join(" ")))),
        control_plane: Some(hindrance.clone()),
        nodes: Some(hindrance.clone()),
        kubeconfig: None,
        endpoints: Some(hindrance.clone()),
        manifests: None,
        policy: Some(policy(Some(report))),
        disk: Some(disk(Some(report))),
        certificates: None,
        up_to_date: Some(up_to_date),
        ready: hindrance,
    }
}

fn kept(status: &KindClusterStatus, type_: &str) -> Claim {
    match conditions::get(&status.conditions, type_) {
        Some(old) => Claim {
            status: match old.status.as_str() {
                "True" => Some(true),
                "False" => Some(false),
                _ => None,
            },
            reason: Reason::parse(&old.reason).unwrap_or(Reason::Progressing),
            message: old.message.clone(),
        },
        None => Claim::unknown(Reason::Progressing, "the agent has not been heard yet"),
    }
}

fn up_to_date(now: Timestamp, seen: &Observed, pod: &Pod, desired: Result<&Desired, &Problem>) -> Claim {
    match desired {
        Ok(Desired { violation: Some(problem), .. }) | Err(problem) => Claim::no(problem.reason, problem.explain()),
        Ok(desired) => {
            let required = |what: &str| Claim::no(Reason::RecreateRequired, Reason::RecreateRequired.explain(what));
            // A pod that took an earlier one's cluster over was made from a newer spec than that.
            let older = seen.report.iter().flat_map(|report| &report.outdated).filter(|part| desired.digests.contains_key(*part));
            let mut changed = changed_since(pod, desired);
            for part in older {
                if !changed.iter().any(|field| field == part || field.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.'))) {
                    changed.push(part.clone());
                }
            }
            if !changed.is_empty() {
                required(&format!("changed since the cluster was made: {}", changed.join(", ")))
            } else if let Some(claim) = serving_names::claim(seen).or_else(|| preload::claim(seen)).or_else(|| users::claim(seen)) {
                claim
            } else if let Some(end) = certificates::authorities_end(seen).filter(|_| certificates::authorities_are_old(now, seen)) {
                required(&format!("the cluster's authorities end at {end}, and all that they have signed with them"))
            } else {
                in_sync()
            }
        }
    }
}

/// Until the object is deleted, all stays as it was seen last.
fn expired(seen: &Observed) -> Claims {
    Claims::unseen(kept(&seen.status(), conditions::READY), Claim::yes(Reason::Expired, Reason::Expired.explain("")), not_stalled())
}

fn deleting(now: Timestamp, seen: &Observed) -> Claims {
    let Claim { reason, message, .. } = deletion(now, seen);
    let overdue = reason == Reason::CleanupUnverified;
    let reconciling = Claim { status: Some(!overdue), reason, message: message.clone() };
    Claims::unseen(Claim::no(reason, &message), reconciling, if overdue { Claim::yes(reason, message) } else { not_stalled() })
}

/// How far a deletion is; one that takes too long says so, whatever follows from that.
fn deletion(now: Timestamp, seen: &Observed) -> Claim {
    let left = what_is_left(seen);
    if is_overdue(now, seen) {
        let waited = readable(seen.settings.cleanup.timeout);
        Claim::yes(Reason::CleanupUnverified, Reason::CleanupUnverified.explain(&format!("{waited} after the deletion, {left}")))
    } else {
        Claim::yes(Reason::DeletingCluster, left)
    }
}

fn what_is_left(seen: &Observed) -> String {
    let children = &seen.children;
    let mut left: Vec<String> = children.pods.iter().filter_map(|pod| pod.metadata.name.as_ref()).map(|name| format!("Pod {name}")).collect();
    left.extend(children.services.iter().filter_map(|service| service.metadata.name.as_ref()).map(|name| format!("Service {name}")));
    left.extend(children.policies.iter().filter_map(|policy| policy.metadata.name.as_ref()).map(|name| format!("NetworkPolicy {name}")));
    left.extend(children.keys.iter().filter_map(|keys| keys.name.as_ref()).map(|name| format!("Secret {name}")));
    left.extend(children.claims.iter().filter_map(|claim| claim.metadata.name.as_ref()).map(|name| format!("PersistentVolumeClaim {name}")));
    if left.is_empty() { "nothing is left but the finalizer".to_owned() } else { format!("left: {}", left.join(", ")) }
}

/// A write failed: says so where it matters, and keeps true what is still true.
fn after_failure(step: &Step, problem: &Problem, stands: &Situation<'_>, claims: &mut Claims) {
    let message = problem.explain();
    match step {
        Step::PublishKubeconfig(_) | Step::RetractKubeconfig { .. } => {
            claims.kubeconfig = Some(Claim::no(problem.reason, &message));
            claims.ready = Claim::no(problem.reason, &message);
            claims.reconciling = Claim::yes(problem.reason, &message);
        }
        // What can be had later is said as being on its way.
        Step::SendContents(_) if problem.reason.is_about_a_reference() => {
            if claims.ready.reason == Reason::ApplyingManifests {
                claims.ready = Claim::no(problem.reason, &message);
            }
            claims.manifests = Some(Claim::no(problem.reason, &message));
        }
        _ if matches!(stands, Situation::Running { .. } | Situation::Expired) => {
            claims.reconciling = Claim::yes(problem.reason, &message);
            if matches!(step, Step::ApplyService(_)) {
                claims.endpoints = Some(Claim::no(problem.reason, &message));
            }
        }
        _ => {
            claims.ready = Claim::no(problem.reason, &message);
            claims.reconciling = Claim::yes(problem.reason, &message);
        }
    }
    // These wait for a person, though the operator keeps trying at its slowest.
    let refused = matches!(problem.reason, Reason::PodSecurity | Reason::QuotaExceeded | Reason::HostRefused | Reason::KubeconfigSecretConflict);
    if refused || problem.reason.is_about_a_reference() {
        claims.stalled = Claim::yes(problem.reason, &message);
        claims.reconciling = Claim::no(problem.reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::decide::{ChildKind, decide};
    use crate::plan::notes::notes;
    use crate::plan::observed::{Children, Turn};
    use crate::plan::policy::Policy;
    use crate::plan::settings::{Cleanup, CleanupPolicy, Settings};
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::{AgentFailure, NodeReport, Stage, StageDuration};
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, PodStatus};

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn settled(seen: &Observed) -> KindClusterStatus {
        settle(now(), seen, &Outcome::default())
    }

    fn claim(status: &KindClusterStatus, type_: &str) -> String {
        let condition = conditions::get(&status.conditions, type_).unwrap();
        format!("{} {}", condition.status, condition.reason)
    }

    fn steps(seen: &Observed) -> Vec<&'static str> {
        decide(now(), seen).steps.iter().map(Step::name).collect()
    }

    fn report(stage: Stage) -> AgentReport {
        AgentReport {
            stage,
            stages: vec![StageDuration { stage: Stage::Preflight, milliseconds: 12 }],
            kind_version: Some("v0.33.0".into()),
            load_balancer_cidr: Some("172.31.255.128/26".parse().unwrap()),
            ..AgentReport::default()
        }
    }

    fn serving(nodes_ready: bool) -> AgentReport {
        AgentReport {
            control_plane_ready: true,
            nested_uid: Some("nested".into()),
            server_version: Some("v1.34.4".into()),
            nodes: vec![NodeReport { name: "crane-control-plane".into(), control_plane: true, ready: nodes_ready }],
            ..report(Stage::Serving)
        }
    }

    fn recorded(reason: Reason, count: i32, seconds_ago: i64) -> LastFailure {
        LastFailure {
            reason: reason.as_str().into(),
            message: "it broke.".into(),
            time: Some(Time(Timestamp::from_second(NOW - seconds_ago).unwrap())),
            attempt: 1,
            generation: 1,
            count,
            log_tail: None,
            bundle_ref: None,
        }
    }

    #[test]
    fn the_first_pass_says_every_condition_and_the_second_writes_the_finalizer() {
        let mut seen = testing::observed(testing::cluster("{}"));
        seen.cluster.metadata.finalizers = None;
        assert!(steps(&seen).is_empty());
        assert_eq!(decide(now(), &seen).wake_at, Some(now()));
        let status = settled(&seen);
        assert_eq!(status.conditions.len(), conditions::ALL.len());
        assert_eq!((claim(&status, conditions::READY), status.observed_generation), ("False Pending".into(), Some(1)));

        seen.cluster.status = Some(status.clone());
        assert_eq!(steps(&seen), ["AddFinalizer"]);
        assert_eq!(settled(&seen), status);
    }

    #[test]
    fn creation_makes_what_a_pod_needs_before_the_pod() {
        let seen = testing::observed(testing::cluster("{}"));
        assert_eq!(steps(&seen), ["CreateKeys", "ApplyNetworkPolicy", "ApplyService", "CreatePod"]);
    }

    #[test]
    fn a_volume_that_is_about_to_be_full_is_told_once() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 60);
        seen.report = Some(serving(true));
        let before = settled(&seen);
        assert_eq!(claim(&before, conditions::DISK_PRESSURE), "False StorageSufficient");
        seen.report = Some(AgentReport { storage_pressure: Some(StoragePressure { used_bytes: 9 << 30, limit_bytes: 10 << 30 }), ..serving(true) });
        let after = settled(&seen);
        assert_eq!(claim(&after, conditions::DISK_PRESSURE), "True StorageNearlyFull");
        assert!(conditions::get(&after.conditions, conditions::DISK_PRESSURE).unwrap().message.contains("9216 MiB of 10240 MiB"));
        let told = |before, after| notes(before, after).iter().any(|note| note.warning && note.reason == "StorageNearlyFull");
        assert!(told(&before, &after) && !told(&after, &after));
        // An API server that ends of it is not merely unwell.
        let pressure = seen.report.as_ref().unwrap().storage_pressure;
        seen.cluster.status = Some(after);
        seen.report = Some(AgentReport { control_plane_ready: false, storage_pressure: pressure, ..serving(false) });
        let full = settled(&seen);
        assert_eq!(
            (claim(&full, conditions::READY), claim(&full, conditions::CONTROL_PLANE_READY)),
            ("False StorageNearlyFull".into(), "False StorageNearlyFull".into())
        );
    }

    #[test]
    fn an_api_server_that_does_not_answer_is_told_and_waited_for() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 60);
        seen.report = Some(serving(true));
        seen.cluster.status = Some(settled(&seen));
        seen.report = Some(AgentReport { control_plane_ready: false, ..serving(true) });
        let after = settled(&seen);
        assert_eq!(claim(&after, conditions::CONTROL_PLANE_READY), "False ControlPlaneUnhealthy");
        assert_eq!((claim(&after, conditions::READY), after.last_failure), ("False ControlPlaneUnhealthy".into(), None));
        assert!(!steps(&seen).contains(&"Delete"));
    }

    #[test]
    fn a_dead_container_is_named_and_told_once() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 60);
        seen.report = Some(serving(true));
        let before = settle(now(), &seen, &Outcome { done: decide(now(), &seen).steps, ..Outcome::default() });
        assert_eq!(claim(&before, conditions::READY), "True ClusterReady");
        seen.cluster.status = Some(before.clone());
        let dead = DeadContainer { name: "crane-worker".into(), exit_code: 137, starts: 0 };
        seen.report = Some(AgentReport { dead_containers: vec![dead.clone()], ..serving(true) });
        let after = settled(&seen);
        for (type_, expected) in [
            (conditions::READY, "False NodeContainerDead"),
            (conditions::NODES_READY, "False NodeContainerDead"),
            (conditions::CONTROL_PLANE_READY, "True ApiServerReady"),
            (conditions::STALLED, "False NotStalled"),
        ] {
            assert_eq!(claim(&after, type_), expected, "{type_}");
        }
        let message = &conditions::get(&after.conditions, conditions::READY).unwrap().message;
        assert!(message.starts_with("crane-worker ended with exit code 137 and is started again. "), "{message}");
        let told = |before, after| notes(before, after).iter().filter(|note| note.warning && note.reason == "NodeContainerDead").count();
        assert_eq!((told(&before, &after), told(&after, &after)), (1, 0));
        // Where it takes the API server with it, that is the reason.
        let dead = vec![DeadContainer { starts: 2, ..dead }];
        seen.report = Some(AgentReport { dead_containers: dead, control_plane_ready: false, ..serving(true) });
        let after = settled(&seen);
        assert_eq!(claim(&after, conditions::CONTROL_PLANE_READY), "False NodeContainerDead");
        assert!(conditions::get(&after.conditions, conditions::READY).unwrap().message.contains("was started again 2 time(s)"));
    }

    /// A cluster that was deleted `seconds` ago, its pod still there.
    fn deleted(seconds: i64, policy: CleanupPolicy) -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 3600);
        seen.cluster.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(NOW - seconds).unwrap()));
        let settings = Settings { cleanup: Cleanup { policy, ..Cleanup::default() }, ..testing::settings() };
        seen.settings = std::sync::Arc::new(settings);
        seen
    }

    #[test]
    fn an_end_that_cannot_be_seen_is_told_and_waited_for() {
        let mut seen = deleted(599, CleanupPolicy::Wait);
        assert_eq!(claim(&settled(&seen), conditions::DELETING), "True DeletingCluster");
        seen = deleted(600, CleanupPolicy::Wait);
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::DELETING), "True CleanupUnverified");
        assert_eq!(
            (claim(&status, conditions::STALLED), claim(&status, conditions::READY)),
            ("True CleanupUnverified".into(), "False CleanupUnverified".into())
        );
        assert!(conditions::get(&status.conditions, conditions::DELETING).unwrap().message.contains("Pod c-crane-"));
        assert!(notes(&seen.status(), &status).iter().any(|note| note.warning && note.reason == "CleanupUnverified"));
        seen.cluster.status = Some(status);
        assert!(!steps(&seen).contains(&"RemoveFinalizer"));
    }

    #[test]
    fn an_abandoned_cluster_is_let_go_after_it_was_told() {
        let mut seen = deleted(600, CleanupPolicy::Abandon);
        assert!(!steps(&seen).contains(&"RemoveFinalizer"));
        seen.cluster.status = Some(settled(&seen));
        assert_eq!(steps(&seen).last(), Some(&"RemoveFinalizer"));
        // A list that is not complete would be no reason; time alone is.
        seen.cluster.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(NOW - 10).unwrap()));
        assert!(!steps(&seen).contains(&"RemoveFinalizer"));
    }

    #[test]
    fn a_cache_without_a_pod_decides_nothing() {
        let mut seen = testing::observed(testing::cluster("{}"));
        seen.children.live = false;
        assert_eq!(steps(&seen), Vec::<&str>::new());
        assert_eq!(settled(&seen), seen.status());
    }

    #[test]
    fn who_waits_is_told_how_many_are_before() {
        let mut seen = testing::observed(testing::cluster("{}"));
        seen.turn = Turn::Queued { before: 3 };
        let status = settled(&seen);
        assert_eq!((claim(&status, conditions::READY), claim(&status, conditions::RECONCILING)), ("False Queued".into(), "True Queued".into()));
        assert!(conditions::get(&status.conditions, conditions::READY).unwrap().message.starts_with("3 cluster(s)"));
    }

    #[test]
    fn an_impossible_spec_stalls_with_its_remedy_and_makes_nothing() {
        let seen = testing::observed(testing::cluster("{config: {networking: {apiServerPort: 6443}}}"));
        assert!(steps(&seen).is_empty());
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::STALLED), "True ConfigFieldOwned");
        assert!(conditions::get(&status.conditions, conditions::READY).unwrap().message.ends_with(Reason::ConfigFieldOwned.remedy()));
    }

    fn under(policy: &str, seen: &Observed) -> Observed {
        let settings = Settings { policy: Policy::parse(policy).unwrap(), ..testing::settings() };
        Observed { settings: std::sync::Arc::new(settings), ..seen.clone() }
    }

    #[test]
    fn what_the_policy_forbids_is_not_made() {
        let seen = testing::observed(testing::cluster("{image: evil/node}"));
        let seen = under(r#"{"allowedImages": ["kindest/node"]}"#, &seen);
        assert!(steps(&seen).is_empty());
        let status = settled(&seen);
        assert_eq!((claim(&status, conditions::STALLED), claim(&status, conditions::READY)), ("True PolicyViolation".into(), "False PolicyViolation".into()));
        let message = &conditions::get(&status.conditions, conditions::READY).unwrap().message;
        assert!(message.contains("evil/node") && message.ends_with(Reason::PolicyViolation.remedy()), "{message}");
        assert_eq!(steps(&under("{}", &seen)).last(), Some(&"CreatePod"), "a wider policy mends it");
        let mut mended = seen;
        mended.cluster.spec.image = None;
        assert_eq!(steps(&mended).last(), Some(&"CreatePod"), "so does another spec");
    }

    #[test]
    fn a_tighter_policy_ends_no_cluster_but_says_so() {
        let narrow =
            [(r#"{"allowedImages": ["other"]}"#, "False PolicyViolation"), (r#"{"requiredNodeSelector": {"pool": "kind"}}"#, "False RecreateRequired")];
        for (policy, expected) in narrow {
            let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
            seen.report = Some(serving(true));
            let seen = under(policy, &seen);
            assert_eq!(steps(&seen), ["PublishKubeconfig"], "it is served as before");
            let outcome = Outcome { done: decide(now(), &seen).steps, ..Outcome::default() };
            let status = settle(now(), &seen, &outcome);
            assert_eq!((claim(&status, conditions::READY), claim(&status, conditions::UP_TO_DATE)), ("True ClusterReady".into(), expected.into()));
        }
    }

    #[test]
    fn an_attempt_under_way_is_not_ended_by_a_tighter_policy() {
        let seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        let seen = under(r#"{"allowedImages": ["other"]}"#, &seen);
        assert_eq!(steps(&seen), Vec::<&str>::new());
        assert_eq!(claim(&settled(&seen), conditions::UP_TO_DATE), "False PolicyViolation");
    }

    #[test]
    fn progress_is_kinds_own_steps() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 10);
        assert_eq!(claim(&settled(&seen), conditions::READY), "False PodPending");
        seen.report = Some(report(Stage::StartingControlPlane));
        let status = settled(&seen);
        assert_eq!((claim(&status, conditions::READY), claim(&status, conditions::HOST_READY)), ("False StartingControlPlane".into(), "True HostFit".into()));
        assert_eq!((status.attempt, status.stages.len(), status.kind_version.as_deref()), (Some(1), 1, Some("v0.33.0")));
        assert_eq!(status.load_balancer_cidrs, ["172.31.255.128/26"]);
    }

    #[test]
    fn a_ready_control_plane_publishes_and_then_waits_for_its_nodes() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.report = Some(serving(false));
        assert_eq!(steps(&seen), ["PublishKubeconfig"]);
        let plan = decide(now(), &seen);
        let status = settle(
            now(),
            &seen,
            &Outcome {
                done: plan.steps,
                credentials_end: [("crane-kubeconfig".to_owned(), Timestamp::from_second(NOW + 31_536_000).unwrap())].into(),
                ..Outcome::default()
            },
        );
        assert_eq!(claim(&status, conditions::CONTROL_PLANE_READY), "True ApiServerReady");
        assert_eq!(claim(&status, conditions::KUBECONFIG_PUBLISHED), "True Published");
        assert_eq!((claim(&status, conditions::READY), status.nodes_ready.as_deref()), ("False WaitingForNodes".into(), Some("0/1")));
        assert_eq!((status.cluster_uid.as_deref(), status.cluster_attempt, status.ready_time.clone()), (Some("nested"), Some(1), None));

        seen.cluster.status = Some(status.clone());
        seen.report = Some(serving(true));
        assert!(steps(&seen).is_empty());
        let after = settled(&seen);
        assert_eq!((claim(&after, conditions::READY), claim(&after, conditions::RECONCILING)), ("True ClusterReady".into(), "False Settled".into()));
        assert!(after.ready_time.is_some());
        let told: Vec<&str> = notes(&status, &after).iter().map(|note| note.reason).collect();
        assert_eq!(told, ["Ready"]);
        assert_eq!(notes(&after, &after), []);
    }

    #[test]
    fn a_cluster_that_is_ready_no_longer_says_so_once() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.report = Some(serving(true));
        let plan = decide(now(), &seen);
        let ready = settle(now(), &seen, &Outcome { done: plan.steps, ..Outcome::default() });
        seen.cluster.status = Some(ready.clone());
        let told = |before: &KindClusterStatus, after: &KindClusterStatus| -> Vec<(bool, &str)> {
            notes(before, after).iter().map(|note| (note.warning, note.reason)).collect()
        };
        let mut deleted = seen.clone();
        deleted.cluster.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(told(&ready, &settled(&deleted)), [(false, "Deleting")]);
        seen.report = Some(serving(false));
        let after = settled(&seen);
        assert_eq!(told(&ready, &after), [(true, "WaitingForNodes")]);
        assert_eq!(told(&after, &after), []);
    }

    #[test]
    fn an_operator_that_has_just_started_keeps_what_was_said() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.report = Some(serving(true));
        let plan = decide(now(), &seen);
        let ready = settle(now(), &seen, &Outcome { done: plan.steps, ..Outcome::default() });
        seen.cluster.status = Some(ready.clone());
        seen.report = None;
        let after = settled(&seen);
        assert_eq!(after.conditions, ready.conditions);
    }

    #[test]
    fn a_failed_attempt_is_recorded_before_its_pod_goes() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.report = Some(AgentReport {
            failure: Some(AgentFailure { reason: Reason::KubeadmInitFailed, message: "no luck".into(), log_tail: "the last line".into() }),
            ..report(Stage::Failed)
        });
        assert!(steps(&seen).is_empty());
        let status = settled(&seen);
        let failure = status.last_failure.clone().unwrap();
        assert_eq!((failure.reason.as_str(), failure.attempt, failure.count, failure.log_tail.as_deref()), ("KubeadmInitFailed", 1, 1, Some("the last line")));
        assert_eq!(claim(&status, conditions::READY), "False KubeadmInitFailed");
        seen.cluster.status = Some(status);
        assert_eq!(steps(&seen), ["Delete"]);
    }

    #[test]
    fn attempts_are_spaced_and_bounded() {
        let mut seen = testing::observed(testing::cluster("{lifecycle: {backoffLimit: 1}}"));
        let mut status = KindClusterStatus { attempt: Some(1), last_failure: Some(recorded(Reason::KindFailed, 1, 3)), ..KindClusterStatus::default() };
        seen.cluster.status = Some(status.clone());
        let plan = decide(now(), &seen);
        assert!(plan.steps.is_empty());
        assert_eq!(plan.wake_at, Some(Timestamp::from_second(NOW + 7).unwrap()));
        status.last_failure = Some(recorded(Reason::KindFailed, 1, 11));
        seen.cluster.status = Some(status.clone());
        assert_eq!(steps(&seen).last(), Some(&"CreatePod"));
        status.last_failure = Some(recorded(Reason::KindFailed, 2, 1000));
        seen.cluster.status = Some(status);
        assert!(steps(&seen).is_empty());
        assert_eq!(claim(&settled(&seen), conditions::STALLED), "True KindFailed");
        // A mended spec starts anew.
        seen.cluster.metadata.generation = Some(2);
        assert_eq!(steps(&seen).last(), Some(&"CreatePod"));
    }

    #[test]
    fn a_pod_that_takes_too_long_says_what_it_waited_for() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{lifecycle: {creationTimeout: 1m}}")), 61);
        seen.report = Some(report(Stage::WaitingForControlPlane));
        let failure = settled(&seen).last_failure.unwrap();
        assert_eq!(failure.reason, "CreationTimeout");
        assert!(failure.message.contains("still at WaitingForControlPlane"), "{}", failure.message);
    }

    #[test]
    fn an_agent_that_never_answers_is_told_from_one_that_has_just_started() {
        for (age, expected) in [(5, "False Progressing"), (61, "False AgentUnreachable")] {
            let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 90);
            let started_at = Some(Time(Timestamp::from_second(NOW - age).unwrap()));
            let running = ContainerState { running: Some(ContainerStateRunning { started_at }), ..Default::default() };
            seen.children.pods[0].status = Some(PodStatus {
                phase: Some("Running".into()),
                container_statuses: Some(vec![ContainerStatus { state: Some(running), ..Default::default() }]),
                ..Default::default()
            });
            assert_eq!(claim(&settled(&seen), conditions::READY), expected);
        }
    }

    #[test]
    fn how_a_pod_ended_is_understood() {
        let ended = |reason: Option<&str>, message: Option<&str>, pod_reason: Option<&str>| {
            let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
            seen.children.pods[0].status = Some(PodStatus {
                phase: Some("Failed".into()),
                reason: pod_reason.map(str::to_owned),
                message: pod_reason.and(message).map(str::to_owned),
                container_statuses: Some(vec![ContainerStatus {
                    state: Some(ContainerState {
                        terminated: Some(ContainerStateTerminated {
                            exit_code: if reason == Some("Completed") { 0 } else { 137 },
                            reason: reason.map(str::to_owned),
                            message: message.map(str::to_owned),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            });
            settled(&seen).last_failure.unwrap().reason
        };
        assert_eq!(ended(Some("OOMKilled"), None, None), "OutOfMemory");
        assert_eq!(ended(Some("Error"), Some("not json"), None), "AgentCrashed");
        assert_eq!(ended(Some("Completed"), None, None), "PodLost");
        assert_eq!(ended(Some("Error"), Some(r#"{"reason":"InotifyLimitTooLow","message":"128"}"#), None), "InotifyLimitTooLow");
        assert_eq!(ended(Some("Error"), Some("Usage of EmptyDir volume \"data\" exceeds the limit"), Some("Evicted")), "StorageEvicted");
    }

    #[test]
    fn a_lost_cluster_is_replaced_or_mourned_but_never_silently() {
        for (policy, expected) in [("Recreate", Some(&"CreatePod")), ("Fail", None)] {
            let mut seen = testing::observed(testing::cluster(&format!("{{lifecycle: {{podLossPolicy: {policy}}}}}")));
            let pod_ref = PodRef { name: "gone".into(), ..PodRef::default() };
            let established = KindClusterStatus {
                attempt: Some(1),
                cluster_attempt: Some(1),
                cluster_uid: Some("old".into()),
                pod_ref: Some(pod_ref),
                ..KindClusterStatus::default()
            };
            seen.cluster.status = Some(established.clone());
            let lost = settled(&seen);
            assert_eq!(lost.last_failure.as_ref().unwrap().reason, "PodLost");
            assert_eq!(notes(&established, &lost)[0].reason, "PodLost");
            seen.cluster.status = Some(lost.clone());
            assert_eq!(steps(&seen).last(), expected, "{policy}");
            if policy == "Fail" {
                assert_eq!(claim(&settled(&seen), conditions::STALLED), "True PodLost");
            }
            let replaced = KindClusterStatus { cluster_uid: Some("new".into()), cluster_attempt: Some(2), ..lost.clone() };
            assert_eq!(notes(&lost, &replaced)[0].reason, "ClusterReplaced");
        }
    }

    const RESUMES: &str = "{storage: {type: Persistent}, lifecycle: {podLossPolicy: Resume, backoffLimit: 0}}";

    /// A cluster of attempt 1 whose pod is gone, with that on record.
    fn lost() -> Observed {
        let mut seen = testing::observed(testing::cluster(RESUMES));
        let pod_ref = Some(PodRef { name: "gone".into(), ..PodRef::default() });
        let (attempt, cluster_attempt, cluster_uid) = (Some(1), Some(1), Some("nested".into()));
        seen.cluster.status = Some(KindClusterStatus { cluster_uid, cluster_attempt, attempt, pod_ref, ..KindClusterStatus::default() });
        seen.cluster.status = Some(settled(&seen));
        seen
    }

    /// The same with its next pod.
    fn coming_back() -> Observed {
        let mut seen = lost();
        let pod = decide(now(), &seen).steps.into_iter().find_map(|step| if let Step::CreatePod(pod) = step { Some(*pod) } else { None });
        let mut pod = pod.unwrap();
        pod.metadata.uid = Some("second".into());
        pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(NOW - 20).unwrap()));
        let around = testing::with_pod(seen.clone(), 20).children;
        seen.children = Children { pods: vec![pod], ..around };
        seen
    }

    #[test]
    fn a_cluster_that_is_to_survive_is_brought_back_and_announced() {
        let seen = lost();
        assert_eq!(seen.status().last_failure.unwrap().reason, "PodLost");
        assert_eq!(claim(&settled(&seen), conditions::RECONCILING), "True Resuming");

        let mut seen = coming_back();
        assert!(resumes(&seen.children.pods[0]));
        for stage in [None, Some(Stage::Preflight), Some(Stage::Resuming), Some(Stage::WaitingForControlPlane)] {
            seen.report = stage.map(report);
            let status = settled(&seen);
            assert_eq!((claim(&status, conditions::RECONCILING), claim(&status, conditions::READY)), ("True Resuming".into(), "False Resuming".into()));
            assert_eq!((status.attempt, status.cluster_attempt, status.cluster_uid.as_deref()), (Some(2), Some(1), Some("nested")));
        }
        let before = settled(&seen);
        seen.report = Some(serving(true));
        let plan = decide(now(), &seen);
        let after = settle(now(), &seen, &Outcome { done: plan.steps, ..Outcome::default() });
        assert_eq!(
            (claim(&after, conditions::READY), after.cluster_attempt, after.cluster_uid.as_deref()),
            ("True ClusterReady".into(), Some(2), Some("nested"))
        );
        let told: Vec<&str> = notes(&before, &after).iter().map(|note| note.reason).collect();
        assert!(told.contains(&"ClusterResumed") && !told.contains(&"ClusterReplaced"), "{told:?}");
    }

    #[test]
    fn what_hinders_a_return_keeps_its_name() {
        let mut seen = coming_back();
        seen.children.pods[0].status =
            serde_json::from_str(r#"{"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}"#).unwrap();
        assert_eq!(claim(&settled(&seen), conditions::READY), "False Unschedulable");
    }

    #[test]
    fn a_cluster_that_does_not_come_back_is_never_replaced() {
        let mut seen = coming_back();
        seen.report = Some(AgentReport {
            failure: Some(AgentFailure { reason: Reason::ResumeFailed, message: "it does not come back".into(), log_tail: String::new() }),
            ..report(Stage::Failed)
        });
        seen.cluster.status = Some(settled(&seen));
        seen.children = Children { live: true, claims: seen.children.claims, ..Children::default() };
        seen.report = None;
        assert_eq!(steps(&seen), Vec::<&str>::new());
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::STALLED), "True ResumeFailed");
        let message = &conditions::get(&status.conditions, conditions::STALLED).unwrap().message;
        assert!(message.contains(Reason::ResumeFailed.remedy()) && message.ends_with("still on its volume."), "{message}");
        let next = |seen: &Observed| decide(now(), seen).steps.into_iter().find_map(|step| if let Step::CreatePod(pod) = step { Some(pod) } else { None });
        // A change tries again; only giving the cluster up begins anew.
        seen.cluster.metadata.generation = Some(2);
        assert!(resumes(&next(&seen).unwrap()));
        seen.cluster.spec.lifecycle.as_mut().unwrap().pod_loss_policy = None;
        let pod = next(&seen).unwrap();
        assert!(!resumes(&pod));
        seen.children.pods = vec![*pod];
        for created in [NOW - 20, NOW - 3600] {
            seen.children.pods[0].metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
            let begun = settled(&seen);
            assert_eq!((begun.attempt, begun.cluster_attempt), (Some(3), None), "there is nothing left to come back to");
        }
    }

    #[test]
    fn a_pod_that_is_taken_away_while_it_brings_a_cluster_back_is_not_counted() {
        let mut seen = coming_back();
        seen.cluster.status = Some(settled(&seen));
        seen.children = Children { live: true, claims: seen.children.claims, ..Children::default() };
        let failure = settled(&seen).last_failure.unwrap();
        assert_eq!((failure.reason.as_str(), failure.attempt, failure.count), ("PodLost", 2, 0));
        seen.cluster.status = Some(settled(&seen));
        let plan = decide(now(), &seen);
        assert_eq!((plan.steps.len(), plan.wake_at), (0, Some(Timestamp::from_second(NOW + 10).unwrap())));
    }

    #[test]
    fn what_a_cluster_that_came_back_was_not_made_with_is_still_named() {
        let mut seen = coming_back();
        seen.report = Some(AgentReport { outdated: vec!["image".into()], ..serving(true) });
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::UP_TO_DATE), "False RecreateRequired");
        assert!(conditions::get(&status.conditions, conditions::UP_TO_DATE).unwrap().message.contains("image"));
        // Until it is heard again, that stands.
        seen.cluster.status = Some(status);
        seen.report = None;
        assert_eq!(claim(&settled(&seen), conditions::UP_TO_DATE), "False RecreateRequired");
    }

    #[test]
    fn an_edit_replaces_an_attempt_but_not_a_cluster() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.cluster.spec.image = Some("other:v1.33.0".into());
        seen.cluster.metadata.generation = Some(2);
        assert_eq!(steps(&seen), ["Delete"]);
        seen.report = Some(serving(true));
        assert_eq!(steps(&seen), ["PublishKubeconfig"]);
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::UP_TO_DATE), "False RecreateRequired");
        assert!(conditions::get(&status.conditions, conditions::UP_TO_DATE).unwrap().message.contains("image"));
    }

    #[test]
    fn a_node_port_has_an_external_endpoint() {
        let seen = testing::with_pod(testing::observed(testing::cluster("access: {service: {type: NodePort}}")), 5);
        let urls: Vec<String> = settled(&seen).endpoints.into_iter().map(|endpoint| endpoint.url).collect();
        assert_eq!(urls, [format!("https://{}.clusters.svc:6443", seen.identity.child()), "https://172.18.0.2:31000".to_owned()]);
    }

    #[rstest::rstest]
    #[case(PolicyProbe::Pending, "Unknown Pending", None)]
    #[case(PolicyProbe::Blocked, "True ProbeBlocked", None)]
    #[case(PolicyProbe::Open, "False NotEnforced", Some("NotEnforced"))]
    #[case(PolicyProbe::Unknown, "Unknown ProbeInconclusive", None)]
    fn whether_policies_are_enforced_is_what_the_pod_could_not_do(#[case] policy_probe: PolicyProbe, #[case] expected: &str, #[case] event: Option<&str>) {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 5);
        let before = settled(&seen);
        assert_eq!(claim(&before, conditions::NETWORK_POLICY_ENFORCED), "Unknown Pending");
        for stage in [Stage::Dockerd, Stage::Serving] {
            seen.report = Some(AgentReport { policy_probe, ..if stage == Stage::Serving { serving(true) } else { report(stage) } });
            let after = settled(&seen);
            assert_eq!(claim(&after, conditions::NETWORK_POLICY_ENFORCED), expected);
            assert_eq!(is_policy_unproven(&after), policy_probe == PolicyProbe::Pending);
            let told = notes(&before, &after).into_iter().find(|note| note.reason == "NotEnforced");
            assert_eq!(told.as_ref().map(|note| note.reason), event);
            assert!(told.is_none_or(|note| note.warning && note.message.contains("egress guard")));
        }
        seen.children = Children { live: true, ..Children::default() };
        assert_eq!(claim(&settled(&seen), conditions::NETWORK_POLICY_ENFORCED), "Unknown NoPod");
    }

    #[test]
    fn paused_writes_nothing_but_that() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{paused: true}")), 5);
        seen.cluster.metadata.deletion_timestamp = Some(Time(now()));
        assert!(steps(&seen).is_empty());
        let status = settled(&seen);
        assert_eq!((claim(&status, conditions::PAUSED), claim(&status, conditions::READY)), ("True Paused".into(), "Unknown Paused".into()));
    }

    #[test]
    fn deletion_says_what_is_left_and_goes_last() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 5);
        seen.cluster.metadata.deletion_timestamp = Some(Time(now()));
        for meta in [&mut seen.children.services[0].metadata, &mut seen.children.policies[0].metadata] {
            meta.uid = Some("uid".into());
        }
        assert_eq!(steps(&seen), ["Delete", "Delete", "Delete", "Delete"]);
        let message = conditions::get(&settled(&seen).conditions, conditions::DELETING).unwrap().message.clone();
        assert!(message.contains("Pod c-crane"), "{message}");
        seen.children = Children::default();
        assert!(steps(&seen).is_empty(), "an empty cache proves nothing");
        seen.children.live = true;
        assert_eq!(steps(&seen), ["RetractKubeconfig", "RemoveFinalizer"]);
    }

    const PERSISTENT: &str = "storage: {type: Persistent, storageClassName: fast}";

    #[test]
    fn a_volume_is_claimed_before_the_pod_and_again_for_the_next_if_it_is_to_be_larger() {
        let all = ["CreateKeys", "ApplyNetworkPolicy", "ApplyService", "ApplyVolumeClaim", "CreatePod"];
        let mut seen = testing::observed(testing::cluster(PERSISTENT));
        assert_eq!(steps(&seen), all);
        seen.children.claims = testing::with_pod(seen.clone(), 5).children.claims;
        assert_eq!(steps(&seen), ["CreateKeys", "ApplyNetworkPolicy", "ApplyService", "CreatePod"]);
        seen.cluster.spec.storage.as_mut().unwrap().size = Some("40Gi".into());
        assert_eq!(steps(&seen), all);
        // One that goes keeps its name for so long.
        seen.children.claims[0].metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(steps(&seen), Vec::<&str>::new());
    }

    #[test]
    fn a_claim_that_was_taken_away_comes_back_for_a_pod_that_waits_but_not_under_a_cluster() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(PERSISTENT)), 20);
        assert_eq!(steps(&seen), Vec::<&str>::new());
        seen.children.claims.clear();
        assert_eq!(steps(&seen), ["ApplyVolumeClaim"]);
        seen.report = Some(serving(true));
        assert_eq!(steps(&seen), ["PublishKubeconfig"]);
    }

    #[test]
    fn a_pod_without_its_volume_says_so() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(PERSISTENT)), 20);
        assert_eq!(claim(&settled(&seen), conditions::READY), "False PodPending", "a claim may wait for its pod");
        let refused = r#"{"conditions": [{"type": "PodScheduled", "status": "False", "message": "pod has unbound immediate PersistentVolumeClaims"}]}"#;
        seen.children.pods[0].status = serde_json::from_str(refused).unwrap();
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::READY), "False VolumePending");
        let message = &conditions::get(&status.conditions, conditions::READY).unwrap().message;
        assert!(message.contains(&seen.identity.volume_claim()) && message.ends_with(Reason::VolumePending.remedy()), "{message}");
        seen.children.claims[0].status = serde_json::from_str(r#"{"phase": "Lost"}"#).unwrap();
        assert_eq!(claim(&settled(&seen), conditions::READY), "False VolumeLost");
        seen.children.pods[0].status = None;
        seen.children.pods[0].spec.as_mut().unwrap().node_name = Some("crane-1".into());
        assert_eq!(claim(&settled(&seen), conditions::READY), "False PodPending", "a node has taken it");
    }

    #[test]
    fn a_volume_goes_after_the_pod_and_is_seen_to_be_gone() {
        let deleted = |seconds: i64| {
            let mut seen = testing::with_pod(testing::observed(testing::cluster(PERSISTENT)), 3600);
            seen.cluster.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(NOW - seconds).unwrap()));
            seen
        };
        let goes = |seen: &Observed| {
            let kinds = decide(now(), seen).steps.into_iter().filter_map(|step| if let Step::Delete(child) = step { Some(child.kind) } else { None });
            kinds.collect::<Vec<_>>().contains(&ChildKind::VolumeClaim)
        };
        let mut seen = deleted(10);
        assert!(!goes(&seen));
        let alone = Children { live: true, claims: seen.children.claims.clone(), ..Children::default() };
        seen.children = alone.clone();
        assert!(goes(&seen));
        assert!(!steps(&seen).contains(&"RemoveFinalizer"));
        // Nobody waits for the pod any longer.
        assert!(goes(&deleted(600)));
        seen = Observed { children: alone, ..deleted(600) };
        let status = settled(&seen);
        assert_eq!(claim(&status, conditions::DELETING), "True CleanupUnverified");
        let message = &conditions::get(&status.conditions, conditions::DELETING).unwrap().message;
        assert!(message.contains(&format!("PersistentVolumeClaim {}", seen.identity.volume_claim())), "{message}");
    }

    const LOGIN: &str = "registries: [{host: r.example, credentialsSecretRef: {name: login}}]";

    #[test]
    fn what_registries_want_to_see_is_read_before_the_pod_and_every_hour() {
        let seen = testing::observed(testing::cluster(LOGIN));
        assert_eq!(steps(&seen), ["CreateKeys", "ApplyNetworkPolicy", "ApplyService", "ApplyRegistries", "CreatePod"]);
        for (age, expected) in [(3599, &[][..]), (3600, &["ApplyRegistries"][..])] {
            let mut seen = testing::with_pod(testing::observed(testing::cluster(LOGIN)), age);
            seen.report = Some(serving(true));
            let published = steps(&seen);
            assert_eq!(published[..1], ["PublishKubeconfig"], "what is the user's own comes last");
            assert_eq!(&published[1..], expected, "{age}");
        }
    }

    #[test]
    fn a_cluster_keeps_the_registries_it_was_made_with() {
        for changed in ["{}", "registries: [{host: other.example, credentialsSecretRef: {name: login}}]"] {
            let mut seen = testing::with_pod(testing::observed(testing::cluster(LOGIN)), 7200);
            seen.report = Some(serving(true));
            seen.cluster.spec = testing::cluster(changed).spec;
            assert_eq!(steps(&seen), ["PublishKubeconfig"], "{changed}");
            let status = settled(&seen);
            assert_eq!(claim(&status, conditions::UP_TO_DATE), "False RecreateRequired", "{changed}");
        }
    }

    #[test]
    fn credentials_do_not_outlive_their_use() {
        let mut seen = testing::observed(testing::cluster(LOGIN));
        let copy = testing::registries_read(&seen, NOW);
        seen.children.keys.push(copy);
        seen.cluster.spec = testing::cluster("{}").spec;
        assert_eq!(steps(&seen), ["CreateKeys", "ApplyNetworkPolicy", "ApplyService", "Delete", "CreatePod"]);
    }

    #[test]
    fn a_secret_that_may_not_be_read_stalls_a_new_cluster_and_leaves_a_running_one_ready() {
        let failed = |seen: &Observed| {
            let step = decide(now(), seen).steps.into_iter().find(|step| step.name() == "ApplyRegistries").unwrap();
            let Step::ApplyRegistries(plan) = &step else { panic!("{step:?}") };
            let problem = plan.references.denied("Secret", "login");
            settle(now(), seen, &Outcome { failed: Some((step, problem)), ..Outcome::default() })
        };
        let status = failed(&testing::observed(testing::cluster(LOGIN)));
        assert_eq!(
            (claim(&status, conditions::READY), claim(&status, conditions::STALLED)),
            ("False SecretAccessDenied".into(), "True SecretAccessDenied".into())
        );
        assert!(conditions::get(&status.conditions, conditions::READY).unwrap().message.contains("kubectl create rolebinding"));

        let mut seen = testing::with_pod(testing::observed(testing::cluster(LOGIN)), 7200);
        seen.report = Some(serving(true));
        let plan = decide(now(), &seen);
        let ready = settle(now(), &seen, &Outcome { done: plan.steps.into_iter().take(1).collect(), ..Outcome::default() });
        seen.cluster.status = Some(ready);
        let status = failed(&seen);
        assert_eq!((claim(&status, conditions::READY), claim(&status, conditions::STALLED)), ("True ClusterReady".into(), "True SecretAccessDenied".into()));
    }

    #[test]
    fn a_foreign_secret_is_named_and_left_alone() {
        let mut seen = testing::with_pod(testing::observed(testing::cluster("{}")), 20);
        seen.report = Some(serving(true));
        let step = decide(now(), &seen).steps.remove(0);
        let problem = Problem::new(Reason::KubeconfigSecretConflict, "Secret crane-kubeconfig belongs to somebody else");
        let status = settle(now(), &seen, &Outcome { failed: Some((step, problem)), ..Outcome::default() });
        assert_eq!(claim(&status, conditions::KUBECONFIG_PUBLISHED), "False KubeconfigSecretConflict");
        assert_eq!(
            (claim(&status, conditions::READY), claim(&status, conditions::STALLED)),
            ("False KubeconfigSecretConflict".into(), "True KubeconfigSecretConflict".into())
        );
        assert_eq!(claim(&status, conditions::CONTROL_PLANE_READY), "True ApiServerReady");
    }
}
