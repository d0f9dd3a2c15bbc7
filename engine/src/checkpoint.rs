//! Checkpoints: a run of frozen memtables becomes a new state on disk.
//!
//! **Contract.** [`make`] takes the newest durable [`DiskState`] and a [`Run`], writes what is new into new segments, makes it
//! durable, replaces the superblock, and returns the new state. It blocks, does its I/O through the caller's device
//! alone, and is a function of its arguments: the simulator calls it as the thread does.
//!
//! **Order** (I3 of the crash argument): segments → sync of each → sync of the directory → two copies of the superblock →
//! sync → the other two → sync → names of segments that nothing refers to are removed. Until the superblock is
//! written nothing refers to anything new, so a crash or an error before leaves the old state; files it left are removed
//! at the next open. Blocks are written once: nothing that a superblock refers to is ever overwritten (I2).
//!
//! **Steps**
//! 1. `sweep`: which records on disk do the compaction (a part of it, if it is large) and the run make dead;
//! 2. records of the run that are not dead → r segment; `clean`: what is left of sparse segments → fewer;
//! 3. newest versions of the run's keys → key tree or, where their leaf is not worth a page yet, pending tree (`pushes`); its system
//!    changes → system tree;
//! 4. liveness → segment table;
//! 5. superblock.
//!
//! **Invariants.** W4: the newest cell of a key that is pending is in the pending tree and in no other; see `disk_state/pending.rs`. C2: nothing is dropped or marked dead by a compaction younger than the run's own. D5: see the segment
//! table. D6: see `sweep`. P1: a segment loses its name only when all four copies of the superblock do without it.
//!
//! **Failure.** An error leaves the old state in force and the run to be tried again; segment ids of the failed attempt
//! are not used again. A failed write of the superblock poisons it (the superblock's own rule): which of the two states is
//! in force is then for the next open to find, so the segments of both keep their names, and no further attempt writes
//! anything.
mod checkpointer;
mod clean;
mod dead;
mod key_edits;
mod pacing;
mod planted;
mod push_policy;
mod pushes;
pub(crate) mod rebuild;
mod rest;
#[cfg(feature = "sim")]
pub mod simulated;
mod sink;
mod sweep;
#[cfg(all(test, feature = "sim"))]
mod tests;
mod worker;

pub use crate::space::{ReserveSize, ReserveStats};
pub use checkpointer::{CheckpointEvent, CheckpointOptions, CheckpointStats, Checkpointer, OnCheckpoint};
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
#[cfg(not(feature = "planted-bugs"))]
use planted::PlantedBug;

use crate::base::ids::SegmentId;
use crate::disk_state::{
    DiskState, PagesInfo, PlainCells, Positions, RevisionsFile, RevisionsInfo, Roots, SegmentFile, Shelf,
    TreeId, encode_pages, encode_revisions, segment_key,
};
use crate::error::{Error, Result};
use crate::io::disk::run as run_io;
use crate::io::{Io, IoErrorKind, Operation, Outcome};
use crate::memtable::record_bytes;
use crate::mvcc::{Run, is_dead};
use crate::revision_log::{LogRecord, Prev, RevisionWriter, train_dictionary};
use crate::segment::{self, SegmentKind, SegmentWriter};
use crate::space::{Reserve, Space};
use crate::superblock::SharedSuperblock;
use crate::tree::{MergeOptions, MergeOutcome, PageRef, Pages, merge};
use bytes::Bytes;
use clean::Thresholds;
use dead::{DeadRecords, TableEdits};
use key_edits::{Jumps, KeyEdits, MapEdits, Touches};
use planted::Planted;
use pushes::Pushes;
use sink::Sink;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use sweep::Swept;

/// What one checkpoint did, for statistics and logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckpointReport {
    /// Records written from memory.
    pub records_written: u64,
    /// Records of the run that were dead already and were not written.
    pub records_skipped: u64,
    /// Records that became dead on disk.
    pub records_killed: u64,
    /// Records copied out of sparse segments.
    pub records_cleaned: u64,
    /// Bytes of new r segments.
    pub revision_bytes: u64,
    /// Those of them that cleaning wrote.
    pub cleaned_bytes: u64,
    /// Bytes of new pages.
    pub page_bytes: u64,
    /// Those of them in the key tree.
    pub key_page_bytes: u64,
    /// Those of them in the pending tree.
    pub pending_page_bytes: u64,
    /// Changes that went to the pending tree.
    pub changes_waiting: u64,
    /// Changes that were pending and went down to their leaf.
    pub changes_pushed: u64,
    /// Bytes of the run's memtables: keys, values and 64 bytes for each record.
    pub run_bytes: u64,
    /// Segments that lost their name.
    pub segments_removed: u64,
    /// From the beginning to the durable superblock, in microseconds of the device's clock.
    pub duration_us: u64,
    /// Of that, writing the superblock and its syncs: the moment at which it becomes durable.
    pub commit_us: u64,
}

impl CheckpointReport {
    fn add(&mut self, other: &Self) {
        self.records_written += other.records_written;
        self.records_skipped += other.records_skipped;
        self.records_killed += other.records_killed;
        self.records_cleaned += other.records_cleaned;
        self.revision_bytes += other.revision_bytes;
        self.cleaned_bytes += other.cleaned_bytes;
        self.page_bytes += other.page_bytes;
        self.key_page_bytes += other.key_page_bytes;
        self.pending_page_bytes += other.pending_page_bytes;
        self.changes_waiting += other.changes_waiting;
        self.changes_pushed += other.changes_pushed;
        self.run_bytes += other.run_bytes;
        self.segments_removed += other.segments_removed;
        self.duration_us += other.duration_us;
        self.commit_us += other.commit_us;
    }
}

/// True if a checkpoint of nothing new would sweep or win back what is worth it.
pub(crate) fn wants_upkeep(state: &DiskState, shelf: &Shelf, is_short: bool) -> bool {
    let thresholds = Thresholds::on(is_short);
    !state.is_empty() && (state.is_sweep_left() || clean::is_worth_it(state, shelf, thresholds))
}

/// Numbers for new segments. Each is drawn once in a process, and never again once a checkpoint has referred to it.
pub(crate) struct SegmentIds {
    next: u32,
    /// Stays empty, unless a bug is planted.
    reused: Vec<SegmentId>,
}

impl SegmentIds {
    pub(crate) fn from(next: u32) -> Self {
        Self { next, reused: Vec::new() }
    }

    fn draw(&mut self) -> Result<SegmentId> {
        if let Some(id) = self.reused.pop() {
            return Ok(id);
        }
        let id = SegmentId(self.next);
        self.next = self.next.checked_add(1).ok_or_else(|| {
            Error::Refused(
                "the directory has used all its segment numbers: export it and import it anew".into(),
            )
        })?;
        Ok(id)
    }
}

/// Everything that outlives one checkpoint.
pub(crate) struct Checkpoints {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) superblock: Arc<SharedSuperblock>,
    pub(crate) ids: SegmentIds,
    pub(crate) sweep_changes_max: usize,
    /// See [`CheckpointOptions::dictionary_records_min`].
    pub(crate) dictionary_records_min: usize,
    /// See [`CheckpointOptions::pending_percent_max`].
    pub(crate) pending_percent_max: u32,
    pub(crate) planted: Planted,
    /// The next checkpoint copies at most so much of the revision log out of sparse segments, and a quarter of that in pages.
    pub(crate) clean_bytes_max: u64,
    /// The room there is.
    pub(crate) space: Arc<Space>,
    pub(crate) reserve: Reserve,
    /// Memory for pages that only old states refer to.
    pub(crate) superseded: SupersededPages,
}

/// Pages that a state refers to and the one behind it does not, by state. They leave the cache when nobody reads that state
/// any more. Earlier would be worse than never: who still reads it would have them read and kept again, in front of
/// everything of a lower class.
#[derive(Default)]
pub(crate) struct SupersededPages(Vec<(Weak<DiskState>, Vec<PageRef>)>);

impl SupersededPages {
    fn add(&mut self, state: &Arc<DiskState>, freed: Vec<PageRef>) {
        if !freed.is_empty() {
            self.0.push((Arc::downgrade(state), freed));
        }
    }

    fn forget_unread(&mut self, shelf: &Shelf) {
        for (_, freed) in self.0.extract_if(.., |(state, _)| state.strong_count() == 0) {
            shelf.forget_pages(freed.iter());
        }
    }
}

/// See the module.
pub(crate) fn make(
    checkpoints: &mut Checkpoints,
    io: &mut dyn Io,
    base: &Arc<DiskState>,
    run: &Run,
) -> Result<(Arc<DiskState>, CheckpointReport)> {
    let begun_us = io.now_us();
    checkpoints.superseded.forget_unread(&checkpoints.shelf);
    #[cfg(feature = "planted-bugs")]
    let io = &mut planted::Device::new(io, checkpoints.planted);
    let mut attempt = Attempt::new(checkpoints, io, base, run);
    match attempt.write() {
        Ok(state) => {
            let mut report = attempt.report;
            let repaired = std::mem::take(&mut attempt.repaired);
            let freed = std::mem::take(&mut attempt.freed);
            for (tree, fences) in &repaired {
                checkpoints.shelf.repairs.rewritten(*tree, fences);
            }
            report.duration_us = io.now_us().saturating_sub(begun_us);
            checkpoints.superseded.add(base, freed);
            let gone = unreferenced(base, &state);
            report.segments_removed = remove(io, &gone, &checkpoints.shelf);
            if checkpoints.planted.has(PlantedBug::ReuseSegmentIds) {
                checkpoints.ids.reused.extend(gone.iter().map(|(id, _)| *id));
            }
            Ok((Arc::new(state), report))
        }
        Err(error) => {
            attempt.abandon();
            Err(error)
        }
    }
}

/// A checkpoint under way.
struct Attempt<'a> {
    shelf: Arc<Shelf>,
    superblock: Arc<SharedSuperblock>,
    ids: &'a mut SegmentIds,
    io: &'a mut dyn Io,
    base: &'a Arc<DiskState>,
    run: &'a Run,
    /// Sequence of the superblock that will name it.
    sequence: u64,
    /// Segments made so far, to be removed if it fails.
    made: Vec<(SegmentId, SegmentKind)>,
    report: CheckpointReport,
    /// Pages of the old trees that the new ones do without.
    freed: Vec<PageRef>,
    /// By tree, fences of leaves that are written anew because their page was lost.
    repaired: Vec<(TreeId, Vec<Bytes>)>,
    sweep_changes_max: usize,
    dictionary_records_min: usize,
    pending_percent_max: u32,
    clean_bytes_max: u64,
    thresholds: Thresholds,
    /// Some cell that was put names stations.
    has_stations: bool,
    planted: Planted,
}

impl<'a> Attempt<'a> {
    fn new(
        checkpoints: &'a mut Checkpoints,
        io: &'a mut dyn Io,
        base: &'a Arc<DiskState>,
        run: &'a Run,
    ) -> Self {
        let sequence = checkpoints.superblock.read().sequence() + 1;
        let is_short = checkpoints.space.is_short();
        Self {
            shelf: checkpoints.shelf.clone(),
            superblock: checkpoints.superblock.clone(),
            ids: &mut checkpoints.ids,
            io,
            base,
            run,
            sequence,
            made: Vec::new(),
            report: CheckpointReport::default(),
            freed: Vec::new(),
            repaired: Vec::new(),
            sweep_changes_max: checkpoints.sweep_changes_max.max(1),
            dictionary_records_min: checkpoints.dictionary_records_min,
            // What waits to be deleted keeps its room until its leaf is written.
            pending_percent_max: if is_short { 0 } else { checkpoints.pending_percent_max },
            clean_bytes_max: checkpoints.clean_bytes_max,
            thresholds: Thresholds::on(is_short),
            has_stations: false,
            planted: checkpoints.planted,
        }
    }

    fn write(&mut self) -> Result<DiskState> {
        self.superblock.check()?;
        run_io(self.io, Operation::CreateDirectory { path: PathBuf::from(segment::DIRECTORY) })?;
        let mut dead = DeadRecords::new(self.base);
        let mut swept = sweep::sweep(self.base, self.run, self.sweep_changes_max, &mut dead, self.planted)?;
        let mut revisions: Vec<RevisionsFile> = self.base.revisions.clone();
        let (killed, mut table_edits) = dead.apply(&self.shelf, &mut revisions)?;
        self.report.records_killed = killed;

        self.report.run_bytes = self.run.tables.iter().map(|table| table.record_bytes()).sum();
        // Cells first: what the records of stations have to name is in those that are replaced.
        let mut sink = Sink::new(self.shelf.clone(), self.sequence);
        let purges = std::mem::take(&mut swept.purges);
        let merged = self.merge_trees(&mut sink, purges);
        let (trees, jumps) = match merged {
            Ok(merged) => merged,
            Err(error) => return self.give_up(sink, error),
        };
        let written = self.write_revisions(&jumps, &swept, &mut revisions, &mut table_edits);
        let mut fresh = match written {
            Ok(fresh) => fresh,
            Err(error) => return self.give_up(sink, error),
        };
        let [keys, pending, system] = trees;
        let mut pages = self.base.pages.clone();
        for (id, bytes) in sink.written_bytes() {
            let info = pages.entry(id).or_default();
            (info.written_bytes, info.live_bytes) = (bytes, bytes);
        }
        self.freed.extend(keys.freed.iter().chain(&pending.freed).chain(&system.freed));
        let mut freed = self.freed.iter();
        if let Err(error) =
            freed.try_for_each(|freed| release(&mut pages, freed, |info| &mut info.live_bytes))
        {
            return self.give_up(sink, error);
        }
        for file in &mut fresh {
            table_edits.insert(segment_key(file.info.summary.id), Some(encode_revisions(&file.info)));
        }
        revisions.append(&mut fresh);
        self.describe_pages(&mut pages, &mut table_edits);
        let before = sink.written_bytes();
        let table = match self.merge_table(&mut sink, table_edits) {
            Ok(table) => table,
            Err(error) => return self.give_up(sink, error),
        };
        for (id, bytes) in sink.written_bytes() {
            let bytes = bytes - before.get(&id).copied().unwrap_or(0);
            pages.entry(id).or_default().table_bytes += bytes;
        }
        self.freed.extend(&table.freed);
        let mut freed = table.freed.iter();
        if let Err(error) =
            freed.try_for_each(|freed| release(&mut pages, freed, |info| &mut info.table_bytes))
        {
            return self.give_up(sink, error);
        }
        pages.retain(|_, info| info.live_bytes + info.table_bytes > 0);
        (self.report.key_page_bytes, self.report.pending_page_bytes) =
            (keys.bytes_written, pending.bytes_written);
        self.report.page_bytes =
            keys.bytes_written + pending.bytes_written + system.bytes_written + table.bytes_written;

        let roots =
            Roots { keys: keys.root, system: system.root, segments: table.root, pending: pending.root };
        self.made.extend(sink.segments());
        if self.planted.has(PlantedBug::SuperblockFirst) {
            self.write_superblock(roots, swept.revision)?;
        }
        sink.finish(self.io)?;
        if !self.made.is_empty() {
            run_io(self.io, Operation::SyncDirectory { path: PathBuf::from(segment::DIRECTORY) })?;
            run_io(self.io, Operation::SyncDirectory { path: PathBuf::new() })?;
        }
        let positions = Positions {
            applied: (self.run.position.index, self.run.position.term),
            revision: self.run.revision,
            compact_revision: self.run.compact_revision,
            swept_revision: swept.revision,
        };
        // Before the superblock: afterwards nothing may fail but the superblock itself.
        let state = DiskState::new(self.shelf.clone(), roots, positions, revisions, pages)?;
        assert!(!self.planted.has(PlantedBug::BrokenInvariant), "an invariant that was broken on purpose");
        if self.planted.has(PlantedBug::UnlinkEarly) {
            remove(self.io, &unreferenced(self.base, &state), &self.shelf);
        }
        let begun_us = self.io.now_us();
        self.write_superblock(roots, swept.revision)?;
        self.report.commit_us = self.io.now_us().saturating_sub(begun_us);
        Ok(state)
    }

    /// Writes new r segments: those of the run, which are returned, and what is left of sparse ones.
    fn write_revisions(
        &mut self,
        jumps: &Jumps,
        swept: &Swept,
        revisions: &mut Vec<RevisionsFile>,
        table_edits: &mut TableEdits,
    ) -> Result<Vec<RevisionsFile>> {
        let fresh = self.write_records(jumps)?;
        let settled = self.settled_count(revisions, swept);
        // What is left behind them is put back: segments stay in the order of their revisions.
        let mut unsettled = revisions.split_off(settled);
        self.clean(revisions, table_edits)?;
        drop_dead(revisions, table_edits);
        revisions.append(&mut unsettled);
        Ok(fresh)
    }

    /// How many of the segments, from the oldest, may lose what is dead in them (D6).
    fn settled_count(&self, revisions: &[RevisionsFile], swept: &Swept) -> usize {
        let planted = self.planted.has(PlantedBug::DropUnswept);
        let may_lose = |file: &RevisionsFile| {
            planted || swept.may_lose(file.info.summary.last, self.run.compact_revision)
        };
        revisions.partition_point(may_lose)
    }

    fn write_superblock(&mut self, roots: Roots, swept_revision: i64) -> Result<()> {
        let (run, next_segment, has_stations) = (self.run, self.ids.next, self.has_stations);
        // From here on some copy may refer to them, also if this fails.
        self.made.clear();
        self.superblock.update(self.io, |superblock| {
            superblock.roots = roots;
            // Cells of the states before may name some.
            superblock.has_stations |= has_stations;
            superblock.applied_index = run.position.index;
            superblock.applied_term = run.position.term;
            superblock.revision = run.revision;
            superblock.compact_revision = run.compact_revision;
            superblock.swept_revision = swept_revision;
            superblock.wal_replay_lsn = run.position.lsn;
            superblock.next_segment = next_segment;
        })
    }

    /// Keeps the sink's files for [`Self::abandon`].
    fn give_up(&mut self, sink: Sink, error: Error) -> Result<DiskState> {
        self.made.extend(sink.segments());
        sink.abandon(self.io);
        Err(error)
    }

    /// Removes what a failed attempt has made; best effort, the next open does it too.
    fn abandon(&mut self) {
        for (id, kind) in std::mem::take(&mut self.made) {
            let _ = run_io(self.io, Operation::Unlink { path: segment::path(id, kind) });
            self.shelf.forget(id);
        }
    }

    /// Puts a record into the segment under way, and begins one if there is none. After an error there is none.
    fn push_record(
        &mut self,
        writer: &mut Option<RevisionWriter>,
        dictionary: Option<&[u8]>,
        record: &LogRecord<'_>,
    ) -> Result<()> {
        let mut open = match writer.take() {
            Some(open) => open,
            None => {
                let id = self.ids.draw()?;
                self.made.push((id, SegmentKind::Revisions));
                let (kind, database) = (SegmentKind::Revisions, self.shelf.database);
                let file = SegmentWriter::create(self.io, id, kind, database, self.sequence)?;
                RevisionWriter::new(file, database, dictionary.map(<[u8]>::to_vec))
            }
        };
        match open.push(self.io, record) {
            Ok(()) => {
                *writer = Some(open);
                Ok(())
            }
            Err(error) => {
                open.abandon(self.io);
                Err(error)
            }
        }
    }

    fn finish_revisions(&mut self, writer: RevisionWriter) -> Result<RevisionsFile> {
        let summary = writer.finish(self.io)?;
        self.report.revision_bytes += summary.file_bytes;
        let segment = self.shelf.open_revisions(&summary)?;
        // Nothing refers to it yet: what cannot be read now is not made part of a state.
        segment.check_trailer()?;
        let info = RevisionsInfo { summary, dead_records: 0, dead_record_bytes: 0, dead_stored_bytes: 0 };
        Ok(RevisionsFile { segment, info })
    }

    /// Writes the run's records that are not dead at its compact revision.
    fn write_records(&mut self, jumps: &Jumps) -> Result<Vec<RevisionsFile>> {
        let mut files = Vec::new();
        let mut writer: Option<RevisionWriter> = None;
        let dictionary = train_dictionary(&samples(self.run, self.dictionary_records_min));
        for table in &self.run.tables {
            for index in 0..table.events_count() {
                let version = table.event(index);
                if is_dead(&version, self.run.compact_revision) {
                    self.report.records_skipped += 1;
                    continue;
                }
                if writer.as_ref().is_some_and(|writer| writer.position() >= self.shelf.options.segment_bytes)
                    && let Some(full) = writer.take()
                {
                    files.push(self.finish_revisions(full)?);
                }
                let key = version.key();
                let record = LogRecord {
                    revision: version.revision(),
                    version: version.version(),
                    create_revision: version.create_revision(),
                    lease: version.lease(),
                    jumps: jumps.get(&version.revision()).map_or(&[], |jumps| &jumps[..]),
                    prev: version.prev().map(|prev| Prev {
                        revision: prev.revision,
                        record_bytes: record_bytes(key.len(), prev.value_bytes as usize),
                    }),
                    key,
                    value: version.value(),
                };
                self.push_record(&mut writer, dictionary.as_deref(), &record)?;
                self.report.records_written += 1;
            }
        }
        if let Some(writer) = writer {
            files.push(self.finish_revisions(writer)?);
        }
        Ok(files)
    }

    fn merge_options(&self, tree: TreeId) -> MergeOptions {
        MergeOptions {
            page_bytes: self.shelf.options.page_bytes,
            tree: tree as u8,
            database: self.shelf.database,
            checkpoint: self.sequence,
            packs: tree == TreeId::Pending,
        }
    }

    /// Merges what is new into key tree, pending tree and system tree.
    fn merge_trees(&mut self, sink: &mut Sink, purges: Vec<Bytes>) -> Result<([MergeOutcome; 3], Jumps)> {
        let mut sparse =
            clean::sparse_pages(self.base, &self.shelf, self.clean_bytes_max / 4, self.thresholds)?;
        let purges = if self.planted.has(PlantedBug::ForgetPurges) { Vec::new() } else { purges };
        for (tree, touches) in [(TreeId::Keys, &mut sparse.keys), (TreeId::Pending, &mut sparse.pending)] {
            // Leaves that are held in memory because their page is lost.
            let mut fences = self.shelf.repairs.fences(tree);
            // One that is the fence of a page above too, which is touched, waits for the next checkpoint.
            fences.retain(|fence| *touches.entry(fence.clone()).or_insert(0) == 0);
            self.repaired.push((tree, fences));
        }
        let sizes = (self.shelf.options.page_bytes as u64, self.pending_percent_max);
        let pushes = Pushes::choose(self.run, self.base, &purges, &sparse.keys, sizes)?;
        let (keys, mut jumps) = self.merge_keys(TreeId::Keys, &pushes, &purges, sparse.keys, sink)?;
        let (pending, more) = self.merge_keys(TreeId::Pending, &pushes, &purges, sparse.pending, sink)?;
        jumps.extend(more);
        let system = self.merge_system(sparse.system, sink)?;
        Ok(([keys, pending, system], jumps))
    }

    /// Merges the share of the key tree or of the pending tree.
    fn merge_keys(
        &mut self,
        tree: TreeId,
        pushes: &Pushes,
        purges: &[Bytes],
        touches: Touches,
        sink: &mut Sink,
    ) -> Result<(MergeOutcome, Jumps)> {
        let changes = (purges, touches);
        let mut edits = KeyEdits::new(tree, self.run, self.base, pushes, changes, self.planted)?;
        let options = self.merge_options(tree);
        let (repaired, plain) = (self.base.pages_of(tree), self.shelf.pages(tree));
        let pages: &dyn Pages = match &repaired {
            Some(pages) => pages,
            None => &plain,
        };
        let root = tree.root(&self.base.roots);
        let mut sink = sink.over(self.io, self.ids, tree);
        let merged = merge(root, pages, tree.cells(), &options, &mut edits, &mut sink)?;
        match tree {
            TreeId::Pending => self.report.changes_waiting += edits.put_count(),
            _ => self.report.changes_pushed += edits.pushed_count(),
        }
        let (jumps, has_stations) = edits.into_jumps();
        self.has_stations |= has_stations;
        Ok((merged, jumps))
    }

    fn merge_system(&mut self, touches: Touches, sink: &mut Sink) -> Result<MergeOutcome> {
        let keeps = self.planted.has(PlantedBug::KeepLeaseKeys);
        let changes =
            self.run.system.iter().filter(|(key, value)| !(keeps && key[0] == b'l' && value.is_none()));
        let changes = changes.map(|(key, value)| (key.clone(), value.clone()));
        let mut edits = MapEdits::new(changes.collect(), touches);
        let options = self.merge_options(TreeId::System);
        let pages = self.shelf.pages(TreeId::System);
        let mut sink = sink.over(self.io, self.ids, TreeId::System);
        merge(self.base.roots.system, &pages, &PlainCells, &options, &mut edits, &mut sink)
    }

    /// Descriptors of k segments that are new or have changed.
    fn describe_pages(
        &self,
        pages: &mut BTreeMap<SegmentId, PagesInfo>,
        table_edits: &mut BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) {
        for (&id, info) in &*pages {
            let known = self.base.pages.get(&id);
            let changed = known.is_none_or(|known| {
                (known.written_bytes, known.live_bytes) != (info.written_bytes, info.live_bytes)
            });
            if info.live_bytes == 0 {
                // Only the table may still be in it, which is found without a descriptor.
                table_edits.insert(segment_key(id), None);
            } else if changed {
                table_edits.insert(segment_key(id), Some(encode_pages(info)));
            }
        }
    }

    fn merge_table(
        &mut self,
        sink: &mut Sink,
        edits: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) -> Result<MergeOutcome> {
        let changes = edits.into_iter().map(|(key, value)| (key.into(), value.map(Into::into)));
        let touches = clean::sparse_table_pages(self.base, &self.shelf)?;
        let mut edits = MapEdits::new(changes.collect(), touches);
        let options = self.merge_options(TreeId::Segments);
        let pages = self.shelf.pages(TreeId::Segments);
        let mut sink = sink.over(self.io, self.ids, TreeId::Segments);
        merge(self.base.roots.segments, &pages, &PlainCells, &options, &mut edits, &mut sink)
    }
}

/// A freed page is no longer live in its segment. What is live there was read from disk.
fn release(
    pages: &mut BTreeMap<SegmentId, PagesInfo>,
    freed: &PageRef,
    bytes: impl Fn(&mut PagesInfo) -> &mut u64,
) -> Result<()> {
    let info = pages.entry(freed.segment).or_default();
    let live = bytes(info);
    let freed_bytes = freed.bytes() as u64;
    *live = live.checked_sub(freed_bytes).ok_or_else(|| Error::Corruption {
        file: segment::path(freed.segment, SegmentKind::Pages).display().to_string(),
        offset: freed.offset(),
        what: format!("D5: {freed_bytes} bytes are freed, {live} live ones are left by the segment table"),
    })?;
    Ok(())
}

/// Segments in which every record is dead leave the revision log.
fn drop_dead(revisions: &mut Vec<RevisionsFile>, table_edits: &mut BTreeMap<Vec<u8>, Option<Vec<u8>>>) {
    revisions.retain(|file| {
        let live = file.info.dead_records < u64::from(file.info.summary.records);
        if !live {
            dead::forget_segment(&file.info.summary, table_edits);
        }
        live
    });
}

/// Segments that `old` has and `new` has not.
fn unreferenced(old: &DiskState, new: &DiskState) -> Vec<SegmentFile> {
    let kept = |id: SegmentId| new.revisions.iter().any(|file| file.info.summary.id == id);
    let revisions = old.revisions.iter().map(|file| file.info.summary.id).filter(|&id| !kept(id));
    let pages = old.pages.keys().copied().filter(|id| !new.pages.contains_key(id));
    revisions
        .map(|id| (id, SegmentKind::Revisions))
        .chain(pages.map(|id| (id, SegmentKind::Pages)))
        .collect::<Vec<_>>()
}

/// Takes the names of segments (P1), and of those that somebody kept before and nobody does now. Errors of removing are not
/// errors of the checkpoint: the next open removes what is left.
fn remove(io: &mut dyn Io, gone: &[SegmentFile], shelf: &Shelf) -> u64 {
    for &(id, _) in gone {
        shelf.forget(id);
    }
    let mut removed = 0;
    for (id, kind) in shelf.names.release(gone) {
        removed += u64::from(run_io(io, Operation::Retire { path: segment::path(id, kind) }).is_ok());
    }
    removed
}

/// Removes files that no checkpoint refers to: left by one that was cut short. Returns the first number that none of them
/// had, so that no number has two lives.
pub(crate) fn remove_orphans(io: &mut dyn Io, state: &DiskState) -> Result<u32> {
    let names = match run_io(io, Operation::List { path: PathBuf::from(segment::DIRECTORY) }) {
        Ok((Outcome::Names(names), _)) => names,
        Ok(_) => unreachable!("a listing gives names"),
        Err(error) if error.kind == IoErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut free = 0;
    for name in names {
        let Some((id, kind)) = segment::parse_name(&name) else { continue };
        let referred = match kind {
            SegmentKind::Revisions => state.revisions.iter().any(|file| file.info.summary.id == id),
            SegmentKind::Pages => state.pages.contains_key(&id),
        };
        if !referred {
            run_io(io, Operation::Retire { path: segment::path(id, kind) })?;
            free = free.max(id.0.saturating_add(1));
        }
    }
    Ok(free)
}

/// Samples for the dictionary of a segment: a few hundred values, evenly spread; none of a run too small for one.
fn samples(run: &Run, records_min: usize) -> Vec<&[u8]> {
    const SAMPLES: usize = 512;
    let records: usize = run.tables.iter().map(|table| table.events_count()).sum();
    if records < records_min {
        return Vec::new();
    }
    let stride = records.div_ceil(SAMPLES).max(1);
    let mut samples = Vec::new();
    for table in &run.tables {
        for index in (0..table.events_count()).step_by(stride) {
            let value = table.event(index).value();
            if !value.is_empty() {
                samples.push(&value[..value.len().min(4096)]);
            }
        }
    }
    samples
}
