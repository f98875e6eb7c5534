//! Images that are to be in every node: pulled by the pod's Docker, once for all nodes, and streamed from there into the containerd of each. It keeps them on
//! the node's volume, so nodes that come back have them.
//!
//! What Docker saves has other digests than what the registry has, so an image that is pinned by one gets its name in the nodes like any other: as a name.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::image_reference::name_in_nodes;
use nestling_core::plan::wire::{AgentFailure, AgentReport, AgentSettings};
use tokio::time::{sleep, timeout};

use super::docker::{Docker, Error};
use super::failure::{evident, failure};
use super::nodes;
use super::registries::Registries;
use super::report::Report;
use crate::side_load::{self, Naming};

/// Where Docker keeps what is on its way: a repository that no registry has, with a tag for each image.
const REPOSITORY: &str = "preload.nestling.invalid/image";

/// Images that are pulled at the same time. Docker pulls the layers of each side by side.
const AT_ONCE: usize = 2;

/// Pauses before an image is asked for again.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// Pause after a failure in a cluster that is served.
const AGAIN: Duration = Duration::from_secs(30);

/// Time for bringing all images into all nodes.
const PLACE_LIMIT: Duration = Duration::from_mins(15);

/// An image that Docker has for the nodes.
#[derive(Debug)]
pub struct Fetched {
    /// As it is written in the spec.
    reference: String,
    /// The name that it was pulled under, unless it was there already.
    pulled: Option<String>,
}

impl Fetched {
    fn tag(&self) -> String {
        tag(&self.reference)
    }

    /// Its name in Docker.
    fn name(&self) -> String {
        format!("{REPOSITORY}:{}", self.tag())
    }
}

/// The same for as long as the process lives.
fn tag(reference: &str) -> String {
    let mut hasher = DefaultHasher::new();
    reference.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Pulls images as far as Docker does not have them.
///
/// # Errors
/// [`Reason::PreloadFailed`] or a more exact reason, naming the first image that cannot be had.
pub async fn fetch(docker: &Docker, registries: &Registries, references: &[String]) -> Result<Vec<Fetched>, AgentFailure> {
    let fetches = references.iter().map(|reference| fetch_one(docker, registries, reference));
    stream::iter(fetches).buffered(AT_ONCE).try_collect().await
}

async fn fetch_one(docker: &Docker, registries: &Registries, reference: &str) -> Result<Fetched, AgentFailure> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let said = match try_fetch(docker, registries, reference).await {
            Ok(pulled) => return Ok(Fetched { reference: reference.to_owned(), pulled }),
            Err(said) => said,
        };
        let failed = pull_failure(reference, &said);
        let lasting = failed.reason != Reason::PreloadFailed || ["not found", "manifest unknown"].iter().any(|text| said.contains(text));
        match pauses.next().filter(|_| !lasting) {
            Some(pause) => sleep(pause).await,
            None => return Err(failed),
        }
    }
}

/// The name under which an image was pulled, if it had to be, or what was said about it.
async fn try_fetch(docker: &Docker, registries: &Registries, reference: &str) -> Result<Option<String>, String> {
    if docker.has_image(reference).await.map_err(|error| error.to_string())? {
        docker.tag(reference, REPOSITORY, &tag(reference)).await.map_err(|error| error.to_string())?;
        return Ok(None);
    }
    let login = registries.login(reference);
    let mut said = Vec::new();
    for candidate in registries.candidates(reference) {
        tracing::info!(candidate, "pulling");
        let pulled = async {
            docker.pull(&candidate, login.as_ref()).await?;
            docker.tag(&candidate, REPOSITORY, &tag(reference)).await
        };
        match pulled.await {
            Ok(()) => return Ok(Some(candidate)),
            Err(error) => said.push(format!("{candidate}: {error}")),
        }
    }
    Err(said.join("\n"))
}

fn pull_failure(reference: &str, said: &str) -> AgentFailure {
    let reason = match classify(said, Reason::PreloadFailed) {
        Reason::NodeImagePullFailed => Reason::PreloadFailed,
        exact => exact,
    };
    evident(reason, format!("the image {reference} of spec.preload cannot be had"), said)
}

/// Brings images into every node of a cluster, and lets Docker forget what it has pulled for that.
///
/// # Errors
/// [`Reason::PreloadFailed`] or a more exact reason.
pub async fn place(docker: &Docker, cluster: &str, images: &[Fetched]) -> Result<(), AgentFailure> {
    let nodes = nodes::names(docker, cluster).await.map_err(|error| failure(Reason::DockerFailed, error.to_string()))?;
    tracing::info!(images = images.len(), nodes = nodes.len(), "preloading");
    let placing = timeout(PLACE_LIMIT, stream_into(docker, &nodes, images)).await;
    let placed = placing.unwrap_or_else(|_| Err(format!("gave up after {} s", PLACE_LIMIT.as_secs())));
    placed.map_err(|said| {
        let names: Vec<&str> = images.iter().map(|image| image.reference.as_str()).collect();
        evident(classify(&said, Reason::PreloadFailed), format!("{} of spec.preload cannot be brought into the nodes", names.join(", ")), &said)
    })?;
    for image in images {
        for name in [Some(image.name()), image.pulled.clone()].into_iter().flatten() {
            if let Err(error) = docker.untag(&name).await {
                tracing::warn!(name, "Docker keeps an image that is not needed any more: {error}");
            }
        }
    }
    Ok(())
}

async fn stream_into(docker: &Docker, nodes: &[String], images: &[Fetched]) -> Result<(), String> {
    let names: Vec<String> = images.iter().map(Fetched::name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut sender, receivers) = side_load::channel(nodes.len());
    let archive = async {
        let mut saved = Box::pin(docker.save(&names));
        while let Some(bytes) = saved.try_next().await.map_err(|error| format!("docker save: {error}"))? {
            if !sender.send(&bytes).await {
                return Ok(());
            }
        }
        let naming = |image: &Fetched| Naming { from: image.name(), to: name_in_nodes(&image.reference), keep: false };
        sender.end(images.iter().map(naming).collect()).await;
        Ok::<_, String>(())
    };
    let nodes = nodes.iter().zip(receivers).map(|(node, receiver)| async move {
        let pour = |mut input| async move { side_load::pour(receiver, &mut input).await };
        let listed = docker.feed(node, &["bash", "-c", side_load::SCRIPT], pour).await.map_err(|error| format!("{node}: {error}"))?;
        match images.iter().find(|image| !has(&listed, &image.reference)) {
            Some(image) => Err(format!("{node}: containerd has taken the archive and does not have {}", image.reference)),
            None => Ok(()),
        }
    });
    let (sent, taken) = tokio::join!(archive, join_all(nodes));
    // What ended the archive is why the nodes complain.
    sent?;
    let failed: Vec<String> = taken.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// Whether an image is in containerd's list of names.
fn has(listed: &str, reference: &str) -> bool {
    let name = name_in_nodes(reference);
    listed.lines().any(|line| line.trim() == name)
}

/// Those of the images that some node does not have.
async fn missing(docker: &Docker, cluster: &str, references: &[String]) -> Result<Vec<String>, Error> {
    if references.is_empty() {
        return Ok(vec![]);
    }
    let nodes = nodes::names(docker, cluster).await?;
    let list = |node| async move { docker.run(node, &["ctr", "--namespace=k8s.io", "images", "ls", "-q"]).await };
    let listed = try_join_all(nodes.iter().map(String::as_str).map(list)).await?;
    Ok(references.iter().filter(|reference| listed.iter().any(|names| !has(names, reference))).cloned().collect())
}

/// Says which images are in all nodes, before the cluster is served.
pub async fn note(docker: &Docker, settings: &AgentSettings, report: &Report) {
    let wanted = wanted(&report.subscribe().borrow(), settings);
    let there = match missing(docker, &settings.cluster_name, &wanted).await {
        Ok(missing) => wanted.into_iter().filter(|image| !missing.contains(image)).collect(),
        Err(error) => {
            tracing::warn!("which images the nodes have cannot be seen: {error}");
            vec![]
        }
    };
    report.update_orders(|orders| orders.carried_out.preload = Some(there));
}

fn wanted(report: &AgentReport, settings: &AgentSettings) -> Vec<String> {
    let ordered = report.orders.as_ref().and_then(|orders| orders.received.preload.clone());
    ordered.unwrap_or_else(|| settings.preload.clone())
}

/// Brings further images into a cluster that is served, as ordered, for ever.
pub async fn follow(docker: &Docker, registries: &Registries, settings: &AgentSettings, report: &Report) -> Infallible {
    let mut changes = report.subscribe();
    loop {
        let wanted = wanted(&changes.borrow(), settings);
        let done = add(docker, registries, &settings.cluster_name, &wanted).await;
        if let Err(failed) = &done {
            tracing::warn!("images are missing in the nodes: {}", failed.message);
        }
        let problem = done.err();
        let failed = problem.is_some();
        report.update_orders(|known| {
            if !failed {
                known.carried_out.preload = Some(wanted.clone());
            }
            known.set_failure(Reason::PreloadingImages, problem.map(|problem| told(&problem)));
        });
        let others = changes.wait_for(|report| self::wanted(report, settings) != wanted);
        if failed {
            let _ = timeout(AGAIN, others).await;
        } else if others.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The failure of orders, with the remedy that only the exact reason has.
fn told(problem: &AgentFailure) -> AgentFailure {
    let evidence = problem.log_tail.lines().last().map(|line| format!(" ({line})")).unwrap_or_default();
    failure(Reason::PreloadingImages, problem.reason.explain(&format!("{}{evidence}", problem.message)))
}

async fn add(docker: &Docker, registries: &Registries, cluster: &str, wanted: &[String]) -> Result<(), AgentFailure> {
    let missing = missing(docker, cluster, wanted).await.map_err(|error| failure(Reason::DockerFailed, error.to_string()))?;
    if missing.is_empty() {
        return Ok(());
    }
    let fetched = fetch(docker, registries, &missing).await?;
    place(docker, cluster, &fetched).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_pull_names_its_image_and_its_own_remedy() {
        for (said, reason) in [
            ("manifest unknown", Reason::PreloadFailed),
            ("connection refused", Reason::PreloadFailed),
            ("no basic auth credentials", Reason::RegistryAuth),
            ("x509: certificate signed by unknown authority", Reason::RegistryCA),
        ] {
            let failed = pull_failure("team.example/app:1", said);
            assert_eq!(failed.reason, reason, "{said}");
            assert!(failed.message.contains("team.example/app:1") && failed.log_tail == said, "{failed:?}");
            assert!(told(&failed).message.ends_with(reason.remedy()), "{:?}", told(&failed));
        }
    }

    #[test]
    fn an_image_is_found_under_the_name_that_pods_are_given() {
        let listed = "docker.io/library/nginx:1.29\ndocker.io/team/app@sha256:aa\nsha256:bb\n";
        for (reference, there) in [("nginx:1.29", true), ("nginx", false), ("nginx:1", false), ("team/app:2@sha256:aa", true), ("team/app:2", false)] {
            assert_eq!(has(listed, reference), there, "{reference}");
        }
    }

    #[test]
    fn each_image_has_a_tag_of_its_own() {
        assert_ne!(tag("a:1"), tag("a:2"));
        assert_eq!(tag("a:1").len(), 16);
    }
}
