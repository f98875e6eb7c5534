//! What `kubeconfig` takes.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `kubeconfig`.
#[derive(Args, Clone, Debug)]
pub struct KubeconfigArgs {
    /// Name of the KindCluster
    pub name: String,
    /// The kubeconfig for clients outside of the host cluster
    #[arg(long)]
    pub external: bool,
    /// Write to this file, readable for its owner only, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
