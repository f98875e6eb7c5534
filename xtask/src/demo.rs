//! `cargo xtask demo`: from nothing to the pods of a nested cluster.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use nestling_lab::command::output;
use nestling_lab::host::HostOptions;
use nestling_lab::progress::note;
use nestling_lab::{Docker, HostCluster, Lab, LabPart, announce};

use crate::{consent, images, install};

/// Name of the demo's host cluster.
const HOST: &str = "nestling-demo";
const EXAMPLE: &str = "examples/kindcluster.yaml";
const CLUSTER: &str = "demo";

/// How to show it.
#[derive(Args)]
pub struct Arguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Remove everything that the demo made.
    #[arg(long)]
    down: bool,
}

/// Shows it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::open()?;
    if arguments.down {
        return HostCluster::down(&lab, HOST);
    }
    consent::ask(
        "This shows Nestling on a host cluster of its own (kind, in Docker). It installs Debian packages that are missing (docker.io, mmdebstrap and\n\
         what building needs), starts dockerd if none answers, and raises fs.inotify.max_user_instances. Where no image registry answers it builds\n\
         Kubernetes and the images from source. Disk: about 8 GB. Cold about 30 minutes, with caches about 3, again about 1.\n\
         ./dev demo --down undoes it.",
        arguments.yes,
    )?;
    announce(&lab, LabPart::All);
    let paths = lab.build(LabPart::All)?;
    let docker = Docker::ensure(paths.cache(), None)?;
    let images = images::build(&paths, &docker)?;
    let host = HostCluster::up(&paths, &HostOptions { name: HOST.to_owned(), ..HostOptions::default() })?;
    let pushed = install::push(&host, &images)?;
    install::install(&paths, &host, &pushed, &[])?;

    let start = Instant::now();
    note(format!("kubectl apply -f {EXAMPLE}"));
    output(host.kubectl().args(["apply", "-f"]).arg(crate::root().join(EXAMPLE)))?;
    let status = nestling(&host).args(["wait", CLUSTER]).status()?;
    if !status.success() {
        bail!("the cluster did not become ready");
    }
    note(format!("ready {:.1} s after kubectl apply", start.elapsed().as_secs_f64()));

    note("its nodes and pods, read with the published kubeconfig from a pod of another namespace");
    println!(
        "{}",
        inside(
            &host,
            "kubectl wait --for=condition=Ready nodes,pods --all --all-namespaces --timeout=120s >&2; kubectl get nodes,pods --all-namespaces -o wide"
        )?
    );
    println!(
        "\nTry it:\n  export KUBECONFIG={}\n  kubectl get kindclusters\n  kubectl get secret {CLUSTER}-kubeconfig -o jsonpath='{{.data.value}}' | base64 -d\n\
         and remove everything with\n  ./dev demo --down",
        host.kubeconfig().display()
    );
    Ok(())
}

/// The project's own command line, for this host cluster.
fn nestling(host: &HostCluster) -> Command {
    let mut command = Command::new(crate::target().join("debug/nestling"));
    command.arg("--kubeconfig").arg(host.kubeconfig());
    command
}

/// Runs a shell script in a pod of the host cluster that has nothing but the published Secret.
fn inside(host: &HostCluster, script: &str) -> Result<String> {
    let node_image = output(host.kubectl().args(["get", "nodes", "-o", "jsonpath={.items[0].status.images[*].names}"]))?;
    let tools =
        node_image.split(['"', ',', ' ', '[', ']']).find(|name| name.contains("nestling-lab/tools")).context("the lab's tools image is not on the host")?;
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "visitor"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "volumes": [{"name": "kubeconfig", "secret": {"secretName": format!("{CLUSTER}-kubeconfig")}}],
            "containers": [{
                "name": "visitor", "image": tools, "imagePullPolicy": "Never", "command": ["bash", "-c", script],
                "env": [{"name": "KUBECONFIG", "value": "/kubeconfig/value"}],
                "volumeMounts": [{"name": "kubeconfig", "mountPath": "/kubeconfig"}],
            }],
        },
    });
    let delete = || output(host.kubectl().args(["delete", "pod", "visitor", "--ignore-not-found", "--now"]));
    delete()?;
    let mut apply = host.kubectl().args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    apply.stdin.take().context("no standard input")?.write_all(pod.to_string().as_bytes())?;
    apply.wait()?;
    let over = output(host.kubectl().args(["wait", "pod/visitor", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=150s"]));
    let said = output(host.kubectl().args(["logs", "visitor"]));
    delete()?;
    over.with_context(|| format!("the visitor said: {said:?}"))?;
    said
}
