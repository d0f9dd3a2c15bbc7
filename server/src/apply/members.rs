//! Members of the cluster: what a change does to their table, with etcd's checks.
//!
//! **Contract.** [`check`] is asked twice: by the leader before it proposes, so that a client hears at once, and where the entry is applied, on every
//! member, where it decides. Ids are never given a second time: those of removed members are kept.
//!
//! **Source**: `ValidateConfigurationChange` of `server/etcdserver/api/membership/cluster.go`, etcd 3.7.3.
use super::command::Command;
use super::{Machine, Notice, Outcome, records};
use crate::wire::etcdserverpb::Member;
use crate::wire::status::ApiError;
use sternpost_engine::mvcc::Store;

/// A change of the member table.
#[derive(Clone, PartialEq, Debug)]
pub enum MemberCommand {
    /// A new member, a learner or not.
    Add(Member),
    /// A learner becomes a voter.
    Promote(u64),
    /// A member is none any more.
    Remove(u64),
    /// Other peer URLs; all else of it is kept.
    Update(u64, Vec<String>),
}

impl MemberCommand {
    /// The change in a command that travels with one of the configuration; none in others.
    pub(super) fn of(command: Command) -> Option<Self> {
        match command {
            Command::MemberAdd(member) => Some(Self::Add(member)),
            Command::MemberPromote(member) => Some(Self::Promote(member.id)),
            Command::MemberRemove(member) => Some(Self::Remove(member.id)),
            _ => None,
        }
    }

    fn id(&self) -> u64 {
        match self {
            Self::Add(member) => member.id,
            Self::Promote(id) | Self::Remove(id) | Self::Update(id, _) => *id,
        }
    }
}

/// Whether `command` may change the table in `store`. `learners_max`: only the leader asks, whose flag it is; members with different flags must
/// not decide differently.
///
/// # Errors
/// etcd's.
pub fn check(store: &Store, command: &MemberCommand, learners_max: Option<usize>) -> Result<(), ApiError> {
    if records::is_removed(store, command.id()) {
        return Err(ApiError::MemberNotFound);
    }
    let members = records::members(store);
    let find = |id: u64| members.iter().find(|member| member.id == id);
    let is_taken = |urls: &[String], by_others_than: u64| {
        let others = members.iter().filter(|member| member.id != by_others_than);
        others.flat_map(|member| &member.peer_ur_ls).any(|url| urls.contains(url))
    };
    match command {
        MemberCommand::Add(member) => {
            if find(member.id).is_some() {
                return Err(ApiError::MemberExists);
            }
            if is_taken(&member.peer_ur_ls, member.id) {
                return Err(ApiError::PeerUrlExists);
            }
            let learners_count = members.iter().filter(|member| member.is_learner).count();
            if member.is_learner && learners_max.is_some_and(|max| learners_count + 1 > max) {
                return Err(ApiError::TooManyLearners);
            }
            Ok(())
        }
        MemberCommand::Promote(id) => match find(*id) {
            None => Err(ApiError::MemberNotFound),
            Some(member) if !member.is_learner => Err(ApiError::MemberNotLearner),
            Some(_) => Ok(()),
        },
        MemberCommand::Remove(id) => find(*id).map(drop).ok_or(ApiError::MemberNotFound),
        MemberCommand::Update(id, urls) => {
            find(*id).ok_or(ApiError::MemberNotFound)?;
            if is_taken(urls, *id) { Err(ApiError::PeerUrlExists) } else { Ok(()) }
        }
    }
}

impl Machine {
    /// Makes a change, or says why not.
    pub(super) fn change_members(&mut self, command: MemberCommand) -> Result<Outcome, ApiError> {
        check(self.writer.store(), &command, None)?;
        match command {
            MemberCommand::Add(member) => records::put_member(&mut self.writer, &member),
            MemberCommand::Promote(id) => {
                self.edit_member(id, |member| member.is_learner = false)?;
            }
            MemberCommand::Remove(id) => records::remove_member(&mut self.writer, id),
            MemberCommand::Update(id, urls) => {
                self.edit_member(id, |member| member.peer_ur_ls = urls)?;
            }
        }
        self.notices.notice(Notice::MembersChanged);
        Ok(Outcome::Members(records::members(self.writer.store())))
    }

    fn edit_member(&mut self, id: u64, edit: impl FnOnce(&mut Member)) -> Result<(), ApiError> {
        let mut member = records::member(self.writer.store(), id).ok_or(ApiError::MemberNotFound)?;
        edit(&mut member);
        records::put_member(&mut self.writer, &member);
        Ok(())
    }
}
