//! What `kubeconfig` takes.

use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::Selection;

/// Arguments of `kubeconfig`.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct KubeconfigArgs {
    /// Which clusters.
    #[command(flatten)]
    pub selection: Selection,
    /// For clients outside of the host cluster
    #[arg(long, conflicts_with = "internal")]
    pub external: bool,
    /// For clients inside the host cluster [default: in a pod; elsewhere --external where there is such an endpoint]
    #[arg(long)]
    pub internal: bool,
    /// Print it, and change no file
    #[arg(long, group = "place")]
    pub stdout: bool,
    /// Write NAME.kubeconfig into this directory for each cluster, readable for its owner only
    #[arg(long, group = "place", value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
    /// Merge into this file [default: as kubectl does; see --kubeconfig]
    #[arg(long, group = "place", value_name = "FILE")]
    pub into: Option<PathBuf>,
    /// Name of the context, and of its cluster and user [default: kind-NAME]
    #[arg(long, conflicts_with_all = ["stdout", "out_dir"], value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub context_name: Option<String>,
    /// Make it the current context
    #[arg(long, conflicts_with_all = ["stdout", "out_dir"])]
    pub set_current: bool,
}
