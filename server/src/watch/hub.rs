//! The watch hub: which watcher gets which event when. A state machine without threads, clocks or sockets.
//!
//! **Data.** Every watcher has one number that matters, `next`: the first revision that it has not been given. A *synced* watcher is in
//! the [`Matcher`] and gets what [`Hub::distribute`] reads from the head of the store. A *lagging* one holds only its `next`; it is served
//! by turns ([`Turn`]), in which many of them share one read of the store, until it reaches the hub's position and becomes synced. When the
//! queue of a stream is full, its watchers become lagging and wait until the stream says that there is room ([`Hub::drained`]). So a slow
//! client costs a number for each watcher and one bounded queue, however far behind it is.
//!
//! ```text
//!            queue full                     room again                  next ≥ position
//!   synced ─────────────▶ lagging, blocked ────────────▶ lagging, ready ────────────────▶ synced
//!                                                            │ compacted below `next`
//!                                                            ▼
//!                                                         compacted (stays until its client cancels it)
//! ```
//!
//! **Invariants.**
//! - W1: a watcher is given an event if and only if it wants the key, passes the filters, and the event's revision is at least `next`; then
//!   `next` moves behind it. Hence no event is lost, doubled or out of order.
//! - W2: `position` is the first revision that was not yet distributed. Synced watchers were given everything below it.
//! - W3: events of one main revision are given in one response.
//! - W4: a progress response says a revision up to which everything was put into the stream's queue before it.
//! - W5: a watcher is in exactly one place: matcher, ready queue, turn, blocked list of its stream, or none (compacted).
//!
//! **Does not know** threads, gRPC, the encoding of responses.
use super::event::SharedEvent;
use super::fragment::Response;
use super::intervals::{Matcher, Watched};
use super::stream::{Outbox, OutboxLimits, OutboxTotals};
use crate::metrics::WatchMetrics;
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use sternpost_engine::error::OperationError;
use sternpost_engine::mvcc::{EventBatch, EventKind, EventLimits, Store, Wanted};

/// Lagging watchers that share a turn.
const TURN_WATCHERS_MAX: usize = 1024;
/// What one read of history takes at most.
const TURN_LIMITS: EventLimits = EventLimits { looked_at_max: 1 << 16, events_max: 1000, bytes_max: 4 << 20 };
/// What one distribution takes at most.
const DISTRIBUTE_LIMITS: EventLimits =
    EventLimits { looked_at_max: 1 << 16, events_max: 1000, bytes_max: 4 << 20 };
/// A pass ends after the revision with which so many events were given to watchers: it bounds how long the lock is held.
const DELIVERIES_MAX: usize = 16 << 10;
/// Watchers of a server. Numbers of watchers are 32 bits; this is what 4 GB of memory hold.
const WATCHERS_MAX: usize = 10_000_000;

const NO_RESPONSE: u32 = u32::MAX;

/// What etcd says in `cancel_reason`.
const RANGE_IS_EMPTY: &str = "mvcc: watcher range is empty";
const ID_IS_TAKEN: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const TOO_MANY: &str = "sternpost: too many watchers";

/// What a client asks for when it creates a watcher.
#[derive(Clone, Debug, Default)]
pub struct CreateRequest {
    /// First key; empty is the smallest key.
    pub key: Bytes,
    /// As in a range.
    pub range_end: Bytes,
    /// First revision; 0 is from now on.
    pub start_revision: i64,
    /// The id; 0 lets the server choose.
    pub watch_id: i64,
    /// Progress responses are wanted when nothing happens.
    pub progress_notify: bool,
    /// Previous states are wanted.
    pub previous: bool,
    /// Large responses may be cut.
    pub fragment: bool,
    /// Puts are not wanted.
    pub no_put: bool,
    /// Deletes are not wanted.
    pub no_delete: bool,
}

/// A watch stream, for as long as the hub lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(u64);

/// A watcher, safe against reuse of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct WatcherKey {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the matcher, at this position of its entry.
    Synced(u32),
    /// Lagging, in the ready queue.
    Ready,
    /// Lagging, in a turn.
    Serving,
    /// Lagging, waits for room in its stream's queue.
    Blocked,
    /// Canceled by compaction.
    Compacted,
}

impl Place {
    fn is_lagging(self) -> bool {
        matches!(self, Place::Ready | Place::Serving | Place::Blocked)
    }
}

struct Watcher {
    stream: StreamId,
    id: i64,
    watched: Watched,
    start: i64,
    next: i64,
    place: Place,
    previous: bool,
    fragment: bool,
    no_put: bool,
    no_delete: bool,
    progress_notify: bool,
    /// Nothing was sent to it since the last tick of its stream.
    progress_due: bool,
    /// Index of its response in the pass that is being made.
    response: u32,
}

struct Slot {
    generation: u32,
    watcher: Option<Watcher>,
}

struct Stream {
    outbox: Arc<Outbox>,
    /// In order, so that what a tick says is a function of what was asked.
    ids: BTreeMap<i64, WatcherKey>,
    next_id: i64,
    synced_count: usize,
    blocked: Vec<WatcherKey>,
    /// A manual progress request waits until this revision is distributed.
    asked: Option<i64>,
}

/// See the module.
pub struct Hub {
    position: i64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    watchers_count: usize,
    streams: HashMap<StreamId, Stream>,
    streams_ever: u64,
    synced: Matcher,
    ready: VecDeque<WatcherKey>,
    asked: Vec<StreamId>,
    /// Responses of the pass that is being made, and whom they are for.
    responses: Vec<(u32, Response)>,
    wakes: Vec<Waker>,
    limits: OutboxLimits,
    metrics: WatchMetrics,
    closed: bool,
}

/// Lagging watchers that are served together, sorted by where they are.
pub struct Turn {
    watchers: Vec<(i64, WatcherKey)>,
    matcher: Matcher,
    served: usize,
}

/// A read of history for a turn.
pub struct TurnRead {
    batch: Result<EventBatch, OperationError>,
    /// Watchers of the turn that want the key of an event, one event after the other.
    wanting: Vec<u32>,
    /// For each event, where its watchers end in `wanting`.
    ends: Vec<usize>,
}

/// The watchers that want a key are appended to `wanting`, and their end to `ends` if there are any.
fn look_up(matcher: &Matcher, key: &[u8], wanting: &mut Vec<u32>, ends: &mut Vec<usize>) -> Wanted {
    let before = wanting.len();
    matcher.matching(key, wanting);
    if wanting.len() == before {
        return Wanted::No;
    }
    ends.push(wanting.len());
    if wanting.len() < DELIVERIES_MAX { Wanted::Yes } else { Wanted::YesAndEnough }
}

impl Turn {
    /// Reads the next piece of history that this turn needs. Touches no state of the hub, so it may take its time.
    pub fn read(&self, store: &Store) -> TurnRead {
        let (mut wanting, mut ends) = (Vec::new(), Vec::new());
        let start = self.watchers[self.served].0;
        let look_up = &mut |key: &[u8]| look_up(&self.matcher, key, &mut wanting, &mut ends);
        let batch = store.events_where(start, &TURN_LIMITS, look_up);
        TurnRead { batch, wanting, ends }
    }

    /// True when all its watchers were served.
    pub fn is_done(&self) -> bool {
        self.served == self.watchers.len()
    }
}

impl Hub {
    /// A hub without streams.
    pub fn new(limits: OutboxLimits, metrics: WatchMetrics) -> Self {
        Self {
            position: 1,
            slots: Vec::new(),
            free: Vec::new(),
            watchers_count: 0,
            streams: HashMap::new(),
            streams_ever: 0,
            synced: Matcher::default(),
            ready: VecDeque::new(),
            asked: Vec::new(),
            responses: Vec::new(),
            wakes: Vec::new(),
            limits,
            metrics,
            closed: false,
        }
    }

    /// Watchers of all streams.
    pub fn watchers_count(&self) -> usize {
        self.watchers_count
    }

    /// Tasks to wake once the hub's lock is released.
    pub fn take_wakes(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakes)
    }

    /// True if [`Hub::take_turn`] has something to give.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Opens a stream.
    pub fn open_stream(&mut self) -> (StreamId, Arc<Outbox>) {
        let totals = OutboxTotals {
            bytes: self.metrics.queued_bytes.clone(),
            events: self.metrics.queued_events.clone(),
            events_ever: self.metrics.events.clone(),
        };
        let outbox = Outbox::new(self.limits, totals);
        if self.closed {
            drop(outbox.close());
        }
        self.streams_ever += 1;
        let id = StreamId(self.streams_ever);
        let stream = Stream {
            outbox: outbox.clone(),
            ids: BTreeMap::new(),
            next_id: 0,
            synced_count: 0,
            blocked: Vec::new(),
            asked: None,
        };
        self.streams.insert(id, stream);
        self.metrics.streams.inc();
        (id, outbox)
    }

    /// Closes a stream with all its watchers.
    pub fn close_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        for key in std::mem::take(&mut stream.ids).into_values() {
            self.remove(key);
        }
        self.streams.remove(&id);
        self.metrics.streams.dec();
    }

    /// Ends all streams: what is queued is delivered, nothing more comes.
    pub fn close(&mut self) {
        self.closed = true;
        let Self { streams, wakes, .. } = self;
        wakes.extend(streams.values().filter_map(|stream| stream.outbox.close()));
    }

    /// Creates a watcher, or says in the stream why not. `head` is the store's revision, read after the caller made sure that later changes
    /// are distributed.
    pub fn create(&mut self, stream: StreamId, request: CreateRequest, head: i64) {
        match self.try_create(stream, request, head) {
            Ok(id) => {
                let created = Response { revision: head, watch_id: id, created: true, ..Response::default() };
                self.control(stream, created);
            }
            Err(reason) => self.refuse(stream, Cow::Borrowed(reason), head),
        }
    }

    /// Answers a request for a watcher that there will not be.
    pub fn refuse(&mut self, stream: StreamId, cancel_reason: Cow<'static, str>, head: i64) {
        let response =
            Response { revision: head, watch_id: -1, created: true, canceled: true, ..Response::default() };
        self.control(stream, Response { cancel_reason, ..response });
    }

    fn try_create(
        &mut self,
        stream: StreamId,
        request: CreateRequest,
        head: i64,
    ) -> Result<i64, &'static str> {
        if request.start_revision < 0 {
            return Err(COMPACTED);
        }
        let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key };
        // The bytes are copied because those of the request are a part of a larger buffer, which a watcher would hold for its life.
        let key = Bytes::copy_from_slice(&key);
        let watched = match &request.range_end[..] {
            [] => Watched::Key(key),
            [0] => Watched::Range { start: key, end: None },
            end if end <= &key[..] => return Err(RANGE_IS_EMPTY),
            end => Watched::Range { start: key, end: Some(Bytes::copy_from_slice(end)) },
        };
        if self.watchers_count >= WATCHERS_MAX {
            return Err(TOO_MANY);
        }
        let Some(state) = self.streams.get_mut(&stream) else { return Err(RANGE_IS_EMPTY) };
        let id = if request.watch_id == 0 {
            while state.ids.contains_key(&state.next_id) {
                state.next_id += 1;
            }
            state.next_id += 1;
            state.next_id - 1
        } else if state.ids.contains_key(&request.watch_id) {
            return Err(ID_IS_TAKEN);
        } else {
            request.watch_id
        };

        if self.synced.is_empty() {
            // Nobody was waiting for what lies between.
            self.position = self.position.max(head + 1);
        }
        let is_new = request.start_revision == 0 || request.start_revision > head;
        let next = if is_new { request.start_revision.max(head + 1) } else { request.start_revision };
        let watcher = Watcher {
            stream,
            id,
            watched,
            start: request.start_revision,
            next,
            place: Place::Compacted,
            previous: request.previous,
            fragment: request.fragment,
            no_put: request.no_put,
            no_delete: request.no_delete,
            progress_notify: request.progress_notify,
            progress_due: true,
            response: NO_RESPONSE,
        };
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, watcher: None });
                u32::try_from(self.slots.len() - 1).expect("WATCHERS_MAX is below 2^32")
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.watcher = Some(watcher);
        let key = WatcherKey { index, generation: slot.generation };
        self.watchers_count += 1;
        self.metrics.watchers.inc();
        self.stream_mut(stream).ids.insert(id, key);
        self.settle(key);
        Ok(id)
    }

    /// Cancels a watcher, if the stream has one of this id.
    pub fn cancel(&mut self, stream: StreamId, id: i64, head: i64) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if let Some(key) = state.ids.remove(&id) {
            self.remove(key);
            self.control(
                stream,
                Response { revision: head, watch_id: id, canceled: true, ..Response::default() },
            );
        }
    }

    /// Answers a manual progress request once everything up to `head` is distributed; never, if a watcher of the stream is not synced or
    /// begins later, as in etcd.
    pub fn request_progress(&mut self, stream: StreamId, head: i64) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.asked.is_none() {
            self.asked.push(stream);
        }
        state.asked = state.asked.max(Some(head));
        self.answer_asked();
    }

    fn answer_asked(&mut self) {
        let said = self.position - 1;
        for stream in std::mem::take(&mut self.asked) {
            let Some(state) = self.streams.get_mut(&stream) else { continue };
            if state.asked.is_some_and(|asked| asked > said) && !self.synced.is_empty() {
                self.asked.push(stream);
                continue;
            }
            state.asked = None;
            let all_synced = !state.ids.is_empty() && state.synced_count == state.ids.len();
            let slots = &self.slots;
            let all_begun =
                || state.ids.values().all(|key| watcher_at(slots, *key).is_some_and(|w| w.start <= said));
            if all_synced && all_begun() {
                self.control(stream, Response { revision: said, watch_id: -1, ..Response::default() });
            }
        }
    }

    /// A tick of a stream's clock: watchers that want to hear of progress and were sent nothing since the last tick are told the revision.
    pub fn progress_tick(&mut self, stream: StreamId) {
        let said = self.position - 1;
        let Some(state) = self.streams.get(&stream) else { return };
        let mut told = Vec::new();
        for key in state.ids.values() {
            let Some(watcher) = self.slots[key.index as usize].watcher.as_mut() else { continue };
            if !watcher.progress_notify {
                continue;
            }
            let is_due = std::mem::replace(&mut watcher.progress_due, true);
            if is_due && matches!(watcher.place, Place::Synced(_)) && watcher.start <= said {
                told.push(watcher.id);
            }
        }
        for watch_id in told {
            self.control(stream, Response { revision: said, watch_id, ..Response::default() });
        }
    }

    /// A stream's queue has room again.
    pub fn drained(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        for key in std::mem::take(&mut state.blocked) {
            if watcher_at(&self.slots, key).is_some_and(|watcher| watcher.place == Place::Blocked) {
                self.settle(key);
            }
        }
    }

    /// Gives new events to synced watchers. Returns true if there are more.
    pub fn distribute(&mut self, store: &Store) -> bool {
        let head = store.revision();
        if self.synced.is_empty() {
            self.position = self.position.max(head + 1);
            self.answer_asked();
            return false;
        }
        if self.position > head {
            return false;
        }
        let (mut wanting, mut ends) = (Vec::new(), Vec::new());
        let look_up = &mut |key: &[u8]| look_up(&self.synced, key, &mut wanting, &mut ends);
        let batch = store.events_where(self.position, &DISTRIBUTE_LIMITS, look_up);
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                self.overtaken_by_compaction(&error, head);
                return true;
            }
        };
        let mut begin = 0;
        for (event, end) in batch.events.iter().zip(ends) {
            let shared = Arc::new(SharedEvent::new(event.clone()));
            for index in &wanting[begin..end] {
                self.give(*index, &shared, store);
            }
            begin = end;
        }
        self.send(batch.next_revision);
        self.position = batch.next_revision;
        self.answer_asked();
        self.position <= head
    }

    /// A compaction removed events that were not yet distributed. The apply loop distributes before it compacts, so this is not expected;
    /// the watchers that missed them hear it the way lagging ones do.
    /// What cannot be read from disk is skipped here, and the watchers concerned hear it when they catch up.
    fn overtaken_by_compaction(&mut self, error: &OperationError, head: i64) {
        let position = self.position;
        self.position = match error {
            OperationError::Compacted(compacted) => {
                tracing::warn!(position, compact_revision = compacted, "a compaction overtook the watch hub");
                (*compacted).clamp(position, head + 1)
            }
            error => {
                tracing::error!(position, %error, "events cannot be read");
                head + 1
            }
        };
        for index in 0..self.slots.len() {
            let generation = self.slots[index].generation;
            let Some(watcher) = self.slots[index].watcher.as_mut() else { continue };
            if matches!(watcher.place, Place::Synced(_)) && watcher.next < self.position {
                watcher.next = watcher.next.max(position);
                let key = WatcherKey {
                    index: u32::try_from(index).expect("slots are counted in 32 bits"),
                    generation,
                };
                self.leave_matcher(key.index);
                self.set_place(key.index, Place::Ready);
                self.ready.push_back(key);
            }
        }
    }

    /// Puts an event into the response that this pass makes for a watcher, by W1.
    fn give(&mut self, index: u32, event: &Arc<SharedEvent>, store: &Store) {
        let Some(watcher) = self.slots[index as usize].watcher.as_mut() else { return };
        let revision = event.event().revision.main;
        let is_filtered = match event.event().kind {
            EventKind::Put => watcher.no_put,
            EventKind::Delete => watcher.no_delete,
        };
        if revision < watcher.next || is_filtered || watcher.place == Place::Compacted {
            return;
        }
        if watcher.previous
            && let Err(error) = event.load_previous(store)
        {
            tracing::error!(revision, %error, "the state before an event cannot be read");
            // Of this pass it gets nothing: an event without its previous state would be a wrong one.
            if watcher.response != NO_RESPONSE {
                self.responses[watcher.response as usize].1.events.clear();
            }
            if matches!(watcher.place, Place::Synced(_)) {
                self.leave_matcher(index);
            }
            let key = WatcherKey { index, generation: self.slots[index as usize].generation };
            self.cancel_unreadable(key);
            return;
        }
        if watcher.response == NO_RESPONSE {
            watcher.response =
                u32::try_from(self.responses.len()).expect("a pass has fewer responses than watchers");
            let response = Response {
                watch_id: watcher.id,
                events: vec![event.clone()],
                previous: watcher.previous,
                may_fragment: watcher.fragment,
                ..Response::default()
            };
            self.responses.push((index, response));
        } else {
            self.responses[watcher.response as usize].1.events.push(event.clone());
        }
    }

    /// Queues the responses of a pass that looked at everything below `next`. A watcher whose stream has no room keeps the revision of the
    /// first event that it did not get, and waits.
    fn send(&mut self, next: i64) {
        let mut responses = std::mem::take(&mut self.responses);
        for (index, mut response) in responses.drain(..) {
            let Some(watcher) = self.slots[index as usize].watcher.as_mut() else { continue };
            watcher.response = NO_RESPONSE;
            if watcher.place == Place::Compacted {
                continue;
            }
            response.revision = next - 1;
            let stream = self.streams.get_mut(&watcher.stream).expect("W5: a watcher's stream is open");
            match stream.outbox.push_events(response) {
                Ok(waker) => {
                    watcher.next = next;
                    watcher.progress_due = false;
                    self.wakes.extend(waker);
                }
                Err(refused) => {
                    watcher.next = refused.events[0].event().revision.main;
                    stream
                        .blocked
                        .push(WatcherKey { index, generation: self.slots[index as usize].generation });
                    self.metrics.lagged.inc();
                    self.leave_matcher(index);
                    self.set_place(index, Place::Blocked);
                }
            }
        }
        self.responses = responses;
    }

    /// Takes lagging watchers that can be served out of the ready queue.
    pub fn take_turn(&mut self) -> Option<Turn> {
        let mut watchers = Vec::new();
        while watchers.len() < TURN_WATCHERS_MAX {
            let Some(key) = self.ready.pop_front() else { break };
            let Some(watcher) = watcher_at(&self.slots, key) else { continue };
            if watcher.place != Place::Ready {
                continue;
            }
            if watcher.next >= self.position {
                self.settle(key);
                continue;
            }
            watchers.push((watcher.next, key));
        }
        if watchers.is_empty() {
            return None;
        }
        watchers.sort_unstable_by_key(|(next, _)| *next);
        let mut matcher = Matcher::default();
        for (number, (_, key)) in watchers.iter().enumerate() {
            self.set_place(key.index, Place::Serving);
            let watcher = watcher_at(&self.slots, *key).expect("W5: looked at above");
            matcher.insert(&watcher.watched, u32::try_from(number).expect("a turn is small"));
        }
        Some(Turn { watchers, matcher, served: 0 })
    }

    /// Gives what was read to the watchers of a turn. Those that were covered are synced, ready for another turn, or blocked.
    pub fn serve(&mut self, turn: &mut Turn, read: TurnRead, store: &Store) {
        let covered = match read.batch {
            Ok(batch) => {
                let mut begin = 0;
                for (event, end) in batch.events.iter().zip(read.ends) {
                    let shared = Arc::new(SharedEvent::new(event.clone()));
                    for number in &read.wanting[begin..end] {
                        let (_, key) = turn.watchers[*number as usize];
                        if self.is_serving(key) {
                            self.give(key.index, &shared, store);
                        }
                    }
                    begin = end;
                }
                self.send(batch.next_revision);
                batch.next_revision
            }
            Err(OperationError::Compacted(compacted)) => {
                while let Some((next, key)) = turn.watchers.get(turn.served).copied()
                    && next < compacted
                {
                    turn.served += 1;
                    if self.is_serving(key) {
                        self.cancel_compacted(key, compacted);
                    }
                }
                return;
            }
            Err(error) => {
                tracing::error!(%error, "events for lagging watchers cannot be read");
                let start = turn.watchers.get(turn.served).map(|(next, _)| *next);
                while let Some((next, key)) = turn.watchers.get(turn.served).copied()
                    && Some(next) == start
                {
                    turn.served += 1;
                    if self.is_serving(key) {
                        self.cancel_unreadable(key);
                    }
                }
                return;
            }
        };
        while let Some((next, key)) = turn.watchers.get(turn.served).copied()
            && next < covered
        {
            turn.served += 1;
            // Blocked ones have left; canceled ones are gone.
            if self.is_serving(key) {
                let watcher =
                    self.slots[key.index as usize].watcher.as_mut().expect("W5: it is being served");
                watcher.next = watcher.next.max(covered);
                self.settle(key);
            }
        }
    }

    fn is_serving(&self, key: WatcherKey) -> bool {
        watcher_at(&self.slots, key).is_some_and(|watcher| watcher.place == Place::Serving)
    }

    /// The watcher stays in its stream's table: its id is taken, and manual progress is not answered, until the client cancels it, as in etcd.
    fn cancel_compacted(&mut self, key: WatcherKey, compacted: i64) {
        self.set_place(key.index, Place::Compacted);
        let watcher = watcher_at(&self.slots, key).expect("W5: the caller looked");
        let response = Response {
            watch_id: watcher.id,
            canceled: true,
            compact_revision: compacted,
            ..Response::default()
        };
        self.control(watcher.stream, response);
    }

    /// History that the watcher needs cannot be read from this member's disk. It may start again elsewhere.
    fn cancel_unreadable(&mut self, key: WatcherKey) {
        self.set_place(key.index, Place::Compacted);
        let watcher = watcher_at(&self.slots, key).expect("W5: the caller looked");
        let response = Response {
            watch_id: watcher.id,
            canceled: true,
            cancel_reason: Cow::Borrowed("sternpost: the history cannot be read from this member's disk"),
            ..Response::default()
        };
        self.control(watcher.stream, response);
    }

    /// Puts a watcher where it belongs by its `next`: to the synced ones, or into the ready queue.
    fn settle(&mut self, key: WatcherKey) {
        let position = self.position;
        let watcher =
            self.slots[key.index as usize].watcher.as_mut().expect("W5: only live watchers are settled");
        if watcher.next >= position {
            let place = Place::Synced(self.synced.insert(&watcher.watched, key.index));
            self.set_place(key.index, place);
        } else {
            self.set_place(key.index, Place::Ready);
            self.ready.push_back(key);
        }
    }

    fn set_place(&mut self, index: u32, place: Place) {
        let watcher =
            self.slots[index as usize].watcher.as_mut().expect("W5: only live watchers have a place");
        let before = std::mem::replace(&mut watcher.place, place);
        let stream = self.streams.get_mut(&watcher.stream).expect("W5: a watcher's stream is open");
        stream.synced_count += usize::from(matches!(place, Place::Synced(_)));
        stream.synced_count -= usize::from(matches!(before, Place::Synced(_)));
        match (before.is_lagging(), place.is_lagging()) {
            (false, true) => self.metrics.lagging.inc(),
            (true, false) => self.metrics.lagging.dec(),
            _ => {}
        }
    }

    /// Takes a watcher out of the matcher, if it is there.
    fn leave_matcher(&mut self, index: u32) {
        let Some(watcher) = self.slots[index as usize].watcher.as_ref() else { return };
        let Place::Synced(position) = watcher.place else { return };
        if let Some(moved) = self.synced.remove(&watcher.watched, position) {
            let moved =
                self.slots[moved as usize].watcher.as_mut().expect("W5: the matcher has live watchers only");
            moved.place = Place::Synced(position);
        }
    }

    /// Forgets a watcher that is no longer in its stream's table. Queues that still name it are harmless: its generation is over.
    fn remove(&mut self, key: WatcherKey) {
        self.leave_matcher(key.index);
        self.set_place(key.index, Place::Compacted);
        let slot = &mut self.slots[key.index as usize];
        slot.watcher = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        self.watchers_count -= 1;
        self.metrics.watchers.dec();
    }

    fn control(&mut self, stream: StreamId, response: Response) {
        if let Some(stream) = self.streams.get(&stream) {
            self.wakes.extend(stream.outbox.push_control(response));
        }
    }

    fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        self.streams.get_mut(&id).expect("W5: a watcher's stream is open")
    }
}

fn watcher_at(slots: &[Slot], key: WatcherKey) -> Option<&Watcher> {
    let slot = slots.get(key.index as usize)?;
    if slot.generation == key.generation { slot.watcher.as_ref() } else { None }
}
