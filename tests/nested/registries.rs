//! Registries of all kinds, behind real nested clusters: a mirror without TLS, one that wants credentials and has an authority of its own. For the
//! node image, which Docker pulls, as well as for pods, for which containerd and the kubelet do.

use std::path::Path;
use std::time::Duration;

use crate::support::real::{CREATED, Host, REGISTRY};
use crate::support::secret_scan::nothing_is_shown;
use crate::support::wait::{condition, until};
use nestling_core::api::conditions::STALLED;
use nestling_core::plan::references::READER_ROLE;
use nestling_lab::Docker;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;

const NAMESPACE: &str = "t-registries";
const SOON: Duration = Duration::from_mins(1);
const PULLED: Duration = Duration::from_mins(2);

/// Of the private registry of this test.
const PRIVATE_PORT: u16 = 5443;
/// Who may pull.
const USER: &str = "heron";
/// With this password.
const PASSWORD: &str = "heron-wades-at-dawn-7731";
/// bcrypt of [`PASSWORD`], as `htpasswd -B` writes it.
const HTPASSWD: &str = "heron:$2y$05$abcdefghijklmnopqrstuuAaTV//QTmif8lBFPSyioMo4HCn/j4FS\n";

/// A second registry in front of the images of the lab's, at the same address, behind TLS and a password. Dropping it removes it.
pub struct PrivateRegistry<'a> {
    docker: &'a Docker,
    container: String,
    /// The authority behind its certificate, PEM.
    pub authority: String,
    _files: tempfile::TempDir,
}

impl<'a> PrivateRegistry<'a> {
    /// Starts it on a port of its own.
    pub fn start(docker: &'a Docker, address: &str, port: u16) -> Self {
        let container = format!("nestling-test-private-registry-{port}");
        let _ = docker.run(&["rm", "-f", "-v", &container]);
        let files = tempfile::tempdir().unwrap();
        let authority = certificates(files.path(), address);
        std::fs::write(files.path().join("htpasswd"), HTPASSWD).unwrap();
        let inspect = |format: &str| docker.run(&["inspect", "--format", format, REGISTRY]).unwrap().trim().to_owned();
        let (image, storage) = (inspect("{{.Config.Image}}"), inspect("{{range .Mounts}}{{.Source}}{{end}}"));
        let network = format!("--network=container:{REGISTRY}");
        let (storage, mounted) = (format!("{storage}:/var/lib/registry:ro"), format!("{}:/private:ro", files.path().display()));
        let address = format!("REGISTRY_HTTP_ADDR=:{port}");
        let environment = [
            address.as_str(),
            "REGISTRY_HTTP_TLS_CERTIFICATE=/private/tls.crt",
            "REGISTRY_HTTP_TLS_KEY=/private/tls.key",
            "REGISTRY_AUTH=htpasswd",
            "REGISTRY_AUTH_HTPASSWD_REALM=heron",
            "REGISTRY_AUTH_HTPASSWD_PATH=/private/htpasswd",
        ];
        let mut run = vec!["run", "-d", "--name", &container, &network, "-v", &storage, "-v", &mounted];
        run.extend(environment.iter().flat_map(|variable| ["-e", *variable]));
        run.push(&image);
        docker.run(&run).unwrap();
        // One that cannot read its configuration ends at once.
        std::thread::sleep(Duration::from_secs(2));
        let running = docker.run(&["inspect", "--format", "{{.State.Running}}", &container]).unwrap();
        assert_eq!(running.trim(), "true", "{:?}", docker.run(&["logs", &container]));
        Self { docker, container, authority, _files: files }
    }

    /// Makes what a spec refers to for it: the Secret `login` with an entry for `private.test`, and the ConfigMap `authority`.
    pub fn refer(&self, host: &Host, namespace: &str) {
        let docker_config = json!({"auths": {"private.test": {"username": USER, "password": PASSWORD}}}).to_string();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": namespace},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": docker_config}});
        let authority = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority", "namespace": namespace},
            "data": {"ca.crt": self.authority}});
        for object in [secret, authority] {
            host.apply(&object.to_string());
        }
    }

    /// Switches it off, so that nobody can connect.
    pub fn switch_off(&self) {
        self.docker.run(&["stop", "-t", "0", &self.container]).unwrap();
    }

    /// Switches it on again.
    pub fn switch_on(&self) {
        self.docker.run(&["start", &self.container]).unwrap();
    }
}

impl Drop for PrivateRegistry<'_> {
    fn drop(&mut self) {
        let _ = self.docker.run(&["rm", "-f", "-v", &self.container]);
    }
}

/// Writes `tls.crt` and `tls.key` for an address, and returns the authority behind them.
fn certificates(directory: &Path, address: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    // Other than the leaf's, which would pass for self-signed otherwise.
    params.distinguished_name.push(DnType::CommonName, "authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![address.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(directory.join("tls.crt"), leaf.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
    authority
}

fn pod(name: &str, image: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: {image}, imagePullPolicy: Always}}]}}
---
"
    )
}

/// Why a nested pod's container waits, or that it runs.
fn state(host: &Host, kubeconfig: &str, name: &str) -> String {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}";
    host.kubectl_outside(kubeconfig, &["get", "pod", name, "-o", path]).unwrap_or_else(|error| error)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_logins_and_authorities_reach_docker_and_the_nodes() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let docker = host.cluster.docker();
    let address = host.registry_address();
    let private = PrivateRegistry::start(docker, &address, PRIVATE_PORT);
    let image = docker.run(&["inspect", "--format", "{{.Config.Image}}", REGISTRY]).unwrap();
    // The registry's own image: small, and it keeps running.
    let pushed = host.cluster.push(image.trim()).unwrap();
    let (_, image) = pushed.split_once('/').unwrap();

    private.refer(&host, NAMESPACE);
    // Names that nobody resolves: only the endpoints can have been asked. The last two lack what the second has.
    let (open, closed) = (format!("http://{address}:5000"), format!("https://{address}:{PRIVATE_PORT}"));
    let registries = json!([
        {"host": "mirror.test", "endpoints": [open]},
        {"host": "private.test", "endpoints": [closed], "credentialsSecretRef": {"name": "login"}, "caConfigMapRef": {"name": "authority"}},
        {"host": "nologin.test", "endpoints": [closed], "caConfigMapRef": {"name": "authority"}},
        {"host": "noauthority.test", "endpoints": [closed]},
    ]);

    // The namespace has to allow it first.
    let spec = |more: serde_json::Value| {
        let mut spec = json!({"registries": registries, "lifecycle": {"backoffLimit": 0}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    host.create(NAMESPACE, "crane", spec(json!({"access": {"service": {"type": "NodePort"}}}))).await;
    let denied = condition(&host.clusters(NAMESPACE), "crane", STALLED, "True", Some("SecretAccessDenied"), SOON).await;
    let said = crate::support::wait::describe(&denied);
    let command = said.split("to let it: kubectl ").nth(1).unwrap().split(". ").next().unwrap();
    host.kubectl(&command.split(' ').collect::<Vec<_>>());
    host.ready(NAMESPACE, "crane").await;

    // containerd and the kubelet of a node.
    let external = host.kubeconfig(NAMESPACE, "crane", "external").await;
    let all = [("mirror", true), ("private", true), ("nologin", false), ("noauthority", false)];
    host.apply_outside(&external, &all.map(|(name, _)| pod(name, &format!("{name}.test/{image}"))).concat());
    for (name, good) in all {
        until(&format!("the pod {name}"), PULLED, async || {
            let state = state(&host, &external, name);
            let done = if good { state.starts_with("Running") } else { state.contains("ErrImagePull") || state.contains("ImagePullBackOff") };
            if done { Ok(()) } else { Err(state) }
        })
        .await;
    }
    let events = |name: &str| host.kubectl_outside(&external, &["get", "events", "--field-selector", &format!("involvedObject.name={name}")]).unwrap();
    assert!(events("noauthority").contains("certificate signed by unknown authority"), "{}", events("noauthority"));
    let refused = events("nologin");
    assert!(["authorization failed", "no basic auth credentials", "401"].iter().any(|text| refused.contains(text)), "{refused}");

    nothing_is_shown(&host, &[NAMESPACE]).await;
    host.delete(NAMESPACE, "crane").await;

    // The Docker daemon, which pulls node images: each gets as far as its registry lets it.
    let api = host.clusters(NAMESPACE);
    let expected = [
        ("mirror", "NodeImagePullFailed", "manifest unknown"),
        ("private", "NodeImagePullFailed", "manifest unknown"),
        ("nologin", "RegistryAuth", "no basic auth credentials"),
        ("noauthority", "RegistryCA", "unknown authority"),
    ];
    // Each with its own registry only: Docker keeps authorities by address, and all of the private ones have the same.
    for ((name, ..), registry) in expected.iter().zip(registries.as_array().unwrap()) {
        host.create(NAMESPACE, name, spec(json!({"image": format!("{name}.test/no/such-node:v1.34.4"), "registries": [registry]}))).await;
    }
    for (name, reason, evidence) in expected {
        let cluster = condition(&api, name, STALLED, "True", Some(reason), CREATED).await;
        let failure = cluster.status.unwrap().last_failure.unwrap();
        assert!(failure.log_tail.as_deref().is_some_and(|tail| tail.contains(evidence) && !tail.contains(PASSWORD)), "{name}: {failure:?}");
    }
    futures::future::join_all(expected.map(|(name, ..)| host.delete(NAMESPACE, name))).await;
    host.kubectl(&["delete", "rolebinding", READER_ROLE, "-n", NAMESPACE]);
    host.delete_namespace(NAMESPACE).await;
}
