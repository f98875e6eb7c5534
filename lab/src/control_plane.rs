//! A bare control plane on the loopback interface: etcd and kube-apiserver, optionally kube-controller-manager. No
//! nodes and no containers; ready within seconds, for tests of whatever speaks to the Kubernetes API.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::command::{last_lines, succeeds, wait_for};
use crate::lab::LabPaths;
use crate::pki::{Authority, Leaf};

const LEASH: &str = include_str!("../scripts/leash.sh");
const START_WITHIN: Duration = Duration::from_mins(1);
/// The group that the API server's own authoriser lets do everything.
const MASTERS: &str = "system:masters";
/// The controllers that tests of an operator rely on; none of them needs a node.
const CONTROLLERS: [&str; 11] = [
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "persistentvolumeclaim-protection-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "validatingadmissionpolicy-status-controller",
];

const AUDIT_POLICY: &str = "audit-policy.json";
const AUDIT_LOG: &str = "audit.log";

/// What control plane is wanted.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlaneOptions {
    controller_manager: bool,
    audit: Audit,
    service_range: &'static str,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self { controller_manager: false, audit: Audit::Off, service_range: "10.0.0.0/24" }
    }
}

/// What the API server writes down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Audit {
    Off,
    Writes,
    RequestsOf(&'static str),
}

impl Audit {
    fn policy(self) -> Option<Value> {
        let rules = match self {
            Self::Off => return None,
            Self::Writes => json!([{"level": "RequestResponse", "verbs": ["create", "update", "patch", "delete", "deletecollection"]}, {"level": "None"}]),
            Self::RequestsOf(user) => json!([{"level": "Metadata", "users": [user]}, {"level": "None"}]),
        };
        // A watch is answered when it begins, and ends when nobody cares any more.
        Some(json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}))
    }
}

impl ControlPlaneOptions {
    /// Whether the controllers run that collect garbage, empty namespaces, count quotas and make service accounts.
    #[must_use]
    pub fn with_controller_manager(mut self, wanted: bool) -> Self {
        self.controller_manager = wanted;
        self
    }

    /// Whether the API server writes down every request that may change something ([`ControlPlane::audit`]).
    #[must_use]
    pub fn with_audit(mut self, wanted: bool) -> Self {
        self.audit = if wanted { Audit::Writes } else { Audit::Off };
        self
    }

    /// Has the API server write down every request of this user, by what it was and not by what was in it ([`ControlPlane::audit_log`]).
    #[must_use]
    pub fn with_requests_of(mut self, user: &'static str) -> Self {
        self.audit = Audit::RequestsOf(user);
        self
    }

    /// Where Services get their addresses from: as many as the range has.
    #[must_use]
    pub fn with_service_range(mut self, range: &'static str) -> Self {
        self.service_range = range;
        self
    }

    /// Starts it, and returns when the API answers.
    pub fn start(self, paths: &LabPaths) -> Result<ControlPlane> {
        // A port that was free when it was looked for may be somebody else's when it is bound.
        for _ in 1..STARTS {
            match ControlPlane::start_with(paths, self) {
                Err(error) if format!("{error:#}").contains(TAKEN) => {}
                outcome => return outcome,
            }
        }
        ControlPlane::start_with(paths, self)
    }
}

/// How often a start is tried.
const STARTS: usize = 4;

/// What etcd and the API server say of a port that is somebody else's.
const TAKEN: &str = "address already in use";

/// A running control plane. Dropping it ends its processes and removes its files; so does the end of this process,
/// however it comes.
pub struct ControlPlane {
    directory: PathBuf,
    authority: Authority,
    url: String,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    children: Vec<Process>,
    leash: Child,
}

struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl ControlPlane {
    /// Starts etcd and the API server, and returns when the API answers.
    pub fn start(paths: &LabPaths) -> Result<Self> {
        ControlPlaneOptions::default().start(paths)
    }

    /// The options to start one with more.
    pub fn options() -> ControlPlaneOptions {
        ControlPlaneOptions::default()
    }

    /// The API server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The kubeconfig of an administrator, a file.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The content of a kubeconfig (JSON, which is YAML) for a user of its own certificate, and of at most one group
    /// besides `system:authenticated`: what the role bindings of that user and group allow, and nothing more.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<String> {
        let leaf = self.authority.client(user, group)?;
        Ok(serde_json::to_string_pretty(&kubeconfig(&self.url, &self.authority, user, &leaf))?)
    }

    /// The file with the audit log: one event of `audit.k8s.io/v1` per line, the last of them perhaps half written.
    pub fn audit_log(&self) -> PathBuf {
        self.path(AUDIT_LOG)
    }

    /// Every write so far, as events of `audit.k8s.io/v1` with what was sent and answered, in the order in which they were answered.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.path(AUDIT_LOG)).context("there is no audit log")?;
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).context("a line of the audit log is no JSON")).collect()
    }

    /// A `kubectl` command with the administrator's rights.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// The last lines of a process's log: `etcd`, `kube-apiserver` or `kube-controller-manager`.
    pub fn log(&self, process: &str) -> String {
        let found = self.children.iter().find(|child| child.name == process);
        found.map(Process::last_words).unwrap_or_default()
    }

    fn start_with(paths: &LabPaths, options: ControlPlaneOptions) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nestling-control-plane-").tempdir()?.keep();
        let leash = Command::new("sh")
            .args(["-c", LEASH, "leash"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a shell")?;
        let [etcd_port, peer_port, api_port] = free_ports()?;
        let mut plane = Self {
            kubeconfig: directory.join("admin.kubeconfig"),
            authority: Authority::new()?,
            url: format!("https://127.0.0.1:{api_port}"),
            kubectl: paths.bin("kubectl")?,
            children: Vec::new(),
            directory,
            leash,
        };
        plane.write_files()?;
        plane.start_etcd(&paths.bin("etcd")?, etcd_port, peer_port)?;
        plane.start_api_server(&paths.bin("kube-apiserver")?, etcd_port, api_port, options)?;
        plane.wait_until_ready()?;
        if options.controller_manager {
            plane.start_controller_manager(&paths.bin("kube-controller-manager")?)?;
        }
        Ok(plane)
    }

    fn write_files(&self) -> Result<()> {
        fs::write(self.path("ca.crt"), &self.authority.certificate)?;
        self.authority.server()?.write(&self.path("server.crt"), &self.path("server.key"))?;
        let accounts = KeyPair::generate()?;
        fs::write(self.path("accounts.key"), accounts.serialize_pem())?;
        fs::write(self.path("accounts.pub"), accounts.public_key_pem())?;
        Ok(fs::write(&self.kubeconfig, self.kubeconfig_for("nestling-lab-admin", Some(MASTERS))?)?)
    }

    fn start_etcd(&mut self, program: &Path, port: u16, peer_port: u16) -> Result<()> {
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let data = self.path("etcd").display().to_string();
        self.spawn(
            "etcd",
            program,
            &[
                format!("--data-dir={data}"),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // The data lives no longer than the test.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        )
    }

    fn start_api_server(&mut self, program: &Path, etcd_port: u16, port: u16, options: ControlPlaneOptions) -> Result<()> {
        let file = |name: &str| self.path(name).display().to_string();
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-cluster-ip-range={}", options.service_range),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            // The reconciler of the service `kubernetes` refuses to end in time when etcd is ended with it.
            "--endpoint-reconciler-type=none".to_owned(),
        ];
        if let Some(policy) = options.audit.policy() {
            fs::write(self.path(AUDIT_POLICY), policy.to_string())?;
            arguments.extend([format!("--audit-policy-file={}", file(AUDIT_POLICY)), format!("--audit-log-path={}", file(AUDIT_LOG))]);
            // One file, however large, in megabytes.
            arguments.push("--audit-log-maxsize=100000".to_owned());
        }
        if !options.controller_manager {
            // Nothing makes service accounts, and pods must be accepted all the same.
            arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        self.spawn("kube-apiserver", program, &arguments)
    }

    fn start_controller_manager(&mut self, program: &Path) -> Result<()> {
        let file = |name: &str| self.path(name).display().to_string();
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--controllers={}", CONTROLLERS.join(",")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("accounts.key")),
            "--leader-elect=false".to_owned(),
            // As kubeadm does: each controller is a user of its own.
            "--use-service-account-credentials=true".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        self.spawn("kube-controller-manager", program, &arguments)
    }

    fn spawn(&mut self, name: &'static str, program: &Path, arguments: &[String]) -> Result<()> {
        let log = self.path(&format!("{name}.log"));
        let file = File::create(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut pids = OpenOptions::new().create(true).append(true).open(self.path("pids"))?;
        writeln!(pids, "{}", child.id())?;
        self.children.push(Process { name, child, log });
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut ready = self.kubectl();
        ready.args(["get", "--raw", "/readyz", "--request-timeout=2s"]);
        let children = &mut self.children;
        let result = wait_for("the bare control plane answers /readyz", START_WITHIN, || {
            for process in children.iter_mut() {
                if let Some(status) = process.child.try_wait()? {
                    bail!("{} ended with {status}; it said last:\n{}", process.name, process.last_words());
                }
            }
            Ok(succeeds(&mut ready))
        });
        result.with_context(|| format!("kube-apiserver said last:\n{}", self.log("kube-apiserver")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Each may have ended by itself, and nothing is left to be done about an error here.
        for process in self.children.iter_mut().rev() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        let _ = fs::remove_file(self.path("pids"));
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

impl Process {
    fn last_words(&self) -> String {
        last_lines(&fs::read_to_string(&self.log).unwrap_or_default(), 15)
    }
}

fn kubeconfig(url: &str, authority: &Authority, user: &str, leaf: &Leaf) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": user } }],
        "clusters": [{ "name": "lab", "cluster": {
            "server": url,
            "certificate-authority-data": BASE64.encode(authority.certificate.as_bytes()),
        } }],
        "users": [{ "name": user, "user": {
            "client-certificate-data": BASE64.encode(leaf.certificate.as_bytes()),
            "client-key-data": BASE64.encode(leaf.key.as_bytes()),
        } }],
    })
}

/// Ports that were free a moment ago, all held at once so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
