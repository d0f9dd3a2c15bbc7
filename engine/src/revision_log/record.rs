//! One record as bytes.
//!
//! **Layout**, little-endian; `n` is an unsigned LEB128 number, and an i64 travels as the u64 of the same bits.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | checksum of bytes 4 to the end of the body; its initial value is the checksum of the record's place |
//! | 4 | 4 | bytes of the body |
//! | 8 | 1 | flags: 1 tombstone, 2 value is compressed, 4 has a previous version, 8 has a jump, 16 has more |
//! | 9 | n | main revision |
//! | | n | sub revision |
//! | | n | create revision: main revision minus it, modulo 2^64; in a tombstone as it is |
//! | | n | version; not in a tombstone |
//! | | n | lease |
//! | | n n n | previous version, if flag 4: main revision minus its main, its sub, its record bytes |
//! | | n n | jump, if flag 8: main revision minus its main, its sub |
//! | | n | how many more, if flag 16: at least 1 |
//! | | n n each | main revision of the jump before minus its main, its sub |
//! | | n | bytes of the key |
//! | | n | bytes of the value, uncompressed |
//! | | | key |
//! | | | value, as stored: the rest of the body |
//!
//! A record starts at a multiple of 8; zeros fill the gap. Its **place** is database (16) · segment id (u32) · offset in
//! the file (u64): the record verifies nowhere else. Revisions are whole, not relative to the segment, so that records
//! can be found again in a file that has lost its end.
//!
//! **Does not know** how values are compressed.
use super::varint;
use super::{JUMPS_MAX, LogRecord, Prev, RECORD_BYTES_MAX};
use crate::base::checksum::{crc32, crc32_seeded};
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::{Revision, SegmentId};

/// Records start at multiples of it.
pub(super) const ALIGNMENT: usize = 8;
/// Checksum and length.
pub(super) const HEADER_BYTES: usize = 8;
/// More than all fields of a record need but key and value: header, flags, ten numbers and those of the jumps.
const FIELDS_BYTES_MAX: usize = HEADER_BYTES + 1 + (10 + 2 * JUMPS_MAX) * 10;
/// Longest record in a file.
pub(super) const STORED_BYTES_MAX: usize = FIELDS_BYTES_MAX + RECORD_BYTES_MAX;

const TOMBSTONE: u8 = 1;
const COMPRESSED: u8 = 2;
const HAS_PREV: u8 = 4;
const HAS_JUMP: u8 = 8;
const HAS_MORE_JUMPS: u8 = 16;
const FLAGS: u8 = TOMBSTONE | COMPRESSED | HAS_PREV | HAS_JUMP | HAS_MORE_JUMPS;

/// The checksums that records of one segment start from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    segment_seed: u32,
}

impl Places {
    pub(super) fn new(database: [u8; 16], segment: SegmentId) -> Self {
        Self { segment_seed: crc32_seeded(crc32(&database), &segment.0.to_le_bytes()) }
    }

    /// The initial value for the record at `offset`. Different for any two offsets in the first 4 GiB of a file:
    /// a CRC tells any two strings apart that differ within 32 bits.
    fn seed(self, offset: u64) -> u32 {
        crc32_seeded(self.segment_seed, &offset.to_le_bytes())
    }
}

/// A value as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StoredValue<'a> {
    /// Length uncompressed.
    pub(super) raw_bytes: u32,
    pub(super) compressed: bool,
    pub(super) bytes: &'a [u8],
}

/// A record of a file, its value as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StoredRecord<'a> {
    /// Everything but jumps and value, which are empty here.
    pub(super) record: LogRecord<'a>,
    pub(super) jumps: Vec<Revision>,
    pub(super) value: StoredValue<'a>,
    /// Length in the file, without the zeros behind it.
    pub(super) stored_bytes: u32,
}

/// Appends `record` for the place `offset`, padded to [`ALIGNMENT`]; its length without the padding. `compressed` is
/// stored in place of its value.
pub(super) fn encode(
    out: &mut Vec<u8>,
    places: Places,
    offset: u64,
    record: &LogRecord<'_>,
    compressed: Option<&[u8]>,
) -> u32 {
    assert!(record.key.len() + record.value.len() <= RECORD_BYTES_MAX, "the writer refuses longer records");
    let start = out.len();
    let value = compressed.unwrap_or(record.value);
    out.reserve(FIELDS_BYTES_MAX.min(256) + record.key.len() + value.len() + ALIGNMENT);
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        flag(record.is_tombstone(), TOMBSTONE)
            | flag(compressed.is_some(), COMPRESSED)
            | flag(record.prev.is_some(), HAS_PREV)
            | flag(!record.jumps.is_empty(), HAS_JUMP)
            | flag(record.jumps.len() > 1, HAS_MORE_JUMPS),
    );
    let main = record.revision.main;
    varint::put_i64(out, main);
    varint::put_i64(out, record.revision.sub);
    if record.is_tombstone() {
        varint::put_i64(out, record.create_revision);
    } else {
        varint::put_i64(out, main.wrapping_sub(record.create_revision));
        varint::put_i64(out, record.version);
    }
    varint::put_i64(out, record.lease);
    if let Some(prev) = record.prev {
        put_older(out, main, prev.revision);
        varint::put(out, prev.record_bytes);
    }
    if let Some((first, more)) = record.jumps.split_first() {
        put_older(out, main, *first);
        if !more.is_empty() {
            varint::put(out, more.len() as u64);
        }
        let mut before = first.main;
        for jump in more {
            put_older(out, before, *jump);
            before = jump.main;
        }
    }
    varint::put(out, record.key.len() as u64);
    varint::put(out, record.value.len() as u64);
    out.extend_from_slice(record.key);
    out.extend_from_slice(value);
    let stored_bytes = out.len() - start;
    let body_bytes = u32::try_from(stored_bytes - HEADER_BYTES).expect("a record is bounded");
    out[start + 4..start + HEADER_BYTES].copy_from_slice(&body_bytes.to_le_bytes());
    let crc = crc32_seeded(places.seed(offset), &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + stored_bytes.next_multiple_of(ALIGNMENT), 0);
    body_bytes + HEADER_BYTES as u32
}

/// Reads the record at the start of `bytes`, which stand at `offset` of the file; more may follow it.
///
/// # Errors
/// What was expected and what was found, if it is not a record that was written to this place.
pub(super) fn decode(places: Places, offset: u64, bytes: &[u8]) -> Result<StoredRecord<'_>, String> {
    let mut reader = Reader::new(bytes);
    let header = reader.u32().and_then(|crc| Ok((crc, reader.u32()?)));
    let (crc, body_bytes) = header
        .map_err(|_| format!("a record of at least {HEADER_BYTES} bytes expected, {} found", bytes.len()))?;
    let body = usize::try_from(body_bytes).map_err(|_| Truncated).and_then(|count| reader.take(count));
    let body = body.map_err(|_| {
        format!("a record with a body of {body_bytes} bytes expected, {} found", bytes.len() - HEADER_BYTES)
    })?;
    let crc_found = crc32_seeded(places.seed(offset), &bytes[4..HEADER_BYTES + body.len()]);
    if crc != crc_found {
        return Err(format!(
            "the record has the checksum {crc:#010x}; its bytes give {crc_found:#010x} at this place"
        ));
    }
    if body.len() > STORED_BYTES_MAX {
        return Err(format!("a record of at most {STORED_BYTES_MAX} bytes expected, {} found", body.len()));
    }
    let (record, jumps, value) = decode_body(body)
        .map_err(|Malformed(what)| format!("a well-formed record expected, one found with {what}"))?;
    // The body fits a slice and is bounded above.
    let stored_bytes = body_bytes + HEADER_BYTES as u32;
    Ok(StoredRecord { record, jumps, value, stored_bytes })
}

pub(super) struct Malformed(&'static str);

impl From<Truncated> for Malformed {
    fn from(_: Truncated) -> Self {
        Self("a field that ends too early or is too large")
    }
}

type Fields<'a> = (LogRecord<'a>, Vec<Revision>, StoredValue<'a>);

pub(super) fn decode_body(body: &[u8]) -> Result<Fields<'_>, Malformed> {
    let mut reader = Reader::new(body);
    let flags = reader.u8()?;
    if flags & !FLAGS != 0 {
        return Err(Malformed("unknown flags"));
    }
    let tombstone = flags & TOMBSTONE != 0;
    let revision = Revision::new(varint::take_i64(&mut reader)?, varint::take_i64(&mut reader)?);
    if revision.main < 0 || revision.sub < 0 {
        return Err(Malformed("a negative revision"));
    }
    let create = varint::take_i64(&mut reader)?;
    let (create_revision, version) = if tombstone {
        (create, 0)
    } else {
        (revision.main.wrapping_sub(create), varint::take_i64(&mut reader)?)
    };
    if !tombstone && version == 0 {
        return Err(Malformed("version 0 in a put"));
    }
    let lease = varint::take_i64(&mut reader)?;
    let mut prev = None;
    if flags & HAS_PREV != 0 {
        let older = take_older(&mut reader, revision)?;
        prev = Some(Prev { revision: older, record_bytes: varint::take(&mut reader)? });
    }
    let jumps = take_jumps(&mut reader, flags, revision)?;
    let key_bytes = varint::take_u32(&mut reader)? as usize;
    let raw_bytes = varint::take_u32(&mut reader)?;
    if key_bytes.saturating_add(raw_bytes as usize) > RECORD_BYTES_MAX {
        return Err(Malformed("more bytes of key and value than a record may have"));
    }
    let key = reader.take(key_bytes)?;
    let value = StoredValue { raw_bytes, compressed: flags & COMPRESSED != 0, bytes: reader.rest() };
    if !value.compressed && value.bytes.len() != raw_bytes as usize {
        return Err(Malformed("a value of another length than it says"));
    }
    if tombstone && (value.compressed || raw_bytes != 0) {
        return Err(Malformed("a value in a tombstone"));
    }
    let record = LogRecord { revision, version, create_revision, lease, prev, jumps: &[], key, value: &[] };
    Ok((record, jumps, value))
}

fn take_jumps(reader: &mut Reader<'_>, flags: u8, revision: Revision) -> Result<Vec<Revision>, Malformed> {
    let mut jumps = Vec::new();
    if flags & HAS_JUMP != 0 {
        jumps.push(take_older(reader, revision)?);
    }
    if flags & HAS_MORE_JUMPS != 0 {
        let mut before = *jumps.first().ok_or(Malformed("more jumps than none"))?;
        let more = varint::take_u32(reader)? as usize;
        if more == 0 || more >= JUMPS_MAX {
            return Err(Malformed("no more jumps, or too many"));
        }
        for _ in 0..more {
            before = take_older(reader, before)?;
            jumps.push(before);
        }
    }
    Ok(jumps)
}

/// Appends a revision that is older than one of main revision `main`.
pub(super) fn put_older(out: &mut Vec<u8>, main: i64, older: Revision) {
    varint::put_i64(out, main - older.main);
    varint::put_i64(out, older.sub);
}

/// Reads a revision that must be older than `revision`.
pub(super) fn take_older(reader: &mut Reader<'_>, revision: Revision) -> Result<Revision, Truncated> {
    let main = revision.main.checked_sub(varint::take_i64(reader)?).ok_or(Truncated)?;
    let older = Revision::new(main, varint::take_i64(reader)?);
    if older.main < 0 || older.sub < 0 || older >= revision { Err(Truncated) } else { Ok(older) }
}

/// Length of etcd's `KeyValue` message of `record` (fields 1 key, 2 create revision, 3 mod revision, 4 version,
/// 5 value, 6 lease; proto3 leaves out what is empty or 0). etcd's store keeps the key alone of a tombstone.
pub(super) fn kv_bytes(record: &LogRecord<'_>) -> u32 {
    let number = |number: i64| match number {
        0 => 0,
        number => 1 + varint::bytes(number.cast_unsigned()),
    };
    // Bounded by RECORD_BYTES_MAX, as the writer has checked.
    let field = |bytes: &[u8]| match bytes.len() as u32 {
        0 => 0,
        count => 1 + varint::bytes(u64::from(count)) + count,
    };
    if record.is_tombstone() {
        return field(record.key);
    }
    field(record.key)
        + number(record.create_revision)
        + number(record.revision.main)
        + number(record.version)
        + field(record.value)
        + number(record.lease)
}
