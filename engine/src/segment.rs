//! What every file in `seg/` has in common: its name, its first block, and how it is written and read.
//!
//! **Contract.** A segment is written once, front to back, by a [`SegmentWriter`]; sealed by a sync; from then on it only
//! is read, from any thread, and in the end unlinked. Its id is never used for another file, so what was read of it is true
//! for ever: caches need no invalidation, and a block is never overwritten.
//!
//! **Layout.** `seg/NNNNNNNN.r` holds revision records, `seg/NNNNNNNN.k` pages of trees; N is the id, in decimal, of eight
//! digits at least. A file is a whole number of blocks of 4 KiB. The first block, little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `STRNSEGM` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 1 | kind: 1 revision records, 2 pages |
//! | 13 | 3 | zero |
//! | 16 | 16 | the database |
//! | 32 | 4 | the id |
//! | 36 | 4 | zero |
//! | 40 | 8 | sequence of the checkpoint that wrote the file |
//! | 48 | 4044 | zero |
//! | 4092 | 4 | CRC-32 of the 4092 bytes before |
//!
//! **Failure.** A write or sync that failed is not tried again: the file is given up, and its successor has another id. A
//! read that failed or does not verify is: a bus or a controller may be wrong once, what is stored is wrong three times.
//! Files that no checkpoint refers to are what a crash left, and the opener's to unlink.
//!
//! **Does not know** what is behind the first block.
use crate::base::checksum::crc32;
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::SegmentId;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{
    AlignedBytes, Durability, FileId, Io, IoBuffer, IoErrorKind, Open, Operation, Outcome, ReadFile,
};
use std::path::{Path, PathBuf};

/// The directory of all segments, relative to the data directory.
pub const DIRECTORY: &str = "seg";
/// Version of the first block; a reader refuses a higher one.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"STRNSEGM";
const CRC_OFFSET: usize = BLOCK_BYTES - 4;
/// Digits of an id in a file name; longer ids have more.
const NAME_DIGITS: usize = 8;
/// What is written at once. A larger write is no faster, and holds up the device's other users for longer.
const CHUNK_BYTES: usize = 1 << 20;
const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES), "whole blocks are written");
/// After so many bytes they are made durable, though nobody needs that before the end: a device that has to empty a large cache at once
/// makes the log's syncs wait behind it.
const SYNC_BYTES: u64 = 8 << 20;
/// How often a read is made before its failure or its damage is believed.
const READ_ATTEMPTS: u32 = 3;

/// What a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SegmentKind {
    /// Records of revisions.
    Revisions = 1,
    /// Pages of trees.
    Pages = 2,
}

impl SegmentKind {
    fn extension(self) -> &'static str {
        match self {
            Self::Revisions => "r",
            Self::Pages => "k",
        }
    }
}

/// Path of a segment, relative to the data directory.
pub fn path(id: SegmentId, kind: SegmentKind) -> PathBuf {
    Path::new(DIRECTORY).join(file_name(id, kind))
}

fn file_name(id: SegmentId, kind: SegmentKind) -> String {
    format!("{:0NAME_DIGITS$}.{}", id.0, kind.extension())
}

/// The segment at this path; `None` if no segment has it.
pub(crate) fn parse_path(path: &str) -> Option<(SegmentId, SegmentKind)> {
    parse_name(path.strip_prefix(DIRECTORY)?.strip_prefix('/')?)
}

/// The segment with this file name; `None` if no segment has it.
pub fn parse_name(name: &str) -> Option<(SegmentId, SegmentKind)> {
    let (digits, extension) = name.split_once('.')?;
    let kind =
        [SegmentKind::Revisions, SegmentKind::Pages].into_iter().find(|k| k.extension() == extension)?;
    let id = SegmentId(digits.parse().ok()?);
    // A sign, or another number of zeros, is not ours.
    (file_name(id, kind) == name).then_some((id, kind))
}

/// The first block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Revision records or pages.
    pub kind: SegmentKind,
    /// Which database the segment belongs to.
    pub database: [u8; 16],
    /// The segment itself.
    pub id: SegmentId,
    /// Sequence of the checkpoint that wrote it.
    pub checkpoint: u64,
}

/// A block that is a header, of this format or a later one.
enum Decoded {
    Header(SegmentHeader),
    Future(u32),
}

impl SegmentHeader {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[0..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12] = self.kind as u8;
        block[16..32].copy_from_slice(&self.database);
        block[32..36].copy_from_slice(&self.id.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.checkpoint.to_le_bytes());
        let crc = crc32(&block[..CRC_OFFSET]);
        block[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads a block; else what was expected and found. Magic and checksum stay where they are in every version to come.
    fn decode(block: &[u8]) -> Result<Decoded, String> {
        let (covered, crc) =
            block.split_at_checked(CRC_OFFSET).ok_or("a block was expected, and it is cut short")?;
        if !covered.starts_with(MAGIC) {
            return Err(format!(
                "a segment starts with {:?}, here is {:?}",
                ascii(MAGIC),
                ascii(&covered[..8])
            ));
        }
        let (expected, found) = (crc32(covered), Reader::new(crc).u32());
        if found != Ok(expected) {
            return Err(format!(
                "the checksum of the first block is {expected:#010x}, stored is {found:#010x?}"
            ));
        }
        Self::decode_fields(&covered[MAGIC.len()..])
            .unwrap_or_else(|Truncated| Err("the block is cut short".into()))
    }

    /// Fields behind the magic number, in a block whose checksum holds.
    fn decode_fields(fields: &[u8]) -> Result<Result<Decoded, String>, Truncated> {
        let mut reader = Reader::new(fields);
        let version = reader.u32()?;
        if version != FORMAT_VERSION {
            return Ok(Ok(Decoded::Future(version)));
        }
        let kind = match reader.u8()? {
            1 => SegmentKind::Revisions,
            2 => SegmentKind::Pages,
            other => return Ok(Err(format!("the kind of a segment is 1 or 2, here is {other}"))),
        };
        reader.take(3)?;
        let mut database = [0; 16];
        database.copy_from_slice(reader.take(16)?);
        let id = SegmentId(reader.u32()?);
        reader.take(4)?;
        let checkpoint = reader.u64()?;
        Ok(Ok(Decoded::Header(Self { kind, database, id, checkpoint })))
    }
}

fn ascii(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Reads and verifies the first block of a segment, whichever it is.
///
/// # Errors
/// `Corruption` if it is none, `Refused` if its format is of a later version, `Io` if it cannot be read.
pub fn read_header(file: &dyn ReadFile) -> Result<SegmentHeader> {
    match read_verified(file, 0, BLOCK_BYTES, |block| SegmentHeader::decode(&block))? {
        Decoded::Header(header) => Ok(header),
        Decoded::Future(version) => Err(Error::Refused(format!(
            "{} has format version {version}, and this build knows {FORMAT_VERSION}; use the release that wrote it, \
             or a later one",
            file.path()
        ))),
    }
}

/// Checks that the file is this segment of this database.
///
/// # Errors
/// As [`read_header`], and `Corruption` if it is another segment: a file that was misplaced, or a write that was.
pub fn check_header(file: &dyn ReadFile, id: SegmentId, kind: SegmentKind, database: [u8; 16]) -> Result<()> {
    check_identity(&read_header(file)?, id, kind, database).map_err(|what| Error::Corruption {
        file: file.path().to_string(),
        offset: 0,
        what,
    })
}

/// The same of a block that was read already; else what was expected and what was found.
pub(crate) fn check_header_block(
    block: &[u8],
    id: SegmentId,
    kind: SegmentKind,
    database: [u8; 16],
) -> Result<(), String> {
    match SegmentHeader::decode(block)? {
        Decoded::Header(header) => check_identity(&header, id, kind, database),
        Decoded::Future(version) => Err(format!("format version {FORMAT_VERSION} expected, {version} found")),
    }
}

fn check_identity(
    found: &SegmentHeader,
    id: SegmentId,
    kind: SegmentKind,
    database: [u8; 16],
) -> Result<(), String> {
    if (found.id, found.kind, found.database) == (id, kind, database) {
        return Ok(());
    }
    let name = |id, kind, database: [u8; 16]| {
        format!("{} of database {:032x}", file_name(id, kind), u128::from_be_bytes(database))
    };
    Err(format!(
        "expected the first block of {}, found that of {}",
        name(id, kind, database),
        name(found.id, found.kind, found.database)
    ))
}

/// Reads `bytes` at `offset` and verifies them; up to three times, because what is wrong once may be the way and not the
/// device. `verify` gets exactly `bytes`, and says what it expected and found if they are not right.
///
/// # Errors
/// Of the last attempt: `Corruption` if the bytes are wrong or the file ends before them, `Io` if they cannot be read.
///
/// # Panics
/// If `offset` or `bytes` is not a multiple of a block.
pub fn read_verified<T>(
    file: &dyn ReadFile,
    offset: u64,
    bytes: usize,
    mut verify: impl FnMut(AlignedBytes) -> Result<T, String>,
) -> Result<T> {
    let mut attempt = || {
        let read = match file.read(offset, bytes) {
            Err(error) if error.kind == IoErrorKind::NotFound => {
                let what = "a file of the checkpoint was expected, none found".to_string();
                return Err(Error::Corruption { file: file.path().to_string(), offset, what });
            }
            read => read?,
        };
        let verified = match read.len() == bytes {
            true => verify(read),
            false => Err(format!("{bytes} bytes were expected, the file ends after {}", read.len())),
        };
        verified.map_err(|what| Error::Corruption { file: file.path().to_string(), offset, what })
    };
    let mut result = attempt();
    for _ in 1..READ_ATTEMPTS {
        if result.is_ok() {
            break;
        }
        result = attempt();
    }
    if let Err(error) = &result {
        file.given_up(offset, bytes, error);
    }
    result
}

/// Writes one segment. Bytes are collected and written a chunk at a time, each chunk before the call returns, through an
/// [`Io`] that has nothing else in flight; it is the same in every call.
///
/// After an error the segment can only be [abandoned](Self::abandon).
pub struct SegmentWriter {
    id: SegmentId,
    path: PathBuf,
    file: FileId,
    /// What was appended and not yet written, shorter than a chunk between calls; `None` after a failed write.
    buffer: Option<IoBuffer>,
    /// How much of `buffer` is filled.
    filled: usize,
    /// Bytes in the file; a multiple of a block.
    written: u64,
    /// Those of them that no sync has covered.
    unsynced: u64,
}

impl SegmentWriter {
    /// Makes the file, which must not exist in a directory that does.
    ///
    /// # Errors
    /// The device's. There may be an empty file then.
    pub fn create(
        io: &mut dyn Io,
        id: SegmentId,
        kind: SegmentKind,
        database: [u8; 16],
        checkpoint: u64,
    ) -> Result<Self> {
        let path = path(id, kind);
        let file = match run(io, Operation::Open { path: path.clone(), open: Open::CreateNew })? {
            (Outcome::Opened(file), _) => file,
            (other, _) => unreachable!("an open gave {other:?}"),
        };
        let mut writer = Self { id, path, file, buffer: None, filled: 0, written: 0, unsynced: 0 };
        writer.buffer = Some(io.buffer(CHUNK_BYTES));
        // It is shorter than a chunk, so nothing is written yet and nothing can fail.
        writer.append(io, &SegmentHeader { kind, database, id, checkpoint }.encode())?;
        Ok(writer)
    }

    /// The segment's id.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Where the next byte goes, in bytes from the start of the file; at least one block, the header.
    pub fn position(&self) -> u64 {
        self.written + self.filled as u64
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The device's; the segment can only be abandoned then.
    ///
    /// # Panics
    /// If an earlier call failed.
    pub fn append(&mut self, io: &mut dyn Io, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let buffer = self.buffer.as_mut().expect("a segment whose write failed is abandoned");
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.filled));
            buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == CHUNK_BYTES {
                self.write(io)?;
            }
        }
        Ok(())
    }

    /// Adds zeros up to the next multiple of a block.
    ///
    /// # Errors
    /// As [`Self::append`].
    ///
    /// # Panics
    /// As [`Self::append`].
    pub fn pad_to_block(&mut self, io: &mut dyn Io) -> Result<()> {
        let count = self.filled.next_multiple_of(BLOCK_BYTES) - self.filled;
        self.append(io, &[0; BLOCK_BYTES][..count])
    }

    /// Pads and writes the rest, makes all of it durable, closes the file, and returns its length in bytes. The name is
    /// durable when the directory was synced, which is the caller's: once for all files of a checkpoint.
    ///
    /// # Errors
    /// The device's; the segment is abandoned then.
    pub fn finish(mut self, io: &mut dyn Io) -> Result<u64> {
        if let Err(error) = self.seal(io) {
            self.abandon(io);
            return Err(error);
        }
        run(io, Operation::Close { file: self.file })?;
        self.recycle(io);
        Ok(self.written)
    }

    fn seal(&mut self, io: &mut dyn Io) -> Result<()> {
        self.pad_to_block(io)?;
        if self.filled > 0 {
            self.write(io)?;
        }
        self.sync(io)
    }

    fn sync(&mut self, io: &mut dyn Io) -> Result<()> {
        run(io, Operation::Sync { file: self.file })?;
        self.unsynced = 0;
        Ok(())
    }

    /// Closes and removes the file, as far as the device lets us. What is left has an id that no checkpoint refers to.
    pub fn abandon(mut self, io: &mut dyn Io) {
        self.recycle(io);
        // Both are only tidying up; the error that led here has been reported.
        let _ = run(io, Operation::Close { file: self.file });
        let _ = run(io, Operation::Unlink { path: std::mem::take(&mut self.path) });
    }

    /// Writes what is in the buffer, whole blocks.
    fn write(&mut self, io: &mut dyn Io) -> Result<()> {
        let mut buffer = self.buffer.take().expect("a segment whose write failed is abandoned");
        buffer.set_len(self.filled);
        let (file, offset, durability) = (self.file, self.written, Durability::None);
        let (_, buffer) = run(io, Operation::Write { file, offset, buffer, durability })?;
        let mut buffer = buffer.expect("a write gives its buffer back");
        buffer.set_len(CHUNK_BYTES);
        self.buffer = Some(buffer);
        self.written += self.filled as u64;
        self.unsynced += self.filled as u64;
        self.filled = 0;
        if self.unsynced >= SYNC_BYTES { self.sync(io) } else { Ok(()) }
    }

    fn recycle(&mut self, io: &mut dyn Io) {
        if let Some(buffer) = self.buffer.take() {
            io.recycle(buffer);
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
