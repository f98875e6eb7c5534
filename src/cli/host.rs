//! The connection to the host cluster, found as kubectl finds it.

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::HostArgs;

/// The host cluster and the namespace to look into.
pub struct Host {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

/// Connects.
pub async fn connect(args: HostArgs) -> Result<Host> {
    let config = config(&args).await?;
    let namespace = args.namespace.unwrap_or_else(|| config.default_namespace.clone());
    Ok(Host { client: Client::try_from(config).context("cannot use the kubeconfig of the host cluster")?, namespace })
}

async fn config(args: &HostArgs) -> Result<Config> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    if let Some(path) = &args.kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(|| format!("cannot use {}", path.display()));
    }
    if args.context.is_some() {
        return Config::from_kubeconfig(&options).await.context("cannot use the kubeconfig of the host cluster");
    }
    Config::infer().await.context("no host cluster: set KUBECONFIG or give --kubeconfig")
}

/// Turns an answer of the host's API server into words that say what to do about it.
pub fn explain(error: kube::Error, what: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!("you may not {what}: {}", status.message),
        kube::Error::Api(status) if status.code == 401 => anyhow::anyhow!("the host cluster does not accept your credentials: {}", status.message),
        other => anyhow::Error::new(other).context(format!("cannot {what}")),
    }
}

/// Whether the API server does not know the kind at all, as opposed to the object.
pub fn kind_is_unknown(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty()))
}

/// Fails for a cluster without Nestling.
pub fn not_installed<T>() -> Result<T> {
    bail!("this host cluster has no KindClusters: install Nestling's Helm chart, or choose another --context")
}
