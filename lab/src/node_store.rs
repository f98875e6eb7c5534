//! The store: the node image, and that of kind's load balancer, as Docker keeps them on disk, made by the Docker of the pod image itself. A pod that finds it in its
//! image has them at once, where loading an archive takes longer than everything else together.
//!
//! Each image is flattened to one layer: the marks by which a layer deletes files of the one below are devices that no image layer can carry. What a node image holds for
//! its own containerd comes beside it, with all images unpacked: in the node image, Docker would copy it for every node, and each would unpack it anew. So does the golden
//! state of its API server ([`golden`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{output, pipe, wait_for};
use crate::docker::Docker;
use crate::golden::{self, GOLDEN};
use crate::images::ARCHIVE;
use crate::load_balancer;
use crate::node_image;
use crate::part::Part;
use crate::workshop::Workshop;

/// The file name of the store in its part's directory.
pub const STORE_ARCHIVE: &str = "store.tar";

/// The file in the store that says which pinned references its images stand for: flattened, they have digests of their own.
const REFERENCES: &str = "references.json";

/// The directory of the store with what the node image had in [`CONTAINERD`], unpacked, and with the image's name.
const UNPACKED: &str = "unpacked";

/// Where a node keeps its images.
const CONTAINERD: &str = "/var/lib/containerd";

/// Takes out of a node's `/var` what need not be there, inside of it.
const LIGHTEN: &str = include_str!("../scripts/lighten.sh");

/// Unpacks the images of a node, inside of it.
const UNPACK: &str = include_str!("../scripts/unpack.sh");

/// Where the daemon that makes it keeps it.
const DATA_ROOT: &str = "/store";
const START_WITHIN: Duration = Duration::from_mins(1);

/// An image that is to be in the store.
struct Image<'a> {
    /// Its name in the Docker that makes the store.
    here: &'a str,
    /// Its name in the store.
    there: &'a str,
    is_node: bool,
}

/// Makes the store.
pub fn make(workshop: &Workshop) -> Result<()> {
    let docker = Docker::ensure(workshop.cache, None)?;
    let node = load(&docker, workshop, Part::NodeImage, node_image::NODE_ARCHIVE)?;
    make_of(&docker, workshop, &node)
}

/// Makes a store of a node image that Docker has. There it has its name without a digest: flattened, its digest is another.
pub fn make_of(docker: &Docker, workshop: &Workshop, node: &str) -> Result<()> {
    let node_there = node.split_once('@').map_or(node, |(name, _)| name);
    let base = load(docker, workshop, Part::DindBase, ARCHIVE)?;
    let kinds = load_balancer::name(workshop)?;
    let balancer = if workshop.pulling {
        docker.run(&["pull", "-q", &kinds])?;
        kinds.clone()
    } else {
        load(docker, workshop, Part::LoadBalancer, ARCHIVE)?
    };

    // A volume, because overlay2 does not work on a container's own file system.
    let container = docker.run(&[
        "run",
        "-d",
        "--privileged",
        "--network=none",
        "-v",
        DATA_ROOT,
        "--entrypoint=dockerd",
        &base,
        "--data-root",
        DATA_ROOT,
        "--storage-driver=overlay2",
        "--bridge=none",
        "--iptables=false",
    ])?;
    let images = [Image { here: node, there: node_there, is_node: true }, Image { here: &balancer, there: &kinds, is_node: false }];
    let made = fill(docker, &container, &images, workshop)
        .and_then(|()| unpack(docker, &container, node, node_there))
        .and_then(|()| seal(docker, &container, workshop, (node, node_there)))
        .and_then(|()| save(docker, &container, workshop));
    docker.run(&["rm", "-f", "-v", &container])?;
    made
}

/// Makes a finished image known to Docker, and returns its name.
fn load(docker: &Docker, workshop: &Workshop, part: Part, archive: &str) -> Result<String> {
    let reference = workshop.image(part)?;
    docker.load(&reference, &workshop.part(part)?.join(archive))?;
    Ok(reference)
}

/// Brings images into the inner daemon.
fn fill(docker: &Docker, container: &str, images: &[Image], workshop: &Workshop) -> Result<()> {
    wait_for("the daemon that makes the store answers", START_WITHIN, || Ok(docker.succeeds(&["exec", container, "docker", "version"])))?;
    let mut pinned_references = BTreeMap::new();
    for image in images {
        let inspected: Value = serde_json::from_str(&docker.run(&["image", "inspect", image.here])?).context("docker image inspect printed no JSON")?;
        pinned_references.extend(pinned(&inspected[0], image.there));
        bring(docker, container, image, &inspected[0]["Config"])?;
    }
    let references = workshop.out.join(REFERENCES);
    fs::write(&references, serde_json::to_vec(&pinned_references)?)?;
    docker.run(&["cp", &references.to_string_lossy(), &format!("{container}:{DATA_ROOT}/{REFERENCES}")])?;
    Ok(fs::remove_file(references)?)
}

/// Brings one image into the inner daemon, flattened.
fn bring(docker: &Docker, container: &str, image: &Image, config: &Value) -> Result<()> {
    let mut import = docker.command();
    import.args(["exec", "-i", container, "docker", "import"]);
    for change in changes(config) {
        import.args(["--change", &change]);
    }
    let stopped = stopped(docker, image)?;
    let imported = (|| {
        if !pipe(docker.command().args(["export", &stopped]), import.args(["-", image.there]).stdout(Stdio::null()))? {
            bail!("cannot flatten {}", image.here);
        }
        Ok(())
    })();
    docker.run(&["rm", "-f", "-v", &stopped])?;
    imported
}

/// A container of an image, not running. Of a node image, its `/var` holds little: what is below, Docker would copy for every node.
fn stopped(docker: &Docker, image: &Image) -> Result<String> {
    if !image.is_node {
        return docker.run(&["create", "--network=none", "--entrypoint=true", image.here]);
    }
    let container = docker.run(&["create", "--network=none", "--entrypoint=bash", image.here, "-c", LIGHTEN])?;
    docker.run(&["start", "--attach", &container])?;
    Ok(container)
}

/// Unpacks what the node image holds for its containerd, into the store.
fn unpack(docker: &Docker, store: &str, node: &str, node_there: &str) -> Result<()> {
    let unpacked = begin_part(docker, store, UNPACKED, node_there)?;
    docker.run(&["exec", store, "mkdir", &format!("{unpacked}/containerd")])?;
    // A volume again, because containerd stacks overlays as well.
    let container = docker.run(&["run", "-d", "--privileged", "--network=none", "-v", CONTAINERD, "--entrypoint=sleep", node, "infinity"])?;
    let moved = (|| {
        let (mut from, mut to) = (docker.command(), docker.command());
        from.args(["exec", &container, "bash", "-c", UNPACK]);
        to.args(["exec", "-i", store, "tar", "-C", &format!("{unpacked}/containerd"), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-"]);
        if !pipe(&mut from, &mut to)? {
            bail!("cannot unpack the images in {node}");
        }
        Ok(())
    })();
    docker.run(&["rm", "-f", "-v", &container])?;
    moved
}

/// Puts the golden state of the node image into the store.
fn seal(docker: &Docker, store: &str, workshop: &Workshop, (node, node_there): (&str, &str)) -> Result<()> {
    let directory = begin_part(docker, store, GOLDEN, node_there)?;
    golden::seal(docker, workshop, node, (store, &directory))
}

/// Makes a directory of the store that says which node image it belongs to, and returns its path.
fn begin_part(docker: &Docker, store: &str, name: &str, node_there: &str) -> Result<String> {
    let directory = format!("{DATA_ROOT}/{name}");
    docker.run(&["exec", store, "mkdir", &directory])?;
    docker.run(&["exec", store, "sh", "-c", &format!("printf %s '{node_there}' > {directory}/image")])?;
    Ok(directory)
}

/// What `docker import` would lose of an image's configuration, as instructions of a Dockerfile.
fn changes(config: &Value) -> Vec<String> {
    let mut changes = Vec::new();
    for name in ["Entrypoint", "Cmd"] {
        if config[name].as_array().is_some_and(|words| !words.is_empty()) {
            changes.push(format!("{} {}", name.to_uppercase(), config[name]));
        }
    }
    for variable in config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        changes.push(format!("ENV {name}={}", Value::from(value)));
    }
    if let Some(signal) = config["StopSignal"].as_str().filter(|signal| !signal.is_empty()) {
        changes.push(format!("STOPSIGNAL {signal}"));
    }
    changes
}

/// `repo:tag@sha256:…` for each digest under which a registry knows the image, with the name that it has in the store.
fn pinned(inspected: &Value, node: &str) -> BTreeMap<String, String> {
    let digests = inspected["RepoDigests"].as_array().into_iter().flatten().filter_map(Value::as_str);
    digests.filter_map(|digest| Some((format!("{node}@{}", digest.split_once('@')?.1), node.to_owned()))).collect()
}

fn save(docker: &Docker, container: &str, workshop: &Workshop) -> Result<()> {
    // The file systems of containers and the databases of volumes and networks are the daemon's that uses the store.
    let mut pack = docker.command();
    pack.args([
        "exec",
        container,
        "tar",
        "-C",
        DATA_ROOT,
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "-cf",
        "-",
        REFERENCES,
        UNPACKED,
        GOLDEN,
        "image",
        "overlay2",
    ]);
    let path = workshop.out.join(STORE_ARCHIVE);
    let status = pack.stdout(File::create(&path)?).status().context("cannot start docker")?;
    if !status.success() {
        bail!("cannot pack the store: {status}");
    }
    let listed = output(std::process::Command::new("tar").arg("-tf").arg(&path))?;
    if !listed.lines().any(|entry| entry == "image/overlay2/repositories.json") {
        fs::remove_file(&path)?;
        bail!("the store holds no list of images");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pinned_references_are_kept() {
        let inspected = json!({"RepoDigests": ["kindest/node@sha256:00"]});
        assert_eq!(pinned(&inspected, "kindest/node:v1"), BTreeMap::from([("kindest/node:v1@sha256:00".to_owned(), "kindest/node:v1".to_owned())]));
    }

    #[test]
    fn what_an_import_loses_is_told_to_it() {
        let config = json!({
            "Entrypoint": ["/usr/local/bin/entrypoint", "/sbin/init"], "Cmd": null, "Env": ["PATH=/bin:/sbin", "container=docker", "quoted=a \"b\" c"],
            "StopSignal": "SIGRTMIN+3",
        });
        assert_eq!(
            changes(&config),
            [
                r#"ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]"#,
                r#"ENV PATH="/bin:/sbin""#,
                r#"ENV container="docker""#,
                r#"ENV quoted="a \"b\" c""#,
                "STOPSIGNAL SIGRTMIN+3",
            ]
        );
        assert_eq!(changes(&json!({})), Vec::<String>::new());
    }
}
