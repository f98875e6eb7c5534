//! From what a user's Secret or ConfigMap holds to what can be used. Nothing here repeats any of its content, except into the result.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::BASE64;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use crate::api::reasons::Reason;
use crate::plan::problem::Problem;

/// Longest authority, in bytes: the copies of all registries share one Secret, which may have 1 MiB.
const AUTHORITY_LIMIT: usize = 32 * 1024;

/// The names under which Docker Hub is known, the first in image references.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The name under which Docker and the kubelet look for Docker Hub's credentials.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user name and a password.
#[derive(Clone, Eq, PartialEq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password, or a token that stands for one.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Login(…)")
    }
}

/// The login for a host that a Secret holds.
///
/// # Errors
/// [`Reason::UnusableDockerConfig`], saying what is missing.
pub fn login(secret: &Secret, host: &str) -> Result<Login, Problem> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let unusable = |why: &str| Problem::new(Reason::UnusableDockerConfig, format!("Secret {name} {why}"));
    let text = |key: &str| secret.data.as_ref().and_then(|data| String::from_utf8(data.get(key)?.0.clone()).ok());
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/basic-auth" => match (text("username"), text("password")) {
            (Some(user), Some(password)) if !user.is_empty() && !password.is_empty() => Ok(Login { user, password }),
            _ => Err(unusable("lacks username or password")),
        },
        "kubernetes.io/dockerconfigjson" => {
            let config: Value = text(".dockerconfigjson").and_then(|text| serde_json::from_str(&text).ok()).ok_or_else(|| unusable("holds no JSON"))?;
            in_docker_config(&config, host).ok_or_else(|| {
                let helped = ["credsStore", "credHelpers"].iter().any(|helper| config.get(helper).is_some_and(|helper| !helper.is_null()));
                unusable(&format!("holds no user name and password for {host}{}", if helped { ", only credential helpers" } else { "" }))
            })
        }
        other => Err(unusable(&format!("is of type {other:?}; kubernetes.io/dockerconfigjson or kubernetes.io/basic-auth is wanted"))),
    }
}

/// The login for a host in what `docker login` writes.
pub(super) fn in_docker_config(config: &Value, host: &str) -> Option<Login> {
    let entries = config.get("auths")?.as_object()?;
    let entry = entries.iter().find(|(key, entry)| names(key, host) && entry.is_object())?.1;
    let field = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(auth) = field("auth") {
        let decoded = String::from_utf8(BASE64.decode(auth.as_bytes()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        // Docker pads with zero bytes.
        let password = password.trim_end_matches('\0');
        return (!user.is_empty() && !password.is_empty()).then(|| Login { user: user.to_owned(), password: password.to_owned() });
    }
    Some(Login { user: field("username")?.to_owned(), password: field("password")?.to_owned() })
}

/// Whether a key of `auths`, which may be an address with scheme and path, means a host.
fn names(key: &str, host: &str) -> bool {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default();
    let canonical = |host: &str| if HUB.contains(&host) { HUB[0].to_owned() } else { host.to_ascii_lowercase() };
    canonical(bare) == canonical(host)
}

/// What `docker login` would have written.
pub(super) fn docker_config(logins: &BTreeMap<String, Login>) -> String {
    let entry = |(host, login): (&String, &Login)| {
        let key = if HUB.contains(&host.as_str()) { HUB_KEY.to_owned() } else { host.clone() };
        (key, json!({"auth": BASE64.encode(format!("{}:{}", login.user, login.password).as_bytes())}))
    };
    json!({"auths": logins.iter().map(entry).collect::<serde_json::Map<_, _>>()}).to_string()
}

/// The authority that a ConfigMap holds.
///
/// # Errors
/// [`Reason::UnusableAuthority`], saying what is wrong.
pub fn authority(map: &ConfigMap) -> Result<String, Problem> {
    let name = map.metadata.name.as_deref().unwrap_or_default();
    let unusable = |why: &str| Err(Problem::new(Reason::UnusableAuthority, format!("ConfigMap {name} {why}")));
    let Some(text) = map.data.as_ref().and_then(|data| data.get("ca.crt")) else { return unusable("has no key ca.crt") };
    if text.len() > AUTHORITY_LIMIT {
        return unusable("holds more than 32 KiB under ca.crt");
    }
    if text.contains("PRIVATE KEY") {
        return unusable("holds a private key, which everybody who may read it should now be thought to have");
    }
    match text.find("-----BEGIN CERTIFICATE-----").zip(text.find("-----END CERTIFICATE-----")) {
        Some((begin, end)) if begin < end => Ok(text.clone()),
        _ => unusable("holds no certificate under ca.crt"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn secret(type_: &str, data: &[(&str, &str)]) -> Secret {
        let data: BTreeMap<&str, String> = data.iter().map(|(key, value)| (*key, BASE64.encode(value.as_bytes()))).collect();
        serde_json::from_value(json!({"metadata": {"name": "s"}, "type": type_, "data": data})).unwrap()
    }

    const CONFIG: &str = "kubernetes.io/dockerconfigjson";
    const BASIC: &str = "kubernetes.io/basic-auth";

    #[rstest]
    #[case::auth(r#"{"auths": {"r.example:5000": {"auth": "bWU6cDp3"}}}"#, "r.example:5000")]
    #[case::fields(r#"{"auths": {"r.example": {"username": "me", "password": "p:w"}}}"#, "r.example")]
    #[case::address(r#"{"auths": {"https://r.example/v2/": {"auth": "bWU6cDp3"}}}"#, "r.example")]
    #[case::hub(r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6cDp3"}}}"#, "docker.io")]
    #[case::among_others(r#"{"auths": {"a.example": {"auth": "eDp5"}, "r.example": {"auth": "bWU6cDp3"}}, "credsStore": "desktop"}"#, "r.example")]
    #[case::padded(r#"{"auths": {"r.example": {"auth": "bWU6cDp3AAA="}}}"#, "r.example")]
    fn docker_configs_are_understood(#[case] config: &str, #[case] host: &str) {
        assert!(login(&secret(CONFIG, &[(".dockerconfigjson", config)]), host) == Ok(Login { user: "me".into(), password: "p:w".into() }));
    }

    #[rstest]
    #[case::helper(CONFIG, &[(".dockerconfigjson", r#"{"credHelpers": {"r.example": "ecr-login"}}"#)], "only credential helpers")]
    #[case::store(CONFIG, &[(".dockerconfigjson", r#"{"auths": {"r.example": {}}, "credsStore": "desktop"}"#)], "only credential helpers")]
    #[case::identity_token(CONFIG, &[(".dockerconfigjson", r#"{"auths": {"r.example": {"auth": "MDAwOg==", "identitytoken": "hidden"}}}"#)], "for r.example")]
    #[case::another_port(CONFIG, &[(".dockerconfigjson", r#"{"auths": {"r.example:5000": {"auth": "bWU6aGlkZGVu"}}}"#)], "for r.example")]
    #[case::no_base64(CONFIG, &[(".dockerconfigjson", r#"{"auths": {"r.example": {"auth": "hidden!"}}}"#)], "for r.example")]
    #[case::no_json(CONFIG, &[(".dockerconfigjson", "hidden")], "holds no JSON")]
    #[case::no_key(CONFIG, &[], "holds no JSON")]
    #[case::half(BASIC, &[("username", "hidden")], "lacks username or password")]
    #[case::empty(BASIC, &[("username", "hidden"), ("password", "")], "lacks username or password")]
    #[case::another_type("Opaque", &[("username", "a"), ("password", "hidden")], "is of type \"Opaque\"")]
    fn what_cannot_be_used_is_refused_without_being_repeated(#[case] type_: &str, #[case] data: &[(&str, &str)], #[case] why: &str) {
        let problem = login(&secret(type_, data), "r.example").unwrap_err();
        assert_eq!(problem.reason, Reason::UnusableDockerConfig);
        assert!(problem.message.contains(why) && !problem.message.contains("hidden") && !problem.message.contains("bWU6"), "{problem}");
    }

    #[test]
    fn basic_auth_is_understood_and_what_is_written_reads_back() {
        let basic = login(&secret(BASIC, &[("username", "me"), ("password", "p:w")]), "r.example").unwrap();
        for host in ["r.example", "docker.io"] {
            let written: Value = serde_json::from_str(&docker_config(&BTreeMap::from([(host.to_owned(), basic.clone())]))).unwrap();
            assert!(in_docker_config(&written, host) == Some(basic.clone()), "{host}");
        }
    }

    #[rstest]
    #[case(json!({"ca.crt": "# mine\n-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"}), None)]
    #[case(json!({"tls.crt": "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"}), Some("no key ca.crt"))]
    #[case(json!({"ca.crt": "QQ=="}), Some("no certificate"))]
    #[case(json!({"ca.crt": "-----END CERTIFICATE----------BEGIN CERTIFICATE-----"}), Some("no certificate"))]
    #[case(json!({"ca.crt": "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----"}), Some("private key"))]
    #[case(json!({"ca.crt": "x".repeat(AUTHORITY_LIMIT + 1)}), Some("32 KiB"))]
    fn authorities_are_certificates(#[case] data: Value, #[case] why: Option<&str>) {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "c"}, "data": data})).unwrap();
        match (authority(&map), why) {
            (Ok(_), None) => {}
            (Err(problem), Some(why)) => assert!(problem.reason == Reason::UnusableAuthority && problem.message.contains(why), "{problem}"),
            (found, _) => panic!("{found:?}"),
        }
    }
}
