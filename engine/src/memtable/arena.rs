//! Memory of one memtable: allocated in pieces, never moved, given back as a whole.
//!
//! For the skip list, which is full of references between nodes and is read while it grows. It knows nothing of
//! keys or versions, only that there are two [`Lane`]s of allocations, so that the small nodes that every search walks
//! lie close together instead of between values.
//!
//! Contract: one writer allocates (it owns the [`ArenaCursor`]); any thread turns an [`Offset`] that it was handed
//! into an address. An address stays valid, and its bytes stay where they are, until the arena is dropped.
//!
//! Layout: chunks of 1 MiB, one under way for each lane. An allocation that is larger than a quarter of a chunk and does
//! not fit into the rest of the lane's chunk gets a run of chunks of its own, contiguous, however long. An offset counts
//! units of 8 bytes; its upper bits are the slot in the chunk directory, so a run of n chunks takes n neighbouring
//! slots. Offset 0 is never handed out and means "none".
//!
//! Chunks are cut from *regions* of 8 MiB, which are mapped; the first one is a single chunk. The system backs them page
//! by page as they are written. (Huge pages were tried: a fault of one takes milliseconds on a virtual machine, and
//! costs more than the faster reads win.)
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
/// Size of the regions behind the first.
const REGION_BYTES: usize = 8 << 20;
const REGION_CHUNKS: usize = REGION_BYTES / CHUNK_BYTES;
/// So much memory is asked for at a time: cheaper than page by page, and no long pause.
const POPULATE_BYTES: usize = 64 << 10;
/// A small key node that would cross a line is moved to the next.
const LINE_BYTES: usize = 64;
/// Largest allocation an empty arena can serve: everything but the first chunks of the lanes.
pub(super) const ALLOCATION_BYTES_MAX: usize = (CHUNKS_MAX - 3 * REGION_CHUNKS) * CHUNK_BYTES;

const _: () = assert!(CHUNKS_MAX * CHUNK_UNITS <= u32::MAX as usize + 1, "an offset fits into 32 bits");

/// Where an allocation is, in units of 8 bytes. 0: none.
pub(super) type Offset = u32;

/// What an allocation is for; each has its own chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Small, and read by every search. One that fits into a cache line does not cross one.
    Keys,
    /// Everything else.
    Values,
}

/// The memory; shared by the writer and the readers.
pub(super) struct Arena {
    /// Start of each chunk; null where none is mapped yet.
    chunks: Box<[AtomicPtr<u8>]>,
    /// What is mapped, to be unmapped at the end.
    regions: Mutex<Vec<Region>>,
    /// Bytes mapped, without the part of the last region that no chunk was cut from.
    mapped_bytes: AtomicUsize,
}

/// The writer's position; belongs to the arena it was made with.
pub(super) struct ArenaCursor {
    /// By [`Lane`].
    lanes: [LaneCursor; 2],
    /// Chunks of the last region that no lane has taken.
    free_chunks: std::ops::Range<usize>,
    /// First unused slot of the directory.
    chunks_used: usize,
    /// Bytes handed out, with what was lost at the ends of chunks and lines.
    used_bytes: usize,
}

#[derive(Clone, Copy)]
struct LaneCursor {
    /// Slot of the lane's chunk.
    chunk: usize,
    /// Up to where the system was asked for memory, relative to the chunk's start.
    populated_bytes: usize,
    /// Next free byte, relative to the chunk's start; `CHUNK_BYTES` when there is no chunk yet.
    position_bytes: usize,
}

impl ArenaCursor {
    /// Bytes handed out so far.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// True if two allocations of `bytes` in all are sure to fit.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.chunks_used + bytes.div_ceil(CHUNK_BYTES) + 2 * REGION_CHUNKS <= CHUNKS_MAX
    }
}

impl Arena {
    /// An arena that holds nothing, and the right to fill it.
    pub(super) fn new() -> (Arena, ArenaCursor) {
        let chunks = (0..CHUNKS_MAX).map(|_| AtomicPtr::default()).collect();
        let arena = Arena { chunks, regions: Mutex::new(Vec::new()), mapped_bytes: AtomicUsize::new(0) };
        let lane = LaneCursor { chunk: 0, populated_bytes: CHUNK_BYTES, position_bytes: CHUNK_BYTES };
        // Slot 0 stays empty, so that no allocation is at offset 0.
        let cursor = ArenaCursor { lanes: [lane; 2], free_chunks: 1..1, chunks_used: 1, used_bytes: 0 };
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
    pub(super) unsafe fn allocate(&self, cursor: &mut ArenaCursor, lane: Lane, bytes: usize) -> Offset {
        let bytes = bytes.next_multiple_of(UNIT_BYTES);
        let mut at = cursor.lanes[lane as usize];
        if lane == Lane::Keys {
            let line_rest = LINE_BYTES - at.position_bytes % LINE_BYTES;
            if bytes > line_rest && bytes <= LINE_BYTES {
                at.position_bytes += line_rest;
                cursor.used_bytes += line_rest;
            }
        }
        cursor.used_bytes += bytes;
        if bytes > CHUNK_BYTES - at.position_bytes {
            if bytes > CHUNK_BYTES / 4 {
                return offset(self.map_run(cursor, bytes), 0);
            }
            cursor.used_bytes += CHUNK_BYTES - at.position_bytes;
            at = LaneCursor { chunk: self.take_chunk(cursor), populated_bytes: 0, position_bytes: 0 };
        }
        let found = offset(at.chunk, at.position_bytes);
        at.position_bytes += bytes;
        if at.position_bytes > at.populated_bytes {
            let next = at.position_bytes.next_multiple_of(POPULATE_BYTES);
            let start = self.address(offset(at.chunk, at.populated_bytes));
            // SAFETY: the bytes lie inside the chunk, in whole pages; the call changes no contents. Where the system does
            // not know it, pages come one by one when they are written.
            unsafe { libc::madvise(start.cast(), next - at.populated_bytes, libc::MADV_POPULATE_WRITE) };
            at.populated_bytes = next;
        }
        cursor.lanes[lane as usize] = at;
        found
    }

    /// Takes a chunk of the last region, or of a new one; returns its slot.
    fn take_chunk(&self, cursor: &mut ArenaCursor) -> usize {
        if cursor.free_chunks.is_empty() {
            let region = match cursor.chunks_used {
                1 => Region::map(CHUNK_BYTES),
                _ => Region::map(REGION_BYTES),
            };
            cursor.free_chunks = self.enter(cursor, region);
        }
        self.mapped_bytes.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
        cursor.free_chunks.next().expect("a region has a chunk")
    }

    /// Maps a run of its own; returns its first slot.
    fn map_run(&self, cursor: &mut ArenaCursor, bytes: usize) -> usize {
        let run = Region::map(bytes.next_multiple_of(PAGE_BYTES));
        self.mapped_bytes.fetch_add(run.bytes, Ordering::Relaxed);
        self.enter(cursor, run).start
    }

    /// Enters a region into the directory; returns its slots.
    fn enter(&self, cursor: &mut ArenaCursor, region: Region) -> std::ops::Range<usize> {
        let slots = cursor.chunks_used..cursor.chunks_used + region.bytes.div_ceil(CHUNK_BYTES);
        assert!(slots.end <= CHUNKS_MAX, "N2: an arena has at most {CHUNKS_MAX} chunks, not {}", slots.end);
        for (part, slot) in slots.clone().enumerate() {
            // Inside the region: part * CHUNK_BYTES < bytes.
            let start = region.start.as_ptr().wrapping_add(part * CHUNK_BYTES);
            self.chunks[slot].store(start, Ordering::Release);
        }
        self.regions.lock().expect("nothing panics while it holds this lock").push(region);
        cursor.chunks_used = slots.end;
        slots
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
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Region` is the ownership of plain memory; the arena uses it only to compute addresses and to unmap.
unsafe impl Send for Region {}

impl Region {
    fn map(bytes: usize) -> Region {
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
        Region {
            start: NonNull::new(start.cast()).expect("the kernel maps nothing at address 0 unasked"),
            bytes,
        }
    }
}

impl Drop for Region {
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
        for round in 0..8 {
            for &size in &sizes {
                let lane = if size < 5000 && round % 2 == 0 { Lane::Keys } else { Lane::Values };
                // SAFETY: the cursor is this arena's.
                let at = unsafe { arena.allocate(&mut cursor, lane, size + round) };
                assert_ne!(at, 0);
                assert!((arena.address(at) as usize).is_multiple_of(8));
                fill(&arena, at, size + round);
                all.push((at, size + round));
            }
        }
        for &(at, size) in &all {
            assert!(is_intact(&arena, at, size), "N1: {size} bytes at {at}");
        }
        assert!(arena.mapped_bytes() + CHUNK_BYTES >= cursor.used_bytes());
    }

    #[test]
    fn small_keys_lie_in_one_cache_line() {
        let (arena, mut cursor) = Arena::new();
        for bytes in (1..=64).cycle().take(5000) {
            // SAFETY: the cursor is this arena's.
            let start = arena.address(unsafe { arena.allocate(&mut cursor, Lane::Keys, bytes) }) as usize;
            assert_eq!(start / LINE_BYTES, (start + bytes - 1) / LINE_BYTES, "{bytes} bytes at {start:x}");
        }
    }

    #[test]
    fn a_first_allocation_that_is_huge_is_not_at_offset_zero() {
        let (arena, mut cursor) = Arena::new();
        // SAFETY: the cursor is this arena's.
        let (huge, small) = unsafe {
            (
                arena.allocate(&mut cursor, Lane::Values, 5 << 20),
                arena.allocate(&mut cursor, Lane::Values, CHUNK_BYTES - 8),
            )
        };
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
        assert!(!cursor.fits(CHUNKS_MAX * CHUNK_BYTES));
    }
}
