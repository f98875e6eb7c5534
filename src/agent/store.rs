//! The store: node images that the pod image carries as a part of a Docker data-root, and that all pods of a host node read from the same place.
//!
//! What Docker writes (its databases) is copied, some kilobytes; the layers are linked. Where the host's own storage keeps the kernel from stacking
//! another overlay on the pod's file system, the layers are copied as well, which takes seconds and disk.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nestling_core::plan::wire::{DATA_ROOT, STORE_DIRECTORY};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::image::Present;

/// The part of a store that nodes read themselves: the images of a node image, unpacked.
pub const UNPACKED: &str = "unpacked";

/// The part of a layer that holds its files; the rest is Docker's book-keeping.
const FILES: &str = "diff";

/// What the store did for the data-root.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The pod image carries no store.
    Absent,
    /// An earlier run of this pod has its data there.
    Kept,
    /// Layers are linked.
    Linked,
    /// Layers are copied, because they cannot be stacked upon, or because the data-root is to outlive the pod image.
    Copied,
}

/// Pinned references (`repo:tag@sha256:…`) with the names that their images have in the store.
pub fn pinned_references() -> Present {
    let text = fs::read_to_string(Path::new(STORE_DIRECTORY).join("references.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Puts the store into the data-root, before the Docker daemon starts; as its `own`, if the next pod may come of another image. Blocks.
///
/// # Errors
/// What the file system says.
pub fn lay_out(own: bool) -> io::Result<Outcome> {
    let (store, data_root) = (Path::new(STORE_DIRECTORY), Path::new(DATA_ROOT));
    if own {
        return lay_out_in(store, data_root, || Ok(false));
    }
    lay_out_in(store, data_root, || layers(store)?.iter().try_fold(true, |good, layer| Ok(good && can_stack(&layer.join(FILES), data_root)?)))
}

fn lay_out_in(store: &Path, data_root: &Path, can_link: impl FnOnce() -> io::Result<bool>) -> io::Result<Outcome> {
    if !store.join("image").is_dir() {
        return Ok(Outcome::Absent);
    }
    if data_root.join("image").exists() {
        return Ok(Outcome::Kept);
    }
    // Without the databases, layers are what an agent that was killed here has left.
    let (overlay, unpacked, unfinished) = (data_root.join("overlay2"), own_unpacked(data_root), data_root.join("image.unfinished"));
    for left in [&overlay, &unpacked, &unfinished].into_iter().filter(|path| path.exists()) {
        fs::remove_dir_all(left)?;
    }
    let outcome = if can_link()? {
        link(store, &overlay)?;
        Outcome::Linked
    } else {
        copy(&store.join("overlay2"), &overlay)?;
        if store.join(UNPACKED).is_dir() {
            copy(&store.join(UNPACKED), &unpacked)?;
        }
        Outcome::Copied
    };
    // Last and at once: it says that all of the rest is there.
    copy(&store.join("image"), &unfinished)?;
    fs::rename(unfinished, data_root.join("image"))?;
    Ok(outcome)
}

/// Where a data-root has what nodes read themselves, if not in the store.
pub fn own_unpacked(data_root: &Path) -> PathBuf {
    data_root.join("nestling-unpacked")
}

fn link(store: &Path, overlay: &Path) -> io::Result<()> {
    fs::create_dir_all(overlay)?;
    copy(&store.join("overlay2/l"), &overlay.join("l"))?;
    for layer in layers(store)? {
        let own = overlay.join(layer.file_name().unwrap_or_default());
        fs::create_dir_all(&own)?;
        for entry in fs::read_dir(&layer)? {
            let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
            if name == FILES { symlink(path, own.join(name))? } else { copy(&path, &own.join(name))? }
        }
    }
    Ok(())
}

/// The layers of a store.
fn layers(store: &Path) -> io::Result<Vec<PathBuf>> {
    let all = fs::read_dir(store.join("overlay2"))?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.join(FILES).is_dir()).collect())
}

/// Copies a file or a tree to a name that is free, with owners, modes and attributes. `cp`, because the standard library copies none of these.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let output = Command::new("cp").arg("-a").arg(from).arg(to).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(format!("cp: {}", String::from_utf8_lossy(&output.stderr).trim()))) }
}

/// Whether an overlay over these files works with its upper directory in the data-root: the kernel stacks two of them
/// (`FILESYSTEM_MAX_STACK_DEPTH`), and the pod's own file system is one already.
fn can_stack(files: &Path, data_root: &Path) -> io::Result<bool> {
    let probe = data_root.join(".nestling-probe");
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| probe.join(name));
    for directory in [&upper, &work, &merged] {
        fs::create_dir_all(directory)?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", files.display(), upper.display(), work.display());
    let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    match mounted {
        Ok(()) => umount2(&merged, MntFlags::MNT_DETACH)?,
        Err(error) => tracing::info!(%error, "the node image cannot be shared with the pod image and is copied"),
    }
    fs::remove_dir_all(probe)?;
    Ok(mounted.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["image/overlay2", "overlay2/l", "overlay2/abc/diff/etc", "unpacked"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for (path, content) in [("image/overlay2/repositories.json", "{}"), ("overlay2/abc/link", "SHORT"), ("overlay2/abc/diff/etc/os", "node")] {
            fs::write(at(path), content).unwrap();
        }
        symlink("../abc/diff", at("overlay2/l/SHORT")).unwrap();
        directory
    }

    #[test]
    fn layers_are_linked_and_the_rest_is_the_pods_own() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        assert_eq!(lay_out_in(store.path(), root.path(), || Ok(true)).unwrap(), Outcome::Linked);
        let layer = root.path().join("overlay2/abc");
        assert_eq!(fs::read_link(layer.join("diff")).unwrap(), store.path().join("overlay2/abc/diff"));
        assert!(!fs::symlink_metadata(layer.join("link")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(root.path().join("overlay2/l/SHORT/etc/os")).unwrap(), "node");
        assert_eq!(fs::read_to_string(root.path().join("image/overlay2/repositories.json")).unwrap(), "{}");
        assert!(!own_unpacked(root.path()).exists());
        // A restart of the agent finds it done; one that was killed half-way is begun anew.
        assert_eq!(lay_out_in(store.path(), root.path(), || Ok(true)).unwrap(), Outcome::Kept);
        fs::rename(root.path().join("image"), root.path().join("image.unfinished")).unwrap();
        assert_eq!(lay_out_in(store.path(), root.path(), || Ok(true)).unwrap(), Outcome::Linked);
        assert_eq!(fs::read_dir(root.path().join("image")).unwrap().count(), 1);
    }

    #[test]
    fn layers_that_cannot_be_stacked_upon_are_copied() {
        let (store, root) = (store(), tempfile::tempdir().unwrap());
        assert_eq!(lay_out_in(store.path(), root.path(), || Ok(false)).unwrap(), Outcome::Copied);
        assert!(!fs::symlink_metadata(root.path().join("overlay2/abc/diff")).unwrap().is_symlink());
        assert!(own_unpacked(root.path()).is_dir());
        assert_eq!(fs::read_to_string(root.path().join("overlay2/l/SHORT/etc/os")).unwrap(), "node");
    }

    #[test]
    fn an_image_without_a_store_is_none() {
        let (store, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(lay_out_in(store.path(), root.path(), || Ok(true)).unwrap(), Outcome::Absent);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
