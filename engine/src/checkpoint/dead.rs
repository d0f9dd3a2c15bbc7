//! Records on disk that a checkpoint makes dead.
//!
//! Gathered by `sweep` in any order, then put into the dead bits and the sums of their segments. A record may be named
//! twice (a tombstone below the compact revision that a put replaced): the bit decides, so it counts once (D5).
//!
//! **Looking up.** The revisions that die are known in the order of what replaced them, which is no order at all. They are gathered and
//! sorted, [`NAMED_MAX`] at a time, so that each block of an index is read and decoded once for all of them and not once for each, with its
//! neighbours, and past the cache (`revision_log/lookup.rs`).
use crate::base::ids::Revision;
use crate::disk_state::{
    DEAD_CHUNK_RECORDS, DiskState, RevisionsFile, Shelf, dead_chunk, dead_chunk_key, encode_revisions,
    segment_key,
};
use crate::error::{Error, Result};
use crate::memtable::record_bytes;
use crate::revision_log::{Entry, SegmentSummary};
use crate::segment::{self, SegmentKind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Revisions gathered before they are looked up: 4 MiB. Few in tests, so that they see more than one batch.
const NAMED_MAX: usize = if cfg!(debug_assertions) { 16 } else { 1 << 18 };

/// Changes of the segment table.
pub(super) type TableEdits = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// See the module.
pub(super) struct DeadRecords<'a> {
    base: &'a Arc<DiskState>,
    /// By number of the segment in the base state, then by place in it.
    entries: BTreeMap<usize, BTreeMap<u32, Sizes>>,
    /// Dead, and not looked up yet.
    named: Vec<Revision>,
}

#[derive(Clone, Copy)]
struct Sizes {
    record_bytes: u64,
    stored_bytes: u64,
}

impl<'a> DeadRecords<'a> {
    pub(super) fn new(base: &'a Arc<DiskState>) -> Self {
        Self { base, entries: BTreeMap::new(), named: Vec::new() }
    }

    /// The record of this revision is dead. One that is not on disk was never written, or is gone already.
    pub(super) fn add_revision(&mut self, revision: Revision) -> Result<()> {
        self.named.push(revision);
        if self.named.len() == NAMED_MAX { self.look_up() } else { Ok(()) }
    }

    fn look_up(&mut self) -> Result<()> {
        let mut named = std::mem::take(&mut self.named);
        named.sort_unstable();
        named.dedup();
        let base = self.base;
        let mut rest = &named[..];
        while let Some(&first) = rest.first() {
            // What is behind the last segment was never written.
            let Some((number, segment)) = base.segment_of(first) else { break };
            let last = segment.summary().last;
            let (here, later) = rest.split_at(rest.partition_point(|revision| *revision <= last));
            segment.find_each(here, &mut |entry| self.add(number, entry))?;
            rest = later;
        }
        named.clear();
        self.named = named;
        Ok(())
    }

    /// This record of segment `number` is dead.
    pub(super) fn add(&mut self, number: usize, entry: &Entry) {
        let sizes = Sizes {
            record_bytes: record_bytes(entry.key_bytes as usize, entry.value_bytes as usize),
            stored_bytes: u64::from(entry.stored_bytes),
        };
        self.entries.entry(number).or_default().insert(entry.ordinal, sizes);
    }

    /// Sets the bits, adds up; returns how many records became dead, and the changes of the segment table.
    pub(super) fn apply(
        mut self,
        shelf: &Shelf,
        revisions: &mut [RevisionsFile],
    ) -> Result<(u64, TableEdits)> {
        self.look_up()?;
        let mut edits = TableEdits::new();
        let mut killed = 0;
        for (number, entries) in self.entries {
            let info = &mut revisions[number].info;
            let id = info.summary.id;
            let mut chunk: Option<(u32, Vec<u8>)> = None;
            let dead_before = info.dead_records;
            for (ordinal, sizes) in entries {
                let wanted = ordinal / DEAD_CHUNK_RECORDS;
                if chunk.as_ref().is_none_or(|(number, _)| *number != wanted) {
                    if let Some((number, bits)) = chunk.take() {
                        edits.insert(dead_chunk_key(id, number), Some(bits));
                    }
                    chunk = Some((wanted, dead_chunk(shelf, self.base.roots.segments, id, wanted)?));
                }
                let Some((_, bits)) = &mut chunk else { continue };
                let place = (ordinal % DEAD_CHUNK_RECORDS) as usize;
                if bits[place / 8] >> (place % 8) & 1 == 0 {
                    bits[place / 8] |= 1 << (place % 8);
                    info.dead_records += 1;
                    info.dead_record_bytes += sizes.record_bytes;
                    info.dead_stored_bytes += sizes.stored_bytes;
                }
            }
            if let Some((number, bits)) = chunk {
                edits.insert(dead_chunk_key(id, number), Some(bits));
            }
            // Sizes come from the index, sums from the trailer: both verify, and need not agree. A table that says so is not written,
            // nobody would open it.
            if !info.sums_hold() {
                return Err(Error::Corruption {
                    file: segment::path(id, SegmentKind::Revisions).display().to_string(),
                    offset: 0,
                    what: format!(
                        "D5: no more dead records and bytes than there are expected, {info:?} found"
                    ),
                });
            }
            if info.dead_records != dead_before {
                killed += info.dead_records - dead_before;
                edits.insert(segment_key(id), Some(encode_revisions(info)));
            }
        }
        Ok((killed, edits))
    }
}

/// Takes a segment out of the table.
pub(super) fn forget_segment(summary: &SegmentSummary, edits: &mut TableEdits) {
    edits.insert(segment_key(summary.id), None);
    for chunk in 0..summary.records.div_ceil(DEAD_CHUNK_RECORDS) {
        edits.insert(dead_chunk_key(summary.id, chunk), None);
    }
}
