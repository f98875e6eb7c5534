//! `nestling delete`.

use std::io::Write;

use anyhow::Result;
use futures::future::join_all;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::wait::{await_condition, conditions};
use nestling_core::api::KindCluster;
use tokio::time::{Instant, timeout_at};

use super::exit::{GONE, TIMED_OUT, chain};
use super::failure::{Failure, command};
use super::host::{Host, connect};
use super::select::{answer, api, select};
use super::{DeleteArgs, HostArgs, Selection, kubeconfig, progress};

/// Deletes clusters.
pub async fn run(args: HostArgs, verb: DeleteArgs) -> Result<()> {
    let deadline = Instant::now() + verb.timeout;
    let host = connect(args.clone()).await?;
    let (mut deleted, mut failure) = (Vec::new(), None);
    for cluster in selected(&host, &verb).await? {
        match delete(&host, &cluster).await {
            Ok(()) => deleted.push(cluster),
            // The others go all the same.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    // Also where nobody waits: what is being deleted comes to no other end.
    for context in kubeconfig::forget(&args, &host, &deleted).await? {
        eprintln!("context {context} is removed from your kubeconfig");
    }
    let (host, wait) = (&host, verb.wait);
    let ends = join_all(deleted.iter().map(|cluster| async move { if wait { gone(host, cluster, deadline).await } else { Ok(()) } })).await;
    for (cluster, end) in deleted.iter().zip(ends) {
        match end {
            Ok(()) => writeln!(std::io::stdout(), "{}", told(cluster))?,
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// What is to go. Where nothing is, that is no error if it was not named.
async fn selected(host: &Host, verb: &DeleteArgs) -> Result<Vec<KindCluster>> {
    let nothing = |error: &anyhow::Error| error.downcast_ref::<Failure>().is_some_and(|failure| failure.code() == GONE);
    if verb.selection.names.is_empty() {
        return match select(host, &verb.selection).await {
            Err(error) if nothing(&error) => {
                eprintln!("no KindCluster found in namespace {}", host.namespace);
                Ok(vec![])
            }
            found => found,
        };
    }
    let mut found = Vec::new();
    for name in &verb.selection.names {
        match select(host, &Selection { names: vec![name.clone()], ..Selection::default() }).await {
            Err(error) if verb.ignore_not_found && nothing(&error) => {}
            one => found.extend(one?),
        }
    }
    Ok(found)
}

async fn delete(host: &Host, cluster: &KindCluster) -> Result<()> {
    let name = cluster.name_any();
    // One of the same name that was made meanwhile is not meant.
    let params = DeleteParams { preconditions: Some(Preconditions { uid: cluster.uid(), ..Preconditions::default() }), ..DeleteParams::default() };
    match api(host).delete(&name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.message.contains("protected from deletion") => Err(protected(&host.namespace, &name).into()),
        Err(error) => Err(answer(error, &format!("delete KindCluster {}/{name}", host.namespace))),
    }
}

fn protected(namespace: &str, name: &str) -> Failure {
    Failure::new(
        format!("KindCluster {namespace}/{name} is protected from deletion"),
        format!(
            "If it is to go, lift that first: `kubectl patch kindcluster {name} --namespace {namespace} --type merge --patch '{{\"spec\":{{\"lifecycle\":{{\"deletionProtection\":false}}}}}}'`."
        ),
    )
}

/// Waits until the object is gone, which is when nothing of the cluster is left.
async fn gone(host: &Host, cluster: &KindCluster, deadline: Instant) -> Result<()> {
    let (name, uid) = (cluster.name_any(), cluster.uid().unwrap_or_default());
    match timeout_at(deadline, await_condition(api(host), &name, conditions::is_deleted(&uid))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let what = format!("{name} is being deleted, but cannot be watched: {}", chain(&anyhow::Error::new(error)));
            let next = format!("See whether it is gone: `{}`.", command(&format!("get -n {} {name}", host.namespace)));
            Err(Failure::new(what, next).into())
        }
        Err(_) => {
            let newest = api(host).get_opt(&name).await.ok().flatten();
            Err(still_there(&host.namespace, newest.as_ref().unwrap_or(cluster)).into())
        }
    }
}

fn still_there(namespace: &str, cluster: &KindCluster) -> Failure {
    let name = cluster.name_any();
    let what = format!("{name} is being deleted, and was not gone in time: {}", progress::deletion(cluster));
    let next = format!("It goes on without you. Wait longer with --timeout, or see `{}`.", command(&format!("describe -n {namespace} {name}")));
    Failure::new(what, next).with_code(TIMED_OUT)
}

/// As kubectl says it.
fn told(cluster: &KindCluster) -> String {
    format!("kindcluster.nestling.dev \"{}\" deleted", cluster.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_say_what_to_do() {
        let deleting =
            json!({"type": "Deleting", "status": "True", "reason": "TearingDown", "message": "the pod ends", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let object = json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": "crane"}, "spec": {}, "status": {"conditions": [deleting]}});
        let cluster: KindCluster = serde_json::from_value(object).unwrap();
        let fresh = KindCluster { status: None, ..cluster.clone() };
        let told = [protected("marsh", "crane"), still_there("marsh", &cluster), still_there("marsh", &fresh)].map(|failure| failure.to_string());
        insta::assert_snapshot!(told.join("\n"));
    }
}
