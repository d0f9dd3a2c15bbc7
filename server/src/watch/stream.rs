//! The queue between the hub and one watch stream, and the stream itself.
//!
//! **Data.** An [`Outbox`] holds responses in the order in which the client gets them, control and events alike: that a watcher's creation
//! comes before its events, and its cancellation after them, is nothing but this order.
//!
//! **Bounds.** Events are refused (and the watcher becomes a lagging one) when the queue holds [`OutboxLimits::responses_max`] responses or
//! `bytes_max` bytes, or when all queues together hold `total_bytes_max` and this one is not empty. An empty queue takes any response, so
//! that every stream that is read goes on. Control responses are always taken: the stream reads no further requests while more than
//! [`REQUESTS_PAUSE`] responses wait, which bounds them.
use super::fragment::Response;
use prometheus::{IntCounter, IntGauge};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// While this many responses wait, the stream's requests are not read.
pub const REQUESTS_PAUSE: usize = 1024;

/// Bounds of queues.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Responses in one queue.
    pub responses_max: usize,
    /// Bytes in one queue.
    pub bytes_max: usize,
    /// Bytes in all queues together.
    pub total_bytes_max: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { responses_max: 8192, bytes_max: 8 << 20, total_bytes_max: 256 << 20 }
    }
}

/// What all queues share.
#[derive(Clone)]
pub struct OutboxTotals {
    /// Bytes in all queues.
    pub bytes: IntGauge,
    /// Events in all queues.
    pub events: IntGauge,
    /// Events ever put into a queue.
    pub events_ever: IntCounter,
}

/// See the module.
pub struct Outbox {
    limits: OutboxLimits,
    totals: OutboxTotals,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Response, usize)>,
    bytes: usize,
    waker: Option<Waker>,
    /// The hub has watchers that wait for room here.
    wanted: bool,
    closed: bool,
}

/// What [`Outbox::poll_pull`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulled {
    /// The hub wants to know that there is room again.
    pub tell_hub: bool,
    /// The stream is to end.
    pub closed: bool,
}

impl Outbox {
    /// An empty queue.
    pub fn new(limits: OutboxLimits, totals: OutboxTotals) -> Arc<Self> {
        Arc::new(Self { limits, totals, state: Mutex::default() })
    }

    /// Appends a control response. Returns whom to wake.
    pub fn push_control(&self, response: Response) -> Option<Waker> {
        let size = response.size_hint();
        let mut state = self.state.lock();
        self.append(&mut state, response, size);
        state.waker.take()
    }

    /// Appends a response with events, or gives it back for lack of room; then the hub is told when there is room again.
    pub fn push_events(&self, response: Response) -> Result<Option<Waker>, Response> {
        let size = response.size_hint();
        let mut state = self.state.lock();
        let is_full = state.queue.len() >= self.limits.responses_max
            || state.bytes + size > self.limits.bytes_max
            || usize::try_from(self.totals.bytes.get()).unwrap_or(0) + size > self.limits.total_bytes_max;
        if is_full && !state.queue.is_empty() {
            state.wanted = true;
            return Err(response);
        }
        self.append(&mut state, response, size);
        Ok(state.waker.take())
    }

    fn append(&self, state: &mut State, response: Response, size: usize) {
        let events = response.events.len();
        self.totals.bytes.add(size.cast_signed() as i64);
        if events > 0 {
            self.totals.events.add(events.cast_signed() as i64);
            self.totals.events_ever.inc_by(events as u64);
        }
        state.bytes += size;
        state.queue.push_back((response, size));
    }

    /// Moves up to `responses_max` responses or about `bytes_max` bytes to `out`; pending while there are none and the queue is not closed.
    pub fn poll_pull(
        &self,
        out: &mut VecDeque<Response>,
        responses_max: usize,
        bytes_max: usize,
        context: &mut Context<'_>,
    ) -> Poll<Pulled> {
        let mut state = self.state.lock();
        let (mut bytes, mut events, mut responses) = (0, 0, 0);
        while responses < responses_max && bytes < bytes_max {
            let Some((response, size)) = state.queue.pop_front() else { break };
            bytes += size;
            events += response.events.len();
            responses += 1;
            out.push_back(response);
        }
        state.bytes -= bytes;
        self.totals.bytes.sub(bytes.cast_signed() as i64);
        self.totals.events.sub(events.cast_signed() as i64);
        if state.queue.is_empty() && state.queue.capacity() > 1024 {
            state.queue.shrink_to(64);
        }
        let has_room =
            state.queue.len() <= self.limits.responses_max / 2 && state.bytes <= self.limits.bytes_max / 2;
        let tell_hub = has_room && std::mem::take(&mut state.wanted);
        if responses == 0 && !state.closed && !tell_hub {
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                state.waker = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(Pulled { tell_hub, closed: state.closed && state.queue.is_empty() })
    }

    /// Responses that wait.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is queued is still delivered, then the stream ends. Returns whom to wake.
    pub fn close(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        state.closed = true;
        state.waker.take()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let events: usize = state.queue.iter().map(|(response, _)| response.events.len()).sum();
        self.totals.bytes.sub(state.bytes.cast_signed() as i64);
        self.totals.events.sub(events.cast_signed() as i64);
    }
}
