//! What goes into a core and what comes out of it.
use super::frame::Frame;
use bytes::Bytes;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, HardState};

/// A command on its way into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Unique in the cluster and over restarts; the function [`super::CoreOptions::command_id`] finds it in the command.
    pub id: u64,
    /// Taken even where a device is full; see `replicator::Class`.
    pub is_privileged: bool,
    /// If set, this member alone may append it, as leader of this term: never forwarded, and given up when the term is over.
    pub only_term: Option<u64>,
    /// The command.
    pub command: Bytes,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A tick passed. `write_age_us`: age of the oldest write of the log in flight, 0 if there is none.
    Tick {
        /// Microseconds.
        write_age_us: u64,
    },
    /// A frame arrived. The lane below has made sure that it is from a member of this cluster.
    Frame(Frame),
    /// These shall get into the log, wherever it is led.
    Propose(Vec<Proposal>),
    /// A change of the configuration, for the leader; `context` travels with it.
    ProposeChange {
        /// As [`Proposal::id`].
        id: u64,
        /// The change.
        change: ConfChangeV2,
        /// For the state machine.
        context: Bytes,
    },
    /// Somebody wants to read what was acknowledged before now. Tokens are not used twice.
    Read {
        /// Comes back in [`Output::ReadAt`] or [`Output::ReadFailed`].
        token: u64,
    },
    /// [`Output::Persist`] with this number, and every one before, is durable.
    Durable {
        /// Its number.
        number: u64,
    },
    /// The state machine has applied everything up to `index`. A change of the configuration comes alone, with its verdict.
    Applied {
        /// Index of the last one.
        index: u64,
        /// Whether the change at `index` was accepted, if there is one.
        change: Option<bool>,
    },
    /// What the log's files hold from `low` on: an answer to [`Output::Load`]. Empty if it could not be read.
    Loaded {
        /// As asked.
        low: u64,
        /// Consecutive, from `low`.
        entries: Vec<Entry>,
    },
    /// The log's files begin at this index now.
    FilesBeginAt {
        /// First index that can be read.
        first: u64,
    },
    /// The log has room for ordinary commands, or has not any more.
    Room {
        /// True if it has.
        is_left: bool,
    },
    /// A frame to this peer was dropped, or its connection broke.
    Unreachable {
        /// The peer.
        id: u64,
    },
    /// A connection to this peer is there.
    Connected {
        /// The peer.
        id: u64,
    },
    /// Nobody answers where this peer was, and nothing comes from it: its process is gone, as far as this member can see.
    Absent {
        /// The peer.
        id: u64,
    },
    /// Another member knows that this one has promised this (R22).
    Promised {
        /// Who says it.
        by: u64,
        /// A term that we have taken part in.
        term: u64,
        /// A committed entry that we have acknowledged.
        index: u64,
    },
    /// Leadership shall go to this member, 0 for the best one.
    TransferLeader {
        /// The member.
        to: u64,
    },
    /// The server has found that the state machine holds something else than those of most members.
    StateDiffers,
}

/// Something to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// To the log, in order of the numbers, then [`Input::Durable`]. Entries supersede every earlier record with the same or a
    /// higher index.
    Persist {
        /// Consecutive, from 1.
        number: u64,
        /// If it has changed; before the entries, so that no entry is there without its term.
        hard_state: Option<HardState>,
        /// May be none.
        entries: Vec<Entry>,
    },
    /// To a peer. May be lost; a loss that is known is to be told by [`Input::Unreachable`].
    Send(Frame),
    /// Committed and durable here: to the state machine, in order; then [`Input::Applied`].
    Apply(Vec<Entry>),
    /// The state machine holds everything that was acknowledged before these asked.
    ReadAt {
        /// As in [`Input::Read`].
        tokens: Vec<u64>,
        /// The read index.
        index: u64,
    },
    /// These cannot be answered.
    ReadFailed {
        /// As in [`Input::Read`].
        tokens: Vec<u64>,
        /// Why.
        why: Refusal,
    },
    /// These are given up.
    Rejected {
        /// Their ids.
        ids: Vec<u64>,
        /// Why.
        why: Refusal,
    },
    /// A change of the configuration is in the log at (index, term). If another term commits that index, it is lost.
    ChangeProposed {
        /// As in [`Input::ProposeChange`].
        id: u64,
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// Entries `[low, high)` are to be read from the log's files, as many as [`super::LOAD_BYTES`] holds and at least one; then
    /// [`Input::Loaded`].
    Load {
        /// First index.
        low: u64,
        /// Behind the last.
        high: u64,
    },
    /// Term, role or leader have changed.
    Role(Role),
    /// This member leads in `term` and has applied everything that was acknowledged before.
    LeaderProved {
        /// The term.
        term: u64,
    },
    /// This peer needs entries that no file holds any more.
    NeedsSnapshot {
        /// The peer.
        id: u64,
    },
    /// This member takes no part any more: see [`Quarantine`].
    Quarantined(Quarantine),
}

/// Who this member is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Role {
    /// Its term.
    pub term: u64,
    /// Its role.
    pub role: StateRole,
    /// The leader, 0 if none is known.
    pub leader: u64,
}

impl Role {
    /// True if this member leads.
    pub fn is_leader(&self) -> bool {
        self.role == StateRole::Leader
    }
}

/// Why a proposal or read is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The leader's device is full. Not in the log.
    NoSpace,
    /// Time is up and no leader took it. Not in the log.
    NoLeader,
    /// Time is up, and somebody had taken it: whether it is in the log is unknown.
    Unknown,
    /// More wait than the bounds allow. Not in the log.
    TooMany,
    /// A change of the configuration that cannot be made now, or by this member. Not in the log.
    ChangeRefused,
    /// This member is not the leader.
    NotLeader,
    /// This member's disk hangs, and somebody else leads: another member can answer, this one cannot.
    DiskHangs,
    /// This member is quarantined. Not in the log.
    Quarantined,
}

impl Refusal {
    /// Its number in frames.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::NoSpace => 1,
            Self::NoLeader => 2,
            Self::Unknown => 3,
            Self::TooMany => 4,
            Self::ChangeRefused => 5,
            Self::NotLeader => 6,
            Self::Quarantined => 7,
            Self::DiskHangs => 8,
        }
    }

    /// The refusal with this number; what is not known says nothing, so it is `Unknown`.
    pub(super) fn from_number(number: u8) -> Self {
        let all = [
            Self::NoSpace,
            Self::NoLeader,
            Self::TooMany,
            Self::ChangeRefused,
            Self::NotLeader,
            Self::Quarantined,
            Self::DiskHangs,
        ];
        all.into_iter().find(|refusal| refusal.number() == number).unwrap_or(Self::Unknown)
    }
}

/// Why a member takes no part: what it has is not what it said it had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quarantine {
    /// The leader knows that we had acknowledged `index`, and our log ends before it.
    AcknowledgedLost {
        /// What is known to be committed and ours.
        index: u64,
        /// Our last index.
        last: u64,
    },
    /// An entry that is committed here has another term at the leader.
    CommittedDiffers {
        /// Its index.
        index: u64,
    },
    /// Another member knows that we had acknowledged more, or voted in a later term, than our disk says (R22).
    Regressed {
        /// Who says it.
        by: u64,
    },
    /// What this member's state machine holds differs from what most members hold at the same index.
    StateDiffers,
    /// At the start: the positions of log and checkpoint do not fit together.
    Start(StartFault),
}

impl std::fmt::Display for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AcknowledgedLost { index, last } => write!(
                f,
                "this member had acknowledged the log up to {index}, and its log ends at {last}: acknowledged data was lost"
            ),
            Self::CommittedDiffers { index } => {
                write!(f, "entry {index} is committed here, and the leader has another one")
            }
            Self::StateDiffers => f.write_str(
                "this member's data differs from that of most members of its cluster; it takes no part until it has fetched theirs",
            ),
            Self::Regressed { by } => write!(
                f,
                "member {by:x} says that this one holds less than it has acknowledged: its data was lost or rolled back; remove it from the cluster, and add it anew"
            ),
            Self::Start(fault) => write!(f, "log and checkpoint do not fit together: {fault:?}"),
        }
    }
}

/// Which of the guards at start failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "names and numbers say it")]
pub enum StartFault {
    AppliedBehindCommit { applied: u64, commit: u64 },
    CommitBehindLast { commit: u64, last: u64 },
    GapBehindApplied { applied: u64, first: u64 },
    TermBehindEntries { term: u64, last_term: u64 },
    TermsUnreadable { first: u64, last: u64 },
    BadConfiguration,
}
