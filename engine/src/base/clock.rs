//! Time as a trait, so that a simulated run has its own.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Monotonic time since some fixed start.
pub trait Clock: Send + Sync {
    /// Microseconds since the clock's own start; never decreases.
    fn now_us(&self) -> u64;
}

/// The machine's monotonic clock.
pub struct MonotonicClock {
    start: Instant,
}

impl Default for MonotonicClock {
    fn default() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place where the engine asks the machine for time"
        )]
        Self { start: Instant::now() }
    }
}

impl Clock for MonotonicClock {
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Time that moves only when told to.
#[derive(Default)]
pub struct SimulatedClock {
    now_us: AtomicU64,
}

impl SimulatedClock {
    /// Moves time forward by `us` microseconds.
    pub fn advance(&self, us: u64) {
        self.now_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }
}
