//! Records on disk that a checkpoint makes dead.
//!
//! Gathered by `sweep` in any order, then put into the dead bits and the sums of their segments. A record may be named
//! twice (a tombstone below the compact revision that a put replaced): the bit decides, so it counts once (D5).
use crate::base::ids::Revision;
use crate::disk_state::{
    DEAD_CHUNK_RECORDS, DiskState, RevisionsFile, Shelf, dead_chunk, dead_chunk_key, encode_revisions,
    segment_key,
};
use crate::error::Result;
use crate::memtable::record_bytes;
use crate::revision_log::{Entry, SegmentSummary};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Changes of the segment table.
pub(super) type TableEdits = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// See the module.
pub(super) struct DeadRecords<'a> {
    base: &'a Arc<DiskState>,
    /// By number of the segment in the base state, then by place in it.
    entries: BTreeMap<usize, BTreeMap<u32, Sizes>>,
}

#[derive(Clone, Copy)]
struct Sizes {
    record_bytes: u64,
    stored_bytes: u64,
}

impl<'a> DeadRecords<'a> {
    pub(super) fn new(base: &'a Arc<DiskState>) -> Self {
        Self { base, entries: BTreeMap::new() }
    }

    /// The record of this revision is dead. One that is not on disk was never written, or is gone already.
    pub(super) fn add_revision(&mut self, revision: Revision) -> Result<()> {
        if let Some((number, entry)) = self.base.find(revision)? {
            self.add(number, &entry);
        }
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
    pub(super) fn apply(self, shelf: &Shelf, revisions: &mut [RevisionsFile]) -> Result<(u64, TableEdits)> {
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
