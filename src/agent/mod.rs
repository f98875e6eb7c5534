//! The agent: everything that runs inside the pod, and the only room with privilege.
//!
//! `nestling agent` is two processes of one binary. The first ([`init`]) is PID 1: it sets up the control groups before any
//! thread exists, starts the second, passes signals on and reaps orphans; it must not crash, so it does nothing else. The second
//! ([`machine`]) drives the stages from the checks of the host to the running cluster and tells the operator about them ([`server`]).
//!
//! Each other file is one thing the machine uses. What decides is a pure function with a table test beside it; what
//! touches the machine is short. What cannot go on ends as an [`AgentFailure`](nestling_core::plan::wire::AgentFailure).

use std::process::ExitCode;

use nestling_core::plan::wire::DATA_ROOT;

#[cfg(test)]
mod alone;
mod bundle;
mod capabilities;
mod certificates;
mod cgroup;
mod cni;
mod containerd;
mod contents;
mod data_root;
mod docker;
mod docker_exec;
mod dockerd;
mod egress;
mod exec;
mod facts;
mod failure;
mod fault;
mod freezer;
mod golden;
mod handshake;
mod image;
mod init;
mod keeper;
mod keys;
mod kind;
mod kubelet_unit;
mod logs;
mod loop_devices;
mod machine;
mod made;
mod mountinfo;
mod nested;
mod network;
mod node_files;
mod nodes;
mod oci_runtime;
pub mod other_names;
mod output;
mod own_parts;
mod policy_probe;
mod ports;
mod power;
mod preflight;
mod preload;
mod registration;
mod registries;
mod report;
mod server;
mod serving_names;
mod storage;
mod store;
mod teardown;
mod unpacked;
mod users;
mod wait;

/// Directory of everything that the agent writes and that must not outlive the pod; a tmpfs.
const RUN_DIRECTORY: &str = "/run/nestling";

/// Docker's only door.
const DOCKER_SOCKET: &str = "/run/docker.sock";

/// Looks at the host as every cluster's pod does first, and prints the findings as one line of JSON.
pub fn examine(allow_cgroup_v1: bool) -> ExitCode {
    let findings = preflight::examine(&facts::gather(DATA_ROOT), preflight::Demand { nodes: 1, allow_cgroup_v1, network: None, there: false });
    match serde_json::to_string(&findings) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("the findings cannot be written: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs the agent: as PID 1 of the pod, or (`supervised`) as the child of that.
///
/// Starts no thread and needs none when `supervised` is false: the control groups must be set up before. Exit codes: 0 after a
/// complete teardown, 1 after a failure that is in the termination log, others as the child's.
pub fn run(supervised: bool) -> ExitCode {
    if supervised { machine::run() } else { init::run() }
}
