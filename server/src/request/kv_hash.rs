//! etcd's HashKV: CRC-32C over the key space as etcd stores it, equal to etcd's for the same history.
//!
//! **Layout** of what is hashed: the bytes `key` (etcd's bucket name), then for every record in revision order its key in
//! etcd's file (main revision big-endian, `_`, sub revision big-endian, and `t` for a delete) and its value (protobuf
//! `KeyValue`; a delete has only the key).
//!
//! **Which records**, at revision R with compact revision C: those up to R; of those up to C only what a read at R returns,
//! because the others may or may not be scrubbed; never a delete exactly at C, because older releases drop it. If nothing is
//! alive at R, what remains counts as it is.
//!
//! **Compactions.** etcd keeps the hash that each of its last ten compactions saw: records up to C with the compact revision
//! before it. The history is gone afterwards, so [`KvHashes::scan_before_compaction`] reads it first, on a blocking thread,
//! from one consistent view that exists before the compaction is proposed. Kept by the member that served the Compact.
//!
//! **Source**: `server/storage/mvcc/hash.go` and `kvstore.go` of etcd 3.7.3.
use crate::wire::status::ApiError;
use bytes::BufMut;
use crc_fast::{CrcAlgorithm, Digest};
use prost::encoding::{self, WireType, encode_key, encode_varint};
use std::sync::{Arc, Mutex, PoisonError};
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{RetainedRecord, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

/// Hashes of compactions that are kept.
const KEPT_MAX: usize = 10;
/// Bytes gathered before the checksum runs over them.
const GATHER_BYTES: usize = 64 << 10;

/// A hash and what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvHash {
    /// CRC-32C.
    pub hash: u32,
    /// Compact revision it was made with.
    pub compact_revision: i64,
    /// Last revision in it.
    pub revision: i64,
}

/// Runs over records in revision order.
struct Hasher {
    digest: Digest,
    gathered: Vec<u8>,
}

impl Hasher {
    fn new() -> Self {
        Self { digest: Digest::new(CrcAlgorithm::Crc32Iscsi), gathered: b"key".to_vec() }
    }

    fn add(&mut self, record: &RetainedRecord<'_>) {
        let out = &mut self.gathered;
        out.put_i64(record.revision.main);
        out.put_u8(b'_');
        out.put_i64(record.revision.sub);
        if record.tombstone {
            out.put_u8(b't');
        }
        encode_record(record, out);
        if self.gathered.len() >= GATHER_BYTES {
            self.digest.update(&self.gathered);
            self.gathered.clear();
        }
    }

    fn finish(mut self) -> u32 {
        self.digest.update(&self.gathered);
        self.digest.finalize() as u32
    }
}

/// `KeyValue` from borrowed parts: fields 1 to 6 in order, zeros left out.
pub(crate) fn encode_record(record: &RetainedRecord<'_>, out: &mut Vec<u8>) {
    let bytes = |number: u32, bytes: &[u8], out: &mut Vec<u8>| {
        if !bytes.is_empty() {
            encode_key(number, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
    };
    let int = |number: u32, value: i64, out: &mut Vec<u8>| {
        if value != 0 {
            encoding::int64::encode(number, &value, out);
        }
    };
    bytes(1, record.key, out);
    if !record.tombstone {
        int(2, record.create_revision, out);
        int(3, record.revision.main, out);
        int(4, record.version, out);
        bytes(5, record.value, out);
        int(6, record.lease, out);
    }
}

/// The hash at `revision` (0: the current one), as the store is now. Reads all retained history: not for the calling task of
/// a request.
pub fn hash_at(store: &Store, revision: i64) -> Result<KvHash, OperationError> {
    let revision = if revision == 0 { store.revision() } else { revision };
    if revision < 0 {
        let compact_revision = store.compact_revision();
        return Ok(KvHash { hash: Hasher::new().finish(), compact_revision, revision });
    }
    scan(store, revision, Purpose::Now, &mut || {})
}

/// What a scan is for: etcd's set of records that a compaction at R keeps holds the deletes exactly at R, the set for a hash at
/// R does not. It matters where nothing else is in the set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Now,
    Compaction,
}

/// Two hashers run at once because it is only known at the end whether anything is alive at `revision`.
fn scan(
    store: &Store,
    revision: i64,
    purpose: Purpose,
    on_first: &mut dyn FnMut(),
) -> Result<KvHash, OperationError> {
    // A hint only: the compact revision that counts is the one that the scan saw. If they differ, the scan is repeated.
    let mut expected = store.compact_revision();
    loop {
        let mut kept = Hasher::new();
        let mut whole = Hasher::new();
        let (mut is_alive, mut is_first) = (false, true);
        let seen = store.for_each_retained(revision, &mut |record| {
            if std::mem::take(&mut is_first) {
                on_first();
            }
            is_alive |= record.visible;
            is_alive |=
                purpose == Purpose::Compaction && record.tombstone && record.revision.main == revision;
            if record.revision.main == expected && record.tombstone {
                return;
            }
            if record.revision.main > expected || record.visible {
                kept.add(record);
            }
            if !is_alive {
                whole.add(record);
            }
        })?;
        if seen == expected {
            let hash = if is_alive { kept.finish() } else { whole.finish() };
            return Ok(KvHash { hash, compact_revision: seen, revision });
        }
        expected = seen;
    }
}

/// Hashes kept from compactions.
pub struct KvHashes {
    kept: Mutex<Vec<KvHash>>,
    /// One scan before a compaction at a time; taken by readers to wait for it.
    scanning: Arc<Semaphore>,
    /// One hash for a reader at a time: it is the dearest thing a client can ask for.
    hashing: Semaphore,
}

impl Default for KvHashes {
    fn default() -> Self {
        Self { kept: Mutex::default(), scanning: Arc::new(Semaphore::new(1)), hashing: Semaphore::new(1) }
    }
}

/// A scan that began before a compaction.
pub struct CompactionScan {
    hashes: Arc<KvHashes>,
    task: JoinHandle<Result<KvHash, OperationError>>,
    permit: OwnedSemaphorePermit,
}

impl KvHashes {
    /// Starts hashing the history up to `revision` and returns when the scan has its view. None if the compaction is going to
    /// be refused, or if an earlier scan still runs: then its hash is not kept, as etcd does after an interrupted one.
    pub async fn scan_before_compaction(
        self: &Arc<Self>,
        store: &Store,
        revision: i64,
    ) -> Option<CompactionScan> {
        if revision <= store.compact_revision() || revision > store.revision() {
            return None;
        }
        let permit = Arc::clone(&self.scanning).try_acquire_owned().ok()?;
        let (sender, has_view) = oneshot::channel();
        let mut sender = Some(sender);
        let store = store.clone();
        let task = tokio::task::spawn_blocking(move || {
            scan(&store, revision, Purpose::Compaction, &mut || {
                if let Some(sender) = sender.take() {
                    let _ = sender.send(());
                }
            })
        });
        // Also over when the scan ends without a record: the sender is dropped with it.
        let _ = has_view.await;
        Some(CompactionScan { hashes: Arc::clone(self), task, permit })
    }

    fn keep(&self, hash: KvHash) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(hash);
        kept.sort_by_key(|hash| hash.revision);
        let excess = kept.len().saturating_sub(KEPT_MAX);
        kept.drain(..excess);
    }

    fn kept_at(&self, revision: i64) -> Option<KvHash> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|hash| hash.revision == revision).copied()
    }

    /// The hash at `revision`: kept from a compaction, or made now on a blocking thread.
    pub async fn hash(&self, store: &Store, revision: i64) -> Result<KvHash, ApiError> {
        // Waits for a scan that runs; it is never closed, so an error cannot be.
        drop(self.scanning.acquire().await);
        if let Some(hash) = self.kept_at(revision) {
            return Ok(hash);
        }
        let _turn = self.hashing.acquire().await;
        let store = store.clone();
        let hash = tokio::task::spawn_blocking(move || hash_at(&store, revision)).await;
        Ok(hash.map_err(|_| ApiError::Stopped)??)
    }
}

impl CompactionScan {
    /// Keeps the hash if the compaction was applied on top of the compact revision that the scan saw, `previous`; with `wait`
    /// returns not before the scan is over.
    pub async fn settle(self, previous: Option<i64>, wait: bool) {
        let settle = async move {
            if let Ok(Ok(hash)) = self.task.await
                && previous == Some(hash.compact_revision)
            {
                self.hashes.keep(hash);
            }
            drop(self.permit);
        };
        if wait {
            settle.await;
        } else {
            tokio::spawn(settle);
        }
    }
}

/// CRC-32C over everything that is stored, system records included: etcd's `Hash`, which depends on the implementation and is
/// for tests.
pub fn hash_all(store: &Store) -> Result<u32, OperationError> {
    let mut hasher = Hasher::new();
    store.for_each_retained(store.revision(), &mut |record| hasher.add(record))?;
    hasher.gathered.extend_from_slice(b"system");
    for (key, value) in store.system_scan(b"") {
        hasher.gathered.extend_from_slice(&key);
        hasher.gathered.extend_from_slice(&value);
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mvccpb::KeyValue;
    use prost::Message;
    use sternpost_engine::base::ids::Revision;

    fn record(main: i64, value: &'static [u8]) -> RetainedRecord<'static> {
        RetainedRecord {
            revision: Revision::new(main, 0),
            tombstone: false,
            key: b"a",
            value,
            create_revision: 2,
            version: 1,
            lease: 0,
            visible: true,
        }
    }

    #[test]
    fn records_are_encoded_as_protobuf_does() {
        let record = RetainedRecord { lease: -7, version: 300, ..record(1 << 40, b"value") };
        let kv = KeyValue {
            key: record.key.to_vec().into(),
            create_revision: record.create_revision,
            mod_revision: record.revision.main,
            version: record.version,
            value: record.value.to_vec().into(),
            lease: record.lease,
        };
        let mut found = Vec::new();
        encode_record(&record, &mut found);
        assert_eq!(found, kv.encode_to_vec());
        let mut found = Vec::new();
        encode_record(&RetainedRecord { tombstone: true, ..record }, &mut found);
        assert_eq!(found, KeyValue { key: record.key.to_vec().into(), ..Default::default() }.encode_to_vec());
    }

    /// The bytes of `put a 1` at revision 2 and `del a` at 3 written out by hand, and the check value of CRC-32C.
    #[test]
    fn the_hashed_bytes_are_those_of_etcds_file() {
        let mut hasher = Hasher::new();
        hasher.add(&record(2, b"1"));
        hasher.add(&RetainedRecord { tombstone: true, ..record(3, b"") });
        let mut expected = b"key".to_vec();
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 2, b'_', 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0x0a, 1, b'a', 0x10, 2, 0x18, 2, 0x20, 1, 0x2a, 1, b'1']);
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 3, b'_', 0, 0, 0, 0, 0, 0, 0, 0, b't']);
        expected.extend_from_slice(&[0x0a, 1, b'a']);
        assert_eq!(hasher.gathered, expected);
        assert_eq!(hasher.finish(), crc32c_bit_by_bit(&expected));
        assert_eq!(crc32c_bit_by_bit(b"123456789"), 0xE306_9283);
    }

    /// CRC-32C straight from its polynomial.
    fn crc32c_bit_by_bit(bytes: &[u8]) -> u32 {
        let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0x82F6_3B78 & 0_u32.wrapping_sub(crc & 1))
            })
        });
        !crc
    }
}
