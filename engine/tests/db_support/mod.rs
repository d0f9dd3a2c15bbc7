//! What tests of the whole database over a simulated disk share: operations from a seed, and what a store answers, as text.
//!
//! What a list of operations must give is computed by the store alone, without a disk; the store is held against a naive
//! model in `model.rs`.
#![allow(dead_code, reason = "no test uses all of it")]
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{
    AnyLease, Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Range, Scan, Store,
    StoreWriter, SumWay, Txn, TxnOperation,
};
use sternpost_engine::{Bytes, Error, Options};

/// Sizes of a seed. Small ones, so that a run of 60 operations has checkpoints, rotations of the log and cleaning.
pub(crate) fn options(seed: u64) -> Options {
    let mut rng = Rng::new(seed ^ 0x0b71);
    let mut pick = |sizes: [u64; 3]| sizes[rng.below(3) as usize];
    let mut options = Options::new().memtable_bytes(pick([2 << 10, 8 << 10, 32 << 10]) as usize);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.wal_bytes_max = pick([12 << 10, 30 << 10, 100 << 10]);
    // Checkpoints at rest and at the end, in two runs of three.
    options.checkpoint.rest_us = pick([1, 2_000, 5_000_000]);
    options.checkpoint.rest_wal_bytes_max = pick([0, 6 << 10, 1 << 20]);
    options.checkpoint.sweep_changes_max = pick([1, 5, 1 << 18]) as usize;
    // So small that a few dozen keys have leaves for something to wait over.
    options.checkpoint.shelf.page_bytes = pick([160, 512, 16 << 10]) as usize;
    options.checkpoint.shelf.segment_bytes = pick([16 << 10, 64 << 10, 1 << 20]);
    options.checkpoint.shelf.cache_bytes = pick([0, 64 << 10, 8 << 20]) as usize;
    options.checkpoint.pending_percent_max = pick([25, 400, 1_000]) as u32;
    // Every other seed reads ahead, without threads.
    options.checkpoint.shelf.ahead_seed = (seed % 2 == 1).then_some(seed);
    options
}

pub(crate) const LEASES: std::ops::RangeInclusive<i64> = 1..=3;

fn key(rng: &mut Rng) -> Bytes {
    // A few keys that change all the time, and some that seldom do: what is left of old segments.
    let (name, count) = if rng.chance(1, 4) { ("rare", 50) } else { ("key", 8) };
    Bytes::from(format!("{name}{}", rng.below(count)))
}

pub(crate) fn one(key: Bytes) -> KeyRange {
    KeyRange { key, end: Bytes::new() }
}

pub(crate) fn all() -> KeyRange {
    KeyRange { key: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") }
}

fn put(rng: &mut Rng) -> Put {
    // Mostly small, sometimes more than a block, now and then more than a record of the log holds in one piece.
    let bytes = match rng.below(60) {
        0 => 600 << 10,
        1..6 => 9_000,
        _ => rng.below(300),
    };
    let lease = if rng.chance(1, 4) { 1 + rng.below(3) as i64 } else { 0 };
    Put { key: key(rng), value: vec![rng.next_u64() as u8; bytes as usize].into(), lease, ..Put::default() }
}

/// One operation behind a head of about `revision_guess`.
pub(crate) fn operation(rng: &mut Rng, revision_guess: i64) -> LogOperation {
    match rng.below(16) {
        0..8 => LogOperation::Put(put(rng)),
        8 => {
            let range = KeyRange { key: key(rng), end: key(rng) };
            LogOperation::DeleteRange(DeleteRange { range, prev_kv: false })
        }
        9 => LogOperation::DeleteRange(DeleteRange { range: one(key(rng)), prev_kv: true }),
        10 | 11 => LogOperation::Compact(revision_guess - rng.below(6) as i64),
        12 => LogOperation::DeleteLeaseKeys(1 + rng.below(3) as i64),
        13 => {
            let key = Bytes::from(format!("system{}", rng.below(6)));
            if rng.chance(1, 3) {
                LogOperation::SystemDelete(key)
            } else {
                LogOperation::SystemPut(key, vec![rng.next_u64() as u8; rng.below(400) as usize].into())
            }
        }
        _ => LogOperation::Txn(Txn {
            compares: vec![Compare {
                range: one(key(rng)),
                target: CompareTarget::Version(rng.below(3) as i64),
                result: CompareResult::Equal,
            }],
            success: vec![TxnOperation::Put(put(rng)), TxnOperation::Put(put(rng))],
            failure: vec![TxnOperation::DeleteRange(DeleteRange { range: one(key(rng)), prev_kv: false })],
        }),
    }
}

/// The operations of a seed.
pub(crate) fn operations(rng: &mut Rng, count: usize) -> Vec<LogOperation> {
    let mut operations: Vec<LogOperation> = Vec::new();
    let (_, mut writer) = StoreWriter::new(Options::new().store);
    for _ in 0..count {
        let next = operation(rng, writer.store().revision());
        apply(&mut writer, &next);
        operations.push(next);
    }
    operations
}

/// Applies an operation to a store without a disk; what it is refused with changes nothing.
pub(crate) fn apply(writer: &mut StoreWriter, operation: &LogOperation) {
    match operation {
        LogOperation::Put(put) => drop(writer.put(put, &AnyLease)),
        LogOperation::DeleteRange(delete) => drop(writer.delete_range(delete)),
        LogOperation::Txn(txn) => drop(writer.txn(txn, &AnyLease)),
        LogOperation::Compact(revision) => drop(writer.compact(*revision)),
        LogOperation::DeleteLeaseKeys(lease) => drop(writer.delete_lease_keys(*lease)),
        LogOperation::SystemPut(key, value) => writer.system_put(key.clone(), value.clone()),
        LogOperation::SystemDelete(key) => writer.system_delete(key),
    }
}

/// Answers of a store to all kinds of questions, each on its own: a question may fail and the next one not.
pub(crate) type Answers = Vec<(String, Result<String, Error>)>;

fn text(key: &[u8], main: i64, create: i64, version: i64, lease: i64, value: &[u8]) -> String {
    let (bytes, first, last) = (value.len(), value.first(), value.last());
    format!("{}@{main} {create} {version} {lease} {bytes}:{first:?}:{last:?}; ", key.escape_ascii())
}

/// Asks everything.
pub(crate) fn ask(store: &Store) -> Answers {
    let mut answers = Answers::new();
    let (head, compacted) = (store.revision(), store.compact_revision());
    let mut add = |what: String, answer: Result<String, Error>| answers.push((what, answer));
    add("positions".into(), Ok(format!("head {head}, compacted {compacted}")));
    add("retained".into(), retained(store));
    let oldest = compacted.max(1);
    for revision in [oldest, oldest.midpoint(head), head] {
        add(format!("range at {revision}"), range(store, revision));
        add(format!("count at {revision}"), count(store, revision));
        add(format!("sums at {revision}"), sums(store, revision));
    }
    add("backward".into(), backward(store, head));
    add(format!("events from {oldest}"), events(store, oldest));
    for lease in LEASES {
        add(format!("keys of lease {lease}"), Ok(format!("{:?}", store.lease_keys(lease))));
    }
    let system = store.system_scan(b"").into_iter();
    let system = system.map(|(key, value)| text(&key, 0, 0, 0, 0, &value)).collect();
    add("system records".into(), Ok(system));
    add("keys".into(), Ok(store.stats().keys_count.to_string()));
    answers
}

/// The retained records, one after the other.
fn retained(store: &Store) -> Result<String, Error> {
    let mut records = String::new();
    store.for_each_retained(store.revision(), &mut |record| {
        records += &format!("{} tombstone {} visible {} ", record.revision, record.tombstone, record.visible);
        let (create, version) = (record.create_revision, record.version);
        records += &text(record.key, record.revision.main, create, version, record.lease, record.value);
    })?;
    Ok(records)
}

fn range(store: &Store, revision: i64) -> Result<String, Error> {
    let outcome = store.range(&Range { range: all(), revision, ..Range::default() })?;
    let kvs = outcome.kvs.iter();
    let kvs = kvs
        .map(|kv| text(&kv.key, kv.mod_revision, kv.create_revision, kv.version, kv.lease, &kv.value))
        .collect::<String>();
    Ok(format!("{} {kvs}", outcome.count))
}

fn count(store: &Store, revision: i64) -> Result<String, Error> {
    let some = KeyRange { key: Bytes::from_static(b"key3"), end: Bytes::from_static(b"rare3") };
    let outcome = store.range(&Range { range: some, revision, count_only: true, ..Range::default() })?;
    Ok(outcome.count.to_string())
}

/// By what has changed: the range itself is too small to be worth it.
fn sums(store: &Store, revision: i64) -> Result<String, Error> {
    let some = KeyRange { key: Bytes::from_static(b"key3"), end: Bytes::from_static(b"rare3") };
    let sums = store.range_sums_by(&[all(), some], revision, SumWay::Changes)?;
    Ok(format!("{sums:?}"))
}

fn backward(store: &Store, revision: i64) -> Result<String, Error> {
    let lower = Bytes::from_static(b"\0");
    let scan = Scan { lower, upper: None, revision, reverse: true, limit: usize::MAX, keys_only: true };
    let kvs = store.scan(&scan)?;
    Ok(kvs.iter().map(|kv| text(&kv.key, kv.mod_revision, 0, kv.version, 0, &[])).collect())
}

fn events(store: &Store, from: i64) -> Result<String, Error> {
    let mut events = String::new();
    for event in store.events(from, usize::MAX, usize::MAX)?.events {
        let kv = &event.kv;
        events += &format!("{} {:?} ", event.revision, event.kind);
        events += &text(&kv.key, kv.mod_revision, kv.create_revision, kv.version, kv.lease, &kv.value);
        if let Some(kv) = store.previous(&event)? {
            events += "before ";
            events += &text(&kv.key, kv.mod_revision, kv.create_revision, kv.version, kv.lease, &kv.value);
        }
    }
    Ok(events)
}

/// What a store says when nothing is wrong with its disk.
pub(crate) type Dump = Vec<(String, String)>;

pub(crate) fn dump(store: &Store) -> Dump {
    let whole = |(what, answer): (String, Result<String, Error>)| {
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        (what, answer)
    };
    ask(store).into_iter().map(whole).collect()
}

/// Dumps of the store after each prefix of `operations`, from the empty one on.
pub(crate) fn expected(operations: &[LogOperation]) -> Vec<Dump> {
    let (store, mut writer) = StoreWriter::new(Options::new().store);
    let mut dumps = vec![dump(&store)];
    for operation in operations {
        apply(&mut writer, operation);
        dumps.push(dump(&store));
    }
    dumps
}

/// Panics with the first answer that differs.
pub(crate) fn assert_same(found: &Dump, expected: &Dump, story: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            found == expected,
            "{story}\n   found {}: {:.4000}\nexpected {}: {:.4000}",
            found.0,
            found.1,
            expected.0,
            expected.1
        );
    }
    assert_eq!(found.len(), expected.len(), "{story}");
}

pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// More rounds than this without an answer are a hang.
pub(crate) const ROUNDS_MAX: usize = 2_000;

/// Writes and waits for the answer.
///
/// # Panics
/// If there is none.
pub(crate) fn write(
    db: &mut SimulatedDb,
    operation: &LogOperation,
) -> Result<sternpost_engine::db::Answer, Error> {
    let mut future = db.write(operation);
    for _ in 0..ROUNDS_MAX {
        db.step(1_000_000);
        if let Some(answer) = poll_once(&mut future) {
            return answer;
        }
    }
    panic!("a write was not answered: {:?} {:?}", db.checkpoint_stats(), db.wal_stats());
}

/// True if the data model refuses the operation, on every replay alike.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Invalid(_) | Error::Compacted(_) | Error::FutureRevision(_))
}
