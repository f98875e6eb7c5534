//! A virtual machine with what nearly all users have and a test machine may not: cgroup v2 alone, and every capability.
//!
//! It needs no hardware support: without it the processor is emulated, some twenty times slower. The guest does not notice: its clock then goes by
//! the instructions that it has executed, a nanosecond each, so that no time limit in it depends on what else this machine is doing. A job goes in
//! as an archive on the second disk and is run by the guest; the third disk is empty. What it finds comes back over the second serial line as lines of text:
//!
//! ```text
//! RESULT <name> pass|fail <detail>
//! FACT <name> <text>
//! END <exit code of the job>
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Need};
use crate::command::{last_lines, output};
use crate::lab::LabPaths;
use crate::part::Part;
use crate::progress::note;
use crate::vm_disk::{DISK, INITRD, KERNEL};

/// Memory of the machine in MiB.
pub const MEMORY: u32 = 6144;

/// Size of the empty disk in bytes; it takes only what is written to it.
const SCRATCH: u64 = 24 << 30;

const POLL: Duration = Duration::from_millis(500);

/// What one run of the machine does.
pub struct Job<'a> {
    /// Its name; the logs are kept under it until the next run.
    pub name: &'a str,
    /// The directory that the guest gets. It runs `run` in it.
    pub directory: &'a Path,
    /// Time after which the machine is ended.
    pub limit: Duration,
}

/// One finding of a job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether it was as it should be.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// What a job has told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The findings, in order.
    pub findings: Vec<Finding>,
    /// Facts worth keeping: versions, options, times.
    pub facts: Vec<(String, String)>,
    /// The job's exit code, if it came to its end.
    pub end: Option<i32>,
}

impl Outcome {
    /// Reads what the guest has written. The last line may be half a line.
    fn parse(text: &str) -> Self {
        let mut outcome = Self::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::trim) {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            match kind {
                "RESULT" => {
                    let (verdict, detail) = rest.split_once(' ').unwrap_or((rest, ""));
                    outcome.findings.push(Finding { name: name.to_owned(), passed: verdict == "pass", detail: detail.to_owned() });
                }
                "FACT" => outcome.facts.push((name.to_owned(), rest.to_owned())),
                "END" => outcome.end = name.parse().ok(),
                _ => {}
            }
        }
        outcome
    }

    /// The finding of this name.
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.name == name)
    }
}

/// Runs a job to its end; an error holds the last lines of the machine's log.
pub fn run(paths: &LabPaths, job: &Job) -> Result<Outcome> {
    apt::ensure(&[Need::Qemu])?;
    let directory = paths.cache().run_directory()?.join("vm").join(job.name);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let archive = directory.join("job.tar");
    output(Command::new("tar").args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg("-C").arg(job.directory).arg("."))?;
    let scratch = directory.join("scratch.raw");
    File::create(&scratch)?.set_len(SCRATCH)?;

    let machine = Machine { log: directory.join("console.log"), findings: directory.join("findings.log") };
    let result = machine.run(paths.part(Part::VmDisk)?, &archive, &scratch, job);
    // The logs stay; these would fill the disk, and the archive holds keys.
    for file in [archive, scratch] {
        fs::remove_file(file)?;
    }
    result
}

struct Machine {
    log: PathBuf,
    findings: PathBuf,
}

impl Machine {
    fn run(&self, part: &Path, archive: &Path, scratch: &Path, job: &Job) -> Result<Outcome> {
        let start = Instant::now();
        let accelerator = if hardware() { "kvm" } else { "tcg" };
        note(format!("the virtual machine runs {} ({accelerator}); its log is {}", job.name, self.log.display()));
        let mut guest = Guest(self.command(part, archive, scratch, job.limit, accelerator).spawn().context("cannot start qemu")?);
        let mut told = 0;
        let status = loop {
            let outcome = self.read();
            for finding in &outcome.findings[told..] {
                note(format!(
                    "{:8.1} s  {}  {}: {}",
                    start.elapsed().as_secs_f64(),
                    if finding.passed { "good" } else { "BAD " },
                    finding.name,
                    finding.detail
                ));
            }
            told = outcome.findings.len();
            if let Some(status) = guest.0.try_wait()? {
                break status;
            }
            if start.elapsed() > job.limit {
                bail!("the virtual machine did not end within {} s; the last of its log:\n{}", job.limit.as_secs(), self.log_tail());
            }
            thread::sleep(POLL);
        };
        let mut outcome = self.read();
        if !status.success() || outcome.end.is_none() {
            bail!("the virtual machine ended with {status} before its job; the last of its log:\n{}", self.log_tail());
        }
        outcome.facts.push(("run".to_owned(), format!("{:.0} s, {accelerator}", start.elapsed().as_secs_f64())));
        Ok(outcome)
    }

    fn command(&self, part: &Path, archive: &Path, scratch: &Path, limit: Duration, accelerator: &str) -> Command {
        let disk = |file: &Path, more: &str| format!("file={},format=raw,if=virtio,cache=unsafe{more}", file.display());
        // A bound of its own: the machine must not outlive a test that was killed.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &(limit.as_secs() + 30).to_string(), "qemu-system-x86_64"]);
        let mut processor = "max";
        if accelerator == "tcg" {
            command.args(["-icount", "shift=0"]);
            // QEMU 7.2 once left rax in the flags behind a cmpxchg16b of the kernel's allocator, which ended in a double fault; the kernel does without.
            processor = "max,-cx16";
        }
        command.args(["-accel", accelerator, "-cpu", processor, "-smp", "2", "-m", &MEMORY.to_string()]);
        command.arg("-kernel").arg(part.join(KERNEL)).arg("-initrd").arg(part.join(INITRD));
        // Whatever the kernel has to say of a process that it kills belongs into dmesg, not into the middle of a line.
        command.args(["-append", "root=/dev/vda rw console=ttyS0 loglevel=2 mitigations=off systemd.show_status=false panic=-1"]);
        // The part stays as it is: writes go to a file that nobody sees.
        for drive in [disk(&part.join(DISK), ",snapshot=on"), disk(archive, ",readonly=on"), disk(scratch, "")] {
            command.arg("-drive").arg(drive);
        }
        for file in [&self.log, &self.findings] {
            command.arg("-serial").arg(format!("file:{}", file.display()));
        }
        command.args(["-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none"]);
        command.env("TMPDIR", self.log.parent().unwrap_or(Path::new("/var/tmp"))).stdin(Stdio::null());
        command
    }

    fn read(&self) -> Outcome {
        Outcome::parse(&String::from_utf8_lossy(&fs::read(&self.findings).unwrap_or_default()))
    }

    fn log_tail(&self) -> String {
        last_lines(&String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()), 40)
    }
}

/// A machine that ends when nobody waits for it any more.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // `timeout` hands SIGTERM on, which SIGKILL would not.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Whether the processor can run a machine itself. `/dev/kvm` alone does not tell: it may be there for kernels of a special kind only.
fn hardware() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_read() {
        let outcome = Outcome::parse("RESULT a pass all well\r\nnoise\nRESULT b fail\nFACT kernel 6.12 x\nEND 0\nRESULT c pa");
        let finding = |name: &str, passed, detail: &str| Finding { name: name.into(), passed, detail: detail.into() };
        assert_eq!(outcome.findings, [finding("a", true, "all well"), finding("b", false, "")]);
        assert_eq!(outcome.facts, [("kernel".to_owned(), "6.12 x".to_owned())]);
        assert_eq!(outcome.end, Some(0));
        assert!(outcome.finding("c").is_none(), "half a line is no finding yet");
    }
}
