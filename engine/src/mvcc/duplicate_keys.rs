//! etcd's rule against changing a key twice in one transaction.
//!
//! Checked once, before a transaction is logged; the store itself executes any transaction.
//!
//! Source: `checkIntervals` in `server/etcdserver/api/v3rpc/key.go` of etcd 3.7, whose asymmetries clients can see:
//! - two puts of a key in one branch, at any depth, are refused, except one in each branch of the same nested
//!   transaction;
//! - a put is refused if a delete of its own level covers it, or one of a nested transaction that is looked at
//!   earlier: nested ones are looked at in order, then the puts of the level itself. So a nested delete followed by a
//!   sibling's put is refused, a nested put followed by a sibling's delete is not;
//! - deletes may overlap;
//! - a delete of "everything from a key on" (end of one zero byte) covers nothing here: etcd compares that end as
//!   plain bytes, so the interval is empty.
use super::operation::*;
use crate::error::{OperationError, Result};
use std::collections::{BTreeMap, HashSet};

/// etcd's duplicate-key rule for a transaction, both branches.
pub fn check_duplicate_keys(txn: &Txn) -> Result<(), OperationError> {
    check_branch(&txn.success)?;
    check_branch(&txn.failure)?;
    Ok(())
}

type Keys<'a> = HashSet<&'a [u8]>;

fn check_branch(operations: &[TxnOperation]) -> Result<(Keys<'_>, Intervals<'_>), OperationError> {
    let mut deletes = Intervals::default();
    for operation in operations {
        if let TxnOperation::DeleteRange(delete) = operation {
            deletes.add(&delete.range);
        }
    }
    let mut puts = Keys::new();
    for operation in operations {
        let TxnOperation::Txn(nested) = operation else { continue };
        let (success_puts, success_deletes) = check_branch(&nested.success)?;
        let (failure_puts, failure_deletes) = check_branch(&nested.failure)?;
        for &key in &success_puts {
            if deletes.covers(key) || !puts.insert(key) {
                return Err(OperationError::DuplicateKey);
            }
        }
        for &key in &failure_puts {
            if deletes.covers(key) || (!puts.insert(key) && !success_puts.contains(key)) {
                return Err(OperationError::DuplicateKey);
            }
        }
        deletes.add_all(success_deletes);
        deletes.add_all(failure_deletes);
    }
    for operation in operations {
        if let TxnOperation::Put(put) = operation
            && (deletes.covers(&put.key) || !puts.insert(&put.key))
        {
            return Err(OperationError::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

/// The end of an interval: up to the key without it, or with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct End<'a> {
    key: &'a [u8],
    inclusive: bool,
}

impl End<'_> {
    fn is_behind(&self, key: &[u8]) -> bool {
        key < self.key || (self.inclusive && key == self.key)
    }
}

/// A union of key intervals, kept as disjoint ones: start to end. One query costs O(log n), which matters because a
/// transaction of a legal size can nest tens of thousands of operations.
#[derive(Default)]
struct Intervals<'a> {
    ends: BTreeMap<&'a [u8], End<'a>>,
}

impl<'a> Intervals<'a> {
    fn add(&mut self, range: &'a KeyRange) {
        match &range.end[..] {
            [] => self.add_interval(&range.key, End { key: &range.key, inclusive: true }),
            end => self.add_interval(&range.key, End { key: end, inclusive: false }),
        }
    }

    fn add_all(&mut self, other: Intervals<'a>) {
        for (start, end) in other.ends {
            self.add_interval(start, end);
        }
    }

    fn add_interval(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if !end.is_behind(start) {
            return;
        }
        if let Some((&before, &before_end)) = self.ends.range(..=start).next_back()
            && before_end.is_behind(start)
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&inner, &inner_end)) = self.ends.range(start..).next()
            && end.is_behind(inner)
        {
            end = end.max(inner_end);
            self.ends.remove(inner);
        }
        self.ends.insert(start, end);
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.ends.range(..=key).next_back().is_some_and(|(_, end)| end.is_behind(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use bytes::Bytes;

    fn put(key: &str) -> TxnOperation {
        TxnOperation::Put(Put { key: Bytes::copy_from_slice(key.as_bytes()), ..Put::default() })
    }

    fn delete(key: &str, end: &str) -> TxnOperation {
        let range = KeyRange {
            key: Bytes::copy_from_slice(key.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
        };
        TxnOperation::DeleteRange(DeleteRange { range, prev_kv: false })
    }

    fn nested(success: Vec<TxnOperation>, failure: Vec<TxnOperation>) -> TxnOperation {
        TxnOperation::Txn(Txn { compares: vec![], success, failure })
    }

    fn is_accepted(operations: Vec<TxnOperation>) -> bool {
        let alone =
            |success, failure| check_duplicate_keys(&Txn { compares: vec![], success, failure }).is_ok();
        let accepted = alone(operations.clone(), vec![]);
        assert_eq!(accepted, alone(vec![], operations.clone()), "both branches are checked alike");
        assert!(alone(vec![put("a")], vec![put("a")]), "the branches are checked apart");
        accepted
    }

    #[test]
    fn puts_and_deletes_of_one_level() {
        assert!(!is_accepted(vec![put("a"), put("a")]));
        assert!(is_accepted(vec![put("a"), put("b")]));
        assert!(!is_accepted(vec![put("a"), delete("a", "")]));
        assert!(!is_accepted(vec![delete("a", "c"), put("b")]));
        assert!(is_accepted(vec![delete("a", "c"), put("c")]));
        assert!(is_accepted(vec![delete("a", "c"), delete("b", "d"), delete("a", "")]));
        assert!(is_accepted(vec![delete("c", "a"), put("b")]), "an inverted range covers nothing");
        assert!(is_accepted(vec![delete("a", "\0"), put("b")]), "etcd does not see the open range");
    }

    #[test]
    fn nesting_has_etcds_asymmetries() {
        assert!(!is_accepted(vec![nested(vec![put("a")], vec![]), put("a")]));
        assert!(!is_accepted(vec![put("a"), nested(vec![], vec![put("a")])]));
        assert!(is_accepted(vec![nested(vec![put("a")], vec![put("a")])]));
        assert!(!is_accepted(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])]));
        assert!(!is_accepted(vec![nested(vec![delete("a", "b")], vec![]), nested(vec![put("a")], vec![])]));
        assert!(is_accepted(vec![nested(vec![put("a")], vec![]), nested(vec![delete("a", "b")], vec![])]));
        assert!(!is_accepted(vec![nested(vec![put("a")], vec![]), delete("a", "b")]));
        assert!(!is_accepted(vec![nested(vec![delete("a", "b")], vec![]), put("a")]));
        assert!(is_accepted(vec![nested(vec![put("a")], vec![delete("a", "")])]));
    }

    #[test]
    fn union_of_intervals_covers_what_its_parts_cover() {
        let mut rng = Rng::new(5);
        for _ in 0..500 {
            let key = |rng: &mut Rng| Bytes::from(vec![b'a' + rng.below(9) as u8; 1 + rng.below(2) as usize]);
            let parts: Vec<KeyRange> = (0..rng.below(8))
                .map(|_| KeyRange {
                    key: key(&mut rng),
                    end: if rng.chance(1, 3) { Bytes::new() } else { key(&mut rng) },
                })
                .collect();
            let mut union = Intervals::default();
            parts.iter().for_each(|part| union.add(part));
            for _ in 0..40 {
                let key = key(&mut rng);
                let expected = parts.iter().any(|part| part.bounds().contains(&key));
                assert_eq!(union.covers(&key), expected, "{key:?} in {parts:?}");
            }
        }
    }
}
