//! A device for checkpoints that lets the log go first.
//!
//! A checkpoint writes as fast as the device takes it, on a thread that nobody waits for; the log's groups share the device, and every
//! client waits for those. So a large write or a sync of a checkpoint is held back while a group of the log has been in flight for
//! longer than usual: it would only stand in its way.
//!
//! **Bound.** Each is held back for [`HELD_US_MAX`] at most. A log that is always slow makes checkpoints slower by that much for each
//! chunk, and never stops them: memory would fill up behind them.
//!
//! **Does not know** what is written, or why the log is slow.
use super::WriteAge;
use crate::base::clock::Clock;
use crate::io::{Backend, Completion, Io, IoBuffer, Operation, Token, Wait, Waker};
use std::sync::Arc;
use std::time::Duration;

/// A group of the log that is older than this is late: twice what one takes on the disks this was measured on.
const LATE_US: u64 = 2_000;
/// So long an operation is held back at most.
const HELD_US_MAX: u64 = 10_000;
/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_micros(250);
/// Shorter writes are let through: they cost the device no more than a look.
const BYTES_MIN: usize = 64 << 10;

/// See the module.
pub(super) struct YieldingDevice {
    io: Box<dyn Io>,
    log: WriteAge,
}

impl YieldingDevice {
    pub(super) fn new(io: Box<dyn Io>, log: WriteAge) -> Self {
        Self { io, log }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the thread of the checkpoints has nothing else to do meanwhile"
    )]
    fn let_log_go_first(&self) {
        let begun_us = self.io.now_us();
        while self.log.oldest_us() > LATE_US && self.io.now_us().saturating_sub(begun_us) < HELD_US_MAX {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Io for YieldingDevice {
    fn submit(&mut self, token: Token, operation: Operation) {
        let is_large = match &operation {
            Operation::Write { buffer, .. } => buffer.len() >= BYTES_MIN,
            Operation::Sync { .. } => true,
            _ => false,
        };
        if is_large {
            self.let_log_go_first();
        }
        self.io.submit(token, operation);
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        self.io.wait(wait, completions);
    }

    fn waker(&self) -> Waker {
        self.io.waker()
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.io.buffer(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.io.recycle(buffer);
    }

    fn now_us(&self) -> u64 {
        self.io.now_us()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.io.clock()
    }

    fn backend(&self) -> Backend {
        self.io.backend()
    }

    fn is_stopped(&self) -> bool {
        self.io.is_stopped()
    }

    fn space(&self) -> Option<crate::io::DeviceSpace> {
        self.io.space()
    }

    fn in_flight_max(&self) -> usize {
        self.io.in_flight_max()
    }
}
