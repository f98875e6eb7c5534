//! The API on a real API server: the CRD is accepted, and every rule in it refuses and allows what it should.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

mod support;

use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::KindCluster;
use serde_json::{Value, json};
use support::plane::Plane;

/// `(what, spec, part of the message; None if it is good)`.
fn table() -> Vec<(&'static str, Value, Option<&'static str>)> {
    vec![
        ("empty", json!({}), None),
        ("version", json!({"version": "v1.34.4"}), None),
        ("version: pre-release", json!({"version": "v1.35.0-rc.1"}), None),
        ("version: no v", json!({"version": "1.34.4"}), Some("version must look like v1.34.4")),
        ("version: latest", json!({"version": "latest"}), Some("version must look like v1.34.4")),
        ("version and image", json!({"version": "v1.34.4", "image": "a"}), Some("version and image exclude each other")),
        ("image", json!({"image": "kindest/node:v1.34.4@sha256:aa"}), None),
        ("image: empty", json!({"image": ""}), Some("spec.image")),
        ("nodes", json!({"nodes": {"workers": 3}}), None),
        ("nodes: three control planes", json!({"nodes": {"controlPlanes": 3, "workers": 9}}), None),
        ("nodes: two control planes", json!({"nodes": {"controlPlanes": 2}}), None),
        ("nodes: four control planes", json!({"nodes": {"controlPlanes": 4}}), Some("controlPlanes")),
        ("nodes: no control plane", json!({"nodes": {"controlPlanes": 0}}), Some("controlPlanes")),
        ("nodes: negative workers", json!({"nodes": {"workers": -1}}), Some("workers")),
        ("nodes: too many workers", json!({"nodes": {"workers": 10}}), Some("workers")),
        ("nodes twice", json!({"nodes": {"workers": 1}, "config": {"nodes": [{"role": "control-plane"}]}}), Some("nodes and config.nodes exclude each other")),
        ("nodes beside a config without", json!({"nodes": {"workers": 1}, "config": {"featureGates": {"A": true}}}), None),
        (
            "config: a pasted kind.yaml",
            json!({"config": {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "name": "x", "future": {"kept": 1},
                "nodes": [{"role": "control-plane", "extraPortMappings": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]}, {"role": "worker"}]}}),
            None,
        ),
        ("config: a node without a role is a control plane", json!({"config": {"nodes": [{}]}}), None),
        ("config: kind", json!({"config": {"kind": "Pod"}}), Some("config.kind must be Cluster")),
        ("config: apiVersion", json!({"config": {"apiVersion": "kind.x-k8s.io/v1alpha3"}}), Some("config.apiVersion must be")),
        ("config: only workers", json!({"config": {"nodes": [{"role": "worker"}]}}), Some("one, two or three control-planes")),
        ("config: three control planes", json!({"config": {"nodes": [{}, {"role": "worker"}, {"role": "control-plane"}, {}]}}), None),
        ("config: four control planes", json!({"config": {"nodes": [{}, {}, {}, {}]}}), Some("one, two or three control-planes")),
        ("config: no nodes", json!({"config": {"nodes": []}}), Some("config.nodes")),
        ("config: a role that is none", json!({"config": {"nodes": [{"role": "master"}]}}), Some("Unsupported value")),
        ("networking", json!({"networking": {"podCIDRs": ["10.100.0.0/16"], "serviceCIDRs": ["10.101.0.0/16"]}}), None),
        ("networking: not a range", json!({"networking": {"podCIDRs": ["10.100.0.0"]}}), Some("podCIDRs must hold an IPv4 range")),
        ("networking: IPv6", json!({"networking": {"serviceCIDRs": ["fd00::/64"]}}), Some("serviceCIDRs must hold an IPv4 range")),
        ("networking: two ranges", json!({"networking": {"podCIDRs": ["10.1.0.0/16", "10.2.0.0/16"]}}), Some("podCIDRs")),
        (
            "networking twice",
            json!({"networking": {"podCIDRs": ["10.100.0.0/16"]}, "config": {"networking": {"disableDefaultCNI": true}}}),
            Some("networking and config.networking exclude each other"),
        ),
        ("access", json!({"access": {"service": {"type": "NodePort", "nodePort": 31000}}}), None),
        ("access: port without type", json!({"access": {"service": {"nodePort": 31000}}}), Some("nodePort needs type: NodePort or LoadBalancer")),
        ("access: port of a ClusterIP", json!({"access": {"service": {"type": "ClusterIP", "nodePort": 31000}}}), Some("nodePort needs type: NodePort")),
        ("access: no such type", json!({"access": {"service": {"type": "Ingress"}}}), Some("Unsupported value")),
        ("access: no such port", json!({"access": {"service": {"type": "NodePort", "nodePort": 70000}}}), Some("nodePort")),
        ("kubeconfig: no name for a Secret", json!({"kubeconfig": {"secretName": "My_Config"}}), Some("secretName must be a valid Secret name")),
        ("lifecycle", json!({"lifecycle": {"creationTimeout": "20m", "backoffLimit": 0, "podLossPolicy": "Fail"}}), None),
        ("lifecycle: a Go duration", json!({"lifecycle": {"creationTimeout": "1h30m"}}), None),
        ("lifecycle: too short", json!({"lifecycle": {"creationTimeout": "10s"}}), Some("between 1m and 2h")),
        ("lifecycle: too long", json!({"lifecycle": {"creationTimeout": "3h"}}), Some("between 1m and 2h")),
        ("lifecycle: no duration", json!({"lifecycle": {"creationTimeout": "soon"}}), Some("creationTimeout")),
        ("lifecycle: an end", json!({"lifecycle": {"ttl": "8h", "expirationTime": "2027-01-31T18:00:00+01:00"}}), None),
        ("lifecycle: no end", json!({"lifecycle": {"ttl": null, "expirationTime": null}}), None),
        ("lifecycle: no ttl", json!({"lifecycle": {"ttl": "0s"}}), Some("ttl must be a duration of at least 1s, such as 8h")),
        ("lifecycle: a negative ttl", json!({"lifecycle": {"ttl": "-8h"}}), Some("ttl must be a duration of at least 1s")),
        ("lifecycle: a ttl in days", json!({"lifecycle": {"ttl": "2d"}}), Some("spec.lifecycle.ttl")),
        ("lifecycle: no time", json!({"lifecycle": {"expirationTime": "tomorrow"}}), Some("spec.lifecycle.expirationTime")),
        ("lifecycle: a time without a zone", json!({"lifecycle": {"expirationTime": "2027-01-31T18:00:00"}}), Some("spec.lifecycle.expirationTime")),
        ("lifecycle: protection", json!({"lifecycle": {"deletionProtection": true}}), None),
        ("lifecycle: no protection", json!({"lifecycle": {"deletionProtection": false, "ttl": "8h"}}), None),
        (
            "lifecycle: protection and ttl",
            json!({"lifecycle": {"deletionProtection": true, "ttl": "8h"}}),
            Some("deletionProtection excludes ttl and expirationTime"),
        ),
        (
            "lifecycle: protection and a time",
            json!({"lifecycle": {"deletionProtection": true, "expirationTime": "2027-01-31T18:00:00Z"}}),
            Some("deletionProtection excludes ttl and expirationTime"),
        ),
        ("lifecycle: backoffLimit", json!({"lifecycle": {"backoffLimit": 11}}), Some("backoffLimit")),
        ("lifecycle: no such policy", json!({"lifecycle": {"podLossPolicy": "Pray"}}), Some("Unsupported value")),
        ("resources", json!({"resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "3Gi"}}}), None),
        ("storage", json!({"storage": {"type": "Ephemeral", "size": "20Gi"}}), None),
        ("storage: too small", json!({"storage": {"size": "1Gi"}}), Some("at least 2Gi")),
        ("storage: no quantity", json!({"storage": {"size": "big"}}), Some("at least 2Gi")),
        ("storage: a volume", json!({"storage": {"type": "Persistent", "size": "20Gi", "storageClassName": "fast.example"}}), None),
        ("storage: a class for no volume", json!({"storage": {"storageClassName": "fast"}}), Some("storageClassName needs type: Persistent")),
        ("storage: no class", json!({"storage": {"type": "Persistent", "storageClassName": ""}}), Some("storageClassName")),
        ("storage: no name of a class", json!({"storage": {"type": "Persistent", "storageClassName": "Fast_"}}), Some("storageClassName must be a valid name")),
        ("storage: no such type", json!({"storage": {"type": "Eternal"}}), Some("Unsupported value")),
        (
            "pod",
            json!({"pod": {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "nodeSelector": {"e": "f"}, "runtimeClassName": "kata", "priorityClassName": "high",
                "tolerations": [{"key": "k", "operator": "Exists"}], "imagePullSecrets": [{"name": "s"}],
                "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}}),
            None,
        ),
        ("pod: our labels", json!({"pod": {"metadata": {"labels": {"nestling.dev/cluster-uid": "x"}}}}), Some("labels under nestling.dev/ are the operator's")),
        (
            "pod: our annotations",
            json!({"pod": {"metadata": {"annotations": {"nestling.dev/settings": "x"}}}}),
            Some("annotations under nestling.dev/ are the operator's"),
        ),
        ("pod: SELinux", json!({"pod": {"seLinuxOptions": {"type": "spc_t"}}}), None),
        ("pod: a user namespace", json!({"pod": {"hostUsers": false}}), Some("hostUsers: false cannot work: in a user namespace")),
        ("pod: no user namespace", json!({"pod": {"hostUsers": true}}), None),
        ("paused", json!({"paused": true}), None),
    ]
}

/// As [`table`], of how clusters sleep and survive.
fn table_of_sleep_and_survival() -> Vec<(&'static str, Value, Option<&'static str>)> {
    vec![
        ("power", json!({"powerState": "Frozen"}), None),
        ("power: nodes", json!({"powerState": "Stopped", "nodes": {"workers": 2}}), None),
        ("power: a config", json!({"powerState": "Frozen", "config": {"nodes": [{}, {"role": "worker"}]}}), None),
        ("power: no such state", json!({"powerState": "Dreaming"}), Some("Unsupported value")),
        (
            "lifecycle: survival without a volume",
            json!({"lifecycle": {"podLossPolicy": "Resume"}}),
            Some("podLossPolicy: Resume needs storage.type: Persistent"),
        ),
        (
            "lifecycle: survival on an emptyDir",
            json!({"lifecycle": {"podLossPolicy": "Resume"}, "storage": {"type": "Ephemeral"}}),
            Some("podLossPolicy: Resume needs storage.type: Persistent"),
        ),
        ("lifecycle: survival", json!({"lifecycle": {"podLossPolicy": "Resume"}, "storage": {"type": "Persistent"}}), None),
    ]
}

/// As [`table`], of what changes in place.
fn table_of_access() -> Vec<(&'static str, Value, Option<&'static str>)> {
    vec![
        ("access: names", json!({"access": {"certSANs": ["api.example", "*.api.example", "a", "192.0.2.7", "2001:db8::7"]}}), None),
        ("access: a name that is none", json!({"access": {"certSANs": ["-a.example"]}}), Some("certSANs must hold DNS names")),
        ("access: a name in capitals", json!({"access": {"certSANs": ["API.example"]}}), Some("certSANs must hold DNS names")),
        ("access: a wildcard within", json!({"access": {"certSANs": ["a.*.example"]}}), Some("certSANs must hold DNS names")),
        ("access: a URL", json!({"access": {"certSANs": ["https://api.example"]}}), Some("certSANs must hold DNS names")),
        ("access: a name with a port", json!({"access": {"certSANs": ["api.example:6443"]}}), Some("certSANs must hold DNS names")),
        ("access: an address that is none", json!({"access": {"certSANs": ["999.0.2.7"]}}), Some("certSANs must hold DNS names")),
        ("access: a range", json!({"access": {"certSANs": ["192.0.2.0/24"]}}), Some("certSANs must hold DNS names")),
        ("access: no name", json!({"access": {"certSANs": [""]}}), Some("certSANs")),
        ("access: a long name", json!({"access": {"certSANs": ["a".repeat(254)]}}), Some("certSANs")),
        ("access: a name twice", json!({"access": {"certSANs": ["a", "a"]}}), Some("Duplicate value")),
        ("access: too many names", json!({"access": {"certSANs": (0..33).map(|i| format!("a{i}")).collect::<Vec<_>>()}}), Some("certSANs")),
        ("kubeconfig", json!({"kubeconfig": {"secretName": "my.config", "lifetime": "12h"}}), None),
        ("kubeconfig: a short life", json!({"kubeconfig": {"lifetime": "59m"}}), Some("lifetime must be a duration between 1h and 87600h")),
        ("kubeconfig: a long life", json!({"kubeconfig": {"lifetime": "87601h"}}), Some("lifetime must be a duration between 1h and 87600h")),
        ("kubeconfig: no duration", json!({"kubeconfig": {"lifetime": "1y"}}), Some("lifetime")),
    ]
}

/// As [`table`], of load balancers and published ports.
fn table_of_ports() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let service = |service: Value| json!({"access": {"service": service}});
    let port = |name: &str, port: i32, target: i32| json!({"name": name, "port": port, "targetNodePort": target});
    let on_nodes = |type_: &str, api: Value, node_ports: [Value; 2]| {
        let [a, b] = node_ports;
        let ports =
            json!([{"name": "a", "port": 80, "targetNodePort": 30080, "nodePort": a}, {"name": "b", "port": 81, "targetNodePort": 30081, "nodePort": b}]);
        json!({"access": {"service": {"type": type_, "nodePort": api}}, "ports": ports})
    };
    let mapped = |host: i32| json!({"ports": [port("web", 80, 30080)], "config": {"nodes": [{}, {"role": "worker", "extraPortMappings": [{"containerPort": 1}, {"hostPort": host}]}]}});
    vec![
        (
            "balancer",
            service(json!({"type": "LoadBalancer", "nodePort": 31000, "annotations": {"a": "b"}, "loadBalancerClass": "example.com/Internal_1",
                "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"]})),
            None,
        ),
        ("balancer: a short class", service(json!({"type": "LoadBalancer", "loadBalancerClass": "a"})), None),
        ("balancer: class of none", service(json!({"type": "NodePort", "loadBalancerClass": "a"})), Some("loadBalancerClass needs type: LoadBalancer")),
        ("balancer: class without type", service(json!({"loadBalancerClass": "a"})), Some("loadBalancerClass needs type: LoadBalancer")),
        ("balancer: no class", service(json!({"type": "LoadBalancer", "loadBalancerClass": "a b"})), Some("loadBalancerClass must look like")),
        ("balancer: an empty class", service(json!({"type": "LoadBalancer", "loadBalancerClass": ""})), Some("loadBalancerClass")),
        (
            "balancer: ranges of none",
            service(json!({"type": "NodePort", "loadBalancerSourceRanges": ["192.0.2.0/24"]})),
            Some("loadBalancerSourceRanges needs"),
        ),
        ("balancer: no range of none", service(json!({"type": "NodePort", "loadBalancerSourceRanges": []})), None),
        ("balancer: no range", service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.7"]})), Some("must hold ranges such as")),
        ("ports", json!({"ports": [port("http", 80, 30080), port("https", 443, 30443), port("again", 8080, 30080)]}), None),
        ("ports: TCP", json!({"ports": [{"name": "a", "port": 80, "targetNodePort": 30080, "protocol": "TCP"}]}), None),
        (
            "ports: UDP",
            json!({"ports": [{"name": "a", "port": 80, "targetNodePort": 30080, "protocol": "UDP"}]}),
            Some("Unsupported value: \"UDP\": supported values: \"TCP\""),
        ),
        ("ports: a name twice", json!({"ports": [port("a", 80, 30080), port("a", 81, 30081)]}), Some("Duplicate value")),
        ("ports: a port twice", json!({"ports": [port("a", 80, 30080), port("b", 80, 30081)]}), Some("each port may be there once")),
        ("ports: no name", json!({"ports": [port("", 80, 30080)]}), Some("name")),
        ("ports: no such name", json!({"ports": [port("Web", 80, 30080)]}), Some("name must be of lower-case letters")),
        ("ports: a long name", json!({"ports": [port(&"a".repeat(33), 80, 30080)]}), Some("name")),
        ("ports: the API server's", json!({"ports": [port("a", 6443, 30080)]}), Some("port 6443 is the API server's")),
        ("ports: no such port", json!({"ports": [port("a", 65536, 30080)]}), Some("port")),
        ("ports: no NodePort", json!({"ports": [port("a", 80, 29999)]}), Some("targetNodePort")),
        ("ports: beyond all NodePorts", json!({"ports": [port("a", 80, 32768)]}), Some("targetNodePort")),
        ("ports: no target", json!({"ports": [{"name": "a", "port": 80}]}), Some("targetNodePort: Required")),
        ("ports: on nodes", on_nodes("NodePort", json!(31000), [json!(31001), json!(31002)]), None),
        ("ports: on nodes of a balancer", on_nodes("LoadBalancer", json!(null), [json!(31001), json!(null)]), None),
        ("ports: on no nodes", on_nodes("ClusterIP", json!(null), [json!(31001), json!(null)]), Some("ports[].nodePort needs access.service.type")),
        (
            "ports: on nodes of nobody",
            json!({"ports": [{"name": "a", "port": 80, "targetNodePort": 30080, "nodePort": 31001}]}),
            Some("ports[].nodePort needs access.service.type"),
        ),
        ("ports: on one port of nodes", on_nodes("NodePort", json!(null), [json!(31001), json!(31001)]), Some("each nodePort may be there once")),
        (
            "ports: on the API server's port of nodes",
            on_nodes("NodePort", json!(31001), [json!(31001), json!(null)]),
            Some("must differ from access.service.nodePort"),
        ),
        ("ports: one that kind maps", mapped(30080), Some("must differ from every hostPort")),
        ("ports: beside what kind maps", mapped(30081), None),
        ("ports: too many", json!({"ports": (0..33).map(|i| port(&format!("p{i}"), 1000 + i, 30080)).collect::<Vec<_>>()}), Some("ports")),
    ]
}

/// As [`table`], of `kubeconfig.users` and `kubeconfig.argoCD`.
fn table_of_users() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let with = |more: Value| {
        let mut user = json!({"name": "ci"});
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"kubeconfig": {"users": [user]}})
    };
    let many = |count: usize| json!({"kubeconfig": {"users": (0..count).map(|i| json!({"name": format!("u{i}"), "clusterRole": "view"})).collect::<Vec<_>>()}});
    vec![
        ("users: a role", with(json!({"clusterRole": "view"})), None),
        ("users: a role of the system", with(json!({"clusterRole": "system:node-reader", "lifetime": "10m"})), None),
        ("users: groups", with(json!({"groups": ["developers", "nestling:cluster-admins"], "lifetime": "8760h"})), None),
        ("users: nothing said", with(json!({})), Some("a user needs either clusterRole or groups")),
        ("users: no groups", with(json!({"groups": []})), Some("a user needs either clusterRole or groups")),
        ("users: both", with(json!({"clusterRole": "view", "groups": ["a"]})), Some("a user needs either clusterRole or groups")),
        ("users: masters", with(json!({"groups": ["a", "system:masters"]})), Some("groups must not begin with system:")),
        ("users: nodes", with(json!({"groups": ["system:nodes"]})), Some("groups must not begin with system:")),
        ("users: a group twice", with(json!({"groups": ["a", "a"]})), Some("Duplicate value")),
        ("users: an empty group", with(json!({"groups": [""]})), Some("groups")),
        ("users: a long group", with(json!({"groups": ["a".repeat(65)]})), Some("groups")),
        ("users: too many groups", with(json!({"groups": (0..9).map(|i| format!("g{i}")).collect::<Vec<_>>()})), Some("groups")),
        ("users: no name of a role", with(json!({"clusterRole": "a/b"})), Some("clusterRole must be the name of a ClusterRole")),
        ("users: no role", with(json!({"clusterRole": ""})), Some("clusterRole")),
        ("users: a short life", with(json!({"clusterRole": "view", "lifetime": "9m59s"})), Some("between 10m and 8760h")),
        ("users: a long life", with(json!({"clusterRole": "view", "lifetime": "8761h"})), Some("between 10m and 8760h")),
        ("users: no name", json!({"kubeconfig": {"users": [{"clusterRole": "view"}]}}), Some("name")),
        ("users: a name in capitals", json!({"kubeconfig": {"users": [{"name": "CI", "clusterRole": "view"}]}}), Some("must be a DNS label such as ci")),
        ("users: a name with dots", json!({"kubeconfig": {"users": [{"name": "a.b", "clusterRole": "view"}]}}), Some("must be a DNS label such as ci")),
        ("users: a long name", json!({"kubeconfig": {"users": [{"name": "a".repeat(64), "clusterRole": "view"}]}}), Some("name")),
        (
            "users: a name twice",
            json!({"kubeconfig": {"users": [{"name": "ci", "clusterRole": "view"}, {"name": "ci", "groups": ["a"]}]}}),
            Some("Duplicate value"),
        ),
        ("users: sixteen", many(16), None),
        ("users: too many", many(17), Some("users")),
        ("Argo CD", json!({"kubeconfig": {"argoCD": {}}}), None),
        ("Argo CD: labels", json!({"kubeconfig": {"argoCD": {"labels": {"env": "dev", "argocd.argoproj.io/auto-label-cluster-info": "true"}}}}), None),
        ("Argo CD: our labels", json!({"kubeconfig": {"argoCD": {"labels": {"nestling.dev/cluster-uid": "x"}}}}), Some("are the operator's")),
        ("Argo CD: its own label", json!({"kubeconfig": {"argoCD": {"labels": {"argocd.argoproj.io/secret-type": "repository"}}}}), Some("are the operator's")),
    ]
}

/// As [`table`], of `registries`.
fn table_of_registries() -> Vec<(&'static str, Value, Option<&'static str>)> {
    vec![
        (
            "registries",
            json!({"registries": [
                {"host": "docker.io", "endpoints": ["https://mirror.example", "http://10.0.0.7:5000", "https://cache.example/v2/hub-proxy"]},
                {"host": "registry.example:5000", "credentialsSecretRef": {"name": "login"}, "caConfigMapRef": {"name": "ca"}},
            ]}),
            None,
        ),
        (
            "registries: the same twice",
            registries(&[json!({"host": "a", "endpoints": ["http://b"]}), json!({"host": "a", "endpoints": ["http://c"]})]),
            Some("Duplicate value"),
        ),
        ("registries: nothing said", registries(&[json!({"host": "a.example"})]), Some("a registry needs endpoints, credentialsSecretRef or caConfigMapRef")),
        ("registries: nothing in the list", registries(&[json!({"host": "a.example", "endpoints": []})]), Some("a registry needs endpoints")),
        ("registries: no host", registries(&[json!({"endpoints": ["http://b"]})]), Some("host")),
        ("registries: an address for a host", registries(&[json!({"host": "https://a.example", "endpoints": ["http://b"]})]), Some("host must look like")),
        ("registries: a path in a host", registries(&[json!({"host": "a.example/team", "endpoints": ["http://b"]})]), Some("host must look like")),
        ("registries: a host that climbs", registries(&[json!({"host": "..", "endpoints": ["http://b"]})]), Some("host must look like")),
        ("registries: a long host", registries(&[json!({"host": "a".repeat(254), "endpoints": ["http://b"]})]), Some("registries[0].host")),
        ("registries: no scheme", registries(&[json!({"host": "a", "endpoints": ["b.example"]})]), Some("endpoints must look like")),
        ("registries: another scheme", registries(&[json!({"host": "a", "endpoints": ["ftp://b.example"]})]), Some("endpoints must look like")),
        ("registries: a password", registries(&[json!({"host": "a", "endpoints": ["https://me:pw@b.example"]})]), Some("endpoints must look like")),
        (
            "registries: a path that is none of a registry",
            registries(&[json!({"host": "a", "endpoints": ["https://b.example/hub"]})]),
            Some("endpoints must look like"),
        ),
        ("registries: the same endpoint twice", registries(&[json!({"host": "a", "endpoints": ["http://b", "http://b"]})]), Some("Duplicate value")),
        (
            "registries: too many endpoints",
            registries(&[json!({"host": "a", "endpoints": (0..9).map(|i| format!("http://b{i}")).collect::<Vec<_>>()})]),
            Some("endpoints"),
        ),
        (
            "registries: a name that is none",
            registries(&[json!({"host": "a", "credentialsSecretRef": {"name": "My_Login"}})]),
            Some("name must be a valid name"),
        ),
        (
            "registries: too many",
            registries(&(0..33).map(|i| json!({"host": format!("r{i}"), "endpoints": ["http://b"]})).collect::<Vec<_>>()),
            Some("registries"),
        ),
    ]
}

/// As [`table`], of `preload`.
fn table_of_preload() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let digest = "a".repeat(64);
    let wrong = Some("images must be references");
    vec![
        (
            "preload",
            images(&["nginx", "nginx:1.29", "registry.example:5000/team/app_a.b--c:V1", &format!("a/b@sha256:{digest}"), &format!("a.b/c:1@sha256:{digest}")]),
            None,
        ),
        ("preload: nothing", json!({"preload": {}}), None),
        ("preload: no reference", images(&[""]), Some("images")),
        ("preload: capitals", images(&["Nginx:1"]), wrong),
        ("preload: a URL", images(&["https://registry.example/app:1"]), wrong),
        ("preload: a space", images(&["nginx: 1"]), wrong),
        ("preload: an empty tag", images(&["nginx:"]), wrong),
        ("preload: a password", images(&["me:pw@registry.example/app:1"]), wrong),
        ("preload: half a digest", images(&["nginx@sha256:aa"]), wrong),
        ("preload: another digest", images(&[&format!("nginx@md5:{digest}")]), wrong),
        ("preload: a long one", images(&["a".repeat(256).as_str()]), Some("preload.images[0]")),
        ("preload: the same twice", images(&["a:1", "a:1"]), Some("Duplicate value")),
        ("preload: too many", json!({"preload": {"images": (0..65).map(|i| format!("a:{i}")).collect::<Vec<_>>()}}), Some("preload.images")),
    ]
}

fn images(list: &[&str]) -> Value {
    json!({"preload": {"images": list}})
}

/// As [`table`], of what is to be in the cluster.
fn table_of_contents() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let manifests = |list: Value| json!({"manifests": list});
    vec![
        (
            "manifests",
            manifests(json!([{"name": "a", "inline": "{}"}, {"name": "b", "configMapRef": {"name": "b"}}, {"name": "c", "secretRef": {"name": "c"}}])),
            None,
        ),
        ("manifests: nowhere", manifests(json!([{"name": "a"}])), Some("exactly one of configMapRef, secretRef and inline")),
        (
            "manifests: in two places",
            manifests(json!([{"name": "a", "inline": "{}", "secretRef": {"name": "b"}}])),
            Some("exactly one of configMapRef, secretRef and inline"),
        ),
        ("manifests: the same twice", manifests(json!([{"name": "a", "inline": "{}"}, {"name": "a", "inline": "{}"}])), Some("Duplicate value")),
        ("manifests: no name", manifests(json!([{"inline": "{}"}])), Some("name")),
        ("manifests: a name that is none", manifests(json!([{"name": "My_App", "inline": "{}"}])), Some("name must be a DNS label")),
        ("manifests: empty", manifests(json!([{"name": "a", "inline": ""}])), Some("inline")),
        ("manifests: too long", manifests(json!([{"name": "a", "inline": "x".repeat(131_073)}])), Some("inline")),
        ("manifests: too many", manifests((0..33).map(|i| json!({"name": format!("m{i}"), "inline": "{}"})).collect()), Some("manifests")),
        ("manifests: a name of no object", manifests(json!([{"name": "a", "configMapRef": {"name": "A"}}])), Some("name must be a valid name of an object")),
        ("readiness", json!({"readiness": {"dns": true, "deployments": [{"namespace": "web", "name": "web.v1"}]}}), None),
        ("readiness: no namespace", json!({"readiness": {"deployments": [{"name": "web"}]}}), Some("namespace")),
        (
            "readiness: a namespace that is none",
            json!({"readiness": {"deployments": [{"namespace": "a.b", "name": "web"}]}}),
            Some("namespace must be a DNS label"),
        ),
        (
            "readiness: the same twice",
            json!({"readiness": {"deployments": [{"namespace": "a", "name": "b"}, {"namespace": "a", "name": "b"}]}}),
            Some("Duplicate value"),
        ),
        (
            "readiness: too many",
            json!({"readiness": {"deployments": (0..17).map(|i| json!({"namespace": "a", "name": format!("d{i}")})).collect::<Vec<_>>()}}),
            Some("deployments"),
        ),
    ]
}

fn registries(list: &[Value]) -> Value {
    json!({"registries": list})
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": name}, "spec": spec})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_the_crd_refuses_and_allows_what_it_should() {
    let plane = Plane::start().await;
    let api: Api<DynamicObject> = Api::default_namespaced_with(plane.client.clone(), &kube::api::ApiResource::erase::<KindCluster>(&()));
    let mut wrong = Vec::new();
    for (what, spec, refusal) in table()
        .into_iter()
        .chain(table_of_sleep_and_survival())
        .chain(table_of_access())
        .chain(table_of_ports())
        .chain(table_of_users())
        .chain(table_of_registries())
        .chain(table_of_preload())
        .chain(table_of_contents())
    {
        let made = api.create(&PostParams::default(), &object("probe", &spec)).await;
        match (made, refusal) {
            (Ok(made), None) => {
                // What was accepted must also be readable by the operator, and nothing of it may be lost.
                let typed: KindCluster = serde_json::from_value(serde_json::to_value(&made).unwrap()).unwrap();
                let kept = serde_json::to_value(&typed.spec).unwrap();
                for key in spec.as_object().unwrap().keys() {
                    assert!(kept.get(key).is_some(), "{what}: {key} was lost");
                }
                api.delete(&made.name_any(), &DeleteParams::default()).await.unwrap();
            }
            (Err(kube::Error::Api(status)), Some(part)) if status.code == 422 && status.message.contains(part) => {}
            (Ok(made), Some(part)) => {
                wrong.push(format!("{what}: was accepted, should say {part:?}"));
                api.delete(&made.name_any(), &DeleteParams::default()).await.unwrap();
            }
            (Err(error), expected) => wrong.push(format!("{what}: {error}, expected {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kind_of_storage_cannot_be_changed() {
    let plane = Plane::start().await;
    let api: Api<DynamicObject> = Api::default_namespaced_with(plane.client.clone(), &kube::api::ApiResource::erase::<KindCluster>(&()));
    let (class, type_) = (Some("storage.storageClassName cannot be changed"), Some("storage.type cannot be changed"));
    let changes = [
        (json!({}), json!({"storage": {"type": "Ephemeral", "size": "4Gi"}}), None),
        (json!({}), json!({"storage": {"type": "Persistent"}}), type_),
        (json!({"storage": {"size": "4Gi"}}), json!({"storage": {"type": "Persistent", "size": "4Gi"}}), type_),
        (json!({"storage": {"type": "Persistent"}}), json!({}), type_),
        (json!({"storage": {"type": "Persistent"}}), json!({"storage": {"type": "Persistent", "size": "8Gi"}, "paused": true}), None),
        (json!({"storage": {"type": "Persistent"}}), json!({"storage": {"type": "Persistent", "storageClassName": "fast"}}), class),
        (json!({"storage": {"type": "Persistent", "storageClassName": "fast"}}), json!({"storage": {"type": "Persistent", "storageClassName": "slow"}}), class),
    ];
    for (before, after, refusal) in changes {
        let mut made = api.create(&PostParams::default(), &object("probe", &before)).await.unwrap();
        made.data["spec"] = after.clone();
        match (api.replace("probe", &PostParams::default(), &made).await, refusal) {
            (Ok(_), None) => {}
            (Err(kube::Error::Api(status)), Some(part)) if status.code == 422 && status.message.contains(part) => {}
            (answer, expected) => panic!("{before} to {after}: {:?}, expected {expected:?}", answer.map(drop)),
        }
        api.delete("probe", &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_become_names_of_services_and_pods() {
    let plane = Plane::start().await;
    let api: Api<DynamicObject> = Api::default_namespaced_with(plane.client.clone(), &kube::api::ApiResource::erase::<KindCluster>(&()));
    for (name, good) in [("a", true), ("a--b", true), (&"x".repeat(40), true), (&"x".repeat(41), false), ("a.b", false), ("0a", true)] {
        let made = api.create(&PostParams::default(), &object(name, &json!({}))).await;
        assert_eq!(made.is_ok(), good, "{name}: {made:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_cannot_write_the_status_through_the_object() {
    let plane = Plane::start().await;
    let api: Api<DynamicObject> = Api::default_namespaced_with(plane.client.clone(), &kube::api::ApiResource::erase::<KindCluster>(&()));
    let mut forged = object("forged", &json!({}));
    forged.data["status"] = json!({"clusterUID": "mine"});
    let made = api.create(&PostParams::default(), &forged).await.unwrap();
    assert!(made.data.get("status").is_none());
}
