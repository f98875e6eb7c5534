//! A load balancer and an Ingress controller that people install in their clusters: MetalLB and Traefik, unchanged. No node has their images: they are pulled
//! from the local registry, under the names that they are published by.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::{self, Image};
use crate::go;
use crate::images::ARCHIVE;
use crate::lab::{LabPaths, modules};
use crate::layer::LayerBuilder;
use crate::part::Part;
use crate::workshop::{Workshop, image_reference};

const METALLB: &str = "go.universe.tf/metallb";
const TRAEFIK: &str = "github.com/traefik/traefik/v3";

/// What MetalLB's authors give to `kubectl apply`, with the speaker that needs no FRR; in their module and in the part of the controller's image.
const MANIFEST: &str = "metallb-native.yaml";

/// The image of MetalLB's controller, which gives addresses to Services, and what installs MetalLB.
pub fn make_metallb_controller(workshop: &Workshop) -> Result<()> {
    let module = go::module_directory(workshop.modules, "metallb", METALLB)?;
    let manifest = module.join("config/manifests").join(MANIFEST);
    fs::copy(&manifest, workshop.out.join(MANIFEST)).with_context(|| format!("cannot copy {}", manifest.display()))?;
    make(workshop, Part::MetallbController, Part::Metallb, "controller")
}

/// The image of MetalLB's speaker, which answers for these addresses on the network of the nodes.
pub fn make_metallb_speaker(workshop: &Workshop) -> Result<()> {
    make(workshop, Part::MetallbSpeaker, Part::Metallb, "speaker")
}

/// Traefik's image.
pub fn make_traefik(workshop: &Workshop) -> Result<()> {
    make(workshop, Part::TraefikImage, Part::Traefik, "traefik")
}

/// An image with one program, where the published one has it, too.
fn make(workshop: &Workshop, image: Part, programs: Part, program: &str) -> Result<()> {
    let path = workshop.out.join("layer.tar");
    let at = format!("/{program}");
    // No Debian root below it, which would have one.
    let layer = LayerBuilder::default().directory("/tmp").file(&at, workshop.program(programs, program)?, 0o755).write(path.clone())?;
    let name = image.image().with_context(|| format!("{} is no image", image.name()))?;
    archive::write(&workshop.out.join(ARCHIVE), &[Image::program(&image_reference(name, workshop.key), vec![layer], &at)])?;
    Ok(fs::remove_file(path)?)
}

/// The registry, repository and tag by which an image is published.
///
/// # Errors
/// If it is none of these images, or its module does not say which version it is.
pub fn published_name(part: Part) -> Result<String> {
    let (repository, module, path) = match part {
        Part::MetallbController => ("quay.io/metallb/controller", "metallb", METALLB),
        Part::MetallbSpeaker => ("quay.io/metallb/speaker", "metallb", METALLB),
        Part::TraefikImage => ("docker.io/library/traefik", "traefik", TRAEFIK),
        other => anyhow::bail!("{} is published by nobody", other.name()),
    };
    Ok(format!("{repository}:{}", version(&modules(), module, path)?))
}

/// What installs MetalLB, as its authors give it: `kubectl apply -f`.
///
/// # Errors
/// If MetalLB was not asked for when the lab was built.
pub fn metallb_manifest(paths: &LabPaths) -> Result<PathBuf> {
    Ok(paths.part(Part::MetallbController)?.join(MANIFEST))
}

fn version(modules: &Path, module: &str, path: &str) -> Result<String> {
    let go_mod = modules.join(module).join("go.mod");
    go::required_version(&fs::read_to_string(&go_mod).with_context(|| format!("cannot read {}", go_mod.display()))?, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_their_published_names() {
        let name = |part| published_name(part).unwrap();
        let (controller, speaker) = (name(Part::MetallbController), name(Part::MetallbSpeaker));
        let version = controller.strip_prefix("quay.io/metallb/controller:v0.").unwrap();
        assert_eq!(speaker, format!("quay.io/metallb/speaker:v0.{version}"));
        assert!(name(Part::TraefikImage).starts_with("docker.io/library/traefik:v3."));
        assert!(published_name(Part::NodeImage).is_err());
    }

    #[test]
    fn the_documented_manifest_is_of_the_version_that_is_tried() {
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ingress/traefik.yaml")).unwrap();
        assert!(manifest.contains(&format!("image: {}\n", published_name(Part::TraefikImage).unwrap())));
    }
}
