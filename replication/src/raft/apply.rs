//! The thread that applies: state machine and checkpoints.
//!
//! **Why a thread of its own**: applying takes as long as it takes, and heartbeats do not wait (corrections R19).
//!
//! **Bound.** What waits here was committed and is in the log; the core takes no more than
//! [`super::core::UNAPPLIED_BYTES_MAX`] of it.
//!
//! **Failure.** A broken invariant aborts the process: nobody is served from a state in doubt.
use super::configuration;
use super::inbox::Inbox;
use crate::entry_format::decode_entry;
use crate::state_machine::{self, ChangeEntry, Rejection, StateMachine};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType};
use raft_proto::decode_conf_change;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sternpost_engine::base::clock::Clock;
use sternpost_engine::base::ids::Lsn;
use sternpost_engine::checkpoint::{CheckpointStats, Checkpointer};
use sternpost_engine::mvcc::{CutPosition, StoreWriter};

/// The longest sleep; a lost wake-up would be a delay and not a hang.
const SLEEP_US_MAX: u64 = 1_000_000;

/// Something for the state machine, in order.
pub(super) enum Item {
    /// A committed entry and its place in the log.
    Entry(Entry, Lsn),
    /// A proposal of this member that is given up.
    GivenUp(u64, Rejection),
    /// The log failed.
    Stopped(String),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Entry(entry, _) => entry.data.len(),
            _ => 0,
        }
    }
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    is_closing: bool,
    is_woken: bool,
}

/// Between the thread of the log and the one that applies.
#[derive(Default)]
pub(super) struct ApplyQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// Last index applied.
    pub(super) applied: AtomicU64,
    /// How far the log is durable, as bytes.
    pub(super) durable_lsn: AtomicU64,
    /// From where on a checkpoint needs the log.
    pub(super) replay_lsn: AtomicU64,
    /// What became of changes of the members, by index, until the thread of the log has taken it.
    verdicts: Mutex<VecDeque<(u64, bool)>>,
    /// Somebody waits for a checkpoint.
    is_asked: AtomicBool,
    /// There is nothing left that would make the log shorter.
    pub(super) has_rested: AtomicBool,
    /// Notes of what keys were, for the log; the applying thread fills in the next ones when these were taken.
    pub(super) notes: Mutex<Option<(u64, Vec<u8>)>>,
    pub(super) stats: Mutex<CheckpointStats>,
}

impl ApplyQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, items: impl IntoIterator<Item = Item>) {
        self.state().items.extend(items);
        self.changed.notify_one();
    }

    /// A checkpoint of what is applied is wanted soon.
    pub(super) fn ask_for_checkpoint(&self) {
        self.is_asked.store(true, Ordering::Release);
        self.wake();
    }

    fn leave_verdict(&self, index: u64, is_made: bool) {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).push_back((index, is_made));
    }

    /// Whether the change at `index`, which is applied, was made.
    pub(super) fn take_verdict(&self, index: u64) -> bool {
        let verdict = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (at, is_made) = verdict.unwrap_or_else(|| panic!("R8: the change at {index} has no verdict"));
        assert_eq!(at, index, "R8: verdicts come in the order of the changes");
        is_made
    }

    pub(super) fn close(&self) {
        self.state().is_closing = true;
        self.changed.notify_one();
    }

    /// A checkpoint is done.
    pub(super) fn wake(&self) {
        self.state().is_woken = true;
        self.changed.notify_one();
    }
}

/// What the thread owns.
pub(super) struct Applier<M> {
    pub(super) machine: M,
    pub(super) checkpointer: Checkpointer,
    pub(super) queue: Arc<ApplyQueue>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) waiting: VecDeque<Item>,
    /// As of what is applied.
    pub(super) configuration: ConfState,
}

impl<M: StateMachine> Applier<M> {
    pub(super) fn run(mut self) {
        let mut is_idle = false;
        while self.round(&mut is_idle) {}
        self.finish();
    }

    /// One round, which waits if nothing was to do in the one before; false if it was the last one.
    pub(super) fn round(&mut self, is_idle: &mut bool) -> bool {
        let is_closing = self.take_items(*is_idle);
        self.poll();
        let applied = self.apply(is_closing);
        *is_idle = !(applied || self.waiting.is_empty() && self.machine.maintain());
        !(is_closing && self.waiting.is_empty())
    }

    /// Makes the last checkpoint and ends.
    pub(super) fn finish(&mut self) {
        let durable = Lsn(self.queue.durable_lsn.load(Ordering::Acquire));
        if let Some(storage) = self.machine.storage()
            && let Some(replay_lsn) = self.checkpointer.finish(storage, durable)
        {
            self.queue.replay_lsn.fetch_max(replay_lsn.0, Ordering::AcqRel);
        }
        self.checkpointer.close();
    }

    /// Takes what has come; waits if there was nothing to do in the last round. Returns whether to end.
    fn take_items(&mut self, is_idle: bool) -> bool {
        let sleep = Duration::from_micros(self.checkpointer.sleep_us_max().min(SLEEP_US_MAX));
        let mut state = self.queue.state();
        if is_idle && state.items.is_empty() && !state.is_closing && !state.is_woken {
            state = self.queue.changed.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_woken = false;
        self.waiting.append(&mut state.items);
        state.is_closing
    }

    /// What checkpoints have to say, and how much may be applied now.
    fn poll(&mut self) {
        let durable = Lsn(self.queue.durable_lsn.load(Ordering::Acquire));
        let now_us = self.clock.now_us();
        if self.queue.is_asked.swap(false, Ordering::AcqRel) {
            self.checkpointer.ask();
        }
        if let Some(storage) = self.machine.storage() {
            if let Some(replay_lsn) = self.checkpointer.poll(storage, durable) {
                self.queue.replay_lsn.fetch_max(replay_lsn.0, Ordering::AcqRel);
                self.inbox.wake();
            }
            self.checkpointer.look(storage, now_us);
        }
        if self.checkpointer.take_rested() {
            self.queue.has_rested.store(true, Ordering::Release);
            self.inbox.wake();
        }
        *self.queue.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.checkpointer.stats();
    }

    /// Applies what may be applied; true if there was something.
    fn apply(&mut self, is_closing: bool) -> bool {
        // Memory waits for the disk. Checkpoints that fail would make it wait for ever; then memory grows, and the quota and the
        // device say what is to be said.
        if self.checkpointer.is_full() && self.checkpointer.failing().is_none() && !is_closing {
            return false;
        }
        let items = self.checkpointer.take(&mut self.waiting, Item::bytes, is_closing);
        if items.is_empty() {
            return false;
        }
        let mut last = None;
        for item in items {
            match item {
                Item::Entry(entry, lsn) => {
                    let verdict = apply_entry(
                        &mut self.machine,
                        &mut self.checkpointer,
                        &mut self.configuration,
                        &entry,
                        lsn,
                        false,
                    );
                    if let Some(is_made) = verdict {
                        self.queue.leave_verdict(entry.index, is_made);
                    }
                    last = Some(entry.index);
                }
                Item::GivenUp(id, rejection) => self.machine.given_up(id, &rejection),
                Item::Stopped(reason) => self.machine.stopped(&reason),
            }
        }
        if let Some(index) = last {
            self.leave_notes();
            self.queue.applied.store(index, Ordering::Release);
            self.inbox.wake();
            self.machine.flush();
        }
        true
    }

    /// For the thread of the log, if it has taken the last ones.
    fn leave_notes(&mut self) {
        let mut notes = self.queue.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.is_none() {
            *notes = self.machine.storage().and_then(StoreWriter::take_notes);
        }
    }
}

/// Applies one committed entry, in replay or not. Of a change of the members: whether it was made.
pub(super) fn apply_entry<M: StateMachine>(
    machine: &mut M,
    checkpointer: &mut Checkpointer,
    configuration: &mut ConfState,
    entry: &Entry,
    lsn: Lsn,
    replay: bool,
) -> Option<bool> {
    let position = CutPosition { index: entry.index, term: entry.term, lsn };
    let verdict = if entry.get_entry_type() == EntryType::EntryNormal {
        apply_commands(machine, entry, replay);
        None
    } else {
        Some(apply_change(machine, configuration, entry, replay))
    };
    if let Some(storage) = machine.storage() {
        checkpointer.after_entry(storage, position);
    }
    verdict
}

fn apply_change<M: StateMachine>(
    machine: &mut M,
    configuration: &mut ConfState,
    entry: &Entry,
    replay: bool,
) -> bool {
    let change = decode_conf_change(entry).and_then(|change| configuration::decode_change(&change));
    let next = change.and_then(|change| configuration::after(configuration, change));
    let is_made = machine.apply_change(&ChangeEntry {
        index: entry.index,
        term: entry.term,
        command: &entry.context,
        is_possible: next.is_some(),
        replay,
    });
    let Some(next) = next.filter(|_| is_made) else {
        assert!(!is_made, "R8: a change that is not possible is not made");
        return false;
    };
    *configuration = next;
    // R9: before the entry ends, so in the same checkpoint as its index.
    put_configuration(machine, configuration);
    true
}

/// Writes the record of the configuration, if the machine has a store.
pub(super) fn put_configuration<M: StateMachine>(machine: &mut M, configuration: &ConfState) {
    if let Some(storage) = machine.storage() {
        let record = Bytes::from(configuration::encode(configuration));
        storage.system_put(Bytes::from_static(configuration::KEY), record);
    }
}

fn apply_commands<M: StateMachine>(machine: &mut M, entry: &Entry, replay: bool) {
    let is_commands = !entry.data.is_empty();
    // Every member would refuse the same bytes, and none wrote them: a bug, or memory that lies.
    let commands = if is_commands {
        decode_entry(&entry.data)
            .unwrap_or_else(|error| panic!("entry {} of term {}: {error}", entry.index, entry.term))
    } else {
        Vec::new()
    };
    machine.apply(&state_machine::Entry { index: entry.index, term: entry.term, commands, replay });
}
