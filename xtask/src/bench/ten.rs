//! Ten nested clusters asked for at once.

use std::thread;
use std::time::Instant;

use anyhow::Result;
use nestling_lab::progress::note;

use super::memory::Memory;
use super::nested::{Nested, Size};
use super::report::{Report, Section, Side, Unit};
use super::rest::{Plan, mebibytes};
use super::setup::Setup;

const CLUSTERS: u32 = 10;

/// A class of thirty is three times as many. It is computed, and said so.
const TIMES: f64 = 3.0;

/// Measures.
///
/// # Errors
/// What does not come in time.
pub fn measure(setup: &Setup, report: &mut Report, plan: Plan) -> Result<()> {
    note("ten nested clusters at once");
    let mut add = |what: &str, unit, value| report.add(Section::Ten, Side::Nested, what, unit, value);
    let start = Instant::now();
    let clusters = (1..=CLUSTERS).map(|number| Nested::apply(setup, &format!("bench-ten-{number}"), 1, Size::Small)).collect::<Result<Vec<_>>>()?;
    let mut ready = thread::scope(|scope| {
        let waits: Vec<_> = clusters.iter().map(|cluster| scope.spawn(move || cluster.ready())).collect();
        let joined = waits.into_iter().map(|wait| Ok(wait.join().map_err(|_| anyhow::anyhow!("a wait for readiness has panicked"))??.seconds));
        joined.collect::<Result<Vec<f64>>>()
    })?;
    let all = start.elapsed().as_secs_f64();
    ready.sort_by(f64::total_cmp);
    add("the first is Ready", Unit::Seconds, ready.first().copied().unwrap_or(all));
    add("all are Ready", Unit::Seconds, all);
    thread::sleep(plan.settle);
    let mut memory = 0.0;
    for cluster in &clusters {
        memory += mebibytes(Memory::of(&cluster.groups()?.processes()?)?.all.total);
    }
    add("memory (PSS) of all ten", Unit::Mebibytes, memory);
    add("thirty, all Ready: three times ten, computed", Unit::Seconds, all * TIMES);
    add("thirty, memory: three times ten, computed", Unit::Mebibytes, memory * TIMES);
    let start = Instant::now();
    thread::scope(|scope| {
        let deletions: Vec<_> = clusters.into_iter().map(|cluster| scope.spawn(move || cluster.delete())).collect();
        deletions.into_iter().try_for_each(|deletion| deletion.join().map_err(|_| anyhow::anyhow!("a deletion has panicked"))?.map(drop))
    })?;
    add("all ten deleted at once", Unit::Seconds, start.elapsed().as_secs_f64());
    Ok(())
}
