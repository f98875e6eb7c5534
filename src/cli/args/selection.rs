//! Which objects a verb is about, and in what form it answers: the same for every verb.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

/// One, several or all KindClusters of a namespace: by name, by label, or all. Exactly one of the three is given.
#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Names of KindClusters
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Those with these labels, such as class=monday
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = NonEmptyStringValueParser::new())]
    pub selector: Option<String>,
    /// All in the namespace
    #[arg(long)]
    pub all: bool,
}

/// Form of an answer other than a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Form {
    /// The table with more columns
    Wide,
    /// The objects as JSON
    Json,
    /// The objects as YAML
    Yaml,
    /// kindcluster.nestling.dev/NAME, one a line
    Name,
}
