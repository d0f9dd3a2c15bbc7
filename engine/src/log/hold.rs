//! Positions from which on somebody still needs the log.
//!
//! **Contract.** While a [`LogHold`] lives, no segment that its position or a later one lies in is used again, whatever the
//! replay position says. Dropping it wakes the thread that drives the log, which then gives back what was kept.
//!
//! **Access.** Made by the thread that drives the log, dropped by any. The lock is held for a few instructions.
//!
//! **Does not know** why somebody holds.
use crate::base::ids::Lsn;
use crate::io::Waker;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All holds of one log.
#[derive(Default)]
pub(super) struct Holds(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, Lsn>,
    /// One was dropped since the last look.
    released: bool,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest position that is held.
    pub(super) fn lowest(&self) -> Option<Lsn> {
        self.state().held.values().min().copied()
    }

    /// True once after one was dropped.
    pub(super) fn take_released(&self) -> bool {
        std::mem::take(&mut self.state().released)
    }
}

/// See the module.
pub struct LogHold {
    holds: Arc<Holds>,
    number: u64,
    wake: Waker,
}

impl LogHold {
    pub(super) fn new(holds: &Arc<Holds>, lsn: Lsn, wake: Waker) -> Self {
        let mut state = holds.state();
        let number = state.next;
        state.next += 1;
        state.held.insert(number, lsn);
        Self { holds: Arc::clone(holds), number, wake }
    }
}

impl Drop for LogHold {
    fn drop(&mut self) {
        {
            let mut state = self.holds.state();
            state.held.remove(&self.number);
            state.released = true;
        }
        (self.wake)();
    }
}
