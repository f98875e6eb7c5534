//! What is to be in the cluster: manifests, applied with the node's own credentials, and what is waited for before the cluster counts as ready.
//!
//! What was applied is noted inside the cluster, by the digest of its text: it is not applied again by whoever comes later, and a cluster that is new has no
//! such note. In a Secret, because whoever may only look at a cluster should not be able to guess a text by its digest.

mod dns;
mod inside;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use nestling_core::plan::contents::{Gate, gates, read};
use nestling_core::plan::wire::{Contents, ContentsReport, GateReport, ManifestReport, ManifestState, ManifestText};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub use inside::Inside;

use super::output;
use super::report::Report;

/// Until a manifest that is not accepted has failed: what brings a kind or a webhook with it takes a while until it serves.
const PATIENCE: Duration = Duration::from_mins(10);

/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Longest text about one manifest or gate in a report, in bytes: reports have a limit.
const TEXT_LIMIT: usize = 400;

/// Digests of what was applied, by name of the manifest.
pub type Record = BTreeMap<String, String>;

/// What is done in the cluster. Each call is bounded in time; each error is a text that may be shown.
pub trait Cluster {
    /// What was applied so far.
    fn record(&self) -> impl Future<Output = Result<Record, String>>;
    /// Notes what was applied so far.
    fn note(&self, record: &Record) -> impl Future<Output = Result<(), String>>;
    /// Applies an object. `quiet`: nothing of it may be repeated.
    fn apply(&self, object: &Value, quiet: bool) -> impl Future<Output = Result<(), String>>;
    /// Whether this is so.
    fn look(&self, gate: &Gate) -> impl Future<Output = Result<(), String>>;
}

/// What the operator has given, and what has become of it. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    given: watch::Sender<Option<Arc<Contents>>>,
    record: Arc<Mutex<Record>>,
    report: Report,
}

impl Store {
    /// Nothing given yet.
    pub fn new(report: Report) -> Self {
        Self { given: watch::Sender::new(None), record: Arc::default(), report }
    }

    /// Takes new contents in the place of the earlier ones, and says so in the report.
    pub fn take(&self, contents: Contents) {
        self.tell(&contents, false);
        self.given.send_replace(Some(Arc::new(contents)));
    }

    /// The report, for whoever asks.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Says how far these contents are, by what is on record. `again`: of what was being tried, the last word stays.
    fn tell(&self, contents: &Contents, again: bool) {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.report.update(|report| {
            let before = report.contents.take().unwrap_or_default();
            let manifest = |manifest: &ManifestText| {
                let applied = record.get(&manifest.name) == Some(&digest(contents, manifest));
                let said = before.manifests.iter().find(|said| said.name == manifest.name && again && !applied);
                let state = if applied { ManifestState::Applied } else { ManifestState::Applying };
                ManifestReport { name: manifest.name.clone(), state, message: said.map(|said| said.message.clone()).unwrap_or_default() }
            };
            let gate = |gate: Gate| {
                let gate = gate.to_string();
                // What has been so once is waited for no longer.
                before.gates.iter().find(|said| said.gate == gate).cloned().unwrap_or_else(|| GateReport { gate, ..GateReport::default() })
            };
            report.contents = Some(ContentsReport {
                received: contents.edition.clone(),
                manifests: contents.manifests.iter().map(manifest).collect(),
                gates: gates(&contents.readiness).into_iter().map(gate).collect(),
            });
        });
    }

    /// Carries out what is given, for ever.
    pub async fn follow(&self, cluster: &impl Cluster) -> Infallible {
        let mut given = self.given.subscribe();
        loop {
            let contents = given.borrow_and_update().clone();
            let work = async {
                if let Some(contents) = &contents {
                    futures::future::join(self.fill(cluster, contents), self.wait(cluster, contents)).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = work => {}
                // The store outlives its readers.
                _ = given.changed() => {}
            }
        }
    }

    /// Applies what is not applied yet.
    async fn fill(&self, cluster: &impl Cluster, contents: &Contents) {
        let end = Instant::now() + PATIENCE;
        let mut pause = PAUSES.0;
        let mut record = loop {
            match cluster.record().await {
                Ok(record) => break record,
                Err(error) => tracing::warn!("cannot see which manifests are applied: {error}"),
            }
            sleep(PAUSES.1).await;
        };
        let noted = record.len();
        record.retain(|name, _| contents.manifests.iter().any(|manifest| manifest.name == *name));
        // What has left the list is applied when it comes back.
        if record.len() < noted
            && let Err(error) = cluster.note(&record).await
        {
            tracing::warn!("cannot note which manifests are applied: {error}");
        }
        self.remember(&record);
        self.tell(contents, true);
        let wanted = |manifest: &&ManifestText| record.get(&manifest.name) != Some(&digest(contents, manifest));
        let mut left = Vec::new();
        for manifest in contents.manifests.iter().filter(wanted) {
            match objects_of(&manifest.text).await {
                Ok(objects) => left.push(Left { manifest, objects: objects.into_iter().enumerate().collect() }),
                Err(error) => self.say(&manifest.name, ManifestState::Failed, &error),
            }
        }
        while !left.is_empty() {
            let mut trouble = Vec::new();
            for manifest in &mut left {
                let done = match manifest.attempt(cluster).await {
                    Ok(()) => {
                        record.insert(manifest.manifest.name.clone(), digest(contents, manifest.manifest));
                        cluster.note(&record).await.map_err(|error| format!("it is applied, which cannot be noted: {error}"))
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = done {
                    record.remove(&manifest.manifest.name);
                    self.say(&manifest.manifest.name, ManifestState::Applying, &error);
                    trouble.push((manifest.manifest.name.clone(), error));
                } else {
                    tracing::info!(manifest = manifest.manifest.name, "applied");
                    self.remember(&record);
                    self.say(&manifest.manifest.name, ManifestState::Applied, "");
                }
            }
            left.retain(|manifest| trouble.iter().any(|(name, _)| *name == manifest.manifest.name));
            if Instant::now() + pause > end {
                for (name, error) in &trouble {
                    tracing::warn!(manifest = name, "not applied within {} s: {error}", PATIENCE.as_secs());
                    self.say(name, ManifestState::Failed, error);
                }
                return;
            }
            if !left.is_empty() {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    /// Looks at what is waited for until all of it has been so.
    async fn wait(&self, cluster: &impl Cluster, contents: &Contents) {
        let mut pause = PAUSES.0;
        let mut left = gates(&contents.readiness);
        loop {
            left.retain(|gate| !self.is_met(gate));
            if left.is_empty() {
                return;
            }
            for gate in &left {
                let found = cluster.look(gate).await;
                self.report.update(|report| {
                    let said = report.contents.iter_mut().flat_map(|contents| &mut contents.gates).find(|said| said.gate == gate.to_string());
                    if let Some(said) = said {
                        said.met = found.is_ok();
                        said.message = found.err().map_or_else(String::new, |error| shown(&error));
                    }
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn is_met(&self, gate: &Gate) -> bool {
        let report = self.report.subscribe();
        let report = report.borrow();
        report.contents.iter().flat_map(|contents| &contents.gates).any(|said| said.met && said.gate == gate.to_string())
    }

    fn remember(&self, record: &Record) {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone_from(record);
    }

    fn say(&self, name: &str, state: ManifestState, message: &str) {
        self.report.update(|report| {
            let said = report.contents.iter_mut().flat_map(|contents| &mut contents.manifests).find(|said| said.name == name);
            if let Some(said) = said {
                (said.state, said.message) = (state, shown(message));
            }
        });
    }
}

/// What is left of a manifest, each object with its number.
struct Left<'a> {
    manifest: &'a ManifestText,
    objects: Vec<(usize, Value)>,
}

impl Left<'_> {
    /// One try of all that is left, in order: what comes later may be what an earlier one waits for.
    async fn attempt(&mut self, cluster: &impl Cluster) -> Result<(), String> {
        let quiet = self.manifest.secret;
        let (mut left, mut first) = (Vec::new(), None);
        for (index, object) in self.objects.drain(..) {
            if let Err(error) = cluster.apply(&object, quiet).await {
                first.get_or_insert_with(|| format!("{}: {error}", if quiet { format!("object {}", index + 1) } else { called(&object) }));
                left.push((index, object));
            }
        }
        self.objects = left;
        match (first, self.objects.len()) {
            (None, _) => Ok(()),
            (Some(error), 1) => Err(error),
            (Some(error), more) => Err(format!("{error} (and {} more)", more - 1)),
        }
    }
}

/// The objects in a text. It can be large, and a large one takes a while.
async fn objects_of(text: &str) -> Result<Vec<Value>, String> {
    let text = text.to_owned();
    let objects = tokio::task::spawn_blocking(move || read(&text)).await.map_err(|_| "it could not be read".to_owned())?;
    objects.map_err(|error| format!("it {error}"))
}

/// What a manifest's text and the wish to apply it anew come to.
fn digest(contents: &Contents, manifest: &ManifestText) -> String {
    let mut digest = Sha256::new();
    digest.update(contents.reapply.as_bytes());
    digest.update([0]);
    digest.update(manifest.text.as_bytes());
    HEXLOWER.encode(&digest.finalize())
}

/// How an object is called in a text.
fn called(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    match text("/metadata/namespace") {
        "" => format!("{} {}", text("/kind"), text("/metadata/name")),
        namespace => format!("{} {namespace}/{}", text("/kind"), text("/metadata/name")),
    }
}

/// A text as it may be shown: its first line, in bounds.
fn shown(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    output::head(&output::presentable(line, &[]), TEXT_LIMIT).to_owned()
}

#[cfg(test)]
mod tests;
