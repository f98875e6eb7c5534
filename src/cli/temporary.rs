//! A kubeconfig for as long as a verb runs.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kube::config::Kubeconfig;
use tempfile::{Builder, NamedTempFile};

use super::output::yaml;

/// A file that only its owner can read, and that is removed when this is dropped.
pub struct TemporaryKubeconfig {
    file: NamedTempFile,
}

impl TemporaryKubeconfig {
    /// Writes it to a file of its own: where the user's session keeps such things in memory, or else where temporary files are.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn new(kubeconfig: &Kubeconfig, name: &str) -> Result<Self> {
        let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|directory| directory.is_absolute());
        let directories = session.into_iter().chain([std::env::temp_dir()]);
        let mut last = None;
        for directory in directories {
            match write(&directory, name, kubeconfig) {
                Ok(file) => return Ok(Self { file }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there is no directory for temporary files")?)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

fn write(directory: &Path, name: &str, kubeconfig: &Kubeconfig) -> Result<NamedTempFile> {
    let wrong = || format!("cannot write a kubeconfig in {}", directory.display());
    let owner_only = std::fs::Permissions::from_mode(0o600);
    let mut file =
        Builder::new().prefix(&format!("nestling-{name}-")).suffix(".kubeconfig").permissions(owner_only).tempfile_in(directory).with_context(wrong)?;
    file.write_all(yaml(&serde_json::to_value(kubeconfig)?)?.as_bytes()).with_context(wrong)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_its_owners_alone_and_goes() {
        let kept = TemporaryKubeconfig::new(&Kubeconfig::default(), "crane").unwrap();
        let path = kept.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("nestling-crane-"));
        Kubeconfig::read_from(&path).unwrap();
        drop(kept);
        assert!(!path.exists());
    }
}
