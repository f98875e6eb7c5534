//! The Secrets that users get: Cluster API's contract for a kubeconfig, and Argo CD's for a cluster.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::api::labels;
use crate::plan::credentials::Bearer;
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

/// The Secret: key `value` for clients in the host cluster, key `external` for others, where there is such an endpoint; or what Argo CD wants to see.
pub fn kubeconfig_secret(plan: &KubeconfigPlan, credentials: &Credentials) -> Secret {
    let identity = &plan.identity;
    let ours = identity.labels(&plan.install);
    let (type_, all_labels, data) = match &plan.bearer {
        Bearer::ArgoCd { labels } => (None, argo_cd_labels(ours, labels), argo_cd_data(plan, credentials)),
        bearer => {
            let mut labels = ours;
            labels.insert(labels::CAPI_CLUSTER_NAME.to_owned(), identity.name.clone());
            if let Bearer::User { name, .. } = bearer {
                labels.insert(labels::USER.to_owned(), name.clone());
            }
            (Some(SECRET_TYPE.to_owned()), labels, kubeconfigs(plan, credentials))
        }
    };
    Secret {
        metadata: ObjectMeta {
            name: Some(plan.secret.clone()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(all_labels),
            owner_references: Some(vec![super::owner(identity)]),
            ..ObjectMeta::default()
        },
        type_,
        data: Some(data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    }
}

/// Whether all labels of the Secret are the operator's to say, so that one that is taken out of the spec goes. Those of the others are what others have put
/// there as well.
pub fn owns_labels(plan: &KubeconfigPlan) -> bool {
    matches!(plan.bearer, Bearer::ArgoCd { .. })
}

fn kubeconfigs(plan: &KubeconfigPlan, credentials: &Credentials) -> Vec<(&'static str, String)> {
    let external = plan.external.as_ref().map(|external| ("external", kubeconfig(plan, external, credentials)));
    std::iter::once(("value", kubeconfig(plan, &plan.internal, credentials))).chain(external).collect()
}

fn argo_cd_labels(ours: BTreeMap<String, String>, further: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = further.clone();
    all.extend(ours);
    all.insert(labels::ARGO_CD_SECRET_TYPE.to_owned(), "cluster".to_owned());
    all
}

/// Argo CD runs in the host cluster, whose own name it uses for another cluster than ours.
fn argo_cd_data(plan: &KubeconfigPlan, credentials: &Credentials) -> Vec<(&'static str, String)> {
    let encoded = |pem: &str| BASE64.encode(pem.as_bytes());
    let config = json!({"tlsClientConfig": {
        "insecure": false,
        "serverName": plan.tls_server_name,
        "caData": encoded(&credentials.authority),
        "certData": encoded(&credentials.certificate),
        "keyData": encoded(&credentials.key),
    }});
    vec![("name", plan.identity.name.clone()), ("server", plan.internal.clone()), ("config", config.to_string())]
}

/// A kubeconfig. The certificate is checked against one name whatever address is dialled, so that a NodePort, a load balancer or a
/// port-forward verify as well.
fn kubeconfig(plan: &KubeconfigPlan, server: &str, credentials: &Credentials) -> String {
    let cluster = format!("kind-{}", plan.identity.name);
    // Those of several users go into one file.
    let context = if let Bearer::User { name, .. } = &plan.bearer { format!("{cluster}-{name}") } else { cluster.clone() };
    let encoded = |pem: &str| BASE64.encode(pem.as_bytes());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {
            "server": server,
            "tls-server-name": plan.tls_server_name,
            "certificate-authority-data": encoded(&credentials.authority),
        }}],
        "users": [{"name": context, "user": {
            "client-certificate-data": encoded(&credentials.certificate),
            "client-key-data": encoded(&credentials.key),
        }}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": context}}],
        "current-context": context,
    });
    // Plain data: cannot fail.
    serde_saphyr::to_string(&config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    fn plan(bearer: Bearer) -> KubeconfigPlan {
        let identity = testing::identity(&testing::cluster("{}"));
        KubeconfigPlan {
            secret: "crane-kubeconfig".into(),
            bearer,
            internal: "https://c.clusters.svc:6443".into(),
            external: Some("https://172.18.0.2:31000".into()),
            tls_server_name: "c.clusters.svc".into(),
            lifetime: std::time::Duration::from_hours(1),
            digest: "d".into(),
            install: "reed".into(),
            identity,
        }
    }

    fn secret(bearer: Bearer) -> Secret {
        kubeconfig_secret(&plan(bearer), &Credentials { authority: "A".into(), certificate: "C".into(), key: "K".into() })
    }

    #[test]
    fn a_users_secret_can_stand_beside_the_administrators_in_one_file() {
        let secret = secret(Bearer::User { name: "ci".into(), groups: vec![] });
        assert_eq!(secret.metadata.labels.as_ref().unwrap()["nestling.dev/user"], "ci");
        assert_eq!(secret.type_.as_deref(), Some("cluster.x-k8s.io/secret"));
        insta::assert_snapshot!(String::from_utf8(secret.data.unwrap()["value"].0.clone()).unwrap());
    }

    #[test]
    fn the_secret_fits_argo_cds_contract() {
        let labels = BTreeMap::from([("env".to_owned(), "dev".to_owned())]);
        let secret = secret(Bearer::ArgoCd { labels });
        let data: BTreeMap<String, String> = secret.data.unwrap().into_iter().map(|(key, text)| (key, String::from_utf8(text.0).unwrap())).collect();
        insta::assert_yaml_snapshot!((secret.type_, secret.metadata.labels, data));
    }

    #[test]
    fn the_secret_fits_cluster_apis_contract() {
        let secret = secret(Bearer::Admin);
        assert_eq!(secret.type_.as_deref(), Some("cluster.x-k8s.io/secret"));
        assert_eq!(secret.metadata.labels.as_ref().unwrap()["cluster.x-k8s.io/cluster-name"], "crane");
        let text = |key: &str| String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap();
        insta::assert_snapshot!(text("value"));
        assert!(text("external").contains("https://172.18.0.2:31000"));
    }
}
