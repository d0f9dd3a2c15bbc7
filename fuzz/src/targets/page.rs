//! Pages of trees: one damaged page on its own, and whole trees with damaged pages that every checksum speaks for.
use crate::damage::Damage;
use crate::seals::{self, PageStore};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::ids::SegmentId;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::disk_state::reencode_pending_change;
use sternpost_engine::tree::{
    Aggregate, CellKind, Edit, Edits, KEY_TREE, MergeOptions, Outcome, PAGE_REF_BYTES, Page, PageRef,
    PageSink, Pages, Tree, merge,
};
use sternpost_engine::{Bytes, Error, Result};

const DATABASE: [u8; 16] = *b"database of fuzz";
/// Cells that a walk over a damaged tree of a few hundred may meet.
const CELLS_MAX: usize = 1_000_000;

/// Payloads that begin with an odd byte are live; the rest is arithmetic.
struct Cells;

impl CellKind for Cells {
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let crc = u64::from(crc32(payload));
        Aggregate {
            live_keys: payload.first().map_or(0, |first| u64::from(first % 2)),
            max_mod_revision: (crc % 1_000_000) as i64,
            hash_sum: crc.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }
}

/// A tree as the merge wrote it.
struct Image {
    pages: PageStore,
    root: PageRef,
    /// Every page with its true reference.
    references: Vec<PageRef>,
    model: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Where a merge puts its pages.
struct Sink<'a> {
    pages: &'a mut PageStore,
    segment: SegmentId,
    block: u32,
}

impl PageSink for Sink<'_> {
    fn place(&mut self, _level: u8, blocks: u32) -> Result<(SegmentId, u32)> {
        self.block += blocks;
        Ok((self.segment, self.block - blocks))
    }

    fn write(&mut self, at: (SegmentId, u32), bytes: &[u8]) -> Result<()> {
        self.pages.insert(at, bytes.to_vec());
        Ok(())
    }
}

/// Puts, removals and touches of keys in order; some cells without an edit are dropped too.
struct Changes {
    changes: std::vec::IntoIter<(Bytes, Option<Vec<u8>>)>,
    current: Option<Vec<u8>>,
    touch_every: usize,
    count: usize,
}

impl Changes {
    fn new(changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>, touch_every: usize) -> Self {
        let changes: Vec<_> = changes.into_iter().map(|(key, change)| (Bytes::from(key), change)).collect();
        Self { changes: changes.into_iter(), current: None, touch_every, count: 0 }
    }
}

impl Edits for Changes {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        let Some((key, change)) = self.changes.next() else { return Ok(None) };
        self.count += 1;
        if self.touch_every > 0 && self.count.is_multiple_of(self.touch_every) {
            return Ok(Some((key, Edit::Touch { level: (self.count % 3) as u8 })));
        }
        self.current = change;
        Ok(Some((key, Edit::Cell)))
    }

    fn resolve(&mut self, _: &[u8], _: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        Ok(match self.current.take() {
            Some(payload) => {
                new.extend_from_slice(&payload);
                Outcome::Put
            }
            None => Outcome::Remove,
        })
    }

    fn keep(&mut self, _: &[u8], payload: &[u8]) -> bool {
        self.touch_every == 0 || payload.first() != Some(&9)
    }
}

fn options(page_bytes: usize, packs: bool) -> MergeOptions {
    MergeOptions { page_bytes, tree: KEY_TREE, database: DATABASE, checkpoint: 4, packs }
}

fn image(number: u64) -> Image {
    let mut rng = Rng::new(number);
    let mut model = BTreeMap::new();
    for at in 0..[400, 60, 1_500][number as usize % 3] {
        let mut payload = vec![0; rng.below(60) as usize];
        rng.fill(&mut payload);
        let long = if at % 100 == 0 { "k".repeat(300) } else { String::new() };
        let key = if number.is_multiple_of(2) {
            format!("/pods/{at:05}{long}")
        } else {
            format!("{:x}", rng.next_u64())
        };
        model.insert(key.into_bytes(), payload);
    }
    let changes = model.iter().map(|(key, payload)| (key.clone(), Some(payload.clone()))).collect();
    let mut pages = PageStore::new();
    let mut sink = Sink { pages: &mut pages, segment: SegmentId(number as u32 + 1), block: 1 };
    let none = Damaged { pages: &PageStore::new() };
    let mut changes = Changes::new(changes, 0);
    let outcome = merge(None, &none, &Cells, &options(700, false), &mut changes, &mut sink)
        .expect("nothing is damaged");
    let root = outcome.root.expect("there are cells");
    let mut references = Vec::new();
    Tree::new(Some(root), Damaged { pages: &pages })
        .visit_pages(&mut |r, _| {
            references.push(*r);
            Ok(())
        })
        .expect("nothing is damaged");
    Image { pages, root, references, model }
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| (0..3).map(image).collect())
}

/// Pages that may be damaged.
#[derive(Clone, Copy)]
struct Damaged<'a> {
    pages: &'a PageStore,
}

impl Pages for Damaged<'_> {
    fn load(&self, r: &PageRef) -> Result<Arc<Page>> {
        let corruption = |what| Error::Corruption { file: "pages".into(), offset: r.offset(), what };
        let bytes = self.pages.get(&(r.segment, r.block)).cloned().unwrap_or_default();
        Page::decode(Bytes::from(bytes), r, KEY_TREE, &DATABASE).map(Arc::new).map_err(corruption)
    }
}

/// A reference: 48 bytes that come back as they were, or are refused.
/// A change as the pending tree has it: flags, hash of what it replaces, cell.
pub(crate) fn pending_change_seed(rng: &mut Rng) -> Vec<u8> {
    let mut input = vec![[0, 2, 6, 3, 7][rng.below(5) as usize]];
    if input[0] & 4 != 0 {
        input.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    if input[0] & 1 == 0 {
        let mut cell = vec![0; 12 + rng.below(80) as usize];
        rng.fill(&mut cell);
        input.extend(cell);
    }
    input
}

/// What is read as a change says the same when it is written again: there are no two payloads of one meaning.
pub(crate) fn pending_change(input: &[u8]) {
    let Some(again) = reencode_pending_change(input) else { return };
    assert!(again == input, "{input:02x?} is read, and written as {again:02x?}");
    let (flags, replaces) = (input[0], input[0] & 6);
    assert!([0, 2, 6].contains(&replaces) && flags < 8, "flags {flags:#x}");
    let head = if replaces == 6 { 9 } else { 1 };
    // W3: a purge replaces a cell, and has none.
    assert_eq!(flags & 1 != 0, input.len() == head, "{input:02x?}");
    assert!(flags != 1, "a purge of nothing");
}

pub(crate) fn reference(input: &[u8]) {
    if let Ok(r) = PageRef::decode(input) {
        assert_eq!(r.encode(), input, "a page reference changes when it is read and written");
        assert!(r.bytes() > 0);
    }
}

pub(crate) fn reference_seed(rng: &mut Rng) -> Vec<u8> {
    let image = &images()[rng.below(3) as usize];
    let r = image.references[rng.below(image.references.len() as u64) as usize];
    assert_eq!(r.encode().len(), PAGE_REF_BYTES);
    r.encode().to_vec()
}

/// One page: never taken for the true one; and with a checksum that speaks for it, in order or refused.
pub(crate) fn page(input: &[u8]) {
    let damage = Damage::read(input);
    let image = &images()[damage.image % 3];
    let r = image.references[damage.switches as usize % image.references.len()];
    let original = &image.pages[&(r.segment, r.block)];
    let mut bytes = original.clone();
    damage.apply(&mut bytes, &seals::dense_in_page(original, 0));
    if let Ok(page) = Page::decode(Bytes::from(bytes.clone()), &r, KEY_TREE, &DATABASE) {
        assert!(bytes == *original, "a damaged page was taken for the one that was written: {page:?}");
    }
    if damage.seed().is_multiple_of(16) {
        // Another length; whole blocks are what a reference can name.
        bytes.resize(bytes.len() + 4096, 0);
    }
    let blocks = (bytes.len() / 4096) as u32;
    let vouching = PageRef { crc: crc32(&bytes), blocks, ..r };
    if let Ok(page) = Page::decode(Bytes::from(bytes.clone()), &vouching, KEY_TREE, &DATABASE) {
        check_header(&bytes, &vouching);
        exercise(&page, &mut Rng::new(damage.seed()));
    }
}

/// The header of a page that was accepted says what `data_file.md` wants of it: magic, format, level, tree, whose it is, its own
/// place.
fn check_header(bytes: &[u8], r: &PageRef) {
    assert_eq!(bytes[..8], [b'S', b'T', b'P', b'G', 1, r.level, KEY_TREE, 0]);
    assert_eq!(bytes[28..36], DATABASE[..8]);
    let place = [r.segment.0.to_le_bytes(), r.block.to_le_bytes()].concat();
    assert_eq!(bytes[44..52], place, "a page of another place");
    assert_eq!(bytes[52..64], [0; 12], "reserved");
}

/// Calls everything that a page offers, and checks that it holds together.
fn exercise(page: &Page, rng: &mut Rng) {
    let mut last: Option<Vec<u8>> = None;
    for index in 0..page.count() {
        let key = page.key(index);
        assert_eq!(page.search(&key), Ok(index), "a key of the page is found where it is");
        assert!(last.is_none_or(|last| last < key), "T1: the keys of a page ascend");
        assert_eq!(page.payload_bytes(index), page.payload(index));
        if page.level() > 0 {
            assert_eq!(page.child(index).level + 1, page.level());
        }
        last = Some(key);
    }
    for _ in 0..4 {
        let mut key = page.key(rng.below(page.count() as u64) as usize);
        key.truncate(rng.below(key.len() as u64 + 1) as usize);
        key.push(rng.next_u64() as u8);
        let (Ok(at) | Err(at)) = page.search(&key);
        assert!(at <= page.count());
        assert!(page.child_index(&key) < page.count());
    }
    assert!(page.used_bytes() <= page.memory_bytes());
}

/// A whole tree with damaged pages.
pub(crate) fn tree(input: &[u8]) {
    let damage = Damage::read(input);
    let image = &images()[damage.image % 3];
    let mut pages = image.pages.clone();
    for (at, bytes) in &mut pages {
        // Each page is damaged alike, which is rare; mostly one is.
        let chosen = damage.seed() % image.pages.len() as u64;
        if damage.switches & 7 == 7 || image.references[chosen as usize].block == at.1 {
            let dense = seals::dense_in_page(bytes, 0);
            damage.apply(bytes, &dense);
        }
    }
    let damaged = Damaged { pages: &pages };
    check_true(&Tree::new(Some(image.root), damaged), image, damage.is_empty());
    let mut sealed = pages.clone();
    // In one run of four the sums stay as they are, which may be wrong then.
    let root = seals::seal_tree(&mut sealed, image.root, &Cells, damage.switches & 0x60 != 0);
    use_tree(root, &sealed, image, &mut Rng::new(damage.seed()));
}

/// What is found is what was put there, or an error.
fn check_true(tree: &Tree<Damaged<'_>>, image: &Image, whole: bool) {
    for (key, payload) in image.model.iter().step_by(7) {
        match tree.get(key) {
            Ok(hit) => {
                assert_eq!(hit.as_ref().map(|hit| hit.payload()), Some(&payload[..]), "a wrong answer")
            }
            Err(error) => assert!(!whole, "an undamaged tree: {error}"),
        }
    }
    let mut expected = image.model.iter();
    let mut cursor = tree.cursor();
    let mut moved = cursor.seek(b"");
    while let Ok(true) = moved {
        let (key, payload) = expected.next().expect("no more cells than were put there");
        assert_eq!((cursor.key(), cursor.payload()), (&key[..], &payload[..]), "a wrong answer");
        moved = cursor.next();
    }
    if moved.is_ok() {
        assert!(expected.next().is_none(), "a cursor stopped early and said nothing");
    }
    if let Ok(sum) = tree.aggregate(&Cells, b"", None) {
        assert_eq!(sum, image.root.aggregate);
    }
    assert_eq!(tree.check(&Cells).is_ok(), moved.is_ok() || whole);
}

/// The sum over a range of a sound tree, cell by cell.
fn sum_by_steps(tree: &Tree<Damaged<'_>>, from: &[u8], end: Option<&[u8]>) -> Aggregate {
    let mut sum = Aggregate::default();
    let mut cursor = tree.cursor();
    let mut is_valid = cursor.seek(from).expect("a sound tree");
    while is_valid && end.is_none_or(|end| cursor.key() < end) {
        sum.add(&Cells.aggregate(cursor.payload()));
        is_valid = cursor.next().expect("a sound tree");
    }
    sum
}

/// Everything that a tree offers; answers may be anything, the end must come.
fn use_tree(root: PageRef, pages: &PageStore, image: &Image, rng: &mut Rng) {
    let damaged = Damaged { pages };
    let tree = Tree::new(Some(root), damaged);
    let keys: Vec<&Vec<u8>> = image.model.keys().collect();
    let mut key = || {
        let mut key = keys[rng.below(keys.len() as u64) as usize].clone();
        if rng.chance(1, 3) {
            key.push(b'x');
        }
        key
    };
    for _ in 0..20 {
        let (from, end) = (key(), key());
        let _ = tree.get(&from);
        let _ = tree.aggregate(&Cells, &from, Some(&end));
    }
    for backward in [false, true] {
        let mut cursor = tree.cursor();
        let mut moved = if backward { cursor.seek_before(None) } else { cursor.seek(b"") };
        let mut count = 0;
        let mut last: Option<Vec<u8>> = None;
        while let Ok(true) = moved {
            assert!(cursor.hit().payload() == cursor.payload());
            let is_beyond = |last: &Vec<u8>| match backward {
                true => cursor.key() < &last[..],
                false => cursor.key() > &last[..],
            };
            assert!(last.as_ref().is_none_or(is_beyond), "T1: the keys of a walk are in order");
            last = Some(cursor.key().to_vec());
            moved = if backward { cursor.prev() } else { cursor.next() };
            count += 1;
            assert!(count < CELLS_MAX, "a walk has no end");
        }
    }
    let sound = tree.check(&Cells).is_ok();
    if sound {
        let (from, end) = (key(), key());
        for (from, end) in [(&[][..], None), (&from, Some(&end[..])), (&end, None)] {
            let sum = tree.aggregate(&Cells, from, end).expect("a sound tree");
            assert_eq!(sum, sum_by_steps(&tree, from, end), "T4: from {from:02x?} to {end:02x?}");
        }
    }
    let _ = tree.visit_references(&mut |_, r| Ok(r.level > 1));
    let mut changes = BTreeMap::new();
    for number in 0..60_u8 {
        changes.insert(key(), (number % 3 > 0).then(|| vec![number; usize::from(number)]));
    }
    let mut written = PageStore::new();
    let mut sink = Sink { pages: &mut written, segment: SegmentId(99), block: 1 };
    let mut changes = Changes::new(changes, 5);
    if let Ok(outcome) = merge(Some(root), &damaged, &Cells, &options(700, true), &mut changes, &mut sink) {
        written.extend(pages.iter().map(|(at, bytes)| (*at, bytes.clone())));
        let merged = Tree::new(outcome.root, Damaged { pages: &written });
        let merged = merged.check(&Cells);
        assert!(!sound || merged.is_ok(), "a merge into a sound tree gave an unsound one: {merged:?}");
    }
}
