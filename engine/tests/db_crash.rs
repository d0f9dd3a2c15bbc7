//! The embedded database under power cuts: log, recovery and store together.
//!
//! A seed gives a list of operations. One run executes them over the simulated disk and keeps an image of the disk after
//! every step that could change what a power cut leaves. From each image come the disks that may really be there; each is
//! opened, and must hold a prefix of the operations that contains every acknowledged one (I1), with exactly the state
//! that this prefix gives (I4), and must take new writes that a further open finds. Some of the opens are themselves cut
//! at every few steps (double crash).
//!
//! What a prefix gives is computed by the store alone, without a disk; the store is held against a naive model in
//! `model.rs`.
use std::collections::VecDeque;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{
    AnyLease, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Store, StoreWriter, Txn,
    TxnOperation,
};
use sternpost_engine::{Bytes, Error, Options};

const OPERATIONS_PER_SEED: usize = 60;
/// The share of `cargo test`; the log alone is crashed far more often in `crash.rs`.
const SEEDS_DEFAULT: u64 = 20;

/// Head, compact revision, and every retained record as comparable text.
type Dump = (i64, i64, Vec<String>);

fn options() -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10);
    options.log.segment_bytes = Some(64 << 10);
    options
}

fn key(rng: &mut Rng) -> Bytes {
    Bytes::from(format!("key{}", rng.below(8)))
}

fn one(key: Bytes) -> KeyRange {
    KeyRange { key, end: Bytes::new() }
}

fn put(rng: &mut Rng) -> Put {
    // Mostly small, sometimes more than a block, now and then more than a record of the log holds in one piece.
    let bytes = match rng.below(40) {
        0 => 600 << 10,
        1..4 => 9_000,
        _ => rng.below(300),
    };
    Put { key: key(rng), value: vec![rng.next_u64() as u8; bytes as usize].into(), ..Put::default() }
}

fn operation(rng: &mut Rng, revision_guess: i64) -> LogOperation {
    match rng.below(12) {
        0..7 => LogOperation::Put(put(rng)),
        7 => {
            let range = KeyRange { key: key(rng), end: key(rng) };
            LogOperation::DeleteRange(DeleteRange { range, prev_kv: false })
        }
        8 => LogOperation::DeleteRange(DeleteRange { range: one(key(rng)), prev_kv: true }),
        9 => LogOperation::Compact(revision_guess - rng.below(6) as i64),
        _ => LogOperation::Txn(Txn {
            compares: vec![Compare {
                range: one(key(rng)),
                target: CompareTarget::Version(rng.below(3) as i64),
                result: CompareResult::Equal,
            }],
            success: vec![TxnOperation::Put(put(rng))],
            failure: vec![TxnOperation::DeleteRange(DeleteRange { range: one(key(rng)), prev_kv: false })],
        }),
    }
}

fn dump(store: &Store) -> Dump {
    let mut records = Vec::new();
    let head = store.revision();
    let compacted = store
        .for_each_retained(head, &mut |record| {
            let (length, first) = (record.value.len(), record.value.first());
            records.push(format!(
                "{} {:?} tombstone {} create {} version {} visible {} value {length}:{first:?}",
                record.revision,
                record.key,
                record.tombstone,
                record.create_revision,
                record.version,
                record.visible,
            ));
        })
        .expect("the head can be read");
    (head, compacted, records)
}

/// Dumps of the store after each prefix of `operations`, from the empty one on.
fn expected(operations: &[LogOperation]) -> Vec<Dump> {
    let (store, mut writer) = StoreWriter::new(options().store);
    let mut dumps = vec![dump(&store)];
    for operation in operations {
        match operation {
            LogOperation::Put(put) => drop(writer.put(put, &AnyLease)),
            LogOperation::DeleteRange(delete) => drop(writer.delete_range(delete)),
            LogOperation::Txn(txn) => drop(writer.txn(txn, &AnyLease)),
            LogOperation::Compact(revision) => drop(writer.compact(*revision)),
            other => panic!("not generated: {other:?}"),
        }
        dumps.push(dump(&store));
    }
    dumps
}

struct Run {
    operations: Vec<LogOperation>,
    images: Vec<SimDisk>,
    /// For each image: how many operations had been answered when it was taken.
    acknowledged: Vec<usize>,
}

/// Runs the operations of a seed, a few in flight at once, and records an image after every step.
fn run(seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let mut operations = Vec::new();
    for number in 0..OPERATIONS_PER_SEED {
        operations.push(operation(&mut rng, 1 + number as i64 * 2 / 3));
    }
    let disk = SimDisk::new(seed);
    disk.record_images();
    let mut db = SimulatedDb::open(Box::new(disk.clone()), &options(), seed).expect("a new disk opens");
    let (mut images, mut acknowledged) = (Vec::new(), Vec::new());
    let mut waiting = VecDeque::new();
    let (mut answered, mut next) = (0, 0);
    while answered < operations.len() {
        let in_flight_max = 1 + rng.below(6) as usize;
        while next < operations.len() && waiting.len() < in_flight_max {
            waiting.push_back(db.write(&operations[next]));
            next += 1;
        }
        db.step(1_000_000);
        // Images of this round were taken before its answers: they owe only what was answered earlier.
        for image in disk.take_images() {
            images.push(image);
            acknowledged.push(answered);
        }
        disk.record_images();
        while let Some(answer) = waiting.front_mut().and_then(poll_once) {
            assert!(
                !matches!(answer, Err(Error::LogPoisoned(_) | Error::Closed | Error::Io(_))),
                "seed {seed}: no fault was planned: {answer:?}"
            );
            waiting.pop_front();
            answered += 1;
        }
    }
    // The last image is of the moment after the last answer.
    disk.record_images();
    images.extend(disk.take_images());
    acknowledged.resize(images.len(), answered);
    Run { operations, images, acknowledged }
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// Opens a disk after a cut and checks what it holds.
fn check(disk: &SimDisk, seed: u64, acknowledged: usize, dumps: &[Dump], story: &str) {
    let db = SimulatedDb::open(Box::new(disk.clone()), &options(), seed ^ 0x5a5a)
        .unwrap_or_else(|error| panic!("{story}: does not open: {error}"));
    let held = db.store().applied().0 as usize;
    assert!(held >= acknowledged, "{story}: I1: {acknowledged} were acknowledged, {held} are there");
    assert!(held < dumps.len(), "{story}: I1: {held} operations, more than were submitted");
    assert_eq!(
        dump(db.store()),
        dumps[held],
        "{story}: I4: another state than the first {held} operations give"
    );
}

/// After recovery the database takes a write, and a further open finds it.
fn check_goes_on(disk: &SimDisk, seed: u64, story: &str) {
    let mut db = SimulatedDb::open(Box::new(disk.clone()), &options(), seed ^ 0xa5a5).expect("opened before");
    let before = db.store().revision();
    let put =
        Put { key: Bytes::from_static(b"after"), value: Bytes::from_static(b"crash"), ..Put::default() };
    let mut future = db.write(&LogOperation::Put(put));
    let answer = loop {
        db.step(1_000_000);
        if let Some(answer) = poll_once(&mut future) {
            break answer;
        }
    };
    assert_eq!(answer.expect("the write is answered").revision(), before + 1, "{story}: M1");
    drop(db);
    let crashed = disk.crash(&CrashPolicy::DropAll);
    let db = SimulatedDb::open(Box::new(crashed), &options(), seed).expect("opens after the write");
    assert_eq!(db.store().revision(), before + 1, "{story}: the acknowledged write after recovery is gone");
}

/// Cuts the power again at every `stride`-th step of the recovery; returns how many disks that were.
fn check_double_crash(
    disk: &SimDisk,
    seed: u64,
    acknowledged: usize,
    dumps: &[Dump],
    story: &str,
    stride: usize,
) -> usize {
    disk.record_images();
    check(disk, seed, acknowledged, dumps, story);
    let images = disk.take_images();
    for (step, second) in images.iter().enumerate().step_by(stride) {
        for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll, CrashPolicy::Random(seed + step as u64)] {
            let story = format!("{story}; recovery cut at step {step}, {policy:?}");
            check(&second.crash(&policy), seed, acknowledged, dumps, &story);
        }
    }
    images.len().div_ceil(stride) * 3
}

/// Of every step one is visited in this many by the share that `cargo test` runs, and by the campaign in most seeds.
const STEPS_PER_VISIT: u64 = 12;
/// In so many seeds the campaign visits every step: some 30,000 disks and ten seconds each. All seeds would take an
/// hour, and what they share is crashed at every step in `crash.rs` already.
const SEEDS_THOROUGH: u64 = 20;

fn check_seed(seed: u64, thorough: bool) -> usize {
    let run = run(seed);
    let dumps = expected(&run.operations);
    let mut rng = Rng::new(seed ^ 0xc0ffee);
    let mut disks = 0;
    let last = run.images.len() - 1;
    for (step, (image, &acknowledged)) in run.images.iter().zip(&run.acknowledged).enumerate() {
        if !thorough && step != last && !rng.chance(1, STEPS_PER_VISIT) {
            continue;
        }
        // Two disks for each step, or it takes minutes: one extreme by turns, and one of the many between.
        let plain = if step % 2 == 0 { CrashPolicy::KeepAll } else { CrashPolicy::DropAll };
        let mut between = image.crash_policies();
        between.push(CrashPolicy::Random(rng.next_u64()));
        let ugly = between.swap_remove(rng.below(between.len() as u64) as usize);
        for policy in [plain, ugly] {
            let story = format!("seed {seed}, step {step}, {policy:?}");
            check(&image.crash(&policy), seed, acknowledged, &dumps, &story);
            disks += 1;
            if rng.chance(1, 40) {
                check_goes_on(&image.crash(&policy), seed, &story);
            }
            if rng.chance(1, 60) {
                let stride = if thorough { 5 } else { 10 };
                disks +=
                    check_double_crash(&image.crash(&policy), seed, acknowledged, &dumps, &story, stride);
            }
        }
    }
    disks
}

#[test]
fn every_power_cut_leaves_a_prefix_with_all_that_was_acknowledged() {
    let asked = std::env::var("STERNPOST_SEEDS").ok().and_then(|text| text.parse().ok());
    let seeds = asked.unwrap_or(SEEDS_DEFAULT);
    let mut disks = 0;
    for seed in 0..seeds {
        disks += check_seed(seed, asked.is_some() && seed < SEEDS_THOROUGH);
        if asked.is_some() {
            eprintln!("seed {seed}: {disks} disks so far");
        }
    }
    eprintln!("{seeds} seeds, {disks} disks");
}
