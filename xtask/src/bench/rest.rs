//! Memory, CPU and disk of clusters that do nothing: some of bare kind's at once, then as many nested ones.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use nestling_lab::progress::note;

use super::bare::Bare;
use super::cgroup::{Groups, cpu_over};
use super::disk;
use super::machine::available_mib;
use super::memory::Memory;
use super::nested::{Nested, Size};
use super::report::{Report, Section, Side, Unit};
use super::setup::{QUIET, Setup};

const KIB_PER_MIB: f64 = 1024.0;
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;
const BYTES_PER_MB: f64 = 1e6;

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clusters at once.
    pub clusters: u32,
    /// Time after the last one is ready, so that what starts late has started.
    pub settle: Duration,
    /// Time over which CPU is counted.
    pub window: Duration,
}

/// Measures bare kind's clusters, and then nested ones.
///
/// # Errors
/// What does not come in time, or cannot be looked at.
pub fn measure(setup: &Setup, report: &mut Report, plan: Plan) -> Result<()> {
    bare(setup, report, plan)?;
    nested(setup, report, plan)
}

fn bare(setup: &Setup, report: &mut Report, plan: Plan) -> Result<()> {
    let (mut clusters, mut groups) = (Vec::new(), Vec::new());
    let before = available()?;
    for number in 1..=plan.clusters {
        note(format!("at rest: bare kind, {number} of {}", plan.clusters));
        let (cluster, _, _) = Bare::create(setup, number, 1)?;
        groups.push(cluster.groups()?);
        clusters.push(cluster);
        alone(report, Side::Bare, &groups, plan)?;
    }
    together(report, Side::Bare, &groups, before, plan)?;
    for cluster in &clusters {
        add_disk(report, Side::Bare, disk::of_container(setup, &cluster.container()?)?);
    }
    clusters.into_iter().try_for_each(|cluster| cluster.delete().map(drop))
}

fn nested(setup: &Setup, report: &mut Report, plan: Plan) -> Result<()> {
    let (mut clusters, mut groups) = (Vec::new(), Vec::new());
    let before = available()?;
    for number in 1..=plan.clusters {
        note(format!("at rest: nested, {number} of {}", plan.clusters));
        let cluster = Nested::apply(setup, &format!("bench-{number}"), 1, Size::Small)?;
        cluster.ready()?;
        groups.push(cluster.groups()?);
        clusters.push(cluster);
        alone(report, Side::Nested, &groups, plan)?;
    }
    together(report, Side::Nested, &groups, before, plan)?;
    for cluster in &clusters {
        add_disk(report, Side::Nested, disk::of_pod(setup, &cluster.pod()?)?);
    }
    clusters.into_iter().try_for_each(|cluster| cluster.delete().map(drop))
}

/// Memory of the first cluster before there is a second one.
fn alone(report: &mut Report, side: Side, groups: &[Groups], plan: Plan) -> Result<()> {
    let [group] = groups else { return Ok(()) };
    thread::sleep(plan.settle);
    let memory = Memory::of(&group.processes()?)?.all;
    report.add(Section::Rest, side, "memory (PSS), the only one", Unit::Mebibytes, mebibytes(memory.total));
    Ok(())
}

fn together(report: &mut Report, side: Side, groups: &[Groups], before: f64, plan: Plan) -> Result<()> {
    let one_of = format!("memory (PSS), one of {}", plan.clusters);
    thread::sleep(plan.settle);
    note(format!("at rest: {} s of doing nothing", plan.window.as_secs()));
    for used in cpu_over(groups, plan.window)? {
        report.add(Section::Rest, side, "CPU", Unit::MilliCpu, used);
    }
    for group in groups {
        let memory = Memory::of(&group.processes()?)?;
        let mut add = |what: &str, value| report.add(Section::Rest, side, what, Unit::Mebibytes, value);
        add(&one_of, mebibytes(memory.all.total));
        add("of it the processes' own", mebibytes(memory.all.anonymous));
        add("of it programs and libraries", mebibytes(memory.all.file));
        add("memory charged by the kernel (working set)", bytes(group.working_set()?) / BYTES_PER_MIB);
        for (name, kibibytes) in &memory.programs {
            report.add_program(side, name, mebibytes(*kibibytes));
        }
    }
    let less = (before - available()?) / f64::from(plan.clusters);
    report.add(Section::Rest, side, "memory that the machine has less, per cluster", Unit::Mebibytes, less);
    Ok(())
}

/// Available memory in MiB, once what was there before has gone.
fn available() -> Result<f64> {
    thread::sleep(QUIET);
    Ok(bytes(available_mib()?))
}

fn add_disk(report: &mut Report, side: Side, used: u64) {
    report.add(Section::Rest, side, "disk of its own", Unit::Megabytes, bytes(used) / BYTES_PER_MB);
}

/// Memory of processes.
pub fn mebibytes(kibibytes: u64) -> f64 {
    bytes(kibibytes) / KIB_PER_MIB
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are more than any machine has")]
fn bytes(count: u64) -> f64 {
    count as f64
}
