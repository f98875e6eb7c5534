//! The published kubeconfig of a cluster, from its Secret.

use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use nestling_core::api::conditions::{self, CONTROL_PLANE_READY, KUBECONFIG_PUBLISHED};
use nestling_core::api::{KindCluster, labels};

use crate::cli::failure::{Failure, command};
use crate::cli::host::{Host, explain};

/// From where the cluster is to be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum From {
    /// Inside the host cluster.
    Inside,
    /// Outside.
    Outside,
    /// From outside if it can be reached there, else inside.
    Anywhere,
}

impl From {
    /// What the flags say; without one, what serves the place where this program runs.
    pub fn chosen(external: bool, internal: bool) -> Self {
        // Set in every pod.
        let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty());
        match (external, internal) {
            (true, _) => Self::Outside,
            (_, true) => Self::Inside,
            _ if in_a_pod => Self::Inside,
            _ => Self::Anywhere,
        }
    }
}

/// A kubeconfig.
#[derive(Debug)]
pub struct Published {
    /// As it is in the Secret.
    pub text: Vec<u8>,
    /// Whether it leads to an endpoint outside of the host cluster.
    pub is_external: bool,
}

/// Reads the published kubeconfig.
pub async fn read(host: &Host, cluster: &KindCluster, from: From) -> Result<Published> {
    let namespace = &host.namespace;
    let name = secret_name(cluster)?;
    let secret = Api::<Secret>::namespaced(host.client.clone(), namespace)
        .get_opt(&name)
        .await
        .map_err(|error| explain(error, &format!("read Secret {namespace}/{name}, which holds the kubeconfig")))?
        .ok_or_else(|| Failure::new(format!("Secret {namespace}/{name} is gone"), AGAIN))?;
    let is_external = match from {
        From::Inside => false,
        From::Outside => true,
        From::Anywhere => secret.data.as_ref().is_some_and(|data| data.contains_key("external")),
    };
    Ok(Published { text: choose(cluster, &secret, is_external)?, is_external })
}

const AGAIN: &str = "The operator writes it again; try again in a moment.";

/// The words that name it to a verb, whatever the current namespace is.
pub fn name_of(cluster: &KindCluster) -> String {
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    format!("-n {namespace} {}", cluster.metadata.name.as_deref().unwrap_or_default())
}

/// Name of the published Secret, or why there is none.
pub fn secret_name(cluster: &KindCluster) -> Result<String, Failure> {
    let status = cluster.status.clone().unwrap_or_default();
    if let Some(secret) = status.kubeconfig_secret_ref {
        return Ok(secret.name);
    }
    // Whichever of the two is not yet true is what is being waited for.
    let why = [CONTROL_PLANE_READY, KUBECONFIG_PUBLISHED]
        .into_iter()
        .filter_map(|type_| conditions::get(&status.conditions, type_))
        .find(|condition| condition.status != "True")
        .map_or_else(
            || "the operator has not looked at it yet".to_owned(),
            |condition| {
                let said = format!("{} is {}: {}", condition.type_, condition.status, condition.reason);
                if condition.message.is_empty() { said } else { format!("{said}: {}", condition.message) }
            },
        );
    let next = format!("Wait for it: `{}`.", command(&format!("wait {} --for ControlPlaneReady", name_of(cluster))));
    Err(Failure::new(format!("the kubeconfig is not published yet; {why}"), next))
}

/// The wanted kubeconfig in a Secret: for clients outside of the host cluster, or inside.
pub fn choose(cluster: &KindCluster, secret: &Secret, external: bool) -> Result<Vec<u8>, Failure> {
    // A Secret of that name may belong to somebody else, such as Cluster API; theirs leads into another cluster.
    let owner = secret.metadata.labels.as_ref().and_then(|all| all.get(labels::CLUSTER_UID));
    if owner != cluster.metadata.uid.as_ref() {
        let next = "Set spec.kubeconfig.secretName to a name that is free; the condition KubeconfigPublished says more.";
        return Err(Failure::new("the Secret does not belong to this KindCluster", next));
    }
    let key = if external { "external" } else { "value" };
    match secret.data.as_ref().and_then(|data| data.get(key)) {
        Some(text) => Ok(text.0.clone()),
        None if external => {
            let connect = command(&format!("connect {}", name_of(cluster)));
            let next = format!("Set spec.access.service.type to NodePort, or go through the host cluster: `{connect}`.");
            Err(Failure::new("the cluster has no endpoint outside of the host cluster", next))
        }
        None => Err(Failure::new(format!("the Secret has no key {key}"), AGAIN)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn cluster(status: &serde_json::Value) -> KindCluster {
        let metadata = json!({"namespace": "marsh", "name": "crane", "uid": "u"});
        serde_json::from_value(json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "spec": {}, "status": status}))
            .unwrap()
    }

    fn secret(uid: &str, keys: &[&str]) -> Secret {
        let data = keys.iter().map(|key| ((*key).to_owned(), ByteString(key.as_bytes().to_vec()))).collect();
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.labels = Some([(labels::CLUSTER_UID.to_owned(), uid.to_owned())].into());
        secret
    }

    #[test]
    fn what_is_not_published_is_explained() {
        let waiting = json!({"conditions": [
            {"type": "ControlPlaneReady", "status": "False", "reason": "StartingControlPlane", "message": "kind is at work", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "KubeconfigPublished", "status": "False", "reason": "Pending", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let next = "\n→ Wait for it: `nestling wait -n marsh crane --for ControlPlaneReady`.";
        for (status, message) in [
            (json!({}), "the kubeconfig is not published yet; the operator has not looked at it yet"),
            (waiting, "the kubeconfig is not published yet; ControlPlaneReady is False: StartingControlPlane: kind is at work"),
        ] {
            assert_eq!(secret_name(&cluster(&status)).unwrap_err().to_string(), format!("{message}{next}"));
        }
        assert_eq!(secret_name(&cluster(&json!({"kubeconfigSecretRef": {"name": "s"}}))).unwrap(), "s");
    }

    #[test]
    fn the_wanted_key_of_our_own_secret() {
        let cluster = cluster(&json!({}));
        let chosen = |uid, keys: &[&str], external| choose(&cluster, &secret(uid, keys), external).map(|text| String::from_utf8(text).unwrap());
        for (external, key) in [(false, "value"), (true, "external")] {
            assert_eq!(chosen("u", &["value", "external"], external).unwrap(), key);
        }
        assert!(chosen("u", &["value"], true).unwrap_err().to_string().contains("NodePort, or go through"));
        assert!(chosen("u", &[], false).unwrap_err().to_string().contains("no key value"));
        assert!(chosen("other", &["value"], false).unwrap_err().to_string().contains("does not belong"));
    }
}
