//! The local registry: images pushed to it move layer by layer, which a reload of a whole image does not.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::size;
use crate::command::wait_for;
use crate::docker::Docker;
use crate::lab::LabPaths;
use crate::part::Part;
use crate::progress::note;

const CONTAINER: &str = "nestling-lab-registry";
/// What was pushed, in the cache: a layer that is there already need not be packed again.
pub const STORAGE: &str = "registry";
/// Bytes of storage above which it begins anew, so that it does not grow with every change of the project.
const STORAGE_LIMIT: u64 = 8 << 30;
const INSIDE_PORT: u16 = 5000;
const USUAL_PORT: u16 = 5001;
const START_WITHIN: Duration = Duration::from_secs(20);

/// The running registry.
#[derive(Clone, Debug)]
pub struct Registry {
    port: u16,
}

impl Registry {
    /// Starts the registry on a Docker network, or finds it running there.
    pub fn up(docker: &Docker, paths: &LabPaths, network: &str) -> Result<Self> {
        let image = paths.load(docker, Part::RegistryImage)?;
        let wanted = format!("true {image} {network}");
        let state = "{{.State.Running}} {{.Config.Image}} {{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
        if docker.run(&["inspect", "--format", state, CONTAINER]).is_ok_and(|found| found == wanted) {
            return Self::running(docker);
        }
        Self::remove_container(docker)?;
        let publish = format!("127.0.0.1:{}:{INSIDE_PORT}", free_port(USUAL_PORT)?);
        if size(&paths.cache().directory(STORAGE)?)? > STORAGE_LIMIT {
            paths.cache().remove_directory(STORAGE)?;
        }
        let volume = format!("{}:/var/lib/registry", paths.cache().directory(STORAGE)?.display());
        note("starting the local registry");
        docker.run(&["run", "-d", "--name", CONTAINER, "--restart", "always", "--network", network, "-p", &publish, "-v", &volume, &image])?;
        Self::running(docker)
    }

    /// The registry's name for pushes from this machine, which is also its name in image references of pods.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Tells a cluster's nodes where the registry is, by containerd's host files and the documented config map.
    pub fn announce_to(&self, docker: &Docker, nodes: &[String]) -> Result<()> {
        let directory = format!("/etc/containerd/certs.d/{}", self.host());
        let script = format!("mkdir -p '{directory}' && printf '[host.\"http://{CONTAINER}:{INSIDE_PORT}\"]\\n' > '{directory}/hosts.toml'");
        for node in nodes {
            docker.run(&["exec", node, "sh", "-c", &script])?;
        }
        Ok(())
    }

    /// The config map by which a cluster names its local registry to tools.
    pub fn config_map(&self) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "local-registry-hosting", "namespace": "kube-public" },
            "data": { "localRegistryHosting.v1": format!("host: \"{}\"\n", self.host()) },
        })
    }

    /// Pushes an image of the Docker daemon under a name, less the registry in that, and returns the reference under which pods can use it.
    pub fn push(&self, docker: &Docker, image: &str, name: &str) -> Result<String> {
        let reference = format!("{}/{}", self.host(), repository(name));
        docker.run(&["tag", image, &reference])?;
        docker.run(&["push", "-q", &reference])?;
        Ok(reference)
    }

    /// Removes the registry. What was pushed to it stays in the cache.
    pub fn down(docker: &Docker) -> Result<()> {
        Self::remove_container(docker)
    }

    fn running(docker: &Docker) -> Result<Self> {
        let mut port = None;
        wait_for("the local registry publishes its port", START_WITHIN, || {
            let printed = docker.run(&["port", CONTAINER, &INSIDE_PORT.to_string()])?;
            port = printed.lines().next().and_then(|line| line.rsplit(':').next()?.parse().ok());
            Ok(port.is_some_and(|port| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()))
        })?;
        Ok(Self { port: port.context("the registry has no port")? })
    }

    fn remove_container(docker: &Docker) -> Result<()> {
        docker.run(&["rm", "-f", "-v", CONTAINER]).map(drop).or_else(|error| {
            // Newer clients take a missing container for success, older ones do not.
            if error.to_string().contains("No such container") { Ok(()) } else { Err(error) }
        })
    }
}

/// The name of an image without the registry it came from.
fn repository(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => rest,
        _ => image,
    }
}

fn free_port(usual: u16) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", usual)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pushed_image_loses_only_its_registry() {
        assert_eq!(repository("nestling/node:1"), "nestling/node:1");
        assert_eq!(repository("docker.io/nestling/node:1"), "nestling/node:1");
        assert_eq!(repository("localhost:5001/a/b:1"), "a/b:1");
        assert_eq!(repository("busybox"), "busybox");
    }
}
