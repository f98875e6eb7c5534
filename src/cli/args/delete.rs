//! What `delete` takes.

use std::time::Duration;

use clap::{ArgAction, Args};

use super::{Selection, duration};

/// Arguments of `delete`.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// Which clusters.
    #[command(flatten)]
    pub selection: Selection,
    /// Wait until nothing of it is left
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "BOOL")]
    pub wait: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Take it for done where there is no such cluster
    #[arg(long)]
    pub ignore_not_found: bool,
}
