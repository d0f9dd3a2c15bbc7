//! Opening a member's directory: checkpoint, log, genesis.
use super::apply::{apply_entry, put_configuration};
use super::core::{CoreStart, sorted};
use super::force::{self, ChangeCommand, Forced};
use super::positions::Positions;
use super::replay::Replay;
use super::state::Decision;
use crate::entry_format::{
    FEATURE_LEVEL, GENESIS_INDEX, GENESIS_TERM, decode_change, decode_entry, decode_genesis,
    decode_hard_state, encode_change, encode_genesis, encode_hard_state,
};
use crate::replicator::Genesis;
use crate::solo::{GROUP, Opened};
use crate::state_machine::StateMachine;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use std::collections::VecDeque;
use sternpost_engine::base::ids::Lsn;
use sternpost_engine::checkpoint::{CheckpointOptions, Checkpointer};
use sternpost_engine::log::{Log, OpenProgress, PreparedLog};
use sternpost_engine::wal::{Record, RecordKind, RecordMeta, Reserve};
use sternpost_engine::{Error, Result};

/// A member as its directory has it.
pub(super) struct OpenedMember<M> {
    pub(super) log: Log,
    pub(super) machine: M,
    pub(super) checkpointer: Checkpointer,
    pub(super) positions: Positions,
    /// Places of the entries behind what is applied.
    pub(super) lsns: VecDeque<(u64, Lsn)>,
    pub(super) start: CoreStart,
    pub(super) opened: Opened,
    /// As the directory has it.
    pub(super) genesis: Genesis,
    /// What was done to make it the only member.
    pub(super) forced: Option<Forced>,
}

/// What the log has said so far.
struct Reading<'a, M> {
    machine: &'a mut M,
    checkpointer: &'a mut Checkpointer,
    replay: Replay,
    genesis: Option<Genesis>,
    /// As of `applied`; empty before the genesis.
    configuration: ConfState,
    positions: Positions,
    lsns: VecDeque<(u64, Lsn)>,
    applied: u64,
}

pub(super) fn open<M: StateMachine>(
    mut prepared: PreparedLog,
    options: &CheckpointOptions,
    progress: &mut dyn FnMut(OpenProgress<'_>),
    genesis: &Genesis,
    decision: Option<Decision>,
    force: Option<ChangeCommand>,
    mut machine: M,
) -> Result<OpenedMember<M>> {
    let mut checkpointer = prepared.checkpointer(options)?;
    if let Some(storage) = machine.storage() {
        checkpointer.attach(storage)?;
        machine.attached();
    }
    let applied = machine.applied_index();
    let known = known_configuration(&mut machine)?;
    let announcer = machine.announcer();
    let priors = checkpointer.priors();
    let mut reading = Reading {
        machine: &mut machine,
        checkpointer: &mut checkpointer,
        replay: Replay::new(applied),
        genesis: None,
        configuration: known,
        positions: Positions::default(),
        lsns: VecDeque::new(),
        applied,
    };
    let mut announce = |record: &Record<'_>| {
        if let Some(announce) = &announcer
            && record.meta.kind == RecordKind::RaftEntry
            && record.meta.entry_type == 0
            && record.meta.index > applied
            // Who visits it says what is wrong with it.
            && let Ok(commands) = decode_entry(record.body)
        {
            commands.into_iter().for_each(announce);
        }
    };
    let (mut log, recovery, created) =
        prepared.recover_ahead(priors, &mut announce, &mut |record| reading.visit(record), progress)?;
    let Reading { mut replay, genesis: found, mut configuration, mut positions, mut lsns, .. } = reading;
    let superblock = log.identity();
    let genesis = match (found, decision) {
        (Some(found), _) => found,
        // The log of a state that was just put in place: nothing else begins one behind a checkpoint.
        (None, Some(decision)) => {
            if replay.last_index() != 0 || (decision.index, decision.term) != machine_position(&mut machine) {
                return Err(Error::Refused(format!(
                    "a state at index {} was put in place, and the directory holds index {applied}",
                    decision.index
                )));
            }
            write_begin(
                &mut log,
                (decision.index, decision.term),
                &decision.genesis,
                (decision.hard_term, decision.vote),
            )?;
            replay.mark(decision.index, decision.term);
            replay.hard_state(decision.hard_term, decision.vote, decision.index).map_err(refused)?;
            decision.genesis
        }
        (None, None) => {
            if replay.last_index() != 0 {
                return Err(Error::Refused(
                    "the log holds entries but no genesis record; it is not ours".into(),
                ));
            }
            // New, or the first start died before its genesis was durable: nothing was acknowledged before that.
            let genesis = Genesis {
                cluster_id: superblock.cluster_id,
                member_id: superblock.member_id,
                ..genesis.clone()
            };
            write_begin(&mut log, (GENESIS_INDEX, GENESIS_TERM), &genesis, (GENESIS_TERM, 0))?;
            machine.restore(GENESIS_INDEX, GENESIS_TERM, &genesis.state);
            configuration = first_configuration(&mut machine, &genesis);
            replay.mark(GENESIS_INDEX, GENESIS_TERM);
            replay.hard_state(GENESIS_TERM, 0, GENESIS_INDEX).map_err(refused)?;
            genesis
        }
    };
    let mut forced = None;
    if force.is_some() && log.superblock().read().quarantine.is_some() {
        return Err(Error::Refused(
            "the data of this member was found to differ from that of most members of its cluster, so no cluster may go on with it; \
             take another member's directory (sternctl recover), or a backup"
                .into(),
        ));
    }
    if let Some(mut command) = force {
        let member = superblock.member_id;
        forced = force::plan(member, &replay, &configuration, &mut command).map_err(Error::Refused)?;
    }
    if let Some(forced) = &forced {
        for (entry, lsn) in write_forced(&mut log, forced)? {
            positions.note(entry.index, lsn);
            note_lsn(&mut lsns, entry.index, lsn);
            replay.entry(entry).map_err(refused)?;
        }
        let HardState { term, vote, commit } = forced.hard_state;
        replay.hard_state(term, vote, commit).map_err(refused)?;
        while let Some(entry) = replay.take_committed() {
            let lsn = take_lsn(&mut lsns, entry.index);
            apply_entry(&mut machine, &mut checkpointer, &mut configuration, &entry, lsn, true);
        }
        if configuration.voters != [superblock.member_id] || !configuration.learners.is_empty() {
            return Err(Error::Refused(format!(
                "this member was to be the only one, and the members are {configuration:?}"
            )));
        }
    }
    machine.flush();
    let start = replay.finish(configuration).map_err(refused)?;
    let opened = Opened {
        cluster_id: superblock.cluster_id,
        member_id: superblock.member_id,
        created,
        backend: log.backend(),
        recovery,
        sync_method: log.sync_method(),
    };
    Ok(OpenedMember { log, machine, checkpointer, positions, lsns, start, opened, genesis, forced })
}

/// The configuration of the checkpoint; empty if there is none.
fn known_configuration<M: StateMachine>(machine: &mut M) -> Result<ConfState> {
    let record = machine.storage().and_then(|storage| storage.store().system_get(super::configuration::KEY));
    let Some(record) = record else { return Ok(ConfState::default()) };
    super::configuration::decode(&record).ok_or_else(|| {
        Error::Refused(
            "the record of the group's members is of a format that this build does not know".into(),
        )
    })
}

/// That of a genesis, kept from now on.
fn first_configuration<M: StateMachine>(machine: &mut M, genesis: &Genesis) -> ConfState {
    let configuration = sorted(ConfState { voters: genesis.voters.clone(), ..ConfState::default() });
    put_configuration(machine, &configuration);
    configuration
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Refused(format!("the log makes no sense: {error}"))
}

impl<M: StateMachine> Reading<'_, M> {
    fn visit(&mut self, record: &Record<'_>) -> Result<()> {
        let RecordMeta { kind, entry_type, term, index, .. } = record.meta;
        let wrong = |what: String| {
            Error::Refused(format!("record of index {index} at log position {}: {what}", record.lsn))
        };
        match kind {
            RecordKind::SnapshotMark => {
                if self.genesis.is_none() {
                    let (genesis, feature_level) =
                        decode_genesis(record.body).map_err(|error| wrong(error.to_string()))?;
                    if feature_level > FEATURE_LEVEL {
                        return Err(wrong(format!(
                            "needs feature level {feature_level}, this build has {FEATURE_LEVEL}; use a newer build"
                        )));
                    }
                    if self.applied < index {
                        self.machine.restore(index, term, &genesis.state);
                        self.applied = index;
                    }
                    if self.configuration.voters.is_empty() {
                        // New, or of a build that did not keep it: then it never changed.
                        self.configuration = first_configuration(self.machine, &genesis);
                    }
                    self.genesis = Some(genesis);
                    self.replay.mark(index, term);
                }
            }
            RecordKind::HardState => {
                let vote = decode_hard_state(record.body).map_err(|error| wrong(error.to_string()))?;
                self.replay.hard_state(term, vote, index).map_err(|error| wrong(error.to_string()))?;
            }
            RecordKind::RaftEntry => {
                let entry = decode_record(entry_type, term, index, record.body)
                    .ok_or_else(|| wrong("it is no entry of this build".into()))?;
                self.replay.entry(entry).map_err(|error| wrong(error.to_string()))?;
                self.positions.note(index, record.lsn);
                note_lsn(&mut self.lsns, index, record.lsn);
                while self.lsns.front().is_some_and(|(front, _)| *front <= self.applied) {
                    self.lsns.pop_front();
                }
            }
            // Nothing that a member acts on.
            _ => return Ok(()),
        }
        while let Some(entry) = self.replay.take_committed() {
            let lsn = take_lsn(&mut self.lsns, entry.index);
            apply_entry(self.machine, self.checkpointer, &mut self.configuration, &entry, lsn, true);
            self.applied = entry.index;
        }
        Ok(())
    }
}

/// An entry's place; what it overwrites has none any more.
pub(super) fn note_lsn(lsns: &mut VecDeque<(u64, Lsn)>, index: u64, lsn: Lsn) {
    while lsns.back().is_some_and(|(last, _)| *last >= index) {
        lsns.pop_back();
    }
    lsns.push_back((index, lsn));
}

/// The place of an entry that is applied now.
pub(super) fn take_lsn(lsns: &mut VecDeque<(u64, Lsn)>, index: u64) -> Lsn {
    while let Some((front, lsn)) = lsns.pop_front() {
        if front == index {
            return lsn;
        }
        assert!(front < index, "D3: the place of entry {index} is known, the first known one is {front}");
    }
    panic!("D3: the place of entry {index} is not known")
}

/// An entry as a record of the log has it.
pub(super) fn decode_record(entry_type: u8, term: u64, index: u64, body: &[u8]) -> Option<Entry> {
    let kind = EntryType::try_from(i32::from(entry_type)).ok()?;
    let (data, context) = match kind {
        EntryType::EntryNormal => (body, &[][..]),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => decode_change(body).ok()?,
    };
    Some(Entry {
        entry_type: kind as i32,
        term,
        index,
        data: Bytes::copy_from_slice(data),
        context: Bytes::copy_from_slice(context),
        sync_log: false,
    })
}

/// Index and term of the machine's checkpoint.
fn machine_position<M: StateMachine>(machine: &mut M) -> (u64, u64) {
    machine.storage().map_or((0, 0), |storage| storage.store().applied())
}

/// What a log begins with, durably: the checkpoint that it lies behind, and term and vote.
fn write_begin(
    log: &mut Log,
    (index, term): (u64, u64),
    genesis: &Genesis,
    (hard_term, vote): (u64, u64),
) -> Result<()> {
    let mark = RecordMeta { kind: RecordKind::SnapshotMark, entry_type: 0, group: GROUP, term, index };
    log.append(mark, &encode_genesis(genesis), Reserve::Privileged)?;
    let hard_state = RecordMeta { kind: RecordKind::HardState, term: hard_term, ..mark };
    let lsn = log.append(hard_state, &encode_hard_state(vote), Reserve::Privileged)?;
    wait_durable(log, lsn)
}

/// What makes a member the only one, durably and as one group. Returns the entries with their places.
fn write_forced(log: &mut Log, forced: &Forced) -> Result<Vec<(Entry, Lsn)>> {
    let HardState { term, vote, commit } = forced.hard_state;
    let hard_state =
        RecordMeta { kind: RecordKind::HardState, entry_type: 0, group: GROUP, term, index: commit };
    let mut last = log.append(hard_state, &encode_hard_state(vote), Reserve::Privileged)?;
    let mut placed = Vec::new();
    for entry in &forced.entries {
        let meta = RecordMeta {
            kind: RecordKind::RaftEntry,
            entry_type: entry.entry_type as u8,
            group: GROUP,
            term: entry.term,
            index: entry.index,
        };
        last = log.append(meta, &encode_change(&entry.data, &entry.context), Reserve::Privileged)?;
        placed.push((entry.clone(), last));
    }
    wait_durable(log, last)?;
    Ok(placed)
}

/// Writes what was appended and waits until the record at `lsn` is durable.
fn wait_durable(log: &mut Log, lsn: Lsn) -> Result<()> {
    while log.durable_lsn() <= lsn {
        log.submit();
        log.wait(1_000_000);
        if let Some(reason) = log.poisoned() {
            return Err(Error::LogPoisoned(reason.to_owned()));
        }
    }
    Ok(())
}
