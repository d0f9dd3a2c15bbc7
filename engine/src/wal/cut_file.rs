//! Copies of what recovery cuts off, for people: `wal/cut-<position>`, newest four kept.
//!
//! Layout: one header block, then the bytes of each range, in order, each a multiple of 4 KiB. Header block,
//! little-endian: magic `STRNPCUT` (8) · format version u32 · count of ranges u32 · database (16) · per range:
//! segment u64, offset u64, bytes u64 · zeros · CRC-32 of the block before it in the last 4 bytes.
use super::DIRECTORY;
use super::format::FORMAT_VERSION;
use super::pool::path;
use crate::base::checksum::crc32;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, FileId, Io, IoBuffer, Open, Operation, Outcome};
use std::path::PathBuf;

const MAGIC: &[u8; 8] = b"STRNPCUT";
/// Copies kept.
pub(super) const CUTS_MAX: usize = 4;

/// A range of a segment, as it was read.
pub(super) struct CutRange {
    pub(super) seq: u64,
    pub(super) offset: u64,
    /// The bytes, in pieces.
    pub(super) pieces: Vec<IoBuffer>,
}

impl CutRange {
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

fn encode_header(block: &mut [u8], database: &[u8; 16], ranges: &[CutRange]) {
    block.fill(0);
    block[0..8].copy_from_slice(MAGIC);
    block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[12..16].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
    block[16..32].copy_from_slice(database);
    for (range, field) in ranges.iter().zip(block[32..].chunks_exact_mut(24)) {
        field[0..8].copy_from_slice(&range.seq.to_le_bytes());
        field[8..16].copy_from_slice(&range.offset.to_le_bytes());
        field[16..24].copy_from_slice(&range.bytes().to_le_bytes());
    }
    let crc = crc32(&block[..BLOCK_BYTES - 4]);
    block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// (position, number) of a copy's name; copies at one position are numbered from 1.
fn rank(name: &str) -> Option<(u64, u64)> {
    let stem = name.strip_prefix("cut-")?;
    match stem.split_once('.') {
        Some((lsn, number)) => Some((lsn.parse().ok()?, number.parse().ok()?)),
        None => Some((stem.parse().ok()?, 1)),
    }
}

/// Writes a durable copy of `ranges`; `existing` are the names of the copies there are. Returns the path of the
/// copy, or an empty one if the device has no room for it. Older copies beyond the bound are removed.
pub(super) fn write_copy(
    io: &mut dyn Io,
    database: &[u8; 16],
    lsn: u64,
    ranges: &[CutRange],
    existing: &[String],
) -> Result<String> {
    let mut kept: Vec<(u64, u64, &str)> = Vec::new();
    for name in existing {
        match rank(name) {
            Some((at, number)) => kept.push((at, number, name)),
            // A copy that was not finished.
            None => _ = run(io, Operation::Unlink { path: path(name) })?,
        }
    }
    kept.sort_unstable();
    while kept.len() >= CUTS_MAX {
        run(io, Operation::Unlink { path: path(kept.remove(0).2) })?;
    }
    let number = kept.iter().filter(|(at, ..)| *at == lsn).map(|(_, number, _)| number + 1).max();
    let name = match number {
        None => format!("cut-{lsn}"),
        Some(number) => format!("cut-{lsn}.{number}"),
    };
    let part = path("cut-copy.part");
    let (outcome, _) = run(io, Operation::Open { path: part.clone(), open: Open::CreateNew })?;
    let Outcome::Opened(file) = outcome else { unreachable!("opening a file gives a file") };
    let written = write_ranges(io, file, database, ranges);
    run(io, Operation::Close { file })?;
    match written {
        Ok(()) => {}
        Err(Error::NoSpace(_)) => {
            run(io, Operation::Unlink { path: part })?;
            return Ok(String::new());
        }
        Err(error) => return Err(error),
    }
    run(io, Operation::Rename { from: part, to: path(&name) })?;
    run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    Ok(format!("{DIRECTORY}/{name}"))
}

fn write_ranges(io: &mut dyn Io, file: FileId, database: &[u8; 16], ranges: &[CutRange]) -> Result<()> {
    let mut block = io.buffer(BLOCK_BYTES);
    encode_header(&mut block, database, ranges);
    write(io, file, 0, block)?;
    let mut offset = BLOCK_BYTES as u64;
    for piece in ranges.iter().flat_map(|range| &range.pieces) {
        let mut copy = io.buffer(piece.len());
        copy.copy_from_slice(piece);
        write(io, file, offset, copy)?;
        offset += piece.len() as u64;
    }
    run(io, Operation::Sync { file })?;
    Ok(())
}

fn write(io: &mut dyn Io, file: FileId, offset: u64, buffer: IoBuffer) -> Result<()> {
    let write = Operation::Write { file, offset, buffer, durability: Durability::None };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    Ok(())
}
