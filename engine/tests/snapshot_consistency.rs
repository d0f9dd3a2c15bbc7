//! Readers, a follower of events and the writer at once: every snapshot is consistent while memtables freeze, merge and
//! are compacted under it (M1, M2, H2).
//!
//! The data has two properties at every revision: the accounts sum up to a constant, and each pair of keys exists whole
//! or not at all.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::mvcc::*;
use sternpost_engine::{Bytes, OperationError};

const ACCOUNTS: u64 = 40;
const SUM: i64 = ACCOUNTS as i64 * 100;
const OPERATIONS: u64 = 20_000;
/// Revision of the first write of a store.
const FIRST_WRITE: i64 = 2;

fn key(kind: &str, number: u64) -> Bytes {
    Bytes::from(format!("{kind}/{number:04}"))
}

fn everything(revision: i64) -> Range {
    let open = Bytes::from_static(b"\0");
    Range { range: KeyRange { key: open.clone(), end: open }, revision, ..Range::default() }
}

fn put(key: Bytes, value: i64) -> TxnOperation {
    // Some values are large, so that memtables fill up.
    let mut text = value.to_string().into_bytes();
    text.resize(10 + (value.unsigned_abs() % 7 * 50) as usize, b' ');
    TxnOperation::Put(Put { key, value: Bytes::from(text), ..Put::default() })
}

fn number(value: &[u8]) -> i64 {
    std::str::from_utf8(value).expect("values are text").trim().parse().expect("values are numbers")
}

/// Both properties, for the keys and values of one revision.
fn assert_consistent<'a>(state: impl Iterator<Item = (&'a Bytes, &'a Bytes)>, revision: i64) {
    let mut sum = 0;
    let mut pairs: BTreeMap<&[u8], i64> = BTreeMap::new();
    for (key, value) in state {
        let (kind, name) = key.split_at(2);
        match kind {
            b"a/" => sum += number(value),
            b"x/" => *pairs.entry(name).or_default() += number(value),
            _ => *pairs.entry(name).or_default() -= number(value),
        }
    }
    assert_eq!(sum, SUM, "accounts at revision {revision}");
    assert!(pairs.values().all(|&difference| difference == 0), "pairs at revision {revision}: {pairs:?}");
}

fn assert_consistent_outcome(outcome: &RangeOutcome, revision: i64) {
    assert_eq!(outcome.count as usize, outcome.kvs.len());
    assert!(outcome.kvs.is_sorted_by(|left, right| left.key < right.key), "keys are in order");
    assert!(
        outcome.kvs.iter().all(|kv| kv.mod_revision <= revision && kv.create_revision <= kv.mod_revision)
    );
    assert_consistent(outcome.kvs.iter().map(|kv| (&kv.key, &kv.value)), revision);
}

/// `follower_at` waits until the follower has its first snapshot (0), or has followed so many revisions from there.
fn write(writer: &mut StoreWriter, follower_at: &dyn Fn(i64)) {
    let mut rng = Rng::new(1);
    let mut balances = vec![100_i64; ACCOUNTS as usize];
    follower_at(0);
    for step in 0..OPERATIONS {
        if step == 299 {
            // From here on it may always be overtaken by a compaction, on a busy machine.
            follower_at(1);
        }
        let success = match rng.below(4) {
            0..=1 => {
                let (from, to) = (rng.below(ACCOUNTS), rng.below(ACCOUNTS));
                let amount = rng.below(30) as i64;
                balances[from as usize] -= amount;
                balances[to as usize] += amount;
                vec![put(key("a", from), balances[from as usize]), put(key("a", to), balances[to as usize])]
            }
            2 => {
                let (pair, value) = (rng.below(200), rng.below(1000) as i64);
                vec![put(key("x", pair), value), put(key("y", pair), value)]
            }
            _ => {
                let first = rng.below(200);
                let delete = |kind| {
                    let range = KeyRange { key: key(kind, first), end: key(kind, first + 3) };
                    TxnOperation::DeleteRange(DeleteRange { range, prev_kv: false })
                };
                ["x", "y"].map(delete).into()
            }
        };
        let head = writer.store().revision();
        let txn = Txn { success, ..Txn::default() };
        writer.txn(&txn, &AnyLease).expect("nothing to refuse");
        if step % 300 == 299 {
            // Behind the readers' usual distance, in front of the slowest.
            let _ = writer.compact(head - rng.below(150) as i64);
        }
        writer.maintain();
    }
}

fn read(store: &Store, done: &AtomicBool, seed: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let (mut snapshots, mut compacted) = (0, 0);
    while !done.load(Ordering::Acquire) || snapshots == 0 {
        let revision = match rng.below(3) {
            0 => 0,
            // Revision 1 is the empty store: the accounts exist from the first write on.
            _ => (store.revision() - rng.below(100) as i64).max(FIRST_WRITE),
        };
        let first = match store.range(&everything(revision)) {
            Ok(first) => first,
            Err(OperationError::Compacted(at)) => {
                assert!(revision < at);
                compacted += 1;
                continue;
            }
            Err(error) => panic!("a read at or below the head: {error}"),
        };
        let revision = if revision <= 0 { first.revision } else { revision };
        assert_consistent_outcome(&first, revision);
        // The same revision gives the same answer, and so does each key on its own.
        if let Ok(second) = store.range(&everything(revision)) {
            assert_eq!(first.kvs, second.kvs, "M2: revision {revision} read twice");
        }
        if let Some(kv) = first.kvs.get(rng.below(first.kvs.len() as u64) as usize) {
            let range = KeyRange { key: kv.key.clone(), end: Bytes::new() };
            if let Ok(one) = store.range(&Range { range, revision, ..Range::default() }) {
                assert_eq!(one.kvs, std::slice::from_ref(kv), "M2: revision {revision}, one key");
            }
        }
        snapshots += 1;
    }
    (snapshots, compacted)
}

/// Rebuilds the state from events alone.
fn follow(store: &Store, done: &AtomicBool, followed: &AtomicI64) -> u64 {
    let mut rng = Rng::new(9);
    let mut applied = 0;
    'snapshot: loop {
        let snapshot = store.range(&everything(0)).expect("the head is readable");
        let mut state: BTreeMap<Bytes, KeyValue> =
            snapshot.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let mut next = snapshot.revision + 1;
        followed.fetch_max(0, Ordering::Release);
        loop {
            let was_done = done.load(Ordering::Acquire);
            let batch = match store.events(next, 1 + rng.below(50) as usize, 1 << 16) {
                Ok(batch) => batch,
                Err(OperationError::Compacted(_)) => continue 'snapshot,
                Err(error) => panic!("events from {next}: {error}"),
            };
            for (index, event) in batch.events.iter().enumerate() {
                let main = event.revision.main;
                if index == 0 || batch.events[index - 1].revision.main != main {
                    assert_eq!((main, event.revision.sub), (next, 0), "H2: no gap between revisions");
                    next += 1;
                } else {
                    assert_eq!(
                        event.revision.sub,
                        batch.events[index - 1].revision.sub + 1,
                        "H2: no gap inside"
                    );
                }
                let previous = store.previous(event).expect("everything is in memory");
                let before = match event.kind {
                    EventKind::Put => state.insert(event.kv.key.clone(), event.kv.clone()),
                    EventKind::Delete => state.remove(&event.kv.key),
                };
                // An account can be put twice in one revision; then the state before is older than the last event.
                if previous.is_some() && before.as_ref().is_none_or(|before| before.mod_revision < main) {
                    assert_eq!(previous, before, "the state before {}", event.revision);
                } else if previous.is_none() && before.is_some() && store.compact_revision() < main {
                    let before = before.map_or(0, |before| before.mod_revision);
                    assert!(
                        event.kv.create_revision == main || before == main,
                        "a state before {main} is missing"
                    );
                }
                let whole = batch.events.get(index + 1).is_none_or(|event| event.revision.main > main);
                if whole {
                    assert_consistent(state.iter().map(|(key, kv)| (key, &kv.value)), main);
                    applied += 1;
                    followed.store(applied as i64, Ordering::Release);
                }
            }
            next = batch.next_revision.max(next);
            if was_done && next > store.revision() {
                let last = store.range(&everything(0)).expect("the head is readable");
                assert!(last.kvs.iter().eq(state.values()), "the events lead to the head");
                return applied;
            }
        }
    }
}

#[test]
fn every_snapshot_is_consistent_while_the_writer_works() {
    let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: 64 << 10 });
    let opening = (0..ACCOUNTS).map(|account| put(key("a", account), 100)).collect();
    writer.txn(&Txn { success: opening, ..Txn::default() }, &AnyLease).expect("nothing to refuse");
    let (done, followed) = (AtomicBool::new(false), AtomicI64::new(-1));
    std::thread::scope(|scope| {
        let (store, done, followed) = (&store, &done, &followed);
        let readers = [1, 2].map(|seed| scope.spawn(move || read(store, done, seed)));
        let follower = scope.spawn(move || follow(store, done, followed));
        let follower_at = |count| {
            while followed.load(Ordering::Acquire) < count && !follower.is_finished() {
                std::thread::yield_now();
            }
        };
        // Readers must end also when the writer panics.
        let written =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&mut writer, &follower_at)));
        done.store(true, Ordering::Release);
        for reader in readers {
            let (snapshots, _) = reader.join().expect("a reader found everything consistent");
            assert!(snapshots > 0, "a reader ran beside the writer");
        }
        assert!(follower.join().expect("the follower found everything consistent") > 0);
        written.expect("the writer wrote");
    });
    assert!(store.stats().memtables_count < 200 && store.compact_revision() > 0);
}
