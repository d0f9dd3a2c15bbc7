//! Where the files of all checkpoints of one database are, and the memory that reads of them share.
//!
//! For [`super::DiskState`] and the checkpoint. Opens files once and keeps them open as long as somebody refers to them;
//! loads pages through the cache and verifies them against their reference.
//!
//! **Does not know** what a tree holds.
use super::TreeId;
use super::kept_names::KeptNames;
use super::read_ahead::ReadAhead;
use super::repair::Repairs;
use crate::base::ids::{Revision, SegmentId};
use crate::cache::{Cache, CacheKey, CacheStats, Cached, Class, Kind, VALUE_BYTES_MAX};
use crate::error::{Error, Result};
use crate::io::AlignedBytes;
use crate::io::files::{Files, ReadFile};
use crate::quarantine::{Quarantine, WatchedFiles};
use crate::revision_log::{RevisionSegment, SegmentSummary};
use crate::segment::{self, SegmentKind};
use crate::tree::{Page, PageRef, Pages};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Segments are numbered from 1.
const NO_SEGMENT: SegmentId = SegmentId(0);

impl Cached for Page {
    const KIND: Kind = Kind::Page;

    fn bytes(&self) -> usize {
        self.memory_bytes()
    }
}

/// Where a page is kept.
fn page_key(reference: &PageRef) -> CacheKey {
    CacheKey { segment: reference.segment, block: u64::from(reference.block) }
}

/// What is pending is on the way to every leaf, and a tenth of the leaves: kept before those.
fn class_of(tree: TreeId, reference: &PageRef) -> Class {
    match (tree, reference.level) {
        (_, 1..) => Class::Inner,
        (TreeId::Pending, 0) => Class::Index,
        (_, 0) => Class::Leaf,
    }
}

/// Where a value is kept: by its revision, which means the same in whatever segment it is. Records are moved when segments are cleaned, and
/// what everybody reads stays in memory. None for the few that do not fit into a number.
fn value_key(revision: Revision) -> Option<CacheKey> {
    let main = u64::try_from(revision.main).ok().filter(|main| main >> 48 == 0)?;
    let sub = u16::try_from(revision.sub).ok()?;
    Some(CacheKey { segment: NO_SEGMENT, block: main << 16 | u64::from(sub) })
}

/// Sizes that a database on disk is run with.
#[derive(Clone, Debug)]
pub struct ShelfOptions {
    /// Memory for pages, index blocks and values, in bytes. 256 MiB by default; 0 keeps nothing.
    pub cache_bytes: usize,
    /// Target size of a page: 4 KiB to 64 KiB. A directory may be written with another size at any time.
    pub page_bytes: usize,
    /// Leaves that a range reads ahead of itself, in bytes; 1 MiB by default, 0 for none. Values of an answer are read by many threads at once
    /// unless it is 0.
    pub range_ahead_bytes: u64,
    /// Size at which a segment is closed and a new one begun: 64 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// For tests: what is read ahead is read by whoever asks for it, as this seed draws it (0: at once), in place of threads. None by
    /// default, and then nothing is read ahead over a simulated disk.
    #[cfg(feature = "sim")]
    pub ahead_seed: Option<u64>,
}

impl Default for ShelfOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            page_bytes: 16 << 10,
            range_ahead_bytes: 1 << 20,
            segment_bytes: 64 << 20,
            #[cfg(feature = "sim")]
            ahead_seed: None,
        }
    }
}

/// See the module.
pub(crate) struct Shelf {
    files: Arc<WatchedFiles>,
    cache: Arc<Cache>,
    /// What is damaged, over all states.
    pub(crate) quarantine: Arc<Quarantine>,
    /// Leaves that do not verify and were made again.
    pub(crate) repairs: Repairs,
    pub(crate) database: [u8; 16],
    pub(crate) options: ShelfOptions,
    /// k segments that some state holds open: it reads them as long as it lives, with or without a name.
    pages_files: Mutex<BTreeMap<SegmentId, Weak<dyn ReadFile>>>,
    /// What loses its name, and when.
    pub(crate) names: Arc<KeptNames>,
    /// See [`crate::checkpoint::CheckpointStats::versions_read`].
    pub(crate) versions_read: AtomicU64,
    /// See [`crate::checkpoint::CheckpointStats::pieces_read_at_once`].
    pub(crate) pieces_read_at_once: AtomicU64,
    /// See [`crate::checkpoint::CheckpointStats::leaves_read_ahead`].
    pub(crate) leaves_read_ahead: AtomicU64,
    /// None where nothing is read that nobody asked for.
    pub(super) read_ahead: OnceLock<ReadAhead>,
}

/// Name of an r segment, relative to the data directory.
pub(super) fn revisions_name(id: SegmentId) -> String {
    segment::path(id, SegmentKind::Revisions).display().to_string()
}

impl Shelf {
    pub(crate) fn new(files: Arc<dyn Files>, database: [u8; 16], options: ShelfOptions) -> Arc<Self> {
        let cache = Cache::new(options.cache_bytes);
        let quarantine = Arc::<Quarantine>::default();
        let files = WatchedFiles::new(files, quarantine.clone());
        let shelf = Self {
            files,
            cache,
            quarantine,
            repairs: Repairs::default(),
            database,
            options,
            pages_files: Mutex::default(),
            names: Arc::default(),
            versions_read: AtomicU64::new(0),
            pieces_read_at_once: AtomicU64::new(0),
            leaves_read_ahead: AtomicU64::new(0),
            read_ahead: OnceLock::new(),
        };
        #[cfg(feature = "sim")]
        if let Some(seed) = shelf.options.ahead_seed {
            shelf.start(|| ReadAhead::without_threads(seed));
        }
        Arc::new(shelf)
    }

    /// From now on hints about what will be read are followed, by threads.
    pub(crate) fn start_read_ahead(&self) {
        self.start(ReadAhead::default);
    }

    fn start(&self, read_ahead: impl FnOnce() -> ReadAhead) {
        // Without a cache every page would be read twice.
        if self.options.cache_bytes > 0 {
            self.read_ahead.get_or_init(read_ahead);
        }
    }

    /// Opens an r segment. One that is damaged concerns those who read it, and is noted; one of a later format is refused.
    pub(crate) fn open_revisions(&self, summary: &SegmentSummary) -> Result<Arc<RevisionSegment>> {
        let file = self.files.open(&segment::path(summary.id, SegmentKind::Revisions))?;
        let segment = RevisionSegment::over(file, self.cache.clone(), self.database, *summary);
        match segment.check_trailer() {
            Err(refused @ Error::Refused(_)) => Err(refused),
            _ => Ok(segment),
        }
    }

    /// A k segment's file. A state that may read it holds it. Its first block is not looked at: pages are verified by the checksum in
    /// their reference, and those of a file that has lost its first block are as good as others.
    pub(crate) fn pages_file(&self, id: SegmentId) -> Result<Arc<dyn ReadFile>> {
        let mut open = self.pages_files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&id).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = self.files.open(&segment::path(id, SegmentKind::Pages))?;
        open.retain(|_, file| file.strong_count() > 0);
        open.insert(id, Arc::downgrade(&file));
        Ok(file)
    }

    /// Drops what is cached of a segment that the newest state does not refer to.
    pub(crate) fn forget(&self, id: SegmentId) {
        self.cache.remove_segment(id);
        self.repairs.forget(id);
        for kind in [SegmentKind::Revisions, SegmentKind::Pages] {
            self.quarantine.release(&segment::path(id, kind).display().to_string());
        }
    }

    /// Loads pages of one tree.
    pub(crate) fn pages(&self, tree: TreeId) -> TreePages<'_> {
        TreePages { shelf: self, tree, cached: true }
    }

    /// The same past the cache: what is verified is what is on disk now, and a walk over everything pushes nothing out.
    pub(super) fn pages_on_disk(&self, tree: TreeId) -> TreePages<'_> {
        TreePages { shelf: self, tree, cached: false }
    }

    /// A page, verified against its reference.
    pub(crate) fn load_page(&self, tree: TreeId, reference: &PageRef) -> Result<Arc<Page>> {
        if let Some(page) = self.page_in_memory(reference) {
            return Ok(page);
        }
        let page = self.read_page(tree, reference)?;
        self.cache.insert(page_key(reference), class_of(tree, reference), page.clone());
        Ok(page)
    }

    /// A page that nobody needs yet; none if it cannot be read. That is no news: who needs it reads it again, and says what is wrong.
    pub(super) fn load_page_ahead(&self, tree: TreeId, reference: &PageRef) -> Option<Arc<Page>> {
        if let Some(page) = self.page_in_memory(reference) {
            return Some(page);
        }
        let file = self.pages_file(reference.segment).ok()?;
        let bytes = file.read(reference.offset(), reference.bytes()).ok()?;
        let page = Page::decode(bytes.into_bytes(), reference, tree as u8, &self.database).ok()?;
        let page = Arc::new(page);
        self.cache.insert(page_key(reference), class_of(tree, reference), page.clone());
        Some(page)
    }

    /// A page, if no device need be asked for it.
    pub(super) fn page_in_memory(&self, reference: &PageRef) -> Option<Arc<Page>> {
        self.cache.get::<Page>(page_key(reference)).or_else(|| self.repairs.get(reference))
    }

    /// Says that the page is being replaced. Returns how often it was used, if it is in memory; where memory is short it is not any more.
    pub(crate) fn retire_page(&self, reference: &PageRef) -> Option<u8> {
        self.cache.retire::<Page>(page_key(reference))
    }

    /// Keeps a page that was just written, in place of one that was used so often.
    pub(crate) fn keep_page(&self, tree: TreeId, reference: &PageRef, bytes: &[u8], uses: u8) {
        let bytes = AlignedBytes::from(bytes).into_bytes();
        // One that does not decode would be met when it is read.
        if let Ok(page) = Page::decode_content(bytes, reference, tree as u8, &self.database) {
            self.cache.insert_used(page_key(reference), class_of(tree, reference), Arc::new(page), uses);
        }
    }

    /// Drops pages that the newest state does not refer to.
    pub(crate) fn forget_pages<'a>(&self, pages: impl Iterator<Item = &'a PageRef>) {
        pages.for_each(|reference| self.cache.remove::<Page>(page_key(reference)));
    }

    fn read_page(&self, tree: TreeId, reference: &PageRef) -> Result<Arc<Page>> {
        let file = self.pages_file(reference.segment)?;
        let page = segment::read_verified(&*file, reference.offset(), reference.bytes(), |bytes| {
            Page::decode(bytes.into_bytes(), reference, tree as u8, &self.database)
        })?;
        Ok(Arc::new(page))
    }

    /// The value of a revision, if it is in memory.
    pub(super) fn value_in_memory(&self, revision: Revision) -> Option<Bytes> {
        self.cache.get_bytes(value_key(revision)?)
    }

    /// Fills in the values of those revisions that are in memory; each revision with where its value goes.
    pub(super) fn fill_values(
        &self,
        wanted: impl Iterator<Item = (Revision, usize)>,
        values: &mut [Option<Bytes>],
    ) {
        let (keys, places): (Vec<_>, Vec<_>) =
            wanted.filter_map(|(revision, at)| Some((value_key(revision)?, at))).unzip();
        for (at, value) in places.into_iter().zip(self.cache.get_bytes_many(&keys)) {
            values[at] = value;
        }
    }

    /// Keeps the value of a revision, unless it is so long that it would push out many.
    pub(super) fn keep_value(&self, revision: Revision, value: &Bytes) {
        if let Some(key) = value_key(revision).filter(|_| value.len() <= VALUE_BYTES_MAX) {
            self.cache.insert_bytes(key, Class::Value, value);
        }
    }

    /// Reads the first block of a k segment again.
    pub(super) fn verify_header(&self, id: SegmentId) -> Result<()> {
        segment::check_header(&*self.pages_file(id)?, id, SegmentKind::Pages, self.database)
    }

    /// What the cache holds.
    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

/// See [`Shelf::pages`].
#[derive(Clone, Copy)]
pub(crate) struct TreePages<'a> {
    shelf: &'a Shelf,
    tree: TreeId,
    cached: bool,
}

impl Pages for TreePages<'_> {
    fn load(&self, reference: &PageRef) -> Result<Arc<Page>, Error> {
        match self.cached {
            true => self.shelf.load_page(self.tree, reference),
            false => self.shelf.read_page(self.tree, reference),
        }
    }
}
