//! Debian root file systems, made by mmdebstrap from the machine's own package sources.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;
use crate::key::Inputs;

/// One root file system.
#[derive(Clone, Copy, Debug)]
pub struct DebianRoot {
    /// The Debian release.
    pub suite: &'static str,
    /// mmdebstrap's variant: which packages are there without being named.
    pub variant: &'static str,
    /// The packages.
    pub packages: &'static [&'static str],
    /// Shell commands that finish the root, which is `$1`.
    pub finish: &'static str,
}

/// What no root needs.
const EXCLUDED: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
const CLEAN: &str = r#"rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*"#;

impl DebianRoot {
    /// Adds what this root is made from. The packages' versions are not among it: a root is made anew by `lab clean`.
    pub fn add_inputs(&self, inputs: &mut Inputs) {
        inputs.add("root", format!("{self:?} {EXCLUDED:?} {CLEAN}"));
    }

    /// Makes `out/root.tar`.
    pub fn build(&self, out: &Path) -> Result<()> {
        let mut command = Command::new("mmdebstrap");
        command
            .arg(format!("--variant={}", self.variant))
            .arg(format!("--include={}", self.packages.join(",")))
            .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""]);
        for path in EXCLUDED {
            command.arg(format!("--dpkgopt=path-exclude={path}"));
        }
        for option in acquire_options(&output(Command::new("apt-config").args(["dump", "--format", "%F \"%v\";%n", "Acquire"]))?) {
            command.arg(format!("--aptopt={option}"));
        }
        if !self.finish.is_empty() {
            command.arg(format!("--customize-hook={}", self.finish));
        }
        command.arg(format!("--customize-hook={CLEAN}")).arg(self.suite).arg(out.join("root.tar"));
        command.args(sources(self.suite)?);
        output(command.env("SOURCE_DATE_EPOCH", "0")).map(drop)
    }
}

/// The package sources for a suite: this machine's own, with the release's name replaced.
fn sources(suite: &str) -> Result<Vec<String>> {
    let own = output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]))
        .context("the lab reads this machine's Debian package sources through apt-get")?;
    let codename = output(Command::new("sh").args(["-c", ". /etc/os-release && echo \"$VERSION_CODENAME\""]))?;
    let lines = sources_for(suite, &codename, &own);
    if lines.is_empty() {
        anyhow::bail!("apt on this machine has no source for Debian {codename} main; run apt-get update, or see /etc/apt");
    }
    Ok(lines)
}

fn sources_for(suite: &str, codename: &str, own: &str) -> Vec<String> {
    own.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
            let pocket = release.strip_prefix(codename)?;
            let wanted = component == "main" && ["", "-security"].contains(&pocket);
            wanted.then(|| format!("deb {uri} {suite}{pocket} main"))
        })
        .collect()
}

/// The settings that decide how this machine reaches its sources.
fn acquire_options(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            let name = line.split_whitespace().next().unwrap_or_default();
            ["Acquire::http", "Acquire::https"].iter().any(|prefix| name.starts_with(prefix)) && !line.ends_with("\"\";")
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_comes_from_the_same_mirror() {
        let own = "http://mirror.test/debian/ bookworm main\nhttp://mirror.test/debian/ bookworm-updates main\n\
                   http://mirror.test/sec/ bookworm-security main\nhttp://other.test/ stable main\n\
                   http://mirror.test/debian/ bookworm contrib\n";
        assert_eq!(sources_for("trixie", "bookworm", own), ["deb http://mirror.test/debian/ trixie main", "deb http://mirror.test/sec/ trixie-security main"]);
    }

    #[test]
    fn a_proxy_is_handed_on() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy.test:3128\";\nAcquire::Languages \"none\";\nAcquire::https \"\";\n";
        assert_eq!(acquire_options(dump), ["Acquire::http::Proxy \"http://proxy.test:3128\""]);
    }
}
