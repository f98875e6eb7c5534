//! Load balancers on both levels, and an Ingress controller: MetalLB gives the API server of a cluster an address on the host, and Services of that cluster
//! addresses inside it; Traefik in the cluster answers for a host name from outside. All is installed as `docs/ingress.md` says, from the files beside it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use nestling_core::api::EndpointType;
use nestling_core::plan::cidr;
use nestling_lab::balancers::{metallb_manifest, published_name};
use nestling_lab::{HostCluster, Lab, LabPart, LabPaths, Part};
use serde_json::{Value, json};

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{Host, TOOLS};
use crate::support::wait::until;

const NAMESPACE: &str = "t-balancers";
const NAME: &str = "weir";
const NODE: &str = "weir-control-plane";

/// What the manifests of the page run, and no node has. The lab's own registry stands in for theirs.
const IMAGES: [Part; 3] = [Part::MetallbController, Part::MetallbSpeaker, Part::TraefikImage];
/// The page's web server needs no more than a shell and busybox.
const WEB_SERVER: &str = "docker.io/library/busybox:1.37";
/// What it serves.
const PAGE: &str = "hello from demo";

/// The pool of the host. No Service gets an address from it that does not ask for it by name: other tests have load balancers that are never given one.
const POOL: &str = "nestling-test";
/// Addresses from this one on, counted from the end of the host's network: Docker gives addresses from the beginning.
const POOL_FROM_END: u32 = 50;
const POOL_SIZE: u32 = 10;

/// Where a Service or an Ingress says that it is reached.
const GIVEN: &str = "jsonpath={.status.loadBalancer.ingress[0].ip}";

const SOON: Duration = Duration::from_mins(1);
/// Images are pulled, webhooks are given their certificates.
const INSTALLED: Duration = Duration::from_mins(4);

/// A file of the repository.
fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What this machine gets from a URL, with further arguments for curl.
fn curl(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("curl").args(["-sS", "--fail", "--max-time", "5"]).args(arguments).output().unwrap();
    if output.status.success() { Ok(said(&output)) } else { Err(said(&output)) }
}

/// MetalLB in the host cluster. Dropping it removes it with all that it has there.
struct HostBalancer<'a> {
    cluster: &'a HostCluster,
    manifest: String,
    nodes: Vec<String>,
}

impl<'a> HostBalancer<'a> {
    /// Installs it, without waiting for it.
    fn install(host: &'a Host, manifest: String) -> Self {
        let balancer = Self { cluster: &host.cluster, manifest, nodes: host.nodes() };
        // An earlier run may have been killed.
        balancer.remove();
        balancer.feed(&["apply", "-f", "-"], &balancer.manifest).unwrap();
        balancer
    }

    fn feed(&self, arguments: &[&str], input: &str) -> Result<(), String> {
        let mut command = self.cluster.kubectl();
        let fed = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().and_then(|mut child| {
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        });
        match fed {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(said(&output)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Also while a panic unwinds: it must not panic itself.
    fn remove(&self) {
        if let Err(error) = self.feed(&["delete", "-f", "-", "--ignore-not-found", "--timeout=120s"], &self.manifest) {
            println!("MetalLB is not removed from the host: {error}");
        }
        let images = "ctr -n k8s.io images ls -q | grep /metallb/ | xargs -r ctr -n k8s.io images rm";
        for node in &self.nodes {
            if let Err(error) = self.cluster.docker().run(&["exec", node, "bash", "-c", images]) {
                println!("{node} keeps MetalLB's images: {error}");
            }
        }
    }
}

impl Drop for HostBalancer<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A range at the end of the network of the host's nodes, as MetalLB wants it, with its first and last address.
fn host_pool(host: &Host) -> (Ipv4Addr, Ipv4Addr) {
    let subnets = host.cluster.docker().run(&["network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}"]).unwrap();
    let network: Ipv4Net = subnets.split_whitespace().find_map(|subnet| subnet.parse().ok()).unwrap();
    let first = u32::from(network.broadcast()) - POOL_FROM_END;
    (first.into(), (first + POOL_SIZE - 1).into())
}

/// Pushes the images to the lab's registry, and returns MetalLB's manifest with the names that they have there for the host's nodes.
fn push_images(host: &Host, balancers: &LabPaths, manifest: &str) -> String {
    let mut on_host = manifest.to_owned();
    for part in IMAGES {
        let published = published_name(part).unwrap();
        let pushed = host.cluster.push_as(&balancers.load(host.cluster.docker(), part).unwrap(), &published).unwrap();
        on_host = on_host.replace(&published, &pushed);
    }
    assert_eq!(on_host.matches("quay.io").count(), 0, "an image that is not in the local registry");
    on_host
}

/// The API server has an address of the host's load balancer, and a kubeconfig with strict TLS for it; returns that.
async fn api_server_has_an_address(host: &Host, first: Ipv4Addr, last: Ipv4Addr) -> String {
    let url = until("the host's load balancer to give an address", SOON, async || {
        let status = host.clusters(NAMESPACE).get(NAME).await.unwrap().status.unwrap();
        let url = status.endpoints.iter().find(|endpoint| endpoint.type_ == EndpointType::External).map(|endpoint| endpoint.url.clone());
        url.ok_or_else(|| format!("{:?}", status.endpoints))
    })
    .await;
    let address: Ipv4Addr = url.strip_prefix("https://").and_then(|rest| rest.strip_suffix(":6443")).unwrap().parse().unwrap();
    assert!((first..=last).contains(&address), "{address} is not from the pool");
    let secrets = Api::<Secret>::namespaced(host.client.clone(), NAMESPACE);
    until("the kubeconfig with the address to be served", SOON, async || {
        let data = secrets.get(&format!("{NAME}-kubeconfig")).await.map_err(|error| error.to_string())?.data.unwrap_or_default();
        let external = data.get("external").map(|value| String::from_utf8_lossy(&value.0).into_owned()).unwrap_or_default();
        if !external.contains(&url) {
            return Err("the kubeconfig has another address, or none".to_owned());
        }
        assert!(!external.contains("insecure-skip-tls-verify"));
        host.kubectl_outside(&external, &["get", "--raw", "/readyz"]).map(|_| external)
    })
    .await
}

/// Services inside get addresses that no node has, and answer there; returns the range that they are of.
async fn services_have_addresses(host: &Host, external: &str) -> Ipv4Net {
    let nested = |arguments: &[&str]| host.kubectl_outside(external, arguments);
    let status = host.clusters(NAMESPACE).get(NAME).await.unwrap().status.unwrap();
    let range: Ipv4Net = status.load_balancer_cidrs[0].parse().unwrap();
    let pod = status.pod_ref.unwrap().name;
    let network = host.in_pod(&pod, "docker network inspect kind --format '{{range .IPAM.Config}}{{.Subnet}} {{.IPRange}}{{end}}'");
    let (subnet, dockers) = network.split_once(' ').unwrap();
    assert!(subnet.parse::<Ipv4Net>().unwrap().contains(&range), "{range} is not in {subnet}");
    assert!(!cidr::overlap(&dockers.parse().unwrap(), &range), "Docker gives nodes addresses of {range}");

    let pool = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(pool.path(), file("docs/ingress/metallb-pool.yaml").replace("RANGE", &range.to_string())).unwrap();
    until("MetalLB inside to take its pool", INSTALLED, async || nested(&["apply", "-f", &pool.path().display().to_string()])).await;
    let address = until("MetalLB inside to give an address", INSTALLED, async || {
        let given = nested(&["get", "service", "demo", "-o", GIVEN])?;
        given.parse::<Ipv4Addr>().map_err(|_| nested(&["get", "pods", "-A"]).unwrap_or_else(|error| error))
    })
    .await;
    assert!(range.contains(&address), "{address} is not in {range}");
    nested(&["rollout", "status", "deployment/demo", "--timeout=180s"]).unwrap();
    let url = format!("http://{address}/");
    let page = host.run_nested(external, None, &["curl", "-sS", "--retry", "10", "--retry-all-errors", "--max-time", "5", &url]);
    assert!(page.contains(PAGE), "{page}");
    let page = host.in_node(&pod, NODE, &format!("curl -sS --max-time 5 {url}"));
    assert!(page.contains(PAGE), "{page}");

    // From the pod itself, which is in the network of the nodes and no node: the speaker has to say whose the address is.
    let ask = format!(
        "exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\nHost: demo\\r\\n\\r\\n' >&3; timeout 5 cat <&3; \
         echo; ip neigh show {address}; docker exec {NODE} cat /sys/class/net/eth0/address"
    );
    let answer = until("the pod to reach the address", SOON, async || {
        let answer = host.in_pod(&pod, &format!("({ask}) 2>&1 || true"));
        if answer.contains(PAGE) { Ok(answer) } else { Err(answer) }
    })
    .await;
    let hardware = answer.lines().last().unwrap();
    assert!(answer.lines().any(|line| line.starts_with(&address.to_string()) && line.contains(hardware)), "{answer}");
    range
}

/// A host name answers to this machine: at the address of the host's load balancer, and at ports of the host's node.
async fn host_name_answers(host: &Host, external: &str) {
    host.kubectl_outside(external, &["-n", "traefik", "rollout", "status", "deployment/traefik", "--timeout=240s"]).unwrap();
    let ports = until("the ports to be open", SOON, async || {
        let ports = host.clusters(NAMESPACE).get(NAME).await.unwrap().status.unwrap().ports;
        if ports.len() == 2 && ports.iter().all(|port| port.open && port.external.is_some()) { Ok(ports) } else { Err(format!("{ports:?}")) }
    })
    .await;
    let node = host.nodes().remove(0);
    let node = host.kubectl(&["get", "node", &node, "-o", "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"]);
    let by_name = |name: &str| ports.iter().find(|port| port.name == name).unwrap();
    let http = by_name("http");
    for place in [http.external.clone().unwrap(), format!("{node}:{}", http.node_port.unwrap())] {
        let url = format!("http://{place}/");
        let page = until(&format!("demo.example at {place}"), SOON, async || curl(&["-H", "Host: demo.example", &url])).await;
        assert!(page.contains(PAGE), "{page}");
        let refused = curl(&["-H", "Host: other.example", &url]).unwrap_err();
        assert!(refused.contains("404"), "{refused}");
    }
    let port = by_name("https").node_port.unwrap();
    let resolve = format!("demo.example:{port}:{node}");
    // The certificate is Traefik's own.
    let page = curl(&["--insecure", "--resolve", &resolve, &format!("https://demo.example:{port}/")]).unwrap();
    assert!(page.contains(PAGE), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_and_ingress_host_names_answer() {
    let host = Host::find().await;
    let balancers = tokio::task::spawn_blocking(|| Lab::open().unwrap().build(LabPart::Balancers).unwrap()).await.unwrap();
    let manifest = std::fs::read_to_string(metallb_manifest(&balancers).unwrap()).unwrap();
    let balancer = HostBalancer::install(&host, push_images(&host, &balancers, &manifest));

    host.namespace(NAMESPACE).await;
    // Inside, where the registry is a mirror, images have their published names.
    let mirror = format!("http://{}:5000", host.registry_address());
    let example: Value = serde_saphyr::from_str(&file("examples/published-ports.yaml")).unwrap();
    let spec = json!({
        "access": {"service": {"type": "LoadBalancer", "annotations": {"metallb.io/address-pool": POOL}}},
        "ports": example["spec"]["ports"],
        "registries": [{"host": "quay.io", "endpoints": [mirror]}, {"host": "docker.io", "endpoints": [mirror]}],
    });
    host.create(NAMESPACE, NAME, spec).await;
    let (first, last) = host_pool(&host);
    let pool = format!(
        "
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {{name: {POOL}, namespace: metallb-system}}
spec: {{autoAssign: false, addresses: [{first}-{last}], serviceAllocation: {{namespaces: [{CLUSTERS_NAMESPACE}]}}}}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {{name: {POOL}, namespace: metallb-system}}
spec: {{ipAddressPools: [{POOL}]}}
"
    );
    until("MetalLB on the host to take its pool", INSTALLED, async || balancer.feed(&["apply", "-f", "-"], &pool)).await;
    host.ready(NAMESPACE, NAME).await;
    let external = api_server_has_an_address(&host, first, last).await;

    // As it is published.
    host.apply_outside(&external, &manifest);
    host.apply_outside(&external, &file("docs/ingress/traefik.yaml"));
    let demo = file("docs/ingress/demo.yaml");
    assert!(demo.contains(WEB_SERVER));
    host.apply_outside(&external, &demo.replace(WEB_SERVER, TOOLS));
    let range = services_have_addresses(&host, &external).await;
    host_name_answers(&host, &external).await;
    // MetalLB and Traefik together: the Ingress says where it is reached.
    let shown = until("the Ingress to have an address", SOON, async || {
        let shown = host.kubectl_outside(&external, &["get", "ingress", "demo", "-o", GIVEN])?;
        shown.parse::<Ipv4Addr>().map_err(|_| shown)
    })
    .await;
    assert!(range.contains(&shown), "{shown}");

    host.delete(NAMESPACE, NAME).await;
    host.delete_namespace(NAMESPACE).await;
    drop(balancer);
    let left = host.kubectl(&["get", "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,validatingwebhookconfigurations", "-o", "name"]);
    let left: Vec<&str> = left.lines().filter(|name| name.contains("metallb")).collect();
    assert_eq!(left, Vec::<&str>::new());
}
