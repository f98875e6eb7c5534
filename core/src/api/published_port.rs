//! `spec.ports`: NodePorts of the cluster, published beside its API server.

use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A NodePort of the cluster that is published: on the Service of the cluster in the host cluster, and with `access.service.type` `NodePort` or
/// `LoadBalancer` outside of it as well.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct PublishedPort {
    /// Its name.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("name must be of lower-case letters, digits and -"))]
    pub name: String,

    /// Port of the cluster's Service in the host cluster, and of its load balancer.
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(validation = Rule::new("self != 6443").message("port 6443 is the API server's"))]
    pub port: i32,

    /// `nodePort` of a Service inside the cluster. It need not be there yet.
    #[schemars(range(min = 30000, max = 32767))]
    pub target_node_port: i32,

    /// The port to take on the host's nodes, with `access.service.type` `NodePort` or `LoadBalancer`; one is allocated if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,

    /// Only connections are relayed, no datagrams.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What is relayed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Protocol {
    /// Connections.
    #[default]
    TCP,
}
