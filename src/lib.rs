//! Nestling: real kind clusters as Kubernetes objects.
//!
//! Everything that reads or writes is here, in three rooms that know nothing of each other: the [`operator`] (the host cluster), the
//! [`agent`] (inside the pod) and the command line ([`cli`]). What they decide is in `nestling-core`; what two of them need is beside them.

pub mod agent;
pub mod cli;
pub mod operator;
pub mod relay;
mod side_load;
mod x509;
