//! The ClusterRoles of `kubeconfig.users`: what the agent is to bind inside of the cluster, and what is said of it.

use super::observed::Observed;
use super::orders;
use super::wire::{BoundUser, OrdersReport};
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;
use crate::api::{KindClusterStatus, KubeconfigUser};

fn users(seen: &Observed) -> &[KubeconfigUser] {
    seen.cluster.spec.kubeconfig.as_ref().map_or(&[], |kubeconfig| &kubeconfig.users)
}

/// What the agent is to bind.
pub fn bound(seen: &Observed) -> Vec<BoundUser> {
    users(seen).iter().filter_map(|user| Some(BoundUser { name: user.name.clone(), cluster_role: user.cluster_role.clone()? })).collect()
}

fn orders(seen: &Observed) -> Option<&OrdersReport> {
    seen.report.as_ref()?.orders.as_ref()
}

/// Whether a user may do something in the cluster, or nothing is to be bound to it.
pub fn is_bound(seen: &Observed, name: &str) -> bool {
    let has_role = users(seen).iter().any(|user| user.name == name && user.cluster_role.is_some());
    !has_role || orders(seen).is_some_and(|orders| orders.carried_out.users.iter().any(|bound| bound.name == name))
}

/// Whether the agent takes orders about users.
pub fn can_be_bound(seen: &Observed) -> bool {
    orders(seen).is_some()
}

/// What `UpToDate` says of the bindings; `None`: they are as they should be, or nothing is known.
pub fn claim(seen: &Observed) -> Option<Claim> {
    let (wanted, orders) = (bound(seen), orders(seen)?);
    if orders.carried_out.users == wanted {
        return None;
    }
    Some(orders::outstanding(orders, Reason::BindingUsers, orders.received.users == wanted))
}

/// Whether bindings are on their way, so that the agent's word is waited for.
pub fn is_changing(status: &KindClusterStatus) -> bool {
    conditions::has_reason(&status.conditions, conditions::UP_TO_DATE, Reason::BindingUsers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::orders;
    use crate::plan::testing;
    use crate::plan::wire::{AgentFailure, AgentReport, Orders, OrdersReport};

    #[test]
    fn users_with_a_role_are_bound_and_a_failure_is_told() {
        let spec = "{kubeconfig: {users: [{name: ci, clusterRole: view}, {name: ops, groups: [a]}]}}";
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 60);
        assert!(!is_bound(&seen, "ci") && is_bound(&seen, "ops"), "not heard yet");
        assert_eq!(claim(&seen), None);
        seen.report = Some(AgentReport { orders: Some(OrdersReport::default()), ..AgentReport::default() });
        let wanted = orders::due(&seen).unwrap();
        assert_eq!(wanted.users, [BoundUser { name: "ci".into(), cluster_role: "view".into() }]);
        assert_eq!(claim(&seen).unwrap().reason, Reason::BindingUsers);
        let failure = AgentFailure { reason: Reason::BindingUsers, message: "the API server: no".into(), log_tail: String::new() };
        let received = OrdersReport { received: wanted.clone(), failures: vec![failure], ..OrdersReport::default() };
        seen.report.as_mut().unwrap().orders = Some(received.clone());
        assert!(claim(&seen).unwrap().message.starts_with("the API server: no. "));
        seen.report.as_mut().unwrap().orders = Some(OrdersReport { carried_out: wanted, failures: vec![], ..received });
        assert_eq!((claim(&seen), is_bound(&seen, "ci")), (None, true));
    }

    #[test]
    fn orders_about_nobody_are_those_of_earlier_releases() {
        assert!(!serde_json::to_string(&Orders::default()).unwrap().contains("users"));
    }
}
