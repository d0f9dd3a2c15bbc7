//! The thread of the log and the core: the only one that touches either.
//!
//! **A round**: take what has arrived, feed it to the core and carry out what comes out; start the I/O of the log; tell the core what has
//! become durable. Nothing here blocks but the wait at the end of a round in which nothing happened. What has to be read from the log's
//! files is read by a thread of its own.
//!
//! **Time.** Ticks come from the device's clock. A round that is late by more than two ticks (the process was stopped, or starved) makes up for
//! none of them: what has arrived is looked at first, and then one tick passes. A member that slept must not conclude from its own sleep
//! that nobody speaks.
use super::alone::Alone;
use super::apply::{ApplyQueue, Item};
use super::configuration::encode_change as encode_change_of_members;
use super::core::{Core, ENTRY_BYTES_MAX};
use super::inbox::{ArrivedChange, Reader};
use super::input::{Input, Output, Refusal, Role};
use super::log_view::LOAD_BYTES;
use super::node::{RaftEvent, Shared, TICK};
use super::open::{decode_record, note_lsn, take_lsn};
use super::pace::Pace;
use super::positions::Positions;
use crate::entry_format::{encode_change, encode_hard_state};
use crate::holders::Holding;
use crate::replicator::ReadError;
use crate::solo::GROUP;
use crate::state_machine::Rejection;
use raft::eraftpb::{Entry, EntryType, HardState};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, PoisonError};
use sternpost_engine::base::ids::Lsn;
use sternpost_engine::log::Log;
use sternpost_engine::transfer::StateHolder;
use sternpost_engine::wal::{LogReader, RecordKind, RecordMeta, Reserve};
use sternpost_engine::{Error, Result};

/// Entries to be read from the log's files.
pub(super) struct LoadJob {
    low: u64,
    high: u64,
    from: Lsn,
    end: Lsn,
}

/// A write of the core, as far as the log has not taken it.
pub(super) struct Unwritten {
    number: u64,
    hard_state: Option<HardState>,
    entries: VecDeque<Entry>,
    /// Place of the last record that was taken.
    last: Option<Lsn>,
}

/// A write that takes so long does not come back: the process is of no use any more, and in the way.
const DISK_HANGS_US: u64 = 30_000_000;
/// Jobs that wait for the reading thread: each follower has one at a time.
pub(super) const LOAD_JOBS_MAX: usize = 64;

/// See the module.
pub(super) struct LogThread {
    pub(super) log: Log,
    pub(super) core: Core,
    pub(super) shared: Arc<Shared>,
    pub(super) apply: Arc<ApplyQueue>,
    pub(super) positions: Positions,
    /// Places of entries that are not handed to the state machine yet.
    pub(super) lsns: VecDeque<(u64, Lsn)>,
    /// Writes of the core that wait for room on the device, in order. While there are some, this is a disk that hangs: nothing is acknowledged, and
    /// the core takes no more than [`super::core::UNAPPLIED_BYTES_MAX`] from a leader.
    pub(super) unwritten: VecDeque<Unwritten>,
    /// Since when there are some.
    pub(super) unwritten_since_us: Option<u64>,
    /// Writes of the core that are not durable: number, place of the last record, when it was appended.
    pub(super) writes: VecDeque<(u64, Lsn, u64)>,
    pub(super) outputs: Vec<Output>,
    pub(super) readers: BTreeMap<u64, Vec<Reader>>,
    pub(super) next_token: u64,
    pub(super) holding: Holding,
    /// Keeps states for who holds them.
    pub(super) state: StateHolder,
    pub(super) loader: SyncSender<LoadJob>,
    pub(super) tick_us: u64,
    pub(super) next_tick_us: u64,
    pub(super) pace: Pace,
    /// The election timeout that was told last.
    pub(super) told_election_us: u64,
    pub(super) has_room: bool,
    pub(super) told_applied: u64,
    /// Changes of the configuration handed over and not confirmed.
    pub(super) changes: VecDeque<u64>,
    pub(super) told_replay: u64,
    /// Where the log's files begin, as the core was told.
    pub(super) told_begin: Lsn,
    pub(super) alone: Alone,
    /// That the disk hangs for good was told.
    pub(super) is_hang_told: bool,
    /// Why nothing is written any more.
    pub(super) failed: Option<String>,
}

/// What a round leaves to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Round {
    /// Something happened: the next one follows at once.
    Busy,
    /// Nothing did: whoever drives it waits.
    Idle,
    /// It is closed, or has failed.
    Over,
}

impl LogThread {
    /// Until closed or failed.
    pub(super) fn run(mut self) -> Result<()> {
        self.begin();
        loop {
            match self.round() {
                Round::Busy => {}
                Round::Idle => self.wait(u64::MAX),
                Round::Over => break,
            }
        }
        self.stop_serving();
        self.shared.join_apply();
        self.end()
    }

    /// Before the first round.
    pub(super) fn begin(&mut self) {
        self.next_tick_us = self.log.now_us() + self.tick_us;
        self.publish();
    }

    /// After the last round: everybody who waits hears so, and the applying side ends when it has applied what it has.
    pub(super) fn stop_serving(&mut self) {
        let stopped = self.failed.clone().unwrap_or_else(|| "the server has stopped".into());
        self.give_up(&stopped);
        self.apply.durable_lsn.store(self.log.durable_lsn().0, Ordering::Release);
        if let Some(reason) = &self.failed {
            self.apply.push([Item::Stopped(reason.clone())]);
        }
        self.apply.close();
    }

    /// When the applying side has ended.
    pub(super) fn end(mut self) -> Result<()> {
        if self.failed.is_some() {
            return Ok(());
        }
        self.take_replay_position();
        self.log.close()
    }

    /// Until something happens, the next tick, or for `us_max`.
    pub(super) fn wait(&mut self, us_max: u64) {
        let now_us = self.log.now_us();
        self.log.wait(self.next_tick_us.saturating_sub(now_us).min(us_max));
    }

    /// One round; it blocks for nothing.
    pub(super) fn round(&mut self) -> Round {
        let (arrived, is_closing) = self.shared.inbox.take();
        if is_closing {
            self.shared.inbox.stop("the server has stopped");
        }
        let is_something = !arrived.is_empty();
        arrived.round_trips.iter().for_each(|us| self.pace.round_trips.note(*us));
        if arrived.differs {
            self.feed(Input::StateDiffers);
        }
        for (by, (term, index)) in arrived.promised {
            self.feed(Input::Promised { by, term, index });
        }
        // Votes and heartbeats before entries, entries before what clients want.
        arrived.control.into_iter().chain(arrived.log).for_each(|frame| self.feed(Input::Frame(frame)));
        arrived.unreachable.into_iter().for_each(|id| self.feed(Input::Unreachable { id }));
        arrived.connected.into_iter().for_each(|id| self.feed(Input::Connected { id }));
        // Behind what they said before they went.
        arrived.absent.into_iter().for_each(|id| self.feed(Input::Absent { id }));
        arrived.loaded.into_iter().for_each(|(low, entries)| self.feed(Input::Loaded { low, entries }));
        self.tell_applied();
        self.tick();
        if !arrived.proposals.is_empty() {
            self.feed(Input::Propose(arrived.proposals));
        }
        if !arrived.readers.is_empty() {
            // One token for all that came together.
            let token = self.next_token;
            self.next_token += 1;
            self.readers.insert(token, arrived.readers);
            self.feed(Input::Read { token });
        }
        for ArrivedChange { id, change, command } in arrived.changes {
            self.feed(Input::ProposeChange {
                id,
                change: encode_change_of_members(change),
                context: command,
            });
        }
        arrived.transfers.into_iter().for_each(|to| self.feed(Input::TransferLeader { to }));
        self.take_replay_position();
        self.write();
        self.log.submit();
        self.tell_begin();
        let has_durable = self.tell_durable();
        self.publish();
        if let Some(reason) = self.log.poisoned() {
            let reason = reason.to_owned();
            self.failed.get_or_insert(reason);
        }
        if self.failed.is_some() || is_closing && self.writes.is_empty() {
            return Round::Over;
        }
        if is_something || has_durable { Round::Busy } else { Round::Idle }
    }

    fn tick(&mut self) {
        let now_us = self.log.now_us();
        if now_us < self.next_tick_us {
            return;
        }
        self.pace.lags.note(now_us - self.next_tick_us);
        let is_late = now_us - self.next_tick_us > 2 * self.tick_us;
        self.keep_pace(now_us);
        self.next_tick_us = if is_late { now_us } else { self.next_tick_us } + self.tick_us;
        self.look_for_room();
        let write_age_us = self.shared.write_age_us();
        if write_age_us >= DISK_HANGS_US && !std::mem::replace(&mut self.is_hang_told, true) {
            self.shared.tell(RaftEvent::DiskHangs { seconds: write_age_us / 1_000_000 });
        }
        // A disk that is full is no reason to end: room comes back.
        let waits_us = self.unwritten_since_us.map_or(0, |since_us| now_us - since_us);
        self.feed(Input::Tick { write_age_us: write_age_us.max(waits_us) });
    }

    /// The tick is as long as the election timeout of now wants it.
    fn keep_pace(&mut self, now_us: u64) {
        let leader_us = self.core.leader_election_ms().map(|ms| u64::from(ms) * 1_000);
        let election_us = self.pace.election_us(now_us, leader_us);
        self.tick_us = self.pace.stretched(TICK.as_micros() as u64, election_us);
        self.core.set_election_ms(u16::try_from(election_us / 1_000).unwrap_or(u16::MAX));
        // Not every step is worth a line.
        if election_us.abs_diff(self.told_election_us) * 4 > self.told_election_us {
            self.told_election_us = election_us;
            self.shared.tell(RaftEvent::ElectionTimeout { ms: election_us / 1_000 });
        }
    }

    fn look_for_room(&mut self) {
        let mut room = self.log.check_room(ENTRY_BYTES_MAX, Reserve::Ordinary);
        if room.is_err() {
            // What is kept for members that are behind is worth less than going on: they can fetch the state.
            self.log.yield_retained();
            self.log.submit();
            room = self.log.check_room(ENTRY_BYTES_MAX, Reserve::Ordinary);
        }
        let full = room.err().map(|error| error.to_string());
        let has_room = full.is_none();
        if has_room != self.has_room {
            self.has_room = has_room;
            self.shared.set_full(full);
            self.feed(Input::Room { is_left: has_room });
        }
    }

    /// What the state machine has applied since it was told last.
    fn tell_applied(&mut self) {
        let applied = self.apply.applied.load(Ordering::Acquire);
        while self.told_applied < applied {
            let change = self.changes.pop_front_if(|index| *index <= applied);
            if let Some(index) = change {
                if index - 1 > self.told_applied {
                    self.feed(Input::Applied { index: index - 1, change: None });
                }
                self.told_applied = index;
                let verdict = self.apply.take_verdict(index);
                self.feed(Input::Applied { index, change: Some(verdict) });
            } else {
                self.told_applied = applied;
                self.feed(Input::Applied { index: applied, change: None });
            }
        }
    }

    fn take_replay_position(&mut self) {
        let replay = self.apply.replay_lsn.load(Ordering::Acquire);
        if replay > self.told_replay && Lsn(replay) <= self.log.durable_lsn() {
            self.told_replay = replay;
            self.log.set_replay_lsn(Lsn(replay));
        }
        if self.apply.has_rested.swap(false, Ordering::AcqRel) {
            self.log.trim();
        }
    }

    /// The log gives its files back when it comes to it, which may be rounds after it was said that they may go.
    fn tell_begin(&mut self) {
        let begin = self.log.begin_lsn();
        if begin > self.told_begin {
            self.told_begin = begin;
            let first = self.positions.forget_before(begin);
            self.feed(Input::FilesBeginAt { first });
        }
    }

    fn tell_durable(&mut self) -> bool {
        let durable = self.log.durable_lsn();
        self.apply.durable_lsn.store(durable.0, Ordering::Release);
        let mut last = None;
        while let Some((number, _, appended_us)) = self.writes.pop_front_if(|(_, lsn, _)| *lsn < durable) {
            self.pace.writes.note(self.log.now_us() - appended_us);
            last = Some(number);
        }
        if let Some(number) = last {
            self.feed(Input::Durable { number });
        }
        last.is_some()
    }

    fn feed(&mut self, input: Input) {
        if self.failed.is_some() {
            return;
        }
        let now_us = self.log.now_us();
        let mut outputs = std::mem::take(&mut self.outputs);
        self.core.handle(now_us, input, &mut outputs);
        outputs.drain(..).for_each(|output| self.carry_out(output));
        self.outputs = outputs;
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(frame) => self.shared.send(&frame),
            Output::Persist { number, entries, hard_state } => {
                self.unwritten.push_back(Unwritten {
                    number,
                    hard_state,
                    entries: entries.into(),
                    last: None,
                });
                self.write();
            }
            Output::Apply(entries) => self.hand_over(entries),
            Output::ReadAt { tokens, .. } => {
                let applied = self.apply.applied.load(Ordering::Acquire);
                self.answer(&tokens, &Ok(applied));
            }
            Output::ReadFailed { tokens, why } => {
                let error = match why {
                    Refusal::NoLeader => ReadError::NoLeader,
                    Refusal::TooMany => ReadError::TooManyRequests,
                    Refusal::Quarantined => ReadError::Stopped,
                    _ => ReadError::TimedOut,
                };
                self.answer(&tokens, &Err(error));
            }
            Output::Rejected { ids, why } => {
                let rejection = rejection(why);
                self.apply.push(ids.into_iter().map(|id| Item::GivenUp(id, rejection.clone())));
            }
            Output::Load { low, high } => self.load(low, high),
            Output::Role(role) => self.shared.tell(RaftEvent::Role(role)),
            Output::LeaderProved { term } => self.shared.tell(RaftEvent::LeaderProved { term }),
            Output::NeedsSnapshot { id } => self.shared.tell(RaftEvent::NeedsSnapshot { id }),
            Output::Quarantined(quarantine) => {
                self.shared.tell(RaftEvent::Quarantined(quarantine.to_string()));
            }
            // Its result comes when it is applied, or never: then the one who waits has his time-out.
            Output::ChangeProposed { .. } => {}
        }
    }

    fn answer(&mut self, tokens: &[u64], answer: &std::result::Result<u64, ReadError>) {
        for token in tokens {
            for reader in self.readers.remove(token).unwrap_or_default() {
                if !reader.is_dropped() {
                    reader.answer(answer.clone());
                }
            }
        }
    }

    /// Gives the log what the core wants written, as far as there is room.
    fn write(&mut self) {
        while self.failed.is_none()
            && let Some(mut write) = self.unwritten.pop_front()
        {
            match self.append(&mut write) {
                Ok(()) => {
                    let last =
                        write.last.unwrap_or_else(|| panic!("D2: write {} writes nothing", write.number));
                    self.writes.push_back((write.number, last, self.log.now_us()));
                }
                Err(Error::NoSpace(_)) => {
                    self.unwritten.push_front(write);
                    self.unwritten_since_us.get_or_insert(self.log.now_us());
                    return;
                }
                // What the library holds is not in the log: this member can promise nothing any more.
                Err(error) => self.failed = Some(error.to_string()),
            }
        }
        self.unwritten_since_us = None;
    }

    /// Appends what is left of a write; what was taken is no part of it any more.
    fn append(&mut self, write: &mut Unwritten) -> Result<()> {
        if let Some(HardState { term, vote, commit }) = &write.hard_state {
            let meta = RecordMeta {
                kind: RecordKind::HardState,
                entry_type: 0,
                group: GROUP,
                term: *term,
                index: *commit,
            };
            write.last = Some(self.log.append(meta, &encode_hard_state(*vote), Reserve::Privileged)?);
            write.hard_state = None;
        }
        if !write.entries.is_empty() {
            let notes = self.apply.notes.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.log.append_notes(GROUP, notes);
        }
        while let Some(entry) = write.entries.front() {
            let meta = RecordMeta {
                kind: RecordKind::RaftEntry,
                entry_type: entry.entry_type as u8,
                group: GROUP,
                term: entry.term,
                index: entry.index,
            };
            // The reserve is for the log's own needs; whether a client's command may use it was asked before.
            let lsn = if entry.get_entry_type() == EntryType::EntryNormal {
                self.log.append(meta, &entry.data, Reserve::Privileged)?
            } else {
                let body = encode_change(&entry.data, &entry.context);
                self.log.append(meta, &body, Reserve::Privileged)?
            };
            self.positions.note(entry.index, lsn);
            note_lsn(&mut self.lsns, entry.index, lsn);
            write.last = Some(lsn);
            write.entries.pop_front();
        }
        Ok(())
    }

    fn hand_over(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.changes.push_back(entry.index);
            }
            let lsn = take_lsn(&mut self.lsns, entry.index);
            items.push(Item::Entry(entry, lsn));
        }
        self.apply.push(items);
        // So that an idle group witnesses it.
        self.log.note_commit(GROUP, last);
    }

    fn load(&mut self, low: u64, high: u64) {
        let end = self.log.durable_lsn();
        let job = self.positions.before(low).map(|from| LoadJob { low, high, from, end });
        let is_taken = job.is_some_and(|job| self.loader.try_send(job).is_ok());
        if !is_taken {
            // Asked for again at the follower's next word.
            self.shared.inbox.loaded(low, Vec::new());
        }
    }

    /// Nothing more will be decided: everybody who waits hears so.
    fn give_up(&mut self, reason: &str) {
        self.shared.leads_alone.store(false, Ordering::Release);
        let arrived = self.shared.inbox.stop(reason);
        let readers = std::mem::take(&mut self.readers).into_values().flatten();
        readers.chain(arrived.readers).for_each(|reader| reader.answer(Err(ReadError::Stopped)));
        let rejection = Rejection::Stopped(reason.to_owned());
        let changes = arrived.changes.into_iter().map(|change| change.id);
        let proposals = arrived.proposals.into_iter().map(|proposal| proposal.id);
        let waiting = proposals.chain(changes).chain(self.core.give_up());
        self.apply.push(waiting.map(|id| Item::GivenUp(id, rejection.clone())));
    }

    /// For who asks from other threads.
    fn publish(&mut self) {
        let status = self.core.status();
        let open = self.core.open_proposals_count() as u64;
        self.shared.inbox.open_count.store(open, Ordering::Relaxed);
        let leads_alone = self.alone.look(self.shared.asked.member, &status);
        self.shared.publish(status, leads_alone);
        let last = self.writes.back().map(|(_, lsn, _)| *lsn);
        self.holding.answer(&self.shared.holders, last, &self.log, &self.state);
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut stats.is_wanted) {
            stats.wal = Some(self.log.wal_stats());
        }
    }
}

fn rejection(why: Refusal) -> Rejection {
    match why {
        Refusal::NoSpace => Rejection::NoSpace,
        Refusal::NoLeader | Refusal::NotLeader | Refusal::DiskHangs => Rejection::NoLeader,
        Refusal::ChangeRefused => Rejection::ChangeRefused,
        Refusal::TooMany => Rejection::TooManyRequests,
        Refusal::Quarantined => Rejection::Stopped("this member is quarantined".into()),
        Refusal::Unknown => Rejection::Unknown,
    }
}

/// The thread that reads the log's files for followers that are behind.
pub(super) fn load_entries(reader: &LogReader, jobs: &Receiver<LoadJob>, shared: &Shared) {
    while let Ok(job) = jobs.recv() {
        load(reader, &job, shared);
    }
}

/// Reads what one follower needs.
pub(super) fn load(reader: &LogReader, job: &LoadJob, shared: &Shared) {
    let LoadJob { low, high, from, end } = *job;
    let mut entries: Vec<Entry> = Vec::new();
    let mut bytes = 0;
    let read = reader.read(from, end, &mut |record| {
        let RecordMeta { kind, entry_type, term, index, .. } = record.meta;
        if kind != RecordKind::RaftEntry || index < low {
            return ControlFlow::Continue(());
        }
        let next = entries.last().map_or(low, |last| last.index + 1);
        if index > next {
            return ControlFlow::Break(());
        }
        // A suffix was overwritten.
        entries.retain(|entry| entry.index < index);
        let Some(entry) = decode_record(entry_type, term, index, record.body) else {
            return ControlFlow::Break(());
        };
        bytes += entry.data.len() as u64;
        entries.push(entry);
        if index + 1 >= high || bytes >= LOAD_BYTES {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if let Err(error) = read {
        shared.tell(RaftEvent::LogUnreadable { index: low, error: error.to_string() });
    }
    shared.inbox.loaded(low, entries);
}

/// What a role is called in logs.
pub fn describe_role(role: &Role) -> &'static str {
    match role.role {
        raft::StateRole::Follower => "follower",
        raft::StateRole::Candidate => "candidate",
        raft::StateRole::Leader => "leader",
        raft::StateRole::PreCandidate => "pre-candidate",
    }
}
