//! `cargo xtask images`: the project's two images, in a registry of the user's.

use anyhow::Result;
use clap::Args;
use nestling_lab::progress::note;
use nestling_lab::{Docker, Lab, LabPart, announce};

use crate::{consent, images};

/// Where to.
#[derive(Args)]
pub struct Arguments {
    /// Registry and path that the images go below, such as registry.example/team. Docker must be logged in there.
    #[arg(long, value_name = "PREFIX")]
    push: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// Builds and pushes them, and says how to install them.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::open()?;
    consent::ask(
        "This builds Nestling's two images and pushes them to the registry that you named. It installs Debian packages that are missing (docker.io,\n\
         mmdebstrap and what building needs) and starts dockerd if none answers. Where no image registry answers it builds Kubernetes and kind's node\n\
         image from source. Disk: about 8 GB. Cold about 30 minutes, with caches about 4.",
        arguments.yes,
    )?;
    announce(&lab, LabPart::All);
    let paths = lab.build(LabPart::All)?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let built = images::build_release(&paths, &docker)?;
    let mut settings = Vec::new();
    for (key, name, image) in [("image", "nestling", &built.operator), ("nodeImage", "nestling-node", &built.node)] {
        let repository = format!("{}/{name}", arguments.push.trim_end_matches('/'));
        let tag = image.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let reference = format!("{repository}:{tag}");
        note(format!("pushing {reference}"));
        docker.run(&["tag", image, &reference])?;
        let pushed = docker.run(&["push", "--quiet", &reference]);
        docker.run(&["rmi", &reference])?;
        pushed?;
        settings.push(format!("--set {key}.repository={repository} --set {key}.tag={tag}"));
    }
    println!("\nhelm install nestling charts/nestling --namespace nestling-system --create-namespace \\\n  {}", settings.join(" \\\n  "));
    Docker::stop_if_ours(paths.cache())
}
