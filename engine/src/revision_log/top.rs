//! The top of a segment: one row for each index block, all in memory while the segment is in use.
//!
//! **Layout**, little-endian, 40 bytes a row, in order; zeros up to a multiple of 4 KiB.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | main revision of the block's first entry |
//! | 8 | 8 | its sub revision |
//! | 16 | 8 | offset in the file of its record |
//! | 24 | 4 | its ordinal |
//! | 28 | 4 | offset of the block, in units of 4 KiB |
//! | 32 | 4 | bytes of the block, without the zeros behind it |
//! | 36 | 4 | checksum of the block, with the zeros |
//!
//! Blocks follow one another without gaps, from the first 4 KiB boundary behind the records.
//!
//! **Does not know** what an index block holds.
use super::index::{BLOCK_BYTES_MAX, Bounds};
use super::trailer::Trailer;
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::Revision;
use crate::io::disk::BLOCK_BYTES;

/// Bytes of one row.
pub(super) const ROW_BYTES: usize = 40;

/// Where one index block is, and what it starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) first: Revision,
    pub(super) first_record_offset: u64,
    pub(super) first_ordinal: u32,
    /// In units of 4 KiB.
    pub(super) block: u32,
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

impl Row {
    /// Offset of the index block in the file.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.block) * BLOCK_BYTES as u64
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.main.to_le_bytes());
        out.extend_from_slice(&self.first.sub.to_le_bytes());
        out.extend_from_slice(&self.first_record_offset.to_le_bytes());
        for number in [self.first_ordinal, self.block, self.bytes, self.crc] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        Ok(Self {
            first: Revision::new(reader.i64()?, reader.i64()?),
            first_record_offset: reader.u64()?,
            first_ordinal: reader.u32()?,
            block: reader.u32()?,
            bytes: reader.u32()?,
            crc: reader.u32()?,
        })
    }
}

/// All rows of a segment; what is in one was checked against its neighbours and the trailer.
#[derive(Debug)]
pub(super) struct Top {
    rows: Vec<Row>,
    records: u32,
    records_end: u64,
}

impl Top {
    /// Takes over the rows of a segment with this trailer, whose checksum they have.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(super) fn decode(bytes: &[u8], trailer: &Trailer) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let mut rows = Vec::with_capacity(bytes.len() / ROW_BYTES);
        while !reader.is_empty() {
            let row = Row::decode(&mut reader).map_err(|Truncated| {
                format!("rows of {ROW_BYTES} bytes expected, {} bytes found", bytes.len())
            })?;
            rows.push(row);
        }
        let top = Self { rows, records: trailer.records, records_end: trailer.records_end };
        top.check(trailer)?;
        Ok(top)
    }

    fn check(&self, trailer: &Trailer) -> Result<(), String> {
        let Some(first) = self.rows.first() else {
            return match trailer.records {
                0 => Ok(()),
                records => Err(format!("rows for {records} records expected, none found")),
            };
        };
        let starts_well = first.first == trailer.first
            && first.first_ordinal == 0
            && first.first_record_offset == BLOCK_BYTES as u64
            && first.offset() == trailer.records_end.next_multiple_of(BLOCK_BYTES as u64);
        if !starts_well {
            return Err(format!(
                "a first row for revision {} and ordinal 0 expected, {first:?} found",
                trailer.first
            ));
        }
        for (number, row) in self.rows.iter().enumerate() {
            let next = self.rows.get(number + 1);
            let end = row.offset() + u64::from(row.bytes).next_multiple_of(BLOCK_BYTES as u64);
            let fits = (1..=BLOCK_BYTES_MAX).contains(&(row.bytes as usize))
                && next.map_or(trailer.top.offset, Row::offset) == end
                && next.is_none_or(|next| next.first > row.first)
                && row.first_ordinal < next.map_or(self.records, |next| next.first_ordinal)
                && row.first_record_offset < next.map_or(self.records_end, |next| next.first_record_offset);
            if !fits {
                return Err(format!(
                    "rows in order and without gaps expected, {row:?} before {next:?} found"
                ));
            }
        }
        Ok(())
    }

    /// How many index blocks there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row of a block.
    pub(super) fn row(&self, number: usize) -> Option<&Row> {
        self.rows.get(number)
    }

    /// The block that holds the first record of at least `revision`, or ends just before it.
    pub(super) fn block_of(&self, revision: Revision) -> usize {
        self.rows.partition_point(|row| row.first <= revision).saturating_sub(1)
    }

    /// What the entries of a block must keep to.
    ///
    /// # Panics
    /// If there is no such block.
    pub(super) fn bounds(&self, number: usize) -> Bounds {
        let (row, next) = (&self.rows[number], self.rows.get(number + 1));
        Bounds {
            first: row.first,
            before: next.map(|next| next.first),
            ordinals: row.first_ordinal..next.map_or(self.records, |next| next.first_ordinal),
            records: row.first_record_offset..next.map_or(self.records_end, |next| next.first_record_offset),
        }
    }
}
