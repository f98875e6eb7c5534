//! Bounded waits that say what they waited for.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use kube::{Api, Resource};
use nestling_core::api::KindCluster;
use nestling_core::api::conditions;

/// Bound for what the garbage collector removes: it looks for new kinds of owners every 30 s (`kube-controller-manager`), and a test's kinds are new.
pub const COLLECTED: Duration = Duration::from_mins(2);

/// Polls until `check` gives a value.
pub async fn until<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) if start.elapsed() > limit => panic!("waited {limit:?} for {what}; last: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Waits until a condition of a `KindCluster` has this status and reason (any, if `None`).
pub async fn condition(api: &Api<KindCluster>, name: &str, type_: &str, status: &str, reason: Option<&str>, limit: Duration) -> KindCluster {
    until(&format!("{name}: {type_}={status} {}", reason.unwrap_or("")), limit, async || {
        let cluster = api.get(name).await.map_err(|error| error.to_string())?;
        let have = cluster.status.as_ref().and_then(|status| conditions::get(&status.conditions, type_)).cloned();
        match have {
            Some(have) if have.status == status && reason.is_none_or(|reason| have.reason == reason) => Ok(cluster),
            _ => Err(describe(&cluster)),
        }
    })
    .await
}

/// Waits until an object is gone.
pub async fn gone<K>(api: &Api<K>, name: &str, limit: Duration)
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned,
{
    until(&format!("{name} to be gone"), limit, async || match api.get_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(object)) => Err(format!("{:?}", object.meta())),
        Err(error) => Err(error.to_string()),
    })
    .await;
}

/// The conditions of a `KindCluster`, one per line.
pub fn describe(cluster: &KindCluster) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let lines: Vec<String> = status.conditions.iter().map(|have| format!("{}={} {} {}", have.type_, have.status, have.reason, have.message)).collect();
    format!("attempt {:?}\n{}\nlast failure {:?}", status.attempt, lines.join("\n"), status.last_failure)
}
