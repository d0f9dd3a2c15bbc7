//! What must hold before the library sees a message: it panics on lost or impossible data, and believes what no member of ours says.
//!
//! The table is 1.6 of the design with corrections R6 and R12; each row is a test below or in `tests/cluster_sim.rs`.
use super::input::{Quarantine, StartFault};
use super::log_view::LogView;
use raft::eraftpb::{ConfState, HardState, Message, MessageType};
use raft::{RawNode, StateRole};

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Step,
    Drop,
    Quarantine(Quarantine),
}

/// What a guard needs to know beside the library's state.
pub(super) struct Situation {
    pub(super) member: u64,
    /// Our oldest write is older than one election timeout.
    pub(super) is_disk_slow: bool,
    /// More waits to be applied than may: entries are not taken until it is less.
    pub(super) is_full: bool,
}

/// Judges a message from a member that the transport has proved to be `from`.
pub(super) fn judge(node: &RawNode<LogView>, situation: &Situation, message: &Message) -> Verdict {
    let raft = &node.raft;
    let kind = message.get_msg_type();
    // R6: these are local, forwarded in frames of our own, or never sent. With term 0 the library takes anything for local.
    let is_welcome = matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    );
    if !is_welcome
        || message.term == 0
        || message.from == 0
        || message.from == situation.member
        || message.to != situation.member
        // A snapshot that somebody asks for this way would hold his entries back for ever.
        || message.request_snapshot != 0
    {
        return Verdict::Drop;
    }
    if kind != MessageType::MsgAppend && !message.entries.is_empty() {
        return Verdict::Drop;
    }
    // A removed member that knows nothing of it: without a word its term does not grow here (scenario 36). A leader must be heard, though, and a
    // candidate whose addition is not applied here yet, for its group may need our vote. Its commit index tells the two apart: who campaigns
    // is a voter as of what it has committed. That is beyond what is applied here if its addition is, and before it if its removal is applied here.
    let is_known = raft.prs().get(message.from).is_some();
    let leads = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
    let campaigns = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
        && message.commit > raft.raft_log.applied;
    if !(is_known || leads || campaigns) {
        return Verdict::Drop;
    }
    let log = node.store();
    let last = raft.raft_log.last_index();
    match kind {
        MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
            Verdict::Quarantine(Quarantine::AcknowledgedLost { index: message.commit, last })
        }
        MessageType::MsgAppend => judge_append(raft.term, raft.raft_log.committed, log, situation, message),
        MessageType::MsgAppendResponse if message.reject => {
            // A hint below what this term has matched is stale, or the peer lost what it acknowledged; the library would go back.
            let matched = raft.prs().get(message.from).map_or(0, |progress| progress.matched);
            let is_stale = message.term == raft.term && message.reject_hint < matched;
            if is_stale { Verdict::Drop } else { Verdict::Step }
        }
        // CockroachDB #124225: nobody has what we do not have.
        MessageType::MsgAppendResponse if message.term == raft.term && message.index > last => Verdict::Drop,
        MessageType::MsgTimeoutNow => {
            let is_from_leader = message.term == raft.term
                && raft.leader_id == message.from
                && raft.state == StateRole::Follower;
            if is_from_leader && !situation.is_disk_slow { Verdict::Step } else { Verdict::Drop }
        }
        _ => Verdict::Step,
    }
}

fn judge_append(
    term: u64,
    committed: u64,
    log: &LogView,
    situation: &Situation,
    message: &Message,
) -> Verdict {
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        let follows = before.0.checked_add(1) == Some(entry.index);
        if !follows || entry.term < before.1 || entry.term > message.term || entry.term == 0 {
            return Verdict::Drop;
        }
        before = (entry.index, entry.term);
    }
    if message.term < term {
        // The library answers it with our term.
        return Verdict::Step;
    }
    let differs =
        |index: u64, term: u64| index <= committed && log.term_at(index).is_some_and(|ours| ours != term);
    let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
    // The leader's log starts at 1: before it there is nothing to compare.
    let anchor = (message.index > 0).then_some((message.index, message.log_term));
    if let Some((index, _)) = anchor.into_iter().chain(entries).find(|(index, term)| differs(*index, *term)) {
        return Verdict::Quarantine(Quarantine::CommittedDiffers { index });
    }
    if situation.is_full && !message.entries.is_empty() { Verdict::Drop } else { Verdict::Step }
}

/// The guards at start. `hard_state.commit` already counts what the checkpoint holds (R1).
pub(super) fn judge_start(
    hard_state: &HardState,
    configuration: &ConfState,
    log: &LogView,
    applied: u64,
    member: u64,
) -> Result<(), StartFault> {
    let (commit, last, first) = (hard_state.commit, log.last(), log.first());
    if applied > commit {
        return Err(StartFault::AppliedBehindCommit { applied, commit });
    }
    if commit > last {
        return Err(StartFault::CommitBehindLast { commit, last });
    }
    if first > applied + 1 {
        return Err(StartFault::GapBehindApplied { applied, first });
    }
    let Some(last_term) = log.term_at(last).filter(|_| log.term_at(first - 1).is_some()) else {
        return Err(StartFault::TermsUnreadable { first, last });
    };
    if hard_state.term < last_term {
        return Err(StartFault::TermBehindEntries { term: hard_state.term, last_term });
    }
    let mut ids: Vec<u64> = configuration.voters.iter().chain(&configuration.learners).copied().collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    if configuration.voters.is_empty() || ids.len() != count || ids.contains(&0) || member == 0 {
        return Err(StartFault::BadConfiguration);
    }
    Ok(())
}
