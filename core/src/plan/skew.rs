//! One release of skew: what the release before has made and says is understood by this one, and what the next one may add is no obstacle.
//!
//! `skew/` holds, in the words of the release before, clusters as they are stored in the host cluster, each with its pod and its agent's report. An
//! operator is replaced while pods of the release before run: it must not take them for outdated. If a change here is meant, it is a change that makes
//! every running cluster say `RecreateRequired`, and every cluster under creation begin anew, when the operator is upgraded.
//!
//! With a release, record it anew: `cargo test -p nestling-core record_this_release -- --ignored`.

use std::sync::Arc;

use jiff::Timestamp;
use rstest::rstest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::decide::{Step, decide};
use super::observed::Observed;
use super::settings::Settings;
use super::settle::{Outcome, settle};
use super::situation::{Situation, situation};
use super::testing::{self, NOW};
use super::wire::{AgentReport, AgentSettings, NodeReport, Stage, StageDuration};
use crate::api::conditions::{self, READY, UP_TO_DATE};
use crate::api::{KindCluster, annotations};

const PLAIN: &str = include_str!("skew/plain.json");
const FULL: &str = include_str!("skew/full.json");

/// A bit of everything that goes into a pod.
const FULL_SPEC: &str = "{version: v1.34.4, nodes: {controlPlanes: 1, workers: 2}, networking: {podCIDRs: [10.40.0.0/16], serviceCIDRs: [10.41.0.0/16]}, \
    config: {featureGates: {AllBeta: true}, kubeadmConfigPatches: ['{kind: ClusterConfiguration}']}, access: {service: {type: NodePort}}, \
    registries: [{host: r.example, endpoints: ['http://mirror.example'], credentialsSecretRef: {name: login}}], \
    resources: {limits: {memory: 6Gi, cpu: '2'}}, storage: {type: Persistent, size: 20Gi}, \
    pod: {metadata: {labels: {team: blue}}, nodeSelector: {disk: fast}, tolerations: [{operator: Exists}]}, \
    lifecycle: {ttl: 8h, backoffLimit: 1, podLossPolicy: Fail}, kubeconfig: {secretName: other}}";

struct Recorded {
    cluster: KindCluster,
    pod: Value,
    report: Value,
}

fn recorded(text: &str) -> Recorded {
    let mut all: Value = serde_json::from_str(text).unwrap();
    Recorded { cluster: read(all["cluster"].take()), pod: all["pod"].take(), report: all["report"].take() }
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// What the next release's chart may have changed.
fn other_settings() -> Settings {
    let before = testing::settings();
    Settings {
        pod_image: "registry.example/node:next".into(),
        default_version: "v1.35.0".into(),
        node_images: [("v1.34.4".to_owned(), "kindest/node:v1.34.4@sha256:bb".to_owned())].into(),
        mount_modules: !before.mount_modules,
        egress_allowed: vec![],
        ..before
    }
}

/// What a pass of this release sees of what the release before has made.
fn seen(recorded: &Recorded) -> Observed {
    let mut seen = testing::with_pod(testing::observed(recorded.cluster.clone()), 300);
    seen.children.pods = vec![read(recorded.pod.clone())];
    seen.report = Some(read(recorded.report.clone()));
    seen.settings = Arc::new(other_settings());
    seen
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

#[rstest]
#[case::plain(PLAIN)]
#[case::full(FULL)]
fn a_pod_of_the_release_before_is_left_alone(#[case] text: &str) {
    let seen = seen(&recorded(text));
    assert!(matches!(situation(now(), &seen), Situation::Running { .. }), "{:?}", situation(now(), &seen));
    let pods: Vec<_> = decide(now(), &seen).steps.into_iter().filter(|step| matches!(step, Step::CreatePod(_) | Step::Delete(_))).collect();
    assert!(pods.is_empty(), "{pods:?}");
    let status = settle(now(), &seen, &Outcome::default());
    let up_to_date = conditions::get(&status.conditions, UP_TO_DATE).unwrap();
    assert_eq!(up_to_date.status, "True", "{}", up_to_date.message);
    assert!(conditions::is_true(&status.conditions, READY), "{:#?}", status.conditions);
    assert_eq!(status.version.as_deref(), Some("v1.34.4"), "resolved once, and never again");
}

#[rstest]
#[case::plain(PLAIN)]
#[case::full(FULL)]
fn a_creation_that_the_release_before_began_goes_on(#[case] text: &str) {
    let mut seen = seen(&recorded(text));
    seen.report = Some(AgentReport { attempt: 1, stage: Stage::PreparingNodes, ..AgentReport::default() });
    let status = seen.cluster.status.as_mut().unwrap();
    (status.cluster_attempt, status.cluster_uid, status.ready_time) = (None, None, None);
    assert!(matches!(situation(now(), &seen), Situation::Creating { .. }), "{:?}", situation(now(), &seen));
}

/// The same, with something that nobody knows in every object.
fn with_something_new(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(with_something_new);
            map.insert("ofTheNextRelease".into(), json!({"a": [1]}));
        }
        Value::Array(items) => items.iter_mut().for_each(with_something_new),
        _ => {}
    }
}

#[rstest]
#[case::plain(PLAIN)]
#[case::full(FULL)]
fn a_report_of_the_next_release_is_understood(#[case] text: &str) {
    let recorded = recorded(text);
    let known: AgentReport = read(recorded.report.clone());
    let mut newer = recorded.report;
    with_something_new(&mut newer);
    assert_eq!(read::<AgentReport>(newer), known);
}

#[rstest]
#[case::plain(PLAIN)]
#[case::full(FULL)]
fn settings_of_another_release_are_understood(#[case] text: &str) {
    let pod = recorded(text).pod;
    let written: Value = serde_json::from_str(pod["metadata"]["annotations"][annotations::SETTINGS].as_str().unwrap()).unwrap();
    // An older operator's settings, read by this agent,
    let known: AgentSettings = read(written.clone());
    // and a newer one's. The user's own kind configuration keeps what it does not know; it is not ours.
    let mut newer = written;
    let config = newer["config"].take();
    with_something_new(&mut newer);
    newer["config"] = config;
    assert_eq!(read::<AgentSettings>(newer), known);
}

/// The least that an agent of any release says.
#[test]
fn a_report_without_all_that_was_added_later_is_understood() {
    let report: AgentReport = read(json!({"revision": 1, "clusterUid": "u", "attempt": 1, "stage": "Serving"}));
    assert_eq!(report, AgentReport { revision: 1, cluster_uid: "u".into(), attempt: 1, stage: Stage::Serving, ..AgentReport::default() });
}

/// Writes down what this release makes and says, for the next one.
#[test]
#[ignore = "overwrites what the release before has left"]
fn record_this_release() {
    for (name, spec) in [("plain", "{}"), ("full", FULL_SPEC)] {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 300);
        seen.cluster.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
        let stages = Stage::ALL.iter().map(|stage| StageDuration { stage: *stage, milliseconds: 10 }).collect();
        let workers = seen.cluster.spec.nodes.as_ref().map_or(0, |nodes| nodes.workers);
        let node = |index: i32| NodeReport { name: format!("node-{index}"), control_plane: index == 0, ready: true };
        let report = AgentReport {
            schema: super::wire::SCHEMA,
            revision: 30,
            cluster_uid: seen.identity.uid.clone(),
            attempt: 1,
            stage: Stage::Serving,
            stages,
            control_plane_ready: true,
            nodes: (0..=workers).map(node).collect(),
            nested_uid: Some("nested".into()),
            server_version: Some("v1.34.4".into()),
            kind_version: Some("v0.33.0".into()),
            warnings: vec!["a warning".into()],
            ..AgentReport::default()
        };
        // First under creation; then twice, because what is published and what is ready follow from what was written before.
        for said in [None, Some(&report), Some(&report)] {
            seen.report = said.cloned();
            let steps = decide(now(), &seen).steps;
            let published = |step: &Step| if let Step::PublishKubeconfig(plan) = step { Some(plan.secret.clone()) } else { None };
            let credentials_end = steps.iter().filter_map(published).map(|secret| (secret, Timestamp::from_second(NOW + 30_000_000).unwrap())).collect();
            let outcome = Outcome { done: steps, credentials_end, ..Outcome::default() };
            seen.cluster.status = Some(settle(now(), &seen, &outcome));
        }
        let all = json!({"cluster": seen.cluster, "pod": seen.children.pods[0], "report": report});
        let path = format!("{}/src/plan/skew/{name}.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
    }
}
