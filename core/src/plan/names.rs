//! Every name that is derived from another, in one place.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use crate::api::labels;

/// What makes a [`KindCluster`](crate::api::KindCluster) itself and no other.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Identity {
    /// Stem of the names of all children: `c-<name>-<10 characters of a hash of namespace/name>`. The hash keeps `a`/`b--c`
    /// and `a--b`/`c` apart; the length stays below the 63 characters of a DNS label, attempt included.
    pub fn child(&self) -> String {
        let digest = Sha256::digest(format!("{}/{}", self.namespace, self.name));
        let hash = BASE32_NOPAD.encode(&digest).to_lowercase();
        format!("c-{}-{}", self.name, &hash[..10])
    }

    /// The pod of one attempt.
    pub fn pod(&self, attempt: i64) -> String {
        format!("{}-{attempt}", self.child())
    }

    /// The Secret with the cluster's keys, beside the pod.
    pub fn keys(&self) -> String {
        format!("{}-keys", self.child())
    }

    /// The Secret with what registries want to see, beside the pod.
    pub fn registries(&self) -> String {
        format!("{}-registries", self.child())
    }

    /// The claim on the cluster's volume, where it is persistent.
    pub fn volume_claim(&self) -> String {
        format!("{}-data", self.child())
    }

    /// The name under which the agent's certificate is checked.
    pub fn agent_server_name(&self) -> String {
        format!("{}.agent.nestling", self.uid)
    }

    /// The published Secret, unless the spec names another.
    pub fn default_kubeconfig_secret(&self) -> String {
        format!("{}-kubeconfig", self.name)
    }

    /// The published Secret of a further user.
    pub fn user_secret(&self, user: &str) -> String {
        format!("{}-{user}", self.default_kubeconfig_secret())
    }

    /// The Secret in which Argo CD finds the cluster.
    pub fn argo_cd_secret(&self) -> String {
        format!("{}-argocd", self.name)
    }

    /// The Secret with the logs of a failed attempt, in the user's namespace.
    pub fn logs_secret(&self) -> String {
        format!("{}-logs", self.name)
    }

    /// The name that certificate checks use, whatever address was dialled.
    pub fn service_dns_name(&self, clusters_namespace: &str) -> String {
        format!("{}.{clusters_namespace}.svc", self.child())
    }

    /// Labels of every child.
    pub fn labels(&self, install: &str) -> std::collections::BTreeMap<String, String> {
        [
            (labels::CLUSTER_NAMESPACE, self.namespace.as_str()),
            (labels::CLUSTER_NAME, &self.name),
            (labels::CLUSTER_UID, &self.uid),
            (labels::INSTALL, install),
            (labels::MANAGED_BY, labels::MANAGED_BY_NESTLING),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(namespace: &str, name: &str) -> Identity {
        Identity { namespace: namespace.into(), name: name.into(), uid: "u".into() }
    }

    #[test]
    fn separators_do_not_confuse_names() {
        let names =
            [("a", "b--c"), ("a--b", "c"), ("a", "c"), ("x", "c"), ("a-b", "c"), ("a", "b-c")].map(|(namespace, name)| identity(namespace, name).child());
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn the_longest_name_still_fits_a_label() {
        let longest = identity(&"n".repeat(63), &"c".repeat(40));
        assert!(longest.pod(999_999_999).len() <= 63, "{}", longest.pod(999_999_999));
        assert!(longest.keys().len() <= 63);
        // The name of a Secret is no label.
        assert!(longest.registries().len() <= 253);
    }

    #[test]
    fn names_never_change() {
        assert_eq!(identity("default", "demo").pod(1), "c-demo-alemq23dns-1");
    }
}
