//! Leaves that a scan will come to, asked for before it gets there.
//!
//! A scan in key order, up or down, goes from leaf to leaf, and each that is not in memory makes it wait. It knows the next ones, though:
//! they stand in the page above. From its second leaf on it asks for as many leaves ahead as it has passed, up to a window in bytes: so a
//! range with a limit, which nobody here knows, reads at most about as much ahead as it has read itself, and none if it ends in its
//! first leaf. A scan that is made in pages of keys, as that of an iterator, keeps its count from page to page.
//!
//! A hint, as all of `read_ahead`: it changes no answer and no error. Leaves that lie wholly outside the range are not asked for,
//! nor are those below the next page above, until the scan is there. None is asked for twice.
use super::{DiskCursor, DiskState};
use crate::tree::Page;
use std::ops::ControlFlow;
use std::sync::Arc;

/// How far a scan is ahead of itself.
#[derive(Default)]
pub(crate) struct LeavesAhead {
    /// The scan goes down.
    is_backward: bool,
    /// Leaves that were passed.
    passed: usize,
    /// Where the scan is: the page above, as an address that is only compared while the cursor holds the page, and the leaf in it.
    at: Option<(usize, usize)>,
    /// How many of that page's leaves, from where the scan enters it, are behind the scan or asked for.
    done: usize,
    /// A key of the last leaf that was asked for.
    asked: Option<Vec<u8>>,
}

impl LeavesAhead {
    /// Of a scan that goes down.
    pub(crate) fn backward() -> Self {
        Self { is_backward: true, ..Self::default() }
    }

    /// The same scan goes on with another cursor, from where it was.
    pub(crate) fn go_on(&mut self) {
        self.at = None;
    }

    /// To be called behind each step. `bound` is that of the range in the direction of the scan: the first key behind it, or the first in it.
    #[inline]
    pub(crate) fn follow(&mut self, state: &Arc<DiskState>, cursor: &DiskCursor<'_>, bound: Option<&[u8]>) {
        let at = cursor.leaf_place();
        if at != self.at {
            self.enter(at, state, cursor, bound);
        }
    }

    #[cold]
    fn enter(
        &mut self,
        at: Option<(usize, usize)>,
        state: &Arc<DiskState>,
        cursor: &DiskCursor<'_>,
        bound: Option<&[u8]>,
    ) {
        let before = std::mem::replace(&mut self.at, at);
        let (Some((page_at, index)), Some(window_bytes)) = (at, state.ahead_bytes()) else { return };
        let Some(page) = cursor.page_above() else { return };
        match before {
            Some((page_before, _)) => {
                self.passed += 1;
                if page_before != page_at {
                    self.done = 0;
                }
            }
            // Where it begins it may end.
            None if self.passed == 0 => return self.done = 0,
            None => {
                self.done = self.asked.as_deref().map_or(0, |key| self.nth(page, page.child_index(key)) + 1)
            }
        }
        let first = self.nth(page, index) + 1;
        let mut bytes = 0;
        for nth in first..page.count().min(first.saturating_add(self.passed)) {
            let leaf = self.nth(page, nth);
            bytes += page.child(leaf).bytes() as u64;
            if bytes > window_bytes {
                return;
            }
            if nth < self.done {
                continue;
            }
            let ControlFlow::Continue(key) = self.key_in(page, leaf, bound) else { return };
            state.read_leaf_ahead(&key);
            (self.done, self.asked) = (nth + 1, Some(key));
        }
    }

    /// Turns the number of a leaf in the page above into its number in the direction of the scan, and back.
    fn nth(&self, page: &Page, index: usize) -> usize {
        match self.is_backward {
            false => index,
            true => page.count() - 1 - index,
        }
    }

    /// A key that the leaf covers, of the range if it has such a one; a break if all of the leaf lies behind the bound.
    fn key_in(&self, page: &Page, leaf: usize, bound: Option<&[u8]>) -> ControlFlow<(), Vec<u8>> {
        let fence = page.key(leaf);
        match bound {
            Some(end) if !self.is_backward && &fence[..] >= end => ControlFlow::Break(()),
            // Its keys are below the fence of the next one.
            Some(from) if self.is_backward && page.key(leaf + 1)[..] <= *from => ControlFlow::Break(()),
            Some(from) if self.is_backward => ControlFlow::Continue(fence.max(from.to_vec())),
            _ => ControlFlow::Continue(fence),
        }
    }
}
