//! Whether a cluster runs: what its agent is to be told, and what is said about it.

use super::observed::Observed;
use super::situation::is_established;
use super::wire::OrdersReport;
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, PodLossPolicy, PowerState, StorageType};

/// What the spec asks for.
fn asked(seen: &Observed) -> PowerState {
    seen.cluster.spec.power_state.unwrap_or_default()
}

/// Whether this cluster has been ready: nothing is suspended before.
fn has_been_ready(seen: &Observed) -> bool {
    let status = seen.status();
    let attempt = seen.children.current_pod().map(super::objects::attempt_of);
    status.ready_time.is_some() && attempt.is_some_and(|attempt| is_established(&status, attempt))
}

/// Whether freezing would leave processes that cannot be killed, and nobody has agreed to that.
fn cannot_freeze(seen: &Observed) -> bool {
    // A host that is not known counts as the worse one.
    let v1 = seen.report.as_ref().and_then(|report| report.cgroup_v1).unwrap_or(true);
    v1 && !seen.settings.allow_freeze_on_cgroup_v1
}

/// What the agent is to be told.
pub fn wanted(seen: &Observed) -> PowerState {
    match asked(seen) {
        PowerState::Frozen if cannot_freeze(seen) => PowerState::Running,
        _ if !has_been_ready(seen) => PowerState::Running,
        asked => asked,
    }
}

/// The state in which a cluster is, as its agent says.
pub fn actual(seen: &Observed) -> Option<PowerState> {
    Some(orders(seen)?.carried_out.power)
}

fn orders(seen: &Observed) -> Option<&OrdersReport> {
    seen.report.as_ref()?.orders.as_ref()
}

/// Whether a cluster has stopped, as asked for and on record, and comes back from its volume: then its pod is of no use.
pub fn needs_no_pod(seen: &Observed) -> bool {
    let spec = &seen.cluster.spec;
    let persistent = spec.storage.as_ref().is_some_and(|storage| storage.type_ == StorageType::Persistent);
    let resumes = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pod_loss_policy) == Some(PodLossPolicy::Resume);
    let status = seen.status();
    let stopped = status.power_state == Some(PowerState::Stopped) && rests(&status);
    // Its agent may have news.
    let agrees = orders(seen).is_none_or(|orders| orders.carried_out.power == PowerState::Stopped && orders.received.power == PowerState::Stopped);
    asked(seen) == PowerState::Stopped && persistent && resumes && stopped && agrees
}

/// What the condition `Suspended` says of a cluster that runs or did; `None`: as it was said last.
pub fn claim(seen: &Observed) -> Option<Claim> {
    let report = seen.report.as_ref()?;
    let asked = asked(seen);
    let Some(orders) = &report.orders else {
        return Some(if asked == PowerState::Running { not_suspended() } else { Claim::no(Reason::AgentOutdated, Reason::AgentOutdated.explain("")) });
    };
    let (wanted, actual) = (wanted(seen), orders.carried_out.power);
    let suspended = actual != PowerState::Running;
    // Orders that are about to be undone may still be carried out.
    if wanted != actual || orders.received.power != actual {
        let reason = match wanted {
            PowerState::Running => Reason::Resuming,
            PowerState::Frozen => Reason::Freezing,
            PowerState::Stopped => Reason::Stopping,
        };
        // What was tried before belongs to other orders.
        let failure = orders.failure(Reason::PowerChangeFailed).filter(|_| orders.received.power == wanted);
        let (reason, message) = failure.map_or((reason, reason.explain("")), |failure| (failure.reason, failure.reason.explain(&failure.message)));
        return Some(Claim { status: Some(suspended), reason, message });
    }
    Some(match actual {
        PowerState::Frozen => Claim::yes(Reason::Frozen, Reason::Frozen.explain("")),
        PowerState::Stopped => Claim::yes(Reason::Stopped, Reason::Stopped.explain("")),
        PowerState::Running if asked == PowerState::Running => not_suspended(),
        PowerState::Running if asked == PowerState::Frozen && cannot_freeze(seen) => {
            Claim::no(Reason::FreezeUnsupported, Reason::FreezeUnsupported.explain(""))
        }
        PowerState::Running => not_ready_yet(),
    })
}

/// What the condition says of a cluster that is not there.
pub fn claim_without_cluster(seen: &Observed) -> Claim {
    if asked(seen) == PowerState::Running { not_suspended() } else { not_ready_yet() }
}

/// What the condition says of a cluster that has stopped and has no pod.
pub fn claim_asleep() -> Claim {
    Claim::yes(Reason::Stopped, Reason::Stopped.explain("the cluster is on its volume, without a pod"))
}

fn not_suspended() -> Claim {
    Claim::no(Reason::NotSuspended, "")
}

fn not_ready_yet() -> Claim {
    Claim::no(Reason::SuspendsWhenReady, Reason::SuspendsWhenReady.explain(""))
}

/// What keeps a cluster from being ready: it is suspended, or on its way there or back.
pub fn hindrance(seen: &Observed) -> Option<Claim> {
    let Claim { status, reason, message } = claim(seen)?;
    // An order that failed before anything was changed leaves a cluster that serves.
    let serves = seen.report.as_ref().is_some_and(|report| report.control_plane_ready);
    let hinders = status == Some(true) || is_wanted(reason) || (reason == Reason::PowerChangeFailed && !serves);
    hinders.then(|| Claim::no(reason, message))
}

/// Whether this is said of a power change as the user wanted it: no failure, and nothing to be warned of.
pub fn is_wanted(reason: Reason) -> bool {
    is_rest(reason) || matches!(reason, Reason::Freezing | Reason::Stopping | Reason::Resuming)
}

fn is_rest(reason: Reason) -> bool {
    matches!(reason, Reason::Frozen | Reason::Stopped)
}

/// Whether a cluster is suspended and nothing more is to be done: it is not ready and yet does not move.
pub fn rests(status: &KindClusterStatus) -> bool {
    conditions::get(&status.conditions, conditions::SUSPENDED)
        .is_some_and(|condition| condition.status == "True" && Reason::parse(&condition.reason).is_some_and(is_rest))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::KindCluster;
    use crate::plan::decide::{Step, decide, is_moving};
    use crate::plan::notes::notes;
    use crate::plan::settings::Settings;
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::{AgentFailure, AgentReport, NodeReport, Orders, Stage};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use rstest::rstest;

    const RUNNING: PowerState = PowerState::Running;
    const FROZEN: PowerState = PowerState::Frozen;
    const STOPPED: PowerState = PowerState::Stopped;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn cluster(power: PowerState) -> KindCluster {
        testing::cluster(&format!("{{powerState: {power}}}"))
    }

    /// A cluster that has been ready, whose agent has received and carried out these orders.
    fn seen(asked: PowerState, received: PowerState, carried_out: PowerState) -> Observed {
        let mut seen = testing::with_pod(testing::observed(cluster(asked)), 100);
        let serves = carried_out == RUNNING && received == RUNNING;
        let orders = OrdersReport {
            received: Orders { power: received, ..Orders::default() },
            carried_out: Orders { power: carried_out, ..Orders::default() },
            failures: vec![],
        };
        seen.report = Some(AgentReport {
            attempt: 1,
            stage: Stage::Serving,
            control_plane_ready: serves,
            nodes: vec![NodeReport { name: "n".into(), control_plane: true, ready: serves }],
            cgroup_v1: Some(false),
            orders: Some(orders),
            ..AgentReport::default()
        });
        let status = seen.cluster.status.get_or_insert_default();
        status.cluster_attempt = Some(1);
        status.attempt = Some(1);
        status.ready_time = Some(Time(now()));
        seen
    }

    /// What is ordered in a pass, if anything.
    fn ordered(seen: &Observed) -> Option<PowerState> {
        decide(now(), seen).steps.iter().find_map(|step| match step {
            Step::Order(orders) => Some(orders.power),
            _ => None,
        })
    }

    fn said(status: &KindClusterStatus, type_: &str) -> String {
        let condition = conditions::get(&status.conditions, type_).unwrap();
        format!("{} {}", condition.status, condition.reason)
    }

    fn settled(seen: &Observed) -> KindClusterStatus {
        settle(now(), seen, &Outcome::default())
    }

    #[rstest]
    #[case::told(FROZEN, RUNNING, RUNNING, Some(FROZEN), "False Freezing", "False Freezing", true)]
    #[case::on_the_way(FROZEN, FROZEN, RUNNING, None, "False Freezing", "False Freezing", true)]
    #[case::there(FROZEN, FROZEN, FROZEN, None, "True Frozen", "False Frozen", false)]
    #[case::further(STOPPED, FROZEN, FROZEN, Some(STOPPED), "True Stopping", "False Stopping", true)]
    #[case::stopped(STOPPED, STOPPED, STOPPED, None, "True Stopped", "False Stopped", false)]
    #[case::back(RUNNING, STOPPED, STOPPED, Some(RUNNING), "True Resuming", "False Resuming", true)]
    #[case::on_the_way_back(RUNNING, RUNNING, STOPPED, None, "True Resuming", "False Resuming", true)]
    #[case::back_to_the_start(RUNNING, FROZEN, RUNNING, Some(RUNNING), "False Resuming", "False Resuming", true)]
    fn orders_follow_the_spec_and_conditions_the_agent(
        #[case] asked: PowerState,
        #[case] received: PowerState,
        #[case] carried_out: PowerState,
        #[case] order: Option<PowerState>,
        #[case] suspended: &str,
        #[case] ready: &str,
        #[case] moves: bool,
    ) {
        let seen = seen(asked, received, carried_out);
        assert_eq!(ordered(&seen), order);
        let status = settled(&seen);
        assert_eq!((said(&status, conditions::SUSPENDED).as_str(), said(&status, conditions::READY).as_str()), (suspended, ready));
        assert_eq!(said(&status, conditions::STALLED), "False NotStalled");
        assert_eq!(status.power_state, Some(carried_out));
        assert_eq!(is_moving(&status, true), moves, "an agent is listened to for as long as there is something to hear");
    }

    #[test]
    fn a_cluster_is_ready_first() {
        let mut seen = seen(FROZEN, RUNNING, RUNNING);
        seen.cluster.status.as_mut().unwrap().ready_time = None;
        assert_eq!((ordered(&seen), said(&settled(&seen), conditions::SUSPENDED).as_str()), (None, "False SuspendsWhenReady"));
        // The next attempt as well.
        let status = seen.cluster.status.as_mut().unwrap();
        (status.ready_time, status.cluster_attempt) = (Some(Time(now())), Some(0));
        assert_eq!(ordered(&seen), None);
        seen.report = None;
        seen.children.pods.clear();
        assert_eq!(said(&settled(&seen), conditions::SUSPENDED), "False SuspendsWhenReady");
    }

    #[rstest]
    #[case(Some(true), false, false)]
    #[case(None, false, false)]
    #[case(Some(true), true, true)]
    #[case(Some(false), false, true)]
    fn freezing_on_cgroup_v1_needs_consent(#[case] v1: Option<bool>, #[case] allowed: bool, #[case] freezes: bool) {
        let mut seen = seen(FROZEN, RUNNING, RUNNING);
        seen.report.as_mut().unwrap().cgroup_v1 = v1;
        seen.settings = Arc::new(Settings { allow_freeze_on_cgroup_v1: allowed, ..testing::settings() });
        assert_eq!(ordered(&seen), freezes.then_some(FROZEN));
        if !freezes {
            let before = settled(&self::seen(RUNNING, RUNNING, RUNNING));
            let after = settled(&seen);
            assert_eq!(said(&after, conditions::SUSPENDED), "False FreezeUnsupported");
            assert_ne!(said(&after, conditions::READY), "False FreezeUnsupported", "it goes on as it is");
            assert!(notes(&before, &after).iter().any(|note| note.warning && note.reason == "FreezeUnsupported"));
        }
        // Consent that is taken back lets a frozen cluster run again.
        seen.report.as_mut().unwrap().orders = Some(OrdersReport {
            received: Orders { power: FROZEN, ..Orders::default() },
            carried_out: Orders { power: FROZEN, ..Orders::default() },
            failures: vec![],
        });
        assert_eq!(ordered(&seen), (!freezes).then_some(RUNNING));
    }

    #[test]
    fn a_cluster_that_comes_back_from_its_volume_sleeps_without_a_pod() {
        let spec = "{powerState: Stopped, storage: {type: Persistent}, lifecycle: {podLossPolicy: Resume}}";
        let mut seen = seen(STOPPED, STOPPED, STOPPED);
        seen.cluster.spec = testing::cluster(spec).spec;
        let received = crate::plan::orders::wanted(&seen).unwrap();
        seen.report.as_mut().unwrap().orders = Some(OrdersReport { carried_out: received.clone(), received, failures: vec![] });
        let steps = |seen: &Observed| {
            decide(now(), seen).steps.iter().map(Step::name).filter(|name| ["Delete", "CreatePod", "Order"].contains(name)).collect::<Vec<_>>()
        };
        let pass = |seen: &mut Observed| {
            let before = seen.status();
            let after = settle(now(), seen, &Outcome { done: decide(now(), seen).steps, ..Outcome::default() });
            let warned = notes(&before, &after).iter().any(|note| note.warning);
            assert!(!warned && said(&after, conditions::STALLED) == "False NotStalled", "{after:#?}");
            seen.cluster.status = Some(after);
        };
        // It goes on record first.
        assert_eq!(steps(&seen), Vec::<&str>::new());
        pass(&mut seen);
        assert_eq!(steps(&seen), ["Delete"]);
        pass(&mut seen);
        assert_eq!(seen.status().pod_ref, None);
        for killed_before_the_status in [false, true] {
            let mut seen = seen.clone();
            seen.children.pods.clear();
            seen.report = None;
            if killed_before_the_status {
                seen.cluster.status.as_mut().unwrap().pod_ref = Some(crate::api::PodRef::default());
            }
            for _ in 0..2 {
                assert_eq!(steps(&seen), Vec::<&str>::new());
                pass(&mut seen);
                let status = seen.status();
                assert_eq!((said(&status, conditions::SUSPENDED).as_str(), said(&status, conditions::READY).as_str()), ("True Stopped", "False Stopped"));
                assert_eq!((status.power_state, &status.pod_ref, &status.last_failure), (Some(STOPPED), &None, &None));
            }
            seen.cluster.spec.power_state = None;
            assert_eq!(steps(&seen), ["CreatePod"]);
            assert_eq!(said(&settled(&seen), conditions::SUSPENDED), "False NotSuspended");
        }
        // Another wish keeps the pod.
        seen.cluster.spec.power_state = Some(FROZEN);
        assert_eq!(steps(&seen), ["Order"]);
    }

    #[test]
    fn an_agent_of_an_earlier_release_is_told_nothing() {
        let mut seen = seen(STOPPED, RUNNING, RUNNING);
        seen.report.as_mut().unwrap().orders = None;
        assert_eq!((ordered(&seen), said(&settled(&seen), conditions::SUSPENDED).as_str()), (None, "False AgentOutdated"));
        seen.cluster.spec.power_state = None;
        assert_eq!(said(&settled(&seen), conditions::SUSPENDED), "False NotSuspended");
    }

    #[test]
    fn what_fails_is_told_and_takes_ready_away_only_from_what_does_not_serve() {
        let failing = |asked, carried_out, serves| {
            let mut seen = seen(asked, asked, carried_out);
            let report = seen.report.as_mut().unwrap();
            report.control_plane_ready = serves;
            let failure = AgentFailure { reason: Reason::PowerChangeFailed, message: "Docker says no".into(), log_tail: String::new() };
            report.orders.as_mut().unwrap().failures.push(failure);
            seen
        };
        let status = settled(&failing(FROZEN, RUNNING, true));
        assert_eq!(said(&status, conditions::SUSPENDED), "False PowerChangeFailed");
        assert!(!said(&status, conditions::READY).ends_with("PowerChangeFailed"));
        let status = settled(&failing(RUNNING, STOPPED, false));
        assert_eq!(
            (said(&status, conditions::SUSPENDED).as_str(), said(&status, conditions::READY).as_str()),
            ("True PowerChangeFailed", "False PowerChangeFailed")
        );
        assert!(conditions::get(&status.conditions, conditions::SUSPENDED).unwrap().message.starts_with("Docker says no. "));
        assert!(is_moving(&status, true));
        // It belongs to what was tried, not to what is asked for now.
        let mut other = failing(RUNNING, STOPPED, false);
        other.cluster.spec.power_state = Some(FROZEN);
        assert_eq!(said(&settled(&other), conditions::SUSPENDED), "True Freezing");
    }

    #[test]
    fn what_was_wanted_is_told_once_and_without_a_warning() {
        let told = |before: &KindClusterStatus, after: &KindClusterStatus| {
            let notes = notes(before, after);
            assert!(notes.iter().all(|note| !note.warning), "{notes:?}");
            notes.iter().map(|note| note.reason).collect::<Vec<_>>()
        };
        let mut before = settled(&seen(RUNNING, RUNNING, RUNNING));
        conditions::set(&mut before.conditions, now(), None, conditions::READY, &Claim::yes(Reason::ClusterReady, ""));
        let history = vec![
            seen(FROZEN, RUNNING, RUNNING),
            seen(FROZEN, FROZEN, RUNNING),
            seen(FROZEN, FROZEN, FROZEN),
            seen(RUNNING, RUNNING, FROZEN),
            seen(RUNNING, RUNNING, RUNNING),
        ];
        let mut all = Vec::new();
        for mut step in history {
            let status = std::mem::take(&mut before);
            step.cluster.status = Some(KindClusterStatus { cluster_attempt: Some(1), ready_time: Some(Time(now())), ..status.clone() });
            before = settled(&step);
            all.extend(told(&status, &before));
        }
        assert_eq!(all, ["Freezing", "Frozen", "Resuming", "Resumed"]);
    }

    #[test]
    fn an_operator_that_has_just_started_keeps_what_was_said() {
        let mut seen = seen(FROZEN, FROZEN, FROZEN);
        let before = settled(&seen);
        seen.cluster.status = Some(before.clone());
        seen.report = None;
        assert_eq!(settled(&seen), before);
        assert!(is_moving(&before, false), "and asks");
    }
}
