//! What `extend` takes.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use k8s_openapi::jiff::Timestamp;

use super::duration;

/// Arguments of `extend`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("end").required(true).args(["by", "until"]))]
pub struct ExtendArgs {
    /// Name of the KindCluster
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// How much longer it lives, such as 2h
    #[arg(value_parser = duration, value_name = "DURATION")]
    pub by: Option<Duration>,
    /// When it ends, such as 2027-01-31T18:00:00Z
    #[arg(long, value_parser = time, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time with a zone, such as 2027-01-31T18:00:00Z"))
}
