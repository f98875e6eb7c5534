//! The record of what a cluster was made with, beside its data, with which it comes and goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nestling_core::plan::resume::Made;

/// Its file. There as soon as the cluster is whole, and no sooner.
const FILE: &str = "nestling-cluster.json";

/// The same before it is whole.
const UNFINISHED: &str = "nestling-cluster.unfinished";

/// The record in a data-root; `None` if there is none, or none that says anything.
pub fn read(root: &Path) -> Option<Made> {
    let text = fs::read(root.join(FILE)).ok()?;
    serde_json::from_slice(&text).inspect_err(|error| tracing::warn!("{FILE} cannot be read: {error}")).ok()
}

/// Writes it. It survives a machine that stops in the next moment.
///
/// # Errors
/// Those of the file system.
pub fn write(root: &Path, made: &Made) -> io::Result<()> {
    let unfinished = root.join(UNFINISHED);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&serde_json::to_vec(made)?)?;
    file.sync_all()?;
    fs::rename(unfinished, root.join(FILE))?;
    File::open(root)?.sync_all()
}

/// Removes it: what follows is no whole cluster any more.
///
/// # Errors
/// Those of the file system; that there is none is no error.
pub fn remove(root: &Path) -> io::Result<()> {
    match fs::remove_file(root.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::report::tests::settings;
    use std::collections::BTreeMap;

    #[test]
    fn what_was_written_reads_back_and_half_of_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(read(root), None);
        let made = Made::new(settings(), true, BTreeMap::from([("demo-control-plane".to_owned(), [172, 31, 255, 2].into())]));
        write(root, &made).unwrap();
        assert_eq!((read(root), fs::read_dir(root).unwrap().count()), (Some(made), 1));
        fs::write(root.join(FILE), "{\"schema\":1").unwrap();
        assert_eq!(read(root), None);
        remove(root).unwrap();
        remove(root).unwrap();
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    }
}
