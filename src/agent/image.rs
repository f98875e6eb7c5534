//! Node images: there already, in the pod image, or to be pulled.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nestling_core::api::kind_config::{KindConfig, KindNode, KindRole};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::kind_config::KubernetesVersion;
use nestling_core::plan::wire::{AgentFailure, BAKED_IMAGES_DIRECTORY};

use super::docker::{Docker, Error};
use super::failure::{evident, failure};
use super::registries::Registries;

/// kind's load balancer before several control planes (`pkg/cluster/internal/loadbalancer/const.go` of kind 0.33).
const LOAD_BALANCER: &str = "docker.io/envoyproxy/envoy:v1.36.2";

/// Where a node image keeps its version (`kubeVersionFile` in kind's node image build).
const VERSION_FILE: &str = "/kind/version";

/// References as they are written, and as they are known to Docker here.
pub type Present = BTreeMap<String, String>;

/// Makes every image that the nodes need present.
///
/// # Errors
/// [`Reason::NodeImagePullFailed`] or a more exact reason, naming the image.
pub async fn ensure(docker: &Docker, registries: &Registries, nodes: &[KindNode], default: &str) -> Result<Present, AgentFailure> {
    let index = fs::read_to_string(Path::new(BAKED_IMAGES_DIRECTORY).join("index.json")).unwrap_or_default();
    let baked: BTreeMap<String, String> = serde_json::from_str(&index).unwrap_or_default();
    let mut present = Present::new();
    for reference in required(nodes, default) {
        let known_as = ensure_one(docker, registries, reference, &baked).await.map_err(|said| pull_failure(reference, &said))?;
        present.insert(reference.to_owned(), known_as);
    }
    Ok(present)
}

/// Different images that the nodes need.
fn required<'a>(nodes: &'a [KindNode], default: &'a str) -> BTreeSet<&'a str> {
    let mut images: BTreeSet<&str> = nodes.iter().map(|node| node.image.as_deref().unwrap_or(default)).collect();
    if nodes.iter().filter(|node| node.role() == KindRole::ControlPlane).count() > 1 {
        images.insert(LOAD_BALANCER);
    }
    images
}

/// The name under which the image is there now, or what was said about it.
async fn ensure_one(docker: &Docker, registries: &Registries, reference: &str, baked: &BTreeMap<String, String>) -> Result<String, String> {
    let local = local(docker, reference, baked).await.map_err(|error| error.to_string())?;
    if let Some(known_as) = local {
        return Ok(known_as);
    }
    let login = registries.login(reference);
    let mut said = Vec::new();
    for candidate in registries.candidates(reference) {
        tracing::info!(candidate, "pulling");
        match docker.pull(&candidate, login.as_ref()).await {
            Ok(()) => return Ok(candidate),
            Err(error) => said.push(format!("{candidate}: {error}")),
        }
    }
    Err(said.join("\n"))
}

/// The name under which an image is there without asking a registry.
async fn local(docker: &Docker, reference: &str, baked: &BTreeMap<String, String>) -> Result<Option<String>, Error> {
    if docker.has_image(reference).await? {
        return Ok(Some(reference.to_owned()));
    }
    if let Some((known_as, archive)) = find_baked(baked, reference) {
        // An earlier run has loaded it.
        if known_as != reference && docker.has_image(known_as).await? {
            return Ok(Some(known_as.to_owned()));
        }
        tracing::info!(reference, "loading from the pod image");
        docker.load(&archive).await?;
        return Ok(Some(known_as.to_owned()));
    }
    Ok(None)
}

/// The archive in the pod image that holds a reference, and the name that it has after loading: an archive brings no digest, so
/// `repo:tag@sha256:…` is known as `repo:tag` then.
fn find_baked<'a>(baked: &BTreeMap<String, String>, reference: &'a str) -> Option<(&'a str, PathBuf)> {
    let (tagged, _) = reference.split_once('@').unwrap_or((reference, ""));
    let archive = baked.get(reference).or_else(|| baked.get(tagged))?;
    // The index is the image builder's, the path stays in its directory all the same.
    let file = Path::new(archive).file_name()?;
    Some((tagged, Path::new(BAKED_IMAGES_DIRECTORY).join(file)))
}

fn pull_failure(reference: &str, said: &str) -> AgentFailure {
    evident(classify(said, Reason::NodeImagePullFailed), format!("the image {reference} cannot be had"), said)
}

/// Names the images in a configuration as Docker knows them, so that kind does not ask a registry.
pub fn rename(config: &mut KindConfig, present: &Present) {
    for node in config.nodes.iter_mut().flatten() {
        if let Some(known_as) = node.image.as_ref().and_then(|image| present.get(image)) {
            node.image = Some(known_as.clone());
        }
    }
}

/// Version of Kubernetes in the image of the first control plane.
///
/// # Errors
/// [`Reason::NodeImagePullFailed`] for an image that is no node image.
pub async fn kubernetes_version(docker: &Docker, nodes: &[KindNode], default: &str, present: &Present) -> Result<KubernetesVersion, AgentFailure> {
    let control_plane = nodes.iter().find(|node| node.role() == KindRole::ControlPlane);
    let image = control_plane.and_then(|node| node.image.as_deref()).unwrap_or(default);
    if let Some(version) = version_in_tag(image) {
        return Ok(version);
    }
    let known_as = present.get(image).map_or(image, String::as_str);
    let no_node_image = |why: String| failure(Reason::NodeImagePullFailed, format!("{image} is no node image of kind: {why}"));
    let archive = docker.file_of_image(known_as, VERSION_FILE).await.map_err(|error| no_node_image(error.to_string()))?;
    version_in_archive(&archive).ok_or_else(|| no_node_image(format!("{VERSION_FILE} holds no version")))
}

/// `repo:v1.34.4[@sha256:…]`. A tag of another form says nothing.
fn version_in_tag(reference: &str) -> Option<KubernetesVersion> {
    let (tagged, _) = reference.split_once('@').unwrap_or((reference, ""));
    // A colon before the last slash is a port.
    let (_, tag) = tagged.rsplit_once('/').map_or(tagged, |(_, name)| name).rsplit_once(':')?;
    tag.starts_with('v').then(|| KubernetesVersion::parse(tag))?
}

fn version_in_archive(archive: &[u8]) -> Option<KubernetesVersion> {
    let mut archive = tar::Archive::new(archive);
    let mut text = String::new();
    archive.entries().ok()?.next()?.ok()?.take(256).read_to_string(&mut text).ok()?;
    KubernetesVersion::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("kindest/node:v1.34.4", Some(34))]
    #[case("registry:5000/kindest/node:v1.36.1@sha256:00", Some(36))]
    #[case("registry:5000/kindest/node", None)]
    #[case("kindest/node:latest", None)]
    #[case("kindest/node@sha256:00", None)]
    #[case("mine/node:v1", None)]
    fn tags_tell_versions(#[case] reference: &str, #[case] minor: Option<u32>) {
        assert_eq!(version_in_tag(reference).map(|version| version.minor), minor);
    }

    #[test]
    fn archives_tell_versions() {
        let mut header = tar::Header::new_gnu();
        header.set_size(8);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header, "version", &b"v1.35.0\n"[..]).unwrap();
        assert_eq!(version_in_archive(&builder.into_inner().unwrap()).unwrap().minor, 35);
        assert_eq!(version_in_archive(b"nonsense"), None);
    }

    #[rstest]
    #[case("kindest/node:v1.34.4", Some(("kindest/node:v1.34.4", "a.tar.zst")))]
    #[case("kindest/node:v1.34.4@sha256:00", Some(("kindest/node:v1.34.4", "a.tar.zst")))]
    #[case("kindest/node:v1.33.0@sha256:11", Some(("kindest/node:v1.33.0", "b.tar")))]
    #[case("kindest/node:v1.33.0@sha256:22", None)]
    fn baked_images_are_found_by_tag_or_digest(#[case] reference: &str, #[case] expected: Option<(&str, &str)>) {
        let baked = BTreeMap::from([
            ("kindest/node:v1.34.4".to_owned(), "a.tar.zst".to_owned()),
            ("kindest/node:v1.33.0@sha256:11".to_owned(), "../../b.tar".to_owned()),
        ]);
        let expected = expected.map(|(name, file)| (name, Path::new(BAKED_IMAGES_DIRECTORY).join(file)));
        assert_eq!(find_baked(&baked, reference), expected);
    }

    #[test]
    fn every_different_image_is_needed_once() {
        let node = |role, image: Option<&str>| KindNode { role: Some(role), image: image.map(str::to_owned), ..KindNode::default() };
        let nodes = [node(KindRole::ControlPlane, None), node(KindRole::Worker, Some("b")), node(KindRole::Worker, Some("b"))];
        assert_eq!(required(&nodes, "a"), BTreeSet::from(["a", "b"]));
        let nodes = [node(KindRole::ControlPlane, None), node(KindRole::ControlPlane, None)];
        assert_eq!(required(&nodes, "a"), BTreeSet::from(["a", LOAD_BALANCER]));
    }

    #[test]
    fn registries_are_understood() {
        assert_eq!(pull_failure("x", "toomanyrequests: slow down").reason, Reason::RegistryRateLimited);
        assert_eq!(pull_failure("x", "connection refused").reason, Reason::NodeImagePullFailed);
    }
}
