//! `nestling freeze`, `stop` and `start`.

use std::io::Write;

use anyhow::Result;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use nestling_core::api::PowerState;
use serde_json::json;
use tokio::time::Instant;

use super::host::connect;
use super::select::{answer, api, select};
use super::{Goal, HostArgs, PowerArgs, wait};

/// Asks for this state.
pub async fn run(host: HostArgs, args: PowerArgs, state: PowerState) -> Result<()> {
    let started = Instant::now();
    let host = connect(host).await?;
    let names: Vec<String> = select(&host, &args.selection).await?.iter().map(ResourceExt::name_any).collect();
    let patch = Patch::Merge(json!({"spec": {"powerState": state}}));
    for name in &names {
        let what = format!("change KindCluster {}/{name}", host.namespace);
        api(&host).patch(name, &PatchParams::default(), &patch).await.map_err(|error| answer(error, &what))?;
        writeln!(std::io::stdout(), "{}", told(name, state))?;
    }
    if let Some(limit) = args.wait {
        let goal = if state == PowerState::Running { Goal::Ready } else { Goal::Suspended };
        wait::until(&host, &names, goal, limit, started).await?;
    }
    Ok(())
}

fn told(name: &str, state: PowerState) -> String {
    let what = match state {
        PowerState::Running => "is started",
        PowerState::Frozen => "is frozen once it has been ready",
        PowerState::Stopped => "is stopped once it has been ready",
    };
    format!("{name} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let told = [PowerState::Frozen, PowerState::Stopped, PowerState::Running].map(|state| told("crane", state));
        assert_eq!(told, ["crane is frozen once it has been ready", "crane is stopped once it has been ready", "crane is started"]);
    }
}
