//! The node image, made by the real `kind build node-image` from parts that are all on disk, or pulled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::archive::{self, Image};
use crate::command::{output, pipe};
use crate::docker::Docker;
use crate::go;
use crate::images::ARCHIVE;
use crate::layer::{Layer, LayerBuilder};
use crate::part::Part;
use crate::progress::note;
use crate::workshop::{Workshop, image_reference};

/// The name under which test workloads find the tools image in every node.
pub const TOOLS_IMAGE: &str = "docker.io/nestling-lab/tools:1";
/// The file name of the node image's archive in its part's directory.
pub const NODE_ARCHIVE: &str = "node.tar.zst";

const SERVER: &str = "server.tar.gz";
const SYSTEMD: &str = "/etc/systemd/system";
/// The units that kind's base image enables.
const ENABLED: [&str; 3] = ["kubelet.service", "containerd.service", "undo-mount-hacks.service"];

/// kind's base image: the node's Debian root and one layer with kind's own files and the built programs.
pub fn make_base(workshop: &Workshop) -> Result<()> {
    let files = workshop.kind_sources()?.join("images/base/files");
    let mut layer = LayerBuilder::default();
    layer.tree("/usr/local/bin", &files.join("usr/local/bin"), &|_| 0o755)?;
    layer.tree("/kind", &files.join("kind"), &|path| if path.starts_with("/kind/bin/") { 0o755 } else { 0o644 })?;
    layer.tree("/etc", &files.join("etc"), &|_| 0o644)?;
    for unit in ENABLED {
        let text = fs::read_to_string(files.join("etc/systemd/system").join(unit))?;
        for target in wanted_by(&text) {
            layer.link(&format!("{SYSTEMD}/{target}.wants/{unit}"), &format!("{SYSTEMD}/{unit}"));
        }
    }
    layer.link(&format!("{SYSTEMD}/systemd-binfmt.service"), "/dev/null");
    layer.directory("/etc/kubernetes/manifests");
    for (part, names, to) in [
        (Part::Containerd, &["containerd", "containerd-shim-runc-v2", "ctr"][..], "/usr/local/bin"),
        (Part::Crictl, &["crictl"], "/usr/local/bin"),
        (Part::Runc, &["runc"], "/usr/local/sbin"),
        (Part::Cni, &["host-local", "loopback", "ptp", "portmap"], "/opt/cni/bin"),
    ] {
        for name in names {
            layer.file(&format!("{to}/{name}"), workshop.program(part, name)?, 0o755);
        }
    }
    let specification = output(Command::new(workshop.program(Part::Containerd, "ctr")?).args(["oci", "spec"]))?;
    layer.text("/etc/containerd/cri-base.json", cri_base(&specification)?, 0o644);

    let path = workshop.out.join("layer.tar");
    let layers = vec![workshop.root(Part::NodeRoot)?, layer.write(path.clone())?];
    let mut image = Image::program(&reference(workshop, Part::NodeBase)?, layers, "/usr/local/bin/entrypoint");
    image.entrypoint.push("/sbin/init".to_owned());
    image.environment.push("container=docker".to_owned());
    image.stop_signal = Some("SIGRTMIN+3".to_owned());
    archive::write(&workshop.out.join(ARCHIVE), &[image])?;
    Ok(fs::remove_file(path)?)
}

/// The server archive: three programs, and four image archives. kind pulls whatever is not in those four, so the
/// first of them carries all the other images of a node too.
pub fn make_server(workshop: &Workshop) -> Result<()> {
    let scratch = tempfile::tempdir_in(workshop.out)?;
    let root = scratch.path().join("kubernetes");
    let bin = root.join("server/bin");
    fs::create_dir_all(&bin)?;
    let version = go::required_version(&fs::read_to_string(workshop.modules.join("kubernetes/go.mod"))?, "k8s.io/kubernetes")?;
    fs::write(root.join("version"), &version)?;
    for (part, name) in [(Part::KubernetesNode, "kubeadm"), (Part::KubernetesNode, "kubelet"), (Part::KubernetesApi, "kubectl")] {
        fs::copy(workshop.program(part, name)?, bin.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }

    let images = NodeImages::make(workshop, scratch.path(), &version)?;
    let mut first = vec![images.control_plane("kube-apiserver")?];
    first.extend(images.others()?);
    archive::write(&bin.join("kube-apiserver.tar"), &first)?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        archive::write(&bin.join(format!("{name}.tar")), &[images.control_plane(name)?])?;
    }
    archive::write(&bin.join("kube-proxy.tar"), &[images.on_tools("kube-proxy", Part::KubernetesNode, "/usr/local/bin")?])?;
    output(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "-I", "gzip -1", "-cf"])
            .arg(workshop.out.join(SERVER))
            .arg("-C")
            .arg(scratch.path())
            .arg("kubernetes"),
    )
    .map(drop)
}

/// The node image itself.
pub fn make(workshop: &Workshop) -> Result<()> {
    let docker = Docker::ensure(workshop.cache, None)?;
    let reference = reference(workshop, Part::NodeImage)?;
    if workshop.pulling {
        pull(workshop, &docker, &reference)?;
    } else {
        build(workshop, &docker, &reference)?;
    }
    save(&docker, &reference, &workshop.out.join(NODE_ARCHIVE))
}

fn build(workshop: &Workshop, docker: &Docker, reference: &str) -> Result<()> {
    let base = workshop.image(Part::NodeBase)?;
    docker.load(&base, &workshop.part(Part::NodeBase)?.join(ARCHIVE))?;
    // kind unpacks the server archive, a gigabyte, into the temporary directory and leaves it there.
    let scratch = tempfile::tempdir_in(workshop.out)?;
    output(
        Command::new(workshop.program(Part::Kind, "kind")?)
            .env("TMPDIR", scratch.path())
            .args(["build", "node-image", "--type", "file", "--base-image", &base, "--image", reference])
            .arg(workshop.part(Part::NodeServer)?.join(SERVER)),
    )
    .map(drop)
}

/// Pulls kind's published image and adds the tools image to it, as `kind build node-image` adds images.
fn pull(workshop: &Workshop, docker: &Docker, reference: &str) -> Result<()> {
    let version = go::required_version(&fs::read_to_string(workshop.modules.join("kubernetes/go.mod"))?, "k8s.io/kubernetes")?;
    let published = published_image(&version);
    note(format!("pulling {published}"));
    docker.run(&["pull", "-q", &published])?;
    let scratch = tempfile::tempdir_in(workshop.out)?;
    let tools = scratch.path().join("tools.tar");
    archive::write(&tools, &[tools_image(workshop, scratch.path(), vec![TOOLS_IMAGE.to_owned()])?])?;
    let container = docker.run(&["run", "-d", "--entrypoint=sleep", &published, "infinity"])?;
    let added = add_image(docker, &container, &tools).and_then(|()| {
        let entrypoint = r#"ENTRYPOINT [ "/usr/local/bin/entrypoint", "/sbin/init" ]"#;
        docker.run(&["commit", "--change", entrypoint, &container, reference])
    });
    docker.run(&["rm", "-f", "-v", &container])?;
    added.map(drop)
}

fn add_image(docker: &Docker, container: &str, archive: &Path) -> Result<()> {
    let steps = "set -e; containerd >/dev/null 2>&1 & until ctr version >/dev/null 2>&1; do sleep 0.2; done; \
                 ctr -n k8s.io images import --label io.cri-containerd.pinned=pinned --no-unpack -; pkill containerd";
    let status =
        docker.command().args(["exec", "-i", container, "timeout", "120", "bash", "-c", steps]).stdin(File::open(archive)?).stdout(Stdio::null()).status()?;
    if !status.success() {
        bail!("cannot add {} to the node image: {status}", archive.display());
    }
    Ok(())
}

/// The name of kind's published node image for a Kubernetes version.
pub fn published_image(version: &str) -> String {
    format!("kindest/node:{version}")
}

fn save(docker: &Docker, reference: &str, to: &Path) -> Result<()> {
    if !pipe(docker.command().args(["save", reference]), Command::new("zstd").args(["-q", "-T0", "-3", "-o"]).arg(to))? {
        bail!("cannot save {reference}");
    }
    Ok(())
}

/// The images that run in a node, under the names that kubeadm and kind ask for.
struct NodeImages<'a> {
    workshop: &'a Workshop<'a>,
    scratch: &'a Path,
    tools: Layer,
    /// What kubeadm lists, and what kind's sources name.
    names: Vec<String>,
}

impl<'a> NodeImages<'a> {
    fn make(workshop: &'a Workshop<'a>, scratch: &'a Path, version: &str) -> Result<Self> {
        let kubeadm = workshop.program(Part::KubernetesNode, "kubeadm")?;
        let listed = output(Command::new(kubeadm).args(["config", "images", "list", "--kubernetes-version", version]))?;
        let mut names: Vec<String> = listed.lines().filter(|name| !name.contains("/pause:")).map(str::to_owned).collect();
        let kind = workshop.kind_sources()?;
        for source in ["pkg/build/nodeimage/const_cni.go", "pkg/build/nodeimage/const_storage.go"] {
            names.extend(go_image_constants(&fs::read_to_string(kind.join(source))?));
        }
        names.extend(sandbox_image(&fs::read_to_string(kind.join("images/base/files/etc/containerd/config.toml"))?));
        Ok(Self { workshop, scratch, tools: workshop.root(Part::ToolsRoot)?, names })
    }

    /// The full name of the image whose last path element is `short`.
    fn name(&self, short: &str) -> Result<String> {
        self.names
            .iter()
            .find(|name| name.rsplit('/').next().and_then(|last| last.split(':').next()) == Some(short))
            .cloned()
            .with_context(|| format!("neither kubeadm nor kind names an image {short}"))
    }

    fn control_plane(&self, name: &str) -> Result<Image> {
        let part = if name == "kube-scheduler" { Part::KubernetesNode } else { Part::KubernetesApi };
        self.alone(name, part, name, "/usr/local/bin")
    }

    fn others(&self) -> Result<Vec<Image>> {
        Ok(vec![
            self.alone("etcd", Part::Etcd, "etcd", "/usr/local/bin")?,
            self.alone("coredns", Part::Coredns, "coredns", "/")?,
            self.alone("pause", Part::Pause, "pause", "/")?,
            self.alone("local-path-provisioner", Part::Provisioner, "local-path-provisioner", "/usr/bin")?,
            self.on_tools("kindnetd", Part::Kindnetd, "/bin")?,
            tools_image(self.workshop, self.scratch, vec![self.name("local-path-helper")?, TOOLS_IMAGE.to_owned()])?,
        ])
    }

    /// An image with one program and nothing else.
    fn alone(&self, name: &str, part: Part, program: &str, to: &str) -> Result<Image> {
        self.image(name, part, program, to, vec![])
    }

    /// An image with one program above the tools.
    fn on_tools(&self, name: &str, part: Part, to: &str) -> Result<Image> {
        self.image(name, part, name, to, vec![self.tools.clone()])
    }

    fn image(&self, name: &str, part: Part, program: &str, to: &str, mut layers: Vec<Layer>) -> Result<Image> {
        let path = format!("{}/{program}", to.trim_end_matches('/'));
        // Debian's /bin is a link to /usr/bin, which a layer must not replace by a directory.
        let inside = if to == "/bin" { format!("/usr{path}") } else { path.clone() };
        let file = self.workshop.program(part, program)?;
        layers.push(LayerBuilder::default().file(&inside, file, 0o755).write(self.scratch.join(format!("{name}.layer")))?);
        Ok(Image::program(&self.name(name)?, layers, &path))
    }
}

/// Debian with network tools, curl, jq, busybox and kubectl: the helper of the provisioner and the image of tests.
fn tools_image(workshop: &Workshop, scratch: &Path, names: Vec<String>) -> Result<Image> {
    let kubectl =
        LayerBuilder::default().file("/usr/local/bin/kubectl", workshop.program(Part::KubernetesApi, "kubectl")?, 0o755).write(scratch.join("tools.layer"))?;
    let mut image = Image::program("", vec![workshop.root(Part::ToolsRoot)?, kubectl], "");
    image.names = names;
    Ok(image)
}

fn reference(workshop: &Workshop, part: Part) -> Result<String> {
    let image = part.image().with_context(|| format!("{} is no image", part.name()))?;
    Ok(image_reference(image, workshop.key))
}

/// The targets in a unit's `WantedBy=` lines.
fn wanted_by(unit: &str) -> Vec<&str> {
    unit.lines().filter_map(|line| line.trim().strip_prefix("WantedBy=")).flat_map(str::split_whitespace).collect()
}

/// The image names among the string constants of a Go source file.
fn go_image_constants(source: &str) -> Vec<String> {
    source
        .lines()
        .filter(|line| line.starts_with("const "))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|value| value.contains('/') && value.contains(':'))
        .map(str::to_owned)
        .collect()
}

/// The `sandbox_image` of a containerd configuration.
fn sandbox_image(config: &str) -> Option<String> {
    let line = config.lines().find(|line| line.trim_start().starts_with("sandbox_image"))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// The runtime specification that all of a node's containers start from: containerd's own, with kind's hook, and
/// without limits that the machine may not grant.
fn cri_base(specification: &str) -> Result<Vec<u8>> {
    let mut specification: Value = serde_json::from_str(specification).context("ctr printed no JSON")?;
    let process = specification.get_mut("process").and_then(Value::as_object_mut).context("a specification without a process")?;
    process.remove("rlimits");
    let hooks = &mut specification["hooks"]["createContainer"];
    if !hooks.is_array() {
        *hooks = json!([]);
    }
    hooks.as_array_mut().context("hooks are no list")?.push(json!({ "path": "/kind/bin/mount-product-files.sh" }));
    Ok(serde_json::to_vec_pretty(&specification)?)
}

/// Where the node image's archive is, in its part's directory.
pub fn archive_path(part: &Path) -> PathBuf {
    part.join(NODE_ARCHIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_read_from_constants_only() {
        let source = "package x\nconst a = \"docker.io/kindest/kindnetd:v1\"\nvar b = []string{a}\nconst c = `\nimage: \"x/y:z\"\n`\n";
        assert_eq!(go_image_constants(source), ["docker.io/kindest/kindnetd:v1"]);
    }

    #[test]
    fn the_base_specification_gets_the_hook_and_loses_the_limits() {
        let base = cri_base(r#"{"process":{"rlimits":[1],"args":["x"]}}"#).unwrap();
        let base: Value = serde_json::from_slice(&base).unwrap();
        assert!(base["process"].get("rlimits").is_none());
        assert_eq!(base["hooks"]["createContainer"][0]["path"], "/kind/bin/mount-product-files.sh");
    }

    #[test]
    fn the_pause_image_is_the_one_that_containerd_is_told() {
        assert_eq!(sandbox_image("[a]\n  sandbox_image = \"r.test/pause:3\"\n").as_deref(), Some("r.test/pause:3"));
        assert_eq!(sandbox_image("x = 1\n"), None);
    }

    #[test]
    fn a_unit_may_be_wanted_by_several_targets() {
        assert_eq!(wanted_by("[Install]\nWantedBy=a.target b.target\nWantedBy=c.target\n"), ["a.target", "b.target", "c.target"]);
    }
}
