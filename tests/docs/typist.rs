//! Types a page's script as a reader would.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::real::Host;

/// A page ends within this.
const LIMIT: Duration = Duration::from_mins(12);

/// Programs that are wrapped, and how. All others are the real ones as they are.
///
/// - `helm` gives the chart the lab's images wherever it is installed or upgraded: what is set last wins.
const SHIMS: &[(&str, &str)] = &[(
    "helm",
    r#"case "${1-}" in
install | upgrade) exec xargs -d '\n' -a "$LAB_VALUES" "$REAL_HELM" "$@" ;;
*) exec "$REAL_HELM" "$@" ;;
esac"#,
)];

/// What is typed before each page: a search that finds nothing has not failed.
const BEFORE: &str = r#"grep() { command grep "$@" || [ $? -eq 1 ]; }"#;

/// What is said otherwise to the reader than to the lab, whose machine is small and knows no registry.
const REPLACED: &[(&str, &str)] = &[("SEATS=30", "SEATS=1"), ("for seat in 1 2 3;", "for seat in 1;")];

/// Types the page from its beginning to its end.
///
/// # Panics
/// With all that was said, if a command fails.
pub async fn types(name: &str) {
    let text = fs::read_to_string(crate::root().join(name)).unwrap();
    let mut script = super::page::script(name, &text).unwrap();
    for (reader, lab) in REPLACED {
        script = script.replace(reader, lab);
    }
    let script = format!("{BEFORE}\n{script}");
    let host = Host::find().await;
    let namespace = format!("d-{}", Path::new(name).file_stem().unwrap().to_str().unwrap().to_lowercase());
    host.namespace(&namespace).await;
    let desk = desk(&host, &namespace);
    let mut shell = Command::new("bash");
    shell.args(["-eu", "-o", "pipefail", "-x", "-c", &script]).current_dir(desk.path().join("checkout")).kill_on_drop(true);
    shell.env_clear().envs(environment(&host, &namespace, desk.path()));
    let output = timeout(LIMIT, shell.stdin(Stdio::null()).output()).await;
    host.delete_namespace(&namespace).await;
    let output = output.unwrap_or_else(|_| panic!("{name} was not typed to its end within {LIMIT:?}")).unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    println!("{said}");
}

/// A home with the host's kubeconfig, a place for programs, and what a checkout has.
fn desk(host: &Host, namespace: &str) -> TempDir {
    let desk = tempfile::Builder::new().prefix("docs-").tempdir().unwrap();
    let at = |path: &str| desk.path().join(path);
    for directory in ["bin", "home/.kube", "checkout", "tmp"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    fs::copy(host.cluster.kubeconfig(), at("home/.kube/config")).unwrap();
    fs::set_permissions(at("home/.kube/config"), Permissions::from_mode(0o600)).unwrap();
    for shared in ["charts", "docs", "examples"] {
        symlink(crate::root().join(shared), at("checkout").join(shared)).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_nestling"));
    for (link, target) in [("nestling", program.to_owned()), ("kubectl-nestling", program.to_owned()), ("kubectl", host.paths.bin("kubectl").unwrap())] {
        symlink(target, at("bin").join(link)).unwrap();
    }
    for (name, script) in SHIMS {
        let file = at("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(at("values"), std::env::var("NESTLING_TEST_VALUES").unwrap()).unwrap();
    let set = std::process::Command::new(at("bin/kubectl"))
        .args(["config", "set-context", "--current", "--namespace", namespace, "--kubeconfig"])
        .arg(at("home/.kube/config"))
        .output()
        .unwrap();
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    desk
}

fn environment(host: &Host, namespace: &str, desk: &Path) -> Vec<(&'static str, PathBuf)> {
    let path = format!("{}:{}", desk.join("bin").display(), std::env::var("PATH").unwrap());
    let mut environment = vec![
        ("PATH", path.into()),
        ("HOME", desk.join("home")),
        ("TMPDIR", desk.join("tmp")),
        ("REAL_HELM", host.paths.bin("helm").unwrap()),
        ("LAB_VALUES", desk.join("values")),
        ("NAMESPACE", namespace.into()),
        // Some image that the local Docker has.
        ("LOCAL_IMAGE", std::env::var("NESTLING_TEST_NODE_IMAGE").unwrap().replace("/node:", "/operator:").into()),
        ("SHELL", "/bin/bash".into()),
    ];
    environment.extend(std::env::var("DOCKER_HOST").ok().map(|docker| ("DOCKER_HOST", docker.into())));
    environment
}
