//! A checkpoint rewrites pages; those that were in memory are there afterwards too.
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use sternpost_engine::cache::Class;
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::Put;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::{Bytes, Options};

const KEYS: u32 = 8_000;

fn put(db: &mut SimulatedDb, number: u32, value: u8) {
    let key = Bytes::from(format!("key{number:05}"));
    let put = Put { key, value: vec![value; 100].into(), ..Put::default() };
    let mut answer = db.write(&LogOperation::Put(put));
    loop {
        assert!(db.step(1_000), "the database goes on");
        if let Poll::Ready(answer) = Pin::new(&mut answer).poll(&mut Context::from_waker(Waker::noop())) {
            answer.expect("a put");
            return;
        }
    }
}

/// These keys, and then nothing until all of it is on disk.
fn put_all(db: &mut SimulatedDb, keys: Range<u32>, value: u8) -> CheckpointStats {
    keys.for_each(|number| put(db, number, value));
    let before = db.checkpoint_stats().checkpoints_count;
    while db.checkpoint_stats().checkpoints_count == before {
        assert!(db.step(u64::MAX), "the database goes on");
    }
    db.checkpoint_stats()
}

fn options() -> Options {
    let mut options = Options::new();
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.rest_us = 1_000_000;
    options.checkpoint.rest_wal_bytes_max = 100_000;
    options.checkpoint.shelf.page_bytes = 4096;
    options
}

#[test]
fn pages_that_a_checkpoint_rewrites_need_not_be_read_again() {
    let disk = SimDisk::new(1);
    let mut db = SimulatedDb::open(&disk, &options(), 1).expect("a new disk opens");
    put_all(&mut db, 0..KEYS, 1);
    let first = put_all(&mut db, 0..KEYS, 2);
    let second = put_all(&mut db, 0..KEYS, 3);
    let pages = first.totals.page_bytes / 4096 / 2;
    assert!(pages > 10, "{first:?}");
    let misses = second.cache.misses - first.cache.misses;
    assert!(misses < pages / 2, "{misses} misses over {pages} pages that were rewritten");
}

#[test]
fn pages_of_states_that_nobody_reads_leave_the_memory() {
    let disk = SimDisk::new(2);
    let mut db = SimulatedDb::open(&disk, &options(), 1).expect("a new disk opens");
    // Cells have got what they hold of the version before, and pages have split for it.
    let begun = (1..4).map(|value| put_all(&mut db, 0..KEYS, value)).last().expect("some").cache;
    let leaves_begun = begun.bytes[Class::Leaf as usize];
    // Each checkpoint rewrites half of what the one before did, so that no segment goes as a whole.
    for part in 0..7 {
        let keys = part * KEYS / 8..(part + 2) * KEYS / 8;
        let leaves_bytes = put_all(&mut db, keys, 2).cache.bytes[Class::Leaf as usize];
        // All leaves, and those that the last checkpoint has replaced.
        assert!(leaves_bytes <= leaves_begun * 3 / 2, "{leaves_bytes} behind {leaves_begun}, part {part}");
    }
}
