//! From nothing to Ready, to the first pod and names that resolve, and gone again: bare, nested, bare, nested.

use std::thread;

use anyhow::Result;
use nestling_lab::progress::note;

use super::app;
use super::bare::Bare;
use super::nested::{Nested, Size};
use super::report::{Report, Section, Side, Unit, WarmUp};
use super::setup::{QUIET, Setup};

const READY: &str = "Ready (bare: `kind create cluster --wait`)";
const ALL_READY: &str = "all nodes Ready";
const RUNNING: &str = "first app pod running";
const DNS: &str = "DNS answering";
const DELETED: &str = "deleted";

/// What is left of the time to Ready where the agent's stages are subtracted.
const OUTSIDE: &str = "before and after: operator, scheduler, kubelet, the word that it is Ready";

/// The first nested cluster of a run, which counts in no median.
///
/// # Errors
/// What does not come in time.
pub fn warm_up(setup: &Setup) -> Result<WarmUp> {
    note("the first nested cluster, which counts in no median");
    let images = setup.host.run(&["get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}"])?;
    let nested = Nested::apply(setup, "bench-first", 1, Size::Default)?;
    let seconds = nested.ready()?.seconds;
    nested.delete()?;
    Ok(WarmUp { seconds, image_present: images.contains(&setup.pod_image) })
}

/// Measures `runs` pairs of clusters with so many nodes each, the first of which is the control plane.
///
/// # Errors
/// What does not come in time.
pub fn measure(setup: &Setup, report: &mut Report, section: Section, nodes: usize, runs: u32) -> Result<()> {
    for run in 1..=runs {
        thread::sleep(QUIET);
        note(format!("{}: bare kind, {run} of {runs}", section.title()));
        bare(setup, report, section, nodes)?;
        thread::sleep(QUIET);
        note(format!("{}: nested, {run} of {runs}", section.title()));
        nested(setup, report, section, nodes)?;
    }
    Ok(())
}

fn bare(setup: &Setup, report: &mut Report, section: Section, nodes: usize) -> Result<()> {
    let (cluster, seconds, stages) = Bare::create(setup, 1, nodes)?;
    report.add(section, Side::Bare, READY, Unit::Seconds, seconds);
    for stage in &stages {
        report.add_stage(section, Side::Bare, &stage.name, stage.seconds);
    }
    let kubectl = cluster.kubectl();
    if nodes > 1 {
        // kind waits for control planes only.
        kubectl.run(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=5m"])?;
        report.add(section, Side::Bare, ALL_READY, Unit::Seconds, cluster.start().elapsed().as_secs_f64());
    }
    applications(report, section, Side::Bare, &app::start(&kubectl, cluster.start())?);
    report.add(section, Side::Bare, DELETED, Unit::Seconds, cluster.delete()?);
    Ok(())
}

fn nested(setup: &Setup, report: &mut Report, section: Section, nodes: usize) -> Result<()> {
    // Three nodes ask for a whole core, which a host with two has not to spare beside its own.
    let size = if nodes == 1 { Size::Default } else { Size::Small };
    let mut cluster = Nested::apply(setup, "bench", nodes, size)?;
    let ready = cluster.ready()?;
    report.add(section, Side::Nested, READY, Unit::Seconds, ready.seconds);
    if nodes > 1 {
        report.add(section, Side::Nested, ALL_READY, Unit::Seconds, ready.seconds);
    }
    for (name, seconds) in &ready.stages {
        report.add_stage(section, Side::Nested, name, *seconds);
    }
    let inside: f64 = ready.stages.iter().map(|(_, seconds)| seconds).sum();
    report.add_stage(section, Side::Nested, OUTSIDE, ready.seconds - inside);
    let kubectl = cluster.kubectl()?;
    applications(report, section, Side::Nested, &app::start(&kubectl, cluster.start())?);
    report.add(section, Side::Nested, DELETED, Unit::Seconds, cluster.delete()?);
    Ok(())
}

fn applications(report: &mut Report, section: Section, side: Side, times: &app::Times) {
    report.add(section, side, RUNNING, Unit::Seconds, times.running);
    report.add(section, side, DNS, Unit::Seconds, times.dns);
}
