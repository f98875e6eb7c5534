//! The way to the API server of a cluster: directly where it is exposed, else through a relay pod in the caller's own namespace. No right in the clusters namespace is needed.

mod relay;
mod signals;
mod target;
mod tunnel;

use std::time::Duration;

use anyhow::Result;
use futures::FutureExt;
use futures::future::select_ok;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nestling_core::api::KindCluster;
use tokio::time::{Instant, sleep, timeout};

pub use signals::{Interruption, interrupted, uninterrupted};

use super::exit::{TIMED_OUT, chain};
use super::failure::{Failure, command};
use super::host::Host;
use super::kubeconfig::From;
use super::kubeconfig::published::{self, name_of};
use super::{ReachArgs, select};
use relay::Relays;
use tunnel::{Route, Tunnel};

/// How long an endpoint may take to show that it can be used directly. Firewalls say nothing.
const DIRECT_LIMIT: Duration = Duration::from_secs(4);

/// How long the API server may take to answer through a tunnel that is open.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The same for one try.
const TRY_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(300);

/// A way that is open. It stays open until [`Way::close`]; what is dropped instead leaves a relay pod behind, which ends some minutes later.
pub struct Way {
    /// The cluster, as it was when the way was opened.
    pub cluster: KindCluster,
    /// For a child process: leads to the API server for as long as the way is open. The server's certificate is verified as ever.
    pub kubeconfig: Kubeconfig,
    /// For this process.
    pub client: Client,
    /// How it goes, for people.
    pub how: String,
    tunnel: Option<Tunnel>,
}

impl Way {
    /// Closes it, and deletes the relay pod if there is one.
    pub async fn close(self) {
        if let Some(tunnel) = self.tunnel {
            tunnel.close().await;
        }
    }
}

/// Opens a way ([`open`]) for some work and closes it afterwards, whatever came of the work. Ctrl-C and the signals that ask a process to end do so, in order.
///
/// # Errors
/// Those of [`open`] and of the work.
pub async fn visit<T>(host: &Host, name: &str, args: &ReachArgs, port: Option<u16>, work: impl AsyncFnOnce(&Way) -> Result<T>) -> Result<T> {
    let way = open(host, name, args, port).await?;
    let done = uninterrupted(work(&way)).await;
    way.close().await;
    done
}

/// Opens a way to the cluster of this name in the caller's namespace, on this local port if one is given. Says on standard error what it waits for.
///
/// # Errors
/// Says what keeps it from opening, and what to do about it. Nothing is left then, also after Ctrl-C.
pub async fn open(host: &Host, name: &str, args: &ReachArgs, port: Option<u16>) -> Result<Way> {
    let cluster = select::get(host, name).await?;
    target::check(&cluster)?;
    let published = endpoints(host, &cluster).await?;
    if let Some(direct) = uninterrupted(directly(&published).map(Ok)).await? {
        return direct.way(cluster, port).await;
    }
    let order = target::order(&cluster, &published.internal, args)?;
    let relays = Relays::new(host, order, args.relay_timeout);
    let tunnel = Tunnel::open(port, Route::Relay(Box::new(relays))).await?;
    let opened = uninterrupted(async {
        let pod = tunnel.ready().await?;
        let kubeconfig = target::at(&published.internal, tunnel.address())?;
        let client = client(kubeconfig.clone(), true).await?;
        answers(&client, &cluster).await?;
        Ok((kubeconfig, client, format!("through pod {pod} in namespace {}", host.namespace)))
    })
    .await;
    match opened {
        Ok((kubeconfig, client, how)) => Ok(Way { cluster, kubeconfig, client, how, tunnel: Some(tunnel) }),
        Err(error) => {
            tunnel.close().await;
            Err(error)
        }
    }
}

/// What the operator has published.
struct Endpoints {
    internal: Kubeconfig,
    external: Option<Kubeconfig>,
}

async fn endpoints(host: &Host, cluster: &KindCluster) -> Result<Endpoints> {
    let internal = published::read(host, cluster, From::Inside).await?;
    let best = published::read(host, cluster, From::Anywhere).await?;
    let external = best.is_external.then(|| target::read(&best.text)).transpose()?;
    Ok(Endpoints { internal: target::read(&internal.text)?, external })
}

/// An endpoint that answers without a relay.
struct Direct {
    kubeconfig: Kubeconfig,
    client: Client,
}

impl Direct {
    async fn way(self, cluster: KindCluster, port: Option<u16>) -> Result<Way> {
        let server = target::server(&self.kubeconfig)?;
        let how = format!("directly at https://{server}");
        let Some(port) = port else {
            return Ok(Way { cluster, kubeconfig: self.kubeconfig, client: self.client, how, tunnel: None });
        };
        let tunnel = Tunnel::open(Some(port), Route::Direct(server)).await?;
        let kubeconfig = target::at(&self.kubeconfig, tunnel.address())?;
        let client = client(kubeconfig.clone(), true).await?;
        Ok(Way { cluster, kubeconfig, client, how, tunnel: Some(tunnel) })
    }
}

/// The first endpoint that answers: the external one, or, for who is inside of the host cluster, the internal one.
async fn directly(published: &Endpoints) -> Option<Direct> {
    let endpoints = published.external.iter().chain([&published.internal]);
    let tries = endpoints.map(|kubeconfig| {
        async move {
            let client = client(kubeconfig.clone(), false).await?;
            // Whatever it says: it is there, and its certificate is the cluster's.
            match timeout(DIRECT_LIMIT, client.apiserver_version()).await? {
                Ok(_) | Err(kube::Error::Api(_)) => Ok(Direct { kubeconfig: kubeconfig.clone(), client }),
                Err(error) => Err(anyhow::Error::new(error)),
            }
        }
        .boxed()
    });
    if let Ok((direct, _)) = select_ok(tries).await {
        return Some(direct);
    }
    if let Some(server) = published.external.as_ref().and_then(|external| target::server(external).ok()) {
        eprintln!("https://{server} does not answer from here; a relay pod is used");
    }
    None
}

/// A client. A tunnel is on this very machine, where no proxy is asked.
async fn client(kubeconfig: Kubeconfig, tunnel: bool) -> Result<Client> {
    let wrong = |error: anyhow::Error| {
        Failure::new(format!("the published kubeconfig cannot be used: {}", chain(&error)), "The operator writes the Secret again when it is deleted.")
    };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|error| wrong(error.into()))?;
    if tunnel {
        config.proxy_url = None;
    }
    Ok(Client::try_from(config).map_err(|error| wrong(error.into()))?)
}

/// Waits until the API server answers to these credentials.
async fn answers(client: &Client, cluster: &KindCluster) -> Result<()> {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let start = Instant::now();
    loop {
        let last = match timeout(TRY_LIMIT, client.apiserver_version()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                let next = "The operator renews them; try again in a moment, and look at the condition KubeconfigPublished if that does not help.";
                return Err(Failure::new(format!("{name} does not accept the credentials in its Secret: {}", status.message), next).into());
            }
            Ok(Err(error)) => chain(&error.into()),
            Err(_) => format!("no answer within {} s", TRY_LIMIT.as_secs()),
        };
        if start.elapsed() > ANSWER_LIMIT {
            let what = format!("the API server of {name} has not answered through the relay pod within {} s: {last}", ANSWER_LIMIT.as_secs());
            let next = format!(
                "See how the cluster is: `{}`. If it is ready, look for a NetworkPolicy in your namespace that keeps pods from the clusters namespace.",
                command(&format!("wait {}", name_of(cluster)))
            );
            return Err(Failure::new(what, next).with_code(TIMED_OUT).into());
        }
        sleep(PAUSE).await;
    }
}
