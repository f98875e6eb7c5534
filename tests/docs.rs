//! The commands and manifests in README.md and docs/ do what they say, typed as they are printed, on a real host cluster: each page is one script in a
//! namespace of its own. Between the page and the lab stand only the programs in [`typist::SHIMS`] and the settings in [`typist::REPLACED`].
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

#[path = "docs/page.rs"]
mod page;
mod support;
#[path = "docs/typist.rs"]
mod typist;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

macro_rules! pages {
    ($($(#[$attribute:meta])* $test:ident: $page:literal,)*) => {
        /// The pages with something to type.
        const PAGES: &[&str] = &[$($page),*];

        $($(#[$attribute])*
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            typist::types($page).await;
        })*
    };
}

mod pages {
    use super::typist;

    pages! {
        access: "docs/access.md",
        air_gapped: "docs/air-gapped.md",
        certificates: "docs/certificates.md",
        ci: "docs/ci.md",
        classroom: "docs/classroom.md",
        command_line: "docs/command-line.md",
        connect: "docs/connect.md",
        contents: "docs/contents.md",
        first_cluster: "docs/first-cluster.md",
        images: "docs/images.md",
        ingress: "docs/ingress.md",
        kubeconfigs: "docs/kubeconfigs.md",
        lifecycle: "docs/lifecycle.md",
        migrating_from_kind: "docs/migrating-from-kind.md",
        policy: "docs/policy.md",
    }

    /// For the list of all.
    pub const ALL: &[&str] = PAGES;
}

/// Pages that change the installation: one at a time, alone.
mod installation {
    use super::typist;

    pages! {
        // In this order: the first one installs.
        installed_by_the_readme: "README.md",
        operations: "docs/operations.md",
    }

    /// For the list of all.
    pub const ALL: &[&str] = PAGES;
}

/// No page with commands is left out, and each can be understood; this needs no host cluster.
#[test]
fn each_page_is_typed() {
    let known: BTreeSet<&str> = pages::ALL.iter().chain(installation::ALL).copied().collect();
    let mut found = BTreeSet::new();
    for file in markdown() {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        let script = page::script(&name, &text).unwrap();
        if !script.is_empty() {
            found.insert(name);
        }
    }
    assert_eq!(found, known.iter().map(|&name| name.to_owned()).collect());
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md, and all below docs/ but the records of decisions.
fn markdown() -> Vec<PathBuf> {
    let mut files = vec![root().join("README.md")];
    for directory in ["docs", "docs/reference"] {
        let entries = std::fs::read_dir(root().join(directory)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    files
}
