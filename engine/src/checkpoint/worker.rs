//! Who makes checkpoints: a thread of its own, or whoever asks (simulated runs).
//!
//! One checkpoint at a time, in the order of the runs. A run that fails is tried again after a pause that doubles from one
//! second to thirty: nothing of a failed attempt is referred to, everything that it wrote is in memory still, and the
//! next attempt writes it to new files. Only a superblock that could not be written ends it for good.
//!
//! A broken invariant ends the thread. Nothing that it was about is durable and nothing of the log has gone, but no checkpoint
//! will follow: the owner asks for it ([`Worker::broken`]) and takes nothing more.
//!
//! **Upkeep.** With no run to write, a state that is not in order is made over: a checkpoint of nothing new, which sweeps the next part
//! of a compaction and cleans. So space comes back without writes. One at a time, and the next only when its result was taken.
//!
//! **Room.** On a device without room an attempt is made again at once: without cleaning, then with half of the reserve given up, then
//! with the other half ([`crate::space`]). What cleaning wins is worth the reserve too, as less of it at a time. Behind each success, and
//! once a second while it is not whole, the reserve is put together again.
//!
//! **Access.** The owner puts runs into `jobs` and takes results from `done`; the thread does the reverse. Both under one
//! lock, which nobody holds during I/O.
use super::{CheckpointReport, Checkpoints, make, remove, wants_upkeep};
use crate::disk_state::DiskState;
use crate::error::{Error, Result};
use crate::io::{Io, Waker};
use crate::mvcc::{CutPosition, Run};
use crate::space::step_bytes;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Makes the worker's own device; called on its thread, when there is something to write for the first time.
pub(crate) type OpenDevice = Box<dyn FnMut() -> Result<Box<dyn Io>> + Send>;

/// A checkpoint that is durable.
pub(crate) struct Done {
    /// What it holds that the state before did not; none for upkeep.
    pub(crate) run: Option<Run>,
    pub(crate) state: Arc<DiskState>,
    pub(crate) report: CheckpointReport,
}

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest pause on a full device: room may come back at any moment, and writers wait for it.
const FULL_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks for room for what was given up of the reserve: writers wait for it.
const SHORT_PAUSE_US: u64 = 1_000_000;
/// Between two looks for room for a reserve that there never was, or a larger one: nobody waits.
const RESERVE_PAUSE_US: u64 = 60_000_000;

/// See the module.
pub(crate) enum Worker {
    /// A thread.
    Thread(ThreadWorker),
    /// The caller, when it asks for what is done. Only simulations do.
    #[cfg_attr(not(feature = "sim"), expect(dead_code))]
    Here(Box<HereWorker>),
}

/// Everything that makes a checkpoint.
pub(crate) struct Maker {
    pub(crate) checkpoints: Checkpoints,
    pub(crate) base: Arc<DiskState>,
    /// The last upkeep won nothing, and nothing was written since.
    upkeep_rests: bool,
    /// The reserve was looked for once.
    has_looked: bool,
    /// When the reserve is looked for again, in microseconds of the device's clock.
    look_at_us: u64,
}

impl Maker {
    pub(crate) fn new(checkpoints: Checkpoints, base: Arc<DiskState>) -> Self {
        let has_looked = checkpoints.reserve.is_none();
        Self { checkpoints, base, upkeep_rests: false, has_looked, look_at_us: 0 }
    }

    fn make(&mut self, io: &mut dyn Io, run: &Run) -> Result<(Arc<DiskState>, CheckpointReport)> {
        let (state, report) = make(&mut self.checkpoints, io, &self.base, run)?;
        self.base = state.clone();
        Ok((state, report))
    }

    /// True if the newest state is worth making over.
    fn wants_upkeep(&self) -> bool {
        let is_short = self.checkpoints.space.is_short();
        !self.upkeep_rests && wants_upkeep(&self.base, &self.checkpoints.shelf, is_short)
    }

    fn upkeep(&mut self, io: &mut dyn Io) -> Result<(Arc<DiskState>, CheckpointReport)> {
        let (index, term) = self.base.applied();
        let lsn = self.checkpoints.superblock.read().wal_replay_lsn;
        let nothing_new = Run {
            tables: Vec::new(),
            position: CutPosition { index, term, lsn },
            revision: self.base.revision(),
            compact_revision: self.base.compact_revision(),
            system: BTreeMap::new(),
        };
        let before = self.base.clone();
        let segment_bytes = self.checkpoints.shelf.options.segment_bytes;
        let made = self.make_with_room(io, &nothing_new, &[segment_bytes, segment_bytes / 4])?;
        // Where it wins nothing it would go on for ever and write all the time.
        self.upkeep_rests =
            made.0.swept_revision() == before.swept_revision() && made.0.dead_bytes() >= before.dead_bytes();
        Ok(made)
    }

    fn make_run(&mut self, io: &mut dyn Io, run: &Run) -> Result<(Arc<DiskState>, CheckpointReport)> {
        self.upkeep_rests = false;
        let segment_bytes = self.checkpoints.shelf.options.segment_bytes;
        self.make_with_room(io, run, &[segment_bytes, 0])
    }

    /// Makes a checkpoint with as much cleaning, and with as little of the reserve, as there is room for. `clean_bytes`: what is tried
    /// each time, the most first.
    fn make_with_room(
        &mut self,
        io: &mut dyn Io,
        run: &Run,
        clean_bytes: &[u64],
    ) -> Result<(Arc<DiskState>, CheckpointReport)> {
        loop {
            let mut refused = None;
            for &bytes in clean_bytes {
                self.checkpoints.clean_bytes_max = bytes;
                match self.make(io, run) {
                    Err(error @ Error::NoSpace(_)) => refused = Some(error),
                    made => return made,
                }
            }
            let Checkpoints { reserve, space, .. } = &mut self.checkpoints;
            let Some(error) = refused else { unreachable!("something was tried") };
            if !reserve.give_up_one(io, space, &error) {
                return Err(error);
            }
            // What is dead is worth more now.
            self.upkeep_rests = false;
        }
    }

    /// True if there is something to be done about the reserve, once there is room.
    fn is_reserve_wanting(&self) -> bool {
        let Checkpoints { reserve, space, .. } = &self.checkpoints;
        !reserve.is_none() && (!self.has_looked || !reserve.is_whole() || reserve.wants_other_size(space))
    }

    /// True if the reserve is to be put together now.
    fn wants_reserve(&self, now_us: u64) -> bool {
        self.is_reserve_wanting() && now_us >= self.look_at_us
    }

    /// How long nothing has to be done for the reserve; none if it is as it should be.
    fn reserve_due_in(&self, now_us: u64) -> Option<Duration> {
        self.is_reserve_wanting().then(|| Duration::from_micros(self.look_at_us.saturating_sub(now_us)))
    }

    /// Puts the reserve together, as far as there is room.
    fn put_reserve_together(&mut self, io: &mut dyn Io) {
        let Checkpoints { reserve, space, .. } = &mut self.checkpoints;
        // An error of the device says so in `space`; what fails for good fails checkpoints too.
        let _ = reserve.put_together(io, space);
        self.has_looked = true;
        let pause_us = if reserve.is_short() { SHORT_PAUSE_US } else { RESERVE_PAUSE_US };
        self.look_at_us = io.now_us() + pause_us;
    }

    /// The same behind a checkpoint: the data may be smaller now.
    fn follow_data(&mut self, io: &mut dyn Io, run: Option<&Run>) {
        let Checkpoints { reserve, space, shelf, .. } = &mut self.checkpoints;
        if !reserve.is_none()
            && let Some(run) = run
        {
            let records = run.tables.iter().map(|table| table.events_count() as u64).sum();
            let bytes = run.tables.iter().map(|table| table.record_bytes()).sum();
            let step_bytes =
                step_bytes(records, bytes, shelf.options.page_bytes as u64, self.base.pages_bytes());
            reserve.follow_run(space, self.base.live_bytes(), step_bytes);
        }
        self.put_reserve_together(io);
    }

    /// Removes names that somebody kept longer than the last checkpoint lasted.
    fn remove_kept(&mut self, io: &mut dyn Io) {
        remove(io, &[], &self.checkpoints.shelf);
    }
}

/// Makes checkpoints in the caller's thread.
pub(crate) struct HereWorker {
    pub(crate) maker: Maker,
    pub(crate) io: Box<dyn Io>,
    jobs: VecDeque<Run>,
    failing: Option<Error>,
}

#[derive(Default)]
struct Mailbox {
    jobs: VecDeque<Run>,
    done: VecDeque<Done>,
    /// Why the newest attempt failed; none after one that did not.
    failing: Option<Error>,
    /// Names that were kept may go.
    names_due: bool,
    /// The reserve is to be larger.
    reserve_due: bool,
    /// There will be no further runs: nothing is made over any more.
    finishing: bool,
    closing: bool,
}

struct Shared {
    mailbox: Mutex<Mailbox>,
    /// Something may be in `done`: spares the owner a lock each time it looks.
    is_done: AtomicBool,
    /// The same for `failing`.
    is_failing: AtomicBool,
    /// Which invariant ended the thread, if one did. It is `failing` too, for good.
    broken: OnceLock<Error>,
    /// A job was added or one has come to its end, a result was taken, or it is time to end.
    changed: Condvar,
}

impl Shared {
    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        let mut mailbox = self.mailbox();
        mailbox.failing = Some(error);
        self.is_failing.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// The thread has ended with this panic.
    fn end_broken(&self, panic: &(dyn Any + Send)) {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        let error = Error::Refused(format!(
            "nothing more is written: a broken invariant ended the thread of the checkpoints ({words}). What was \
             acknowledged is in the log; reopen to go on"
        ));
        // Only this thread sets it, and it has ended.
        let _ = self.broken.set(error.clone());
        self.fail(error);
    }
}

/// Makes checkpoints in a thread.
pub(crate) struct ThreadWorker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// A worker in the caller's thread, over a device of its own.
    #[cfg(feature = "sim")]
    pub(crate) fn here(maker: Maker, io: Box<dyn Io>) -> Self {
        Self::Here(Box::new(HereWorker { maker, io, jobs: VecDeque::new(), failing: None }))
    }

    /// Starts the thread. `wake` is called when something is done.
    pub(crate) fn thread(maker: Maker, open_device: OpenDevice, wake: Waker) -> Result<Self> {
        let shared = Arc::new(Shared {
            mailbox: Mutex::default(),
            is_done: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
            broken: OnceLock::new(),
            changed: Condvar::new(),
        });
        let thread_shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                // The owner must hear of a panic, it would wait for ever otherwise. What that may have left half done is dropped with
                // the closure.
                let worked =
                    catch_unwind(AssertUnwindSafe(|| work(&thread_shared, maker, open_device, &wake)));
                if let Err(panic) = worked {
                    thread_shared.end_broken(&*panic);
                    wake();
                }
            })
            .map_err(|error| {
                Error::Refused(format!("cannot start the thread of the checkpoints: {error}"))
            })?;
        Ok(Self::Thread(ThreadWorker { shared, thread: Some(thread) }))
    }

    /// Takes over a run.
    pub(crate) fn submit(&mut self, run: Run) {
        match self {
            Self::Thread(worker) => {
                worker.shared.mailbox().jobs.push_back(run);
                worker.shared.changed.notify_all();
            }
            Self::Here(worker) => worker.jobs.push_back(run),
        }
    }

    /// Removes the names that nobody keeps any more.
    pub(crate) fn remove_kept(&mut self) {
        match self {
            Self::Thread(worker) => {
                worker.shared.mailbox().names_due = true;
                worker.shared.changed.notify_all();
            }
            Self::Here(worker) => worker.maker.remove_kept(&mut *worker.io),
        }
    }

    /// The reserve is to be larger than it is.
    pub(crate) fn look_at_reserve(&mut self) {
        match self {
            Self::Thread(worker) => {
                worker.shared.mailbox().reserve_due = true;
                worker.shared.changed.notify_all();
            }
            Self::Here(worker) => worker.maker.look_at_us = 0,
        }
    }

    /// The next checkpoint that is durable and was not taken yet.
    pub(crate) fn take_done(&mut self) -> Option<Done> {
        match self {
            Self::Thread(worker) if worker.shared.is_done.load(Ordering::Acquire) => {
                let mut mailbox = worker.shared.mailbox();
                let done = mailbox.done.pop_front();
                if mailbox.done.is_empty() {
                    worker.shared.is_done.store(false, Ordering::Release);
                    worker.shared.changed.notify_all();
                }
                done
            }
            Self::Thread(_) => None,
            Self::Here(worker) => worker.make_one(),
        }
    }

    /// Blocks until a job that was submitted is done or has failed. None is submitted behind it.
    pub(crate) fn wait_done(&mut self) {
        if let Self::Thread(worker) = self {
            let is_under_way = |mailbox: &mut Mailbox| mailbox.done.is_empty() && mailbox.failing.is_none();
            let mut mailbox = worker.shared.mailbox();
            mailbox.finishing = true;
            drop(worker.shared.changed.wait_while(mailbox, is_under_way));
        }
    }

    /// Why checkpoints fail at the moment, if they do.
    pub(crate) fn failing(&self) -> Option<Error> {
        match self {
            Self::Thread(worker) if worker.shared.is_failing.load(Ordering::Acquire) => {
                worker.shared.mailbox().failing.clone()
            }
            Self::Thread(_) => None,
            Self::Here(worker) => worker.failing.clone(),
        }
    }

    /// Why there will be no further checkpoint, if a broken invariant has ended the thread.
    pub(crate) fn broken(&self) -> Option<&Error> {
        match self {
            Self::Thread(worker) => worker.shared.broken.get(),
            // There a panic is the caller's own.
            Self::Here(_) => None,
        }
    }

    /// Ends after the attempt that is under way; runs that were not begun are in the log.
    pub(crate) fn close(&mut self) {
        if let Self::Thread(worker) = self {
            worker.shared.mailbox().closing = true;
            worker.shared.changed.notify_all();
            if let Some(thread) = worker.thread.take() {
                // It catches its panics.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.close();
    }
}

impl HereWorker {
    fn make_one(&mut self) -> Option<Done> {
        if self.maker.wants_reserve(self.io.now_us()) {
            self.maker.put_reserve_together(&mut *self.io);
        }
        let made = match self.jobs.front() {
            Some(run) => self.maker.make_run(&mut *self.io, run),
            None if self.maker.wants_upkeep() => self.maker.upkeep(&mut *self.io),
            None => return None,
        };
        match made {
            Ok((state, report)) => {
                self.failing = None;
                self.maker.follow_data(&mut *self.io, self.jobs.front());
                Some(Done { run: self.jobs.pop_front(), state, report })
            }
            Err(error) => {
                self.failing = Some(error);
                None
            }
        }
    }
}

fn work(shared: &Shared, mut maker: Maker, mut open_device: OpenDevice, wake: &Waker) {
    let mut device: Option<Box<dyn Io>> = None;
    let mut pause = PAUSE_MIN;
    loop {
        if maker.is_reserve_wanting() && device.is_none() {
            // What fails here fails again with the first checkpoint, which tells.
            device = open_device().ok();
        }
        if let Some(device) = &mut device
            && maker.wants_reserve(device.now_us())
        {
            maker.put_reserve_together(&mut **device);
            wake();
        }
        let reserve_due = device.as_ref().and_then(|device| maker.reserve_due_in(device.now_us()));
        let wants_upkeep = maker.wants_upkeep();
        let run = {
            let mailbox = shared.mailbox();
            let is_idle = |mailbox: &mut Mailbox| {
                let may_keep_up = wants_upkeep && mailbox.done.is_empty() && !mailbox.finishing;
                let is_due = mailbox.names_due || mailbox.reserve_due;
                mailbox.jobs.is_empty() && !may_keep_up && !mailbox.closing && !is_due
            };
            let mut mailbox = match reserve_due {
                None => shared.changed.wait_while(mailbox, is_idle).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let waited = shared.changed.wait_timeout_while(mailbox, due, is_idle);
                    let (mailbox, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() {
                        continue;
                    }
                    mailbox
                }
            };
            if mailbox.closing {
                return;
            }
            if std::mem::take(&mut mailbox.reserve_due) {
                maker.look_at_us = 0;
                continue;
            }
            if std::mem::take(&mut mailbox.names_due) {
                drop(mailbox);
                // Without a device there was no checkpoint, and there is nothing to remove.
                if let Some(device) = &mut device {
                    maker.remove_kept(&mut **device);
                }
                continue;
            }
            mailbox.jobs.front().cloned()
        };
        let mut make = |device: &mut dyn Io| match &run {
            Some(run) => maker.make_run(device, run),
            None => maker.upkeep(device),
        };
        let made = match &mut device {
            Some(device) => make(&mut **device),
            None => open_device().and_then(|opened| make(&mut **device.insert(opened))),
        };
        match made {
            Ok((state, report)) => {
                let mut mailbox = shared.mailbox();
                if run.is_some() {
                    mailbox.jobs.pop_front();
                }
                shared.is_done.store(true, Ordering::Release);
                mailbox.done.push_back(Done { run: run.clone(), state, report });
                mailbox.failing = None;
                shared.is_failing.store(false, Ordering::Release);
                drop(mailbox);
                if let Some(device) = &mut device {
                    maker.follow_data(&mut **device, run.as_ref());
                }
                shared.changed.notify_all();
                wake();
                pause = PAUSE_MIN;
            }
            Err(error) => {
                let pause_max = if matches!(error, Error::NoSpace(_)) { FULL_PAUSE_MAX } else { PAUSE_MAX };
                shared.fail(error);
                wake();
                pause = pause.min(pause_max);
                let open = |mailbox: &mut Mailbox| !mailbox.closing;
                drop(shared.changed.wait_timeout_while(shared.mailbox(), pause, open));
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
