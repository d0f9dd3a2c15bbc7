//! The history in revision order: events for watchers, the state before an event, every retained record.
//!
//! For the store. The history is the segments of the revision log on disk, oldest first, then the memtables, oldest first;
//! a main revision never lies in both. Which records of the compact revision itself are left is decided here: of two
//! changes of one key in that revision only the last (etcd keeps no other).
//!
//! Failure: what is on disk may not be readable; a call then fails as a whole.
use super::found::{Found, copy_one};
use super::operation::{Event, EventKind, KeyValue};
use super::store::{EventBatch, EventLimits, RetainedRecord, Wanted};
use super::view_set::{ViewSet, is_dead};
use crate::base::ids::Revision;
use crate::disk_state::DiskState;
use crate::error::{OperationError, Result};
use crate::revision_log::{Entry, OwnedRecord};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Gathers events until a limit is reached.
struct Gathering<'a> {
    limits: &'a EventLimits,
    wanted: &'a mut dyn FnMut(&[u8]) -> Wanted,
    batch: EventBatch,
    bytes: usize,
    looked_at: usize,
    last_main: i64,
    enough: bool,
}

impl Gathering<'_> {
    /// Called before each record; false if the batch is full and this is the next main revision: then it ends here.
    fn goes_on_with(&mut self, main: i64) -> bool {
        let full = self.enough
            || self.batch.events.len() >= self.limits.events_max
            || self.bytes >= self.limits.bytes_max
            || self.looked_at >= self.limits.looked_at_max;
        if main != self.last_main && full && self.last_main != 0 {
            self.batch.next_revision = main;
            return false;
        }
        self.last_main = main;
        self.looked_at += 1;
        true
    }

    fn wants(&mut self, key: &[u8]) -> bool {
        match (self.wanted)(key) {
            Wanted::No => false,
            Wanted::Yes => true,
            Wanted::YesAndEnough => {
                self.enough = true;
                true
            }
        }
    }

    fn take(&mut self, revision: Revision, kv: KeyValue) {
        self.bytes += kv.key.len() + kv.value.len();
        self.batch.events.push(Arc::new(Event {
            kind: if kv.version == 0 { EventKind::Delete } else { EventKind::Put },
            revision,
            kv,
            prev_kv: None,
        }));
    }
}

/// See [`super::Store::events_where`]; `start` is at least the compact revision of `view`.
pub(super) fn events(
    view: &ViewSet,
    start: i64,
    head: i64,
    limits: &EventLimits,
    wanted: &mut dyn FnMut(&[u8]) -> Wanted,
) -> Result<EventBatch, OperationError> {
    let batch = EventBatch { events: Vec::new(), next_revision: start.max(head + 1) };
    let mut gathering =
        Gathering { limits, wanted, batch, bytes: 0, looked_at: 0, last_main: 0, enough: false };
    if start <= view.disk.revision() && !events_on_disk(view, start, head, &mut gathering)? {
        return Ok(gathering.batch);
    }
    for table in view.tables_from(start) {
        for index in table.first_event_at_or_above(start)..table.events_count() {
            let main = table.event_main(index);
            if main > head || !gathering.goes_on_with(main) {
                return Ok(gathering.batch);
            }
            let version = table.event(index);
            if !is_dead(&version, view.compact_revision) && gathering.wants(version.key()) {
                gathering.take(version.revision(), copy_one(view, version.key(), Found::Memory(version))?);
            }
        }
    }
    Ok(gathering.batch)
}

/// The part of [`events`] that is on disk; false when the batch is full, or everything up to `head` is in it.
fn events_on_disk(
    view: &ViewSet,
    start: i64,
    head: i64,
    gathering: &mut Gathering<'_>,
) -> Result<bool, OperationError> {
    let replaced = replaced_within(&view.disk, view.compact_revision, start)?;
    for segment in view.disk.segments_from(start) {
        let mut full = false;
        let mut skip_none = |_: &Entry| true;
        for record in segment.records(Revision::new(start, 0), &mut skip_none) {
            let (entry, record) = record?;
            // The view set may be newer than the head that was read before it.
            if entry.revision.main > head || !gathering.goes_on_with(entry.revision.main) {
                full = true;
                break;
            }
            if !replaced.contains(&entry.revision) && gathering.wants(&record.key) {
                gathering.take(entry.revision, key_value(record));
            }
        }
        if full {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Records of main revision `main` that later records of it replace; nothing if `start` is behind it.
fn replaced_within(disk: &DiskState, main: i64, start: i64) -> Result<BTreeSet<Revision>> {
    let mut replaced = BTreeSet::new();
    if start > main {
        return Ok(replaced);
    }
    for segment in disk.segments_from(main) {
        for entry in segment.entries(Revision::new(main, 0)) {
            let entry = entry?;
            if entry.revision.main > main {
                return Ok(replaced);
            }
            replaced.extend(entry.prev.map(|prev| prev.revision).filter(|prev| prev.main == main));
        }
    }
    Ok(replaced)
}

fn key_value(record: OwnedRecord) -> KeyValue {
    KeyValue {
        key: record.key,
        create_revision: record.create_revision,
        mod_revision: record.revision.main,
        version: record.version,
        value: record.value,
        lease: record.lease,
    }
}

/// See [`super::Store::previous`].
pub(super) fn previous(view: &ViewSet, event: &Event) -> Result<Option<KeyValue>, OperationError> {
    let main = event.revision.main;
    if main - 1 < view.compact_revision {
        return Ok(None);
    }
    if event.kind == EventKind::Put && event.kv.create_revision == main {
        return Ok(None);
    }
    let key = &event.kv.key;
    let hash = view.hasher.hash(key);
    let mut at = event.revision;
    loop {
        let found = match view.table_of(at) {
            Some(table) => match table.exactly(key, hash, at) {
                Some(version) => Found::Memory(version),
                None => return Ok(None),
            },
            None => match view.disk.record(at)? {
                Some(record) => Found::Disk(record.into()),
                None => return Ok(None),
            },
        };
        if found.main() < main {
            return if found.is_tombstone() { Ok(None) } else { copy_one(view, key, found).map(Some) };
        }
        match found.prev() {
            Some(prev) => at = prev,
            None => return Ok(None),
        }
    }
}

/// See [`super::HeldHistory::for_each_retained`].
///
/// A record on disk does not know what replaced it, so the history is walked twice: once over the index, where every
/// record says what it replaced, and once over the records.
pub(super) fn for_each_retained(
    view: &ViewSet,
    revision: i64,
    visit: &mut dyn FnMut(&RetainedRecord<'_>) -> ControlFlow<()>,
) -> Result<(), OperationError> {
    let compacted = view.compact_revision;
    let replaced = Replaced::of(view, revision)?;
    for (number, segment) in view.disk.segments_from(i64::MIN).enumerate() {
        let mut take_all = |_: &Entry| true;
        for record in segment.records(Revision::new(0, 0), &mut take_all) {
            let (entry, record) = record?;
            let main = entry.revision.main;
            if main > revision {
                break;
            }
            let place = (number, entry.ordinal);
            let tombstone = record.version == 0;
            if replaced.compacted.contains(place) || (tombstone && main < compacted) {
                continue;
            }
            let goes_on = visit(&RetainedRecord {
                revision: entry.revision,
                tombstone,
                key: &record.key,
                value: &record.value,
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
                visible: !tombstone && !replaced.asked.contains(place),
            });
            if goes_on.is_break() {
                return Ok(());
            }
        }
    }
    for table in view.tables.iter().rev() {
        for index in 0..table.events_count() {
            let version = table.event(index);
            if version.main() > revision {
                break;
            }
            if is_dead(&version, compacted) {
                continue;
            }
            let next_main = version.next_main();
            let goes_on = visit(&RetainedRecord {
                revision: version.revision(),
                tombstone: version.is_tombstone(),
                key: version.key(),
                value: version.value(),
                create_revision: version.create_revision(),
                version: version.version(),
                lease: version.lease(),
                visible: !version.is_tombstone() && (next_main == 0 || next_main > revision),
            });
            if goes_on.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A set of records on disk, one bit each.
#[derive(Clone)]
struct RecordSet {
    /// By segment, then by place in it, lowest bit first.
    bits: Vec<Vec<u8>>,
}

impl RecordSet {
    fn insert(&mut self, (segment, ordinal): (usize, u32)) {
        self.bits[segment][ordinal as usize / 8] |= 1 << (ordinal % 8);
    }

    fn contains(&self, (segment, ordinal): (usize, u32)) -> bool {
        self.bits[segment][ordinal as usize / 8] >> (ordinal % 8) & 1 == 1
    }
}

/// Which records on disk are replaced.
struct Replaced {
    /// At or below the revision that was asked for.
    asked: RecordSet,
    /// At or below the compact revision.
    compacted: RecordSet,
}

impl Replaced {
    fn of(view: &ViewSet, revision: i64) -> Result<Self> {
        let disk = &view.disk;
        // What the checkpoint knows to be dead may have been replaced by a record that was never written.
        let count = disk.segments_from(i64::MIN).count();
        let dead =
            RecordSet { bits: (0..count).map(|number| disk.dead_bits(number)).collect::<Result<_>>()? };
        let mut replaced = Self { asked: dead.clone(), compacted: dead };
        for segment in disk.segments_from(i64::MIN) {
            for entry in segment.entries(Revision::new(0, 0)) {
                let entry = entry?;
                if entry.revision.main > revision {
                    break;
                }
                if let Some(prev) = entry.prev {
                    replaced.add(view, entry.revision.main, prev.revision)?;
                }
            }
        }
        for table in view.tables.iter().rev() {
            for index in 0..table.events_count() {
                let version = table.event(index);
                if version.main() > revision {
                    break;
                }
                if let Some(prev) = version.prev()
                    && prev.revision.main <= disk.revision()
                {
                    replaced.add(view, version.main(), prev.revision)?;
                }
            }
        }
        Ok(replaced)
    }

    fn add(&mut self, view: &ViewSet, by_main: i64, prev: Revision) -> Result<()> {
        // What a compaction has removed is not found, and not needed.
        if let Some((number, entry)) = view.disk.find(prev)? {
            let place = (number, entry.ordinal);
            self.asked.insert(place);
            if by_main <= view.compact_revision {
                self.compacted.insert(place);
            }
        }
        Ok(())
    }
}
