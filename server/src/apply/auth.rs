//! Users, roles and authentication as commands: who may do what, decided at a place in the log.
//!
//! **Contract.** [`Machine::permit`] comes before a command is carried out, with the state as the commands before it left it: what was allowed when the request came
//! in may not be any more. Changes go to the system records in the same entry and are published for those who read.
//!
//! **Why members and alarms are not looked at again**: they may come from a member itself, and who asked for them was looked at where the request came in, as in etcd.
use super::command::{Authenticate, Command};
use super::{Context, Machine, Notice, Outcome, records};
use crate::auth::AuthState;
use crate::auth::origin::Origin;
use crate::auth::state::Change;
use crate::wire::etcdserverpb as pb;
use crate::wire::status::ApiError;
use std::sync::Arc;

impl Machine {
    /// Whether `origin` may do this, here.
    pub(super) fn permit(&self, origin: &Origin, command: &Command) -> Result<(), ApiError> {
        let auth = &*self.auth;
        if !auth.is_enabled() {
            return Ok(());
        }
        let leases = |lease: i64| self.writer.store().lease_keys(lease);
        match command {
            Command::Put(put) => auth.check_put(origin, put, &leases),
            Command::DeleteRange(delete) => auth.check_delete(origin, delete),
            Command::Txn(txn) => auth.check_txn(origin, txn, &leases),
            Command::LeaseGrant(_) => auth.check_user(origin),
            Command::LeaseRevoke(revoke) => auth.check_lease_writes(origin, revoke.id, &leases),
            Command::Compact(_)
            | Command::AuthEnable
            | Command::AuthDisable
            | Command::UserAdd(_)
            | Command::UserDelete(_)
            | Command::UserChangePassword(_)
            | Command::UserGrantRole(_)
            | Command::UserRevokeRole(_)
            | Command::RoleAdd(_)
            | Command::RoleDelete(_)
            | Command::RoleGrantPermission(_)
            | Command::RoleRevokePermission(_)
            | Command::PrefixQuota(_) => auth.check_root(origin),
            // Whoever has the right password may be anybody.
            Command::Authenticate(_) => Ok(()),
            Command::LeaseExpire(_)
            | Command::Mark(_)
            | Command::Alarm(_)
            | Command::MemberPublish(_)
            | Command::MemberAdd(_)
            | Command::MemberRemove(_)
            | Command::MemberPromote(_)
            | Command::MemberUpdate(_) => Ok(()),
        }
    }

    /// Makes a change, stores and publishes it.
    pub(super) fn change_auth(
        &mut self,
        change: impl FnOnce(&mut AuthState) -> Change,
    ) -> Result<Outcome, ApiError> {
        let touched = change(Arc::make_mut(&mut self.auth))?;
        if !touched.is_empty() {
            records::put_auth(&mut self.writer, &self.auth, &touched);
            self.view.set_auth(Arc::clone(&self.auth));
        }
        Ok(Outcome::Auth { revision: self.writer.store().revision() })
    }

    pub(super) fn auth_disable(&mut self) -> Result<Outcome, ApiError> {
        let outcome = self.change_auth(AuthState::disable)?;
        self.notices.notice(Notice::AuthDisabled);
        Ok(outcome)
    }

    pub(super) fn user_delete(&mut self, name: String) -> Result<Outcome, ApiError> {
        let outcome = self.change_auth(|auth| auth.user_delete(name.clone()))?;
        self.notices.notice(Notice::TokensDropped { user: name });
        Ok(outcome)
    }

    pub(super) fn user_change_password(
        &mut self,
        request: pb::AuthUserChangePasswordRequest,
    ) -> Result<Outcome, ApiError> {
        let user = request.name.clone();
        let outcome = self.change_auth(|auth| auth.user_change_password(request))?;
        self.notices.notice(Notice::TokensDropped { user });
        Ok(outcome)
    }

    /// Gives a user a token whose password was right at a revision that the caller compares.
    pub(super) fn authenticate(
        &mut self,
        context: Context,
        request: Authenticate,
    ) -> Result<Outcome, ApiError> {
        if !self.auth.is_enabled() {
            return Err(ApiError::AuthNotEnabled);
        }
        let user = self.auth.user(&request.name).ok_or(ApiError::AuthFailed)?;
        if user.has_no_password() {
            return Err(ApiError::AuthFailed);
        }
        if let Ok(letters) = request.letters.try_into()
            && !context.replay
        {
            let user = request.name.into();
            self.notices.notice(Notice::TokenAssigned { user, letters, index: context.index });
        }
        Ok(Outcome::Authenticated {
            index: context.index,
            auth_revision: self.auth.revision(),
            revision: self.writer.store().revision(),
        })
    }
}
