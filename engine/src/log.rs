//! The write-ahead log together with its directory and device: what one thread drives.
//!
//! **Contract.** [`Log::open`] takes the directory's lock, chooses the device backend, reads or makes the superblock,
//! and visits every record of the log in order. After that, the thread that opened it repeats: `append`, `submit`,
//! look at `durable_lsn`, `wait`. Nothing here decides what a record means, or starts a thread but the one that
//! [`calibration`] is asked for.
//!
//! **A directory is made in three steps**, each durable before the next: superblock that says *creating*, log,
//! superblock that says *ready*. Until the second one nothing can have been acknowledged, so a start that finds the first
//! makes the log anew; from then on a missing log is damage.
//!
//! **Failure.** A directory of another mode, format or identity is refused in one line that names the right way. An
//! open never changes acknowledged bytes.
pub mod calibration;

use crate::base::clock::Clock;
use crate::base::ids::{GroupId, Lsn};
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::io::dir_lock::DirLock;
use crate::io::{Backend, Completion, Io, Wait, Waker};
use crate::options::LogOptions;
pub use crate::superblock::Mode;
use crate::superblock::{SharedSuperblock, Stage, Superblock};
use crate::wal::{
    Record, RecordMeta, RecoveryProgress, RecoveryReport, Reserve, StallProbe, SyncMethod, Wal, WalOptions,
    WalStats, format,
};
use calibration::{CalibrationJob, SyncSwitch};
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
    switch: SyncSwitch,
    completions: Vec<Completion>,
    /// What a calibration needs, if one is wanted; taken by [`Log::take_calibration`].
    calibration: Option<CalibrationJob>,
    /// Released last: fields drop in order, and the backend's ring holds the same file.
    _lock: Option<Arc<DirLock>>,
}

impl Log {
    /// Opens the log in `directory` (made if missing) with the best device backend; see the module. `visit` sees every
    /// record in order; `progress` is called while a long log is read. The last value is true when the directory was
    /// made by this call.
    pub fn open(
        directory: &Path,
        options: &LogOptions,
        identity: &LogIdentity,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<(Self, RecoveryReport, bool)> {
        let lock = DirLock::acquire(directory, options.lock_wait, |sentence| {
            progress(OpenProgress::Waiting(sentence))
        })?;
        let mut io = crate::io::open_backend(directory, Some(&lock), options.io_backend)?;
        calibration::remove_leftovers(&mut *io)?;
        let device = crate::io::device_name(directory, &io.backend())?;
        let (mut log, report, created) =
            Self::open_on(io, Some(&device), options, random_seed(), identity, visit, progress)?;
        let lock = Arc::new(lock);
        if options.calibrate && options.wal_sync.is_none() && log.measured(&device).is_none() {
            log.calibration = Some(CalibrationJob {
                lock: Arc::clone(&lock),
                io_backend: options.io_backend,
                device,
                current: log.sync_method(),
                superblock: log.superblock(),
                switch: log.switch.clone(),
            });
        }
        log._lock = Some(lock);
        Ok((log, report, created))
    }

    /// Opens the log over a device that is at hand, without a lock: for simulated disks. `seed` makes the salts. Nothing
    /// measured is used, and nothing is measured.
    pub fn open_over(
        io: Box<dyn Io>,
        options: &LogOptions,
        seed: u64,
        identity: &LogIdentity,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<(Self, RecoveryReport, bool)> {
        Self::open_on(io, None, options, seed, identity, visit, progress)
    }

    fn open_on(
        mut io: Box<dyn Io>,
        device: Option<&str>,
        options: &LogOptions,
        seed: u64,
        identity: &LogIdentity,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(OpenProgress<'_>),
    ) -> Result<(Self, RecoveryReport, bool)> {
        let io_ref = &mut *io;
        let (mut superblock, created) = match Superblock::read(io_ref)? {
            Some(superblock) => (superblock, false),
            None => (make_superblock(io_ref, options, seed, identity)?, true),
        };
        superblock.expect_mode(identity.mode)?;
        let wal_options = wal_options(options, &superblock, device);
        let (wal, report) = if superblock.stage == Stage::Creating {
            let wal = Wal::create(io_ref, superblock.database, wal_options, seed)?;
            superblock.stage = Stage::Ready;
            superblock.write(io_ref)?;
            let end_lsn = wal.durable_lsn();
            (wal, RecoveryReport::of_a_new_log(end_lsn))
        } else {
            let replay = superblock.wal_replay_lsn;
            let mut report_progress = |done: RecoveryProgress| progress(OpenProgress::Replaying(done));
            Wal::recover(io_ref, superblock.database, wal_options, seed, replay, visit, &mut report_progress)?
        };
        let log = Self {
            io,
            wal,
            superblock: Arc::new(SharedSuperblock::new(superblock)),
            switch: SyncSwitch::default(),
            completions: Vec::new(),
            calibration: None,
            _lock: None,
        };
        Ok((log, report, created))
    }

    /// Puts a record into the log; it is durable once its position is below [`Log::durable_lsn`].
    pub fn append(&mut self, meta: RecordMeta, body: &[u8], reserve: Reserve) -> Result<Lsn> {
        self.wal.append(meta, body, reserve)
    }

    /// Says which index is committed, so that idle and closing groups can witness it.
    pub fn note_commit(&mut self, group: GroupId, index: u64) {
        let noted = self.wal.note_commit(group, index);
        debug_assert!(noted.is_ok(), "the group has a hard state in the log: {noted:?}");
    }

    /// Starts writing what is appended, as far as slots are free, and takes in what has completed; never blocks.
    pub fn submit(&mut self) {
        if let Some(method) = self.switch.take() {
            self.wal.set_sync_method(&*self.io, method);
        }
        self.wal.pump(&mut *self.io);
        self.collect(Wait::No);
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
fn random_seed() -> u64 {
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
    let segment_bytes = options.segment_bytes.unwrap_or(format::SEGMENT_BYTES_MAX);
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
        sync: options.wal_sync.or_else(|| measured(superblock, device)).unwrap_or(SyncMethod::Linked),
        ..WalOptions::default()
    }
}

fn measured(superblock: &Superblock, device: Option<&str>) -> Option<SyncMethod> {
    let calibration = superblock.calibration.as_ref()?;
    (Some(calibration.device.as_str()) == device).then_some(calibration.method)
}
