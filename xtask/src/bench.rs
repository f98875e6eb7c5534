//! `cargo xtask bench`: what clusters cost, beside bare kind, in one run on one machine. Judges nothing.

mod app;
mod bare;
mod cgroup;
mod create;
mod disk;
mod kubectl;
mod machine;
mod memory;
mod nested;
mod operator;
mod page;
mod power;
mod report;
mod rest;
mod run;
mod setup;
mod table;
mod ten;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use self::report::Report;

/// What to measure.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    clusters: run::Arguments,
}

/// What there is besides clusters.
#[derive(Subcommand)]
enum Part {
    /// Measure what the operator costs with many clusters; no container is started.
    Operator(operator::Arguments),
    /// Write the tables of docs/performance.md from the reports of earlier runs; each run keeps a table of its own.
    Table(TableArguments),
}

/// Which runs.
#[derive(Args)]
struct TableArguments {
    /// Reports that runs have left in target/bench.
    #[arg(required = true)]
    reports: Vec<PathBuf>,
}

/// Measures, or writes down what was measured.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.part {
        None => run::run(&arguments.clusters),
        Some(Part::Operator(operator)) => operator::run(operator),
        Some(Part::Table(table)) => {
            let reports = table.reports.iter().map(|path| Report::read(path)).collect::<Result<Vec<_>>>()?;
            page::write(&reports)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn clusters_are_measured_unless_something_else_is_named() {
        let parse = |words: &[&str]| Line::try_parse_from([&["bench"], words].concat());
        assert!(parse(&["--runs", "2"]).unwrap().arguments.part.is_none());
        assert!(matches!(parse(&["table", "a.json", "b.json"]).unwrap().arguments.part, Some(Part::Table(table)) if table.reports.len() == 2));
        assert!(parse(&["table"]).is_err(), "no report, no table");
        assert!(parse(&["--runs", "2", "table", "a.json"]).is_err());
    }
}
