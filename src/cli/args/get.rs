//! What `get` and `describe` take.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::{Form, Selection};

/// Arguments of `get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Names of KindClusters [default: all in the namespace]
    #[arg(value_name = "NAME", conflicts_with_all = ["selector", "all_namespaces"], value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Those with these labels, such as class=monday
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = NonEmptyStringValueParser::new())]
    pub selector: Option<String>,
    /// Those of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Form of the answer [default: a table]
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<Form>,
    /// Show each change as well, until interrupted
    #[arg(short, long, conflicts_with = "names")]
    pub watch: bool,
}

/// Arguments of `describe`.
#[derive(Args, Clone, Debug)]
pub struct DescribeArgs {
    /// Which clusters.
    #[command(flatten)]
    pub selection: Selection,
}
