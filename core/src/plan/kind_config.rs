//! The configuration that kind gets: the user's, with what Nestling must have on top.
//!
//! Ours come last in each list, so that they win. Patches carry no `apiVersion`: kind then applies them whatever
//! version of kubeadm's configuration the node image speaks, and turns `extraArgs` maps into lists where that version wants
//! lists (`pkg/internal/patch/kubeadm_merge.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::mounts;
use super::problem::Problem;
use super::registries;
use super::wire::{AGENT_PORT, API_PORT, AgentSettings, HEALTH_PORT, keys};
use crate::api::kind_config::{KindConfig, KindMount, KindNode, KindRole};
use crate::api::reasons::Reason;

/// Port on the pod's loopback at which kind publishes the API server. The front door is the relay.
pub const KIND_API_PORT: i32 = 16443;

/// Memory that the agent and the Docker daemon need, in bytes.
const POD_OVERHEAD: i64 = 192 << 20;

/// Memory that a node needs besides its pods (systemd, containerd, kubelet) and the files that these read again and again, in bytes. With 256 MiB less in all, a
/// hog within its bound drove the pod to its own limit, and the API server did not answer for a minute.
const NODE_OVERHEAD: i64 = 320 << 20;

/// Memory that the load balancer before several control planes needs, in bytes.
pub(super) const LOAD_BALANCER_MEMORY: i64 = 128 << 20;

/// CPU that kubeadm's own pods request on a control-plane node, in thousandths; below it the kubelet would refuse them.
const LEAST_CPU: i64 = 1000;

/// Fields of kubeadm's objects that belong to the operator, as `(kind, path)`.
const OWNED: &[(&str, &[&str])] = &[
    ("ClusterConfiguration", &["certificatesDir"]),
    ("ClusterConfiguration", &["encryptionAlgorithm"]),
    ("ClusterConfiguration", &["controlPlaneEndpoint"]),
    ("InitConfiguration", &["bootstrapTokens"]),
    ("InitConfiguration", &["localAPIEndpoint"]),
    ("JoinConfiguration", &["discovery"]),
    ("JoinConfiguration", &["controlPlane", "localAPIEndpoint"]),
    ("KubeletConfiguration", &["cgroupDriver"]),
    ("KubeletConfiguration", &["cgroupRoot"]),
    ("KubeletConfiguration", &["failCgroupV1"]),
    ("KubeletConfiguration", &["systemReserved"]),
];

/// Names that clients use, to which kind and the user may add theirs.
const CERT_SANS: (&str, &[&str]) = ("ClusterConfiguration", &["apiServer", "certSANs"]);

/// What the agent found out about the machine that the nodes will see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeHost {
    /// Whether the machine has cgroup v2.
    pub cgroup_v2: bool,
    /// Whether processes may lower their `oom_score_adj` (`CAP_SYS_RESOURCE`).
    pub may_lower_oom_score: bool,
    /// Memory of the machine in bytes, which each kubelet takes for its own.
    pub memory_bytes: i64,
    /// Processors of the machine in thousandths, which each kubelet takes for its own.
    pub cpu_millis: i64,
    /// Whether the nodes' disk is the cluster's alone and as large as it was asked for. If not, each kubelet sees the disk of the host.
    pub own_disk: bool,
    /// Directory in the pod that holds the files of [`keys::CLUSTER`].
    pub keys_directory: String,
}

/// Version of Kubernetes in a node image.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct KubernetesVersion {
    /// The 1 of v1.34.4.
    pub major: u32,
    /// The 34 of v1.34.4.
    pub minor: u32,
}

impl KubernetesVersion {
    /// Reads `v1.34.4` or `1.34`, with anything behind.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()?;
        Some(Self { major, minor })
    }

    const fn at_least(self, minor: u32) -> bool {
        self.major > 1 || self.minor >= minor
    }
}

/// Refuses what the user's configuration must not say. Does not need to know the host.
///
/// # Errors
/// [`Reason::ConfigFieldOwned`], [`Reason::ConfigUnreadable`] or [`Reason::IPFamilyUnsupported`], naming the place.
pub fn check(config: &KindConfig) -> Result<(), Problem> {
    let owned = |path: String| Err(Problem::new(Reason::ConfigFieldOwned, format!("config.{path} is the operator's")));
    if let Some(networking) = &config.networking {
        if networking.api_server_address.is_some() {
            return owned("networking.apiServerAddress".into());
        }
        if networking.api_server_port.is_some() {
            return owned("networking.apiServerPort".into());
        }
        if let Some(family) = networking.ip_family.as_deref().filter(|family| !family.is_empty() && *family != "ipv4") {
            return Err(Problem::new(Reason::IPFamilyUnsupported, format!("config.networking.ipFamily is {family}")));
        }
    }
    check_merge_patches("kubeadmConfigPatches", &config.kubeadm_config_patches)?;
    check_json_patches("kubeadmConfigPatchesJSON6902", &config.kubeadm_config_patches_json6902)?;
    mounts::check(config.nodes.as_deref().unwrap_or_default())?;
    for (index, node) in config.nodes.iter().flatten().enumerate() {
        let place = format!("nodes[{index}]");
        check_merge_patches(&format!("{place}.kubeadmConfigPatches"), &node.kubeadm_config_patches)?;
        check_json_patches(&format!("{place}.kubeadmConfigPatchesJSON6902"), &node.kubeadm_config_patches_json6902)?;
        for (index, mapping) in node.extra_port_mappings.iter().enumerate() {
            if mapping.host_port.is_some_and(|port| [API_PORT, AGENT_PORT, HEALTH_PORT, KIND_API_PORT].contains(&port)) {
                return owned(format!("{place}.extraPortMappings[{index}].hostPort"));
            }
        }
    }
    Ok(())
}

/// Whether `path` is `directory` or below it, `..` and doubled slashes resolved.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    let parts = |path: &str| {
        let mut parts: Vec<String> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part.to_owned()),
            }
        }
        parts
    };
    parts(path).starts_with(&parts(directory))
}

fn check_merge_patches(place: &str, patches: &[String]) -> Result<(), Problem> {
    for (index, patch) in patches.iter().enumerate() {
        let place = format!("config.{place}[{index}]");
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(patch).map_err(|error| Problem::new(Reason::ConfigUnreadable, format!("{place} is not YAML: {error}")))?;
        for document in documents {
            let Some(kind) = document.get("kind").and_then(Value::as_str) else {
                return Err(Problem::new(Reason::ConfigUnreadable, format!("{place} has no kind, so kubeadm would apply it to nothing")));
            };
            if let Some((_, path)) = OWNED.iter().find(|(owned, path)| *owned == kind && document.pointer(&format!("/{}", path.join("/"))).is_some()) {
                return Err(Problem::new(Reason::ConfigFieldOwned, format!("{place}: {kind}.{} is the operator's", path.join("."))));
            }
        }
    }
    Ok(())
}

fn check_json_patches(place: &str, patches: &[crate::api::kind_config::PatchJson6902]) -> Result<(), Problem> {
    for (index, patch) in patches.iter().enumerate() {
        let place = format!("config.{place}[{index}]");
        let operations: Vec<Value> = serde_saphyr::from_str(&patch.patch)
            .map_err(|error| Problem::new(Reason::ConfigUnreadable, format!("{place}.patch is not a list of operations: {error}")))?;
        for operation in operations {
            let touched = ["path", "from"].into_iter().filter_map(|field| operation.get(field).and_then(Value::as_str));
            for pointer in touched {
                // An operation on a parent would replace the owned field as well.
                let hit = OWNED.iter().find(|(kind, path)| {
                    let owned = format!("/{}", path.join("/"));
                    *kind == patch.kind && (is_below(pointer, &owned) || is_below(&owned, pointer))
                });
                if let Some((kind, path)) = hit {
                    return Err(Problem::new(Reason::ConfigFieldOwned, format!("{place}: {kind}.{} is the operator's", path.join("."))));
                }
            }
        }
    }
    Ok(())
}

/// The nodes that a configuration and the counts beside it ask for.
pub fn nodes(config: Option<&KindConfig>, control_planes: i32, workers: i32) -> Vec<KindNode> {
    if let Some(nodes) = config.and_then(|config| config.nodes.as_ref()).filter(|nodes| !nodes.is_empty()) {
        return nodes.clone();
    }
    let node = |role| KindNode { role: Some(role), ..KindNode::default() };
    let of = |count: i32, role| std::iter::repeat_n(node(role), usize::try_from(count).unwrap_or(0));
    of(control_planes, KindRole::ControlPlane).chain(of(workers, KindRole::Worker)).collect()
}

/// How many of the nodes are control planes.
pub fn control_planes(nodes: &[KindNode]) -> usize {
    nodes.iter().filter(|node| node.role() == KindRole::ControlPlane).count()
}

/// The configuration that kind gets.
///
/// # Errors
/// As [`check`].
pub fn compose(settings: &AgentSettings, host: &NodeHost, version: KubernetesVersion, token: &str) -> Result<KindConfig, Problem> {
    let mut config = settings.config.clone().unwrap_or_default();
    check(&config)?;
    config.kind = Some("Cluster".into());
    config.api_version = Some("kind.x-k8s.io/v1alpha4".into());
    config.name = Some(settings.cluster_name.clone());

    let mut nodes = nodes(settings.config.as_ref(), settings.control_planes, settings.workers);
    // First, unlike ours below: what the user says of the same stands.
    let beneath = host.own_disk.then(disk_patch).into_iter().chain([haste_patch(&nodes)]);
    config.kubeadm_config_patches.splice(0..0, beneath.map(|patch| patch.to_string()));
    let networking = config.networking.get_or_insert_default();
    networking.api_server_address = Some("127.0.0.1".into());
    networking.api_server_port = Some(KIND_API_PORT);
    networking.pod_subnet = Some(settings.network.pods.to_string());
    networking.service_subnet = Some(settings.network.services.to_string());
    networking.dns_search.get_or_insert_default();

    let patches = kubeadm_patches(settings, host, version, token, &nodes);
    for node in &mut nodes {
        node.image.get_or_insert_with(|| settings.image.clone());
        node.kubeadm_config_patches.extend(patches.iter().map(Value::to_string));
        node.extra_mounts.extend(registries::mounts(&settings.registries));
    }
    // kind copies the files to further control planes itself.
    if let Some(first) = nodes.iter_mut().find(|node| node.role() == KindRole::ControlPlane) {
        first.extra_mounts.extend(keys::CLUSTER.iter().map(|(file, path)| KindMount {
            host_path: Some(format!("{}/{file}", host.keys_directory)),
            container_path: Some(format!("/etc/kubernetes/pki/{path}")),
            read_only: Some(true),
            other: Map::new(),
        }));
    }
    config.nodes = Some(nodes);
    config.containerd_config_patches.extend(containerd_patches(host));
    config.containerd_config_patches.extend(registries::containerd_patch(&settings.registries));
    Ok(config)
}

fn kubeadm_patches(settings: &AgentSettings, host: &NodeHost, version: KubernetesVersion, token: &str, nodes: &[KindNode]) -> Vec<Value> {
    let mut cluster = json!({"kind": "ClusterConfiguration", "apiServer": {"certSANs": settings.cert_sans}});
    if !settings.persistent {
        // What a cluster holds lives and dies with its pod: an fsync would protect what nobody can come back to.
        cluster["etcd"] = json!({"local": {"extraArgs": {"unsafe-no-fsync": "true"}}});
    }
    if version.at_least(36) {
        cluster["encryptionAlgorithm"] = json!("ECDSA-P256");
    } else {
        cluster["featureGates"] = json!({"PublicKeysECDSA": true});
    }
    if control_planes(nodes) == 1 {
        // Nobody to elect: saves a write every two seconds, and the wait for the old lease after a restart.
        for component in ["controllerManager", "scheduler"] {
            cluster[component] = json!({"extraArgs": {"leader-elect": "false"}});
        }
    }
    if version.at_least(36)
        && let Some(processors) = processors(settings, host)
    {
        for component in ["apiServer", "controllerManager", "scheduler", "etcd/local"] {
            // An index makes what is not there yet.
            let target = component.split('/').fold(&mut cluster, |target, name| &mut target[name]);
            target["extraEnvs"] = json!([{"name": "GOMAXPROCS", "value": processors.to_string()}]);
        }
    }
    let mut kubelet = json!({"kind": "KubeletConfiguration", "systemReserved": reserved(settings, host, nodes)});
    if !host.cgroup_v2 {
        // With systemd's driver only the first cluster after a boot comes up on cgroup v1.
        kubelet["cgroupDriver"] = json!("cgroupfs");
        kubelet["cgroupRoot"] = json!("/kubelet");
        if version.at_least(35) {
            kubelet["failCgroupV1"] = json!(false);
        }
    }
    vec![
        cluster,
        json!({"kind": "InitConfiguration", "bootstrapTokens": [{"token": token, "ttl": "1h0m0s"}]}),
        json!({"kind": "JoinConfiguration", "discovery": {"bootstrapToken": {"token": token}}}),
        kubelet,
    ]
}

/// kind turns everything off that a kubelet does about a full disk, because the kubelet sees the host's. Of a disk of the cluster's own, what is reserved by
/// default comes back, so that etcd does not meet its end. Images are still not collected before that: those that were loaded by hand cannot be had again.
fn disk_patch() -> Value {
    json!({"kind": "KubeletConfiguration", "evictionHard": {"nodefs.available": "10%", "nodefs.inodesFree": "5%"}})
}

/// What a cluster need not wait for.
fn haste_patch(nodes: &[KindNode]) -> Value {
    // A controller manager with credentials per controller asks for three things before it starts each of its forty controllers, and holds itself to 20 requests a
    // second: six seconds in which no DaemonSet gets a pod.
    let mut patch = json!({"kind": "ClusterConfiguration", "controllerManager": {"extraArgs": {"kube-api-qps": "200", "kube-api-burst": "400"}}});
    if control_planes(nodes) == 1 {
        // A single member waits for others before it elects itself, and serves nobody until then; an API server that asks too early tries again a second later.
        // Five heartbeats are the least that etcd takes. With nobody to send one to, a heartbeat is a tick of a clock.
        patch["etcd"] = json!({"local": {"extraArgs": {"heartbeat-interval": "20", "election-timeout": "100"}}});
    }
    patch
}

/// What each kubelet must leave alone, so that all allocatable memory and CPU together fit into the pod: a kubelet takes the whole machine for
/// its own. Equal for all nodes, because joining nodes read the first one's configuration.
pub fn reserved(settings: &AgentSettings, host: &NodeHost, nodes: &[KindNode]) -> BTreeMap<&'static str, String> {
    let load_balancer = if control_planes(nodes) > 1 { LOAD_BALANCER_MEMORY } else { 0 };
    let nodes = i64::try_from(nodes.len()).unwrap_or(i64::MAX).max(1);
    let mut reserved = BTreeMap::new();
    let share = (settings.limits.memory_bytes - POD_OVERHEAD - load_balancer - nodes * NODE_OVERHEAD) / nodes;
    if share > 0 && share < host.memory_bytes {
        reserved.insert("memory", format!("{}Ki", (host.memory_bytes - share) >> 10));
    }
    if let Some(limit) = settings.limits.cpu_millis {
        let share = (limit / nodes).max(LEAST_CPU);
        if share < host.cpu_millis {
            reserved.insert("cpu", format!("{}m", host.cpu_millis - share));
        }
    }
    reserved
}

/// Processors that the control plane is to count on, where the pod has fewer than the machine. Go looks at the limit of a program's own group,
/// and those of nested pods have none. Only kubeadm's newer format can set variables; kind replaces their list as a whole, so
/// one of the user's stands.
fn processors(settings: &AgentSettings, host: &NodeHost) -> Option<i64> {
    let limit = settings.limits.cpu_millis.filter(|limit| *limit < host.cpu_millis)?;
    let theirs = serde_json::to_string(&settings.config).is_ok_and(|config| config.contains("extraEnvs"));
    (!theirs).then_some(((limit + 999) / 1000).max(1))
}

fn containerd_patches(host: &NodeHost) -> Vec<String> {
    let mut patches = Vec::new();
    if !host.may_lower_oom_score {
        patches.push("[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n".to_owned());
    }
    if !host.cgroup_v2 {
        for runtime in ["runc", "test-handler"] {
            patches.push(format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{runtime}.options]\n  SystemdCgroup = false\n"));
        }
    }
    patches
}

/// Checks what kind wrote to `/kind/kubeadm.conf` of a control plane, given what it was told: kind does not tell whether a patch matched anything.
///
/// # Errors
/// [`Reason::ConfigNotApplied`], naming the first setting that is missing.
pub fn verify(written: &str, told: &KindConfig) -> Result<(), Problem> {
    let problem = |what: String| Problem::new(Reason::ConfigNotApplied, format!("kubeadm's configuration {what}"));
    let documents: Vec<Value> = serde_saphyr::from_multiple(written).map_err(|error| problem(format!("cannot be read: {error}")))?;
    let first = told.nodes.iter().flatten().find(|node| node.role() == KindRole::ControlPlane);
    // Ours are JSON, and come last.
    let patches: Vec<Value> =
        first.into_iter().flat_map(|node| &node.kubeadm_config_patches).rev().filter_map(|patch| serde_json::from_str(patch).ok()).collect();
    for (kind, path) in OWNED.iter().copied().chain([CERT_SANS]) {
        let of_kind = |documents: &[Value]| documents.iter().find(|document| document["kind"] == kind).cloned().unwrap_or_default();
        let pointer = format!("/{}", path.join("/"));
        let (patch, document) = (of_kind(&patches), of_kind(&documents));
        if let Some(wanted) = patch.pointer(&pointer)
            && !document.pointer(&pointer).is_some_and(|have| holds(have, wanted, (kind, path) == CERT_SANS))
        {
            return Err(problem(format!("lacks our {kind}.{}", path.join("."))));
        }
    }
    Ok(())
}

/// Whether a value is what was wanted: objects may have more fields, and lists more elements where others may `add` to them.
fn holds(have: &Value, wanted: &Value, add: bool) -> bool {
    match (have, wanted) {
        (Value::Object(have), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| have.get(name).is_some_and(|have| holds(have, wanted, add))),
        (Value::Array(have), Value::Array(wanted)) => {
            (add || have.len() == wanted.len()) && wanted.iter().all(|wanted| have.iter().any(|have| holds(have, wanted, add)))
        }
        _ => have == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::wire::{EgressPlan, NetworkPlan, PodLimits, RegistrySettings, SCHEMA};
    use rstest::rstest;

    fn settings(config: Option<&str>) -> AgentSettings {
        AgentSettings {
            schema: SCHEMA,
            cluster_uid: "uid".into(),
            cluster_name: "demo".into(),
            attempt: 1,
            image: "kindest/node:v1.34.4".into(),
            config: config.map(|text| serde_saphyr::from_str(text).unwrap()),
            control_planes: 1,
            workers: 1,
            network: NetworkPlan {
                pods: "10.245.0.0/16".parse().unwrap(),
                services: "10.97.0.0/16".parse().unwrap(),
                nodes: "172.31.255.0/24".parse().unwrap(),
                bridge: "172.31.254.0/24".parse().unwrap(),
                host: vec![],
            },
            cert_sans: vec!["localhost".into(), "c-demo.nestling-clusters.svc".into()],
            limits: PodLimits { memory_bytes: 3 << 30, cpu_millis: Some(2000), storage_bytes: 10 << 30 },
            allow_cgroup_v1: true,
            registries: vec![],
            preload: vec![],
            egress: EgressPlan::default(),
            persistent: false,
            resume: false,
            keep: false,
        }
    }

    fn host(cgroup_v2: bool) -> NodeHost {
        let keys_directory = "/run/nestling/pki".into();
        NodeHost { cgroup_v2, may_lower_oom_score: cgroup_v2, memory_bytes: 24 << 30, cpu_millis: 4000, own_disk: false, keys_directory }
    }

    const V1_34: KubernetesVersion = KubernetesVersion { major: 1, minor: 34 };
    const V1_36: KubernetesVersion = KubernetesVersion { major: 1, minor: 36 };

    fn yaml(config: &KindConfig) -> String {
        serde_saphyr::to_string(config).unwrap()
    }

    #[test]
    fn a_plain_cluster_on_cgroup_v1() {
        insta::assert_snapshot!(yaml(&compose(&settings(None), &host(false), V1_34, "abcdef.0123456789abcdeg").unwrap()));
    }

    #[test]
    fn three_control_planes() {
        let mut settings = settings(None);
        (settings.control_planes, settings.limits.memory_bytes) = (3, 6 << 30);
        insta::assert_snapshot!(yaml(&compose(&settings, &host(true), V1_34, "abcdef.0123456789abcdeg").unwrap()));
    }

    #[test]
    fn leaders_are_elected_where_there_is_a_choice_and_only_the_first_control_plane_gets_the_keys() {
        let mixed = "nodes: [{role: worker}, {role: control-plane}, {}]";
        for (config, control_planes) in [(None, 1), (None, 2), (None, 3), (Some(mixed), 2)] {
            let mut settings = settings(config);
            settings.control_planes = control_planes;
            let nodes = compose(&settings, &host(true), V1_36, "a.b").unwrap().nodes.unwrap();
            let reservations: Vec<_> = nodes.iter().map(|node| node.kubeadm_config_patches.last().unwrap()).collect();
            assert!(reservations.iter().all(|patch| *patch == reservations[0]), "{reservations:?}");
            for node in &nodes {
                let elects = !node.kubeadm_config_patches.iter().any(|patch| patch.contains("leader-elect"));
                assert_eq!(elects, control_planes > 1, "{control_planes}");
            }
            let with_keys: Vec<usize> = (0..nodes.len()).filter(|index| !nodes[*index].extra_mounts.is_empty()).collect();
            assert_eq!(with_keys, [usize::from(config.is_some())]);
        }
    }

    #[test]
    fn registries_reach_every_node() {
        let mut settings = settings(None);
        let plain = compose(&settings, &host(true), V1_34, "a.b").unwrap();
        settings.registries = vec![RegistrySettings { host: "r.example:5000".into(), endpoints: vec![], credentials: true, authority: true }];
        let config = compose(&settings, &host(true), V1_34, "a.b").unwrap();
        for (node, before) in config.nodes.unwrap().iter().zip(plain.nodes.unwrap()) {
            let new = node.extra_mounts.iter().filter(|mount| !before.extra_mounts.contains(mount));
            let mounted: Vec<_> = new.map(|mount| (mount.host_path.as_deref().unwrap(), mount.container_path.as_deref().unwrap(), mount.read_only)).collect();
            let expected = [
                ("/run/nestling/registries/certs.d", "/etc/containerd/certs.d", Some(true)),
                ("/run/nestling/registries/config.json", "/var/lib/kubelet/config.json", Some(true)),
            ];
            assert_eq!(mounted, expected, "{:?}", node.role());
        }
        assert!(config.containerd_config_patches.last().unwrap().contains("config_path = \"/etc/containerd/certs.d\""));
        assert!(plain.containerd_config_patches.iter().all(|patch| !patch.contains("config_path")));
    }

    #[test]
    fn what_somebody_can_come_back_to_is_written_for_good() {
        let composed = |persistent| yaml(&compose(&AgentSettings { persistent, ..settings(None) }, &host(true), V1_34, "a.b").unwrap());
        assert!(composed(false).contains("unsafe-no-fsync") && !composed(true).contains("unsafe-no-fsync"));
    }

    #[test]
    fn kubelets_clean_a_disk_that_is_the_clusters_own_unless_the_user_knows_better() {
        let theirs = "kubeadmConfigPatches: ['{kind: KubeletConfiguration, evictionHard: {nodefs.available: 2%}}']";
        for own_disk in [false, true] {
            let config = compose(&settings(Some(theirs)), &NodeHost { own_disk, ..host(true) }, V1_34, "a.b").unwrap();
            let mut patches = config.kubeadm_config_patches;
            assert!(patches.pop().unwrap().contains("2%"), "the last one wins");
            let expected = r#"{"evictionHard":{"nodefs.available":"10%","nodefs.inodesFree":"5%"},"kind":"KubeletConfiguration"}"#;
            let haste = patches.pop().unwrap();
            assert!(haste.contains("kube-api-qps"), "{haste}");
            assert_eq!(patches, [expected].repeat(usize::from(own_disk)));
        }
    }

    #[rstest]
    #[case(1, true)]
    #[case(3, false)]
    fn what_makes_a_cluster_hurry_is_beneath_what_the_user_says(#[case] control_planes: i32, #[case] alone: bool) {
        let theirs = "kubeadmConfigPatches: ['{kind: ClusterConfiguration, controllerManager: {extraArgs: {kube-api-qps: \"5\"}}}']";
        let config = compose(&AgentSettings { control_planes, ..settings(Some(theirs)) }, &host(true), V1_34, "a.b").unwrap();
        let [ours, theirs] = &config.kubeadm_config_patches[..] else { panic!("{:?}", config.kubeadm_config_patches) };
        assert!(theirs.contains("\"5\""), "the last one wins");
        assert!(ours.contains("kube-api-qps"));
        assert_eq!(ours.contains("election-timeout"), alone, "several members keep etcd's own time");
    }

    #[test]
    fn a_pasted_kind_yaml_on_cgroup_v2() {
        let pasted = r"
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: mine
featureGates: {InPlacePodVerticalScaling: true}
somethingNew: {kept: true}
networking: {disableDefaultCNI: true, kubeProxyMode: nftables}
kubeadmConfigPatches:
- |
  kind: ClusterConfiguration
  apiServer: {extraArgs: {audit-log-maxage: '3'}}
nodes:
- role: control-plane
  labels: {tier: gold}
  kubeadmConfigPatches: ['{kind: InitConfiguration, nodeRegistration: {kubeletExtraArgs: {v: 4}}}']
- role: worker
  image: kindest/node:v1.33.0
  taints: kept
";
        insta::assert_snapshot!(yaml(&compose(&settings(Some(pasted)), &host(true), V1_36, "abcdef.0123456789abcdeg").unwrap()));
    }

    #[rstest]
    #[case("networking: {apiServerPort: 6443}", Reason::ConfigFieldOwned, "config.networking.apiServerPort")]
    #[case("networking: {apiServerAddress: 0.0.0.0}", Reason::ConfigFieldOwned, "config.networking.apiServerAddress")]
    #[case("networking: {ipFamily: dual}", Reason::IPFamilyUnsupported, "ipFamily")]
    #[case("kubeadmConfigPatches: ['{kind: InitConfiguration, bootstrapTokens: []}']", Reason::ConfigFieldOwned, "kubeadmConfigPatches[0]")]
    #[case(
        "kubeadmConfigPatches: ['{kind: JoinConfiguration, controlPlane: {localAPIEndpoint: {bindPort: 1}}}']",
        Reason::ConfigFieldOwned,
        "JoinConfiguration.controlPlane.localAPIEndpoint"
    )]
    #[case("kubeadmConfigPatches: ['{cgroupDriver: systemd}']", Reason::ConfigUnreadable, "has no kind")]
    #[case("kubeadmConfigPatches: ['{kind: [']", Reason::ConfigUnreadable, "not YAML")]
    #[case("nodes: [{kubeadmConfigPatches: ['{kind: KubeletConfiguration, cgroupDriver: systemd}']}]", Reason::ConfigFieldOwned, "nodes[0]")]
    #[case("kubeadmConfigPatchesJSON6902: [{kind: KubeletConfiguration, patch: '[{op: remove, path: /cgroupRoot}]'}]", Reason::ConfigFieldOwned, "cgroupRoot")]
    #[case(
        "kubeadmConfigPatchesJSON6902: [{kind: InitConfiguration, patch: '[{op: remove, path: /bootstrapTokens/0/token}]'}]",
        Reason::ConfigFieldOwned,
        "bootstrapTokens"
    )]
    #[case(
        "kubeadmConfigPatchesJSON6902: [{kind: ClusterConfiguration, patch: '[{op: replace, path: \"\", value: {}}]'}]",
        Reason::ConfigFieldOwned,
        "ClusterConfiguration"
    )]
    #[case("nodes: [{extraMounts: [{hostPath: /var/../etc/nestling/keys, containerPath: /x}]}]", Reason::ConfigFieldOwned, "hostPath")]
    #[case("nodes: [{extraMounts: [{hostPath: /, containerPath: /x}]}]", Reason::ConfigFieldOwned, "hostPath")]
    #[case("nodes: [{extraMounts: [{hostPath: /tmp, containerPath: /etc/kubernetes//pki/ca.key}]}]", Reason::ConfigFieldOwned, "containerPath")]
    #[case("nodes: [{extraPortMappings: [{containerPort: 80, hostPort: 6443}]}]", Reason::ConfigFieldOwned, "hostPort")]
    fn what_is_ours_is_refused(#[case] config: &str, #[case] reason: Reason, #[case] place: &str) {
        let problem = check(&serde_saphyr::from_str(config).unwrap()).unwrap_err();
        assert_eq!(problem.reason, reason, "{problem}");
        assert!(problem.message.contains(place), "{problem}");
    }

    #[rstest]
    #[case("nodes: [{extraPortMappings: [{containerPort: 80, hostPort: 80}], extraMounts: [{hostPath: /tmp/x, containerPath: /data}]}]")]
    #[case("kubeadmConfigPatches: ['{kind: KubeletConfiguration, maxPods: 20}']")]
    #[case("kubeadmConfigPatchesJSON6902: [{kind: KubeletConfiguration, patch: '[{op: add, path: /maxPods, value: 20}]'}]")]
    fn what_is_the_users_is_left_alone(#[case] config: &str) {
        assert_eq!(check(&serde_saphyr::from_str(config).unwrap()), Ok(()));
    }

    #[test]
    fn allocatable_fits_the_pod_for_any_number_of_nodes() {
        for (control_planes, workers) in (1..=3).flat_map(|control_planes| (0..9).map(move |workers| (control_planes, workers))) {
            let mut settings = settings(None);
            settings.limits.memory_bytes = (2 + i64::from(control_planes + workers)) << 30;
            let host = host(true);
            let nodes = nodes(None, control_planes, workers);
            let reserved = reserved(&settings, &host, &nodes);
            let nodes = i64::try_from(nodes.len()).unwrap();
            let memory: i64 = reserved["memory"].trim_end_matches("Ki").parse::<i64>().unwrap() << 10;
            let beside = POD_OVERHEAD + if control_planes > 1 { LOAD_BALANCER_MEMORY } else { 0 };
            assert!(nodes * (host.memory_bytes - memory) <= settings.limits.memory_bytes - beside, "{control_planes} + {workers}");
            let cpu: i64 = reserved["cpu"].trim_end_matches('m').parse().unwrap();
            assert!(nodes * (host.cpu_millis - cpu) <= 2000.max(nodes * LEAST_CPU), "{control_planes} + {workers}");
        }
    }

    #[rstest]
    #[case::limit(V1_36, Some(1500), None, Some("2"))]
    #[case::small(V1_36, Some(200), None, Some("1"))]
    #[case::no_limit(V1_36, None, None, None)]
    #[case::as_large_as_the_machine(V1_36, Some(4000), None, None)]
    #[case::older_format(V1_34, Some(1500), None, None)]
    #[case::the_users_own(V1_36, Some(1500), Some("kubeadmConfigPatches: ['{kind: ClusterConfiguration, apiServer: {extraEnvs: []}}']"), None)]
    fn the_control_plane_counts_on_the_pods_processors(
        #[case] version: KubernetesVersion,
        #[case] cpu_millis: Option<i64>,
        #[case] config: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let mut settings = settings(config);
        settings.limits.cpu_millis = cpu_millis;
        let patches = kubeadm_patches(&settings, &host(true), version, "a.b", &nodes(None, 1, 0));
        for component in ["/apiServer", "/controllerManager", "/scheduler", "/etcd/local"] {
            let variables = patches[0].pointer(&format!("{component}/extraEnvs"));
            assert_eq!(variables, expected.map(|value| json!([{"name": "GOMAXPROCS", "value": value}])).as_ref(), "{component}");
        }
        assert_eq!(patches[0].pointer("/etcd/local/extraArgs/unsafe-no-fsync"), Some(&json!("true")));
    }

    #[test]
    fn what_kind_wrote_is_read_back() {
        let told = compose(&settings(Some("kubeadmConfigPatches: ['kind: ClusterConfiguration']")), &host(false), V1_36, "a.b").unwrap();
        let written = r"
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
apiServer: {certSANs: [localhost, 127.0.0.1, c-demo.nestling-clusters.svc, theirs.example]}
encryptionAlgorithm: ECDSA-P256
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens: [{token: a.b, ttl: 1h0m0s}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery: {bootstrapToken: {token: a.b, unsafeSkipCAVerification: true}}
---
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /kubelet
failCgroupV1: false
systemReserved: {cpu: 3000m, memory: 24018944Ki}
";
        assert_eq!(verify(written, &told), Ok(()));
        for (old, new, named) in [
            ("c-demo", "other", "certSANs"),
            ("ECDSA-P256", "RSA-2048", "encryptionAlgorithm"),
            ("[{token: a.b", "[{token: abcdef.0123456789abcdef", "bootstrapTokens"),
            // kind's own, beside ours.
            ("[{token: a.b", "[{token: abcdef.0123456789abcdef}, {token: a.b", "bootstrapTokens"),
            ("bootstrapToken: {token: a.b", "bootstrapToken: {token: abcdef.0123456789abcdef", "discovery"),
            ("cgroupfs", "systemd", "cgroupDriver"),
            ("failCgroupV1: false", "failCgroupV1: true", "failCgroupV1"),
            ("failCgroupV1: false", "", "failCgroupV1"),
            ("systemReserved", "kubeReserved", "systemReserved"),
            ("kind: KubeletConfiguration", "kind: KubeProxyConfiguration", "KubeletConfiguration"),
        ] {
            let changed = written.replace(old, new);
            assert_ne!(changed, written, "{old}");
            let problem = verify(&changed, &told).unwrap_err();
            assert_eq!(problem.reason, Reason::ConfigNotApplied, "{old}");
            assert!(problem.message.contains(named), "{problem}");
        }
    }

    #[test]
    fn a_kubelet_is_told_to_stay_on_cgroup_v1_where_it_knows_the_field_and_would_not() {
        let told = |cgroup_v2, version| kubeadm_patches(&settings(None), &host(cgroup_v2), version, "a.b", &nodes(None, 1, 0))[3].get("failCgroupV1").cloned();
        let v1_35 = KubernetesVersion { major: 1, minor: 35 };
        assert_eq!([told(false, V1_34), told(false, v1_35), told(false, V1_36), told(true, V1_36)], [None, Some(json!(false)), Some(json!(false)), None]);
    }

    #[rstest]
    #[case("v1.34.4", Some(V1_34))]
    #[case("v1.36.0-rc.1+k3s", Some(V1_36))]
    #[case("1.34", Some(V1_34))]
    #[case("latest", None)]
    fn versions_are_read(#[case] text: &str, #[case] version: Option<KubernetesVersion>) {
        assert_eq!(KubernetesVersion::parse(text), version);
    }
}
