//! Compaction: what is dead, and how much that is.
//!
//! A compaction to c is effective at once: the view set carries c, reads below fail, and what is dead at c is never
//! shown again. Giving its memory and its space on disk back is the flush's work, which writes nothing that is dead and
//! marks what its records have replaced (`checkpoint`). What follows here, in bounded pieces ([`StoreWriter::maintain`]),
//! is *accounting*: the changes of the window that are in memory are walked once, and each says how many bytes it made
//! dead, in which memtable or on disk.
//!
//! Rule (etcd's): of every key the newest version at or below c stays, unless it is a tombstone below c.
//!
//! Invariants:
//! - C1: nothing at or above the compact revision is dropped, and of what is below only what is dead.
//! - C3: the dead bytes of a memtable are the sum over its records that are dead at the accounted revision.
use super::writer::StoreWriter;
use crate::error::OperationError;
use crate::memtable::{Memtable, Version, record_bytes};

/// Changes accounted within one call: about a millisecond. Less where memtables are smaller than usual.
const ACCOUNT_EVENTS_MAX: usize = 16_384;

/// `max` with memtables of the usual size, in proportion below.
fn step_size(max: usize, memtable_bytes: usize) -> usize {
    const USUAL_BYTES: usize = 64 << 20;
    (memtable_bytes / (USUAL_BYTES / max)).clamp(1, max)
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
        self.publish_view(self.view.tables.clone(), self.view.disk.clone(), revision);
        if !self.view.disk.is_empty() || self.flush.has_cut_tables() {
            self.flush.note_compaction();
        }
        self.account();
        Ok(())
    }

    /// Does a bounded piece of background work. True when more is left.
    pub fn maintain(&mut self) -> bool {
        if self.accounted_revision < self.view.compact_revision {
            self.account();
            return true;
        }
        // One at a time: unmapping 64 MiB takes milliseconds.
        self.retired.pop().is_some()
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
                    self.account_prev(table, &version);
                }
                // A tombstone below `to` is dead by itself, unless it was replaced within its own revision: then the
                // change that replaced it accounts for it.
                if version.is_tombstone() && version.main() < to && version.next_main() != version.main() {
                    table.add_dead_bytes(record_bytes(version.key().len(), 0));
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

    /// Accounts the record that `version`, in `table`, replaced.
    fn account_prev(&self, table: &Memtable, version: &Version<'_>) {
        let Some(prev) = version.prev() else { return };
        // A replaced tombstone was accounted as a tombstone, unless both are of one revision.
        let prev_was_put = version.is_tombstone() || version.version() > 1;
        if prev_was_put || prev.revision.main == version.main() {
            let bytes = record_bytes(version.key().len(), prev.value_bytes as usize);
            match self.view.table_of(prev.revision) {
                Some(table) => table.add_dead_bytes(bytes),
                None => table.add_killed_bytes(bytes),
            }
        }
    }
}

/// What of a memtable is not dead.
pub(super) fn live_bytes(table: &Memtable) -> u64 {
    table.record_bytes() - table.dead_bytes()
}
