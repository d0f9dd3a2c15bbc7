//! Bugs on purpose, for builds with the feature `planted-bugs`; in a product build [`Planted`] is empty and constant.
//!
//! The simulator must find each one, but for those that `tests/cluster_sim.rs` names with a reason.

/// Which bug is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "planted-bugs"), expect(unreachable_pub, reason = "test builds export it"))]
pub enum PlantedBug {
    /// Every round of reads has the same context.
    ReuseReadContext,
    /// The leader answers reads without a round.
    SkipReadRound,
    /// A vote is not written.
    ForgetVote,
    /// Messages do not wait until what they promise is durable.
    AcknowledgeEarly,
    /// Entries are applied when they are appended.
    ApplyUncommitted,
    /// What was proposed is proposed once more when the leader changes, whatever became of it.
    ReproposeUnproved,
    /// A leader takes forwards of every term.
    TakeStaleForwards,
    /// A leader takes a forward as often as it arrives.
    TakeForwardsTwice,
    /// At start the commit index is that of the hard state, whatever the checkpoint holds.
    CommitOfHardState,
    /// A follower that answers a read does not wait until it has applied the read index.
    ReadBeforeApplied,
    /// A leader that was removed goes on leading (R7).
    RemovedLeads,
    /// A change of the members is proposed while another one is not applied (R8).
    TwoChanges,
    /// A leader counts by a change of the members as soon as it has appended it.
    ChangeUncommitted,
    /// What a peer says is committed there counts as durable there.
    SkipIsMatched,
    /// A lone voter answers reads from what it has applied, whoever learns from it. In the shell around the core: the simulator of whole clusters finds it.
    ForgetLearners,
    /// A refusal of an earlier placement is taken for one of the present.
    TakeLateRefusals,
    /// Changes of the members may be durable without a commit index that covers the one before (R8).
    ChangesInOneWrite,
    /// All who are told that the leader is gone campaign at once.
    AllTurnsAtOnce,
    /// Who is told that the leader is gone campaigns without asking first.
    QuickWithoutPreVote,
}

/// The bug of this core, if one is planted.
#[derive(Clone, Copy, Default, Debug)]
pub struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<PlantedBug>,
}

impl Planted {
    /// Plants `bug`.
    #[cfg(feature = "planted-bugs")]
    pub fn new(bug: Option<PlantedBug>) -> Self {
        Self { bug }
    }

    /// True if this bug is planted.
    #[inline]
    #[cfg_attr(
        not(feature = "planted-bugs"),
        expect(clippy::unused_self, reason = "it has a bug to show in test builds")
    )]
    pub(super) fn has(self, bug: PlantedBug) -> bool {
        #[cfg(feature = "planted-bugs")]
        let has = self.bug == Some(bug);
        #[cfg(not(feature = "planted-bugs"))]
        let has = {
            let _ = bug;
            false
        };
        has
    }
}
