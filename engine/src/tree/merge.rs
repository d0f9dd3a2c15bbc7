//! Merging edits into a tree: one pass in key order that writes new versions of the pages on the way to a change.
//!
//! **States.** On the way down, one `Frame` for each inner page of the path. A frame is *closed* while nothing below
//! it has changed: its cells were not copied, and if that stays so the page stays. It is *open* once something
//! below changes: all cells left of the current child have gone to the builder of its level, later ones follow, and
//! the old page is freed. Opening goes from the root down, so an open frame has only open frames above it. A leaf
//! that is being rewritten is in the same relation to its cells.
//!
//! **Builders** turn cells into pages, one for each level; a page that is written becomes a cell of the level above.
//! A builder runs from the first rewritten page to the end of its last underfull sibling, always under one parent;
//! while it is not empty no page of that level is passed by unchanged. Of leaves that are packed it runs on to the next one with an edit.
//!
//! **Bounds.** Memory is a few pages for each level and one edit, however many edits there are; only pages that are
//! rewritten, their ancestors and the leaves that edits look at are loaded.
//!
//! **Does not know** what was written before: pages of this merge are never loaded, so the sink may buffer.
use super::builder::Builder;
use super::encode::{Identity, encode, seal};
use super::{
    Aggregate, BLOCK_BYTES, CELL_BYTES_MAX, CellKind, Edit, Edits, MergeOptions, MergeOutcome, Outcome, Page,
    PageRef, PageSink, Pages, damaged, load,
};
use crate::error::{Error, Result};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

/// Applies `edits` to the tree under `root`. If no edit changes anything, the outcome is the old root and nothing
/// is written.
///
/// # Errors
/// Those of its parts, as they are. [`Error::Refused`] for a cell above [`CELL_BYTES_MAX`].
///
/// # Panics
/// If the keys of the edits do not ascend.
pub fn merge(
    root: Option<PageRef>,
    pages: &dyn Pages,
    cells: &dyn CellKind,
    options: &MergeOptions,
    edits: &mut dyn Edits,
    sink: &mut dyn PageSink,
) -> Result<MergeOutcome> {
    let MergeOptions { page_bytes, tree, database, checkpoint, packs } = *options;
    let edit = edits.next()?;
    let mut merge = Merge {
        pages,
        cells,
        identity: Identity { tree, database, checkpoint },
        page_bytes,
        packs,
        edits,
        sink,
        edit,
        frames: Vec::new(),
        builders: Vec::new(),
        last_written: Vec::new(),
        page: Vec::new(),
        key: Vec::new(),
        payload: Vec::new(),
        outcome: MergeOutcome { root, freed: Vec::new(), pages_written: 0, bytes_written: 0 },
    };
    let changed = match &root {
        None => merge.merge_leaf(None, &Bounds::default(), false)?,
        Some(root) => merge.merge_page(root, Bounds::default(), false)?,
    };
    if changed {
        let top = merge.finish(root.map_or(0, |root| root.level))?;
        merge.outcome.root = merge.without_only_children(top)?;
    }
    Ok(merge.outcome)
}

struct Merge<'a> {
    pages: &'a dyn Pages,
    cells: &'a dyn CellKind,
    identity: Identity,
    page_bytes: usize,
    packs: bool,
    edits: &'a mut dyn Edits,
    sink: &'a mut dyn PageSink,
    /// The next edit; its key is not below anything that was passed.
    edit: Option<(Bytes, Edit)>,
    /// The inner pages on the path, the root first.
    frames: Vec<Frame>,
    /// By level.
    builders: Vec<Builder>,
    /// By level: the page written last, and its child if it has only one.
    last_written: Vec<Option<(PageRef, Option<PageRef>)>>,
    /// Buffer for the page being encoded.
    page: Vec<u8>,
    /// Buffer for a key.
    key: Vec<u8>,
    /// Buffer for a new payload.
    payload: Vec<u8>,
    outcome: MergeOutcome,
}

/// Keys that a page covers: `[fence, end)`, `None` = to the end of the tree.
#[derive(Default)]
struct Bounds {
    fence: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Bounds {
    /// What goes into a builder ascends (T1) because every page keeps to its bounds (T2), and pages come from disk.
    fn check(&self, r: &PageRef, page: &Page) -> Result<()> {
        let is_above = |end: &Vec<u8>| page.compare(page.count() - 1, end).is_ge();
        if page.compare(0, &self.fence).is_lt() || self.end.as_ref().is_some_and(is_above) {
            return Err(damaged(
                r,
                "its keys are not between the fences that its parent has for it (T2)".into(),
            ));
        }
        Ok(())
    }
}

/// An inner page on the path.
struct Frame {
    reference: PageRef,
    page: Arc<Page>,
    bounds: Bounds,
    /// Children before this one are done.
    child: usize,
    is_open: bool,
}

impl Frame {
    /// The bounds of child `index`. Those of the outer children are the page's own: the parent's fence for a page
    /// may be below the page's first cell (T2).
    fn child_bounds(&self, index: usize) -> Bounds {
        let fence = if index == 0 { self.bounds.fence.clone() } else { self.page.key(index) };
        let is_last = index + 1 == self.page.count();
        let end = if is_last { self.bounds.end.clone() } else { Some(self.page.key(index + 1)) };
        Bounds { fence, end }
    }
}

/// A leaf that edits are applied to.
struct Leaf {
    /// `None` for the leaf that an empty tree does not have.
    page: Option<Arc<Page>>,
    is_rewritten: bool,
    /// Once it is rewritten: cells before this one are done.
    next: usize,
    /// Cells whose edit kept them before it was known that the leaf is rewritten: they are not asked about again.
    settled: Vec<usize>,
}

impl Merge<'_> {
    /// Applies the edits in `bounds` to the subtree of `r`. True if the page is replaced by what is in the builders;
    /// false if it stays. `forced`: it goes into the builder of its level in any case, behind its left sibling.
    fn merge_page(&mut self, r: &PageRef, bounds: Bounds, forced: bool) -> Result<bool> {
        let page = load(self.pages, r)?;
        bounds.check(r, &page)?;
        if page.level() == 0 {
            return self.merge_leaf(Some((r, page)), &bounds, forced);
        }
        let level = page.level();
        self.frames.push(Frame { reference: *r, page, bounds, child: 0, is_open: false });
        if forced {
            self.open(level)?;
        }
        self.merge_children()?;
        let frame = self.frames.pop().expect("the frame that was pushed");
        Ok(frame.is_open)
    }

    /// Passes over the children of the last frame.
    fn merge_children(&mut self) -> Result<()> {
        let depth = self.frames.len() - 1;
        let level = self.frames[depth].page.level();
        loop {
            let frame = &self.frames[depth];
            let count = frame.page.count();
            let forced = self.builder(level - 1).is_some_and(|builder| !builder.is_empty());
            let next = match self.edit_in(&frame.bounds) {
                _ if forced => frame.child,
                Some((key, _)) => frame.page.child_index(key),
                None => count,
            };
            self.pass_children(next)?;
            if next == count {
                return Ok(());
            }
            let frame = &self.frames[depth];
            if !forced
                && let Some((_, Edit::Touch { level: touched })) = self.edit_in(&frame.bounds)
                && *touched >= level
            {
                let touched = *touched;
                self.open(touched)?;
                self.advance()?;
                continue;
            }
            let (child, bounds) = (frame.page.child(next), frame.child_bounds(next));
            if self.merge_page(&child, bounds, forced)? {
                self.frames[depth].child = next + 1;
                let is_last = next + 1 == count;
                let goes_on = self.builders[usize::from(level - 1)].is_underfull()
                    || (self.packs && level == 1 && self.changes_child(depth, next + 1));
                if is_last || !goes_on {
                    self.close(level - 1)?;
                }
            } else {
                self.pass_children(next + 1)?;
            }
        }
    }

    /// True if the next edit is of a cell in child `index` of a frame.
    fn changes_child(&self, depth: usize, index: usize) -> bool {
        let frame = &self.frames[depth];
        index < frame.page.count()
            && matches!(self.edit_in(&frame.child_bounds(index)), Some((_, Edit::Cell)))
    }

    /// Passes by the children of the last frame before `next` unchanged.
    fn pass_children(&mut self, next: usize) -> Result<()> {
        let frame = self.frames.last_mut().expect("there is a frame");
        let passed = frame.child..next;
        assert!(passed.start <= passed.end, "edits ascend and children are passed in order");
        frame.child = next;
        if frame.is_open {
            let page = frame.page.clone();
            self.push_cells(&page, passed)?;
        }
        Ok(())
    }

    /// Opens the frames of `level` and above.
    fn open(&mut self, level: u8) -> Result<()> {
        for depth in 0..self.frames.len() {
            let frame = &mut self.frames[depth];
            let frame_level = frame.page.level();
            if frame_level < level {
                break;
            }
            if frame.is_open {
                continue;
            }
            frame.is_open = true;
            let (page, passed) = (frame.page.clone(), 0..frame.child);
            self.outcome.freed.push(frame.reference);
            self.sink.replaces(&frame.reference);
            let fence = std::mem::take(&mut frame.bounds.fence);
            self.builder_mut(frame_level).start(&fence);
            self.frames[depth].bounds.fence = fence;
            self.push_cells(&page, passed)?;
        }
        Ok(())
    }

    /// Applies the edits in `bounds` to a leaf; as [`Merge::merge_page`].
    fn merge_leaf(
        &mut self,
        old: Option<(&PageRef, Arc<Page>)>,
        bounds: &Bounds,
        forced: bool,
    ) -> Result<bool> {
        let (reference, page) = old.unzip();
        let mut leaf = Leaf { page, is_rewritten: false, next: 0, settled: Vec::new() };
        if forced {
            self.rewrite_leaf(&mut leaf, reference, bounds)?;
        }
        while let Some((key, edit)) = self.edit_in(bounds) {
            let (key, edit) = (key.clone(), *edit);
            match edit {
                Edit::Touch { level: 0 } if leaf.page.is_some() => {
                    self.rewrite_leaf(&mut leaf, reference, bounds)?;
                }
                Edit::Touch { level } => self.open(level.max(1))?,
                Edit::Cell => self.merge_cell(&mut leaf, reference, bounds, &key)?,
            }
            self.advance()?;
        }
        if leaf.is_rewritten {
            let count = leaf.page.as_ref().map_or(0, |page| page.count());
            self.keep_cells(&mut leaf, count)?;
        }
        Ok(leaf.is_rewritten)
    }

    /// Starts to rewrite a leaf.
    fn rewrite_leaf(&mut self, leaf: &mut Leaf, reference: Option<&PageRef>, bounds: &Bounds) -> Result<()> {
        if !leaf.is_rewritten {
            leaf.is_rewritten = true;
            self.open(1)?;
            if let Some(reference) = reference {
                self.outcome.freed.push(*reference);
                self.sink.replaces(reference);
            }
            self.builder_mut(0).start(&bounds.fence);
        }
        Ok(())
    }

    /// Applies the edit of one cell.
    fn merge_cell(
        &mut self,
        leaf: &mut Leaf,
        reference: Option<&PageRef>,
        bounds: &Bounds,
        key: &[u8],
    ) -> Result<()> {
        let page = leaf.page.clone();
        let (at, old) = match page.as_ref().map_or(Err(0), |page| page.search(key)) {
            Ok(at) => (at, page.as_ref().map(|page| page.payload(at))),
            Err(at) => (at, None),
        };
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let outcome = self.edits.resolve(key, old, &mut payload)?;
        let new = match outcome {
            Outcome::Keep => old,
            Outcome::Put => Some(payload.as_slice()),
            Outcome::Remove => None,
        };
        if new != old {
            self.rewrite_leaf(leaf, reference, bounds)?;
        }
        if leaf.is_rewritten {
            self.keep_cells(leaf, at)?;
            leaf.next = at + usize::from(old.is_some());
            new.map_or(Ok(()), |payload| self.push(0, key, payload))?;
        } else {
            leaf.settled.extend(old.map(|_| at));
        }
        self.payload = payload;
        Ok(())
    }

    /// Passes on the cells of a rewritten leaf before `end`, without those that are not to be kept.
    fn keep_cells(&mut self, leaf: &mut Leaf, end: usize) -> Result<()> {
        let Some(page) = &leaf.page else { return Ok(()) };
        let mut key = std::mem::take(&mut self.key);
        for index in leaf.next..end {
            key.clear();
            page.push_key(index, &mut key);
            let payload = page.payload(index);
            if leaf.settled.binary_search(&index).is_ok() || self.edits.keep(&key, payload) {
                self.push(0, &key, payload)?;
            }
        }
        self.key = key;
        leaf.next = leaf.next.max(end);
        Ok(())
    }

    /// Passes on cells of an inner page.
    fn push_cells(&mut self, page: &Page, range: std::ops::Range<usize>) -> Result<()> {
        let mut key = std::mem::take(&mut self.key);
        for index in range {
            key.clear();
            page.push_key(index, &mut key);
            self.push(page.level(), &key, page.payload(index))?;
        }
        self.key = key;
        Ok(())
    }

    fn push(&mut self, level: u8, key: &[u8], payload: &[u8]) -> Result<()> {
        if key.len().saturating_add(payload.len()) > CELL_BYTES_MAX {
            return Err(Error::Refused(format!(
                "a key of {} bytes with {} bytes about it is more than the {CELL_BYTES_MAX} that a tree takes",
                key.len(),
                payload.len()
            )));
        }
        if self.builder_mut(level).push(key, payload) {
            self.write_front(level)?;
        }
        Ok(())
    }

    /// Writes all that waits in the builder of `level`.
    fn close(&mut self, level: u8) -> Result<()> {
        self.builder_mut(level).finish();
        while !self.builder_mut(level).is_empty() {
            self.write_front(level)?;
        }
        Ok(())
    }

    /// Writes the front page of the builder of `level` and makes it a cell of the level above.
    fn write_front(&mut self, level: u8) -> Result<()> {
        let builder = &mut self.builders[usize::from(level)];
        let front = builder.front().expect("a builder with cells has a front page");
        let fence = front.fence.to_vec();
        let cells = builder.cells(front.count);
        encode(&mut self.page, &self.identity, level, front.prefix, cells.clone());
        let mut aggregate = Aggregate::default();
        let mut only_child = None;
        for (_, payload) in cells {
            if level == 0 {
                aggregate.add_cell(self.cells, payload);
            } else {
                let child = PageRef::decode(payload).expect("cells of inner levels are encoded references");
                aggregate.add(&child.aggregate);
                only_child = (front.count == 1).then_some(child);
            }
        }
        let blocks = u32::try_from(self.page.len() / BLOCK_BYTES).expect("a page is below 4 GiB");
        let at = self.sink.place(level, blocks)?;
        let r = PageRef { aggregate, ..seal(&mut self.page, level, at) };
        #[cfg(debug_assertions)]
        self.assert_decodes(&r);
        self.sink.write(at, &self.page)?;
        self.sink.written(&r, &self.page);
        self.builders[usize::from(level)].drop_front();
        self.outcome.pages_written += 1;
        self.outcome.bytes_written += self.page.len() as u64;
        self.last_written.resize(self.builders.len(), None);
        self.last_written[usize::from(level)] = Some((r, only_child));
        let above = level.checked_add(1).expect("each level has at most half the pages of the one below");
        self.push(above, &fence, &r.encode())
    }

    /// The page is checked as a reader will check it.
    #[cfg(debug_assertions)]
    fn assert_decodes(&self, r: &PageRef) {
        let page = Bytes::copy_from_slice(&self.page);
        if let Err(what) = Page::decode(page, r, self.identity.tree, &self.identity.database) {
            panic!("T1: a page that was just encoded does not decode: {what}");
        }
    }

    /// Writes what is left, from the old root's level up, until one page is on top.
    fn finish(&mut self, old_root_level: u8) -> Result<Option<PageRef>> {
        let mut level = old_root_level;
        loop {
            let builder = self.builder_mut(level);
            if level > 0
                && let Some(only) = builder.only_payload()
            {
                return Ok(Some(
                    PageRef::decode(only).expect("cells of inner levels are encoded references"),
                ));
            }
            if level == old_root_level && builder.is_empty() {
                return Ok(None);
            }
            self.close(level)?;
            level = level.checked_add(1).expect("each level has at most half the pages of the one below");
        }
    }

    /// The root without the inner pages on top that have one child (T3).
    fn without_only_children(&mut self, root: Option<PageRef>) -> Result<Option<PageRef>> {
        let Some(mut root) = root else { return Ok(None) };
        while root.level > 0 {
            let written = self.last_written.get(usize::from(root.level)).copied().flatten();
            let only_child = match written {
                Some((last, only_child)) if last == root => only_child,
                _ => {
                    let page = load(self.pages, &root)?;
                    (page.count() == 1).then(|| page.child(0))
                }
            };
            let Some(child) = only_child else { break };
            self.outcome.freed.push(root);
            root = child;
        }
        Ok(Some(root))
    }

    /// The next edit, if its key is in `bounds`.
    fn edit_in(&self, bounds: &Bounds) -> Option<&(Bytes, Edit)> {
        self.edit.as_ref().filter(|(key, _)| bounds.end.as_ref().is_none_or(|end| key[..] < end[..]))
    }

    fn advance(&mut self) -> Result<()> {
        let next = self.edits.next()?;
        if let (Some((last, last_edit)), Some((key, edit))) = (&self.edit, &next) {
            let may_repeat = *last_edit != Edit::Cell || *edit != Edit::Cell;
            let ascends = match last.cmp(key) {
                Ordering::Less => true,
                Ordering::Equal => may_repeat,
                Ordering::Greater => false,
            };
            assert!(ascends, "the keys of edits ascend: {key:?} behind {last:?}");
        }
        self.edit = next;
        Ok(())
    }

    fn builder(&self, level: u8) -> Option<&Builder> {
        self.builders.get(usize::from(level))
    }

    fn builder_mut(&mut self, level: u8) -> &mut Builder {
        while self.builders.len() <= usize::from(level) {
            // Levels are below 256: they come from a u8.
            self.builders.push(Builder::new(self.builders.len() as u8, self.page_bytes));
        }
        &mut self.builders[usize::from(level)]
    }
}
