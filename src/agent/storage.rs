//! How full the data-root is. An ephemeral volume shares a disk with the host, so the file system does not know the pod's limit, and neither do the nested kubelets:
//! the host's kubelet adds up what the files take and evicts the whole cluster when it is too much. So does this, to say so before. A persistent volume with a file
//! system of its own knows better; but many are directories on the host's disk, which nothing bounds.

use std::convert::Infallible;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nestling_core::plan::wire::{AgentSettings, DATA_ROOT, StoragePressure};
use nix::sys::statvfs::statvfs;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::facts::Facts;
use super::report::Report;

/// Pause between two looks, which go through all files. The host's kubelet looks every minute.
const PAUSE: Duration = Duration::from_secs(30);

/// Time for one look.
const LOOK_LIMIT: Duration = Duration::from_mins(2);

/// Percent of the limit from which on there is pressure, and below which there is none any more.
const PRESSURE: (i64, i64) = (80, 75);

/// Said of a persistent volume that nothing bounds.
pub const SHARED: &str =
    "The volume is a directory on a larger file system, perhaps the host's own: nothing holds the cluster to storage.size, and its nodes do not clean up.";

/// A provisioner may round up, and a volume that was there before may be larger than what was asked for. So many times larger it is not the cluster's own.
const LARGER: u64 = 2;

/// Whether the data-root is a file system of the cluster's own.
pub fn is_own(settings: &AgentSettings, facts: &Facts) -> bool {
    let asked = u64::try_from(settings.limits.storage_bytes).unwrap_or(0);
    settings.persistent && !facts.disk_shared && facts.disk_size.is_some_and(|size| size <= asked.saturating_mul(LARGER))
}

/// Looks again and again, for ever: at the file system, if it is the cluster's `own`, or else at all files, which may take `limit` bytes together.
pub async fn watch(own: bool, limit: i64, report: &Report) -> Infallible {
    loop {
        let seen = if own { of_file_system(Path::new(DATA_ROOT)) } else { used().await.map(|used| (used, limit)) };
        if let Some((used, limit)) = seen {
            report.update(|report| report.storage_pressure = judge(used, limit, report.storage_pressure));
        } else {
            tracing::warn!("cannot tell how much the data-root holds");
        }
        sleep(PAUSE).await;
    }
}

/// Whether there is pressure. What was seen first stays until it is over: a report that changes with each byte would keep the operator busy.
fn judge(used: i64, limit: i64, before: Option<StoragePressure>) -> Option<StoragePressure> {
    let threshold = limit / 100 * if before.is_some() { PRESSURE.1 } else { PRESSURE.0 };
    (used >= threshold).then(|| before.unwrap_or(StoragePressure { used_bytes: used, limit_bytes: limit }))
}

/// Bytes that are used of a file system, and that it can hold, without those that are kept for emergencies.
fn of_file_system(root: &Path) -> Option<(i64, i64)> {
    let seen = statvfs(root).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(seen.fragment_size())).ok();
    let used = bytes(seen.blocks().saturating_sub(seen.blocks_free()))?;
    Some((used, used.checked_add(bytes(seen.blocks_available())?)?))
}

/// Bytes that files below the data-root take on its own file system. What is linked there from the pod image is not the volume's.
async fn used() -> Option<i64> {
    let look = Command::new("nice").args(["-n", "19", "du", "-s", "-x", "--block-size=1", DATA_ROOT]).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(LOOK_LIMIT, look).await.ok()?.ok()?;
    // Files come and go while it looks, which it reports as failures.
    String::from_utf8_lossy(&output.stdout).split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::preflight::tests::fit;
    use crate::agent::report::tests::settings;
    use rstest::rstest;

    #[rstest]
    #[case(true, false, Some(10 << 30), true)]
    #[case(true, false, Some(20 << 30), true)]
    #[case(true, false, Some((20 << 30) + 1), false)]
    #[case(true, false, None, false)]
    #[case(true, true, Some(10 << 30), false)]
    #[case(false, false, Some(10 << 30), false)]
    fn a_volume_is_its_own_if_it_is_about_as_large_as_asked_for(
        #[case] persistent: bool,
        #[case] disk_shared: bool,
        #[case] disk_size: Option<u64>,
        #[case] expected: bool,
    ) {
        let settings = AgentSettings { persistent, ..settings() };
        assert_eq!(is_own(&settings, &Facts { disk_shared, disk_size, ..fit() }), expected);
    }

    #[test]
    fn a_file_system_tells_how_full_it_is() {
        let (used, limit) = of_file_system(Path::new("/")).unwrap();
        assert!(0 < used && used <= limit, "{used} of {limit}");
        assert_eq!(of_file_system(Path::new("/none")), None);
    }

    const SEEN: Option<StoragePressure> = Some(StoragePressure { used_bytes: 850, limit_bytes: 1000 });

    #[rstest]
    #[case(799, None, None)]
    #[case(850, None, SEEN)]
    #[case(990, SEEN, SEEN)]
    #[case(760, SEEN, SEEN)]
    #[case(749, SEEN, None)]
    fn pressure_comes_at_one_mark_and_goes_at_a_lower_one(
        #[case] used: i64,
        #[case] before: Option<StoragePressure>,
        #[case] expected: Option<StoragePressure>,
    ) {
        assert_eq!(judge(used, 1000, before), expected);
    }
}
