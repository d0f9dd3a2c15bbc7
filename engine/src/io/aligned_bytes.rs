//! Aligned memory that somebody keeps: what a read of a sealed file returns.
//!
//! **Contract.** An [`AlignedBytes`] starts at a multiple of 4 KiB, as direct I/O wants it, is initialised from end to end,
//! has one owner, and never moves in memory. Handed over as [`Bytes`] it is shared without a copy.
//!
//! **Why not [`super::IoBuffer`].** That is an anonymous map: two system calls and a page fault for each block, fine for a
//! few buffers that live long. Pages and values are read by the thousand and stay in a cache. What fits comes from the pool of
//! slots, the rest from the heap.
//!
//! **Invariants.** A1: `start` points to `capacity` initialised bytes, of a slot or from the allocator with `layout` of that capacity,
//! owned by this value alone. A2: `bytes <= capacity`.
//!
//! **Does not know** who reads or writes the bytes.
use super::disk::BLOCK_BYTES;
use super::page_pool::Slot;
use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Owned bytes, aligned to 4 KiB. Derefs to its first [`len`](slice::len) bytes.
pub struct AlignedBytes {
    /// See A1.
    start: NonNull<u8>,
    /// What was allocated.
    capacity: usize,
    /// Length as seen by users (A2).
    bytes: usize,
    /// Where `start` is, if not on the heap; goes back behind this value's last use of it.
    slot: Option<Slot>,
}

// SAFETY: the memory is owned by the value alone (A1), and bytes may be sent to and read by any thread; `&self` gives
// shared access only.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `bytes` zeros.
    ///
    /// # Panics
    /// If `bytes` is near the size of the address space. Without memory the process ends, as with any allocation.
    pub fn zeroed(bytes: usize) -> Self {
        if let Some(slot) = Slot::take(bytes) {
            let start = slot.start();
            // SAFETY: the slot is ours alone and has that many bytes.
            unsafe { start.write_bytes(0, bytes) };
            return Self { start, capacity: bytes, bytes, slot: Some(slot) };
        }
        let layout = layout(bytes);
        // SAFETY: the size of the layout is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, capacity: bytes, bytes, slot: None }
    }

    /// Shows the first `bytes` only. The rest stays allocated.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn truncate(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "{} bytes cannot be cut to {bytes}", self.bytes);
        self.bytes = bytes;
    }

    /// The same memory, shared and without a copy.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// How memory for `capacity` bytes is allocated. The allocator does not take a size of 0.
fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity.max(1), BLOCK_BYTES).expect("a length in the address space")
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.slot.is_none() {
            // SAFETY: it was allocated with this layout and is owned by this value alone (A1).
            unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
        }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `bytes <= capacity` (A2) bytes from `start` are initialised and live as long as this value (A1), and
        // who writes to them has borrowed it exclusively.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and this value is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for AlignedBytes {
    /// A copy, for files that are somewhere else than on a device.
    fn from(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl std::fmt::Debug for AlignedBytes {
    /// The contents may be user data, and are long.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_aligned_zeroed_and_as_long_as_asked() {
        for count in [0, 1, 4095, 4096, 4097, 3 << 20] {
            let bytes = AlignedBytes::zeroed(count);
            assert_eq!((bytes.len(), bytes.as_ptr() as usize % BLOCK_BYTES), (count, 0));
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn what_is_written_moves_along_and_is_shared_without_a_copy() {
        let mut bytes = AlignedBytes::from(&b"0123456789"[..]);
        bytes[0] = b'x';
        bytes.truncate(4);
        let address = bytes.as_ptr();
        let boxed = Box::new(bytes);
        let shared = boxed.into_bytes();
        let slice = std::thread::scope(|scope| scope.spawn(|| shared.slice(1..)).join().expect("no panic"));
        assert_eq!((&shared[..], &slice[..]), (&b"x123"[..], &b"123"[..]));
        assert_eq!(shared.as_ptr(), address);
        drop(shared);
        assert_eq!(slice, &b"123"[..], "a slice keeps the memory");
    }

    #[test]
    #[should_panic(expected = "4 bytes cannot be cut to 5")]
    fn bytes_are_not_cut_to_more() {
        AlignedBytes::zeroed(4).truncate(5);
    }
}
