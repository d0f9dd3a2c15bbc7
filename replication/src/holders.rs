//! Who waits for a state of this member that is kept while it is copied: backups of a running server.
//!
//! **Contract.** Any thread asks ([`Holders::hold`]); the thread of the log answers in one of its rounds ([`Holding::answer`]), when what was appended before is
//! durable. So everything that was acknowledged before the question by this log is in the answer.
//!
//! **Bounds.** [`ASKING_MAX`] may ask at once.
//!
//! **Does not know** what is done with it.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use sternpost_engine::backup::LiveSource;
use sternpost_engine::base::ids::Lsn;
use sternpost_engine::log::Log;
use sternpost_engine::transfer::StateHolder;
use sternpost_engine::{Error, Result};

/// Far more than one backup at a time needs.
const ASKING_MAX: usize = 16;
/// A disk that has not made durable what was appended for so long is one that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The side of who asks.
#[derive(Default)]
pub(crate) struct Holders {
    asking: Mutex<Vec<SyncSender<LiveSource>>>,
    /// Spares the thread of the log a lock in every round.
    is_any: AtomicBool,
}

impl Holders {
    /// Holds what is durable of everything appended before. Blocks. `wake` wakes the thread of the log.
    ///
    /// # Errors
    /// [`Error::Refused`] if too many ask, or nobody answers.
    pub(crate) fn hold(&self, wake: impl Fn()) -> Result<LiveSource> {
        let (sender, held) = sync_channel(1);
        {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            if asking.len() >= ASKING_MAX {
                return Err(Error::Refused("too many ask for a state to be held".into()));
            }
            asking.push(sender);
            self.is_any.store(true, Ordering::Release);
        }
        wake();
        held.recv_timeout(PATIENCE).map_err(|error| {
            Error::Refused(match error {
                RecvTimeoutError::Timeout => "the log has not answered for a minute".into(),
                RecvTimeoutError::Disconnected => "the log has stopped".into(),
            })
        })
    }
}

/// The side of the thread of the log.
#[derive(Default)]
pub(crate) struct Holding {
    /// What has to be durable before each, if anything.
    waiting: Vec<(Option<Lsn>, SyncSender<LiveSource>)>,
}

impl Holding {
    /// Takes who asks and answers who waited long enough. `last`: the place of the last record appended, if it may not be durable.
    pub(crate) fn answer(&mut self, holders: &Holders, last: Option<Lsn>, log: &Log, state: &StateHolder) {
        if holders.is_any.swap(false, Ordering::AcqRel) {
            let asking = std::mem::take(&mut *holders.asking.lock().unwrap_or_else(PoisonError::into_inner));
            self.waiting.extend(asking.into_iter().map(|sender| (last, sender)));
        }
        if self.waiting.is_empty() {
            return;
        }
        if log.poisoned().is_some() {
            // Their ends of the channels say so.
            return self.waiting.clear();
        }
        let durable = log.durable_lsn();
        for (_, sender) in self.waiting.extract_if(.., |(lsn, _)| lsn.is_none_or(|lsn| lsn < durable)) {
            // Who asked may be gone.
            let _ = sender.send(LiveSource::hold(log, state));
        }
    }
}
