use crate::support::*;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::response_op::Response as Answer;
use sternpost_server::wire::etcdserverpb::*;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

#[tokio::test]
async fn a_put_is_read_back_with_etcds_header_and_revisions() {
    let mut server = start().await;
    let response = server.kv.put(put("a", "1")).await.unwrap().into_inner();
    let header = response.header.unwrap();
    assert_eq!(format!("{:x}", header.cluster_id), "cdf818194e3a8c32");
    assert_eq!(format!("{:x}", header.member_id), "8e9e05c52164694d");
    assert_eq!((header.revision, header.raft_term), (2, 1));
    assert_eq!(response.prev_kv, None);

    assert_eq!(server.put("a", "2").await, 3);
    let response = server.kv.range(get("a")).await.unwrap().into_inner();
    assert_eq!(response.header.unwrap().revision, 3);
    let kv = &response.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    assert_eq!((response.count, response.more, &kv.value[..]), (1, false, &b"2"[..]));

    let old = RangeRequest { revision: 2, ..get("a") };
    let response = server.kv.range(old).await.unwrap().into_inner();
    assert_eq!((response.header.unwrap().revision, &response.kvs[0].value[..]), (3, &b"1"[..]));
    let prev = PutRequest { prev_kv: true, ..put("a", "3") };
    let response = server.kv.put(prev).await.unwrap().into_inner();
    assert_eq!(response.prev_kv.unwrap().mod_revision, 3);
}

#[tokio::test]
async fn deletes_count_and_a_delete_of_nothing_takes_no_revision() {
    let mut server = start().await;
    server.put("a", "1").await;
    server.put("b", "1").await;
    let all = DeleteRangeRequest { key: bytes("a"), range_end: bytes("\0"), prev_kv: true };
    let response = server.kv.delete_range(all.clone()).await.unwrap().into_inner();
    assert_eq!((response.deleted, response.prev_kvs.len(), response.header.unwrap().revision), (2, 2, 4));
    let response = server.kv.delete_range(all).await.unwrap().into_inner();
    assert_eq!((response.deleted, response.header.unwrap().revision), (0, 4));
}

#[tokio::test]
async fn bad_requests_get_etcds_codes_and_texts() {
    let mut server = start().await;
    let empty = "etcdserver: key is not provided";
    refused(server.kv.put(put("", "")).await, Code::InvalidArgument, empty);
    refused(server.kv.range(get("")).await, Code::InvalidArgument, empty);
    refused(server.kv.delete_range(DeleteRangeRequest::default()).await, Code::InvalidArgument, empty);
    let unknown = RangeRequest { sort_order: 7, ..get("a") };
    refused(server.kv.range(unknown).await, Code::InvalidArgument, "etcdserver: invalid sort option");
    let keep = PutRequest { ignore_value: true, ..put("a", "") };
    refused(server.kv.put(keep).await, Code::InvalidArgument, "etcdserver: key not found");
    let leased = PutRequest { lease: 77, ..put("a", "") };
    refused(server.kv.put(leased).await, Code::NotFound, "etcdserver: requested lease not found");
    let future = RangeRequest { revision: 9, ..get("a") };
    let text = "etcdserver: mvcc: required revision is a future revision";
    refused(server.kv.range(future).await, Code::OutOfRange, text);
    let large = put("a", &"x".repeat(1_572_864));
    refused(server.kv.put(large).await, Code::InvalidArgument, "etcdserver: request is too large");
    let fits = put("a", &"x".repeat(1_572_864 - 100));
    assert!(server.kv.put(fits).await.is_ok());
}

#[tokio::test]
async fn metadata_is_checked_before_the_request() {
    let mut server = start().await;
    let mut request = Request::new(get("a"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    request.metadata_mut().insert("client-api-version", "3.7".parse().unwrap());
    assert!(server.kv.range(request).await.is_ok());
    let mut request = Request::new(get(""));
    let no_text = MetadataValue::try_from(&b"\xff\xfe"[..]).unwrap();
    request.metadata_mut().insert("client-api-version", no_text);
    let text = "etcdserver: invalid client api version";
    refused(server.kv.range(request).await, Code::InvalidArgument, text);
}

fn is_new(key: &str) -> Compare {
    Compare {
        key: bytes(key),
        target: CompareTarget::Create.into(),
        result: CompareResult::Equal.into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_transaction_creates_once_and_answers_with_inner_headers() {
    let mut server = start().await;
    let create = TxnRequest {
        compare: vec![is_new("a")],
        success: vec![put_op("a", "1")],
        failure: vec![get_op("a")],
    };
    let response = server.kv.txn(create.clone()).await.unwrap().into_inner();
    assert!(response.succeeded);
    assert_eq!(response.header.unwrap().revision, 2);
    let Some(Answer::ResponsePut(put)) = &response.responses[0].response else { panic!("{response:?}") };
    let inner = put.header.as_ref().unwrap();
    assert_eq!((inner.revision, inner.cluster_id, inner.member_id, inner.raft_term), (2, 0, 0, 0));

    let response = server.kv.txn(create).await.unwrap().into_inner();
    assert!(!response.succeeded);
    assert_eq!(response.header.unwrap().revision, 2);
    let Some(Answer::ResponseRange(range)) = &response.responses[0].response else { panic!("{response:?}") };
    assert_eq!(range.header.as_ref().unwrap().revision, 2);
    assert_eq!(&range.kvs[0].value[..], b"1");
}

#[tokio::test]
async fn a_transaction_that_only_reads_takes_no_log_entry() {
    let mut server = start().await;
    server.put("a", "1").await;
    server.put("b", "1").await;
    let status = StatusRequest {};
    let before = server.maintenance.status(status).await.unwrap().into_inner().raft_index;
    let old = RangeRequest { revision: 2, ..everything() };
    let old = RequestOp { request: Some(request_op::Request::RequestRange(old)) };
    let compare = Compare { range_end: bytes("\0"), ..is_new("c") };
    let read = TxnRequest { compare: vec![compare], success: vec![get_op("a"), old], failure: vec![] };
    let response = server.kv.txn(read).await.unwrap().into_inner();
    assert!(response.succeeded);
    let counts = response.responses.iter().map(|response| match &response.response {
        Some(Answer::ResponseRange(range)) => (range.count, range.header.as_ref().unwrap().revision),
        other => panic!("{other:?}"),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [(1, 3), (1, 3)]);
    let after = server.maintenance.status(status).await.unwrap().into_inner().raft_index;
    assert_eq!(before, after);
    let future = RangeRequest { revision: 9, ..get("a") };
    let future = RequestOp { request: Some(request_op::Request::RequestRange(future)) };
    let read = TxnRequest { success: vec![future], ..Default::default() };
    let text = "etcdserver: mvcc: required revision is a future revision";
    refused(server.kv.txn(read).await, Code::OutOfRange, text);
}

#[tokio::test]
async fn a_transaction_is_refused_as_a_whole() {
    let mut server = start().await;
    let twice = TxnRequest { success: vec![put_op("a", "1"), put_op("a", "2")], ..Default::default() };
    let text = "etcdserver: duplicate key given in txn request";
    refused(server.kv.txn(twice).await, Code::InvalidArgument, text);
    let many = TxnRequest { success: vec![get_op("a"); 129], ..Default::default() };
    let text = "etcdserver: too many operations in txn request";
    refused(server.kv.txn(many).await, Code::InvalidArgument, text);
    let leased = PutRequest { lease: 77, ..put("b", "") };
    let leased = RequestOp { request: Some(request_op::Request::RequestPut(leased)) };
    let half = TxnRequest { success: vec![put_op("a", "1"), leased], ..Default::default() };
    refused(server.kv.txn(half).await, Code::NotFound, "etcdserver: requested lease not found");
    assert_eq!(server.get("a").await, None);
    let nothing = TxnRequest { success: vec![delete_op("a")], ..Default::default() };
    let response = server.kv.txn(nothing).await.unwrap().into_inner();
    assert_eq!(response.header.unwrap().revision, 1);
}

#[tokio::test]
async fn after_a_compaction_older_revisions_are_gone() {
    let mut server = start().await;
    for value in ["1", "2", "3"] {
        server.put("a", value).await;
    }
    let compact = |revision| CompactionRequest { revision, physical: true };
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    let future = "etcdserver: mvcc: required revision is a future revision";
    refused(server.kv.compact(compact(5)).await, Code::OutOfRange, future);
    let response = server.kv.compact(compact(3)).await.unwrap().into_inner();
    assert_eq!(response.header.unwrap().revision, 4);
    refused(server.kv.compact(compact(3)).await, Code::OutOfRange, compacted);
    let at = |revision| RangeRequest { revision, ..get("a") };
    refused(server.kv.range(at(2)).await, Code::OutOfRange, compacted);
    assert_eq!(&server.kv.range(at(3)).await.unwrap().into_inner().kvs[0].value[..], b"2");
}

/// Merges the chunks of a stream as protobuf merges messages.
async fn streamed(server: &mut Running, request: RangeRequest) -> (RangeResponse, usize) {
    let mut stream = server.kv.range_stream(request).await.unwrap().into_inner();
    let (mut merged, mut chunks) = (RangeResponse::default(), 0);
    while let Some(chunk) = stream.message().await.unwrap() {
        let chunk = chunk.range_response.unwrap();
        chunks += 1;
        assert!(merged.header.is_none(), "only the last chunk has a header");
        merged.header = chunk.header;
        merged.kvs.extend(chunk.kvs);
        merged.more |= chunk.more;
        merged.count += chunk.count;
    }
    (merged, chunks)
}

#[tokio::test]
async fn a_range_stream_merges_to_the_unary_answer() {
    let mut server = start().await;
    for index in 0..95 {
        server.put(&format!("k{index:03}"), "value").await;
    }
    let requests = [
        everything(),
        RangeRequest { limit: 7, ..everything() },
        RangeRequest { limit: 30, ..everything() },
        RangeRequest { limit: 95, ..everything() },
        RangeRequest { count_only: true, ..everything() },
        RangeRequest { keys_only: true, revision: 50, ..everything() },
        RangeRequest { serializable: true, ..get("k007") },
        RangeRequest { range_end: bytes("a"), ..get("b") },
    ];
    for request in requests {
        let unary = server.kv.range(request.clone()).await.unwrap().into_inner();
        let (merged, chunks) = streamed(&mut server, request.clone()).await;
        assert_eq!(merged, unary, "{request:?}");
        let expected = match unary.kvs.len() {
            0..=10 => 1,
            11..=30 => 2,
            31..=70 => 3,
            _ => 4,
        };
        assert_eq!(chunks, expected, "10, then 20, then 40 keys: {request:?}");
    }
    let descending = RangeRequest { sort_order: 2, ..everything() };
    let text = "RangeStream does not support custom sort orders";
    refused(server.kv.range_stream(descending).await, Code::Unimplemented, text);
}
