//! How many keys certain ranges have, kept current with every change: for who has to know it before each of them.
//!
//! **Data.** [`RangeCounts`] belongs to the one writer. A count begins as the range's sum ([`super::range_sum`]), which goes over the tree's own sums and what is in
//! memory, and not over the range; from then on each change of whether a key exists is added when its main revision is published.
//!
//! **Invariant C1**: between two operations a count is that of the range at the head. So it is the same on all replicas with the same data, and after a
//! replay.
//!
//! **Cost.** Nothing for a change that creates and deletes no key. Else each range is looked at, of which there are at most [`COUNTED_RANGES_MAX`].
use super::operation::{KeyRange, Put, Txn};
use super::store::Leases;
use super::write_txn;
use super::writer::{Changes, StoreWriter};
use crate::error::OperationError;
use bytes::Bytes;
use std::collections::BTreeSet;

/// Most ranges that are counted.
pub const COUNTED_RANGES_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct RangeCounts {
    counted: Vec<(KeyRange, u64)>,
}

impl RangeCounts {
    /// Notes in `added` that `key` has come to exist (1) or does no longer (-1).
    #[inline]
    pub(super) fn note(&self, key: &[u8], change: i64, added: &mut Vec<i64>) {
        if change != 0 && !self.counted.is_empty() {
            self.note_in_each(key, change, added);
        }
    }

    fn note_in_each(&self, key: &[u8], change: i64, added: &mut Vec<i64>) {
        added.resize(self.counted.len(), 0);
        for ((range, _), added) in self.counted.iter().zip(added) {
            if range.bounds().contains(key) {
                *added += change;
            }
        }
    }

    /// What was noted is visible now.
    pub(super) fn publish(&mut self, added: &[i64]) {
        for ((_, keys), added) in self.counted.iter_mut().zip(added) {
            *keys = keys.saturating_add_signed(*added);
        }
    }
}

impl StoreWriter {
    /// Counts these ranges from now on, instead of those before.
    ///
    /// # Errors
    /// `EmptyKey`; `Unreadable` if a place on disk is damaged that is needed for it. Nothing is counted then.
    ///
    /// # Panics
    /// If they are more than [`COUNTED_RANGES_MAX`].
    pub fn count_ranges(&mut self, ranges: Vec<KeyRange>) -> Result<(), OperationError> {
        assert!(ranges.len() <= COUNTED_RANGES_MAX, "{} ranges are to be counted", ranges.len());
        self.range_counts = RangeCounts::default();
        let mut counted = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (sum, _) = self.store.range_sum(&range, 0)?;
            counted.push((range, sum.keys_count));
        }
        self.range_counts = RangeCounts { counted };
        Ok(())
    }

    /// Keys of each range that is counted, in the order given.
    pub fn counted_keys(&self) -> impl Iterator<Item = u64> {
        self.range_counts.counted.iter().map(|(_, keys)| *keys)
    }

    /// True if `put` would create its key.
    ///
    /// # Errors
    /// `Unreadable` if that cannot be found out.
    pub fn would_create(&mut self, put: &Put) -> Result<bool, OperationError> {
        let view = self.view.clone();
        if let Some(noted) = self.noted(&view, &put.key) {
            return Ok(noted.is_none_or(|newest| newest.version == 0));
        }
        let newest = view.newest_of_all(&put.key, view.hasher.hash(&put.key))?;
        Ok(newest.is_none_or(|newest| newest.newest().version == 0))
    }

    /// The keys that a transaction would create on the branches that it would take, were it carried out now; what it would delete is not taken off.
    ///
    /// # Errors
    /// As [`StoreWriter::txn`] before it changes anything.
    pub fn keys_created_by(
        &mut self,
        txn: &Txn,
        leases: &dyn Leases,
    ) -> Result<BTreeSet<Bytes>, OperationError> {
        write_txn::check_keys(txn)?;
        let view = self.view.clone();
        let path = write_txn::evaluate(txn, &view, self.head, &mut |key| self.noted(&view, key))?;
        write_txn::check(txn, &path, &self.view, self.head, leases)?;
        let mut created = BTreeSet::new();
        for put in write_txn::puts(txn, &path) {
            if !created.contains(&put.key) && self.would_create(put)? {
                created.insert(put.key.clone());
            }
        }
        Ok(created)
    }
}

impl Changes {
    /// Where [`RangeCounts::note`] writes to.
    pub(super) fn counted(&mut self) -> &mut Vec<i64> {
        &mut self.counted_added
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::mvcc::{
        AnyLease, Compare, CompareResult, CompareTarget, DeleteRange, Range, StoreOptions, TxnOperation,
    };

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange { key: Bytes::from_static(key.as_bytes()), end: Bytes::from_static(end.as_bytes()) }
    }

    fn any_key(rng: &mut Rng) -> Bytes {
        Bytes::from(format!("{}{}", ["a/", "b/", "b/c/"][rng.below(3) as usize], rng.below(6)))
    }

    fn put(key: Bytes, lease: i64) -> Put {
        Put { key, lease, ..Put::default() }
    }

    fn any_operation(rng: &mut Rng, depth: u32) -> TxnOperation {
        match rng.below(if depth == 0 { 2 } else { 3 }) {
            0 => TxnOperation::Put(put(any_key(rng), 0)),
            1 => TxnOperation::DeleteRange(DeleteRange {
                range: KeyRange { key: any_key(rng), end: any_key(rng) },
                prev_kv: rng.chance(1, 2),
            }),
            _ => TxnOperation::Txn(any_txn(rng, depth - 1)),
        }
    }

    fn any_txn(rng: &mut Rng, depth: u32) -> Txn {
        let compare = Compare {
            range: KeyRange { key: any_key(rng), end: Bytes::new() },
            target: CompareTarget::Create(0),
            result: CompareResult::Equal,
        };
        let mut branch = || (0..rng.below(4)).map(|_| any_operation(rng, depth)).collect();
        Txn { compares: vec![compare], success: branch(), failure: branch() }
    }

    /// C1, through every way in which a key comes and goes; and what a transaction says beforehand that it creates.
    #[test]
    fn counts_are_those_of_the_ranges_after_every_operation() {
        let counted =
            [range("a/", "a0"), range("b/", "b0"), range("b/c/", "b/c0"), range("b/3", ""), range("b", "\0")];
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let (store, mut writer) = StoreWriter::new(StoreOptions::default());
            writer.put(&put(any_key(&mut rng), 0), &AnyLease).unwrap();
            writer.count_ranges(counted.to_vec()).unwrap();
            for _ in 0..200 {
                match rng.below(8) {
                    0..4 => {
                        drop(writer.put(&put(any_key(&mut rng), rng.below(3) as i64), &AnyLease).unwrap())
                    }
                    4 => {
                        let range = KeyRange { key: any_key(&mut rng), end: any_key(&mut rng) };
                        writer.delete_range(&DeleteRange { range, prev_kv: false }).unwrap();
                    }
                    5 => drop(writer.delete_lease_keys(1 + rng.below(2) as i64).unwrap()),
                    6 => {
                        let txn = any_txn(&mut rng, 2);
                        let said = writer.keys_created_by(&txn, &AnyLease).unwrap();
                        let revision = store.revision();
                        let existed = |key: &Bytes| {
                            let range = KeyRange { key: key.clone(), end: Bytes::new() };
                            !store
                                .range(&Range { range, revision, ..Range::default() })
                                .unwrap()
                                .kvs
                                .is_empty()
                        };
                        assert!(!said.iter().any(existed), "none of them is there before");
                        writer.txn(&txn, &AnyLease).unwrap();
                    }
                    // As at a start: counted anew.
                    _ => writer.count_ranges(counted.to_vec()).unwrap(),
                }
                let keys: Vec<u64> = writer.counted_keys().collect();
                for (range, keys) in counted.iter().zip(keys) {
                    let read = Range { range: range.clone(), count_only: true, ..Range::default() };
                    assert_eq!(store.range(&read).unwrap().count as u64, keys, "C1: {range:?}, seed {seed}");
                }
            }
        }
    }

    #[test]
    fn what_a_transaction_creates_is_said_by_the_branch_that_it_takes() {
        let (_, mut writer) = StoreWriter::new(StoreOptions::default());
        writer.put(&put(Bytes::from_static(b"here"), 0), &AnyLease).unwrap();
        let create = |keys: &[&'static str]| {
            keys.iter()
                .map(|key| TxnOperation::Put(put(Bytes::from_static(key.as_bytes()), 0)))
                .collect::<Vec<_>>()
        };
        let is_absent = |key: &'static str| Compare {
            range: range(key, ""),
            target: CompareTarget::Create(0),
            result: CompareResult::Equal,
        };
        let nested =
            Txn { compares: vec![is_absent("new")], success: create(&["x"]), failure: create(&["y"]) };
        let mut success = create(&["here", "new"]);
        success.push(TxnOperation::Txn(nested));
        let txn = Txn { compares: vec![is_absent("there")], success, failure: create(&["z"]) };
        let said: Vec<Bytes> = writer.keys_created_by(&txn, &AnyLease).unwrap().into_iter().collect();
        assert_eq!(said, ["new", "x"]);
    }
}
