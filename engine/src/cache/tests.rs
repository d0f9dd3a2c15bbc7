//! Claims about the cache.
use super::*;
use crate::base::rng::Rng;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

const MIB: usize = 1 << 20;

/// An entry that says how large it is, and which it is.
#[derive(Debug)]
struct Page {
    number: u64,
    bytes: usize,
}

impl Cached for Page {
    const KIND: Kind = Kind::Page;

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Another type for the same places.
struct Record(u64);

impl Cached for Record {
    const KIND: Kind = Kind::Record;

    fn bytes(&self) -> usize {
        1000
    }
}

fn key(segment: u32, block: u32) -> CacheKey {
    CacheKey { segment: SegmentId(segment), block: u64::from(block) }
}

/// A page of 4 KiB, everything counted.
fn put(cache: &Cache, segment: u32, block: u32, class: Class) {
    put_sized(cache, segment, block, class, 4096 - ENTRY_BYTES);
}

fn put_sized(cache: &Cache, segment: u32, block: u32, class: Class, bytes: usize) {
    let number = u64::from(segment) << 32 | u64::from(block);
    cache.insert(key(segment, block), class, Arc::new(Page { number, bytes }));
}

fn has(cache: &Cache, segment: u32, block: u32) -> bool {
    cache.get::<Page>(key(segment, block)).is_some()
}

/// How many of the blocks `0..count` of a segment are there.
fn present(cache: &Cache, segment: u32, count: u32) -> u32 {
    (0..count).filter(|block| has(cache, segment, *block)).count() as u32
}

fn check(cache: &Cache) {
    for shard in &cache.shards {
        lock(shard).check();
    }
}

#[test]
fn many_lookups_at_once_find_what_single_ones_find() {
    let cache = Cache::new(4 * MIB);
    let mut rng = Rng::new(4);
    for block in 0..3_000 {
        if rng.chance(2, 3) {
            cache.insert_bytes(key(1, block), Class::Value, &block.to_le_bytes());
        }
    }
    // The same place, as something else.
    cache.insert(key(1, 7), Class::Leaf, Arc::new(Record(7)));
    let keys: Vec<_> = (0..1_000).map(|_| key(1, rng.below(4_000) as u32)).collect();
    let before = cache.stats();
    let many = cache.get_bytes_many(&keys);
    let after = cache.stats();
    let found = many.iter().flatten().count() as u64;
    assert!(found > 300 && found < 700, "{found}");
    assert_eq!((after.hits - before.hits, after.misses - before.misses), (found, 1_000 - found));
    for (key, bytes) in keys.iter().zip(many) {
        assert_eq!(bytes, cache.get_bytes(*key));
        assert!(bytes.is_none_or(|bytes| bytes[..] == (key.block as u32).to_le_bytes()));
    }
    assert!(cache.get_bytes_many(&[]).is_empty());
    check(&cache);
}

fn bytes(cache: &Cache) -> u64 {
    cache.stats().bytes.iter().sum()
}

#[test]
fn what_was_inserted_is_found_by_its_place_and_type() {
    let cache = Cache::new(MIB);
    assert!(!has(&cache, 1, 2));
    put(&cache, 1, 2, Class::Leaf);
    cache.insert(key(1, 2), Class::Value, Arc::new(Record(9)));
    assert_eq!(cache.get::<Page>(key(1, 2)).expect("the page").number, 1 << 32 | 2);
    assert_eq!(cache.get::<Record>(key(1, 2)).expect("the record").0, 9);
    assert!(!has(&cache, 2, 1));
    let expected = CacheStats {
        hits: 2,
        misses: 2,
        insertions: 2,
        entries: 2,
        bytes: [0, 0, 4096, 1000 + ENTRY_BYTES as u64],
        ..CacheStats::default()
    };
    assert_eq!(cache.stats(), expected);
}

#[test]
fn the_first_of_two_that_read_the_same_place_wins() {
    let cache = Cache::new(MIB);
    cache.insert(key(1, 1), Class::Value, Arc::new(Record(1)));
    cache.insert(key(1, 1), Class::Value, Arc::new(Record(2)));
    assert_eq!(cache.get::<Record>(key(1, 1)).expect("the record").0, 1);
    assert_eq!((cache.stats().entries, cache.stats().insertions), (1, 1));
}

#[test]
fn a_removed_segment_is_gone_and_nothing_else() {
    let cache = Cache::new(16 * MIB);
    for block in 0..100 {
        for (segment, class) in [(1, Class::Inner), (2, Class::Leaf), (3, Class::Value)] {
            put(&cache, segment, block, class);
        }
    }
    let held = cache.get::<Page>(key(2, 5)).expect("the page");
    cache.remove_segment(SegmentId(2));
    check(&cache);
    assert_eq!([1, 2, 3].map(|segment| present(&cache, segment, 100)), [100, 0, 100]);
    assert_eq!((cache.stats().evictions, bytes(&cache)), (0, 200 * 4096));
    assert_eq!(held.number, 2 << 32 | 5, "a reader keeps what it has");
}

#[test]
fn without_a_budget_nothing_is_kept_and_nothing_that_is_too_large_with_one() {
    for (bytes_max, bytes) in [(0, 0), (MIB, MIB / 8), (64 * MIB, MIB / 2), (MIB, usize::MAX)] {
        let cache = Cache::new(bytes_max);
        for block in 0..3 {
            put_sized(&cache, 1, block, Class::Inner, bytes);
            assert!(!has(&cache, 1, block), "{bytes} of {bytes_max}");
        }
        assert_eq!(cache.stats().refusals, 3);
    }
    let cache = Cache::new(64 * MIB);
    put_sized(&cache, 1, 1, Class::Value, MIB / 2 - ENTRY_BYTES);
    assert!(has(&cache, 1, 1), "an eighth of a shard is kept");
}

#[test]
fn the_budget_is_never_exceeded_and_what_is_found_is_right() {
    for seed in 0..8 {
        let mut rng = Rng::new(seed);
        let bytes_max = [100_000, MIB, 3 * MIB, 20 * MIB][(seed % 4) as usize];
        let cache = Cache::new(bytes_max);
        let mut sizes = BTreeMap::new();
        for step in 0..20_000 {
            let (segment, block) = (rng.below(4) as u32, rng.below(2000) as u32);
            match rng.below(1000) {
                0 => cache.remove_segment(SegmentId(segment)),
                1..400 => {
                    let bytes = rng.below([100, 5000, 70_000][(step % 3) as usize]) as usize;
                    let class = Class::ALL[rng.below(4) as usize];
                    if !has(&cache, segment, block) {
                        sizes.insert((segment, block), bytes);
                    }
                    put_sized(&cache, segment, block, class, bytes);
                }
                _ => {
                    if let Some(page) = cache.get::<Page>(key(segment, block)) {
                        assert_eq!(page.number, u64::from(segment) << 32 | u64::from(block));
                        assert_eq!(Some(&page.bytes), sizes.get(&(segment, block)));
                    }
                }
            }
            assert!(bytes(&cache) <= bytes_max as u64);
            if step % 500 == 0 {
                check(&cache);
            }
        }
        let stats = cache.stats();
        assert!(stats.hits > 0 && stats.evictions > 0, "seed {seed}: {stats:?}");
    }
}

#[test]
fn most_of_the_budget_is_used() {
    for bytes_max in [MIB, 16 * MIB, 64 * MIB] {
        let cache = Cache::new(bytes_max);
        let count = 2 * bytes_max / 4096;
        for block in 0..count as u32 {
            put(&cache, 1, block, Class::Value);
        }
        assert!(bytes(&cache) > bytes_max as u64 * 95 / 100, "{} of {bytes_max}", bytes(&cache));
    }
}

#[test]
fn ten_times_the_budget_of_values_does_not_evict_an_index_that_fits() {
    let cache = Cache::new(16 * MIB);
    // A quarter each, so that no shard is over its part by chance.
    for block in 0..1024 {
        put(&cache, 1, block, Class::Inner);
        put(&cache, 2, block, Class::Index);
    }
    for block in 0..10 * 4096 {
        put(&cache, 3, block, Class::Value);
    }
    assert_eq!((present(&cache, 1, 1024), present(&cache, 2, 1024)), (1024, 1024));
    // Nor do leaves.
    for block in 0..10 * 4096 {
        put(&cache, 4, block, Class::Leaf);
    }
    assert_eq!((present(&cache, 1, 1024), present(&cache, 2, 1024)), (1024, 1024));
    assert_eq!(cache.stats().bytes[3], 0, "leaves have taken the place of all values");
    check(&cache);
}

#[test]
fn a_class_takes_the_room_of_worse_ones_and_never_of_better_ones() {
    for (number, class) in Class::ALL.into_iter().enumerate() {
        for (other_number, other) in Class::ALL.into_iter().enumerate() {
            let cache = Cache::new(MIB);
            for block in 0..256 {
                put(&cache, 1, block, class);
            }
            for block in 0..256 {
                put(&cache, 2, block, other);
            }
            let kept = if other_number > number { (256, 0) } else { (0, 256) };
            assert_eq!((present(&cache, 1, 256), present(&cache, 2, 256)), kept, "{class:?}, then {other:?}");
        }
    }
}

#[test]
fn what_is_used_outlives_a_scan_of_its_own_class() {
    let cache = Cache::new(MIB);
    for block in 0..64 {
        put(&cache, 1, block, Class::Value);
    }
    for block in 0..4096 {
        put(&cache, 2, block, Class::Value);
        // Each of the 64 is used once for 64 of the 256 that fit.
        assert!(has(&cache, 1, block % 64), "at block {block}");
    }
    assert!(present(&cache, 2, 4096) <= 256 - 64);
}

#[test]
fn where_everything_was_used_something_gives_way_all_the_same() {
    let cache = Cache::new(MIB);
    for block in 0..1000 {
        put_sized(&cache, 1, block, Class::Value, 900);
    }
    for block in (0..1000).cycle().take(4000) {
        has(&cache, 1, block);
    }
    put_sized(&cache, 2, 0, Class::Value, MIB / 16);
    assert!(has(&cache, 2, 0));
    assert!(present(&cache, 1, 1000) > 900);
    check(&cache);
}

#[test]
fn inner_pages_that_nobody_uses_any_more_give_way_in_the_end() {
    let cache = Cache::new(MIB);
    let live = 16;
    for block in 0..256 {
        put(&cache, 1, block, Class::Inner);
    }
    put(&cache, 2, 0, Class::Value);
    assert_eq!(cache.stats().refusals, 1, "there is no room for values");
    let budgets = 70;
    for block in 0..budgets * 256 {
        put(&cache, 2, block, Class::Value);
        assert!(has(&cache, 1, block % live), "block {block}: what is used stays");
    }
    assert_eq!(present(&cache, 1, 256), live, "the dead have gone");
    assert!(present(&cache, 2, budgets * 256) > 200, "and values have come");
    check(&cache);
}

#[test]
fn threads_find_what_they_inserted_or_nothing() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 30_000;
    let cache = Cache::new(4 * MIB);
    let gets = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, gets) = (&cache, &gets);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                let mut held = Vec::new();
                for round in 0..ROUNDS {
                    let (segment, block) = (rng.below(4) as u32, (rng.below(60) * rng.below(60)) as u32);
                    let number = u64::from(segment) << 32 | u64::from(block);
                    gets.fetch_add(1, Ordering::Relaxed);
                    match cache.get::<Page>(key(segment, block)) {
                        Some(page) => {
                            assert_eq!(page.number, number);
                            held.push((number, page));
                        }
                        None => {
                            let class = Class::ALL[block as usize % 4];
                            put_sized(cache, segment, block, class, 1000 + block as usize);
                        }
                    }
                    if round % 1000 == thread {
                        cache.remove_segment(SegmentId(segment));
                        assert!(bytes(cache) <= 4 * MIB as u64);
                        assert!(held.drain(..).all(|(number, page)| page.number == number));
                    }
                }
            });
        }
    });
    check(&cache);
    let stats = cache.stats();
    assert_eq!(stats.hits + stats.misses, gets.into_inner());
    assert!(stats.hits > THREADS * ROUNDS / 10 && stats.evictions > 0, "{stats:?}");
}

#[test]
fn what_replaces_an_entry_is_as_much_used_and_only_one_stays_where_memory_is_short() {
    // One shard with room for eight.
    let cache = Cache::new(8 * 4096);
    let insert_used = |block, uses| {
        let page = Page { number: u64::from(block), bytes: 4096 - ENTRY_BYTES };
        cache.insert_used(key(1, block), Class::Leaf, Arc::new(page), uses);
    };
    assert_eq!(cache.retire::<Page>(key(1, 0)), None);
    (0..7).for_each(|block| put(&cache, 1, block, Class::Leaf));
    assert!(has(&cache, 1, 0) && has(&cache, 1, 0));
    assert_eq!(cache.retire::<Page>(key(1, 0)), Some(2));
    assert!(has(&cache, 1, 0), "there is room for both");
    insert_used(100, 3);
    assert_eq!(cache.retire::<Page>(key(1, 1)), Some(0));
    assert!(!has(&cache, 1, 1), "there is no room for both");
    cache.remove::<Page>(key(1, 0));
    assert!(!has(&cache, 1, 0));
    check(&cache);
    (200..208).for_each(|block| put(&cache, 1, block, Class::Leaf));
    assert!(has(&cache, 1, 100), "it counts as used while others come by");
    check(&cache);
}
