//! The images inside of a node, unpacked when the pod image was built ([`store`]): all nodes of all pods of a host node read one copy of them.
//!
//! A node gets a directory of its own for its containerd, with copies of the databases and links for the rest. Docker would copy all of it into the node's volume, and each
//! containerd would unpack every image before its first use. The layers are mounted from the pod's own file system and not from the node's: that one is a second overlay, and the
//! kernel stacks no third.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nestling_core::api::kind_config::KindConfig;

use super::own_parts;
use super::store::{self, UNPACKED};

/// Where a node's containerd keeps its images.
const CONTAINERD: &str = "/var/lib/containerd";

/// Where nodes see what they share.
const SHARED: &str = "/opt/nestling/containerd";

/// containerd's book-keeping, of which each node needs its own.
const DATABASES: &str = "io.containerd.metadata.v1.bolt";

/// Layers as they come, each a file named after its digest.
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";

/// Layers unpacked, each a directory with a number for a name.
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";

/// The number, parent and name of each of them.
const SNAPSHOT_DATABASE: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.db";

/// The images of one node image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unpacked {
    /// The node image, by its name in the store.
    image: String,
    /// What nodes share.
    shared: PathBuf,
}

/// What there is in this data-root, or else in the store.
pub fn find(store: &Path, data_root: &Path) -> Option<Unpacked> {
    let own = store::own_unpacked(data_root);
    let directory = if own.is_dir() { own } else { store.join(UNPACKED) };
    Some(Unpacked { image: own_parts::image_of(&directory)?, shared: directory.join("containerd") })
}

impl Unpacked {
    /// Gives every node of this image its part of the data-root, anew. A node for which the user mounts something else there is left alone. Blocks.
    ///
    /// # Errors
    /// What the file system says.
    pub fn give(&self, config: &mut KindConfig, data_root: &Path) -> io::Result<()> {
        let all = own_parts::all(data_root);
        if all.exists() {
            fs::remove_dir_all(&all)?;
        }
        for (index, node) in config.nodes.iter_mut().flatten().enumerate() {
            if !own_parts::takes(node, &self.image, CONTAINERD) {
                continue;
            }
            let own = own_parts::of(data_root, index).join("containerd");
            self.lay_out(&own)?;
            node.extra_mounts.extend([own_parts::mount(&self.shared, SHARED, true), own_parts::mount(&own, CONTAINERD, false)]);
        }
        Ok(())
    }

    /// A node's own part.
    fn lay_out(&self, own: &Path) -> io::Result<()> {
        let (blobs, snapshots) = (own.join(BLOBS), own.join(SNAPSHOTS));
        for directory in [&blobs, &snapshots] {
            fs::create_dir_all(directory)?;
        }
        for database in [DATABASES, SNAPSHOT_DATABASE] {
            store::copy(&self.shared.join(database), &own.join(database))?;
        }
        for blob in names(&self.shared.join(BLOBS))? {
            symlink(Path::new(SHARED).join(BLOBS).join(&blob), blobs.join(&blob))?;
        }
        // A directory with a link in it, so that containerd can remove it like any other.
        for snapshot in names(&self.shared.join(SNAPSHOTS))? {
            fs::create_dir(snapshots.join(&snapshot))?;
            symlink(Path::new(SHARED).join(SNAPSHOTS).join(&snapshot).join("fs"), snapshots.join(&snapshot).join("fs"))?;
        }
        Ok(())
    }
}

fn names(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestling_core::api::kind_config::{KindMount, KindNode};

    fn store() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(UNPACKED).join("containerd").join(path);
        for path in [DATABASES, BLOBS, "io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs/etc", "io.containerd.snapshotter.v1.overlayfs/snapshots/7/work"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at(DATABASES).join("meta.db"), "names").unwrap();
        fs::write(at(SNAPSHOT_DATABASE), "parents").unwrap();
        fs::write(at(BLOBS).join("ab12"), "layer").unwrap();
        fs::write(directory.path().join(UNPACKED).join("image"), "node:1\n").unwrap();
        directory
    }

    fn config(nodes: &[(&str, &[&str])]) -> KindConfig {
        let mount = |path: &&str| KindMount { container_path: Some((*path).to_owned()), ..KindMount::default() };
        let node = |(image, mounts): &(&str, &[&str])| KindNode {
            image: Some((*image).to_owned()),
            extra_mounts: mounts.iter().map(mount).collect(),
            ..KindNode::default()
        };
        KindConfig { nodes: Some(nodes.iter().map(node).collect()), ..KindConfig::default() }
    }

    #[test]
    fn a_node_has_books_of_its_own_and_shares_the_rest() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        let unpacked = find(store.path(), root.path()).unwrap();
        let mut given = config(&[("node:1", &[]), ("node:1", &["/data"])]);
        unpacked.give(&mut given, root.path()).unwrap();
        let nodes = given.nodes.unwrap();
        let mounts = &nodes[1].extra_mounts[1..];
        let own = root.path().join("nestling-nodes/1/containerd");
        assert_eq!(
            mounts.iter().map(|mount| (mount.host_path.as_deref().unwrap(), mount.container_path.as_deref().unwrap(), mount.read_only)).collect::<Vec<_>>(),
            [(store.path().join("unpacked/containerd").to_str().unwrap(), SHARED, Some(true)), (own.to_str().unwrap(), CONTAINERD, Some(false)),]
        );
        assert_eq!(nodes[0].extra_mounts.len(), 2);
        assert_eq!(fs::read_to_string(own.join(DATABASES).join("meta.db")).unwrap(), "names");
        assert_eq!(fs::read_to_string(own.join(SNAPSHOT_DATABASE)).unwrap(), "parents");
        assert_eq!(fs::read_link(own.join(BLOBS).join("ab12")).unwrap(), Path::new(SHARED).join(BLOBS).join("ab12"));
        assert_eq!(fs::read_link(own.join(SNAPSHOTS).join("7/fs")).unwrap(), Path::new(SHARED).join(SNAPSHOTS).join("7/fs"));
        // Another try begins with nothing of the first.
        fs::write(own.join("left"), "").unwrap();
        unpacked.give(&mut config(&[("node:1", &[]), ("node:1", &[])]), root.path()).unwrap();
        assert!(own.exists() && !own.join("left").exists());
    }

    #[test]
    fn other_images_and_mounts_of_the_users_are_left_alone() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        let others = config(&[("node:2", &[]), ("node:1", &["/var/lib/containerd"]), ("node:1", &["/var/lib"]), ("node:1", &["/var/lib/containerd/io"])]);
        let mut given = others.clone();
        find(store.path(), root.path()).unwrap().give(&mut given, root.path()).unwrap();
        assert_eq!(given, others);
        assert_eq!(find(root.path(), root.path()), None);
    }

    #[test]
    fn a_copy_in_the_data_root_is_preferred() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        fs::rename(store.path().join(UNPACKED), store::own_unpacked(root.path())).unwrap();
        assert!(find(store.path(), root.path()).unwrap().shared.starts_with(root.path()));
    }
}
