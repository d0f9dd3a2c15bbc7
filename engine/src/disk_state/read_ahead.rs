//! What will be needed soon, read by many threads at once: leaves into the cache, values for who waits for them (`values.rs`).
//!
//! Who applies a batch, or merges a run into the tree, needs one leaf after the other and waits for each: on a device that serves
//! thirty reads at a time it gets one thirtieth of what is there. Whoever knows the keys beforehand names them here.
//!
//! **Contract.** A leaf is a hint: it changes no answer and no error. Hints are dropped when many wait; what was not read ahead is read by who
//! needs it. Damage that is met is met again by who needs the page, and told there.
//!
//! Values go before hints, since somebody waits for them; who does reads them too, so that nothing depends on a thread that is free.
//!
//! **Bounds.** [`JOBS_MAX`] jobs wait at most, a hint of one key each or a share in a batch of values; [`THREADS`] threads, which start with the first hint and end with
//! the database. They do not start over a simulated disk, where the order of reads would become a matter of chance.
//!
//! **Does not know** why somebody will need a key.
use super::DiskState;
use super::values::ValueBatch;
use crate::tree::PageRef;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Reads in flight at most: behind 16 to 32 a device gains little, and each costs a thread.
pub(super) const THREADS: usize = 16;
/// Hints that wait.
const JOBS_MAX: usize = 8192;
/// Longer keys are not read ahead: hints hold at most 8 MiB.
const KEY_BYTES_MAX: usize = 1024;

enum Job {
    /// A key whose leaf in this state is wanted.
    Key(Arc<DiskState>, Bytes),
    /// Values somebody waits for.
    Values(Arc<ValueBatch>),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The leaf of the newest hint: neighbouring keys, as a load in order has them, ask for it once.
    newest: Option<PageRef>,
    started: bool,
    idle: usize,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.queue();
        while !queue.closing {
            let Some(job) = queue.jobs.pop_front() else {
                queue.idle += 1;
                queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            drop(queue);
            match &job {
                // Who needs the leaf hears what is wrong with it.
                Job::Key(state, key) => drop(state.newest(key)),
                Job::Values(batch) => batch.work(),
            }
            // May be the last owner of the shelf, whose end asks for the queue.
            drop(job);
            queue = self.queue();
        }
    }
}

/// The threads of one shelf.
#[derive(Default)]
pub(super) struct ReadAhead {
    shared: Arc<Shared>,
}

impl ReadAhead {
    /// Takes a hint, or drops it. `missing` is the first page on the way to the key that is not in memory.
    pub(super) fn submit(&self, state: &Arc<DiskState>, key: &[u8], missing: PageRef) {
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        let mut queue = self.shared.queue();
        if queue.jobs.len() >= JOBS_MAX || (missing.level == 0 && queue.newest == Some(missing)) {
            return;
        }
        queue.newest = Some(missing);
        self.start(&mut queue);
        queue.jobs.push_back(Job::Key(state.clone(), Bytes::copy_from_slice(key)));
        if queue.idle > 0 {
            self.shared.arrived.notify_one();
        }
    }

    /// Asks up to `helpers` threads to help with a batch.
    pub(super) fn help(&self, batch: &Arc<ValueBatch>, helpers: usize) {
        let mut queue = self.shared.queue();
        let room = JOBS_MAX.saturating_sub(queue.jobs.len());
        self.start(&mut queue);
        for _ in 0..helpers.min(THREADS).min(room) {
            queue.jobs.push_front(Job::Values(batch.clone()));
        }
        if queue.idle > 0 {
            self.shared.arrived.notify_all();
        }
    }

    fn start(&self, queue: &mut Queue) {
        if queue.started {
            return;
        }
        queue.started = true;
        for _ in 0..THREADS {
            let shared = self.shared.clone();
            // One thread less is slower, and none at all as if nobody had asked.
            let _ = std::thread::Builder::new().name("read-ahead".into()).spawn(move || shared.work());
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Not joined: one of the threads may be the one that drops this. No hint waits any more: each holds its state, and that
        // the shelf.
        self.shared.queue().closing = true;
        self.shared.arrived.notify_all();
    }
}
