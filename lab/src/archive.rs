//! Docker image archives, written without a daemon from layers that are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, Header};

use crate::key::{Inputs, sha256_hex};
use crate::layer::Layer;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One image of an archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its names, each with a tag.
    pub names: Vec<String>,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// What is run, if anything is by default.
    pub entrypoint: Vec<String>,
    /// Environment entries besides `PATH`.
    pub environment: Vec<String>,
    /// The user, where it is not root.
    pub user: Option<String>,
    /// The signal that asks it to stop, where it is not SIGTERM.
    pub stop_signal: Option<String>,
}

impl Image {
    /// An image that runs one program.
    pub fn program(name: &str, layers: Vec<Layer>, entrypoint: &str) -> Self {
        let entrypoint = if entrypoint.is_empty() { vec![] } else { vec![entrypoint.to_owned()] };
        Self { names: vec![name.to_owned()], layers, entrypoint, environment: vec![], user: None, stop_signal: None }
    }

    fn config(&self) -> Result<Vec<u8>> {
        let mut environment = vec![PATH.to_owned()];
        environment.extend(self.environment.iter().cloned());
        let mut config = json!({ "Env": environment });
        if !self.entrypoint.is_empty() {
            config["Entrypoint"] = json!(self.entrypoint);
        }
        if let Some(user) = &self.user {
            config["User"] = json!(user);
        }
        if let Some(signal) = &self.stop_signal {
            config["StopSignal"] = json!(signal);
        }
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
        let history: Vec<Value> = self.layers.iter().map(|_| json!({ "created": EPOCH, "created_by": "nestling lab" })).collect();
        Ok(serde_json::to_vec(&json!({
            "architecture": go_architecture(),
            "os": "linux",
            "created": EPOCH,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        }))?)
    }
}

const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Writes an archive. `repositories` comes first: kind reads only the first index that it meets, and of
/// `manifest.json` only the first image.
pub fn write(path: &Path, images: &[Image]) -> Result<()> {
    let mut tar = Builder::new(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?));
    append_bytes(&mut tar, "repositories", &serde_json::to_vec(&repositories(images)?)?)?;
    let mut manifest = Vec::new();
    let mut written = BTreeSet::new();
    for image in images {
        let config = image.config()?;
        // Any name would do that is the content's own; the daemon hashes it again.
        let name = format!("{}.json", sha256_hex(&config));
        if written.insert(name.clone()) {
            append_bytes(&mut tar, &name, &config)?;
        }
        for layer in &image.layers {
            if written.insert(layer.digest.clone()) {
                let file = File::open(&layer.path).with_context(|| format!("cannot open {}", layer.path.display()))?;
                let size = file.metadata()?.len();
                append(&mut tar, &layer_name(layer), file, size)?;
            }
        }
        let layers: Vec<String> = image.layers.iter().map(layer_name).collect();
        manifest.push(json!({ "Config": name, "RepoTags": image.names, "Layers": layers }));
    }
    append_bytes(&mut tar, "manifest.json", &serde_json::to_vec(&manifest)?)?;
    tar.into_inner()?.flush()?;
    Ok(())
}

fn repositories(images: &[Image]) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for image in images {
        let top = image.layers.last().context("an image without layers")?;
        for name in &image.names {
            let (repository, tag) = name.rsplit_once(':').with_context(|| format!("{name} has no tag"))?;
            repositories.entry(repository.to_owned()).or_default().insert(tag.to_owned(), top.digest.clone());
        }
    }
    Ok(repositories)
}

fn layer_name(layer: &Layer) -> String {
    format!("{}/layer.tar", layer.digest)
}

fn append_bytes(tar: &mut Builder<impl Write>, name: &str, content: &[u8]) -> Result<()> {
    append(tar, name, content, content.len() as u64)
}

fn append(tar: &mut Builder<impl Write>, name: &str, content: impl Read, size: u64) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(size);
    tar.append_data(&mut header, name, content)?;
    Ok(())
}

/// This machine's architecture as Go and image configurations call it.
pub fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Adds what the archive format itself decides, so that a change of this file makes new archives.
pub fn add_inputs(inputs: &mut Inputs) {
    inputs.add("archive format", include_str!("archive.rs"));
    inputs.add("layer format", include_str!("layer.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerBuilder;

    #[test]
    fn the_repositories_come_first_and_name_every_image() {
        let directory = tempfile::tempdir().unwrap();
        let layer = LayerBuilder::default().text("a", "x", 0o644).write(directory.path().join("layer")).unwrap();
        let image = |name: &str| Image::program(name, vec![layer.clone()], "/a");
        let path = directory.path().join("archive");
        write(&path, &[image("docker.io/one/a:1"), image("two.test:5000/b:2")]).unwrap();
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.path().unwrap().display().to_string(), "repositories");
        let mut content = String::new();
        first.read_to_string(&mut content).unwrap();
        let names: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&content).unwrap();
        assert!(names["docker.io/one/a"].contains_key("1") && names["two.test:5000/b"].contains_key("2"));
        // One shared layer, two configurations that are the same one, and the manifest.
        assert_eq!(entries.count(), 3);
    }

    #[test]
    fn an_image_without_a_tag_is_refused() {
        let image = Image::program("untagged", vec![Layer { path: "x".into(), digest: "0".into() }], "");
        assert!(repositories(&[image]).is_err());
    }
}
