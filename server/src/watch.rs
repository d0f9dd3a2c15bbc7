//! Watches: every change that a client asked for, once, in order, straight from the store.
//!
//! **Reading order.** [`hub`] decides who gets what (sans-IO); [`intervals`] finds the watchers of a key; [`event`] is an event encoded once;
//! [`stream`] is the bounded queue to a client; [`fragment`] is a response and its bytes; [`local`] is a watcher of the server's own; this file puts a lock and a task around the hub.
//! The gRPC side is `services/watch.rs`. `docs/watch.md` tells the whole.
//!
//! **Threads.** The apply thread only says that the head moved, and only while there are watchers. One task distributes new events and
//! serves lagging watchers by turns. Streams create and cancel watchers under the hub's lock, which is held for one bounded pass at most,
//! and take their responses from their own queues. History is read without the lock.
//!
//! **Does not know** sockets, gRPC, authentication.
pub mod event;
pub mod fragment;
pub mod hub;
pub mod intervals;
pub mod local;
pub mod progress;
pub mod stream;

pub use hub::{CreateRequest, StreamId};
pub use stream::{Outbox, OutboxLimits};

use crate::metrics::WatchMetrics;
use hub::{Hub, Turn};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use sternpost_engine::mvcc::Store;
use tokio::sync::Notify;

/// The hub with its lock, its store and its task.
pub struct WatchHub {
    hub: Mutex<Hub>,
    store: Store,
    signal: Arc<Signal>,
}

/// What the apply thread touches.
#[derive(Default)]
struct Signal {
    /// There are watchers. Set before the head is read for a new watcher; read after the head moved: so either the watcher starts behind
    /// the change, or the change is signalled.
    active: AtomicBool,
    work: Notify,
}

impl WatchHub {
    /// A hub over a store. [`WatchHub::run`] must be spawned for anything to be delivered.
    pub fn new(store: Store, limits: OutboxLimits, metrics: WatchMetrics) -> Arc<Self> {
        let signal = Arc::new(Signal::default());
        let heard = signal.clone();
        store.on_publish(Box::new(move |_head| {
            fence(Ordering::SeqCst);
            if heard.active.load(Ordering::SeqCst) {
                heard.work.notify_one();
            }
        }));
        Arc::new(Self { hub: Mutex::new(Hub::new(limits, metrics)), store, signal })
    }

    /// The task: distributes and serves, for ever. New events come first; after each piece of work others may run.
    pub async fn run(self: Arc<Self>) {
        let _fatal = EndsWithTheTask;
        let mut turn: Option<Turn> = None;
        loop {
            if self.step(&mut turn) {
                tokio::task::yield_now().await;
            } else {
                self.has_work().await;
            }
        }
    }

    /// One piece of the task's work, for who drives a hub without it: a pass over new events, then a piece of a turn. True if more is left.
    pub fn step(&self, turn: &mut Option<Turn>) -> bool {
        let more = self.distribute();
        let behind = self.serve(turn);
        more || behind
    }

    /// Waits until there may be something to do again.
    pub async fn has_work(&self) {
        self.signal.work.notified().await;
    }

    /// One pass over new events. Returns true if there are more.
    fn distribute(&self) -> bool {
        self.with_hub(|hub| hub.distribute(&self.store))
    }

    /// One piece of a turn. Returns true if lagging watchers are left that can be served.
    fn serve(&self, turn: &mut Option<Turn>) -> bool {
        if turn.is_none() {
            *turn = self.with_hub(Hub::take_turn);
        }
        let Some(current) = turn else { return false };
        let read = current.read(&self.store);
        let has_ready = self.with_hub(|hub| {
            hub.serve(current, read, &self.store);
            hub.has_ready()
        });
        if current.is_done() {
            *turn = None;
        }
        turn.is_some() || has_ready
    }

    /// Distributes everything up to the head, on the caller's thread. To be called before a compaction is applied, so that synced watchers get
    /// what it is about to remove, as in etcd.
    pub fn before_compaction(&self) {
        fence(Ordering::SeqCst);
        if self.signal.active.load(Ordering::SeqCst) {
            while self.distribute() {}
        }
    }

    fn with_hub<R>(&self, work: impl FnOnce(&mut Hub) -> R) -> R {
        let mut hub = self.hub.lock();
        let result = work(&mut hub);
        let wakes = hub.take_wakes();
        drop(hub);
        for waker in wakes {
            waker.wake();
        }
        result
    }

    /// Opens a stream.
    pub fn open_stream(&self) -> (StreamId, Arc<Outbox>) {
        self.with_hub(Hub::open_stream)
    }

    /// Closes a stream with all its watchers.
    pub fn close_stream(&self, stream: StreamId) {
        self.with_hub(|hub| {
            hub.close_stream(stream);
            self.rest_if_idle(hub);
        });
    }

    /// Creates a watcher; the answer comes through the stream.
    pub fn create(&self, stream: StreamId, request: CreateRequest) {
        let behind = self.with_hub(|hub| {
            self.signal.active.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            hub.create(stream, request, self.store.revision());
            hub.has_ready()
        });
        if behind {
            self.signal.work.notify_one();
        }
    }

    /// Refuses a watcher for a reason that is not the hub's; the answer comes through the stream.
    pub fn refuse(&self, stream: StreamId, reason: String) {
        self.with_hub(|hub| hub.refuse(stream, reason.into(), self.store.revision()));
    }

    /// Cancels a watcher; the answer comes through the stream.
    pub fn cancel(&self, stream: StreamId, id: i64) {
        self.with_hub(|hub| {
            hub.cancel(stream, id, self.store.revision());
            self.rest_if_idle(hub);
        });
    }

    /// Asks for the stream's progress.
    pub fn request_progress(&self, stream: StreamId) {
        self.with_hub(|hub| hub.request_progress(stream, self.store.revision()));
        self.signal.work.notify_one();
    }

    /// A tick of the stream's clock.
    pub fn progress_tick(&self, stream: StreamId) {
        self.with_hub(|hub| hub.progress_tick(stream));
    }

    /// The stream's queue has room again.
    pub fn drained(&self, stream: StreamId) {
        self.with_hub(|hub| hub.drained(stream));
        self.signal.work.notify_one();
    }

    /// Ends all streams.
    pub fn close(&self) {
        self.with_hub(Hub::close);
    }

    /// No watcher is left: the apply thread need not wake the task any more.
    fn rest_if_idle(&self, hub: &Hub) {
        if hub.watchers_count() == 0 {
            self.signal.active.store(false, Ordering::SeqCst);
        }
    }
}

/// A hub that broke an invariant must not leave a server behind whose watches are silent: the process ends, and clients go elsewhere.
struct EndsWithTheTask;

impl Drop for EndsWithTheTask {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
