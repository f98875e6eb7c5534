//! Gathering the logs of a failed attempt, when the operator asks for them. A list of what is taken, not of what is left out: `kind export logs` takes whole directories,
//! and inspects containers with all that they were given.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use nestling_core::plan::wire::{AgentReport, BUNDLE_SECONDS, DATA_ROOT};
use nix::sys::statvfs::statvfs;
use tokio::process::Command;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::bundle::{Entry, pack};
use super::docker::{Container, Docker};
use super::output::{Tail, last};
use super::{RUN_DIRECTORY, facts, nodes};

/// Time for all looks together; what has not come by then is left out. The rest of [`BUNDLE_SECONDS`] is for the archive.
const LOOK_LIMIT: Duration = Duration::from_secs(BUNDLE_SECONDS - 6);

/// Bytes of the agent's own log that are kept in memory. kind's output, and kubeadm's in it, is a part of that.
const OWN_LIMIT: usize = 256 << 10;

/// Bytes of any other log; a little less than is read of a command's output.
const FILE_LIMIT: usize = 60_000;

/// Time for the list of a node's logs of pods, and for reading them.
const PODS_LIMIT: Duration = Duration::from_secs(5);

/// Nodes that are looked into, and logs of pods in each.
const LOOKED_INTO: (usize, usize) = (4, 12);

/// The journals of a node.
const UNITS: [&str; 2] = ["kubelet", "containerd"];

/// What the pod's control group says, on version 2 and on version 1, and the machine under it.
const NUMBERS: [&str; 26] = [
    "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory.peak",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory.pressure",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu.stat",
    "/sys/fs/cgroup/cpu.pressure",
    "/sys/fs/cgroup/io.pressure",
    "/sys/fs/cgroup/pids.current",
    "/sys/fs/cgroup/pids.max",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    "/sys/fs/cgroup/memory/memory.max_usage_in_bytes",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.failcnt",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.stat",
    "/sys/fs/cgroup/pids/pids.current",
    "/sys/fs/cgroup/pids/pids.max",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/meminfo",
];

static OWN: LazyLock<Tail> = LazyLock::new(|| Tail::new(OWN_LIMIT));

/// The agent's own log: goes to standard error, and the end of it is kept.
#[derive(Debug)]
pub struct OwnLog;

impl Write for OwnLog {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(record).lines() {
            OWN.push(line);
        }
        std::io::stderr().write_all(record)?;
        Ok(record.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Gathers the logs of one cluster.
#[derive(Debug)]
pub struct Logs {
    cluster: String,
    report: watch::Receiver<AgentReport>,
    /// One look at a time.
    busy: Mutex<()>,
}

impl Logs {
    /// Of the cluster of this name.
    pub fn new(cluster: &str, report: watch::Receiver<AgentReport>) -> Self {
        Self { cluster: cluster.to_owned(), report, busy: Mutex::default() }
    }

    /// The archive, within [`BUNDLE_SECONDS`].
    ///
    /// # Errors
    /// None that memory does not give.
    pub async fn archive(&self) -> std::io::Result<Vec<u8>> {
        let _turn = self.busy.lock().await;
        let end = Instant::now() + LOOK_LIMIT;
        let report = self.report.borrow().clone();
        let mut entries =
            vec![Entry::new(&["report.json"], &serde_json::to_string_pretty(&report).unwrap_or_default()), Entry::new(&["agent.log"], &OWN.text())];
        entries.extend(["dockerd.log", "containerd.log"].map(|name| Entry::new(&[name], &end_of(&Path::new(RUN_DIRECTORY).join(name)))));
        let mut looks: FuturesUnordered<BoxFuture<'_, Vec<Entry>>> = FuturesUnordered::new();
        looks.push(of_the_pod().boxed());
        looks.push(processes().boxed());
        looks.push(self.nodes(end).boxed());
        while let Ok(Some(found)) = timeout_at(end, looks.next()).await {
            entries.extend(found);
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let directory = format!("attempt-{}", report.attempt);
        let packed = tokio::task::spawn_blocking(move || pack(&directory, &entries)).await;
        packed.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    /// What Docker and the nodes say; less if that takes too long.
    async fn nodes(&self, end: Instant) -> Vec<Entry> {
        // Time is left for the files that have come.
        let end = end.checked_sub(Duration::from_secs(1)).unwrap_or(end);
        let found = timeout_at(end, async {
            let docker = Docker::connect().await?;
            let containers = docker.containers(&self.cluster).await?;
            Ok::<_, super::docker::Error>((docker, containers))
        });
        let (docker, containers) = match found.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return vec![Entry::new(&["nodes.txt"], &format!("the Docker daemon: {error}\n"))],
            Err(_) => return vec![Entry::new(&["nodes.txt"], "the Docker daemon does not answer\n")],
        };
        let mut entries = vec![Entry::new(&["nodes.txt"], &format!("{containers:#?}\n"))];
        let looks: FuturesUnordered<_> = containers.iter().take(LOOKED_INTO.0).map(|container| node(&docker, container)).collect();
        let mut looks = std::pin::pin!(looks);
        while let Ok(Some(found)) = timeout_at(end, looks.next()).await {
            entries.extend(found);
        }
        entries
    }
}

/// What one node says. Each look in it has a limit of its own, so that one that hangs takes nothing away from the others.
async fn node(docker: &Docker, container: &Container) -> Vec<Entry> {
    let name = container.name.as_str();
    let limit = PODS_LIMIT * 2;
    let printed = async {
        let text = timeout(limit, docker.logs(name, 400)).await.ok()?.ok()?;
        Some(Entry::new(&[name, "serial.log"], &text))
    };
    let journals = join_all(UNITS.map(|unit| async move {
        let script = format!("journalctl --no-pager --output short-iso --lines 2000 --unit {unit} | tail -c {FILE_LIMIT}");
        let text = timeout(limit, docker.output(name, &["sh", "-c", &script])).await.ok()?.ok()?;
        Some(Entry::new(&[name, &format!("{unit}.log")], whole_lines(&text)))
    }));
    let pods = async {
        let script = format!("ls -t /var/log/pods/kube-system_*/*/*.log | head -n {}", LOOKED_INTO.1);
        let listed = timeout(PODS_LIMIT, docker.output(name, &["sh", "-c", &script])).await.ok()?.ok()?;
        let paths: Vec<String> = listed.lines().filter(|line| line.starts_with("/var/log/pods/")).take(LOOKED_INTO.1).map(str::to_owned).collect();
        let looks = paths.iter().map(|path| async move {
            let text = timeout(PODS_LIMIT, docker.output(name, &["tail", "-c", &FILE_LIMIT.to_string(), path])).await.ok()?.ok()?;
            Some(Entry::new(&[name, "kube-system", path.trim_start_matches("/var/log/pods/kube-system_")], whole_lines(&text)))
        });
        Some(join_all(looks).await)
    };
    if !container.running || container.paused || container.role == nodes::LOAD_BALANCER {
        return printed.await.into_iter().collect();
    }
    let (printed, journals, pods) = tokio::join!(printed, journals, pods);
    printed.into_iter().chain(journals.into_iter().flatten()).chain(pods.into_iter().flatten().flatten()).collect()
}

/// A text that was cut to [`FILE_LIMIT`] bytes, without the line that was cut: half of a secret is not known for one.
fn whole_lines(text: &str) -> &str {
    if text.len() < FILE_LIMIT { text } else { text.split_once('\n').map_or("", |(_, whole)| whole) }
}

/// The machine as the checks see it, the pod's control group, its disks.
async fn of_the_pod() -> Vec<Entry> {
    let read = tokio::task::spawn_blocking(|| {
        let mut numbers = String::new();
        for path in NUMBERS {
            if let Ok(text) = fs::read_to_string(path) {
                let _ = writeln!(numbers, "==> {path}\n{}", text.trim_end());
            }
        }
        for path in [DATA_ROOT, RUN_DIRECTORY] {
            if let Ok(seen) = statvfs(path) {
                let bytes = |blocks: u64| blocks.saturating_mul(seen.fragment_size());
                let _ = writeln!(
                    numbers,
                    "==> {path}\nbytes {} free {} available {}, inodes {} free {}",
                    bytes(seen.blocks()),
                    bytes(seen.blocks_free()),
                    bytes(seen.blocks_available()),
                    seen.files(),
                    seen.files_free()
                );
            }
        }
        vec![Entry::new(&["pod.txt"], &numbers), Entry::new(&["host.txt"], &format!("{:#?}\n", facts::gather(DATA_ROOT)))]
    });
    read.await.unwrap_or_default()
}

/// The processes of the pod, without their arguments, which may hold secrets. A daemon that was stopped, or waits for a disk, shows in its state.
async fn processes() -> Vec<Entry> {
    let look = Command::new("ps").args(["-eo", "pid,ppid,stat,etime,rss,comm"]).stdin(Stdio::null()).kill_on_drop(true).output().await;
    look.map(|output| vec![Entry::new(&["processes.txt"], &String::from_utf8_lossy(&output.stdout))]).unwrap_or_default()
}

/// The end of a file of text.
fn end_of(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    last(&text, OWN_LIMIT).to_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use nestling_core::api::reasons::Reason;
    use nestling_core::plan::wire::BUNDLE_LIMIT;
    use std::io::Read;

    use crate::agent::failure::failure;
    use crate::agent::report::Report;
    use crate::agent::report::tests::settings;

    /// Logs of a cluster that has failed so.
    pub fn logs_of(message: &str) -> Logs {
        let report = Report::new(&settings());
        report.fail(failure(Reason::KindFailed, message));
        Logs::new("demo", report.subscribe())
    }

    #[test]
    fn a_line_that_was_cut_is_left_out() {
        assert_eq!(whole_lines("whole\nlines"), "whole\nlines");
        let cut = format!("half a secret\n{}", "x".repeat(FILE_LIMIT));
        assert_eq!(whole_lines(&cut).len(), FILE_LIMIT);
        assert_eq!(whole_lines(&"x".repeat(FILE_LIMIT)), "");
    }

    #[tokio::test]
    async fn logs_are_to_be_had_without_docker_and_hold_no_secret() {
        OwnLog.write_all(b"kind printed a line\nand --token abcdef.1123456789abcdef to join with\n").unwrap();
        let packed = logs_of("no daemon").archive().await.unwrap();
        assert!(packed.len() <= BUNDLE_LIMIT);
        let mut text = String::new();
        GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
        for part in ["attempt-2/report.json", "no daemon", "attempt-2/agent.log", "kind printed a line", "attempt-2/host.txt", "attempt-2/pod.txt", "nodes.txt"]
        {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("abcdef.1123456789abcdef"));
    }
}
