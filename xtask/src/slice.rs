//! Which of the long tests on real clusters a run takes. Those of the soak tier take all.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Tests of which a run takes some at random.
pub struct Suite {
    /// Beginnings of their names.
    names: &'static [&'static str],
    /// So many are in every run.
    taken: usize,
}

/// Modules of `tests/nested/` whose tests take minutes each and look at one feature from beginning to end.
pub const NESTED: Suite = Suite {
    names: &[
        "balancers::",
        "changes::",
        "clients::",
        "contents::",
        "failures::",
        "golden::",
        "high_availability::",
        "images::",
        "ports::",
        "power::",
        "resume::",
        "storage::",
        "verbs::",
    ],
    taken: 4,
};

/// Tests of `tests/solo.rs` that do one thing many times.
pub const SOLO: Suite = Suite {
    names: &[
        "a_storm_waits_its_turn_and_none_fails",
        "an_operator_killed_at_random_is_survived",
        "ends_by_force_leave_nothing_behind",
        "a_narrow_network_is_narrow_inside",
        "an_unfit_host_is_named_before_harm_and_recovers",
    ],
    taken: 3,
};

/// Pages of `tests/docs.rs`.
pub const PAGES: Suite = Suite {
    names: &[
        "pages::access",
        "pages::air_gapped",
        "pages::certificates",
        "pages::ci",
        "pages::classroom",
        "pages::command_line",
        "pages::connect",
        "pages::contents",
        "pages::first_cluster",
        "pages::images",
        "pages::ingress",
        "pages::kubeconfigs",
        "pages::lifecycle",
        "pages::migrating_from_kind",
        "pages::policy",
    ],
    taken: 3,
};

impl Suite {
    /// What a run with this seed leaves out.
    pub fn left_out(&self, seed: u64) -> Vec<&'static str> {
        let mut names = self.names.to_vec();
        names.shuffle(&mut StdRng::seed_from_u64(seed));
        names.split_off(self.taken)
    }

    /// Whether a run with this seed has any of these tests; `only` is what the names of tests must contain.
    pub fn takes(&self, name: &str, seed: u64, only: Option<&str>, all: bool) -> bool {
        only.map_or_else(|| all || !self.left_out(seed).contains(&name), |only| only.contains(name.trim_end_matches("::")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_tests_need_is_prepared_when_they_run() {
        let seed = (0..100).find(|seed| NESTED.left_out(*seed).contains(&"power::")).unwrap();
        assert!(!NESTED.takes("power::", seed, None, false) && NESTED.takes("power::", seed, None, true));
        assert!(NESTED.takes("power::", seed, Some("power::a_cluster"), false) && !NESTED.takes("power::", seed, Some("resume"), true));
    }

    #[test]
    fn each_is_taken_by_some_seed() {
        for suite in [NESTED, SOLO, PAGES] {
            let out: Vec<BTreeSet<&str>> = (0..100).map(|seed| suite.left_out(seed).into_iter().collect()).collect();
            assert!(out.iter().all(|out| out.len() == suite.names.len() - suite.taken));
            for name in suite.names {
                assert!(out.iter().any(|out| out.contains(name)) && out.iter().any(|out| !out.contains(name)), "{name}");
            }
        }
    }

    /// A name that nothing bears would silently leave nothing out.
    #[test]
    fn each_exists() {
        let file = |path: &str| std::fs::read_to_string(crate::root().join(path)).unwrap();
        for (suite, path, form) in [(NESTED, "tests/nested/main.rs", "mod {};"), (SOLO, "tests/solo.rs", "fn {}("), (PAGES, "tests/docs.rs", " {}: \"")] {
            for name in suite.names {
                let bare = name.trim_start_matches("pages::").trim_end_matches("::");
                assert!(file(path).contains(&form.replace("{}", bare)), "{name}");
            }
        }
    }
}
