//! A lease that is kept alive while a command runs, and the waiting for one's turn: what `lock` and `elect` share.
//!
//! **Contract.** A key with the lease stands under a name; whose key was created first has the turn. Keys are named as etcd's client
//! names them, so that `sternctl` and etcdctl queue up together. `ended` answers when the lease is gone, or may be: its time has
//! passed without a renewal.
//!
//! **Source**: etcd's client package `concurrency`, for names of keys and the order of requests.
use crate::ctl::connect::Client;
use crate::ctl::failure::{Exit, Failure};
use bytes::Bytes;
use std::time::Duration;
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::response_op::Response;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::mvccpb::event::EventType;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// Between two tries to renew after a connection was lost.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);

/// A lease and the task that renews it.
pub(crate) struct Session {
    pub(crate) lease_id: i64,
    renewal: JoinHandle<()>,
}

/// A key that stands in a queue.
pub(crate) struct Place {
    pub(crate) key: Bytes,
    /// With what revision the key was created; smaller is earlier.
    pub(crate) create_revision: i64,
    /// All keys of the queue begin with it.
    prefix: Bytes,
}

impl Session {
    /// Grants a lease and begins to renew it.
    pub(crate) async fn start(client: &Client, ttl_s: i64) -> Result<Self, Failure> {
        let mut lease = client.lease().await?;
        let granted = client.call(lease.lease_grant(pb::LeaseGrantRequest { ttl: ttl_s, id: 0 })).await?;
        let lease_id = granted.id;
        let renewal = tokio::spawn(renew(client.clone(), lease_id, granted.ttl));
        Ok(Self { lease_id, renewal })
    }

    /// Answers when the lease is gone.
    pub(crate) async fn ended(&mut self) {
        // It panics for nobody; ended is ended.
        let _ = (&mut self.renewal).await;
    }

    /// Gives the lease back, and with it what is left of its keys.
    pub(crate) async fn end(self, client: &Client) {
        self.renewal.abort();
        let revoke = async {
            let request = pb::LeaseRevokeRequest { id: self.lease_id };
            client.call(client.lease().await?.lease_revoke(request)).await
        };
        // If this fails, the lease ends by itself.
        let _ = revoke.await;
    }

    /// Stands in the queue of this name, or finds its place there. A value is put for a new place alone.
    pub(crate) async fn stand(&self, client: &Client, name: &str, value: &Bytes) -> Result<Place, Failure> {
        let prefix = Bytes::from(format!("{name}/"));
        let key = Bytes::from(format!("{name}/{:x}", self.lease_id));
        let is_new = created(&key, 0);
        let put = pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease: self.lease_id,
            ..pb::PutRequest::default()
        };
        let request = pb::TxnRequest {
            compare: vec![is_new],
            success: vec![operation(Request::RequestPut(put))],
            failure: vec![operation(Request::RequestRange(get(&key)))],
        };
        let response = client.call(client.kv().await?.txn(request)).await?;
        let header_revision = response.header.map_or(0, |header| header.revision);
        let existing = response.responses.first().and_then(|it| match &it.response {
            Some(Response::ResponseRange(range)) => range.kvs.first().map(|kv| kv.create_revision),
            _ => None,
        });
        let create_revision = if response.succeeded { header_revision } else { existing.unwrap_or(0) };
        Ok(Place { key, create_revision, prefix })
    }
}

impl Place {
    /// Waits until every earlier key is gone.
    pub(crate) async fn wait(&self, client: &Client) -> Result<(), Failure> {
        loop {
            // Of the earlier ones, the last is the one to wait for: it goes when those before it have gone, or sooner.
            let request = pb::RangeRequest {
                key: self.prefix.clone(),
                range_end: crate::kv::prefix_range(self.prefix.clone()).1,
                limit: 1,
                sort_order: SortOrder::Descend.into(),
                sort_target: SortTarget::Create.into(),
                max_create_revision: self.create_revision - 1,
                ..pb::RangeRequest::default()
            };
            let earlier = client.call(client.kv().await?.range(request)).await?;
            let Some(last) = earlier.kvs.into_iter().next() else { return Ok(()) };
            let revision = earlier.header.map_or(0, |header| header.revision);
            wait_for_deletion(client, last.key, revision).await?;
        }
    }

    /// Leaves the queue.
    pub(crate) async fn leave(&self, client: &Client) -> Result<(), Failure> {
        let request = pb::DeleteRangeRequest { key: self.key.clone(), ..pb::DeleteRangeRequest::default() };
        client.call(client.kv().await?.delete_range(request)).await.map(|_| ())
    }

    /// Leaves the queue, if the key is still the one that stood there.
    pub(crate) async fn resign(&self, client: &Client) -> Result<(), Failure> {
        let delete = pb::DeleteRangeRequest { key: self.key.clone(), ..pb::DeleteRangeRequest::default() };
        let request = pb::TxnRequest {
            compare: vec![created(&self.key, self.create_revision)],
            success: vec![operation(Request::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        client.call(client.kv().await?.txn(request)).await.map(|_| ())
    }

    /// The key as it stands.
    pub(crate) async fn look(&self, client: &Client) -> Result<pb::RangeResponse, Failure> {
        client.call(client.kv().await?.range(get(&self.key))).await
    }
}

/// Renews at a third of the time to live until the lease is gone, or must be.
async fn renew(client: Client, id: i64, ttl_s: i64) {
    let clock = MonotonicClock::default();
    let mut renewed_us = clock.now_us();
    let mut ttl_us = ttl_s.unsigned_abs().saturating_mul(1_000_000);
    loop {
        // Ends with an error when the connection does; the lease outlives that.
        let _: Result<(), Failure> = async {
            let mut lease = client.lease().await?;
            let (requests, received) = tokio::sync::mpsc::channel(1);
            requests.send(pb::LeaseKeepAliveRequest { id }).await.expect("the receiver is held here");
            let mut answers = lease.lease_keep_alive(ReceiverStream::new(received)).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if answer.ttl <= 0 {
                    // It is gone for certain.
                    ttl_us = 0;
                    break;
                }
                (renewed_us, ttl_us) = (clock.now_us(), answer.ttl.unsigned_abs().saturating_mul(1_000_000));
                tokio::time::sleep(Duration::from_micros(ttl_us / 3)).await;
                if requests.send(pb::LeaseKeepAliveRequest { id }).await.is_err() {
                    break;
                }
            }
            Ok(())
        }
        .await;
        if clock.now_us().saturating_sub(renewed_us) >= ttl_us {
            return;
        }
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

/// Answers when the key is deleted behind this revision, or may have been: the connection was lost, and it is time to look again.
async fn wait_for_deletion(client: &Client, key: Bytes, revision: i64) -> Result<(), Failure> {
    let create = pb::WatchCreateRequest { key, start_revision: revision + 1, ..Default::default() };
    let mut events = Events::open(client, create).await?;
    while let Some(response) = events.next().await? {
        let is_deletion = |event: &sternpost_server::wire::mvccpb::Event| event.r#type() == EventType::Delete;
        if response.events.iter().any(is_deletion) {
            return Ok(());
        }
    }
    Ok(())
}

/// The answers of one watch.
pub(crate) struct Events {
    /// The stream lives as long as it does.
    _requests: tokio::sync::mpsc::Sender<pb::WatchRequest>,
    responses: tonic::Streaming<pb::WatchResponse>,
}

impl Events {
    pub(crate) async fn open(client: &Client, create: pb::WatchCreateRequest) -> Result<Self, Failure> {
        let (requests, received) = tokio::sync::mpsc::channel(1);
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.expect("the receiver is held here");
        let responses = client.watch().await?.watch(ReceiverStream::new(received)).await?.into_inner();
        Ok(Self { _requests: requests, responses })
    }

    /// The next answer; `None` when the connection is gone.
    pub(crate) async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Failure> {
        let Ok(Some(response)) = self.responses.message().await else { return Ok(None) };
        if response.compact_revision != 0 {
            let message = "etcdserver: mvcc: required revision has been compacted";
            return Err(Failure::new(Exit::Error, message));
        }
        if response.canceled {
            let reason = response.cancel_reason;
            let message =
                if reason.is_empty() { "watch is canceled by the server".to_owned() } else { reason };
            return Err(Failure::new(Exit::Error, message));
        }
        Ok(Some(response))
    }
}

fn get(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() }
}

fn operation(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn created(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}
