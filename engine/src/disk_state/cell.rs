//! A cell of the key tree: the newest version of a key.
//!
//! **Layout**, varints unless said otherwise (LEB128, unsigned): flags u8 (1 tombstone, 2 value inside, 4 replaces a version, 8 names
//! stations)
//! · main · sub · record hash u64 little-endian · [put: main − create revision · version · lease as u64 · value bytes] ·
//! [replaces: main − main of the replaced · sub of the replaced] · [stations, see `stations.rs`] · [value inside: the value, to the
//! end].
//!
//! The hash is that of the canonical record (`base::record_hash`): it is held against the record when that is read, so
//! a record that verifies by itself and is not the one meant is found out.
//!
//! Values of up to [`INLINE_BYTES_MAX`] are inside, which spares the second read.
use super::pending::Replaced;
use super::stations::Stations;
use super::undecodable;
use crate::base::codec::{Reader, put_varint};
use crate::base::ids::Revision;
use crate::base::record_hash::CanonicalRecord;
use crate::error::{Error, Result};
use crate::memtable::Version;
use crate::revision_log::OwnedRecord;
use crate::tree::{Aggregate, CellKind};
use bytes::Bytes;

/// A value of up to this size lies in the cell.
pub(crate) const INLINE_BYTES_MAX: usize = 64;

const TOMBSTONE: u8 = 1;
const INLINE: u8 = 2;
const HAS_PREV: u8 = 4;
const HAS_STATIONS: u8 = 8;

/// A version on disk, as a cell or a record describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DiskVersion {
    /// Its revision.
    pub(crate) revision: Revision,
    /// 0 for a tombstone.
    pub(crate) create_revision: i64,
    /// 0 for a tombstone.
    pub(crate) version: i64,
    /// 0 for none.
    pub(crate) lease: i64,
    /// Size of its value.
    pub(crate) value_bytes: u32,
    /// The version that it replaced, a tombstone too.
    pub(crate) prev: Option<Revision>,
    /// Stations on the way to older versions: those that the cell or the record names.
    pub(crate) stations: Stations,
    /// Hash of the record; 0 if this was made from a record that was verified.
    pub(crate) record_hash: u64,
    /// The value, if it is at hand.
    pub(crate) value: Option<Bytes>,
}

impl DiskVersion {
    /// Reads a cell.
    pub(crate) fn decode(payload: &Bytes) -> Result<Self> {
        Self::decode_fields(payload).ok_or_else(|| undecodable("a cell of the key tree"))
    }

    /// The same for a cell of a state whose newest main revision is `head`: what is above it is of no state that was ever
    /// there, and the next change of the key would count it as older than itself.
    pub(crate) fn decode_up_to(head: i64, payload: &Bytes) -> Result<Self> {
        let version = Self::decode(payload)?;
        match version.revision.main <= head {
            true => Ok(version),
            false => Err(undecodable("a cell of the key tree with a revision above the checkpoint's")),
        }
    }

    fn decode_fields(payload: &Bytes) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let flags = reader.u8().ok()?;
        if flags & !(TOMBSTONE | INLINE | HAS_PREV | HAS_STATIONS) != 0 {
            return None;
        }
        let main = reader.varint_i64().ok()?;
        let sub = reader.varint_i64().ok()?;
        let record_hash = reader.u64().ok()?;
        let (mut create_revision, mut version, mut lease, mut value_bytes) = (0, 0, 0, 0);
        if flags & TOMBSTONE == 0 {
            create_revision = main.checked_sub(reader.varint_i64().ok()?)?;
            version = reader.varint_i64().ok()?;
            lease = reader.varint().ok()? as i64;
            value_bytes = u32::try_from(reader.varint().ok()?).ok()?;
        }
        let (mut prev, revision_main) = (None, main);
        if flags & HAS_PREV != 0 {
            let main = main.checked_sub(reader.varint_i64().ok()?)?;
            prev = Some(Revision::new(main, reader.varint_i64().ok()?));
            if main < 0 || prev >= Some(Revision::new(revision_main, sub)) {
                return None;
            }
        }
        let stations = match flags & HAS_STATIONS != 0 {
            true => Stations::decode(&mut reader, Revision::new(revision_main, sub)).ok()?,
            false => Stations::default(),
        };
        let value = match flags & INLINE != 0 {
            true => Some(payload.slice_ref(reader.rest())),
            false if flags & TOMBSTONE != 0 => Some(Bytes::new()),
            false => None,
        };
        let sizes_agree = value.as_ref().is_none_or(|value| value.len() == value_bytes as usize);
        let revision = Revision::new(main, sub);
        sizes_agree.then_some(Self {
            revision,
            create_revision,
            version,
            lease,
            value_bytes,
            prev,
            stations,
            record_hash,
            value,
        })
    }

    /// The hash of the record: what the cell says, or computed where this was made from a record.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        let (0, Some(value)) = (self.record_hash, &self.value) else { return self.record_hash };
        CanonicalRecord {
            key,
            revision: self.revision,
            create_revision: self.create_revision,
            version: self.version,
            lease: self.lease,
            value,
        }
        .hash()
    }

    /// The error of a record that the tree names and the revision log does not have.
    pub(crate) fn missing(&self, file: String) -> Error {
        Error::Corruption {
            file,
            offset: 0,
            what: format!("the key tree names revision {} and no segment holds it", self.revision),
        }
    }

    /// `record` if it is the one that this cell means.
    pub(crate) fn check(
        &self,
        record: Option<OwnedRecord>,
        file: impl FnOnce() -> String,
    ) -> Result<OwnedRecord> {
        let Some(record) = record else { return Err(self.missing(file())) };
        let found = CanonicalRecord {
            key: &record.key,
            revision: record.revision,
            create_revision: record.create_revision,
            version: record.version,
            lease: record.lease,
            value: &record.value,
        }
        .hash();
        if found != self.record_hash {
            return Err(Error::Corruption {
                file: file(),
                offset: 0,
                what: format!(
                    "record {} has the hash {found:016x}, and the key tree expects {:016x}",
                    self.revision, self.record_hash
                ),
            });
        }
        Ok(record)
    }
}

/// The cell of a version in memory, with the stations on the way to older ones, itself included if it is one.
pub(crate) fn encode_cell(version: &Version<'_>, stations: &Stations, out: &mut Vec<u8>) {
    let canonical = CanonicalRecord {
        key: version.key(),
        revision: version.revision(),
        create_revision: version.create_revision(),
        version: version.version(),
        lease: version.lease(),
        value: version.value(),
    };
    encode_fields(&canonical, version.prev().map(|prev| prev.revision), stations, out);
}

/// The cell of a record on disk, if that is the newest of its key. It names no stations: the counter begins anew.
pub(crate) fn encode_cell_of(record: &OwnedRecord, out: &mut Vec<u8>) {
    let canonical = CanonicalRecord {
        key: &record.key,
        revision: record.revision,
        create_revision: record.create_revision,
        version: record.version,
        lease: record.lease,
        value: &record.value,
    };
    encode_fields(&canonical, record.prev.map(|prev| prev.revision), &Stations::default(), out);
}

fn encode_fields(
    record: &CanonicalRecord<'_>,
    prev: Option<Revision>,
    stations: &Stations,
    out: &mut Vec<u8>,
) {
    let (revision, value) = (record.revision, record.value);
    let is_tombstone = record.version == 0;
    let inline = !is_tombstone && value.len() <= INLINE_BYTES_MAX;
    let mut flags = 0;
    flags |= if is_tombstone { TOMBSTONE } else { 0 };
    flags |= if inline { INLINE } else { 0 };
    flags |= if prev.is_some() { HAS_PREV } else { 0 };
    flags |= if stations.is_empty() { 0 } else { HAS_STATIONS };
    out.push(flags);
    put_varint(out, revision.main as u64);
    put_varint(out, revision.sub as u64);
    out.extend_from_slice(&record.hash().to_le_bytes());
    if !is_tombstone {
        put_varint(out, revision.main.wrapping_sub(record.create_revision) as u64);
        put_varint(out, record.version as u64);
        put_varint(out, record.lease as u64);
        put_varint(out, value.len() as u64);
    }
    if let Some(prev) = prev {
        put_varint(out, (revision.main - prev.main) as u64);
        put_varint(out, prev.sub as u64);
    }
    if !stations.is_empty() {
        stations.encode(revision.main, out);
    }
    if inline {
        out.extend_from_slice(value);
    }
}

/// A cell in place of one that is lost and that nobody reads, because a newer one is pending: it counts what that counted.
pub(crate) fn stand_in(replaced: Replaced) -> Option<Vec<u8>> {
    let (flags, hash) = match replaced {
        Replaced::Nothing => return None,
        Replaced::Tombstone => (TOMBSTONE, 0),
        Replaced::Version(hash) => (0, hash),
    };
    let mut out = vec![flags];
    // Revision 0.0, below every other.
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&hash.to_le_bytes());
    if flags & TOMBSTONE == 0 {
        // Created by itself, version 1, no lease, no value.
        out.extend_from_slice(&[0, 1, 0, 0]);
    }
    Some(out)
}

/// What cells of the key tree add up to.
pub(crate) struct KeyCells;

impl CellKind for KeyCells {
    /// A cell that does not decode counts nothing here; whoever reads it hears of it.
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let mut reader = Reader::new(payload);
        let mut fields = || {
            let flags = reader.u8()?;
            let main = reader.varint_i64()?;
            reader.varint()?;
            Ok::<_, crate::base::codec::Truncated>((flags, main, reader.u64()?))
        };
        match fields() {
            Ok((flags, main, hash)) if flags & TOMBSTONE == 0 => {
                Aggregate { live_keys: 1, max_mod_revision: main, hash_sum: hash }
            }
            Ok((_, main, _)) => Aggregate { live_keys: 0, max_mod_revision: main, hash_sum: 0 },
            Err(_) => Aggregate::default(),
        }
    }
}

/// Main revision of a cell if it is a tombstone.
pub(crate) fn tombstone_main(payload: &[u8]) -> Option<i64> {
    let mut reader = Reader::new(payload);
    match (reader.u8(), reader.varint_i64()) {
        (Ok(flags), Ok(main)) if flags & TOMBSTONE != 0 => Some(main),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_counts_what_it_stands_for() {
        assert_eq!(stand_in(Replaced::Nothing), None);
        for replaced in [Replaced::Tombstone, Replaced::Version(77)] {
            let cell = stand_in(replaced).expect("a cell");
            assert_eq!(Replaced::of(Some(&cell)), replaced);
            assert!(DiskVersion::decode(&cell.into()).is_ok());
        }
    }

    /// A put of a key whose cell had a revision above the checkpoint's stopped the next checkpoint (V2): the fuzzer of
    /// checkpoints vouched for such a cell with every checksum. It is damage when it is read.
    #[test]
    fn a_cell_is_not_newer_than_its_state_and_replaces_what_is_older() {
        // A tombstone of 10.1 that replaces 10 - `back`, sub 0.
        let cell = |back: u8, sub: u8| {
            let mut payload = vec![TOMBSTONE | HAS_PREV, 10, 1];
            payload.extend_from_slice(&7_u64.to_le_bytes());
            payload.extend_from_slice(&[back, sub]);
            Bytes::from(payload)
        };
        let version = DiskVersion::decode_up_to(10, &cell(3, 0)).expect("a cell");
        assert_eq!((version.revision, version.prev), (Revision::new(10, 1), Some(Revision::new(7, 0))));
        assert!(DiskVersion::decode_up_to(9, &cell(3, 0)).is_err(), "above the head");
        assert!(DiskVersion::decode(&cell(0, 0)).is_ok(), "the same transaction");
        assert!(DiskVersion::decode(&cell(0, 1)).is_err(), "itself");
        assert!(DiskVersion::decode(&cell(0, 2)).is_err(), "something newer");
        assert!(DiskVersion::decode(&cell(11, 0)).is_err(), "before the first revision");
    }
}
