//! The receiver's side: segments arrive one after the other and wait beside what the directory has.
//!
//! **States of a segment**: *missing* → *being received* (`.part`, from [`Staging::start`] on) → *present* (verified, synced, renamed by
//! [`Staging::finish`]). A part that a crash or an error has left is removed; what is present stays, over starts too.
//!
//! **What is verified.** An r segment as a whole, by what the manifest says of it, before it is present. A k segment cannot say itself whether
//! it is right: the checksums of its pages are in other pages, up to the roots in the manifest. So its first block is looked at when it has
//! arrived, and all pages of all trees in [`Staging::complete`], once, when they are there.
//!
//! **Kept from an earlier attempt** is a segment of the same database with the same number, kind and length, an r segment if its trailer is
//! the one meant too. Two members whose state has a common origin count on from there each, so a k segment may be another one in spite
//! of that: then its pages do not verify, it is removed, and is missing again.
//!
//! **Bound.** One [`Staging`] of a directory at a time, the caller's to see to, and in it one segment; what is held in memory of that is 128 KiB.
//!
//! **Does not know** where the bytes come from, and what the directory holds beside.
use super::install::{Ready, refuse_install, withdraw};
use super::manifest::{Manifest, SegmentEntry};
use super::names::{
    self, NOTE_BYTES_MAX, Name, READY, READY_PART, StagedFiles, list, open, part_path, remove, staged_path,
    sync_directory, write_side_file,
};
use super::{Place, planted};
use crate::cache::Cache;
use crate::disk_state::{DiskState, SegmentFile, Shelf, ShelfOptions};
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::files::{Files, ReadFile};
use crate::io::{Durability, FileId, Io, IoBuffer, Open, Operation};
use crate::revision_log::RevisionSegment;
use crate::segment::{self, SegmentKind, check_header};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is written at once. Less than what a checkpoint writes at once, since nobody waits for a state as long as for that.
const CHUNK_BYTES: usize = 128 << 10;
/// After so many bytes they are made durable: who writes the log meanwhile, here or on the same device, does not wait for more.
const SYNC_BYTES: u64 = 1 << 20;
/// Pages of the segment table in memory while the state is opened.
const CACHE_BYTES: usize = 8 << 20;

/// See the module.
pub struct Staging {
    place: Place,
    io: Box<dyn Io>,
    files: Arc<dyn Files>,
    manifest: Manifest,
    /// Numbers in the manifest.
    numbers: BTreeMap<SegmentFile, usize>,
    /// By number in the manifest.
    present: Vec<bool>,
    part: Option<Part>,
}

/// The segment that is being received.
struct Part {
    index: usize,
    path: PathBuf,
    file: FileId,
    /// Filled with `filled` bytes; none after a write that failed.
    buffer: Option<IoBuffer>,
    filled: usize,
    /// Bytes in the file.
    written: u64,
    /// Those of them that no sync has covered.
    unsynced: u64,
}

impl Staging {
    /// Begins to receive a state, or goes on where an earlier attempt has ended, whatever that was for: what fits is kept, everything
    /// else that was staged is removed. A state that was [`complete`](Self::complete) is not any more.
    ///
    /// # Errors
    /// [`Error::Refused`] while a state is being installed, or if the manifest cannot be one; what the device reports.
    pub fn begin(place: &Place, manifest: Manifest) -> Result<Self> {
        let (mut io, files) = (place.open_io()?, place.files()?);
        refuse_install(&mut *io)?;
        manifest.check().map_err(|what| Error::Refused(format!("the manifest of a state: {what}")))?;
        withdraw(&mut *io)?;
        run(&mut *io, Operation::CreateDirectory { path: segment::DIRECTORY.into() })?;
        sync_directory(&mut *io, "")?;
        let numbered = manifest.files.iter().enumerate();
        let numbers: BTreeMap<_, _> =
            numbered.map(|(index, entry)| ((entry.id, entry.kind()), index)).collect();
        let mut present = vec![false; manifest.files.len()];
        for name in list(&mut *io, segment::DIRECTORY)? {
            let path = Path::new(segment::DIRECTORY).join(&name);
            let index = match names::classify(&name) {
                Name::Own(..) | Name::Other => continue,
                Name::Part => None,
                Name::Staged(id, kind) => numbers.get(&(id, kind)).copied(),
            };
            match index {
                Some(index) if fits(&*files, &path, &manifest.files[index], manifest.database)? => {
                    present[index] = true;
                }
                _ => drop(remove(&mut *io, path)?),
            }
        }
        Ok(Self { place: place.clone(), io, files, manifest, numbers, present, part: None })
    }

    /// What is received.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Numbers, in the manifest's list, of the segments that are not present.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.present.len()).filter(|&index| !self.present[index]).collect()
    }

    /// Bytes of these; what has arrived of the one that is being received counts as missing.
    pub fn bytes_missing(&self) -> u64 {
        self.missing().into_iter().map(|index| self.manifest.files[index].bytes).sum()
    }

    /// Begins to receive segment `index`, from its first byte on. One that was begun and not finished is given up.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no such segment, or it is present; what the device reports.
    pub fn start(&mut self, index: usize) -> Result<()> {
        self.give_up();
        if self.present.get(index) != Some(&false) {
            return Err(Error::Refused(format!("segment {index} of the state is not missing")));
        }
        let path = part_path(&self.manifest.files[index]);
        remove(&mut *self.io, &path)?;
        let file = open(&mut *self.io, &path, Open::CreateNew)?;
        let buffer = Some(self.io.buffer(CHUNK_BYTES));
        self.part = Some(Part { index, path, file, buffer, filled: 0, written: 0, unsynced: 0 });
        Ok(())
    }

    /// Adds bytes of the segment that was begun.
    ///
    /// # Errors
    /// [`Error::Refused`] if none was; [`Error::Corruption`] if these are more than it has; what the device reports. The segment is given
    /// up then, and missing.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.append(bytes);
        if written.is_err() {
            self.give_up();
        }
        written
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        let part = self.part.as_mut().ok_or_else(no_part)?;
        let entry = &self.manifest.files[part.index];
        let room = entry.bytes - part.written - part.filled as u64;
        if bytes.len() as u64 > room {
            return Err(Error::Corruption {
                file: part.path.display().to_string(),
                offset: part.written + part.filled as u64,
                what: format!("{room} bytes up to its end expected, {} arrived", bytes.len()),
            });
        }
        while !bytes.is_empty() {
            let buffer = part.buffer.as_mut().ok_or_else(no_part)?;
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - part.filled));
            buffer[part.filled..part.filled + now.len()].copy_from_slice(now);
            part.filled += now.len();
            bytes = later;
            if part.filled == CHUNK_BYTES {
                part.flush(&mut *self.io)?;
            }
        }
        Ok(())
    }

    /// Verifies the segment that was begun, as far as it can be verified alone, and makes it present.
    ///
    /// # Errors
    /// [`Error::Refused`] if none was begun; [`Error::Corruption`] if it is not what it should be; what the device reports. The segment is
    /// removed then, and missing.
    pub fn finish(&mut self) -> Result<()> {
        let finished = self.seal();
        if finished.is_err() {
            self.give_up();
        }
        finished
    }

    fn seal(&mut self) -> Result<()> {
        let part = self.part.as_mut().ok_or_else(no_part)?;
        let entry = &self.manifest.files[part.index];
        let bytes = part.written + part.filled as u64;
        if bytes != entry.bytes {
            return Err(Error::Corruption {
                file: part.path.display().to_string(),
                offset: bytes,
                what: format!("{} bytes expected, it ends here", entry.bytes),
            });
        }
        if part.filled > 0 {
            part.flush(&mut *self.io)?;
        }
        let sync = !planted!(self.place, RenameBeforeSync);
        if sync {
            run(&mut *self.io, Operation::Sync { file: part.file })?;
        }
        verify(&*self.files, &part.path, entry, self.manifest.database)?;
        let to = staged_path(entry.id, entry.kind());
        run(&mut *self.io, Operation::Rename { from: part.path.clone(), to })?;
        self.present[part.index] = true;
        self.close_part()
    }

    fn close_part(&mut self) -> Result<()> {
        let Some(mut part) = self.part.take() else { return Ok(()) };
        if let Some(buffer) = part.buffer.take() {
            self.io.recycle(buffer);
        }
        run(&mut *self.io, Operation::Close { file: part.file })?;
        Ok(())
    }

    /// Closes and removes what is being received, as far as the device lets us: the next attempt removes it too.
    fn give_up(&mut self) {
        if let Some(path) = self.part.as_ref().map(|part| part.path.clone()) {
            let _ = self.close_part();
            let _ = remove(&mut *self.io, path);
        }
    }

    /// When nothing is missing: verifies what needs all segments, makes everything durable and then says so, durably: from now on
    /// [`super::staged`] finds the state, with `note`, and [`super::begin_install`] may take it for member `member_id`.
    ///
    /// # Errors
    /// [`Error::Corruption`] if a page is damaged: its segment is removed, and missing again. It was sent so, or the source's is damaged; whoever
    /// gets the same error again should ask another member. [`Error::Refused`] if something is missing, the manifest does not list what
    /// the state refers to, or `note` has more than [`NOTE_BYTES_MAX`] bytes. What the device reports.
    pub fn complete(&mut self, member_id: u64, note: &[u8]) -> Result<()> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(Error::Refused(format!(
                "a note has at most {NOTE_BYTES_MAX} bytes, this one has {}",
                note.len()
            )));
        }
        self.give_up();
        withdraw(&mut *self.io)?;
        if let Some(index) = self.missing().first() {
            let path = self.manifest.files[*index].path();
            return Err(Error::Refused(format!("the state is not whole: {} is missing", path.display())));
        }
        if let Err(error) = self.verify_whole() {
            return Err(self.remove_damaged(error));
        }
        if !planted!(self.place, ReadyBeforeNames) {
            sync_directory(&mut *self.io, segment::DIRECTORY)?;
        }
        let ready = Ready::new(self.manifest.clone(), member_id, note.to_vec()).encode()?;
        write_side_file(&self.place, &mut *self.io, READY_PART, READY, &ready)
    }

    /// The state that the segments make up, and all of its pages.
    fn verify_whole(&self) -> Result<()> {
        let manifest = &self.manifest;
        let options = ShelfOptions { cache_bytes: CACHE_BYTES, ..ShelfOptions::default() };
        let files = Arc::new(StagedFiles(self.files.clone()));
        let shelf = Shelf::new(files, manifest.database, options);
        let state = DiskState::open(shelf, manifest.roots, manifest.positions())?;
        let summaries = state.revisions.iter().map(|file| file.info.summary);
        let revisions = summaries.map(|it| (it.id, SegmentKind::Revisions, Some(it)));
        let pages = state.pages.keys().map(|&id| (id, SegmentKind::Pages, None));
        for (id, kind, summary) in revisions.chain(pages) {
            let listed = self.numbers.get(&(id, kind)).map(|&index| manifest.files[index].summary);
            if listed != Some(summary) {
                let path = segment::path(id, kind);
                return Err(Error::Refused(format!("the manifest lists no {} like this", path.display())));
            }
        }
        if planted!(self.place, SkipPages) { Ok(()) } else { state.verify_pages() }
    }

    /// What is damaged is missing again.
    fn remove_damaged(&mut self, error: Error) -> Error {
        let Error::Corruption { file, .. } = &error else { return error };
        let Some(segment) = names::segment_named(file) else { return error };
        if let Some(&index) = self.numbers.get(&segment)
            && remove(&mut *self.io, staged_path(segment.0, segment.1)).is_ok()
        {
            self.present[index] = false;
        }
        error
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Part {
    /// Writes what is in the buffer, whole blocks: nothing but the end of the file may be less, and a segment has whole blocks.
    fn flush(&mut self, io: &mut dyn Io) -> Result<()> {
        let mut buffer = self.buffer.take().ok_or_else(no_part)?;
        buffer.set_len(self.filled.next_multiple_of(BLOCK_BYTES));
        let (file, offset, durability) = (self.file, self.written, Durability::None);
        let (_, buffer) = run(io, Operation::Write { file, offset, buffer, durability })?;
        self.buffer = buffer.map(|mut buffer| {
            buffer.set_len(CHUNK_BYTES);
            buffer
        });
        self.written += self.filled as u64;
        self.unsynced += self.filled as u64;
        self.filled = 0;
        if self.unsynced >= SYNC_BYTES {
            run(io, Operation::Sync { file: self.file })?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

fn no_part() -> Error {
    Error::Refused("no segment is being received".into())
}

/// True if the file is the one meant, as far as a look at its ends tells.
fn fits(files: &dyn Files, path: &Path, entry: &SegmentEntry, database: [u8; 16]) -> Result<bool> {
    let file = files.open(path)?;
    if file.length()? != entry.bytes {
        return Ok(false);
    }
    let looked = check_header(&*file, entry.id, entry.kind(), database).and_then(|()| match entry.summary {
        Some(summary) => RevisionSegment::over(file, Cache::new(0), database, summary).check_trailer(),
        None => Ok(()),
    });
    match looked {
        Ok(()) => Ok(true),
        Err(Error::Corruption { .. } | Error::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Verifies a segment as far as it can be verified alone.
fn verify(files: &dyn Files, path: &Path, entry: &SegmentEntry, database: [u8; 16]) -> Result<()> {
    let file: Arc<dyn ReadFile> = files.open(path)?;
    match entry.summary {
        Some(summary) => {
            RevisionSegment::over(file, Cache::new(0), database, summary).verify(&mut |_| {}).map(drop)
        }
        None => check_header(&*file, entry.id, entry.kind(), database),
    }
}
