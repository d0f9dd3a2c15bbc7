//! The directory that is salvaged: read in whatever state it is, never written.
//!
//! A block that the device does not give counts as zeros, which verify as nothing: one unreadable sector is one damaged
//! unit and not the end of the file.
use crate::error::Result;
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Files, Io, IoErrorKind, Operation, Outcome, ReadFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one read.
const CHUNK_BYTES: usize = 1 << 20;
/// A read that fails is made so often; as in `segment.rs`.
const READ_ATTEMPTS: u32 = 3;
/// So many unreadable bytes in a row end a file whose length is not known.
const UNREADABLE_BYTES_MAX: usize = 64 << 20;

/// See the module.
pub(super) struct Source<'a> {
    /// Lists directories and reads the superblock; nothing else is asked of it.
    pub(super) io: &'a mut dyn Io,
    pub(super) files: Arc<dyn Files>,
}

impl Source<'_> {
    /// Names in a directory, sorted; none if there is no such directory.
    pub(super) fn list(&mut self, directory: &str) -> Result<Vec<String>> {
        match run(self.io, Operation::List { path: PathBuf::from(directory) }) {
            Ok((Outcome::Names(mut names), _)) => {
                names.sort();
                Ok(names)
            }
            Ok(_) => unreachable!("a listing gives names"),
            Err(error) if error.kind == IoErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// All bytes of a file; none if there is no such file, or it cannot be opened.
    pub(super) fn load(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let file = self.files.open(path.as_ref()).ok()?;
        let (mut bytes, mut unreadable) = (Vec::new(), 0);
        loop {
            let offset = bytes.len() as u64;
            // Block by block where the whole cannot be read.
            match read(&*file, offset, CHUNK_BYTES).or_else(|| read(&*file, offset, BLOCK_BYTES)) {
                Some(read) if read.is_empty() => break,
                Some(read) => {
                    bytes.extend_from_slice(&read);
                    unreadable = 0;
                    // Only the end of a file is no whole block.
                    if !read.len().is_multiple_of(BLOCK_BYTES) {
                        break;
                    }
                }
                None if unreadable >= UNREADABLE_BYTES_MAX => break,
                None => {
                    bytes.resize(bytes.len() + BLOCK_BYTES, 0);
                    unreadable += BLOCK_BYTES;
                }
            }
        }
        bytes.truncate(bytes.len() - unreadable);
        Some(bytes)
    }

    /// These bytes, a multiple of a block at a multiple of a block.
    pub(super) fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let file = self.files.open(path)?;
        let mut result = file.read(offset, bytes);
        for _ in 1..READ_ATTEMPTS {
            if result.is_ok() {
                break;
            }
            result = file.read(offset, bytes);
        }
        Ok(result?.to_vec())
    }
}

fn read(file: &dyn ReadFile, offset: u64, bytes: usize) -> Option<Vec<u8>> {
    (0..READ_ATTEMPTS).find_map(|_| file.read(offset, bytes).ok()).map(|bytes| bytes.to_vec())
}
