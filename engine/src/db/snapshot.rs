//! Reading at one revision, page by page.
use crate::disk_state::LeavesAhead;
use crate::error::{Error, Result};
use crate::mvcc::{KeyRange, KeyValue, Range, RangeSum, Scan, Store, key_after, prefix_end};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};

/// Keys are fetched in pages of this many, so that a long iteration holds little memory.
const PAGE_KEYS: usize = 256;

/// The keys as they were at one revision. Cheap to clone; pins no files and blocks nobody. Once a compaction has
/// passed its revision, reads fail with `Compacted`.
#[derive(Clone)]
pub struct Snapshot {
    store: Store,
    revision: i64,
}

impl Snapshot {
    pub(super) fn new(store: Store, revision: i64) -> Self {
        Self { store, revision }
    }

    /// The revision that is read.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// One key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<KeyValue>> {
        let range = KeyRange { key: Bytes::copy_from_slice(key.as_ref()), end: Bytes::new() };
        let request = Range { range, revision: self.revision, limit: 1, ..Range::default() };
        Ok(self.store.range(&request)?.kvs.into_iter().next())
    }

    /// The keys of a range in key order; `.reversed()` for the other way.
    pub fn range<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> RangeReader {
        let lower = match bounds.start_bound() {
            Bound::Included(key) => Bytes::copy_from_slice(key.as_ref()),
            Bound::Excluded(key) => key_after(key.as_ref()),
            Bound::Unbounded => Bytes::new(),
        };
        let upper = match bounds.end_bound() {
            Bound::Included(key) => Some(key_after(key.as_ref())),
            Bound::Excluded(key) => Some(Bytes::copy_from_slice(key.as_ref())),
            Bound::Unbounded => None,
        };
        RangeReader {
            store: self.store.clone(),
            scan: Scan { lower, upper, revision: self.revision, reverse: false, limit: 0, keys_only: false },
            ahead: None,
            remaining: usize::MAX,
            page: Vec::new().into_iter(),
            end: false,
            failed: None,
        }
    }

    /// The keys that start with `prefix`.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> RangeReader {
        let prefix = prefix.as_ref();
        let mut reader = self.range::<&[u8]>(..);
        reader.scan.lower = Bytes::copy_from_slice(prefix);
        reader.scan.upper = prefix_end(prefix);
        reader
    }

    /// How many keys a range holds. Found from the sums in inner pages and from what has changed since; keys are gone over only where that is cheaper.
    pub fn count<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> Result<u64> {
        let Some(range) = self.key_range(bounds) else { return Ok(0) };
        let request = Range { range, revision: self.revision, count_only: true, ..Range::default() };
        Ok(u64::try_from(self.store.range(&request)?.count).unwrap_or(0))
    }

    /// What the keys of a range add up to: their number, and the sum modulo 2^64 of the hashes of key, value, revisions, version and lease of each. Equal in
    /// any two databases that were given the same writes in the same order; found as [`Self::count`] is.
    pub fn sum<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> Result<RangeSum> {
        match self.key_range(bounds) {
            Some(range) => Ok(self.store.range_sum(&range, self.revision)?.0),
            None => Ok(RangeSum::default()),
        }
    }

    /// As etcd's requests have it; none if it is empty.
    fn key_range<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> Option<KeyRange> {
        let scan = self.range(bounds).scan;
        if scan.upper.as_ref().is_some_and(|upper| *upper <= scan.lower) {
            return None;
        }
        // An empty lower bound is the smallest key there can be, and etcd's ranges have no empty key.
        let key = if scan.lower.is_empty() { Bytes::from_static(b"\0") } else { scan.lower };
        // What ends at or before it is empty too.
        if scan.upper.as_ref().is_some_and(|upper| *upper <= key) {
            return None;
        }
        Some(KeyRange { key, end: scan.upper.unwrap_or(Bytes::from_static(b"\0")) })
    }
}

/// Iterates over the keys of a range. After an error it stays failed: it never skips a key silently.
pub struct RangeReader {
    store: Store,
    scan: Scan,
    /// From page to page; none before the first.
    ahead: Option<LeavesAhead>,
    remaining: usize,
    page: std::vec::IntoIter<KeyValue>,
    end: bool,
    failed: Option<Error>,
}

impl RangeReader {
    /// Stops after `keys` keys.
    pub fn limit(mut self, keys: usize) -> Self {
        self.remaining = keys;
        self
    }

    /// Leaves values out.
    pub fn keys_only(mut self) -> Self {
        self.scan.keys_only = true;
        self
    }

    /// Largest key first. To be called before the first `next`.
    pub fn reversed(mut self) -> Self {
        self.scan.reverse = true;
        self
    }

    fn next_page(&mut self) -> Result<()> {
        self.scan.limit = PAGE_KEYS.min(self.remaining);
        let ahead = self.ahead.get_or_insert_with(|| self.scan.leaves_ahead());
        let page = self.store.scan_on(&self.scan, ahead)?;
        self.end = page.len() < self.scan.limit;
        if let Some(last) = page.last() {
            if self.scan.reverse {
                self.scan.upper = Some(last.key.clone());
            } else {
                self.scan.lower = key_after(&last.key);
            }
        }
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for RangeReader {
    type Item = Result<KeyValue>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = &self.failed {
            return Some(Err(error.clone()));
        }
        if self.remaining == 0 {
            return None;
        }
        if self.page.len() == 0 {
            if self.end {
                return None;
            }
            if let Err(error) = self.next_page() {
                self.failed = Some(error.clone());
                return Some(Err(error));
            }
        }
        let kv = self.page.next()?;
        self.remaining -= 1;
        Some(Ok(kv))
    }
}
