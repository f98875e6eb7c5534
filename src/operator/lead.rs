//! What the leader does: gathers what passes need, keeps it fresh, and does passes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use kube::Client;
use nestling_core::plan::certificates::Validity;
use nestling_core::plan::settings::Settings;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::act::Actor;
use super::admin::{Admin, Gates};
use super::agent_authority::load_or_create;
use super::agent_client::AgentClient;
use super::args::Args;
use super::backoff::Backoff;
use super::controller::{self, Context};
use super::events::Events;
use super::fence::Fence;
use super::key::{Key, Triggers};
use super::logs::LogStore;
use super::observe::{Caches, Observer};
use super::own_writes::OwnWrites;
use super::pki::{Authority, operator_certificate};
use super::reports::Reports;
use super::shutdown::DRAIN;
use super::slots::SlotQueue;
use super::{host, sweeper, watch as caching};

/// How often the host is asked for its ranges and addresses.
const HOST_EVERY: Duration = Duration::from_hours(1);

/// How often the certificates towards agents are looked at.
const CHANNEL_EVERY: Duration = Duration::from_hours(24);

/// Pause after something that is needed at the start could not be had.
const AGAIN: Duration = Duration::from_secs(2);

const HOST: &str = "the host's address ranges";
const AUTHORITY: &str = "the agents' authority";
const CACHES: [&str; 6] = [
    "the cache of KindClusters",
    "the cache of pods",
    "the cache of Services",
    "the cache of network policies",
    "the cache of Secrets",
    "the cache of claims on volumes",
];
const NOT_ENDING: &str = "not shutting down";

/// Leads until `shutdown`, then finishes what is under way.
pub async fn lead(args: &Args, client: Client, fence: Fence, identity: &str, admin: &Admin, shutdown: CancellationToken) -> anyhow::Result<()> {
    let gates = &admin.gates;
    for gate in [HOST, AUTHORITY].iter().chain(&CACHES) {
        gates.close(gate);
    }
    let prepared = async {
        let settings = until_had(HOST, gates, async || host::facts(&client, &args.host_ranges).await.map(|facts| args.settings(facts))).await;
        let agents = until_had(AUTHORITY, gates, async || load_or_create(&client, &args.namespace, &args.install, Timestamp::now()).await).await;
        (settings, agents)
    };
    let Some((settings, agents)) = shutdown.run_until_cancelled(prepared).await else { return Ok(()) };

    let (triggers, keys) = Triggers::new();
    let (caches, writers) = caching::caches();
    let (settings_sender, settings) = watch::channel(Arc::new(settings));
    let own = operator_certificate(&agents, Timestamp::now()).context("cannot make the certificate towards agents")?;
    let channel = AgentClient::new(&agents, &own).context("cannot set up TLS towards agents")?;
    let (authority, agents) = watch::channel(agents);
    let context = context(args, (&client, fence), identity, admin, channel, (agents, settings, caches.clone(), triggers.clone()));

    let forgetful = Arc::clone(&context);
    let scope = (args.clusters_namespace.as_str(), args.install.as_str());
    // Ends with this function: dropping the set stops its tasks.
    let mut tasks = caching::start(&client, scope, &caches, writers, &triggers, move |key| forgetful.forget(key));
    tasks.spawn(keep_host_facts(args.clone(), client.clone(), settings_sender, caches.clone(), triggers));
    tasks.spawn(keep_channel(args.clone(), client.clone(), authority, Arc::clone(&context.reports), own.validity));

    let Some(filled) = shutdown.run_until_cancelled(fill(&caches, gates)).await else { return Ok(()) };
    filled.context("a cache has stopped")?;
    tasks.spawn(sweeper::run(client, args.clusters_namespace.clone(), caches));
    context.restore_slots();
    let numbers = Arc::clone(&context);
    let _ = admin.source.set(Box::new(move || numbers.snapshot()));
    info!("ready");

    let passes = controller::run(context, keys, args.concurrency, shutdown.clone());
    let bound = async {
        shutdown.cancelled().await;
        gates.close(NOT_ENDING);
        sleep(DRAIN).await;
    };
    tokio::select! {
        () = passes => {}
        () = bound => warn!("gave up after {}s waiting for the passes under way", DRAIN.as_secs()),
        stopped = first_to_stop(&mut tasks) => return Err(stopped),
    }
    Ok(())
}

/// Puts together what passes share.
fn context(
    args: &Args,
    (client, fence): (&Client, Fence),
    identity: &str,
    admin: &Admin,
    channel: AgentClient,
    (agents, settings, caches, triggers): (watch::Receiver<Authority>, watch::Receiver<Arc<Settings>>, Caches, Triggers),
) -> Arc<Context> {
    let metrics = Arc::clone(&admin.metrics);
    let reports = Reports::new(channel, args.agent_address(), triggers.clone(), Arc::clone(&metrics));
    let logs = LogStore::new(Arc::clone(&reports), triggers.clone(), Arc::clone(&metrics));
    Arc::new(Context {
        client: client.clone(),
        observer: Observer { client: client.clone(), caches, settings, reports: Arc::clone(&reports), logs: Arc::clone(&logs) },
        actor: Actor { client: client.clone(), fence, agents, reports: Arc::clone(&reports), logs: Arc::clone(&logs), metrics: Arc::clone(&metrics) },
        slots: SlotQueue::new(usize::try_from(args.max_creating).unwrap_or(1), triggers),
        reports,
        logs,
        events: Events::new(client.clone(), identity),
        metrics,
        backoff: Mutex::new(Backoff::default()),
        own_writes: Mutex::new(OwnWrites::default()),
        told: Mutex::default(),
    })
}

/// Tries until there is an answer. What is waited for shows in `/readyz`.
async fn until_had<T, E: std::fmt::Display>(what: &'static str, gates: &Gates, attempt: impl AsyncFn() -> Result<T, E>) -> T {
    loop {
        match attempt().await {
            Ok(value) => {
                gates.open(what);
                return value;
            }
            Err(error) => warn!(%error, "waiting for {what}"),
        }
        sleep(AGAIN).await;
    }
}

/// Waits until all caches are complete.
async fn fill(caches: &Caches, gates: &Gates) -> anyhow::Result<()> {
    caches.clusters.wait_until_ready().await?;
    gates.open(CACHES[0]);
    caches.pods.wait_until_ready().await?;
    gates.open(CACHES[1]);
    caches.services.wait_until_ready().await?;
    gates.open(CACHES[2]);
    caches.policies.wait_until_ready().await?;
    gates.open(CACHES[3]);
    caches.keys.wait_until_ready().await?;
    gates.open(CACHES[4]);
    caches.claims.wait_until_ready().await?;
    gates.open(CACHES[5]);
    Ok(())
}

/// Asks the host again every hour; a change has every cluster looked at.
async fn keep_host_facts(args: Args, client: Client, settings: watch::Sender<Arc<Settings>>, caches: Caches, triggers: Triggers) {
    loop {
        sleep(HOST_EVERY).await;
        match host::facts(&client, &args.host_ranges).await {
            Ok(facts) => {
                let changed = settings.send_if_modified(|settings| {
                    let changed = settings.host != facts;
                    if changed {
                        *settings = Arc::new(args.settings(facts));
                    }
                    changed
                });
                if changed {
                    info!("the host's ranges or addresses have changed");
                    for key in caches.clusters.state().iter().filter_map(|object| Key::of(kube::Resource::meta(object.as_ref()))) {
                        triggers.fire(key);
                    }
                }
            }
            Err(error) => warn!(%error, "cannot ask for the host's address ranges; the last ones stay"),
        }
    }
}

/// Looks every day whether the operator's own certificate, or the authority behind it, is to be followed by the next one.
async fn keep_channel(args: Args, client: Client, authority: watch::Sender<Authority>, reports: Arc<Reports>, mut own: Validity) {
    loop {
        sleep(CHANNEL_EVERY).await;
        let now = Timestamp::now();
        let agents = match load_or_create(&client, &args.namespace, &args.install, now).await {
            Ok(agents) => agents,
            Err(error) => {
                warn!(%error, "cannot look after the agents' authority; the last one stays");
                continue;
            }
        };
        let followed = authority.borrow().certificate != agents.certificate;
        if !followed && !own.is_due(now) {
            continue;
        }
        let renewed = operator_certificate(&agents, now).map_err(anyhow::Error::new).and_then(|made| {
            reports.client().adopt(&agents, &made)?;
            Ok(made.validity)
        });
        match renewed {
            Ok(validity) => {
                info!(ends = %validity.ends, followed, "the operator has a new certificate towards agents");
                own = validity;
                authority.send_replace(agents);
            }
            Err(error) => warn!(%error, "cannot renew the certificate towards agents"),
        }
    }
}

/// None of these tasks ends by itself: if one does, the leader is not complete any more.
async fn first_to_stop(tasks: &mut JoinSet<()>) -> anyhow::Error {
    match tasks.join_next().await {
        Some(Err(error)) => anyhow::Error::new(error).context("a task of the leader has ended"),
        Some(Ok(())) | None => anyhow::anyhow!("a task of the leader has ended"),
    }
}
