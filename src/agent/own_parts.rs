//! What a node has of its own in the data-root, and is given as mounts: a directory for each, by its place in kind's configuration.

use std::fs;
use std::path::{Path, PathBuf};

use nestling_core::api::kind_config::{KindMount, KindNode};

/// The directory of the data-root with the nodes' own parts.
const NODES: &str = "nestling-nodes";

/// Where all of them are.
pub fn all(data_root: &Path) -> PathBuf {
    data_root.join(NODES)
}

/// That of the node with this place in the configuration.
pub fn of(data_root: &Path, index: usize) -> PathBuf {
    all(data_root).join(index.to_string())
}

/// The node image that a part of a store is for, by its name there; `None` if there is no such part.
pub fn image_of(part: &Path) -> Option<String> {
    Some(fs::read_to_string(part.join("image")).ok()?.trim().to_owned())
}

/// Whether a node is of this image, and its user mounts nothing at, above or below this path.
pub fn takes(node: &KindNode, image: &str, path: &str) -> bool {
    let over = |one: &str| Path::new(one).starts_with(path) || Path::new(path).starts_with(one);
    node.image.as_deref() == Some(image) && !node.extra_mounts.iter().any(|mount| mount.container_path.as_deref().is_some_and(over))
}

/// A directory of the pod as a node sees it.
pub fn mount(host: &Path, container: &str, read_only: bool) -> KindMount {
    KindMount { host_path: Some(host.display().to_string()), container_path: Some(container.to_owned()), read_only: Some(read_only), ..KindMount::default() }
}
