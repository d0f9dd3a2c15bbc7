//! Leaves that a scan will come to, asked for before it gets there.
//!
//! A scan in key order goes from leaf to leaf, and each that is not in memory makes it wait. It knows the next ones, though: they stand in
//! the page above. From its second leaf on it asks for as many leaves ahead as it has passed, up to a window in bytes: so a range with
//! a limit, which nobody here knows, reads at most about as much ahead as it has read itself, and none if it ends in its first leaf.
//!
//! A hint, as all of `read_ahead`: it changes no answer and no error. Leaves that begin behind the end of the range are not asked for,
//! nor are those below the next page above, until the scan is there.
use super::{DiskCursor, DiskState};
use std::sync::Arc;

/// How far a scan is ahead of itself.
#[derive(Default)]
pub(crate) struct LeavesAhead {
    /// Leaves that were passed.
    passed: usize,
    /// Where the scan is: the page above, as an address that is only compared, and the leaf in it.
    at: Option<(usize, usize)>,
    /// The next leaf of that page which was not asked for.
    next: usize,
}

impl LeavesAhead {
    /// To be called behind each step. `end` is that of the range.
    #[inline]
    pub(crate) fn follow(&mut self, state: &Arc<DiskState>, cursor: &DiskCursor<'_>, end: Option<&[u8]>) {
        let at = cursor.leaf_place();
        if at != self.at {
            self.enter(at, state, cursor, end);
        }
    }

    #[cold]
    fn enter(
        &mut self,
        at: Option<(usize, usize)>,
        state: &Arc<DiskState>,
        cursor: &DiskCursor<'_>,
        end: Option<&[u8]>,
    ) {
        let before = std::mem::replace(&mut self.at, at);
        let (Some((page_at, index)), Some(window_bytes)) = (at, state.ahead_bytes()) else { return };
        if before.is_none_or(|(page_before, _)| page_before != page_at) {
            self.next = 0;
        }
        // Where it begins it may end.
        if before.is_none() {
            return;
        }
        self.passed += 1;
        let Some(page) = cursor.page_above() else { return };
        let mut bytes = 0;
        let last = page.count().min(index.saturating_add(1).saturating_add(self.passed));
        for ahead in index + 1..last {
            bytes += page.child(ahead).bytes() as u64;
            if bytes > window_bytes {
                return;
            }
            if ahead < self.next {
                continue;
            }
            let fence = page.key(ahead);
            if end.is_some_and(|end| &fence[..] >= end) {
                return;
            }
            state.read_leaf_ahead(&fence);
            self.next = ahead + 1;
        }
    }
}
