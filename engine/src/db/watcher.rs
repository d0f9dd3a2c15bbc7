//! Watching a range of keys: a blocking iterator that is also an async stream, without a runtime.
//!
//! A watcher is a position in the history and nothing else: it costs no memory while it lags, and a slow one never
//! slows a writer. Every event comes once, in (main, sub) order (H1). When a compaction passes a lagging watcher, it
//! hears `Compacted` and ends: events it has not seen may be gone.
use super::core::Shared;
use crate::error::{Error, Result};
use crate::mvcc::{Event, KeyRange, Store};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// One look into the history takes at most this many events and bytes.
const BATCH_EVENTS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// Where a watch starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the next change after the call.
    Now,
    /// With this revision, past or future.
    At(i64),
}

/// How events are delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatchOptions {
    /// Fill in each event's previous state.
    pub prev_kv: bool,
    /// Deliver events that a crash may still take back; matters only when the durability level is not `Group`.
    pub not_yet_durable: bool,
}

/// See the module.
pub struct Watcher {
    store: Store,
    shared: Arc<Shared>,
    range: KeyRange,
    options: WatchOptions,
    next_revision: i64,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Watcher {
    pub(super) fn new(
        store: Store,
        shared: Arc<Shared>,
        range: KeyRange,
        start: Start,
        options: WatchOptions,
    ) -> Result<Self> {
        let next_revision = match start {
            Start::Now => store.revision() + 1,
            Start::At(revision) => revision,
        };
        let compacted = store.compact_revision();
        if next_revision < compacted || next_revision < 0 {
            return Err(Error::Compacted(compacted));
        }
        Ok(Self { store, shared, range, options, next_revision, ready: VecDeque::new(), ended: false })
    }

    /// The first revision that was not looked at yet: where a later watch would go on.
    pub fn next_revision(&self) -> i64 {
        self.next_revision
    }

    /// The next event, waiting for at most `timeout`; `None` when there was none.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<Event>> {
        self.next_within(Some(timeout))
    }

    fn next_within(&mut self, timeout: Option<Duration>) -> Option<Result<Event>> {
        loop {
            match self.poll_ready() {
                Poll::Ready(item) => return item,
                Poll::Pending => {
                    let next_revision = self.next_revision;
                    let arrived =
                        self.shared.wait_until(timeout, || self.visible_revision() >= next_revision);
                    if !arrived && timeout.is_some() && !self.shared.is_closed() {
                        return None;
                    }
                }
            }
        }
    }

    fn visible_revision(&self) -> i64 {
        if self.options.not_yet_durable { self.store.revision() } else { self.shared.durable_revision() }
    }

    /// The next event if there is one; `Ready(None)` when the database is closed and everything was delivered.
    fn poll_ready(&mut self) -> Poll<Option<Result<Event>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            // Asked before the look: what is published in between is seen by the look or by the next round.
            let closed = self.shared.is_closed();
            let visible = self.visible_revision();
            if self.next_revision > visible {
                return if closed { Poll::Ready(None) } else { Poll::Pending };
            }
            match self.store.events(self.next_revision, BATCH_EVENTS, BATCH_BYTES) {
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Ok(batch) => {
                    for event in &batch.events {
                        if event.revision.main <= visible && contains(&self.range, &event.kv.key) {
                            let mut event = Event::clone(event);
                            if self.options.prev_kv {
                                match self.store.previous(&event) {
                                    Ok(previous) => event.prev_kv = previous,
                                    Err(error) => {
                                        // What was found so far is delivered by nobody: the whole batch failed.
                                        self.ready.clear();
                                        self.ended = true;
                                        return Poll::Ready(Some(Err(error.into())));
                                    }
                                }
                            }
                            self.ready.push_back(event);
                        }
                    }
                    self.next_revision = batch.next_revision.min(visible + 1);
                }
            }
        }
    }

    /// Polls for the next event; the shape of `Stream::poll_next` of the futures crates.
    pub fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        if let Poll::Ready(item) = self.poll_ready() {
            return Poll::Ready(item);
        }
        let open = self.shared.register(context.waker());
        // Looked at again: a change between the first look and the registration has woken nobody.
        match self.poll_ready() {
            Poll::Pending if !open => Poll::Ready(None),
            poll => poll,
        }
    }

    /// The next event as a future: `while let Some(event) = watcher.next_async().await`.
    pub fn next_async(&mut self) -> impl Future<Output = Option<Result<Event>>> + '_ {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context))
    }
}

/// Blocks until an event is there; ends when the database is closed.
impl Iterator for Watcher {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(None)
    }
}

fn contains(range: &KeyRange, key: &[u8]) -> bool {
    match &range.end[..] {
        [] => key == range.key,
        [0] => key >= &range.key[..],
        end => key >= &range.key[..] && key < end,
    }
}
