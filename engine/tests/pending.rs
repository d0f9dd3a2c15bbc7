//! Changes that wait for their leaf: what they spare, and which releases open a directory in which some do.
mod db_support;

use db_support::*;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointReport;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{DeleteRange, Put, StoreWriter};
use sternpost_engine::{Bytes, Options};

const KEYS: u64 = 3_000;

fn small(pending_percent_max: u32) -> Options {
    let mut options = Options::new().memtable_bytes(12 << 10).cache_bytes(1 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 4096;
    options.checkpoint.shelf.segment_bytes = 256 << 10;
    options.checkpoint.rest_wal_bytes_max = 0;
    options.checkpoint.pending_percent_max = pending_percent_max;
    options
}

fn key_of(number: u64) -> Bytes {
    // "key" is what `ask` counts.
    Bytes::from(format!("key/{:08}", number.wrapping_mul(0x9E37_79B9) % 100_000_000))
}

fn put(number: u64, byte: u8) -> LogOperation {
    LogOperation::Put(Put { key: key_of(number), value: vec![byte; 80].into(), ..Put::default() })
}

fn write_all(db: &mut SimulatedDb, model: &mut StoreWriter, operations: &[LogOperation]) {
    for operation in operations {
        write(db, operation).expect("no fault was planned");
        apply(model, operation);
    }
}

fn load() -> Vec<LogOperation> {
    (0..KEYS).map(|number| put(number, 1)).collect()
}

/// Puts of keys far apart, and a delete now and then.
fn scattered(seed: u64, count: u64) -> Vec<LogOperation> {
    let mut rng = Rng::new(seed);
    let operation = |number: u64| match rng.below(20) {
        0 => {
            let range = one(key_of(rng.below(KEYS)));
            LogOperation::DeleteRange(DeleteRange { range, prev_kv: false })
        }
        _ => put(rng.below(KEYS), number as u8),
    };
    (0..count).map(operation).collect()
}

/// Version in the first copy of the superblock.
fn super_version(disk: &SimDisk) -> u32 {
    let bytes = disk.read_file("super").expect("a superblock");
    u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
}

/// What checkpoints of scattered changes write.
fn totals_of(pending_percent_max: u32) -> CheckpointReport {
    let options = small(pending_percent_max);
    let mut db = SimulatedDb::open(&SimDisk::new(1), &options, 1).expect("a new disk opens");
    let (_, mut model) = StoreWriter::new(Options::new().store);
    write_all(&mut db, &mut model, &load());
    let before = db.checkpoint_stats().totals;
    write_all(&mut db, &mut model, &scattered(5, 4_000));
    let after = db.checkpoint_stats().totals;
    assert_same(&dump(db.store()), &dump(model.store()), &format!("{pending_percent_max} %"));
    db.verify().expect("it is whole");
    CheckpointReport {
        records_written: after.records_written - before.records_written,
        key_page_bytes: after.key_page_bytes - before.key_page_bytes,
        pending_page_bytes: after.pending_page_bytes - before.pending_page_bytes,
        changes_waiting: after.changes_waiting - before.changes_waiting,
        changes_pushed: after.changes_pushed - before.changes_pushed,
        ..CheckpointReport::default()
    }
}

#[test]
fn scattered_changes_are_collected_before_their_leaves_are_written() {
    let (without, with) = (totals_of(0), totals_of(25));
    println!("{without:?}\n{with:?}");
    assert_eq!((without.pending_page_bytes, without.changes_waiting), (0, 0));
    assert!(with.changes_waiting > 2_000 && with.changes_pushed > 1_000, "{with:?}");
    let bytes = |sum: &CheckpointReport| sum.key_page_bytes + sum.pending_page_bytes;
    assert!(bytes(&with) * 2 < bytes(&without), "{with:?} {without:?}");
}

/// A directory of a release before is one in which nothing waits, and no key was made anew (`tests/older_versions.rs`). It is opened, something waits, and those releases refuse it; then
/// nothing is to wait any more, every leaf is written once, and they would open it again.
#[test]
fn a_directory_becomes_one_with_changes_that_wait_and_is_none_again() {
    let disk = SimDisk::new(3);
    let (_, mut model) = StoreWriter::new(Options::new().store);
    let puts = |seed, count| -> Vec<LogOperation> {
        let all = scattered(seed, count).into_iter();
        all.filter(|operation| matches!(operation, LogOperation::Put(_))).collect()
    };
    let mut run = |percent: u32, operations: &[LogOperation]| {
        let mut db = SimulatedDb::open(&disk, &small(percent), 1).expect("it opens");
        write_all(&mut db, &mut model, operations);
        assert_same(&dump(db.store()), &dump(model.store()), &format!("{percent} %"));
        db.close().expect("a close");
        super_version(&disk)
    };
    assert!([2, 3].contains(&run(0, &load())));
    assert_eq!(run(25, &puts(7, 300)), 4);
    assert_eq!(run(0, &puts(8, 20)), 4, "leaves in which nothing changed keep what waits for them");
    assert!([2, 3].contains(&run(0, &load())), "each leaf was written");
}
