//! Whether a cluster runs.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a cluster runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PowerState {
    /// It runs.
    #[default]
    Running,
    /// Its nodes are frozen: they use no CPU, keep their memory and are back within a second.
    Frozen,
    /// Its nodes are stopped: they use neither CPU nor memory, keep their disks, and boot again.
    Stopped,
}

impl fmt::Display for PowerState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Running => "Running",
            Self::Frozen => "Frozen",
            Self::Stopped => "Stopped",
        })
    }
}
