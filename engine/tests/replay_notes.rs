//! What keys were before they were changed is noted in the log: a start behind a crash gets by without the disk, and comes to the same.
mod db_support;

use db_support::{assert_same, dump};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Put, Txn, TxnOperation,
};
use sternpost_engine::{Bytes, Options};

const KEYS: u64 = 400;

fn options() -> Options {
    let mut options = Options::new().memtable_bytes(1 << 20);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.rest_us = u64::MAX;
    options.checkpoint.shelf.page_bytes = 512;
    options
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number:05}"))
}

fn put(number: u64, value: u64) -> Put {
    Put { key: key(number), value: vec![value as u8; 100].into(), ..Put::default() }
}

/// Writes one operation, and steps until it is durable.
fn write(db: &mut SimulatedDb, operation: &LogOperation) {
    let mut answer = db.write(operation);
    loop {
        assert!(db.step(1_000), "the database goes on");
        if let Poll::Ready(answer) = Pin::new(&mut answer).poll(&mut Context::from_waker(Waker::noop())) {
            answer.expect("a write");
            return;
        }
    }
}

/// A database whose keys are all on disk and of which some were changed since, in all ways, with the power cut behind the last answer.
fn changed_and_cut(seed: u64) -> (SimDisk, db_support::Dump) {
    let disk = SimDisk::new(seed);
    let mut db = SimulatedDb::open(&disk, &options(), seed).expect("a new disk opens");
    for number in 0..KEYS {
        write(&mut db, &LogOperation::Put(put(number, 1)));
    }
    db.close().expect("a checkpoint");
    let mut db = SimulatedDb::open(&disk, &options(), seed + 1).expect("it opens");
    assert!(db.checkpoint_stats().reads_spared == 0);
    let mut rng = Rng::new(seed);
    for _ in 0..200 {
        let number = rng.below(KEYS + KEYS / 4);
        let range = KeyRange { key: key(number), end: Bytes::new() };
        write(
            &mut db,
            &match rng.below(4) {
                0 => LogOperation::DeleteRange(DeleteRange { range, prev_kv: false }),
                1 => LogOperation::Txn(Txn {
                    compares: vec![Compare {
                        range,
                        target: CompareTarget::Version(1),
                        result: CompareResult::Equal,
                    }],
                    success: vec![TxnOperation::Put(put(number, 2)), TxnOperation::Put(put(number + 1, 3))],
                    failure: vec![TxnOperation::Put(put(number + 2, 4))],
                }),
                _ => LogOperation::Put(put(number, rng.next_u64())),
            },
        );
    }
    // An empty change: the notes of those before it go with it.
    write(&mut db, &LogOperation::SystemPut(Bytes::from_static(b"end"), Bytes::new()));
    let dump = dump(db.store());
    (disk.crash(&CrashPolicy::DropAll), dump)
}

#[test]
fn a_start_behind_a_crash_needs_no_leaf_for_what_was_noted() {
    for seed in 1..10 {
        let (disk, dumped) = changed_and_cut(seed);
        let db = SimulatedDb::open(&disk, &options(), 99).expect("it opens");
        assert_same(&dump(db.store()), &dumped, &format!("seed {seed}"));
        let stats = db.checkpoint_stats();
        assert!(stats.reads_spared > 100, "seed {seed}: {stats:?}");
    }
}
