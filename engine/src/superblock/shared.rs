//! The superblock of an open database, written by whichever thread has something to say in it.
//!
//! **Contract.** [`SharedSuperblock::update`] changes the state and has it durable when it returns, through the caller's
//! own device: a background thread needs nothing of the thread that drives the log. One update at a time; a reader waits
//! for it, so what was read was durable.
//!
//! **Failure.** After an update that failed, which sequence the copies on disk hold is not known, and a failed write or
//! sync is never tried again: every later update returns the first error. [`SharedSuperblock::read`] goes on giving the
//! last state that is known to be durable.
use super::Superblock;
use crate::error::{Error, Result};
use crate::io::Io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
pub struct SharedSuperblock {
    state: Mutex<State>,
}

struct State {
    /// Durable on disk, unless `failed`.
    superblock: Superblock,
    /// Why nothing is written any more. Set while a write is under way too: one that panics has not ended well.
    failed: Option<Error>,
}

impl SharedSuperblock {
    /// Shares a state that was read from disk or written to it.
    pub(crate) fn new(superblock: Superblock) -> Self {
        Self { state: Mutex::new(State { superblock, failed: None }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves `failed` set.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest state that is known to be durable.
    pub fn read(&self) -> Superblock {
        self.state().superblock.clone()
    }

    /// Fails as every [`Self::update`] would after one that failed.
    ///
    /// # Errors
    /// The first error.
    pub(crate) fn check(&self) -> Result<()> {
        self.state().failed.clone().map_or(Ok(()), Err)
    }

    /// Changes the state; durable in all copies when it returns. What the change refers to must be durable before (S3).
    /// `io` is a device for the directory of this database, with nothing in flight.
    ///
    /// # Errors
    /// Whatever the device reports, now and from then on: see the module.
    pub fn update(&self, io: &mut dyn Io, change: impl FnOnce(&mut Superblock)) -> Result<()> {
        let mut state = self.state();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let mut changed = state.superblock.clone();
        change(&mut changed);
        state.failed = Some(Error::Refused("a write of the superblock did not end".into()));
        let written = changed.write(io);
        state.failed = written.as_ref().err().cloned();
        if written.is_ok() {
            state.superblock = changed;
        }
        written
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::super::Mode;
    use super::*;
    use crate::base::ids::Lsn;
    use crate::io::fault_plan::{Effect, Fault, OperationKind};
    use crate::io::sim_disk::{CrashPolicy, SimDisk};

    fn shared(disk: &SimDisk) -> SharedSuperblock {
        let superblock = Superblock::new([7; 16], Mode::Embedded, 64 << 10);
        SharedSuperblock::new(superblock.create(&mut disk.clone()).expect("a superblock"))
    }

    #[test]
    fn an_update_is_durable_through_any_device() {
        let disk = SimDisk::new(1);
        let shared = shared(&disk);
        for lsn in 1..6 {
            shared.update(&mut disk.clone(), |superblock| superblock.wal_replay_lsn = Lsn(lsn)).unwrap();
            let mut crashed = disk.crash(&CrashPolicy::DropAll);
            let read = Superblock::read(&mut crashed).unwrap().expect("there is one");
            assert_eq!((read.wal_replay_lsn, read.sequence()), (Lsn(lsn), shared.read().sequence()));
            assert!(!read.is_lone());
        }
    }

    #[test]
    fn after_a_failed_update_nothing_is_written_any_more() {
        for kind in [OperationKind::Write, OperationKind::Sync] {
            let mut disk = SimDisk::new(1);
            let shared = shared(&disk);
            disk.add_fault(Fault::nth(kind, 1, Effect::Fail));
            let set = |lsn| move |superblock: &mut Superblock| superblock.wal_replay_lsn = Lsn(lsn);
            let first = shared.update(&mut disk, set(1)).expect_err("the device failed");
            let before = disk.read_file(super::super::FILE);
            let second = shared.update(&mut disk, set(2)).expect_err("poisoned");
            assert_eq!(first.to_string(), second.to_string());
            assert_eq!(disk.read_file(super::super::FILE), before, "nothing is written");
            assert_eq!(shared.read().wal_replay_lsn, Lsn(0));
        }
    }
}
