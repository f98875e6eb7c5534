//! What the user's verbs take. Nothing but clap: `cargo xtask gen` reads this file as well, to write `docs/reference/cli.md`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// Which host cluster, as with kubectl.
#[derive(Args, Clone, Debug, Default)]
pub struct HostArgs {
    /// Path of the kubeconfig of the host cluster [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in that kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the KindCluster [default: the context's]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// The user's verbs.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Waits for a cluster and shows what it is doing
    ///
    /// On a terminal the stages are shown live with the time each one takes; in a pipe one line is written for each change.
    #[command(after_help = WAIT_EXIT_CODES)]
    Wait(WaitArgs),
    /// Prints the kubeconfig of a cluster, or writes it to a file
    Kubeconfig(KubeconfigArgs),
    /// Looks at every node of the host cluster and tells what keeps clusters from running there
    ///
    /// It starts a short-lived privileged pod on each node, in the namespace of the clusters, makes the checks that every cluster's pod makes, and
    /// removes the pods again.
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Prints the CustomResourceDefinitions as YAML
    Crd,
}

/// Exit codes of `doctor`, as its help shows them.
const DOCTOR_EXIT_CODES: &str = "\
Exit codes:
  0  clusters run on every node; there may be warnings
  1  the question could not be asked: wrong usage, no connection, no right
  2  some node cannot run clusters";

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Nodes to look at [default: all with Linux]
    pub nodes: Vec<String>,
    /// Image of the clusters' pods [default: the operator's]
    #[arg(long)]
    pub image: Option<String>,
    /// Namespace of the clusters [default: the operator's, or nestling-clusters]
    #[arg(long, value_name = "NAME")]
    pub clusters_namespace: Option<String>,
    /// Secret in that namespace with which the image is pulled; may be given more than once
    #[arg(long = "pull-secret", value_name = "NAME")]
    pub pull_secrets: Vec<String>,
    /// Take cgroup v1 for a warning [default: as the operator does]
    #[arg(long)]
    pub allow_cgroup_v1: bool,
    /// How long to wait for a node
    #[arg(long, default_value = "3m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Exit codes of `wait`, as its help shows them.
const WAIT_EXIT_CODES: &str = "\
Exit codes:
  0  the condition is true for the newest spec
  1  the question could not be asked: wrong usage, no connection, no right
  2  the cluster is stalled: it does not get there without a change
  3  the time is over
  4  there is no such object, or it is being deleted";

/// Arguments of `wait`.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// Name of the KindCluster
    pub name: String,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t = Goal::Ready, value_name = "CONDITION")]
    pub goal: Goal,
    /// How long to wait, such as 90s, 15m or 1h30m
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// A condition that can be waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Goal {
    /// All nodes are ready and the kubeconfig is published
    #[value(name = "Ready")]
    Ready,
    /// The API server answers; nodes may still be on their way
    #[value(name = "ControlPlaneReady")]
    ControlPlaneReady,
}

/// Arguments of `kubeconfig`.
#[derive(Args, Clone, Debug)]
pub struct KubeconfigArgs {
    /// Name of the KindCluster
    pub name: String,
    /// The kubeconfig for clients outside of the host cluster
    #[arg(long)]
    pub external: bool,
    /// Write to this file, readable for its owner only, instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Reads a duration as Go and kubectl write it: numbers with `h`, `m` or `s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90s, 15m or 1h30m");
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes()[digits] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    // A year is as good as for ever, and clocks can still add it.
    if text.is_empty() || seconds > 365 * 24 * 3600 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5400), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "m", "5x", "-5m", "1.5h", "5µ", "99999999999999999999s", "9999999999h", "10ms"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
