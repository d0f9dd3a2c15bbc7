//! The embedded database on a device that fails: at every operation of a run, log and checkpoints, an error of each kind.
//!
//! What must come of it: a write that was answered is there after the next power cut, and so is nothing that was not
//! written; an operation that was answered with an error is there as a whole or not at all; a failed read is an error and no
//! answer. A checkpoint that failed is made again, but for the superblock, whose failed write ends them until the next
//! start. A full disk refuses writes and loses none, and when there is space everything goes on.
mod db_support;

use db_support::*;
use std::collections::BTreeMap;
use std::time::Duration;
use sternpost_engine::base::clock::Clock;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::Put;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::{Bytes, DurabilityLevel, Error, Options};

const OPERATIONS: usize = 50;

/// Sizes with which a run of this length has several checkpoints and cleaning.
fn busy(cache_bytes: usize) -> Options {
    let mut options = Options::new().memtable_bytes(3 << 10).cache_bytes(cache_bytes);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.wal_bytes_max = 40 << 10;
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 32 << 10;
    options.checkpoint.pending_percent_max = 200;
    options
}

/// What became of a run.
#[derive(Debug, Default)]
struct Outcome {
    /// Operations that were answered, refusals by the data model among them.
    answered: usize,
    /// What the first one was answered with that the device kept from being applied.
    error: Option<String>,
    /// Checkpoints that were made.
    checkpoints: u64,
    /// Why they fail at the end.
    failing: Option<String>,
}

/// A run whose operations are known, and with them what each prefix gives.
struct Life {
    operations: Vec<LogOperation>,
    dumps: Vec<Dump>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let operations = operations(&mut Rng::new(seed), OPERATIONS);
        Self { dumps: expected(&operations), operations }
    }

    /// Runs over a disk with this fault from the moment when the database is open, one operation at a time, up to the first
    /// error; then cuts the power, and opens again without faults.
    fn run(&self, fault: Option<&Fault>, options: &Options, policy: &CrashPolicy, story: &str) -> Outcome {
        let disk = SimDisk::new(1);
        let mut db = SimulatedDb::open(&disk, options, 1).expect("a new disk opens");
        if let Some(fault) = fault {
            disk.add_fault(fault.clone());
        }
        let mut outcome = Outcome::default();
        for operation in &self.operations {
            match write(&mut db, operation) {
                Err(error) if !is_refusal(&error) => {
                    outcome.error = Some(error.to_string());
                    break;
                }
                _ => outcome.answered += 1,
            }
        }
        self.check_reads(&db, story);
        // Reads go on after whatever happened, and a further write is answered with the error or done.
        for _ in 0..3 {
            db.step(1_000_000);
        }
        let stats = db.checkpoint_stats();
        (outcome.checkpoints, outcome.failing) = (stats.checkpoints_count, stats.failing);
        drop(db);
        self.check_after(&disk.crash(policy), &outcome, options, story);
        outcome
    }

    /// Each answer is right for what is applied, or an error.
    fn check_reads(&self, db: &SimulatedDb, story: &str) {
        let applied = db.store().applied().0 as usize;
        for ((what, found), (_, expected)) in ask(db.store()).into_iter().zip(&self.dumps[applied]) {
            if let Ok(found) = found {
                assert!(found == *expected, "{story}: {what}: {found:.500}\nexpected {expected:.500}");
            }
        }
    }

    fn check_after(&self, disk: &SimDisk, outcome: &Outcome, options: &Options, story: &str) {
        let story = format!("{story}: {outcome:?}");
        let mut db = SimulatedDb::open(disk, options, 2)
            .unwrap_or_else(|error| panic!("{story}: does not open again: {error}"));
        let held = db.store().applied().0 as usize;
        assert!(held >= outcome.answered, "{story}: acknowledged, and {held} are there");
        assert!(held <= outcome.answered + 1, "{story}: {held} are there");
        db.verify().unwrap_or_else(|error| panic!("{story}: does not verify: {error}"));
        assert_same(&dump(db.store()), &self.dumps[held], &story);
        let before = db.store().revision();
        for number in 1..=8 {
            let (key, value) = (Bytes::from_static(b"after"), vec![1; 2_000].into());
            let answer = write(&mut db, &LogOperation::Put(Put { key, value, ..Put::default() }));
            assert_eq!(answer.expect("no fault any more").revision(), before + number, "{story}");
        }
        let stats = db.checkpoint_stats();
        assert_eq!(stats.failing, None, "{story}");
        assert!(stats.checkpoints_count > 0, "{story}: {stats:?}");
        db.verify().unwrap_or_else(|error| panic!("{story}: does not verify afterwards: {error}"));
    }
}

/// Lets every `stride`-th operation of this kind on this part of the directory fail, each in a run of its own; returns how
/// many runs that were.
fn at_every_operation(life: &Life, kind: OperationKind, part: &str, effects: &[Effect], stride: u64) -> u64 {
    let options = busy(64 << 10);
    let mut hits = 0;
    let policies = [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::Random(7)];
    let count = operations_of(life, kind, part, &options);
    for &effect in effects {
        for nth in (0..count).step_by(stride as usize) {
            let fault = Fault::nth(kind, nth, effect).on(part);
            let policy = &policies[(nth / stride) as usize % 3];
            let story = format!("{kind:?} {nth} of {part:?}: {effect:?}, then {policy:?}");
            let Outcome { error, checkpoints, failing, .. } =
                life.run(Some(&fault), &options, policy, &story);
            hits += 1;
            match part {
                "seg" => {
                    assert_eq!(error, None, "{story}: what fails in the background fails no write");
                    assert!(checkpoints > 1, "{story}: it is made again");
                    assert_eq!(failing, None, "{story}");
                }
                "super" => assert!(failing.is_some() || error.is_none(), "{story}: {error:?}"),
                _ => {}
            }
        }
    }
    hits
}

/// How many operations of this kind and path a run without faults has: the first one that a stall does not hit, and so
/// does not make the run longer.
fn operations_of(life: &Life, kind: OperationKind, part: &str, options: &Options) -> u64 {
    const LONG_US: u64 = 1 << 34;
    let is_hit = |nth| {
        let disk = SimDisk::new(1);
        let mut db = SimulatedDb::open(&disk, options, 1).expect("a new disk opens");
        disk.add_fault(Fault::nth(kind, nth, Effect::Stall(LONG_US)).on(part));
        // An operation of the log may be under way at the end.
        for operation in &life.operations {
            let mut future = db.write(operation);
            while poll_once(&mut future).is_none() {
                db.step(LONG_US / 64);
            }
        }
        disk.now_us() > LONG_US / 2
    };
    let (mut low, mut high) = (0, 4096);
    while low < high {
        let middle = u64::midpoint(low, high);
        if is_hit(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[test]
fn an_error_of_the_device_at_any_operation_of_a_checkpoint_loses_nothing() {
    let life = Life::new(11);
    let options = busy(64 << 10);
    let whole = life.run(None, &options, &CrashPolicy::DropAll, "no fault");
    assert!(whole.checkpoints > 4, "{whole:?}");
    let stride = if std::env::var_os("STERNPOST_SEEDS").is_some() { 1 } else { 5 };
    let mut hits = BTreeMap::new();
    let syncs = [Effect::Fail, Effect::SyncFailsLosing, Effect::SyncFailsKeeping];
    let writes = [Effect::Fail, Effect::NoSpace];
    for (kind, effects) in [
        (OperationKind::Open, &[Effect::Fail][..]),
        (OperationKind::Close, &[Effect::Fail]),
        (OperationKind::Write, &writes),
        (OperationKind::Sync, &syncs),
        (OperationKind::SyncDirectory, &[Effect::Fail]),
        (OperationKind::Unlink, &[Effect::Fail]),
        (OperationKind::CreateDirectory, &[Effect::Fail]),
    ] {
        for part in ["seg", "super"] {
            let count = at_every_operation(&life, kind, part, effects, stride);
            hits.insert(format!("{kind:?} {part}"), count);
        }
    }
    println!("{hits:?}");
    for (what, least) in [("Write seg", 20), ("Sync seg", 20), ("Write super", 20), ("Sync super", 12)] {
        assert!(hits[what] * stride >= least, "{what}: {hits:?}");
    }
}

#[test]
fn an_error_of_the_device_at_any_operation_of_the_log_loses_nothing() {
    let life = Life::new(12);
    let stride = if std::env::var_os("STERNPOST_SEEDS").is_some() { 1 } else { 7 };
    let mut hits = 0;
    for (kind, effects) in [
        (OperationKind::Open, &[Effect::Fail][..]),
        (OperationKind::Write, &[Effect::Fail]),
        (OperationKind::Sync, &[Effect::Fail, Effect::SyncFailsLosing]),
        (OperationKind::Rename, &[Effect::Fail]),
        (OperationKind::SyncDirectory, &[Effect::Fail]),
    ] {
        hits += at_every_operation(&life, kind, "wal", effects, stride);
    }
    println!("{hits} operations failed");
    assert!(hits * stride > 50, "{hits}");
}

/// At the lazy levels runs wait for the log. When it failed while three of them did, nothing was taken from the queue any more, and
/// whoever wrote waited for ever. Now each write is answered with the failure.
#[test]
fn a_log_that_fails_while_memory_is_full_answers_every_write() {
    let life = Life::new(16);
    let (mut failed, mut full) = (0, 0);
    for level in [DurabilityLevel::Manual, DurabilityLevel::Interval(Duration::from_secs(3_600))] {
        for (kind, nth) in (0..6).flat_map(|nth| [(OperationKind::Write, nth), (OperationKind::Sync, nth)]) {
            let story = format!("{level:?}, {kind:?} {nth} of the log fails");
            let options = busy(64 << 10).durability(level);
            let disk = SimDisk::new(1);
            let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
            disk.add_fault(Fault::nth(kind, nth, Effect::Fail).on("wal"));
            let mut has_failed = false;
            for operation in &life.operations {
                match write(&mut db, operation) {
                    Err(error) if !is_refusal(&error) => {
                        assert!(matches!(error, Error::LogPoisoned(_)), "{story}: {error}");
                        full += u64::from(!has_failed && db.checkpoint_stats().runs_count == 3);
                        has_failed = true;
                    }
                    _ => assert!(!has_failed, "{story}: a write was taken behind the failure"),
                }
            }
            failed += u64::from(has_failed);
            life.check_reads(&db, &story);
            drop(db);
            let db = SimulatedDb::open(&disk.crash(&CrashPolicy::DropAll), &options, 2)
                .unwrap_or_else(|error| panic!("{story}: does not open again: {error}"));
            db.verify().unwrap_or_else(|error| panic!("{story}: does not verify: {error}"));
            assert_same(&dump(db.store()), &life.dumps[db.store().applied().0 as usize], &story);
        }
    }
    println!("{failed} logs failed, {full} of them while memory was full");
    assert!(full >= 4, "{failed}, {full}");
}

/// A read fails three times before its failure is believed. A wrong bit that is read once is read again.
#[test]
fn a_read_that_fails_is_an_error_and_no_answer() {
    let life = Life::new(13);
    // Without a cache every answer comes from the disk.
    let options = busy(0);
    let (mut errors, mut failing) = (0, 0);
    for nth in (0..600).step_by(17) {
        for kind in [OperationKind::Read, OperationKind::Open] {
            let fault = Fault { count: 3, ..Fault::nth(kind, nth, Effect::Fail).on("seg") };
            let story = format!("{kind:?} {nth} to {} fail", nth + 2);
            let outcome = life.run(Some(&fault), &options, &CrashPolicy::DropAll, &story);
            errors += u64::from(outcome.error.is_some());
            failing += u64::from(outcome.failing.is_some());
        }
        let fault =
            Fault::nth(OperationKind::Read, nth, Effect::RottenRead { byte: nth as usize * 97, bit: 3 });
        let fault = fault.on("seg");
        let outcome = life.run(Some(&fault), &options, &CrashPolicy::DropAll, "a wrong bit, once");
        assert_eq!((outcome.error, outcome.failing), (None, None), "read {nth}");
    }
    println!("{errors} runs had an operation that failed, in {failing} a checkpoint fails at the end");
    assert!(errors > 0);
}

/// Power cuts in the middle of checkpoints, and an opening that fails at any of its operations: the next one finds all.
#[test]
fn an_error_of_the_device_at_any_operation_of_an_opening_loses_nothing() {
    let life = Life::new(15);
    let options = busy(64 << 10);
    let disk = SimDisk::new(1);
    disk.record_images();
    let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
    let mut images = Vec::new();
    for (answered, operation) in life.operations.iter().enumerate() {
        let _ = write(&mut db, operation);
        images.extend(disk.take_images().into_iter().map(|image| (answered, image)));
        disk.record_images();
    }
    let deep = std::env::var_os("STERNPOST_SEEDS").is_some();
    let (mut refused, mut opened) = (0, 0);
    for (answered, image) in images.iter().skip(150).step_by(if deep { 7 } else { 97 }) {
        let crashed = image.crash(&CrashPolicy::Random(*answered as u64));
        for (kind, count) in [
            (OperationKind::Open, 16),
            (OperationKind::Close, 8),
            (OperationKind::Read, 40),
            (OperationKind::Write, 12),
            (OperationKind::Sync, 12),
            (OperationKind::SyncDirectory, 4),
            (OperationKind::Rename, 4),
            (OperationKind::Unlink, 6),
            (OperationKind::List, 4),
            (OperationKind::Length, 8),
            (OperationKind::CreateDirectory, 2),
        ] {
            for nth in (0..count).step_by(if deep { 1 } else { 3 }) {
                let disk = crashed.duplicate(nth);
                // As long as a read is tried again.
                let fault = Fault { count: 3, ..Fault::nth(kind, nth, Effect::Fail) };
                disk.add_fault(fault);
                let story = format!("{answered} answered, {kind:?} {nth} of the opening fails");
                match SimulatedDb::open(&disk, &options, 2) {
                    Ok(db) => {
                        life.check_reads(&db, &story);
                        opened += 1;
                    }
                    Err(_) => refused += 1,
                }
                let policy = if nth % 2 == 0 { CrashPolicy::DropAll } else { CrashPolicy::KeepAll };
                let again = disk.crash(&policy);
                let db = SimulatedDb::open(&again, &options, 3)
                    .unwrap_or_else(|error| panic!("{story}: does not open again: {error}"));
                let held = db.store().applied().0 as usize;
                assert!(held >= *answered, "{story}: {held} are there");
                db.verify().unwrap_or_else(|error| panic!("{story}: does not verify: {error}"));
                assert_same(&dump(db.store()), &life.dumps[held], &story);
            }
        }
    }
    println!("{refused} openings failed, {opened} did not");
    assert!(refused > 50 && opened > 50, "{refused}, {opened}");
}

/// The disk is full from some operation on, by more or fewer bytes; later there is space again.
#[test]
fn a_full_disk_refuses_writes_loses_none_and_goes_on_when_there_is_space() {
    let options = busy(64 << 10);
    let operations = operations(&mut Rng::new(14), 70);
    let (mut refused, mut waited, mut failing_before) = (0, 0, 0);
    for start in (2..40).step_by(9) {
        for room in [0, 4 << 10, 8 << 10, 20 << 10, 40 << 10, 100 << 10, 200 << 10] {
            let story = format!("full at operation {start} but for {room} bytes");
            let disk = SimDisk::new(5);
            let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
            let mut applied = Vec::new();
            for (number, operation) in operations.iter().enumerate() {
                if number == start {
                    disk.set_capacity(Some(disk.allocated_bytes() + room));
                }
                if number == 55 {
                    failing_before += u64::from(db.checkpoint_stats().failing.is_some());
                    disk.set_capacity(None);
                    // Whoever makes checkpoints tries again, and so does the log, after a pause.
                    for _ in 0..500 {
                        db.step(1_000_000);
                    }
                }
                let mut future = db.write(operation);
                let mut rounds = 0;
                let answer = loop {
                    db.step(1_000_000);
                    if let Some(answer) = poll_once(&mut future) {
                        break answer;
                    }
                    rounds += 1;
                    if rounds == 100 {
                        // It is in the log's queue, which has no segment for it: it is answered when it has.
                        waited += 1;
                        disk.set_capacity(None);
                    }
                    assert!(rounds < ROUNDS_MAX, "{story}: operation {number} is not answered");
                };
                match answer {
                    Err(Error::NoSpace(_)) if number < 55 => refused += 1,
                    Err(error) if !is_refusal(&error) => panic!("{story}: operation {number}: {error}"),
                    _ => applied.push(operation.clone()),
                }
            }
            let stats = db.checkpoint_stats();
            assert_eq!(stats.failing, None, "{story}");
            assert!(stats.checkpoints_count > 2, "{story}: {stats:?}");
            assert!(stats.runs_count < 3, "{story}: {stats:?}");
            let dumps = expected(&applied);
            let last = dumps.last().expect("a dump");
            assert_same(&dump(db.store()), last, &story);
            db.verify().unwrap_or_else(|error| panic!("{story}: does not verify: {error}"));
            drop(db);
            let db = SimulatedDb::open(&disk.crash(&CrashPolicy::DropAll), &options, 2)
                .unwrap_or_else(|error| panic!("{story}: does not open again: {error}"));
            assert_same(&dump(db.store()), last, &story);
            db.verify().unwrap_or_else(|error| panic!("{story}: does not verify again: {error}"));
        }
    }
    println!(
        "{refused} writes were refused, {waited} waited; in {failing_before} runs checkpoints failed before there was space"
    );
    assert!(refused > 20, "{refused}");
    assert!(failing_before > 5, "{failing_before}");
}
