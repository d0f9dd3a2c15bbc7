//! Index blocks: what a segment knows of its records without reading them.
//!
//! **Layout.** A block is a row of entries, at most [`BLOCK_BYTES_MAX`], in revision order; zeros fill it to a multiple
//! of 4 KiB. Its checksum, over the zeros too, stands in the top, with the first revision, ordinal and record offset.
//! One entry (`n` is an unsigned LEB128 number):
//!
//! | size | field |
//! |---|---|
//! | 1 | flags: 1 tombstone, 2 created its key, 4 has a previous version |
//! | n | main revision minus that of the entry before; as it is in the first entry of a block |
//! | n | sub revision; minus that of the entry before and 1 if the main revision is the same |
//! | n | bytes of the record in the file, without the zeros behind it |
//! | n n n | previous version, if flag 4: main revision minus its main, its sub, its record bytes |
//! | n | bytes of the key |
//! | n | bytes of the value, uncompressed |
//! | n | bytes of etcd's `KeyValue` message, minus bytes of key and value |
//!
//! Offsets are not stored: a record starts where the one before ends, rounded up to 8. Fifteen bytes a record.
//!
//! **In memory** a block stays as it is, with a restart point every [`RESTART_ENTRIES`] entries to search by: decoded
//! entries would take seven times the memory. It is decoded once as a whole when it is loaded, so that it cannot fail
//! later.
//!
//! **Does not know** where blocks are.
use super::record::{ALIGNMENT, STORED_BYTES_MAX, put_older, take_older};
use super::{Entry, Prev, RECORD_BYTES_MAX, varint};
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::Revision;
use std::ops::Range;

/// Longest block, without the zeros behind it.
pub(super) const BLOCK_BYTES_MAX: usize = 8 << 10;
/// Entries between two restart points: half of them are decoded to find one, 20 ns each.
const RESTART_ENTRIES: u32 = 16;
/// More than any entry takes: flags and ten numbers.
const ENTRY_BYTES_MAX: usize = 1 + 10 * 10;

const TOMBSTONE: u8 = 1;
const CREATED: u8 = 2;
const HAS_PREV: u8 = 4;
const FLAGS: u8 = TOMBSTONE | CREATED | HAS_PREV;

/// What the top says of a block, and what of the next bounds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// Revision of the first entry.
    pub(super) first: Revision,
    /// All revisions are below it, if there is a next block.
    pub(super) before: Option<Revision>,
    /// Its entries.
    pub(super) ordinals: Range<u32>,
    /// The bytes of the file that their records fill.
    pub(super) records: Range<u64>,
}

/// A place between two entries, with what is needed to decode the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// Offset in the block.
    at: usize,
    /// Ordinal of the next entry.
    ordinal: u32,
    /// Revision of the entry before; none at the start of the block.
    previous: Option<Revision>,
    /// Offset of the next entry's record.
    record_offset: u64,
}

/// A block in memory.
#[derive(Debug)]
pub(super) struct IndexBlock {
    bytes: Box<[u8]>,
    ordinal_end: u32,
    /// Revision of the entry at each restart point.
    restarts: Box<[(Revision, Position)]>,
}

impl IndexBlock {
    /// Takes over the bytes of a block, which have the checksum that the top says.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(super) fn decode(bytes: &[u8], bounds: &Bounds) -> Result<Self, String> {
        let mut position = Position {
            at: 0,
            ordinal: bounds.ordinals.start,
            previous: None,
            record_offset: bounds.records.start,
        };
        // By the bytes, not by the count, which is only a claim: an entry takes seven bytes or more.
        let mut restarts = Vec::with_capacity(bytes.len() / (7 * RESTART_ENTRIES as usize) + 1);
        while position.ordinal < bounds.ordinals.end {
            let before = position;
            let entry = decode_entry(bytes, &mut position).map_err(|Truncated| {
                format!("a well-formed entry {} of the index expected, none found", before.ordinal)
            })?;
            if (before.ordinal - bounds.ordinals.start).is_multiple_of(RESTART_ENTRIES) {
                restarts.push((entry.revision, before));
            }
        }
        let first = restarts.first().map(|(revision, _)| *revision);
        if first != Some(bounds.first) {
            return Err(format!(
                "an index block from revision {} expected, one from {first:?} found",
                bounds.first
            ));
        }
        if position.at != bytes.len() || position.record_offset != bounds.records.end {
            return Err(format!(
                "{} bytes of index for records up to offset {} expected, {} for records up to {} found",
                bytes.len(),
                bounds.records.end,
                position.at,
                position.record_offset
            ));
        }
        if let (Some(last), Some(before)) = (position.previous, bounds.before)
            && last >= before
        {
            return Err(format!("revisions below {before} expected in an index block, {last} found"));
        }
        Ok(Self { bytes: bytes.into(), ordinal_end: bounds.ordinals.end, restarts: restarts.into() })
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + size_of_val(&*self.restarts)
    }

    /// The place before the first entry whose revision is at least `from`; perhaps the end.
    pub(super) fn seek(&self, from: Revision) -> Position {
        let after = self.restarts.partition_point(|(revision, _)| *revision <= from);
        // A block has an entry, and with it a restart point.
        let mut position = self.restarts[after.saturating_sub(1)].1;
        loop {
            let before = position;
            match self.next(&mut position) {
                Some(entry) if entry.revision < from => {}
                Some(_) => return before,
                None => return position,
            }
        }
    }

    /// The entry behind `position`, which moves behind it; `None` at the end.
    pub(super) fn next(&self, position: &mut Position) -> Option<Entry> {
        (position.ordinal < self.ordinal_end)
            .then(|| decode_entry(&self.bytes, position).expect("the block was decoded when it was loaded"))
    }
}

fn decode_entry(block: &[u8], position: &mut Position) -> Result<Entry, Truncated> {
    let rest = block.get(position.at..).ok_or(Truncated)?;
    let mut reader = Reader::new(rest);
    let flags = reader.u8()?;
    let (tombstone, created) = (flags & TOMBSTONE != 0, flags & CREATED != 0);
    if flags & !FLAGS != 0 || (tombstone && created) {
        return Err(Truncated);
    }
    let revision = take_revision(&mut reader, position.previous)?;
    let stored_bytes = varint::take_u32(&mut reader)?;
    let mut prev = None;
    if flags & HAS_PREV != 0 {
        let older = take_older(&mut reader, revision)?;
        prev = Some(Prev { revision: older, record_bytes: varint::take(&mut reader)? });
    }
    let key_bytes = varint::take_u32(&mut reader)?;
    let value_bytes = varint::take_u32(&mut reader)?;
    let kv_extra_bytes = varint::take_u32(&mut reader)?;
    let kv_bytes = key_bytes.checked_add(value_bytes).and_then(|bytes| bytes.checked_add(kv_extra_bytes));
    let entry = Entry {
        ordinal: position.ordinal,
        revision,
        tombstone,
        created,
        prev,
        key_bytes,
        value_bytes,
        offset: position.record_offset,
        stored_bytes,
        kv_bytes: kv_bytes.ok_or(Truncated)?,
    };
    let too_large = key_bytes as usize + value_bytes as usize > RECORD_BYTES_MAX
        || stored_bytes as usize > STORED_BYTES_MAX
        || position.record_offset > u64::MAX / 2;
    if too_large {
        return Err(Truncated);
    }
    *position = Position {
        at: position.at + rest.len() - reader.rest().len(),
        ordinal: position.ordinal.checked_add(1).ok_or(Truncated)?,
        previous: Some(revision),
        record_offset: entry.end(),
    };
    Ok(entry)
}

fn take_revision(reader: &mut Reader<'_>, previous: Option<Revision>) -> Result<Revision, Truncated> {
    let (main_delta, sub) = (varint::take_i64(reader)?, varint::take_i64(reader)?);
    if main_delta < 0 || sub < 0 {
        return Err(Truncated);
    }
    let revision = match previous {
        None => Some(Revision::new(main_delta, sub)),
        Some(previous) if main_delta == 0 => previous
            .sub
            .checked_add(1)
            .and_then(|next| next.checked_add(sub))
            .map(|sub| Revision::new(previous.main, sub)),
        Some(previous) => previous.main.checked_add(main_delta).map(|main| Revision::new(main, sub)),
    };
    revision.ok_or(Truncated)
}

/// A block that is being made.
#[derive(Debug)]
pub(super) struct BlockBuilder {
    pub(super) bytes: Vec<u8>,
    /// What [`Bounds`] need of the first entry.
    pub(super) first: Revision,
    pub(super) first_ordinal: u32,
    pub(super) first_record_offset: u64,
}

/// Collects the index of a segment: fifteen bytes in memory for each record.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    blocks: Vec<BlockBuilder>,
    previous: Option<Revision>,
}

impl IndexBuilder {
    /// Adds the next record.
    pub(super) fn push(&mut self, entry: &Entry) {
        let full =
            self.blocks.last().is_none_or(|block| block.bytes.len() + ENTRY_BYTES_MAX > BLOCK_BYTES_MAX);
        if full {
            self.previous = None;
            self.blocks.push(BlockBuilder {
                bytes: Vec::with_capacity(BLOCK_BYTES_MAX),
                first: entry.revision,
                first_ordinal: entry.ordinal,
                first_record_offset: entry.offset,
            });
        }
        let block = self.blocks.last_mut().expect("one was made");
        encode_entry(&mut block.bytes, entry, self.previous);
        self.previous = Some(entry.revision);
    }

    /// The blocks in order.
    pub(super) fn into_blocks(self) -> Vec<BlockBuilder> {
        self.blocks
    }
}

fn encode_entry(out: &mut Vec<u8>, entry: &Entry, previous: Option<Revision>) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(
        flag(entry.tombstone, TOMBSTONE)
            | flag(entry.created, CREATED)
            | flag(entry.prev.is_some(), HAS_PREV),
    );
    let Revision { main, sub } = entry.revision;
    let (main_delta, sub) = match previous {
        None => (main, sub),
        Some(previous) if previous.main == main => (0, sub - previous.sub - 1),
        Some(previous) => (main - previous.main, sub),
    };
    varint::put_i64(out, main_delta);
    varint::put_i64(out, sub);
    varint::put(out, u64::from(entry.stored_bytes));
    if let Some(prev) = entry.prev {
        put_older(out, main, prev.revision);
        varint::put(out, prev.record_bytes);
    }
    varint::put(out, u64::from(entry.key_bytes));
    varint::put(out, u64::from(entry.value_bytes));
    varint::put(out, u64::from(entry.kv_bytes - entry.key_bytes - entry.value_bytes));
}

const _: () = assert!(ALIGNMENT == 8, "the layout says 8");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn random_entries(rng: &mut Rng, count: u32, offset: u64) -> Vec<Entry> {
        let (mut revision, mut offset) = (Revision::new(rng.below(1 << 40) as i64, 0), offset);
        let mut entries = Vec::new();
        for ordinal in 0..count {
            let tombstone = rng.chance(1, 8);
            let (key_bytes, value_bytes) = (rng.below(300) as u32, rng.below(5000) as u32);
            let older = Revision::new(rng.below(revision.main as u64 + 1) as i64, 0);
            let prev = (older < revision && rng.chance(3, 4))
                .then(|| Prev { revision: older, record_bytes: rng.next_u64() >> rng.below(64) });
            let entry = Entry {
                ordinal,
                revision,
                tombstone,
                created: !tombstone && rng.chance(1, 3),
                prev,
                key_bytes,
                value_bytes,
                offset,
                stored_bytes: 20 + rng.below(5000) as u32,
                kv_bytes: key_bytes + value_bytes + rng.below(40) as u32,
            };
            offset = entry.end();
            entries.push(entry);
            revision = match rng.below(3) {
                0 => Revision::new(revision.main, revision.sub + 1 + rng.below(3) as i64),
                1 => Revision::new(revision.main + 1, 0),
                _ => Revision::new(revision.main + rng.below(1 << 30) as i64 + 1, rng.below(5) as i64),
            };
        }
        entries
    }

    /// The blocks of these entries, with the bounds that a top would give.
    fn blocks(entries: &[Entry]) -> Vec<(Vec<u8>, Bounds)> {
        let mut builder = IndexBuilder::default();
        entries.iter().for_each(|entry| builder.push(entry));
        let blocks = builder.into_blocks();
        let end = entries.last().unwrap();
        let bounds = |number: usize| Bounds {
            first: blocks[number].first,
            before: blocks.get(number + 1).map(|next| next.first),
            ordinals: blocks[number].first_ordinal
                ..blocks.get(number + 1).map_or(end.ordinal + 1, |next| next.first_ordinal),
            records: blocks[number].first_record_offset
                ..blocks.get(number + 1).map_or(end.end(), |next| next.first_record_offset),
        };
        (0..blocks.len()).map(|number| (blocks[number].bytes.clone(), bounds(number))).collect()
    }

    #[test]
    fn entries_come_back_from_the_start_and_from_every_revision() {
        let mut rng = Rng::new(5);
        for count in [1, 2, 15, 16, 17, 500, 2000] {
            let entries = random_entries(&mut rng, count, 4096);
            for (bytes, bounds) in blocks(&entries) {
                assert!(bytes.len() <= BLOCK_BYTES_MAX);
                let block = IndexBlock::decode(&bytes, &bounds).unwrap();
                let expected = &entries[bounds.ordinals.start as usize..bounds.ordinals.end as usize];
                for (number, entry) in expected.iter().enumerate() {
                    let mut position = block.seek(entry.revision);
                    assert_eq!(block.next(&mut position).as_ref(), Some(entry));
                    assert_eq!(block.next(&mut position).as_ref(), expected.get(number + 1));
                    let above = Revision::new(entry.revision.main, entry.revision.sub + 1);
                    assert_eq!(block.next(&mut block.seek(above)).as_ref(), expected.get(number + 1));
                }
                assert_eq!(block.next(&mut block.seek(Revision::new(0, 0))).as_ref(), expected.first());
                assert_eq!(block.next(&mut block.seek(Revision::new(i64::MAX, i64::MAX))), None);
            }
        }
    }

    #[test]
    fn any_bytes_are_entries_or_an_error() {
        let mut rng = Rng::new(6);
        for _ in 0..3000 {
            let count = 1 + rng.below(40) as u32;
            let entries = random_entries(&mut rng, count, 4096);
            let (mut bytes, mut bounds) = blocks(&entries).remove(0);
            match rng.below(4) {
                0 => rng.fill(&mut bytes),
                1 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
                2 => bounds.ordinals.end = rng.below(100) as u32,
                _ => {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = rng.next_u64() as u8;
                }
            }
            if let Ok(block) = IndexBlock::decode(&bytes, &bounds) {
                let mut position = block.seek(Revision::new(0, 0));
                let mut last = None;
                while let Some(entry) = block.next(&mut position) {
                    assert!(Some(entry.revision) > last, "revisions ascend");
                    assert!(bounds.records.contains(&entry.offset));
                    last = Some(entry.revision);
                }
            }
        }
    }

    #[test]
    fn wrong_bounds_are_an_error() {
        let entries = random_entries(&mut Rng::new(7), 100, 4096);
        let (bytes, bounds) = blocks(&entries).remove(0);
        let last = entries[99].revision;
        let wrong = [
            Bounds { first: Revision::new(0, 0), ..bounds.clone() },
            Bounds { before: Some(last), ..bounds.clone() },
            Bounds { ordinals: 0..99, ..bounds.clone() },
            Bounds { ordinals: 0..101, ..bounds.clone() },
            Bounds { ordinals: 0..0, ..bounds.clone() },
            Bounds { records: 4096..bounds.records.end + 8, ..bounds.clone() },
        ];
        assert!(IndexBlock::decode(&bytes, &bounds).is_ok());
        for bounds in wrong {
            assert!(IndexBlock::decode(&bytes, &bounds).is_err(), "{bounds:?}");
        }
    }
}
