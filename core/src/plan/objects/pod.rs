//! The pod that is one attempt. It is created and never applied again: what is fixed here is fixed for its life.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    HostPathVolumeSource, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodSpec, Probe, SELinuxOptions, SecretKeySelector, SecretVolumeSource,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::{KindCluster, annotations, labels};
use crate::plan::desired::{Desired, registries_digest};
use crate::plan::quantity;
use crate::plan::registries::{self, want_secret};
use crate::plan::settings::{Proxy, Settings};
use crate::plan::wire::{AGENT_PORT, API_PORT, AgentSettings, DATA_ROOT, HEALTH_PORT, KEYS_DIRECTORY, REGISTRIES_DIRECTORY, SETTINGS_FILE};

/// Time that the agent has to take the cluster down, in seconds. The 30 that a pod gets by default are not enough for
/// containers, daemon and mounts.
const GRACE_SECONDS: i64 = 120;

/// The attempt that a pod is, by its label.
pub fn attempt_of(pod: &Pod) -> i64 {
    pod.metadata.labels.as_ref().and_then(|have| have.get(labels::ATTEMPT)?.parse().ok()).unwrap_or(0)
}

/// The digests of the spec that a pod was made from.
pub fn digests_of(pod: &Pod) -> BTreeMap<String, String> {
    let text = pod.metadata.annotations.as_ref().and_then(|have| have.get(annotations::SETTINGS_DIGEST));
    let mut digests: BTreeMap<String, String> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    // Earlier operators knew of no registries: their pods are not outdated for that.
    digests.entry(registries::DIGEST.to_owned()).or_insert_with(|| registries_digest(&[]));
    digests
}

/// Whether a pod is to bring an earlier one's cluster back.
pub fn resumes(pod: &Pod) -> bool {
    let text = pod.metadata.annotations.as_ref().and_then(|have| have.get(annotations::SETTINGS));
    text.and_then(|text| serde_json::from_str::<AgentSettings>(text).ok()).is_some_and(|settings| settings.resume)
}

/// What of the spec has changed since a pod was made that only a new one can take over: the fields, as far as the pod knows them.
pub fn changed_since(pod: &Pod, desired: &Desired) -> Vec<String> {
    let made_from = digests_of(pod);
    let text = pod.metadata.annotations.as_ref().and_then(|have| have.get(annotations::SETTINGS_DETAIL));
    let details: BTreeMap<String, String> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut changed = Vec::new();
    for part in desired.digests.iter().filter(|(part, digest)| made_from.get(*part) != Some(digest)).map(|(part, _)| part) {
        let of_part = |name: &&String| name.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let mut fields: Vec<&String> = desired.details.keys().chain(details.keys()).filter(of_part).collect();
        fields.sort();
        fields.dedup();
        fields.retain(|field| desired.details.get(*field) != details.get(*field));
        // Earlier operators' pods know of no fields.
        if fields.is_empty() || text.is_none() {
            changed.push(part.clone());
        } else {
            changed.extend(fields.into_iter().cloned());
        }
    }
    changed
}

/// The pod of one attempt.
pub fn pod(cluster: &KindCluster, desired: &Desired, settings: &Settings, attempt: i64) -> Pod {
    let options = cluster.spec.pod.clone().unwrap_or_default();
    let theirs = options.metadata.unwrap_or_default();
    let mut meta = metadata(desired.identity.pod(attempt), &desired.identity, settings);
    let mut all_labels = theirs.labels;
    all_labels.extend(meta.labels.take().unwrap_or_default());
    all_labels.insert(labels::ATTEMPT.to_owned(), attempt.to_string());
    meta.labels = Some(all_labels);
    let mut agent = desired.agent.clone();
    agent.attempt = attempt;
    // A sidecar would redirect the traffic of the whole cluster; an eviction would end it.
    let mut all_annotations =
        BTreeMap::from([("sidecar.istio.io/inject".to_owned(), "false".to_owned()), (annotations::SAFE_TO_EVICT.to_owned(), "false".to_owned())]);
    all_annotations.extend(theirs.annotations);
    let ours = [
        (annotations::SETTINGS, serde_json::to_string(&agent)),
        (annotations::SETTINGS_DIGEST, serde_json::to_string(&desired.digests)),
        (annotations::SETTINGS_DETAIL, serde_json::to_string(&desired.details)),
    ];
    for (key, value) in ours {
        all_annotations.insert(key.to_owned(), value.unwrap_or_default());
    }
    meta.annotations = Some(all_annotations);

    let mut node_selector = options.node_selector;
    node_selector.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    // Node affinity is asked for besides, so it leads to no other node.
    node_selector.extend(settings.policy.required_node_selector.clone());
    Pod {
        metadata: meta,
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            containers: vec![container(desired, settings, options.se_linux_options)],
            volumes: Some(volumes(desired, settings)),
            node_selector: Some(node_selector),
            tolerations: (!options.tolerations.is_empty()).then_some(options.tolerations),
            affinity: options.affinity,
            runtime_class_name: options.runtime_class_name,
            priority_class_name: options.priority_class_name,
            image_pull_secrets: (!options.image_pull_secrets.is_empty()).then_some(options.image_pull_secrets),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(desired: &Desired, settings: &Settings, se_linux_options: Option<SELinuxOptions>) -> Container {
    let port = |name: &str, number: i32| ContainerPort { name: Some(name.to_owned()), container_port: number, ..ContainerPort::default() };
    let probe = |path: &str, period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(HEALTH_PORT), ..HTTPGetAction::default() }),
        period_seconds: Some(period),
        timeout_seconds: Some(10),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    // Injected by the kubelet even without service links; empty, so that nothing in the pod takes the host's API for its own.
    let env =
        ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].map(|name| EnvVar { name: name.to_owned(), value: Some(String::new()), ..EnvVar::default() });
    Container {
        name: "cluster".to_owned(),
        image: Some(settings.pod_image_for(desired.version.as_deref()).to_owned()),
        image_pull_policy: Some(settings.pod_image_pull_policy.clone()).filter(|policy| !policy.is_empty()),
        args: Some(vec!["agent".to_owned()]),
        env: Some(env.into_iter().chain(proxy(&settings.proxy)).collect()),
        ports: Some(vec![port("https", API_PORT), port("agent", AGENT_PORT), port("health", HEALTH_PORT)]),
        resources: Some(desired.resources.clone()),
        security_context: Some(SecurityContext {
            privileged: Some(true),
            // A profile of the host would bind every process of the cluster as well.
            app_armor_profile: Some(AppArmorProfile { type_: "Unconfined".to_owned(), ..AppArmorProfile::default() }),
            se_linux_options,
            ..SecurityContext::default()
        }),
        readiness_probe: Some(probe("/readyz", 5, 1)),
        liveness_probe: Some(probe("/livez", 20, 6)),
        volume_mounts: Some(mounts(desired, settings)),
        ..Container::default()
    }
}

/// The proxy for the Docker daemon and, by way of kind, for the nodes. An address with a password comes from a Secret: the pod itself can be read
/// by more people.
fn proxy(proxy: &Proxy) -> Vec<EnvVar> {
    let variables = [("HTTP_PROXY", "httpProxy", &proxy.http), ("HTTPS_PROXY", "httpsProxy", &proxy.https), ("NO_PROXY", "noProxy", &proxy.no)];
    if proxy.secret.is_empty() {
        let variable = |(name, _, value): (&str, _, &String)| EnvVar { name: name.to_owned(), value: Some(value.clone()), ..EnvVar::default() };
        return variables.into_iter().filter(|(_, _, value)| !value.is_empty()).map(variable).collect();
    }
    let variable = |(name, key, _): (&str, &str, _)| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            // Not optional: without the way out nothing would be reached, and nobody told why.
            secret_key_ref: Some(SecretKeySelector { name: proxy.secret.clone(), key: key.to_owned(), optional: None }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    variables.into_iter().map(variable).collect()
}

fn mounts(desired: &Desired, settings: &Settings) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let settings_directory = SETTINGS_FILE.rsplit_once('/').map_or(SETTINGS_FILE, |(directory, _)| directory);
    let mut mounts = vec![
        mount("data", DATA_ROOT, false),
        mount("run", "/run/nestling", false),
        mount("keys", KEYS_DIRECTORY, true),
        mount("settings", settings_directory, true),
    ];
    if settings.mount_modules {
        mounts.push(mount("modules", "/lib/modules", true));
    }
    if want_secret(&desired.agent.registries) {
        mounts.push(mount("registries", REGISTRIES_DIRECTORY, true));
    }
    mounts
}

/// The volume of the data-root.
fn data(desired: &Desired) -> Volume {
    let name = "data".to_owned();
    if desired.agent.persistent {
        let claim = PersistentVolumeClaimVolumeSource { claim_name: desired.identity.volume_claim(), read_only: None };
        return Volume { name, persistent_volume_claim: Some(claim), ..Volume::default() };
    }
    let size_limit = Some(quantity::bytes(desired.agent.limits.storage_bytes));
    Volume { name, empty_dir: Some(EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() }), ..Volume::default() }
}

fn volumes(desired: &Desired, settings: &Settings) -> Vec<Volume> {
    let mut volumes = vec![
        data(desired),
        Volume {
            name: "run".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(quantity::bytes(64 << 20)) }),
            ..Volume::default()
        },
        Volume {
            name: "keys".to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(desired.identity.keys()), default_mode: Some(0o400), ..SecretVolumeSource::default() }),
            ..Volume::default()
        },
        Volume {
            name: "settings".to_owned(),
            downward_api: Some(DownwardAPIVolumeSource {
                items: Some(vec![DownwardAPIVolumeFile {
                    path: SETTINGS_FILE.rsplit_once('/').map_or(SETTINGS_FILE, |(_, file)| file).to_owned(),
                    field_ref: Some(ObjectFieldSelector {
                        field_path: format!("metadata.annotations['{}']", annotations::SETTINGS),
                        ..ObjectFieldSelector::default()
                    }),
                    ..DownwardAPIVolumeFile::default()
                }]),
                ..DownwardAPIVolumeSource::default()
            }),
            ..Volume::default()
        },
    ];
    if settings.mount_modules {
        // No type: a host without loadable modules has no such directory, and that is fine.
        volumes.push(Volume {
            name: "modules".to_owned(),
            host_path: Some(HostPathVolumeSource { path: "/lib/modules".to_owned(), type_: None }),
            ..Volume::default()
        });
    }
    if want_secret(&desired.agent.registries) {
        volumes.push(Volume {
            name: "registries".to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(desired.identity.registries()), default_mode: Some(0o400), ..SecretVolumeSource::default() }),
            ..Volume::default()
        });
    }
    volumes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{desired::desire, policy::Policy, testing};
    use rstest::rstest;

    fn made(spec: &str) -> Pod {
        made_with(&testing::settings(), spec)
    }

    fn made_under(policy: Policy, spec: &str) -> Pod {
        made_with(&Settings { policy, ..testing::settings() }, spec)
    }

    fn made_with(settings: &Settings, spec: &str) -> Pod {
        let cluster = testing::cluster(spec);
        let desired = desire(&cluster, &testing::identity(&cluster), settings).unwrap();
        pod(&cluster, &desired, settings, 3)
    }

    #[test]
    fn the_pod() {
        insta::assert_yaml_snapshot!(made("{}"));
    }

    #[test]
    fn the_users_options_reach_the_pod_but_take_nothing_over() {
        let spec = "pod: {metadata: {labels: {team: blue, app.kubernetes.io/managed-by: me}, annotations: {a: b}}, nodeSelector: {disk: fast}, runtimeClassName: kata, priorityClassName: high, imagePullSecrets: [{name: s}], tolerations: [{key: k, operator: Exists}]}";
        let pod = made(spec);
        let (labels, annotations) = (pod.metadata.labels.unwrap(), pod.metadata.annotations.unwrap());
        assert_eq!((labels["team"].as_str(), labels["app.kubernetes.io/managed-by"].as_str(), annotations["a"].as_str()), ("blue", "nestling", "b"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_selector.unwrap()["disk"], "fast");
        assert_eq!((spec.runtime_class_name.as_deref(), spec.priority_class_name.as_deref()), (Some("kata"), Some("high")));
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "s");
        assert_eq!(spec.tolerations.unwrap()[0].key.as_deref(), Some("k"));
    }

    #[rstest]
    #[case("{version: v1.33.1}", "registry.example/node:1-v1.33.1")]
    #[case("{image: 'mine/node:v1.33.1'}", "registry.example/node:1-v1.33.1")]
    #[case("{image: 'mine/node:latest'}", "registry.example/node:1")]
    #[case("{}", "registry.example/node:1")]
    fn the_pod_carries_the_version_of_its_cluster(#[case] spec: &str, #[case] image: &str) {
        let pod_images = BTreeMap::from([("v1.33.1".to_owned(), "registry.example/node:1-v1.33.1".to_owned())]);
        let pod = made_with(&Settings { pod_images, ..testing::settings() }, spec);
        assert_eq!(pod.spec.unwrap().containers[0].image.as_deref(), Some(image));
    }

    /// Name, value and Secret of each variable.
    fn variables(settings: &Settings) -> Vec<(String, Option<String>, Option<String>)> {
        let env = made_with(settings, "{}").spec.unwrap().containers.remove(0).env.unwrap();
        let source = |variable: &EnvVar| {
            let from = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
            Some(format!("{}/{}", from.name, from.key))
        };
        env.iter().map(|variable| (variable.name.clone(), variable.value.clone(), source(variable))).skip(2).collect()
    }

    #[test]
    fn a_proxy_with_a_password_is_not_in_the_pod() {
        let mut settings = testing::settings();
        assert!(variables(&settings).is_empty());
        settings.proxy = Proxy { https: "http://proxy:3128".into(), no: ".svc".into(), ..Proxy::default() };
        let value = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()), None);
        assert_eq!(variables(&settings), [value("HTTPS_PROXY", "http://proxy:3128"), value("NO_PROXY", ".svc")]);
        settings.proxy.secret = "proxy".into();
        let from = |name: &str, key: &str| (name.to_owned(), None, Some(format!("proxy/{key}")));
        assert_eq!(variables(&settings), [from("HTTP_PROXY", "httpProxy"), from("HTTPS_PROXY", "httpsProxy"), from("NO_PROXY", "noProxy")]);
    }

    #[test]
    fn what_registries_want_to_see_is_mounted_where_there_is_any() {
        let secrets = |spec: &str| -> Vec<String> {
            let volumes = made(spec).spec.unwrap().volumes.unwrap();
            volumes.into_iter().filter_map(|volume| volume.secret?.secret_name).collect()
        };
        let identity = testing::identity(&testing::cluster("{}"));
        assert_eq!(secrets("registries: [{host: r.example, endpoints: ['http://m']}]"), [identity.keys()]);
        assert_eq!(secrets("registries: [{host: r.example, caConfigMapRef: {name: ca}}]"), [identity.keys(), identity.registries()]);
        // Nothing but names is written into the pod.
        let text = serde_json::to_string(&made("registries: [{host: r.example, credentialsSecretRef: {name: login}}]")).unwrap();
        assert!(text.contains("r.example") && !text.contains("login"), "{text}");
    }

    /// Everything that a user can say about the pod.
    const ALL_OPTIONS: &str = "pod: {metadata: {labels: {team: blue}, annotations: {a: b}}, nodeSelector: {disk: fast}, tolerations: [{operator: Exists}], \
        affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [other]}]}]}}}, \
        runtimeClassName: kata, priorityClassName: high, imagePullSecrets: [{name: s}], seLinuxOptions: {type: spc_t, level: s0}, hostUsers: true}";

    #[test]
    fn the_pod_with_all_options() {
        insta::assert_yaml_snapshot!(made(ALL_OPTIONS).spec.unwrap());
    }

    /// Every value below any key of this name.
    fn find<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a serde_json::Value>) {
        let below: Vec<&serde_json::Value> = match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get(key));
                fields.values().collect()
            }
            serde_json::Value::Array(items) => items.iter().collect(),
            _ => vec![],
        };
        for value in below {
            find(value, key, found);
        }
    }

    #[test]
    fn nothing_of_the_host_is_taken_but_modules_and_those_read_only() {
        for spec in ["{}", ALL_OPTIONS] {
            let pod = serde_json::to_value(made(spec)).unwrap();
            let mut paths = Vec::new();
            find(&pod, "hostPath", &mut paths);
            assert_eq!(paths, [&serde_json::json!({"path": "/lib/modules"})]);
            let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
            assert!(mounts.iter().all(|mount| mount["name"] != "modules" || mount["readOnly"] == true));
            assert!(mounts.iter().all(|mount| mount["mountPropagation"].is_null()), "nothing is mounted back into the host");
            for key in ["hostNetwork", "hostPID", "hostIPC", "hostUsers", "hostPort", "hostAliases"] {
                let mut found = Vec::new();
                find(&pod, key, &mut found);
                assert!(found.is_empty(), "{key}: {found:?}");
            }
        }
    }

    #[test]
    fn what_the_owner_requires_of_the_node_is_asked_for_also_beside_an_affinity() {
        let policy = || Policy::parse(r#"{"requiredNodeSelector": {"pool": "kind"}}"#).unwrap();
        for spec in ["{}", "pod: {nodeSelector: {disk: fast}}", ALL_OPTIONS] {
            let selector = made_under(policy(), spec).spec.unwrap().node_selector.unwrap();
            assert_eq!(selector["pool"], "kind", "{spec}");
            assert_eq!(selector["kubernetes.io/os"], "linux");
        }
    }

    /// A LimitRange fills in what a container leaves out: a default of 256 MiB would end kubeadm.
    #[rstest]
    #[case("{}")]
    #[case("{nodes: {workers: 3}}")]
    #[case("{resources: {limits: {cpu: '4'}}}")]
    #[case("{resources: {requests: {memory: 3Gi}}, storage: {size: 4Gi}}")]
    #[case("{storage: {type: Persistent}}")]
    fn a_limit_range_finds_nothing_to_fill_in(#[case] spec: &str) {
        let spec = made(spec).spec.unwrap();
        assert!(spec.init_containers.is_none() && spec.containers.len() == 1, "a further container would get the defaults");
        let resources = spec.containers[0].resources.clone().unwrap();
        let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        assert!(requests.contains_key("cpu"));
        for name in ["memory", "ephemeral-storage"] {
            assert!(requests.contains_key(name) && requests.get(name) == limits.get(name), "{name}: {requests:?} {limits:?}");
        }
    }

    #[test]
    fn a_persistent_cluster_lives_on_its_claim() {
        let pod = made("{storage: {type: Persistent, size: 40Gi}}");
        assert!(pod.metadata.annotations.as_ref().unwrap()[annotations::SETTINGS].contains(r#""persistent":true"#));
        let spec = pod.spec.unwrap();
        insta::assert_yaml_snapshot!((&spec.volumes.unwrap()[0], &spec.containers[0].volume_mounts.as_ref().unwrap()[0]));
        assert_eq!(spec.containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["ephemeral-storage"].0, "1Gi");
    }

    #[test]
    fn what_was_written_reads_back() {
        let pod = made("{}");
        assert_eq!(attempt_of(&pod), 3);
        assert!(digests_of(&pod).contains_key("image"));
    }

    #[test]
    fn a_pod_of_an_operator_that_knew_of_no_registries_has_none() {
        let mut pod = made("{}");
        let written = digests_of(&pod);
        let mut earlier = written.clone();
        earlier.remove(registries::DIGEST).unwrap();
        let text = serde_json::to_string(&earlier).unwrap();
        pod.metadata.annotations.as_mut().unwrap().insert(annotations::SETTINGS_DIGEST.to_owned(), text);
        assert_eq!(digests_of(&pod), written);
        assert_ne!(digests_of(&pod), digests_of(&made("registries: [{host: r.example, endpoints: ['http://m']}]")));
    }
}
