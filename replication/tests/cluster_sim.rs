//! The cluster simulator: whole groups of cores with disks, network and clocks in one thread, from one seed.
//!
//! Members are added, promoted and removed; disks drop the beginning of their logs, so that who was away or is new fetches the state of somebody
//! and begins behind it. What a server does around the core is simulated by the same rules: the configuration is in the
//! checkpoint (R9), an install keeps what the member promised ([`member::Member::install`]), a removed member stops when another one knows of it.
//!
//! Checked as it happens: election safety, log matching, the committed prefix, that what is committed is durable on the disks of a quorum of the configuration
//! before it and on that of whoever applies it, that no write is applied twice or after its client was told it was refused, that changes are made where they
//! were proposed or not at all, equal states and configurations at equal indexes, linearizability of reads and writes, and, after everything
//! was healed, that every client is answered and all who belong to the group hold the same. A failing seed replays with
//! `STERNPOST_SEED=n cargo test -p sternpost-replication --test cluster_sim one_seed -- --nocapture`; the long campaign is
//! `STERNPOST_SEEDS=n ... every_seed`.
#![allow(unreachable_pub, reason = "the modules of one test program")]

#[path = "cluster_sim/checker.rs"]
mod checker;
#[path = "cluster_sim/member.rs"]
mod member;
#[path = "cluster_sim/world.rs"]
mod world;

use member::MemberBug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use sternpost_replication::raft::PlantedBug;
use world::{Bug, Stats, World};

/// Seeds of the share that every run of the tests makes.
const SEEDS_SHARE: u64 = 200;

fn seeds(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// One run; a broken invariant that stops it is an error too.
fn run(seed: u64, bug: Option<Bug>) -> Result<(u64, Stats), String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, bug).run())).unwrap_or_else(|panic| {
        Err(match panic.downcast_ref::<String>() {
            Some(text) => format!("stopped: {text}"),
            None => "stopped".into(),
        })
    })
}

#[test]
fn one_seed() {
    let seed = seeds("STERNPOST_SEED", 1);
    match run(seed, None) {
        Ok(result) => println!("seed {seed}: {result:?}"),
        Err(what) => panic!("seed {seed}: {what}"),
    }
}

#[test]
fn every_seed() {
    let count = seeds("STERNPOST_SEEDS", SEEDS_SHARE);
    let mut totals = Stats::default();
    let mut failed = Vec::new();
    for seed in 0..count {
        let (digest, stats) = match run(seed, None) {
            Ok(result) => result,
            Err(what) => {
                println!("seed {seed}: {what}");
                failed.push(seed);
                continue;
            }
        };
        if seed.is_multiple_of(8) {
            // The simulator and the core are a function of the seed.
            let again = run(seed, None).map(|(digest, _)| digest);
            assert_eq!(again, Ok(digest), "seed {seed} ran differently the second time");
        }
        totals.events += stats.events;
        totals.leaders += stats.leaders;
        totals.writes += stats.writes;
        totals.reads += stats.reads;
        totals.crashes += stats.crashes;
        totals.loads += stats.loads;
        totals.changes += stats.changes;
        totals.changes_refused += stats.changes_refused;
        totals.leaders_removed += stats.leaders_removed;
        totals.cuts += stats.cuts;
        totals.installs += stats.installs;
        totals.installs_useless += stats.installs_useless;
        totals.fetches_cut_short += stats.fetches_cut_short;
        totals.absences += stats.absences;
        if (seed + 1).is_multiple_of(1000) {
            eprintln!("{} of {count} seeds: {totals:?}", seed + 1);
        }
    }
    println!("{count} seeds: {totals:?}");
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
    // A campaign in which nothing happens shows nothing.
    assert!(totals.leaders > count, "leaders change");
    assert!(totals.writes > 50 * count, "writes are acknowledged");
    assert!(totals.reads > 20 * count, "reads are answered");
    assert!(totals.crashes > count / 4, "members crash");
    assert!(totals.loads > count / 8, "followers catch up from files");
    assert!(totals.changes > count, "members come and go");
    assert!(totals.changes_refused > count / 2, "changes are refused");
    assert!(totals.leaders_removed > count / 8, "leaders are removed");
    assert!(totals.cuts > count / 2, "logs are cut");
    assert!(totals.installs > count / 2, "states are installed");
    assert!(totals.installs_useless > count / 16, "states come that are of no use");
    assert!(totals.fetches_cut_short > count / 16, "states do not come");
    assert!(totals.absences > count, "members seem gone");
}

/// The first seed from `from` on that finds `bug`, and how it shows.
fn find(bug: Bug, from: u64, tries: u64) -> Option<(u64, String)> {
    // What the planted bug makes panic is expected, and a thousand backtraces help nobody.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (from..from + tries).find_map(|seed| Some((seed, run(seed, Some(bug)).err()?)));
    std::panic::set_hook(hook);
    found
}

/// Each with a seed that finds it, so that every run of the tests is short; if the simulator has changed, seeds behind that are tried.
const FOUND: [(Bug, u64); 19] = [
    (Bug::Core(PlantedBug::SkipReadRound), 1),
    (Bug::Core(PlantedBug::ForgetVote), 498),
    (Bug::Core(PlantedBug::AcknowledgeEarly), 0),
    (Bug::Core(PlantedBug::ApplyUncommitted), 0),
    (Bug::Core(PlantedBug::ReproposeUnproved), 1),
    (Bug::Core(PlantedBug::TakeStaleForwards), 0),
    (Bug::Core(PlantedBug::TakeForwardsTwice), 0),
    (Bug::Core(PlantedBug::CommitOfHardState), 4),
    (Bug::Core(PlantedBug::ReadBeforeApplied), 1),
    (Bug::Core(PlantedBug::RemovedLeads), 70),
    (Bug::Core(PlantedBug::TwoChanges), 3),
    (Bug::Core(PlantedBug::ChangeUncommitted), 3),
    (Bug::Core(PlantedBug::SkipIsMatched), 2276),
    (Bug::Member(MemberBug::GenesisConfiguration), 3),
    (Bug::Member(MemberBug::InstallOlder), 13),
    (Bug::Member(MemberBug::InstallOverLog), 49),
    (Bug::Member(MemberBug::InstallForgetsVote), 198),
    (Bug::Member(MemberBug::InstallTakesTerm), 160),
    (Bug::Member(MemberBug::RemovedStopsAtOnce), 21),
];

/// Not found by 400, 6000 and 1000 seeds, in their order, and tried only when they are named. `ReuseReadContext` and `ChangesInOneWrite` are shown by hand in
/// `raft_core.rs`: they need more chances at once than a run has. `InstallKeepsLowerVote` seems to do no harm: a vote of a lower term only refuses
/// others in this one.
const NOT_FOUND: [Bug; 3] = [
    Bug::Core(PlantedBug::ReuseReadContext),
    Bug::Core(PlantedBug::ChangesInOneWrite),
    Bug::Member(MemberBug::InstallKeepsLowerVote),
];

/// One test, because the panic hook is the process's. `STERNPOST_PLANTED=name` takes one bug alone, also of those that are not found;
/// `STERNPOST_PLANTED_SEEDS=n` tries seeds from 0 on.
#[test]
fn every_planted_bug_is_found() {
    let only = std::env::var("STERNPOST_PLANTED").unwrap_or_default();
    let tries = seeds("STERNPOST_PLANTED_SEEDS", 0);
    let others = NOT_FOUND.iter().filter(|_| !only.is_empty()).map(|bug| (*bug, 0));
    let mut missed = Vec::new();
    for (bug, seed) in FOUND.into_iter().chain(others) {
        if !format!("{bug:?}").contains(&only) {
            continue;
        }
        let found = if tries > 0 { find(bug, 0, tries) } else { find(bug, seed, 400) };
        match found {
            Some((seed, what)) => println!("{bug:?}: seed {seed}: {what}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "seeds do not find {missed:?}");
}
