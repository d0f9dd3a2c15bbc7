//! Ranges whose answers may be larger than anybody wants to hold: measured first, and then read a page at a time.
//!
//! **Contract.** [`Store::range_bounded`] gives the same answer as [`Store::range`] where holding it takes at most a bound, else a [`LargeRange`]:
//! how many keys and bytes it has, which is known from the key tree and the memtables without reading a value, and its pages. All of it is at one
//! revision, which is read like any other: nothing is pinned, so that whoever is slow costs nobody memory or disk. B1: the pages of an answer in key order, put
//! together, have exactly the keys and bytes that were measured, or one of them fails; a compaction that has passed the revision fails with `Compacted`.
//!
//! **Does not know** what a byte of an answer is: the caller says it of each version ([`SizeOf`]).
use super::operation::*;
use super::range::{self, Bound, BoundedRead, Extent, SizeOf};
use super::store::Store;
use crate::error::{Error, OperationError};
use bytes::Bytes;
use std::fmt;

/// An answer, or what is known of it.
#[derive(Debug)]
pub enum BoundedRange {
    /// All of it.
    Whole(RangeOutcome),
    /// It is larger than the bound.
    Large(LargeRange),
}

/// See the module.
#[derive(Clone)]
pub struct LargeRange {
    store: Store,
    /// Its revision is that of the answer.
    range: Range,
    /// The store's when it was measured.
    revision: i64,
    extent: Extent,
    size_of: SizeOf,
    /// First key that may be in the next page.
    from: Bytes,
    keys_left: u64,
}

impl Store {
    /// As [`Store::range`], but holds at most about `bytes_max` bytes, where a version takes `size_of` bytes of the answer.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub fn range_bounded(
        &self,
        range: &Range,
        bytes_max: u64,
        size_of: SizeOf,
    ) -> Result<BoundedRange, OperationError> {
        if range.range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let (view, main, revision) = self.readable_now(range.revision)?;
        let bound = Bound { bytes_max, size_of };
        Ok(match range::read_bounded(&view, range, main, revision, Some(bound))? {
            BoundedRead::Whole(outcome) => BoundedRange::Whole(outcome),
            BoundedRead::TooLarge(extent) => BoundedRange::Large(LargeRange {
                store: self.clone(),
                range: Range { revision: main, ..range.clone() },
                revision,
                extent,
                size_of,
                from: range.range.key.clone(),
                keys_left: extent.keys,
            }),
        })
    }
}

impl Store {
    /// The next keys of a range in key order, from `from` on, at `range.revision`: at most `keys_max` and at most about `bytes_max` bytes, but one key at
    /// least if there is any. Empty behind the last.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`; `Unreadable` if a place on disk is damaged.
    ///
    /// # Panics
    /// If the range is sorted by something else.
    pub fn range_page(
        &self,
        range: &Range,
        from: &[u8],
        keys_max: u64,
        bytes_max: u64,
        size_of: SizeOf,
    ) -> Result<Vec<KeyValue>, OperationError> {
        assert!(range::is_in_key_order(range), "a sorted answer has no pages");
        if keys_max == 0 {
            return Ok(Vec::new());
        }
        let (view, main) = self.readable(range.revision)?;
        range::read_page(&view, range, from, main, keys_max, Bound { bytes_max, size_of })
    }
}

impl fmt::Debug for LargeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LargeRange")
            .field("range", &self.range)
            .field("extent", &self.extent)
            .finish_non_exhaustive()
    }
}

impl LargeRange {
    /// The store that it is read from.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store's revision when it was measured: that of the answer's header.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// As in [`RangeOutcome`].
    pub fn count(&self) -> i64 {
        self.extent.count
    }

    /// As in [`RangeOutcome`].
    pub fn more(&self) -> bool {
        self.extent.more
    }

    /// Keys of the answer.
    pub fn keys_count(&self) -> u64 {
        self.extent.keys
    }

    /// Bytes that its keys take, without what the answer has beside them. Exact in key order; otherwise at most.
    pub fn bytes(&self) -> u64 {
        self.extent.bytes
    }

    /// Bytes that [`Self::read`] holds, answer included, at most.
    pub fn bytes_to_hold(&self) -> u64 {
        self.extent.bytes.saturating_add(self.extent.remembered_bytes)
    }

    /// True if it can be read by pages. What is sorted cannot.
    pub fn has_pages(&self) -> bool {
        range::is_in_key_order(&self.range)
    }

    /// The whole answer, held at once.
    ///
    /// # Errors
    /// As [`Store::range`], `Compacted` too if that has happened since it was measured.
    pub fn read(&self) -> Result<RangeOutcome, OperationError> {
        let outcome = self.store.range(&self.range)?;
        Ok(RangeOutcome { revision: self.revision, ..outcome })
    }

    /// The next page, of at most `bytes_max` bytes or one key; empty behind the last one.
    ///
    /// # Errors
    /// As [`Self::read`].
    ///
    /// # Panics
    /// If it has no pages.
    pub fn next_page(&mut self, bytes_max: u64) -> Result<Vec<KeyValue>, OperationError> {
        assert!(self.has_pages(), "a sorted answer has no pages");
        if self.keys_left == 0 {
            return Ok(Vec::new());
        }
        let (view, main) = self.store.readable(self.range.revision)?;
        let bound = Bound { bytes_max, size_of: self.size_of };
        let page = range::read_page(&view, &self.range, &self.from, main, self.keys_left, bound)?;
        // B1: what was measured at a revision is there at that revision.
        let Some(last) = page.last() else {
            let what = format!("{} keys less at revision {main} than were measured", self.keys_left);
            return Err(Error::Corruption { file: "the key tree".into(), offset: 0, what }.into());
        };
        self.from = key_after(&last.key);
        self.keys_left -= page.len() as u64;
        Ok(page)
    }
}
