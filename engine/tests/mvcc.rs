//! The data model, claim by claim, as etcd's clients know it. Random operations are in `model.rs`.
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::checkpoint::simulated::SimulatedCheckpoints;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::*;
use sternpost_engine::{Bytes, OperationError};

fn store() -> (Store, StoreWriter) {
    StoreWriter::new(StoreOptions::default())
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn key_range(key: &str, end: &str) -> KeyRange {
    KeyRange { key: bytes(key), end: bytes(end) }
}

fn put(key: &str, value: &str) -> Put {
    Put { key: bytes(key), value: bytes(value), ..Put::default() }
}

fn range(key: &str, end: &str) -> Range {
    Range { range: key_range(key, end), ..Range::default() }
}

fn delete(key: &str, end: &str) -> DeleteRange {
    DeleteRange { range: key_range(key, end), prev_kv: false }
}

fn do_put(writer: &mut StoreWriter, key: &str, value: &str) -> i64 {
    writer.put(&put(key, value), &AnyLease).expect("a plain put").revision
}

fn keys(outcome: &RangeOutcome) -> Vec<&str> {
    outcome.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).expect("keys of these tests are text")).collect()
}

fn kv(key: &str, value: &str, create_revision: i64, mod_revision: i64, version: i64) -> KeyValue {
    KeyValue { key: bytes(key), value: bytes(value), create_revision, mod_revision, version, lease: 0 }
}

fn events(store: &Store, start: i64) -> EventBatch {
    store.events(start, usize::MAX, usize::MAX).expect("the start is retained")
}

struct NoLease;

impl Leases for NoLease {
    fn exists(&self, _lease: i64) -> bool {
        false
    }
}

#[test]
fn a_new_store_is_at_revision_one_and_small() {
    let (store, writer) = store();
    assert_eq!((store.revision(), store.compact_revision(), store.applied()), (1, -1, (0, 0)));
    assert_eq!(store.range(&range("\0", "\0")), Ok(RangeOutcome { revision: 1, ..RangeOutcome::default() }));
    assert_eq!(events(writer.store(), 1).next_revision, 2);
    assert!(store.stats().arena_bytes < 4096);
}

#[test]
fn versions_count_up_and_start_again_after_a_delete() {
    let (store, mut writer) = store();
    assert_eq!(do_put(&mut writer, "k", "1"), 2);
    assert_eq!(do_put(&mut writer, "k", "2"), 3);
    let deleted = writer.delete_range(&delete("k", "")).expect("a plain delete");
    assert_eq!((deleted.revision, deleted.deleted), (4, 1));
    let nothing = writer.delete_range(&delete("k", "")).expect("a plain delete");
    assert_eq!((nothing.revision, nothing.deleted), (4, 0));
    assert_eq!(do_put(&mut writer, "k", ""), 5);
    let at = |revision| store.range(&Range { revision, ..range("k", "") }).expect("retained").kvs;
    assert_eq!(at(1), []);
    assert_eq!(at(2), [kv("k", "1", 2, 2, 1)]);
    assert_eq!(at(3), [kv("k", "2", 2, 3, 2)]);
    assert_eq!(at(4), []);
    assert_eq!(at(0), [kv("k", "", 5, 5, 1)]);
    assert_eq!(store.range(&Range { revision: 6, ..range("k", "") }), Err(OperationError::FutureRevision(5)));
}

#[test]
fn limit_count_more_and_orders() {
    let (store, mut writer) = store();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("d", "0")] {
        do_put(&mut writer, key, value);
    }
    let read = |range: Range| store.range(&range).expect("current");
    let limited = read(Range { limit: 2, ..range("a", "z") });
    assert_eq!((keys(&limited), limited.more, limited.count), (vec!["a", "b"], true, 4));
    let exact = read(Range { limit: 4, ..range("a", "z") });
    assert_eq!((exact.kvs.len(), exact.more), (4, false));
    let descending = Range { sort_order: SortOrder::Descend, limit: 1, ..range("a", "z") };
    assert_eq!(keys(&read(descending.clone())), ["d"]);
    let by_value = Range { sort_target: SortTarget::Value, ..descending };
    assert_eq!(keys(&read(Range { limit: 0, ..by_value.clone() })), ["a", "c", "b", "d"]);
    // Order NONE with another target sorts only the first limit + 1 keys.
    let quirk = read(Range { sort_order: SortOrder::None, limit: 2, ..by_value });
    assert_eq!((keys(&quirk), quirk.more), (vec!["b", "c"], true));
    let filtered = read(Range { min_mod_revision: 3, max_create_revision: 4, limit: 1, ..range("a", "z") });
    assert_eq!((keys(&filtered), filtered.more, filtered.count), (vec!["b"], true, 4));
    let counted = read(Range { count_only: true, limit: 1, ..range("b", "\0") });
    assert_eq!((counted.kvs.len(), counted.more, counted.count), (0, false, 3));
    assert_eq!(read(range("d", "a")).count, 0);
}

#[test]
fn keys_only_has_no_lease_unless_sorted_by_value() {
    let (store, mut writer) = store();
    writer.put(&Put { lease: 7, ..put("k", "v") }, &AnyLease).expect("any lease");
    let mut asked = Range { keys_only: true, ..range("k", "") };
    let found = store.range(&asked).expect("current").kvs;
    assert_eq!(found, [kv("k", "", 2, 2, 1)]);
    asked.sort_target = SortTarget::Value;
    assert_eq!(store.range(&asked).expect("current").kvs[0].lease, 7);
}

#[test]
fn puts_that_keep_value_or_lease_need_the_key() {
    let (store, mut writer) = store();
    let keep_value = Put { ignore_value: true, prev_kv: true, ..put("k", "") };
    assert_eq!(writer.put(&keep_value, &AnyLease), Err(OperationError::KeyNotFound));
    let refused = writer.put(&Put { lease: 7, ..put("k", "v") }, &NoLease);
    assert_eq!(refused, Err(OperationError::LeaseNotFound));
    assert_eq!(writer.put(&put("", "v"), &AnyLease), Err(OperationError::EmptyKey));
    assert_eq!(store.revision(), 1, "a refused put changes nothing");
    writer.put(&Put { lease: 7, ..put("k", "v") }, &AnyLease).expect("any lease");
    let kept = writer.put(&keep_value, &AnyLease).expect("the key exists");
    assert_eq!((kept.revision, kept.prev_kv.expect("asked for").lease), (3, 7));
    assert_eq!(store.range(&range("k", "")).expect("current").kvs, [kv("k", "v", 2, 3, 2)]);
}

#[test]
fn a_key_belongs_to_the_lease_of_its_last_put() {
    let (store, mut writer) = store();
    let attach = |writer: &mut StoreWriter, key: &str, lease| {
        writer.put(&Put { lease, ..put(key, "") }, &AnyLease).expect("any lease");
    };
    attach(&mut writer, "b", 1);
    attach(&mut writer, "a", 1);
    attach(&mut writer, "c", 1);
    attach(&mut writer, "b", 2);
    attach(&mut writer, "c", 0);
    assert_eq!((store.lease_keys(1), store.lease_keys(2)), (vec![bytes("a")], vec![bytes("b")]));
    attach(&mut writer, "c", 1);
    let revision = store.revision();
    let deleted = writer.delete_lease_keys(1).expect("everything is in memory");
    assert_eq!((deleted.deleted, deleted.revision), (2, revision + 1));
    assert_eq!(store.lease_keys(1), Vec::<Bytes>::new());
    assert_eq!(writer.delete_lease_keys(1).expect("everything is in memory").revision, revision + 1);
    let last = events(&store, revision + 1).events;
    assert_eq!(last.iter().map(|event| event.kv.key.clone()).collect::<Vec<_>>(), [bytes("a"), bytes("c")]);
}

#[test]
fn a_transaction_compares_first_and_reads_its_own_writes() {
    let (store, mut writer) = store();
    do_put(&mut writer, "a", "old");
    let holds = |target, result| Compare { range: key_range("a", ""), target, result };
    let inner = Txn {
        // Still true although the outer transaction has changed the key by now.
        compares: vec![holds(CompareTarget::Value(bytes("old")), CompareResult::Equal)],
        success: vec![TxnOperation::Range(range("a", ""))],
        failure: vec![],
    };
    let txn = Txn {
        compares: vec![holds(CompareTarget::Mod(3), CompareResult::Less)],
        success: vec![
            TxnOperation::Range(range("a", "")),
            TxnOperation::DeleteRange(delete("x", "")),
            TxnOperation::Put(put("a", "new")),
            TxnOperation::Txn(inner),
            TxnOperation::DeleteRange(delete("a", "z")),
        ],
        failure: vec![],
    };
    let outcome = writer.txn(&txn, &AnyLease).expect("nothing to refuse");
    assert_eq!((outcome.revision, outcome.succeeded), (3, true));
    let [
        TxnOperationOutcome::Range(before),
        TxnOperationOutcome::DeleteRange(nothing),
        TxnOperationOutcome::Put(put),
        TxnOperationOutcome::Txn(inner),
        TxnOperationOutcome::DeleteRange(all),
    ] = &outcome.responses[..]
    else {
        panic!("five answers of the kinds asked: {outcome:?}")
    };
    assert_eq!((before.revision, &before.kvs[..]), (2, &[kv("a", "old", 2, 2, 1)][..]));
    assert_eq!((nothing.revision, nothing.deleted, put.revision), (2, 0, 3));
    let after = RangeOutcome { revision: 3, kvs: vec![kv("a", "new", 2, 3, 2)], more: false, count: 1 };
    let expected =
        TxnOutcome { revision: 0, succeeded: true, responses: vec![TxnOperationOutcome::Range(after)] };
    assert_eq!(inner, &expected);
    assert_eq!((all.revision, all.deleted), (3, 1));
    assert_eq!(store.range(&range("a", "")).expect("current").count, 0);
    let subs: Vec<_> =
        events(&store, 3).events.iter().map(|event| (event.kind, event.revision.sub)).collect();
    assert_eq!(subs, [(EventKind::Put, 0), (EventKind::Delete, 1)]);
}

#[test]
fn compares_of_missing_keys_see_zeroes_but_no_value() {
    let (_, mut writer) = store();
    let mut holds = |target, result| {
        let compare = Compare { range: key_range("k", ""), target, result };
        writer
            .txn(&Txn { compares: vec![compare], ..Txn::default() }, &AnyLease)
            .expect("only compares")
            .succeeded
    };
    assert!(holds(CompareTarget::Version(0), CompareResult::Equal));
    assert!(holds(CompareTarget::Create(1), CompareResult::Less));
    assert!(!holds(CompareTarget::Value(bytes("x")), CompareResult::NotEqual));
    assert!(!holds(CompareTarget::Value(bytes("")), CompareResult::Unknown));
    assert!(holds(CompareTarget::Lease(3), CompareResult::Unknown));
    assert!(holds(CompareTarget::Unknown, CompareResult::Equal));
    assert!(!holds(CompareTarget::Unknown, CompareResult::NotEqual));
}

#[test]
fn a_transaction_is_refused_before_its_first_write() {
    let (store, mut writer) = store();
    do_put(&mut writer, "a", "");
    writer.compact(2).expect("the head can be compacted to");
    let mut refused = |operation, leases: &dyn Leases| {
        let success = vec![TxnOperation::Put(put("k", "")), operation];
        writer.txn(&Txn { success, ..Txn::default() }, leases).expect_err("must be refused")
    };
    let at = |revision| TxnOperation::Range(Range { revision, ..range("a", "") });
    assert_eq!(refused(at(3), &AnyLease), OperationError::FutureRevision(2));
    assert_eq!(refused(at(1), &AnyLease), OperationError::Compacted(2));
    assert_eq!(refused(at(-1), &AnyLease), OperationError::Compacted(2));
    let lease = TxnOperation::Put(Put { lease: 1, ..put("b", "") });
    assert_eq!(refused(lease, &NoLease), OperationError::LeaseNotFound);
    // The key is put by the transaction itself, but does not exist before it.
    let keep = TxnOperation::Put(Put { ignore_value: true, ..put("k", "") });
    assert_eq!(refused(keep, &AnyLease), OperationError::KeyNotFound);
    assert_eq!((store.revision(), store.range(&range("k", "")).expect("current").count), (2, 0));
    let gone = Txn {
        success: vec![
            TxnOperation::DeleteRange(delete("a", "\0")),
            TxnOperation::Put(Put { ignore_lease: true, ..put("a", "") }),
        ],
        ..Txn::default()
    };
    assert_eq!(writer.txn(&gone, &AnyLease), Err(OperationError::KeyNotFound));
}

#[test]
fn compaction_keeps_the_newest_below_and_a_tombstone_exactly_at_it() {
    let (store, mut writer) = store();
    do_put(&mut writer, "a", "1");
    do_put(&mut writer, "a", "2");
    do_put(&mut writer, "b", "1");
    writer.delete_range(&delete("b", "")).expect("a plain delete");
    assert_eq!(writer.compact(6), Err(OperationError::FutureRevision(5)));
    writer.compact(0).expect("the first compaction may be to 0");
    assert_eq!(writer.compact(0), Err(OperationError::Compacted(0)));
    let before = store.stats().retained_bytes;
    writer.compact(5).expect("the head can be compacted to");
    let retained = |store: &Store| {
        let mut found = Vec::new();
        let compact = store.for_each_retained(0, &mut |record| {
            found.push((record.revision.main, record.tombstone, record.visible));
        });
        (compact, found)
    };
    assert_eq!(retained(&store), (Ok(5), vec![(3, false, true), (5, true, false)]));
    assert_eq!(store.stats().retained_bytes, before - 2 * (2 + 64));
    assert_eq!(store.range(&Range { revision: 4, ..range("a", "") }), Err(OperationError::Compacted(5)));
    assert_eq!(store.range(&Range { revision: 5, ..range("a", "") }).expect("readable").count, 1);
    assert_eq!(store.events(4, 1, 1).expect_err("compacted"), OperationError::Compacted(5));
    assert_eq!(events(&store, 5).events.len(), 1);
    do_put(&mut writer, "c", "");
    writer.compact(6).expect("the head can be compacted to");
    assert_eq!(retained(&store), (Ok(6), vec![(3, false, true), (6, false, true)]));
}

#[test]
fn previous_states_are_those_before_the_transaction_and_not_compacted() {
    let (store, mut writer) = store();
    do_put(&mut writer, "a", "1");
    do_put(&mut writer, "a", "2");
    let txn = Txn {
        success: vec![
            TxnOperation::Put(put("a", "3")),
            TxnOperation::Put(put("b", "1")),
            TxnOperation::DeleteRange(delete("a", "z")),
        ],
        ..Txn::default()
    };
    writer.txn(&txn, &AnyLease).expect("nothing to refuse");
    let previous = |store: &Store| {
        let batch = events(store, store.compact_revision().max(2));
        batch
            .events
            .iter()
            .map(|event| store.previous(event).expect("everything is in memory"))
            .collect::<Vec<_>>()
    };
    let first = Some(kv("a", "1", 2, 2, 1));
    let second = Some(kv("a", "2", 2, 3, 2));
    assert_eq!(previous(&store), [None, first, second.clone(), None, second.clone(), None]);
    writer.compact(3).expect("retained");
    assert_eq!(previous(&store), [None, second.clone(), None, second, None]);
}

#[test]
fn batches_of_events_end_at_whole_revisions() {
    let (store, mut writer) = store();
    for main in 2..6 {
        let puts = ["a", "b", "c"].map(|key| TxnOperation::Put(put(key, &main.to_string())));
        writer.txn(&Txn { success: puts.to_vec(), ..Txn::default() }, &AnyLease).expect("nothing to refuse");
    }
    let batch = store.events(2, 1, usize::MAX).expect("retained");
    assert_eq!((batch.events.len(), batch.next_revision), (3, 3));
    let batch = store.events(3, 4, usize::MAX).expect("retained");
    assert_eq!((batch.events.len(), batch.next_revision), (6, 5));
    let batch = store.events(3, usize::MAX, 7).expect("retained");
    assert_eq!((batch.events.len(), batch.next_revision), (6, 5));
    assert_eq!((events(&store, 5).events.len(), events(&store, 5).next_revision), (3, 6));
    assert_eq!((events(&store, 9).events.len(), events(&store, 9).next_revision), (0, 9));
}

#[test]
fn memory_and_space_of_overwritten_values_are_given_back_after_compaction() {
    let disk = SimDisk::new(1);
    let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: 4 << 20 });
    let options = CheckpointOptions::default();
    let mut checkpoints = SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("a new disk opens");
    let mut value = vec![0; 4096];
    let mut rng = Rng::new(1);
    for index in 0..10_000 {
        rng.fill(&mut value);
        let key = Bytes::from(format!("key{}", index % 100));
        let put = Put { key, value: Bytes::copy_from_slice(&value), ..Put::default() };
        writer.put(&put, &AnyLease).expect("a plain put");
        checkpoints.after_operation(&mut writer);
        checkpoints.make(&mut writer, false).expect("the disk is whole");
    }
    while writer.maintain() {}
    let before = store.stats();
    assert!(before.retained_bytes > 38 << 20, "{before:?}");
    assert!(before.arena_bytes < 16 << 20, "memory is bounded: {before:?}");
    assert!(disk.allocated_bytes() > 30 << 20, "every version is on disk");
    writer.compact(store.revision()).expect("the head can be compacted to");
    checkpoints.after_operation(&mut writer);
    checkpoints.make(&mut writer, true).expect("the disk is whole");
    checkpoints.verify().expect("the disk is whole");
    while writer.maintain() {}
    let after = store.stats();
    assert!(after.retained_bytes < 1 << 20 && after.arena_bytes < 4 << 20, "{after:?}");
    assert!(disk.allocated_bytes() < 2 << 20, "{} bytes on disk", disk.allocated_bytes());
    assert_eq!(after.keys_count, 100);
    assert_eq!(store.range(&range("\0", "\0")).expect("current").count, 100);
}

/// A compaction during a checkpoint gave its space back only behind the next write. A database that is only read after
/// it kept everything.
#[test]
fn a_compaction_during_a_checkpoint_gives_space_back_without_another_write() {
    let disk = SimDisk::new(1);
    let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: 64 << 10 });
    let options = CheckpointOptions::default();
    let mut checkpoints = SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("a new disk opens");
    for index in 0..2_000 {
        do_put(&mut writer, &format!("key{}", index % 10), &"v".repeat(1000));
        checkpoints.after_operation(&mut writer);
    }
    assert!(checkpoints.stats().runs_count > 1, "checkpoints are due");
    writer.compact(store.revision()).expect("the head can be compacted to");
    checkpoints.after_operation(&mut writer);
    checkpoints.make(&mut writer, false).expect("the disk is whole");
    while writer.maintain() {}
    checkpoints.verify().expect("the disk is whole");
    assert!(store.stats().retained_bytes < 20 << 10, "{:?}", store.stats());
}

#[test]
fn listeners_hear_of_each_batch_once() {
    use std::sync::{Arc, Mutex};
    let (store, mut writer) = store();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = heard.clone();
    store.on_publish(Box::new(move |head| listener.lock().expect("unpoisoned").push(head)));
    writer.notify();
    do_put(&mut writer, "a", "");
    do_put(&mut writer, "b", "");
    writer.notify();
    writer.notify();
    assert_eq!(*heard.lock().expect("unpoisoned"), [3]);
}

#[test]
fn system_records_are_outside_of_revisions() {
    let (store, mut writer) = store();
    for key in ["b/2", "a/1", "b/1", "c"] {
        writer.system_put(bytes(key), bytes(key));
    }
    writer.system_delete(b"b/2");
    writer.set_applied(7, 2);
    assert_eq!(store.system_scan(b"b/"), [(bytes("b/1"), bytes("b/1"))]);
    assert_eq!((store.system_get(b"c"), store.system_get(b"b/2")), (Some(bytes("c")), None));
    assert_eq!((store.revision(), store.applied()), (1, (7, 2)));
}

#[test]
fn a_sorted_answer_with_a_limit_is_the_beginning_of_one_without() {
    let (store, mut writer) = store();
    let mut rng = Rng::new(20);
    // Far more keys than a read remembers beyond its limit, many of them with the same version or value.
    for _ in 0..9_000 {
        let key = format!("k{:04}", rng.below(5_000));
        do_put(&mut writer, &key, &format!("{}", rng.below(40)));
    }
    use SortTarget::{Create, Key, Mod, Value, Version};
    for sort_target in [Key, Version, Create, Mod, Value] {
        for sort_order in [SortOrder::Ascend, SortOrder::Descend] {
            let all = Range { sort_order, sort_target, ..range("k", "l") };
            let whole = store.range(&all).expect("current");
            assert!(!whole.more);
            for limit in [1, 2, 700, whole.count - 1, whole.count, whole.count + 1] {
                let cut = store.range(&Range { limit, ..all.clone() }).expect("current");
                let keys_count = (limit as usize).min(whole.kvs.len());
                assert_eq!(cut.kvs, whole.kvs[..keys_count], "{sort_target:?} {sort_order:?} {limit}");
                assert_eq!((cut.count, cut.more), (whole.count, limit < whole.count));
            }
        }
    }
}

#[test]
fn a_large_range_is_of_one_revision_until_that_is_compacted() {
    let (store, mut writer) = store();
    for number in 0..100 {
        do_put(&mut writer, &format!("k{number:02}"), "value");
    }
    let size_of: SizeOf = |outline| outline.key.len() as u64 + u64::from(outline.value_bytes);
    let large = |limit| match store.range_bounded(&Range { limit, ..range("k", "l") }, 100, size_of) {
        Ok(BoundedRange::Large(large)) => large,
        other => panic!("800 bytes are more than 100: {other:?}"),
    };
    let (mut all, mut some) = (large(0), large(30));
    assert_eq!((all.keys_count(), all.bytes(), all.count(), all.more()), (100, 800, 100, false));
    assert_eq!((some.keys_count(), some.bytes(), some.count(), some.more()), (30, 240, 100, true));
    let mut pages = vec![all.next_page(80).expect("retained")];
    // What is written meanwhile is not in it, and not in the way.
    for number in 0..200 {
        do_put(&mut writer, &format!("k{number:03}"), "other");
    }
    writer.delete_range(&delete("k5", "k7")).expect("a delete");
    while pages.last().is_some_and(|page| !page.is_empty()) {
        pages.push(all.next_page(80).expect("retained"));
    }
    assert_eq!(pages.len(), 11, "ten keys a page, and the end");
    let kvs = pages.concat();
    assert_eq!(kvs.len(), 100);
    assert!(kvs.iter().all(|kv| kv.value == "value" && kv.mod_revision <= 101));
    some.next_page(80).expect("retained");
    let revision = store.revision();
    writer.compact(revision).expect("it exists");
    assert_eq!(some.next_page(80), Err(OperationError::Compacted(revision)));
    assert_eq!(some.read(), Err(OperationError::Compacted(revision)));
}
