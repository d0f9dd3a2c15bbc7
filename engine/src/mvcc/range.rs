//! A range read with etcd's options: limit, order, filters, keys only, count only.
//!
//! Works on one view set at one revision, for reads from outside and inside transactions. Nothing is copied until it
//! is certain to be part of the answer. What is remembered until then is bounded where the answer is: of a sorted answer with a limit those
//! that cannot be in it any more are dropped on the way, and a read with a bound ([`read_bounded`]) stops remembering as soon as it is above that.
//!
//! Source of the rules: `server/etcdserver/txn/range.go` of etcd 3.7, quirks included:
//! - the count is that of all keys in the range, before limit and filters;
//! - only the natural order without filters is read up to the limit; everything else is read in full, filtered, sorted,
//!   then cut;
//! - a target other than the key with order NONE sorts ascending, but only what was read, limit + 1 keys.
use super::found::{Found, Hit, Parts, copy_all};
use super::operation::*;
use super::view_set::{Bounds, ViewSet};
use crate::error::OperationError;
use std::cmp::Reverse;

/// What remembering a key costs beside the key: the place of its version, and what the allocation of the key takes.
const HIT_BYTES: u64 = 160;
/// Keys that are remembered beyond twice the limit before those that cannot be in the answer are dropped: sorting seldom, and much at once.
const PRUNE_KEYS: usize = 1024;

/// What of a version goes into an answer, but for the value itself.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names are those of `KeyValue`")]
pub struct Outline<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    /// 0 where values are left out.
    pub value_bytes: u32,
    /// 0 where leases are left out.
    pub lease: i64,
}

/// How many bytes a version takes in an answer.
pub type SizeOf = fn(&Outline<'_>) -> u64;

/// How much a read may hold.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) bytes_max: u64,
    pub(crate) size_of: SizeOf,
}

/// What a read with a bound found.
pub(crate) enum BoundedRead {
    /// The answer.
    Whole(RangeOutcome),
    /// How large it is.
    TooLarge(Extent),
}

/// How large an answer is.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Extent {
    /// Keys in it.
    pub(crate) keys: u64,
    /// Bytes that they take there. In key order exact, else at most.
    pub(crate) bytes: u64,
    /// What a read that holds the answer has to remember beside it, at most.
    pub(crate) remembered_bytes: u64,
    /// As in [`RangeOutcome`].
    pub(crate) count: i64,
    /// As in [`RangeOutcome`].
    pub(crate) more: bool,
}

/// Reads `range` at main revision `main`; `revision` goes into the answer.
pub(crate) fn read(
    view: &ViewSet,
    range: &Range,
    main: i64,
    revision: i64,
) -> Result<RangeOutcome, OperationError> {
    match read_bounded(view, range, main, revision, None)? {
        BoundedRead::Whole(outcome) => Ok(outcome),
        BoundedRead::TooLarge(_) => unreachable!("nothing is too large without a bound"),
    }
}

/// As [`read`]. Where the answer, or what has to be remembered for it, is above the bound, the rest is only measured, which reads no value from disk but
/// where it sorts by them.
pub(crate) fn read_bounded(
    view: &ViewSet,
    range: &Range,
    main: i64,
    revision: i64,
    bound: Option<Bound>,
) -> Result<BoundedRead, OperationError> {
    let bounds = range.range.bounds();
    if range.count_only {
        let count = view.count(bounds, main)?;
        return Ok(BoundedRead::Whole(RangeOutcome { revision, count, ..RangeOutcome::default() }));
    }
    let limit = usize::try_from(range.limit).unwrap_or(0);
    let keys_max = if limit > 0 { limit } else { usize::MAX };
    let parts = parts_of(range);
    let passed_max = if is_read_up_to_the_limit(range) { keys_max.saturating_add(1) } else { usize::MAX };
    let kept_max = keys_max.saturating_mul(2).saturating_add(PRUNE_KEYS);
    let in_key_order = is_in_key_order(range);
    let mut kept = Vec::new();
    let mut extent = Extent::default();
    let mut is_too_large = false;
    let mut visited = 0;
    let mut passed = 0_usize;
    view.scan(bounds, main, |key, found| {
        visited += 1;
        if !passes(range, &found) {
            return Ok(true);
        }
        passed += 1;
        // In key order, what comes behind the limit is only counted.
        if in_key_order && passed > keys_max {
            return Ok(passed < passed_max);
        }
        if let Some(bound) = bound {
            extent.bytes += (bound.size_of)(&outline(key, &found, parts));
            extent.remembered_bytes += remembered_bytes(range, key, &found);
        }
        if is_too_large {
            return Ok(passed < passed_max);
        }
        kept.push(Hit::new(key, found));
        let is_above = |extent: &Extent| {
            let answer_bytes = if in_key_order { extent.bytes } else { 0 };
            bound.is_some_and(|bound| extent.remembered_bytes.saturating_add(answer_bytes) > bound.bytes_max)
        };
        // At least as many as stay are dropped each time, so that sorting again and again costs little.
        if kept.len() >= kept_max || (is_above(&extent) && kept.len() / 2 >= keys_max) {
            sort(view, range, &mut kept)?;
            kept.truncate(keys_max);
            extent.remembered_bytes =
                kept.iter().map(|hit| remembered_bytes(range, hit.key(), &hit.found)).sum();
        }
        if is_above(&extent) {
            is_too_large = true;
            kept = Vec::new();
        }
        Ok(passed < passed_max)
    })?;
    // The scan ended early: what it did not visit is counted, not read.
    extent.count = if passed < passed_max { visited } else { view.count(bounds, main)? };
    extent.more = passed > keys_max;
    extent.keys = passed.min(keys_max) as u64;
    if !is_too_large {
        sort(view, range, &mut kept)?;
        kept.truncate(keys_max);
        if let Some(bound) = bound {
            extent.bytes =
                kept.iter().map(|hit| (bound.size_of)(&outline(hit.key(), &hit.found, parts))).sum();
            is_too_large = extent.remembered_bytes.saturating_add(extent.bytes) > bound.bytes_max;
        }
    }
    if is_too_large {
        return Ok(BoundedRead::TooLarge(extent));
    }
    let kvs = copy_all(view, kept, parts)?;
    Ok(BoundedRead::Whole(RangeOutcome { revision, kvs, more: extent.more, count: extent.count }))
}

/// The next keys of an answer in key order, from `from` on, which need not exist: at least one if there is any, then as many as take `bytes_max`, and
/// at most `keys_max`.
pub(crate) fn read_page(
    view: &ViewSet,
    range: &Range,
    from: &[u8],
    main: i64,
    keys_max: u64,
    bound: Bound,
) -> Result<Vec<KeyValue>, OperationError> {
    debug_assert!(is_in_key_order(range), "a page is the next of an order");
    let bounds = match range.range.bounds() {
        Bounds::Key(key) => Bounds::Key(key),
        Bounds::From(_, end) => Bounds::From(from, end),
    };
    let parts = parts_of(range);
    let mut kept = Vec::new();
    let mut bytes = 0;
    view.scan(bounds, main, |key, found| {
        if !passes(range, &found) {
            return Ok(true);
        }
        bytes += (bound.size_of)(&outline(key, &found, parts));
        if !kept.is_empty() && bytes > bound.bytes_max {
            return Ok(false);
        }
        kept.push(Hit::new(key, found));
        Ok((kept.len() as u64) < keys_max)
    })?;
    copy_all(view, kept, parts)
}

/// True if the answer's order is that of a scan.
pub(crate) fn is_in_key_order(range: &Range) -> bool {
    range.sort_target == SortTarget::Key && range.sort_order != SortOrder::Descend
}

/// True if etcd reads only limit + 1 keys, whatever it sorts them by.
fn is_read_up_to_the_limit(range: &Range) -> bool {
    range.limit > 0 && (range.sort_order == SortOrder::None || is_in_key_order(range)) && !is_filtered(range)
}

fn parts_of(range: &Range) -> Parts {
    match (range.keys_only, range.sort_target) {
        (false, _) => Parts::All,
        (true, SortTarget::Value) => Parts::KeysAndLease,
        (true, _) => Parts::KeysOnly,
    }
}

fn outline<'k>(key: &'k [u8], found: &Found<'_>, parts: Parts) -> Outline<'k> {
    Outline {
        key,
        create_revision: found.create_revision(),
        mod_revision: found.main(),
        version: found.version(),
        value_bytes: if parts == Parts::All { found.value_bytes() } else { 0 },
        lease: if parts == Parts::KeysOnly { 0 } else { found.lease() },
    }
}

/// Sorting by values has them all at hand.
fn remembered_bytes(range: &Range, key: &[u8], found: &Found<'_>) -> u64 {
    let value_bytes = if range.sort_target == SortTarget::Value { found.value_bytes() } else { 0 };
    HIT_BYTES + key.len() as u64 + u64::from(value_bytes)
}

fn is_filtered(range: &Range) -> bool {
    range.min_mod_revision != 0
        || range.max_mod_revision != 0
        || range.min_create_revision != 0
        || range.max_create_revision != 0
}

fn passes(range: &Range, found: &Found<'_>) -> bool {
    let (modified, created) = (found.main(), found.create_revision());
    (range.max_mod_revision == 0 || modified <= range.max_mod_revision)
        && (range.min_mod_revision == 0 || modified >= range.min_mod_revision)
        && (range.max_create_revision == 0 || created <= range.max_create_revision)
        && (range.min_create_revision == 0 || created >= range.min_create_revision)
}

fn sort(view: &ViewSet, range: &Range, hits: &mut [Hit<'_>]) -> Result<(), OperationError> {
    let descending = range.sort_order == SortOrder::Descend;
    let number = |hit: &Hit<'_>| match range.sort_target {
        SortTarget::Version => hit.found.version(),
        SortTarget::Create => hit.found.create_revision(),
        _ => hit.found.main(),
    };
    match (range.sort_target, descending) {
        // The scan came in key order, and nothing was dropped on the way.
        (SortTarget::Key, false) => {}
        (SortTarget::Key, true) => hits.sort_by(|left, right| right.key().cmp(left.key())),
        (SortTarget::Value, _) => sort_by_value(view, hits, descending)?,
        (_, false) => hits.sort_by_key(number),
        (_, true) => hits.sort_by_key(|hit| Reverse(number(hit))),
    }
    Ok(())
}

/// Values on disk are read first, all together.
fn sort_by_value(view: &ViewSet, hits: &mut [Hit<'_>], descending: bool) -> Result<(), OperationError> {
    let on_disk = hits.iter().filter_map(|hit| match &hit.found {
        Found::Disk(version) => Some(version),
        Found::Memory(_) => None,
    });
    let mut values = view.disk.values(&on_disk.collect::<Vec<_>>())?.into_iter();
    for hit in hits.iter_mut() {
        if let Found::Disk(version) = &mut hit.found {
            version.value = values.next();
        }
    }
    if descending {
        hits.sort_by(|left, right| value(right).cmp(value(left)));
    } else {
        hits.sort_by(|left, right| value(left).cmp(value(right)));
    }
    Ok(())
}

/// The value of a hit that has it at hand.
fn value<'h>(hit: &'h Hit<'_>) -> &'h [u8] {
    match &hit.found {
        Found::Memory(version) => version.value(),
        Found::Disk(version) => version.value.as_deref().unwrap_or_default(),
    }
}
