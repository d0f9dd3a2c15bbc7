//! A database at rest, or closed, leaves the next opening little to replay and the disk few files of log.
use std::path::Path;
use std::time::Duration;
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::io::Io;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::Put;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::{Bytes, Db, DurabilityLevel, Options};

const VALUE_BYTES: usize = 1000;
const SEGMENT_BYTES: u64 = 64 << 10;

/// Nothing is cut because of its size: the memtable and the log may grow.
fn options() -> Options {
    let mut options = Options::new().durability(DurabilityLevel::Manual).calibrate(false);
    options.log.segment_bytes = Some(SEGMENT_BYTES);
    options.checkpoint.rest_us = 1_000;
    options.checkpoint.rest_wal_bytes_max = u64::MAX;
    options
}

fn fill(db: &Db, keys: u32) -> i64 {
    let mut revision = 0;
    for key in 0..keys {
        revision = db.put(format!("key{key}"), [7; VALUE_BYTES]).expect("a put");
    }
    db.sync().expect("a sync");
    revision
}

fn checkpoint_revision(directory: &Path) -> i64 {
    Inspection::open(directory).expect("it is intact").superblock().revision
}

fn checkpoints(db: &Db) -> CheckpointStats {
    db.stats().checkpoints.expect("it is open")
}

#[test]
fn a_close_leaves_nothing_to_replay_where_that_is_worth_a_checkpoint() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options();
    options.checkpoint.rest_us = u64::MAX;
    options.checkpoint.rest_wal_bytes_max = 100 * VALUE_BYTES as u64;
    let db = Db::open(directory.path(), options.clone()).expect("opens");
    let few = fill(&db, 50);
    assert_eq!(checkpoints(&db).checkpoints_count, 0);
    db.close().expect("a close");
    assert_eq!(checkpoint_revision(directory.path()), 1, "50 are replayed in no time");

    let db = Db::open(directory.path(), options.clone()).expect("opens");
    assert_eq!(db.stats().store.revision, few);
    let many = fill(&db, 300);
    assert_eq!(checkpoints(&db).checkpoints_count, 0);
    db.close().expect("a close");
    assert_eq!(checkpoint_revision(directory.path()), many);

    // The few before the close are counted with those after it: they are replayed together.
    let db = Db::open(directory.path(), options).expect("opens");
    assert_eq!(db.stats().store.revision, many);
    assert_eq!(db.get("key299").expect("a get").expect("a key").value, [7; VALUE_BYTES].as_slice());
    assert_eq!(db.get("key49").expect("a get").expect("a key").version, 2);
}

#[test]
fn at_rest_what_is_in_memory_is_written_and_the_log_gives_back_its_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options();
    options.checkpoint.rest_wal_bytes_max = 100 * VALUE_BYTES as u64;
    let db = Db::open(directory.path(), options).expect("opens");
    let revision = fill(&db, 3_000);
    while checkpoint_revision(directory.path()) != revision {
        std::thread::yield_now();
    }
    let log_files = || std::fs::read_dir(directory.path().join("wal")).expect("the log").count();
    // The current one, the one before if the last record was its last, the next one, and two spares; 3,000 records filled some 50.
    while log_files() > 5 {
        std::thread::yield_now();
    }
    let made = checkpoints(&db);
    assert!(made.checkpoints_count >= 1 && made.failing.is_none(), "{made:?}");
    assert_eq!(db.stats().store.revision, revision);
    assert_eq!(fill(&db, 10), revision + 10, "and writes go on");
}

#[test]
fn at_rest_nothing_keeps_the_thread_awake() {
    let levels = [
        DurabilityLevel::Group,
        DurabilityLevel::Manual,
        DurabilityLevel::Interval(Duration::from_millis(2)),
    ];
    for durability in levels {
        let disk = SimDisk::new(1);
        let mut options = Options::new().durability(durability);
        options.log.segment_bytes = Some(SEGMENT_BYTES);
        let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let _answer = db.write(&LogOperation::Put(Put { key, value, ..Put::default() }));
        let _synced = db.sync();
        let clock = disk.handle();
        let begun_us = clock.now_us();
        let mut rounds = 0;
        while clock.now_us() < begun_us + 60_000_000 {
            assert!(db.step(u64::MAX));
            rounds += 1;
            assert!(rounds < 300, "{durability:?}: awake after {} us", clock.now_us() - begun_us);
        }
        assert_eq!(db.wal_stats().groups_idle_count, 1, "{durability:?}: what is durable is promised");
    }
}

/// A run that waited for the log counted as a rest that begins anew at every look: with the shortest rests the owner woke every
/// microsecond, and a simulated one never let the device get on (seed 46 of `backup_crash.rs`, where a write was not answered in
/// 2,000 rounds). Now a checkpoint under way wakes nobody before its end.
#[test]
fn a_checkpoint_that_waits_for_the_log_keeps_nobody_awake() {
    let disk = SimDisk::new(1);
    let mut options = options().memtable_bytes(2 << 10);
    options.checkpoint.rest_us = 1;
    let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
    let mut rounds = 0;
    for number in 0..8 {
        // Each fills the memtable, and the fourth waits until the log of the first is durable.
        let (key, value) = (Bytes::from(format!("key{number}")), vec![number; 100_000].into());
        let mut answer = db.write(&LogOperation::Put(Put { key, value, ..Put::default() }));
        while is_pending(&mut answer) {
            assert!(db.step(1_000_000));
            rounds += 1;
            assert!(rounds < 1_000, "put {number} after {rounds} rounds: {:?}", db.checkpoint_stats());
        }
    }
    assert!(db.checkpoint_stats().checkpoints_count > 3, "{:?}", db.checkpoint_stats());
}

fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut context).is_pending()
}
