//! One simulated member: core, disk, state machine.
use std::collections::{BTreeMap, VecDeque};
use sternpost_replication::entry_format::decode_entry;
use sternpost_replication::raft::core::sorted;
use sternpost_replication::raft::replay::Replay;
use sternpost_replication::raft::{Core, CoreOptions};

pub use raft::eraftpb::{ConfState, Entry, HardState};

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

/// The state machine: where each register was written last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub applied: u64,
    pub registers: [Place; REGISTERS],
    /// Of everything applied, in order.
    pub digest: u64,
}

impl Default for Machine {
    fn default() -> Self {
        // The genesis is index 1.
        Self { applied: 1, registers: [(0, 0); REGISTERS], digest: 0 }
    }
}

impl Machine {
    /// Applies an entry; the writes in it, with their places.
    pub fn apply(&mut self, entry: &Entry) -> Result<Vec<(Write, Place)>, String> {
        if entry.index != self.applied + 1 {
            return Err(format!("entry {} is applied after {}", entry.index, self.applied));
        }
        self.applied = entry.index;
        self.digest = mix(self.digest, entry.index ^ entry.term.rotate_left(32));
        let commands = if entry.data.is_empty() || entry.entry_type != 0 {
            Vec::new()
        } else {
            decode_entry(&entry.data).map_err(|error| error.to_string())?
        };
        let mut writes = Vec::new();
        for (number, command) in commands.into_iter().enumerate() {
            let write = Write::decode(command).ok_or("not a command")?;
            self.registers[write.register] = (entry.index, number);
            self.digest = mix(self.digest, write.id);
            writes.push((write, (entry.index, number)));
        }
        Ok(writes)
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
    records: Vec<Record>,
    pub pending: VecDeque<DiskWrite>,
    /// When the last write will be done: they complete in order.
    pub busy_until_us: u64,
    /// The durable log by index, suffixes overwritten.
    pub log: BTreeMap<u64, Entry>,
}

impl Disk {
    fn keep(&mut self, record: Record) {
        if let Record::Entry(entry) = &record {
            drop(self.log.split_off(&entry.index));
            self.log.insert(entry.index, entry.clone());
        }
        self.records.push(record);
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
    pub checkpoint: Machine,
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
    pub fn new(id: u64, tick_us: u64) -> Self {
        Self {
            id,
            core: None,
            incarnation: 0,
            disk: Disk::default(),
            submitted_us: VecDeque::new(),
            machine: Machine::default(),
            checkpoint: Machine::default(),
            unapplied: VecDeque::new(),
            tick_us,
            frozen_until_us: 0,
            stalled_until_us: 0,
        }
    }

    /// Reads checkpoint and log and makes a core. Returns what was applied on the way.
    pub fn start(&mut self, mut options: CoreOptions, voters: &[u64]) -> Result<Vec<Entry>, String> {
        self.incarnation += 1;
        options.boot = self.id << 32 | self.incarnation;
        self.machine = self.checkpoint.clone();
        self.unapplied.clear();
        self.submitted_us.clear();
        let mut replay = Replay::new(self.checkpoint.applied);
        replay.mark(1, 1);
        replay.hard_state(1, 0, 1).map_err(|error| error.to_string())?;
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
        let configuration = sorted(ConfState { voters: voters.to_vec(), ..ConfState::default() });
        let start =
            replay.finish(configuration).map_err(|error| format!("member {}: replay: {error}", self.id))?;
        let core = Core::new(options, start)
            .map_err(|quarantine| format!("member {} is quarantined at its start: {quarantine}", self.id))?;
        self.core = Some(core);
        Ok(applied)
    }
}
