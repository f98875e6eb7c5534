//! The connection to the host cluster, found as kubectl finds it.

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::HostArgs;
use super::exit::{GONE, chain};
use super::failure::{Failure, command};
use super::kubeconfig;
use super::kubeconfig::entries::{EXTENSION, Owner};

/// The host cluster and the namespace to look into.
pub struct Host {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// Context in the kubeconfig that led here; none in a pod without a kubeconfig.
    pub context: Option<String>,
}

/// Connects.
pub async fn connect(args: HostArgs) -> Result<Host> {
    let (config, context) = config(&args).await.map_err(|error| no_host(&chain(&error)))?;
    let namespace = args.namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| no_host(&chain(&error.into())))?;
    Ok(Host { client, namespace, context })
}

/// As kubectl finds it, but that a current context which leads into a nested cluster, and was made by us, stands for the context of its host.
async fn config(args: &HostArgs) -> Result<(Config, Option<String>)> {
    let mut kubeconfig = Kubeconfig::default();
    for path in kubeconfig::paths(args).iter().filter(|path| args.kubeconfig.is_some() || path.exists()) {
        let next = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
        kubeconfig = kubeconfig.merge(next).with_context(|| format!("cannot use {} beside the others", path.display()))?;
    }
    let Some(context) = args.context.clone().or_else(|| host_context(&kubeconfig)) else {
        let config = Config::incluster().context("there is no kubeconfig with a current context, and this is no pod")?;
        return Ok((config, None));
    };
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    Ok((Config::from_custom_kubeconfig(kubeconfig, &options).await?, Some(context)))
}

/// The current context, or that of the host cluster where the current one is of a nested cluster.
fn host_context(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_ref().filter(|name| !name.is_empty())?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == *current).and_then(|named| named.context.as_ref());
    let extensions = context.and_then(|context| context.extensions.as_ref()).into_iter().flatten();
    let ours = extensions.filter(|extension| extension.name == EXTENSION).find_map(|found| serde_json::from_value::<Owner>(found.extension.clone()).ok());
    ours.map_or_else(|| Some(current.clone()), |owner| owner.host_context)
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
        403 if message.contains("exceeded quota") => {
            Failure::new(format!("cannot {what}: {message}"), "Delete what is not needed any more, or ask who gives this namespace its quota.")
        }
        403 if message.contains("denied") => {
            Failure::new(format!("cannot {what}: {message}"), "Ask for something that this host's policy allows, or ask the operator's owner.")
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_context_stands_for_its_host() {
        let kubeconfig = |current: &str, extension: &str| {
            let text = format!("current-context: {current}\ncontexts:\n- name: c\n  context: {{cluster: c, user: c, extensions: [{extension}]}}\n");
            Kubeconfig::from_yaml(&text).unwrap()
        };
        let ours = |host: &str| format!("{{name: nestling.dev, extension: {{clusterUID: u, namespace: marsh, name: crane{host}}}}}");
        for (current, extension, expected) in [
            ("c", String::new(), Some("c")),
            ("c", "{name: minikube, extension: {hostContext: h}}".to_owned(), Some("c")),
            ("c", ours(", hostContext: h"), Some("h")),
            ("c", ours(""), None),
            ("gone", ours(""), Some("gone")),
            ("''", ours(", hostContext: h"), None),
        ] {
            assert_eq!(host_context(&kubeconfig(current, &extension)).as_deref(), expected, "{current} {extension}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do_next() {
        let codes = [400, 401, 403, 404, 409, 422, 429, 500, 503];
        let mut told: Vec<String> = codes.iter().map(|code| format!("{code}: {}", refused(*code, "MESSAGE", "list KindClusters"))).collect();
        for message in ["ValidatingAdmissionPolicy 'a' with binding 'a' denied request: no", "exceeded quota: q"] {
            told.push(refused(403, message, "list KindClusters").to_string());
        }
        insta::assert_snapshot!(told.join("\n"));
    }
}
