//! Committed entries: to the state machine in order, and what it says of them.
//!
//! D3 of [`super`] is kept here, and R1, R7, R8 and R14 as far as they are about applied entries.
use super::{Core, Outstanding, sorted};
use crate::entry_format::decode_entry;
use crate::raft::configuration;
use crate::raft::input::Output;
use crate::raft::planted::PlantedBug;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};
use raft_proto::decode_conf_change;

impl Core {
    /// Committed entries, which the library gives only when they are durable here (rule 5).
    pub(super) fn hand_over(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) {
        let mut now = Vec::new();
        for entry in entries {
            assert_eq!(entry.index, self.handed + 1, "D3: entries are handed over in order, each once");
            self.handed = entry.index;
            self.decide(&entry);
            let is_change = entry.get_entry_type() != EntryType::EntryNormal;
            if is_change {
                // Our own encoding, or the library's empty one: what does not decode was never proposed by this build.
                let change = decode_conf_change(&entry).unwrap_or_default();
                self.changes.push_back((entry.index, change));
            }
            if let Some(waiting) =
                self.outstanding.iter_mut().rfind(|outstanding| !outstanding.held.is_empty())
            {
                waiting.held.push(entry);
            } else if is_change && self.durable_commit < entry.index {
                // R1: a restart must not find a configuration newer than its commit index.
                self.persist_number += 1;
                let number = self.persist_number;
                self.written = self.hard_state.clone();
                self.written_commits.push_back((number, self.written.commit));
                out.push(Output::Persist {
                    number,
                    hard_state: Some(self.written.clone()),
                    entries: Vec::new(),
                });
                self.outstanding.push_back(Outstanding {
                    ready: None,
                    persist: Some(number),
                    changes_vote: false,
                    messages: Vec::new(),
                    held: vec![entry],
                });
            } else {
                now.push(entry);
            }
        }
        self.give(now, out);
    }

    pub(super) fn give(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) {
        if !entries.is_empty() && !self.options.planted.has(PlantedBug::ApplyUncommitted) {
            out.push(Output::Apply(entries));
        }
    }

    /// R14: what a committed entry says of the proposals that are open here.
    pub(super) fn decide(&mut self, entry: &Entry) {
        let commands = match entry.get_entry_type() {
            EntryType::EntryNormal if !entry.data.is_empty() && self.proposals.open_count() > 0 => {
                decode_entry(&entry.data).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let command_id = self.options.command_id;
        self.proposals.committed(entry.term, commands.into_iter().filter_map(command_id));
    }

    pub(super) fn applied(&mut self, index: u64, accepted: Option<bool>, out: &mut Vec<Output>) {
        assert!(index >= self.applied, "D3: applied goes from {} to {index}", self.applied);
        let bounds = &self.node.raft.raft_log;
        let index = if self.options.planted.has(PlantedBug::ApplyUncommitted) {
            index.min(bounds.committed.min(bounds.persisted)).max(self.applied)
        } else {
            assert!(index <= self.handed, "D3: {index} is applied, {} was handed over", self.handed);
            index
        };
        if let Some((_, change)) = self.changes.pop_front_if(|(at, _)| *at <= index) {
            let accepted = accepted.unwrap_or_else(|| panic!("R8: the change at {index} has no verdict"));
            if accepted {
                self.apply_change(&change);
            }
        }
        assert!(self.changes.front().is_none_or(|(at, _)| *at > index), "R8: a change is confirmed alone");
        self.applied = index;
        self.node.advance_apply_to(index);
        self.node.mut_store().shrink(index);
        if self.role.is_leader()
            && self.proved_term.is_none()
            && self.node.store().term_at(index) == Some(self.role.term)
        {
            self.proved_term = Some(self.role.term);
            out.push(Output::LeaderProved { term: self.role.term });
        }
        self.settle(out);
    }

    pub(super) fn apply_change(&mut self, change: &ConfChangeV2) {
        // A change that makes no sense was refused on every member: they have the same configuration.
        let Some(change_of_one) = configuration::decode_change(change) else { return };
        let Some(expected) = configuration::after(&self.configuration, change_of_one) else { return };
        let configuration = self.node.apply_conf_change(change).map(sorted);
        assert_eq!(configuration.as_ref().ok(), Some(&expected), "R9: the library and the record agree");
        self.configuration = expected;
        let configuration = &self.configuration;
        self.peers.retain(|id, _| configuration.voters.contains(id) || configuration.learners.contains(id));
        let is_member = self.configuration.voters.contains(&self.options.member)
            || self.configuration.voters_outgoing.contains(&self.options.member);
        let stays = self.options.planted.has(PlantedBug::RemovedLeads);
        if !is_member && self.node.raft.state == StateRole::Leader && !stays {
            // R7 (rule 9): before any other call, else the library looks for its own progress and finds none.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
    }
}
