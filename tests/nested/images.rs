//! Images in the nodes of one cluster with three: preloaded from a private registry that is switched off afterwards, and loaded by a user who has no right in the
//! clusters namespace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use kube::config::{AuthInfo, Kubeconfig};
use nestling_core::api::conditions::{STALLED, UP_TO_DATE};
use nestling_core::plan::references::READER_ROLE;
use nestling_lab::archive::{self, Image, go_architecture};
use nestling_lab::layer::LayerBuilder;
use serde_json::json;

use crate::registries::PrivateRegistry;
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host};
use crate::support::wait::{condition, describe, until};

const NAMESPACE: &str = "t-images";
const SOON: Duration = Duration::from_mins(1);
const STARTED: Duration = Duration::from_mins(2);
const PORT: u16 = 5444;
const NODES: [&str; 3] = ["trio-control-plane", "trio-worker", "trio-worker2"];

/// Images that are made here: one static program, and a file by which each differs from the others.
struct Images<'a> {
    host: &'a Host,
    directory: tempfile::TempDir,
}

impl Images<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An archive as `docker save` writes it.
    fn saved(&self, name: &str) -> PathBuf {
        let short = name.rsplit('/').next().unwrap().replace(':', "-");
        let program = self.host.paths.bin("pause").unwrap();
        let layer = LayerBuilder::default().file("/pause", program, 0o755).text("/name", name, 0o644).write(self.path(&format!("{short}.layer"))).unwrap();
        let path = self.path(&format!("{short}.tar"));
        archive::write(&path, &[Image::program(name, vec![layer], "/pause")]).unwrap();
        path
    }

    /// An OCI layout for this machine's processor and another one. `whole`: with what the other one needs. Its digest comes with it.
    fn layout(&self, name: &str, whole: bool) -> (Vec<u8>, String) {
        let program = self.host.paths.bin("pause").unwrap();
        let other = if go_architecture() == "amd64" { "arm64" } else { "amd64" };
        let mut files: Vec<(String, Vec<u8>)> = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
        let mut manifests = Vec::new();
        for architecture in [other, go_architecture()] {
            let mut layer = LayerBuilder::default();
            layer.file("/pause", &program, 0o755).text("/name", format!("{name} {architecture}"), 0o644);
            let layer = std::fs::read(layer.write(self.path("layout.layer")).unwrap().path).unwrap();
            let config = json!({"architecture": architecture, "os": "linux", "config": {"Entrypoint": ["/pause"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
            let config = config.to_string().into_bytes();
            let of = |kind: &str, content: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(content), "size": content.len()});
            let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": of("config.v1+json", &config), "layers": [of("layer.v1.tar", &layer)]});
            let manifest = manifest.to_string().into_bytes();
            let mut descriptor = of("manifest.v1+json", &manifest);
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            manifests.push(descriptor);
            if whole || architecture == go_architecture() {
                files.extend([layer, config, manifest].map(|content| (blob(&content), content)));
            }
        }
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}).to_string().into_bytes();
        let top = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(&index), "size": index.len(),
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"},
        }]});
        let pinned = digest(&index);
        files.push((blob(&index), index));
        files.push(("index.json".into(), top.to_string().into_bytes()));
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, content.as_slice()).unwrap();
        }
        (tar.into_inner().unwrap(), pinned)
    }
}

fn digest(content: &[u8]) -> String {
    let printed = {
        let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    format!("sha256:{}", printed.split_whitespace().next().unwrap())
}

fn blob(content: &[u8]) -> String {
    digest(content).replace("sha256:", "blobs/sha256/")
}

/// The program as a user of one namespace runs it.
struct User {
    kubeconfig: tempfile::NamedTempFile,
}

impl User {
    /// A ServiceAccount that may see the clusters of its namespace, and read the Secret with the kubeconfig of one.
    fn new(host: &Host, namespace: &str) -> Self {
        host.kubectl(&["create", "serviceaccount", "user", "-n", namespace]);
        host.kubectl(&["create", "role", "user", "-n", namespace, "--verb=get", "--resource=secrets", "--resource-name=trio-kubeconfig"]);
        host.kubectl(&["create", "rolebinding", "user-secret", "-n", namespace, "--role=user", &format!("--serviceaccount={namespace}:user")]);
        host.kubectl(&["create", "rolebinding", "user-view", "-n", namespace, "--clusterrole=kindcluster-view", &format!("--serviceaccount={namespace}:user")]);
        let token = host.kubectl(&["create", "token", "user", "-n", namespace, "--duration=2h"]);
        let mut kubeconfig = Kubeconfig::read_from(host.cluster.kubeconfig()).unwrap();
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo { token: Some(token.trim().to_owned().into()), ..AuthInfo::default() });
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(serde_saphyr::to_string(&kubeconfig).unwrap().as_bytes()).unwrap();
        Self { kubeconfig: file }
    }

    fn run(&self, arguments: &[&str], input: Option<&[u8]>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command.arg("--kubeconfig").arg(self.kubeconfig.path()).args(["--namespace", NAMESPACE]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.unwrap_or_default().to_vec();
        // Beside the outputs, which would fill up.
        let feed = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap();
        output
    }

    /// What a run that ends well prints.
    fn well(&self, arguments: &[&str], input: Option<&[u8]>) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A pod of this image on each node, from what the node has.
async fn runs_everywhere(host: &Host, kubeconfig: &str, image: &str, policy: &str) {
    let pod = |node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}")},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]},
        })
        .to_string()
    };
    host.apply_outside(kubeconfig, &NODES.map(pod).join("\n---\n"));
    until(&format!("pods of {image}"), STARTED, async || {
        let path = "jsonpath={range .items[*]}{.status.phase} {.status.containerStatuses[0].state.waiting.message}{'\\n'}{end}";
        let states = host.kubectl_outside(kubeconfig, &["get", "pods", "-o", path]).unwrap();
        if states.lines().filter(|line| line.starts_with("Running")).count() == NODES.len() { Ok(()) } else { Err(states) }
    })
    .await;
    host.kubectl_outside(kubeconfig, &["delete", "pods", "--all", "--now"]).unwrap();
}

/// Pushes an image to the lab's registry; its name there without the registry, and its digest.
fn pushed(host: &Host, archive: &Path, name: &str) -> (String, String) {
    let docker = host.cluster.docker();
    docker.run(&["load", "-q", "-i", &archive.display().to_string()]).unwrap();
    let pushed = host.cluster.push(name).unwrap();
    let digests = docker.run(&["image", "inspect", "--format", "{{range .RepoDigests}}{{.}} {{end}}", &pushed]).unwrap();
    let (repository, _) = pushed.rsplit_once(':').unwrap();
    let digest = digests.split_whitespace().find_map(|digest| digest.strip_prefix(&format!("{repository}@"))).unwrap().to_owned();
    docker.run(&["rmi", &pushed, name]).unwrap();
    (pushed.split_once('/').unwrap().1.to_owned(), digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_preloaded_and_loaded_into_every_node() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let images = Images { host: &host, directory: tempfile::tempdir().unwrap() };
    let address = host.registry_address();
    let private = PrivateRegistry::start(host.cluster.docker(), &address, PORT);
    private.refer(&host, NAMESPACE);
    let service_account = "--serviceaccount=nestling-system:nestling";
    host.kubectl(&["create", "rolebinding", READER_ROLE, &format!("--clusterrole={READER_ROLE}"), service_account, "-n", NAMESPACE]);
    let [(tagged, _), (pinned, digest)] =
        ["nestling-test/tagged:1", "nestling-test/pinned:1"].map(|name| pushed(&host, &images.saved(&format!("docker.io/{name}")), name));
    let (tagged, pinned) = (format!("private.test/{tagged}"), format!("private.test/{}@{digest}", pinned.rsplit_once(':').unwrap().0));

    // A name that nobody resolves: only the endpoint can have been asked.
    let registry = json!({"host": "private.test", "endpoints": [format!("https://{address}:{PORT}")],
        "credentialsSecretRef": {"name": "login"}, "caConfigMapRef": {"name": "authority"}});
    let spec = json!({"nodes": {"workers": 2}, "registries": [registry], "preload": {"images": [tagged]}, "access": {"service": {"type": "NodePort"}}});
    host.create(NAMESPACE, "trio", spec).await;
    let lacking = json!({"registries": [registry], "preload": {"images": ["private.test/no/such:1"]}, "lifecycle": {"backoffLimit": 0}});
    host.create(NAMESPACE, "lacking", lacking).await;
    let stalled = condition(&host.clusters(NAMESPACE), "lacking", STALLED, "True", Some("PreloadFailed"), CREATED).await;
    let said = stalled.status.unwrap().last_failure.unwrap().message;
    assert!(said.contains("private.test/no/such:1"), "{said}");
    host.delete(NAMESPACE, "lacking").await;

    // At once with Ready, and with nobody to pull from.
    let cluster = host.ready(NAMESPACE, "trio").await;
    private.switch_off();
    let stages = cluster.status.unwrap().stages;
    assert!(stages.iter().any(|stage| stage.name == "PreloadingImages"), "{stages:?}");
    let external = host.kubeconfig(NAMESPACE, "trio", "external").await;
    runs_everywhere(&host, &external, &tagged, "IfNotPresent").await;

    // One more while it runs. What keeps it from coming is told.
    let clusters = host.clusters(NAMESPACE);
    host.patch(NAMESPACE, "trio", json!({"spec": {"preload": {"images": [tagged, pinned]}}})).await;
    until("the failure to be told", STARTED, async || {
        let cluster = clusters.get("trio").await.unwrap();
        let said = describe(&cluster);
        if said.contains("PreloadingImages") && said.contains(&pinned) { Ok(()) } else { Err(said) }
    })
    .await;
    private.switch_on();
    condition(&clusters, "trio", UP_TO_DATE, "True", None, STARTED).await;
    private.switch_off();
    runs_everywhere(&host, &external, &pinned, "IfNotPresent").await;

    loads(&host, &images, &external).await;
    host.delete(NAMESPACE, "trio").await;
    host.delete_namespace(NAMESPACE).await;
}

/// Images of the machine that the user sits at.
async fn loads(host: &Host, images: &Images<'_>, external: &str) {
    let user = User::new(host, NAMESPACE);
    let forbidden = host.cluster.kubectl().arg("--kubeconfig").arg(user.kubeconfig.path()).args(["get", "pods", "-n", CLUSTERS_NAMESPACE]).output().unwrap();
    assert!(!forbidden.status.success(), "the user is to have no right there");

    // An archive, in one go.
    let archive = images.saved("docker.io/nestling-test/archived:1");
    let said = user.well(&["load", "trio", archive.to_str().unwrap()], None);
    assert_eq!(said.matches("docker.io/nestling-test/archived:1 loaded").count(), NODES.len(), "{said}");
    runs_everywhere(host, external, "nestling-test/archived:1", "Never").await;

    // An image of the local Docker, and once more.
    let local = images.saved("docker.io/nestling-test/local:1");
    let docker = host.cluster.docker();
    docker.run(&["load", "-q", "-i", local.to_str().unwrap()]).unwrap();
    user.well(&["load", "trio", "nestling-test/local:1"], None);
    runs_everywhere(host, external, "nestling-test/local:1", "Never").await;
    let again = user.well(&["load", "trio", "nestling-test/local:1"], None);
    assert_eq!(again.matches("there already").count(), NODES.len(), "{again}");
    docker.run(&["rmi", "nestling-test/local:1"]).unwrap();

    // For several processors, gzipped and from a pipe; and one that lacks what the other processor needs.
    let (layout, digest) = images.layout("docker.io/nestling-test/both:1", true);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&layout).unwrap();
    user.well(&["load", "trio", "-"], Some(&packed.finish().unwrap()));
    runs_everywhere(host, external, "nestling-test/both:1", "Never").await;
    runs_everywhere(host, external, &format!("nestling-test/both@{digest}"), "Never").await;
    let (layout, _) = images.layout("docker.io/nestling-test/partial:1", false);
    std::fs::write(images.path("partial.tar"), &layout).unwrap();
    user.well(&["load", "trio", "--nodes", "trio-worker,trio-worker2", images.path("partial.tar").to_str().unwrap()], None);
    let names = |node: &str| user.well(&["node-shell", "trio", node, "--", "ctr", "-n", "k8s.io", "images", "ls", "-q"], None);
    assert!(names("trio-worker").contains("nestling-test/partial:1") && !names("trio-control-plane").contains("nestling-test/partial:1"));

    // What cannot be loaded.
    for (file, content, why) in
        [("none.tar", &b"no archive"[..], "is no archive of images"), ("half.tar", &layout[..layout.len() / 2], "is no archive of images")]
    {
        File::create(images.path(file)).unwrap().write_all(content).unwrap();
        let refused = user.run(&["load", "trio", images.path(file).to_str().unwrap()], None);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(why) && said.contains('→'), "{said}");
    }

    // Commands in a node: their output, their input with its end, their exit code.
    assert_eq!(user.well(&["node-shell", "trio", "trio-worker", "--", "hostname"], None), "trio-worker\n");
    let input: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251).to_le_bytes()[0]).collect();
    let sum = user.well(&["node-shell", "trio", "trio-worker2", "--", "sha256sum"], Some(&input));
    assert_eq!(sum.split_whitespace().next().unwrap(), self::digest(&input).trim_start_matches("sha256:"));
    assert_eq!(user.run(&["node-shell", "trio", "trio-worker", "--", "sh", "-c", "exit 42"], None).status.code(), Some(42));
    assert_eq!(user.run(&["node-shell", "trio", "nowhere"], None).status.code(), Some(4));

    until("the pods to be taken back", SOON, async || {
        let left = host.kubectl_outside(external, &["get", "pods", "-n", "kube-system", "-l", "nestling.dev/node-access", "-o", "name"]).unwrap();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}
