//! One simulated member: core, disk, state machine.
use raft_proto::decode_conf_change;
use std::collections::{BTreeMap, VecDeque};
use sternpost_replication::entry_format::decode_entry;
use sternpost_replication::raft::replay::Replay;
use sternpost_replication::raft::{Core, CoreOptions, configuration};

pub use raft::eraftpb::{ConfState, Entry, HardState};

/// A bug on purpose in what the simulator does itself, and a server would have to do right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberBug {
    /// A restart begins with the configuration of the genesis.
    GenesisConfiguration,
    /// A state is installed that is older than what was applied.
    InstallOlder,
    /// A state is installed although the log holds its last entry, and more that was acknowledged.
    InstallOverLog,
    /// An install keeps the vote of a term that is lower than the state's.
    InstallKeepsLowerVote,
    /// An install forgets the vote.
    InstallForgetsVote,
    /// An install takes the state's term, also if the member's own is higher.
    InstallTakesTerm,
    /// A removed member stops for good at once.
    RemovedStopsAtOnce,
}

/// Registers that clients write and read.
pub const REGISTERS: usize = 3;

/// What one command does: sets a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    pub id: u64,
    pub register: usize,
}

impl Write {
    /// Its bytes; padded, so that caches of entries fill up.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.push(self.register as u8);
        bytes.resize(64, 0);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { id: command_id(bytes)?, register: usize::from(*bytes.get(8)?) % REGISTERS })
    }
}

pub fn command_id(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// A place in the order of all writes: index of the entry, number in it.
pub type Place = (u64, usize);

/// What an entry did.
#[derive(Default, Debug)]
pub struct Done {
    /// The writes in it, with their places.
    pub writes: Vec<(Write, Place)>,
    /// Of a change of the members: whether it was made.
    pub change: Option<bool>,
}

/// What the machine says to a change with this context: the same everywhere.
pub fn is_welcome(context: &[u8]) -> bool {
    command_id(context).is_some_and(|id| !id.is_multiple_of(5))
}

/// The state machine: where each register was written last, and who belongs to the group (R9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub applied: u64,
    /// Term of the entry at `applied`.
    pub term: u64,
    pub registers: [Place; REGISTERS],
    /// Of everything applied, in order.
    pub digest: u64,
    /// The record of the configuration.
    pub configuration: Vec<u8>,
}

impl Machine {
    /// The genesis is index 1 of term 1.
    pub fn genesis(voters: &[u64]) -> Self {
        let configuration = ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let configuration = configuration::encode(&configuration);
        Self { applied: 1, term: 1, registers: [(0, 0); REGISTERS], digest: 0, configuration }
    }

    pub fn configuration(&self) -> ConfState {
        configuration::decode(&self.configuration).expect("the record is one")
    }

    /// Applies an entry.
    pub fn apply(&mut self, entry: &Entry) -> Result<Done, String> {
        if entry.index != self.applied + 1 {
            return Err(format!("entry {} is applied after {}", entry.index, self.applied));
        }
        (self.applied, self.term) = (entry.index, entry.term);
        self.digest = mix(self.digest, entry.index ^ entry.term.rotate_left(32));
        let mut done = Done::default();
        if entry.entry_type != 0 {
            let change = decode_conf_change(entry).and_then(|change| configuration::decode_change(&change));
            let next = change.and_then(|change| configuration::after(&self.configuration(), change));
            let next = next.filter(|_| is_welcome(&entry.context));
            done.change = Some(next.is_some());
            if let Some(next) = next {
                self.configuration = configuration::encode(&next);
            }
            self.configuration.iter().for_each(|byte| self.digest = mix(self.digest, u64::from(*byte)));
            return Ok(done);
        }
        let commands = if entry.data.is_empty() {
            Vec::new()
        } else {
            decode_entry(&entry.data).map_err(|error| error.to_string())?
        };
        for (number, command) in commands.into_iter().enumerate() {
            let write = Write::decode(command).ok_or("not a command")?;
            self.registers[write.register] = (entry.index, number);
            self.digest = mix(self.digest, write.id);
            done.writes.push((write, (entry.index, number)));
        }
        Ok(done)
    }
}

pub fn mix(digest: u64, value: u64) -> u64 {
    (digest ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// A record of the log.
#[derive(Clone, Debug)]
pub enum Record {
    Entry(Entry),
    HardState(HardState),
}

/// A write on its way to the disk.
#[derive(Debug)]
pub struct DiskWrite {
    pub number: u64,
    pub records: Vec<Record>,
}

/// The log of a member: what a crash leaves, and what it may take.
#[derive(Default, Debug)]
pub struct Disk {
    /// (index, term) of the state that the log starts behind; none for an empty disk.
    mark: Option<(u64, u64)>,
    records: Vec<Record>,
    pub pending: VecDeque<DiskWrite>,
    /// When the last write will be done: they complete in order.
    pub busy_until_us: u64,
    /// The durable log by index, suffixes overwritten.
    pub log: BTreeMap<u64, Entry>,
    /// Highest index of an entry that was overwritten.
    pub overwritten: u64,
}

impl Disk {
    fn keep(&mut self, record: Record) {
        if let Record::Entry(entry) = &record {
            let overwritten = self.log.split_off(&entry.index);
            self.overwritten = overwritten.keys().next_back().copied().unwrap_or(0).max(self.overwritten);
            self.log.insert(entry.index, entry.clone());
        }
        self.records.push(record);
    }

    pub fn is_empty(&self) -> bool {
        self.mark.is_none()
    }

    /// The durable term, vote and commit index.
    pub fn hard_state(&self) -> HardState {
        let states = self.records.iter().rev().filter_map(|record| match record {
            Record::HardState(state) => Some(state.clone()),
            Record::Entry(_) => None,
        });
        states.into_iter().next().unwrap_or_default()
    }

    /// A log that holds nothing but where it begins.
    pub fn begin(&mut self, mark: (u64, u64), hard_state: HardState) {
        *self = Self { mark: Some(mark), ..Self::default() };
        self.keep(Record::HardState(hard_state));
    }

    /// Drops the oldest records, at most up to the entry at `applied`, which a checkpoint holds; at most `tail` records before it stay. The last
    /// hard state among them is repeated, as at the start of a segment. Returns the first index that can still be read.
    ///
    /// Where the rest begins is anywhere: `within` a suffix that was overwritten later, if there is one.
    pub fn cut(&mut self, applied: u64, tail: usize, within: bool) -> Option<u64> {
        let is_last = |record: &Record| matches!(record, Record::Entry(entry) if entry.index == applied);
        let last = self.records.iter().rposition(is_last)?;
        let is_overwritten = |record: &Record| matches!(record, Record::Entry(entry) if self.log.get(&entry.index).is_none_or(|held| held.term != entry.term));
        let overwritten = self.records[..last].iter().rposition(is_overwritten).filter(|_| within);
        let from = overwritten.unwrap_or(last).saturating_sub(tail);
        let mut rest = self.records.split_off(from);
        let hard_state = self.hard_state();
        std::mem::swap(&mut rest, &mut self.records);
        self.log.clear();
        let records = std::mem::take(&mut self.records);
        if from > 0 {
            self.keep(Record::HardState(hard_state));
        }
        records.into_iter().for_each(|record| self.keep(record));
        self.log.keys().next().copied()
    }

    /// The oldest write is durable; its number and entries.
    pub fn complete(&mut self) -> Option<(u64, Vec<Entry>)> {
        let write = self.pending.pop_front()?;
        let entries = write.records.iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry.clone()),
            Record::HardState(_) => None,
        });
        let entries = entries.collect();
        write.records.into_iter().for_each(|record| self.keep(record));
        Some((write.number, entries))
    }

    /// Power is lost: of what was under way, the first `kept` records are on the disk all the same.
    pub fn crash(&mut self, kept: usize) {
        let pending = std::mem::take(&mut self.pending);
        pending.into_iter().flat_map(|write| write.records).take(kept).for_each(|record| self.keep(record));
        self.busy_until_us = 0;
    }

    pub fn pending_records(&self) -> usize {
        self.pending.iter().map(|write| write.records.len()).sum()
    }

    pub fn oldest_us(&self, now_us: u64, submitted_us: &VecDeque<u64>) -> u64 {
        if self.pending.is_empty() {
            0
        } else {
            submitted_us.front().map_or(0, |at| now_us.saturating_sub(*at))
        }
    }
}

/// One member.
pub struct Member {
    pub id: u64,
    pub core: Option<Core>,
    /// Counts starts; what belongs to an earlier one is void.
    pub incarnation: u64,
    pub disk: Disk,
    pub submitted_us: VecDeque<u64>,
    pub machine: Machine,
    /// Durable; cuts of the log go up to it.
    pub checkpoint: Machine,
    /// The entry that added it; 1 for those of the genesis.
    pub added_at: u64,
    /// The entry that removed it.
    pub removed_at: Option<u64>,
    /// Stopped for good.
    pub is_gone: bool,
    /// A state is on its way, or somebody looks whether one is needed.
    pub is_fetching: bool,
    /// The term it leads by its own vote alone, until that is durable.
    pub leads_alone: Option<u64>,
    /// Entries handed to the state machine and not applied yet.
    pub unapplied: VecDeque<Entry>,
    /// Microseconds of its ticks: clocks differ.
    pub tick_us: u64,
    /// Stopped, as by SIGSTOP, until then.
    pub frozen_until_us: u64,
    /// Its disk does nothing until then.
    pub stalled_until_us: u64,
}

impl Member {
    pub fn new(id: u64, tick_us: u64, genesis: &Machine, added_at: u64) -> Self {
        Self {
            id,
            core: None,
            incarnation: 0,
            disk: Disk::default(),
            submitted_us: VecDeque::new(),
            machine: genesis.clone(),
            checkpoint: genesis.clone(),
            added_at,
            removed_at: None,
            is_gone: false,
            is_fetching: false,
            leads_alone: None,
            unapplied: VecDeque::new(),
            tick_us,
            frozen_until_us: 0,
            stalled_until_us: 0,
        }
    }

    /// True if the entry at (index, term) is on its disk, in the log or in the checkpoint.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        let is_kept = !self.disk.is_empty() && index <= self.checkpoint.applied;
        is_kept || self.disk.log.get(&index).is_some_and(|held| held.term == term)
    }

    /// Puts a fetched state in the place of checkpoint and log; false if it is of no use here.
    ///
    /// Three things must hold, else what this member promised is lost: nothing that was applied goes back; a log that holds the
    /// state's last entry stays, for what lies behind may have been acknowledged; term and vote stay.
    pub fn install(&mut self, state: Machine, bug: Option<MemberBug>) -> bool {
        let (index, term) = (state.applied, state.term);
        let is_newer = index > self.machine.applied || bug == Some(MemberBug::InstallOlder);
        let is_in_log = self.disk.log.get(&index).is_some_and(|held| held.term == term)
            && !matches!(bug, Some(MemberBug::InstallOlder | MemberBug::InstallOverLog));
        if !self.disk.is_empty() && (!is_newer || is_in_log) {
            return false;
        }
        let own = self.disk.hard_state();
        let keeps_vote = own.term >= term || bug == Some(MemberBug::InstallKeepsLowerVote);
        let forgets_vote = bug == Some(MemberBug::InstallForgetsVote);
        let own_term = if bug == Some(MemberBug::InstallTakesTerm) { 0 } else { own.term };
        let hard_state = HardState {
            term: own_term.max(term),
            vote: if keeps_vote && !forgets_vote { own.vote } else { 0 },
            commit: index,
        };
        self.disk.begin((index, term), hard_state);
        self.checkpoint = state;
        true
    }

    /// Reads checkpoint and log and makes a core. Returns what was applied on the way.
    pub fn start(
        &mut self,
        mut options: CoreOptions,
        genesis: &Machine,
        bug: Option<MemberBug>,
    ) -> Result<Vec<Entry>, String> {
        self.incarnation += 1;
        options.boot = self.id << 32 | self.incarnation;
        self.machine = self.checkpoint.clone();
        self.unapplied.clear();
        self.submitted_us.clear();
        let mark = self.disk.mark.ok_or("a member starts without a state")?;
        let mut replay = Replay::new(self.checkpoint.applied);
        replay.mark(mark.0, mark.1);
        let mut applied = Vec::new();
        for record in &self.disk.records {
            match record {
                Record::Entry(entry) => replay.entry(entry.clone()),
                Record::HardState(state) => replay.hard_state(state.term, state.vote, state.commit),
            }
            .map_err(|error| format!("member {}: replay: {error}", self.id))?;
            while let Some(entry) = replay.take_committed() {
                applied.push(entry);
            }
        }
        for entry in &applied {
            self.machine.apply(entry)?;
        }
        let of_genesis = bug == Some(MemberBug::GenesisConfiguration);
        let configuration = if of_genesis { genesis } else { &self.machine }.configuration();
        let start =
            replay.finish(configuration).map_err(|error| format!("member {}: replay: {error}", self.id))?;
        let core = Core::new(options, start)
            .map_err(|quarantine| format!("member {} is quarantined at its start: {quarantine}", self.id))?;
        self.core = Some(core);
        Ok(applied)
    }
}
