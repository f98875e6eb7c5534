//! `cargo xtask reliability`: the table of `docs/reliability.md`, from the report that a run of the tests has left.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

const BEGIN: &str = "<!-- made by `cargo xtask reliability`, by hand no more -->\n";
const END: &str = "<!-- end -->\n";

/// What to read.
#[derive(Args)]
pub struct Arguments {
    /// The report; that of the last `./dev test --soak` if left out.
    report: Option<PathBuf>,
}

/// Writes the table anew.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = arguments.report.clone().unwrap_or_else(|| crate::target().join("test/report-soak.json"));
    let report: Value = serde_json::from_str(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?)?;
    let page = crate::root().join("docs/reliability.md");
    let text = fs::read_to_string(&page)?;
    Ok(fs::write(page, replaced(&text, &table(&report)?)?)?)
}

/// The page with this between its marks.
fn replaced(page: &str, table: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("docs/reliability.md has lost its first mark")?;
    let (_, tail) = rest.split_once(END).context("docs/reliability.md has lost its last mark")?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

/// The times of one kind of fault in one state.
#[derive(Default)]
struct Row {
    promise: String,
    seconds: Vec<f64>,
}

fn table(report: &Value) -> Result<String> {
    let suite = report.pointer("/findings/faults").context("this report has no faults in it: was it a run of the real clusters?")?;
    let faults = suite["faults"].as_array().context("the report's list of faults is none")?;
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    for fault in faults {
        let text = |key: &str| fault[key].as_str().map(str::to_owned).with_context(|| format!("a fault without {key}"));
        let row = rows.entry((text("fault")?, text("when")?)).or_default();
        row.promise = text("promise")?;
        row.seconds.push(fault["seconds"].as_f64().context("a fault without seconds")?);
    }
    let text = |key: &str| report[key].as_str().unwrap_or("unknown").trim().to_owned();
    let mut out = String::new();
    writeln!(
        out,
        "Commit `{}`, seed {}, `{}`; the run {}.",
        text("commit"),
        report["seed"],
        text("command"),
        if report["passed"] == true { "passed" } else { "failed" }
    )?;
    writeln!(out, "{} faults on {} clusters.\n", faults.len(), suite["clusters"])?;
    writeln!(out, "| Fault | While | Promise | Times | Median, s | Longest, s |\n|---|---|---|---|---|---|")?;
    for ((fault, when), mut row) in rows {
        row.seconds.sort_by(f64::total_cmp);
        let (median, longest) = (row.seconds[row.seconds.len() / 2], row.seconds[row.seconds.len() - 1]);
        writeln!(out, "| {fault} | {when} | {} | {} | {median:.0} | {longest:.0} |", row.promise, row.seconds.len())?;
    }
    if let Some(leader) = report.pointer("/findings/leader") {
        writeln!(
            out,
            "\n| Leader losses | Followed after, median, s | Longest, s | Writes | By the holder | Refused | Without effect | Astray |\n|---|---|---|---|---|---|---|---|"
        )?;
        let cells = ["losses", "median", "longest", "writes", "ByTheHolder", "Refused", "WithoutEffect", "Astray"].map(|key| cell(&leader[key]));
        writeln!(out, "| {} |", cells.join(" | "))?;
    }
    Ok(out)
}

/// A number as people read it.
fn cell(value: &Value) -> String {
    value.as_f64().filter(|_| value.is_f64()).map_or_else(|| value.to_string(), |number| format!("{number:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_becomes_a_table_between_the_marks() {
        let fault = |seconds: f64| json!({"fault": "agent: SIGKILL", "when": "Ready", "promise": "Replaced", "seconds": seconds});
        let report = json!({"commit": "c\n", "seed": 7, "command": "./dev test --soak --seed 7", "passed": true,
            "findings": {"faults": {"clusters": 2, "faults": [fault(30.2), fault(50.0), fault(40.0)]}, "leader": {"losses": 20, "median": 13.98, "Astray": 0}}});
        let page = replaced(&format!("a\n{BEGIN}stale\n{END}z\n"), &table(&report).unwrap()).unwrap();
        assert!(page.starts_with("a\n") && page.ends_with("z\n") && !page.contains("stale"), "{page}");
        assert!(page.contains("Commit `c`, seed 7, `./dev test --soak --seed 7`; the run passed.\n3 faults on 2 clusters."), "{page}");
        assert!(page.contains("| agent: SIGKILL | Ready | Replaced | 3 | 40 | 50 |"), "{page}");
        assert!(page.contains("| 20 | 14.0 | null |"), "{page}");
        assert!(table(&json!({"findings": {}})).is_err());
    }
}
