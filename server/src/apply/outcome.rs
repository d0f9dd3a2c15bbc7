//! What a command answers, and to whom.
use crate::comparison::marks::Mark;
use crate::wire::etcdserverpb::{AlarmMember, Member};
use crate::wire::status::ApiError;
use std::sync::Arc;
use sternpost_engine::mvcc::{DeleteRangeOutcome, PutOutcome, TxnOutcome};

/// The answer of a command that was not refused. `revision` is the store's after the command.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the variants are the commands")]
pub enum Outcome {
    Put(PutOutcome),
    DeleteRange(DeleteRangeOutcome),
    Txn(TxnOutcome),
    Compact {
        revision: i64,
        previous_compact_revision: i64,
    },
    LeaseGrant {
        lease: i64,
        ttl: i64,
        revision: i64,
    },
    LeaseRevoke {
        revision: i64,
    },
    Alarm {
        alarms: Vec<AlarmMember>,
        revision: i64,
    },
    MemberPublish,
    Members(Vec<Member>),
    Marked,
    PrefixQuota {
        revision: i64,
    },
    /// Users, roles or whether authentication is on.
    Auth {
        revision: i64,
    },
    /// A user may have a token: the log index that goes into it, and the revision of users and roles.
    Authenticated {
        index: u64,
        auth_revision: u64,
        revision: i64,
    },
}

/// What the proposer of a command hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The answer, or etcd's error.
    pub result: Result<Outcome, ApiError>,
    /// The command was applied although it exceeded this member's quota: its proposer raises the alarm and answers
    /// NOSPACE. Local, because members may have different quotas; it changes nothing in the state.
    pub over_quota: bool,
}

impl Applied {
    /// A command that was not applied.
    pub fn refused(error: ApiError) -> Self {
        Self { result: Err(error), over_quota: false }
    }
}

/// Where results go. Called on the thread that applies; must not block.
pub trait Results: Send + Sync {
    /// The command `id` was applied; nobody may be waiting for it any more.
    fn deliver(&self, id: u64, applied: Applied);

    /// No more commands are applied: whoever waits, and whoever comes, hears [`ApiError::Stopped`].
    fn stop(&self);
}

/// Changes of the state that others in this process keep time or tables for. Ordered as applied, before the result of
/// the command that caused them, also while the log is replayed; not part of the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A lease was granted for `ttl` seconds.
    LeaseGranted {
        /// Its id.
        lease: i64,
        /// Seconds.
        ttl: i64,
        /// Log index of the grant.
        granted_index: u64,
    },
    /// A lease was revoked or expired, with its keys.
    LeaseEnded {
        /// Its id.
        lease: i64,
    },
    /// A compaction is about to remove history: who delivers events from it takes what is not yet delivered now.
    Compacting,
    /// The member table has changed.
    MembersChanged,
    /// A place to compare the members at was applied; `replay`: while the log is replayed.
    Marked {
        /// What this member has there.
        mark: Mark,
        /// As said.
        replay: bool,
    },
    /// A user was given a token. Not said again while the log is replayed: a start begins without tokens, as in etcd.
    TokenAssigned {
        /// Whose it is.
        user: Arc<str>,
        /// SHA-256 of its letters.
        letters: [u8; 32],
        /// Log index, which is its other half.
        index: u64,
    },
    /// A user is gone or has another password: its tokens are void.
    TokensDropped {
        /// Its name.
        user: String,
    },
    /// Authentication was switched off: all tokens are void.
    AuthDisabled,
}

/// Who hears notices. Called on the thread that applies; must not block.
pub trait Notices: Send {
    /// Takes one.
    fn notice(&mut self, notice: Notice);
}
