//! The Debian packages that the lab itself needs on this machine, installed where they are missing.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{output, succeeds};
use crate::progress::note;

/// What a part of the lab needs on the machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Need {
    /// A C compiler, for runc and pause.
    Compiler,
    /// libseccomp's headers, for runc.
    Seccomp,
    /// mmdebstrap, for the Debian roots.
    Debootstrap,
    /// The Docker daemon and its client.
    Docker,
    /// zstd, for the archives.
    Zstd,
    /// jq, for the OCI runtime shim.
    Jq,
    /// mkfs.ext4, for the virtual machine's disk.
    Ext4,
    /// qemu, for the virtual machine.
    Qemu,
    /// The Python client of Kubernetes, which reads published kubeconfigs.
    PythonClient,
}

impl Need {
    /// A shell test that is true where the need is met, and the packages that meet it.
    fn test_and_packages(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Compiler => ("command -v gcc && test -e /usr/include/stdio.h", &["gcc", "libc6-dev"]),
            Self::Seccomp => ("pkg-config --exists libseccomp", &["libseccomp-dev", "pkg-config"]),
            Self::Debootstrap => ("command -v mmdebstrap", &["mmdebstrap"]),
            Self::Docker => (
                "command -v dockerd && command -v docker && command -v iptables",
                // docker-cli is a package of its own in newer Debian releases only.
                &["docker.io", "docker-cli", "iptables"],
            ),
            Self::Zstd => ("command -v zstd", &["zstd"]),
            Self::Jq => ("command -v jq", &["jq"]),
            Self::Ext4 => ("command -v mkfs.ext4", &["e2fsprogs"]),
            Self::Qemu => ("command -v qemu-system-x86_64", &["qemu-system-x86"]),
            // By Debian's own interpreter, whichever others there are.
            Self::PythonClient => ("/usr/bin/python3 -c 'import kubernetes'", &["python3-kubernetes"]),
        }
    }

    fn met(self) -> bool {
        succeeds(Command::new("sh").args(["-c", self.test_and_packages().0]))
    }
}

/// The packages that are missing for these needs.
pub fn missing(needs: &[Need]) -> BTreeSet<&'static str> {
    needs.iter().filter(|need| !need.met()).flat_map(|need| need.test_and_packages().1).copied().collect()
}

/// Installs what is missing for these needs; does nothing, and needs no root, where nothing is.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let wanted = missing(needs);
    if wanted.is_empty() {
        return Ok(());
    }
    let named = wanted.iter().copied().collect::<Vec<_>>().join(" ");
    note(format!("installing Debian packages: {named}"));
    let explain = || format!("these Debian packages are needed and could not be installed: {named} (as root: apt-get install {named})");
    output(Command::new("apt-get").args(["update", "-qq"])).with_context(explain)?;
    let known = wanted.into_iter().filter(|package| succeeds(Command::new("apt-cache").args(["show", package])));
    output(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-qq", "--no-install-recommends"]).args(known))
        .with_context(explain)?;
    Ok(())
}
