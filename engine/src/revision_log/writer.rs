//! Writes one revision segment, front to back.
//!
//! **States.** *Filling*: [`RevisionWriter::push`] adds records. After an error only [`RevisionWriter::abandon`] may
//! follow. [`RevisionWriter::finish`] adds index, top, dictionary and trailer, and makes the file durable; its name is
//! durable when the directory was synced, which is the caller's.
//!
//! **Memory**: fifteen bytes a record for the index, and the longest record.
//!
//! **Does not know** when a segment is full: the caller asks for [`RevisionWriter::position`].
use super::compression::{Compressor, DICTIONARY_BYTES_MAX, IS_SUPPORTED};
use super::index::IndexBuilder;
use super::record::{self, Places};
use super::top::{ROW_BYTES, Row};
use super::trailer::{Extent, Trailer};
use super::{Entry, JUMPS_MAX, LogRecord, RECORD_BYTES_MAX, SegmentSummary};
use crate::base::checksum::crc32;
use crate::base::ids::Revision;
use crate::error::{Error, Result};
use crate::io::Io;
use crate::io::disk::BLOCK_BYTES;
use crate::segment::SegmentWriter;

/// A revision segment that is being written.
pub struct RevisionWriter {
    writer: SegmentWriter,
    database: [u8; 16],
    places: Places,
    compressor: Compressor,
    dictionary: Vec<u8>,
    index: IndexBuilder,
    /// One encoded record; kept for its memory.
    buffer: Vec<u8>,
    first: Revision,
    last: Option<Revision>,
    records: u32,
    tombstones: u32,
    compressed: u32,
    record_bytes: u64,
    /// Some record has more than one jump.
    has_more_jumps: bool,
}

impl RevisionWriter {
    /// Starts a segment in the file of `writer`, to which nothing was appended yet. Values are compressed with
    /// `dictionary`, if it is given and this build compresses.
    ///
    /// # Panics
    /// If the dictionary is longer than [`DICTIONARY_BYTES_MAX`], or something was appended.
    pub fn new(writer: SegmentWriter, database: [u8; 16], dictionary: Option<Vec<u8>>) -> Self {
        assert_eq!(writer.position(), BLOCK_BYTES as u64, "a revision segment starts behind its header");
        let dictionary = dictionary.filter(|_| IS_SUPPORTED).unwrap_or_default();
        assert!(dictionary.len() <= DICTIONARY_BYTES_MAX, "a dictionary has {} bytes", dictionary.len());
        Self {
            places: Places::new(database, writer.id()),
            writer,
            database,
            compressor: Compressor::new(&dictionary),
            dictionary,
            index: IndexBuilder::default(),
            buffer: Vec::new(),
            first: Revision::default(),
            last: None,
            records: 0,
            tombstones: 0,
            compressed: 0,
            record_bytes: 0,
            has_more_jumps: false,
        }
    }

    /// Where the next record goes, in bytes from the start of the file: what the file has reached, without the index.
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// How many records were pushed.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Revision of the last record, if there is one.
    pub fn last(&self) -> Option<Revision> {
        self.last
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is longer than [`RECORD_BYTES_MAX`], nothing is added then; otherwise the device's.
    ///
    /// # Panics
    /// If the record breaks V1 or V2, has a negative revision, or is a tombstone with a value.
    pub fn push(&mut self, io: &mut dyn Io, record: &LogRecord<'_>) -> Result<()> {
        self.check(record);
        if record.key.len() > RECORD_BYTES_MAX || record.value.len() > RECORD_BYTES_MAX - record.key.len() {
            return Err(Error::Refused(format!(
                "the record of revision {} has {} bytes of key and value; at most {RECORD_BYTES_MAX} are stored",
                record.revision,
                record.key.len() + record.value.len()
            )));
        }
        let mut compressor = std::mem::take(&mut self.compressor);
        let pushed = self.push_stored(io, record, compressor.compress(record.value));
        self.compressor = compressor;
        pushed
    }

    /// Adds a record with its value stored as `compressed`, if that is given.
    pub(super) fn push_stored(
        &mut self,
        io: &mut dyn Io,
        record: &LogRecord<'_>,
        compressed: Option<&[u8]>,
    ) -> Result<()> {
        let offset = self.writer.position();
        self.buffer.clear();
        let stored_bytes = record::encode(&mut self.buffer, self.places, offset, record, compressed);
        self.writer.append(io, &self.buffer)?;
        self.index.push(&Entry {
            ordinal: self.records,
            revision: record.revision,
            tombstone: record.is_tombstone(),
            created: record.version == 1,
            prev: record.prev,
            // Both are at most RECORD_BYTES_MAX.
            key_bytes: record.key.len() as u32,
            value_bytes: record.value.len() as u32,
            offset,
            stored_bytes,
            kv_bytes: record::kv_bytes(record),
        });
        if self.last.is_none() {
            self.first = record.revision;
        }
        self.last = Some(record.revision);
        self.records += 1;
        self.tombstones += u32::from(record.is_tombstone());
        self.has_more_jumps |= record.jumps.len() > 1;
        self.compressed += u32::from(compressed.is_some());
        self.record_bytes += record.record_bytes();
        Ok(())
    }

    fn check(&self, record: &LogRecord<'_>) {
        let Revision { main, sub } = record.revision;
        assert!(main >= 0 && sub >= 0, "revision {main}.{sub} is negative");
        assert!(Some(record.revision) > self.last, "V1: {} follows {:?}", record.revision, self.last);
        if let Some(prev) = record.prev {
            assert!(prev.revision < record.revision, "V2: {} replaces {}", record.revision, prev.revision);
            assert!(
                prev.revision.main >= 0 && prev.revision.sub >= 0,
                "revision {} is negative",
                prev.revision
            );
        }
        let mut before = record.prev.map(|prev| prev.revision);
        for (number, &jump) in record.jumps.iter().enumerate() {
            let is_older = if number == 0 { Some(jump) <= before } else { Some(jump) < before };
            assert!(is_older, "V2: {} jumps to {jump}, past {before:?}", record.revision);
            assert!(jump.main >= 0 && jump.sub >= 0, "revision {jump} is negative");
            before = Some(jump);
        }
        assert!(record.jumps.len() <= JUMPS_MAX, "{} has {} jumps", record.revision, record.jumps.len());
        assert!(!record.is_tombstone() || record.value.is_empty(), "tombstone {main}.{sub} has a value");
    }

    /// Ends the segment and makes its content durable. The directory is still to be synced.
    ///
    /// # Errors
    /// The device's. The file is removed then, as far as the device lets us.
    pub fn finish(mut self, io: &mut dyn Io) -> Result<SegmentSummary> {
        match self.append_index(io) {
            Ok(summary) => {
                let file_bytes = self.writer.finish(io)?;
                assert_eq!(file_bytes, summary.file_bytes, "the trailer says how long the file is");
                Ok(summary)
            }
            Err(error) => {
                self.writer.abandon(io);
                Err(error)
            }
        }
    }

    /// Gives the segment up and removes its file, as far as the device lets us.
    pub fn abandon(self, io: &mut dyn Io) {
        self.writer.abandon(io);
    }

    /// Everything behind the records.
    fn append_index(&mut self, io: &mut dyn Io) -> Result<SegmentSummary> {
        let records_end = self.writer.position();
        self.writer.pad_to_block(io)?;
        let blocks = std::mem::take(&mut self.index).into_blocks();
        let mut top = Vec::with_capacity(blocks.len() * ROW_BYTES);
        for block in &blocks {
            let extent = self.append_extent(io, &block.bytes)?;
            let row = Row {
                first: block.first,
                first_record_offset: block.first_record_offset,
                first_ordinal: block.first_ordinal,
                block: u32::try_from(extent.offset / BLOCK_BYTES as u64)
                    .expect("a file is shorter than 16 TiB"),
                bytes: extent.bytes,
                crc: extent.crc,
            };
            row.encode(&mut top);
        }
        let top = self.append_extent(io, &top)?;
        let dictionary = match std::mem::take(&mut self.dictionary) {
            // Nothing was compressed with it.
            _ if self.compressed == 0 => Extent::default(),
            dictionary if dictionary.is_empty() => Extent::default(),
            dictionary => self.append_extent(io, &dictionary)?,
        };
        let trailer = Trailer {
            format_version: super::format_version(self.has_more_jumps),
            segment: self.writer.id(),
            database: self.database,
            records: self.records,
            tombstones: self.tombstones,
            compressed: self.compressed,
            // One row a block: far below 2^32.
            index_blocks: top.bytes / ROW_BYTES as u32,
            first: self.first,
            last: self.last.unwrap_or_default(),
            record_bytes: self.record_bytes,
            records_end,
            top,
            dictionary,
            file_bytes: self.writer.position() + BLOCK_BYTES as u64,
        };
        let (block, crc) = trailer.encode();
        self.writer.append(io, &block)?;
        Ok(trailer.summary(crc))
    }

    /// Appends `bytes` and zeros up to the next block.
    fn append_extent(&mut self, io: &mut dyn Io, bytes: &[u8]) -> Result<Extent> {
        let offset = self.writer.position();
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self.writer.append(io, &padded)?;
        let bytes = u32::try_from(bytes.len()).expect("a part of the index is far below 4 GiB");
        Ok(Extent { offset, bytes, crc: crc32(&padded) })
    }
}
