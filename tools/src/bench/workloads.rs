//! What one operation is: put, compare-and-swap, get, list, renewal of a lease.
//!
//! An [`Operator`] is one client: it has a connection (shared with others), a generator of its own, and one operation
//! under way at a time. What fans out (watches) is in `watchers`.
use super::connection::{CallError, Connection, Messages, Method, Requests};
use super::driver::ThreadContext;
use super::pace::Turn;
use super::watchers::{self, WatchLoad};
use bytes::Bytes;
use std::rc::Rc;
use sternpost_engine::base::rng::Rng;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::response_op::Response;
use sternpost_server::wire::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    TxnRequest, TxnResponse,
};

/// What a load consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Workload {
    /// Put one key.
    Put,
    /// Put one key if it is as this client saw it last (the update of an API server).
    Txn,
    /// Get one key.
    Range { is_serializable: bool },
    /// Get up to `limit` keys from a key on.
    List { limit: i64, is_serializable: bool },
    /// Put keys that are watched, and measure when the events arrive.
    Watch(WatchLoad),
    /// Renew a lease.
    Lease { ttl_s: i64 },
}

impl Workload {
    /// As typed on the command line.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Txn => "txn",
            Self::Range { .. } => "range",
            Self::List { .. } => "list",
            Self::Watch(_) => "watch",
            Self::Lease { .. } => "lease",
        }
    }

    /// Names of the latency series; the first one's count is the throughput.
    pub(crate) fn series(&self, is_open_loop: bool) -> Vec<&'static str> {
        let mut series = match self {
            Self::Watch(_) => vec!["commit_to_delivery", "send_to_delivery", "put"],
            _ => vec!["latency"],
        };
        if is_open_loop {
            series.extend(["service", "lag"]);
        }
        series
    }

    /// The series that an operation's own latency goes to.
    pub(crate) fn operation_series(&self) -> usize {
        if matches!(self, Self::Watch(_)) { watchers::SERIES_PUT } else { 0 }
    }

    /// Names of the counters.
    pub(crate) fn counters(&self) -> &'static [&'static str] {
        match self {
            Self::Put | Self::Lease { .. } => &[],
            Self::Txn => &["conflicts"],
            Self::Range { .. } | Self::List { .. } => &["keys_returned", "empty_answers"],
            Self::Watch(_) => &["puts"],
        }
    }

    /// True when the keys must exist before the load begins.
    pub(crate) fn needs_keys(&self) -> bool {
        matches!(self, Self::Range { .. } | Self::List { .. })
    }
}

/// One client.
pub(crate) struct Operator {
    context: Rc<ThreadContext>,
    /// Which of the thread's connections it uses.
    connection_number: usize,
    connection: Connection,
    rng: Rng,
    lease: Option<KeptLease>,
}

/// A lease and the stream that renews it.
struct KeptLease {
    id: i64,
    stream: Option<(Requests, Messages)>,
}

impl Operator {
    /// The client with this number among all of the load, ready to operate.
    pub(crate) async fn new(
        context: Rc<ThreadContext>,
        client_number: usize,
        connection_number: usize,
    ) -> Result<Self, CallError> {
        let connection = context.connection(connection_number).await?;
        let rng =
            Rng::new(context.plan.seed ^ (client_number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut operator = Self { context, connection_number, connection, rng, lease: None };
        if let Workload::Lease { ttl_s } = operator.context.plan.workload {
            let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
            let granted: LeaseGrantResponse = operator.connection.unary(Method::LeaseGrant, &request).await?;
            operator.lease = Some(KeptLease { id: granted.id, stream: None });
        }
        Ok(operator)
    }

    /// One operation.
    pub(crate) async fn operate(&mut self, turn: &Turn) -> Result<(), CallError> {
        let result = match self.context.plan.workload {
            Workload::Put => self.put(turn).await,
            Workload::Txn => self.txn(turn).await,
            Workload::Range { is_serializable } => self.range(turn, is_serializable).await,
            Workload::List { limit, is_serializable } => self.list(turn, limit, is_serializable).await,
            Workload::Watch(_) => {
                watchers::put(&self.context, &mut self.connection, &mut self.rng, turn).await
            }
            Workload::Lease { .. } => self.keep_alive().await,
        };
        if result.is_err() {
            // A stream that failed is not used again.
            if let Some(lease) = &mut self.lease {
                lease.stream = None;
            }
        }
        result
    }

    /// A new connection in place of one that was lost.
    pub(crate) async fn reconnect(&mut self) -> Result<(), CallError> {
        self.connection = self.context.reconnect(self.connection_number, &self.connection).await?;
        Ok(())
    }

    /// Gives back what the server keeps for this client.
    pub(crate) async fn finish(mut self) {
        if let Some(lease) = self.lease.take() {
            // It would expire by itself; an error changes nothing.
            let request = LeaseRevokeRequest { id: lease.id };
            let _: Result<LeaseRevokeResponse, _> =
                self.connection.unary(Method::LeaseRevoke, &request).await;
        }
    }

    async fn put(&mut self, turn: &Turn) -> Result<(), CallError> {
        let plan = &self.context.plan;
        let number = plan.keys.pick(self.context.operation_number(turn), &mut self.rng);
        let request = PutRequest {
            key: plan.keys.key(number),
            value: plan.values.value(&mut self.rng),
            ..PutRequest::default()
        };
        let _: PutResponse = self.connection.unary(Method::Put, &request).await?;
        Ok(())
    }

    async fn txn(&mut self, turn: &Turn) -> Result<(), CallError> {
        let plan = &self.context.plan;
        // Each thread has keys of its own; only clients of one thread can get in each other's way.
        let picked = plan.keys.pick(self.context.operation_number(turn), &mut self.rng);
        let number = self.context.own_key(picked);
        let key = plan.keys.key(number);
        let seen = self.context.seen_revisions.borrow()[self.context.own_key_index(number)];
        let put =
            PutRequest { key: key.clone(), value: plan.values.value(&mut self.rng), ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key,
                range_end: Bytes::new(),
                target_union: Some(TargetUnion::ModRevision(seen)),
            }],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
        };
        let response: TxnResponse = self.connection.unary(Method::Txn, &request).await?;
        let seen = if response.succeeded {
            response.header.map_or(0, |header| header.revision)
        } else {
            if self.context.pace().is_measured(turn) {
                self.context.recorder().count(0, 1);
            }
            match response.responses.first().and_then(|first| first.response.as_ref()) {
                Some(Response::ResponseRange(range)) => range.kvs.first().map_or(0, |kv| kv.mod_revision),
                _ => 0,
            }
        };
        self.context.seen_revisions.borrow_mut()[self.context.own_key_index(number)] = seen;
        Ok(())
    }

    async fn range(&mut self, turn: &Turn, is_serializable: bool) -> Result<(), CallError> {
        let plan = &self.context.plan;
        let number = plan.keys.pick(self.context.operation_number(turn), &mut self.rng);
        let request = RangeRequest {
            key: plan.keys.key(number),
            serializable: is_serializable,
            ..RangeRequest::default()
        };
        self.read(turn, &request).await
    }

    async fn list(&mut self, turn: &Turn, limit: i64, is_serializable: bool) -> Result<(), CallError> {
        let plan = &self.context.plan;
        let number = plan.keys.pick(self.context.operation_number(turn), &mut self.rng);
        let request = RangeRequest {
            key: plan.keys.key(number),
            range_end: plan.keys.bounds().1,
            limit,
            serializable: is_serializable,
            ..RangeRequest::default()
        };
        self.read(turn, &request).await
    }

    async fn read(&mut self, turn: &Turn, request: &RangeRequest) -> Result<(), CallError> {
        let response: RangeResponse = self.connection.unary(Method::Range, request).await?;
        if self.context.pace().is_measured(turn) {
            let recorder = self.context.recorder();
            recorder.count(0, response.kvs.len() as u64);
            recorder.count(1, u64::from(response.kvs.is_empty()));
        }
        Ok(())
    }

    async fn keep_alive(&mut self) -> Result<(), CallError> {
        let lease = self.lease.as_mut().expect("a client of the lease load has a lease");
        let request = LeaseKeepAliveRequest { id: lease.id };
        let lost = |text: &str| CallError { text: text.to_owned(), is_connection_lost: false };
        let stream = match &mut lease.stream {
            Some(stream) => {
                stream.0.send(&request)?;
                stream
            }
            none => none.insert(self.connection.stream(Method::LeaseKeepAlive, &request).await?),
        };
        let message = stream.1.next().await?.ok_or_else(|| lost("the server ended the stream"))?;
        let response = <LeaseKeepAliveResponse as prost::Message>::decode(message)
            .map_err(|error| lost(&error.to_string()))?;
        if response.ttl > 0 { Ok(()) } else { Err(lost("the lease is gone")) }
    }
}
