//! One memtable: a run of neighbouring revisions, all in memory.
//!
//! For the store, which holds one active memtable that grows and any number of frozen ones. A memtable knows records
//! and their order; it knows nothing of heads, transactions, or what a compaction means.
//!
//! Contract: [`MemtableWriter`] is the only way to add records, and there is one per memtable, so the type system
//! allows one writer; a [`Memtable`] is read from any thread meanwhile, without locks.
//!
//! Layout: `skip_list` orders keys and versions in an `arena`; `key_index` finds a key in one step; `event_ring` lists the
//! versions in revision order. All offsets are of the memtable's own arena, so a memtable is dropped as a whole.
//!
//! Invariants: N1, N2 (arena), K1 (key index), K2 to K4 (skip list), H2 (event list).
//!
//! Why several small memtables instead of one: frozen ones are flushed, and given back to the system, while the active
//! one grows.
#[allow(unsafe_code, reason = "raw memory that never moves; each use is argued in place")]
mod arena;
mod event_ring;
mod key_index;
#[allow(unsafe_code, reason = "nodes in raw memory, read while the list grows; each use is argued in place")]
mod skip_list;

pub(crate) use skip_list::{Key, Keys, Newest, Prev, Record, Version};

use crate::base::ids::Revision;
use skip_list::{SkipList, SkipListWriter};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What a record counts beside its key and value, in [`record_bytes`].
pub(crate) const RECORD_OVERHEAD_BYTES: u64 = 64;

/// The size of a record as accounting sees it.
pub(crate) fn record_bytes(key_bytes: usize, value_bytes: usize) -> u64 {
    key_bytes as u64 + value_bytes as u64 + RECORD_OVERHEAD_BYTES
}

/// Hashes keys for the memtables of one store; seeded anew for each, so that nobody can choose colliding keys. The
/// hash decides nothing that can be seen from outside.
#[derive(Clone, Default)]
pub(crate) struct KeyHasher(RandomState);

impl KeyHasher {
    /// Hash of a key.
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> u32 {
        self.0.hash_one(key) as u32
    }
}

/// See the module.
pub(crate) struct Memtable {
    list: Arc<SkipList>,
    /// First revision, `i64::MAX` while empty.
    first_main: AtomicI64,
    first_sub: AtomicI64,
    /// Sum of `record_bytes` of everything inserted.
    record_bytes: AtomicU64,
    /// The part of `record_bytes` that compaction has accounted as dead.
    dead_bytes: AtomicU64,
    /// Bytes of records on disk that compaction has accounted as replaced by records of this memtable.
    killed_bytes: AtomicU64,
}

/// The right to add records to a memtable; there is one.
pub(crate) struct MemtableWriter {
    table: Arc<Memtable>,
    list: SkipListWriter,
}

impl Memtable {
    /// An empty memtable and the right to fill it.
    pub(crate) fn new() -> (Arc<Memtable>, MemtableWriter) {
        // The heights of towers depend on nothing that a client chooses, so one seed is as good as another.
        let (list, list_writer) = SkipList::new(0x5354_4552_4e50_4f53);
        let table = Arc::new(Memtable {
            list,
            first_main: AtomicI64::new(i64::MAX),
            first_sub: AtomicI64::new(0),
            record_bytes: AtomicU64::new(0),
            dead_bytes: AtomicU64::new(0),
            killed_bytes: AtomicU64::new(0),
        });
        (table.clone(), MemtableWriter { table, list: list_writer })
    }

    /// Main revision of the first record; above every revision while empty.
    #[inline]
    pub(crate) fn first_main(&self) -> i64 {
        self.first_main.load(Ordering::Acquire)
    }

    /// Revision of the first record; above every revision while empty.
    #[inline]
    pub(crate) fn first_revision(&self) -> Revision {
        let main = self.first_main();
        Revision::new(main, self.first_sub.load(Ordering::Relaxed))
    }

    /// The newest version of `key` with a main revision of at most `main`, a tombstone too.
    #[inline]
    pub(crate) fn at_or_below(&self, key: &[u8], hash: u32, main: i64) -> Option<Version<'_>> {
        if self.first_main() > main {
            return None;
        }
        self.list.find(key, hash)?.at_or_below(Revision::new(main, i64::MAX))
    }

    /// The key, if any version of it is here.
    #[inline]
    pub(crate) fn find(&self, key: &[u8], hash: u32) -> Option<Key<'_>> {
        self.list.find(key, hash)
    }

    /// The version with exactly this revision.
    pub(crate) fn exactly(&self, key: &[u8], hash: u32, revision: Revision) -> Option<Version<'_>> {
        self.list.find(key, hash)?.at_or_below(revision).filter(|version| version.revision() == revision)
    }

    /// Keys from `key` on, in order.
    pub(crate) fn seek(&self, key: &[u8]) -> Keys<'_> {
        self.list.seek(key)
    }

    /// The last key below `end`, or the last of all.
    pub(crate) fn last_below(&self, end: Option<&[u8]>) -> Option<Key<'_>> {
        self.list.last_below(end)
    }

    /// Number of records, published or not.
    pub(crate) fn events_count(&self) -> usize {
        self.list.events_count()
    }

    /// Index of the first record, in revision order, with a main revision of at least `main`.
    pub(crate) fn first_event_at_or_above(&self, main: i64) -> usize {
        self.list.first_event_at_or_above(main)
    }

    /// Main revision of the record at `index` in revision order.
    pub(crate) fn event_main(&self, index: usize) -> i64 {
        self.list.event_main(index)
    }

    /// The record at `index` in revision order.
    pub(crate) fn event(&self, index: usize) -> Version<'_> {
        self.list.event(index)
    }

    /// Bytes of memory behind it.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.list.allocated_bytes()
    }

    /// Sum of `record_bytes` of everything inserted.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.record_bytes.load(Ordering::Relaxed)
    }

    /// The part of it that is dead.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.dead_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes as dead; for the store's writer alone.
    pub(crate) fn add_dead_bytes(&self, bytes: u64) {
        let dead = self.dead_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        debug_assert!(dead <= self.record_bytes(), "C3: {dead} dead bytes of {}", self.record_bytes());
    }
}

impl Memtable {
    /// See the field.
    pub(crate) fn killed_bytes(&self) -> u64 {
        self.killed_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes on disk as dead; for the store's writer alone.
    pub(crate) fn add_killed_bytes(&self, bytes: u64) {
        self.killed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl MemtableWriter {
    /// The memtable.
    pub(crate) fn table(&self) -> &Arc<Memtable> {
        &self.table
    }

    /// Bytes that its records take.
    pub(crate) fn used_bytes(&self) -> usize {
        self.list.used_bytes()
    }

    /// True if a record of these sizes is sure to fit.
    pub(crate) fn fits(&self, key_bytes: usize, value_bytes: usize) -> bool {
        self.list.fits(key_bytes, value_bytes)
    }

    /// Adds a record whose revision is above all that it holds.
    #[inline]
    pub(crate) fn insert(&mut self, record: &Record<'_>, hash: u32) {
        self.list.insert(record, hash);
        let table = &*self.table;
        if table.first_main.load(Ordering::Relaxed) == i64::MAX {
            table.first_sub.store(record.revision.sub, Ordering::Relaxed);
            table.first_main.store(record.revision.main, Ordering::Release);
        }
        let bytes =
            table.record_bytes.load(Ordering::Relaxed) + record_bytes(record.key.len(), record.value.len());
        table.record_bytes.store(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
