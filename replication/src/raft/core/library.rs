//! What the library has ready, taken out of it after every call: writes, messages, read states, committed entries; and what waits until something
//! is durable.
//!
//! D1 and D2 of [`super`] are kept here, and rules 1, 7 and R18.
use super::{Core, Outstanding, Role};
use crate::raft::frame::Body;
use crate::raft::input::Output;
use crate::raft::planted::PlantedBug;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use sternpost_engine::base::rng::Rng;

impl Core {
    /// After every call into the library, before anything else.
    pub(super) fn settle(&mut self, out: &mut Vec<Output>) {
        self.note_role(out);
        self.drain(out);
    }

    /// Rule 1: the library draws its timeouts from a generator of its own; ours overrule them, always. Seed, member, term and
    /// the number of changes seen make the timeout, so a run is a function of its seed.
    pub(super) fn draw_timeout(&mut self) {
        let Role { term, .. } = self.role;
        let mut rng = Rng::new(
            self.options.seed
                ^ self.options.member.wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ term.wrapping_mul(0xBF58_476D_1CE4_E5B9)
                ^ self.draws.wrapping_mul(0x94D0_49BB_1331_11EB),
        );
        let ticks = self.options.election_ticks;
        let timeout = ticks + (rng.next_u64() % ticks as u64) as usize;
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    pub(super) fn note_role(&mut self, out: &mut Vec<Output>) {
        let raft = &self.node.raft;
        let role = Role { term: raft.term, role: raft.state, leader: raft.leader_id };
        assert!(
            role.term >= self.role.term,
            "the term does not go back, from {} to {}",
            self.role.term,
            role.term
        );
        if role != self.role {
            self.draws += 1;
            if role.leader != self.role.leader {
                self.leader_election_ms = 0;
            }
            self.role = role;
            self.proved_term = None;
            self.absence = self.absence.filter(|absence| absence.lasts(role));
            if role.is_leader() {
                self.proposals.lead(role.term);
                self.peers.values_mut().for_each(|peer| peer.needs_snapshot = false);
            }
            if self.options.planted.has(PlantedBug::ReproposeUnproved) && role.leader != 0 {
                self.proposals.wait_again_unproved();
            }
            self.reads.role_changed();
            out.push(Output::Role(role));
        }
        self.draw_timeout();
    }

    /// Takes everything out of the library that it has ready, and lets go of what is durable.
    pub(super) fn drain(&mut self, out: &mut Vec<Output>) {
        loop {
            while self.node.has_ready() {
                self.take_ready(out);
            }
            if !self.release(out) {
                break;
            }
        }
    }

    pub(super) fn take_ready(&mut self, out: &mut Vec<Output>) {
        let planted = self.options.planted;
        let mut ready = self.node.ready();
        let number = ready.number();
        assert!(ready.snapshot().is_empty(), "rule 12: no snapshot was stepped");
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
        }
        let changes_vote =
            (self.hard_state.term, self.hard_state.vote) != (self.written.term, self.written.vote);
        let entries = ready.take_entries();
        let read_states = ready.take_read_states();
        let committed = ready.take_committed_entries();
        let messages = ready.take_messages();
        let waiting = ready.take_persisted_messages();
        // Rule 7: readable before it is said to be taken over.
        self.node.mut_store().append(&entries);
        let writes = if !entries.is_empty() || changes_vote { self.split_write(entries) } else { Vec::new() };
        let first_number = self.persist_number + 1;
        self.persist_number += writes.len() as u64;
        let persist = (!writes.is_empty()).then_some(self.persist_number);
        self.outstanding.push_back(Outstanding {
            ready: Some(number),
            persist,
            changes_vote,
            messages: Vec::new(),
            held: Vec::new(),
        });
        // D1: in a term, or by a vote, that is not durable nothing is said.
        let is_vote_durable = !self.outstanding.iter().any(|outstanding| outstanding.changes_vote);
        let is_early = |message: &Message| {
            planted.has(PlantedBug::AcknowledgeEarly)
                || is_vote_durable
                    && matches!(
                        message.get_msg_type(),
                        // R18: these promise nothing that a disk could lose.
                        MessageType::MsgHeartbeatResponse
                            | MessageType::MsgRequestPreVote
                            | MessageType::MsgRequestPreVoteResponse
                    )
        };
        let mut held = Vec::new();
        for message in messages {
            // A leader sends while it writes (thesis 10.2.1).
            if is_vote_durable { self.send_message(message, out) } else { held.push(message) }
        }
        for message in waiting {
            if is_early(&message) { self.send_message(message, out) } else { held.push(message) }
        }
        if let Some(outstanding) = self.outstanding.back_mut() {
            outstanding.messages = held;
        }
        for (number, (mut hard_state, entries)) in (first_number..).zip(writes) {
            if let Some(hard_state) = &mut hard_state {
                self.written_commits.push_back((number, hard_state.commit));
                if planted.has(PlantedBug::ForgetVote) {
                    hard_state.vote = 0;
                }
            }
            if planted.has(PlantedBug::ApplyUncommitted) && !entries.is_empty() {
                out.push(Output::Apply(entries.clone()));
            }
            out.push(Output::Persist { number, hard_state, entries });
        }
        for state in read_states {
            self.round_done(&state.request_ctx, state.index, out);
        }
        self.hand_over(committed, out);
        self.node.advance_append_async(ready);
    }

    /// What is to be written for `entries`, in order: a hard state stands before them, as a term must before its first entry, so it
    /// commits none of them.
    ///
    /// R8: a change is proposed when the one before is applied, so who has it in the log knows that the one before is committed; and does
    /// not campaign before it has applied that. This must outlive a crash: members that are two changes apart elect two leaders in one term.
    /// So a change has a hard state before it that commits the one before, also within the entries of one message.
    fn split_write(&mut self, mut entries: Vec<Entry>) -> Vec<(Option<HardState>, Vec<Entry>)> {
        let mut writes = Vec::new();
        loop {
            let mut hard_state = (self.hard_state != self.written).then(|| self.hard_state.clone());
            if let Some(hard_state) = &mut hard_state {
                if let Some(first) = entries.first() {
                    hard_state.commit = hard_state.commit.min(first.index - 1);
                }
                self.written = hard_state.clone();
            }
            let (written, known) = (self.written.commit, self.hard_state.commit);
            let needs_more = |entry: &Entry| {
                entry.get_entry_type() != EntryType::EntryNormal && known.min(entry.index - 1) > written
            };
            let at = entries.iter().skip(1).position(needs_more);
            let at = at.filter(|_| !self.options.planted.has(PlantedBug::ChangesInOneWrite));
            let rest = at.map(|at| entries.split_off(at + 1));
            writes.push((hard_state, entries));
            match rest {
                Some(rest) => entries = rest,
                None => return writes,
            }
        }
    }

    pub(super) fn send_message(&self, message: Message, out: &mut Vec<Output>) {
        debug_assert_ne!(message.get_msg_type(), MessageType::MsgSnapshot, "rule 12");
        self.send(message.to, Body::Raft(Box::new(message)), out);
    }

    pub(super) fn durable(&mut self, number: u64, out: &mut Vec<Output>) {
        assert!(
            number <= self.persist_number,
            "D2: write {number} is durable, {} were made",
            self.persist_number
        );
        assert!(number >= self.durable_number, "D2: write {number} is durable after {}", self.durable_number);
        self.durable_number = number;
        while let Some((_, commit)) = self.written_commits.pop_front_if(|(written, _)| *written <= number) {
            self.durable_commit = commit;
        }
        self.drain(out);
    }

    /// Lets go of what waits for nothing any more; true if there was something.
    pub(super) fn release(&mut self, out: &mut Vec<Output>) -> bool {
        let (mut last, mut messages, mut held) = (None, Vec::new(), Vec::new());
        let durable = self.durable_number;
        let is_durable =
            |outstanding: &mut Outstanding| outstanding.persist.is_none_or(|number| number <= durable);
        while let Some(outstanding) = self.outstanding.pop_front_if(is_durable) {
            last = outstanding.ready.or(last);
            messages.extend(outstanding.messages);
            held.extend(outstanding.held);
        }
        for message in messages {
            self.send_message(message, out);
        }
        let is_something = last.is_some() || !held.is_empty();
        if !held.is_empty() {
            self.give(held, out);
        }
        if let Some(number) = last {
            self.node.on_persist_ready(number);
            self.note_role(out);
        }
        is_something
    }
}
