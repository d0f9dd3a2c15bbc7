//! Range sums: how many keys of a range exist at a revision, and what their records' hashes add up to.
//!
//! **Contract.** A function of what a read of the range at that revision gives, and of nothing else: the same on all replicas with the same data, whatever
//! their trees look like. It is found without going over the range:
//!
//! ```text
//! at or above the state on disk:  sums of its trees − what the keys changed in memory were there + what they are at the revision
//! below it:                       sums of its trees − what the keys changed behind the revision are there + what they were at it
//! ```
//!
//! Of a change on disk the index says whether it created or deleted its key, which a count needs, and whether it is the first behind the revision, by which each
//! key is met once. Only those records are read, for their keys, from r segments as they lie there.
//!
//! **Choice.** Going over the range is another way to the same result, and the cheaper one where little is in it or much has changed. What each costs is
//! known beforehand, in *keys gone over*; finding it out costs a few reads, and of entries looked at what an eighth of a walk costs at most.
//!
//! **Failure.** What needs a damaged place fails, as a read does. A change that a walk need not read and that cannot be read costs the walk.
use super::found::Found;
use super::operation::KeyRange;
use super::store::Store;
use super::view_set::{Bounds, MemoryLanes, ViewSet};
use crate::base::record_hash::CanonicalRecord;
use crate::error::{Error, OperationError, Result};
use crate::memtable::Version;
use crate::revision_log::{Entry, ReadCosts};
use crate::tree::Aggregate;

/// Entries of an index that are looked at in the time of a key that is gone over.
const ENTRIES_PER_KEY: u64 = 8;
/// Keys gone over in the time of a read of the device.
const KEYS_PER_READ: u64 = 256;
/// Bytes read and checked in the time of a key that is gone over.
const BYTES_PER_KEY: u64 = 256;
/// Keys of a range for each one that is looked up in the tree.
const KEYS_PER_LOOKUP: u64 = 8;
/// Lookups that no range is too small for.
const LOOKUPS_MIN: u64 = 64;

/// What the keys of a range that exist at a revision add up to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RangeSum {
    /// How many they are.
    pub keys_count: u64,
    /// The sum modulo 2^64 of the hashes of their records (`base::record_hash`): equal for equal data, different for different data but by chance.
    pub hash_sum: u64,
}

/// How a range sum is found. The result is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "sim"), expect(dead_code, unreachable_pub, reason = "tests choose"))]
pub enum SumWay {
    /// As seems cheaper.
    Cheapest,
    /// By going over the range.
    Walk,
    /// By what has changed; an error where that cannot be read.
    Changes,
}

/// What is to be added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Count,
    /// Hashes too.
    Sum,
}

impl RangeSum {
    fn add(&mut self, record_hash: u64) {
        self.keys_count = self.keys_count.wrapping_add(1);
        self.hash_sum = self.hash_sum.wrapping_add(record_hash);
    }

    fn remove(&mut self, record_hash: u64) {
        self.keys_count = self.keys_count.wrapping_sub(1);
        self.hash_sum = self.hash_sum.wrapping_sub(record_hash);
    }

    /// False where more was taken away than was there: what it was made of does not belong together.
    fn is_possible(&self) -> bool {
        self.keys_count <= i64::MAX as u64
    }
}

impl From<Aggregate> for RangeSum {
    fn from(sum: Aggregate) -> Self {
        Self { keys_count: sum.live_keys, hash_sum: sum.hash_sum }
    }
}

/// From a key on, up to and without an end if there is one; not empty.
type Span<'a> = (&'a [u8], Option<&'a [u8]>);

impl Store {
    /// What the keys of a range that exist at a main revision add up to; 0 or less: at the current one. The result comes with the revision that was read.
    ///
    /// # Errors
    /// `EmptyKey`, `Compacted`, `FutureRevision`; `Unreadable` if a place on disk is damaged that is needed for it.
    pub fn range_sum(&self, range: &KeyRange, revision: i64) -> Result<(RangeSum, i64), OperationError> {
        let (sums, main) = self.range_sums(std::slice::from_ref(range), revision)?;
        Ok((sums.into_iter().next().unwrap_or_default(), main))
    }

    /// [`Self::range_sum`] of many ranges, in their order. What has changed is looked at once for all of them if they ascend and do not overlap.
    ///
    /// # Errors
    /// As [`Self::range_sum`], of any of them.
    pub fn range_sums(
        &self,
        ranges: &[KeyRange],
        revision: i64,
    ) -> Result<(Vec<RangeSum>, i64), OperationError> {
        self.sums_by(ranges, revision, Wanted::Sum, SumWay::Cheapest)
    }

    /// [`Self::range_sums`] in a certain way, and the counts alone in the same way. For tests: no way shows in an answer.
    ///
    /// # Errors
    /// As [`Self::range_sums`].
    #[cfg(feature = "sim")]
    pub fn range_sums_by(
        &self,
        ranges: &[KeyRange],
        revision: i64,
        way: SumWay,
    ) -> Result<Vec<(RangeSum, u64)>, OperationError> {
        let (counts, _) = self.sums_by(ranges, revision, Wanted::Count, way)?;
        let (sums, _) = self.sums_by(ranges, revision, Wanted::Sum, way)?;
        Ok(sums.into_iter().zip(counts.into_iter().map(|count| count.keys_count)).collect())
    }

    fn sums_by(
        &self,
        ranges: &[KeyRange],
        revision: i64,
        wanted: Wanted,
        way: SumWay,
    ) -> Result<(Vec<RangeSum>, i64), OperationError> {
        if ranges.iter().any(|range| range.key.is_empty()) {
            return Err(OperationError::EmptyKey);
        }
        let (view, main) = self.readable(revision)?;
        let bounds: Vec<_> = ranges.iter().map(KeyRange::bounds).collect();
        Ok((view.sums_by(&bounds, main, wanted, way)?, main))
    }
}

impl ViewSet {
    /// How many keys of a range exist at `main`.
    pub(crate) fn count(&self, bounds: Bounds<'_>, main: i64) -> Result<i64, OperationError> {
        let sum = self.sum_by(bounds, main, Wanted::Count, SumWay::Cheapest)?;
        Ok(i64::try_from(sum.keys_count).unwrap_or(i64::MAX))
    }

    /// What the keys of each range that exist at `main` add up to.
    pub(super) fn sums(&self, bounds: &[Bounds<'_>], main: i64) -> Result<Vec<RangeSum>, OperationError> {
        self.sums_by(bounds, main, Wanted::Sum, SumWay::Cheapest)
    }

    fn sums_by(
        &self,
        bounds: &[Bounds<'_>],
        main: i64,
        wanted: Wanted,
        way: SumWay,
    ) -> Result<Vec<RangeSum>, OperationError> {
        if bounds.len() > 1
            && way != SumWay::Walk
            && main < self.disk.revision()
            && let Some(spans) = ascending_spans(bounds)
            && let Ok(Some(sums)) = self.sums_below(&spans, main, wanted, way)
            && sums.iter().all(RangeSum::is_possible)
        {
            return Ok(sums);
        }
        bounds.iter().map(|bounds| self.sum_by(*bounds, main, wanted, way)).collect()
    }

    fn sum_by(
        &self,
        bounds: Bounds<'_>,
        main: i64,
        wanted: Wanted,
        way: SumWay,
    ) -> Result<RangeSum, OperationError> {
        let span = match bounds {
            Bounds::From(from, end) if end.is_none_or(|end| from < end) => (from, end),
            Bounds::From(..) => return Ok(RangeSum::default()),
            Bounds::Key(_) => return self.walk(bounds, main, wanted),
        };
        if way == SumWay::Walk {
            return self.walk(bounds, main, wanted);
        }
        let found = match main < self.disk.revision() {
            true => self.sums_below(&[span], main, wanted, way).map(|sums| sums?.into_iter().next()),
            false => self.sum_above(span, main, wanted, way),
        };
        match (found, way) {
            (Ok(Some(sum)), _) if sum.is_possible() => Ok(sum),
            (Err(Error::Corruption { .. } | Error::Io(_)) | Ok(_), SumWay::Cheapest) => {
                self.walk(bounds, main, wanted)
            }
            (Ok(_), _) => Err(contradiction("changes of a range that its sums do not have").into()),
            (Err(error), _) => Err(error.into()),
        }
    }

    fn walk(&self, bounds: Bounds<'_>, main: i64, wanted: Wanted) -> Result<RangeSum, OperationError> {
        let mut sum = RangeSum::default();
        self.scan(bounds, main, |key, found| {
            sum.add(if wanted == Wanted::Sum { found.record_hash(key) } else { 0 });
            Ok(true)
        })?;
        Ok(sum)
    }

    /// At a revision that the state on disk ends with, or a later one. None if going over the range is cheaper.
    fn sum_above(
        &self,
        (from, end): Span<'_>,
        main: i64,
        wanted: Wanted,
        way: SumWay,
    ) -> Result<Option<RangeSum>> {
        let mut sum = RangeSum::from(self.disk.sum(from, end)?);
        let mut lookups_left = match way {
            SumWay::Cheapest => LOOKUPS_MIN + sum.keys_count / KEYS_PER_LOOKUP,
            SumWay::Walk | SumWay::Changes => u64::MAX,
        };
        let mut memory = MemoryLanes::new(self, from, end, main);
        while memory.key().is_some() {
            let (key, found, oldest) = memory.take_with_oldest();
            let Some(found) = found else { continue };
            match (did_exist_before(&oldest), wanted) {
                (false, _) => {}
                (true, Wanted::Count) => sum.remove(0),
                (true, Wanted::Sum) if lookups_left == 0 => return Ok(None),
                (true, Wanted::Sum) => {
                    lookups_left -= 1;
                    let before = self.disk.newest(key)?.filter(|before| before.version > 0);
                    sum.remove(before.ok_or_else(|| contradiction("a key that it lacks"))?.record_hash);
                }
            }
            if !found.is_tombstone() {
                sum.add(if wanted == Wanted::Sum { Found::Memory(found).record_hash(key) } else { 0 });
            }
        }
        Ok(Some(sum))
    }

    /// At a revision below that of the state on disk, of ascending spans. None if going over them is cheaper.
    fn sums_below(
        &self,
        spans: &[Span<'_>],
        main: i64,
        wanted: Wanted,
        way: SumWay,
    ) -> Result<Option<Vec<RangeSum>>> {
        let sum_now = |&(from, end): &Span<'_>| self.disk.sum(from, end).map(RangeSum::from);
        let mut sums = spans.iter().map(sum_now).collect::<Result<Vec<_>>>()?;
        let is_wanted = |entry: &Entry| match wanted {
            Wanted::Count => entry.created || entry.tombstone,
            Wanted::Sum => is_first_behind(entry, main),
        };
        let keys = sums.iter().fold(0_u64, |keys, sum| keys.saturating_add(sum.keys_count));
        if way == SumWay::Cheapest && !self.are_changes_cheaper(main, &is_wanted, keys)? {
            return Ok(None);
        }
        self.disk.for_each_key_changed(main, &is_wanted, &mut |entry, key| {
            let behind = spans.partition_point(|(from, _)| *from <= key);
            let Some(at) = behind.checked_sub(1) else { return Ok(()) };
            if spans[at].1.is_some_and(|end| end <= key) {
                return Ok(());
            }
            let sum = &mut sums[at];
            match wanted {
                Wanted::Count if entry.created => sum.remove(0),
                // What deletes a key with nothing before it was loaded so.
                Wanted::Count if entry.prev.is_some() => sum.add(0),
                Wanted::Count => {}
                Wanted::Sum => self.take_back(entry, key, sum)?,
            }
            Ok(())
        })?;
        Ok(Some(sums))
    }

    /// Makes of what a key is in the state on disk what it was before `entry`, its first change behind a revision.
    fn take_back(&self, entry: &Entry, key: &[u8], sum: &mut RangeSum) -> Result<()> {
        if let Some(now) = self.disk.newest(key)?.filter(|now| now.version > 0) {
            sum.remove(now.record_hash);
        }
        let Some(prev) = entry.prev.filter(|_| !entry.created) else { return Ok(()) };
        let before = self.disk.record(prev.revision)?.filter(|before| before.version > 0);
        sum.add(before.ok_or_else(|| contradiction("a change of a key that was not there"))?.hash());
        Ok(())
    }

    /// True if the keys of the wanted changes behind `main` are read sooner than `keys` are gone over.
    fn are_changes_cheaper(&self, main: i64, is_wanted: &dyn Fn(&Entry) -> bool, keys: u64) -> Result<bool> {
        // No change is read in the time of so few.
        if keys < KEYS_PER_READ || self.disk.changes_behind(main)? > keys {
            return Ok(false);
        }
        let goes_on = |costs: &ReadCosts| keys_of(costs) <= keys;
        Ok(self.disk.costs_of_changes(main, is_wanted, &goes_on)?.is_some())
    }
}

/// True if a key existed on disk, by its oldest version in memory.
pub(super) fn did_exist_before(oldest: &Version<'_>) -> bool {
    oldest.prev().is_some() && (oldest.is_tombstone() || oldest.version() > 1)
}

/// The ranges, if each is behind the one before.
fn ascending_spans<'a>(bounds: &[Bounds<'a>]) -> Option<Vec<Span<'a>>> {
    let span = |bounds: &Bounds<'a>| match *bounds {
        Bounds::From(from, end) if end.is_none_or(|end| from < end) => Some((from, end)),
        _ => None,
    };
    let spans: Vec<_> = bounds.iter().map(span).collect::<Option<_>>()?;
    spans.is_sorted_by(|(_, end), (from, _)| end.is_some_and(|end| end <= *from)).then_some(spans)
}

/// How many keys are gone over in the time that this takes.
fn keys_of(costs: &ReadCosts) -> u64 {
    let ReadCosts { entries, records, reads, bytes } = *costs;
    entries / ENTRIES_PER_KEY + records + reads * KEYS_PER_READ + bytes / BYTES_PER_KEY
}

/// True for the first change of its key behind `main`.
fn is_first_behind(entry: &Entry, main: i64) -> bool {
    entry.prev.is_none_or(|prev| prev.revision.main <= main)
}

fn contradiction(what: &str) -> Error {
    Error::Corruption { file: "the key tree".into(), offset: 0, what: what.into() }
}

impl Found<'_> {
    /// Hash of the record of this version of `key`.
    pub(super) fn record_hash(&self, key: &[u8]) -> u64 {
        match self {
            Found::Memory(version) => CanonicalRecord {
                key,
                revision: version.revision(),
                create_revision: version.create_revision(),
                version: version.version(),
                lease: version.lease(),
                value: version.value(),
            }
            .hash(),
            Found::Disk(version) => version.hash(key),
        }
    }
}
