//! Every reason of a condition, event and metric, with its remedy. `docs/reference/reasons.md` is generated from here.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident $(=> $remedy:literal)?,)+) => {
        /// Why a condition is as it is.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As it is written in a condition.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it means.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii_start(),)+ }
            }

            /// What to do about it; empty where there is nothing to do.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => { #[allow(unused_mut, unused_assignments)] let mut remedy = ""; $(remedy = $remedy;)? remedy },)+ }
            }
        }
    };
}

reasons! {
    // On the way.
    /// Nothing has been looked at yet.
    Pending,
    /// The cluster waits for its turn: the operator creates only so many at once.
    Queued,
    /// The pod waits for a node of the host.
    PodPending,
    /// The pod's containers are being made.
    PodStarting,
    /// The host's kernel, limits and addresses are being checked.
    Preflight,
    /// The pod's control groups are being set up.
    PreparingCgroups,
    /// The pod's network is being prepared.
    PreparingNetwork,
    /// The pod's Docker daemon starts.
    StartingDocker,
    /// The node image is loaded or pulled.
    LoadingNodeImage,
    /// kind: Ensuring node image.
    EnsuringNodeImage,
    /// kind: Preparing nodes.
    PreparingNodes,
    /// kind: Writing configuration.
    WritingConfiguration,
    /// kind: Starting control-plane.
    StartingControlPlane,
    /// kind: Installing CNI.
    InstallingCNI,
    /// kind: Installing StorageClass.
    InstallingStorageClass,
    /// kind: Joining more control-plane nodes.
    JoiningControlPlaneNodes,
    /// kind: Joining worker nodes.
    JoiningWorkerNodes,
    /// The nodes of a cluster are being brought back: from the volume on which a lost pod has left them, or because `spec.powerState` says so.
    Resuming,
    /// The API server is being waited for.
    WaitingForControlPlane,
    /// The images of `spec.preload` are pulled and put into the nodes.
    PreloadingImages => "Nothing to do: the agent is at it, and tries again where it failed; see the message if it stays.",
    /// Not every node is ready yet.
    WaitingForNodes => "With disableDefaultCNI, install a CNI: nodes are not ready without one.",
    /// What `spec.manifests` lists is being applied; what is not accepted yet is tried again for ten minutes.
    ApplyingManifests,
    /// Something that `spec.readiness` asks for is not so yet.
    WaitingForReadiness => "See what is waited for inside the cluster, or take it out of spec.readiness.",
    /// The kubeconfig is about to be published.
    PublishingKubeconfig,
    /// The host's load balancer has not given an address yet.
    WaitingForLoadBalancer,
    /// The pod is about to open or close ports, as `spec.ports` says.
    OpeningPorts,
    /// Something was changed and is being carried out.
    Progressing,

    // As it should be.
    /// All is as the spec says.
    ClusterReady,
    /// The host is fit and the pod runs.
    HostFit,
    /// The API server is ready.
    ApiServerReady,
    /// All nodes are ready.
    AllNodesReady,
    /// The Secret is written.
    Published,
    /// Every address that `spec.access` and `spec.ports` ask for is there.
    EndpointsOpen,
    /// What `spec.manifests` lists is applied.
    ManifestsApplied,
    /// `spec.manifests` lists nothing.
    NoManifests,
    /// The volume of the cluster has room.
    StorageSufficient,
    /// The certificates of the nodes are renewed in time.
    CertificatesInTime,
    /// Nothing is left to do.
    Settled,
    /// What runs is what the spec says.
    InSync,
    /// The cluster lives until somebody deletes it.
    NoExpiry,
    /// The cluster's time is not over yet.
    NotExpiring,
    /// `spec.powerState` lets the cluster run.
    NotSuspended,
    /// `spec.paused` is not set.
    NotPaused,
    /// The object is not being deleted.
    NotDeleting,
    /// The operator is not stuck.
    NotStalled,
    /// The pod cannot reach the host's API server, which its NetworkPolicy forbids, and can reach its nameserver, which it allows.
    ProbeBlocked,

    // What the host's CNI does with NetworkPolicies; the egress guard does not depend on it.
    /// The pod reaches the host's API server, which its NetworkPolicy forbids.
    NotEnforced => "Use a CNI that enforces NetworkPolicies. Until then only the egress guard stands between nested workloads and the host, and nothing between other pods and the cluster's.",
    /// Whether NetworkPolicies are enforced cannot be seen from the pod.
    ProbeInconclusive => "Check that the host's CNI enforces NetworkPolicies; the egress guard does not depend on it.",

    // By wish of the user.
    /// `spec.paused` is set: the operator changes nothing.
    Paused => "Set spec.paused to false to go on.",
    /// The cluster becomes ready first; then it is suspended as `spec.powerState` says.
    SuspendsWhenReady,
    /// The cluster's nodes are being frozen, as `spec.powerState` says.
    Freezing,
    /// The cluster's nodes are frozen: they use no CPU, and connections are refused.
    Frozen => "Set spec.powerState to Running to go on.",
    /// The cluster's nodes are being stopped, as `spec.powerState` says.
    Stopping,
    /// The cluster's nodes are stopped: they use neither CPU nor memory, and connections are refused.
    Stopped => "Set spec.powerState to Running to go on.",
    /// The cluster's time is about to be over; then the object is deleted.
    ExpiresSoon => "Raise spec.lifecycle.ttl or spec.lifecycle.expirationTime as far as the operator's owner allows, or save what you need.",
    /// The cluster's time is over; the operator deletes the object.
    Expired,
    /// The pod and its cluster are being taken down.
    DeletingCluster,
    /// The cluster was to be gone by now and something of it is still there, perhaps on a node that nobody can reach.
    CleanupUnverified => "Look at the named objects and at their node; once they are gone, the object goes as well.",
    /// Some change can only be taken over by a new cluster.
    RecreateRequired => "Undo the change, or set the annotation nestling.dev/recreate to a new value: a new, empty cluster then takes the place of this one.",
    /// The annotation `nestling.dev/recreate` asks for a new, empty cluster in the place of this one.
    Recreating,

    // `spec.powerState` cannot be carried out; the cluster goes on as it is.
    /// The host has cgroup v1, where a frozen process cannot be killed: a pod whose agent is gone would stay until somebody thaws it.
    FreezeUnsupported => "Set spec.powerState to Stopped or Running, use a host with cgroup v2, or ask the operator's owner to set power.allowFreezeOnCgroupV1 in the chart's values.",
    /// The pod's agent is of an earlier release, which does not know this.
    AgentOutdated => "Delete the object and create it anew, or live without: pods of earlier releases are never restarted by an upgrade.",
    /// Nodes could not be frozen, stopped or brought back in time; the agent tries again.
    PowerChangeFailed => "See the message; the cluster's pod has the log. Setting spec.powerState anew, or deleting the object, works at any time.",

    // Something of `spec.access` or `spec.ports` is not to be had; the cluster goes on without.
    /// The host's load balancer has not given an address for minutes.
    LoadBalancerPending => "Look at the events of the named Service: the host needs a load balancer, such as a cloud's or MetalLB, that serves spec.access.service.loadBalancerClass and has an address left. Or set spec.access.service.type to NodePort.",
    /// A port of `spec.ports` is taken in the pod.
    PortInUse => "Choose another targetNodePort, or take away what holds the port in the pod, such as an entry of spec.config.nodes[].extraPortMappings.",

    // The spec cannot be carried out.
    /// The spec sets a field of kind's configuration that belongs to the operator.
    ConfigFieldOwned => "Remove the named field from spec.config.",
    /// A patch or field of `spec.config` cannot be read.
    ConfigUnreadable => "Correct the named part of spec.config.",
    /// An address range of the cluster overlaps one of the host's.
    CIDROverlap => "Choose a range clear of the host's, or leave it out to have one chosen.",
    /// Every range that could be chosen overlaps one of the host's.
    CIDRExhausted => "Set networking.podCIDRs and networking.serviceCIDRs to free ranges.",
    /// The address family cannot be had.
    IPFamilyUnsupported => "Use ipv4.",
    /// The operator knows no node image for this version.
    NodeImageUnknown => "Set spec.image, or ask the operator's owner to add the version to nodeImages.",
    /// The resources are less than the cluster needs.
    ResourcesTooSmall => "Raise spec.resources to the named minimum, or leave it out.",
    /// A manifest in the spec itself cannot be read, or holds something other than objects.
    ManifestUnreadable => "Correct the named manifest.",
    /// A manifest in the spec itself holds a Secret, which everybody could read who may read this object.
    InlineSecret => "Put the manifest into a Secret of type nestling.dev/manifests and name that one in secretRef. What stood here should now be thought to be known.",
    /// The object holds more than fits into a pod's annotations.
    SpecTooLarge => "Shorten the patches in spec.config.",
    /// The policy of the operator's owner does not allow what the spec asks for.
    PolicyViolation => "Change the named fields to what is allowed, or ask the operator's owner to widen policy in the chart's values.",
    /// Nothing on this host would enforce `lifecycle.deletionProtection`.
    DeletionProtectionUnavailable => "Leave lifecycle.deletionProtection out, or ask the operator's owner to set policy.admission in the chart's values, on a host with ValidatingAdmissionPolicies.",

    // What the spec refers to cannot be had.
    /// The operator may not read a Secret or ConfigMap that the spec names.
    SecretAccessDenied => "Let somebody who may give rights in this namespace run the command in the message.",
    /// A Secret that the spec names does not exist.
    SecretNotFound => "Create it in the namespace of this object, or correct its name.",
    /// A ConfigMap that the spec names does not exist.
    ConfigMapNotFound => "Create it in the namespace of this object, or correct its name.",
    /// A Secret that the spec names holds no credentials that could be used inside of a cluster.
    UnusableDockerConfig => "Name a Secret that holds user name and password themselves: credential helpers and stores do not exist inside of the cluster.",
    /// A ConfigMap that the spec names holds no authority.
    UnusableAuthority => "Put the authority's certificate under the key ca.crt, as PEM and without its key.",
    /// A Secret or ConfigMap that `spec.manifests` names holds none, or is of another type.
    UnusableManifest => "Put the objects, as kubectl apply takes them, under any keys of a ConfigMap, or of a Secret of type nestling.dev/manifests.",
    /// What `spec.manifests` comes to is more than an agent takes.
    ManifestsTooLarge => "Leave out what the cluster can do without, or apply the rest with kubectl once the cluster is Ready.",

    // The host refuses the pod.
    /// Pod Security admission refuses the pod.
    PodSecurity => "Label the clusters namespace pod-security.kubernetes.io/enforce=privileged; the Helm chart does.",
    /// A ResourceQuota or LimitRange refuses the pod.
    QuotaExceeded => "Raise the quota of the clusters namespace, or delete clusters.",
    /// The host's API server refuses an object.
    HostRefused => "See the message; the operator's rights come from the Helm chart.",
    /// The host's API server does not answer.
    HostUnavailable => "Nothing to do: the operator tries again.",
    /// The cluster's volume is not there, or not where a node could take the pod.
    VolumePending => "See the message and the events of the named claim: its StorageClass must exist, and its provisioner, or a free volume of it, must give what is requested with the access mode ReadWriteOncePod.",
    /// The cluster's volume was taken away from its claim.
    VolumeLost => "Delete the object and create it anew: what the volume held is gone.",
    /// No node of the host can take the pod.
    Unschedulable => "See the message; lower spec.resources or make room on the host.",
    /// The host cannot pull the pod's image.
    PodImagePullFailed => "Check the operator's node image and its pull secrets.",
    /// The pod's containers cannot be started.
    PodStartFailed => "See the message; it comes from the host's kubelet.",

    // The host is not fit.
    /// The host has cgroup v1 and the operator does not allow it.
    UnsupportedCgroupV1 => "Use a host with cgroup v2, or set allowCgroupV1 in the chart's values.",
    /// The pod's control groups cannot be set up.
    CgroupDelegation => "See the message; the pod must be privileged and the cgroup file system writable.",
    /// Sysctls of the whole machine will be changed by the nodes' kubelets.
    HostSysctlsChange => "Give these sysctls the same values on the host, as its own kubelet does when it starts, or live with the change.",
    /// `fs.inotify` limits are too low for the number of nodes.
    InotifyLimitTooLow => "On the host: sysctl fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288.",
    /// The pod may have too few processes.
    PidsLimitTooLow => "Raise the kubelet's podPidsLimit.",
    /// The pod lacks a capability that nodes cannot do without.
    CapabilityMissing => "The pod must be privileged; a sandboxed runtime may withhold capabilities.",
    /// Docker's data cannot live on this file system.
    DataRootUnsupported => "Use ext4 or xfs for the host's kubelet directory, or for the volumes of storage.storageClassName.",
    /// The volume of the cluster holds data that is not known to be its own. Nothing of it was changed.
    DataRootForeign => "Give the cluster an empty volume: look at what the volume of its claim (c-…-data in the clusters namespace) holds and remove it by hand, or delete the object and the volume.",
    /// Another pod works on the volume of the cluster.
    DataRootInUse => "Nothing to do if an earlier pod of the cluster is on its way out; else find out who else uses the volume.",
    /// The volume of the cluster is about to be full. Beyond its size the host ends the pod, and the cluster with it; where the volume is persistent, nothing more can be written.
    StorageNearlyFull => "Delete images, volumes or pods inside the cluster; a larger spec.storage.size needs a new cluster.",
    /// There is too little disk space.
    DiskTooSmall => "Free space on the host's node; where the volume is persistent, raise spec.storage.size.",
    /// Neither iptables backend works in the pod.
    IptablesUnavailable => "Load the kernel modules iptable_nat or nf_tables on the host.",
    /// The host's kernel has no ip6tables, and something asked for IPv6.
    IPv6Unavailable => "Use ipv4, or load the kernel module ip6table_nat on the host.",
    /// The rules that keep nested traffic from the host's API, addresses and metadata cannot be put up.
    EgressGuardFailed => "See the message; load the kernel module iptable_mangle or nf_tables on the host. Where something else enforces it, set egress.guard to false in the chart's values.",
    /// The pod has no default route.
    NoDefaultRoute => "Nothing to do if clusters need nothing from outside; else look at the host's CNI.",
    /// `/dev/kmsg` cannot be read; the kubelet needs it.
    KmsgUnreadable => "Run the pod with a runtime that gives privileged containers /dev/kmsg.",

    // The attempt failed.
    /// The pod is gone and nobody deleted the cluster.
    PodLost => "See the events of the clusters namespace for who removed the pod.",
    /// The host's node under the cluster does not answer. Until it comes back or is given up, nobody knows whether the cluster still runs there.
    HostNodeNotReady => "Look at the named node; after six minutes it is given up, and spec.lifecycle.podLossPolicy is carried out.",
    /// The host's node under the cluster is lost, and the cluster with it.
    HostNodeLost => "Bring the node back, or delete the Node object if it is gone for good: what ran there is cleaned up, and a persistent volume is let go, only then.",
    /// The pod was evicted for the disk it used.
    StorageEvicted => "Raise spec.storage.size, or free disk on the host's node.",
    /// The pod was evicted.
    PodEvicted => "See the message; give the pod a priorityClassName or the host's node more room.",
    /// The cluster used more memory than its pod may.
    OutOfMemory => "Raise spec.resources.limits.memory.",
    /// The agent ended without saying why.
    AgentCrashed => "See the evidence; if it comes again, please report it.",
    /// The agent does not answer.
    AgentUnreachable => "Check that the operator may reach the clusters namespace (NetworkPolicy, CNI).",
    /// The cluster on the volume does not come back. Nothing of it was removed, and no empty one takes its place.
    ResumeFailed => "See the evidence. The state is still on the volume: any change of the spec, such as lifecycle.backoffLimit, tries again; lifecycle.podLossPolicy Recreate gives it up for a new, empty cluster.",
    /// The attempt took longer than `lifecycle.creationTimeout`.
    CreationTimeout => "See what was being waited for; raise lifecycle.creationTimeout if the host is slow.",
    /// The Docker daemon did not start or died.
    DockerFailed => "See the evidence.",
    /// The Docker daemon lives but has not answered for two minutes.
    DockerUnresponsive => "See the evidence and the logs that were kept; often the disk or the processors of the host's node are overloaded.",
    /// The node image cannot be pulled.
    NodeImagePullFailed => "Check spec.image or spec.version and that the host can reach the registry.",
    /// An image of `spec.preload` cannot be pulled or put into the nodes.
    PreloadFailed => "Check the named image in spec.preload.images and that the host can reach its registry, or take it out and load it with kubectl nestling load.",
    /// The registry limits the rate of pulls.
    RegistryRateLimited => "Name a mirror or credentials in spec.registries, or use a pod image that carries the node image.",
    /// The registry wants credentials.
    RegistryAuth => "Name a Secret with credentials in spec.registries.",
    /// The registry's certificate is not trusted.
    RegistryCA => "Name a ConfigMap with the registry's authority in spec.registries.",
    /// The node image is for another processor.
    ArchMismatch => "Choose an image that has the host's architecture.",
    /// An image cannot be handed on, because Docker's image store keeps it for several platforms and has only one.
    ImageStoreIncompatible => "Save the image with docker save --platform and load it with kind load image-archive.",
    /// The cgroup tree of the host's node is full of left-overs.
    HostCgroupsLeaked => "Reboot the host's node.",
    /// The disk is full.
    DataRootFull => "Raise spec.storage.size, or free disk on the host's node.",
    /// Docker found no free address range for its network.
    AddressPoolExhausted => "See the message; another range is chosen on the next attempt.",
    /// A node's systemd did not come up in kind's 30 seconds.
    NodeBootTimeout => "Give the pod more CPU; see the evidence for what the node waited for.",
    /// `kubeadm init` failed.
    KubeadmInitFailed => "See the evidence; often a patch in spec.config that kubeadm refuses.",
    /// `kubeadm join` failed.
    KubeadmJoinFailed => "See the evidence.",
    /// kind failed in a way that is not known yet.
    KindFailed => "See the evidence.",
    /// kind did not take over what was asked for.
    ConfigNotApplied => "A patch in spec.config undoes a setting the operator needs; see the message.",

    // The cluster is not well.
    /// The container of a node, or of the load balancer, has died. The agent starts it again; while it dies every time, ever more slowly, and in the end the cluster is given up if its API server does not answer either.
    NodeContainerDead => "Nothing to do if it comes back. Else see what ended it: too little memory (spec.resources.limits.memory), a full disk, or somebody who is root in the pod.",
    /// The API server does not answer.
    ControlPlaneUnhealthy => "See the cluster's own events; the operator watches for its return.",
    /// A manifest was not accepted by the cluster's API server within ten minutes.
    ManifestFailed => "See the message. A change of the manifest, or a new value of the annotation nestling.dev/reapply, tries again at once; else it is tried again every hour.",
    /// A certificate of the cluster's nodes ends soon and could not be renewed.
    CertificateExpiring => "See the message and the agent's log; the agent tries again every hour. A new cluster (annotation nestling.dev/recreate) has new certificates.",
    /// The API server's certificate does not hold the names of `access.certSANs` yet.
    ChangingCertificate => "Nothing to do: the agent is at it; see the message if it stays.",
    /// The ClusterRoles of `kubeconfig.users` are not bound as the spec says yet.
    BindingUsers => "Nothing to do: the agent is at it; see the message if it stays. An agent of an earlier release cannot, then a new cluster can (annotation nestling.dev/recreate).",
    /// The Secret's name is taken by an object that is not ours.
    KubeconfigSecretConflict => "Delete or rename that Secret, or set kubeconfig.secretName.",
    /// The kubeconfig could not be written.
    KubeconfigWriteFailed => "See the message.",
    /// Nothing can be said while the pod is not there.
    NoPod,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Reason {
    /// The reason of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }

    /// Whether it tells how far something is that goes on, and nothing else.
    pub fn is_on_the_way(self) -> bool {
        (Self::Pending..=Self::Progressing).contains(&self)
    }

    /// Whether it tells of something that is as it should be.
    pub fn is_as_it_should_be(self) -> bool {
        (Self::ClusterReady..=Self::ProbeBlocked).contains(&self)
    }

    /// Whether it is about something that the spec refers to: the same would be found again until a person has changed it.
    pub const fn is_about_a_reference(self) -> bool {
        matches!(
            self,
            Self::SecretAccessDenied
                | Self::SecretNotFound
                | Self::ConfigMapNotFound
                | Self::UnusableDockerConfig
                | Self::UnusableAuthority
                | Self::UnusableManifest
                | Self::ManifestsTooLarge
        )
    }

    /// Whether an attempt can end of it: the host is not fit, or it is found out while the cluster is made. Not of those that are found before there is a pod.
    pub fn ends_attempts(self) -> bool {
        (Self::UnsupportedCgroupV1..=Self::ControlPlaneUnhealthy).contains(&self) && !matches!(self, Self::HostNodeNotReady | Self::StorageNearlyFull)
            || matches!(self, Self::ConfigUnreadable | Self::CIDROverlap | Self::PodStartFailed)
    }

    /// What happened, followed by the remedy.
    pub fn explain(self, what: &str) -> String {
        let what = what.trim().trim_end_matches('.');
        match (what.is_empty(), self.remedy()) {
            (true, "") => self.meaning().to_owned(),
            (true, remedy) => format!("{} {remedy}", self.meaning()),
            (false, "") => format!("{what}."),
            (false, remedy) => format!("{what}. {remedy}"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    /// A name that is not known (a newer agent's) reads as [`Reason::KindFailed`]: the message still says what happened.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Self::parse(&name).unwrap_or(Self::KindFailed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_meaning_and_reads_back() {
        for reason in Reason::ALL {
            assert!(reason.meaning().ends_with('.'), "{reason}: {:?}", reason.meaning());
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
            assert!(reason.remedy().is_empty() || reason.remedy().ends_with('.'), "{reason}");
        }
    }

    #[test]
    fn the_remedy_follows_what_happened() {
        assert_eq!(
            Reason::ConfigFieldOwned.explain("networking.apiServerPort is set"),
            "networking.apiServerPort is set. Remove the named field from spec.config."
        );
        assert_eq!(Reason::Settled.explain(""), "Nothing is left to do.");
    }
}
