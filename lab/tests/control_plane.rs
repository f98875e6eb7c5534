//! The bare control plane, as tests of the operator use it. Ignored by default: where the lab is not built yet, it
//! compiles Kubernetes first (`cargo test -p nestling-lab -- --include-ignored`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nestling_lab::command::{output, wait_for};
use nestling_lab::{ControlPlane, Lab, LabPart, LabPaths};

fn paths() -> anyhow::Result<LabPaths> {
    Lab::open()?.build(LabPart::ControlPlane)
}

fn kubectl(paths: &LabPaths, kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new(paths.bin("kubectl")?).arg("--kubeconfig").arg(kubeconfig).args(arguments))
}

#[test]
#[ignore = "needs the lab's programs"]
fn an_administrator_may_do_what_a_plain_user_may_not() {
    let paths = paths().unwrap();
    let plane = ControlPlane::start(&paths).unwrap();
    output(plane.kubectl().args(["create", "namespace", "one"])).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("user");
    fs::write(&file, plane.kubeconfig_for("jane", Some("developers")).unwrap()).unwrap();
    let denied = kubectl(&paths, &file, &["get", "secrets", "-n", "one"]).unwrap_err().to_string();
    assert!(denied.contains("Forbidden") && denied.contains("jane"), "{denied}");

    output(plane.kubectl().args(["create", "role", "-n", "one", "reader", "--verb=list", "--resource=secrets"])).unwrap();
    output(plane.kubectl().args(["create", "rolebinding", "-n", "one", "reader", "--role=reader", "--group=developers"])).unwrap();
    wait_for("the role binding takes effect", Duration::from_secs(10), || Ok(kubectl(&paths, &file, &["get", "secrets", "-n", "one"]).is_ok())).unwrap();
}

#[test]
#[ignore = "needs the lab's programs"]
fn controllers_collect_garbage_and_empty_namespaces() {
    let paths = paths().unwrap();
    let plane = ControlPlane::options().with_controller_manager(true).start(&paths).unwrap();
    output(plane.kubectl().args(["create", "namespace", "one"])).unwrap();
    output(plane.kubectl().args(["create", "configmap", "-n", "one", "x"])).unwrap();
    wait_for("the default service account", Duration::from_secs(30), || {
        Ok(output(plane.kubectl().args(["get", "serviceaccount", "-n", "one", "default"])).is_ok())
    })
    .unwrap();
    output(plane.kubectl().args(["delete", "namespace", "one", "--timeout=30s"])).unwrap();
}

#[test]
#[ignore = "needs the lab's programs"]
fn nothing_is_left_when_it_is_dropped() {
    let paths = paths().unwrap();
    let plane = ControlPlane::start(&paths).unwrap();
    let directory = plane.kubeconfig().parent().unwrap().to_owned();
    let pids = fs::read_to_string(directory.join("pids")).unwrap();
    drop(plane);
    assert!(!directory.exists());
    for pid in pids.split_whitespace() {
        assert!(!Path::new("/proc").join(pid).exists(), "process {pid} is left");
    }
}
