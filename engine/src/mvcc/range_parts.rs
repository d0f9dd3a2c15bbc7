//! Ranges for comparison: divided into parts of about as many keys, each with its sum, and at the end key by key.
//!
//! **Contract.** Two replicas with equal sums of a range have, but by chance, the same keys there. Where sums differ, the range is divided by one of them
//! ([`Store::range_parts`]), both are asked for the sums of the parts, and so on with each part that differs, until it is small enough to be listed
//! ([`Store::fingerprints`]): O(log keys) steps for each key that differs.
//!
//! Where a range is divided does not matter to what its parts add up to. So it is done by a look at inner pages and memtables, which need not be exact; only where
//! that leaves nearly everything in one part are keys gone over, [`WALKED_KEYS_MAX`] for each part at most.
use super::found::{Hit, Parts, copy_all};
use super::operation::{KeyRange, KeyValue};
use super::range_sum::{RangeSum, did_exist_before};
use super::store::Store;
use super::view_set::{Bounds, MemoryLanes, ViewSet};
use crate::error::OperationError;
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// Most parts of a range.
pub const PARTS_MAX: usize = 64;
/// Pages of the key tree that are looked at to divide a range.
const PAGES_MAX: usize = 64;
/// Keys that are gone over for each part where the trees do not say how to divide a range.
const WALKED_KEYS_MAX: u64 = 256;

/// Bytes of the keys between parts, unless a single one has more: an answer that has them all stays small.
const FENCES_BYTES_MAX: usize = 256 << 10;

/// A part of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangePart {
    /// Which keys.
    pub range: KeyRange,
    /// What they add up to.
    pub sum: RangeSum,
}

/// A key at a revision, without its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyFingerprint {
    /// The key and what is said of it; the value is empty.
    pub kv: KeyValue,
    /// Bytes of the value.
    pub value_bytes: u64,
    /// XXH3-64 of the value, seed 0.
    pub value_hash: u64,
    /// What it counts in a [`RangeSum`].
    pub record_hash: u64,
}

/// The first keys of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyList {
    /// In key order.
    pub keys: Vec<KeyFingerprint>,
    /// There are others behind them.
    pub more: bool,
}

impl Store {
    /// Divides a range into at most `parts_max` parts, and at most [`PARTS_MAX`], in key order, without a gap; the first begins where the range
    /// does and the last ends there. Of two keys or more no part has all. The result comes with the main revision that was read.
    ///
    /// # Errors
    /// As [`Store::range_sum`].
    pub fn range_parts(
        &self,
        range: &KeyRange,
        revision: i64,
        parts_max: usize,
    ) -> Result<(Vec<RangePart>, i64), OperationError> {
        if range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let (view, main) = self.readable(revision)?;
        Ok((view.parts(range, main, parts_max.min(PARTS_MAX))?, main))
    }

    /// The first keys of a range at a main revision: at most `keys_max`, and as many as have `bytes_max` bytes, values included, but one at least if there
    /// is one. The result comes with the main revision that was read.
    ///
    /// # Errors
    /// As [`Store::range`]; a damaged value fails all of it.
    pub fn fingerprints(
        &self,
        range: &KeyRange,
        revision: i64,
        keys_max: usize,
        bytes_max: u64,
    ) -> Result<(KeyList, i64), OperationError> {
        if range.key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
        let (view, main) = self.readable(revision)?;
        let (mut hits, mut hashes, mut bytes, mut more) = (Vec::new(), Vec::new(), 0_u64, false);
        view.scan(range.bounds(), main, |key, found| {
            bytes = bytes.saturating_add(key.len() as u64 + u64::from(found.value_bytes()));
            more = !hits.is_empty() && (hits.len() >= keys_max || bytes > bytes_max);
            if more {
                return Ok(false);
            }
            hashes.push(found.record_hash(key));
            hits.push(Hit::new(key, found));
            Ok(true)
        })?;
        let kvs = copy_all(&view, hits, Parts::All)?.into_iter();
        let fingerprint = |(mut kv, record_hash): (KeyValue, u64)| {
            let value = std::mem::take(&mut kv.value);
            KeyFingerprint { value_bytes: value.len() as u64, value_hash: xxh3_64(&value), kv, record_hash }
        };
        Ok((KeyList { keys: kvs.zip(hashes).map(fingerprint).collect(), more }, main))
    }
}

impl ViewSet {
    fn parts(&self, range: &KeyRange, main: i64, parts_max: usize) -> Result<Vec<RangePart>, OperationError> {
        let bounds = range.bounds();
        let whole = self.sums(&[bounds], main)?.into_iter().next().unwrap_or_default();
        let Bounds::From(from, end) = bounds else { return Ok(vec![part(range.clone(), whole)]) };
        if parts_max < 2 || whole.keys_count < 2 {
            return Ok(vec![part(range.clone(), whole)]);
        }
        let guessed = self.guess_fences((from, end), main, parts_max, whole.keys_count)?;
        let parts = self.divided(range, &guessed, main)?;
        let most_keys = parts.iter().map(|part| part.sum.keys_count).max().unwrap_or(0);
        // An eighth less each time is still logarithmic.
        if most_keys.saturating_mul(8) <= whole.keys_count.saturating_mul(7) {
            return Ok(parts);
        }
        let walked = self.walked_fences(bounds, main, parts_max, whole.keys_count)?;
        self.divided(range, &walked, main)
    }

    fn divided(
        &self,
        range: &KeyRange,
        fences: &[Bytes],
        main: i64,
    ) -> Result<Vec<RangePart>, OperationError> {
        let from = std::iter::once(&range.key).chain(fences);
        let end = fences.iter().chain(std::iter::once(&range.end));
        let ranges: Vec<_> =
            from.zip(end).map(|(key, end)| KeyRange { key: key.clone(), end: end.clone() }).collect();
        let sums = self.sums(&ranges.iter().map(KeyRange::bounds).collect::<Vec<_>>(), main)?;
        Ok(ranges.into_iter().zip(sums).map(|(range, sum)| part(range, sum)).collect())
    }

    /// Keys inside the range between which there are about as many of its `keys`.
    fn guess_fences(
        &self,
        (from, end): (&[u8], Option<&[u8]>),
        main: i64,
        parts_max: usize,
        keys: u64,
    ) -> Result<Vec<Bytes>, OperationError> {
        let parts = parts_max as u64;
        let pieces = self.disk.pieces((from, end), keys / (2 * parts), PAGES_MAX)?;
        let mut pieces = pieces.into_iter().peekable();
        let mut memory = MemoryLanes::new(self, from, end, main);
        let mut fences = Fences { keys: Vec::new(), bytes: 0, count_max: parts_max - 1 };
        let mut before = 0_i64;
        loop {
            // Of both what comes first, with what it adds to what lies before the next.
            let is_piece = match (pieces.peek(), memory.key()) {
                (None, None) => return Ok(fences.keys),
                (Some(piece), Some(key)) => &piece.from[..] <= key,
                (piece, _) => piece.is_some(),
            };
            let mut consider = |key: &[u8]| {
                let share = keys.saturating_mul(fences.keys.len() as u64 + 1) / parts;
                let is_inside = key > from && fences.keys.last().is_none_or(|last| key > &last[..]);
                if is_inside && before > 0 && before as u64 >= share.max(1) {
                    fences.add(key);
                }
            };
            if is_piece {
                let piece = pieces.next().expect("it was looked at");
                consider(&piece.from);
                before = before.saturating_add(i64::try_from(piece.live_keys).unwrap_or(0));
            } else {
                consider(memory.key().expect("it was looked at"));
                let (_, found, oldest) = memory.take_with_oldest();
                if let Some(found) = found {
                    before += i64::from(!found.is_tombstone()) - i64::from(did_exist_before(&oldest));
                }
            }
        }
    }

    /// Likewise, from the beginning of the range on, by going over its keys.
    fn walked_fences(
        &self,
        bounds: Bounds<'_>,
        main: i64,
        parts_max: usize,
        keys: u64,
    ) -> Result<Vec<Bytes>, OperationError> {
        let keys_per_part = keys.div_ceil(parts_max as u64).clamp(1, WALKED_KEYS_MAX);
        let mut fences = Fences { keys: Vec::new(), bytes: 0, count_max: parts_max - 1 };
        let mut walked = 0_u64;
        self.scan(bounds, main, |key, _| {
            let is_next = walked > 0 && walked.is_multiple_of(keys_per_part);
            walked += 1;
            Ok(!is_next || fences.add(key))
        })?;
        Ok(fences.keys)
    }
}

/// Keys between parts, as many as there may be.
struct Fences {
    keys: Vec<Bytes>,
    bytes: usize,
    count_max: usize,
}

impl Fences {
    /// Adds one if there is room for it, and says whether there may be room for another one.
    fn add(&mut self, key: &[u8]) -> bool {
        let bytes = self.bytes + key.len();
        let has_room =
            self.keys.len() < self.count_max && (self.keys.is_empty() || bytes <= FENCES_BYTES_MAX);
        if has_room {
            self.bytes = bytes;
            self.keys.push(Bytes::copy_from_slice(key));
        }
        has_room && self.keys.len() < self.count_max
    }
}

fn part(range: KeyRange, sum: RangeSum) -> RangePart {
    RangePart { range, sum }
}
