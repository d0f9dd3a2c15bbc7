//! The thread of the checkpoints, of a database on real files: it ends with a broken invariant, or cannot write. Writes are
//! then refused with the reason, reads go on, and everything that was answered is there after the next opening.
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use sternpost_engine::checkpoint::PlantedBug;
use sternpost_engine::{Db, DurabilityLevel, Error, Options};

const VALUE_BYTES: usize = 1_000;
/// More writes than fit into memory by far.
const WRITES_MAX: u64 = 10_000;

fn options(level: DurabilityLevel) -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10).durability(level).calibrate(false);
    options.log.segment_bytes = Some(1 << 20);
    options
}

fn broken(level: DurabilityLevel) -> Options {
    let mut options = options(level);
    options.checkpoint.planted = Some(PlantedBug::BrokenInvariant);
    options
}

fn put(db: &Db, number: u64) -> Result<i64, Error> {
    db.put(format!("key{number:05}"), [number as u8; VALUE_BYTES])
}

/// Writes from `first` on until one is refused; how far it came, and why.
fn put_until_refused(db: &Db, first: u64) -> (u64, Error) {
    let refused = (first..first + WRITES_MAX).find_map(|number| Some((number, put(db, number).err()?)));
    refused.expect("memory has an end")
}

fn assert_holds(db: &Db, count: u64) {
    for number in 0..count {
        let found = db.get(format!("key{number:05}")).expect("a get");
        assert_eq!(found.expect("it was answered").value, [number as u8; VALUE_BYTES].as_slice(), "{number}");
    }
    assert_eq!(db.latest().revision(), 1 + count as i64);
}

/// Names of the files of segments.
fn segments(directory: &Path) -> BTreeSet<OsString> {
    let files = std::fs::read_dir(directory.join("seg")).expect("there was a checkpoint");
    files.map(|file| file.expect("a file").file_name()).collect()
}

/// A broken invariant in the thread left the owner to wait at first, and later to go on until memory was full. Now the next
/// write is refused, with the words of the invariant; what was answered before is there after the next opening.
#[test]
fn a_broken_invariant_in_a_checkpoint_refuses_writes_and_loses_nothing() {
    let long = Duration::from_secs(3_600);
    for level in [DurabilityLevel::Group, DurabilityLevel::Interval(long), DurabilityLevel::Manual] {
        let directory = tempfile::tempdir().expect("a directory");
        let db = Db::open(directory.path(), options(level)).expect("opens");
        for number in 0..300 {
            put(&db, number).expect("a put");
        }
        db.close().expect("a close");

        let whole = segments(directory.path());
        let db = Db::open(directory.path(), broken(level)).expect("opens");
        assert_holds(&db, 300);
        let (count, error) = put_until_refused(&db, 300);
        let words = error.to_string();
        assert!(words.contains("an invariant that was broken on purpose"), "{words}");
        assert!(words.contains("reopen"), "{words}");
        // For good, at whatever place of the queue, while everything else goes on.
        for number in 0..20 {
            assert_eq!(put(&db, number).expect_err("no write any more").to_string(), words);
        }
        assert_holds(&db, count);
        db.sync().expect("the log is as it was");
        let stats = db.stats().checkpoints.expect("it is open");
        assert_eq!(stats.failing.as_ref(), Some(&words), "{stats:?}");
        let left: BTreeSet<_> = segments(directory.path()).difference(&whole).cloned().collect();
        assert!(!left.is_empty(), "everything but the superblock was written");
        // At the lazy levels this is what makes the last writes durable.
        db.close().expect("what was answered becomes durable");

        let db = Db::open(directory.path(), options(level)).expect("opens again");
        assert!(segments(directory.path()).is_disjoint(&left), "what the broken checkpoint has left goes");
        assert_holds(&db, count);
        put(&db, count).expect("it goes on");
        db.close().expect("a close");
        let db = Db::open(directory.path(), options(level)).expect("opens again");
        assert_holds(&db, count + 1);
    }
}

/// The same when the process is gone without a close.
#[test]
fn what_was_answered_before_a_broken_invariant_survives_the_end_of_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let db = Db::open(directory.path(), broken(DurabilityLevel::Group)).expect("opens");
    let (count, _) = put_until_refused(&db, 0);
    // What a process that is killed now leaves.
    let copy = tempfile::tempdir().expect("a directory");
    copy_tree(directory.path(), copy.path());
    drop(db);
    let db = Db::open(copy.path(), options(DurabilityLevel::Group)).expect("opens again");
    assert_holds(&db, count);
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            std::fs::create_dir(&to).expect("a new directory");
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).expect("a copy");
        }
    }
}

/// The thread cannot write at all: a file stands where its directory should be. Memory fills, writes are refused with what the
/// system says, and are taken again when it writes.
#[test]
fn checkpoints_that_fail_refuse_writes_when_memory_is_full_and_go_on_by_themselves() {
    let directory = tempfile::tempdir().expect("a directory");
    let db = Db::open(directory.path(), options(DurabilityLevel::Group)).expect("opens");
    let blocked = directory.path().join("seg");
    std::fs::write(&blocked, "in the way").expect("a file");
    let (count, error) = put_until_refused(&db, 0);
    assert!(matches!(error, Error::Io(_)) && error.to_string().contains("seg"), "{error}");
    assert!(count >= 100, "what fits into memory is taken: {count}");
    assert_holds(&db, count);
    assert!(db.stats().checkpoints.expect("it is open").failing.is_some());
    std::fs::remove_file(&blocked).expect("it was in the way");
    while put(&db, count).is_err() {
        std::thread::yield_now();
    }
    assert_holds(&db, count + 1);
    db.close().expect("a close");
    let db = Db::open(directory.path(), options(DurabilityLevel::Group)).expect("opens again");
    assert_holds(&db, count + 1);
}
