//! Reading one's own writes.
//!
//! The cache of `KindCluster`s lags behind what this process has just written. A pass on the older state would repeat steps whose result it
//! does not know yet. So the answer to each write is kept until the cache has caught up with it.

use std::collections::HashMap;

use nestling_core::api::KindCluster;

use super::key::Key;

/// The newest own write per object.
#[derive(Debug, Default)]
pub struct OwnWrites(HashMap<Key, Written>);

#[derive(Debug)]
struct Written {
    /// Versions that the write has made obsolete.
    superseded: Vec<String>,
    answer: KindCluster,
}

impl OwnWrites {
    /// `answer` is what became of the object in version `base`.
    pub fn record(&mut self, key: &Key, base: &str, answer: KindCluster) {
        if answer.metadata.resource_version.as_deref() == Some(base) {
            return;
        }
        let mut superseded = self.0.remove(key).map(|written| written.superseded).unwrap_or_default();
        superseded.push(base.to_owned());
        self.0.insert(key.clone(), Written { superseded, answer });
    }

    /// The newer of what the cache shows and what was written. Versions are compared for equality only; one that is neither ours nor made
    /// obsolete by us is newer.
    pub fn newest(&mut self, key: &Key, cached: KindCluster) -> KindCluster {
        let Some(written) = self.0.get(key) else { return cached };
        let version = cached.metadata.resource_version.as_deref().unwrap_or_default();
        let behind = written.answer.metadata.uid == cached.metadata.uid && written.superseded.iter().any(|old| old == version);
        if behind {
            return written.answer.clone();
        }
        self.0.remove(key);
        cached
    }

    /// Whether anything was written that the cache may not show.
    pub fn has(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    /// The object is gone.
    pub fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: &str) -> KindCluster {
        let mut cluster = KindCluster::new("crane", nestling_core::api::KindClusterSpec::default());
        cluster.metadata.uid = Some("u".into());
        cluster.metadata.resource_version = Some(version.into());
        cluster
    }

    #[test]
    fn own_writes_are_seen_until_the_cache_catches_up() {
        let key = Key { namespace: "marsh".into(), name: "crane".into() };
        let mut writes = OwnWrites::default();
        writes.record(&key, "1", version("2"));
        writes.record(&key, "2", version("3"));
        for (cached, newest, has) in [("1", "3", true), ("2", "3", true), ("3", "3", true), ("1", "1", false)] {
            assert_eq!(writes.has(&key), has, "before cached {cached}");
            assert_eq!(writes.newest(&key, version(cached)), version(newest), "cached {cached}");
        }
    }

    #[test]
    fn an_object_of_the_same_name_is_another() {
        let key = Key { namespace: "marsh".into(), name: "crane".into() };
        let mut writes = OwnWrites::default();
        writes.record(&key, "1", version("2"));
        let mut other = version("1");
        other.metadata.uid = Some("other".into());
        assert_eq!(writes.newest(&key, other.clone()), other);
    }
}
