//! A pod inside of a nested cluster from which commands are run in one of its nodes: with the programs of the node itself, above an image that the node has.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Node, Pod, PodSpec, SecurityContext, Toleration, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace of these pods in the nested cluster.
pub const NODE_POD_NAMESPACE: &str = "kube-system";

/// Label by which these pods are found again; its value names the run that made them.
pub const NODE_POD_LABEL: &str = "nestling.dev/node-access";

/// Directories of the node that stand in the place of the image's. `nsenter` is in the first one, the libraries that it needs in the others.
const DIRECTORIES: [&str; 4] = ["/usr", "/bin", "/lib", "/lib64"];

/// Parts of the names of images that every node of kind has, those first that no kubelet ever takes for unused.
const PREFERRED: [&str; 4] = ["kube-proxy", "kindnetd", "pause", "local-path"];

/// An image that this node surely has. It makes no difference which: of its files none is used.
pub fn image_on(node: &Node) -> Option<String> {
    let images = node.status.as_ref()?.images.as_ref()?;
    // Those with a digest come first, and after an import they are names of the day.
    let name = |names: &[String]| names.iter().rfind(|name| !name.contains("<none>")).cloned();
    let named: Vec<String> = images.iter().filter_map(|image| name(image.names.as_deref()?)).collect();
    let preferred = PREFERRED.iter().find_map(|part| named.iter().find(|name| name.contains(part)));
    preferred.or(named.first()).cloned()
}

/// The pod for one node, which ends by itself after so many seconds.
pub fn node_pod(node: &str, image: &str, run: &str, seconds: i64) -> Pod {
    let name = |index: usize| format!("node-{index}");
    let container = Container {
        name: "node".to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("Never".to_owned()),
        command: Some(vec!["/usr/bin/sleep".to_owned(), seconds.to_string()]),
        security_context: Some(SecurityContext { privileged: Some(true), run_as_user: Some(0), run_as_group: Some(0), ..SecurityContext::default() }),
        volume_mounts: Some(
            DIRECTORIES
                .iter()
                .enumerate()
                .map(|(index, path)| VolumeMount { name: name(index), mount_path: (*path).to_owned(), read_only: Some(true), ..VolumeMount::default() })
                .collect(),
        ),
        ..Container::default()
    };
    let volume = |(index, path): (usize, &&str)| Volume {
        name: name(index),
        host_path: Some(HostPathVolumeSource { path: (*path).to_owned(), type_: None }),
        ..Volume::default()
    };
    Pod {
        metadata: ObjectMeta {
            generate_name: Some("node-access-".to_owned()),
            namespace: Some(NODE_POD_NAMESPACE.to_owned()),
            labels: Some(BTreeMap::from([(NODE_POD_LABEL.to_owned(), run.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            // Past the scheduler and whatever the node's taints; a node without a CNI will do as well.
            node_name: Some(node.to_owned()),
            tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
            host_network: Some(true),
            host_pid: Some(true),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: Some(0),
            active_deadline_seconds: Some(seconds),
            containers: vec![container],
            volumes: Some(DIRECTORIES.iter().enumerate().map(volume).collect()),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// A command in the namespaces of the node's first process, with a surrounding of its own: that of the image is none of its business.
pub fn in_node(command: &[String], terminal: Option<&str>) -> Vec<String> {
    let enter = ["/usr/bin/nsenter", "--target=1", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", "/usr/bin/env", "-i"];
    let surrounding = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "KUBECONFIG=/etc/kubernetes/admin.conf"];
    let mut all: Vec<String> = enter.into_iter().chain(surrounding).map(str::to_owned).collect();
    all.extend(terminal.map(|terminal| format!("TERM={terminal}")));
    all.extend_from_slice(command);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[test]
    fn the_pod() {
        insta::assert_yaml_snapshot!(node_pod("crane-worker", "registry.k8s.io/pause:3.10", "run", 90));
    }

    #[rstest]
    #[case(json!([["docker.io/library/app:1"], ["registry.k8s.io/pause:3.10"], ["registry.k8s.io/kube-proxy@sha256:aa", "registry.k8s.io/kube-proxy:v1"]]), Some("registry.k8s.io/kube-proxy:v1"))]
    #[case(json!([["docker.io/library/app:1"], ["registry.k8s.io/pause:3.10"]]), Some("registry.k8s.io/pause:3.10"))]
    #[case(json!([["<none>@<none>", "<none>:<none>"], ["docker.io/library/app:1"]]), Some("docker.io/library/app:1"))]
    #[case(json!([[]]), None)]
    fn an_image_is_found(#[case] images: Value, #[case] expected: Option<&str>) {
        let images: Vec<Value> = images.as_array().unwrap().iter().map(|names| json!({"names": names})).collect();
        let node: Node = serde_json::from_value(json!({"metadata": {}, "status": {"images": images}})).unwrap();
        assert_eq!(image_on(&node).as_deref(), expected);
        assert_eq!(image_on(&Node::default()), None);
    }

    #[test]
    fn commands_keep_their_words() {
        let command = in_node(&["echo".to_owned(), "two words".to_owned()], Some("xterm"));
        assert_eq!(command[command.len() - 3..], ["TERM=xterm", "echo", "two words"]);
    }
}
