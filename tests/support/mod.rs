//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod by_hand;
pub mod fake_host;
pub mod operator;
pub mod plane;
pub mod real;
pub mod secret_scan;
pub mod wait;

/// Seed of everything random; `./dev test --seed` sets it.
pub fn seed() -> u64 {
    std::env::var("NESTLING_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

/// Whether every count is asked for at its full size.
pub fn soak() -> bool {
    std::env::var_os("NESTLING_TEST_SOAK").is_some()
}

/// Leaves what a suite has found for the report of the whole run (`cargo xtask test`), where one is made.
pub fn record(suite: &str, found: &serde_json::Value) {
    if let Some(directory) = std::env::var_os("NESTLING_TEST_FINDINGS") {
        std::fs::write(std::path::Path::new(&directory).join(format!("{suite}.json")), found.to_string()).unwrap();
    }
}
