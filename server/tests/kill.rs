//! `kill -9` under 16 writers: nothing acknowledged is lost, nothing is invented, revisions go on.
//!
//! Each round, sixteen clients write (puts, transactions, deletions), each one request at a time, until the server is killed
//! in the midst of it; sometimes it is killed once more while it starts. Then the whole history since the last round is read
//! through a watch and compared with what the clients were told:
//!
//! - K1 every acknowledged request is there, at the revision that its answer named, with all of its changes;
//! - K2 every other revision is the one request that a client was waiting for when the server died: nothing is invented, and
//!   a transaction is there whole or not at all;
//! - K3 there is no gap: each revision up to the current one belongs to one request;
//! - K4 the keys and values that can be read are those which the history leads to.
//!
//! `STERNPOST_KILLS=200` for the long run, with a line of progress every ten kills; `STERNPOST_SEED` for another course
//! (which follows from the seed but for the moments at which the kills hit).
//! `STERNPOST_TESTS_AGAINST=etcd` runs it against the real etcd.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sternpost_engine::base::rng::Rng;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};
use sternpost_server::wire::mvccpb::event::EventType;
use support::process::{Program, Server, subject};
use tonic::transport::{Channel, Endpoint};

const WRITERS: usize = 16;
const KEYS_PER_WRITER: u64 = 40;
const KILLS_DEFAULT: usize = 20;
/// Acknowledged requests before a kill: at least so many, and up to so many more.
const ACKNOWLEDGED_MIN: u64 = 20;
const ACKNOWLEDGED_SPREAD: u64 = 600;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// One request, as the changes it makes: a key and its new value, `None` for a deletion. Sorted by key.
type Changes = BTreeMap<String, Option<String>>;

/// What the clients know after a round.
#[derive(Debug, Default)]
struct Told {
    /// Acknowledged requests by the revision of their answer.
    acknowledged: BTreeMap<i64, Changes>,
    /// Requests without an answer: at most one a client.
    unanswered: Vec<Changes>,
}

#[test]
fn acknowledged_writes_survive_kills() {
    let Some(program) = subject() else { return };
    survive_kills(program, &[]);
}

/// A checkpoint every few hundred writes, so that kills hit them at every stage.
#[test]
fn acknowledged_writes_survive_kills_during_checkpoints() {
    if subject() == Some(Program::Sternpost) {
        survive_kills(Program::Sternpost, &["--memtable-bytes=65536".into(), "--cache-bytes=1048576".into()]);
    }
}

fn survive_kills(program: Program, flags: &[String]) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let kills =
        number("STERNPOST_KILLS").map_or(KILLS_DEFAULT, |kills| usize::try_from(kills).expect("a count"));
    let seed = number("STERNPOST_SEED").unwrap_or(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut server = Server::start(program, flags);
    let mut random = Rng::new(seed);
    let mut keys: HashMap<String, String> = HashMap::new();
    let (mut revision, mut acknowledged, mut survivors) = (1, 0, 0);
    for kill in 1..=kills {
        let enough = ACKNOWLEDGED_MIN + random.below(ACKNOWLEDGED_SPREAD);
        let told = runtime.block_on(write_until_killed(&mut server, enough, &keys, &mut random));
        for _ in 0..random.below(3) {
            // Recovery is interrupted too, at different stages.
            server.start_and_kill(usize::try_from(1 + random.below(8)).expect("small"));
        }
        server.start_again();
        let (history, current) = runtime.block_on(history_since(&server, revision));
        let found = check(&told, &history, revision, current).unwrap_or_else(|broken| {
            panic!("kill {kill} of seed {seed}: {broken}\nserver:\n{}", server.log_tail())
        });
        for changes in history.values() {
            for (key, value) in changes {
                match value {
                    Some(value) => keys.insert(key.clone(), value.clone()),
                    None => keys.remove(key),
                };
            }
        }
        let read = runtime.block_on(all_keys(&server));
        assert!(
            read == keys,
            "K4: kill {kill} of seed {seed}: what can be read is not what the history leads to"
        );
        revision = current;
        acknowledged += told.acknowledged.len();
        survivors += found;
        if kill % 10 == 0 && kills > KILLS_DEFAULT {
            eprintln!(
                "{kill} of {kills} kills, {acknowledged} acknowledged requests, {survivors} survived unanswered"
            );
        }
    }
    eprintln!(
        "{kills} kills, {acknowledged} acknowledged requests, all there; {survivors} survived unanswered"
    );
}

/// K1 to K3. The number of unanswered requests that took effect.
fn check(told: &Told, history: &BTreeMap<i64, Changes>, before: i64, current: i64) -> Result<usize, String> {
    let mut unanswered = told.unanswered.clone();
    for revision in before + 1..=current {
        let Some(changes) = history.get(&revision) else {
            return Err(format!("K3: nothing at revision {revision}"));
        };
        match told.acknowledged.get(&revision) {
            Some(expected) if expected == changes => {}
            Some(expected) => {
                return Err(format!("K1: revision {revision} is {changes:?}, acknowledged as {expected:?}"));
            }
            None => {
                let which = unanswered.iter().position(|candidate| candidate == changes);
                let which =
                    which.ok_or_else(|| format!("K2: nobody asked for revision {revision}: {changes:?}"))?;
                unanswered.swap_remove(which);
            }
        }
    }
    match told.acknowledged.range(current + 1..).next() {
        Some((revision, lost)) => {
            Err(format!("K1: lost revision {revision}, acknowledged as {lost:?}, now at {current}"))
        }
        None => Ok(told.unanswered.len() - unanswered.len()),
    }
}

async fn write_until_killed(
    server: &mut Server,
    enough: u64,
    keys: &HashMap<String, String>,
    random: &mut Rng,
) -> Told {
    let done = Arc::new(AtomicUsize::new(0));
    let (reached, is_reached) = tokio::sync::oneshot::channel();
    let reached = Arc::new(std::sync::Mutex::new(Some(reached)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let prefix = format!("writer/{writer:02}/");
        let own: BTreeSet<String> = keys.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        let (done, reached, random) = (Arc::clone(&done), Arc::clone(&reached), Rng::new(random.next_u64()));
        let channel = connect(server);
        let report = move || {
            let done = done.fetch_add(1, Ordering::Relaxed) as u64 + 1;
            if done >= enough
                && let Some(reached) = reached.lock().expect("no panic under the lock").take()
            {
                let _ = reached.send(());
            }
        };
        writers.spawn(write(KvClient::new(channel), prefix, own, random, report));
    }
    tokio::time::timeout(ANSWER_WITHIN * 4, is_reached)
        .await
        .unwrap_or_else(|_| panic!("the writers do not get on\nserver:\n{}", server.log_tail()))
        .expect("the first to reach it says so");
    server.kill();
    let mut told = Told::default();
    while let Some(result) = writers.join_next().await {
        let (acknowledged, unanswered) = result.expect("a writer does not panic");
        for (revision, changes) in acknowledged {
            let twice = told.acknowledged.insert(revision, changes);
            assert!(twice.is_none(), "K3: revision {revision} was given to two requests");
        }
        told.unanswered.push(unanswered);
    }
    told
}

/// Writes one request after the other until one is not answered: that one, and those that were.
async fn write(
    mut client: KvClient<Channel>,
    prefix: String,
    mut own: BTreeSet<String>,
    mut random: Rng,
    report: impl Fn(),
) -> (Vec<(i64, Changes)>, Changes) {
    let mut acknowledged = Vec::new();
    loop {
        let key = format!("{prefix}{}", random.below(KEYS_PER_WRITER));
        let value = format!("{:016x}{}", random.next_u64(), "x".repeat(random.below(600) as usize));
        let mut changes = Changes::new();
        let answer = match random.below(10) {
            0 if !own.is_empty() => {
                let victim = own
                    .iter()
                    .nth(random.below(own.len() as u64) as usize)
                    .expect("below its length")
                    .clone();
                changes.insert(victim.clone(), None);
                let request = DeleteRangeRequest { key: victim.into(), ..Default::default() };
                client.delete_range(request).await.map(|answer| answer.into_inner().header)
            }
            1 | 2 => {
                // Several keys at once, among them the deletion of one that is there.
                changes.insert(key, Some(value.clone()));
                changes.insert(format!("{prefix}{}", random.below(KEYS_PER_WRITER)), Some(value));
                if let Some(victim) = own.iter().find(|victim| !changes.contains_key(*victim)) {
                    changes.insert(victim.clone(), None);
                }
                let success = changes.iter().map(operation).collect();
                let request = TxnRequest { success, ..Default::default() };
                client.txn(request).await.map(|answer| answer.into_inner().header)
            }
            _ => {
                changes.insert(key.clone(), Some(value.clone()));
                let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
                client.put(request).await.map(|answer| answer.into_inner().header)
            }
        };
        let Ok(header) = answer else { return (acknowledged, changes) };
        for (key, value) in &changes {
            if value.is_some() {
                own.insert(key.clone());
            } else {
                own.remove(key);
            }
        }
        acknowledged.push((header.expect("every answer has a header").revision, changes));
        report();
    }
}

fn operation((key, value): (&String, &Option<String>)) -> RequestOp {
    let key = key.clone().into();
    RequestOp {
        request: Some(match value {
            Some(value) => {
                Request::RequestPut(PutRequest { key, value: value.clone().into(), ..Default::default() })
            }
            None => Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() }),
        }),
    }
}

/// Everything that happened after a revision, and the current one.
async fn history_since(server: &Server, revision: i64) -> (BTreeMap<i64, Changes>, i64) {
    let channel = connect(server);
    let range = RangeRequest { key: "writer".into(), count_only: true, ..Default::default() };
    let answer =
        KvClient::new(channel.clone()).range(range).await.expect("the server has said that it is ready");
    let current = answer.into_inner().header.expect("every answer has a header").revision;
    let mut history: BTreeMap<i64, Changes> = BTreeMap::new();
    if current == revision {
        return (history, current);
    }
    let create = WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: revision + 1,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The request stream stays open: one message, then nothing.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(request).await.expect("the receiver is here");
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.watch(requests).await.expect("a watch can be opened").into_inner();
    while history.last_key_value().is_none_or(|(newest, _)| *newest < current) {
        let message =
            tokio::time::timeout(ANSWER_WITHIN, stream.message()).await.expect("the history has an end");
        let message = message.expect("the stream goes on").expect("the stream goes on");
        assert!(!message.canceled, "the watch was cancelled: {message:?}");
        for event in message.events {
            let kv = event.kv.as_ref().expect("an event has a key");
            let text = |bytes: &bytes::Bytes| {
                String::from_utf8(bytes.to_vec()).expect("keys and values are text here")
            };
            let value = (event.r#type() == EventType::Put).then(|| text(&kv.value));
            let twice = history.entry(kv.mod_revision).or_default().insert(text(&kv.key), value);
            assert!(twice.is_none(), "two events of one key at revision {}", kv.mod_revision);
        }
    }
    (history, current)
}

async fn all_keys(server: &Server) -> HashMap<String, String> {
    let range = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let mut client = KvClient::new(connect(server)).max_decoding_message_size(usize::MAX);
    let answer = client.range(range).await.expect("a range").into_inner();
    let text =
        |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("keys and values are text here");
    answer.kvs.into_iter().map(|kv| (text(kv.key), text(kv.value))).collect()
}

/// A connection of its own.
fn connect(server: &Server) -> Channel {
    Endpoint::from_shared(server.endpoint()).expect("a URL").connect_lazy()
}

// The check itself, on histories that are wrong in one way each.

fn put(key: &str, value: &str) -> Changes {
    Changes::from([(key.to_owned(), Some(value.to_owned()))])
}

fn told() -> Told {
    Told {
        acknowledged: BTreeMap::from([(2, put("a", "1")), (3, put("b", "1")), (5, put("c", "1"))]),
        unanswered: vec![put("d", "1"), put("e", "1")],
    }
}

fn true_history() -> BTreeMap<i64, Changes> {
    BTreeMap::from([(2, put("a", "1")), (3, put("b", "1")), (4, put("d", "1")), (5, put("c", "1"))])
}

#[test]
fn a_true_history_is_accepted() {
    assert_eq!(check(&told(), &true_history(), 1, 5), Ok(1));
}

#[test]
fn a_lost_write_is_noticed() {
    let mut history = true_history();
    history.remove(&5);
    assert!(check(&told(), &history, 1, 4).is_err_and(|broken| broken.starts_with("K1: lost revision 5")));
}

#[test]
fn a_changed_write_is_noticed() {
    let mut history = true_history();
    history.insert(3, put("b", "2"));
    assert!(check(&told(), &history, 1, 5).is_err_and(|broken| broken.starts_with("K1: revision 3")));
}

#[test]
fn an_invented_write_is_noticed() {
    let mut history = true_history();
    history.insert(6, put("f", "1"));
    assert!(
        check(&told(), &history, 1, 6)
            .is_err_and(|broken| broken.starts_with("K2: nobody asked for revision 6"))
    );
    history.insert(6, put("d", "1"));
    assert!(check(&told(), &history, 1, 6).is_err_and(|broken| broken.starts_with("K2")), "applied twice");
}

#[test]
fn half_a_transaction_is_noticed() {
    let mut told = told();
    told.unanswered[0].insert("dd".to_owned(), None);
    assert!(check(&told, &true_history(), 1, 5).is_err_and(|broken| broken.starts_with("K2")));
}

#[test]
fn a_gap_is_noticed() {
    let mut history = true_history();
    history.remove(&4);
    assert!(
        check(&told(), &history, 1, 5).is_err_and(|broken| broken.starts_with("K3: nothing at revision 4"))
    );
}
