//! The archive of logs: which bytes go into it. Nothing is read here.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use nestling_core::plan::wire::BUNDLE_LIMIT;
use tar::{Builder, Header};

use super::output::{last, scrub};

/// Bytes of text to begin with. Logs are packed into an eighth or less of their size.
const TEXT_LIMIT: usize = 4 << 20;

/// Longest name of a file, in bytes. Names of pods come from the nodes.
const NAME_LIMIT: usize = 96;

/// A file of the archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its path.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Entry {
    /// A file at a path of which each part may be anybody's. Takes out of the text what is secret.
    pub fn new(path: &[&str], text: &str) -> Self {
        Self { path: path.iter().map(|part| harmless(part)).collect::<Vec<_>>().join("/"), text: scrub(text) }
    }
}

/// A name that is one, and leads nowhere.
fn harmless(name: &str) -> String {
    let mut plain: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' }).collect();
    plain.truncate(NAME_LIMIT);
    if plain.starts_with('.') || plain.is_empty() {
        plain.insert(0, '_');
    }
    plain
}

/// Packs the files below a directory into at most [`BUNDLE_LIMIT`] bytes. What is too long loses its beginning; the longest files lose most.
///
/// # Errors
/// None that memory does not give.
pub fn pack(directory: &str, entries: &[Entry]) -> std::io::Result<Vec<u8>> {
    let mut budget = TEXT_LIMIT;
    loop {
        let longest = share(entries.iter().map(|entry| entry.text.len()).collect(), budget);
        let packed = archive(&harmless(directory), entries, longest)?;
        if packed.len() <= BUNDLE_LIMIT || budget == 0 {
            return Ok(packed);
        }
        budget /= 2;
    }
}

/// The length to which files are cut so that all together take no more than `budget`: what a short one leaves of its share is the others'.
fn share(mut lengths: Vec<usize>, budget: usize) -> usize {
    lengths.sort_unstable();
    let mut left = budget;
    for (index, length) in lengths.iter().enumerate() {
        let share = left / (lengths.len() - index);
        if *length > share {
            return share;
        }
        left -= length;
    }
    usize::MAX
}

fn archive(directory: &str, entries: &[Entry], longest: usize) -> std::io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for entry in entries {
        let text = last(&entry.text, longest);
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        tar.append_data(&mut header, format!("{directory}/{}", entry.path), text.as_bytes())?;
    }
    let mut gzip = tar.into_inner()?;
    gzip.flush()?;
    gzip.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use rstest::rstest;

    fn unpack(archive: &[u8]) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(GzDecoder::new(archive)).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), text);
        }
        files
    }

    /// Lines that cannot be packed.
    fn noise(lines: usize) -> String {
        let mut random = StdRng::seed_from_u64(7);
        (0..lines).fold(String::new(), |text, line| format!("{text}{line} {:x}{:x}\n", random.random::<u128>(), random.random::<u128>()))
    }

    #[test]
    fn an_archive_holds_what_it_was_given() {
        let entries = [Entry::new(&["agent.log"], "one\ntwo\n"), Entry::new(&["crane-worker", "kubelet.log"], "three")];
        let files = unpack(&pack("attempt-3", &entries).unwrap());
        assert_eq!(files["attempt-3/agent.log"], "one\ntwo");
        assert_eq!(files["attempt-3/crane-worker/kubelet.log"], "three");
        assert_eq!(unpack(&pack("attempt-1", &[]).unwrap()).len(), 0);
    }

    #[test]
    fn an_archive_is_never_too_large_and_keeps_the_newest_lines() {
        let long = noise(20_000);
        let short = "short and whole".to_owned();
        let entries = [Entry { path: "long".into(), text: long.clone() }, Entry { path: "short".into(), text: short.clone() }];
        let packed = pack("a", &entries).unwrap();
        assert!(packed.len() <= BUNDLE_LIMIT && packed.len() > BUNDLE_LIMIT / 4, "{}", packed.len());
        let files = unpack(&packed);
        assert_eq!(files["a/short"], short);
        assert!(long.trim_end().ends_with(&files["a/long"]) && files["a/long"].starts_with(|first: char| first.is_ascii_digit()));
    }

    #[rstest]
    #[case(&[10, 20, 30], 60, usize::MAX)]
    #[case(&[10, 20, 30], 50, 20)]
    #[case(&[10, 1000, 1000], 110, 50)]
    #[case(&[7, 7], 0, 0)]
    #[case(&[], 0, usize::MAX)]
    fn what_short_files_leave_is_the_others(#[case] lengths: &[usize], #[case] budget: usize, #[case] expected: usize) {
        assert_eq!(share(lengths.to_vec(), budget), expected);
    }

    #[rstest]
    #[case(&["..", "..", "etc", "passwd"], "_../_../etc/passwd")]
    #[case(&["a/b\nc", ""], "a_b_c/_")]
    #[case(&["/abs"], "_abs")]
    fn names_lead_nowhere(#[case] path: &[&str], #[case] expected: &str) {
        assert_eq!(Entry::new(path, "").path, expected);
    }
}
