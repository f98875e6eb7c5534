//! The policy of the operator's owner on a real API server: what `kubectl apply` is told, and that the operator says the same; what becomes of clusters that
//! were there before the policy.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

mod support;

use std::process::Command;
use std::time::Duration;

use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use nestling_core::api::conditions::{READY, STALLED, UP_TO_DATE, get};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{FINALIZER, KindCluster, KindClusterSpec};
use nestling_core::plan::desired::desire;
use nestling_core::plan::observed::identity;
use nestling_core::plan::settings::{HostFacts, Settings};
use serde_json::{Value, json};
use support::fake_host::FakeHost;
use support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE, Operator, Options, POD_IMAGE, THE_SAME_POD};
use support::plane::{Plane, lab};
use support::wait::{condition, gone, until};

const SOON: Duration = Duration::from_secs(30);

/// What the command line of the operator takes.
#[derive(Parser)]
struct OperatorCommand {
    #[command(flatten)]
    args: nestling::operator::Args,
}

/// What the chart makes of a policy: the operator's settings, and the objects that make the API server refuse.
struct Rendered {
    settings: Settings,
    admission: String,
}

fn render(policy: &Value) -> Rendered {
    let helm = lab().bin("helm").unwrap();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/nestling");
    let values = format!("policy={policy}");
    let images = r#"nodeImages={"v1.33.1":"registry.example/odd:v1.33.1"}"#;
    let output = Command::new(helm)
        .args(["template", "nestling", chart, "-n", OPERATOR_NAMESPACE, "--kube-version", "1.34.4", "--set-json", &values, "--set-json", images])
        .args(["--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = || text.split("\n---\n");
    let deployment: Value = serde_saphyr::from_str(documents().find(|document| document.contains("kind: Deployment\n")).unwrap()).unwrap();
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    let args = OperatorCommand::try_parse_from(arguments.iter().map(|argument| argument.as_str().unwrap())).unwrap().args;
    let admission: Vec<&str> = documents().filter(|document| document.contains("kind: ValidatingAdmissionPolicy")).collect();
    assert_eq!(admission.len(), 4);
    Rendered { settings: args.settings(HostFacts::default()), admission: admission.join("\n---\n") }
}

fn policy() -> Value {
    json!({
        "allowedImages": ["kindest/node:*", "registry.example.com/team/*", "localhost:5000/node", "own:*", "docker.io/*/only:*"],
        "requiredNodeSelector": {"pool": "kind", "example.com/zone": ""},
        "allowedTolerations": [{"key": "pool", "operator": "Exists"}, {"key": "team", "value": "blue", "effect": "NoSchedule"}],
        "allowedPriorityClasses": ["", "low"],
        "allowedRuntimeClasses": ["", "kata"],
        "maxResources": {"cpu": 2, "memory": "4Gi", "storage": "12Gi", "nodes": 3, "nvidia.com/gpu": 0},
        "maxLifetime": "8h",
    })
}

/// `(what, spec, part of the message; None if it is allowed)`.
fn table() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let mount = |path: &str| json!({"config": {"nodes": [{}, {"role": "worker", "extraMounts": [{"hostPath": path, "containerPath": "/x"}]}]}});
    let pod = |pod: Value| json!({"pod": pod});
    let tolerations = |tolerations: Value| json!({"pod": {"tolerations": tolerations}});
    let resources = |resources: Value| json!({"resources": resources});
    let lifecycle = |lifecycle: Value| json!({"lifecycle": lifecycle});
    let after_minutes = |minutes: i64| (Timestamp::now() + SignedDuration::from_mins(minutes)).to_string();
    let (not_allowed, paths, private) =
        (Some("is not allowed; allowed are kindest/node:*, registry.example.com/team/*"), Some("absolute path"), Some("belongs to the pod"));
    vec![
        ("empty", json!({}), None),
        (
            "nothing but nulls",
            json!({"version": null, "image": null, "nodes": null, "config": null, "pod": null, "resources": null, "storage": null, "lifecycle": null}),
            None,
        ),
        ("nulls below", json!({"config": {"nodes": null}, "pod": {"priorityClassName": null, "runtimeClassName": null}, "storage": {"size": null}}), None),
        // Images.
        ("an image", json!({"image": "kindest/node:v1.30.0"}), None),
        ("an image in full", json!({"image": "docker.io/kindest/node:v1.30.0@sha256:aa"}), None),
        ("an image by Docker's other name", json!({"image": "index.docker.io/kindest/node"}), None),
        ("an image of a team", json!({"image": "registry.example.com/team/sub/node@sha256:aa"}), None),
        ("an image with any tag", json!({"image": "localhost:5000/node:x"}), None),
        ("an image with any digest", json!({"image": "localhost:5000/node@sha256:aa"}), None),
        ("a foreign image", json!({"image": "evil/node:v1.30.0"}), not_allowed),
        ("a foreign registry", json!({"image": "evil.example/kindest/node:v1.30.0"}), not_allowed),
        ("an image of anybody at Docker's", json!({"image": "anybody/only:v1.30.0"}), None),
        ("a registry in capitals", json!({"image": "ANYBODY/only:v1.30.0"}), not_allowed),
        ("a longer name", json!({"image": "kindest/node-evil:v1.30.0"}), not_allowed),
        ("a longer registry", json!({"image": "registry.example.com.evil/team/node"}), not_allowed),
        ("a longer name without a tag", json!({"image": "localhost:5000/node-evil"}), not_allowed),
        ("one of Docker's own images", json!({"image": "own"}), None),
        ("one of Docker's own images in full", json!({"image": "docker.io/own:v1"}), None),
        ("another of Docker's own images", json!({"image": "node:v1"}), not_allowed),
        ("an image by its number", json!({"image": "sha256:0123"}), not_allowed),
        ("a dot is a dot", json!({"image": "registryxexample.com/team/node"}), not_allowed),
        ("a version", json!({"version": "v1.32.0"}), None),
        ("a version that stands for a foreign image", json!({"version": "v1.33.1"}), not_allowed),
        ("images of nodes", json!({"config": {"nodes": [{"image": "kindest/node:v1.34.4"}, {"role": "worker"}]}}), None),
        ("a foreign image of a node", json!({"config": {"nodes": [{}, {"role": "worker", "image": "evil/node"}]}}), not_allowed),
        // Placement.
        ("a selector", pod(json!({"nodeSelector": {"pool": "kind", "disk": "fast"}})), None),
        ("a contradiction", pod(json!({"nodeSelector": {"pool": "other"}})), Some("required is pool=kind")),
        ("a contradiction to an empty value", pod(json!({"nodeSelector": {"example.com/zone": "a"}})), Some("required is example.com/zone=")),
        ("no toleration", tolerations(json!([])), None),
        (
            "tolerations",
            tolerations(
                json!([{"key": "pool", "value": "x", "effect": "NoExecute"}, {"key": "team", "operator": "Equal", "value": "blue", "effect": "NoSchedule"}]),
            ),
            None,
        ),
        ("a toleration of everything", tolerations(json!([{"operator": "Exists"}])), Some("pod.tolerations")),
        ("a toleration of another taint", tolerations(json!([{"key": "pool"}, {"key": "other", "operator": "Exists"}])), Some("pod.tolerations")),
        ("a toleration of another value", tolerations(json!([{"key": "team", "value": "red", "effect": "NoSchedule"}])), Some("pod.tolerations")),
        ("a toleration of any value", tolerations(json!([{"key": "team", "operator": "Exists", "effect": "NoSchedule"}])), Some("pod.tolerations")),
        ("a toleration of any effect", tolerations(json!([{"key": "team", "value": "blue"}])), Some("pod.tolerations")),
        ("classes", pod(json!({"priorityClassName": "low", "runtimeClassName": "kata"})), None),
        ("a priority", pod(json!({"priorityClassName": "system-node-critical"})), Some("pod.priorityClassName")),
        ("a runtime", pod(json!({"runtimeClassName": "weak"})), Some("pod.runtimeClassName")),
        // Resources.
        ("resources", resources(json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": 2, "memory": "4096Mi", "nvidia.com/gpu": 0}})), None),
        ("too much CPU", resources(json!({"requests": {"cpu": "2001m"}})), Some("cpu")),
        ("too many CPUs", resources(json!({"limits": {"cpu": 3}})), Some("cpu")),
        ("too much memory", resources(json!({"limits": {"memory": "4097Mi"}})), Some("memory")),
        ("a quantity that is none", resources(json!({"requests": {"cpu": "lots"}})), Some("cpu")),
        ("another resource", resources(json!({"limits": {"nvidia.com/gpu": "1"}})), Some("nvidia.com/gpu")),
        ("storage", json!({"storage": {"size": "12Gi"}}), None),
        ("too much storage", json!({"storage": {"size": "13Gi"}}), Some("storage.size")),
        ("too much storage by another name", resources(json!({"limits": {"ephemeral-storage": "13Gi"}})), Some("storage")),
        ("nodes", json!({"nodes": {"workers": 2}, "resources": {"limits": {"memory": "4Gi"}}}), None),
        ("too many nodes", json!({"nodes": {"workers": 3}, "resources": {"limits": {"memory": "4Gi"}}}), Some("nodes: ")),
        ("too many nodes of kind", json!({"config": {"nodes": [{}, {"role": "worker"}, {"role": "worker"}, {"role": "worker"}]}}), Some("nodes: ")),
        // Lifetimes.
        ("a lifetime", lifecycle(json!({"ttl": "480m", "expirationTime": after_minutes(470)})), None),
        ("a lifetime of nulls", lifecycle(json!({"ttl": null, "expirationTime": null})), None),
        ("too long a lifetime", lifecycle(json!({"ttl": "8h1s"})), Some("at most 8h")),
        ("too late an end", lifecycle(json!({"expirationTime": after_minutes(490)})), Some("at most 8h")),
        ("too late an end beside a lifetime", lifecycle(json!({"ttl": "1h", "expirationTime": after_minutes(490)})), Some("at most 8h")),
        ("no end at all", lifecycle(json!({"deletionProtection": true})), Some("lifecycle.deletionProtection")),
        ("an end after all", lifecycle(json!({"deletionProtection": false})), None),
        // Mounts.
        ("a mount", mount("/mnt/data/"), None),
        ("modules", mount("/lib/modules"), None),
        ("a device", mount("/dev/null"), None),
        ("a mount of the keys", mount("/etc/nestling/keys"), private),
        ("a mount of the pod's working directory", mount("/run/nestling"), private),
        ("a mount of the socket", mount("/var/run/docker.sock"), private),
        ("a mount of all", mount("/"), private),
        ("a mount of what is above", mount("/var/"), private),
        ("a mount beside an open one", mount("/lib/modules-not"), private),
        ("a mount of an open file", mount("/dev/fd/7"), private),
        ("a mount through a parent", mount("/tmp/../run"), paths),
        ("a mount with doubled slashes", mount("/tmp//run"), paths),
        ("a mount with a colon", mount("/run:/x"), paths),
        ("a relative mount", mount("run"), paths),
        ("a mount of nothing", mount(""), paths),
    ]
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": name}, "spec": spec})).unwrap()
}

fn untyped(plane: &Plane) -> Api<DynamicObject> {
    Api::default_namespaced_with(plane.client.clone(), &kube::api::ApiResource::erase::<KindCluster>(&()))
}

/// Applies the admission policy and waits until the API server has taken it up.
async fn enforce(plane: &Plane, admission: &str) {
    plane.apply(admission);
    let only_tried = PostParams { dry_run: true, ..PostParams::default() };
    until("the policy to be enforced", SOON, async || match untyped(plane).create(&only_tried, &object("probe", &json!({"image": "evil/node"}))).await {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Why the operator would make no pod of it, if it would not.
fn refused_by_the_operator(settings: &Settings, spec: &Value) -> Option<Reason> {
    let mut cluster = KindCluster::new("probe", serde_json::from_value::<KindClusterSpec>(spec.clone()).unwrap());
    cluster.metadata.namespace = Some("default".into());
    cluster.metadata.uid = Some("uid".into());
    cluster.metadata.creation_timestamp = Some(Time(Timestamp::now()));
    match desire(&cluster, &identity(&cluster).unwrap(), settings) {
        Ok(desired) => desired.violation.map(|problem| problem.reason),
        Err(problem) => Some(problem.reason),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_and_operator_refuse_and_allow_the_same() {
    let plane = Plane::start().await;
    let rendered = render(&policy());
    enforce(&plane, &rendered.admission).await;
    let only_tried = PostParams { dry_run: true, ..PostParams::default() };
    let mut wrong = Vec::new();
    for (what, spec, refusal) in table() {
        match (untyped(&plane).create(&only_tried, &object("probe", &spec)).await, refusal) {
            (Ok(_), None) => {}
            (Err(kube::Error::Api(status)), Some(part)) if status.code == 403 && status.message.contains(part) => {}
            (made, expected) => wrong.push(format!("{what}: {:?}, expected {expected:?}", made.map(|_| "accepted"))),
        }
        let by_the_operator = refused_by_the_operator(&rendered.settings, &spec);
        let expected = by_the_operator.is_none_or(|reason| matches!(reason, Reason::PolicyViolation | Reason::ConfigFieldOwned));
        if by_the_operator.is_some() != refusal.is_some() || !expected {
            wrong.push(format!("{what}: the operator says {by_the_operator:?}, expected {refusal:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_policy_refuses_only_mounts_of_what_is_the_pods() {
    let plane = Plane::start().await;
    let rendered = render(&json!({}));
    assert_eq!(rendered.settings.policy, nestling_core::plan::policy::Policy::default());
    plane.apply(&rendered.admission);
    let only_tried = PostParams { dry_run: true, ..PostParams::default() };
    let mount = json!({"config": {"nodes": [{"extraMounts": [{"hostPath": "/run", "containerPath": "/x"}]}]}});
    until("the mount to be refused", SOON, async || match untyped(&plane).create(&only_tried, &object("probe", &mount)).await {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for (what, spec, _) in table().into_iter().filter(|(_, spec, _)| !spec.to_string().contains("extraMounts")) {
        let made = untyped(&plane).create(&only_tried, &object("probe", &spec)).await;
        assert!(made.is_ok(), "{what}: {made:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_can_be_labelled_mended_and_deleted_but_not_changed() {
    let plane = Plane::start().await;
    let clusters: Api<KindCluster> = Api::default_namespaced(plane.client.clone());
    let mut before = KindCluster::new("before", serde_json::from_value(json!({"image": "evil/node"})).unwrap());
    before.metadata.finalizers = Some(vec![FINALIZER.into()]);
    clusters.create(&PostParams::default(), &before).await.unwrap();
    enforce(&plane, &render(&policy()).admission).await;

    let patch = async |patch: Value| clusters.patch("before", &PatchParams::default(), &Patch::Merge(patch)).await;
    patch(json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    let status = json!({"status": {"attempt": 7}});
    clusters.patch_status("before", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let refused = patch(json!({"spec": {"nodes": {"workers": 1}}})).await.unwrap_err();
    assert!(refused.to_string().contains("image evil/node is not allowed"), "{refused}");
    clusters.delete("before", &DeleteParams::default()).await.unwrap();
    patch(json!({"metadata": {"finalizers": null}})).await.unwrap();
    gone(&clusters, "before", SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_refuses_by_itself_recovers_and_ends_no_cluster() {
    let plane = Plane::start().await;
    for name in [OPERATOR_NAMESPACE, CLUSTERS_NAMESPACE, "team"] {
        plane.namespace(name).await;
    }
    let host = FakeHost::start(plane.client.clone()).await;
    let clusters: Api<KindCluster> = Api::namespaced(plane.client.clone(), "team");
    let pods: Api<Pod> = Api::namespaced(plane.client.clone(), CLUSTERS_NAMESPACE);
    let options =
        Options { agents: host.address, max_creating: 2, die_after: None, kubeconfig: None, pod_image: POD_IMAGE, identity: THE_SAME_POD, admin: None };
    let create = async |name: &str, spec: Value| {
        clusters.create(&PostParams::default(), &KindCluster::new(name, serde_json::from_value(spec).unwrap())).await.unwrap();
    };
    let patch = async |name: &str, patch: Value| {
        clusters.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };

    // Made while nothing was limited.
    let mut operator = Operator::start(&plane, &options);
    create("old", json!({"image": "evil/node:v1.34.4"})).await;
    condition(&clusters, "old", READY, "True", None, SOON).await;
    operator.kill();
    let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);

    let policy = json!({"allowedImages": ["kindest/node"], "requiredNodeSelector": {"pool": "kind"}, "maxResources": {"nodes": 1}}).to_string();
    let _operator = Operator::start_with(&plane, &options, &["--policy", &policy]);
    let old = condition(&clusters, "old", UP_TO_DATE, "False", Some("PolicyViolation"), SOON).await;
    assert_eq!(get(&old.status.unwrap().conditions, READY).unwrap().status, "True");
    assert_eq!(pods.get(&pod.name_any()).await.unwrap().uid(), pod.uid(), "the pod of a cluster is left alone");

    // Refused before a pod exists, until it is mended.
    create("new", json!({"nodes": {"workers": 1}})).await;
    let new = condition(&clusters, "new", STALLED, "True", Some("PolicyViolation"), SOON).await;
    let message = get(&new.status.unwrap().conditions, READY).unwrap().message.clone();
    assert!(message.starts_with("nodes: 2 is more than the allowed 1. ") && message.ends_with(Reason::PolicyViolation.remedy()), "{message}");
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 1);
    patch("new", json!({"spec": {"nodes": null}})).await;
    condition(&clusters, "new", READY, "True", None, SOON).await;
    let mended = pods.list(&ListParams::default().labels("nestling.dev/cluster-name=new")).await.unwrap().items.remove(0);
    assert_eq!(mended.spec.unwrap().node_selector.unwrap()["pool"], "kind");

    // A lost cluster is not made again from what is not allowed.
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    condition(&clusters, "old", STALLED, "True", Some("PolicyViolation"), SOON).await;
    patch("old", json!({"spec": {"image": null}})).await;
    condition(&clusters, "old", READY, "True", None, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_protected_is_deleted_only_with_its_namespace() {
    let plane = Plane::start().await;
    plane.namespace("team").await;
    plane.apply(&render(&json!({})).admission);
    let clusters: Api<KindCluster> = Api::namespaced(plane.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(plane.client.clone(), "team");
    let create = async |name: &str, owner: Option<&ConfigMap>| {
        let mut cluster = KindCluster::new(name, serde_json::from_value(json!({"lifecycle": {"deletionProtection": true}})).unwrap());
        cluster.metadata.owner_references = owner.map(|owner| vec![owner.owner_ref(&()).unwrap()]);
        clusters.create(&PostParams::default(), &cluster).await.unwrap();
    };
    create("kept", None).await;
    let said = until("the protection to be enforced", SOON, async || {
        match clusters.delete("kept", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(status.message),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let all = clusters.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    assert!(matches!(&all, Err(kube::Error::Api(status)) if status.code == 403), "{all:?}");

    // Nor does the garbage collector take it along.
    let map = ConfigMap { metadata: kube::api::ObjectMeta { name: Some("owner".into()), ..Default::default() }, ..ConfigMap::default() };
    let owner = maps.create(&PostParams::default(), &map).await.unwrap();
    create("owned", Some(&owner)).await;
    maps.delete("owner", &DeleteParams::background()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(clusters.get("owned").await.unwrap().metadata.deletion_timestamp.is_none());

    // What is said is the way to lift it.
    let command = said.split("run: kubectl ").nth(1).unwrap();
    let (arguments, patch) = command.split_once(" --patch ").unwrap();
    let patch = patch.trim().trim_matches('\'');
    for name in ["kept", "owned"] {
        let arguments = arguments.replace(" kept ", &format!(" {name} "));
        let output = plane.control_plane.kubectl().args(arguments.split(' ')).args(["--patch", patch]).output().unwrap();
        assert!(output.status.success(), "kubectl {command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    clusters.delete("kept", &DeleteParams::default()).await.unwrap();
    gone(&clusters, "kept", SOON).await;
    gone(&clusters, "owned", Duration::from_mins(2)).await;

    create("doomed", None).await;
    let namespaces: Api<Namespace> = Api::all(plane.client.clone());
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    gone(&namespaces, "team", Duration::from_mins(2)).await;
}
