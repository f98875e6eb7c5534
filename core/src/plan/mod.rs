//! Every decision: from what was seen to what is to be done, and to what is to be said about it.

pub mod certificates;
pub mod changes;
pub mod cidr;
pub mod classify;
pub mod contents;
pub mod credentials;
pub mod decide;
pub mod desired;
pub mod egress;
pub mod evidence;
pub mod expiry;
pub mod exposure;
pub mod findings;
pub mod golden;
pub mod host_loss;
pub mod image_reference;
pub mod kind_config;
pub mod kubelet_config;
pub mod milestones;
pub mod mounts;
pub mod names;
pub mod notes;
pub mod objects;
pub mod observed;
pub mod orders;
pub mod policy;
pub mod power;
pub mod preload;
pub mod problem;
pub mod progress;
pub mod quantity;
pub mod recreation;
pub mod references;
pub mod registries;
pub mod resume;
pub mod serving_names;
pub mod settings;
pub mod settle;
pub mod situation;
pub mod users;
mod volume;
pub mod wire;

#[cfg(test)]
mod convergence;
#[cfg(test)]
mod restore;
#[cfg(test)]
mod skew;
#[cfg(test)]
mod testing;
