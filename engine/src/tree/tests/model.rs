//! Rounds of random edits, after each of which tree and `BTreeMap` agree in everything that can be read.
use super::store::{Change, Model, Script, Store, TestCells, change_model};
use crate::base::rng::Rng;
use crate::tree::{Aggregate, CellKind, PageRef, Pages};
use std::collections::HashSet;

/// How keys look.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// Eight random bytes.
    Random,
    /// Up to three bytes out of four, the empty key among them: keys that are prefixes of each other.
    Tiny,
    /// Like `/registry/kind/namespace/name`.
    Paths,
    /// Zeros and 0xff, up to 40 of them.
    Edges,
    /// Mostly short, sometimes up to 20 KiB that differ only at the end.
    Long,
}

impl Keys {
    fn make(self, rng: &mut Rng, space: u64) -> Vec<u8> {
        match self {
            Self::Random => (rng.below(space).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes().to_vec(),
            Self::Tiny => (0..rng.below(9)).map(|_| b"abc\0"[rng.below(4) as usize]).collect(),
            Self::Paths => {
                let kind = ["pods", "leases", "events", "minions"][rng.below(4) as usize];
                let name = rng.below(space);
                format!("/registry/{kind}/namespace-{:03}/name-{name:08x}", name % 17).into_bytes()
            }
            Self::Edges => {
                let count = rng.below(40);
                (0..count).map(|_| if rng.chance(1, 10) { 0xff } else { 0 }).collect()
            }
            Self::Long => {
                let mut key = vec![b'x'; if rng.chance(1, 4) { rng.below(20 << 10) as usize } else { 5 }];
                key.extend_from_slice(&rng.below(space).to_be_bytes()[4..]);
                key
            }
        }
    }
}

/// What a round does to keys, in parts of a hundred.
#[derive(Clone, Copy)]
struct Mix {
    put: u64,
    remove: u64,
    /// Of the rest half are kept and half touch a page.
    existing: u64,
}

fn changes(
    rng: &mut Rng,
    model: &Model,
    keys: Keys,
    space: u64,
    count: u64,
    mix: Mix,
) -> Vec<(Vec<u8>, Change)> {
    let mut changes = Model::new();
    for _ in 0..count {
        let mut key = keys.make(rng, space);
        if rng.chance(mix.existing, 100)
            && let Some((existing, _)) = model.range(key.clone()..).next()
        {
            key.clone_from(existing);
        }
        changes.insert(key, Vec::new());
    }
    let mut out = Vec::new();
    for key in changes.into_keys() {
        let dice = rng.below(100);
        if dice < mix.put {
            let payload_bytes = match rng.below(200) {
                0 => 3000,
                1..20 => 0,
                _ => rng.below(40),
            };
            let mut payload = vec![0; payload_bytes as usize];
            rng.fill(&mut payload);
            out.push((key, Change::Put(payload)));
        } else if dice < mix.put + mix.remove {
            out.push((key, Change::Remove));
        } else if dice.is_multiple_of(2) {
            out.push((key, Change::Keep));
        } else {
            // A touch may stand before or behind the cell edit of the same key, or alone.
            let touch = (key.clone(), Change::Touch(rng.below(6) as u8));
            let cell = (key, Change::Remove);
            match rng.below(3) {
                0 => out.extend([touch, cell]),
                1 => out.extend([cell, touch]),
                _ => out.push(touch),
            }
        }
    }
    out
}

fn sum<'a>(cells: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>) -> Aggregate {
    let mut sum = Aggregate::default();
    cells.for_each(|(_, payload)| sum.add(&TestCells.aggregate(payload)));
    sum
}

fn check_ranges(store: &Store, model: &Model, keys: Keys, space: u64, rng: &mut Rng) {
    let tree = store.tree();
    for _ in 0..20 {
        let (mut from, mut end) = (keys.make(rng, space), keys.make(rng, space));
        if rng.chance(1, 3)
            && let Some((key, _)) = model.range(from.clone()..).next()
        {
            from.clone_from(key);
        }
        if rng.chance(1, 3)
            && let Some((key, _)) = model.range(end.clone()..).next()
        {
            end.clone_from(key);
        }
        let found = tree.aggregate(&TestCells, &from, Some(&end)).unwrap();
        let expected =
            if from < end { sum(model.range(from.clone()..end.clone())) } else { Aggregate::default() };
        assert_eq!(found, expected, "[{from:?}, {end:?})");
        assert_eq!(tree.aggregate(&TestCells, &from, None).unwrap(), sum(model.range(from.clone()..)));
        assert_eq!(tree.aggregate(&TestCells, b"", Some(&end)).unwrap(), sum(model.range(..end.clone())));

        let mut cursor = tree.cursor();
        let mut expected = model.range(from.clone()..);
        assert_eq!(cursor.seek(&from).unwrap(), expected.clone().next().is_some());
        for _ in 0..rng.below(12) {
            let cell = expected.next();
            assert_eq!(
                cursor.is_valid().then(|| (cursor.key(), cursor.payload())),
                cell.map(|(k, p)| (&k[..], &p[..]))
            );
            cursor.next().unwrap();
        }
        let mut expected = model.range(..end.clone()).rev();
        assert_eq!(cursor.seek_before(Some(&end)).unwrap(), expected.clone().next().is_some());
        for _ in 0..rng.below(12) {
            let cell = expected.next();
            assert_eq!(
                cursor.is_valid().then(|| (cursor.key(), cursor.payload())),
                cell.map(|(k, p)| (&k[..], &p[..]))
            );
            cursor.prev().unwrap();
        }
        if let Some(span) = tree.leaf_of(&from).unwrap() {
            assert!(span.from <= from && span.end.as_ref().is_none_or(|end| from < *end), "{span:?}");
            let leaf = store.load(&span.leaf).unwrap();
            let keys = model
                .keys()
                .filter(|key| **key >= span.from && span.end.as_ref().is_none_or(|end| *key < end));
            assert!(keys.eq((0..leaf.count()).map(|index| leaf.key(index)).collect::<Vec<_>>().iter()));
            let shared = span.shared_bytes();
            assert!((0..leaf.count()).all(|index| leaf.key(index).starts_with(&span.from[..shared])));
        }
        // Back and forth from one place.
        if cursor.seek(&from).unwrap() {
            let (hit, mut steps) = (cursor.hit(), 0);
            while steps < 30 && cursor.next().unwrap() {
                steps += 1;
            }
            if cursor.is_valid() {
                (0..steps).for_each(|_| assert!(cursor.prev().unwrap()));
                assert_eq!((cursor.key(), cursor.payload()), (&hit.key()[..], hit.payload()));
            }
        }
    }
    assert_eq!(tree.aggregate(&TestCells, b"", None).unwrap(), sum(model.iter()));
    assert_eq!(store.root.map_or(Aggregate::default(), |root| root.aggregate), sum(model.iter()));
}

/// T5, and that no page is far below what splitting and merging should leave.
fn check_sizes(store: &Store) {
    let target = store.page_bytes;
    store
        .tree()
        .visit_pages(&mut |r, page| {
            let cells_max = if r.level == 0 { 1 } else { 2 };
            assert!(page.used_bytes() <= target || page.count() <= cells_max, "T5: {r:?}, {page:?}");
            assert!(r.bytes() - page.used_bytes() < 4096);
            Ok(())
        })
        .unwrap();
}

/// Grows, churns, shrinks to nothing and grows again. Returns the greatest height seen.
fn run(seed: u64, page_bytes: usize, keys: Keys, edits_per_round: u64) -> u32 {
    const GROW: Mix = Mix { put: 85, remove: 5, existing: 10 };
    const CHURN: Mix = Mix { put: 30, remove: 30, existing: 50 };
    const SHRINK: Mix = Mix { put: 4, remove: 88, existing: 95 };
    let mut rng = Rng::new(seed);
    let (mut store, mut model) = (Store::new(page_bytes), Model::new());
    store.packs = seed % 2 == 1;
    let space = edits_per_round * 8;
    let mut height = 0;
    for round in 0..36 {
        let mix = [GROW, CHURN, SHRINK][round / 6 % 3];
        // Every so often only a handful, so that most pages are passed by.
        let count = if rng.chance(1, 3) { 1 + rng.below(5) } else { 1 + rng.below(edits_per_round) };
        let changes = changes(&mut rng, &model, keys, space, count, mix);
        let touched: Vec<PageRef> = changes
            .iter()
            .filter_map(|(key, change)| match change {
                Change::Touch(level) => store.path(key, *level).pop(),
                _ => None,
            })
            .collect();
        let mut script = Script::new(changes, &model);
        if rng.chance(1, 3) {
            script = script.pruning(|key, payload| (key.len() + payload.len()).is_multiple_of(7));
        }
        let freed: HashSet<PageRef> = store.merge(&mut script).freed.into_iter().collect();
        assert!(touched.iter().all(|r| freed.contains(r)), "what was touched is rewritten");
        let done = script.done();
        change_model(&mut model, done);
        store.check(&model, &mut rng);
        check_ranges(&store, &model, keys, space, &mut rng);
        check_sizes(&store);
        height = height.max(store.root.map_or(0, |root| u32::from(root.level) + 1));
    }
    let everything = model.keys().map(|key| (key.clone(), Change::Remove)).collect();
    let outcome = store.apply(&mut model, everything);
    assert_eq!((outcome.root, store.pages.len(), outcome.pages_written), (None, 0, 0));
    height
}

#[test]
fn tree_and_map_agree_on_random_keys() {
    for seed in 0..4 {
        let height = run(seed, 512, Keys::Random, 1500);
        assert!(height >= 4, "seed {seed} has {height} levels");
    }
}

#[test]
fn tree_and_map_agree_on_paths() {
    for seed in 0..2 {
        let height = run(seed, 512, Keys::Paths, 1500);
        assert!(height >= 4, "seed {seed} has {height} levels");
        run(100 + seed, 4096, Keys::Paths, 2500);
    }
}

#[test]
fn tree_and_map_agree_on_tiny_keys_that_are_prefixes_of_each_other() {
    for seed in 0..6 {
        run(seed, [512, 700, 1024][seed as usize % 3], Keys::Tiny, 2000);
    }
}

#[test]
fn tree_and_map_agree_on_keys_of_extreme_bytes() {
    for seed in 0..4 {
        run(seed, 512, Keys::Edges, 800);
    }
}

#[test]
fn tree_and_map_agree_on_keys_longer_than_a_page() {
    for seed in 0..3 {
        run(seed, [512, 4096, 16384][seed as usize % 3], Keys::Long, 300);
    }
}
