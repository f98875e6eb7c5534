//! Reads small files of a running node, without a process in it: through `/proc/<pid>/root`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Most bytes that are read.
const LIMIT: u64 = 1 << 20;

/// The text of a file in the mount namespace of a process.
///
/// What is in a node belongs to others. The path is resolved inside its root, so a link cannot lead to a file of the pod, and a
/// pipe cannot make the agent wait.
///
/// # Errors
/// Those of the file system; `InvalidData` for what is no file of text of at most 1 MiB.
pub fn read(pid: u32, path: &str) -> std::io::Result<String> {
    read_below(Path::new(&format!("/proc/{pid}/root")), path)
}

fn read_below(root: &Path, path: &str) -> std::io::Result<String> {
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
    fn a_process_has_a_root() {
        assert!(read(std::process::id(), "/proc/self/status").is_ok());
    }
}
