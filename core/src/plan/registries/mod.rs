//! Registries: one list in the spec, for the Docker daemon of the pod as well as for containerd and kubelet of every node.
//!
//! What the list refers to is read by the operator in the user's namespace and copied into a Secret beside the pod. The list itself, which holds
//! nothing secret, is part of the agent's settings.

mod credentials;
mod files;
mod pull;

pub use credentials::{Login, authority, login};
pub use files::{DOCKER_CONFIG, NODE_DIRECTORY, containerd_patch, daemon, docker_authorities, mounts, node_files};
pub use pull::{candidates, host_of, login_in, secrets_in};

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::registries_digest;
use super::kind_config::is_below;
use super::names::Identity;
use super::problem::Problem;
use super::references::{References, is_fresh};
use super::settings::Settings;
use super::wire::RegistrySettings;
use crate::api::kind_config::KindConfig;
use crate::api::reasons::Reason;
use crate::api::{KindCluster, Registry, annotations};

/// Part of the digests on a pod that is about the registries.
pub const DIGEST: &str = "registries";

/// What is to be read, and the Secret that gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistriesPlan {
    /// The Secret beside the pod.
    pub metadata: ObjectMeta,
    /// What is to be read.
    pub sources: Vec<Source>,
    /// Where they are.
    pub references: References,
}

/// What one registry refers to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// The registry.
    pub host: String,
    /// Name of the Secret with credentials.
    pub credentials: Option<String>,
    /// Name of the ConfigMap with the authority.
    pub authority: Option<String>,
}

/// What was read of one registry.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Its credentials.
    pub login: Option<Login>,
    /// Its authority, PEM.
    pub authority: Option<String>,
}

/// What is to be read for this cluster. Nothing, if there are no sources.
pub fn plan(now: Timestamp, cluster: &KindCluster, identity: &Identity, settings: &Settings) -> RegistriesPlan {
    let name = |reference: &Option<crate::api::LocalReference>| reference.as_ref().map(|reference| reference.name.clone());
    let source = |registry: &Registry| Source {
        host: registry.host.clone(),
        credentials: name(&registry.credentials_secret_ref),
        authority: name(&registry.ca_config_map_ref),
    };
    let about = [(annotations::SETTINGS_DIGEST, registries_digest(&cluster.spec.registries)), (annotations::READ_AT, now.to_string())];
    RegistriesPlan {
        metadata: ObjectMeta {
            annotations: Some(about.map(|(key, value)| (key.to_owned(), value)).into()),
            ..super::objects::metadata(identity.registries(), identity, settings)
        },
        sources: cluster.spec.registries.iter().map(source).filter(|source| source.credentials.is_some() || source.authority.is_some()).collect(),
        references: References::of(identity, settings),
    }
}

impl RegistriesPlan {
    /// Whether a copy was made from the same list, and not too long ago.
    pub fn is_current(&self, now: Timestamp, copy: &ObjectMeta) -> bool {
        let said = |meta: &ObjectMeta, key: &str| meta.annotations.as_ref().and_then(|all| all.get(key).cloned());
        let read: Option<Timestamp> = said(copy, annotations::READ_AT).and_then(|text| text.parse().ok());
        said(copy, annotations::SETTINGS_DIGEST) == said(&self.metadata, annotations::SETTINGS_DIGEST) && is_fresh(now, read)
    }
}

/// The Secret beside the pod: one file of credentials as Docker and the kubelet read it, and the authorities.
pub fn secret(plan: &RegistriesPlan, held: BTreeMap<String, Held>) -> Secret {
    let mut data = BTreeMap::new();
    let mut logins = BTreeMap::new();
    for (host, held) in held {
        if let Some(authority) = held.authority {
            data.insert(files::authority_key(&host), ByteString(authority.into_bytes()));
        }
        if let Some(login) = held.login {
            logins.insert(host, login);
        }
    }
    if !logins.is_empty() {
        data.insert(DOCKER_CONFIG.to_owned(), ByteString(credentials::docker_config(&logins).into_bytes()));
    }
    Secret { metadata: plan.metadata.clone(), data: Some(data), ..Secret::default() }
}

/// What the agent is told of the registries.
pub fn settings(registries: &[Registry]) -> Vec<RegistrySettings> {
    let one = |registry: &Registry| RegistrySettings {
        host: registry.host.clone(),
        endpoints: registry.endpoints.clone(),
        credentials: registry.credentials_secret_ref.is_some(),
        authority: registry.ca_config_map_ref.is_some(),
    };
    registries.iter().map(one).collect()
}

/// Whether the agent needs the Secret.
pub fn want_secret(registries: &[RegistrySettings]) -> bool {
    registries.iter().any(|registry| registry.credentials || registry.authority)
}

/// Refuses a configuration that mounts something where the registries' files go.
///
/// # Errors
/// [`Reason::ConfigFieldOwned`], naming the place.
pub fn check(registries: &[Registry], config: Option<&KindConfig>) -> Result<(), Problem> {
    let ours = mounts(&settings(registries));
    for (node, wanted) in config.iter().flat_map(|config| config.nodes.iter().flatten()).enumerate() {
        for (mount, path) in wanted.extra_mounts.iter().enumerate().filter_map(|(index, mount)| Some((index, mount.container_path.as_deref()?))) {
            if ours.iter().filter_map(|mount| mount.container_path.as_deref()).any(|ours| is_below(path, ours)) {
                let place = format!("config.nodes[{node}].extraMounts[{mount}].containerPath");
                return Err(Problem::new(Reason::ConfigFieldOwned, format!("{place} is the operator's while spec.registries is set")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{self, NOW};
    use rstest::rstest;

    const SPEC: &str = "registries: [{host: docker.io, endpoints: ['https://mirror.example']}, {host: 'private.example:5000', credentialsSecretRef: {name: login}, caConfigMapRef: {name: ca}}]";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn planned(spec: &str) -> RegistriesPlan {
        let cluster = testing::cluster(spec);
        plan(at(NOW), &cluster, &testing::identity(&cluster), &testing::settings())
    }

    #[test]
    fn only_what_is_referred_to_is_read_and_the_command_is_whole() {
        let plan = planned(SPEC);
        let source = Source { host: "private.example:5000".into(), credentials: Some("login".into()), authority: Some("ca".into()) };
        assert_eq!(plan.sources, [source]);
        let problem = plan.references.denied("Secret", "login");
        assert_eq!(problem.reason, Reason::SecretAccessDenied);
        let command =
            "kubectl create rolebinding nestling-secret-reader --clusterrole=nestling-secret-reader --serviceaccount=operators:reed-nestling --namespace=marsh";
        assert!(problem.explain().contains(command), "{}", problem.explain());
        assert_eq!(
            (plan.references.missing("Secret", "a").reason, plan.references.missing("ConfigMap", "a").reason),
            (Reason::SecretNotFound, Reason::ConfigMapNotFound)
        );
    }

    #[rstest]
    #[case::at_once(SPEC, NOW, true)]
    #[case::within_the_hour(SPEC, NOW + 3599, true)]
    #[case::an_hour_later(SPEC, NOW + 3600, false)]
    #[case::a_clock_that_was_set_back(SPEC, NOW - 1, false)]
    #[case::another_list("registries: [{host: a.example, credentialsSecretRef: {name: login}}]", NOW, false)]
    fn a_copy_is_current_for_an_hour_and_for_its_list(#[case] wanted: &str, #[case] now: i64, #[case] current: bool) {
        let copy = secret(&planned(SPEC), BTreeMap::new()).metadata;
        assert_eq!(planned(wanted).is_current(at(now), &copy), current);
        assert!(!planned(wanted).is_current(at(now), &ObjectMeta::default()));
    }

    #[test]
    fn the_secret_holds_one_docker_config_and_each_authority() {
        let login = Login { user: "me".into(), password: "top secret".into() };
        let held = |authority: &str| Held { login: Some(login.clone()), authority: Some(authority.to_owned()) };
        let secret = secret(&planned(SPEC), BTreeMap::from([("docker.io".into(), held("A")), ("private.example:5000".into(), held("B"))]));
        let data = secret.data.unwrap();
        let names: Vec<&str> = data.keys().map(String::as_str).collect();
        assert_eq!(names, ["ca-docker.io.crt", "ca-private.example_5000.crt", "config.json"]);
        let config: serde_json::Value = serde_json::from_slice(&data["config.json"].0).unwrap();
        assert_eq!(
            config,
            serde_json::json!({"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6dG9wIHNlY3JldA=="}, "private.example:5000": {"auth": "bWU6dG9wIHNlY3JldA=="},
            }})
        );
        assert!(!format!("{:?}", held("A")).contains("top secret"));
    }

    #[rstest]
    #[case("[{extraMounts: [{hostPath: /a, containerPath: /etc/containerd/certs.d/x}]}]", Some("nodes[0].extraMounts[0]"))]
    #[case("[{}, {role: worker, extraMounts: [{containerPath: /b}, {containerPath: /var/lib//kubelet/config.json}]}]", Some("nodes[1].extraMounts[1]"))]
    #[case("[{extraMounts: [{hostPath: /a, containerPath: /etc/containerd/conf.d}]}]", None)]
    fn mounts_do_not_collide(#[case] nodes: &str, #[case] place: Option<&str>) {
        let cluster = testing::cluster(&format!("{{{SPEC}, config: {{nodes: {nodes}}}}}"));
        let checked = check(&cluster.spec.registries, cluster.spec.config.as_ref());
        assert_eq!(checked.as_ref().err().map(|problem| problem.reason), place.map(|_| Reason::ConfigFieldOwned));
        assert!(place.is_none_or(|place| checked.is_err_and(|problem| problem.message.contains(place))));
        assert_eq!(check(&[], cluster.spec.config.as_ref()), Ok(()));
    }
}
