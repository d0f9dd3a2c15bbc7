//! What a snapshot file holds, as `etcdutl snapshot status` says it.
//!
//! **Contract.** Reads every page and every key. In memory are 16 bytes for each key that exists.
//!
//! **Source**: `Status` in `etcdutl/snapshot/v3_snapshot.go` of etcd 3.7.3.
use super::buckets;
use super::read::{FileError, FileReader, Source};
use crate::wire::mvccpb::KeyValue;
use crc_fast::{CrcAlgorithm, Digest};
use prost::Message;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotStatus {
    /// CRC-32C over names of buckets, keys and values.
    pub hash: u32,
    /// Main revision of the last record.
    pub revision: i64,
    /// Keys that exist.
    pub total_key: u64,
    /// Bytes of the database's pages.
    pub total_size: u64,
    /// Storage version, empty before etcd 3.6.
    pub version: String,
}

/// Reads all of `source`; `progress` hears of bytes done and bytes in all.
///
/// # Errors
/// What is wrong with the file.
pub fn status(source: &dyn Source, progress: &mut dyn FnMut(u64, u64)) -> Result<SnapshotStatus, FileError> {
    let reader = FileReader::open(source)?;
    let total_size = reader.bytes();
    let (mut walk, found) = reader.walk()?;
    let mut status = SnapshotStatus { total_size, ..SnapshotStatus::default() };
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut seen: HashSet<[u64; 2]> = HashSet::new();
    for bucket in &found {
        digest.update(&bucket.name);
        walk.bucket(bucket, &mut |key, value, done| -> Result<(), FileError> {
            progress(done.min(total_size), total_size);
            digest.update(key);
            digest.update(value);
            if bucket.name == buckets::META && key == buckets::STORAGE_VERSION {
                status.version = String::from_utf8_lossy(value).into_owned();
            }
            if bucket.name == buckets::KEY {
                let wrong = |what: String| {
                    FileError::Refused(format!("cannot {what}, key: \"{}\"", key.escape_ascii()))
                };
                let (revision, tombstone) =
                    buckets::decode_revision(key).ok_or_else(|| wrong("parse revision key".into()))?;
                status.revision = revision.main;
                let kv = KeyValue::decode(value);
                let kv = kv.map_err(|error| wrong(format!("unmarshal value ({error})")))?;
                match tombstone {
                    true => seen.remove(&fingerprint(&kv.key)),
                    false => seen.insert(fingerprint(&kv.key)),
                };
            }
            Ok(())
        })?;
    }
    status.total_key = seen.len() as u64;
    status.hash = digest.finalize() as u32;
    Ok(status)
}

/// 128 bits of a key: two keys with the same ones are not expected in this universe.
fn fingerprint(key: &[u8]) -> [u64; 2] {
    [0_u8, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        key.hash(&mut hasher);
        hasher.finish()
    })
}
