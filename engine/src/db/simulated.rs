//! The embedded database over a simulated disk, round by round, without a thread. Feature `sim`.
use super::core::{Core, Shared};
use super::export;
use super::reply::WriteFuture;
use super::snapshot::Snapshot;
use crate::backup::{BackupOptions, BackupProgress, BackupReport, Place, create};
use crate::checkpoint::CheckpointStats;
use crate::error::{Error, Result};
use crate::export::{StreamReader, StreamReport};
use crate::io::Io;
use crate::io::sim_disk::SimDisk;
use crate::io::sim_subdirectory::SimSubdirectory;
use crate::log::{LogIdentity, Mode, PreparedLog};
use crate::mvcc::encoding::LogOperation;
use crate::mvcc::{Store, StoreWriter};
use crate::options::Options;
use crate::scrub::{ScrubStats, scrub_once};
use crate::transfer::HeldState;
use crate::wal::WalStats;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

/// A database whose rounds a test makes one by one; the rounds are those of the real thread.
pub struct SimulatedDb {
    core: Core,
    shared: Arc<Shared>,
}

impl SimulatedDb {
    /// Opens over `disk`; `seed` makes the salts of the log. Checkpoints are made within [`Self::step`].
    pub fn open(disk: &SimDisk, options: &Options, seed: u64) -> Result<Self> {
        let (_, writer) = StoreWriter::new(options.store.clone());
        let shared = Arc::new(Shared::new(options.durability));
        let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
        let prepared = PreparedLog::on_simulated_disk(disk, &options.log, &identity, seed)?;
        let core = Core::open(prepared, &options.checkpoint, writer, Arc::clone(&shared))?;
        Ok(Self { core, shared })
    }

    /// Queues a write.
    pub fn write(&self, operation: &LogOperation) -> WriteFuture {
        self.shared.write(operation)
    }

    /// Queues a sync.
    pub fn sync(&self) -> WriteFuture {
        self.shared.sync()
    }

    /// One round of the thread's loop; false when it would end.
    pub fn step(&mut self, wait_us_max: u64) -> bool {
        self.core.step(wait_us_max)
    }

    /// What readers see.
    pub fn store(&self) -> &Store {
        self.core.store()
    }

    /// See [`crate::Db::latest`].
    pub fn latest(&self) -> Snapshot {
        Snapshot::new(self.store().clone(), self.store().revision())
    }

    /// What checkpoints did.
    pub fn checkpoint_stats(&self) -> CheckpointStats {
        self.core.checkpoint_stats()
    }

    /// What the log did.
    pub fn wal_stats(&self) -> WalStats {
        self.core.wal_stats()
    }

    /// Makes a checkpoint of everything that is applied, and holds it.
    ///
    /// # Errors
    /// [`Error::Closed`] if the device stops or fails before; what [`crate::transfer::StateHolder::hold`] says.
    pub fn hold(&mut self, disk: &SimDisk) -> Result<HeldState> {
        let holder = self.core.checkpointer().state_holder();
        let applied = self.store().applied();
        self.core.checkpointer().ask();
        while holder.applied().0 < applied.0 {
            let failing = self.core.checkpointer().failing();
            if disk.is_stopped() || failing.is_some() || !self.step(1_000) {
                return Err(failing.unwrap_or(Error::Closed));
            }
        }
        holder.hold()?.ok_or(Error::Closed)
    }

    /// Reads and verifies everything that the newest checkpoint refers to.
    pub fn verify(&self) -> Result<()> {
        self.core.store().disk().verify(&mut |_| {}).map(drop)
    }

    /// See [`crate::Db::scrub`].
    pub fn scrub(&self) -> ScrubStats {
        scrub_once(self.core.store())
    }

    /// Backs up into the existing, empty directory `to` of the same disk, within the call: the rounds before and behind it are
    /// the caller's. `during` is called behind every piece that is copied or read, with this database: for writes and rounds, which
    /// come between on a real one.
    ///
    /// # Errors
    /// Those of [`crate::Db::backup_to`].
    pub fn backup_to(
        &mut self,
        disk: &SimDisk,
        to: &str,
        options: &BackupOptions,
        during: &mut dyn FnMut(&mut Self, BackupProgress),
    ) -> Result<BackupReport> {
        let held = self.shared.hold();
        let held = loop {
            match held.try_recv() {
                Ok(held) => break held?,
                Err(TryRecvError::Disconnected) => return Err(Error::Closed),
                Err(TryRecvError::Empty) => _ = self.step(1_000),
            }
            if disk.is_stopped() {
                return Err(Error::Closed);
            }
        };
        let source = held.into_source(Arc::new(disk.clone()), PathBuf::new());
        let mut io = SimSubdirectory::new(disk.handle(), to);
        let files = io.clone();
        let place = Place { io: &mut io, files: &files };
        let base = None;
        create(source, place, options, base, &mut |progress| during(self, progress))
    }

    /// See [`crate::Db::export`]; makes nothing durable.
    ///
    /// # Errors
    /// Those of [`crate::Db::export`].
    pub fn export(&self, revision: Option<i64>, sink: &mut dyn Write) -> Result<StreamReport> {
        export::export_state(self.core.store(), self.database(), revision, sink, &mut |_| {})
    }

    /// See [`crate::Db::export_changes`]; makes nothing durable.
    ///
    /// # Errors
    /// Those of [`crate::Db::export_changes`].
    pub fn export_changes(&self, from: i64, to: Option<i64>, sink: &mut dyn Write) -> Result<StreamReport> {
        export::export_changes(self.core.store(), self.database(), (from, to), sink, &mut |_| {})
    }

    fn database(&self) -> [u8; 16] {
        self.core.superblock().read().database
    }

    /// See [`crate::Db::import`]; a state goes onto an empty disk.
    ///
    /// # Errors
    /// Those of [`crate::Db::import`].
    pub fn import(
        disk: &SimDisk,
        options: &Options,
        seed: u64,
        stream: &mut dyn Read,
    ) -> Result<StreamReport> {
        let reader = StreamReader::new(stream)?;
        let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
        let prepared = PreparedLog::on_simulated_disk(disk, &options.log, &identity, seed)?;
        export::import_into(prepared, &mut disk.handle(), options, reader, &mut |_| {})
    }

    /// Closes cleanly.
    pub fn close(self) -> Result<()> {
        self.core.close()
    }
}
