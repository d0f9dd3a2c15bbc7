//! A watcher of the server's own, for what waits for a key on behalf of a client.
//!
//! **Data.** A stream of the hub with one watcher and its queue, as a client's; who waits is woken as a client's stream is. It ends, and its watcher with
//! it, when it is dropped.
//!
//! **Does not know** gRPC, authentication: whoever makes one has checked that the range may be read.
use super::fragment::Response;
use super::{CreateRequest, Outbox, StreamId, WatchHub};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Responses taken from the queue in one go.
const RESPONSES_AT_ONCE: usize = 16;
const RESPONSE_BYTES_AT_ONCE: usize = 256 << 10;

/// Why no more events come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEnd {
    /// What it waited for is compacted: look again, and watch from there.
    Compacted,
    /// The server stops.
    Stopped,
    /// There was no watcher to be had; says why.
    Refused(String),
}

/// See the module.
pub struct LocalWatch {
    hub: Arc<WatchHub>,
    stream: StreamId,
    outbox: Arc<Outbox>,
    taken: VecDeque<Response>,
}

impl LocalWatch {
    /// Watches `key`, or the range to `range_end`, from `start_revision` on.
    pub fn new(hub: &Arc<WatchHub>, key: Bytes, range_end: Bytes, start_revision: i64) -> Self {
        let (stream, outbox) = hub.open_stream();
        hub.create(stream, CreateRequest { key, range_end, start_revision, ..CreateRequest::default() });
        Self { hub: Arc::clone(hub), stream, outbox, taken: VecDeque::new() }
    }

    /// The next response that has events.
    pub async fn next(&mut self) -> Result<Response, WatchEnd> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Response, WatchEnd>> {
        loop {
            while let Some(response) = self.taken.pop_front() {
                if response.canceled && response.compact_revision != 0 {
                    return Poll::Ready(Err(WatchEnd::Compacted));
                }
                if response.canceled {
                    return Poll::Ready(Err(WatchEnd::Refused(response.cancel_reason.into_owned())));
                }
                if !response.events.is_empty() {
                    return Poll::Ready(Ok(response));
                }
            }
            let polled =
                self.outbox.poll_pull(&mut self.taken, RESPONSES_AT_ONCE, RESPONSE_BYTES_AT_ONCE, context);
            let Poll::Ready(pulled) = polled else { return Poll::Pending };
            if pulled.tell_hub {
                self.hub.drained(self.stream);
            }
            if pulled.closed && self.taken.is_empty() {
                return Poll::Ready(Err(WatchEnd::Stopped));
            }
        }
    }
}

impl Drop for LocalWatch {
    fn drop(&mut self) {
        self.hub.close_stream(self.stream);
    }
}
