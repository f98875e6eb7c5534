//! The verbs, one after the other, each in a namespace of its own.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::person::Person;
use crate::support::plane::Plane;
use crate::support::wait::until;

/// `create`, `get`, `describe`.
pub async fn create_get_describe(plane: &Plane) {
    let ada = Person::new(plane, "marsh").await;
    let created = ada.call("create crane --version v1.34.4 --workers 2 --ttl 8h --label class=monday --access-type NodePort").await;
    assert_eq!(created.err, "→ nestling wait -n marsh crane\n");
    assert_eq!(created.good(), "kindcluster.nestling.dev/crane created\n");
    let spec = serde_json::to_value(ada.clusters().get("crane").await.unwrap().spec).unwrap();
    let access = json!({"service": {"type": "NodePort"}});
    assert_eq!(spec, json!({"version": "v1.34.4", "nodes": {"controlPlanes": 1, "workers": 2}, "lifecycle": {"ttl": "28800s"}, "access": access}));
    ada.call("create crane").await.bad(1, "there is a KindCluster marsh/crane already");
    ada.call("create owl --version latest").await.bad(1, "version must look like v1.34.4");
    ada.call("create owl --config none.yaml").await.bad(1, "cannot read none.yaml");

    // A configuration is taken as kind takes it.
    let path = ada.home().join("kind.yaml");
    std::fs::write(&path, "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n- role: worker\n").unwrap();
    let path = path.display().to_string();
    ada.call_with(&["create", "owl", "--image", "kindest/node:v1.34.4", "--config", &path]).await.good();
    assert_eq!(ada.clusters().get("owl").await.unwrap().spec.config.unwrap().nodes.unwrap().len(), 2);

    // Tried only.
    let tried: Value = serde_saphyr::from_str(&ada.call("create heron --dry-run=client -o yaml").await.good()).unwrap();
    assert_eq!((tried["metadata"].get("uid"), tried["spec"].clone()), (None, json!({})));
    let tried: Value = serde_json::from_str(&ada.call("create heron --dry-run=server -o json").await.good()).unwrap();
    assert!(tried["metadata"]["uid"].is_string(), "{tried}");
    assert_eq!(ada.call("create heron --dry-run=server").await.good(), "kindcluster.nestling.dev/heron created (server dry run)\n");
    ada.call("create heron --dry-run=server --workers 99").await.bad(1, "workers");
    ada.call("get heron").await.bad(4, "there is no KindCluster marsh/heron");

    // The tables are kubectl's.
    ada.status("crane", &[("Ready", "False", "StartingControlPlane")], json!({"version": "v1.34.4", "nodesReady": "0/3"})).await;
    for words in ["", "crane", "crane owl", "-l class=monday", "-o wide", "-o name"] {
        let (ours, theirs) = (ada.call(&format!("get {words}")).await.good(), ada.kubectl(&format!("get kindclusters {words}")).await.good());
        // The ages may be a second apart.
        let blind = |text: &str| text.split_whitespace().filter(|word| !word.ends_with('s') || word.len() > 4).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(blind(&ours), blind(&theirs), "{words}:\n{ours}\n{theirs}");
    }
    let json: Value = serde_json::from_str(&ada.call("get crane -o json").await.good()).unwrap();
    assert_eq!((json["kind"].as_str(), json["metadata"].get("managedFields")), (Some("KindCluster"), None));
    let list: Value = serde_saphyr::from_str(&ada.call("get -o yaml").await.good()).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let partly = ada.call("get crane heron").await;
    assert!(partly.out.contains("crane "), "{partly:?}");
    partly.bad(4, "there is no KindCluster marsh/heron");
    let nobody = ada.call("get -l class=tuesday").await;
    assert_eq!((nobody.err.as_str(), nobody.code), ("no KindCluster found in namespace marsh\n", 0));

    describe(&ada).await;
    watch(&ada).await;
}

async fn describe(ada: &Person<'_>) {
    let uid = ada.clusters().get("crane").await.unwrap().uid().unwrap();
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "crane.1", "namespace": "marsh"}, "type": "Warning", "reason": "AttemptFailed",
        "message": "it failed", "lastTimestamp": "2026-01-01T00:00:00Z", "involvedObject": {"kind": "KindCluster", "namespace": "marsh", "name": "crane", "uid": uid}});
    ada.plane.apply(&event.to_string());
    let told = ada.call("describe crane").await.good();
    for part in ["Name:", "Version:", "0/3 ready", "StartingControlPlane", "Warning   AttemptFailed   it failed", "\n→ nestling wait -n marsh crane\n"] {
        assert!(told.contains(part), "{part:?} in\n{told}");
    }
    let both = ada.call("describe --all").await.good();
    assert_eq!(both.matches("Conditions:").count(), 2, "{both}");
    ada.call("describe crane -l a=b").await.usage();
    ada.call("describe").await.usage();
    ada.call("describe -l class=tuesday").await.bad(4, "no KindCluster in namespace marsh has the labels class=tuesday");
}

async fn watch(ada: &Person<'_>) {
    let path = ada.home().join("watched");
    let file = std::fs::File::create(&path).unwrap();
    let mut child = ada.command(env!("CARGO_BIN_EXE_nestling")).args(["get", "--watch"]).stdout(file).spawn().unwrap();
    let read = || std::fs::read_to_string(&path).unwrap();
    let lines = async |number: usize| {
        until("a line of the watch", Duration::from_secs(30), async || if read().lines().count() >= number { Ok(()) } else { Err(read()) }).await;
    };
    lines(3).await;
    ada.status("crane", &[("Ready", "True", "ClusterReady")], json!({"nodesReady": "3/3"})).await;
    lines(4).await;
    assert!(read().lines().last().unwrap().contains("3/3"), "{}", read());
    child.kill().await.unwrap();
}

/// `freeze`, `stop`, `start`, `extend`.
pub async fn sleep_and_time(plane: &Plane) {
    let ada = Person::new(plane, "lake").await;
    for name in ["crane", "owl"] {
        ada.call(&format!("create {name} --ttl 1h --label class=monday")).await.good();
    }
    let power = async |name: &str| serde_json::to_value(ada.clusters().get(name).await.unwrap().spec.power_state).unwrap();
    assert_eq!(ada.call("freeze -l class=monday").await.good().lines().count(), 2);
    assert_eq!((power("crane").await, power("owl").await), (json!("Frozen"), json!("Frozen")));
    ada.call("freeze crane --wait=0s").await.bad(3, "Suspended did not come true");
    ada.status("crane", &[("Suspended", "True", "Frozen")], json!({"powerState": "Frozen"})).await;
    ada.call("freeze crane --wait=10s").await.good();
    ada.call("wait crane --timeout 10s").await.bad(2, "crane is suspended: Frozen");
    ada.call("stop owl").await.good();
    ada.status("owl", &[("Suspended", "False", "FreezeUnsupported")], json!({})).await;
    ada.call("stop owl --wait").await.bad(2, "owl stays awake: FreezeUnsupported");
    ada.call("start --all").await.good();
    assert_eq!((power("crane").await, power("owl").await), (json!("Running"), json!("Running")));
    ada.call("stop heron").await.bad(4, "there is no KindCluster lake/heron");
    ada.call("start").await.usage();

    let created = ada.clusters().get("crane").await.unwrap().creation_timestamp().unwrap().0;
    let in_time = |hours: i64| created.checked_add(jiff::SignedDuration::from_hours(hours)).unwrap();
    let both = async |words: &str, end: Value| {
        let operator = until("a new ttl", Duration::from_secs(30), async || {
            let cluster = ada.clusters().get("crane").await.map_err(|error| error.to_string())?;
            if cluster.metadata.generation == cluster.status.as_ref().and_then(|status| status.observed_generation) {
                return Err("nothing new".to_owned());
            }
            ada.status("crane", &[], json!({"expirationTime": end})).await;
            Ok(())
        });
        tokio::join!(ada.call(words), operator).0
    };
    ada.status("crane", &[], json!({"expirationTime": in_time(1)})).await;
    assert_eq!(both("extend crane 2h", json!(in_time(3))).await.good(), format!("crane ends at {}\n", in_time(3)));
    let ttl = ada.clusters().get("crane").await.unwrap().spec.lifecycle.unwrap().ttl.unwrap();
    assert_eq!(Duration::from(ttl), Duration::from_hours(3));
    // The operator may allow less than a spec says.
    let cut = both(&format!("extend crane --until {}", in_time(9)), json!(in_time(4))).await.good();
    assert_eq!(cut, format!("crane ends at {}; the operator's owner allows no more\n", in_time(4)));
    ada.call("extend crane --until 2020-01-01T00:00:00Z").await.bad(1, "is no extension");
    ada.call("extend crane").await.bad(1, "is not a duration");
    ada.call("extend heron 1h").await.bad(4, "there is no KindCluster lake/heron");
}

/// `wait`.
pub async fn wait(plane: &Plane) {
    let ada = Person::new(plane, "reed").await;
    for name in ["crane", "owl"] {
        ada.call(&format!("create {name}")).await.good();
    }
    ada.call("wait crane --timeout 0s").await.bad(3, "Ready did not come true in 0s");
    ada.call("wait crane owl heron --timeout 1s").await.bad(4, "3 of 3 clusters did not get there");
    let operator = async {
        ada.status("crane", &[("Ready", "False", "StartingDocker")], json!({})).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        ada.status("crane", &[("Ready", "True", "ClusterReady")], json!({})).await;
        ada.status("owl", &[("Ready", "True", "ClusterReady")], json!({})).await;
    };
    let (waited, ()) = tokio::join!(ada.call("wait --all --timeout 30s"), operator);
    let told = waited.good();
    assert!(told.contains("crane: StartingDocker: ") && told.contains("crane is Ready (") && told.contains("owl is Ready ("), "{told}");
    ada.status("owl", &[("Stalled", "True", "ConfigFieldOwned")], json!({})).await;
    ada.call("wait owl").await.bad(2, "owl is stalled: ConfigFieldOwned");
    ada.call("wait owl --for Ready --timeout soon").await.usage();
}

/// `delete`.
pub async fn delete(plane: &Plane) {
    let ada = Person::new(plane, "fen").await;
    for name in ["crane", "owl", "heron"] {
        ada.call(&format!("create {name} --label name={name}")).await.good();
    }
    assert_eq!(ada.call("delete crane").await.good(), "kindcluster.nestling.dev \"crane\" deleted\n");
    ada.call("delete crane").await.bad(4, "there is no KindCluster fen/crane");
    ada.call("delete crane --ignore-not-found").await.good();
    assert_eq!(ada.call("delete -l name=nobody").await.good(), "");
    // What takes time, and what may not go.
    let patch = async |name: &str, patch: Value| {
        ada.clusters().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };
    patch("owl", json!({"metadata": {"finalizers": ["nestling.dev/cluster"]}})).await;
    ada.call("delete owl --timeout 1s").await.bad(3, "owl is being deleted, and was not gone in time");
    ada.call("wait owl").await.bad(4, "KindCluster fen/owl is being deleted");
    assert!(ada.call("describe owl").await.good().contains("\n→ It is being deleted: "));
    let (gone, ()) = tokio::join!(ada.call("delete owl"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        patch("owl", json!({"metadata": {"finalizers": null}})).await;
    });
    gone.good();
    patch("heron", json!({"spec": {"lifecycle": {"deletionProtection": true}}})).await;
    until("the policy to be enforced", Duration::from_secs(30), async || {
        let call = ada.call("create probe").await;
        call.good();
        patch("probe", json!({"spec": {"lifecycle": {"deletionProtection": true}}})).await;
        let refused = ada.call("delete probe --wait=false").await;
        let end = if refused.code == 0 { Err("it lets go".to_owned()) } else { Ok(()) };
        patch_if_there(&ada, "probe").await;
        ada.call("delete probe --ignore-not-found").await.good();
        end
    })
    .await;
    let refused = ada.call("delete heron").await;
    let command = refused.err.split("`kubectl ").nth(1).unwrap().split('`').next().unwrap().replace('\'', "");
    refused.bad(1, "KindCluster fen/heron is protected from deletion");
    ada.kubectl(&command).await.good();
    ada.call("delete --all --wait=false").await.good();
    assert_eq!(ada.call("get -o name").await.good(), "");
}

async fn patch_if_there(ada: &Person<'_>, name: &str) {
    let patch = Patch::Merge(json!({"spec": {"lifecycle": {"deletionProtection": false}}}));
    let _ = ada.clusters().patch(name, &PatchParams::default(), &patch).await;
}

/// What somebody is told who may do nothing there, and where there is nothing.
pub async fn without_rights(plane: &Plane) {
    let ada = Person::new(plane, "heath").await;
    ada.call("create crane").await.good();
    for words in [
        "create owl",
        "get",
        "get crane",
        "describe crane",
        "kubeconfig crane",
        "freeze crane",
        "stop --all",
        "start -l a=b",
        "extend crane 1h",
        "wait crane",
        "delete crane",
    ] {
        ada.call(&format!("{words} -n default")).await.bad(1, "you may not ");
    }
    ada.call("get -A").await.bad(1, "you may not list KindClusters in all namespaces");
    ada.call("get --context none").await.bad(1, "the host cluster's kubeconfig cannot be used");
    ada.call("get --kubeconfig /none").await.bad(1, "cannot read /none");
    let unreachable = r#"{"current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]}"#;
    let path = ada.home().join("unreachable");
    std::fs::write(&path, unreachable).unwrap();
    ada.call_with(&["get", "--kubeconfig", &path.display().to_string()]).await.bad(1, "cannot list KindClusters");

    assert!(ada.call("completion bash").await.good().contains("kubeconfig"));
    assert_eq!(ada.call("__complete -- delete cr").await.good(), "crane\n:4\n");
    assert_eq!(ada.call("__complete -- ext").await.good(), "extend\n:4\n");
    plugin(&ada).await;
}

/// As kubectl's plugin it calls itself so, and completes.
async fn plugin(ada: &Person<'_>) {
    let bin = ada.home().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_nestling"), bin.join("kubectl-nestling")).unwrap();
    let kubectl = crate::support::plane::lab().bin("kubectl").unwrap();
    std::os::unix::fs::symlink(kubectl, bin.join("kubectl")).unwrap();
    let script = bin.join("kubectl_complete-nestling");
    std::fs::write(&script, ada.call("completion kubectl").await.good()).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let call = async |words: &str| {
        let output = ada.command("sh").args(["-c", words]).env("PATH", &path).output().await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let told = call("kubectl nestling describe owl").await;
    assert!(told.contains("`kubectl nestling get -n heath`"), "{told}");
    assert!(call("kubectl nestling extend --help").await.contains("Usage: kubectl nestling extend"));
    assert!(call("kubectl __complete nestling freeze ''").await.starts_with("crane\n"), "{}", call("kubectl __complete nestling freeze ''").await);
}
