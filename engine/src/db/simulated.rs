//! The embedded database over a simulated disk, round by round, without a thread. Feature `sim`.
use super::core::{Core, Shared};
use super::reply::WriteFuture;
use crate::checkpoint::CheckpointStats;
use crate::error::Result;
use crate::io::sim_disk::SimDisk;
use crate::log::{LogIdentity, Mode, PreparedLog};
use crate::mvcc::encoding::LogOperation;
use crate::mvcc::{Store, StoreWriter};
use crate::options::Options;
use crate::scrub::{ScrubStats, scrub_once};
use crate::wal::WalStats;
use std::sync::Arc;

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

    /// What checkpoints did.
    pub fn checkpoint_stats(&self) -> CheckpointStats {
        self.core.checkpoint_stats()
    }

    /// What the log did.
    pub fn wal_stats(&self) -> WalStats {
        self.core.wal_stats()
    }

    /// Reads and verifies everything that the newest checkpoint refers to.
    pub fn verify(&self) -> Result<()> {
        self.core.store().disk().verify(&mut |_| {}).map(drop)
    }

    /// See [`crate::Db::scrub`].
    pub fn scrub(&self) -> ScrubStats {
        scrub_once(self.core.store())
    }

    /// Closes cleanly.
    pub fn close(self) -> Result<()> {
        self.core.close()
    }
}
