//! Points at which a test kills the operator. Compiled to nothing without the feature `fault-injection`.

/// Called right after a step was carried out, before anything is written about it.
#[cfg(not(feature = "fault-injection"))]
pub fn after_step(_: &'static str) {}

/// Called right after a step was carried out, before anything is written about it. Kills this process, as a power cut would, after the n-th
/// step of the kind that `NESTLING_FAULT_EXIT_AFTER_STEP=<step>[:<n>]` names.
#[cfg(feature = "fault-injection")]
pub fn after_step(step: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static COUNT: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("NESTLING_FAULT_EXIT_AFTER_STEP") else { return };
    let (name, number) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if name == step && COUNT.fetch_add(1, Ordering::SeqCst) + 1 == number.parse().unwrap_or(1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal may take a moment; nothing may happen meanwhile.
        loop {
            std::thread::park();
        }
    }
}
