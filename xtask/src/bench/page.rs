//! The part of docs/performance.md that is written by this command.

use std::fs;

use anyhow::{Context, Result};

use super::report::Report;
use super::table;

const PAGE: &str = "docs/performance.md";
const BEGIN: &str = "<!-- clusters: made by `cargo xtask bench`, by hand no more -->\n";
const END: &str = "<!-- clusters: end -->\n";

/// Writes the tables of these runs in place of those that are there. What was measured in different runs is never one table.
///
/// # Errors
/// A page without its marks.
pub fn write(reports: &[Report]) -> Result<()> {
    let page = crate::root().join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    fs::write(&page, replaced(&text, &tables(reports))?).with_context(|| format!("cannot write {}", page.display()))
}

fn tables(reports: &[Report]) -> String {
    match reports {
        [one] => format!("## Last run\n\n{}", table::markdown(one)),
        several => {
            let introduction = "## Last runs\n\nThese are several runs, at different times. Figures of one must not be compared with those of another.\n";
            let one = |(number, report)| format!("\n### Run {}\n\n{}", number + 1, table::markdown(report));
            introduction.to_owned() + &several.iter().enumerate().map(one).collect::<String>()
        }
    }
}

/// The page with this between its marks.
fn replaced(page: &str, tables: &str) -> Result<String> {
    let (head, rest) = page.split_once(BEGIN).with_context(|| format!("{PAGE} has lost its first mark"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("{PAGE} has lost its last mark"))?;
    Ok(format!("{head}{BEGIN}{tables}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_written_anew() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replaced("a\n", "new\n").unwrap_err().to_string().contains("first mark"));
        assert!(replaced(&format!("a\n{BEGIN}b\n"), "new\n").unwrap_err().to_string().contains("last mark"));
    }

    #[test]
    fn several_runs_are_several_tables_and_say_so() {
        assert!(tables(&[report()]).starts_with("## Last run\n\n`./dev bench"));
        let both = tables(&[report(), report()]);
        assert!(both.contains("must not be compared") && both.contains("### Run 1\n") && both.contains("### Run 2\n"), "{both}");
        assert_eq!(both.matches("| Bare kind |").count(), 2);
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = fs::read_to_string(crate::root().join(PAGE)).unwrap();
        replaced(&page, "").unwrap();
    }
}
