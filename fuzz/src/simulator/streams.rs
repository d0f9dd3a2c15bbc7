//! Clients of the watch hub: streams with a few watchers each, which are read or are not, come and go, and are gone on with at another member.
//!
//! **Contract.** Each member has the server's hub, driven as its task drives it: woken by the state machine and by what clients ask, and asked before a compaction.
//! What a stream gives is encoded and cut into fragments as for the wire, and decoded as by a client. For each watcher is known the first revision that it has
//! not been given (`next`); a stream that ends is gone on with from there, at whichever member.
//!
//! **What is checked** (etcd's list): *ordered* and *unique*, no event lies below `next`; *reliable* and *atomic*, between `next` and the last revision
//! of a response every event of the oracle's is in it that the watcher asked for, whole revisions at a time; *resumable*, all that holds over streams, members and
//! changes of the leader; *bookmarkable*, a progress response promises that everything up to its revision was given before; what was compacted is said to be
//! so to nobody who does not need it; states before events; and in the end everybody has everything.
//!
//! **Does not know** gRPC, or which events there should be.
use super::bug::{Bug, ShellBug};
use super::running::Running;
use super::world::{Event, World};
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use sternpost_engine::Bytes;
use sternpost_engine::mvcc::{self, EventKind, KeyValue};
use sternpost_server::watch::fragment::{HeaderFields, Response};
use sternpost_server::watch::{CreateRequest, Outbox, StreamId};
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::mvccpb;

/// Clients of a run.
pub(super) const CLIENTS: usize = 4;
/// Watchers of one.
const WATCHERS: usize = 3;
/// A stream's clock ticks so often.
const PROGRESS_US: u64 = 400_000;
/// Where responses that may be are cut: a few events.
const FRAGMENT_BYTES: usize = 400;

/// What a watcher asked for, and how far it is.
#[derive(Clone, Debug, Default)]
struct Watcher {
    request: CreateRequest,
    /// First revision that it has not been given; 0 as long as it is to begin at whatever is new.
    next: i64,
    /// What it asked to begin with on this stream.
    start: i64,
    /// On the stream that is open, once it was made there.
    id: Option<i64>,
    /// What has come of a response that is not whole.
    fragments: Vec<mvccpb::Event>,
}

impl Watcher {
    fn wants(&self, event: &mvcc::Event) -> bool {
        let CreateRequest { key, range_end, no_put, no_delete, .. } = &self.request;
        let is_in_range = match &range_end[..] {
            [] => event.kv.key == *key,
            [0] => event.kv.key >= *key,
            end => event.kv.key >= *key && &event.kv.key[..] < end,
        };
        is_in_range && !if event.kind == EventKind::Put { *no_put } else { *no_delete }
    }
}

struct OpenStream {
    /// The member's start that it belongs to.
    start: u64,
    stream: StreamId,
    outbox: Arc<Outbox>,
    /// Watchers whose creation is not answered yet, in order.
    asked: VecDeque<usize>,
    next_tick_us: u64,
}

/// See the module.
pub(super) struct StreamClient {
    member: usize,
    open: Option<OpenStream>,
    watchers: Vec<Watcher>,
}

impl StreamClient {
    pub(super) fn new() -> Self {
        Self { member: 0, open: None, watchers: vec![Watcher::default(); WATCHERS] }
    }

    /// Where each of its watchers stands, for messages.
    pub(super) fn describe(&self) -> String {
        let watchers = self.watchers.iter().map(|watcher| (watcher.id, watcher.next));
        format!("at place {}: {:?}", self.member, watchers.collect::<Vec<_>>())
    }
}

impl World {
    /// A client of the hub does what it does.
    pub(super) fn stream_client(&mut self, number: usize) -> Result<(), String> {
        let pause_us = match self.below(40) {
            _ if self.is_healed => 2_000,
            // Nobody reads for so long.
            0 => 300_000 + self.below(3_000_000),
            _ => 500 + self.below(60_000),
        };
        self.after(pause_us, Event::Stream { client: number });
        let mut client = std::mem::replace(&mut self.streams[number], StreamClient::new());
        let done = self.go_on_with(&mut client);
        self.streams[number] = client;
        done
    }

    fn go_on_with(&mut self, client: &mut StreamClient) -> Result<(), String> {
        let is_there = |world: &Self, client: &StreamClient| {
            let here = &world.members[client.member];
            let start = client.open.as_ref().map_or(here.start, |open| open.start);
            here.running.is_some() && here.start == start
        };
        if !is_there(self, client) {
            client.open = None;
        }
        if self.is_healed && !self.oracle.is_member(self.members[client.member].id) {
            self.close_stream(client);
        }
        if client.open.is_none() {
            client.member = self.below(self.members.len() as u64) as usize;
            if !is_there(self, client) {
                return Ok(());
            }
        }
        // Nobody answers where a process stands still.
        if self.members[client.member].frozen_until_us > self.now_us {
            return Ok(());
        }
        if client.open.is_none() {
            self.open_stream(client);
        } else {
            match self.below(60) {
                _ if self.is_healed => {}
                0 => {
                    self.close_stream(client);
                    return Ok(());
                }
                1 | 2 => self.replace_watcher(client),
                3 | 4 => self.ask_progress(client),
                _ => {}
            }
        }
        let told = self.read_stream(client)?;
        for response in told {
            self.hear(client, response)?;
        }
        if self.members[client.member].running.as_ref().is_some_and(Running::has_woken) {
            self.turn_at(client.member, self.now_us);
        }
        Ok(())
    }

    fn open_stream(&mut self, client: &mut StreamClient) {
        let next_tick_us = self.now_us + PROGRESS_US;
        let here = &self.members[client.member];
        let Some(running) = &here.running else { return };
        let (stream, outbox) = running.watch.open_stream();
        let (start, asked) = (here.start, VecDeque::new());
        client.open = Some(OpenStream { start, stream, outbox, asked, next_tick_us });
        self.stats.streams += 1;
        for number in 0..client.watchers.len() {
            client.watchers[number].id = None;
            client.watchers[number].fragments.clear();
            if client.watchers[number].request.key.is_empty() {
                client.watchers[number] = self.new_watcher();
            }
            self.create(client, number);
        }
    }

    fn close_stream(&mut self, client: &mut StreamClient) {
        if let (Some(open), Some(running)) = (client.open.take(), &self.members[client.member].running) {
            running.watch.close_stream(open.stream);
        }
    }

    /// A watcher of something else, that begins now, in the past or in the future.
    fn new_watcher(&mut self) -> Watcher {
        let key = |number: u64| Bytes::from(format!("key-{number}"));
        let keys_count = self.plan.keys_count;
        let (one, two) = (self.below(keys_count), self.below(keys_count));
        let range_end = match self.below(3) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ if one == two => Bytes::new(),
            _ => key(one.max(two)),
        };
        let head = self.oracle.revisions().0;
        let next = match self.below(4) {
            0 | 1 => 0,
            2 => 1 + self.below(head as u64) as i64,
            _ => head + self.below(4) as i64,
        };
        let request = CreateRequest {
            key: if range_end.len() > 1 { key(one.min(two)) } else { key(one) },
            range_end,
            progress_notify: self.below(2) == 0,
            previous: self.below(2) == 0,
            fragment: self.below(2) == 0,
            no_put: self.below(8) == 0,
            no_delete: self.below(8) == 0,
            ..CreateRequest::default()
        };
        Watcher { request, next, ..Watcher::default() }
    }

    /// Makes a watcher on the stream, from where it is.
    fn create(&mut self, client: &mut StreamClient, number: usize) {
        let (Some(open), Some(running)) = (&mut client.open, &self.members[client.member].running) else {
            return;
        };
        let watcher = &mut client.watchers[number];
        watcher.start = watcher.next;
        let mut request = CreateRequest { start_revision: watcher.next, ..watcher.request.clone() };
        if Bug::is(self.plan.bug, ShellBug::ForgetsStart) && watcher.next > running.store.revision() {
            request.start_revision = 0;
        }
        running.watch.create(open.stream, request);
        open.asked.push_back(number);
    }

    /// One watcher is canceled, and another one comes, or the same from where it was.
    fn replace_watcher(&mut self, client: &mut StreamClient) {
        let number = self.below(WATCHERS as u64) as usize;
        let Some(id) = client.watchers[number].id.take() else { return };
        let (Some(open), Some(running)) = (&client.open, &self.members[client.member].running) else {
            return;
        };
        running.watch.cancel(open.stream, id);
        client.watchers[number].fragments.clear();
        if self.below(2) == 0 {
            client.watchers[number] = self.new_watcher();
        }
        self.create(client, number);
    }

    fn ask_progress(&mut self, client: &mut StreamClient) {
        if let (Some(open), Some(running)) = (&client.open, &self.members[client.member].running) {
            running.watch.request_progress(open.stream);
        }
    }

    /// Some of what waits, as it would come off the wire.
    fn read_stream(&mut self, client: &mut StreamClient) -> Result<Vec<pb::WatchResponse>, String> {
        let responses_max = 1 + self.below(if self.is_healed { 64 } else { 12 }) as usize;
        let now_us = self.now_us;
        let bug = self.plan.bug;
        let (Some(open), Some(running)) = (&mut client.open, &self.members[client.member].running) else {
            return Ok(Vec::new());
        };
        if open.next_tick_us <= now_us {
            open.next_tick_us = now_us + PROGRESS_US;
            running.watch.progress_tick(open.stream);
        }
        let mut pulled = VecDeque::new();
        let mut context = Context::from_waker(Waker::noop());
        let polled = open.outbox.poll_pull(&mut pulled, responses_max, 1 << 20, &mut context);
        if let Poll::Ready(polled) = polled
            && polled.tell_hub
            && !Bug::is(bug, ShellBug::ForgetsDrain)
        {
            running.watch.drained(open.stream);
        }
        let mut told = Vec::new();
        for response in pulled {
            told.extend(on_the_wire(running, response, bug)?);
        }
        Ok(told)
    }

    /// What a client makes of a response.
    fn hear(&mut self, client: &mut StreamClient, response: pb::WatchResponse) -> Result<(), String> {
        let (now_us, id) = (self.now_us, self.members[client.member].id);
        self.trace.note(|| format!("{now_us} member {id} tells a watcher: {response:?}"));
        self.stats.watch_responses += 1;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let wrong = |what: &str| Err(format!("watch: member {id} says {what}: {response:?}"));
        if revision > self.oracle.revisions().0 {
            return wrong("a revision that nobody has");
        }
        if response.created {
            let number = client.open.as_mut().and_then(|open| open.asked.pop_front());
            let Some(number) = number.filter(|_| !response.canceled) else {
                return wrong("of a watcher that it is made");
            };
            let watcher = &mut client.watchers[number];
            watcher.id = Some(response.watch_id);
            if watcher.next == 0 {
                watcher.next = revision + 1;
            }
            return Ok(());
        }
        if response.watch_id == -1 {
            // Asked for: of the whole stream.
            for watcher in client.watchers.iter_mut().filter(|watcher| watcher.id.is_some()) {
                self.promised(id, watcher, revision)?;
            }
            return Ok(());
        }
        let known = client.watchers.iter().position(|watcher| watcher.id == Some(response.watch_id));
        // One that was canceled a moment ago.
        let Some(number) = known else { return Ok(()) };
        let watcher = &mut client.watchers[number];
        if response.canceled {
            watcher.id = None;
            let compacted = response.compact_revision;
            if compacted != 0 {
                if watcher.next >= compacted || compacted > self.oracle.revisions().1 {
                    return wrong("that what a watcher needs is compacted");
                }
                // As etcd's clients do.
                watcher.next = compacted;
                self.stats.watch_compacted += 1;
            } else if !self.bears_disk_faults() {
                return wrong("that a watcher ends");
            } else {
                self.close_stream(client);
                return Ok(());
            }
            // The id is the stream's until the client gives it back.
            if let (Some(open), Some(running)) = (&client.open, &self.members[client.member].running) {
                running.watch.cancel(open.stream, response.watch_id);
            }
            self.create(client, number);
            return Ok(());
        }
        if response.events.is_empty() && watcher.fragments.is_empty() {
            self.stats.watch_progress += 1;
            return self.promised(id, watcher, revision);
        }
        watcher.fragments.extend(response.events);
        if response.fragment {
            self.stats.watch_fragments += 1;
            return Ok(());
        }
        let events = std::mem::take(&mut watcher.fragments);
        self.given(id, watcher, &events)
    }

    /// A watcher is told that it has everything up to this.
    fn promised(&self, member: u64, watcher: &mut Watcher, revision: i64) -> Result<(), String> {
        if let Some(event) = self.oracle.events(watcher.next, revision).find(|event| watcher.wants(event)) {
            return Err(format!(
                "watch: member {member} promises {watcher:?} everything up to {revision}, not {event:?}"
            ));
        }
        if watcher.start > revision {
            return Err(format!("watch: member {member} promises {revision} to {watcher:?}"));
        }
        watcher.next = watcher.next.max(revision + 1);
        Ok(())
    }

    /// A watcher is given these, which are a whole response.
    fn given(&mut self, member: u64, watcher: &mut Watcher, events: &[mvccpb::Event]) -> Result<(), String> {
        let last = events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        let last = last.unwrap_or(0);
        let due = self.oracle.events(watcher.next, last).filter(|event| watcher.wants(event));
        let mut count = 0;
        for event in due {
            let given = events.get(count);
            count += 1;
            if !given.is_some_and(|given| is_same(given, event)) {
                return Err(format!(
                    "watch: member {member} gives {given:?}, must be {event:?}, to {watcher:?}"
                ));
            }
            let before = given.and_then(|given| given.prev_kv.as_ref());
            let expected = if watcher.request.previous { self.oracle.before(event) } else { None };
            let is_gone = before.is_none() && event.revision.main - 1 < self.oracle.revisions().1;
            if !is_gone && before.map(of_wire) != expected {
                return Err(format!(
                    "watch: member {member} says {before:?} was before {event:?}, must be {expected:?}"
                ));
            }
        }
        if count < events.len() {
            return Err(format!(
                "watch: member {member} gives {:?} to {watcher:?}, which are none",
                &events[count..]
            ));
        }
        self.stats.watch_events += count as u64;
        watcher.next = last + 1;
        Ok(())
    }

    /// Everybody has everything.
    pub(super) fn streams_are_well(&self) -> bool {
        let head = self.oracle.revisions().0;
        let has_all = |watcher: &Watcher| {
            watcher.id.is_some() && !self.oracle.events(watcher.next, head).any(|event| watcher.wants(event))
        };
        self.streams.iter().all(|client| client.watchers.iter().all(has_all))
    }
}

/// A response as a client decodes it.
fn on_the_wire(
    running: &Running,
    response: Response,
    bug: Option<Bug>,
) -> Result<Vec<pb::WatchResponse>, String> {
    let header = HeaderFields { cluster_id: 7, member_id: 1, raft_term: 1 };
    let mut told = Vec::new();
    for piece in response.split(FRAGMENT_BYTES, &header) {
        let mut bytes = Vec::with_capacity(piece.encoded_len(&header));
        piece.encode(&header, &mut bytes);
        if bytes.len() != piece.encoded_len(&header) {
            return Err(format!(
                "watch: {} bytes, said {}: {piece:?}",
                bytes.len(),
                piece.encoded_len(&header)
            ));
        }
        let mut decoded = pb::WatchResponse::decode(&bytes[..])
            .map_err(|error| format!("watch: {piece:?} does not decode: {error}"))?;
        let is_progress = decoded.events.is_empty() && !decoded.created && !decoded.canceled;
        if Bug::is(bug, ShellBug::PromisesAhead) && is_progress {
            let header = decoded.header.get_or_insert_default();
            header.revision = running.store.revision();
        }
        if Bug::is(bug, ShellBug::CutsRevision) {
            let revisions: Vec<i64> = decoded
                .events
                .iter()
                .filter_map(|event| event.kv.as_ref())
                .map(|kv| kv.mod_revision)
                .collect();
            if let [.., before, last] = revisions[..]
                && before == last
            {
                decoded.events.pop();
            }
        }
        told.push(decoded);
    }
    Ok(told)
}

fn of_wire(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}

fn is_same(given: &mvccpb::Event, event: &mvcc::Event) -> bool {
    let is_delete = given.r#type() == mvccpb::event::EventType::Delete;
    is_delete == (event.kind == EventKind::Delete)
        && given.kv.as_ref().map(of_wire).as_ref() == Some(&event.kv)
}
