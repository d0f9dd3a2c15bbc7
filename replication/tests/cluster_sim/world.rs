//! A cluster in one thread: members, disks, network and clocks, all from one seed.
use super::checker::Checker;
use super::member::{DiskWrite, Member, Place, Record, Write, command_id, mix};
use bytes::Bytes;
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_replication::raft::{CoreOptions, Frame, Input, Output, Planted, Proposal, Refusal};

const TICK_US: u64 = 10_000;
const ELECTION_TICKS: usize = 15;
/// How long things go wrong, and how long everything may take to be well again.
const CHAOS_US: u64 = 6_000_000;
const HEALING_US: u64 = 12_000_000;
/// Tokens of reads, told from ids of writes.
const READ: u64 = 1 << 63;

/// What may go wrong in a run; a seed picks some (swarm testing).
#[derive(Clone, Copy, Debug)]
struct Faults {
    crashes: bool,
    power_losses: bool,
    partitions: bool,
    one_way: bool,
    bridges: bool,
    stalls: bool,
    freezes: bool,
    /// In a thousand.
    loss: u64,
    duplication: u64,
    late: u64,
    /// In a thousand: a copy arrives much later, as from an old connection.
    late_copies: u64,
    transfers: bool,
    /// The leader is stopped and cut off at once: it wakes up deposed, and does not know.
    deposed: bool,
}

#[derive(Debug)]
enum Event {
    Tick { member: usize, incarnation: u64 },
    Deliver { to: usize, frame: Bytes },
    DiskDone { member: usize, incarnation: u64 },
    Apply { member: usize, incarnation: u64 },
    Loaded { member: usize, incarnation: u64, low: u64, high: u64 },
    Client,
    Fault,
    Restart { member: usize },
}

/// One run.
pub struct World {
    rng: Rng,
    now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_count: u64,
    members: Vec<Member>,
    voters: Vec<u64>,
    options: CoreOptions,
    faults: Faults,
    /// Directed links that carry nothing.
    cut: BTreeSet<(usize, usize)>,
    checker: Checker,
    next_id: u64,
    /// Write → who took it.
    open: BTreeMap<u64, (usize, u64)>,
    writes: BTreeMap<u64, Write>,
    healed: bool,
    /// Of everything that came out of the cores.
    pub digest: u64,
    pub stats: Stats,
}

/// How often what happened: a run in which nothing happens shows nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    pub events: u64,
    pub leaders: u64,
    pub writes: u64,
    pub reads: u64,
    pub crashes: u64,
    pub loads: u64,
}

impl World {
    pub fn new(seed: u64, planted: Planted) -> Self {
        let mut rng = Rng::new(seed);
        let members_count = if rng.next_u64().is_multiple_of(4) { 5 } else { 3 };
        let mut one_of = |of: u64| rng.next_u64().is_multiple_of(of);
        let faults = Faults {
            crashes: one_of(2),
            power_losses: one_of(3),
            partitions: one_of(2),
            one_way: one_of(3),
            bridges: one_of(3),
            stalls: one_of(3),
            freezes: one_of(3),
            loss: if one_of(2) { 30 } else { 0 },
            duplication: if one_of(2) { 50 } else { 0 },
            late: if one_of(2) { 20 } else { 0 },
            late_copies: if one_of(2) { 150 } else { 0 },
            transfers: one_of(3),
            deposed: one_of(2),
        };
        let voters: Vec<u64> = (1..=members_count).map(|number| number * 11).collect();
        let options = CoreOptions {
            member: 0,
            boot: 0,
            seed,
            heartbeat_ticks: 3,
            election_ticks: ELECTION_TICKS,
            tick_us: TICK_US,
            request_timeout_us: 2_000_000,
            stall_us: ELECTION_TICKS as u64 * TICK_US,
            // Small, so that followers that were away need the files.
            cache_bytes_max: 4096,
            command_id,
            planted,
        };
        let members =
            voters.iter().map(|id| Member::new(*id, TICK_US * (95 + rng.next_u64() % 11) / 100)).collect();
        Self {
            rng,
            now_us: 0,
            events: BTreeMap::new(),
            events_count: 0,
            members,
            checker: Checker::new(voters.len()),
            voters,
            options,
            faults,
            cut: BTreeSet::new(),
            next_id: 1,
            open: BTreeMap::new(),
            writes: BTreeMap::new(),
            healed: false,
            digest: 0,
            stats: Stats::default(),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn at(&mut self, delay_us: u64, event: Event) {
        self.events_count += 1;
        self.events.insert((self.now_us + delay_us, self.events_count), event);
    }

    /// Runs to the end; the error says what was violated.
    pub fn run(mut self) -> Result<(u64, Stats), String> {
        for member in 0..self.members.len() {
            self.start(member)?;
        }
        self.at(200_000, Event::Client);
        self.at(300_000, Event::Fault);
        while self.now_us < CHAOS_US {
            self.step()?;
        }
        self.heal()?;
        let healed_us = self.now_us;
        let mut is_well = false;
        while self.now_us < healed_us + HEALING_US && !is_well {
            self.step()?;
            is_well = self.is_well();
        }
        if !is_well {
            return Err(format!(
                "liveness: {} s after everything was healed: {}",
                HEALING_US / 1_000_000,
                self.describe()
            ));
        }
        self.stats.writes = self.checker.writes_acknowledged;
        self.stats.reads = self.checker.reads_answered;
        self.stats.leaders = self.checker.leaders_count;
        Ok((self.digest, self.stats))
    }

    fn describe(&self) -> String {
        let mut text = format!("{} operations open", self.open.len());
        for member in &self.members {
            text += &format!(
                "; member {} applied {}: {:?}",
                member.id,
                member.machine.applied,
                member.core.as_ref().map(|core| core.status())
            );
        }
        text
    }

    /// A leader, everybody has everything and the same, nobody waits.
    fn is_well(&self) -> bool {
        let last = self.checker.last();
        let leads =
            |member: &&Member| member.core.as_ref().is_some_and(|core| core.status().proved_term.is_some());
        self.open.is_empty()
            && self.members.iter().filter(leads).count() == 1
            && self.members.iter().all(|member| {
                member.machine.applied == last && member.machine.digest == self.members[0].machine.digest
            })
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, number), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".into());
        };
        self.now_us = at;
        self.stats.events += 1;
        self.digest = mix(self.digest, at ^ number << 40);
        // A member that is stopped does everything later.
        let whose = match &event {
            Event::Tick { member, .. }
            | Event::Deliver { to: member, .. }
            | Event::DiskDone { member, .. }
            | Event::Apply { member, .. }
            | Event::Loaded { member, .. } => Some(*member),
            _ => None,
        };
        if let Some(member) = whose
            && self.members[member].frozen_until_us > at
        {
            self.events.insert((self.members[member].frozen_until_us, number), event);
            return Ok(());
        }
        match event {
            Event::Tick { member, incarnation } => {
                if !self.lives(member, incarnation) {
                    return Ok(());
                }
                let tick_us = self.members[member].tick_us;
                self.at(tick_us, Event::Tick { member, incarnation });
                let here = &self.members[member];
                let write_age_us = here.disk.oldest_us(at, &here.submitted_us);
                self.input(member, Input::Tick { write_age_us })?;
                if self.below(200) == 0 {
                    // A checkpoint, whole and at once; what it holds was durable when it was applied.
                    self.members[member].checkpoint = self.members[member].machine.clone();
                }
                Ok(())
            }
            Event::Deliver { to, frame } => {
                if self.members[to].core.is_none() {
                    return Ok(());
                }
                let frame = Frame::decode(frame).map_err(|error| error.to_string())?;
                self.input(to, Input::Frame(frame))
            }
            Event::DiskDone { member, incarnation } => {
                if !self.lives(member, incarnation) {
                    return Ok(());
                }
                let stalled = self.members[member].stalled_until_us;
                if stalled > at {
                    self.events.insert((stalled, number), event);
                    return Ok(());
                }
                let here = &mut self.members[member];
                here.submitted_us.pop_front();
                let Some((write, entries)) = here.disk.complete() else { return Ok(()) };
                self.checker.durable(&self.members[member], &entries)?;
                self.input(member, Input::Durable { number: write })?;
                // Right behind a vote is where one that was not written would show.
                let is_vote = entries.is_empty();
                if is_vote && self.faults.crashes && !self.healed && self.below(2) == 0 {
                    self.crash(member);
                }
                Ok(())
            }
            Event::Apply { member, incarnation } => self.apply(member, incarnation),
            Event::Loaded { member, incarnation, low, high } => {
                if !self.lives(member, incarnation) {
                    return Ok(());
                }
                self.stats.loads += 1;
                let most = 1 + self.below(5) as usize;
                let log = &self.members[member].disk.log;
                let entries = log.range(low..high).take(most).map(|(_, entry)| entry.clone()).collect();
                self.input(member, Input::Loaded { low, entries })
            }
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::Restart { member } => {
                if self.members[member].core.is_none() {
                    self.start(member)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn lives(&self, member: usize, incarnation: u64) -> bool {
        self.members[member].core.is_some() && self.members[member].incarnation == incarnation
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        let mut options = self.options.clone();
        options.member = self.members[member].id;
        let voters = self.voters.clone();
        let applied = self.members[member].start(options, &voters)?;
        let id = self.members[member].id;
        for entry in &applied {
            self.checker.committed(id, entry, &self.members)?;
        }
        let incarnation = self.members[member].incarnation;
        let delay_us = self.below(TICK_US);
        self.at(delay_us, Event::Tick { member, incarnation });
        Ok(())
    }

    fn crash(&mut self, member: usize) {
        self.stats.crashes += 1;
        let here = &mut self.members[member];
        here.core = None;
        here.frozen_until_us = 0;
        let records = here.disk.pending_records() as u64;
        let kept = self.rng.next_u64() % (records + 1);
        here.disk.crash(kept as usize);
        // Its clients hear nothing any more.
        self.open.retain(|_, (taken_by, _)| *taken_by != member);
        let delay_us =
            if self.below(2) == 0 { 1_000 + self.below(9_000) } else { 50_000 + self.below(1_500_000) };
        self.at(delay_us, Event::Restart { member });
    }

    fn input(&mut self, member: usize, input: Input) -> Result<(), String> {
        let Some(core) = &mut self.members[member].core else { return Ok(()) };
        let mut outputs = Vec::new();
        core.handle(self.now_us, input, &mut outputs);
        for output in outputs {
            self.output(member, output)?;
        }
        Ok(())
    }

    fn output(&mut self, member: usize, output: Output) -> Result<(), String> {
        let incarnation = self.members[member].incarnation;
        let id = self.members[member].id;
        match output {
            Output::Persist { number, entries, hard_state } => {
                self.digest = mix(self.digest, number);
                let records = hard_state
                    .into_iter()
                    .map(Record::HardState)
                    .chain(entries.into_iter().map(Record::Entry))
                    .collect();
                let delay_us = 300 + self.below(2_000);
                let here = &mut self.members[member];
                here.disk.pending.push_back(DiskWrite { number, records });
                here.submitted_us.push_back(self.now_us);
                let done_us = (self.now_us + delay_us).max(here.disk.busy_until_us + 1);
                here.disk.busy_until_us = done_us;
                self.at(done_us - self.now_us, Event::DiskDone { member, incarnation });
            }
            Output::Send(frame) => {
                let to =
                    self.voters.iter().position(|voter| *voter == frame.to).ok_or("a frame to nobody")?;
                let bytes = frame.encode();
                self.digest = mix(self.digest, frame.to ^ bytes.len() as u64);
                self.send(member, to, bytes)?;
            }
            Output::Apply(entries) => {
                for entry in &entries {
                    self.checker.committed(id, entry, &self.members)?;
                }
                let was_idle = self.members[member].unapplied.is_empty();
                self.members[member].unapplied.extend(entries);
                if was_idle {
                    let delay_us = self.below(1_000);
                    self.at(delay_us, Event::Apply { member, incarnation });
                }
            }
            Output::ReadAt { tokens, .. } => {
                let registers: [Place; super::member::REGISTERS] = self.members[member].machine.registers;
                for token in tokens {
                    self.open.remove(&token);
                    self.checker.read_told(token, id, &registers)?;
                }
            }
            Output::ReadFailed { tokens, .. } => tokens.iter().for_each(|token| {
                self.open.remove(token);
            }),
            Output::Rejected { ids, why } => {
                for id in ids {
                    self.open.remove(&id);
                    if why != Refusal::Unknown {
                        self.checker.refused(id)?;
                    }
                }
            }
            Output::Load { low, high } => {
                let delay_us = 100 + self.below(3_000);
                self.at(delay_us, Event::Loaded { member, incarnation, low, high });
            }
            Output::Role(role) => {
                self.digest = mix(self.digest, role.term ^ role.leader << 32);
                if role.is_leader() {
                    self.checker.leads(role.term, id, incarnation)?;
                }
            }
            Output::LeaderProved { .. } => {}
            Output::ChangeProposed { .. } => return Err("nobody asked for a change".into()),
            Output::NeedsSnapshot { id } => {
                return Err(format!("member {id} needs a snapshot, and no log was cut"));
            }
            Output::Quarantined(quarantine) => {
                return Err(format!("member {id} is quarantined: {quarantine}"));
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, bytes: Bytes) -> Result<(), String> {
        if self.cut.contains(&(from, to)) || !self.healed && self.below(1000) < self.faults.loss {
            // Sometimes the sender learns of it; when, is another event's business.
            return Ok(());
        }
        let copies = if !self.healed && self.below(1000) < self.faults.duplication { 2 } else { 1 };
        for _ in 0..copies {
            let mut delay_us = 150 + self.below(500);
            if !self.healed && self.below(1000) < self.faults.late {
                delay_us += self.below(400_000);
            }
            self.at(delay_us, Event::Deliver { to, frame: bytes.clone() });
        }
        let asks_vote =
            bytes.get(24).is_some_and(|kind| i32::from(*kind) == MessageType::MsgRequestVote as i32)
                && bytes.get(1) == Some(&1);
        if asks_vote && !self.healed && self.faults.late_copies > 0 {
            let delay_us = 5_000 + self.below(100_000);
            self.at(delay_us, Event::Deliver { to, frame: bytes.clone() });
        }
        if !self.healed && self.below(1000) < self.faults.late_copies {
            let delay_us = 50_000 + self.below(900_000);
            self.at(delay_us, Event::Deliver { to, frame: bytes });
        }
        Ok(())
    }

    fn apply(&mut self, member: usize, incarnation: u64) -> Result<(), String> {
        if !self.lives(member, incarnation) {
            return Ok(());
        }
        let batch = 1 + self.below(4);
        for _ in 0..batch {
            let here = &mut self.members[member];
            let Some(entry) = here.unapplied.pop_front() else { break };
            for (write, place) in here.machine.apply(&entry)? {
                if self.open.get(&write.id) == Some(&(member, incarnation)) {
                    self.open.remove(&write.id);
                    self.checker.write_told(write, place)?;
                }
            }
        }
        let index = self.members[member].machine.applied;
        self.input(member, Input::Applied { index, change: None })?;
        if !self.members[member].unapplied.is_empty() {
            let delay_us = 20 + self.below(300);
            self.at(delay_us, Event::Apply { member, incarnation });
        }
        Ok(())
    }

    fn client(&mut self) -> Result<(), String> {
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
        let write = Write { id, register: self.below(super::member::REGISTERS as u64) as usize };
        self.writes.insert(id, write);
        self.checker.begins(id);
        self.open.insert(id, (member, incarnation));
        let command = Bytes::from(write.encode());
        self.input(
            member,
            Input::Propose(vec![Proposal { id, is_privileged: false, only_term: None, command }]),
        )
    }

    fn fault(&mut self) -> Result<(), String> {
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
                let to = if self.below(2) == 0 { 0 } else { self.voters[other] };
                for member in 0..self.members.len() {
                    self.input(member, Input::TransferLeader { to })?;
                }
            }
            _ => {
                self.cut.clear();
                // Connections are made anew: lanes say so.
                let voters = self.voters.clone();
                for (member, id) in
                    (0..voters.len()).flat_map(|member| voters.iter().map(move |id| (member, *id)))
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

    fn heal(&mut self) -> Result<(), String> {
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
