//! A cluster in one thread: members, disks, network and clocks, all from one seed.
#[path = "chaos.rs"]
mod chaos;

use super::checker::Checker;
use super::member::{
    ConfState, DiskWrite, Entry, HardState, Machine, Member, MemberBug, Place, Record, Write, command_id, mix,
};
use bytes::Bytes;
use raft::StateRole;
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_replication::MemberChange;
use sternpost_replication::raft::{
    CoreOptions, Frame, Input, Output, Planted, PlantedBug, Proposal, Refusal, configuration,
};

const TICK_US: u64 = 10_000;
const ELECTION_TICKS: usize = 15;
/// How long things go wrong, and how long everything may take to be well again.
const CHAOS_US: u64 = 6_000_000;
const HEALING_US: u64 = 12_000_000;
/// Tokens of reads, told from ids of writes.
const READ: u64 = 1 << 63;
/// Ids of changes of the members.
const CHANGE: u64 = 1 << 62;
/// Voters of a group at most; learners beside them.
const VOTERS_MAX: usize = 7;
const LEARNERS_MAX: usize = 2;
/// An id that nobody ever has.
const NOBODY: u64 = 9_999;

/// A bug on purpose, in the core or in what the simulator does around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    Core(PlantedBug),
    Member(MemberBug),
}

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
    /// Candidates are heard by as few as elect them.
    rivals: bool,
    /// Members are added, promoted and removed.
    changes: bool,
    /// Often.
    many_changes: bool,
    /// Logs keep a short tail, so who was away needs the state.
    cuts: bool,
}

#[derive(Debug)]
enum Event {
    Tick {
        member: usize,
        incarnation: u64,
    },
    Deliver {
        to: usize,
        frame: Bytes,
    },
    DiskDone {
        member: usize,
        incarnation: u64,
    },
    Apply {
        member: usize,
        incarnation: u64,
    },
    Loaded {
        member: usize,
        incarnation: u64,
        low: u64,
        high: u64,
    },
    Client,
    Fault,
    Restart {
        member: usize,
    },
    /// Somebody wants to change the members.
    Change,
    /// Does this member need a state?
    Look {
        member: usize,
    },
    /// A state arrives, if neither side was restarted meanwhile.
    Fetched {
        member: usize,
        incarnation: u64,
        from: usize,
        from_incarnation: u64,
        state: Box<Machine>,
    },
    /// A removed member stops for good.
    Stop {
        member: usize,
    },
    /// A member finds nobody where this one was.
    Absent {
        member: usize,
        of: usize,
    },
    /// A leader that lives seems gone, to one or to all.
    Alarm,
}

/// One run.
pub struct World {
    rng: Rng,
    now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_count: u64,
    /// Those who are gone stay in the list.
    members: Vec<Member>,
    genesis: Machine,
    bug: Option<MemberBug>,
    /// Ids are never used twice.
    next_member: u64,
    options: CoreOptions,
    faults: Faults,
    /// Of what quick elections bring, where a run has them: a generator of its own, so that the others are what they were without it.
    alarms: Option<Rng>,
    /// Directed links that carry nothing.
    cut: BTreeSet<(usize, usize)>,
    checker: Checker,
    /// The last candidate that few heard of.
    rival: Option<u64>,
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
    /// Changes of the members made, and refused by the state machine.
    pub changes: u64,
    pub changes_refused: u64,
    /// Leaders that were removed.
    pub leaders_removed: u64,
    pub cuts: u64,
    /// States installed, of no use when they came, and cut short on the way.
    pub installs: u64,
    pub installs_useless: u64,
    pub fetches_cut_short: u64,
    /// Times that somebody was told that another one is gone.
    pub absences: u64,
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed);
        let voters_count = [1, 3, 3, 3, 3, 5][(rng.next_u64() % 6) as usize];
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
            rivals: one_of(3),
            changes: one_of(2) || voters_count == 1,
            many_changes: one_of(2),
            cuts: one_of(2),
        };
        let voters: Vec<u64> = (1..=voters_count).map(|number| number * 11).collect();
        let (planted, bug) = match bug {
            Some(Bug::Core(bug)) => (Planted::new(Some(bug)), None),
            Some(Bug::Member(bug)) => (Planted::default(), Some(bug)),
            None => (Planted::default(), None),
        };
        let genesis = Machine::genesis(&voters);
        let mut alarms = Rng::new(seed ^ 0xab5e_17ce);
        let alarms = alarms.chance(1, 3).then_some(alarms);
        let options = CoreOptions {
            member: 0,
            boot: 0,
            seed,
            heartbeat_ticks: 3,
            election_ticks: ELECTION_TICKS,
            tick_us: TICK_US,
            request_timeout_us: 2_000_000,
            stall_us: ELECTION_TICKS as u64 * TICK_US,
            quick_elections: alarms.is_some(),
            // Small, so that followers that were away need the files.
            cache_bytes_max: 4096,
            command_id,
            planted,
        };
        let mut members = Vec::new();
        for id in &voters {
            let mut member = Member::new(*id, tick_us(&mut rng), &genesis, 1);
            member.disk.begin((1, 1), HardState { term: 1, vote: 0, commit: 1 });
            members.push(member);
        }
        Self {
            rng,
            now_us: 0,
            events: BTreeMap::new(),
            events_count: 0,
            members,
            checker: Checker::new(&genesis),
            genesis,
            bug,
            next_member: (voters_count + 1) * 11,
            options,
            faults,
            alarms,
            cut: BTreeSet::new(),
            rival: None,
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
        if self.faults.changes {
            self.at(400_000, Event::Change);
        }
        if self.alarms.is_some() {
            self.at(500_000, Event::Alarm);
        }
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
        let mut text = format!(
            "{} operations open, {} committed, {:?}",
            self.open.len(),
            self.checker.last(),
            self.checker.configuration()
        );
        for member in self.members.iter().filter(|member| !member.is_gone) {
            text += &format!(
                "\n  member {} added at {}, removed at {:?}, applied {}: {:?}",
                member.id,
                member.added_at,
                member.removed_at,
                member.machine.applied,
                member.core.as_ref().map(|core| core.status())
            );
        }
        text
    }

    /// A leader, everybody who belongs to the group has everything and the same, nobody waits.
    fn is_well(&self) -> bool {
        let configuration = self.checker.configuration();
        let ids = || configuration.voters.iter().chain(&configuration.learners);
        let member_of = |id: &u64| self.members.iter().find(|member| member.id == *id);
        let leads =
            |member: &&Member| member.core.as_ref().is_some_and(|core| core.status().proved_term.is_some());
        self.open.is_empty()
            && ids().filter_map(member_of).filter(leads).count() == 1
            && ids().all(|id| {
                member_of(id)
                    .is_some_and(|member| member.core.is_some() && member.machine == *self.checker.machine())
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
            | Event::Loaded { member, .. }
            | Event::Absent { member, .. } => Some(*member),
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
                let here = &self.members[member];
                // Sooner where a suffix was overwritten that is longer than what is applied.
                let pause = if here.machine.applied < here.disk.overwritten { 4 } else { 100 };
                if self.below(pause) == 0 {
                    // A checkpoint, whole and at once; what it holds was durable when it was applied.
                    self.members[member].checkpoint = self.members[member].machine.clone();
                    return self.cut(member);
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
                let here = &mut self.members[member];
                let term = here.disk.hard_state().term;
                if let Some(led) = here.leads_alone.take_if(|led| *led <= term) {
                    let (id, incarnation) = (here.id, here.incarnation);
                    self.checker.leads(led, id, incarnation)?;
                }
                self.input(member, Input::Durable { number: write })?;
                // Right behind a vote is where one that was not written would show.
                let is_vote = entries.is_empty();
                if is_vote && !self.healed {
                    let vote = self.members[member].disk.hard_state().vote;
                    let is_rival = self.rival == Some(vote) && vote != self.members[member].id;
                    if is_rival {
                        // All others are well, and hear nothing of it.
                        let candidate = self.position(vote)?;
                        self.cut.retain(|(from, _)| *from == candidate);
                        self.cut.extend((0..self.members.len()).map(|peer| (candidate, peer)));
                        self.members.iter_mut().for_each(|other| other.frozen_until_us = 0);
                    }
                    match self.below(if is_rival { 3 } else { 4 }) {
                        0 | 1 if self.faults.crashes => self.crash(member),
                        2 if self.faults.cuts => return self.arrives_now(member),
                        _ => {}
                    }
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
            Event::Change => self.change(),
            Event::Look { member } => {
                self.look(member);
                Ok(())
            }
            Event::Fetched { member, incarnation, from, from_incarnation, state } => {
                let comes = self.members[member].incarnation == incarnation
                    && !self.members[member].is_gone
                    && self.lives(from, from_incarnation)
                    && !self.cut.contains(&(from, member));
                if comes {
                    self.install(member, *state)
                } else {
                    self.stats.fetches_cut_short += 1;
                    self.at(30_000, Event::Look { member });
                    Ok(())
                }
            }
            Event::Stop { member } => {
                self.stop(member);
                Ok(())
            }
            Event::Absent { member, of } => {
                let id = self.members[of].id;
                self.stats.absences += 1;
                self.input(member, Input::Absent { id })
            }
            Event::Alarm => {
                self.alarm();
                Ok(())
            }
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
        if self.members[member].is_gone || self.members[member].disk.is_empty() {
            return Ok(());
        }
        let mut options = self.options.clone();
        options.member = self.members[member].id;
        let applied = self.members[member].start(options, &self.genesis, self.bug)?;
        let id = self.members[member].id;
        for entry in &applied {
            self.committed(id, entry)?;
        }
        self.checker.holds(id, &self.members[member].machine)?;
        let incarnation = self.members[member].incarnation;
        let delay_us = self.below(TICK_US);
        self.at(delay_us, Event::Tick { member, incarnation });
        Ok(())
    }

    /// An entry is handed to a state machine. What it changes of the members happens in the world when the first one hears of it.
    fn committed(&mut self, by: u64, entry: &Entry) -> Result<(), String> {
        let before = self.checker.configuration();
        let Some(done) = self.checker.committed(by, entry, &self.members)? else { return Ok(()) };
        match done.change {
            None => return Ok(()),
            Some(false) => self.stats.changes_refused += 1,
            Some(true) => self.stats.changes += 1,
        }
        let after = self.checker.configuration();
        let ids = |of: &ConfState| [of.voters.clone(), of.learners.clone()].concat();
        let (before, after) = (ids(&before), ids(&after));
        for id in after.iter().filter(|id| !before.contains(id)) {
            // It has nothing, and fetches first.
            let tick_us = tick_us(&mut self.rng);
            self.members.push(Member::new(*id, tick_us, &self.genesis, entry.index));
            let member = self.members.len() - 1;
            self.members[member].is_fetching = true;
            let delay_us = self.below(100_000);
            self.at(delay_us, Event::Look { member });
        }
        for id in before.iter().filter(|id| !after.contains(id)) {
            let member = self.position(*id)?;
            self.members[member].removed_at = Some(entry.index);
            let leads = self.members[member].core.as_ref().is_some_and(|core| core.status().role.is_leader());
            self.stats.leaders_removed += u64::from(leads);
            let delay_us = self.below(1_500_000);
            let delay_us = if self.bug == Some(MemberBug::RemovedStopsAtOnce) { 0 } else { delay_us };
            self.at(delay_us, Event::Stop { member });
        }
        Ok(())
    }

    fn position(&self, id: u64) -> Result<usize, String> {
        let position = self.members.iter().position(|member| member.id == id);
        position.ok_or_else(|| format!("nobody is member {id}"))
    }

    /// A removed member stops when one of those who stay knows of its removal: of two, the other one may still need its vote to hear of it.
    fn stop(&mut self, member: usize) {
        let Some(removed_at) = self.members[member].removed_at else { return };
        let voters = self.checker.configuration().voters;
        let knows = |other: &Member| voters.contains(&other.id) && other.machine.applied >= removed_at;
        if !self.members.iter().any(knows) && self.bug != Some(MemberBug::RemovedStopsAtOnce) {
            return self.at(50_000, Event::Stop { member });
        }
        self.down(member);
        self.members[member].is_gone = true;
    }

    /// The disk drops what is older than the checkpoint, but for a short tail.
    fn cut(&mut self, member: usize) -> Result<(), String> {
        if !self.faults.cuts || self.healed || self.below(3) > 0 {
            return Ok(());
        }
        let within = self.below(2) == 0;
        let tail = self.below(if within { 3 } else { 12 }) as usize;
        let here = &mut self.members[member];
        let Some(first) = here.disk.cut(here.checkpoint.applied, tail, within) else { return Ok(()) };
        self.stats.cuts += 1;
        self.input(member, Input::FilesBeginAt { first })
    }

    /// A member that has nothing fetches a state; one that runs does if a leader says that it needs one.
    fn look(&mut self, member: usize) {
        let here = &self.members[member];
        let id = here.id;
        let says = |other: &Member| {
            let status = other.core.as_ref().map(|core| core.status());
            status.is_some_and(|status| status.peers.iter().any(|peer| peer.id == id && peer.needs_snapshot))
        };
        let needs = here.disk.is_empty() || self.members.iter().any(says);
        if here.is_gone || !needs {
            self.members[member].is_fetching = false;
            return;
        }
        let (incarnation, added_at) = (here.incarnation, here.added_at);
        let serves = |from: &usize| {
            let other = &self.members[*from];
            *from != member
                && other.core.is_some()
                && other.frozen_until_us <= self.now_us
                && other.checkpoint.applied >= added_at
        };
        let sources: Vec<usize> = (0..self.members.len()).filter(serves).collect();
        let is_up = here.core.is_some() || here.disk.is_empty();
        if sources.is_empty() || !is_up {
            return self.at(50_000, Event::Look { member });
        }
        let from = sources[self.below(sources.len() as u64) as usize];
        let from_incarnation = self.members[from].incarnation;
        let state = Box::new(self.members[from].checkpoint.clone());
        let delay_us = 5_000 + if self.below(4) == 0 { self.below(600_000) } else { self.below(60_000) };
        self.at(delay_us, Event::Fetched { member, incarnation, from, from_incarnation, state });
    }

    /// Only as many hear of this candidate as it needs, and then they hear nothing any more: somebody else wants votes in the same term.
    fn has_rivals(&mut self, member: usize) {
        let Some(status) = self.members[member].core.as_ref().map(|core| core.status()) else { return };
        self.rival = Some(self.members[member].id);
        let mut needed = status.voters.len() / 2;
        let mut peers: Vec<usize> = (0..self.members.len()).collect();
        // Those who lack most: they may need a state.
        peers.sort_by_key(|peer| self.members[*peer].disk.log.keys().next_back().copied());
        for peer in peers {
            if peer != member && needed > 0 && status.voters.contains(&self.members[peer].id) {
                needed -= 1;
                self.cut.remove(&(member, peer));
            } else {
                self.cut.insert((member, peer));
            }
        }
    }

    /// A state that was on its way, of somebody who has just made a checkpoint, is here.
    fn arrives_now(&mut self, member: usize) -> Result<(), String> {
        let applied = self.members[member].machine.applied;
        let serves = |other: &Member| other.core.is_some() && other.machine.applied > applied;
        let sources = self.members.iter_mut().filter(|other| serves(other));
        let Some(from) = sources.max_by_key(|other| other.machine.applied) else { return Ok(()) };
        from.checkpoint = from.machine.clone();
        let state = from.checkpoint.clone();
        self.install(member, state)
    }

    /// A state has arrived: checkpoint and log are replaced, and the member starts again.
    fn install(&mut self, member: usize, state: Machine) -> Result<(), String> {
        self.at(20_000, Event::Look { member });
        if !self.members[member].disk.is_empty() && state.applied <= self.members[member].machine.applied {
            // Known before anything is stopped for it.
            if self.bug != Some(MemberBug::InstallOlder) {
                self.stats.installs_useless += 1;
                return Ok(());
            }
        }
        self.down(member);
        if self.members[member].install(state, self.bug) {
            self.stats.installs += 1;
        } else {
            self.stats.installs_useless += 1;
        }
        let delay_us = 500 + self.below(20_000);
        self.at(delay_us, Event::Restart { member });
        Ok(())
    }

    /// The process ends; of what it was writing a part is on the disk.
    fn down(&mut self, member: usize) {
        let here = &mut self.members[member];
        here.core = None;
        here.frozen_until_us = 0;
        let led = here.leads_alone.take();
        let records = here.disk.pending_records() as u64;
        let kept = self.rng.next_u64() % (records + 1);
        here.disk.crash(kept as usize);
        if let Some(term) = led.filter(|term| here.disk.hard_state().term < *term) {
            self.checker.never_led(term);
        }
        // Its clients hear nothing any more.
        self.open.retain(|_, (taken_by, _)| *taken_by != member);
    }

    fn crash(&mut self, member: usize) {
        self.stats.crashes += 1;
        self.down(member);
        self.seems_gone(member, false);
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
                let to = self.position(frame.to)?;
                let bytes = frame.encode();
                self.digest = mix(self.digest, frame.to ^ bytes.len() as u64);
                self.send(member, to, bytes)?;
            }
            Output::Apply(entries) => {
                for entry in &entries {
                    self.committed(id, entry)?;
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
                if role.role == StateRole::Candidate && self.faults.rivals && !self.healed {
                    self.has_rivals(member);
                }
                let here = &mut self.members[member];
                here.leads_alone = None;
                if role.is_leader() {
                    // A lone voter leads by its own vote, which is not durable yet, and says nothing in that term before it is (D1). If a crash takes the
                    // vote, nobody knows that it led; it may lead that term again.
                    let status = here.core.as_ref().map(|core| core.status());
                    if status.is_some_and(|status| status.voters == [id]) {
                        here.leads_alone = Some(role.term);
                    } else {
                        self.checker.leads(role.term, id, incarnation)?;
                    }
                }
            }
            Output::LeaderProved { .. } => {}
            Output::ChangeProposed { id, index, term } => self.checker.proposed(id, index, term)?,
            Output::NeedsSnapshot { id } => {
                if !(self.faults.cuts || self.faults.changes) {
                    return Err(format!("member {id} needs a state, and no log was cut"));
                }
                let member = self.position(id)?;
                if !std::mem::replace(&mut self.members[member].is_fetching, true) {
                    let delay_us = 500 + self.below(20_000);
                    self.at(delay_us, Event::Look { member });
                }
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
        let mut told = self.members[member].machine.applied;
        for _ in 0..batch {
            let here = &mut self.members[member];
            let Some(entry) = here.unapplied.pop_front() else { break };
            let done = here.machine.apply(&entry)?;
            let id = here.id;
            self.checker.holds(id, &here.machine)?;
            for (write, place) in done.writes {
                if self.open.get(&write.id) == Some(&(member, incarnation)) {
                    self.open.remove(&write.id);
                    self.checker.write_told(write, place)?;
                }
            }
            if done.change.is_some() {
                // A change comes alone, with its verdict.
                if entry.index > told + 1 {
                    self.input(member, Input::Applied { index: entry.index - 1, change: None })?;
                }
                told = entry.index;
                self.input(member, Input::Applied { index: told, change: done.change })?;
                let here = &self.members[member];
                let status = here.core.as_ref().map(|core| core.status());
                let expected = here.machine.configuration();
                if status
                    .is_some_and(|now| (now.voters, now.learners) != (expected.voters, expected.learners))
                {
                    return Err(format!("R9: member {id} has another configuration than its record"));
                }
            }
        }
        let index = self.members[member].machine.applied;
        if index > told {
            self.input(member, Input::Applied { index, change: None })?;
        }
        if !self.members[member].unapplied.is_empty() {
            let delay_us = 20 + self.below(300);
            self.at(delay_us, Event::Apply { member, incarnation });
        }
        Ok(())
    }
}

/// Clocks differ.
fn tick_us(rng: &mut Rng) -> u64 {
    TICK_US * (95 + rng.next_u64() % 11) / 100
}
