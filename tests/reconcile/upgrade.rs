//! Another release of the operator takes over: what runs is not touched.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use nestling_core::api::annotations;
use nestling_core::api::conditions::READY;
use serde_json::{Value, json};

use super::support::operator::{CLUSTERS_NAMESPACE, Operator, Options};
use super::support::wait::{condition, describe, until};
use super::{SOON, Stage};

/// What another release may have chosen otherwise.
const OTHER_SETTINGS: [&str; 7] =
    ["--default-version", "v1.33.1", "--node-image-repository", "example.com/node", "--mount-modules", "--egress-allow", "10.9.9.0/24"];

impl Stage {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE)
    }

    /// All pods, by name, with all that is known of them.
    async fn all_pods(&self) -> BTreeMap<String, Value> {
        self.pods().list(&ListParams::default()).await.unwrap().into_iter().map(|pod| (pod.name_any(), json!(pod))).collect()
    }

    /// Waits until this operator has looked at each of these clusters: it has the time of its own first event that way.
    async fn looked_at(&self, names: &[&str], operator: &str) {
        for name in names {
            self.patch(name, json!({"metadata": {"annotations": {"example.com/upgraded-by": operator}}})).await;
        }
        let probe = format!("probe-{operator}");
        self.create(&probe, json!({})).await;
        condition(&self.clusters, &probe, READY, "True", None, SOON).await;
        // More than enough for the passes that a start brings; a pod that was to go would be gone.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_the_operator_touches_no_pod() {
    let stage = Stage::set().await;
    let first = stage.operator();
    stage.create("one", json!({})).await;
    stage.create("two", json!({"storage": {"type": "Persistent"}})).await;
    for name in ["one", "two"] {
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
    }
    drop(first);

    // As an earlier release might have left it: a digest that this one does not know, and one that is missing.
    let pod = stage.pods().list(&ListParams::default().labels("nestling.dev/cluster-name=one")).await.unwrap().items.remove(0);
    let mut digests: BTreeMap<String, String> = serde_json::from_str(&pod.annotations()[annotations::SETTINGS_DIGEST]).unwrap();
    digests.remove("storage").unwrap();
    digests.insert("ofAnotherRelease".into(), "0".into());
    let annotation = json!({"metadata": {"annotations": {annotations::SETTINGS_DIGEST: serde_json::to_string(&digests).unwrap()}}});
    stage.pods().patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(annotation)).await.unwrap();

    let before = stage.all_pods().await;
    let options = Options { pod_image: "nestling/node:next", ..stage.options(None) };
    let upgraded = Operator::start_with(&stage.plane, &options, &OTHER_SETTINGS);
    stage.looked_at(&["one", "two"], "next").await;
    // And back: the release before this one.
    drop(upgraded);
    let _downgraded = stage.operator();
    stage.looked_at(&["one", "two"], "before").await;

    let after = stage.all_pods().await;
    for (name, pod) in &before {
        assert_eq!(after.get(name), Some(pod), "a pod was touched");
    }
    let image = |probe: &str| {
        let pod = after.iter().find(|(name, _)| name.contains(probe)).unwrap().1;
        pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    assert_eq!(image("probe-next"), "nestling/node:next", "the other release has made no pod of its own");
    for name in ["one", "two"] {
        until("the cluster to be ready", SOON, async || {
            let cluster = stage.clusters.get(name).await.unwrap();
            let status = cluster.status.clone().unwrap();
            let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
            if ready && status.attempt == Some(1) && status.version.as_deref() == Some("v1.34.4") { Ok(()) } else { Err(describe(&cluster)) }
        })
        .await;
    }
}
