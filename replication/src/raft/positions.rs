//! Where in the log's files entries are: a position now and then, to read on from.
//!
//! Invariant P1: from the position of a mark on, the log's records give the valid entries from its index on, a suffix that was overwritten
//! followed by what overwrote it. So an overwrite makes a mark of its own.
use std::collections::VecDeque;
use sternpost_engine::base::ids::Lsn;

/// Bytes of log between two marks.
const MARK_BYTES: u64 = 64 << 10;

/// See the module. 16 bytes for each 64 KiB of log that is kept.
#[derive(Default)]
pub(super) struct Positions {
    /// Ascending in both.
    marks: VecDeque<(u64, Lsn)>,
    last_index: u64,
}

impl Positions {
    /// An entry was appended, or read at start.
    pub(super) fn note(&mut self, index: u64, lsn: Lsn) {
        let follows = index == self.last_index + 1;
        self.last_index = index;
        if !follows {
            while self.marks.back().is_some_and(|(marked, _)| *marked >= index) {
                self.marks.pop_back();
            }
        }
        if !follows || self.marks.back().is_none_or(|(_, at)| lsn.0 - at.0 >= MARK_BYTES) {
            self.marks.push_back((index, lsn));
        }
    }

    /// Where to read from for the entry at `index`.
    pub(super) fn before(&self, index: u64) -> Option<Lsn> {
        let at = self.marks.partition_point(|(marked, _)| *marked <= index);
        Some(self.marks.get(at.checked_sub(1)?)?.1)
    }

    /// The files begin at `lsn` now; the first index that can still be read.
    pub(super) fn forget_before(&mut self, lsn: Lsn) -> u64 {
        while self.marks.front().is_some_and(|(_, at)| *at < lsn) {
            self.marks.pop_front();
        }
        self.marks.front().map_or(self.last_index + 1, |(index, _)| *index)
    }
}

#[cfg(test)]
impl Positions {
    /// The first place that anybody would be sent to.
    pub(super) fn first(&self) -> Option<Lsn> {
        self.marks.front().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overwritten_suffix_gets_a_mark_of_its_own() {
        let mut positions = Positions::default();
        for index in 2..100 {
            positions.note(index, Lsn(index * 10_000));
        }
        assert_eq!(positions.before(2), Some(Lsn(20_000)));
        assert_eq!(positions.before(99), Some(Lsn(930_000)));
        positions.note(50, Lsn(2_000_000));
        assert_eq!(positions.before(49), Some(Lsn(440_000)), "the mark at 44");
        assert_eq!(positions.before(50), Some(Lsn(2_000_000)));
        assert_eq!(positions.forget_before(Lsn(445_000)), 50);
        assert_eq!(positions.before(49), None);
        assert_eq!(positions.forget_before(Lsn(3_000_000)), 51);
    }
}
