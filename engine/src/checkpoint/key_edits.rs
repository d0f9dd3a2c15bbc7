//! Edits for the trees of a checkpoint.
//!
//! [`KeyEdits`] merges three streams in key order: the newest versions of the run's keys, keys whose tombstone may go, and
//! pages that are to be written again because their segment is sparse. [`MapEdits`] is a sorted list of changes, for the
//! system tree and the segment table, with such pages.
use crate::disk_state::{DiskState, encode_cell, tombstone_main};
use crate::error::Result;
use crate::memtable::{Key, Keys, Version};
use crate::mvcc::Run;
use crate::tree::{Edit, Edits, Outcome};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

/// A page that is to be written again: a key on its path, and its level. Sorted by key.
pub(super) type Touches = BTreeMap<Bytes, u8>;

/// So many keys of the run are known to the device before they are merged.
const AHEAD_MAX: usize = 256;

/// Keys of a run in order, each with its newest version.
struct RunKeys<'a> {
    /// Keys of each table, newest table first.
    lanes: Vec<Peekable<Keys<'a>>>,
}

/// See the module.
pub(super) struct KeyEdits<'a> {
    run: RunKeys<'a>,
    /// The same keys, [`AHEAD_MAX`] further on, and the state whose leaves they are in.
    ahead: RunKeys<'a>,
    base: &'a Arc<DiskState>,
    purges: Peekable<std::vec::IntoIter<Bytes>>,
    touches: Peekable<std::collections::btree_map::IntoIter<Bytes, u8>>,
    compact_revision: i64,
    /// Version of the edit that was returned last; none if it is a purge.
    version: Option<Version<'a>>,
}

impl<'a> RunKeys<'a> {
    fn of(run: &'a Run) -> Self {
        Self { lanes: run.tables.iter().rev().map(|table| table.seek(&[]).peekable()).collect() }
    }

    /// Takes the smallest key, with its newest version.
    fn take(&mut self) -> Option<(&'a [u8], Version<'a>)> {
        let bytes = self.peek()?;
        let mut newest = None;
        for lane in &mut self.lanes {
            if lane.peek().is_some_and(|key| key.bytes() == bytes)
                && let Some(key) = lane.next()
            {
                newest.get_or_insert(key.latest());
            }
        }
        Some((bytes, newest?))
    }

    fn peek(&mut self) -> Option<&'a [u8]> {
        self.lanes.iter_mut().filter_map(|lane| lane.peek().map(Key::bytes)).min()
    }
}

impl<'a> KeyEdits<'a> {
    /// Edits for the key tree of `base`.
    pub(super) fn new(run: &'a Run, base: &'a Arc<DiskState>, purges: Vec<Bytes>, touches: Touches) -> Self {
        let mut edits = Self {
            run: RunKeys::of(run),
            ahead: RunKeys::of(run),
            base,
            purges: purges.into_iter().peekable(),
            touches: touches.into_iter().peekable(),
            compact_revision: run.compact_revision,
            version: None,
        };
        edits.read_ahead(AHEAD_MAX);
        edits
    }

    /// Reads ahead the next `count` keys behind those that were.
    fn read_ahead(&mut self, count: usize) {
        for _ in 0..count {
            let Some((key, _)) = self.ahead.take() else { return };
            self.base.read_ahead(key);
        }
    }
}

impl Edits for KeyEdits<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        let run_key = self.run.peek();
        let purge = self.purges.peek().map(|key| &key[..]);
        let touch = self.touches.peek().map(|(key, _)| &key[..]);
        let Some(first) = [run_key, purge, touch].into_iter().flatten().min() else { return Ok(None) };
        if touch == Some(first) {
            return Ok(self.touches.next().map(|(key, level)| (key, Edit::Touch { level })));
        }
        if run_key != Some(first) {
            self.version = None;
            return Ok(self.purges.next().map(|key| (key, Edit::Cell)));
        }
        if purge == Some(first) {
            self.purges.next();
        }
        self.read_ahead(1);
        Ok(self.run.take().map(|(key, version)| {
            self.version = Some(version);
            (Bytes::copy_from_slice(key), Edit::Cell)
        }))
    }

    fn resolve(&mut self, _key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        match &self.version {
            Some(version) if version.is_tombstone() && version.main() < self.compact_revision => {
                Ok(Outcome::Remove)
            }
            Some(version) => {
                encode_cell(version, new);
                Ok(Outcome::Put)
            }
            None => Ok(match old.and_then(tombstone_main) {
                Some(main) if main < self.compact_revision => Outcome::Remove,
                _ => Outcome::Keep,
            }),
        }
    }

    /// A tombstone that nobody can read any more goes with the page that is written anyway.
    fn keep(&mut self, _key: &[u8], payload: &[u8]) -> bool {
        tombstone_main(payload).is_none_or(|main| main >= self.compact_revision)
    }
}

/// See the module.
pub(super) struct MapEdits {
    changes: Peekable<std::vec::IntoIter<(Bytes, Option<Bytes>)>>,
    touches: Peekable<std::collections::btree_map::IntoIter<Bytes, u8>>,
    change: Option<Bytes>,
}

impl MapEdits {
    /// `changes` in key order; none removes a key.
    pub(super) fn new(changes: Vec<(Bytes, Option<Bytes>)>, touches: Touches) -> Self {
        Self {
            changes: changes.into_iter().peekable(),
            touches: touches.into_iter().peekable(),
            change: None,
        }
    }
}

impl Edits for MapEdits {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        let change = self.changes.peek().map(|(key, _)| key);
        let touch = self.touches.peek().map(|(key, _)| key);
        let touch_first = match (change, touch) {
            (Some(change), Some(touch)) => touch <= change,
            (change, _) => change.is_none(),
        };
        if touch_first {
            return Ok(self.touches.next().map(|(key, level)| (key, Edit::Touch { level })));
        }
        Ok(self.changes.next().map(|(key, value)| {
            self.change = value;
            (key, Edit::Cell)
        }))
    }

    fn resolve(&mut self, _key: &[u8], _old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        Ok(match &self.change {
            Some(value) => {
                new.extend_from_slice(value);
                Outcome::Put
            }
            None => Outcome::Remove,
        })
    }

    fn keep(&mut self, _key: &[u8], _payload: &[u8]) -> bool {
        true
    }
}
