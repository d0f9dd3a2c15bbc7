//! One member's verdict on itself, from what it and the others have at the same mark. No I/O, no time.
//!
//! **Invariant.** J1: a member finds that it differs only where more than half of *all* members, counted with those that did not answer, have the
//! same and it has something else. Two such majorities share a member, so no two members are sent to each other's state.
use crate::request::kv_hash::KvHash;
use std::collections::BTreeMap;
use sternpost_engine::mvcc::StateSum;

/// What a member has at a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// The sum of its state.
    pub sum: StateSum,
    /// The hash over all that it retains, if the mark is a deep one and nothing was compacted since.
    pub hash: Option<KvHash>,
}

impl Said {
    /// Whether two members have the same; none where that cannot be told.
    fn is_same(&self, other: &Self) -> Option<bool> {
        if self.sum.since_revision != other.sum.since_revision {
            return None;
        }
        match (self.hash, other.hash) {
            // Hashes cover what is retained: only those with the same compact revision compare.
            (Some(ours), Some(theirs)) if ours.compact_revision == theirs.compact_revision => {
                Some(self.sum == other.sum && ours == theirs)
            }
            _ => Some(self.sum == other.sum),
        }
    }
}

/// See [`judge`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A majority has what this member has; these differ.
    Agrees {
        /// Members by id.
        differing: Vec<u64>,
    },
    /// A majority has something else.
    Differs {
        /// Who has it, by id.
        from: Vec<u64>,
    },
    /// All have answered, some differ, and no majority has the same.
    Split,
    /// All have answered, and it cannot be told.
    Incomparable,
    /// Too few have answered.
    Open,
}

/// Judges the member that has `own` by what `others` have, by id, of a cluster of `members_count` with this one.
pub fn judge(own: &Said, others: &BTreeMap<u64, Said>, members_count: usize) -> Verdict {
    let majority = members_count / 2 + 1;
    let those_with = |said: &Said| -> Vec<u64> {
        let same = others.iter().filter(|(_, other)| said.is_same(other) == Some(true));
        same.map(|(&id, _)| id).collect()
    };
    if those_with(own).len() + 1 >= majority {
        let differing = others.iter().filter(|(_, other)| own.is_same(other) == Some(false));
        return Verdict::Agrees { differing: differing.map(|(&id, _)| id).collect() };
    }
    let contradictions = others.values().filter(|other| own.is_same(other) == Some(false));
    let best = contradictions.map(those_with).max_by_key(Vec::len).unwrap_or_default();
    if best.len() >= majority {
        return Verdict::Differs { from: best };
    }
    if others.len() + 1 < members_count {
        return Verdict::Open;
    }
    let mut said = others.values().chain([own]);
    let is_split = said.any(|one| others.values().any(|other| one.is_same(other) == Some(false)));
    if is_split { Verdict::Split } else { Verdict::Incomparable }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(changes: u64) -> Said {
        Said { sum: StateSum { changes, revision: 9, ..StateSum::default() }, hash: None }
    }

    fn with_hash(hash: u32, compact_revision: i64) -> Said {
        Said { hash: Some(KvHash { hash, compact_revision, revision: 9 }), ..said(1) }
    }

    fn verdict(own: Said, others: &[Said], members_count: usize) -> Verdict {
        let others = others.iter().enumerate().map(|(number, said)| (number as u64 + 2, *said)).collect();
        judge(&own, &others, members_count)
    }

    #[test]
    fn a_majority_of_all_members_decides() {
        use Verdict::{Agrees, Differs, Open, Split};
        let agrees = |differing: &[u64]| Agrees { differing: differing.to_vec() };
        assert_eq!(verdict(said(1), &[said(1), said(1)], 3), agrees(&[]));
        assert_eq!(verdict(said(1), &[said(1)], 3), agrees(&[]), "one is away");
        assert_eq!(verdict(said(1), &[said(1), said(7)], 3), agrees(&[3]));
        assert_eq!(verdict(said(7), &[said(1), said(1)], 3), Differs { from: vec![2, 3] });
        assert_eq!(verdict(said(7), &[said(1)], 3), Open, "J1: who is away may agree with us");
        assert_eq!(verdict(said(7), &[said(1), said(1)], 5), Open);
        assert_eq!(verdict(said(7), &[said(1), said(8)], 3), Split);
        assert_eq!(verdict(said(7), &[said(1)], 2), Split, "one of two");
        assert_eq!(verdict(said(1), &[said(1), said(7), said(7)], 4), Split);
        assert_eq!(verdict(said(1), &[], 3), Open);
        assert_eq!(verdict(said(1), &[], 1), agrees(&[]));
    }

    #[test]
    fn hashes_count_where_both_cover_the_same() {
        let agrees = |differing: &[u64]| Verdict::Agrees { differing: differing.to_vec() };
        assert_eq!(verdict(with_hash(5, 1), &[with_hash(5, 1), with_hash(6, 1)], 3), agrees(&[3]));
        assert_eq!(verdict(with_hash(5, 1), &[with_hash(5, 1), with_hash(6, 2)], 3), agrees(&[]));
        let from = vec![2, 3];
        assert_eq!(
            verdict(with_hash(6, 1), &[with_hash(5, 1), with_hash(5, 1)], 3),
            Verdict::Differs { from }
        );
        assert_eq!(verdict(with_hash(6, 1), &[said(1), with_hash(5, 1)], 3), agrees(&[3]), "sums agree");
    }

    #[test]
    fn sums_of_different_beginnings_do_not_compare() {
        let late = |changes| {
            let sum = StateSum { since_revision: 4, ..said(changes).sum };
            Said { sum, hash: None }
        };
        assert_eq!(verdict(late(1), &[said(1), said(1)], 3), Verdict::Incomparable);
        assert_eq!(verdict(late(1), &[said(1), late(1)], 3), Verdict::Agrees { differing: vec![] });
        assert_eq!(verdict(late(1), &[said(1), late(2)], 3), Verdict::Split);
    }
}
