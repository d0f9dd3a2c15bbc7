//! What of a directory can be shown, as plain structs.
use super::Inspection;
use crate::base::ids::{Revision, SegmentId};
use crate::disk_state::{DiskVersion, PendingChange, TreeId, TreePages};
use crate::error::{Error, Result};
use crate::revision_log::{Entry, OwnedRecord};
use crate::segment::{self, SegmentKind};
use crate::superblock::{Mode, Stage};
use crate::tree::{Page, PageRef, Pages, Tree};
use crate::wal::{LogReport, Record, RecordKind};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are those of docs/data_file.md")]
pub struct SuperblockView {
    pub format_version: u32,
    pub sequence: u64,
    /// Sequence in each copy; none for one that does not verify.
    pub copies: Vec<Option<u64>>,
    pub is_ready: bool,
    pub is_embedded: bool,
    pub database: [u8; 16],
    pub cluster_id: u64,
    pub member_id: u64,
    pub wal_segment_bytes: u32,
    pub replay_lsn: u64,
    pub applied_index: u64,
    pub applied_term: u64,
    pub revision: i64,
    pub compact_revision: i64,
    /// Up to which revision what the compaction made dead is marked; the compact revision, unless a part is left.
    pub swept_revision: i64,
    pub next_segment: u32,
    /// Key tree, system tree, segment table, pending tree.
    pub roots: [Option<PageRef>; 4],
    pub quarantine_reason: Option<u32>,
    /// Measured way to make groups durable, and the device.
    pub sync: Option<(String, String)>,
}

/// One segment that the checkpoint refers to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentView {
    /// Its number.
    pub id: u32,
    /// Records or pages.
    pub kind: SegmentKind,
    /// File, relative to the directory.
    pub file: String,
    /// Sequence of the checkpoint that wrote it.
    pub checkpoint: u64,
    /// Length of the file; of a k segment what its pages fill, as far as the table knows.
    pub file_bytes: u64,
    /// Bytes that records or pages fill.
    pub written_bytes: u64,
    /// Of these, what is alive.
    pub live_bytes: u64,
    /// Records; 0 for a k segment.
    pub records: u64,
    /// Dead ones among them.
    pub dead_records: u64,
    /// First and last revision; none for a k segment.
    pub revisions: Option<(Revision, Revision)>,
    /// Main revisions between its last one and the checkpoint's: how old the youngest record is. 0 for a k segment.
    pub age_revisions: i64,
}

/// One tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeView {
    /// `keys`, `pending`, `system` or `segments`.
    pub name: &'static str,
    /// Levels; 0 for an empty tree.
    pub height: u32,
    /// Pages of each level, leaves first.
    pub level_pages: Vec<u64>,
    /// Bytes of all pages as stored.
    pub bytes: u64,
    /// Bytes of them that are in use.
    pub used_bytes: u64,
    /// Cells of the leaves.
    pub cells: u64,
    /// Keys that exist in the key tree; what is pending makes of that in the pending tree, modulo 2^64; else 0.
    pub live_keys: u64,
    /// Segments that hold pages of it.
    pub segments: Vec<u32>,
}

/// One index block of an r segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexBlockView {
    /// Revision of its first record.
    pub first: Revision,
    /// Number of that record.
    pub first_ordinal: u32,
    /// Offset of that record.
    pub first_record_offset: u64,
    /// Offset of the block.
    pub offset: u64,
    /// Length of the block.
    pub bytes: u32,
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecordView {
    /// Its position.
    pub lsn: u64,
    /// Number of the log segment in which it begins, and where in the file.
    pub segment: u64,
    /// See `segment`.
    pub offset: u64,
    /// What it is, as the format names it.
    pub kind: RecordKind,
    /// 0 in the log of an embedded database.
    pub term: u64,
    /// Of the entry or operation.
    pub index: u64,
    /// Length of its body.
    pub body_bytes: u64,
    /// What the body begins with.
    pub body: Bytes,
}

impl LogRecordView {
    /// So much of a body is held.
    pub const BODY_BYTES_MAX: usize = 256;

    pub(super) fn of(record: &Record<'_>, segment_bytes: u64) -> Self {
        let held = record.body.len().min(Self::BODY_BYTES_MAX);
        Self {
            lsn: record.lsn.0,
            segment: record.lsn.0 / segment_bytes,
            offset: record.lsn.0 % segment_bytes,
            kind: record.meta.kind,
            term: record.meta.term,
            index: record.meta.index,
            body_bytes: record.body.len() as u64,
            body: Bytes::copy_from_slice(&record.body[..held]),
        }
    }
}

/// The log behind a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogView {
    /// Where a start begins to replay.
    pub replay_lsn: u64,
    /// Its end and what was read; none while the directory is being made.
    pub report: Option<LogReport>,
    /// The newest records, oldest first.
    pub newest: Vec<LogRecordView>,
}

/// A page that a tree refers to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LivePageView {
    /// The tree.
    pub tree: &'static str,
    /// Its reference.
    pub reference: PageRef,
    /// Its lower fence.
    pub fence: Bytes,
}

/// A segment with what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentDetail {
    /// The row of the list.
    pub segment: SegmentView,
    /// Tombstones, compressed records, bytes of the dictionary; all 0 for a k segment.
    pub tombstones: u32,
    /// See `tombstones`.
    pub compressed: u32,
    /// See `tombstones`.
    pub dictionary_bytes: u32,
    /// Of an r segment.
    pub index_blocks: Vec<IndexBlockView>,
    /// Of a k segment: pages that are alive, by place.
    pub pages: Vec<LivePageView>,
}

/// One cell of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellView {
    /// Its key.
    pub key: Bytes,
    /// Payload as stored.
    pub payload: Bytes,
    /// The child, above the leaves.
    pub child: Option<PageRef>,
    /// The version, in a leaf of the key tree or the pending tree; none of a key that has no cell any more.
    pub version: Option<RecordView>,
}

/// One page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageView {
    /// How a tree refers to it.
    pub page: LivePageView,
    /// Sequence of the checkpoint that wrote it.
    pub checkpoint: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// What all its keys begin with.
    pub prefix: Bytes,
    /// Its cells.
    pub cells: Vec<CellView>,
}

/// One version of a key, in a cell or in a record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordView {
    /// Its revision.
    pub revision: Revision,
    /// The key; empty in a cell, which has it beside.
    pub key: Bytes,
    /// The value, if it is here.
    pub value: Option<Bytes>,
    /// Length of the value.
    pub value_bytes: u64,
    /// 0 for a tombstone.
    pub version: i64,
    /// 0 for a tombstone.
    pub create_revision: i64,
    /// 0 for none.
    pub lease: i64,
    /// Hash in the cell, or of the record.
    pub hash: u64,
    /// The version that it replaced.
    pub prev: Option<Revision>,
    /// Stations that it names on the way to older versions, newest first.
    pub stations: Vec<Revision>,
    /// Segment, number in it, offset and bytes in the file; none in a cell.
    pub place: Option<(u32, u32, u64, u32)>,
    /// Its dead bit is set.
    pub is_dead: bool,
}

/// A key: where it is, what its cell says, and its versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyView {
    /// Pages of the key tree from the root to the leaf.
    pub path: Vec<PageRef>,
    /// The same of the pending tree; empty if nothing is pending.
    pub pending_path: Vec<PageRef>,
    /// The cell is in the pending tree, or will be gone: it goes before that of the leaf.
    pub is_pending: bool,
    /// The cell; none if there is none.
    pub cell: Option<RecordView>,
    /// Records, newest first.
    pub versions: Vec<RecordView>,
    /// True if the oldest of them names another one, which a compaction has removed.
    pub is_cut: bool,
}

impl RecordView {
    fn of_record(record: OwnedRecord, segment: SegmentId, entry: &Entry, is_dead: bool) -> Self {
        Self {
            hash: record.hash(),
            revision: record.revision,
            value_bytes: record.value.len() as u64,
            value: Some(record.value),
            key: record.key,
            version: record.version,
            create_revision: record.create_revision,
            lease: record.lease,
            prev: record.prev.map(|prev| prev.revision),
            stations: record.jumps,
            place: Some((segment.0, entry.ordinal, entry.offset, entry.stored_bytes)),
            is_dead,
        }
    }

    fn of_cell(payload: &Bytes) -> Result<Self> {
        let cell = DiskVersion::decode(payload)?;
        Ok(Self {
            revision: cell.revision,
            key: Bytes::new(),
            value: cell.value,
            value_bytes: u64::from(cell.value_bytes),
            version: cell.version,
            create_revision: cell.create_revision,
            lease: cell.lease,
            hash: cell.record_hash,
            prev: cell.prev,
            stations: cell.stations.revisions().collect(),
            place: None,
            is_dead: false,
        })
    }
}

impl Inspection {
    /// The superblock.
    pub fn superblock(&self) -> SuperblockView {
        let superblock = &self.superblock;
        let sync = superblock.calibration.as_ref();
        SuperblockView {
            format_version: superblock.format_version(),
            sequence: superblock.sequence(),
            copies: superblock.copies().to_vec(),
            is_ready: superblock.stage == Stage::Ready,
            is_embedded: superblock.mode == Mode::Embedded,
            database: superblock.database,
            cluster_id: superblock.cluster_id,
            member_id: superblock.member_id,
            wal_segment_bytes: superblock.segment_bytes,
            replay_lsn: superblock.wal_replay_lsn.0,
            applied_index: superblock.applied_index,
            applied_term: superblock.applied_term,
            revision: superblock.revision,
            compact_revision: superblock.compact_revision,
            swept_revision: superblock.swept_revision,
            next_segment: superblock.next_segment,
            roots: [TreeId::Keys, TreeId::System, TreeId::Segments, TreeId::Pending]
                .map(|tree| tree.root(&superblock.roots)),
            quarantine_reason: superblock.quarantine.map(|quarantine| quarantine.reason),
            sync: sync.map(|it| (format!("{:?}", it.method).to_lowercase(), it.device.clone())),
        }
    }

    /// All segments that the checkpoint refers to, r segments oldest first, then k segments.
    ///
    /// # Errors
    /// If the first block of one does not verify.
    pub fn segments(&self) -> Result<Vec<SegmentView>> {
        let mut views = Vec::new();
        for file in &self.state.revisions {
            let summary = &file.info.summary;
            views.push(SegmentView {
                id: summary.id.0,
                kind: SegmentKind::Revisions,
                file: segment::path(summary.id, SegmentKind::Revisions).display().to_string(),
                checkpoint: file.segment.header()?.checkpoint,
                file_bytes: summary.file_bytes,
                written_bytes: summary.stored_bytes,
                live_bytes: summary.stored_bytes - file.info.dead_stored_bytes,
                records: u64::from(summary.records),
                dead_records: file.info.dead_records,
                revisions: Some((summary.first, summary.last)),
                age_revisions: self.state.revision() - summary.last.main,
            });
        }
        for (&id, info) in &self.state.pages {
            let file = self.shelf.pages_file(id)?;
            let written_bytes = info.written_bytes.max(info.live_bytes + info.table_bytes);
            views.push(SegmentView {
                id: id.0,
                kind: SegmentKind::Pages,
                file: file.path().to_string(),
                checkpoint: segment::read_header(&*file)?.checkpoint,
                file_bytes: written_bytes + crate::io::disk::BLOCK_BYTES as u64,
                written_bytes,
                live_bytes: info.live_bytes + info.table_bytes,
                records: 0,
                dead_records: 0,
                revisions: None,
                age_revisions: 0,
            });
        }
        Ok(views)
    }

    fn each_tree(&self) -> [(TreeId, Tree<TreePages<'_>>); 4] {
        TreeId::ALL.map(|tree| (tree, Tree::new(tree.root(&self.state.roots), self.shelf.pages(tree))))
    }

    /// The trees. Reads all of their pages.
    ///
    /// # Errors
    /// The first page that does not verify.
    pub fn trees(&self) -> Result<Vec<TreeView>> {
        let mut views = Vec::new();
        for (tree, pages) in self.each_tree() {
            let mut view = TreeView {
                name: tree.name(),
                height: pages.root().map_or(0, |root| u32::from(root.level) + 1),
                level_pages: vec![0; pages.root().map_or(0, |root| usize::from(root.level) + 1)],
                bytes: 0,
                used_bytes: 0,
                cells: 0,
                live_keys: pages.root().map_or(0, |root| root.aggregate.live_keys),
                segments: Vec::new(),
            };
            pages.visit_pages(&mut |reference, page| {
                view.level_pages[usize::from(reference.level)] += 1;
                view.bytes += reference.bytes() as u64;
                view.used_bytes += page.used_bytes() as u64;
                view.cells += if page.level() == 0 { page.count() as u64 } else { 0 };
                view.segments.push(reference.segment.0);
                Ok(())
            })?;
            view.segments.sort_unstable();
            view.segments.dedup();
            views.push(view);
        }
        Ok(views)
    }

    /// Pages that the trees refer to and that `wanted` chooses, with their fences. Reads inner pages.
    fn live_pages(&self, wanted: impl Fn(&PageRef) -> bool) -> Result<Vec<(TreeId, LivePageView)>> {
        let mut found = Vec::new();
        for (tree, pages) in self.each_tree() {
            pages.visit_references(&mut |fence, reference| {
                if wanted(reference) {
                    let fence = Bytes::copy_from_slice(fence);
                    found.push((tree, LivePageView { tree: tree.name(), reference: *reference, fence }));
                }
                Ok(true)
            })?;
        }
        found.sort_by_key(|(_, page)| (page.reference.segment, page.reference.block));
        Ok(found)
    }

    /// One segment.
    ///
    /// # Errors
    /// [`Error::Refused`] if the checkpoint does not refer to it; damage on the way.
    pub fn segment(&self, id: u32) -> Result<SegmentDetail> {
        let Some(segment) = self.segments()?.into_iter().find(|segment| segment.id == id) else {
            return Err(Error::Refused(format!("the checkpoint has no segment {id}")));
        };
        let mut detail = SegmentDetail {
            segment,
            tombstones: 0,
            compressed: 0,
            dictionary_bytes: 0,
            index_blocks: Vec::new(),
            pages: Vec::new(),
        };
        match self.state.revisions.iter().find(|file| file.info.summary.id.0 == id) {
            Some(file) => {
                let counts = file.segment.trailer_counts()?;
                detail.tombstones = counts.tombstones;
                detail.compressed = counts.compressed;
                detail.dictionary_bytes = counts.dictionary_bytes;
                let blocks = file.segment.index_places()?.into_iter();
                detail.index_blocks = blocks
                    .map(|place| IndexBlockView {
                        first: place.first,
                        first_ordinal: place.first_ordinal,
                        first_record_offset: place.first_record_offset,
                        offset: place.offset,
                        bytes: place.bytes,
                    })
                    .collect();
            }
            None => {
                let pages = self.live_pages(|reference| reference.segment.0 == id)?;
                detail.pages = pages.into_iter().map(|(_, page)| page).collect();
            }
        }
        Ok(detail)
    }

    /// The page that a tree refers to at this block of a k segment.
    ///
    /// # Errors
    /// [`Error::Refused`] if none does: nobody knows what is there then; damage on the way.
    pub fn page(&self, segment: u32, block: u32) -> Result<PageView> {
        let here = |reference: &PageRef| (reference.segment.0, reference.block) == (segment, block);
        let Some((tree, page)) = self.live_pages(here)?.into_iter().next() else {
            return Err(Error::Refused(format!(
                "no tree refers to a page at block {block} of segment {segment}; `segment {segment}` lists those that are alive"
            )));
        };
        let loaded = self.shelf.pages(tree).load(&page.reference)?;
        let cells =
            (0..loaded.count()).map(|index| cell_view(tree, &loaded, index)).collect::<Result<_>>()?;
        Ok(PageView {
            page,
            checkpoint: loaded.checkpoint(),
            used_bytes: loaded.used_bytes() as u64,
            prefix: Bytes::copy_from_slice(loaded.prefix()),
            cells,
        })
    }

    /// Records with this main revision, or only the one with this sub revision too, as far as they are in the checkpoint.
    ///
    /// # Errors
    /// Damage on the way.
    pub fn records(&self, main: i64, sub: Option<i64>) -> Result<Vec<RecordView>> {
        let mut views = Vec::new();
        for (number, segment) in self.state.numbered_segments_from(main) {
            if segment.summary().first.main > main {
                break;
            }
            for entry in segment.entries(Revision::new(main, 0)) {
                let entry = entry?;
                if entry.revision.main > main {
                    break;
                }
                if sub.is_none_or(|sub| entry.revision.sub == sub) {
                    views.push(self.record_view(number, &entry)?);
                }
            }
        }
        Ok(views)
    }

    fn record_view(&self, number: usize, entry: &Entry) -> Result<RecordView> {
        let file = &self.state.revisions[number];
        let bits = self.state.dead_bits(number)?;
        let is_dead =
            bits.get(entry.ordinal as usize / 8).is_some_and(|byte| byte >> (entry.ordinal % 8) & 1 == 1);
        Ok(RecordView::of_record(file.segment.read(entry)?, file.info.summary.id, entry, is_dead))
    }

    /// A key with its versions, newest first, at most `versions_max` of them.
    ///
    /// # Errors
    /// Damage on the way.
    pub fn key(&self, key: &[u8], versions_max: usize) -> Result<KeyView> {
        let mut view = KeyView {
            path: Vec::new(),
            pending_path: Vec::new(),
            is_pending: false,
            cell: None,
            versions: Vec::new(),
            is_cut: false,
        };
        let mut payloads = Vec::new();
        for (tree, path) in [(TreeId::Keys, &mut view.path), (TreeId::Pending, &mut view.pending_path)] {
            let mut next = tree.root(&self.state.roots);
            while let Some(reference) = next {
                path.push(reference);
                let page = self.shelf.pages(tree).load(&reference)?;
                next = (page.level() > 0).then(|| page.child(page.child_index(key)));
                if page.level() == 0
                    && let Ok(index) = page.search(key)
                {
                    payloads.push((tree, page.payload_bytes(index)));
                }
            }
        }
        // What is pending comes last, and counts.
        for (tree, payload) in payloads {
            view.is_pending = tree == TreeId::Pending;
            let cell = match tree {
                TreeId::Pending => PendingChange::decode(&payload)?.cell.map(|cell| payload.slice_ref(cell)),
                _ => Some(payload),
            };
            view.cell = cell.as_ref().map(RecordView::of_cell).transpose()?;
        }
        let mut revision = view.cell.as_ref().map(|cell| cell.revision);
        while let Some(wanted) = revision.filter(|_| view.versions.len() < versions_max) {
            let Some((number, entry)) = self.state.find(wanted)? else {
                view.is_cut = true;
                break;
            };
            let record = self.record_view(number, &entry)?;
            revision = record.prev;
            view.versions.push(record);
        }
        Ok(view)
    }

    /// Bytes of files in `seg` that the checkpoint does not refer to, by name: what a crash or a checkpoint under way has left.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn unreferenced(&self) -> Result<Vec<String>> {
        let names: BTreeMap<_, _> =
            self.segments()?.into_iter().map(|segment| (segment.file, segment.id)).collect();
        let mut left = super::list_segments(&self.directory)?;
        left.retain(|name| !names.contains_key(name));
        Ok(left)
    }
}

fn cell_view(tree: TreeId, page: &Page, index: usize) -> Result<CellView> {
    let payload = page.payload_bytes(index);
    let cell = match tree {
        TreeId::Keys if page.level() == 0 => Some(payload.clone()),
        TreeId::Pending if page.level() == 0 => {
            PendingChange::decode(&payload)?.cell.map(|cell| payload.slice_ref(cell))
        }
        _ => None,
    };
    let version = cell.as_ref().map(RecordView::of_cell).transpose()?;
    let child = (page.level() > 0).then(|| page.child(index));
    Ok(CellView { key: page.key(index).into(), payload, child, version })
}
