//! Edits for the trees of a checkpoint.
//!
//! [`KeyEdits`] merges four streams in key order: the newest versions of the run's keys, keys whose tombstone may go, what is pending
//! for leaves that are written, and pages that are to be written again because their segment is sparse. A key goes either to its leaf or to
//! the pending tree (`pushes.rs`); what is pushed down is taken out of the pending tree by the same stream that puts it into the key tree.
//! [`MapEdits`] is a sorted list of changes, for the system tree and the segment table, with such pages.
use super::planted::{Planted, PlantedBug};
use super::pushes::{Pushes, Walk};
use crate::base::ids::Revision;
use crate::disk_state::{
    DiskState, DiskVersion, KeyPages, PendingChange, Replaced, Stations, TreeId, check_newer, encode_cell,
    is_station, tombstone_main,
};
use crate::error::Result;
use crate::memtable::{Key, Keys, Version};
use crate::mvcc::Run;
use crate::tree::{Cursor, Edit, Edits, Outcome};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

/// A page that is to be written again: a key on its path, and its level. Sorted by key.
pub(super) type Touches = BTreeMap<Bytes, u8>;

/// What stations of a run have to name in their records: older stations, newest first.
pub(super) type Jumps = BTreeMap<Revision, Vec<Revision>>;

/// So many keys of the run are known to the device before they are merged.
const AHEAD_MAX: usize = 256;

/// Keys of a run in order, each with its newest version.
pub(super) struct RunKeys<'a> {
    /// Keys of each table, newest table first.
    lanes: Vec<Peekable<Keys<'a>>>,
    /// The key that was taken last, in each table that has it, newest table first.
    taken: Vec<Key<'a>>,
}

impl<'a> RunKeys<'a> {
    pub(super) fn of(run: &'a Run) -> Self {
        let lanes = run.tables.iter().rev().map(|table| table.seek(&[]).peekable()).collect();
        Self { lanes, taken: Vec::new() }
    }

    /// Takes the smallest key, with its newest version.
    pub(super) fn take(&mut self) -> Option<(&'a [u8], Version<'a>)> {
        let bytes = self.peek()?;
        self.taken.clear();
        for lane in &mut self.lanes {
            if lane.peek().is_some_and(|key| key.bytes() == bytes)
                && let Some(key) = lane.next()
            {
                self.taken.push(key);
            }
        }
        Some((bytes, self.taken.first()?.latest()))
    }

    /// The stations above `main` among the versions of the key that was taken last, oldest first.
    fn stations_above(&self, main: i64) -> Vec<Revision> {
        let versions = |key: &Key<'a>| std::iter::successors(Some(key.latest()), |version| version.older());
        let newest_first = self.taken.iter().flat_map(versions).take_while(|version| version.main() > main);
        let replaces = |version: &Version<'_>| version.prev().is_some_and(|prev| prev.revision.main > main);
        let stations = newest_first.filter(|version| is_station(version.version(), replaces(version)));
        let mut stations: Vec<_> = stations.map(|version| version.revision()).collect();
        stations.reverse();
        stations
    }

    /// True if the run has this key. It is not below one that was asked for before.
    pub(super) fn has(&mut self, key: &[u8]) -> bool {
        while self.peek().is_some_and(|next| next < key) {
            self.take();
        }
        self.peek() == Some(key)
    }

    pub(super) fn peek(&mut self) -> Option<&'a [u8]> {
        self.lanes.iter_mut().filter_map(|lane| lane.peek().map(Key::bytes)).min()
    }
}

/// Keys of a run that go to one of the two trees.
struct Share<'a> {
    keys: RunKeys<'a>,
    walk: Walk<'a>,
    tree: TreeId,
}

impl<'a> Share<'a> {
    fn peek(&mut self) -> Option<&'a [u8]> {
        while let Some(key) = self.keys.peek() {
            if self.walk.covers(key) == (self.tree == TreeId::Keys) {
                return Some(key);
            }
            self.keys.take();
        }
        None
    }

    fn take(&mut self) -> Option<(&'a [u8], Version<'a>)> {
        self.peek()?;
        self.keys.take()
    }
}

/// What is pending in the ranges whose leaves are written, in order.
struct PushedChanges<'a> {
    cursor: Option<Cursor<KeyPages<'a>>>,
    /// The range that the cursor is in, and those behind it.
    ranges: &'a [(Vec<u8>, Option<Vec<u8>>)],
    is_sought: bool,
}

impl<'a> PushedChanges<'a> {
    fn new(base: &'a DiskState, pushes: &'a Pushes) -> Self {
        let tree = base.tree(TreeId::Pending).filter(|tree| tree.root().is_some());
        Self { cursor: tree.map(|tree| tree.cursor()), ranges: pushes.ranges(), is_sought: false }
    }

    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        while let Some((from, end)) = self.ranges.first() {
            if !self.is_sought {
                self.is_sought = true;
                cursor.seek(from)?;
            }
            if cursor.is_valid() && end.as_ref().is_none_or(|end| cursor.key() < &end[..]) {
                let change = (Bytes::copy_from_slice(cursor.key()), cursor.payload_bytes());
                cursor.next()?;
                return Ok(Some(change));
            }
            (self.ranges, self.is_sought) = (&self.ranges[1..], false);
        }
        Ok(None)
    }
}

/// Edits for the key tree or the pending tree of a state: see the module.
pub(super) struct KeyEdits<'a> {
    tree: TreeId,
    run: Share<'a>,
    /// The same keys, [`AHEAD_MAX`] further on.
    ahead: Share<'a>,
    base: &'a Arc<DiskState>,
    purges: Peekable<std::vec::IntoIter<Bytes>>,
    touches: Peekable<std::collections::btree_map::IntoIter<Bytes, u8>>,
    pushed: PushedChanges<'a>,
    /// The next one of them.
    next_pushed: Option<(Bytes, Bytes)>,
    compact_revision: i64,
    /// Version of the edit that was returned last; none if it has none.
    version: Option<Version<'a>>,
    /// Its stations in the run, oldest first.
    stations: Vec<Revision>,
    /// What is pending of it, if that is pushed down.
    change: Option<Bytes>,
    /// Changes that were pushed down.
    pushed_count: u64,
    /// Changes that were put.
    put_count: u64,
    /// See [`Jumps`].
    jumps: Jumps,
    /// Some cell names stations.
    has_stations: bool,
    planted: Planted,
}

impl<'a> KeyEdits<'a> {
    /// The share of `tree` in the changes of a run and in `purges`. `touches` are those of this tree.
    pub(super) fn new(
        tree: TreeId,
        run: &'a Run,
        base: &'a Arc<DiskState>,
        pushes: &'a Pushes,
        (purges, touches): (&[Bytes], Touches),
        planted: Planted,
    ) -> Result<Self> {
        let share = || Share { keys: RunKeys::of(run), walk: pushes.walk(), tree };
        let mut walk = pushes.walk();
        let is_here = |key: &&Bytes| walk.covers(key) == (tree == TreeId::Keys);
        let purges: Vec<Bytes> = purges.iter().filter(is_here).cloned().collect();
        let mut edits = Self {
            tree,
            run: share(),
            ahead: share(),
            base,
            purges: purges.into_iter().peekable(),
            touches: touches.into_iter().peekable(),
            pushed: PushedChanges::new(base, pushes),
            next_pushed: None,
            compact_revision: run.compact_revision,
            version: None,
            stations: Vec::new(),
            change: None,
            pushed_count: 0,
            put_count: 0,
            jumps: Jumps::new(),
            has_stations: false,
            planted,
        };
        edits.next_pushed = edits.pushed.next()?;
        edits.read_ahead(AHEAD_MAX);
        Ok(edits)
    }

    /// Reads ahead the next `count` keys behind those that were.
    fn read_ahead(&mut self, count: usize) {
        for _ in 0..count {
            let Some((key, _)) = self.ahead.take() else { return };
            self.base.read_ahead(key);
        }
    }

    /// How many pending changes were taken out of the pending tree, or into the leaves.
    pub(super) fn pushed_count(&self) -> u64 {
        self.pushed_count
    }

    /// How many changes were put.
    pub(super) fn put_count(&self) -> u64 {
        self.put_count
    }

    /// What records have to name, and whether a cell that was put names stations.
    pub(super) fn into_jumps(self) -> (Jumps, bool) {
        (self.jumps, self.has_stations)
    }

    fn is_dead_tombstone(&self, cell: &[u8]) -> bool {
        tombstone_main(cell).is_some_and(|main| main < self.compact_revision)
    }

    /// What the version of the edit leaves of its key, whose newest cell on disk is `before`; none if there is no version.
    fn resolve_version(&mut self, before: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Option<Outcome>> {
        let Some(version) = self.version else { return Ok(None) };
        if version.is_tombstone() && version.main() < self.compact_revision {
            return Ok(Some(Outcome::Remove));
        }
        let mut stations = match before {
            Some(cell) if !self.planted.has(PlantedBug::StationsForgotten) => {
                DiskVersion::decode(&Bytes::copy_from_slice(cell))?.stations
            }
            _ => Stations::default(),
        };
        stations.forget_up_to(self.compact_revision);
        for station in std::mem::take(&mut self.stations) {
            let mut jumps = stations.count(station);
            if self.planted.has(PlantedBug::StationElsewhere) {
                jumps.iter_mut().for_each(|jump| jump.main -= 1);
            }
            if !jumps.is_empty() {
                self.jumps.insert(station, jumps);
            }
        }
        self.has_stations |= !stations.is_empty();
        encode_cell(&version, &stations, new);
        Ok(Some(Outcome::Put))
    }

    /// W2: the run has nothing that is older than what is on disk.
    fn check_newer(&self, key: &[u8], cell: Option<&[u8]>) -> Result<()> {
        match (&self.version, cell) {
            (Some(version), Some(cell)) => check_newer(key, version.main(), cell),
            _ => Ok(()),
        }
    }

    /// The cell of a leaf that is written.
    fn resolve_leaf(&mut self, key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        let change = self.change.clone();
        let change = change.as_deref().map(PendingChange::decode).transpose()?;
        if let Some(change) = &change {
            change.check(key, old)?;
        }
        self.check_newer(key, change.and_then(|change| change.cell))?;
        let before = change.map_or(old, |change| change.cell);
        let is_overtaken = change.is_some() && self.planted.has(PlantedBug::OlderPushed);
        if !is_overtaken && let Some(outcome) = self.resolve_version(before, new)? {
            return Ok(outcome);
        }
        Ok(match change {
            Some(_) if self.planted.has(PlantedBug::DropPushed) => Outcome::Keep,
            Some(PendingChange { cell: Some(cell), .. }) if !self.is_dead_tombstone(cell) => {
                new.extend_from_slice(cell);
                Outcome::Put
            }
            Some(_) => Outcome::Remove,
            None if old.is_some_and(|cell| self.is_dead_tombstone(cell)) => Outcome::Remove,
            None => Outcome::Keep,
        })
    }

    /// What is pending of a key behind the checkpoint.
    fn resolve_pending(&mut self, key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        if self.change.is_some() {
            return Ok(Outcome::Remove);
        }
        let leaf_cell;
        let (newest, mut replaced) = match old {
            Some(old) => {
                let change = PendingChange::decode(old)?;
                (change.cell, change.replaced)
            }
            None => {
                leaf_cell = self.base.leaf_cell(key)?;
                (leaf_cell.as_deref(), Replaced::of(leaf_cell.as_deref()))
            }
        };
        self.check_newer(key, newest)?;
        let is_dead = newest.is_some_and(|cell| self.is_dead_tombstone(cell));
        if self.planted.has(PlantedBug::CountTwice) && matches!(replaced, Replaced::Version(_)) {
            replaced = Replaced::Tombstone;
        }
        let mut cell = Vec::new();
        let outcome = match self.resolve_version(newest, &mut cell)? {
            Some(outcome) => outcome,
            None if is_dead => Outcome::Remove,
            None => return Ok(Outcome::Keep),
        };
        let change = match outcome {
            Outcome::Put => PendingChange { cell: Some(&cell), replaced },
            // Nothing is left, and nothing is in the leaf that would come back.
            _ if replaced == Replaced::Nothing => return Ok(Outcome::Remove),
            _ => PendingChange { cell: None, replaced },
        };
        change.encode(new);
        Ok(Outcome::Put)
    }
}

impl Edits for KeyEdits<'_> {
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>> {
        let run_key = self.run.peek();
        let purge = self.purges.peek().map(|key| &key[..]);
        let touch = self.touches.peek().map(|(key, _)| &key[..]);
        let pushed = self.next_pushed.as_ref().map(|(key, _)| &key[..]);
        let Some(first) = [run_key, purge, touch, pushed].into_iter().flatten().min() else {
            return Ok(None);
        };
        if touch == Some(first) {
            return Ok(self.touches.next().map(|(key, level)| (key, Edit::Touch { level })));
        }
        let [is_run_key, is_purge, is_pushed] = [run_key, purge, pushed].map(|key| key == Some(first));
        let first = Bytes::copy_from_slice(first);
        (self.version, self.change) = (None, None);
        self.stations.clear();
        if is_run_key {
            self.read_ahead(1);
            self.version = self.run.take().map(|(_, version)| version);
            self.stations = self.run.keys.stations_above(self.compact_revision);
        }
        if is_purge {
            self.purges.next();
        }
        if is_pushed {
            let following = self.pushed.next()?;
            self.pushed_count += 1;
            self.change = std::mem::replace(&mut self.next_pushed, following).map(|(_, change)| change);
        }
        Ok(Some((first, Edit::Cell)))
    }

    fn resolve(&mut self, key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome> {
        let outcome = match self.tree {
            TreeId::Pending => self.resolve_pending(key, old, new),
            _ => self.resolve_leaf(key, old, new),
        }?;
        self.put_count += u64::from(outcome == Outcome::Put);
        Ok(outcome)
    }

    /// A tombstone that nobody can read any more goes with the page that is written anyway. One that is pending over a cell hides that.
    fn keep(&mut self, _key: &[u8], payload: &[u8]) -> bool {
        match self.tree {
            TreeId::Pending => PendingChange::decode(payload).map_or(true, |change| {
                change.replaced != Replaced::Nothing
                    || !change.cell.is_some_and(|cell| self.is_dead_tombstone(cell))
            }),
            _ => !self.is_dead_tombstone(payload),
        }
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
