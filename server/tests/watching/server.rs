//! Watches of a real server process, over a socket.
use std::collections::BTreeSet;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    CompactionRequest, PutRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::support::process::{Program, Server};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn test(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("the test takes too long") });
}

fn server() -> Server {
    Server::start(Program::Sternpost, &[])
}

async fn connect(server: &Server) -> Channel {
    Endpoint::from_shared(server.endpoint()).unwrap().connect().await.unwrap()
}

/// One watch stream as a client holds it.
struct Watch {
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
}

impl Watch {
    /// Opens a stream with its first requests: a server may send nothing, not even headers, before it has one.
    async fn open(channel: &Channel, create: impl IntoIterator<Item = WatchCreateRequest>) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        for create in create {
            let request_union = Some(RequestUnion::CreateRequest(create));
            requests.send(WatchRequest { request_union }).unwrap();
        }
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.watch(UnboundedReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests: Some(requests), responses }
    }

    fn ask(&self, request: RequestUnion) {
        self.requests.as_ref().unwrap().send(WatchRequest { request_union: Some(request) }).unwrap();
    }

    /// A watch of everything below `prefix`, from a revision.
    async fn on(channel: &Channel, prefix: &str, start_revision: i64) -> Self {
        let mut watch = Self::open(channel, [below(prefix, start_revision)]).await;
        assert!(watch.next().await.created);
        watch
    }

    async fn answer(&mut self) -> Result<WatchResponse, Status> {
        self.responses.message().await.map(|message| message.expect("a watch stream ends with a status"))
    }

    async fn next(&mut self) -> WatchResponse {
        self.answer().await.unwrap()
    }

    /// Revisions of the next `count` events.
    async fn revisions(&mut self, count: usize) -> Vec<i64> {
        let mut revisions = Vec::new();
        while revisions.len() < count {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            revisions.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
        }
        revisions
    }
}

fn below(prefix: &str, start_revision: i64) -> WatchCreateRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    WatchCreateRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

async fn put(channel: &Channel, key: &str, value: Vec<u8>) -> i64 {
    let request =
        PutRequest { key: key.as_bytes().to_vec().into(), value: value.into(), ..PutRequest::default() };
    KvClient::new(channel.clone()).put(request).await.unwrap().into_inner().header.unwrap().revision
}

/// Puts `count` values with many requests in flight.
async fn put_many(channel: &Channel, count: usize, value_bytes: usize) {
    let tasks: Vec<_> = (0..32)
        .map(|task| {
            let channel = channel.clone();
            tokio::spawn(async move {
                for number in (task..count).step_by(32) {
                    put(&channel, &format!("load/{number:06}"), vec![b'v'; value_bytes]).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn metrics(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Waits until `/metrics` has this line.
async fn metric(server: &Server, line: &str) {
    while !metrics(server).lines().any(|found| found == line) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_client_that_does_not_read_loses_nothing_and_hinders_nobody() {
    test(async {
        const COUNT: usize = 6_000;
        let server = server();
        let (writer, slow, quick) = (connect(&server).await, connect(&server).await, connect(&server).await);
        let mut lazy = Watch::on(&slow, "load/", 0).await;
        let mut eager = Watch::on(&quick, "load/", 0).await;
        // 24 MB: more than the client's window and its queue in the server together.
        let eager = tokio::spawn(async move { eager.revisions(COUNT).await });
        put_many(&writer, COUNT, 4_096).await;
        let all: Vec<i64> = (2..2 + i64::try_from(COUNT).unwrap()).collect();
        assert_eq!(eager.await.unwrap(), all);
        metric(&server, "etcd_debugging_mvcc_slow_watcher_total 1").await;
        assert_eq!(lazy.revisions(COUNT).await, all);
        metric(&server, "etcd_debugging_mvcc_slow_watcher_total 0").await;
        let revision = put(&writer, "load/x", vec![1]).await;
        assert_eq!(lazy.revisions(1).await, [revision], "it is a synced watcher again");
    });
}

#[test]
fn ten_thousand_watchers_of_different_keys_hear_of_theirs() {
    test(async {
        const COUNT: usize = 10_000;
        let server = server();
        let channel = connect(&server).await;
        let creates = (0..COUNT).map(|number| {
            let key = format!("key/{number}").into_bytes();
            WatchCreateRequest { key: key.into(), ..WatchCreateRequest::default() }
        });
        let mut watch = Watch::open(&channel, creates).await;
        for number in 0..COUNT {
            let response = watch.next().await;
            assert!(response.created && response.watch_id == i64::try_from(number).unwrap());
        }
        for number in (0..COUNT).step_by(501) {
            put(&channel, &format!("key/{number}"), vec![1]).await;
            let response = watch.next().await;
            assert_eq!((response.watch_id, response.events.len()), (i64::try_from(number).unwrap(), 1));
        }
        metric(&server, "etcd_debugging_mvcc_watcher_total 10000").await;
    });
}

#[test]
fn many_watchers_of_one_key_get_the_same_event() {
    test(async {
        const COUNT: usize = 3_000;
        let server = server();
        let channel = connect(&server).await;
        let creates = (0..COUNT).map(|_| WatchCreateRequest { prev_kv: true, ..below("k", 0) });
        let mut watch = Watch::open(&channel, creates).await;
        for _ in 0..COUNT {
            assert!(watch.next().await.created);
        }
        for value in 1..4 {
            put(&channel, "k", vec![value]).await;
            let mut heard = BTreeSet::new();
            for _ in 0..COUNT {
                let response = watch.next().await;
                let previous = response.events[0].prev_kv.as_ref().map(|kv| kv.value.to_vec());
                assert_eq!(previous, (value > 1).then(|| vec![value - 1]));
                assert!(heard.insert(response.watch_id), "each watcher hears once");
            }
        }
    });
}

#[test]
fn a_half_closed_client_goes_on_receiving() {
    test(async {
        let server = server();
        let channel = connect(&server).await;
        let mut watch = Watch::on(&channel, "k", 0).await;
        watch.requests = None;
        for _ in 0..3 {
            let revision = put(&channel, "k", vec![1]).await;
            assert_eq!(watch.revisions(1).await, [revision]);
        }
    });
}

#[test]
fn a_stopping_server_says_so_and_a_watch_resumes_where_it_was() {
    test(async {
        let mut server = server();
        let channel = connect(&server).await;
        let mut watch = Watch::on(&channel, "k", 0).await;
        let seen = put(&channel, "k", vec![1]).await;
        assert_eq!(watch.revisions(1).await, [seen]);
        drop(channel);
        server.stop();
        let status = watch.answer().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));

        server.start_again();
        let channel = connect(&server).await;
        let missed = put(&channel, "k", vec![2]).await;
        let mut watch = Watch::on(&channel, "k", seen + 1).await;
        assert_eq!(watch.revisions(1).await, [missed]);
        let mut history = Watch::on(&channel, "k", 1).await;
        assert_eq!(history.revisions(2).await, [seen, missed]);
    });
}

#[test]
fn a_synced_watch_is_not_overtaken_by_compactions_at_the_head() {
    test(async {
        const COUNT: usize = 500;
        let server = server();
        let channel = connect(&server).await;
        let mut watch = Watch::on(&channel, "k", 0).await;
        let mut kv = KvClient::new(channel.clone());
        let writer = tokio::spawn(async move {
            let mut written = Vec::new();
            for _ in 0..COUNT {
                // Two puts and a compaction in one batch of the log, as far as the server manages.
                let (one, two) = tokio::join!(put(&channel, "k1", vec![1]), put(&channel, "k2", vec![2]));
                written.extend([one.min(two), one.max(two)]);
                let request = CompactionRequest { revision: one.max(two), physical: false };
                kv.compact(request).await.unwrap();
            }
            written
        });
        let seen = watch.revisions(2 * COUNT).await;
        assert_eq!(seen, writer.await.unwrap());
    });
}

#[test]
fn progress_never_overtakes_events() {
    test(async {
        const COUNT: usize = 3_000;
        let server = server();
        let channel = connect(&server).await;
        let mut watch = Watch::on(&channel, "load/", 0).await;
        let load = {
            tokio::spawn(async move {
                put_many(&connect(&server).await, COUNT, 10).await;
                server
            })
        };
        let (mut promised, mut last, mut promises) = (0, 1, 0);
        while last < 1 + i64::try_from(COUNT).unwrap() {
            watch.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            let response = watch.next().await;
            let revision = response.header.as_ref().unwrap().revision;
            if response.events.is_empty() {
                assert_eq!(response.watch_id, -1);
                promises += 1;
                promised = promised.max(revision);
            }
            for event in &response.events {
                let main = event.kv.as_ref().unwrap().mod_revision;
                assert_eq!(main, last + 1, "every revision is an event of this watch");
                assert!(main > promised && main <= revision);
                last = main;
            }
        }
        assert!(promises > 0);
        drop(load.await.unwrap());
    });
}

#[test]
fn a_client_that_leaves_takes_its_watchers_along_and_counts_as_canceled() {
    test(async {
        let server = server();
        let channel = connect(&server).await;
        let mut watch = Watch::open(&channel, (0..10).map(|_| below("k", 0))).await;
        for _ in 0..10 {
            watch.next().await;
        }
        watch.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 3 }));
        assert!(watch.next().await.canceled);
        metric(&server, "etcd_debugging_mvcc_watcher_total 9").await;
        metric(&server, "etcd_debugging_mvcc_watch_stream_total 1").await;
        drop(watch);
        metric(&server, "etcd_debugging_mvcc_watcher_total 0").await;
        metric(&server, "etcd_debugging_mvcc_watch_stream_total 0").await;
        let canceled = r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 1"#;
        metric(&server, canceled).await;
    });
}
