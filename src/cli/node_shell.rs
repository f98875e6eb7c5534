//! `nestling node-shell`: a shell, or a command, in a node.

use std::io::{IsTerminal, stdin, stdout};
use std::time::Duration;

use anyhow::Result;
use kube::Client;

use super::exit::Passed;
use super::host::connect;
use super::node_access::{Input, NodePods, nodes, on_terminal, pass};
use super::{HostArgs, NodeShellArgs, reach};

/// How long a session may last.
const LIFE: Duration = Duration::from_hours(12);

/// Runs it.
pub async fn run(host: HostArgs, args: NodeShellArgs) -> Result<()> {
    let host = connect(host).await?;
    let way = reach::open(&host, &args.name, &args.reach, None).await?;
    let pods = NodePods::new(&way.client);
    let done = Box::pin(reach::uninterrupted(enter(&way.client, &pods, &args))).await;
    pods.remove().await;
    way.close().await;
    match done? {
        0 => Ok(()),
        code => Err(Passed::code(code).into()),
    }
}

async fn enter(client: &Client, pods: &NodePods, args: &NodeShellArgs) -> Result<u8> {
    let node = nodes(client, &args.name, std::slice::from_ref(&args.node)).await?.remove(0);
    let pod = pods.start(&node, LIFE).await?;
    let shell = || vec!["bash".to_owned(), "-l".to_owned()];
    let command = if args.command.is_empty() { shell() } else { args.command.clone() };
    match (stdin().is_terminal(), stdout().is_terminal()) {
        (true, true) => on_terminal(&pods.pods, &pod, &command).await,
        // Nobody means to type what somebody else is to read.
        (true, false) => pass(&pods.pods, &pod, &command, None).await,
        (false, _) => pass(&pods.pods, &pod, &command, Some(Input::standard())).await,
    }
}
