//! Pages of keys in either direction, without the count that a range read gives: what an iterator is made of.
//!
//! Forward, the tables and the tree are merged. Backward, a skip list has no links: each step asks every table for its
//! last key below the one before, O(tables × log keys), which a page of a few hundred keys can afford.
use super::found::{Found, Hit, Parts, copy_all};
use super::operation::KeyValue;
use super::store::Store;
use super::view_set::{Bounds, ViewSet};
use crate::disk_state::LeavesAhead;
use crate::error::OperationError;
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

impl Scan {
    /// What the scan of the first page begins with.
    pub(crate) fn leaves_ahead(&self) -> LeavesAhead {
        match self.reverse {
            false => LeavesAhead::default(),
            true => LeavesAhead::backward(),
        }
    }
}

impl Store {
    /// One page of a scan, in its order. Fails with `Compacted` or `FutureRevision`.
    pub fn scan(&self, scan: &Scan) -> Result<Vec<KeyValue>, OperationError> {
        self.scan_on(scan, &mut scan.leaves_ahead())
    }

    /// One page of a scan that goes on: `ahead` is that of the page before.
    pub(crate) fn scan_on(
        &self,
        scan: &Scan,
        ahead: &mut LeavesAhead,
    ) -> Result<Vec<KeyValue>, OperationError> {
        let (view, main) = self.readable(scan.revision)?;
        let mut hits = Vec::new();
        if scan.limit == 0 || scan.upper.as_ref().is_some_and(|upper| *upper <= scan.lower) {
            return Ok(Vec::new());
        }
        if scan.reverse {
            scan_backward(&view, scan, main, ahead, &mut hits)?;
        } else {
            let bounds = Bounds::From(&scan.lower, scan.upper.as_deref());
            view.scan_on(bounds, main, ahead, |key, found| {
                hits.push(Hit::new(key, found));
                Ok(hits.len() < scan.limit)
            })?;
        }
        copy_all(&view, hits, if scan.keys_only { Parts::KeysOnly } else { Parts::All })
    }
}

fn scan_backward<'a>(
    view: &'a ViewSet,
    scan: &Scan,
    main: i64,
    ahead: &mut LeavesAhead,
    hits: &mut Vec<Hit<'a>>,
) -> Result<(), OperationError> {
    let mut end = scan.upper.clone();
    let mut disk = view.disk.cursor();
    ahead.go_on();
    if let Some(disk) = &mut disk {
        disk.seek_before(end.as_deref())?;
        ahead.follow(&view.disk, disk, Some(&scan.lower));
    }
    while hits.len() < scan.limit {
        let last = view.tables.iter().filter_map(|table| table.last_below(end.as_deref()));
        let in_memory = last.map(|key| key.bytes()).max();
        let on_disk = disk.as_ref().and_then(|disk| disk.key());
        let Some(key) = in_memory.max(on_disk).filter(|key| *key >= &scan.lower[..]) else { break };
        let key = Bytes::copy_from_slice(key);
        // The tree is asked only for what no memtable has.
        let found = match (&disk, in_memory == Some(&key[..])) {
            (Some(disk), false) => view.disk.older(&key, disk.version()?, main)?.map(Found::Disk),
            _ => view.newest(&key, view.hasher.hash(&key), main)?,
        };
        if let Some(found) = found.filter(|found| !found.is_tombstone()) {
            hits.push(Hit::new(&key, found));
        }
        if let Some(disk) = &mut disk
            && disk.key() == Some(&key[..])
        {
            disk.prev()?;
            ahead.follow(&view.disk, disk, Some(&scan.lower));
        }
        end = Some(key);
    }
    Ok(())
}
