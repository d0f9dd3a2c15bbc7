//! The part of the engine's round that an import drives: checkpoints of what came into memory past the log.
//!
//! **Contract.** A checkpoint stands behind an entry of the log (F1). For each one, one small entry is appended and made durable;
//! what was loaded before it is in the checkpoint, and a start reads on behind that entry. Until the checkpoint is durable a
//! crash loses what was loaded for it, and keeps the entry, which alone changes nothing but a system record.
//!
//! **Does not know** where what is loaded comes from.
use super::{Core, GROUP, apply};
use crate::checkpoint::Checkpointer;
use crate::error::{Error, Result};
use crate::mvcc::encoding::{LogOperation, encode};
use crate::mvcc::{CutPosition, StoreWriter};
use crate::wal::{RecordKind, RecordMeta, Reserve};

/// Between two looks at what others do.
const WAIT_US_MAX: u64 = 100_000;

impl Core {
    /// The store, to be read.
    pub(in crate::db) fn writer(&self) -> &StoreWriter {
        &self.writer
    }

    /// The store, to be loaded. Nothing else may be under way.
    pub(in crate::db) fn writer_mut(&mut self) -> &mut StoreWriter {
        assert!(self.pending.is_empty(), "a store is loaded while nobody writes to it");
        &mut self.writer
    }

    /// Appends `operation`, and makes a checkpoint of everything up to it. Waits while too much is on its way to disk, and, at
    /// the `end`, until all of it is there.
    ///
    /// # Errors
    /// Why the log or the checkpoints fail.
    pub(in crate::db) fn cut_behind(&mut self, operation: &LogOperation, end: bool) -> Result<()> {
        let mut body = Vec::new();
        encode(operation, &mut body).map_err(|error| Error::Refused(error.to_string()))?;
        let index = self.next_index;
        let meta = RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GROUP, term: 0, index };
        let lsn = self.log.append(meta, &body, Reserve::Ordinary)?;
        self.next_index += 1;
        self.last_lsn = Some(lsn);
        while self.log.durable_lsn() <= lsn {
            self.advance()?;
        }
        let runs_before = self.checkpointer.stats().runs_count;
        apply(&mut self.writer, &mut self.checkpointer, &body, index, lsn)?;
        if self.checkpointer.stats().runs_count == runs_before {
            self.checkpointer.cut(&mut self.writer, CutPosition { index, term: 0, lsn });
        }
        let is_under_way = |checkpointer: &Checkpointer| match end {
            true => checkpointer.stats().runs_count > 0,
            false => checkpointer.is_full(),
        };
        while is_under_way(&self.checkpointer) {
            self.advance()?;
        }
        // Memtables that are on disk go here: nobody else has the time.
        while self.writer.maintain() {}
        Ok(())
    }

    /// One round without writers.
    fn advance(&mut self) -> Result<()> {
        if let Some(error) = self.stopped().or_else(|| self.checkpointer.failing()) {
            return Err(error);
        }
        if self.log.is_stopped() {
            return Err(Error::Closed);
        }
        if let Some(replay_lsn) = self.checkpointer.poll(&mut self.writer, self.log.durable_lsn()) {
            self.log.set_replay_lsn(replay_lsn);
            return Ok(());
        }
        self.log.submit();
        self.log.wait(WAIT_US_MAX);
        Ok(())
    }
}
