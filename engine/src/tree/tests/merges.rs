//! Which pages a merge writes and frees, and how full it makes them.
use super::store::{Change, Model, Script, Sink, Store, TestCells, change_model};
use crate::base::ids::SegmentId;
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::tree::{CELL_BYTES_MAX, Edit, Edits, Outcome, PageRef, merge};
use bytes::Bytes;
use std::collections::HashSet;

fn key(number: u64) -> Vec<u8> {
    format!("/registry/pods/{number:08}").into_bytes()
}

fn put(number: u64, payload: &[u8]) -> (Vec<u8>, Change) {
    (key(number), Change::Put(payload.to_vec()))
}

/// A tree of `count` keys with even numbers, made in one merge.
fn grown(page_bytes: usize, count: u64) -> (Store, Model) {
    let (mut store, mut model) = (Store::new(page_bytes), Model::new());
    store.apply(&mut model, (0..count).map(|number| put(2 * number, b"a payload of 24 bytes...")).collect());
    (store, model)
}

fn pages_of_level(store: &Store, level: u8) -> Vec<(PageRef, Vec<u8>)> {
    let mut pages = Vec::new();
    store
        .tree()
        .visit_pages(&mut |r, page| {
            if r.level == level {
                pages.push((*r, page.key(0)));
            }
            Ok(())
        })
        .unwrap();
    pages
}

#[test]
fn a_merge_that_changes_nothing_writes_nothing() {
    let (mut store, mut model) = grown(512, 3000);
    let root = store.root;
    let mut changes = Vec::new();
    for number in 0..6000 {
        changes.push(match number % 4 {
            0 => (key(number), Change::Keep),
            2 => put(number, b"a payload of 24 bytes..."),
            1 => (key(number), Change::Remove),
            _ => (key(number), Change::Keep),
        });
    }
    let outcome = store.apply(&mut model, changes);
    assert_eq!((outcome.root, outcome.freed.len(), outcome.pages_written), (root, 0, 0));
    let outcome = store.apply(&mut model, Vec::new());
    assert_eq!((outcome.root, outcome.bytes_written), (root, 0));
    let mut empty = Store::new(512);
    let nothing = vec![(key(1), Change::Keep), (key(2), Change::Touch(0)), (key(3), Change::Remove)];
    assert_eq!(empty.apply(&mut Model::new(), nothing).root, None);
}

#[test]
fn one_changed_cell_writes_its_leaf_and_the_path_above() {
    let (mut store, mut model) = grown(512, 3000);
    let height = u64::from(store.root.unwrap().level) + 1;
    assert!(height >= 4);
    let before = store.path(&key(2500), 0);
    let outcome = store.apply(&mut model, vec![put(2500, b"another payload of 24...")]);
    assert_eq!(outcome.pages_written, height);
    assert_eq!(outcome.freed.iter().collect::<HashSet<_>>(), before.iter().collect());
}

/// Of each leaf more than half is left, so none is underfull; packed they become fewer, and only where something changes.
#[test]
fn leaves_that_are_packed_are_filled_anew_together() {
    let leaves_with = |packs: bool, end: u64| {
        let (mut store, mut model) = grown(2048, 3000);
        store.packs = packs;
        let before = pages_of_level(&store, 0).len();
        let removed =
            (0..end).filter(|number| number % 10 < 4).map(|number| (key(2 * number), Change::Remove));
        let outcome = store.apply(&mut model, removed.collect());
        (before, pages_of_level(&store, 0).len(), outcome.pages_written)
    };
    let (before, loose, _) = leaves_with(false, 3000);
    assert_eq!(loose, before);
    let (_, packed, _) = leaves_with(true, 3000);
    assert!(packed * 100 < before * 70, "{packed} of {before}");
    // One leaf in which something changes is written alone.
    let (_, _, written) = leaves_with(true, 3);
    assert!(written <= 4, "{written}");
}

#[test]
fn untouched_leaves_are_not_even_loaded() {
    let (mut store, model) = grown(512, 3000);
    let height = u64::from(store.root.unwrap().level) + 1;
    *store.loads.get_mut() = 0;
    let mut edits = Script::new(vec![put(2500, b"x"), put(2502, b"y")], &model);
    let mut sink = Sink::new(SegmentId(9));
    merge(store.root, &store, &TestCells, &store.options(), &mut edits, &mut sink).unwrap();
    assert!(*store.loads.get_mut() <= height + 1, "{} pages were loaded", store.loads.get_mut());
    *store.loads.get_mut() = 0;
    let mut edits = Script::new(vec![(key(2500), Change::Touch(1))], &model);
    merge(store.root, &store, &TestCells, &store.options(), &mut edits, &mut sink).unwrap();
    assert_eq!(*store.loads.get_mut(), height - 1, "a touch of an inner page loads no leaf");
}

/// Suffix truncation: the key of an inner cell is no longer than it takes to separate two leaves.
#[test]
fn separators_are_the_shortest() {
    let (store, _) = grown(512, 3000);
    let mut fences = Vec::new();
    store
        .tree()
        .visit_references(&mut |fence, r| {
            fences.extend((r.level == 0).then(|| fence.to_vec()));
            Ok(true)
        })
        .unwrap();
    let leaves = pages_of_level(&store, 0);
    assert_eq!(fences.len(), leaves.len());
    assert_eq!(fences[0], b"");
    for (index, fence) in fences.iter().enumerate().skip(1) {
        let mut cursor = store.tree().cursor();
        cursor.seek_before(Some(&leaves[index].1)).unwrap();
        let shared = cursor.key().iter().zip(&leaves[index].1).take_while(|(a, b)| a == b).count();
        assert_eq!(fence, &leaves[index].1[..shared + 1]);
    }
}

#[test]
fn a_touch_rewrites_the_page_of_its_level_and_its_ancestors() {
    let (mut store, mut model) = grown(1024, 20_000);
    let top = store.root.unwrap().level;
    assert!(top >= 3);
    for level in 0..=top {
        for number in [0, 1, 7_777, 20_000, 39_998, 50_000] {
            let before = store.path(&key(number), level);
            let outcome = store.apply(&mut model, vec![(key(number), Change::Touch(level))]);
            assert_eq!(outcome.freed.iter().collect::<HashSet<_>>(), before.iter().collect());
            assert_eq!(outcome.pages_written, before.len() as u64);
        }
    }
    let root = store.root;
    assert_eq!(store.apply(&mut model, vec![(key(5), Change::Touch(top + 1))]).root, root);
    store.check(&model, &mut Rng::new(1));
}

#[test]
fn the_leftmost_fences_stay_empty_when_the_first_leaf_goes() {
    let (mut store, mut model) = grown(512, 3000);
    let second = pages_of_level(&store, 0)[1].1.clone();
    let first: Vec<_> = model.range(..second).map(|(key, _)| (key.clone(), Change::Remove)).collect();
    let outcome = store.apply(&mut model, first);
    assert_eq!(
        outcome.freed.len() as u64,
        outcome.pages_written + 1,
        "nothing came in the place of the leaf"
    );
    for level in 1..=store.root.unwrap().level {
        assert_eq!(pages_of_level(&store, level)[0].1, b"");
    }
    store.check(&model, &mut Rng::new(1));
    // What is put before all there is goes to what is now the first leaf.
    store.apply(&mut model, vec![(b"/".to_vec(), Change::Put(Vec::new()))]);
    store.check(&model, &mut Rng::new(2));
}

/// What a cleaner of segments does: every page of one segment is found from the inner pages alone, touched at its
/// fence, and gone afterwards.
#[test]
fn a_segment_is_emptied_by_touching_the_fences_of_its_pages() {
    let (mut store, mut model) = grown(512, 3000);
    store.apply(&mut model, (0..3000).step_by(40).map(|number| put(number, b"newer")).collect());
    let old = SegmentId(1);
    let mut touches: Vec<(Vec<u8>, Change)> = Vec::new();
    store
        .tree()
        .visit_references(&mut |fence, r| {
            if r.segment == old {
                // Parents come first, and the touch of a child rewrites them too.
                if touches.last().is_some_and(|(last, _)| last == fence) {
                    touches.pop();
                }
                touches.push((fence.to_vec(), Change::Touch(r.level)));
            }
            Ok(true)
        })
        .unwrap();
    let outcome = store.apply(&mut model, touches);
    assert!(outcome.pages_written > 0);
    assert!(store.pages.keys().all(|(segment, _)| *segment != old));
    store.check(&model, &mut Rng::new(1));
}

#[test]
fn pruning_drops_cells_of_rewritten_leaves_only() {
    let (mut store, mut model) = grown(512, 3000);
    let leaves = pages_of_level(&store, 0).len() as u64;
    let mut script = Script::new(vec![(key(3000), Change::Keep), put(3001, b"new")], &model)
        .pruning(|key, _| key.ends_with(b"2") || key.ends_with(b"6"));
    store.merge(&mut script);
    let done = script.done();
    change_model(&mut model, done);
    let gone = 3001 - model.len() as u64;
    assert!(gone > 0, "cells beside the new one went");
    assert!(gone < 3 * 3000 / leaves, "{gone} cells went, a leaf has about {}", 3000 / leaves);
    assert!(model.contains_key(&key(3000)), "a cell whose edit keeps it stays");
    store.check(&model, &mut Rng::new(1));

    // Touching every leaf while nothing is kept leaves nothing.
    let touches = pages_of_level(&store, 0).into_iter().map(|(_, key)| (key, Change::Touch(0))).collect();
    let mut script = Script::new(touches, &model).pruning(|_, _| true);
    let outcome = store.merge(&mut script);
    assert_eq!((outcome.root, store.pages.len()), (None, 0));
}

#[test]
fn pages_of_a_large_merge_are_well_filled() {
    let mut rng = Rng::new(5);
    for page_bytes in [512, 4096, 16384] {
        let (mut store, mut model) = grown(page_bytes, 20_000);
        let fill = |store: &Store| {
            let leaves: Vec<u64> =
                pages_of_level(store, 0).iter().map(|(r, _)| used_bytes(store, r)).collect();
            leaves.iter().sum::<u64>() * 100 / (leaves.len() as u64 * page_bytes as u64)
        };
        let loaded = fill(&store);
        assert!((70..=90).contains(&loaded), "{loaded} % of {page_bytes} after loading");
        for _ in 0..10 {
            let numbers: HashSet<u64> = (0..2000).map(|_| rng.below(60_000)).collect();
            let mut changes: Vec<_> = numbers.into_iter().map(|number| put(number, &[1; 24])).collect();
            changes.sort_by(|a, b| a.0.cmp(&b.0));
            store.apply(&mut model, changes);
        }
        let churned = fill(&store);
        // Leaves loaded alike split at the same time, so this is the low end.
        assert!((50..=95).contains(&churned), "{churned} % of {page_bytes} after random inserts");
        // Nine of ten keys go: leaves are merged, not left nearly empty.
        let removed =
            model.keys().filter(|_| !rng.chance(1, 10)).map(|key| (key.clone(), Change::Remove)).collect();
        store.apply(&mut model, removed);
        let shrunk = fill(&store);
        // Only siblings under one parent merge, and small parents have few.
        let least = if page_bytes == 512 { 25 } else { 35 };
        assert!((least..=100).contains(&shrunk), "{shrunk} % of {page_bytes} after removing most");
        store.check(&model, &mut rng);
    }
}

fn used_bytes(store: &Store, r: &PageRef) -> u64 {
    crate::tree::Pages::load(store, r).unwrap().used_bytes() as u64
}

#[test]
fn a_page_is_larger_than_the_target_only_for_its_cell() {
    let (mut store, mut model) = grown(4096, 500);
    let outcome = store.apply(&mut model, vec![put(501, &[7; 100_000])]);
    let large: Vec<_> = pages_of_level(&store, 0).into_iter().filter(|(r, _)| r.blocks > 1).collect();
    assert_eq!((large.len(), large[0].0.blocks, &large[0].1), (1, 25, &key(501)));
    assert!(outcome.pages_written >= 4);
    store.check(&model, &mut Rng::new(1));
}

#[test]
fn a_cell_beyond_all_bounds_is_refused() {
    let (store, model) = grown(512, 10);
    let large = vec![0; CELL_BYTES_MAX];
    let mut edits = Script::new(vec![(b"k".to_vec(), Change::Put(large))], &model);
    let mut sink = Sink::new(SegmentId(9));
    let refused = merge(store.root, &store, &TestCells, &store.options(), &mut edits, &mut sink);
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

/// Edits made up while they are asked for; pages must go to the sink at the same pace.
struct Endless {
    next: u64,
    count: u64,
}

impl Edits for Endless {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        self.next += 1;
        Ok((self.next <= self.count).then(|| (Bytes::from(key(self.next)), Edit::Cell)))
    }

    fn resolve(&mut self, _key: &[u8], _old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        new.extend_from_slice(&[1; 24]);
        Ok(Outcome::Put)
    }

    fn keep(&mut self, _key: &[u8], _payload: &[u8]) -> bool {
        true
    }
}

/// Fails once, after some pages.
struct Failing {
    sink: Sink,
    pages_left: u32,
}

impl crate::tree::PageSink for Failing {
    fn place(&mut self, level: u8, blocks: u32) -> Result<(SegmentId, u32)> {
        self.pages_left = self.pages_left.checked_sub(1).ok_or(Error::NoSpace("full".to_string()))?;
        self.sink.place(level, blocks)
    }

    fn write(&mut self, at: (SegmentId, u32), bytes: &[u8]) -> Result<()> {
        self.sink.write(at, bytes)
    }
}

#[test]
fn pages_leave_while_edits_arrive_and_errors_of_the_sink_come_through() {
    let store = Store::new(4096);
    let mut edits = Endless { next: 0, count: u64::MAX };
    let mut sink = Failing { sink: Sink::new(SegmentId(1)), pages_left: 100 };
    let failed = merge(None, &store, &TestCells, &store.options(), &mut edits, &mut sink);
    assert!(matches!(failed, Err(Error::NoSpace(_))), "{failed:?}");
    // A leaf of 4 KiB has about a hundred cells; two leaves are held back.
    assert!(edits.next < 110 * 105, "{} edits were read before page 101", edits.next);
}

#[test]
#[should_panic(expected = "the keys of edits ascend")]
fn edits_out_of_order_are_a_bug() {
    let (mut store, mut model) = grown(512, 10);
    store.apply(&mut model, vec![put(3, b"a"), put(1, b"b")]);
}

#[test]
#[should_panic(expected = "the keys of edits ascend")]
fn two_cell_edits_of_one_key_are_a_bug() {
    let (mut store, mut model) = grown(512, 10);
    store.apply(&mut model, vec![put(3, b"a"), put(3, b"b")]);
}
