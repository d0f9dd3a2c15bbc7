//! Aligned slabs from anonymous maps, and their pool.

/// Placeholder shape: an aligned, zeroed, owned byte buffer. Derefs to its first `len` bytes; an operation reads
/// or writes exactly those.
#[derive(Debug)]
pub struct IoBuffer {
    bytes: Vec<u8>,
    len: usize,
}

impl IoBuffer {
    /// A zeroed buffer that shows all of its `bytes`.
    pub fn zeroed(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], len: bytes }
    }

    /// How many bytes the buffer can show.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Shows the first `bytes` only, or more again; the content stays. The log fills a large slab and writes the
    /// part it used.
    ///
    /// # Panics
    /// If `bytes` is above the capacity.
    pub fn set_len(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes.len(), "a buffer of {} shows no {bytes} bytes", self.bytes.len());
        self.len = bytes;
    }
}

impl std::ops::Deref for IoBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::ops::DerefMut for IoBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}
