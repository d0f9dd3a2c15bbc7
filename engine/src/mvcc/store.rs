//! The store as its callers see it: [`Store`] to read and watch from any thread, [`StoreWriter`] to change.
//! (Skeleton: signatures are settled, bodies follow.)
use super::operation::*;
use crate::base::ids::Revision;
use crate::error::{OperationError, Result};
use bytes::Bytes;
use std::sync::Arc;

/// Which leases exist, asked while an operation is applied. The engine holds leases only as opaque ids.
pub trait Leases {
    /// True when keys may be attached to `lease`.
    fn exists(&self, lease: i64) -> bool;
}

/// Every lease id is accepted: the embedded database's rule.
pub struct AnyLease;

impl Leases for AnyLease {
    fn exists(&self, _lease: i64) -> bool {
        true
    }
}

/// Sizes that the store is run with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A memtable is frozen when its arena holds this many bytes.
    pub memtable_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { memtable_bytes: 64 << 20 }
    }
}

/// Counters of the store, all as of the moment of the call.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Current main revision.
    pub revision: i64,
    /// Compact revision, -1 before the first compaction.
    pub compact_revision: i64,
    /// Live keys at the head.
    pub keys_count: u64,
    /// Bytes of the retained records (keys, values, 64 bytes each), logically: falls when a compaction is applied.
    pub retained_bytes: u64,
    /// Bytes of the arenas that hold them.
    pub arena_bytes: u64,
    /// Memtables in the view set, the active one among them.
    pub memtables_count: usize,
}

/// Read access; cheap to clone, every method from any thread, never blocked by the writer.
#[derive(Clone)]
pub struct Store {
    _shared: Arc<()>,
}

/// Called after changes became visible, with the new head revision. Must not block.
pub type HeadListener = Box<dyn Fn(i64) + Send + Sync>;

/// One record as replicas compare it, see [`Store::for_each_retained`].
#[derive(Clone, Debug)]
pub struct RetainedRecord<'a> {
    /// Its revision.
    pub revision: Revision,
    /// True for a delete.
    pub tombstone: bool,
    /// The key.
    pub key: &'a [u8],
    /// The value, empty for a delete.
    pub value: &'a [u8],
    /// Create revision, 0 for a delete.
    pub create_revision: i64,
    /// Version, 0 for a delete.
    pub version: i64,
    /// Lease, 0 for none and for a delete.
    pub lease: i64,
    /// True when a read at the asked revision returns this record (the newest of its key at that revision, and no
    /// tombstone).
    pub visible: bool,
}

/// A run of events and where to go on.
#[derive(Clone, Debug, Default)]
pub struct EventBatch {
    /// Events in (main, sub) order, only whole main revisions, `prev_kv` left out (see [`Store::previous`]).
    pub events: Vec<Arc<Event>>,
    /// First main revision that was not looked at: the next call's start.
    pub next_revision: i64,
}

impl Store {
    /// The current main revision: every change up to it is visible.
    pub fn revision(&self) -> i64 {
        panic!("not built yet")
    }
    /// The compact revision, -1 at first. Reads below it fail, reads at it succeed.
    pub fn compact_revision(&self) -> i64 {
        panic!("not built yet")
    }
    /// Reads a range; see [`Range`]. Fails with `Compacted` or `FutureRevision`.
    pub fn range(&self, _range: &Range) -> Result<RangeOutcome, OperationError> {
        panic!("not built yet")
    }
    /// Events from main revision `start` (at least the compact revision, else `Compacted`) up to the head, but stops
    /// after the first whole revision at which `events_max` events or `bytes_max` bytes of keys and values are
    /// reached. `start` above the head gives an empty batch with `next_revision = start`.
    pub fn events(
        &self,
        _start: i64,
        _events_max: usize,
        _bytes_max: usize,
    ) -> Result<EventBatch, OperationError> {
        panic!("not built yet")
    }
    /// The state of the event's key before its main revision; none if the event created the key in its main revision,
    /// or if the state at `main - 1` is compacted.
    pub fn previous(&self, _event: &Event) -> Option<KeyValue> {
        panic!("not built yet")
    }
    /// Visits every retained record with `main <= revision`, in (main, sub) order, at one consistent moment. Returns
    /// the compact revision of that moment. Fails as a read at `revision` does.
    pub fn for_each_retained(
        &self,
        _revision: i64,
        _visit: &mut dyn FnMut(&RetainedRecord<'_>),
    ) -> Result<i64, OperationError> {
        panic!("not built yet")
    }
    /// Keys attached to a lease, sorted.
    pub fn lease_keys(&self, _lease: i64) -> Vec<Bytes> {
        panic!("not built yet")
    }
    /// One system record.
    pub fn system_get(&self, _key: &[u8]) -> Option<Bytes> {
        panic!("not built yet")
    }
    /// System records whose key starts with `prefix`, sorted by key.
    pub fn system_scan(&self, _prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        panic!("not built yet")
    }
    /// Index and term of the last applied log entry, (0, 0) at first.
    pub fn applied(&self) -> (u64, u64) {
        panic!("not built yet")
    }
    /// Adds a listener for new head revisions; at most 64, all called on the writer's thread.
    pub fn on_publish(&self, _listener: HeadListener) {
        panic!("not built yet")
    }
    /// Counters.
    pub fn stats(&self) -> StoreStats {
        panic!("not built yet")
    }
}

/// The one writer. Every method is deterministic: it depends on the state and its arguments alone, and a refused
/// operation changes nothing. A change is visible to readers when the method returns.
pub struct StoreWriter {
    _store: Store,
}

impl StoreWriter {
    /// An empty store at revision 1.
    pub fn new(_options: StoreOptions) -> (Store, StoreWriter) {
        panic!("not built yet")
    }
    /// The reading side.
    pub fn store(&self) -> &Store {
        &self._store
    }
    /// Sets one key.
    pub fn put(&mut self, _put: &Put, _leases: &dyn Leases) -> Result<PutOutcome, OperationError> {
        panic!("not built yet")
    }
    /// Deletes a range.
    pub fn delete_range(&mut self, _delete: &DeleteRange) -> Result<DeleteRangeOutcome, OperationError> {
        panic!("not built yet")
    }
    /// Deletes the keys attached to `lease`, sorted, in one main revision; returns how many.
    pub fn delete_lease_keys(&mut self, _lease: i64) -> DeleteRangeOutcome {
        panic!("not built yet")
    }
    /// Runs a transaction. Checks before the first write everything that etcd checks (revisions of ranges, leases,
    /// ignore_* keys) and refuses as a whole.
    pub fn txn(&mut self, _txn: &Txn, _leases: &dyn Leases) -> Result<TxnOutcome, OperationError> {
        panic!("not built yet")
    }
    /// Compacts to `revision`: effective at once. Fails as etcd: above the current revision `FutureRevision`, at or
    /// below the compact revision `Compacted`.
    pub fn compact(&mut self, _revision: i64) -> Result<(), OperationError> {
        panic!("not built yet")
    }
    /// Sets a system record.
    pub fn system_put(&mut self, _key: Bytes, _value: Bytes) {
        panic!("not built yet")
    }
    /// Removes a system record.
    pub fn system_delete(&mut self, _key: &[u8]) {
        panic!("not built yet")
    }
    /// Says that the log entry (index, term) is applied, with all its effects.
    pub fn set_applied(&mut self, _index: u64, _term: u64) {
        panic!("not built yet")
    }
    /// Tells the listeners the head, if it moved since the last call. Called once per batch of operations.
    pub fn notify(&mut self) {
        panic!("not built yet")
    }
    /// Does a bounded piece of background work (merging half-dead frozen memtables); true when more is left.
    pub fn maintain(&mut self) -> bool {
        panic!("not built yet")
    }
}

/// etcd's duplicate-key rule for a transaction (`checkTxnRequest`/`checkIntervals` in `server/etcdserver/api/v3rpc/key.go`), both branches.
pub fn check_duplicate_keys(_txn: &Txn) -> Result<(), OperationError> {
    panic!("not built yet")
}
