//! The hub over a real store, driven step by step from a seed: writes, compactions, watchers, clients that read or do not, reads of history
//! that overlap with everything else. A list of all events that ever happened says what each watcher must have got.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::mvcc::{
    AnyLease, DeleteRange, EventKind, KeyRange, Put, Store, StoreOptions, StoreWriter, Txn, TxnOperation,
};
use sternpost_server::metrics::Metrics;
use sternpost_server::watch::fragment::Response;
use sternpost_server::watch::hub::{CreateRequest, Hub, Turn};
use sternpost_server::watch::{Outbox, OutboxLimits, StreamId};

/// One change, as it happened.
#[derive(Clone, Debug)]
struct Change {
    revision: i64,
    key: Bytes,
    is_delete: bool,
    previous: Option<Bytes>,
}

/// What a watcher asked for, and what it was given.
struct Watch {
    request: CreateRequest,
    /// First revision that it must get.
    from: i64,
    got: Vec<(i64, Bytes, bool)>,
    /// Everything up to here was promised to be delivered.
    promised: i64,
    created: bool,
    compacted: Option<i64>,
    canceled: bool,
}

struct Client {
    stream: StreamId,
    outbox: Arc<Outbox>,
    watches: BTreeMap<i64, Watch>,
    /// Requests whose creation was not read yet, in order.
    asked: VecDeque<(CreateRequest, i64)>,
    reads: bool,
}

struct World {
    rng: Rng,
    store: Store,
    writer: StoreWriter,
    state: BTreeMap<Bytes, Bytes>,
    history: Vec<Change>,
    hub: Hub,
    clients: Vec<Client>,
    turn: Option<Turn>,
    steps: Steps,
}

/// How often rare things happened: a run in which they did not proves nothing.
#[derive(Debug, Default)]
struct Steps {
    events: usize,
    lagged: u64,
    compacted: usize,
    progress: usize,
    responses_of_several_revisions: usize,
    previous: usize,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number:02}"))
}

impl World {
    fn new(seed: u64, limits: OutboxLimits) -> (Self, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new(&[], false));
        let (store, writer) = StoreWriter::new(StoreOptions::default());
        let world = Self {
            rng: Rng::new(seed),
            store,
            writer,
            state: BTreeMap::new(),
            history: Vec::new(),
            hub: Hub::new(limits, metrics.watch.clone()),
            clients: Vec::new(),
            turn: None,
            steps: Steps::default(),
        };
        (world, metrics)
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>, revision: i64) {
        let previous = match &value {
            Some(value) => self.state.insert(key.clone(), value.clone()),
            None => self.state.remove(&key),
        };
        self.history.push(Change { revision, key, is_delete: value.is_none(), previous });
    }

    fn write(&mut self) {
        let revision = self.store.revision() + 1;
        match self.rng.below(6) {
            0 => {
                let (low, high) = (self.rng.below(20), self.rng.below(24));
                let range = KeyRange { key: key(low), end: key(high) };
                let gone: Vec<Bytes> = if low < high {
                    self.state.range(key(low)..key(high)).map(|(key, _)| key.clone()).collect()
                } else {
                    Vec::new()
                };
                self.writer.delete_range(&DeleteRange { range, prev_kv: false }).unwrap();
                for key in gone {
                    self.change(key, None, revision);
                }
            }
            1 => {
                let mut success = Vec::new();
                let mut puts = Vec::new();
                let first = self.rng.below(20);
                for number in first..first + 1 + self.rng.below(4) {
                    let value = Bytes::from(vec![b'v'; usize::try_from(self.rng.below(50)).unwrap()]);
                    success.push(TxnOperation::Put(Put {
                        key: key(number),
                        value: value.clone(),
                        ..Put::default()
                    }));
                    puts.push((key(number), value));
                }
                self.writer.txn(&Txn { success, ..Txn::default() }, &AnyLease).unwrap();
                for (key, value) in puts {
                    self.change(key, Some(value), revision);
                }
            }
            _ => {
                let key = key(self.rng.below(20));
                let value = Bytes::from(vec![b'v'; usize::try_from(self.rng.below(50)).unwrap()]);
                self.writer
                    .put(&Put { key: key.clone(), value: value.clone(), ..Put::default() }, &AnyLease)
                    .unwrap();
                self.change(key, Some(value), revision);
            }
        }
    }

    /// As the apply loop does it: what is not yet distributed is, then history goes.
    fn compact(&mut self) {
        let head = self.store.revision();
        let back = i64::try_from(self.rng.below(40)).unwrap();
        if head - back > self.store.compact_revision().max(0) {
            while self.hub.distribute(&self.store) {}
            self.writer.compact(head - back).unwrap();
        }
    }

    fn create(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let client = usize::try_from(self.rng.below(self.clients.len() as u64)).unwrap();
        let head = self.store.revision();
        let start_revision = match self.rng.below(4) {
            0 => 0,
            1 => head + i64::try_from(self.rng.below(10)).unwrap(),
            _ => 1 + i64::try_from(self.rng.below(head.unsigned_abs())).unwrap(),
        };
        let low = self.rng.below(20);
        let range_end = match self.rng.below(4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(&[0]),
            _ => key(low + 1 + self.rng.below(6)),
        };
        let request = CreateRequest {
            key: key(low),
            range_end,
            start_revision,
            previous: self.rng.chance(1, 3),
            no_put: self.rng.chance(1, 8),
            no_delete: self.rng.chance(1, 8),
            ..CreateRequest::default()
        };
        let from = if start_revision == 0 { head + 1 } else { start_revision };
        let client = &mut self.clients[client];
        client.asked.push_back((request.clone(), from));
        self.hub.create(client.stream, request, head);
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => self.write(),
            45..47 => self.compact(),
            47..50 => self.create(),
            50 if self.clients.len() < 6 => {
                let (stream, outbox) = self.hub.open_stream();
                let reads = true;
                self.clients.push(Client {
                    stream,
                    outbox,
                    watches: BTreeMap::new(),
                    asked: VecDeque::new(),
                    reads,
                });
            }
            51 if !self.clients.is_empty() => {
                let client = usize::try_from(self.rng.below(self.clients.len() as u64)).unwrap();
                match self.rng.below(12) {
                    0 => {
                        let client = self.clients.swap_remove(client);
                        self.hub.close_stream(client.stream);
                    }
                    1..4 => {
                        let client = &mut self.clients[client];
                        let live: Vec<i64> = client.watches.keys().copied().collect();
                        if !live.is_empty() {
                            let id = live[usize::try_from(self.rng.below(live.len() as u64)).unwrap()];
                            self.hub.cancel(client.stream, id, self.store.revision());
                        }
                    }
                    4..9 => self.hub.request_progress(self.clients[client].stream, self.store.revision()),
                    _ => self.clients[client].reads = !self.clients[client].reads,
                }
            }
            52..70 => drop(self.hub.distribute(&self.store)),
            70..80 => self.serve(),
            _ => self.read_some(),
        }
    }

    /// A turn is taken in one step and read and served in others, so that everything happens in between.
    fn serve(&mut self) {
        match &mut self.turn {
            None => self.turn = self.hub.take_turn(),
            Some(turn) => {
                let read = turn.read(&self.store);
                if self.rng.chance(1, 4) {
                    self.write();
                    self.hub.distribute(&self.store);
                }
                let turn = self.turn.as_mut().unwrap();
                self.hub.serve(turn, read, &self.store);
                if turn.is_done() {
                    self.turn = None;
                }
            }
        }
    }

    fn read_some(&mut self) {
        let reading: Vec<usize> =
            (0..self.clients.len()).filter(|index| self.clients[*index].reads).collect();
        if !reading.is_empty() {
            let client = reading[usize::try_from(self.rng.below(reading.len() as u64)).unwrap()];
            let count = 1 + usize::try_from(self.rng.below(6)).unwrap();
            self.pull(client, count);
        }
    }

    /// Reads up to `count` responses of a client and checks each.
    fn pull(&mut self, client: usize, count: usize) -> bool {
        let client = &mut self.clients[client];
        let mut responses = VecDeque::new();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(pulled) = client.outbox.poll_pull(&mut responses, count, usize::MAX, &mut context)
        else {
            return false;
        };
        if pulled.tell_hub {
            self.hub.drained(client.stream);
        }
        for response in responses {
            let compacted = (response.compact_revision != 0).then_some(response.watch_id);
            check(client, response, &self.history, &mut self.steps, &self.store);
            // Some clients clean up after a compaction; those that do not get no manual progress any more.
            if let Some(id) = compacted.filter(|_| self.rng.chance(3, 4)) {
                self.hub.cancel(client.stream, id, self.store.revision());
            }
        }
        true
    }

    /// Everybody reads until nothing is left: now every watcher has everything.
    fn settle(&mut self) {
        loop {
            let mut busy = self.hub.distribute(&self.store);
            if self.turn.is_some() || self.hub.has_ready() {
                self.serve();
                busy = true;
            }
            for client in 0..self.clients.len() {
                busy |= self.pull(client, usize::MAX);
            }
            if !busy {
                break;
            }
        }
        let head = self.store.revision();
        for client in &self.clients {
            assert!(client.asked.is_empty(), "every creation is answered");
            for (id, watch) in &client.watches {
                if watch.compacted.is_none() && !watch.canceled {
                    assert_eq!(
                        watch.got,
                        expected(watch, &self.history, head),
                        "watch {id}: {:?}",
                        watch.request
                    );
                }
            }
        }
    }
}

fn wants(request: &CreateRequest, change: &Change) -> bool {
    let in_range = match &request.range_end[..] {
        [] => change.key == request.key,
        [0] => change.key >= request.key,
        end => change.key >= request.key && change.key[..] < *end,
    };
    in_range && !(if change.is_delete { request.no_delete } else { request.no_put })
}

fn expected(watch: &Watch, history: &[Change], up_to: i64) -> Vec<(i64, Bytes, bool)> {
    history
        .iter()
        .filter(|change| {
            change.revision >= watch.from && change.revision <= up_to && wants(&watch.request, change)
        })
        .map(|change| (change.revision, change.key.clone(), change.is_delete))
        .collect()
}

fn check(client: &mut Client, response: Response, history: &[Change], steps: &mut Steps, store: &Store) {
    if response.created {
        let (request, from) = client.asked.pop_front().expect("a creation was asked for");
        assert!(!response.canceled, "all requests of this test are valid");
        let watch = Watch {
            request,
            from,
            got: Vec::new(),
            promised: 0,
            created: true,
            compacted: None,
            canceled: false,
        };
        assert!(client.watches.insert(response.watch_id, watch).is_none(), "an id is given once");
        return;
    }
    if response.watch_id == -1 {
        // A promise for all watchers of the stream.
        steps.progress += 1;
        for watch in client.watches.values_mut().filter(|watch| !watch.canceled) {
            assert!(watch.compacted.is_none(), "manual progress is not answered once a watcher is compacted");
            watch.promised = watch.promised.max(response.revision);
            assert_eq!(watch.got, expected(watch, history, response.revision), "W4");
        }
        return;
    }
    let watch = client.watches.get_mut(&response.watch_id).expect("created comes first");
    assert!(watch.created && !watch.canceled, "nothing comes after the end");
    if response.canceled && response.compact_revision == 0 {
        watch.canceled = true;
        return;
    }
    assert!(watch.compacted.is_none(), "a compacted watcher gets nothing but the answer to its cancellation");
    if response.compact_revision != 0 {
        steps.compacted += 1;
        assert!(response.canceled && response.revision == 0 && response.cancel_reason.is_empty());
        // What it got is all there was before some revision below the compacted one.
        let last = watch.got.last().map_or(0, |event| event.0);
        let before = expected(watch, history, last);
        assert_eq!(watch.got, before, "W1, up to the compaction");
        watch.compacted = Some(response.compact_revision);
        return;
    }
    assert!(!response.events.is_empty(), "a response without events is not sent");
    let first = response.events[0].event().revision.main;
    assert!(first > watch.promised, "W4: nothing comes late");
    assert!(watch.got.last().is_none_or(|last| last.0 < first), "W3: a revision is not divided");
    let mut mains = Vec::new();
    for shared in &response.events {
        let event = shared.event();
        mains.push(event.revision.main);
        watch.got.push((event.revision.main, event.kv.key.clone(), event.kind == EventKind::Delete));
        if watch.request.previous {
            check_previous(shared.encoded(true), event, history, store, steps);
        }
    }
    assert!(*mains.last().unwrap() <= response.revision);
    mains.dedup();
    steps.responses_of_several_revisions += usize::from(mains.len() > 1);
    steps.events += response.events.len();
    let last = watch.got.last().unwrap().0;
    assert_eq!(watch.got, expected(watch, history, last), "W1");
}

/// The encoded event has the state before its main revision, or none where there was none; none also where that is compacted by now.
fn check_previous(
    encoded: &Bytes,
    event: &sternpost_engine::mvcc::Event,
    history: &[Change],
    store: &Store,
    steps: &mut Steps,
) {
    use prost::Message;
    let message = sternpost_server::wire::etcdserverpb::WatchResponse::decode(encoded.clone()).unwrap();
    let found = message.events[0].prev_kv.as_ref().map(|kv| kv.value.clone());
    let main = event.revision.main;
    let first_of_main = history
        .iter()
        .find(|change| change.revision == main && change.key == event.kv.key)
        .expect("it happened");
    steps.previous += usize::from(found.is_some());
    assert!(
        found == first_of_main.previous || (found.is_none() && main - 1 < store.compact_revision()),
        "{event:?}: {found:?}, {first_of_main:?}"
    );
}

fn run(seed: u64, steps: usize, limits: OutboxLimits) -> Steps {
    let (mut world, metrics) = World::new(seed, limits);
    for step in 0..steps {
        world.step();
        if step % 2_000 == 1_999 {
            world.settle();
        }
    }
    world.settle();
    assert_eq!(metrics.watch.queued_bytes.get(), 0);
    assert_eq!(metrics.watch.queued_events.get(), 0);
    assert_eq!(metrics.watch.lagging.get(), 0);
    for client in std::mem::take(&mut world.clients) {
        world.hub.close_stream(client.stream);
    }
    assert_eq!((metrics.watch.watchers.get(), metrics.watch.streams.get()), (0, 0));
    Steps { lagged: metrics.watch.lagged.get(), ..world.steps }
}

/// Seeds of a run: a few by default, `STERNPOST_SEEDS` for more.
fn seeds() -> u64 {
    std::env::var("STERNPOST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8)
}

#[test]
fn no_event_is_lost_doubled_or_reordered_whoever_is_slow() {
    let tight = OutboxLimits { responses_max: 4, bytes_max: 2_000, total_bytes_max: 6_000 };
    let mut all = Steps::default();
    for seed in 0..seeds() {
        let steps = run(seed, 4_000, tight);
        all.events += steps.events;
        all.lagged += steps.lagged;
        all.compacted += steps.compacted;
        all.progress += steps.progress;
        all.responses_of_several_revisions += steps.responses_of_several_revisions;
        all.previous += steps.previous;
    }
    println!("{all:?}");
    assert!(all.events > 1_000 && all.lagged > 100 && all.compacted > 10 && all.progress > 5, "{all:?}");
    assert!(all.responses_of_several_revisions > 100 && all.previous > 100, "{all:?}");
}

#[test]
fn with_room_nobody_lags() {
    for seed in 1_000..1_000 + seeds() / 2 {
        let steps = run(seed, 4_000, OutboxLimits::default());
        assert_eq!(steps.lagged, 0, "seed {seed}");
        assert!(steps.events > 100, "seed {seed}: {steps:?}");
    }
}
