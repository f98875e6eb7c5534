//! `nestling kubeconfig`: the user's way into a cluster.

pub mod entries;
mod file;
pub mod published;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kube::ResourceExt;
use nestling_core::api::KindCluster;
use serde_json::Value;

use self::entries::{Owner, Refusal};
pub use self::file::write;
pub use self::published::From;
use super::failure::{Failure, command};
use super::host::{Host, connect};
use super::select::select;
use super::{HostArgs, KubeconfigArgs};

/// Merges, prints or writes published kubeconfigs.
pub async fn run(args: HostArgs, verb: KubeconfigArgs) -> Result<()> {
    let host = connect(args.clone()).await?;
    let clusters = select(&host, &verb.selection).await?;
    let from = From::chosen(verb.external, verb.internal);
    let for_one = [(verb.stdout, "--stdout"), (verb.context_name.is_some(), "--context-name"), (verb.set_current, "--set-current")];
    if let Some((_, flag)) = for_one.into_iter().find(|(given, _)| *given && clusters.len() > 1) {
        return Err(Failure::new(format!("{flag} is for one cluster, and {} are selected", clusters.len()), "Name one, or give --out-dir.").into());
    }
    let mut out = std::io::stdout();
    for cluster in &clusters {
        if verb.stdout {
            out.write_all(&published::read(&host, cluster, from).await?.text)?;
        } else if let Some(directory) = &verb.out_dir {
            let text = published::read(&host, cluster, from).await?.text;
            let path = file::write_into(directory, &format!("{}.kubeconfig", cluster.name_any()), &text)?;
            writeln!(out, "{}", path.display())?;
        } else {
            let place = Place { context: verb.context_name.clone(), into: verb.into.clone(), set_current: verb.set_current };
            writeln!(out, "{}", merge(&args, &host, cluster, from, &place).await?.told())?;
        }
    }
    Ok(())
}

/// Where a kubeconfig goes, and what is done there.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Name of the context; `kind-NAME` if left out.
    pub context: Option<String>,
    /// The file; kubectl's if left out.
    pub into: Option<PathBuf>,
    /// Whether the context becomes the current one.
    pub set_current: bool,
}

/// What was merged.
#[derive(Debug)]
pub struct Merged {
    context: String,
    path: PathBuf,
    is_current: bool,
    is_external: bool,
    is_default_path: bool,
}

impl Merged {
    /// What is said about it.
    pub fn told(&self) -> String {
        let Self { context, path, .. } = self;
        let mut text = format!("Context {context} is in {}", path.display());
        if self.is_current {
            text += ", and the current one";
        }
        text += ".";
        if !self.is_external {
            text += " It leads to an address inside the host cluster.";
        }
        let file = if self.is_default_path { String::new() } else { format!(" --kubeconfig {}", path.display()) };
        let flag = if self.is_current { String::new() } else { format!(" --context {context}") };
        text + &format!("\n→ kubectl{file}{flag} get nodes")
    }
}

/// Whether the user's kubeconfig can serve from here; `None` if there is no endpoint that this program knows to be of use.
pub async fn merge_if_reachable(args: &HostArgs, host: &Host, cluster: &KindCluster, place: &Place) -> Result<Option<Merged>> {
    let from = From::chosen(false, false);
    let published = published::read(host, cluster, from).await?;
    if from == From::Anywhere && !published.is_external {
        return Ok(None);
    }
    Ok(Some(merge(args, host, cluster, from, place).await?))
}

/// Merges the kubeconfig of a cluster into the user's.
pub async fn merge(args: &HostArgs, host: &Host, cluster: &KindCluster, from: From, place: &Place) -> Result<Merged> {
    let owner = owner(host, cluster);
    let context = place.context.clone().unwrap_or_else(|| format!("kind-{}", owner.name));
    let published = published::read(host, cluster, from).await?;
    let theirs: Value = serde_saphyr::from_slice(&published.text)
        .map_err(|_| Failure::new("the published kubeconfig cannot be understood", "Delete the Secret; the operator writes it again."))?;
    let paths = place.into.as_ref().map_or_else(|| file::paths(args), |path| vec![path.clone()]);
    let path = own_path(&paths, &context, &owner)?;
    // The same name in another file that kubectl reads would hide this one, or be hidden.
    for other in paths.iter().filter(|other| **other != path) {
        entries::may_put([&file::read(other)?], &context, &owner).map_err(|refusal| refused(&refusal, &context, other, &owner))?;
    }
    file::edit(&path, |config| {
        entries::put(config, &theirs, &context, &owner).map_err(|refusal| refused(&refusal, &context, &path, &owner))?;
        if place.set_current {
            entries::set_current(config, &context);
        }
        Ok(())
    })
    .await?;
    Ok(Merged { context, is_current: place.set_current, is_external: published.is_external, is_default_path: is_default(args, place), path })
}

fn is_default(args: &HostArgs, place: &Place) -> bool {
    place.into.is_none() && args.kubeconfig.is_none()
}

fn owner(host: &Host, cluster: &KindCluster) -> Owner {
    Owner { cluster_uid: cluster.uid().unwrap_or_default(), namespace: host.namespace.clone(), name: cluster.name_any(), host_context: host.context.clone() }
}

/// The file that has our entry already, else the one that kubectl would write to.
fn own_path(paths: &[PathBuf], context: &str, owner: &Owner) -> Result<PathBuf> {
    for path in paths {
        if entries::has(&file::read(path)?, context, owner) {
            return Ok(path.clone());
        }
    }
    let path = file::default_path(paths).cloned();
    Ok(path.ok_or_else(|| Failure::new("there is no place for a kubeconfig: neither KUBECONFIG nor HOME is set", "Give --into FILE, or --stdout."))?)
}

fn refused(refusal: &Refusal, context: &str, path: &Path, owner: &Owner) -> Failure {
    match refusal {
        Refusal::NotAKubeconfig => {
            Failure::new(format!("{} cannot be changed: {refusal}", path.display()), "Correct that file, or choose another with --kubeconfig or --into.")
        }
        Refusal::Taken(_) => {
            let again = command(&format!("kubeconfig -n {} {} --context-name NAME", owner.namespace, owner.name));
            Failure::new(
                format!("{} has an entry {context} already, and {refusal}; it is left as it is", path.display()),
                format!("Choose another name for the context: `{again}`."),
            )
        }
    }
}

/// Takes the entries of KindClusters that are gone out of the user's kubeconfig. Returns the contexts that went.
pub async fn forget(args: &HostArgs, host: &Host, gone: &[KindCluster]) -> Result<Vec<String>> {
    let owners: Vec<Owner> = gone.iter().map(|cluster| owner(host, cluster)).collect();
    let is_meant = |found: &Owner| owners.iter().any(|owner| owner.is_same(found));
    let mut contexts = Vec::new();
    for path in file::paths(args) {
        // What needs no change needs no lock, and no right to write.
        if entries::remove(&mut file::read(&path)?, is_meant).is_empty() {
            continue;
        }
        contexts.extend(file::edit(&path, |config| Ok(entries::remove(config, is_meant))).await?);
    }
    Ok(contexts)
}

/// The kubeconfig files, for who looks for the host cluster.
pub fn paths(args: &HostArgs) -> Vec<PathBuf> {
    file::paths(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_can_be_run() {
        let merged = |is_current, is_external, is_default_path| Merged {
            context: "kind-crane".into(),
            path: "/home/ada/.kube/config".into(),
            is_current,
            is_external,
            is_default_path,
        };
        insta::assert_snapshot!([merged(true, true, true), merged(false, true, false), merged(false, false, true)].map(|merged| merged.told()).join("\n"));
    }
}
