//! One run: the host cluster, the sections in their order, the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use nestling_lab::command::output;
use nestling_lab::host::HostOptions;
use nestling_lab::progress::note;
use nestling_lab::{Docker, HostCluster, Lab, LabPart, announce};

use super::machine::Facts;
use super::report::{Failure, Report, Section};
use super::rest::Plan;
use super::setup::Setup;
use super::{bare, create, page, power, rest, table, ten};
use crate::{consent, images};

/// Name of the host cluster of the benchmark.
const HOST: &str = "nestling-bench";

/// How clusters are measured.
#[derive(Args)]
// clap names groups by their structs, and another one is called so.
#[group(id = "clusters-arguments")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Arguments {
    /// How often a pair of clusters is made, and put to sleep.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Clusters at once for memory, CPU and disk at rest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    clusters: u32,
    /// Only these sections.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Leave out ten clusters at once.
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// Write the table into docs/performance.md, in place of the one that is there.
    #[arg(long)]
    write: bool,
    /// Leave the host cluster up for the next run.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier run with --keep has left.
    #[arg(long)]
    down: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Arguments {
    fn sections(&self) -> Vec<Section> {
        let chosen = |section: &Section| if self.only.is_empty() { !(self.quick && *section == Section::Ten) } else { self.only.contains(section) };
        Section::ALL.into_iter().filter(chosen).collect()
    }
}

/// Measures, prints, and leaves a report in `target/bench`.
///
/// # Errors
/// What could not be measured. What could is in the report nevertheless.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::open()?;
    if arguments.down {
        bare::remove_left(&Docker::ensure(lab.cache(), None)?)?;
        return HostCluster::down(&lab, HOST);
    }
    consent::ask(
        "This brings up a host cluster like `./dev demo`, makes clusters on it and beside it, by plain kind, and removes all of it again.\n\
         All sections take about 40 minutes on two cores; nothing else should run meanwhile. It judges nothing.",
        arguments.yes,
    )?;
    announce(&lab, LabPart::All);
    let paths = lab.build(LabPart::All)?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let images = images::build_release(&paths, &docker)?;
    let mut report = empty(arguments, &docker)?;
    let file = file()?;
    let host = HostCluster::up(&paths, &HostOptions { name: HOST.to_owned(), ..HostOptions::default() })?;
    let measured = Setup::prepare(paths, &host, &images).and_then(|setup| measure(arguments, &setup, &mut report, &file));
    let down = if arguments.keep { Ok(()) } else { HostCluster::down(&lab, HOST) };

    report.write(&file)?;
    println!("{}\nwritten to {}", table::plain(&report), file.display());
    measured?;
    if arguments.write {
        page::write(std::slice::from_ref(&report))?;
    }
    down?;
    if !report.failures.is_empty() {
        let failures: Vec<_> = report.failures.iter().map(|failure| format!("{}: {}", failure.section.title(), failure.error)).collect();
        bail!("not everything could be measured:\n{}", failures.join("\n"));
    }
    Ok(())
}

/// A section that fails costs its own figures only; the others are measured, and what there is is written after each.
fn measure(arguments: &Arguments, setup: &Setup, report: &mut Report, file: &Path) -> Result<()> {
    report.warm_up = Some(create::warm_up(setup)?);
    let minute = Duration::from_mins(1);
    let plan = Plan { clusters: arguments.clusters, settle: minute, window: minute };
    for section in report.sections.clone() {
        let done = match section {
            Section::Create => create::measure(setup, report, section, 1, arguments.runs),
            Section::ThreeNodes => create::measure(setup, report, section, 3, arguments.runs),
            Section::Rest => rest::measure(setup, report, plan),
            Section::Power => power::measure(setup, report, arguments.runs),
            Section::Ten => ten::measure(setup, report, plan),
        };
        if let Err(error) = done {
            note(format!("{}: {error:#}", section.title()));
            report.failures.push(Failure { section, error: format!("{error:#}") });
        }
        report.write(file)?;
    }
    Ok(())
}

fn empty(arguments: &Arguments, docker: &Docker) -> Result<Report> {
    let git = |words: &[&str]| output(Command::new("git").args(words).current_dir(crate::root()));
    Ok(Report {
        command: typed(std::env::args().skip(1)),
        commit: git(&["rev-parse", "HEAD"]).context("the benchmark names the commit that it measures")?,
        changed: !git(&["status", "--porcelain"])?.is_empty(),
        date: Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        machine: Facts::look(docker)?,
        sections: arguments.sections(),
        warm_up: None,
        figures: Vec::new(),
        stages: Vec::new(),
        programs: Vec::new(),
        failures: Vec::new(),
    })
}

/// What somebody types to have the same measured.
fn typed(arguments: impl Iterator<Item = String>) -> String {
    let kept = arguments.filter(|argument| !["--yes", "--write", "--keep"].contains(&argument.as_str()));
    ["./dev".to_owned()].into_iter().chain(kept).collect::<Vec<_>>().join(" ")
}

fn file() -> Result<PathBuf> {
    let directory = crate::target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory.join(format!("clusters-{}.json", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"))))
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

    fn sections(words: &[&str]) -> Vec<Section> {
        Line::try_parse_from([&["bench"], words].concat()).unwrap().arguments.sections()
    }

    #[test]
    fn sections_run_in_their_own_order() {
        assert_eq!(sections(&[]), Section::ALL);
        assert_eq!(sections(&["--quick"]), [Section::Create, Section::ThreeNodes, Section::Rest, Section::Power]);
        assert_eq!(sections(&["--only", "rest,create"]), [Section::Create, Section::Rest]);
        assert!(Line::try_parse_from(["bench", "--quick", "--only", "ten"]).is_err());
        assert!(Line::try_parse_from(["bench", "--runs", "0"]).is_err());
    }

    #[test]
    fn what_was_typed_is_told_without_what_measures_nothing() {
        let typed = typed(["bench", "--yes", "--runs", "5", "--write"].map(str::to_owned).into_iter());
        assert_eq!(typed, "./dev bench --runs 5");
    }
}
