//! What the user's verbs take, one file each. Nothing but clap: `cargo xtask gen` reads these files as well, to write `docs/reference/cli.md`.

mod connect;
mod doctor;
mod kubeconfig;
mod load;
mod logs;
mod node_shell;
mod reach;
mod selection;
mod wait;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

pub use connect::{ConnectArgs, ShellArgs};
pub use doctor::{DoctorArgs, Output};
pub use kubeconfig::KubeconfigArgs;
pub use load::LoadArgs;
pub use logs::LogsArgs;
pub use node_shell::NodeShellArgs;
pub use reach::ReachArgs;
pub use selection::{Form, Selection};
pub use wait::{Goal, WaitArgs};

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
    #[command(after_help = wait::EXIT_CODES)]
    Wait(WaitArgs),
    /// Prints the kubeconfig of a cluster, or writes it to a file
    Kubeconfig(KubeconfigArgs),
    /// Holds a way to a cluster open for kubectl in other terminals
    ///
    /// It prints a line that sets KUBECONFIG. A cluster that is exposed is reached directly; otherwise a relay pod in your namespace leads there, through the
    /// host's API. The kubeconfig and the pod are removed at the end, which is Ctrl-C.
    #[command(after_help = connect::CONNECT_EXIT_CODES)]
    Connect(ConnectArgs),
    /// Runs a command or a shell with KUBECONFIG set to a cluster
    ///
    /// The cluster is reached as with `connect`. NESTLING_CLUSTER and NESTLING_NAMESPACE name it, and a plain shell shows it in its prompt.
    #[command(after_help = connect::SHELL_EXIT_CODES)]
    Shell(ShellArgs),
    /// Loads images into the nodes of a cluster
    ///
    /// Archives are read once and go into all nodes at the same time, through the cluster itself: its own credentials are all that is needed. Of an archive for
    /// several platforms, each node takes its own. A pod finds the image if its imagePullPolicy is not Always, which is the default for `:latest`.
    #[command(after_help = load::EXIT_CODES)]
    Load(LoadArgs),
    /// Runs a command or a shell in a node of a cluster
    ///
    /// By way of a privileged pod in the cluster's kube-system, which is removed at the end.
    #[command(after_help = node_shell::EXIT_CODES)]
    NodeShell(NodeShellArgs),
    /// Prints the logs of a cluster's last failed attempt
    ///
    /// They are in a Secret beside the object, also when creation has failed.
    #[command(after_help = logs::EXIT_CODES)]
    Logs(LogsArgs),
    /// Looks at every node of the host cluster and tells what keeps clusters from running there
    ///
    /// It starts a short-lived privileged pod on each node, in the namespace of the clusters, makes the checks that every cluster's pod makes, and
    /// removes the pods again.
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Prints the CustomResourceDefinitions as YAML
    Crd,
}

/// Reads a duration as Go and kubectl write it: numbers with `h`, `m` or `s`.
pub fn duration(text: &str) -> Result<Duration, String> {
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
