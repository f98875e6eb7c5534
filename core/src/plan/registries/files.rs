//! What the two runtimes read.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::api::kind_config::KindMount;
use crate::api::reasons::Reason;
use crate::plan::problem::Problem;
use crate::plan::wire::RegistrySettings;

/// Key in the Secret, and name of the file, that holds the credentials as `docker login` would write them.
pub const DOCKER_CONFIG: &str = "config.json";

/// Directory in the pod whose files the nodes mount.
pub const NODE_DIRECTORY: &str = "/run/nestling/registries";

/// Below [`NODE_DIRECTORY`], and where containerd reads it in a node.
const HOSTS: (&str, &str) = ("certs.d", "/etc/containerd/certs.d");

/// Where the kubelet reads the credentials for all pulls of a node.
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.json";

/// Key in the Secret that holds the authority of a registry. A colon is no part of a key, an underscore no part of a host.
pub(super) fn authority_key(host: &str) -> String {
    format!("ca-{}.crt", host.replace(':', "_"))
}

/// The files below [`NODE_DIRECTORY`], by their paths in it. `held` is what the Secret holds.
///
/// # Errors
/// [`Reason::PodStartFailed`], if the Secret lacks what the settings promise.
pub fn node_files(registries: &[RegistrySettings], held: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, Vec<u8>>, Problem> {
    let get = |key: &str| held.get(key).cloned().ok_or_else(|| Problem::new(Reason::PodStartFailed, format!("the registries' Secret lacks {key}")));
    let mut files = BTreeMap::new();
    for registry in registries {
        if !registry.endpoints.is_empty() || registry.authority {
            files.insert(format!("{}/{}/hosts.toml", HOSTS.0, registry.host), hosts_toml(registry).into_bytes());
        }
        if registry.authority {
            files.insert(format!("{}/{}/ca.crt", HOSTS.0, registry.host), get(&authority_key(&registry.host))?);
        }
    }
    if registries.iter().any(|registry| registry.credentials) {
        files.insert(DOCKER_CONFIG.to_owned(), get(DOCKER_CONFIG)?);
    }
    Ok(files)
}

/// containerd's `hosts.toml` for one registry. Without `server` the registry itself comes last. Paths are relative to the file.
fn hosts_toml(registry: &RegistrySettings) -> String {
    let mut text = String::new();
    if registry.authority {
        text += "ca = \"ca.crt\"\n";
    }
    for endpoint in &registry.endpoints {
        let _ = write!(text, "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n", quoted(endpoint));
        if path_of(endpoint).is_some() {
            text += "  override_path = true\n";
        }
        if registry.authority && endpoint.starts_with("https://") {
            text += "  ca = \"ca.crt\"\n";
        }
    }
    text
}

/// A TOML string: JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What every node mounts.
pub fn mounts(registries: &[RegistrySettings]) -> Vec<KindMount> {
    let mount = |file: &str, path: &str| KindMount {
        host_path: Some(format!("{NODE_DIRECTORY}/{file}")),
        container_path: Some(path.to_owned()),
        read_only: Some(true),
        other: Map::new(),
    };
    let mut mounts = Vec::new();
    if registries.iter().any(|registry| !registry.endpoints.is_empty() || registry.authority) {
        // The directory as a whole: a host with a port has a colon, which Docker takes for a separator.
        mounts.push(mount(HOSTS.0, HOSTS.1));
    }
    if registries.iter().any(|registry| registry.credentials) {
        mounts.push(mount(DOCKER_CONFIG, KUBELET_CONFIG));
    }
    mounts
}

/// Tells containerd of the directory: before 2.0 it looks nowhere by itself.
pub fn containerd_patch(registries: &[RegistrySettings]) -> Option<String> {
    let patch = || format!("[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"{}\"\n", HOSTS.1);
    (!registries.is_empty()).then(patch)
}

/// What the Docker daemon's configuration says of registries. The daemon knows mirrors of Docker Hub only; those of others are asked by name
/// ([`candidates`](super::candidates)).
pub fn daemon(registries: &[RegistrySettings]) -> Map<String, Value> {
    let hub = registries.iter().filter(|registry| registry.host == "docker.io");
    // It refuses a mirror with a path.
    let mirrors: Vec<&String> = hub.flat_map(|registry| &registry.endpoints).filter(|endpoint| path_of(endpoint).is_none()).collect();
    let mut insecure: Vec<&str> = registries.iter().flat_map(|registry| &registry.endpoints).filter_map(|endpoint| plain(endpoint)).collect();
    insecure.sort_unstable();
    insecure.dedup();
    [("registry-mirrors", json!(mirrors)), ("insecure-registries", json!(insecure))]
        .into_iter()
        .filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()))
        .map(|(key, list)| (key.to_owned(), list))
        .collect()
}

/// The authorities as the Docker daemon reads them: directories below `/etc/docker/certs.d`, and the `ca.crt` in each.
pub fn docker_authorities(registries: &[RegistrySettings], held: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for registry in registries.iter().filter(|registry| registry.authority) {
        let Some(authority) = held.get(&authority_key(&registry.host)) else { continue };
        let own = if registry.host == "docker.io" { "registry-1.docker.io" } else { &registry.host };
        let endpoints = registry.endpoints.iter().filter(|endpoint| plain(endpoint).is_none()).map(|endpoint| address_of(endpoint));
        for host in std::iter::once(own).chain(endpoints) {
            let file = found.entry(host.to_owned()).or_default();
            if !file.is_empty() {
                file.push(b'\n');
            }
            file.extend(authority);
        }
    }
    found
}

/// Host and port of an endpoint.
pub(super) fn address_of(endpoint: &str) -> &str {
    let bare = endpoint.split_once("://").map_or(endpoint, |(_, bare)| bare);
    bare.split('/').next().unwrap_or(bare)
}

/// The path of an endpoint, if it has one.
pub(super) fn path_of(endpoint: &str) -> Option<&str> {
    let bare = endpoint.split_once("://").map_or(endpoint, |(_, bare)| bare);
    bare.split_once('/').map(|(_, path)| path).filter(|path| !path.is_empty())
}

/// Host and port of an endpoint without TLS.
fn plain(endpoint: &str) -> Option<&str> {
    endpoint.starts_with("http://").then(|| address_of(endpoint))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn registries() -> Vec<RegistrySettings> {
        let registry = |host: &str, endpoints: &[&str], credentials, authority| RegistrySettings {
            host: host.to_owned(),
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            credentials,
            authority,
        };
        vec![
            registry("docker.io", &["https://mirror.example", "http://10.0.0.7:5000", "https://cache.example/v2/hub"], true, false),
            registry("private.example:5000", &[], true, true),
            registry("team.example", &["https://near.example:8443", "http://10.0.0.7:5000"], false, true),
        ]
    }

    fn held() -> BTreeMap<String, Vec<u8>> {
        [("config.json", "{}"), ("ca-private.example_5000.crt", "A"), ("ca-team.example.crt", "B")]
            .map(|(key, content)| (key.to_owned(), content.as_bytes().to_vec()))
            .into()
    }

    #[test]
    fn the_files_of_the_nodes() {
        let files: BTreeMap<String, String> =
            node_files(&registries(), &held()).unwrap().into_iter().map(|(path, content)| (path, String::from_utf8(content).unwrap())).collect();
        insta::assert_yaml_snapshot!(files);
        assert_eq!(node_files(&[], &held()), Ok(BTreeMap::new()));
    }

    #[test]
    fn a_secret_that_lacks_something_is_told() {
        for missing in held().keys() {
            let mut held = held();
            held.remove(missing);
            let problem = node_files(&registries(), &held).unwrap_err();
            assert!(problem.reason == Reason::PodStartFailed && problem.message.contains(missing), "{problem}");
        }
    }

    #[test]
    fn the_nodes_mount_only_what_there_is() {
        let paths = |registries: &[RegistrySettings]| -> Vec<String> { mounts(registries).into_iter().filter_map(|mount| mount.container_path).collect() };
        let all = registries();
        assert_eq!(paths(&all), ["/etc/containerd/certs.d", "/var/lib/kubelet/config.json"]);
        assert_eq!(paths(&all[2..]), ["/etc/containerd/certs.d"]);
        let login_only = RegistrySettings { authority: false, ..all[1].clone() };
        assert_eq!(paths(&[login_only]), ["/var/lib/kubelet/config.json"]);
        assert!(paths(&[]).is_empty() && containerd_patch(&[]).is_none());
    }

    #[test]
    fn the_daemons_part() {
        let part = Value::from(daemon(&registries()));
        assert_eq!(part, json!({"registry-mirrors": ["https://mirror.example", "http://10.0.0.7:5000"], "insecure-registries": ["10.0.0.7:5000"]}));
        assert!(daemon(&registries()[1..2]).is_empty());
        let authorities = docker_authorities(&registries(), &held());
        let read: Vec<(&str, &[u8])> = authorities.iter().map(|(host, content)| (host.as_str(), content.as_slice())).collect();
        assert_eq!(read, [("near.example:8443", &b"B"[..]), ("private.example:5000", b"A"), ("team.example", b"B")]);
    }
}
