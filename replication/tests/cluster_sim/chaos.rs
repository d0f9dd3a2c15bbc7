//! What is done to a cluster: clients that write and read, changes of its members, faults, and their end.
use super::*;

impl World {
    pub(super) fn client(&mut self) -> Result<(), String> {
        let pause_us = 500 + self.below(if self.healed { 80_000 } else { 9_000 });
        if self.now_us < CHAOS_US + 1_500_000 {
            self.at(pause_us, Event::Client);
        }
        let member = self.below(self.members.len() as u64) as usize;
        if self.members[member].core.is_none() || self.members[member].frozen_until_us > self.now_us {
            return Ok(());
        }
        let incarnation = self.members[member].incarnation;
        let id = self.next_id;
        self.next_id += 1;
        if self.below(3) == 0 {
            let token = READ | id;
            self.checker.begins(token);
            self.open.insert(token, (member, incarnation));
            return self.input(member, Input::Read { token });
        }
        let write = Write { id, register: self.below(crate::member::REGISTERS as u64) as usize };
        self.writes.insert(id, write);
        self.checker.begins(id);
        self.open.insert(id, (member, incarnation));
        let command = Bytes::from(write.encode());
        self.input(
            member,
            Input::Propose(vec![Proposal { id, is_privileged: false, only_term: None, command }]),
        )
    }

    /// Somebody wants to change the members, sometimes two at once.
    pub(super) fn change(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        let pause_us_max = if self.faults.many_changes { 100_000 } else { 600_000 };
        let pause_us = if self.below(4) == 0 { self.below(3_000) } else { 5_000 + self.below(pause_us_max) };
        self.at(pause_us, Event::Change);
        self.propose_change()
    }

    /// A change that is possible, mostly, as the leader knows its members, or a random member does.
    pub(super) fn propose_change(&mut self) -> Result<(), String> {
        let leads = |member: &Member| member.core.as_ref().is_some_and(|core| core.status().role.is_leader());
        let leader = self.members.iter().position(leads);
        let random = self.below(self.members.len() as u64) as usize;
        let member = leader.filter(|_| !self.rng.next_u64().is_multiple_of(4)).unwrap_or(random);
        let here = &self.members[member];
        let Some(status) = here.core.as_ref().map(|core| core.status()) else { return Ok(()) };
        if here.frozen_until_us > self.now_us {
            return Ok(());
        }
        let caught_up = |id: &&u64| {
            status
                .peers
                .iter()
                .any(|peer| peer.id == **id && peer.matched + 10 > status.last && peer.is_active)
        };
        let promotable = status.learners.iter().find(caught_up).copied();
        let learners = status.learners.len();
        let of = |list: &[u64], random: u64| list[(random % list.len() as u64) as usize];
        let random = self.rng.next_u64();
        let change = match self.below(8) {
            0 | 1 if learners < LEARNERS_MAX => MemberChange::AddLearner(self.new_member()),
            2..=4 if promotable.is_some() && status.voters.len() < VOTERS_MAX => {
                MemberChange::AddVoter(promotable.unwrap_or(NOBODY))
            }
            4 | 5 if status.voters.len() > 1 => MemberChange::Remove(of(&status.voters, random)),
            6 if learners > 0 && random.is_multiple_of(3) => {
                MemberChange::Remove(of(&status.learners, random))
            }
            // What makes no sense: everybody refuses it.
            7 if random.is_multiple_of(4) => MemberChange::Remove(NOBODY),
            7 if random.is_multiple_of(3) => MemberChange::AddVoter(of(&status.voters, random)),
            7 if random.is_multiple_of(2) => MemberChange::AddLearner(of(&status.voters, random)),
            _ => return Ok(()),
        };
        let id = CHANGE | self.next_id;
        self.next_id += 1;
        let context = Bytes::from(id.to_le_bytes().to_vec());
        self.input(
            member,
            Input::ProposeChange { id, change: configuration::encode_change(change), context },
        )?;
        Ok(())
    }

    pub(super) fn new_member(&mut self) -> u64 {
        self.next_member += 11;
        self.next_member - 11
    }

    pub(super) fn fault(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        let pause_us = 50_000 + self.below(700_000);
        self.at(pause_us, Event::Fault);
        let count = self.members.len() as u64;
        let member = self.below(count) as usize;
        let other = self.below(count) as usize;
        match self.below(10) {
            0 if self.faults.crashes => self.crash(member),
            1 if self.faults.power_losses => {
                for member in 0..self.members.len() {
                    if self.members[member].core.is_some() {
                        self.crash(member);
                    }
                }
            }
            2 if self.faults.partitions => {
                for peer in (0..self.members.len()).filter(|peer| *peer != member) {
                    self.cut.insert((member, peer));
                    self.cut.insert((peer, member));
                }
            }
            3 if self.faults.one_way && member != other => {
                self.cut.insert((member, other));
            }
            4 if self.faults.bridges => {
                // All see only `member`.
                for (one, two) in (0..self.members.len()).flat_map(|one| (0..one).map(move |two| (one, two)))
                {
                    if one != member && two != member {
                        self.cut.insert((one, two));
                        self.cut.insert((two, one));
                    }
                }
            }
            5 if self.faults.stalls => {
                self.members[member].stalled_until_us = self.now_us + 50_000 + self.below(900_000);
            }
            6 if self.faults.freezes => {
                self.members[member].frozen_until_us = self.now_us + 50_000 + self.below(900_000);
            }
            8 if self.faults.deposed => {
                let leads =
                    |member: &Member| member.core.as_ref().is_some_and(|core| core.status().role.is_leader());
                let Some(member) = self.members.iter().position(leads) else { return Ok(()) };
                for peer in (0..self.members.len()).filter(|peer| *peer != member) {
                    self.cut.insert((member, peer));
                    self.cut.insert((peer, member));
                }
                self.members[member].frozen_until_us = self.now_us + 200_000 + self.below(500_000);
            }
            7 if self.faults.transfers => {
                let to = if self.below(2) == 0 { 0 } else { self.members[other].id };
                for member in 0..self.members.len() {
                    self.input(member, Input::TransferLeader { to })?;
                }
            }
            _ => {
                self.cut.clear();
                // Connections are made anew: lanes say so.
                let ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
                for (member, id) in (0..ids.len()).flat_map(|member| ids.iter().map(move |id| (member, *id)))
                {
                    if self.members[member].id != id && self.members[member].frozen_until_us <= self.now_us {
                        self.input(member, Input::Unreachable { id })?;
                        self.input(member, Input::Connected { id })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// All others find nobody where `of` was, or one of them does, in a while.
    pub(super) fn seems_gone(&mut self, of: usize, to_one: bool) {
        let count = self.members.len() as u64;
        let Some(alarms) = &mut self.alarms else { return };
        let one = alarms.below(count) as usize;
        let told: Vec<(usize, u64)> = (0..self.members.len())
            .filter(|member| *member != of && (!to_one || *member == one))
            .map(|member| (member, 100 + alarms.below(3_000)))
            .collect();
        for (member, delay_us) in told {
            self.at(delay_us, Event::Absent { member, of });
        }
    }

    /// A leader that lives seems gone.
    pub(super) fn alarm(&mut self) {
        let Some(alarms) = &mut self.alarms else { return };
        if self.healed {
            return;
        }
        let (pause_us, to_one) = (50_000 + alarms.below(900_000), alarms.chance(1, 2));
        self.at(pause_us, Event::Alarm);
        let leads = |member: &Member| member.core.as_ref().is_some_and(|core| core.status().role.is_leader());
        if let Some(leader) = self.members.iter().position(leads) {
            self.seems_gone(leader, to_one);
        }
    }

    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.healed = true;
        self.cut.clear();
        for member in 0..self.members.len() {
            self.members[member].frozen_until_us = 0;
            self.members[member].stalled_until_us = 0;
            if self.members[member].core.is_none() {
                self.start(member)?;
            }
        }
        Ok(())
    }
}
