//! What clients do: a few keys, values that nobody else writes, one call at a time each.
//!
//! **Contract.** A client that is not answered, or hears an error, goes on with some other member. It remembers the leases that it was granted and the
//! highest revision that it heard of, and nothing else.
//!
//! **Does not know** whether an answer is right.
use super::calls::{Answer, Call};
use super::world::{Event, World};
use sternpost_engine::Bytes;
use sternpost_server::apply::Outcome;
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::status::ApiError;

/// Leases that one client keeps at a time.
const LEASES_MAX: usize = 4;
/// Seconds of a lease.
const TTL_MAX: u64 = 4;

/// See the module.
pub(super) struct Client {
    /// Whom it asks.
    member: usize,
    leases: Vec<i64>,
    /// Highest revision that it heard of.
    revision: i64,
}

impl Client {
    pub(super) fn new(number: usize, members_count: usize) -> Self {
        Self { member: number % members_count, leases: Vec::new(), revision: 1 }
    }
}

fn key(number: u64) -> Bytes {
    format!("key-{number}").into()
}

fn put_operation(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn range_operation(range: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) }
}

fn delete_operation(delete: pb::DeleteRangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestDeleteRange(delete)) }
}

impl World {
    /// A client makes its next call.
    pub(super) fn client(&mut self, client: usize) {
        if self.is_healed || self.calls_count >= self.plan.length.operations_max {
            return;
        }
        let call = self.next_call(client);
        let member = self.clients[client].member;
        self.ask(client, member, call);
    }

    /// A call is over: its answer, or nothing.
    pub(super) fn heard(&mut self, client: usize, call: &Call, answer: Option<Result<Answer, ApiError>>) {
        if client == self.operator() {
            return;
        }
        let is_answered = matches!(answer, Some(Ok(_)));
        let here = &mut self.clients[client];
        match (call, answer) {
            (Call::Grant { .. }, Some(Ok(Answer::Outcome(Outcome::LeaseGrant { lease, revision, .. })))) => {
                here.leases.push(lease);
                here.revision = here.revision.max(revision);
            }
            (Call::Revoke(lease), Some(Ok(_))) | (Call::Renew(lease), Some(Ok(Answer::Renewed(0)))) => {
                here.leases.retain(|known| known != lease);
            }
            (Call::Put(put), Some(Err(ApiError::LeaseNotFound))) => {
                here.leases.retain(|known| *known != put.lease);
            }
            (_, Some(Ok(Answer::Put(put)))) => here.revision = here.revision.max(put.revision),
            (_, Some(Ok(Answer::Range(range)))) => here.revision = here.revision.max(range.revision),
            (_, Some(Ok(Answer::Txn(txn)))) => here.revision = here.revision.max(txn.revision),
            _ => {}
        }
        let count = self.members.len() as u64;
        if !is_answered || self.rng.chance(1, 16) {
            self.clients[client].member = self.below(count) as usize;
        }
        let mean_us = self.plan.call_pause_us;
        let delay_us = if is_answered { self.below(2 * mean_us) } else { 20_000 + self.below(2 * mean_us) };
        self.after(delay_us, Event::Client { client });
    }

    fn value(&mut self) -> Bytes {
        let mut value = format!("value {} ", self.calls_count).into_bytes();
        let padding = self.rng.below(self.plan.value_bytes_max) as usize;
        value.resize(value.len() + padding, b'.');
        value.into()
    }

    fn key(&mut self) -> Bytes {
        key(self.rng.below(self.plan.keys_count))
    }

    /// One of the client's leases, if it has one.
    fn lease(&mut self, client: usize) -> Option<i64> {
        let count = self.clients[client].leases.len() as u64;
        let at = self.rng.below(count) as usize;
        self.clients[client].leases.get(at).copied()
    }

    fn put(&mut self, client: usize) -> pb::PutRequest {
        let lease = if self.rng.chance(1, 3) { self.lease(client).unwrap_or(0) } else { 0 };
        let prev_kv = self.rng.chance(1, 4);
        pb::PutRequest { key: self.key(), value: self.value(), lease, prev_kv, ..Default::default() }
    }

    fn next_call(&mut self, client: usize) -> Call {
        match self.below(100) {
            0..35 => Call::Put(self.put(client)),
            35..55 => Call::Range(pb::RangeRequest { key: self.key(), ..Default::default() }),
            55..60 => Call::Range(pb::RangeRequest {
                key: key(0),
                range_end: Bytes::from_static(b"\0"),
                ..Default::default()
            }),
            60..67 => {
                Call::Range(pb::RangeRequest { key: self.key(), serializable: true, ..Default::default() })
            }
            67..80 => Call::Txn(self.txn(client)),
            80..84 => {
                Call::Delete(pb::DeleteRangeRequest { key: self.key(), prev_kv: true, ..Default::default() })
            }
            84..85 => Call::Delete(pb::DeleteRangeRequest {
                key: self.key(),
                range_end: Bytes::from_static(b"\0"),
                ..Default::default()
            }),
            85..88 => {
                let back = self.rng.below(20) as i64;
                Call::Compact((self.clients[client].revision - back).max(1))
            }
            88..92 if self.clients[client].leases.len() < LEASES_MAX => {
                let lease = 1_000 + self.calls_count as i64;
                Call::Grant { lease, ttl: 1 + self.rng.below(TTL_MAX) as i64 }
            }
            92..93 => match self.lease(client) {
                Some(lease) => Call::Revoke(lease),
                None => Call::Put(self.put(client)),
            },
            _ => match self.lease(client) {
                Some(lease) => Call::Renew(lease),
                None => Call::Range(pb::RangeRequest { key: self.key(), ..Default::default() }),
            },
        }
    }

    /// If a key is as it was heard of, or is there at all, something happens, else something else.
    fn txn(&mut self, client: usize) -> pb::TxnRequest {
        let (one, two) = (self.key(), self.key());
        let (target, target_union) = match self.below(3) {
            0 => (
                pb::compare::CompareTarget::Mod,
                pb::compare::TargetUnion::ModRevision(self.clients[client].revision),
            ),
            1 => (pb::compare::CompareTarget::Version, pb::compare::TargetUnion::Version(0)),
            _ => (
                pb::compare::CompareTarget::Create,
                pb::compare::TargetUnion::CreateRevision(self.clients[client].revision),
            ),
        };
        let result = [
            pb::compare::CompareResult::Equal,
            pb::compare::CompareResult::Less,
            pb::compare::CompareResult::Greater,
        ][self.below(3) as usize];
        let compare = pb::Compare {
            result: result.into(),
            target: target.into(),
            key: one.clone(),
            target_union: Some(target_union),
            ..Default::default()
        };
        let first = pb::PutRequest { key: one.clone(), value: self.value(), ..Default::default() };
        let mut success = vec![put_operation(first)];
        if one != two {
            success.push(match self.below(2) {
                0 => put_operation(pb::PutRequest {
                    key: two.clone(),
                    value: self.value(),
                    ..Default::default()
                }),
                _ => delete_operation(pb::DeleteRangeRequest { key: two.clone(), ..Default::default() }),
            });
        }
        let failure = vec![range_operation(pb::RangeRequest { key: one, ..Default::default() })];
        let failure = if self.below(2) == 0 {
            failure
        } else {
            vec![put_operation(pb::PutRequest { key: two, value: self.value(), ..Default::default() })]
        };
        pb::TxnRequest { compare: vec![compare], success, failure }
    }
}
