//! What `freeze`, `stop` and `start` take.

use std::time::Duration;

use clap::Args;

use super::{Selection, duration};

/// Arguments of `freeze`, `stop` and `start`.
#[derive(Args, Clone, Debug)]
pub struct PowerArgs {
    /// Which clusters.
    #[command(flatten)]
    pub selection: Selection,
    /// Wait until it is so, at most this long
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub wait: Option<Duration>,
}
