//! `nestling`: one program, in three rooms. Which one is chosen here and nowhere else.

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use nestling::cli::{self, HostArgs, Verb};
use nestling::relay::{self, RelayArgs};
use nestling::{agent, operator};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Real kind clusters as Kubernetes objects.
#[derive(Parser)]
#[command(name = "nestling", bin_name = "nestling", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
struct CommandLine {
    #[command(flatten)]
    host: HostArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    User(Verb),
    /// Runs the operator; the Helm chart does this
    Operator(Box<operator::Args>),
    /// Runs a cluster inside its pod
    #[command(hide = true)]
    Agent(AgentArgs),
    /// Passes connections on to a cluster; the command line starts pods that do this
    #[command(hide = true)]
    Relay(RelayArgs),
    /// Refuses while there are KindClusters; the Helm chart asks before it uninstalls
    #[command(hide = true)]
    PreDelete,
}

#[derive(Args)]
struct AgentArgs {
    /// Set by the agent itself: this process is watched over by another one
    #[arg(long)]
    supervised: bool,
    /// Only look at the host, and print what was found as one line of JSON
    #[arg(long, conflicts_with = "supervised")]
    examine: bool,
    /// Take cgroup v1 for a warning
    #[arg(long, requires = "examine")]
    allow_cgroup_v1: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if let Some(role) = arguments.next().and_then(|program| agent::other_names::role(&program)) {
        return role(&arguments.collect::<Vec<_>>());
    }
    let parsed = CommandLine::command().bin_name(cli::program()).try_get_matches().and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed {
        Ok(line) => line,
        Err(error) => return cli::usage(&error),
    };
    match line.command {
        // Before any thread exists: the agent is PID 1 and unshares its namespaces, which binds only the calling thread.
        Command::Agent(args) if args.examine => agent::examine(args.allow_cgroup_v1),
        Command::Agent(args) => agent::run(args.supervised),
        Command::Operator(args) => cli::block_on(operator::run(*args)),
        Command::Relay(args) => cli::block_on(relay::run(args)),
        Command::PreDelete => cli::block_on(cli::pre_delete(line.host)),
        Command::User(verb) => cli::block_on(cli::run(line.host, verb)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_operators_own_namespace_is_not_kubectls() {
        let line = CommandLine::try_parse_from(["nestling", "operator", "--pod-image=a", "--namespace=reed"]).unwrap();
        assert!(matches!(line.command, Command::Operator(args) if args.namespace == "reed"));
        let line = CommandLine::try_parse_from(["nestling", "operator", "--pod-image=a"]).unwrap();
        assert!(matches!(line.command, Command::Operator(args) if args.namespace == "nestling-system"));
    }

    #[test]
    fn kubectls_flags_are_taken_on_either_side_of_the_verb() {
        for words in ["nestling -n marsh --context c wait crane", "nestling wait crane -n marsh --context c"] {
            let line = CommandLine::try_parse_from(words.split(' ')).unwrap();
            assert_eq!((line.host.namespace.as_deref(), line.host.context.as_deref()), (Some("marsh"), Some("c")), "{words}");
        }
    }
}
