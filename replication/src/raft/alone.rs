//! Whether a member may answer reads from what it has applied, without asking anybody: because nobody else can have told a client of more.
//!
//! **Rule.** It is the only member, voter or not, leads, and has applied what earlier terms had; and it has applied everything that it had appended when the
//! others went. As long as there are others they hear what is committed, and may apply it and tell their clients before this member has applied it:
//! learners too, and who was removed of what was sent before.
//!
//! **Does not know** how a read is made.
use super::core::CoreStatus;
use super::planted::{Planted, PlantedBug};

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Alone {
    /// Last index when this member became the only one.
    from: Option<u64>,
    planted: Planted,
}

impl Alone {
    /// That of a start.
    pub(super) fn new(planted: Planted) -> Self {
        Self { from: None, planted }
    }

    /// Looks at the status of `member` after a round; true if it may.
    pub(super) fn look(&mut self, member: u64, status: &CoreStatus) -> bool {
        let forgets = self.planted.has(PlantedBug::ForgetLearners);
        let is_alone = status.voters == [member]
            && (status.learners.is_empty() || forgets)
            && status.proved_term.is_some()
            && status.quarantine.is_none();
        if !is_alone {
            self.from = None;
            return false;
        }
        forgets || status.applied >= *self.from.get_or_insert(status.last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::Role;
    use super::*;
    use raft::StateRole;

    fn status(voters: &[u64], learners: &[u64], applied: u64, last: u64) -> CoreStatus {
        CoreStatus {
            role: Role { term: 3, role: StateRole::Leader, leader: 1 },
            committed: last,
            applied,
            last,
            last_term: 3,
            proved_term: Some(3),
            transferee: None,
            peers: Vec::new(),
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            quarantine: None,
            frames_dropped_count: 0,
        }
    }

    /// A lone voter with a learner answered reads from what it had applied. The learner had been sent what was committed, applied it first, and told its
    /// client; a read at the leader that began later did not see it (seed 263 of the simulator of clusters). Now a member with a learner asks by a round.
    #[test]
    fn a_learner_may_know_more_than_its_leader_has_applied() {
        let mut alone = Alone::default();
        assert!(alone.look(1, &status(&[1], &[], 5, 5)));
        assert!(
            alone.look(1, &status(&[1], &[], 5, 6)),
            "what is appended while it is alone nobody else has"
        );
        assert!(!alone.look(1, &status(&[1], &[2], 7, 7)));
    }

    /// What had been sent before the other one went may be told by it afterwards.
    #[test]
    fn who_was_removed_may_know_more_until_that_is_applied_here() {
        let mut alone = Alone::default();
        assert!(!alone.look(1, &status(&[1, 2], &[], 7, 9)));
        assert!(!alone.look(1, &status(&[1], &[], 8, 9)), "the removal is applied, and 9 is not");
        assert!(alone.look(1, &status(&[1], &[], 9, 12)));
        let mut not_proved = status(&[1], &[], 9, 12);
        not_proved.proved_term = None;
        assert!(!alone.look(1, &not_proved));
    }
}
