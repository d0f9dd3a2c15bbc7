//! The operations of the data model and what they answer, as plain values. No behaviour.
//!
//! Ranges, orders, compares and edge cases are etcd's (`api/etcdserverpb/rpc.proto` and
//! `server/etcdserver/txn` of 3.7): where a field is described in one line here, etcd's meaning is meant.
use crate::base::ids::Revision;
use bytes::Bytes;

/// Which keys are meant.
///
/// `end` empty: the one key. `end` = one zero byte: every key from `key` on. Otherwise `[key, end)`, empty when
/// `end <= key`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct KeyRange {
    /// First key.
    pub key: Bytes,
    /// See the type.
    pub end: Bytes,
}

/// One key's state at a revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Main revision of the put that created this generation of the key.
    pub create_revision: i64,
    /// Main revision of the last change.
    pub mod_revision: i64,
    /// 1 on creation, +1 with each put, 0 in the event of a delete.
    pub version: i64,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
    /// The lease the key is attached to, 0 for none.
    pub lease: i64,
}

/// Direction of a sort.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SortOrder {
    /// As etcd's NONE: key order, then (for another target than the key) ascending by the target over what was read.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// What a sort looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A read of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Range {
    /// Which keys.
    pub range: KeyRange,
    /// At which revision; 0 or less: the current one.
    pub revision: i64,
    /// At most this many keys; 0 or less: no limit.
    pub limit: i64,
    /// Direction of the sort.
    pub sort_order: SortOrder,
    /// What the sort looks at.
    pub sort_target: SortTarget,
    /// Leave values (and, as etcd 3.7 does unless sorting by value, leases) out.
    pub keys_only: bool,
    /// Answer only the count.
    pub count_only: bool,
    /// Drop keys whose mod revision is smaller; 0: off.
    pub min_mod_revision: i64,
    /// Drop keys whose mod revision is larger; 0: off.
    pub max_mod_revision: i64,
    /// Drop keys whose create revision is smaller; 0: off.
    pub min_create_revision: i64,
    /// Drop keys whose create revision is larger; 0: off.
    pub max_create_revision: i64,
}

/// The smallest key after `key`.
pub fn key_after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

/// The smallest key after all that begin with `prefix`; none if there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(Bytes::from(end))
}

/// Answer to a [`Range`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeOutcome {
    /// The store's revision when the read ran.
    pub revision: i64,
    /// The keys, in the asked order.
    pub kvs: Vec<KeyValue>,
    /// True when the limit left keys out.
    pub more: bool,
    /// Keys in the range at that revision, before limit and filters.
    pub count: i64,
}

/// Sets one key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Put {
    /// The key, not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach to, 0 for none.
    pub lease: i64,
    /// Answer the previous state.
    pub prev_kv: bool,
    /// Keep the current value; the key must exist.
    pub ignore_value: bool,
    /// Keep the current lease; the key must exist.
    pub ignore_lease: bool,
}

/// Answer to a [`Put`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PutOutcome {
    /// The new revision.
    pub revision: i64,
    /// The state before, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// Deletes the keys of a range, all in one main revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Answer the states before.
    pub prev_kv: bool,
}

/// Answer to a [`DeleteRange`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeleteRangeOutcome {
    /// The new revision if a key was deleted, else the current one.
    pub revision: i64,
    /// How many keys were deleted.
    pub deleted: i64,
    /// The states before, in key order, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// What a compare looks at, with what it compares to. A value that the wire leaves out is 0 or empty.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum CompareTarget {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
    /// A target this version does not know: compares as equal, as in etcd.
    Unknown,
}

/// The relation a compare asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
    /// A relation this version does not know: holds, as in etcd.
    Unknown,
}

/// One condition of a transaction; with a range it must hold for every key in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// What to look at and what to compare to.
    pub target: CompareTarget,
    /// The relation found-to-given that must hold.
    pub result: CompareResult,
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the operations'")]
pub enum TxnOperation {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// If all compares hold, `success`, else `failure`; one main revision for all changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// Conditions, all on the state before the transaction.
    pub compares: Vec<Compare>,
    /// Run when all hold.
    pub success: Vec<TxnOperation>,
    /// Run otherwise.
    pub failure: Vec<TxnOperation>,
}

impl Txn {
    /// The single keys of its conditions and operations, those of nested transactions left out.
    pub fn single_keys(&self) -> impl Iterator<Item = &Bytes> {
        let compares = self.compares.iter().map(|compare| &compare.range);
        let operations = self.success.iter().chain(&self.failure);
        let single = operations.filter_map(|operation| match operation {
            TxnOperation::Put(put) => Some(&put.key),
            TxnOperation::Range(range) => range.range.single(),
            TxnOperation::DeleteRange(delete) => delete.range.single(),
            TxnOperation::Txn(_) => None,
        });
        compares.filter_map(KeyRange::single).chain(single)
    }
}

impl Txn {
    /// True if one of its branches has a put: etcd refuses such a transaction where space is exceeded.
    pub fn has_put(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|operation| match operation {
            TxnOperation::Put(_) => true,
            TxnOperation::Range(_) | TxnOperation::DeleteRange(_) => false,
            TxnOperation::Txn(txn) => txn.has_put(),
        })
    }
}

/// Answer to one operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the operations'")]
pub enum TxnOperationOutcome {
    Range(RangeOutcome),
    Put(PutOutcome),
    DeleteRange(DeleteRangeOutcome),
    Txn(TxnOutcome),
}

/// Answer to a [`Txn`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnOutcome {
    /// The new revision if anything changed, else the current one.
    pub revision: i64,
    /// Which branch ran.
    pub succeeded: bool,
    /// One answer for each operation of the branch, in order.
    pub responses: Vec<TxnOperationOutcome>,
}

/// Put or delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key, as a watcher sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// When.
    pub revision: Revision,
    /// The new state; a delete has only the key and the mod revision.
    pub kv: KeyValue,
    /// The key's previous state, if asked for, if the key existed before this main revision, and if that state is
    /// not compacted.
    pub prev_kv: Option<KeyValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_one_starts() {
        assert_eq!(prefix_end(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(prefix_end(b"a\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
        let range = |prefix: &'static [u8]| {
            let KeyRange { key, end } = KeyRange::of_prefix(Bytes::from_static(prefix));
            (key.to_vec(), end.to_vec())
        };
        assert_eq!(range(b"a/"), (b"a/".to_vec(), b"a0".to_vec()));
        assert_eq!(range(b"\xff"), (b"\xff".to_vec(), b"\0".to_vec()));
        assert_eq!(range(b""), (b"\0".to_vec(), b"\0".to_vec()), "all keys");
    }
}
