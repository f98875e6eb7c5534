//! The kernel's list of a process's mounts, `/proc/<pid>/mountinfo` (proc(5)).

use std::fs;

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// Device number of the file system, as `major:minor`. Major 0: one without a device of its own, whose number is nobody else's.
    pub device: String,
    /// Where it is mounted.
    pub point: String,
    /// File system, as `overlay`.
    pub kind: String,
}

/// Mounts that a process sees, in the order in which they were made; none if the process is gone. `process` is a number or `self`.
pub fn of(process: &str) -> Vec<Mount> {
    parse(&fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default())
}

/// Reads the kernel's text. A line that is not understood is left out.
pub fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        Some(Mount { device: left.next()?.to_owned(), point: unescape(left.nth(1)?), kind: right.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// Undoes the kernel's octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let text = "36 35 98:0 /mnt1 /mnt/with\\040blank rw,noatime master:1 - ext3 /dev/root rw,errors=continue\nnonsense\n";
        assert_eq!(parse(text), [Mount { device: "98:0".into(), point: "/mnt/with blank".into(), kind: "ext3".into() }]);
        assert!(of("self").iter().any(|mount| mount.point == "/proc" && mount.kind == "proc"));
    }
}
