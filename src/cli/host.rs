//! The connection to the host cluster, found as kubectl finds it.

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::HostArgs;
use super::exit::{GONE, chain};
use super::failure::{Failure, command};

/// The host cluster and the namespace to look into.
pub struct Host {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

/// Connects.
pub async fn connect(args: HostArgs) -> Result<Host> {
    let config = config(&args).await.map_err(|error| no_host(&chain(&error)))?;
    let namespace = args.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| no_host(&chain(&error.into())))?;
    Ok(Host { client, namespace })
}

async fn config(args: &HostArgs) -> Result<Config> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    if let Some(path) = &args.kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(|| format!("cannot use {}", path.display()));
    }
    if args.context.is_some() {
        return Ok(Config::from_kubeconfig(&options).await?);
    }
    Ok(Config::infer().await?)
}

fn no_host(why: &str) -> Failure {
    Failure::new(
        format!("the host cluster's kubeconfig cannot be used: {why}"),
        "Set KUBECONFIG, or give --kubeconfig and --context; `kubectl config get-contexts` lists the contexts.",
    )
}

/// Turns an answer of the host's API server into words that say what to do about it. `what` was to be done, such as `read KindCluster marsh/crane`.
pub fn explain(error: kube::Error, what: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => refused(status.code, &status.message, what).into(),
        other => Failure::new(
            format!("cannot {what}: {}", chain(&anyhow::Error::new(other))),
            "Check that the host cluster answers: `kubectl version`. Then try again.",
        )
        .into(),
    }
}

/// What an API server refuses, by its HTTP status.
pub fn refused(code: u16, message: &str, what: &str) -> Failure {
    match code {
        401 => Failure::new(
            format!("the host cluster does not accept your credentials: {message}"),
            "Log in to the host cluster again, or choose another --context.",
        ),
        403 => Failure::new(
            format!("you may not {what}: {message}"),
            "Ask the host cluster's administrator for that right in this namespace, or choose another --namespace or --context.",
        ),
        404 => Failure::new(format!("cannot {what}: {message}"), "Look at what there is, or choose another --namespace or --context.").with_code(GONE),
        422 | 400 => Failure::new(format!("cannot {what}: {message}"), "Correct what is named; `kubectl explain kindcluster.spec` describes the fields."),
        409 => Failure::new(format!("cannot {what}: {message}"), "Somebody else has changed it meanwhile; try again."),
        _ => Failure::new(format!("cannot {what}: {message}"), "The host's API server has refused it; try again in a moment."),
    }
}

/// Whether the API server does not know the kind at all, as opposed to the object.
pub fn kind_is_unknown(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty()))
}

/// What is to be said of a cluster without Nestling.
pub fn not_installed() -> Failure {
    Failure::new("this host cluster has no KindClusters", "Install Nestling's Helm chart, or choose another --context.")
}

/// What is to be said of an object that does not exist.
pub fn no_such(namespace: &str, name: &str) -> Failure {
    let next = format!("See which there are: `{}`, or choose another --namespace or --context.", command(&format!("get -n {namespace}")));
    Failure::new(format!("there is no KindCluster {namespace}/{name}"), next).with_code(GONE)
}
