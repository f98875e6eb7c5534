//! `nestling load`: images into the nodes of a cluster, through the cluster itself.

mod contents;
mod source;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use kube::Client;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use contents::Contents;
use source::{Piece, Source};

use super::exit::chain;
use super::failure::{Failure, command};
use super::host::connect;
use super::node_access::{NodePods, nodes, run as run_in_node, start_all};
use super::{HostArgs, LoadArgs, reach};
use crate::side_load::{self, Receiver, SCRIPT, Sender};

/// How long loading may take.
const LIFE: Duration = Duration::from_hours(2);

/// Time for a look at the images that a node has.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two words about how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What nodes know of images: a document for each name that they have.
const LOOK: &str = "for name in \"$@\"; do crictl inspecti \"$name\" 2> /dev/null || true; done";

/// A node with the pod on it.
struct Target {
    node: String,
    pod: String,
}

/// Loads.
pub async fn run(host: HostArgs, args: LoadArgs) -> Result<()> {
    let sources = Source::all(&args.images)?;
    // Before anything is made: what is not there need not be sent.
    let sources: Vec<(Source, Option<Contents>)> = sources.into_iter().map(|source| source.look().map(|seen| (source, seen))).collect::<Result<_>>()?;
    let host = connect(host).await?;
    let way = reach::open(&host, &args.name, &args.reach, None).await?;
    let pods = NodePods::new(&way.client);
    let done = reach::uninterrupted(load(&way.client, &pods, &args, &sources)).await;
    pods.remove().await;
    way.close().await;
    done
}

async fn load(client: &Client, pods: &NodePods, args: &LoadArgs, sources: &[(Source, Option<Contents>)]) -> Result<()> {
    let nodes = nodes(client, &args.name, &args.nodes).await?;
    let targets: Vec<Target> = start_all(pods, &nodes, LIFE).await?.into_iter().map(|(node, pod)| Target { node, pod }).collect();
    let mut failed = Vec::new();
    for (source, seen) in sources {
        for (node, error) in load_one(pods, &targets, source, seen.as_ref()).await? {
            failed.push(format!("{node} does not have {}: {error}", source.name()));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let next = "Try again: nodes that have the images already are passed over. A full disk, or an image for another processor, has to be mended first.";
    Err(Failure::new(failed.join("\n"), next).into())
}

/// Loads one archive into all nodes, and tells how it went; the nodes where it failed, and why.
async fn load_one(pods: &NodePods, targets: &[Target], source: &Source, seen: Option<&Contents>) -> Result<Vec<(String, String)>> {
    let mut wanting: Vec<&Target> = targets.iter().collect();
    if let Some(seen) = seen {
        let there = join_all(targets.iter().map(|target| has_all(pods, target, &seen.images))).await;
        wanting = targets.iter().zip(&there).filter(|(_, there)| !**there).map(|(target, _)| target).collect();
        for (target, _) in targets.iter().zip(there).filter(|(_, there)| *there) {
            println!("{}: {} is there already", target.node, names(seen));
        }
    }
    if wanting.is_empty() {
        return Ok(vec![]);
    }
    eprintln!("{}: into {} node(s)", source.name(), wanting.len());
    let begin = Instant::now();
    let (sender, receivers) = side_load::channel(wanting.len());
    let nodes = wanting.iter().zip(receivers).map(|(target, receiver)| take(pods, target, receiver));
    let (contents, taken) = tokio::join!(send(source, sender), join_all(nodes));
    // What is wrong with the archive is why the nodes complain.
    let contents = contents?;
    let mut failed = Vec::new();
    for (target, taken) in wanting.into_iter().zip(taken) {
        match taken.and_then(|listed| complete(&contents, &listed)) {
            Ok(()) => println!("{}: {} loaded in {:.1} s", target.node, names(&contents), begin.elapsed().as_secs_f64()),
            Err(error) => failed.push((target.node.clone(), chain(&error))),
        }
    }
    Ok(failed)
}

fn names(contents: &Contents) -> String {
    contents.images.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Reads an archive once and sends it to all.
async fn send(source: &Source, mut to: Sender) -> Result<Contents> {
    let mut pieces = source.open();
    let (mut sent, mut told) = (0, Instant::now());
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Data(bytes) => {
                sent += bytes.len();
                if !to.send(&bytes).await {
                    // The nodes say why.
                    return Ok(Contents::default());
                }
                if told.elapsed() > TELL_EVERY {
                    eprintln!("{}: {} MiB", source.name(), sent >> 20);
                    told = Instant::now();
                }
            }
            Piece::End(Ok(contents)) => {
                to.end(contents.names.clone()).await;
                return Ok(contents);
            }
            Piece::End(Err(error)) => return Err(no_archive(source, &error).into()),
        }
    }
    Err(Failure::new(format!("{} has ended early", source.name()), "Give the whole archive: `tar tf FILE` reads a whole one to its end.").into())
}

fn no_archive(source: &Source, error: &std::io::Error) -> Failure {
    let next = if error.to_string().contains("has a name") {
        "Save it by its name: `docker save NAME:TAG`, or `docker buildx build --output type=oci,name=docker.io/library/NAME:TAG,dest=FILE`."
    } else {
        "Give a file as `docker save` writes it, or an OCI layout in a tar archive; either may be gzipped."
    };
    Failure::new(format!("{} is no archive of images: {error}", source.name()), next)
}

/// Has a node take an archive; the names of all images that it has then.
async fn take(pods: &NodePods, target: &Target, receiver: Receiver) -> Result<String> {
    let words = ["bash", "-c", SCRIPT].map(str::to_owned);
    let taken = run_in_node(&pods.pods, &target.pod, &words, async |stdin: &mut _| side_load::pour(receiver, stdin).await).await?;
    if taken.code == 0 {
        Ok(taken.output)
    } else {
        let what = if taken.complaint.is_empty() { "containerd does not take it" } else { &taken.complaint };
        Err(Failure::new(what, command("node-shell NAME NODE -- df -h /var shows whether the node has room for it.")).into())
    }
}

/// Whether all images are among the names that a node has.
fn complete(contents: &Contents, listed: &str) -> Result<()> {
    match contents.images.keys().find(|name| !listed.lines().any(|line| line.trim() == **name)) {
        Some(missing) => {
            let what = format!("containerd has taken the archive and does not have {missing}");
            Err(Failure::new(what, "Build it for the processor of the nodes.").into())
        }
        None => Ok(()),
    }
}

/// Whether a node has all these images, and the very same. A node that does not say so does not.
async fn has_all(pods: &NodePods, target: &Target, images: &BTreeMap<String, Option<String>>) -> bool {
    let words: Vec<String> = ["bash", "-c", LOOK, "bash"].into_iter().map(str::to_owned).chain(images.keys().cloned()).collect();
    match timeout(LOOK_LIMIT, run_in_node(&pods.pods, &target.pod, &words, async |_: &mut _| Ok(()))).await {
        Ok(Ok(seen)) => are_there(&seen.output, images),
        _ => false,
    }
}

fn are_there(seen: &str, images: &BTreeMap<String, Option<String>>) -> bool {
    let seen: Vec<Value> = serde_json::Deserializer::from_str(seen).into_iter().map_while(Result::ok).collect();
    let has = |name: &str, id: &str| {
        seen.iter().any(|image| {
            let mut tags = image["status"]["repoTags"].as_array().into_iter().flatten();
            image["status"]["id"] == id && tags.any(|tag| tag == name)
        })
    };
    images.iter().all(|(name, id)| id.as_ref().is_some_and(|id| has(name, id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_same_images_need_not_be_sent() {
        let seen = r#"{"status": {"id": "sha256:a", "repoTags": ["docker.io/library/a:1"]}}
            {"status": {"id": "sha256:b", "repoTags": ["docker.io/library/b:1", "docker.io/library/b:2"]}}"#;
        let image = |name: &str, id: Option<&str>| (format!("docker.io/library/{name}"), id.map(|id| format!("sha256:{id}")));
        for (images, there) in [
            (vec![image("a:1", Some("a")), image("b:2", Some("b"))], true),
            (vec![image("a:1", Some("b"))], false),
            (vec![image("a:1", Some("a")), image("c:1", Some("a"))], false),
            (vec![image("a:1", None)], false),
        ] {
            assert_eq!(are_there(seen, &images.iter().cloned().collect()), there, "{images:?}");
        }
        assert!(!are_there("error", &[image("a:1", Some("a"))].into()));
    }

    #[test]
    fn a_node_without_the_image_is_found_out() {
        let contents = Contents { images: [("docker.io/library/a:1".to_owned(), None)].into(), names: vec![] };
        assert!(complete(&contents, "x\ndocker.io/library/a:1\n").is_ok());
        assert!(complete(&contents, "docker.io/library/a:11\n").unwrap_err().to_string().contains("a:1"));
    }
}
