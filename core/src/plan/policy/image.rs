//! Patterns of images.

use std::fmt;

use serde::Deserialize;
use wildmatch::WildMatchPattern;

use crate::plan::image_reference::{has_tag_or_digest, in_full, tagged};

/// `*` and nothing else is special: no character stands for one other.
type Glob = WildMatchPattern<'*', '\0'>;

/// A pattern of images. `*` stands for any characters, also `/`, `:` and `@`. Pattern and image are both written out in full first, as Docker does:
/// `kindest/node` is `docker.io/kindest/node`. A pattern with neither tag nor digest allows all of them.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub struct ImagePattern {
    written: String,
    globs: Vec<Glob>,
}

impl TryFrom<String> for ImagePattern {
    type Error = String;

    fn try_from(written: String) -> Result<Self, String> {
        let plain = |character: char| character.is_ascii_alphanumeric() || "._:/@*-".contains(character);
        if written.is_empty() || !written.chars().all(plain) {
            return Err(format!("{written:?} is not a pattern of an image, such as kindest/node:*"));
        }
        // A registry that begins with a star can be any, also Docker's.
        let full = if written.starts_with('*') { written.clone() } else { in_full(&written) };
        let globs = if full.ends_with('*') || has_tag_or_digest(&full) {
            vec![Glob::new(&full)]
        } else {
            vec![Glob::new(&format!("{full}:*")), Glob::new(&format!("{full}@*"))]
        };
        Ok(Self { written, globs })
    }
}

impl ImagePattern {
    /// Whether the pattern allows this image.
    pub fn admits(&self, image: &str) -> bool {
        let full = tagged(in_full(image));
        self.globs.iter().any(|glob| glob.matches(&full))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("kindest/node:*", "kindest/node:v1.34.4", true)]
    #[case("kindest/node:*", "kindest/node:v1.34.4@sha256:aa", true)]
    #[case("kindest/node:*", "kindest/node", true)]
    #[case("kindest/node:*", "kindest/node@sha256:aa", false)]
    #[case("kindest/node:*", "docker.io/kindest/node:v1.34.4", true)]
    #[case("kindest/node:*", "index.docker.io/kindest/node:v1.34.4", true)]
    #[case("docker.io/kindest/node:*", "kindest/node:v1.34.4", true)]
    #[case("kindest/node:*", "evil.example/kindest/node:v1.34.4", false)]
    #[case("kindest/node:*", "localhost/kindest/node:v1.34.4", false)]
    #[case("kindest/node:*", "KINDEST/node:v1.34.4", false)]
    #[case("kindest/node:*", "kindest/node-evil:v1.34.4", false)]
    #[case("kindest/node:*", "evil/kindest/node:v1.34.4", false)]
    #[case("kindest/node", "kindest/node:v1.34.4", true)]
    #[case("kindest/node", "kindest/node@sha256:aa", true)]
    #[case("kindest/node", "kindest/node", true)]
    #[case("kindest/node", "kindest/node-evil", false)]
    #[case("kindest/node", "kindest/node/evil", false)]
    #[case("kindest/node:v1.34.4", "kindest/node:v1.34.4", true)]
    #[case("kindest/node:v1.34.4", "kindest/node:v1.34.40", false)]
    #[case("kindest/node:v1.34.4", "kindest/node:v1.34.4@sha256:evil", false)]
    #[case("kindest/node:latest", "kindest/node", true)]
    #[case("kindest/node@sha256:aa", "kindest/node:v1.34.4", false)]
    #[case("registry.example/team/*", "registry.example/team/sub/node:v1@sha256:aa", true)]
    #[case("registry.example/team/*", "registry.example/team-evil/node", false)]
    #[case("registry.example/*", "registry.example.evil/team/node", false)]
    #[case("registry.example/*", "registry.example/team", true)]
    #[case("localhost:5000/node", "localhost:5000/node", true)]
    #[case("localhost:5000/node", "localhost:5000/node:v1", true)]
    #[case("node:v1", "docker.io/library/node:v1", true)]
    #[case("node:v1", "docker.io/node:v1", true)]
    #[case("kindest/*", "sha256:0123", false)]
    #[case("docker.io/*/only:*", "anybody/only:v1", true)]
    #[case("docker.io/*/only:*", "ANYBODY/only:v1", false)]
    #[case("*", "anything/at:all", true)]
    #[case("*/node:*", "kindest/node:v1", true)]
    #[case("kindest/node:v1.3?.4", "kindest/node:v1.34.4", false)]
    fn patterns(#[case] pattern: &str, #[case] image: &str, #[case] admitted: bool) {
        let Ok(read) = ImagePattern::try_from(pattern.to_owned()) else {
            assert!(!admitted && pattern.contains('?'));
            return;
        };
        assert_eq!(read.admits(image), admitted);
    }
}
