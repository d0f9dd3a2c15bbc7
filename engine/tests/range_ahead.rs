//! Ranges over what is not in memory: leaves are asked for ahead, values are read by many threads, and no answer shows it.
use std::path::Path;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::mvcc::{KeyRange, Range, Txn, TxnOperation, TxnOperationOutcome};
use sternpost_engine::{Batch, Bytes, Db, Options};

const KEYS: u64 = 8_000;
/// Windows in bytes: nothing ahead; less than a leaf; a few leaves; all of them.
const WINDOWS: [u64; 4] = [0, 1, 16 << 10, 64 << 20];

fn options(range_ahead_bytes: u64) -> Options {
    let mut options = Options::new().memtable_bytes(256 << 10).cache_bytes(16 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.rest_wal_bytes_max = 0;
    options.checkpoint.shelf.page_bytes = 4096;
    options.checkpoint.shelf.segment_bytes = 1 << 20;
    options.checkpoint.shelf.range_ahead_bytes = range_ahead_bytes;
    options
}

fn key(number: u64) -> String {
    format!("key/{number:06}")
}

/// Keys in order, then half of them once more in any order: values of neighbours lie far apart. Returns a revision in between.
fn fill(directory: &Path) -> i64 {
    let db = Db::open(directory, options(0)).expect("a new directory opens");
    let mut rng = Rng::new(1);
    let mut between = 0;
    for first in (0..2 * KEYS).step_by(200) {
        let numbers = first..first + 200;
        let put = |batch: Batch, number: u64, rng: &mut Rng| {
            let number = if number < KEYS { number } else { rng.below(KEYS) };
            let mut value = vec![0; 20 + rng.below(400) as usize];
            rng.fill(&mut value);
            batch.put(key(number), value)
        };
        let mut batch = Batch::new();
        let mut seen = std::collections::BTreeSet::new();
        for number in numbers {
            let number = if number < KEYS { number } else { rng.below(KEYS) };
            if seen.insert(number) {
                batch = put(batch, number, &mut rng);
            }
        }
        let revision = db.write(batch).expect("a batch");
        if first == KEYS + 2_000 {
            between = revision;
        }
    }
    db.close().expect("a close");
    between
}

fn stats(db: &Db) -> CheckpointStats {
    db.stats().checkpoints.expect("it is open")
}

/// What one range gave, and what was read ahead for it.
#[derive(PartialEq, Debug)]
struct Asked {
    kvs: Result<Vec<(Bytes, i64, Bytes)>, String>,
    leaves: u64,
    pieces: u64,
}

/// The ranges: first key, key behind the last, limit (0 for none), whether at the older revision.
const RANGES: [(u64, u64, i64, bool); 6] = [
    (0, KEYS, 0, false),
    (0, KEYS, 10, false),
    (100, KEYS, 1_000, false),
    (500, 520, 0, false),
    (3_000, 7_000, 0, true),
    (KEYS - 3, KEYS + 5, 0, false),
];

fn ask(directory: &Path, window: u64, between: i64) -> Vec<Asked> {
    let ask_one = |&(from, to, limit, is_old): &(u64, u64, i64, bool)| {
        // Cold each time.
        let db = Db::open(directory, options(window)).expect("it opens");
        let before = stats(&db);
        let range = KeyRange { key: key(from).into(), end: key(to).into() };
        let revision = if is_old { between } else { 0 };
        let read = TxnOperation::Range(Range { range, limit, revision, ..Range::default() });
        let outcome = db.txn(Txn { success: vec![read], ..Txn::default() });
        let kvs = outcome.map(|outcome| match outcome.responses.into_iter().next() {
            Some(TxnOperationOutcome::Range(found)) => {
                found.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision, kv.value)).collect()
            }
            other => panic!("a range: {other:?}"),
        });
        let after = stats(&db);
        db.close().expect("a close");
        Asked {
            kvs: kvs.map_err(|error| error.to_string()),
            leaves: after.leaves_read_ahead - before.leaves_read_ahead,
            pieces: after.pieces_read_at_once - before.pieces_read_at_once,
        }
    };
    RANGES.iter().map(ask_one).collect()
}

/// Leaves of the key tree.
fn leaves(directory: &Path) -> u64 {
    let inspection = Inspection::open(directory).expect("it opens");
    inspection.trees().expect("it is whole")[0].level_pages[0]
}

#[test]
fn what_is_read_ahead_shows_in_no_answer_and_is_no_more_than_what_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let between = fill(directory.path());
    let leaves = leaves(directory.path());
    let expected = ask(directory.path(), 0, between);
    assert_eq!(expected[0].kvs.as_ref().map(Vec::len), Ok(KEYS as usize));
    assert_eq!(expected[4].kvs.as_ref().map(Vec::len), Ok(4_000));
    for window in WINDOWS {
        let found = ask(directory.path(), window, between);
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.kvs, expected.kvs, "range {number} with a window of {window} bytes");
        }
        let ahead: Vec<(u64, u64)> = found.iter().map(|asked| (asked.leaves, asked.pieces)).collect();
        println!("{window}: {ahead:?} of {leaves} leaves");
        let [all, ten, thousand, twenty, old, last] = ahead[..] else { panic!("six ranges") };
        match window {
            0 => assert!(ahead.iter().all(|&none| none == (0, 0)), "{ahead:?}"),
            1 => assert!(ahead.iter().all(|&(leaves, _)| leaves == 0) && all.1 > 100, "{ahead:?}"),
            _ => {
                // Each leaf once, but for the first ones below each page above.
                assert!(all.0 > leaves / 2 && all.0 <= leaves, "{ahead:?} of {leaves} leaves");
                // A range that ends in its first leaf asks for none, one with a limit for no more than about what it has read.
                assert!(ten.0 <= 2 && twenty.0 <= 2 && last.0 <= 1, "{ahead:?}");
                assert!(thousand.0 <= leaves / 3 && thousand.1 > 20, "{ahead:?} of {leaves} leaves");
                assert!(old.0 > leaves / 4, "{ahead:?} of {leaves} leaves");
            }
        }
    }
}

/// What a thread finds damaged is the error that the caller would have found, and the next range is answered.
#[test]
fn a_damaged_value_is_the_same_error_whoever_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let between = fill(directory.path());
    let segments = std::fs::read_dir(directory.path().join("seg")).expect("segments");
    let mut segments: Vec<_> = segments.map(|entry| entry.expect("a name").path()).collect();
    segments.retain(|path| path.extension().is_some_and(|it| it == "r"));
    segments.sort();
    // All over the records of the largest one: some of these are of values that were replaced since, and not all of them.
    let largest = segments.iter().max_by_key(|path| path.metadata().map_or(0, |it| it.len())).expect("some");
    let mut content = std::fs::read(largest).expect("it is read");
    let bytes = content.len();
    for part in 1..=30 {
        let at = bytes / 40 * part;
        content[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    std::fs::write(largest, content).expect("it is written");
    let expected = ask(directory.path(), 0, between);
    assert!(expected[0].kvs.as_ref().is_err_and(|error| error.contains("seg/")), "{:?}", expected[0].kvs);
    for window in WINDOWS {
        for (found, expected) in ask(directory.path(), window, between).iter().zip(&expected) {
            assert_eq!(found.kvs, expected.kvs, "a window of {window} bytes");
        }
    }
}
