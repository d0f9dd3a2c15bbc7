//! One shard of the cache: a hash table of entries, a ring for each class, a budget.
//!
//! **Shape.**
//! ```text
//! index:  hash of a key -> number of its slot, which has the key: five bytes an entry stay near the processor
//! slots:  [ Entry { value, bytes, class, uses, touched, older, newer } | free ]
//! rings:  for each class the oldest and the newest entry, linked through their slots
//! ```
//! The hand of a CLOCK is the oldest entry of its ring: if it was used, it becomes the newest with one use less.
//!
//! **Invariants.** K1: `bytes` is the sum over the rings, and over the entries, and at most `bytes_max`. K2: each entry is in
//! `index` under its key and in the ring of its class, and in no other.
//!
//! **Age** is counted in bytes that were inserted, or refused for want of room: it passes only while there is something
//! to gain from it.
use super::{CacheStats, Class, ENTRIES_IN_SHARD_MIN, Kind};
use crate::base::ids::SegmentId;
use hashbrown::HashTable;
use std::any::Any;
use std::sync::Arc;

/// What is kept; the type is that of its key.
#[derive(Clone)]
pub(super) enum Value {
    /// Something decoded.
    Shared(Arc<dyn Any + Send + Sync>),
    /// Bytes beside their count: one line of memory to fetch for both.
    Bytes(Arc<[u8]>),
}

/// More uses than this do not keep an entry longer.
pub(super) const USES_MAX: u8 = 3;
/// How many used entries the hand may pass in one insertion; then the next one goes, used or not. A bound for how long the
/// lock is held, rarely met: each use is passed once.
const PASSES_MAX: usize = 256;
/// How many slots an insertion looks at for entries that are idle.
const SWEEP_SLOTS: usize = 4;
/// No slot.
const NONE: u32 = u32::MAX;

/// An entry that was not used while this many times the budget came by is dead.
pub(super) fn idle_budgets(class: Class) -> u64 {
    match class {
        Class::Inner => 64,
        Class::Index => 32,
        Class::Leaf | Class::Value => 16,
    }
}

/// A place, and the kind of what is kept for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) block: u64,
    pub(super) segment: SegmentId,
    pub(super) kind: Kind,
}

impl Key {
    /// The mixing function is the output step of SplitMix64. Nobody outside chooses places, so no secret is needed.
    pub(super) fn hash(&self) -> u64 {
        let mut z = self.block ^ u64::from(self.segment.0) << 32 ^ (self.kind as u64) << 56;
        z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

struct Entry {
    key: Key,
    value: Value,
    bytes: u32,
    class: Class,
    /// Since it was inserted or the hand passed, at most [`USES_MAX`].
    uses: u8,
    /// Age of the shard when it was last used.
    touched: u64,
    older: u32,
    newer: u32,
}

/// The entries of one class, in the order in which the hand meets them.
struct Ring {
    oldest: u32,
    newest: u32,
    bytes: usize,
}

pub(super) struct Shard {
    index: HashTable<u32>,
    slots: Vec<Option<Entry>>,
    /// Numbers of the slots that are `None`.
    slots_free: Vec<u32>,
    rings: [Ring; Class::ALL.len()],
    bytes: usize,
    bytes_max: usize,
    /// See the module's documentation.
    age: u64,
    /// The slot that is looked at next for being idle.
    sweep_next: usize,
    hits: u64,
    misses: u64,
    insertions: u64,
    refusals: u64,
    evictions: u64,
}

impl Shard {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            slots_free: Vec::new(),
            rings: Class::ALL.map(|_| Ring { oldest: NONE, newest: NONE, bytes: 0 }),
            bytes: 0,
            bytes_max,
            age: 0,
            sweep_next: 0,
            hits: 0,
            misses: 0,
            insertions: 0,
            refusals: 0,
            evictions: 0,
        }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Value> {
        let Some(slot) = self.find(key) else {
            self.misses += 1;
            return None;
        };
        Some(self.use_slot(slot))
    }

    /// [`Self::get`] for many keys of this shard. Each lookup waits for memory three times; here those of all keys overlap.
    pub(super) fn get_many(&mut self, keys: impl Iterator<Item = Key>, found: &mut Vec<Option<Value>>) {
        let slots: Vec<_> = keys.map(|key| self.find(&key)).collect();
        let first_byte = |slot: &u32| match self.slots[*slot as usize].as_ref().map(|entry| &entry.value) {
            Some(Value::Bytes(bytes)) => bytes.first().copied().unwrap_or(0),
            _ => 0,
        };
        // Reads that do not depend on each other, before the counts are touched: those are atomic, and each would wait for its line alone.
        std::hint::black_box(slots.iter().flatten().map(first_byte).fold(0, u8::wrapping_add));
        for slot in slots {
            self.misses += u64::from(slot.is_none());
            found.push(slot.map(|slot| self.use_slot(slot)));
        }
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let is_it = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|entry| entry.key == *key);
        self.index.find(key.hash(), is_it).copied()
    }

    fn use_slot(&mut self, slot: u32) -> Value {
        self.hits += 1;
        let age = self.age;
        let entry = self.entry(slot);
        entry.uses = (entry.uses + 1).min(USES_MAX);
        entry.touched = age;
        entry.value.clone()
    }

    /// How often an entry was used, if it is there; taken out if there is no room for another one like it.
    pub(super) fn retire(&mut self, key: &Key) -> Option<(u8, Option<Value>)> {
        let slot = self.find(key)?;
        let entry = self.entry(slot);
        let (uses, bytes) = (entry.uses, entry.bytes as usize);
        let is_full = self.bytes + bytes > self.bytes_max;
        Some((uses, is_full.then(|| self.remove(slot))))
    }

    pub(super) fn remove_key(&mut self, key: &Key) -> Option<Value> {
        self.find(key).map(|slot| self.remove(slot))
    }

    /// Adds an entry of `bytes`, which counts as used so often, if the place is free and it fits. Returns what must be freed,
    /// behind the lock.
    pub(super) fn insert(
        &mut self,
        key: Key,
        class: Class,
        value: Value,
        bytes: usize,
        uses: u8,
    ) -> Vec<Value> {
        let mut evicted = Vec::new();
        if self.find(&key).is_some() {
            // The caller's value goes with the caller.
            return vec![value];
        }
        let fits = bytes <= (self.bytes_max / ENTRIES_IN_SHARD_MIN).min(u32::MAX as usize) && {
            self.age += bytes as u64;
            self.make_room(class, bytes, &mut evicted)
        };
        if !fits {
            self.refusals += 1;
            evicted.push(value);
            return evicted;
        }
        self.insertions += 1;
        let entry_bytes = u32::try_from(bytes).expect("it fits");
        let entry = Entry {
            key,
            value,
            bytes: entry_bytes,
            class,
            uses: uses.min(USES_MAX),
            touched: self.age,
            older: NONE,
            newer: NONE,
        };
        let slot = match self.slots_free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                u32::try_from(self.slots.len() - 1).expect("each entry counts 128 bytes at least")
            }
        };
        let slots = &self.slots;
        let hash_of = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |entry| entry.key.hash());
        self.index.insert_unique(key.hash(), slot, hash_of);
        self.link(slot);
        self.bytes += bytes;
        self.rings[class as usize].bytes += bytes;
        // K1.
        assert!(self.bytes <= self.bytes_max, "{} bytes of {} are kept", self.bytes, self.bytes_max);
        evicted
    }

    /// Evicts until `bytes` fit, nothing better than `class` but what is idle. False, if that is not enough.
    fn make_room(&mut self, class: Class, bytes: usize, evicted: &mut Vec<Value>) -> bool {
        if self.bytes + bytes <= self.bytes_max {
            return true;
        }
        self.sweep(evicted);
        let worse = &Class::ALL[class as usize..];
        let better_bytes: usize = self.rings[..class as usize].iter().map(|ring| ring.bytes).sum();
        if better_bytes + bytes > self.bytes_max {
            return false;
        }
        let mut passes = 0;
        while self.bytes + bytes > self.bytes_max {
            let rings = worse.iter().rev().map(|class| self.rings[*class as usize].oldest);
            let Some(slot) = rings.into_iter().find(|oldest| *oldest != NONE) else { return false };
            if self.entry(slot).uses == 0 || passes == PASSES_MAX {
                evicted.push(self.evict(slot));
                continue;
            }
            passes += 1;
            self.entry(slot).uses -= 1;
            self.unlink(slot);
            self.link(slot);
        }
        true
    }

    /// Evicts what is idle among the next few slots.
    fn sweep(&mut self, evicted: &mut Vec<Value>) {
        for _ in 0..SWEEP_SLOTS.min(self.slots.len()) {
            self.sweep_next = (self.sweep_next + 1) % self.slots.len();
            if let Some(entry) = &self.slots[self.sweep_next]
                && self.age - entry.touched > idle_budgets(entry.class).saturating_mul(self.bytes_max as u64)
            {
                let slot = u32::try_from(self.sweep_next).expect("slots have 32-bit numbers");
                evicted.push(self.evict(slot));
            }
        }
    }

    pub(super) fn remove_segment(&mut self, segment: SegmentId) -> Vec<Value> {
        let is_of_segment = |slot: &u32| {
            self.slots[*slot as usize].as_ref().is_some_and(|entry| entry.key.segment == segment)
        };
        let slots: Vec<u32> = self.index.iter().copied().filter(is_of_segment).collect();
        slots.into_iter().map(|slot| self.remove(slot)).collect()
    }

    pub(super) fn add_stats(&self, stats: &mut CacheStats) {
        stats.hits += self.hits;
        stats.misses += self.misses;
        stats.insertions += self.insertions;
        stats.refusals += self.refusals;
        stats.evictions += self.evictions;
        stats.entries += self.index.len() as u64;
        for (total, ring) in stats.bytes.iter_mut().zip(&self.rings) {
            *total += ring.bytes as u64;
        }
    }

    fn evict(&mut self, slot: u32) -> Value {
        self.evictions += 1;
        self.remove(slot)
    }

    fn remove(&mut self, slot: u32) -> Value {
        self.unlink(slot);
        let entry = self.slots[slot as usize].take().expect("an entry in the ring is in its slot");
        self.slots_free.push(slot);
        if let Ok(found) = self.index.find_entry(entry.key.hash(), |found| *found == slot) {
            found.remove();
        }
        self.bytes -= entry.bytes as usize;
        self.rings[entry.class as usize].bytes -= entry.bytes as usize;
        entry.value
    }

    fn entry(&mut self, slot: u32) -> &mut Entry {
        self.slots[slot as usize].as_mut().expect("a slot that is named holds an entry")
    }

    /// Makes an entry the newest of its ring.
    fn link(&mut self, slot: u32) {
        let class = self.entry(slot).class;
        let newest = std::mem::replace(&mut self.rings[class as usize].newest, slot);
        (self.entry(slot).older, self.entry(slot).newer) = (newest, NONE);
        match newest {
            NONE => self.rings[class as usize].oldest = slot,
            newest => self.entry(newest).newer = slot,
        }
    }

    /// Takes an entry out of its ring.
    fn unlink(&mut self, slot: u32) {
        let &mut Entry { class, older, newer, .. } = self.entry(slot);
        match older {
            NONE => self.rings[class as usize].oldest = newer,
            older => self.entry(older).newer = newer,
        }
        match newer {
            NONE => self.rings[class as usize].newest = older,
            newer => self.entry(newer).older = older,
        }
    }

    /// Stops a test if K1 or K2 does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut bytes = 0;
        let mut count = 0;
        for class in Class::ALL {
            let ring = &self.rings[class as usize];
            let (mut slot, mut before, mut ring_bytes) = (ring.oldest, NONE, 0);
            while slot != NONE {
                let entry = self.slots[slot as usize].as_ref().expect("K2: a ring names entries");
                assert_eq!((entry.class, entry.older), (class, before), "K2");
                assert_eq!(self.find(&entry.key), Some(slot), "K2");
                ring_bytes += entry.bytes as usize;
                count += 1;
                (before, slot) = (slot, entry.newer);
            }
            assert_eq!((ring.newest, ring.bytes), (before, ring_bytes), "K1, K2");
            bytes += ring_bytes;
        }
        assert_eq!((self.bytes, self.index.len()), (bytes, count), "K1, K2");
        assert_eq!(self.slots.len(), count + self.slots_free.len(), "K2");
        assert!(self.bytes <= self.bytes_max, "K1: {} of {}", self.bytes, self.bytes_max);
    }
}
