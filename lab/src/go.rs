//! Go programs, built from the modules that `lab/modules/*/go.mod` and `go.sum` pin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;
use crate::key::Inputs;

/// The symbols that Kubernetes' own build sets, in both packages that carry them.
const KUBERNETES_VERSION_PACKAGES: [&str; 2] = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];

/// How a program is told its own version at link time.
#[derive(Clone, Copy, Debug)]
pub enum Stamp {
    /// It knows its version, or needs none.
    None,
    /// One symbol takes the version of one required module.
    Symbol {
        /// The linker symbol.
        symbol: &'static str,
        /// The module whose required version it takes.
        module: &'static str,
    },
    /// The set of symbols that Kubernetes reads.
    Kubernetes,
}

/// A few programs built from one module with the same options.
#[derive(Clone, Copy, Debug)]
pub struct GoPrograms {
    /// The directory below `lab/modules`.
    pub module: &'static str,
    /// Package and file name of each program.
    pub programs: &'static [(&'static str, &'static str)],
    /// The directories of the module that hold our own sources of these programs.
    pub sources: &'static [&'static str],
    /// Build tags.
    pub tags: &'static str,
    /// Whether C code is linked in.
    pub cgo: bool,
    /// How the version gets in.
    pub stamp: Stamp,
}

impl GoPrograms {
    /// Adds what these programs are made from.
    pub fn add_inputs(&self, modules: &Path, inputs: &mut Inputs) -> Result<()> {
        let directory = modules.join(self.module);
        for file in ["go.mod", "go.sum"].iter().chain(self.sources) {
            inputs.add_tree(&directory, file)?;
        }
        inputs.add("options", format!("{self:?}"));
        Ok(())
    }

    /// Builds them into `out/bin`.
    pub fn build(&self, modules: &Path, out: &Path) -> Result<()> {
        let directory = modules.join(self.module);
        let bin = out.join("bin");
        fs::create_dir_all(&bin)?;
        let flags = self.linker_flags(&directory)?;
        // Programs that carry their package's name are built in one go, which shares the packages they share.
        let (plain, renamed): (Vec<_>, Vec<_>) = self.programs.iter().partition(|(package, file)| package.rsplit('/').next() == Some(*file));
        if !plain.is_empty() {
            let packages: Vec<&str> = plain.iter().map(|(package, _)| *package).collect();
            // The slash makes it a directory for Go, also where there is one program only.
            self.go_build(&directory, &flags, &format!("{}/", bin.display()), &packages)?;
        }
        for (package, file) in renamed {
            self.go_build(&directory, &flags, &bin.join(file).display().to_string(), &[package])?;
        }
        Ok(())
    }

    fn go_build(&self, directory: &Path, linker_flags: &str, to: &str, packages: &[&str]) -> Result<()> {
        let mut command = go(directory);
        command
            .env("CGO_ENABLED", if self.cgo { "1" } else { "0" })
            .args(["build", "-trimpath", "-tags", self.tags, "-ldflags", linker_flags, "-o", to])
            .args(packages);
        output(&mut command).map(drop)
    }

    fn linker_flags(&self, directory: &Path) -> Result<String> {
        let mut flags = vec!["-s".to_owned(), "-w".to_owned()];
        match self.stamp {
            Stamp::None => {}
            Stamp::Symbol { symbol, module } => {
                let version = required_version(&fs::read_to_string(directory.join("go.mod"))?, module)?;
                flags.push(format!("-X {symbol}={version}"));
            }
            Stamp::Kubernetes => {
                let version = required_version(&fs::read_to_string(directory.join("go.mod"))?, "k8s.io/kubernetes")?;
                for package in KUBERNETES_VERSION_PACKAGES {
                    for (name, value) in kubernetes_version_symbols(&version)? {
                        flags.push(format!("-X {package}.{name}={value}"));
                    }
                }
            }
        }
        Ok(flags.join(" "))
    }
}

/// The version of the Go toolchain, which goes into every key: another compiler makes other binaries.
pub fn toolchain_version() -> Result<String> {
    output(Command::new("go").args(["env", "GOVERSION"])).context("the lab builds Go programs: install Go 1.26 or later and put it on the PATH")
}

/// The sources of a module that `lab/modules/<of>/go.mod` resolves, downloaded where they are missing.
pub fn module_directory(modules: &Path, of: &str, module: &str) -> Result<PathBuf> {
    let directory = modules.join(of);
    output(go(&directory).args(["mod", "download", module]))?;
    let path = output(go(&directory).args(["list", "-m", "-f", "{{.Dir}}", module]))?;
    Ok(PathBuf::from(path))
}

/// The version that a `go.mod` requires of a module.
pub fn required_version(go_mod: &str, module: &str) -> Result<String> {
    go_mod
        .lines()
        .map(|line| line.trim().trim_start_matches("require ").split_whitespace())
        .find_map(|mut words| (words.next() == Some(module)).then(|| words.next()).flatten())
        .filter(|version| version.starts_with('v'))
        .map(str::to_owned)
        .with_context(|| format!("go.mod does not require {module}"))
}

fn kubernetes_version_symbols(version: &str) -> Result<[(&'static str, String); 6]> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = numbers.next().zip(numbers.next()).with_context(|| format!("odd version {version}"))?;
    Ok([
        ("gitVersion", version.to_owned()),
        ("gitMajor", major.to_owned()),
        ("gitMinor", minor.to_owned()),
        ("gitTreeState", "clean".to_owned()),
        // A module has no commit or date that it could tell; both must look like one.
        ("gitCommit", "0".repeat(40)),
        ("buildDate", "2026-01-01T00:00:00Z".to_owned()),
    ])
}

fn go(directory: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(directory).env("GOFLAGS", "-mod=readonly -buildvcs=false").env_remove("GOOS").env("GOWORK", "off");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_required_version_is_found_in_either_form() {
        let go_mod = "module x\n\nrequire (\n\tk8s.io/kubernetes v1.34.4\n\ta.b/c v1.0.0 // indirect\n)\nrequire d.e/f v2.0.0\n";
        assert_eq!(required_version(go_mod, "k8s.io/kubernetes").unwrap(), "v1.34.4");
        assert_eq!(required_version(go_mod, "d.e/f").unwrap(), "v2.0.0");
        assert!(required_version(go_mod, "g.h/i").is_err());
    }

    #[test]
    fn a_tool_line_is_not_a_requirement() {
        let go_mod = "tool (\n\tsigs.k8s.io/kind\n)\nrequire sigs.k8s.io/kind v0.33.0 // indirect\n";
        assert_eq!(required_version(go_mod, "sigs.k8s.io/kind").unwrap(), "v0.33.0");
    }

    #[test]
    fn kubernetes_learns_its_major_and_minor() {
        let symbols = kubernetes_version_symbols("v1.34.4").unwrap();
        assert_eq!(symbols[1].1, "1");
        assert_eq!(symbols[2].1, "34");
    }
}
