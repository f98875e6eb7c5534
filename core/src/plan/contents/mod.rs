//! What is to be in a cluster beside what kind puts there: manifests, and what else is to be so before it counts as ready.
//!
//! The agent is given all of it at once, and says what it has. What it has applied is noted inside the cluster itself, so that neither an operator nor an
//! agent that begins anew applies anything twice, and a cluster that is new gets everything.

mod read;

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

pub use read::{Unreadable, read};

use super::desired::short_digest;
use super::names::Identity;
use super::observed::Observed;
use super::problem::Problem;
use super::references::{References, is_fresh};
use super::settings::Settings;
use super::wire::{AgentReport, CONTENTS_LIMIT, Contents, Edition, GateReport, ManifestReport, ManifestState, ManifestText};
use crate::api::conditions::{self, Claim, clip};
use crate::api::reasons::Reason;
use crate::api::{DeploymentReference, KindCluster, KindClusterStatus, Manifest, Readiness, annotations};

/// Type of the Secrets that hold manifests. No other is read: who may create a KindCluster must not be able to look into any Secret by that way.
pub const SECRET_TYPE: &str = "nestling.dev/manifests";

/// Longest text of an agent that is passed on, in bytes.
const TEXT_LIMIT: usize = 512;

/// What the agent is to be given, and what has to be read for that.
#[derive(Clone, Debug, PartialEq)]
pub struct ContentsPlan {
    /// Where what is referred to is.
    pub references: References,
    /// The manifests, in order.
    pub sources: Vec<Source>,
    edition: Edition,
    reapply: String,
    readiness: Readiness,
}

/// One manifest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub origin: Origin,
}

/// Where a manifest is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// In the spec.
    Inline(String),
    /// In a ConfigMap of this name.
    ConfigMap(String),
    /// In a Secret of this name.
    Secret(String),
}

/// What is waited for before a cluster is ready for the first time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Gate {
    /// Names are resolved.
    Dns,
    /// A Deployment is available.
    Deployment(DeploymentReference),
}

impl fmt::Display for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns => formatter.write_str("dns"),
            Self::Deployment(deployment) => write!(formatter, "Deployment {}/{}", deployment.namespace, deployment.name),
        }
    }
}

/// All that is waited for.
pub fn gates(readiness: &Readiness) -> Vec<Gate> {
    let dns = readiness.dns.then_some(Gate::Dns);
    dns.into_iter().chain(readiness.deployments.iter().cloned().map(Gate::Deployment)).collect()
}

/// Refuses manifests in the spec itself that cannot be read, or that hold what must not be seen.
///
/// # Errors
/// [`Reason::ManifestUnreadable`] and [`Reason::InlineSecret`], naming the manifest.
pub fn check(manifests: &[Manifest]) -> Result<(), Problem> {
    for Manifest { name, inline, .. } in manifests {
        let Some(text) = inline else { continue };
        let objects = read(text).map_err(|error| Problem::new(Reason::ManifestUnreadable, format!("manifests[{name}].inline {error}")))?;
        let filled = |field: &serde_json::Value| field.as_object().is_some_and(|entries| !entries.is_empty());
        let holds = |object: &&serde_json::Value| {
            object["kind"] == "Secret" && object["apiVersion"] == "v1" && (filled(&object["data"]) || filled(&object["stringData"]))
        };
        if let Some(secret) = objects.iter().find(holds) {
            let secret = secret["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Problem::new(Reason::InlineSecret, format!("manifests[{name}].inline holds the Secret {}", clip(secret, TEXT_LIMIT))));
        }
    }
    Ok(())
}

/// What the object says of its contents, as a digest; empty if it says nothing.
fn list(cluster: &KindCluster) -> String {
    let readiness = cluster.spec.readiness.clone().unwrap_or_default();
    if cluster.spec.manifests.is_empty() && gates(&readiness).is_empty() {
        return String::new();
    }
    short_digest(&json!([cluster.spec.manifests, readiness, reapply(cluster)]).to_string())
}

fn reapply(cluster: &KindCluster) -> String {
    cluster.metadata.annotations.as_ref().and_then(|all| all.get(annotations::REAPPLY)).cloned().unwrap_or_default()
}

/// What the agent is to be given.
pub fn plan(now: Timestamp, cluster: &KindCluster, identity: &Identity, settings: &Settings) -> ContentsPlan {
    let source = |manifest: &Manifest| {
        let origin = match manifest {
            Manifest { config_map_ref: Some(reference), .. } => Origin::ConfigMap(reference.name.clone()),
            Manifest { secret_ref: Some(reference), .. } => Origin::Secret(reference.name.clone()),
            Manifest { inline, .. } => Origin::Inline(inline.clone().unwrap_or_default()),
        };
        Source { name: manifest.name.clone(), origin }
    };
    ContentsPlan {
        references: References::of(identity, settings),
        sources: cluster.spec.manifests.iter().map(source).collect(),
        edition: Edition { list: list(cluster), read_at: Some(now) },
        reapply: reapply(cluster),
        readiness: cluster.spec.readiness.clone().unwrap_or_default(),
    }
}

impl ContentsPlan {
    /// With what was read.
    ///
    /// # Errors
    /// [`Reason::ManifestsTooLarge`].
    pub fn contents(&self, manifests: Vec<ManifestText>) -> Result<Contents, Problem> {
        let contents = Contents { edition: self.edition.clone(), reapply: self.reapply.clone(), manifests, readiness: self.readiness.clone() };
        let size = serde_json::to_vec(&contents).map_or(usize::MAX, |bytes| bytes.len());
        if size > CONTENTS_LIMIT {
            let message = format!("spec.manifests comes to {size} bytes, more than {CONTENTS_LIMIT}");
            return Err(Problem::new(Reason::ManifestsTooLarge, message));
        }
        Ok(contents)
    }
}

/// The manifest that a ConfigMap holds under all of its keys.
///
/// # Errors
/// [`Reason::UnusableManifest`] if it has none.
pub fn of_config_map(map: &ConfigMap) -> Result<String, Problem> {
    let name = map.metadata.name.as_deref().unwrap_or_default();
    let texts: Vec<String> = map.data.iter().flatten().map(|(_, text)| text.clone()).collect();
    joined(&texts).ok_or_else(|| Problem::new(Reason::UnusableManifest, format!("ConfigMap {name} has no data")))
}

/// The manifest that a Secret holds under all of its keys.
///
/// # Errors
/// [`Reason::UnusableManifest`] for one of another type, without data, or with data that is no text.
pub fn of_secret(secret: &Secret) -> Result<String, Problem> {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let unusable = |why: String| Problem::new(Reason::UnusableManifest, format!("Secret {name} {why}"));
    let type_ = secret.type_.as_deref().unwrap_or_default();
    if type_ != SECRET_TYPE {
        return Err(unusable(format!("is of type {type_:?}; {SECRET_TYPE} is wanted")));
    }
    let text =
        |(key, value): (&String, &k8s_openapi::ByteString)| String::from_utf8(value.0.clone()).map_err(|_| unusable(format!("holds no text under {key}")));
    let texts = secret.data.iter().flatten().map(text).collect::<Result<Vec<_>, _>>()?;
    joined(&texts).ok_or_else(|| unusable("has no data".to_owned()))
}

fn joined(texts: &[String]) -> Option<String> {
    (!texts.is_empty()).then(|| texts.join("\n---\n"))
}

/// What the agent is to be given now: `None` if it has all, or takes none. What was read for it is read anew from time to time, and so is tried what
/// has failed.
pub fn due(now: Timestamp, seen: &Observed) -> Option<ContentsPlan> {
    let known = seen.report.as_ref().filter(|report| report.control_plane_ready)?.contents.as_ref()?;
    let manifests = &seen.cluster.spec.manifests;
    let ages = manifests.iter().any(|manifest| manifest.inline.is_none()) || known.manifests.iter().any(|manifest| manifest.state == ManifestState::Failed);
    let current = known.received.list == list(&seen.cluster) && (!ages || is_fresh(now, known.received.read_at));
    // Reading them is the dearest part, and at rest nobody needs it.
    (!current && check(manifests).is_ok()).then(|| plan(now, &seen.cluster, &seen.identity, &seen.settings))
}

/// What the condition `ManifestsApplied` says of a cluster with this report.
pub fn claim(seen: &Observed, report: &AgentReport) -> Claim {
    let manifests = &seen.cluster.spec.manifests;
    if manifests.is_empty() {
        return Claim::yes(Reason::NoManifests, "");
    }
    if let Err(problem) = check(manifests) {
        return Claim::no(problem.reason, problem.explain());
    }
    let Some(known) = &report.contents else { return outdated("spec.manifests") };
    if known.received.list != list(&seen.cluster) {
        return Claim::no(Reason::ApplyingManifests, "the agent is about to be given them");
    }
    let unknown = ManifestReport::default();
    let said = |manifest: &Manifest| known.manifests.iter().find(|said| said.name == manifest.name).unwrap_or(&unknown).clone();
    let of = |state: ManifestState| -> Vec<(String, String)> {
        manifests
            .iter()
            .map(said)
            .zip(manifests)
            .filter(|(said, _)| said.state == state)
            .map(|(said, manifest)| (manifest.name.clone(), said.message))
            .collect()
    };
    let (failed, applying) = (of(ManifestState::Failed), of(ManifestState::Applying));
    if !failed.is_empty() {
        return Claim::no(Reason::ManifestFailed, Reason::ManifestFailed.explain(&listed(&failed)));
    }
    if !applying.is_empty() {
        return Claim::no(Reason::ApplyingManifests, Reason::ApplyingManifests.explain(&listed(&applying)));
    }
    Claim::yes(Reason::ManifestsApplied, manifests.iter().map(|manifest| manifest.name.as_str()).collect::<Vec<_>>().join(", "))
}

/// What `spec.readiness` still waits for.
pub fn hindrance(seen: &Observed, report: &AgentReport) -> Option<Claim> {
    let gates = gates(seen.cluster.spec.readiness.as_ref()?);
    if gates.is_empty() {
        return None;
    }
    let Some(known) = &report.contents else { return Some(outdated("spec.readiness")) };
    let current = known.received.list == list(&seen.cluster);
    let unknown = GateReport::default();
    let said = |gate: &Gate| known.gates.iter().find(|said| current && said.gate == gate.to_string()).unwrap_or(&unknown).clone();
    let waiting: Vec<(String, String)> =
        gates.iter().map(|gate| (gate.to_string(), said(gate))).filter(|(_, said)| !said.met).map(|(gate, said)| (gate, said.message)).collect();
    (!waiting.is_empty()).then(|| Claim::no(Reason::WaitingForReadiness, Reason::WaitingForReadiness.explain(&listed(&waiting))))
}

fn outdated(field: &str) -> Claim {
    Claim::no(Reason::AgentOutdated, Reason::AgentOutdated.explain(&format!("the agent of this cluster is of a release that does not know {field}")))
}

/// Whether nothing more is tried of this until somebody changes something, or an hour is over.
pub fn is_stuck(claim: &Claim) -> bool {
    matches!(claim.reason, Reason::ManifestFailed | Reason::ManifestUnreadable | Reason::InlineSecret | Reason::AgentOutdated)
}

/// Names with what is said of each.
fn listed(said: &[(String, String)]) -> String {
    let one = |(name, message): &(String, String)| if message.is_empty() { name.clone() } else { format!("{name}: {}", clip(message, TEXT_LIMIT)) };
    said.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Whether something is being applied, so that the agent's word is waited for.
pub fn is_changing(status: &KindClusterStatus) -> bool {
    // A cluster that is suspended says so later.
    conditions::is_true(&status.conditions, conditions::READY)
        && conditions::has_reason(&status.conditions, conditions::MANIFESTS_APPLIED, Reason::ApplyingManifests)
}

#[cfg(test)]
mod tests;
