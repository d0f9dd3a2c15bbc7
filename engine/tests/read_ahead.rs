//! Keys that are read ahead by threads give the same versions as keys that are read when they are needed.
use sternpost_engine::base::rng::Rng;
use sternpost_engine::{Batch, Db, Options};

const KEYS: u64 = 3000;

/// Many small leaves, a cache of a few of them, checkpoints all the time.
fn small() -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10).cache_bytes(256 << 10);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 4096;
    options.checkpoint.shelf.segment_bytes = 1 << 20;
    options
}

fn key(number: u64) -> String {
    format!("key/{number:06}")
}

/// Checks that each key has the version and the creation that its puts gave it.
fn check(db: &Db, expected: &[(i64, i64)]) {
    for (number, &(create_revision, version)) in expected.iter().enumerate() {
        let found = db.get(key(number as u64)).expect("a get").expect("the key is there");
        assert_eq!((found.create_revision, found.version), (create_revision, version), "key {number}");
    }
}

#[test]
fn batches_and_single_puts_over_cold_leaves_count_versions_right() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut rng = Rng::new(8);
    let mut expected = Vec::new();
    {
        let db = Db::open(directory.path(), small()).expect("a new directory opens");
        for first in (0..KEYS).step_by(100) {
            let batch =
                (first..first + 100).fold(Batch::new(), |batch, number| batch.put(key(number), [7; 40]));
            let revision = db.write(batch).expect("a batch");
            expected.extend((0..100).map(|_| (revision, 1)));
        }
        for round in 0..100 {
            let chosen = (0..50).map(|_| rng.below(KEYS)).collect::<std::collections::BTreeSet<_>>();
            let batch =
                chosen.iter().fold(Batch::new(), |batch, &number| batch.put(key(number), [round; 40]));
            for number in chosen {
                expected[number as usize].1 += 1;
            }
            db.write(batch).expect("a batch");
            let number = rng.below(KEYS);
            db.put(key(number), [round; 10]).expect("a put");
            expected[number as usize].1 += 1;
        }
        check(&db, &expected);
        let cache = db.stats().checkpoints.expect("it is open").cache;
        assert!(cache.evictions > 0, "the cache holds less than the leaves: {cache:?}");
        db.close().expect("a close");
    }
    // The replay reads ahead too.
    let db = Db::open(directory.path(), small()).expect("opens");
    check(&db, &expected);
}
