//! Memory of processes, where a page that several of them share counts for each of them in part (PSS).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};

/// Memory of some processes, in KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pss {
    /// All of it.
    pub total: u64,
    /// Their own: heaps and stacks.
    pub anonymous: u64,
    /// Parts of files: programs and libraries.
    pub file: u64,
}

/// Memory of a cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// Of all its processes together.
    pub all: Pss,
    /// The total by program, however many processes each has.
    pub programs: BTreeMap<String, u64>,
}

impl Memory {
    /// Of all these processes together; those that end meanwhile are left out.
    ///
    /// # Errors
    /// If no process is left, or one that lives cannot be looked at.
    pub fn of(processes: &BTreeSet<u32>) -> Result<Self> {
        let mut sum = Self::default();
        for process in processes {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // The second is ESRCH: it is ending and has no memory any more.
                Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(3) => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read {path} (are you root?)")),
            };
            let one = parse(&text);
            sum.all.total += one.total;
            sum.all.anonymous += one.anonymous;
            sum.all.file += one.file;
            *sum.programs.entry(program(*process)).or_default() += one.total;
        }
        ensure!(sum.all.total > 0, "none of the {} processes says what memory it has", processes.len());
        Ok(sum)
    }
}

/// The file name of the program that a process runs.
fn program(process: u32) -> String {
    let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
    program.file_name().map_or_else(|| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A file `smaps_rollup`. Older kernels do not split the sum.
fn parse(text: &str) -> Pss {
    let value = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Pss { total: value("Pss"), anonymous: value("Pss_Anon"), file: value("Pss_File") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_and_its_parts_are_read() {
        let text = "00400000-7ffe000 ---p 00000000 00:00 0    [rollup]\nRss:  900 kB\nPss:  700 kB\nPss_Dirty:  600 kB\nPss_Anon:  500 kB\nPss_File:  200 kB\nPss_Shmem:  0 kB\n";
        assert_eq!(parse(text), Pss { total: 700, anonymous: 500, file: 200 });
        assert_eq!(parse("Pss: 5 kB\n"), Pss { total: 5, ..Pss::default() });
    }

    #[test]
    fn this_process_has_memory_and_one_that_is_not_there_has_none() {
        let this = Memory::of(&BTreeSet::from([std::process::id(), u32::MAX])).unwrap();
        let program = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(this.programs, BTreeMap::from([(program, this.all.total)]));
        assert!(Memory::of(&BTreeSet::from([u32::MAX])).is_err());
    }
}
