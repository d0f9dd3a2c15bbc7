//! [`Io`] over io_uring, on Linux.
//!
//! **Shape.** Up to `in_flight_max` slots, each with one operation and the results of its parts. The user data of an
//! entry is `slot × 2 + part`; part 0 is the operation, part 1 the sync of a `Synced` write.
//!
//! | operation | entries |
//! |---|---|
//! | read | read |
//! | write, no durability | write |
//! | write, `Dsync` | write with RWF_DSYNC |
//! | write, `Synced` | write, linked to fsync(DATASYNC) |
//! | sync, sync of a directory | fsync |
//! | urgent sync | none, if the caller goes to sleep in `wait`: a blocking call there; else fsync |
//! | open, close, rename, unlink, list, length, make a directory | none: a blocking call inside `submit` |
//!
//! **Invariants.** U1: a buffer lives in its slot from before its entries are pushed until the results of all of them
//! were seen; only then it goes back. U2: a `Synced` write is durable only if every byte was written by entries whose
//! linked sync, or a later one, succeeded after them. U3: no failed write or sync is ever tried again. What is pushed
//! again is the rest of a short transfer (a short write breaks the link: its sync ends with ECANCELED, and the rest
//! brings its own), and a transfer that never began (EINTR, EAGAIN).
//!
//! **Thread.** The ring belongs to the thread of the first `submit` or `wait`; what is in flight dies with that thread.
//! If the disk is moved to another thread while nothing is in flight, it makes a new ring there: an engine may recover
//! on one thread and serve on another.
//!
//! **Failure.** If the ring itself fails, every operation in flight and every later one fails with that error.
//!
//! **End.** Dropping the disk waits for what is in flight, then lets go of the directory's lock. Dropped on another
//! thread it cannot wait; then the buffers in flight are leaked, and the lock is free when the kernel is done.
//!
//! **Does not know** how a ring is set up or woken; that is [`super::ring`].
use super::buffer::{BufferPool, IoBuffer};
use super::directory::{Directory, OpenFile, allocate};
use super::disk::{
    BLOCK_BYTES, Backend, Completion, DeviceSpace, Durability, FileId, Io, IoError, Operation, Outcome,
    Token, Wait, Waker,
};
use super::ring::{Completed, Ring, Wake};
use crate::base::clock::{Clock, MonotonicClock};
use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

/// See [`Io::in_flight_max`].
const IN_FLIGHT_MAX: usize = 64;

/// Two for each operation and the poll, in the power of two that the kernel would take anyway.
const RING_ENTRIES: u32 = 256;
const _: () = assert!(RING_ENTRIES as usize > 2 * IN_FLIGHT_MAX);

/// How often an operation that never began is tried again. The kernel asks for it when it is short of something.
const ATTEMPTS_MAX: u32 = 100;

/// The device over io_uring. See the module's documentation.
pub struct RingDisk {
    ring: Ring,
    /// The thread that `ring` belongs to, once it was used.
    thread: Option<ThreadId>,
    /// Set when the ring cannot be used or had again: from then on every operation fails with this.
    broken: Option<IoError>,
    directory: Directory,
    open: BTreeMap<u32, Arc<OpenFile>>,
    file_id_next: u32,
    slots: Vec<Option<InFlight>>,
    /// Indices of the slots that are `None`.
    slots_free: Vec<usize>,
    /// Urgent syncs that nobody has begun. Each is in a slot of its own by the end of the next `wait`.
    urgent: Vec<(Token, FileId, Arc<OpenFile>)>,
    /// Ended in `submit`, not yet returned by `wait`.
    completed: Vec<Completion>,
    /// Empty between waits; kept for its memory.
    results: Vec<Completed>,
    buffers: BufferPool,
    clock: Arc<MonotonicClock>,
    backend: Backend,
    wake: Arc<Wake>,
    /// A descriptor of the directory's lock; each ring registers it.
    held: Option<File>,
}

/// One operation between its submission and its completion.
struct InFlight {
    token: Token,
    operation: Operation,
    file: SlotFile,
    /// Bytes of a read or write that are done.
    done: usize,
    /// Results not yet seen.
    parts_left: u8,
    /// Result of part 0, and of part 1 if there is one.
    results: [i32; 2],
    /// How often it was tried without getting anywhere.
    attempts: u32,
}

/// What keeps the descriptor open while the kernel may use it.
enum SlotFile {
    Open(Arc<OpenFile>),
    Directory(File),
}

/// What the results of all parts mean.
enum Ended {
    With(Outcome),
    /// Some of the bytes are done, and the rest must be asked for.
    Short,
    /// Nothing happened, and the kernel wants to be asked again.
    NotBegun(io::Error),
    Failed(io::Error),
}

impl RingDisk {
    /// A disk over this directory. `held` is a descriptor of the directory's lock.
    pub(crate) fn new(directory: Directory, held: Option<File>) -> Result<Self, IoError> {
        Ring::probe()?;
        let wake = Arc::new(Wake::new()?);
        let ring = Ring::new(RING_ENTRIES, wake.clone(), held.as_ref())?;
        let mut detail = ring.flags.to_string();
        if !directory.detail.is_empty() {
            detail = format!("{detail}, {}", directory.detail);
        }
        let backend = Backend { name: "io_uring", detail, direct: directory.direct, dsync: directory.dsync };
        Ok(Self {
            ring,
            thread: None,
            broken: None,
            directory,
            open: BTreeMap::new(),
            file_id_next: 0,
            slots: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            slots_free: (0..IN_FLIGHT_MAX).rev().collect(),
            urgent: Vec::new(),
            completed: Vec::new(),
            results: Vec::new(),
            buffers: BufferPool::default(),
            clock: Arc::new(MonotonicClock::default()),
            backend,
            wake,
            held,
        })
    }

    fn file(&self, file: FileId) -> Arc<OpenFile> {
        self.open.get(&file.0).unwrap_or_else(|| panic!("file {} is used and not open", file.0)).clone()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.slots_free.len()
    }

    /// Makes sure that the ring is this thread's.
    fn claim_ring(&mut self) {
        let thread = std::thread::current().id();
        if self.broken.is_some() || self.thread == Some(thread) {
            return;
        }
        if self.thread.is_some() {
            assert_eq!(self.in_flight(), 0, "a ring changes its thread only while nothing is in flight (U1)");
            match Ring::new(RING_ENTRIES, self.wake.clone(), self.held.as_ref()) {
                Ok(ring) => self.ring = ring,
                Err(error) => self.broken = Some(error),
            }
        }
        self.thread = Some(thread);
    }

    /// Does what needs no ring; `None` if the operation was put into the ring.
    fn do_or_start(&mut self, token: Token, operation: Operation) -> Option<Completion> {
        let result = match &operation {
            Operation::Open { path, open } => self.directory.open_file(path, *open).map(|file| {
                let id = self.file_id_next;
                self.file_id_next += 1;
                self.open.insert(id, Arc::new(file));
                Outcome::Opened(FileId(id))
            }),
            Operation::Close { file } => {
                // The file itself is closed when the last operation on it has ended.
                let closed = self.open.remove(&file.0);
                drop(closed.unwrap_or_else(|| panic!("file {} is closed twice", file.0)));
                Ok(Outcome::Done)
            }
            Operation::Length { file } => {
                let file = self.file(*file);
                let length = file.file.metadata().map(|metadata| Outcome::Length(metadata.len()));
                length
                    .map_err(|error| IoError::from_system(operation.describe(|_| file.path.clone()), &error))
            }
            Operation::Allocate { file, bytes } => {
                let file = self.file(*file);
                allocate(&file.file, *bytes)
                    .map(|()| Outcome::Done)
                    .map_err(|error| IoError::from_system(operation.describe(|_| file.path.clone()), &error))
            }
            Operation::Read { file, .. } | Operation::Write { file, .. } | Operation::Sync { file } => {
                let file = self.file(*file);
                self.start(token, operation, SlotFile::Open(file));
                return None;
            }
            Operation::SyncUrgent { file } => {
                let open = self.file(*file);
                self.urgent.push((token, *file, open));
                return None;
            }
            Operation::SyncDirectory { path } => match self.directory.open_directory(path) {
                Ok(directory) => {
                    self.start(token, operation, SlotFile::Directory(directory));
                    return None;
                }
                Err(error) => Err(IoError::from_system(operation.describe(|_| String::new()), &error)),
            },
            names => self.directory.do_blocking(names),
        };
        Some(Completion { token, result, buffer: operation.into_buffer() })
    }

    /// Puts an operation into a slot and its entries into the ring.
    fn start(&mut self, token: Token, operation: Operation, file: SlotFile) {
        let slot = self.slots_free.pop().expect("submit has checked in_flight_max");
        let (done, parts_left, results, attempts) = (0, 0, [0; 2], 0);
        self.push(slot, InFlight { token, operation, file, done, parts_left, results, attempts });
    }

    /// Pushes the entries of an operation, or of what is left of it.
    fn push(&mut self, slot: usize, mut in_flight: InFlight) {
        let fd = Fd(match &in_flight.file {
            SlotFile::Open(file) => file.file.as_raw_fd(),
            SlotFile::Directory(file) => file.as_raw_fd(),
        });
        let user_data = slot as u64 * 2;
        let done = in_flight.done;
        let mut sync = None;
        let entry: Entry = match &mut in_flight.operation {
            Operation::Read { offset, buffer, .. } => {
                let rest = &mut buffer[done..];
                let read = opcode::Read::new(fd, rest.as_mut_ptr(), entry_length(rest));
                read.offset(*offset + done as u64).build()
            }
            Operation::Write { offset, buffer, durability, .. } => {
                let rest = &buffer[done..];
                let write = opcode::Write::new(fd, rest.as_ptr(), entry_length(rest));
                let write = write.offset(*offset + done as u64);
                match durability {
                    Durability::None => write.build(),
                    Durability::Dsync if self.directory.dsync => write.rw_flags(libc::RWF_DSYNC).build(),
                    Durability::Synced | Durability::Dsync => {
                        let fsync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC);
                        sync = Some(fsync.build().user_data(user_data + 1));
                        write.build().flags(Flags::IO_LINK)
                    }
                }
            }
            Operation::Sync { .. } => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Operation::SyncDirectory { .. } => opcode::Fsync::new(fd).build(),
            _ => unreachable!("only reads, writes and syncs go through the ring"),
        };
        let entry = entry.user_data(user_data);
        in_flight.parts_left = 1 + u8::from(sync.is_some());
        in_flight.results = [0; 2];
        self.slots[slot] = Some(in_flight);
        // SAFETY: the buffer and the file are in the slot now and stay there, untouched, until the results of all
        // entries pushed here were seen (U1): `complete` takes them out only then, and whoever cannot see them any
        // more (`give_up`) leaks them. The buffer is a map of its own, so moving the slot does not move its bytes.
        unsafe {
            match sync {
                None => self.ring.push(&[entry]),
                Some(sync) => self.ring.push(&[entry, sync]),
            }
        }
    }

    /// Gives the kernel the urgent syncs: the caller has other things to do.
    fn start_urgent(&mut self) {
        for (token, file, open) in std::mem::take(&mut self.urgent) {
            self.start(token, Operation::Sync { file }, SlotFile::Open(open));
        }
    }

    /// Does the urgent syncs, after everything else that was submitted has been started. Each was submitted when the
    /// writes it stands for were complete, so one call serves all of a file.
    fn do_urgent(&mut self, completions: &mut Vec<Completion>) {
        let mut results: Vec<(FileId, Result<Outcome, IoError>)> = Vec::new();
        for (token, file, open) in self.urgent.drain(..) {
            if results.last().is_none_or(|(done, _)| *done != file) {
                let result = open.file.sync_data().map(|()| Outcome::Done).map_err(|error| {
                    IoError::from_system(Operation::Sync { file }.describe(|_| open.path.clone()), &error)
                });
                results.push((file, result));
            }
            let result = results.last().map_or(Ok(Outcome::Done), |(_, result)| result.clone());
            completions.push(Completion { token, result, buffer: None });
        }
    }

    /// Takes in every result that is there.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        let mut results = std::mem::take(&mut self.results);
        self.ring.completed(&mut results);
        for Completed { user_data, result } in results.drain(..) {
            let (slot, part) = ((user_data / 2) as usize, (user_data % 2) as usize);
            let in_flight = self.slots.get_mut(slot).and_then(Option::as_mut);
            let in_flight =
                in_flight.unwrap_or_else(|| panic!("a result for slot {slot}, which is empty (U1)"));
            in_flight.results[part] = result;
            in_flight.parts_left -= 1;
            if in_flight.parts_left == 0 {
                completions.extend(self.complete(slot));
            }
        }
        self.results = results;
    }

    /// All parts of an operation have ended: its completion, unless what is left of it was started again.
    fn complete(&mut self, slot: usize) -> Option<Completion> {
        let mut in_flight = self.slots[slot].take().expect("the caller has just looked at it");
        let error = match in_flight.ended() {
            Ended::With(outcome) => return Some(self.completion(slot, in_flight, Ok(outcome))),
            Ended::Short => {
                in_flight.attempts = 0;
                self.push(slot, in_flight);
                return None;
            }
            Ended::NotBegun(_) if in_flight.attempts < ATTEMPTS_MAX => {
                in_flight.attempts += 1;
                self.push(slot, in_flight);
                return None;
            }
            Ended::NotBegun(error) | Ended::Failed(error) => error,
        };
        let what = in_flight.describe();
        Some(self.completion(slot, in_flight, Err(IoError::from_system(what, &error))))
    }

    fn completion(
        &mut self,
        slot: usize,
        in_flight: InFlight,
        result: Result<Outcome, IoError>,
    ) -> Completion {
        self.slots_free.push(slot);
        Completion { token: in_flight.token, result, buffer: in_flight.operation.into_buffer() }
    }

    /// Starts what was pushed and takes in what is there, or comes within this time. True if somebody woke the disk.
    fn enter(&mut self, left_us: u64, completions: &mut Vec<Completion>) -> bool {
        match self.ring.enter(left_us) {
            Ok(woken) => {
                self.collect(completions);
                woken
            }
            Err(error) => {
                self.broken = Some(IoError::from_system("enter the io_uring".to_string(), &error));
                self.give_up(completions);
                false
            }
        }
    }

    /// The ring does not work any more: whatever is in flight fails. The kernel may still use the buffers, so nobody
    /// gets them ever again.
    fn give_up(&mut self, completions: &mut Vec<Completion>) {
        let error = self.broken.clone();
        // Those can be done without the ring, but nothing that they stand for could be seen to complete.
        for (token, file, open) in self.urgent.drain(..) {
            if let Some(mut error) = error.clone() {
                error.what = Operation::Sync { file }.describe(|_| open.path.clone());
                completions.push(Completion { token, result: Err(error), buffer: None });
            }
        }
        for slot in 0..self.slots.len() {
            let Some(in_flight) = self.slots[slot].take() else { continue };
            self.slots_free.push(slot);
            if let Some(mut error) = error.clone() {
                error.what = in_flight.describe();
                completions.push(Completion { token: in_flight.token, result: Err(error), buffer: None });
            }
            std::mem::forget(in_flight);
        }
    }
}

impl Io for RingDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        operation.check();
        let in_flight_max = self.in_flight_max();
        let in_flight = self.in_flight() + self.urgent.len() + self.completed.len();
        assert!(in_flight < in_flight_max, "at most {in_flight_max} operations may be in flight");
        self.claim_ring();
        let completion = match &self.broken {
            None => self.do_or_start(token, operation),
            Some(error) => {
                let what = operation.describe(|file| self.file(file).path.clone());
                let result = Err(IoError { what, ..error.clone() });
                Some(Completion { token, result, buffer: operation.into_buffer() })
            }
        };
        self.completed.extend(completion);
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        self.claim_ring();
        let completions_before = completions.len();
        completions.append(&mut self.completed);
        let limit_us = if let Wait::AtMostUs(limit_us) = wait { limit_us } else { 0 };
        if !self.urgent.is_empty() && self.broken.is_none() {
            if limit_us == 0 || completions.len() > completions_before {
                self.start_urgent();
            } else {
                self.enter(0, completions);
                self.do_urgent(completions);
            }
        }
        let until_us = self.clock.now_us().saturating_add(limit_us);
        let mut left_us = limit_us;
        loop {
            if completions.len() > completions_before {
                left_us = 0;
            }
            if self.broken.is_some() {
                // Nothing will come; without the ring nobody can wake us either.
                std::thread::park_timeout(Duration::from_micros(left_us));
                return;
            }
            if self.enter(left_us, completions) {
                return;
            }
            // The first half of a synced write, a signal: neither is what the caller waits for.
            if left_us == 0 || completions.len() > completions_before {
                return;
            }
            left_us = until_us.saturating_sub(self.clock.now_us());
        }
    }

    fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Arc::new(move || wake.wake())
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
        self.directory.space()
    }

    fn in_flight_max(&self) -> usize {
        IN_FLIGHT_MAX
    }
}

impl Drop for RingDisk {
    fn drop(&mut self) {
        let mine = self.thread.is_none_or(|thread| thread == std::thread::current().id());
        let mut completions = Vec::new();
        while mine && self.broken.is_none() && self.in_flight() > 0 {
            self.wait(Wait::AtMostUs(1_000_000), &mut completions);
        }
        if self.in_flight() == 0 && self.broken.is_none() {
            self.ring.release_files();
        } else {
            // The kernel may still be writing; it lets go of the lock itself when it is done.
            self.give_up(&mut completions);
        }
    }
}

impl InFlight {
    fn describe(&self) -> String {
        self.operation.describe(|_| match &self.file {
            SlotFile::Open(file) => file.path.clone(),
            SlotFile::Directory(_) => String::new(),
        })
    }

    /// What the results mean (U2, U3). Counts what is done.
    fn ended(&mut self) -> Ended {
        let count = match usize::try_from(self.results[0]) {
            Ok(count) => count,
            Err(_) => {
                let error = io::Error::from_raw_os_error(-self.results[0]);
                let transfer = matches!(self.operation, Operation::Read { .. } | Operation::Write { .. });
                return match -self.results[0] {
                    libc::EINTR | libc::EAGAIN if transfer => Ended::NotBegun(error),
                    _ => Ended::Failed(error),
                };
            }
        };
        match &self.operation {
            Operation::Read { offset, buffer, .. } => {
                self.done += count;
                if self.done == buffer.len() || count == 0 {
                    return Ended::With(Outcome::Bytes(self.done));
                }
                if self.done.is_multiple_of(BLOCK_BYTES) {
                    return Ended::Short;
                }
                // A part of a block: the end of the file, or the device cut it short and it must not be taken for that.
                let SlotFile::Open(file) = &self.file else { unreachable!("a directory is not read") };
                match file.file.metadata() {
                    Ok(metadata) if offset + (self.done as u64) < metadata.len() => {
                        Ended::Failed(io::Error::other(format!("only {} bytes could be read", self.done)))
                    }
                    Ok(_) => Ended::With(Outcome::Bytes(self.done)),
                    Err(error) => Ended::Failed(error),
                }
            }
            Operation::Write { buffer, .. } => {
                self.done += count;
                if self.done < buffer.len() {
                    // Its sync was cancelled; the rest brings its own. A full disk says so on the next try.
                    return match count > 0 && self.done.is_multiple_of(BLOCK_BYTES) {
                        true => Ended::Short,
                        false => {
                            Ended::Failed(io::Error::other(format!("only {} bytes were written", self.done)))
                        }
                    };
                }
                match self.results[1] {
                    0.. => Ended::With(Outcome::Bytes(self.done)),
                    error => Ended::Failed(io::Error::from_raw_os_error(-error)),
                }
            }
            _ => Ended::With(Outcome::Done),
        }
    }
}

fn entry_length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a transfer is at most 1 GiB")
}
