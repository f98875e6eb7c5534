//! Node images: there already, with the pod image ([`store`](super::store)) or of an earlier run, or to be pulled.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use nestling_core::api::kind_config::{KindConfig, KindNode, KindRole};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::desired::version_of_tag;
use nestling_core::plan::kind_config::KubernetesVersion;
use nestling_core::plan::wire::AgentFailure;

use super::docker::{Docker, Error};
use super::failure::{evident, failure};
use super::registries::Registries;
use super::store;

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
    let pinned = store::pinned_references();
    let mut present = Present::new();
    for reference in required(nodes, default) {
        let known_as = ensure_one(docker, registries, reference, &pinned).await.map_err(|said| pull_failure(reference, &said))?;
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
async fn ensure_one(docker: &Docker, registries: &Registries, reference: &str, pinned: &Present) -> Result<String, String> {
    let local = local(docker, reference, pinned).await.map_err(|error| error.to_string())?;
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
async fn local(docker: &Docker, reference: &str, pinned: &Present) -> Result<Option<String>, Error> {
    for name in pinned.get(reference).map(String::as_str).into_iter().chain([reference]) {
        if docker.has_image(name).await? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

fn pull_failure(reference: &str, said: &str) -> AgentFailure {
    let whose = if reference == LOAD_BALANCER { " of the load balancer, which kind puts before several control planes," } else { "" };
    evident(classify(said, Reason::NodeImagePullFailed), format!("the image {reference}{whose} cannot be had"), said)
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
    KubernetesVersion::parse(&version_of_tag(reference)?)
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
        assert!(pull_failure(LOAD_BALANCER, "connection refused").message.contains("load balancer"));
    }
}
