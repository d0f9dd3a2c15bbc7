//! The source's side: a state that is kept as it is while it is sent.
//!
//! **Contract.** [`StateHolder::hold`] gives the newest durable state, from any thread, while its member goes on. As long as a
//! [`HeldState`] lives, no segment loses its name: those that newer checkpoints do without cost space until then.
//!
//! **Failure.** What is read here is not verified: the receiver verifies every byte, and refuses what is damaged. It may ask somebody else
//! then.
//!
//! **Does not know** who asks, and how fast.
use super::manifest::{Manifest, SegmentEntry};
use crate::disk_state::{NamesKept, Shelf, segments_of};
use crate::error::{Error, Result};
use crate::io::disk::BLOCK_BYTES;
use crate::io::files::Files;
use crate::segment::{self, SegmentKind};
use crate::superblock::SharedSuperblock;
use std::sync::Arc;

/// Most bytes of one [`HeldState::read`].
pub const READ_BYTES_MAX: usize = 8 << 20;

/// Holds states of one open directory; cheap to clone, for any thread. Made by [`crate::checkpoint::Checkpointer::state_holder`].
#[derive(Clone)]
pub struct StateHolder {
    shelf: Arc<Shelf>,
    superblock: Arc<SharedSuperblock>,
    files: Arc<dyn Files>,
}

impl StateHolder {
    pub(crate) fn new(shelf: Arc<Shelf>, superblock: Arc<SharedSuperblock>, files: Arc<dyn Files>) -> Self {
        Self { shelf, superblock, files }
    }

    /// Index and term of the last entry that the newest durable state holds; zeros before the first.
    pub fn applied(&self) -> (u64, u64) {
        let superblock = self.superblock.read();
        (superblock.applied_index, superblock.applied_term)
    }

    /// Keeps the names of segments from now on.
    pub(crate) fn keep_names(&self) -> NamesKept {
        self.shelf.names.keep()
    }

    /// The newest durable state; none before the first checkpoint. Reads the segment table.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn hold(&self) -> Result<Option<HeldState>> {
        // The names before the superblock: see the module of the kept names.
        let names = self.shelf.names.keep();
        let superblock = self.superblock.read();
        if !superblock.has_checkpoint() {
            return Ok(None);
        }
        let (revisions, pages) = segments_of(&self.shelf, superblock.roots.segments)?;
        let mut files = Vec::with_capacity(revisions.len() + pages.len());
        for summary in revisions {
            files.push(SegmentEntry { id: summary.id, bytes: summary.file_bytes, summary: Some(summary) });
        }
        for id in pages {
            let bytes = self.files.open(&segment::path(id, SegmentKind::Pages))?.length()?;
            files.push(SegmentEntry { id, bytes, summary: None });
        }
        let manifest = Manifest::new(&superblock, files);
        Ok(Some(HeldState { files: self.files.clone(), manifest, _names: names }))
    }
}

/// A durable state whose files stay. See the module.
pub struct HeldState {
    files: Arc<dyn Files>,
    manifest: Manifest,
    _names: NamesKept,
}

impl HeldState {
    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// At most `bytes_max` bytes, and at most [`READ_BYTES_MAX`], of a segment from `offset` on, which is a multiple of 4 KiB. Fewer than
    /// that, rounded down to a multiple of 4 KiB and at least one, only at the end of the segment; none behind it. As they are on disk.
    ///
    /// # Errors
    /// [`Error::Refused`] for a segment or offset that is none, [`Error::Corruption`] if the file is shorter than it was, and what the
    /// device reports.
    pub fn read(&self, file: usize, offset: u64, bytes_max: usize) -> Result<Vec<u8>> {
        let block = BLOCK_BYTES as u64;
        let entry =
            self.manifest.files.get(file).filter(|_| offset.is_multiple_of(block)).ok_or_else(|| {
                Error::Refused(format!(
                    "offset {offset} of segment {file} of {} is not to be read",
                    self.manifest.files.len()
                ))
            })?;
        let left = usize::try_from(entry.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = (bytes_max.min(READ_BYTES_MAX) / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        let wanted = wanted.min(left);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let path = entry.path();
        let bytes = self.files.open(&path)?.read(offset, wanted.next_multiple_of(BLOCK_BYTES))?;
        if bytes.len() < wanted {
            return Err(Error::Corruption {
                file: path.display().to_string(),
                offset,
                what: format!("{wanted} bytes expected, the file ends after {}", bytes.len()),
            });
        }
        Ok(bytes[..wanted].to_vec())
    }
}
