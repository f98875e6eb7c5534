//! Whether a cluster runs: what its agent is to be told, and what is said about it.

use super::observed::Observed;
use super::situation::is_established;
use super::wire::OrdersReport;
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, PowerState};

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

/// What the condition `Suspended` says of a cluster that runs or did; `None`: as it was said last.
pub fn claim(seen: &Observed) -> Option<Claim> {
    let report = seen.report.as_ref()?;
    let asked = asked(seen);
    let Some(orders) = &report.orders else {
        return Some(if asked == PowerState::Running { not_suspended() } else { Claim::no(Reason::AgentOutdated, Reason::AgentOutdated.explain("")) });
    };
    let (wanted, actual) = (wanted(seen), orders.carried_out.power);
    let suspended = actual != PowerState::Running;
    if wanted != actual {
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
