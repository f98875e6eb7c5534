//! The names in the API server's certificate, changed while it runs: kubeadm makes a new pair from the cluster's own authority, with kind's copy of kubeadm's
//! configuration in step, so that a node that repairs itself after a restart does not bring the earlier list back. The API server takes the pair up by itself.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use nestling_core::api::reasons::Reason;
use nestling_core::plan::serving_names::with_names;
use nestling_core::plan::wire::DATA_ROOT;
use tokio::time::timeout;

use super::certificates::{KUBEADM_CONF, Place};
use super::failure::failure;
use super::node_files;
use super::report::Report;

/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(15);

/// Makes the pair anew from the configuration in `$1`. Until the new one is complete, the earlier one is only a move away: what is interrupted is
/// mended by the next try.
const SCRIPT: &str = r#"
set -eu
cd /etc/kubernetes/pki
before=/kind/certificate-before
mkdir -p -m 700 $before
[ -e apiserver.crt ] && [ -e apiserver.key ] || cp -p $before/apiserver.crt $before/apiserver.key .
cp -p apiserver.crt apiserver.key $before/
printf %s "$1" | base64 -d > /kind/kubeadm.conf.next
rm -f apiserver.crt apiserver.key
if ! kubeadm init phase certs apiserver --config /kind/kubeadm.conf.next; then
  cp -p $before/apiserver.crt $before/apiserver.key .
  exit 1
fi
mv /kind/kubeadm.conf.next /kind/kubeadm.conf
rm -r $before
"#;

/// Beside the cluster's data: the names that are there because of us.
fn memory() -> PathBuf {
    Path::new(DATA_ROOT).join("nestling-cert-sans")
}

/// Carries out the orders about names, for ever. `made_with`: the names that kind was told.
pub async fn follow(place: &Place<'_>, made_with: &[String], report: &Report) -> Infallible {
    let mut changes = report.subscribe();
    loop {
        let ordered = changes.borrow().orders.clone().unwrap_or_default().received.cert_sans;
        let wanted = ordered.as_deref().unwrap_or(made_with);
        let done = carry_out(place, wanted, made_with).await;
        if let Err(problem) = &done {
            tracing::warn!("the names of the API server cannot be changed: {problem}");
        }
        let problem = done.err();
        let failed = problem.is_some();
        report.update_orders(|known| {
            if !failed {
                known.carried_out.cert_sans.clone_from(&ordered);
            }
            known.set_failure(Reason::ChangingCertificate, problem.map(|problem| failure(Reason::ChangingCertificate, problem)));
        });
        let others = changes.wait_for(|report| report.orders.as_ref().is_some_and(|orders| orders.received.cert_sans != ordered));
        if failed {
            let _ = timeout(AGAIN, others).await;
        } else if others.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Brings every control plane to these names. Does nothing where they are there already.
async fn carry_out(place: &Place<'_>, wanted: &[String], made_with: &[String]) -> Result<(), String> {
    let before = recall(&memory()).unwrap_or_else(|| made_with.to_vec());
    if before != wanted {
        // Both, until all is done: who is interrupted must know what to take away.
        let both: Vec<String> = before.iter().chain(wanted.iter().filter(|name| !before.contains(name))).cloned().collect();
        remember(&memory(), &both)?;
    }
    for node in place.control_planes().await? {
        let pid = place.docker.pid(&node).await.ok_or_else(|| format!("{node} does not run"))?;
        let written = node_files::read(pid, KUBEADM_CONF).map_err(|error| format!("{node}: {KUBEADM_CONF}: {error}"))?;
        let Some(next) = with_names(&written, wanted, &before).map_err(|problem| problem.to_string())? else { continue };
        tracing::info!(node, "a new certificate for the API server");
        let encoded = BASE64.encode(next.as_bytes());
        place.docker.run(&node, &["bash", "-c", SCRIPT, "names", &encoded]).await.map_err(|error| format!("{node}: {error}"))?;
        shows_all(place, &node, wanted).await?;
    }
    remember(&memory(), wanted)
}

/// Waits until the API server of a node proves itself under each of these names.
async fn shows_all(place: &Place<'_>, node: &str, names: &[String]) -> Result<(), String> {
    for name in names {
        if place.shows(node, &example(name), |_| true).await.is_err() {
            tracing::warn!(node, name, "the API server has not taken up its certificate; it is started anew");
            place.restart(node, "kube-apiserver").await?;
            place.shows(node, &example(name), |_| true).await?;
        }
    }
    Ok(())
}

/// A name that this one stands for.
fn example(name: &str) -> String {
    name.strip_prefix("*.").map_or_else(|| name.to_owned(), |rest| format!("any.{rest}"))
}

fn recall(file: &Path) -> Option<Vec<String>> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

fn remember(file: &Path, names: &[String]) -> Result<(), String> {
    let text = serde_json::to_string(names).map_err(|error| error.to_string())?;
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("names");
        assert_eq!(recall(&file), None);
        remember(&file, &["a.example".to_owned(), "192.0.2.7".to_owned()]).unwrap();
        assert_eq!(recall(&file).unwrap(), ["a.example", "192.0.2.7"]);
    }

    #[test]
    fn a_wildcard_is_tried_with_a_name() {
        assert_eq!((example("*.a.example").as_str(), example("a.example").as_str()), ("any.a.example", "a.example"));
    }

    /// The script itself, on a directory instead of a node, with a kubeadm that does as it is told.
    #[test]
    fn a_kubeadm_that_fails_leaves_the_earlier_pair() {
        for good in [true, false] {
            let root = tempfile::tempdir().unwrap();
            let at = |path: &str| root.path().join(path);
            for directory in ["etc/kubernetes/pki", "kind", "bin"] {
                std::fs::create_dir_all(at(directory)).unwrap();
            }
            for (file, text) in [("etc/kubernetes/pki/apiserver.crt", "old"), ("etc/kubernetes/pki/apiserver.key", "old"), ("kind/kubeadm.conf", "old")] {
                std::fs::write(at(file), text).unwrap();
            }
            let makes = if good { "echo new > apiserver.crt; echo new > apiserver.key" } else { "echo half > apiserver.crt; exit 1" };
            std::fs::write(at("bin/kubeadm"), format!("#!/bin/bash\n{makes}\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(at("bin/kubeadm"), mode).unwrap();
            let root_text = root.path().display().to_string();
            let script = SCRIPT.replace("/etc/kubernetes", &format!("{root_text}/etc/kubernetes")).replace("/kind/", &format!("{root_text}/kind/"));
            let path = format!("{root_text}/bin:{}", std::env::var("PATH").unwrap());
            let run = || std::process::Command::new("bash").args(["-c", &script, "names", &BASE64.encode(b"next")]).env("PATH", &path).output().unwrap();
            let read = |path: &str| std::fs::read_to_string(at(path)).unwrap().trim().to_owned();
            for _ in 0..2 {
                assert_eq!(run().status.success(), good);
                let expected = if good { ("new", "new", "next") } else { ("old", "old", "old") };
                let pair = (read("etc/kubernetes/pki/apiserver.crt"), read("etc/kubernetes/pki/apiserver.key"), read("kind/kubeadm.conf"));
                assert_eq!((pair.0.as_str(), pair.1.as_str(), pair.2.as_str()), expected);
            }
        }
    }
}
