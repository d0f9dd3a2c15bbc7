//! The hash of one revision record, the end-to-end check of a value: XXH3-64, seed 0 (Collet, the xxHash specification).
//!
//! The key tree keeps it beside a key, the revision log computes it again over what it reads, and replicas compare
//! sums of it. It therefore covers the *canonical* record, not the bytes of any file: compression, segment and page
//! may differ, the hash may not.
//!
//! **Layout** of what is hashed, little-endian: main i64 · sub i64 · create revision i64 · version i64 · lease i64 ·
//! key length u64 · key · value. The record of a delete has create revision, version and lease 0 and no value.
//!
//! **Does not know** where a record is stored. A hash of 64 bits finds damage and mistakes; it is no proof against
//! somebody who chooses records to collide.
use super::ids::Revision;
use xxhash_rust::xxh3::Xxh3;

/// What a record says, uncompressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CanonicalRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Revision of the change.
    pub revision: Revision,
    /// Main revision of the put that created this generation of the key; 0 for a delete.
    pub create_revision: i64,
    /// Puts since then, this one included; 0 for a delete.
    pub version: i64,
    /// Attached lease; 0 if none.
    pub lease: i64,
    /// The value; empty for a delete.
    pub value: &'a [u8],
}

impl CanonicalRecord<'_> {
    /// The hash of the record.
    pub fn hash(&self) -> u64 {
        let mut head = [0; 48];
        let numbers = [
            self.revision.main,
            self.revision.sub,
            self.create_revision,
            self.version,
            self.lease,
            // A slice is shorter than 2^63 bytes.
            self.key.len() as i64,
        ];
        for (field, number) in head.chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        let mut hasher = Xxh3::new();
        hasher.update(&head);
        hasher.update(self.key);
        hasher.update(self.value);
        hasher.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: CanonicalRecord<'_> = CanonicalRecord {
        key: b"/registry/pods/default/web-0",
        revision: Revision::new(1_000_007, 3),
        create_revision: 999_000,
        version: 12,
        lease: 0x694d_7a3c_11ff_0022,
        value: b"a value",
    };

    #[test]
    fn the_algorithm_is_xxh3_64_with_seed_0() {
        // From the specification's reference implementation: the hash of no bytes.
        assert_eq!(Xxh3::new().digest(), 0x2D06_8005_38D3_94C2);
    }

    #[test]
    fn golden_values_never_change() {
        let empty = CanonicalRecord {
            key: b"k",
            revision: Revision::new(2, 0),
            create_revision: 2,
            version: 1,
            lease: 0,
            value: b"",
        };
        let tombstone = CanonicalRecord {
            revision: Revision::new(1_000_008, 0),
            create_revision: 0,
            version: 0,
            lease: 0,
            value: b"",
            ..RECORD
        };
        let long = CanonicalRecord { value: &[7; 3000], ..RECORD };
        let found = [empty, RECORD, tombstone, long].map(|record| record.hash());
        assert_eq!(
            found,
            [0xB246_1A31_3D07_1EEA, 0xDEC2_EA46_5C89_440A, 0xB92E_4562_9FA9_F66A, 0xDD10_91AD_D61F_8494],
            "{found:#018x?}"
        );
    }

    #[test]
    fn every_field_counts_and_key_and_value_do_not_run_together() {
        let plain = RECORD.hash();
        let changed = [
            CanonicalRecord { key: b"/registry/pods/default/web-1", ..RECORD },
            CanonicalRecord { revision: Revision::new(1_000_008, 3), ..RECORD },
            CanonicalRecord { revision: Revision::new(1_000_007, 4), ..RECORD },
            CanonicalRecord { create_revision: 999_001, ..RECORD },
            CanonicalRecord { version: 13, ..RECORD },
            CanonicalRecord { lease: 0, ..RECORD },
            CanonicalRecord { value: b"b value", ..RECORD },
            CanonicalRecord { key: b"/registry/pods/default/web-0a", value: b" value", ..RECORD },
        ];
        for record in changed {
            assert_ne!(record.hash(), plain, "{record:?}");
        }
    }
}
