//! The project's own two images, from the one Dockerfile, on the lab's base images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use data_encoding::HEXLOWER;
use nestling_lab::progress::note;
use nestling_lab::{Docker, Lab, LabPaths, Part};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// References of the built images in the local Docker daemon.
pub struct Images {
    /// The operator's.
    pub operator: String,
    /// The pods'.
    pub node: String,
    /// The program in them.
    program: PathBuf,
    /// What they were made by.
    dockerfile: PathBuf,
}

/// Builds the program and both images; what has not changed is not built again.
pub fn build(paths: &LabPaths, docker: &Docker) -> Result<Images> {
    pack(paths, docker, &program(&[], "debug")?, &crate::root().join("Dockerfile"))
}

/// The same, with a program that is optimised.
pub fn build_release(paths: &LabPaths, docker: &Docker) -> Result<Images> {
    pack(paths, docker, &program(&["--release"], "release")?, &crate::root().join("Dockerfile"))
}

/// Both images with this program.
pub fn pack(paths: &LabPaths, docker: &Docker, program: &Path, dockerfile: &Path) -> Result<Images> {
    let mut hash = Sha256::new();
    for content in [fs::read(program)?, fs::read(dockerfile)?] {
        hash.update(content);
    }
    for text in [&paths.dind_base_image()?, &paths.operator_base_image()?, paths.key(Part::NodeStore)?, paths.key(Part::Kind)?] {
        hash.update(text);
    }
    let tag = &HEXLOWER.encode(&hash.finalize())[..12];
    let images = Images {
        operator: format!("nestling/operator:{tag}"),
        node: format!("nestling/node:{tag}"),
        program: program.to_owned(),
        dockerfile: dockerfile.to_owned(),
    };
    if docker.succeeds(&["image", "inspect", &images.operator, &images.node]) {
        note("the images are built already");
        return Ok(images);
    }
    let context = stage(paths, program, dockerfile, &paths.node_store_archive()?)?;
    build_target(paths, docker, context.path(), &OPERATOR, &images.operator)?;
    build_target(paths, docker, context.path(), &NODE, &images.node)?;
    Ok(images)
}

/// The pods' image for another version of Kubernetes, with a node image that Docker has. Made anew each time.
pub fn build_node_for(lab: &Lab, paths: &LabPaths, docker: &Docker, usual: &Images, (version, node_image): (&str, &str)) -> Result<String> {
    let image = format!("{}-{version}", usual.node);
    note(format!("unpacking {node_image}"));
    let out = tempfile::Builder::new().prefix("store-").tempdir_in(paths.cache().run_directory()?)?;
    let store = lab.make_store(docker, node_image, out.path())?;
    let context = stage(paths, &usual.program, &usual.dockerfile, &store)?;
    build_target(paths, docker, context.path(), &NODE, &image)?;
    Ok(image)
}

/// One of the images of the Dockerfile: its name there, and what it starts from.
struct Target(&'static str, Part);

const OPERATOR: Target = Target("operator", Part::OperatorBase);
const NODE: Target = Target("node", Part::DindBase);

/// The directory that the Dockerfile is built in.
fn stage(paths: &LabPaths, program: &Path, dockerfile: &Path, store: &Path) -> Result<TempDir> {
    let context = tempfile::Builder::new().prefix("images-").tempdir_in(paths.cache().run_directory()?)?;
    let staged = |name: &str| context.path().join(name);
    fs::create_dir_all(staged("bin"))?;
    run(Command::new("strip").arg("-o").arg(staged("bin/nestling")).arg(program))?;
    fs::copy(paths.bin("kind")?, staged("bin/kind"))?;
    fs::hard_link(store, staged("store.tar")).or_else(|_| fs::copy(store, staged("store.tar")).map(drop))?;
    fs::copy(dockerfile, staged("Dockerfile"))?;
    Ok(context)
}

fn build_target(paths: &LabPaths, docker: &Docker, context: &Path, &Target(target, base): &Target, image: &str) -> Result<()> {
    note(format!("building the image {image}"));
    let base_image = paths.load(docker, base)?;
    let directory = context.to_string_lossy();
    // The old builder builds all stages above the wanted one, and the other base may not be there.
    let arguments = ["OPERATOR_BASE", "NODE_BASE"].map(|name| format!("{name}={base_image}"));
    docker.run(&["build", "-q", "--target", target, "--build-arg", &arguments[0], "--build-arg", &arguments[1], "-t", image, &directory])?;
    Ok(())
}

/// Builds `nestling` without the hooks for faults. `directory` is where cargo puts what it builds with these arguments.
fn program(arguments: &[&str], directory: &str) -> Result<PathBuf> {
    note("building nestling");
    run(crate::cargo().args(["build", "--locked", "--package", "nestling", "--bin", "nestling"]).args(arguments))?;
    Ok(crate::target().join(directory).join("nestling"))
}

/// Runs a command that says by itself what it does.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
