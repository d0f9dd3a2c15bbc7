//! What a request must satisfy before anything is done with it, in etcd's order of checks.
//!
//! **Contract.** Pure: looks at the request and the limits alone. A request that passes decodes to a sensible engine
//! operation; what depends on the state (leases, revisions, missing keys) is decided when it is applied.
//!
//! **Source**: `checkRangeRequest` and its siblings in `server/etcdserver/api/v3rpc/key.go` of etcd 3.7.3; the size check of
//! `processInternalRaftRequestOnce` in `server/etcdserver/v3_server.go`.
use crate::auth::origin::Origin;
use crate::wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::wire::etcdserverpb::request_op::Request;
use crate::wire::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::wire::status::ApiError;
use prost::encoding::{encoded_len_varint, key_len};
use sternpost_engine::mvcc::{Txn, check_duplicate_keys};

/// Bounds that the user may set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--max-request-bytes`: bytes of the largest write, measured as etcd measures its internal request.
    pub request_bytes_max: usize,
    /// `--max-txn-ops`: entries in each list of a transaction, nested ones taking from the rest.
    pub txn_operations_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { request_bytes_max: 1_572_864, txn_operations_max: 128 }
    }
}

/// Checks a range.
pub fn check_range(request: &RangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(ApiError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a range that is to be streamed: only in key order, without filters.
pub fn check_range_stream(request: &RangeRequest) -> Result<(), ApiError> {
    check_range(request)?;
    let is_key_order = match request.sort_order() {
        SortOrder::None => true,
        SortOrder::Ascend => request.sort_target() == SortTarget::Key,
        SortOrder::Descend => false,
    };
    if !is_key_order {
        return Err(ApiError::RangeStreamSort);
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters != [0; 4] {
        return Err(ApiError::RangeStreamFilter);
    }
    Ok(())
}

/// Checks a put.
pub fn check_put(request: &PutRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() { Err(ApiError::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction: sizes, every operation, then keys given twice.
pub fn check_txn(request: &TxnRequest, limits: &Limits) -> Result<(), ApiError> {
    check_txn_operations(request, limits.txn_operations_max)?;
    if may_give_a_key_twice(&request.success) || may_give_a_key_twice(&request.failure) {
        check_duplicate_keys(&Txn::from(request.clone()))?;
    }
    Ok(())
}

/// Recursion is bounded by `operations_max`: a transaction that nests another has an operation, so the rest shrinks.
fn check_txn_operations(request: &TxnRequest, operations_max: usize) -> Result<(), ApiError> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    let rest = operations_max.checked_sub(longest).ok_or(ApiError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(ApiError::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete)?,
            Some(Request::RequestTxn(txn)) => check_txn_operations(txn, rest)?,
            None => return Err(ApiError::KeyNotFound),
        }
    }
    Ok(())
}

/// False for a branch with at most one change and no nested transaction, which is nearly every one: the full check then has
/// nothing to find.
fn may_give_a_key_twice(branch: &[RequestOp]) -> bool {
    let mut changes_count = 0;
    for operation in branch {
        match &operation.request {
            Some(Request::RequestTxn(_)) => return true,
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => changes_count += 1,
            Some(Request::RequestRange(_)) | None => {}
        }
    }
    changes_count > 1
}

/// True when every top-level operation of both branches is a range: the transaction then takes no log entry.
pub fn is_read_only(request: &TxnRequest) -> bool {
    let is_range = |operation: &RequestOp| matches!(operation.request, Some(Request::RequestRange(_)));
    request.success.iter().chain(&request.failure).all(is_range)
}

/// True when every range of a read-only transaction is serializable; an empty one counts as such.
pub fn is_serializable(request: &TxnRequest) -> bool {
    let is_serializable = |operation: &RequestOp| match &operation.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => false,
    };
    request.success.iter().chain(&request.failure).all(is_serializable)
}

/// Bytes of the message that etcd would put into its log for a request of `request_bytes`: `InternalRaftRequest` with a header
/// (field 100) that holds the id and who asks, and the request under a field number below 16.
pub fn internal_request_bytes(id: u64, origin: &Origin, request_bytes: usize) -> usize {
    let mut header_body = key_len(1) + encoded_len_varint(id);
    if let Origin::User(identity) = origin {
        let name_bytes = identity.user.len();
        header_body += key_len(2) + encoded_len_varint(name_bytes as u64) + name_bytes;
        header_body += key_len(3) + encoded_len_varint(identity.revision);
    }
    let header = key_len(100) + encoded_len_varint(header_body as u64) + header_body;
    header + key_len(4) + encoded_len_varint(request_bytes as u64) + request_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb::Compare;
    use bytes::Bytes;

    fn key(key: &'static str) -> Bytes {
        Bytes::from_static(key.as_bytes())
    }

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put(name: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key(name), ..Default::default() }))
    }

    fn range(name: &'static str) -> RequestOp {
        op(Request::RequestRange(RangeRequest { key: key(name), ..Default::default() }))
    }

    fn success(operations: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success: operations, ..Default::default() }
    }

    #[test]
    fn a_range_needs_a_key_before_a_known_sort() {
        let unknown = RangeRequest { sort_order: 3, ..Default::default() };
        assert_eq!(check_range(&unknown), Err(ApiError::EmptyKey));
        let unknown = RangeRequest { key: key("k"), ..unknown };
        assert_eq!(check_range(&unknown), Err(ApiError::InvalidSortOption));
        let unknown = RangeRequest { key: key("k"), sort_target: -1, ..Default::default() };
        assert_eq!(check_range(&unknown), Err(ApiError::InvalidSortOption));
        let known = RangeRequest { key: key("k"), sort_order: 2, sort_target: 4, ..Default::default() };
        assert_eq!(check_range(&known), Ok(()));
    }

    #[test]
    fn a_stream_comes_in_key_order_only() {
        let with = |sort_order, sort_target| {
            check_range_stream(&RangeRequest { key: key("k"), sort_order, sort_target, ..Default::default() })
        };
        assert_eq!(with(0, 3), Ok(()));
        assert_eq!(with(1, 0), Ok(()));
        assert_eq!(with(1, 3), Err(ApiError::RangeStreamSort));
        assert_eq!(with(2, 0), Err(ApiError::RangeStreamSort));
        let filtered = RangeRequest { key: key("k"), max_create_revision: -1, ..Default::default() };
        assert_eq!(check_range_stream(&filtered), Err(ApiError::RangeStreamFilter));
    }

    #[test]
    fn a_put_that_keeps_something_may_not_bring_it() {
        let put = PutRequest { key: key("k"), ignore_value: true, value: key("v"), ..Default::default() };
        assert_eq!(check_put(&put), Err(ApiError::ValueProvided));
        let put = PutRequest { key: key("k"), ignore_lease: true, lease: 1, ..Default::default() };
        assert_eq!(check_put(&put), Err(ApiError::LeaseProvided));
        assert_eq!(check_put(&PutRequest::default()), Err(ApiError::EmptyKey));
    }

    #[test]
    fn a_nested_transaction_gets_what_its_parent_left() {
        let check = |txn: &TxnRequest| check_txn_operations(txn, 3);
        let nest = |inner: TxnRequest| op(Request::RequestTxn(inner));
        let ranges = |count| success(vec![range("k"); count]);
        assert_eq!(check(&ranges(3)), Ok(()));
        assert_eq!(check(&ranges(4)), Err(ApiError::TooManyOps));
        assert_eq!(check(&success(vec![nest(ranges(2))])), Ok(()));
        assert_eq!(check(&success(vec![nest(ranges(3))])), Err(ApiError::TooManyOps));
        let compares = TxnRequest {
            compare: vec![Compare { key: key("k"), ..Default::default() }; 4],
            ..Default::default()
        };
        assert_eq!(check(&compares), Err(ApiError::TooManyOps));
    }

    #[test]
    fn operations_of_both_branches_are_checked() {
        let limits = Limits::default();
        assert_eq!(check_txn(&success(vec![put("")]), &limits), Err(ApiError::EmptyKey));
        let failure = TxnRequest { failure: vec![RequestOp { request: None }], ..Default::default() };
        assert_eq!(check_txn(&failure, &limits), Err(ApiError::KeyNotFound));
        let compare = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
        assert_eq!(check_txn(&compare, &limits), Err(ApiError::EmptyKey));
    }

    #[test]
    fn the_full_duplicate_check_is_skipped_only_where_it_cannot_find_any() {
        assert!(!may_give_a_key_twice(&[range("a"), put("a"), range("a")]));
        assert!(may_give_a_key_twice(&[put("a"), put("b")]));
        assert!(may_give_a_key_twice(&[op(Request::RequestTxn(TxnRequest::default()))]));
    }

    #[test]
    fn reads_are_told_from_writes() {
        assert!(is_read_only(&TxnRequest::default()) && is_serializable(&TxnRequest::default()));
        let mixed = TxnRequest { success: vec![range("k")], failure: vec![put("k")], ..Default::default() };
        assert!(!is_read_only(&mixed));
        let nested = success(vec![op(Request::RequestTxn(success(vec![range("k")])))]);
        assert!(!is_read_only(&nested));
        assert!(is_read_only(&success(vec![range("k")])) && !is_serializable(&success(vec![range("k")])));
    }

    #[test]
    fn the_measured_size_is_that_of_etcds_internal_request() {
        // 2 (tag 100) + 1 (length) + 1 (tag 1) + 10 (id) + 1 (tag 4) + 3 (length) + body.
        assert_eq!(internal_request_bytes(u64::MAX, &Origin::Client, 1_572_846), 1_572_864);
        assert_eq!(internal_request_bytes(1, &Origin::Client, 5), 2 + 1 + 1 + 1 + 1 + 1 + 5);
    }
}
