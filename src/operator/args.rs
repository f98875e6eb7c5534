//! The operator's command line.

use std::net::SocketAddr;

use ipnet::Ipv4Net;
use nestling_core::plan::policy::Policy;
use nestling_core::plan::settings::{Cleanup, CleanupPolicy, HostFacts, Proxy, Settings};

/// Runs the operator: turns KindCluster objects into clusters.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Args {
    /// Name of this installation; objects of others are left alone.
    #[arg(long, env = "NESTLING_INSTALL", default_value = "nestling")]
    pub install: String,

    /// Namespace of the operator itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "nestling-system")]
    pub namespace: String,

    /// Service account of the operator, to name it to those who give it rights.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "nestling")]
    pub service_account: String,

    /// Namespace that the clusters run in.
    #[arg(long, env = "NESTLING_CLUSTERS_NAMESPACE", default_value = "nestling-clusters")]
    pub clusters_namespace: String,

    /// Image of the clusters' pods.
    #[arg(long, env = "NESTLING_POD_IMAGE")]
    pub pod_image: String,

    /// imagePullPolicy of the clusters' pods.
    #[arg(long, env = "NESTLING_POD_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub pod_image_pull_policy: String,

    /// Image of the pods of clusters of a version, which carries the node image of that version. May be given more than once.
    #[arg(long = "pod-image-for", env = "NESTLING_POD_IMAGES", value_name = "VERSION=IMAGE", value_delimiter = ',', value_parser = version_and_image)]
    pub pod_images: Vec<(String, String)>,

    /// Image of the pods through which the command line reaches clusters; this program's own. KindClusters tell it to their users.
    #[arg(long, env = "NESTLING_RELAY_IMAGE", default_value = "")]
    pub relay_image: String,

    /// Node image of a version. May be given more than once.
    #[arg(long = "node-image", env = "NESTLING_NODE_IMAGES", value_name = "VERSION=IMAGE", value_delimiter = ',', value_parser = version_and_image)]
    pub node_images: Vec<(String, String)>,

    /// Where versions without a --node-image are looked for; empty to refuse them.
    #[arg(long, env = "NESTLING_NODE_IMAGE_REPOSITORY", default_value = "kindest/node")]
    pub node_image_repository: String,

    /// Version of clusters that name none.
    #[arg(long, env = "NESTLING_DEFAULT_VERSION", default_value = "v1.34.4")]
    pub default_version: String,

    /// Accept hosts with cgroup v1.
    #[arg(long, env = "NESTLING_ALLOW_CGROUP_V1")]
    pub allow_cgroup_v1: bool,

    /// Let clusters be frozen on hosts with cgroup v1, where a frozen process cannot be killed.
    #[arg(long, env = "NESTLING_ALLOW_FREEZE_ON_CGROUP_V1")]
    pub allow_freeze_on_cgroup_v1: bool,

    /// Give the clusters' pods the host's /lib/modules, read-only.
    #[arg(long, env = "NESTLING_MOUNT_MODULES")]
    pub mount_modules: bool,

    /// HTTP proxy of the clusters' pods, and of all that runs in them. Without a password: see --proxy-secret.
    #[arg(long, env = "NESTLING_CLUSTERS_HTTP_PROXY", default_value = "")]
    pub http_proxy: String,

    /// The same for HTTPS.
    #[arg(long, env = "NESTLING_CLUSTERS_HTTPS_PROXY", default_value = "")]
    pub https_proxy: String,

    /// What the clusters' pods reach without a proxy.
    #[arg(long, env = "NESTLING_CLUSTERS_NO_PROXY", default_value = "")]
    pub no_proxy: String,

    /// Secret in the clusters' namespace that holds all three instead, under httpProxy, httpsProxy and noProxy.
    #[arg(long, env = "NESTLING_CLUSTERS_PROXY_SECRET", default_value = "", conflicts_with_all = ["http_proxy", "https_proxy", "no_proxy"])]
    pub proxy_secret: String,

    /// A further range of host addresses that clusters must be clear of and may not reach. May be given more than once.
    #[arg(long = "host-range", env = "NESTLING_HOST_RANGES", value_name = "CIDR", value_delimiter = ',')]
    pub host_ranges: Vec<Ipv4Net>,

    /// Let nested traffic reach the host's addresses as far as the host itself lets it. For owners who enforce it elsewhere.
    #[arg(long, env = "NESTLING_NO_EGRESS_GUARD")]
    pub no_egress_guard: bool,

    /// A range that clusters may reach although it is the host's, such as an in-cluster registry or proxy. May be given more than once.
    #[arg(long = "egress-allow", env = "NESTLING_EGRESS_ALLOW", value_name = "CIDR", value_delimiter = ',')]
    pub egress_allow: Vec<Ipv4Net>,

    /// How long the end of a deleted cluster is waited for before the object says that it cannot be seen.
    #[arg(long, env = "NESTLING_CLEANUP_TIMEOUT", default_value = "10m")]
    pub cleanup_timeout: kube::core::Duration,

    /// What follows then.
    #[arg(long, env = "NESTLING_CLEANUP_POLICY", default_value = "wait")]
    pub cleanup_policy: WhenOverdue,
    /// What KindClusters may ask for, as JSON; see the chart's value `policy`. What is empty is not limited.
    #[arg(long, env = "NESTLING_POLICY", value_name = "JSON", default_value = "{}", value_parser = Policy::parse)]
    pub policy: Policy,

    /// Accept lifecycle.deletionProtection: the host has the chart's ValidatingAdmissionPolicy, which enforces it.
    #[arg(long, env = "NESTLING_DELETION_PROTECTION")]
    pub deletion_protection: bool,

    /// How many clusters are created at once.
    #[arg(long, env = "NESTLING_MAX_CREATING", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_creating: u32,

    /// How many objects are looked at at once, and how many more of which nothing was said yet.
    #[arg(long, env = "NESTLING_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "NESTLING_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,

    /// Name of the Lease that operators of this installation compete for. Default: the installation's name.
    #[arg(long, env = "NESTLING_LEASE_NAME")]
    pub lease_name: Option<String>,

    /// Name of this process, unique among those that compete. Default: the host name.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Format of the log.
    #[arg(long, env = "NESTLING_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// Ask this address for the reports of all agents.
    #[cfg(feature = "fault-injection")]
    #[arg(long, env = "NESTLING_AGENT_ADDRESS_OVERRIDE", hide = true)]
    pub agent_address_override: Option<SocketAddr>,
}

/// What follows when a deleted cluster has not ended in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum WhenOverdue {
    /// The object stays for as long as anything of its cluster does.
    Wait,
    /// The object goes; what is left is deleted as soon as that can be done.
    Abandon,
}

impl From<WhenOverdue> for CleanupPolicy {
    fn from(policy: WhenOverdue) -> Self {
        match policy {
            WhenOverdue::Wait => Self::Wait,
            WhenOverdue::Abandon => Self::Abandon,
        }
    }
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl Args {
    /// The settings that all decisions are based on. Pure.
    pub fn settings(&self, host: HostFacts) -> Settings {
        Settings {
            install: self.install.clone(),
            operator_namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            clusters_namespace: self.clusters_namespace.clone(),
            pod_image: self.pod_image.clone(),
            pod_images: self.pod_images.iter().cloned().collect(),
            pod_image_pull_policy: self.pod_image_pull_policy.clone(),
            relay_image: self.relay_image.clone(),
            node_images: self.node_images.iter().cloned().collect(),
            node_image_repository: self.node_image_repository.clone(),
            default_version: self.default_version.clone(),
            allow_cgroup_v1: self.allow_cgroup_v1,
            allow_freeze_on_cgroup_v1: self.allow_freeze_on_cgroup_v1,
            mount_modules: self.mount_modules,
            proxy: Proxy { http: self.http_proxy.clone(), https: self.https_proxy.clone(), no: self.no_proxy.clone(), secret: self.proxy_secret.clone() },
            egress_guard: !self.no_egress_guard,
            egress_allowed: self.egress_allow.clone(),
            cleanup: Cleanup { timeout: self.cleanup_timeout.into(), policy: self.cleanup_policy.into() },
            policy: self.policy.clone(),
            deletion_protection: self.deletion_protection,
            host,
        }
    }

    /// Checks what the command line's own parser must not check, because it would repeat the value.
    ///
    /// # Errors
    /// If an address of a proxy holds a user or a password.
    pub fn check(&self) -> Result<(), &'static str> {
        if [&self.http_proxy, &self.https_proxy].iter().any(|address| address.contains('@')) {
            return Err("the address of a proxy with a user or a password belongs into the Secret that --proxy-secret names");
        }
        Ok(())
    }

    /// Where all agents are asked, if not at their pods' addresses.
    pub fn agent_address(&self) -> Option<SocketAddr> {
        #[cfg(feature = "fault-injection")]
        return self.agent_address_override;
        #[cfg(not(feature = "fault-injection"))]
        None
    }
}

fn version_and_image(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((version, image)) if !version.is_empty() && !image.is_empty() => Ok((version.to_owned(), image.to_owned())),
        _ => Err("expected VERSION=IMAGE, such as v1.34.4=kindest/node:v1.34.4".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Command::try_parse_from(["operator", "--pod-image", "registry.example/node:1"].iter().chain(arguments)).map(|command| command.args)
    }

    #[test]
    fn arguments_become_settings() {
        let images = ["--node-image", "v1.34.4=a@sha256:1", "--node-image", "v1.33.1=b", "--pod-image-for", "v1.33.1=registry:5000/c:1"];
        let args = parse(&[&["--install", "reed", "--host-range", "10.9.0.0/16"][..], &images].concat()).unwrap();
        let settings = args.settings(HostFacts::default());
        assert_eq!((settings.install.as_str(), settings.node_images["v1.33.1"].as_str()), ("reed", "b"));
        assert_eq!((settings.pod_image_for(Some("v1.33.1")), settings.pod_image_for(None)), ("registry:5000/c:1", "registry.example/node:1"));
        assert_eq!(settings.default_version, "v1.34.4");
        assert_eq!(args.host_ranges, ["10.9.0.0/16".parse().unwrap()]);
        assert!(settings.egress_guard && settings.egress_allowed.is_empty());
        let open = parse(&["--no-egress-guard", "--egress-allow", "10.96.7.7/32"]).unwrap().settings(HostFacts::default());
        assert_eq!((open.egress_guard, open.egress_allowed), (false, vec!["10.96.7.7/32".parse().unwrap()]));
        assert_eq!((args.max_creating, args.concurrency, args.log_format), (4, 16, LogFormat::Json));
    }

    #[test]
    fn a_proxy_is_given_openly_or_by_a_secret() {
        let proxy = |arguments: &[&str]| parse(arguments).map(|args| args.settings(HostFacts::default()).proxy).ok();
        let open = Proxy { https: "http://proxy:3128".into(), no: ".svc".into(), ..Proxy::default() };
        assert_eq!(proxy(&["--https-proxy", "http://proxy:3128", "--no-proxy", ".svc"]), Some(open));
        assert_eq!(proxy(&["--proxy-secret", "proxy"]), Some(Proxy { secret: "proxy".into(), ..Proxy::default() }));
        assert_eq!(proxy(&["--proxy-secret", "proxy", "--no-proxy", ".svc"]), None);
        assert!(parse(&["--https-proxy", "http://proxy:3128"]).unwrap().check().is_ok());
        let said = parse(&["--https-proxy", "http://me:pw@proxy:3128"]).unwrap().check().unwrap_err();
        assert!(!said.contains("me:pw"), "{said}");
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in
            [["--node-image", "v1.34.4"], ["--host-range", "fd00::/64"], ["--max-creating", "0"], ["--cleanup-timeout", "soon"], ["--log-format", "xml"]]
        {
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
    }
}
