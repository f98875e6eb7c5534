//! The lab builds, or pulls, every part that a real host cluster and a real nested cluster are made of, and runs
//! them: a bare control plane for fast tests, a kind host cluster with a local registry for the rest.
//!
//! See `lab/README.md` for what each part is and which of them are stand-ins.

pub mod accounting;
pub mod apt;
pub mod archive;
pub mod balancers;
pub mod cache;
pub mod command;
pub mod control_plane;
pub mod debian;
pub mod docker;
pub mod go;
mod golden;
pub mod host;
pub mod images;
pub mod key;
pub mod kind;
mod lab;
pub mod layer;
pub mod load_balancer;
pub mod machine;
pub mod node_image;
pub mod node_store;
pub mod part;
mod pki;
pub mod progress;
pub mod registry;
pub mod release;
pub mod source;
pub mod vm;
pub mod vm_disk;
pub mod workshop;

pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use docker::Docker;
pub use host::HostCluster;
pub use lab::{Lab, LabPart, LabPaths, PartStatus, announce};
pub use part::Part;
