//! Every decision: from what was seen to what is to be done, and to what is to be said about it.

pub mod cidr;
pub mod classify;
pub mod kind_config;
pub mod names;
pub mod problem;
pub mod wire;
