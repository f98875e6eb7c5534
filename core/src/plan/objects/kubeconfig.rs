//! The Secret that a user gets: Cluster API's contract for a kubeconfig.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::api::labels;
use crate::plan::decide::KubeconfigPlan;

/// Type that Cluster API gives such a Secret.
const SECRET_TYPE: &str = "cluster.x-k8s.io/secret";

/// What a kubeconfig proves itself with. PEM each.
pub struct Credentials {
    /// The cluster's authority.
    pub authority: String,
    /// The user's certificate.
    pub certificate: String,
    /// The user's key.
    pub key: String,
}

/// The Secret: key `value` for clients in the host cluster, key `external` for others, where there is such an endpoint.
pub fn kubeconfig_secret(plan: &KubeconfigPlan, credentials: &Credentials) -> Secret {
    let identity = &plan.identity;
    let mut data = BTreeMap::from([("value".to_owned(), ByteString(kubeconfig(plan, &plan.internal, credentials).into_bytes()))]);
    if let Some(external) = &plan.external {
        data.insert("external".to_owned(), ByteString(kubeconfig(plan, external, credentials).into_bytes()));
    }
    let mut all_labels = identity.labels(&plan.install);
    all_labels.insert(labels::CAPI_CLUSTER_NAME.to_owned(), identity.name.clone());
    Secret {
        metadata: ObjectMeta {
            name: Some(plan.secret.clone()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(all_labels),
            owner_references: Some(vec![super::owner(identity)]),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// A kubeconfig. The certificate is checked against one name whatever address is dialled, so that a NodePort, a load balancer or a
/// port-forward verify as well.
fn kubeconfig(plan: &KubeconfigPlan, server: &str, credentials: &Credentials) -> String {
    let context = format!("kind-{}", plan.identity.name);
    let encoded = |pem: &str| BASE64.encode(pem.as_bytes());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": {
            "server": server,
            "tls-server-name": plan.tls_server_name,
            "certificate-authority-data": encoded(&credentials.authority),
        }}],
        "users": [{"name": context, "user": {
            "client-certificate-data": encoded(&credentials.certificate),
            "client-key-data": encoded(&credentials.key),
        }}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    });
    // Plain data: cannot fail.
    serde_saphyr::to_string(&config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    #[test]
    fn the_secret_fits_cluster_apis_contract() {
        let identity = testing::identity(&testing::cluster("{}"));
        let plan = KubeconfigPlan {
            secret: "crane-kubeconfig".into(),
            internal: "https://c.clusters.svc:6443".into(),
            external: Some("https://172.18.0.2:31000".into()),
            tls_server_name: "c.clusters.svc".into(),
            lifetime: std::time::Duration::from_hours(1),
            digest: "d".into(),
            install: "reed".into(),
            identity,
        };
        let secret = kubeconfig_secret(&plan, &Credentials { authority: "A".into(), certificate: "C".into(), key: "K".into() });
        assert_eq!(secret.type_.as_deref(), Some("cluster.x-k8s.io/secret"));
        assert_eq!(secret.metadata.labels.as_ref().unwrap()["cluster.x-k8s.io/cluster-name"], "crane");
        let text = |key: &str| String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap();
        insta::assert_snapshot!(text("value"));
        assert!(text("external").contains("https://172.18.0.2:31000"));
    }
}
