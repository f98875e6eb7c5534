//! What `wait` takes.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Selection, duration};

/// Exit codes of `wait`, as its help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  the condition is true for the newest spec
  1  the question could not be asked: wrong usage, no connection, no right
  2  the cluster is stalled: it does not get there without a change
  3  the time is over
  4  there is no such object, or it is being deleted
Of several clusters that do not get there, the highest counts.";

/// Arguments of `wait`.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// Which clusters.
    #[command(flatten)]
    pub selection: Selection,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t = Goal::Ready, value_name = "CONDITION")]
    pub goal: Goal,
    /// How long to wait, such as 90s, 15m or 1h30m
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// A condition that can be waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Goal {
    /// All nodes are ready and the kubeconfig is published
    #[value(name = "Ready")]
    Ready,
    /// The API server answers; nodes may still be on their way
    #[value(name = "ControlPlaneReady")]
    ControlPlaneReady,
    /// The cluster is frozen or stopped, as its spec says
    #[value(name = "Suspended")]
    Suspended,
}
