//! What becomes of a change to each field of a spec. `docs/reference/api.md` shows it; a field that is missing here fails the tests.

/// What becomes of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// The running cluster takes it over, or it is about later attempts anyway.
    InPlace,
    /// The API server refuses it.
    Refused,
    /// `UpToDate` becomes `False` with `RecreateRequired` and the name of the field; the next cluster takes it over.
    Recreate,
}

impl Effect {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::InPlace => "in place",
            Self::Refused => "refused",
            Self::Recreate => "a new cluster",
        }
    }
}

/// Every field below `spec`, with all below it, and what else there is to say.
pub const FIELDS: &[(&str, Effect, &str)] = &[
    ("version", Effect::Recreate, ""),
    ("image", Effect::Recreate, ""),
    ("nodes", Effect::Recreate, ""),
    ("config", Effect::Recreate, ""),
    ("networking", Effect::Recreate, ""),
    ("access.service", Effect::InPlace, "the kubeconfig follows; with another `loadBalancerClass` the Service first loses its address"),
    ("access.certSANs", Effect::InPlace, "the API server takes up a new certificate without a restart; with an agent of an earlier release, a new cluster"),
    ("ports", Effect::InPlace, "connections through a port that is taken away end; with an agent of an earlier release, only a new cluster publishes ports"),
    ("powerState", Effect::InPlace, ""),
    ("kubeconfig.secretName", Effect::InPlace, "the earlier Secret goes"),
    ("kubeconfig.lifetime", Effect::InPlace, "new credentials at once; the earlier ones hold to their end"),
    ("kubeconfig.users", Effect::InPlace, "a user that is taken away loses its Secret and its binding; certificates hold to their end"),
    ("kubeconfig.argoCD", Effect::InPlace, ""),
    ("registries", Effect::Recreate, "what the named Secrets and ConfigMaps hold is read anew every hour"),
    ("preload", Effect::InPlace, "images are added to the running cluster, and none is removed; with an agent of an earlier release, a new cluster"),
    ("manifests", Effect::InPlace, "applied anew where they differ; what the named Secrets and ConfigMaps hold is read anew every hour"),
    ("readiness", Effect::InPlace, "means something only before the cluster is `Ready` for the first time"),
    ("lifecycle.ttl", Effect::InPlace, ""),
    ("lifecycle.expirationTime", Effect::InPlace, ""),
    ("lifecycle.deletionProtection", Effect::InPlace, ""),
    ("lifecycle.creationTimeout", Effect::InPlace, "also for an attempt that is under way"),
    ("lifecycle.backoffLimit", Effect::InPlace, ""),
    ("lifecycle.podLossPolicy", Effect::InPlace, ""),
    ("resources", Effect::Recreate, ""),
    ("storage.type", Effect::Refused, ""),
    ("storage.storageClassName", Effect::Refused, ""),
    ("storage.size", Effect::Recreate, ""),
    ("pod", Effect::Recreate, "also labels and annotations"),
    ("paused", Effect::InPlace, ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crds;
    use crate::plan::desired::{Desired, desire};
    use crate::plan::objects::{changed_since, pod};
    use crate::plan::testing;
    use serde_json::Value;

    /// Fields that nothing in the table covers.
    fn missing(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if FIELDS.iter().any(|(known, ..)| *known == path) {
                continue;
            }
            match field["properties"].as_object() {
                Some(_) if FIELDS.iter().any(|(known, ..)| known.starts_with(&format!("{path}."))) => missing(&path, field, found),
                _ => found.push(path),
            }
        }
    }

    #[test]
    fn every_field_of_the_schema_is_listed() {
        let crd = crds::all().remove(0);
        let schema = serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap()).unwrap();
        let spec = schema.pointer("/properties/spec").unwrap();
        let mut found = Vec::new();
        missing("", spec, &mut found);
        assert_eq!(found, Vec::<String>::new(), "say in FIELDS what a change to these does");
        for (path, ..) in FIELDS {
            assert!(spec.pointer(&format!("/properties/{}", path.replace('.', "/properties/"))).is_some(), "{path} is no field of the spec");
        }
    }

    /// Two specs that differ in one field, for each of [`FIELDS`].
    const CHANGES: &[(&str, &str, &str)] = &[
        ("version", "{}", "{version: v1.33.1}"),
        ("image", "{}", "{image: 'a:v1.33.1'}"),
        ("nodes", "{nodes: {workers: 1}}", "{nodes: {workers: 2}}"),
        ("config", "{config: {featureGates: {A: true}}}", "{config: {featureGates: {A: false}}}"),
        ("networking", "{networking: {podCIDRs: [10.100.0.0/16]}}", "{networking: {podCIDRs: [10.101.0.0/16]}}"),
        ("access.service", "{}", "{access: {service: {type: NodePort}}}"),
        ("access.certSANs", "{}", "{access: {certSANs: [api.example]}}"),
        ("ports", "{}", "{ports: [{name: web, port: 80, targetNodePort: 30080}]}"),
        ("powerState", "{}", "{powerState: Frozen}"),
        ("kubeconfig.secretName", "{}", "{kubeconfig: {secretName: other}}"),
        ("kubeconfig.lifetime", "{}", "{kubeconfig: {lifetime: 1h}}"),
        ("kubeconfig.users", "{kubeconfig: {users: [{name: ci, clusterRole: view}]}}", "{kubeconfig: {users: [{name: ci, groups: [a]}]}}"),
        ("kubeconfig.argoCD", "{}", "{kubeconfig: {argoCD: {}}}"),
        ("registries", "{}", "{registries: [{host: r.example, endpoints: ['http://m']}]}"),
        ("preload", "{}", "{preload: {images: ['a:1']}}"),
        ("manifests", "{}", "{manifests: [{name: a, configMapRef: {name: b}}]}"),
        ("readiness", "{}", "{readiness: {dns: true}}"),
        ("lifecycle.ttl", "{}", "{lifecycle: {ttl: 8h}}"),
        ("lifecycle.expirationTime", "{}", "{lifecycle: {expirationTime: '2030-01-01T00:00:00Z'}}"),
        ("lifecycle.deletionProtection", "{}", "{lifecycle: {deletionProtection: true}}"),
        ("lifecycle.creationTimeout", "{}", "{lifecycle: {creationTimeout: 5m}}"),
        ("lifecycle.backoffLimit", "{}", "{lifecycle: {backoffLimit: 7}}"),
        ("lifecycle.podLossPolicy", "{}", "{lifecycle: {podLossPolicy: Fail}}"),
        ("resources", "{}", "{resources: {limits: {memory: 4Gi}}}"),
        // The API server refuses them; what they would change is the volume.
        ("storage.type", "{storage: {type: Persistent}}", "{storage: {}}"),
        ("storage.storageClassName", "{storage: {type: Persistent}}", "{storage: {type: Persistent, storageClassName: fast}}"),
        ("storage.size", "{storage: {size: 4Gi}}", "{storage: {size: 5Gi}}"),
        ("pod", "{pod: {nodeSelector: {a: b}}}", "{pod: {nodeSelector: {a: c}}}"),
        ("paused", "{}", "{paused: true}"),
    ];

    #[test]
    fn a_change_does_what_the_list_says() {
        let desired = |spec: &str| -> Desired {
            let cluster = testing::cluster(spec);
            desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap()
        };
        assert_eq!(CHANGES.len(), FIELDS.len());
        for (path, effect, _) in FIELDS {
            let (_, before, after) = CHANGES.iter().find(|(name, ..)| name == path).unwrap_or_else(|| unreachable!("no change of {path} to try"));
            let made = pod(&testing::cluster(before), &desired(before), &testing::settings(), 1);
            let changed = changed_since(&made, &desired(after));
            assert_eq!(changed.is_empty(), *effect == Effect::InPlace, "{path}: {changed:?}");
            assert_eq!(changed_since(&made, &desired(before)), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn the_exact_field_is_named() {
        let desired = |spec: &str| {
            let cluster = testing::cluster(spec);
            desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap()
        };
        let spec = "{pod: {nodeSelector: {a: b}, priorityClassName: low}, nodes: {workers: 1}}";
        let mut made = pod(&testing::cluster(spec), &desired(spec), &testing::settings(), 1);
        let after = desired("{pod: {nodeSelector: {a: c}, priorityClassName: low, runtimeClassName: kata}, nodes: {workers: 1}, image: 'a:v1.33.0'}");
        assert_eq!(changed_since(&made, &after), ["image", "pod.nodeSelector", "pod.runtimeClassName"]);
        assert_eq!(changed_since(&made, &desired("{nodes: {workers: 1}}")), ["pod.nodeSelector", "pod.priorityClassName"]);
        made.metadata.annotations.as_mut().unwrap().remove(crate::api::annotations::SETTINGS_DETAIL);
        assert_eq!(changed_since(&made, &after), ["image", "pod"], "of an earlier operator's pod only the part is known");
    }
}
