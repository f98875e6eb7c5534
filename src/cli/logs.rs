//! `nestling logs`: the logs of a failed attempt, as the operator has published them.
//!
//! They come out of a pod in which users are root, and nobody has looked into them: what is read is bounded, no path leads out of the directory, and nothing in them speaks to a
//! terminal.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use nestling_core::api::{BundleRef, KindCluster, labels};
use nestling_core::plan::objects::LOGS_KEY;

use super::exit::GONE;
use super::failure::{Failure, command};
use super::host::{Host, connect, explain};
use super::kubeconfig::published::name_of;
use super::{HostArgs, LogsArgs, select};

/// Bytes of all files together. The agent packs no more than 4 MiB.
const SIZE_LIMIT: u64 = 64 << 20;

/// Files in an archive.
const COUNT_LIMIT: usize = 4096;

/// What is printed unless something else is asked for: what happened, from the beginning.
const MAIN: &str = "agent.log";

/// A file of the archive.
#[derive(Debug, Eq, PartialEq)]
struct Entry {
    /// Its path below the archive's only directory.
    path: String,
    text: Vec<u8>,
}

/// Prints, lists or extracts.
pub async fn run(host: HostArgs, args: LogsArgs) -> Result<()> {
    let host = connect(host).await?;
    let cluster = select::get(&host, &args.name).await?;
    let archive = fetch(&host, &cluster, &args.name).await?;
    let entries = unpack(&archive)?;
    if let Some(directory) = &args.extract {
        extract(&entries, directory)?;
        eprintln!("{} files are in {}", entries.len(), directory.display());
        return Ok(());
    }
    let text = if args.list { list(&entries) } else { chosen(&entries, &args.files, &name_of(&cluster))? };
    let mut out = std::io::stdout();
    out.write_all(&if out.is_terminal() { harmless(&text) } else { text })?;
    Ok(())
}

/// The archive.
async fn fetch(host: &Host, cluster: &KindCluster, name: &str) -> Result<Vec<u8>> {
    let namespace = &host.namespace;
    let BundleRef { name: secret, attempt } = bundle(cluster, name)?;
    let what = format!("read Secret {namespace}/{secret}, which holds the logs");
    let gone = || {
        Failure::new(format!("Secret {namespace}/{secret} with the logs of {name} is gone"), "Somebody has deleted it; the next failed attempt writes it anew.")
            .with_code(GONE)
    };
    let found = Api::<Secret>::namespaced(host.client.clone(), namespace).get_opt(&secret).await.map_err(|error| explain(error, &what))?.ok_or_else(gone)?;
    // A Secret of that name may be anybody's.
    let owner = found.metadata.labels.as_ref().and_then(|all| all.get(labels::CLUSTER_UID));
    if owner != cluster.metadata.uid.as_ref() {
        let next = "Look at it yourself; the operator does not overwrite what it has not made.";
        return Err(Failure::new(format!("Secret {namespace}/{secret} does not belong to this KindCluster"), next).into());
    }
    eprintln!("attempt {attempt} of {name}{}", failure(cluster));
    Ok(found.data.and_then(|mut data| data.remove(LOGS_KEY)).ok_or_else(gone)?.0)
}

/// Where the logs are.
fn bundle(cluster: &KindCluster, name: &str) -> Result<BundleRef, Failure> {
    let failure = cluster.status.as_ref().and_then(|status| status.last_failure.as_ref());
    failure.and_then(|failure| failure.bundle_ref.clone()).ok_or_else(|| {
        let what = match failure {
            Some(failure) => format!("no logs of {name} could be had; it failed with {}: {}", failure.reason, failure.message),
            None => format!("there are no logs of {name}: they are kept when an attempt fails, and none has"),
        };
        let next = format!(
            "See how it is: `{}`. In a cluster that runs, kubectl shows the logs: `{}`.",
            command(&format!("wait {name}")),
            command(&format!("shell {name}"))
        );
        Failure::new(what, next).with_code(GONE)
    })
}

fn failure(cluster: &KindCluster) -> String {
    let failure = cluster.status.as_ref().and_then(|status| status.last_failure.as_ref());
    failure.map_or(String::new(), |failure| format!(" (last failure, attempt {}: {})", failure.attempt, failure.reason))
}

/// The files in an archive.
fn unpack(archive: &[u8]) -> Result<Vec<Entry>> {
    let broken = |why: String| Failure::new(format!("the logs cannot be read: {why}"), "The Secret itself has them, under the key logs.tar.gz.");
    let mut tar = tar::Archive::new(GzDecoder::new(archive).take(SIZE_LIMIT));
    let mut entries = Vec::new();
    for entry in tar.entries().map_err(|error| broken(error.to_string()))? {
        let mut entry = entry.map_err(|error| broken(error.to_string()))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if entries.len() == COUNT_LIMIT {
            return Err(broken(format!("there are more than {COUNT_LIMIT} files")).into());
        }
        let path = entry.path().ok().and_then(|path| below(&path)).ok_or_else(|| broken("a path in the archive leads out of it".to_owned()))?;
        let mut text = Vec::new();
        entry.read_to_end(&mut text).map_err(|error| broken(error.to_string()))?;
        entries.push(Entry { path, text });
    }
    Ok(entries)
}

/// A path below the archive's only directory, if it is one.
fn below(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str().filter(|part| !part.chars().any(char::is_control)),
            _ => None,
        })
        .collect();
    match parts?.as_slice() {
        [] => None,
        [file] => Some((*file).to_owned()),
        [_, rest @ ..] => Some(rest.join("/")),
    }
}

fn list(entries: &[Entry]) -> Vec<u8> {
    let mut text = String::new();
    for entry in entries {
        let _ = writeln!(text, "{:>9}  {}", entry.text.len(), entry.path);
    }
    text.into_bytes()
}

/// The wanted files, one after the other.
fn chosen(entries: &[Entry], files: &[String], named: &str) -> Result<Vec<u8>, Failure> {
    let main = [MAIN.to_owned()];
    let files = if files.is_empty() { &main[..] } else { files };
    let mut text = Vec::new();
    for file in files {
        let entry = entries.iter().find(|entry| entry.path == *file).ok_or_else(|| {
            Failure::new(format!("the logs have no file {file}"), format!("See which there are: `{}`.", command(&format!("logs {named} --list"))))
                .with_code(GONE)
        })?;
        if files.len() > 1 {
            text.extend_from_slice(format!("==> {file} <==\n").as_bytes());
        }
        text.extend_from_slice(&entry.text);
        if !entry.text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    Ok(text)
}

/// Text that does nothing to a terminal but fill it.
fn harmless(text: &[u8]) -> Vec<u8> {
    let shown = |letter: char| if letter.is_control() && !['\n', '\t'].contains(&letter) { char::REPLACEMENT_CHARACTER } else { letter };
    String::from_utf8_lossy(text).replace("\r\n", "\n").chars().map(shown).collect::<String>().into_bytes()
}

/// Writes all files below a directory that holds nothing yet.
fn extract(entries: &[Entry], directory: &Path) -> Result<()> {
    let cannot = |path: &Path| format!("cannot write {}", path.display());
    fs::create_dir_all(directory).with_context(|| cannot(directory))?;
    if fs::read_dir(directory).with_context(|| cannot(directory))?.next().is_some() {
        return Err(Failure::new(format!("{} is not empty", directory.display()), "Choose another directory for --extract.").into());
    }
    for entry in entries {
        let path = directory.join(&entry.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| cannot(parent))?;
        }
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(|| cannot(&path))?;
        file.write_all(&entry.text).with_context(|| cannot(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use rstest::rstest;
    use serde_json::{Value, json};
    use tar::{Builder, EntryType, Header};

    fn archive(files: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (path, kind, text) in files {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(text.len() as u64);
            header.set_mode(0o777);
            // Past the check of the crate, which is what somebody in the pod would do.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == EntryType::Symlink {
                header.set_link_name("/etc").unwrap();
            }
            header.set_cksum();
            tar.append(&header, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn plain() -> Vec<Entry> {
        let file = EntryType::Regular;
        unpack(&archive(&[("attempt-1/agent.log", file, "began"), ("attempt-1/crane-control-plane/kubelet.log", file, "one\ntwo\n")])).unwrap()
    }

    #[test]
    fn files_are_listed_printed_and_extracted() {
        let entries = plain();
        assert_eq!(String::from_utf8(list(&entries)).unwrap(), "        5  agent.log\n        8  crane-control-plane/kubelet.log\n");
        assert_eq!(chosen(&entries, &[], "crane").unwrap(), b"began\n");
        let both = ["agent.log".to_owned(), "crane-control-plane/kubelet.log".to_owned()];
        assert_eq!(
            String::from_utf8(chosen(&entries, &both, "crane").unwrap()).unwrap(),
            "==> agent.log <==\nbegan\n==> crane-control-plane/kubelet.log <==\none\ntwo\n"
        );
        let missing = chosen(&entries, &["none".to_owned()], "crane").unwrap_err();
        assert!(missing.to_string().contains("--list") && missing.code() == GONE);

        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("out");
        extract(&entries, &directory).unwrap();
        assert_eq!(fs::read_to_string(directory.join("crane-control-plane/kubelet.log")).unwrap(), "one\ntwo\n");
        assert!(extract(&entries, &directory).unwrap_err().to_string().contains("not empty"));
    }

    #[rstest]
    #[case::up("attempt-1/../../evil")]
    #[case::absolute("/etc/passwd")]
    #[case::a_name_that_moves_the_cursor("attempt-1/\u{1b}[2J")]
    fn no_path_leads_out(#[case] path: &str) {
        assert!(unpack(&archive(&[(path, EntryType::Regular, "x")])).unwrap_err().to_string().contains("leads out"));
    }

    #[test]
    fn only_files_are_taken_and_not_without_end() {
        let entries = unpack(&archive(&[("attempt-1/link", EntryType::Symlink, ""), ("attempt-1/agent.log", EntryType::Regular, "x")])).unwrap();
        assert_eq!(entries, [Entry { path: "agent.log".into(), text: b"x".to_vec() }]);
        let bomb = "0".repeat(usize::try_from(SIZE_LIMIT).unwrap() + 1);
        assert!(unpack(&archive(&[("attempt-1/agent.log", EntryType::Regular, &bomb)])).is_err());
        assert!(unpack(b"not an archive").is_err());
    }

    #[test]
    fn a_terminal_is_not_spoken_to() {
        assert_eq!(String::from_utf8(harmless("a\u{1b}[2J\tb\r\nc\u{9b}".as_bytes())).unwrap(), "a\u{fffd}[2J\tb\nc\u{fffd}");
    }

    #[rstest]
    #[case::healthy(json!({}), "none has")]
    #[case::none_could_be_had(json!({"lastFailure": {"reason": "PodLost", "message": "The pod is gone.", "time": null}}), "PodLost")]
    fn without_logs_it_says_why(#[case] status: Value, #[case] why: &str) {
        let mut object = json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": "crane"}, "spec": {}});
        object["status"] = status;
        let failure = bundle(&serde_json::from_value(object).unwrap(), "crane").unwrap_err();
        assert!(failure.to_string().contains(why) && failure.code() == GONE, "{failure}");
    }
}
