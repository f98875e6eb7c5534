//! The golden state, sealed when the pod image was built ([`store`](super::store)): what an API server writes when it first starts. One that finds it there is up a second sooner.
//! Nothing in it is of the cluster that it was sealed from, or of this one: see `lab/scripts/seal.sh`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nestling_core::api::kind_config::{KindConfig, KindRole};

use super::{own_parts, store};

/// The part of a store with the state.
pub const GOLDEN: &str = "golden";

/// Where etcd keeps its data (`dataDir` of kubeadm's default configuration).
const ETCD: &str = "/var/lib/etcd";

/// The state for one node image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Golden {
    /// The node image, by its name in the store.
    image: String,
    /// etcd's data.
    etcd: PathBuf,
}

/// What the store holds.
pub fn find(store: &Path) -> Option<Golden> {
    let directory = store.join(GOLDEN);
    Some(Golden { image: own_parts::image_of(&directory)?, etcd: directory.join("etcd") })
}

impl Golden {
    /// Gives the control plane of a cluster that it [fits](nestling_core::plan::golden::fits) its copy, if it is of this image and the user mounts nothing there; tells whether. Blocks.
    ///
    /// # Errors
    /// What the file system says.
    pub fn give(&self, config: &mut KindConfig, data_root: &Path) -> io::Result<bool> {
        let Some((index, node)) = config.nodes.iter_mut().flatten().enumerate().find(|(_, node)| node.role() == KindRole::ControlPlane) else {
            return Ok(false);
        };
        if !own_parts::takes(node, &self.image, ETCD) {
            return Ok(false);
        }
        let own = own_parts::of(data_root, index);
        fs::create_dir_all(&own)?;
        let own = own.join("etcd");
        // Another try begins with nothing of the first.
        if own.exists() {
            fs::remove_dir_all(&own)?;
        }
        store::copy(&self.etcd, &own)?;
        node.extra_mounts.push(own_parts::mount(&own, ETCD, false));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestling_core::api::kind_config::{KindMount, KindNode};

    fn store() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("golden/etcd/member")).unwrap();
        fs::write(directory.path().join("golden/etcd/member/db"), "roles").unwrap();
        fs::write(directory.path().join("golden/image"), "node:1\n").unwrap();
        directory
    }

    fn config(image: &str, mount: &[&str]) -> KindConfig {
        let mounts = |path: &&str| KindMount { container_path: Some((*path).to_owned()), ..KindMount::default() };
        let worker = KindNode { role: Some(KindRole::Worker), image: Some(image.to_owned()), ..KindNode::default() };
        let first = KindNode { role: Some(KindRole::ControlPlane), extra_mounts: mount.iter().map(mounts).collect(), ..worker.clone() };
        KindConfig { nodes: Some(vec![worker, first]), ..KindConfig::default() }
    }

    #[test]
    fn the_control_plane_has_a_copy_of_its_own() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        let mut given = config("node:1", &[]);
        assert!(find(store.path()).unwrap().give(&mut given, root.path()).unwrap());
        let nodes = given.nodes.unwrap();
        assert_eq!(nodes[0].extra_mounts, []);
        let mount = &nodes[1].extra_mounts[0];
        assert_eq!((mount.container_path.as_deref(), mount.read_only), (Some("/var/lib/etcd"), Some(false)));
        let own = Path::new(mount.host_path.as_deref().unwrap());
        assert_eq!(fs::read_to_string(own.join("member/db")).unwrap(), "roles");
        assert!(own.starts_with(root.path()));
    }

    #[test]
    fn other_images_and_mounts_of_the_users_are_left_alone() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        for others in [config("node:2", &[]), config("node:1", &["/var/lib/etcd"]), config("node:1", &["/var/lib"])] {
            let mut given = others.clone();
            assert!(!find(store.path()).unwrap().give(&mut given, root.path()).unwrap());
            assert_eq!(given, others);
        }
        assert_eq!(find(root.path()), None);
    }
}
