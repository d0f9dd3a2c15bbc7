//! The embedded database: etcd's data model in a directory of your own, without a server.
//!
//! ```no_run
//! use sternpost_engine::{Db, Options};
//! # fn main() -> sternpost_engine::Result<()> {
//! let db = Db::open("data", Options::new())?;
//! let revision = db.put("key", "value")?;
//! assert_eq!(db.get("key")?.unwrap().value, "value");
//! db.put("key", "newer")?;
//! assert_eq!(db.at(revision)?.get("key")?.unwrap().value, "value");
//! db.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! **Contract.** Every write takes the next revision; a write is answered when the chosen [`crate::options::DurabilityLevel`] is
//! reached, by default when a crash cannot take it back. Reads never wait for writes. A handle is cheap to clone and
//! usable from any thread; blocking calls block the calling thread, the `_async` ones return futures that need no
//! runtime.
//!
//! **Shape.** Writers push operations into one bounded queue. One thread (`engine`) owns log and store and repeats
//! [`core::Core::step`]: append what is queued, start the I/O, apply what is durable, answer. The simulator calls the
//! same `step`. Another thread (`calibrate`) measures the device once, see [`crate::log::calibration`].
//!
//! **Failure.** After a failed write or sync every later write fails with `LogPoisoned`; what is readable stays so. A
//! full device refuses writes with `NoSpace` and takes them again when there is space.
mod backup;
pub(crate) mod core;
mod export;
mod reply;
#[cfg(feature = "sim")]
mod simulated;
mod snapshot;
mod watcher;

use crate::checkpoint::CheckpointStats;
use crate::error::{Error, OperationError, Result};
use crate::log::calibration::{self, Calibrator};
use crate::log::{LogIdentity, Mode, PreparedLog};
use crate::mvcc::encoding::LogOperation;
use crate::mvcc::{
    DeleteRange, KeyRange, KeyValue, Put, Store, StoreStats, StoreWriter, Txn, TxnOperation, TxnOutcome,
    check_duplicate_keys,
};
use crate::options::Options;
use crate::quarantine::QuarantineStats;
use crate::scrub::{ScrubStats, Scrubber, scrub_once};
use crate::superblock::{Calibration, SharedSuperblock};
use crate::wal::WalStats;
use bytes::Bytes;
use core::{Core, Shared};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

pub use core::Answer;
pub use reply::WriteFuture;
#[cfg(feature = "sim")]
pub use simulated::SimulatedDb;
pub use snapshot::{RangeReader, Snapshot};
pub use watcher::{Start, WatchOptions, Watcher};

/// Writes that become one revision, in order. A key may be changed once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    operations: Vec<TxnOperation>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a put.
    pub fn put(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.operations.push(TxnOperation::Put(put(key.as_ref(), value.as_ref())));
        self
    }

    /// Adds the deletion of one key.
    pub fn delete(mut self, key: impl AsRef<[u8]>) -> Self {
        let range = KeyRange { key: Bytes::copy_from_slice(key.as_ref()), end: Bytes::new() };
        self.operations.push(TxnOperation::DeleteRange(DeleteRange { range, prev_kv: false }));
        self
    }
}

fn put(key: &[u8], value: &[u8]) -> Put {
    Put { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value), ..Put::default() }
}

/// What the database says of itself.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The store.
    pub store: StoreStats,
    /// Every change up to this revision survives a crash.
    pub durable_revision: i64,
    /// The log; `None` once it is closed.
    pub wal: Option<WalStats>,
    /// Checkpoints; `None` once it is closed.
    pub checkpoints: Option<CheckpointStats>,
    /// How groups of the log become durable on this device, once it was measured.
    pub calibration: Option<Calibration>,
    /// What on disk is known to be damaged.
    pub quarantine: QuarantineStats,
    /// The scrubber; `None` where it is off.
    pub scrub: Option<ScrubStats>,
}

/// An open database. Clones are handles of the same one; the last one dropped closes it.
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    store: Store,
    superblock: Arc<SharedSuperblock>,
    /// Absolute, so that it leads there from anywhere.
    directory: PathBuf,
    /// Ends before the thread that owns the log does.
    calibrator: Mutex<Option<Calibrator>>,
    /// Likewise.
    scrubber: Mutex<Option<Scrubber>>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Db {
    /// Opens the database in `directory`, making it if there is none, and replays its log.
    ///
    /// Fails with `Locked` when it is open elsewhere, `Corruption` when acknowledged data is damaged, `Refused` when
    /// the directory belongs to something else.
    pub fn open(directory: impl AsRef<Path>, options: Options) -> Result<Self> {
        let directory = directory.as_ref().to_path_buf();
        let scrub_bytes_per_second = options.scrub_bytes_per_second;
        let absolute = std::path::absolute(&directory).unwrap_or_else(|_| directory.clone());
        let (store, writer) = StoreWriter::new(options.store.clone());
        let shared = Arc::new(Shared::new(options.durability));
        let (thread_shared, closing_shared) = (Arc::clone(&shared), Arc::clone(&shared));
        let (report, opened) = mpsc::sync_channel(1);
        // A ring belongs to the thread that made it, so the log is opened where it will be driven.
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
                let prepared = PreparedLog::in_directory(&directory, &options.log, &identity, &mut |_| {});
                let opened = prepared
                    .and_then(|prepared| Core::open(prepared, &options.checkpoint, writer, thread_shared));
                match opened {
                    Ok(mut core) => {
                        let _end = EndOnDrop(closing_shared);
                        let _ = report.send(Ok((core.superblock(), core.take_calibration(), core.place())));
                        while core.step(u64::MAX) {}
                        core.close()
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                        Ok(())
                    }
                }
            })
            .map_err(|error| Error::Refused(format!("cannot start the engine's thread: {error}")))?;
        let (superblock, calibration, place) = opened
            .recv()
            .unwrap_or_else(|_| Err(Error::Refused("the engine's thread ended while opening".into())))?;
        // Nobody could hear why a measurement failed, and the next opening tries again.
        let calibrator = calibration.and_then(|job| job.start(calibration::DELAY, |_| {}).ok());
        let (calibrator, thread) = (Mutex::new(calibrator), Mutex::new(Some(thread)));
        let scrubber = Mutex::default();
        let directory = absolute;
        let inner = Inner { shared, store, superblock, directory, calibrator, scrubber, thread };
        let db = Self { inner: Arc::new(inner) };
        if scrub_bytes_per_second > 0 {
            let scrubber = Scrubber::start(db.inner.store.clone(), scrub_bytes_per_second, Some(place))?;
            *db.inner.scrubber.lock().unwrap_or_else(PoisonError::into_inner) = Some(scrubber);
        }
        Ok(db)
    }

    fn write_operation(&self, operation: &LogOperation) -> WriteFuture {
        self.inner.shared.write(operation)
    }

    /// Sets one key; returns the new revision.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<i64> {
        self.put_async(key, value).wait().map(|answer| answer.revision())
    }

    /// As [`Db::put`]; the future resolves to the answer, whose `revision()` is the new one. The write goes ahead
    /// whether or not the future is polled.
    pub fn put_async(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> WriteFuture {
        if key.as_ref().is_empty() {
            return WriteFuture::ready(Err(OperationError::EmptyKey.into()));
        }
        self.inner.store.read_ahead(key.as_ref());
        self.write_operation(&LogOperation::Put(put(key.as_ref(), value.as_ref())))
    }

    /// Deletes one key; returns whether it existed.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.delete_range(KeyRange { key: Bytes::copy_from_slice(key.as_ref()), end: Bytes::new() })
            .map(|n| n > 0)
    }

    /// Deletes the keys of a range in one revision; returns how many there were.
    pub fn delete_range(&self, range: KeyRange) -> Result<u64> {
        if range.key.is_empty() {
            return Err(OperationError::EmptyKey.into());
        }
        match self
            .write_operation(&LogOperation::DeleteRange(DeleteRange { range, prev_kv: false }))
            .wait()?
        {
            Answer::DeleteRange(outcome) => Ok(u64::try_from(outcome.deleted).unwrap_or(0)),
            other => unreachable!("a delete is answered as a delete, not {other:?}"),
        }
    }

    /// Applies a batch as one revision; returns the revision afterwards.
    pub fn write(&self, batch: Batch) -> Result<i64> {
        self.txn(Txn { success: batch.operations, ..Txn::default() }).map(|outcome| outcome.revision)
    }

    /// Runs a transaction: all compares on the state before, then one of the branches, as one revision.
    pub fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        check_keys(&txn)?;
        check_duplicate_keys(&txn)?;
        match self.write_operation(&LogOperation::Txn(txn)).wait()? {
            Answer::Txn(outcome) => Ok(outcome),
            other => unreachable!("a transaction is answered as one, not {other:?}"),
        }
    }

    /// Forgets what a read at or above `revision` cannot see; reads below it fail from now on.
    pub fn compact(&self, revision: i64) -> Result<()> {
        self.write_operation(&LogOperation::Compact(revision)).wait().map(|_| ())
    }

    /// Returns when every write that was answered before the call is durable.
    pub fn sync(&self) -> Result<()> {
        self.inner.shared.sync().wait().map(|_| ())
    }

    /// The current state of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<KeyValue>> {
        self.latest().get(key)
    }

    /// A view of the current revision. It pins no files and blocks nobody; after a compaction beyond it, reads fail
    /// with `Compacted`.
    pub fn latest(&self) -> Snapshot {
        Snapshot::new(self.inner.store.clone(), self.inner.store.revision())
    }

    /// A view of an older revision that is not compacted.
    pub fn at(&self, revision: i64) -> Result<Snapshot> {
        let (head, compacted) = (self.inner.store.revision(), self.inner.store.compact_revision());
        if revision > head {
            return Err(Error::FutureRevision(head));
        }
        if revision < compacted || revision < 1 {
            return Err(Error::Compacted(compacted));
        }
        Ok(Snapshot::new(self.inner.store.clone(), revision))
    }

    /// Watches a range of keys from `start` on: every event once, in order, durable ones only unless the options say
    /// otherwise. Fails with `Compacted` when the start lies below the compact revision.
    pub fn watch(&self, range: KeyRange, start: Start, options: WatchOptions) -> Result<Watcher> {
        Watcher::new(self.inner.store.clone(), Arc::clone(&self.inner.shared), range, start, options)
    }

    /// Counters and latencies. Waits for the thread that owns the log to give its own, at most as long as one of its rounds.
    pub fn stats(&self) -> Stats {
        let (wal, checkpoints) = self.inner.shared.stats().unzip();
        Stats {
            store: self.inner.store.stats(),
            durable_revision: self.inner.shared.durable_revision(),
            wal,
            checkpoints,
            calibration: self.inner.superblock.read().calibration,
            quarantine: self.inner.store.quarantine(),
            scrub: self
                .inner
                .scrubber
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_ref()
                .map(Scrubber::stats),
        }
    }

    /// Reads and verifies everything that the newest checkpoint refers to, once and at full speed, on the calling thread; past the cache, so
    /// that what is on disk counts. What is damaged is in [`Stats::quarantine`] afterwards, and what is not any more is not.
    pub fn scrub(&self) -> ScrubStats {
        scrub_once(&self.inner.store)
    }

    /// Makes everything durable and closes; later writes through any handle fail with `Closed`.
    pub fn close(self) -> Result<()> {
        self.inner.close()
    }
}

/// However the thread ends, nobody waits for it any longer.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn check_keys(txn: &Txn) -> Result<(), OperationError> {
    let empty = |key: &Bytes| if key.is_empty() { Err(OperationError::EmptyKey) } else { Ok(()) };
    for compare in &txn.compares {
        empty(&compare.range.key)?;
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        match operation {
            TxnOperation::Range(range) => empty(&range.range.key)?,
            TxnOperation::Put(put) => empty(&put.key)?,
            TxnOperation::DeleteRange(delete) => empty(&delete.range.key)?,
            TxnOperation::Txn(nested) => check_keys(nested)?,
        }
    }
    Ok(())
}

impl Inner {
    fn stop_background(&self) {
        drop(self.scrubber.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.calibrator.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn close(&self) -> Result<()> {
        self.stop_background();
        self.shared.start_closing();
        match self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(thread) => match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // close() is the call that reports errors; here nobody could hear them.
        self.stop_background();
        self.shared.start_closing();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}
