//! [`Io`] over blocking calls on a few worker threads: where a container forbids the ring, on old kernels, on systems
//! that have none, and where somebody asks for it.
//!
//! **Shape.**
//! ```text
//! driver --submit--> jobs (queue) --> worker 0..3: the blocking call --> finished (list) --wait--> driver
//! ```
//! One hand-over each way. A worker takes one job at a time, so a `Synced` write is the write and then its sync, on
//! one thread. Jobs of one file run on several workers in any order, as the trait allows.
//!
//! **Access.** The table of open files is the driver's alone: a worker that opened a file hands it over with the
//! completion. `finished` is locked by whoever adds or takes; `sleeping` changes only under that lock, so that nobody
//! notifies a driver that has looked and not yet slept. `woken` is set without the lock.
//!
//! **Failure.** A write is repeated from where it stopped until all of it is written or the system says why not (after
//! a short write that is how one learns of a full disk). Dropping the disk ends after the last job.
//!
//! **Why so few workers.** The log has at most four groups in flight and syncs of one file wait for each other in the
//! file system; more threads only add switches.
use super::buffer::{BufferPool, IoBuffer};
use super::directory::{Directory, OpenFile, allocate, read_full, write_dsync};
use super::disk::{
    Backend, Completion, DeviceSpace, Durability, FileId, Io, IoError, Operation, Outcome, Token, Wait, Waker,
};
use crate::base::clock::{Clock, MonotonicClock};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const WORKERS: usize = 4;

/// The device over blocking calls. See the module's documentation.
pub struct ThreadDisk {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    open: BTreeMap<u32, Arc<OpenFile>>,
    file_id_next: u32,
    /// Submitted and not yet returned by `wait`; at most `in_flight_max`.
    in_flight: usize,
    /// Empty between waits; kept for its memory.
    taken: Vec<Finished>,
    buffers: BufferPool,
    clock: Arc<MonotonicClock>,
    backend: Backend,
    /// Keeps the directory locked until the workers have ended.
    _lock: Option<File>,
}

struct Shared {
    directory: Directory,
    jobs: Mutex<Jobs>,
    job_added: Condvar,
    finished: Mutex<Vec<Finished>>,
    /// Something finished, or somebody woke the driver.
    progress: Condvar,
    sleeping: AtomicBool,
    woken: AtomicBool,
}

struct Jobs {
    queue: VecDeque<Job>,
    /// No more will be added.
    closed: bool,
}

struct Job {
    token: Token,
    operation: Operation,
    /// The file that the operation names.
    file: Option<Arc<OpenFile>>,
}

struct Finished {
    completion: Completion,
    /// Becomes an entry of the table, and the completion's outcome.
    opened: Option<OpenFile>,
}

/// What others do under these locks cannot leave a half-changed state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadDisk {
    /// A disk over this directory. `reason` says why it is this backend; `held` is a descriptor of the directory's
    /// lock.
    pub(crate) fn new(directory: Directory, reason: &str, held: Option<File>) -> Result<Self, IoError> {
        let mut detail = format!("{WORKERS} threads, {reason}");
        if !directory.detail.is_empty() {
            detail = format!("{detail}, {}", directory.detail);
        }
        let backend = Backend { name: "syscall", detail, direct: directory.direct, dsync: directory.dsync };
        let shared = Arc::new(Shared {
            directory,
            jobs: Mutex::new(Jobs { queue: VecDeque::new(), closed: false }),
            job_added: Condvar::new(),
            finished: Mutex::default(),
            progress: Condvar::new(),
            sleeping: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        });
        let mut disk = Self {
            shared,
            workers: Vec::with_capacity(WORKERS),
            open: BTreeMap::new(),
            file_id_next: 0,
            in_flight: 0,
            taken: Vec::new(),
            buffers: BufferPool::default(),
            clock: Arc::new(MonotonicClock::default()),
            backend,
            _lock: held,
        };
        for number in 0..WORKERS {
            let shared = disk.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("sternpost-io-{number}"))
                .spawn(move || shared.work())
                .map_err(|error| IoError::from_system("start an I/O thread".to_string(), &error))?;
            disk.workers.push(worker);
        }
        Ok(disk)
    }

    fn file(&self, file: FileId) -> Arc<OpenFile> {
        self.open.get(&file.0).unwrap_or_else(|| panic!("file {} is used and not open", file.0)).clone()
    }

    fn deliver(&mut self, finished: Finished) -> Completion {
        let Finished { mut completion, opened } = finished;
        if let Some(file) = opened {
            let id = self.file_id_next;
            self.file_id_next += 1;
            self.open.insert(id, Arc::new(file));
            completion.result = Ok(Outcome::Opened(FileId(id)));
        }
        self.in_flight -= 1;
        completion
    }
}

impl Io for ThreadDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        operation.check();
        let in_flight_max = self.in_flight_max();
        assert!(self.in_flight < in_flight_max, "at most {in_flight_max} operations may be in flight");
        self.in_flight += 1;
        let file = match &operation {
            Operation::Close { file } => {
                let closed = self.open.remove(&file.0);
                Some(closed.unwrap_or_else(|| panic!("file {} is closed twice", file.0)))
            }
            Operation::Read { file, .. }
            | Operation::Write { file, .. }
            | Operation::Sync { file }
            | Operation::SyncUrgent { file }
            | Operation::Allocate { file, .. }
            | Operation::Length { file } => Some(self.file(*file)),
            _ => None,
        };
        lock(&self.shared.jobs).queue.push_back(Job { token, operation, file });
        self.shared.job_added.notify_one();
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        let mut finished = lock(&self.shared.finished);
        if let Wait::AtMostUs(limit_us) = wait
            && finished.is_empty()
        {
            let until_us = self.clock.now_us().saturating_add(limit_us);
            // Sleeping is announced before `woken` is looked at, and the waker does the reverse: one of the two sees
            // the other (both are SeqCst).
            self.shared.sleeping.store(true, Ordering::SeqCst);
            while finished.is_empty() && !self.shared.woken.load(Ordering::SeqCst) {
                let left_us = until_us.saturating_sub(self.clock.now_us());
                if left_us == 0 {
                    break;
                }
                let waited = self.shared.progress.wait_timeout(finished, Duration::from_micros(left_us));
                finished = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            self.shared.sleeping.store(false, Ordering::SeqCst);
        }
        // Whoever woke us until now is answered by this return.
        self.shared.woken.swap(false, Ordering::SeqCst);
        let mut taken = std::mem::take(&mut self.taken);
        std::mem::swap(&mut *finished, &mut taken);
        drop(finished);
        completions.extend(taken.drain(..).map(|finished| self.deliver(finished)));
        self.taken = taken;
    }

    fn waker(&self) -> Waker {
        let shared = self.shared.clone();
        Arc::new(move || {
            if !shared.woken.swap(true, Ordering::SeqCst) && shared.sleeping.load(Ordering::SeqCst) {
                // The driver holds this lock from its last look until it sleeps.
                drop(lock(&shared.finished));
                shared.progress.notify_one();
            }
        })
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.buffers.take(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.buffers.put(buffer);
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn backend(&self) -> Backend {
        self.backend.clone()
    }

    fn space(&self) -> Option<DeviceSpace> {
        self.shared.directory.space()
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.job_added.notify_all();
        for worker in self.workers.drain(..) {
            // A panic in a worker has been reported by the worker.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self) {
        while let Some(job) = self.next_job() {
            let finished = self.run(job);
            let mut list = lock(&self.finished);
            list.push(finished);
            let sleeping = self.sleeping.load(Ordering::SeqCst);
            drop(list);
            if sleeping {
                self.progress.notify_one();
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs = self.job_added.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, job: Job) -> Finished {
        let Job { token, mut operation, file } = job;
        let mut opened = None;
        let result = match (&mut operation, file) {
            (Operation::Open { path, open }, None) => self.directory.open_file(path, *open).map(|file| {
                opened = Some(file);
                Outcome::Done
            }),
            (Operation::Close { .. }, Some(file)) => {
                // The file itself is closed when the last operation on it has ended.
                drop(file);
                Ok(Outcome::Done)
            }
            (operation, Some(file)) => {
                let result = self.run_on_file(operation, &file.file);
                result
                    .map_err(|error| IoError::from_system(operation.describe(|_| file.path.clone()), &error))
            }
            (operation, None) => self.directory.do_blocking(operation),
        };
        Finished { completion: Completion { token, result, buffer: operation.into_buffer() }, opened }
    }

    fn run_on_file(&self, operation: &mut Operation, file: &File) -> std::io::Result<Outcome> {
        match operation {
            Operation::Read { offset, buffer, .. } => read_full(file, buffer, *offset).map(Outcome::Bytes),
            Operation::Write { offset, buffer, durability, .. } => {
                match durability {
                    Durability::Dsync if self.directory.dsync => write_dsync(file, buffer, *offset)?,
                    Durability::None => file.write_all_at(buffer, *offset)?,
                    Durability::Synced | Durability::Dsync => {
                        file.write_all_at(buffer, *offset)?;
                        file.sync_data()?;
                    }
                }
                Ok(Outcome::Bytes(buffer.len()))
            }
            Operation::Sync { .. } | Operation::SyncUrgent { .. } => file.sync_data().map(|()| Outcome::Done),
            Operation::Length { .. } => file.metadata().map(|metadata| Outcome::Length(metadata.len())),
            Operation::Allocate { bytes, .. } => allocate(file, *bytes).map(|()| Outcome::Done),
            _ => unreachable!("only operations with a file come here"),
        }
    }
}
