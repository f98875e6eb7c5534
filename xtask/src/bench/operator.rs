//! `cargo xtask bench operator`: what the operator costs with many clusters. A real operator on a real API server; pods and agents are a fake
//! (`tests/scale.rs`).

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use jiff::Timestamp;
use nestling_lab::command::output;
use nestling_lab::{Lab, LabPart};
use serde_json::{Value, json};

const BEGIN: &str = "<!-- operator: made by `cargo xtask bench operator --write`, by hand no more -->\n";
const END: &str = "<!-- operator: end -->\n";

/// How much to measure.
#[derive(Args)]
pub struct Arguments {
    /// Numbers of clusters, one run for each.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    clusters: Vec<usize>,
    /// Clusters per second; 0: as fast as they are taken. Half of what the driver alone sustains if left out.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds for which requests at rest are counted.
    #[arg(long, default_value_t = 120)]
    rest: u64,
    /// Put the table into docs/performance.md.
    #[arg(long)]
    write: bool,
    /// Measure nothing: read this report of an earlier run.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Measures, prints the table, and leaves a report in `target/bench`.
///
/// # Errors
/// What cannot be measured; no figure is one.
pub fn run(arguments: &Arguments) -> Result<()> {
    let file = if let Some(report) = &arguments.report { report.clone() } else { measure(arguments)? };
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?)?;
    let table = table(&report)?;
    print!("{table}");
    if arguments.write {
        let page = crate::root().join("docs/performance.md");
        let text = fs::read_to_string(&page)?;
        fs::write(page, replaced(&text, &table)?)?;
    }
    println!("report: {}", file.display());
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<PathBuf> {
    Lab::open()?.build(LabPart::ControlPlane)?;
    let directory = crate::target().join("bench");
    fs::create_dir_all(&directory)?;
    let file = fs::canonicalize(directory)?.join("operator.json");
    let clusters: Vec<String> = arguments.clusters.iter().map(ToString::to_string).collect();
    let clusters = clusters.join(",");
    let mut command = crate::cargo();
    command.args([
        "test",
        "--release",
        "--locked",
        "--features",
        "fault-injection",
        "--test",
        "scale",
        "--",
        "--ignored",
        "--exact",
        "benchmark",
        "--nocapture",
    ]);
    command.env("NESTLING_SCALE_CLUSTERS", &clusters).env("NESTLING_SCALE_REST", arguments.rest.to_string()).env("NESTLING_SCALE_REPORT", &file);
    // As it is where nobody chooses (`DEFAULT` in `src/operator/telemetry.rs`).
    command.env("NESTLING_TEST_OPERATOR_LOG_LEVEL", "info,kube_runtime=warn");
    if let Some(rate) = arguments.rate {
        command.env("NESTLING_SCALE_RATE", rate.to_string());
    }
    ensure!(command.status()?.success(), "the benchmark of the operator failed");

    let mut report: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(crate::root())).unwrap_or_default();
    let changed = if git(&["status", "--porcelain"]).trim().is_empty() { "" } else { " with changes" };
    let rate = arguments.rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
    report["command"] = json!(format!("cargo xtask bench operator --clusters {clusters} --rest {}{rate}", arguments.rest));
    report["commit"] = json!(format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]).trim()));
    report["date"] = json!(Timestamp::now().strftime("%Y-%m-%d").to_string());
    report["machine"] = json!(machine()?);
    report["load"] = json!(fs::read_to_string("/proc/loadavg")?.trim());
    fs::write(&file, format!("{report:#}\n"))?;
    Ok(file)
}

/// Processors and memory.
fn machine() -> Result<String> {
    let line = |text: &str, field: &str| {
        text.lines().find(|line| line.starts_with(field)).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let memory: u64 = line(&fs::read_to_string("/proc/meminfo")?, "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    Ok(format!("{count} × {}, {} GiB", line(&processors, "model name").unwrap_or_else(|| "processor".to_owned()), memory >> 20))
}

/// The page with this between its marks.
fn replaced(page: &str, table: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("docs/performance.md has lost the operator's first mark")?;
    let (_, tail) = rest.split_once(END).context("docs/performance.md has lost the operator's last mark")?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

/// One figure of each run, where it stands in the report.
struct Figure {
    name: &'static str,
    unit: &'static str,
    pointer: &'static str,
    digits: usize,
    /// Whether it grows with the number of clusters, so that a slope says something.
    grows: bool,
}

const fn figure(name: &'static str, unit: &'static str, pointer: &'static str, digits: usize, grows: bool) -> Figure {
    Figure { name, unit, pointer, digits, grows }
}

const FIGURES: [Figure; 20] = [
    figure("Memory (RSS), all ready", "MiB", "/usage/ready/rssMiB", 1, true),
    figure("Memory (RSS), at rest", "MiB", "/usage/rest/rssMiB", 1, true),
    figure("Memory, most ever until then", "MiB", "/usage/rest/peakMiB", 1, true),
    figure("Memory (RSS), started anew", "MiB", "/usage/restarted/rssMiB", 1, true),
    figure("Memory, most ever since the start", "MiB", "/usage/restarted/peakMiB", 1, true),
    figure("CPU until all are ready", "s", "/usage/ready/cpuSeconds", 1, true),
    figure("CPU from the start anew to rest", "s", "/usage/restarted/cpuSeconds", 1, true),
    figure("The driver alone, clusters per second, on the way there", "", "/driver/clustersPerSecondOnTheWay", 1, false),
    figure("The driver alone, clusters per second, the last fifth of them", "", "/driver/clustersPerSecond", 1, false),
    figure("Asked of the operator, clusters per second", "", "/clustersPerSecond/asked", 1, false),
    figure("The driver alone, apply to first status, median", "ms", "/driver/firstStatusMsAtHalf/p50", 0, false),
    figure("The driver alone, apply to first status, 99 %", "ms", "/driver/firstStatusMsAtHalf/p99", 0, false),
    figure("Apply to first status, median", "ms", "/firstStatusMs/p50", 0, false),
    figure("Apply to first status, 99 %", "ms", "/firstStatusMs/p99", 0, false),
    figure("Pod ready to cluster ready, median", "ms", "/podReadyToReadyMs/p50", 0, false),
    figure("Pod ready to cluster ready, 99 %", "ms", "/podReadyToReadyMs/p99", 0, false),
    figure("Clusters ready per second", "", "/clustersPerSecond/ready", 1, false),
    figure("API writes per cluster", "", "/writesPerCluster", 2, false),
    figure("Caches filled after a start anew", "s", "/restart/cachesSeconds", 1, true),
    figure("At rest after a start anew", "s", "/restart/steadySeconds", 1, true),
];

fn table(report: &Value) -> Result<String> {
    let runs = report["operator"].as_array().filter(|runs| !runs.is_empty()).context("the report has no runs")?;
    let text = |key: &str| report[key].as_str().unwrap_or("unknown").to_owned();
    let mut out = String::new();
    writeln!(
        out,
        "`{}`, commit `{}`, {}, on {}; load of the machine at the end: {}.\n",
        text("command"),
        text("commit"),
        text("date"),
        text("machine"),
        text("load")
    )?;
    let counts: Vec<f64> = runs.iter().map(|run| run["clusters"].as_f64().unwrap_or(f64::NAN)).collect();
    let heads: Vec<String> = counts.iter().map(|count| format!("{count} clusters")).collect();
    writeln!(out, "| | {} | Slope, per 1,000 clusters |\n|---|{}---|", heads.join(" | "), "---|".repeat(counts.len()))?;
    for figure in &FIGURES {
        let values: Vec<f64> = runs.iter().map(|run| run.pointer(figure.pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)).collect();
        // With --rate the driver is not measured alone.
        let cells: Vec<String> = values.iter().map(|value| if value.is_nan() { "–".to_owned() } else { format!("{value:.*}", figure.digits) }).collect();
        let slope = if figure.grows { slopes(&counts, &values, figure.digits) } else { String::new() };
        let unit = if figure.unit.is_empty() { String::new() } else { format!(", {}", figure.unit) };
        writeln!(out, "| {}{unit} | {} | {slope} |", figure.name, cells.join(" | "))?;
    }
    writeln!(out, "\n| Requests per cluster, from apply to rest | {} |\n|---|{}", heads.join(" | "), "---|".repeat(counts.len()))?;
    write_requests(&mut out, runs, "/requestsPerCluster")?;
    let seconds = &runs[0]["rest"]["seconds"];
    writeln!(out, "\n| Requests at rest, of all clusters, in {seconds} s | {} |\n|---|{}", heads.join(" | "), "---|".repeat(counts.len()))?;
    write_requests(&mut out, runs, "/rest/requests")?;
    writeln!(out, "\n| Requests of a start anew, until rest | {} |\n|---|{}", heads.join(" | "), "---|".repeat(counts.len()))?;
    write_requests(&mut out, runs, "/restart/requests")?;
    Ok(out)
}

/// From each number of clusters to the next.
fn slopes(counts: &[f64], values: &[f64], digits: usize) -> String {
    let pairs = counts.windows(2).zip(values.windows(2));
    let slopes: Vec<String> = pairs.map(|(counts, values)| format!("{:.*}", digits + 1, (values[1] - values[0]) / (counts[1] - counts[0]) * 1000.0)).collect();
    slopes.join(", then ")
}

fn write_requests(out: &mut String, runs: &[Value], pointer: &str) -> Result<()> {
    let of = |run: &Value| run.pointer(pointer).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut kinds: Vec<String> = runs.iter().flat_map(|run| of(run).into_iter().map(|(kind, _)| kind)).collect();
    kinds.sort();
    kinds.dedup();
    for kind in kinds {
        let cells: Vec<String> = runs.iter().map(|run| of(run).get(&kind).map_or("0".to_owned(), ToString::to_string)).collect();
        writeln!(out, "| {kind} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(clusters: u32, rss: f64) -> Value {
        json!({"clusters": clusters, "usage": {"rest": {"rssMiB": rss}}, "requestsPerCluster": {"create pods": 1.0}, "rest": {"seconds": 60, "requests": {"update leases": 12}}})
    }

    #[test]
    fn figures_stand_beside_each_other_with_their_slope() {
        let report = json!({"commit": "c", "operator": [run(100, 20.0), run(1000, 29.0), run(10_000, 119.0)]});
        let table = table(&report).unwrap();
        assert!(table.contains("| Memory (RSS), at rest, MiB | 20.0 | 29.0 | 119.0 | 10.00, then 10.00 |"), "{table}");
        assert!(table.contains("| create pods | 1.0 | 1.0 | 1.0 |") && table.contains("| update leases | 12 | 12 | 12 |"), "{table}");
        assert_eq!(replaced(&format!("a\n{BEGIN}old\n{END}b\n"), "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
    }

    #[test]
    fn the_page_has_its_marks() {
        replaced(&fs::read_to_string(crate::root().join("docs/performance.md")).unwrap(), "").unwrap();
    }
}
