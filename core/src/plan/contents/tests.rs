use super::*;
use crate::plan::decide::{Step, decide, is_moving};
use crate::plan::settle::{Outcome, settle};
use crate::plan::testing::{self, NOW};
use crate::plan::wire::{ContentsReport, NodeReport, Stage};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;

const SPEC: &str = "{manifests: [{name: a, inline: '{apiVersion: v1, kind: Namespace, metadata: {name: x}}'}, {name: b, configMapRef: {name: map}}, \
    {name: c, secretRef: {name: secret}}], readiness: {dns: true, deployments: [{namespace: x, name: web}]}}";
const INLINE: &str = "{manifests: [{name: a, inline: '{apiVersion: v1, kind: Namespace, metadata: {name: x}}'}]}";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A cluster that serves, all nodes ready, with an agent that says this of its contents.
fn serving(spec: &str, contents: Option<ContentsReport>) -> Observed {
    let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 60);
    let nodes = vec![NodeReport { name: "crane-control-plane".into(), control_plane: true, ready: true }];
    seen.report =
        Some(AgentReport { stage: Stage::Serving, control_plane_ready: true, nested_uid: Some("n".into()), nodes, contents, ..AgentReport::default() });
    // The kubeconfig is published first.
    let steps = decide(at(NOW), &seen).steps.into_iter().filter(|step| !matches!(step, Step::SendContents(_))).collect();
    let published = Outcome { done: steps, credentials_end: [("crane-kubeconfig".to_owned(), at(NOW + 30_000_000))].into(), ..Outcome::default() };
    seen.cluster.status = Some(settle(at(NOW), &seen, &published));
    if let Some(status) = &mut seen.cluster.status {
        status.ready_time = None;
    }
    seen
}

fn said(seen: &Observed, states: &[(&str, ManifestState, &str)], gates: &[(&str, bool)]) -> ContentsReport {
    ContentsReport {
        received: Edition { list: list(&seen.cluster), read_at: Some(at(NOW)) },
        manifests: states.iter().map(|(name, state, message)| ManifestReport { name: (*name).into(), state: *state, message: (*message).into() }).collect(),
        gates: gates.iter().map(|(gate, met)| GateReport { gate: (*gate).into(), met: *met, message: "not yet".into() }).collect(),
    }
}

fn with(mut seen: Observed, said: ContentsReport) -> Observed {
    seen.report.as_mut().unwrap().contents = Some(said);
    seen
}

fn condition(status: &KindClusterStatus, type_: &str) -> String {
    let condition = conditions::get(&status.conditions, type_).unwrap();
    format!("{} {}", condition.status, condition.reason)
}

/// Ready, Reconciling, Stalled and ManifestsApplied.
fn conditions_of(seen: &Observed) -> [String; 4] {
    let status = settle(at(NOW), seen, &Outcome::default());
    [conditions::READY, conditions::RECONCILING, conditions::STALLED, conditions::MANIFESTS_APPLIED].map(|type_| condition(&status, type_))
}

fn is_due(seen: &Observed, now: i64) -> bool {
    decide(at(now), seen).steps.iter().any(|step| matches!(step, Step::SendContents(_)))
}

#[test]
fn the_plan_says_what_is_read_and_gates_have_names() {
    let cluster = testing::cluster(SPEC);
    let plan = plan(at(NOW), &cluster, &testing::identity(&cluster), &testing::settings());
    let origins: Vec<&Origin> = plan.sources.iter().map(|source| &source.origin).collect();
    assert!(matches!(origins[..], [Origin::Inline(_), Origin::ConfigMap(map), Origin::Secret(secret)] if map == "map" && secret == "secret"), "{origins:?}");
    assert_eq!(gates(&plan.readiness).iter().map(ToString::to_string).collect::<Vec<_>>(), ["dns", "Deployment x/web"]);
    let text = |size: usize| vec![ManifestText { name: "a".into(), text: "x".repeat(size), secret: true }];
    let contents = plan.contents(text(10)).unwrap();
    assert_eq!(contents.edition, Edition { list: list(&cluster), read_at: Some(at(NOW)) });
    assert!(!format!("{contents:?}").contains("xxx"), "{contents:?}");
    assert_eq!(plan.contents(text(CONTENTS_LIMIT)).unwrap_err().reason, Reason::ManifestsTooLarge);
}

#[rstest]
#[case("{manifests: [{name: a, inline: 'a: b'}]}", Some((Reason::ManifestUnreadable, "manifests[a].inline")))]
#[case("{manifests: [{name: a, inline: '{'}]}", Some((Reason::ManifestUnreadable, "line 1")))]
#[case("{manifests: [{name: a, inline: '{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {k: hidden}}'}]}", Some((Reason::InlineSecret, "the Secret s")))]
#[case("{manifests: [{name: a, inline: '{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {k: aGlkZGVu}}]}'}]}", Some((Reason::InlineSecret, "the Secret s")))]
#[case("{manifests: [{name: a, inline: '{apiVersion: v1, kind: Secret, metadata: {name: filled-later}}'}]}", None)]
#[case(SPEC, None)]
fn what_stands_in_the_spec_is_checked_before_there_is_a_pod(#[case] spec: &str, #[case] expected: Option<(Reason, &str)>) {
    let seen = testing::observed(testing::cluster(spec));
    let [ready, _, stalled, _] = conditions_of(&seen);
    let Some((reason, part)) = expected else {
        assert_eq!((ready.as_str(), stalled.as_str()), ("False PodPending", "False NotStalled"));
        return;
    };
    assert_eq!((ready, stalled), (format!("False {reason}"), format!("True {reason}")));
    let message = &conditions::get(&settle(at(NOW), &seen, &Outcome::default()).conditions, conditions::STALLED).unwrap().message.clone();
    assert!(message.contains(part) && !message.contains("hidden") && !message.contains("aGlk"), "{message}");
    assert!(!decide(at(NOW), &seen).steps.iter().any(|step| matches!(step, Step::CreatePod(_))));
}

#[test]
fn secrets_are_of_one_type_only_and_nothing_of_them_is_repeated() {
    let secret =
        |type_: &str, data: serde_json::Value| -> Secret { serde_json::from_value(json!({"metadata": {"name": "s"}, "type": type_, "data": data})).unwrap() };
    assert_eq!(of_secret(&secret(SECRET_TYPE, json!({"b": "Mg==", "a": "MQ=="}))).unwrap(), "1\n---\n2");
    for (type_, data, why) in [
        ("Opaque", json!({"a": "aGlkZGVu"}), "of type \"Opaque\""),
        ("kubernetes.io/basic-auth", json!({"password": "aGlkZGVu"}), "of type"),
        (SECRET_TYPE, json!({}), "no data"),
        (SECRET_TYPE, json!({"a": "/w=="}), "no text under a"),
    ] {
        let problem = of_secret(&secret(type_, data)).unwrap_err();
        assert!(problem.reason == Reason::UnusableManifest && problem.message.contains(why) && !problem.message.contains("hidden"), "{problem}");
    }
    let map = |data: serde_json::Value| -> ConfigMap { serde_json::from_value(json!({"metadata": {"name": "m"}, "data": data})).unwrap() };
    assert_eq!(of_config_map(&map(json!({"b": "2", "a": "1"}))).unwrap(), "1\n---\n2");
    assert_eq!(of_config_map(&map(json!({}))).unwrap_err().reason, Reason::UnusableManifest);
}

#[test]
fn contents_are_given_when_they_differ_and_again_when_they_are_old() {
    let fresh = serving(SPEC, Some(ContentsReport::default()));
    assert!(is_due(&fresh, NOW));
    let applied = ["a", "b", "c"].map(|name| (name, ManifestState::Applied, ""));
    let given = said(&fresh, &applied, &[]);
    let mut seen = with(fresh, given);
    assert!(!is_due(&seen, NOW) && !is_due(&seen, NOW + 3599) && is_due(&seen, NOW + 3600) && is_due(&seen, NOW - 1));
    // Only what was read elsewhere can have changed behind our back,
    let inline = serving(INLINE, Some(ContentsReport::default()));
    let given = said(&inline, &applied[..1], &[]);
    let mut inline = with(inline, given);
    assert!(!is_due(&inline, NOW + 100_000));
    // but what has failed is tried again.
    inline.report.as_mut().unwrap().contents.as_mut().unwrap().manifests[0].state = ManifestState::Failed;
    assert!(!is_due(&inline, NOW + 3599) && is_due(&inline, NOW + 3600));
    // An edit, a wish for it, and the end of it.
    seen.cluster.metadata.annotations = Some([(annotations::REAPPLY.to_owned(), "1".to_owned())].into());
    assert!(is_due(&seen, NOW));
    seen.cluster.metadata.annotations = None;
    assert!(!is_due(&seen, NOW));
    (seen.cluster.spec.manifests, seen.cluster.spec.readiness) = (vec![], None);
    assert!(is_due(&seen, NOW), "the agent is to try no longer");
    seen.report.as_mut().unwrap().contents = Some(ContentsReport::default());
    assert!(!is_due(&seen, NOW));
}

#[test]
fn nothing_is_given_to_who_cannot_take_it() {
    let mut seen = serving(SPEC, None);
    assert!(!is_due(&seen, NOW), "an agent of a release that takes none");
    let outdated = "False AgentOutdated".to_owned();
    assert_eq!(conditions_of(&seen), [outdated.clone(), outdated.clone(), "True AgentOutdated".into(), outdated]);
    seen.report.as_mut().unwrap().contents = Some(ContentsReport::default());
    seen.report.as_mut().unwrap().control_plane_ready = false;
    assert!(!is_due(&seen, NOW), "an API server that does not answer");
}

#[test]
fn a_cluster_without_contents_is_as_it_was() {
    for contents in [None, Some(ContentsReport::default())] {
        let seen = serving("{}", contents);
        assert!(!is_due(&seen, NOW + 100_000));
        assert_eq!(conditions_of(&seen), ["True ClusterReady", "False Settled", "False NotStalled", "True NoManifests"]);
    }
}

#[test]
fn ready_waits_for_manifests_and_gates_the_first_time() {
    use ManifestState::{Applied, Applying, Failed};
    let both = |dns, web| [("dns", dns), ("Deployment x/web", web)];
    let seen = serving(SPEC, Some(ContentsReport::default()));
    assert_eq!(conditions_of(&seen), ["False ApplyingManifests", "True ApplyingManifests", "False NotStalled", "False ApplyingManifests"]);
    let three = |c, message| [("a", Applied, ""), ("b", Applied, ""), ("c", c, message)];
    let then = |c, message, gates: [(&str, bool); 2]| with(seen.clone(), said(&seen, &three(c, message), &gates));
    let waiting = then(Applying, "no such kind", both(true, true));
    assert_eq!(conditions_of(&waiting), ["False ApplyingManifests", "True ApplyingManifests", "False NotStalled", "False ApplyingManifests"]);
    let message = |seen: &Observed| conditions::get(&settle(at(NOW), seen, &Outcome::default()).conditions, conditions::READY).unwrap().message.clone();
    assert!(message(&waiting).starts_with("c: no such kind"), "{}", message(&waiting));
    let failed = then(Failed, "no", both(true, true));
    assert_eq!(conditions_of(&failed), ["False ManifestFailed", "False ManifestFailed", "True ManifestFailed", "False ManifestFailed"]);
    let gated = then(Applied, "", both(true, false));
    assert_eq!(conditions_of(&gated), ["False WaitingForReadiness", "True WaitingForReadiness", "False NotStalled", "True ManifestsApplied"]);
    assert!(message(&gated).starts_with("Deployment x/web: not yet") && !message(&gated).contains("dns"), "{}", message(&gated));
    let ready = then(Applied, "", both(true, true));
    assert_eq!(conditions_of(&ready), ["True ClusterReady", "False Settled", "False NotStalled", "True ManifestsApplied"]);

    // Afterwards they are told, and Ready stays.
    for (seen, expected) in [
        (waiting, ["True ClusterReady", "True ApplyingManifests", "False NotStalled", "False ApplyingManifests"]),
        (failed, ["True ClusterReady", "False ManifestFailed", "True ManifestFailed", "False ManifestFailed"]),
        (gated, ["True ClusterReady", "False Settled", "False NotStalled", "True ManifestsApplied"]),
    ] {
        let mut seen = seen;
        seen.cluster.status.as_mut().unwrap().ready_time = Some(Time(at(NOW - 100)));
        assert_eq!(conditions_of(&seen), expected);
        let status = settle(at(NOW), &seen, &Outcome::default());
        assert_eq!(is_moving(&status, true), expected[1] == "True ApplyingManifests", "the agent is listened to while it is at work, and no longer");
    }
}

#[test]
fn manifests_come_before_nodes_which_may_need_them() {
    let mut seen = serving(INLINE, Some(ContentsReport::default()));
    seen.report.as_mut().unwrap().nodes[0].ready = false;
    assert!(is_due(&seen, NOW));
    assert_eq!(conditions_of(&seen)[0], "False ApplyingManifests");
    let given = said(&seen, &[("a", ManifestState::Applied, "")], &[]);
    assert_eq!(conditions_of(&with(seen, given))[0], "False WaitingForNodes");
}

#[test]
fn what_cannot_be_read_is_said_and_takes_no_cluster_away() {
    let mut seen = serving(SPEC, Some(ContentsReport::default()));
    let step = decide(at(NOW), &seen).steps.pop().unwrap();
    let failed = |step: Step, problem| Outcome { failed: Some((step, problem)), ..Outcome::default() };
    let Step::SendContents(plan) = &step else { panic!("{step:?}") };
    let denied = failed(step.clone(), plan.references.denied("Secret", "secret"));
    let told = |seen: &Observed, outcome: &Outcome| {
        let status = settle(at(NOW), seen, outcome);
        [conditions::READY, conditions::STALLED, conditions::MANIFESTS_APPLIED].map(|type_| condition(&status, type_))
    };
    assert_eq!(told(&seen, &denied), ["False SecretAccessDenied", "True SecretAccessDenied", "False SecretAccessDenied"]);
    let busy = failed(step.clone(), Problem::new(Reason::AgentUnreachable, "no answer"));
    assert_eq!(told(&seen, &busy), ["False ApplyingManifests", "False NotStalled", "False ApplyingManifests"]);
    seen.cluster.status.as_mut().unwrap().ready_time = Some(Time(at(NOW - 100)));
    assert_eq!(told(&seen, &denied), ["True ClusterReady", "True SecretAccessDenied", "False SecretAccessDenied"]);
}
