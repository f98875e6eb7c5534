//! Address ranges of a cluster, clear of the host's.
//!
//! A nested kube-proxy captures the addresses of nested Services before they leave the node, and a nested CNI does not
//! masquerade towards nested pods: a range that is also the host's makes the host unreachable from inside. Clusters may
//! share ranges among themselves, because each is behind the address of its pod.

use ipnet::Ipv4Net;

use super::problem::Problem;
use super::wire::NetworkPlan;
use crate::api::reasons::Reason;

/// Ranges that the user asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wish {
    /// Pods.
    pub pods: Option<Ipv4Net>,
    /// Services.
    pub services: Option<Ipv4Net>,
}

/// Whether two ranges share an address.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Chooses what is not asked for and checks what is.
///
/// # Errors
/// [`Reason::CIDROverlap`] for a wish that overlaps the host or the other wish, [`Reason::CIDRExhausted`] if nothing is free.
pub fn choose(wish: Wish, host: &[Ipv4Net]) -> Result<NetworkPlan, Problem> {
    let mut taken: Vec<(String, Ipv4Net)> = host.iter().map(|net| ("the host's range".to_owned(), *net)).collect();
    for (what, net) in [("podCIDRs", wish.pods), ("serviceCIDRs", wish.services)] {
        let Some(net) = net else { continue };
        if let Some((whose, other)) = taken.iter().find(|(_, other)| overlap(&net, other)) {
            return Err(Problem::new(Reason::CIDROverlap, format!("networking.{what} {net} overlaps {whose} {other}")));
        }
        taken.push((format!("networking.{what}"), net));
    }
    let mut pick = |what: &str, mut candidates: Box<dyn Iterator<Item = Ipv4Net>>| {
        let free = candidates.find(|net| taken.iter().all(|(_, other)| !overlap(net, other)));
        let net = free.ok_or_else(|| Problem::new(Reason::CIDRExhausted, format!("no range is free for {what}")))?;
        taken.push((what.to_owned(), net));
        Ok(net)
    };
    let pods = wish.pods.map_or_else(|| pick("pods", Box::new(wide(245))), Ok)?;
    let services = wish.services.map_or_else(|| pick("Services", Box::new(wide(97))), Ok)?;
    let nodes = pick("nodes", Box::new(narrow()))?;
    let bridge = pick("Docker's bridge", Box::new(narrow()))?;
    Ok(NetworkPlan { pods, services, nodes, bridge, host: host.to_vec() })
}

/// The half of the nodes' range from which Docker takes addresses; all of it, where it is too small to be divided.
pub fn for_nodes(nodes: Ipv4Net) -> Ipv4Net {
    part(nodes, 1, 0).unwrap_or(nodes)
}

/// The quarter of the nodes' range that Docker gives nobody: load balancers inside the cluster may. It holds neither the first nor the last address of the
/// range, so that all of its own can be used. `None` where the range is too small to be divided.
pub fn for_load_balancers(nodes: Ipv4Net) -> Option<Ipv4Net> {
    part(nodes, 2, 2)
}

/// One of the parts of a range that is halved so many times.
fn part(net: Ipv4Net, halvings: u8, index: usize) -> Option<Ipv4Net> {
    net.subnets(net.prefix_len().checked_add(halvings)?).ok()?.nth(index)
}

/// All `10.x.0.0/16`, beginning with `first`.
fn wide(first: u8) -> impl Iterator<Item = Ipv4Net> {
    (first..=255).chain(1..first).filter_map(|second| Ipv4Net::new([10, second, 0, 0].into(), 16).ok())
}

/// `/24` ranges from the upper end of `172.16.0.0/12` downwards, then from `192.168.0.0/16`.
fn narrow() -> impl Iterator<Item = Ipv4Net> {
    let upper = (16..=31_u8).rev().flat_map(|second| (0..=255_u8).rev().map(move |third| [172, second, third, 0]));
    let lower = (0..=255_u8).rev().map(|third| [192, 168, third, 0]);
    upper.chain(lower).filter_map(|address| Ipv4Net::new(address.into(), 24).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_with_kinds_own_defaults_is_avoided() {
        let plan = choose(Wish::default(), &[net("10.244.0.0/16"), net("10.96.0.0/16"), net("172.18.0.0/16")]).unwrap();
        assert_eq!((plan.pods, plan.services), (net("10.245.0.0/16"), net("10.97.0.0/16")));
    }

    #[rstest]
    #[case(Some("10.96.128.0/17"), None, Reason::CIDROverlap)]
    #[case(None, Some("10.0.0.0/8"), Reason::CIDROverlap)]
    #[case(Some("10.50.0.0/16"), Some("10.50.7.0/24"), Reason::CIDROverlap)]
    fn wishes_are_checked(#[case] pods: Option<&str>, #[case] services: Option<&str>, #[case] reason: Reason) {
        let wish = Wish { pods: pods.map(net), services: services.map(net) };
        assert_eq!(choose(wish, &[net("10.96.0.0/16")]).unwrap_err().reason, reason);
    }

    #[test]
    fn a_host_that_holds_everything_is_refused() {
        assert_eq!(choose(Wish::default(), &[net("0.0.0.0/0")]).unwrap_err().reason, Reason::CIDRExhausted);
    }

    #[test]
    fn docker_and_load_balancers_share_the_nodes_range() {
        let nodes = net("172.31.255.0/24");
        assert_eq!((for_nodes(nodes), for_load_balancers(nodes)), (net("172.31.255.0/25"), Some(net("172.31.255.128/26"))));
    }

    #[test]
    fn a_range_that_is_too_small_is_dockers_alone() {
        let nodes = net("10.0.0.1/32");
        assert_eq!((for_nodes(nodes), for_load_balancers(nodes)), (nodes, None));
    }

    proptest! {
        #[test]
        fn no_address_is_anybody_elses(address in any::<u32>(), length in 8_u8..=28) {
            let nodes = Ipv4Net::new(address.into(), length).unwrap().trunc();
            let (docker, balancers) = (for_nodes(nodes), for_load_balancers(nodes).unwrap());
            prop_assert!(!overlap(&docker, &balancers) && nodes.contains(&docker) && nodes.contains(&balancers));
            prop_assert!(!balancers.contains(&nodes.network()) && !balancers.contains(&nodes.broadcast()));
        }

        #[test]
        fn whatever_is_chosen_is_disjoint(host in prop::collection::vec((any::<u32>(), 8_u8..=28), 0..6)) {
            let host: Vec<Ipv4Net> = host.into_iter().map(|(address, length)| Ipv4Net::new(address.into(), length).unwrap().trunc()).collect();
            if let Ok(plan) = choose(Wish::default(), &host) {
                let mut all = vec![plan.pods, plan.services, plan.nodes, plan.bridge];
                all.extend(&host);
                for (index, a) in all.iter().take(4).enumerate() {
                    for b in &all[index + 1..] {
                        prop_assert!(!overlap(a, b), "{a} {b}");
                    }
                }
            }
        }
    }
}
