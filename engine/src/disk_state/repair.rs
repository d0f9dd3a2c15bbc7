//! A leaf of the key tree or of the pending tree from the records, when its page does not verify.
//!
//! **Contract.** The two say nothing that the revision log does not say too: for each key the newest version. So a leaf is
//! made again from the records that are alive and from what the other tree has, and believed only if it then has the number of keys and
//! the sum of hashes in the reference to it: a record that is missing, or one too many, changes the sum. It is held in memory in place of
//! the page until a checkpoint has written it anew, which the next one does ([`Repairs::fences`]).
//!
//! **What is pending over a lost leaf** has a newer version than the leaf had, whose record may be gone. Nobody reads that cell; a *stand-in*
//! takes its place, with the hash that the change says it replaces.
//!
//! **Cost.** All live records are read once for each lost leaf, since nothing but a record knows its key. Readers of the same leaf wait
//! for it; readers of others do not.
//!
//! **Not repaired**: pages above the leaves, of other trees, and a leaf in whose range a record or the other tree's page is damaged too.
//! Their readers get the error of the page.
//!
//! **Bound.** [`PAGES_MAX`] pages in memory.
use super::cell::stand_in;
use super::pending::{PendingChange, Replaced};
use super::{DiskState, DiskVersion, Shelf, TreeId, TreePages, encode_cell_of};
use crate::base::ids::{Revision, SegmentId};
use crate::error::{Error, Result};
use crate::revision_log::{Entry, OwnedRecord};
use crate::segment::{self, SegmentKind};
use crate::tree::{Aggregate, Page, PageRef, Pages, Tree};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most leaves that are held in memory because their page is lost.
const PAGES_MAX: usize = 256;

/// What became of a page that does not verify.
#[derive(Clone)]
struct Repair {
    tree: TreeId,
    /// The page and its lower fence; none if it cannot be made.
    made: Option<(Arc<Page>, Bytes)>,
    /// A checkpoint has written it anew.
    is_rewritten: bool,
}

/// Repaired pages of all states, by place. Nearly always there is none, and then no lock is taken.
#[derive(Default)]
pub(crate) struct Repairs {
    count: AtomicUsize,
    pages: Mutex<BTreeMap<(SegmentId, u32), Repair>>,
    /// Held while one is made.
    making: Mutex<()>,
}

impl Repairs {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<(SegmentId, u32), Repair>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page, if it was repaired.
    #[inline]
    pub(crate) fn get(&self, reference: &PageRef) -> Option<Arc<Page>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.known(reference)?.made.map(|(page, _)| page)
    }

    fn known(&self, reference: &PageRef) -> Option<Repair> {
        self.pages().get(&(reference.segment, reference.block)).cloned()
    }

    fn insert(&self, tree: TreeId, reference: &PageRef, made: Option<(Arc<Page>, Bytes)>) {
        let mut pages = self.pages();
        if pages.len() < PAGES_MAX {
            pages.insert((reference.segment, reference.block), Repair { tree, made, is_rewritten: false });
        }
        self.count.store(pages.len(), Ordering::Release);
    }

    /// Keys whose leaves in a tree are to be written anew.
    pub(crate) fn fences(&self, tree: TreeId) -> Vec<Bytes> {
        let pages = self.pages();
        let due = pages.values().filter(|repair| repair.tree == tree && !repair.is_rewritten);
        due.filter_map(|repair| repair.made.as_ref().map(|(_, fence)| fence.clone())).collect()
    }

    /// The leaves of these keys in a tree are on disk again; who reads an older state still needs the pages here.
    pub(crate) fn rewritten(&self, tree: TreeId, fences: &[Bytes]) {
        for repair in self.pages().values_mut().filter(|repair| repair.tree == tree) {
            let is_one = |(_, fence): &(Arc<Page>, Bytes)| fences.contains(fence);
            repair.is_rewritten |= repair.made.as_ref().is_some_and(is_one);
        }
    }

    /// The segment is gone.
    pub(crate) fn forget(&self, id: SegmentId) {
        let mut pages = self.pages();
        pages.retain(|(segment, _), _| *segment != id);
        self.count.store(pages.len(), Ordering::Release);
    }
}

/// Pages of the key tree or the pending tree of one state, repaired where that can be done.
#[derive(Clone, Copy)]
pub(crate) struct KeyPages<'a> {
    state: &'a DiskState,
    shelf: &'a Shelf,
    tree: TreeId,
    pages: TreePages<'a>,
}

impl<'a> KeyPages<'a> {
    pub(super) fn new(state: &'a DiskState, shelf: &'a Shelf, tree: TreeId) -> Self {
        Self { state, shelf, tree, pages: shelf.pages(tree) }
    }

    /// Makes a leaf again whose page was just found damaged, if it was not made yet.
    pub(super) fn repair_found(&self, reference: &PageRef) {
        match self.shelf.repairs.get(reference) {
            Some(_) => self.note(reference, true),
            None => drop(self.load(reference)),
        }
    }

    fn note(&self, reference: &PageRef, is_repaired: bool) {
        if is_repaired {
            let file = segment::path(reference.segment, SegmentKind::Pages).display().to_string();
            self.shelf.quarantine.repaired(&file, reference.offset());
        }
    }

    /// The leaf from the records; the error of the page if that cannot be done.
    fn repair(&self, reference: &PageRef, error: Error) -> Result<Arc<Page>> {
        let repairs = &self.shelf.repairs;
        let _making = repairs.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = repairs.known(reference) {
            self.note(reference, known.made.is_some());
            return known.made.map(|(page, _)| page).ok_or(error);
        }
        // What goes wrong on the way is no news: the page is lost as before.
        let made = self.state.make_leaf(self.shelf, self.tree, reference).ok().flatten();
        self.note(reference, made.is_some());
        repairs.insert(self.tree, reference, made.clone());
        made.map(|(page, _)| page).ok_or(error)
    }
}

impl Pages for KeyPages<'_> {
    #[inline]
    fn load(&self, reference: &PageRef) -> Result<Arc<Page>> {
        match self.pages.load(reference) {
            Err(error @ (Error::Corruption { .. } | Error::Io(_))) if reference.level == 0 => {
                self.repair(reference, error)
            }
            loaded => loaded,
        }
    }
}

impl DiskState {
    /// The leaf that `reference` names, made from the records, and its lower fence; none if it is not proven.
    fn make_leaf(
        &self,
        shelf: &Shelf,
        tree: TreeId,
        reference: &PageRef,
    ) -> Result<Option<(Arc<Page>, Bytes)>> {
        let Some((from, to)) = self.range_of(shelf, tree, reference)? else { return Ok(None) };
        let newest = self.newest_in(&from, to.as_deref())?;
        // Without repairs: who makes one leaf does not wait for another.
        let other = |tree| self.cells_in(shelf, tree, &from, to.as_deref());
        let cells = match tree {
            TreeId::Pending => self.changes_from(newest, other(TreeId::Keys)?)?,
            _ => self.leaf_cells_from(newest, &other(TreeId::Pending)?)?,
        };
        let mut found = Aggregate::default();
        cells.iter().for_each(|(_, payload)| found.add(&tree.cells().aggregate(payload)));
        let expected = &reference.aggregate;
        if (found.live_keys, found.hash_sum) != (expected.live_keys, expected.hash_sum) || cells.is_empty() {
            return Ok(None);
        }
        let page = Page::of_leaf_cells(&cells, reference, tree as u8, shelf.database);
        Ok(page.ok().map(|page| (Arc::new(page), from)))
    }

    /// Fences of a leaf: no key of it is below the first, all are below the second.
    fn range_of(
        &self,
        shelf: &Shelf,
        tree: TreeId,
        reference: &PageRef,
    ) -> Result<Option<(Bytes, Option<Bytes>)>> {
        let (mut from, mut to): (Option<Bytes>, Option<Bytes>) = (None, None);
        let place = |reference: &PageRef| (reference.segment, reference.block);
        Tree::new(tree.root(&self.roots), shelf.pages(tree)).visit_references(&mut |fence, found| {
            if from.is_some() && to.is_none() && found.level == 0 {
                to = Some(Bytes::copy_from_slice(fence));
            }
            if place(found) == place(reference) {
                from = Some(Bytes::copy_from_slice(fence));
            }
            Ok(found.level > 0 && to.is_none())
        })?;
        Ok(from.map(|from| (from, to)))
    }

    /// The cells of a range as they are in one tree.
    fn cells_in(
        &self,
        shelf: &Shelf,
        tree: TreeId,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> Result<BTreeMap<Bytes, Bytes>> {
        let mut cells = BTreeMap::new();
        let mut cursor = Tree::new(tree.root(&self.roots), shelf.pages(tree)).cursor();
        cursor.seek(from)?;
        while cursor.is_valid() && to.is_none_or(|to| cursor.key() < to) {
            cells.insert(Bytes::copy_from_slice(cursor.key()), cursor.payload_bytes());
            cursor.next()?;
        }
        Ok(cells)
    }

    /// The cells of a leaf of the key tree. Of a delete that nobody can read any more nothing is left.
    fn leaf_cells_from(
        &self,
        mut newest: BTreeMap<Bytes, OwnedRecord>,
        pending: &BTreeMap<Bytes, Bytes>,
    ) -> Result<Vec<(Bytes, Vec<u8>)>> {
        let mut cells: BTreeMap<Bytes, Vec<u8>> = BTreeMap::new();
        for (key, payload) in pending {
            newest.remove(key);
            if let Some(cell) = stand_in(PendingChange::decode(payload)?.replaced) {
                cells.insert(key.clone(), cell);
            }
        }
        for record in newest.into_values().filter(|record| self.is_left(record)) {
            let mut payload = Vec::new();
            encode_cell_of(&record, &mut payload);
            cells.insert(record.key, payload);
        }
        Ok(cells.into_iter().collect())
    }

    /// The cells of a leaf of the pending tree: of each key whose newest version its leaf in the key tree does not have.
    fn changes_from(
        &self,
        newest: BTreeMap<Bytes, OwnedRecord>,
        mut leaves: BTreeMap<Bytes, Bytes>,
    ) -> Result<Vec<(Bytes, Vec<u8>)>> {
        let mut changes: BTreeMap<Bytes, Vec<u8>> = BTreeMap::new();
        let mut change = |key: Bytes, cell: Option<&[u8]>, leaf: Option<&Bytes>| {
            let replaced = Replaced::of(leaf.map(|cell| &cell[..]));
            // A version that is gone, records and all, was deleted and purged. A tombstone of which the same is true counts nothing.
            if cell.is_some() || matches!(replaced, Replaced::Version(_)) {
                PendingChange { cell, replaced }.encode(changes.entry(key).or_default());
            }
        };
        for (key, record) in newest {
            let leaf = leaves.remove(&key);
            let in_leaf = leaf.as_ref().map(DiskVersion::decode).transpose()?.map(|cell| cell.revision);
            if in_leaf == Some(record.revision) {
                continue;
            }
            let mut cell = Vec::new();
            if self.is_left(&record) {
                encode_cell_of(&record, &mut cell);
            }
            change(key, Some(&cell[..]).filter(|cell| !cell.is_empty()), leaf.as_ref());
        }
        for (key, leaf) in leaves {
            change(key, None, Some(&leaf));
        }
        Ok(changes.into_iter().collect())
    }

    /// False of a delete that nobody can read any more.
    fn is_left(&self, record: &OwnedRecord) -> bool {
        record.version != 0 || record.revision.main >= self.compact_revision()
    }

    /// The newest record of each key of a range.
    fn newest_in(&self, from: &[u8], to: Option<&[u8]>) -> Result<BTreeMap<Bytes, OwnedRecord>> {
        let mut newest: BTreeMap<Bytes, OwnedRecord> = BTreeMap::new();
        for (number, file) in self.revisions.iter().enumerate() {
            let dead = self.dead_bits(number)?;
            let mut is_live = |entry: &Entry| {
                dead.get(entry.ordinal as usize / 8).is_some_and(|byte| byte >> (entry.ordinal % 8) & 1 == 0)
            };
            for record in file.segment.records(Revision::new(0, 0), &mut is_live) {
                let (_, record) = record?;
                if record.key >= from && to.is_none_or(|to| record.key < to) {
                    newest.insert(record.key.clone(), record);
                }
            }
        }
        Ok(newest)
    }
}
