//! The Service in front of the API server and of the published ports.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::{FIELD_MANAGER, KindCluster, Protocol, ServiceType, annotations, labels};
use crate::plan::desired::short_digest;
use crate::plan::names::Identity;
use crate::plan::settings::Settings;
use crate::plan::wire::API_PORT;

/// The Service. It selects one attempt, so that a lost pod never shares the address with its successor, and it publishes addresses that are
/// not ready, because the front door itself refuses while there is nothing behind it.
pub fn service(cluster: &KindCluster, identity: &Identity, settings: &Settings, attempt: i64) -> Service {
    let access = cluster.spec.access.clone().unwrap_or_default().service.unwrap_or_default();
    let outside = access.type_ != ServiceType::ClusterIP;
    let balanced = access.type_ == ServiceType::LoadBalancer;
    let port = |name: String, port: i32, target: i32, node_port: Option<i32>, protocol: Protocol| ServicePort {
        name: Some(name),
        port,
        protocol: Some(match protocol {
            Protocol::TCP => "TCP".to_owned(),
        }),
        target_port: Some(IntOrString::Int(target)),
        node_port: node_port.filter(|_| outside),
        ..ServicePort::default()
    };
    // Theirs may be called anything, also `https`.
    let published = cluster.spec.ports.iter().map(|wish| port(format!("port-{}", wish.name), wish.port, wish.target_node_port, wish.node_port, wish.protocol));
    let selector = [(labels::CLUSTER_UID.to_owned(), identity.uid.clone()), (labels::ATTEMPT.to_owned(), attempt.to_string())];
    let mut service = Service {
        metadata: metadata(identity.child(), identity, settings),
        spec: Some(ServiceSpec {
            type_: Some(access.type_.as_str().to_owned()),
            selector: Some(selector.into()),
            publish_not_ready_addresses: Some(true),
            load_balancer_class: access.load_balancer_class.filter(|_| balanced),
            load_balancer_source_ranges: Some(access.load_balancer_source_ranges).filter(|ranges| balanced && !ranges.is_empty()),
            ports: Some(std::iter::once(port("https".to_owned(), API_PORT, API_PORT, access.node_port, Protocol::TCP)).chain(published).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    };
    let mut all = access.annotations;
    all.insert(annotations::APPLIED_DIGEST.to_owned(), digest(&service, &all));
    service.metadata.annotations = Some(all);
    service
}

/// Whoever applies leaves out what is not wanted any more; nothing but this shows that it was.
fn digest(service: &Service, annotations: &impl serde::Serialize) -> String {
    short_digest(&serde_json::json!([service.spec, annotations]).to_string())
}

/// What to apply first where the Service is to go from one class of load balancers to another, which the API server refuses to do at once: the same Service without a load
/// balancer. `None` where nothing stands in the way. A class that somebody else has filled in is no obstacle.
pub fn before_another_class(wanted: &Service, have: &Service) -> Option<Service> {
    let class =
        |service: &Service| service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer")).map(|spec| spec.load_balancer_class.clone());
    let (after, before) = (class(wanted)?, class(have)?);
    if after == before || (after.is_none() && !is_ours(have, "f:loadBalancerClass")) {
        return None;
    }
    let mut plain = wanted.clone();
    if let Some(spec) = &mut plain.spec {
        spec.type_ = Some(ServiceType::ClusterIP.as_str().to_owned());
        (spec.load_balancer_class, spec.load_balancer_source_ranges) = (None, None);
        spec.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
    }
    Some(plain)
}

/// Whether we have set this field of the specification.
fn is_ours(service: &Service, field: &str) -> bool {
    let all = service.metadata.managed_fields.iter().flatten();
    let mut ours = all.filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER)).filter_map(|entry| entry.fields_v1.as_ref());
    ours.any(|fields| fields.0.pointer(&format!("/f:spec/{field}")).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;
    use serde_json::json;

    fn made(spec: &str) -> Service {
        let cluster = testing::cluster(spec);
        service(&cluster, &testing::identity(&cluster), &testing::settings(), 2)
    }

    #[test]
    fn services() {
        for (name, spec) in [
            ("cluster_ip", "{ports: [{name: https, port: 443, targetNodePort: 30443}]}"),
            ("node_port", "access: {service: {type: NodePort, nodePort: 31000, annotations: {a: b}}}"),
            (
                "load_balancer",
                "{access: {service: {type: LoadBalancer, nodePort: 31000, loadBalancerClass: a.example/b, loadBalancerSourceRanges: [192.0.2.0/24]}}, \
                 ports: [{name: web, port: 80, targetNodePort: 30080, nodePort: 31080}]}",
            ),
        ] {
            insta::assert_yaml_snapshot!(name, made(spec));
        }
    }

    #[test]
    fn what_is_not_asked_for_any_more_is_a_difference() {
        let digest = |spec: &str| made(spec).metadata.annotations.unwrap()[annotations::APPLIED_DIGEST].clone();
        let plain = digest("{access: {service: {type: LoadBalancer}}}");
        assert_eq!(plain, digest("{access: {service: {type: LoadBalancer}}, version: v1.33.1}"));
        for more in ["annotations: {a: b}", "nodePort: 31000", "loadBalancerClass: x", "loadBalancerSourceRanges: [192.0.2.0/24]"] {
            assert_ne!(plain, digest(&format!("{{access: {{service: {{type: LoadBalancer, {more}}}}}}}")), "{more}");
        }
    }

    #[test]
    fn another_class_needs_a_service_without_one_in_between() {
        let of = |class: &str| made(&format!("{{access: {{service: {{type: LoadBalancer, nodePort: 31000{class}}}}}}}"));
        let (none, a, b) = (of(""), of(", loadBalancerClass: a"), of(", loadBalancerClass: b"));
        for (wanted, have, expected) in
            [(&a, &a, false), (&b, &a, true), (&a, &none, true), (&none, &a, false), (&made("{}"), &a, false), (&a, &made("{}"), false)]
        {
            let between = before_another_class(wanted, have);
            assert_eq!(between.is_some(), expected, "{wanted:?}");
            if let Some(spec) = between.and_then(|between| between.spec) {
                assert_eq!((spec.type_.as_deref(), spec.load_balancer_class, spec.ports.unwrap()[0].node_port), (Some("ClusterIP"), None, None));
            }
        }
        // The same as above, but the class is one that we have set, not a webhook of the host's.
        let mut ours = a.clone();
        let fields = json!([{"manager": FIELD_MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:loadBalancerClass": {}}}}]);
        ours.metadata.managed_fields = serde_json::from_value(fields).unwrap();
        assert!(before_another_class(&none, &ours).is_some());
    }
}
