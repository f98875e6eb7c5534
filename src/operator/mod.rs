//! The operator: everything that reads or writes the host cluster.
//!
//! One process at a time leads. It keeps caches, and for each `KindCluster` does passes: observe, decide, act, settle. What is decided is in
//! `nestling-core`.

mod act;
mod admin;
mod agent_authority;
mod agent_client;
mod args;
mod backoff;
mod call;
mod children;
mod controller;
mod events;
mod fault;
mod fence;
pub mod host;
mod kept;
mod key;
mod kubeconfig;
mod lead;
mod lease;
mod leftovers;
mod live;
mod logs;
pub mod metrics;
#[cfg(test)]
mod mock;
mod observe;
mod own_writes;
mod packed;
mod patches;
pub mod pki;
mod reports;
mod shutdown;
mod slots;
mod status;
mod sweeper;
mod telemetry;
mod turns;
mod watch;

use std::sync::Arc;

use anyhow::Context as _;
use kube::{Client, Config};
use tracing::info;

pub use args::{Args, LogFormat};

use admin::Admin;
use lease::{Held, Lease};

/// Condition of being ready: this process has looked at the lease.
const LEASE: &str = "the lease";

/// Runs the operator until a signal ends it.
///
/// # Errors
/// If it cannot start, or if it is the leader no longer: the process is to end then, and be started anew.
pub async fn run(args: Args) -> anyhow::Result<()> {
    args.check().map_err(anyhow::Error::msg)?;
    telemetry::init(args.log_format)?;
    // Another part of the process may have chosen one: that will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shutdown = shutdown::on_signal().context("cannot wait for signals")?;
    let admin = Arc::new(Admin::default());
    admin.gates.close(LEASE);
    let admin_server = tokio::spawn(admin::serve(args.admin_address, Arc::clone(&admin)));

    let config = Config::infer().await.context("cannot find the host cluster")?;
    let client = Client::try_from(config.clone()).context("cannot speak to the host cluster")?;
    let identity = identity(&args)?;
    let lease_name = args.lease_name.clone().unwrap_or_else(|| args.install.clone());
    let lease = Lease::new(client, &args.namespace, lease_name, identity.clone());
    info!(identity, install = args.install, "competing for the lease");
    let gates = admin.gates.clone();
    let mut held: Held = tokio::select! {
        held = lease.acquire(|| gates.open(LEASE)) => held,
        () = shutdown.cancelled() => return Ok(()),
        ended = admin_server => return Err(no_server(ended)),
    };
    admin.gates.open(LEASE);
    admin.metrics.leads(true);
    let fence = held.fence();
    let client = fence.client(config).context("cannot speak to the host cluster")?;
    let result = tokio::select! {
        lost = held.keep() => Err(anyhow::Error::new(lost)),
        led = lead::lead(&args, client, fence, &identity, &admin, shutdown.clone()) => led,
    };
    admin.metrics.leads(false);
    // A lease that was lost is not ours to free.
    if result.is_ok() {
        held.vacate().await;
    }
    result
}

fn no_server(served: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match served {
        Ok(Ok(())) => anyhow::anyhow!("the admin server has ended"),
        Ok(Err(error)) => anyhow::Error::new(error).context("cannot serve /livez, /readyz and /metrics"),
        Err(error) => anyhow::Error::new(error),
    }
}

/// The name of this process among those that compete.
fn identity(args: &Args) -> anyhow::Result<String> {
    if let Some(identity) = args.identity.clone().filter(|identity| !identity.is_empty()) {
        return Ok(identity);
    }
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().into_owned())
}
