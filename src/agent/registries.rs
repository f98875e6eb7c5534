//! What registries want to see: from the settings and the Secret volume to where Docker and the nodes read it.
//!
//! The nodes mount a directory, in which files may come and go, and the kubelet's credentials as a single file, which therefore is always written in
//! place. All of it must be there before Docker starts: Docker restarts the nodes of an earlier run by itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nestling_core::plan::problem::Problem;
use nestling_core::plan::registries::{self, DOCKER_CONFIG, Login, NODE_DIRECTORY, want_secret};
use nestling_core::plan::wire::{REGISTRIES_DIRECTORY, RegistrySettings};
use serde_json::{Map, Value};
use tokio::time::sleep;

use super::output;

/// Where the Docker daemon looks for authorities, a directory per registry.
const DOCKER_AUTHORITIES: &str = "/etc/docker/certs.d";

/// Pause between two looks at the Secret volume. The kubelet itself brings a change within a minute or two.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What registries want to see could not be taken over. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret volume is not what the settings promise.
    #[error("{}", .0.message)]
    Lacking(Problem),
    /// The file system's answer.
    #[error("cannot take over {what}: {source}")]
    File {
        /// The file.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// The registries of one cluster.
#[derive(Clone, Debug)]
pub struct Registries {
    settings: Vec<RegistrySettings>,
    held: PathBuf,
    nodes: PathBuf,
    docker: PathBuf,
}

impl Registries {
    /// Those of the settings.
    pub fn new(settings: &[RegistrySettings]) -> Self {
        Self { settings: settings.to_vec(), held: REGISTRIES_DIRECTORY.into(), nodes: NODE_DIRECTORY.into(), docker: DOCKER_AUTHORITIES.into() }
    }

    /// What the daemon's configuration says of them.
    pub fn daemon(&self) -> Map<String, Value> {
        registries::daemon(&self.settings)
    }

    /// The references under which to try for an image, in order.
    pub fn candidates(&self, reference: &str) -> Vec<String> {
        registries::candidates(reference, &self.settings)
    }

    /// The login for an image.
    pub fn login(&self, reference: &str) -> Option<Login> {
        registries::login_in(&fs::read(self.nodes.join(DOCKER_CONFIG)).ok()?, reference)
    }

    /// Writes what is not there yet or differs, and keeps the credentials out of all output from now on.
    ///
    /// # Errors
    /// If the Secret volume lacks something, and those of the file system.
    pub fn write(&self) -> Result<(), Error> {
        let held = self.read()?;
        for word in held.get(DOCKER_CONFIG).map(|config| registries::secrets_in(config)).unwrap_or_default() {
            output::keep_secret(word);
        }
        for (path, content) in registries::node_files(&self.settings, &held).map_err(Error::Lacking)? {
            let mode = if path == DOCKER_CONFIG { 0o600 } else { 0o644 };
            write_in_place(&self.nodes.join(&path), &content, mode).map_err(|source| Error::File { what: path, source })?;
        }
        for (host, content) in registries::docker_authorities(&self.settings, &held) {
            write_in_place(&self.docker.join(&host).join("ca.crt"), &content, 0o644).map_err(|source| Error::File { what: host, source })?;
        }
        Ok(())
    }

    /// Carries changes of the Secret volume on, for ever.
    pub async fn follow(&self) -> Infallible {
        while want_secret(&self.settings) {
            sleep(LOOK_EVERY).await;
            if let Err(error) = self.write() {
                tracing::warn!("the registries stay as they are: {error}");
            }
        }
        std::future::pending().await
    }

    /// What the Secret volume holds. Nothing, where there is none.
    fn read(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        if !want_secret(&self.settings) {
            return Ok(BTreeMap::new());
        }
        let failed = |what: &Path| {
            let what = what.display().to_string();
            |source| Error::File { what, source }
        };
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(&self.held).map_err(failed(&self.held))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // The volume's own links.
            if !name.starts_with("..") {
                held.insert(name, fs::read(entry.path()).map_err(failed(&entry.path()))?);
            }
        }
        Ok(held)
    }
}

fn write_in_place(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|have| have == content) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    // The mode of `open` counts only for a new file.
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const SETTINGS: &str = r#"[{"host": "r.example:5000", "endpoints": ["https://near.example"], "credentials": true, "authority": true}]"#;

    fn registries(root: &Path, settings: &str) -> Registries {
        let place = |name: &str| root.join(name);
        Registries { settings: serde_json::from_str(settings).unwrap(), held: place("held"), nodes: place("nodes"), docker: place("docker") }
    }

    fn hold(root: &Path, password: &str) {
        let auth = data_encoding::BASE64.encode(format!("me:{password}").as_bytes());
        fs::create_dir_all(root.join("held/..data")).unwrap();
        fs::write(root.join("held/config.json"), format!(r#"{{"auths": {{"r.example:5000": {{"auth": "{auth}"}}}}}}"#)).unwrap();
        fs::write(root.join("held/ca-r.example_5000.crt"), "PEM").unwrap();
    }

    #[test]
    fn both_runtimes_get_their_files_and_a_change_arrives_in_the_same_file() {
        let root = tempfile::tempdir().unwrap();
        let registries = registries(root.path(), SETTINGS);
        hold(root.path(), "wading-heron");
        registries.write().unwrap();
        let config = root.path().join("nodes/config.json");
        let before = fs::metadata(&config).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        for file in ["nodes/certs.d/r.example:5000/ca.crt", "docker/r.example:5000/ca.crt", "docker/near.example/ca.crt"] {
            assert_eq!(fs::read_to_string(root.path().join(file)).unwrap(), "PEM", "{file}");
        }
        assert!(fs::read_to_string(root.path().join("nodes/certs.d/r.example:5000/hosts.toml")).unwrap().contains("https://near.example"));
        assert!(registries.login("r.example:5000/a:1").is_some_and(|login| login.password == "wading-heron"));

        hold(root.path(), "sleeping-heron");
        registries.write().unwrap();
        assert!(registries.login("r.example:5000/a:1").is_some_and(|login| login.password == "sleeping-heron"));
        assert_eq!(fs::metadata(&config).unwrap().ino(), before.ino(), "nodes have mounted this very file");
        for password in ["wading-heron", "sleeping-heron"] {
            assert!(!output::presentable(&format!("denied for {password}"), &[]).contains(password));
        }
    }

    #[test]
    fn what_is_missing_is_told_and_what_is_not_wanted_is_not_needed() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(registries(root.path(), SETTINGS).write(), Err(Error::File { .. })));
        fs::create_dir(root.path().join("held")).unwrap();
        assert!(matches!(registries(root.path(), SETTINGS).write(), Err(Error::Lacking(_))));
        let open = registries(root.path(), r#"[{"host": "docker.io", "endpoints": ["http://10.0.0.7:5000"]}]"#);
        fs::remove_dir(root.path().join("held")).unwrap();
        open.write().unwrap();
        assert!(root.path().join("nodes/certs.d/docker.io/hosts.toml").exists());
        assert!(open.login("kindest/node:v1").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_followed() {
        let root = tempfile::tempdir().unwrap();
        hold(root.path(), "first-heron");
        let registries = registries(root.path(), SETTINGS);
        registries.write().unwrap();
        hold(root.path(), "second-heron");
        let _ = tokio::time::timeout(LOOK_EVERY * 2, registries.follow()).await;
        assert!(registries.login("r.example:5000/a:1").is_some_and(|login| login.password == "second-heron"));
    }
}
