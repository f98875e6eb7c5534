//! kind's own configuration (`kind.x-k8s.io/v1alpha4`), typed as far as Nestling reads it.
//!
//! Fields that are not named here are kept and reach kind as they are. Source of names and meaning:
//! `sigs.k8s.io/kind/pkg/apis/config/v1alpha4`.

use std::collections::BTreeMap;

use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A kind configuration.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!has(self.kind) || self.kind == 'Cluster'").message("config.kind must be Cluster"),
    validation = Rule::new("!has(self.apiVersion) || self.apiVersion == 'kind.x-k8s.io/v1alpha4'")
        .message("config.apiVersion must be kind.x-k8s.io/v1alpha4"),
    validation = Rule::new("!has(self.nodes) || self.nodes.filter(n, !has(n.role) || n.role == 'control-plane').size() in [1, 2, 3]")
        .message("config.nodes must hold one, two or three control-planes"),
)]
pub struct KindConfig {
    /// `Cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub kind: Option<String>,
    /// `kind.x-k8s.io/v1alpha4`.
    #[serde(default, rename = "apiVersion", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub api_version: Option<String>,
    /// Gives way to the name of the object, as with `kind create cluster --name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub name: Option<String>,
    /// The nodes, with their own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes: Option<Vec<KindNode>>,
    /// Networking of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networking: Option<KindNetworking>,
    /// Feature gates of all components.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// `--runtime-config` of the API server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runtime_config: BTreeMap<String, String>,
    /// Merge patches on the kubeadm configuration of all nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub kubeadm_config_patches: Vec<String>,
    /// JSON 6902 patches on the kubeadm configuration of all nodes.
    #[serde(default, rename = "kubeadmConfigPatchesJSON6902", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub kubeadm_config_patches_json6902: Vec<PatchJson6902>,
    /// Merge patches (TOML) on the containerd configuration of all nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub containerd_config_patches: Vec<String>,
    /// JSON 6902 patches on the containerd configuration of all nodes.
    #[serde(default, rename = "containerdConfigPatchesJSON6902", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub containerd_config_patches_json6902: Vec<String>,
    /// What this version of Nestling does not read; kind does.
    #[serde(default, flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// A node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct KindNode {
    /// Role of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<KindRole>,
    /// Image of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Labels of the node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Mounts from the pod that runs the cluster (not from the host's node).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub extra_mounts: Vec<KindMount>,
    /// Ports published on the pod that runs the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub extra_port_mappings: Vec<KindPortMapping>,
    /// Merge patches on this node's kubeadm configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16384)), extend("x-kubernetes-list-type" = "atomic"))]
    pub kubeadm_config_patches: Vec<String>,
    /// JSON 6902 patches on this node's kubeadm configuration.
    #[serde(default, rename = "kubeadmConfigPatchesJSON6902", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub kubeadm_config_patches_json6902: Vec<PatchJson6902>,
    /// What this version of Nestling does not read; kind does.
    #[serde(default, flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

impl KindNode {
    /// kind's own default.
    pub fn role(&self) -> KindRole {
        self.role.unwrap_or_default()
    }
}

/// Role of a node.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KindRole {
    /// Runs the control plane.
    #[default]
    ControlPlane,
    /// Runs only workloads.
    Worker,
}

/// A bind mount into a node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct KindMount {
    /// Path in the pod that runs the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Path in the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_path: Option<String>,
    /// Whether the node may only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// What this version of Nestling does not read; kind does.
    #[serde(default, flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// A published port of a node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct KindPortMapping {
    /// Port in the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub container_port: Option<i32>,
    /// Port on the pod that runs the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 65535))]
    pub host_port: Option<i32>,
    /// What this version of Nestling does not read; kind does.
    #[serde(default, flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// Networking of a cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct KindNetworking {
    /// `ipv4`, `ipv6` or `dual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ip_family: Option<String>,
    /// The operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server_port: Option<i32>,
    /// The operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub api_server_address: Option<String>,
    /// Range of pod addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub pod_subnet: Option<String>,
    /// Range of Service addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub service_subnet: Option<String>,
    /// Leaves the cluster without a CNI; its user installs one.
    #[serde(default, rename = "disableDefaultCNI", skip_serializing_if = "Option::is_none")]
    pub disable_default_cni: Option<bool>,
    /// `iptables`, `nftables`, `ipvs` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub kube_proxy_mode: Option<String>,
    /// DNS search domains of the nodes; none by default, so that the host's do not leak in.
    #[serde(default, rename = "dnsSearch", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub dns_search: Option<Vec<String>>,
    /// What this version of Nestling does not read; kind does.
    #[serde(default, flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// A JSON 6902 patch on one kubeadm object.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchJson6902 {
    /// Group of the target.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// Version of the target.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub version: String,
    /// Kind of the target.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub kind: String,
    /// The patch, as YAML or JSON.
    #[serde(default)]
    #[schemars(length(max = 16384))]
    pub patch: String,
}
