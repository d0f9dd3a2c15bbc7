//! The log as the library reads it: newest entries in memory, older ones in the log's files.
//!
//! **Contract.** [`LogView::append`] takes over what is on its way to disk, before the library hears that it was taken over: it is readable
//! at once, durable later. Everything above min(applied, durable) is in memory (rule 7 of the design), so only an append for a follower
//! that is behind can find nothing here; the range is then wanted, and [`LogView::loaded`] brings it.
//!
//! **Invariants.** L1: what is in memory is consecutive and ends the log. L2: whoever cannot wait (applying, campaigning, overwriting) asks
//! only for what is in memory. L3: nobody asks for what is behind the end.
//!
//! **Bounds.** What is kept only for followers is at most `cache_bytes_max`; loaded ranges are at most [`LOADED_MAX`]; of wanted ranges
//! each is asked for once, with at most [`CONTEXTS_MAX`] who wait for it.
//!
//! **Does not know** files, or what is in an entry.
use super::terms::Terms;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Ranges kept that were read from files, each of [`LOAD_BYTES`] or one entry.
const LOADED_MAX: usize = 8;
/// Bytes that one reading of files brings.
pub const LOAD_BYTES: u64 = 1 << 20;
/// Followers that wait for the same range.
const CONTEXTS_MAX: usize = 16;
/// What an entry costs in memory beside its data.
const ENTRY_COST: usize = 96;

/// A range that somebody has to read from the log's files.
struct Wanted {
    low: u64,
    high: u64,
    asked: bool,
    contexts: Vec<GetEntriesContext>,
}

/// What the library asked for while it held the view by reference.
#[derive(Default)]
struct Asked {
    wanted: Vec<Wanted>,
    loaded: VecDeque<Vec<Entry>>,
    /// Peers that need what is in no file any more.
    snapshots: Vec<u64>,
}

/// See the module.
pub struct LogView {
    hard_state: HardState,
    conf_state: ConfState,
    terms: Terms,
    /// First index that can be read at all, here or in files: the lower one of `files_first` and the first in memory.
    first: u64,
    /// First index in files.
    files_first: u64,
    /// Consecutive, up to the last.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    asked: RefCell<Asked>,
}

fn cost(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_COST
}

impl LogView {
    /// A log whose entries up to `terms`'s last are in files, those of `cache` also in memory.
    pub(super) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        terms: Terms,
        first: u64,
        cache: Vec<Entry>,
        cache_bytes_max: usize,
    ) -> Self {
        let cache_bytes = cache.iter().map(cost).sum();
        let cache = VecDeque::from(cache);
        if let Some(last) = cache.back() {
            assert_eq!(last.index, terms.last(), "L1: what is in memory ends the log");
        }
        Self {
            hard_state,
            conf_state,
            terms,
            first,
            files_first: first,
            cache,
            cache_bytes,
            cache_bytes_max,
            asked: RefCell::default(),
        }
    }

    fn cache_first(&self) -> u64 {
        self.cache.front().map_or(self.terms.last() + 1, |entry| entry.index)
    }

    /// Last index, durable or not.
    pub(super) fn last(&self) -> u64 {
        self.terms.last()
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        self.terms.get(index)
    }

    /// Takes over entries that are on their way to disk; what they overwrite is forgotten.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.cache_first(),
            "L2: entries up to the durable and applied ones are in memory, from {} on; {} is overwritten",
            self.cache_first(),
            first.index
        );
        while self.cache.back().is_some_and(|last| last.index >= first.index)
            && let Some(overwritten) = self.cache.pop_back()
        {
            self.cache_bytes -= cost(&overwritten);
        }
        for entry in entries {
            self.terms.put(entry.index, entry.term);
            self.cache_bytes += cost(entry);
            self.cache.push_back(entry.clone());
        }
        // Ranges in files may be overwritten too.
        self.asked.get_mut().loaded.retain(|range| range.last().is_some_and(|last| last.index < first.index));
    }

    /// Lets go of what is only kept for followers, beyond the bound. `needed`: min(applied, durable).
    pub(super) fn shrink(&mut self, needed: u64) {
        while self.cache_bytes > self.cache_bytes_max
            && self.cache.front().is_some_and(|entry| entry.index <= needed)
            && let Some(entry) = self.cache.pop_front()
        {
            self.cache_bytes -= cost(&entry);
        }
        self.forget_unreadable();
    }

    /// Bytes of entries in memory behind `index`: what waits to be applied.
    pub(super) fn bytes_behind(&self, index: u64) -> usize {
        let skip = (index + 1).saturating_sub(self.cache_first());
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.cache.len());
        // Rarely more than a few: this member applies as it receives.
        self.cache.range(skip..).map(cost).sum()
    }

    /// The log's files begin at `first` now.
    pub(super) fn files_begin_at(&mut self, first: u64) {
        self.files_first = self.files_first.max(first);
        self.forget_unreadable();
    }

    fn forget_unreadable(&mut self) {
        let first = self.files_first.min(self.cache_first());
        if first > self.first {
            self.first = first;
            self.terms.forget_before(first - 1);
        }
    }

    /// Ranges `[low, high)` to be read from files that were not asked for yet.
    pub(super) fn take_wanted(&mut self) -> Vec<(u64, u64)> {
        let wanted = self.asked.get_mut().wanted.iter_mut();
        let ask = |range: &mut Wanted| {
            (!std::mem::replace(&mut range.asked, true)).then_some((range.low, range.high))
        };
        wanted.filter_map(ask).collect()
    }

    /// Peers that a snapshot would be needed for since the last call.
    pub(super) fn take_snapshots_needed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.asked.get_mut().snapshots)
    }

    /// What files hold from `low` on arrived; nothing if it could not be read. Returns who waits for it.
    pub(super) fn loaded(&mut self, low: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let terms = &self.terms;
        let asked = self.asked.get_mut();
        let Some(at) = asked.wanted.iter().position(|range| range.low == low) else { return Vec::new() };
        let contexts = asked.wanted.swap_remove(at).contexts;
        // What was read may have been overwritten since; terms say so, and what lies before that is good.
        let fits = |(at, entry): &(usize, Entry)| {
            entry.index == low + *at as u64 && terms.get(entry.index) == Some(entry.term)
        };
        let entries: Vec<Entry> =
            entries.into_iter().enumerate().take_while(fits).map(|(_, entry)| entry).collect();
        if entries.is_empty() {
            return Vec::new();
        }
        if asked.loaded.len() == LOADED_MAX {
            asked.loaded.pop_front();
        }
        asked.loaded.push_back(entries);
        contexts
    }
}

/// The first of `entries` as far as they hold `bytes_max`, at least one.
fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes += entry.data.len() as u64 + entry.context.len() as u64;
        if !taken.is_empty() && bytes > bytes_max {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

impl Storage for LogView {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        assert!(
            high <= self.last() + 1,
            "L3: asked for entries up to {high}, the log ends at {}",
            self.last()
        );
        if low < self.first {
            return Err(Error::Store(StorageError::Compacted));
        }
        let cache_first = self.cache_first();
        if low >= cache_first {
            let (from, to) = ((low - cache_first) as usize, (high - cache_first) as usize);
            return Ok(limited(self.cache.range(from..to), bytes_max));
        }
        assert!(
            context.can_async(),
            "L2: entries {low}.. are in memory from {cache_first} on, and somebody needs them now"
        );
        let mut asked = self.asked.borrow_mut();
        for range in &asked.loaded {
            if let (Some(first), Some(last)) = (range.first(), range.last())
                && (first.index..=last.index).contains(&low)
            {
                let from = (low - first.index) as usize;
                let count = (high - low) as usize;
                return Ok(limited(range[from..].iter().take(count), bytes_max));
            }
        }
        match asked.wanted.iter_mut().find(|range| range.low == low) {
            Some(range) if range.contexts.len() < CONTEXTS_MAX => range.contexts.push(context),
            Some(_) => {}
            None => asked.wanted.push(Wanted {
                low,
                high: high.min(cache_first),
                asked: false,
                contexts: vec![context],
            }),
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> Result<u64> {
        match self.terms.get(index) {
            Some(term) => Ok(term),
            None if index < self.terms.first() => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _: u64, to: u64) -> Result<Snapshot> {
        let mut asked = self.asked.borrow_mut();
        if !asked.snapshots.contains(&to) {
            asked.snapshots.push(to);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: Bytes::from(vec![index as u8; 1000]), ..Default::default() }
    }

    fn view(cache_bytes_max: usize) -> LogView {
        let mut view = LogView::new(
            HardState::default(),
            ConfState::default(),
            Terms::new(1, 1),
            2,
            Vec::new(),
            cache_bytes_max,
        );
        view.append(&(2..=20).map(|index| entry(index, 1)).collect::<Vec<_>>());
        view
    }

    fn asynchronous() -> GetEntriesContext {
        GetEntriesContext::empty(true)
    }

    #[test]
    fn what_a_follower_alone_needs_goes_beyond_the_bound_and_comes_back_from_files() {
        let mut view = view(5 * (1000 + ENTRY_COST));
        view.shrink(10);
        assert_eq!(view.cache_first(), 11, "what is not applied stays, however much it is");
        view.shrink(20);
        assert_eq!(view.cache_first(), 16);
        let unavailable = view.entries(3, 21, 4096, asynchronous());
        assert_eq!(unavailable, Err(Error::Store(StorageError::LogTemporarilyUnavailable)));
        assert_eq!(view.take_wanted(), [(3, 16)]);
        assert_eq!(view.take_wanted(), [], "asked for once");
        let contexts = view.loaded(3, (3..9).map(|index| entry(index, 1)).collect());
        assert_eq!(contexts.len(), 1);
        let read = view.entries(4, 21, 2500, asynchronous()).unwrap();
        assert_eq!(read.iter().map(|entry| entry.index).collect::<Vec<_>>(), [4, 5]);
        // In memory: at least one, whatever its size.
        assert_eq!(view.entries(18, 21, 0, asynchronous()).unwrap().len(), 1);
    }

    #[test]
    fn what_was_overwritten_meanwhile_is_not_taken_from_files() {
        let mut view = view(0);
        view.shrink(18);
        let _ = view.entries(10, 15, None, asynchronous());
        assert_eq!(view.take_wanted(), [(10, 15)]);
        assert!(view.loaded(10, vec![entry(10, 2), entry(11, 2)]).is_empty());
        let again = view.entries(10, 15, None, asynchronous());
        assert_eq!(again, Err(Error::Store(StorageError::LogTemporarilyUnavailable)));
        assert_eq!(view.take_wanted(), [(10, 15)], "it is asked for again");
        assert_eq!(view.loaded(10, vec![entry(10, 1), entry(11, 2)]).len(), 1);
        assert_eq!(view.entries(10, 15, None, asynchronous()).unwrap(), [entry(10, 1)]);
        view.append(&[entry(19, 3)]);
        assert_eq!((view.last(), view.term_at(19), view.term_at(20)), (19, Some(3), None));
    }

    /// The files were cut up to what was still in memory; then memory let go of it, and the range between was neither said to be gone nor found: its
    /// follower waited until the next cut. Found by the simulator. Now what leaves memory is gone if the files begin behind it.
    #[test]
    fn what_files_dropped_while_it_was_in_memory_is_gone_when_memory_lets_go() {
        let mut view = view(5 * (1000 + ENTRY_COST));
        view.files_begin_at(12);
        assert_eq!(view.first_index(), Ok(2), "all of it is in memory");
        view.shrink(9);
        assert_eq!(view.first_index(), Ok(10));
        view.shrink(20);
        assert_eq!((view.cache_first(), view.first_index()), (16, Ok(12)));
        assert_eq!(view.term(11), Ok(1));
        assert_eq!(view.entries(11, 12, None, asynchronous()), Err(Error::Store(StorageError::Compacted)));
    }

    #[test]
    fn what_no_file_holds_needs_a_snapshot() {
        let mut view = view(0);
        view.shrink(20);
        view.files_begin_at(12);
        assert_eq!(view.first_index(), Ok(12));
        assert_eq!(view.term(11), Ok(1), "the one before is known");
        assert_eq!(view.term(10), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(view.entries(11, 12, None, asynchronous()), Err(Error::Store(StorageError::Compacted)));
        assert!(view.snapshot(0, 7).is_err());
        assert_eq!((view.take_snapshots_needed(), view.take_snapshots_needed()), (vec![7], vec![]));
    }
}
