//! Pages of keys in either direction, without the count that a range read gives: what an iterator is made of.
//!
//! Forward, the tables are merged. Backward, a skip list has no links: each step asks every table for its last key
//! below the one before, O(tables × log keys), which a page of a few hundred keys can afford.
use super::operation::KeyValue;
use super::store::Store;
use super::view_set::{Bounds, Parts, ViewSet, copy_all};
use crate::error::OperationError;
use crate::memtable::Version;
use bytes::Bytes;

/// Which keys, at which revision, in which direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// First key of the range.
    pub lower: Bytes,
    /// First key behind the range; none for no end.
    pub upper: Option<Bytes>,
    /// At which main revision.
    pub revision: i64,
    /// Largest key first.
    pub reverse: bool,
    /// At most this many keys.
    pub limit: usize,
    /// Leave values and leases out.
    pub keys_only: bool,
}

impl Store {
    /// One page of a scan, in its order. Fails with `Compacted` or `FutureRevision`.
    pub fn scan(&self, scan: &Scan) -> Result<Vec<KeyValue>, OperationError> {
        let (view, main) = self.readable(scan.revision)?;
        let mut hits = Vec::new();
        if scan.limit == 0 || scan.upper.as_ref().is_some_and(|upper| *upper <= scan.lower) {
            return Ok(Vec::new());
        }
        if scan.reverse {
            scan_backward(&view, scan, main, &mut hits);
        } else {
            view.scan(Bounds::From(&scan.lower, scan.upper.as_deref()), main, |key, version| {
                hits.push((key, version));
                hits.len() < scan.limit
            });
        }
        Ok(copy_all(&hits, if scan.keys_only { Parts::KeysOnly } else { Parts::All }))
    }
}

fn scan_backward<'a>(view: &'a ViewSet, scan: &Scan, main: i64, hits: &mut Vec<(&'a [u8], Version<'a>)>) {
    let mut end: Option<&[u8]> = scan.upper.as_deref();
    while hits.len() < scan.limit {
        let last = view.tables.iter().filter_map(|table| table.last_below(end)).map(|key| key.bytes()).max();
        let Some(key) = last.filter(|key| *key >= &scan.lower[..]) else { return };
        if let Some(version) = view.live(key, main) {
            hits.push((key, version));
        }
        end = Some(key);
    }
}
