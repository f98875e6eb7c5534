//! What nobody may have: kind's well-known token, the token that nodes join with once they have joined, credentials of the host, secrets in logs.

use std::time::{Duration, Instant};

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::secret_scan::nothing_is_shown;
use crate::support::wait::until;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use nestling_core::api::conditions::{READY, is_true};
use nestling_core::plan::wire::keys::BOOTSTRAP_TOKEN;

const NAMESPACE: &str = "t-secrets";
const SOON: Duration = Duration::from_mins(1);

/// The token of every cluster that kind makes on its own (`pkg/cluster/internal/kubeadm/const.go`).
pub const WELL_KNOWN: &str = "abcdef.0123456789abcdef";

/// Asks for what every authenticated user may see. The HTTP code comes last; 000 where nobody answers.
fn ask(token: &str, url: &str) -> String {
    format!("curl -sk -m 3 -w ' %{{http_code}}' -H 'Authorization: Bearer {token}' {url} || true")
}

/// Whether an answer is that of a server that knows the token.
fn is_known(answer: &str) -> bool {
    // There is no node yet to ask in.
    if answer.trim().is_empty() {
        return false;
    }
    let code = answer.trim().rsplit(' ').next().unwrap_or_default();
    assert!(["000", "200", "401", "403"].contains(&code) || code.starts_with('5'), "{answer}");
    code == "200" || answer.contains("system:bootstrap")
}

/// Inside of the cluster's own node, where the API server answers long before the front door opens.
fn ask_inside(host: &Host, pod: &str, token: &str) -> String {
    let script = ask(token, "https://localhost:6443/api");
    let arguments = ["exec", "-n", CLUSTERS_NAMESPACE, pod, "--", "docker", "exec", "heron-control-plane", "sh", "-c", &script];
    String::from_utf8_lossy(&host.cluster.kubectl().args(arguments).output().unwrap().stdout).into_owned()
}

/// From a node of the host, through the Service.
fn ask_outside(host: &Host, token: &str, url: &str) -> String {
    host.cluster.docker().run(&["exec", &host.nodes()[0], "sh", "-c", &ask(token, url)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_outlives_its_use_and_no_secret_is_shown() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let created = host.create(NAMESPACE, "heron", spec("{access: {service: {type: NodePort}}}")).await;
    let selector = ListParams::default().labels(&format!("nestling.dev/cluster-uid={}", created.metadata.uid.unwrap()));
    let clusters = host.clusters(NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), CLUSTERS_NAMESPACE);
    let token = until("the cluster's keys", SOON, async || {
        let found = secrets.list(&selector).await.map_err(|error| error.to_string())?.items;
        let token = found.iter().find_map(|secret| secret.data.as_ref()?.get(BOOTSTRAP_TOKEN).cloned()).ok_or("none yet")?;
        Ok(String::from_utf8(token.0).unwrap().trim().to_owned())
    })
    .await;
    assert_ne!(token, WELL_KNOWN);

    // From the first moment until well after Ready.
    let (mut own_was_known, mut answers) = (false, 0);
    let mut ready_since: Option<Instant> = None;
    let start = Instant::now();
    let (mut pod, mut url) = (None, None);
    while ready_since.is_none_or(|since| since.elapsed() < Duration::from_secs(15)) {
        assert!(start.elapsed() < CREATED, "not ready in time; {answers} answers");
        let status = clusters.get("heron").await.unwrap().status.unwrap_or_default();
        if is_true(&status.conditions, READY) {
            ready_since.get_or_insert_with(Instant::now);
        }
        url = status.endpoints.last().map(|endpoint| format!("{}/api", endpoint.url)).filter(|url| !url.contains(".svc:")).or(url);
        pod = status.pod_ref.map(|pod| pod.name).or(pod);
        if let Some(pod) = &pod {
            let answer = ask_inside(&host, pod, WELL_KNOWN);
            answers += usize::from(answer.trim().ends_with("401"));
            assert!(!is_known(&answer), "kind's well-known token is taken inside: {answer}");
            // The very same question with the cluster's own token, so that a question in vain is noticed.
            own_was_known |= is_known(&ask_inside(&host, pod, &token));
        }
        if let Some(url) = &url {
            let answer = ask_outside(&host, WELL_KNOWN, url);
            answers += usize::from(answer.trim().ends_with("401"));
            assert!(!is_known(&answer), "kind's well-known token is taken outside: {answer}");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(own_was_known && answers > 5, "the questions reached no API server ({answers} answers, own token known: {own_was_known})");

    // Ready: the cluster's own token has had its use.
    let (pod, url) = (pod.unwrap(), url.unwrap());
    let external = host.kubeconfig(NAMESPACE, "heron", "external").await;
    until("the bootstrap token to be gone", SOON, async || {
        let left = host.kubectl_outside(&external, &["get", "secrets", "-n", "kube-system", "-o", "name"])?;
        if left.contains("bootstrap-token-") { Err(left) } else { Ok(()) }
    })
    .await;
    until("the API server to forget it", SOON, async || {
        let answer = ask_outside(&host, &token, &url);
        if is_known(&answer) { Err(answer) } else { Ok(()) }
    })
    .await;

    // Nothing of the host is in the pod, also for who comes in by exec.
    let inside = |script: &str| host.in_pod(&pod, script);
    assert_eq!(inside("ls -d /var/run/secrets/kubernetes.io /run/secrets/kubernetes.io 2>/dev/null | wc -l"), "0");
    for variable in ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
        assert_eq!(inside(&format!("env | grep '^{variable}='")), format!("{variable}="));
    }

    nothing_is_shown(&host, &[NAMESPACE]).await;
    host.delete(NAMESPACE, "heron").await;
    host.delete_namespace(NAMESPACE).await;
}
