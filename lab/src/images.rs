//! The small images: each a Debian root or one program, and the pause program itself.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::archive::{self, Image};
use crate::command::output;
use crate::go;
use crate::layer::LayerBuilder;
use crate::part::Part;
use crate::workshop::{Workshop, image_reference};

/// The file name of an image archive in its part's directory.
pub const ARCHIVE: &str = "image.tar";

const REGISTRY_CONFIG: &str = "version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: /var/lib/registry}
  delete: {enabled: true}
http: {addr: \":5000\"}
";

/// Compiles the pause program of the Kubernetes module.
pub fn make_pause(workshop: &Workshop) -> Result<()> {
    let kubernetes = go::module_directory(workshop.modules, "kubernetes", "k8s.io/kubernetes")?;
    let bin = workshop.out.join("bin");
    fs::create_dir_all(&bin)?;
    output(
        Command::new("gcc")
            .args(["-Os", "-static", "-s", "-Wall", "-DVERSION=lab", "-o"])
            .arg(bin.join("pause"))
            .arg(kubernetes.join("build/pause/linux/pause.c")),
    )
    .map(drop)
}

/// The local registry's image.
pub fn make_registry(workshop: &Workshop) -> Result<()> {
    let layer = LayerBuilder::default()
        .file("/usr/local/bin/registry", workshop.program(Part::Registry, "registry")?, 0o755)
        .text("/etc/registry.yml", REGISTRY_CONFIG, 0o644)
        .directory("/var/lib/registry")
        .write(workshop.out.join("layer.tar"))?;
    let mut image = Image::program(&name(workshop, Part::RegistryImage)?, vec![layer], "/usr/local/bin/registry");
    image.entrypoint.extend(["serve", "/etc/registry.yml"].map(str::to_owned));
    archive::write(&workshop.out.join(ARCHIVE), &[image])?;
    Ok(fs::remove_file(workshop.out.join("layer.tar"))?)
}

/// The image that the node pod's image starts from.
pub fn make_dind_base(workshop: &Workshop) -> Result<()> {
    let image = Image::program(&name(workshop, Part::DindBase)?, vec![workshop.root(Part::DindRoot)?], "");
    archive::write(&workshop.out.join(ARCHIVE), &[image])
}

/// The image that the operator's image starts from.
pub fn make_operator_base(workshop: &Workshop) -> Result<()> {
    let mut image = Image::program(&name(workshop, Part::OperatorBase)?, vec![workshop.root(Part::OperatorRoot)?], "");
    image.user = Some("65532:65532".to_owned());
    archive::write(&workshop.out.join(ARCHIVE), &[image])
}

fn name(workshop: &Workshop, part: Part) -> Result<String> {
    let image = part.image().with_context(|| format!("{} is no image", part.name()))?;
    Ok(image_reference(image, workshop.key))
}
