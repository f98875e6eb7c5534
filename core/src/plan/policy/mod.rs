//! What the operator's owner allows. A cluster's user becomes root on the host's node that it runs on; the policy says which node, with which images, in
//! whose place and how much of it.
//!
//! What is empty is not limited. The chart's ValidatingAdmissionPolicy says the same in CEL, so that `kubectl apply` is refused at once; `tests/policy.rs`
//! holds both to one table.

mod image;
mod limit;
mod toleration;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube_core::Duration;
use serde::Deserialize;

pub use image::ImagePattern;
pub use limit::Limit;
pub use toleration::AllowedToleration;

use super::problem::Problem;
use super::quantity;
use super::situation::{later, readable};
use crate::api::reasons::Reason;
use crate::api::{KindClusterSpec, kind_config::KindNode};

/// Key of [`Policy::max_resources`] for disk: bounds `storage.size` and the resource [`EPHEMERAL_STORAGE`].
const STORAGE: &str = "storage";

/// The resource that [`STORAGE`] bounds.
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// Key of [`Policy::max_resources`] for the number of nodes.
const NODES: &str = "nodes";

/// The least [`Policy::max_lifetime`]. In less no cluster becomes ready.
const LEAST_LIFETIME: std::time::Duration = std::time::Duration::from_mins(1);

/// What the operator's owner allows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// Node images, also those that come out of a version.
    pub allowed_images: Vec<ImagePattern>,
    /// Labels that every pod asks of its node. A spec need not repeat them and must not contradict.
    pub required_node_selector: BTreeMap<String, String>,
    /// Tolerations; each of a spec must be covered by one of these.
    pub allowed_tolerations: Vec<AllowedToleration>,
    /// Priority classes; the empty string stands for a spec that names none.
    pub allowed_priority_classes: Vec<String>,
    /// Runtime classes; the empty string stands for a spec that names none.
    pub allowed_runtime_classes: Vec<String>,
    /// The most of a resource that one cluster may have; besides resources of Kubernetes `storage` and `nodes`.
    pub max_resources: BTreeMap<String, Limit>,
    /// How long a cluster may live, from its object's creation. One that sets no end of its own ends then.
    pub max_lifetime: Option<Duration>,
}

/// What a spec reaches for, defaults filled in.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// The spec.
    pub spec: &'a KindClusterSpec,
    /// When the object was created.
    pub created: Timestamp,
    /// The node image that it comes to.
    pub image: &'a str,
    /// The nodes that it comes to.
    pub nodes: &'a [KindNode],
    /// The resources of the pod.
    pub resources: &'a ResourceRequirements,
    /// Disk of the pod, in bytes.
    pub storage_bytes: i64,
}

impl Policy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if policy.max_resources.contains_key(EPHEMERAL_STORAGE) {
            return Err(format!("maxResources.{EPHEMERAL_STORAGE} is called maxResources.{STORAGE}"));
        }
        if policy.max_lifetime.is_some_and(|most| most < LEAST_LIFETIME) {
            return Err(format!("maxLifetime must be at least {}", readable(LEAST_LIFETIME)));
        }
        Ok(policy)
    }

    /// What is not allowed, all of it in one [`Reason::PolicyViolation`].
    pub fn violation(&self, reach: &Reach<'_>) -> Option<Problem> {
        let found =
            [self.images(reach), self.node_selector(reach), self.tolerations(reach), self.classes(reach), self.resources(reach), self.lifetime(reach)].concat();
        (!found.is_empty()).then(|| Problem::new(Reason::PolicyViolation, found.join("; ")))
    }

    /// An operator's default, or the maximum where that is less: what a spec leaves out is never a violation.
    pub fn within(&self, resource: &str, default: Quantity) -> Quantity {
        match self.max_resources.get(resource) {
            Some(max) if !max.admits(&default) => max.quantity().clone(),
            _ => default,
        }
    }

    /// The disk of a spec that names none.
    pub fn storage_within(&self, default: i64) -> i64 {
        quantity::units(&self.within(STORAGE, quantity::bytes(default))).unwrap_or(default)
    }

    /// The most of a resource, if that is limited.
    pub fn most(&self, resource: &str) -> Option<&Quantity> {
        self.max_resources.get(resource).map(Limit::quantity)
    }

    /// Whether this node image is allowed.
    pub fn admits_image(&self, image: &str) -> bool {
        self.allowed_images.is_empty() || self.allowed_images.iter().any(|pattern| pattern.admits(image))
    }

    fn images(&self, reach: &Reach<'_>) -> Vec<String> {
        let place = match (&reach.spec.image, &reach.spec.version) {
            (Some(_), _) => "image".to_owned(),
            (None, Some(version)) => format!("version {version}"),
            (None, None) => "version (the default)".to_owned(),
        };
        let of_nodes = reach.nodes.iter().enumerate().filter_map(|(index, node)| Some((format!("config.nodes[{index}].image"), node.image.as_deref()?)));
        let refused = std::iter::once((place, reach.image)).chain(of_nodes).filter(|(_, image)| !self.admits_image(image));
        let allowed = list(self.allowed_images.iter().map(ToString::to_string));
        refused.map(|(place, image)| format!("{place}: image {image} is not allowed; allowed are {allowed}")).collect()
    }

    fn node_selector(&self, reach: &Reach<'_>) -> Vec<String> {
        let Some(pod) = &reach.spec.pod else { return vec![] };
        let contradicts = self.required_node_selector.iter().filter_map(|(label, required)| Some((label, required, pod.node_selector.get(label)?)));
        contradicts
            .filter(|(_, required, wanted)| required != wanted)
            .map(|(label, required, wanted)| format!("pod.nodeSelector: {label}={wanted} is not allowed; required is {label}={required}"))
            .collect()
    }

    fn tolerations(&self, reach: &Reach<'_>) -> Vec<String> {
        let Some(pod) = reach.spec.pod.as_ref().filter(|_| !self.allowed_tolerations.is_empty()) else { return vec![] };
        let refused = pod.tolerations.iter().enumerate().filter(|(_, wanted)| !self.allowed_tolerations.iter().any(|allowed| allowed.covers(wanted)));
        let allowed = list(self.allowed_tolerations.iter().map(ToString::to_string));
        refused
            .map(|(index, wanted)| format!("pod.tolerations[{index}]: {} is not allowed; allowed are {allowed}", AllowedToleration::from(wanted.clone())))
            .collect()
    }

    fn classes(&self, reach: &Reach<'_>) -> Vec<String> {
        let pod = reach.spec.pod.as_ref();
        let priority = pod.and_then(|pod| pod.priority_class_name.as_deref()).unwrap_or_default();
        let runtime = pod.and_then(|pod| pod.runtime_class_name.as_deref()).unwrap_or_default();
        let named = [("priorityClassName", priority, &self.allowed_priority_classes), ("runtimeClassName", runtime, &self.allowed_runtime_classes)];
        named
            .into_iter()
            .filter(|(_, class, allowed)| !allowed.is_empty() && !allowed.iter().any(|name| name == class))
            .map(|(field, class, allowed)| {
                format!("pod.{field}: {} is not allowed; allowed are {}", or_none(class), list(allowed.iter().map(|name| or_none(name).to_owned())))
            })
            .collect()
    }

    fn lifetime(&self, reach: &Reach<'_>) -> Vec<String> {
        let (Some(max), Some(lifecycle)) = (self.max_lifetime, &reach.spec.lifecycle) else { return vec![] };
        let allowed = readable(max.into());
        let ttl = lifecycle.ttl.filter(|ttl| *ttl > max);
        let end = lifecycle.expiration_time.as_ref().filter(|time| time.0 > later(reach.created, max.into()));
        let found = [
            ttl.map(|ttl| format!("lifecycle.ttl: {} is more than the allowed {allowed}", readable(ttl.into()))),
            end.map(|time| format!("lifecycle.expirationTime: {} is more than the allowed {allowed} after the creation", time.0)),
            lifecycle.deletion_protection.then(|| format!("lifecycle.deletionProtection: is not allowed; allowed are lifetimes of at most {allowed}")),
        ];
        found.into_iter().flatten().collect()
    }

    fn resources(&self, reach: &Reach<'_>) -> Vec<String> {
        let mut found = Vec::new();
        for (resource, max) in &self.max_resources {
            let mut compare = |place: &str, wanted: &Quantity| {
                if !max.admits(wanted) {
                    found.push(format!("{place}: {} is more than the allowed {max}", wanted.0));
                }
            };
            match resource.as_str() {
                NODES => compare(NODES, &Quantity(reach.nodes.len().to_string())),
                STORAGE => compare("storage.size", &quantity::bytes(reach.storage_bytes)),
                _ => {}
            }
            let resource = if resource == STORAGE { EPHEMERAL_STORAGE } else { resource };
            for (list, quantities) in [("requests", &reach.resources.requests), ("limits", &reach.resources.limits)] {
                if let Some(wanted) = quantities.as_ref().and_then(|quantities| quantities.get(resource)) {
                    compare(&format!("resources.{list}.{resource}"), wanted);
                }
            }
        }
        found
    }
}

/// How an empty name is shown.
fn or_none(name: &str) -> &str {
    if name.is_empty() { "(none)" } else { name }
}

fn list(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::desired::{Desired, desire};
    use crate::plan::settings::Settings;
    use crate::plan::testing;
    use rstest::rstest;
    use serde_json::json;

    fn policy(yaml: &str) -> Policy {
        let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
        Policy::parse(&value.to_string()).unwrap()
    }

    fn desired(policy_text: &str, spec: &str) -> Desired {
        let cluster = testing::cluster(spec);
        desire(&cluster, &testing::identity(&cluster), &Settings { policy: policy(policy_text), ..testing::settings() }).unwrap()
    }

    fn said(policy: &str, spec: &str) -> Option<String> {
        desired(policy, spec).violation.map(|problem| {
            assert_eq!(problem.reason, Reason::PolicyViolation);
            problem.message
        })
    }

    const IMAGES: &str = "allowedImages: ['kindest/node:*', 'registry.example/team/*']";
    const TOLERATIONS: &str = "allowedTolerations: [{key: kind, operator: Exists, effect: NoSchedule}, {key: team, value: blue}]";
    const CLASSES: &str = "{allowedPriorityClasses: ['', low], allowedRuntimeClasses: [kata]}";
    const RESOURCES: &str = "maxResources: {cpu: 2, memory: 4Gi, storage: 12Gi, nodes: 3, 'nvidia.com/gpu': 0}";

    #[rstest]
    #[case::nothing_is_limited("{}", "{image: evil/node, pod: {tolerations: [{operator: Exists}], priorityClassName: system-node-critical}}")]
    #[case::the_default_version(IMAGES, "{}")]
    #[case::a_version(IMAGES, "{version: v1.33.1}")]
    #[case::an_image(IMAGES, "{image: 'docker.io/kindest/node:v1.30.0'}")]
    #[case::images_of_nodes(IMAGES, "{config: {nodes: [{image: registry.example/team/node}, {role: worker, image: 'kindest/node:v1.33.1'}]}}")]
    #[case::a_selector_beside("requiredNodeSelector: {pool: kind}", "pod: {nodeSelector: {disk: fast}}")]
    #[case::the_same_selector("requiredNodeSelector: {pool: kind}", "pod: {nodeSelector: {pool: kind}}")]
    #[case::no_toleration(TOLERATIONS, "{}")]
    #[case::covered_tolerations(TOLERATIONS, "pod: {tolerations: [{key: kind, value: x, effect: NoSchedule}, {key: team, operator: Equal, value: blue}]}")]
    #[case::classes(CLASSES, "pod: {priorityClassName: low, runtimeClassName: kata}")]
    #[case::no_priority_class(CLASSES, "pod: {runtimeClassName: kata}")]
    #[case::resources(RESOURCES, "{nodes: {workers: 2}, resources: {requests: {cpu: 1500m}, limits: {cpu: '2', memory: 4Gi}}, storage: {size: 12Gi}}")]
    #[case::no_end("maxLifetime: 8h", "{}")]
    #[case::an_end_in_time("maxLifetime: 8h", "lifecycle: {ttl: 8h, expirationTime: '1970-01-01T08:00:00Z'}")]
    #[case::protection("{}", "lifecycle: {deletionProtection: true}")]
    #[case::defaults_stay_below("maxResources: {cpu: 250m, memory: 1536Mi, storage: 4Gi}", "{}")]
    fn what_is_allowed(#[case] policy: &str, #[case] spec: &str) {
        assert_eq!(said(policy, spec), None);
    }

    #[rstest]
    #[case(IMAGES, "{image: evil/node}", "image: image evil/node is not allowed; allowed are kindest/node:*, registry.example/team/*")]
    #[case(
        "allowedImages: ['registry.example/*']",
        "{}",
        "version (the default): image kindest/node:v1.34.4@sha256:aa is not allowed; allowed are registry.example/*"
    )]
    #[case(
        "allowedImages: ['registry.example/*']",
        "{version: v1.33.1}",
        "version v1.33.1: image kindest/node:v1.33.1 is not allowed; allowed are registry.example/*"
    )]
    #[case(
        "allowedImages: ['kindest/node']",
        "{config: {nodes: [{}, {role: worker, image: evil}]}}",
        "config.nodes[1].image: image evil is not allowed; allowed are kindest/node"
    )]
    #[case("requiredNodeSelector: {pool: kind}", "pod: {nodeSelector: {pool: other}}", "pod.nodeSelector: pool=other is not allowed; required is pool=kind")]
    #[case(
        TOLERATIONS,
        "pod: {tolerations: [{key: kind, operator: Exists}]}",
        "pod.tolerations[0]: {key: kind, operator: Exists} is not allowed; allowed are {key: kind, operator: Exists, effect: NoSchedule}, {key: team, value: blue}"
    )]
    #[case(
        "allowedTolerations: [{key: kind, operator: Exists}]",
        "pod: {tolerations: [{key: kind}, {operator: Exists}]}",
        "pod.tolerations[1]: {operator: Exists} is not allowed; allowed are {key: kind, operator: Exists}"
    )]
    #[case("allowedPriorityClasses: ['', low]", "pod: {priorityClassName: high}", "pod.priorityClassName: high is not allowed; allowed are (none), low")]
    #[case("allowedRuntimeClasses: [kata]", "{}", "pod.runtimeClassName: (none) is not allowed; allowed are kata")]
    #[case("allowedRuntimeClasses: ['']", "pod: {runtimeClassName: weak}", "pod.runtimeClassName: weak is not allowed; allowed are (none)")]
    #[case("maxResources: {cpu: 2}", "resources: {requests: {cpu: 2001m}}", "resources.requests.cpu: 2001m is more than the allowed 2")]
    #[case("maxResources: {memory: 4Gi}", "resources: {limits: {memory: 5Gi}}", "resources.limits.memory: 5Gi is more than the allowed 4Gi")]
    #[case("maxResources: {storage: 4Gi}", "storage: {size: 5Gi}", "storage.size: 5Gi is more than the allowed 4Gi")]
    #[case(
        "maxResources: {storage: 4Gi}",
        "resources: {limits: {ephemeral-storage: 5Gi}}",
        "resources.limits.ephemeral-storage: 5Gi is more than the allowed 4Gi"
    )]
    #[case("maxResources: {nodes: 2}", "nodes: {workers: 2}", "nodes: 3 is more than the allowed 2")]
    #[case("maxResources: {nodes: 1}", "config: {nodes: [{}, {role: worker}]}", "nodes: 2 is more than the allowed 1")]
    #[case("maxResources: {nvidia.com/gpu: 0}", "resources: {limits: {nvidia.com/gpu: 1}}", "resources.limits.nvidia.com/gpu: 1 is more than the allowed 0")]
    #[case("maxResources: {cpu: 2}", "resources: {requests: {cpu: lots}}", "resources.requests.cpu: lots is more than the allowed 2")]
    #[case("maxLifetime: 8h", "lifecycle: {ttl: 8h30m}", "lifecycle.ttl: 8h30m is more than the allowed 8h")]
    #[case(
        "maxLifetime: 8h",
        "lifecycle: {ttl: 1h, expirationTime: '1970-01-01T08:00:01Z'}",
        "lifecycle.expirationTime: 1970-01-01T08:00:01Z is more than the allowed 8h after the creation"
    )]
    #[case("maxLifetime: 8h", "lifecycle: {deletionProtection: true}", "lifecycle.deletionProtection: is not allowed; allowed are lifetimes of at most 8h")]
    fn what_is_not_allowed_is_named(#[case] policy: &str, #[case] spec: &str, #[case] message: &str) {
        let found = said(policy, spec).unwrap();
        assert!(found.contains(message), "{found}");
    }

    #[test]
    fn all_violations_are_told_at_once() {
        let found = said(&format!("{{{IMAGES}, maxResources: {{nodes: 3}}}}"), "{image: evil, nodes: {workers: 4}}").unwrap();
        assert!(found.contains("image evil") && found.contains("nodes: 5"), "{found}");
    }

    #[test]
    fn a_limit_of_cpu_binds_also_who_asks_for_none() {
        let limits = desired("maxResources: {cpu: 2}", "{}").resources.limits.unwrap();
        assert_eq!(limits["cpu"].0, "2");
        assert!(!desired("{}", "{}").resources.limits.unwrap().contains_key("cpu"));
    }

    #[test]
    fn what_is_left_out_is_filled_in_below_the_maximum() {
        let desired = desired("maxResources: {cpu: 250m, memory: 1536Mi, storage: 4Gi}", "{}");
        let requests = desired.resources.requests.unwrap();
        assert_eq!(["cpu", "memory", "ephemeral-storage"].map(|name| requests[name].0.as_str()), ["250m", "1536Mi", "4Gi"]);
        assert_eq!(desired.agent.limits.storage_bytes, 4 << 30);
    }

    #[rstest]
    #[case(json!({"allowedImage": []}), "unknown field `allowedImage`")]
    #[case(json!({"allowedImages": ["a b"]}), "is not a pattern of an image")]
    #[case(json!({"allowedImages": [""]}), "is not a pattern of an image")]
    #[case(json!({"allowedTolerations": [{"key": "a", "seconds": 1}]}), "unknown field `seconds`")]
    #[case(json!({"allowedTolerations": [{"key": "a", "operator": "Like"}]}), "unknown variant `Like`")]
    #[case(json!({"maxResources": {"memory": "lots"}}), "lots is not a quantity")]
    #[case(json!({"maxResources": {"ephemeral-storage": "1Gi"}}), "is called maxResources.storage")]
    #[case(json!({"maxLifetime": "soon"}), "invalid floating-point number")]
    #[case(json!({"maxLifetime": "59s"}), "maxLifetime must be at least 1m")]
    #[case(json!({"maxLifetime": "-8h"}), "maxLifetime must be at least 1m")]
    fn a_policy_that_cannot_be_meant_is_refused(#[case] policy: serde_json::Value, #[case] message: &str) {
        let error = Policy::parse(&policy.to_string()).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}
