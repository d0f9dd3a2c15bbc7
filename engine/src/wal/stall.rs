//! Age of the oldest write in flight, readable from any thread: what a watcher samples to see a stalled disk.
use std::sync::atomic::{AtomicU64, Ordering};

const NONE: u64 = u64::MAX;

/// Shared with whoever watches for stalls; the log is its only writer.
#[derive(Debug)]
pub struct StallProbe {
    oldest_started_us: AtomicU64,
}

impl Default for StallProbe {
    fn default() -> Self {
        Self { oldest_started_us: AtomicU64::new(NONE) }
    }
}

impl StallProbe {
    /// When the oldest group in flight was submitted, in the time of the log's `Io`; None when nothing is.
    ///
    /// A poisoned log keeps the time of the write that was never acknowledged.
    pub fn oldest_started_us(&self) -> Option<u64> {
        let started = self.oldest_started_us.load(Ordering::Relaxed);
        (started != NONE).then_some(started)
    }

    pub(super) fn set(&self, started_us: Option<u64>) {
        self.oldest_started_us.store(started_us.unwrap_or(NONE), Ordering::Relaxed);
    }
}
