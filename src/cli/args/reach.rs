use std::time::Duration;

use clap::Args;

use super::duration;

/// How a cluster is reached that is not exposed.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Relay pod, for clusters that are not exposed")]
pub struct ReachArgs {
    /// Image of the relay pod [default: the operator's]
    #[arg(long, value_name = "IMAGE")]
    pub relay_image: Option<String>,
    /// Secret in your namespace with which that image is pulled; may be given more than once
    #[arg(long = "relay-pull-secret", value_name = "NAME")]
    pub relay_pull_secrets: Vec<String>,
    /// How long to wait for the relay pod to run
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    pub relay_timeout: Duration,
}
