//! What the tools underneath print: kept in bounds, and made fit to be shown.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest line that is kept, in bytes.
const LINE_LIMIT: usize = 2048;

/// The last lines of an output, up to a number of bytes. Clones share them.
#[derive(Clone, Debug)]
pub struct Tail {
    lines: Arc<Mutex<(VecDeque<String>, usize)>>,
    limit: usize,
}

impl Tail {
    /// Keeps about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { lines: Arc::default(), limit }
    }

    /// Appends a line, and forgets the oldest ones beyond the limit.
    pub fn push(&self, line: &str) {
        let line = head(line, LINE_LIMIT);
        let mut guard = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, size) = &mut *guard;
        *size += line.len() + 1;
        lines.push_back(line.to_owned());
        while *size > self.limit
            && let Some(oldest) = lines.pop_front()
        {
            *size -= oldest.len() + 1;
        }
    }

    /// What is kept, a line each.
    pub fn text(&self) -> String {
        let guard = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.iter().fold(String::new(), |text, line| text + line + "\n")
    }
}

/// The first bytes of a text, cut between characters.
pub fn head(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit.min(text.len()))]
}

/// The last lines of a text that fit into `limit` bytes; of a longer line, its end.
pub fn last(text: &str, limit: usize) -> &str {
    let text = text.trim_end();
    if text.len() <= limit {
        return text;
    }
    let start = text.ceil_char_boundary(text.len() - limit);
    let cut = &text[start..];
    if text[..start].ends_with('\n') { cut } else { cut.split_once('\n').map_or(cut, |(_, whole)| whole) }
}

/// A text without terminal escapes, control characters and what is secret: the given words, and `user:password@` in addresses.
pub fn presentable(text: &str, secrets: &[&str]) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            // A control sequence ends with its first letter or one of @ ~ (ECMA-48).
            for parameter in characters.by_ref() {
                if ('@'..='~').contains(&parameter) {
                    break;
                }
            }
        } else if character == '\n' || character == '\t' || !character.is_control() {
            plain.push(character);
        }
    }
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        plain = plain.replace(secret, "<secret>");
    }
    without_passwords(&plain)
}

fn without_passwords(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let authority = behind.find(|character: char| character.is_whitespace() || "/\"'?#".contains(character)).unwrap_or(behind.len());
        rest = match behind[..authority].rfind('@') {
            Some(end) => {
                clean.push_str("<secret>");
                &behind[end..]
            }
            None => behind,
        };
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn a_tail_keeps_the_last_lines() {
        let tail = Tail::new(12);
        for line in ["one", "two", "three", "four"] {
            tail.push(line);
        }
        assert_eq!(tail.clone().text(), "three\nfour\n");
        tail.push(&"x".repeat(10_000));
        assert_eq!(tail.text(), "");
    }

    #[rstest]
    #[case("one\ntwo\nthree", 8, "three")]
    #[case("one\ntwo\nthree", 9, "two\nthree")]
    #[case("one\ntwo\nthree", 10, "two\nthree")]
    #[case("one\ntwo\nthree\n\n", 99, "one\ntwo\nthree")]
    #[case("äöü", 3, "ü")]
    fn whole_lines_where_they_fit(#[case] text: &str, #[case] limit: usize, #[case] expected: &str) {
        assert_eq!(last(text, limit), expected);
    }

    #[rstest]
    #[case(" \u{1b}[32m✓\u{1b}[0m Preparing\r\n", " ✓ Preparing\n")]
    #[case("token abcdef.0123 used", "token <secret> used")]
    #[case("proxy http://me:pw@proxy:3128/x failed", "proxy http://<secret>@proxy:3128/x failed")]
    #[case("see https://kind.sigs.k8s.io/ or mail a@b", "see https://kind.sigs.k8s.io/ or mail a@b")]
    fn nothing_odd_is_shown(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(presentable(text, &["abcdef.0123", ""]), expected);
    }
}
