//! The Helm chart, as Helm renders it. Needs `helm` (from `NESTLING_HELM` or the PATH); says so and passes without one, unless
//! `NESTLING_REQUIRE_HELM=1`.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails, its helpers as well")]

#[path = "chart/monitoring.rs"]
mod monitoring;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::Parser;
use nestling_core::plan::policy::Policy;
use rstest::rstest;
use serde_json::{Value, json};

/// The oldest host that the chart installs on.
const KUBE_VERSION: &str = "v1.33.0";

/// What the command line of the operator takes.
#[derive(Parser)]
struct Operator {
    #[command(flatten)]
    args: nestling::operator::Args,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Helm, or `None` where the tests are to be skipped.
fn helm() -> Option<PathBuf> {
    let helm = std::env::var_os("NESTLING_HELM").map_or_else(|| PathBuf::from("helm"), PathBuf::from);
    if Command::new(&helm).arg("version").output().is_ok_and(|output| output.status.success()) {
        return Some(helm);
    }
    assert!(std::env::var_os("NESTLING_REQUIRE_HELM").is_none_or(|value| value != "1"), "NESTLING_REQUIRE_HELM=1, but {} does not run", helm.display());
    eprintln!("skipped: {} does not run; set NESTLING_HELM", helm.display());
    None
}

fn template(helm: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(helm);
    command.args(["template", "reed", "charts/nestling", "--namespace", "operators", "--kube-version", KUBE_VERSION]).args(arguments);
    command.current_dir(root()).output().unwrap()
}

/// Every rendered object.
fn objects(helm: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = template(helm, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<Value> = text.split("\n---\n").map(|document| serde_saphyr::from_str(document.trim_start_matches("---\n")).unwrap()).collect();
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Its text is looked at elsewhere.
fn is_dashboard(object: &Value) -> bool {
    object["kind"] == "ConfigMap" && object["data"]["nestling.json"].is_string()
}

fn is_crd(object: &Value) -> bool {
    object["kind"] == "CustomResourceDefinition"
}

fn kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn it_lints() {
    let Some(helm) = helm() else { return };
    for values in [&[][..], &["--values", "tests/chart/full-values.yaml"]] {
        let arguments = ["lint", "--strict", "charts/nestling", "--kube-version", KUBE_VERSION];
        let output = Command::new(&helm).args(arguments).args(values).current_dir(root()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// The CRD and the dashboard are looked at elsewhere, and the reader of this snapshot has no use for them.
#[rstest]
#[case::default_values("default", &[])]
#[case::all_values("full", &["--values", "tests/chart/full-values.yaml"])]
fn rendered(#[case] name: &str, #[case] arguments: &[&str]) {
    let Some(helm) = helm() else { return };
    let rendered: Vec<Value> = objects(&helm, arguments).into_iter().filter(|object| !is_crd(object) && !is_dashboard(object)).collect();
    insta::assert_yaml_snapshot!(name, rendered);
}

/// A single one has no budget: nothing would be kept, and its node could not be drained.
#[rstest]
#[case::one(&[], false)]
#[case::two(&["--set", "replicas=2"], true)]
fn several_operators_are_kept_apart_and_not_drained_together(#[case] arguments: &[&str], #[case] several: bool) {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, arguments);
    let deployment = kind(&objects, "Deployment").next().unwrap();
    let selector = &deployment["spec"]["selector"];
    let terms = &deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(terms[0]["podAffinityTerm"]["labelSelector"] == *selector, several, "{terms}");
    let budgets: Vec<_> = kind(&objects, "PodDisruptionBudget").collect();
    assert_eq!(budgets.len(), usize::from(several));
    assert!(budgets.iter().all(|budget| budget["spec"]["maxUnavailable"] == 1 && budget["spec"]["selector"] == *selector));
}

/// What a host says that has ValidatingAdmissionPolicies.
const ADMISSION: [&str; 2] = ["--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"];

/// An expression of CEL is easily broken by a quote; that it does what it should is tried in `tests/policy.rs`.
#[rstest]
#[case::default_values("admission-default", &[])]
#[case::all_values("admission-full", &["--values", "tests/chart/full-values.yaml", "--set", "policy.admission=true"])]
fn the_admission_policy(#[case] name: &str, #[case] arguments: &[&str]) {
    let Some(helm) = helm() else { return };
    let mut rendered = objects(&helm, &[&ADMISSION, arguments].concat());
    rendered.retain(|object| object["kind"].as_str().unwrap().starts_with("ValidatingAdmissionPolicy"));
    insta::assert_yaml_snapshot!(name, rendered);
}

/// Whether the operator accepts `lifecycle.deletionProtection`.
fn accepts_protection(objects: &[Value]) -> bool {
    let container = &kind(objects, "Deployment").next().unwrap()["spec"]["template"]["spec"]["containers"][0];
    Operator::try_parse_from(words(&container["args"])).unwrap().args.deletion_protection
}

#[test]
fn deletion_protection_is_accepted_where_it_is_enforced() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &ADMISSION);
    assert!(kind(&objects, "ValidatingAdmissionPolicy").any(|policy| policy["metadata"]["name"] == "reed-nestling-deletion-protection"));
    assert!(accepts_protection(&objects));
}

#[rstest]
#[case::the_host_has_none(&[])]
#[case::nobody_wants_it(&["--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy", "--set", "policy.admission=false"])]
fn there_is_no_admission_policy_where(#[case] arguments: &[&str]) {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, arguments);
    assert_eq!(kind(&objects, "ValidatingAdmissionPolicy").count(), 0);
    assert!(!accepts_protection(&objects), "nothing would enforce it");
}

/// Collects the values that are the same in both, or left out of the second.
fn same(path: &str, default: &Value, full: &Value, found: &mut Vec<String>) {
    match (default, full) {
        (Value::Object(default), Value::Object(full)) if !default.is_empty() => {
            default.iter().for_each(|(key, value)| same(&format!("{path}.{key}"), value, full.get(key).unwrap_or(&Value::Null), found));
        }
        (default, full) if default == full || full.is_null() => found.push(path.to_owned()),
        _ => {}
    }
}

#[test]
fn the_full_values_change_every_default() {
    let read = |path: &str| -> Value { serde_saphyr::from_str(&std::fs::read_to_string(root().join(path)).unwrap()).unwrap() };
    let mut found = Vec::new();
    same("", &read("charts/nestling/values.yaml"), &read("tests/chart/full-values.yaml"), &mut found);
    // Without its Service there is no ServiceMonitor; requests are left out on purpose.
    // A Secret for the proxy excludes the rest of it.
    let expected = [".metrics.service.create", ".proxy.secretName", ".resources.requests"];
    assert_eq!(found, expected);
}

/// Each row is one right: a longer table is seen in review.
#[test]
fn rights() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let mut rows = Vec::new();
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role") {
        let scope = role["metadata"]["namespace"].as_str().unwrap_or("*");
        for rule in role["rules"].as_array().unwrap() {
            let names = words(&rule["resourceNames"]).join(",");
            for resource in words(&rule["resources"]) {
                let group = words(&rule["apiGroups"]).join(",");
                let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
                let resource = if names.is_empty() { resource } else { format!("{resource}/{names}") };
                let row = format!("{:<24} {scope:<18} {resource:<40} {}", role["metadata"]["name"].as_str().unwrap(), words(&rule["verbs"]).join(" "));
                assert!(!row.contains(" *."), "no wildcard: {row}");
                rows.push(row);
            }
        }
    }
    insta::assert_snapshot!(rows.join("\n"));
}

#[test]
fn nobody_gets_a_users_role_by_the_way() {
    let Some(helm) = helm() else { return };
    for role in kind(&objects(&helm, &[]), "ClusterRole") {
        let labels = role["metadata"]["labels"].as_object().unwrap();
        assert!(labels.keys().all(|label| !label.contains("aggregate-to")), "{labels:?}");
    }
}

#[test]
fn the_crd_is_the_generated_one_and_is_kept() {
    let Some(helm) = helm() else { return };
    let mut rendered = objects(&helm, &[]);
    rendered.retain(is_crd);
    let expected: Vec<Value> = nestling_core::api::crds::all()
        .iter()
        .map(|crd| {
            let mut crd = serde_json::to_value(crd).unwrap();
            crd["metadata"]["annotations"] = json!({"helm.sh/resource-policy": "keep"});
            crd
        })
        .collect();
    // Numbers and nothing else change their form on the way through YAML.
    assert!(numbers(&json!(rendered)) == numbers(&json!(expected)), "run `cargo xtask gen`");
}

fn numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(list) => list.iter().map(numbers).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), numbers(value))).collect::<serde_json::Map<_, _>>().into(),
        other => other.clone(),
    }
}

#[rstest]
#[case::default_values(&[])]
#[case::all_values(&["--values", "tests/chart/full-values.yaml"])]
fn the_operator_understands_its_arguments(#[case] arguments: &[&str]) {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, arguments);
    let container = &kind(&objects, "Deployment").next().unwrap()["spec"]["template"]["spec"]["containers"][0];
    let rendered = words(&container["args"]);
    assert_eq!(rendered[0], "operator");
    let args = Operator::try_parse_from(rendered).unwrap().args;
    assert_eq!(args.check(), Ok(()));
    assert_eq!(args.https_proxy.is_empty(), arguments.is_empty());
    assert_eq!(args.mount_modules, arguments.is_empty());
    assert_eq!(args.allow_cgroup_v1, !arguments.is_empty());
    assert_eq!(args.allow_freeze_on_cgroup_v1, !arguments.is_empty());
    assert_eq!(args.node_images.len(), if arguments.is_empty() { 0 } else { 2 });
    assert_eq!(args.policy == Policy::default(), arguments.is_empty());
    assert_eq!(args.policy.max_resources.len(), if arguments.is_empty() { 0 } else { 5 });
}

#[test]
fn a_proxy_with_a_password_is_named_by_its_secret_alone() {
    let Some(helm) = helm() else { return };
    let rendered = objects(&helm, &["--set", "proxy.secretName=proxy"]);
    let container = &kind(&rendered, "Deployment").next().unwrap()["spec"]["template"]["spec"]["containers"][0];
    let proxies: Vec<&str> = words(&container["args"]).into_iter().filter(|argument| argument.contains("proxy")).collect();
    assert_eq!(proxies, ["--proxy-secret=proxy"]);
}

/// Reading Secrets of a namespace is for that namespace to allow.
#[test]
fn the_reader_of_secrets_is_bound_to_nobody() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    assert!(kind(&objects, "ClusterRole").any(|role| role["metadata"]["name"] == nestling_core::plan::references::READER_ROLE));
    let bindings = objects.iter().filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding")));
    assert!(bindings.into_iter().all(|binding| binding["roleRef"]["name"] != nestling_core::plan::references::READER_ROLE));
}

/// Nothing that the chart itself starts has a privilege; the "restricted" level of Pod Security would let all of it in.
#[test]
fn no_pod_of_the_chart_has_a_privilege() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let pods: BTreeMap<&str, &Value> = objects
        .iter()
        .filter(|object| object["spec"]["template"]["spec"]["containers"].is_array())
        .map(|object| (object["kind"].as_str().unwrap(), &object["spec"]["template"]["spec"]))
        .collect();
    assert_eq!(pods.keys().copied().collect::<Vec<_>>(), ["Deployment", "Job"]);
    for pod in pods.values() {
        assert_eq!(
            pod["securityContext"],
            json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
        );
        for container in pod["containers"].as_array().unwrap() {
            let expected = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
            assert_eq!(container["securityContext"], expected);
        }
    }
}

/// What runs clusters outlives a mistake in an upgrade.
#[test]
fn the_clusters_namespace_is_privileged_and_kept() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let namespace = kind(&objects, "Namespace").next().unwrap();
    assert_eq!(namespace["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(namespace["metadata"]["labels"][format!("pod-security.kubernetes.io/{mode}")], "privileged");
    }
}

#[rstest]
#[case::unknown("nosuch=1", "additional properties 'nosuch' not allowed")]
#[case::unknown_below("image.nosuch=1", "additional properties 'nosuch' not allowed")]
#[case::wrong_type("allowCgroupV1=maybe", "allowCgroupV1")]
#[case::too_many("replicas=11", "replicas")]
#[case::none_at_once("maxCreating=0", "maxCreating")]
#[case::another_policy("cleanup.policy=Forget", "policy")]
#[case::version_without_v("defaultVersion=1.34.4", "defaultVersion")]
#[case::version_as_key("nodeImages.latest=a", "invalid propertyName 'latest'")]
#[case::pods_version_as_key("podImages.latest=a", "invalid propertyName 'latest'")]
#[case::pull_policy("image.pullPolicy=Sometimes", "pullPolicy")]
#[case::namespace("clustersNamespace.name=No_Name", "name")]
#[case::ipv6_range("hostRanges={fd00::/64}", "hostRanges")]
#[case::log_format("logFormat=xml", "logFormat")]
#[case::proxy_with_a_password("proxy.httpsProxy=http://me:pw@proxy", "httpsProxy")]
#[case::proxy_twice("proxy.secretName=proxy,proxy.noProxy=x", "proxy.secretName holds all")]
#[case::policy("policy.allowedImage={a}", "additional properties 'allowedImage' not allowed")]
#[case::policy_image("policy.allowedImages={a$(B)}", "allowedImages")]
#[case::policy_selector("policy.requiredNodeSelector.pool=a'b", "pool")]
#[case::policy_toleration("policy.allowedTolerations[0].value=x", "allowedTolerations")]
#[case::policy_operator("policy.allowedTolerations[0].key=x,policy.allowedTolerations[0].operator=Like", "operator")]
#[case::policy_class("policy.allowedRuntimeClasses={No_Name}", "allowedRuntimeClasses")]
#[case::policy_quantity("policy.maxResources.memory=lots", "memory")]
#[case::policy_disk("policy.maxResources.ephemeral-storage=1Gi", "ephemeral-storage")]
#[case::policy_nodes("policy.maxResources.nodes=0", "nodes")]
#[case::policy_lifetime("policy.maxLifetime=30s", "maxLifetime")]
#[case::policy_no_lifetime("policy.maxLifetime=0h", "maxLifetime")]
#[case::own_namespace("clustersNamespace.name=operators", "must not be the release's own namespace")]
#[case::alerts_without_metrics("metrics.prometheusRule.create=true", "needs metrics.serviceMonitor.create")]
#[case::alerts_selector("metrics.prometheusRule.selector=job", "selector")]
#[case::alerts_threshold("metrics.prometheusRule.queueWaitSeconds=0", "queueWaitSeconds")]
#[case::dashboard_label("metrics.dashboard.labels.grafana_dashboard=1", "grafana_dashboard")]
#[case::monitor_without_service("metrics.service.create=false,metrics.serviceMonitor.create=true", "needs metrics.service.create")]
fn bad_values_are_refused(#[case] value: &str, #[case] message: &str) {
    let Some(helm) = helm() else { return };
    let output = template(&helm, &["--set", value]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(message), "{value}: {error}");
}
