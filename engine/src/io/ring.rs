//! io_uring: set-up, submission, waiting, waking. What the operations mean is [`super::ring_disk`]'s.
//!
//! **Contract.** A [`Ring`] belongs to the thread that first enters it and stays there. Entries pushed are submitted by
//! the next [`Ring::enter`], which blocks until at least one completion has come, the time is up, or [`Wake::wake`] was
//! called; then [`Ring::completed`] gives everything that is there.
//!
//! **Flags**, best first; the kernel refuses what it does not know, and the next row is tried:
//!
//! | flags | kernel | what it saves |
//! |---|---|---|
//! | SINGLE_ISSUER, DEFER_TASKRUN, SUBMIT_ALL | 6.1 | completions run when we ask, no locks for other submitters |
//! | SINGLE_ISSUER, COOP_TASKRUN, SUBMIT_ALL | 6.0 | no interrupt of this thread for each completion |
//! | COOP_TASKRUN, SUBMIT_ALL | 5.19 | the same |
//! | none | 5.11 | nothing; older than that there are no waits with a time limit, and no ring |
//!
//! The ring is made disabled and enabled by the first entry: the kernel takes that thread for the only issuer, while
//! whether a ring can be had at all is known on the thread that opened the directory.
//!
//! **Waking.** A multishot poll on an eventfd is always pending in the ring. A poll, not a read: nothing of ours is
//! written to when the ring ends, which the kernel does behind our back. The counter is never read; each write to it
//! is one completion. A waker writes only if the driver sleeps, and only once until it has woken.
//!
//! **Why not SQPOLL or IOPOLL.** A kernel thread that polls adds latency at low load and takes a core; a ring that
//! polls the device cannot sync (`EINVAL`).
use super::disk::IoError;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// User data of the poll on the eventfd.
const WAKE: u64 = u64::MAX;

/// One completion: the user data of its entry, and the result as the kernel gave it (negative: an errno).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completed {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
}

pub(crate) struct Ring {
    uring: IoUring,
    wake: Arc<Wake>,
    /// False until the first entry.
    enabled: bool,
    /// False when the poll on the eventfd must be pushed (again).
    wake_armed: bool,
    /// Names of the flags in use, for the log.
    pub(crate) flags: &'static str,
}

/// Ends a wait of the ring; see the module's documentation. It outlives the ring, and serves the next one of the same
/// driver.
pub(crate) struct Wake {
    eventfd: File,
    /// The driver may be blocked in the kernel.
    sleeping: AtomicBool,
    /// Somebody woke since the last wait ended.
    woken: AtomicBool,
}

impl Ring {
    /// A ring for `entries` unsubmitted entries that `wake` wakes and that keeps `held` open until it has ended.
    pub(crate) fn new(entries: u32, wake: Arc<Wake>, held: Option<&File>) -> Result<Self, IoError> {
        Self::with_flags(entries, wake, held, &FLAGS)
    }

    fn with_flags(
        entries: u32,
        wake: Arc<Wake>,
        held: Option<&File>,
        rows: &[&'static str],
    ) -> Result<Self, IoError> {
        let (uring, flags) = build(entries, rows).map_err(|error| failed("make an io_uring", &error))?;
        let parameters = uring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            let old = io::Error::from(io::ErrorKind::Unsupported);
            return Err(failed("wait in an io_uring with a time limit (Linux 5.11)", &old));
        }
        if let Some(held) = held {
            uring
                .submitter()
                .register_files(&[held.as_raw_fd()])
                .map_err(|error| failed("register the lock with an io_uring", &error))?;
        }
        Ok(Self { uring, wake, enabled: false, wake_armed: false, flags })
    }

    /// Finds out whether rings work here: makes one, does nothing in it, and sees that end.
    pub(crate) fn probe() -> Result<(), IoError> {
        let mut ring = Self::new(2, Arc::new(Wake::new()?), None)?;
        // SAFETY: a no-op has no buffer and no descriptor.
        unsafe { ring.push(&[opcode::Nop::new().build()]) };
        ring.enter(1_000_000).map_err(|error| failed("enter an io_uring", &error))?;
        let mut completed = Vec::new();
        ring.completed(&mut completed);
        match completed.as_slice() {
            [Completed { result: 0, .. }] => Ok(()),
            other => {
                let odd = io::Error::other(format!("a no-op gave {other:?}"));
                Err(failed("use an io_uring", &odd))
            }
        }
    }

    /// Adds entries that the next [`Self::enter`] submits; linked ones must come in one call.
    ///
    /// # Panics
    /// If the queue is full; the caller bounds what it has in flight.
    ///
    /// # Safety
    /// Every buffer and descriptor in `entries` must stay valid, and every buffer that is read into must be left
    /// alone, until the completions of all of them have been seen.
    pub(crate) unsafe fn push(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: passed on to our caller.
        let pushed = unsafe { self.uring.submission().push_multiple(entries) };
        assert!(pushed.is_ok(), "the submission queue holds two entries for each operation in flight");
    }

    /// Submits what was pushed and blocks for at most `limit_us` until a completion comes or somebody wakes; 0 does
    /// not block. Returns early for a signal. True if somebody woke since the last call ended.
    pub(crate) fn enter(&mut self, limit_us: u64) -> io::Result<bool> {
        if !self.enabled {
            self.uring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        self.arm_wake();
        let mut want = 0;
        if limit_us > 0 && self.uring.completion().is_empty() {
            // Sleeping is announced before `woken` is looked at, and the waker does the reverse: one of the two sees
            // the other (both are SeqCst).
            self.wake.sleeping.store(true, Ordering::SeqCst);
            want = usize::from(!self.wake.woken.load(Ordering::SeqCst));
        }
        let result = self.submit(want, limit_us);
        self.wake.sleeping.store(false, Ordering::SeqCst);
        let woken = self.wake.woken.swap(false, Ordering::SeqCst);
        result.map(|()| woken)
    }

    fn submit(&mut self, want: usize, limit_us: u64) -> io::Result<()> {
        let queue = self.uring.submission();
        if want == 0 && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        let submitter = self.uring.submitter();
        let result = if want == 0 {
            submitter.submit()
        } else {
            let nanoseconds = u32::try_from(limit_us % 1_000_000 * 1000).unwrap_or(0);
            let limit = Timespec::new().sec(limit_us / 1_000_000).nsec(nanoseconds);
            submitter.submit_with_args(want, &SubmitArgs::new().timespec(&limit))
        };
        match result {
            Ok(_) => Ok(()),
            // The time is up, a signal came, or the kernel wants completions to be taken first: the caller takes them
            // and comes again.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Appends every completion that is there.
    pub(crate) fn completed(&mut self, out: &mut Vec<Completed>) {
        for entry in self.uring.completion() {
            if entry.user_data() == WAKE {
                self.wake_armed = cqueue::more(entry.flags());
            } else {
                out.push(Completed { user_data: entry.user_data(), result: entry.result() });
            }
        }
    }

    /// Puts the poll on the eventfd into the queue if it is not pending.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let poll = opcode::PollAdd::new(Fd(self.wake.eventfd.as_raw_fd()), libc::POLLIN as u32).multi(true);
        // SAFETY: a poll has no buffer. The kernel holds the eventfd's file from submission on, and `wake` keeps the
        // descriptor open until then.
        unsafe { self.push(&[poll.build().user_data(WAKE)]) };
        self.wake_armed = true;
    }

    /// Gives up the registered files now; the kernel would do it some time after the ring was closed, and until then
    /// the directory would stay locked.
    pub(crate) fn release_files(&mut self) {
        // It fails if nothing was registered; then there is nothing to release.
        let _ = self.uring.submitter().unregister_files();
    }
}

impl Wake {
    pub(crate) fn new() -> Result<Self, IoError> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(failed("make an eventfd", &io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new, open, and nobody else's.
        let eventfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self { eventfd, sleeping: AtomicBool::new(false), woken: AtomicBool::new(false) })
    }

    /// Ends a running or the next wait.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) && self.sleeping.load(Ordering::SeqCst) {
            // It can fail only if the counter is at its end, after 2^64 wakes, and the poll has seen all of those.
            let _ = (&self.eventfd).write(&1_u64.to_ne_bytes());
        }
    }
}

fn failed(what: &str, error: &io::Error) -> IoError {
    IoError::from_system(what.to_string(), error)
}

/// The rows of the table in the module's documentation, best first.
const FLAGS: [&str; 4] = [
    "SINGLE_ISSUER DEFER_TASKRUN SUBMIT_ALL",
    "SINGLE_ISSUER COOP_TASKRUN SUBMIT_ALL",
    "COOP_TASKRUN SUBMIT_ALL",
    "no flags",
];

/// The first of these rows that the kernel takes.
fn build(entries: u32, rows: &[&'static str]) -> io::Result<(IoUring, &'static str)> {
    let mut result = Err(io::Error::from(io::ErrorKind::Unsupported));
    for flags in rows {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled();
        for flag in flags.split(' ') {
            match flag {
                "SINGLE_ISSUER" => builder.setup_single_issuer(),
                // The flag in the queue says when completions wait to be run; without it a poll would not see them.
                "DEFER_TASKRUN" => builder.setup_defer_taskrun().setup_taskrun_flag(),
                "COOP_TASKRUN" => builder.setup_coop_taskrun().setup_taskrun_flag(),
                "SUBMIT_ALL" => builder.setup_submit_all(),
                _ => &mut builder,
            };
        }
        result = builder.build(entries).map(|uring| (uring, *flags));
        if !is_refusal(&result) {
            break;
        }
    }
    result
}

/// True if the kernel knows rings and does not know one of the flags.
fn is_refusal(result: &io::Result<(IoUring, &'static str)>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring with exactly these flags, or nothing where the machine has none.
    fn ring(flags: &'static str) -> Option<(Ring, Arc<Wake>)> {
        if let Err(error) = Ring::probe() {
            println!("no ring here: {error}");
            return None;
        }
        let wake = Arc::new(Wake::new().expect("an eventfd"));
        Some((Ring::with_flags(8, wake.clone(), None, &[flags]).expect("a ring"), wake))
    }

    #[test]
    fn every_row_of_flags_submits_waits_and_wakes() {
        for flags in FLAGS {
            let Some((mut ring, wake)) = ring(flags) else { return };
            assert_eq!(ring.flags, flags);
            let mut completed = Vec::new();
            for round in 0..3 {
                // SAFETY: a no-op has no buffer and no descriptor.
                unsafe { ring.push(&[opcode::Nop::new().build().user_data(round)]) };
                while completed.len() <= round as usize {
                    ring.enter(10_000_000).expect("it enters");
                    ring.completed(&mut completed);
                }
                assert_eq!(completed[round as usize].user_data, round, "{flags}");
                wake.wake();
                assert!(
                    ring.enter(60_000_000).expect("it enters"),
                    "{flags}: a wake before the wait ends it"
                );
                assert!(!ring.enter(0).expect("it enters"), "{flags}: each wake is answered once");
                let waker = wake.clone();
                let thread = std::thread::spawn(move || {
                    while !waker.sleeping.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    waker.wake();
                });
                let mut woken = false;
                while !woken {
                    woken = ring.enter(60_000_000).expect("it enters");
                    ring.completed(&mut completed);
                }
                thread.join().expect("no panic");
            }
        }
    }

    #[test]
    fn flags_that_the_kernel_refuses_are_stepped_down_from() {
        if Ring::probe().is_err() {
            return;
        }
        // DEFER_TASKRUN without SINGLE_ISSUER is EINVAL on every kernel, as an unknown flag is.
        let rows = ["DEFER_TASKRUN", "DEFER_TASKRUN SUBMIT_ALL", "COOP_TASKRUN SUBMIT_ALL"];
        let (_, flags) = build(8, &rows).expect("the last row is taken");
        assert_eq!(flags, "COOP_TASKRUN SUBMIT_ALL");
        assert!(build(8, &rows[..2]).is_err());
    }
}
