//! The certificates that kubeadm made on the nodes hold for a year; a pod may live longer. The agent looks at them every day and has kubeadm renew them in
//! each control-plane node when a third of their life is left. Kubelets renew their own.
//!
//! The API server and etcd take new files up by themselves, so that nobody who uses the cluster notices. Only the scheduler and the controller manager
//! keep what they began with; they are started anew, one after the other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use jiff::Timestamp;
use kube::config::Kubeconfig;
use nestling_core::plan::certificates::{NodeCertificates, Validity};
use nestling_core::plan::wire::API_PORT;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::{Instant, sleep};

use super::docker::{Container, Docker};
use super::report::Report;
use super::{RUN_DIRECTORY, handshake, node_files};
use crate::x509::validity;

/// kubeadm's certificates, which `kubeadm certs renew all` renews.
const FILES: [&str; 7] = [
    "pki/apiserver.crt",
    "pki/apiserver-kubelet-client.crt",
    "pki/front-proxy-client.crt",
    "pki/apiserver-etcd-client.crt",
    "pki/etcd/server.crt",
    "pki/etcd/peer.crt",
    "pki/etcd/healthcheck-client.crt",
];

/// kubeadm's kubeconfigs, whose certificates it renews as well.
const KUBECONFIGS: [&str; 4] = ["admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"];

/// The certificate that a kubelet renews by itself.
const KUBELET: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// Where kind leaves the configuration that kubeadm gets (`pkg/cluster/internal/create/actions/config`).
pub const KUBEADM_CONF: &str = "/kind/kubeadm.conf";

/// How often the certificates are looked at, and how soon again after a failure.
const LOOKS: (Duration, Duration) = (Duration::from_hours(24), Duration::from_hours(1));

/// How often it is looked whether somebody asks for a renewal.
const REQUEST_LOOKS: Duration = Duration::from_secs(5);

/// Time for the API server to show a new certificate: it looks at the files every minute, if it has missed their change.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(90);

/// Pause between two looks at what it shows.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends the container of a static pod's component in `$1` in order. containerd also lists those that have ended before.
const END_COMPONENT: &str = r#"
filter="labels."io.kubernetes.container.name"==$1,labels."io.kubernetes.pod.namespace"==kube-system"
for id in $(ctr --namespace k8s.io containers list --quiet "$filter"); do
  ctr --namespace k8s.io tasks kill --signal SIGTERM "$id" || true
done
"#;

/// Where the nodes are, and who vouches for them.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The daemon that they run in.
    pub docker: &'a Docker,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// The file with the cluster's authority, from the operator.
    pub authority: &'a Path,
}

/// A certificate on a node.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Found {
    /// The node and the file.
    name: String,
    validity: Validity,
    /// Whether kubeadm renews it.
    kubeadms: bool,
}

impl Place<'_> {
    /// The nodes that run, control planes first; a frozen one cannot be asked anything.
    async fn nodes(&self) -> Vec<Container> {
        let mut nodes = self.docker.containers(self.cluster).await.unwrap_or_default();
        nodes.retain(|node| node.running && !node.paused && ["control-plane", "worker"].contains(&node.role.as_str()));
        nodes.sort_by(|a, b| (a.role.as_str(), &a.name).cmp(&(b.role.as_str(), &b.name)));
        nodes
    }

    /// The control planes, if all of them run.
    pub async fn control_planes(&self) -> Result<Vec<String>, String> {
        let all = self.docker.containers(self.cluster).await.map_err(|error| error.to_string())?;
        let of_role = all.iter().filter(|node| node.role == "control-plane");
        if let Some(node) = of_role.clone().find(|node| node.paused || !node.running) {
            return Err(format!("{} does not run", node.name));
        }
        Ok(of_role.map(|node| node.name.clone()).collect())
    }

    /// Waits until the API server in a node shows a good certificate for a name.
    ///
    /// # Errors
    /// What it showed at last.
    pub async fn shows(&self, node: &str, name: &str, good: impl Fn(&[u8]) -> bool) -> Result<(), String> {
        let end = Instant::now() + TAKEN_UP_WITHIN;
        loop {
            let shown = match self.docker.address(node).await {
                Some(address) => handshake::shown(SocketAddr::from((address, port())), name, self.authority).await,
                None => Err(format!("{node} has no address")),
            };
            let problem = match shown {
                Ok(certificate) if good(&certificate) => return Ok(()),
                Ok(_) => format!("the API server of {node} still shows its earlier certificate"),
                Err(error) => error,
            };
            if Instant::now() > end {
                return Err(problem);
            }
            sleep(PAUSE).await;
        }
    }

    /// Has a static pod's container ended; the kubelet starts it anew.
    ///
    /// # Errors
    /// Docker's and containerd's.
    pub async fn restart(&self, node: &str, component: &str) -> Result<(), String> {
        self.docker.run(node, &["bash", "-ec", END_COMPONENT, "end", component]).await.map(drop).map_err(|error| format!("{node}: {error}"))
    }
}

fn port() -> u16 {
    u16::try_from(API_PORT).unwrap_or_default()
}

/// A file that an administrator of the host makes to have everything renewed now.
fn request() -> PathBuf {
    Path::new(RUN_DIRECTORY).join("renew-certificates")
}

/// Looks after the certificates until they were renewed: whoever holds earlier credentials of a node needs the new ones then.
pub async fn keep(place: &Place<'_>, report: &Report) {
    let mut next = Instant::now();
    loop {
        let asked = std::fs::remove_file(request()).is_ok();
        if asked || Instant::now() >= next {
            let (seen, renewed) = look(place, asked).await;
            let failed = seen.as_ref().is_none_or(|seen| seen.failure.is_some());
            if let Some(seen) = seen {
                report.update(|report| report.certificates = Some(seen));
            }
            if renewed {
                return;
            }
            next = Instant::now() + if failed { LOOKS.1 } else { LOOKS.0 };
        }
        sleep(REQUEST_LOOKS).await;
    }
}

/// The first look, before anybody is told of the cluster: later ones are heard of only when somebody asks.
pub async fn note(place: &Place<'_>, report: &Report) {
    let seen = first_to_end(gather(place).await, None);
    report.update(|report| report.certificates = seen);
}

fn first_to_end(found: Vec<Found>, failure: Option<String>) -> Option<NodeCertificates> {
    let first = found.into_iter().min_by_key(|found| found.validity.ends)?;
    Some(NodeCertificates { first: first.name, ends: first.validity.ends, failure })
}

/// One look, and a renewal if it is time or `asked` for. `None`: no node runs. Tells also whether anything was renewed.
async fn look(place: &Place<'_>, asked: bool) -> (Option<NodeCertificates>, bool) {
    let mut found = gather(place).await;
    let due = |found: &[Found]| found.iter().find(|found| found.kubeadms && found.validity.is_due(Timestamp::now())).map(|found| found.name.clone());
    let first = due(&found);
    let mut failure = None;
    if (asked || first.is_some()) && !found.is_empty() {
        tracing::info!(asked, first, "renewing the certificates of the nodes");
        failure = renew(place).await.err();
        found = gather(place).await;
        // Otherwise it would be tried again without a pause.
        failure = failure.or_else(|| due(&found).map(|name| format!("kubeadm has not renewed {name}")));
        if let Some(failure) = &failure {
            tracing::error!("the certificates of the nodes could not be renewed: {failure}");
        } else {
            tracing::info!("the certificates of the nodes were renewed");
        }
    }
    let renewed = (asked || first.is_some()) && failure.is_none() && !found.is_empty();
    (first_to_end(found, failure), renewed)
}

/// All certificates of the nodes that run.
async fn gather(place: &Place<'_>) -> Vec<Found> {
    let mut all = Vec::new();
    for node in place.nodes().await {
        if let Some(pid) = place.docker.pid(&node.name).await {
            all.extend(of_node(&node, |path| node_files::read(pid, path).ok()));
        }
    }
    all
}

/// The certificates in a node. What is not there, such as a file that only the first control plane has, is no problem.
fn of_node(node: &Container, read: impl Fn(&str) -> Option<String>) -> Vec<Found> {
    let mut all = Vec::new();
    let mut add = |file: &str, pem: Option<String>, kubeadms: bool| {
        if let Some(validity) = pem.as_deref().and_then(validity) {
            all.push(Found { name: format!("{}: {file}", node.name), validity, kubeadms });
        }
    };
    if node.role == "control-plane" {
        for file in FILES {
            add(file, read(&format!("/etc/kubernetes/{file}")), true);
        }
        for file in KUBECONFIGS {
            add(file, read(&format!("/etc/kubernetes/{file}")).and_then(|text| of_kubeconfig(&text)), true);
        }
    }
    add("kubelet-client-current.pem", read(KUBELET), false);
    all
}

/// The client certificate in a kubeconfig, PEM.
fn of_kubeconfig(text: &str) -> Option<String> {
    let user = Kubeconfig::from_yaml(text).ok()?.auth_infos.into_iter().next()?.auth_info?;
    String::from_utf8(BASE64.decode(user.client_certificate_data?.as_bytes()).ok()?).ok()
}

/// Renews in one control plane after the other, up to the first failure.
async fn renew(place: &Place<'_>) -> Result<(), String> {
    for node in place.control_planes().await? {
        place.docker.run(&node, &["kubeadm", "certs", "renew", "all", "--config", KUBEADM_CONF]).await.map_err(|error| format!("{node}: {error}"))?;
        for component in ["kube-scheduler", "kube-controller-manager"] {
            place.restart(&node, component).await?;
        }
        let pid = place.docker.pid(&node).await.ok_or_else(|| format!("{node} does not run"))?;
        let written = node_files::read(pid, "/etc/kubernetes/pki/apiserver.crt").map_err(|error| format!("{node}: apiserver.crt: {error}"))?;
        let written = CertificateDer::from_pem_slice(written.as_bytes()).map_err(|error| format!("{node}: apiserver.crt: {error}"))?;
        // A node's own name is in its certificate.
        if place.shows(&node, &node, |shown| shown == &*written).await.is_err() {
            tracing::warn!(node, "the API server has not taken up its certificate; it is started anew");
            place.restart(&node, "kube-apiserver").await?;
            place.shows(&node, &node, |shown| shown == &*written).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn pem(end: i32) -> String {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn node(role: &str) -> Container {
        Container { name: "crane-x".into(), role: role.into(), running: true, paused: false }
    }

    #[test]
    fn what_a_control_plane_has_is_found_wherever_it_is() {
        let kubeconfig = format!("users: [{{name: a, user: {{client-certificate-data: {}}}}}]", BASE64.encode(pem(2028).as_bytes()));
        let read = |path: &str| match path {
            "/etc/kubernetes/pki/apiserver.crt" => Some(pem(2027)),
            "/etc/kubernetes/pki/etcd/peer.crt" => Some("no certificate".to_owned()),
            "/etc/kubernetes/scheduler.conf" => Some(kubeconfig.clone()),
            "/etc/kubernetes/admin.conf" => Some("users: []".to_owned()),
            KUBELET => Some(pem(2029) + "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
            _ => None,
        };
        let found = of_node(&node("control-plane"), read);
        let years: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.validity.ends.to_string()[..4].to_owned(), found.kubeadms)).collect();
        let expected =
            [("crane-x: pki/apiserver.crt", "2027", true), ("crane-x: scheduler.conf", "2028", true), ("crane-x: kubelet-client-current.pem", "2029", false)];
        assert_eq!(years, expected.map(|(name, year, kubeadms)| (name, year.to_owned(), kubeadms)));
        assert_eq!(of_node(&node("worker"), read).len(), 1);
    }
}
