//! A test build of the agent with five preventions left out, chosen at random: exactly the checks of these five fail.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EnvVar, Pod, Secret};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use nestling::operator::host;
use nestling::operator::pki::{self, Authority};
use nestling_core::plan::names::Identity;
use nestling_core::plan::settings::Settings;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;

use crate::cluster::{self, Cluster};
use crate::isolation::attempt;
use crate::support::real::{CREATED, DELETED, Host};
use crate::support::wait::{gone, until};
use crate::support::{by_hand, seed, soak};

const NAMESPACE: &str = "t-preventions";
const SOON: Duration = Duration::from_mins(1);

/// What a test build can leave out (`NESTLING_DISABLE`, `src/agent/fault.rs`) without keeping the cluster from coming up on any machine. Each has a check in
/// [`check`]; the ones that concern cgroup v2 are in `tests/machine.rs`.
const PREVENTIONS: &[&str] = &[
    "address-pools",
    "egress-guard",
    "environment",
    "log-bounds",
    "loop-devices",
    "memory-reservation",
    "orphans",
    "profiles",
    "random-token",
    "search-domains",
    "token-removal",
];

/// Fails without the prevention. [`LoopDevice`] is the one that can be looked at only after the cluster's end.
async fn check(prevention: &str, cluster: &Cluster<'_>) {
    match prevention {
        "address-pools" => cluster::a_further_network_is_refused(cluster),
        "egress-guard" => nodes_do_not_reach_the_hosts_api(cluster),
        "environment" => cluster::the_agent_knows_of_no_api(cluster),
        "log-bounds" => cluster::logs_are_bounded(cluster).await,
        "memory-reservation" => {
            cluster::a_pod_as_large_as_the_cluster_stays_pending(cluster).await;
            cluster::nodes_offer_what_the_pod_has(cluster);
        }
        "orphans" => cluster::orphans_leave_no_zombies(cluster).await,
        "profiles" => cluster::profiles_of_the_host_are_left_alone(cluster),
        "random-token" => cluster::the_token_is_not_kinds(cluster),
        "search-domains" => cluster::no_name_is_looked_up_in_the_hosts_domains(cluster),
        "token-removal" => cluster::no_token_is_left(cluster).await,
        "loop-devices" => {}
        other => panic!("no check for {other}"),
    }
}

/// No NetworkPolicy is in the way here: the pod itself reaches the host's API.
fn nodes_do_not_reach_the_hosts_api(cluster: &Cluster<'_>) {
    let api = cluster.host.api_address();
    assert_eq!(cluster.pod(&attempt(&api, 443)), "yes", "the pod does not reach {api}");
    assert_eq!(cluster.node(&cluster.nodes[0], &attempt(&api, 443)), "no", "a node reaches {api}");
}

/// A file of a node, attached to a device of the machine's one list. Dropping it detaches the device if nobody has.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(cluster: &Cluster<'_>) -> Self {
        let script = "for n in $(seq 0 63); do [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n; done; truncate -s 1M /var/attached.img; losetup --find --show /var/attached.img";
        Self(cluster.node(&cluster.nodes[0], script))
    }

    fn is_attached(&self) -> bool {
        let output = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE", &self.0]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("attached.img")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if self.is_attached() {
            let _ = Command::new("losetup").args(["--detach", &self.0]).status();
        }
    }
}

/// The pods' image with the agent as a test build. Dropping it removes it from Docker.
struct TestImage<'a> {
    host: &'a Host,
    name: String,
}

impl<'a> TestImage<'a> {
    fn build(host: &'a Host) -> Self {
        let base = std::env::var("NESTLING_TEST_NODE_IMAGE").expect("run this with ./dev test, which says what the pods' image is");
        let context = tempfile::tempdir().unwrap();
        let stripped = Command::new("strip").arg("-o").arg(context.path().join("nestling")).arg(env!("CARGO_BIN_EXE_nestling")).status().unwrap();
        assert!(stripped.success());
        std::fs::write(context.path().join("Dockerfile"), format!("FROM {base}\nCOPY nestling /usr/local/bin/nestling\n")).unwrap();
        let image = Self { host, name: "nestling/node:fault-injection".to_owned() };
        host.cluster.docker().run(&["build", "-q", "-t", &image.name, &context.path().to_string_lossy()]).unwrap();
        image
    }

    fn push(&self) -> String {
        self.host.cluster.push(&self.name).unwrap()
    }
}

impl Drop for TestImage<'_> {
    fn drop(&mut self) {
        let _ = self.host.cluster.docker().run(&["image", "rm", "--force", &self.name]);
    }
}

/// Starts a cluster's pod that does without these.
async fn start(host: &Host, image: &str, name: &str, disabled: &[&str]) -> Pod {
    let settings = Settings {
        // Neither the operator of the host's installation nor its sweeper takes it for its own.
        install: "by-hand".into(),
        clusters_namespace: NAMESPACE.into(),
        pod_image: image.into(),
        allow_cgroup_v1: true,
        mount_modules: true,
        egress_guard: true,
        host: host::facts(&host.client, &[]).await.unwrap(),
        ..Settings::default()
    };
    let identity = Identity { namespace: NAMESPACE.into(), name: name.into(), uid: format!("{:08x}-0000-4000-8000-000000000000", rand::random::<u32>()) };
    let spec = json!({"image": host.paths.node_image_ref().unwrap(), "resources": {"requests": {"cpu": "100m"}}, "storage": {"size": "6Gi"}});
    let mut pod = by_hand::node_pod(&identity, spec, &settings);
    let container = &mut pod.spec.as_mut().unwrap().containers[0];
    container.env.get_or_insert_default().push(EnvVar { name: "NESTLING_DISABLE".into(), value: Some(disabled.join(",")), ..EnvVar::default() });
    // A namespace gets its service account a moment after it was made.
    let now = Timestamp::now();
    let keys = pki::cluster_keys(&identity, &Authority::new("agents", now).unwrap(), now).unwrap();
    let metadata = ObjectMeta { name: Some(identity.keys()), ..ObjectMeta::default() };
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), NAMESPACE);
    secrets.create(&PostParams::default(), &Secret { metadata, data: Some(keys), ..Secret::default() }).await.unwrap();
    let pods = host.pods(NAMESPACE);
    until("the pod to be created", SOON, async || pods.create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())).await
}

/// Waits until the pod serves its cluster and the node is ready.
async fn ready<'a>(host: &'a Host, pod: &str) -> Cluster<'a> {
    let pods = host.pods(NAMESPACE);
    until("the pod to be ready", CREATED, async || {
        let status = pods.get(pod).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if ready { Ok(()) } else { Err(format!("{:?}", status.container_statuses)) }
    })
    .await;
    let cluster = Cluster::of(host, NAMESPACE, pod).await;
    until("the node to be ready", SOON, async || {
        let nodes = cluster.kubectl("get nodes --no-headers");
        if nodes.contains(" Ready ") { Ok(()) } else { Err(nodes) }
    })
    .await;
    cluster
}

/// The preventions whose checks fail when these are left out.
async fn failing(host: &Host, image: &str, name: &str, disabled: &[&str]) -> BTreeSet<&'static str> {
    let pod = start(host, image, name, disabled).await.name_any();
    let cluster = ready(host, &pod).await;
    let device = LoopDevice::attach(&cluster);
    assert!(device.is_attached());
    let mut failing = BTreeSet::new();
    for prevention in PREVENTIONS {
        if AssertUnwindSafe(check(prevention, &cluster)).catch_unwind().await.is_err() {
            failing.insert(*prevention);
        }
    }
    let pods = host.pods(NAMESPACE);
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    gone(&pods, &pod, DELETED).await;
    if device.is_attached() {
        failing.insert("loop-devices");
    }
    failing
}

/// Each of the five is noticed, and nothing else changes. The soak tier leaves out all of them, five at a time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_noticed_and_nothing_else() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let image = TestImage::build(&host);
    let reference = image.push();
    let mut shuffled = PREVENTIONS.to_vec();
    shuffled.shuffle(&mut StdRng::seed_from_u64(seed()));
    let mut seen = Vec::new();
    for (index, disabled) in shuffled.chunks(5).take(if soak() { usize::MAX } else { 1 }).enumerate() {
        let failing = failing(&host, &reference, &format!("without-{index}"), disabled).await;
        println!("without {disabled:?} these checks fail: {failing:?}");
        seen.push((disabled.iter().copied().collect::<BTreeSet<_>>(), failing));
    }
    host.delete_namespace(NAMESPACE).await;
    for (disabled, failing) in seen {
        assert_eq!(failing, disabled);
    }
}
