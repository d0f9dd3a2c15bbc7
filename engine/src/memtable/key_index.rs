//! Which keys a memtable has: a hash table from key to key node.
//!
//! It answers "has this table the key?" with one cache miss, which makes point reads independent of the size of the
//! table and lets a read or a put pass over the frozen tables that do not have the key. It orders nothing: ranges use
//! the skip list.
//!
//! Contract: one writer inserts, any thread looks up without a lock. A key that was inserted before the reader's head
//! revision was published is found.
//!
//! Layout: open addressing with linear probing over 64-bit slots, upper half the 32-bit hash of the key, lower half
//! the offset of its node, 0 when free. The place of a key comes from the upper bits of its hash, so growing is one
//! sequential pass over the old slots. Outgrown arrays are kept until the memtable is dropped (a reader may be in
//! one); together they are smaller than the current one.
//!
//! Invariant K1: at most 5/8 of the slots are taken, so every probe ends at a free one.
use super::arena::Offset;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FIRST_SLOTS: usize = 64;
/// 2^31 slots at most; an arena has no room for as many key nodes.
const LEVELS: usize = 26;

type Slots = Box<[AtomicU64]>;

/// See the module.
#[derive(Default)]
pub(super) struct KeyIndex {
    levels: [OnceLock<Slots>; LEVELS],
    /// The array in use.
    level: AtomicUsize,
    /// Keys in it; only the writer looks.
    keys: AtomicUsize,
}

fn place(hash: u32, slots: usize) -> usize {
    ((u64::from(hash) * slots as u64) >> 32) as usize
}

fn insert_into(slots: &[AtomicU64], hash: u32, slot: u64) {
    let mut at = place(hash, slots.len());
    while slots[at].load(Ordering::Relaxed) != 0 {
        at = (at + 1) & (slots.len() - 1);
    }
    // Release: whoever sees the offset sees the node it leads to.
    slots[at].store(slot, Ordering::Release);
}

impl KeyIndex {
    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.levels.iter().filter_map(OnceLock::get).map(|slots| size_of_val::<[AtomicU64]>(slots)).sum()
    }

    /// The node with this hash for which `is_key` holds.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is_key: impl FnMut(Offset) -> bool) -> Option<Offset> {
        let slots = self.levels[self.level.load(Ordering::Acquire)].get()?;
        let mut at = place(hash, slots.len());
        loop {
            let slot = slots[at].load(Ordering::Acquire);
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == hash && is_key(slot as Offset) {
                return Some(slot as Offset);
            }
            at = (at + 1) & (slots.len() - 1);
        }
    }

    /// Adds a key that is not there; only the writer of the memtable calls it.
    pub(super) fn insert(&self, hash: u32, offset: Offset) {
        let mut level = self.level.load(Ordering::Relaxed);
        let keys = self.keys.load(Ordering::Relaxed) + 1;
        let mut slots = self.levels[level].get_or_init(|| empty_slots(level));
        if keys * 8 > slots.len() * 5 {
            level += 1;
            let grown = empty_slots(level);
            for slot in slots.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|&slot| slot != 0) {
                insert_into(&grown, (slot >> 32) as u32, slot);
            }
            slots = self.levels[level].get_or_init(|| grown);
            self.level.store(level, Ordering::Release);
        }
        debug_assert!(keys * 8 <= slots.len() * 5, "K1: {keys} keys in {} slots", slots.len());
        insert_into(slots, hash, u64::from(hash) << 32 | u64::from(offset));
        self.keys.store(keys, Ordering::Relaxed);
    }
}

fn empty_slots(level: usize) -> Slots {
    (0..FIRST_SLOTS << level).map(|_| AtomicU64::new(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inserted_key_is_found_and_no_other_even_when_hashes_collide() {
        let index = KeyIndex::default();
        assert_eq!(index.find(7, |_| true), None);
        // Few distinct hashes, at the upper end, so that probes wrap around.
        let hash = |offset: u32| u32::MAX - offset % 37;
        for offset in 1..2000_u32 {
            assert_eq!(index.find(hash(offset), |at| at == offset), None);
            index.insert(hash(offset), offset);
        }
        for offset in 1..2000_u32 {
            assert_eq!(index.find(hash(offset), |at| at == offset), Some(offset));
        }
        assert_eq!(index.find(5, |_| true), None);
    }
}
