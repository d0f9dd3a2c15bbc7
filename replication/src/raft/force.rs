//! A member made the only one of its group, at a start: the last resort when a quorum is lost for good.
//!
//! **Contract.** Everything that this member's log holds counts as committed, also what the others may never have had: an acknowledged write may be
//! among it. Then come one entry for each other member, which removes it, and one before them that makes this member a voter if it
//! was a learner. So the members that return hear that they were removed, and every replay does the same again.
//!
//! **Invariant.** The entries and the hard state that commits them are one group of the log, so they are there together or not at
//! all; their term is a new one, for which this member votes.
//!
//! **Does not know** whether the others are really lost, or which of several survivors has the most.
//!
//! **Source**: `--force-new-cluster` of etcd (`server/etcdserver/bootstrap.go`, 3.7.3), which throws away what is not known to be committed;
//! why we do not: `replication/docs/decisions/0004-force-keeps-the-tail.md`.
use super::configuration;
use super::replay::Replay;
use crate::replicator::MemberChange;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use raft_proto::{decode_conf_change, encode_conf_change};
use std::collections::BTreeSet;

/// The state machine's command that goes with a change of the members; its result goes to nobody.
pub type ChangeCommand = Box<dyn FnMut(MemberChange) -> Vec<u8> + Send>;

/// What a member's log gets.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Forced {
    /// Behind the last entry of the log.
    pub(super) entries: Vec<Entry>,
    /// Commits all of it.
    pub(super) hard_state: HardState,
    /// Members that are removed.
    pub(super) removed: Vec<u64>,
    /// Entries of the log that were not known to be committed.
    pub(super) uncommitted_count: u64,
}

/// What makes `member` the only one, from a log that was read and the configuration of what is applied; none if it is that already.
///
/// # Errors
/// Says why not: it is no member of the group any more.
pub(super) fn plan(
    member: u64,
    replay: &Replay,
    configuration: &ConfState,
    command: &mut ChangeCommand,
) -> Result<Option<Forced>, String> {
    let mut at_end = configuration.clone();
    let everybody = |state: &ConfState| [&state.voters[..], &state.learners[..]].concat();
    // Whether a change in the tail is made shows where it is applied: whoever may be a member is removed.
    let mut known: BTreeSet<u64> = everybody(&at_end).into_iter().collect();
    for entry in replay.tail().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal) {
        let change = decode_conf_change(entry).and_then(|change| configuration::decode_change(&change));
        if let Some(next) = change.and_then(|change| configuration::after(&at_end, change)) {
            at_end = next;
            known.extend(everybody(&at_end));
        }
    }
    if !everybody(&at_end).contains(&member) {
        return Err(format!(
            "member {member:x} is not in its cluster any more, so it cannot go on alone; take a member that is"
        ));
    }
    known.remove(&member);
    if known.is_empty() {
        return Ok(None);
    }
    let promotion = (!at_end.voters.contains(&member)).then_some(MemberChange::AddVoter(member));
    let removals = known.iter().map(|id| MemberChange::Remove(*id));
    let last_index = replay.last_index();
    let term = replay.term() + 1;
    let entries: Vec<Entry> = promotion
        .into_iter()
        .chain(removals)
        .zip(last_index + 1..)
        .map(|(change, index)| Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            term,
            index,
            data: Bytes::from(encode_conf_change(&configuration::encode_change(change))),
            context: Bytes::from(command(change)),
            sync_log: false,
        })
        .collect();
    let commit = last_index + entries.len() as u64;
    Ok(Some(Forced {
        entries,
        hard_state: HardState { term, vote: member, commit },
        removed: known.into_iter().collect(),
        uncommitted_count: replay.tail().count() as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change_entry(index: u64, change: MemberChange) -> Entry {
        Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            index,
            term: 3,
            data: Bytes::from(encode_conf_change(&configuration::encode_change(change))),
            ..Entry::default()
        }
    }

    /// Entries 2 to 5 and those given; 4 and what follows is not known to be committed.
    fn replay(more: &[Entry]) -> Replay {
        let mut replay = Replay::new(0);
        replay.mark(1, 1);
        replay.hard_state(3, 9, 3).unwrap();
        for index in 2..=5 {
            replay.entry(Entry { index, term: 2, ..Entry::default() }).unwrap();
        }
        more.iter().for_each(|entry| replay.entry(entry.clone()).unwrap());
        while replay.take_committed().is_some() {}
        replay
    }

    fn command() -> ChangeCommand {
        Box::new(|change| format!("{change:?}").into_bytes())
    }

    fn group(voters: &[u64], learners: &[u64]) -> ConfState {
        ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..ConfState::default() }
    }

    fn changes(forced: &Forced) -> Vec<MemberChange> {
        let decode = |entry| configuration::decode_change(&decode_conf_change(entry)?);
        forced.entries.iter().map(|entry| decode(entry).unwrap()).collect()
    }

    #[test]
    fn the_tail_is_kept_and_everybody_else_removed_in_a_new_term() {
        let forced = plan(2, &replay(&[]), &group(&[1, 2, 3], &[4]), &mut command()).unwrap().unwrap();
        assert_eq!((forced.removed.as_slice(), forced.uncommitted_count), (&[1, 3, 4][..], 2));
        assert_eq!(changes(&forced), [1, 3, 4].map(MemberChange::Remove));
        assert_eq!(forced.hard_state, HardState { term: 4, vote: 2, commit: 8 });
        let places: Vec<_> = forced.entries.iter().map(|entry| (entry.index, entry.term)).collect();
        assert_eq!(places, [(6, 4), (7, 4), (8, 4)]);
        assert_eq!(&forced.entries[0].context[..], b"Remove(1)");
    }

    #[test]
    fn whom_the_tail_brings_is_removed_too_and_a_learner_votes_first() {
        let tail = [change_entry(6, MemberChange::AddLearner(7)), change_entry(7, MemberChange::Remove(1))];
        let forced = plan(4, &replay(&tail), &group(&[1, 2], &[4]), &mut command()).unwrap().unwrap();
        let expected = [
            MemberChange::AddVoter(4),
            MemberChange::Remove(1),
            MemberChange::Remove(2),
            MemberChange::Remove(7),
        ];
        assert_eq!(changes(&forced), expected);
        let promoted = [change_entry(6, MemberChange::AddVoter(4))];
        let forced = plan(4, &replay(&promoted), &group(&[1], &[4]), &mut command()).unwrap().unwrap();
        assert_eq!(changes(&forced), [MemberChange::Remove(1)]);
    }

    #[test]
    fn one_alone_is_left_alone_and_one_that_was_removed_is_refused() {
        assert_eq!(plan(1, &replay(&[]), &group(&[1], &[]), &mut command()), Ok(None));
        let removed = [change_entry(6, MemberChange::Remove(1))];
        let refusal = plan(1, &replay(&removed), &group(&[1, 2], &[]), &mut command()).unwrap_err();
        assert!(refusal.contains("member 1 is not in its cluster any more"), "{refusal}");
    }
}
