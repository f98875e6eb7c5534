//! What `create` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::{Form, duration};

/// Arguments of `create`. Where `kind create cluster` has a flag of the same name, it means the same.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Name of the KindCluster
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Kubernetes version of the nodes, such as v1.34.4 [default: the operator's]
    #[arg(long, conflicts_with = "image", value_name = "VERSION")]
    pub version: Option<String>,
    /// Node image, such as kindest/node:v1.34.4
    #[arg(long)]
    pub image: Option<String>,
    /// A kind configuration (kind.x-k8s.io/v1alpha4), as for `kind create cluster`; - is standard input
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Control-plane nodes [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub control_planes: Option<i32>,
    /// Worker nodes [default: 0]
    #[arg(long, value_name = "NUMBER")]
    pub workers: Option<i32>,
    /// How long the cluster lives, such as 8h
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub ttl: Option<Duration>,
    /// From where the cluster can be reached
    #[arg(long, value_enum, value_name = "TYPE")]
    pub access_type: Option<AccessType>,
    /// Label of the object, such as class=monday; may be given more than once
    #[arg(long = "label", value_parser = label, value_name = "KEY=VALUE")]
    pub labels: Vec<(String, String)>,
    /// Wait until the cluster is Ready, at most this long, then merge its kubeconfig if it can be reached from here
    #[arg(long, num_args = 0..=1, default_missing_value = "15m", value_parser = duration, value_name = "DURATION", conflicts_with_all = ["dry_run", "output"])]
    pub wait: Option<Duration>,
    /// With --wait: leave the kubeconfig as it is
    #[arg(long, requires = "wait")]
    pub no_kubeconfig: bool,
    /// With --wait: leave the current context as it is
    #[arg(long, requires = "wait", conflicts_with = "no_kubeconfig")]
    pub keep_context: bool,
    /// Create nothing: only print the object, or also have it checked by the API server
    #[arg(long, value_enum, value_name = "WHERE")]
    pub dry_run: Option<DryRun>,
    /// Form in which the object is printed
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<Form>,
}

/// From where a cluster can be reached: the type of its Service.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AccessType {
    /// Inside the host cluster
    #[value(name = "ClusterIP")]
    ClusterIP,
    /// Also on each node of the host cluster
    #[value(name = "NodePort")]
    NodePort,
    /// Also through a load balancer of the host cluster
    #[value(name = "LoadBalancer")]
    LoadBalancer,
}

/// Where a creation is only tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DryRun {
    /// Nothing is sent
    Client,
    /// The API server checks it and stores nothing
    Server,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label such as class=monday")),
    }
}
