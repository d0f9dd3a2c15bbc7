//! Bugs on purpose, each of which a seed must find: a check that has never failed proves nothing.
//!
//! Those of [`ShellBug`] are in what the simulator puts around the server's parts, so each shows a checker and no rule of ours; the others are switches in
//! the parts themselves, of builds with the feature `planted-bugs`.

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
    /// A restart begins with an empty disk.
    ForgetsDisk,
    /// What a member had not synced is lost when its process is killed: it takes a kill for harmless, and a sync for made.
    LosesSynced,
    /// Everybody is told that he leads.
    NobodyAnswers,
}

/// A bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// In the simulator's own shell.
    Shell(ShellBug),
    /// In Raft.
    #[cfg(feature = "planted-bugs")]
    Core(sternpost_replication::raft::PlantedBug),
    /// In checkpoints.
    #[cfg(feature = "planted-bugs")]
    Checkpoint(sternpost_engine::checkpoint::PlantedBug),
}

impl Bug {
    /// True if it is this one of the shell's.
    pub(crate) fn is(this: Option<Self>, bug: ShellBug) -> bool {
        this == Some(Self::Shell(bug))
    }
}
