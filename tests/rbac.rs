//! The rights that the chart gives: the operator can do its work with them on a real API server, and nothing more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

#[path = "rbac/connect.rs"]
mod connect;
mod support;

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use nestling_core::api::conditions::{READY, STALLED};
use nestling_core::api::reasons::Reason;
use nestling_core::api::{KindCluster, KindClusterSpec};
use nestling_core::plan::references::READER_ROLE;
use support::fake_host::{FakeHost, Luck};
use support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE, Operator, Options, POD_IMAGE, THE_SAME_POD};
use support::plane::{Plane, lab};
use support::wait::{condition, describe, gone, until};

const SERVICE_ACCOUNT: &str = "system:serviceaccount:nestling-system:nestling";

/// Only the documents that give rights.
fn rights_of_the_chart() -> String {
    let helm = lab().bin("helm").unwrap();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/nestling");
    let output = Command::new(helm).args(["template", "nestling", chart, "-n", OPERATOR_NAMESPACE, "--no-hooks", "--kube-version", "1.34.4"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).unwrap();
    let rights = |document: &&str| {
        ["kind: Role\n", "kind: RoleBinding\n", "kind: ClusterRole\n", "kind: ClusterRoleBinding\n"].iter().any(|kind| document.contains(kind))
    };
    rendered.split("\n---\n").filter(rights).collect::<Vec<_>>().join("\n---\n")
}

async fn may(client: &Client, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> bool {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(resource, sub)| (resource, Some(sub.to_owned())));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource,
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

/// The logs of an attempt that failed, which come from the agent and go to the user.
async fn logs_reach_their_user(host: &FakeHost, clusters: &Api<KindCluster>) {
    host.set_luck("wreck", Luck::Fails(Reason::KindFailed, "no".into()));
    let hopeless = serde_json::json!({"lifecycle": {"backoffLimit": 0}});
    clusters.create(&PostParams::default(), &KindCluster::new("wreck", serde_json::from_value(hopeless).unwrap())).await.unwrap();
    let wreck = condition(clusters, "wreck", STALLED, "True", Some("KindFailed"), Duration::from_mins(1)).await;
    assert_eq!(wreck.status.unwrap().last_failure.unwrap().bundle_ref.unwrap().name, "wreck-logs");
    clusters.delete("wreck", &DeleteParams::default()).await.unwrap();
    gone(clusters, "wreck", Duration::from_mins(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_rights_suffice_and_nothing_more() {
    let plane = Plane::start().await;
    for name in [OPERATOR_NAMESPACE, CLUSTERS_NAMESPACE, "team"] {
        plane.namespace(name).await;
    }
    plane.apply(&rights_of_the_chart());
    let host = FakeHost::start(plane.client.clone()).await;
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), plane.control_plane.kubeconfig_for(SERVICE_ACCOUNT, None).unwrap()).unwrap();

    // They suffice: a whole life.
    let options = Options {
        agents: host.address,
        max_creating: 1,
        die_after: None,
        kubeconfig: Some(kubeconfig.path().to_owned()),
        pod_image: POD_IMAGE,
        identity: THE_SAME_POD,
        admin: None,
    };
    let _operator = Operator::start(&plane, &options);
    let clusters: Api<KindCluster> = Api::namespaced(plane.client.clone(), "team");
    let spec = serde_json::from_value(serde_json::json!({"storage": {"type": "Persistent"}})).unwrap();
    clusters.create(&PostParams::default(), &KindCluster::new("crane", spec)).await.unwrap();
    condition(&clusters, "crane", READY, "True", None, Duration::from_mins(1)).await;
    clusters.delete("crane", &DeleteParams::default()).await.unwrap();
    gone(&clusters, "crane", Duration::from_mins(1)).await;
    let brief = serde_json::json!({"lifecycle": {"ttl": "1s"}});
    clusters.create(&PostParams::default(), &KindCluster::new("mayfly", serde_json::from_value(brief).unwrap())).await.unwrap();
    gone(&clusters, "mayfly", Duration::from_mins(1)).await;

    logs_reach_their_user(&host, &clusters).await;

    // What a namespace has to allow, it is asked for with a command that is right.
    let login = serde_json::json!({"metadata": {"name": "login"}, "type": "kubernetes.io/basic-auth", "stringData": {"username": "u", "password": "p"}});
    let secrets: Api<Secret> = Api::namespaced(plane.client.clone(), "team");
    secrets.create(&PostParams::default(), &serde_json::from_value(login).unwrap()).await.unwrap();
    let spec = serde_json::json!({"registries": [{"host": "r.example", "credentialsSecretRef": {"name": "login"}}]});
    clusters.create(&PostParams::default(), &KindCluster::new("heron", serde_json::from_value(spec).unwrap())).await.unwrap();
    let denied = condition(&clusters, "heron", STALLED, "True", Some("SecretAccessDenied"), Duration::from_mins(1)).await;
    let said = describe(&denied);
    let command = said.split("to let it: kubectl ").nth(1).unwrap().split(". ").next().unwrap().to_owned();
    // The only slot is not kept by who cannot use it.
    clusters.create(&PostParams::default(), &KindCluster::new("other", KindClusterSpec::default())).await.unwrap();
    condition(&clusters, "other", READY, "True", None, Duration::from_mins(1)).await;
    let output = plane.control_plane.kubectl().args(command.split(' ')).output().unwrap();
    assert!(output.status.success(), "kubectl {command}: {}", String::from_utf8_lossy(&output.stderr));
    condition(&clusters, "heron", READY, "True", None, Duration::from_mins(3)).await;
    let operator = plane.client_for(SERVICE_ACCOUNT).await;
    assert!(may(&operator, "get", "", "secrets", Some("team")).await);
    for verb in ["list", "watch"] {
        assert!(!may(&operator, verb, "", "secrets", Some("team")).await, "{verb}");
    }
    Api::<RoleBinding>::namespaced(plane.client.clone(), "team").delete(READER_ROLE, &DeleteParams::default()).await.unwrap();

    until("the binding to be gone for the API server as well", Duration::from_secs(20), async || {
        if may(&operator, "get", "", "secrets", Some("team")).await { Err("may still read".to_owned()) } else { Ok(()) }
    })
    .await;

    // Without them nothing is taken for gone.
    clusters.create(&PostParams::default(), &KindCluster::new("owl", KindClusterSpec::default())).await.unwrap();
    condition(&clusters, "owl", READY, "True", None, Duration::from_mins(1)).await;
    let bindings: Api<RoleBinding> = Api::namespaced(plane.client.clone(), CLUSTERS_NAMESPACE);
    for binding in bindings.list(&ListParams::default()).await.unwrap() {
        bindings.delete(&binding.name_any(), &DeleteParams::default()).await.unwrap();
    }
    clusters.delete("owl", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(clusters.get_opt("owl").await.unwrap().is_some(), "an operator that may not look took the cluster for gone");
    plane.apply(&rights_of_the_chart());
    gone(&clusters, "owl", Duration::from_mins(2)).await;

    // And nothing more.
    let operator = plane.client_for(SERVICE_ACCOUNT).await;
    let forbidden = [
        ("get", "", "secrets", Some("team")),
        ("list", "", "secrets", None),
        ("watch", "", "secrets", None),
        ("list", "", "secrets", Some(OPERATOR_NAMESPACE)),
        ("create", "", "pods", Some("team")),
        ("create", "", "pods", Some(OPERATOR_NAMESPACE)),
        ("list", "", "pods", Some("team")),
        ("create", "", "pods/exec", Some(CLUSTERS_NAMESPACE)),
        ("get", "", "configmaps", Some("team")),
        ("list", "", "persistentvolumeclaims", Some("team")),
        ("get", "", "persistentvolumeclaims", Some(CLUSTERS_NAMESPACE)),
        ("get", "", "persistentvolumes", None),
        ("get", "storage.k8s.io", "storageclasses", None),
        ("create", "", "serviceaccounts/token", Some(CLUSTERS_NAMESPACE)),
        ("patch", "", "nodes", None),
        ("create", "", "namespaces", None),
        ("create", "nestling.dev", "kindclusters", Some("team")),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings", None),
        ("escalate", "rbac.authorization.k8s.io", "clusterroles", None),
        ("impersonate", "", "users", None),
        ("patch", "apiextensions.k8s.io", "customresourcedefinitions", None),
    ];
    for (verb, group, resource, namespace) in forbidden {
        assert!(!may(&operator, verb, group, resource, namespace).await, "{verb} {resource} in {namespace:?} is allowed");
    }
    let needed = [
        ("patch", "", "secrets", Some("team")),
        ("create", "", "pods", Some(CLUSTERS_NAMESPACE)),
        ("watch", "nestling.dev", "kindclusters", None),
        ("delete", "nestling.dev", "kindclusters", Some("team")),
    ];
    for (verb, group, resource, namespace) in needed {
        assert!(may(&operator, verb, group, resource, namespace).await, "{verb} {resource} in {namespace:?} is not allowed");
    }
}
