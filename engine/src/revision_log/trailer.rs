//! The last block of a segment: what it holds, and where.
//!
//! **Layout**, little-endian, one block of 4 KiB at the end of the file.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `STRNREVT` |
//! | 8 | 4 | format version |
//! | 12 | 4 | segment id |
//! | 16 | 16 | database |
//! | 32 | 4 | records |
//! | 36 | 4 | tombstones among them |
//! | 40 | 4 | records with a compressed value |
//! | 44 | 4 | index blocks |
//! | 48 | 16 | first revision: main, sub; 0 if there is no record |
//! | 64 | 16 | last revision |
//! | 80 | 8 | key + value + 64 bytes, summed over all records |
//! | 88 | 8 | offset behind the last record, the zeros to a multiple of 8 included |
//! | 96 | 8, 4, 4 | top: offset, bytes without the zeros behind it, checksum with them |
//! | 112 | 8, 4, 4 | dictionary: likewise; all 0 if there is none |
//! | 128 | 8 | bytes of the file |
//! | 136 | 3956 | zeros |
//! | 4092 | 4 | checksum of bytes 0 to 4091, repeated in the segment's summary |
//!
//! **Does not know** what the parts mean.
use super::compression::DICTIONARY_BYTES_MAX;
use super::top::ROW_BYTES;
use super::{FORMAT_VERSION, FORMAT_VERSION_OF_ONE_JUMP, SegmentSummary};
use crate::base::checksum::crc32;
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::{Revision, SegmentId};
use crate::error::Error;
use crate::io::disk::BLOCK_BYTES;

const MAGIC: &[u8; 8] = b"STRNREVT";
const CRC_OFFSET: usize = BLOCK_BYTES - 4;

/// A part of the file, at a multiple of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Extent {
    pub(super) offset: u64,
    /// Without the zeros up to the next multiple of 4 KiB.
    pub(super) bytes: u32,
    /// Of all its blocks, zeros included.
    pub(super) crc: u32,
}

impl Extent {
    /// Length in the file, zeros included.
    pub(super) fn padded_bytes(&self) -> usize {
        (self.bytes as usize).next_multiple_of(BLOCK_BYTES)
    }

    /// First byte behind it; `None` if there is no such place.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.padded_bytes() as u64)
    }
}

/// The trailer block, decoded. [`Trailer::decode`] has checked that its parts lie in the file one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trailer {
    pub(super) format_version: u32,
    pub(super) segment: SegmentId,
    pub(super) database: [u8; 16],
    pub(super) records: u32,
    pub(super) tombstones: u32,
    pub(super) compressed: u32,
    pub(super) index_blocks: u32,
    pub(super) first: Revision,
    pub(super) last: Revision,
    pub(super) record_bytes: u64,
    pub(super) records_end: u64,
    pub(super) top: Extent,
    pub(super) dictionary: Extent,
    pub(super) file_bytes: u64,
}

impl Trailer {
    /// The block, and its checksum.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.format_version.to_le_bytes());
        out.extend_from_slice(&self.segment.0.to_le_bytes());
        out.extend_from_slice(&self.database);
        for number in [self.records, self.tombstones, self.compressed, self.index_blocks] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for revision in [self.first, self.last] {
            out.extend_from_slice(&revision.main.to_le_bytes());
            out.extend_from_slice(&revision.sub.to_le_bytes());
        }
        out.extend_from_slice(&self.record_bytes.to_le_bytes());
        out.extend_from_slice(&self.records_end.to_le_bytes());
        for extent in [self.top, self.dictionary] {
            out.extend_from_slice(&extent.offset.to_le_bytes());
            out.extend_from_slice(&extent.bytes.to_le_bytes());
            out.extend_from_slice(&extent.crc.to_le_bytes());
        }
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        out.resize(CRC_OFFSET, 0);
        let crc = crc32(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// Reads the trailer of the segment that `summary` describes. The outer error is what was expected and what was
    /// found; the inner one refuses a later format, which is no damage.
    pub(super) fn decode(
        block: &[u8],
        database: [u8; 16],
        summary: &SegmentSummary,
    ) -> Result<Result<Self, Error>, String> {
        let Some((content, crc)) = block.split_last_chunk().filter(|_| block.len() == BLOCK_BYTES) else {
            return Err(format!("a trailer of {BLOCK_BYTES} bytes expected, {} found", block.len()));
        };
        let (crc, crc_found) = (u32::from_le_bytes(*crc), crc32(content));
        if crc != crc_found || crc != summary.trailer_crc {
            return Err(format!(
                "a trailer with the checksum {:#010x} expected; it says {crc:#010x} and has {crc_found:#010x}",
                summary.trailer_crc
            ));
        }
        let mut reader = Reader::new(content);
        if reader.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(format!("a trailer starting with {:?} expected", MAGIC.escape_ascii().to_string()));
        }
        let format_version = match reader.u32() {
            Ok(version @ FORMAT_VERSION_OF_ONE_JUMP..=FORMAT_VERSION) => version,
            version => {
                return Ok(Err(Error::Refused(format!(
                    "revision segment {} has format version {}, this build reads up to {FORMAT_VERSION}: open it with the \
                     build that wrote it",
                    summary.id,
                    version.unwrap_or(0)
                ))));
            }
        };
        let trailer = Self::decode_fields(format_version, &mut reader)
            .map_err(|Truncated| "a whole trailer expected".to_string())?;
        if trailer.segment != summary.id || trailer.database != database {
            return Err(format!(
                "the trailer of segment {} of this database expected, {trailer:?} found",
                summary.id
            ));
        }
        if trailer.summary(crc) != *summary {
            return Err(format!("a trailer that agrees with {summary:?} expected, {trailer:?} found"));
        }
        if !trailer.has_order() {
            return Err(format!("parts in order inside the file expected, {trailer:?} found"));
        }
        Ok(Ok(trailer))
    }

    /// Reads a trailer of which nothing is known but whose it should be; it has only its own checksum.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(super) fn decode_alone(block: &[u8], database: [u8; 16], segment: SegmentId) -> Result<Self, String> {
        let Some((content, crc)) = block.split_last_chunk().filter(|_| block.len() == BLOCK_BYTES) else {
            return Err(format!("a trailer of {BLOCK_BYTES} bytes expected, {} found", block.len()));
        };
        let mut reader = Reader::new(content);
        let version = match (reader.take(MAGIC.len()), reader.u32()) {
            (Ok(magic), Ok(version @ FORMAT_VERSION_OF_ONE_JUMP..=FORMAT_VERSION)) if magic == MAGIC => {
                version
            }
            _ => return Err(format!("a trailer of format {FORMAT_VERSION} at most expected, none found")),
        };
        let fields =
            Self::decode_fields(version, &mut reader).map_err(|Truncated| "a whole trailer expected")?;
        // The other checks are those of any trailer, held against its own summary.
        let summary = SegmentSummary { id: segment, ..fields.summary(u32::from_le_bytes(*crc)) };
        Self::decode(block, database, &summary)?.map_err(|error| error.to_string())
    }

    fn decode_fields(format_version: u32, reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let extent = |reader: &mut Reader<'_>| {
            Ok(Extent { offset: reader.u64()?, bytes: reader.u32()?, crc: reader.u32()? })
        };
        let segment = SegmentId(reader.u32()?);
        let mut database = [0; 16];
        database.copy_from_slice(reader.take(16)?);
        Ok(Self {
            format_version,
            segment,
            database,
            records: reader.u32()?,
            tombstones: reader.u32()?,
            compressed: reader.u32()?,
            index_blocks: reader.u32()?,
            first: Revision::new(reader.i64()?, reader.i64()?),
            last: Revision::new(reader.i64()?, reader.i64()?),
            record_bytes: reader.u64()?,
            records_end: reader.u64()?,
            top: extent(reader)?,
            dictionary: extent(reader)?,
            file_bytes: reader.u64()?,
        })
    }

    /// Header, records, index, top, dictionary and trailer follow one another and fill the file.
    fn has_order(&self) -> bool {
        let block = BLOCK_BYTES as u64;
        let Some(trailer_offset) = self.file_bytes.checked_sub(block) else { return false };
        let Some(records_end) = self.records_end.checked_next_multiple_of(block) else { return false };
        let dictionary_end = if self.dictionary.bytes == 0 { self.top.end() } else { self.dictionary.end() };
        let dictionary_follows = self.dictionary.bytes == 0 || self.top.end() == Some(self.dictionary.offset);
        self.records_end >= block
            && self.top.offset >= records_end
            && self.top.offset.is_multiple_of(block)
            && u64::from(self.top.bytes) == u64::from(self.index_blocks) * ROW_BYTES as u64
            && self.dictionary.bytes as usize <= DICTIONARY_BYTES_MAX
            && dictionary_follows
            && dictionary_end == Some(trailer_offset)
    }

    /// What the segment table keeps of a segment with this trailer.
    pub(super) fn summary(&self, trailer_crc: u32) -> SegmentSummary {
        SegmentSummary {
            id: self.segment,
            file_bytes: self.file_bytes,
            records: self.records,
            first: self.first,
            last: self.last,
            record_bytes: self.record_bytes,
            stored_bytes: self.records_end.saturating_sub(BLOCK_BYTES as u64),
            trailer_crc,
        }
    }
}
