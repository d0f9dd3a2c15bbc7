//! Names of what is received, and side files that are there as a whole or not at all.
//!
//! **Contract.** A side file is written under another name, synced, renamed, and its directory synced: whoever finds the name finds all of
//! the file. Calls run one operation at a time on an [`Io`] that has nothing else in flight.
//!
//! **Does not know** what the files say.
use super::Place;
use super::manifest::SegmentEntry;
use super::planted;
use crate::base::ids::SegmentId;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::files::{Files, ReadFile};
use crate::io::{Durability, FileId, Io, IoErrorKind, Open, Operation, Outcome};
use crate::segment::{self, SegmentKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything is received, and durable.
pub(super) const READY: &str = "incoming.ready";
/// The same, and nothing of the old state is left.
pub(super) const CLEARED: &str = "incoming.cleared";
/// The decision.
pub(super) const INSTALL: &str = "install";
/// Side files that are not finished.
pub(super) const READY_PART: &str = "incoming.part";
/// See [`READY_PART`].
pub(super) const INSTALL_PART: &str = "install.part";

/// What the caller may leave itself, in bytes.
pub const NOTE_BYTES_MAX: usize = 1 << 20;
/// No side file is longer: a manifest and a note.
const SIDE_FILE_BYTES_MAX: usize = super::manifest::BYTES_MAX + NOTE_BYTES_MAX + (64 << 10);

/// In front of a segment's own name.
const PREFIX: &str = "incoming-";
/// Behind the name of one that is being received.
const PART: &str = ".part";

/// Where a segment waits that was received.
pub(super) fn staged_path(id: SegmentId, kind: SegmentKind) -> PathBuf {
    let path = segment::path(id, kind);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.with_file_name(format!("{PREFIX}{name}"))
}

/// Where one is that is being received.
pub(super) fn part_path(entry: &SegmentEntry) -> PathBuf {
    let mut path = staged_path(entry.id, entry.kind()).into_os_string();
    path.push(PART);
    path.into()
}

/// What a name in the directory of segments says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name {
    /// A segment of a state that is in place.
    Own(SegmentId, SegmentKind),
    /// A segment that was received.
    Staged(SegmentId, SegmentKind),
    /// Of this module, and not finished.
    Part,
    /// Not ours.
    Other,
}

pub(super) fn classify(name: &str) -> Name {
    if let Some((id, kind)) = segment::parse_name(name) {
        return Name::Own(id, kind);
    }
    match name.strip_prefix(PREFIX) {
        None => Name::Other,
        Some(staged) => match segment::parse_name(staged) {
            Some((id, kind)) => Name::Staged(id, kind),
            None => Name::Part,
        },
    }
}

/// The segment that an error names, under its own name or a staged one.
pub(super) fn segment_named(file: &str) -> Option<(SegmentId, SegmentKind)> {
    let name = file.strip_prefix(segment::DIRECTORY)?.strip_prefix('/')?;
    match classify(name.strip_suffix(PART).unwrap_or(name)) {
        Name::Own(id, kind) | Name::Staged(id, kind) => Some((id, kind)),
        Name::Part | Name::Other => None,
    }
}

/// Names of the files in a directory; none if there is no such directory.
pub(super) fn list(io: &mut dyn Io, directory: &str) -> Result<Vec<String>> {
    match run(io, Operation::List { path: directory.into() }) {
        Ok((Outcome::Names(names), _)) => Ok(names),
        Ok(_) => unreachable!("a listing gives names"),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file; true if it was there.
pub(super) fn remove(io: &mut dyn Io, path: impl Into<PathBuf>) -> Result<bool> {
    match run(io, Operation::Retire { path: path.into() }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind == IoErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in a directory durable; the empty name is the root.
pub(super) fn sync_directory(io: &mut dyn Io, directory: &str) -> Result<()> {
    run(io, Operation::SyncDirectory { path: directory.into() })?;
    Ok(())
}

pub(super) fn open(io: &mut dyn Io, path: &Path, open: Open) -> Result<FileId> {
    match run(io, Operation::Open { path: path.to_path_buf(), open })?.0 {
        Outcome::Opened(file) => Ok(file),
        _ => unreachable!("opening a file gives a file"),
    }
}

/// Writes a side file, zeros behind it up to a whole block; durable with its name when it returns.
pub(super) fn write_side_file(
    place: &Place,
    io: &mut dyn Io,
    part: &str,
    name: &str,
    bytes: &[u8],
) -> Result<()> {
    remove(io, part)?;
    let file = open(io, Path::new(part), Open::CreateNew)?;
    let written = bytes.chunks(1 << 20).zip(0_u64..).try_for_each(|(piece, number)| {
        let mut buffer = io.buffer(piece.len().next_multiple_of(BLOCK_BYTES));
        buffer[..piece.len()].copy_from_slice(piece);
        let write = Operation::Write { file, offset: number << 20, buffer, durability: Durability::None };
        run(io, write).map(|(_, buffer)| buffer.into_iter().for_each(|buffer| io.recycle(buffer)))
    });
    let synced = written.and_then(|()| run(io, Operation::Sync { file }).map(drop));
    run(io, Operation::Close { file })?;
    synced?;
    run(io, Operation::Rename { from: part.into(), to: name.into() })?;
    if name == INSTALL && planted!(place, ClearBeforeDecision) {
        return Ok(());
    }
    sync_directory(io, "")
}

/// Reads a side file, with what stands behind it; none if there is none.
///
/// # Errors
/// [`Error::Corruption`] if it is longer than any is.
pub(super) fn read_side_file(files: &dyn Files, name: &str) -> Result<Option<Vec<u8>>> {
    const PIECE_BYTES: usize = 1 << 20;
    let file = match files.open(Path::new(name)) {
        Err(error) if error.kind == IoErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    loop {
        let piece = file.read(bytes.len() as u64, PIECE_BYTES)?;
        bytes.extend_from_slice(&piece);
        if bytes.len() > SIDE_FILE_BYTES_MAX {
            let what = format!("at most {SIDE_FILE_BYTES_MAX} bytes expected, it is longer");
            return Err(Error::Corruption { file: name.into(), offset: 0, what });
        }
        if piece.len() < PIECE_BYTES {
            return Ok(Some(bytes));
        }
    }
}

/// The files of a directory, with segments that were received in the place of its own.
pub(super) struct StagedFiles(pub(super) Arc<dyn Files>);

impl Files for StagedFiles {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, crate::io::IoError> {
        match path.to_str().and_then(segment::parse_path) {
            Some((id, kind)) => self.0.open(&staged_path(id, kind)),
            None => self.0.open(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_name_is_told_from_a_segments_own_and_from_what_is_not_ours() {
        let (id, kind) = (SegmentId(12), SegmentKind::Pages);
        assert_eq!(staged_path(id, kind), PathBuf::from("seg/incoming-00000012.k"));
        assert_eq!(classify("incoming-00000012.k"), Name::Staged(id, kind));
        assert_eq!(classify("00000012.k"), Name::Own(id, kind));
        for part in ["incoming-00000012.k.part", "incoming-12.k", "incoming-"] {
            assert_eq!(classify(part), Name::Part);
        }
        for other in ["", "notes", "12.k", "00000012.k.part"] {
            assert_eq!(classify(other), Name::Other);
        }
        for file in ["seg/00000012.k", "seg/incoming-00000012.k", "seg/incoming-00000012.k.part"] {
            assert_eq!(segment_named(file), Some((id, kind)));
        }
        assert_eq!(segment_named("super"), None);
    }
}
