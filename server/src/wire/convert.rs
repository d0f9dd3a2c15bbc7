//! Between etcd's protobuf and the engine's values, both ways, by moving: keys and values stay the same bytes.
//!
//! **Contract.** Total: every decoded message has a meaning here, also one that validation (`request::limits`) would have
//! refused, because `apply` must do the same with it on every member. Unknown enum values follow etcd: a sort is NONE or KEY,
//! a compare with an unknown target is equal, an unknown relation holds, a `target_union` that does not belong to the target
//! counts as 0 or empty.
//!
//! **Why headers differ.** The answer's own header names the cluster and the member. The answers inside a transaction carry a
//! header with the revision alone, and a nested transaction's header is empty (`newTxnResp` in `server/etcdserver/txn` of
//! 3.7.3); kube-apiserver relies on inner headers being there.
use super::etcdserverpb::compare::{CompareResult as WireResult, CompareTarget as WireTarget, TargetUnion};
use super::etcdserverpb::range_request::{SortOrder as WireOrder, SortTarget as WireSortTarget};
use super::etcdserverpb::request_op::Request;
use super::etcdserverpb::response_op::Response;
use super::etcdserverpb::{self as pb, ResponseHeader};
use super::mvccpb;
use sternpost_engine::mvcc::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeOutcome, Event, EventKind, KeyRange,
    KeyValue, Put, PutOutcome, Range, RangeOutcome, SortOrder, SortTarget, Txn, TxnOperation,
    TxnOperationOutcome, TxnOutcome,
};

impl From<pb::RangeRequest> for Range {
    fn from(request: pb::RangeRequest) -> Self {
        Self {
            sort_order: match request.sort_order() {
                WireOrder::None => SortOrder::None,
                WireOrder::Ascend => SortOrder::Ascend,
                WireOrder::Descend => SortOrder::Descend,
            },
            sort_target: match request.sort_target() {
                WireSortTarget::Key => SortTarget::Key,
                WireSortTarget::Version => SortTarget::Version,
                WireSortTarget::Create => SortTarget::Create,
                WireSortTarget::Mod => SortTarget::Mod,
                WireSortTarget::Value => SortTarget::Value,
            },
            range: KeyRange { key: request.key, end: request.range_end },
            revision: request.revision,
            limit: request.limit,
            keys_only: request.keys_only,
            count_only: request.count_only,
            min_mod_revision: request.min_mod_revision,
            max_mod_revision: request.max_mod_revision,
            min_create_revision: request.min_create_revision,
            max_create_revision: request.max_create_revision,
        }
    }
}

impl From<pb::PutRequest> for Put {
    fn from(request: pb::PutRequest) -> Self {
        Self {
            key: request.key,
            value: request.value,
            lease: request.lease,
            prev_kv: request.prev_kv,
            ignore_value: request.ignore_value,
            ignore_lease: request.ignore_lease,
        }
    }
}

impl From<pb::DeleteRangeRequest> for DeleteRange {
    fn from(request: pb::DeleteRangeRequest) -> Self {
        Self { range: KeyRange { key: request.key, end: request.range_end }, prev_kv: request.prev_kv }
    }
}

impl From<pb::Compare> for Compare {
    fn from(compare: pb::Compare) -> Self {
        let union = compare.target_union;
        let target = match WireTarget::try_from(compare.target) {
            Ok(WireTarget::Version) => CompareTarget::Version(match union {
                Some(TargetUnion::Version(version)) => version,
                _ => 0,
            }),
            Ok(WireTarget::Create) => CompareTarget::Create(match union {
                Some(TargetUnion::CreateRevision(revision)) => revision,
                _ => 0,
            }),
            Ok(WireTarget::Mod) => CompareTarget::Mod(match union {
                Some(TargetUnion::ModRevision(revision)) => revision,
                _ => 0,
            }),
            Ok(WireTarget::Value) => CompareTarget::Value(match union {
                Some(TargetUnion::Value(value)) => value,
                _ => bytes::Bytes::new(),
            }),
            Ok(WireTarget::Lease) => CompareTarget::Lease(match union {
                Some(TargetUnion::Lease(lease)) => lease,
                _ => 0,
            }),
            Err(_) => CompareTarget::Unknown,
        };
        let result = match WireResult::try_from(compare.result) {
            Ok(WireResult::Equal) => CompareResult::Equal,
            Ok(WireResult::Greater) => CompareResult::Greater,
            Ok(WireResult::Less) => CompareResult::Less,
            Ok(WireResult::NotEqual) => CompareResult::NotEqual,
            Err(_) => CompareResult::Unknown,
        };
        Self { range: KeyRange { key: compare.key, end: compare.range_end }, target, result }
    }
}

impl From<pb::TxnRequest> for Txn {
    fn from(request: pb::TxnRequest) -> Self {
        // An operation without a request cannot come through validation; it is left out here, as etcd's apply skips it.
        let operations = |list: Vec<pb::RequestOp>| -> Vec<TxnOperation> {
            list.into_iter()
                .filter_map(|operation| {
                    Some(match operation.request? {
                        Request::RequestRange(range) => TxnOperation::Range(range.into()),
                        Request::RequestPut(put) => TxnOperation::Put(put.into()),
                        Request::RequestDeleteRange(delete) => TxnOperation::DeleteRange(delete.into()),
                        Request::RequestTxn(txn) => TxnOperation::Txn(txn.into()),
                    })
                })
                .collect()
        };
        Self {
            compares: request.compare.into_iter().map(Compare::from).collect(),
            success: operations(request.success),
            failure: operations(request.failure),
        }
    }
}

impl From<KeyValue> for mvccpb::KeyValue {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value,
            lease: kv.lease,
        }
    }
}

/// An event as a watcher receives it. The event is shared between watchers, so its bytes are shared, not moved.
pub fn event_to_wire(event: &Event, prev_kv: Option<KeyValue>) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(event.kv.clone().into()),
        prev_kv: prev_kv.map(mvccpb::KeyValue::from),
    }
}

/// A header with nothing but a revision: what the answers inside a transaction carry.
fn inner_header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

/// The answer to a range under `header`.
pub fn range_response(outcome: RangeOutcome, header: Option<ResponseHeader>) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: outcome.kvs.into_iter().map(mvccpb::KeyValue::from).collect(),
        more: outcome.more,
        count: outcome.count,
    }
}

/// The answer to a put under `header`.
pub fn put_response(outcome: PutOutcome, header: Option<ResponseHeader>) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: outcome.prev_kv.map(mvccpb::KeyValue::from) }
}

/// The answer to a delete under `header`.
pub fn delete_range_response(
    outcome: DeleteRangeOutcome,
    header: Option<ResponseHeader>,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header,
        deleted: outcome.deleted,
        prev_kvs: outcome.prev_kvs.into_iter().map(mvccpb::KeyValue::from).collect(),
    }
}

/// The answer to a transaction under `header`.
pub fn txn_response(outcome: TxnOutcome, header: Option<ResponseHeader>) -> pb::TxnResponse {
    let responses = outcome
        .responses
        .into_iter()
        .map(|outcome| {
            let response = match outcome {
                TxnOperationOutcome::Range(range) => {
                    let header = inner_header(range.revision);
                    Response::ResponseRange(range_response(range, header))
                }
                TxnOperationOutcome::Put(put) => {
                    let header = inner_header(put.revision);
                    Response::ResponsePut(put_response(put, header))
                }
                TxnOperationOutcome::DeleteRange(delete) => {
                    let header = inner_header(delete.revision);
                    Response::ResponseDeleteRange(delete_range_response(delete, header))
                }
                TxnOperationOutcome::Txn(txn) => {
                    Response::ResponseTxn(txn_response(txn, Some(ResponseHeader::default())))
                }
            };
            pb::ResponseOp { response: Some(response) }
        })
        .collect();
    pb::TxnResponse { header, succeeded: outcome.succeeded, responses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;

    fn compare(target: i32, union: Option<TargetUnion>, result: i32) -> Compare {
        pb::Compare {
            target,
            target_union: union,
            result,
            key: Bytes::from_static(b"k"),
            ..Default::default()
        }
        .into()
    }

    #[test]
    fn a_union_of_another_target_counts_as_zero() {
        let found = compare(WireTarget::Mod.into(), Some(TargetUnion::Version(5)), 0);
        assert_eq!(found.target, CompareTarget::Mod(0));
        let found = compare(WireTarget::Value.into(), Some(TargetUnion::Lease(5)), 0);
        assert_eq!(found.target, CompareTarget::Value(Bytes::new()));
        assert_eq!(compare(WireTarget::Lease.into(), None, 0).target, CompareTarget::Lease(0));
    }

    #[test]
    fn unknown_compare_enums_are_kept_as_unknown() {
        let found = compare(77, None, 78);
        assert_eq!((found.target, found.result), (CompareTarget::Unknown, CompareResult::Unknown));
    }

    #[test]
    fn unknown_sort_enums_read_as_the_defaults() {
        let range = Range::from(pb::RangeRequest { sort_order: 9, sort_target: 9, ..Default::default() });
        assert_eq!((range.sort_order, range.sort_target), (SortOrder::None, SortTarget::Key));
    }

    #[test]
    fn keys_and_values_are_not_copied() {
        let value = Bytes::from(vec![7; 100]);
        let put = Put::from(pb::PutRequest { value: value.clone(), ..Default::default() });
        assert_eq!(put.value.as_ptr(), value.as_ptr());
    }

    /// etcd decodes nesting as deep as a transaction has operations; ours stops at protobuf's recursion limit, so that no request
    /// can exhaust the stack. What decodes for the service decodes for the state machine too: it is the same limit.
    #[test]
    fn transactions_nest_as_deep_as_the_recursion_limit_allows() {
        let nested = |depth| {
            (0..depth).fold(pb::TxnRequest::default(), |inner, _| pb::TxnRequest {
                success: vec![pb::RequestOp { request: Some(Request::RequestTxn(inner)) }],
                ..Default::default()
            })
        };
        let decodes = |depth| pb::TxnRequest::decode(&nested(depth).encode_to_vec()[..]).is_ok();
        assert!(decodes(49));
        assert!(!decodes(51));
    }

    #[test]
    fn inner_answers_carry_only_a_revision_and_a_nested_txn_not_even_that() {
        let nested = TxnOutcome { revision: 9, succeeded: true, responses: Vec::new() };
        let put = TxnOperationOutcome::Put(PutOutcome { revision: 9, prev_kv: None });
        let outer = TxnOutcome {
            revision: 9,
            succeeded: true,
            responses: vec![put, TxnOperationOutcome::Txn(nested)],
        };
        let found = txn_response(outer, None);
        let Some(Response::ResponsePut(put)) = &found.responses[0].response else { panic!("not a put") };
        assert_eq!(put.header, inner_header(9));
        let Some(Response::ResponseTxn(txn)) = &found.responses[1].response else { panic!("not a txn") };
        assert_eq!(txn.header, Some(ResponseHeader::default()));
    }
}
