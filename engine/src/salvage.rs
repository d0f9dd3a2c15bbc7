//! A new directory from what still verifies in a damaged one.
//!
//! **Contract.** [`salvage`] reads a directory that no process has open, in whatever state it is, and never writes there. It makes
//! another directory with another identity that opens, and reports every place that did not verify, what was lost with it and what
//! could be had elsewhere. Nothing is guessed: a read of the new directory gives what the old one would have given, or an error, or
//! (where the report says so) a key is missing.
//!
//! ```text
//! superblock ─▶ positions, roots                 one valid copy of four is enough
//! key tree, pending, system tree ─▶ leaves and holes      spans.rs, cells.rs
//! segment table ─▶ segments, dead bits           records.rs
//! every r segment, record by record              revision_log/salvage.rs
//! log ─▶ states, entries without a gap           log.rs
//!        │
//!        ▼
//! records, in order ─▶ new r segments;  cells, in order ─▶ new trees;  entries ─▶ new log;  superblock last
//! ```
//!
//! **What stands in for what.** A record is repaired from its cell if that holds the value. The cells below a page that is lost are
//! made from the records, and held against the number of keys and the sum of hashes in the reference to that page. Leases' keys
//! are made from the cells. Dead bits follow from the key tree.
//!
//! **What is lost.** The newest version of a key: its cell stays, without a value, so that the log applies as it did; reads of it fail
//! until somebody puts or deletes the key. An older version: the compact revision is raised above it, for a read below
//! would miss it and not know. An entry of the log: all behind it are lost too, for what they do depends on it.
//!
//! **Without any copy of the superblock** nobody knows what of the log the checkpoint holds: then the records alone are taken,
//! readable at the newest revision only, or, if there are none, the whole log.
//!
//! **Memory**: that of `spans.rs` and `records.rs`, and [`SalvageOptions::memory_bytes`] for keys whose leaf is lost.
mod cells;
mod log;
mod records;
mod report;
mod source;
mod spans;

pub use report::{Damage, Fate, LostEntries, LostRange, LostRecord, SalvageReport};

use crate::base::ids::{Lsn, Revision};
use crate::base::rng::Rng;
use crate::checkpoint::rebuild::Rebuild;
use crate::disk_state::{
    DiskVersion, KeyCells, Shelf, ShelfOptions, TreeId, VerifyProgress, encode_cell_of, tombstone_main,
};
use crate::error::{Error, Result};
use crate::io::dir_lock::{DirLock, LOCK_FILE};
use crate::io::disk::BLOCK_BYTES;
use crate::io::read_only_disk::ReadOnlyDisk;
#[cfg(feature = "sim")]
use crate::io::sim_disk::SimDisk;
use crate::io::{BackendChoice, Files, Io, open_backend, open_files};
use crate::log::random_seed;
use crate::mvcc::{CHANGE_SUM_KEY, LEASE_PREFIX, lease_key};
use crate::revision_log::{OwnedRecord, Prev, RECORD_BYTES_EXTRA};
use crate::superblock::{self, COPIES, Mode, Roots, Stage, Superblock};
use crate::tree::{Aggregate, CellKind, PageRef};
use crate::wal::{Wal, WalOptions};
use bytes::Bytes;
use cells::KeySpans;
use log::SavedLog;
use records::{SavedRecords, note};
use source::Source;
use spans::Spans;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How a salvage is run.
#[derive(Clone, Debug)]
pub struct SalvageOptions {
    /// Memory for keys whose leaf is lost, in bytes; with less, the r segments are read more often. 256 MiB by default.
    pub memory_bytes: usize,
    /// Sizes of pages and segments in the new directory.
    pub shelf: ShelfOptions,
}

impl Default for SalvageOptions {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, shelf: ShelfOptions { cache_bytes: 0, ..ShelfOptions::default() } }
    }
}

/// Hears how far it is.
pub type OnProgress<'a> = dyn FnMut(VerifyProgress) + 'a;

/// See the module. `to` must be empty or not exist.
///
/// # Errors
/// [`Error::Refused`] if `to` is not empty, there is nothing of a database in `from`, or a later release wrote it; what reading
/// or writing gives. Damage is no error. After an error `to` holds no database and is to be removed.
pub fn salvage(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &SalvageOptions,
    progress: &mut OnProgress<'_>,
) -> Result<SalvageReport> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let mut disk = ReadOnlyDisk::open(from)?;
    let files = disk.files();
    refuse_if_not_empty(to)?;
    let lock = DirLock::acquire(to, Duration::ZERO, |_| {})?;
    let mut io = open_backend(to, Some(&lock), BackendChoice::Auto)?;
    let mut target = Target { io: &mut *io, files: open_files(to)?, seed: random_seed() };
    run(Source { io: &mut disk, files }, &mut target, options, progress)
}

/// The same from one simulated disk to another.
#[cfg(feature = "sim")]
pub fn salvage_simulated(
    from: &SimDisk,
    to: &SimDisk,
    options: &SalvageOptions,
    seed: u64,
) -> Result<SalvageReport> {
    let source = Source { io: &mut from.handle(), files: Arc::new(from.clone()) };
    let mut target = Target { io: &mut to.handle(), files: Arc::new(to.clone()), seed };
    run(source, &mut target, options, &mut |_| {})
}

fn refuse_if_not_empty(to: &Path) -> Result<()> {
    // One that cannot be read cannot be written either, which is said better then.
    let Ok(mut entries) = std::fs::read_dir(to) else { return Ok(()) };
    if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOCK_FILE)) {
        let to = to.display();
        return Err(Error::Refused(format!("{to} is not empty: name a directory that does not exist yet")));
    }
    Ok(())
}

/// Where the new directory is made.
struct Target<'a> {
    io: &'a mut dyn Io,
    files: Arc<dyn Files>,
    seed: u64,
}

fn run(
    mut source: Source<'_>,
    target: &mut Target<'_>,
    options: &SalvageOptions,
    progress: &mut OnProgress<'_>,
) -> Result<SalvageReport> {
    let mut report = SalvageReport::default();
    let old = read_superblock(&mut source, &mut report)?;
    let known = old.as_ref().map(|old| (old.database, old.segment_bytes));
    let mut log = SavedLog::read(&mut source, known, progress)?;
    let mut new = match &old {
        Some(old) => old.clone(),
        None => superblock_of(&mut source, &log, &mut report)?,
    };
    let old_database = new.database;
    new.stage = Stage::Ready;
    // What this directory holds is no longer what that one held, so no file of one may pass for one of the other.
    Rng::new(!target.seed).fill(&mut new.database);
    let replay_seq = old.as_ref().map(|old| (old.wal_replay_lsn.0 / u64::from(old.segment_bytes)).max(1));
    new.wal_replay_lsn = Lsn(0);
    report.compact_revision_before = old.as_ref().map(|old| old.compact_revision);
    if new.has_checkpoint() {
        let is_known = old.is_some();
        let checkpoint = Checkpoint::read(source, old_database, &new, is_known, &mut report, progress)?;
        source = checkpoint.rebuild(&mut new, target, options, &mut report, progress)?;
    }
    let wal_options = WalOptions { segment_bytes: u64::from(new.segment_bytes), ..WalOptions::default() };
    let mut wal = Wal::create(target.io, new.database, wal_options, target.seed)?;
    let from = (new.applied_index, replay_seq);
    (report.entries, report.entries_lost) = log.copy(&source, from, &mut wal, target.io, progress)?;
    wal.close(target.io)?;
    report.damages.append(&mut log.take_damages());
    report.damages.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
    report.compact_revision = new.compact_revision;
    new.create(target.io)?;
    Ok(report)
}

/// The superblock in force, if a copy of it verifies.
fn read_superblock(source: &mut Source<'_>, report: &mut SalvageReport) -> Result<Option<Superblock>> {
    let damage = |copy: usize, what: String| Damage {
        file: superblock::FILE.to_string(),
        offset: (copy * BLOCK_BYTES) as u64,
        bytes: BLOCK_BYTES as u64,
        what,
        ..Damage::default()
    };
    let found = match Superblock::inspect(source.io) {
        Ok(found) => found,
        // A later format; a missing file is told below.
        Err(error @ Error::Refused(_)) if source.load(superblock::FILE).is_some() => return Err(error),
        Err(Error::Refused(_) | Error::Corruption { .. } | Error::Io(_)) => None,
        Err(error) => return Err(error),
    };
    let Some(superblock) = found else {
        report.damages.push(damage(0, "a copy of the superblock expected, none of the four verifies".into()));
        report.notes.push(
            "without a superblock nobody knows which entries of the log the checkpoint holds, and what was compacted".into(),
        );
        return Ok(None);
    };
    let sequence = superblock.sequence();
    for (copy, found) in superblock.copies().into_iter().enumerate().take(COPIES) {
        if found != Some(sequence) {
            let found = found.map_or("a block that does not verify".to_string(), |found| found.to_string());
            report
                .damages
                .push(damage(copy, format!("copy {copy} with sequence {sequence} expected, {found} found")));
        }
    }
    Ok(Some(superblock))
}

/// What can be said of a directory without a superblock.
fn superblock_of(source: &mut Source<'_>, log: &SavedLog, report: &mut SalvageReport) -> Result<Superblock> {
    let mut segments = source.list(crate::segment::DIRECTORY)?;
    // What was received of another member's state may be of another database.
    segments.retain(|name| crate::segment::parse_name(name).is_some());
    let of_segment = || {
        segments.iter().find_map(|name| {
            let file = source.files.open(&Path::new(crate::segment::DIRECTORY).join(name)).ok()?;
            crate::segment::read_header(&*file).ok().map(|header| header.database)
        })
    };
    let (Some(database), Some(segment_bytes)) = (log.database.or_else(of_segment), log.segment_bytes) else {
        return Err(Error::Refused("nothing of a database can be read in this directory".into()));
    };
    let mode = if log.is_embedded { Mode::Embedded } else { Mode::Replicated };
    let mut new = Superblock::new(database, mode, segment_bytes);
    if segments.iter().any(|name| name.ends_with(".r")) {
        // Entries of which nobody knows whether the records hold them are left out.
        new.applied_index = log.indexes.map_or(1, |(_, last)| last).max(1);
        new.applied_term = u64::from(mode == Mode::Replicated);
        if let Some((first, last)) = log.indexes {
            report
                .notes
                .push(format!("entries {first} to {last} of the log can be read, and were not applied"));
        }
        new.compact_revision = i64::MAX;
        new.revision = i64::MAX;
        // Records may have jumps.
        new.has_stations = true;
    }
    report.notes.push(
        "records of the layer above (leases, members, settings) are lost, but for those in the log".into(),
    );
    if mode == Mode::Replicated {
        report.notes.push("cluster id and member id are lost".into());
    }
    Ok(new)
}

/// The checkpoint of the old directory, examined.
struct Checkpoint<'a> {
    source: Source<'a>,
    keys: KeySpans,
    system: Spans,
    records: SavedRecords,
    /// Records that are written anew from their cells.
    repaired: BTreeMap<Revision, OwnedRecord>,
    revision: i64,
    compact_revision: i64,
}

impl<'a> Checkpoint<'a> {
    fn read(
        mut source: Source<'a>,
        database: [u8; 16],
        superblock: &Superblock,
        is_known: bool,
        report: &mut SalvageReport,
        progress: &mut OnProgress<'_>,
    ) -> Result<Self> {
        let damages = &mut report.damages;
        let Roots { keys, system, segments, pending } = superblock.roots;
        let mut spans = |tree, root| match is_known {
            true => Spans::read(&source, tree, root, database, damages),
            // The damage is that of the superblock.
            false => Spans::unknown(tree, PageRef::NOWHERE, 0),
        };
        let (keys, system) = (spans(TreeId::Keys, keys), spans(TreeId::System, system));
        let table = spans(TreeId::Segments, segments);
        let pending = Spans::read(&source, TreeId::Pending, pending.filter(|_| is_known), database, damages);
        let keys = KeySpans::new(&source, keys, pending, damages)?;
        let positions = (superblock.revision, superblock.compact_revision, superblock.swept_revision);
        let mut records = SavedRecords::open(&mut source, database, table, positions)?;
        let mut compact_revision = records.examine(&source, damages, progress)?;
        let mut revision = superblock.revision;
        if !is_known {
            revision = records.highest(&source)?;
            compact_revision = revision;
        }
        let (repaired, above) = match_cells(&source, &keys, &records, damages)?;
        compact_revision = compact_revision.max(above);
        if keys.has_holes() {
            // Any lost version may have been the newest of a key whose cell is lost too.
            let unknown = damages.iter().filter_map(lowest_above_unknown).max();
            compact_revision = compact_revision.max(unknown.unwrap_or(-1));
        }
        compact_revision = compact_revision.min(revision);
        records.compact(&source, compact_revision)?;
        Ok(Self { source, keys, system, records, repaired, revision, compact_revision })
    }

    /// Writes it into the new directory, and gives the old one back.
    fn rebuild(
        self,
        new: &mut Superblock,
        target: &mut Target<'_>,
        options: &SalvageOptions,
        report: &mut SalvageReport,
        progress: &mut OnProgress<'_>,
    ) -> Result<Source<'a>> {
        let Self { source, keys, system, records, mut repaired, revision, compact_revision } = self;
        let shelf = Shelf::new(target.files.clone(), new.database, options.shelf.clone());
        let mut rebuild = Rebuild::new(shelf, target.io, new.sequence() + 1)?;
        let mut written = 0;
        records.each_alive(&source, &keys, &mut |record| {
            // A record that another segment holds too needs no repair.
            repaired.remove(&record.revision);
            while let Some(earlier) = repaired.first_entry().filter(|entry| *entry.key() < record.revision) {
                rebuild.record(earlier.remove())?;
                written += 1;
            }
            written += 1;
            progress(VerifyProgress { part: "writing records", bytes_done: written, bytes_total: 0 });
            rebuild.record(record)
        })?;
        for record in repaired.into_values() {
            rebuild.record(record)?;
            written += 1;
        }
        report.records = written;

        let mut cells = KeyCellsOf::new(&source, &keys, &records, compact_revision, options.memory_bytes);
        rebuild.tree(TreeId::Keys, &mut || cells.next(&mut report.damages))?;
        report.keys = cells.count;
        cells.prove(&mut report.damages);
        let leases = cells.leases;

        let mut system_cells = SystemCells::new(&source, &system, leases);
        rebuild.tree(TreeId::System, &mut || system_cells.next())?;
        report.system_records = system_cells.records;

        let rebuilt = rebuild.finish()?;
        new.roots = rebuilt.roots;
        new.next_segment = rebuilt.next_segment;
        (new.revision, new.compact_revision) = (revision, compact_revision);
        // What it makes dead was not written.
        new.swept_revision = compact_revision;
        report.revision = revision;
        Ok(source)
    }
}

/// Holds each cell against what is lost: what it can repair, and the lowest compact revision above the versions it cannot.
fn match_cells(
    source: &Source<'_>,
    keys: &KeySpans,
    records: &SavedRecords,
    damages: &mut [Damage],
) -> Result<(BTreeMap<Revision, OwnedRecord>, i64)> {
    let (mut repaired, mut above) = (BTreeMap::new(), -1);
    let whole = keys.spans().iter().enumerate().filter(|(_, span)| span.hole.is_none());
    for (number, _) in whole {
        for (key, payload) in keys.cells(source, number)? {
            let version = DiskVersion::decode(&payload)?;
            let Some(damage) = records.stretch_of(version.revision) else { continue };
            let record = whole_record(&key, &version);
            let fate = if record.is_some() { Fate::Repaired } else { Fate::ValueLost };
            note(damages, damage, version.revision, Some(key.clone()), fate);
            match record {
                Some(record) => drop(repaired.insert(version.revision, record)),
                // Its event is missing too.
                None => above = above.max(version.revision.main + 1),
            }
            if let Some(prev) = version.prev
                && version.revision.main > records.compact_revision()
                && let Some(damage) = records.stretch_of(prev)
            {
                note(damages, damage, prev, Some(key), Fate::HistoryLost);
                above = above.max(version.revision.main);
            }
        }
    }
    Ok((repaired, above))
}

/// The lowest main revision above the versions that are lost here and of which nothing is known.
fn lowest_above_unknown(damage: &Damage) -> Option<i64> {
    let (_, before) = damage.between?;
    match damage.records.is_empty() {
        true => Some(before.main),
        false => {
            let unknown = damage.records.iter().filter(|(_, record)| record.fate == Fate::Unknown);
            unknown.map(|(revision, _)| revision.main + 1).max()
        }
    }
}

/// The record that a cell describes, if it holds all of it.
fn whole_record(key: &Bytes, version: &DiskVersion) -> Option<OwnedRecord> {
    // The size of the version before is only for statistics, and was in the record alone.
    let prev_bytes = key.len() as u64 + RECORD_BYTES_EXTRA;
    let record = OwnedRecord {
        revision: version.revision,
        version: version.version,
        create_revision: version.create_revision,
        lease: version.lease,
        prev: version.prev.map(|revision| Prev { revision, record_bytes: prev_bytes }),
        jumps: Vec::new(),
        key: key.clone(),
        value: version.value.clone()?,
    };
    (record.hash() == version.record_hash).then_some(record)
}

/// The cells of the new key tree in order: those of the leaves, and in the holes what the records say.
struct KeyCellsOf<'a, 'b> {
    source: &'a Source<'b>,
    keys: &'a KeySpans,
    records: &'a SavedRecords,
    compact_revision: i64,
    memory_bytes: usize,
    /// Number of the next span.
    next_span: usize,
    ready: VecDeque<(Bytes, Bytes)>,
    /// Newest versions of the keys in holes, up to `more`, from which on they are still to be gathered.
    gathered: BTreeMap<Bytes, OwnedRecord>,
    more: Option<Bytes>,
    /// What the cells put into each hole add up to, by number of the damage.
    sums: BTreeMap<usize, Aggregate>,
    /// Leases and their keys.
    leases: BTreeSet<Bytes>,
    count: u64,
}

impl<'a, 'b> KeyCellsOf<'a, 'b> {
    fn new(
        source: &'a Source<'b>,
        keys: &'a KeySpans,
        records: &'a SavedRecords,
        compact_revision: i64,
        memory_bytes: usize,
    ) -> Self {
        Self {
            source,
            keys,
            records,
            compact_revision,
            memory_bytes,
            next_span: 0,
            ready: VecDeque::new(),
            gathered: BTreeMap::new(),
            more: keys.has_holes().then(Bytes::new),
            sums: BTreeMap::new(),
            leases: BTreeSet::new(),
            count: 0,
        }
    }

    fn next(&mut self, damages: &mut [Damage]) -> Result<Option<(Bytes, Bytes)>> {
        loop {
            if let Some((key, payload)) = self.ready.pop_front() {
                self.count += 1;
                self.note_lease(&key, &payload)?;
                return Ok(Some((key, payload)));
            }
            let Some(span) = self.keys.spans().get(self.next_span) else { return Ok(None) };
            match span.hole {
                None => {
                    for (key, payload) in self.keys.cells(self.source, self.next_span)? {
                        if tombstone_main(&payload).is_none_or(|main| main >= self.compact_revision) {
                            self.ready.push_back((key, payload));
                        }
                    }
                    self.next_span += 1;
                }
                Some(damage) => self.fill_hole(damage, damages)?,
            }
        }
    }

    /// Takes what was gathered for the hole; gathers more where that does not reach its end.
    fn fill_hole(&mut self, damage: usize, damages: &mut [Damage]) -> Result<()> {
        let end = self.keys.spans().get(self.next_span + 1).map(|next| next.from.clone());
        let later = end.as_ref().map(|end| self.gathered.split_off(end)).unwrap_or_default();
        let sum = self.sums.entry(damage).or_default();
        for (key, record) in std::mem::replace(&mut self.gathered, later) {
            if let Some(newer) = self.records.replaced_by(record.revision) {
                // The version that replaced it is lost, and this one must not pass for the newest.
                if let Some(damage) = self.records.stretch_of(newer) {
                    note(damages, damage, newer, Some(key), Fate::KeyLost);
                }
                continue;
            }
            if record.version == 0 && record.revision.main < self.compact_revision {
                continue;
            }
            let mut payload = Vec::new();
            encode_cell_of(&record, &mut payload);
            sum.add(&KeyCells.aggregate(&payload));
            self.ready.push_back((key, payload.into()));
        }
        // Keys from `more` on are missing from what was gathered.
        let reaches = |more: &Bytes| end.as_ref().is_some_and(|end| more >= end);
        match self.more.take() {
            Some(more) if !reaches(&more) => {
                (self.gathered, self.more) =
                    self.records.newest_in_holes(self.source, self.keys, &more, self.memory_bytes)?;
            }
            more => {
                self.more = more;
                self.next_span += 1;
            }
        }
        Ok(())
    }

    fn note_lease(&mut self, key: &Bytes, payload: &Bytes) -> Result<()> {
        let version = DiskVersion::decode(payload)?;
        if version.lease != 0 {
            self.leases.insert(lease_key(version.lease, key));
        }
        Ok(())
    }

    /// Holds what was put into each hole against what is left for it.
    fn prove(&self, damages: &mut [Damage]) {
        for (&damage, found) in &self.sums {
            let expected = self.keys.expected(damage);
            if let Some(range) = damages.get_mut(damage).and_then(|damage| damage.range.as_mut()) {
                range.keys_found = found.live_keys;
                range.is_proven = expected.is_some_and(|expected| {
                    (found.live_keys, found.hash_sum) == (expected.live_keys, expected.hash_sum)
                });
            }
        }
    }
}

/// The cells of the new system tree: keys of leases as the key tree says, then the records that can be read.
struct SystemCells<'a, 'b> {
    source: &'a Source<'b>,
    system: &'a Spans,
    leases: std::collections::btree_set::IntoIter<Bytes>,
    next_span: usize,
    ready: VecDeque<(Bytes, Bytes)>,
    records: u64,
}

impl<'a, 'b> SystemCells<'a, 'b> {
    fn new(source: &'a Source<'b>, system: &'a Spans, leases: BTreeSet<Bytes>) -> Self {
        Self { source, system, leases: leases.into_iter(), next_span: 0, ready: VecDeque::new(), records: 0 }
    }

    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        if let Some(lease) = self.leases.next() {
            return Ok(Some((lease, Bytes::new())));
        }
        loop {
            if let Some(cell) = self.ready.pop_front() {
                self.records += 1;
                return Ok(Some(cell));
            }
            let Some(span) = self.system.spans.get(self.next_span) else { return Ok(None) };
            self.next_span += 1;
            if span.hole.is_none() {
                let leaf = self.system.leaf(self.source, span)?;
                let cells =
                    (0..leaf.count()).map(|index| (Bytes::from(leaf.key(index)), leaf.payload_bytes(index)));
                // Of another state than the one that comes of this: it is counted from there on.
                let is_kept = |key: &Bytes| key.first() != Some(&LEASE_PREFIX) && key != CHANGE_SUM_KEY;
                self.ready.extend(cells.filter(|(key, _)| is_kept(key)));
            }
        }
    }
}
