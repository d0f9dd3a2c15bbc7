//! A failing case made smaller: faults left out and the time cut short, as long as it still fails.
//!
//! **Contract.** What is left fails, though it may fail in another way than the whole: the seed's numbers mean something else without a fault. Whoever reads it
//! looks for the first thing that is wrong, and the fewer faults there are the sooner it is found.
//!
//! **Bounds.** Two passes over the faults, and [`CUTS`] cuts of the time.
use super::plan::{Case, Plan};
use super::run;
use super::trace::Trace;

/// Halvings of the time: to some milliseconds.
const CUTS: u32 = 12;

/// The smallest case found that fails, and how; the error is a case that does not fail.
pub(super) fn shrink(case: &Case) -> Result<(Case, String), String> {
    let fails = |case: &Case| run(case, Trace::default()).err();
    let Some(mut how) = fails(case) else { return Err("it does not fail".into()) };
    let mut smallest = case.clone();
    let mut take = |smallest: &mut Case, smaller: Case| {
        let found = fails(&smaller);
        let is_smaller = found.is_some();
        if let Some(found) = found {
            how = found;
            *smallest = smaller;
        }
        is_smaller
    };
    for _ in 0..2 {
        for name in Plan::new(&smallest).faults.names() {
            let mut smaller = smallest.clone();
            smaller.without.push(name.into());
            take(&mut smallest, smaller);
        }
    }
    let (mut passes_us, mut fails_us) = (0, smallest.until_us.unwrap_or(smallest.length.chaos_us));
    for _ in 0..CUTS {
        let until_us = passes_us + (fails_us - passes_us) / 2;
        let smaller = Case { until_us: Some(until_us), ..smallest.clone() };
        if take(&mut smallest, smaller) {
            fails_us = until_us;
        } else {
            passes_us = until_us;
        }
    }
    Ok((smallest, how))
}
