//! The release before this commit, as far as there is one: the operator and pod images of the commit's first parent, and its chart.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use nestling_lab::command::output;
use nestling_lab::progress::note;
use nestling_lab::{Docker, LabPaths};

use crate::images::{self, Images};

/// What an upgrade begins from.
pub struct Previous {
    /// Its images.
    pub images: Images,
    /// Its chart.
    pub chart: PathBuf,
}

/// Checks it out beside what cargo builds, and builds it.
pub fn build(paths: &LabPaths, docker: &Docker) -> Result<Previous> {
    note("building the commit before this one");
    let checkout = crate::target().join("previous/checkout");
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(crate::root()));
    let place = checkout.to_string_lossy().into_owned();
    // Left by an earlier run, perhaps of another commit.
    let _ = git(&["worktree", "remove", "--force", &place]);
    git(&["worktree", "prune"])?;
    git(&["worktree", "add", "--detach", "--force", &place, "HEAD^1"])?;
    let built = crate::target().join("previous/target");
    let mut cargo = crate::cargo();
    cargo.current_dir(&checkout).env("CARGO_TARGET_DIR", &built).args(["build", "--locked", "--package", "nestling", "--bin", "nestling"]);
    images::run(&mut cargo)?;
    let images = images::pack(paths, docker, &built.join("debug/nestling"), &checkout.join("Dockerfile"))?;
    Ok(Previous { images, chart: checkout.join("charts/nestling") })
}
