//! The ClusterRoles of further users, bound inside of the cluster as ordered. A user that is no longer named loses its binding, and with it what its
//! certificate was worth.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use nestling_core::api::labels;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::{BoundUser, USER_PREFIX};
use tokio::time::timeout;

use super::failure::failure;
use super::nested::{Error, Nested};
use super::report::Report;

/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(15);

const RBAC: &str = "rbac.authorization.k8s.io";

/// Carries out the orders about users, for ever. What somebody in the cluster takes away stays away until the next change, or start.
pub async fn follow(nested: &Nested, report: &Report) -> Infallible {
    let mut changes = report.subscribe();
    loop {
        let ordered = changes.borrow().orders.clone().unwrap_or_default().received.users;
        let done = carry_out(nested, &ordered).await;
        if let Err(error) = &done {
            tracing::warn!("the ClusterRoles of users cannot be bound: {error}");
        }
        let problem = done.err().map(|error| failure(Reason::BindingUsers, error.to_string()));
        let failed = problem.is_some();
        report.update_orders(|known| {
            if !failed {
                known.carried_out.users.clone_from(&ordered);
            }
            known.set_failure(Reason::BindingUsers, problem);
        });
        let others = changes.wait_for(|report| report.orders.as_ref().is_some_and(|orders| orders.received.users != ordered));
        if failed {
            let _ = timeout(AGAIN, others).await;
        } else if others.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn carry_out(nested: &Nested, users: &[BoundUser]) -> Result<(), Error> {
    let have = nested.user_bindings().await?;
    for change in changes(have, users) {
        match change {
            Change::Delete(name) => nested.unbind(&name).await?,
            Change::Create(binding) => nested.bind(&binding).await?,
        }
    }
    Ok(())
}

/// What is done to a binding.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Delete(String),
    Create(Box<ClusterRoleBinding>),
}

/// From what is there to what is wanted. The role of a binding cannot be changed: it is made anew.
fn changes(have: Vec<ClusterRoleBinding>, users: &[BoundUser]) -> Vec<Change> {
    let mut wanted: BTreeMap<String, ClusterRoleBinding> = users.iter().map(|user| (format!("{USER_PREFIX}{}", user.name), binding(user))).collect();
    let mut changes = Vec::new();
    for found in have {
        let name = found.name_any();
        if wanted.get(&name).is_some_and(|wanted| (&wanted.role_ref, &wanted.subjects) == (&found.role_ref, &found.subjects)) {
            wanted.remove(&name);
        } else {
            changes.push(Change::Delete(name));
        }
    }
    changes.extend(wanted.into_values().map(|binding| Change::Create(Box::new(binding))));
    changes
}

fn binding(user: &BoundUser) -> ClusterRoleBinding {
    let name = format!("{USER_PREFIX}{}", user.name);
    ClusterRoleBinding {
        metadata: ObjectMeta { name: Some(name.clone()), labels: Some([(labels::USER.to_owned(), user.name.clone())].into()), ..ObjectMeta::default() },
        role_ref: RoleRef { api_group: RBAC.into(), kind: "ClusterRole".into(), name: user.cluster_role.clone() },
        subjects: Some(vec![Subject { api_group: Some(RBAC.into()), kind: "User".into(), name, namespace: None }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, role: &str) -> BoundUser {
        BoundUser { name: name.into(), cluster_role: role.into() }
    }

    #[test]
    fn bindings_follow_the_orders() {
        let (ci, ops) = (user("ci", "view"), user("ops", "edit"));
        let have = |users: &[&BoundUser]| users.iter().map(|user| binding(user)).collect::<Vec<_>>();
        let create = |user: &BoundUser| Change::Create(Box::new(binding(user)));
        let delete = |name: &str| Change::Delete(format!("nestling:user:{name}"));
        assert_eq!(changes(vec![], &[]), []);
        assert_eq!(changes(vec![], &[ci.clone(), ops.clone()]), [create(&ci), create(&ops)]);
        assert_eq!(changes(have(&[&ci, &ops]), &[ci.clone(), ops.clone()]), []);
        assert_eq!(changes(have(&[&ci, &ops]), &[ops]), [delete("ci")]);
        let more = user("ci", "edit");
        assert_eq!(changes(have(&[&ci]), std::slice::from_ref(&more)), [delete("ci"), create(&more)]);
    }

    #[test]
    fn a_binding_that_somebody_has_widened_is_made_anew() {
        let ci = user("ci", "view");
        let mut widened = binding(&ci);
        widened.subjects.as_mut().unwrap().push(Subject { kind: "User".into(), name: "another".into(), ..Subject::default() });
        assert_eq!(changes(vec![widened], std::slice::from_ref(&ci)).len(), 2);
    }
}
