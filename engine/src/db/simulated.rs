//! The embedded database over a simulated disk, round by round, without a thread. Feature `sim`.
use super::core::{Core, Shared};
use super::reply::WriteFuture;
use crate::error::Result;
use crate::io::Io;
use crate::log::{Log, LogIdentity, Mode};
use crate::mvcc::encoding::LogOperation;
use crate::mvcc::{Store, StoreWriter};
use crate::options::Options;
use std::sync::Arc;

/// A database whose rounds a test makes one by one; the rounds are those of the real thread.
pub struct SimulatedDb {
    core: Core,
    shared: Arc<Shared>,
}

impl SimulatedDb {
    /// Opens over `io`; `seed` makes the salts of the log.
    pub fn open(io: Box<dyn Io>, options: &Options, seed: u64) -> Result<Self> {
        let (_, writer) = StoreWriter::new(options.store.clone());
        let shared = Arc::new(Shared::new(options.durability));
        let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
        let core = Core::open(
            |visit| Log::open_over(io, &options.log, seed, &identity, visit, &mut |_| {}),
            writer,
            Arc::clone(&shared),
        )?;
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

    /// Closes cleanly.
    pub fn close(self) -> Result<()> {
        self.core.close()
    }
}
