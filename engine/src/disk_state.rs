//! The state on disk: what a checkpoint made durable, and how it is read.
//!
//! **Contract.** A [`DiskState`] is one checkpoint: key tree, revision log, system tree, segment table. It never changes and
//! is shared by whoever reads; a newer checkpoint is another `DiskState`. Files that only an old one refers to lose their
//! name when the newer one is durable, and their bytes when the last reader of the old one is done.
//!
//! ```text
//! key tree (k segments)                      revision log (r segments, by revision)
//!   key -> cell: newest version  ──revision──▶  record: key, value, metadata, revision that it replaced
//! pending tree (k segments)
//!   key -> newer cell, or none any more
//! system tree (k segments)                      segment table (k segments)
//!   the caller's records, keys of leases          segment -> summary, liveness, which records are dead
//! ```
//!
//! A read of the head takes the cell, the pending one if there is one, and, unless the value is in the cell, one record. A read of an older revision goes
//! from record to record by the revision that each replaced.
//!
//! **Invariants.** D3: what a cell names is in the revision log, unless the cell holds its value. D4: a record that a
//! read at or above the compact revision can meet is not dead.
//!
//! **Failure.** Everything is verified when it is read: pages by the checksum in their parent, records by their own and by
//! the hash in the cell. What does not verify is [`Error::Corruption`], for this read alone, and noted (`quarantine.rs`); a leaf of
//! the key tree is made again from the records where that can be proven (`repair`).
//!
//! **Does not know** memtables, transactions, or when a checkpoint is made.
mod cell;
mod changes;
mod cursor;
mod kept_names;
mod leaves_ahead;
mod pending;
mod read_ahead;
mod repair;
mod scrub;
mod segment_table;
mod shelf;
mod stations;
mod values;
mod verify;

#[cfg(feature = "sim")]
pub use pending::reencode_pending_change;
pub use verify::{VerifyCounts, VerifyProgress};

pub(crate) use cell::{DiskVersion, INLINE_BYTES_MAX, KeyCells, encode_cell, encode_cell_of, tombstone_main};
pub(crate) use cursor::DiskCursor;
pub(crate) use kept_names::{NamesKept, SegmentFile};
pub(crate) use leaves_ahead::LeavesAhead;
pub(crate) use pending::{PendingChange, Replaced, check_newer};
use read_ahead::Wanted;
pub(crate) use repair::KeyPages;
pub(crate) use scrub::{OnBytes, ScrubPosition};
use segment_table::decode_segments;
pub(crate) use segment_table::{
    DEAD_CHUNK_RECORDS, PagesInfo, RevisionsInfo, dead_chunk, dead_chunk_key, decode_descriptor,
    encode_pages, encode_revisions, segment_key,
};
pub use shelf::ShelfOptions;
pub(crate) use shelf::{Shelf, TreePages};
pub(crate) use stations::{Stations, is_station};
use values::{PIECE_RECORDS, Piece, PieceRead, ValueBatch};

use crate::base::ids::{Revision, SegmentId};
use crate::error::{Error, Result};
use crate::io::files::ReadFile;
use crate::quarantine::Quarantine;
use crate::revision_log::{Entry, OwnedRecord, RevisionSegment, SegmentSummary};
pub(crate) use crate::superblock::Roots;
use crate::tree::{Aggregate, CellKind, Page, PageRef, RangePiece, Tree};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Trees by what they hold; the number is in every page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TreeId {
    /// Key -> cell.
    Keys = 1,
    /// System records.
    System = 2,
    /// Segments.
    Segments = 3,
    /// Key -> change of its cell that is not in the key tree yet.
    Pending = 4,
}

impl TreeId {
    /// All trees.
    pub(crate) const ALL: [Self; 4] = [Self::Keys, Self::Pending, Self::System, Self::Segments];

    /// As people are told of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::System => "system",
            Self::Segments => "segments",
            Self::Pending => "pending",
        }
    }

    /// Its root.
    pub(crate) fn root(self, roots: &Roots) -> Option<PageRef> {
        match self {
            Self::Keys => roots.keys,
            Self::System => roots.system,
            Self::Segments => roots.segments,
            Self::Pending => roots.pending,
        }
    }
}

/// Called with a key and its value.
pub(crate) type VisitPair<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// Positions of a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Positions {
    /// Index and term of the last entry that is in it.
    pub(crate) applied: (u64, u64),
    /// Main revision; 0 before the first checkpoint.
    pub(crate) revision: i64,
    /// Compact revision as of the applied index, -1 at first.
    pub(crate) compact_revision: i64,
    /// Up to here changes were looked at for what the compaction made dead; at most the compact revision.
    pub(crate) swept_revision: i64,
}

/// One r segment of a state.
#[derive(Clone)]
pub(crate) struct RevisionsFile {
    pub(crate) segment: Arc<RevisionSegment>,
    pub(crate) info: RevisionsInfo,
}

/// See the module.
pub struct DiskState {
    /// Where the files are; none while there is no checkpoint.
    shelf: Option<Arc<Shelf>>,
    pub(crate) roots: Roots,
    pub(crate) positions: Positions,
    /// In ascending order of revisions, which do not overlap.
    pub(crate) revisions: Vec<RevisionsFile>,
    /// k segments, with what is live in them.
    pub(crate) pages: BTreeMap<SegmentId, PagesInfo>,
    /// Keeps the files of `pages` open.
    _pages_files: Vec<Arc<dyn ReadFile>>,
    /// See [`Self::retained_bytes`].
    retained_bytes: u64,
}

impl DiskState {
    /// Before the first checkpoint.
    pub(crate) fn empty() -> Self {
        Self {
            shelf: None,
            roots: Roots::default(),
            positions: Positions { applied: (0, 0), revision: 0, compact_revision: -1, swept_revision: -1 },
            revisions: Vec::new(),
            pages: BTreeMap::new(),
            _pages_files: Vec::new(),
            retained_bytes: 0,
        }
    }

    /// Fails if a file cannot be opened.
    pub(crate) fn new(
        shelf: Arc<Shelf>,
        roots: Roots,
        positions: Positions,
        revisions: Vec<RevisionsFile>,
        pages: BTreeMap<SegmentId, PagesInfo>,
    ) -> Result<Self> {
        debug_assert!(
            revisions.is_sorted_by(|older, newer| older.info.summary.last < newer.info.summary.first),
            "the revision log is in order"
        );
        let live = |file: &RevisionsFile| file.info.summary.record_bytes - file.info.dead_record_bytes;
        // The trailers' sums are only as good as who wrote them.
        let retained_bytes = revisions.iter().map(live).fold(0, u64::saturating_add);
        let _pages_files = pages.keys().map(|&id| shelf.pages_file(id)).collect::<Result<_>>()?;
        Ok(Self { shelf: Some(shelf), roots, positions, revisions, pages, _pages_files, retained_bytes })
    }

    /// Reads the segment table and opens the segments of a checkpoint.
    pub(crate) fn open(shelf: Arc<Shelf>, roots: Roots, positions: Positions) -> Result<Self> {
        let (revisions_infos, mut pages) = decode_segments(&shelf, roots.segments)?;
        // Pages of the table itself are counted by a walk over its inner pages.
        for (segment, bytes) in table_bytes(&shelf, roots.segments)? {
            pages.entry(segment).or_default().table_bytes = bytes;
        }
        let mut revisions = Vec::with_capacity(revisions_infos.len());
        for info in revisions_infos {
            let segment = shelf.open_revisions(&info.summary)?;
            revisions.push(RevisionsFile { segment, info });
        }
        Self::new(shelf, roots, positions, revisions, pages)
    }

    /// Identity of the database; zeros before the first checkpoint.
    pub(crate) fn database(&self) -> [u8; 16] {
        self.shelf.as_ref().map_or([0; 16], |shelf| shelf.database)
    }

    /// True before the first checkpoint.
    pub(crate) fn is_empty(&self) -> bool {
        self.shelf.is_none()
    }

    /// Main revision of the checkpoint, 0 if there is none.
    #[inline]
    pub(crate) fn revision(&self) -> i64 {
        self.positions.revision
    }

    /// Compact revision as of the checkpoint.
    pub(crate) fn compact_revision(&self) -> i64 {
        self.positions.compact_revision
    }

    /// Up to which revision what the compaction made dead is marked; at most the compact revision.
    pub(crate) fn swept_revision(&self) -> i64 {
        self.positions.swept_revision
    }

    /// True if a part of a compaction is left to the next checkpoint.
    pub(crate) fn is_sweep_left(&self) -> bool {
        self.positions.swept_revision < self.positions.compact_revision
    }

    /// Bytes in the files of records and pages that nobody needs any more.
    pub(crate) fn dead_bytes(&self) -> u64 {
        let records: u64 = self.revisions.iter().map(|file| file.info.dead_stored_bytes).sum();
        let dead = |info: &PagesInfo| info.written_bytes.saturating_sub(info.live_bytes);
        records + self.pages.values().map(dead).sum::<u64>()
    }

    /// Bytes of everything that is not dead, nearly.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.retained_bytes.saturating_add(self.pages_bytes())
    }

    /// Bytes of all pages, nearly.
    pub(crate) fn pages_bytes(&self) -> u64 {
        self.pages.values().map(|info| info.live_bytes + info.table_bytes).sum()
    }

    /// Index and term of the last entry in the checkpoint.
    pub(crate) fn applied(&self) -> (u64, u64) {
        self.positions.applied
    }

    /// Keys that exist.
    pub(crate) fn keys_count(&self) -> u64 {
        let live_keys = |root: Option<PageRef>| root.map_or(0, |root| root.aggregate.live_keys);
        live_keys(self.roots.keys).wrapping_add(live_keys(self.roots.pending))
    }

    /// Bytes of records that are not dead: keys, values and 64 bytes each.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained_bytes
    }

    /// The key tree or the pending tree; none before the first checkpoint.
    pub(crate) fn tree(&self, tree: TreeId) -> Option<Tree<KeyPages<'_>>> {
        Some(Tree::new(tree.root(&self.roots), self.pages_of(tree)?))
    }

    /// Pages of the key tree or the pending tree; none before the first checkpoint.
    pub(crate) fn pages_of(&self, tree: TreeId) -> Option<KeyPages<'_>> {
        Some(KeyPages::new(self, self.shelf.as_deref()?, tree))
    }

    /// What is damaged, as far as it is known.
    pub(crate) fn quarantine(&self) -> Option<&Quarantine> {
        self.shelf.as_deref().map(|shelf| &*shelf.quarantine)
    }

    /// The newest version of a key, a tombstone too.
    pub(crate) fn newest(&self, key: &[u8]) -> Result<Option<DiskVersion>> {
        let decode = |cell| DiskVersion::decode_up_to(self.positions.revision, &cell);
        if self.roots.pending.is_some()
            && let Some(tree) = self.tree(TreeId::Pending)
            && let Some(hit) = tree.get(key)?
        {
            let payload = hit.payload_bytes();
            let cell = PendingChange::decode(&payload)?.cell;
            return cell.map(|cell| decode(payload.slice_ref(cell))).transpose();
        }
        self.leaf_cell(key)?.map(decode).transpose()
    }

    /// What the leaf of a key has, whatever is pending.
    pub(crate) fn leaf_cell(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let Some(tree) = self.tree(TreeId::Keys) else { return Ok(None) };
        Ok(tree.get(key)?.map(|hit| hit.payload_bytes()))
    }

    /// Says that [`Self::newest`] will be asked for this key: its leaf may be in memory by then. Reads nothing itself.
    pub(crate) fn read_ahead(self: &Arc<Self>, key: &[u8]) {
        self.hint(key, Wanted::Newest);
    }

    fn hint(self: &Arc<Self>, key: &[u8], wanted: Wanted) {
        let Some(shelf) = self.shelf.as_deref() else { return };
        let Some(ahead) = shelf.read_ahead.get() else { return };
        self.go_to(key, wanted, |_, reference| {
            let page = shelf.page_in_memory(reference);
            if page.is_none() {
                ahead.submit(self, key, wanted, *reference);
            }
            page
        });
    }

    /// Follows a hint: brings the pages on the way into memory, as far as they can be read.
    fn load_ahead(&self, key: &[u8], wanted: Wanted) {
        if let Some(shelf) = self.shelf.as_deref() {
            self.go_to(key, wanted, |tree, reference| shelf.load_page_ahead(tree, reference));
        }
    }

    /// Goes the way to a key, through what is pending and then the key tree, until a page on it is not to be had.
    fn go_to(
        &self,
        key: &[u8],
        wanted: Wanted,
        mut page_of: impl FnMut(TreeId, &PageRef) -> Option<Arc<Page>>,
    ) {
        for tree in [TreeId::Pending, TreeId::Keys] {
            let Some(mut reference) = tree.root(&self.roots) else { continue };
            loop {
                let Some(page) = page_of(tree, &reference) else { return };
                if page.level() == 0 {
                    if wanted == Wanted::Newest && page.search(key).is_ok() {
                        return;
                    }
                    break;
                }
                reference = page.child(page.child_index(key));
            }
        }
    }

    /// How many bytes of leaves a range may ask for before it comes to them; none if nothing is read ahead.
    fn ahead_bytes(&self) -> Option<u64> {
        let shelf = self.shelf.as_deref()?;
        shelf.read_ahead.get()?;
        Some(shelf.options.range_ahead_bytes).filter(|&bytes| bytes > 0)
    }

    /// [`Self::read_ahead`] for a range: `key` is one that the leaf covers.
    fn read_leaf_ahead(self: &Arc<Self>, key: &[u8]) {
        if let Some(shelf) = &self.shelf {
            shelf.leaves_read_ahead.fetch_add(1, Ordering::Relaxed);
        }
        self.hint(key, Wanted::Leaf);
    }

    /// The newest version of a key with a main revision of at most `main`, a tombstone too.
    pub(crate) fn at_or_below(&self, key: &[u8], main: i64) -> Result<Option<DiskVersion>> {
        match self.newest(key)? {
            Some(newest) => self.older(key, newest, main),
            None => Ok(None),
        }
    }

    /// From a key's version on down to the newest that is not above `main`, over stations (`stations.rs`) where there are some.
    ///
    /// A step ends at a version of this key, and one over a station above `main`: so whatever stations are named, what is found is
    /// what is found from version to version.
    pub(crate) fn older(&self, key: &[u8], newest: DiskVersion, main: i64) -> Result<Option<DiskVersion>> {
        let mut version = newest;
        while version.revision.main > main {
            if let Some(station) = version.stations.oldest_above(main)
                && let Some(record) = self.older_record(station)?
                && record.key == key
            {
                version = record.into();
                continue;
            }
            let Some(prev) = version.prev else { return Ok(None) };
            // What is not there was removed by a compaction below which nobody reads.
            let Some(record) = self.older_record(prev)? else { return Ok(None) };
            if record.key != key {
                let (expected, found) = (key.escape_ascii(), record.key.escape_ascii());
                return Err(Error::Corruption {
                    file: self.file_of(prev),
                    offset: 0,
                    what: format!(
                        "a version of {expected} expected at revision {prev}, one of {found} found"
                    ),
                });
            }
            version = record.into();
        }
        Ok(Some(version))
    }

    /// A record on the way to an older version of its key.
    fn older_record(&self, revision: Revision) -> Result<Option<OwnedRecord>> {
        if let Some(shelf) = &self.shelf {
            shelf.versions_read.fetch_add(1, Ordering::Relaxed);
        }
        self.record(revision)
    }

    /// A cursor over all keys, tombstones included; none before the first checkpoint.
    pub(crate) fn cursor(&self) -> Option<DiskCursor<'_>> {
        DiskCursor::new(self)
    }

    /// What the keys in [`from`, `end`) that exist add up to, from the inner pages of two trees.
    pub(crate) fn sum(&self, from: &[u8], end: Option<&[u8]>) -> Result<Aggregate> {
        let mut sum = Aggregate::default();
        for tree in [TreeId::Keys, TreeId::Pending] {
            let Some(pages) = self.tree(tree).filter(|pages| pages.root().is_some()) else { continue };
            sum.add(&pages.aggregate(tree.cells(), from, end)?);
        }
        Ok(sum)
    }

    /// Pieces of a range, by the key tree alone: what is pending over a leaf is little beside it.
    pub(crate) fn pieces(
        &self,
        range: (&[u8], Option<&[u8]>),
        keys_max: u64,
        pages_max: usize,
    ) -> Result<Vec<RangePiece>> {
        match self.tree(TreeId::Keys) {
            Some(tree) => tree.pieces(TreeId::Keys.cells(), range, keys_max, pages_max),
            None => Ok(Vec::new()),
        }
    }

    /// Number of the segment that has `revision`, and what its index says of it; none if it was removed.
    pub(crate) fn find(&self, revision: Revision) -> Result<Option<(usize, Entry)>> {
        let Some((number, segment)) = self.segment_of(revision) else { return Ok(None) };
        Ok(segment.find(revision)?.map(|entry| (number, entry)))
    }

    /// The segment that has `revision` if any has, and its number.
    pub(crate) fn segment_of(&self, revision: Revision) -> Option<(usize, &Arc<RevisionSegment>)> {
        let number = self.revisions.partition_point(|file| file.info.summary.last < revision);
        self.revisions.get(number).map(|file| (number, &file.segment))
    }

    /// One record; none if it was removed.
    pub(crate) fn record(&self, revision: Revision) -> Result<Option<OwnedRecord>> {
        match self.find(revision)? {
            Some((number, entry)) => self.revisions[number].segment.read(&entry).map(Some),
            None => Ok(None),
        }
    }

    /// Segments that may hold records from main revision `main` on, oldest first.
    pub(crate) fn segments_from(&self, main: i64) -> impl Iterator<Item = &Arc<RevisionSegment>> {
        self.numbered_segments_from(main).map(|(_, segment)| segment)
    }

    /// The same with their numbers.
    pub(crate) fn numbered_segments_from(
        &self,
        main: i64,
    ) -> impl Iterator<Item = (usize, &Arc<RevisionSegment>)> {
        let first = self.revisions.partition_point(|file| file.info.summary.last.main < main);
        self.revisions[first..].iter().enumerate().map(move |(at, file)| (first + at, &file.segment))
    }

    /// Which records of segment `number` are dead, one bit each, lowest bit first.
    pub(crate) fn dead_bits(&self, number: usize) -> Result<Vec<u8>> {
        let mut bits = Vec::new();
        if let (Some(shelf), Some(file)) = (self.shelf.as_deref(), self.revisions.get(number)) {
            let summary = &file.info.summary;
            for chunk in 0..summary.records.div_ceil(DEAD_CHUNK_RECORDS) {
                bits.extend(dead_chunk(shelf, self.roots.segments, summary.id, chunk)?);
            }
        }
        Ok(bits)
    }

    /// The value of a version, verified against what its cell says.
    pub(crate) fn value(&self, version: &DiskVersion) -> Result<Bytes> {
        if let Some(value) = self.value_in_memory(version) {
            return Ok(value);
        }
        let record = match self.find(version.revision)? {
            Some((number, entry)) => Some(self.revisions[number].segment.read_from_file(&entry)?),
            None => None,
        };
        let value = version.check(record, || self.file_of(version.revision))?.value;
        self.keep_value(version, &value);
        Ok(value)
    }

    /// The value of a version, if no device need be asked for it.
    fn value_in_memory(&self, version: &DiskVersion) -> Option<Bytes> {
        version.value.clone().or_else(|| self.shelf.as_ref()?.value_in_memory(version.revision))
    }

    fn keep_value(&self, version: &DiskVersion, value: &Bytes) {
        if let Some(shelf) = &self.shelf {
            shelf.keep_value(version.revision, value);
        }
    }

    /// Values of many versions, in their order; neighbours on disk are read together, pieces by many threads at once.
    pub(crate) fn values(self: &Arc<Self>, versions: &[&DiskVersion]) -> Result<Vec<Bytes>> {
        if let [version] = versions {
            return Ok(vec![self.value(version)?]);
        }
        let mut values: Vec<_> = versions.iter().map(|version| version.value.clone()).collect();
        if let Some(shelf) = &self.shelf {
            let elsewhere = versions.iter().enumerate().filter(|(_, version)| version.value.is_none());
            shelf.fill_values(elsewhere.map(|(at, version)| (version.revision, at)), &mut values);
        }
        // By segment, in the order of the segment.
        let mut wanted: BTreeMap<usize, Vec<(Revision, usize)>> = BTreeMap::new();
        for (at, version) in versions.iter().enumerate().filter(|(at, _)| values[*at].is_none()) {
            let number = self.revisions.partition_point(|file| file.info.summary.last < version.revision);
            wanted.entry(number).or_default().push((version.revision, at));
        }
        wanted.values_mut().for_each(|wanted| wanted.sort_unstable());
        let mut take = |piece: &Piece, records: Vec<Option<OwnedRecord>>| -> Result<()> {
            for (record, &(revision, at)) in records.into_iter().zip(&piece.wanted) {
                let value = versions[at].check(record, || self.file_of(revision))?.value;
                self.keep_value(versions[at], &value);
                values[at] = Some(value);
            }
            Ok(())
        };
        let is_large = wanted.values().map(Vec::len).sum::<usize>() > PIECE_RECORDS;
        match self.shelf.as_deref().filter(|_| is_large && self.ahead_bytes().is_some()) {
            None => {
                for (segment, wanted) in wanted {
                    let piece = Piece { segment, wanted };
                    take(&piece, self.read_piece(&piece)?)?;
                }
            }
            Some(shelf) => {
                let pieces = wanted.iter().flat_map(|(&segment, wanted)| Piece::cut(segment, wanted));
                let pieces: Vec<Piece> = pieces.collect();
                let count = pieces.len();
                let batch = ValueBatch::new(self.clone(), pieces);
                if count > 1
                    && let Some(ahead) = shelf.read_ahead.get()
                {
                    shelf.pieces_read_at_once.fetch_add(count as u64, Ordering::Relaxed);
                    ahead.help(&batch, count - 1);
                }
                for (piece, records) in batch.finish() {
                    take(piece, records?)?;
                }
            }
        }
        Ok(values.into_iter().map(|value| value.expect("each was in memory or read")).collect())
    }

    /// Records of one segment; none in place of one that is not there.
    fn read_piece(&self, piece: &Piece) -> PieceRead {
        let Some(file) = self.revisions.get(piece.segment) else {
            return Ok(piece.wanted.iter().map(|_| None).collect());
        };
        let find = |&(revision, _): &(Revision, usize)| file.segment.find(revision);
        let entries: Vec<Option<Entry>> = piece.wanted.iter().map(find).collect::<Result<_>>()?;
        let there: Vec<Entry> = entries.iter().flatten().copied().collect();
        let mut records = file.segment.read_many(&there)?.into_iter();
        Ok(entries.iter().map(|entry| entry.and_then(|_| records.next())).collect())
    }

    /// Name of the segment that should hold a revision, for messages.
    fn file_of(&self, revision: Revision) -> String {
        let number = self.revisions.partition_point(|file| file.info.summary.last < revision);
        self.revisions
            .get(number)
            .map_or_else(|| "seg".to_string(), |file| shelf::revisions_name(file.info.summary.id))
    }

    /// Visits the system tree in key order.
    pub(crate) fn for_each_system(&self, visit: &mut VisitPair<'_>) -> Result<()> {
        let Some(shelf) = self.shelf.as_deref() else { return Ok(()) };
        let mut cursor = Tree::new(self.roots.system, shelf.pages(TreeId::System)).cursor();
        cursor.seek(&[])?;
        while cursor.is_valid() {
            visit(cursor.key(), cursor.payload())?;
            cursor.next()?;
        }
        Ok(())
    }
}

/// Bytes of the segment table's own pages, by segment. Reads its inner pages only.
fn table_bytes(shelf: &Shelf, root: Option<PageRef>) -> Result<BTreeMap<SegmentId, u64>> {
    let mut bytes = BTreeMap::new();
    Tree::new(root, shelf.pages(TreeId::Segments)).visit_references(&mut |_, reference| {
        *bytes.entry(reference.segment).or_default() += reference.bytes() as u64;
        Ok(reference.level > 0)
    })?;
    Ok(bytes)
}

/// The segments of the state whose segment table this is: of r segments what the table says, of k segments the numbers.
pub(crate) fn segments_of(
    shelf: &Shelf,
    table: Option<PageRef>,
) -> Result<(Vec<SegmentSummary>, BTreeSet<SegmentId>)> {
    let (revisions, pages) = decode_segments(shelf, table)?;
    let mut ids: BTreeSet<SegmentId> = pages.into_keys().collect();
    ids.extend(table_bytes(shelf, table)?.into_keys());
    Ok((revisions.into_iter().map(|info| info.summary).collect(), ids))
}

impl From<OwnedRecord> for DiskVersion {
    fn from(record: OwnedRecord) -> Self {
        Self {
            revision: record.revision,
            create_revision: record.create_revision,
            version: record.version,
            lease: record.lease,
            value_bytes: record.value.len() as u32,
            prev: record.prev.map(|prev| prev.revision),
            stations: Stations::of_jumps(&record.jumps),
            record_hash: 0,
            value: Some(record.value),
        }
    }
}

/// Cells of the system tree and of the segment table add nothing up.
pub(crate) struct PlainCells;

impl CellKind for PlainCells {
    fn aggregate(&self, _payload: &[u8]) -> Aggregate {
        Aggregate::default()
    }
}

/// The error of a cell or descriptor that verified and does not decode.
pub(crate) fn undecodable(what: &str) -> Error {
    Error::Corruption {
        file: crate::segment::DIRECTORY.to_string(),
        offset: 0,
        what: format!(
            "{what} passed its checksum and does not decode; it was written by a broken or a later build"
        ),
    }
}
