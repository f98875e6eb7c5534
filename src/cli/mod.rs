//! The user's verbs, one file each.

mod args;
mod completion;
mod connect;
mod crd;
mod create;
mod delete;
mod describe;
mod doctor;
mod exit;
mod extend;
mod failure;
mod get;
mod host;
mod kubeconfig;
mod load;
mod logs;
mod node_access;
mod node_shell;
mod output;
mod power;
mod pre_delete;
mod progress;
mod reach;
mod select;
mod shell;
mod temporary;
mod wait;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nestling_core::api::PowerState;

pub use args::{
    ConnectArgs, CreateArgs, DeleteArgs, DescribeArgs, DoctorArgs, ExtendArgs, Form, GetArgs, Goal, HostArgs, KubeconfigArgs, LoadArgs, LogsArgs,
    NodeShellArgs, Output, PowerArgs, ReachArgs, Selection, ShellArgs, Verb, WaitArgs,
};
pub use exit::usage;
pub use pre_delete::pre_delete;

/// Runs one of the user's verbs.
///
/// # Errors
/// What is to be told to the user; see [`block_on`] for the exit code.
pub async fn run(host: HostArgs, verb: Verb) -> Result<()> {
    match verb {
        // Boxed: with its watch each of them is twenty kilobytes of state.
        Verb::Create(args) => Box::pin(create::run(host, *args)).await,
        Verb::Get(args) => Box::pin(get::run(host, args)).await,
        Verb::Describe(args) => describe::run(host, args).await,
        Verb::Wait(args) => Box::pin(wait::run(host, args)).await,
        Verb::Kubeconfig(args) => kubeconfig::run(host, args).await,
        Verb::Connect(args) => Box::pin(connect::run(host, args)).await,
        Verb::Shell(args) => Box::pin(shell::run(host, args)).await,
        Verb::Load(args) => Box::pin(load::run(host, args)).await,
        Verb::NodeShell(args) => Box::pin(node_shell::run(host, args)).await,
        Verb::Logs(args) => logs::run(host, args).await,
        Verb::Freeze(args) => Box::pin(power::run(host, args, PowerState::Frozen)).await,
        Verb::Stop(args) => Box::pin(power::run(host, args, PowerState::Stopped)).await,
        Verb::Start(args) => Box::pin(power::run(host, args, PowerState::Running)).await,
        Verb::Extend(args) => Box::pin(extend::run(host, args)).await,
        Verb::Delete(args) => Box::pin(delete::run(host, args)).await,
        Verb::Doctor(args) => Box::pin(doctor::run(host, args)).await,
        Verb::Crd => crd::run(),
        Verb::Completion(args) => completion::run(&args),
        Verb::Complete(args) => completion::complete(&args).await,
    }
}

/// Runs to the end and turns the result into an exit code; an error goes to standard error, with its causes.
pub fn block_on(work: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads");
    exit::report(runtime.and_then(|runtime| runtime.block_on(work)))
}

/// How this program is called: as kubectl's plugin or by its own name.
pub fn program() -> &'static str {
    let path = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let plugin = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"));
    if plugin { "kubectl nestling" } else { "nestling" }
}
