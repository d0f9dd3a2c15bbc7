//! Logical streams: out of a database, into another one, cut short, damaged, and in the wrong place.
//!
//! What comes out of an import is held against the store that was exported, revision by revision: keys, values, create and
//! mod revisions, versions, leases, events.
mod db_support;

use db_support::*;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{KeyValue, Put, Range, Store};
use sternpost_engine::{Bytes, Db, Error, Options};

/// A database in which the operations of a seed were written, `compacting` or not.
fn database(seed: u64, count: usize, compacting: bool) -> (SimulatedDb, Vec<LogOperation>) {
    let mut operations = operations(&mut Rng::new(seed), count);
    operations.retain(|operation| compacting || !matches!(operation, LogOperation::Compact(_)));
    let mut db = SimulatedDb::open(&SimDisk::new(seed), &options(seed), seed).expect("a new disk opens");
    for operation in &operations {
        let answer = write(&mut db, operation);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
    }
    (db, operations)
}

fn keys(store: &Store, revision: i64) -> Vec<KeyValue> {
    let range = Range { range: all(), revision, ..Range::default() };
    store.range(&range).unwrap_or_else(|error| panic!("revision {revision}: {error}")).kvs
}

fn events(store: &Store, from: i64) -> String {
    let batch = store.events(from, usize::MAX, usize::MAX).expect("events");
    let text = |event: &std::sync::Arc<_>| format!("{event:?} before {:?}", store.previous(event));
    batch.events.iter().map(text).collect()
}

/// Everything that can be asked from `from` on is the same.
fn assert_equal(found: &SimulatedDb, expected: &Store, from: i64, story: &str) {
    let store = found.store();
    for revision in from..=store.revision() {
        assert_eq!(keys(store, revision), keys(expected, revision), "{story}, at {revision}");
    }
    found.verify().unwrap_or_else(|error| panic!("{story}: {error}"));
}

fn import(disk: &SimDisk, seed: u64, stream: &[u8]) -> Result<i64, Error> {
    let report = SimulatedDb::import(disk, &options(seed), seed ^ 1, &mut &stream[..])?;
    Ok(report.revision)
}

fn open(disk: &SimDisk, seed: u64) -> SimulatedDb {
    SimulatedDb::open(disk, &options(seed), seed ^ 2).unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

#[test]
fn a_state_is_imported_with_its_revisions_and_goes_on() {
    for seed in 0..6 {
        let (source, _) = database(seed, 120, seed % 2 == 0);
        let (head, compacted) = (source.store().revision(), source.store().compact_revision().max(1));
        for revision in [compacted, compacted.midpoint(head), head] {
            let story = format!("seed {seed}, {revision} of {compacted} to {head}");
            let mut stream = Vec::new();
            let exported =
                source.export(Some(revision), &mut stream).unwrap_or_else(|error| panic!("{story}: {error}"));
            assert_eq!(exported.records_count as usize, keys(source.store(), revision).len(), "{story}");
            let disk = SimDisk::new(seed);
            assert_eq!(
                import(&disk, seed, &stream).unwrap_or_else(|error| panic!("{story}: {error}")),
                revision
            );
            let crashed = disk.crash(&CrashPolicy::DropAll);
            let mut imported = open(&crashed, seed);
            let (store, kvs) = (imported.store(), keys(source.store(), revision));
            assert_eq!((store.revision(), store.compact_revision()), (revision, revision), "{story}");
            assert_equal(&imported, source.store(), revision, &story);
            for lease in LEASES {
                let mut attached: Vec<_> =
                    kvs.iter().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
                attached.sort();
                assert_eq!(store.lease_keys(lease), attached, "{story}: lease {lease}");
            }
            assert_eq!(store.stats().keys_count, kvs.len() as u64, "{story}");
            // A second export of it is the first one but for the identity.
            let mut again = Vec::new();
            imported.export(None, &mut again).expect("an export");
            let records = |mut stream: &[u8]| {
                let mut records = Vec::new();
                let reader = sternpost_engine::export::StreamReader::new(&mut stream).expect("a header");
                reader
                    .read(&mut |record| {
                        records.push(format!("{record:?}"));
                        Ok(())
                    })
                    .map(|_| records)
                    .expect("a stream")
            };
            assert_eq!(records(&again), records(&stream), "{story}");
            for number in 1..=30 {
                let value = vec![number as u8; 2_000].into();
                let put = Put { key: Bytes::from_static(b"key1"), value, ..Put::default() };
                let answer = write(&mut imported, &LogOperation::Put(put)).expect("it takes writes");
                assert_eq!(answer.revision(), revision + number, "{story}");
            }
            imported.verify().unwrap_or_else(|error| panic!("{story}, gone on: {error}"));
        }
    }
}

#[test]
fn changes_are_imported_behind_a_state_with_every_revision_between() {
    for seed in 0..4 {
        let (source, operations) = database(seed, 30, false);
        let mut source = source;
        let disk = SimDisk::new(seed);
        let mut stream = Vec::new();
        source.export(None, &mut stream).expect("an export");
        let first = import(&disk, seed, &stream).expect("an import");
        drop(operations);
        let mut rng = Rng::new(seed ^ 77);
        for round in 0..3 {
            for _ in 0..40 {
                let next = operation(&mut rng, 1);
                if !matches!(next, LogOperation::Compact(_)) {
                    let answer = write(&mut source, &next);
                    assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
                }
            }
            let head = source.store().revision();
            let from = open(&disk, seed).store().revision();
            let mut stream = Vec::new();
            let exported = source.export_changes(from, None, &mut stream).expect("an export");
            assert_eq!((exported.from, exported.revision), (from, head));
            assert_eq!(import(&disk, seed, &stream).expect("an import"), head);
            let imported = open(&disk.crash(&CrashPolicy::DropAll), seed);
            let story = format!("seed {seed}, round {round}");
            assert_eq!(imported.store().revision(), head, "{story}");
            assert_equal(&imported, source.store(), first, &story);
            assert_eq!(events(imported.store(), first + 1), events(source.store(), first + 1), "{story}");
            for lease in LEASES {
                assert_eq!(imported.store().lease_keys(lease), source.store().lease_keys(lease), "{story}");
            }
            // Once more changes nothing.
            drop(imported);
            assert_eq!(import(&disk, seed, &stream).expect("it is there already"), head);
            assert_equal(&open(&disk, seed), source.store(), first, &story);
        }
    }
}

#[test]
fn an_import_cut_short_is_refused_or_goes_on_where_it_was() {
    let (mut partial, mut refused, mut whole) = (0, 0, 0);
    for seed in [1, 5] {
        let (mut source, _) = database(seed, 80, false);
        let mut state = Vec::new();
        source.export(None, &mut state).expect("an export");
        let first = source.store().revision();
        for number in 0..60 {
            let value = vec![number as u8; 1_500].into();
            let put = Put { key: Bytes::from(format!("key{}", number % 9)), value, ..Put::default() };
            write(&mut source, &LogOperation::Put(put)).expect("a write");
        }
        let mut changes = Vec::new();
        source.export_changes(first, None, &mut changes).expect("an export");
        let head = source.store().revision();
        let disk = SimDisk::new(seed);
        disk.record_images();
        import(&disk, seed, &state).expect("an import");
        for (step, image) in disk.take_images().iter().enumerate().step_by(3) {
            for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll, CrashPolicy::Random(step as u64)] {
                let crashed = image.crash(&policy);
                match SimulatedDb::open(&crashed, &options(seed), 3) {
                    Err(Error::Refused(what)) => {
                        assert!(what.contains("import.part is there"), "{what}");
                        refused += 1;
                    }
                    Err(error) => panic!("seed {seed}, step {step}, {policy:?}: {error}"),
                    // Before it began, or when it had ended.
                    Ok(db) if db.store().revision() == 1 => assert!(keys(db.store(), 1).is_empty()),
                    Ok(db) => {
                        assert_equal(
                            &db,
                            source.store(),
                            first,
                            &format!("seed {seed}, step {step}, {policy:?}"),
                        );
                        whole += 1;
                    }
                }
            }
        }
        disk.record_images();
        import(&disk, seed, &changes).expect("an import");
        for (step, image) in disk.take_images().iter().enumerate().step_by(7) {
            let crashed = image.crash(&CrashPolicy::Random(step as u64));
            let story = format!("seed {seed}, changes cut at step {step}");
            let db = open(&crashed, seed);
            let reached = db.store().revision();
            assert!((first..=head).contains(&reached), "{story}: {reached}");
            partial += usize::from(reached > first && reached < head);
            assert_equal(&db, source.store(), first, &story);
            drop(db);
            assert_eq!(
                import(&crashed, seed, &changes).unwrap_or_else(|error| panic!("{story}: {error}")),
                head
            );
            let db = open(&crashed, seed);
            assert_equal(&db, source.store(), first, &story);
            assert_eq!(events(db.store(), first + 1), events(source.store(), first + 1), "{story}");
        }
    }
    println!("{refused} refused, {whole} whole, {partial} on the way");
    assert!(refused > 20 && whole > 2 && partial > 2, "{refused} {whole} {partial}");
}

#[test]
fn a_stream_in_the_wrong_place_is_refused_and_changes_nothing() {
    let (mut source, _) = database(1, 60, false);
    let put =
        |key: &'static [u8]| LogOperation::Put(Put { key: key.into(), value: "x".into(), ..Put::default() });
    write(&mut source, &put(b"known")).expect("a write");
    let mut state = Vec::new();
    source.export(None, &mut state).expect("an export");
    let first = source.store().revision();
    for key in [b"known", b"known", b"known", b"fresh", b"fresh"] {
        write(&mut source, &put(key)).expect("a write");
    }
    let mut changes = Vec::new();
    source.export_changes(first + 2, None, &mut changes).expect("an export");
    let mut all = Vec::new();
    source.export_changes(first, None, &mut all).expect("an export");
    let words = |result: Result<i64, Error>| result.expect_err("it is the wrong place").to_string();
    let disk = SimDisk::new(1);
    assert!(words(import(&disk, 1, &changes)).contains("of another database"), "a new one");
    let disk = SimDisk::new(1);
    import(&disk, 1, &state).expect("an import");
    assert!(words(import(&disk, 1, &state)).contains("this one holds a database"));
    let found = words(import(&disk, 1, &changes));
    assert!(
        found.contains(&format!("follow revision {}", first + 2))
            && found.contains(&format!("is at {first}")),
        "{found}"
    );
    assert!(words(import(&disk, 1, &all[..all.len() - 1])).contains("ends here, before its end"));
    // Somebody has written to it: its revisions are others, of a key that it had and of one that came later.
    for written in [1, 4] {
        let disk = SimDisk::new(1);
        import(&disk, 1, &state).expect("an import");
        let mut db = open(&disk, 1);
        for _ in 0..written {
            write(&mut db, &put(b"another key")).expect("a write");
        }
        db.close().expect("a close");
        assert!(words(import(&disk, 1, &all)).contains("another history"));
        assert_eq!(open(&disk, 1).store().revision(), first + written, "nothing is changed");
    }
    // What is compacted cannot be exported any more.
    write(&mut source, &LogOperation::Compact(first + 3)).expect("a compaction");
    let mut sink = Vec::new();
    for from in [0, first + 2] {
        assert!(matches!(source.export_changes(from, None, &mut sink), Err(Error::Compacted(_))));
    }
    source.export_changes(first + 3, None, &mut sink).expect("from the compact revision on");
    assert!(matches!(source.export(Some(first + 2), &mut sink), Err(Error::Compacted(_))));
    assert!(matches!(source.export(Some(first + 9), &mut sink), Err(Error::FutureRevision(_))));
}

#[test]
fn real_directories_are_exported_beside_writers_and_imported() {
    let root = tempfile::tempdir().expect("a directory");
    let options = Options::new().memtable_bytes(128 << 10).calibrate(false);
    let source = Db::open(root.path().join("source"), options.clone()).expect("a database");
    for number in 0..2_000 {
        drop(source.put_async(format!("key{}", number % 300), vec![number as u8; 700]));
    }
    source.sync().expect("a sync");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut state, mut changes) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                source.put("beside", "writing").expect("a write");
            }
        });
        let first = source.export(None, &mut state, &mut |_| {}).expect("an export");
        source.put("after", "the first").expect("a write");
        source.export_changes(first.revision, None, &mut changes, &mut |_| {}).expect("an export");
        stop.store(true, std::sync::atomic::Ordering::Release);
    });
    let to = root.path().join("imported");
    let error = Db::import(&to, &options, &mut changes.as_slice(), &mut |_| {}).expect_err("there is none");
    assert!(error.to_string().contains("import a state first") && !to.exists(), "{error}");
    Db::import(&to, &options, &mut state.as_slice(), &mut |_| {}).expect("an import");
    let report = Db::import(&to, &options, &mut changes.as_slice(), &mut |_| {}).expect("an import");
    let imported = Db::open(&to, options.clone()).expect("it opens");
    assert_eq!(imported.latest().revision(), report.revision);
    let kvs = |db: &Db| -> Vec<KeyValue> {
        let snapshot = db.at(report.revision).expect("the revision");
        snapshot.range::<&[u8]>(..).map(|kv| kv.expect("a key")).collect()
    };
    assert_eq!(kvs(&imported), kvs(&source));
    assert!(kvs(&imported).iter().any(|kv| kv.key == "after"));
    imported.close().expect("a close");
    let error = Db::import(&to, &options, &mut state.as_slice(), &mut |_| {}).expect_err("it is not empty");
    assert!(error.to_string().contains("is not empty"), "{error}");
}
