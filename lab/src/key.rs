//! What a part is made from, as a hash: equal inputs give equal keys, and any difference gives another.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The first letters of a key, used in directory names and image tags.
pub const SHORT: usize = 12;

/// Collects the inputs of one part. Every value goes in with its name and length, so that no two lists of inputs
/// run together into the same bytes.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// Starts with the part's name.
    pub fn of(name: &str) -> Self {
        let mut inputs = Self::default();
        inputs.add("part", name);
        inputs
    }

    /// Adds one named value.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        for field in [name.as_bytes(), value.as_ref()] {
            self.0.update((field.len() as u64).to_be_bytes());
            self.0.update(field);
        }
    }

    /// Adds a file, or every file below a directory, by relative path and content.
    pub fn add_tree(&mut self, root: &Path, relative: &str) -> Result<()> {
        let path = root.join(relative);
        if path.is_dir() {
            let mut names: Vec<String> = fs::read_dir(&path)
                .with_context(|| format!("cannot list {}", path.display()))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            names.sort();
            for name in names {
                self.add_tree(root, &format!("{relative}/{name}"))?;
            }
            return Ok(());
        }
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(relative, content);
        Ok(())
    }

    /// The key, as lower-case hexadecimal.
    pub fn key(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The SHA-256 of a few bytes, as lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(pairs: &[(&str, &str)]) -> String {
        let mut inputs = Inputs::of("x");
        for (name, value) in pairs {
            inputs.add(name, value);
        }
        inputs.key()
    }

    #[test]
    fn equal_inputs_give_equal_keys() {
        assert_eq!(key_of(&[("a", "1")]), key_of(&[("a", "1")]));
        assert_eq!(key_of(&[]).len(), 64);
    }

    #[test]
    fn neighbours_do_not_run_together() {
        assert_ne!(key_of(&[("a", "bc")]), key_of(&[("ab", "c")]));
        assert_ne!(key_of(&[("a", "1"), ("b", "2")]), key_of(&[("b", "2"), ("a", "1")]));
    }

    #[test]
    fn a_changed_or_renamed_file_changes_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let key = || {
            let mut inputs = Inputs::of("x");
            inputs.add_tree(directory.path(), ".").unwrap();
            inputs.key()
        };
        fs::write(directory.path().join("one"), "1").unwrap();
        let first = key();
        fs::write(directory.path().join("one"), "2").unwrap();
        let second = key();
        fs::rename(directory.path().join("one"), directory.path().join("two")).unwrap();
        assert_eq!(std::collections::BTreeSet::from([first, second, key()]).len(), 3);
    }
}
