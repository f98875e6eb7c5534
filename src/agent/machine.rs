//! The machine: one stage after the other, from the checks of the host to the running cluster.

use std::convert::Infallible;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nestling_core::api::kind_config::{KindConfig, KindNode};
use nestling_core::api::reasons::Reason;
use nestling_core::plan::classify::classify;
use nestling_core::plan::egress::Guard;
use nestling_core::plan::kind_config::{self, NodeHost};
use nestling_core::plan::wire::{
    AGENT_PORT, API_PORT, AgentFailure, AgentSettings, DATA_ROOT, HEALTH_PORT, KEYS_DIRECTORY, SETTINGS_FILE, Stage, TERMINATION_LOG,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::data_root::{self, Owner};
use super::docker::Docker;
use super::dockerd::{self, Dockerd};
use super::facts::{self, Facts, Surroundings};
use super::failure::{evident, failure, from_problem, leave};
use super::fault::disabled;
use super::kind::Kind;
use super::logs::{Logs, OwnLog};
use super::nested::{Connector, Nested};
use super::registries::Registries;
use super::relay::{Relay, Resolve};
use super::report::Report;
use super::server::{self, Health};
use super::wait::OFTEN;
use super::{RUN_DIRECTORY, cgroup, egress, image, init, keys, network, node_files, output, policy_probe, preflight, storage, store, teardown};

/// How long a failed agent stays to be asked, in the end nobody came.
const LINGER: Duration = Duration::from_mins(10);

/// Sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Longest creation. The operator has its own, shorter limit (`lifecycle.creationTimeout`); this one is against agents that nobody ends.
const CREATION_LIMIT: Duration = Duration::from_hours(1);

/// Time for the API server after kind has ended, which has waited for it itself.
const SETTLE_LIMIT: Duration = Duration::from_mins(2);

/// Time for a cluster of an earlier run to come up again.
const ADOPTION_LIMIT: Duration = Duration::from_secs(90);

/// Pause between two looks at a server that is up, and at one that is down.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// Failed looks in a row after which the API server, and after which Docker, counts as gone. A look at Docker takes five seconds when it fails, and so does the pause after it: two
/// minutes in all.
const PATIENCE: (u32, u32) = (3, 12);

/// Pause after a look at Docker that has failed.
const DOCKER_PAUSE: Duration = Duration::from_secs(5);

/// Where kind leaves the configuration that kubeadm gets (`pkg/cluster/internal/create/actions/config`).
const KUBEADM_CONF: &str = "/kind/kubeadm.conf";

/// The token of every cluster that kind makes on its own (`pkg/cluster/internal/kubeadm/const.go`).
const KINDS_TOKEN: &str = "abcdef.0123456789abcdef";

/// MTU of Ethernet, for a pod without a default route.
const DEFAULT_MTU: u32 = 1500;

/// Entry of the supervised process.
pub fn run() -> ExitCode {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        output::keep_passwords_of(&std::env::var(name).unwrap_or_default());
    }
    tracing_subscriber::fmt().compact().with_ansi(false).with_writer(|| output::Presentable(OwnLog)).init();
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
    let settings = read_settings().map_err(broken)?;
    let report = Report::new(&settings);
    let (alive, heartbeat) = watch::channel(Instant::now());

    let tls = server::tls(Path::new(KEYS_DIRECTORY)).map_err(|error| broken(error.to_string()))?;
    let logs = Arc::new(Logs::new(&settings.cluster_name, report.subscribe()));
    let operator = server::listen(port(AGENT_PORT)).await.map_err(|error| broken(error.to_string()))?;
    let kubelet = server::listen(port(HEALTH_PORT)).await.map_err(|error| broken(error.to_string()))?;
    let _operator = AbortOnDropHandle::new(tokio::spawn(server::serve_operator(operator, tls, report.subscribe(), logs)));
    let health = Health { report: report.subscribe(), alive: heartbeat };
    let _health = AbortOnDropHandle::new(tokio::spawn(server::serve_health(kubelet, health)));

    let registries = Registries::new(&settings.registries);
    let machine = Machine { kind: Kind::new(&settings.cluster_name), registries, settings, report, data_root: OnceLock::new(), dockerd: OnceLock::new() };
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
        if let Some(dockerd) = machine.dockerd.get() {
            teardown::run(&machine.kind, &machine.settings.cluster_name, dockerd).await;
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
    settings: AgentSettings,
    report: Report,
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

/// Where the API server's container is.
#[derive(Debug)]
struct Container {
    docker: Docker,
    names: [String; 2],
}

impl Resolve for Container {
    async fn resolve(&self) -> Option<SocketAddr> {
        for name in &self.names {
            if let Some(address) = self.docker.address(name).await {
                return Some((address, port(API_PORT)).into());
            }
        }
        None
    }
}

impl Machine {
    /// Works until something fails.
    async fn work(&self) -> AgentFailure {
        match self.stages().await {
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
        self.registries.write().map_err(|error| failure(Reason::PodStartFailed, error.to_string()))?;
        let ground = Ground { host: node_host(&facts, &pki, storage::is_own(&self.settings, &facts)), token, mtu: facts.mtu.unwrap_or(DEFAULT_MTU) };

        self.report.enter(Stage::Dockerd);
        lay_out_store().await?;
        let restricted = !facts.missing_capabilities.is_empty();
        let registries = self.registries.daemon();
        let settings = dockerd::Settings { network: self.settings.network.clone(), mtu: ground.mtu, restricted, registries, programs: programs.clone() };
        let dockerd = dockerd::start(&settings)?;
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

    /// Takes over a data-root that earlier pods may have worked on.
    async fn take_data_root(&self) -> Result<(), AgentFailure> {
        if !self.settings.persistent {
            return Ok(());
        }
        let owner = Owner { cluster_uid: self.settings.cluster_uid.clone(), attempt: self.settings.attempt };
        let taken = tokio::task::spawn_blocking(move || data_root::take_over(Path::new(DATA_ROOT), &owner)).await;
        let lock = taken.map_err(|error| failure(Reason::AgentCrashed, format!("the look at the volume ended early: {error}")))??;
        self.data_root.get_or_init(|| lock);
        Ok(())
    }

    async fn preflight(&self) -> Result<Facts, AgentFailure> {
        let facts = tokio::task::spawn_blocking(|| facts::gather(DATA_ROOT)).await;
        let facts = facts.map_err(|error| failure(Reason::AgentCrashed, format!("the checks ended early: {error}")))?;
        let demand =
            preflight::Demand { nodes: self.nodes().len() as u64, allow_cgroup_v1: self.settings.allow_cgroup_v1, network: Some(&self.settings.network) };
        let mut warnings = preflight::check(&facts, demand).map_err(|problem| from_problem(&problem))?;
        if self.settings.persistent && !storage::is_own(&self.settings, &facts) {
            warnings.push(storage::SHARED.to_owned());
        }
        self.report.update(|report| report.warnings = warnings);
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

    /// Brings the cluster up, or an earlier one back, and serves it.
    async fn cluster(&self, docker: &Docker, ground: &Ground) -> Result<Infallible, AgentFailure> {
        if let Some(nested) = self.adopt(docker).await? {
            return self.serve(docker, nested, ground).await;
        }
        let (created, ()) = tokio::join!(self.create(docker, ground), self.tell_kind_version());
        let nested = created?;
        self.mark_created();
        self.serve(docker, nested, ground).await
    }

    /// The cluster of an earlier run of this pod, if it was complete and comes up again. Anything else of it is removed.
    async fn adopt(&self, docker: &Docker) -> Result<Option<Nested>, AgentFailure> {
        let docker_failed = |error: super::docker::Error| failure(Reason::DockerFailed, error.to_string());
        let found = docker.containers(&self.settings.cluster_name).await.map_err(docker_failed)?;
        if found.is_empty() {
            return Ok(None);
        }
        if fs::read_to_string(marker()).is_ok_and(|uid| uid == self.settings.cluster_uid) {
            tracing::info!("a cluster of an earlier run is there");
            self.report.enter(Stage::WaitingForControlPlane);
            for container in found.iter().filter(|container| container.paused) {
                docker.thaw(&container.name).await.map_err(docker_failed)?;
            }
            match self.open(docker, ADOPTION_LIMIT).await {
                Ok(nested) => {
                    self.tell_kind_version().await;
                    return Ok(Some(nested));
                }
                Err(failure) => tracing::warn!("it does not come up: {}", failure.message),
            }
        }
        tracing::info!("removing what an earlier run left");
        let _ = fs::remove_file(marker());
        for container in &found {
            docker.remove(&container.name).await.map_err(docker_failed)?;
        }
        Ok(None)
    }

    async fn tell_kind_version(&self) {
        let version = Kind::version().await;
        self.report.update(|report| report.kind_version = version);
    }

    /// Notes that the cluster is complete, beside its data.
    fn mark_created(&self) {
        if let Err(error) = fs::write(marker(), &self.settings.cluster_uid) {
            tracing::warn!("cannot note that the cluster is complete: {error}");
        }
    }

    async fn create(&self, docker: &Docker, ground: &Ground) -> Result<Nested, AgentFailure> {
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
            self.verify(docker, &config).await?;
            let nested = self.open(docker, CREATION_LIMIT).await?;
            // kind goes on after that: nobody is to see a half-made cluster.
            ended.notified().await;
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
        Ok(config)
    }

    /// Checks what kind wrote for kubeadm, as soon as it is whole.
    async fn verify(&self, docker: &Docker, config: &KindConfig) -> Result<(), AgentFailure> {
        let mut report = self.report.subscribe();
        // kind writes the file in place and begins the next step afterwards.
        let _ = report.wait_for(|report| report.stage > Stage::WritingConfiguration).await;
        let name = self.kind.control_plane();
        let written = match docker.pid(&name).await {
            Some(pid) => node_files::read(pid, KUBEADM_CONF).map_err(|error| error.to_string()),
            None => Err(format!("{name} does not run")),
        };
        let written = written.map_err(|error| failure(Reason::ConfigNotApplied, format!("cannot read {KUBEADM_CONF}: {error}")))?;
        kind_config::verify(&written, config).map_err(|problem| from_problem(&problem))
    }

    /// Opens the cluster for its operator: waits for the API server, binds the admin group, learns who it is.
    async fn open(&self, docker: &Docker, limit: Duration) -> Result<Nested, AgentFailure> {
        let name = self.kind.control_plane();
        let mut connector = Connector::default();
        let end = Instant::now() + limit;
        loop {
            if let Some(pid) = docker.pid(&name).await
                && let Some(nested) = connector.connect(pid).await
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
            sleep(OFTEN).await;
        }
    }

    async fn serve(&self, docker: &Docker, nested: Nested, ground: &Ground) -> Result<Infallible, AgentFailure> {
        // The load balancer, where there is one, stands before all control planes.
        let names = [self.kind.load_balancer(), self.kind.control_plane()];
        let relay = Relay::open(port(API_PORT), Container { docker: docker.clone(), names }).await;
        let relay = relay.map_err(|error| failure(Reason::AgentCrashed, format!("the front door cannot be opened: {error}")))?;
        self.report.update(|report| report.control_plane_ready = true);
        self.report.enter(Stage::Serving);
        tokio::select! {
            never = relay.run() => match never {},
            () = nested.follow_nodes(&self.report) => Err(failure(Reason::AgentCrashed, "the watch on the nodes has ended")),
            never = self.probe(&nested) => match never {},
            never = storage::watch(ground.host.own_disk, self.settings.limits.storage_bytes, &self.report) => match never {},
            never = forget_tokens(&nested) => match never {},
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

/// Gives the data-root the node images that the pod image carries.
async fn lay_out_store() -> Result<(), AgentFailure> {
    let laid_out = tokio::task::spawn_blocking(store::lay_out).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let outcome = laid_out.map_err(|error| {
        let said = error.to_string();
        evident(classify(&said, Reason::DockerFailed), "the node images of the pod image cannot be laid out", &said)
    })?;
    tracing::info!(?outcome, "node images of the pod image");
    Ok(())
}

/// Beside the cluster's data, with which it comes and goes.
fn marker() -> PathBuf {
    Path::new(DATA_ROOT).join("nestling-created")
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
