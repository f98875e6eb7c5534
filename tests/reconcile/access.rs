//! From where a cluster is reached, changed while it runs: the type of its Service, the load balancer's address, the ports that it publishes.

use k8s_openapi::api::core::v1::{Event, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{ENDPOINTS_READY, READY, STALLED, SUSPENDED, UP_TO_DATE};
use nestling_core::api::{EndpointType, KindCluster};
use serde_json::{Value, json};

use super::support::fake_host::Luck;
use super::support::operator::CLUSTERS_NAMESPACE;
use super::support::wait::{condition, describe, until};
use super::{SOON, Stage};

impl Stage {
    fn services(&self) -> Api<Service> {
        Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE)
    }

    /// The Service of the only cluster.
    async fn service(&self) -> Service {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=nestling");
        self.services().list(&ours).await.unwrap().items.remove(0)
    }

    /// What the host's load balancer would do.
    async fn give_address(&self, address: &str) {
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}});
        self.services().patch_status(&self.service().await.name_any(), &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// Waits until the endpoint from outside is this one, also in the Secret.
    async fn reached_at(&self, name: &str, url: Option<&str>) -> KindCluster {
        until(&format!("the endpoint {url:?}"), SOON, async || {
            let cluster = self.clusters.get(name).await.unwrap();
            let endpoints = cluster.status.clone().unwrap().endpoints;
            let external = endpoints.iter().find(|endpoint| endpoint.type_ == EndpointType::External).map(|endpoint| endpoint.url.as_str());
            let secret: Secret = self.secrets().get(&format!("{name}-kubeconfig")).await.unwrap();
            let published = secret.data.unwrap().get("external").map(|text| String::from_utf8(text.0.clone()).unwrap());
            let same = published.is_some() == url.is_some() && published.is_none_or(|text| text.contains(&format!("server: {}", url.unwrap_or_default())));
            if external == url && same { Ok(cluster) } else { Err(describe(&cluster)) }
        })
        .await
    }
}

/// The names that are ordered for the API server's certificate.
async fn names(stage: &Stage) -> Vec<String> {
    let mut names = None;
    stage.host.change("crane", true, |report| names.clone_from(&report.orders.as_ref().unwrap().carried_out.cert_sans)).await;
    names.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_gives_its_address_when_it_likes_and_another_one_takes_over() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    let access = |service: Value| json!({"access": {"service": service}});
    stage.create("crane", access(json!({"type": "LoadBalancer", "loadBalancerClass": "a.example/x", "loadBalancerSourceRanges": ["192.0.2.0/24"]}))).await;
    // Nobody waits for it but who wants to.
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "False", Some("WaitingForLoadBalancer"), SOON).await;
    stage.reached_at("crane", None).await;
    stage.give_address("192.0.2.7").await;
    stage.reached_at("crane", Some("https://192.0.2.7:6443")).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "True", None, SOON).await;
    condition(&stage.clusters, "crane", UP_TO_DATE, "True", None, SOON).await;
    assert!(names(&stage).await.contains(&"192.0.2.7".to_owned()));

    // Which the API server refuses to do at once. What is not asked for any more goes as well.
    let before = stage.service().await;
    stage.patch("crane", json!({"spec": access(json!({"loadBalancerClass": "b.example/y", "loadBalancerSourceRanges": null}))})).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "False", Some("WaitingForLoadBalancer"), SOON).await;
    stage.reached_at("crane", None).await;
    let after = stage.service().await;
    assert_eq!(after.uid(), before.uid(), "addresses inside the host stay");
    let spec = after.spec.unwrap();
    assert_eq!((spec.load_balancer_class.as_deref(), spec.load_balancer_source_ranges), (Some("b.example/y"), None));
    stage.give_address("192.0.2.8").await;
    stage.reached_at("crane", Some("https://192.0.2.8:6443")).await;
    // And the default one, for which there is no word.
    stage.patch("crane", json!({"spec": access(json!({"loadBalancerClass": null}))})).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "False", Some("WaitingForLoadBalancer"), SOON).await;
    assert_eq!(stage.service().await.spec.unwrap().load_balancer_class, None);

    stage.patch("crane", json!({"spec": {"access": null}})).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "True", None, SOON).await;
    stage.reached_at("crane", None).await;
    until("the name to be taken back", SOON, async || {
        let names = names(&stage).await;
        if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    stage.delete("crane").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_published_and_taken_away_while_a_cluster_runs() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "True", None, SOON).await;
    let let_in = async || {
        let policies: Api<NetworkPolicy> = Api::namespaced(stage.plane.client.clone(), CLUSTERS_NAMESPACE);
        let policy = policies.list(&ListParams::default()).await.unwrap().items.remove(0);
        policy.spec.unwrap().ingress.unwrap()[0].ports.as_ref().unwrap().len()
    };
    let web = json!({"name": "https", "port": 443, "targetNodePort": 30443});
    for (access, ports) in [(json!(null), vec![web.clone()]), (json!({"service": {"type": "NodePort"}}), vec![web.clone()]), (json!(null), vec![])] {
        stage.patch("crane", json!({"spec": {"access": access, "ports": ports}})).await;
        let cluster = until("the ports to be as asked", SOON, async || {
            let cluster = stage.clusters.get("crane").await.unwrap();
            let status = cluster.status.clone().unwrap();
            let outside = !access.is_null();
            let as_asked = status.ports.len() == ports.len() && status.ports.iter().all(|port| port.open && port.node_port.is_some() == outside);
            let said = nestling_core::api::conditions::get(&status.conditions, ENDPOINTS_READY).unwrap().clone();
            let current = said.status == "True" && said.observed_generation == cluster.metadata.generation;
            if as_asked && current { Ok(cluster) } else { Err(format!("{:?} {}", status.ports, describe(&cluster))) }
        })
        .await;
        let spec = stage.service().await.spec.unwrap();
        let service: Vec<i32> = spec.ports.unwrap().iter().map(|port| port.port).collect();
        assert_eq!((service.len(), let_in().await), (1 + ports.len(), 1 + ports.len()), "{}", describe(&cluster));
    }

    // What sleeps publishes nothing.
    stage.patch("crane", json!({"spec": {"ports": [web], "powerState": "Stopped"}})).await;
    let asleep = condition(&stage.clusters, "crane", SUSPENDED, "True", Some("Stopped"), SOON).await;
    assert!(!asleep.status.as_ref().unwrap().ports[0].open, "{}", describe(&asleep));
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "False", Some("Stopped"), SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hinders_ports_is_said_and_hinders_nothing_else() {
    let stage = Stage::set().await;
    let _operator = stage.operator();
    stage.host.set_luck("heron", Luck::ReadyButOutdated);
    stage.create("heron", json!({"ports": [{"name": "web", "port": 80, "targetNodePort": 30080}]})).await;
    condition(&stage.clusters, "heron", READY, "True", None, SOON).await;
    let outdated = condition(&stage.clusters, "heron", ENDPOINTS_READY, "False", Some("AgentOutdated"), SOON).await;
    assert!(!outdated.status.unwrap().ports[0].open);
    let events: Api<Event> = Api::namespaced(stage.plane.client.clone(), "team");
    until("the warning", SOON, async || {
        let told = events.list(&ListParams::default().fields("type=Warning")).await.unwrap();
        if told.iter().any(|event| event.reason.as_deref() == Some("AgentOutdated")) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    stage.delete("heron").await;

    // A port of the host's nodes that somebody else has.
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    let theirs = json!({"metadata": {"name": "theirs"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 31555}]}});
    Api::<Service>::namespaced(stage.plane.client.clone(), "team").create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    stage.patch("crane", json!({"spec": {"access": {"service": {"type": "NodePort", "nodePort": 31555}}}})).await;
    let refused = condition(&stage.clusters, "crane", ENDPOINTS_READY, "False", Some("HostRefused"), SOON).await;
    assert!(describe(&refused).contains("31555"), "{}", describe(&refused));
    condition(&stage.clusters, "crane", STALLED, "True", Some("HostRefused"), SOON).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    stage.patch("crane", json!({"spec": {"powerState": "Stopped"}})).await;
    condition(&stage.clusters, "crane", SUSPENDED, "True", Some("Stopped"), SOON).await;
    stage.patch("crane", json!({"spec": {"powerState": "Running", "access": {"service": {"nodePort": null}}}})).await;
    condition(&stage.clusters, "crane", ENDPOINTS_READY, "True", None, SOON).await;
    condition(&stage.clusters, "crane", STALLED, "False", None, SOON).await;
}
