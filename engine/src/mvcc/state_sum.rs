//! What replicas compare: sums over everything that was applied.
//!
//! **Data.** *Changes*: the wrapping sum of the hashes of all records that were ever added to the key space (`base::record_hash`), puts and
//! tombstones, those too that are replaced, compacted and gone since. It only grows, costs one hash a change, and two replicas that once
//! applied different changes never agree again, whatever is written afterwards. *System*: the wrapping sum over the system records that
//! are there now. Beside them the head and the compact revision.
//!
//! **Contract.** A function of the entries applied: equal on all replicas at the same index, whatever was flushed, cleaned, compacted or
//! restarted in between. A checkpoint keeps the sum of changes as of its index, a replay goes on from there (see [`super::flush`]). A state that a build wrote
//! which did not count yet is counted from its revision on; so a sum says since when, and only sums of the same beginning compare.
//!
//! **What it finds**: replicas that were fed differently, evaluated differently, or whose memory changed a value before it was hashed. Not: what the disk
//! does later; for that each record and page has its checksum, and a scan of all data its hash (etcd's HashKV).
//!
//! **Layout** of the cell in the system tree, key `c`: changes u64 · since revision i64, little-endian.
use crate::base::codec::{Reader, Truncated};
use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct StateSum {
    /// Wrapping sum of the hashes of all records added since `since_revision`.
    pub changes: u64,
    /// The main revision behind which counting began; 0 for a store that was counted from its beginning.
    pub since_revision: i64,
    /// Wrapping sum of the hashes of the system records that are there.
    pub system: u64,
    /// Main revision of the newest change.
    pub revision: i64,
    /// Oldest main revision that can be read; −1 before the first compaction.
    pub compact_revision: i64,
}

/// The part of a [`StateSum`] that cannot be derived from anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ChangeSum {
    pub(crate) sum: u64,
    pub(crate) since_revision: i64,
}

impl ChangeSum {
    /// Adds the hash of a record.
    pub(super) fn add(&mut self, record_hash: u64) {
        self.sum = self.sum.wrapping_add(record_hash);
    }

    pub(super) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16);
        bytes.put_u64_le(self.sum);
        bytes.put_i64_le(self.since_revision);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Truncated> {
        let mut reader = Reader::new(bytes);
        let sum = Self { sum: reader.u64()?, since_revision: reader.i64()? };
        if reader.is_empty() { Ok(sum) } else { Err(Truncated) }
    }
}

/// Hash of a system record: XXH3-64, seed 0, over key length u64 little-endian · key · value.
pub(super) fn system_hash(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_comes_back_and_another_length_is_refused() {
        let sum = ChangeSum { sum: u64::MAX - 3, since_revision: 77 };
        let bytes = sum.encode();
        assert_eq!(ChangeSum::decode(&bytes), Ok(sum));
        assert!((0..bytes.len()).all(|cut| ChangeSum::decode(&bytes[..cut]).is_err()));
        assert!(ChangeSum::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn system_hashes_tell_where_a_key_ends() {
        assert_ne!(system_hash(b"ab", b"c"), system_hash(b"a", b"bc"));
        // Replicas of different builds compare them, so they are for ever.
        assert_eq!(system_hash(b"key", b"value"), 568_365_760_057_031_377);
    }
}
