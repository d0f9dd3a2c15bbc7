//! What a compaction and a run of memtables make dead on disk.
//!
//! Rule (etcd's): compacting to c removes of every key all versions that a newer one at or below c has replaced, and
//! tombstones below c. Every record names the one that it replaced, so the changes in (previous c, c] name everything
//! that dies: the cost is that of the changes in the window, however many keys there are.
//!
//! Of the changes in the window some are on disk and some are in the run. A record of the run that is dead itself is never
//! written, so what it replaced must die with it, here: no later sweep will meet it.
//!
//! A tombstone below c dies by itself, and its key leaves the tree if nothing came after it.
use crate::base::ids::Revision;
use crate::disk_state::DiskState;
use crate::error::Result;
use crate::mvcc::{Run, is_dead};
use crate::revision_log::Entry;
use bytes::Bytes;
use std::sync::Arc;

use super::dead::DeadRecords;
use super::planted::{Planted, PlantedBug};

/// Adds what is dead on disk to `dead`; returns keys whose cell may be a tombstone that can go, sorted.
pub(super) fn sweep(
    base: &Arc<DiskState>,
    run: &Run,
    dead: &mut DeadRecords<'_>,
    planted: Planted,
) -> Result<Vec<Bytes>> {
    let (from, to) = (base.compact_revision(), run.compact_revision);
    let mut purges = Vec::new();
    if to > from {
        for (number, segment) in base.numbered_segments_from(from.max(0)) {
            if segment.summary().first.main > to {
                break;
            }
            let mut tombstones: Vec<Entry> = Vec::new();
            for entry in segment.entries(Revision::new(from.max(0), 0)) {
                let entry = entry?;
                let main = entry.revision.main;
                if main > to {
                    break;
                }
                if main > from
                    && let Some(prev) = entry.prev
                {
                    dead.add_revision(prev.revision)?;
                }
                if entry.tombstone && main < to {
                    dead.add(number, &entry);
                    tombstones.push(entry);
                }
            }
            purges.extend(segment.read_many(&tombstones)?.into_iter().map(|record| record.key));
        }
    }
    for table in &run.tables {
        for index in 0..table.events_count() {
            let version = table.event(index);
            if version.main() > to {
                break;
            }
            if let Some(prev) = version.prev()
                && prev.revision.main <= base.revision()
                && !(planted.has(PlantedBug::ForgetReplaced) && is_dead(&version, to))
            {
                dead.add_revision(prev.revision)?;
            }
        }
    }
    purges.sort_unstable();
    purges.dedup();
    Ok(purges)
}
