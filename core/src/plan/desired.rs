//! From the spec to what it comes to: defaults filled in, versions resolved, everything checked that needs no look at the world.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::certificates::KUBECONFIG_LIFE;
use super::cidr;
use super::contents;
use super::credentials;
use super::kind_config;
use super::names::Identity;
use super::observed::created_at;
use super::policy::{Policy, Reach};
use super::preload;
use super::problem::Problem;
use super::quantity;
use super::recreation;
use super::registries;
use super::settings::Settings;
use super::wire::{AgentSettings, EgressPlan, PodLimits, SCHEMA};
use crate::api::kind_config::KindNode;
use crate::api::reasons::Reason;
use crate::api::{KindCluster, PodLossPolicy, Registry, StorageType};

/// Longest settings that go into a pod's annotation, in bytes. All annotations together may have 256 KiB.
const SETTINGS_LIMIT: usize = 128 * 1024;

const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

/// Memory of the first node and of each further worker, where the spec sets none. An idle node was measured at 600 MiB,
/// a worker at 150 MiB; the rest is for what the cluster is made for.
const DEFAULT_MEMORY: (i64, i64) = (2 * GIB, GIB);

/// Memory of each further control plane: as much for what the cluster is made for as a worker has, and what an idle control plane takes more than an idle worker
/// (its processes hold about 470 MiB, and share no file with those of another node).
const DEFAULT_CONTROL_PLANE_MEMORY: i64 = 1536 * MIB;

/// Least memory per node, and for the pod beside its nodes.
const LEAST_MEMORY: (i64, i64) = (896 * MIB, 192 * MIB);

/// CPU request of each control plane and of each worker, in thousandths.
const DEFAULT_CPU: (i64, i64) = (500, 250);

/// Disk of the first node and of each further one.
const DEFAULT_STORAGE: (i64, i64) = (10 * GIB, 5 * GIB);

/// Disk of a pod whose cluster lives on a volume of its own: for what is written beside it (such as directories of the pod that `extraMounts` names). Bounded, so
/// that nobody fills the host's disk by this way.
const STORAGE_BESIDE_VOLUME: i64 = GIB;

/// Bound of one attempt, where the spec sets none.
pub const DEFAULT_CREATION_TIMEOUT: Duration = Duration::from_mins(15);

/// What a spec comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Whose it is.
    pub identity: Identity,
    /// Version, as far as it is known before a node tells it.
    pub version: Option<String>,
    /// Node image.
    pub image: String,
    /// Number of nodes.
    pub node_count: i32,
    /// What the agent of the next attempt is told; its `attempt` is still 0.
    pub agent: AgentSettings,
    /// Digest of each part of the spec that only a new attempt can take over.
    pub digests: BTreeMap<String, String>,
    /// Digest of each field in those parts, as `part.field`, to name what has changed.
    pub details: BTreeMap<String, String>,
    /// Resources of the pod.
    pub resources: ResourceRequirements,
    /// Name of the published Secret.
    pub kubeconfig_secret: String,
    /// Life of the credentials in it.
    pub kubeconfig_lifetime: Duration,
    /// Bound of one attempt.
    pub creation_timeout: Duration,
    /// Number of further attempts after a failed one.
    pub backoff_limit: i32,
    /// What follows a loss.
    pub pod_loss_policy: PodLossPolicy,
    /// What of it the operator's owner does not allow or provide. No pod is made of it; one that was made before stays.
    pub violation: Option<Problem>,
}

/// Reads a spec.
///
/// # Errors
/// A [`Problem`] that only a change of the spec, or of the operator's settings, can mend.
pub fn desire(cluster: &KindCluster, identity: &Identity, settings: &Settings) -> Result<Desired, Problem> {
    let spec = &cluster.spec;
    if let Some(config) = &spec.config {
        kind_config::check(config)?;
    }
    registries::check(&spec.registries, spec.config.as_ref())?;
    credentials::check(cluster, identity)?;
    let (version, image) = image(cluster, settings)?;
    let counts = spec.nodes.clone().unwrap_or_default();
    let nodes = kind_config::nodes(spec.config.as_ref(), counts.control_planes, counts.workers);
    let node_count = i32::try_from(nodes.len()).unwrap_or(i32::MAX);
    let network = cidr::choose(wish(cluster)?, &settings.host.ranges)?;
    let policy = &settings.policy;
    let storage_bytes = storage(cluster, node_count, policy)?;
    let persistent = spec.storage.as_ref().is_some_and(|storage| storage.type_ == StorageType::Persistent);
    let loss = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pod_loss_policy).unwrap_or_default();
    let keep = persistent && loss == PodLossPolicy::Resume;
    let pod_disk = if persistent { policy.storage_within(STORAGE_BESIDE_VOLUME) } else { storage_bytes };
    let (resources, memory_bytes, cpu_millis) = resources(spec.resources.as_ref(), &nodes, pod_disk, policy)?;
    let limits = PodLimits { memory_bytes, cpu_millis, storage_bytes };
    let created = created_at(&cluster.metadata);
    let violation = policy.violation(&Reach { spec, created, image: &image, nodes: &nodes, resources: &resources, storage_bytes });
    let violation = violation.or_else(|| unprotected(cluster, settings)).or_else(|| contents::check(&spec.manifests).err());
    let agent = AgentSettings {
        schema: SCHEMA,
        cluster_uid: identity.uid.clone(),
        cluster_name: identity.name.clone(),
        attempt: 0,
        image: image.clone(),
        config: spec.config.clone(),
        control_planes: counts.control_planes,
        workers: counts.workers,
        network,
        cert_sans: cert_sans(cluster, identity, settings),
        limits,
        allow_cgroup_v1: settings.allow_cgroup_v1,
        registries: registries::settings(&spec.registries),
        preload: preload::images(cluster),
        egress: EgressPlan { guard: settings.egress_guard, allowed: settings.egress_allowed.clone(), host_api: settings.host.api },
        persistent,
        // As long as it has been a cluster, and none that was begun anew since, or is to be.
        resume: keep && cluster.status.as_ref().is_some_and(|status| status.cluster_attempt.is_some_and(|attempt| !recreation::is_over(status, attempt))),
        keep,
    };
    let size = serde_json::to_string(&agent).map_or(usize::MAX, |text| text.len());
    if size > SETTINGS_LIMIT {
        return Err(Problem::new(Reason::SpecTooLarge, format!("the cluster's settings come to {size} bytes, more than {SETTINGS_LIMIT}")));
    }
    let lifecycle = spec.lifecycle.clone().unwrap_or_default();
    Ok(Desired {
        identity: identity.clone(),
        version,
        digests: digests(cluster, &image, policy),
        details: details(cluster),
        image,
        node_count,
        agent,
        resources,
        kubeconfig_secret: spec
            .kubeconfig
            .as_ref()
            .and_then(|kubeconfig| kubeconfig.secret_name.clone())
            .unwrap_or_else(|| identity.default_kubeconfig_secret()),
        kubeconfig_lifetime: spec.kubeconfig.as_ref().and_then(|kubeconfig| kubeconfig.lifetime).map_or(KUBECONFIG_LIFE, Duration::from),
        creation_timeout: lifecycle.creation_timeout.map_or(DEFAULT_CREATION_TIMEOUT, Duration::from),
        backoff_limit: lifecycle.backoff_limit.unwrap_or(2),
        pod_loss_policy: loss,
        violation,
    })
}

/// The names in the API server's certificate: ours, and those that the spec adds.
pub(super) fn cert_sans(cluster: &KindCluster, identity: &Identity, settings: &Settings) -> Vec<String> {
    let (child, namespace) = (identity.child(), &settings.clusters_namespace);
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        child.clone(),
        format!("{child}.{namespace}"),
        identity.service_dns_name(namespace),
        format!("{child}.{namespace}.svc.cluster.local"),
    ];
    for name in cluster.spec.access.iter().flat_map(|access| &access.cert_sans) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// A protection that nothing enforces is worse than none.
fn unprotected(cluster: &KindCluster, settings: &Settings) -> Option<Problem> {
    let wanted = cluster.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.deletion_protection);
    (wanted && !settings.deletion_protection)
        .then(|| Problem::new(Reason::DeletionProtectionUnavailable, "lifecycle.deletionProtection is set, and no ValidatingAdmissionPolicy enforces it"))
}

/// Version and image. What was resolved once stays, so that a new default of the operator changes no existing cluster; unless it is not allowed any
/// more, because then nothing else would mend it.
fn image(cluster: &KindCluster, settings: &Settings) -> Result<(Option<String>, String), Problem> {
    if let Some(image) = &cluster.spec.image {
        return Ok((version_of_tag(image), image.clone()));
    }
    let resolved = cluster.status.as_ref().and_then(|status| Some((status.version.clone()?, status.image.clone()?)));
    if let Some((version, image)) = resolved
        && cluster.spec.version.as_ref().is_none_or(|wanted| *wanted == version)
        && settings.policy.admits_image(&image)
    {
        return Ok((Some(version), image));
    }
    let version = cluster.spec.version.as_ref().unwrap_or(&settings.default_version);
    let image = match settings.node_images.get(version) {
        Some(image) => image.clone(),
        None if !settings.node_image_repository.is_empty() => format!("{}:{version}", settings.node_image_repository),
        None => {
            let known: Vec<&str> = settings.node_images.keys().map(String::as_str).collect();
            return Err(Problem::new(Reason::NodeImageUnknown, format!("no node image is known for {version}; known are {}", known.join(", "))));
        }
    };
    Ok((Some(version.clone()), image))
}

/// `v1.34.4` of `kindest/node:v1.34.4@sha256:…`.
pub fn version_of_tag(image: &str) -> Option<String> {
    let name = image.split('@').next()?;
    let (_, tag) = name.rsplit_once(':')?;
    (tag.starts_with('v') && kind_config::KubernetesVersion::parse(tag).is_some()).then(|| tag.to_owned())
}

fn wish(cluster: &KindCluster) -> Result<cidr::Wish, Problem> {
    let read = |place: &str, text: Option<&String>| -> Result<Option<Ipv4Net>, Problem> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        let net: Ipv4Net = text.parse().map_err(|_| Problem::new(Reason::ConfigUnreadable, format!("{place} {text} is not an IPv4 range")))?;
        Ok(Some(net.trunc()))
    };
    let networking = cluster.spec.networking.as_ref();
    let config = cluster.spec.config.as_ref().and_then(|config| config.networking.as_ref());
    let pods = networking.and_then(|networking| networking.pod_cidrs.first()).or_else(|| config?.pod_subnet.as_ref());
    let services = networking.and_then(|networking| networking.service_cidrs.first()).or_else(|| config?.service_subnet.as_ref());
    Ok(cidr::Wish { pods: read("the pod range", pods)?, services: read("the Service range", services)? })
}

fn storage(cluster: &KindCluster, nodes: i32, policy: &Policy) -> Result<i64, Problem> {
    let Some(size) = cluster.spec.storage.as_ref().and_then(|storage| storage.size.clone()) else {
        return Ok(policy.storage_within(DEFAULT_STORAGE.0 + i64::from(nodes - 1) * DEFAULT_STORAGE.1));
    };
    quantity::units(&Quantity(size.clone())).ok_or_else(|| Problem::new(Reason::ConfigUnreadable, format!("storage.size {size} is not a quantity")))
}

/// Requests equal limits for memory and disk, so that the scheduler counts what the cluster may really take; CPU is requested and not
/// limited, because a control plane that is throttled misses its deadlines; unless the policy knows a maximum.
///
/// Returns also the limits of memory, in bytes, and of CPU, in thousandths.
fn resources(
    given: Option<&ResourceRequirements>,
    nodes: &[KindNode],
    disk: i64,
    policy: &Policy,
) -> Result<(ResourceRequirements, i64, Option<i64>), Problem> {
    let mut resources = given.cloned().unwrap_or_default();
    let requests = resources.requests.get_or_insert_default();
    let limits = resources.limits.get_or_insert_default();
    let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let control_planes = whole(kind_config::control_planes(nodes));
    let workers = whole(nodes.len()) - control_planes;
    let load_balancer = if control_planes > 1 { kind_config::LOAD_BALANCER_MEMORY } else { 0 };
    let default_memory = DEFAULT_MEMORY.0 + (control_planes - 1).max(0) * DEFAULT_CONTROL_PLANE_MEMORY + load_balancer + workers * DEFAULT_MEMORY.1;
    let memory = limits.get("memory").or_else(|| requests.get("memory")).cloned().unwrap_or_else(|| policy.within("memory", quantity::bytes(default_memory)));
    let cpu =
        limits.get("cpu").cloned().unwrap_or_else(|| policy.within("cpu", Quantity(format!("{}m", control_planes * DEFAULT_CPU.0 + workers * DEFAULT_CPU.1))));
    if let Some(most) = policy.most("cpu") {
        limits.entry("cpu".into()).or_insert_with(|| most.clone());
    }
    limits.entry("memory".into()).or_insert_with(|| memory.clone());
    requests.entry("memory".into()).or_insert_with(|| memory.clone());
    requests.entry("cpu".into()).or_insert(cpu);
    for list in [&mut *requests, &mut *limits] {
        list.entry("ephemeral-storage".into()).or_insert_with(|| quantity::bytes(disk));
    }

    let unreadable = |what: &str| Problem::new(Reason::ConfigUnreadable, format!("resources.limits.{what} is not a quantity"));
    let memory_bytes = limits.get("memory").and_then(quantity::units).ok_or_else(|| unreadable("memory"))?;
    let least = LEAST_MEMORY.1 + load_balancer + whole(nodes.len()) * LEAST_MEMORY.0;
    if memory_bytes < least {
        let message = format!("{} node(s) need at least {} of memory, resources.limits.memory is {}", nodes.len(), quantity::bytes(least).0, memory.0);
        return Err(Problem::new(Reason::ResourcesTooSmall, message));
    }
    let cpu_millis = limits.get("cpu").map(|cpu| quantity::thousandths(cpu).ok_or_else(|| unreadable("cpu"))).transpose()?;
    Ok((resources, memory_bytes, cpu_millis))
}

/// One digest per part of the spec that is fixed when a pod is created.
fn digests(cluster: &KindCluster, image: &str, policy: &Policy) -> BTreeMap<String, String> {
    let spec = &cluster.spec;
    let mut parts = vec![("image", json!(image))];
    parts.extend(structures(cluster));
    // Only where there is one, so that pods of earlier operators are not taken for outdated.
    if !policy.required_node_selector.is_empty() {
        parts.push(("the operator's requiredNodeSelector", json!(policy.required_node_selector)));
    }
    let digest = |(name, value): (&str, serde_json::Value)| (name.to_owned(), short_digest(&value.to_string()));
    parts.into_iter().map(digest).chain([(registries::DIGEST.to_owned(), registries_digest(&spec.registries))]).collect()
}

/// The parts of a spec that have fields of their own.
fn structures(cluster: &KindCluster) -> [(&'static str, serde_json::Value); 6] {
    let spec = &cluster.spec;
    [
        ("nodes", json!(spec.nodes)),
        ("config", json!(spec.config)),
        ("networking", json!(spec.networking)),
        ("resources", json!(spec.resources)),
        ("storage", json!(spec.storage)),
        ("pod", json!(spec.pod)),
    ]
}

/// One digest per field of those parts.
fn details(cluster: &KindCluster) -> BTreeMap<String, String> {
    let mut details = BTreeMap::new();
    for (part, value) in structures(cluster) {
        for (field, value) in value.as_object().into_iter().flatten() {
            details.insert(format!("{part}.{field}"), short_digest(&value.to_string()));
        }
    }
    details
}

/// The digest of the list of registries.
pub(super) fn registries_digest(registries: &[Registry]) -> String {
    short_digest(&json!(registries).to_string())
}

/// The first 16 hexadecimal digits of the SHA-256.
pub(super) fn short_digest(text: &str) -> String {
    let mut digest = data_encoding::HEXLOWER.encode(&Sha256::digest(text));
    digest.truncate(16);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;
    use rstest::rstest;

    fn desired(spec: &str) -> Result<Desired, Problem> {
        let cluster = testing::cluster(spec);
        desire(&cluster, &testing::identity(&cluster), &testing::settings())
    }

    #[rstest]
    #[case("{}", "kindest/node:v1.34.4@sha256:aa", Some("v1.34.4"))]
    #[case("{version: v1.33.1}", "kindest/node:v1.33.1", Some("v1.33.1"))]
    #[case("{image: 'me/node:v1.30.0@sha256:bb'}", "me/node:v1.30.0@sha256:bb", Some("v1.30.0"))]
    #[case("{image: 'localhost:5000/node'}", "localhost:5000/node", None)]
    fn images_are_resolved(#[case] spec: &str, #[case] image: &str, #[case] version: Option<&str>) {
        let desired = desired(spec).unwrap();
        assert_eq!((desired.image.as_str(), desired.version.as_deref()), (image, version));
    }

    #[test]
    fn a_resolved_image_outlives_the_operators_default() {
        let mut cluster = testing::cluster("{}");
        cluster.status.get_or_insert_default().version = Some("v1.29.0".into());
        cluster.status.get_or_insert_default().image = Some("old@sha256:1".into());
        let desired = desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap();
        assert_eq!(desired.image, "old@sha256:1");
        let policy = Policy::parse(r#"{"allowedImages": ["kindest/node"]}"#).unwrap();
        let desired = desire(&cluster, &testing::identity(&cluster), &Settings { policy, ..testing::settings() }).unwrap();
        assert_eq!((desired.image.as_str(), desired.violation), ("kindest/node:v1.34.4@sha256:aa", None));
    }

    #[test]
    fn an_unknown_version_without_a_repository_names_the_known_ones() {
        let cluster = testing::cluster("{version: v1.2.3}");
        let settings = Settings { node_image_repository: String::new(), ..testing::settings() };
        let problem = desire(&cluster, &testing::identity(&cluster), &settings).unwrap_err();
        assert_eq!(problem.reason, Reason::NodeImageUnknown);
        assert!(problem.message.contains("v1.34.4"), "{problem}");
    }

    #[rstest]
    #[case("{}", "2Gi", "500m", "10Gi")]
    #[case("{nodes: {workers: 2}}", "4Gi", "1", "20Gi")]
    #[case("{nodes: {controlPlanes: 3}}", "5248Mi", "1500m", "20Gi")]
    #[case("{nodes: {controlPlanes: 3, workers: 1}}", "6272Mi", "1750m", "25Gi")]
    #[case("{config: {nodes: [{role: worker}, {}, {role: control-plane}]}}", "4736Mi", "1250m", "20Gi")]
    #[case("{resources: {limits: {memory: 3Gi, cpu: '2'}}, storage: {size: 4Gi}}", "3Gi", "2", "4Gi")]
    #[case("{resources: {requests: {memory: 5Gi, cpu: 100m}}}", "5Gi", "100m", "10Gi")]
    fn resources_are_filled_in(#[case] spec: &str, #[case] memory: &str, #[case] cpu: &str, #[case] storage: &str) {
        let resources = desired(spec).unwrap().resources;
        let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        assert_eq!(requests["memory"], limits["memory"]);
        assert_eq!(requests["memory"].0, memory);
        assert_eq!(quantity::thousandths(&requests["cpu"]), quantity::thousandths(&Quantity(cpu.into())));
        assert_eq!(requests["ephemeral-storage"].0, storage);
    }

    #[rstest]
    #[case("{storage: {type: Persistent}}", "{}", "1Gi", 10 << 30)]
    #[case("{storage: {type: Persistent, size: 40Gi}}", "{}", "1Gi", 40 << 30)]
    #[case("{storage: {type: Persistent}, resources: {requests: {ephemeral-storage: 2Gi}, limits: {ephemeral-storage: 2Gi}}}", "{}", "2Gi", 10 << 30)]
    #[case("{storage: {type: Persistent}}", r#"{"maxResources": {"storage": "512Mi"}}"#, "512Mi", 512 << 20)]
    fn what_is_on_a_volume_is_not_asked_of_the_node(#[case] spec: &str, #[case] policy: &str, #[case] of_the_node: &str, #[case] size: i64) {
        let cluster = testing::cluster(spec);
        let settings = Settings { policy: Policy::parse(policy).unwrap(), ..testing::settings() };
        let desired = desire(&cluster, &testing::identity(&cluster), &settings).unwrap();
        for list in [desired.resources.requests, desired.resources.limits] {
            assert_eq!(list.unwrap()["ephemeral-storage"].0, of_the_node);
        }
        assert_eq!((desired.agent.persistent, desired.agent.limits.storage_bytes), (true, size));
        assert_eq!(desired.violation, None);
    }

    #[rstest]
    #[case("{resources: {limits: {memory: 512Mi}}}", Reason::ResourcesTooSmall)]
    #[case("{nodes: {workers: 2}, resources: {limits: {memory: 2Gi}}}", Reason::ResourcesTooSmall)]
    #[case("{nodes: {controlPlanes: 3}, resources: {limits: {memory: 2900Mi}}}", Reason::ResourcesTooSmall)]
    #[case("{networking: {podCIDRs: [10.96.0.0/12]}}", Reason::CIDROverlap)]
    #[case("{config: {networking: {podSubnet: 10.244.7.0/24}}}", Reason::CIDROverlap)]
    #[case("{config: {networking: {podSubnet: 'fd00::/64'}}}", Reason::ConfigUnreadable)]
    #[case("{config: {networking: {apiServerPort: 1}}}", Reason::ConfigFieldOwned)]
    #[case(
        "{registries: [{host: a.example, endpoints: ['http://b']}], config: {nodes: [{extraMounts: [{containerPath: /etc/containerd/certs.d}]}]}}",
        Reason::ConfigFieldOwned
    )]
    fn impossible_specs_are_refused(#[case] spec: &str, #[case] reason: Reason) {
        assert_eq!(desired(spec).unwrap_err().reason, reason);
    }

    #[test]
    fn a_protection_that_nothing_enforces_is_refused() {
        let cluster = testing::cluster("lifecycle: {deletionProtection: true}");
        for (deletion_protection, expected) in [(true, None), (false, Some(Reason::DeletionProtectionUnavailable))] {
            let desired = desire(&cluster, &testing::identity(&cluster), &Settings { deletion_protection, ..testing::settings() }).unwrap();
            assert_eq!(desired.violation.map(|problem| problem.reason), expected);
        }
    }

    #[test]
    fn too_large_a_config_is_refused() {
        let patch = format!("{{kind: KubeletConfiguration, x: {}}}", "a".repeat(16_000));
        let mut cluster = testing::cluster("{}");
        cluster.spec.config = Some(crate::api::kind_config::KindConfig { kubeadm_config_patches: vec![patch; 12], ..Default::default() });
        assert_eq!(desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap_err().reason, Reason::SpecTooLarge);
    }
}
