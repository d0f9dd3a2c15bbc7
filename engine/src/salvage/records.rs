//! The r segments of the salvaged directory: which there are, which of their records are dead, what is missing from them.
//!
//! **Dead or alive.** The dead bits say it where the segment table can be read. Where it cannot, a record is dead if the key tree has no
//! cell for its key, or a change at or below the compact revision replaced it. Where neither can be read, it counts as alive: whether
//! such a key was deleted before the compact revision nobody knows any more, unless the sums in the reference to the lost page say so.
//!
//! **Memory**: one segment, its entries, the dead bits; where the table is lost and segments overlap, these segments.
use super::cells::KeySpans;
use super::report::{Damage, Fate, LostRecord};
use super::source::Source;
use super::spans::Spans;
use crate::base::ids::{Revision, SegmentId};
use crate::disk_state::{
    DEAD_CHUNK_RECORDS, RevisionsInfo, VerifyProgress, dead_chunk_key, decode_descriptor,
};
use crate::error::Result;
use crate::revision_log::salvage::{Found, Gap, Wreck, scan_wreck, summary_of};
use crate::revision_log::{Entry, OwnedRecord, SegmentSummary};
use crate::segment::{self, SegmentKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

const FIRST: Revision = Revision::new(-1, 0);
const LAST: Revision = Revision::new(i64::MAX, i64::MAX);

/// One r segment.
struct SegmentFile {
    id: SegmentId,
    name: String,
    /// From the segment table, or from the trailer.
    summary: Option<SegmentSummary>,
    /// The table says that it belongs to the checkpoint.
    is_known: bool,
}

impl SegmentFile {
    fn bounds(&self) -> (Revision, Revision) {
        self.summary.map_or((FIRST, LAST), |summary| (summary.first, summary.last))
    }
}

/// See the module.
pub(super) struct SavedRecords {
    database: [u8; 16],
    files: Vec<SegmentFile>,
    dead_chunks: BTreeMap<Vec<u8>, Bytes>,
    table: Spans,
    /// Revisions above are not of the checkpoint; the log has them.
    revision_max: i64,
    /// Compact revision of the checkpoint.
    compact_revision: i64,
    /// What changes above this one replaced has no dead bits yet.
    swept_revision: i64,
    /// Damaged stretches of revisions by their end, which they do not include: start, likewise, and number of the damage.
    stretches: BTreeMap<Revision, (Revision, usize)>,
    /// What lost records replaced, and these: no such version is the newest.
    stale: BTreeMap<Revision, Revision>,
    /// What a change that is dead to the new compact revision replaced.
    replaced: BTreeSet<Revision>,
}

impl SavedRecords {
    /// Reads the segment table. `root_known` is false if there is no superblock.
    pub(super) fn open(
        source: &mut Source<'_>,
        database: [u8; 16],
        table: Spans,
        (revision_max, compact_revision, swept_revision): (i64, i64, i64),
    ) -> Result<Self> {
        let mut records = Self {
            database,
            files: Vec::new(),
            dead_chunks: BTreeMap::new(),
            table,
            revision_max,
            compact_revision,
            swept_revision,
            stretches: BTreeMap::new(),
            stale: BTreeMap::new(),
            replaced: BTreeSet::new(),
        };
        records.read_table(source)?;
        if records.table.has_holes() {
            records.find_files(source)?;
        }
        records.files.sort_by_key(|file| (file.bounds().0, file.id));
        Ok(records)
    }

    fn read_table(&mut self, source: &Source<'_>) -> Result<()> {
        for span in self.table.spans.iter().filter(|span| span.hole.is_none()) {
            let leaf = self.table.leaf(source, span)?;
            for index in 0..leaf.count() {
                let (key, payload) = (leaf.key(index), leaf.payload_bytes(index));
                match decode_descriptor(&key, &payload) {
                    Some(RevisionsInfo { summary, .. }) => self.files.push(SegmentFile {
                        id: summary.id,
                        name: segment::path(summary.id, SegmentKind::Revisions).display().to_string(),
                        summary: Some(summary),
                        is_known: true,
                    }),
                    None => drop(self.dead_chunks.insert(key, payload)),
                }
            }
        }
        Ok(())
    }

    /// All segments of the directory, where the table does not say which belong to the checkpoint.
    fn find_files(&mut self, source: &mut Source<'_>) -> Result<()> {
        for name in source.list(segment::DIRECTORY)? {
            let Some((id, SegmentKind::Revisions)) = segment::parse_name(&name) else { continue };
            if self.files.iter().any(|file| file.id == id) {
                continue;
            }
            let name = format!("{}/{name}", segment::DIRECTORY);
            let bytes = source.load(&name).unwrap_or_default();
            let wreck = Wreck { bytes: &bytes, database: self.database, id, summary: None };
            let summary = summary_of(&wreck);
            self.files.push(SegmentFile { id, name, summary, is_known: false });
        }
        Ok(())
    }

    /// True if the record is known to be dead to the old checkpoint; none if nobody knows.
    fn is_dead(&self, id: SegmentId, ordinal: Option<u32>) -> Option<bool> {
        let ordinal = ordinal?;
        let key = dead_chunk_key(id, ordinal / DEAD_CHUNK_RECORDS);
        let place = (ordinal % DEAD_CHUNK_RECORDS) as usize;
        match self.dead_chunks.get(&key) {
            Some(bits) => bits.get(place / 8).map(|byte| byte >> (place % 8) & 1 == 1),
            None if self.table.is_hole(&key)
                || !self.files.iter().any(|file| file.id == id && file.is_known) =>
            {
                None
            }
            None => Some(false),
        }
    }

    /// That of the checkpoint, or the new one after [`Self::compact`].
    pub(super) fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// The damage that took a revision.
    pub(super) fn stretch_of(&self, revision: Revision) -> Option<usize> {
        let behind = Revision::new(revision.main, revision.sub.saturating_add(1));
        let (_, &(after, damage)) = self.stretches.range(behind..).next()?;
        (after < revision).then_some(damage)
    }

    /// Finds everything that does not verify. Returns the lowest compact revision at which no version that is lost was readable.
    pub(super) fn examine(
        &mut self,
        source: &Source<'_>,
        damages: &mut Vec<Damage>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<i64> {
        let mut compact_revision = self.compact_revision;
        let bytes_total =
            self.files.iter().filter_map(|file| file.summary).map(|summary| summary.file_bytes).sum();
        let mut bytes_done = 0;
        for number in 0..self.files.len() {
            let (name, id) = (self.files[number].name.clone(), self.files[number].id);
            let summary = self.files[number].summary;
            let Some(bytes) = source.load(&name) else {
                self.missing_file(number, damages);
                continue;
            };
            let wreck = Wreck { bytes: &bytes, database: self.database, id, summary };
            let mut found = Vec::new();
            scan_wreck(&wreck, &mut |item| {
                match item {
                    Found::Record(_, record) => {
                        // A change replaced a version that is lost.
                        if let Some(prev) = record.prev
                            && record.revision.main <= self.revision_max
                            && let Some(damage) = self.stretch_of(prev.revision)
                        {
                            let is_dead = record.revision.main <= self.compact_revision;
                            if !is_dead {
                                compact_revision = compact_revision.max(record.revision.main);
                            }
                            let fate = if is_dead { Fate::Dead } else { Fate::HistoryLost };
                            note(damages, damage, prev.revision, Some(record.key), fate);
                        }
                    }
                    Found::Gap(gap) => self.gap(&name, id, summary, gap, damages),
                    Found::Damage(offset, bytes, what) => {
                        found.push(Damage { file: name.clone(), offset, bytes, what, ..Damage::default() });
                    }
                }
                Ok(())
            })?;
            damages.append(&mut found);
            bytes_done += bytes.len() as u64;
            progress(VerifyProgress { part: "records", bytes_done, bytes_total });
        }
        Ok(compact_revision)
    }

    fn missing_file(&mut self, number: usize, damages: &mut Vec<Damage>) {
        let file = &self.files[number];
        let (first, last) = file.bounds();
        let (after, before) =
            (Revision::new(first.main, first.sub - 1), Revision::new(last.main, last.sub.saturating_add(1)));
        self.stretches.insert(before, (after, damages.len()));
        damages.push(Damage {
            file: file.name.clone(),
            bytes: file.summary.map_or(0, |summary| summary.file_bytes),
            what: format!("a file with revisions {first} to {last} expected, none found"),
            between: Some((after, before)),
            ..Damage::default()
        });
    }

    fn gap(
        &mut self,
        name: &str,
        id: SegmentId,
        summary: Option<SegmentSummary>,
        gap: Gap,
        damages: &mut Vec<Damage>,
    ) {
        let below = |summary: SegmentSummary| Revision::new(summary.first.main, summary.first.sub - 1);
        let above =
            |summary: SegmentSummary| Revision::new(summary.last.main, summary.last.sub.saturating_add(1));
        let after = gap.after.or(summary.map(below)).unwrap_or(FIRST);
        let before = gap.before.or(summary.map(above)).unwrap_or(LAST);
        let replaced = |entry: &Entry| entry.prev.map(|prev| (prev.revision, entry.revision));
        self.stale.extend(gap.lost.iter().filter_map(replaced));
        let mut records = BTreeMap::new();
        for entry in &gap.lost {
            let is_dead = self.is_dead(id, Some(entry.ordinal)) == Some(true);
            let fate = if is_dead { Fate::Dead } else { Fate::Unknown };
            records.insert(entry.revision, LostRecord { key: gap.key.clone(), fate });
        }
        self.stretches.insert(before, (after, damages.len()));
        damages.push(Damage {
            file: name.to_string(),
            offset: gap.offset,
            bytes: gap.bytes,
            what: gap.what,
            between: Some((after, before)),
            records,
            range: None,
        });
    }

    /// Notes what the new compact revision makes dead, and what is dead where no dead bits say so.
    pub(super) fn compact(&mut self, source: &Source<'_>, compact_revision: i64) -> Result<()> {
        let bits_are_lost = self.table.has_holes();
        if compact_revision == self.swept_revision && !bits_are_lost {
            return Ok(());
        }
        let from = if bits_are_lost { -1 } else { self.swept_revision };
        let mut replaced = BTreeSet::new();
        self.each(source, &mut |record, _| {
            if let Some(prev) = record.prev
                && (from + 1..=compact_revision).contains(&record.revision.main)
            {
                replaced.insert(prev.revision);
            }
            Ok(())
        })?;
        self.replaced = replaced;
        self.compact_revision = compact_revision;
        Ok(())
    }

    /// Visits all records that verify and belong to the checkpoint, in no order across files that overlap, with what the dead bits
    /// say.
    fn each(
        &self,
        source: &Source<'_>,
        visit: &mut dyn FnMut(OwnedRecord, Option<bool>) -> Result<()>,
    ) -> Result<()> {
        for file in &self.files {
            self.each_of(source, file, visit)?;
        }
        Ok(())
    }

    fn each_of(
        &self,
        source: &Source<'_>,
        file: &SegmentFile,
        visit: &mut dyn FnMut(OwnedRecord, Option<bool>) -> Result<()>,
    ) -> Result<()> {
        let Some(bytes) = source.load(&file.name) else { return Ok(()) };
        let wreck = Wreck { bytes: &bytes, database: self.database, id: file.id, summary: file.summary };
        scan_wreck(&wreck, &mut |item| match item {
            Found::Record(ordinal, record) if record.revision.main <= self.revision_max => {
                visit(record, self.is_dead(file.id, ordinal))
            }
            _ => Ok(()),
        })
    }

    /// Visits the records that live on at the new compact revision, in order, each once.
    pub(super) fn each_alive(
        &self,
        source: &Source<'_>,
        keys: &KeySpans,
        visit: &mut dyn FnMut(OwnedRecord) -> Result<()>,
    ) -> Result<()> {
        let mut rest = &self.files[..];
        while let Some((first, behind)) = rest.split_first() {
            let mut end = first.bounds().1;
            let overlapping = behind.iter().take_while(|file| {
                let overlaps = file.bounds().0 <= end;
                end = if overlaps { end.max(file.bounds().1) } else { end };
                overlaps
            });
            let (cluster, later) = rest.split_at(1 + overlapping.count());
            if let [file] = cluster {
                self.each_of(source, file, &mut |record, dead| {
                    if self.lives_on(source, keys, &record, dead)? { visit(record) } else { Ok(()) }
                })?;
            } else {
                let mut records = BTreeMap::new();
                for file in cluster {
                    self.each_of(source, file, &mut |record, dead| {
                        if self.lives_on(source, keys, &record, dead)? {
                            records.insert(record.revision, record);
                        }
                        Ok(())
                    })?;
                }
                records.into_values().try_for_each(&mut *visit)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn lives_on(
        &self,
        source: &Source<'_>,
        keys: &KeySpans,
        record: &OwnedRecord,
        dead: Option<bool>,
    ) -> Result<bool> {
        if dead == Some(true)
            || self.replaced.contains(&record.revision)
            || (record.version == 0 && record.revision.main < self.compact_revision)
        {
            return Ok(false);
        }
        if dead == Some(false) {
            return Ok(true);
        }
        // Without dead bits: a key without a cell was deleted, and the delete forgotten.
        keys.may_have(source, &record.key)
    }

    /// The newest version of each key that lies in a hole of `keys` and is not below `from`, the lowest keys first, as many as
    /// `bytes_max` hold; and the key from which on there are more.
    pub(super) fn newest_in_holes(
        &self,
        source: &Source<'_>,
        keys: &KeySpans,
        from: &[u8],
        bytes_max: usize,
    ) -> Result<(BTreeMap<Bytes, OwnedRecord>, Option<Bytes>)> {
        let mut newest: BTreeMap<Bytes, OwnedRecord> = BTreeMap::new();
        let (mut bytes, mut more): (usize, Option<Bytes>) = (0, None);
        let size =
            |record: &OwnedRecord| size_of::<OwnedRecord>() + 128 + 2 * record.key.len() + record.value.len();
        self.each(source, &mut |record, dead| {
            let is_wanted = &record.key[..] >= from
                && more.as_ref().is_none_or(|more| record.key < more)
                && dead != Some(true)
                && keys.is_hole(&record.key);
            if !is_wanted || newest.get(&record.key).is_some_and(|known| known.revision > record.revision) {
                return Ok(());
            }
            bytes += size(&record);
            if let Some(older) = newest.insert(record.key.clone(), record) {
                bytes -= size(&older);
            }
            while bytes > bytes_max && newest.len() > 1 {
                let Some((key, dropped)) = newest.pop_last() else { break };
                bytes -= size(&dropped);
                more = Some(key);
            }
            Ok(())
        })?;
        Ok((newest, more))
    }

    /// The lost record that replaced this version, if one did.
    pub(super) fn replaced_by(&self, revision: Revision) -> Option<Revision> {
        self.stale.get(&revision).copied()
    }

    /// The newest main revision of all.
    pub(super) fn highest(&self, source: &Source<'_>) -> Result<i64> {
        let mut highest = 0;
        self.each(source, &mut |record, _| {
            highest = highest.max(record.revision.main);
            Ok(())
        })?;
        Ok(highest)
    }
}

/// Writes down what became of a lost version.
pub(super) fn note(
    damages: &mut [Damage],
    damage: usize,
    revision: Revision,
    key: Option<Bytes>,
    fate: Fate,
) {
    if let Some(damage) = damages.get_mut(damage) {
        let record = damage.records.entry(revision).or_insert(LostRecord { key: None, fate });
        record.key = key.or(record.key.take());
        record.fate = fate;
    }
}
