//! The share of the simulator that every run of the tests makes.
use super::bug::{Bug, ShellBug};
use super::campaign::find;
use super::plan::{Case, Length};
use super::run;
use super::stats::Stats;
use super::trace::Trace;

/// Seeds of the share.
const SEEDS: u64 = 40;
/// Seeds that have found bugs of ours, each told by the test of its correction: 263 a lone voter that answered for its learner.
const FOUND_OURS: [u64; 1] = [263];

#[test]
fn every_seed_keeps_what_a_cluster_promises_and_runs_the_same_twice() {
    let mut totals = Stats::default();
    for seed in 0..SEEDS {
        let case = Case::new(seed, Length::SHORT);
        let (digest, stats) =
            run(&case, Trace::default()).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        if seed.is_multiple_of(4) {
            let again = run(&case, Trace::default());
            assert_eq!(again, Ok((digest, stats)), "seed {seed} ran differently the second time");
        }
        totals += stats;
    }
    // A campaign in which nothing happens shows nothing.
    println!("{totals:?}");
    assert!(totals.writes > 50 * SEEDS && totals.reads > 30 * SEEDS, "{totals:?}");
    assert!(totals.watched > 50 * SEEDS && totals.states > 10 * SEEDS, "{totals:?}");
    assert!(totals.leaders > SEEDS && totals.crashes > SEEDS / 4 && totals.kills > SEEDS / 8, "{totals:?}");
    assert!(totals.checkpoints > 5 * SEEDS && totals.compactions > SEEDS, "{totals:?}");
    assert!(totals.leases_expired > SEEDS && totals.renewals > SEEDS, "{totals:?}");
    assert!(totals.disk_errors > SEEDS / 8 && totals.full_disks > SEEDS / 16, "{totals:?}");
    assert!(totals.member_changes > SEEDS / 8 && totals.states_fetched > SEEDS / 8, "{totals:?}");
}

#[test]
fn seeds_that_have_found_bugs_find_them_no_more() {
    for seed in FOUND_OURS {
        run(&Case::new(seed, Length::FULL), Trace::default())
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}
