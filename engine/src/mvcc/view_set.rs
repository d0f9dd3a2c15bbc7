//! What readers see: the memtables of one moment over one state on disk, and how a key or a range is found across them.
//!
//! For the store and its writer. A [`ViewSet`] is immutable as a set; the active memtable in it goes on growing, which
//! readers do not notice because they ignore revisions above theirs. It knows nothing of limits, filters or
//! transactions.
//!
//! Layout: memtables newest first, the active one in front, the state on disk behind the last. Each holds a run of
//! neighbouring revisions; runs do not overlap, so the first place that has a version at or below the asked revision
//! has the newest such version.
//!
//! Invariants:
//! - M4: tables are in strictly descending order of revisions, all above the revision of the state on disk.
//! - M2: a reader at revision r ≥ the compact revision sees the same answer as long as it holds the view set.
//!
//! Failure: only what is on disk can fail to be read. A read that fails gives no answer at all.
use super::found::Found;
use super::operation::{KeyRange, prefix_end};
use crate::base::ids::Revision;
use crate::disk_state::{DiskCursor, DiskState, DiskVersion, LeavesAhead};
use crate::error::OperationError;
use crate::memtable::{Key, KeyHasher, Keys, Memtable, Newest, Version};
use bytes::Bytes;
use std::cmp::Ordering as Compared;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

/// See the module.
pub(crate) struct ViewSet {
    /// Newest first; the first one is active.
    pub(crate) tables: Vec<Arc<Memtable>>,
    /// What lies under the memtables.
    pub(crate) disk: Arc<DiskState>,
    /// Reads below it fail; -1 before the first compaction.
    pub(crate) compact_revision: i64,
    /// The hash of all tables.
    pub(crate) hasher: KeyHasher,
}

/// A [`KeyRange`], understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bounds<'a> {
    /// One key.
    Key(&'a [u8]),
    /// From a key on, up to and without an end if there is one.
    From(&'a [u8], Option<&'a [u8]>),
}

impl KeyRange {
    /// The keys that begin with `prefix`; all keys if that is empty.
    pub fn of_prefix(prefix: Bytes) -> Self {
        let end = prefix_end(&prefix).unwrap_or(Bytes::from_static(b"\0"));
        Self { key: if prefix.is_empty() { Bytes::from_static(b"\0") } else { prefix }, end }
    }

    /// The key, if it is one.
    pub(super) fn single(&self) -> Option<&Bytes> {
        self.end.is_empty().then_some(&self.key)
    }

    /// What the range covers.
    pub(crate) fn bounds(&self) -> Bounds<'_> {
        match &self.end[..] {
            [] => Bounds::Key(&self.key),
            [0] => Bounds::From(&self.key, None),
            end => Bounds::From(&self.key, Some(end)),
        }
    }
}

impl Bounds<'_> {
    /// True if the key is covered.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Bounds::Key(one) => *one == key,
            Bounds::From(from, end) => *from <= key && end.is_none_or(|end| key < end),
        }
    }
}

/// True if a compaction to `compact_revision` removes the version: a newer one exists at or below it, or it is a
/// tombstone below it (etcd keeps a tombstone exactly at it).
pub(crate) fn is_dead(version: &Version<'_>, compact_revision: i64) -> bool {
    let next_main = version.next_main();
    (next_main != 0 && next_main <= compact_revision)
        || (version.is_tombstone() && version.main() < compact_revision)
}

/// A key's newest version as the writer sees it, published or not, a tombstone too.
pub(crate) enum NewestFound<'a> {
    /// In a memtable, which is told when it is replaced.
    Memory(Key<'a>, Newest),
    /// On disk.
    Disk(DiskVersion),
    /// On disk, as the log has noted it: nobody has looked there.
    Noted(Newest),
}

impl NewestFound<'_> {
    /// What the next change of the key must know of it.
    #[inline]
    pub(crate) fn newest(&self) -> Newest {
        match self {
            NewestFound::Memory(_, newest) | NewestFound::Noted(newest) => *newest,
            NewestFound::Disk(version) => Newest {
                revision: version.revision,
                create_revision: version.create_revision,
                version: version.version,
                lease: version.lease,
                value_bytes: version.value_bytes,
            },
        }
    }
}

impl<'a> NewestFound<'a> {
    /// The version itself; none if it has to be looked for.
    pub(crate) fn found(&self) -> Option<Found<'a>> {
        match self {
            NewestFound::Memory(key, _) => Some(Found::Memory(key.latest())),
            NewestFound::Disk(version) => Some(Found::Disk(version.clone())),
            NewestFound::Noted(_) => None,
        }
    }
}

impl ViewSet {
    /// The newest version of a key with a main revision of at most `main`, a tombstone too.
    #[inline]
    pub(crate) fn newest(
        &self,
        key: &[u8],
        hash: u32,
        main: i64,
    ) -> Result<Option<Found<'_>>, OperationError> {
        if let Some(version) = self.tables.iter().find_map(|table| table.at_or_below(key, hash, main)) {
            return Ok(Some(Found::Memory(version)));
        }
        Ok(self.disk.at_or_below(key, main)?.map(Found::Disk))
    }

    /// The key's newest version, published or not, a tombstone too; for the writer alone.
    #[inline]
    pub(crate) fn newest_of_all(
        &self,
        key: &[u8],
        hash: u32,
    ) -> Result<Option<NewestFound<'_>>, OperationError> {
        if let Some(found) = self.tables.iter().find_map(|table| table.find(key, hash)) {
            return Ok(Some(NewestFound::Memory(found, found.newest())));
        }
        Ok(self.disk.newest(key)?.map(NewestFound::Disk))
    }

    /// Says that [`Self::newest_of_all`] will be asked for this key.
    pub(crate) fn read_ahead(&self, key: &[u8]) {
        if self.disk.is_empty() {
            return;
        }
        let hash = self.hasher.hash(key);
        if !self.tables.iter().any(|table| table.find(key, hash).is_some()) {
            self.disk.read_ahead(key);
        }
    }

    /// The state of a key at `main`, if it exists there.
    #[inline]
    pub(crate) fn live(&self, key: &[u8], main: i64) -> Result<Option<Found<'_>>, OperationError> {
        let newest = self.newest(key, self.hasher.hash(key), main)?;
        Ok(newest.filter(|version| !version.is_tombstone()))
    }

    /// The table whose run of revisions covers `revision`; none if it is on disk.
    pub(crate) fn table_of(&self, revision: Revision) -> Option<&Arc<Memtable>> {
        self.tables.get(self.tables.partition_point(|table| table.first_revision() > revision))
    }

    /// Tables that may hold records from main revision `main` on, oldest first.
    pub(crate) fn tables_from(&self, main: i64) -> impl Iterator<Item = &Arc<Memtable>> {
        // One table more than those that begin at `main` or later: it may end in it.
        let count = self.tables.partition_point(|table| table.first_main() >= main) + 1;
        self.tables[..count.min(self.tables.len())].iter().rev()
    }

    /// Visits the keys of a range that exist at `main`, in key order, until `visit` returns false.
    pub(crate) fn scan<'a>(
        &'a self,
        bounds: Bounds<'_>,
        main: i64,
        visit: impl FnMut(&[u8], Found<'a>) -> Result<bool, OperationError>,
    ) -> Result<(), OperationError> {
        self.scan_on(bounds, main, &mut LeavesAhead::default(), visit)
    }

    /// [`Self::scan`] as a part of one that others may have begun and may go on with.
    pub(crate) fn scan_on<'a>(
        &'a self,
        bounds: Bounds<'_>,
        main: i64,
        ahead: &mut LeavesAhead,
        mut visit: impl FnMut(&[u8], Found<'a>) -> Result<bool, OperationError>,
    ) -> Result<(), OperationError> {
        let (from, end) = match bounds {
            Bounds::Key(key) => {
                if let Some(found) = self.live(key, main)? {
                    visit(key, found)?;
                }
                return Ok(());
            }
            Bounds::From(from, end) if end.is_none_or(|end| from < end) => (from, end),
            Bounds::From(..) => return Ok(()),
        };
        let mut memory = MemoryLanes::new(self, from, end, main);
        let mut disk = DiskLane::new(&self.disk, ahead, from, end)?;
        loop {
            let order = match (memory.key(), disk.key()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Compared::Less,
                (None, Some(_)) => Compared::Greater,
                (Some(in_memory), Some(on_disk)) => in_memory.cmp(on_disk),
            };
            let go_on = if order == Compared::Greater {
                match disk.version_at(main)? {
                    Some(version) if version.version > 0 => {
                        let key = disk.key().expect("the lane is not at its end");
                        visit(key, Found::Disk(version))?
                    }
                    _ => true,
                }
            } else {
                let (key, found) = memory.take();
                // What is on disk of this key is older than everything in memory.
                let found = match found {
                    Some(version) => Some(Found::Memory(version)),
                    None if order == Compared::Equal => disk.version_at(main)?.map(Found::Disk),
                    None => None,
                };
                match found {
                    Some(found) if !found.is_tombstone() => visit(key, found)?,
                    _ => true,
                }
            };
            if !go_on {
                return Ok(());
            }
            if order != Compared::Less {
                disk.advance()?;
            }
        }
    }
}

/// The memtables' part of a scan: keys in order, each with its newest version at or below the revision.
pub(super) struct MemoryLanes<'a, 'b> {
    lanes: BinaryHeap<Lane<'a>>,
    end: Option<&'b [u8]>,
    at: Revision,
}

impl<'a, 'b> MemoryLanes<'a, 'b> {
    pub(super) fn new(view: &'a ViewSet, from: &[u8], end: Option<&'b [u8]>, main: i64) -> Self {
        let mut lanes = BinaryHeap::new();
        for (age, table) in view.tables.iter().enumerate().filter(|(_, table)| table.first_main() <= main) {
            let mut keys = table.seek(from);
            if let Some(key) = keys.next() {
                lanes.push(Lane { bytes: key.bytes(), age, key, keys });
            }
        }
        Self { lanes, end, at: Revision::new(main, i64::MAX) }
    }

    /// The next key; none at the end.
    #[inline]
    pub(super) fn key(&self) -> Option<&'a [u8]> {
        let bytes = self.lanes.peek()?.bytes;
        self.end.is_none_or(|end| bytes < end).then_some(bytes)
    }

    /// Takes the next key; its version is none if all are newer than asked for.
    #[inline]
    fn take(&mut self) -> (&'a [u8], Option<Version<'a>>) {
        let (bytes, found, _) = self.take_lanes(|_| ());
        (bytes, found)
    }

    /// As [`Self::take`], with the key's oldest version in memory.
    pub(super) fn take_with_oldest(&mut self) -> (&'a [u8], Option<Version<'a>>, Version<'a>) {
        self.take_lanes(|key| key.oldest())
    }

    /// `of_oldest` is called for each lane with the key, the oldest table last; the last result is returned.
    #[inline]
    fn take_lanes<T>(&mut self, of_oldest: impl Fn(Key<'a>) -> T) -> (&'a [u8], Option<Version<'a>>, T) {
        let mut lane = self.lanes.peek_mut().expect("the caller has looked");
        let bytes = lane.bytes;
        // Lanes with the same key come newest table first.
        let mut found = lane.key.at_or_below(self.at);
        loop {
            let oldest = of_oldest(lane.key);
            match lane.keys.next() {
                Some(key) => {
                    lane.bytes = key.bytes();
                    lane.key = key;
                    drop(lane);
                }
                None => {
                    PeekMut::pop(lane);
                }
            }
            match self.lanes.peek_mut() {
                Some(next) if next.bytes == bytes => lane = next,
                _ => return (bytes, found, oldest),
            }
            found = found.or_else(|| lane.key.at_or_below(self.at));
        }
    }
}

/// One table's place in a scan. The greatest is the one to visit first: smallest key, then newest table.
struct Lane<'a> {
    bytes: &'a [u8],
    /// 0: the active table.
    age: usize,
    key: Key<'a>,
    keys: Keys<'a>,
}

impl Ord for Lane<'_> {
    fn cmp(&self, other: &Self) -> Compared {
        other.bytes.cmp(self.bytes).then_with(|| other.age.cmp(&self.age))
    }
}

impl PartialOrd for Lane<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Compared> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Lane<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Compared::Equal
    }
}

impl Eq for Lane<'_> {}

/// The disk's part of a scan.
struct DiskLane<'a, 'b> {
    disk: &'a Arc<DiskState>,
    ahead: &'b mut LeavesAhead,
    cursor: Option<DiskCursor<'a>>,
    end: Option<&'b [u8]>,
}

impl<'a, 'b> DiskLane<'a, 'b> {
    fn new(
        disk: &'a Arc<DiskState>,
        ahead: &'b mut LeavesAhead,
        from: &[u8],
        end: Option<&'b [u8]>,
    ) -> Result<Self, OperationError> {
        let mut cursor = disk.cursor();
        ahead.go_on();
        if let Some(cursor) = &mut cursor {
            cursor.seek(from)?;
            ahead.follow(disk, cursor, end);
        }
        Ok(Self { disk, ahead, cursor, end })
    }

    #[inline]
    fn key(&self) -> Option<&[u8]> {
        let cursor = self.cursor.as_ref()?;
        let key = cursor.key()?;
        self.end.is_none_or(|end| key < end).then_some(key)
    }

    /// The key's newest version at or below `main`, a tombstone too.
    fn version_at(&self, main: i64) -> Result<Option<DiskVersion>, OperationError> {
        let Some((cursor, key)) = self.cursor.as_ref().and_then(|cursor| Some((cursor, cursor.key()?)))
        else {
            return Ok(None);
        };
        Ok(self.disk.older(key, cursor.version()?, main)?)
    }

    fn advance(&mut self) -> Result<(), OperationError> {
        if let Some(cursor) = &mut self.cursor {
            cursor.next()?;
            self.ahead.follow(self.disk, cursor, self.end);
        }
        Ok(())
    }
}
