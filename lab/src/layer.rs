//! Image layers: what goes where, as a tar file in which only the content decides the bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use crate::command::output;

/// An uncompressed layer on disk.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tar file.
    pub path: PathBuf,
    /// The SHA-256 of it, as hexadecimal: what image configurations call the diff ID.
    pub digest: String,
}

impl Layer {
    /// A layer from a tar file that exists.
    pub fn from_tar(path: PathBuf) -> Result<Self> {
        // The system's program, because this crate's hash is slow in unoptimised builds and layers are large.
        let printed = output(Command::new("sha256sum").arg(&path))?;
        let digest = printed.split_whitespace().next().context("sha256sum printed nothing")?.to_owned();
        Ok(Self { path, digest })
    }
}

enum Content {
    File { from: PathBuf, mode: u32 },
    Text { text: Vec<u8>, mode: u32 },
    Link(String),
    Directory,
}

/// Collects a layer's entries. Parents are added by themselves, owned by root, mode 0755.
#[derive(Default)]
pub struct LayerBuilder(BTreeMap<String, Content>);

impl LayerBuilder {
    /// Adds a file of this machine.
    pub fn file(&mut self, to: &str, from: impl Into<PathBuf>, mode: u32) -> &mut Self {
        self.insert(to, Content::File { from: from.into(), mode })
    }

    /// Adds a file with the given content.
    pub fn text(&mut self, to: &str, text: impl Into<Vec<u8>>, mode: u32) -> &mut Self {
        self.insert(to, Content::Text { text: text.into(), mode })
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, at: &str, target: &str) -> &mut Self {
        self.insert(at, Content::Link(target.to_owned()))
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, at: &str) -> &mut Self {
        self.insert(at, Content::Directory)
    }

    /// Adds the files below a directory; `mode` is asked for each relative path.
    pub fn tree(&mut self, to: &str, from: &Path, mode: &dyn Fn(&str) -> u32) -> Result<&mut Self> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
            let entry = entry?;
            let at = format!("{to}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&at, &entry.path(), mode)?;
            } else {
                let mode = mode(&at);
                self.file(&at, entry.path(), mode);
            }
        }
        Ok(self)
    }

    /// Writes the layer to a file.
    pub fn write(&self, path: PathBuf) -> Result<Layer> {
        let mut tar = Builder::new(BufWriter::new(File::create(&path)?));
        for (at, content) in &self.0 {
            append(&mut tar, at, content).with_context(|| format!("cannot add {at} to a layer"))?;
        }
        tar.into_inner()?.flush()?;
        Layer::from_tar(path)
    }

    fn insert(&mut self, at: &str, content: Content) -> &mut Self {
        let at = at.trim_matches('/').to_owned();
        for (index, _) in at.match_indices('/') {
            self.0.entry(at[..index].to_owned()).or_insert(Content::Directory);
        }
        self.0.insert(at, content);
        self
    }
}

fn append(tar: &mut Builder<impl Write>, at: &str, content: &Content) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_mode(0o755);
    match content {
        Content::File { from, mode } => {
            let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
            header.set_size(file.metadata()?.len());
            header.set_mode(*mode);
            tar.append_data(&mut header, at, file)?;
        }
        Content::Text { text, mode } => {
            header.set_size(text.len() as u64);
            header.set_mode(*mode);
            tar.append_data(&mut header, at, text.as_slice())?;
        }
        Content::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, at, target)?;
        }
        Content::Directory => {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, format!("{at}/"), std::io::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_entries_in_any_order_are_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let one = LayerBuilder::default().text("/etc/a/b", "x", 0o644).link("sbin/init", "/lib/systemd/systemd").write(directory.path().join("1")).unwrap();
        let other = LayerBuilder::default().link("sbin/init", "/lib/systemd/systemd").text("etc/a/b", "x", 0o644).write(directory.path().join("2")).unwrap();
        assert_eq!(one.digest, other.digest);
    }

    #[test]
    fn parents_come_before_their_children() {
        let directory = tempfile::tempdir().unwrap();
        let layer = LayerBuilder::default().text("etc/a/b", "x", 0o600).write(directory.path().join("1")).unwrap();
        let mut archive = tar::Archive::new(File::open(layer.path).unwrap());
        let entries: Vec<(String, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
            })
            .collect();
        assert_eq!(entries, [("etc/".to_owned(), 0o755), ("etc/a/".to_owned(), 0o755), ("etc/a/b".to_owned(), 0o600)]);
    }
}
