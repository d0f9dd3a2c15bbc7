//! Who asks: from what a request brought to a user, and the requests that are about users, roles and passwords.
//!
//! **Contract.** [`Pipeline::caller`] is asked by every request that touches anything; what the user may do is decided by the state (`auth::check`), where a command is
//! applied or before a read. Passwords end here: what goes on is a hash, or that it was right.
//!
//! **Why a barrier for a token from ahead**: a simple token holds the index of the entry that gave it. It was given to somebody, so it was applied somewhere and is
//! committed; behind a barrier it is applied here too, or it is none. (etcd waits for the index, and for an index that never comes until the client gives up.)
//!
//! **Source**: `server/etcdserver/v3_server.go`, `server/etcdserver/api/v3rpc` of etcd 3.7.3.
use super::{Pipeline, id, mixed_up};
use crate::apply::Outcome;
use crate::apply::command::{Authenticate, Kind};
use crate::audit;
use crate::auth::check::{Access, LeaseKeys};
use crate::auth::origin::{Credential, Identity, Origin};
use crate::auth::password::Password;
use crate::auth::token::Found;
use crate::wire::etcdserverpb as pb;
use crate::wire::status::ApiError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use std::mem;
use tokio::time::Instant;
use zeroize::Zeroizing;

impl Pipeline {
    /// Who asks.
    ///
    /// # Errors
    /// [`ApiError::InvalidAuthToken`], and those of a read barrier.
    pub async fn caller(&self, who: &Credential) -> Result<Origin, ApiError> {
        if let Some(origin) = self.caller_here(who)? {
            return Ok(origin);
        }
        self.read_barrier().await?;
        self.caller_here(who)?.ok_or(ApiError::InvalidAuthToken)
    }

    /// The same with what this member has applied; none if that is not enough to know.
    pub fn caller_here(&self, who: &Credential) -> Result<Option<Origin>, ApiError> {
        let auth = self.view().auth();
        let origin = match who {
            Credential::Internal => Origin::RootInternal,
            _ if !auth.is_enabled() => Origin::Client,
            Credential::Nobody => Origin::Client,
            Credential::CommonName(user) => {
                Origin::User(Identity { user: user.clone(), revision: auth.revision() })
            }
            Credential::Token(token) => {
                let applied = self.store().applied().0;
                match self.tokens.find(token, auth.revision(), applied, id::wall_clock_ms) {
                    Found::User(identity) => Origin::User(identity),
                    Found::Invalid => return Err(ApiError::InvalidAuthToken),
                    Found::Ahead => return Ok(None),
                }
            }
        };
        if let Origin::User(identity) = &origin {
            audit::note_caller(&identity.user);
        }
        Ok(Some(origin))
    }

    /// Who asks, if it is root.
    pub async fn check_root(&self, who: &Credential) -> Result<Origin, ApiError> {
        let origin = self.caller(who).await?;
        self.view().auth().check_root(&origin)?;
        Ok(origin)
    }

    /// Who asks, if it is anybody.
    pub async fn check_user(&self, who: &Credential) -> Result<Origin, ApiError> {
        let origin = self.caller(who).await?;
        self.view().auth().check_user(&origin)?;
        Ok(origin)
    }

    /// Whether a range may be watched, both ends as they were sent.
    pub fn check_watch(&self, who: &Credential, key: &[u8], range_end: &[u8]) -> Result<(), ApiError> {
        let origin = self.caller_here(who)?.ok_or(ApiError::InvalidAuthToken)?;
        // What a watch without a key begins at.
        let key = if key.is_empty() { &[0] } else { key };
        self.view().auth().check_range(&origin, Access::Read, key, range_end)
    }

    /// Whether a lease may be renewed. Behind a barrier, because a key may have been attached through another member.
    pub async fn check_renew(&self, who: &Credential, lease: i64) -> Result<(), ApiError> {
        if !self.view().auth().is_enabled() {
            return Ok(());
        }
        let origin = self.check_user(who).await?;
        if self.view().auth().check_root(&origin).is_ok() {
            return Ok(());
        }
        self.read_barrier().await?;
        let revision = self.view().auth().revision();
        self.view().auth().check_lease_writes(&origin, lease, &self.leases())?;
        self.unchanged_since(revision)
    }

    /// Whether these keys of a lease may be seen.
    pub fn check_lease_keys(&self, origin: &Origin, keys: &[Bytes]) -> Result<(), ApiError> {
        self.view().auth().check_reads(origin, keys)
    }

    /// Whether these leases may be listed: who may not read a key may not see its lease.
    pub async fn check_lease_list(&self, who: &Credential, leases: &[i64]) -> Result<(), ApiError> {
        if !self.view().auth().is_enabled() {
            return Ok(());
        }
        let origin = self.check_user(who).await?;
        let revision = self.view().auth().revision();
        for lease in leases {
            self.check_lease_keys(&origin, &self.store().lease_keys(*lease))?;
        }
        self.unchanged_since(revision)
    }

    /// An error if users or roles have changed since the caller's rights were looked at.
    pub(super) fn still_current(&self, origin: &Origin) -> Result<(), ApiError> {
        match origin {
            Origin::User(identity) if identity.revision != 0 => self.unchanged_since(identity.revision),
            _ => Ok(()),
        }
    }

    fn unchanged_since(&self, revision: u64) -> Result<(), ApiError> {
        if revision == self.view().auth().revision() { Ok(()) } else { Err(ApiError::AuthOldRevision) }
    }

    /// Keys of leases, for checks.
    pub(super) fn leases(&self) -> impl LeaseKeys {
        |lease: i64| -> Vec<Bytes> { self.store().lease_keys(lease) }
    }

    /// Carries out a change of users, roles or whether authentication is on; answers the revision of the keys.
    pub async fn change_auth(
        &self,
        kind: Kind,
        request: &impl Message,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        let origin = self.caller(who).await?;
        match self.outcome(self.propose(kind, origin, request)?).await? {
            Outcome::Auth { revision } => Ok(revision),
            other => mixed_up(&other),
        }
    }

    /// Adds a user, with the hash of its password.
    pub async fn user_add(
        &self,
        mut request: pb::AuthUserAddRequest,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        let password = Zeroizing::new(mem::take(&mut request.password));
        if !request.options.as_ref().is_some_and(|options| options.no_password) {
            // Before the work of hashing, which is not for everybody to ask for.
            self.check_root(who).await?;
            request.hashed_password = STANDARD.encode(self.passwords.hash(password).await?);
        }
        self.change_auth(Kind::UserAdd, &request, who).await
    }

    /// Gives a user another password: the hash of the one in the request, or the hash in the request.
    pub async fn user_change_password(
        &self,
        mut request: pb::AuthUserChangePasswordRequest,
        who: &Credential,
    ) -> Result<i64, ApiError> {
        let password = Zeroizing::new(mem::take(&mut request.password));
        if !password.is_empty() {
            self.check_root(who).await?;
            request.hashed_password = STANDARD.encode(self.passwords.hash(password).await?);
        }
        self.change_auth(Kind::UserChangePassword, &request, who).await
    }

    /// A token for a name and a password, and the revision of the keys.
    pub async fn authenticate(
        &self,
        mut request: pb::AuthenticateRequest,
    ) -> Result<(String, i64), ApiError> {
        let password = Zeroizing::new(mem::take(&mut request.password));
        self.read_barrier().await?;
        let end = Instant::now() + self.options().timeout;
        loop {
            let checked_revision = self.check_password(&request.name, &password).await?;
            let draft = self.tokens.draft()?;
            let command = Authenticate { name: request.name.clone(), letters: draft.digest() };
            let waiting = self.propose(Kind::Authenticate, Origin::Client, &command)?;
            let (index, auth_revision, revision) = match self.outcome(waiting).await? {
                Outcome::Authenticated { index, auth_revision, revision } => (index, auth_revision, revision),
                other => mixed_up(&other),
            };
            if auth_revision == checked_revision {
                let identity = Identity { user: request.name.as_str().into(), revision: auth_revision };
                let token = self.tokens.finish(&draft, index, &identity, id::wall_clock_ms())?;
                return Ok((token, revision));
            }
            // The password may be another one by now. What was given is in nobody's hands.
            if Instant::now() >= end {
                return Err(ApiError::Timeout);
            }
        }
    }

    /// The revision of users and roles at which the password was right.
    async fn check_password(&self, name: &str, password: &Password) -> Result<u64, ApiError> {
        let (revision, found) = {
            let auth = self.view().auth();
            if !auth.is_enabled() {
                return Err(ApiError::AuthNotEnabled);
            }
            let found = auth.user(name).map(|user| (user.has_no_password(), user.record.password.clone()));
            (auth.revision(), found)
        };
        let (has_no_password, hash) = match found {
            Some((has_no_password, hash)) => (has_no_password, Some(hash)),
            None => (false, None),
        };
        // Also for users that have no password or do not exist: their answer takes as long.
        let is_right = self.passwords.is_right(password.clone(), hash).await?;
        let error = match (has_no_password, is_right) {
            (false, true) => return Ok(revision),
            (false, false) => ApiError::AuthFailed,
            (true, _) => ApiError::NoPasswordUser,
        };
        tracing::warn!(user = name, %error, "invalid authentication was requested");
        Err(error)
    }

    /// Whether authentication is on, the revision of users and roles, and that of the keys.
    pub async fn auth_status(&self, who: &Credential) -> Result<(bool, u64, i64), ApiError> {
        self.read_barrier().await?;
        self.caller(who).await?;
        let auth = self.view().auth();
        Ok((auth.is_enabled(), auth.revision(), self.store().revision()))
    }

    /// Roles of a user.
    pub async fn user_get(&self, name: &str, who: &Credential) -> Result<Vec<String>, ApiError> {
        self.read_barrier().await?;
        let origin = self.caller(who).await?;
        let auth = self.view().auth();
        auth.check_user_get(&origin, name)?;
        auth.user(name).map(|user| user.record.roles.clone()).ok_or(ApiError::UserNotFound)
    }

    /// Names of all users.
    pub async fn user_list(&self, who: &Credential) -> Result<Vec<String>, ApiError> {
        self.read_barrier().await?;
        self.check_root(who).await?;
        Ok(self.view().auth().user_names())
    }

    /// Permissions of a role.
    pub async fn role_get(
        &self,
        role: &str,
        who: &Credential,
    ) -> Result<Vec<crate::wire::authpb::Permission>, ApiError> {
        self.read_barrier().await?;
        let origin = self.caller(who).await?;
        let auth = self.view().auth();
        auth.check_role_get(&origin, role)?;
        auth.permissions_of(role).ok_or(ApiError::RoleNotFound)
    }

    /// Names of all roles.
    pub async fn role_list(&self, who: &Credential) -> Result<Vec<String>, ApiError> {
        self.read_barrier().await?;
        self.check_root(who).await?;
        Ok(self.view().auth().role_names())
    }
}
