//! The machine: one stage after the other, from the checks of the host to the running cluster.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use nestling_core::api::kind_config::{KindConfig, KindNode};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::cidr;
use nestling_core::plan::classify::classify;
use nestling_core::plan::egress::Guard;
use nestling_core::plan::golden::fits;
use nestling_core::plan::kind_config::{self, NodeHost};
use nestling_core::plan::resume::Made;
use nestling_core::plan::wire::{
    AGENT_PORT, API_PORT, AgentFailure, AgentSettings, DATA_ROOT, HEALTH_PORT, KEYS_DIRECTORY, SETTINGS_FILE, STORE_DIRECTORY, Stage, TERMINATION_LOG,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::EnvFilter;

use crate::relay::{self, Relay, Resolve};

use super::certificates::{KUBEADM_CONF, Place};
use super::contents::{Inside, Store};
use super::data_root::{self, Owner};
use super::docker::Docker;
use super::dockerd::{self, Dockerd};
use super::facts::{self, Facts, Surroundings};
use super::failure::{evident, failure, from_problem, judge, leave};
use super::fault::disabled;
use super::kind::Kind;
use super::logs::{Logs, OwnLog};
use super::nested::{Connector, Nested};
use super::nodes::{self, Landing};
use super::power::{self, Hands};
use super::registries::Registries;
use super::report::Report;
use super::server::{self, Health};
use super::{
    RUN_DIRECTORY, certificates, cgroup, cni, egress, golden, image, init, keeper, keys, kubelet_unit, made, network, node_files, oci_runtime, output,
    policy_probe, ports, preflight, preload, registration, serving_names, storage, store, teardown, unpacked, users,
};

/// How long a failed agent stays to be asked, in the end nobody came.
const LINGER: Duration = Duration::from_mins(10);

/// Sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Longest creation. The operator has its own, shorter limit (`lifecycle.creationTimeout`); this one is against agents that nobody ends.
const CREATION_LIMIT: Duration = Duration::from_hours(1);

/// Time for the API server after kind has ended, which has waited for it itself.
const SETTLE_LIMIT: Duration = Duration::from_mins(2);

/// Time for a cluster that was there before to come up again. Its API server takes ten seconds on an idle machine, and minutes on one where many come back.
const RETURN_LIMIT: Duration = Duration::from_mins(5);

/// Time for a node to stop, as `docker stop` gives it.
const NODE_STOP_LIMIT: Duration = Duration::from_secs(10);

/// Time for freezing all nodes, which takes a fraction of a second.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);

/// Pause between two looks at a server that is coming up. Each costs the machine on which all else is coming up as well.
const OPEN_PAUSE: Duration = Duration::from_millis(200);

/// Pause between two looks at a server that is up, and at one that is down.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// Failed looks in a row after which the API server, and after which Docker, counts as gone. A look at Docker takes five seconds when it fails, and so does the pause after it: two
/// minutes in all.
const PATIENCE: (u32, u32) = (3, 12);

/// Pause after a look at Docker that has failed.
const DOCKER_PAUSE: Duration = Duration::from_secs(5);

/// The token of every cluster that kind makes on its own (`pkg/cluster/internal/kubeadm/const.go`).
const KINDS_TOKEN: &str = "abcdef.0123456789abcdef";

/// MTU of Ethernet, for a pod without a default route.
const DEFAULT_MTU: u32 = 1500;

/// Entry of the supervised process.
pub fn run() -> ExitCode {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        output::keep_passwords_of(&std::env::var(name).unwrap_or_default());
    }
    // A server that is coming up is asked many times, and the client would say each time that it does not answer.
    let filter = EnvFilter::new("info,kube_client=off");
    tracing_subscriber::fmt().compact().with_ansi(false).with_env_filter(filter).with_writer(|| output::Presentable(OwnLog)).init();
    // The default of the crates that ask for one; there is no other in this program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let started = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match started {
        Ok(runtime) => runtime.block_on(operate()),
        Err(error) => Err(failure(Reason::AgentCrashed, format!("the agent has no runtime: {error}"))),
    };
    ended.unwrap_or_else(|failure| {
        // Nobody can be told but the kubelet.
        tracing::error!(reason = %failure.reason, message = failure.message, "the agent cannot serve");
        remember(&failure);
        ExitCode::FAILURE
    })
}

fn remember(failure: &AgentFailure) {
    if let Err(error) = leave(failure, Path::new(TERMINATION_LOG)) {
        tracing::warn!("cannot write {TERMINATION_LOG}: {error}");
    }
}

/// Serves the report and drives the machine until it is told to end.
async fn operate() -> Result<ExitCode, AgentFailure> {
    let broken = |error: String| failure(Reason::AgentCrashed, error);
    let mut stop = Stop::new().map_err(|error| broken(format!("no signals: {error}")))?;
    let told = read_settings().map_err(broken)?;
    let made = made::read(Path::new(DATA_ROOT)).filter(|made| made.is_for(&told));
    let settings = made.as_ref().map_or_else(|| told.clone(), |made| made.taken_over(&told));
    let report = Report::new(&settings);
    report.update(|report| report.outdated = made.as_ref().map_or_else(Vec::new, |made| made.differences(&told)));
    let (alive, heartbeat) = watch::channel(Instant::now());

    let tls = server::tls(Path::new(KEYS_DIRECTORY)).map_err(|error| broken(error.to_string()))?;
    let logs = Arc::new(Logs::new(&settings.cluster_name, report.subscribe()));
    let operator = server::listen(port(AGENT_PORT)).await.map_err(|error| broken(error.to_string()))?;
    let kubelet = server::listen(port(HEALTH_PORT)).await.map_err(|error| broken(error.to_string()))?;
    let (renewed, tls) = watch::channel(tls);
    let contents = Store::new(report.clone());
    let _operator = AbortOnDropHandle::new(tokio::spawn(server::serve_operator(operator, tls, contents.clone(), logs)));
    let _keys = AbortOnDropHandle::new(tokio::spawn(async move { server::reload(Path::new(KEYS_DIRECTORY), &renewed).await }));
    let health = Health { report: report.subscribe(), alive: heartbeat };
    let _health = AbortOnDropHandle::new(tokio::spawn(server::serve_health(kubelet, health)));

    let registries = Registries::new(&settings.registries);
    let kind = Kind::new(&settings.cluster_name);
    let machine = Machine { kind, registries, settings, made, report, contents, data_root: OnceLock::new(), dockerd: OnceLock::new() };
    let beat = async {
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            alive.send_replace(Instant::now());
        }
    };
    let live = async {
        let failed = tokio::select! {
            failure = machine.work() => {
                ports::closed(&machine.report);
                remember(&failure);
                machine.report.fail(failure);
                tokio::select! {
                    () = sleep(LINGER) => {}
                    () = stop.wait() => {}
                }
                true
            }
            () = stop.wait() => false,
        };
        machine.report.enter(Stage::Terminating);
        machine.report.update(|report| report.control_plane_ready = false);
        ports::closed(&machine.report);
        if let Some(dockerd) = machine.dockerd.get() {
            teardown::run(&machine.kind, &machine.settings.cluster_name, machine.keeps(), dockerd).await;
        }
        failed
    };
    let failed: bool = tokio::select! {
        failed = live => failed,
        () = beat => true,
    };
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read_settings() -> Result<AgentSettings, String> {
    let text = fs::read_to_string(SETTINGS_FILE).map_err(|error| format!("cannot read {SETTINGS_FILE}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("cannot understand {SETTINGS_FILE}: {error}"))
}

/// A port of the contract as the kernel's number.
fn port(number: i32) -> u16 {
    u16::try_from(number).unwrap_or_default()
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Machine {
    /// What the pod was told, but for what is fixed in a cluster that is there already.
    settings: AgentSettings,
    /// What the cluster that is there already was made with.
    made: Option<Made>,
    report: Report,
    /// What is to be in the cluster.
    contents: Store,
    kind: Kind,
    registries: Registries,
    /// The lock on a persistent data-root, until the end of the process.
    data_root: OnceLock<File>,
    /// Set as soon as there is a process to stop.
    dockerd: OnceLock<Dockerd>,
}

/// What the first stages found out.
struct Ground {
    host: NodeHost,
    token: String,
    mtu: u32,
}

/// Where API servers are, or who stands before them.
#[derive(Debug)]
struct Containers {
    docker: Docker,
    names: Vec<String>,
}

impl Resolve for Containers {
    async fn resolve(&self) -> Vec<Option<SocketAddr>> {
        let addresses = join_all(self.names.iter().map(|name| self.docker.address(name))).await;
        addresses.into_iter().map(|address| Some((address?, port(API_PORT)).into())).collect()
    }
}

impl Machine {
    /// Works until something fails.
    async fn work(&self) -> AgentFailure {
        match Box::pin(self.stages()).await {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    async fn stages(&self) -> Result<Infallible, AgentFailure> {
        // Before its free space is looked at.
        self.take_data_root().await?;
        let facts = self.preflight().await?;
        self.report.enter(Stage::Cgroups);
        init::cgroup_failure().map_err(|error| failure(Reason::CgroupDelegation, error))?;
        self.report.enter(Stage::Network);
        let programs = network::prepare().await?;
        let surroundings = Surroundings::gather();
        // Before Docker: the nodes of an earlier run start with it.
        let guard = self.raise_guard(&surroundings, &programs).await?;
        let _policy = self
            .settings
            .egress
            .host_api
            .map(|api| AbortOnDropHandle::new(tokio::spawn(policy_probe::follow(self.report.clone(), api, surroundings.nameservers.clone()))));
        // Nodes of an earlier run start with Docker: their keys must be there before.
        let pki = Path::new(RUN_DIRECTORY).join("pki");
        let mut token = keys::take_over(Path::new(KEYS_DIRECTORY), &pki).map_err(|error| failure(Reason::PodStartFailed, error.to_string()))?;
        if disabled("random-token") {
            KINDS_TOKEN.clone_into(&mut token);
        }
        // kind and kubeadm are given it, and nobody else is to see it.
        output::keep_secret(token.clone());
        self.registries.write().map_err(|error| match &self.made {
            // The nodes mount what the list that they were made with refers to.
            Some(_) if self.settings.resume => failure(Reason::ResumeFailed, format!("spec.registries lacks what the cluster was made with: {error}")),
            _ => failure(Reason::PodStartFailed, error.to_string()),
        })?;
        let ground = Ground { host: node_host(&facts, &pki, storage::is_own(&self.settings, &facts)), token, mtu: facts.mtu.unwrap_or(DEFAULT_MTU) };

        self.report.enter(Stage::Dockerd);
        lay_out_store(self.settings.persistent).await?;
        let restricted = !facts.missing_capabilities.is_empty();
        let registries = self.registries.daemon();
        let runtime = oci_runtime::choice(cgroup::shares_disks());
        let settings =
            dockerd::Settings { network: self.settings.network.clone(), mtu: ground.mtu, runtime, restricted, registries, programs: programs.clone() };
        let dockerd = dockerd::start(&settings).await?;
        let dockerd = self.dockerd.get_or_init(|| dockerd);
        let docker = dockerd.ready().await?;
        if let Some(guard) = &guard {
            egress::check(guard, &programs).await?;
        }
        tokio::select! {
            failure = dockerd.died() => Err(failure),
            failure = watch_docker(&docker, dockerd) => Err(failure),
            never = self.registries.follow() => match never {},
            done = self.cluster(&docker, &ground) => done,
        }
    }

    /// Whether the cluster stays on its volume when the pod ends.
    fn keeps(&self) -> bool {
        let ordered = self.report.subscribe().borrow().orders.as_ref().and_then(|orders| orders.received.keep);
        self.settings.persistent && ordered.unwrap_or(self.settings.keep)
    }

    /// Takes over a data-root that earlier pods may have worked on.
    async fn take_data_root(&self) -> Result<(), AgentFailure> {
        if !self.settings.persistent {
            return Ok(());
        }
        let owner = Owner { cluster_uid: self.settings.cluster_uid.clone(), attempt: self.settings.attempt };
        let resume = self.settings.resume;
        let taken = tokio::task::spawn_blocking(move || data_root::take_over(Path::new(DATA_ROOT), &owner, resume)).await;
        let lock = taken.map_err(|error| failure(Reason::AgentCrashed, format!("the look at the volume ended early: {error}")))??;
        self.data_root.get_or_init(|| lock);
        if resume && self.made.is_none() {
            return Err(failure(Reason::ResumeFailed, "the volume holds no whole cluster"));
        }
        Ok(())
    }

    async fn preflight(&self) -> Result<Facts, AgentFailure> {
        let facts = tokio::task::spawn_blocking(|| facts::gather(DATA_ROOT)).await;
        let facts = facts.map_err(|error| failure(Reason::AgentCrashed, format!("the checks ended early: {error}")))?;
        if let Some(made) = &self.made {
            made.check(facts.cgroup == cgroup::Version::V2).map_err(|problem| from_problem(&problem))?;
        }
        let demand = preflight::Demand {
            nodes: self.nodes().len() as u64,
            allow_cgroup_v1: self.settings.allow_cgroup_v1,
            network: Some(&self.settings.network),
            there: self.made.is_some(),
        };
        let mut warnings = preflight::check(&facts, demand).map_err(|problem| from_problem(&problem))?;
        if self.settings.persistent && !storage::is_own(&self.settings, &facts) {
            warnings.push(storage::SHARED.to_owned());
        }
        self.report.update(|report| {
            report.warnings = warnings;
            report.cgroup_v1 = Some(facts.cgroup == cgroup::Version::V1);
        });
        Ok(facts)
    }

    /// Puts the egress guard up, or says that it is off.
    async fn raise_guard(&self, surroundings: &Surroundings, programs: &Path) -> Result<Option<Guard>, AgentFailure> {
        let guard = egress::guard(&self.settings.egress, &self.settings.network, surroundings).filter(|_| !disabled("egress-guard"));
        match &guard {
            Some(guard) => egress::raise(guard, programs).await?,
            None => self.report.update(|report| report.warnings.push(egress::OFF.to_owned())),
        }
        Ok(guard)
    }

    fn nodes(&self) -> Vec<KindNode> {
        kind_config::nodes(self.settings.config.as_ref(), self.settings.control_planes, self.settings.workers)
    }

    /// Names of the containers of all control planes, the first one first.
    fn control_planes(&self) -> Vec<String> {
        self.kind.control_planes(kind_config::control_planes(&self.nodes()))
    }

    /// Brings the cluster up, or an earlier one back, and serves it.
    async fn cluster(&self, docker: &Docker, ground: &Ground) -> Result<Infallible, AgentFailure> {
        let since = Timestamp::now();
        if let Some(nested) = self.come_back(docker, ground).await? {
            return self.serve(docker, nested, ground, since).await;
        }
        // Images are pulled while kind works; one that cannot be had ends the attempt at once.
        let made = async { tokio::try_join!(self.create(docker, ground), preload::fetch(docker, &self.registries, &self.settings.preload)) };
        let (made, ()) = tokio::join!(made, self.tell_facts());
        let (nested, fetched) = made?;
        if !fetched.is_empty() {
            self.report.enter(Stage::PreloadingImages);
            preload::place(docker, &self.settings.cluster_name, &fetched).await?;
        }
        self.note_whole(docker, ground).await;
        self.serve(docker, nested, ground, since).await
    }

    /// The cluster that is there already, back at work; `None` if there is none. What does not come back is removed, unless it was to be brought back from an
    /// earlier pod: then the attempt ends, and all stays.
    async fn come_back(&self, docker: &Docker, ground: &Ground) -> Result<Option<Nested>, AgentFailure> {
        let docker_failed = |error: super::docker::Error| failure(Reason::DockerFailed, error.to_string());
        let found = docker.containers(&self.settings.cluster_name).await.map_err(docker_failed)?;
        if found.is_empty() && !self.settings.resume {
            return Ok(None);
        }
        match self.bring_back(docker, ground, !found.is_empty()).await {
            Ok(nested) => return Ok(Some(nested)),
            Err(failure) if self.settings.resume => return Err(self.not_back(docker, failure).await),
            Err(failure) => tracing::warn!("what an earlier run left is removed: {}", failure.message),
        }
        made::remove(Path::new(DATA_ROOT)).map_err(|error| failure(Reason::DockerFailed, error.to_string()))?;
        for container in &found {
            docker.remove(&container.name).await.map_err(docker_failed)?;
        }
        Ok(None)
    }

    async fn bring_back(&self, docker: &Docker, ground: &Ground, found: bool) -> Result<Nested, AgentFailure> {
        let made = self.made.as_ref().filter(|_| found);
        let made = made.ok_or_else(|| failure(Reason::ResumeFailed, "there is no whole cluster: its nodes or the record of it are missing"))?;
        tracing::info!("a cluster is there");
        self.report.enter(Stage::Resuming);
        if self.settings.resume {
            // Those that Docker has started by itself know nothing of this machine.
            nodes::stop(docker, &self.settings.cluster_name, NODE_STOP_LIMIT).await;
        }
        nodes::bring_back(docker, &self.settings.cluster_name, &self.landing(ground, made)).await?;
        let nested = self.open(docker, RETURN_LIMIT).await?;
        self.tell_facts().await;
        Ok(nested)
    }

    /// What nodes that come back have to know of this machine.
    fn landing(&self, ground: &Ground, made: &Made) -> Landing {
        let reserved = kind_config::reserved(&self.settings, &ground.host, &self.nodes());
        Landing { network: self.settings.network.nodes, mtu: ground.mtu, reserved, addresses: addresses_of(made) }
    }

    /// Why the cluster is not back, with what its nodes say about it.
    async fn not_back(&self, docker: &Docker, failed: AgentFailure) -> AgentFailure {
        let nodes = self.kind.evidence(docker).await;
        let own = if failed.log_tail.is_empty() { nodes.join("\n") } else { failed.log_tail };
        let logs: Vec<String> = std::iter::once(own).chain(nodes).collect();
        let (reason, log) = judge(&logs, Reason::ResumeFailed);
        evident(reason, format!("the cluster does not come back: {}", failed.message), log)
    }

    /// What is known of a cluster before it serves.
    async fn tell_facts(&self) {
        let version = Kind::version().await;
        self.report.update(|report| {
            report.kind_version = version;
            report.load_balancer_cidr = cidr::for_load_balancers(self.settings.network.nodes);
        });
    }

    /// Notes that the cluster is whole, beside its data, and how it can be brought back.
    async fn note_whole(&self, docker: &Docker, ground: &Ground) {
        let addresses = nodes::addresses(docker, &self.settings.cluster_name).await;
        for name in addresses.keys().filter(|_| self.settings.persistent) {
            if let Err(error) = docker.leave_starts_to_us(name).await {
                tracing::warn!("Docker may start {name} by itself: {error}");
            }
        }
        let made = Made::new(self.settings.clone(), ground.host.cgroup_v2, addresses);
        if let Err(error) = made::write(Path::new(DATA_ROOT), &made) {
            tracing::warn!("cannot note that the cluster is whole: {error}");
        }
    }

    async fn create(&self, docker: &Docker, ground: &Ground) -> Result<Nested, AgentFailure> {
        let since = Timestamp::now();
        self.report.enter(Stage::NodeImage);
        let network = docker.ensure_network(self.settings.network.nodes, ground.mtu);
        let (network, config) = tokio::join!(network, self.configuration(docker, ground));
        network.map_err(|error| failure(Reason::DockerFailed, format!("kind's network: {error}")))?;
        let config = config?;

        let ended = Notify::new();
        let kind = async {
            if let Err(failure) = self.kind.create(&config, docker, &self.report, &[&ground.token]).await {
                return failure;
            }
            self.report.enter(Stage::WaitingForControlPlane);
            ended.notify_one();
            sleep(SETTLE_LIMIT).await;
            failure(Reason::ControlPlaneUnhealthy, format!("the API server is not ready {} s after kind ended", SETTLE_LIMIT.as_secs()))
        };
        // While kind works: what it wrote is checked, and the API server is used as soon as it answers.
        let along = async {
            self.nodes_are_configured().await;
            kubelet_unit::write(docker, &self.settings.cluster_name, self.settings.network.services).await;
            self.verify(docker, &config).await?;
            let network = self.begin_network(docker, &config, ground).await;
            let nested = self.open(docker, CREATION_LIMIT).await?;
            // kind goes on after that: nobody is to see a half-made cluster.
            let names = self.control_planes();
            tokio::join!(registration::hasten(docker, &nested, &names[..1], since), ended.notified());
            if let Some(network) = network {
                network.taken_over(docker).await?;
            }
            Ok(nested)
        };
        tokio::select! {
            failure = kind => Err(failure),
            nested = along => nested,
        }
    }

    /// The configuration for kind, with every image present.
    async fn configuration(&self, docker: &Docker, ground: &Ground) -> Result<KindConfig, AgentFailure> {
        let (nodes, default) = (self.nodes(), &self.settings.image);
        let present = image::ensure(docker, &self.registries, &nodes, default).await?;
        let version = image::kubernetes_version(docker, &nodes, default, &present).await?;
        let mut settings = self.settings.clone();
        if disabled("memory-reservation") {
            settings.limits.memory_bytes = ground.host.memory_bytes;
        }
        let composed = kind_config::compose(&settings, &ground.host, version, &ground.token);
        let mut config = composed.map_err(|problem| from_problem(&problem))?;
        if disabled("search-domains")
            && let Some(networking) = &mut config.networking
        {
            networking.dns_search = None;
        }
        image::rename(&mut config, &present);
        let fits = fits(self.settings.config.as_ref(), &nodes) && !disabled("golden-state");
        lay_out_nodes(config, fits).await
    }

    /// Waits until kind has written what kubeadm is told; the nodes run, and nothing of Kubernetes in them yet.
    async fn nodes_are_configured(&self) {
        let mut report = self.report.subscribe();
        // kind writes the file in place and begins the next step afterwards.
        let _ = report.wait_for(|report| report.stage > Stage::WritingConfiguration).await;
    }

    /// Checks what kind wrote for kubeadm.
    async fn verify(&self, docker: &Docker, config: &KindConfig) -> Result<(), AgentFailure> {
        for name in self.control_planes() {
            let written = match docker.pid(&name).await {
                Some(pid) => node_files::read(pid, KUBEADM_CONF).map_err(|error| error.to_string()),
                None => Err("it does not run".to_owned()),
            };
            let written = written.map_err(|error| failure(Reason::ConfigNotApplied, format!("cannot read {KUBEADM_CONF} of {name}: {error}")))?;
            kind_config::verify(&written, config).map_err(|problem| from_problem(&problem))?;
        }
        Ok(())
    }

    /// Lets the pod network of the first node begin before its cluster has one. Without it, all takes longer.
    async fn begin_network(&self, docker: &Docker, config: &KindConfig, ground: &Ground) -> Option<cni::Beginning> {
        let names = self.control_planes();
        let begun = cni::begin(docker, names.first()?, config, self.settings.network.pods, ground.mtu).await;
        begun.inspect_err(|error| tracing::warn!("the pod network begins with kindnet: {error}")).ok()?
    }

    /// Opens the cluster for its operator: waits for the API server, binds the admin group, learns who it is.
    async fn open(&self, docker: &Docker, limit: Duration) -> Result<Nested, AgentFailure> {
        let names = self.control_planes();
        let mut connector = Connector::default();
        let end = Instant::now() + limit;
        loop {
            if let Some(nested) = connect(docker, &mut connector, &names).await
                && nested.ready().await
                // The right to bind comes with kubeadm's own first binding.
                && nested.bind_admins().await.is_ok()
                && let Ok(identity) = nested.identity().await
            {
                self.report.update(|report| {
                    report.nested_uid = identity.uid;
                    report.server_version = Some(identity.version);
                });
                return Ok(nested);
            }
            if Instant::now() > end {
                return Err(failure(Reason::ControlPlaneUnhealthy, format!("gave up waiting for the API server after {} s", limit.as_secs())));
            }
            sleep(OPEN_PAUSE).await;
        }
    }

    /// Serves the cluster, or keeps it suspended, as ordered. What its nodes have said `since` counts.
    async fn serve(&self, docker: &Docker, nested: Nested, ground: &Ground, since: Timestamp) -> Result<Infallible, AgentFailure> {
        let nodes = NodesHere { machine: self, docker, ground };
        let as_ordered = async {
            let (mut nested, mut since) = (nested, since);
            loop {
                self.serve_until_suspended(docker, &nested, ground, since).await?;
                let back = power::keep(&nodes, &self.report).await;
                nested = back.nested;
                since = back.since.unwrap_or(since);
            }
        };
        tokio::select! {
            ended = as_ordered => ended,
            never = storage::watch(ground.host.own_disk, self.settings.limits.storage_bytes, &self.report) => match never {},
        }
    }

    async fn serve_until_suspended(&self, docker: &Docker, nested: &Nested, ground: &Ground, since: Timestamp) -> Result<(), AgentFailure> {
        let mut names = self.control_planes();
        if names.len() > 1 {
            // It stands before all of them; while it is dead, they are asked themselves.
            names.insert(0, self.kind.load_balancer());
        }
        let door = (Ipv4Addr::UNSPECIFIED, port(API_PORT)).into();
        let relay = Relay::open(door, Containers { docker: docker.clone(), names }, relay::places()).await;
        let relay = relay.map_err(|error| failure(Reason::AgentCrashed, format!("the front door cannot be opened: {error}")))?;
        let known = made::read(Path::new(DATA_ROOT)).map(|made| addresses_of(&made)).unwrap_or_default();
        let authority = Path::new(&ground.host.keys_directory).join("ca.crt");
        let place = Place { docker, cluster: &self.settings.cluster_name, authority: &authority };
        certificates::note(&place, &self.report).await;
        preload::note(docker, &self.settings, &self.report).await;
        power::runs(&self.report);
        self.report.enter(Stage::Serving);
        let taken = ports::mapped(self.settings.config.as_ref());
        let node_port = |port| ports::NodePort { docker: docker.clone(), cluster: self.settings.cluster_name.clone(), port };
        let ended = tokio::select! {
            never = relay.run() => match never {},
            never = Box::pin(ports::follow(&taken, node_port, &self.report)) => match never {},
            failed = Box::pin(self.look_after(nested, &place, since)) => failed.map(|never| match never {}),
            never = Box::pin(serving_names::follow(&place, &self.settings.cert_sans, &self.report)) => match never {},
            never = Box::pin(self.hasten_returns(docker, nested, since)) => match never {},
            never = Box::pin(preload::follow(docker, &self.registries, &self.settings, &self.report)) => match never {},
            failure = keeper::keep(docker, &self.settings.cluster_name, known, &self.report) => Err(failure),
            // From here on nobody starts what is to be stopped.
            () = power::is_due(&self.report) => Ok(()),
        };
        ports::closed(&self.report);
        self.report.update(|report| report.dead_containers.clear());
        ended
    }

    /// Nodes that come back are ready as soon as they can be.
    async fn hasten_returns(&self, docker: &Docker, nested: &Nested, since: Timestamp) -> Infallible {
        let names: Vec<String> =
            nodes::addresses(docker, &self.settings.cluster_name).await.into_keys().filter(|name| *name != self.kind.load_balancer()).collect();
        registration::hasten(docker, nested, &names, since).await;
        std::future::pending().await
    }

    /// Follows the cluster with the node's own credentials, and with new ones when they are renewed.
    async fn look_after(&self, nested: &Nested, place: &Place<'_>, since: Timestamp) -> Result<Infallible, AgentFailure> {
        let mut renewed = None;
        loop {
            let nested = renewed.as_ref().unwrap_or(nested);
            let inside = Inside::new(nested.client(), place);
            tokio::select! {
                () = nested.follow_nodes(&self.report, since) => return Err(failure(Reason::AgentCrashed, "the watch on the nodes has ended")),
                never = self.probe(nested) => match never {},
                never = forget_tokens(nested) => match never {},
                never = Box::pin(self.contents.follow(&inside)) => match never {},
                never = users::follow(nested, &self.report) => match never {},
                () = Box::pin(certificates::keep(place, &self.report)) => {}
            }
            // The earlier ones hold for a while yet.
            if let Some(again) = connect(place.docker, &mut Connector::default(), &self.control_planes()).await {
                renewed = Some(again);
            }
        }
    }

    /// Follows the API server's readiness.
    async fn probe(&self, nested: &Nested) -> Infallible {
        let mut failed = 0;
        loop {
            if nested.ready().await {
                failed = 0;
            } else {
                failed += 1;
            }
            if failed == 0 || failed >= PATIENCE.0 {
                self.report.update(|report| report.control_plane_ready = failed == 0);
            }
            sleep(if failed == 0 { PROBE_PAUSE.0 } else { PROBE_PAUSE.1 }).await;
        }
    }
}

/// The addresses that the nodes had when the cluster was whole.
fn addresses_of(made: &Made) -> BTreeMap<String, Ipv4Addr> {
    made.addresses.keys().filter_map(|name| Some((name.clone(), made.address(name)?))).collect()
}

/// A client with the credentials of the first control plane that runs and has any. What it asks goes to kind's own port, behind which all of them are.
async fn connect(docker: &Docker, connector: &mut Connector, control_planes: &[String]) -> Option<Nested> {
    for name in control_planes {
        if let Some(pid) = docker.pid(name).await
            && let Some(nested) = connector.connect(pid).await
        {
            return Some(nested);
        }
    }
    None
}

/// The nodes of the cluster that this machine serves.
struct NodesHere<'a> {
    machine: &'a Machine,
    docker: &'a Docker,
    ground: &'a Ground,
}

/// A cluster that is back.
struct Back {
    nested: Nested,
    /// Since when the word of its nodes counts, if that has changed.
    since: Option<Timestamp>,
}

impl Hands for NodesHere<'_> {
    type Cluster = Back;

    async fn freeze(&self) -> Result<(), AgentFailure> {
        nodes::freeze(self.docker, &self.machine.settings.cluster_name, FREEZE_LIMIT).await
    }

    async fn stop(&self) -> Result<(), AgentFailure> {
        let stopped = nodes::stop(self.docker, &self.machine.settings.cluster_name, NODE_STOP_LIMIT).await;
        if stopped { Ok(()) } else { Err(failure(Reason::DockerFailed, "not all nodes could be stopped")) }
    }

    async fn bring_back(&self) -> Result<Back, AgentFailure> {
        let Self { machine, docker, ground } = self;
        let cluster = &machine.settings.cluster_name;
        let since = Timestamp::now();
        // Nodes that were only frozen need not say again that they are ready, and kubelets would do so within minutes only.
        let started = docker.containers(cluster).await.is_ok_and(|containers| containers.iter().any(|container| !container.running));
        let made = made::read(Path::new(DATA_ROOT));
        let made = made.unwrap_or_else(|| Made::new(machine.settings.clone(), ground.host.cgroup_v2, BTreeMap::new()));
        nodes::bring_back(docker, cluster, &machine.landing(ground, &made)).await?;
        let nested = machine.open(docker, RETURN_LIMIT).await?;
        Ok(Back { nested, since: started.then_some(since) })
    }
}

fn node_host(facts: &Facts, pki: &Path, own_disk: bool) -> NodeHost {
    NodeHost {
        cgroup_v2: facts.cgroup == cgroup::Version::V2 && !disabled("version-check"),
        may_lower_oom_score: !facts.missing_capabilities.contains(&"CAP_SYS_RESOURCE"),
        memory_bytes: facts.memory_bytes,
        cpu_millis: facts.cpu_millis,
        own_disk,
        keys_directory: pki.display().to_string(),
    }
}

/// Gives the data-root the node images that the pod image carries, as its own where it outlives the pod and its image.
async fn lay_out_store(own: bool) -> Result<(), AgentFailure> {
    let outcome = lay_out("the node images of the pod image", move || store::lay_out(own)).await?;
    tracing::info!(?outcome, "node images of the pod image");
    Ok(())
}

/// Gives the nodes what the pod image carries for them: images, unpacked, and the golden state where it `fits`.
async fn lay_out_nodes(mut config: KindConfig, fits: bool) -> Result<KindConfig, AgentFailure> {
    lay_out("what the pod image carries for the nodes", move || {
        let (store, data_root) = (Path::new(STORE_DIRECTORY), Path::new(DATA_ROOT));
        if let Some(images) = unpacked::find(store, data_root) {
            images.give(&mut config, data_root)?;
        }
        if let Some(golden) = golden::find(store).filter(|_| fits) {
            let given = golden.give(&mut config, data_root)?;
            tracing::info!(given, "golden state");
        }
        Ok(config)
    })
    .await
}

/// Works on the data-root, which blocks.
async fn lay_out<T: Send + 'static>(what: &str, work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, AgentFailure> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|error| {
        let said = error.to_string();
        evident(classify(&said, Reason::DockerFailed), format!("{what} cannot be laid out"), &said)
    })
}

/// Deletes the joining tokens once all nodes have joined; then rests.
async fn forget_tokens(nested: &Nested) -> Infallible {
    while !disabled("token-removal")
        && let Err(error) = nested.delete_bootstrap_tokens().await
    {
        tracing::warn!("the bootstrap token is still there: {error}");
        sleep(PROBE_PAUSE.0).await;
    }
    std::future::pending().await
}

/// Waits until a daemon that lives does not answer any more.
async fn watch_docker(docker: &Docker, dockerd: &Dockerd) -> AgentFailure {
    let mut failed = 0;
    while failed < PATIENCE.1 {
        sleep(if failed == 0 { PROBE_PAUSE.0 } else { DOCKER_PAUSE }).await;
        failed = if docker.answers().await { 0 } else { failed + 1 };
    }
    dockerd.unresponsive()
}
