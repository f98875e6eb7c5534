//! Nestling's agent on what nearly all users have: cgroup v2 alone and every capability, in the lab's virtual machine.
//!
//! The machine stands for a node of a host cluster. A real node pod runs on it, out of the pod object that the operator would create, in the
//! way in which containerd starts a privileged pod: by runc, in a scope of systemd's below `kubepods.slice`, in the **host's** cgroup namespace
//! with the host's hierarchy mounted, with memory, CPU and process limits, `memory.oom.group` as the kubelet sets it, an overlay for its root and
//! namespaces of its own for mounts, processes, network, IPC and host name. What looks at it is `tests/machine/run`, from outside of the pod.
//!
//! `./dev test --soak` and `cargo xtask lab vm` run these tests; each takes ten to twenty minutes where the processor is emulated.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside of test functions")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use nestling::operator::pki::{self, Authority, Private, Subject};
use nestling_core::api::annotations;
use nestling_core::plan::names::Identity;
use nestling_core::plan::settings::{HostFacts, Settings};
use nestling_core::plan::wire::{ADMIN_GROUP, DATA_ROOT, KEYS_DIRECTORY, TERMINATION_LOG, keys};
use nestling_lab::machine::CAPABILITIES;
use nestling_lab::vm::{self, Job, Outcome};
use nestling_lab::{Lab, LabPart, LabPaths};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use support::by_hand;

mod support;

/// Everything that the machine looks at, with the caveats that it shows.
const CHECKS: &[(&str, &[u8])] = &[
    ("ready", &[50]),
    ("relay", &[46]),
    ("nested-below-pod", &[21, 25]),
    ("no-stray-groups", &[21]),
    ("delegation", &[22]),
    ("mount-options", &[23]),
    ("no-workarounds", &[24, 69, 70]),
    ("limits", &[21, 31, 60]),
    ("cpu-limit", &[61]),
    ("accounting", &[59]),
    ("kmsg", &[29]),
    ("no-zombies", &[51]),
    ("no-mounts-on-host", &[19]),
    ("host-sysctls", &[26]),
    ("allocatable", &[57]),
    ("too-large-stays-pending", &[57]),
    ("hog", &[58]),
    ("still-ready", &[58]),
    ("nothing-left", &[17, 71]),
    ("unmounted", &[19]),
    ("mount-options-after", &[23]),
];

/// Preventions that a test build can leave out (`NESTLING_DISABLE`, see `src/agent/fault.rs`), with the checks that then must fail.
const PREVENTIONS: &[(&str, &[&str])] = &[
    // Without it nothing of the nested cluster counts as the pod's, so what is to be shown of the pod's own group fails with it.
    ("cgroup-isolation", &["nested-below-pod", "no-stray-groups", "delegation", "limits", "cpu-limit", "accounting", "nothing-left"]),
    ("cgroup-mount-order", &["mount-options", "mount-options-after"]),
    ("cpu-limit", &["cpu-limit"]),
    ("memory-reservation", &["allocatable", "too-large-stays-pending", "hog", "still-ready"]),
    ("version-check", &["no-workarounds"]),
];

/// Time for one run on an emulated processor, of which other work may take the larger part.
const LIMIT: Duration = Duration::from_hours(1);

/// Time for the nested cluster, by the machine's own clock.
const READY_LIMIT: Duration = Duration::from_mins(6);

const PIDS: i64 = 8192;
const CPU_MILLIS: i64 = 2000;

fn run(name: &str, disabled: &[&str]) -> Outcome {
    assert!(std::env::var_os("NESTLING_TEST_MACHINE").is_some(), "run this with ./dev test --soak or cargo xtask lab vm");
    let paths = Lab::open().unwrap().build(LabPart::Vm).unwrap();
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path(), &paths, disabled);
    let outcome = vm::run(&paths, &Job { name, directory: directory.path(), limit: LIMIT }).unwrap();
    for (name, text) in &outcome.facts {
        println!("{name}: {text}");
    }
    outcome
}

/// Everything that goes into the machine.
fn prepare(directory: &Path, paths: &LabPaths, disabled: &[&str]) {
    let identity = Identity { namespace: "marsh".into(), name: "crane".into(), uid: "0b5c5c4e-0000-4000-8000-000000000001".into() };
    let pod = node_pod(&identity, &paths.node_image_ref().unwrap());
    let container = format!("{}-1", identity.child());

    let script = directory.join("run");
    fs::write(&script, include_str!("machine/run")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    // Symbols make it ten times as large.
    let stripped = Command::new("strip").arg("-o").arg(directory.join("nestling")).arg(env!("CARGO_BIN_EXE_nestling")).status().unwrap();
    assert!(stripped.success());
    fs::create_dir(directory.join("settings")).unwrap();
    fs::write(directory.join("settings/settings.json"), &pod.metadata.annotations.as_ref().unwrap()[annotations::SETTINGS]).unwrap();
    write_keys(directory, &identity);

    let specification = specification(&pod, disabled);
    fs::write(directory.join("pod.json"), specification.to_string()).unwrap();
    let memory = &specification["linux"]["resources"]["memory"]["limit"];
    let environment = [
        ("CLUSTER_UID", identity.uid.clone()),
        ("CONTAINER", container),
        ("MEMORY", memory.to_string()),
        ("PIDS", PIDS.to_string()),
        ("CPU", format!("'{} 100000'", CPU_MILLIS * 100)),
        ("READY_LIMIT", READY_LIMIT.as_secs().to_string()),
    ];
    let lines: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    fs::write(directory.join("environment"), lines.join("\n")).unwrap();
}

/// The pod that the operator would create, with its defaults.
fn node_pod(identity: &Identity, image: &str) -> Pod {
    let spec = json!({"image": image, "resources": {"limits": {"cpu": format!("{CPU_MILLIS}m")}}});
    let settings = Settings {
        install: "reed".into(),
        operator_namespace: "operators".into(),
        clusters_namespace: "clusters".into(),
        pod_image: "node".into(),
        allow_cgroup_v1: false,
        mount_modules: true,
        host: HostFacts { ranges: ["10.244.0.0/16", "10.96.0.0/16"].map(|range| range.parse().unwrap()).to_vec(), node_addresses: vec![], api: None },
        ..Settings::default()
    };
    by_hand::node_pod(identity, spec, &settings)
}

/// The cluster's keys as the agent gets them, and certificates for the operator and an administrator.
fn write_keys(directory: &Path, identity: &Identity) {
    let now = Timestamp::now();
    let write = |path: &str, text: &[u8]| {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    };
    let agents = Authority::new("agents", now).unwrap();
    let made = pki::cluster_keys(identity, &agents, now).unwrap();
    for (file, content) in &made {
        write(&format!("keys/{file}"), &content.0);
    }
    let operator = pki::operator_certificate(&agents, now).unwrap();
    let text = |key: &str| String::from_utf8(made[key].0.clone()).unwrap();
    let cluster = Authority { certificate: text("ca.crt"), key: Private::new(text("ca.key")), before: None };
    let groups = [ADMIN_GROUP.to_owned()];
    let subject = Subject { common_name: "tester", organizations: &groups, dns_names: &[], usage: ExtendedKeyUsagePurpose::ClientAuth };
    let admin = cluster.issue(&subject, now, Duration::from_hours(24)).unwrap();
    for (name, issued) in [("operator", operator), ("admin", admin)] {
        write(&format!("client/{name}.crt"), issued.certificate.as_bytes());
        write(&format!("client/{name}.key"), issued.key.expose().as_bytes());
    }
    assert!(made.contains_key(keys::AGENT_AUTHORITY));
}

/// What containerd's CRI plugin makes of the pod's one container (`internal/cri/server/container_create.go` and `internal/cri/opts` of 2.2).
/// The devices are added on the machine.
fn specification(pod: &Pod, disabled: &[&str]) -> Value {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    assert_eq!(container.security_context.as_ref().unwrap().privileged, Some(true));
    let mut environment = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), "HOSTNAME=crane".to_owned()];
    let theirs = container.env.iter().flatten();
    environment.extend(theirs.map(|variable| format!("{}={}", variable.name, variable.value.as_deref().unwrap_or_default())));
    if !disabled.is_empty() {
        environment.push(format!("NESTLING_DISABLE={}", disabled.join(",")));
    }
    let arguments: Vec<&str> = std::iter::once("/usr/local/bin/nestling").chain(container.args.iter().flatten().map(String::as_str)).collect();
    let memory = nestling_core::plan::quantity::units(&container.resources.as_ref().unwrap().limits.as_ref().unwrap()["memory"]).unwrap();
    let id = format!("pod{}", identity_uid(pod).replace('-', "_"));
    let capabilities = &CAPABILITIES[..];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": arguments, "env": environment, "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            // What the kubelet gives a burstable pod of this share of the machine.
            "oomScoreAdj": 667,
        },
        "root": {"path": "rootfs"},
        "hostname": "crane",
        "mounts": mounts(container),
        "linux": {
            // None of kind "cgroup": the pod begins in the host's.
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/pod"}],
            "cgroupsPath": format!("kubepods-{id}.slice:cri-containerd:{}", pod.metadata.name.as_deref().unwrap()),
            "resources": {
                "devices": [{"allow": true, "access": "rwm"}],
                "memory": {"limit": memory, "swap": memory},
                "cpu": {"shares": 512, "quota": CPU_MILLIS * 100, "period": 100_000},
                "pids": {"limit": PIDS},
                // On cgroup v2 one process out of memory is the whole container out of memory (kuberuntime_container_linux.go).
                "unified": {"memory.oom.group": "1"},
            },
        },
    })
}

fn identity_uid(pod: &Pod) -> &str {
    &pod.metadata.labels.as_ref().unwrap()[nestling_core::api::labels::CLUSTER_UID]
}

fn mounts(container: &Container) -> Vec<Value> {
    let kernel = |kind: &str, path: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": path, "options": options});
    let bind = |source: &str, path: &str, mode: &str| json!({"type": "bind", "source": source, "destination": path, "options": ["rbind", "rprivate", mode]});
    let mut mounts = vec![
        kernel("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        kernel("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        kernel("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        kernel("sysfs", "/sys", &["nosuid", "noexec", "nodev", "rw"]),
        // In the host's namespace, so the options are the host's as well (`spec_linux_opts.go` says why they are repeated).
        kernel("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "rw", "nsdelegate", "memory_recursiveprot"]),
        bind("/run/pod/resolv.conf", "/etc/resolv.conf", "rw"),
        bind("/run/pod/termination-log", TERMINATION_LOG, "rw"),
    ];
    for mount in container.volume_mounts.iter().flatten() {
        let path = mount.mount_path.as_str();
        mounts.push(match mount.name.as_str() {
            "data" => {
                assert_eq!(path, DATA_ROOT);
                bind("/volumes/data", path, "rw")
            }
            "run" => kernel("tmpfs", path, &["rw", "size=67108864"]),
            "keys" => {
                assert_eq!(path, KEYS_DIRECTORY);
                bind("/job/keys", path, "ro")
            }
            "settings" => bind("/job/settings", path, "ro"),
            "modules" => bind("/lib/modules", path, "ro"),
            other => panic!("the pod has a new volume, {other}: give it to the machine as well"),
        });
    }
    mounts
}

/// Compares what failed with what should have; everything that was to be looked at must have been.
fn judge(outcome: &Outcome, disabled: &[&str]) {
    let expected: BTreeSet<&str> = PREVENTIONS.iter().filter(|(name, _)| disabled.contains(name)).flat_map(|(_, checks)| *checks).copied().collect();
    let failed: BTreeSet<&str> = CHECKS.iter().map(|(name, _)| *name).filter(|name| !outcome.finding(name).is_some_and(|finding| finding.passed)).collect();
    let seen: Vec<String> = outcome.findings.iter().map(|finding| format!("{} {}: {}", finding.name, finding.passed, finding.detail)).collect();
    assert_eq!(failed, expected, "without {disabled:?}:\n{}", seen.join("\n"));
}

/// C17, C19, C21 to C26, C29, C31, C46, C51, C57 to C61, C69 to C71.
#[test]
fn a_cluster_lives_and_dies_inside_its_pod_on_cgroup_v2() {
    judge(&run("whole", &[]), &[]);
}

/// Without the cgroup namespace, which changes everything else as well.
#[cfg(feature = "fault-injection")]
#[test]
fn without_isolation_the_checks_of_the_pods_group_fail() {
    let disabled = ["cgroup-isolation"];
    judge(&run("without-isolation", &disabled), &disabled);
}

/// A random choice of the others, which are independent of each other.
#[cfg(feature = "fault-injection")]
#[test]
fn what_is_switched_off_fails_its_own_checks_and_no_others() {
    let independent: Vec<&str> = PREVENTIONS.iter().map(|(name, _)| *name).filter(|name| *name != "cgroup-isolation").collect();
    let mut random = StdRng::seed_from_u64(support::seed());
    let count = if support::soak() { independent.len() } else { 2 };
    let disabled: Vec<&str> = independent.choose_multiple(&mut random, count).copied().collect();
    judge(&run("switched-off", &disabled), &disabled);
}

/// Needs no machine: the tables below speak of each other.
#[test]
fn every_prevention_names_checks_that_exist() {
    let checks: BTreeSet<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    let script = include_str!("machine/run");
    assert!(checks.iter().all(|name| script.contains(&format!("check {name} "))));
    assert!(PREVENTIONS.iter().flat_map(|(_, names)| *names).all(|name| checks.contains(name)));
    assert!(CHECKS.iter().all(|(_, caveats)| !caveats.is_empty()));
}
