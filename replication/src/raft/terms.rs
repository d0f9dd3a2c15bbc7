//! Terms of the entries of a log, as runs: a leadership is one run however many entries it wrote.
//!
//! Invariant T1: terms do not decrease with the index.

/// See the module. Knows the terms from one index on, which may be that of a checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// (first index of the run, its term), ascending in both; never empty.
    runs: Vec<(u64, u64)>,
    last: u64,
}

impl Terms {
    /// Knows one index, that of a checkpoint.
    pub(super) fn new(index: u64, term: u64) -> Self {
        Self { runs: vec![(index, term)], last: index }
    }

    pub(super) fn first(&self) -> u64 {
        self.runs[0].0
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn last_term(&self) -> u64 {
        self.runs[self.runs.len() - 1].1
    }

    /// The term at `index`, if it is known.
    pub(super) fn get(&self, index: u64) -> Option<u64> {
        if index < self.first() || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        Some(self.runs[run - 1].1)
    }

    /// The entry at `index` has `term`; later ones are forgotten.
    pub(super) fn put(&mut self, index: u64, term: u64) {
        assert!(index > self.first(), "T1: index {index} lies behind the checkpoint at {}", self.first());
        assert!(index <= self.last + 1, "T1: index {index} follows {}", self.last);
        while self.runs.len() > 1 && self.runs[self.runs.len() - 1].0 >= index {
            self.runs.pop();
        }
        self.last = index;
        let last_term = self.last_term();
        assert!(term >= last_term, "T1: term {term} at {index} follows term {last_term}");
        if term > last_term {
            self.runs.push((index, term));
        }
    }

    /// Forgets what lies before `index`, but for its own term.
    pub(super) fn forget_before(&mut self, index: u64) {
        if index <= self.first() || index > self.last {
            return;
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        self.runs.drain(..run - 1);
        self.runs[0].0 = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_answer_as_a_list_does() {
        let mut terms = Terms::new(10, 1);
        for (index, term) in [(11, 1), (12, 2), (13, 2), (14, 5)] {
            terms.put(index, term);
        }
        let all = |terms: &Terms| (9..17).map(|index| terms.get(index)).collect::<Vec<_>>();
        assert_eq!(all(&terms), [None, Some(1), Some(1), Some(2), Some(2), Some(5), None, None]);
        // A suffix is overwritten.
        terms.put(13, 3);
        assert_eq!(all(&terms), [None, Some(1), Some(1), Some(2), Some(3), None, None, None]);
        assert_eq!((terms.last(), terms.last_term()), (13, 3));
        terms.forget_before(12);
        assert_eq!(all(&terms), [None, None, None, Some(2), Some(3), None, None, None]);
        terms.put(13, 2);
        assert_eq!((terms.get(13), terms.first()), (Some(2), 12));
    }

    #[test]
    #[should_panic(expected = "T1")]
    fn a_term_that_goes_back_is_a_bug() {
        let mut terms = Terms::new(1, 3);
        terms.put(2, 2);
    }
}
