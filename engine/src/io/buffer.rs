//! Aligned slabs from anonymous maps, and their pool.
//!
//! **Contract.** An [`IoBuffer`] starts at a page boundary, as direct I/O wants it, is owned by one holder at a time,
//! and moves with its operation to the device and back. Its bytes never move in memory while it lives, whoever holds
//! it: a kernel may be writing there. A [`BufferPool`] keeps returned buffers up to a bound in bytes and gives back to
//! the system what exceeds it.
//!
//! **Why maps and not `Vec`.** A `Vec` has the alignment of its element; the allocator's aligned memory needs unsafe
//! code to own. An anonymous map is aligned, comes zeroed, costs memory only where it was touched, and is memmap2's.
//!
//! **Does not know** who reads or writes the bytes.
use super::disk::BLOCK_BYTES;
use memmap2::MmapMut;
use std::collections::BTreeMap;

/// A page-aligned, owned buffer. Derefs to its first `len` bytes; an operation reads or writes exactly those.
pub struct IoBuffer {
    /// At least one page. Its address is stable: moving the `IoBuffer` moves the handle.
    map: MmapMut,
    /// What was asked for; at most the map's length.
    capacity: usize,
    /// Length as seen by users; at most `capacity`.
    bytes: usize,
}

impl IoBuffer {
    /// A zeroed buffer of `bytes`.
    ///
    /// # Panics
    /// If the system has no memory left for it, as any allocation does.
    pub fn zeroed(bytes: usize) -> Self {
        let map = MmapMut::map_anon(capacity_class(bytes)).unwrap_or_else(|error| {
            panic!("an I/O buffer of {bytes} bytes cannot be had from the system: {error}")
        });
        Self { map, capacity: bytes, bytes }
    }

    /// How many bytes were asked for: the most that the buffer can show.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shows the first `bytes` only, or more again; the content stays. The log fills a large slab and writes the
    /// part it used.
    ///
    /// # Panics
    /// If `bytes` is above the capacity.
    pub fn set_len(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity, "a buffer of {} shows no {bytes} bytes", self.capacity);
        self.bytes = bytes;
    }
}

impl std::ops::Deref for IoBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[..self.bytes]
    }
}

impl std::ops::DerefMut for IoBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.bytes]
    }
}

impl std::fmt::Debug for IoBuffer {
    /// The contents may be user data, and are long.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuffer({} bytes)", self.bytes)
    }
}

/// Buffers come in powers of two, so that a returned one fits the next request of about its size. Untouched pages
/// cost nothing.
fn capacity_class(bytes: usize) -> usize {
    bytes.next_power_of_two().max(BLOCK_BYTES)
}

/// Buffers that wait for their next use.
pub struct BufferPool {
    /// By capacity.
    free: BTreeMap<usize, Vec<IoBuffer>>,
    /// Sum of the capacities in `free`, at most `bytes_max`.
    bytes: usize,
    bytes_max: usize,
}

impl BufferPool {
    /// Bound of the pool of each backend: 16 groups of the largest size (1 MiB).
    pub const BYTES_MAX_DEFAULT: usize = 16 << 20;

    /// An empty pool that keeps at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { free: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// A zeroed buffer of `bytes`.
    pub fn take(&mut self, bytes: usize) -> IoBuffer {
        let capacity = capacity_class(bytes);
        let Some(mut buffer) = self.free.get_mut(&capacity).and_then(Vec::pop) else {
            return IoBuffer::zeroed(bytes);
        };
        self.bytes -= capacity;
        (buffer.capacity, buffer.bytes) = (bytes, bytes);
        buffer.fill(0);
        buffer
    }

    /// Keeps a buffer for later, or gives it back to the system if the pool is full.
    pub fn put(&mut self, buffer: IoBuffer) {
        let capacity = buffer.map.len();
        if self.bytes + capacity <= self.bytes_max {
            self.bytes += capacity;
            self.free.entry(capacity).or_default().push(buffer);
        }
    }
}

impl Default for BufferPool {
    fn default() -> Self {
        Self::new(Self::BYTES_MAX_DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_as_long_as_asked() {
        for bytes in [0, 1, 4096, 4097, 3 * 4096, 1 << 20] {
            let buffer = IoBuffer::zeroed(bytes);
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.as_ptr() as usize % BLOCK_BYTES, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_pool_gives_a_buffer_again_zeroed_and_keeps_no_more_than_its_bound() {
        let mut pool = BufferPool::new(16384);
        let mut buffer = pool.take(8192);
        buffer.fill(7);
        buffer.set_len(4096);
        assert_eq!(buffer.len(), 4096);
        let address = buffer.as_ptr();
        pool.put(buffer);
        let buffer = pool.take(5000);
        assert_eq!(buffer.as_ptr(), address, "same class, same buffer");
        assert_eq!((buffer.len(), buffer.iter().all(|byte| *byte == 0)), (5000, true));
        for _ in 0..3 {
            pool.put(IoBuffer::zeroed(8192));
        }
        assert_eq!(pool.bytes, 16384);
    }
}
