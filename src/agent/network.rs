//! The pod's network: which iptables works, and forwarding.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nestling_core::api::reasons::Reason;
use nestling_core::plan::wire::AgentFailure;
use tokio::process::Command;
use tokio::time::timeout;

use super::RUN_DIRECTORY;
use super::failure::{evident, failure};

/// A command of iptables takes milliseconds; this is for a kernel that loads a module.
const LIMIT: Duration = Duration::from_secs(10);

/// The chain that a probe makes and removes.
const PROBE: &str = "NESTLING-PROBE";

/// The programs that must agree on one backend.
const PROGRAMS: [&str; 6] = ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// Where distributions put them.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The kernel interface behind iptables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Backend {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Backend {
    /// Name of one of [`PROGRAMS`] for this backend: `iptables-save` is `iptables-nft-save`.
    fn program(self, name: &str) -> String {
        let suffix = match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        };
        match name.split_once('-') {
            Some((family, verb)) => format!("{family}-{suffix}-{verb}"),
            None => format!("{name}-{suffix}"),
        }
    }

    /// Where that program is, if it is installed.
    fn path(self, name: &str) -> Option<PathBuf> {
        let program = self.program(name);
        DIRECTORIES.iter().map(|place| Path::new(place).join(&program)).find(|path| path.exists())
    }
}

/// In which order to try. Rules of both kinds side by side contradict each other, so tables that are already in use decide, as in
/// docker-library's `dockerd-entrypoint.sh`. `names` is `/proc/net/ip_tables_names`: the legacy tables of this network namespace.
fn order(names: &str) -> [Backend; 2] {
    if names.trim().is_empty() { [Backend::Nft, Backend::Legacy] } else { [Backend::Legacy, Backend::Nft] }
}

/// Makes the backend that works the one that Docker finds; the result is the directory that must come first in Docker's `PATH`. Also turns
/// forwarding on.
///
/// # Errors
/// [`Reason::IptablesUnavailable`], with what each backend said.
pub async fn prepare() -> Result<PathBuf, AgentFailure> {
    // The pod's own namespace only. Docker would do it as well, and fails less clearly where it cannot.
    let _ = fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    let backend = choose().await?;
    tracing::info!(?backend, "iptables works");
    let directory = Path::new(RUN_DIRECTORY).join("bin");
    link(backend, &directory).map_err(|error| failure(Reason::IptablesUnavailable, format!("cannot select the iptables backend: {error}")))?;
    Ok(directory)
}

/// Finds a backend that works.
async fn choose() -> Result<Backend, AgentFailure> {
    let mut said = String::new();
    for backend in order(&fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default()) {
        match probe(backend).await {
            Ok(()) => return Ok(backend),
            Err(error) => said = format!("{said}{backend:?}: {error}\n"),
        }
    }
    Err(evident(Reason::IptablesUnavailable, "no iptables backend can make a chain in the nat table", &said))
}

/// Does what Docker will do: a chain in the nat table, with the matches that it uses.
async fn probe(backend: Backend) -> Result<(), String> {
    let program = backend.program("iptables");
    let nat = async |arguments: &[&str]| {
        let run = Command::new(&program).args(["--wait", "-t", "nat"]).args(arguments).kill_on_drop(true).output();
        match timeout(LIMIT, run).await {
            Ok(Ok(Output { status, .. })) if status.success() => Ok(()),
            Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Ok(Err(error)) => Err(format!("cannot run {program}: {error}")),
            Err(_) => Err(format!("{program} did not end within {} s", LIMIT.as_secs())),
        }
    };
    // A probe that was interrupted may have left it.
    let _ = nat(&["-X", PROBE]).await;
    nat(&["-N", PROBE]).await?;
    let matched = nat(&["-A", PROBE, "-m", "conntrack", "--ctstate", "RELATED", "-m", "comment", "--comment", PROBE, "-j", "RETURN"]).await;
    let _ = nat(&["-F", PROBE]).await;
    let _ = nat(&["-X", PROBE]).await;
    matched
}

/// Makes a directory in which each of [`PROGRAMS`] is the backend's.
pub(super) fn link(backend: Backend, directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for name in PROGRAMS {
        let link = directory.join(name);
        let _ = fs::remove_file(&link);
        if let Some(target) = backend.path(name) {
            symlink(target, link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::alone::{is_root, run_alone};
    use rstest::rstest;

    #[rstest]
    #[case(Backend::Nft, "iptables", "iptables-nft")]
    #[case(Backend::Legacy, "ip6tables-restore", "ip6tables-legacy-restore")]
    fn programs_are_named(#[case] backend: Backend, #[case] name: &str, #[case] expected: &str) {
        assert_eq!(backend.program(name), expected);
    }

    #[test]
    fn tables_in_use_decide() {
        assert_eq!(order("")[0], Backend::Nft);
        assert_eq!(order("nat\nfilter\n")[0], Backend::Legacy);
    }

    /// Whether the kernel has a backend: it lists the nat table, which makes the legacy one's as well.
    fn list(backend: Backend) -> bool {
        std::process::Command::new(backend.program("iptables")).args(["-t", "nat", "-L", "-n"]).output().is_ok_and(|output| output.status.success())
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own"]
    async fn in_a_fresh_namespace() {
        for (backend, is_there) in [Backend::Nft, Backend::Legacy].map(|backend| (backend, list(backend))) {
            if is_there {
                probe(backend).await.unwrap();
            } else {
                println!("skipped: the kernel has no {backend:?}");
            }
        }
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own"]
    async fn in_a_namespace_with_nft_alone() {
        assert_eq!(choose().await.unwrap(), Backend::Nft);
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own"]
    async fn in_a_namespace_with_legacy_tables() {
        assert!(list(Backend::Legacy));
        assert_eq!(choose().await.unwrap(), Backend::Legacy);
    }

    #[tokio::test]
    #[ignore = "needs a network namespace of its own"]
    async fn without_the_right_to_change_tables() {
        let failure = choose().await.unwrap_err();
        assert_eq!(failure.reason, Reason::IptablesUnavailable);
        assert!(failure.log_tail.contains("Nft: ") && failure.log_tail.contains("Legacy: "), "{failure:?}");
    }

    /// Each kind does on this kernel what Docker will ask of it, the one in use is taken, and where neither works both are quoted.
    #[rstest]
    #[case::both(&[], "in_a_fresh_namespace")]
    #[case::nft(&[], "in_a_namespace_with_nft_alone")]
    #[case::legacy(&[], "in_a_namespace_with_legacy_tables")]
    #[case::neither(&["setpriv", "--bounding-set=-net_admin"], "without_the_right_to_change_tables")]
    fn the_kernel_has_the_last_word(#[case] without: &[&str], #[case] test: &str) {
        if !is_root() {
            return;
        }
        if [Backend::Nft, Backend::Legacy].iter().any(|backend| backend.path("iptables").is_none()) {
            println!("skipped: there is no iptables of both kinds here");
            return;
        }
        run_alone(&[&["unshare", "--net"], without].concat(), &format!("agent::network::tests::{test}"));
    }
}
