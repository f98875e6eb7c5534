//! Clusters that begin with the same golden state: nothing by which one could be taken for another, or opened with another's credentials.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::support::real::{Host, spec};

const NAMESPACE: &str = "t-golden";

/// Prints a line `NAME VALUE` for everything that a cluster is known by, and for a digest of everything that it keeps secret.
const IDENTITY: &str = r#"
set -euo pipefail
export KUBECONFIG=/etc/kubernetes/admin.conf
digest() { sha256sum | cut -c1-64; }
for kind in namespace serviceaccount node; do
  kubectl get "$kind" -A -o json | jq -r '.items[] | select(.kind != "Namespace" or (.metadata.name | startswith("kube-") or . == "default")) | "\(.kind)/\(.metadata.namespace // "")/\(.metadata.name | sub("^.*-control-plane$"; "control-plane")) \(.metadata.uid)"'
done
kubectl get secrets,configmaps -A -o json | jq -r '.items[] | select(.kind == "Secret" or .metadata.name == "kube-root-ca.crt" or .metadata.name == "extension-apiserver-authentication") | "\(.kind)/\(.metadata.namespace)/\(.metadata.name | sub("[a-z0-9]{5,6}$"; "*")) \(.data | tostring | @base64)"'
find /etc/kubernetes/pki /var/lib/kubelet/pki -name '*.key' -o -name '*.crt' -o -name '*.pem' | while read -r file; do echo "$(basename "$(dirname "$file")")/$(basename "$file" | sed 's/-2[0-9-]*\.pem/-*.pem/') $(digest < "$file")"; done
for user in admin super-admin controller-manager scheduler; do echo "$user $(grep client-key-data "/etc/kubernetes/$user.conf" | digest)"; done
echo "token $(kubectl create token default | cut -d. -f3)"
echo "machine-id $(cat /etc/machine-id)"
echo "product_uuid $(cat /sys/class/dmi/id/product_uuid)"
"#;

fn identity(cluster: &Cluster<'_>) -> BTreeMap<String, String> {
    let printed = cluster.node(&cluster.nodes[0], IDENTITY);
    printed.lines().filter_map(|line| line.split_once(' ')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// UIDs of the cluster roles that are the API server's own.
fn default_roles(cluster: &Cluster<'_>) -> BTreeMap<String, String> {
    let list: Value = serde_json::from_str(
        &cluster.kubectl("get clusterroles -l kubernetes.io/bootstrapping=rbac-defaults -o json | jq '[.items[].metadata | {name, uid}]'"),
    )
    .unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(|role| (text(&role["name"]), text(&role["uid"]))).collect()
}

/// The answer of a server in the node to a client with this certificate, as a status code.
fn answer(cluster: &Cluster<'_>, url: &str, certificate: &str) -> String {
    cluster.node(&cluster.nodes[0], &format!("curl -sk -o /dev/null -w '%{{http_code}}' {certificate} {url}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_one_golden_state_share_nothing_that_counts() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let names = ["ember", "flint"];
    host.create(NAMESPACE, names[0], json!({})).await;
    host.create(NAMESPACE, names[1], json!({})).await;
    // A patch of the user's, if only in name: this one begins as kind's do.
    host.create(NAMESPACE, "plain", spec("config: {kubeadmConfigPatches: ['kind: ClusterConfiguration']}")).await;
    let mut clusters = Vec::new();
    for name in [names[0], names[1], "plain"] {
        let ready = host.ready(NAMESPACE, name).await;
        let pod = ready.status.unwrap().pod_ref.unwrap();
        clusters.push(Cluster::of(&host, &pod.namespace, &pod.name).await);
    }
    let [ember, flint, plain] = clusters.try_into().unwrap_or_else(|_| panic!("three clusters"));

    // All of this is about something: what is equal tells that both began with it, and the third did not.
    let roles = default_roles(&ember);
    assert!(roles.len() > 50, "{roles:?}");
    assert_eq!(roles, default_roles(&flint));
    let own = default_roles(&plain);
    assert!(roles.keys().eq(own.keys()), "{own:?}");
    assert!(roles.iter().all(|(name, uid)| own[name] != *uid));

    let (one, other) = (identity(&ember), identity(&flint));
    for name in
        ["Namespace//kube-system", "ServiceAccount/default/default", "Node//control-plane", "pki/ca.key", "pki/sa.key", "etcd/ca.key", "token", "machine-id"]
    {
        assert!(one.contains_key(name), "nothing is known of {name}: {:?}", one.keys());
    }
    let equal: Vec<&String> = one.iter().filter(|(name, value)| other.get(*name) == Some(value)).map(|(name, _)| name).collect();
    assert_eq!(equal, Vec::<&String>::new(), "both clusters have the same");

    // The administrator of the cluster that was sealed is nobody here, neither for the API server nor for those who ask it whom to trust, as aggregated APIs do: the scheduler is one
    // of these, and is told of no authority but by the API.
    let golden: Value = serde_saphyr::from_str(&std::fs::read_to_string(host.paths.golden_kubeconfig().unwrap()).unwrap()).unwrap();
    let field = |name: &str| golden.pointer(&format!("/users/0/user/{name}")).and_then(Value::as_str).unwrap().to_owned();
    let write = format!(
        "cd /root && echo '{}' | base64 -d > golden.crt && (umask 077 && echo '{}' | base64 -d > golden.key)",
        field("client-certificate-data"),
        field("client-key-data")
    );
    let own = "--cert /etc/kubernetes/pki/apiserver-kubelet-client.crt --key /etc/kubernetes/pki/apiserver-kubelet-client.key";
    for cluster in [&ember, &flint] {
        cluster.node(&cluster.nodes[0], &write);
        for url in ["https://127.0.0.1:6443/api/v1/nodes", "https://127.0.0.1:10259/metrics"] {
            assert_eq!(answer(cluster, url, own), "200", "{url}");
            assert_eq!(answer(cluster, url, "--cert /root/golden.crt --key /root/golden.key"), "401", "{url}");
        }
    }
    for name in [names[0], names[1], "plain"] {
        host.delete(NAMESPACE, name).await;
    }
    host.delete_namespace(NAMESPACE).await;
}
