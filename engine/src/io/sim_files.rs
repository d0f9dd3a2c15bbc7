//! [`Files`] of the simulated disk. Feature `sim`.
//!
//! **Contract.** A read sees what a reader sees at that moment: completed writes, damage included. It takes no simulated
//! time and is no step, so that a test may read as much as it likes and the power cuts stay where they were. The plan of
//! faults counts each open and each read; `Fail`, `NoSpace` and `RottenRead` do what they say, a `Stall` takes no time. Blocks
//! that the device has lost are not given.
//! A stopped device refuses both.
//!
//! **Does not know** of owners and completions: any thread may read, as on a real disk.
use super::aligned_bytes::AlignedBytes;
use super::disk::{IoError, IoErrorKind};
use super::fault_plan::Effect;
use super::files::{Files, ReadFile, bytes_behind, check_read, length_phrase, open_phrase, read_phrase};
use super::sim_disk::SimDisk;
use std::path::Path;
use std::sync::Arc;

/// What an open or read does instead of succeeding.
pub(super) type Refusal = (IoErrorKind, &'static str);

/// A file of the simulated disk, open until dropped.
struct SimFile {
    disk: SimDisk,
    /// Its entry in the table of open files.
    id: u32,
    path: String,
}

impl Files for SimDisk {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        match self.open_to_read(path) {
            Ok(id) => Ok(Arc::new(SimFile { disk: self.clone(), id, path: path.display().to_string() })),
            Err(refusal) => Err(error(open_phrase(path), refusal)),
        }
    }
}

impl ReadFile for SimFile {
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError> {
        check_read(offset, bytes);
        let (content, effect) = self
            .disk
            .content_to_read(self.id, offset..offset + bytes as u64)
            .map_err(|refusal| error(read_phrase(offset, bytes, &self.path), refusal))?;
        let mut buffer = AlignedBytes::zeroed(bytes.min(bytes_behind(content.length, offset)));
        let count = content.read(offset, &mut buffer);
        buffer.truncate(count);
        if let Some(Effect::RottenRead { byte, bit }) = effect
            && count > 0
        {
            buffer[byte % count] ^= 1 << (bit % 8);
        }
        Ok(buffer)
    }

    fn length(&self) -> Result<u64, IoError> {
        let content = self.disk.content_to_read(self.id, 0..0);
        content
            .map(|(content, _)| content.length)
            .map_err(|refusal| error(length_phrase(&self.path), refusal))
    }

    fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.close_read(self.id);
    }
}

fn error(what: String, (kind, cause): Refusal) -> IoError {
    IoError { kind, what, cause: cause.to_string() }
}
