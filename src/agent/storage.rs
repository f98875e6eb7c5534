//! How full the data-root is. Its volume shares a disk with the host, so the file system does not know the pod's limit, and neither do the nested kubelets: the
//! host's kubelet adds up what the files take and evicts the whole cluster when it is too much. So does this, to say so before.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::Duration;

use nestling_core::plan::wire::{DATA_ROOT, StoragePressure};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::report::Report;

/// Pause between two looks, which go through all files. The host's kubelet looks every minute.
const PAUSE: Duration = Duration::from_secs(30);

/// Time for one look.
const LOOK_LIMIT: Duration = Duration::from_mins(2);

/// Percent of the limit from which on there is pressure, and below which there is none any more.
const PRESSURE: (i64, i64) = (80, 75);

/// Looks again and again, for ever.
pub async fn watch(limit: i64, report: &Report) -> Infallible {
    loop {
        if let Some(used) = used().await {
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
    use rstest::rstest;

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
