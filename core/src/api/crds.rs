//! The CustomResourceDefinitions, ready to be written out.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, ValidationRule};
use kube_core::CustomResourceExt;

use super::KindCluster;

/// Every CRD, in the order in which to apply them.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![kindcluster()]
}

/// The derive macro writes rules on the root only through the `kube` facade, which this crate must not depend on; so
/// the one rule that reads `metadata` is added here.
fn kindcluster() -> CustomResourceDefinition {
    let name_is_a_short_label = ValidationRule {
        rule: "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')".to_owned(),
        message: Some("the name must be a DNS label of at most 40 characters: a Service and a Pod are named after it".to_owned()),
        ..ValidationRule::default()
    };
    let mut crd = KindCluster::crd();
    for version in &mut crd.spec.versions {
        if let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            root.x_kubernetes_validations.get_or_insert_default().push(name_is_a_short_label.clone());
        }
    }
    crd
}
