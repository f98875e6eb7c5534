//! Every part that the lab builds: its name, what it is made from, and how.

use anyhow::Result;

use crate::apt::Need;
use crate::debian::DebianRoot;
use crate::go::{GoPrograms, Stamp};
use crate::workshop::Workshop;
use crate::{balancers, images, load_balancer, node_image, node_store, release, vm_disk};

/// One thing that is built once and kept.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// kube-apiserver, kube-controller-manager and kubectl: what a bare control plane needs.
    KubernetesApi,
    /// kube-scheduler, kube-proxy, kubelet and kubeadm: the rest of a node.
    KubernetesNode,
    /// etcd.
    Etcd,
    /// helm.
    Helm,
    /// CoreDNS with the plugins of kubeadm's configuration.
    Coredns,
    /// Rancher's local path provisioner.
    Provisioner,
    /// The stand-in for kind's node network daemon.
    Kindnetd,
    /// The stand-in for the CRI command line.
    Crictl,
    /// The kind command line.
    Kind,
    /// containerd, its shim and its command line.
    Containerd,
    /// runc.
    Runc,
    /// The four CNI plugins of kind's nodes.
    Cni,
    /// The image registry.
    Registry,
    /// The pause program.
    Pause,
    /// Debian with the programs of the network daemons and of test workloads.
    ToolsRoot,
    /// Debian as kind's nodes have it.
    NodeRoot,
    /// Debian with Docker.
    DindRoot,
    /// Debian with little more than libc.
    OperatorRoot,
    /// Debian with HAProxy and a shell.
    LoadBalancerRoot,
    /// The image of the local registry.
    RegistryImage,
    /// The image that the node pod's image starts from.
    DindBase,
    /// The image that the operator's image starts from.
    OperatorBase,
    /// kind's base image.
    NodeBase,
    /// The stand-in for the image of kind's load balancer.
    LoadBalancer,
    /// The Kubernetes server archive that `kind build node-image` reads, with every image of a node.
    NodeServer,
    /// The node image.
    NodeImage,
    /// The node image, and that of kind's load balancer, as Docker keeps them on disk.
    NodeStore,
    /// Debian with its own kernel, for the virtual machine.
    VmRoot,
    /// The virtual machine's disk, with the root of a node pod in it.
    VmDisk,
    /// All programs of the newer release of Kubernetes.
    KubernetesNewer,
    /// The newer release's server archive.
    NodeServerNewer,
    /// The newer release's node image.
    NodeImageNewer,
    /// MetalLB's two programs.
    Metallb,
    /// The image of MetalLB's controller, with what installs MetalLB.
    MetallbController,
    /// The image of MetalLB's speaker.
    MetallbSpeaker,
    /// Traefik.
    Traefik,
    /// Traefik's image.
    TraefikImage,
    /// The code with which Flux and Cluster API open clusters.
    Consumers,
    /// The code with which Argo CD opens clusters and judges their health.
    ArgoCdConsumer,
}

/// How a part is made.
pub enum Recipe {
    /// Go programs of a pinned module.
    Go(GoPrograms),
    /// A Debian root file system.
    Root(DebianRoot),
    /// Our own steps; the text is their source, which decides the result with them.
    Steps {
        /// Makes the part.
        make: fn(&Workshop) -> Result<()>,
        /// Source code that goes into the key.
        source: &'static str,
    },
}

const VM_DISK_SOURCE: &str = concat!(include_str!("vm_disk.rs"), include_str!("../scripts/vm/job.sh"), include_str!("../scripts/vm/job.service"));
const NODE_STORE_SOURCE: &str = concat!(
    include_str!("node_store.rs"),
    include_str!("../scripts/lighten.sh"),
    include_str!("../scripts/unpack.sh"),
    include_str!("golden.rs"),
    include_str!("../scripts/seal.sh")
);
const LOAD_BALANCER_SOURCE: &str = concat!(include_str!("load_balancer.rs"), include_str!("../scripts/envoy.sh"));
const CONTAINERD: &str = "github.com/containerd/containerd/v2";

const PLAIN_GO: GoPrograms = GoPrograms { module: "kubernetes", programs: &[], sources: &[], tags: "", cgo: false, stamp: Stamp::None };

/// What unit links a node must not have: a container has no devices, terminals or file systems to bring up.
const STRIP_UNITS: &str = r#"cd "$1" && rm -f lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service lib/systemd/system/multi-user.target.wants/* etc/systemd/system/*.wants/* lib/systemd/system/local-fs.target.wants/* lib/systemd/system/sockets.target.wants/*udev* lib/systemd/system/sockets.target.wants/*initctl* lib/systemd/system/basic.target.wants/* && echo ReadKMsg=no >> etc/systemd/journald.conf && : > etc/machine-id"#;
/// An unpacked root has had no package scripts run: the certificates' bundle and the users are made here.
const MINIMAL_SYSTEM: &str = r#"cd "$1" && mkdir -p etc/ssl/certs tmp && chmod 1777 tmp && cat usr/share/ca-certificates/mozilla/*.crt > etc/ssl/certs/ca-certificates.crt && printf 'root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' > etc/passwd && printf 'root:x:0:\nnonroot:x:65532:\n' > etc/group"#;

impl Part {
    /// Every part, each after what it needs.
    pub const ALL: [Self; 39] = [
        Self::KubernetesApi,
        Self::KubernetesNode,
        Self::Etcd,
        Self::Helm,
        Self::Coredns,
        Self::Provisioner,
        Self::Kindnetd,
        Self::Crictl,
        Self::Kind,
        Self::Containerd,
        Self::Runc,
        Self::Cni,
        Self::Registry,
        Self::Pause,
        Self::ToolsRoot,
        Self::NodeRoot,
        Self::DindRoot,
        Self::OperatorRoot,
        Self::LoadBalancerRoot,
        Self::RegistryImage,
        Self::DindBase,
        Self::OperatorBase,
        Self::NodeBase,
        Self::LoadBalancer,
        Self::NodeServer,
        Self::NodeImage,
        Self::NodeStore,
        Self::VmRoot,
        Self::VmDisk,
        Self::KubernetesNewer,
        Self::NodeServerNewer,
        Self::NodeImageNewer,
        Self::Metallb,
        Self::MetallbController,
        Self::MetallbSpeaker,
        Self::Traefik,
        Self::TraefikImage,
        Self::Consumers,
        Self::ArgoCdConsumer,
    ];

    /// The name, as in the cache and in `lab status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubernetesApi => "kubernetes-api",
            Self::KubernetesNode => "kubernetes-node",
            Self::Etcd => "etcd",
            Self::Helm => "helm",
            Self::Coredns => "coredns",
            Self::Provisioner => "local-path-provisioner",
            Self::Kindnetd => "kindnetd",
            Self::Crictl => "crictl",
            Self::Kind => "kind",
            Self::Containerd => "containerd",
            Self::Runc => "runc",
            Self::Cni => "cni-plugins",
            Self::Registry => "registry",
            Self::Pause => "pause",
            Self::ToolsRoot => "tools-root",
            Self::NodeRoot => "node-root",
            Self::DindRoot => "dind-root",
            Self::OperatorRoot => "operator-root",
            Self::LoadBalancerRoot => "load-balancer-root",
            Self::RegistryImage => "registry-image",
            Self::DindBase => "dind-base",
            Self::OperatorBase => "operator-base",
            Self::NodeBase => "node-base",
            Self::LoadBalancer => "load-balancer",
            Self::NodeServer => "node-server",
            Self::NodeImage => "node-image",
            Self::NodeStore => "node-store",
            Self::VmRoot => "vm-root",
            Self::VmDisk => "vm-disk",
            Self::KubernetesNewer => "kubernetes-newer",
            Self::NodeServerNewer => "node-server-newer",
            Self::NodeImageNewer => "node-image-newer",
            Self::Metallb => "metallb",
            Self::MetallbController => "metallb-controller-image",
            Self::MetallbSpeaker => "metallb-speaker-image",
            Self::Traefik => "traefik",
            Self::TraefikImage => "traefik-image",
            Self::Consumers => "consumers",
            Self::ArgoCdConsumer => "argocd-consumer",
        }
    }

    /// The parts that this one is made from. `pulling` is true where images are pulled rather than built.
    pub fn needs(self, pulling: bool) -> &'static [Self] {
        match self {
            Self::RegistryImage => &[Self::Registry],
            Self::DindBase => &[Self::DindRoot],
            Self::OperatorBase => &[Self::OperatorRoot],
            Self::NodeBase => &[Self::NodeRoot, Self::Containerd, Self::Runc, Self::Cni, Self::Crictl],
            Self::NodeServer => {
                &[Self::KubernetesApi, Self::KubernetesNode, Self::Etcd, Self::Coredns, Self::Provisioner, Self::Kindnetd, Self::Pause, Self::ToolsRoot]
            }
            Self::NodeImage if pulling => &[Self::ToolsRoot, Self::KubernetesApi],
            Self::NodeImage => &[Self::Kind, Self::NodeBase, Self::NodeServer],
            Self::LoadBalancer => &[Self::LoadBalancerRoot],
            // The load balancer's image is pulled, too.
            Self::NodeStore if pulling => &[Self::DindBase, Self::NodeImage, Self::Kind],
            Self::NodeStore => &[Self::DindBase, Self::NodeImage, Self::LoadBalancer, Self::Kind],
            Self::VmDisk => &[Self::VmRoot, Self::DindRoot, Self::KubernetesApi, Self::Kind, Self::Runc, Self::NodeStore],
            Self::NodeServerNewer => &[Self::KubernetesNewer, Self::Etcd, Self::Coredns, Self::Provisioner, Self::Kindnetd, Self::Pause, Self::ToolsRoot],
            Self::NodeImageNewer if pulling => &[Self::ToolsRoot, Self::KubernetesNewer],
            Self::NodeImageNewer => &[Self::Kind, Self::NodeBase, Self::NodeServerNewer],
            Self::MetallbController | Self::MetallbSpeaker => &[Self::Metallb],
            Self::TraefikImage => &[Self::Traefik],
            _ => &[],
        }
    }

    /// What must be installed on the machine before this part can be made.
    pub fn machine_needs(self) -> &'static [Need] {
        match self {
            Self::Runc => &[Need::Compiler, Need::Seccomp],
            Self::Pause => &[Need::Compiler],
            Self::ToolsRoot | Self::NodeRoot | Self::DindRoot | Self::OperatorRoot | Self::LoadBalancerRoot | Self::VmRoot => &[Need::Debootstrap],
            Self::VmDisk => &[Need::Ext4],
            Self::NodeImage | Self::NodeStore | Self::NodeImageNewer => &[Need::Docker, Need::Zstd, Need::Jq],
            _ => &[],
        }
    }

    /// The image that this part is, without a tag: `None` for what is no image.
    pub fn image(self) -> Option<&'static str> {
        match self {
            Self::RegistryImage => Some("nestling-lab/registry"),
            Self::DindBase => Some("nestling-lab/dind-base"),
            Self::OperatorBase => Some("nestling-lab/operator-base"),
            Self::NodeBase => Some("nestling-lab/node-base"),
            Self::LoadBalancer => Some("nestling-lab/load-balancer"),
            // One image, which has a tag for each release.
            Self::NodeImage | Self::NodeImageNewer => Some("nestling-lab/node"),
            Self::MetallbController => Some("nestling-lab/metallb-controller"),
            Self::MetallbSpeaker => Some("nestling-lab/metallb-speaker"),
            Self::TraefikImage => Some("nestling-lab/traefik"),
            _ => None,
        }
    }

    /// How it is made.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::Pause => Recipe::Steps { make: images::make_pause, source: "pause 1" },
            Self::RegistryImage => steps(images::make_registry),
            Self::DindBase => steps(images::make_dind_base),
            Self::OperatorBase => steps(images::make_operator_base),
            Self::NodeBase => node_steps(node_image::make_base),
            Self::LoadBalancer => Recipe::Steps { make: load_balancer::make, source: LOAD_BALANCER_SOURCE },
            Self::NodeServer => node_steps(node_image::make_server),
            Self::NodeImage => node_steps(node_image::make),
            Self::NodeServerNewer => newer_steps(release::make_newer_server),
            Self::NodeImageNewer => newer_steps(release::make_newer_image),
            Self::MetallbController => balancer_steps(balancers::make_metallb_controller),
            Self::MetallbSpeaker => balancer_steps(balancers::make_metallb_speaker),
            Self::TraefikImage => balancer_steps(balancers::make_traefik),
            Self::NodeStore => Recipe::Steps { make: node_store::make, source: NODE_STORE_SOURCE },
            Self::VmDisk => Recipe::Steps { make: vm_disk::make, source: VM_DISK_SOURCE },
            Self::ToolsRoot | Self::NodeRoot | Self::DindRoot | Self::OperatorRoot | Self::LoadBalancerRoot | Self::VmRoot => Recipe::Root(self.root()),
            _ => Recipe::Go(self.programs()),
        }
    }

    fn programs(self) -> GoPrograms {
        match self {
            Self::KubernetesApi => GoPrograms {
                programs: &[
                    ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
                    ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
                    ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
                ],
                stamp: Stamp::Kubernetes,
                ..PLAIN_GO
            },
            Self::KubernetesNode => GoPrograms {
                programs: &[
                    ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
                    ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
                    ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
                    ("k8s.io/kubernetes/cmd/kubeadm", "kubeadm"),
                ],
                stamp: Stamp::Kubernetes,
                ..PLAIN_GO
            },
            Self::KubernetesNewer => GoPrograms {
                module: release::NEWER.module,
                programs: &[
                    ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
                    ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
                    ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
                    ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
                    ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
                    ("k8s.io/kubernetes/cmd/kubeadm", "kubeadm"),
                    ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
                ],
                stamp: Stamp::Kubernetes,
                ..PLAIN_GO
            },
            Self::Helm => GoPrograms {
                programs: &[("helm.sh/helm/v3/cmd/helm", "helm")],
                stamp: Stamp::Symbol { symbol: "helm.sh/helm/v3/internal/version.version", module: "helm.sh/helm/v3" },
                ..PLAIN_GO
            },
            Self::Coredns => GoPrograms { programs: &[("./coredns", "coredns")], sources: &["coredns"], ..PLAIN_GO },
            Self::Kindnetd => GoPrograms { programs: &[("./kindnetd", "kindnetd")], sources: &["kindnetd"], ..PLAIN_GO },
            Self::Crictl => GoPrograms { programs: &[("./crictl", "crictl")], sources: &["crictl"], ..PLAIN_GO },
            Self::Provisioner => GoPrograms { programs: &[("github.com/rancher/local-path-provisioner", "local-path-provisioner")], ..PLAIN_GO },
            Self::Etcd => GoPrograms { module: "etcd", programs: &[("go.etcd.io/etcd/server/v3", "etcd")], ..PLAIN_GO },
            Self::Kind => GoPrograms { module: "kind", programs: &[("sigs.k8s.io/kind", "kind")], ..PLAIN_GO },
            Self::Containerd => GoPrograms {
                module: "containerd",
                programs: &[
                    ("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
                    ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
                    ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
                ],
                tags: "no_aufs,no_zfs,no_btrfs,no_devmapper",
                stamp: Stamp::Symbol { symbol: "github.com/containerd/containerd/v2/version.Version", module: CONTAINERD },
                ..PLAIN_GO
            },
            Self::Runc => GoPrograms {
                module: "runc",
                programs: &[("github.com/opencontainers/runc", "runc")],
                tags: "seccomp",
                cgo: true,
                stamp: Stamp::Symbol { symbol: "main.version", module: "github.com/opencontainers/runc" },
                ..PLAIN_GO
            },
            Self::Cni => GoPrograms {
                module: "cni",
                programs: &[
                    ("github.com/containernetworking/plugins/plugins/ipam/host-local", "host-local"),
                    ("github.com/containernetworking/plugins/plugins/main/loopback", "loopback"),
                    ("github.com/containernetworking/plugins/plugins/main/ptp", "ptp"),
                    ("github.com/containernetworking/plugins/plugins/meta/portmap", "portmap"),
                ],
                ..PLAIN_GO
            },
            Self::Registry => GoPrograms { module: "registry", programs: &[("github.com/distribution/distribution/v3/cmd/registry", "registry")], ..PLAIN_GO },
            Self::Metallb => GoPrograms {
                module: "metallb",
                programs: &[("go.universe.tf/metallb/controller", "controller"), ("go.universe.tf/metallb/speaker", "speaker")],
                ..PLAIN_GO
            },
            Self::Traefik => GoPrograms {
                module: "traefik",
                programs: &[("github.com/traefik/traefik/v3/cmd/traefik", "traefik")],
                stamp: Stamp::Symbol { symbol: "github.com/traefik/traefik/v3/pkg/version.Version", module: "github.com/traefik/traefik/v3" },
                ..PLAIN_GO
            },
            Self::Consumers => GoPrograms { module: "consumers", programs: &[("./consumers", "consumers")], sources: &["consumers"], ..PLAIN_GO },
            Self::ArgoCdConsumer => GoPrograms { module: "argocd", programs: &[("./consumer", "argocd-consumer")], sources: &["consumer"], ..PLAIN_GO },
            // The parts that are no Go programs have recipes of their own.
            _ => PLAIN_GO,
        }
    }

    fn root(self) -> DebianRoot {
        match self {
            Self::NodeRoot => DebianRoot {
                // Its systemd still runs on cgroup v1.
                suite: "bookworm",
                variant: "minbase",
                packages: &[
                    "systemd",
                    "systemd-sysv",
                    "dbus",
                    "conntrack",
                    "iptables",
                    "nftables",
                    "iproute2",
                    "ethtool",
                    "util-linux",
                    "mount",
                    "kmod",
                    "libseccomp2",
                    "pigz",
                    "bash",
                    "ca-certificates",
                    "curl",
                    "jq",
                    "procps",
                    "e2fsprogs",
                    "hostname",
                    "libc-bin",
                ],
                finish: STRIP_UNITS,
            },
            Self::DindRoot => DebianRoot {
                suite: "trixie",
                variant: "minbase",
                packages: &[
                    "docker.io",
                    "docker-cli",
                    "crun",
                    "iptables",
                    "iproute2",
                    "jq",
                    "ca-certificates",
                    "kmod",
                    "pigz",
                    "procps",
                    "xfsprogs",
                    "e2fsprogs",
                    "zstd",
                ],
                finish: "",
            },
            Self::OperatorRoot => {
                DebianRoot { suite: "trixie", variant: "extract", packages: &["base-files", "libc6", "libgcc-s1", "ca-certificates"], finish: MINIMAL_SYSTEM }
            }
            Self::LoadBalancerRoot => {
                DebianRoot { suite: "trixie", variant: "extract", packages: &["base-files", "bash", "coreutils", "dash", "sed", "haproxy"], finish: "" }
            }
            Self::VmRoot => DebianRoot {
                suite: "trixie",
                variant: "minbase",
                packages: &[
                    "linux-image-cloud-amd64",
                    "initramfs-tools",
                    "zstd",
                    "systemd",
                    "systemd-sysv",
                    // runc asks systemd for its scopes over it.
                    "dbus",
                    "udev",
                    "kmod",
                    "e2fsprogs",
                    "iproute2",
                    "iptables",
                    "procps",
                    "util-linux",
                    "ca-certificates",
                    "curl",
                    "jq",
                ],
                finish: "",
            },
            _ => DebianRoot {
                suite: "bookworm",
                variant: "essential",
                packages: &["iptables", "nftables", "conntrack", "iproute2", "curl", "jq", "ca-certificates", "kmod", "busybox"],
                finish: "",
            },
        }
    }
}

fn steps(make: fn(&Workshop) -> Result<()>) -> Recipe {
    Recipe::Steps { make, source: include_str!("images.rs") }
}

fn node_steps(make: fn(&Workshop) -> Result<()>) -> Recipe {
    Recipe::Steps { make, source: include_str!("node_image.rs") }
}

fn newer_steps(make: fn(&Workshop) -> Result<()>) -> Recipe {
    Recipe::Steps { make, source: concat!(include_str!("node_image.rs"), include_str!("release.rs")) }
}

fn balancer_steps(make: fn(&Workshop) -> Result<()>) -> Recipe {
    Recipe::Steps { make, source: include_str!("balancers.rs") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_part_comes_after_what_it_needs() {
        for pulling in [false, true] {
            let mut seen = BTreeSet::new();
            for part in Part::ALL {
                assert!(part.needs(pulling).iter().all(|need| seen.contains(need)), "{}", part.name());
                seen.insert(part);
            }
            assert_eq!(seen.len(), Part::ALL.len());
        }
    }

    #[test]
    fn names_are_distinct_and_every_program_has_a_package() {
        let names: BTreeSet<&str> = Part::ALL.iter().map(|part| part.name()).collect();
        assert_eq!(names.len(), Part::ALL.len());
        for part in Part::ALL {
            if let Recipe::Go(programs) = part.recipe() {
                assert!(!programs.programs.is_empty(), "{}", part.name());
            }
        }
    }
}
