//! What a member's log says of where it was: records in, a core's start out.
//!
//! **Rules.** An entry supersedes every earlier record with the same or a higher index, whatever its term. The newest hard state counts for term and
//! vote; the commit index never goes back. Entries are applied as far as a hard state read so far says that they are committed, or the
//! checkpoint has them; the rest is the tail, which may still be overwritten.
//!
//! **Bounds.** The tail in memory is what was appended and not known to be committed: hard states travel with entries, so it is a few groups, or what an
//! uncommitted leader had, [`super::core::UNAPPLIED_BYTES_MAX`].
//!
//! **Does not know** where records come from, or what commands mean.
use super::core::CoreStart;
use raft::eraftpb::{ConfState, Entry, HardState};
use std::collections::VecDeque;
use std::fmt;

/// Why a log makes no sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayError(String);

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ReplayError {}

/// See the module.
pub struct Replay {
    /// What the state machine holds: the checkpoint, then what was taken.
    applied: u64,
    hard_state: HardState,
    /// (index, term) before the first entry that was read.
    base: Option<(u64, u64)>,
    /// (index, term) where a term begins.
    runs: Vec<(u64, u64)>,
    last: (u64, u64),
    tail: VecDeque<Entry>,
    /// An entry was read.
    has_begun: bool,
    /// The first entries are beyond the checkpoint and nothing is known of what lies between: they must be overwritten.
    gap: Option<ReplayError>,
}

impl Replay {
    /// The checkpoint holds everything up to `applied`, 0 for none.
    pub fn new(applied: u64) -> Self {
        Self {
            applied,
            hard_state: HardState::default(),
            base: None,
            runs: Vec::new(),
            last: (0, 0),
            tail: VecDeque::new(),
            has_begun: false,
            gap: None,
        }
    }

    /// A hard state was read.
    pub fn hard_state(&mut self, term: u64, vote: u64, commit: u64) -> Result<(), ReplayError> {
        if term < self.hard_state.term {
            return Err(ReplayError(format!(
                "a hard state of term {term} follows one of {}",
                self.hard_state.term
            )));
        }
        let commit = commit.max(self.hard_state.commit);
        self.hard_state = HardState { term, vote, commit };
        Ok(())
    }

    /// The checkpoint that the log starts behind was read; it may come again at the start of every segment.
    pub fn mark(&mut self, index: u64, term: u64) {
        if self.base.is_none() {
            self.base = Some((index, term));
            self.last = (index, term);
        }
        self.applied = self.applied.max(index);
    }

    /// An entry was read.
    pub fn entry(&mut self, entry: Entry) -> Result<(), ReplayError> {
        let (index, term) = (entry.index, entry.term);
        let has_begun = std::mem::replace(&mut self.has_begun, true);
        let follows = self.base.is_some() && index == self.last.0 + 1 && term >= self.last.1;
        let base = self.base.unwrap_or((0, 0));
        if !follows {
            if self.base.is_some() && index > base.0 && index <= self.last.0 {
                // A suffix is overwritten.
                if index <= self.hard_state.commit && index > self.applied {
                    return Err(ReplayError(format!(
                        "entry {index} is overwritten, and {} was committed",
                        self.hard_state.commit
                    )));
                }
                while self.tail.back().is_some_and(|last| last.index >= index) {
                    self.tail.pop_back();
                }
                while self.runs.last().is_some_and(|(first, _)| *first >= index) {
                    self.runs.pop();
                }
                let before = self.runs.last().map_or(base.1, |(_, term)| *term);
                if term < before {
                    return Err(ReplayError(format!("entry {index} of term {term} follows term {before}")));
                }
                self.last = (index - 1, before);
            } else if index <= self.applied && (self.tail.is_empty() || index <= base.0) {
                // Where reading begins, or begins again behind something that is only kept for others and was lost; what lies
                // before is known by the term of this one alone. What it overwrites began before the log does.
                self.base = Some((index, term));
                self.runs.clear();
                self.tail.clear();
                self.last = (index, term);
                self.gap = None;
                return Ok(());
            } else {
                let gap = ReplayError(format!(
                    "entry {index} of term {term} follows entry {} of term {}",
                    self.last.0, self.last.1
                ));
                if has_begun && self.gap.is_none() {
                    return Err(gap);
                }
                // Within a suffix that began before the log does, and that an entry still to come overwrites.
                self.gap = Some(gap);
                return Ok(());
            }
        }
        self.gap = None;
        let before = self.runs.last().map_or(base.1, |(_, term)| *term);
        if term > before {
            self.runs.push((index, term));
        }
        self.last = (index, term);
        if index > self.applied {
            self.tail.push_back(entry);
        }
        Ok(())
    }

    /// The next entry that is known to be committed, to be applied now.
    pub fn take_committed(&mut self) -> Option<Entry> {
        let commit = self.hard_state.commit;
        let entry = self.tail.pop_front_if(|entry| entry.index <= commit)?;
        self.applied = entry.index;
        Some(entry)
    }

    /// Last index read.
    pub fn last_index(&self) -> u64 {
        self.last.0
    }

    /// Index and term of the last entry; of the checkpoint, if there is none.
    pub fn last(&self) -> (u64, u64) {
        self.last
    }

    /// The newest term: of an entry, or that this member has heard of.
    pub fn term(&self) -> u64 {
        self.last.1.max(self.hard_state.term)
    }

    /// Entries that are not known to be committed, in order.
    pub fn tail(&self) -> impl Iterator<Item = &Entry> {
        self.tail.iter()
    }

    /// Everything was read and applied as far as it is committed.
    pub fn finish(self, configuration: ConfState) -> Result<CoreStart, ReplayError> {
        let Some(base) = self.base else {
            return Err(ReplayError("the log holds no entry and no genesis".into()));
        };
        if let Some(gap) = self.gap {
            return Err(gap);
        }
        if self.last.0 < self.applied {
            return Err(ReplayError(format!(
                "the log ends at {}, the checkpoint holds entries up to {}",
                self.last.0, self.applied
            )));
        }
        let mut terms = self.runs;
        if self.last.0 > base.0 && terms.last().is_none_or(|(first, _)| *first < self.last.0) {
            terms.push(self.last);
        }
        Ok(CoreStart {
            hard_state: self.hard_state,
            configuration,
            applied: self.applied,
            base,
            terms,
            tail: self.tail.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Default::default() }
    }

    fn indexes(entries: &[Entry]) -> Vec<(u64, u64)> {
        entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    #[test]
    fn a_suffix_is_overwritten_and_what_is_committed_is_applied() {
        let mut replay = Replay::new(0);
        replay.mark(1, 1);
        for (index, term) in [(2, 1), (3, 1), (4, 1), (5, 2)] {
            replay.entry(entry(index, term)).unwrap();
        }
        replay.hard_state(2, 7, 3).unwrap();
        assert_eq!(replay.take_committed().unwrap().index, 2);
        assert_eq!(replay.take_committed().unwrap().index, 3);
        assert_eq!(replay.take_committed(), None);
        replay.entry(entry(4, 3)).unwrap();
        assert_eq!(replay.last_index(), 4);
        assert!(replay.entry(entry(3, 3)).is_ok(), "behind what was applied it is only noted");
        let mut replay = replay;
        replay.entry(entry(4, 3)).unwrap();
        replay.hard_state(3, 0, 2).unwrap();
        let start = replay.finish(ConfState::default()).unwrap();
        assert_eq!((start.applied, start.hard_state.commit), (3, 3), "the commit index does not go back");
        assert_eq!(indexes(&start.tail), [(4, 3)]);
        assert_eq!((start.base, start.terms), ((1, 1), vec![(3, 3), (4, 3)]));
    }

    /// The log was cut within a suffix that was overwritten later, and the member did not start: what overwrites began before everything that was read,
    /// or the first entry lay beyond the checkpoint. Now only what nothing overwrites is refused.
    #[test]
    fn a_log_may_begin_within_a_suffix_that_is_overwritten() {
        for first in 5..=8 {
            let mut replay = Replay::new(6);
            replay.mark(1, 1);
            replay.hard_state(1, 0, 4).unwrap();
            (first..=8).for_each(|index| replay.entry(entry(index, 1)).unwrap());
            replay.hard_state(2, 0, 4).unwrap();
            (5..=7).for_each(|index| replay.entry(entry(index, 2)).unwrap());
            let start = replay.finish(ConfState::default()).unwrap();
            assert_eq!((start.applied, indexes(&start.tail)), (6, vec![(7, 2)]), "from {first} on");
            assert_eq!((start.base, start.terms.last()), ((5, 2), Some(&(7, 2))));
        }
    }

    #[test]
    fn a_log_that_makes_no_sense_is_refused() {
        let mut replay = Replay::new(5);
        replay.mark(1, 1);
        replay.entry(entry(7, 1)).unwrap();
        replay.entry(entry(8, 1)).unwrap();
        assert!(replay.finish(ConfState::default()).is_err(), "a gap behind the checkpoint");
        let mut replay = Replay::new(5);
        replay.entry(entry(4, 1)).unwrap();
        replay.entry(entry(5, 2)).unwrap();
        assert!(replay.entry(entry(7, 2)).is_err(), "a gap");
        replay.entry(entry(6, 2)).unwrap();
        replay.hard_state(2, 0, 6).unwrap();
        assert!(replay.entry(entry(6, 3)).is_err(), "committed");
        assert!(replay.hard_state(1, 0, 6).is_err(), "a term that goes back");
        let mut replay = Replay::new(9);
        replay.entry(entry(4, 1)).unwrap();
        assert!(replay.finish(ConfState::default()).is_err(), "it ends before the checkpoint");
    }
}
