//! Secrets and ConfigMaps in the user's namespace that a spec refers to: read by name, and only where the namespace allows it.

use std::time::Duration;

use jiff::Timestamp;

use super::names::Identity;
use super::problem::Problem;
use super::settings::Settings;
use super::situation::later;
use crate::api::reasons::Reason;

/// The chart's ClusterRole that a namespace binds to let the operator read what it refers to.
pub const READER_ROLE: &str = "nestling-secret-reader";

/// What was read is read anew this much later, so that a change of it arrives.
const READ_EVERY: Duration = Duration::from_hours(1);

/// Where the objects are, and what reading them needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct References {
    /// Namespace of all that is read.
    pub namespace: String,
    /// The right that reading needs, as a command.
    pub command: String,
}

impl References {
    /// What this cluster may refer to.
    pub fn of(identity: &Identity, settings: &Settings) -> Self {
        let namespace = identity.namespace.clone();
        let command = format!(
            "kubectl create rolebinding {READER_ROLE} --clusterrole={READER_ROLE} --serviceaccount={}:{} --namespace={namespace}",
            settings.operator_namespace, settings.service_account
        );
        Self { namespace, command }
    }

    /// The operator may not read this object.
    pub fn denied(&self, kind: &str, name: &str) -> Problem {
        let message = format!("the operator may not read {kind} {name} in namespace {}; to let it: {}", self.namespace, self.command);
        Problem::new(Reason::SecretAccessDenied, message)
    }

    /// This object does not exist.
    pub fn missing(&self, kind: &str, name: &str) -> Problem {
        let reason = if kind == "Secret" { Reason::SecretNotFound } else { Reason::ConfigMapNotFound };
        Problem::new(reason, format!("there is no {kind} {name} in namespace {}", self.namespace))
    }
}

/// Whether what was read then need not be read anew yet.
pub fn is_fresh(now: Timestamp, read_at: Option<Timestamp>) -> bool {
    // A clock that was set back must not put the next look off.
    read_at.is_some_and(|read| read <= now && now < later(read, READ_EVERY))
}
