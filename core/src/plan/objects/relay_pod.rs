//! The pod through which the command line reaches a cluster that is not exposed: in the namespace of its user, and with nothing that a namespace that is `restricted` would refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecurityContext};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pull_secrets;
use crate::api::{annotations, labels};
use crate::plan::names::Identity;
use crate::plan::quantity;

/// Label and value by which these pods are found again.
pub const RELAY_LABEL: (&str, &str) = ("app.kubernetes.io/name", "nestling-relay");

/// Its port, on the pod's loopback: port-forwards come in there, and nobody else does.
pub const RELAY_PORT: u16 = 6443;

/// It ends when nobody has used it for so long. Whoever wants to go on afterwards starts another.
const IDLE: Duration = Duration::from_mins(5);

/// It ends after so long, used or not.
const LIFE: Duration = Duration::from_hours(12);

/// The user and group of the operator's image.
const USER: i64 = 65532;

/// What a relay needs to know.
#[derive(Clone, Debug)]
pub struct RelayOrder {
    /// What makes the pod's name one of its own. Chosen by who creates it, who can then delete it without having heard the answer.
    pub suffix: String,
    /// The cluster that it leads to; the pod goes with it.
    pub cluster: Identity,
    /// Where the cluster's API server is inside the host cluster, as `host:port`.
    pub target: String,
    /// Image that holds this program: the operator's.
    pub image: String,
    /// Names of the Secrets in the cluster's namespace with which it is pulled.
    pub pull_secrets: Vec<String>,
}

impl RelayOrder {
    /// Name of the pod.
    pub fn name(&self) -> String {
        format!("nestling-relay-{}", self.suffix)
    }
}

/// The pod.
pub fn relay_pod(order: &RelayOrder) -> Pod {
    let (label, value) = RELAY_LABEL;
    let quantities =
        |cpu: &str, memory: i64| Some(BTreeMap::from([("cpu".to_owned(), Quantity(cpu.to_owned())), ("memory".to_owned(), quantity::bytes(memory))]));
    let container = Container {
        name: "relay".to_owned(),
        image: Some(order.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec![
            "relay".to_owned(),
            format!("--target={}", order.target),
            format!("--port={RELAY_PORT}"),
            format!("--idle-seconds={}", IDLE.as_secs()),
            format!("--limit-seconds={}", LIFE.as_secs()),
        ]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        // Both for both, because quotas ask for that.
        resources: Some(ResourceRequirements { requests: quantities("10m", 16 << 20), limits: quantities("1", 64 << 20), ..ResourceRequirements::default() }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: Some(order.name()),
            namespace: Some(order.cluster.namespace.clone()),
            labels: Some(BTreeMap::from([
                (label.to_owned(), value.to_owned()),
                (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_NESTLING.to_owned()),
                (labels::CLUSTER_NAME.to_owned(), order.cluster.name.clone()),
            ])),
            // It is made again when it is missed.
            annotations: Some(BTreeMap::from([(annotations::SAFE_TO_EVICT.to_owned(), "true".to_owned())])),
            owner_references: Some(vec![super::owner(&order.cluster)]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(1),
            // Also where its own clock stands still.
            active_deadline_seconds: i64::try_from(LIFE.as_secs()).ok().map(|seconds| seconds + 60),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
                ..PodSecurityContext::default()
            }),
            image_pull_secrets: pull_secrets(&order.pull_secrets),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    #[test]
    fn the_pod() {
        let order = RelayOrder {
            suffix: "r2d2".into(),
            cluster: testing::identity(&testing::cluster("{}")),
            target: "c.clusters.svc:6443".into(),
            image: "registry.example/operator:1".into(),
            pull_secrets: vec!["login".into()],
        };
        insta::assert_yaml_snapshot!(relay_pod(&order));
    }
}
