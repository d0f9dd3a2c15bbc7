//! Names of segments that a newer state does without and somebody still needs.
//!
//! **Contract.** Who is about to give segments of a state further names takes a [`NamesKept`] and then reads the superblock.
//! While it lives, the checkpoint that replaces the state removes nothing: what it would remove waits in [`KeptNames`], and
//! goes when nobody keeps names any more. A name that was not removed when the process ends is removed at the next open.
//!
//! **Why that order.** A name is removed behind the superblock that does without it. Whoever keeps names and then reads that
//! superblock or an older one finds the names of either; whoever comes later reads that one, which does without.
//!
//! **Access.** Any thread; the lock is held for a few instructions and never during I/O.
use crate::base::ids::SegmentId;
use crate::segment::SegmentKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A segment's file.
pub(crate) type SegmentFile = (SegmentId, SegmentKind);

/// See the module.
#[derive(Default)]
pub(crate) struct KeptNames(Mutex<State>);

#[derive(Default)]
struct State {
    holders_count: usize,
    /// What no superblock refers to and has its name still. Bounded by what checkpoints drop while somebody holds.
    waiting: Vec<SegmentFile>,
}

impl KeptNames {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps all names from now on.
    pub(crate) fn keep(self: &Arc<Self>) -> NamesKept {
        self.state().holders_count += 1;
        NamesKept(Arc::clone(self))
    }

    /// Adds segments that nothing refers to any more; gives those whose names may be removed now.
    pub(crate) fn release(&self, gone: &[SegmentFile]) -> Vec<SegmentFile> {
        let mut state = self.state();
        state.waiting.extend_from_slice(gone);
        if state.holders_count == 0 { std::mem::take(&mut state.waiting) } else { Vec::new() }
    }

    /// True if names wait and nobody keeps them.
    pub(crate) fn is_due(&self) -> bool {
        let state = self.state();
        state.holders_count == 0 && !state.waiting.is_empty()
    }
}

/// Keeps names until it is dropped.
pub(crate) struct NamesKept(Arc<KeptNames>);

impl Drop for NamesKept {
    fn drop(&mut self) {
        self.0.state().holders_count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_when_the_last_one_who_keeps_them_is_done() {
        let names = Arc::new(KeptNames::default());
        let file = |id| (SegmentId(id), SegmentKind::Revisions);
        assert_eq!(names.release(&[file(1)]), [file(1)]);
        let (first, second) = (names.keep(), names.keep());
        assert_eq!(names.release(&[file(2)]), []);
        drop(first);
        assert_eq!((names.release(&[file(3)]), names.is_due()), (Vec::new(), false));
        drop(second);
        assert!(names.is_due());
        assert_eq!(names.release(&[]), [file(2), file(3)]);
        assert!(!names.is_due());
    }
}
