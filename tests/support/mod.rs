//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod fake_host;
pub mod operator;
pub mod plane;
pub mod real;
pub mod wait;
