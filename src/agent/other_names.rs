//! This program under other names, for those who know only these.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use super::{docker_exec, oci_runtime};

/// What it is under the name by which it was called, if that is another one.
pub fn role(program: &OsStr) -> Option<fn(&[OsString]) -> ExitCode> {
    match Path::new(program).file_name()?.to_str()? {
        oci_runtime::NAME => Some(oci_runtime::run),
        docker_exec::NAME => Some(docker_exec::run),
        _ => None,
    }
}

/// Gives it another name, at this path.
///
/// # Errors
/// Those of the file system.
pub fn link(path: &Path) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // There from before, where the agent has started anew.
    let _ = fs::remove_file(path);
    symlink(std::env::current_exe()?, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/run/nestling/oci-runtime", true)]
    #[case("docker", true)]
    #[case("nestling", false)]
    fn it_goes_by_its_name(#[case] program: &str, #[case] expected: bool) {
        assert_eq!(role(OsStr::new(program)).is_some(), expected);
    }

    #[test]
    fn a_name_may_be_there_from_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kind/docker");
        for _ in 0..2 {
            link(&path).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), std::env::current_exe().unwrap());
        }
    }
}
