//! What a running agent is to be told. Orders are the whole wish at once and follow from the object alone, so that it makes no difference how often
//! they are given, or that an operator was killed in between.

use super::observed::Observed;
use super::power;
use super::serving_names;
use super::wire::Orders;

/// What the agent of the current pod is to be told; `None` where it takes no orders, or has not been heard yet.
pub fn wanted(seen: &Observed) -> Option<Orders> {
    seen.report.as_ref()?.orders.as_ref()?;
    Some(Orders { power: power::wanted(seen), cert_sans: serving_names::wanted(seen) })
}

/// What the agent is to be told now: `None` if it knows all.
pub fn due(seen: &Observed) -> Option<Orders> {
    let wanted = wanted(seen)?;
    let known = seen.report.as_ref()?.orders.as_ref()?;
    (known.received != wanted).then_some(wanted)
}
