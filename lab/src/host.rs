//! The host cluster: a real kind cluster on this machine's Docker, with the local registry beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::command::output;
use crate::docker::Docker;
use crate::kind::{self, Kind, Stage, cluster_config};
use crate::lab::LabPaths;
use crate::machine::{self, Machine};
use crate::part::Part;
use crate::progress::note;
use crate::registry::Registry;

/// The Docker network that kind uses.
const NETWORK: &str = "kind";
const BENCHMARK: &str = "nestling-bare";

/// What host cluster is wanted.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Its name.
    pub name: String,
    /// One or two nodes; the first is the control plane.
    pub nodes: usize,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { name: "nestling-lab".to_owned(), nodes: 1 }
    }
}

/// What was changed on this machine and what stands there now, written before it is done so that `down` finds it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct State {
    nodes: usize,
    node_image: String,
    /// The limit on inotify instances before we raised it.
    inotify_instances: Option<u64>,
    /// Whether kind's network was not there before us.
    made_network: bool,
}

impl State {
    fn path(cache: &Cache, name: &str) -> Result<PathBuf> {
        Ok(cache.run_directory()?.join(format!("host-{name}.json")))
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).with_context(|| format!("{} is damaged", path.display()))?)),
            Err(_) => Ok(None),
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }
}

/// The running host cluster.
#[derive(Clone, Debug)]
pub struct HostCluster {
    docker: Docker,
    registry: Registry,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl HostCluster {
    /// Brings the host cluster up; one that is healthy and made from the same parts is used as it is.
    pub fn up(paths: &LabPaths, options: &HostOptions) -> Result<Self> {
        if !(1..=2).contains(&options.nodes) {
            bail!("a host cluster has one or two nodes, not {}", options.nodes);
        }
        let docker = Docker::ensure(paths.cache(), None)?;
        let kubeconfig = kubeconfig_path(paths.cache(), &options.name)?;
        let kubectl = paths.bin("kubectl")?;
        let cli = Kind::new(paths.bin("kind")?, kubeconfig.clone());
        let state_path = State::path(paths.cache(), &options.name)?;
        let mut state = State::read(&state_path)?.unwrap_or_default();

        state.inotify_instances = machine::raise_inotify_instances()?.or(state.inotify_instances);
        state.made_network |= !docker.succeeds(&["network", "inspect", NETWORK]);
        let same = state.nodes == options.nodes && state.node_image == paths.node_image_ref()?;
        if same && cli.is_ready(&kubectl, options.nodes) {
            state.write(&state_path)?;
            note(format!("the host cluster {} is up already", options.name));
        } else {
            state.nodes = options.nodes;
            // Named only once it stands, so that a half-made cluster is never taken for a finished one.
            state.node_image = String::new();
            state.write(&state_path)?;
            let image = paths.load(&docker, Part::NodeImage)?;
            cli.delete(&options.name)?;
            note(format!("creating the host cluster {}", options.name));
            let start = Instant::now();
            cli.create(&options.name, &image, &cluster_config(&Machine::look()?, options.nodes))?;
            note(format!("the host cluster is ready after {:.1} s", start.elapsed().as_secs_f64()));
            state.node_image = image;
            state.write(&state_path)?;
        }

        let registry = Registry::up(&docker, paths, NETWORK)?;
        registry.announce_to(&docker, &cli.nodes(&options.name)?)?;
        let host = Self { docker, registry, kubectl, kubeconfig };
        host.apply(&host.registry.config_map())?;
        Ok(host)
    }

    /// The host cluster that is up; an error says how to bring one up.
    pub fn find(paths: &LabPaths, name: &str) -> Result<Self> {
        let missing = || format!("the host cluster {name} is not up: run cargo xtask lab host up");
        let state = State::read(&State::path(paths.cache(), name)?)?.with_context(missing)?;
        let kubeconfig = kubeconfig_path(paths.cache(), name)?;
        let kubectl = paths.bin("kubectl")?;
        let docker = Docker::ensure(paths.cache(), None)?;
        if !Kind::new(paths.bin("kind")?, kubeconfig.clone()).is_ready(&kubectl, state.nodes) {
            bail!("{}", missing());
        }
        let registry = Registry::up(&docker, paths, NETWORK)?;
        Ok(Self { docker, registry, kubectl, kubeconfig })
    }

    /// The cluster's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A `kubectl` command for this cluster.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// The Docker daemon that the cluster runs on.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Pushes an image of the Docker daemon to the local registry; only layers that it lacks are transferred. Returns
    /// the reference under which pods of this cluster can use it.
    pub fn push(&self, image: &str) -> Result<String> {
        self.push_as(image, image)
    }

    /// The same, under the name of another image. Who has the registry for a mirror of that image's own registry gets this one instead.
    pub fn push_as(&self, image: &str, name: &str) -> Result<String> {
        self.registry.push(&self.docker, image, name)
    }

    /// Removes the cluster, the registry, the network and the kernel setting that `up` made or changed, and ends the
    /// Docker daemon if the lab started it. Built parts and Docker images stay. Nothing has to be built for it.
    pub fn down(lab: &impl AsRef<Cache>, name: &str) -> Result<()> {
        Self::down_but_docker(lab, name)?;
        stop_docker_if_unused(lab.as_ref())
    }

    /// Like [`HostCluster::down`], but leaves the Docker daemon as it is.
    pub fn down_but_docker(lab: &impl AsRef<Cache>, name: &str) -> Result<()> {
        let cache = lab.as_ref();
        let state_path = State::path(cache, name)?;
        let Some(state) = State::read(&state_path)? else {
            note(format!("there is no host cluster {name} of the lab"));
            return Ok(());
        };
        let docker = Docker::ensure(cache, None)?;
        kind::remove_nodes(&docker, name)?;
        Registry::down(&docker)?;
        if state.made_network && docker.succeeds(&["network", "inspect", NETWORK]) {
            docker.run(&["network", "rm", NETWORK])?;
        }
        if let Some(instances) = state.inotify_instances {
            machine::set_inotify_instances(instances)?;
        }
        let kubeconfig = kubeconfig_path(cache, name)?;
        if kubeconfig.exists() {
            fs::remove_file(&kubeconfig).with_context(|| format!("cannot remove {}", kubeconfig.display()))?;
        }
        fs::remove_file(&state_path).with_context(|| format!("cannot remove {}", state_path.display()))?;
        note(format!("the host cluster {name} is gone"));
        Ok(())
    }

    fn apply(&self, object: &serde_json::Value) -> Result<()> {
        let file = tempfile::NamedTempFile::with_suffix(".json")?;
        fs::write(file.path(), serde_json::to_vec(object)?)?;
        output(self.kubectl().args(["apply", "-f"]).arg(file.path())).map(drop)
    }
}

/// How long `kind create cluster --wait` takes on this machine's Docker, by stage: the baseline for the times of
/// nested clusters. The cluster is deleted again.
pub fn bare_kind_benchmark(paths: &LabPaths) -> Result<Vec<Stage>> {
    let docker = Docker::ensure(paths.cache(), None)?;
    let image = paths.load(&docker, Part::NodeImage)?;
    let cli = Kind::new(paths.bin("kind")?, kubeconfig_path(paths.cache(), BENCHMARK)?);
    with_bare_cluster(&docker, &cli, BENCHMARK, &image, Ok)
}

/// Makes a cluster of one node on this machine, works with it, and removes it again, also after a failure. `work` gets the time of each stage.
pub(crate) fn with_bare_cluster<T>(docker: &Docker, cli: &Kind, name: &str, image: &str, work: impl FnOnce(Vec<Stage>) -> Result<T>) -> Result<T> {
    cli.delete(name)?;
    let made_network = !docker.succeeds(&["network", "inspect", NETWORK]);
    let done = cli.create(name, image, &cluster_config(&Machine::look()?, 1)).and_then(work);
    cli.delete(name)?;
    if made_network {
        docker.run(&["network", "rm", NETWORK])?;
    }
    done
}

/// Ends the Docker daemon if the lab started it and no host cluster stands on it.
pub fn stop_docker_if_unused(cache: &Cache) -> Result<()> {
    for entry in fs::read_dir(cache.run_directory()?)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("host-") && name.ends_with(".json") {
            return Ok(());
        }
    }
    Docker::stop_if_ours(cache)
}

fn kubeconfig_path(cache: &Cache, name: &str) -> Result<PathBuf> {
    Ok(cache.run_directory()?.join(format!("host-{name}.kubeconfig")))
}
