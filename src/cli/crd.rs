//! `nestling crd`.

use std::io::Write;

use anyhow::Result;
use nestling_core::api::crds;

/// Prints every CRD, each as a YAML document.
pub fn run() -> Result<()> {
    let mut text = String::new();
    for crd in crds::all() {
        text += "---\n";
        text += serde_saphyr::to_string(&crd)?.trim_end();
        text += "\n";
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
