use clap::Args;

use super::ReachArgs;

/// Exit codes of `load`, as its help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    every node has every image
  1    some node does not, or there is no way to the cluster
  2    the cluster is stalled: it does not get ready without a change
  3    the relay pod, the API server or a node has not answered in time
  4    there is no such object, or it is being deleted
  130  Ctrl-C; after other signals 128 and their number";

/// Arguments of `load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Name of the KindCluster
    pub name: String,
    /// File with images, as `docker save` writes it or an OCI layout in a tar archive, also gzipped; `-` for standard input; or an image of the local
    /// Docker
    #[arg(required = true, value_name = "ARCHIVE|IMAGE")]
    pub images: Vec<String>,
    /// Load only into these nodes, separated by commas [default: all]
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// How the cluster is reached
    #[command(flatten)]
    pub reach: ReachArgs,
}
