//! One cluster, looked at from its pod, its nodes and the host's node: what it may not have, may not show and may not fill is looked for where it would be.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use crate::cluster::{
    Cluster, a_further_network_is_refused, etcd_does_not_wait_for_the_disk, logs_are_bounded, no_name_is_looked_up_in_the_hosts_domains,
    orphans_leave_no_zombies, profiles_of_the_host_are_left_alone, the_agent_knows_of_no_api,
};
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{Host, privileged_pod, spec};
use crate::support::wait::{condition, until};
use ipnet::Ipv4Net;
use kube::ResourceExt;
use kube::api::PostParams;
use nestling_core::api::KindCluster;
use nestling_core::api::conditions::STALLED;
use nestling_core::plan::cidr::overlap;
use nestling_lab::machine::Machine;
use serde_json::{Value, json};

const NAMESPACE: &str = "t-inside";
const NAME: &str = "otter";
const NODES: [&str; 2] = ["otter-control-plane", "otter-worker"];
const SOON: Duration = Duration::from_mins(1);

/// In a Secret of the nested cluster, and nowhere else on the machine.
const MARKER: &str = "otter-hides-in-the-reeds-4417";

/// Small defaults in the clusters namespace, as an administrator of the host may set them for everybody. Without one for CPU, which would slow the clusters
/// of other tests down.
struct SmallDefaults<'a>(&'a Host);

impl<'a> SmallDefaults<'a> {
    fn set(host: &'a Host) -> Self {
        let small = json!({"memory": "128Mi", "ephemeral-storage": "128Mi"});
        let limits = json!([{"type": "Container", "default": small, "defaultRequest": small}]);
        let range =
            json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small", "namespace": CLUSTERS_NAMESPACE}, "spec": {"limits": limits}});
        host.apply(&range.to_string());
        Self(host)
    }
}

impl Drop for SmallDefaults<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.kubectl().args(["delete", "limitrange", "small", "-n", CLUSTERS_NAMESPACE]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_to_what_is_its_own() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let small = SmallDefaults::set(&host);
    host.create(NAMESPACE, NAME, spec("{nodes: {workers: 1}, access: {service: {type: NodePort}}}")).await;
    let ready = host.ready(NAMESPACE, NAME).await;
    let cluster = Cluster::of(&host, CLUSTERS_NAMESPACE, &ready.status.unwrap().pod_ref.unwrap().name).await;
    let external = host.kubeconfig(NAMESPACE, NAME, "external").await;

    its_own_resources_win_over_small_defaults(&cluster);
    drop(small);
    nothing_of_the_host_is_mounted(&cluster);
    profiles_of_the_host_are_left_alone(&cluster);
    every_process_is_in_the_pods_group(&cluster).await;
    the_hosts_kubelet_counts_what_is_nested(&cluster).await;
    the_disk_is_a_volume_and_the_image_is_linked(&cluster);
    etcd_does_not_wait_for_the_disk(&cluster);
    logs_are_bounded(&cluster).await;
    networks_are_those_that_were_chosen(&cluster);
    no_name_is_looked_up_in_the_hosts_domains(&cluster);
    let nested = host.run_nested(&external, None, &["grep", "^search", "/etc/resolv.conf"]);
    assert_eq!(nested.trim(), "search default.svc.cluster.local svc.cluster.local cluster.local");
    orphans_leave_no_zombies(&cluster).await;
    kinds_commands_run_as_with_the_docker_cli(&cluster);
    the_agent_knows_of_no_api(&cluster);
    images_can_be_loaded(&cluster);
    a_nested_administrator_is_root_on_the_hosts_node(&host, &external);

    // etcd keeps it in plain text: that it is found now is what makes its absence later worth something.
    host.kubectl_outside(&external, &["create", "secret", "generic", "marker", &format!("--from-literal=marker={MARKER}")]).unwrap();
    until("the marker to reach the disk", SOON, async || {
        let found = files_with_the_marker(&cluster);
        if found.contains(&cluster.pod.uid().unwrap()) { Ok(()) } else { Err(found) }
    })
    .await;
    let last_words = a_stale_lock_stops_kind_but_not_the_agent(&cluster);
    host.delete(NAMESPACE, NAME).await;
    let said = last_words.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("teardown complete") && !said.contains("kind delete cluster"), "{said}");
    until("the marker to leave the disk", SOON, async || {
        let found = files_with_the_marker(&cluster);
        if found.is_empty() { Ok(()) } else { Err(found) }
    })
    .await;
    host.delete_namespace(NAMESPACE).await;
}

/// What kind gives, and what is left to the CLI: the outputs, each apart, and the exit code.
fn kinds_commands_run_as_with_the_docker_cli(cluster: &Cluster<'_>) {
    let node = NODES[0];
    let cases = [
        format!("printf 'a\\nb' | docker exec --privileged -i -e WHO=otter {node} sh -c 'cat; echo $WHO; echo wrong >&2; exit 7'"),
        format!("seq 1 200000 | docker exec -i {node} cat | sha256sum"),
        format!("docker exec {node} cat < /dev/null"),
        format!("docker exec {node} not-there"),
        "docker exec not-there true".to_owned(),
        format!("docker exec --user nobody {node} id"),
        "docker ps --format '{{.Names}}' | sort".to_owned(),
    ];
    for case in cases {
        let with = |path: &str| {
            cluster.pod(&format!("PATH={path}$PATH; ({case}) >/tmp/out 2>/tmp/err; echo $?; cat /tmp/out; echo ---; cat /tmp/err; rm /tmp/out /tmp/err"))
        };
        let (kinds, docker) = (with("/run/nestling/kind:"), with(""));
        assert_eq!(kinds, docker, "{case}");
    }
    assert_eq!(cluster.pod("readlink /run/nestling/kind/docker"), cluster.pod("readlink -f /proc/1/exe"), "commands are those of the CLI");
}

fn its_own_resources_win_over_small_defaults(cluster: &Cluster<'_>) {
    let plain = ["run", "plain", "-n", CLUSTERS_NAMESPACE, "--image=none", "--dry-run=server", "-o", "jsonpath={.spec.containers[0].resources.limits}"];
    assert!(cluster.host.kubectl(&plain).contains("128Mi"), "the defaults of the namespace are not in force");
    let resources = cluster.pod.spec.as_ref().unwrap().containers[0].resources.clone().unwrap();
    for name in ["memory", "ephemeral-storage"] {
        let of = |list: &Option<BTreeMap<String, _>>| list.as_ref().and_then(|list| list.get(name).cloned());
        assert_eq!(of(&resources.requests), of(&resources.limits), "{name}");
        assert!(!format!("{:?}", of(&resources.limits)).contains("128Mi"), "{name}");
    }
    // What the kernel holds the pod to, which also keeps a shortage of memory within it.
    let limit = cluster.pod("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true");
    assert_eq!(limit, cluster.settings.limits.memory_bytes.to_string());
}

fn nothing_of_the_host_is_mounted(cluster: &Cluster<'_>) {
    let spec = cluster.pod.spec.as_ref().unwrap();
    let paths: Vec<_> = spec.volumes.iter().flatten().filter_map(|volume| Some((&*volume.name, &*volume.host_path.as_ref()?.path))).collect();
    assert_eq!(paths, [("modules", "/lib/modules")]);
    let modules = spec.containers[0].volume_mounts.iter().flatten().find(|mount| mount.name == "modules").unwrap();
    assert_eq!(modules.read_only, Some(true));
    assert!(cluster.pod("touch /lib/modules/nestling 2>&1 || true").contains("Read-only"));
    // Docker's own containers, and none of the host's.
    assert_eq!(cluster.nodes, NODES);
}

/// Files below the host's kubelet in which the nested cluster's own Secret can be read.
fn files_with_the_marker(cluster: &Cluster<'_>) -> String {
    cluster.on_the_hosts_node(&format!("find /var/lib/kubelet/pods -path '*/etcd/member/*' -type f -exec grep -l {MARKER} {{}} + 2>/dev/null || true"))
}

/// What the host's node knows of a process.
#[derive(Default)]
struct Process {
    name: String,
    parent: String,
    group: String,
    oom_score_adj: i64,
}

fn processes(cluster: &Cluster<'_>) -> BTreeMap<String, Process> {
    let pattern = "^(Name|PPid):|:pids:|^0::|^-?[0-9]+$";
    let text =
        cluster.on_the_hosts_node(&format!("grep -HE '{pattern}' /proc/[0-9]*/status /proc/[0-9]*/cgroup /proc/[0-9]*/oom_score_adj 2>/dev/null || true"));
    let mut all: BTreeMap<String, Process> = BTreeMap::new();
    for line in text.lines() {
        let (path, value) = line.split_once(':').unwrap();
        let mut parts = path.trim_start_matches("/proc/").split('/');
        let (pid, file) = (parts.next().unwrap(), parts.next().unwrap());
        let process = all.entry(pid.to_owned()).or_default();
        match (file, value.split_once(":\t")) {
            ("status", Some(("Name", name))) => name.clone_into(&mut process.name),
            ("status", Some(("PPid", parent))) => parent.clone_into(&mut process.parent),
            // On cgroup v1 there may be an empty tree of v2 beside.
            ("cgroup", _) if process.group.is_empty() || value.contains(":pids:") => value.clone_into(&mut process.group),
            ("oom_score_adj", _) => process.oom_score_adj = value.parse().unwrap(),
            _ => {}
        }
    }
    // Those that ended while they were looked at.
    all.retain(|_, process| !process.parent.is_empty() && !process.group.is_empty());
    all
}

async fn every_process_is_in_the_pods_group(cluster: &Cluster<'_>) {
    for node in NODES {
        let root = cluster.node(node, "grep ^cgroupRoot /var/lib/kubelet/config.yaml");
        assert_eq!(root, "cgroupRoot: /kubelet", "{node}");
    }
    let uid = cluster.pod.uid().unwrap();
    let is_ours = |process: &Process| process.group.contains(&uid) || process.group.contains(&uid.replace('-', "_"));
    // A process that is ending is said to be in the root of every hierarchy of cgroup v1, so what matters is what stays outside.
    let all = until("all processes to be in the pod's group", SOON, async || {
        let all = processes(cluster);
        // What has left the group still descends from something that is in it: orphans go to the pod's own first process.
        let descends = |process: &Process| {
            let mut ancestors = std::iter::successors(all.get(&process.parent), |parent| all.get(&parent.parent));
            ancestors.any(is_ours)
        };
        let outside: Vec<&str> = all.values().filter(|process| !is_ours(process) && descends(process)).map(|process| &*process.name).collect();
        if outside.is_empty() { Ok(all) } else { Err(format!("{outside:?}")) }
    })
    .await;
    let ours: Vec<&Process> = all.values().filter(|process| is_ours(process)).collect();
    for (name, count) in [("dockerd", 1), ("kubelet", NODES.len()), ("etcd", 1), ("kube-apiserver", 1)] {
        assert_eq!(ours.iter().filter(|process| process.name == name).count(), count, "{name}");
    }
    // Where the host lets nobody ask to be spared more than others, containerd knows it, and nothing nested is.
    let restricted = Machine::look().unwrap().restricts_oom_score();
    for node in NODES {
        let told = cluster.node(node, "grep -c 'restrict_oom_score_adj = true' /etc/containerd/config.toml || true");
        assert_eq!(told != "0", restricted, "{node}: {told}");
    }
    let spared: Vec<_> = ours.iter().filter(|process| process.oom_score_adj < 0 && process.name != "pause").map(|process| &process.name).collect();
    assert!(spared.is_empty() || !restricted, "spared when memory runs out: {spared:?}");
}

/// What `kubectl top` shows of the pod is what all processes in it have.
async fn the_hosts_kubelet_counts_what_is_nested(cluster: &Cluster<'_>) {
    let uid = cluster.pod.uid().unwrap();
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", cluster.pod.spec.as_ref().unwrap().node_name.as_ref().unwrap());
    // It looks every ten to twenty seconds.
    until("the host's kubelet to count the cluster's memory", SOON, async || {
        let summary: Value = serde_json::from_str(&cluster.host.kubectl(&["get", "--raw", &path])).unwrap();
        let pods = summary["pods"].as_array().map_or(&[][..], Vec::as_slice);
        let counted = pods.iter().find(|pod| pod["podRef"]["uid"] == *uid).and_then(|pod| pod["memory"]["rssBytes"].as_u64()).ok_or("not counted yet")?;
        // By cat, which goes on where a process has ended since it was listed.
        let nested = cluster.pod("cat /proc/[0-9]*/status 2>/dev/null | awk '/^RssAnon/ {sum += $2} END {printf \"%d\", sum * 1024}'").parse::<u64>().unwrap();
        let said = format!("the kubelet counts {} MiB, the processes have {} MiB", counted >> 20, nested >> 20);
        // A whole cluster; less would be the agent alone.
        if nested > 256 << 20 && counted * 5 >= nested * 4 && counted * 4 <= nested * 5 { Ok(()) } else { Err(said) }
    })
    .await;
}

fn the_disk_is_a_volume_and_the_image_is_linked(cluster: &Cluster<'_>) {
    assert_eq!(cluster.pod("docker info --format '{{.Driver}}'; mountpoint -q /var/lib/docker && echo mounted"), "overlay2\nmounted");
    assert!(!cluster.pod("stat -f -c %T /var/lib/docker").contains("overlay"));
    let megabytes = |command: &str| cluster.pod(command).parse::<u64>().unwrap();
    let image = megabytes(&format!("echo $(($(docker inspect --format '{{{{.Size}}}}' $(docker inspect --format '{{{{.Image}}}}' {})) >> 20))", NODES[0]));
    let own = megabytes("du -sxm /var/lib/docker/overlay2 | cut -f1");
    let linked = megabytes("find /var/lib/docker/overlay2 -maxdepth 2 -name diff -type l | wc -l");
    println!("the node image has {image} MiB; {linked} of its layers are linked, the pod's own layers have {own} MiB");
    assert!(linked > 0 && image > 200 && own < image / 4, "{linked} layers are linked, {own} MiB of {image} are the pod's own");
    for node in NODES {
        let number = |command: &str| cluster.node(node, command).parse::<u64>().unwrap();
        let shared = number("find /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots -maxdepth 2 -name fs -type l | wc -l");
        let own = number("du -sxm /var/lib/containerd | cut -f1");
        println!("{shared} unpacked layers of {node} are shared, {own} MiB of its images are its own");
        assert!(shared > 5 && own < 50, "{node}: {shared} unpacked layers are shared, {own} MiB of images are its own");
        // Debian's list of packages is no copy either, and can be read and written where dpkg looks for it.
        let packages = number("dpkg-query --show | wc -l");
        let files = number("find /var/lib /var/cache -xdev -type f -not -path '/var/lib/kubelet/*' | wc -l");
        cluster.node(node, "dpkg-divert --quiet --local --no-rename --add /opt/diverted && dpkg-divert --quiet --no-rename --remove /opt/diverted");
        println!("{packages} packages are known in {node}, which has {files} files in /var");
        assert!(packages > 50 && files < 200, "{node}: {packages} packages are known, {files} files were copied");
    }
}

fn networks_are_those_that_were_chosen(cluster: &Cluster<'_>) {
    let plan = &cluster.settings.network;
    let networks: Vec<Value> = serde_json::from_str(&cluster.pod("docker network inspect $(docker network ls --quiet)")).unwrap();
    let mut found = BTreeMap::new();
    for network in &networks {
        assert_eq!(network["EnableIPv6"], false, "{network}");
        for config in network["IPAM"]["Config"].as_array().into_iter().flatten() {
            found.insert(network["Name"].as_str().unwrap(), config["Subnet"].as_str().unwrap().parse::<Ipv4Net>().unwrap());
        }
    }
    assert_eq!(found, BTreeMap::from([("bridge", plan.bridge), ("kind", plan.nodes)]));
    // The host's own: where its nodes are, its pods, its Services.
    let host = cluster.host;
    let nodes = host.cluster.docker().run(&["network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}"]).unwrap();
    let pods = host.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    let services = host.kubectl(&["get", "servicecidrs", "-o", "jsonpath={.items[*].spec.cidrs[*]}"]);
    let theirs: Vec<Ipv4Net> = [nodes, pods, services].iter().flat_map(|list| list.split_whitespace()).filter_map(|net| net.parse().ok()).collect();
    assert!(theirs.len() >= 3, "{theirs:?}");
    for (ours, theirs) in [plan.pods, plan.services, plan.nodes, plan.bridge].iter().flat_map(|ours| theirs.iter().map(move |theirs| (ours, theirs))) {
        assert!(!overlap(ours, theirs), "{ours} of the cluster overlaps the host's {theirs}");
    }
    a_further_network_is_refused(cluster);
    // IPv4 alone.
    assert!(!cluster.pod("/run/nestling/bin/ip6tables-save 2>/dev/null || true").contains("DOCKER"));
    for node in NODES {
        assert_eq!(cluster.node(node, "ip -6 address show scope global"), "", "{node}");
    }
}

fn images_can_be_loaded(cluster: &Cluster<'_>) {
    assert!(!cluster.pod("docker info --format '{{.DriverStatus}}'").contains("snapshotter"), "Docker uses the containerd image store");
    cluster.pod(&format!("tar -c -C /etc hostname | docker import - reed:1 && kind load docker-image reed:1 --name {NAME}"));
    for node in NODES {
        assert!(cluster.node(node, "crictl images").contains("reed"), "{node}");
    }
}

/// What nobody can prevent: a pod that a nested administrator may start sets the program that the machine's own kernel runs, as root, when any process
/// on it crashes. It is set to what it was.
fn a_nested_administrator_is_root_on_the_hosts_node(host: &Host, external: &str) {
    assert_eq!(host.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"]), "", "pods in the user's namespace");
    let pattern = "/proc/sys/kernel/core_pattern";
    let write = format!("cat {pattern} | tee {pattern} && echo written");
    host.apply_outside(external, &privileged_pod("root", false, "sleep infinity").to_string());
    let nested = |arguments: &[&str]| host.kubectl_outside(external, arguments).unwrap();
    nested(&["wait", "pod", "root", "--for=condition=Ready", "--timeout=60s"]);
    let machines = std::fs::read_to_string(pattern).unwrap();
    assert_eq!(nested(&["exec", "root", "--", "bash", "-c", &write]).trim(), format!("{}\nwritten", machines.trim()));
    nested(&["delete", "pod", "root", "--now"]);
}

/// Leaves the lock of a kind that was killed, on which others fail. The result is the pod's log until its end.
fn a_stale_lock_stops_kind_but_not_the_agent(cluster: &Cluster<'_>) -> std::process::Child {
    let export = format!(
        "install -m 000 /dev/null /run/nestling/kubeconfig.lock; kind export kubeconfig --name {NAME} --kubeconfig /run/nestling/kubeconfig 2>&1 || true"
    );
    let refused = cluster.pod(&export);
    assert!(refused.contains("lock"), "{refused}");
    let mut logs = cluster.host.cluster.kubectl();
    logs.args(["logs", "--follow", "-n", CLUSTERS_NAMESPACE, &cluster.pod.name_any()]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What a spec must not ask for, asked of the host's own API server and of the operator in it.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_do_harm_is_refused() {
    let host = Host::find().await;
    host.namespace("t-refused").await;
    let clusters = host.clusters("t-refused");
    for (what, words) in [
        ("{pod: {hostUsers: false}}", "hostUsers: false cannot work"),
        ("{nodes: {controlPlanes: 4}}", "controlPlanes"),
        ("{config: {nodes: [{extraMounts: [{hostPath: /run/docker.sock, containerPath: /x}]}]}}", "belongs to the pod"),
    ] {
        let cluster = KindCluster::new("refused", serde_json::from_value(spec(what)).unwrap());
        let error = clusters.create(&PostParams { dry_run: true, ..PostParams::default() }, &cluster).await.map(drop).unwrap_err();
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
    let refused = [
        ("root", "{config: {kubeadmConfigPatches: ['{kind: KubeletConfiguration, cgroupRoot: /}']}}", "ConfigFieldOwned"),
        ("driver", "{config: {kubeadmConfigPatches: ['{kind: KubeletConfiguration, cgroupDriver: systemd}']}}", "ConfigFieldOwned"),
        ("family", "{config: {networking: {ipFamily: dual}}}", "IPFamilyUnsupported"),
    ];
    for (name, what, reason) in refused {
        host.create("t-refused", name, spec(what)).await;
        let cluster = condition(&clusters, name, STALLED, "True", Some(reason), SOON).await;
        assert_eq!(cluster.status.unwrap().pod_ref, None, "{name}");
        host.delete("t-refused", name).await;
    }
    host.delete_namespace("t-refused").await;
}
