//! The embedded database under power cuts: log, checkpoints, recovery and store together.
//!
//! A seed gives a list of operations. One run executes them over the simulated disk and keeps an image of the disk after
//! every step that could change what a power cut leaves. From each image come the disks that may really be there; each is
//! opened, and must hold a prefix of the operations that contains every acknowledged one (I1), with exactly the state
//! that this prefix gives (I4: current and old revisions, events, leases, system records), every byte of its checkpoint
//! must verify (D3 to D5, I6), and it must take new writes that a further open finds. Some of the opens are themselves
//! cut at every step (double crash), and some processes are killed with the machine running on.
//!
//! Half of the runs answer when a write is durable; the other half answer at once and promise what a sync has covered.
//!
//! `STERNPOST_SEEDS=300` runs so many seeds: the first three with every policy of `CrashPolicy::all_for` at every step, some
//! 30,000 disks each; the next with two disks of every step; most as `cargo test` does, which visits one step in a dozen.
//! `STERNPOST_SEED_FIRST=n` starts elsewhere.
mod db_support;

use db_support::*;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::PlantedBug;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{Put, RetainedRecord};
use sternpost_engine::{Bytes, DurabilityLevel, Options};

const OPERATIONS_PER_SEED: usize = 60;
/// The share of `cargo test`; the log alone is crashed far more often in `crash.rs`.
const SEEDS_DEFAULT: u64 = 20;

/// How much of a run is looked at.
#[derive(Clone, Copy)]
struct Depth {
    /// One step in so many is visited.
    steps_per_visit: u64,
    /// So many disks of each step that is visited, all if there are fewer.
    disks_per_step: usize,
    /// One disk in so many is opened with a second power cut at each step of the recovery.
    disks_per_double_crash: u64,
    /// Of those steps one in so many.
    stride: usize,
}

const SHALLOW: Depth =
    Depth { steps_per_visit: 12, disks_per_step: 2, disks_per_double_crash: 100, stride: 10 };
const DEEP: Depth =
    Depth { steps_per_visit: 1, disks_per_step: usize::MAX, disks_per_double_crash: 2_000, stride: 1 };
const MIDDLE: Depth = Depth { steps_per_visit: 1, disks_per_step: 2, disks_per_double_crash: 100, stride: 5 };
/// So many seeds of a campaign are looked at with either. All of them would take hours, and what they share is crashed at
/// every step in `crash.rs` already.
const SEEDS_DEEP: u64 = 3;
const SEEDS_MIDDLE: u64 = 17;
const FOR_PLANTED: Depth =
    Depth { steps_per_visit: 4, disks_per_step: 3, disks_per_double_crash: 100, stride: 10 };

/// What the runs reached, so that it is known that they reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Reached {
    disks: usize,
    double_crashes: usize,
    kills: usize,
    checkpoints: u64,
    records_written: u64,
    records_skipped: u64,
    records_killed: u64,
    records_cleaned: u64,
    segments_removed: u64,
    changes_waiting: u64,
    changes_pushed: u64,
    log_rotations: u64,
    log_segments_recycled: u64,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.disks += other.disks;
        self.double_crashes += other.double_crashes;
        self.kills += other.kills;
        self.checkpoints += other.checkpoints;
        self.records_written += other.records_written;
        self.records_skipped += other.records_skipped;
        self.records_killed += other.records_killed;
        self.records_cleaned += other.records_cleaned;
        self.segments_removed += other.segments_removed;
        self.changes_waiting += other.changes_waiting;
        self.changes_pushed += other.changes_pushed;
        self.log_rotations += other.log_rotations;
        self.log_segments_recycled += other.log_segments_recycled;
    }
}

/// What a database is run with.
fn options_of(seed: u64, planted: Option<PlantedBug>) -> Options {
    let mut options = options(seed);
    options.durability = match seed % 4 {
        0 | 1 => DurabilityLevel::Group,
        2 => DurabilityLevel::Manual,
        _ => DurabilityLevel::Interval(Duration::from_millis(2)),
    };
    options.checkpoint.planted = planted;
    options
}

struct Run {
    seed: u64,
    options: Options,
    /// Answers of the store after each prefix of the operations.
    dumps: Vec<Dump>,
    images: Vec<SimDisk>,
    /// For each image: how many operations had been acknowledged as durable when it was taken.
    acknowledged: Vec<usize>,
    reached: Reached,
}

/// Runs the operations of a seed, a few in flight at once, and records an image after every step.
fn run(seed: u64, planted: Option<PlantedBug>) -> Run {
    let mut rng = Rng::new(seed);
    let operations = operations(&mut rng, OPERATIONS_PER_SEED);
    let options = options_of(seed, planted);
    let answers_are_durable = options.durability == DurabilityLevel::Group;
    let disk = SimDisk::new(seed);
    disk.record_images();
    let mut db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
    let (mut images, mut acknowledged) = (Vec::new(), Vec::new());
    let (mut waiting, mut syncs) = (VecDeque::new(), VecDeque::new());
    // Promised to be durable; answered; submitted.
    let (mut promised, mut answered, mut next) = (0, 0, 0);
    let mut rounds = 0;
    while answered < operations.len() || !syncs.is_empty() {
        let in_flight_max = 1 + rng.below(6) as usize;
        while next < operations.len() && waiting.len() < in_flight_max {
            waiting.push_back(db.write(&operations[next]));
            next += 1;
        }
        if !answers_are_durable && (rng.chance(1, 8) || next == operations.len()) && syncs.len() < 2 {
            syncs.push_back((db.sync(), next));
        }
        assert!(db.step(1_000), "seed {seed}: the database goes on");
        // Images of this round were taken before its answers: they owe only what was answered earlier.
        for image in disk.take_images() {
            images.push(image);
            acknowledged.push(promised);
        }
        disk.record_images();
        while let Some(answer) = waiting.front_mut().and_then(poll_once) {
            assert!(answer.as_ref().err().is_none_or(is_refusal), "seed {seed}: no fault: {answer:?}");
            waiting.pop_front();
            answered += 1;
        }
        if answers_are_durable {
            promised = answered;
        }
        while let Some(answer) = syncs.front_mut().and_then(|(sync, _)| poll_once(sync)) {
            answer.unwrap_or_else(|error| panic!("seed {seed}: no fault: {error}"));
            promised = syncs.pop_front().map_or(promised, |(_, submitted)| submitted);
            if answered == operations.len() && promised == answered {
                syncs.clear();
            }
        }
        rounds += 1;
        assert!(rounds < 100_000, "seed {seed}: a hang with {answered} answers: {:?}", db.checkpoint_stats());
    }
    let stats = db.checkpoint_stats();
    assert_eq!(stats.failing, None, "seed {seed}: no fault was planned");
    assert_same(&dump(db.store()), expected(&operations).last().expect("a dump"), "before any power cut");
    // The last image is of the moment after the last answer.
    disk.record_images();
    images.extend(disk.take_images());
    acknowledged.resize(images.len(), promised);
    let (totals, log) = (stats.totals, db.wal_stats());
    let reached = Reached {
        checkpoints: stats.checkpoints_count,
        records_written: totals.records_written,
        records_skipped: totals.records_skipped,
        records_killed: totals.records_killed,
        records_cleaned: totals.records_cleaned,
        segments_removed: totals.segments_removed,
        changes_waiting: totals.changes_waiting,
        changes_pushed: totals.changes_pushed,
        log_rotations: log.rotations_count,
        log_segments_recycled: log.segments_recycled_count,
        ..Reached::default()
    };
    // The others end as a process that is killed.
    if !seed.is_multiple_of(3) {
        disk.record_images();
        db.close().unwrap_or_else(|error| panic!("seed {seed}: no fault: {error}"));
        images.extend(disk.take_images());
        acknowledged.resize(images.len(), promised);
        // What was answered before it was durable is durable behind a close.
        disk.record_images();
        images.extend(disk.take_images());
        acknowledged.resize(images.len(), operations.len());
    }
    Run { seed, options, dumps: expected(&operations), images, acknowledged, reached }
}

impl Run {
    /// Opens a disk after a cut and checks what it holds.
    fn check(&self, disk: &SimDisk, acknowledged: usize, story: &str) {
        let db = SimulatedDb::open(disk, &self.options, self.seed ^ 0x5a5a)
            .unwrap_or_else(|error| panic!("{story}: does not open: {error}"));
        let held = db.store().applied().0 as usize;
        assert!(held >= acknowledged, "{story}: I1: {acknowledged} were acknowledged, {held} are there");
        assert!(held < self.dumps.len(), "{story}: I1: {held} operations, more than were submitted");
        db.verify().unwrap_or_else(|error| panic!("{story}: the checkpoint does not verify: {error}"));
        let story = format!("{story}: I4: another state than the first {held} operations give");
        assert_same(&dump(db.store()), &self.dumps[held], &story);
    }

    /// After recovery the database takes writes, makes checkpoints, and a further open finds all.
    fn check_goes_on(&self, disk: &SimDisk, story: &str) {
        let mut options = self.options.clone();
        options.durability = DurabilityLevel::Group;
        let mut db = SimulatedDb::open(disk, &options, self.seed ^ 0xa5a5).expect("opened before");
        let before = db.store().revision();
        for number in 1..=20 {
            let (key, value) = (Bytes::from_static(b"after"), vec![number as u8; 3_000].into());
            let answer = write(&mut db, &LogOperation::Put(Put { key, value, ..Put::default() }));
            assert_eq!(answer.expect("the write is answered").revision(), before + number, "{story}: M1");
        }
        let compaction = write(&mut db, &LogOperation::Compact(before + 10));
        assert!(compaction.is_ok(), "{story}: {compaction:?}");
        let (found, stats) = (dump(db.store()), db.checkpoint_stats());
        assert_eq!(stats.failing, None, "{story}");
        assert!(stats.checkpoints_count + 3 > stats.runs_count as u64, "{story}: {stats:?}");
        db.verify().unwrap_or_else(|error| panic!("{story}: does not verify afterwards: {error}"));
        drop(db);
        let crashed = disk.crash(&CrashPolicy::DropAll);
        let db = SimulatedDb::open(&crashed, &options, self.seed).expect("opens after the write");
        assert_same(&dump(db.store()), &found, &format!("{story}: acknowledged after recovery"));
    }

    /// Cuts the power again at every `stride`-th step of the recovery; returns how many disks that were.
    fn check_double_crash(&self, disk: &SimDisk, acknowledged: usize, story: &str, stride: usize) -> usize {
        disk.record_images();
        self.check(disk, acknowledged, story);
        let images = disk.take_images();
        for (step, second) in images.iter().enumerate().step_by(stride) {
            let random = CrashPolicy::Random(self.seed + step as u64);
            for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll, random] {
                let story = format!("{story}; recovery cut at step {step}, {policy:?}");
                self.check(&second.crash(&policy), acknowledged, &story);
            }
        }
        images.len().div_ceil(stride) * 3
    }
}

fn check_seed(seed: u64, depth: Depth, planted: Option<PlantedBug>) -> Reached {
    let run = run(seed, planted);
    let mut reached = run.reached;
    let mut rng = Rng::new(seed ^ 0xc0ffee);
    let last = run.images.len() - 1;
    for (step, (image, &acknowledged)) in run.images.iter().zip(&run.acknowledged).enumerate() {
        if step != last && !rng.chance(1, depth.steps_per_visit) {
            continue;
        }
        let mut policies = image.crash_policies();
        policies.push(CrashPolicy::Random(rng.next_u64()));
        if policies.len() > depth.disks_per_step {
            // One extreme by turns, and some of the many between.
            let extreme = if step % 2 == 0 { CrashPolicy::KeepAll } else { CrashPolicy::DropAll };
            let picks = 1..depth.disks_per_step;
            let between = picks.map(|_| policies[rng.below(policies.len() as u64) as usize].clone());
            policies = std::iter::once(extreme).chain(between).collect();
        }
        for policy in policies {
            let story = format!("seed {seed}, step {step}, {policy:?}");
            run.check(&image.crash(&policy), acknowledged, &story);
            reached.disks += 1;
            if rng.chance(1, 40) {
                run.check_goes_on(&image.crash(&policy), &story);
            }
            if rng.chance(1, depth.disks_per_double_crash) {
                let crashed = image.crash(&policy);
                let disks = run.check_double_crash(&crashed, acknowledged, &story, depth.stride);
                reached.disks += disks;
                reached.double_crashes += disks;
            }
        }
        if rng.chance(1, 8) {
            let killed = image.crash_process(rng.next_u64());
            let story = format!("seed {seed}, step {step}, the process killed");
            run.check(&killed, acknowledged, &story);
            // Whatever the recovery relied on is durable now.
            run.check(&killed.crash(&CrashPolicy::DropAll), acknowledged, &format!("{story}, then a cut"));
            reached.kills += 1;
            reached.disks += 2;
        }
    }
    reached
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_power_cut_leaves_a_prefix_with_all_that_was_acknowledged() {
    let asked = number("STERNPOST_SEEDS");
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(0);
    let seeds = asked.unwrap_or(SEEDS_DEFAULT);
    let mut reached = Reached::default();
    for number in 0..seeds {
        let depth = match number {
            _ if asked.is_none() => SHALLOW,
            0..SEEDS_DEEP => DEEP,
            _ if number < SEEDS_DEEP + SEEDS_MIDDLE => MIDDLE,
            _ => SHALLOW,
        };
        let seed = first + number;
        reached += check_seed(seed, depth, None);
        if asked.is_some() {
            eprintln!("seed {seed}: {} disks so far", reached.disks);
        }
    }
    eprintln!("{seeds} seeds: {reached:?}");
    // What the traces are for, they reach.
    assert!(reached.checkpoints >= 3 * seeds, "{reached:?}");
    assert!(reached.records_killed >= 5 * seeds, "{reached:?}");
    assert!(reached.records_skipped >= seeds, "{reached:?}");
    assert!(reached.records_cleaned >= 2 * seeds, "{reached:?}");
    assert!(reached.segments_removed >= 3 * seeds, "{reached:?}");
    assert!(reached.changes_waiting >= seeds, "{reached:?}");
    assert!(reached.changes_pushed >= seeds / 2, "{reached:?}");
    assert!(reached.log_rotations >= seeds, "{reached:?}");
    assert!(reached.log_segments_recycled >= seeds / 2, "{reached:?}");
}

/// The seed and the words with which a bug is found, among so many seeds.
fn find(bug: PlantedBug, seeds: u64) -> Option<(u64, String)> {
    // One that answers before a write is durable comes first: bugs that only such runs have are found at once.
    [2, 0, 3, 1].into_iter().chain(4..seeds).find_map(|seed| {
        let life = catch_unwind(AssertUnwindSafe(|| check_seed(seed, FOR_PLANTED, Some(bug))));
        life.err().map(|panic| (seed, words_of(&*panic)))
    })
}

fn words_of(panic: &dyn std::any::Any) -> String {
    let words = panic.downcast_ref::<String>().cloned();
    words.or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string())).unwrap_or_default()
}

/// A check that has never failed proves nothing.
#[test]
fn each_planted_bug_is_found() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let bugs = [
        PlantedBug::SkipSegmentSync,
        PlantedBug::SkipDirectorySync,
        PlantedBug::SuperblockFirst,
        PlantedBug::UnlinkEarly,
        PlantedBug::YoungerCompaction,
        PlantedBug::ReplayBehindCut,
        PlantedBug::HandOverEarly,
        PlantedBug::ForgetReplaced,
        PlantedBug::CleanByOldBits,
        PlantedBug::KeepLeaseKeys,
        PlantedBug::ForgetPurges,
        PlantedBug::DropUnswept,
        PlantedBug::NoteOneMore,
        PlantedBug::DropPushed,
        PlantedBug::OlderPushed,
        PlantedBug::CountTwice,
    ];
    let found = bugs.map(|bug| (bug, find(bug, 40)));
    std::panic::set_hook(hook);
    for (bug, found) in &found {
        match found {
            Some((seed, words)) => eprintln!("{bug:?}: seed {seed}: {words:.300}"),
            None => eprintln!("{bug:?}: NOT FOUND"),
        }
    }
    let missed: Vec<_> = found.iter().filter(|(_, found)| found.is_none()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// What a reader of the retained records got while writes, checkpoints and cleaning went on beneath it; then what the
/// database says in the end, and what it must say.
fn read_while_checkpoints_go_on(seed: u64, planted: Option<PlantedBug>) -> Result<(), String> {
    let mut options = Options::new().memtable_bytes(3 << 10).cache_bytes(8 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 16 << 10;
    options.checkpoint.planted = planted;
    let disk = SimDisk::new(seed);
    let mut db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
    let mut rng = Rng::new(seed);
    let all = operations(&mut rng, 240);
    let (first, later) = all.split_at(80);
    for operation in first {
        let _ = write(&mut db, operation);
    }
    let removed_before = db.checkpoint_stats().totals.segments_removed;
    let store = db.store().clone();
    let head = store.revision();
    let mut records = Vec::new();
    let collect = |records: &mut Vec<String>, record: &RetainedRecord<'_>| {
        let (value, visible) = (record.value.len(), record.visible);
        records.push(format!("{} {:?} {value} {visible}", record.revision, record.key));
    };
    store.for_each_retained(head, &mut |record| collect(&mut records, record)).expect("it is whole");
    let (mut read, mut left) = (Vec::new(), later.iter());
    let per_record = later.len().div_ceil(records.len());
    let outcome = store.for_each_retained(head, &mut |record| {
        collect(&mut read, record);
        for operation in left.by_ref().take(per_record) {
            let _ = write(&mut db, operation);
        }
    });
    outcome.map_err(|error| format!("seed {seed}: the reader: {error}"))?;
    for operation in left {
        let _ = write(&mut db, operation);
    }
    let removed = db.checkpoint_stats().totals.segments_removed - removed_before;
    assert!(planted.is_some() || removed > 10, "seed {seed}: {removed} segments were removed meanwhile");
    if read != records {
        return Err(format!("seed {seed}: the reader got {read:?}, expected {records:?}"));
    }
    db.verify().map_err(|error| format!("seed {seed}: {error}"))?;
    for ((what, found), (_, expected)) in
        ask(db.store()).into_iter().zip(expected(&all).pop().expect("a dump"))
    {
        match found {
            Ok(found) if found == expected => {}
            found => {
                return Err(format!("seed {seed}: {what}: {found:?}, expected {expected}"));
            }
        }
    }
    Ok(())
}

#[test]
fn a_reader_of_an_old_state_goes_on_while_its_segments_lose_their_names() {
    for seed in 0..4 {
        read_while_checkpoints_go_on(seed, None).unwrap_or_else(|how| panic!("{how}"));
    }
    // A segment that got the number of another is taken for it by what its readers have in the cache.
    let found = (0..4).find_map(|seed| {
        let reuse = Some(PlantedBug::ReuseSegmentIds);
        let read = catch_unwind(AssertUnwindSafe(|| read_while_checkpoints_go_on(seed, reuse)));
        read.unwrap_or_else(|panic| Err(words_of(&*panic))).err()
    });
    let found = found.expect("numbers that are used again are not found out");
    eprintln!("ReuseSegmentIds: {found:.300}");
}
