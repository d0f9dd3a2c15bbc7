//! A place among the keys of a state: two cursors, over the key tree and over what is pending, as one.
//!
//! **States** (`at`). *Nothing*: before the first seek, at either end, behind an error; only a seek leads out. *Leaf*, *Pending*, *Both*:
//! on a key that the one tree has, the other, or both, and then the pending change is what counts. The cursor that is not on the key
//! is beyond it in the direction of the last move, or at its end: before a move in the other direction it is sought anew.
//! A key with a purge is passed over.
use super::pending::PendingChange;
use super::repair::KeyPages;
use super::{DiskState, DiskVersion, TreeId};
use crate::error::Result;
use crate::tree::{Cursor, Page, Tree};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Nothing,
    Leaf,
    Pending,
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Forward,
    Backward,
}

/// See the module.
pub(crate) struct DiskCursor<'a> {
    /// Main revision of the state.
    head: i64,
    leaves: Cursor<KeyPages<'a>>,
    /// None if nothing is pending.
    pending: Option<Cursor<KeyPages<'a>>>,
    at: At,
    direction: Direction,
}

impl<'a> DiskCursor<'a> {
    /// None before the first checkpoint.
    pub(super) fn new(state: &'a DiskState) -> Option<Self> {
        let tree = |tree, root| Some(Tree::new(root, state.pages_of(tree)?).cursor());
        let pending = match state.roots.pending {
            None => None,
            root => tree(TreeId::Pending, root),
        };
        let (head, leaves) = (state.positions.revision, tree(TreeId::Keys, state.roots.keys)?);
        Some(Self { head, leaves, pending, at: At::Nothing, direction: Direction::Forward })
    }

    /// To the first key that is not below `key`.
    pub(crate) fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.seek_both(Direction::Forward, |cursor| cursor.seek(key))
    }

    /// To the last key below `end`, or the last of all.
    pub(crate) fn seek_before(&mut self, end: Option<&[u8]>) -> Result<()> {
        self.seek_both(Direction::Backward, |cursor| cursor.seek_before(end))
    }

    fn seek_both(
        &mut self,
        direction: Direction,
        seek: impl Fn(&mut Cursor<KeyPages<'a>>) -> Result<bool>,
    ) -> Result<()> {
        (self.at, self.direction) = (At::Nothing, direction);
        seek(&mut self.leaves)?;
        if let Some(pending) = &mut self.pending {
            seek(pending)?;
        }
        self.settle()
    }

    /// To the next key.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        self.step(Direction::Forward)
    }

    /// To the key before.
    pub(crate) fn prev(&mut self) -> Result<()> {
        self.step(Direction::Backward)
    }

    #[inline]
    fn step(&mut self, direction: Direction) -> Result<()> {
        if self.at == At::Nothing {
            return Ok(());
        }
        if self.direction != direction {
            self.turn(direction)?;
        }
        self.pass(direction)?;
        self.settle()
    }

    /// Seeks the cursor that is not on the key on its other side.
    fn turn(&mut self, direction: Direction) -> Result<()> {
        let at = std::mem::replace(&mut self.at, At::Nothing);
        self.direction = direction;
        let Some(pending) = &mut self.pending else {
            self.at = at;
            return Ok(());
        };
        let (other, key) = match at {
            At::Leaf => (pending, self.leaves.key().to_vec()),
            At::Pending => (&mut self.leaves, pending.key().to_vec()),
            At::Both | At::Nothing => {
                self.at = at;
                return Ok(());
            }
        };
        match direction {
            Direction::Forward => other.seek(&key)?,
            Direction::Backward => other.seek_before(Some(&key))?,
        };
        self.at = at;
        Ok(())
    }

    /// Moves what is on the key off it. Behind an error it is on nothing.
    #[inline]
    fn pass(&mut self, direction: Direction) -> Result<()> {
        let at = std::mem::replace(&mut self.at, At::Nothing);
        let step = |cursor: &mut Cursor<KeyPages<'a>>| match direction {
            Direction::Forward => cursor.next(),
            Direction::Backward => cursor.prev(),
        };
        if matches!(at, At::Leaf | At::Both) {
            step(&mut self.leaves)?;
        }
        if let (At::Pending | At::Both, Some(pending)) = (at, &mut self.pending) {
            step(pending)?;
        }
        Ok(())
    }

    /// Finds out which cursor is on the next key, and passes over those that have no cell any more.
    #[inline]
    fn settle(&mut self) -> Result<()> {
        loop {
            let Some(pending) = self.pending.as_ref().filter(|pending| pending.is_valid()) else {
                self.at = if self.leaves.is_valid() { At::Leaf } else { At::Nothing };
                return Ok(());
            };
            let order = match self.leaves.is_valid() {
                false => Ordering::Less,
                true => match self.direction {
                    Direction::Forward => pending.key().cmp(self.leaves.key()),
                    Direction::Backward => self.leaves.key().cmp(pending.key()),
                },
            };
            let at = match order {
                Ordering::Less => At::Pending,
                Ordering::Equal => At::Both,
                Ordering::Greater => {
                    self.at = At::Leaf;
                    return Ok(());
                }
            };
            let is_there = PendingChange::decode(pending.payload())?.cell.is_some();
            self.at = at;
            if is_there {
                return Ok(());
            }
            self.pass(self.direction)?;
        }
    }

    /// The page above the leaf of the key tree that the cursor is in; none in a tree of one leaf.
    pub(super) fn page_above(&self) -> Option<&Page> {
        self.leaves.page_above().map(|(page, _)| &**page)
    }

    /// Which leaf that is: something that is another one for each page, and the number of the leaf in it.
    #[inline]
    pub(super) fn leaf_place(&self) -> Option<(usize, usize)> {
        self.leaves.page_above().map(|(page, index)| (Arc::as_ptr(page) as usize, index))
    }

    /// The key; none at either end.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match (self.at, &self.pending) {
            (At::Nothing, _) => None,
            (At::Pending | At::Both, Some(pending)) => Some(pending.key()),
            _ => Some(self.leaves.key()),
        }
    }

    /// The cell of the key's newest version.
    ///
    /// # Panics
    /// If there is no key.
    pub(crate) fn cell(&self) -> Result<Bytes> {
        match (self.at, &self.pending) {
            (At::Pending | At::Both, Some(pending)) => {
                let payload = pending.payload_bytes();
                let cell = PendingChange::decode(&payload)?.cell;
                Ok(payload.slice_ref(cell.expect("a key without a cell is passed over")))
            }
            _ => Ok(self.leaves.payload_bytes()),
        }
    }

    /// The key's newest version.
    ///
    /// # Panics
    /// If there is no key.
    pub(crate) fn version(&self) -> Result<DiskVersion> {
        DiskVersion::decode_up_to(self.head, &self.cell()?)
    }
}
