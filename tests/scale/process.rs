//! What a process uses, as the kernel counts it.

use serde_json::{Value, json};

/// Ticks of the kernel's clock per second, as it shows them to programs.
const TICKS: f64 = 100.0;

/// Memory in MiB and processor time in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident.
    pub rss: f64,
    /// The most that was ever resident.
    pub peak: f64,
    /// Processor time, user and system.
    pub cpu: f64,
}

/// Of this process, now.
pub fn usage(id: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let of = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The name, in parentheses, may hold blanks.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
    Usage { rss: of("VmRSS:"), peak: of("VmHWM:"), cpu: (ticks(14) + ticks(15)) / TICKS }
}

impl Usage {
    /// For a report.
    pub fn json(self) -> Value {
        let rounded = |value: f64| (value * 10.0).round() / 10.0;
        json!({"rssMiB": rounded(self.rss), "peakMiB": rounded(self.peak), "cpuSeconds": (self.cpu * 100.0).round() / 100.0})
    }
}
