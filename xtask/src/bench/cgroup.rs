//! What a control group uses, looked at from the machine: all of a cluster's processes are in the group of its node container or of its pod.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nestling_lab::machine::Machine;

const ROOT: &str = "/sys/fs/cgroup";

/// The groups of one container or pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Groups {
    /// With the memory controller, and all processes below it.
    memory: PathBuf,
    /// With CPU accounting.
    cpu: PathBuf,
    version1: bool,
}

impl Groups {
    /// The topmost groups with one of these in their names.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(names: &[String]) -> Result<Self> {
        Self::find_in(Path::new(ROOT), Machine::look()?.cgroup_v1, names)
    }

    fn find_in(root: &Path, version1: bool, names: &[String]) -> Result<Self> {
        let group = |controller: &str| {
            let below = if version1 { root.join(controller) } else { root.to_owned() };
            topmost(&below, names).with_context(|| format!("no control group below {} is called {}", below.display(), names.join(" or ")))
        };
        Ok(Self { memory: group("memory")?, cpu: group("cpuacct")?, version1 })
    }

    /// All processes in it and below.
    ///
    /// # Errors
    /// If there is none: then it is not the group that was looked for.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.memory.clone()];
        while let Some(group) = open.pop() {
            // It may go while it is looked at.
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(processes.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
            open.extend(directories(&group));
        }
        found.first().with_context(|| format!("there is no process in {}", self.memory.display()))?;
        Ok(found)
    }

    /// CPU time that all who were ever in it have used.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn cpu_time(&self) -> Result<Duration> {
        if self.version1 {
            let text = read(&self.cpu.join("cpuacct.usage"))?;
            return Ok(Duration::from_nanos(text.trim().parse().context("cpuacct.usage is no number")?));
        }
        Ok(Duration::from_micros(field(&read(&self.cpu.join("cpu.stat"))?, "usage_usec")?))
    }

    /// Memory that the kernel charges to it and cannot take back at once: what the kubelet calls its working set. Pages that several groups use are charged to
    /// the first of them.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn working_set(&self) -> Result<u64> {
        let (usage, inactive) = if self.version1 { ("memory.usage_in_bytes", "total_inactive_file") } else { ("memory.current", "inactive_file") };
        let usage: u64 = read(&self.memory.join(usage))?.trim().parse().with_context(|| format!("{usage} is no number"))?;
        Ok(usage.saturating_sub(field(&read(&self.memory.join("memory.stat"))?, inactive)?))
    }
}

/// CPU that each of them uses while nothing else is done, in thousandths of a core.
///
/// # Errors
/// A file that cannot be read or understood.
pub fn cpu_over(groups: &[Groups], window: Duration) -> Result<Vec<f64>> {
    let look = || groups.iter().map(|group| Ok((Instant::now(), group.cpu_time()?))).collect::<Result<Vec<_>>>();
    let before = look()?;
    thread::sleep(window);
    let used = |((then, at_first), (now, at_last)): ((Instant, Duration), (Instant, Duration))| {
        at_last.saturating_sub(at_first).as_secs_f64() / (now - then).as_secs_f64() * 1000.0
    };
    Ok(before.into_iter().zip(look()?).map(used).collect())
}

/// The first directory with one of these in its name, by breadth; copies of it below, which containers make for themselves, are not meant.
fn topmost(root: &Path, names: &[String]) -> Option<PathBuf> {
    let mut open = VecDeque::from([root.to_owned()]);
    while let Some(directory) = open.pop_front() {
        for below in directories(&directory) {
            let name = below.file_name()?.to_string_lossy().into_owned();
            if names.iter().any(|wanted| name.contains(wanted.as_str())) {
                return Some(below);
            }
            open.push_back(below);
        }
    }
    None
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(of) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A line of the form `key number`.
fn field(text: &str, key: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("there is no number {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn on_version_1_each_controller_has_a_tree_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "memory/docker/host/kubelet/pod12/cgroup.procs", "");
        write(root, "memory/docker/host/kubelet/pod12/memory.usage_in_bytes", "1000\n");
        write(root, "memory/docker/host/kubelet/pod12/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n");
        write(root, "memory/docker/host/kubelet/pod12/a/cgroup.procs", "41\n0\n42\n");
        write(root, "memory/docker/host/kubelet/pod12/a/pod12/cgroup.procs", "43\n");
        write(root, "cpuacct/docker/host/kubelet/pod12/cpuacct.usage", "5000000\n");
        let groups = Groups::find_in(root, true, &["pod12".to_owned()]).unwrap();
        assert_eq!(groups.processes().unwrap(), BTreeSet::from([41, 42, 43]));
        assert_eq!(groups.working_set().unwrap(), 700);
        assert_eq!(groups.cpu_time().unwrap(), Duration::from_millis(5));
        assert!(Groups::find_in(root, true, &["pod13".to_owned()]).unwrap_err().to_string().contains("pod13"));
    }

    #[test]
    fn on_version_2_there_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "kubepods.slice/kubepods-pod1_2.slice/cgroup.procs", "");
        write(root, "kubepods.slice/kubepods-pod1_2.slice/memory.current", "1000\n");
        write(root, "kubepods.slice/kubepods-pod1_2.slice/memory.stat", "inactive_file 250\n");
        write(root, "kubepods.slice/kubepods-pod1_2.slice/cpu.stat", "usage_usec 77\nuser_usec 70\n");
        let groups = Groups::find_in(root, false, &["pod1-2".to_owned(), "pod1_2".to_owned()]).unwrap();
        assert_eq!(groups.working_set().unwrap(), 750);
        assert_eq!(groups.cpu_time().unwrap(), Duration::from_micros(77));
        assert!(groups.processes().unwrap_err().to_string().contains("no process"));
    }

    #[test]
    fn a_key_is_a_whole_word() {
        assert_eq!(field("total_inactive_file 3\ninactive_file 4", "inactive_file").unwrap(), 4);
        assert!(field("inactive_files 4", "inactive_file").is_err());
    }
}
