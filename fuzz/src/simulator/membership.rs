//! Members that come and go: what an operator asks, and what becomes of those who are asked about.
//!
//! **Contract.** One learner at a time, which is promoted when it has caught up. A member that was removed stops when somebody who stays knows of it: of
//! two, the other one may still need its vote to learn of the removal.
//!
//! **Does not know** whether a change is made: that is the log's.
use super::calls::Call;
use super::clock::Clock;
use super::world::{Event, Member, World};
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_replication::Replicator;

/// Voters at most.
const VOTERS_MAX: usize = 5;
/// A learner is promoted when it is so near to the leader.
const LAG_MAX: u64 = 50;

impl World {
    /// An operator asks for a change, if there is a leader to ask.
    pub(super) fn wants_change(&mut self) {
        if self.is_healed {
            return;
        }
        let pause_us = 300_000 + self.below(3_000_000);
        self.after(pause_us, Event::Change);
        let leads = |member: &Member| member.running.as_ref().is_some_and(|it| it.proved_term().is_some());
        let Some(leader) = self.members.iter().position(leads) else { return };
        let Some(running) = &self.members[leader].running else { return };
        let status = running.node.raft().core_status();
        let matched = |id: u64| {
            running.node.raft().peers().iter().find(|peer| peer.id == id).map(|peer| peer.matched_index)
        };
        let call = match (status.learners.first().copied(), self.rng.below(3)) {
            (None, 0 | 1) if status.voters.len() < VOTERS_MAX => Call::AddLearner(self.next_member),
            (Some(learner), 0 | 1) => {
                if matched(learner).is_none_or(|matched| matched + LAG_MAX < status.committed) {
                    return;
                }
                Call::Promote(learner)
            }
            _ if status.voters.len() > 1 => {
                let all: Vec<u64> = status.voters.iter().chain(&status.learners).copied().collect();
                let at = self.rng.below(all.len() as u64) as usize;
                Call::Remove(all[at])
            }
            _ => return,
        };
        if matches!(call, Call::AddLearner(_)) {
            self.next_member += 11;
        }
        let operator = self.operator();
        self.ask(operator, leader, call);
    }

    /// The number under which the operator asks: no client has it.
    pub(super) fn operator(&self) -> usize {
        usize::MAX
    }

    /// A change was made for the first time: a member that is new has a machine with an empty disk.
    pub(super) fn welcome(&mut self, id: u64) {
        if self.members.iter().any(|member| member.id == id) {
            return;
        }
        self.stats.members_added += 1;
        let mut genesis = self.members[0].genesis.clone();
        genesis.member_id = id;
        let disk = SimDisk::new(self.rng.next_u64());
        disk.set_latency(self.plan.latency);
        let rate_ppm = super::world::draw_rate_ppm(&mut self.rng);
        let clock = Clock::new(self.now_us, rate_ppm);
        self.members.push(Member::new(id, genesis, disk, clock, rate_ppm));
        if let Some(member) = self.members.last_mut() {
            member.is_empty = true;
        }
    }

    /// True for a member that was removed, if somebody who stays knows.
    pub(super) fn is_to_stop(&self, member: usize) -> bool {
        let Some(removed_at) = self.oracle.removed_at(self.members[member].id) else { return false };
        let knows = |other: &Member| {
            self.oracle.is_voter(other.id)
                && other.running.as_ref().is_some_and(|it| it.store.applied().0 >= removed_at)
        };
        self.members.iter().any(knows)
    }
}
