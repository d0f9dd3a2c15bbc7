//! The write-ahead log together with its directory and device: what one thread drives.
//!
//! **Contract.** [`PreparedLog`] takes the directory's lock, chooses the device backend, reads or makes the superblock;
//! its owner opens the checkpoint; then [`PreparedLog::recover`] visits every record of the log that the checkpoint does not
//! have, in order, and gives the [`Log`]. After that, the thread that opened it repeats: `append`, `submit`, look at
//! `durable_lsn`, `wait`. Nothing here decides what a record means, or starts a thread but the one that
//! [`calibration`] is asked for.
//!
//! **A directory is made in three steps**, each durable before the next: superblock that says *creating*, log,
//! superblock that says *ready*. Until the second one nothing can have been acknowledged, so a start that finds the first
//! makes the log anew; from then on a missing log is damage.
//!
//! **Failure.** A directory of another mode, format or identity is refused in one line that names the right way. An
//! open never changes acknowledged bytes.
pub mod calibration;
mod hold;
mod pipeline;
mod place;
mod yielding;

pub use hold::LogHold;
pub use place::{Place, PlaceRef};

use crate::base::clock::Clock;
use crate::base::ids::{GroupId, Lsn};
use crate::base::rng::Rng;
use crate::checkpoint::{CheckpointOptions, Checkpointer};
use crate::error::{Error, Result};
#[cfg(feature = "sim")]
use crate::io::sim_disk::SimDisk;
use crate::io::{Backend, Completion, Io, Wait, Waker};
use crate::mvcc::ReplayPriors;
use crate::options::LogOptions;
use crate::space::Space;
pub use crate::superblock::Mode;
use crate::superblock::{Quarantine, SharedSuperblock, Stage, Superblock};
use crate::wal::{
    LogExtent, LogReader, Record, RecordKind, RecordMeta, RecoveryProgress, RecoveryReport, Reserve,
    StallProbe, SyncMethod, Wal, WalOptions, WalStats, format,
};
use calibration::{CalibrationJob, SyncSwitch};
use hold::Holds;
use pipeline::{Ahead, in_turns, pipelined};
use place::Kind;
use std::path::Path;
use std::sync::Arc;

/// What a new directory is made with, and what an existing one must agree with (the mode) or keeps (the ids).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogIdentity {
    /// Who owns the order of the log.
    pub mode: Mode,
    /// The caller's cluster id, 0 for an embedded database.
    pub cluster_id: u64,
    /// The caller's member id, 0 for an embedded database.
    pub member_id: u64,
}

/// Where opening stands, for logs and progress bars.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenProgress<'a> {
    /// The directory is in use; a sentence that names by whom.
    Waiting(&'a str),
    /// The log is being read; called for every few MiB.
    Replaying(RecoveryProgress),
}

/// See [`Log::write_age`].
#[derive(Clone)]
pub struct WriteAge {
    probe: Arc<StallProbe>,
    clock: Arc<dyn Clock>,
}

impl WriteAge {
    /// Microseconds since the oldest write in flight was submitted; 0 when there is none.
    pub fn oldest_us(&self) -> u64 {
        self.probe.oldest_started_us().map_or(0, |started_us| self.clock.now_us().saturating_sub(started_us))
    }
}

/// The open log. Belongs to the thread that opened it.
pub struct Log {
    io: Box<dyn Io>,
    wal: Wal,
    superblock: Arc<SharedSuperblock>,
    space: Arc<Space>,
    switch: SyncSwitch,
    completions: Vec<Completion>,
    /// What was durable at the last [`Log::submit`].
    submitted_durable: Lsn,
    /// From where on recovery needs the log.
    replay_lsn: Lsn,
    /// See [`LogOptions::retain_bytes`].
    retain_bytes: u64,
    holds: Arc<Holds>,
    /// What a calibration needs, if one is wanted; taken by [`Log::take_calibration`].
    calibration: Option<CalibrationJob>,
    /// Holds the lock, which is released last: fields drop in order.
    place: Place,
}

/// A directory whose superblock was read and whose log was not: the moment at which its checkpoint is opened.
pub struct PreparedLog {
    io: Box<dyn Io>,
    superblock: Arc<SharedSuperblock>,
    /// The room there is, for the log and who makes checkpoints beside it.
    space: Arc<Space>,
    created: bool,
    options: LogOptions,
    /// Makes the salts.
    seed: u64,
    /// The device's name; none where nothing is measured.
    device: Option<String>,
    place: Place,
}

impl PreparedLog {
    /// Takes the lock of `directory` (made if missing), chooses the best device backend, reads or makes the superblock.
    /// `progress` hears of a directory that is in use.
    pub fn in_directory(
        directory: &Path,
        options: &LogOptions,
        identity: &LogIdentity,
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<Self> {
        let waiting = |sentence: &str| progress(OpenProgress::Waiting(sentence));
        let place = Place::in_directory(directory, options.io_backend, options.lock_wait, waiting)?;
        Self::in_place(&place, options, identity)
    }

    /// The same in a directory that the caller has locked, or on a simulated disk, whose seed then makes the salts.
    pub fn in_place(place: &Place, options: &LogOptions, identity: &LogIdentity) -> Result<Self> {
        let mut io = place.open_io()?;
        let device = match &place.kind {
            Kind::Directory { path, .. } => {
                calibration::remove_leftovers(&mut *io)?;
                Some(crate::io::device_name(path, &io.backend())?)
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => None,
        };
        Self::prepare(io, device, place.clone(), options, place.salt_seed(), identity)
    }

    /// The same over a simulated disk, without a lock. `seed` makes the salts. Nothing measured is used, and nothing is
    /// measured.
    #[cfg(feature = "sim")]
    pub fn on_simulated_disk(
        disk: &SimDisk,
        options: &LogOptions,
        identity: &LogIdentity,
        seed: u64,
    ) -> Result<Self> {
        let place = Place::on_simulated_disk(disk);
        Self::prepare(place.open_io()?, None, place, options, seed, identity)
    }

    fn prepare(
        mut io: Box<dyn Io>,
        device: Option<String>,
        place: Place,
        options: &LogOptions,
        seed: u64,
        identity: &LogIdentity,
    ) -> Result<Self> {
        crate::backup::note_opening(&mut *io)?;
        let (superblock, created) = match Superblock::read(&mut *io)? {
            Some(superblock) => (superblock, false),
            None => (make_superblock(&mut *io, options, seed, identity)?, true),
        };
        superblock.expect_mode(identity.mode)?;
        let superblock = Arc::new(SharedSuperblock::new(superblock));
        let space = Arc::default();
        Ok(Self { io, superblock, space, created, options: options.clone(), seed, device, place })
    }

    /// Why the member may not take part, if so.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.superblock.read().quarantine
    }

    /// Index and term of the last entry that the newest checkpoint holds; zeros before the first.
    pub fn applied(&self) -> (u64, u64) {
        let superblock = self.superblock.read();
        (superblock.applied_index, superblock.applied_term)
    }

    /// Opens the newest checkpoint, if there is one.
    pub fn checkpointer(&mut self, options: &CheckpointOptions) -> Result<Checkpointer> {
        let files = self.place.files()?;
        let room = (self.space.clone(), self.place.is_on_device());
        let checkpointer = Checkpointer::open(&mut *self.io, files, self.superblock.clone(), options, room)?;
        if self.place.is_on_device() {
            checkpointer.start_read_ahead();
        }
        Ok(checkpointer)
    }

    /// Reads the log, from the replay position on, or makes it. `visit` sees every record in order; `progress` is called
    /// while a long log is read. The last value is true when the directory was made by this call.
    pub fn recover(
        self,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<(Log, RecoveryReport, bool)> {
        let Self { mut io, superblock, space, created, options, seed, device, place } = self;
        let known = superblock.read();
        let wal_options = wal_options(&options, &known, device.as_deref());
        let (wal, report) = if known.stage == Stage::Creating {
            let wal = Wal::create(&mut *io, known.database, wal_options, seed)?;
            superblock.update(&mut *io, |superblock| superblock.stage = Stage::Ready)?;
            let end_lsn = wal.durable_lsn();
            (wal, RecoveryReport::of_a_new_log(end_lsn))
        } else {
            let replay = known.wal_replay_lsn;
            let mut report_progress = |done: RecoveryProgress| progress(OpenProgress::Replaying(done));
            Wal::recover(&mut *io, known.database, wal_options, seed, replay, visit, &mut report_progress)?
        };
        let mut log = Log {
            io,
            wal,
            superblock,
            space,
            switch: SyncSwitch::default(),
            completions: Vec::new(),
            submitted_durable: Lsn(0),
            replay_lsn: known.wal_replay_lsn,
            retain_bytes: options.retain_bytes,
            holds: Arc::default(),
            calibration: None,
            place,
        };
        if let (Kind::Directory { lock, .. }, Some(device)) = (&log.place.kind, device)
            && options.calibrate
            && options.wal_sync.is_none()
            && log.measured(&device).is_none()
        {
            log.calibration = Some(CalibrationJob {
                lock: Arc::clone(lock),
                io_backend: options.io_backend,
                device,
                current: log.sync_method(),
                superblock: log.superblock(),
                switch: log.switch.clone(),
            });
        }
        Ok((log, report, created))
    }

    /// The same with two threads: this one reads and verifies, some way ahead; `visit` is called on the other. Notes of what
    /// keys were go to `priors`, which is the checkpointer's. `announce` is called some time before `visit` with
    /// entries whose notes are missing, and may do no more than have things read that `visit` will need. On a simulated
    /// disk, where the order of reads would become a matter of chance, it is not called and there is one thread.
    ///
    /// # Errors
    /// Those of [`Self::recover`]; that of `visit`, if it has one, before any other.
    pub fn recover_ahead(
        self,
        priors: Arc<ReplayPriors>,
        announce: &mut dyn FnMut(&Record<'_>),
        visit: &mut (dyn FnMut(&Record<'_>) -> Result<()> + Send),
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<(Log, RecoveryReport, bool)> {
        let recovered = match self.place.is_on_device() {
            true => {
                pipelined(&mut Ahead::new(&priors, announce), visit, |visit| self.recover(visit, progress))
            }
            false => {
                let nobody: &mut dyn FnMut(&Record<'_>) = &mut |_| {};
                in_turns(&mut Ahead::new(&priors, nobody), visit, |visit| self.recover(visit, progress))
            }
        };
        priors.finish();
        recovered
    }
}

impl Log {
    /// Lets `checkpointer`, of the same directory, make checkpoints from now on: on a thread with a device handle of its
    /// own that wakes a waiting [`Log::wait`]; on a simulated disk within its calls.
    pub fn start_checkpoints(&self, checkpointer: &mut Checkpointer) -> Result<()> {
        self.start_checkpoints_waking(checkpointer, self.waker())
    }

    /// The same, where another thread than the log's owns `checkpointer`: it is woken by `wake`.
    pub fn start_checkpoints_waking(&self, checkpointer: &mut Checkpointer, wake: Waker) -> Result<()> {
        match &self.place.kind {
            Kind::Directory { .. } => {
                let place = self.place();
                checkpointer.start(Box::new(move || place.open_io()), wake)
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(_) => {
                checkpointer.start_here(self.place.open_io()?);
                Ok(())
            }
        }
    }

    /// The directory, for who writes beside the log: large writes wait while the log's are late.
    pub fn place(&self) -> Place {
        self.place.beside(self.write_age())
    }

    /// Keeps so many bytes behind the end from now on: see [`LogOptions::retain_bytes`]. What was given back already is gone.
    pub fn set_retain_bytes(&mut self, bytes: u64) {
        self.retain_bytes = bytes;
    }

    /// Says that recovery will start at `lsn`: what lies before may be used again. To be called when the superblock says
    /// so, durably. What a [`LogHold`] holds is kept all the same.
    pub fn set_replay_lsn(&mut self, lsn: Lsn) {
        self.replay_lsn = self.replay_lsn.max(lsn);
        self.give_back();
    }

    /// Gives back what is only retained for others, once: for a device without room. What recovery needs or a [`LogHold`] holds stays.
    pub fn yield_retained(&mut self) {
        self.give_back_retaining(0);
    }

    /// Removes files that are kept for a burst of writing: to be called when there is none. See [`Wal::trim`].
    pub fn trim(&mut self) {
        self.wal.trim();
    }

    fn give_back(&mut self) {
        self.give_back_retaining(self.retain_bytes);
    }

    fn give_back_retaining(&mut self, bytes: u64) {
        let retained = Lsn(self.wal.durable_lsn().0.saturating_sub(bytes));
        let lsn = self.replay_lsn.min(retained);
        let lsn = self.holds.lowest().map_or(lsn, |held| held.min(lsn));
        self.wal.set_replay_lsn(lsn);
    }

    /// Whether a record of `body_bytes` would be taken now.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the device is full, or the reserve for checkpoints is not whole.
    pub fn check_room(&self, body_bytes: usize, reserve: Reserve) -> Result<()> {
        self.check_reserve(reserve)?;
        self.wal.check_room(body_bytes, reserve)
    }

    /// Where what is kept of the log begins: a record at or behind this position can be read by [`Log::reader`].
    pub fn begin_lsn(&self) -> Lsn {
        self.wal.begin_lsn()
    }

    /// Reads records again, on other threads.
    ///
    /// # Errors
    /// If the directory is gone.
    pub fn reader(&self) -> Result<LogReader> {
        let segment_bytes = u64::from(self.superblock.read().segment_bytes);
        Ok(LogReader::new(self.place.files()?, segment_bytes))
    }

    /// The superblock in force, and what is durable of the log from its replay position on, kept as long as the hold lives:
    /// together with the segments of its checkpoint all that a copy of the directory needs. The caller keeps the names of
    /// those segments from before this call on.
    pub fn hold(&self) -> (Superblock, LogExtent, LogHold) {
        let superblock = self.superblock.read();
        let hold = LogHold::new(&self.holds, superblock.wal_replay_lsn, self.waker());
        let extent = self.wal.extent(superblock.wal_replay_lsn);
        (superblock, extent, hold)
    }

    /// S1 of the module `space`.
    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        let refusal = self.space.refusal().filter(|_| reserve == Reserve::Ordinary);
        refusal.map_or(Ok(()), Err)
    }

    /// Puts a record into the log; it is durable once its position is below [`Log::durable_lsn`].
    ///
    /// # Errors
    /// As [`Self::check_room`], and those of [`Wal::append`].
    pub fn append(&mut self, meta: RecordMeta, body: &[u8], reserve: Reserve) -> Result<Lsn> {
        self.check_reserve(reserve)?;
        self.wal.append(meta, body, reserve)
    }

    /// Puts notes of what keys were into the log ([`StoreWriter::take_notes`](crate::mvcc::StoreWriter::take_notes)), in
    /// front of what is appended next. What there is no room for is not noted: nothing is lost by that but the speed of a
    /// start.
    pub fn append_notes(&mut self, group: GroupId, notes: Option<(u64, Vec<u8>)>) {
        let Some((index, body)) = notes else { return };
        let meta = RecordMeta { kind: RecordKind::PriorNotes, entry_type: 0, group, term: 0, index };
        let _ = self.wal.append(meta, &body, Reserve::Ordinary);
    }

    /// Says which index is committed, so that idle and closing groups can witness it.
    pub fn note_commit(&mut self, group: GroupId, index: u64) {
        let noted = self.wal.note_commit(group, index);
        debug_assert!(noted.is_ok(), "the group has a hard state in the log: {noted:?}");
    }

    /// Takes over what is appended, as far as slots are free; never blocks. Follow it with [`Log::wait`], which starts what
    /// this does not.
    pub fn submit(&mut self) {
        if self.holds.take_released() {
            self.give_back();
        }
        if let Some(method) = self.switch.take() {
            self.wal.set_sync_method(&*self.io, method);
        }
        self.wal.set_sparing(self.space.is_short());
        self.wal.pump(&mut *self.io);
        self.space.note_log_waiting(self.wal.waits_for_recycling());
        // With nothing new to deliver the caller waits next, which starts the rest and may do a sync itself.
        let durable = self.wal.durable_lsn();
        if std::mem::replace(&mut self.submitted_durable, durable) < durable {
            self.collect(Wait::No);
        }
    }

    /// Blocks until something completes, somebody wakes, the log wants attention, or `us_max` have passed.
    pub fn wait(&mut self, us_max: u64) {
        let now = self.io.now_us();
        let deadline = self.wal.next_deadline_us().map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
        // Bounded, so that a lost wake-up would be a delay and not a hang.
        let us = us_max.min(deadline).min(WAIT_US_MAX);
        self.collect(if us == 0 { Wait::No } else { Wait::AtMostUs(us) });
    }

    fn collect(&mut self, wait: Wait) {
        self.io.wait(wait, &mut self.completions);
        for completion in self.completions.drain(..) {
            let foreign = self.wal.on_completion(&mut *self.io, completion);
            assert!(foreign.is_none(), "only the log submits to this device: {foreign:?}");
        }
    }

    /// Every record whose position is below this one is durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.wal.durable_lsn()
    }

    /// Bytes that are appended and not yet durable.
    pub fn pending_bytes(&self) -> usize {
        self.wal.pending_bytes()
    }

    /// Why the log takes no more writes, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.wal.poisoned()
    }

    /// True when nothing will ever complete any more: a simulated power cut.
    pub(crate) fn is_stopped(&self) -> bool {
        self.io.is_stopped()
    }

    /// The device's clock.
    pub fn now_us(&self) -> u64 {
        self.io.now_us()
    }

    /// Ends a [`Log::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.io.waker()
    }

    /// How groups become durable now.
    pub fn sync_method(&self) -> SyncMethod {
        self.wal.sync_method()
    }

    /// The method that was measured for this device, if it was.
    fn measured(&self, device: &str) -> Option<SyncMethod> {
        measured(&self.superblock.read(), Some(device))
    }

    /// The superblock, for every thread that has something to say in it.
    pub fn superblock(&self) -> Arc<SharedSuperblock> {
        Arc::clone(&self.superblock)
    }

    /// The measurement of the device that this opening calls for, if it does: once, to be started when the caller has
    /// nothing more urgent to do, and to be ended before the log is closed.
    pub fn take_calibration(&mut self) -> Option<CalibrationJob> {
        self.calibration.take()
    }

    /// Age of the oldest write in flight, readable from any thread while the device hangs.
    pub fn write_age(&self) -> WriteAge {
        WriteAge { probe: self.wal.stall_probe(), clock: self.io.clock() }
    }

    /// Counters and latencies.
    pub fn wal_stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// The device backend.
    pub fn backend(&self) -> Backend {
        self.io.backend()
    }

    /// Who the directory belongs to.
    pub fn identity(&self) -> LogIdentity {
        let superblock = self.superblock.read();
        LogIdentity {
            mode: superblock.mode,
            cluster_id: superblock.cluster_id,
            member_id: superblock.member_id,
        }
    }

    /// Makes everything durable, writes the group that promises it, and closes.
    pub fn close(mut self) -> Result<()> {
        self.wal.close(&mut *self.io)
    }
}

/// Longest single wait.
const WAIT_US_MAX: u64 = 10_000_000;

/// For salts and the database's identity: not for secrets. The standard library seeds its hash maps from the
/// operating system, which spares a dependency.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn make_superblock(
    io: &mut dyn Io,
    options: &LogOptions,
    seed: u64,
    identity: &LogIdentity,
) -> Result<Superblock> {
    let mut database = [0; 16];
    Rng::new(!seed).fill(&mut database);
    let segment_bytes = options.segment_bytes.unwrap_or(WalOptions::default().segment_bytes);
    let segment_bytes = u32::try_from(segment_bytes).map_err(|_| {
        Error::Refused(format!("a segment of {segment_bytes} bytes is beyond {}", format::SEGMENT_BYTES_MAX))
    })?;
    let mut superblock = Superblock::new(database, identity.mode, segment_bytes);
    superblock.cluster_id = identity.cluster_id;
    superblock.member_id = identity.member_id;
    superblock.create(io)
}

fn wal_options(options: &LogOptions, superblock: &Superblock, device: Option<&str>) -> WalOptions {
    WalOptions {
        segment_bytes: u64::from(superblock.segment_bytes),
        groups_in_flight_max: options.groups_in_flight_max,
        retain_bytes: options.retain_bytes,
        sync: options.wal_sync.or_else(|| measured(superblock, device)).unwrap_or(SyncMethod::Linked),
        ..WalOptions::default()
    }
}

fn measured(superblock: &Superblock, device: Option<&str>) -> Option<SyncMethod> {
    let calibration = superblock.calibration.as_ref()?;
    (Some(calibration.device.as_str()) == device).then_some(calibration.method)
}
