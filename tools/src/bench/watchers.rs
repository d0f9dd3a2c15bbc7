//! Fan-out: puts with a stamp in their value, and many watches that read it.
//!
//! A value begins with the number of its operation and the moment of its sending, on the generator's clock, which writer and
//! watcher share. *Commit to delivery* is from the moment the writer has its answer to the moment a watcher
//! has the event; an event that overtakes the answer counts as 0. *Send to delivery* is from the sending of the put.
//!
//! Bound: answers are remembered for the last [`ANSWERS_MAX`] puts; an event later than that counts from its sending.
use super::connection::{CallError, Connection, Method};
use super::driver::ThreadContext;
use super::pace::Turn;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use sternpost_engine::base::rng::Rng;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    PutRequest, PutResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// Position of the series of puts among the workload's series.
pub(crate) const SERIES_PUT: usize = 2;
const SERIES_COMMIT_TO_DELIVERY: usize = 0;
const SERIES_SEND_TO_DELIVERY: usize = 1;

/// Puts whose answers are remembered.
const ANSWERS_MAX: usize = 1 << 16;

/// Bytes of the stamp at the front of a value: operation number and sending time.
pub(crate) const STAMP_BYTES: usize = 16;

/// The shape of the fan-out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WatchLoad {
    /// Watches in all; each sees every put.
    pub(crate) watchers: usize,
    /// Watches that share one gRPC stream.
    pub(crate) watchers_per_stream: usize,
}

/// When the answers to recent puts came, shared by all threads.
pub(crate) struct Answers {
    /// (operation number + 1) and time share a slot: a reader that sees another number has come too late.
    slots: Vec<(AtomicU64, AtomicU64)>,
}

impl Default for Answers {
    fn default() -> Self {
        Self { slots: (0..ANSWERS_MAX).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect() }
    }
}

impl Answers {
    fn remember(&self, operation: u64, now_us: u64) {
        let (number, time) = &self.slots[operation as usize % ANSWERS_MAX];
        time.store(now_us, Ordering::Relaxed);
        number.store(operation + 1, Ordering::Release);
    }

    /// When the answer came; none when it has not come yet.
    fn answered_us(&self, operation: u64) -> Answered {
        let (number, time) = &self.slots[operation as usize % ANSWERS_MAX];
        match number.load(Ordering::Acquire) {
            found if found == operation + 1 => Answered::At(time.load(Ordering::Relaxed)),
            found if found > operation + 1 => Answered::Forgotten,
            _ => Answered::NotYet,
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Answered {
    At(u64),
    NotYet,
    Forgotten,
}

/// One put with a stamp.
pub(crate) async fn put(
    context: &Rc<ThreadContext>,
    connection: &mut Connection,
    rng: &mut Rng,
    turn: &Turn,
) -> Result<(), CallError> {
    let plan = &context.plan;
    let operation = context.operation_number(turn);
    let mut value = BytesMut::from(&plan.values.value(rng)[..]);
    // A put of the warm-up is stamped with time 0: its events are not measured.
    let is_measured = context.pace().is_measured(turn);
    let sent_us = if is_measured { context.clock.now_us() } else { 0 };
    (&mut value[..8]).put_u64(operation);
    (&mut value[8..STAMP_BYTES]).put_u64(sent_us);
    let key = plan.keys.key(plan.keys.pick(operation, rng));
    let request = PutRequest { key, value: value.freeze(), ..PutRequest::default() };
    let _: PutResponse = connection.unary(Method::Put, &request).await?;
    context.answers.remember(operation, context.clock.now_us());
    if is_measured {
        context.recorder().count(0, 1);
    }
    Ok(())
}

/// Makes the watches of one stream and returns when all of them are made; events are read by a task from then on.
pub(crate) async fn watch(
    context: Rc<ThreadContext>,
    connection_number: usize,
    watchers: usize,
) -> Result<(), CallError> {
    let mut connection = context.connection(connection_number).await?;
    let (key, range_end) = context.plan.keys.bounds();
    let create = WatchCreateRequest { key, range_end, ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (mut requests, mut messages) = connection.stream(Method::Watch, &request).await?;
    for _ in 1..watchers {
        requests.send(&request)?;
    }
    let ended =
        || CallError { text: "the server ended a watch stream".to_owned(), is_connection_lost: false };
    let mut created = 0;
    while created < watchers {
        let response = decode(messages.next().await?.ok_or_else(ended)?)?;
        if response.canceled {
            let text = format!("a watch was refused: {}", response.cancel_reason);
            return Err(CallError { text, is_connection_lost: false });
        }
        created += usize::from(response.created);
    }
    tokio::task::spawn_local(async move {
        // The stream lives as long as its requests can be sent.
        let _requests = requests;
        loop {
            let response = match messages.next().await {
                Ok(Some(message)) => decode(message),
                Ok(None) => Err(ended()),
                Err(error) => Err(error),
            };
            match response {
                Ok(response) => take_events(&context, &response),
                Err(error) => return context.recorder().fail(&error.text),
            }
        }
    });
    Ok(())
}

fn decode(message: Bytes) -> Result<WatchResponse, CallError> {
    WatchResponse::decode(message)
        .map_err(|error| CallError { text: error.to_string(), is_connection_lost: false })
}

fn take_events(context: &ThreadContext, response: &WatchResponse) {
    let now_us = context.clock.now_us();
    for event in &response.events {
        let Some(mut stamp) = event.kv.as_ref().and_then(|kv| kv.value.get(..STAMP_BYTES)) else { continue };
        let (operation, sent_us) = (stamp.get_u64(), stamp.get_u64());
        if sent_us == 0 || sent_us > now_us {
            continue;
        }
        let committed_us = match context.answers.answered_us(operation) {
            Answered::At(answered_us) => answered_us,
            Answered::NotYet => now_us,
            Answered::Forgotten => sent_us,
        };
        let recorder = context.recorder();
        recorder.record(SERIES_COMMIT_TO_DELIVERY, now_us, now_us.saturating_sub(committed_us));
        recorder.record(SERIES_SEND_TO_DELIVERY, now_us, now_us - sent_us);
    }
    context.events_seen.set(context.events_seen.get() + response.events.len() as u64);
    if !response.events.is_empty() {
        context.last_event_us.set(now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_until_its_slot_is_needed_again() {
        let answers = Answers::default();
        assert_eq!(answers.answered_us(5), Answered::NotYet);
        answers.remember(5, 70);
        assert_eq!(answers.answered_us(5), Answered::At(70));
        answers.remember(5 + ANSWERS_MAX as u64, 90);
        assert_eq!(answers.answered_us(5), Answered::Forgotten);
    }
}
