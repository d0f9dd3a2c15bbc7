//! The device of a log is measured once, in the background, and what was chosen is remembered in the superblock.
//!
//! **Contract.** An opened [`super::Log`] hands out a [`CalibrationJob`] if the user named no method and none was measured
//! for this device. [`CalibrationJob::start`] waits for [`DELAY`], measures ([`crate::wal::calibrate`]) with a device
//! handle of its own, writes the choice into the superblock, and tells the log to switch; the log does so with its next
//! group. Whoever started it drops the [`Calibrator`] before the log is closed; that ends a measurement within a write.
//!
//! **What "this device" is.** Major and minor number of the file system's device and the backend's name. A directory that
//! was copied to another machine may find the same numbers: then an old choice is used, which is slower at worst.
//!
//! **While it runs** the log goes on, slower: about 1,500 durable writes of 4 KiB compete with its own. They compete with
//! all candidates alike, which take turns.
//!
//! **Failure.** A device that fails or is full while it is measured leaves the method as it is; the next opening tries
//! again. If the superblock cannot be written, nothing else can write it either (see [`SharedSuperblock`]).
use crate::error::{Error, Result};
use crate::io::dir_lock::DirLock;
use crate::io::disk::run;
use crate::io::{BackendChoice, Io, IoErrorKind, Operation};
use crate::superblock::{Calibration, SharedSuperblock};
use crate::wal::SyncMethod;
use crate::wal::calibrate::{self, Measurement};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long after the start a measurement begins: a program that opens, writes a little and closes shall not pay for it.
pub const DELAY: Duration = Duration::from_secs(1);

/// The file that is written while measuring, 2 MiB, in the data directory; removed afterwards.
pub const SCRATCH_FILE: &str = "calibration.tmp";

/// A change of method for the thread that owns the log, which looks at it before each group. The newest wins.
#[derive(Clone, Default)]
pub(super) struct SyncSwitch {
    /// 0: nothing wanted. Nothing else is handed over with it, so no ordering is needed.
    wanted: Arc<AtomicU8>,
}

impl SyncSwitch {
    pub(super) fn set(&self, method: SyncMethod) {
        self.wanted.store(method.number(), Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Option<SyncMethod> {
        // Nearly always there is nothing, and a load alone leaves the cache line shared.
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return None;
        }
        SyncMethod::from_number(self.wanted.swap(0, Ordering::Relaxed))
    }
}

/// What was measured, and what follows from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CalibrationReport {
    /// The device, as it stands in the superblock.
    pub device: String,
    /// The method in use before.
    pub before: SyncMethod,
    /// The method in use from now on.
    pub chosen: SyncMethod,
    /// All candidates.
    pub measurements: Vec<Measurement>,
}

/// A measurement that is to be made. Keeps the directory locked while it exists.
pub struct CalibrationJob {
    pub(super) lock: Arc<DirLock>,
    pub(super) io_backend: BackendChoice,
    pub(super) device: String,
    pub(super) current: SyncMethod,
    pub(super) superblock: Arc<SharedSuperblock>,
    pub(super) switch: SyncSwitch,
}

impl CalibrationJob {
    /// Measures after `delay` on a thread of its own, `calibrate`. `report` is called there when it came to an end, and
    /// not if it was stopped before.
    ///
    /// # Errors
    /// If there can be no such thread.
    pub fn start(
        self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) -> Result<Calibrator> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = Arc::clone(&stop);
        let (alive, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("calibrate".into())
            .spawn(move || {
                // Nobody sends; a hang-up is the wish to end.
                if ended.recv_timeout(delay) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
                if let Some(result) = self.run(&thread_stop).transpose() {
                    report(result);
                }
            })
            .map_err(|error| {
                Error::Refused(format!("cannot start a thread to measure the device: {error}"))
            })?;
        Ok(Calibrator { stop, alive: Some(alive), thread: Some(thread) })
    }

    /// Measures, remembers and switches on the calling thread; `None` if `stop` was set meanwhile.
    ///
    /// # Errors
    /// Whatever the device reports; the method stays as it is then.
    pub fn run(self, stop: &AtomicBool) -> Result<Option<CalibrationReport>> {
        let mut io = crate::io::open_backend(self.lock.directory(), Some(&self.lock), self.io_backend)?;
        let Some(measurements) = calibrate::measure(&mut *io, Path::new(SCRATCH_FILE), stop)? else {
            return Ok(None);
        };
        let chosen = calibrate::choose(self.current, &measurements);
        let calibration = Calibration { method: chosen, device: self.device.clone() };
        self.superblock.update(&mut *io, |superblock| superblock.calibration = Some(calibration))?;
        self.switch.set(chosen);
        Ok(Some(CalibrationReport { device: self.device, before: self.current, chosen, measurements }))
    }
}

/// A measurement under way. Dropping it stops it and waits for its thread.
pub struct Calibrator {
    stop: Arc<AtomicBool>,
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Calibrator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and nothing here depends on it.
            let _ = thread.join();
        }
    }
}

/// Removes what a process that was killed while it measured has left.
pub(super) fn remove_leftovers(io: &mut dyn Io) -> Result<()> {
    match run(io, Operation::Unlink { path: PathBuf::from(SCRATCH_FILE) }) {
        Err(error) if error.kind != IoErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
