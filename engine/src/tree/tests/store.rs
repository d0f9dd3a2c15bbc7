//! Pages in memory, and edits that check how they are asked.
use crate::base::checksum::crc32;
use crate::base::ids::SegmentId;
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::tree::{
    Aggregate, CellKind, Edit, Edits, MergeOptions, MergeOutcome, Outcome, Page, PageRef, PageSink, Pages,
    Tree, merge,
};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const DATABASE: [u8; 16] = *b"database of test";
pub(super) const TREE: u8 = 3;

pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;
pub(super) type Address = (SegmentId, u32);

/// Payloads that begin with an odd byte are live; the rest is arithmetic.
pub(super) struct TestCells;

impl CellKind for TestCells {
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let crc = u64::from(crc32(payload));
        Aggregate {
            live_keys: u64::from(payload.first().is_some_and(|first| first % 2 == 1)),
            max_mod_revision: (crc % 1_000_000) as i64,
            hash_sum: crc.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }
}

/// Pages of one tree, and nothing but them: freed pages are gone, pages being written are not there yet.
pub(super) struct Store {
    pub(super) pages: HashMap<Address, Bytes>,
    pub(super) root: Option<PageRef>,
    pub(super) page_bytes: usize,
    pub(super) packs: bool,
    pub(super) loads: AtomicU64,
    merges: u32,
}

impl Pages for Store {
    fn load(&self, r: &PageRef) -> Result<Arc<Page>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.pages.get(&(r.segment, r.block)).expect("only pages of the tree are loaded").clone();
        let corruption = |what| Error::Corruption { file: r.segment.to_string(), offset: r.offset(), what };
        Ok(Arc::new(Page::decode(bytes, r, TREE, &DATABASE).map_err(corruption)?))
    }
}

impl Store {
    pub(super) fn new(page_bytes: usize) -> Self {
        Self {
            pages: HashMap::new(),
            root: None,
            page_bytes,
            packs: false,
            loads: AtomicU64::new(0),
            merges: 0,
        }
    }

    pub(super) fn tree(&self) -> Tree<&Self> {
        Tree::new(self.root, self)
    }

    pub(super) fn options(&self) -> MergeOptions {
        MergeOptions {
            page_bytes: self.page_bytes,
            tree: TREE,
            database: DATABASE,
            checkpoint: self.merges.into(),
            packs: self.packs,
        }
    }

    /// Merges `edits`, makes the new tree the current one, and checks that every page is accounted for.
    pub(super) fn merge(&mut self, edits: &mut dyn Edits) -> MergeOutcome {
        self.merges += 1;
        let mut sink = Sink::new(SegmentId(self.merges));
        let outcome =
            merge(self.root, &*self, &TestCells, &self.options(), edits, &mut sink).expect("pages are sound");
        assert_eq!(sink.placed, None, "every page that was placed was written");
        assert_eq!(outcome.pages_written, sink.pages.len() as u64);
        assert_eq!(
            outcome.bytes_written,
            sink.pages.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
        );
        self.pages.extend(sink.pages);
        for freed in &outcome.freed {
            let bytes = self.pages.remove(&(freed.segment, freed.block));
            assert_eq!(bytes.expect("a page is freed once").len(), freed.bytes());
        }
        self.root = outcome.root;
        let mut reachable = HashSet::new();
        self.tree()
            .visit_pages(&mut |r, _| {
                assert!(reachable.insert((r.segment, r.block)), "a page is in the tree once");
                Ok(())
            })
            .expect("pages are sound");
        assert_eq!(reachable, self.pages.keys().copied().collect(), "before - freed + written = reachable");
        outcome
    }

    /// The references from the root to the page of `level` that covers `key`; empty if there is no such level.
    pub(super) fn path(&self, key: &[u8], level: u8) -> Vec<PageRef> {
        let mut path: Vec<_> = self.root.into_iter().filter(|root| root.level >= level).collect();
        while let Some(last) = path.last().filter(|last| last.level > level) {
            let page = self.load(last).unwrap();
            path.push(page.child(page.child_index(key)));
        }
        path
    }

    /// Merges `changes` into the tree and the model; see [`Script`].
    pub(super) fn apply(&mut self, model: &mut Model, changes: Vec<(Vec<u8>, Change)>) -> MergeOutcome {
        let mut script = Script::new(changes, model);
        let outcome = self.merge(&mut script);
        let done = script.done();
        change_model(model, done);
        outcome
    }

    /// Checks the tree against the model: structure, every cell in both directions, reads by key.
    pub(super) fn check(&self, model: &Model, rng: &mut Rng) {
        let counts = self.tree().check(&TestCells).expect("the tree is sound");
        assert_eq!(counts.cells, model.len() as u64);
        assert_eq!(counts.pages, self.pages.len() as u64);
        let mut cursor = self.tree().cursor();
        cursor.seek(b"").unwrap();
        for (key, payload) in model {
            assert_eq!((cursor.key(), cursor.payload()), (key.as_slice(), payload.as_slice()));
            cursor.next().unwrap();
        }
        assert!(!cursor.is_valid());
        cursor.seek_before(None).unwrap();
        for (key, payload) in model.iter().rev() {
            assert_eq!((cursor.key(), cursor.payload()), (key.as_slice(), payload.as_slice()));
            cursor.prev().unwrap();
        }
        assert!(!cursor.is_valid());
        let step = 1 + model.len() / 50;
        for (key, payload) in model.iter().skip(rng.below(step as u64) as usize).step_by(step) {
            let hit = self.tree().get(key).unwrap().expect("a key of the model");
            assert_eq!((&hit.key(), hit.payload()), (key, payload.as_slice()));
            assert_eq!(hit.payload_bytes(), hit.payload());
            let mut above = key.clone();
            above.push(0);
            assert_eq!(self.tree().get(&above).unwrap().is_some(), model.contains_key(&above));
        }
    }
}

/// Takes pages in the order of a file, and checks the protocol.
pub(super) struct Sink {
    segment: SegmentId,
    next_block: u32,
    placed: Option<(Address, u32)>,
    pub(super) pages: Vec<(Address, Bytes)>,
}

impl Sink {
    pub(super) fn new(segment: SegmentId) -> Self {
        Self { segment, next_block: 1, placed: None, pages: Vec::new() }
    }
}

impl PageSink for Sink {
    fn place(&mut self, _level: u8, blocks: u32) -> Result<Address> {
        assert_eq!(self.placed, None, "a page is written before the next one is placed");
        let at = (self.segment, self.next_block);
        self.next_block += blocks;
        self.placed = Some((at, blocks));
        Ok(at)
    }

    fn write(&mut self, at: Address, bytes: &[u8]) -> Result<()> {
        assert_eq!(self.placed.take(), Some((at, (bytes.len() / 4096) as u32)));
        assert_eq!(bytes.len() % 4096, 0);
        self.pages.push((at, Bytes::copy_from_slice(bytes)));
        Ok(())
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Change {
    Put(Vec<u8>),
    Remove,
    Keep,
    Touch(u8),
}

type Predicate = Box<dyn Fn(&[u8], &[u8]) -> bool>;

/// Edits from a list; checks that each is resolved once, in order, with the payload that the model has, and that
/// `keep` is asked at most once, only about cells without an edit.
pub(super) struct Script<'m> {
    changes: Vec<(Vec<u8>, Change)>,
    next: usize,
    resolved: usize,
    model: &'m Model,
    /// Cells that `keep` was asked about, and the answers.
    asked: BTreeMap<Vec<u8>, bool>,
    prune: Predicate,
}

impl<'m> Script<'m> {
    pub(super) fn new(changes: Vec<(Vec<u8>, Change)>, model: &'m Model) -> Self {
        Self { changes, next: 0, resolved: 0, model, asked: BTreeMap::new(), prune: Box::new(|_, _| false) }
    }

    pub(super) fn pruning(mut self, prune: impl Fn(&[u8], &[u8]) -> bool + 'static) -> Self {
        self.prune = Box::new(prune);
        self
    }

    /// The changes that have to be made to the model.
    pub(super) fn done(self) -> Vec<(Vec<u8>, Change)> {
        assert_eq!(self.resolved, self.changes.len(), "every edit was fetched and resolved");
        let pruned = self.asked.into_iter().filter(|(_, keep)| !keep).map(|(key, _)| (key, Change::Remove));
        self.changes.into_iter().chain(pruned).collect()
    }
}

impl Edits for Script<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        let before = self.changes[..self.next].iter().rev().take(1);
        for (key, change) in before.filter(|(_, change)| !matches!(change, Change::Touch(_))) {
            assert_eq!(self.resolved, self.next, "{change:?} of {key:?} was resolved before the next edit");
        }
        let Some((key, change)) = self.changes.get(self.next) else { return Ok(None) };
        self.next += 1;
        let edit = match change {
            Change::Touch(level) => {
                self.resolved += 1;
                Edit::Touch { level: *level }
            }
            _ => Edit::Cell,
        };
        Ok(Some((Bytes::copy_from_slice(key), edit)))
    }

    fn resolve(&mut self, key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        self.resolved += 1;
        assert_eq!(self.resolved, self.next, "an edit is resolved before the next one is fetched");
        let (wanted, change) = &self.changes[self.next - 1];
        assert_eq!(key, wanted);
        assert_eq!(old, self.model.get(key).map(Vec::as_slice));
        assert!(new.is_empty());
        Ok(match change {
            Change::Put(payload) => {
                new.extend_from_slice(payload);
                Outcome::Put
            }
            Change::Remove => Outcome::Remove,
            Change::Keep => {
                new.extend_from_slice(b"to be ignored");
                Outcome::Keep
            }
            Change::Touch(_) => unreachable!("a touch has no cell"),
        })
    }

    fn keep(&mut self, key: &[u8], payload: &[u8]) -> bool {
        assert_eq!(self.model.get(key).map(Vec::as_slice), Some(payload));
        let edited =
            self.changes[..self.next].iter().rev().take_while(|(edited, _)| edited.as_slice() >= key);
        for (edited, change) in edited {
            let is_cell = !matches!(change, Change::Touch(_));
            assert!(!(is_cell && edited == key), "a cell with an edit is not asked about: {key:?}");
        }
        let keep = !(self.prune)(key, payload);
        assert_eq!(self.asked.insert(key.to_vec(), keep), None, "a cell is asked about once");
        keep
    }
}

/// Makes `changes` to the model.
pub(super) fn change_model(model: &mut Model, changes: Vec<(Vec<u8>, Change)>) {
    for (key, change) in changes {
        match change {
            Change::Put(payload) => drop(model.insert(key, payload)),
            Change::Remove => drop(model.remove(&key)),
            Change::Keep | Change::Touch(_) => {}
        }
    }
}
