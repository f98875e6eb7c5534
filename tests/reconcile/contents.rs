//! What is to be in a cluster: how the operator reads it, when it gives it to the agent, and what it says meanwhile.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use nestling_core::api::conditions::{MANIFESTS_APPLIED, READY, STALLED};
use nestling_core::plan::wire::Contents;
use serde_json::json;

use super::{SOON, Stage};
use crate::support::fake_host::Luck;
use crate::support::wait::{condition, describe, until};

const PASSWORD: &str = "bittern-booms-by-night";

fn namespace(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string()
}

async fn config_map(stage: &Stage, name: &str, text: &str) {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a.yaml": text}});
    let maps: Api<ConfigMap> = Api::namespaced(stage.plane.client.clone(), "team");
    maps.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(map)).await.unwrap();
}

async fn secret(stage: &Stage, name: &str, type_: &str) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_, "stringData": {"a.yaml": PASSWORD}});
    stage.secrets().patch(name, &PatchParams::apply("test").force(), &Patch::Apply(secret)).await.unwrap();
}

/// Waits until these texts are what was given last, and returns all of it. That it was given twice, on a report that was on its way meanwhile, does no harm.
async fn given(stage: &Stage, texts: &[&str]) -> Contents {
    until("contents to be given", SOON, async || {
        let last = stage.host.contents().pop().ok_or("nothing was given")?;
        let same = last.manifests.iter().map(|manifest| manifest.text.as_str()).eq(texts.iter().copied());
        if same { Ok(last) } else { Err(format!("{last:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_read_given_once_and_again_when_they_change() {
    let stage = Stage::set().await;
    let operator = stage.operator();
    config_map(&stage, "map", "from a map").await;
    secret(&stage, "secret", "nestling.dev/manifests").await;
    let manifests = |first: &str| json!([{"name": "a", "inline": namespace(first)}, {"name": "b", "configMapRef": {"name": "map"}}, {"name": "c", "secretRef": {"name": "secret"}}]);
    stage.create("crane", json!({"manifests": manifests("x"), "readiness": {"dns": true}})).await;
    let cluster = condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "True", Some("ManifestsApplied"), SOON).await;
    let first = given(&stage, &[&namespace("x"), "from a map", PASSWORD]).await;
    assert_eq!(first.manifests.iter().map(|manifest| manifest.secret).collect::<Vec<_>>(), [false, false, true]);
    assert!(!serde_json::to_string(&cluster).unwrap().contains(PASSWORD));

    // An edit of the list arrives at once, and takes Ready away at no moment.
    stage.patch("crane", json!({"spec": {"manifests": manifests("y")}})).await;
    given(&stage, &[&namespace("y"), "from a map", PASSWORD]).await;
    // So does the wish for it, with what the map holds by now.
    config_map(&stage, "map", "changed").await;
    stage.patch("crane", json!({"metadata": {"annotations": {"nestling.dev/reapply": "monday"}}})).await;
    assert_eq!(given(&stage, &[&namespace("y"), "changed", PASSWORD]).await.reapply, "monday");
    let cluster = condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "True", None, SOON).await;
    assert_eq!(super::get(&cluster.status.unwrap().conditions, READY).unwrap().status, "True");

    // Another operator knows from the agent that all is there.
    drop(operator);
    let before = stage.host.contents().len();
    let _operator = stage.operator();
    stage.patch("crane", json!({"spec": {"lifecycle": {"backoffLimit": 3}}})).await;
    until("the new operator to look", SOON, async || {
        let cluster = stage.clusters.get("crane").await.unwrap();
        if cluster.status.as_ref().unwrap().observed_generation == cluster.metadata.generation { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(stage.host.contents().len(), before);
    // A list that is empty is told as well: the agent is to try nothing any more.
    stage.patch("crane", json!({"spec": {"manifests": null, "readiness": null}})).await;
    given(&stage, &[]).await;
    condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "True", Some("NoManifests"), SOON).await;
    stage.delete("crane").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said_and_nothing_of_it_is_shown() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    secret(&stage, "login-of-others", "Opaque").await;
    // Before there is a pod: what stands in the spec itself.
    let inline = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}).to_string();
    stage.create("heron", json!({"manifests": [{"name": "a", "inline": inline}]})).await;
    condition(&stage.clusters, "heron", STALLED, "True", Some("InlineSecret"), SOON).await;
    assert_eq!(super::pods_of(&stage).await, Vec::<String>::new());
    stage.delete("heron").await;

    let from = |name: &str| json!([{"name": "a", "secretRef": {"name": name}}]);
    stage.create("crane", json!({"manifests": from("none")})).await;
    condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "False", Some("SecretNotFound"), SOON).await;
    condition(&stage.clusters, "crane", READY, "False", Some("SecretNotFound"), SOON).await;
    // A Secret that was not made for this is not read out.
    stage.patch("crane", json!({"spec": {"manifests": from("login-of-others")}})).await;
    let cluster = condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "False", Some("UnusableManifest"), SOON).await;
    assert!(describe(&cluster).contains("nestling.dev/manifests is wanted") && !describe(&cluster).contains(PASSWORD), "{}", describe(&cluster));
    assert_eq!(stage.host.contents(), []);
    stage.patch("crane", json!({"spec": {"manifests": [{"name": "a", "configMapRef": {"name": "none"}}]}})).await;
    condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "False", Some("ConfigMapNotFound"), SOON).await;
    config_map(&stage, "some", "a: b").await;
    stage.patch("crane", json!({"spec": {"manifests": [{"name": "a", "configMapRef": {"name": "some"}}]}})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    // A cluster that was ready stays so.
    stage.patch("crane", json!({"spec": {"manifests": from("none")}})).await;
    condition(&stage.clusters, "crane", MANIFESTS_APPLIED, "False", Some("SecretNotFound"), SOON).await;
    condition(&stage.clusters, "crane", STALLED, "True", Some("SecretNotFound"), SOON).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.delete("crane").await;

    stage.host.set_luck("stork", Luck::ReadyButOutdated);
    stage.create("stork", json!({"manifests": [{"name": "a", "inline": namespace("x")}]})).await;
    condition(&stage.clusters, "stork", MANIFESTS_APPLIED, "False", Some("AgentOutdated"), SOON).await;
    stage.delete("stork").await;
}
