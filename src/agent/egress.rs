//! Puts the egress guard up in the pod's network namespace. What it lets through is decided in [`nestling_core::plan::egress`].

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nestling_core::api::reasons::Reason;
use nestling_core::plan::egress::{Guard, TABLE};
use nestling_core::plan::wire::{AgentFailure, EgressPlan, NetworkPlan};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::facts::Surroundings;
use super::failure::{evident, failure};

/// A command of iptables takes milliseconds; this is for a kernel that loads a module.
const LIMIT: Duration = Duration::from_secs(10);

/// What is said about a cluster without a guard.
pub const OFF: &str = "The egress guard is switched off: nested workloads reach what the host lets this pod reach.";

/// IPv6 is never nested: with forwarding off, none leaves the pod either.
const IPV6_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// The guard of this pod, or `None` if it is switched off.
pub fn guard(plan: &EgressPlan, network: &NetworkPlan, surroundings: &Surroundings) -> Option<Guard> {
    plan.guard.then(|| Guard {
        own: vec![network.nodes, network.bridge],
        nameservers: surroundings.nameservers.clone(),
        allowed: plan.allowed.clone(),
        // What the operator knows of the host, and what the pod itself sees of it: not every host tells its ranges.
        denied: network.host.iter().chain(&surroundings.uplink).copied().collect(),
    })
}

/// Puts the guard up, whatever is there of an earlier one, and looks whether it stands. `programs` is the directory with the iptables that works.
///
/// # Errors
/// [`Reason::EgressGuardFailed`], with what iptables said.
pub async fn raise(guard: &Guard, programs: &Path) -> Result<(), AgentFailure> {
    let failed = |error: String| evident(Reason::EgressGuardFailed, "the rules against nested traffic to the host cannot be loaded", &error);
    let saved = save(programs).await.map_err(failed)?;
    run(programs, "iptables-restore", &["--wait", "10", "--noflush"], &guard.load(&saved)).await.map_err(failed)?;
    check(guard, programs).await
}

/// Looks whether the guard stands.
///
/// # Errors
/// [`Reason::EgressGuardFailed`], with what is different.
pub async fn check(guard: &Guard, programs: &Path) -> Result<(), AgentFailure> {
    let failed = |error: String| failure(Reason::EgressGuardFailed, format!("the egress guard does not stand: {error}"));
    let saved = save(programs).await.map_err(failed)?;
    guard.standing(&saved).map_err(failed)?;
    close_ipv6(Path::new(IPV6_FORWARDING)).map_err(|error| failed(format!("IPv6 is forwarded: {error}")))
}

/// A file that is not there is a kernel without IPv6.
fn close_ipv6(forwarding: &Path) -> io::Result<()> {
    match fs::read_to_string(forwarding) {
        Ok(text) if text.trim() == "0" => Ok(()),
        Ok(_) => fs::write(forwarding, "0"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn save(programs: &Path) -> Result<String, String> {
    run(programs, "iptables-save", &["-t", TABLE], "").await
}

async fn run(programs: &Path, name: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let work = async {
        let mut child =
            Command::new(programs.join(name)).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends early says why itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    match timeout(LIMIT, work).await {
        Ok(Ok(Output { status, stdout, .. })) if status.success() => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Ok(Err(error)) => Err(format!("cannot run {name}: {error}")),
        Err(_) => Err(format!("{name} did not end within {} s", LIMIT.as_secs())),
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
