//! Kubelets that have given up hurrying.
//!
//! A kubelet that finds no API server tries again after pauses that double from 0.1 to 7 s (`registerWithAPIServer`), and until then its node is not ready, however long the API server has
//! answered. A kubelet that starts anew tries at once, and leaves its pods running.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::docker::Docker;
use super::nested::Nested;

/// Time for a kubelet to come by itself, after the API server answers.
const GRACE: Duration = Duration::from_secs(1);

/// Starts the kubelets of these nodes anew that have said nothing `since`, though the API server answers.
pub async fn hasten(docker: &Docker, nested: &Nested, nodes: &[String], since: Timestamp) {
    sleep(GRACE).await;
    for node in nodes {
        // Who cannot be asked is left alone: this is for speed only.
        if !nested.has_spoken(node, since).await.unwrap_or(true) {
            tracing::info!(node, "its kubelet waits for a time of its own and is started anew");
            if let Err(error) = docker.run(node, &["systemctl", "try-restart", "kubelet"]).await {
                tracing::warn!(node, "its kubelet cannot be started anew: {error}");
            }
        }
    }
}
