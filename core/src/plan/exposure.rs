//! From where a cluster is reached: the addresses of its API server and of the ports that it publishes, and what is still missing of them.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use super::observed::Observed;
use super::situation::{later, readable};
use super::wire::API_PORT;
use crate::api::conditions::{self, Claim};
use crate::api::reasons::Reason;
use crate::api::{Endpoint, EndpointType, KindCluster, KindClusterStatus, PortStatus, ServiceType};

/// How long the host's load balancer is waited for without a warning. Clouds take a minute or two.
const PATIENCE: Duration = Duration::from_mins(3);

/// The ports that the agent is to relay: NodePorts of the cluster, and ports of the pod under the same numbers.
pub fn relayed(cluster: &KindCluster) -> BTreeSet<u16> {
    cluster.spec.ports.iter().filter_map(|port| u16::try_from(port.target_node_port).ok()).collect()
}

/// The cluster's Service.
fn service(seen: &Observed) -> Option<&Service> {
    seen.children.services.iter().find(|service| service.metadata.name.as_deref() == Some(&seen.identity.child()))
}

fn type_of(cluster: &KindCluster) -> ServiceType {
    cluster.spec.access.as_ref().and_then(|access| access.service.as_ref()).map(|service| service.type_).unwrap_or_default()
}

/// Whether the Service is of the type and class that the spec asks for. What one of another has still on it is about to go.
fn is_as_asked(cluster: &KindCluster, service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let asked = cluster.spec.access.as_ref().and_then(|access| access.service.as_ref());
    let class = asked.and_then(|service| service.load_balancer_class.as_ref());
    spec.type_.as_deref() == Some(type_of(cluster).as_str()) && (class.is_none() || spec.load_balancer_class.as_ref() == class)
}

/// What the load balancer says that it is reached at: addresses first.
fn load_balancer(service: &Service) -> impl Iterator<Item = &str> {
    let all = service.status.iter().flat_map(|status| &status.load_balancer).flat_map(|status| status.ingress.iter().flatten());
    let (ips, names) = (all.clone().filter_map(|ingress| ingress.ip.as_deref()), all.filter_map(|ingress| ingress.hostname.as_deref()));
    ips.chain(names).filter(|text| !text.is_empty())
}

/// The names and addresses at which the host's load balancer gives access to the cluster, in an order that does not change by itself.
pub fn load_balancer_names(seen: &Observed) -> Vec<String> {
    let service = service(seen).filter(|service| type_of(&seen.cluster) == ServiceType::LoadBalancer && is_as_asked(&seen.cluster, service));
    let names: BTreeSet<String> = service.into_iter().flat_map(load_balancer).map(ToOwned::to_owned).collect();
    names.into_iter().collect()
}

/// Host and port, as URLs have it.
fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The port on the host's nodes for one of the Service's ports.
fn node_port(service: &Service, port: i32) -> Option<i32> {
    service.spec.as_ref()?.ports.iter().flatten().find(|have| have.port == port)?.node_port.filter(|port| *port > 0)
}

/// Host and port from outside the host cluster for one of the Service's ports, if there is such a way.
fn outside(seen: &Observed, service: &Service, port: i32) -> Option<String> {
    if !is_as_asked(&seen.cluster, service) {
        return None;
    }
    match type_of(&seen.cluster) {
        ServiceType::ClusterIP => None,
        ServiceType::NodePort => Some(host_port(seen.settings.host.node_addresses.first()?, node_port(service, port)?)),
        ServiceType::LoadBalancer => Some(host_port(load_balancer(service).next()?, port)),
    }
}

/// The URL of the API server inside the host cluster.
pub fn internal_url(dns_name: &str) -> String {
    format!("https://{dns_name}:{API_PORT}")
}

/// The URL of the API server from outside the host cluster, if the Service has one.
pub fn external_url(seen: &Observed) -> Option<String> {
    Some(format!("https://{}", outside(seen, service(seen)?, API_PORT)?))
}

/// Where the API server is reached.
pub fn endpoints(seen: &Observed) -> Vec<Endpoint> {
    if service(seen).is_none() {
        return vec![];
    }
    let internal = Endpoint { type_: EndpointType::Internal, url: internal_url(&seen.identity.service_dns_name(&seen.settings.clusters_namespace)) };
    let external = external_url(seen).map(|url| Endpoint { type_: EndpointType::External, url });
    std::iter::once(internal).chain(external).collect()
}

/// Where the published ports are reached.
pub fn ports(seen: &Observed) -> Vec<PortStatus> {
    let Some(service) = service(seen) else { return vec![] };
    let dns_name = seen.identity.service_dns_name(&seen.settings.clusters_namespace);
    let (outward, before) = (type_of(&seen.cluster) != ServiceType::ClusterIP, seen.status().ports);
    let open = |name: &str, target: i32| match (&seen.report, seen.children.current_pod()) {
        (Some(report), _) => report.open_ports.as_ref().is_some_and(|open| open.iter().any(|port| i32::from(*port) == target)),
        // Its agent has not been heard yet.
        (None, Some(_)) => before.iter().any(|port| port.name == name && port.open),
        (None, None) => false,
    };
    let all = seen.cluster.spec.ports.iter().map(|wish| PortStatus {
        name: wish.name.clone(),
        open: open(&wish.name, wish.target_node_port),
        internal: host_port(&dns_name, wish.port),
        external: outside(seen, service, wish.port),
        node_port: node_port(service, wish.port).filter(|_| outward),
    });
    all.collect()
}

/// What `EndpointsReady` says of a cluster whose agent has been heard.
pub fn claim(now: Timestamp, seen: &Observed) -> Claim {
    let Some(service) = service(seen).filter(|service| is_as_asked(&seen.cluster, service)) else {
        return Claim::no(Reason::Progressing, "the Service is being changed");
    };
    let (balancer, doors) = (balancer(now, seen, service), doors(seen));
    // What somebody has to do something about comes before what only takes time.
    let rank = |claim: &Claim| (is_progress(claim.reason), claim.reason);
    let mut missing: Vec<Claim> = balancer.into_iter().chain(doors).collect();
    missing.sort_by_key(rank);
    let message = missing.iter().map(|claim| claim.message.as_str()).collect::<Vec<_>>().join(" ");
    missing.first().map_or_else(|| Claim::yes(Reason::EndpointsOpen, ""), |first| Claim::no(first.reason, message))
}

const fn is_progress(reason: Reason) -> bool {
    matches!(reason, Reason::WaitingForLoadBalancer | Reason::OpeningPorts)
}

/// What is missing of the load balancer.
fn balancer(now: Timestamp, seen: &Observed, service: &Service) -> Option<Claim> {
    if type_of(&seen.cluster) != ServiceType::LoadBalancer || load_balancer(service).next().is_some() {
        return None;
    }
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let what = format!("Service {name} in namespace {} has no address of a load balancer yet", seen.settings.clusters_namespace);
    if missing_since(seen).is_some_and(|since| now >= later(since, PATIENCE)) {
        let what = format!("{what}, after {}", readable(PATIENCE));
        return Some(Claim::no(Reason::LoadBalancerPending, Reason::LoadBalancerPending.explain(&what)));
    }
    Some(Claim::no(Reason::WaitingForLoadBalancer, Reason::WaitingForLoadBalancer.explain(&what)))
}

/// Since when something is missing, as far as is on record.
fn missing_since(seen: &Observed) -> Option<Timestamp> {
    let status = seen.status();
    let condition = conditions::get(&status.conditions, conditions::ENDPOINTS_READY).filter(|condition| condition.status == "False")?;
    Some(condition.last_transition_time.0)
}

/// What is missing of the published ports.
fn doors(seen: &Observed) -> Option<Claim> {
    let wanted = relayed(&seen.cluster);
    let report = seen.report.as_ref()?;
    let Some(open) = &report.open_ports else {
        let message = Reason::AgentOutdated.explain("the agent of this cluster is of a release that publishes no ports");
        return (!wanted.is_empty()).then(|| Claim::no(Reason::AgentOutdated, message));
    };
    if *open == wanted {
        return None;
    }
    let orders = report.orders.as_ref();
    // What was tried before belongs to other orders.
    let failure = orders.filter(|orders| orders.received.ports == wanted).and_then(|orders| orders.failure(Reason::PortInUse));
    if let Some(failure) = failure {
        return Some(Claim::no(Reason::PortInUse, Reason::PortInUse.explain(conditions::clip(&failure.message, 512))));
    }
    let list = |ports: Vec<String>, what: &str| if ports.is_empty() { String::new() } else { format!("{what}: {}", ports.join(", ")) };
    let opening = list(wanted.difference(open).map(ToString::to_string).collect(), "to be opened");
    let closing = list(open.difference(&wanted).take(32).map(ToString::to_string).collect(), "to be closed");
    let what = [opening, closing].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    Some(Claim::no(Reason::OpeningPorts, Reason::OpeningPorts.explain(&what)))
}

/// When to look again, if nothing happens before: the load balancer may keep silent for ever.
pub fn next_change(now: Timestamp, seen: &Observed) -> Option<Timestamp> {
    let service = service(seen)?;
    let waits = type_of(&seen.cluster) == ServiceType::LoadBalancer && load_balancer(service).next().is_none();
    let at = later(missing_since(seen).unwrap_or(now), PATIENCE);
    (waits && at > now).then_some(at)
}

/// Whether `EndpointsReady` is worth a warning for this reason.
pub const fn is_told(reason: Reason) -> bool {
    matches!(reason, Reason::LoadBalancerPending | Reason::PortInUse | Reason::AgentOutdated)
}

/// Whether ports are on their way, so that the agent's word is waited for.
pub fn is_changing(status: &KindClusterStatus) -> bool {
    [Reason::OpeningPorts, Reason::PortInUse].into_iter().any(|changing| conditions::has_reason(&status.conditions, conditions::ENDPOINTS_READY, changing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::decide::{Step, decide, is_moving};
    use crate::plan::notes::{Note, notes};
    use crate::plan::settle::{Outcome, settle};
    use crate::plan::testing::{self, NOW};
    use crate::plan::wire::{AgentFailure, AgentReport, NodeReport, Orders, OrdersReport, Stage};
    use rstest::rstest;

    const PORTS: &str = "{ports: [{name: web, port: 80, targetNodePort: 30080}, {name: tls, port: 443, targetNodePort: 30443}]}";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    /// A cluster that serves, with an agent of this release.
    fn seen(spec: &str) -> Observed {
        let mut seen = testing::with_pod(testing::observed(testing::cluster(spec)), 60);
        seen.report = Some(AgentReport {
            stage: Stage::Serving,
            control_plane_ready: true,
            nodes: vec![NodeReport { name: "n".into(), control_plane: true, ready: true }],
            orders: Some(OrdersReport::default()),
            open_ports: Some(BTreeSet::new()),
            ..AgentReport::default()
        });
        seen
    }

    /// What the load balancer says that it is reached at.
    fn gives(seen: &mut Observed, ingress: &str) {
        seen.children.services[0].status = Some(serde_saphyr::from_str(&format!("{{loadBalancer: {{ingress: {ingress}}}}}")).unwrap());
    }

    /// One pass: the names of its steps, what `EndpointsReady` says then, and what is told.
    fn pass(seconds: i64, seen: &mut Observed) -> (Vec<Step>, String, Vec<Note>) {
        let now = at(seconds);
        let steps = decide(now, seen).steps;
        let before = seen.status();
        let status = settle(now, seen, &Outcome { done: steps.clone(), ..Outcome::default() });
        let condition = conditions::get(&status.conditions, conditions::ENDPOINTS_READY).unwrap();
        let said = format!("{} {}", condition.status, condition.reason);
        let told = notes(&before, &status).into_iter().filter(|note| note.warning).collect();
        seen.cluster.status = Some(status);
        (steps, said, told)
    }

    fn order(steps: &[Step]) -> Option<&Orders> {
        steps.iter().find_map(|step| if let Step::Order(orders) = step { Some(orders) } else { None })
    }

    #[rstest]
    #[case::inside("{}", "[]", None)]
    #[case::nodes("{access: {service: {type: NodePort}}}", "[]", Some("https://172.18.0.2:31000"))]
    #[case::a_balancer_that_is_silent("{access: {service: {type: LoadBalancer}}}", "[]", None)]
    #[case::address("{access: {service: {type: LoadBalancer}}}", "[{ip: '192.0.2.7', ipMode: 'VIP'}]", Some("https://192.0.2.7:6443"))]
    #[case::ipv6("{access: {service: {type: LoadBalancer}}}", "[{ip: '2001:db8::7'}]", Some("https://[2001:db8::7]:6443"))]
    #[case::name("{access: {service: {type: LoadBalancer}}}", "[{hostname: 'lb.example'}]", Some("https://lb.example:6443"))]
    #[case::address_before_name("{access: {service: {type: LoadBalancer}}}", "[{hostname: 'lb.example'}, {ip: '192.0.2.7'}]", Some("https://192.0.2.7:6443"))]
    #[case::nothing_said("{access: {service: {type: LoadBalancer}}}", "[{ip: ''}]", None)]
    fn endpoints_follow_the_type(#[case] spec: &str, #[case] ingress: &str, #[case] external: Option<&str>) {
        let mut seen = seen(spec);
        gives(&mut seen, ingress);
        assert_eq!(external_url(&seen).as_deref(), external);
        let endpoints = endpoints(&seen);
        assert!(endpoints[0].url.ends_with(".clusters.svc:6443"), "{endpoints:?}");
        assert_eq!(endpoints.get(1).map(|endpoint| endpoint.url.as_str()), external);
    }

    #[test]
    fn what_is_left_of_another_type_is_no_endpoint() {
        let types = ["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer, loadBalancerClass: other"];
        for before in types {
            for after in types {
                let mut seen = seen(&format!("{{access: {{service: {{type: {before}}}}}}}"));
                gives(&mut seen, "[{ip: '192.0.2.7'}]");
                seen.cluster.spec = testing::cluster(&format!("{{access: {{service: {{type: {after}}}}}}}")).spec;
                // A class that is only not asked for may be the host's default.
                let same = before == after || (after == "LoadBalancer" && before.starts_with(after));
                assert_eq!(external_url(&seen).is_some(), same && after != "ClusterIP", "{before} to {after}");
                let (steps, said, _) = pass(0, &mut seen);
                let applied = steps.iter().filter(|step| matches!(step, Step::ApplyService(_))).count();
                let expected = usize::from(before != after) + usize::from(before == "LoadBalancer" && after.ends_with("other"));
                assert_eq!((applied, said.starts_with("True")), (expected, same), "{before} to {after}: {said}");
            }
        }
    }

    #[test]
    fn a_load_balancer_is_waited_for_and_then_told_and_believed_when_it_comes() {
        let mut seen = seen("{access: {service: {type: LoadBalancer}}}");
        assert_eq!(next_change(at(0), &seen), Some(at(180)));
        let (steps, said, told) = pass(0, &mut seen);
        assert_eq!((said.as_str(), told), ("False WaitingForLoadBalancer", vec![]));
        assert!(steps.iter().any(|step| matches!(step, Step::PublishKubeconfig(plan) if plan.external.is_none())), "others need not wait");
        assert!(conditions::is_true(&seen.status().conditions, conditions::READY));
        assert!(!is_moving(&seen.status(), true), "the agent has nothing to say about it");
        assert_eq!((pass(179, &mut seen).1.as_str(), next_change(at(179), &seen)), ("False WaitingForLoadBalancer", Some(at(180))));
        let (_, said, told) = pass(180, &mut seen);
        assert_eq!((said.as_str(), told.len(), told[0].reason, next_change(at(180), &seen)), ("False LoadBalancerPending", 1, "LoadBalancerPending", None));
        assert!(told[0].message.contains("in namespace clusters has no address") && told[0].message.ends_with(Reason::LoadBalancerPending.remedy()));
        assert_eq!(pass(400, &mut seen).2, vec![], "it is told once");

        gives(&mut seen, "[{ip: '192.0.2.7'}, {hostname: 'lb.example'}]");
        let (steps, said, _) = pass(500, &mut seen);
        assert_eq!(said, "True EndpointsOpen");
        assert!(steps.iter().any(|step| matches!(step, Step::PublishKubeconfig(plan) if plan.external.as_deref() == Some("https://192.0.2.7:6443"))));
        let names = order(&steps).unwrap().cert_sans.clone().unwrap();
        assert_eq!(names[names.len() - 2..], ["192.0.2.7", "lb.example"], "also who checks the address verifies");
        // And back.
        seen.cluster.spec.access = None;
        let (steps, said, _) = pass(600, &mut seen);
        assert_eq!((order(&steps), said.as_str()), (None, "False Progressing"));
        assert_eq!(seen.status().endpoints.len(), 1);
    }

    #[test]
    fn an_agent_that_takes_no_orders_needs_no_name_of_a_load_balancer() {
        let mut seen = seen("{access: {service: {type: LoadBalancer}}}");
        gives(&mut seen, "[{ip: '192.0.2.7'}]");
        seen.report.as_mut().unwrap().orders = None;
        pass(0, &mut seen);
        assert!(conditions::is_true(&seen.status().conditions, conditions::UP_TO_DATE));
    }

    #[test]
    fn ports_are_ordered_opened_and_closed() {
        let mut seen = seen(PORTS);
        let (steps, said, _) = pass(0, &mut seen);
        let wanted = BTreeSet::from([30080, 30443]);
        assert_eq!((&order(&steps).unwrap().ports, said.as_str()), (&wanted, "False OpeningPorts"));
        assert!(is_moving(&seen.status(), true), "the agent's word is waited for");
        let dns = "c-crane-";
        let status = seen.status().ports;
        assert_eq!((status.len(), status[0].name.as_str(), status[0].open, &status[0].external, status[0].node_port), (2, "web", false, &None, None));
        assert!(status[0].internal.starts_with(dns) && status[0].internal.ends_with(".clusters.svc:80"), "{status:?}");

        let report = seen.report.as_mut().unwrap();
        let ordered = Orders { ports: wanted.clone(), ..Orders::default() };
        report.orders = Some(OrdersReport { received: ordered.clone(), carried_out: ordered, failures: vec![] });
        report.open_ports = Some(wanted);
        let (steps, said, _) = pass(10, &mut seen);
        assert_eq!((order(&steps), said.as_str()), (None, "True EndpointsOpen"));
        assert!(seen.status().ports.iter().all(|port| port.open));
        assert!(!is_moving(&seen.status(), true));

        // An operator that has only just started has not heard the agent yet.
        let report = seen.report.take();
        assert_eq!(pass(20, &mut seen).1, "True EndpointsOpen");
        assert!(seen.status().ports.iter().all(|port| port.open));
        seen.report = report;

        seen.cluster.spec.ports.clear();
        let (steps, said, _) = pass(30, &mut seen);
        assert_eq!((&order(&steps).unwrap().ports, said.as_str()), (&BTreeSet::new(), "False OpeningPorts"));
        assert_eq!(steps.iter().map(Step::name).collect::<Vec<_>>(), ["ApplyNetworkPolicy", "Order", "ApplyService"]);
        assert_eq!(seen.status().ports, vec![]);
    }

    #[test]
    fn ports_are_reached_as_the_api_server_is() {
        let with = |type_: &str| format!("{{access: {{service: {{type: {type_}}}}}, {}", &PORTS[1..]);
        let external = |seen: &Observed| ports(seen).into_iter().map(|port| (port.external, port.node_port)).collect::<Vec<_>>();
        let nodes = seen(&with("NodePort"));
        assert_eq!(external(&nodes), [(Some("172.18.0.2:31001".into()), Some(31001)), (Some("172.18.0.2:31002".into()), Some(31002))]);
        let mut balanced = seen(&with("LoadBalancer"));
        assert_eq!(external(&balanced), [(None, Some(31001)), (None, Some(31002))]);
        gives(&mut balanced, "[{ip: '192.0.2.7'}]");
        assert_eq!(external(&balanced)[1], (Some("192.0.2.7:443".into()), Some(31002)));
    }

    #[test]
    fn what_hinders_ports_is_told() {
        let mut outdated = seen(PORTS);
        outdated.report.as_mut().unwrap().open_ports = None;
        let (steps, said, told) = pass(0, &mut outdated);
        assert_eq!((order(&steps), said.as_str(), told[0].reason), (None, "False AgentOutdated", "AgentOutdated"));
        assert!(conditions::is_true(&outdated.status().conditions, conditions::READY), "the cluster itself is well");
        assert!(!is_moving(&outdated.status(), true));

        let mut taken = seen(PORTS);
        let received = Orders { ports: relayed(&taken.cluster), ..Orders::default() };
        let failure = AgentFailure { reason: Reason::PortInUse, message: "port 30443 of the pod is taken".into(), log_tail: String::new() };
        let report = taken.report.as_mut().unwrap();
        report.orders = Some(OrdersReport { received, failures: vec![failure], ..OrdersReport::default() });
        report.open_ports = Some([30080].into());
        let (_, said, told) = pass(0, &mut taken);
        assert_eq!((said.as_str(), told[0].reason), ("False PortInUse", "PortInUse"));
        assert!(told[0].message.starts_with("port 30443 of the pod is taken. Choose"), "{}", told[0].message);
        assert_eq!(taken.status().ports.iter().map(|port| port.open).collect::<Vec<_>>(), [true, false]);
        // What is said of other orders is history.
        taken.cluster.spec.ports.remove(1);
        assert_eq!(pass(10, &mut taken).1, "True EndpointsOpen");
    }
}
