use clap::Args;

use super::ReachArgs;

/// Exit codes of `node-shell`, as its help shows them.
pub const EXIT_CODES: &str = "\
Exit codes: those of the command, or of the shell. Before it runs:
  1    there is no way to the node
  2    the cluster is stalled: it does not get ready without a change
  3    the relay pod, the API server or the node has not answered in time
  4    there is no such object or node
  130  Ctrl-C; after other signals 128 and their number";

/// Arguments of `node-shell`.
#[derive(Args, Clone, Debug)]
pub struct NodeShellArgs {
    /// Name of the KindCluster
    pub name: String,
    /// Name of the node, as `kubectl get nodes` lists it
    pub node: String,
    /// How the cluster is reached
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Command to run instead of a shell, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}
