//! The content-addressed cache: one directory for each part and key, complete or absent.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::key::SHORT;
use crate::progress::note;

const RECORD: &str = ".part.json";

/// What was noted when a part was built.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    /// The part's name.
    pub part: String,
    /// Its whole key.
    pub key: String,
    /// How long the build took.
    pub seconds: f64,
}

/// The cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache: `$XDG_CACHE_HOME/nestling/lab`, or the same below `~/.cache`.
    pub fn open() -> Result<Self> {
        let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
            Some(base) => PathBuf::from(base),
            None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
        };
        Self::at(base.join("nestling").join("lab"))
    }

    /// Opens a cache at a path.
    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot make the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// Where things live that describe this machine now and not what was built: state files, kubeconfigs, logs.
    pub fn run_directory(&self) -> Result<PathBuf> {
        self.directory("run")
    }

    /// A directory beside the parts.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Removes a directory beside the parts; returns the bytes freed.
    pub fn remove_directory(&self, name: &str) -> Result<u64> {
        let path = self.directory(name)?;
        let freed = size(&path)?;
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        Ok(freed)
    }

    /// Waits until no other run builds or cleans; the lock lasts as long as the returned file.
    pub fn lock(&self) -> Result<File> {
        let file = File::create(self.root.join("lock")).context("cannot make the cache's lock file")?;
        if file.try_lock().is_err() {
            note("waiting for another run that uses the lab's cache");
            file.lock().context("cannot lock the cache")?;
        }
        Ok(file)
    }

    /// The directory of a finished part, if it is there.
    pub fn find(&self, part: &str, key: &str) -> Option<PathBuf> {
        let path = self.path(part, key);
        path.join(RECORD).is_file().then_some(path)
    }

    /// The directory of a part: built by `make` in a temporary directory unless it is there already.
    pub fn get_or_make(&self, part: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(found) = self.find(part, key) {
            return Ok(found);
        }
        note(format!("{part}: building"));
        let start = Instant::now();
        let temporary = tempfile::Builder::new().prefix(&format!(".making-{part}-")).tempdir_in(&self.root).context("cannot make a directory in the cache")?;
        make(temporary.path()).with_context(|| format!("cannot build {part}"))?;
        let record = Record { part: part.to_owned(), key: key.to_owned(), seconds: start.elapsed().as_secs_f64() };
        fs::write(temporary.path().join(RECORD), serde_json::to_vec_pretty(&record)?)?;
        let path = self.path(part, key);
        fs::rename(temporary.keep(), &path).with_context(|| format!("cannot finish {}", path.display()))?;
        note(format!("{part}: built in {:.1} s", record.seconds));
        Ok(path)
    }

    /// Every finished part, whether still used or not.
    pub fn records(&self) -> Result<Vec<(PathBuf, Record)>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if let Ok(content) = fs::read(path.join(RECORD)) {
                records.push((path, serde_json::from_slice(&content)?));
            }
        }
        records.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(records)
    }

    /// Removes what a killed run left half made, and every finished part whose directory `keep` does not name.
    pub fn clean(&self, keep: impl Fn(&Path) -> bool) -> Result<u64> {
        let mut freed = 0;
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let half_made = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".making-"));
            if half_made || (path.join(RECORD).is_file() && !keep(&path)) {
                freed += size(&path)?;
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(freed)
    }

    fn path(&self, part: &str, key: &str) -> PathBuf {
        self.root.join(format!("{part}-{}", &key[..SHORT.min(key.len())]))
    }
}

impl AsRef<Cache> for Cache {
    fn as_ref(&self) -> &Cache {
        self
    }
}

/// The bytes below a directory.
pub fn size(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("lab")).unwrap();
        (directory, cache)
    }

    #[test]
    fn a_part_is_made_once() {
        let (_directory, cache) = cache();
        let made = cache.get_or_make("one", "0123456789abcdef", |out| Ok(fs::write(out.join("x"), "1")?)).unwrap();
        let again = cache.get_or_make("one", "0123456789abcdef", |_| anyhow::bail!("made twice")).unwrap();
        assert_eq!(made, again);
        assert_eq!(fs::read_to_string(made.join("x")).unwrap(), "1");
    }

    #[test]
    fn a_failed_part_leaves_nothing() {
        let (_directory, cache) = cache();
        cache.get_or_make("one", "0123456789abcdef", |_| anyhow::bail!("no")).unwrap_err();
        assert!(cache.find("one", "0123456789abcdef").is_none());
        assert!(cache.records().unwrap().is_empty());
    }

    #[test]
    fn cleaning_keeps_what_is_used_and_removes_the_half_made() {
        let (_directory, cache) = cache();
        let kept = cache.get_or_make("one", "0123456789abcdef", |_| Ok(())).unwrap();
        cache.get_or_make("one", "fedcba9876543210", |out| Ok(fs::write(out.join("x"), "1234")?)).unwrap();
        fs::create_dir(cache.root.join(".making-one-zzz")).unwrap();
        assert!(cache.clean(|path| path == kept).unwrap() >= 4);
        assert_eq!(cache.records().unwrap().len(), 1);
        assert!(!cache.root.join(".making-one-zzz").exists());
    }
}
