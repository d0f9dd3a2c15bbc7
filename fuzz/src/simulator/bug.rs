//! Bugs on purpose, each of which a seed must find: a check that has never failed proves nothing.
//!
//! Those of [`ShellBug`] are in what the simulator puts around the server's parts, so each shows a checker and no rule of ours; the others are switches in
//! the parts themselves, of builds with the feature `planted-bugs`.

#[cfg(feature = "planted-bugs")]
use sternpost_engine::checkpoint::PlantedBug as CheckpointBug;
#[cfg(feature = "planted-bugs")]
use sternpost_replication::raft::PlantedBug as CoreBug;

/// A bug in what the simulator puts around a member's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShellBug {
    /// One member leaves out a command now and then.
    SkipsCommand,
    /// A member's answer to a put says the revision before.
    AnswersOldRevision,
    /// Linearizable reads are answered without asking a quorum.
    ReadsWithoutBarrier,
    /// A put is answered before it is in any log.
    AnswersUnproposed,
    /// A renewal is answered and not made.
    ForgetsRenewal,
    /// A lease ends as soon as it is half over.
    EndsLeaseEarly,
    /// An event is left out of a watch.
    SkipsEvent,
    /// An event comes twice.
    DoublesEvent,
    /// A watcher that is to begin ahead of a member begins where that is.
    ForgetsStart,
    /// A progress response says the revision of the store, whatever has been given.
    PromisesAhead,
    /// A response of a watch ends within a revision.
    CutsRevision,
    /// The hub does not hear that a stream has room again.
    ForgetsDrain,
    /// A restart begins with an empty disk.
    ForgetsDisk,
    /// A member does not come back when all is made well.
    StaysCut,
}

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// In the simulator's own shell.
    Shell(ShellBug),
    /// In Raft.
    #[cfg(feature = "planted-bugs")]
    Core(CoreBug),
    /// In checkpoints.
    #[cfg(feature = "planted-bugs")]
    Checkpoint(CheckpointBug),
}

/// All of the shell's.
pub(crate) const SHELL_BUGS: [ShellBug; 14] = [
    ShellBug::SkipsCommand,
    ShellBug::AnswersOldRevision,
    ShellBug::ReadsWithoutBarrier,
    ShellBug::AnswersUnproposed,
    ShellBug::ForgetsRenewal,
    ShellBug::EndsLeaseEarly,
    ShellBug::SkipsEvent,
    ShellBug::DoublesEvent,
    ShellBug::ForgetsStart,
    ShellBug::PromisesAhead,
    ShellBug::CutsRevision,
    ShellBug::ForgetsDrain,
    ShellBug::ForgetsDisk,
    ShellBug::StaysCut,
];

/// Those of Raft.
#[cfg(feature = "planted-bugs")]
pub(crate) const CORE_BUGS: [CoreBug; 17] = [
    CoreBug::ReuseReadContext,
    CoreBug::SkipReadRound,
    CoreBug::ForgetVote,
    CoreBug::AcknowledgeEarly,
    CoreBug::ApplyUncommitted,
    CoreBug::ReproposeUnproved,
    CoreBug::TakeStaleForwards,
    CoreBug::TakeForwardsTwice,
    CoreBug::CommitOfHardState,
    CoreBug::ReadBeforeApplied,
    CoreBug::RemovedLeads,
    CoreBug::TwoChanges,
    CoreBug::ChangeUncommitted,
    CoreBug::SkipIsMatched,
    CoreBug::ForgetLearners,
    CoreBug::TakeLateRefusals,
    CoreBug::ChangesInOneWrite,
];

/// Those of checkpoints.
#[cfg(feature = "planted-bugs")]
pub(crate) const CHECKPOINT_BUGS: [CheckpointBug; 15] = [
    CheckpointBug::SkipSegmentSync,
    CheckpointBug::SkipDirectorySync,
    CheckpointBug::SuperblockFirst,
    CheckpointBug::UnlinkEarly,
    CheckpointBug::YoungerCompaction,
    CheckpointBug::ReplayBehindCut,
    CheckpointBug::HandOverEarly,
    CheckpointBug::ReuseSegmentIds,
    CheckpointBug::ForgetReplaced,
    CheckpointBug::CleanByOldBits,
    CheckpointBug::KeepLeaseKeys,
    CheckpointBug::ForgetPurges,
    CheckpointBug::DropUnswept,
    CheckpointBug::NoteOneMore,
    CheckpointBug::BrokenInvariant,
];

impl Bug {
    /// True if it is this one of the shell's.
    pub(crate) fn is(this: Option<Self>, bug: ShellBug) -> bool {
        this == Some(Self::Shell(bug))
    }
}
