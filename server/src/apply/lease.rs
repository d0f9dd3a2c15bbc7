//! Leases in the state: which exist, with which TTL. When one ends is not known here; that is the lessor's.
//!
//! **Source**: `server/lease/lessor.go` of etcd 3.7.3: order of the checks, deletes sorted and in one revision.
use super::command::LeaseExpiry;
use super::records::{self, LeaseRecord};
use super::{Context, Machine, Notice, Outcome};
use crate::wire::etcdserverpb::LeaseGrantRequest;
use crate::wire::status::ApiError;
use std::collections::BTreeMap;
use sternpost_engine::mvcc::{Leases, Store};

/// The longest TTL, seconds.
pub(crate) const TTL_MAX: i64 = 9_000_000_000;

/// The leases that exist, so that a put with a lease costs one look-up and no decoding.
#[derive(Default)]
pub(super) struct LeaseTable {
    leases: BTreeMap<i64, LeaseRecord>,
}

impl LeaseTable {
    /// What the system records hold.
    pub(super) fn load(store: &Store) -> Self {
        Self { leases: records::leases(store).into_iter().collect() }
    }

    /// Every lease, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, LeaseRecord)> {
        self.leases.iter().map(|(lease, record)| (*lease, *record))
    }
}

impl Leases for LeaseTable {
    fn exists(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }
}

impl Machine {
    pub(super) fn lease_grant(
        &mut self,
        context: Context,
        grant: LeaseGrantRequest,
    ) -> Result<Outcome, ApiError> {
        let (lease, ttl) = (grant.id, grant.ttl);
        if lease == 0 {
            return Err(ApiError::LeaseNotFound);
        }
        if ttl > TTL_MAX {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        if self.leases.exists(lease) {
            return Err(ApiError::LeaseExists);
        }
        let record = LeaseRecord { ttl, granted_index: context.index };
        self.leases.leases.insert(lease, record);
        records::put_lease(&mut self.writer, lease, record);
        context.count(&self.view.counters.leases_granted, 1);
        self.notices.notice(Notice::LeaseGranted { lease, ttl, granted_index: context.index });
        Ok(Outcome::LeaseGrant { lease, ttl, revision: self.writer.store().revision() })
    }

    /// Ends a lease: its keys are deleted in one revision, with the lease's own record in the same log entry.
    pub(super) fn lease_end(&mut self, context: Context, lease: i64) -> Result<Outcome, ApiError> {
        if !self.leases.exists(lease) {
            return Err(ApiError::LeaseNotFound);
        }
        let deleted = self.writer.delete_lease_keys(lease)?;
        self.leases.leases.remove(&lease);
        records::delete_lease(&mut self.writer, lease);
        let counters = &self.view.counters;
        context.count(&counters.keys_deleted, deleted.deleted);
        context.count(&counters.leases_revoked, 1);
        self.notices.notice(Notice::LeaseEnded { lease });
        Ok(Outcome::LeaseRevoke { revision: self.writer.store().revision() })
    }

    pub(super) fn lease_expire(
        &mut self,
        context: Context,
        expiry: LeaseExpiry,
    ) -> Result<Outcome, ApiError> {
        let record = self.leases.leases.get(&expiry.lease);
        if record.is_none_or(|record| record.granted_index != expiry.granted_index) {
            return Err(ApiError::LeaseNotFound);
        }
        let outcome = self.lease_end(context, expiry.lease)?;
        context.count(&self.view.counters.leases_expired, 1);
        Ok(outcome)
    }
}
