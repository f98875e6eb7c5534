//! What happens to a user's kubeconfig, from the first cluster to the last.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::person::Person;
use crate::support::plane::Plane;

fn names(config: &Value, list: &str) -> Vec<String> {
    config[list].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// `kubeconfig`, and what `delete` takes away again.
pub async fn life(plane: &Plane) {
    let ada = Person::new(plane, "bog").await;
    for name in ["crane", "owl"] {
        ada.call(&format!("create {name} --label class=monday")).await.good();
    }
    ada.call("kubeconfig crane").await.bad(1, "the kubeconfig is not published yet");
    ada.publish("crane", &["value", "external"]).await;
    ada.publish("owl", &["value"]).await;
    let before = ada.config();

    // Merged: kubectl reads it, everything else is as it was.
    let told = ada.call("kubeconfig crane").await.good();
    assert_eq!(told, format!("Context kind-crane is in {}.\n→ kubectl --context kind-crane get nodes\n", ada.kubeconfig().display()));
    let config = ada.config();
    assert_eq!(config["current-context"], "lab");
    assert_eq!(config["clusters"][0], before["clusters"][0]);
    assert_eq!(ada.kubectl("config view -o jsonpath={.clusters[?(@.name==\"kind-crane\")].cluster.server}").await.good(), "https://external.crane.example");
    ada.kubectl("config set-context kind-crane --namespace web").await.good();
    assert!(ada.call("kubeconfig crane --internal").await.good().contains("It leads to an address inside"));
    assert_eq!(
        ada.kubectl("config view --context kind-crane -o jsonpath={.clusters[?(@.name==\"kind-crane\")].cluster.server}").await.good(),
        "https://value.crane.example"
    );
    // kubectl has sorted them.
    assert_eq!(names(&ada.config(), "contexts"), ["kind-crane", "lab"]);
    assert_eq!(ada.config()["contexts"][0]["context"]["namespace"], "web", "kubectl's change is lost");

    // What somebody else made stays.
    ada.kubectl("config set-cluster kind-owl --server https://kind.example").await.good();
    let theirs = ada.config();
    ada.call("kubeconfig owl").await.bad(1, "has an entry kind-owl already, and it was not made by this program");
    assert_eq!(ada.config(), theirs);
    ada.call("kubeconfig owl --external").await.bad(1, "no endpoint outside");
    ada.call("kubeconfig owl --context-name nest --set-current").await.good();
    assert_eq!(ada.config()["current-context"], "nest");
    assert_eq!(ada.kubectl("config current-context").await.good(), "nest\n");
    // The current context is of the nested cluster, and yet the host is found.
    assert_eq!(ada.call("get -o name").await.good().lines().count(), 2);

    // Elsewhere.
    let shown: Value = serde_json::from_str(&ada.call("kubeconfig crane --stdout").await.good()).unwrap();
    assert_eq!(shown["clusters"][0]["cluster"]["server"], "https://external.crane.example");
    ada.call("kubeconfig --all --stdout").await.bad(1, "--stdout is for one cluster, and 2 are selected");
    let directory = ada.home().join("class").display().to_string();
    assert_eq!(ada.call_with(&["kubeconfig", "-l", "class=monday", "--out-dir", &directory]).await.good().lines().count(), 2);
    for name in ["crane", "owl"] {
        let mode = std::fs::metadata(format!("{directory}/{name}.kubeconfig")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let other = ada.home().join("other");
    ada.call_with(&["kubeconfig", "crane", "--into", &other.display().to_string()]).await.good();
    let merged: Value = serde_saphyr::from_str(&std::fs::read_to_string(&other).unwrap()).unwrap();
    assert_eq!((names(&merged, "contexts"), merged.get("current-context")), (vec!["kind-crane".to_owned()], None));

    // Deleted: our entries go, and the host's context is current again.
    let gone = ada.call("delete owl").await;
    assert_eq!(gone.err, "context nest is removed from your kubeconfig\n");
    let config = ada.config();
    assert_eq!((config["current-context"].as_str(), names(&config, "clusters")), (Some("lab"), vec!["kind-crane".into(), "kind-owl".into(), "lab".into()]));
    ada.call("delete --all").await.good();
    let config = ada.config();
    assert_eq!((names(&config, "contexts"), names(&config, "clusters")), (vec!["lab".into()], vec!["kind-owl".to_owned(), "lab".into()]));
    assert!(!std::path::PathBuf::from(format!("{}.lock", ada.kubeconfig().display())).exists());
}

/// `create --wait`, as with kind.
pub async fn create_and_wait(plane: &Plane) {
    let ada = Person::new(plane, "moor").await;
    let operator = async |name: &str, keys: &[&str]| {
        ada.appears(name).await;
        ada.publish(name, keys).await;
    };
    let (call, ()) = tokio::join!(ada.call("create demo --wait 60s"), operator("demo", &["value", "external"]));
    let told = call.good();
    assert!(told.starts_with("kindcluster.nestling.dev/demo created\n") && told.contains("demo is Ready ("), "{told}");
    assert!(told.ends_with(", and the current one.\n→ kubectl get nodes\n"), "{told}");
    assert_eq!(ada.config()["current-context"], "kind-demo");
    // One that cannot be reached from here changes nothing.
    let (call, ()) = tokio::join!(ada.call("create inner --wait=60s"), operator("inner", &["value"]));
    let told = call.good();
    assert!(told.ends_with("so your kubeconfig stays as it is.\n→ nestling connect -n moor inner\n"), "{told}");
    let (call, ()) = tokio::join!(ada.call("create third --wait --keep-context"), operator("third", &["value", "external"]));
    call.good();
    assert_eq!((ada.config()["current-context"].clone(), names(&ada.config(), "contexts").len()), (json!("kind-demo"), 3));
    let (call, ()) = tokio::join!(ada.call("create wreck --wait 60s"), async {
        ada.appears("wreck").await;
        ada.status("wreck", &[("Stalled", "True", "ConfigFieldOwned")], json!({})).await;
    });
    call.bad(2, "wreck is stalled: ConfigFieldOwned");
    ada.call("delete --all").await.good();
    assert_eq!((ada.config()["current-context"].as_str(), names(&ada.config(), "contexts").len()), (Some("lab"), 1));
}
