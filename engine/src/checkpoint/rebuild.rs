//! A checkpoint from nothing: records in revision order, then cells in key order, become one whole state in an empty directory.
//!
//! **Contract.** [`Rebuild::record`] for each record, revisions ascending; then [`Rebuild::tree`] for the key tree and the
//! system tree, keys ascending; then [`Rebuild::finish`], after which everything is durable but the superblock, which is
//! the caller's to write: until then nothing refers to any of it. After an error the directory is to be thrown away.
//!
//! **Memory**: a page for each level of a tree, and the records that wait for a dictionary: a few MiB.
//!
//! **Does not know** where records and cells come from, and whether they agree.
use super::SegmentIds;
use super::sink::Sink;
use crate::base::ids::{Revision, SegmentId};
use crate::disk_state::{
    PagesInfo, RevisionsInfo, Roots, Shelf, TreeId, encode_pages, encode_revisions, segment_key,
};
use crate::error::{Error, Result};
use crate::io::disk::run;
use crate::io::{Io, Operation};
use crate::revision_log::{OwnedRecord, RevisionWriter, train_dictionary};
use crate::segment::{self, SegmentKind, SegmentWriter};
use crate::tree::{CellKind, Edit, Edits, MergeOptions, MergeOutcome, Outcome, PageRef, merge};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Records that are looked at for the dictionary of their segment.
const SAMPLE_RECORDS: usize = 4096;
/// Bytes of such records.
const SAMPLE_BYTES: usize = 8 << 20;
/// Below this a dictionary costs more than it saves; as in a checkpoint.
const DICTIONARY_RECORDS_MIN: usize = 512;

/// Number of a directory's first segment.
const FIRST_SEGMENT: u32 = 1;

/// The next cell of a tree: key and payload; none at the end.
pub(crate) type NextCell<'a> = dyn FnMut() -> Result<Option<(Bytes, Bytes)>> + 'a;

/// See the module.
pub(crate) struct Rebuild<'a> {
    shelf: Arc<Shelf>,
    io: &'a mut dyn Io,
    ids: SegmentIds,
    sequence: u64,
    sink: Sink,
    writer: Option<RevisionWriter>,
    /// Records of a segment that was not begun.
    waiting: Vec<OwnedRecord>,
    waiting_bytes: usize,
    revisions: Vec<RevisionsInfo>,
    last: Option<Revision>,
    roots: Roots,
}

/// What was built.
pub(crate) struct Rebuilt {
    pub(crate) roots: Roots,
    /// Number of the next segment.
    pub(crate) next_segment: u32,
}

impl<'a> Rebuild<'a> {
    /// Into the directory of `io`, which has no segments. `sequence` is that of the superblock to come.
    pub(crate) fn new(shelf: Arc<Shelf>, io: &'a mut dyn Io, sequence: u64) -> Result<Self> {
        run(io, Operation::CreateDirectory { path: PathBuf::from(segment::DIRECTORY) })?;
        let sink = Sink::new(shelf.clone(), sequence);
        let ids = SegmentIds::from(FIRST_SEGMENT);
        Ok(Self {
            shelf,
            io,
            ids,
            sequence,
            sink,
            writer: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            revisions: Vec::new(),
            last: None,
            roots: Roots::default(),
        })
    }

    /// Adds a record.
    ///
    /// # Panics
    /// V1: if its revision is not above the last one.
    pub(crate) fn record(&mut self, record: OwnedRecord) -> Result<()> {
        assert!(Some(record.revision) > self.last, "V1: {} follows {:?}", record.revision, self.last);
        self.last = Some(record.revision);
        if self.writer.as_ref().is_some_and(|writer| writer.position() >= self.shelf.options.segment_bytes) {
            self.finish_segment()?;
        }
        if let Some(writer) = &mut self.writer {
            return writer.push(self.io, &record.as_record());
        }
        self.waiting_bytes += record.key.len() + record.value.len();
        self.waiting.push(record);
        if self.waiting.len() < SAMPLE_RECORDS && self.waiting_bytes < SAMPLE_BYTES {
            return Ok(());
        }
        self.begin_segment()
    }

    fn begin_segment(&mut self) -> Result<()> {
        let id = self.ids.draw()?;
        let (kind, database) = (SegmentKind::Revisions, self.shelf.database);
        let file = SegmentWriter::create(self.io, id, kind, database, self.sequence)?;
        let dictionary = match self.waiting.len() {
            DICTIONARY_RECORDS_MIN.. => {
                train_dictionary(&self.waiting.iter().map(|record| &record.value[..]).collect::<Vec<_>>())
            }
            _ => None,
        };
        let mut writer = RevisionWriter::new(file, database, dictionary);
        self.waiting_bytes = 0;
        for record in std::mem::take(&mut self.waiting) {
            writer.push(self.io, &record.as_record())?;
        }
        self.writer = Some(writer);
        Ok(())
    }

    fn finish_segment(&mut self) -> Result<()> {
        if self.writer.is_none() && !self.waiting.is_empty() {
            self.begin_segment()?;
        }
        if let Some(writer) = self.writer.take() {
            let summary = writer.finish(self.io)?;
            self.revisions.push(RevisionsInfo {
                summary,
                dead_records: 0,
                dead_record_bytes: 0,
                dead_stored_bytes: 0,
            });
        }
        Ok(())
    }

    /// Makes the key tree or the system tree.
    pub(crate) fn tree(&mut self, tree: TreeId, next: &mut NextCell<'_>) -> Result<Option<PageRef>> {
        let root = self.merge(tree, tree.cells(), next)?.root;
        match tree {
            TreeId::Keys => self.roots.keys = root,
            TreeId::System => self.roots.system = root,
            TreeId::Segments => self.roots.segments = root,
            // Whoever builds anew writes each leaf as it is to be.
            TreeId::Pending => self.roots.pending = root,
        }
        Ok(root)
    }

    fn merge(&mut self, tree: TreeId, cells: &dyn CellKind, next: &mut NextCell<'_>) -> Result<MergeOutcome> {
        let options = MergeOptions {
            page_bytes: self.shelf.options.page_bytes,
            tree: tree as u8,
            database: self.shelf.database,
            checkpoint: self.sequence,
            packs: false,
        };
        let mut edits = NewCells { next, payload: Bytes::new() };
        let pages = self.shelf.pages(tree);
        let mut sink = self.sink.over(self.io, &mut self.ids, tree);
        merge(None, &pages, cells, &options, &mut edits, &mut sink)
    }

    /// Makes the segment table, and everything durable.
    pub(crate) fn finish(mut self) -> Result<Rebuilt> {
        self.finish_segment()?;
        let mut table: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for info in &self.revisions {
            table.insert(segment_key(info.summary.id), encode_revisions(info));
        }
        for (id, written_bytes) in self.sink.written_bytes() {
            let info = PagesInfo { written_bytes, live_bytes: written_bytes, table_bytes: 0 };
            table.insert(segment_key(id), encode_pages(&info));
        }
        let mut cells = table.into_iter().map(|(key, payload)| (Bytes::from(key), Bytes::from(payload)));
        self.tree(TreeId::Segments, &mut || Ok(cells.next()))?;
        self.sink.finish(self.io)?;
        run(self.io, Operation::SyncDirectory { path: PathBuf::from(segment::DIRECTORY) })?;
        run(self.io, Operation::SyncDirectory { path: PathBuf::new() })?;
        let SegmentId(next_segment) = self.ids.draw()?;
        Ok(Rebuilt { roots: self.roots, next_segment })
    }
}

/// Every cell is new.
struct NewCells<'a, 'b> {
    next: &'a mut NextCell<'b>,
    payload: Bytes,
}

impl Edits for NewCells<'_, '_> {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        Ok((self.next)()?.map(|(key, payload)| {
            self.payload = payload;
            (key, Edit::Cell)
        }))
    }

    fn resolve(&mut self, _key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        if old.is_some() {
            return Err(Error::Refused("a tree that is built anew has a key already".into()));
        }
        new.extend_from_slice(&self.payload);
        Ok(Outcome::Put)
    }

    fn keep(&mut self, _key: &[u8], _payload: &[u8]) -> bool {
        true
    }
}
