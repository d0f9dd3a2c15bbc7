//! The share of the simulator that every run of the tests makes.
use super::bug::{Bug, SHELL_BUGS};
use super::campaign::find;
use super::plan::{Case, Length};
use super::run;
use super::stats::Stats;
use super::trace::Trace;
#[cfg(feature = "planted-bugs")]
use sternpost_engine::checkpoint::PlantedBug as CheckpointBug;
#[cfg(feature = "planted-bugs")]
use sternpost_replication::raft::PlantedBug as CoreBug;

/// Seeds of the share.
const SEEDS: u64 = 40;

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
    assert!(totals.leaders > SEEDS && totals.crashes > SEEDS / 2 && totals.kills > SEEDS / 2, "{totals:?}");
    assert!(totals.starts_cut > 0, "{totals:?}");
    assert!(totals.checkpoints > 5 * SEEDS && totals.compactions > SEEDS, "{totals:?}");
    assert!(totals.leases_expired > SEEDS && totals.renewals > SEEDS, "{totals:?}");
    assert!(totals.disk_errors > SEEDS / 8 && totals.full_disks > 0, "{totals:?}");
    assert!(totals.jumps > 0 && totals.bits_rotten > 0, "{totals:?}");
    assert!(totals.absences > SEEDS && totals.timeouts_changed > SEEDS, "{totals:?}");
    assert!(totals.streams > 4 * SEEDS && totals.watch_events > 50 * SEEDS, "{totals:?}");
    assert!(totals.watch_progress > SEEDS && totals.watch_fragments > SEEDS / 4, "{totals:?}");
    assert!(totals.watch_compacted > SEEDS / 8, "{totals:?}");
    assert!(totals.member_changes > SEEDS / 4 && totals.states_fetched > SEEDS / 4, "{totals:?}");
}

/// Tries behind the seed that is kept, for when the simulator has changed.
const TRIES: u64 = 100;

fn find_each(found: impl IntoIterator<Item = (Bug, u64)>) {
    // What a planted bug makes panic is expected, and a hundred backtraces help nobody.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (bug, seed) in found {
        match find(bug, Length::FULL, seed, TRIES) {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what:.200}"),
            None => missed.push(bug),
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "seeds do not find {missed:?}");
}

/// A check that has never failed proves nothing.
#[test]
fn every_bug_that_is_planted_around_a_member_is_found() {
    find_each(SHELL_BUGS.map(|bug| (Bug::Shell(bug), 0)));
}

/// Each with a seed that finds it. The others are tried by `fuzz simulate planted`; which were not found, and by how many seeds, is in `HACKING.md`.
#[cfg(feature = "planted-bugs")]
const FOUND: [(Bug, u64); 20] = [
    (Bug::Core(CoreBug::SkipReadRound), 8),
    (Bug::Core(CoreBug::AcknowledgeEarly), 2),
    (Bug::Core(CoreBug::ApplyUncommitted), 0),
    (Bug::Core(CoreBug::ReproposeUnproved), 0),
    (Bug::Core(CoreBug::TakeStaleForwards), 0),
    (Bug::Core(CoreBug::TakeForwardsTwice), 0),
    (Bug::Core(CoreBug::CommitOfHardState), 1),
    (Bug::Core(CoreBug::ReadBeforeApplied), 0),
    (Bug::Core(CoreBug::RemovedLeads), 16),
    (Bug::Checkpoint(CheckpointBug::SkipSegmentSync), 0),
    (Bug::Checkpoint(CheckpointBug::SkipDirectorySync), 1),
    (Bug::Checkpoint(CheckpointBug::SuperblockFirst), 0),
    (Bug::Checkpoint(CheckpointBug::UnlinkEarly), 3),
    (Bug::Checkpoint(CheckpointBug::ReplayBehindCut), 2),
    (Bug::Checkpoint(CheckpointBug::ForgetReplaced), 0),
    (Bug::Checkpoint(CheckpointBug::CleanByOldBits), 0),
    (Bug::Checkpoint(CheckpointBug::KeepLeaseKeys), 0),
    (Bug::Checkpoint(CheckpointBug::DropUnswept), 0),
    (Bug::Checkpoint(CheckpointBug::NoteOneMore), 0),
    (Bug::Checkpoint(CheckpointBug::BrokenInvariant), 0),
];

#[cfg(feature = "planted-bugs")]
#[test]
fn every_bug_that_is_planted_in_a_member_is_found() {
    find_each(FOUND);
}
