//! Reading ahead over a disk with faults: damaged blocks, blocks that the device does not give, reads that fail or are rotten now and then.
//!
//! Without threads: whoever asks reads ahead himself, as a seed draws it, at once, later, or never (`disk_state/read_ahead.rs`). So a run is that of
//! its seed, and what it answers is held against a run that reads nothing ahead over the same disk.
mod db_support;

use db_support::*;
use std::collections::BTreeMap;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{KeyRange, KeyValue, Put, Range, Scan, Store};
use sternpost_engine::quarantine::QuarantineStats;
use sternpost_engine::{Bytes, Error, Options};

const BLOCK: usize = 4096;
const KEYS: u64 = 400;

fn options(ahead_seed: Option<u64>, pending_percent: u32) -> Options {
    let mut options = Options::new().memtable_bytes(24 << 10).cache_bytes(4 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.rest_wal_bytes_max = 0;
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 128 << 10;
    options.checkpoint.shelf.range_ahead_bytes = 48 << 10;
    options.checkpoint.shelf.ahead_seed = ahead_seed;
    options.checkpoint.pending_percent_max = pending_percent;
    options
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key/{number:04}"))
}

/// A closed database, and a revision of it with history behind it.
struct World {
    disk: SimDisk,
    between: i64,
    pending_percent: u32,
    /// What it answers when nothing is wrong.
    truth: Answers,
}

impl World {
    fn new(pending_percent: u32) -> Self {
        let disk = SimDisk::new(4);
        let mut db = SimulatedDb::open(&disk, &options(None, pending_percent), 1).expect("a new disk opens");
        let mut rng = Rng::new(2);
        let mut between = 0;
        // In order, then a third of them once more, and a few deletes.
        for number in 0..KEYS + KEYS / 3 {
            let name = if number < KEYS { number } else { rng.below(KEYS) };
            let mut value = vec![0; [20, 60, 90, 400][rng.below(4) as usize]];
            rng.fill(&mut value);
            let operation = match number >= KEYS && rng.chance(1, 8) {
                true => LogOperation::DeleteRange(sternpost_engine::mvcc::DeleteRange {
                    range: one(key(name)),
                    prev_kv: false,
                }),
                false => LogOperation::Put(Put { key: key(name), value: value.into(), ..Put::default() }),
            };
            write(&mut db, &operation).expect("a write");
            if number == KEYS + KEYS / 6 {
                between = db.store().revision();
            }
        }
        db.close().expect("a close");
        let mut world = Self { disk, between, pending_percent, truth: Answers::new() };
        let db = world.open(&world.disk, None).expect("it is whole");
        assert!(db.checkpoint_stats().cache.misses > 0 && db.store().applied().0 > KEYS);
        world.truth = world.ask(&db);
        drop(db);
        let whole =
            |(what, answer): &(String, Result<String, Error>)| assert!(answer.is_ok(), "{what}: {answer:?}");
        world.truth.iter().for_each(whole);
        world
    }

    fn open(&self, disk: &SimDisk, ahead_seed: Option<u64>) -> Result<SimulatedDb, Error> {
        SimulatedDb::open(disk, &options(ahead_seed, self.pending_percent), 3)
    }

    /// Answers to ranges of all kinds, in this order: what one has met is known to the next.
    fn ask(&self, db: &SimulatedDb) -> Answers {
        let store = db.store();
        let all = KeyRange { key: key(0), end: Bytes::from_static(b"l") };
        let between = |from: u64, to: u64| KeyRange { key: key(from), end: key(to) };
        let answers = [
            ("a limit", range(store, between(40, 390), 0, 70, false)),
            ("down with a limit", scan_down(store, 90, false)),
            ("keys", range(store, all.clone(), 0, 0, true)),
            ("keys down", scan_down(store, usize::MAX, true)),
            ("all", range(store, all.clone(), 0, 0, false)),
            ("all down", scan_down(store, usize::MAX, false)),
            ("all before", range(store, all, self.between, 0, false)),
            ("the first", range(store, between(0, 60), 0, 0, false)),
            ("pages down", pages(db.latest().range::<&[u8]>(..).reversed())),
            ("pages up", pages(db.latest().range::<&[u8]>(..))),
        ];
        answers.into_iter().map(|(what, answer)| (what.to_string(), answer)).collect()
    }

    /// Blocks of the files that hold pages or records.
    fn blocks(&self, extension: &str) -> Vec<(String, u64)> {
        let names = self.disk.files().into_iter().map(|path| path.display().to_string());
        let names = names.filter(|name| name.ends_with(extension));
        let blocks = |name: String| {
            let bytes = self.disk.read_file(&name).map_or(0, |bytes| bytes.len());
            (0..(bytes / BLOCK) as u64).map(move |block| (name.clone(), block))
        };
        names.flat_map(blocks).collect()
    }

    /// The same questions over the same damage, reading ahead or not: answers, and the places that are known to be damaged then.
    fn compare(&self, damage: &dyn Fn(&SimDisk), seeds: &[u64], story: &str, reached: &mut Reached) {
        let run = |ahead_seed| {
            let disk = self.disk.duplicate(1);
            damage(&disk);
            let db = self.open(&disk, ahead_seed)?;
            let answers = self.ask(&db);
            let stats = db.checkpoint_stats();
            Ok::<_, Error>((
                answers,
                db.store().quarantine(),
                stats.leaves_read_ahead,
                stats.pieces_read_at_once,
            ))
        };
        let expected = run(None);
        for &seed in seeds {
            let found = run(Some(seed));
            let (expected, found) = match (&expected, found) {
                (Ok(expected), Ok(found)) => (expected, found),
                (Err(expected), found) => {
                    let found = found.map(|(answers, ..)| answers);
                    let found = found.err().map(|error| error.to_string());
                    assert_eq!(found, Some(expected.to_string()), "{story}, seed {seed}");
                    reached.unopened += 1;
                    continue;
                }
                (Ok(_), Err(error)) => panic!("{story}, seed {seed}: it does not open: {error}"),
            };
            for ((what, found), ((_, expected), (_, truth))) in
                found.0.iter().zip(expected.0.iter().zip(&self.truth))
            {
                assert!(
                    words(found) == words(expected),
                    "{story}, seed {seed}, {what}:\n   found {found:.300?}\nexpected {expected:.300?}"
                );
                match found {
                    Ok(_) => {
                        assert!(
                            words(found) == words(truth),
                            "{story}, seed {seed}, {what}: a wrong answer {found:.300?}"
                        );
                        reached.answers += 1;
                    }
                    Err(Error::Corruption { .. } | Error::Io(_)) => reached.errors += 1,
                    Err(error) => panic!("{story}, seed {seed}, {what}: damage is not told as such: {error}"),
                }
            }
            reached.repaired += repaired(&found.1);
            reached.leaves += found.2;
            reached.pieces += found.3;
            // A hint notes nothing. Of values, those behind the first that cannot be read may have been met too.
            let pages = |stats: &QuarantineStats| -> Vec<_> {
                stats.units.iter().filter(|unit| unit.file.ends_with(".k")).cloned().collect()
            };
            assert_eq!(pages(&found.1), pages(&expected.1), "{story}, seed {seed}");
        }
    }
}

fn range(
    store: &Store,
    range: KeyRange,
    revision: i64,
    limit: i64,
    keys_only: bool,
) -> Result<String, Error> {
    let asked = Range { range, revision, limit, keys_only, ..Range::default() };
    Ok(text(&store.range(&asked)?.kvs))
}

fn scan_down(store: &Store, limit: usize, keys_only: bool) -> Result<String, Error> {
    let (lower, revision) = (key(20), store.revision());
    let scan = Scan { lower, upper: Some(key(380)), revision, reverse: true, limit, keys_only };
    Ok(text(&store.scan(&scan)?))
}

fn text(kvs: &[KeyValue]) -> String {
    let of = |kv: &KeyValue| {
        let sum = sternpost_engine::base::checksum::crc32(&kv.value);
        format!("{} {} {} {sum:x}; ", kv.key.escape_ascii(), kv.mod_revision, kv.version)
    };
    kvs.iter().map(of).collect()
}

/// What an answer or error says.
fn words(answer: &Result<String, Error>) -> Result<&str, String> {
    answer.as_deref().map_err(ToString::to_string)
}

fn pages(reader: sternpost_engine::RangeReader) -> Result<String, Error> {
    Ok(text(&reader.collect::<Result<Vec<_>, _>>()?))
}

fn repaired(stats: &QuarantineStats) -> usize {
    stats.units.iter().filter(|unit| unit.is_repaired).count()
}

/// What the runs came by.
#[derive(Debug, Default)]
struct Reached {
    answers: usize,
    errors: usize,
    repaired: usize,
    unopened: usize,
    leaves: u64,
    pieces: u64,
}

/// What happens to a block.
fn damage_of(kind: usize, at: &(String, u64), bit: u64, other: &[u8]) -> impl Fn(&SimDisk) + use<> {
    let ((name, block), other) = (at.clone(), other.to_vec());
    let offset = block * BLOCK as u64;
    move |disk| {
        assert!(match kind {
            0 => disk.lose_block(&name, block),
            1 => disk.flip_bit(&name, offset + bit / 8 % BLOCK as u64, (bit % 8) as u8),
            2 => disk.damage(&name, offset, &[0; BLOCK]),
            _ => disk.damage(&name, offset, &other),
        });
    }
}

#[test]
fn one_damaged_block_is_the_same_answer_or_error_as_without_reading_ahead() {
    let mut reached = Reached::default();
    for pending_percent in [0, 100] {
        let world = World::new(pending_percent);
        let mut whole = Reached::default();
        world.compare(&|_| {}, &[0, 1, 2, 3], "nothing is wrong", &mut whole);
        assert!(whole.errors == 0 && whole.leaves > 200 && whole.pieces > 40, "{whole:?}");
        let mut rng = Rng::new(5);
        for extension in [".k", ".r"] {
            let blocks = world.blocks(extension);
            assert!(blocks.len() > 15, "{} {extension}", blocks.len());
            for (number, at) in blocks.iter().enumerate() {
                let (name, block) = &blocks[rng.below(blocks.len() as u64) as usize];
                let content = world.disk.read_file(name).expect("a file");
                let other = &content[*block as usize * BLOCK..][..BLOCK];
                let damage = damage_of(number % 4, at, rng.next_u64(), other);
                let story = format!("pending {pending_percent}, {at:?}, kind {}", number % 4);
                world.compare(&damage, &[0, 1 + rng.below(1_000)], &story, &mut reached);
            }
        }
    }
    println!("{reached:?}");
    assert!(reached.answers > 1_000 && reached.errors > 100 && reached.repaired > 30, "{reached:?}");
}

/// A leaf that cannot be made again, because a record of one of its keys is damaged too; a record behind one that can be read.
#[test]
fn two_damaged_blocks_are_the_same_answer_or_error_as_without_reading_ahead() {
    let mut reached = Reached::default();
    let world = World::new(50);
    let (pages, records) = (world.blocks(".k"), world.blocks(".r"));
    let mut rng = Rng::new(6);
    for number in 0..120 {
        let mut pick = |blocks: &[(String, u64)]| blocks[rng.below(blocks.len() as u64) as usize].clone();
        let (one, other) = match number % 3 {
            0 => (pick(&records), pick(&records)),
            _ => (pick(&pages), pick(&records)),
        };
        let (kinds, bits) = ([0, 1].map(|_| rng.below(3) as usize), [0, 1].map(|_| rng.next_u64()));
        let first = damage_of(kinds[0], &one, bits[0], &[]);
        let second = damage_of(kinds[1], &other, bits[1], &[]);
        let both = |disk: &SimDisk| {
            first(disk);
            second(disk);
        };
        let story = format!("{one:?} {}, {other:?} {}", kinds[0], kinds[1]);
        world.compare(&both, &[0, 1 + rng.below(1_000)], &story, &mut reached);
    }
    println!("{reached:?}");
    assert!(reached.answers > 500 && reached.errors > 100, "{reached:?}");
}

/// Faults that come and go meet other reads when something is read ahead. Each answer is right or an error, and once they are over and the disk was
/// looked through everything is as it was.
#[test]
fn faults_that_pass_leave_nothing_behind() {
    let mut counts = BTreeMap::new();
    for pending_percent in [0, 100] {
        let world = World::new(pending_percent);
        for seed in 1..60 {
            let disk = world.disk.duplicate(seed);
            let db = world.open(&disk, Some(seed)).expect("it is whole");
            let effects = [Effect::Fail, Effect::RottenRead { byte: seed as usize * 37, bit: 3 }];
            let mut rng = Rng::new(seed);
            let mut fault = || {
                let (nth, count) = (rng.below(150), 1 + rng.below(7));
                Fault {
                    count,
                    ..Fault::nth(OperationKind::Read, nth, effects[rng.below(2) as usize]).on("seg")
                }
            };
            disk.set_plan(FaultPlan::new((0..3).map(|_| fault())));
            for ((what, found), (_, truth)) in world.ask(&db).iter().zip(&world.truth) {
                let is_right = words(found) == words(truth);
                let is_told = matches!(found, Err(Error::Corruption { .. } | Error::Io(_)));
                assert!(is_right || is_told, "seed {seed}, {what}: {found:.300?}");
                *counts.entry(is_right).or_insert(0) += 1;
            }
            disk.set_plan(FaultPlan::default());
            assert_eq!(db.scrub().findings, 0, "seed {seed}");
            assert_eq!(db.store().quarantine().units, [], "seed {seed}");
            for ((what, found), (_, truth)) in world.ask(&db).iter().zip(&world.truth) {
                assert!(words(found) == words(truth), "seed {seed}, {what}: {found:.300?}");
            }
        }
    }
    println!("right or not: {counts:?}");
    assert!(counts[&true] > 500 && counts[&false] > 20, "{counts:?}");
}

/// A leaf that the device did not give when it was asked for ahead, and would have given when the range came to it, was refused then: a hint
/// made an error of what was none. A hint is nothing but a hint.
#[test]
fn what_fails_for_a_hint_alone_is_no_error_of_the_range() {
    let world = World::new(0);
    let keys = |db: &SimulatedDb| {
        let all = KeyRange { key: key(0), end: Bytes::from_static(b"l") };
        range(db.store(), all, 0, 0, true)
    };
    let whole = keys(&world.open(&world.disk, None).expect("it is whole")).expect("it is whole");
    let run = |nth, count| {
        let disk = world.disk.duplicate(1);
        let db = world.open(&disk, Some(0)).expect("it is whole");
        let fault = Fault::nth(OperationKind::Read, nth, Effect::Fail).on(".k");
        disk.set_plan(FaultPlan::new([Fault { count, ..fault }]));
        let found = keys(&db);
        (found, db.store().quarantine().findings_count)
    };
    // Whoever needs a page makes three attempts, and for a hint there is one.
    for nth in 0..40 {
        let (found, noted) = run(nth, 1);
        assert_eq!((found.expect("no read of its own failed"), noted), (whole.clone(), 0), "read {nth}");
    }
    // Three in a row are the end of a read that somebody needs, and most of these are of pages that nobody needs yet.
    let mut given_up = 0;
    for nth in 0..40 {
        let (found, noted) = run(nth, 3);
        match found {
            Ok(found) => assert_eq!(found, whole, "read {nth}"),
            Err(error) => assert!(noted > 0, "read {nth}: {error}"),
        }
        given_up += usize::from(noted > 0);
    }
    println!("{given_up} of 40 are given up");
    assert!((1..20).contains(&given_up), "{given_up} of 40");
}
