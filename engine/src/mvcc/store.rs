//! The reading side of the store: ranges, events, retained records, leases' keys, system records, counters.
//!
//! [`Store`] is used from any thread, never blocked by the writer beyond a moment's lock on a map (leases, system
//! records). [`StoreWriter`](super::StoreWriter) shares one [`Shared`] with it.
//!
//! Invariants:
//! - M1: the main revision increases by one per applied operation that changes something.
//! - M2: a reader at revision r sees the same answer until r is compacted. A reader takes the head first, then the
//!   view set; records above its revision are ignored, so a half-done transaction is never seen.
//! - M3: compact revision ≤ head in every pair that a reader uses.
use super::compaction::live_bytes;
use super::history;
use super::lease_index::LeaseIndex;
use super::operation::*;
use super::range;
use super::view_set::ViewSet;
use crate::base::ids::Revision;
use crate::disk_state::{OnBytes, ScrubPosition};
use crate::error::{OperationError, Result};
use crate::quarantine::{Quarantine, QuarantineStats};
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

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
    /// Bytes of the retained records (keys, values, 64 bytes each), logically: falls when a compaction is applied; for
    /// records on disk that were replaced before they got there, when the next checkpoint is made.
    pub retained_bytes: u64,
    /// Bytes of the arenas that hold them.
    pub arena_bytes: u64,
    /// Memtables in the view set, the active one among them.
    pub memtables_count: usize,
    /// Revision of the state on disk, 0 before the first checkpoint.
    pub disk_revision: i64,
    /// Places on disk that are known to be damaged; [`Store::quarantine`] has them.
    pub quarantined_count: usize,
}

/// How many listeners for new heads there can be.
const LISTENERS_MAX: usize = 64;

/// What the writer and the readers share.
pub(crate) struct Shared {
    /// The current main revision. Stored with Release after everything of that revision is in the memtables.
    pub(crate) head: AtomicI64,
    pub(crate) views: ArcSwap<ViewSet>,
    pub(crate) leases: LeaseIndex,
    pub(crate) system: RwLock<BTreeMap<Bytes, Bytes>>,
    pub(crate) applied: Mutex<(u64, u64)>,
    pub(crate) listeners: Mutex<Vec<HeadListener>>,
    pub(crate) keys_count: AtomicU64,
}

/// Read access; cheap to clone, every method from any thread, never blocked by the writer.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
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

/// The state of one moment, see [`Store::hold`].
pub struct HeldHistory {
    revision: i64,
    view: Arc<ViewSet>,
    applied: (u64, u64),
    system: BTreeMap<Bytes, Bytes>,
}

impl HeldHistory {
    /// The current main revision of that moment.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The compact revision of that moment, -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.view.compact_revision
    }

    /// Index and term of the last applied log entry of that moment, or one of those before the next one was done.
    pub fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// Visits every retained record in (main, sub) order, until `visit` says that it has enough. The same records each time.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn for_each_retained(
        &self,
        visit: &mut dyn FnMut(&RetainedRecord<'_>) -> ControlFlow<()>,
    ) -> Result<(), OperationError> {
        history::for_each_retained(&self.view, self.revision, visit)
    }

    /// System records whose key starts with `prefix`, sorted by key.
    pub fn system_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        scan_system(&self.system, prefix)
    }
}

fn scan_system(system: &BTreeMap<Bytes, Bytes>, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
    let from = system.range::<[u8], _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
    from.take_while(|(key, _)| key.starts_with(prefix))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Where a read of events stops: after the first whole revision at which one of these is reached.
#[derive(Clone, Copy, Debug)]
pub struct EventLimits {
    /// Events looked at.
    pub looked_at_max: usize,
    /// Events taken.
    pub events_max: usize,
    /// Bytes of keys and values taken.
    pub bytes_max: usize,
}

/// What a reader of events says to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Leave the event out.
    No,
    /// Take it.
    Yes,
    /// Take it, and stop after its main revision.
    YesAndEnough,
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
    /// True once a part of the data is on disk.
    pub fn has_checkpoint(&self) -> bool {
        !self.shared.views.load().disk.is_empty()
    }

    /// Says that the key will be changed soon. What a change needs to know of it, one page of the tree on disk, is then read by
    /// threads while others do other things. A hint, without effect on any answer.
    pub fn read_ahead(&self, key: &[u8]) {
        self.shared.views.load().read_ahead(key);
    }

    /// What on disk is known to be damaged. A read that needs such a place fails and names it; everything else is served.
    pub fn quarantine(&self) -> QuarantineStats {
        self.shared.views.load().disk.quarantine().map(Quarantine::stats).unwrap_or_default()
    }

    /// Reads and verifies a slice of what is on disk, of the newest state; see `scrub.rs`.
    pub(crate) fn scrub(
        &self,
        position: &ScrubPosition,
        on_bytes: &mut OnBytes<'_>,
    ) -> (u64, Option<ScrubPosition>) {
        let disk = self.shared.views.load().disk.clone();
        disk.scrub(position, on_bytes)
    }

    /// Identity of the database on disk; zeros before its first checkpoint.
    pub(crate) fn database(&self) -> [u8; 16] {
        self.shared.views.load().disk.database()
    }

    /// The number of a segment of records on disk, drawn by `seed`; 0 if there is none.
    pub(crate) fn random_segment(&self, seed: u64) -> u32 {
        let disk = self.shared.views.load().disk.clone();
        match disk.revisions.len() as u64 {
            0 => 0,
            count => disk.revisions[(seed % count) as usize].info.summary.id.0,
        }
    }

    /// The head, and a view set that holds everything up to it.
    fn moment(&self) -> (i64, Guard<Arc<ViewSet>>) {
        loop {
            let head = self.shared.head.load(Ordering::Acquire);
            let view = self.shared.views.load();
            // A compaction between the two loads may have passed the head that was read: look again.
            if view.compact_revision <= head {
                return (head, view);
            }
        }
    }

    /// A view set and the main revision to read in it, for a read that asks for `revision`.
    pub(super) fn readable(&self, revision: i64) -> Result<(Guard<Arc<ViewSet>>, i64), OperationError> {
        let (head, view) = self.moment();
        let main = readable_revision(revision, head, &view)?;
        Ok((view, main))
    }

    /// As [`Self::readable`], with the head.
    pub(super) fn readable_now(
        &self,
        revision: i64,
    ) -> Result<(Guard<Arc<ViewSet>>, i64, i64), OperationError> {
        let (head, view) = self.moment();
        let main = readable_revision(revision, head, &view)?;
        Ok((view, main, head))
    }

    /// The current main revision: every change up to it is visible.
    pub fn revision(&self) -> i64 {
        self.shared.head.load(Ordering::Acquire)
    }

    /// The compact revision, -1 at first. Reads below it fail, reads at it succeed.
    pub fn compact_revision(&self) -> i64 {
        self.shared.views.load().compact_revision
    }

    /// Reads a range; see [`Range`]. Fails with `Compacted` or `FutureRevision`, and with `EmptyKey`.
    pub fn range(&self, range: &Range) -> Result<RangeOutcome, OperationError> {
        if range.range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let (view, main, head) = self.readable_now(range.revision)?;
        range::read(&view, range, main, head)
    }

    /// Events from main revision `start` (at least the compact revision, else `Compacted`) up to the head, but stops
    /// after the first whole revision at which `events_max` events or `bytes_max` bytes of keys and values are
    /// reached. `start` above the head gives an empty batch with `next_revision = start`.
    ///
    /// At the compact revision itself only what the compaction kept is delivered (of two changes of one key in that
    /// revision, the last).
    pub fn events(
        &self,
        start: i64,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<EventBatch, OperationError> {
        let limits = EventLimits { looked_at_max: usize::MAX, events_max, bytes_max };
        self.events_where(start, &limits, &mut |_key| Wanted::Yes)
    }

    /// As [`Store::events`], but only events whose key `wanted` accepts, so that nothing is copied for keys that
    /// nobody watches. `wanted` is called once for each event that is looked at, in order.
    pub fn events_where(
        &self,
        start: i64,
        limits: &EventLimits,
        wanted: &mut dyn FnMut(&[u8]) -> Wanted,
    ) -> Result<EventBatch, OperationError> {
        let (head, view) = self.moment();
        if start < view.compact_revision {
            return Err(OperationError::Compacted(view.compact_revision));
        }
        history::events(&view, start, head, limits, wanted)
    }

    /// The state of the event's key before its main revision; none if the event created the key in its main revision,
    /// or if the state at `main - 1` is compacted.
    pub fn previous(&self, event: &Event) -> Result<Option<KeyValue>, OperationError> {
        let (_, view) = self.moment();
        history::previous(&view, event)
    }

    /// Visits every retained record with `main <= revision`, in (main, sub) order, at one consistent moment. Returns
    /// the compact revision of that moment. Fails as a read at `revision` does.
    pub fn for_each_retained(
        &self,
        revision: i64,
        visit: &mut dyn FnMut(&RetainedRecord<'_>),
    ) -> Result<i64, OperationError> {
        let (head, view) = self.moment();
        let revision = readable_revision(revision, head, &view)?;
        history::for_each_retained(&view, revision, &mut |record| {
            visit(record);
            ControlFlow::Continue(())
        })?;
        Ok(view.compact_revision)
    }

    /// Holds the state as of now, to be read as often as needed. Memtables and files that are in it stay until it is dropped, whatever is
    /// written and compacted meanwhile. Copies the system records, during which none can be written.
    pub fn hold(&self) -> HeldHistory {
        // Under this lock, so that no system record is older than a change of keys that came after it: a lease that is not there has no keys either.
        let system = self.shared.system.read().expect("nothing panics while it holds this lock");
        let (revision, view) = self.moment();
        let applied = self.applied();
        HeldHistory { revision, view: Guard::into_inner(view), applied, system: system.clone() }
    }

    /// True when a read may have to wait for the device: there is a checkpoint.
    pub fn is_on_disk(&self) -> bool {
        !self.shared.views.load().disk.is_empty()
    }

    /// Keys attached to a lease, sorted.
    pub fn lease_keys(&self, lease: i64) -> Vec<Bytes> {
        self.shared.leases.keys(lease)
    }

    /// One system record.
    pub fn system_get(&self, key: &[u8]) -> Option<Bytes> {
        self.shared.system.read().expect("nothing panics while it holds this lock").get(key).cloned()
    }

    /// System records whose key starts with `prefix`, sorted by key.
    pub fn system_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let system = self.shared.system.read().expect("nothing panics while it holds this lock");
        scan_system(&system, prefix)
    }

    /// Index and term of the last applied log entry, (0, 0) at first.
    pub fn applied(&self) -> (u64, u64) {
        *self.shared.applied.lock().expect("nothing panics while it holds this lock")
    }

    /// Adds a listener for new head revisions; at most 64, all called on the writer's thread. A listener must not
    /// add listeners.
    ///
    /// # Panics
    /// If there are 64 already.
    pub fn on_publish(&self, listener: HeadListener) {
        let mut listeners = self.shared.listeners();
        assert!(listeners.len() < LISTENERS_MAX, "at most {LISTENERS_MAX} listeners for new heads");
        listeners.push(listener);
    }

    /// Counters.
    pub fn stats(&self) -> StoreStats {
        let (revision, view) = self.moment();
        StoreStats {
            revision,
            compact_revision: view.compact_revision,
            keys_count: self.shared.keys_count.load(Ordering::Relaxed),
            retained_bytes: retained_bytes(&view),
            arena_bytes: view.tables.iter().map(|table| table.allocated_bytes() as u64).sum(),
            memtables_count: view.tables.len(),
            disk_revision: view.disk.revision(),
            quarantined_count: view.disk.quarantine().map_or(0, Quarantine::units_count),
        }
    }
}

/// What is on disk, less what records in memory have replaced there, and what is in memory.
fn retained_bytes(view: &ViewSet) -> u64 {
    let killed_bytes: u64 = view.tables.iter().map(|table| table.killed_bytes()).sum();
    let memory_bytes: u64 = view.tables.iter().map(|table| live_bytes(table)).sum();
    // What is on disk is as its trailers say, whoever wrote them.
    view.disk.retained_bytes().saturating_sub(killed_bytes).saturating_add(memory_bytes)
}

/// The main revision that a read asking for `revision` reads at.
fn readable_revision(revision: i64, head: i64, view: &ViewSet) -> Result<i64, OperationError> {
    if revision > head {
        return Err(OperationError::FutureRevision(head));
    }
    let main = if revision <= 0 { head } else { revision };
    if main < view.compact_revision {
        return Err(OperationError::Compacted(view.compact_revision));
    }
    Ok(main)
}

impl Shared {
    pub(crate) fn listeners(&self) -> MutexGuard<'_, Vec<HeadListener>> {
        // A listener that panicked is the listener's problem; the list itself is whole.
        self.listeners.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
