//! `docs/caveats.md`, from `docs/caveats.yaml`. A row that names a test or a reason that does not exist is an error, so that the page cannot drift.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nestling_core::api::reasons::Reason;
use serde::Deserialize;

use super::{PAGE_NOTICE, cell, code};

/// The data, from the root of the repository.
pub const SOURCE: &str = "docs/caveats.yaml";

/// Number of known caveats.
const COUNT: usize = 71;

/// Tests with nothing but an API server: no node, no nested cluster.
const BARE: [&str; 4] = ["tests/api.rs", "tests/chart.rs", "tests/rbac.rs", "tests/reconcile.rs"];

/// Caveats that belong together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    part: String,
    rows: Vec<Row>,
}

/// One caveat.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Its number, such as `C1`.
    caveat: String,
    /// A few words.
    title: String,
    /// What can happen to a user.
    risk: String,
    class: Class,
    /// What Nestling does about it today.
    does: String,
    /// How a user sees it.
    see: String,
    /// Reasons of conditions that tell of it.
    #[serde(default)]
    reasons: Vec<String>,
    /// `path.rs::function` or `path_test.go::TestName`.
    #[serde(default)]
    tests: Vec<String>,
    evidence: Evidence,
    /// Where that evidence is from.
    #[serde(default)]
    seen: Vec<Place>,
    /// What is still to be done or shown.
    #[serde(default)]
    open: Option<String>,
    /// Why a limit has no test.
    #[serde(default)]
    untested: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
enum Class {
    Prevents,
    Detects,
    Limits,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
enum Evidence {
    #[serde(rename = "real cluster")]
    RealCluster,
    #[serde(rename = "kernel feature")]
    KernelFeature,
    #[serde(rename = "recorded")]
    Recorded,
    #[serde(rename = "none yet")]
    NoneYet,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    #[serde(rename = "cgroup v1")]
    CgroupV1,
    #[serde(rename = "cgroup v2")]
    CgroupV2,
    #[serde(rename = "recorded")]
    Recorded,
}

impl Class {
    const ALL: [(Self, &str); 3] = [
        (Self::Prevents, "It does not happen, or does no harm."),
        (Self::Detects, "It is found before or when it happens, and named with its remedy."),
        (Self::Limits, "It can happen; this page says what to expect."),
    ];
}

impl Evidence {
    const ALL: [(Self, &str); 4] = [
        (Self::RealCluster, "A test with a real nested cluster in a real host cluster."),
        (Self::KernelFeature, "A test of the very feature of a real kernel, without a cluster."),
        (Self::Recorded, "A test with recorded or made-up input: texts, trees, golden files, a bare API server."),
        (Self::NoneYet, "No test shows it."),
    ];
}

impl Place {
    const ALL: [(Self, &str); 3] = [
        (Self::CgroupV1, "A machine with cgroup v1."),
        (Self::CgroupV2, "A machine with cgroup v2."),
        (Self::Recorded, "No machine: the input is recorded or made up."),
    ];
}

impl fmt::Display for Class {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::RealCluster => "real cluster",
            Self::KernelFeature => "kernel feature",
            Self::Recorded => "recorded",
            Self::NoneYet => "none yet",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CgroupV1 => "cgroup v1",
            Self::CgroupV2 => "cgroup v2",
            Self::Recorded => "recorded",
        })
    }
}

/// The page.
///
/// # Errors
/// One that lists every row that is not as it must be.
pub fn page(root: &Path, source: &str) -> Result<String> {
    let parts: Vec<Part> = serde_saphyr::from_str(source).context(SOURCE)?;
    let rows: Vec<&Row> = parts.iter().flat_map(|part| &part.rows).collect();
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let expected = format!("C{}", index + 1);
        if row.caveat != expected {
            wrong.push(format!("{}: comes where {expected} should", row.caveat));
        }
        if let Err(error) = check(root, row) {
            wrong.push(format!("{}: {error:#}", row.caveat));
        }
    }
    if rows.len() != COUNT {
        wrong.push(format!("there are {} rows, not {COUNT}", rows.len()));
    }
    ensure!(wrong.is_empty(), "{SOURCE} is not right:\n  {}", wrong.join("\n  "));

    let mut text = PAGE_NOTICE.to_owned();
    text += "# Caveats of kind in a pod\n\n\
        Every known way in which a real kind cluster inside a pod can go wrong or do harm, what Nestling does about it *today*, and what shows that. The data is\n\
        in [caveats.yaml](caveats.yaml); a row that names a test or a reason that does not exist breaks the build.\n\n";
    totals(&mut text, &rows);
    for part in &parts {
        let _ = write!(text, "\n## {}\n\n| | What can happen | What Nestling does | How to see it | Shown by |\n|---|---|---|---|---|\n", part.part);
        for row in &part.rows {
            write_row(&mut text, row);
        }
    }
    Ok(text)
}

fn totals(text: &mut String, rows: &[&Row]) {
    let mut section = |heading: &str, lines: Vec<(String, &str, usize)>| {
        let _ = write!(text, "| {heading} | Rows | |\n|---|---:|---|\n");
        for (name, meaning, count) in lines {
            let _ = writeln!(text, "| {name} | {count} | {meaning} |");
        }
        *text += "\n";
    };
    let count = |matches: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| matches(row)).count();
    section("Class", Class::ALL.map(|(class, meaning)| (class.to_string(), meaning, count(&|row| row.class == class))).to_vec());
    section("Evidence", Evidence::ALL.map(|(evidence, meaning)| (evidence.to_string(), meaning, count(&|row| row.evidence == evidence))).to_vec());
    let mut places = Place::ALL.map(|(place, meaning)| (place.to_string(), meaning, count(&|row| row.seen.contains(&place)))).to_vec();
    places.push(("nowhere yet".to_owned(), "No test shows it.", count(&|row| row.seen.is_empty())));
    section("Where it was seen", places);
    let open = count(&|row| row.open.is_some());
    let unshown = count(&|row| row.evidence == Evidence::NoneYet && row.untested.is_none());
    let _ = writeln!(text, "**{open} rows have something left to do or to show**; each says what. Of {unshown} of them nothing is shown yet.");
}

fn write_row(text: &mut String, row: &Row) {
    let mut does = format!("**{}.** {}", row.class, cell(&row.does));
    if let Some(open) = &row.open {
        let _ = write!(does, " *Open:* {}", cell(open));
    }
    let mut see = cell(&row.see);
    if !row.reasons.is_empty() {
        let names: Vec<String> = row.reasons.iter().map(|reason| code(reason)).collect();
        let _ = write!(see, " ({})", names.join(", "));
    }
    let mut shown = row.evidence.to_string();
    if !row.seen.is_empty() && row.evidence != Evidence::Recorded {
        let _ = write!(shown, ", {}", row.seen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "));
    }
    if let Some(why) = &row.untested {
        let _ = write!(shown, ": {}", cell(why));
    }
    for (index, test) in row.tests.iter().enumerate() {
        let (path, name) = test.split_once("::").unwrap_or((test, test));
        let _ = write!(shown, "{} [`{name}`](../{path})", if index == 0 { ":" } else { "," });
    }
    let _ = writeln!(text, "| **{}** {} | {} | {does} | {see} | {shown} |", row.caveat, cell(&row.title), cell(&row.risk));
}

/// Whether a row agrees with itself and with the source.
fn check(root: &Path, row: &Row) -> Result<()> {
    for (name, said) in [("title", &row.title), ("risk", &row.risk), ("does", &row.does), ("see", &row.see)] {
        ensure!(!said.trim().is_empty(), "{name} is empty");
    }
    for reason in &row.reasons {
        ensure!(Reason::parse(reason).is_some(), "there is no reason {reason}");
    }
    ensure!(row.untested.is_none() || (row.class == Class::Limits && row.tests.is_empty()), "only a limit without a test says why it is untested");
    match row.evidence {
        Evidence::NoneYet => {
            ensure!(row.tests.is_empty() && row.seen.is_empty(), "evidence is none yet, but a test or a place is named");
            ensure!(row.open.is_some() || row.untested.is_some(), "nothing shows it and nothing is said to be open");
        }
        evidence => {
            ensure!(!row.tests.is_empty() || row.untested.is_some(), "evidence is {evidence}, but no test is named");
            ensure!(!row.seen.is_empty(), "evidence is {evidence}, but nothing says where");
            let is_recorded = row.seen == [Place::Recorded];
            ensure!(is_recorded == (evidence == Evidence::Recorded), "evidence {evidence} cannot be from {:?}", row.seen);
        }
    }
    if row.evidence == Evidence::RealCluster && !row.tests.is_empty() {
        let real = |test: &String| test.starts_with("tests/") && !BARE.iter().any(|bare| test.starts_with(bare));
        ensure!(row.tests.iter().any(real), "no test with a real cluster is named");
    }
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for test in &row.tests {
        let (path, name) = test.split_once("::").with_context(|| format!("{test} is not path::name"))?;
        if !files.contains_key(path) {
            files.insert(path, fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?);
        }
        ensure!(has_test(path, &files[path], name), "{path} has no test {name}");
    }
    if let Some(twice) = row.tests.iter().enumerate().find_map(|(index, test)| row.tests[..index].contains(test).then_some(test)) {
        bail!("{twice} is named twice");
    }
    Ok(())
}

/// Whether a file has a test of this name.
fn has_test(path: &str, text: &str, name: &str) -> bool {
    if path.ends_with("_test.go") {
        return name.starts_with("Test") && text.lines().any(|line| line.starts_with(&format!("func {name}(")));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| line.split("fn ").nth(1).is_some_and(|rest| rest.split(['(', '<']).next() == Some(name));
    lines.iter().enumerate().filter(|(_, line)| is_it(line)).any(|(at, _)| {
        // Up to the end of what stands before: attributes, some of several lines, and comments.
        lines[..at].iter().rev().take_while(|line| !line.is_empty() && **line != "}").any(|line| is_test_attribute(line))
    })
}

/// `#[test]`, `#[rstest]`, `#[tokio::test(…)]` and the like.
fn is_test_attribute(line: &str) -> bool {
    let Some(path) = line.strip_prefix("#[").and_then(|rest| rest.split([']', '(']).next()) else { return false };
    matches!(path.rsplit("::").next(), Some("test" | "rstest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: &str = "fn helper() {}\n\n#[rstest]\n#[case(1)]\n#[case(\n    2,\n)]\nfn table(#[case] number: u8) {\n}\n\n#[tokio::test(flavor = \"x\")]\nasync fn slow() {}\n\nproptest! {\n    #[test]\n    fn always(x in 0..3) {}\n}\n";

    #[test]
    fn only_functions_with_a_test_attribute_are_tests() {
        for (name, expected) in [("table", true), ("slow", true), ("always", true), ("helper", false), ("tabl", false), ("none", false)] {
            assert_eq!(has_test("tests/x.rs", TESTS, name), expected, "{name}");
        }
        assert!(has_test("a_test.go", "func TestOne(t *testing.T) {", "TestOne"));
        assert!(!has_test("a_test.go", "func TestOne(t *testing.T) {", "TestOn"));
    }

    /// The repository's own data, after one replacement.
    fn page_with(old: &str, new: &str) -> Result<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let source = fs::read_to_string(root.join(SOURCE))?;
        assert!(source.contains(old), "{old}");
        page(&root, &source.replacen(old, new, 1))
    }

    #[test]
    fn the_page_counts_every_row() {
        let page = page_with("caveat: C1\n", "caveat: C1\n").unwrap();
        assert_eq!(page.lines().filter(|line| line.starts_with("| **C")).count(), COUNT);
        let counts = |names: &[&str]| -> usize {
            let lines = page.lines().filter(|line| names.iter().any(|name| line.starts_with(&format!("| {name} | "))));
            lines.filter_map(|line| line.split(" | ").nth(1)?.parse::<usize>().ok()).sum()
        };
        assert_eq!(counts(&["Prevents", "Detects", "Limits"]), COUNT);
    }

    #[test]
    fn what_does_not_exist_is_named_with_its_row() {
        for (old, new, expected) in [
            ("caveat: C2\n", "caveat: C3\n", "C3: comes where C2 should"),
            ("::an_unfit_host_is_named_before_harm_and_recovers", "::nothing", "C2: tests/solo.rs has no test nothing"),
            ("tests/solo.rs::", "tests/lost.rs::", "C2: cannot read tests/lost.rs"),
            ("[PodSecurity]", "[PodInsecurity]", "C2: there is no reason PodInsecurity"),
        ] {
            let error = format!("{:#}", page_with(old, new).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        for (old, new) in [("class: Limits", "class: Hopes"), ("caveat: C1\n", "caveat: C1\n    colour: red\n"), ("evidence: recorded", "evidence: hearsay")] {
            assert!(page_with(old, new).is_err(), "{new}");
        }
    }

    #[test]
    fn a_row_without_a_test_says_why() {
        let row = |extra: &str| -> Row { serde_saphyr::from_str(&format!("{{caveat: C1, title: t, risk: r, does: d, see: s, {extra}}}")).unwrap() };
        let root = Path::new("/");
        for (extra, good) in [
            ("class: Limits, evidence: none yet, untested: nothing to test", true),
            ("class: Prevents, evidence: none yet, open: all of it", true),
            ("class: Prevents, evidence: none yet", false),
            ("class: Prevents, evidence: none yet, untested: no time", false),
            ("class: Prevents, evidence: recorded, seen: [recorded]", false),
            ("class: Prevents, evidence: none yet, open: all of it, seen: [cgroup v1]", false),
        ] {
            assert_eq!(check(root, &row(extra)).is_ok(), good, "{extra}");
        }
    }
}
