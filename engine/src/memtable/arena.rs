//! Memory of one memtable: allocated in pieces, never moved, given back as a whole.
//!
//! For the skip list, which is full of references between nodes and is read while it grows. It knows nothing of
//! keys or versions.
//!
//! Contract: one writer allocates (it owns the [`ArenaCursor`]); any thread turns an [`Offset`] that it was handed
//! into an address. An address stays valid, and its bytes stay where they are, until the arena is dropped.
//!
//! Layout: chunks of 1 MiB, mapped when they are needed. An allocation that is larger than a quarter of a chunk and
//! does not fit into the rest of the current one gets a run of its own, contiguous, however long; the current chunk
//! goes on being filled. An offset counts units of 8 bytes; its upper bits are the slot in the chunk directory, so a
//! run of n chunks takes n neighbouring slots. Offset 0 is never handed out and means "none".
//!
//! Invariants:
//! - N1: an offset that was handed out lies inside a mapped chunk or run, with all the bytes asked for behind it.
//! - N2: the directory never holds more than [`CHUNKS_MAX`] slots: 4 GiB, far above the size at which a memtable is
//!   frozen; the bound is what one huge record could need on top.
//!
//! Failure: when the system refuses memory the process ends as it does for any allocation.
//!
//! Why maps and not the allocator: a dropped memtable must return its memory to the system at once, and allocators
//! keep freed blocks of this size.
use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Size of a chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes per unit of an offset; also the alignment of every allocation.
const UNIT_BYTES: usize = 8;
const CHUNK_UNITS: usize = CHUNK_BYTES / UNIT_BYTES;
/// Directory slots of an arena (N2).
const CHUNKS_MAX: usize = 4096;
const PAGE_BYTES: usize = 4096;
/// Largest allocation an empty arena can serve: everything but the chunk that holds the small ones.
pub(super) const ALLOCATION_BYTES_MAX: usize = (CHUNKS_MAX - 2) * CHUNK_BYTES;

const _: () = assert!(CHUNKS_MAX * CHUNK_UNITS <= u32::MAX as usize + 1, "an offset fits into 32 bits");

/// Where an allocation is, in units of 8 bytes. 0: none.
pub(super) type Offset = u32;

/// The memory; shared by the writer and the readers.
pub(super) struct Arena {
    /// Start of each chunk; null where none is mapped yet.
    chunks: Box<[AtomicPtr<u8>]>,
    /// What is mapped, to be unmapped at the end.
    runs: Mutex<Vec<Run>>,
    /// Bytes mapped.
    mapped_bytes: AtomicUsize,
}

/// The writer's position; belongs to the arena it was made with.
pub(super) struct ArenaCursor {
    /// Next free byte of the current chunk, relative to its start; `CHUNK_BYTES` when there is no chunk yet.
    position_bytes: usize,
    /// Slot of the current chunk.
    chunk: usize,
    /// First unused slot of the directory.
    chunks_used: usize,
    /// Bytes handed out, with what was lost at the ends of chunks.
    used_bytes: usize,
}

impl ArenaCursor {
    /// Bytes handed out so far.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// True if `bytes` more are sure to fit.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.chunks_used + bytes.div_ceil(CHUNK_BYTES) + 2 <= CHUNKS_MAX
    }
}

impl Arena {
    /// An arena that holds nothing, and the right to fill it.
    pub(super) fn new() -> (Arena, ArenaCursor) {
        let chunks = (0..CHUNKS_MAX).map(|_| AtomicPtr::default()).collect();
        let arena = Arena { chunks, runs: Mutex::new(Vec::new()), mapped_bytes: AtomicUsize::new(0) };
        let cursor = ArenaCursor { position_bytes: CHUNK_BYTES, chunk: 0, chunks_used: 0, used_bytes: 0 };
        (arena, cursor)
    }

    /// Bytes mapped.
    pub(super) fn mapped_bytes(&self) -> usize {
        self.mapped_bytes.load(Ordering::Relaxed)
    }

    /// `bytes` bytes, zeroed, at an address that is a multiple of 8.
    ///
    /// # Panics
    /// If the arena is full (N2); the caller asks [`ArenaCursor::fits`] first.
    ///
    /// # Safety
    /// `cursor` was made together with this arena.
    pub(super) unsafe fn allocate(&self, cursor: &mut ArenaCursor, bytes: usize) -> Offset {
        let bytes = bytes.next_multiple_of(UNIT_BYTES);
        if bytes > CHUNK_BYTES - cursor.position_bytes {
            if bytes > CHUNK_BYTES / 4 {
                let slot = self.map(cursor, bytes);
                cursor.used_bytes += bytes;
                return offset(slot, 0);
            }
            cursor.used_bytes += CHUNK_BYTES - cursor.position_bytes;
            cursor.chunk = self.map(cursor, CHUNK_BYTES);
            // Unit 0 of slot 0 stays unused: offset 0 means "none".
            cursor.position_bytes = if cursor.chunk == 0 { UNIT_BYTES } else { 0 };
        }
        let at = offset(cursor.chunk, cursor.position_bytes);
        cursor.position_bytes += bytes;
        cursor.used_bytes += bytes;
        at
    }

    /// Maps a run of `bytes` and enters it into the directory; returns its first slot.
    fn map(&self, cursor: &mut ArenaCursor, bytes: usize) -> usize {
        let mut slot = cursor.chunks_used;
        // A run at the very start would own offset 0: leave that slot empty.
        if slot == 0 && bytes != CHUNK_BYTES {
            slot = 1;
        }
        let slots = bytes.div_ceil(CHUNK_BYTES);
        assert!(
            slot + slots <= CHUNKS_MAX,
            "N2: an arena has at most {CHUNKS_MAX} chunks, needed {slots} at {slot}"
        );
        let run = Run::map(bytes.next_multiple_of(PAGE_BYTES));
        for part in 0..slots {
            // SAFETY: part * CHUNK_BYTES < bytes, so the address is inside the run.
            let start = unsafe { run.start.as_ptr().add(part * CHUNK_BYTES) };
            self.chunks[slot + part].store(start, Ordering::Release);
        }
        self.mapped_bytes.fetch_add(run.bytes, Ordering::Relaxed);
        self.runs.lock().expect("nothing panics while it holds this lock").push(run);
        cursor.chunks_used = slot + slots;
        slot
    }

    /// The address of an allocation of this arena. It is good for reading and writing the allocated bytes as long as
    /// the arena lives; who may do which is the caller's business.
    #[inline]
    pub(super) fn address(&self, at: Offset) -> *mut u8 {
        let slot = at as usize / CHUNK_UNITS;
        let start = self.chunks[slot].load(Ordering::Acquire);
        debug_assert!(!start.is_null(), "N1: offset {at} lies in a mapped chunk");
        start.wrapping_add(at as usize % CHUNK_UNITS * UNIT_BYTES)
    }
}

fn offset(slot: usize, position_bytes: usize) -> Offset {
    (slot * CHUNK_UNITS + position_bytes / UNIT_BYTES) as Offset
}

/// One mapping.
struct Run {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Run` is the ownership of plain memory; it is used by the arena only to compute addresses and to unmap.
unsafe impl Send for Run {}

impl Run {
    fn map(bytes: usize) -> Run {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            handle_alloc_error(
                Layout::from_size_align(bytes, PAGE_BYTES).expect("a size the kernel was asked for"),
            );
        }
        Run {
            start: NonNull::new(start.cast()).expect("the kernel maps nothing at address 0 unasked"),
            bytes,
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // SAFETY: start and size are those of the mapping, which is unmapped once, by its owner; every reference into
        // it borrows from the arena, which is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills the allocation with a byte made from its offset.
    fn fill(arena: &Arena, at: Offset, bytes: usize) {
        // SAFETY: `bytes` were allocated at `at`, and this thread is alone.
        unsafe { arena.address(at).write_bytes(at as u8, bytes) };
    }

    fn is_intact(arena: &Arena, at: Offset, bytes: usize) -> bool {
        // SAFETY: `bytes` were allocated at `at` and filled, and this thread is alone.
        let found = unsafe { std::slice::from_raw_parts(arena.address(at), bytes) };
        found.iter().all(|&byte| byte == at as u8)
    }

    #[test]
    fn allocations_of_every_size_are_aligned_and_do_not_overlap() {
        let (arena, mut cursor) = Arena::new();
        let sizes =
            [1, 7, 8, 100, 4096, 200_000, 300_000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 8, 9];
        let mut all = Vec::new();
        for round in 0..4 {
            for &size in &sizes {
                // SAFETY: the cursor is this arena's.
                let at = unsafe { arena.allocate(&mut cursor, size + round) };
                assert_ne!(at, 0);
                assert!((arena.address(at) as usize).is_multiple_of(8));
                fill(&arena, at, size + round);
                all.push((at, size + round));
            }
        }
        for &(at, size) in &all {
            assert!(is_intact(&arena, at, size), "N1: {size} bytes at {at}");
        }
        assert!(arena.mapped_bytes() >= cursor.used_bytes() - CHUNK_BYTES);
    }

    #[test]
    fn a_first_allocation_that_is_huge_is_not_at_offset_zero() {
        let (arena, mut cursor) = Arena::new();
        // SAFETY: the cursor is this arena's.
        let (huge, small) =
            unsafe { (arena.allocate(&mut cursor, 5 << 20), arena.allocate(&mut cursor, CHUNK_BYTES - 8)) };
        assert!(huge != 0 && small != 0);
        fill(&arena, huge, 5 << 20);
        fill(&arena, small, CHUNK_BYTES - 8);
        assert!(is_intact(&arena, huge, 5 << 20));
    }

    #[test]
    fn an_empty_arena_maps_nothing_and_knows_when_it_is_full() {
        let (arena, cursor) = Arena::new();
        assert_eq!(arena.mapped_bytes(), 0);
        assert!(cursor.fits(ALLOCATION_BYTES_MAX));
        assert!(!cursor.fits(ALLOCATION_BYTES_MAX + 1));
    }
}
