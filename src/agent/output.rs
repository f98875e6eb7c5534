//! What the tools underneath print: kept in bounds, and made fit to be shown.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use regex::{Captures, Regex};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Size of a file with output, in bytes, from which it begins anew: it lives in memory.
const FILE_LIMIT: u64 = 1 << 20;

/// Longest line that is kept, in bytes.
const LINE_LIMIT: usize = 2048;

/// What stands for a secret.
const HIDDEN: &str = "<secret>";

/// Words shorter than this are not worth hiding: they would be found in half of all words.
const SHORTEST_SECRET: usize = 4;

/// Words that are in no output of this process any more. For the whole process, because no place that prints must be able to forget them.
static SECRETS: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());

/// Secrets that are known by what stands around them. The first group stays.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // A header, as HTTP clients print it in verbose logs.
        r#"(?i)(\b(?:proxy-)?authorization"?\s*[:=]\s*["\[]*(?:(?:basic|bearer|digest|token)\s+)?)[^\s"'\],]+"#,
        r"(?i)(\bbearer\s+)[a-z0-9._~+/=-]{16,}",
        // A field of JSON or YAML, or a parameter.
        r#"(?i)(\b(?:auth|password|passwd|identitytoken|registrytoken|access_token|refresh_token|client-key-data)\\?["']?\s*[:=]\s*)(?:\\?"[^"]*"|'[^']*'|[^\s,;&}"'\\]+)"#,
        // A JSON web token.
        r"()\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        r"(?s)()-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// Further ones, for logs that leave the pod as a whole. What they hide besides is no loss there.
static STRICTER: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // The end of a key whose beginning was cut off.
        r"(?m)()(?:^[A-Za-z0-9+/=]*\n)*^-----END [A-Z ]*PRIVATE KEY-----",
        // What kubeadm prints for those who want to join.
        r"(--(?:token|certificate-key|discovery-token|tls-bootstrap-token)[= ]\s*)\S+",
        r#"(?i)(\b(?:token|secret|certificate-?key|private-?key)\\?["']?\s*[:=]\s*)(?:\\?"[^"]*"|'[^']*'|[^\s,;&}"'\\]+)"#,
        // A bootstrap token, wherever it stands.
        r"()\b[a-z0-9]{6}\.[a-z0-9]{16}\b",
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// Keeps a word out of everything that is presented from now on.
pub fn keep_secret(word: String) {
    if word.len() >= SHORTEST_SECRET {
        SECRETS.write().unwrap_or_else(PoisonError::into_inner).insert(word);
    }
}

/// Keeps the password in an address, if there is one, out of everything.
pub fn keep_passwords_of(address: &str) {
    let bare = address.split_once("://").map_or(address, |(_, bare)| bare);
    let user = bare.rsplit_once('@').map(|(user, _)| user);
    if let Some((_, password)) = user.and_then(|user| user.split_once(':')) {
        keep_secret(password.to_owned());
    }
}

/// Writes text to an output as [`presentable`] leaves it. A record must come in one piece, as those of a log do.
pub struct Presentable<W>(pub W);

impl<W: Write> Write for Presentable<W> {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(presentable(&String::from_utf8_lossy(record), &[]).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

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

/// A text without terminal escapes, control characters and what is secret: the given words, those that are kept, `user:password@` in addresses, and
/// what [`PATTERNS`] find.
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
        plain = plain.replace(secret, HIDDEN);
    }
    for secret in SECRETS.read().unwrap_or_else(PoisonError::into_inner).iter() {
        if plain.contains(secret.as_str()) {
            plain = plain.replace(secret.as_str(), HIDDEN);
        }
    }
    hide(without_passwords(&plain), &PATTERNS)
}

/// A text of a log that leaves the pod as a whole: [`presentable`], and stricter.
pub fn scrub(text: &str) -> String {
    hide(presentable(text, &[]), &STRICTER)
}

/// Hides what the patterns find, but for their first group.
fn hide(text: String, patterns: &[Regex]) -> String {
    let found = |text: String, pattern: &Regex| match pattern.replace_all(&text, |found: &Captures<'_>| format!("{}{HIDDEN}", &found[1])) {
        Cow::Owned(clean) => clean,
        Cow::Borrowed(_) => text,
    };
    patterns.iter().fold(text, found)
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
                clean.push_str(HIDDEN);
                &behind[end..]
            }
            None => behind,
        };
    }
    clean + rest
}

/// Keeps an output until it ends, [`presentable`]: its end in memory, and in a file for whoever looks into the pod.
pub async fn keep(output: impl AsyncRead + Unpin, tail: Tail, file: Option<PathBuf>) {
    let open = |path: &PathBuf| OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).ok();
    let mut written = 0;
    let mut target: Option<File> = file.as_ref().and_then(open);
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = presentable(&line, &[]);
        tail.push(&line);
        written += line.len() as u64 + 1;
        if written > FILE_LIMIT {
            (written, target) = (0, file.as_ref().and_then(open));
        }
        if let Some(target) = &mut target {
            let _ = writeln!(target, "{line}");
        }
    }
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
    #[case(r#"{"auths":{"r.example":{"auth":"bWU6cHc="}}}"#, r#"{"auths":{"r.example":{"auth":<secret>}}}"#)]
    #[case(r#"msg="body {\"password\": \"p w\"}" a=b"#, r#"msg="body {\"password\": <secret>}" a=b"#)]
    #[case("login failed: password=hunter22, user=me", "login failed: password=<secret>, user=me")]
    #[case("Authorization: Basic bWU6cHc=", "Authorization: Basic <secret>")]
    #[case("header=map[Authorization:[Bearer abc.def] Accept:[*/*]]", "header=map[Authorization:[Bearer <secret>] Accept:[*/*]]")]
    #[case("Proxy-Authorization: Digest x", "Proxy-Authorization: Digest <secret>")]
    #[case("got bearer 0123456789abcdef0123 from it", "got bearer <secret> from it")]
    #[case("t eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl.", "t <secret>.")]
    #[case("    client-key-data: LS0tLS1CRUdJTg==", "    client-key-data: <secret>")]
    #[case("a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nb", "a\n<secret>\nb")]
    #[case("-----BEGIN PRIVATE KEY-----\nMHcC", "<secret>")]
    // What the classifier looks for, and what only sounds like a secret, stays.
    #[case("no basic auth credentials", "no basic auth credentials")]
    #[case("unauthorized: incorrect username or password", "unauthorized: incorrect username or password")]
    #[case("insufficient_scope: authorization failed", "insufficient_scope: authorization failed")]
    #[case("Bearer realm=\"https://auth.docker.io/token\"", "Bearer realm=\"https://auth.docker.io/token\"")]
    #[case("-----BEGIN CERTIFICATE-----\nMIIB", "-----BEGIN CERTIFICATE-----\nMIIB")]
    fn nothing_odd_is_shown(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(presentable(text, &["abcdef.0123", ""]), expected);
        // What was made presentable once stays as it is.
        assert_eq!(presentable(expected, &[]), expected);
    }

    #[test]
    fn every_pattern_is_one() {
        assert_eq!((PATTERNS.len(), STRICTER.len()), (5, 4));
    }

    #[rstest]
    #[case(
        "kubeadm join 1.2.3.4:6443 --token abcdef.0123456789abcdef \\\n --discovery-token-ca-cert-hash sha256:ab",
        "kubeadm join 1.2.3.4:6443 --token <secret> \\\n --discovery-token-ca-cert-hash sha256:ab"
    )]
    #[case("--certificate-key 00ff00ff", "--certificate-key <secret>")]
    #[case("    token: plain-text", "    token: <secret>")]
    #[case("msg=\"added 123456.0123456789abcdef\"", "msg=\"added <secret>\"")]
    #[case("MHcCAQEE\nabc=\n-----END EC PRIVATE KEY-----\nb", "<secret>\nb")]
    #[case("run --flag a\nMHcC\n-----END PRIVATE KEY-----\nb", "run --flag a\n<secret>\nb")]
    #[case("-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nb", "<secret>\nb")]
    #[case("E1126 kubelet.go: failed to run Kubelet: validate: no such file", "E1126 kubelet.go: failed to run Kubelet: validate: no such file")]
    fn logs_that_leave_are_stricter(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(scrub(text), expected);
        assert_eq!(scrub(expected), expected);
    }

    #[test]
    fn kept_words_are_in_no_output() {
        keep_secret("wade-at-dusk".into());
        keep_secret("abc".into());
        keep_passwords_of("http://me:reed:warbler@proxy:3128");
        keep_passwords_of("me:unschemed-word@proxy");
        keep_passwords_of("http://proxy:3128");
        let mut written = Vec::new();
        Presentable(&mut written).write_all(b"abc wade-at-dusk reed:warbler unschemed-word proxy:3128\n").unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "abc <secret> <secret> <secret> proxy:3128\n");
    }

    #[tokio::test]
    async fn output_is_kept_without_passwords() {
        let directory = tempfile::tempdir().unwrap();
        let (tail, file) = (Tail::new(1000), directory.path().join("log"));
        keep(&b"one\nproxy=http://u:p@x\n"[..], tail.clone(), Some(file.clone())).await;
        assert_eq!(tail.text(), "one\nproxy=http://<secret>@x\n");
        assert_eq!(std::fs::read_to_string(file).unwrap(), tail.text());
    }
}
