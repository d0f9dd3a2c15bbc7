//! Range sums: in every way what a recount gives, at every retained revision; and what finding them costs.
//!
//! `cargo test` runs a share; `STERNPOST_SEEDS=200` runs so many seeds, `STERNPOST_SEED_FIRST=n` starts elsewhere.
mod db_support;

use db_support::*;
use sternpost_engine::base::record_hash::CanonicalRecord;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{
    DeleteRange, KeyRange, PARTS_MAX, Put, Range, RangeSum, Store, SumWay, key_after,
};
use sternpost_engine::{Bytes, Db, Error, OperationError, Options, Snapshot};

const WAYS: [SumWay; 3] = [SumWay::Cheapest, SumWay::Walk, SumWay::Changes];
const SEEDS_DEFAULT: u64 = 8;
const OPERATIONS_PER_SEED: usize = 240;
/// Operations between two looks at everything.
const PART: usize = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The keys that exist at a revision and the hashes of their records, from all that is retained.
fn recount(store: &Store, revision: i64) -> Vec<(Bytes, u64)> {
    let mut keys = Vec::new();
    let visit = &mut |record: &sternpost_engine::mvcc::RetainedRecord<'_>| {
        if record.visible {
            let canonical = CanonicalRecord {
                key: record.key,
                revision: record.revision,
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
                value: record.value,
            };
            keys.push((Bytes::copy_from_slice(record.key), canonical.hash()));
        }
    };
    store.for_each_retained(revision, visit).expect("it is retained");
    keys.sort();
    keys
}

fn is_in(range: &KeyRange, key: &[u8]) -> bool {
    match &range.end[..] {
        [] => key == range.key,
        [0] => key >= &range.key[..],
        end => key >= &range.key[..] && key < end,
    }
}

fn sum_of(keys: &[(Bytes, u64)], range: &KeyRange) -> RangeSum {
    let mut sum = RangeSum::default();
    for (_, hash) in keys.iter().filter(|(key, _)| is_in(range, key)) {
        sum.keys_count += 1;
        sum.hash_sum = sum.hash_sum.wrapping_add(*hash);
    }
    sum
}

fn any_key(rng: &mut Rng) -> Bytes {
    let (name, count) = if rng.chance(1, 3) { ("rare", 50) } else { ("key", 9) };
    let key = Bytes::from(format!("{name}{}", rng.below(count)));
    if rng.chance(1, 4) { key_after(&key) } else { key }
}

/// One key, a few kinds of ranges, and everything in pieces that ascend.
fn ranges(rng: &mut Rng) -> Vec<Vec<KeyRange>> {
    let mut alone = vec![all(), one(any_key(rng))];
    alone.push(KeyRange { key: any_key(rng), end: Bytes::from_static(b"\0") });
    alone.extend((0..3).map(|_| KeyRange { key: any_key(rng), end: any_key(rng) }));
    let mut fences: Vec<_> = (0..1 + rng.below(12)).map(|_| any_key(rng)).collect();
    fences.push(Bytes::from_static(b"\0"));
    fences.sort();
    fences.dedup();
    let ends = fences.iter().skip(1).chain(std::iter::once(&fences[0]));
    let pieces = fences.iter().zip(ends).map(|(key, end)| KeyRange { key: key.clone(), end: end.clone() });
    vec![alone, pieces.collect()]
}

#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    /// Revisions below that of the state on disk, and others above a state.
    below: u64,
    above: u64,
    /// Of those below: where more than one key has changed since.
    changed: u64,
    parts: u64,
    compacted: u64,
}

/// All ways at all retained revisions.
fn check(store: &Store, rng: &mut Rng, story: &str, reached: &mut Reached) {
    let (head, oldest) = (store.revision(), store.compact_revision().max(1));
    let disk_revision = store.stats().disk_revision;
    for revision in oldest..=head {
        let keys = recount(store, revision);
        match revision < disk_revision {
            true => reached.below += 1,
            false if disk_revision > 0 => reached.above += 1,
            false => {}
        }
        if revision + 1 < disk_revision {
            reached.changed += u64::from(recount(store, disk_revision) != keys);
        }
        for ranges in ranges(rng) {
            let expected: Vec<_> = ranges.iter().map(|range| sum_of(&keys, range)).collect();
            let expected: Vec<_> = expected.iter().map(|sum| (*sum, sum.keys_count)).collect();
            for way in WAYS {
                let found = store.range_sums_by(&ranges, revision, way).expect("a sound disk");
                assert_eq!(
                    found, expected,
                    "{story}: {way:?} at {revision} of {head}, disk {disk_revision}: {ranges:?}"
                );
            }
            for (range, (sum, _)) in ranges.iter().zip(&expected) {
                assert_eq!(store.range_sum(range, revision), Ok((*sum, revision)), "{story}");
                let asked = Range { range: range.clone(), revision, limit: 3, ..Range::default() };
                let outcome = store.range(&asked).expect("retained");
                assert_eq!(
                    (outcome.count as u64, outcome.more),
                    (sum.keys_count, sum.keys_count > 3),
                    "{story}"
                );
                check_parts(store, rng, range, revision, &keys, reached);
            }
        }
    }
    if oldest > 1 {
        let refused = store.range_sum(&all(), oldest - 1);
        assert_eq!(refused, Err(OperationError::Compacted(oldest)), "{story}");
        reached.compacted += 1;
    }
    assert_eq!(store.range_sum(&all(), head + 1), Err(OperationError::FutureRevision(head)));
    assert_eq!(store.range_sum(&one(Bytes::new()), 0), Err(OperationError::EmptyKey));
}

/// Parts have what they say, side by side; a listing has what is there.
fn check_parts(
    store: &Store,
    rng: &mut Rng,
    range: &KeyRange,
    revision: i64,
    keys: &[(Bytes, u64)],
    reached: &mut Reached,
) {
    let parts_max = 1 + rng.below(20) as usize;
    let (parts, _) = store.range_parts(range, revision, parts_max).expect("retained");
    let whole = sum_of(keys, range);
    assert!((1..=parts_max.min(PARTS_MAX)).contains(&parts.len()));
    assert_eq!((&parts[0].range.key, &parts[parts.len() - 1].range.end), (&range.key, &range.end));
    assert!(parts.windows(2).all(|pair| pair[0].range.end == pair[1].range.key));
    assert!(parts.is_sorted_by(|left, right| left.range.key < right.range.key), "{parts:?}");
    for part in &parts {
        assert_eq!(part.sum, sum_of(keys, &part.range), "{part:?}");
        let has_all = part.sum.keys_count == whole.keys_count;
        assert!(!has_all || whole.keys_count < 2 || parts_max < 2, "{parts:?} of {whole:?}");
    }
    reached.parts += parts.len() as u64;
    let (listed, _) = store.fingerprints(range, revision, 4, u64::MAX).expect("retained");
    assert_eq!(listed.more, whole.keys_count > 4);
    let found: Vec<_> = listed.keys.into_iter().map(|it| (it.kv.key, it.record_hash)).collect();
    let expected: Vec<_> = keys.iter().filter(|(key, _)| is_in(range, key)).take(4).cloned().collect();
    assert_eq!(found, expected);
}

fn check_seed(seed: u64) -> Reached {
    let (mut rng, mut reached) = (Rng::new(seed), Reached::default());
    let mut options = options(seed);
    options.checkpoint.pending_percent_max = [0, 25, 200, 1_000][seed as usize % 4];
    options.store.memtable_bytes = [1 << 10, 6 << 10, 60 << 10][seed as usize % 3];
    let operations = operations(&mut rng, OPERATIONS_PER_SEED);
    let mut disk = SimDisk::new(seed);
    let mut db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
    for (number, part) in operations.chunks(PART).enumerate() {
        for operation in part {
            let answer = write(&mut db, operation);
            assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
        }
        let story = format!("STERNPOST_SEED_FIRST={seed} STERNPOST_SEEDS=1, part {number}");
        check(db.store(), &mut rng, &story, &mut reached);
        if rng.chance(1, 3) {
            drop(db);
            disk = disk.crash(&sternpost_engine::io::sim_disk::CrashPolicy::KeepAll);
            db = SimulatedDb::open(&disk, &options, seed + number as u64).expect("a sound disk opens");
            check(db.store(), &mut rng, &story, &mut reached);
        }
    }
    reached
}

#[test]
fn sums_are_what_a_recount_gives_in_every_way() {
    let seeds = number("STERNPOST_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(0);
    let mut sum = Reached::default();
    for seed in first..first + seeds {
        let reached = check_seed(seed);
        sum.below += reached.below;
        sum.above += reached.above;
        sum.changed += reached.changed;
        sum.parts += reached.parts;
        sum.compacted += reached.compacted;
    }
    eprintln!("{seeds} seeds: {sum:?}");
    if seeds >= SEEDS_DEFAULT {
        assert!(sum.below > 20 * seeds && sum.above > 20 * seeds && sum.changed > 10 * seeds, "{sum:?}");
        assert!(sum.parts > 1_000 * seeds && sum.compacted > seeds, "{sum:?}");
    }
}

#[test]
fn an_embedding_program_asks_at_any_revision() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(directory.path(), Options::new()).expect("it opens");
    let first = db.put("a", "1").expect("a put");
    let second = db.put("b", "2").expect("a put");
    db.delete("a").expect("a delete");
    let (at_first, at_second) = (db.at(first).expect("retained"), db.at(second).expect("retained"));
    let sum = |snapshot: &Snapshot, bounds: std::ops::Range<&str>| snapshot.sum(bounds).expect("whole");
    let [a, b] = ["a".."b", "b".."c"].map(|bounds| sum(&at_second, bounds));
    assert_eq!((a.keys_count, b.keys_count), (1, 1));
    assert_eq!(at_first.sum::<&str>(..).expect("whole"), a);
    assert_eq!(db.latest().sum::<&str>(..).expect("whole"), b);
    let both = sum(&at_second, "a".."c");
    assert_eq!((both.keys_count, both.hash_sum), (2, a.hash_sum.wrapping_add(b.hash_sum)));
    // Ranges with nothing in them; the last one was once read as etcd's way to say everything.
    for empty in ["b".."a", "a".."a", "a".."\0"] {
        assert_eq!(
            (sum(&at_second, empty.clone()), at_second.count(empty).expect("whole")),
            Default::default()
        );
    }
    assert_eq!(at_second.count(..="\0").expect("whole"), 0);
    assert_eq!(at_second.count(.."\0").expect("whole"), 0);
    db.compact(second).expect("a compaction");
    assert!(matches!(at_first.sum::<&str>(..), Err(Error::Compacted(at)) if at == second));
}

// --- What it costs -----------------------------------------------------------------------------------------------------

fn plain(cache_bytes: usize) -> Options {
    let mut options = Options::new().memtable_bytes(16 << 20).cache_bytes(cache_bytes);
    options.checkpoint.shelf.page_bytes = 4096;
    options.checkpoint.rest_us = 1_000;
    options.checkpoint.rest_wal_bytes_max = 0;
    options
}

fn key_of(number: u64) -> Bytes {
    Bytes::from(format!("key/{number:08}"))
}

fn put(number: u64, byte: u8) -> LogOperation {
    LogOperation::Put(Put { key: key_of(number), value: vec![byte; 100].into(), ..Put::default() })
}

fn delete(number: u64) -> LogOperation {
    LogOperation::DeleteRange(DeleteRange { range: one(key_of(number)), prev_kv: false })
}

/// Writes, and waits until all of it is on disk.
fn write_to_disk(db: &mut SimulatedDb, operations: impl Iterator<Item = LogOperation>) {
    for operation in operations {
        write(db, &operation).expect("nothing to refuse");
    }
    let head = db.store().revision();
    for _ in 0..ROUNDS_MAX {
        if db.store().stats().disk_revision == head {
            return;
        }
        db.step(u64::MAX);
    }
    panic!("no checkpoint: {:?}", db.checkpoint_stats());
}

/// Even numbers of keys, then fifteen changes far from each other; the revision between.
fn changed_a_little(disk: &SimDisk, keys: u64) -> (SimulatedDb, i64) {
    let mut db = SimulatedDb::open(disk, &plain(0), 1).expect("a new disk opens");
    write_to_disk(&mut db, (0..keys).map(|number| put(2 * number, 1)));
    let revision = db.store().revision();
    let step = 2 * keys / 20;
    let changes = (1..=5)
        .flat_map(|number| [put(number * step, 2), delete(number * step + 20), put(number * step + 41, 3)]);
    write_to_disk(&mut db, changes.collect::<Vec<_>>().into_iter());
    (db, revision)
}

/// Reads of files that a question costs, and the answer.
fn reads_of<T>(disk: &SimDisk, ask: impl FnOnce() -> T) -> (u64, T) {
    let before = disk.reads();
    let answer = ask();
    (disk.reads() - before, answer)
}

#[test]
fn a_count_at_an_older_revision_reads_what_has_changed_and_not_the_range() {
    let range = KeyRange { key: Bytes::from_static(b"key/"), end: Bytes::from_static(b"key0") };
    let mut costs = Vec::new();
    for keys in [3_000, 12_000] {
        let disk = SimDisk::new(keys);
        let (db, revision) = changed_a_little(&disk, keys);
        let store = db.store();
        let counted = |revision, limit| {
            let asked = Range { range: range.clone(), revision, limit, ..Range::default() };
            let count_only = Range { count_only: limit == 0, ..asked };
            store.range(&count_only).expect("retained").count as u64
        };
        let (count_reads, count) = reads_of(&disk, || counted(revision, 0));
        let (page_reads, page_count) = reads_of(&disk, || counted(revision, 10));
        let (sum_reads, sum) = reads_of(&disk, || store.range_sum(&range, revision).expect("retained").0);
        let walk = || store.range_sums_by(std::slice::from_ref(&range), revision, SumWay::Walk);
        let (walk_reads, walked) = reads_of(&disk, || walk().expect("retained"));
        let (now_reads, now) = reads_of(&disk, || store.range_sum(&range, 0).expect("the head").0);
        assert_eq!((count, page_count, now.keys_count), (keys, keys, keys));
        assert_eq!(walked, [(sum, keys)]);
        assert_ne!(now.hash_sum, sum.hash_sum);
        println!(
            "{keys} keys: count {count_reads}, page {page_reads}, sum {sum_reads}, head {now_reads}, walk {walk_reads}"
        );
        // Two walks: the count's and the sum's.
        assert!(walk_reads > 2 * keys / 100, "{walk_reads}");
        // Boundaries in two trees, index blocks, and the chunks of fifteen changes that lie side by side.
        assert!(count_reads < 20 && now_reads < 20, "{count_reads} {now_reads}");
        // Beside that, the keys of the page and their values.
        assert!(page_reads < 40, "{page_reads}");
        // Of each key that has changed its cell, and the record before.
        assert!(sum_reads < 15 * 12, "{sum_reads}");
        costs.push((count_reads, sum_reads, walk_reads));
    }
    // Four times the keys, and at most a level more.
    let [(count, sum, walk), (count_of_more, sum_of_more, walk_of_more)] = costs[..] else { unreachable!() };
    assert!(count_of_more <= count + 6 && sum_of_more <= sum + 15 * 4, "{costs:?}");
    assert!(walk_of_more > 2 * walk, "{costs:?}");
}

/// Where more has changed than is in the range, finding that out costs next to nothing.
#[test]
fn a_range_that_is_cheaper_to_go_over_is_gone_over() {
    let disk = SimDisk::new(5);
    let mut db = SimulatedDb::open(&disk, &plain(0), 1).expect("a new disk opens");
    write_to_disk(&mut db, (0..2_000).map(|number| put(number, 1)));
    let revision = db.store().revision();
    write_to_disk(&mut db, (0..16_000).map(|number| put(10_000 + number, 1)));
    let range = KeyRange { key: key_of(0), end: key_of(1_000) };
    let by = |way| {
        let sums = || db.store().range_sums_by(std::slice::from_ref(&range), revision, way);
        let (reads, sums) = reads_of(&disk, || sums().expect("retained"));
        assert_eq!(sums[0].1, 1_000);
        reads
    };
    let (cheapest, walk, changes) = (by(SumWay::Cheapest), by(SumWay::Walk), by(SumWay::Changes));
    println!("cheapest {cheapest}, walk {walk}, changes {changes}");
    assert!(changes > 2 * walk && cheapest <= walk + walk / 8 + 12, "{cheapest} {walk} {changes}");
}

/// What the constants of the choice stand for, as reads of the device that are counted: cold, of a range of 8,000 keys at revisions ever further
/// back, changes in order and changes all over the range. What is found out there stands in `docs/mvcc.md`.
#[test]
fn the_way_that_is_taken_reads_little_more_than_the_better_one() {
    const KEYS: u64 = 8_000;
    let options = || {
        let mut options = plain(16 << 20);
        options.checkpoint.shelf.page_bytes = 16 << 10;
        options.store.memtable_bytes = 1 << 20;
        options
    };
    let range = KeyRange { key: Bytes::from_static(b"key/"), end: Bytes::from_static(b"key0") };
    for is_scattered in [false, true] {
        let disk = SimDisk::new(9);
        let mut db = SimulatedDb::open(&disk, &options(), 1).expect("a new disk opens");
        write_to_disk(&mut db, (0..KEYS).map(|number| put(number, 1)));
        let mut revisions = Vec::new();
        for count in [8_000, 4_000, 2_000, 1_000, 500, 250, 125, 60, 30, 15, 7, 1_u64] {
            revisions.push(db.store().revision());
            // A number without a divisor in common: each time another key.
            let place = |number: u64| if is_scattered { number * 7_919 % KEYS } else { number };
            write_to_disk(&mut db, (0..count).map(|number| put(place(number), 2)));
        }
        db.close().expect("a close");
        let mut rows = Vec::new();
        for revision in revisions.into_iter().rev() {
            let cold = |way: Option<SumWay>| {
                let db = SimulatedDb::open(&disk, &options(), 1).expect("it opens");
                let ranges = std::slice::from_ref(&range);
                let (reads, sum) = reads_of(&disk, || match way {
                    Some(way) => db.store().range_sums_by(ranges, revision, way).map(|sums| sums[0].0),
                    None => db.store().range_sum(&range, revision).map(|(sum, _)| sum),
                });
                assert_eq!(sum.as_ref().map(|sum| sum.keys_count), Ok(KEYS));
                reads
            };
            let changes_count = db_head(&disk, &options()) - revision;
            let row = (changes_count, cold(Some(SumWay::Walk)), cold(Some(SumWay::Changes)), cold(None));
            println!("scattered {is_scattered}: changes, and reads of a walk, by changes, as taken: {row:?}");
            rows.push(row);
        }
        for &(changes_count, walk, changes, taken) in &rows {
            // Above as many changes as keys the range is gone over without a look at where they lie.
            let most = if changes_count > KEYS as i64 { 4 } else { 2 };
            assert!(taken <= most * walk.min(changes) + 16, "{taken} reads: {rows:?}");
        }
        assert!(rows[0].2 * 2 < rows[0].1, "few changes are read sooner: {rows:?}");
    }
}

fn db_head(disk: &SimDisk, options: &Options) -> i64 {
    SimulatedDb::open(disk, options, 1).expect("it opens").store().revision()
}

/// A change of another key that cannot be read costs time and no answer: as before, only what a range has fails it.
#[test]
fn a_damaged_change_elsewhere_costs_no_count() {
    let disk = SimDisk::new(6);
    let (db, revision) = changed_a_little(&disk, 12_000);
    drop(db);
    // The records of the changes alone: they are in the newest segment.
    let newest = disk.files().into_iter().filter(|path| path.extension().is_some_and(|it| it == "r")).max();
    assert!(disk.damage(newest.expect("a segment of records"), 4096, &[0x55; 1024]));
    let db = SimulatedDb::open(&disk, &plain(1 << 20), 1).expect("it opens");
    let store = db.store();
    // Nothing there has changed.
    let range = KeyRange { key: key_of(20_000), end: key_of(24_000) };
    let asked = Range { range: range.clone(), revision, count_only: true, ..Range::default() };
    assert_eq!(store.range(&asked).expect("a walk needs nothing of it").count, 2_000);
    assert_eq!(store.range_sum(&range, revision).expect("likewise").0.keys_count, 2_000);
    let by_changes = store.range_sums_by(std::slice::from_ref(&range), revision, SumWay::Changes);
    let Err(OperationError::Unreadable(why)) = by_changes else { panic!("{by_changes:?}") };
    assert!(matches!(why.error(), Error::Corruption { .. }));
    assert!(store.quarantine().findings_count > 0);
}

/// Two databases with the same writes and other trees: the key that differs is found by few parts, however many there are.
#[test]
fn what_differs_is_found_by_logarithmic_descent() {
    let keys = 20_000;
    let disks = [SimDisk::new(7), SimDisk::new(8)];
    let open = |number: usize| {
        let mut options = plain(4 << 20);
        options.checkpoint.shelf.page_bytes = [4096, 16 << 10][number];
        options.checkpoint.pending_percent_max = [0, 400][number];
        options.store.memtable_bytes = [64 << 10, 16 << 20][number];
        SimulatedDb::open(&disks[number], &options, 1).expect("a new disk opens")
    };
    let mut dbs = [open(0), open(1)];
    let mut rng = Rng::new(3);
    for number in 0..keys {
        for db in &mut dbs {
            write(db, &put(number, 1)).expect("a put");
        }
    }
    for _ in 0..2_000 {
        let operation = match rng.chance(1, 5) {
            true => delete(rng.below(keys)),
            false => put(rng.below(keys), 2),
        };
        dbs.iter_mut().for_each(|db| drop(write(db, &operation).expect("a change")));
    }
    let sum = |db: &SimulatedDb| db.store().range_sum(&all(), 0).expect("the head");
    assert_eq!(sum(&dbs[0]), sum(&dbs[1]), "equal data, whatever the trees");
    let odd = 13_579;
    write(&mut dbs[0], &put(odd, 8)).expect("a put");
    write(&mut dbs[1], &put(odd, 9)).expect("a put");
    assert_ne!(sum(&dbs[0]), sum(&dbs[1]));
    let (mut range, mut steps) = (all(), 0);
    loop {
        let (parts, revision) = dbs[0].store().range_parts(&range, 0, 16).expect("the head");
        let ranges: Vec<_> = parts.iter().map(|part| part.range.clone()).collect();
        let (sums, _) = dbs[1].store().range_sums(&ranges, revision).expect("the head");
        let differ: Vec<_> = parts.iter().zip(&sums).filter(|(part, sum)| part.sum != **sum).collect();
        assert_eq!(differ.len(), 1, "one key differs");
        range = differ[0].0.range.clone();
        steps += 1;
        if differ[0].1.keys_count == 1 {
            break;
        }
    }
    assert!(is_in(&range, &key_of(odd)), "{range:?}");
    // 16^4 = 65,536.
    assert!(steps <= 5, "{steps} steps");
}
