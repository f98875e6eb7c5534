//! `KindCluster`: what a user asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, SELinuxOptions, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_core::Duration;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kind_config::KindConfig;
use super::power::PowerState;
use super::published_port::PublishedPort;
use super::status::KindClusterStatus;

/// A real kind cluster that runs inside one pod of this cluster.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "nestling.dev",
    version = "v1alpha1",
    kind = "KindCluster",
    namespaced,
    status = "KindClusterStatus",
    shortname = "kcl",
    category = "nestling",
    derive = "Default",
    derive = "PartialEq",
    doc = "A real kind cluster that runs inside one pod of this cluster.",
    crates(kube_core = "::kube_core"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodesReady"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expirationTime"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoints[0].url", priority = 1),
    printcolumn(name = "Power", type_ = "string", json_path = ".status.powerState", priority = 1),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.podRef.nodeName", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.version) && has(self.image))").message("version and image exclude each other"),
    validation = Rule::new("!(has(self.nodes) && has(self.config) && has(self.config.nodes))")
        .message("nodes and config.nodes exclude each other"),
    validation = Rule::new("!(has(self.networking) && has(self.config) && has(self.config.networking))")
        .message("networking and config.networking exclude each other"),
    validation = Rule::new("!(has(self.lifecycle) && has(self.lifecycle.podLossPolicy) && self.lifecycle.podLossPolicy == 'Resume') || (has(self.storage) && has(self.storage.type) && self.storage.type == 'Persistent')")
        .message("podLossPolicy: Resume needs storage.type: Persistent"),
    validation = Rule::new("(has(self.storage) && has(self.storage.type) ? self.storage.type : 'Ephemeral') == (has(oldSelf.storage) && has(oldSelf.storage.type) ? oldSelf.storage.type : 'Ephemeral')")
        .message("storage.type cannot be changed; delete the object and create it anew"),
    validation = Rule::new("(has(self.storage) && has(self.storage.storageClassName) ? self.storage.storageClassName : '') == (has(oldSelf.storage) && has(oldSelf.storage.storageClassName) ? oldSelf.storage.storageClassName : '')")
        .message("storage.storageClassName cannot be changed; delete the object and create it anew"),
    validation = Rule::new("!has(self.powerState) || self.powerState == 'Running' || ((!has(self.nodes) || !has(self.nodes.controlPlanes) || self.nodes.controlPlanes == 1) && (!has(self.config) || !has(self.config.nodes) || self.config.nodes.filter(n, !has(n.role) || n.role == 'control-plane').size() <= 1))")
        .message("powerState must be Running with several control planes: their etcd members would lose each other"),
    validation = Rule::new("!has(self.ports) || self.ports.all(p, !has(p.nodePort)) || (has(self.access) && has(self.access.service) && has(self.access.service.type) && self.access.service.type != 'ClusterIP')")
        .message("ports[].nodePort needs access.service.type: NodePort or LoadBalancer"),
    validation = Rule::new("!has(self.ports) || !has(self.access) || !has(self.access.service) || !has(self.access.service.nodePort) || self.ports.all(p, !has(p.nodePort) || p.nodePort != self.access.service.nodePort)")
        .message("ports[].nodePort must differ from access.service.nodePort"),
    validation = Rule::new("!has(self.ports) || !has(self.config) || !has(self.config.nodes) || self.config.nodes.all(n, !has(n.extraPortMappings) || n.extraPortMappings.all(m, !has(m.hostPort) || self.ports.all(p, p.targetNodePort != m.hostPort)))")
        .message("ports[].targetNodePort must differ from every hostPort in config.nodes[].extraPortMappings, which takes that port of the pod"),
)]
pub struct KindClusterSpec {
    /// Kubernetes version of the nodes, such as `v1.34.4`. The operator knows which node image carries it. Without
    /// version and image, the operator's default version is used. Resolved once, into `status.version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^v[0-9]+\\\\.[0-9]+\\\\.[0-9]+(-[0-9A-Za-z.-]+)?$')")
        .message("version must look like v1.34.4"))]
    #[schemars(length(max = 64))]
    pub version: Option<String>,

    /// Node image (`kindest/node:…`), where `version` is not enough. A digest pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Number of nodes by role. Exclusive with `config.nodes`. Default: one control plane, no worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Nodes>,

    /// A kind configuration (`kind.x-k8s.io/v1alpha4`), as one would give to `kind create cluster --config`. `name`
    /// gives way to the object's name. The API server's address and port are the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<KindConfig>,

    /// Address ranges inside the cluster. Exclusive with `config.networking`. Default: ranges clear of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,

    /// How the API server is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// NodePorts of the cluster that are reached as its API server is, such as that of an Ingress controller. May be changed at any time; while
    /// the cluster is frozen or stopped connections are refused at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(
        validation = Rule::new("self.all(p, self.exists_one(q, q.port == p.port))").message("each port may be there once"),
        validation = Rule::new("self.all(p, !has(p.nodePort) || self.exists_one(q, has(q.nodePort) && q.nodePort == p.nodePort))")
            .message("each nodePort may be there once"),
    )]
    pub ports: Vec<PublishedPort>,

    /// Where the kubeconfig is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<Kubeconfig>,

    /// Registries that need something said: mirrors, credentials, a private authority. For the node image as well as for what runs in the
    /// cluster. A cluster keeps the list that it was made with; what the named Secrets and ConfigMaps hold is read anew every hour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["host"]))]
    pub registries: Vec<Registry>,

    /// Images that are in every node before the cluster is `Ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<Preload>,

    /// What is applied inside the cluster as soon as its API server answers, in this order, and again when it changes; `Ready` waits for the first time.
    /// What leaves the list, or a manifest, stays in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub manifests: Vec<Manifest>,

    /// What else must be so inside the cluster before it is `Ready` for the first time. Later it is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,

    /// Bounds in time and what follows a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,

    /// Resources of the pod that the whole cluster runs in. What is left out is filled in from the number of nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Where images, containers and volumes of the cluster are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// How the pod is placed and labelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOptions>,

    /// `Running`; `Frozen`: the nodes use no CPU, keep their memory and are back within a second; `Stopped`: they use neither CPU nor memory, keep
    /// their disks, and boot again. Either way connections are refused at once, and the pod keeps what it requests of the host; only a cluster that
    /// stops, with `storage.type: Persistent` and `lifecycle.podLossPolicy: Resume`, gives its pod up as well. A cluster first becomes ready, then it is
    /// suspended. Only with one control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,

    /// While true, the operator changes nothing of this cluster, also not on deletion or when it expires.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// Number of nodes by role.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// Control-plane nodes. With three the cluster outlives the death of any one of them. Two are less safe than one: etcd needs most of its
    /// members, so both must live. Before several of them kind puts a load balancer, whose image (Envoy) has to be pulled.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3))]
    pub control_planes: i32,

    /// Worker nodes.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9))]
    pub workers: i32,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { control_planes: 1, workers: 0 }
    }
}

fn one() -> i32 {
    1
}

/// Address ranges inside the cluster.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Networking {
    /// Range of pod addresses, such as `10.245.0.0/16`.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && cidr(c).ip().family() == 4)").message("podCIDRs must hold an IPv4 range such as 10.245.0.0/16"))]
    pub pod_cidrs: Vec<String>,

    /// Range of Service addresses, such as `10.97.0.0/16`.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1), extend("x-kubernetes-list-type" = "atomic"), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c) && cidr(c).ip().family() == 4)").message("serviceCIDRs must hold an IPv4 range such as 10.97.0.0/16"))]
    pub service_cidrs: Vec<String>,
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// The Service in front of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<AccessService>,

    /// Further names and addresses in the API server's certificate, such as that of a load balancer of your own. A change is carried out in the
    /// running cluster. Those that Nestling itself uses need not be named.
    #[serde(default, rename = "certSANs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set"), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(
        "self.all(n, isIP(n) || (n.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$') && !n.matches('^[0-9.]+$')))"
    ).message("certSANs must hold DNS names such as api.example, *.example or addresses such as 192.0.2.7"))]
    pub cert_sans: Vec<String>,
}

/// The Service in front of the API server.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!has(self.nodePort) || (has(self.type) && self.type != 'ClusterIP')").message("nodePort needs type: NodePort or LoadBalancer"),
    validation = Rule::new("!has(self.loadBalancerClass) || (has(self.type) && self.type == 'LoadBalancer')")
        .message("loadBalancerClass needs type: LoadBalancer"),
    validation = Rule::new("!has(self.loadBalancerSourceRanges) || self.loadBalancerSourceRanges.size() == 0 || (has(self.type) && self.type == 'LoadBalancer')")
        .message("loadBalancerSourceRanges needs type: LoadBalancer"),
)]
pub struct AccessService {
    /// `ClusterIP` is reachable inside the host cluster, `NodePort` also on each of its nodes, `LoadBalancer` also at an address that the host's load
    /// balancer gives. What `ports` lists is reached in the same way.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,

    /// The port to take on the host's nodes; one is allocated if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,

    /// Annotations of the Service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,

    /// Which of the host's load balancers is meant; its default one if left out. With another class the Service first loses the address that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    #[x_kube(validation = Rule::new(
        "self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')"
    ).message("loadBalancerClass must look like internal-vip or example.com/internal-vip"))]
    pub load_balancer_class: Option<String>,

    /// Who may come through the load balancer, where it heeds that; everybody if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))").message("loadBalancerSourceRanges must hold ranges such as 192.0.2.0/24"))]
    pub load_balancer_source_ranges: Vec<String>,
}

/// Type of the Service in front of the API server.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ServiceType {
    /// Inside the host cluster.
    #[default]
    ClusterIP,
    /// Also on each node of the host cluster.
    NodePort,
    /// Also at an address of the host's load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// What is in every node before the cluster is `Ready`.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Preload {
    /// Images, such as `nginx:1.29` or `registry.example/team/app@sha256:…`: pulled once for the whole cluster, as `registries` says, and put into every
    /// node. One that is added later is brought into the running cluster; one that is taken out stays there. A pod finds it under the very reference
    /// that is written here, unless its `imagePullPolicy` is `Always`, which is the default for `:latest` and for references without a tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"), inner(length(min = 1, max = 255)))]
    #[x_kube(validation = Rule::new(
        "self.all(i, i.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[a-f0-9]{64})?$'))"
    ).message("images must be references such as nginx:1.29 or registry.example:5000/team/app@sha256:… with 64 hexadecimal digits"))]
    pub images: Vec<String>,
}

/// What there is to say about a registry.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("(has(self.endpoints) && size(self.endpoints) > 0) || has(self.credentialsSecretRef) || has(self.caConfigMapRef)")
        .message("a registry needs endpoints, credentialsSecretRef or caConfigMapRef"),
)]
pub struct Registry {
    /// The registry as image references name it, such as `docker.io` or `registry.example:5000`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$')")
        .message("host must look like docker.io or registry.example:5000"))]
    pub host: String,

    /// Where to ask instead, in this order, before the registry itself: `https://mirror.example`, or `http://…` for a registry without TLS
    /// (also the registry itself). A path must be one that is to be used as it is, such as `/v2/cache` of a proxy cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"), inner(length(max = 253)))]
    #[x_kube(validation = Rule::new(
        "self.all(e, e.matches('^https?://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?(/v2/[-a-z0-9._/]*[-a-z0-9_])?$'))"
    ).message("endpoints must look like https://mirror.example:5000"))]
    pub endpoints: Vec<String>,

    /// Secret with the credentials, in the namespace of this object: of type `kubernetes.io/dockerconfigjson` with an entry for the host, or
    /// `kubernetes.io/basic-auth`. Whoever is an administrator of the cluster can read them. The operator may read it only where the namespace
    /// has bound the ClusterRole `nestling-secret-reader` to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalReference>,

    /// ConfigMap with the authority behind the certificates of the registry and its endpoints (key `ca.crt`, PEM), in the namespace of this
    /// object. Read as the Secret is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<LocalReference>,
}

/// Objects to be applied inside the cluster: YAML or JSON, several documents or lists of them, as `kubectl apply` takes them.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("[has(self.configMapRef), has(self.secretRef), has(self.inline)].filter(given, given).size() == 1")
        .message("a manifest needs exactly one of configMapRef, secretRef and inline"),
)]
pub struct Manifest {
    /// What it is called in conditions.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("name must be a DNS label such as ingress"))]
    pub name: String,

    /// ConfigMap whose keys hold it, in the namespace of this object. Read as the Secret is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<LocalReference>,

    /// Secret of type `nestling.dev/manifests` whose keys hold it, in the namespace of this object. The operator may read it only where the namespace
    /// has bound the ClusterRole `nestling-secret-reader` to it. Read anew every hour, and when the annotation `nestling.dev/reapply` changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalReference>,

    /// The manifest itself. No place for Secrets: everybody who may read this object can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 131_072))]
    pub inline: Option<String>,
}

/// What must be so inside the cluster before it is `Ready` for the first time.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// The nameserver that pods are given resolves the name of the cluster's own API.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dns: bool,

    /// Deployments that are `Available`, in their newest form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"]))]
    pub deployments: Vec<DeploymentReference>,
}

/// A Deployment inside the cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct DeploymentReference {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace must be a DNS label"))]
    pub namespace: String,

    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("name must be a valid name of an object"))]
    pub name: String,
}

/// The name of an object in the namespace of this one.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("name must be a valid name of an object"))]
    pub name: String,
}

/// Where the kubeconfig is published.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Kubeconfig {
    /// Name of the Secret, in the namespace of this object. Default: `<name>-kubeconfig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("secretName must be a valid Secret name"))]
    pub secret_name: Option<String>,

    /// How long the credentials in it hold, between `1h` and `87600h`. They are written anew when a third of that is left; until then and beyond, the
    /// earlier ones hold to their end. Default: a year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h') && duration(self) <= duration('87600h')")
        .message("lifetime must be a duration between 1h and 87600h"))]
    pub lifetime: Option<Duration>,

    /// Further users, each with a kubeconfig of its own in the Secret `<name of this object>-kubeconfig-<user>`. With `clusterRole: view` one that can only
    /// read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub users: Vec<KubeconfigUser>,

    /// If set, also the Secret `<name of this object>-argocd`, in which Argo CD finds the cluster. Argo CD looks in its own namespace only, so this object
    /// has to live there. It is taken away before a deleted cluster goes.
    #[serde(default, rename = "argoCD", skip_serializing_if = "Option::is_none")]
    pub argo_cd: Option<ArgoCd>,
}

/// A further user of the cluster, known by a client certificate with the common name `nestling:user:<name>`.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.clusterRole) != (has(self.groups) && size(self.groups) > 0)").message("a user needs either clusterRole or groups"),
)]
pub struct KubeconfigUser {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name of a user must be a DNS label such as ci"))]
    pub name: String,

    /// A ClusterRole of the cluster, such as `view`, `edit` or `cluster-admin`. Nestling binds it to the user in all namespaces, and takes the binding away
    /// with the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[^/%]+$') && self != '.' && self != '..'").message("clusterRole must be the name of a ClusterRole"))]
    pub cluster_role: Option<String>,

    /// Groups that the user is in, instead of a ClusterRole. Nestling binds nothing to them: what they may do is up to the cluster. A certificate says for
    /// itself which groups its bearer is in, until it ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"), inner(length(min = 1, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(g, !g.startsWith('system:'))")
        .message("groups must not begin with system: as such a right could never be taken away"))]
    pub groups: Vec<String>,

    /// How long its credentials hold, between `10m` and `8760h`. They are written anew when a third of that is left; until then and beyond, the earlier ones
    /// hold to their end. Default: `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10m') && duration(self) <= duration('8760h')")
        .message("the lifetime of a user must be a duration between 10m and 8760h"))]
    pub lifetime: Option<Duration>,
}

/// The Secret in which Argo CD finds the cluster.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ArgoCd {
    /// Further labels of the Secret, by which the cluster generator of an ApplicationSet chooses clusters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new(
        "self.all(k, !k.startsWith('nestling.dev/') && !k.startsWith('cluster.x-k8s.io/') && k != 'argocd.argoproj.io/secret-type' && k != 'app.kubernetes.io/managed-by')"
    ).message("labels under nestling.dev/ and cluster.x-k8s.io/, argocd.argoproj.io/secret-type and app.kubernetes.io/managed-by are the operator's"))]
    pub labels: BTreeMap<String, String>,
}

/// Bounds in time and what follows a failure.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.deletionProtection) && self.deletionProtection && (has(self.ttl) || has(self.expirationTime)))")
        .message("deletionProtection excludes ttl and expirationTime: what is protected cannot be deleted when it expires"),
)]
pub struct Lifecycle {
    /// How long the cluster lives, from the object's creation, such as `8h`; then the object is deleted. With `expirationTime` the earlier one
    /// wins. Raise it to extend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("ttl must be a duration of at least 1s, such as 8h"))]
    pub ttl: Option<Duration>,

    /// When the object is deleted, such as `2027-01-31T18:00:00Z`. One that is past deletes it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,

    /// While true, nobody can delete the object but with its whole namespace. Needs a host with ValidatingAdmissionPolicies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deletion_protection: bool,

    /// How long one attempt may take from its pod to `ControlPlaneReady`, between `1m` and `2h`. Default: `15m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('2h')")
        .message("creationTimeout must be a duration between 1m and 2h"))]
    pub creation_timeout: Option<Duration>,

    /// How many further attempts follow a failed one. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub backoff_limit: Option<i32>,

    /// What follows the loss of the pod of a cluster that was ready. Default: `Recreate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_loss_policy: Option<PodLossPolicy>,
}

/// What follows the loss of the pod of a cluster that was ready.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PodLossPolicy {
    /// A new, empty cluster takes its place: new `status.clusterUID`, event `ClusterReplaced`.
    #[default]
    Recreate,
    /// The next pod brings the same cluster back from its volume, on whichever node can have it: same `status.clusterUID`, event `ClusterResumed`. Needs
    /// `storage.type: Persistent`. A cluster that does not come back is never replaced by an empty one: the object becomes `Stalled`, and the state stays.
    Resume,
    /// The object becomes `Stalled`; what ran in the cluster is gone and nothing pretends otherwise.
    Fail,
}

/// Where images, containers and volumes of the cluster are kept.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!has(self.storageClassName) || (has(self.type) && self.type == 'Persistent')").message("storageClassName needs type: Persistent"),
)]
pub struct Storage {
    /// `Ephemeral` lives and dies with the pod. `Persistent` is a claim on a volume of its own, which is deleted with the object; what a new pod finds
    /// on it of an earlier one is removed.
    #[serde(default, rename = "type")]
    pub type_: StorageType,

    /// How much the cluster may hold: before it is evicted (`Ephemeral`), or what the claim requests (`Persistent`). Default: 10Gi and 5Gi more for each
    /// further node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('2Gi')) >= 0")
        .message("size must be a quantity of at least 2Gi"))]
    pub size: Option<String>,

    /// StorageClass of the claim; the host's default if left out. Its volumes need a local file system, ext4 or xfs, and the access mode `ReadWriteOncePod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("storageClassName must be a valid name of an object"))]
    pub storage_class_name: Option<String>,
}

/// Kind of storage.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum StorageType {
    /// Lives and dies with the pod.
    #[default]
    Ephemeral,
    /// A claim on a volume, which lives and dies with the object.
    Persistent,
}

/// How the pod is placed and labelled.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct PodOptions {
    /// Further labels and annotations of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,

    /// Labels that the host's node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of the host's node that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,

    /// Further rules for placing the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// RuntimeClass of the pod, for hosts that have a safer one for privileged pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,

    /// PriorityClass of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,

    /// Secrets, in the namespace where the clusters run, with which the host pulls the pod's image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// SELinux labels of the pod's container, for hosts that enforce SELinux and give privileged containers another type than `spc_t`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub se_linux_options: Option<SELinuxOptions>,

    /// There only so that `false` is refused rather than dropped: the pod cannot run in a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self")
        .message("hostUsers: false cannot work: in a user namespace the pod can mount no sysfs for its nodes and write no control groups; leave it out, and isolate with runtimeClassName or nodes of its own"))]
    pub host_users: Option<bool>,
}

/// Further labels and annotations of the pod. Keys under `nestling.dev/` are the operator's.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('nestling.dev/'))").message("labels under nestling.dev/ are the operator's"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('nestling.dev/'))").message("annotations under nestling.dev/ are the operator's"))]
    pub annotations: BTreeMap<String, String>,
}
