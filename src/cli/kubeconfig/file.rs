//! The user's kubeconfig on disk: found as kubectl finds it, locked as kubectl locks it, written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cli::HostArgs;
use crate::cli::failure::Failure;

/// How long another writer may take. kubectl holds its lock for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Mode of a file with credentials.
const PRIVATE: u32 = 0o600;

/// The files that kubectl reads, in its order.
pub fn paths(args: &HostArgs) -> Vec<PathBuf> {
    if let Some(path) = &args.kubeconfig {
        return vec![path.clone()];
    }
    let list = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let named: Vec<PathBuf> = std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
    if !named.is_empty() {
        return named;
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")).into_iter().collect()
}

/// The one that kubectl writes a new entry to: the first that exists, else the last.
pub fn default_path(paths: &[PathBuf]) -> Option<&PathBuf> {
    paths.iter().find(|path| path.exists()).or(paths.last())
}

/// Reads a kubeconfig; `Null` if there is no such file, or nothing in it.
pub fn read(path: &Path) -> Result<Value> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(Value::Null),
        Ok(text) => serde_saphyr::from_str(&text).map_err(|error| {
            // Not with an excerpt: there are credentials in it.
            let place = error.location().map(|location| format!(" at line {}", location.line())).unwrap_or_default();
            let what = format!("{} cannot be understood: it is no valid YAML{place}", path.display());
            Failure::new(what, "Correct that file, or choose another with --kubeconfig or --into.").into()
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(unusable(path, "read", &error)),
    }
}

fn unusable(path: &Path, verb: &str, error: &std::io::Error) -> anyhow::Error {
    Failure::new(format!("cannot {verb} {}: {error}", path.display()), "Check who may use that file, or choose another with --kubeconfig or --into.").into()
}

/// Changes a kubeconfig under kubectl's lock; what is left as it was is not written. Returns what the change returns.
pub async fn edit<T>(path: &Path, change: impl FnOnce(&mut Value) -> Result<T>) -> Result<T> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(|error| unusable(directory, "make", &error))?;
    }
    let _lock = Lock::take(path, PATIENCE).await?;
    let before = read(path)?;
    let mut config = before.clone();
    let changed = change(&mut config)?;
    if config != before {
        // The user's file keeps the mode that its user gave it.
        let mode = fs::metadata(path).map_or(PRIVATE, |found| found.permissions().mode() & 0o777);
        replace(path, serde_saphyr::to_string(&config)?.as_bytes(), mode).map_err(|error| unusable(path, "write", &error))?;
    }
    Ok(changed)
}

/// The lock of client-go: a file beside the file. Gone when dropped.
struct Lock(PathBuf);

impl Lock {
    async fn take(path: &Path, patience: Duration) -> Result<Self> {
        let lock = beside(path, ".lock");
        let deadline = Instant::now() + patience;
        loop {
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let what = format!("another program has been writing {} for {} s", path.display(), patience.as_secs());
                    return Err(Failure::new(what, format!("If there is none, delete {} and try again.", lock.display())).into());
                }
                Err(error) => return Err(unusable(&lock, "make", &error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Who comes next says what to do about one that stayed.
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes a file whole or not at all, for its owner alone, also if there was one before.
pub fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    replace(path, text, PRIVATE)
}

/// Writes a file whole or not at all. Behind a symbolic link, it is the file there.
fn replace(path: &Path, text: &[u8], mode: u32) -> std::io::Result<()> {
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fresh = beside(&place, &format!(".{}.tmp", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text).and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode))).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, &place));
    if written.is_err() {
        // What failed is told by the caller; a left-over would hold credentials.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Writes a kubeconfig into a directory of such, which is made if need be. Returns its path.
pub fn write_into(directory: &Path, name: &str, text: &[u8]) -> Result<PathBuf> {
    let path = directory.join(name);
    let written = fs::create_dir_all(directory).and_then(|()| write(&path, text));
    written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display()), "Choose a directory that you may write with --out-dir."))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set(value: Value) -> impl FnOnce(&mut Value) -> Result<()> {
        |config| {
            *config = value;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_file_is_made_changed_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kube/config");
        edit(&path, set(json!({"a": "yes"}))).await.unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("a: \"yes\"\n", 0o600));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        edit(&path, set(json!({"a": "yes", "b": []}))).await.unwrap();
        assert_eq!((read(&path).unwrap(), mode(&path)), (json!({"a": "yes", "b": []}), 0o640));
        // Comments stay where nothing is changed, and nothing is written after an error.
        fs::write(&path, "# mine\na: 1\n").unwrap();
        edit(&path, |_| Ok(())).await.unwrap();
        edit(&path, |config| -> Result<()> {
            config["a"] = json!(2);
            anyhow::bail!("no")
        })
        .await
        .unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\na: 1\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a lock or a temporary file is left");
    }

    #[tokio::test]
    async fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (link, real) = (directory.path().join("config"), directory.path().join("real"));
        fs::write(&real, "{}").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        edit(&link, set(json!({"a": 1}))).await.unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&real).unwrap(), json!({"a": 1}));
    }

    #[tokio::test]
    async fn a_lock_is_waited_for_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(beside(&path, ".lock"), "").unwrap();
        let error = Lock::take(&path, Duration::ZERO).await.err().unwrap().to_string();
        assert!(error.contains("for 0 s\n→ If there is none, delete ") && error.contains("config.lock"), "{error}");
        assert!(beside(&path, ".lock").exists(), "the lock of somebody else was taken away");
        let (edited, ()) = tokio::join!(edit(&path, set(json!({}))), async {
            sleep(Duration::from_millis(100)).await;
            fs::remove_file(beside(&path, ".lock")).unwrap();
        });
        edited.unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_understood_shows_no_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, "users:\n- token: hunter2\n  : : [\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("no valid YAML") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_written_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crane.kubeconfig");
        fs::write(&path, "old").unwrap();
        assert_eq!(write_into(directory.path(), "crane.kubeconfig", b"new").unwrap(), path);
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode(&path)), (b"new".as_slice(), 0o600));
        assert!(write_into(&path, "none", b"").is_err());
    }

    #[test]
    fn kubectl_writes_to_the_first_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        assert_eq!(default_path(&[a.clone(), b.clone()]), Some(&b));
        fs::write(&a, "").unwrap();
        assert_eq!(default_path(&[a.clone(), b]), Some(&a));
        assert_eq!(default_path(&[]), None);
    }
}
