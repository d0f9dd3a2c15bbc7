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
//!
//! **In parts.** Of the changes on disk one checkpoint looks at `sweep_changes_max`, oldest first, and stops between two revisions; the next
//! begins there. So a compaction of millions of versions does not hold up the memtables that wait to be written. Until it is
//! through, records above the swept revision stay in their segments, dead or not (D6): the sweep has yet to
//! read from them what they replaced. The changes of a run are always looked at whole; those that are written are met again by the
//! sweep when it gets there, and a record that is marked twice is marked.
use crate::base::ids::Revision;
use crate::disk_state::DiskState;
use crate::error::Result;
use crate::mvcc::{Run, is_dead};
use crate::revision_log::Entry;
use bytes::Bytes;
use std::sync::Arc;

use super::dead::DeadRecords;
use super::planted::{Planted, PlantedBug};

/// What a sweep found, besides the dead.
pub(super) struct Swept {
    /// Keys whose cell may be a tombstone that can go, sorted.
    pub(super) purges: Vec<Bytes>,
    /// Up to here everything is marked.
    pub(super) revision: i64,
}

impl Swept {
    /// D6: may a segment that ends with this revision lose what is dead in it?
    pub(super) fn may_lose(&self, last: Revision, compact_revision: i64) -> bool {
        self.revision == compact_revision || last.main <= self.revision
    }
}

/// Adds what is dead on disk to `dead`, looking at `changes_max` changes there.
pub(super) fn sweep(
    base: &Arc<DiskState>,
    run: &Run,
    changes_max: usize,
    dead: &mut DeadRecords<'_>,
    planted: Planted,
) -> Result<Swept> {
    let mut swept = sweep_disk(base, run.compact_revision, changes_max, dead)?;
    sweep_run(base, run, dead, planted)?;
    swept.purges.sort_unstable();
    swept.purges.dedup();
    Ok(swept)
}

/// One part of the changes on disk that a compaction to `to` has to do with.
fn sweep_disk(
    base: &Arc<DiskState>,
    to: i64,
    changes_max: usize,
    dead: &mut DeadRecords<'_>,
) -> Result<Swept> {
    let from = base.swept_revision();
    assert!(from <= base.compact_revision() && base.compact_revision() <= to, "compaction only goes on");
    let mut swept = Swept { purges: Vec::new(), revision: to };
    if to == from {
        return Ok(swept);
    }
    let (mut count, mut previous) = (0, from);
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
            if count >= changes_max && main > previous {
                swept.revision = previous;
                break;
            }
            (count, previous) = (count + usize::from(main > from), main);
            if let Some(prev) = entry.prev
                && main > from
            {
                dead.add_revision(prev.revision)?;
            }
            // One at the compact revision of before was the newest below it; now it is not.
            if entry.tombstone && main < to {
                dead.add(number, &entry);
                tombstones.push(entry);
            }
        }
        swept.purges.extend(segment.read_many(&tombstones)?.into_iter().map(|record| record.key));
        if swept.revision < to {
            break;
        }
    }
    Ok(swept)
}

/// The changes of the run.
fn sweep_run(base: &DiskState, run: &Run, dead: &mut DeadRecords<'_>, planted: Planted) -> Result<()> {
    let to = run.compact_revision;
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
    Ok(())
}
