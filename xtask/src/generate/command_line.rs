//! `docs/reference/cli.md`.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use super::PAGE_NOTICE;

/// The user's verbs themselves. Read as files, so that this tool need not be built together with the whole program.
#[allow(dead_code, unused_imports, clippy::struct_field_names, reason = "what only the program itself reads, and names for it")]
#[path = "../../../src/cli/args/mod.rs"]
mod args;

/// The page.
pub fn page() -> String {
    let mut text = PAGE_NOTICE.to_owned();
    text += "# Command line\n\n\
        Installed under the name `kubectl-nestling` as well, it is also `kubectl nestling`.\n\n\
        Errors go to standard error, each with what to do next behind an arrow. The exit code is 0 on success and 1 on failure; what else it can be is\n\
        said at the end of each verb.\n";
    let mut root = args::UserVerbs::command().disable_help_subcommand(true).term_width(100);
    root.build();
    for verb in root.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        let name = verb.get_name().to_owned();
        let _ = write!(text, "\n## nestling {name}\n\n```text\n{}\n```\n", help(verb));
    }
    text
}

fn help(verb: &mut Command) -> String {
    let help = verb.render_long_help().to_string();
    help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim().to_owned()
}
