//! `KindCluster.status`: what the operator has seen and done.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::power::PowerState;

/// What the operator has seen and done.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindClusterStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The conditions; every type is always present.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Kubernetes version of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Node image that `version` was resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// Version of the kind command line that made the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind_version: Option<String>,

    /// UID of the cluster itself (of its `kube-system` namespace). It changes when a cluster is replaced.
    #[serde(default, rename = "clusterUID", skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,

    /// The attempt that `clusterUID` belongs to. With `podLossPolicy: Resume` later attempts bring that cluster back; gone once one has begun anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_attempt: Option<i64>,

    /// Number of the current attempt, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,

    /// How the cluster is, in the terms of `spec.powerState`. Something is being changed while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,

    /// When the current cluster became ready for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_time: Option<Time>,

    /// When the object is deleted: the earliest of `lifecycle.ttl`, `lifecycle.expirationTime` and what the operator's policy allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,

    /// Where the API server is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub endpoints: Vec<Endpoint>,

    /// Where the ports of `spec.ports` are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub ports: Vec<PortStatus>,

    /// The published kubeconfig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<KubeconfigSecretRef>,

    /// Image of the pod through which `nestling connect` and `nestling shell` reach a cluster that is not exposed: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_image: Option<String>,

    /// The further Secrets of `spec.kubeconfig.users` and `spec.kubeconfig.argoCD`. One without a digest is not written yet, or about to go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub further_secret_refs: Vec<KubeconfigSecretRef>,

    /// The pod that the cluster runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_ref: Option<PodRef>,

    /// Control-plane nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_planes: Option<NodeCount>,

    /// Worker nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<NodeCount>,

    /// Ready nodes of all nodes, such as `1/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_ready: Option<String>,

    /// Addresses that load balancers inside the cluster, such as MetalLB, may give to Services: in the network of the nodes, and no node gets one of them.
    #[serde(default, rename = "loadBalancerCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub load_balancer_cidrs: Vec<String>,

    /// How the time to ready was spent, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub stages: Vec<StageTime>,

    /// The replacement that was asked for last (annotation `nestling.dev/recreate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recreation: Option<Recreation>,

    /// The newest failure; stays after a later success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
}

/// One way to reach the API server.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// From where it is reachable.
    #[serde(rename = "type")]
    pub type_: EndpointType,
    /// The URL.
    pub url: String,
}

/// From where an endpoint is reachable.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum EndpointType {
    /// Inside the host cluster.
    Internal,
    /// From outside the host cluster.
    External,
}

/// Where a published port is reached.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// Its name in `spec.ports`.
    pub name: String,
    /// Whether the pod takes connections for it; what is behind it is the cluster's own matter.
    #[serde(default)]
    pub open: bool,
    /// Host and port inside the host cluster.
    pub internal: String,
    /// Host and port from outside, as soon as there is such an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// The port on each of the host's nodes, with `access.service.type` `NodePort` or `LoadBalancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<i32>,
}

/// The published kubeconfig.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigSecretRef {
    /// Name of the Secret, in the namespace of the `KindCluster`.
    pub name: String,
    /// Digest of what went into the kubeconfig (addresses and authority, nothing secret); another one means it is
    /// written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When the credentials in it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,
    /// When they are written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_time: Option<Time>,
}

/// The pod that a cluster runs in.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Node of the host cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// How many nodes of one role there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCount {
    /// All nodes.
    pub total: i32,
    /// Nodes whose condition `Ready` is true.
    pub ready: i32,
}

/// Duration of one stage on the way to a ready cluster.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StageTime {
    /// Name of the stage.
    pub name: String,
    /// Milliseconds that it took, or has taken so far.
    pub milliseconds: i64,
}

/// A replacement on purpose.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recreation {
    /// Value of the annotation `nestling.dev/recreate`; another one asks for the next replacement.
    pub value: String,
    /// The newest attempt when it was asked for. It and all before it are over.
    #[serde(default)]
    pub attempt: i64,
}

/// A failed attempt.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// One of the documented reasons.
    pub reason: String,
    /// What happened and what to do about it.
    pub message: String,
    /// When it was seen.
    pub time: Option<Time>,
    /// The attempt that failed.
    #[serde(default)]
    pub attempt: i64,
    /// Generation of the spec that failed; a newer spec starts counting anew.
    #[serde(default)]
    pub generation: i64,
    /// How many attempts in a row have failed, this one included.
    #[serde(default)]
    pub count: i32,
    /// The last lines of evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
    /// The logs of the newest failed attempt of which there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_ref: Option<BundleRef>,
}

/// The logs of a failed attempt.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleRef {
    /// Name of the Secret, in the namespace of the `KindCluster`. Its key `logs.tar.gz` holds at most 512 KiB.
    pub name: String,
    /// The attempt that the logs are of; an earlier one where none could be had of the last.
    #[serde(default)]
    pub attempt: i64,
}

impl LastFailure {
    /// Whether both are about one failure, whatever became known of it later.
    pub fn is(&self, other: &Self) -> bool {
        (self.attempt, &self.time, &self.reason) == (other.attempt, &other.time, &other.reason)
    }

    /// When the failure was seen.
    pub fn seen_at(&self) -> Option<Timestamp> {
        self.time.as_ref().map(|time| time.0)
    }
}
