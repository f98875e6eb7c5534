//! Disk that one cluster alone uses. What is mounted into it from elsewhere is not seen from outside, and so not counted.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nestling_lab::command::output;
use serde_json::Value;

use super::nested::Pod;
use super::setup::Setup;

/// Arguments of a shell that has the places for further arguments. Of running programs' files some go while they are counted, of which `du` complains.
const DU: [&str; 3] = ["-c", "du -x -s -B1 \"$@\" 2>/dev/null || true", "du"];

/// Bytes of a bare node: its volumes (`/var`) and its writable layer.
///
/// # Errors
/// If Docker does not say where they are.
pub fn of_container(setup: &Setup, container: &str) -> Result<u64> {
    let inspected = setup.docker.run(&["inspect", container])?;
    let places = places(&serde_json::from_str(&inspected).context("docker inspect printed no JSON")?)?;
    du_sum(&output(Command::new("sh").args(DU).args(&places))?, &places)
}

/// Bytes of a cluster's pod on its host's node: its volumes that are not in memory, and the writable layer of its container.
///
/// # Errors
/// If they are not found.
pub fn of_pod(setup: &Setup, pod: &Pod) -> Result<u64> {
    let ids = setup.host.run(&["get", "pod", "-n", &pod.namespace, &pod.name, "-o", "jsonpath={.status.containerStatuses[*].containerID}"])?;
    let mounts = setup.docker.run(&["exec", &pod.node, "cat", "/proc/self/mountinfo"])?;
    let mut places = vec![format!("/var/lib/kubelet/pods/{}", pod.uid)];
    for id in ids.split_whitespace().map(|id| id.trim_start_matches("containerd://")) {
        places.push(upper_directory(&mounts, id).with_context(|| format!("no overlay is mounted for the container {id} on {}", pod.node))?);
    }
    let du = ["exec", &pod.node, "sh"].into_iter().chain(DU).chain(places.iter().map(String::as_str));
    du_sum(&setup.docker.run(&du.collect::<Vec<_>>())?, &places)
}

/// Where a container keeps what is its own, from `docker inspect`.
fn places(inspected: &Value) -> Result<Vec<String>> {
    let mounts = inspected.pointer("/0/Mounts").and_then(Value::as_array).context("docker inspect names no mounts")?;
    let volumes = mounts.iter().filter(|mount| mount["Type"] == "volume").filter_map(|mount| mount["Source"].as_str());
    let layer = inspected.pointer("/0/GraphDriver/Data/UpperDir").and_then(Value::as_str);
    let layer = layer.context("docker inspect names no writable layer: this needs the storage driver overlay2")?;
    let places: Vec<String> = volumes.chain([layer]).map(str::to_owned).collect();
    ensure!(places.len() > 1, "the container has no volume for /var");
    Ok(places)
}

/// The upper directory of the overlay that is a container's root, from the mount table of its host.
fn upper_directory(mountinfo: &str, container: &str) -> Option<String> {
    let root = mountinfo.lines().find(|line| line.split(' ').nth(4).is_some_and(|point| point.ends_with(&format!("/{container}/rootfs"))))?;
    let options = root.split(' ').next_back()?;
    options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(str::to_owned)
}

/// The sum of what `du` prints, a line for each place.
fn du_sum(text: &str, places: &[String]) -> Result<u64> {
    ensure!(text.lines().count() == places.len(), "du could not look at one of {}", places.join(", "));
    let one = |line: &str| line.split_whitespace().next().and_then(|bytes| bytes.parse::<u64>().ok()).with_context(|| format!("du printed {line:?}"));
    text.lines().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_containers_own_are_its_volumes_and_its_layer() {
        let mounts = json!([{"Type": "volume", "Source": "/docker/volumes/v/_data"}, {"Type": "bind", "Source": "/lib/modules"}]);
        let inspected = json!([{"Mounts": mounts, "GraphDriver": {"Data": {"UpperDir": "/docker/overlay2/u/diff", "LowerDir": "/l"}}}]);
        assert_eq!(places(&inspected).unwrap(), ["/docker/volumes/v/_data", "/docker/overlay2/u/diff"]);
        assert!(places(&json!([{"Mounts": []}])).unwrap_err().to_string().contains("writable layer"));
    }

    #[test]
    fn the_upper_directory_is_found_in_the_mount_table() {
        let table = "700 60 0:80 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/aa/rootfs rw - overlay overlay rw,lowerdir=/s/1/fs,upperdir=/s/2/fs,workdir=/s/2/work\n\
                     701 60 0:81 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/bb/rootfs rw - overlay overlay rw,lowerdir=/s/1/fs,upperdir=/s/3/fs,workdir=/s/3/work";
        assert_eq!(upper_directory(table, "bb").as_deref(), Some("/s/3/fs"));
        assert_eq!(upper_directory(table, "cc"), None);
    }

    #[test]
    fn sums_are_of_all_lines() {
        let places = ["/a", "/b"].map(str::to_owned);
        assert_eq!(du_sum("4096\t/a\n100\t/b", &places).unwrap(), 4196);
        assert!(du_sum("4096\t/a", &places).unwrap_err().to_string().contains("/a, /b"), "a place that is not there is not nothing");
        assert!(du_sum("du: no", &places[..1]).is_err());
    }

    #[test]
    fn du_counts_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), [7; 8192]).unwrap();
        let places = [directory.path().display().to_string()];
        let text = output(Command::new("sh").args(DU).args(&places)).unwrap();
        assert!(du_sum(&text, &places).unwrap() >= 8192);
        assert_eq!(output(Command::new("sh").args(DU).arg(directory.path().join("none"))).unwrap(), "");
    }
}
