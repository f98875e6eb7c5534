//! The lab: all parts together, what is built of them, and where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt;
use crate::archive;
use crate::cache::{Cache, size};
use crate::docker::Docker;
use crate::go;
use crate::golden::GOLDEN_KUBECONFIG;
use crate::images::ARCHIVE;
use crate::key::Inputs;
use crate::node_image;
use crate::node_store::{self, STORE_ARCHIVE};
use crate::part::{Part, Recipe};
use crate::progress::note;
use crate::registry;
use crate::source::Source;
use crate::workshop::{Workshop, image_reference};

/// What somebody needs of the lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LabPart {
    /// The programs of a bare control plane, and helm: no images, no Docker.
    ControlPlane,
    /// A host cluster with its registry.
    Host,
    /// Everything, with the images that the project's own images start from.
    All,
    /// The virtual machine.
    Vm,
    /// The node image of a newer release of Kubernetes, for nested clusters.
    Newer,
    /// A load balancer and an Ingress controller, for host and nested clusters.
    Balancers,
    /// The code of the tools that read published Secrets.
    Consumers,
}

impl LabPart {
    fn goals(self) -> &'static [Part] {
        match self {
            Self::ControlPlane => &[Part::KubernetesApi, Part::Etcd, Part::Helm],
            Self::Host => &[Part::KubernetesApi, Part::Kind, Part::RegistryImage, Part::NodeImage],
            Self::All => &[
                Part::KubernetesApi,
                Part::Etcd,
                Part::Helm,
                Part::Kind,
                Part::Pause,
                Part::RegistryImage,
                Part::DindBase,
                Part::OperatorBase,
                Part::NodeImage,
                Part::NodeStore,
            ],
            Self::Vm => &[Part::NodeImage, Part::VmDisk],
            Self::Newer => &[Part::NodeImageNewer],
            Self::Balancers => &[Part::MetallbController, Part::MetallbSpeaker, Part::TraefikImage],
            Self::Consumers => &[Part::Consumers, Part::ArgoCdConsumer],
        }
    }
}

/// One line of the status.
#[derive(Clone, Debug)]
pub struct PartStatus {
    /// The part.
    pub part: Part,
    /// Its key.
    pub key: String,
    /// Its size and the seconds that its build took, where it is built.
    pub built: Option<(u64, f64)>,
}

/// The lab of this repository and its cache.
pub struct Lab {
    cache: Cache,
    modules: PathBuf,
    pulling: bool,
    keys: BTreeMap<Part, String>,
}

impl Lab {
    /// Opens the lab: looks at the sources and at the toolchain, builds nothing.
    pub fn open() -> Result<Self> {
        let modules = modules();
        let go_mod = fs::read_to_string(modules.join("kubernetes/go.mod")).context("the lab's modules are not there")?;
        let kubernetes = go::required_version(&go_mod, "k8s.io/kubernetes")?;
        let pulling = Source::from_environment()?.pulls(&node_image::published_image(&kubernetes));
        let mut lab = Self { cache: Cache::open()?, modules, pulling, keys: BTreeMap::new() };
        let toolchain = go::toolchain_version()?;
        for part in Part::ALL {
            let key = lab.key(part, &toolchain)?;
            lab.keys.insert(part, key);
        }
        Ok(lab)
    }

    /// Builds whatever is missing for a part of the lab, in the order in which it is needed.
    pub fn build(&self, goal: LabPart) -> Result<LabPaths> {
        let wanted = self.closure(goal.goals());
        if self.missing(&wanted).is_empty() {
            return self.paths(goal);
        }
        let _lock = self.cache.lock()?;
        // The lock may have been waited for while another run built.
        let missing = self.missing(&wanted);
        let needs: Vec<_> = missing.iter().flat_map(|part| part.machine_needs()).copied().collect();
        apt::ensure(&needs)?;
        let mut done = BTreeMap::new();
        for part in Part::ALL {
            if let Some(found) = self.find(part) {
                done.insert(part, found);
            } else if missing.contains(&part) {
                done.insert(part, self.make(part, &done)?);
            }
        }
        self.paths(goal)
    }

    /// Where things are; an error names the command where something is not built.
    pub fn paths(&self, goal: LabPart) -> Result<LabPaths> {
        let mut parts = BTreeMap::new();
        for part in goal.goals() {
            let path = self.find(*part).with_context(|| format!("{} is not built: run cargo xtask lab build", part.name()))?;
            parts.insert(*part, (path, self.keys[part].clone()));
        }
        Ok(LabPaths { parts, cache: self.cache.clone() })
    }

    /// Every part with its state.
    pub fn status(&self) -> Result<Vec<PartStatus>> {
        let records = self.cache.records()?;
        Part::ALL
            .into_iter()
            .map(|part| {
                let key = self.keys[&part].clone();
                let record = records.iter().find(|(_, record)| record.key == key);
                let built = record.map(|(path, record)| anyhow::Ok((size(path)?, record.seconds))).transpose()?;
                Ok(PartStatus { part, key, built })
            })
            .collect()
    }

    /// Removes what no part uses any more, or everything; returns the bytes freed.
    pub fn clean(&self, all: bool) -> Result<u64> {
        let _lock = self.cache.lock()?;
        let used: BTreeSet<PathBuf> = if all { BTreeSet::new() } else { Part::ALL.iter().filter_map(|part| self.find(*part)).collect() };
        let pushed = if all { self.cache.remove_directory(registry::STORAGE)? } else { 0 };
        Ok(pushed + self.cache.clean(|path| used.contains(path))?)
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Makes a store of a node image that Docker has, in a directory. Needs what [`LabPart::All`] has built. Nothing of it is kept.
    ///
    /// # Errors
    /// What is not built, and what Docker says.
    pub fn make_store(&self, docker: &Docker, node_image: &str, out: &Path) -> Result<PathBuf> {
        let _lock = self.cache.lock()?;
        let done = Part::ALL.into_iter().filter_map(|part| Some((part, self.find(part)?))).collect();
        let workshop = Workshop { modules: &self.modules, out, parts: &done, key: &self.keys[&Part::NodeStore], cache: &self.cache, pulling: self.pulling };
        node_store::make_of(docker, &workshop, node_image)?;
        Ok(out.join(STORE_ARCHIVE))
    }

    fn make(&self, part: Part, done: &BTreeMap<Part, PathBuf>) -> Result<PathBuf> {
        let key = &self.keys[&part];
        self.cache.get_or_make(part.name(), key, |out| match part.recipe() {
            Recipe::Go(programs) => programs.build(&self.modules, out),
            Recipe::Root(root) => root.build(out),
            Recipe::Steps { make, .. } => {
                let workshop = Workshop { modules: &self.modules, out, parts: done, key, cache: &self.cache, pulling: self.pulling };
                make(&workshop)
            }
        })
    }

    fn find(&self, part: Part) -> Option<PathBuf> {
        self.cache.find(part.name(), &self.keys[&part])
    }

    /// What of the wanted parts has to be made. A part that is there needs nothing below it.
    fn missing(&self, wanted: &BTreeSet<Part>) -> BTreeSet<Part> {
        wanted.iter().copied().filter(|part| self.find(*part).is_none()).collect()
    }

    /// The goals and all that has to be there to make those of them that are missing.
    fn closure(&self, goals: &[Part]) -> BTreeSet<Part> {
        let mut wanted = BTreeSet::new();
        let mut open = goals.to_vec();
        while let Some(part) = open.pop() {
            if wanted.insert(part) && self.find(part).is_none() {
                open.extend(part.needs(self.pulling));
            }
        }
        wanted
    }

    fn key(&self, part: Part, toolchain: &str) -> Result<String> {
        let mut inputs = Inputs::of(part.name());
        inputs.add("architecture", archive::go_architecture());
        match part.recipe() {
            Recipe::Go(programs) => {
                inputs.add("toolchain", toolchain);
                programs.add_inputs(&self.modules, &mut inputs)?;
            }
            Recipe::Root(root) => root.add_inputs(&mut inputs),
            Recipe::Steps { source, .. } => {
                inputs.add("steps", source);
                archive::add_inputs(&mut inputs);
                // kind's files and Kubernetes' sources come from these modules.
                inputs.add_tree(&self.modules, "kind/go.sum")?;
                inputs.add_tree(&self.modules, "kubernetes/go.sum")?;
            }
        }
        if matches!(part, Part::NodeImage | Part::NodeImageNewer) {
            inputs.add("pulling", [u8::from(self.pulling)]);
        }
        for need in part.needs(self.pulling) {
            inputs.add(need.name(), self.keys.get(need).context("parts are out of order")?);
        }
        Ok(inputs.key())
    }
}

/// The repository's Go modules.
pub(crate) fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("modules")
}

/// Where the built parts are.
#[derive(Clone, Debug)]
pub struct LabPaths {
    parts: BTreeMap<Part, (PathBuf, String)>,
    cache: Cache,
}

impl LabPaths {
    /// A built program, by its file name.
    pub fn bin(&self, name: &str) -> Result<PathBuf> {
        self.parts
            .values()
            .map(|(path, _)| path.join("bin").join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("no part that was asked for holds the program {name}"))
    }

    /// The node image's name.
    pub fn node_image_ref(&self) -> Result<String> {
        self.image(Part::NodeImage)
    }

    /// The node image as Docker keeps it on disk, as a tar file.
    pub fn node_store_archive(&self) -> Result<PathBuf> {
        Ok(self.part(Part::NodeStore)?.join(STORE_ARCHIVE))
    }

    /// What an administrator of the cluster had in hand whose state the store carries; its keys are gone, and it opens no cluster.
    ///
    /// # Errors
    /// If the store is not built.
    pub fn golden_kubeconfig(&self) -> Result<PathBuf> {
        Ok(self.part(Part::NodeStore)?.join(GOLDEN_KUBECONFIG))
    }

    /// The name of the image that the node pod's image starts from.
    pub fn dind_base_image(&self) -> Result<String> {
        self.image(Part::DindBase)
    }

    /// The name of the image that the operator's image starts from.
    pub fn operator_base_image(&self) -> Result<String> {
        self.image(Part::OperatorBase)
    }

    /// Makes an image known to the Docker daemon, from its archive, and returns its name.
    pub fn load(&self, docker: &Docker, part: Part) -> Result<String> {
        let reference = self.image(part)?;
        let directory = self.part(part)?;
        let archive = if matches!(part, Part::NodeImage | Part::NodeImageNewer) { node_image::archive_path(directory) } else { directory.join(ARCHIVE) };
        docker.load(&reference, &archive)?;
        Ok(reference)
    }

    /// The cache that this is in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The key of a part, which changes with whatever it is made from.
    pub fn key(&self, part: Part) -> Result<&str> {
        Ok(&self.entry(part)?.1)
    }

    fn image(&self, part: Part) -> Result<String> {
        let image = part.image().with_context(|| format!("{} is no image", part.name()))?;
        Ok(image_reference(image, self.key(part)?))
    }

    /// The directory of a part.
    pub fn part(&self, part: Part) -> Result<&Path> {
        Ok(&self.entry(part)?.0)
    }

    fn entry(&self, part: Part) -> Result<&(PathBuf, String)> {
        self.parts.get(&part).with_context(|| format!("{} was not asked for", part.name()))
    }
}

impl AsRef<Cache> for Lab {
    fn as_ref(&self) -> &Cache {
        &self.cache
    }
}

impl AsRef<Cache> for LabPaths {
    fn as_ref(&self) -> &Cache {
        &self.cache
    }
}

/// Says what a build will do before it starts: the parts that are missing.
pub fn announce(lab: &Lab, goal: LabPart) {
    let missing = lab.missing(&lab.closure(goal.goals()));
    if missing.is_empty() {
        note("the lab is built already");
    } else {
        let names: Vec<&str> = missing.iter().map(|part| part.name()).collect();
        note(format!("the lab has to build: {}", names.join(", ")));
    }
}
