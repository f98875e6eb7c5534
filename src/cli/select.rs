//! Finds the KindClusters that a verb is about.

use anyhow::Result;
use kube::Api;
use kube::api::ListParams;
use nestling_core::api::KindCluster;

use super::Selection;
use super::exit::GONE;
use super::failure::{Failure, command};
use super::host::{Host, explain, kind_is_unknown, no_such, not_installed};

/// The selected KindClusters, by name; at least one.
///
/// # Errors
/// If one that is named does not exist, or if none has the labels (exit code [`GONE`]).
pub async fn select(host: &Host, selection: &Selection) -> Result<Vec<KindCluster>> {
    let mut found = Vec::new();
    if selection.names.is_empty() {
        let namespace = &host.namespace;
        let what = format!("list KindClusters in namespace {namespace}");
        let params = selection.selector.as_ref().map_or_else(ListParams::default, |labels| ListParams::default().labels(labels));
        let listed = api(host).list(&params).await.map_err(|error| answer(error, &what))?;
        found = listed.items;
        if found.is_empty() {
            return Err(nothing_selected(namespace, selection.selector.as_deref()).into());
        }
    }
    for name in &selection.names {
        found.push(get(host, name).await?);
    }
    found.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    found.dedup_by(|one, other| one.metadata.name == other.metadata.name);
    Ok(found)
}

/// The KindCluster of this name.
///
/// # Errors
/// If there is none (exit code [`GONE`]).
pub async fn get(host: &Host, name: &str) -> Result<KindCluster> {
    let namespace = &host.namespace;
    match api(host).get_opt(name).await {
        Ok(Some(cluster)) => Ok(cluster),
        Ok(None) => Err(no_such(namespace, name).into()),
        Err(error) => Err(answer(error, &format!("read KindCluster {namespace}/{name}"))),
    }
}

/// KindClusters in the host's namespace.
pub fn api(host: &Host) -> Api<KindCluster> {
    Api::namespaced(host.client.clone(), &host.namespace)
}

/// As [`explain`], where the kind itself may be unknown.
pub fn answer(error: kube::Error, what: &str) -> anyhow::Error {
    if kind_is_unknown(&error) { not_installed().into() } else { explain(error, what) }
}

fn nothing_selected(namespace: &str, selector: Option<&str>) -> Failure {
    let what = match selector {
        Some(labels) => format!("no KindCluster in namespace {namespace} has the labels {labels}"),
        None => format!("there is no KindCluster in namespace {namespace}"),
    };
    let next = format!("See which there are: `{}`, or choose another --namespace or --context.", command(&format!("get -n {namespace}")));
    Failure::new(what, next).with_code(GONE)
}
