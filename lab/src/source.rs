//! Whether images are pulled or built: `LAB_SOURCE=auto|pull|build`.

use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::succeeds_within;

const PROBE_WITHIN: Duration = Duration::from_secs(3);

/// Where images come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// From a registry where one answers, else built.
    Auto,
    /// From a registry.
    Pull,
    /// Built from source.
    Build,
}

impl Source {
    /// What the environment asks for; `auto` where it does not say.
    pub fn from_environment() -> Result<Self> {
        Self::parse(&env::var("LAB_SOURCE").unwrap_or_default())
    }

    /// Whether images are to be pulled; `auto` asks the registry for `image`, within three seconds.
    pub fn pulls(self, image: &str) -> bool {
        match self {
            Self::Pull => true,
            Self::Build => false,
            Self::Auto => succeeds_within(Command::new("docker").args(["manifest", "inspect", image]), PROBE_WITHIN),
        }
    }

    fn parse(value: &str) -> Result<Self> {
        Ok(match value {
            "" | "auto" => Self::Auto,
            "pull" => Self::Pull,
            "build" => Self::Build,
            other => bail!("LAB_SOURCE is auto, pull or build, not {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_words_are_taken() {
        assert_eq!(Source::parse("").unwrap(), Source::Auto);
        assert_eq!(Source::parse("pull").unwrap(), Source::Pull);
        assert_eq!(Source::parse("build").unwrap(), Source::Build);
        assert!(Source::parse("Pull").is_err());
    }
}
