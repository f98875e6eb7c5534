//! What is known of the host cluster: ranges that clusters must be clear of, and addresses of its nodes.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::{Api, Client};
use nestling_core::plan::settings::HostFacts;
use tracing::warn;

use super::call::{CallError, call, list_all};

/// Asks the host cluster.
pub async fn facts(client: &Client, further: &[Ipv4Net]) -> Result<HostFacts, CallError> {
    let nodes = list_all("list the host's nodes", &Api::<Node>::all(client.clone()), ListParams::default()).await?;
    let kubernetes = call("read the Service kubernetes", Api::<Service>::namespaced(client.clone(), "default").get("kubernetes")).await?;
    let api = cluster_address(&kubernetes);
    let services = service_ranges(client, api).await?;
    let servers = api_servers(client).await?;
    let further_and_servers: Vec<Ipv4Net> = further.iter().copied().chain(servers.into_iter().map(single)).collect();
    let facts = HostFacts { api, ..facts_from(&nodes, &services, &further_and_servers) };
    if !nodes.iter().any(|node| pod_ranges(node).next().is_some()) && further.is_empty() {
        warn!("no node has a pod range of its own; name the host's pod range with --host-range, or clusters may be given the same");
    }
    Ok(facts)
}

/// Ranges of the host's Services: as it says itself, or, where it cannot (before 1.33), a guess around the one Service that is always there.
async fn service_ranges(client: &Client, api: Option<SocketAddrV4>) -> Result<Vec<Ipv4Net>, CallError> {
    let listed = list_all("list the host's Service ranges", &Api::<ServiceCIDR>::all(client.clone()), ListParams::default()).await;
    match listed {
        Ok(ranges) if !ranges.is_empty() => Ok(ranges.iter().flat_map(cidrs).collect()),
        Ok(_) => Ok(guess(api)),
        Err(error) if error.is_gone() => Ok(guess(api)),
        Err(error) => Err(error),
    }
}

fn guess(api: Option<SocketAddrV4>) -> Vec<Ipv4Net> {
    api.map(|api| around(*api.ip())).into_iter().collect()
}

/// A Service as pods see it.
fn cluster_address(service: &Service) -> Option<SocketAddrV4> {
    let spec = service.spec.as_ref()?;
    let port = u16::try_from(spec.ports.as_ref()?.first()?.port).ok()?;
    Some(SocketAddrV4::new(spec.cluster_ip.as_ref()?.parse().ok()?, port))
}

/// What is behind the Service: a managed control plane is on no node of the host.
async fn api_servers(client: &Client) -> Result<Vec<Ipv4Addr>, CallError> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    match call("read the EndpointSlice kubernetes", slices.get("kubernetes")).await {
        Ok(slice) => Ok(slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok()).collect()),
        Err(error) if error.is_gone() => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn single(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 32)
}

/// The `/16` around an address.
fn around(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 16).trunc()
}

fn cidrs(range: &ServiceCIDR) -> impl Iterator<Item = Ipv4Net> {
    range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|text| text.parse().ok())
}

fn pod_ranges(node: &Node) -> impl Iterator<Item = Ipv4Net> {
    let spec = node.spec.as_ref();
    spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr)).filter_map(|text| text.parse().ok())
}

fn addresses<'a>(node: &'a Node, type_: &'a str) -> impl Iterator<Item = Ipv4Addr> + 'a {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter(move |address| address.type_ == type_).filter_map(|address| address.address.parse().ok())
}

/// Puts the facts together, in an order that does not change by itself. Pure.
fn facts_from(nodes: &[Node], services: &[Ipv4Net], further: &[Ipv4Net]) -> HostFacts {
    let mut ranges: Vec<Ipv4Net> = services.iter().chain(further).map(Ipv4Net::trunc).collect();
    for node in nodes {
        ranges.extend(pod_ranges(node));
        ranges.extend(["InternalIP", "ExternalIP"].iter().flat_map(|type_| addresses(node, type_)).map(single));
    }
    let mut sorted: Vec<&Node> = nodes.iter().collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let of = |type_: &'static str| sorted.iter().flat_map(move |node| addresses(node, type_)).map(|address| address.to_string());
    HostFacts { ranges: Ipv4Net::aggregate(&ranges), node_addresses: of("ExternalIP").chain(of("InternalIP")).collect(), api: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, pods: &str, internal: &str, external: Option<&str>) -> Node {
        let mut addresses = vec![json!({"type": "InternalIP", "address": internal}), json!({"type": "Hostname", "address": name})];
        addresses.extend(external.map(|address| json!({"type": "ExternalIP", "address": address})));
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": pods, "podCIDRs": [pods, "fd00:10::/64"]},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn ranges_are_complete_and_external_addresses_come_first() {
        let nodes = [node("b", "10.244.1.0/24", "172.18.0.3", Some("203.0.113.9")), node("a", "10.244.0.0/24", "172.18.0.2", None)];
        let facts = facts_from(&nodes, &["10.96.0.0/12".parse().unwrap()], &["192.168.7.9/24".parse().unwrap()]);
        let ranges: Vec<String> = facts.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.96.0.0/12", "10.244.0.0/23", "172.18.0.2/31", "192.168.7.0/24", "203.0.113.9/32"]);
        assert_eq!(facts.node_addresses, ["203.0.113.9", "172.18.0.2", "172.18.0.3"]);
    }

    #[test]
    fn the_api_is_where_pods_see_it() {
        let service = |spec| serde_json::from_value(json!({"spec": spec})).unwrap();
        let given = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443, "targetPort": 6443}]}));
        assert_eq!(cluster_address(&given), Some("10.96.0.1:443".parse().unwrap()));
        assert_eq!(cluster_address(&service(json!({"clusterIP": "fd00::1", "ports": [{"port": 443}]}))), None);
        assert_eq!(guess(cluster_address(&given)), ["10.96.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn the_guess_is_a_sixteenth() {
        assert_eq!(around("10.96.0.1".parse().unwrap()).to_string(), "10.96.0.0/16");
    }
}
