//! Who votes and who learns: what a change makes of it, and its bytes.
//!
//! **Rule R9.** The configuration is a system record of the store, changed with the entry that changes it, so it is in the same checkpoint as the
//! applied index: a configuration newer than what is applied would break a replay. What the library makes of a change is computed
//! here once more, where entries are applied, and the two must agree.
//!
//! **Layout** of the record [`KEY`], little-endian: format version u8 (1) · voters u32 · that many ids u64, sorted · learners u32 · that
//! many ids u64, sorted.
//!
//! **Bounds.** One member at a time, no joint configurations: two majorities that differ by one member always meet.
//!
//! **Does not know** URLs, names, or whether a change is wise.
use crate::replicator::MemberChange;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use sternpost_engine::base::codec::Reader;

/// The system record's key.
pub const KEY: &[u8] = b"raft/configuration";
const FORMAT_VERSION: u8 = 1;
/// More members than any group has: a count above it is damage.
const MEMBERS_MAX: u32 = 1024;

/// A change as the library has it.
pub fn encode_change(change: MemberChange) -> ConfChangeV2 {
    let (kind, node_id) = match change {
        MemberChange::AddVoter(id) => (ConfChangeType::AddNode, id),
        MemberChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
        MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
    };
    let single = ConfChangeSingle { change_type: kind as i32, node_id };
    ConfChangeV2 { changes: vec![single], ..ConfChangeV2::default() }
}

/// The change in an entry; none if it is not one of ours, and then it changes nothing.
pub fn decode_change(change: &ConfChangeV2) -> Option<MemberChange> {
    let [ConfChangeSingle { change_type, node_id }] = change.changes[..] else { return None };
    if change.enter_joint().is_some() || node_id == 0 {
        return None;
    }
    match ConfChangeType::try_from(change_type).ok()? {
        ConfChangeType::AddNode => Some(MemberChange::AddVoter(node_id)),
        ConfChangeType::AddLearnerNode => Some(MemberChange::AddLearner(node_id)),
        ConfChangeType::RemoveNode => Some(MemberChange::Remove(node_id)),
    }
}

/// What the configuration is after `change`; none if it makes no sense there: a voter that would learn, somebody unknown who would go, the
/// last voter.
pub fn after(configuration: &ConfState, change: MemberChange) -> Option<ConfState> {
    let mut next = configuration.clone();
    let without = |list: &mut Vec<u64>, id: u64| list.retain(|known| *known != id);
    match change {
        MemberChange::AddVoter(id) => {
            if next.voters.contains(&id) {
                return None;
            }
            without(&mut next.learners, id);
            next.voters.push(id);
        }
        MemberChange::AddLearner(id) => {
            if next.voters.contains(&id) || next.learners.contains(&id) {
                return None;
            }
            next.learners.push(id);
        }
        MemberChange::Remove(id) => {
            without(&mut next.voters, id);
            without(&mut next.learners, id);
            if next.voters.is_empty() || next == *configuration {
                return None;
            }
        }
    }
    Some(super::core::sorted(next))
}

/// As bytes of the record.
pub fn encode(configuration: &ConfState) -> Vec<u8> {
    debug_assert!(configuration.voters_outgoing.is_empty() && configuration.learners_next.is_empty());
    let mut out = vec![FORMAT_VERSION];
    for list in [&configuration.voters, &configuration.learners] {
        out.extend_from_slice(&u32::try_from(list.len()).expect("few members").to_le_bytes());
        list.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
    }
    out
}

/// From bytes of the record; none if they are none of this build.
pub fn decode(bytes: &[u8]) -> Option<ConfState> {
    let mut reader = Reader::new(bytes);
    if reader.u8() != Ok(FORMAT_VERSION) {
        return None;
    }
    let mut list = || -> Option<Vec<u64>> {
        let count = reader.u32().ok().filter(|count| *count <= MEMBERS_MAX)?;
        (0..count).map(|_| reader.u64().ok()).collect()
    };
    let (voters, learners) = (list()?, list()?);
    let is_whole = reader.is_empty() && voters.is_sorted() && learners.is_sorted() && !voters.is_empty();
    is_whole.then(|| ConfState { voters, learners, ..ConfState::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(voters: &[u64], learners: &[u64]) -> ConfState {
        ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() }
    }

    #[test]
    fn members_come_are_promoted_and_go_and_what_makes_no_sense_changes_nothing() {
        let three = configuration(&[1, 2, 3], &[]);
        let learning = after(&three, MemberChange::AddLearner(4)).unwrap();
        assert_eq!(learning, configuration(&[1, 2, 3], &[4]));
        assert_eq!(after(&learning, MemberChange::AddVoter(4)), Some(configuration(&[1, 2, 3, 4], &[])));
        assert_eq!(after(&learning, MemberChange::Remove(4)), Some(three.clone()));
        assert_eq!(after(&learning, MemberChange::Remove(2)), Some(configuration(&[1, 3], &[4])));
        for change in [
            MemberChange::AddVoter(1),
            MemberChange::AddLearner(1),
            MemberChange::AddLearner(4),
            MemberChange::Remove(9),
        ] {
            assert_eq!(after(&learning, change), None, "{change:?}");
        }
        assert_eq!(after(&configuration(&[1], &[4]), MemberChange::Remove(1)), None, "the last voter stays");
    }

    #[test]
    fn changes_and_records_come_back_and_cuts_are_refused() {
        for change in [MemberChange::AddVoter(7), MemberChange::AddLearner(7), MemberChange::Remove(7)] {
            assert_eq!(decode_change(&encode_change(change)), Some(change));
        }
        assert_eq!(decode_change(&ConfChangeV2::default()), None);
        assert_eq!(decode_change(&encode_change(MemberChange::AddVoter(0))), None);
        let known = configuration(&[1, 2], &[3]);
        let bytes = encode(&known);
        assert_eq!(decode(&bytes), Some(known));
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()));
        assert_eq!(decode(&encode(&configuration(&[], &[3]))), None);
    }
}
