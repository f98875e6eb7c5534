//! What a cluster was made with, kept beside its data, and what of it counts for the pod that takes it over.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::wire::{AgentSettings, NetworkPlan, SCHEMA};
use crate::api::reasons::Reason;

/// What a cluster was made with. Written when it is whole, so that its presence says that it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// What the agent was told that made it.
    pub settings: AgentSettings,
    /// Whether that was on a machine with cgroup v2.
    pub cgroup_v2: bool,
    /// The addresses of its node containers, by name.
    pub addresses: BTreeMap<String, Ipv4Addr>,
}

impl Made {
    /// By an agent with these settings.
    pub fn new(settings: AgentSettings, cgroup_v2: bool, addresses: BTreeMap<String, Ipv4Addr>) -> Self {
        Self { schema: SCHEMA, settings, cgroup_v2, addresses }
    }

    /// Whether an agent with these settings may go on with it: it is the cluster of the same object, and of this attempt, unless the attempt is to bring it back.
    pub fn is_for(&self, settings: &AgentSettings) -> bool {
        self.settings.cluster_uid == settings.cluster_uid && (settings.resume || self.settings.attempt == settings.attempt)
    }

    /// The settings of the pod that takes the cluster over: its own, but for what is fixed in the cluster itself.
    pub fn taken_over(&self, settings: &AgentSettings) -> AgentSettings {
        let made = &self.settings;
        AgentSettings {
            image: made.image.clone(),
            config: made.config.clone(),
            control_planes: made.control_planes,
            workers: made.workers,
            registries: made.registries.clone(),
            // What it must be clear of is the new host's.
            network: NetworkPlan { host: settings.network.host.clone(), ..made.network.clone() },
            ..settings.clone()
        }
    }

    /// The parts of the spec, named as in the digests of a pod, that say something else by now than the cluster was made with.
    pub fn differences(&self, settings: &AgentSettings) -> Vec<String> {
        let made = &self.settings;
        let parts = [
            ("config", made.config != settings.config),
            ("image", made.image != settings.image),
            ("networking", (made.network.pods, made.network.services) != (settings.network.pods, settings.network.services)),
            ("nodes", (made.control_planes, made.workers) != (settings.control_planes, settings.workers)),
            ("registries", made.registries != settings.registries),
        ];
        parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part.to_owned()).collect()
    }

    /// Whether it can live on this machine at all.
    ///
    /// # Errors
    /// [`Reason::ResumeFailed`]: kubelets and containerd are set to the control groups of the machine on which they were made.
    pub fn check(&self, cgroup_v2: bool) -> Result<(), Problem> {
        let version = |v2: bool| if v2 { "v2" } else { "v1" };
        if self.cgroup_v2 == cgroup_v2 {
            return Ok(());
        }
        let (before, now) = (version(self.cgroup_v2), version(cgroup_v2));
        Err(Problem::new(Reason::ResumeFailed, format!("the cluster was made on a node with cgroup {before}, and this one has {now}")))
    }

    /// The address that a node had, if it is one that it can have again.
    pub fn address(&self, node: &str) -> Option<Ipv4Addr> {
        let network = self.settings.network.nodes;
        self.addresses.get(node).copied().filter(|address| network.contains(address) && *address != network.network() && *address != network.broadcast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{desired::desire, testing};

    fn settings(spec: &str) -> AgentSettings {
        let cluster = testing::cluster(spec);
        AgentSettings { attempt: 1, ..desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap().agent }
    }

    fn made(spec: &str) -> Made {
        Made::new(settings(spec), true, BTreeMap::from([("crane-control-plane".to_owned(), Ipv4Addr::new(10, 1, 2, 3))]))
    }

    #[test]
    fn it_is_its_own_clusters_and_of_the_same_attempt_unless_it_is_to_come_back() {
        let made = made("{}");
        let pod = |attempt: i64, resume: bool| AgentSettings { attempt, resume, ..settings("{}") };
        assert!(made.is_for(&pod(1, false)) && made.is_for(&pod(2, true)) && !made.is_for(&pod(2, false)));
        assert!(!made.is_for(&AgentSettings { cluster_uid: "other".into(), ..pod(1, true) }));
    }

    #[test]
    fn what_is_in_the_cluster_stays_and_what_is_the_pods_is_new() {
        let (made, mut now) = (made("{nodes: {workers: 1}}"), settings("{image: other/node:v1.33.0, nodes: {workers: 3}, resources: {limits: {memory: 8Gi}}}"));
        now.network.pods = "10.9.0.0/16".parse().unwrap();
        now.network.host = vec!["192.168.0.0/16".parse().unwrap()];
        now.attempt = 4;
        let taken = made.taken_over(&now);
        assert_eq!((&taken.image, taken.workers, taken.network.pods), (&made.settings.image, 1, made.settings.network.pods));
        assert_eq!((taken.limits, taken.network.host.clone(), taken.attempt), (now.limits, now.network.host.clone(), 4));
        assert_eq!(made.differences(&now), ["image", "networking", "nodes"]);
        assert!(made.differences(&taken).is_empty());
    }

    #[test]
    fn another_kind_of_control_groups_is_refused() {
        let made = made("{}");
        assert!(made.check(true).is_ok());
        assert!(made.check(false).unwrap_err().message.contains("cgroup v2, and this one has v1"));
    }

    #[test]
    fn an_address_outside_of_the_network_is_none() {
        let mut made = made("{}");
        made.settings.network.nodes = "10.1.2.0/24".parse().unwrap();
        assert_eq!(made.address("crane-control-plane"), Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(made.address("crane-worker"), None);
        for wrong in ["10.1.3.3", "10.1.2.0", "10.1.2.255"] {
            made.addresses.insert("crane-control-plane".into(), wrong.parse().unwrap());
            assert_eq!(made.address("crane-control-plane"), None, "{wrong}");
        }
    }
}
