//! Clients that mean harm, or are broken, against a real process: what they cost the server is bounded, and others are served meanwhile.
//!
//! Asserted are bounds on memory that hold on any machine, and that an ordinary client's calls succeed; latencies are measured elsewhere. Bounds allow for a debug build.
mod support;

use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};
use support::cluster::{Cluster, Member, runtime, until};
use support::raw_http2::{self as http2, RawHttp2, grpc_headers, literal};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const RANGE: &str = "/etcdserverpb.KV/Range";
const MIB: u64 = 1 << 20;

fn one_member(options: &[&str]) -> Cluster {
    Cluster::start(1, options)
}

async fn fill(member: &Member, keys: usize, value_bytes: usize) {
    until("the first put", async || member.put("ready", "yes").await.ok()).await;
    let mut kv = KvClient::new(member.channel());
    for number in 0..keys {
        let key = format!("list/{number:06}");
        // Different everywhere, so that a piece in the wrong place is seen.
        let value = format!("{number:08x}").repeat(value_bytes / 8);
        kv.put(PutRequest { key: key.into(), value: value.into(), ..Default::default() }).await.unwrap();
    }
}

fn list() -> RangeRequest {
    RangeRequest { key: "list/".into(), range_end: "list0".into(), ..Default::default() }
}

/// An ordinary client that puts and reads a key of its own all the time.
struct Bystander {
    is_over: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    working: tokio::task::JoinHandle<()>,
}

impl Bystander {
    fn start(member: &Member) -> Self {
        let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count, channel) = (is_over.clone(), calls.clone(), member.channel());
        let working = tokio::spawn(async move {
            let mut kv = KvClient::new(channel);
            while !over.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                let put = PutRequest {
                    key: "bystander".into(),
                    value: number.to_string().into(),
                    ..Default::default()
                };
                kv.put(put).await.expect("others do not notice");
                let get = RangeRequest { key: "bystander".into(), ..Default::default() };
                let found = kv.range(get).await.expect("others do not notice").into_inner();
                assert_eq!(found.kvs[0].value, number.to_string().as_bytes());
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { is_over, calls, working }
    }

    /// Waits until it has done something more.
    async fn goes_on(&self) {
        let before = self.calls.load(Ordering::Relaxed);
        until("an ordinary client to be served", async || {
            (self.calls.load(Ordering::Relaxed) > before + 3 || self.working.is_finished()).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.working.await.expect("it was served all the time");
    }
}

/// How each of these streams began: as an answer, or refused.
fn beginnings(connection: &mut RawHttp2, streams: usize) -> (usize, usize) {
    let (mut answered, mut refused) = (0, 0);
    while answered + refused < streams {
        let frame = connection.frame().unwrap().expect("the connection stays");
        match (frame.kind, frame.flags & http2::END_STREAM) {
            (http2::HEADERS, 0) => answered += 1,
            (http2::HEADERS, _) => refused += 1,
            _ => {}
        }
    }
    (answered, refused)
}

async fn answer_bytes(member: &Member) -> f64 {
    member.metric("sternpost_answer_bytes").await.expect("it has this metric")
}

#[test]
fn readers_that_never_read_hold_no_more_than_the_budget() {
    runtime().block_on(async {
        // Room for 32 MiB of answers; a list of 24 MiB is asked for 1,600 times.
        let cluster = one_member(&["--max-answer-bytes=33554432"]);
        let member = &cluster.members[0];
        fill(member, 48, 512 << 10).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let (list, address) = (list().encode_to_vec(), member.client_address());
        let mut connections = Vec::new();
        for window_bytes in [0, 0, 1, 1, 70_000, 0, 1, 70_000] {
            let (list, address) = (list.clone(), address.clone());
            let hostile = tokio::task::spawn_blocking(move || {
                let mut connection = RawHttp2::connect(&address, window_bytes).unwrap();
                for _ in 0..200 {
                    connection.call(RANGE, &list).unwrap();
                }
                let beginnings = beginnings(&mut connection, 200);
                (connection, beginnings)
            });
            connections.push(hostile.await.unwrap());
            assert!(answer_bytes(member).await <= 33.0 * MIB as f64, "one page above at most");
        }
        let answered: usize = connections.iter().map(|(_, (answered, _))| answered).sum();
        let refused: usize = connections.iter().map(|(_, (_, refused))| refused).sum();
        println!("{answered} answers wait, {refused} were refused");
        assert!(answered >= 8 && refused >= 400, "{answered} and {refused}");
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("the server grew by {grown_mib} MiB");
        // Held pages, what the transport queues (400 KiB a stream at most), and buffers of the allocator; 1,600 lists would be 38 GiB.
        assert!(grown_mib < 160, "it grew by {grown_mib} MiB");
        assert!(member.metric("sternpost_answer_refused_total").await.unwrap() >= refused as f64);
        drop(connections);
        until("what they held to be free", async || (answer_bytes(member).await < MIB as f64).then_some(()))
            .await;
        let mut kv = KvClient::new(member.channel()).max_decoding_message_size(usize::MAX);
        let request = RangeRequest { key: "list/".into(), range_end: "list0".into(), ..Default::default() };
        assert_eq!(kv.range(request).await.expect("there is room again").into_inner().kvs.len(), 48);
        bystander.end().await;
    });
}

#[test]
fn small_answers_that_are_never_read_are_bounded_as_well() {
    runtime().block_on(async {
        let cluster = one_member(&["--max-answer-bytes=16777216"]);
        let member = &cluster.members[0];
        fill(member, 1, 1024).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let (get, address) = (
            RangeRequest { key: "list/000000".into(), ..Default::default() }.encode_to_vec(),
            member.client_address(),
        );
        let hostile = tokio::task::spawn_blocking(move || {
            let mut connection = RawHttp2::connect(&address, 0).unwrap();
            let mut answered = 0;
            let mut refused = 0;
            // A quarter of 16 MiB is room for some two thousand answers of 1 KiB.
            for _ in 0..100 {
                for _ in 0..100 {
                    connection.call("/etcdserverpb.KV/Range", &get).unwrap();
                }
                let (more_answered, more_refused) = beginnings(&mut connection, 100);
                answered += more_answered;
                refused += more_refused;
            }
            (connection, answered, refused)
        });
        let (connection, answered, refused) = hostile.await.unwrap();
        println!("{answered} answers wait, {refused} were refused");
        assert!((1000..=2100).contains(&answered) && refused >= 7000, "{answered} and {refused}");
        assert!(answer_bytes(member).await < 5.0 * MIB as f64);
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("the server grew by {grown_mib} MiB");
        assert!(grown_mib < 100, "it grew by {grown_mib} MiB");
        drop(connection);
        bystander.end().await;
    });
}

#[test]
fn a_large_answer_is_the_same_whichever_way_it_is_read() {
    runtime().block_on(async {
        let cluster = one_member(&["--memtable-bytes=4194304"]);
        let member = &cluster.members[0];
        // Larger than what is held as a whole, in memory and on disk.
        fill(member, 700, 8 << 10).await;
        let mut kv = KvClient::new(member.channel()).max_decoding_message_size(usize::MAX);
        let whole = kv.range(list()).await.unwrap().into_inner();
        assert_eq!((whole.kvs.len(), whole.count, whole.more), (700, 700, false));
        let revision = whole.header.unwrap().revision;
        for (number, kv) in whole.kvs.iter().enumerate() {
            assert_eq!(kv.key, format!("list/{number:06}").as_bytes());
            assert_eq!(kv.value, format!("{number:08x}").repeat(1024).as_bytes());
            assert!(kv.version == 1 && kv.mod_revision == kv.create_revision && kv.lease == 0);
        }
        let cut = kv.range(RangeRequest { limit: 600, ..list() }).await.unwrap().into_inner();
        assert_eq!((cut.kvs.len(), cut.count, cut.more), (600, 700, true));
        assert_eq!(cut.kvs, whole.kvs[..600]);
        let min_mod_revision = whole.kvs[300].mod_revision;
        let filtered = kv.range(RangeRequest { min_mod_revision, ..list() }).await.unwrap().into_inner();
        assert_eq!((filtered.count, filtered.more), (700, false));
        assert_eq!(filtered.kvs, whole.kvs[300..]);
        let descending = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Mod.into(),
            ..list()
        };
        let sorted = kv.range(descending).await.unwrap().into_inner();
        assert!(sorted.kvs.iter().rev().eq(&whole.kvs), "sorted, and held for that");
        // What is written while it is read is not in it.
        let at = RangeRequest { revision, ..list() };
        kv.put(PutRequest { key: "list/000500".into(), value: "new".into(), ..Default::default() })
            .await
            .unwrap();
        assert_eq!(kv.range(at).await.unwrap().into_inner().kvs, whole.kvs);
        // By pieces: the same once more.
        let mut pieces = kv.range_stream(RangeRequest { revision, ..list() }).await.unwrap().into_inner();
        let mut streamed = Vec::new();
        let mut count = 0;
        while let Some(piece) = pieces.message().await.unwrap() {
            let piece = piece.range_response.unwrap();
            streamed.extend(piece.kvs);
            count += piece.count;
        }
        assert_eq!((streamed, count), (whole.kvs, 700));
    });
}

#[test]
fn a_sorted_list_that_does_not_fit_is_refused_and_says_so() {
    runtime().block_on(async {
        let cluster = one_member(&["--max-answer-bytes=16777216"]);
        let member = &cluster.members[0];
        fill(member, 40, 256 << 10).await;
        let mut kv = KvClient::new(member.channel()).max_decoding_message_size(usize::MAX);
        let sorted = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Value.into(),
            ..list()
        };
        let error = kv.range(sorted.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().starts_with("sternpost: too many bytes of answers"), "{error}");
        let few = kv.range(RangeRequest { limit: 2, ..sorted }).await.unwrap().into_inner();
        assert_eq!((few.kvs.len(), few.count, few.more), (2, 40, true));
        assert_eq!(kv.range(list()).await.unwrap().into_inner().kvs.len(), 40, "in order it needs no room");
        assert!(answer_bytes(member).await < MIB as f64);
    });
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection_and_nobody_elses() {
    runtime().block_on(async {
        let cluster = one_member(&[]);
        let member = &cluster.members[0];
        fill(member, 8, 64 << 10).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        for _ in 0..4 {
            let address = member.client_address();
            let hostile = tokio::task::spawn_blocking(move || {
                let mut connection = RawHttp2::connect(&address, 0).unwrap();
                let list = grpc_headers(RANGE);
                let mut opened = 0;
                for _ in 0..50_000 {
                    let stream = connection.new_stream();
                    let sent = connection
                        .send(http2::HEADERS, http2::END_HEADERS, stream, &list)
                        .and_then(|()| connection.send(http2::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    if sent.is_err() {
                        break;
                    }
                    opened += 1;
                }
                opened
            });
            println!("{} streams opened and reset", hostile.await.unwrap());
        }
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        assert!(grown_mib < 64, "it grew by {grown_mib} MiB");
        bystander.end().await;
    });
}

#[test]
fn headers_without_end_and_floods_of_control_frames_are_bounded() {
    runtime().block_on(async {
        let cluster = one_member(&[]);
        let member = &cluster.members[0];
        fill(member, 1, 8).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let address = member.client_address();
        let hostile = tokio::task::spawn_blocking(move || {
            // A header block of up to 64 MiB, in pieces that never end.
            let mut connection = RawHttp2::connect(&address, 65_535).unwrap();
            let stream = connection.new_stream();
            let mut sent = connection.send(http2::HEADERS, 0, stream, &grpc_headers(RANGE)).is_ok();
            let piece: Vec<u8> = (0..100).flat_map(|_| literal("x-a", &"b".repeat(120))).collect();
            let mut pieces = 0;
            while sent && pieces < 5_000 {
                sent = connection.send(http2::CONTINUATION, 0, stream, &piece).is_ok();
                pieces += 1;
            }
            println!("{pieces} pieces of a header block, still taken: {sent}");
            // Pings and settings, whose answers nobody reads.
            let mut connection = RawHttp2::connect(&address, 65_535).unwrap();
            let mut frames = 0;
            // Ends where the server stops reading, since the unread answers have filled the buffers of both kernels, or closes the connection.
            while frames < 400_000
                && connection.send(http2::PING, 0, 0, &[7; 8]).is_ok()
                && connection.send(http2::SETTINGS, 0, 0, &[]).is_ok()
            {
                frames += 2;
            }
            println!("{frames} control frames");
            connection
        });
        let connection = hostile.await.unwrap();
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("the server grew by {grown_mib} MiB");
        assert!(grown_mib < 32, "it grew by {grown_mib} MiB");
        drop(connection);
        bystander.end().await;
    });
}

/// So many connections that say nothing any more, half of them not even what they speak.
#[test]
fn ten_thousand_idle_connections_cost_little_each() {
    const CONNECTIONS: usize = 10_000;
    runtime().block_on(async {
        let cluster = one_member(&[]);
        let member = &cluster.members[0];
        fill(member, 1, 8).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let address = member.client_address();
        let open = move || -> std::io::Result<(Vec<_>, Vec<_>)> {
            let mut silent = Vec::new();
            let mut greeted = Vec::new();
            for number in 0..CONNECTIONS {
                if number.is_multiple_of(2) {
                    silent.push(std::net::TcpStream::connect((address.0.as_str(), address.1))?);
                } else {
                    greeted.push(RawHttp2::connect(&address, 65_535)?);
                }
            }
            // Who has an answer was accepted, and those before it with it.
            for connection in &mut greeted {
                while connection.frame()?.expect("it is greeted back").kind != http2::SETTINGS {}
            }
            Ok((silent, greeted))
        };
        let connections =
            tokio::task::spawn_blocking(open).await.unwrap().expect("as many as were asked for");
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("{CONNECTIONS} connections: {} KiB each", grown_mib * 1024 / CONNECTIONS as u64);
        // A task, its timers, buffers for frames and headers, in a debug build.
        assert!(grown_mib < 400, "it grew by {grown_mib} MiB");
        drop(connections);
        until("their files to be closed", async || {
            (member.metric("process_open_fds").await? < 200.0).then_some(())
        })
        .await;
        bystander.end().await;
    });
}

/// So many watches by one client, over few connections, of keys that change and keys that do not.
#[test]
fn a_hundred_thousand_watches_cost_little_each() {
    const STREAMS: usize = 20;
    const WATCHES: usize = 5_000;
    runtime().block_on(async {
        let cluster = one_member(&[]);
        let member = &cluster.members[0];
        fill(member, 1, 8).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let channels: Vec<_> = (0..4).map(|_| member.channel()).collect();
        let mut streams = Vec::new();
        for stream in 0..STREAMS {
            let creates = (0..WATCHES).map(move |number| {
                let create = WatchCreateRequest {
                    key: format!("watched/{:06}", stream * WATCHES + number).into(),
                    ..Default::default()
                };
                WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
            });
            // The stream of requests ends, and the watches with it, when this end of it is dropped.
            let (open, end) = tokio::sync::mpsc::channel(1);
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::iter(creates), ReceiverStream::new(end));
            let mut answers =
                WatchClient::new(channels[stream % 4].clone()).watch(requests).await.unwrap().into_inner();
            for number in 0..WATCHES {
                let answer = answers.message().await.unwrap().expect("the watch goes on");
                assert!(answer.created && answer.watch_id == number as i64, "{answer:?}");
            }
            streams.push((answers, open));
        }
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!(
            "{} watches: {} bytes each",
            STREAMS * WATCHES,
            (grown_mib << 20) / (STREAMS * WATCHES) as u64
        );
        assert!(grown_mib < 200, "it grew by {grown_mib} MiB");
        // Each change comes to the one watch that is for it, among all of them.
        for (stream, (answers, _)) in streams.iter_mut().enumerate() {
            let number = stream * 97 % WATCHES;
            let key = format!("watched/{:06}", stream * WATCHES + number);
            member.put(&key, "seen").await.unwrap();
            let answer = answers.message().await.unwrap().expect("the watch goes on");
            assert_eq!((answer.watch_id, answer.events.len()), (number as i64, 1));
            assert_eq!(answer.events[0].kv.as_ref().unwrap().key, key.as_bytes());
        }
        drop(streams);
        until("their watches to be gone", async || {
            (member.metric("etcd_debugging_mvcc_watcher_total").await? == 0.0).then_some(())
        })
        .await;
        bystander.end().await;
    });
}

/// The greatest puts that are allowed, by many at once, into a store that is nearly full: refused with etcd's words, nothing else is disturbed, and room comes back.
#[test]
fn large_puts_near_the_quota_are_refused_and_leave_the_rest_alone() {
    const WRITERS: usize = 16;
    const VALUE_BYTES: usize = 1_500_000;
    runtime().block_on(async {
        let cluster = one_member(&["--quota-backend-bytes=134217728", "--max-inflight-bytes=33554432"]);
        let member = &cluster.members[0];
        fill(member, 4, 4096).await;
        let before_mib = member.resident_mib();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut kv = KvClient::new(member.channel());
                tokio::spawn(async move {
                    let mut put = 0usize;
                    loop {
                        let mut value = vec![0; VALUE_BYTES];
                        // Nothing that compresses: the space counts.
                        let mut state = (writer * 1_000_003 + put + 1) as u64;
                        value.iter_mut().for_each(|byte| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            *byte = (state >> 56) as u8;
                        });
                        let key = format!("large/{writer}/{put}");
                        let request =
                            PutRequest { key: key.into(), value: value.into(), ..Default::default() };
                        match kv.put(request).await {
                            Ok(_) => put += 1,
                            Err(status)
                                if status.message() == "etcdserver: mvcc: database space exceeded" =>
                            {
                                return put;
                            }
                            // Its own budget, for requests that arrive: the same client tries again.
                            Err(status) if status.code() == Code::ResourceExhausted => {}
                            Err(status) => panic!("{status}"),
                        }
                    }
                })
            })
            .collect();
        let mut put = 0;
        for writer in writers {
            put += writer.await.expect("it is refused in etcd's words");
        }
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("{put} puts of {VALUE_BYTES} bytes were taken; the server grew by {grown_mib} MiB");
        assert!(put * VALUE_BYTES < 256 << 20, "the quota is 128 MiB: {put} puts");
        // Memtables of 64 MiB, up to four, and the budget of requests.
        assert!(grown_mib < 512, "it grew by {grown_mib} MiB");

        // What is there can be read, and removed; then there is room.
        let mut kv = KvClient::new(member.channel()).max_decoding_message_size(usize::MAX);
        assert_eq!(kv.range(list()).await.unwrap().into_inner().kvs.len(), 4);
        let delete =
            DeleteRangeRequest { key: "large/".into(), range_end: "large0".into(), ..Default::default() };
        let deleted = kv.delete_range(delete).await.unwrap().into_inner();
        // Who hears that there is no space may have been applied nevertheless, as in etcd: one of each writer.
        let there = usize::try_from(deleted.deleted).unwrap();
        assert!((put..=put + WRITERS).contains(&there), "{put} were acknowledged, {there} were there");
        let revision = deleted.header.unwrap().revision;
        kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
        let mut maintenance = MaintenanceClient::new(member.channel());
        let raised = maintenance.alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms;
        assert_eq!(raised.len(), 1, "{raised:?}");
        let (member_id, alarm) = (raised[0].member_id, raised[0].alarm);
        let disarm = AlarmRequest { action: AlarmAction::Deactivate as i32, member_id, alarm };
        until("puts to be taken again", async || {
            maintenance.clone().alarm(disarm).await.unwrap();
            member.put("list/again", "1").await.ok()
        })
        .await;
    });
}

/// A put that never happens, and a read of what is there: goes through the log, and answers as much as it is asked for.
fn reading_txn(reads: &[RangeRequest], marker: &str) -> Vec<u8> {
    let op = |request| RequestOp { request: Some(request) };
    let put = PutRequest { key: marker.to_owned().into(), ..Default::default() };
    let mut success: Vec<_> = reads.iter().cloned().map(|read| op(Op::RequestRange(read))).collect();
    success.push(op(Op::RequestPut(put)));
    TxnRequest { success, ..Default::default() }.encode_to_vec()
}

async fn count(member: &Member, prefix: &str) -> i64 {
    let range_end = format!("{}0", prefix.strip_suffix('/').unwrap());
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: range_end.into(),
        count_only: true,
        ..Default::default()
    };
    KvClient::new(member.channel()).range(request).await.unwrap().into_inner().count
}

#[test]
fn transactions_that_answer_much_hold_no_more_than_the_budget_and_none_is_refused_that_was_done() {
    runtime().block_on(async {
        let cluster = one_member(&["--max-answer-bytes=33554432"]);
        let member = &cluster.members[0];
        // 2 MiB, of which each transaction answers all, or one key of 512 KiB sixteen times.
        fill(member, 4, 512 << 10).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let one = RangeRequest { key: "list/000001".into(), ..Default::default() };
        let many = vec![one; 16];
        let (mut answered, mut refused) = (0, 0);
        let mut connections = Vec::new();
        for number in 0..8 {
            let (address, reads) =
                (member.client_address(), if number % 2 == 0 { vec![list()] } else { many.clone() });
            let hostile = tokio::task::spawn_blocking(move || {
                let mut connection = RawHttp2::connect(&address, 1).unwrap();
                for call in 0..200 {
                    let txn = reading_txn(&reads, &format!("done/{number}-{call}"));
                    connection.call("/etcdserverpb.KV/Txn", &txn).unwrap();
                }
                let beginnings = beginnings(&mut connection, 200);
                (connection, beginnings)
            });
            let (connection, (some_answered, some_refused)) = hostile.await.unwrap();
            connections.push(connection);
            (answered, refused) = (answered + some_answered, refused + some_refused);
        }
        println!("{answered} transactions were answered, {refused} refused");
        assert!(answered > 0 && refused > 1000, "{answered} and {refused}");
        assert_eq!(
            count(member, "done/").await,
            answered as i64,
            "what is refused was not done, and what is done is answered"
        );
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("the server grew by {grown_mib} MiB");
        // 1,600 answers of 2 to 8 MiB would be 8 GiB.
        assert!(grown_mib < 160, "it grew by {grown_mib} MiB");
        drop(connections);
        until("what they held to be free", async || (answer_bytes(member).await < MIB as f64).then_some(()))
            .await;
        bystander.end().await;
    });
}

#[test]
fn a_deletion_whose_previous_values_do_not_fit_deletes_nothing() {
    runtime().block_on(async {
        let cluster = one_member(&["--max-answer-bytes=16777216"]);
        let member = &cluster.members[0];
        fill(member, 40, 256 << 10).await;
        let mut kv = KvClient::new(member.channel()).max_decoding_message_size(usize::MAX);
        let delete = DeleteRangeRequest { key: "list/".into(), range_end: "list0".into(), prev_kv: true };
        // Without the answer, which would be 10 MiB of a failure's text.
        let error = kv.delete_range(delete.clone()).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().starts_with("sternpost: too many bytes of answers"), "{error}");
        assert_eq!(count(member, "list/").await, 40);
        // The same within a transaction, which would have put something as well.
        let op = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: "put/1".into(), ..Default::default() };
        let success = vec![op(Op::RequestPut(put)), op(Op::RequestDeleteRange(delete.clone()))];
        let error = kv.txn(TxnRequest { success, ..Default::default() }).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        let reading = vec![op(Op::RequestRange(list()))];
        let error =
            kv.txn(TxnRequest { success: reading, ..Default::default() }).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert_eq!((count(member, "list/").await, count(member, "put/").await), (40, 0));
        // What fits is done, and without the values it always fits.
        let few = DeleteRangeRequest { range_end: "list/000004".into(), ..delete.clone() };
        let deleted = kv.delete_range(few).await.unwrap().into_inner();
        assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (4, 4));
        let all = DeleteRangeRequest { prev_kv: false, ..delete };
        assert_eq!(kv.delete_range(all).await.unwrap().into_inner().deleted, 36);
        assert!(answer_bytes(member).await < MIB as f64);
    });
}

#[test]
fn range_streams_that_nobody_reads_hold_no_more_than_the_budget() {
    runtime().block_on(async {
        let cluster = one_member(&["--max-answer-bytes=33554432"]);
        let member = &cluster.members[0];
        fill(member, 64, 256 << 10).await;
        let bystander = Bystander::start(member);
        bystander.goes_on().await;
        let before_mib = member.resident_mib();
        let mut connections = Vec::new();
        let mut refused = 0;
        for _ in 0..8 {
            let (list, address) = (list().encode_to_vec(), member.client_address());
            let hostile = tokio::task::spawn_blocking(move || {
                let mut connection = RawHttp2::connect(&address, 1).unwrap();
                for _ in 0..100 {
                    connection.call("/etcdserverpb.KV/RangeStream", &list).unwrap();
                }
                // Each begins; those without room end again.
                let (mut begun, mut ended) = (0, 0);
                while begun < 100 {
                    let frame = connection.frame().unwrap().expect("the connection stays");
                    match (frame.kind, frame.flags & http2::END_STREAM) {
                        (http2::HEADERS, 0) => begun += 1,
                        (http2::HEADERS, _) => (begun, ended) = (begun + 1, ended + 1),
                        _ => {}
                    }
                }
                (connection, ended)
            });
            let (connection, ended) = hostile.await.unwrap();
            connections.push(connection);
            refused += ended;
        }
        println!("{refused} streams ended at once");
        assert!(member.metric("sternpost_answer_refused_total").await.unwrap() >= 400.0);
        assert!(answer_bytes(member).await <= 34.0 * MIB as f64);
        bystander.goes_on().await;
        let grown_mib = member.resident_mib().saturating_sub(before_mib);
        println!("the server grew by {grown_mib} MiB");
        // 800 chunks of 512 KiB would be 400 MiB, and as etcd makes them 2.5 MiB each.
        assert!(grown_mib < 160, "it grew by {grown_mib} MiB");
        drop(connections);
        until("what they held to be free", async || (answer_bytes(member).await < MIB as f64).then_some(()))
            .await;
        // Who reads gets all of it.
        let mut kv = KvClient::new(member.channel());
        let mut pieces = kv.range_stream(list()).await.unwrap().into_inner();
        let (mut keys, mut count) = (0, 0);
        while let Some(piece) = pieces.message().await.unwrap() {
            let piece = piece.range_response.unwrap();
            assert!(piece.encoded_len() <= (512 << 10) + 4096, "a chunk of {} bytes", piece.encoded_len());
            (keys, count) = (keys + piece.kvs.len(), count + piece.count);
        }
        assert_eq!((keys, count), (64, 64));
        bystander.end().await;
    });
}
