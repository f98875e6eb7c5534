//! Whose the data-root is, where it is a volume that outlives pods. One pod at a time works on it, which a lock sees to whatever the host does; what an earlier
//! attempt of the cluster left is removed; what is anybody else's, or nobody's by name, is left alone and refused.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::problem::Problem;
use nestling_core::plan::wire::AgentFailure;
use serde::{Deserialize, Serialize};

use super::failure::{failure, from_problem};

/// File that names the owner.
const MARKER: &str = "nestling-owner.json";

/// The same before it is whole.
const UNFINISHED: &str = "nestling-owner.unfinished";

/// What `mkfs` makes.
const LOST_AND_FOUND: &str = "lost+found";

/// Most names of foreign files that are told.
const NAMED: usize = 3;

/// Who works on a data-root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// UID of the `KindCluster`.
    pub cluster_uid: String,
    /// The attempt.
    pub attempt: i64,
}

/// What is in a data-root.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Content {
    /// Nothing of anybody.
    Nothing,
    /// What this owner left.
    Of(Owner),
    /// A marker that says nothing.
    UnreadableMarker,
    /// Files without a marker; some of their names.
    Unmarked(Vec<String>),
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// It is this pod's own already.
    Keep,
    /// It is emptied first.
    Empty,
    /// What an earlier attempt left is this pod's from now on.
    Inherit,
}

/// Takes a data-root over, with what an earlier attempt left (`resume`) or without. The lock holds for as long as the returned file is open. Blocks: removing what
/// an earlier attempt left takes a while.
///
/// # Errors
/// [`Reason::DataRootInUse`], [`Reason::DataRootForeign`], [`Reason::ResumeFailed`] if there is nothing to resume, or what the file system says.
pub fn take_over(root: &Path, owner: &Owner, resume: bool) -> Result<File, AgentFailure> {
    let broken = |error: io::Error| failure(classify(&error.to_string(), Reason::DataRootUnsupported), format!("the volume cannot be taken over: {error}"));
    // The directory itself: a file of ours would change a volume that may be another's.
    let lock = File::open(root).map_err(broken)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => failure(Reason::DataRootInUse, "another pod holds the lock on the volume"),
        TryLockError::Error(error) => broken(error),
    })?;
    match judge(look(root).map_err(broken)?, owner, resume).map_err(|problem| from_problem(&problem))? {
        Verdict::Keep => {}
        Verdict::Inherit => mark(root, owner).map_err(broken)?,
        Verdict::Empty => {
            empty(root).map_err(broken)?;
            mark(root, owner).map_err(broken)?;
        }
    }
    Ok(lock)
}

fn judge(found: Content, owner: &Owner, resume: bool) -> Result<Verdict, Problem> {
    let foreign = |what: String| Err(Problem::new(Reason::DataRootForeign, format!("the volume holds {what}")));
    match found {
        Content::Nothing if resume => Err(Problem::new(Reason::ResumeFailed, "the volume is empty")),
        Content::Nothing => Ok(Verdict::Empty),
        Content::Of(before) if before == *owner => Ok(Verdict::Keep),
        Content::Of(before) if before.cluster_uid == owner.cluster_uid => Ok(if resume { Verdict::Inherit } else { Verdict::Empty }),
        Content::Of(before) => foreign(format!("the data of another cluster, whose UID is {}", before.cluster_uid)),
        Content::UnreadableMarker => foreign(format!("data whose owner cannot be read in {MARKER}")),
        Content::Unmarked(names) => foreign(format!("files of no cluster, such as {}", names.join(", "))),
    }
}

fn look(root: &Path) -> io::Result<Content> {
    match fs::read(root.join(MARKER)) {
        Ok(text) => return Ok(serde_json::from_slice(&text).map_or(Content::UnreadableMarker, Content::Of)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if ![LOST_AND_FOUND, UNFINISHED].contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    names.truncate(NAMED);
    Ok(if names.is_empty() { Content::Nothing } else { Content::Unmarked(names) })
}

/// Removes all but the marker, which stays true until it is replaced: whoever is killed here begins anew.
fn empty(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == MARKER || name == LOST_AND_FOUND {
            continue;
        }
        tracing::info!("removing {}, which an earlier attempt left", path.display());
        // Of links, only the link itself.
        if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

fn mark(root: &Path, owner: &Owner) -> io::Result<()> {
    let unfinished = root.join(UNFINISHED);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&serde_json::to_vec(owner)?)?;
    // A marker without its text would lock the cluster out of its own volume.
    file.sync_all()?;
    fs::rename(unfinished, root.join(MARKER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::os::unix::fs::symlink;

    fn owner(cluster: &str, attempt: i64) -> Owner {
        Owner { cluster_uid: cluster.into(), attempt }
    }

    /// Names in a directory, but the marker's.
    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != MARKER);
        names.sort();
        names
    }

    #[rstest]
    #[case(Content::Nothing, Ok(Verdict::Empty))]
    #[case(Content::Of(owner("crane", 2)), Ok(Verdict::Keep))]
    #[case(Content::Of(owner("crane", 1)), Ok(Verdict::Empty))]
    #[case(Content::Of(owner("heron", 2)), Err("UID is heron"))]
    #[case(Content::UnreadableMarker, Err("nestling-owner.json"))]
    #[case(Content::Unmarked(vec!["photos".into()]), Err("such as photos"))]
    fn only_what_is_the_clusters_own_is_removed(#[case] found: Content, #[case] expected: Result<Verdict, &str>) {
        match (judge(found, &owner("crane", 2), false), expected) {
            (Err(problem), Err(words)) => assert!(problem.reason == Reason::DataRootForeign && problem.message.contains(words), "{problem}"),
            (verdict, expected) => assert_eq!(verdict.ok(), expected.ok()),
        }
    }

    #[rstest]
    #[case(Content::Nothing, Err(Reason::ResumeFailed))]
    #[case(Content::Of(owner("crane", 2)), Ok(Verdict::Keep))]
    #[case(Content::Of(owner("crane", 1)), Ok(Verdict::Inherit))]
    #[case(Content::Of(owner("heron", 2)), Err(Reason::DataRootForeign))]
    #[case(Content::UnreadableMarker, Err(Reason::DataRootForeign))]
    #[case(Content::Unmarked(vec!["photos".into()]), Err(Reason::DataRootForeign))]
    fn what_is_to_be_brought_back_is_never_removed(#[case] found: Content, #[case] expected: Result<Verdict, Reason>) {
        assert_eq!(judge(found, &owner("crane", 2), true).map_err(|problem| problem.reason), expected);
    }

    #[test]
    fn a_volume_that_is_brought_back_keeps_what_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        drop(take_over(root, &owner("crane", 1), false).unwrap());
        fs::write(root.join("state"), "kept").unwrap();
        drop(take_over(root, &owner("crane", 2), true).unwrap());
        assert_eq!((look(root).unwrap(), names(root)), (Content::Of(owner("crane", 2)), vec!["state".to_owned()]));
        fs::remove_file(root.join(MARKER)).unwrap();
        fs::remove_file(root.join("state")).unwrap();
        assert_eq!(take_over(root, &owner("crane", 3), true).unwrap_err().reason, Reason::ResumeFailed);
        assert!(!root.join(MARKER).exists(), "nothing is begun");
    }

    #[test]
    fn a_new_attempt_begins_with_an_empty_volume() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = directory.path();
        fs::create_dir(root.join(LOST_AND_FOUND)).unwrap();
        fs::write(root.join(UNFINISHED), "").unwrap();
        drop(take_over(root, &owner("crane", 1), false).unwrap());
        assert_eq!((look(root).unwrap(), names(root)), (Content::Of(owner("crane", 1)), vec![LOST_AND_FOUND.to_owned()]));

        fs::create_dir_all(root.join("overlay2/a")).unwrap();
        fs::write(elsewhere.path().join("kept"), "").unwrap();
        symlink(elsewhere.path(), root.join("overlay2/a/diff")).unwrap();
        symlink(elsewhere.path(), root.join("link")).unwrap();
        fs::write(root.join("nestling-created"), "crane").unwrap();
        drop(take_over(root, &owner("crane", 1), false).unwrap());
        assert_eq!(names(root).len(), 4, "the same attempt finds what it left");
        drop(take_over(root, &owner("crane", 2), false).unwrap());
        assert_eq!((look(root).unwrap(), names(root)), (Content::Of(owner("crane", 2)), vec![LOST_AND_FOUND.to_owned()]));
        assert_eq!(names(elsewhere.path()), ["kept"], "what was linked is not the volume's");
    }

    #[test]
    fn what_is_anothers_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("photos"), "").unwrap();
        let refusal = take_over(root, &owner("crane", 1), false).unwrap_err();
        assert_eq!((refusal.reason, names(root), root.join(MARKER).exists()), (Reason::DataRootForeign, vec!["photos".to_owned()], false));
        mark(root, &owner("heron", 1)).unwrap();
        assert_eq!(take_over(root, &owner("crane", 1), false).unwrap_err().reason, Reason::DataRootForeign);
        fs::write(root.join(MARKER), "").unwrap();
        assert_eq!(take_over(root, &owner("crane", 1), false).unwrap_err().reason, Reason::DataRootForeign);
        assert_eq!((names(root), fs::read(root.join(MARKER)).unwrap()), (vec!["photos".to_owned()], vec![]));
    }

    #[test]
    fn two_never_work_on_one_volume() {
        let directory = tempfile::tempdir().unwrap();
        let first = take_over(directory.path(), &owner("crane", 1), false).unwrap();
        assert_eq!(take_over(directory.path(), &owner("crane", 2), false).unwrap_err().reason, Reason::DataRootInUse);
        assert_eq!(look(directory.path()).unwrap(), Content::Of(owner("crane", 1)));
        drop(first);
        assert!(take_over(directory.path(), &owner("crane", 2), false).is_ok());
    }

    #[test]
    fn a_volume_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(take_over(&directory.path().join("none"), &owner("crane", 1), false).unwrap_err().reason, Reason::DataRootUnsupported);
    }
}
