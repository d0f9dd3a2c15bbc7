//! What a write costs against `--quota-backend-bytes`, as etcd counts it (`server/storage/quota.go` of 3.7.3).
use crate::wire::etcdserverpb::{PutRequest, TxnRequest, request_op::Request};

/// etcd's estimate for a key's metadata.
const PUT_OVERHEAD_BYTES: i64 = 256;
/// etcd's estimate for a lease.
pub const LEASE_COST_BYTES: i64 = 64;
/// The quota when none is given.
pub const QUOTA_BYTES_DEFAULT: i64 = 2 << 30;

/// The most bytes a member may hold before it takes no more puts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// None: unlimited.
    limit_bytes: Option<i64>,
}

impl Quota {
    /// At most `limit_bytes`; none is no limit.
    pub fn new(limit_bytes: Option<i64>) -> Self {
        Self { limit_bytes }
    }

    /// As Status answers it: the limit, or -1 where there is none.
    pub fn as_reported(&self) -> i64 {
        self.limit_bytes.unwrap_or(-1)
    }

    /// True if a write of `cost` fits a store of `size_bytes`. What costs nothing always does.
    pub fn admits(&self, size_bytes: i64, cost: i64) -> bool {
        match self.limit_bytes {
            None => true,
            Some(limit) => cost == 0 || size_bytes.saturating_add(cost) < limit,
        }
    }
}

/// Cost of a put.
pub fn put_cost(put: &PutRequest) -> i64 {
    PUT_OVERHEAD_BYTES + put.key.len() as i64 + put.value.len() as i64
}

/// Cost of a transaction: the dearer branch, nested transactions included; 0 when it puts nothing.
pub fn txn_cost(txn: &TxnRequest) -> i64 {
    let branch = |operations: &[crate::wire::etcdserverpb::RequestOp]| -> i64 {
        operations
            .iter()
            .map(|operation| match &operation.request {
                Some(Request::RequestPut(put)) => put_cost(put),
                Some(Request::RequestTxn(txn)) => txn_cost(txn),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb::{RequestOp, TxnRequest};

    fn put(bytes: usize) -> RequestOp {
        let put = PutRequest { key: vec![b'k'; bytes].into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    #[test]
    fn the_dearer_branch_counts_and_nested_puts_too() {
        let nested = TxnRequest { success: vec![put(1), put(2)], ..Default::default() };
        let nested = RequestOp { request: Some(Request::RequestTxn(nested)) };
        let txn = TxnRequest { success: vec![put(1)], failure: vec![nested], ..Default::default() };
        assert_eq!(txn_cost(&txn), 2 * 256 + 3);
        assert_eq!(txn_cost(&TxnRequest::default()), 0);
    }

    #[test]
    fn a_write_must_end_below_the_quota_and_free_ones_always_pass() {
        let quota = Quota::new(Some(1000));
        assert!(quota.admits(699, 300));
        assert!(!quota.admits(700, 300));
        assert!(quota.admits(5000, 0));
        assert!(Quota::new(None).admits(i64::MAX, 300));
    }
}
