//! Pulling an image by the Docker daemon, which knows mirrors of Docker Hub only.

use serde_json::Value;

use super::credentials::{Login, in_docker_config};
use super::files::{address_of, path_of};
use crate::plan::wire::RegistrySettings;

/// The registry that an image reference names: what stands before the first slash, if it looks like a host.
pub fn host_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The references under which to try for an image, in order; the image's own comes last. Each is as good as the other: kind is told the one that
/// the daemon knows.
pub fn candidates(reference: &str, registries: &[RegistrySettings]) -> Vec<String> {
    let host = host_of(reference);
    let known = registries.iter().find(|registry| registry.host == host && host != "docker.io");
    let rest = reference.split_once('/').map_or(reference, |(_, rest)| rest);
    let endpoints = known.iter().flat_map(|registry| &registry.endpoints).filter(|endpoint| path_of(endpoint).is_none());
    let mut all: Vec<String> = endpoints.map(|endpoint| format!("{}/{rest}", address_of(endpoint))).filter(|candidate| candidate != reference).collect();
    all.push(reference.to_owned());
    all
}

/// The login for an image, out of what the Secret holds. Endpoints of a registry get the registry's own, as they do from containerd.
pub fn login_in(docker_config: &[u8], reference: &str) -> Option<Login> {
    let config: Value = serde_json::from_slice(docker_config).ok()?;
    in_docker_config(&config, host_of(reference))
}

/// What must not be seen of a file as `docker login` writes it.
pub fn secrets_in(docker_config: &[u8]) -> Vec<String> {
    let config: Value = serde_json::from_slice(docker_config).unwrap_or_default();
    let entries = config.get("auths").and_then(Value::as_object).into_iter().flatten();
    let words = entries.flat_map(|(host, entry)| {
        let auth = entry.get("auth").and_then(Value::as_str).map(str::to_owned);
        auth.into_iter().chain(in_docker_config(&config, host).map(|login| login.password))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::registries;
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("kindest/node:v1", "docker.io")]
    #[case("node", "docker.io")]
    #[case("docker.io/kindest/node@sha256:00", "docker.io")]
    #[case("localhost/a", "localhost")]
    #[case("localhost:5000/a/b:1", "localhost:5000")]
    #[case("team.example/a", "team.example")]
    fn hosts_are_found(#[case] reference: &str, #[case] host: &str) {
        assert_eq!(host_of(reference), host);
    }

    #[rstest]
    #[case::hub_is_the_daemons("kindest/node:v1", &["kindest/node:v1"])]
    #[case::unknown("other.example/a:1", &["other.example/a:1"])]
    #[case::endpoints_first("team.example/a/b:1@sha256:00", &["near.example:8443/a/b:1@sha256:00", "10.0.0.7:5000/a/b:1@sha256:00", "team.example/a/b:1@sha256:00"])]
    #[case::itself_once("10.0.0.8:5000/a", &["10.0.0.8:5000/a"])]
    fn mirrors_of_other_registries_are_asked_by_name(#[case] reference: &str, #[case] expected: &[&str]) {
        let itself = RegistrySettings { host: "10.0.0.8:5000".into(), endpoints: vec!["http://10.0.0.8:5000".into()], credentials: false, authority: false };
        let all = [registries(), vec![itself]].concat();
        assert_eq!(candidates(reference, &all), expected);
    }

    #[test]
    fn logins_are_found_by_the_images_registry() {
        let config = br#"{"auths": {"team.example": {"auth": "bWU6cHc="}}}"#;
        assert!(login_in(config, "team.example/a:1") == Some(Login { user: "me".into(), password: "pw".into() }));
        assert!(login_in(config, "other.example/a:1").is_none() && login_in(b"", "team.example/a").is_none());
        assert_eq!(secrets_in(config), ["bWU6cHc=", "pw"]);
    }
}
