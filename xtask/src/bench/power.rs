//! Frozen and stopped, and back. Bare kind's node is paused, unpaused, stopped and started by Docker.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use k8s_openapi::jiff::Timestamp;
use nestling_lab::progress::note;

use super::app;
use super::bare::{Bare, nodes_ready_since};
use super::kubectl::{Kubectl, Was};
use super::nested::{Nested, Size};
use super::report::{Report, Section, Side, Unit};
use super::setup::Setup;

/// How long a cluster is left to settle, and sleeps.
const SETTLE: Duration = Duration::from_secs(30);
const ASLEEP: Duration = Duration::from_secs(10);

/// Most time for a cluster to come back.
const LIMIT: Duration = Duration::from_mins(5);

/// Seconds since the start, until what is named.
struct Back {
    api: f64,
    ready: f64,
    pod: f64,
}

/// Measures one bare cluster and one nested one, by turns.
///
/// # Errors
/// What does not come in time.
pub fn measure(setup: &Setup, report: &mut Report, runs: u32) -> Result<()> {
    note("asleep and back: a bare cluster and a nested one");
    let (bare, _, _) = Bare::create(setup, 1, 1)?;
    let outside = bare.kubectl();
    app::start(&outside, bare.start())?;
    let mut nested = Nested::apply(setup, "bench-power", 1, Size::Default)?;
    nested.ready()?;
    let inside = nested.kubectl()?;
    app::start(&inside, nested.start())?;
    thread::sleep(SETTLE);
    for run in 1..=runs {
        note(format!("asleep and back, {run} of {runs}"));
        let pod = format!("new-{run}");
        frozen_bare(report, &bare, &outside)?;
        frozen_nested(report, &nested, &inside)?;
        stopped_bare(report, &bare, &outside, &pod)?;
        thread::sleep(SETTLE);
        stopped_nested(report, &nested, &inside, &pod)?;
        thread::sleep(SETTLE);
    }
    nested.delete()?;
    bare.delete().map(drop)
}

fn frozen_bare(report: &mut Report, bare: &Bare, kubectl: &Kubectl) -> Result<()> {
    let frozen = bare.docker("pause")?;
    thread::sleep(ASLEEP);
    let start = Instant::now();
    bare.docker("unpause")?;
    kubectl.api_answers(Was::Frozen, LIMIT)?;
    add_frozen(report, Side::Bare, frozen, start.elapsed().as_secs_f64());
    Ok(())
}

fn frozen_nested(report: &mut Report, nested: &Nested, kubectl: &Kubectl) -> Result<()> {
    let frozen = nested.suspend("Frozen")?;
    thread::sleep(ASLEEP);
    let start = Instant::now();
    nested.order("Running")?;
    kubectl.api_answers(Was::Frozen, LIMIT)?;
    add_frozen(report, Side::Nested, frozen, start.elapsed().as_secs_f64());
    nested.wait("Ready=True", "5m")
}

fn add_frozen(report: &mut Report, side: Side, frozen: f64, api: f64) {
    report.add(Section::Power, side, "freeze (bare: `docker pause`)", Unit::Seconds, frozen);
    report.add(Section::Power, side, "thaw, until the API answers", Unit::Seconds, api);
}

fn stopped_bare(report: &mut Report, bare: &Bare, kubectl: &Kubectl, pod: &str) -> Result<()> {
    let stopped = bare.docker("stop")?;
    thread::sleep(ASLEEP);
    let (start, since) = (Instant::now(), Timestamp::now());
    bare.docker("start")?;
    let back = back(start, kubectl, pod, || nodes_ready_since(kubectl, since, LIMIT))?;
    add_stopped(report, Side::Bare, stopped, &back);
    app::delete_pod(kubectl, pod)
}

fn stopped_nested(report: &mut Report, nested: &Nested, kubectl: &Kubectl, pod: &str) -> Result<()> {
    let stopped = nested.suspend("Stopped")?;
    thread::sleep(ASLEEP);
    let start = Instant::now();
    nested.order("Running")?;
    let back = back(start, kubectl, pod, || nested.wait("Ready=True", "5m"))?;
    add_stopped(report, Side::Nested, stopped, &back);
    app::delete_pod(kubectl, pod)
}

fn add_stopped(report: &mut Report, side: Side, stopped: f64, back: &Back) {
    report.add(Section::Power, side, "stop (bare: `docker stop`)", Unit::Seconds, stopped);
    report.add(Section::Power, side, "start, until the API answers", Unit::Seconds, back.api);
    report.add(Section::Power, side, "start, until Ready (bare: all nodes, said anew)", Unit::Seconds, back.ready);
    report.add(Section::Power, side, "start, until a new pod runs", Unit::Seconds, back.pod);
}

/// Waits for the API server, and then for both, readiness and a new pod, at the same time.
fn back(start: Instant, kubectl: &Kubectl, pod: &str, ready: impl FnOnce() -> Result<()> + Send) -> Result<Back> {
    let seconds = move || start.elapsed().as_secs_f64();
    kubectl.api_answers(Was::Stopped, LIMIT)?;
    let api = seconds();
    thread::scope(|scope| {
        let ready = scope.spawn(move || ready().map(|()| seconds()));
        app::new_pod(kubectl, pod)?;
        let pod = seconds();
        let ready = ready.join().map_err(|_| anyhow!("the wait for readiness has panicked"))??;
        Ok(Back { api, ready, pod })
    })
}
