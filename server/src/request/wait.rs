//! Who waits for which command, from its proposal to its result.
//!
//! **Contract.** [`Waiters::register`] gives a [`Waiting`]; exactly one result comes out of it: what apply delivered, or a
//! time-out, or that the server stopped. Dropping it (the client went away) forgets the entry; the command is applied all the
//! same. At most `waiters_max` wait at a time; above that a request is overload.
//!
//! **Time.** A tick counter moved by [`Waiters::tick`] every [`TICK`] replaces a timer for each request: to wait costs no
//! reading of the clock, and time-outs are late by one tick at most.
//!
//! **Access.** Shards by the low bits of the id, each behind its own lock, held for one map operation.
use crate::apply::{Applied, Results};
use crate::wire::status::ApiError;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often [`Waiters::tick`] is to be called.
pub const TICK: Duration = Duration::from_millis(250);
const SHARDS_COUNT: usize = 16;

/// Ids count up, so they spread well as they are.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, id: u64) {
        // The map takes its slot from the low bits and its tag from the high ones: both must move with the counter.
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

struct Waiter {
    sender: oneshot::Sender<Applied>,
    /// Tick at which the wait is over.
    deadline: u32,
}

type Shard = Mutex<HashMap<u64, Waiter, BuildHasherDefault<IdHasher>>>;

/// See the module.
pub struct Waiters {
    shards: [Shard; SHARDS_COUNT],
    count: AtomicUsize,
    waiters_max: usize,
    timeout_ticks: u32,
    now: AtomicU32,
    stopped: AtomicBool,
}

impl Waiters {
    /// At most `waiters_max` at a time, each for `timeout` (rounded up to ticks).
    pub fn new(waiters_max: usize, timeout: Duration) -> Self {
        let ticks = timeout.as_millis().div_ceil(TICK.as_millis());
        Self {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            waiters_max,
            // One more, because the current tick has already begun.
            timeout_ticks: u32::try_from(ticks).unwrap_or(u32::MAX / 2).saturating_add(1),
            now: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Waiter, BuildHasherDefault<IdHasher>>> {
        self.shards[id as usize % SHARDS_COUNT].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// True when no further command may wait.
    pub fn is_full(&self) -> bool {
        self.count() >= self.waiters_max
    }

    /// Waits for the result of command `id`, which is not proposed yet.
    pub fn register(self: &Arc<Self>, id: u64) -> Result<Waiting, ApiError> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.waiters_max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(ApiError::TooManyRequests);
        }
        let (sender, receiver) = oneshot::channel();
        let deadline = self.now.load(Ordering::Relaxed).wrapping_add(self.timeout_ticks);
        self.shard(id).insert(id, Waiter { sender, deadline });
        let waiting = Waiting { id, receiver, waiters: Arc::clone(self), is_over: false };
        // Looked at after the insertion: `stop` sets it before it empties the shards, so one of the two sees the other.
        if self.stopped.load(Ordering::SeqCst) {
            return Err(ApiError::Stopped);
        }
        Ok(waiting)
    }

    fn take(&self, id: u64) -> Option<Waiter> {
        let waiter = self.shard(id).remove(&id)?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(waiter)
    }

    /// Moves time by one tick and ends the waits that are over. The waiters are few, so all are looked at.
    pub fn tick(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if self.count() > 0 {
            // Wrapping: a deadline lies at most `timeout_ticks` ahead.
            self.end(ApiError::Timeout, |waiter| waiter.deadline.wrapping_sub(now) as i32 <= 0);
        }
    }

    fn end(&self, error: ApiError, is_over: impl Fn(&Waiter) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let over: Vec<Waiter> =
                shard.extract_if(|_, waiter| is_over(waiter)).map(|(_, waiter)| waiter).collect();
            drop(shard);
            self.count.fetch_sub(over.len(), Ordering::Relaxed);
            for waiter in over {
                // The receiver may be gone in the meantime; then nobody waits.
                let _ = waiter.sender.send(Applied::refused(error.clone()));
            }
        }
    }
}

impl Results for Waiters {
    fn deliver(&self, id: u64, applied: Applied) {
        if let Some(waiter) = self.take(id) {
            let _ = waiter.sender.send(applied);
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.end(ApiError::Stopped, |_| true);
    }
}

/// One wait; a future of the result.
pub struct Waiting {
    id: u64,
    receiver: oneshot::Receiver<Applied>,
    waiters: Arc<Waiters>,
    is_over: bool,
}

impl Future for Waiting {
    type Output = Applied;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Applied> {
        let polled = Pin::new(&mut self.receiver).poll(context);
        polled.map(|applied| {
            self.is_over = true;
            applied.unwrap_or_else(|_| Applied::refused(ApiError::Stopped))
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_over {
            self.waiters.take(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Outcome;

    fn done(revision: i64) -> Applied {
        Applied { result: Ok(Outcome::LeaseRevoke { revision }), over_quota: false }
    }

    fn waiters(waiters_max: usize) -> Arc<Waiters> {
        Arc::new(Waiters::new(waiters_max, TICK * 2))
    }

    #[tokio::test]
    async fn each_waiter_hears_its_own_result() {
        let waiters = waiters(100);
        let first = waiters.register(1).unwrap();
        let second = waiters.register(17).unwrap();
        waiters.deliver(17, done(5));
        waiters.deliver(1, done(4));
        waiters.deliver(99, done(6));
        assert_eq!((first.await, second.await), (done(4), done(5)));
        assert_eq!(waiters.count(), 0);
    }

    #[tokio::test]
    async fn a_result_that_never_comes_is_a_timeout_and_not_a_tick_too_early() {
        let waiters = waiters(100);
        let waiting = waiters.register(1).unwrap();
        waiters.tick();
        waiters.tick();
        assert_eq!(waiters.count(), 1);
        waiters.tick();
        assert_eq!(waiting.await, Applied::refused(ApiError::Timeout));
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn more_than_the_bound_is_overload_and_a_client_that_left_frees_its_place() {
        let waiters = waiters(1);
        let waiting = waiters.register(1).unwrap();
        assert_eq!(waiters.register(2).err(), Some(ApiError::TooManyRequests));
        drop(waiting);
        assert!(waiters.register(2).is_ok());
    }

    #[tokio::test]
    async fn after_the_stop_everybody_hears_it() {
        let waiters = waiters(100);
        let waiting = waiters.register(1).unwrap();
        waiters.stop();
        assert_eq!(waiting.await, Applied::refused(ApiError::Stopped));
        assert_eq!(waiters.register(2).err(), Some(ApiError::Stopped));
        assert_eq!(waiters.count(), 0);
    }
}
