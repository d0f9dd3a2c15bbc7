//! What readers see: the memtables of one moment, and how a key or a range is found across them.
//!
//! For the store and its writer. A [`ViewSet`] is immutable as a set; the active memtable in it goes on growing, which
//! readers do not notice because they ignore revisions above theirs. It knows nothing of limits, filters or
//! transactions.
//!
//! Layout: memtables newest first, the active one in front. Each holds a run of neighbouring revisions; runs do not
//! overlap, so the first table that has a version at or below the asked revision has the newest such version.
//!
//! Invariants:
//! - M4: tables are in strictly descending order of revisions.
//! - M7: a memtable may still hold a record whose tombstone, in a newer memtable, a merge has dropped. Every record
//!   knows the revision that replaced it, so the newest version found counts only if it was not replaced by then.
//! - M2: a reader at revision r ≥ the compact revision sees the same answer as long as it holds the view set.
use super::operation::{KeyRange, KeyValue};
use crate::base::ids::Revision;
use crate::memtable::{Key, KeyHasher, Keys, Memtable, Version};
use bytes::Bytes;
use std::cmp::Ordering as Compared;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

/// See the module.
pub(crate) struct ViewSet {
    /// Newest first; the first one is active.
    pub(crate) tables: Vec<Arc<Memtable>>,
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

/// False if the version was replaced at or before `main`: then what replaced it was a tombstone that a compaction has
/// dropped (M7), and the key does not exist.
fn is_newest_at(version: &Version<'_>, main: i64) -> bool {
    let next_main = version.next_main();
    next_main == 0 || next_main > main
}

impl ViewSet {
    /// The newest version of a key with a main revision of at most `main`, a tombstone too.
    #[inline]
    pub(crate) fn newest(&self, key: &[u8], hash: u32, main: i64) -> Option<Version<'_>> {
        let found = self.tables.iter().find_map(|table| table.at_or_below(key, hash, main));
        found.filter(|version| is_newest_at(version, main))
    }

    /// The key where its newest version is, published or not, a tombstone too; for the writer alone.
    #[inline]
    pub(crate) fn newest_key(&self, key: &[u8], hash: u32) -> Option<Key<'_>> {
        let found = self.tables.iter().find_map(|table| table.find(key, hash));
        // Replaced by what is no longer there: M7.
        found.filter(|found| !found.newest().is_replaced)
    }

    /// The state of a key at `main`, if it exists there.
    #[inline]
    pub(crate) fn live(&self, key: &[u8], main: i64) -> Option<Version<'_>> {
        self.newest(key, self.hasher.hash(key), main).filter(|version| !version.is_tombstone())
    }

    /// The table whose run of revisions covers `revision`.
    pub(crate) fn table_of(&self, revision: Revision) -> Option<&Arc<Memtable>> {
        self.tables.get(self.tables.partition_point(|table| table.first_revision() > revision))
    }

    /// The version with exactly this revision.
    pub(crate) fn exactly(&self, key: &[u8], hash: u32, revision: Revision) -> Option<Version<'_>> {
        self.table_of(revision)?.exactly(key, hash, revision)
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
        mut visit: impl FnMut(&'a [u8], Version<'a>) -> bool,
    ) {
        let (from, end) = match bounds {
            Bounds::Key(key) => {
                if let Some(version) = self.live(key, main) {
                    visit(version.key(), version);
                }
                return;
            }
            Bounds::From(from, end) if end.is_none_or(|end| from < end) => (from, end),
            Bounds::From(..) => return,
        };
        let at = Revision::new(main, i64::MAX);
        let mut lanes: BinaryHeap<Lane<'a>> = BinaryHeap::new();
        for (age, table) in self.tables.iter().enumerate().filter(|(_, table)| table.first_main() <= main) {
            let mut keys = table.seek(from);
            if let Some(key) = keys.next() {
                lanes.push(Lane { bytes: key.bytes(), age, key, keys });
            }
        }
        if lanes.len() == 1 {
            let lane = lanes.pop().expect("there is one");
            for key in std::iter::once(lane.key).chain(lane.keys) {
                let bytes = key.bytes();
                if end.is_some_and(|end| end <= bytes) {
                    return;
                }
                if let Some(version) = key.at_or_below(at)
                    && !version.is_tombstone()
                    && is_newest_at(&version, main)
                    && !visit(bytes, version)
                {
                    return;
                }
            }
            return;
        }
        while let Some(first) = lanes.peek() {
            let bytes = first.bytes;
            if end.is_some_and(|end| end <= bytes) {
                return;
            }
            let mut found = None;
            while let Some(mut lane) = lanes.peek_mut() {
                if lane.bytes != bytes {
                    break;
                }
                // Lanes with the same key come newest table first.
                found = found.or_else(|| lane.key.at_or_below(at));
                match lane.keys.next() {
                    Some(key) => {
                        lane.bytes = key.bytes();
                        lane.key = key;
                    }
                    None => {
                        PeekMut::pop(lane);
                    }
                }
            }
            if let Some(version) = found
                && !version.is_tombstone()
                && is_newest_at(&version, main)
                && !visit(bytes, version)
            {
                return;
            }
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

/// The most bytes of keys and values that share one allocation in an answer, unless a single one is larger: few
/// allocations, and whoever keeps one value keeps at most this much alive.
const SHARED_BYTES_MAX: usize = 16 << 10;

/// What of a version goes into an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parts {
    /// Everything.
    All,
    /// Neither value nor lease.
    KeysOnly,
    /// The lease but no value.
    KeysAndLease,
}

/// Copies versions out of the memtables, each byte once.
pub(crate) fn copy_all(hits: &[(&[u8], Version<'_>)], parts: Parts) -> Vec<KeyValue> {
    let mut kvs = Vec::with_capacity(hits.len());
    let bytes_of = |(key, version): &(&[u8], Version<'_>)| {
        key.len() + if parts == Parts::All { version.value_bytes() as usize } else { 0 }
    };
    let mut rest = hits;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut count = 0;
        while let Some(hit) = rest.get(count)
            && (count == 0 || bytes + bytes_of(hit) <= SHARED_BYTES_MAX)
        {
            bytes += bytes_of(hit);
            count += 1;
        }
        let (group, behind) = rest.split_at(count);
        rest = behind;
        let mut buffer = Vec::with_capacity(bytes);
        for (key, version) in group {
            buffer.extend_from_slice(key);
            if parts == Parts::All {
                buffer.extend_from_slice(version.value());
            }
        }
        let mut buffer = Bytes::from(buffer);
        for (key, version) in group {
            let key = buffer.split_to(key.len());
            let value = match parts {
                Parts::All => buffer.split_to(version.value_bytes() as usize),
                _ => Bytes::new(),
            };
            kvs.push(KeyValue {
                key,
                create_revision: version.create_revision(),
                mod_revision: version.main(),
                version: version.version(),
                value,
                lease: if parts == Parts::KeysOnly { 0 } else { version.lease() },
            });
        }
    }
    kvs
}

/// Copies one version out.
pub(crate) fn copy_one(version: Version<'_>) -> KeyValue {
    copy_all(&[(version.key(), version)], Parts::All).pop().expect("one hit gives one answer")
}
