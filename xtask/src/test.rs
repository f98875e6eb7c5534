//! `cargo xtask test`: everything that CI runs, in three tiers, with the time of each stage.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use nestling_lab::accounting::Snapshot;
use nestling_lab::command::output;
use nestling_lab::host::{HostOptions, bare_kind_benchmark};
use nestling_lab::progress::note;
use nestling_lab::release::NEWER;
use nestling_lab::{Docker, HostCluster, Lab, LabPart, LabPaths, announce};
use serde_json::json;

use crate::{consent, generate, images, install, previous, slice, told};

/// Name of the host cluster of the tests.
pub const HOST: &str = "nestling-test";

/// What to test.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Arguments {
    /// Only what needs no container: formatting, lints, generated files, unit tests, the API on a bare control plane, the chart.
    #[arg(long, conflicts_with = "soak")]
    fast: bool,
    /// Every count at its full size.
    #[arg(long)]
    soak: bool,
    /// Seed of everything random; a fresh one if left out.
    #[arg(long)]
    seed: Option<u64>,
    /// Only the tests whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Nodes of the host cluster, one or two. With two of them, a test drains one.
    #[arg(long, default_value_t = 1)]
    host_nodes: usize,
    /// Leave the host cluster up for the next run.
    #[arg(long)]
    keep: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Remove what an earlier run with --keep has left.
    #[arg(long)]
    down: bool,
}

/// Stages with their times. A failed stage does not stop the clean-up, only the stages that need it.
struct Stages {
    done: Vec<(String, f64, bool)>,
}

impl Stages {
    fn run<T>(&mut self, name: &str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        note(format!("== {name}"));
        let start = Instant::now();
        let result = stage();
        self.done.push((name.to_owned(), start.elapsed().as_secs_f64(), result.is_ok()));
        result.with_context(|| format!("stage {name} failed"))
    }

    fn print(&self) {
        println!("\n{:<44} {:>9}", "STAGE", "SECONDS");
        for (name, seconds, good) in &self.done {
            println!("{name:<44} {seconds:>9.1}{}", if *good { "" } else { "  failed" });
        }
        println!("{:<44} {:>9.1}", "all", self.done.iter().map(|(_, seconds, _)| seconds).sum::<f64>());
    }
}

/// Tests.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::open()?;
    if arguments.down {
        return HostCluster::down(&lab, HOST);
    }
    consent::ask(&announcement(arguments), arguments.yes)?;
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed} (repeat with --seed {seed})");
    // Of this run, and no earlier one.
    let _ = fs::remove_dir_all(findings());
    fs::create_dir_all(findings())?;
    let mut stages = Stages { done: Vec::new() };
    let result = fast(&lab, arguments, seed, &mut stages).and_then(|()| if arguments.fast { Ok(()) } else { whole(&lab, arguments, seed, &mut stages) });
    stages.print();
    report(arguments, seed, &stages, result.is_ok())?;
    result
}

/// The tests in the virtual machine, one at a time; `more` says which.
pub fn machine(more: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let mut command = crate::cargo();
    command.args(["test", "--locked", "--features", "fault-injection", "--test", "machine", "--", "--test-threads", "1", "--nocapture"]);
    told::run(more(&mut command).env("NESTLING_TEST_MACHINE", "1"))
}

/// Leaves beside cargo's work what was run and how it went, so that it can be run again.
fn report(arguments: &Arguments, seed: u64, stages: &Stages, passed: bool) -> Result<()> {
    let commit = output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(crate::root())).unwrap_or_default();
    let tier = if arguments.fast {
        " --fast"
    } else if arguments.soak {
        " --soak"
    } else {
        ""
    };
    let stages: Vec<_> = stages.done.iter().map(|(name, seconds, passed)| json!({"name": name, "seconds": seconds, "passed": passed})).collect();
    let mut found = serde_json::Map::new();
    for entry in fs::read_dir(findings())?.flatten() {
        let name = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, serde_json::from_str(&fs::read_to_string(entry.path())?)?);
    }
    let command = format!("./dev test{tier} --seed {seed}");
    let report = json!({"commit": commit.trim(), "seed": seed, "command": command, "passed": passed, "stages": stages, "findings": found});
    let directory = crate::target().join("test");
    Ok(fs::write(directory.join(format!("report{}.json", tier.replace(" --", "-"))), serde_json::to_string_pretty(&report)? + "\n")?)
}

/// Where the suites leave what they have measured, for [`report`].
fn findings() -> PathBuf {
    crate::target().join("test/findings")
}

fn announcement(arguments: &Arguments) -> String {
    let what = "This tests Nestling. It keeps what it builds in the user's cache directory (about 6 GB) and in target/ (about 4 GB).\n";
    let fast = "It builds the programs of a Kubernetes control plane from source (cold about 8 minutes, warm none) and runs them on loopback; no container is started.";
    let whole = "It installs Debian packages that are missing (docker.io, mmdebstrap, python3-kubernetes and what building needs), starts dockerd if none answers, raises\n\
                 fs.inotify.max_user_instances, builds Kubernetes and the images from source where no registry answers, and runs real kind clusters.\n\
                 Cold about 50 minutes, warm about 30. At its end all of that is undone but packages and caches.";
    format!("{what}{}", if arguments.fast { fast } else { whole })
}

/// `cargo test` of one or more test binaries.
fn cargo_test(arguments: &Arguments, seed: u64, what: &[&str], runner: &[&str]) -> Command {
    let mut command = crate::cargo();
    // The same features throughout: otherwise all is built once more for each change.
    command.args(["test", "--locked", "--features", "nestling/fault-injection"]).args(what);
    command.arg("--").args(runner).args(arguments.only.iter());
    command.env("NESTLING_TEST_FINDINGS", findings());
    command.env("NESTLING_TEST_SEED", seed.to_string()).env("PROPTEST_RNG_SEED", seed.to_string());
    if arguments.soak {
        command.env("NESTLING_TEST_SOAK", "1").env("PROPTEST_CASES", "5000");
    }
    command
}

fn status(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

fn fast(lab: &Lab, arguments: &Arguments, seed: u64, stages: &mut Stages) -> Result<()> {
    if arguments.only.is_none() {
        stages.run("format", || status(crate::cargo().args(["fmt", "--all", "--check"])))?;
        stages.run("lints", || {
            status(crate::cargo().args([
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--features",
                "nestling/fault-injection",
                "--",
                "-D",
                "warnings",
            ]))
        })?;
        stages.run("generated files", || generate::run(true))?;
    }
    stages.run("unit tests", || told::run(&mut cargo_test(arguments, seed, &["--workspace", "--lib", "--bins"], &[])))?;
    let paths = stages.run("lab: control plane", || {
        announce(lab, LabPart::ControlPlane);
        lab.build(LabPart::ControlPlane)
    })?;
    let helm = paths.bin("helm")?;
    stages
        .run("pages can be typed", || told::run(&mut cargo_test(arguments, seed, &["--test", "docs"], &["--skip", "pages::", "--skip", "installation::"])))?;
    stages.run("API and chart on a bare control plane", || {
        let binaries = ["--test", "api", "--test", "cli", "--test", "reconcile", "--test", "rbac", "--test", "policy", "--test", "scale", "--test", "chart"];
        let mut command = cargo_test(arguments, seed, &binaries, &["--test-threads", "4"]);
        told::run(command.env("NESTLING_HELM", helm).env("NESTLING_REQUIRE_HELM", "1"))
    })
}

fn whole(lab: &Lab, arguments: &Arguments, seed: u64, stages: &mut Stages) -> Result<()> {
    let paths = stages.run("lab: images", || {
        announce(lab, LabPart::All);
        lab.build(LabPart::All)
    })?;
    if arguments.soak {
        stages.run("lab: newer Kubernetes", || {
            announce(lab, LabPart::Newer);
            lab.build(LabPart::Newer)
        })?;
    }
    // Not while other tests run: it would take their CPU.
    let drawn = [
        ("balancers::", "lab: load balancer and Ingress controller", LabPart::Balancers),
        ("clients::", "lab: tools that read published Secrets", LabPart::Consumers),
    ];
    for (tests, stage, part) in drawn {
        if slice::NESTED.takes(tests, seed, arguments.only.as_deref(), arguments.soak) {
            stages.run(stage, || {
                announce(lab, part);
                lab.build(part)
            })?;
        }
    }
    stages.run("unit tests of the stand-in CNI", || {
        status(Command::new("go").args(["test", "./kindnetd"]).current_dir(crate::root().join("lab/modules/kubernetes")))
    })?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let before = Snapshot::take(Some(&docker), &[])?;
    let mut result = real(lab, &paths, &docker, arguments, seed, stages);
    if arguments.soak {
        result = result.and(stages.run("virtual machine: cgroup v2, all capabilities", || {
            lab.build(LabPart::Vm)?;
            let mut command = cargo_test(arguments, seed, &["--test", "machine"], &["--test-threads", "1", "--nocapture"]);
            told::run(command.env("NESTLING_TEST_MACHINE", "1"))
        }));
    }
    if arguments.keep {
        note("the host cluster stays up; ./dev test --down removes it");
        return result;
    }
    let down = stages.run("host cluster down", || HostCluster::down_but_docker(&paths, HOST));
    result = result.and(down);
    let left = stages.run("nothing is left", || {
        let left = Snapshot::take(Some(&docker), &[])?.difference(&before);
        if !left.is_empty() {
            bail!("the machine is not as it was before:\n{}", left.join("\n"));
        }
        Ok(())
    });
    result.and(left).and(Docker::stop_if_ours(paths.cache()))
}

fn real(lab: &Lab, paths: &LabPaths, docker: &Docker, arguments: &Arguments, seed: u64, stages: &mut Stages) -> Result<()> {
    let images = stages.run("images", || images::build(paths, docker))?;
    let bare = stages.run("bare kind, for comparison", || bare_kind_benchmark(paths))?;
    let bare: f64 = bare.iter().map(|stage| stage.seconds).sum();
    let host = stages.run("host cluster up", || HostCluster::up(paths, &HostOptions { name: HOST.to_owned(), nodes: arguments.host_nodes }))?;
    let pushed = stages.run("images to the host cluster", || install::push(&host, &images))?;
    // The exception is one of tests/nested/isolation.rs.
    let mut settings = ["--set", "maxCreating=2", "--set", "egress.allowedCIDRs={10.96.77.77/32}"].map(str::to_owned).to_vec();
    if arguments.soak {
        settings.extend(stages.run("the pods' image for a newer Kubernetes", || newer(lab, paths, docker, &host, &images))?);
    }
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    stages.run("chart installed", || install::install(paths, &host, &pushed, &settings))?;
    let values = install::values(paths, &pushed)?.join("\n");
    let environment = |command: &mut Command| {
        command
            .env("NESTLING_TEST_HOST", HOST)
            .env("NESTLING_TEST_VALUES", &values)
            .env("NESTLING_TEST_NODE_IMAGE", &images.node)
            .env("NESTLING_TEST_BARE_SECONDS", format!("{bare:.1}"));
    };
    stages.run("nested clusters", || {
        let mut command = cargo_test(arguments, seed, &["--test", "nested"], &["--test-threads", "3", "--nocapture"]);
        environment(&mut command);
        leave_out(arguments, seed, &slice::NESTED, &mut command);
        told::run(&mut command)
    })?;
    stages.run("faults on real clusters", || {
        let mut command = cargo_test(arguments, seed, &["--test", "faults"], &["--test-threads", "1", "--nocapture"]);
        environment(&mut command);
        if arguments.only.is_none() {
            command.env("NESTLING_TEST_WARM", "1");
        }
        told::run(&mut command)
    })?;
    stages.run("commands of the pages", || {
        let mut command = cargo_test(arguments, seed, &["--test", "docs"], &["--test-threads", "1", "--nocapture", "--skip", "installation::"]);
        environment(&mut command);
        leave_out(arguments, seed, &slice::PAGES, &mut command);
        told::run(&mut command)
    })?;
    let before = if arguments.soak { Some(stages.run("the commit before this one", || previous::build(paths, docker))?) } else { None };
    let before = before.map(|before| -> Result<(String, String)> {
        let values = install::values(paths, &install::push(&host, &before.images)?)?;
        Ok((before.chart.display().to_string(), values.join("\n")))
    });
    let before = before.transpose()?;
    stages.run("one at a time: accounting, storm, kills, chart", || {
        let mut command = cargo_test(arguments, seed, &["--test", "solo"], &["--test-threads", "1", "--nocapture"]);
        environment(&mut command);
        if let Some((chart, values)) = &before {
            command.env("NESTLING_TEST_PREVIOUS_CHART", chart).env("NESTLING_TEST_PREVIOUS_VALUES", values);
        }
        leave_out(arguments, seed, &slice::SOLO, &mut command);
        told::run(&mut command)
    })?;
    stages.run("commands of the pages about the installation", || {
        let mut command = cargo_test(arguments, seed, &["--test", "docs"], &["--test-threads", "1", "--nocapture", "--skip", "pages::"]);
        environment(&mut command);
        told::run(&mut command)
    })
}

/// Hands the pods' image for the newer release to the host cluster, and returns the settings that let the operator know of it.
fn newer(lab: &Lab, paths: &LabPaths, docker: &Docker, host: &HostCluster, images: &images::Images) -> Result<Vec<String>> {
    let version = NEWER.version()?;
    let node_image = lab.paths(LabPart::Newer)?.load(docker, NEWER.image)?;
    let image = images::build_node_for(lab, paths, docker, images, (&version, &node_image))?;
    let pushed = host.push(&image)?;
    let key = install::key_of(&version);
    Ok([format!("nodeImages.{key}={node_image}"), format!("podImages.{key}={pushed}")].into_iter().flat_map(|value| ["--set".to_owned(), value]).collect())
}

/// Has a run that is not of the soak tier leave out what its seed says, and prints it.
fn leave_out(arguments: &Arguments, seed: u64, suite: &slice::Suite, command: &mut Command) {
    if arguments.only.is_none() && !arguments.soak {
        let out = suite.left_out(seed);
        println!("left out with this seed: {}", out.join(", "));
        command.args(out.into_iter().flat_map(|name| ["--skip", name]));
    }
}
