//! Tests that change what belongs to a whole process (its children, its namespaces, its control group) run in a process of their own.

use std::process::Command;

/// Runs an ignored test of this program alone, behind other words such as `unshare --mount`.
///
/// # Panics
/// With what it has said, if it fails or is not there.
pub fn run_alone(before: &[&str], test: &str) {
    let program = std::env::current_exe().unwrap();
    let words = [before, &[program.to_str().unwrap(), "--ignored", "--exact", "--nocapture", test]].concat();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Whether this process may do what only root may; says so where it may not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: only root can do that");
    }
    root
}
