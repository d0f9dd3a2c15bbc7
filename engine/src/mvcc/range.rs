//! A range read with etcd's options: limit, order, filters, keys only, count only.
//!
//! Works on one view set at one revision, for reads from outside and inside transactions. Nothing is copied until it
//! is certain to be part of the answer.
//!
//! Source of the rules: `server/etcdserver/txn/range.go` of etcd 3.7, quirks included:
//! - the count is that of all keys in the range, before limit and filters;
//! - only the natural order without filters is read up to the limit; everything else is read in full, filtered, sorted,
//!   then cut;
//! - a target other than the key with order NONE sorts ascending, but only what was read, limit + 1 keys.
use super::found::{Found, Hit, Parts, copy_all};
use super::operation::*;
use super::view_set::ViewSet;
use crate::error::OperationError;
use std::cmp::Reverse;

/// Reads `range` at main revision `main`; `revision` goes into the answer.
pub(crate) fn read(
    view: &ViewSet,
    range: &Range,
    main: i64,
    revision: i64,
) -> Result<RangeOutcome, OperationError> {
    let bounds = range.range.bounds();
    if range.count_only {
        let count = view.count(bounds, main)?;
        return Ok(RangeOutcome { revision, count, ..RangeOutcome::default() });
    }
    let limit = usize::try_from(range.limit).unwrap_or(0);
    let natural_order = range.sort_order == SortOrder::None
        || (range.sort_target == SortTarget::Key && range.sort_order == SortOrder::Ascend);
    let hits_max =
        if limit > 0 && natural_order && !is_filtered(range) { limit.saturating_add(1) } else { usize::MAX };
    let mut hits = Vec::new();
    let mut visited = 0;
    view.scan(bounds, main, |key, found| {
        visited += 1;
        if passes(range, &found) {
            hits.push(Hit::new(key, found));
        }
        Ok(hits.len() < hits_max)
    })?;
    // The scan ended early: what it did not visit is counted, not read.
    let count = if hits.len() < hits_max { visited } else { view.count(bounds, main)? };
    sort(view, range, &mut hits)?;
    let more = limit > 0 && hits.len() > limit;
    if more {
        hits.truncate(limit);
    }
    let parts = match (range.keys_only, range.sort_target) {
        (false, _) => Parts::All,
        (true, SortTarget::Value) => Parts::KeysAndLease,
        (true, _) => Parts::KeysOnly,
    };
    Ok(RangeOutcome { revision, kvs: copy_all(view, hits, parts)?, more, count })
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
        // The scan came in key order.
        (SortTarget::Key, false) => {}
        (SortTarget::Key, true) => hits.reverse(),
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
