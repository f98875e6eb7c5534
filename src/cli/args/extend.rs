//! What `extend` takes.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use k8s_openapi::jiff::Timestamp;

/// Arguments of `extend`. Names and the duration stand in one list, since what is selected by labels has no names before it.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("more").required(true).multiple(true).args(["words", "until"]))]
pub struct ExtendArgs {
    /// Names of KindClusters and, unless there is --until, how much longer they live, such as `demo 2h`
    #[arg(value_name = "NAME… DURATION", value_parser = NonEmptyStringValueParser::new())]
    pub words: Vec<String>,
    /// Those with these labels, such as class=monday
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "all")]
    pub selector: Option<String>,
    /// All in the namespace
    #[arg(long)]
    pub all: bool,
    /// When they end, such as 2027-01-31T18:00:00Z
    #[arg(long, value_parser = time, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time with a zone, such as 2027-01-31T18:00:00Z"))
}
