//! Waiting for a socket, for another thread, or for time, whichever comes first.
//!
//! **Does not know** what anybody waits for. An eventfd rather than a condition variable, because one `poll` then waits for the socket
//! as well.
use super::stream::{Begun, Stream};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use sternpost_engine::base::clock::Clock;

/// What another thread calls to end a wait.
pub(super) struct Wake(OwnedFd);

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Ends the wait under way, or the next one.
    pub(super) fn wake(&self) {
        // It fails only when 2^64 - 1 wakes are pending: then one is pending.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Woken {
    /// The descriptor is ready, has ended or has failed: the next call on it tells which.
    pub(super) ready: bool,
    /// Its other side has closed, or it failed.
    pub(super) hung_up: bool,
}

/// Waits until `on` is ready for `interest`, `wake` is called, or `timeout_us` have passed.
pub(super) fn wait(
    on: Option<(&dyn AsFd, PollFlags)>,
    wake: Option<&Wake>,
    timeout_us: Option<u64>,
) -> io::Result<Woken> {
    let timeout = timeout_us.map(|us| Timespec {
        tv_sec: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        tv_nsec: ((us % 1_000_000) * 1_000) as _,
    });
    let mut descriptors = Vec::with_capacity(2);
    if let Some((descriptor, interest)) = on {
        descriptors.push(PollFd::from_borrowed_fd(descriptor.as_fd(), interest));
    }
    if let Some(wake) = wake {
        descriptors.push(PollFd::from_borrowed_fd(wake.0.as_fd(), PollFlags::IN));
    }
    match poll(&mut descriptors, timeout.as_ref()) {
        // A signal ends a wait early, which every caller takes for a wake.
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = match on {
        Some(_) => descriptors[0].revents(),
        None => PollFlags::empty(),
    };
    if let Some(wake) = wake
        && descriptors.last().is_some_and(|last| !last.revents().is_empty())
    {
        wake.clear();
    }
    let hung_up = socket.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL);
    Ok(Woken { ready: !socket.is_empty(), hung_up })
}

/// Until when something may take, and what ends it before.
pub(super) struct Deadline<'a> {
    pub(super) wake: Option<&'a Wake>,
    pub(super) clock: &'a dyn Clock,
    pub(super) deadline_us: u64,
    /// Whether to give up; asked after every wake.
    pub(super) interrupted: &'a dyn Fn() -> bool,
}

impl Deadline<'_> {
    fn wait_for(&self, socket: &TcpStream, interest: PollFlags) -> io::Result<()> {
        loop {
            if (self.interrupted)() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up"));
            }
            let left_us = self.deadline_us.saturating_sub(self.clock.now_us());
            if left_us == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side took too long"));
            }
            if wait(Some((socket, interest)), self.wake, Some(left_us))?.ready {
                return Ok(());
            }
        }
    }

    /// Waits until the connection that is being made is there.
    pub(super) fn wait_until_connected(&self, socket: &TcpStream) -> io::Result<()> {
        self.wait_for(socket, PollFlags::OUT)?;
        Ok(rustix::net::sockopt::socket_error(socket)??)
    }

    /// Reads and drops what still comes on `socket`, at most `bytes_max`: a socket that is closed with unread bytes loses what was written last.
    pub(super) fn drain(&self, mut socket: &TcpStream, bytes_max: usize) {
        let mut left = bytes_max;
        let mut dropped = [0; 4096];
        while left > 0 && self.wait_for(socket, PollFlags::IN).is_ok() {
            match socket.read(&mut dropped) {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    }
}

/// Reading and writing all of something on a stream whose socket does not block, by a deadline, unless somebody interrupts.
pub(super) struct ByDeadline<'a> {
    pub(super) stream: &'a mut dyn Stream,
    pub(super) deadline: &'a Deadline<'a>,
}

impl ByDeadline<'_> {
    /// What comes before the first byte.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        loop {
            let interest = match self.stream.begin()? {
                Begun::Done => return Ok(()),
                Begun::WaitsToRead => PollFlags::IN,
                Begun::WaitsToWrite => PollFlags::OUT,
            };
            self.deadline.wait_for(self.stream.socket(), interest)?;
        }
    }

    fn retrying<T>(
        &mut self,
        interest: PollFlags,
        mut call: impl FnMut(&mut dyn Stream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match call(self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.deadline.wait_for(self.stream.socket(), interest)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Read for ByDeadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retrying(PollFlags::IN, |stream| stream.read(buffer))
    }
}

impl Write for ByDeadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retrying(PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.retrying(PollFlags::OUT, |stream| stream.write_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.retrying(PollFlags::OUT, |stream| stream.flush())
    }
}
