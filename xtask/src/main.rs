//! The project's own tasks: `cargo xtask <task>`.

mod r#gen;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes everything that is generated from the source: CRDs, examples, reference
    Gen {
        /// Writes nothing; fails if something differs
        #[arg(long)]
        check: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match CommandLine::parse().task {
        Task::Gen { check } => r#gen::run(check),
    }
}
