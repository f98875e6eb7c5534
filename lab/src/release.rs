//! A second, newer release of Kubernetes, as a node image for nested clusters. Its nodes are made by the steps that make the usual ones
//! ([`node_image`]), in a workshop where its programs stand in for theirs. All else of a node is the same.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};

use crate::go;
use crate::lab::modules;
use crate::node_image;
use crate::part::Part;
use crate::workshop::Workshop;

/// A release of Kubernetes beside the usual one.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The directory below `lab/modules` whose `go.mod` says which one it is.
    pub module: &'static str,
    /// The part with all of its programs.
    pub programs: Part,
    /// Its server archive.
    pub server: Part,
    /// Its node image.
    pub image: Part,
}

/// One for which kind writes kubeadm's format v1beta4 and whose kubelet refuses cgroup v1 unless told otherwise.
pub const NEWER: Release = Release { module: "kubernetes-newer", programs: Part::KubernetesNewer, server: Part::NodeServerNewer, image: Part::NodeImageNewer };

/// The newer release's server archive.
pub fn make_newer_server(workshop: &Workshop) -> Result<()> {
    NEWER.standing_in(workshop, node_image::make_server)
}

/// The newer release's node image.
pub fn make_newer_image(workshop: &Workshop) -> Result<()> {
    NEWER.standing_in(workshop, node_image::make)
}

impl Release {
    /// Its version, like `v1.36.1`.
    ///
    /// # Errors
    /// If its `go.mod` is missing or names none.
    pub fn version(&self) -> Result<String> {
        let go_mod = fs::read_to_string(modules().join(self.module).join("go.mod")).with_context(|| format!("the module {} is not there", self.module))?;
        go::required_version(&go_mod, "k8s.io/kubernetes")
    }

    /// Does a step in a workshop where the parts and the module of this release have the names of the usual one's.
    fn standing_in<T>(&self, workshop: &Workshop, step: impl FnOnce(&Workshop) -> Result<T>) -> Result<T> {
        let modules = tempfile::tempdir_in(workshop.out)?;
        for (name, module) in [("kubernetes", self.module), ("kind", "kind")] {
            symlink(workshop.modules.join(module), modules.path().join(name))?;
        }
        let mut parts = workshop.parts.clone();
        for (usual, own) in
            [(Part::KubernetesApi, self.programs), (Part::KubernetesNode, self.programs), (Part::NodeServer, self.server), (Part::NodeImage, self.image)]
        {
            // What is not built yet must not be taken from the usual release.
            match workshop.parts.get(&own) {
                Some(path) => parts.insert(usual, path.clone()),
                None => parts.remove(&usual),
            };
        }
        step(&Workshop { modules: modules.path(), parts: &parts, ..*workshop })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::cache::Cache;

    #[test]
    fn steps_see_the_newer_release_and_nothing_of_the_usual_one() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("lab")).unwrap();
        let parts: BTreeMap<Part, PathBuf> = [
            (Part::KubernetesApi, "usual-api"),
            (Part::KubernetesNode, "usual-node"),
            (Part::NodeServer, "usual-server"),
            (Part::Etcd, "etcd"),
            (Part::KubernetesNewer, "newer"),
        ]
        .map(|(part, path)| (part, PathBuf::from(path)))
        .into();
        let repository = modules();
        let workshop = Workshop { modules: &repository, out: directory.path(), parts: &parts, key: "key", cache: &cache, pulling: false };
        let look = |workshop: &Workshop| {
            assert_eq!(workshop.program(Part::KubernetesApi, "kubectl")?, Path::new("newer/bin/kubectl"));
            assert_eq!(workshop.program(Part::KubernetesNode, "kubeadm")?, Path::new("newer/bin/kubeadm"));
            assert_eq!(workshop.part(Part::Etcd)?, Path::new("etcd"));
            assert!(workshop.part(Part::NodeServer).is_err());
            let go_mod = fs::read_to_string(workshop.modules.join("kubernetes/go.mod"))?;
            assert_eq!(go::required_version(&go_mod, "k8s.io/kubernetes")?, NEWER.version()?);
            assert!(workshop.modules.join("kind/go.sum").is_file());
            Ok(workshop.modules.to_owned())
        };
        let gone = NEWER.standing_in(&workshop, look).unwrap();
        assert!(!gone.exists());
    }

    #[test]
    fn it_is_newer_than_the_usual_one() {
        let go_mod = fs::read_to_string(modules().join("kubernetes/go.mod")).unwrap();
        let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
        let newer = minor(&NEWER.version().unwrap());
        assert!(newer >= 36 && newer > minor(&go::required_version(&go_mod, "k8s.io/kubernetes").unwrap()));
    }
}
