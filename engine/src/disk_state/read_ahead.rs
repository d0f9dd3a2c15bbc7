//! What will be needed soon, read by many threads at once: leaves into the cache, values for who waits for them (`values.rs`).
//!
//! Who applies a batch, or merges a run into the tree, needs one leaf after the other and waits for each: on a device that serves
//! thirty reads at a time it gets one thirtieth of what is there. Whoever knows the keys beforehand names them here.
//!
//! **Contract.** A leaf is a hint: it changes no answer and no error. Hints are dropped when many wait, and with the state that they are about; what
//! was not read ahead is read by who needs it. A page that cannot be read for a hint is left alone: it is not read again, not noted as damaged, not
//! made again. Who needs it meets the damage as if nobody had been there.
//!
//! Values go before hints, since somebody waits for them; who does reads them too, so that nothing depends on a thread that is free.
//!
//! **Bounds.** [`JOBS_MAX`] jobs wait at most, a hint of one key each or a share in a batch of values; [`THREADS`] threads, which start with the first hint and end with
//! the database.
//!
//! **Without threads** ([`super::ShelfOptions::ahead_seed`], for tests): whoever gives hints follows some of them there and then, as a seed draws it, so
//! that each is followed at once, later, or never; with the seed 0 always at once. Over a simulated disk there is nothing else, since with
//! threads the order of reads would become a matter of chance.
//!
//! **Does not know** why somebody will need a key.
use super::DiskState;
use super::values::ValueBatch;
#[cfg(feature = "sim")]
use crate::base::rng::Rng;
use crate::tree::PageRef;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// Reads in flight at most: behind 16 to 32 a device gains little, and each costs a thread.
pub(super) const THREADS: usize = 16;
/// Hints that wait.
const JOBS_MAX: usize = 8192;
/// Longer keys are not read ahead: hints hold at most 8 MiB.
const KEY_BYTES_MAX: usize = 1024;

/// What somebody will need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// The newest version of a key: what is pending spares the leaf.
    Newest,
    /// The leaf, and what is pending over it.
    Leaf,
}

enum Job {
    /// A key on the way to which pages of this state are wanted. It keeps no state alive, and none of its files.
    Key(Weak<DiskState>, Bytes, Wanted),
    /// Values somebody waits for.
    Values(Arc<ValueBatch>),
}

impl Job {
    fn run(self) {
        match self {
            Self::Key(state, key, wanted) => {
                if let Some(state) = state.upgrade() {
                    state.load_ahead(&key, wanted);
                }
            }
            Self::Values(batch) => batch.work(),
        }
    }
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
            // May be the last owner of the shelf, whose end asks for the queue.
            job.run();
            queue = self.queue();
        }
    }
}

/// Who follows the hints about one shelf.
#[derive(Default)]
pub(super) struct ReadAhead {
    shared: Arc<Shared>,
    /// In place of threads.
    #[cfg(feature = "sim")]
    drawn: Option<Drawn>,
}

impl ReadAhead {
    /// Without threads: see the module.
    #[cfg(feature = "sim")]
    pub(super) fn without_threads(seed: u64) -> Self {
        let drawn = Drawn { rng: (seed != 0).then(|| Mutex::new(Rng::new(seed))) };
        Self { shared: Arc::default(), drawn: Some(drawn) }
    }

    /// Takes a hint, or drops it. `missing` is the first page on the way to the key that is not in memory.
    pub(super) fn submit(&self, state: &Arc<DiskState>, key: &[u8], wanted: Wanted, missing: PageRef) {
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        let mut queue = self.shared.queue();
        // Leaves of the key tree under one page of what is pending are different leaves.
        let is_asked = wanted == Wanted::Newest && missing.level == 0 && queue.newest == Some(missing);
        if queue.jobs.len() >= JOBS_MAX || is_asked {
            return;
        }
        queue.newest = Some(missing);
        queue.jobs.push_back(Job::Key(Arc::downgrade(state), Bytes::copy_from_slice(key), wanted));
        #[cfg(feature = "sim")]
        if let Some(drawn) = &self.drawn {
            drop(queue);
            return drawn.follow_some(&self.shared);
        }
        self.start(&mut queue);
        if queue.idle > 0 {
            self.shared.arrived.notify_one();
        }
    }

    /// Asks up to `helpers` threads to help with a batch.
    pub(super) fn help(&self, batch: &Arc<ValueBatch>, helpers: usize) {
        #[cfg(feature = "sim")]
        if let Some(drawn) = &self.drawn {
            return drawn.take_some(batch, helpers);
        }
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

/// What would be up to threads, drawn.
#[cfg(feature = "sim")]
struct Drawn {
    /// None: everything at once.
    rng: Option<Mutex<Rng>>,
}

#[cfg(feature = "sim")]
impl Drawn {
    /// A number of at most `most`: often none, often all.
    fn draw(&self, most: usize) -> usize {
        let Some(rng) = &self.rng else { return most };
        let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
        match rng.below(4) {
            0 => 0,
            1 => most,
            _ => rng.below(most as u64 + 1) as usize,
        }
    }

    /// Follows hints that wait, in any order.
    fn follow_some(&self, shared: &Shared) {
        let count = shared.queue().jobs.len();
        for _ in 0..self.draw(count) {
            let mut queue = shared.queue();
            let last = queue.jobs.len().saturating_sub(1);
            let Some(job) = queue.jobs.swap_remove_back(self.draw(last)) else { return };
            drop(queue);
            job.run();
        }
    }

    /// Takes pieces of a batch as others would; the caller reads what is left.
    fn take_some(&self, batch: &ValueBatch, helpers: usize) {
        for _ in 0..self.draw(helpers) {
            batch.work_at_one();
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Not joined: one of the threads may be the one that drops this. Hints that wait are about states that are gone.
        self.shared.queue().closing = true;
        self.shared.arrived.notify_all();
    }
}
