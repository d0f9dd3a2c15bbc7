//! Memory for blocks read from files: slabs of one map each, cut into slots of one size.
//!
//! **Why not the heap.** Pages of 16 KiB come and go between values of every size, and the allocator has to align them. With
//! a few million keys half of the heap was holes that nothing fitted into: 245 of 513 MiB, behind four million puts and as
//! many overwrites. Slots of one size leave no holes.
//!
//! **Data.** A [`Class`] for each multiple of 4 KiB up to [`SLOT_BYTES_MAX`]; in it slabs of [`SLAB_BYTES`], the ones with a
//! free slot in order of their making. A slot is taken from the oldest slab that has one: young slabs run empty and are
//! given back to the system, but for one in each class.
//!
//! **Contract.** A [`Slot`] is memory that is initialised, aligned to 4 KiB, owned by one holder, and goes back when it is
//! dropped. What was in it stays there until somebody writes over it.
//!
//! **Invariants.** L1: a slot is handed out again only after it was dropped: its number is in `free` of its slab or in one
//! `Slot`, never in both. L2: a slab lives as long as one of its slots does: each holds it.
//!
//! **Does not know** what is in a slot, or who holds it how long.
use super::disk::BLOCK_BYTES;
use memmap2::MmapMut;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of a slab.
const SLAB_BYTES: usize = 1 << 20;
/// The largest slot: pages have at most so many bytes. What is larger is seldom kept, and comes from the heap.
pub(super) const SLOT_BYTES_MAX: usize = 64 << 10;
const CLASSES: usize = SLOT_BYTES_MAX / BLOCK_BYTES;

/// The pool of the process. One lock for each class, held for a few instructions and, now and then, for a system call.
static CLASSES_OF_SLOTS: [Mutex<Class>; CLASSES] = [const { Mutex::new(Class::new()) }; CLASSES];

/// A map, cut into slots.
struct Slab {
    /// Of the map, which nobody else looks at.
    start: NonNull<u8>,
    slot_bytes: usize,
    /// Given back to the system when this goes.
    _map: MmapMut,
}

// SAFETY: `start` is the address of a map that lives as long as this value and is no thread's own; what is done with its bytes is each
// slot's affair (L1).
unsafe impl Send for Slab {}
// SAFETY: as above; through `&Slab` only the address and a size can be read.
unsafe impl Sync for Slab {}

impl Slab {
    /// # Panics
    /// If the system has no memory left for it, as any allocation does.
    fn new(slot_bytes: usize) -> Self {
        let mut map = MmapMut::map_anon(SLAB_BYTES).unwrap_or_else(|error| {
            panic!("a slab of {SLAB_BYTES} bytes cannot be had from the system: {error}")
        });
        let start = NonNull::new(map.as_mut_ptr()).expect("a map is not at address 0");
        Self { start, slot_bytes, _map: map }
    }
}

/// A slab as its class knows it.
struct Entry {
    slab: Arc<Slab>,
    /// Numbers of the slots that nobody has.
    free: Vec<u16>,
}

/// Slabs with slots of one size.
struct Class {
    /// By the order of their making.
    slabs: BTreeMap<u64, Entry>,
    /// Those of them with a free slot.
    with_free: BTreeSet<u64>,
    /// How many have no slot in use.
    unused_count: usize,
    next_slab: u64,
}

impl Class {
    const fn new() -> Self {
        Self { slabs: BTreeMap::new(), with_free: BTreeSet::new(), unused_count: 0, next_slab: 0 }
    }

    fn take(&mut self, slot_bytes: usize) -> Place {
        let id = self.with_free.first().copied().unwrap_or_else(|| self.add(slot_bytes));
        let entry = self.slabs.get_mut(&id).expect("slabs with a free slot are slabs");
        self.unused_count -= usize::from(entry.free.len() == SLAB_BYTES / slot_bytes);
        let number = entry.free.pop().expect("the slab has a free slot");
        if entry.free.is_empty() {
            self.with_free.remove(&id);
        }
        Place { slab: entry.slab.clone(), id, number }
    }

    fn add(&mut self, slot_bytes: usize) -> u64 {
        let id = self.next_slab;
        self.next_slab += 1;
        // The lowest is taken first: what was never touched costs nothing.
        let free = (0..(SLAB_BYTES / slot_bytes) as u16).rev().collect();
        self.slabs.insert(id, Entry { slab: Arc::new(Slab::new(slot_bytes)), free });
        self.with_free.insert(id);
        self.unused_count += 1;
        id
    }

    /// Takes a slot back. Returns the slab if it goes to the system.
    fn give(&mut self, id: u64, number: u16) -> Option<Entry> {
        let entry = self.slabs.get_mut(&id).expect("L2: a slab with a slot in use is kept");
        debug_assert!(!entry.free.contains(&number), "L1: slot {number} of slab {id} comes back twice");
        entry.free.push(number);
        self.with_free.insert(id);
        if entry.free.len() < SLAB_BYTES / entry.slab.slot_bytes {
            return None;
        }
        if self.unused_count == 0 {
            self.unused_count = 1;
            return None;
        }
        self.with_free.remove(&id);
        self.slabs.remove(&id)
    }
}

/// Where a slot is.
struct Place {
    slab: Arc<Slab>,
    id: u64,
    number: u16,
}

impl Place {
    fn start(&self) -> NonNull<u8> {
        let offset = usize::from(self.number) * self.slab.slot_bytes;
        // SAFETY: slots are numbered below SLAB_BYTES / slot_bytes, so this lies in the map, which `slab` keeps (L2).
        unsafe { self.slab.start.add(offset) }
    }
}

/// See the module.
pub(super) struct Slot(Place);

impl Slot {
    /// Memory for so many bytes; none if they are more than [`SLOT_BYTES_MAX`].
    pub(super) fn take(bytes: usize) -> Option<Self> {
        let blocks = bytes.div_ceil(BLOCK_BYTES).max(1);
        (blocks <= CLASSES).then(|| Self(class(blocks).take(blocks * BLOCK_BYTES)))
    }

    /// Its first byte. The slot is as long as was asked for, rounded up to blocks.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.0.start()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Place { slab, id, number } = &self.0;
        let gone = class(slab.slot_bytes / BLOCK_BYTES).give(*id, *number);
        // Outside the lock: it may be a system call.
        drop(gone);
    }
}

/// No code of others runs under these locks, so that nothing is half changed after a panic.
fn class(blocks: usize) -> MutexGuard<'static, Class> {
    CLASSES_OF_SLOTS[blocks - 1].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// Slots as they come, with what was written into each; the classes are those of this test alone.
    #[test]
    fn slots_do_not_overlap_and_unused_slabs_go_back() {
        let mut class = Class::new();
        let slot_bytes = 3 * BLOCK_BYTES;
        let mut rng = Rng::new(1);
        let mut held: Vec<(Place, u8)> = Vec::new();
        for round in 0..20_000_u32 {
            let wanted = if round % 4_000 < 2_000 { 3 } else { 1 };
            if rng.below(4) < wanted {
                let slot = class.take(slot_bytes);
                let byte = rng.next_u64() as u8;
                assert_eq!(slot.start().as_ptr() as usize % BLOCK_BYTES, 0);
                // SAFETY: the slot is ours and that long.
                unsafe { slot.start().write_bytes(byte, slot_bytes) };
                held.push((slot, byte));
            } else if !held.is_empty() {
                let (slot, byte) = held.swap_remove(rng.below(held.len() as u64) as usize);
                // SAFETY: as above.
                let bytes = unsafe { std::slice::from_raw_parts(slot.start().as_ptr(), slot_bytes) };
                assert!(bytes.iter().all(|found| *found == byte), "L1: somebody else has written into it");
                drop(class.give(slot.id, slot.number));
            }
            let free: usize = class.slabs.values().map(|entry| entry.free.len()).sum();
            let per_slab = SLAB_BYTES / slot_bytes;
            assert_eq!(class.slabs.len() * per_slab, held.len() + free);
            let unused = class.slabs.values().filter(|entry| entry.free.len() == per_slab).count();
            assert_eq!(class.unused_count, unused);
            assert!(unused <= 1, "one slab waits at most");
        }
        for (slot, _) in held {
            drop(class.give(slot.id, slot.number));
        }
        assert_eq!(class.slabs.len(), 1);
    }

    #[test]
    fn slots_are_for_blocks_up_to_a_size() {
        assert!(Slot::take(0).is_some());
        assert!(Slot::take(SLOT_BYTES_MAX).is_some());
        assert!(Slot::take(SLOT_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn slots_go_from_thread_to_thread() {
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<Slot>();
            scope.spawn(move || {
                for bytes in (0..5_000).map(|number| number * 13 % SLOT_BYTES_MAX) {
                    let slot = Slot::take(bytes).expect("a size that slots have");
                    // SAFETY: the slot is ours and at least that long.
                    unsafe { slot.start().write_bytes(7, bytes) };
                    let _ = sender.send(slot);
                }
            });
            assert_eq!(receiver.iter().count(), 5_000);
        });
    }
}
