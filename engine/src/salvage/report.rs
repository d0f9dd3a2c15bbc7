//! What a salvage says: every damage with its place, what it cost, and what the new directory holds.
use crate::base::ids::Revision;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What became of a version whose record does not verify.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Its cell in the key tree holds all of it: the record was written anew.
    Repaired,
    /// A compaction had removed it: nothing is missing.
    Dead,
    /// The newest version of its key. The key is there, with its metadata and without its value: reads of the value fail
    /// until the key is put or deleted.
    ValueLost,
    /// The newest version of its key, whose place in the key tree is damaged too: the key is not there.
    KeyLost,
    /// An older version: the compact revision was raised above it.
    HistoryLost,
    /// Nothing that can be read says of which key it was.
    Unknown,
}

impl Fate {
    /// One word, as tools print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repaired => "repaired",
            Self::Dead => "dead",
            Self::ValueLost => "value-lost",
            Self::KeyLost => "key-lost",
            Self::HistoryLost => "history-lost",
            Self::Unknown => "unknown",
        }
    }

    /// True if something is missing because of it.
    pub fn is_loss(self) -> bool {
        !matches!(self, Self::Repaired | Self::Dead)
    }
}

/// One version whose record does not verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostRecord {
    /// The key, if anything says it.
    pub key: Option<Bytes>,
    /// What became of it.
    pub fate: Fate,
}

/// Keys of a tree whose page does not verify.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostRange {
    /// `keys`, `pending`, `system` or `segments`.
    pub tree: &'static str,
    /// First key.
    pub from: Bytes,
    /// The key behind the last one; none at the end of the tree.
    pub to: Option<Bytes>,
    /// Keys that exist, as far as other pages say; of the key tree and the pending tree only.
    pub keys_expected: Option<u64>,
    /// Keys that were found for the range in other places.
    pub keys_found: u64,
    /// True if what was found has the hash sum that the reference holds: nothing is missing, and nothing is too much.
    pub is_proven: bool,
}

/// One place that does not verify.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Damage {
    /// File, relative to the data directory.
    pub file: String,
    /// Offset in it.
    pub offset: u64,
    /// How many bytes; 0 if that is not known.
    pub bytes: u64,
    /// What was expected and what was found.
    pub what: String,
    /// The revisions between which the lost records lie, both excluded; none if no record is.
    pub between: Option<(Revision, Revision)>,
    /// Versions that were there, as far as anything else says so.
    pub records: BTreeMap<Revision, LostRecord>,
    /// Of a page of a tree: what was below it.
    pub range: Option<LostRange>,
}

impl Damage {
    /// True if something is missing because of it.
    pub fn is_loss(&self) -> bool {
        let records = self.records.values().any(|record| record.fate.is_loss());
        let range = self.range.as_ref().is_some_and(|range| match range.tree {
            "keys" => !range.is_proven,
            "system" => true,
            // Only an index: what it said was found out otherwise.
            _ => false,
        });
        // Records nobody knows anything about count as missing.
        let unknown = self.between.is_some() && self.records.is_empty();
        records || range || unknown
    }
}

/// Entries of the log that the new directory does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LostEntries {
    /// First index that could not be read.
    pub first: u64,
    /// Entries behind it that can be read, and cannot be applied without it.
    pub behind: u64,
    /// The newest index that anything names; `first` if nothing does.
    pub last: u64,
}

/// See [`super::salvage`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SalvageReport {
    /// Everything that does not verify, by file and offset.
    pub damages: Vec<Damage>,
    /// What is missing beyond single places, in sentences.
    pub notes: Vec<String>,
    /// Main revision of the new directory's checkpoint; 0 if it has none.
    pub revision: i64,
    /// Compact revision of the old checkpoint; none if it is not known.
    pub compact_revision_before: Option<i64>,
    /// Compact revision of the new directory: every read at or above it is answered as the old directory would have, or with an
    /// error that names what is lost.
    pub compact_revision: i64,
    /// Records written.
    pub records: u64,
    /// Cells of the key tree, tombstones among them.
    pub keys: u64,
    /// Records of the layer above.
    pub system_records: u64,
    /// Entries of the log written, on top of the checkpoint.
    pub entries: u64,
    /// Entries of the log that are not there.
    pub entries_lost: Option<LostEntries>,
}

impl SalvageReport {
    /// True if everything that was acknowledged is in the new directory, as far as that can be known.
    pub fn is_complete(&self) -> bool {
        self.entries_lost.is_none() && self.notes.is_empty() && !self.damages.iter().any(Damage::is_loss)
    }

    /// Versions that are missing, with their revision and the damage that took them.
    pub fn lost_records(&self) -> impl Iterator<Item = (Revision, &LostRecord, &Damage)> {
        let of = |damage| std::iter::repeat(damage);
        let all = self.damages.iter().flat_map(move |damage| damage.records.iter().zip(of(damage)));
        all.map(|((revision, record), damage)| (*revision, record, damage))
            .filter(|(_, record, _)| record.fate.is_loss())
    }
}
