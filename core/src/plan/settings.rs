//! What the operator's owner has set and what it knows of the host cluster.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::policy::Policy;

/// The operator's settings.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Settings {
    /// Name of this installation. Objects of another one are left alone.
    pub install: String,
    /// Namespace of the operator itself.
    pub operator_namespace: String,
    /// Service account of the operator.
    pub service_account: String,
    /// Namespace that everything runs in.
    pub clusters_namespace: String,
    /// Image of the pods.
    pub pod_image: String,
    /// Images of the pods by version of Kubernetes, where another one carries the node image of that version.
    pub pod_images: BTreeMap<String, String>,
    /// `imagePullPolicy` of the pods.
    pub pod_image_pull_policy: String,
    /// Image of the pods through which the command line reaches clusters: the operator's own. Empty if it is not known.
    pub relay_image: String,
    /// Node images by version, such as `v1.34.4` to `kindest/node:v1.34.4@sha256:…`.
    pub node_images: BTreeMap<String, String>,
    /// Where a version that [`Self::node_images`] does not list is looked for, as `<repository>:<version>`. Empty to refuse it.
    pub node_image_repository: String,
    /// Version of a cluster that names none.
    pub default_version: String,
    /// Whether hosts with cgroup v1 will do.
    pub allow_cgroup_v1: bool,
    /// Whether clusters may be frozen on hosts with cgroup v1.
    pub allow_freeze_on_cgroup_v1: bool,
    /// Whether pods get the host's `/lib/modules`, read-only.
    pub mount_modules: bool,
    /// The way out of the host's network.
    pub proxy: Proxy,
    /// Whether agents guard what nested traffic may reach.
    pub egress_guard: bool,
    /// Ranges that clusters may reach although they are the host's.
    pub egress_allowed: Vec<Ipv4Net>,
    /// How long the end of a cluster is waited for, and what then.
    pub cleanup: Cleanup,
    /// What specs may ask for.
    pub policy: Policy,
    /// Whether the API server refuses to delete what is protected.
    pub deletion_protection: bool,
    /// What is known of the host cluster.
    pub host: HostFacts,
}

impl Settings {
    /// Image of the pod of a cluster of this version, if that is known.
    pub fn pod_image_for(&self, version: Option<&str>) -> &str {
        version.and_then(|version| self.pod_images.get(version)).unwrap_or(&self.pod_image)
    }
}

/// The way out of the host's network, for the pods and all that runs in them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Proxy {
    /// `HTTP_PROXY`; empty for none.
    pub http: String,
    /// `HTTPS_PROXY`; empty for none.
    pub https: String,
    /// `NO_PROXY`; empty for none.
    pub no: String,
    /// Secret in the clusters namespace that holds all three instead, for addresses with a password; empty for none.
    pub secret: String,
}

/// How long the end of a deleted cluster is waited for, and what then: a node that nobody can reach may still run it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cleanup {
    /// From the object's deletion. A pod has two minutes to end in order.
    pub timeout: Duration,
    /// What then.
    pub policy: CleanupPolicy,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { timeout: Duration::from_mins(10), policy: CleanupPolicy::Wait }
    }
}

/// What follows when a deleted cluster has not ended in time. Either way the object says [`CleanupUnverified`](crate::api::reasons::Reason::CleanupUnverified) first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum CleanupPolicy {
    /// The object stays for as long as anything of its cluster does.
    #[default]
    Wait,
    /// The object goes; what is left is deleted as soon as that can be done.
    Abandon,
}

/// What is known of the host cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFacts {
    /// Ranges of pods, Services and nodes, and those that the operator's owner added.
    pub ranges: Vec<Ipv4Net>,
    /// Addresses at which the nodes can be reached from outside, the best first.
    pub node_addresses: Vec<String>,
    /// The API server as pods see it.
    pub api: Option<SocketAddrV4>,
}
