//! Reading a tree: single keys, sums over ranges, and walks over all of it.
use super::builder::common_prefix;
use super::{Aggregate, CellKind, Cursor, Page, PageRef, Pages, damaged, load};
use crate::error::Result;
use bytes::Bytes;
use std::sync::Arc;

/// A tree as it was when `root` was returned by a merge; reading it needs no lock and sees no later change.
///
/// `P` is a borrowed or shared source of pages: `&dyn Pages`, `Arc<dyn Pages>`.
#[derive(Clone, Copy, Debug)]
pub struct Tree<P> {
    root: Option<PageRef>,
    pages: P,
}

impl<P: Pages> Tree<P> {
    /// The tree under `root`; `None` is the empty tree.
    pub fn new(root: Option<PageRef>, pages: P) -> Self {
        Self { root, pages }
    }

    /// The root; `None` if the tree is empty.
    pub fn root(&self) -> Option<PageRef> {
        self.root
    }

    /// Where its pages are loaded from.
    pub(super) fn pages(&self) -> &P {
        &self.pages
    }

    /// The cell with `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Hit>> {
        let Some(root) = self.root else { return Ok(None) };
        let mut page = load(&self.pages, &root)?;
        while page.level() > 0 {
            page = load(&self.pages, &page.child(page.child_index(key)))?;
        }
        Ok(page.search(key).ok().map(|index| Hit { page, index }))
    }

    /// The leaf that covers `key`, which is not loaded; none in an empty tree. Ranges of different leaves have no key in common.
    ///
    /// # Errors
    /// [`Error::Corruption`](crate::Error::Corruption) if a page has fences beyond those that its parent has for it (T2).
    pub fn leaf_of(&self, key: &[u8]) -> Result<Option<LeafSpan>> {
        let Some(root) = self.root else { return Ok(None) };
        let mut span = LeafSpan { leaf: root, from: Vec::new(), end: None };
        while span.leaf.level > 0 {
            let page = load(&self.pages, &span.leaf)?;
            let index = page.child_index(key);
            let from = (index > 0).then(|| page.key(index));
            let end = (index + 1 < page.count()).then(|| page.key(index + 1));
            let is_beyond = from.as_ref().is_some_and(|from| *from < span.from)
                || end.as_ref().zip(span.end.as_ref()).is_some_and(|(end, bound)| end > bound);
            if is_beyond {
                return Err(damaged(
                    &span.leaf,
                    "its fences are beyond those of its parent (T2)".to_string(),
                ));
            }
            span =
                LeafSpan { leaf: page.child(index), from: from.unwrap_or(span.from), end: end.or(span.end) };
        }
        Ok(Some(span))
    }

    /// A cursor on nothing; seek it.
    pub fn cursor(&self) -> Cursor<P>
    where
        P: Clone,
    {
        Cursor::new(self.root, self.pages.clone())
    }

    /// The sum over all cells with keys in `[from, end)`; `None` = to the end of the tree. Loads only the pages
    /// that hold a boundary, so at most two for each level.
    pub fn aggregate(&self, cells: &dyn CellKind, from: &[u8], end: Option<&[u8]>) -> Result<Aggregate> {
        let mut sum = Aggregate::default();
        if let Some(root) = &self.root
            && end.is_none_or(|end| from < end)
        {
            let from = (!from.is_empty()).then_some(from);
            self.add_subtree(cells, root, from, end, &mut sum)?;
        }
        Ok(sum)
    }

    /// Adds the part of a subtree in `[from, end)`; `None` = the subtree does not reach beyond that side.
    fn add_subtree(
        &self,
        cells: &dyn CellKind,
        r: &PageRef,
        from: Option<&[u8]>,
        end: Option<&[u8]>,
        sum: &mut Aggregate,
    ) -> Result<()> {
        if from.is_none() && end.is_none() {
            sum.add(&r.aggregate);
            return Ok(());
        }
        let page = load(&self.pages, r)?;
        if page.level() == 0 {
            let first = from.map_or(0, |from| page.search(from).unwrap_or_else(|above| above));
            let last = end.map_or(page.count(), |end| page.search(end).unwrap_or_else(|above| above));
            (first..last).for_each(|index| sum.add_cell(cells, page.payload(index)));
            return Ok(());
        }
        let first = from.map_or(0, |from| page.child_index(from));
        let last = end.map_or(page.count() - 1, |end| child_index_before(&page, end));
        for index in first..=last {
            // Keys of a child are not below its fence, so a range that starts there takes all on that side.
            let from = from.filter(|from| index == first && page.compare(index, from).is_lt());
            let end = end.filter(|end| {
                index == last && (index + 1 == page.count() || page.compare(index + 1, end).is_gt())
            });
            self.add_subtree(cells, &page.child(index), from, end, sum)?;
        }
        Ok(())
    }

    /// Visits every page, parents before children, in key order.
    pub fn visit_pages(&self, visit: &mut dyn FnMut(&PageRef, &Page) -> Result<()>) -> Result<()> {
        self.root.as_ref().map_or(Ok(()), |root| self.visit_subtree(root, visit))
    }

    fn visit_subtree(&self, r: &PageRef, visit: &mut dyn FnMut(&PageRef, &Page) -> Result<()>) -> Result<()> {
        let page = load(&self.pages, r)?;
        visit(r, &page)?;
        if page.level() > 0 {
            for index in 0..page.count() {
                self.visit_subtree(&page.child(index), visit)?;
            }
        }
        Ok(())
    }

    /// Visits references with the lower fence of each page, parents before children, in key order. Loads an inner
    /// page when `descend` returned true for its reference, and never a leaf. The fence is a key that the page
    /// covers: an edit there reaches it.
    pub fn visit_references(&self, descend: &mut dyn FnMut(&[u8], &PageRef) -> Result<bool>) -> Result<()> {
        self.root.as_ref().map_or(Ok(()), |root| self.visit_reference(&[], root, descend))
    }

    fn visit_reference(
        &self,
        fence: &[u8],
        r: &PageRef,
        descend: &mut dyn FnMut(&[u8], &PageRef) -> Result<bool>,
    ) -> Result<()> {
        if descend(fence, r)? && r.level > 0 {
            let page = load(&self.pages, r)?;
            for index in 0..page.count() {
                self.visit_reference(&page.key(index), &page.child(index), descend)?;
            }
        }
        Ok(())
    }

    /// Reads the whole tree and checks what no single page shows: order across pages and fences (T1, T2), and that
    /// the aggregate of every leaf is the sum over its cells (T4; inner pages are checked when decoded).
    ///
    /// # Errors
    /// [`Error::Corruption`](crate::Error::Corruption) for the first page that does not fit.
    pub fn check(&self, cells: &dyn CellKind) -> Result<TreeCounts> {
        let mut counts = TreeCounts::default();
        let mut last_key: Option<Vec<u8>> = None;
        if let Some(root) = &self.root {
            counts.height = u32::from(root.level) + 1;
            self.check_subtree(cells, root, &[], &mut last_key, &mut counts)?;
        }
        Ok(counts)
    }

    fn check_subtree(
        &self,
        cells: &dyn CellKind,
        r: &PageRef,
        fence: &[u8],
        last_key: &mut Option<Vec<u8>>,
        counts: &mut TreeCounts,
    ) -> Result<()> {
        let page = load(&self.pages, r)?;
        if page.compare(0, fence).is_lt() || last_key.as_deref().is_some_and(|last| last >= fence) {
            return Err(damaged(
                r,
                "its lower fence does not separate it from the page before (T2)".to_string(),
            ));
        }
        counts.pages += 1;
        counts.stored_bytes += r.bytes() as u64;
        counts.used_bytes += page.used_bytes() as u64;
        if page.level() > 0 {
            for index in 0..page.count() {
                // The first fence of a page may lie above the parent's for it, when the page became the leftmost.
                let fence = if index == 0 { fence.to_vec() } else { page.key(index) };
                self.check_subtree(cells, &page.child(index), &fence, last_key, counts)?;
            }
            return Ok(());
        }
        let mut sum = Aggregate::default();
        (0..page.count()).for_each(|index| sum.add_cell(cells, page.payload(index)));
        if sum != r.aggregate {
            return Err(damaged(
                r,
                format!("cells that add up to {:?} expected, {sum:?} found (T4)", r.aggregate),
            ));
        }
        counts.leaves += 1;
        counts.cells += page.count() as u64;
        *last_key = Some(page.key(page.count() - 1));
        Ok(())
    }
}

/// The last child of an inner page that may have keys below `end`.
pub(super) fn child_index_before(page: &Page, end: &[u8]) -> usize {
    let (Ok(at) | Err(at)) = page.search(end);
    at.saturating_sub(1)
}

/// A leaf and the range of keys that it covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeafSpan {
    /// Its reference.
    pub leaf: PageRef,
    /// Its lower fence.
    pub from: Vec<u8>,
    /// The lower fence of the next leaf; none for the last one.
    pub end: Option<Vec<u8>>,
}

impl LeafSpan {
    /// How many bytes all keys in the range begin with in common.
    pub fn shared_bytes(&self) -> usize {
        self.end.as_ref().map_or(0, |end| common_prefix(&self.from, end))
    }
}

/// What [`Tree::check`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TreeCounts {
    /// Levels, the leaves' included; 0 for the empty tree.
    pub height: u32,
    /// Pages of all levels.
    pub pages: u64,
    /// Pages of level 0.
    pub leaves: u64,
    /// Cells of the leaves.
    pub cells: u64,
    /// Bytes of the pages as stored, in whole blocks.
    pub stored_bytes: u64,
    /// Bytes of the pages without padding.
    pub used_bytes: u64,
}

/// A cell that was found; keeps its page in memory.
#[derive(Clone, Debug)]
pub struct Hit {
    pub(super) page: Arc<Page>,
    pub(super) index: usize,
}

impl Hit {
    /// The key, copied.
    pub fn key(&self) -> Vec<u8> {
        self.page.key(self.index)
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.page.payload(self.index)
    }

    /// The payload, sharing the page's memory.
    pub fn payload_bytes(&self) -> Bytes {
        self.page.payload_bytes(self.index)
    }
}
