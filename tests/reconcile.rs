//! The operator, a real process, on a real API server. Pods and agents are a declared fake: what is tried here are the operator's own histories – failures
//! just so, kills behind each step, storms – and what is left in the API afterwards.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

#[path = "reconcile/access.rs"]
mod access;
#[path = "reconcile/clients.rs"]
mod clients;
#[path = "reconcile/contents.rs"]
mod contents;
#[path = "reconcile/leader.rs"]
mod leader;
#[path = "reconcile/restore.rs"]
mod restore;
mod support;
#[path = "reconcile/turns.rs"]
mod turns;
#[path = "reconcile/upgrade.rs"]
mod upgrade;
#[path = "reconcile/writes.rs"]
mod writes;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{self, EXPIRING, KUBECONFIG_PUBLISHED, PAUSED, READY, STALLED, SUSPENDED, UP_TO_DATE, get};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, KindClusterSpec, PowerState};
use nestling_core::plan::decide::Step;
use nestling_core::plan::wire::{DeadContainer, PolicyProbe};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use support::fake_host::{FakeHost, Luck, NODE};
use support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE, Operator, Options, POD_IMAGE, THE_SAME_POD};
use support::plane::Plane;
use support::wait::{COLLECTED, condition, gone, until};

const SOON: Duration = Duration::from_secs(30);

/// A plane with the fake host and the namespaces that the chart would make.
struct Stage {
    plane: Plane,
    host: FakeHost,
    clusters: Api<KindCluster>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_on(Plane::start().await).await
    }

    async fn set_on(plane: Plane) -> Self {
        for name in [OPERATOR_NAMESPACE, CLUSTERS_NAMESPACE, "team"] {
            plane.namespace(name).await;
        }
        let host = FakeHost::start(plane.client.clone()).await;
        let clusters = Api::namespaced(plane.client.clone(), "team");
        let stage = Self { plane, host, clusters };
        stage.login("login", "wading-heron").await;
        stage
    }

    /// A Secret with a login, in the user's namespace.
    async fn login(&self, name: &str, password: &str) {
        let login = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/basic-auth",
            "stringData": {"username": "heron", "password": password}});
        self.secrets().patch(name, &PatchParams::apply("test").force(), &Patch::Apply(login)).await.unwrap();
    }

    /// What the copy for registries beside the pod holds of credentials.
    async fn copied(&self) -> Option<String> {
        let secrets: Api<Secret> = Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE);
        let copy = secrets.list(&ListParams::default()).await.unwrap().into_iter().find(|secret| secret.name_any().ends_with("-registries"))?;
        let config: serde_json::Value = serde_json::from_slice(&copy.data?["config.json"].0).unwrap();
        Some(config["auths"]["r.example"]["auth"].as_str().unwrap().to_owned())
    }

    /// Lets the keys of the channel to this cluster's agent be due.
    async fn age_the_channel(&self, name: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE);
        let of_cluster = ListParams::default().labels(&format!("nestling.dev/cluster-name={name}"));
        let keys = secrets.list(&of_cluster).await.unwrap().into_iter().map(|secret| secret.name_any()).find(|name| name.ends_with("-keys")).unwrap();
        let due = json!({"metadata": {"annotations": {"nestling.dev/renew-at": "2020-01-01T00:00:00Z"}}});
        secrets.patch(&keys, &PatchParams::default(), &Patch::Merge(due)).await.unwrap();
    }

    fn operator(&self) -> Operator {
        self.operator_that_dies(None)
    }

    fn operator_with(&self, arguments: &[&str]) -> Operator {
        Operator::start_with(&self.plane, &self.options(None), arguments)
    }

    fn options(&self, die_after: Option<(String, u32)>) -> Options {
        Options { agents: self.host.address, max_creating: 2, die_after, kubeconfig: None, pod_image: POD_IMAGE, identity: THE_SAME_POD, admin: None }
    }

    fn operator_that_dies(&self, die_after: Option<(String, u32)>) -> Operator {
        Operator::start(&self.plane, &self.options(die_after))
    }

    async fn create(&self, name: &str, spec: serde_json::Value) {
        let spec: KindClusterSpec = serde_json::from_value(spec).unwrap();
        self.clusters.create(&PostParams::default(), &KindCluster::new(name, spec)).await.unwrap();
    }

    async fn patch(&self, name: &str, patch: serde_json::Value) {
        self.clusters.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Names of everything in the clusters namespace that Nestling has made.
    async fn children(&self) -> Vec<String> {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=nestling");
        let client = &self.plane.client;
        let mut names = Vec::new();
        names.extend(Api::<Pod>::namespaced(client.clone(), CLUSTERS_NAMESPACE).list(&ours).await.unwrap().iter().map(|o| format!("Pod {}", o.name_any())));
        names.extend(
            Api::<Service>::namespaced(client.clone(), CLUSTERS_NAMESPACE).list(&ours).await.unwrap().iter().map(|o| format!("Service {}", o.name_any())),
        );
        names.extend(
            Api::<NetworkPolicy>::namespaced(client.clone(), CLUSTERS_NAMESPACE).list(&ours).await.unwrap().iter().map(|o| format!("Policy {}", o.name_any())),
        );
        names.extend(
            Api::<Secret>::namespaced(client.clone(), CLUSTERS_NAMESPACE).list(&ours).await.unwrap().iter().map(|o| format!("Secret {}", o.name_any())),
        );
        names.extend(self.claims().list(&ours).await.unwrap().iter().map(|o| format!("Claim {}", o.name_any())));
        names
    }

    async fn delete(&self, name: &str) {
        self.clusters.delete(name, &DeleteParams::default()).await.unwrap();
        gone(&self.clusters, name, SOON).await;
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.plane.client.clone(), "team")
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_and_goes_and_leaves_nothing() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({})).await;
    let cluster = condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let status = cluster.status.unwrap();
    assert_eq!((status.version.as_deref(), status.nodes_ready.as_deref(), status.attempt), (Some("v1.34.4"), Some("1/1"), Some(1)));
    assert_eq!(stage.children().await.len(), 4);

    let secret = stage.secrets().get("crane-kubeconfig").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("cluster.x-k8s.io/secret"));
    assert_eq!(secret.labels()["cluster.x-k8s.io/cluster-name"], "crane");

    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    let told = until("the events", SOON, async || {
        let told: Vec<String> = events.list(&ListParams::default()).await.unwrap().iter().filter_map(|event| event.reason.clone()).collect();
        if told.iter().any(|reason| reason == "Ready") { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert!(told.iter().any(|reason| reason == "CreatingCluster"), "{told:?}");

    stage.delete("crane").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
    gone(&stage.secrets(), "crane-kubeconfig", COLLECTED).await;
}

/// Each change by its condition, each told by an event, none of them as a warning.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_becomes_ready_and_is_then_suspended_and_resumed_as_ordered() {
    let stage = Stage::set().await;
    let _operator = stage.operator_with(&["--allow-freeze-on-cgroup-v1"]);
    stage.create("crane", json!({"powerState": "Stopped"})).await;
    let cluster = condition(&stage.clusters, "crane", SUSPENDED, "True", Some("Stopped"), SOON).await;
    let status = cluster.status.unwrap();
    assert!(status.ready_time.is_some(), "it has been ready");
    assert_eq!(status.power_state, Some(PowerState::Stopped));
    for (power, type_, value, reason) in
        [("Frozen", SUSPENDED, "True", "Frozen"), ("Running", READY, "True", "ClusterReady"), ("Frozen", READY, "False", "Frozen")]
    {
        stage.patch("crane", json!({"spec": {"powerState": power}})).await;
        let cluster = condition(&stage.clusters, "crane", type_, value, Some(reason), SOON).await;
        let conditions = cluster.status.unwrap().conditions;
        assert_eq!(get(&conditions, STALLED).unwrap().status, "False", "{power}");
        assert_eq!(get(&conditions, SUSPENDED).unwrap().status, if power == "Running" { "False" } else { "True" });
    }
    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    for reason in ["Stopping", "Stopped", "Freezing", "Frozen", "Resumed"] {
        until(&format!("the event {reason}"), SOON, async || {
            let told = events.list(&ListParams::default()).await.unwrap();
            if told.iter().any(|event| event.reason.as_deref() == Some(reason)) { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
    }
    let warnings = events.list(&ListParams::default().fields("type=Warning")).await.unwrap().items;
    assert!(warnings.iter().all(|event| event.reason.as_deref() == Some("NotEnforced")), "{warnings:?}");
    assert_eq!(stage.host.started.lock().unwrap().get("crane"), Some(&1));
    stage.delete("crane").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_suspended_goes_on_and_says_why() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.host.set_luck("heron", Luck::ReadyButOutdated);
    // The fake host has cgroup v1, and nobody has agreed to freeze there.
    for (name, power, reason) in [("crane", "Frozen", "FreezeUnsupported"), ("heron", "Stopped", "AgentOutdated")] {
        stage.create(name, json!({"powerState": power})).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
        let cluster = condition(&stage.clusters, name, SUSPENDED, "False", Some(reason), SOON).await;
        let status = cluster.status.unwrap();
        assert!(get(&status.conditions, SUSPENDED).unwrap().message.ends_with(Reason::parse(reason).unwrap().remedy()));
        assert_eq!((get(&status.conditions, READY).unwrap().status.as_str(), status.power_state), ("True", Some(PowerState::Running)));
        stage.patch(name, json!({"spec": {"powerState": "Running"}})).await;
        condition(&stage.clusters, name, SUSPENDED, "False", Some("NotSuspended"), SOON).await;
    }
}

/// The files that only the agents' authority shares are public.
#[tokio::test(flavor = "multi_thread")]
async fn no_two_clusters_share_a_key_or_a_token() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    for name in ["one", "two"] {
        stage.create(name, json!({})).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
    }
    let secrets: Api<Secret> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let keys: Vec<_> = secrets.list(&ListParams::default()).await.unwrap().into_iter().filter_map(|secret| secret.data).collect();
    assert_eq!(keys.len(), 2);
    for (name, value) in &keys[0] {
        let shared = keys[1].values().any(|other| other == value);
        assert_eq!(shared, name == nestling_core::plan::wire::keys::AGENT_AUTHORITY, "{name}");
    }
    let token = String::from_utf8(keys[0]["bootstrap-token"].0.clone()).unwrap();
    assert_ne!(token, "abcdef.0123456789abcdef");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_separators_live_side_by_side() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    for namespace in ["a", "a--b"] {
        stage.plane.namespace(namespace).await;
    }
    for (namespace, name) in [("a", "b--c"), ("a--b", "c"), ("a", "c")] {
        let api: Api<KindCluster> = Api::namespaced(stage.plane.client.clone(), namespace);
        api.create(&PostParams::default(), &KindCluster::new(name, KindClusterSpec::default())).await.unwrap();
    }
    for (namespace, name) in [("a", "b--c"), ("a--b", "c"), ("a", "c")] {
        condition(&Api::namespaced(stage.plane.client.clone(), namespace), name, READY, "True", None, SOON).await;
    }
    assert_eq!(stage.children().await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_a_reason_an_end_and_a_cure() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.host.set_luck("unlucky", Luck::Fails(Reason::NodeImagePullFailed, "no such image".into()));
    stage.create("unlucky", json!({"image": "no/such:v1.34.4", "lifecycle": {"backoffLimit": 0}})).await;
    let cluster = condition(&stage.clusters, "unlucky", STALLED, "True", Some("NodeImagePullFailed"), SOON).await;
    let status = cluster.status.unwrap();
    let failure = status.last_failure.unwrap();
    assert!(failure.message.starts_with("no such image. "), "{}", failure.message);
    assert_eq!(failure.log_tail.as_deref(), Some("the last line of evidence"));
    until("the failed pod to go", SOON, async || {
        let left = stage.children().await;
        if left.iter().any(|child| child.starts_with("Pod")) { Err(format!("{left:?}")) } else { Ok(()) }
    })
    .await;

    stage.host.set_luck("unlucky", Luck::Ready);
    stage.patch("unlucky", json!({"spec": {"image": "kindest/node:v1.34.4"}})).await;
    condition(&stage.clusters, "unlucky", READY, "True", None, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_agent_is_tried_again() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.host.set_luck("crash", Luck::Crashes);
    stage.create("crash", json!({})).await;
    condition(&stage.clusters, "crash", READY, "False", Some("AgentCrashed"), SOON).await;
    stage.host.set_luck("crash", Luck::Ready);
    let cluster = condition(&stage.clusters, "crash", READY, "True", None, SOON).await;
    assert_eq!(cluster.status.unwrap().attempt, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_specs_are_refused_before_a_pod_exists() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    for (name, spec, reason, cure) in [
        (
            "owned",
            json!({"config": {"networking": {"apiServerPort": 6443}}}),
            "ConfigFieldOwned",
            json!({"spec": {"config": {"networking": {"apiServerPort": null}}}}),
        ),
        ("small", json!({"resources": {"limits": {"memory": "100Mi"}}}), "ResourcesTooSmall", json!({"spec": {"resources": null}})),
        ("overlap", json!({"networking": {"serviceCIDRs": ["10.0.0.0/24"]}}), "CIDROverlap", json!({"spec": {"networking": null}})),
    ] {
        stage.create(name, spec).await;
        condition(&stage.clusters, name, STALLED, "True", Some(reason), SOON).await;
        assert_eq!(stage.children().await, Vec::<String>::new(), "{name}");
        stage.patch(name, cure).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
        stage.delete(name).await;
    }
}

/// A list with one registry, whose login is in this Secret.
fn registries(secret: &str) -> serde_json::Value {
    json!([{"host": "r.example", "credentialsSecretRef": {"name": secret}}])
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_registries_come_and_go_with_their_cluster() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({"registries": registries("login")})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    assert_eq!(stage.children().await.len(), 5);
    // heron:wading-heron
    assert_eq!(stage.copied().await.as_deref(), Some("aGVyb246d2FkaW5nLWhlcm9u"));
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
    let shown = serde_json::to_string(&pod).unwrap() + &serde_json::to_string(&stage.clusters.get("crane").await.unwrap()).unwrap();
    assert!(!shown.contains("wading-heron") && !shown.contains("aGVyb246"), "{shown}");

    // A change arrives when the copy is too old (here: of an age that is not known),
    stage.login("login", "standing-heron").await;
    let secrets: Api<Secret> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let copy =
        stage.children().await.into_iter().find_map(|child| child.strip_prefix("Secret ").filter(|name| name.ends_with("-registries")).map(str::to_owned));
    let aged = json!({"metadata": {"annotations": {"nestling.dev/read-at": null}}});
    secrets.patch(&copy.unwrap(), &PatchParams::default(), &Patch::Merge(aged)).await.unwrap();
    until("the change to arrive", SOON, async || {
        let copied = stage.copied().await;
        if copied.as_deref() == Some("aGVyb246c3RhbmRpbmctaGVyb24=") { Ok(()) } else { Err(format!("{copied:?}")) }
    })
    .await;
    // and with the next pod at the latest.
    stage.login("login", "sleeping-heron").await;
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    until("the change to arrive", SOON, async || {
        let copied = stage.copied().await;
        if copied.as_deref() == Some("aGVyb246c2xlZXBpbmctaGVyb24=") { Ok(()) } else { Err(format!("{copied:?}")) }
    })
    .await;

    // The list itself is fixed.
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.patch("crane", json!({"spec": {"registries": null}})).await;
    let cluster = condition(&stage.clusters, "crane", UP_TO_DATE, "False", Some("RecreateRequired"), SOON).await;
    assert!(support::wait::describe(&cluster).contains("registries"), "{}", support::wait::describe(&cluster));
    assert!(stage.copied().await.is_some());
    stage.delete("crane").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
    assert!(stage.secrets().get_opt("login").await.unwrap().is_some(), "the user's own Secret stays");
}

/// Names of the pods of this cluster, and the number of the newest attempt.
async fn pods_of(stage: &Stage) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    pods.list(&ListParams::default()).await.unwrap().iter().map(|pod| format!("{} {}", pod.name_any(), pod.uid().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_replaces_a_cluster_once_whatever_state_it_is_in() {
    let stage = Stage::set().await;
    let operator = stage.operator();
    stage.create("crane", json!({"lifecycle": {"podLossPolicy": "Fail"}})).await;
    let before = condition(&stage.clusters, "crane", READY, "True", None, SOON).await.status.unwrap();
    let keys = stage.children().await.into_iter().filter(|child| child.starts_with("Secret")).collect::<Vec<_>>();
    // Killed between its record and the deletion of the pod, and between that and the next pod.
    drop(operator);
    stage.patch("crane", json!({"metadata": {"annotations": {"nestling.dev/recreate": "monday"}}})).await;
    for step in ["Delete", "CreatePod"] {
        let mut doomed = stage.operator_that_dies(Some((step.to_owned(), 1)));
        assert!(doomed.ended(SOON).await, "{step} was never reached");
    }
    let _operator = stage.operator();
    let after = until("the new cluster", SOON, async || {
        let status = stage.clusters.get("crane").await.unwrap().status.unwrap();
        let ready = get(&status.conditions, READY).is_some_and(|ready| ready.status == "True");
        if ready && status.cluster_uid != before.cluster_uid { Ok(status) } else { Err(format!("{status:?}")) }
    })
    .await;
    assert_eq!((after.attempt, after.last_failure, after.endpoints), (Some(2), None, before.endpoints));
    assert_eq!(after.recreation.map(|recreation| (recreation.value, recreation.attempt)), Some(("monday".to_owned(), 1)));
    assert_eq!(stage.children().await.into_iter().filter(|child| child.starts_with("Secret")).collect::<Vec<_>>(), keys);
    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    until("the event", SOON, async || {
        let told = events.list(&ListParams::default()).await.unwrap();
        let replaced = told.iter().find(|event| event.reason.as_deref() == Some("ClusterReplaced")).and_then(|event| event.type_.clone());
        if replaced.as_deref() == Some("Normal") { Ok(()) } else { Err(format!("{replaced:?}")) }
    })
    .await;

    // A stalled one begins anew.
    stage.host.set_luck("heron", Luck::Fails(Reason::KubeadmInitFailed, "no".into()));
    stage.create("heron", json!({"lifecycle": {"backoffLimit": 0}})).await;
    condition(&stage.clusters, "heron", STALLED, "True", Some("KubeadmInitFailed"), SOON).await;
    stage.host.set_luck("heron", Luck::Ready);
    stage.patch("heron", json!({"metadata": {"annotations": {"nestling.dev/recreate": ""}}})).await;
    condition(&stage.clusters, "heron", READY, "True", None, SOON).await;
    assert_eq!(pods_of(&stage).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_lifetimes_change_in_place() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({"access": {"certSANs": ["first.example"]}})).await;
    let before = condition(&stage.clusters, "crane", READY, "True", None, SOON).await.status.unwrap();
    let pods = pods_of(&stage).await;
    stage.patch("crane", json!({"spec": {"access": {"certSANs": ["second.example"]}, "kubeconfig": {"lifetime": "3h"}}})).await;
    let after = until("the names to be carried out", SOON, async || {
        let status = stage.clusters.get("crane").await.unwrap().status.unwrap();
        let is = |type_: &str| get(&status.conditions, type_).is_some_and(|condition| condition.status == "True" && condition.observed_generation == Some(2));
        let renewed = status.kubeconfig_secret_ref != before.kubeconfig_secret_ref;
        if is(READY) && is(UP_TO_DATE) && renewed { Ok(status) } else { Err(format!("{status:?}")) }
    })
    .await;
    let published = after.kubeconfig_secret_ref.unwrap();
    let left = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| time.0.duration_since(Timestamp::now()).as_mins();
    assert!((175..=180).contains(&left(published.expiration_time.as_ref().unwrap())), "{published:?}");
    assert!((115..=120).contains(&left(published.renewal_time.as_ref().unwrap())), "{published:?}");
    assert_eq!((after.attempt, pods_of(&stage).await), (Some(1), pods));
}

/// The operator makes the keys of the channel anew when the Secret says so, and only those.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_the_channel_are_renewed_in_place() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let secrets: Api<Secret> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let before = secrets.list(&ListParams::default()).await.unwrap().items.remove(0);
    stage.age_the_channel("crane").await;
    let after = until("the keys to be renewed", SOON, async || {
        let secret = secrets.get(&before.name_any()).await.unwrap();
        if secret.data.as_ref().unwrap()["agent.crt"] == before.data.as_ref().unwrap()["agent.crt"] { Err("the same".to_owned()) } else { Ok(secret) }
    })
    .await;
    let (before_data, after_data) = (before.data.unwrap(), after.data.clone().unwrap());
    let changed: Vec<&String> = before_data.keys().filter(|key| before_data[*key] != after_data[*key]).collect();
    assert_eq!(changed, ["agent.crt", "agent.key"]);
    let at: Timestamp = after.annotations()["nestling.dev/renew-at"].parse().unwrap();
    assert!(at > Timestamp::now() + SignedDuration::from_hours(200 * 24), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_registries_refer_to_has_a_reason_and_a_cure() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let helper = json!({"metadata": {"name": "helper"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json!({"credsStore": "desktop", "auths": {"r.example": {}}}).to_string()}});
    stage.secrets().create(&PostParams::default(), &serde_json::from_value(helper).unwrap()).await.unwrap();
    // They wait for somebody, but nobody waits for them, though there are only two slots.
    let before_the_next_try = SOON / 2;
    for (name, wanted, reason) in [
        ("absent", registries("nowhere"), "SecretNotFound"),
        ("helper", registries("helper"), "UnusableDockerConfig"),
        ("authority", json!([{"host": "r.example", "caConfigMapRef": {"name": "nowhere"}}]), "ConfigMapNotFound"),
    ] {
        stage.create(name, json!({"registries": wanted})).await;
        condition(&stage.clusters, name, STALLED, "True", Some(reason), before_the_next_try).await;
        let pods = stage.children().await.into_iter().filter(|child| child.starts_with("Pod")).count();
        assert_eq!(pods, 0, "{name}");
    }
    stage.create("other", json!({})).await;
    condition(&stage.clusters, "other", READY, "True", None, before_the_next_try).await;
    for name in ["absent", "helper", "authority"] {
        stage.patch(name, json!({"spec": {"registries": registries("login")}})).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_is_left_alone() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let foreign: Secret = serde_json::from_value(
        json!({"metadata": {"name": "crane-kubeconfig", "labels": {"cluster.x-k8s.io/cluster-name": "crane"}}, "stringData": {"value": "theirs"}}),
    )
    .unwrap();
    stage.secrets().create(&PostParams::default(), &foreign).await.unwrap();
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", KUBECONFIG_PUBLISHED, "False", Some("KubeconfigSecretConflict"), SOON).await;
    condition(&stage.clusters, "crane", READY, "False", Some("KubeconfigSecretConflict"), SOON).await;
    let theirs = stage.secrets().get("crane-kubeconfig").await.unwrap();
    assert_eq!(theirs.data.unwrap()["value"].0, b"theirs");

    stage.patch("crane", json!({"spec": {"kubeconfig": {"secretName": "other"}}})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.delete("crane").await;
    assert!(stage.secrets().get_opt("crane-kubeconfig").await.unwrap().is_some(), "the foreign Secret outlives us");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_stops_all_writes_and_is_visible() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("sleepy", json!({"paused": true})).await;
    condition(&stage.clusters, "sleepy", PAUSED, "True", None, SOON).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.children().await, Vec::<String>::new());
    stage.patch("sleepy", json!({"spec": {"paused": false}})).await;
    condition(&stage.clusters, "sleepy", READY, "True", None, SOON).await;
    stage.patch("sleepy", json!({"spec": {"paused": true}})).await;
    condition(&stage.clusters, "sleepy", PAUSED, "True", None, SOON).await;
    let before = stage.clusters.get("sleepy").await.unwrap().resource_version();
    // Even what would otherwise be mended at once stays.
    let services: Api<Service> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let service = services.list(&ListParams::default()).await.unwrap().items.remove(0);
    services.delete(&service.name_any(), &DeleteParams::default()).await.unwrap();
    stage.clusters.delete("sleepy", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(services.get_opt(&service.name_any()).await.unwrap().is_none());
    assert!(stage.clusters.get_opt("sleepy").await.unwrap().is_some());
    assert_ne!(before, None);
    stage.patch("sleepy", json!({"spec": {"paused": false}})).await;
    gone(&stage.clusters, "sleepy", SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pod_is_replaced_and_announced_or_mourned() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    for (name, policy) in [("phoenix", "Recreate"), ("dodo", "Fail")] {
        stage.create(name, json!({"lifecycle": {"podLossPolicy": policy}})).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
        let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
        let pod = pods.list(&ListParams::default().labels(&format!("nestling.dev/cluster-name={name}"))).await.unwrap().items.remove(0);
        pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    let phoenix = until("the phoenix", SOON, async || {
        let cluster = stage.clusters.get("phoenix").await.unwrap();
        let status = cluster.status.clone().unwrap();
        let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
        if status.attempt == Some(2) && ready { Ok(cluster) } else { Err(support::wait::describe(&cluster)) }
    })
    .await;
    assert_eq!(phoenix.status.unwrap().cluster_uid.as_deref(), Some("nested-2"));
    condition(&stage.clusters, "dodo", STALLED, "True", Some("PodLost"), SOON).await;
}

/// The evidence of a cluster that failed for good is its user's; its pod is nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_leaves_its_logs_to_its_user() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let foreign = json!({"metadata": {"name": "robbed-logs"}, "stringData": {"logs.tar.gz": "theirs"}});
    stage.secrets().create(&PostParams::default(), &serde_json::from_value(foreign).unwrap()).await.unwrap();
    let hopeless = json!({"lifecycle": {"backoffLimit": 0}});
    let pods_gone = async |limit: Duration| {
        until("the failed pod to go", limit, async || {
            let left = stage.children().await;
            if left.iter().any(|child| child.starts_with("Pod")) { Err(format!("{left:?}")) } else { Ok(()) }
        })
        .await;
    };

    for name in ["unlucky", "robbed"] {
        stage.host.set_luck(name, Luck::Fails(Reason::KubeadmInitFailed, "no".into()));
        stage.create(name, hopeless.clone()).await;
        let cluster = condition(&stage.clusters, name, STALLED, "True", Some("KubeadmInitFailed"), SOON).await;
        pods_gone(SOON).await;
        let failure = cluster.status.unwrap().last_failure.unwrap();
        assert_eq!(failure.bundle_ref.is_some(), name == "unlucky", "{failure:?}");
        assert_eq!(failure.message.contains("robbed-logs"), name == "robbed", "{}", failure.message);
    }
    let (cluster, secret) = (stage.clusters.get("unlucky").await.unwrap(), stage.secrets().get("unlucky-logs").await.unwrap());
    let uid = cluster.uid().unwrap();
    assert_eq!(secret.data.as_ref().unwrap()["logs.tar.gz"].0, format!("the logs of {uid}").into_bytes());
    assert_eq!((secret.owner_references()[0].uid.as_str(), secret.labels()["nestling.dev/cluster-uid"].as_str()), (uid.as_str(), uid.as_str()));
    assert_eq!(stage.secrets().get("robbed-logs").await.unwrap().data.unwrap()["logs.tar.gz"].0, b"theirs", "another's Secret was written over");
    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    let told: Vec<String> = events.list(&ListParams::default()).await.unwrap().iter().filter_map(|event| event.reason.clone()).collect();
    let count = |wanted: &str| told.iter().filter(|reason| *reason == wanted).count();
    assert_eq!((count("KubeadmInitFailed"), count("LogsKept")), (2, 1), "{told:?}");

    // They stay after a success, as the failure does, and go with the object.
    stage.host.set_luck("unlucky", Luck::Ready);
    stage.patch("unlucky", json!({"spec": {"lifecycle": {"backoffLimit": 1}, "image": "kindest/node:v1.34.4"}})).await;
    let cluster = condition(&stage.clusters, "unlucky", READY, "True", None, SOON).await;
    assert_eq!(cluster.status.unwrap().last_failure.unwrap().bundle_ref.unwrap().name, "unlucky-logs");
    stage.delete("unlucky").await;
    gone(&stage.secrets(), "unlucky-logs", COLLECTED).await;

    // An agent that does not answer keeps its pod for a while and no longer.
    stage.host.mute.store(true, std::sync::atomic::Ordering::Relaxed);
    stage.host.set_luck("mute", Luck::Fails(Reason::KindFailed, "no".into()));
    stage.create("mute", hopeless).await;
    let start = std::time::Instant::now();
    condition(&stage.clusters, "mute", READY, "False", Some("KindFailed"), SOON).await;
    pods_gone(Duration::from_mins(1)).await;
    println!("a pod whose agent is mute goes after {:.0} s", start.elapsed().as_secs_f64());
    condition(&stage.clusters, "mute", STALLED, "True", Some("KindFailed"), SOON).await;
    for name in ["robbed", "mute"] {
        stage.delete(name).await;
    }
    assert_eq!(stage.children().await, Vec::<String>::new());
    assert!(stage.secrets().get_opt("robbed-logs").await.unwrap().is_some(), "another's Secret was taken away");
}

/// Nobody is left to end the pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_keeps_the_policy_from_nothing() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let pod_of = async |name: &str| {
        let found = pods.list(&ListParams::default().labels(&format!("nestling.dev/cluster-name={name}"))).await.unwrap();
        found.items.into_iter().map(|pod| pod.name_any()).min().unwrap()
    };
    let silent_for = async |minutes: i64| {
        let since = Timestamp::now().checked_sub(SignedDuration::from_mins(minutes)).unwrap().to_string();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": since, "lastHeartbeatTime": since}]}});
        Api::<Node>::all(stage.plane.client.clone()).patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    };
    // As the host's node lifecycle controller does it.
    let unready = async |pod: &str, second: i64| {
        let since = Timestamp::from_second(1_700_000_000 + second).unwrap().to_string();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": since}]}});
        pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    };
    for (name, policy) in [("phoenix", "Recreate"), ("dodo", "Fail")] {
        stage.create(name, json!({"lifecycle": {"podLossPolicy": policy}})).await;
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
    }
    stage.host.silent.store(true, std::sync::atomic::Ordering::Relaxed);
    let old = [pod_of("phoenix").await, pod_of("dodo").await];
    silent_for(1).await;
    for pod in &old {
        unready(pod, 0).await;
    }
    for name in ["phoenix", "dodo"] {
        condition(&stage.clusters, name, READY, "False", Some("HostNodeNotReady"), SOON).await;
    }
    silent_for(6).await;
    for pod in &old {
        unready(pod, 1).await;
    }
    condition(&stage.clusters, "dodo", STALLED, "True", Some("HostNodeLost"), SOON).await;
    let phoenix = until("the phoenix", SOON, async || {
        let cluster = stage.clusters.get("phoenix").await.unwrap();
        let status = cluster.status.clone().unwrap();
        let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
        if status.attempt == Some(2) && ready { Ok(status) } else { Err(support::wait::describe(&cluster)) }
    })
    .await;
    assert_eq!(phoenix.last_failure.unwrap().reason, "HostNodeLost");
    assert_eq!(phoenix.cluster_uid.as_deref(), Some("nested-2"));
    for pod in &old {
        assert!(pods.get(pod).await.unwrap().metadata.deletion_timestamp.is_some(), "{pod} was not deleted");
    }
    let services: Api<Service> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let service = services.list(&ListParams::default().labels("nestling.dev/cluster-name=phoenix")).await.unwrap().items.remove(0);
    assert_eq!(service.spec.unwrap().selector.unwrap()["nestling.dev/attempt"], "2", "the old pod may still be at work");

    // The host forgets the node, and its pods with it.
    for pod in &old {
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    stage.host.silent.store(false, std::sync::atomic::Ordering::Relaxed);
    for name in ["phoenix", "dodo"] {
        stage.delete(name).await;
    }
    assert_eq!(stage.children().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_to_survive_comes_back_or_stays_on_its_volume() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let spec = json!({"storage": {"type": "Persistent"}, "lifecycle": {"podLossPolicy": "Resume", "backoffLimit": 0}});
    stage.create("salamander", spec).await;
    let first = condition(&stage.clusters, "salamander", READY, "True", None, SOON).await.status.unwrap();
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let lose = async |grace: Option<u32>| {
        let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
        let how = grace.map_or_else(DeleteParams::default, |seconds| DeleteParams::default().grace_period(seconds));
        pods.delete(&pod.name_any(), &how).await.unwrap();
    };
    for (attempt, grace) in [(2, Some(0)), (3, None)] {
        lose(grace).await;
        let back = until("the cluster to be back", SOON, async || {
            let cluster = stage.clusters.get("salamander").await.unwrap();
            let status = cluster.status.clone().unwrap();
            let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
            if status.attempt == Some(attempt) && ready { Ok(status) } else { Err(support::wait::describe(&cluster)) }
        })
        .await;
        assert_eq!((&back.cluster_uid, back.cluster_attempt), (&first.cluster_uid, Some(attempt)));
    }

    // What does not come back is not replaced, and can be given up.
    stage.host.set_luck("salamander", Luck::Fails(Reason::ResumeFailed, "etcd does not start".into()));
    lose(Some(0)).await;
    let stalled = condition(&stage.clusters, "salamander", STALLED, "True", Some("ResumeFailed"), SOON).await.status.unwrap();
    assert_eq!(stalled.cluster_uid, first.cluster_uid);
    assert!(stage.children().await.iter().any(|child| child.starts_with("Claim")));
    stage.host.set_luck("salamander", Luck::Ready);
    stage.patch("salamander", json!({"spec": {"lifecycle": {"podLossPolicy": "Recreate"}}})).await;
    let replaced = condition(&stage.clusters, "salamander", READY, "True", None, SOON).await.status.unwrap();
    assert_eq!(replaced.cluster_uid.as_deref(), Some("nested-5"));

    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    let told = until("the events", SOON, async || {
        let all = events.list(&ListParams::default()).await.unwrap();
        let told: Vec<String> = all.into_iter().filter_map(|event| event.reason).filter(|reason| reason.starts_with("ClusterRe")).collect();
        if told.iter().any(|reason| reason == "ClusterReplaced") { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert!(told.iter().any(|reason| reason == "ClusterResumed"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_its_cluster_rests_is_told_and_comes_back() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("lazarus", json!({})).await;
    let before = condition(&stage.clusters, "lazarus", READY, "True", None, SOON).await.status.unwrap();
    let dead = DeadContainer { name: "lazarus-worker".into(), exit_code: 137, starts: 1 };
    stage.host.change("lazarus", false, |report| report.dead_containers = vec![dead]).await;
    condition(&stage.clusters, "lazarus", READY, "False", Some("NodeContainerDead"), SOON).await;
    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    until("its event", SOON, async || {
        let told: Vec<String> = events.list(&ListParams::default()).await.unwrap().iter().filter_map(|event| event.reason.clone()).collect();
        if told.iter().any(|reason| reason == "NodeContainerDead") { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    stage.host.change("lazarus", true, |report| report.dead_containers.clear()).await;
    let after = condition(&stage.clusters, "lazarus", READY, "True", None, SOON).await.status.unwrap();
    assert_eq!((after.attempt, after.cluster_uid, after.last_failure), (before.attempt, before.cluster_uid, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_finds_out_after_its_cluster_is_ready_is_told() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("late", json!({})).await;
    condition(&stage.clusters, "late", READY, "True", None, SOON).await;
    // The fake is ready at once; a pod that is not ready for a moment is listened to.
    stage.host.change("late", false, |report| (report.control_plane_ready, report.policy_probe) = (false, PolicyProbe::Pending)).await;
    condition(&stage.clusters, "late", READY, "False", None, SOON).await;
    stage.host.change("late", true, |report| report.control_plane_ready = true).await;
    let ready = condition(&stage.clusters, "late", READY, "True", None, SOON).await.status.unwrap();
    assert!(conditions::has_reason(&ready.conditions, conditions::NETWORK_POLICY_ENFORCED, Reason::Pending), "{:?}", ready.conditions);
    stage.host.change("late", true, |report| report.policy_probe = PolicyProbe::Blocked).await;
    condition(&stage.clusters, "late", conditions::NETWORK_POLICY_ENFORCED, "True", Some("ProbeBlocked"), SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_new_cluster_can_take_over_is_named() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.patch("crane", json!({"spec": {"nodes": {"workers": 1}}})).await;
    let cluster = condition(&stage.clusters, "crane", UP_TO_DATE, "False", Some("RecreateRequired"), SOON).await;
    assert!(support::wait::describe(&cluster).contains("nodes"), "{}", support::wait::describe(&cluster));
    assert_eq!(cluster.status.unwrap().attempt, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_is_queued_and_never_exceeds_its_bound() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let mut queued = 0;
    for index in 0..12 {
        stage.create(&format!("s{index}"), json!({})).await;
    }
    until("all to be ready", Duration::from_mins(1), async || {
        let all = stage.clusters.list(&ListParams::default()).await.unwrap();
        let with = |reason: &str| all.iter().filter(|cluster| support::wait::describe(cluster).contains(reason)).count();
        queued = queued.max(with("Ready=False Queued"));
        let ready = with("Ready=True");
        if ready == 12 { Ok(()) } else { Err(format!("{ready} ready")) }
    })
    .await;
    assert!(queued > 0, "nobody was seen waiting");
    let most = *stage.host.most_creating.lock().unwrap();
    assert!(most <= 2, "{most} were created at once");
}

/// One life, with the operator killed at a given place; afterwards another operator takes over and everything must be as if nothing had happened.
async fn survives(stage: &Stage, name: &str, die_after: Option<(String, u32)>, kill_at: Option<Duration>) {
    let mut doomed = stage.operator_that_dies(die_after.clone());
    let foreign_name = format!("{name}-other");
    let expires = die_after.as_ref().is_some_and(|(step, _)| step == "Expire");
    let fails_first = die_after.as_ref().is_some_and(|(step, _)| step.ends_with("Logs"));
    if fails_first {
        stage.host.set_luck(name, Luck::Fails(Reason::KindFailed, "no".into()));
    }
    let spec = json!({
        "kubeconfig": {"secretName": foreign_name, "users": [{"name": "ci", "clusterRole": "view"}]},
        "manifests": [{"name": "team", "inline": "{apiVersion: v1, kind: Namespace, metadata: {name: team}}"}],
        "registries": registries("login"),
        "storage": {"type": "Persistent"},
    });
    stage.create(name, spec).await;
    let life = async {
        if fails_first {
            condition(&stage.clusters, name, READY, "False", Some("KindFailed"), SOON).await;
            stage.host.set_luck(name, Luck::Ready);
        }
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
        stage.age_the_channel(name).await;
        stage.patch(name, json!({"spec": {"kubeconfig": {"secretName": format!("{name}-new")}, "access": {"certSANs": ["api.example"]}}})).await;
        gone(&stage.secrets(), &foreign_name, SOON).await;
        stage.patch(name, json!({"spec": {"powerState": "Stopped"}})).await;
        condition(&stage.clusters, name, SUSPENDED, "True", Some("Stopped"), SOON).await;
        if expires {
            stage.patch(name, json!({"spec": {"lifecycle": {"ttl": "1s"}}})).await;
        } else {
            stage.clusters.delete(name, &DeleteParams::default()).await.unwrap();
        }
        gone(&stage.clusters, name, SOON).await;
    };
    let death = async {
        match kill_at {
            Some(at) => {
                tokio::time::sleep(at).await;
                doomed.kill();
            }
            None => assert!(doomed.ended(Duration::from_mins(1)).await, "{die_after:?} was never reached"),
        }
        stage.operator()
    };
    let (_successor, ()) = tokio::join!(death, life);
    assert_eq!(stage.children().await, Vec::<String>::new(), "{die_after:?} {kill_at:?}");
    let started = stage.host.started.lock().unwrap().get(name).copied();
    assert_eq!(started, Some(if fails_first { 2 } else { 1 }), "{die_after:?} {kill_at:?}: pods were duplicated");
    for secret in ["new", "logs", "kubeconfig-ci"] {
        gone(&stage.secrets(), &format!("{name}-{secret}"), COLLECTED).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_behind_any_step_is_survived() {
    let stage = Stage::set().await;
    for step in Step::NAMES {
        survives(&stage, &format!("after-{}", step.to_lowercase()), Some((step.to_owned(), 1)), None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_any_time_is_survived() {
    let stage = Stage::set().await;
    let mut random = StdRng::seed_from_u64(support::seed());
    let count = if support::soak() { 100 } else { 10 };
    for index in 0..count {
        let at = Duration::from_millis(random.random_range(0..3000));
        println!("kill {index} at {at:?}");
        survives(&stage, &format!("random-{index}"), None, Some(at)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_there_before_the_pod_stays_for_the_next_and_goes_with_the_object() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({"storage": {"type": "Persistent", "size": "4Gi", "storageClassName": "fast"}})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    assert_eq!(stage.children().await.len(), 5);
    let first = stage.claims().list(&ListParams::default()).await.unwrap().items.remove(0);
    let spec = first.spec.clone().unwrap();
    assert_eq!((spec.access_modes.unwrap(), spec.storage_class_name.as_deref()), (vec!["ReadWriteOncePod".to_owned()], Some("fast")));
    assert_eq!(spec.resources.unwrap().requests.unwrap()["storage"].0, "4Gi");
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
    assert!(first.creation_timestamp().unwrap() <= pod.creation_timestamp().unwrap());
    let mounted = |pod: &Pod| pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).find_map(|volume| volume.persistent_volume_claim.clone());
    assert_eq!(mounted(&pod).unwrap().claim_name, first.name_any());

    // The next pod has the same one.
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    until("the next attempt", SOON, async || {
        let cluster = stage.clusters.get("crane").await.unwrap();
        let status = cluster.status.clone().unwrap_or_default();
        let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
        if status.attempt == Some(2) && ready { Ok(()) } else { Err(support::wait::describe(&cluster)) }
    })
    .await;
    assert_eq!(stage.claims().get(&first.name_any()).await.unwrap().uid(), first.uid());

    stage.delete("crane").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
}

/// A volume that cannot be taken away (its claim is protected) is waited for and named, like a pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_end_cannot_be_seen_is_told() {
    let stage = Stage::set().await;
    let _operator = stage.operator_with(&["--cleanup-timeout", "3s"]);
    stage.create("crane", json!({"storage": {"type": "Persistent"}})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let claim = stage.claims().list(&ListParams::default()).await.unwrap().items.remove(0);
    let mut protected = claim.finalizers().to_vec();
    protected.push("example.com/unreachable".to_owned());
    let hold = async |finalizers: serde_json::Value| {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        stage.claims().patch(&claim.name_any(), &PatchParams::default(), &patch).await.unwrap();
    };
    hold(json!(protected)).await;
    stage.clusters.delete("crane", &DeleteParams::default()).await.unwrap();
    let cluster = condition(&stage.clusters, "crane", STALLED, "True", Some("CleanupUnverified"), SOON).await;
    assert!(support::wait::describe(&cluster).contains(&format!("PersistentVolumeClaim {}", claim.name_any())));
    until("all but the claim to be gone", SOON, async || {
        let left = stage.children().await;
        if left.len() == 1 && left[0].starts_with("Claim") { Ok(()) } else { Err(left.join(", ")) }
    })
    .await;
    assert!(stage.clusters.get_opt("crane").await.unwrap().is_some(), "the object went before its volume");
    hold(json!(null)).await;
    gone(&stage.clusters, "crane", SOON * 2).await;
}

/// An end by the clock, of one that is over when it is seen first, of one whose operator was away, and none of those that were given more time or paused.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_ends_when_its_time_is_over_unless_it_is_given_more() {
    let stage = Stage::set().await;
    let mut operator = stage.operator();
    stage.create("late", json!({"lifecycle": {"expirationTime": "2020-01-01T00:00:00Z"}})).await;
    gone(&stage.clusters, "late", SOON).await;
    assert_eq!(stage.host.started.lock().unwrap().get("late"), None, "a pod was made for what was over");

    for name in ["short", "long", "paused"] {
        stage.create(name, json!({"lifecycle": {"ttl": "8h"}})).await;
        let cluster = condition(&stage.clusters, name, READY, "True", None, SOON).await;
        assert_eq!(get(&cluster.status.as_ref().unwrap().conditions, EXPIRING).unwrap().reason, "NotExpiring");
        let created = cluster.metadata.creation_timestamp.unwrap().0;
        assert_eq!(cluster.status.unwrap().expiration_time.unwrap().0, created + SignedDuration::from_hours(8));
    }
    let end = (Timestamp::now() + SignedDuration::from_secs(8)).to_string();
    let until_end = json!({"spec": {"lifecycle": {"ttl": null, "expirationTime": end}}});
    stage.patch("paused", json!({"spec": {"paused": true}})).await;
    for name in ["short", "long", "paused"] {
        stage.patch(name, until_end.clone()).await;
        condition(&stage.clusters, name, EXPIRING, "True", Some("ExpiresSoon"), SOON).await;
    }
    stage.patch("long", json!({"spec": {"lifecycle": {"ttl": "1h", "expirationTime": null}}})).await;
    condition(&stage.clusters, "long", EXPIRING, "False", Some("NotExpiring"), SOON).await;

    // The end comes while no operator is there, or under a new one.
    operator.kill();
    let _operator = stage.operator();
    gone(&stage.clusters, "short", SOON).await;
    gone(&stage.secrets(), "short-kubeconfig", COLLECTED).await;
    condition(&stage.clusters, "paused", EXPIRING, "True", Some("Expired"), SOON).await;
    let left = stage.children().await;
    assert!(left.iter().all(|child| !child.contains("c-short-")), "{left:?}");
    let long = stage.clusters.get("long").await.unwrap();
    assert_eq!((long.metadata.deletion_timestamp, get(&long.status.unwrap().conditions, READY).unwrap().status.as_str()), (None, "True"));
    assert!(stage.clusters.get("paused").await.unwrap().metadata.deletion_timestamp.is_none());
    stage.patch("paused", json!({"spec": {"paused": false}})).await;
    gone(&stage.clusters, "paused", SOON).await;

    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    let told: Vec<(String, String)> = events
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter(|event| event.involved_object.name.as_deref() == Some("short"))
        .filter_map(|event| Some((event.type_?, event.reason?)))
        .filter(|(_, reason)| reason.starts_with("Expire"))
        .collect();
    let pair = |type_: &str, reason: &str| (type_.to_owned(), reason.to_owned());
    assert!(told.contains(&pair("Warning", "ExpiresSoon")) && told.contains(&pair("Normal", "Expired")) && told.len() == 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protection_that_nothing_enforces_is_refused() {
    let stage = Stage::set().await;
    let operator = stage.operator();
    stage.create("crane", json!({"lifecycle": {"deletionProtection": true}})).await;
    condition(&stage.clusters, "crane", STALLED, "True", Some("DeletionProtectionUnavailable"), SOON).await;
    assert_eq!(stage.children().await, Vec::<String>::new());
    drop(operator);
    let _operator = stage.operator_with(&["--deletion-protection"]);
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
}

/// A node that nobody can reach keeps a pod from going; here a finalizer does.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_seen_is_told() {
    let stage = Stage::set().await;
    let operator = stage.operator_with(&["--cleanup-timeout", "3s"]);
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let pods: Api<Pod> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    let hold = |finalizers: serde_json::Value| {
        let pods = pods.clone();
        async move {
            let pod = pods.list(&ListParams::default()).await.unwrap().items.remove(0).name_any();
            pods.patch(&pod, &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": finalizers}}))).await.unwrap();
        }
    };
    hold(json!(["example.com/unreachable"])).await;
    stage.clusters.delete("crane", &DeleteParams::default()).await.unwrap();
    condition(&stage.clusters, "crane", STALLED, "True", Some("CleanupUnverified"), SOON).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(stage.clusters.get_opt("crane").await.unwrap().is_some(), "the object went before its pod");

    // The owner would rather let it go.
    drop(operator);
    let _operator = stage.operator_with(&["--cleanup-timeout", "3s", "--cleanup-policy", "abandon"]);
    gone(&stage.clusters, "crane", SOON).await;
    assert_eq!(stage.children().await.len(), 1, "only the pod that cannot go is left");
    hold(json!(null)).await;
    gone_all(&stage).await;
}

async fn gone_all(stage: &Stage) {
    until("nothing to be left", SOON, async || {
        let left = stage.children().await;
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    })
    .await;
}
