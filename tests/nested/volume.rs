//! A volume of its own for one cluster: a file system in a file, which a node of the host has mounted for the time of the test. The test plays the part of a storage
//! system: it can take the volume away from one node and give it to another.

use std::time::Duration;

use crate::support::real::Host;
use crate::support::wait::until;

/// The end of whoever still has a file on it open.
const RELEASED: Duration = Duration::from_mins(2);

/// A volume of 6 GiB that exactly one claim can have: the one of the class of its name.
pub struct Volume<'a> {
    host: &'a Host,
    name: &'static str,
    /// Where the file is, and its loop device was made.
    home: String,
    /// Where it is mounted.
    node: String,
}

impl<'a> Volume<'a> {
    /// Makes it, as a volume of one node.
    pub fn attach(host: &'a Host, name: &'static str) -> Self {
        let volume = Self::mounted(host, name);
        let (node, directory) = (&volume.node, volume.directory());
        let there = format!("[{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]");
        volume.announce(&format!("local: {{path: {directory}}}, nodeAffinity: {{required: {{nodeSelectorTerms: {there}}}}}"));
        volume
    }

    /// Makes it, as a volume that pods find on the node on which it is mounted, and wait for elsewhere.
    pub fn movable(host: &'a Host, name: &'static str) -> Self {
        let volume = Self::mounted(host, name);
        // Only in the volume itself, so that nobody takes the empty directory below for it.
        volume.run(&format!("mkdir {}/data", volume.directory()));
        volume.announce(&format!("hostPath: {{path: {}/data, type: Directory}}", volume.directory()));
        volume
    }

    fn mounted(host: &'a Host, name: &'static str) -> Self {
        // The first one may be kept free of pods.
        let node = host.nodes().pop().unwrap();
        let volume = Self { host, name, home: node.clone(), node };
        volume.detach();
        let (image, directory) = (volume.image(), volume.directory());
        // A container has the device nodes that its host had when it began.
        volume.run(&format!(
            "set -e; truncate -s 6G {image}; mkfs.ext4 -q -m 0 {image}; device=$(losetup --find); [ -e $device ] || mknod $device b 7 ${{device#/dev/loop}}; \
             losetup $device {image}; mkdir -p {directory}; mount $device {directory}"
        ));
        volume
    }

    fn announce(&self, source: &str) {
        let name = self.name;
        self.host.apply(&format!(
            r"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {name}}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec: {{capacity: {{storage: 6Gi}}, accessModes: [ReadWriteOncePod], persistentVolumeReclaimPolicy: Retain, storageClassName: {name}, {source}}}
"
        ));
    }

    /// The host cluster.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// The node that has it.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where that node has it.
    pub fn directory(&self) -> String {
        format!("/var/nestling-{}", self.name)
    }

    fn image(&self) -> String {
        format!("{}.img", self.directory())
    }

    /// Runs a script on the node that has it.
    pub fn run(&self, script: &str) -> String {
        self.host.on_node(&self.node, script)
    }

    /// Takes it away from its node, as soon as nobody there works on it, and gives it to another one (or back).
    pub async fn move_to(&mut self, node: &str) {
        let directory = self.directory();
        let device = self.run(&format!("findmnt --noheadings --output SOURCE {directory}"));
        let busy = format!("umount {directory} 2>&1 && echo released || true");
        until("the volume to be let go", RELEASED, async || {
            let said = self.run(&busy);
            if said.ends_with("released") { Ok(()) } else { Err(said) }
        })
        .await;
        node.clone_into(&mut self.node);
        self.run(&format!("set -e; [ -e {device} ] || mknod {device} b 7 $(echo {device} | tr -dc 0-9); mkdir -p {directory}; mount {device} {directory}"));
    }

    /// Takes everything away that there may be of it. A device whose file system is still in use goes with its last user.
    fn detach(&self) {
        let (name, directory, image) = (self.name, self.directory(), self.image());
        let kubectl = ["delete", "persistentvolume,storageclass", name, "--ignore-not-found", "--wait=false"];
        let _ = self.host.cluster.kubectl().args(kubectl).output();
        let docker = self.host.cluster.docker();
        let unmount = format!("umount {directory} 2>/dev/null || umount --lazy {directory} 2>/dev/null; rmdir {directory} 2>/dev/null; true");
        for node in self.host.nodes() {
            let _ = docker.run(&["exec", &node, "bash", "-c", &unmount]);
        }
        let free = format!("losetup --associated {image} --noheadings --output NAME 2>/dev/null | xargs -r losetup --detach; rm -f {image}");
        let _ = docker.run(&["exec", &self.home, "bash", "-c", &free]);
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        self.detach();
    }
}
