//! The further Secrets with credentials: users come, are renewed and go, Argo CD finds the cluster and forgets it first, and what is another's stays.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{KUBECONFIG_PUBLISHED, READY, UP_TO_DATE, get};
use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

use super::support::wait::{condition, gone, until};
use super::{SOON, Stage};

/// Common name and organizations of the certificate in a Secret, and the seconds that it holds from now on.
fn bearer(secret: &Secret) -> (String, Vec<String>, i64) {
    let text = String::from_utf8(secret.data.as_ref().unwrap()["value"].0.clone()).unwrap();
    let config: Value = serde_saphyr::from_str(&text).unwrap();
    let encoded = config["users"][0]["user"]["client-certificate-data"].as_str().unwrap();
    let pem = data_encoding::BASE64.decode(encoded.as_bytes()).unwrap();
    let (_, pem) = parse_x509_pem(&pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
    let groups = certificate.subject().iter_organization().map(|group| group.as_str().unwrap().to_owned()).collect();
    (name, groups, certificate.validity().not_after.timestamp() - Timestamp::now().as_second())
}

impl Stage {
    async fn status_of(&self, name: &str) -> KindClusterStatus {
        self.clusters.get(name).await.unwrap().status.unwrap_or_default()
    }

    /// Names of the Secrets of this cluster in the user's namespace.
    async fn published(&self, cluster: &str) -> Vec<String> {
        let of_cluster = ListParams::default().labels(&format!("nestling.dev/cluster-name={cluster}"));
        self.secrets().list(&of_cluster).await.unwrap().iter().map(ResourceExt::name_any).collect()
    }

    async fn published_are(&self, cluster: &str, names: &[&str]) {
        until(&format!("the Secrets {names:?}"), SOON, async || {
            let have = self.published(cluster).await;
            if have == names { Ok(()) } else { Err(format!("{have:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_are_renewed_and_go() {
    let stage = Stage::set().await;
    let operator = stage.operator();
    let users = json!([{"name": "ci", "clusterRole": "view", "lifetime": "10m"}, {"name": "ops", "groups": ["a", "b"]}]);
    stage.create("crane", json!({"kubeconfig": {"users": users}})).await;
    // Whoever waits for this finds all Secrets.
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    assert_eq!(stage.published("crane").await, ["crane-kubeconfig", "crane-kubeconfig-ci", "crane-kubeconfig-ops"]);
    let first = stage.secrets().get("crane-kubeconfig-ci").await.unwrap();
    assert_eq!((first.type_.as_deref(), first.labels()["nestling.dev/user"].as_str()), (Some("cluster.x-k8s.io/secret"), "ci"));
    let (name, groups, left) = bearer(&first);
    assert_eq!((name.as_str(), groups), ("nestling:user:ci", vec![]));
    assert!((570..=600).contains(&left), "{left}");
    let (name, groups, left) = bearer(&stage.secrets().get("crane-kubeconfig-ops").await.unwrap());
    assert_eq!((name.as_str(), groups), ("nestling:user:ops", vec!["a".to_owned(), "b".to_owned()]));
    assert!((86_000..=86_400).contains(&left), "{left}");

    // Another operator finds one due, by what the status says.
    drop(operator);
    let mut refs = serde_json::to_value(stage.status_of("crane").await.further_secret_refs).unwrap();
    assert_eq!(refs[0]["name"], "crane-kubeconfig-ci");
    refs[0]["renewalTime"] = json!("2020-01-01T00:00:00Z");
    let due = json!({"status": {"furtherSecretRefs": refs}});
    stage.clusters.patch_status("crane", &PatchParams::default(), &Patch::Merge(due)).await.unwrap();
    let _operator = stage.operator();
    let renewed = until("the renewed credentials", SOON, async || {
        let secret = stage.secrets().get("crane-kubeconfig-ci").await.unwrap();
        if secret.data == first.data { Err("the same".to_owned()) } else { Ok(secret) }
    })
    .await;
    assert_eq!(renewed.uid(), first.uid(), "who watches the Secret sees it change");
    until("the next renewal", SOON, async || {
        let status = stage.status_of("crane").await;
        let next = status.further_secret_refs[0].renewal_time.as_ref().unwrap().0.duration_since(Timestamp::now()).as_secs();
        if (370..=400).contains(&next) { Ok(()) } else { Err(format!("{next}")) }
    })
    .await;
    assert_eq!(bearer(&stage.secrets().get("crane-kubeconfig-ops").await.unwrap()).0, "nestling:user:ops");

    stage.patch("crane", json!({"spec": {"kubeconfig": {"users": [{"name": "ops", "groups": ["a", "b"]}]}}})).await;
    stage.published_are("crane", &["crane-kubeconfig", "crane-kubeconfig-ops"]).await;
    condition(&stage.clusters, "crane", UP_TO_DATE, "True", None, SOON).await;
    stage.delete("crane").await;
    stage.published_are("crane", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_holds_no_other_user_up() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let theirs = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crane-kubeconfig-ci"}, "stringData": {"value": "theirs"}});
    stage.secrets().create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    let users = json!([{"name": "ci", "clusterRole": "view"}, {"name": "ops", "clusterRole": "edit"}]);
    stage.create("crane", json!({"kubeconfig": {"users": users}})).await;
    let cluster = condition(&stage.clusters, "crane", KUBECONFIG_PUBLISHED, "False", Some("KubeconfigSecretConflict"), SOON).await;
    let message = get(&cluster.status.unwrap().conditions, KUBECONFIG_PUBLISHED).unwrap().message.clone();
    assert!(message.contains("crane-kubeconfig-ci"), "{message}");
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.published_are("crane", &["crane-kubeconfig", "crane-kubeconfig-ops"]).await;
    let kept = stage.secrets().get("crane-kubeconfig-ci").await.unwrap();
    assert_eq!(kept.data.unwrap()["value"].0, b"theirs");

    // Gone by itself; a change of the object saves the minute until the next try.
    stage.secrets().delete("crane-kubeconfig-ci", &DeleteParams::default()).await.unwrap();
    stage.patch("crane", json!({"spec": {"lifecycle": {"backoffLimit": 1}}})).await;
    condition(&stage.clusters, "crane", KUBECONFIG_PUBLISHED, "True", None, SOON).await;

    // And what is another's stays, also when its namesake goes.
    stage.secrets().delete("crane-kubeconfig-ci", &DeleteParams::default()).await.unwrap();
    let theirs = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crane-kubeconfig-ci"}, "stringData": {"value": "theirs"}});
    stage.secrets().create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    stage.delete("crane").await;
    stage.published_are("crane", &[]).await;
    assert_eq!(stage.secrets().get("crane-kubeconfig-ci").await.unwrap().data.unwrap()["value"].0, b"theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn argo_cd_finds_a_cluster_by_its_labels() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({"kubeconfig": {"argoCD": {"labels": {"env": "dev", "team": "blue"}}}})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let find = ListParams::default().labels("argocd.argoproj.io/secret-type=cluster,env=dev");
    let found = stage.secrets().list(&find).await.unwrap().items;
    assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["crane-argocd"]);
    let texts: BTreeMap<String, String> = found[0].data.clone().unwrap().into_iter().map(|(key, value)| (key, String::from_utf8(value.0).unwrap())).collect();
    let endpoint = stage.status_of("crane").await.endpoints[0].url.clone();
    assert_eq!((texts["name"].as_str(), texts["server"].as_str()), ("crane", endpoint.as_str()));
    let config: Value = serde_json::from_str(&texts["config"]).unwrap();
    assert_eq!(config["tlsClientConfig"]["serverName"], endpoint.trim_start_matches("https://").trim_end_matches(":6443"));

    stage.patch("crane", json!({"spec": {"kubeconfig": {"argoCD": {"labels": {"team": null, "env": "prod"}}}}})).await;
    until("the labels to follow", SOON, async || {
        let secret = stage.secrets().get("crane-argocd").await.unwrap();
        let labels = secret.labels();
        if labels.get("team").is_none() && labels["env"] == "prod" { Ok(()) } else { Err(format!("{labels:?}")) }
    })
    .await;
    stage.patch("crane", json!({"spec": {"kubeconfig": null}})).await;
    gone(&stage.secrets(), "crane-argocd", SOON).await;
}

/// The operator dies behind the step that tells Argo CD: its pod is still there then, and Argo CD knows of nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn argo_cd_forgets_a_cluster_before_its_pod_goes() {
    let stage = Stage::set().await;
    {
        let _operator = stage.operator();
        stage.create("crane", json!({"kubeconfig": {"argoCD": {}, "users": [{"name": "ci", "clusterRole": "view"}]}})).await;
        condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    }
    let mut operator = stage.operator_that_dies(Some(("RetractKubeconfig".into(), 1)));
    stage.clusters.delete("crane", &DeleteParams::default()).await.unwrap();
    assert!(operator.ended(SOON).await, "it was never retracted");
    assert_eq!(stage.published("crane").await, ["crane-kubeconfig", "crane-kubeconfig-ci"]);
    assert!(stage.children().await.iter().any(|child| child.starts_with("Pod")), "the pod went first");
    let _operator = stage.operator();
    gone(&stage.clusters, "crane", SOON).await;
    stage.published_are("crane", &[]).await;
}
