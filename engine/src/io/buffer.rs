//! Aligned slabs from anonymous maps, and their pool.

/// Placeholder shape: an aligned, zeroed, owned byte buffer. Derefs to `[u8]`.
#[derive(Debug)]
pub struct IoBuffer {
    bytes: Vec<u8>,
}

impl IoBuffer {
    /// A zeroed buffer.
    pub fn zeroed(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes] }
    }
}

impl std::ops::Deref for IoBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for IoBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
