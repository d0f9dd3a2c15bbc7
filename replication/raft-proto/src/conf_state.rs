//! Comparing configurations.
use crate::eraftpb::ConfState;

/// True if both lists hold the same ids, in any order.
fn same_ids(left: &[u64], right: &[u64]) -> bool {
    left.iter().all(|id| right.contains(id)) && right.iter().all(|id| left.contains(id))
}

/// True if both describe the same configuration. `raft` builds its lists from hash sets, so their order says nothing.
#[must_use]
pub fn conf_state_eq(left: &ConfState, right: &ConfState) -> bool {
    same_ids(&left.voters, &right.voters)
        && same_ids(&left.learners, &right.learners)
        && same_ids(&left.voters_outgoing, &right.voters_outgoing)
        && same_ids(&left.learners_next, &right.learners_next)
        && left.auto_leave == right.auto_leave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_members_do() {
        let state = |voters: &[u64]| ConfState { voters: voters.to_vec(), ..ConfState::default() };
        assert!(conf_state_eq(&state(&[1, 2, 3]), &state(&[3, 1, 2])));
        assert!(!conf_state_eq(&state(&[1, 2]), &state(&[1, 2, 3])));
        assert!(!conf_state_eq(&state(&[1, 2, 3]), &state(&[1, 2])));
        let joint = ConfState { auto_leave: true, ..state(&[1]) };
        assert!(!conf_state_eq(&joint, &state(&[1])));
    }
}
