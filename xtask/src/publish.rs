//! `cargo xtask images`: the project's two images, in a registry of the user's.

use anyhow::Result;
use clap::Args;
use nestling_core::plan::desired::version_of_tag;
use nestling_lab::host::stop_docker_if_unused;
use nestling_lab::progress::note;
use nestling_lab::{Docker, Lab, LabPart, announce};

use crate::{consent, images, install};

/// Where to.
#[derive(Args)]
pub struct Arguments {
    /// Registry and path that the images go below, such as registry.example/team. Docker must be logged in there.
    #[arg(long, value_name = "PREFIX")]
    push: String,
    /// Make an image of the pods for this node image as well, such as kindest/node:v1.33.1@sha256:…, so that clusters of that version pull nothing. May be
    /// given more than once.
    #[arg(long = "node-image", value_name = "IMAGE", value_parser = node_image)]
    node_images: Vec<NodeImage>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// A node image whose tag tells its version.
#[derive(Clone)]
struct NodeImage {
    version: String,
    reference: String,
}

fn node_image(reference: &str) -> Result<NodeImage, String> {
    let version = version_of_tag(reference).ok_or("it has no tag like v1.33.1, which tells its version")?;
    Ok(NodeImage { version, reference: reference.to_owned() })
}

/// Builds and pushes them, and says how to install them.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::open()?;
    consent::ask(
        "This builds Nestling's two images and pushes them to the registry that you named. It installs Debian packages that are missing (docker.io,\n\
         mmdebstrap and what building needs) and starts dockerd if none answers. Where no image registry answers it builds Kubernetes and kind's node\n\
         image from source. For each node image a kind cluster runs for half a minute. Disk: about 8 GB. Cold about 30 minutes, with caches about 4.",
        arguments.yes,
    )?;
    announce(&lab, LabPart::All);
    let paths = lab.build(LabPart::All)?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let built = images::build_release(&paths, &docker)?;
    let mut settings = Vec::new();
    for (key, name, image) in [("image", "nestling", &built.operator), ("nodeImage", "nestling-node", &built.node)] {
        let (repository, tag) = push(&docker, image, &arguments.push, name)?;
        settings.push(format!("--set {key}.repository={repository} --set {key}.tag={tag}"));
    }
    for NodeImage { version, reference } in &arguments.node_images {
        docker.run(&["pull", "--quiet", reference])?;
        let image = images::build_node_for(&lab, &paths, &docker, &built, (version, reference))?;
        let pushed = push(&docker, &image, &arguments.push, "nestling-node");
        docker.run(&["rmi", &image])?;
        let ((repository, tag), key) = (pushed?, install::key_of(version));
        settings.push(format!("--set nodeImages.{key}={reference} --set podImages.{key}={repository}:{tag}"));
    }
    println!("\nhelm install nestling charts/nestling --namespace nestling-system --create-namespace \\\n  {}", settings.join(" \\\n  "));
    stop_docker_if_unused(paths.cache())
}

/// Pushes an image below a prefix, under another name, and returns repository and tag.
fn push(docker: &Docker, image: &str, prefix: &str, name: &str) -> Result<(String, String)> {
    let repository = format!("{}/{name}", prefix.trim_end_matches('/'));
    let tag = image.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let reference = format!("{repository}:{tag}");
    note(format!("pushing {reference}"));
    docker.run(&["tag", image, &reference])?;
    let pushed = docker.run(&["push", "--quiet", &reference]);
    docker.run(&["rmi", &reference])?;
    pushed?;
    Ok((repository, tag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_versions() {
        for image in ["kindest/node:v1.33.1", "registry.example:5000/node:v1.33.1@sha256:00"] {
            assert_eq!(node_image(image).ok().map(|image| image.version).as_deref(), Some("v1.33.1"));
        }
        for image in ["registry.example:5000/node", "kindest/node:latest", "kindest/node@sha256:00"] {
            assert!(node_image(image).is_err());
        }
    }
}
