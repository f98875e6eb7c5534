use std::path::PathBuf;

use clap::Args;

use super::ReachArgs;

/// Exit codes of `connect`, as its help shows them.
pub const CONNECT_EXIT_CODES: &str = "\
Exit codes:
  1    there is no way to the cluster: it is not ready, or something keeps the relay pod from running
  2    the cluster is stalled: it does not get ready without a change
  3    the relay pod or the API server has not answered in time
  4    there is no such object, or it is being deleted
  130  Ctrl-C; after other signals 128 and their number";

/// Exit codes of `shell`, as its help shows them.
pub const SHELL_EXIT_CODES: &str = "\
Exit codes: those of the command, or of the shell; 128 and its number if a signal has ended it. Before it runs:
  1    there is no way to the cluster: it is not ready, or something keeps the relay pod from running
  2    the cluster is stalled: it does not get ready without a change
  3    the relay pod or the API server has not answered in time
  4    there is no such object, or it is being deleted
  126  the command cannot be run
  127  there is no such command";

/// Arguments of `connect`.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Name of the KindCluster
    pub name: String,
    /// Listen on this port of 127.0.0.1 [default: one that is free, or none where the cluster is exposed]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Write the kubeconfig to this file instead of a temporary one; it is removed at the end
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How it is reached
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// Arguments of `shell`.
#[derive(Args, Clone, Debug)]
pub struct ShellArgs {
    /// Name of the KindCluster
    pub name: String,
    /// How it is reached
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Command to run instead of a shell, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}
