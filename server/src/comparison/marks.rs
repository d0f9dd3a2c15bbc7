//! The newest marks, with what this member has at them.
//!
//! **Access**: filled by the thread that applies, read by whoever compares or is asked. One short lock.
use super::judge::Said;
use crate::request::kv_hash::KvHash;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use sternpost_engine::mvcc::StateSum;
use tokio::sync::watch;

/// Marks that are kept: a member that is behind asks late.
pub const KEPT_MAX: usize = 16;

/// A mark that was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Index of its entry.
    pub index: u64,
    /// All that is retained is to be hashed too.
    pub is_deep: bool,
    /// The sum of this member's state there.
    pub sum: StateSum,
}

/// What is known of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// This.
    Here(Said),
    /// It is not applied yet, or its hash is being made.
    NotYet,
    /// There is no such mark, or it is long ago.
    Gone,
}

/// How the hash of a mark is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hash {
    /// Nobody wants it, or it cannot be had.
    None,
    Wanted,
    Made(KvHash),
}

/// See the module.
pub struct Marks {
    kept: Mutex<VecDeque<(Mark, Hash)>>,
    /// The newest that came by the log, not by its replay.
    newest: watch::Sender<Option<Mark>>,
}

impl Default for Marks {
    fn default() -> Self {
        Self { kept: Mutex::default(), newest: watch::Sender::new(None) }
    }
}

impl Marks {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(Mark, Hash)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mark was applied; `is_replayed`: by the replay of the log, so that it was compared when it was new, and nothing is hashed.
    pub fn push(&self, mark: Mark, is_replayed: bool) {
        let hash = if mark.is_deep && !is_replayed { Hash::Wanted } else { Hash::None };
        let mut kept = self.kept();
        kept.push_back((mark, hash));
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        drop(kept);
        if !is_replayed {
            self.newest.send_replace(Some(mark));
        }
    }

    /// The hash of the mark at `index`, none if it cannot be had.
    pub fn set_hash(&self, index: u64, hash: Option<KvHash>) {
        if let Some((_, kept)) = self.kept().iter_mut().find(|(mark, _)| mark.index == index) {
            *kept = hash.map_or(Hash::None, Hash::Made);
        }
    }

    /// What this member has at `index`, of which it has applied everything up to `applied`.
    pub fn at(&self, index: u64, applied: u64) -> Kept {
        match self.kept().iter().find(|(mark, _)| mark.index == index) {
            Some((_, Hash::Wanted)) => Kept::NotYet,
            Some((mark, Hash::None)) => Kept::Here(Said { sum: mark.sum, hash: None }),
            Some((mark, Hash::Made(hash))) => Kept::Here(Said { sum: mark.sum, hash: Some(*hash) }),
            None if applied < index => Kept::NotYet,
            None => Kept::Gone,
        }
    }

    /// Hears of new ones; several may come as one.
    pub fn subscribe(&self) -> watch::Receiver<Option<Mark>> {
        self.newest.subscribe()
    }

    /// Index of the newest one that was applied since the start, 0 if there is none.
    pub fn newest_index(&self) -> u64 {
        self.newest.borrow().map_or(0, |mark| mark.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_given_and_what_is_not_is_said() {
        let marks = Marks::default();
        let mark = |index| Mark { index, is_deep: index.is_multiple_of(2), sum: StateSum::default() };
        assert_eq!(marks.at(1, 0), Kept::NotYet);
        assert_eq!(marks.at(1, 1), Kept::Gone, "no mark");
        for index in 1..=KEPT_MAX as u64 + 2 {
            marks.push(mark(index), false);
        }
        assert_eq!(marks.at(2, 100), Kept::Gone, "long ago");
        assert_eq!(marks.at(3, 100), Kept::Here(Said { sum: StateSum::default(), hash: None }));
        assert_eq!(marks.at(4, 100), Kept::NotYet, "it is being hashed");
        let hash = KvHash { hash: 1, compact_revision: 2, revision: 3 };
        marks.set_hash(4, Some(hash));
        assert_eq!(marks.at(4, 100), Kept::Here(Said { sum: StateSum::default(), hash: Some(hash) }));
        marks.set_hash(6, None);
        assert_eq!(marks.at(6, 100), Kept::Here(Said { sum: StateSum::default(), hash: None }));
        assert_eq!(marks.newest_index(), KEPT_MAX as u64 + 2);
        marks.push(mark(20), true);
        assert_eq!(marks.at(20, 100), Kept::Here(Said { sum: StateSum::default(), hash: None }));
        assert_eq!(marks.newest_index(), KEPT_MAX as u64 + 2, "a replay is no news");
    }
}
