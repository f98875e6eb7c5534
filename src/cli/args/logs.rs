use std::path::PathBuf;

use clap::Args;

/// Exit codes of `logs`, as its help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  1  the logs cannot be read
  4  there is no such object, no logs of it, or no such file in them";

/// Arguments of `logs`.
#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Name of the KindCluster
    pub name: String,
    /// Files to print; --list names them [default: agent.log]
    #[arg(value_name = "FILE", conflicts_with_all = ["list", "extract"])]
    pub files: Vec<String>,
    /// List the files instead, with their sizes in bytes
    #[arg(long, conflicts_with = "extract")]
    pub list: bool,
    /// Write all files to this directory instead, which is made, or is empty
    #[arg(long, value_name = "DIRECTORY")]
    pub extract: Option<PathBuf>,
}
