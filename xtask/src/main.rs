//! The project's own tasks, run as `cargo xtask <task>`.

mod lab;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and run the lab: binaries, images, the host cluster.
    #[command(subcommand)]
    Lab(lab::Task),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Lab(task) => lab::run(task),
    }
}
