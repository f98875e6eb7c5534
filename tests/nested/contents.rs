//! What is to be in a real cluster: its CNI, a kind with an object of it, a Secret and a workload, from all three places that manifests can be in; what is waited for
//! before `Ready`; and what becomes of changes.

use std::time::Duration;

use jiff::Timestamp;
use nestling_core::api::conditions::{MANIFESTS_APPLIED, READY, get};
use nestling_core::plan::references::READER_ROLE;
use serde_json::{Value, json};

use crate::support::real::{CREATED, Host, TOOLS, spec};
use crate::support::secret_scan::nothing_is_shown;
use crate::support::wait::{condition, describe, until};

const NAMESPACE: &str = "t-contents";
const SOON: Duration = Duration::from_mins(1);
const PASSWORD: &str = "bittern-booms-in-the-reeds-4410";
const POD_RANGE: &str = "10.201.0.0/16";

/// A kind, and an object of it, which cannot be accepted before the kind is.
const HERONS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: herons.birds.test}
spec:
  group: birds.test
  names: {kind: Heron, plural: herons}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: birds.test/v1
kind: Heron
metadata: {name: grey}
legs: 2
";

/// A workload that is available some seconds after it has started, with a Secret.
fn web() -> String {
    format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: web}}
---
apiVersion: v1
kind: Secret
metadata: {{name: login, namespace: web}}
stringData: {{password: {PASSWORD}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: web}}
spec:
  minReadySeconds: 5
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: {TOOLS}, imagePullPolicy: Never, command: [sleep, infinity]}}]
"
    )
}

fn page(text: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"text": text}}).to_string()
}

fn of_type(type_: &str, name: &str, data: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "type": type_, "stringData": data}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_ready_with_its_contents_and_follows_their_changes() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    // What must not be seen, also by itself.
    host.apply(&of_type("Opaque", "password", &json!({"password": PASSWORD})));
    host.apply(&of_type("nestling.dev/manifests", "web", &json!({"web.yaml": web()})));
    let leaky = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "leaky"}, "data": {"k": {"not-text": PASSWORD}}}).to_string();
    host.apply(&of_type("nestling.dev/manifests", "leaky", &json!({"a.yaml": leaky})));
    host.apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "herons", "namespace": NAMESPACE}, "data": {"a.yaml": HERONS}}).to_string(),
    );
    let cni = host.cluster.docker().run(&["exec", &host.nodes()[0], "cat", "/kind/manifests/default-cni.yaml"]).unwrap();
    let cni = cni.replace("{{ .PodSubnet }}", POD_RANGE);
    let manifests = |text: &str, more: &[Value]| {
        let first = [
            json!({"name": "cni", "inline": cni}),
            json!({"name": "herons", "configMapRef": {"name": "herons"}}),
            json!({"name": "web", "secretRef": {"name": "web"}}),
            json!({"name": "page", "inline": page(text)}),
        ];
        [&first[..], more].concat()
    };
    let mut wish = spec(&format!("{{config: {{networking: {{disableDefaultCNI: true, podSubnet: {POD_RANGE}}}}}, access: {{service: {{type: NodePort}}}}}}"));
    wish["manifests"] = json!(manifests("first", &[]));
    wish["readiness"] = json!({"dns": true, "deployments": [{"namespace": "web", "name": "web"}]});
    host.create(NAMESPACE, "crane", wish).await;
    let api = host.clusters(NAMESPACE);

    // The namespace has to allow the reading first.
    let denied = condition(&api, "crane", MANIFESTS_APPLIED, "False", Some("SecretAccessDenied"), CREATED).await;
    let said = describe(&denied);
    let command = said.split("to let it: kubectl ").nth(1).unwrap().split(". ").next().unwrap();
    host.kubectl(&command.split(' ').collect::<Vec<_>>());
    // A change of the spec has it tried at once.
    host.patch(NAMESPACE, "crane", json!({"spec": {"lifecycle": {"backoffLimit": 1}}})).await;
    condition(&api, "crane", READY, "False", Some("WaitingForReadiness"), SOON).await;
    let cluster = host.ready(NAMESPACE, "crane").await;
    let external = host.kubeconfig(NAMESPACE, "crane", "external").await;
    let inside = |arguments: &[&str]| host.kubectl_outside(&external, arguments).unwrap();
    let available: Timestamp =
        inside(&["get", "deployment", "web", "-n", "web", "-o", "jsonpath={.status.conditions[?(@.type=='Available')].lastTransitionTime}"])
            .trim()
            .parse()
            .unwrap();
    let ready = cluster.status.unwrap().ready_time.unwrap().0;
    assert!(ready >= available, "Ready at {ready}, the Deployment available at {available}");
    assert_eq!(inside(&["get", "heron", "grey", "-o", "jsonpath={.legs}"]), "2");
    assert_eq!(inside(&["get", "configmap", "page", "-o", "jsonpath={.data.text}"]), "first");
    let managers = inside(&["get", "configmap", "page", "-o", "jsonpath={.metadata.managedFields[*].manager}"]);
    assert_eq!(managers, "nestling");

    // What changes is applied anew, and nothing else: what was changed by hand elsewhere stays.
    inside(&["patch", "heron", "grey", "--type=merge", "-p", r#"{"legs": 1}"#]);
    host.patch(NAMESPACE, "crane", json!({"spec": {"manifests": manifests("second", &[])}})).await;
    until("the changed page", SOON, async || {
        let text = inside(&["get", "configmap", "page", "-o", "jsonpath={.data.text}"]);
        if text == "second" { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(inside(&["get", "heron", "grey", "-o", "jsonpath={.legs}"]), "1");
    // On request all of it is.
    host.patch(NAMESPACE, "crane", json!({"metadata": {"annotations": {"nestling.dev/reapply": "1"}}})).await;
    until("the heron to be whole", SOON, async || {
        let legs = inside(&["get", "heron", "grey", "-o", "jsonpath={.legs}"]);
        if legs == "2" { Ok(()) } else { Err(legs) }
    })
    .await;

    // What is refused is said, without the words of the API server, which quote what they refuse; and Ready stays.
    host.patch(NAMESPACE, "crane", json!({"spec": {"manifests": manifests("second", &[json!({"name": "leaky", "secretRef": {"name": "leaky"}})])}})).await;
    let refused = until("the refusal to be told", SOON, async || {
        let cluster = api.get("crane").await.unwrap();
        let told = describe(&cluster).contains("leaky: object 1: refused");
        if told { Ok(cluster) } else { Err(describe(&cluster)) }
    })
    .await;
    assert_eq!(get(&refused.status.unwrap().conditions, READY).unwrap().status, "True");
    nothing_is_shown(&host, &[NAMESPACE]).await;
    // What leaves the list stays in the cluster.
    host.patch(NAMESPACE, "crane", json!({"spec": {"manifests": [{"name": "page", "inline": page("third")}]}})).await;
    condition(&api, "crane", MANIFESTS_APPLIED, "True", Some("ManifestsApplied"), SOON).await;
    assert_eq!(inside(&["get", "heron", "grey", "-o", "jsonpath={.legs}"]), "2");

    host.delete(NAMESPACE, "crane").await;
    host.kubectl(&["delete", "rolebinding", READER_ROLE, "-n", NAMESPACE]);
    host.delete_namespace(NAMESPACE).await;
}
