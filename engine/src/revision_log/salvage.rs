//! What a damaged segment still holds: every record that verifies at its place, and a name for everything between.
//!
//! **Contract.** [`scan_wreck`] needs nothing but the bytes: a record carries its own checksum, which depends on its place, so
//! it is found without index, top or trailer. What these still say is used to know which revisions a gap held
//! ([`Gap::lost`]), and where the next record begins behind it. Nothing is written and nothing is guessed: what does not verify
//! is a gap.
//!
//! **The dictionary** is found through the trailer. If that is damaged, it is put together again from the records, the top
//! and every possible length of the dictionary, and believed only if it then has the checksum that the summary holds.
//! A wrong dictionary would give wrong values without anybody noticing.
//!
//! **Memory.** The whole file and its entries.
//!
//! **Does not know** which records are dead, and what a gap means to anybody.
use super::compression::{self, DICTIONARY_BYTES_MAX, Decompressor};
use super::index::IndexBlock;
use super::record::{self, Places, StoredRecord};
use super::top::{ROW_BYTES, Top};
use super::trailer::{Extent, Trailer};
use super::{Entry, OwnedRecord, RECORD_BYTES_MAX, SegmentSummary};
use crate::base::checksum::crc32;
use crate::base::codec::Reader;
use crate::base::ids::{Revision, SegmentId};
use crate::error::Result;
use crate::io::disk::BLOCK_BYTES;
use crate::segment::{SegmentKind, check_header_block};
use bytes::Bytes;
use std::ops::Range;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// No value is larger than so many times its compressed form: zstd's blocks of 128 KiB take four bytes at least.
const EXPANSION_MAX: u64 = 1 << 15;

/// The bytes of a segment that may be damaged.
pub(crate) struct Wreck<'a> {
    /// The whole file; zeros where it could not be read.
    pub(crate) bytes: &'a [u8],
    pub(crate) database: [u8; 16],
    pub(crate) id: SegmentId,
    /// What the segment table says of it, if that is known.
    pub(crate) summary: Option<SegmentSummary>,
}

/// Bytes that should be records and are none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    /// Offset in the file.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) bytes: u64,
    /// What was expected and what was found.
    pub(crate) what: String,
    /// Revision of the last record before, if there is one.
    pub(crate) after: Option<Revision>,
    /// Revision of the first record behind, if there is one.
    pub(crate) before: Option<Revision>,
    /// What the index says of the records that were there, as far as it can be read.
    pub(crate) lost: Vec<Entry>,
    /// The key, if only the value could not be had.
    pub(crate) key: Option<Bytes>,
}

/// What a scan comes upon, in the order of the file.
pub(crate) enum Found {
    /// A record that verifies; its number in the segment, if nothing before it is unknown.
    Record(Option<u32>, OwnedRecord),
    /// See [`Gap`].
    Gap(Gap),
    /// A part that records do not need: offset, bytes, what was expected and what was found.
    Damage(u64, u64, String),
}

/// See the module.
///
/// # Errors
/// Only those of `visit`.
pub(crate) fn scan_wreck(wreck: &Wreck<'_>, visit: &mut dyn FnMut(Found) -> Result<()>) -> Result<()> {
    let mut damages = Vec::new();
    let header = wreck.bytes.get(..BLOCK_BYTES).ok_or_else(|| "the file ends in its first block".to_string());
    let (kind, database) = (SegmentKind::Revisions, wreck.database);
    if let Err(what) = header.and_then(|block| check_header_block(block, wreck.id, kind, database)) {
        damages.push((0, BLOCK, what));
    }
    let parts = Parts::read(wreck, &mut damages);
    for (offset, bytes, what) in damages {
        visit(Found::Damage(offset, bytes, what))?;
    }
    let mut scan =
        Scan { wreck, parts, places: Places::new(database, wreck.id), last: None, ordinal: Some(0) };
    scan.run(visit)
}

/// What the trailer says, where nothing else is known of a segment.
pub(crate) fn summary_of(wreck: &Wreck<'_>) -> Option<SegmentSummary> {
    let end = wreck.bytes.len();
    let block = wreck.bytes.get(end.checked_sub(BLOCK_BYTES)?..)?;
    let (_, crc) = block.split_last_chunk()?;
    let trailer = Trailer::decode_alone(block, wreck.database, wreck.id).ok()?;
    Some(trailer.summary(u32::from_le_bytes(*crc)))
}

/// What is known beside the records.
struct Parts {
    /// Offset behind the last record, if known.
    records_end: Option<u64>,
    /// Entries of the index blocks that verify, by offset.
    entries: Vec<Entry>,
    /// Makes values of compressed records; else why there is none.
    decompressor: Result<Decompressor, String>,
}

type Damages = Vec<(u64, u64, String)>;

impl Parts {
    fn read(wreck: &Wreck<'_>, damages: &mut Damages) -> Self {
        let records_end = wreck.summary.map(|summary| summary.stored_bytes + BLOCK);
        let unknown = |what: String| Self { records_end, entries: Vec::new(), decompressor: Err(what) };
        let trailer = match read_trailer(wreck) {
            Ok(trailer) => trailer,
            Err(what) => {
                let end = wreck.summary.map_or(wreck.bytes.len() as u64, |summary| summary.file_bytes);
                damages.push((end.saturating_sub(BLOCK), BLOCK, what));
                match rebuild_trailer(wreck) {
                    Some(trailer) => trailer,
                    None => {
                        return unknown("the trailer, which says where the dictionary is, is lost".into());
                    }
                }
            }
        };
        let entries = read_entries(wreck, &trailer, damages);
        let dictionary = wreck.extent(trailer.dictionary);
        let decompressor = dictionary.and_then(Decompressor::new).inspect_err(|what| {
            let Extent { offset, .. } = trailer.dictionary;
            damages.push((
                offset,
                trailer.dictionary.padded_bytes() as u64,
                format!("the dictionary: {what}"),
            ));
        });
        Self { records_end: Some(trailer.records_end), entries, decompressor }
    }
}

impl Wreck<'_> {
    fn get(&self, range: Range<u64>) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    /// The bytes of a part, verified.
    fn extent(&self, extent: Extent) -> Result<&[u8], String> {
        let end = extent.offset.checked_add(extent.padded_bytes() as u64);
        let padded = end.and_then(|end| self.get(extent.offset..end)).ok_or("the file ends before it")?;
        let crc = crc32(padded);
        match padded.get(..extent.bytes as usize) {
            // An empty part has no bytes and no checksum.
            Some(bytes) if crc == extent.crc || extent.bytes == 0 => Ok(bytes),
            _ => Err(format!("bytes with the checksum {:#010x} expected, {crc:#010x} found", extent.crc)),
        }
    }
}

fn read_trailer(wreck: &Wreck<'_>) -> Result<Trailer, String> {
    let end = wreck.summary.map_or(wreck.bytes.len() as u64, |summary| summary.file_bytes);
    let block = end.checked_sub(BLOCK).and_then(|start| wreck.get(start..end));
    let block =
        block.ok_or_else(|| format!("a file of {end} bytes expected, {} found", wreck.bytes.len()))?;
    let trailer = match &wreck.summary {
        Some(summary) => {
            Trailer::decode(block, wreck.database, summary)?.map_err(|error| error.to_string())?
        }
        None => Trailer::decode_alone(block, wreck.database, wreck.id)?,
    };
    Ok(trailer)
}

fn read_entries(wreck: &Wreck<'_>, trailer: &Trailer, damages: &mut Damages) -> Vec<Entry> {
    let top = match wreck.extent(trailer.top).and_then(|bytes| Top::decode(bytes, trailer)) {
        Ok(top) => top,
        Err(what) => {
            damages.push((trailer.top.offset, trailer.top.padded_bytes() as u64, format!("the top: {what}")));
            return Vec::new();
        }
    };
    let mut entries = Vec::new();
    for number in 0..top.len() {
        let Some(row) = top.row(number) else { break };
        let extent = Extent { offset: row.offset(), bytes: row.bytes, crc: row.crc };
        match wreck.extent(extent).and_then(|bytes| IndexBlock::decode(bytes, &top.bounds(number))) {
            Ok(block) => {
                let mut position = block.seek(Revision::default());
                entries.extend(std::iter::from_fn(|| block.next(&mut position)));
            }
            Err(what) => {
                damages.push((
                    row.offset(),
                    extent.padded_bytes() as u64,
                    format!("index block {number}: {what}"),
                ));
            }
        }
    }
    entries
}

/// The trailer from everything that it describes; none unless it then has the checksum in the summary.
fn rebuild_trailer(wreck: &Wreck<'_>) -> Option<Trailer> {
    let summary = wreck.summary?;
    let (records_end, end) = (summary.stored_bytes + BLOCK, summary.file_bytes.checked_sub(BLOCK)?);
    let (mut tombstones, mut compressed, mut has_more_jumps) = (0, 0, false);
    let places = Places::new(wreck.database, wreck.id);
    let mut offset = BLOCK;
    while offset < records_end {
        let stored = record::decode(places, offset, wreck.get(offset..records_end)?).ok()?;
        tombstones += u32::from(stored.record.is_tombstone());
        compressed += u32::from(stored.value.compressed);
        has_more_jumps |= stored.jumps.len() > 1;
        offset = end_of(offset, &stored);
    }
    let index_start = records_end.next_multiple_of(BLOCK);
    let top =
        (index_start..end).step_by(BLOCK_BYTES).find_map(|offset| find_top(wreck, index_start, offset))?;
    let mut trailer = Trailer {
        format_version: super::format_version(has_more_jumps),
        segment: wreck.id,
        database: wreck.database,
        records: summary.records,
        tombstones,
        compressed,
        index_blocks: top.bytes / ROW_BYTES as u32,
        first: summary.first,
        last: summary.last,
        record_bytes: summary.record_bytes,
        records_end,
        top,
        dictionary: Extent::default(),
        file_bytes: summary.file_bytes,
    };
    let start = top.offset + top.padded_bytes() as u64;
    let padded = wreck.get(start..end)?;
    let lengths = if padded.is_empty() { 0..=0 } else { padded.len() - BLOCK_BYTES + 1..=padded.len() };
    for bytes in lengths.filter(|&bytes| bytes <= DICTIONARY_BYTES_MAX) {
        if bytes > 0 {
            trailer.dictionary = Extent { offset: start, bytes: bytes as u32, crc: crc32(padded) };
        }
        if trailer.encode().1 == summary.trailer_crc {
            return Some(trailer);
        }
    }
    None
}

/// The top, if it starts at `offset`: rows whose blocks follow one another from the end of the records up to it.
fn find_top(wreck: &Wreck<'_>, index_start: u64, offset: u64) -> Option<Extent> {
    let rest = wreck.get(offset..wreck.bytes.len() as u64)?;
    let (mut bytes, mut expected) = (0, index_start);
    while expected < offset {
        let mut fields = Reader::new(rest.get(bytes + 28..bytes + ROW_BYTES)?);
        let (block, length) = (fields.u32().ok()?, fields.u32().ok()?);
        if u64::from(block) * BLOCK != expected || length == 0 {
            return None;
        }
        expected += u64::from(length).next_multiple_of(BLOCK);
        bytes += ROW_BYTES;
    }
    let padded =
        rest.get(..bytes.next_multiple_of(BLOCK_BYTES)).filter(|_| expected == offset && bytes > 0)?;
    Some(Extent { offset, bytes: u32::try_from(bytes).ok()?, crc: crc32(padded) })
}

fn end_of(offset: u64, stored: &StoredRecord<'_>) -> u64 {
    (offset + u64::from(stored.stored_bytes)).next_multiple_of(record::ALIGNMENT as u64)
}

struct Scan<'a> {
    wreck: &'a Wreck<'a>,
    parts: Parts,
    places: Places,
    last: Option<Revision>,
    /// Number of the next record; unknown behind a gap that the index does not describe.
    ordinal: Option<u32>,
}

impl Scan<'_> {
    fn run(&mut self, visit: &mut dyn FnMut(Found) -> Result<()>) -> Result<()> {
        let length = self.wreck.bytes.len() as u64;
        let end = self.parts.records_end.unwrap_or(length);
        let mut gap: Option<(u64, String)> = None;
        let mut offset = BLOCK;
        while offset < end.min(length) {
            let stored = match self.decode(offset, end.min(length)) {
                Ok(stored) => stored,
                Err(what) => {
                    gap.get_or_insert((offset, what));
                    offset = self.next_candidate(offset);
                    continue;
                }
            };
            let revision = stored.record.revision;
            let next = end_of(offset, &stored);
            let owned = self.own(&stored);
            if let Some(gap) = gap.take() {
                visit(Found::Gap(self.gap(gap, offset, Some(revision))))?;
            }
            let entry = self.entry_at(offset).copied();
            self.ordinal = entry.map(|entry| entry.ordinal).or(self.ordinal);
            match owned {
                Ok(record) => visit(Found::Record(self.ordinal, record))?,
                Err((key, what)) => {
                    let mut unreadable = self.gap((offset, what), next, Some(revision));
                    unreadable.before = Some(Revision::new(revision.main, revision.sub.saturating_add(1)));
                    unreadable.key = Some(key);
                    visit(Found::Gap(unreadable))?;
                }
            }
            self.last = Some(revision);
            self.ordinal = self.ordinal.and_then(|ordinal| ordinal.checked_add(1));
            offset = next;
        }
        if end > length && self.parts.records_end.is_some() {
            gap.get_or_insert((
                length,
                format!("records up to offset {end} expected, the file ends at {length}"),
            ));
        }
        match gap.take() {
            // Without a trailer nobody knows where the records end; what follows them is the index.
            Some(gap) if self.parts.records_end.is_some() => visit(Found::Gap(self.gap(gap, end, None))),
            _ => Ok(()),
        }
    }

    /// The record at `offset`, whose revision must be above the last one.
    fn decode(&self, offset: u64, end: u64) -> Result<StoredRecord<'_>, String> {
        let rest = self.wreck.get(offset..end).unwrap_or_default();
        // Most bytes are no record, and a checksum over as much as they claim takes long.
        if self.entry_at(offset).is_none() && !is_plausible(rest) {
            return Err("a record expected, bytes that are none found".into());
        }
        let stored = record::decode(self.places, offset, rest)?;
        match self.last {
            Some(last) if stored.record.revision <= last => {
                Err(format!("V1: a revision above {last} expected, {} found", stored.record.revision))
            }
            _ => Ok(stored),
        }
    }

    /// Where the next record may begin behind `offset`, at which there is none.
    fn next_candidate(&self, offset: u64) -> u64 {
        let entries = &self.parts.entries;
        let next = entries.partition_point(|entry| entry.offset <= offset);
        // Only if the index describes what is here does it know what comes next.
        let is_described = next.checked_sub(1).is_some_and(|here| entries[here].end() > offset);
        match entries.get(next) {
            Some(entry) if is_described => entry.offset,
            _ => offset + record::ALIGNMENT as u64,
        }
    }

    fn entry_at(&self, offset: u64) -> Option<&Entry> {
        let entries = &self.parts.entries;
        entries.binary_search_by_key(&offset, |entry| entry.offset).ok().map(|at| &entries[at])
    }

    fn gap(&self, (offset, what): (u64, String), end: u64, before: Option<Revision>) -> Gap {
        let entries = &self.parts.entries;
        let from = entries.partition_point(|entry| entry.offset < offset);
        let to = entries.partition_point(|entry| entry.offset < end);
        let lost = entries[from..to].to_vec();
        Gap { offset, bytes: end.saturating_sub(offset), what, after: self.last, before, lost, key: None }
    }

    /// The record with its value; else its key, and why not.
    fn own(&self, stored: &StoredRecord<'_>) -> Result<OwnedRecord, (Bytes, String)> {
        let key = Bytes::copy_from_slice(stored.record.key);
        let value = match stored.value.compressed {
            false => Bytes::copy_from_slice(stored.value.bytes),
            true => self.decompress(stored).map_err(|what| (key.clone(), what))?,
        };
        Ok(OwnedRecord::of(&stored.record, &stored.jumps, key, value))
    }

    fn decompress(&self, stored: &StoredRecord<'_>) -> Result<Bytes, String> {
        if !compression::IS_SUPPORTED {
            return Err("the value is compressed with zstd, which this build cannot read".into());
        }
        let decompressor = self.parts.decompressor.as_ref().map_err(|what| format!("the value: {what}"))?;
        let mut value = Vec::new();
        value.try_reserve_exact(stored.value.raw_bytes as usize).map_err(|error| error.to_string())?;
        value.resize(stored.value.raw_bytes as usize, 0);
        decompressor.decompress(stored.value.bytes, &mut value)?;
        Ok(value.into())
    }
}

/// False for bytes whose fields cannot be those of a record, whatever their checksum.
fn is_plausible(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let length = reader.u32().and_then(|_| reader.u32());
    let Some(body) = length.ok().and_then(|length| reader.take(length as usize).ok()) else { return false };
    match record::decode_body(body) {
        Ok((_, _, value)) => {
            let stored = value.bytes.len() as u64;
            (value.raw_bytes as usize) <= RECORD_BYTES_MAX
                && u64::from(value.raw_bytes) <= stored.saturating_mul(EXPANSION_MAX)
        }
        Err(_) => false,
    }
}
