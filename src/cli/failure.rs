//! What a verb could not do: always with what to do next, and with an exit code.

use std::fmt;

use super::exit::FAILED;
use super::program;

/// What could not be done. It goes to standard error: what happened, then, on a line of its own behind an arrow, what to do next.
#[derive(Debug, Eq, PartialEq)]
pub struct Failure {
    code: u8,
    what: String,
    next: String,
}

impl Failure {
    /// What happened (no capital, no full stop), and what to do next (a sentence or a command). Neither may be empty.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        let (what, next) = (what.into().trim_end().to_owned(), next.into().trim_end().to_owned());
        debug_assert!(!what.is_empty() && !next.is_empty(), "{what:?} {next:?}");
        Self { code: FAILED, what, next }
    }

    /// The same with another exit code than [`FAILED`]: one of those in [`super::exit`].
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n→ {}", self.what, self.next)
    }
}

impl std::error::Error for Failure {}

/// A command of this program that the user can copy, such as `kubectl nestling get -n marsh`.
pub fn command(words: &str) -> String {
    format!("{} {words}", program())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_happened_and_what_to_do() {
        let failure = Failure::new("it is broken\n", "Mend it.").with_code(4);
        assert_eq!((failure.to_string().as_str(), failure.code()), ("it is broken\n→ Mend it.", 4));
    }

    fn sources(directory: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| {
                if path.is_dir() {
                    return sources(&path);
                }
                let rust = path.extension().is_some_and(|extension| extension == "rs");
                if rust { vec![(path.display().to_string(), fs::read_to_string(&path).unwrap())] } else { vec![] }
            })
            .collect()
    }

    /// An error that is made another way has no next step. What `doctor` finds on a node becomes a line of its table, with a remedy.
    #[test]
    fn no_verb_fails_without_a_next_step() {
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli"));
        assert!(sources.len() > 20);
        for (path, text) in sources.iter().filter(|(path, _)| !path.ends_with("doctor.rs")) {
            let code = text.split("#[cfg(test)]").next().unwrap();
            for way in ["bail!(", "anyhow!(", "Error::msg("] {
                assert!(!code.contains(way), "{path} makes an error with {way}: use Failure::new, which asks what to do next");
            }
        }
    }
}
