//! Small files of nodes, without a process in them: of a running one through `/proc/<pid>/root`, of one that has stopped in the directory of its volume.
//!
//! What is in a node belongs to others. Paths are resolved inside its root, so a link cannot lead to a file of the pod, and a pipe cannot make the agent wait.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Most bytes that are read.
const LIMIT: u64 = 1 << 20;

/// The text of a file in the mount namespace of a process.
///
/// # Errors
/// Those of the file system; `InvalidData` for what is no file of text of at most 1 MiB.
pub fn read(pid: u32, path: &str) -> std::io::Result<String> {
    read_below(&root_of(pid), path)
}

/// Puts a text in the place of a file in the mount namespace of a process, as [`replace_below`] does.
///
/// # Errors
/// Those of the file system.
pub fn replace(pid: u32, path: &str, text: &str) -> std::io::Result<()> {
    replace_below(&root_of(pid), path, text)
}

fn root_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// The text of a file below a directory.
///
/// # Errors
/// As [`read`].
pub fn read_below(root: &Path, path: &str) -> std::io::Result<String> {
    let root = File::open(root)?;
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = File::from(openat2(&root, path, how)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LIMIT {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// Puts a text in the place of a file below a directory, whole or not at all; a link in its place goes, and what it leads to stays.
///
/// # Errors
/// Those of the file system.
pub fn replace_below(root: &Path, path: &str, text: &str) -> std::io::Result<()> {
    let (directory, name) = parent_below(root, path)?;
    let unfinished = format!("{name}.nestling");
    remove_in(&directory, &unfinished)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&directory, unfinished.as_str(), flags, Mode::from_bits_truncate(0o644))?);
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    renameat(&directory, unfinished.as_str(), &directory, name)?;
    Ok(())
}

/// Removes a file below a directory, if it is there; of a link only the link.
///
/// # Errors
/// Those of the file system.
pub fn remove_below(root: &Path, path: &str) -> std::io::Result<()> {
    let (directory, name) = parent_below(root, path)?;
    remove_in(&directory, name)
}

fn remove_in(directory: &OwnedFd, name: &str) -> std::io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The directory that a path is in, and the last part of the path.
fn parent_below<'a>(root: &Path, path: &'a str) -> std::io::Result<(OwnedFd, &'a str)> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok((openat2(&File::open(root)?, parent, how)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/hostname"), "node").unwrap();
        symlink("/etc/hostname", root.path().join("absolute")).unwrap();
        symlink("../../../../etc/hostname", root.path().join("relative")).unwrap();
        for path in ["/etc/hostname", "absolute", "relative"] {
            assert_eq!(read_below(root.path(), path).unwrap(), "node");
        }
        assert_eq!(read_below(root.path(), "etc").unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(read_below(root.path(), "none").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_written_and_removed_stays_inside() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let foreign = outside.path().join("foreign");
        std::fs::write(&foreign, "kept").unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        symlink(&foreign, root.path().join("etc/link")).unwrap();
        // As somebody in the node could have left it.
        symlink(&foreign, root.path().join("etc/link.nestling")).unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        replace_below(root.path(), "etc/link", "new").unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("etc/link")).unwrap(), "new");
        assert!(!std::fs::symlink_metadata(root.path().join("etc/link")).unwrap().is_symlink());
        assert!(replace_below(root.path(), "out/foreign", "new").is_err());
        assert!(remove_below(root.path(), "out/foreign").is_err());
        remove_below(root.path(), "etc/link").unwrap();
        remove_below(root.path(), "etc/link").unwrap();
        assert_eq!(std::fs::read_dir(root.path().join("etc")).unwrap().count(), 0);
        assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "kept");
    }

    #[test]
    fn a_process_has_a_root() {
        assert!(read(std::process::id(), "/proc/self/status").is_ok());
    }
}
