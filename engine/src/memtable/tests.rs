//! The memtable against a map of versions, alone and under readers.
use super::*;
use crate::base::rng::Rng;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

fn put<'a>(key: &'a [u8], main: i64, sub: i64, value: &'a [u8]) -> Record<'a> {
    Record {
        key,
        revision: Revision::new(main, sub),
        create_revision: main,
        version: 1,
        lease: 0,
        value,
        prev: None,
    }
}

#[test]
fn every_version_is_found_at_every_revision_and_keys_come_in_order() {
    let hasher = KeyHasher::default();
    let (table, mut writer) = Memtable::new();
    assert_eq!(table.first_main(), i64::MAX);
    let mut rng = Rng::new(1);
    let mut model: BTreeMap<Vec<u8>, Vec<(Revision, Vec<u8>)>> = BTreeMap::new();
    let mut order = Vec::new();
    for main in 2..3000_i64 {
        for sub in 0..1 + rng.below(3) as i64 {
            // Few short keys, so that chains are long, with prefixes of one another among them.
            let mut key = vec![b'a'; 1 + rng.below(3) as usize];
            rng.fill(&mut key);
            key.iter_mut().for_each(|byte| *byte %= 7);
            let value = vec![main as u8; rng.below(40) as usize];
            writer.insert(&put(&key, main, sub, &value), hasher.hash(&key));
            model.entry(key.clone()).or_default().push((Revision::new(main, sub), value));
            order.push((Revision::new(main, sub), key));
        }
    }
    assert_eq!(table.first_revision(), Revision::new(2, 0));
    assert!(table.seek(b"").map(|key| key.bytes().to_vec()).eq(model.keys().cloned()));
    for (key, versions) in &model {
        let hash = hasher.hash(key);
        assert_eq!(table.seek(key).next().map(|key| key.bytes().to_vec()).as_deref(), Some(&key[..]));
        for main in (0..3001).step_by(7) {
            let expected = versions.iter().rev().find(|(revision, _)| revision.main <= main);
            let found = table
                .at_or_below(key, hash, main)
                .map(|version| (version.revision(), version.value().to_vec()));
            assert_eq!(found.as_ref(), expected);
        }
        for (revision, value) in versions {
            let version = table.exactly(key, hash, *revision).expect("it was inserted");
            assert_eq!((version.key(), version.value()), (&key[..], &value[..]));
            let missing = Revision::new(revision.main, revision.sub + 5);
            assert!(table.exactly(key, hash, missing).is_none());
        }
    }
    assert_eq!(table.events_count(), order.len());
    for (index, (revision, key)) in order.iter().enumerate() {
        let version = table.event(index);
        assert_eq!((version.revision(), version.key()), (*revision, &key[..]));
    }
}

#[test]
fn huge_and_empty_values_live_beside_small_ones() {
    let hasher = KeyHasher::default();
    let (table, mut writer) = Memtable::new();
    let sizes = [0, 5, 3 << 20, 1, 900_000, 0, 17];
    for (index, &size) in sizes.iter().enumerate() {
        let value = vec![index as u8 + 1; size];
        writer.insert(&put(b"key", index as i64 + 2, 0, &value), hasher.hash(b"key"));
    }
    for (index, &size) in sizes.iter().enumerate() {
        let version =
            table.at_or_below(b"key", hasher.hash(b"key"), index as i64 + 2).expect("it was inserted");
        assert!(version.value().len() == size && version.value().iter().all(|&byte| byte == index as u8 + 1));
    }
}

/// Readers that follow a published revision see everything up to it while the writer goes on (K2, K3).
#[test]
fn readers_see_all_records_up_to_the_published_revision() {
    const KEYS: i64 = 64;
    const MAINS: i64 = 40_000;
    let hasher = KeyHasher::default();
    let (table, mut writer) = Memtable::new();
    let (head, done) = (AtomicI64::new(1), AtomicBool::new(false));
    let key_of = |main: i64| format!("key{:02}", (main * 31) % KEYS).into_bytes();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (table, head, done, hasher) = (&table, &head, &done, &hasher);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::Acquire) {
                    let at = head.load(Ordering::Acquire);
                    let key = key_of(1 + rng.below(KEYS as u64) as i64);
                    // The key is written at every KEYS-th revision; the newest at `at` follows from that.
                    let expected = (2.max(at - KEYS + 1)..=at).rev().find(|&main| key_of(main) == key);
                    let found = table.at_or_below(&key, hasher.hash(&key), at);
                    assert_eq!(found.map(|version| version.main()), expected);
                    if let Some(version) = found {
                        assert_eq!(version.value(), version.main().to_le_bytes());
                    }
                    let mut seen = 0;
                    let mut last = Vec::new();
                    for key in table.seek(b"") {
                        assert!(last.as_slice() < key.bytes());
                        last = key.bytes().to_vec();
                        seen += i64::from(key.at_or_below(Revision::new(at, i64::MAX)).is_some());
                    }
                    assert_eq!(seen, (at - 1).min(KEYS));
                }
            });
        }
        for main in 2..MAINS {
            let key = key_of(main);
            writer.insert(&put(&key, main, 0, &main.to_le_bytes()), hasher.hash(&key));
            head.store(main, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
}

/// Every published key is met by a seek and stands in order, while others are linked around it (K2, K4).
#[test]
fn seeks_miss_no_key_while_new_ones_are_linked() {
    const MAINS: i64 = 60_000;
    let hasher = KeyHasher::default();
    let (table, mut writer) = Memtable::new();
    let (head, done) = (AtomicI64::new(1), AtomicBool::new(false));
    // Neighbours in time are far apart in order.
    let key_of = |main: i64| (main as u32).reverse_bits().to_be_bytes();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (table, head, done) = (&table, &head, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::Acquire) {
                    let at = head.load(Ordering::Acquire);
                    // Mostly the last few, beside which keys are being linked.
                    let span = if rng.chance(3, 4) { 40 } else { at as u64 };
                    let main = (at - rng.below(span) as i64).max(2);
                    if main > at {
                        continue;
                    }
                    let key = key_of(main);
                    let found: Vec<_> = table.seek(&key).take(3).map(|key| key.bytes().to_vec()).collect();
                    assert_eq!(found.first().map(Vec::as_slice), Some(&key[..]), "K2: {main} at {at}");
                    assert!(found.is_sorted_by(|left, right| left < right), "K4: {found:?}");
                    let last =
                        table.last_below(Some(&[&key[..], &[0]].concat())).map(|key| key.bytes().to_vec());
                    assert_eq!(last.as_deref(), Some(&key[..]), "K2: {main} at {at}, from above");
                }
            });
        }
        for main in 2..MAINS {
            let key = key_of(main);
            writer.insert(&put(&key, main, 0, b""), hasher.hash(&key));
            head.store(main, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(table.seek(b"").count() as i64, MAINS - 2);
}
