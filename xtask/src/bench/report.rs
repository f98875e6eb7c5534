//! What a run has measured: every single figure, its median and spread, its ratio to bare kind.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::machine::Facts;

/// A part of the benchmark that can be run by itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// One node: from nothing to Ready, the first pod, names that resolve, and gone again.
    Create,
    /// The same with one control plane and two workers.
    ThreeNodes,
    /// Memory, CPU and disk of clusters that do nothing.
    Rest,
    /// Frozen and stopped, and back.
    Power,
    /// Ten nested clusters at once.
    Ten,
}

impl Section {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 5] = [Self::Create, Self::ThreeNodes, Self::Rest, Self::Power, Self::Ten];

    /// How tables name it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Create => "One node",
            Self::ThreeNodes => "Three nodes",
            Self::Rest => "At rest, each",
            Self::Power => "Asleep and back, one node",
            Self::Ten => "Ten at once",
        }
    }
}

/// Whose figure it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// A cluster that the kind command line made on the machine's own Docker.
    Bare,
    /// A KindCluster.
    Nested,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// 2^20 bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// 10^6 bytes.
    #[serde(rename = "MB")]
    Megabytes,
    /// Thousandths of a core.
    #[serde(rename = "mCPU")]
    MilliCpu,
}

impl Unit {
    /// Its sign.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Mebibytes => "MiB",
            Self::Megabytes => "MB",
            Self::MilliCpu => "mCPU",
        }
    }

    /// Digits behind the point that mean something: of a second, two where it is short.
    pub fn digits(self, value: f64) -> usize {
        match self {
            Self::Seconds if value < 3.0 => 2,
            Self::Seconds | Self::MilliCpu => 1,
            Self::Mebibytes | Self::Megabytes => 0,
        }
    }
}

/// Everything that was measured of one thing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// Where it belongs.
    pub section: Section,
    /// What it is.
    pub what: String,
    /// What it counts.
    pub unit: Unit,
    /// Of bare kind, in the order of measurement.
    pub bare: Vec<f64>,
    /// Of KindClusters, in the order of measurement.
    pub nested: Vec<f64>,
}

impl Figure {
    /// Median of the nested ones by that of the bare ones.
    pub fn ratio(&self) -> Option<f64> {
        let (bare, nested) = (Summary::of(&self.bare)?, Summary::of(&self.nested)?);
        (bare.median > 0.0).then(|| nested.median / bare.median)
    }
}

/// A stage of a creation, as kind or the agent names it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Where it belongs.
    pub section: Section,
    /// Whose.
    pub side: Side,
    /// Its name.
    pub name: String,
    /// How long it took, each time.
    pub seconds: Vec<f64>,
}

/// Memory of a program in clusters at rest, all its processes together.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// Whose.
    pub side: Side,
    /// Its file name.
    pub name: String,
    /// PSS in each cluster.
    pub mebibytes: Vec<f64>,
}

/// The first cluster of a run. It counts in no median: on a fresh host the image of its pod is pulled.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WarmUp {
    /// From `kubectl apply` to Ready.
    pub seconds: f64,
    /// Whether the host had the pod's image already.
    pub image_present: bool,
}

/// A section that was broken off.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Which.
    pub section: Section,
    /// Why. It may name files of this machine, so it stays in the report.
    pub error: String,
}

/// Some numbers in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The one in the middle, or the mean of the two that are.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Summary {
    /// Of these; none of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max, count: sorted.len() })
    }
}

/// One run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was typed.
    pub command: String,
    /// Commit of the checkout.
    pub commit: String,
    /// Whether the checkout held changes that are in no commit.
    pub changed: bool,
    /// When it began.
    pub date: String,
    /// Where.
    pub machine: Facts,
    /// The sections that were run.
    pub sections: Vec<Section>,
    /// The first cluster.
    pub warm_up: Option<WarmUp>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// How creations spent their time.
    pub stages: Vec<Stage>,
    /// Whose the memory of clusters at rest is.
    pub programs: Vec<Program>,
    /// What could not be measured to its end.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Notes one measurement.
    pub fn add(&mut self, section: Section, side: Side, what: &str, unit: Unit, value: f64) {
        let known = self.figures.iter().position(|figure| figure.section == section && figure.what == what);
        let place = known.unwrap_or_else(|| {
            self.figures.push(Figure { section, what: what.to_owned(), unit, bare: Vec::new(), nested: Vec::new() });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[place];
        match side {
            Side::Bare => figure.bare.push(value),
            Side::Nested => figure.nested.push(value),
        }
    }

    /// Notes how long a stage took.
    pub fn add_stage(&mut self, section: Section, side: Side, name: &str, seconds: f64) {
        let same = |stage: &&mut Stage| stage.section == section && stage.side == side && stage.name == name;
        match self.stages.iter_mut().find(same) {
            Some(stage) => stage.seconds.push(seconds),
            None => self.stages.push(Stage { section, side, name: name.to_owned(), seconds: vec![seconds] }),
        }
    }

    /// Notes how much memory a program has in one cluster at rest.
    pub fn add_program(&mut self, side: Side, name: &str, mebibytes: f64) {
        match self.programs.iter_mut().find(|program| program.side == side && program.name == name) {
            Some(program) => program.mebibytes.push(mebibytes),
            None => self.programs.push(Program { side, name: name.to_owned(), mebibytes: vec![mebibytes] }),
        }
    }

    /// As JSON, with medians, spreads and ratios beside the single figures.
    ///
    /// # Errors
    /// None that can be met with what a report holds.
    pub fn json(&self) -> Result<Value> {
        let mut all = serde_json::to_value(self)?;
        all["figures"] = self
            .figures
            .iter()
            .map(|figure| {
                let mut one = serde_json::to_value(figure)?;
                one["bareSummary"] = json!(Summary::of(&figure.bare));
                one["nestedSummary"] = json!(Summary::of(&figure.nested));
                one["ratio"] = json!(figure.ratio());
                Ok(one)
            })
            .collect::<Result<_>>()?;
        Ok(all)
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_string_pretty(&self.json()?)? + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads what [`Report::write`] has written.
    ///
    /// # Errors
    /// A file that cannot be read, or is no report of clusters.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of `cargo xtask bench`", path.display()))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A report with one figure.
    pub fn report() -> Report {
        let mut report = Report {
            command: "./dev bench --runs 3".into(),
            commit: "0123456789abcdef".into(),
            changed: false,
            date: "2026-11-26".into(),
            machine: super::super::machine::tests::facts(),
            sections: vec![Section::Create],
            warm_up: Some(WarmUp { seconds: 41.0, image_present: false }),
            figures: Vec::new(),
            stages: Vec::new(),
            programs: Vec::new(),
            failures: Vec::new(),
        };
        for (bare, nested) in [(20.0, 12.0), (24.0, 9.0), (22.0, 11.0)] {
            report.add(Section::Create, Side::Bare, "Ready", Unit::Seconds, bare);
            report.add(Section::Create, Side::Nested, "Ready", Unit::Seconds, nested);
        }
        report
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0, count: 3 }));
        assert_eq!(Summary::of(&[4.0, 1.0]), Some(Summary { median: 2.5, min: 1.0, max: 4.0, count: 2 }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_ratio_needs_both_sides() {
        let mut report = report();
        assert_eq!(report.figures[0].ratio(), Some(0.5));
        report.add(Section::Ten, Side::Nested, "Ready", Unit::Seconds, 90.0);
        assert_eq!(report.figures.len(), 2, "another section, another figure");
        assert_eq!(report.figures[1].ratio(), None);
        report.figures[0].bare = vec![0.0];
        assert_eq!(report.figures[0].ratio(), None);
    }

    #[test]
    fn the_same_stage_of_another_side_is_another() {
        let mut report = report();
        report.add_stage(Section::Create, Side::Bare, "Preparing nodes", 2.0);
        report.add_stage(Section::Create, Side::Nested, "Preparing nodes", 3.0);
        report.add_stage(Section::Create, Side::Bare, "Preparing nodes", 4.0);
        let seconds: Vec<_> = report.stages.iter().map(|stage| stage.seconds.clone()).collect();
        assert_eq!(seconds, [vec![2.0, 4.0], vec![3.0]]);
    }

    #[test]
    fn what_is_written_can_be_read_and_holds_the_ratio() {
        let file = tempfile::NamedTempFile::new().unwrap();
        report().write(file.path()).unwrap();
        assert_eq!(Report::read(file.path()).unwrap(), report());
        let value: Value = serde_json::from_str(&fs::read_to_string(file.path()).unwrap()).unwrap();
        assert_eq!(value.pointer("/figures/0/ratio"), Some(&json!(0.5)));
        assert_eq!(value.pointer("/figures/0/bareSummary/median"), Some(&json!(22.0)));
        fs::write(file.path(), "{}").unwrap();
        assert!(Report::read(file.path()).unwrap_err().to_string().contains("is no report"));
    }
}
