//! A leaf of the key tree from the records, when its page does not verify.
//!
//! **Contract.** A leaf says nothing that the revision log does not say too: for each key of its range the newest version. So it is
//! made again from the records that are alive, and believed only if it then has the number of keys and the sum of hashes in the
//! reference to it: a record that is missing, or one too many, changes the sum. It is held in memory in place of the page until a
//! checkpoint has written it anew, which the next one does ([`Repairs::fences`]).
//!
//! **Cost.** All live records are read once for each lost leaf, since nothing but a record knows its key. Readers of the same leaf wait
//! for it; readers of others do not.
//!
//! **Not repaired**: pages above the leaves, of other trees, and a leaf in whose range a record is damaged too. Their readers get the
//! error of the page.
//!
//! **Bound.** [`PAGES_MAX`] pages in memory.
use super::{DiskState, KeyCells, Shelf, TreeId, TreePages, encode_cell_of};
use crate::base::ids::{Revision, SegmentId};
use crate::error::{Error, Result};
use crate::revision_log::{Entry, OwnedRecord};
use crate::segment::{self, SegmentKind};
use crate::tree::{Aggregate, CellKind, Page, PageRef, Pages, Tree};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most leaves that are held in memory because their page is lost.
const PAGES_MAX: usize = 256;

/// What became of a page that does not verify.
#[derive(Clone)]
struct Repair {
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

    fn insert(&self, reference: &PageRef, made: Option<(Arc<Page>, Bytes)>) {
        let mut pages = self.pages();
        if pages.len() < PAGES_MAX {
            pages.insert((reference.segment, reference.block), Repair { made, is_rewritten: false });
        }
        self.count.store(pages.len(), Ordering::Release);
    }

    /// Keys whose leaves are to be written anew.
    pub(crate) fn fences(&self) -> Vec<Bytes> {
        let pages = self.pages();
        let due = pages.values().filter(|repair| !repair.is_rewritten);
        due.filter_map(|repair| repair.made.as_ref().map(|(_, fence)| fence.clone())).collect()
    }

    /// The leaves of these keys are on disk again; who reads an older state still needs the pages here.
    pub(crate) fn rewritten(&self, fences: &[Bytes]) {
        for repair in self.pages().values_mut() {
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

/// Pages of the key tree of one state, repaired where that can be done.
#[derive(Clone, Copy)]
pub(crate) struct KeyPages<'a> {
    state: &'a DiskState,
    shelf: &'a Shelf,
    pages: TreePages<'a>,
}

impl<'a> KeyPages<'a> {
    pub(super) fn new(state: &'a DiskState, shelf: &'a Shelf) -> Self {
        Self { state, shelf, pages: shelf.pages(TreeId::Keys) }
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
        let made = self.state.make_leaf(self.shelf, reference).ok().flatten();
        self.note(reference, made.is_some());
        repairs.insert(reference, made.clone());
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
    fn make_leaf(&self, shelf: &Shelf, reference: &PageRef) -> Result<Option<(Arc<Page>, Bytes)>> {
        let Some((from, to)) = self.range_of(shelf, reference)? else { return Ok(None) };
        let newest = self.newest_in(&from, to.as_deref())?;
        let cells = cells_of(newest.into_values(), self.compact_revision());
        let mut found = Aggregate::default();
        cells.iter().for_each(|(_, payload)| found.add(&KeyCells.aggregate(payload)));
        let expected = &reference.aggregate;
        if (found.live_keys, found.hash_sum) != (expected.live_keys, expected.hash_sum) || cells.is_empty() {
            return Ok(None);
        }
        let page = Page::of_leaf_cells(&cells, reference, TreeId::Keys as u8, shelf.database);
        Ok(page.ok().map(|page| (Arc::new(page), from)))
    }

    /// Fences of a leaf: no key of it is below the first, all are below the second.
    fn range_of(&self, shelf: &Shelf, reference: &PageRef) -> Result<Option<(Bytes, Option<Bytes>)>> {
        let (mut from, mut to): (Option<Bytes>, Option<Bytes>) = (None, None);
        let place = |reference: &PageRef| (reference.segment, reference.block);
        Tree::new(self.roots.keys, shelf.pages(TreeId::Keys)).visit_references(&mut |fence, found| {
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

/// The cells of a leaf: keys and payloads. Of a delete that nobody can read any more nothing is left.
fn cells_of(newest: impl Iterator<Item = OwnedRecord>, compact_revision: i64) -> Vec<(Bytes, Vec<u8>)> {
    let is_left = |record: &OwnedRecord| record.version != 0 || record.revision.main >= compact_revision;
    let cell = |record: OwnedRecord| {
        let mut payload = Vec::new();
        encode_cell_of(&record, &mut payload);
        (record.key, payload)
    };
    newest.filter(is_left).map(cell).collect()
}
