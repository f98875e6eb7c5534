//! What a cluster that failed for good leaves: its evidence to its user, and nothing on the host.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::secret_scan::{Place, none_is_in};
use crate::support::wait::{condition, describe, gone, until};
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::STALLED;
use nestling_core::plan::wire::BUNDLE_LIMIT;

const NAMESPACE: &str = "t-wrecks";
const SOON: Duration = Duration::from_mins(1);

/// The API server ends at once over a flag that it does not know, and kubeadm gives it up soon.
const HOPELESS: &str = "{config: {kubeadmConfigPatches: ['{kind: ClusterConfiguration, apiServer: {timeoutForControlPlane: 20s, \
    extraArgs: {no-such-flag: wading}}}']}, lifecycle: {backoffLimit: 0, creationTimeout: 5m}}";

/// The files of the logs that this cluster's Secret holds, by their paths below the first directory, and the size of the archive.
pub async fn logs(host: &Host, namespace: &str, cluster: &str) -> (BTreeMap<String, String>, usize) {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let secret = secrets.get(&format!("{cluster}-logs")).await.unwrap();
    let archive = secret.data.unwrap().remove("logs.tar.gz").unwrap().0;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(&archive[..])).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(path.split_once('/').unwrap().1.to_owned(), text);
    }
    println!(
        "logs of {cluster}: {} bytes, {}",
        archive.len(),
        files.iter().map(|(path, text)| format!("{path} {}", text.len())).collect::<Vec<_>>().join(", ")
    );
    (files, archive.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_fails_for_good_leaves_its_logs_and_nothing_else() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let created = host.create(NAMESPACE, "wreck", spec(HOPELESS)).await;
    let selector = ListParams::default().labels(&format!("nestling.dev/cluster-uid={}", created.uid().unwrap()));
    let api = host.clusters(NAMESPACE);
    let cluster = condition(&api, "wreck", STALLED, "True", None, CREATED).await;
    let failure = cluster.status.clone().unwrap().last_failure.unwrap();
    println!("{}: {}", failure.reason, failure.message);
    assert!(failure.reason.starts_with("KubeadmInit"), "{}", describe(&cluster));
    assert!(failure.bundle_ref.is_some_and(|bundle| bundle.name == "wreck-logs" && bundle.attempt == 1));
    until("the failed pod to go", Duration::from_mins(3), async || {
        let pods = host.pods(CLUSTERS_NAMESPACE).list(&selector).await.map_err(|error| error.to_string())?;
        if pods.items.is_empty() { Ok(()) } else { Err("it is still there".to_owned()) }
    })
    .await;

    let (files, size) = logs(&host, NAMESPACE, "wreck").await;
    assert!(size <= BUNDLE_LIMIT, "{size} bytes");
    let holds = |path: &str, word: &str| files.get(path).is_some_and(|text| text.contains(word));
    for (path, word) in [
        ("agent.log", "[kubelet-check]"),
        ("wreck-control-plane/kubelet.log", "kube-apiserver"),
        ("wreck-control-plane/containerd.log", "containerd"),
        ("wreck-control-plane/serial.log", "systemd"),
        ("dockerd.log", "level="),
        ("containerd.log", "level="),
        ("pod.txt", "/var/lib/docker"),
        ("host.txt", "memory_bytes"),
        ("processes.txt", "dockerd"),
        ("report.json", "KubeadmInitFailed"),
    ] {
        assert!(holds(path, word), "{word} is not in {path}");
    }
    let of_pods: String = files.iter().filter(|(path, _)| path.contains("/kube-system/")).map(|(_, text)| text.as_str()).collect();
    assert!(of_pods.contains("no-such-flag"), "the API server's own words are missing");
    // As its user reads them.
    let own = std::process::Command::new(env!("CARGO_BIN_EXE_nestling"))
        .arg("--kubeconfig")
        .arg(host.cluster.kubeconfig())
        .args(["-n", NAMESPACE, "logs", "wreck"])
        .output()
        .unwrap();
    assert!(own.status.success() && String::from_utf8_lossy(&own.stdout).contains("[kubelet-check]"), "{own:?}");
    let places = files.iter().map(|(path, text)| Place { name: path.clone(), text: text.clone() }).collect();
    none_is_in(&host, &[NAMESPACE], places).await;

    host.delete(NAMESPACE, "wreck").await;
    gone(&Api::<Secret>::namespaced(host.client.clone(), NAMESPACE), "wreck-logs", SOON).await;
    assert_eq!(host.children(&created.uid().unwrap()), Vec::<String>::new());
    host.delete_namespace(NAMESPACE).await;
}
