//! What a member's directory says of its place in the group, read without starting it; and which of several members has the most.
//!
//! **Why.** When a quorum is lost, one member must go on alone (`force`). Which one, and whether that loses anything, follows from the logs of those that
//! are left: nobody has to guess.
//!
//! **Contract.** [`Survey::of`] reads; a member may even be running on the directory. [`judge`] compares, and proves or says that it cannot:
//!
//! An acknowledged entry is on a majority of the voters of its time. If the surveyed members meet every majority, one of them has it; and the
//! surveyed log that ends with the highest (term, index) has it too, for that is what Raft's elections rest on: whoever wrote its
//! last entry led in that term, and a leader has everything that was acknowledged before (§5.4 of the Raft paper). A change of the voters is an
//! entry as well, acknowledged by the voters before it, so the best log knows of every one that was ever in force.
//!
//! **Does not know** names and URLs of members, or whether a change in the log was refused by the state machine: it counts as made.
//!
//! **Source**: D. Ongaro, J. Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014.
use super::configuration;
use super::open::decode_record;
use super::replay::Replay;
use crate::entry_format::{decode_genesis, decode_hard_state};
use bytes::Bytes;
use raft::eraftpb::{ConfState, EntryType};
use raft_proto::decode_conf_change;
use std::collections::BTreeSet;
use std::path::Path;
use sternpost_engine::inspect::Inspection;
use sternpost_engine::wal::{Record, RecordKind, RecordMeta};
use sternpost_engine::{Error, Result};

/// Who votes and who learns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Ids, sorted.
    pub voters: Vec<u64>,
    /// Ids, sorted.
    pub learners: Vec<u64>,
}

impl Members {
    fn has(&self, member: u64) -> bool {
        self.voters.contains(&member) || self.learners.contains(&member)
    }

    fn voters_among(&self, members: &BTreeSet<u64>) -> usize {
        self.voters.iter().filter(|voter| members.contains(voter)).count()
    }

    fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// True if each majority has one of `members`.
    fn is_met_by(&self, members: &BTreeSet<u64>) -> bool {
        self.voters_among(members) + self.majority() > self.voters.len()
    }
}

impl From<&ConfState> for Members {
    fn from(state: &ConfState) -> Self {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        Self { voters: sorted(&state.voters), learners: sorted(&state.learners) }
    }
}

/// What a directory says of its member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// Identity of the member.
    pub member_id: u64,
    /// Newest term that it has heard of.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// Index of the last entry of its log.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
    /// Up to here it knows that entries are committed.
    pub committed: u64,
    /// The members as of `committed`, then after each change behind it, which may or may not be in force. Never empty.
    pub configurations: Vec<Members>,
    /// The directory was marked as not to be trusted, for this reason (`engine/docs/data_file.md`).
    pub quarantine_reason: Option<u32>,
}

#[derive(Default)]
struct Reading {
    replay: Option<Replay>,
    committed: ConfState,
}

impl Survey {
    /// Reads the directory of a member that runs or does not. `progress` gets bytes done and bytes in all of the log.
    ///
    /// # Errors
    /// A directory that holds no member, or a damaged one: those of [`Inspection::read`].
    pub fn of(directory: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let mut visit = |reading: &mut Reading, inspection: &Inspection, record: &Record<'_>| {
            reading.visit(inspection, record)
        };
        let mut tell = |read: sternpost_engine::disk_state::VerifyProgress| {
            progress(read.bytes_done, read.bytes_total);
        };
        let (superblock, Reading { replay, mut committed }) =
            Inspection::read(directory, &mut visit, &mut tell)?;
        if superblock.is_embedded {
            return Err(Error::Refused(format!(
                "{} is the directory of an embedded database and not of a member",
                directory.display()
            )));
        }
        let replay = replay.ok_or_else(|| {
            Error::Refused(format!("the member in {} has not started yet", directory.display()))
        })?;
        let (last_index, last_term) = replay.last();
        let tail: Vec<_> = replay.tail().cloned().collect();
        let start = replay.finish(committed.clone()).map_err(makes_no_sense)?;
        let mut configurations = vec![Members::from(&committed)];
        for entry in &tail {
            if change(&mut committed, entry) {
                configurations.push(Members::from(&committed));
            }
        }
        Ok(Self {
            cluster_id: superblock.cluster_id,
            member_id: superblock.member_id,
            term: start.hard_state.term.max(last_term),
            vote: start.hard_state.vote,
            last_index,
            last_term,
            committed: start.applied.max(start.hard_state.commit.min(last_index)),
            configurations,
            quarantine_reason: superblock.quarantine_reason,
        })
    }

    /// The members as its whole log has them.
    pub fn newest(&self) -> &Members {
        self.configurations.last().expect("there is the one as of `committed`")
    }
}

fn makes_no_sense(error: impl std::fmt::Display) -> Error {
    Error::Refused(format!("the log makes no sense: {error}"))
}

/// Makes the change in an entry, if there is one; true if there was.
fn change(configuration: &mut ConfState, entry: &raft::eraftpb::Entry) -> bool {
    let change = decode_conf_change(entry).and_then(|change| configuration::decode_change(&change));
    let next = change.and_then(|change| configuration::after(configuration, change));
    next.map(|next| *configuration = next).is_some()
}

impl Reading {
    fn visit(&mut self, inspection: &Inspection, record: &Record<'_>) -> Result<()> {
        let RecordMeta { kind, entry_type, term, index, .. } = record.meta;
        if self.replay.is_none() {
            self.replay = Some(Replay::new(inspection.superblock().applied_index));
            if let Some(known) = inspection.system(configuration::KEY)? {
                self.committed = configuration::decode(&known).ok_or_else(|| {
                    makes_no_sense("the members' record is of a format that this build does not know")
                })?;
            }
        }
        let Some(replay) = &mut self.replay else { return Ok(()) };
        match kind {
            RecordKind::SnapshotMark => {
                let (genesis, _) = decode_genesis(record.body).map_err(makes_no_sense)?;
                if self.committed.voters.is_empty() {
                    self.committed.voters = genesis.voters;
                }
                replay.mark(index, term);
            }
            RecordKind::HardState => {
                let vote = decode_hard_state(record.body).map_err(makes_no_sense)?;
                replay.hard_state(term, vote, index).map_err(makes_no_sense)?;
            }
            RecordKind::RaftEntry => {
                let is_change = i32::from(entry_type) != EntryType::EntryNormal as i32;
                // Of others only their places matter.
                let body = if is_change { record.body } else { &[] };
                let mut entry = decode_record(entry_type, term, index, body)
                    .ok_or_else(|| makes_no_sense("an entry is none of this build"))?;
                if !is_change {
                    entry.data = Bytes::new();
                }
                replay.entry(entry).map_err(makes_no_sense)?;
            }
            _ => {}
        }
        while let Some(entry) = replay.take_committed() {
            change(&mut self.committed, &entry);
        }
        Ok(())
    }
}

/// Which of the surveyed members should go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// Number of the survey with the most advanced log.
    pub chosen: usize,
    /// Every acknowledged write is in that log.
    pub is_proved: bool,
    /// Voters that were not surveyed, or whose directory is not to be trusted.
    pub unseen: Vec<u64>,
    /// The surveyed members are a quorum: they need nothing but to be started.
    pub has_quorum: bool,
}

/// See the module.
///
/// # Errors
/// Says what does not fit together: no survey, members of two clusters, one member twice, nobody who could go on.
pub fn judge(surveys: &[Survey]) -> std::result::Result<Judgement, String> {
    let first = surveys.first().ok_or("there is nothing to choose from")?;
    let mut seen = BTreeSet::new();
    for survey in surveys {
        if survey.cluster_id != first.cluster_id {
            return Err(format!(
                "member {:x} is of cluster {:x}, member {:x} of cluster {:x}",
                first.member_id, first.cluster_id, survey.member_id, survey.cluster_id
            ));
        }
        if !seen.insert(survey.member_id) {
            return Err(format!("member {:x} was given twice", survey.member_id));
        }
    }
    let trusted = |survey: &&Survey| survey.quarantine_reason.is_none();
    let seen: BTreeSet<u64> = surveys.iter().filter(trusted).map(|survey| survey.member_id).collect();
    let is_eligible =
        |survey: &Survey| survey.quarantine_reason.is_none() && survey.newest().has(survey.member_id);
    let place = |survey: &Survey| (survey.last_term, survey.last_index, survey.committed);
    let eligible = surveys.iter().enumerate().filter(|(_, survey)| is_eligible(survey));
    let (chosen, best) = eligible
        .max_by_key(|(number, survey)| (place(survey), std::cmp::Reverse(*number)))
        .ok_or("none of these members can go on: each was removed from its cluster, or its directory is not to be trusted")?;
    // One that was removed knows less than those who removed it, unless they were not given.
    let is_newest = surveys.iter().filter(trusted).all(|other| place(other) <= place(best));
    let meets = best.configurations.iter().all(|members| members.is_met_by(&seen));
    let quorum = best.configurations.iter().all(|members| members.voters_among(&seen) >= members.majority());
    let unseen = best.newest().voters.iter().copied().filter(|voter| !seen.contains(voter)).collect();
    Ok(Judgement { chosen, is_proved: meets && is_newest, unseen, has_quorum: quorum })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(member_id: u64, last: (u64, u64), voters: &[u64]) -> Survey {
        let members = Members { voters: voters.to_vec(), learners: Vec::new() };
        Survey {
            cluster_id: 7,
            member_id,
            last_term: last.0,
            last_index: last.1,
            configurations: vec![members],
            ..Survey::default()
        }
    }

    fn with_learner(mut survey: Survey, learner: u64) -> Survey {
        survey.configurations.last_mut().unwrap().learners.push(learner);
        survey
    }

    #[test]
    fn the_later_term_wins_over_the_longer_log() {
        let all = &[1, 2, 3, 4, 5];
        let surveys = [survey(1, (3, 90), all), survey(2, (4, 80), all), survey(3, (4, 79), all)];
        let judged = judge(&surveys).unwrap();
        assert_eq!(
            judged,
            Judgement { chosen: 1, is_proved: true, unseen: vec![4, 5], has_quorum: true },
            "three of five are a quorum"
        );
    }

    #[test]
    fn one_of_three_proves_nothing_and_two_do() {
        let all = &[1, 2, 3];
        let judged = judge(&[survey(2, (3, 90), all)]).unwrap();
        assert_eq!((judged.is_proved, judged.has_quorum, judged.unseen), (false, false, vec![1, 3]));
        let four = &[1, 2, 3, 4];
        let judged = judge(&[survey(2, (3, 90), four), survey(3, (3, 91), four)]).unwrap();
        assert_eq!(
            (judged.chosen, judged.is_proved, judged.has_quorum),
            (1, true, false),
            "two of four meet every three"
        );
    }

    #[test]
    fn every_configuration_that_may_be_in_force_counts() {
        // 1 and 2 met the majorities of three; behind what is known to be committed two more may have come.
        let mut best = survey(1, (3, 90), &[1, 2, 3]);
        best.configurations.push(Members { voters: vec![1, 2, 3, 4], learners: vec![] });
        best.configurations.push(Members { voters: vec![1, 2, 3, 4, 5], learners: vec![] });
        let judged = judge(&[best.clone(), survey(2, (3, 80), &[1, 2, 3])]).unwrap();
        assert_eq!((judged.is_proved, judged.has_quorum, judged.unseen), (false, false, vec![3, 4, 5]));
        let three = [best, survey(2, (3, 80), &[1, 2, 3]), survey(5, (3, 80), &[1, 2, 3])];
        assert!(judge(&three).unwrap().is_proved);
    }

    #[test]
    fn a_removed_or_doubtful_member_is_not_chosen_and_vouches_for_nothing() {
        let mut doubtful = survey(1, (9, 99), &[1, 2, 3]);
        doubtful.quarantine_reason = Some(1);
        let judged = judge(&[doubtful.clone(), survey(2, (3, 80), &[1, 2, 3])]).unwrap();
        assert_eq!((judged.chosen, judged.is_proved, judged.unseen), (1, false, vec![1, 3]));
        let removed = survey(4, (9, 99), &[1, 2, 3]);
        let judged =
            judge(&[removed.clone(), survey(2, (3, 80), &[1, 2, 3]), survey(3, (3, 80), &[1, 2, 3])])
                .unwrap();
        assert_eq!((judged.chosen, judged.is_proved), (1, false), "somebody who is removed knows more");
        assert!(judge(&[doubtful, removed]).unwrap_err().contains("none of these members"));
        let learner = with_learner(survey(4, (9, 99), &[1, 2, 3]), 4);
        assert_eq!(
            judge(&[survey(2, (3, 80), &[1, 2, 3]), learner]).unwrap().chosen,
            1,
            "a learner may have the most"
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert!(judge(&[]).is_err());
        let mut other = survey(2, (3, 80), &[1, 2]);
        let twice = [survey(1, (3, 80), &[1, 2]), survey(1, (3, 81), &[1, 2])];
        assert!(judge(&twice).unwrap_err().contains("member 1 was given twice"));
        other.cluster_id = 8;
        assert!(judge(&[survey(1, (3, 80), &[1, 2]), other]).unwrap_err().contains("of cluster 8"));
    }
}
