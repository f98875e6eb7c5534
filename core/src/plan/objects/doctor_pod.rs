//! The pod that looks at one node of the host, before any cluster does: like a cluster's pod as far as the checks can tell.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, PodSpec, ResourceRequirements, SecurityContext, Toleration, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pull_secrets;
use crate::plan::quantity;
use crate::plan::wire::DATA_ROOT;

/// Label and value by which these pods are found again.
pub const DOCTOR_LABEL: (&str, &str) = ("app.kubernetes.io/name", "nestling-doctor");

/// What a look needs to know.
#[derive(Clone, Debug, Default)]
pub struct Examination {
    /// Namespace of the pods: that of the clusters.
    pub namespace: String,
    /// Image of the clusters' pods.
    pub image: String,
    /// Its `imagePullPolicy`; empty for the default.
    pub image_pull_policy: String,
    /// Names of the Secrets with which it is pulled.
    pub pull_secrets: Vec<String>,
    /// Whether hosts with cgroup v1 will do.
    pub allow_cgroup_v1: bool,
    /// When the host ends a pod that has not ended by itself, in seconds.
    pub deadline_seconds: i64,
}

/// The pod for one node.
pub fn doctor_pod(node: &str, examination: &Examination) -> Pod {
    let mut arguments = vec!["agent".to_owned(), "--examine".to_owned()];
    if examination.allow_cgroup_v1 {
        arguments.push("--allow-cgroup-v1".to_owned());
    }
    let container = Container {
        name: "doctor".to_owned(),
        image: Some(examination.image.clone()),
        image_pull_policy: Some(examination.image_pull_policy.clone()).filter(|policy| !policy.is_empty()),
        args: Some(arguments),
        security_context: Some(SecurityContext { privileged: Some(true), ..SecurityContext::default() }),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([("memory".to_owned(), quantity::bytes(16 << 20))])),
            limits: Some(BTreeMap::from([("memory".to_owned(), quantity::bytes(64 << 20))])),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(vec![VolumeMount { name: "data".to_owned(), mount_path: DATA_ROOT.to_owned(), ..VolumeMount::default() }]),
        ..Container::default()
    };
    let (label, value) = DOCTOR_LABEL;
    Pod {
        metadata: ObjectMeta {
            generate_name: Some("doctor-".to_owned()),
            namespace: Some(examination.namespace.clone()),
            labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            // Past the scheduler: the node is what is asked about, whatever its taints.
            node_name: Some(node.to_owned()),
            tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(0),
            active_deadline_seconds: Some(examination.deadline_seconds),
            image_pull_secrets: pull_secrets(&examination.pull_secrets),
            containers: vec![container],
            volumes: Some(vec![Volume { name: "data".to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod() {
        let examination =
            Examination { namespace: "clusters".into(), image: "node:1".into(), allow_cgroup_v1: true, deadline_seconds: 90, ..Examination::default() };
        insta::assert_yaml_snapshot!(doctor_pod("crane-1", &examination));
    }
}
