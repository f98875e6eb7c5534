//! What the agent asks of Docker.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::errors::Error as Bollard;
use bollard::models::{
    ContainerCreateBody, ContainerSummaryStateEnum, ContainerUpdateBody, EndpointIpamConfig, EndpointSettings, ExecConfig, Ipam, IpamConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateImageOptions, DownloadFromContainerOptions, EventsOptions, ListContainersOptions, LogsOptions, RemoveContainerOptions, RemoveImageOptions,
    StopContainerOptions, TagImageOptions,
};
use futures::{Stream, StreamExt, TryStreamExt};
use hyper::body::Bytes;
use ipnet::Ipv4Net;
use nestling_core::api::conditions::clip_start;
use nestling_core::plan::cidr;
use nestling_core::plan::image_reference::has_tag_or_digest;
use nestling_core::plan::registries::{Login, host_of};
use tokio::time::timeout;

use super::DOCKER_SOCKET;
use super::exec::{Input, Output, exec, exit_code, nothing};

/// kind's network (`fixedNetworkName` in its Docker provider).
pub const NETWORK: &str = "kind";

/// What sets a network's MTU.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// kind's labels on node containers: the cluster, and the node's role.
const CLUSTER_LABEL: &str = "io.x-k8s.kind.cluster";
const ROLE_LABEL: &str = "io.x-k8s.kind.role";

/// Time for requests that Docker answers out of its own head.
const SHORT: Duration = Duration::from_secs(30);

/// Time for pulling an image.
const LONG: Duration = Duration::from_mins(10);

/// Most bytes that are read of a log or of a command's output.
const OUTPUT_LIMIT: usize = 64 << 10;

/// Most bytes of a failed command's output that go into a message.
const SAID_LIMIT: usize = 512;

/// Why Docker did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Docker's own answer, or none.
    #[error("{}", docker_said(.0))]
    Docker(#[from] Bollard),
    /// It took too long.
    #[error("gave up on {what} after {} s", limit.as_secs())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A command in a container ended badly.
    #[error("{command} ended with code {code}: {said}")]
    Command {
        /// Its name.
        command: String,
        /// Its exit code.
        code: i64,
        /// The end of what it printed.
        said: String,
    },
}

fn docker_said(error: &Bollard) -> String {
    match error {
        Bollard::DockerResponseServerError { message, .. } => message.clone(),
        Bollard::DockerStreamError { error } => error.clone(),
        other => other.to_string(),
    }
}

/// A node container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// Its name, which is also the node's.
    pub name: String,
    /// `control-plane`, `worker` or `external-load-balancer`.
    pub role: String,
    /// Whether it runs, frozen or not.
    pub running: bool,
    /// Whether it is frozen.
    pub paused: bool,
}

/// A connection to the daemon.
#[derive(Clone, Debug)]
pub struct Docker {
    short: bollard::Docker,
    long: bollard::Docker,
}

impl Docker {
    /// Connects, and makes sure that the daemon answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn connect() -> Result<Self, Error> {
        // bollard 0.21 does not send the version (`uri.rs`: the joined path replaces it), so the daemon answers with its own newest.
        let short = bollard::Docker::connect_with_unix(DOCKER_SOCKET, SHORT.as_secs(), bollard::API_DEFAULT_VERSION)?;
        short.ping().await?;
        Ok(Self { long: short.clone().with_timeout(LONG), short })
    }

    /// Whether the daemon answers within five seconds.
    pub async fn answers(&self) -> bool {
        timeout(Duration::from_secs(5), self.short.ping()).await.is_ok_and(|answer| answer.is_ok())
    }

    /// Makes kind's network with a range of our choice, as kind would make it otherwise (`createNetwork` in its Docker provider), and leaves a part of it to
    /// load balancers ([`cidr::for_load_balancers`]). One that is there and is not so is made anew, which Docker refuses while a container is in it.
    ///
    /// # Errors
    /// Docker's.
    pub async fn ensure_network(&self, subnet: Ipv4Net, mtu: u32) -> Result<(), Error> {
        let range = IpamConfig { subnet: Some(subnet.to_string()), ip_range: Some(cidr::for_nodes(subnet).to_string()), ..IpamConfig::default() };
        match self.short.inspect_network(NETWORK, None).await {
            Ok(network) => {
                let subnets = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
                let has_mtu = network.options.unwrap_or_default().get(MTU_OPTION) == Some(&mtu.to_string());
                let is_range = |have: &IpamConfig| have.subnet == range.subnet && have.ip_range == range.ip_range;
                if has_mtu && subnets.iter().any(is_range) {
                    return Ok(());
                }
                self.short.remove_network(NETWORK).await?;
            }
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let options = [("com.docker.network.bridge.enable_ip_masquerade", "true".to_owned()), (MTU_OPTION, mtu.to_string())];
        let request = NetworkCreateRequest {
            name: NETWORK.to_owned(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam { config: Some(vec![range]), ..Ipam::default() }),
            options: Some(options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ..NetworkCreateRequest::default()
        };
        self.short.create_network(request).await?;
        Ok(())
    }

    /// Whether an image of this reference is there.
    ///
    /// # Errors
    /// Docker's.
    pub async fn has_image(&self, reference: &str) -> Result<bool, Error> {
        match self.short.inspect_image(reference).await {
            Ok(_) => Ok(true),
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// Docker's and the registry's.
    pub async fn pull(&self, reference: &str, login: Option<&Login>) -> Result<(), Error> {
        // Without a tag Docker would pull all there are.
        let tag = (!has_tag_or_digest(reference)).then(|| "latest".to_owned());
        let options = CreateImageOptions { from_image: Some(reference.to_owned()), tag, ..CreateImageOptions::default() };
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.user.clone()),
            password: Some(login.password.clone()),
            serveraddress: Some(host_of(reference).to_owned()),
            ..DockerCredentials::default()
        });
        let progress = self.long.create_image(Some(options), None, credentials);
        within(LONG, &format!("pulling {reference}"), progress.try_for_each(|_| async { Ok(()) })).await
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// Docker's.
    pub async fn tag(&self, image: &str, repository: &str, tag: &str) -> Result<(), Error> {
        let options = TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
        Ok(self.short.tag_image(image, Some(options)).await?)
    }

    /// Takes a name off an image, and with the last one the image away.
    ///
    /// # Errors
    /// Docker's; a name that nothing has is none.
    pub async fn untag(&self, name: &str) -> Result<(), Error> {
        match self.long.remove_image(name, None::<RemoveImageOptions>, None).await {
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Images as one archive, as `docker save` writes it.
    pub fn save(&self, names: &[&str]) -> impl Stream<Item = Result<Bytes, Error>> {
        // Docker writes it to its disk first.
        self.long.export_images(names).map_err(Error::from)
    }

    /// Reads a file out of an image, by way of a container that is never started. The result is a tar archive with the file in it.
    ///
    /// # Errors
    /// Docker's.
    pub async fn file_of_image(&self, reference: &str, path: &str) -> Result<Vec<u8>, Error> {
        let body = ContainerCreateBody { image: Some(reference.to_owned()), cmd: Some(vec!["true".to_owned()]), ..ContainerCreateBody::default() };
        let container = self.short.create_container(None, body).await?.id;
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let content = collect(self.short.download_from_container(&container, Some(options))).await;
        self.remove(&container).await?;
        content
    }

    /// The containers of a kind cluster, by name.
    ///
    /// # Errors
    /// Docker's.
    pub async fn containers(&self, cluster: &str) -> Result<Vec<Container>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{CLUSTER_LABEL}={cluster}")])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let found = self.short.list_containers(Some(options)).await?;
        let container = |summary: bollard::models::ContainerSummary| {
            let name = summary.names?.first()?.trim_start_matches('/').to_owned();
            let role = summary.labels.and_then(|mut labels| labels.remove(ROLE_LABEL)).unwrap_or_default();
            let paused = summary.state == Some(ContainerSummaryStateEnum::PAUSED);
            Some(Container { name, role, running: paused || summary.state == Some(ContainerSummaryStateEnum::RUNNING), paused })
        };
        let mut containers: Vec<Container> = found.into_iter().filter_map(container).collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// Process id of a running container's first process; `None` while there is no such container or it does not run.
    pub async fn pid(&self, container: &str) -> Option<u32> {
        let pid = self.short.inspect_container(container, None).await.ok()?.state?.pid?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    /// Address of a container on kind's network.
    pub async fn address(&self, container: &str) -> Option<Ipv4Addr> {
        let networks = self.short.inspect_container(container, None).await.ok()?.network_settings?.networks?;
        networks.get(NETWORK)?.ip_address.as_ref()?.parse().ok()
    }

    /// Directory in the pod of the volume that a container has at this path; `None` if it has none.
    ///
    /// # Errors
    /// Docker's.
    pub async fn directory(&self, container: &str, path: &str) -> Result<Option<PathBuf>, Error> {
        let mounts = self.short.inspect_container(container, None).await?.mounts.unwrap_or_default();
        let mount = mounts.into_iter().find(|mount| mount.destination.as_deref() == Some(path) && mount.name.is_some());
        Ok(mount.and_then(|mount| mount.source).map(PathBuf::from))
    }

    /// Starts a container. One that runs is left alone.
    ///
    /// # Errors
    /// Docker's.
    pub async fn start(&self, container: &str) -> Result<(), Error> {
        Ok(self.short.start_container(container, None).await?)
    }

    /// Stops a container, by force after `limit`. One that has stopped is left alone.
    ///
    /// # Errors
    /// Docker's.
    pub async fn stop(&self, container: &str, limit: Duration) -> Result<(), Error> {
        let options = StopContainerOptions { signal: None, t: i32::try_from(limit.as_secs()).ok() };
        let stop = self.long.stop_container(container, Some(options));
        within(limit + SHORT, &format!("the end of {container}"), stop).await
    }

    /// Keeps Docker from starting a container by itself, as kind lets it do once (`--restart=on-failure:1`): from now on that is up to the agent.
    ///
    /// # Errors
    /// Docker's.
    pub async fn leave_starts_to_us(&self, container: &str) -> Result<(), Error> {
        let never = RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None };
        Ok(self.short.update_container(container, ContainerUpdateBody { restart_policy: Some(never), ..ContainerUpdateBody::default() }).await?)
    }

    /// Takes a container that has stopped out of kind's network, if it is in it. The network itself need not be there.
    ///
    /// # Errors
    /// Docker's.
    pub async fn leave_network(&self, container: &str) -> Result<(), Error> {
        let networks = self.short.inspect_container(container, None).await?.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        if networks.contains_key(NETWORK) {
            let request = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
            self.short.disconnect_network(NETWORK, request).await?;
        }
        Ok(())
    }

    /// Gives a container that has stopped a place in kind's network for its next start, with a fixed address or any.
    ///
    /// # Errors
    /// Docker's.
    pub async fn join_network(&self, container: &str, address: Option<Ipv4Addr>) -> Result<(), Error> {
        let ipam_config = address.map(|address| EndpointIpamConfig { ipv4_address: Some(address.to_string()), ..EndpointIpamConfig::default() });
        let endpoint_config = Some(EndpointSettings { ipam_config, ..EndpointSettings::default() });
        Ok(self.short.connect_network(NETWORK, NetworkConnectRequest { container: container.to_owned(), endpoint_config }).await?)
    }

    /// Exit code of a container's last run; 0 if Docker does not tell.
    pub async fn exit_code(&self, container: &str) -> i64 {
        let state = self.short.inspect_container(container, None).await.ok().and_then(|found| found.state);
        state.and_then(|state| state.exit_code).unwrap_or(0)
    }

    /// An item for each container of a kind cluster that dies, also for those since `since`, in seconds of Unix time. Ends with the connection.
    pub fn deaths(&self, cluster: &str, since: i64) -> impl Stream<Item = Result<(), Error>> {
        let filters = [("type", "container".to_owned()), ("event", "die".to_owned()), ("label", format!("{CLUSTER_LABEL}={cluster}"))];
        let filters = filters.into_iter().map(|(name, value)| (name.to_owned(), vec![value])).collect();
        let options = EventsOptions { since: Some(since.to_string()), filters: Some(filters), ..EventsOptions::default() };
        self.short.events(Some(options)).map(|event| event.map(drop).map_err(Error::from))
    }

    /// The last lines that a container has printed.
    ///
    /// # Errors
    /// Docker's.
    pub async fn logs(&self, container: &str, lines: u32) -> Result<String, Error> {
        let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..LogsOptions::default() };
        Ok(lossy(&collect(self.short.logs(container, Some(options)).map_ok(LogOutput::into_bytes)).await?))
    }

    /// What a command in a container prints, on both outputs.
    ///
    /// # Errors
    /// Docker's. How the command ends is not looked at.
    pub async fn output(&self, container: &str, command: &[&str]) -> Result<String, Error> {
        Ok(self.exec(container, command).await?.0)
    }

    /// Runs a command in a container: what it printed, and Docker's name for the run.
    async fn exec(&self, container: &str, command: &[&str]) -> Result<(String, String), Error> {
        let said = async |output: Output| collect(output.map_ok(LogOutput::into_bytes)).await;
        let (said, id) = exec(&self.short, container, outputs_of(command), nothing, said).await?;
        Ok((lossy(&said), id))
    }

    /// Freezes a container, which runs.
    ///
    /// # Errors
    /// Docker's.
    pub async fn freeze(&self, container: &str) -> Result<(), Error> {
        Ok(self.short.pause_container(container).await?)
    }

    /// What a command in a container prints, on both outputs, if it ends well.
    ///
    /// # Errors
    /// Docker's, and [`Error::Command`] with the end of what it printed.
    pub async fn run(&self, container: &str, command: &[&str]) -> Result<String, Error> {
        let (said, id) = self.exec(container, command).await?;
        let code = exit_code(&self.short, &id).await?;
        if code == Some(0) { Ok(said) } else { Err(ended_badly(command, code, &said)) }
    }

    /// Runs a command in a container, with `input` writing to its standard input for as long as it likes; what it prints on standard output, if it ends well.
    ///
    /// # Errors
    /// Docker's, and [`Error::Command`] with the end of what it complained of.
    pub async fn feed<F>(&self, container: &str, command: &[&str], input: impl FnOnce(Input) -> F) -> Result<String, Error>
    where
        F: Future<Output = std::io::Result<()>>,
    {
        let config = ExecConfig { attach_stdin: Some(true), ..outputs_of(command) };
        let ((said, complained), id) = exec(&self.short, container, config, input, ends_of).await?;
        let code = exit_code(&self.short, &id).await?;
        if code == Some(0) { Ok(lossy(&said)) } else { Err(ended_badly(command, code, &lossy(&complained))) }
    }

    /// Thaws a frozen container.
    ///
    /// # Errors
    /// Docker's.
    pub async fn thaw(&self, container: &str) -> Result<(), Error> {
        Ok(self.short.unpause_container(container).await?)
    }

    /// Removes a container by force, with its anonymous volumes.
    ///
    /// # Errors
    /// Docker's; one that is gone already is none.
    pub async fn remove(&self, container: &str) -> Result<(), Error> {
        match self.short.remove_container(container, Some(RemoveContainerOptions { v: true, force: true, link: false })).await {
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T, Bollard>>) -> Result<T, Error> {
    let done = timeout(limit, work).await.map_err(|_| Error::TimedOut { what: what.to_owned(), limit })?;
    Ok(done?)
}

/// The first bytes of a stream, up to [`OUTPUT_LIMIT`].
async fn collect<B: AsRef<[u8]>>(stream: impl Stream<Item = Result<B, Bollard>>) -> Result<Vec<u8>, Error> {
    let gather = async {
        let mut stream = std::pin::pin!(stream);
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(chunk?.as_ref());
            if bytes.len() >= OUTPUT_LIMIT {
                bytes.truncate(OUTPUT_LIMIT);
                break;
            }
        }
        Ok(bytes)
    };
    within(SHORT, "output from Docker", gather).await
}

/// A command, both of whose outputs are read.
fn outputs_of(command: &[&str]) -> ExecConfig {
    let command = command.iter().map(|&part| part.to_owned()).collect();
    ExecConfig { attach_stdout: Some(true), attach_stderr: Some(true), cmd: Some(command), ..ExecConfig::default() }
}

/// A command that ended with this code, or did not end, having printed this.
fn ended_badly(command: &[&str], code: Option<i64>, said: &str) -> Error {
    let said = clip_start(said.trim(), SAID_LIMIT).to_owned();
    Error::Command { command: command.first().copied().unwrap_or_default().to_owned(), code: code.unwrap_or(-1), said }
}

/// The ends of standard output and of standard error.
async fn ends_of(mut output: Output) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    while let Some(piece) = output.next().await {
        match piece? {
            LogOutput::StdErr { message } => keep_end(&mut complained, &message),
            other => keep_end(&mut said, &other.into_bytes()),
        }
    }
    Ok((said, complained))
}

/// Appends to what is kept of an output: its end, of at most [`OUTPUT_LIMIT`].
fn keep_end(kept: &mut Vec<u8>, more: &[u8]) {
    kept.extend_from_slice(more);
    kept.drain(..kept.len().saturating_sub(OUTPUT_LIMIT));
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("kindest/node", true)]
    #[case("registry:5000/kindest/node", true)]
    #[case("registry:5000/kindest/node:v1", false)]
    #[case("kindest/node@sha256:00", false)]
    fn bare_references_are_seen(#[case] reference: &str, #[case] bare: bool) {
        assert_eq!(!has_tag_or_digest(reference), bare);
    }

    #[tokio::test]
    async fn output_is_cut_off() {
        let endless = futures::stream::repeat_with(|| Ok::<_, Bollard>(vec![b'x'; 1000]));
        assert_eq!(collect(endless).await.unwrap().len(), OUTPUT_LIMIT);
    }
}
