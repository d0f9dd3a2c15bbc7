//! A running member: threads around a core, and the [`Replicator`] that a server sees.
//!
//! **Threads.** `raft`: log and core. `apply`: state machine and checkpoints. `raft-load`: reads the log's files for followers that are behind.
//! The transport has its own; it gives frames to [`Raft::inbox`] and takes them by [`Carrier`].
//!
//! **Start.** The directory is opened and replayed as far as entries are known to be committed; then the member takes part, alone until
//! [`Raft::connect`]. **Stop.** Leadership is handed over, what is under way is finished, a checkpoint is made, the log is closed.
//!
//! **Failure.** When the log fails, nothing more is acknowledged: the machine is told once, the member says nothing any more, and
//! the others elect another leader. A member whose log and checkpoint do not fit together does not start.
use super::alone::Alone;
use super::apply::put_configuration;
use super::apply::{Applier, ApplyQueue};
use super::barrier::Slot;
use super::core::{Core, CoreOptions, CoreStart, CoreStatus};
use super::force::{self, ChangeCommand};
use super::frame::{Body, Frame, Lane};
use super::inbox::{ArrivedChange, Inbox, Questions, Reader};
use super::input::{Input, Proposal, Quarantine, Role};
use super::log_thread::{LOAD_JOBS_MAX, LoadJob, LogThread, load_entries};
use super::open::{OpenedMember, open};
use super::pace::Pace;
use super::planted::Planted;
use super::state;
use crate::entry_format::GENESIS_TERM;
use crate::holders::{Holders, Holding};
use crate::replicator::{
    Answer, Answerer, Class, Genesis, MemberChange, PeerStatus, ProposeError, ReadBarrier, ReadError,
    Replicator, ReplicatorStatus, TransferError,
};
use crate::solo::{AbortOnPanic, Calibration, Opened, SoloParts, Successor, identity};
use crate::state_machine::StateMachine;
use crate::transport::StateSource;
use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use sternpost_engine::backup::LiveSource;
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_engine::checkpoint::{CheckpointOptions, CheckpointStats, OnCheckpoint};
use sternpost_engine::io::Waker;
use sternpost_engine::log::calibration::CalibrationReport;
use sternpost_engine::log::{OpenProgress, PreparedLog, WriteAge};
use sternpost_engine::options::LogOptions;
use sternpost_engine::superblock::SharedSuperblock;
use sternpost_engine::transfer::{self, StateHolder};
use sternpost_engine::wal::{LogReader, WalStats};
use sternpost_engine::{Error, Result, backup};

/// Length of a tick: heartbeats and election timeouts are multiples of it.
pub const TICK: Duration = Duration::from_millis(10);
/// Bytes of entries that are kept in memory for followers that are a little behind.
pub const CACHE_BYTES_MAX: usize = 64 << 20;

/// Takes frames to other members. Never blocks.
pub trait Carrier: Send + Sync {
    /// Queues a frame; false if it was dropped, and then the peer counts as unreachable.
    fn send(&self, to: u64, lane: Lane, frame: Bytes) -> bool;
}

/// In the superblock: the state of this member differs from that of most others.
const STATE_DIFFERS: u32 = 1;

/// What is worth a line in a log, or somebody's attention.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RaftEvent {
    /// Term, role or leader have changed.
    Role(Role),
    /// This member leads, and has applied everything that was acknowledged before.
    LeaderProved {
        /// The term.
        term: u64,
    },
    /// A member is so far behind that the log does not reach back to it.
    NeedsSnapshot {
        /// The member.
        id: u64,
    },
    /// A write has been on its way to the disk for 30 s or more: the process should end, so that who supervises it can do something.
    DiskHangs {
        /// For so long.
        seconds: u64,
    },
    /// The election timeout that this member goes by has become another one.
    ElectionTimeout {
        /// Milliseconds.
        ms: u64,
    },
    /// The device has no room for more of the log: why, or none if it has again.
    Full(Option<String>),
    /// This member takes no part any more.
    Quarantined(String),
    /// As it was told to, this member has removed all others and goes on alone.
    ForcedAlone {
        /// Who was removed, in order.
        removed: Vec<u64>,
        /// Entries of its log that were not known to be committed, and are now.
        uncommitted_count: u64,
    },
    /// The log's files could not be read for a follower.
    LogUnreadable {
        /// From this entry on.
        index: u64,
        /// Why.
        error: String,
    },
}

/// What a member is started with.
pub struct RaftOptions {
    /// The data directory.
    pub directory: PathBuf,
    /// The log and its device; what it retains is set here.
    pub log: LogOptions,
    /// What is on disk beside the log, and its cache.
    pub checkpoint: CheckpointOptions,
    /// Used when the directory is new; an existing directory keeps its own.
    pub genesis: Genesis,
    /// Called while the log is replayed, every few MiB.
    pub progress: Box<dyn FnMut(OpenProgress<'_>) + Send>,
    /// Hears of checkpoints, on the thread that applies; must not block.
    pub on_checkpoint: Option<OnCheckpoint>,
    /// Given, all other members are removed, with these commands: the last resort when a quorum is lost (`replication/docs/raft.md`).
    pub force_alone: Option<ChangeCommand>,
    /// The rest.
    pub group: GroupOptions,
}

/// What a member of a group needs to know beside its directory.
pub struct GroupOptions {
    /// Time between heartbeats, rounded to ticks.
    pub heartbeat: Duration,
    /// Least time without a leader before an election; each is between this and twice this.
    pub election: Duration,
    /// That grows, and heartbeats with it, where network, disk or processor are slow: see [`super::pace`].
    pub is_adaptive: bool,
    /// Elect as soon as the leader's process is known to be gone: [`Inbox::absent`].
    pub quick_elections: bool,
    /// Proposals and reads are given up after this.
    pub request_timeout: Duration,
    /// Finds the id in a command, by which its result is delivered; unique in the cluster and over restarts.
    pub command_id: fn(&[u8]) -> Option<u64>,
    /// See [`LogOptions::retain_bytes`]; of a running member as its flag says.
    pub retain_bytes: u64,
    /// Bytes of entries kept in memory for followers; [`CACHE_BYTES_MAX`] unless a test wants less.
    pub cache_bytes_max: usize,
    /// Hears of events, on several threads; must not block.
    pub on_event: Box<dyn Fn(RaftEvent) + Send + Sync>,
}

/// A running member of a group.
pub struct Raft {
    pub(super) shared: Arc<Shared>,
    pub(super) opened: Opened,
    pub(super) genesis: Genesis,
    pub(super) calibration: Calibration,
    pub(super) transfers: Transfers,
    /// None where somebody else drives it.
    pub(super) thread: Mutex<Option<JoinHandle<Result<()>>>>,
    pub(super) election: Duration,
    pub(super) command_id: fn(&[u8]) -> Option<u64>,
}

/// A member of a group that comes of a single node.
pub(super) struct Grown(mpsc::Receiver<Result<Raft>>);

impl Grown {
    /// Waits for it; `thread` is that of the single node, which it goes on with.
    pub(super) fn wait(self, thread: JoinHandle<Result<()>>) -> Result<Raft> {
        let ended = || Error::Refused("the thread of the log ended; see the message above".into());
        let raft = self.0.recv().unwrap_or_else(|_| Err(ended()))?;
        *raft.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(raft)
    }
}

/// A single node's log and state as those of a one-voter group: its log is what such a group would have written (R16).
fn take_over<M: StateMachine>(
    directory: &Path,
    parts: SoloParts<M>,
    options: GroupOptions,
) -> Result<Prepared> {
    let SoloParts { mut log, mut machine, checkpointer, last_index, genesis, opened, woken } = parts;
    mark_as_group(directory)?;
    log.set_retain_bytes(options.retain_bytes);
    let configuration = ConfState { voters: vec![opened.member_id], ..ConfState::default() };
    put_configuration(&mut machine, &configuration);
    let hard_state = HardState { term: GENESIS_TERM, vote: opened.member_id, commit: last_index };
    let start = CoreStart {
        hard_state,
        configuration,
        applied: last_index,
        // What lies before is in files, but nobody knows where; a member that needs it fetches the state.
        base: (last_index, GENESIS_TERM),
        terms: Vec::new(),
        tail: Vec::new(),
    };
    let (positions, lsns) = Default::default();
    let forced = None;
    let member = OpenedMember { log, machine, checkpointer, positions, lsns, start, opened, genesis, forced };
    assemble(member, options, Some(woken))
}

/// Statistics that somebody asked for.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) is_wanted: bool,
    pub(super) wal: Option<WalStats>,
}

/// Questions that wait for their answer at most; those that nobody waits for any more make room first.
const ASKED_MAX: usize = 65_536;

/// What this member's server asked others.
pub(super) struct Asked {
    pub(super) member: u64,
    boot: u64,
    answerer: OnceLock<Answerer>,
    waiting: Mutex<Waiting>,
}

type AnswerSlot = Slot<Option<Vec<u8>>>;

#[derive(Default)]
struct Waiting {
    last_number: u64,
    by_number: BTreeMap<u64, AnswerSlot>,
}

impl Asked {
    /// A number and its slot; none if too many wait.
    fn register(&self) -> Option<(u64, AnswerSlot)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.by_number.len() >= ASKED_MAX {
            waiting.by_number.retain(|_, slot| !slot.is_dropped());
            if waiting.by_number.len() >= ASKED_MAX {
                return None;
            }
        }
        waiting.last_number += 1;
        let number = waiting.last_number;
        let slot = Slot::default();
        waiting.by_number.insert(number, slot.clone());
        Some((number, slot))
    }

    fn take(&self, number: u64) -> Option<AnswerSlot> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).by_number.remove(&number)
    }
}

/// The inbox's way to the servers.
struct Correspondence(std::sync::Weak<Shared>);

impl Questions for Correspondence {
    fn question(&self, from: u64, boot: u64, number: u64, bytes: Bytes) {
        let Some(shared) = self.0.upgrade() else { return };
        let Some(answerer) = shared.asked.answerer.get() else { return };
        let back = self.0.clone();
        let reply = move |answer: Vec<u8>| {
            if let Some(shared) = back.upgrade() {
                let body = Body::Answer { boot, number, bytes: Bytes::from(answer) };
                shared.send(&Frame { from: shared.asked.member, to: from, disk_ms: 0, election_ms: 0, body });
            }
        };
        answerer(bytes.to_vec(), Box::new(reply));
    }

    fn answer(&self, boot: u64, number: u64, bytes: Bytes) {
        let Some(shared) = self.0.upgrade() else { return };
        if boot == shared.asked.boot
            && let Some(slot) = shared.asked.take(number)
        {
            slot.answer(Some(bytes.to_vec()));
        }
    }
}

/// What the threads and callers share.
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    apply: Arc<ApplyQueue>,
    carrier: OnceLock<Box<dyn Carrier>>,
    status: Mutex<CoreStatus>,
    /// What was acknowledged is applied here (see [`super::alone`]), and nobody else can lead before this member has given its vote, which leaves it later
    /// than the news of that is here.
    pub(super) leads_alone: AtomicBool,
    status_changed: Condvar,
    leader_changes_count: AtomicU64,
    write_age: OnceLock<WriteAge>,
    pub(super) stats: Mutex<Stats>,
    /// Why the log has no room, while it has none.
    full: Mutex<Option<String>>,
    pub(super) holders: Holders,
    apply_thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) asked: Asked,
    on_event: Box<dyn Fn(RaftEvent) + Send + Sync>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, CoreStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, status: CoreStatus, leads_alone: bool) {
        self.leads_alone.store(leads_alone, Ordering::Release);
        let mut known = self.status();
        if *known != status {
            if status.role.leader != 0 && status.role.leader != known.role.leader {
                self.leader_changes_count.fetch_add(1, Ordering::Relaxed);
            }
            *known = status;
            drop(known);
            self.status_changed.notify_all();
        }
    }

    pub(super) fn send(&self, frame: &Frame) {
        if !self.carry(frame) {
            self.inbox.unreachable(frame.to);
        }
    }

    fn carry(&self, frame: &Frame) -> bool {
        // Before the transport stands, everything is lost, as on any network.
        self.carrier.get().is_none_or(|carrier| carrier.send(frame.to, frame.lane(), frame.encode()))
    }

    pub(super) fn tell(&self, event: RaftEvent) {
        (self.on_event)(event);
    }

    /// Why the log has no room, or none if it has.
    pub(super) fn set_full(&self, full: Option<String>) {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&full);
        self.tell(RaftEvent::Full(full));
    }

    pub(super) fn write_age_us(&self) -> u64 {
        self.write_age.get().map_or(0, WriteAge::oldest_us)
    }

    pub(super) fn join_apply(&self) {
        let thread = self.apply_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there aborts the process.
            let _ = thread.join();
        }
    }
}

fn ticks(time: Duration) -> usize {
    usize::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(usize::MAX).max(1)
}

impl Raft {
    /// Opens the directory, replays its log into `machine` and begins to take part. Until [`Raft::connect`] nobody hears it.
    ///
    /// # Errors
    /// Those of opening; and a member whose log and checkpoint do not fit together.
    pub fn start(options: RaftOptions, machine: impl StateMachine) -> Result<Self> {
        let (election, command_id) = (options.group.election, options.group.command_id);
        let (report, opened) = mpsc::sync_channel(1);
        // A ring belongs to the thread that made it, so the log is opened where it will be driven.
        let thread = std::thread::Builder::new()
            .name("raft".into())
            .spawn(move || match prepare(options, machine) {
                Ok((thread, opened, genesis, calibration, transfers)) => {
                    let _abort = AbortOnPanic;
                    let _ = report.send(Ok((
                        Arc::clone(&thread.shared),
                        opened,
                        genesis,
                        calibration,
                        transfers,
                    )));
                    thread.run()
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                    Ok(())
                }
            })
            .map_err(|error| Error::Refused(format!("cannot start the thread of the log: {error}")))?;
        let (shared, opened, genesis, calibration, transfers) = opened.recv().unwrap_or_else(|_| {
            Err(Error::Refused("the thread of the log ended while opening; see the message above".into()))
        })?;
        let calibration = Calibration::new(calibration);
        let thread = Mutex::new(Some(thread));
        Ok(Self { shared, opened, genesis, calibration, transfers, thread, election, command_id })
    }

    /// What goes on where a single node ends, on its thread, and where the member of a group that came of it can be had.
    pub(super) fn successor<M: StateMachine>(
        directory: PathBuf,
        options: GroupOptions,
    ) -> (Successor<M>, Grown) {
        let (report, grown) = mpsc::sync_channel(1);
        let (election, command_id) = (options.election, options.command_id);
        let successor: Successor<M> = Box::new(move |parts| match take_over(&directory, parts, options) {
            Ok((thread, opened, genesis, _, transfers)) => {
                let shared = Arc::clone(&thread.shared);
                let (calibration, joined) = (Calibration::new(None), Mutex::new(None));
                let raft = Self {
                    shared,
                    opened,
                    genesis,
                    calibration,
                    transfers,
                    thread: joined,
                    election,
                    command_id,
                };
                let _ = report.send(Ok(raft));
                thread.run()
            }
            Err(error) => {
                let _ = report.send(Err(error.clone()));
                Err(error)
            }
        });
        (successor, Grown(grown))
    }

    /// Where the transport brings frames and news of peers.
    pub fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.shared.inbox)
    }

    /// From now on frames go out by `carrier`. Called once.
    pub fn connect(&self, carrier: Box<dyn Carrier>) {
        let _ = self.shared.carrier.set(carrier);
    }

    /// What was found at the start.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// What the group was made with, from the directory.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Of this start: no other start of this member has it.
    pub fn boot(&self) -> u64 {
        self.shared.asked.boot
    }

    /// This member's state, for one that fetches it.
    pub fn state_source(&self) -> Box<dyn StateSource> {
        let holder = self.transfers.holder.clone();
        Box::new(state::Source::new(holder, Arc::clone(&self.shared.apply), &self.genesis))
    }

    /// Where [`state::fetch`] stages the state of another member; it is taken at the next start.
    pub fn staging_place(&self) -> transfer::Place {
        self.transfers.place.clone()
    }

    /// Everything the core says of itself.
    pub fn core_status(&self) -> CoreStatus {
        self.shared.status().clone()
    }

    /// Waits until `is_it` holds for the status, at most `time`; true if it does.
    pub fn wait_for(&self, time: Duration, is_it: impl Fn(&CoreStatus) -> bool) -> bool {
        let status = self.shared.status();
        let waited = self.shared.status_changed.wait_timeout_while(status, time, |status| !is_it(status));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Ends this member's part in its group, because its state differs from that of the others: nothing is acknowledged, voted or read any more. To be seen in
    /// the status soon; [`Self::keep_quarantine`] is to follow then.
    pub fn begin_quarantine(&self) {
        self.shared.inbox.note_difference();
    }

    /// Keeps it, durably, until the state of another member is installed that has all that this one has acknowledged (R3). Returns the least index of such a
    /// state. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] if this member is not quarantined for its state; what the device reports.
    pub fn keep_quarantine(&self) -> Result<u64> {
        let status = self.core_status();
        if status.quarantine != Some(Quarantine::StateDiffers) {
            return Err(Error::Refused("this member is not quarantined for its state".into()));
        }
        let Transfers { place, superblock, .. } = &self.transfers;
        if let Some(known) = superblock.read().quarantine {
            return Ok(known.last_index);
        }
        // Nothing is appended any more, so this is the end of what was acknowledged.
        let (last_index, last_term) = (status.last, status.last_term);
        transfer::note_quarantine(place, superblock, STATE_DIFFERS, (last_index, last_term))?;
        Ok(last_index)
    }

    /// See [`crate::Solo::calibrate`].
    pub fn calibrate(
        &self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) {
        self.calibration.start(delay, report);
    }

    /// Statistics of the log and of the checkpoints as of the last time the threads had a moment; asks for fresher ones.
    pub fn stats(&self) -> Option<(WalStats, CheckpointStats)> {
        let wal = {
            let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.is_wanted = true;
            stats.wal.clone()
        };
        self.shared.inbox.wake();
        let checkpoints = self.shared.apply.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some((wal?, checkpoints))
    }

    /// See [`crate::Solo::hold`]. Where another member's state is wanted for a quarantine this one's is of no use.
    ///
    /// # Errors
    /// [`Error::Refused`] if the log does not answer, or this member is quarantined.
    pub fn hold(&self) -> Result<LiveSource> {
        if let Some(quarantine) = self.core_status().quarantine {
            return Err(Error::Refused(format!("this member is quarantined: {quarantine}")));
        }
        self.shared.holders.hold(|| self.shared.inbox.wake())
    }

    /// Hands leadership to somebody else, if this member leads and somebody can take it; waits for one election timeout at most.
    pub fn hand_over(&self) {
        let leads = |status: &CoreStatus| status.role.is_leader();
        if leads(&self.shared.status()) && !self.core_status().peers.is_empty() {
            self.shared.inbox.transfer(0);
            self.wait_for(self.election, |status| !leads(status) && status.role.leader != 0);
        }
    }
}

type Prepared =
    (LogThread, Opened, Genesis, Option<sternpost_engine::log::calibration::CalibrationJob>, Transfers);

/// What states are given from and received into.
pub(super) struct Transfers {
    holder: StateHolder,
    place: transfer::Place,
    superblock: Arc<SharedSuperblock>,
}

fn prepare(options: RaftOptions, machine: impl StateMachine) -> Result<Prepared> {
    let mut progress = options.progress;
    let log_options = LogOptions { retain_bytes: options.group.retain_bytes, ..options.log };
    let waiting = |sentence: &str| progress(OpenProgress::Waiting(sentence));
    let place = sternpost_engine::log::Place::in_directory(
        &options.directory,
        log_options.io_backend,
        log_options.lock_wait,
        waiting,
    )?;
    let transfers = transfer::Place::at(&place);
    let identity = identity(&options.genesis);
    let has_own = options.directory.join("super").exists();
    if options.force_alone.is_none() {
        refuse_restored(&options.directory)?;
    }
    let decision = state::install(&transfers, has_own, &log_options, &identity)?;
    let is_installed = decision.is_some();
    let prepared = PreparedLog::in_place(&place, &log_options, &identity)?;
    let (genesis, force) = (&options.genesis, options.force_alone);
    let member = open(prepared, &options.checkpoint, &mut *progress, genesis, decision, force, machine)?;
    if is_installed {
        state::finish(&transfers)?;
    }
    mark_as_group(&options.directory)?;
    // It has gone on alone with it, or never had another.
    backup::forget_restored(&options.directory)?;
    let mut member = member;
    if let Some(force::Forced { removed, uncommitted_count, .. }) = member.forced.take() {
        (options.group.on_event)(RaftEvent::ForcedAlone { removed, uncommitted_count });
    }
    if let Some(on_checkpoint) = options.on_checkpoint {
        member.checkpointer.set_on_event(on_checkpoint);
    }
    assemble(member, options.group, None)
}

/// R22: what comes out of a backup is older than what the member has promised, so it must not take part as that member.
fn refuse_restored(directory: &Path) -> Result<()> {
    if !backup::is_from_backup(directory) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} came out of a backup of a member of a group, so it lacks what that has acknowledged since. If the others have the data, start with an empty directory as \
         a new member; if they are gone for good, start this one once with --force-new-cluster",
        directory.display()
    )))
}

/// Made before a member of a group writes anything, so that the next start knows that the directory is one's.
const GROUP_FILE: &str = backup::OWNER_FILE;

pub(crate) fn mark_as_group(directory: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::Refused(format!("cannot make the file {GROUP_FILE} in {}: {error}", directory.display()))
    };
    if directory.join(GROUP_FILE).exists() {
        return Ok(());
    }
    let file = std::fs::File::create(directory.join(GROUP_FILE)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// True if the directory is that of a member of a group, or will be by the next start: it cannot be opened as a single node.
pub fn is_of_group(directory: &Path) -> bool {
    [GROUP_FILE, "install", "incoming.ready"].iter().any(|name| directory.join(name).exists())
}

/// A member whose log is open, as its two threads drive it.
pub(super) struct Assembled<M> {
    pub(super) log: LogThread,
    pub(super) applier: Applier<M>,
    /// Reads of the log that somebody has to make.
    pub(super) jobs: mpsc::Receiver<LoadJob>,
    pub(super) reader: LogReader,
    pub(super) opened: Opened,
    pub(super) genesis: Genesis,
    pub(super) transfers: Transfers,
}

impl<M: StateMachine> Assembled<M> {
    /// Everything but threads. `boot` is of this start alone. `woken`: checkpoints are made already, and wake what is set here.
    pub(super) fn new(
        member: OpenedMember<M>,
        options: GroupOptions,
        boot: u64,
        clock: Arc<dyn Clock>,
        planted: Planted,
        woken: Option<Arc<OnceLock<Waker>>>,
    ) -> Result<Self> {
        let OpenedMember {
            log, machine, mut checkpointer, mut positions, lsns, start, opened, genesis, ..
        } = member;
        let core_options = CoreOptions {
            member: opened.member_id,
            boot,
            seed: boot,
            heartbeat_ticks: ticks(options.heartbeat),
            election_ticks: ticks(options.election).max(ticks(options.heartbeat) + 1),
            tick_us: TICK.as_micros() as u64,
            request_timeout_us: options.request_timeout.as_micros() as u64,
            stall_us: options.election.as_micros() as u64,
            quick_elections: options.quick_elections,
            cache_bytes_max: options.cache_bytes_max,
            command_id: options.command_id,
            planted,
        };
        let election_us = core_options.election_ticks as u64 * core_options.tick_us;
        let applied = start.applied;
        let configuration = start.configuration.clone();
        let mut core = Core::new(core_options, start)
            .map_err(|quarantine| Error::Refused(format!("this member must not take part: {quarantine}")))?;
        let mut outputs = Vec::new();
        if let Some(quarantine) = log.superblock().read().quarantine {
            if quarantine.reason != STATE_DIFFERS {
                return Err(Error::Refused(format!(
                    "this member is quarantined for the reason {}, which this build does not know; use a newer one",
                    quarantine.reason
                )));
            }
            core.handle(0, Input::StateDiffers, &mut outputs);
        }
        let begin = log.begin_lsn();
        positions.forget_before(begin);
        let inbox = Arc::new(Inbox::default());
        inbox.set_waker(log.waker());
        let apply = Arc::new(ApplyQueue::default());
        apply.applied.store(applied, Ordering::Release);
        apply.durable_lsn.store(log.durable_lsn().0, Ordering::Release);
        let shared = Arc::new(Shared {
            inbox: Arc::clone(&inbox),
            apply: Arc::clone(&apply),
            carrier: OnceLock::new(),
            status: Mutex::new(core.status()),
            leads_alone: AtomicBool::new(false),
            status_changed: Condvar::new(),
            leader_changes_count: AtomicU64::new(0),
            write_age: OnceLock::new(),
            stats: Mutex::default(),
            full: Mutex::default(),
            holders: Holders::default(),
            apply_thread: Mutex::default(),
            asked: Asked {
                member: opened.member_id,
                boot,
                answerer: OnceLock::new(),
                waiting: Mutex::default(),
            },
            on_event: options.on_event,
        });
        let _ = inbox.questions.set(Box::new(Correspondence(Arc::downgrade(&shared))));
        let _ = shared.write_age.set(log.write_age());
        let applying = Arc::clone(&apply);
        let wake: Waker = Arc::new(move || applying.wake());
        match woken {
            Some(woken) => drop(woken.set(wake)),
            None => log.start_checkpoints_waking(&mut checkpointer, wake)?,
        }
        let holder = checkpointer.state_holder();
        let checkpoints = holder.clone();
        let place = transfer::Place::of(&log);
        let applier = Applier {
            machine,
            checkpointer,
            queue: Arc::clone(&apply),
            inbox,
            clock,
            waiting: VecDeque::new(),
            configuration,
        };
        let (loader, jobs) = mpsc::sync_channel(LOAD_JOBS_MAX);
        let reader = log.reader()?;
        let log = LogThread {
            log,
            core,
            shared,
            apply,
            positions,
            lsns,
            unwritten: VecDeque::new(),
            unwritten_since_us: None,
            writes: VecDeque::new(),
            outputs,
            readers: BTreeMap::new(),
            next_token: 1,
            loader,
            tick_us: TICK.as_micros() as u64,
            pace: Pace::new(election_us, options.is_adaptive),
            told_election_us: election_us,
            next_tick_us: 0,
            has_room: true,
            told_applied: applied,
            changes: VecDeque::new(),
            holding: Holding::default(),
            state: checkpoints,
            told_replay: 0,
            told_begin: begin,
            alone: Alone::new(planted),
            is_hang_told: false,
            failed: None,
        };
        let transfers = Transfers { holder, place, superblock: log.log.superblock() };
        Ok(Self { log, applier, jobs, reader, opened, genesis, transfers })
    }
}

/// Threads around a member whose log is open. `woken`: checkpoints are made already, and wake what is set here.
fn assemble<M: StateMachine>(
    member: OpenedMember<M>,
    options: GroupOptions,
    woken: Option<Arc<OnceLock<Waker>>>,
) -> Result<Prepared> {
    let clock = Arc::new(MonotonicClock::default());
    let assembled = Assembled::new(member, options, boot_nonce(), clock, Planted::default(), woken)?;
    let Assembled { mut log, applier, jobs, reader, opened, genesis, transfers } = assembled;
    let no_thread = |error| Error::Refused(format!("cannot start the thread that applies: {error}"));
    let apply_thread = std::thread::Builder::new()
        .name("apply".into())
        .spawn(move || {
            let _abort = AbortOnPanic;
            applier.run();
        })
        .map_err(no_thread)?;
    *log.shared.apply_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(apply_thread);
    let shared = Arc::clone(&log.shared);
    // Ends with the thread of the log, whose end of the channel is the only one.
    std::thread::Builder::new()
        .name("raft-load".into())
        .spawn(move || load_entries(&reader, &jobs, &shared))
        .map_err(no_thread)?;
    let calibration = log.log.take_calibration();
    Ok((log, opened, genesis, calibration, transfers))
}

/// Of a start: differs from that of every other one. The standard library seeds its hash maps from the operating system.
pub fn boot_nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() | 1
}

impl Raft {
    fn take_over(
        &self,
        command: Vec<u8>,
        class: Class,
        only_term: Option<u64>,
    ) -> std::result::Result<(), ProposeError> {
        let id = (self.command_id)(&command).expect("a command of this server has an id");
        if self.shared.status().quarantine.is_some() {
            return Err(ProposeError::Quarantined);
        }
        let is_privileged = class == Class::Privileged;
        let command = Bytes::from(command);
        self.shared.inbox.propose(Proposal { id, is_privileged, only_term, command })
    }
}

impl Replicator for Raft {
    fn propose(&self, command: Vec<u8>, class: Class) -> std::result::Result<(), ProposeError> {
        self.take_over(command, class, None)
    }

    fn propose_in_term(
        &self,
        command: Vec<u8>,
        class: Class,
        term: u64,
    ) -> std::result::Result<(), ProposeError> {
        self.take_over(command, class, Some(term))
    }

    fn propose_change(
        &self,
        change: MemberChange,
        command: Vec<u8>,
    ) -> std::result::Result<(), ProposeError> {
        let id = (self.command_id)(&command).expect("a command of this server has an id");
        if self.shared.status().quarantine.is_some() {
            return Err(ProposeError::Quarantined);
        }
        self.shared.inbox.propose_change(ArrivedChange { id, change, command: Bytes::from(command) })
    }

    fn ask_leader(&self, question: Vec<u8>) -> Answer {
        let leader = self.shared.status().role.leader;
        self.ask_member(leader, question)
    }

    fn ask_member(&self, member: u64, question: Vec<u8>) -> Answer {
        let asked = &self.shared.asked;
        if member != 0
            && member != asked.member
            && let Some((number, slot)) = asked.register()
        {
            let body = Body::Question { boot: asked.boot, number, bytes: Bytes::from(question) };
            if self.shared.carry(&Frame { from: asked.member, to: member, disk_ms: 0, election_ms: 0, body })
            {
                return Box::pin(slot.future());
            }
            asked.take(number);
        }
        Box::pin(std::future::ready(None))
    }

    fn answer_with(&self, answerer: Answerer) {
        let _ = self.shared.asked.answerer.set(answerer);
    }

    fn read_barrier(&self) -> ReadBarrier {
        if self.shared.leads_alone.load(Ordering::Acquire) {
            return ReadBarrier::ready(Ok(self.shared.apply.applied.load(Ordering::Acquire)));
        }
        let reader = Reader::default();
        let future = reader.future();
        if self.shared.inbox.read(reader) {
            return ReadBarrier::pending(Box::pin(future));
        }
        let is_stopped = self.shared.inbox.stop_reason().is_some();
        ReadBarrier::ready(Err(if is_stopped { ReadError::Stopped } else { ReadError::TooManyRequests }))
    }

    fn status(&self) -> ReplicatorStatus {
        let status = self.shared.status();
        ReplicatorStatus {
            term: status.role.term,
            leader: status.role.leader,
            committed_index: status.committed,
            applied_index: self.shared.apply.applied.load(Ordering::Acquire),
            pending_count: self.shared.inbox.open_count.load(Ordering::Relaxed),
            last_index: status.last,
            proved_term: status.proved_term,
            leader_changes_count: self.shared.leader_changes_count.load(Ordering::Relaxed),
            quarantine: status.quarantine.map(|quarantine| quarantine.to_string()),
            full: self.shared.full.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn transfer_leader(&self, to: u64) -> std::result::Result<(), TransferError> {
        {
            let status = self.shared.status();
            if !status.role.is_leader() {
                return Err(TransferError::NotLeader);
            }
            if to == self.opened.member_id {
                return Ok(());
            }
            if to != 0 && !status.voters.contains(&to) {
                return Err(TransferError::BadTransferee);
            }
        }
        self.shared.inbox.transfer(to);
        Ok(())
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let status = self.shared.status();
        let peers = status.peers.iter();
        peers
            .map(|peer| PeerStatus {
                id: peer.id,
                matched_index: peer.matched,
                is_active: peer.is_active,
                needs_snapshot: peer.needs_snapshot,
            })
            .collect()
    }

    fn oldest_write_age_us(&self) -> u64 {
        self.shared.write_age_us()
    }

    fn shutdown(&self) -> std::result::Result<(), String> {
        self.calibration.end();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        self.hand_over();
        self.shared.inbox.close();
        match thread.join() {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("the thread of the log ended with a broken invariant".into()),
        }
    }
}

impl Drop for Raft {
    fn drop(&mut self) {
        let _ = self.shutdown();
    }
}
