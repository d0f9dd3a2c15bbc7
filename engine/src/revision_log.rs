//! The revision log: every version of every key, stored once, found by its revision.
//!
//! A **revision segment** (`seg/NNNNNNNN.r`) holds the records of one run of revisions, in revision order. It is written
//! once, front to back, by a [`RevisionWriter`], and read for as long as it lives through a [`RevisionSegment`].
//! The layout of each part stands in the module that codes it, the whole of it in `docs/data_file.md`:
//!
//! ```text
//! file   = header block | records | zeros | index blocks | top | dictionary | trailer block
//! record = checksum | length | flags | numbers | key | value, perhaps compressed | zeros to a multiple of 8    record.rs
//! index block = per record: revision, length, previous version, sizes       (find, compaction, counts)         index.rs
//! top    = per index block: first revision, place, checksum                 (one search in memory)             top.rs
//! trailer block = counts, bounds, places and checksums of all of these                                         trailer.rs
//! ```
//!
//! **Contract.** What was pushed is what is read, or an error: a record verifies only at the one place of the one segment
//! of the one database that it was written to, so that a lost, misdirected or rotten write cannot pass for another
//! record. Reads block; any thread may make them, none takes a lock while it reads.
//!
//! **Invariants.** V1: the revisions of a segment ascend strictly. V2: a record replaces an older one, `prev < revision`,
//! and jumps no less far, to ever older ones, `prev >= jump > jump`. V3: everything that is read from the file is covered by a checksum that is held
//! elsewhere: the trailer's in [`SegmentSummary`], those of top and dictionary in the trailer, those of index blocks in
//! the top; only a record holds its own, which depends on its place. V4: what is looked up at once is looked up in the order of its revisions.
//!
//! **Failure.** What does not verify is read twice more, then reported as [`Error::Corruption`](crate::Error::Corruption)
//! with what was expected and what was found. Damage of a record concerns that record only.
//!
//! **Does not know** the key tree, which revisions are alive, who asks, and why.
//!
//! Source: the split of values from index after WiscKey (Lu et al., FAST 2016).
//!
//! Reading order: `record`, `compression`, `index`, `top`, `trailer`, `summary`, `writer`, `segment`, `scan`, `lookup`, `verify`, `salvage`.
mod compression;
mod index;
mod lookup;
mod record;
pub(crate) mod salvage;
mod scan;
mod segment;
mod summary;
#[cfg(test)]
mod tests;
mod top;
mod trailer;
mod varint;
mod verify;
mod writer;

pub use compression::{DICTIONARY_BYTES_MAX, IS_SUPPORTED as COMPRESSION_IS_SUPPORTED, train_dictionary};
pub(crate) use scan::ReadCosts;
pub use scan::{Entries, Records};
pub use segment::{IndexPlace, RevisionSegment, TrailerCounts};
pub use summary::{Counts, SegmentSummary};
pub use writer::RevisionWriter;

use crate::base::ids::Revision;
use crate::base::record_hash::CanonicalRecord;
use bytes::Bytes;

/// Version of the trailer, and with it of everything else in a revision segment; a reader refuses a higher one. A segment without a
/// record of more than one jump is written as version 1, which the releases before know.
pub const FORMAT_VERSION: u32 = 2;
const FORMAT_VERSION_OF_ONE_JUMP: u32 = 1;
/// Most jumps of one record: more than a key can have, with one for each doubling of its versions.
pub const JUMPS_MAX: usize = 64;
/// Most bytes of key and value of one record together. The request size of the server stays far below; the bound
/// keeps every record inside one transfer of the device, and lengths in a file below what may be allocated.
pub const RECORD_BYTES_MAX: usize = 256 << 20;
/// The version of a segment in which some record has more than one jump, or none has.
fn format_version(has_more_jumps: bool) -> u32 {
    if has_more_jumps { FORMAT_VERSION } else { FORMAT_VERSION_OF_ONE_JUMP }
}

/// What a record counts for beside its key and value, wherever space is accounted.
pub const RECORD_BYTES_EXTRA: u64 = 64;

/// The version that a record replaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prev {
    /// Its revision, below that of the record.
    pub revision: Revision,
    /// Its key + value + [`RECORD_BYTES_EXTRA`], in bytes: what dies with it.
    pub record_bytes: u64,
}

/// A record to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRecord<'a> {
    /// When the change was made; not negative.
    pub revision: Revision,
    /// Puts since the key was created, this one included; 0 makes it a tombstone, which has no value.
    pub version: i64,
    /// Main revision of the put that created the key; 0 in a tombstone.
    pub create_revision: i64,
    /// Attached lease; 0 if none.
    pub lease: i64,
    /// The version before, if there was one.
    pub prev: Option<Prev>,
    /// Older versions still, newest first, none newer than `prev`, for walks that are logarithmic in the number of versions. At most
    /// [`JUMPS_MAX`]. Which ones is the caller's choice.
    pub jumps: &'a [Revision],
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl LogRecord<'_> {
    /// True for the record of a delete.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Key + value + [`RECORD_BYTES_EXTRA`].
    pub fn record_bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64 + RECORD_BYTES_EXTRA
    }
}

/// A record that was read and verified. `key` and `value` share one allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnedRecord {
    /// See [`LogRecord::revision`].
    pub revision: Revision,
    /// See [`LogRecord::version`].
    pub version: i64,
    /// See [`LogRecord::create_revision`].
    pub create_revision: i64,
    /// See [`LogRecord::lease`].
    pub lease: i64,
    /// See [`LogRecord::prev`].
    pub prev: Option<Prev>,
    /// See [`LogRecord::jumps`].
    pub jumps: Vec<Revision>,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

impl OwnedRecord {
    /// A record that was read, with key and value of its own.
    pub(crate) fn of(record: &LogRecord<'_>, jumps: &[Revision], key: Bytes, value: Bytes) -> Self {
        Self {
            revision: record.revision,
            version: record.version,
            create_revision: record.create_revision,
            lease: record.lease,
            prev: record.prev,
            jumps: jumps.to_vec(),
            key,
            value,
        }
    }

    /// The same record, to be written again.
    pub fn as_record(&self) -> LogRecord<'_> {
        LogRecord {
            revision: self.revision,
            version: self.version,
            create_revision: self.create_revision,
            lease: self.lease,
            prev: self.prev,
            jumps: &self.jumps,
            key: &self.key,
            value: &self.value,
        }
    }

    /// The canonical hash, to be compared with the one that the key tree holds.
    pub fn hash(&self) -> u64 {
        CanonicalRecord {
            key: &self.key,
            revision: self.revision,
            create_revision: self.create_revision,
            version: self.version,
            lease: self.lease,
            value: &self.value,
        }
        .hash()
    }
}

/// What the index of a segment says of one record: everything but its key and value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Number of the record in its segment, from 0.
    pub ordinal: u32,
    /// Its revision.
    pub revision: Revision,
    /// It is the record of a delete.
    pub tombstone: bool,
    /// It created its key: version 1.
    pub created: bool,
    /// The version that it replaces.
    pub prev: Option<Prev>,
    /// Length of the key.
    pub key_bytes: u32,
    /// Length of the value, uncompressed.
    pub value_bytes: u32,
    /// Where the record starts in the file, in bytes; a multiple of 8.
    pub offset: u64,
    /// Length of the record in the file, without the zeros behind it.
    pub stored_bytes: u32,
    /// Length of etcd's `KeyValue` message of this record, as its store keeps it: of a tombstone, the key alone.
    pub kv_bytes: u32,
}

impl Entry {
    /// Key + value + [`RECORD_BYTES_EXTRA`].
    pub fn record_bytes(&self) -> u64 {
        u64::from(self.key_bytes) + u64::from(self.value_bytes) + RECORD_BYTES_EXTRA
    }

    /// First byte behind the record in the file, rounded up to where the next one starts.
    fn end(&self) -> u64 {
        (self.offset + u64::from(self.stored_bytes)).next_multiple_of(record::ALIGNMENT as u64)
    }
}
