//! What `doctor` takes.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::duration;

/// Exit codes of `doctor`, as its help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  clusters run on every node; there may be warnings
  1  the question could not be asked: wrong usage, no connection, no right
  2  some node cannot run clusters";

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Nodes to look at [default: all with Linux]
    pub nodes: Vec<String>,
    /// Image of the clusters' pods [default: the operator's]
    #[arg(long)]
    pub image: Option<String>,
    /// Namespace of the clusters [default: the operator's, or nestling-clusters]
    #[arg(long, value_name = "NAME")]
    pub clusters_namespace: Option<String>,
    /// Secret in that namespace with which the image is pulled; may be given more than once
    #[arg(long = "pull-secret", value_name = "NAME")]
    pub pull_secrets: Vec<String>,
    /// Take cgroup v1 for a warning [default: as the operator does]
    #[arg(long)]
    pub allow_cgroup_v1: bool,
    /// How long to wait for a node
    #[arg(long, default_value = "3m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}
