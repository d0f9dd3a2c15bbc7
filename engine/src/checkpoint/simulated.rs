//! Checkpoints over a simulated disk, without a log: for tests that hold a store against a model. Feature `sim`.
//!
//! An operation stands for an entry of the log. What a reopened store is missing, from [`SimulatedCheckpoints::applied`] on,
//! the test applies again, as the replay of a log would.
use super::{CheckpointOptions, CheckpointStats, Checkpointer};
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::io::sim_disk::SimDisk;
use crate::mvcc::{CutPosition, StoreWriter};
use crate::superblock::{Mode, SharedSuperblock, Superblock};
use std::sync::Arc;

/// See the module.
pub struct SimulatedCheckpoints {
    checkpointer: Checkpointer,
    index: u64,
}

impl SimulatedCheckpoints {
    /// Opens what `disk` holds, nothing at first, and puts it under a fresh `writer`.
    pub fn open(disk: &SimDisk, writer: &mut StoreWriter, options: &CheckpointOptions) -> Result<Self> {
        let mut io = disk.handle();
        let superblock = match Superblock::read(&mut io)? {
            Some(superblock) => superblock,
            None => Superblock::new([9; 16], Mode::Embedded, 64 << 10).create(&mut io)?,
        };
        let superblock = Arc::new(SharedSuperblock::new(superblock));
        let mut checkpointer = Checkpointer::open(
            &mut io,
            Arc::new(disk.clone()),
            superblock,
            options,
            (Arc::default(), false),
        )?;
        checkpointer.attach(writer)?;
        checkpointer.start_here(Box::new(io));
        let index = writer.store().applied().0;
        Ok(Self { checkpointer, index })
    }

    /// Operations that the store held when it was opened, and that were applied since.
    pub fn applied(&self) -> u64 {
        self.index
    }

    fn position(&self) -> CutPosition {
        CutPosition { index: self.index, term: 1, lsn: Lsn(self.index * 100) }
    }

    /// To be called behind every operation.
    pub fn after_operation(&mut self, writer: &mut StoreWriter) {
        self.index += 1;
        writer.set_applied(self.index, 1);
        self.checkpointer.after_entry(writer, self.position());
    }

    /// Makes the checkpoints that are due. With `now`, one of everything that was applied.
    ///
    /// # Errors
    /// Why one could not be made; it is due still.
    pub fn make(&mut self, writer: &mut StoreWriter, now: bool) -> Result<()> {
        if now && self.index > 0 {
            self.checkpointer.cut(writer, self.position());
        }
        loop {
            let made = self.checkpointer.poll(writer, Lsn(u64::MAX)).is_some();
            let failing = self.checkpointer.failing();
            if self.checkpointer.stats().runs_count == 0 && !writer.wants_sweep() {
                return failing.map_or(Ok(()), Err);
            }
            if !made {
                return Err(
                    failing.unwrap_or_else(|| Error::Refused("a checkpoint is due and not made".into()))
                );
            }
        }
    }

    /// Counters.
    pub fn stats(&self) -> CheckpointStats {
        self.checkpointer.stats()
    }

    /// Reads and verifies everything that the newest checkpoint refers to, and what its sums say.
    pub fn verify(&self) -> Result<()> {
        self.checkpointer.state().verify(&mut |_| {}).map(drop)
    }
}
