//! One budget of memory for what was read from segments and decoded: pages, index blocks, values.
//!
//! **Contract.** [`Cache::get`] returns what was inserted for this place and type, or nothing; what it returns stays valid
//! however long the caller keeps it. Nothing is ever stale: segments do not change, and their ids are not used again. The
//! bytes of all entries never exceed the budget, by what each says of itself plus [`ENTRY_BYTES`]; what readers still hold
//! of entries that were evicted comes on top, and is theirs to bound.
//!
//! **Order of eviction.** Values first, then leaves, index blocks, inner pages ([`Class`]): an entry is never evicted for one
//! of a lower class, so that no scan can take away what every lookup needs. Inside a class the oldest goes that was not
//! used again (CLOCK, with a count of up to three uses). An entry that nobody used while many times the budget came by
//! (64 times for inner pages) is taken for dead and goes whatever its class: a checkpoint replaces inner pages, and the
//! old ones would crowd out everything else.
//!
//! **Shape.** Up to 16 shards, each with a lock, an equal part of the budget and the whole algorithm (`shard`); a place
//! belongs to one shard by its hash. There is no lock above them. Small budgets have fewer shards, or a shard would be too
//! small for a page.
//!
//! **Access.** A lock is held for a lookup or the choice of what to evict, never while anything is read, decoded or freed. Two
//! threads that miss the same place both read it; the first to insert it wins.
//!
//! **Does not know** files, or what entries mean; only how much memory they say they take.
mod shard;

use crate::base::ids::SegmentId;
use bytes::Bytes;
use shard::{Key, Shard, Value};
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most shards of a cache: more than the threads that read at one time on most machines.
const SHARDS_MAX: usize = 16;
/// A shard is not smaller than this, if the budget allows one at all.
const SHARD_BYTES_MIN: usize = 1 << 20;
/// An entry takes at most this part of its shard, or one would evict too many.
const ENTRIES_IN_SHARD_MIN: usize = 8;
/// What an entry costs besides its own bytes: the slot, its share of the hash table, two counts of an `Arc`.
pub const ENTRY_BYTES: usize = 128;
/// Longest value, and record with its key, that those who read them put here: a longer one would push out many.
pub const VALUE_BYTES_MAX: usize = 16 << 10;

/// The types of entries, so that no two are taken for each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the types' own names")]
#[repr(u8)]
pub enum Kind {
    Bytes,
    Page,
    IndexBlock,
    Decompressor,
    Record,
}

/// What an entry is worth keeping, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Inner pages of trees: a hundredth of a tree, and on the way to everything.
    Inner,
    /// Index blocks of revision segments and leaves of the pending tree: on the way to every old record, and to every leaf.
    Index,
    /// Leaves of trees.
    Leaf,
    /// Values.
    Value,
}

impl Class {
    /// All classes, the best first.
    pub const ALL: [Self; 4] = [Self::Inner, Self::Index, Self::Leaf, Self::Value];
}

/// Where an entry comes from. Each type of entry has numbers of its own: a page and a record at the same place are two
/// entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CacheKey {
    /// The segment.
    pub segment: SegmentId,
    /// Offset in it, in blocks of 4 KiB; or any other number that means one thing of this type in this segment, such as
    /// the ordinal of a record.
    pub block: u64,
}

/// What can be kept.
pub trait Cached: Any + Send + Sync {
    /// Which type this is.
    const KIND: Kind;

    /// Memory that keeping it takes, in bytes, with everything that only it keeps alive. Must not change.
    fn bytes(&self) -> usize;
}

/// See the module's documentation.
pub struct Cache {
    /// A power of two of them.
    shards: Vec<Mutex<Shard>>,
}

/// What a cache has done since it was made, and what it holds now. Not of one moment: shards are asked one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Lookups that found something.
    pub hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Entries that were kept when they were inserted.
    pub insertions: u64,
    /// Entries that were not: too large, or no room but that of better ones.
    pub refusals: u64,
    /// Entries that gave way to others. Those of a removed segment do not count.
    pub evictions: u64,
    /// Entries now.
    pub entries: u64,
    /// Bytes now, by class in the order of [`Class::ALL`].
    pub bytes: [u64; Class::ALL.len()],
}

impl Cache {
    /// An empty cache that keeps at most `bytes_max`; with 0 it keeps nothing.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let count = (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let count = 1 << count.ilog2();
        let shards = (0..count).map(|_| Mutex::new(Shard::new(bytes_max / count))).collect();
        Arc::new(Self { shards })
    }

    /// What was inserted for this place and type, if it is still there.
    pub fn get<T: Cached>(&self, key: CacheKey) -> Option<Arc<T>> {
        let key = key.of_type::<T>();
        match self.shard(&key).get(&key)? {
            // The kind is part of the key, so this is always Ok.
            Value::Shared(found) => found.downcast().ok(),
            Value::Bytes(_) => None,
        }
    }

    /// The bytes that were inserted for this place, if they are still there.
    pub fn get_bytes(&self, key: CacheKey) -> Option<Bytes> {
        let key = key.of_bytes();
        match self.shard(&key).get(&key)? {
            Value::Bytes(bytes) => Some(shared(bytes)),
            Value::Shared(_) => None,
        }
    }

    /// [`Self::get_bytes`] for many places at once, in their order; much faster than one by one.
    pub fn get_bytes_many(&self, keys: &[CacheKey]) -> Vec<Option<Bytes>> {
        let mut order: Vec<(usize, usize)> =
            keys.iter().enumerate().map(|(at, key)| (self.index_of(&key.of_bytes()), at)).collect();
        order.sort_unstable();
        let mut found = Vec::with_capacity(keys.len());
        for of_shard in order.chunk_by(|left, right| left.0 == right.0) {
            let keys = of_shard.iter().map(|&(_, at)| keys[at].of_bytes());
            lock(&self.shards[of_shard[0].0]).get_many(keys, &mut found);
        }
        let mut ordered = vec![None; keys.len()];
        for ((_, at), value) in order.into_iter().zip(found) {
            if let Some(Value::Bytes(bytes)) = value {
                ordered[at] = Some(shared(bytes));
            }
        }
        ordered
    }

    /// As [`Self::insert`], for plain bytes, of which it makes a copy without slack.
    pub fn insert_bytes(&self, key: CacheKey, class: Class, bytes: &[u8]) {
        self.put(key.of_bytes(), class, Value::Bytes(bytes.into()), bytes.len());
    }

    /// Keeps `value`, if there is room without evicting anything better. If the place is taken, what is there stays: it is
    /// the same, read by another thread.
    pub fn insert<T: Cached>(&self, key: CacheKey, class: Class, value: Arc<T>) {
        let bytes = value.bytes();
        self.put(key.of_type::<T>(), class, Value::Shared(value), bytes);
    }

    /// The same for what takes the place of an entry that was used so often.
    pub fn insert_used<T: Cached>(&self, key: CacheKey, class: Class, value: Arc<T>, uses: u8) {
        let bytes = value.bytes();
        self.put_used(key.of_type::<T>(), class, Value::Shared(value), bytes, uses);
    }

    /// Says that what is kept for this place is being replaced. Returns how often it was used, if it is there, and drops it if
    /// there is no room for both.
    pub fn retire<T: Cached>(&self, key: CacheKey) -> Option<u8> {
        let key = key.of_type::<T>();
        let (uses, gone) = self.shard(&key).retire(&key)?;
        drop(gone);
        Some(uses)
    }

    /// Drops what is kept for this place.
    pub fn remove<T: Cached>(&self, key: CacheKey) {
        let key = key.of_type::<T>();
        let gone = self.shard(&key).remove_key(&key);
        drop(gone);
    }

    fn put(&self, key: Key, class: Class, value: Value, bytes: usize) {
        self.put_used(key, class, value, bytes, 0);
    }

    fn put_used(&self, key: Key, class: Class, value: Value, bytes: usize, uses: u8) {
        let bytes = bytes.saturating_add(ENTRY_BYTES);
        let evicted = self.shard(&key).insert(key, class, value, bytes, uses);
        // The lock was released at the end of the statement above; freeing pages may take long.
        drop(evicted);
    }

    /// Removes everything of a segment, which was or will be unlinked. Readers that still read it may insert again; that
    /// ages and goes.
    pub fn remove_segment(&self, segment: SegmentId) {
        for shard in &self.shards {
            let removed = lock(shard).remove_segment(segment);
            drop(removed);
        }
    }

    /// What it has done, and what it holds.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats::default();
        for shard in &self.shards {
            lock(shard).add_stats(&mut stats);
        }
        stats
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        lock(&self.shards[self.index_of(key)])
    }

    fn index_of(&self, key: &Key) -> usize {
        // The table inside the shard goes by the lowest and highest bits.
        (key.hash() >> 32) as usize & (self.shards.len() - 1)
    }
}

impl CacheKey {
    fn of_type<T: Cached>(self) -> Key {
        Key { segment: self.segment, kind: T::KIND, block: self.block }
    }

    fn of_bytes(self) -> Key {
        Key { segment: self.segment, kind: Kind::Bytes, block: self.block }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

/// The bytes as the rest of the engine hands them on.
fn shared(bytes: Arc<[u8]>) -> Bytes {
    Bytes::from_owner(bytes)
}

/// No code of others runs under these locks, so that nothing is half changed after a panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
