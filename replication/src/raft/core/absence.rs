//! An election as soon as the leader's process is known to be gone, where the options ask for that (scenario 56 of the design).
//!
//! A process that ends takes its connections and its listener with it: its peers know within a round trip what its silence tells them an election timeout
//! later. Who is told so ([`super::Input::Absent`]) *forgets* the leader and campaigns when it is its turn, by pre-votes first.
//!
//! - Forgetting changes the library's `leader_id` and nothing else: term, vote and timer stay. Without it, loyalty to a leader that was heard of
//!   lately would refuse every pre-vote. A leader that lives undoes it by its next word.
//! - For [`TURN_TICKS`] nothing is heard of what the leader says: it was said before it went, and would undo it for one of those that elect, whose votes
//!   would then be missing in the middle of an election.
//! - One that alone is told gets no pre-votes, since the others hear the leader: no term grows.
//! - Two that campaign at once take each other's votes. So voters have turns in the order of their ids, [`TURN_TICKS`] apart; and who has its turn asks
//!   again at every tick, because one that has not been told yet does not answer.
//! - When a term has begun, whoever began it, all of this is over: the rest is the timers' business.
//!
//! **Why off unless asked for.** Nothing in here needs voters to stay loyal to a leader for a time; a lease by loyalty would, and who adds one must know.
use super::{Core, Role};
use crate::raft::input::Output;
use crate::raft::planted::PlantedBug;
use raft::StateRole;

/// Between two voters' turns: more than pre-votes, votes and a write of the log take where all is well.
const TURN_TICKS: u64 = 3;

/// The leader of `term` is gone, and its place not taken yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Absence {
    term: u64,
    leader: u64,
    /// Until this tick the leader is not heard.
    deaf_until_tick: u64,
    /// Ticks from which on this member campaigns, and behind which it leaves that to the timers.
    from_tick: u64,
    until_tick: u64,
}

impl Absence {
    /// Whether it still is so, seen from `role`.
    pub(super) fn lasts(&self, role: Role) -> bool {
        role.term == self.term && role.leader == 0
    }

    /// Whether what `from` says is not heard.
    pub(super) fn is_deaf_to(&self, from: u64, tick: u64) -> bool {
        from == self.leader && tick < self.deaf_until_tick
    }
}

impl Core {
    /// Nobody is where member `id` was.
    pub(super) fn absent(&mut self, id: u64, out: &mut Vec<Output>) {
        let Role { term, role, leader } = self.role;
        if !self.options.quick_elections || role != StateRole::Follower || leader == 0 || leader != id {
            return;
        }
        let mut others = self.configuration.voters.iter().filter(|voter| **voter != id);
        // A learner elects nobody.
        let Some(turn) = others.position(|voter| *voter == self.options.member) else { return };
        let turn = if self.options.planted.has(PlantedBug::AllTurnsAtOnce) { 0 } else { turn as u64 };
        self.node.raft.leader_id = raft::INVALID_ID;
        self.absence = Some(Absence {
            term,
            leader,
            deaf_until_tick: self.tick + TURN_TICKS,
            from_tick: self.tick + turn * TURN_TICKS,
            until_tick: self.tick + self.options.election_ticks as u64,
        });
        self.settle(out);
        self.campaign_in_turn(out);
    }

    /// Asks for votes, if the leader is gone and it is this member's turn. Not with a disk on which a vote would hang.
    pub(super) fn campaign_in_turn(&mut self, out: &mut Vec<Output>) {
        let Some(Absence { from_tick, until_tick, .. }) = self.absence else { return };
        if self.tick > until_tick {
            self.absence = None;
        } else if self.tick >= from_tick && !self.is_disk_slow() && self.has_room {
            if self.options.planted.has(PlantedBug::QuickWithoutPreVote) {
                self.node.raft.pre_vote = false;
            }
            // It fails where a change of the members is not applied yet; then the timers decide.
            let _ = self.node.campaign();
            self.node.raft.pre_vote = true;
            self.settle(out);
        }
    }
}
