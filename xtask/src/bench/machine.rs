//! The machine that is measured on.

use std::fs;

use anyhow::{Context, Result};
use nestling_lab::Docker;
use nestling_lab::machine::Machine;
use serde::{Deserialize, Serialize};

/// What has to be known of it to judge a figure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Model of its processors.
    pub cpu: String,
    /// How many there are.
    pub cores: usize,
    /// Its memory.
    pub memory_mib: u64,
    /// Version of its kernel.
    pub kernel: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Version of its Docker daemon.
    pub docker: String,
}

impl Facts {
    /// Looks.
    ///
    /// # Errors
    /// A file of /proc that cannot be read or is not as expected, or Docker's.
    pub fn look(docker: &Docker) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let (cpu, cores) = processors(&read("/proc/cpuinfo")?);
        Ok(Self {
            cpu,
            cores,
            memory_mib: mebibytes(&read("/proc/meminfo")?, "MemTotal")?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cgroup_version: if Machine::look()?.cgroup_v1 { 1 } else { 2 },
            docker: docker.run(&["version", "--format", "{{.Server.Version}}"])?,
        })
    }
}

/// Memory that programs could still get, as the kernel estimates it.
///
/// # Errors
/// A /proc/meminfo that does not say so.
pub fn available_mib() -> Result<u64> {
    mebibytes(&fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?, "MemAvailable")
}

/// Model and number. Not every architecture names a model.
fn processors(cpuinfo: &str) -> (String, usize) {
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(value);
    let cores = cpuinfo.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor")).count();
    (model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()), cores)
}

/// A line of /proc/meminfo.
fn mebibytes(meminfo: &str, key: &str) -> Result<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kibibytes: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("/proc/meminfo does not say {key}"))?;
    Ok(kibibytes / 1024)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Some machine.
    pub fn facts() -> Facts {
        Facts { cpu: "A CPU".into(), cores: 2, memory_mib: 24105, kernel: "6.18.1".into(), cgroup_version: 1, docker: "28.2.2".into() }
    }

    #[test]
    fn processors_are_counted() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(processors(text), ("AMD EPYC".to_owned(), 2));
        assert_eq!(processors("processor : 0\nBogoMIPS : 1\n"), (std::env::consts::ARCH.to_owned(), 1));
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let text = "MemTotal:       24683520 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(mebibytes(text, "MemTotal").unwrap(), 24105);
        assert_eq!(mebibytes(text, "MemAvailable").unwrap(), 2);
        assert!(mebibytes(text, "Mem").is_err());
    }
}
