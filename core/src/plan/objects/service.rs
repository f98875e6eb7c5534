//! The Service in front of the API server.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::{KindCluster, ServiceType, labels};
use crate::plan::names::Identity;
use crate::plan::settings::Settings;
use crate::plan::wire::API_PORT;

/// The Service. It selects one attempt, so that a lost pod never shares the address with its successor, and it publishes addresses that are
/// not ready, because the front door itself refuses while there is nothing behind it.
pub fn service(cluster: &KindCluster, identity: &Identity, settings: &Settings, attempt: i64) -> Service {
    let access = cluster.spec.access.clone().unwrap_or_default().service.unwrap_or_default();
    let mut meta = metadata(identity.child(), identity, settings);
    if !access.annotations.is_empty() {
        meta.annotations = Some(access.annotations);
    }
    let node_port = matches!(access.type_, ServiceType::NodePort).then_some(access.node_port).flatten();
    let selector = [(labels::CLUSTER_UID.to_owned(), identity.uid.clone()), (labels::ATTEMPT.to_owned(), attempt.to_string())];
    Service {
        metadata: meta,
        spec: Some(ServiceSpec {
            type_: Some(match access.type_ {
                ServiceType::ClusterIP => "ClusterIP".to_owned(),
                ServiceType::NodePort => "NodePort".to_owned(),
            }),
            selector: Some(selector.into()),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![ServicePort {
                name: Some("https".to_owned()),
                port: API_PORT,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::Int(API_PORT)),
                node_port,
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    #[test]
    fn services() {
        for (name, spec) in [("cluster_ip", "{}"), ("node_port", "access: {service: {type: NodePort, nodePort: 31000, annotations: {a: b}}}")] {
            let cluster = testing::cluster(spec);
            insta::assert_yaml_snapshot!(name, service(&cluster, &testing::identity(&cluster), &testing::settings(), 2));
        }
    }
}
