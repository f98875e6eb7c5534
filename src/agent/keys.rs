//! The cluster's keys: from the Secret volume to where nodes mount them.
//!
//! The volume's files are links that the kubelet exchanges; a bind mount needs a file that stays. The copy is in memory and
//! must be there before Docker starts: Docker restarts the nodes of an earlier run by itself.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nestling_core::plan::wire::keys;

/// A key could not be read or copied. Never holds any of its content.
#[derive(Debug, thiserror::Error)]
#[error("cannot take over {file}: {source}")]
pub struct Error {
    file: &'static str,
    source: std::io::Error,
}

/// Copies the cluster's files to `to`, and returns the bootstrap token.
///
/// # Errors
/// The first file that is missing or cannot be written.
pub fn take_over(from: &Path, to: &Path) -> Result<String, Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(|source| Error { file: "the directory", source })?;
    for (file, _) in keys::CLUSTER {
        copy(&from.join(file), &to.join(file)).map_err(|source| Error { file, source })?;
    }
    let token = fs::read_to_string(from.join(keys::BOOTSTRAP_TOKEN)).map_err(|source| Error { file: keys::BOOTSTRAP_TOKEN, source })?;
    Ok(token.trim().to_owned())
}

fn copy(from: &Path, to: &PathBuf) -> std::io::Result<()> {
    let content = fs::read(from)?;
    // The mode of `open` counts only for a new file.
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(to)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(&content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_copied_for_root_only() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (file, _) in keys::CLUSTER {
            fs::write(from.path().join(file), file).unwrap();
        }
        let target = to.path().join("pki");
        assert!(take_over(from.path(), &target).unwrap_err().to_string().contains("bootstrap-token"));
        fs::write(from.path().join(keys::BOOTSTRAP_TOKEN), "a.b\n").unwrap();
        // The second time replaces the first.
        fs::write(target.join("ca.key"), "an older and longer one").unwrap();
        assert_eq!(take_over(from.path(), &target).unwrap(), "a.b");
        assert_eq!(fs::read(target.join("ca.key")).unwrap(), b"ca.key");
        assert_eq!(fs::metadata(target.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(target).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
