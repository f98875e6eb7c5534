//! `nestling connect`: a way to a cluster, held open for others.

use std::future::pending;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::failure::Failure;
use super::host::connect;
use super::output::yaml;
use super::reach::{self, Way};
use super::temporary::TemporaryKubeconfig;
use super::{ConnectArgs, HostArgs, kubeconfig};

/// Holds a way open until a signal ends it.
pub async fn run(host: HostArgs, args: ConnectArgs) -> Result<()> {
    let host = connect(host).await?;
    if let Some(path) = args.file.as_deref().filter(|path| path.exists()) {
        return Err(Failure::new(format!("{} exists already", path.display()), "Remove it, or choose another --file.").into());
    }
    reach::visit(&host, &args.name, &args.reach, args.port, async |way| hold(way, &args).await).await
}

async fn hold(way: &Way, args: &ConnectArgs) -> Result<()> {
    let version = way.client.apiserver_version().await.context("the API server does not answer any more")?.git_version;
    let kubeconfig = Written::new(way, args)?;
    eprintln!("{} ({version}) is reached {}. Ctrl-C ends that. In another terminal:", args.name, way.how);
    writeln!(std::io::stdout(), "export KUBECONFIG={}", quoted(kubeconfig.path()))?;
    pending().await
}

/// The kubeconfig, wherever it was wanted. Removed when dropped.
enum Written {
    Temporary(TemporaryKubeconfig),
    Named(PathBuf),
}

impl Written {
    fn new(way: &Way, args: &ConnectArgs) -> Result<Self> {
        let Some(path) = &args.file else {
            return Ok(Self::Temporary(TemporaryKubeconfig::new(&way.kubeconfig, &args.name)?));
        };
        let text = yaml(&serde_json::to_value(&way.kubeconfig)?)?;
        kubeconfig::write(path, text.as_bytes())
            .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display()), "Choose another --file, or leave it out."))?;
        Ok(Self::Named(std::path::absolute(path).unwrap_or_else(|_| path.clone())))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(file) => file.path(),
            Self::Named(path) => path,
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Self::Named(path) = self
            && let Err(error) = std::fs::remove_file(&*path)
        {
            eprintln!("{} could not be removed: {error}", path.display());
        }
    }
}

/// A path as shells take it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%".contains(letter);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_shells_need_it() {
        assert_eq!(quoted(Path::new("/run/user/0/a.kubeconfig")), "/run/user/0/a.kubeconfig");
        assert_eq!(quoted(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
    }
}
