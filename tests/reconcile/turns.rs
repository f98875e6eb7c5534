//! Who is looked at next, where there is more to do than is done at once.

use std::net::{Ipv4Addr, TcpListener};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::READY;
use serde_json::json;
use tokio::time::timeout;

use super::support::operator::CLUSTERS_NAMESPACE;
use super::support::wait::{condition, until};
use super::{SOON, Stage};

impl Stage {
    /// Lets the API server ask somebody who does not answer before it makes a Service: for ten seconds each, or until what is returned is dropped.
    async fn let_services_take_long(&self) -> TcpListener {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let asked: ValidatingWebhookConfiguration = serde_json::from_value(json!({
            "metadata": {"name": "silent"},
            "webhooks": [{
                "name": "silent.nestling.test", "clientConfig": {"url": format!("https://{}/", silent.local_addr().unwrap())},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"]}],
                "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 10,
            }],
        }))
        .unwrap();
        Api::all(self.plane.client.clone()).create(&PostParams::default(), &asked).await.unwrap();
        let services: Api<Service> = Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE);
        let tried: Service = serde_json::from_value(json!({"metadata": {"name": "tried"}, "spec": {"ports": [{"port": 1}]}})).unwrap();
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        until("the API server to ask", SOON, async || {
            let answer = timeout(Duration::from_millis(500), services.create(&dry_run, &tried)).await;
            answer.map_or(Ok(()), |answer| Err(format!("it answered at once: {:?}", answer.err())))
        })
        .await;
        silent
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_longest_is_looked_at_first() {
    const ALL: usize = 16;
    let stage = Stage::set().await;
    let _operator = stage.operator_with(&["--concurrency", "1"]);
    stage.create("first", json!({})).await;
    condition(&stage.clusters, "first", READY, "True", None, SOON).await;
    let changes = watcher(stage.clusters.clone(), watcher::Config::default()).applied_objects();
    let mut changes = pin!(changes.filter_map(async |cluster| cluster.ok().filter(|cluster| cluster.status.is_some())));
    let _ = changes.next().await;
    for index in 0..ALL {
        stage.create(&format!("c{index:02}"), json!({})).await;
    }
    let mut told: Vec<String> = Vec::new();
    while told.len() < ALL {
        let name = timeout(SOON, changes.next()).await.unwrap().unwrap().name_any();
        if name != "first" && !told.contains(&name) {
            told.push(name);
        }
    }
    // Those that come within a millisecond may change places.
    let is_near = |place: usize, name: &str| name[1..].parse::<usize>().unwrap().abs_diff(place) <= 3;
    assert!(told.iter().enumerate().all(|(place, name)| is_near(place, name)), "first statuses came in the order {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_new_waits_for_nobody_whose_pass_takes_long() {
    let stage = Stage::set().await;
    let silent = stage.let_services_take_long().await;
    let _operator = stage.operator_with(&["--concurrency", "1"]);
    let policies: Api<NetworkPolicy> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    stage.create("slow", json!({})).await;
    until("the step before the Service", SOON, async || {
        let made = policies.list(&ListParams::default()).await.unwrap().items.len();
        if made > 0 { Ok(()) } else { Err("no network policy".to_owned()) }
    })
    .await;
    stage.create("new", json!({})).await;
    condition(&stage.clusters, "new", READY, "False", None, Duration::from_secs(4)).await;
    let services: Api<Service> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
    assert!(services.list(&ListParams::default()).await.unwrap().items.is_empty(), "the Service did not take long");
    drop(silent);
    for name in ["slow", "new"] {
        condition(&stage.clusters, name, READY, "True", None, SOON).await;
    }
}
