//! `cargo xtask bench`: apply to Ready beside bare kind, in one run on one machine. Prints ratios, judges nothing.

mod operator;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nestling_lab::command::output;
use nestling_lab::host::{HostOptions, bare_kind_benchmark};
use nestling_lab::progress::note;
use nestling_lab::{Docker, HostCluster, Lab, LabPart};
use serde_json::{Value, json};

use crate::{consent, images, install};

/// Name of the host cluster of the benchmark.
const HOST: &str = "nestling-bench";
const CLUSTER: &str = "bench";

/// What to measure.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How many clusters, one after the other. The first also waits until the host has pulled the pod's image.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// What there is besides clusters.
#[derive(Subcommand)]
enum Part {
    /// Measure what the operator costs with many clusters; no container is started.
    Operator(operator::Arguments),
}

/// Measures.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Part::Operator(arguments)) = &arguments.part {
        return operator::run(arguments);
    }
    consent::ask("This brings up a host cluster like `./dev demo`, measures, and removes it again.", arguments.yes)?;
    let paths = Lab::open()?.build(LabPart::All)?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let images = images::build(&paths, &docker)?;
    let bare = bare_kind_benchmark(&paths)?;
    let host = HostCluster::up(&paths, &HostOptions { name: HOST.to_owned(), ..HostOptions::default() })?;
    let measured = install::push(&host, &images)
        .and_then(|pushed| install::install(&paths, &host, &pushed, &[]))
        .and_then(|()| (0..arguments.runs).map(|run| cluster(&host, run)).collect::<Result<Vec<_>>>());
    HostCluster::down(&paths, HOST)?;
    let runs = measured?;

    let bare_seconds: f64 = bare.iter().map(|stage| stage.seconds).sum();
    println!("{bare_seconds:6.1} s  bare kind create cluster --wait");
    for run in &runs {
        let seconds = run["applyToReadySeconds"].as_f64().unwrap_or_default();
        println!("{seconds:6.1} s  apply to Ready, ratio {:.2}", seconds / bare_seconds);
    }
    let report = json!({
        "bareKind": bare.iter().map(|stage| json!({"name": stage.name, "seconds": stage.seconds})).collect::<Vec<_>>(),
        "runs": runs,
    });
    let directory = crate::target().join("bench");
    fs::create_dir_all(&directory)?;
    let file = directory.join("apply-to-ready.json");
    fs::write(&file, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("written to {}", file.display());
    Ok(())
}

fn cluster(host: &HostCluster, run: u32) -> Result<Value> {
    note(format!("cluster {}", run + 1));
    let start = Instant::now();
    let manifest = tempfile::NamedTempFile::with_suffix(".json")?;
    fs::write(
        manifest.path(),
        json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": CLUSTER, "namespace": "default"}, "spec": {}}).to_string(),
    )?;
    output(host.kubectl().args(["apply", "-f"]).arg(manifest.path()))?;
    output(host.kubectl().args(["wait", "kindcluster", CLUSTER, "--for=condition=Ready", "--timeout=10m"]))?;
    let seconds = start.elapsed().as_secs_f64();
    let status: Value = serde_json::from_str(&output(host.kubectl().args(["get", "kindcluster", CLUSTER, "-o", "json"]))?)?;
    let stages = status.pointer("/status/stages").context("the status has no stages")?.clone();
    let start = Instant::now();
    output(host.kubectl().args(["delete", "kindcluster", CLUSTER, "--timeout=5m"]))?;
    Ok(json!({"applyToReadySeconds": seconds, "deleteSeconds": start.elapsed().as_secs_f64(), "stages": stages}))
}
