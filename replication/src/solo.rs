//! One node without Raft: append, durable, apply.
//!
//! **Contract.** Commands are applied in the order in which they were taken over, each after it is durable; a result
//! is therefore acknowledged only for what a crash cannot take back. The log holds what a one-voter group in term 1
//! would have written: genesis at index 1, hard state with a vote for itself, entries from index 2 on.
//!
//! **Shape.** Proposers push into one bounded queue. One thread (`solo`) owns the log and the state machine and
//! repeats: take the queue, append it as one entry, start the I/O, apply what has become durable meanwhile, wait. So
//! entries are applied while the next group is being written, and whatever arrives during a write shares the next one.
//!
//! **Reads** need no barrier: every acknowledged command has been applied, so the state is linearizable at any moment
//! and never behind a sync.
//!
//! **Failure.** A broken invariant on the thread aborts the process. When the log fails, nothing more is acknowledged: the machine is told once, later proposals are
//! refused with the reason. When the device is full, ordinary commands are rejected one by one and privileged ones
//! use the log's reserve.
use crate::entry_format::{
    FEATURE_LEVEL, GENESIS_INDEX, GENESIS_TERM, add_command, decode_entry, decode_genesis, encode_genesis,
    encode_hard_state, start_entry,
};
use crate::holders::{Holders, Holding};
use crate::replicator::{Class, Genesis, ProposeError, ReadBarrier, Replicator, ReplicatorStatus};
use crate::state_machine::{Entry, Rejection, StateMachine};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use sternpost_engine::backup::LiveSource;
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::checkpoint::{CheckpointOptions, CheckpointStats, Checkpointer, OnCheckpoint};
#[cfg(feature = "sim")]
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::io::{Backend, Waker};
use sternpost_engine::log::calibration::{CalibrationJob, CalibrationReport, Calibrator};
use sternpost_engine::log::{Log, LogIdentity, Mode, OpenProgress, PlaceRef, PreparedLog, WriteAge};
use sternpost_engine::mvcc::{CutPosition, StoreWriter};
use sternpost_engine::options::LogOptions;
use sternpost_engine::transfer::StateHolder;
use sternpost_engine::wal::{Record, RecordKind, RecordMeta, RecoveryReport, Reserve, SyncMethod, WalStats};
use sternpost_engine::{Error, Result};

/// At most this many commands wait to be applied; etcd answers `too many requests` beyond the same gap.
pub const PENDING_COMMANDS_MAX: u64 = 5_000;
/// At most this many bytes of commands wait to be applied, queued or in the log: what is held in memory for them.
pub const PENDING_BYTES_MAX: u64 = 64 << 20;
/// An entry takes no further command once it holds this much, so that one entry does not hold up the log.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// Group of the log's records: there is one.
pub(crate) const GROUP: GroupId = GroupId(0);

/// What a single node is started with.
pub struct SoloOptions {
    /// The data directory.
    pub directory: PathBuf,
    /// The log and its device.
    pub log: LogOptions,
    /// What is on disk beside the log, and its cache.
    pub checkpoint: CheckpointOptions,
    /// Used when the directory is new; an existing directory keeps its own.
    pub genesis: Genesis,
    /// Called while the log is replayed, every few MiB.
    pub progress: Box<dyn FnMut(OpenProgress<'_>) + Send>,
    /// Hears of checkpoints, on the node's thread; must not block.
    pub on_checkpoint: Option<OnCheckpoint>,
}

/// What was found when the node was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Identity of the cluster, from the directory.
    pub cluster_id: u64,
    /// Identity of the member, from the directory.
    pub member_id: u64,
    /// True when the directory was made by this start.
    pub created: bool,
    /// The device backend in use.
    pub backend: Backend,
    /// What the log held.
    pub recovery: RecoveryReport,
    /// How groups of the log become durable: as asked, as measured before, or the default.
    pub sync_method: SyncMethod,
}

/// A running single node.
pub struct Solo {
    shared: Arc<Shared>,
    opened: Opened,
    place: PlaceRef,
    calibration: Calibration,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// What a single node leaves to a [`Successor`]: everything is durable and applied, nothing is queued.
pub struct SoloParts<M> {
    pub(crate) log: Log,
    pub(crate) machine: M,
    pub(crate) checkpointer: Checkpointer,
    /// Last entry.
    pub(crate) last_index: u64,
    pub(crate) genesis: Genesis,
    pub(crate) opened: Opened,
    /// Once set, it is what the checkpoints' thread wakes.
    pub(crate) woken: Arc<OnceLock<Waker>>,
}

/// Goes on with what a single node leaves, on the same thread, to the end of the log's life.
pub type Successor<M> = Box<dyn FnOnce(SoloParts<M>) -> Result<()> + Send>;

/// The measurement of the device that a start may call for.
pub(crate) struct Calibration(Mutex<CalibrationState>);

/// Not wanted or over, to be made, under way.
enum CalibrationState {
    None,
    Wanted(CalibrationJob),
    UnderWay(#[expect(dead_code, reason = "dropping it is what ends it")] Calibrator),
}

impl Calibration {
    pub(crate) fn new(wanted: Option<CalibrationJob>) -> Self {
        Self(Mutex::new(wanted.map_or(CalibrationState::None, CalibrationState::Wanted)))
    }

    /// See [`Solo::calibrate`].
    pub(crate) fn start(
        &self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, CalibrationState::None) {
            // Without a thread there is no measurement; the next start tries again.
            CalibrationState::Wanted(job) => {
                job.start(delay, report).map_or(CalibrationState::None, CalibrationState::UnderWay)
            }
            other => other,
        };
    }

    /// It has the directory open too, so it ends before that is closed.
    pub(crate) fn end(&self) {
        *self.state() = CalibrationState::None;
    }

    fn state(&self) -> MutexGuard<'_, CalibrationState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What proposers and the `solo` thread share. Order of locks: `queue`, then `stats`.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Commands taken over and not yet applied or rejected.
    pending_count: AtomicU64,
    /// Their bytes.
    pending_bytes: AtomicU64,
    committed_index: AtomicU64,
    applied_index: AtomicU64,
    member_id: AtomicU64,
    waker: OnceLock<Waker>,
    write_age: OnceLock<WriteAge>,
    /// Newest statistics of the log, refreshed by the thread when somebody asks.
    stats: Mutex<Option<(WalStats, CheckpointStats)>>,
    /// Why nothing more can be written, while that lasts.
    full: Mutex<Option<String>>,
    holders: Holders,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<(Class, Vec<u8>)>,
    /// Set when nothing more is taken over; holds the reason.
    stopped: Option<String>,
    /// Set when the thread shall finish what is queued and end.
    closing: bool,
    /// Set when the thread shall finish what is queued and leave the rest to its successor.
    handing_over: bool,
    stats_wanted: bool,
}

impl Shared {
    fn set_full(&self, full: Option<String>) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = full;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is plain data: a panic elsewhere leaves it usable.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a command, within the bounds. The counts grow under the lock of the queue, so that no two proposers take the
    /// same room, and shrink without it.
    fn propose(&self, command: Vec<u8>, class: Class) -> Result<(), ProposeError> {
        {
            let mut queue = self.queue();
            if let Some(reason) = &queue.stopped {
                return Err(ProposeError::Stopped(reason.clone()));
            }
            if queue.closing || queue.handing_over {
                return Err(ProposeError::Stopped("the server is stopping".into()));
            }
            // Privileged commands are bounded by twice the gap.
            let factor = if class == Class::Privileged { 2 } else { 1 };
            let count = self.pending_count.load(Ordering::Relaxed);
            let bytes = self.pending_bytes.load(Ordering::Relaxed) + command.len() as u64;
            if count >= factor * PENDING_COMMANDS_MAX || bytes > factor * PENDING_BYTES_MAX {
                return Err(ProposeError::TooManyRequests);
            }
            self.pending_count.fetch_add(1, Ordering::Relaxed);
            self.pending_bytes.fetch_add(command.len() as u64, Ordering::Relaxed);
            queue.commands.push_back((class, command));
        }
        self.wake();
        Ok(())
    }

    /// These commands were applied or rejected: there is room for others.
    fn release(&self, commands: &[Vec<u8>]) {
        let bytes: usize = commands.iter().map(Vec::len).sum();
        self.pending_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.pending_count.fetch_sub(commands.len() as u64, Ordering::Relaxed);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }
}

impl Solo {
    /// Opens the directory, replays its log into `machine` and starts serving. Returns when the machine holds
    /// everything that was ever acknowledged.
    pub fn start<M: StateMachine>(options: SoloOptions, machine: M) -> Result<Self> {
        let close = |_: SoloParts<M>| unreachable!("nobody asks it to hand over");
        Self::start_with_successor(options, machine, Box::new(close))
    }

    /// The same for a node that may become a member of a group: see [`Self::hand_over`].
    pub fn start_with_successor<M: StateMachine>(
        options: SoloOptions,
        machine: M,
        successor: Successor<M>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (report, opened) = mpsc::sync_channel(1);
        let thread_shared = Arc::clone(&shared);
        // A ring belongs to the thread that made it, so the log is opened where it will be driven.
        let thread = std::thread::Builder::new()
            .name("solo".into())
            .spawn(move || {
                let mut progress = options.progress;
                let prepared = PreparedLog::in_directory(
                    &options.directory,
                    &options.log,
                    &identity(&options.genesis),
                    &mut *progress,
                );
                let opened = prepared.and_then(|prepared| {
                    SoloCore::open(
                        prepared,
                        &options.checkpoint,
                        &mut *progress,
                        &options.genesis,
                        machine,
                        thread_shared,
                    )
                });
                match opened {
                    Ok((mut core, opened, woken)) => {
                        if let Some(on_checkpoint) = options.on_checkpoint {
                            core.checkpointer.set_on_event(on_checkpoint);
                        }
                        let _abort = AbortOnPanic;
                        let _ = report.send(Ok((
                            opened.clone(),
                            core.log.take_calibration(),
                            core.log.place().downgrade(),
                        )));
                        core.run();
                        if core.hands_over() {
                            successor(core.into_parts(opened, woken))
                        } else {
                            core.close()
                        }
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                        Ok(())
                    }
                }
            })
            .map_err(|error| Error::Refused(format!("cannot start the thread of the log: {error}")))?;
        let (opened, calibration, place) = opened.recv().unwrap_or_else(|_| {
            Err(Error::Refused("the thread of the log ended while opening; see the message above".into()))
        })?;
        let calibration = Calibration::new(calibration);
        Ok(Self { shared, opened, place, calibration, thread: Mutex::new(Some(thread)) })
    }

    /// Ends this node when everything that is queued is applied, and has the successor go on with it; commands that come meanwhile are refused. Returns the
    /// thread, which is the successor's. None if there is none any more.
    pub fn hand_over(&self) -> Option<JoinHandle<Result<()>>> {
        self.shared.queue().handing_over = true;
        self.shared.wake();
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Measures the device in the background if this start calls for it (see [`sternpost_engine::log::calibration`]); to be
    /// called once everything is served that waits for the start. `report` is called on that thread when it came to an
    /// end by itself; it must not hold this node, which waits for the thread when it is dropped.
    pub fn calibrate(
        &self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) {
        self.calibration.start(delay, report);
    }

    /// The directory, for who writes beside the log as long as it is open.
    pub fn place(&self) -> PlaceRef {
        self.place.clone()
    }

    /// What was found at the start.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Keeps what is durable now, everything acknowledged, as it is, for a backup ([`sternpost_engine::backup::create_live`]). Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] if the log does not answer.
    pub fn hold(&self) -> Result<LiveSource> {
        self.shared.holders.hold(|| self.shared.wake())
    }

    /// Statistics of the log and of the checkpoints as of the last time the thread had a moment; asks for fresher ones.
    pub fn stats(&self) -> Option<(WalStats, CheckpointStats)> {
        self.shared.queue().stats_wanted = true;
        self.shared.wake();
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A broken invariant on the thread that applies leaves the state in doubt: the process ends before anybody is served
/// from it. The panic's own message has been printed by then.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

pub(crate) fn identity(genesis: &Genesis) -> LogIdentity {
    LogIdentity { mode: Mode::Replicated, cluster_id: genesis.cluster_id, member_id: genesis.member_id }
}

impl Replicator for Solo {
    fn propose(&self, command: Vec<u8>, class: Class) -> Result<(), ProposeError> {
        self.shared.propose(command, class)
    }

    fn read_barrier(&self) -> ReadBarrier {
        ReadBarrier::ready(Ok(self.shared.applied_index.load(Ordering::Acquire)))
    }

    fn status(&self) -> ReplicatorStatus {
        ReplicatorStatus {
            term: GENESIS_TERM,
            leader: self.opened.member_id,
            committed_index: self.shared.committed_index.load(Ordering::Acquire),
            applied_index: self.shared.applied_index.load(Ordering::Acquire),
            pending_count: self.shared.pending_count.load(Ordering::Relaxed),
            last_index: self.shared.committed_index.load(Ordering::Acquire),
            proved_term: Some(GENESIS_TERM),
            leader_changes_count: 1,
            quarantine: None,
            full: self.shared.full.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn oldest_write_age_us(&self) -> u64 {
        self.shared.write_age.get().map_or(0, WriteAge::oldest_us)
    }

    fn shutdown(&self) -> Result<(), String> {
        self.calibration.end();
        {
            let mut queue = self.shared.queue();
            // Who has handed over has nothing to close.
            queue.closing |= !queue.handing_over;
        }
        self.shared.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            None => Ok(()),
            Some(thread) => match thread.join() {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("the thread of the log ended with a broken invariant".into()),
            },
        }
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        let _ = self.shutdown();
    }
}

/// An entry that is appended and waits to be durable.
struct Unapplied {
    lsn: Lsn,
    index: u64,
    commands: Vec<Vec<u8>>,
}

/// The state machine of the thread, without the thread: the simulator drives the same `step`.
struct SoloCore<M> {
    log: Log,
    machine: M,
    checkpointer: Checkpointer,
    shared: Arc<Shared>,
    /// Index of the next entry; entries are consecutive.
    next_index: u64,
    /// Entries in log order, appended and not yet applied. Bounded by what `Shared::propose` lets in.
    unapplied: VecDeque<Unapplied>,
    /// Scratch for the body of an entry.
    body: Vec<u8>,
    member_id: u64,
    /// True after the machine was told that the log failed.
    failed: bool,
    /// The last ordinary entry was refused for want of room.
    is_full: bool,
    genesis: Genesis,
    holding: Holding,
    /// Keeps states for who holds them.
    state: StateHolder,
}

impl<M: StateMachine> SoloCore<M> {
    /// Opens a log through `open`, replays it, and writes the genesis when it is new.
    fn open(
        mut prepared: PreparedLog,
        options: &CheckpointOptions,
        progress: &mut dyn FnMut(OpenProgress<'_>),
        genesis: &Genesis,
        mut machine: M,
        shared: Arc<Shared>,
    ) -> Result<(Self, Opened, Arc<OnceLock<Waker>>)> {
        let mut checkpointer = prepared.checkpointer(options)?;
        if let Some(storage) = machine.storage() {
            checkpointer.attach(storage)?;
            machine.attached();
        }
        let applied_index = machine.applied_index();
        let announcer = machine.announcer();
        let priors = checkpointer.priors();
        let mut replay = Replay { genesis: None, last_index: applied_index, applied_index };
        let mut visit = |record: &Record<'_>| replay.visit(&mut machine, &mut checkpointer, record);
        let mut announce = |record: &Record<'_>| {
            if let Some(announce) = &announcer
                && record.meta.kind == RecordKind::RaftEntry
                && record.meta.index > applied_index
                // Who visits it says what is wrong with it.
                && let Ok(commands) = decode_entry(record.body)
            {
                commands.into_iter().for_each(announce);
            }
        };
        let (log, recovery, created) = prepared.recover_ahead(priors, &mut announce, &mut visit, progress)?;
        let woken = Arc::new(OnceLock::<Waker>::new());
        let (own, others) = (log.waker(), Arc::clone(&woken));
        log.start_checkpoints_waking(
            &mut checkpointer,
            Arc::new(move || match others.get() {
                Some(other) => other(),
                None => own(),
            }),
        )?;
        machine.flush();
        let superblock = log.identity();
        let state = checkpointer.state_holder();
        let mut core = Self {
            log,
            machine,
            checkpointer,
            shared,
            next_index: replay.last_index + 1,
            unapplied: VecDeque::new(),
            body: Vec::new(),
            member_id: superblock.member_id,
            failed: false,
            is_full: false,
            holding: Holding::default(),
            state,
            genesis: Genesis {
                cluster_id: superblock.cluster_id,
                member_id: superblock.member_id,
                ..replay.genesis.clone().unwrap_or_else(|| genesis.clone())
            },
        };
        if replay.genesis.is_none() {
            // New, or the first start died before its genesis was durable: nothing was acknowledged before that.
            if replay.last_index != 0 {
                return Err(Error::Refused(
                    "the log holds entries but no genesis record; it is not ours".into(),
                ));
            }
            core.write_genesis(&core.genesis.clone())?;
        }
        let shared = &core.shared;
        shared.member_id.store(core.member_id, Ordering::Relaxed);
        shared.committed_index.store(core.next_index - 1, Ordering::Release);
        shared.applied_index.store(core.next_index - 1, Ordering::Release);
        let _ = shared.waker.set(core.log.waker());
        let _ = shared.write_age.set(core.log.write_age());
        let opened = Opened {
            cluster_id: superblock.cluster_id,
            member_id: superblock.member_id,
            created,
            backend: core.log.backend(),
            recovery,
            sync_method: core.log.sync_method(),
        };
        Ok((core, opened, woken))
    }

    /// It was asked to, and nothing is in the way.
    fn hands_over(&self) -> bool {
        let queue = self.shared.queue();
        queue.handing_over && !queue.closing && !self.failed
    }

    fn into_parts(self, opened: Opened, woken: Arc<OnceLock<Waker>>) -> SoloParts<M> {
        let Self { log, machine, checkpointer, next_index, genesis, .. } = self;
        SoloParts { log, machine, checkpointer, last_index: next_index - 1, genesis, opened, woken }
    }

    fn write_genesis(&mut self, genesis: &Genesis) -> Result<()> {
        let mark = RecordMeta {
            kind: RecordKind::SnapshotMark,
            entry_type: 0,
            group: GROUP,
            term: GENESIS_TERM,
            index: GENESIS_INDEX,
        };
        self.log.append(mark, &encode_genesis(genesis), Reserve::Privileged)?;
        let hard_state = RecordMeta { kind: RecordKind::HardState, ..mark };
        let lsn = self.log.append(hard_state, &encode_hard_state(genesis.member_id), Reserve::Privileged)?;
        while self.log.durable_lsn() <= lsn {
            self.log.submit();
            self.log.wait(1_000_000);
            if let Some(reason) = self.log.poisoned() {
                return Err(Error::LogPoisoned(reason.to_owned()));
            }
        }
        self.machine.restore(GENESIS_INDEX, GENESIS_TERM, &genesis.state);
        self.next_index = GENESIS_INDEX + 1;
        Ok(())
    }

    /// Runs until closed or failed.
    fn run(&mut self) {
        while self.step(u64::MAX) {}
    }

    /// One round; blocks for at most `wait_us_max` when there is nothing to do. False when it is time to end.
    fn step(&mut self, wait_us_max: u64) -> bool {
        if let Some(storage) = self.machine.storage()
            && let Some(replay_lsn) = self.checkpointer.poll(storage, self.log.durable_lsn())
        {
            self.log.set_replay_lsn(replay_lsn);
        }
        if self.checkpointer.take_rested() {
            self.log.trim();
        }
        self.look();
        let closing = self.take_queue();
        self.log.submit();
        let applied = self.apply_durable();
        let last = self.unapplied.back().map(|entry| entry.lsn);
        self.holding.answer(&self.shared.holders, last, &self.log, &self.state);
        if let Some(reason) = self.log.poisoned() {
            let reason = reason.to_owned();
            self.fail(&reason);
            return false;
        }
        if applied {
            return true;
        }
        if self.unapplied.is_empty() {
            if closing {
                return false;
            }
            if self.machine.maintain() {
                self.log.wait(0);
                return true;
            }
        }
        self.look();
        self.log.wait(wait_us_max.min(self.checkpointer.sleep_us_max()));
        true
    }

    /// Has the checkpointer look at how much may be taken now.
    fn look(&mut self) {
        let now_us = self.log.now_us();
        if let Some(storage) = self.machine.storage() {
            self.checkpointer.look(storage, now_us);
        }
    }

    /// Moves what is queued into entries of the log. Returns whether the thread shall end.
    fn take_queue(&mut self) -> bool {
        let refusal = self.checkpointer.refusal();
        let (commands, closing) = {
            let mut queue = self.shared.queue();
            if std::mem::take(&mut queue.stats_wanted) {
                *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((self.log.wal_stats(), self.checkpointer.stats()));
            }
            // While memory waits for the disk nothing more is taken; what is queued fills up to its bound, and then
            // proposers hear of it.
            if self.checkpointer.is_full() && refusal.is_none() {
                return queue.closing;
            }
            let closing = queue.closing || queue.handing_over;
            let bytes_of = |(_, command): &(Class, Vec<u8>)| command.len();
            (self.checkpointer.take(&mut queue.commands, bytes_of, closing), closing)
        };
        if let Some(error) = refusal {
            // Nothing more can be held: the proposers hear why.
            let commands: Vec<_> = commands.into_iter().map(|(_, command)| command).collect();
            self.refuse(&commands, error);
            return closing;
        }
        // A privileged command travels alone where the device is full, so that only its neighbours are refused.
        let is_tight = self.log.check_room(ENTRY_BYTES_MAX, Reserve::Ordinary).is_err();
        let mut entry = Vec::new();
        let mut entry_class = Class::Privileged;
        let mut entry_bytes = 0;
        for (class, command) in commands {
            let is_other = is_tight && class != entry_class;
            if !entry.is_empty() && (entry_bytes + command.len() > ENTRY_BYTES_MAX || is_other) {
                self.append_entry(std::mem::take(&mut entry), entry_class);
                entry_bytes = 0;
            }
            if entry.is_empty() || class == Class::Ordinary {
                entry_class = class;
            }
            entry_bytes += command.len();
            entry.push(command);
        }
        if !entry.is_empty() {
            self.append_entry(entry, entry_class);
        }
        closing
    }

    fn refuse(&mut self, commands: &[Vec<u8>], error: Error) {
        let rejection = match error {
            Error::NoSpace(_) => {
                self.is_full = true;
                self.shared.set_full(Some(error.to_string()));
                Rejection::NoSpace
            }
            other => Rejection::Stopped(other.to_string()),
        };
        for command in commands {
            self.machine.rejected(command, &rejection);
        }
        self.shared.release(commands);
    }

    fn append_entry(&mut self, commands: Vec<Vec<u8>>, class: Class) {
        self.body.clear();
        start_entry(&mut self.body);
        for command in &commands {
            add_command(&mut self.body, command);
        }
        let index = self.next_index;
        let meta = RecordMeta {
            kind: RecordKind::RaftEntry,
            entry_type: 0,
            group: GROUP,
            term: GENESIS_TERM,
            index,
        };
        let reserve = match class {
            Class::Ordinary => Reserve::Ordinary,
            Class::Privileged => Reserve::Privileged,
        };
        self.log.append_notes(GROUP, self.machine.storage().and_then(StoreWriter::take_notes));
        match self.log.append(meta, &self.body, reserve) {
            Ok(lsn) => {
                self.next_index += 1;
                self.unapplied.push_back(Unapplied { lsn, index, commands });
                // What may be written when the device is full says nothing about room.
                if class == Class::Ordinary && std::mem::take(&mut self.is_full) {
                    self.shared.set_full(None);
                }
            }
            Err(error) => self.refuse(&commands, error),
        }
    }

    /// Applies every entry that is durable; true if there was one.
    fn apply_durable(&mut self) -> bool {
        let durable = self.log.durable_lsn();
        let mut last = None;
        while self.unapplied.front().is_some_and(|entry| entry.lsn < durable) {
            let Some(entry) = self.unapplied.pop_front() else { break };
            let commands = entry.commands.iter().map(Vec::as_slice).collect::<Vec<_>>();
            // R1: applied <= committed, and both are durable.
            self.shared.committed_index.store(entry.index, Ordering::Release);
            self.machine.apply(&Entry { index: entry.index, term: GENESIS_TERM, commands, replay: false });
            let position = CutPosition { index: entry.index, term: GENESIS_TERM, lsn: entry.lsn };
            if let Some(storage) = self.machine.storage() {
                self.checkpointer.after_entry(storage, position);
            }
            self.shared.applied_index.store(entry.index, Ordering::Release);
            self.shared.release(&entry.commands);
            last = Some(entry.index);
        }
        if let Some(index) = last {
            self.log.note_commit(GROUP, index);
            self.machine.flush();
        }
        last.is_some()
    }

    fn fail(&mut self, reason: &str) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        let commands: Vec<_> = {
            let mut queue = self.shared.queue();
            queue.stopped = Some(reason.to_owned());
            std::mem::take(&mut queue.commands).into_iter().map(|(_, command)| command).collect()
        };
        let rejection = Rejection::Stopped(reason.to_owned());
        for command in &commands {
            self.machine.rejected(command, &rejection);
        }
        self.shared.release(&commands);
        self.machine.stopped(reason);
    }

    fn close(mut self) -> Result<()> {
        if !self.failed
            && let Some(storage) = self.machine.storage()
            && let Some(replay_lsn) = self.checkpointer.finish(storage, self.log.durable_lsn())
        {
            self.log.set_replay_lsn(replay_lsn);
        }
        self.checkpointer.close();
        // Left in the queue when memory was full at the end: nobody else answers their proposers.
        let commands: Vec<_> = {
            let mut queue = self.shared.queue();
            queue.stopped.get_or_insert_with(|| "the server has stopped".into());
            std::mem::take(&mut queue.commands).into_iter().map(|(_, command)| command).collect()
        };
        for command in &commands {
            self.machine.rejected(command, &Rejection::Stopped("the server has stopped".into()));
        }
        self.shared.release(&commands);
        if self.failed { Ok(()) } else { self.log.close() }
    }
}

/// What replaying the log has found so far.
struct Replay {
    genesis: Option<Genesis>,
    last_index: u64,
    /// What the checkpoint holds.
    applied_index: u64,
}

impl Replay {
    fn visit<M: StateMachine>(
        &mut self,
        machine: &mut M,
        checkpointer: &mut Checkpointer,
        record: &Record<'_>,
    ) -> Result<()> {
        let refused = |what: String| {
            Error::Refused(format!(
                "record of index {} at log position {}: {what}",
                record.meta.index, record.lsn
            ))
        };
        match record.meta.kind {
            RecordKind::SnapshotMark if self.genesis.is_none() => {
                let (genesis, feature_level) =
                    decode_genesis(record.body).map_err(|error| refused(error.to_string()))?;
                if feature_level > FEATURE_LEVEL {
                    return Err(refused(format!(
                        "needs feature level {feature_level}, this build has {FEATURE_LEVEL}; use a newer build"
                    )));
                }
                if genesis.voters.len() > 1 {
                    return Err(refused(format!(
                        "the directory is that of a member of a group of {}, and was to be opened as a single node",
                        genesis.voters.len()
                    )));
                }
                if self.applied_index < record.meta.index {
                    machine.restore(record.meta.index, record.meta.term, &genesis.state);
                    self.last_index = record.meta.index;
                }
                self.genesis = Some(genesis);
            }
            // In the checkpoint; recovery starts with the last of these (I4).
            RecordKind::RaftEntry if record.meta.index <= self.applied_index => {}
            RecordKind::RaftEntry => {
                if self.genesis.is_none()
                    || record.meta.index != self.last_index + 1
                    || record.meta.term != GENESIS_TERM
                {
                    return Err(refused(format!(
                        "expected index {} in term {GENESIS_TERM}, found term {}; a directory of a Raft group is opened \
                         by the build with Raft",
                        self.last_index + 1,
                        record.meta.term
                    )));
                }
                let commands = decode_entry(record.body).map_err(|error| refused(error.to_string()))?;
                let entry =
                    Entry { index: record.meta.index, term: record.meta.term, commands, replay: true };
                machine.apply(&entry);
                self.last_index = record.meta.index;
                let position =
                    CutPosition { index: record.meta.index, term: record.meta.term, lsn: record.lsn };
                if let Some(storage) = machine.storage() {
                    checkpointer.after_entry(storage, position);
                }
            }
            // Repeated at the start of each segment, or nothing that a single node acts on.
            _ => {}
        }
        Ok(())
    }
}

/// Opens a core over any device, without a thread: for simulated runs.
#[cfg(feature = "sim")]
pub mod simulated {
    use super::*;

    /// A single node whose rounds a test makes one by one.
    pub struct SimulatedSolo<M> {
        core: SoloCore<M>,
        solo: Arc<Shared>,
    }

    impl<M: StateMachine> SimulatedSolo<M> {
        /// Opens over `disk`.
        pub fn open(
            disk: &SimDisk,
            options: &LogOptions,
            checkpoint: &CheckpointOptions,
            seed: u64,
            genesis: &Genesis,
            machine: M,
        ) -> Result<Self> {
            let solo = Arc::new(Shared::default());
            let prepared = PreparedLog::on_simulated_disk(disk, options, &identity(genesis), seed)?;
            let (core, _, _) =
                SoloCore::open(prepared, checkpoint, &mut |_| {}, genesis, machine, Arc::clone(&solo))?;
            Ok(Self { core, solo })
        }

        /// Queues a command.
        ///
        /// # Errors
        /// Those of the real node.
        pub fn propose(&self, class: Class, command: Vec<u8>) -> Result<(), ProposeError> {
            self.solo.propose(command, class)
        }

        /// One round of the thread's loop.
        pub fn step(&mut self, wait_us_max: u64) -> bool {
            self.core.step(wait_us_max)
        }

        /// The state machine.
        pub fn machine(&self) -> &M {
            &self.core.machine
        }
    }
}
