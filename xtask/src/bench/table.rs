//! A run as people read it.

use std::fmt::Write as _;

use super::report::{Figure, Report, Section, Side, Summary, Unit};

/// A run in Markdown: where and when, its figures beside bare kind's, and how creations spent their time.
pub fn markdown(report: &Report) -> String {
    let mut out = head(report);
    if !report.figures.is_empty() {
        out += "| | | Bare kind | Nestling | Ratio |\n|---|---|---|---|---|\n";
    }
    let mut last = None;
    for figure in &report.figures {
        let title = if last == Some(figure.section) { "" } else { figure.section.title() };
        last = Some(figure.section);
        let ratio = figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let _ = writeln!(out, "| {title} | {} | {} | {} | {ratio} |", figure.what, cell(figure.unit, &figure.bare), cell(figure.unit, &figure.nested));
    }
    for section in Section::ALL {
        out += &stages(report, section);
    }
    out += &programs(report);
    if !report.failures.is_empty() {
        let names: Vec<_> = report.failures.iter().map(|failure| format!("\"{}\"", failure.section.title())).collect();
        let _ = writeln!(out, "\nNot measured to its end: {}.", names.join(", "));
    }
    out
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let changed = if report.changed { " and changes that are in no commit" } else { "" };
    let mut out = format!(
        "`{}` at commit `{}`{changed}, {}, on {}, {} cores, {} GiB of memory, Linux {}, cgroup v{}, Docker {}.\n",
        report.command,
        report.commit,
        report.date,
        machine.cpu,
        machine.cores,
        (machine.memory_mib + 512) / 1024,
        machine.kernel,
        machine.cgroup_version,
        machine.docker
    );
    let left: Vec<_> = Section::ALL.iter().filter(|section| !report.sections.contains(section)).map(|section| format!("\"{}\"", section.title())).collect();
    if !left.is_empty() {
        let _ = writeln!(out, "This run left out {}.", left.join(", "));
    }
    if let Some(first) = &report.warm_up {
        let image = if first.image_present { "which had its pod's image already" } else { "which had to pull its pod's image" };
        let _ = writeln!(out, "The first cluster of the run, on a host {image}, was Ready after {:.1} s; it is in no median.", first.seconds);
    }
    out + "\n"
}

/// Median, and where there are several, the range and how many.
fn cell(unit: Unit, values: &[f64]) -> String {
    let Some(summary) = Summary::of(values) else { return String::new() };
    let digits = unit.digits(summary.median);
    let (median, min, max) = (summary.median, summary.min, summary.max);
    if summary.count == 1 {
        return format!("{median:.digits$} {}", unit.sign());
    }
    format!("{median:.digits$} {} ({min:.digits$}–{max:.digits$}, {} times)", unit.sign(), summary.count)
}

fn stages(report: &Report, section: Section) -> String {
    let mut out = String::new();
    for (side, whose) in [(Side::Bare, "kind's own stages"), (Side::Nested, "Nestling's stages")] {
        let of_side: Vec<_> = report.stages.iter().filter(|stage| stage.section == section && stage.side == side).collect();
        let words: Vec<_> = of_side.iter().filter_map(|stage| Some(format!("{} {:.1}", stage.name, Summary::of(&stage.seconds)?.median))).collect();
        if !words.is_empty() {
            let _ = writeln!(out, "\n{}, {whose} (medians, s): {}.", section.title(), words.join(" · "));
        }
    }
    out
}

/// Whose the memory at rest is, the largest first. What has less than a MiB is not told.
fn programs(report: &Report) -> String {
    let mut out = String::new();
    for (side, whose) in [(Side::Bare, "Bare kind"), (Side::Nested, "Nestling")] {
        let of_side = report.programs.iter().filter(|program| program.side == side);
        let mut medians: Vec<_> = of_side.filter_map(|program| Some((Summary::of(&program.mebibytes)?.median, program.name.as_str()))).collect();
        medians.sort_by(|one, other| other.0.total_cmp(&one.0));
        let words: Vec<_> = medians.into_iter().filter(|(median, _)| *median >= 1.0).map(|(median, name)| format!("{name} {median:.0}")).collect();
        if !words.is_empty() {
            let _ = writeln!(out, "\n{whose}, memory (PSS) at rest by program (medians, MiB): {}.", words.join(" · "));
        }
    }
    out
}

/// What is printed at the end of a run.
pub fn plain(report: &Report) -> String {
    let line = |figure: &Figure| {
        let ratio = figure.ratio().map(|ratio| format!("ratio {ratio:.2}")).unwrap_or_default();
        let (bare, nested) = (cell(figure.unit, &figure.bare), cell(figure.unit, &figure.nested));
        format!("{:<26} {:<50} {bare:<34} {nested:<34} {ratio}", figure.section.title(), figure.what)
    };
    let head = format!("{:<26} {:<50} {:<34} {:<34}", "", "", "BARE KIND", "NESTLING");
    [head].into_iter().chain(report.figures.iter().map(line)).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::report::{Failure, tests::report};
    use super::*;

    #[test]
    fn a_run_says_where_it_was_and_what_it_left_out() {
        let text = markdown(&report());
        assert!(
            text.starts_with("`./dev bench --runs 3` at commit `0123456789abcdef`, 2026-11-26, on A CPU, 2 cores, 24 GiB of memory, Linux 6.18.1, cgroup v1")
        );
        assert!(text.contains("left out \"Three nodes\", \"At rest, each\", \"Asleep and back, one node\", \"Ten at once\"."), "{text}");
        assert!(text.contains("had to pull its pod's image, was Ready after 41.0 s"), "{text}");
        let whole = Report { changed: true, sections: Section::ALL.to_vec(), ..report() };
        assert!(markdown(&whole).contains("and changes that are in no commit") && !markdown(&whole).contains("left out"));
    }

    #[test]
    fn figures_stand_beside_bare_kinds() {
        let mut report = report();
        report.add(Section::Create, Side::Nested, "deleted", Unit::Seconds, 2.345);
        report.add_stage(Section::Create, Side::Bare, "Preparing nodes", 1.84);
        for (name, mebibytes) in [("etcd", 54.3), ("pause", 0.4), ("kube-apiserver", 281.9)] {
            report.add_program(Side::Nested, name, mebibytes);
        }
        report.failures.push(Failure { section: Section::Power, error: "cannot start /home/me/kubectl".into() });
        let text = markdown(&report);
        assert!(
            text.contains("| One node | Ready | 22.0 s (20.0–24.0, 3 times) | 11.0 s (9.0–12.0, 3 times) | 0.50 |\n|  | deleted |  | 2.35 s |  |\n"),
            "{text}"
        );
        assert!(text.contains("One node, kind's own stages (medians, s): Preparing nodes 1.8.\n"), "{text}");
        assert!(text.contains("\nNestling, memory (PSS) at rest by program (medians, MiB): kube-apiserver 282 · etcd 54.\n"), "{text}");
        assert!(text.ends_with("\nNot measured to its end: \"Asleep and back, one node\".\n"), "no path of this machine: {text}");
        assert!(plain(&report).contains("ratio 0.50"));
    }
}
