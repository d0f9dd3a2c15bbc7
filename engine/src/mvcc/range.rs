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
use super::operation::*;
use super::view_set::{Parts, ViewSet, copy_all};
use crate::memtable::Version;
use std::cmp::Ordering as Compared;

/// Reads `range` at main revision `main`; `revision` goes into the answer.
pub(crate) fn read(view: &ViewSet, range: &Range, main: i64, revision: i64) -> RangeOutcome {
    let bounds = range.range.bounds();
    let mut count = 0;
    if range.count_only {
        view.scan(bounds, main, |_, _| {
            count += 1;
            true
        });
        return RangeOutcome { revision, count, ..RangeOutcome::default() };
    }
    let limit = usize::try_from(range.limit).unwrap_or(0);
    let natural_order = range.sort_order == SortOrder::None
        || (range.sort_target == SortTarget::Key && range.sort_order == SortOrder::Ascend);
    let hits_max =
        if limit > 0 && natural_order && !is_filtered(range) { limit.saturating_add(1) } else { usize::MAX };
    let mut hits = Vec::new();
    view.scan(bounds, main, |key, version| {
        count += 1;
        if hits.len() < hits_max && passes(range, &version) {
            hits.push((key, version));
        }
        true
    });
    sort(range, &mut hits);
    let more = limit > 0 && hits.len() > limit;
    if more {
        hits.truncate(limit);
    }
    let parts = match (range.keys_only, range.sort_target) {
        (false, _) => Parts::All,
        (true, SortTarget::Value) => Parts::KeysAndLease,
        (true, _) => Parts::KeysOnly,
    };
    RangeOutcome { revision, kvs: copy_all(&hits, parts), more, count }
}

fn is_filtered(range: &Range) -> bool {
    range.min_mod_revision != 0
        || range.max_mod_revision != 0
        || range.min_create_revision != 0
        || range.max_create_revision != 0
}

fn passes(range: &Range, version: &Version<'_>) -> bool {
    let (modified, created) = (version.main(), version.create_revision());
    (range.max_mod_revision == 0 || modified <= range.max_mod_revision)
        && (range.min_mod_revision == 0 || modified >= range.min_mod_revision)
        && (range.max_create_revision == 0 || created <= range.max_create_revision)
        && (range.min_create_revision == 0 || created >= range.min_create_revision)
}

fn sort(range: &Range, hits: &mut [(&[u8], Version<'_>)]) {
    let descending = range.sort_order == SortOrder::Descend;
    let compare = |left: &Version<'_>, right: &Version<'_>| match range.sort_target {
        SortTarget::Key => Compared::Equal,
        SortTarget::Version => left.version().cmp(&right.version()),
        SortTarget::Create => left.create_revision().cmp(&right.create_revision()),
        SortTarget::Mod => left.revision().main.cmp(&right.revision().main),
        SortTarget::Value => left.value().cmp(right.value()),
    };
    match (range.sort_target, descending) {
        // The scan came in key order.
        (SortTarget::Key, false) => {}
        (SortTarget::Key, true) => hits.reverse(),
        (_, false) => hits.sort_by(|(_, left), (_, right)| compare(left, right)),
        (_, true) => hits.sort_by(|(_, left), (_, right)| compare(right, left)),
    }
}
