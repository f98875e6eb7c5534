//! The project's own tasks, run as `cargo xtask <task>` or `./dev <task>`.

mod bench;
mod consent;
mod demo;
mod generate;
mod images;
mod install;
mod lab;
mod previous;
mod publish;
mod reliability;
mod slice;
mod test;
mod told;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "./dev", bin_name = "./dev")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show a nested cluster coming up on a host cluster of its own.
    Demo(demo::Arguments),
    /// Test everything, as CI does.
    Test(test::Arguments),
    /// Build both images and push them to a registry.
    Images(publish::Arguments),
    /// Measure what clusters cost, beside bare kind: time, memory, CPU, disk.
    Bench(bench::Arguments),
    /// Write the generated files: CRD, chart, reference, examples.
    Gen {
        /// Write nothing; fail if something would change.
        #[arg(long)]
        check: bool,
    },
    /// Write the table of docs/reliability.md from the report of a soak.
    Reliability(reliability::Arguments),
    /// Build and run the lab: binaries, images, the host cluster.
    #[command(subcommand)]
    Lab(lab::Task),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Images(arguments) => publish::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Gen { check } => generate::run(check),
        Task::Reliability(arguments) => reliability::run(&arguments),
        Task::Lab(task) => lab::run(task),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // No backtrace of our own: the last lines are to tell what failed.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this, in the checkout.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
