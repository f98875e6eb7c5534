//! What the user's verbs take, one file each. Nothing but clap: `cargo xtask gen` reads these files as well, to write `docs/reference/cli.md`.

mod completion;
mod connect;
mod create;
mod delete;
mod doctor;
mod extend;
mod get;
mod kubeconfig;
mod load;
mod logs;
mod node_shell;
mod power;
mod reach;
mod selection;
mod wait;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub use completion::{CompleteArgs, CompletionArgs, Shell};
pub use connect::{ConnectArgs, ShellArgs};
pub use create::{CreateArgs, DryRun};
pub use delete::DeleteArgs;
pub use doctor::{DoctorArgs, Output};
pub use extend::ExtendArgs;
pub use get::{DescribeArgs, GetArgs};
pub use kubeconfig::KubeconfigArgs;
pub use load::LoadArgs;
pub use logs::LogsArgs;
pub use node_shell::NodeShellArgs;
pub use power::PowerArgs;
pub use reach::ReachArgs;
pub use selection::{Form, Selection};
pub use wait::{Goal, WaitArgs};

/// Which host cluster, as with kubectl.
#[derive(Args, Clone, Debug, Default)]
pub struct HostArgs {
    /// Kubeconfig that leads to the host cluster, and that contexts are merged into [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in that kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the KindCluster [default: the context's]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// What the program takes, without the verbs that are not for users.
#[derive(Parser)]
#[command(name = "nestling", bin_name = "nestling")]
pub struct UserVerbs {
    /// Which host cluster.
    #[command(flatten)]
    pub host: HostArgs,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Exit codes of most verbs, as their help shows them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it could not be done: wrong usage, no connection, no right, refused
  4  there is no such object";

/// Exit codes of verbs that may wait.
const EXIT_CODES_WITH_WAIT: &str = "\
Exit codes:
  0  done
  1  it could not be done: wrong usage, no connection, no right, refused
  2  with --wait: the cluster does not get there without a change
  3  with --wait: the time is over
  4  there is no such object, or it is being deleted";

/// The user's verbs.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Creates a cluster
    ///
    /// With --wait it goes on as kind does: when the cluster is Ready, its kubeconfig is merged into yours, and kind-NAME becomes the current context.
    /// The verbs here then still find the host cluster. Where the cluster cannot be reached from outside its host, your kubeconfig stays as it is.
    #[command(after_help = EXIT_CODES_WITH_WAIT)]
    Create(Box<CreateArgs>),
    /// Lists clusters
    #[command(after_help = EXIT_CODES)]
    Get(GetArgs),
    /// Shows a cluster on one screen, and what to do next
    #[command(after_help = EXIT_CODES)]
    Describe(DescribeArgs),
    /// Waits for clusters and shows what they are doing
    ///
    /// On a terminal the stages are shown live with the time each one takes; in a pipe one line is written for each change.
    #[command(after_help = wait::EXIT_CODES)]
    Wait(WaitArgs),
    /// Merges the kubeconfig of a cluster into yours, prints it, or writes it to a file
    ///
    /// The context is named kind-NAME, and marked as made here: an entry that anybody else made is never overwritten. The current context stays, unless
    /// --set-current is given. `delete` takes the entries away again.
    #[command(after_help = EXIT_CODES)]
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
    /// Freezes clusters: they use no CPU, keep their memory and are back within a second
    #[command(after_help = EXIT_CODES_WITH_WAIT)]
    Freeze(PowerArgs),
    /// Stops clusters: they use neither CPU nor memory, and keep their disks
    #[command(after_help = EXIT_CODES_WITH_WAIT)]
    Stop(PowerArgs),
    /// Lets frozen or stopped clusters run again
    #[command(after_help = EXIT_CODES_WITH_WAIT)]
    Start(PowerArgs),
    /// Gives a cluster more time
    ///
    /// DURATION is added to the end that the cluster has now.
    #[command(after_help = EXIT_CODES)]
    Extend(ExtendArgs),
    /// Deletes clusters, and their entries in your kubeconfig
    #[command(after_help = EXIT_CODES_WITH_WAIT)]
    Delete(DeleteArgs),
    /// Looks at every node of the host cluster and tells what keeps clusters from running there
    ///
    /// It starts a short-lived privileged pod on each node, in the namespace of the clusters, makes the checks that every cluster's pod makes, and
    /// removes the pods again.
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Prints the CustomResourceDefinitions as YAML
    Crd,
    /// Prints a script that completes command lines
    Completion(CompletionArgs),
    /// Completes a command line for kubectl
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
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
