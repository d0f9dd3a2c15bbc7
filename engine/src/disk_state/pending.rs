//! A pending change: the newest version of a key that its leaf in the key tree does not have yet.
//!
//! **Why.** A leaf is 16 KiB and a cell fifty bytes. Where a checkpoint changes few keys of each leaf, their cells wait in a tree of
//! their own, whose pages hold nothing else, and go to their leaf together (`checkpoint/pushes.rs` says when).
//!
//! **Layout** of a payload in the pending tree: flags u8 (1 purge, 2 the leaf has a cell, 4 and its key exists) · [4: record hash of that
//! cell u64] · [no purge: the cell, to the end].
//!
//! **Invariants.** W1: what is said of the leaf's cell is true, but for one that is a tombstone, which may be gone by now: it counts
//! nothing. W2: the change is newer than that cell. W3: a purge, which is a key without a cell, replaces one. All are held against
//! the leaf when a change is made, when it is pushed down, and by `verify`.
//!
//! A change adds up to what it makes of its leaf's sums: keys and hash of the new cell less those of the old one, modulo 2^64. So a
//! range is counted by the sums of two trees, without a look at what replaces what.
use super::cell::KeyCells;
use super::{TreeId, undecodable};
use crate::base::codec::Reader;
use crate::error::{Error, Result};
use crate::tree::{Aggregate, CellKind};

const PURGE: u8 = 1;
const LEAF_HAS_CELL: u8 = 2;
const LEAF_HAS_KEY: u8 = 4;

/// What the leaf has of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Replaced {
    /// Nothing.
    #[default]
    Nothing,
    /// A tombstone.
    Tombstone,
    /// A version with this record hash.
    Version(u64),
}

impl Replaced {
    /// Of a leaf's cell.
    pub(crate) fn of(cell: Option<&[u8]>) -> Self {
        match cell.map(|cell| KeyCells.aggregate(cell)) {
            None => Self::Nothing,
            Some(Aggregate { live_keys: 0, .. }) => Self::Tombstone,
            Some(Aggregate { hash_sum, .. }) => Self::Version(hash_sum),
        }
    }
}

/// A change, read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PendingChange<'a> {
    /// The newest cell; none if the key has no cell any more.
    pub(crate) cell: Option<&'a [u8]>,
    /// What the leaf has.
    pub(crate) replaced: Replaced,
}

impl<'a> PendingChange<'a> {
    /// Reads a payload of the pending tree.
    pub(crate) fn decode(payload: &'a [u8]) -> Result<Self> {
        Self::decode_fields(payload).ok_or_else(|| undecodable("a cell of the pending tree"))
    }

    fn decode_fields(payload: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let flags = reader.u8().ok()?;
        let replaced = match flags & !PURGE {
            0 => Replaced::Nothing,
            LEAF_HAS_CELL => Replaced::Tombstone,
            both if both == LEAF_HAS_CELL | LEAF_HAS_KEY => Replaced::Version(reader.u64().ok()?),
            _ => return None,
        };
        let rest = reader.rest();
        let is_purge = flags & PURGE != 0;
        // W3.
        let is_sound =
            if is_purge { rest.is_empty() && replaced != Replaced::Nothing } else { !rest.is_empty() };
        is_sound.then_some(Self { cell: (!is_purge).then_some(rest), replaced })
    }

    /// The payload.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.cell.is_some() || self.replaced != Replaced::Nothing, "W3: a purge of nothing");
        let mut flags = if self.cell.is_none() { PURGE } else { 0 };
        flags |= match self.replaced {
            Replaced::Nothing => 0,
            Replaced::Tombstone => LEAF_HAS_CELL,
            Replaced::Version(_) => LEAF_HAS_CELL | LEAF_HAS_KEY,
        };
        out.push(flags);
        if let Replaced::Version(hash) = self.replaced {
            out.extend_from_slice(&hash.to_le_bytes());
        }
        out.extend_from_slice(self.cell.unwrap_or_default());
    }

    /// Holds the change against the cell that the leaf has (W1, W2).
    ///
    /// # Errors
    /// [`Error::Corruption`] if it cannot be a change of that.
    pub(crate) fn check(&self, key: &[u8], leaf_cell: Option<&[u8]>) -> Result<()> {
        let found = Replaced::of(leaf_cell);
        let is_gone = (self.replaced, found) == (Replaced::Tombstone, Replaced::Nothing);
        if found != self.replaced && !is_gone {
            let (key, replaced) = (key.escape_ascii(), self.replaced);
            return Err(broken(format!(
                "W1: the pending change of {key} replaces {replaced:?}, its leaf has {found:?}"
            )));
        }
        match (self.cell, leaf_cell) {
            (Some(cell), Some(leaf_cell)) => {
                check_newer(key, KeyCells.aggregate(cell).max_mod_revision, leaf_cell)
            }
            _ => Ok(()),
        }
    }
}

/// Holds the main revision of a key's new version against the cell that it replaces (W2).
///
/// # Errors
/// [`Error::Corruption`] if it is not newer.
pub(crate) fn check_newer(key: &[u8], main: i64, cell: &[u8]) -> Result<()> {
    let older = KeyCells.aggregate(cell).max_mod_revision;
    match main > older {
        true => Ok(()),
        false => {
            let key = key.escape_ascii();
            Err(broken(format!(
                "W2: revision {main} of {key} expected to be newer than the {older} that it replaces"
            )))
        }
    }
}

fn broken(what: String) -> Error {
    Error::Corruption { file: crate::segment::DIRECTORY.to_string(), offset: 0, what }
}

/// What cells of the pending tree add up to.
pub(crate) struct PendingCells;

impl CellKind for PendingCells {
    /// A cell that does not decode counts nothing here; whoever reads it hears of it.
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let Ok(change) = PendingChange::decode(payload) else { return Aggregate::default() };
        let mut sum = change.cell.map(|cell| KeyCells.aggregate(cell)).unwrap_or_default();
        if let Replaced::Version(hash) = change.replaced {
            sum.live_keys = sum.live_keys.wrapping_sub(1);
            sum.hash_sum = sum.hash_sum.wrapping_sub(hash);
        }
        sum
    }
}

/// A payload of the pending tree, read and written again; none if it is none. For tests and fuzzers of the format.
#[cfg(feature = "sim")]
pub fn reencode_pending_change(payload: &[u8]) -> Option<Vec<u8>> {
    let change = PendingChange::decode(payload).ok()?;
    let mut out = Vec::new();
    change.encode(&mut out);
    Some(out)
}

impl TreeId {
    /// What the cells of the tree add up to.
    pub(crate) fn cells(self) -> &'static dyn CellKind {
        match self {
            Self::Keys => &KeyCells,
            Self::Pending => &PendingCells,
            Self::System | Self::Segments => &super::PlainCells,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a cell as `cell.rs` has it: flags, main, sub, hash.
    fn cell(flags: u8, main: u8, hash: u64) -> Vec<u8> {
        let mut cell = vec![flags, main, 0];
        cell.extend_from_slice(&hash.to_le_bytes());
        cell
    }

    fn encoded(change: &PendingChange<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        change.encode(&mut out);
        out
    }

    #[test]
    fn golden_changes_never_change() {
        let new = cell(0, 9, 0x0102_0304_0506_0708);
        let put = PendingChange { cell: Some(&new), replaced: Replaced::Version(0xaabb) };
        assert_eq!(
            encoded(&put),
            [&[6, 0xbb, 0xaa, 0, 0, 0, 0, 0, 0][..], &[0, 9, 0, 8, 7, 6, 5, 4, 3, 2, 1]].concat()
        );
        assert_eq!(encoded(&PendingChange { cell: Some(&new[..1]), replaced: Replaced::Nothing }), [0, 0]);
        assert_eq!(encoded(&PendingChange { cell: None, replaced: Replaced::Tombstone }), [3]);
        let purge = PendingChange { cell: None, replaced: Replaced::Version(7) };
        assert_eq!(encoded(&purge), [7, 7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn changes_come_back_and_nothing_else_is_read() {
        let new = cell(1, 3, 5);
        for replaced in [Replaced::Nothing, Replaced::Tombstone, Replaced::Version(u64::MAX)] {
            let change = PendingChange { cell: Some(&new), replaced };
            assert_eq!(PendingChange::decode(&encoded(&change)).ok(), Some(change));
        }
        for bad in
            [&[][..], &[0], &[1], &[2], &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[6, 1, 2], &[3, 0], &[8, 0], &[5]]
        {
            assert!(PendingChange::decode(bad).is_err(), "{bad:?}");
            assert_eq!(PendingCells.aggregate(bad), Aggregate::default(), "{bad:?}");
        }
    }

    /// Whatever replaces whatever: the sums of the leaf's cell and of the change are those of the new cell.
    #[test]
    fn a_change_adds_what_it_makes_of_its_leaf() {
        let old = [None, Some(cell(1, 4, 40)), Some(cell(0, 5, 50))];
        let new = [None, Some(cell(1, 8, 80)), Some(cell(0, 9, 90))];
        for (leaf, newest) in old.iter().flat_map(|old| new.iter().map(move |new| (old, new))) {
            let replaced = Replaced::of(leaf.as_deref());
            if newest.is_none() && leaf.is_none() {
                continue;
            }
            let change = PendingChange { cell: newest.as_deref(), replaced };
            change.check(b"k", leaf.as_deref()).expect("it is a change of that");
            let sum =
                |cell: &Option<Vec<u8>>| cell.as_ref().map(|it| KeyCells.aggregate(it)).unwrap_or_default();
            let mut found = sum(leaf);
            found.add(&PendingCells.aggregate(&encoded(&change)));
            let expected = sum(newest);
            assert_eq!(
                (found.live_keys, found.hash_sum),
                (expected.live_keys, expected.hash_sum),
                "{change:?}"
            );
        }
    }

    #[test]
    fn a_change_is_held_against_its_leaf() {
        let (older, newer, other) = (cell(0, 5, 50), cell(0, 9, 90), cell(0, 5, 51));
        let change = PendingChange { cell: Some(&newer), replaced: Replaced::Version(50) };
        let words = |leaf: Option<&[u8]>| change.check(b"k", leaf).map_err(|error| error.to_string());
        assert_eq!(words(Some(&older)), Ok(()));
        assert!(words(Some(&other)).is_err_and(|it| it.contains("W1")));
        assert!(words(None).is_err_and(|it| it.contains("W1")));
        let stale = PendingChange { cell: Some(&older), replaced: Replaced::Version(90) };
        assert!(stale.check(b"k", Some(&newer)).is_err_and(|it| it.to_string().contains("W2")));
        // A tombstone that nobody can read any more goes with a leaf that is written for another key.
        let over_tombstone = PendingChange { cell: Some(&newer), replaced: Replaced::Tombstone };
        assert!(over_tombstone.check(b"k", None).is_ok());
        assert!(
            PendingChange { cell: Some(&newer), replaced: Replaced::Nothing }
                .check(b"k", Some(&older))
                .is_err()
        );
    }
}
