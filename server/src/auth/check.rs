//! What a request needs, by what it does and not by its name: every key that it reads or writes, on every path.
//!
//! **Contract.** Functions of the state and the request as it was sent. They are asked where a command is applied, so that what they say is said at the same
//! place of the log on every member, and before a read. While authentication is off everybody may do everything.
//!
//! **Invariant.** P1: all branches of a transaction are checked, nested ones too, before any is evaluated (CVE-2026-33343); what a write reads (`prev_kv`) and what
//! a lease holds is checked as if it were asked for by itself (CVE-2026-44283).
//!
//! **Source**: `server/etcdserver/apply/auth.go`, `server/auth/store.go` of etcd 3.7.3.
use super::origin::{Identity, Origin};
use super::state::{AuthState, UserEntry};
use crate::wire::etcdserverpb::request_op::Request;
use crate::wire::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use crate::wire::status::ApiError;
use bytes::Bytes;

/// What is done with keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Access {
    Read,
    Write,
}

/// Keys that a lease holds.
pub trait LeaseKeys {
    /// Those of `lease`; none if there is no such lease.
    fn keys_of(&self, lease: i64) -> Vec<Bytes>;
}

impl<F: Fn(i64) -> Vec<Bytes>> LeaseKeys for F {
    fn keys_of(&self, lease: i64) -> Vec<Bytes> {
        self(lease)
    }
}

type Checked = Result<(), ApiError>;

impl AuthState {
    /// Whether `origin` may do this with all keys of a range, both ends as they were sent.
    pub fn check_range(&self, origin: &Origin, access: Access, key: &[u8], range_end: &[u8]) -> Checked {
        let Some(identity) = self.asks(origin)? else { return Ok(()) };
        // Only a token that somebody else has signed can say so.
        if identity.revision == 0 {
            return Err(ApiError::UserEmpty);
        }
        if identity.revision < self.revision() {
            return Err(ApiError::AuthOldRevision);
        }
        let user = self.user(&identity.user).ok_or(ApiError::PermissionDenied)?;
        let keys = match access {
            Access::Read => &user.reads,
            Access::Write => &user.writes,
        };
        if user.is_root || keys.contains(key, range_end) { Ok(()) } else { Err(ApiError::PermissionDenied) }
    }

    /// Whether `origin` may do what only root may.
    pub fn check_root(&self, origin: &Origin) -> Checked {
        let Some(identity) = self.asks(origin)? else { return Ok(()) };
        if identity.user.is_empty() {
            return Err(ApiError::UserEmpty);
        }
        let user = self.user(&identity.user).ok_or(ApiError::UserNotFound)?;
        if user.is_root { Ok(()) } else { Err(ApiError::PermissionDenied) }
    }

    /// Whether `origin` is anybody.
    pub fn check_user(&self, origin: &Origin) -> Checked {
        self.asks(origin).map(drop)
    }

    /// Whether `origin` may see a user: itself, or root any.
    pub fn check_user_get(&self, origin: &Origin, name: &str) -> Checked {
        let own = matches!(origin, Origin::User(identity) if &*identity.user == name);
        // etcd's comparison takes a caller without a name for the user without a name, and then finds none.
        let nobody = matches!(origin, Origin::Client) && name.is_empty();
        if own || nobody { Ok(()) } else { self.check_root(origin) }
    }

    /// Whether `origin` may see a role: one it has, or root any.
    pub fn check_role_get(&self, origin: &Origin, role: &str) -> Checked {
        let has = |user: &UserEntry| user.record.roles.iter().any(|granted| granted == role);
        match origin {
            Origin::User(identity) if self.user(&identity.user).is_some_and(has) => Ok(()),
            _ => self.check_root(origin),
        }
    }

    /// Whether `origin` may write every key of a lease: to end it, to keep it alive, to attach another key to it.
    pub fn check_lease_writes(&self, origin: &Origin, lease: i64, leases: &impl LeaseKeys) -> Checked {
        if self.check_root(origin).is_ok() {
            return Ok(());
        }
        let keys = leases.keys_of(lease);
        keys.iter().try_for_each(|key| self.check_range(origin, Access::Write, key, b""))
    }

    /// Whether `origin` may read each of these keys.
    pub fn check_reads(&self, origin: &Origin, keys: &[Bytes]) -> Checked {
        if self.check_root(origin).is_ok() {
            return Ok(());
        }
        keys.iter().try_for_each(|key| self.check_range(origin, Access::Read, key, b""))
    }

    /// Whether `origin` may put.
    pub fn check_put(&self, origin: &Origin, put: &PutRequest, leases: &impl LeaseKeys) -> Checked {
        self.check_range(origin, Access::Write, &put.key, b"")?;
        // Whoever could not end the lease may not tie another key's life to it.
        if put.lease != 0 {
            self.check_lease_writes(origin, put.lease, leases)?;
        }
        if put.prev_kv { self.check_range(origin, Access::Read, &put.key, b"") } else { Ok(()) }
    }

    /// Whether `origin` may delete.
    pub fn check_delete(&self, origin: &Origin, delete: &DeleteRangeRequest) -> Checked {
        self.check_range(origin, Access::Write, &delete.key, &delete.range_end)?;
        if delete.prev_kv {
            self.check_range(origin, Access::Read, &delete.key, &delete.range_end)?;
        }
        Ok(())
    }

    /// Whether `origin` may run a transaction: P1.
    pub fn check_txn(&self, origin: &Origin, txn: &TxnRequest, leases: &impl LeaseKeys) -> Checked {
        if !self.is_enabled() {
            return Ok(());
        }
        for compare in &txn.compare {
            self.check_range(origin, Access::Read, &compare.key, &compare.range_end)?;
        }
        let operations = txn.success.iter().chain(&txn.failure);
        operations.into_iter().try_for_each(|operation| self.check_operation(origin, operation, leases))
    }

    fn check_operation(&self, origin: &Origin, operation: &RequestOp, leases: &impl LeaseKeys) -> Checked {
        match &operation.request {
            Some(Request::RequestRange(range)) => {
                self.check_range(origin, Access::Read, &range.key, &range.range_end)
            }
            Some(Request::RequestPut(put)) => self.check_put(origin, put, leases),
            Some(Request::RequestDeleteRange(delete)) => self.check_delete(origin, delete),
            Some(Request::RequestTxn(txn)) => self.check_txn(origin, txn, leases),
            None => Ok(()),
        }
    }

    /// Whose rights are to be looked at; none if all is allowed.
    fn asks<'a>(&self, origin: &'a Origin) -> Result<Option<&'a Identity>, ApiError> {
        match origin {
            _ if !self.is_enabled() => Ok(None),
            Origin::RootInternal => Ok(None),
            Origin::Client => Err(ApiError::UserEmpty),
            Origin::User(identity) => Ok(Some(identity)),
        }
    }
}
