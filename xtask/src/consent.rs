//! Before a command changes a machine it says so, and asks once.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Result, bail};

/// Prints what will be done and asks, unless `yes` was given.
pub fn ask(what: &str, yes: bool) -> Result<()> {
    eprintln!("{what}");
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to ask: run it with --yes");
    }
    eprint!("Go on? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !answer.trim().eq_ignore_ascii_case("y") {
        bail!("nothing was done");
    }
    Ok(())
}
