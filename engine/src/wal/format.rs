//! Bytes of the log: segment header, group header, record header, body of the end-of-segment record.
//!
//! Everything is little-endian. A segment is one file of `segment_bytes`:
//!
//! ```text
//! segment = header block (4 KiB) | group | group | … | end-of-segment group | unused
//! group   = header (64 B) | records, each 8-byte aligned | zeros up to a multiple of 4 KiB
//! record  = header (32 B) | body | zeros up to a multiple of 8
//! ```
//!
//! The tables with every offset are in `docs/data_file.md`; a change here without one there is a mistake.
//!
//! **Invariants.** W1: the groups of a log follow one another without a gap inside a segment, each naming the
//! checksum of the header before it (`prev_crc`), across segments too. W4: `durable_lsn` in a group or segment
//! header is a promise: every byte before it was durable when the header was written.
//!
//! **Why a salt.** Segments are used again without being erased, so old groups lie where new ones are expected. A
//! group belongs to the present life of a file only if it repeats the low half of the salt of the file's header; its
//! own header checksum starts from that half, so it can be verified without the header block.
use crate::base::checksum::{crc32, crc32_seeded};
use crate::base::codec::Reader;
use crate::base::ids::{GroupId, Lsn};
use crate::io::disk::BLOCK_BYTES;

/// Version of everything in this file. A reader refuses a higher one.
pub const FORMAT_VERSION: u32 = 1;
/// Smallest segment: the crash tests use it.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// Largest segment, and the default.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Largest group, header and padding included.
pub const GROUP_BYTES_MAX: usize = 1 << 20;
/// Most groups that are submitted and not acknowledged: together with [`GROUP_BYTES_MAX`] it bounds what a crash can leave behind
/// the end of the log.
pub const GROUPS_IN_FLIGHT_MAX: usize = 4;
/// What a crash can leave behind the end of the log.
pub const IN_FLIGHT_BYTES_MAX: u64 = (GROUPS_IN_FLIGHT_MAX * GROUP_BYTES_MAX) as u64;
/// Longer bodies are split into fragments.
pub const FRAGMENT_BYTES_MAX: usize = 512 << 10;
/// Longest body of one record, all fragments together.
pub const BODY_BYTES_MAX: usize = 256 << 20;
/// Longest body of a `HardState` or `SnapshotMark`: both are repeated at the start of every segment.
pub const STATE_BODY_BYTES_MAX: usize = 4096;
/// Most replication groups in one log: the end-of-segment record lists them in one block.
pub const GROUP_IDS_MAX: usize = 64;

/// Bytes of the header block of a segment.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK_BYTES;
/// Bytes of a group header.
pub const GROUP_HEADER_BYTES: usize = 64;
/// Bytes of a record header.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Bytes of an end-of-segment group; always kept free at the end of a segment.
pub const EOS_BYTES: usize = BLOCK_BYTES;
const EOS_ENTRY_BYTES: usize = 32;

const _: () = {
    assert!(
        GROUP_HEADER_BYTES + RECORD_HEADER_BYTES + 8 + GROUP_IDS_MAX * EOS_ENTRY_BYTES <= EOS_BYTES,
        "one block holds the end-of-segment record"
    );
    assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64, "offsets inside a segment fit 32 bits");
    assert!(GROUP_HEADER_BYTES + RECORD_HEADER_BYTES + FRAGMENT_BYTES_MAX <= GROUP_BYTES_MAX);
};

const SEGMENT_MAGIC: [u8; 8] = *b"STRNPWAL";
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"WGRP");

/// Group flag: the last group of its segment.
pub const GROUP_EOS: u8 = 1;
/// Group flag: written after a pause, only to promise what was acknowledged before.
pub const GROUP_IDLE: u8 = 2;
/// Group flag: written when the log was closed; promises everything.
pub const GROUP_CLOSE: u8 = 4;
/// Group flag: the first group of its segment, which repeats the newest states.
pub const GROUP_FIRST: u8 = 8;

/// Record flag: starts a body.
pub const RECORD_FIRST: u8 = 1;
/// Record flag: ends a body; without it the fragments before are no record.
pub const RECORD_LAST: u8 = 2;
/// Record flag: a copy of a state that stands earlier in the log too.
pub const RECORD_REPEATED: u8 = 4;
/// Record flag of a `HardState`: every entry of its replication group up to its index was durable when it was
/// appended, so a missing one is damage.
pub const RECORD_WITNESS: u8 = 8;
/// Both ends: a body in one piece.
pub const RECORD_WHOLE: u8 = RECORD_FIRST | RECORD_LAST;

/// What a record is. Bodies are the caller's, except those of `Eos`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// Operations of the embedded database, before evaluation.
    Batch = 1,
    /// An entry of a replicated log.
    RaftEntry = 2,
    /// Term, vote and commit index (the record's index) of a replication group.
    HardState = 3,
    /// The log of the group goes on behind this index: what came before is in a snapshot.
    SnapshotMark = 4,
    /// Entries up to this index are not needed any more.
    RaftCompact = 5,
    /// A checkpoint was published.
    CheckpointDone = 6,
    /// Last record of a segment: which indexes it holds.
    Eos = 7,
    /// Nothing.
    Pad = 8,
    /// What keys were before entries up to this index changed them: spares a replay reads of the disk.
    PriorNotes = 9,
}

impl RecordKind {
    /// The kind with this number.
    pub fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Batch,
            2 => Self::RaftEntry,
            3 => Self::HardState,
            4 => Self::SnapshotMark,
            5 => Self::RaftCompact,
            6 => Self::CheckpointDone,
            7 => Self::Eos,
            8 => Self::Pad,
            9 => Self::PriorNotes,
            _ => return None,
        })
    }

    /// True for the kinds whose index numbers the entries of a group.
    pub fn is_entry(self) -> bool {
        matches!(self, Self::Batch | Self::RaftEntry)
    }

    /// True for the kinds that every new segment repeats.
    pub fn is_state(self) -> bool {
        matches!(self, Self::HardState | Self::SnapshotMark)
    }
}

/// What the log knows of a record besides its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordMeta {
    /// What it is.
    pub kind: RecordKind,
    /// The caller's; stored, not interpreted.
    pub entry_type: u8,
    /// Which replication group it belongs to; 0 for `Batch`.
    pub group: GroupId,
    /// Term of an entry or state; 0 for `Batch`.
    pub term: u64,
    /// Index of an entry, commit index of a `HardState`, running number of a `Batch`.
    pub index: u64,
}

/// First block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Bytes of every segment of this log.
    pub segment_bytes: u32,
    /// Which database the log belongs to.
    pub database: [u8; 16],
    /// Number of the segment: 1, 2, 3, …
    pub seq: u64,
    /// Drawn anew for every life of the file.
    pub salt: u64,
    /// Promise (W4) as of the time this header was written.
    pub durable_lsn: Lsn,
}

/// Why a block is not the header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentHeaderFault {
    /// Not a header, or damaged.
    Damaged(&'static str),
    /// A header of a later format version.
    Future(u32),
}

impl SegmentHeader {
    /// The low half of the salt, which every group repeats.
    pub fn salt_lo(&self) -> u32 {
        self.salt as u32
    }

    /// Position of the segment's first byte.
    pub fn start_lsn(&self) -> Lsn {
        Lsn(self.seq * u64::from(self.segment_bytes))
    }

    /// Writes the header over `block`, which is one block.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), SEGMENT_HEADER_BYTES, "a segment header is one block");
        block.fill(0);
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.segment_bytes.to_le_bytes());
        block[16..32].copy_from_slice(&self.database);
        block[32..40].copy_from_slice(&self.seq.to_le_bytes());
        block[40..48].copy_from_slice(&self.salt.to_le_bytes());
        block[48..56].copy_from_slice(&self.start_lsn().0.to_le_bytes());
        block[56..64].copy_from_slice(&self.durable_lsn.0.to_le_bytes());
        let crc = crc32(&block[..SEGMENT_HEADER_BYTES - 4]);
        block[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header block. The checksum sits at the end of the block in every version to come.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentHeaderFault> {
        use SegmentHeaderFault::{Damaged, Future};
        let short = |_| Damaged("the header block is cut short");
        let mut reader = Reader::new(block);
        let covered = reader.take(SEGMENT_HEADER_BYTES - 4).map_err(short)?;
        let crc = reader.u32().map_err(short)?;
        let mut reader = Reader::new(covered);
        if reader.take(8).map_err(short)? != SEGMENT_MAGIC {
            return Err(Damaged("the header block has another magic number"));
        }
        if crc32(covered) != crc {
            return Err(Damaged("the checksum of the header block does not hold"));
        }
        let version = reader.u32().map_err(short)?;
        if version != FORMAT_VERSION {
            return Err(Future(version));
        }
        let segment_bytes = reader.u32().map_err(short)?;
        let mut database = [0; 16];
        database.copy_from_slice(reader.take(16).map_err(short)?);
        let (seq, salt) = (reader.u64().map_err(short)?, reader.u64().map_err(short)?);
        let (first_lsn, durable_lsn) = (reader.u64().map_err(short)?, reader.u64().map_err(short)?);
        if seq.checked_mul(u64::from(segment_bytes)) != Some(first_lsn) || seq == 0 || segment_bytes == 0 {
            return Err(Damaged("the header block contradicts itself"));
        }
        Ok(Self { segment_bytes, database, seq, salt, durable_lsn: Lsn(durable_lsn) })
    }
}

/// First 64 bytes of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// `GROUP_*` flags.
    pub flags: u8,
    /// Records in the group, fragments counted one by one.
    pub records_count: u16,
    /// Bytes of the whole group, a multiple of 4 KiB.
    pub group_len: u32,
    /// Bytes of the records, without header and padding.
    pub payload_len: u32,
    /// Position of the group.
    pub lsn: Lsn,
    /// Low 32 bits of the segment's number.
    pub seq: u32,
    /// Low half of the segment's salt.
    pub salt_lo: u32,
    /// Promise (W4): the first byte that was not known to be durable when this group was submitted.
    pub durable_lsn: Lsn,
    /// Header checksum of the group before (W1), which covers that group's `payload_crc`; 0 in the first group of
    /// a log.
    pub prev_crc: u32,
    /// Checksum of everything behind the header, padding included.
    pub payload_crc: u32,
    /// Hint for people: newest index of group id 0 in the log.
    pub last_index: u64,
    /// Hint for people: low half of the term of that entry.
    pub last_term: u32,
}

/// Why 64 bytes are not a group header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupHeaderFault {
    /// Not a group, or damaged.
    Damaged(&'static str),
    /// A group of a later format version, and the salt half it carries.
    Future(u8, u32),
}

impl GroupHeader {
    /// Writes the header over the first 64 bytes of `bytes` and returns its chain value.
    pub fn encode(&self, bytes: &mut [u8]) -> u32 {
        let bytes = &mut bytes[..GROUP_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
        bytes[4] = FORMAT_VERSION as u8;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.records_count.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.group_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.lsn.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.seq.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.salt_lo.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_lsn.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.last_index.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.last_term.to_le_bytes());
        let crc = crc32_seeded(self.salt_lo, &bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        Self::chain(bytes)
    }

    /// What the next group repeats as `prev_crc`: the header's own checksum. (Not a checksum over all 64 bytes: a
    /// CRC over bytes that end in their own CRC is the same for all of them.)
    pub fn chain(bytes: &[u8]) -> u32 {
        let mut chain = [0; 4];
        chain.copy_from_slice(&bytes[GROUP_HEADER_BYTES - 4..GROUP_HEADER_BYTES]);
        u32::from_le_bytes(chain)
    }

    /// Reads a header and verifies its checksum and that its lengths are possible. Whether it belongs where it
    /// was found is the caller's to judge.
    pub fn decode(bytes: &[u8]) -> Result<Self, GroupHeaderFault> {
        use GroupHeaderFault::{Damaged, Future};
        let short = |_| Damaged("the header is cut short");
        let header = bytes.get(..GROUP_HEADER_BYTES).ok_or(Damaged("the header is cut short"))?;
        let mut reader = Reader::new(header);
        if reader.u32().map_err(short)? != GROUP_MAGIC {
            return Err(Damaged("no group starts here"));
        }
        let version = reader.u8().map_err(short)?;
        let flags = reader.u8().map_err(short)?;
        let records_count = reader.u16().map_err(short)?;
        let group_len = reader.u32().map_err(short)?;
        let payload_len = reader.u32().map_err(short)?;
        let lsn = Lsn(reader.u64().map_err(short)?);
        let seq = reader.u32().map_err(short)?;
        let salt_lo = reader.u32().map_err(short)?;
        let durable_lsn = Lsn(reader.u64().map_err(short)?);
        let prev_crc = reader.u32().map_err(short)?;
        let payload_crc = reader.u32().map_err(short)?;
        let last_index = reader.u64().map_err(short)?;
        let last_term = reader.u32().map_err(short)?;
        if crc32_seeded(salt_lo, &header[..60]) != reader.u32().map_err(short)? {
            return Err(Damaged("the checksum of the group header does not hold"));
        }
        if u32::from(version) != FORMAT_VERSION {
            return Err(Future(version, salt_lo));
        }
        let (length, payload) = (group_len as usize, payload_len as usize);
        if length == 0
            || length % BLOCK_BYTES != 0
            || length > GROUP_BYTES_MAX
            || payload > length - GROUP_HEADER_BYTES
            || durable_lsn > lsn
        {
            return Err(Damaged("the group header contradicts itself"));
        }
        Ok(Self {
            flags,
            records_count,
            group_len,
            payload_len,
            lsn,
            seq,
            salt_lo,
            durable_lsn,
            prev_crc,
            payload_crc,
            last_index,
            last_term,
        })
    }
}

/// Bytes that a body of `body_bytes` takes in a group: header, body, padding to 8.
pub const fn record_bytes(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(8)
}

/// Writes one record (or fragment) over the start of `bytes`, padding included; returns how many bytes it took.
pub fn encode_record(bytes: &mut [u8], meta: &RecordMeta, flags: u8, body: &[u8]) -> usize {
    let taken = record_bytes(body.len());
    let record = &mut bytes[..taken];
    let length = u32::try_from(body.len()).expect("a fragment is shorter than a group");
    record[0..4].copy_from_slice(&length.to_le_bytes());
    record[4] = meta.kind as u8;
    record[5] = flags;
    record[6] = meta.entry_type;
    record[7] = FORMAT_VERSION as u8;
    record[12..16].copy_from_slice(&meta.group.0.to_le_bytes());
    record[16..24].copy_from_slice(&meta.term.to_le_bytes());
    record[24..32].copy_from_slice(&meta.index.to_le_bytes());
    let end = RECORD_HEADER_BYTES + body.len();
    record[RECORD_HEADER_BYTES..end].copy_from_slice(body);
    record[end..].fill(0);
    let crc = record_crc(&record[..end]);
    record[8..12].copy_from_slice(&crc.to_le_bytes());
    taken
}

/// Checksum of header and body except the field that holds it.
fn record_crc(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..8]);
    hasher.update(&record[12..]);
    hasher.finalize()
}

/// One record (or fragment) inside a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// Offset of the record's header behind the group header.
    pub offset: usize,
    /// Its header.
    pub meta: RecordMeta,
    /// `RECORD_*` flags.
    pub flags: u8,
    /// Its body, or the part of it in this fragment.
    pub body: &'a [u8],
}

/// Why the records of a group cannot be read though its checksums hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordFault {
    /// Lengths or checksums contradict the group's.
    Damaged(&'static str),
    /// A kind or record version of a later format.
    Future(u8),
}

/// The records of a payload, in order.
pub struct Records<'a> {
    payload: &'a [u8],
    offset: usize,
}

impl<'a> Records<'a> {
    /// The records of `payload`: the bytes behind a group header, `payload_len` of them.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, offset: 0 }
    }

    fn read(&mut self) -> Result<RecordView<'a>, RecordFault> {
        let short = |_| RecordFault::Damaged("a record reaches beyond its group");
        let offset = self.offset;
        let rest = &self.payload[offset..];
        let mut reader = Reader::new(rest);
        let length = reader.u32().map_err(short)? as usize;
        let kind = reader.u8().map_err(short)?;
        let flags = reader.u8().map_err(short)?;
        let entry_type = reader.u8().map_err(short)?;
        let version = reader.u8().map_err(short)?;
        let crc = reader.u32().map_err(short)?;
        let group = GroupId(reader.u32().map_err(short)?);
        let term = reader.u64().map_err(short)?;
        let index = reader.u64().map_err(short)?;
        let body = reader.take(length).map_err(short)?;
        if record_crc(&rest[..RECORD_HEADER_BYTES + length]) != crc {
            return Err(RecordFault::Damaged("the checksum of a record does not hold"));
        }
        if u32::from(version) != FORMAT_VERSION {
            return Err(RecordFault::Future(version));
        }
        let kind = RecordKind::from_u8(kind).ok_or(RecordFault::Future(kind))?;
        self.offset = self
            .payload
            .len()
            .min(offset.checked_add(record_bytes(length)).ok_or(RecordFault::Damaged("a length overflows"))?);
        Ok(RecordView { offset, meta: RecordMeta { kind, entry_type, group, term, index }, flags, body })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, RecordFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.payload.len() {
            return None;
        }
        let record = self.read();
        if record.is_err() {
            self.offset = self.payload.len();
        }
        Some(record)
    }
}

/// Which entries of one replication group a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentIndex {
    /// The replication group.
    pub group: GroupId,
    /// Index of its first entry in the segment.
    pub first_index: u64,
    /// Index of its last entry in the segment.
    pub last_index: u64,
    /// Offset of the first entry's record header in the file.
    pub first_offset: u32,
    /// Offset of the last entry's record header in the file.
    pub last_offset: u32,
}

/// Notes an entry at `offset` in the list of its segment.
pub fn note_entry(list: &mut Vec<SegmentIndex>, group: GroupId, index: u64, offset: u32) {
    match list.iter_mut().find(|entry| entry.group == group) {
        Some(entry) => (entry.last_index, entry.last_offset) = (index, offset),
        None => list.push(SegmentIndex {
            group,
            first_index: index,
            last_index: index,
            first_offset: offset,
            last_offset: offset,
        }),
    }
}

/// Body of the end-of-segment record: count (u32), zero (u32), then 32 bytes per replication group.
pub fn encode_eos(list: &[SegmentIndex], out: &mut Vec<u8>) {
    assert!(list.len() <= GROUP_IDS_MAX, "a log has at most {GROUP_IDS_MAX} replication groups");
    out.clear();
    out.extend_from_slice(&(list.len() as u32).to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    for entry in list {
        out.extend_from_slice(&entry.group.0.to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&entry.first_index.to_le_bytes());
        out.extend_from_slice(&entry.last_index.to_le_bytes());
        out.extend_from_slice(&entry.first_offset.to_le_bytes());
        out.extend_from_slice(&entry.last_offset.to_le_bytes());
    }
}

/// Reads what [`encode_eos`] wrote.
pub fn decode_eos(body: &[u8]) -> Option<Vec<SegmentIndex>> {
    let mut reader = Reader::new(body);
    let count = reader.u32().ok()? as usize;
    reader.u32().ok()?;
    if count > GROUP_IDS_MAX {
        return None;
    }
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        let group = GroupId(reader.u32().ok()?);
        reader.u32().ok()?;
        let (first_index, last_index) = (reader.u64().ok()?, reader.u64().ok()?);
        let (first_offset, last_offset) = (reader.u32().ok()?, reader.u32().ok()?);
        list.push(SegmentIndex { group, first_index, last_index, first_offset, last_offset });
    }
    reader.is_empty().then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_header() -> GroupHeader {
        GroupHeader {
            flags: GROUP_FIRST,
            records_count: 3,
            group_len: 8192,
            payload_len: 5000,
            lsn: Lsn(70_000),
            seq: 1,
            salt_lo: 0xDEAD_BEEF,
            durable_lsn: Lsn(69_632),
            prev_crc: 7,
            payload_crc: 8,
            last_index: 9,
            last_term: 10,
        }
    }

    #[test]
    fn every_flipped_bit_of_a_group_header_is_seen() {
        let mut bytes = [0; GROUP_HEADER_BYTES];
        let chain = group_header().encode(&mut bytes);
        assert_eq!(GroupHeader::decode(&bytes), Ok(group_header()));
        assert_eq!(GroupHeader::chain(&bytes), chain);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(GroupHeader::decode(&bad), Err(GroupHeaderFault::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn the_chain_depends_on_every_field() {
        let chain = |header: GroupHeader| header.encode(&mut [0; GROUP_HEADER_BYTES]);
        let plain = chain(group_header());
        assert_ne!(plain, chain(GroupHeader { payload_crc: 9, ..group_header() }));
        assert_ne!(plain, chain(GroupHeader { prev_crc: 9, ..group_header() }));
        assert_ne!(plain, chain(GroupHeader { durable_lsn: Lsn(1), ..group_header() }));
    }

    #[test]
    fn every_flipped_bit_of_a_segment_header_is_seen() {
        let header = SegmentHeader {
            segment_bytes: 65536,
            database: [5; 16],
            seq: 3,
            salt: 0x1234_5678_9ABC_DEF0,
            durable_lsn: Lsn(131_072),
        };
        let mut block = [0xFF; SEGMENT_HEADER_BYTES];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
        for bit in 0..block.len() * 8 {
            let mut bad = block;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(SegmentHeader::decode(&bad), Err(SegmentHeaderFault::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn records_are_read_back_in_order_and_every_flipped_bit_is_seen() {
        let meta = |index| RecordMeta {
            kind: RecordKind::RaftEntry,
            entry_type: 2,
            group: GroupId(4),
            term: 5,
            index,
        };
        let mut payload = vec![0xFF; 4096];
        let mut used = 0;
        for (index, body) in [&b"first"[..], b"", b"a body of 24 bytes, even"].iter().enumerate() {
            used += encode_record(&mut payload[used..], &meta(index as u64), RECORD_WHOLE, body);
        }
        payload.truncate(used);
        let read: Vec<_> = Records::new(&payload).map(|record| record.unwrap()).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].body, b"first");
        assert_eq!((read[1].offset, read[1].meta), (40, meta(1)));
        for bit in 0..RECORD_HEADER_BYTES * 8 + 5 * 8 {
            let mut bad = payload.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Records::new(&bad).next().unwrap().is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_end_of_segment_record_lists_every_replication_group_in_one_block() {
        let mut list = Vec::new();
        for group in 0..GROUP_IDS_MAX as u32 {
            note_entry(&mut list, GroupId(group), 10, 4096);
            note_entry(&mut list, GroupId(group), 12, 8192);
        }
        let mut body = Vec::new();
        encode_eos(&list, &mut body);
        assert!(GROUP_HEADER_BYTES + record_bytes(body.len()) <= EOS_BYTES);
        assert_eq!(decode_eos(&body), Some(list));
        assert_eq!(decode_eos(&body[1..]), None);
    }
}
