//! `nestling pre-delete`: the Helm chart's question before it uninstalls.

use anyhow::Result;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nestling_core::api::KindCluster;

use super::HostArgs;
use super::failure::Failure;
use super::host::{connect, explain, kind_is_unknown};

/// How many clusters are named; more make nobody wiser.
const NAMED: usize = 10;

/// Fails while there is a `KindCluster` in any namespace.
///
/// # Errors
/// One that says how to go on, also where the question cannot be asked: without an answer nothing is deleted.
pub async fn pre_delete(host: HostArgs) -> Result<()> {
    let client = connect(host).await?.client;
    let clusters = match Api::<KindCluster>::all(client).list_metadata(&ListParams::default()).await {
        Ok(clusters) => clusters.items,
        Err(error) if kind_is_unknown(&error) => vec![],
        Err(error) => return Err(explain(error, "list KindClusters; nothing is deleted without knowing (helm uninstall --no-hooks does not ask)")),
    };
    let names: Vec<String> = clusters.iter().map(|cluster| format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any())).collect();
    match refusal(&names) {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

/// Why not, if not.
fn refusal(names: &[String]) -> Option<Failure> {
    if names.is_empty() {
        return None;
    }
    let mut list = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        list = format!("{list} and {} more", names.len() - NAMED);
    }
    let (count, are) = match names.len() {
        1 => ("1 KindCluster".to_owned(), "is"),
        many => (format!("{many} KindClusters"), "are"),
    };
    Some(Failure::new(
        format!("Refused: there {are} {count} ({list}), and without the operator nobody would take them down."),
        "Delete them first: kubectl delete kindclusters --all --all-namespaces\n\
         Or go on without the operator: helm uninstall --no-hooks. The clusters then keep running, and the objects stay until it is installed again.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_list_lets_go() {
        assert_eq!(refusal(&[]), None);
        insta::assert_snapshot!(refusal(&["marsh/crane".to_owned()]).unwrap().to_string(), @r"
        Refused: there is 1 KindCluster (marsh/crane), and without the operator nobody would take them down.
        → Delete them first: kubectl delete kindclusters --all --all-namespaces
        Or go on without the operator: helm uninstall --no-hooks. The clusters then keep running, and the objects stay until it is installed again.
        ");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..12).map(|number| format!("marsh/c{number}")).collect();
        assert!(refusal(&names).unwrap().to_string().contains("marsh/c9 and 2 more"));
    }
}
