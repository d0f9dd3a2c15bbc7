//! Damage is contained: a place that does not verify fails those reads that need it, is listed, and stops nothing else.
//!
//! The database has a log behind its checkpoint, so that a start replays writes over what is damaged.
mod db_support;

use db_support::*;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{DeleteRange, KeyRange, Put, Range, Store, StoreWriter, Txn, TxnOperation};
use sternpost_engine::{Bytes, Error, Options};

const BLOCK: usize = 4096;
const KEYS: u64 = 120;

fn small() -> Options {
    let mut options = Options::new().memtable_bytes(24 << 10).cache_bytes(0);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    // Much waits, so that there are pages of it.
    options.checkpoint.pending_percent_max = 200;
    options
}

fn key_of(number: u64) -> Bytes {
    Bytes::from(format!("key/{number:05}"))
}

/// Puts and deletes that ask for what was there before, alone and in transactions.
fn history(seed: u64, count: u64) -> Vec<LogOperation> {
    let mut rng = Rng::new(seed);
    let put = |rng: &mut Rng| {
        let mut value = vec![0; 100 + rng.below(300) as usize];
        rng.fill(&mut value);
        Put { key: key_of(rng.below(KEYS)), value: value.into(), prev_kv: rng.chance(1, 2), ..Put::default() }
    };
    let operation = |number: u64| match rng.below(12) {
        _ if number % 60 == 59 => LogOperation::Compact(number as i64 * 2 / 3),
        0 => {
            let range = KeyRange { key: key_of(rng.below(KEYS)), end: Bytes::new() };
            LogOperation::DeleteRange(DeleteRange { range, prev_kv: true })
        }
        1 => {
            let range = KeyRange { key: key_of(rng.below(KEYS)), end: Bytes::new() };
            let success = vec![
                TxnOperation::Range(Range { range, ..Range::default() }),
                TxnOperation::Put(put(&mut rng)),
            ];
            LogOperation::Txn(Txn { success, ..Txn::default() })
        }
        _ => LogOperation::Put(put(&mut rng)),
    };
    (0..count).map(operation).collect()
}

struct Whole {
    disk: SimDisk,
    operations: Vec<LogOperation>,
    store: Store,
}

fn model(operations: &[LogOperation]) -> Store {
    let (store, mut writer) = StoreWriter::new(Options::new().store);
    operations.iter().for_each(|operation| apply(&mut writer, operation));
    store
}

fn whole() -> Whole {
    whole_of(1)
}

fn whole_of(seed: u64) -> Whole {
    let disk = SimDisk::new(4);
    let operations = history(seed, 420);
    let mut db = SimulatedDb::open(&disk, &small(), 1).expect("a new disk opens");
    for operation in &operations {
        let answer = write(&mut db, operation);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
    }
    assert!(db.checkpoint_stats().checkpoints_count > 4);
    db.close().expect("a close");
    let store = model(&operations);
    Whole { disk, operations, store }
}

fn get(store: &Store, key: &Bytes) -> Result<String, Error> {
    let outcome = store.range(&Range { range: one(key.clone()), ..Range::default() })?;
    Ok(format!("{:?}", outcome.kvs))
}

/// Gets of all keys: how many fail. A wrong one is a failure of the test.
fn failing_gets(found: &Store, expected: &Store, story: &str) -> usize {
    let fails = |key: Bytes| match get(found, &key) {
        Ok(answer) => {
            assert_eq!(answer, get(expected, &key).expect("the model reads"), "{story}: {key:?}");
            false
        }
        Err(Error::Corruption { .. } | Error::Io(_)) => true,
        Err(error) => panic!("{story}: {key:?}: {error}"),
    };
    (0..KEYS).filter(|&number| fails(key_of(number))).count()
}

/// True if an operation was made, though its answer may lack a value.
fn is_made(answer: &Result<sternpost_engine::db::Answer, Error>) -> bool {
    answer.as_ref().err().is_none_or(|error| is_refusal(error) || matches!(error, Error::Unanswered(_)))
}

impl Whole {
    fn blocks(&self, extension: &str) -> Vec<(String, u64, Vec<u8>)> {
        let mut blocks = Vec::new();
        for path in self.disk.files() {
            let name = path.display().to_string();
            if name.ends_with(extension) {
                let bytes = self.disk.read_file(&path).expect("a file");
                let block =
                    |(number, bytes): (usize, &[u8])| (name.clone(), (number * BLOCK) as u64, bytes.to_vec());
                blocks.extend(bytes.chunks_exact(BLOCK).enumerate().map(block));
            }
        }
        blocks
    }
}

/// A put or a delete that asks for the value before once stopped the database when that was damaged, and no start got past it.
#[test]
fn a_damaged_block_of_records_stops_neither_a_start_nor_a_write() {
    let whole = whole();
    let more = history(9, 60);
    let all = [whole.operations.clone(), more.clone()].concat();
    let after = model(&all);
    let (mut failed, mut listed, mut unanswered) = (0, 0, 0);
    for (name, offset, _) in whole.blocks(".r") {
        let story = format!("{name} at {offset}");
        let disk = whole.disk.duplicate(1);
        assert!(disk.damage(&name, offset, &[0x77; BLOCK]));
        let mut db = SimulatedDb::open(&disk, &small(), 7).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(db.store().applied().0, whole.operations.len() as u64);
        let fails = failing_gets(db.store(), &whole.store, &story);
        failed += fails;
        let quarantine = db.store().quarantine();
        assert_eq!(quarantine.units.len(), db.store().stats().quarantined_count);
        if fails > 0 {
            assert!(
                quarantine.units.iter().any(|unit| unit.file == name && !unit.what.is_empty()),
                "{story}"
            );
        }
        listed += quarantine.units.len();
        for operation in &more {
            let answer = write(&mut db, operation);
            assert!(is_made(&answer), "{story}: {answer:?}");
            unanswered += usize::from(matches!(answer, Err(Error::Unanswered(_))));
        }
        failing_gets(db.store(), &after, &story);
        drop(db);
        // A second start meets all of it again.
        let db = SimulatedDb::open(&disk, &small(), 8).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(db.store().applied().0, all.len() as u64, "{story}");
        failing_gets(db.store(), &after, &story);
    }
    assert!(failed > 20 && listed > 20 && unanswered > 0, "{failed} {listed} {unanswered}");
}

/// A leaf says nothing that the records and what is pending do not say: no read and no write notices that it is lost, and the next
/// checkpoint writes it anew, while changes wait over it and when some of them are pushed down. The same is true of what is pending.
#[test]
fn a_damaged_leaf_is_made_again_from_the_records() {
    let (mut leaves, mut pending) = (0, 0);
    let wholes = [1, 2, 3].map(whole_of);
    // One history alone leaves few leaves of what waits.
    let blocks =
        wholes.iter().flat_map(|whole| whole.blocks(".k").into_iter().map(move |block| (whole, block)));
    for (whole, (name, offset, bytes)) in blocks {
        // Leaves of the key tree and of the pending tree; those that no tree refers to any more are read by nobody.
        let tree = bytes[6];
        if !(bytes.starts_with(b"STPG") && [1, 4].contains(&tree) && bytes[5] == 0) {
            continue;
        }
        let story = format!("tree {tree}, {name} at {offset}");
        let disk = whole.disk.duplicate(1);
        assert!(disk.damage(&name, offset, &[0; BLOCK]));
        let mut db = SimulatedDb::open(&disk, &small(), 7).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_eq!(failing_gets(db.store(), &whole.store, &story), 0, "{story}");
        assert_same(&dump(db.store()), &dump(&whole.store), &story);
        let units = db.store().quarantine().units;
        assert!(
            units.iter().all(|unit| unit.file == name && unit.offset == offset && unit.is_repaired),
            "{units:?}"
        );
        if units.is_empty() {
            continue;
        }
        *[&mut leaves, &mut pending][usize::from(tree == 4)] += 1;
        // A checkpoint writes it anew, and then nothing on disk is damaged.
        let before = db.checkpoint_stats().checkpoints_count;
        let mut operations = whole.operations.clone();
        let mut more = history(77, 400).into_iter();
        while db.checkpoint_stats().checkpoints_count < before + 1 {
            let operation = more.next().expect("a checkpoint comes");
            let answer = write(&mut db, &operation);
            assert!(answer.as_ref().err().is_none_or(is_refusal), "{story}: {answer:?}");
            operations.push(operation);
        }
        db.verify().unwrap_or_else(|error| panic!("{story}: {error}"));
        assert_same(&dump(db.store()), &dump(&model(&operations)), &story);
    }
    assert!(leaves > 5 && pending > 2, "{leaves} {pending}");
}

/// A leaf is believed only if the sums in its reference say that it is the one: here a record of it is lost too.
#[test]
fn a_leaf_of_which_a_record_is_lost_too_is_an_error_and_not_a_guess() {
    let whole = whole();
    let records = whole.blocks(".r");
    let leaf = |(_, _, bytes): &&(String, u64, Vec<u8>)| {
        bytes.starts_with(b"STPG") && [1, 4].contains(&bytes[6]) && bytes[5] == 0
    };
    let mut refused = 0;
    for (number, (name, offset, _)) in whole.blocks(".k").iter().filter(leaf).enumerate() {
        let disk = whole.disk.duplicate(1);
        assert!(disk.damage(name, *offset, &[0; BLOCK]));
        let (other, place, _) = &records[number % records.len()];
        assert!(disk.damage(other, *place, &[0; BLOCK]));
        let story = format!("{name} at {offset} and {other} at {place}");
        match SimulatedDb::open(&disk, &small(), 7) {
            Ok(db) => refused += usize::from(failing_gets(db.store(), &whole.store, &story) > 0),
            Err(Error::Corruption { file, .. }) => {
                assert!(file.starts_with("seg/"), "{story}: {file}");
                refused += 1;
            }
            Err(error) => panic!("{story}: {error}"),
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_missing_segment_of_records_fails_reads_of_its_values_alone() {
    let whole = whole();
    let mut names: Vec<_> = whole.blocks(".r").into_iter().map(|(name, ..)| name).collect();
    names.dedup();
    for name in names {
        let disk = whole.disk.duplicate(1);
        assert!(disk.remove_file(&name));
        let db = SimulatedDb::open(&disk, &small(), 7).unwrap_or_else(|error| panic!("{name}: {error}"));
        let fails = failing_gets(db.store(), &whole.store, &name);
        assert!(fails < KEYS as usize, "{name}");
        assert!(db.store().quarantine().units.iter().all(|unit| unit.file == name), "{name}");
        assert!(db.store().stats().quarantined_count > 0, "{name}");
    }
}

/// A device that fails to give a block is asked three times, and then not again: it may take seconds to say no.
#[test]
fn what_the_device_does_not_give_is_not_asked_for_again() {
    let whole = whole();
    let disk = whole.disk.duplicate(1);
    let db = SimulatedDb::open(&disk, &small(), 7).expect("it is whole");
    disk.add_fault(Fault::nth(OperationKind::Read, 0, Effect::Fail).on(".r").sticky());
    let failing = (0..KEYS).map(key_of).find(|key| get(db.store(), key).is_err()).expect("a value on disk");
    let findings = db.store().quarantine();
    assert!(findings.units.iter().all(|unit| unit.is_unreadable), "{findings:?}");
    // It would give it now.
    disk.set_plan(FaultPlan::default());
    assert!(matches!(get(db.store(), &failing), Err(Error::Io(_))));
}

/// A checkpoint that wanted to clean a segment with a damaged record once failed, again and again, until memory was full and nothing
/// was written any more. Such a segment stays where it is.
#[test]
fn a_damaged_record_does_not_stop_checkpoints() {
    let whole = whole();
    let more = history(77, 400);
    let after = model(&[whole.operations.clone(), more.clone()].concat());
    let mut damaged = 0;
    for (name, offset, _) in whole.blocks(".r") {
        let bytes = whole.disk.read_file(&name).expect("a file");
        let trailer = &bytes[bytes.len() - BLOCK..];
        let records_end = u64::from_le_bytes(trailer[88..96].try_into().expect("eight bytes"));
        if offset == 0 || offset >= records_end {
            continue;
        }
        damaged += 1;
        let story = format!("{name} at {offset}");
        let disk = whole.disk.duplicate(1);
        assert!(disk.damage(&name, offset, &[0x77; BLOCK]));
        let mut db = SimulatedDb::open(&disk, &small(), 7).unwrap_or_else(|error| panic!("{story}: {error}"));
        for operation in &more {
            let answer = write(&mut db, operation);
            assert!(is_made(&answer), "{story}: {answer:?}");
        }
        for _ in 0..20 {
            db.step(1_000_000);
        }
        let stats = db.checkpoint_stats();
        assert!(stats.failing.is_none() && stats.checkpoints_count > 3, "{story}: {stats:?}");
        failing_gets(db.store(), &after, &story);
    }
    assert!(damaged > 10, "{damaged}");
}
