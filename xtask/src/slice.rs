//! Which of the long tests on real clusters a run takes.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Modules of `tests/nested/` whose tests take minutes each and look at one feature from beginning to end.
const LONG: &[&str] = &["balancers", "changes", "failures", "high_availability", "power", "resume", "storage"];

/// So many of them are in every run; all are in those of the soak tier.
const TAKEN: usize = 3;

/// The modules that a run with this seed leaves out.
pub fn left_out(seed: u64) -> Vec<&'static str> {
    let mut modules = LONG.to_vec();
    modules.shuffle(&mut StdRng::seed_from_u64(seed));
    modules.split_off(TAKEN)
}

/// Whether a run with this seed has any of a module's tests; `only` is what the names of tests must contain.
pub fn takes(module: &str, seed: u64, only: Option<&str>, all: bool) -> bool {
    only.map_or_else(|| all || !left_out(seed).contains(&module), |only| only.contains(module))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_module_is_prepared_for_when_it_runs() {
        let seed = (0..100).find(|seed| left_out(*seed).contains(&"power")).unwrap();
        assert!(!takes("power", seed, None, false) && takes("power", seed, None, true));
        assert!(takes("power", seed, Some("power::a_cluster"), false) && !takes("power", seed, Some("resume"), true));
    }

    #[test]
    fn each_module_is_taken_by_some_seed_and_exists() {
        let tests = std::fs::read_to_string(crate::root().join("tests/nested/main.rs")).unwrap();
        for module in LONG {
            assert!(tests.contains(&format!("mod {module};")), "{module}");
        }
        let out: Vec<BTreeSet<&str>> = (0..100).map(|seed| left_out(seed).into_iter().collect()).collect();
        assert!(out.iter().all(|out| out.len() == LONG.len() - TAKEN));
        for module in LONG {
            assert!(out.iter().any(|out| out.contains(module)) && out.iter().any(|out| !out.contains(module)), "{module}");
        }
    }
}
