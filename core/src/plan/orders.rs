//! What a running agent is to be told. Orders are the whole wish at once and follow from the object alone, so that it makes no difference how often
//! they are given, or that an operator was killed in between.

use std::collections::BTreeSet;

use serde_json::Value;

use super::exposure;
use super::observed::Observed;
use super::power;
use super::preload;
use super::serving_names;
use super::users;
use super::wire::{Orders, OrdersReport};
use crate::api::conditions::Claim;
use crate::api::reasons::Reason;
use crate::api::{PodLossPolicy, StorageType, annotations};

/// What the agent of the current pod is to be told; `None` where it takes no orders, or has not been heard yet.
pub fn wanted(seen: &Observed) -> Option<Orders> {
    let report = seen.report.as_ref()?;
    report.orders.as_ref()?;
    Some(Orders {
        power: power::wanted(seen),
        keep: keep(seen),
        cert_sans: serving_names::wanted(seen),
        preload: preload::wanted(seen),
        // An agent that knows nothing of ports would not say that it has received any.
        ports: if report.open_ports.is_some() { exposure::relayed(&seen.cluster) } else { BTreeSet::new() },
        users: users::bound(seen),
    })
}

/// What the agent is to be told now: `None` if it knows all.
pub fn due(seen: &Observed) -> Option<Orders> {
    let wanted = wanted(seen)?;
    let known = seen.report.as_ref()?.orders.as_ref()?;
    (known.received != wanted).then_some(wanted)
}

/// The settings that the current pod was made with: what its agent does without an order.
pub fn made_with(seen: &Observed) -> Option<Value> {
    let settings = seen.children.current_pod()?.metadata.annotations.as_ref()?.get(annotations::SETTINGS)?;
    serde_json::from_str(settings).ok()
}

/// What `UpToDate` says of orders that are not carried out, with why the last try has failed if it was of these (`received`): what was tried before belongs to
/// others.
pub fn outstanding(orders: &OrdersReport, reason: Reason, received: bool) -> Claim {
    let failure = orders.failure(reason).filter(|_| received);
    Claim::no(reason, reason.explain(failure.map_or("", |failure| &failure.message)))
}

/// Whether the cluster is to survive its pod. The policy may have changed since the pod was made.
fn keep(seen: &Observed) -> Option<bool> {
    let spec = &seen.cluster.spec;
    let persistent = spec.storage.as_ref().is_some_and(|storage| storage.type_ == StorageType::Persistent);
    let policy = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pod_loss_policy).unwrap_or_default();
    persistent.then_some(policy == PodLossPolicy::Resume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;
    use crate::plan::wire::{AgentReport, OrdersReport};
    use rstest::rstest;

    #[rstest]
    #[case("{}", None)]
    #[case("{storage: {type: Persistent}}", Some(false))]
    #[case("{storage: {type: Persistent}, lifecycle: {podLossPolicy: Resume}}", Some(true))]
    fn a_cluster_stays_on_its_volume_if_it_is_to_survive_its_pod(#[case] spec: &str, #[case] keep: Option<bool>) {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 20);
        assert_eq!(due(&seen), None, "not heard yet");
        seen.report = Some(AgentReport { orders: Some(OrdersReport::default()), ..AgentReport::default() });
        assert_eq!(due(&seen).and_then(|orders| orders.keep), keep);
        let received = wanted(&seen).unwrap();
        seen.report = Some(AgentReport { orders: Some(OrdersReport { received, ..OrdersReport::default() }), ..AgentReport::default() });
        assert_eq!(due(&seen), None);
    }
}
