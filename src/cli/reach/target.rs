//! What is known of a cluster before a way to it is opened. Pure.

use std::net::SocketAddr;

use anyhow::Result;
use data_encoding::HEXLOWER;
use hyper::Uri;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use nestling_core::api::conditions::{self, CONTROL_PLANE_READY, STALLED};
use nestling_core::api::{KindCluster, PowerState};
use nestling_core::plan::names::Identity;
use nestling_core::plan::objects::RelayOrder;

use crate::cli::ReachArgs;
use crate::cli::exit::{GONE, STALLED as STALLED_CODE};
use crate::cli::failure::{Failure, command};
use crate::cli::kubeconfig::published::name_of;

/// Refuses a cluster that nobody can reach at the moment.
///
/// # Errors
/// Says why, and what brings it back.
pub fn check(cluster: &KindCluster) -> Result<(), Failure> {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let named = name_of(cluster);
    if cluster.metadata.deletion_timestamp.is_some() {
        let next = format!("Create it anew when it is gone: `{}`.", command(&format!("create {named}")));
        return Err(Failure::new(format!("{name} is being deleted"), next).with_code(GONE));
    }
    let start = || format!("Start it: `{}`.", command(&format!("start {named}")));
    match cluster.spec.power_state.unwrap_or_default() {
        PowerState::Running => {}
        PowerState::Frozen => return Err(Failure::new(format!("{name} is frozen"), start())),
        PowerState::Stopped => return Err(Failure::new(format!("{name} is stopped"), start())),
    }
    let status = cluster.status.clone().unwrap_or_default();
    let said = |type_: &str| {
        conditions::get(&status.conditions, type_)
            .filter(|condition| !condition.message.is_empty())
            .map_or(String::new(), |condition| format!(": {}", condition.message))
    };
    if conditions::is_true(&status.conditions, CONTROL_PLANE_READY) {
        return Ok(());
    }
    if conditions::is_true(&status.conditions, STALLED) {
        let next = format!("Look at its logs: `{}`.", command(&format!("logs {named}")));
        return Err(Failure::new(format!("{name} is stalled{}", said(STALLED)), next).with_code(STALLED_CODE));
    }
    let next = format!("Wait for it: `{}`.", command(&format!("wait {named} --for ControlPlaneReady")));
    Err(Failure::new(format!("the API server of {name} is not ready{}", said(CONTROL_PLANE_READY)), next))
}

/// A published kubeconfig, or as much of it as leads to a cluster: its address, its authority and credentials. All else is left out, because a kubeconfig can name programs to run
/// and files to read, and this one comes out of a Secret.
///
/// # Errors
/// If it is none.
pub fn read(text: &[u8]) -> Result<Kubeconfig> {
    let unusable =
        |why: String| Failure::new(format!("the published kubeconfig cannot be used: {why}"), "The operator writes the Secret again when it is deleted.");
    let text = str::from_utf8(text).map_err(|error| unusable(error.to_string()))?;
    let mut kubeconfig = Kubeconfig::from_yaml(text).map_err(|error| unusable(error.to_string()))?;
    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        let told = std::mem::take(cluster);
        *cluster = Cluster {
            server: told.server,
            tls_server_name: told.tls_server_name,
            certificate_authority_data: told.certificate_authority_data,
            ..Cluster::default()
        };
    }
    for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        let told = std::mem::take(user);
        *user =
            AuthInfo { token: told.token, client_certificate_data: told.client_certificate_data, client_key_data: told.client_key_data, ..AuthInfo::default() };
    }
    server(&kubeconfig)?;
    Ok(kubeconfig)
}

/// The `host:port` that a kubeconfig leads to.
///
/// # Errors
/// If it leads nowhere, or without TLS.
pub fn server(kubeconfig: &Kubeconfig) -> Result<String> {
    let url = kubeconfig.clusters.iter().find_map(|named| named.cluster.as_ref()?.server.as_ref());
    let uri = url.and_then(|url| url.parse::<Uri>().ok()).filter(|uri| uri.scheme_str() == Some("https"));
    let place = uri.as_ref().and_then(|uri| Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(443))));
    Ok(place.ok_or_else(|| Failure::new("the published kubeconfig leads nowhere", "The operator writes the Secret again when it is deleted."))?)
}

/// The same kubeconfig for another address. The name that the server's certificate is checked against stays the one that it was.
///
/// # Errors
/// If it leads nowhere.
pub fn at(kubeconfig: &Kubeconfig, address: SocketAddr) -> Result<Kubeconfig> {
    let before = server(kubeconfig)?;
    let name = before.rsplit_once(':').map_or(before.as_str(), |(host, _)| host).to_owned();
    let mut moved = kubeconfig.clone();
    for cluster in moved.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        cluster.server = Some(format!("https://{address}"));
        cluster.tls_server_name.get_or_insert_with(|| name.clone());
    }
    Ok(moved)
}

/// The relay pod that is needed.
///
/// # Errors
/// If nobody knows its image.
pub fn order(cluster: &KindCluster, internal: &Kubeconfig, args: &ReachArgs) -> Result<RelayOrder> {
    let told = cluster.status.as_ref().and_then(|status| status.relay_image.clone());
    let Some(image) = args.relay_image.clone().or(told) else {
        let next = "Give --relay-image: the image of the operator. Newer operators tell it in status.relayImage.";
        return Err(Failure::new("nobody knows an image for the relay pod that leads to the cluster", next).into());
    };
    let of = |field: &Option<String>| field.clone().unwrap_or_default();
    let metadata = &cluster.metadata;
    Ok(RelayOrder {
        suffix: HEXLOWER.encode(&rand::random::<[u8; 4]>()),
        cluster: Identity { namespace: of(&metadata.namespace), name: of(&metadata.name), uid: of(&metadata.uid) },
        target: server(internal)?,
        image,
        pull_secrets: args.relay_pull_secrets.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn cluster(spec: Value, conditions: &[(&str, &str, &str)]) -> KindCluster {
        let conditions: Value = conditions
            .iter()
            .map(|(type_, status, message)| json!({"type": type_, "status": status, "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}))
            .collect();
        let metadata = json!({"name": "crane", "namespace": "marsh", "uid": "u"});
        let mut object = json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": metadata, "status": {"conditions": conditions}});
        object["spec"] = spec;
        serde_json::from_value(object).unwrap()
    }

    #[rstest]
    #[case::ready(json!({}), &[("ControlPlaneReady", "True", "")], None)]
    #[case::ready_but_not_all_nodes(json!({}), &[("ControlPlaneReady", "True", ""), ("Stalled", "True", "")], None)]
    #[case::frozen(json!({"powerState": "Frozen"}), &[("ControlPlaneReady", "True", "")], Some(("crane is frozen", "start -n marsh crane")))]
    #[case::stopped(json!({"powerState": "Stopped"}), &[], Some(("crane is stopped", "start -n marsh crane")))]
    #[case::being_made(json!({}), &[("ControlPlaneReady", "False", "kind is at work")], Some(("not ready: kind is at work", "wait -n marsh crane")))]
    #[case::nobody_has_looked(json!({}), &[], Some(("the API server of crane is not ready", "wait -n marsh crane")))]
    #[case::stalled(json!({}), &[("ControlPlaneReady", "False", ""), ("Stalled", "True", "no disk")], Some(("crane is stalled: no disk", "logs -n marsh crane")))]
    fn who_cannot_be_reached_is_told_why(#[case] spec: Value, #[case] conditions: &[(&str, &str, &str)], #[case] expected: Option<(&str, &str)>) {
        match (check(&cluster(spec, conditions)), expected) {
            (Ok(()), None) => {}
            (Err(failure), Some((what, next))) => {
                assert!(failure.to_string().contains(what) && failure.to_string().contains(next), "{failure}");
            }
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_is_being_deleted_is_not_reached() {
        let mut leaving = cluster(json!({}), &[("ControlPlaneReady", "True", "")]);
        leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(check(&leaving).unwrap_err().code(), GONE);
    }

    const PUBLISHED: &str = "
apiVersion: v1
kind: Config
clusters: [{name: kind-crane, cluster: {server: 'https://c-crane.clusters.svc:6443', tls-server-name: c-crane.clusters.svc, certificate-authority-data: QQ==,
  insecure-skip-tls-verify: true, proxy-url: 'http://elsewhere'}}]
users: [{name: kind-crane, user: {client-certificate-data: QQ==, client-key-data: QQ==, tokenFile: /etc/shadow, exec: {command: sh, apiVersion: client.authentication.k8s.io/v1}}}]
contexts: [{name: kind-crane, context: {cluster: kind-crane, user: kind-crane}}]
current-context: kind-crane
";

    #[test]
    fn a_kubeconfig_from_a_secret_runs_nothing_and_verifies_its_server() {
        let read = read(PUBLISHED.as_bytes()).unwrap();
        let text = serde_json::to_string(&read).unwrap();
        for harmful in ["exec", "/etc/shadow", "insecure", "elsewhere"] {
            assert!(!text.contains(harmful), "{harmful} in {text}");
        }
        assert!(super::read(PUBLISHED.replace("https://", "http://").as_bytes()).is_err());
        assert!(super::read(b"\xff").is_err() && super::read(b"[]").is_err());
    }

    #[test]
    fn another_address_is_held_against_the_same_name() {
        let published = read(PUBLISHED.as_bytes()).unwrap();
        let moved = at(&published, "127.0.0.1:4711".parse().unwrap()).unwrap();
        let cluster = moved.clusters[0].cluster.as_ref().unwrap();
        assert_eq!((cluster.server.as_deref(), cluster.tls_server_name.as_deref()), (Some("https://127.0.0.1:4711"), Some("c-crane.clusters.svc")));
        let mut nameless = published;
        nameless.clusters[0].cluster.as_mut().unwrap().tls_server_name = None;
        let moved = at(&nameless, "127.0.0.1:4711".parse().unwrap()).unwrap();
        assert_eq!(moved.clusters[0].cluster.as_ref().unwrap().tls_server_name.as_deref(), Some("c-crane.clusters.svc"));
    }

    #[test]
    fn the_relays_image_is_the_operators_unless_another_is_given() {
        let published = read(PUBLISHED.as_bytes()).unwrap();
        let mut crane = cluster(json!({}), &[]);
        let given = |image: Option<&str>| ReachArgs { relay_image: image.map(str::to_owned), ..ReachArgs::default() };
        assert!(order(&crane, &published, &given(None)).unwrap_err().to_string().contains("--relay-image"));
        crane.status.as_mut().unwrap().relay_image = Some("operator:1".into());
        let ordered = order(&crane, &published, &given(None)).unwrap();
        assert_eq!((ordered.image.as_str(), ordered.target.as_str()), ("operator:1", "c-crane.clusters.svc:6443"));
        assert_eq!((ordered.cluster.namespace.as_str(), ordered.cluster.uid.as_str()), ("marsh", "u"));
        assert_eq!(order(&crane, &published, &given(Some("mine:2"))).unwrap().image, "mine:2");
    }
}
