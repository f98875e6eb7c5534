//! Looks for secrets where none may be: in logs, events, objects and command lines.

use data_encoding::BASE64;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nestling_core::plan::objects::LOGS_KEY;
use serde_json::Value;

use super::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE};
use super::real::Host;

/// Shorter values are found everywhere.
const SHORTEST: usize = 13;

/// Fields of JSON and YAML inside of a Secret that are secret; the others (addresses, names, certificates) are not.
const SECRET_FIELDS: [&str; 5] = ["auth", "password", "client-key-data", "token", "identitytoken"];

/// A word that may not be seen, and where it is from. Never print the word.
pub struct Needle {
    origin: String,
    word: String,
}

/// A text in which no secret may be, and what it is.
pub struct Place {
    /// What it is.
    pub name: String,
    /// The text.
    pub text: String,
}

/// The words of these Secrets that may not be seen: each value that is not public, as it is and in base64.
pub fn needles(secrets: &[Secret]) -> Vec<Needle> {
    let mut needles = Vec::new();
    for secret in secrets {
        for (key, value) in secret.data.iter().flatten() {
            let origin = format!("{key} of Secret {}/{}", secret.namespace().unwrap_or_default(), secret.name_any());
            let text = String::from_utf8_lossy(&value.0);
            let mut words = words(key, text.trim());
            if !words.is_empty() {
                words.push(BASE64.encode(&value.0));
            }
            needles.extend(words.into_iter().filter(|word| word.len() >= SHORTEST).map(|word| Needle { origin: origin.clone(), word }));
        }
    }
    needles
}

fn words(key: &str, text: &str) -> Vec<String> {
    // An archive of logs is a place, not a secret.
    if key == "username" || key == LOGS_KEY || text.starts_with("-----BEGIN CERTIFICATE") || text.starts_with("-----BEGIN PUBLIC KEY") {
        return vec![];
    }
    if text.contains("PRIVATE KEY-----") {
        // A log may show it line by line, JSON without its line breaks.
        return text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect();
    }
    if let Some(structure) = serde_saphyr::from_str::<Value>(text).ok().filter(Value::is_object) {
        let mut found = Vec::new();
        secret_fields(&structure, &mut found);
        return found;
    }
    vec![text.to_owned()]
}

fn secret_fields(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match value.as_str() {
            Some(text) if SECRET_FIELDS.contains(&key.as_str()) => {
                found.push(text.to_owned());
                let decoded = BASE64.decode(text.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                // `user:password`, or a key.
                found.extend(decoded.iter().flat_map(|decoded| words("", decoded.split_once(':').map_or(decoded.as_str(), |(_, password)| password))));
            }
            _ => secret_fields(value, found),
        }),
        Value::Array(list) => list.iter().for_each(|value| secret_fields(value, found)),
        _ => {}
    }
}

/// Which secrets are seen where. Says nothing of the secrets themselves.
pub fn scan(needles: &[Needle], places: &[Place]) -> Vec<String> {
    let mut found: Vec<String> = places
        .iter()
        .flat_map(|place| needles.iter().filter(|needle| place.text.contains(&needle.word)).map(|needle| format!("{} is in {}", needle.origin, place.name)))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// No secret of the clusters, nor of these namespaces, is in any log, event, object or command line.
///
/// # Panics
/// If one is, naming it and the place.
pub async fn nothing_is_shown(host: &Host, namespaces: &[&str]) {
    let places = places(host);
    assert!(places.iter().any(|place| place.name.starts_with("the log") && place.text.len() > 1000), "no log was read");
    none_is_in(host, namespaces, places).await;
}

/// No secret of the clusters, nor of these namespaces, is in these places.
///
/// # Panics
/// If one is, naming it and the place.
pub async fn none_is_in(host: &Host, namespaces: &[&str], places: Vec<Place>) {
    let mut secrets = Vec::new();
    for namespace in namespaces.iter().chain([&CLUSTERS_NAMESPACE]) {
        secrets.extend(Api::<Secret>::namespaced(host.client.clone(), namespace).list(&ListParams::default()).await.unwrap());
    }
    let needles = needles(&secrets);
    // At the very least the keys of one cluster: a scan for nothing would find nothing.
    assert!(needles.len() > 20, "only {} secrets are known", needles.len());
    let found = scan(&needles, &places);
    assert!(found.is_empty(), "{}", found.join("\n"));
    println!("{} secrets, {} places: none is seen", needles.len(), places.len());
}

/// Everything that people without a right to Secrets can read.
fn places(host: &Host) -> Vec<Place> {
    let read = |name: String, arguments: &[&str]| {
        // Also what a container that does not run has left; one that has never run before has no previous log.
        let output = host.cluster.kubectl().args(arguments).output().unwrap();
        Place { name, text: String::from_utf8_lossy(&output.stdout).into_owned() }
    };
    let mut places = vec![
        read("the events".into(), &["get", "events", "-A", "-o", "json"]),
        read("the KindClusters".into(), &["get", "kindclusters", "-A", "-o", "json"]),
        read("the pods".into(), &["get", "pods", "-A", "-o", "json"]),
        read("the config maps".into(), &["get", "configmaps", "-A", "-o", "json"]),
    ];
    for namespace in [OPERATOR_NAMESPACE, CLUSTERS_NAMESPACE] {
        for pod in host.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).lines() {
            for previous in ["--previous=false", "--previous=true"] {
                places.push(read(format!("the log of {pod} ({previous})"), &["logs", "-n", namespace, pod, "--all-containers", "--tail=-1", previous]));
            }
            if namespace == CLUSTERS_NAMESPACE {
                places.push(read(format!("a command line in {pod}"), &["exec", "-n", namespace, pod, "--", "ps", "-eo", "args", "-ww"]));
                for log in ["dockerd.log", "containerd.log"] {
                    places.push(read(format!("{log} in {pod}"), &["exec", "-n", namespace, pod, "--", "cat", &format!("/run/nestling/{log}")]));
                }
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(key: &str, value: &str) -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "data": {key: BASE64.encode(value.as_bytes())}})).unwrap()
    }

    fn finds(key: &str, value: &str, text: &str) -> bool {
        let place = Place { name: "the log".into(), text: text.into() };
        let found = scan(&needles(&[secret(key, value)]), &[place]);
        assert!(found.iter().all(|found| found == &format!("{key} of Secret n/s is in the log")), "{found:?}");
        !found.is_empty()
    }

    #[test]
    fn planted_secrets_are_found() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nAgEGCCqGSM49AwEHBG0w\n-----END PRIVATE KEY-----\n";
        let encoded = BASE64.encode(key.as_bytes());
        let kubeconfig = format!("users:\n- name: a-public-name\n  user:\n    client-key-data: {encoded}\n");
        let docker = r#"{"auths": {"registry.example:5000": {"auth": "aGVyb246d2FkaW5nLWF0LWR1c2s="}}}"#;
        for (name, value, text) in [
            ("ca.key", key, "error at AgEGCCqGSM49AwEHBG0w!"),
            ("ca.key", key, &*format!("data: {encoded}")),
            ("bootstrap-token", "abcdeg.0123456789abcdeg", "kubeadm join --token abcdeg.0123456789abcdeg"),
            ("value", &kubeconfig, &*format!("{{\"k\": \"{encoded}\"}}")),
            ("value", &kubeconfig, "MIGHAgEAMBMGByqGSM49"),
            ("config.json", docker, "Basic aGVyb246d2FkaW5nLWF0LWR1c2s="),
            ("config.json", docker, "login with wading-at-dusk failed"),
        ] {
            assert!(finds(name, value, text), "{name} in {text}");
        }
    }

    #[test]
    fn what_is_public_is_not_looked_for() {
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n";
        assert!(!finds("ca.crt", certificate, certificate));
        assert!(!finds("username", "a-long-name-of-a-user", "a-long-name-of-a-user"));
        assert!(!finds("password", "short", "short"));
        assert!(!finds("value", "server: https://c-demo.nestling-clusters.svc:6443\nclient-key-data: x", "https://c-demo.nestling-clusters.svc:6443"));
    }
}
