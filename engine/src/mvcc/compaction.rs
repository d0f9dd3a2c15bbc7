//! Compaction: what is dead, and giving its memory back.
//!
//! A compaction to c is effective at once: the view set carries c, reads below fail, and what is dead at c is never
//! shown again. Two things follow in bounded pieces ([`StoreWriter::maintain`]):
//! 1. *Accounting*: the changes in the window are walked once, each says how many bytes it made dead in which memtable.
//!    Short windows are accounted within the compaction itself.
//! 2. *Merging*: neighbouring frozen memtables that are over half dead are copied, without what is dead, into a new
//!    one that replaces them. The active one is frozen first if it is over half dead.
//!
//! Rule (etcd's): of every key the newest version at or below c stays, unless it is a tombstone below c.
//!
//! Invariants:
//! - C1: nothing at or above the compact revision is dropped, and of what is below only what is dead.
//! - C2: merges drop by the accounted revision, never by a younger compaction, so that accounting finds every record
//!   that it speaks of.
//! - C3: the dead bytes of a memtable are the sum over its records that are dead at the accounted revision.
use super::store::Shared;
use super::view_set::is_dead;
use super::writer::StoreWriter;
use crate::base::ids::Revision;
use crate::error::{OperationError, Result};
use crate::memtable::{Memtable, MemtableWriter, Version, record_bytes};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Changes accounted within one call: about a millisecond. Less where memtables are smaller than usual, here and below.
const ACCOUNT_EVENTS_MAX: usize = 16_384;
/// Records looked at by one step of a merge.
const MERGE_RECORDS_MAX: usize = 1024;
/// Bytes copied by one step of a merge, unless a single record is larger.
const MERGE_BYTES_MAX: usize = 256 << 10;

/// `max` with memtables of the usual size, in proportion below.
fn step_size(max: usize, memtable_bytes: usize) -> usize {
    const USUAL_BYTES: usize = 64 << 20;
    (memtable_bytes / (USUAL_BYTES / max)).clamp(1, max)
}

/// A merge of neighbouring frozen memtables into one.
pub(super) struct Merge {
    /// Oldest first.
    sources: Vec<Arc<Memtable>>,
    /// Where copying goes on: source and place in its revision order.
    source: usize,
    event: usize,
    /// First and last revision copied or passed over; none before the first step.
    covered: Option<(Revision, Revision)>,
    target: MemtableWriter,
}

impl Merge {
    fn new(sources: Vec<Arc<Memtable>>) -> Merge {
        let (_, target) = Memtable::new();
        Merge { sources, source: 0, event: 0, covered: None, target }
    }

    fn has_passed(&self, revision: Revision) -> bool {
        self.covered.is_some_and(|(first, last)| first <= revision && revision <= last)
    }

    /// Tells the copy of a key's newest record, if there is one already, that it is replaced.
    pub(super) fn replace_newest(&self, key: &[u8], hash: u32, revision: Revision, main: i64) {
        if self.has_passed(revision)
            && let Some(copy) = self.target.table().find(key, hash)
            // Else it was dead, a tombstone, and what was copied before it knows that already.
            && copy.newest().revision == revision
        {
            copy.replace_newest(main);
        }
    }
}

impl StoreWriter {
    /// Compacts to `revision`: effective at once. Fails as etcd: above the current revision `FutureRevision`, at or
    /// below the compact revision `Compacted`.
    pub fn compact(&mut self, revision: i64) -> Result<(), OperationError> {
        if revision > self.head {
            return Err(OperationError::FutureRevision(self.head));
        }
        if revision <= self.view.compact_revision {
            return Err(OperationError::Compacted(self.view.compact_revision));
        }
        self.publish_view(self.view.tables.clone(), revision);
        self.account();
        Ok(())
    }

    /// Does a bounded piece of background work: accounting of a compaction, else a step of a merge. True when more
    /// is left.
    pub fn maintain(&mut self) -> bool {
        if self.accounted_revision < self.view.compact_revision {
            self.account();
            return true;
        }
        // One at a time: unmapping 64 MiB takes milliseconds.
        if self.retired.pop().is_some() {
            return true;
        }
        if self.merge.is_none() {
            self.merge = self.next_merge();
        }
        let Some(mut merge) = self.merge.take() else {
            debug_assert_eq!(
                self.view.tables.iter().map(|table| live_bytes(table)).sum::<u64>(),
                self.store.shared.retained_bytes.load(Ordering::Relaxed),
                "C3: what is not dead is retained"
            );
            return false;
        };
        if self.merge_step(&mut merge) {
            self.finish_merge(merge);
        } else {
            self.merge = Some(merge);
        }
        true
    }

    /// Accounts what compaction made dead, whole revisions, up to `ACCOUNT_EVENTS_MAX` changes or one revision.
    fn account(&mut self) {
        let view = self.view.clone();
        let from = self.accounted_revision;
        let to = self.account_target(from);
        for table in view.tables_from(from) {
            for index in table.first_event_at_or_above(from)..table.events_count() {
                if table.event_main(index) > to {
                    break;
                }
                let version = table.event(index);
                if version.main() > from {
                    self.account_prev(&version);
                }
                // A tombstone below `to` is dead by itself, unless it was replaced within its own revision: then the
                // change that replaced it accounts for it.
                if version.is_tombstone() && version.main() < to && version.next_main() != version.main() {
                    self.account_dead(version.revision(), record_bytes(version.key().len(), 0));
                }
            }
        }
        self.accounted_revision = to;
    }

    /// The revision up to which the next piece of accounting goes.
    fn account_target(&self, from: i64) -> i64 {
        let mut left = step_size(ACCOUNT_EVENTS_MAX, self.options.memtable_bytes);
        for table in self.view.tables_from(from) {
            let first = table.first_event_at_or_above(from);
            let count = table.events_count() - first;
            if count > left {
                return table.event_main(first + left).clamp(from + 1, self.view.compact_revision);
            }
            left -= count;
        }
        self.view.compact_revision
    }

    /// Accounts the record that `version` replaced.
    fn account_prev(&self, version: &Version<'_>) {
        let Some(prev) = version.prev() else { return };
        // A replaced tombstone was accounted as a tombstone, unless both are of one revision.
        let prev_was_put = version.is_tombstone() || version.version() > 1;
        if prev_was_put || prev.revision.main == version.main() {
            let bytes = record_bytes(version.key().len(), prev.value_bytes as usize);
            self.account_dead(prev.revision, bytes);
        }
    }

    fn account_dead(&self, revision: Revision, bytes: u64) {
        let shared: &Shared = &self.store.shared;
        shared.retained_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let table = self.view.table_of(revision);
        table.expect("C2: a record that becomes dead is in a memtable").add_dead_bytes(bytes);
        if let Some(merge) = &self.merge
            && merge.has_passed(revision)
        {
            merge.target.table().add_dead_bytes(bytes);
        }
    }

    /// Chooses neighbouring frozen memtables worth merging: those over half dead, and pairs that have become small,
    /// so that the number of memtables is bounded by the retained bytes.
    fn next_merge(&mut self) -> Option<Merge> {
        let active = &self.view.tables[0];
        if is_half_dead(active) && active.record_bytes() >= (self.options.memtable_bytes / 64) as u64 {
            self.freeze();
        }
        let memtable_bytes = self.options.memtable_bytes as u64;
        let frozen = &self.view.tables[1..];
        let half_dead = frozen.iter().position(|table| is_half_dead(table));
        let small_pair = || {
            frozen
                .windows(2)
                .position(|pair| live_bytes(&pair[0]) + live_bytes(&pair[1]) <= memtable_bytes / 2)
        };
        let first = half_dead.or_else(small_pair)?;
        let mut bytes = live_bytes(&frozen[first]);
        let mut end = first + 1;
        while let Some(table) = frozen.get(end)
            && (is_half_dead(table)
                || live_bytes(table) <= memtable_bytes / 4
                || bytes + live_bytes(table) <= memtable_bytes / 2)
            && bytes + live_bytes(table) <= memtable_bytes
        {
            bytes += live_bytes(table);
            end += 1;
        }
        Some(Merge::new(frozen[first..end].iter().rev().cloned().collect()))
    }

    /// Copies a piece; true when everything is copied.
    fn merge_step(&mut self, merge: &mut Merge) -> bool {
        let records_max = step_size(MERGE_RECORDS_MAX, self.options.memtable_bytes);
        let bytes_max = step_size(MERGE_BYTES_MAX, self.options.memtable_bytes) as u64;
        let mut copied_bytes = 0;
        for _ in 0..records_max {
            while merge.event == merge.sources[merge.source].events_count() {
                merge.source += 1;
                merge.event = 0;
                if merge.source == merge.sources.len() {
                    return true;
                }
            }
            if copied_bytes >= bytes_max {
                return false;
            }
            let version = merge.sources[merge.source].event(merge.event);
            merge.event += 1;
            let first = merge.covered.map_or(version.revision(), |(first, _)| first);
            merge.covered = Some((first, version.revision()));
            if !is_dead(&version, self.accounted_revision) {
                let record = version.record();
                copied_bytes += record_bytes(record.key.len(), record.value.len());
                merge.target.insert(&record, self.view.hasher.hash(record.key));
            }
        }
        false
    }

    /// Puts the merged memtable in the place of its sources, whose memory is given back with their last reader.
    fn finish_merge(&mut self, merge: Merge) {
        let newest = merge.sources.last().expect("a merge has a source");
        let place = self.view.tables.iter().position(|table| Arc::ptr_eq(table, newest));
        let place = place.expect("C1: the sources of a merge stay in the view set");
        debug_assert_eq!(
            merge.target.table().dead_bytes(),
            dead_bytes_counted(merge.target.table(), self.accounted_revision),
            "C3: dead bytes at {}",
            self.accounted_revision
        );
        let mut tables = self.view.tables.clone();
        let target = Some(merge.target.table().clone()).filter(|target| target.events_count() > 0);
        tables.splice(place..place + merge.sources.len(), target);
        self.publish_view(tables, self.view.compact_revision);
        self.retired.extend(merge.sources);
    }
}

/// What C3 says, counted record by record.
fn dead_bytes_counted(table: &Memtable, accounted_revision: i64) -> u64 {
    let versions = (0..table.events_count()).map(|index| table.event(index));
    let dead = versions.filter(|version| is_dead(version, accounted_revision));
    dead.map(|version| record_bytes(version.key().len(), version.value_bytes() as usize)).sum()
}

fn live_bytes(table: &Memtable) -> u64 {
    table.record_bytes() - table.dead_bytes()
}

fn is_half_dead(table: &Memtable) -> bool {
    table.dead_bytes() * 2 > table.record_bytes()
}
