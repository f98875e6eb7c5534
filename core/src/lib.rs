//! The API types and every decision of Nestling.
//!
//! This crate has no Kubernetes client, no clock, no file and no socket, and its dependencies hold none to call: what is
//! decided here can be tested by tables and properties alone. Reading and writing live in the `nestling` package.

pub mod api;
pub mod plan;
