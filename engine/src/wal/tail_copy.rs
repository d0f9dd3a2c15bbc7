//! The newest groups of a log are written once more before a recovery ends, because nothing proves that they are durable.
//!
//! **Why.** A sync that failed may have dropped a write that still reads back, and the next sync then succeeds without
//! effect (the trap of Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). The process
//! that saw the failure is gone; the one that recovers reads a group that the next power cut takes. A group is known to
//! be durable when a later group promises it, and only then; the few behind the newest promise are written again, the
//! same bytes in the same place, and synced.
//!
//! **Why a copy first.** A write under way at a power cut may leave its sectors unreadable, and groups that no promise
//! covers may well have been acknowledged: W3 forbids to write over them. So they are made durable elsewhere before:
//! `wal/tail-NNNNNNNN`, and a recovery that finds such a copy puts back what differs.
//!
//! **A copy that comes back.** Its removal may be undone by a power cut. That is harmless at any time: a group is put back
//! only into a segment that has the salt it names, and never over another group that lies there in that life of the file.
//!
//! Layout: one header block, then the groups back to back, as they lie in the log. Header block, little-endian: magic
//! `STRNTAIL` (8) · format version u32 · count of groups u32 · database (16) · zeros · CRC-32 of the block before it
//! in the last 4 bytes.
use super::DIRECTORY;
use super::format::{FORMAT_VERSION, GROUP_HEADER_BYTES, GroupHeader, SEGMENT_HEADER_BYTES};
use super::pool::path;
use super::recovery_scan::{READS_AGAIN, Segments, display, open_file};
use crate::base::checksum::crc32;
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, FileId, Io, IoBuffer, IoErrorKind, Open, Operation, Outcome};
use std::path::PathBuf;

const MAGIC: &[u8; 8] = b"STRNTAIL";
/// A copy while it is written; removed at the next open.
pub(super) const PART: &str = "tail-copy.part";

/// Name of copy `number`.
fn copy_name(number: u64) -> String {
    format!("tail-{number:08}")
}

/// A group that was read and verified, and that no promise read so far covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct TailGroup {
    pub(super) lsn: Lsn,
    pub(super) bytes: u32,
    pub(super) chain: u32,
    pub(super) payload_crc: u32,
}

impl TailGroup {
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + u64::from(self.bytes))
    }
}

/// Whose groups these are, and where they lie.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) database: &'a [u8; 16],
    pub(super) segments: &'a Segments,
    pub(super) segment_bytes: u64,
}

impl Place<'_> {
    fn seq(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.segment_bytes
    }

    fn offset(&self, lsn: Lsn) -> u64 {
        lsn.0 % self.segment_bytes
    }

    fn name(&self, lsn: Lsn) -> &str {
        &self.segments[&self.seq(lsn)].name
    }
}

/// Reads a group that verified before; again if it does not now.
fn read_group(io: &mut dyn Io, file: FileId, offset: u64, group: &TailGroup, name: &str) -> Result<IoBuffer> {
    for _ in 0..=READS_AGAIN {
        let buffer = io.buffer(group.bytes as usize);
        let (outcome, Some(buffer)) = run(io, Operation::Read { file, offset, buffer })? else { continue };
        let whole = outcome == Outcome::Bytes(group.bytes as usize)
            && GroupHeader::chain(&buffer) == group.chain
            && GroupHeader::decode(&buffer).is_ok()
            && crc32(&buffer[GROUP_HEADER_BYTES..]) == group.payload_crc;
        if whole {
            return Ok(buffer);
        }
        io.recycle(buffer);
    }
    let what = "the group verified when the log was read, and does not verify now".into();
    Err(Error::Corruption { file: display(name), offset, what })
}

fn write(io: &mut dyn Io, file: FileId, offset: u64, buffer: IoBuffer) -> Result<()> {
    let write = Operation::Write { file, offset, buffer, durability: Durability::None };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    Ok(())
}

/// Writes `groups`, in order, once more in place, after a copy of them is durable as number `number` (tests may leave
/// it out). False if the device has no room for the copy: nothing was written. The copy stays; see [`remove`].
pub(super) fn rewrite(
    io: &mut dyn Io,
    place: &Place<'_>,
    groups: &[TailGroup],
    number: u64,
    with_copy: bool,
) -> Result<bool> {
    match write_copy(io, place, groups, number) {
        Ok(()) => {}
        Err(Error::NoSpace(_)) => {
            return match run(io, Operation::Unlink { path: path(PART) }) {
                Err(error) if error.kind != IoErrorKind::NotFound => Err(error.into()),
                _ => Ok(false),
            };
        }
        Err(error) => return Err(error),
    }
    let name = copy_name(number);
    if with_copy {
        run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    }
    let copy = open_file(io, &name)?;
    let mut offset = BLOCK_BYTES as u64;
    let mut target = None;
    for group in groups {
        let buffer = read_group(io, copy, offset, group, &name)?;
        offset += u64::from(group.bytes);
        let file = in_segment(io, place, group.lsn, &mut target)?;
        write(io, file, place.offset(group.lsn), buffer)?;
    }
    finish(io, target)?;
    run(io, Operation::Close { file: copy })?;
    Ok(true)
}

/// Writes the copy and gives it its name, which is not durable yet.
fn write_copy(io: &mut dyn Io, place: &Place<'_>, groups: &[TailGroup], number: u64) -> Result<()> {
    let (outcome, _) = run(io, Operation::Open { path: path(PART), open: Open::CreateNew })?;
    let Outcome::Opened(copy) = outcome else { unreachable!("opening a file gives a file") };
    let filled = fill_copy(io, copy, place, groups);
    run(io, Operation::Close { file: copy })?;
    filled?;
    run(io, Operation::Rename { from: path(PART), to: path(&copy_name(number)) })?;
    Ok(())
}

fn fill_copy(io: &mut dyn Io, copy: FileId, place: &Place<'_>, groups: &[TailGroup]) -> Result<()> {
    let mut block = io.buffer(BLOCK_BYTES);
    block.fill(0);
    block[0..8].copy_from_slice(MAGIC);
    block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[12..16].copy_from_slice(&(groups.len() as u32).to_le_bytes());
    block[16..32].copy_from_slice(place.database);
    let crc = crc32(&block[..BLOCK_BYTES - 4]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    write(io, copy, 0, block)?;
    let mut offset = BLOCK_BYTES as u64;
    for group in groups {
        let name = place.name(group.lsn);
        let file = open_file(io, name)?;
        let buffer = read_group(io, file, place.offset(group.lsn), group, name);
        run(io, Operation::Close { file })?;
        write(io, copy, offset, buffer?)?;
        offset += u64::from(group.bytes);
    }
    run(io, Operation::Sync { file: copy })?;
    Ok(())
}

/// The file of the segment with `lsn`. `open` is the one used last: it is synced and closed if it is another.
fn in_segment(
    io: &mut dyn Io,
    place: &Place<'_>,
    lsn: Lsn,
    open: &mut Option<(u64, FileId)>,
) -> Result<FileId> {
    let seq = place.seq(lsn);
    if let Some((at, file)) = *open
        && at == seq
    {
        return Ok(file);
    }
    finish(io, open.take())?;
    let file = open_file(io, place.name(lsn))?;
    *open = Some((seq, file));
    Ok(file)
}

fn finish(io: &mut dyn Io, open: Option<(u64, FileId)>) -> Result<()> {
    if let Some((_, file)) = open {
        run(io, Operation::Sync { file })?;
        run(io, Operation::Close { file })?;
    }
    Ok(())
}

/// Puts groups back where they are missing, from the copies with these numbers. A copy that does not verify was never
/// finished, or is not needed: nothing was written over before it was durable.
pub(super) fn restore(io: &mut dyn Io, place: &Place<'_>, numbers: &[u64]) -> Result<()> {
    for &number in numbers {
        let copy = open_file(io, &copy_name(number))?;
        let restored = restore_from(io, copy, place);
        run(io, Operation::Close { file: copy })?;
        restored?;
    }
    Ok(())
}

fn restore_from(io: &mut dyn Io, copy: FileId, place: &Place<'_>) -> Result<()> {
    let Some(block) = read_exactly(io, copy, 0, BLOCK_BYTES)? else { return Ok(()) };
    let field = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let ours = block[0..8] == *MAGIC
        && field(8) == FORMAT_VERSION
        && block[16..32] == *place.database
        && field(BLOCK_BYTES - 4) == crc32(&block[..BLOCK_BYTES - 4]);
    let groups_count = if ours { field(12) } else { 0 };
    io.recycle(block);
    let mut offset = BLOCK_BYTES as u64;
    let mut target = None;
    for _ in 0..groups_count {
        let Some(block) = read_exactly(io, copy, offset, BLOCK_BYTES)? else { break };
        let header = GroupHeader::decode(&block);
        io.recycle(block);
        let Ok(header) = header else { break };
        let bytes = header.group_len as usize;
        let Some(group) = read_exactly(io, copy, offset, bytes)? else { break };
        if crc32(&group[GROUP_HEADER_BYTES..]) != header.payload_crc {
            break;
        }
        offset += bytes as u64;
        let at = place.offset(header.lsn);
        let segment = place.segments.get(&place.seq(header.lsn));
        let belongs = segment.is_some_and(|file| file.header.salt_lo() == header.salt_lo)
            && at >= SEGMENT_HEADER_BYTES as u64
            && at + bytes as u64 <= place.segment_bytes;
        if belongs {
            let file = in_segment(io, place, header.lsn, &mut target)?;
            // What reads back the same is written all the same: that it reads back proves nothing, and the copy is
            // durable. A sector that cannot be read is what the copy is for.
            let found = read_exactly(io, file, at, BLOCK_BYTES);
            let other = match &found {
                Ok(Some(found)) => GroupHeader::decode(found).is_ok_and(|there| {
                    there.lsn == header.lsn
                        && there.salt_lo == header.salt_lo
                        && GroupHeader::chain(found) != GroupHeader::chain(&group)
                }),
                _ => false,
            };
            if !other {
                write(io, file, at, group)?;
            }
        }
    }
    finish(io, target)
}

/// None if the file is shorter.
fn read_exactly(io: &mut dyn Io, file: FileId, offset: u64, bytes: usize) -> Result<Option<IoBuffer>> {
    let buffer = io.buffer(bytes);
    let (outcome, buffer) = run(io, Operation::Read { file, offset, buffer })?;
    Ok(buffer.filter(|_| outcome == Outcome::Bytes(bytes)))
}

/// Removes the copies with these numbers, when what they hold is durable in its place.
pub(super) fn remove(io: &mut dyn Io, numbers: &[u64]) -> Result<()> {
    for &number in numbers {
        run(io, Operation::Unlink { path: path(&copy_name(number)) })?;
    }
    if !numbers.is_empty() {
        run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    }
    Ok(())
}
