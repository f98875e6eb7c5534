//! The disk of the virtual machine: Debian with its own kernel and systemd as the host's node, and in `/pod` the root file system of a
//! node pod without the program under test.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;
use crate::node_store::STORE_ARCHIVE;
use crate::part::Part;
use crate::workshop::Workshop;

/// Files of the finished part.
pub const DISK: &str = "disk.ext4";
/// The kernel, out of the root itself.
pub const KERNEL: &str = "vmlinuz";
/// The first root file system, out of the root itself.
pub const INITRD: &str = "initrd";

/// Room beside the content: logs, and what a pod writes outside of its volumes.
const SPARE: u64 = 1 << 30;

/// Makes the disk. `mkfs.ext4 -d` fills it, so that nothing is mounted on this machine.
pub fn make(workshop: &Workshop) -> Result<()> {
    let tree = tempfile::tempdir_in(workshop.out)?;
    let root = tree.path();
    unpack(&workshop.part(Part::VmRoot)?.join("root.tar"), root)?;
    for (prefix, name) in [("vmlinuz-", KERNEL), ("initrd.img-", INITRD)] {
        fs::copy(boot_file(root, prefix)?, workshop.out.join(name))?;
    }
    for (part, program) in [(Part::Runc, "runc"), (Part::KubernetesApi, "kubectl")] {
        fs::copy(workshop.program(part, program)?, root.join("usr/local/bin").join(program))?;
    }
    install_job(root)?;
    pod_root(workshop, &root.join("pod"))?;

    let disk = workshop.out.join(DISK);
    let content = output(Command::new("du").args(["-s", "--block-size=1"]).arg(root))?;
    let content: u64 = content.split_whitespace().next().unwrap_or_default().parse().context("du printed no number")?;
    // A tenth for the file system's own tables.
    fs::File::create(&disk)?.set_len((content + content / 10 + SPARE).next_multiple_of(1 << 20))?;
    output(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(root).arg(&disk)).map(drop)
}

/// What is in the node pod's image but the program, at the same paths.
fn pod_root(workshop: &Workshop, pod: &Path) -> Result<()> {
    fs::create_dir_all(pod)?;
    unpack(&workshop.part(Part::DindRoot)?.join("root.tar"), pod)?;
    fs::copy(workshop.program(Part::Kind, "kind")?, pod.join("usr/local/bin/kind"))?;
    carry_node_image(workshop, pod)
}

fn carry_node_image(workshop: &Workshop, pod: &Path) -> Result<()> {
    let store = pod.join("opt/nestling/store");
    fs::create_dir_all(&store)?;
    unpack(&workshop.part(Part::NodeStore)?.join(STORE_ARCHIVE), &store)
}

fn install_job(root: &Path) -> Result<()> {
    let program = root.join("usr/local/sbin/job");
    fs::write(&program, include_str!("../scripts/vm/job.sh"))?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    fs::write(units.join("job.service"), include_str!("../scripts/vm/job.service"))?;
    std::os::unix::fs::symlink("../job.service", units.join("multi-user.target.wants/job.service"))?;
    // A login prompt would reset the lines that log and findings go over.
    for line in ["ttyS0", "ttyS1"] {
        std::os::unix::fs::symlink("/dev/null", units.join(format!("serial-getty@{line}.service")))?;
    }
    Ok(fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults 0 0\n")?)
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    output(Command::new("tar").args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]).arg(archive).arg("-C").arg(to)).map(drop)
}

fn boot_file(root: &Path, prefix: &str) -> Result<std::path::PathBuf> {
    let entries = fs::read_dir(root.join("boot"))?.collect::<std::io::Result<Vec<_>>>()?;
    let found = entries.into_iter().find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    Ok(found.with_context(|| format!("the root has no /boot/{prefix}*"))?.path())
}
