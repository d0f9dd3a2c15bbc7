//! The same operations under other sizes of pages, memtables, caches and segments, with more or less or nothing pending, at other moments of checkpoints, power
//! cuts and reopenings, give the same bytes: all keys at all retained revisions, events, and what HashKV runs over.
//!
//! The first way of each seed is a store without a disk. `cargo test` runs a share; `STERNPOST_SEEDS=200` runs so many seeds with
//! twice as many ways, `STERNPOST_SEED_FIRST=n` starts elsewhere.
//!
//! Compression is no option but a feature of the build: the digests of some seeds stand here, so that a build without
//! `zstd` (`--no-default-features`) must give the same.
mod db_support;

use db_support::*;
use std::collections::VecDeque;
use std::time::Duration;
use sternpost_engine::base::checksum::{crc32, crc32_seeded};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::PlantedBug;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{Put, Range, Store, StoreWriter, TxnOperation};
use sternpost_engine::{DurabilityLevel, Options};

const OPERATIONS_PER_SEED: usize = 330;
const SEEDS_DEFAULT: u64 = 6;
const WAYS_DEFAULT: u64 = 5;
/// Dumps are compared after so many parts of the operations.
const PARTS: usize = 3;

/// The first seeds, and the CRC-32 of their dumps. They change when the operations or the dump do, never with an option or feature.
const DIGESTS: [u32; 3] = [0x438d_a6a1, 0x9bc5_94b9, 0xdd38_77dc];

/// Version of the superblock from which on cells may name stations (`docs/data_file.md`).
const STATIONS_FORMAT: u8 = 5;

/// What the ways reached, so that it is known that they do.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    checkpoints: u64,
    records_killed: u64,
    records_cleaned: u64,
    changes_waiting: u64,
    changes_pushed: u64,
    power_cuts: u64,
    compressed_records: u64,
    dictionaries: u64,
    /// Runs at whose end cells name stations.
    stations: u64,
    /// Records read on the way to older versions.
    versions_read: u64,
    leaves_ahead: u64,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.checkpoints += other.checkpoints;
        self.records_killed += other.records_killed;
        self.records_cleaned += other.records_cleaned;
        self.changes_waiting += other.changes_waiting;
        self.changes_pushed += other.changes_pushed;
        self.power_cuts += other.power_cuts;
        self.compressed_records += other.compressed_records;
        self.dictionaries += other.dictionaries;
        self.stations += other.stations;
        self.versions_read += other.versions_read;
        self.leaves_ahead += other.leaves_ahead;
    }
}

/// Objects as there are many, so that dictionaries are made of them. Every other put is of one of two keys that nothing deletes, so that they have
/// versions enough for stations; in odd seeds few compactions are left, so that those stay named.
fn operations_of(seed: u64) -> Vec<LogOperation> {
    let mut rng = Rng::new(seed);
    let mut all = operations(&mut rng, OPERATIONS_PER_SEED);
    if seed % 2 == 1 {
        all.retain(|operation| !matches!(operation, LogOperation::Compact(_)) || rng.chance(1, 10));
    }
    for operation in &mut all {
        if let LogOperation::Put(put) = operation
            && rng.chance(1, 2)
        {
            put.key = format!("hot{}", rng.below(2)).into();
            put.lease = 0;
        }
    }
    let mut enrich = |put: &mut Put| {
        if rng.chance(3, 4) {
            let text = format!(
                "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{:x}\",\"namespace\":\"default\",\"labels\":{{\"app\":\
                 \"web\"}}}},\"spec\":{{\"nodeName\":\"node-{}\",\"restartPolicy\":\"Always\"}}}}",
                rng.next_u64(),
                rng.below(50)
            );
            put.value = text.into();
        }
    };
    for operation in &mut all {
        match operation {
            LogOperation::Put(put) => enrich(put),
            LogOperation::Txn(txn) => {
                for operation in txn.success.iter_mut().chain(&mut txn.failure) {
                    if let TxnOperation::Put(put) = operation {
                        enrich(put);
                    }
                }
            }
            _ => {}
        }
    }
    all
}

/// Everything that a store can be asked, as bytes.
fn dump_bytes(store: &Store) -> Vec<u8> {
    let mut out = Vec::new();
    let (head, oldest) = (store.revision(), store.compact_revision().max(1));
    let number = |out: &mut Vec<u8>, number: i64| out.extend_from_slice(&number.to_le_bytes());
    let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        match bytes.len() {
            0..=600 => out.extend_from_slice(bytes),
            _ => out.extend_from_slice(&crc32(bytes).to_le_bytes()),
        }
    };
    number(&mut out, head);
    number(&mut out, store.compact_revision());
    // All revisions, or about a hundred of many.
    let step = 1 + usize::try_from(head - oldest).unwrap_or(0) / 100;
    for revision in (oldest..=head).rev().step_by(step) {
        let outcome =
            store.range(&Range { range: all(), revision, ..Range::default() }).expect("it is whole");
        number(&mut out, outcome.count);
        for kv in &outcome.kvs {
            bytes(&mut out, &kv.key);
            for it in [kv.mod_revision, kv.create_revision, kv.version, kv.lease] {
                number(&mut out, it);
            }
            bytes(&mut out, &kv.value);
        }
    }
    for revision in [oldest, oldest.midpoint(head), head] {
        out.extend_from_slice(&hash_kv(store, revision).to_le_bytes());
    }
    for (what, answer) in dump(store) {
        bytes(&mut out, what.as_bytes());
        bytes(&mut out, answer.as_bytes());
    }
    out
}

/// A checksum over the records that etcd's HashKV is made of, in its order (`server/src/request/kv_hash.rs` has the rule and
/// etcd's own encoding of them).
fn hash_kv(store: &Store, revision: i64) -> u32 {
    let compacted = store.compact_revision();
    let (mut kept, mut whole, mut is_alive) = (0, 0, false);
    let add = |hash: &mut u32, bytes: &[u8]| *hash = crc32_seeded(*hash, bytes);
    let seen = store.for_each_retained(revision, &mut |record| {
        is_alive |= record.visible;
        if record.tombstone && record.revision.main == compacted {
            return;
        }
        let numbers =
            [record.revision.main, record.revision.sub, record.create_revision, record.version, record.lease];
        let mut bytes: Vec<u8> = numbers.into_iter().flat_map(i64::to_be_bytes).collect();
        bytes.extend_from_slice(record.key);
        bytes.extend_from_slice(record.value);
        if record.revision.main > compacted || record.visible {
            add(&mut kept, &bytes);
        }
        add(&mut whole, &bytes);
    });
    assert_eq!(seen, Ok(compacted));
    if is_alive { kept } else { whole }
}

/// One way to run the operations.
struct Way {
    options: Options,
    seed: u64,
    /// Most writes in flight at once.
    in_flight_max: u64,
    /// One part of the operations in so many ends with a new start.
    restart: u64,
}

impl Way {
    fn new(seed: u64, number: u64) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(1_000) + number);
        let mut options = options(rng.next_u64());
        let mut pick = |sizes: [u64; 4]| sizes[rng.below(4) as usize];
        options.store.memtable_bytes = pick([1 << 10, 6 << 10, 60 << 10, 1 << 20]) as usize;
        options.checkpoint.wal_bytes_max = pick([8 << 10, 40 << 10, 200 << 10, 1 << 30]);
        options.checkpoint.shelf.page_bytes = pick([200, 512, 4096, 64 << 10]) as usize;
        options.checkpoint.shelf.segment_bytes = pick([8 << 10, 32 << 10, 128 << 10, 64 << 20]);
        options.checkpoint.shelf.cache_bytes = pick([0, 16 << 10, 256 << 10, 64 << 20]) as usize;
        options.checkpoint.dictionary_records_min = pick([64, 64, 128, 4096]) as usize;
        options.checkpoint.shelf.range_ahead_bytes = pick([0, 1, 8 << 10, 1 << 20]);
        // Nothing ahead, all at once, as it comes.
        options.checkpoint.shelf.ahead_seed = [None, Some(0), Some(1 + seed)][pick([0, 1, 2, 2]) as usize];
        options.log.groups_in_flight_max = pick([1, 2, 3, 4]) as usize;
        options.durability = match rng.below(4) {
            0 => DurabilityLevel::Manual,
            1 => DurabilityLevel::Interval(Duration::from_millis(2)),
            _ => DurabilityLevel::Group,
        };
        // Nothing ever waits, a few changes of each leaf, nearly everything.
        options.checkpoint.pending_percent_max = [0, 25, 200, 1_000][(seed + number) as usize % 4];
        Self {
            options,
            seed: seed ^ number << 32,
            in_flight_max: 1 + rng.below(8),
            restart: 20 + rng.below(180),
        }
    }

    /// Runs the operations; a dump behind each part.
    fn run(&self, operations: &[LogOperation]) -> (Vec<Vec<u8>>, Reached) {
        let mut rng = Rng::new(self.seed);
        let (mut reached, mut dumps) = (Reached::default(), Vec::new());
        let mut disk = SimDisk::new(self.seed);
        let mut db = SimulatedDb::open(&disk, &self.options, self.seed).expect("a new disk opens");
        for part in operations.chunks(operations.len().div_ceil(PARTS)) {
            for some in part.chunks(self.restart as usize) {
                self.write_all(&mut db, some, &mut rng);
                if rng.chance(1, 2) {
                    reached += of(&db);
                    reached += compression(&disk);
                    (disk, db) = self.restart(disk, db, &mut rng);
                    reached.power_cuts += 1;
                }
            }
            dumps.push(dump_bytes(db.store()));
            db.verify().expect("a sound disk verifies");
        }
        reached += of(&db);
        reached += compression(&disk);
        let format = disk.read_file("super").map_or(0, |bytes| bytes[8]);
        reached.stations += u64::from(format >= STATIONS_FORMAT);
        (dumps, reached)
    }

    fn write_all(&self, db: &mut SimulatedDb, operations: &[LogOperation], rng: &mut Rng) {
        let mut left = operations.iter();
        let mut waiting = VecDeque::new();
        for round in 0.. {
            let room = (1 + rng.below(self.in_flight_max) as usize).saturating_sub(waiting.len());
            waiting.extend(left.by_ref().take(room).map(|operation| db.write(operation)));
            if waiting.is_empty() {
                return;
            }
            db.step(1_000);
            while let Some(answer) = waiting.front_mut().and_then(poll_once) {
                assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
                waiting.pop_front();
            }
            assert!(round < 1_000_000, "a write is not answered: {:?}", db.checkpoint_stats());
        }
    }

    /// A close, or a power cut where everything that was answered is durable.
    fn restart(&self, disk: SimDisk, db: SimulatedDb, rng: &mut Rng) -> (SimDisk, SimulatedDb) {
        if self.options.durability != DurabilityLevel::Group || rng.chance(1, 3) {
            db.close().expect("a close");
        } else {
            drop(db);
        }
        let policy = [CrashPolicy::KeepAll, CrashPolicy::DropAll, CrashPolicy::Random(rng.next_u64())];
        let disk = disk.crash(&policy[rng.below(3) as usize]);
        let db = SimulatedDb::open(&disk, &self.options, rng.next_u64()).expect("a sound disk opens");
        (disk, db)
    }
}

fn of(db: &SimulatedDb) -> Reached {
    let stats = db.checkpoint_stats();
    assert_eq!(stats.failing, None);
    Reached {
        checkpoints: stats.checkpoints_count,
        records_killed: stats.totals.records_killed,
        records_cleaned: stats.totals.records_cleaned,
        changes_waiting: stats.totals.changes_waiting,
        changes_pushed: stats.totals.changes_pushed,
        versions_read: stats.versions_read,
        leaves_ahead: stats.leaves_read_ahead,
        ..Reached::default()
    }
}

/// What the trailers of the r segments say that are there (`docs/data_file.md`).
fn compression(disk: &SimDisk) -> Reached {
    let mut reached = Reached::default();
    for path in disk.files().into_iter().filter(|path| path.extension().is_some_and(|it| it == "r")) {
        let file = disk.read_file(&path).unwrap_or_default();
        let Some((_, trailer)) = file.split_last_chunk::<4096>() else { continue };
        let field =
            |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
        if trailer.starts_with(b"STRNREVT") {
            reached.compressed_records += u64::from(field(40));
            reached.dictionaries += u64::from(field(120) > 0);
        }
    }
    reached
}

/// What a store without a disk says behind each part.
fn without_disk(operations: &[LogOperation]) -> Vec<Vec<u8>> {
    let (store, mut writer) = StoreWriter::new(Options::new().store);
    let parts = operations.chunks(operations.len().div_ceil(PARTS));
    let dump = |part: &[LogOperation]| {
        part.iter().for_each(|operation| apply(&mut writer, operation));
        dump_bytes(&store)
    };
    parts.map(dump).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// All ways of a seed.
fn check_seed(seed: u64, ways: u64, planted: Option<PlantedBug>) -> Reached {
    let operations = operations_of(seed);
    let expected = without_disk(&operations);
    let mut reached = Reached::default();
    for number in 0..ways {
        let mut way = Way::new(seed, number);
        way.options.checkpoint.planted = planted;
        let (found, more) = way.run(&operations);
        reached += more;
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
            assert!(
                found == expected,
                "seed {seed}, way {number}, part {part}: {} bytes, {} expected, different from byte {at:?} on: {:?}\n\
                 STERNPOST_SEED_FIRST={seed} STERNPOST_SEEDS=1 cargo test -p sternpost-engine --test metamorphic",
                found.len(),
                expected.len(),
                way.options
            );
        }
    }
    if let Some(digest) = DIGESTS.get(seed as usize).filter(|_| planted.is_none()) {
        let found = crc32(&expected.concat());
        assert_eq!(found, *digest, "seed {seed}: {found:#010x} is not what every build gives");
    }
    reached
}

#[test]
fn no_option_shows_in_an_answer() {
    let asked = number("STERNPOST_SEEDS");
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(0);
    let (seeds, ways) = asked.map_or((SEEDS_DEFAULT, WAYS_DEFAULT), |seeds| (seeds, 2 * WAYS_DEFAULT));
    let mut reached = Reached::default();
    for seed in first..first + seeds {
        reached += check_seed(seed, ways, None);
        if asked.is_some() {
            eprintln!("seed {seed}: {reached:?}");
        }
    }
    eprintln!("{seeds} seeds: {reached:?}");
    assert!(reached.checkpoints > 10 * seeds, "{reached:?}");
    assert!(reached.records_killed > 10 * seeds, "{reached:?}");
    assert!(reached.records_cleaned > seeds, "{reached:?}");
    assert!(reached.changes_waiting > 10 * seeds, "{reached:?}");
    assert!(reached.changes_pushed > 5 * seeds, "{reached:?}");
    assert!(reached.power_cuts > seeds, "{reached:?}");
    assert!(reached.stations > seeds, "{reached:?}");
    assert!(reached.versions_read > 100 * seeds, "{reached:?}");
    assert!(reached.leaves_ahead > 10 * seeds, "{reached:?}");
    if sternpost_engine::revision_log::COMPRESSION_IS_SUPPORTED {
        assert!(reached.compressed_records > 10 * seeds, "{reached:?}");
        assert!(reached.dictionaries > 0, "{reached:?}");
    } else {
        assert_eq!(reached.compressed_records, 0);
    }
}

/// A check that has never failed proves nothing: a bug that shows only where records are cleaned, leases are read from disk, or versions have stations,
/// is a difference between ways, or does not verify.
#[test]
fn a_bug_that_depends_on_an_option_is_found_out() {
    let bugs = [
        PlantedBug::ForgetReplaced,
        PlantedBug::KeepLeaseKeys,
        PlantedBug::YoungerCompaction,
        PlantedBug::DropPushed,
        PlantedBug::OlderPushed,
        PlantedBug::CountTwice,
        PlantedBug::StationElsewhere,
    ];
    let found = bugs.map(|bug| {
        (bug, (0..6).find(|&seed| std::panic::catch_unwind(|| check_seed(seed, 4, Some(bug))).is_err()))
    });
    eprintln!("{found:?}");
    assert!(found.iter().all(|(_, seed)| seed.is_some()), "{found:?}");
}
