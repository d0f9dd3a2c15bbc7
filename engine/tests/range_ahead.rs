//! Ranges over what is not in memory: leaves are asked for ahead, values are read by many threads, and no answer shows it.
//!
//! Which leaves a range asks for is known beforehand, from the tree as an inspection shows it: exactly those, up and down the keys. What reading
//! ahead does under faults is in `ahead_faults.rs`.
use std::collections::BTreeSet;
use std::path::Path;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{KeyRange, Put, Range, Scan, Txn, TxnOperation, TxnOperationOutcome};
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
fn fill(directory: &Path, pending_percent: u32) -> i64 {
    let mut options = options(0);
    options.checkpoint.pending_percent_max = pending_percent;
    let db = Db::open(directory, options).expect("a new directory opens");
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

/// A leaf of the key tree.
struct Leaf {
    fence: Bytes,
    bytes: u64,
    keys: Vec<Bytes>,
    /// Number of the page above.
    above: usize,
}

/// All leaves, in order.
fn leaves(directory: &Path) -> Vec<Leaf> {
    let inspection = Inspection::open(directory).expect("it opens");
    let segments = inspection.segments().expect("they are whole");
    let of_pages = segments.iter().filter(|segment| segment.revisions.is_none());
    let mut pages: Vec<_> = of_pages
        .flat_map(|segment| inspection.segment(segment.id).expect("it is whole").pages)
        .filter(|page| page.tree == "keys" && page.reference.level < 2)
        .collect();
    pages.sort_by(|a, b| (&a.fence, b.reference.level).cmp(&(&b.fence, a.reference.level)));
    let mut above = 0;
    let mut leaves = Vec::new();
    for page in pages {
        if page.reference.level == 1 {
            above += 1;
            continue;
        }
        let view = inspection.page(page.reference.segment.0, page.reference.block).expect("it is whole");
        let keys = view.cells.into_iter().map(|cell| cell.key).collect();
        leaves.push(Leaf { fence: page.fence, bytes: page.reference.bytes() as u64, keys, above });
    }
    leaves
}

/// What a range in either direction asks for, from its description and that of the tree.
///
/// It goes from leaf to leaf: from the one in which it begins to the one that holds `last`, the last key it looks at, or to the end of the
/// tree. In each but the first it asks for as many as it has passed, next ones first, while they fit into the window, have the same page
/// above, and have any key of the range.
fn expected_asks(
    leaves: &[Leaf],
    forward: bool,
    keys: (&Bytes, &Bytes),
    last: Option<&Bytes>,
    window: u64,
) -> usize {
    let (from, end) = keys;
    let numbers: Vec<usize> = match forward {
        true => (0..leaves.len()).collect(),
        false => (0..leaves.len()).rev().collect(),
    };
    // Where a look for the next key from `key` on ends, or just before it.
    let place = |key: &Bytes, or_equal: bool| {
        numbers.iter().position(|&number| {
            leaves[number].keys.iter().any(|it| match forward {
                true => it >= key,
                false => it < key || (or_equal && it == key),
            })
        })
    };
    let Some(first) = place(if forward { from } else { end }, false) else { return 0 };
    let to = last.and_then(|last| place(last, true)).unwrap_or(numbers.len() - 1);
    let mut asked = BTreeSet::new();
    for at in first + 1..=to {
        let passed = at - first;
        let mut bytes = 0;
        for &ahead in numbers.iter().skip(at + 1).take(passed) {
            let leaf = &leaves[ahead];
            bytes += leaf.bytes;
            let is_outside = match forward {
                true => leaf.fence >= end,
                false => leaves[ahead + 1].fence <= from,
            };
            if leaf.above != leaves[numbers[at]].above || bytes > window || is_outside {
                break;
            }
            asked.insert(ahead);
        }
    }
    asked.len()
}

#[test]
fn what_is_read_ahead_shows_in_no_answer() {
    let directory = tempfile::tempdir().expect("a directory");
    let between = fill(directory.path(), 25);
    let expected = ask(directory.path(), 0, between);
    assert_eq!(expected[0].kvs.as_ref().map(Vec::len), Ok(KEYS as usize));
    assert_eq!(expected[4].kvs.as_ref().map(Vec::len), Ok(4_000));
    for window in WINDOWS {
        let found = ask(directory.path(), window, between);
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.kvs, expected.kvs, "range {number} with a window of {window} bytes");
        }
        let ahead: Vec<(u64, u64)> = found.iter().map(|asked| (asked.leaves, asked.pieces)).collect();
        let [all, _, thousand, ..] = ahead[..] else { panic!("six ranges") };
        match window {
            0 => assert!(ahead.iter().all(|&none| none == (0, 0)), "{ahead:?}"),
            1 => assert!(ahead.iter().all(|&(leaves, _)| leaves == 0) && all.1 > 100, "{ahead:?}"),
            _ => assert!(all.0 > 0 && all.1 > 100 && thousand.1 > 20, "{ahead:?}"),
        }
    }
}

/// The bound on what was asked for in vain was so loose that a build whose ranges did not know their end passed.
#[test]
fn a_range_asks_for_exactly_the_leaves_that_it_may_come_to() {
    for pending_percent in [0, 25] {
        let directory = tempfile::tempdir().expect("a directory");
        fill(directory.path(), pending_percent);
        let leaves = leaves(directory.path());
        let pages_above: BTreeSet<usize> = leaves.iter().map(|leaf| leaf.above).collect();
        assert!(leaves.len() > 60 && pages_above.len() > 1, "{} under {pages_above:?}", leaves.len());
        // What is read and where it ends: numbers of keys, those of fences among them, and a limit.
        let mut rng = Rng::new(5);
        let mut ranges: Vec<(Bytes, Bytes, usize)> = RANGES
            .iter()
            .map(|&(from, to, limit, _)| (key(from).into(), key(to).into(), limit as usize))
            .collect();
        for _ in 0..120 {
            let mut ends = [0, 1].map(|_| match rng.chance(1, 2) {
                true => leaves[rng.below(leaves.len() as u64) as usize].fence.clone(),
                false => Bytes::from(key(rng.below(KEYS))),
            });
            ends.sort();
            let [from, end] = ends;
            let limit = if rng.chance(1, 3) { 1 + rng.below(2_000) as usize } else { 0 };
            // The first fence is the empty key, which no range begins with.
            ranges.push((if from.is_empty() { key(0).into() } else { from }, end, limit));
        }
        ranges.retain(|(from, end, _)| from < end);
        let all: Vec<Bytes> = (0..KEYS).map(|number| key(number).into()).collect();
        let mut asked_at_all = 0;
        for window in [1, 16 << 10, 64 << 20] {
            let db = Db::open(directory.path(), options(window)).expect("it opens");
            let mut asks = 0;
            let mut asked_now = || {
                let before = std::mem::replace(&mut asks, stats(&db).leaves_read_ahead);
                (asks - before) as usize
            };
            for (from, end, limit) in &ranges {
                let (first, behind) =
                    (all.partition_point(|it| it < from), all.partition_point(|it| it < end));
                let story =
                    format!("{from:?} to {end:?}, limit {limit}, window {window}, pending {pending_percent}");
                // A read with a limit looks at one key more, to say whether there are more.
                let last = match *limit {
                    0 => all.get(behind),
                    limit => all.get(behind.min(first + limit)),
                };
                let range = KeyRange { key: from.clone(), end: end.clone() };
                let read = Range { range, limit: *limit as i64, keys_only: true, ..Range::default() };
                let read = Txn { success: vec![TxnOperation::Range(read)], ..Txn::default() };
                db.txn(read).expect("it is whole");
                let expected = expected_asks(&leaves, true, (from, end), last, window);
                assert_eq!(asked_now(), expected, "up: {story}");
                asked_at_all += expected;
                // Down, the step behind the last key is made before the limit is looked at.
                let count = if *limit == 0 { behind - first } else { (*limit).min(behind - first) };
                let last = behind.checked_sub(count + 1).map(|before| &all[before]);
                let pages = db
                    .latest()
                    .range::<&[u8]>(&from[..]..&end[..])
                    .keys_only()
                    .reversed()
                    .limit(count.min(256));
                let found = pages.collect::<Result<Vec<_>, _>>().expect("it is whole");
                assert_eq!(found.len(), count.min(256), "{story}");
                let last = if count > 256 { Some(&all[behind - 257]) } else { last };
                let expected = expected_asks(&leaves, false, (from, end), last, window);
                assert_eq!(asked_now(), expected, "down: {story}");
                asked_at_all += expected;
            }
            db.close().expect("a close");
        }
        assert!(asked_at_all > 1_000, "{asked_at_all}");
    }
}

/// Over a device that counts reads, with hints that are followed at once: a scan in either direction, whole or in the pages of an iterator, reads
/// each leaf once as it does without reading ahead, and waits for few of them.
#[test]
fn a_scan_reads_nothing_twice_and_waits_for_few_leaves() {
    let disk = SimDisk::new(1);
    let open = |ahead_seed| {
        let mut options = options(64 << 20);
        options.checkpoint.pending_percent_max = 0;
        options.checkpoint.shelf.ahead_seed = ahead_seed;
        SimulatedDb::open(&disk, &options, 1).expect("it opens")
    };
    let mut db = open(None);
    for number in 0..KEYS / 2 {
        let put = Put { key: key(number).into(), value: vec![7; 40].into(), ..Put::default() };
        drop(db.write(&LogOperation::Put(put)));
        db.step(1_000);
    }
    while db.store().applied().0 < KEYS / 2 {
        db.step(1_000_000);
    }
    db.close().expect("a close");
    let count = (KEYS / 2) as usize;
    let whole = |db: &SimulatedDb, reverse| {
        let (lower, revision) = (Bytes::from_static(b"key"), db.store().revision());
        let scan = Scan { lower, upper: None, revision, reverse, limit: usize::MAX, keys_only: true };
        db.store().scan(&scan).expect("it is whole").len()
    };
    type Count<'a> = &'a dyn Fn(&SimulatedDb) -> usize;
    let ways: [(&str, Count<'_>); 4] = [
        ("up", &|db| whole(db, false)),
        ("down", &|db| whole(db, true)),
        ("up by pages", &|db| {
            db.latest().range::<&[u8]>(..).keys_only().map(|kv| assert!(kv.is_ok())).count()
        }),
        ("down by pages", &|db| {
            db.latest().range::<&[u8]>(..).keys_only().reversed().map(|kv| assert!(kv.is_ok())).count()
        }),
    ];
    for (what, scan) in ways {
        let [plain, ahead] = [None, Some(0)].map(|ahead_seed| {
            // Cold.
            let db = open(ahead_seed);
            let before = disk.reads();
            assert_eq!(scan(&db), count, "{what}");
            (disk.reads() - before, db.checkpoint_stats().leaves_read_ahead)
        });
        println!("{what}: {plain:?} without, {ahead:?} with reading ahead");
        assert!(plain.1 == 0 && plain.0 > 40, "{what}: {plain:?}");
        assert_eq!(ahead.0, plain.0, "{what}: nothing is read twice or in vain");
        assert!(ahead.1 <= ahead.0, "{what}: no leaf is asked for twice");
        assert!((ahead.0 - ahead.1) * 5 < ahead.0, "{what}: of {} reads {} did not wait", ahead.0, ahead.1);
    }
}

/// What a thread finds damaged is the error that the caller would have found, and the next range is answered.
#[test]
fn a_damaged_value_is_the_same_error_whoever_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let between = fill(directory.path(), 25);
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
