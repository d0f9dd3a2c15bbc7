//! A position in a tree, moved by single cells in both directions.
//!
//! **States.** *On a cell*: `path` leads from the root to a leaf, each step's index is valid in its page, and `key` is
//! the key of that cell. *On nothing* (`path` empty): before the first seek, behind either end, or after an error;
//! only a seek leads out. A step inside a leaf touches nothing but the leaf; at its edge the cursor climbs as far as
//! the next sibling needs.
use super::reader::child_index_before;
use super::{Hit, Page, PageRef, Pages, damaged, load};
use crate::error::Result;
use bytes::Bytes;
use std::sync::Arc;

/// See the module. Keeps the pages on its path in memory, and nothing else alive.
#[derive(Clone, Debug)]
pub struct Cursor<P> {
    root: Option<PageRef>,
    pages: P,
    path: Vec<Step>,
    key: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Step {
    page: Arc<Page>,
    index: usize,
}

impl<P: Pages> Cursor<P> {
    pub(super) fn new(root: Option<PageRef>, pages: P) -> Self {
        Self { root, pages, path: Vec::new(), key: Vec::new() }
    }

    /// Moves to the first cell whose key is not below `key`; false if there is none.
    pub fn seek(&mut self, key: &[u8]) -> Result<bool> {
        let found = self.descend(
            |page| page.child_index(key),
            |leaf| {
                let (Ok(at) | Err(at)) = leaf.search(key);
                (at < leaf.count()).then_some(at)
            },
        );
        self.settle(found, Direction::Forward)
    }

    /// Moves to the last cell whose key is below `end`, or of the tree if `None`; false if there is none.
    pub fn seek_before(&mut self, end: Option<&[u8]>) -> Result<bool> {
        let found = self.descend(
            |page| end.map_or(page.count() - 1, |end| child_index_before(page, end)),
            |leaf| {
                let (Ok(at) | Err(at)) = end.map_or(Ok(leaf.count()), |end| leaf.search(end));
                at.checked_sub(1)
            },
        );
        self.settle(found, Direction::Backward)
    }

    /// Moves to the next cell; false, and on nothing, behind the last one.
    #[expect(
        clippy::should_implement_trait,
        reason = "a step can fail and lends the key: this is no iterator"
    )]
    pub fn next(&mut self) -> Result<bool> {
        let Some(leaf) = self.path.last_mut() else { return Ok(false) };
        if leaf.index + 1 < leaf.page.count() {
            leaf.index += 1;
            self.step_key();
            return Ok(true);
        }
        self.leave_leaf(Direction::Forward)
    }

    /// Moves to the cell before; false, and on nothing, before the first one.
    pub fn prev(&mut self) -> Result<bool> {
        let Some(leaf) = self.path.last_mut() else { return Ok(false) };
        if leaf.index > 0 {
            leaf.index -= 1;
            self.step_key();
            return Ok(true);
        }
        self.leave_leaf(Direction::Backward)
    }

    /// True on a cell.
    pub fn is_valid(&self) -> bool {
        !self.path.is_empty()
    }

    /// The key of the cell.
    ///
    /// # Panics
    /// On nothing, as all accessors.
    pub fn key(&self) -> &[u8] {
        assert!(self.is_valid(), "the cursor is on a cell");
        &self.key
    }

    /// The payload of the cell.
    pub fn payload(&self) -> &[u8] {
        let leaf = self.leaf();
        leaf.page.payload(leaf.index)
    }

    /// The payload of the cell, sharing the page's memory.
    pub fn payload_bytes(&self) -> Bytes {
        let leaf = self.leaf();
        leaf.page.payload_bytes(leaf.index)
    }

    /// The cell, to keep when the cursor moves on.
    pub fn hit(&self) -> Hit {
        let leaf = self.leaf();
        Hit { page: leaf.page.clone(), index: leaf.index }
    }

    /// The page above the leaf that the cursor is in, and the number of the leaf in it; none in a tree of one leaf.
    #[inline]
    pub(crate) fn page_above(&self) -> Option<(&Arc<Page>, usize)> {
        let above = self.path.get(self.path.len().checked_sub(2)?)?;
        Some((&above.page, above.index))
    }

    fn leaf(&self) -> &Step {
        self.path.last().expect("the cursor is on a cell")
    }

    /// Builds the path to the leaf that `child` leads to. True if `cell` is in it; false if the wanted cell can only
    /// be in the next leaf of the direction, or there is no tree.
    fn descend(
        &mut self,
        child: impl Fn(&Page) -> usize,
        cell: impl Fn(&Page) -> Option<usize>,
    ) -> Result<bool> {
        self.path.clear();
        let Some(root) = self.root else { return Ok(false) };
        let mut page = load(&self.pages, &root)?;
        while page.level() > 0 {
            let index = child(&page);
            let below = load(&self.pages, &page.child(index))?;
            self.path.push(Step { page, index });
            page = below;
        }
        let index = cell(&page);
        self.path.push(Step { page, index: index.unwrap_or(0) });
        Ok(index.is_some())
    }

    /// Goes to the neighbour of the leaf, whose keys must lie beyond: a walk that is continued at the last key it has seen
    /// would not end otherwise.
    fn leave_leaf(&mut self, direction: Direction) -> Result<bool> {
        let before = std::mem::take(&mut self.key);
        let moved = self.settle(Ok(false), direction)?;
        let is_beyond = match direction {
            Direction::Forward => self.key > before,
            Direction::Backward => self.key < before,
        };
        match (moved && !is_beyond, self.reference()) {
            (true, Some(r)) => {
                self.path.clear();
                Err(damaged(&r, "its keys overlap with those of the leaf beside it (T1)".to_string()))
            }
            _ => Ok(moved),
        }
    }

    /// The reference of the leaf on the path.
    fn reference(&self) -> Option<PageRef> {
        match self.path.len().checked_sub(2) {
            Some(parent) => Some(self.path[parent].page.child(self.path[parent].index)),
            None => self.root,
        }
    }

    /// Ends a move: goes on to the next leaf unless the cell was `found`, and enters one of the two states.
    fn settle(&mut self, found: Result<bool>, direction: Direction) -> Result<bool> {
        let settled = found.and_then(|found| if found { Ok(()) } else { self.step_leaf(direction) });
        if let Err(error) = settled {
            self.path.clear();
            return Err(error);
        }
        self.key.clear();
        if let Some(leaf) = self.path.last() {
            leaf.page.push_key(leaf.index, &mut self.key);
        }
        Ok(self.is_valid())
    }

    /// Moves to the edge of the neighbouring leaf, or on nothing if there is none.
    fn step_leaf(&mut self, direction: Direction) -> Result<()> {
        self.path.pop();
        while let Some(step) = self.path.last_mut() {
            let next = match direction {
                Direction::Forward => Some(step.index + 1).filter(|&it| it < step.page.count()),
                Direction::Backward => step.index.checked_sub(1),
            };
            let Some(next) = next else {
                self.path.pop();
                continue;
            };
            step.index = next;
            let mut page = load(&self.pages, &step.page.child(next))?;
            loop {
                let index = match direction {
                    Direction::Forward => 0,
                    Direction::Backward => page.count() - 1,
                };
                let below = (page.level() > 0).then(|| page.child(index));
                self.path.push(Step { page, index });
                let Some(below) = below else { return Ok(()) };
                page = load(&self.pages, &below)?;
            }
        }
        Ok(())
    }

    /// The key after a step inside the leaf: the prefix is there already.
    fn step_key(&mut self) {
        if let Some(leaf) = self.path.last() {
            self.key.truncate(leaf.page.prefix().len());
            self.key.extend_from_slice(leaf.page.suffix(leaf.index));
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}
