//! `cargo xtask lab`: the lab's parts, the host cluster and the bare control plane.

use std::io::Read;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use nestling_lab::host::{HostOptions, bare_kind_benchmark, stop_docker_if_unused};
use nestling_lab::{ControlPlane, HostCluster, Lab, LabPart, announce};

const MIB: u64 = 1024 * 1024;

/// What to do with the lab.
#[derive(Subcommand)]
pub enum Task {
    /// Build what is missing.
    Build {
        /// How much of the lab.
        #[arg(value_enum, default_value_t = Goal::All)]
        goal: Goal,
    },
    /// Show every part: whether it is built, its size, and how long its build took.
    Status,
    /// Remove what is not used any more.
    Clean {
        /// Remove everything that is built.
        #[arg(long)]
        all: bool,
    },
    /// The host cluster and its local registry.
    #[command(subcommand)]
    Host(HostTask),
    /// Run a bare control plane until standard input ends or is interrupted.
    ControlPlane {
        /// Run the controllers too.
        #[arg(long)]
        controller_manager: bool,
    },
    /// Measure how long plain kind takes on this machine, by stage.
    BareKind,
    /// Run the agent and a nested cluster in the virtual machine, with cgroup v2 and every capability.
    Vm,
}

/// What to do with the host cluster.
#[derive(Subcommand)]
pub enum HostTask {
    /// Bring it up, or find it up.
    Up(UpArguments),
    /// Push an image of the Docker daemon to its registry and print the reference for pods.
    Push {
        /// The image.
        image: String,
    },
    /// Remove it, and undo what bringing it up changed.
    Down,
}

/// The shape of the host cluster.
#[derive(Args)]
pub struct UpArguments {
    /// One or two nodes.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
}

/// How much of the lab.
#[derive(Clone, Copy, ValueEnum)]
pub enum Goal {
    /// The programs of a bare control plane, and helm.
    ControlPlane,
    /// A host cluster.
    Host,
    /// Everything but what is named below.
    All,
    /// The virtual machine.
    Vm,
    /// The node image of a newer release of Kubernetes.
    Newer,
    /// A load balancer and an Ingress controller.
    Balancers,
}

/// Does it.
pub fn run(task: Task) -> Result<()> {
    let lab = Lab::open()?;
    match task {
        Task::Build { goal } => build(&lab, goal),
        Task::Status => status(&lab),
        Task::Clean { all } => {
            println!("freed {} MiB", lab.clean(all)? / MIB);
            Ok(())
        }
        Task::Host(HostTask::Up(arguments)) => {
            announce(&lab, LabPart::Host);
            let host = HostCluster::up(&lab.build(LabPart::Host)?, &options(arguments.nodes))?;
            println!("export KUBECONFIG={}", host.kubeconfig().display());
            Ok(())
        }
        Task::Host(HostTask::Push { image }) => {
            let host = HostCluster::find(&lab.paths(LabPart::Host)?, &HostOptions::default().name)?;
            println!("{}", host.push(&image)?);
            Ok(())
        }
        Task::Host(HostTask::Down) => HostCluster::down(&lab, &HostOptions::default().name),
        Task::ControlPlane { controller_manager } => control_plane(&lab, controller_manager),
        Task::BareKind => bare_kind(&lab),
        Task::Vm => {
            announce(&lab, LabPart::Vm);
            lab.build(LabPart::Vm)?;
            crate::test::machine(|command| command.arg("a_cluster_lives_and_dies"))
        }
    }
}

fn build(lab: &Lab, goal: Goal) -> Result<()> {
    let goal = match goal {
        Goal::ControlPlane => LabPart::ControlPlane,
        Goal::Host => LabPart::Host,
        Goal::All => LabPart::All,
        Goal::Vm => LabPart::Vm,
        Goal::Newer => LabPart::Newer,
        Goal::Balancers => LabPart::Balancers,
    };
    announce(lab, goal);
    lab.build(goal)?;
    stop_docker_if_unused(lab.cache())
}

fn status(lab: &Lab) -> Result<()> {
    println!("{:<24} {:<12} {:>8} {:>10}", "PART", "KEY", "MIB", "BUILT IN");
    for status in lab.status()? {
        let (size, seconds) = match status.built {
            Some((bytes, seconds)) => ((bytes / MIB).to_string(), format!("{seconds:.1} s")),
            None => ("-".to_owned(), "not built".to_owned()),
        };
        println!("{:<24} {:<12.12} {size:>8} {seconds:>10}", status.part.name(), status.key);
    }
    Ok(())
}

fn options(nodes: usize) -> HostOptions {
    HostOptions { nodes, ..HostOptions::default() }
}

fn control_plane(lab: &Lab, controller_manager: bool) -> Result<()> {
    announce(lab, LabPart::ControlPlane);
    let paths = lab.build(LabPart::ControlPlane)?;
    let start = Instant::now();
    let plane = ControlPlane::options().with_controller_manager(controller_manager).start(&paths)?;
    eprintln!("ready after {:.1} s; ends with its standard input", start.elapsed().as_secs_f64());
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn bare_kind(lab: &Lab) -> Result<()> {
    let paths = lab.build(LabPart::Host)?;
    let stages = bare_kind_benchmark(&paths)?;
    for stage in &stages {
        println!("{:6.1} s  {}", stage.seconds, stage.name);
    }
    println!("{:6.1} s  in all", stages.iter().map(|stage| stage.seconds).sum::<f64>());
    stop_docker_if_unused(paths.cache())
}
