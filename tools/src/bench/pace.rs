//! When operations begin: at once after the one before (closed loop), or at fixed moments (open loop).
//!
//! **Open loop.** Operation k is meant to begin at `begin + k / rate`, whatever the server does; its latency counts from
//! that moment. An operation that had to wait, because all clients of the generator were busy with a server that had stopped
//! answering, has waited for the server: leaving that out (coordinated omission) makes stalls invisible.
//!
//! Moments are told by a timer of the kernel with microseconds (`timerfd`), not by the runtime's, which knows only
//! milliseconds. How late operations really began is recorded as series `lag`.
use super::Clock;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Shortest sleep between two rounds of handing out operations: at rates above 20,000 a second several begin together
/// instead of the generator waking for each.
const ROUND_US: u64 = 50;

/// When the load begins, is measured, and ends, on the generator's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Schedule {
    /// The first operation begins.
    pub(crate) begin_us: u64,
    /// Operations meant to begin from here on are measured.
    pub(crate) measure_us: u64,
    /// No operation begins from here on; `u64::MAX` when a number of operations ends the load.
    pub(crate) end_us: u64,
}

/// One operation's turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Number of the operation on its thread, from 0.
    pub(crate) number: u64,
    /// When it was meant to begin.
    pub(crate) intended_us: u64,
    /// When it did.
    pub(crate) begun_us: u64,
}

/// Hands out turns to the clients of one thread.
pub(crate) struct Pace {
    clock: Clock,
    schedule: Schedule,
    /// Operations a second on this thread; none in a closed loop.
    rate: Option<f64>,
    /// Turns that are due and not taken; open loop only.
    due: Semaphore,
    /// Turns taken so far.
    taken: Cell<u64>,
    /// Measured turns that may still be taken.
    remaining: Cell<u64>,
}

impl Pace {
    /// At most `total` measured turns; `rate` turns a second, or as fast as clients ask.
    pub(crate) fn new(clock: Clock, schedule: Schedule, rate: Option<f64>, total: Option<u64>) -> Rc<Self> {
        let remaining = Cell::new(total.unwrap_or(u64::MAX));
        Rc::new(Self { clock, schedule, rate, due: Semaphore::new(0), taken: Cell::new(0), remaining })
    }

    /// The next turn, when it is due; none when the load is over.
    pub(crate) async fn next(&self) -> Option<Turn> {
        if self.rate.is_some() {
            self.due.acquire().await.expect("the semaphore is never closed").forget();
        }
        let begun_us = self.clock.now_us();
        let number = self.taken.get();
        let intended_us = self.rate.map_or(begun_us, |rate| self.intended_us(number, rate));
        if intended_us >= self.schedule.end_us {
            return None;
        }
        if intended_us >= self.schedule.measure_us {
            self.remaining.set(self.remaining.get().checked_sub(1)?);
        }
        self.taken.set(number + 1);
        Some(Turn { number, intended_us, begun_us })
    }

    /// No operation begins from here on.
    pub(crate) fn end_us(&self) -> u64 {
        self.schedule.end_us
    }

    /// Is true for a turn that counts.
    pub(crate) fn is_measured(&self, turn: &Turn) -> bool {
        turn.intended_us >= self.schedule.measure_us
    }

    /// Lets turns become due at their moments; returns when the load is over. For open loops only.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub(crate) async fn run(self: Rc<Self>) -> std::io::Result<()> {
        let rate = self.rate.expect("only an open loop has moments");
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd keeps its descriptor, which is all it asks"
        )]
        let timer = AsyncFd::new(timer)?;
        let mut handed_out = 0_u64;
        loop {
            let now_us = self.clock.now_us().min(self.schedule.end_us);
            let elapsed_us = now_us.saturating_sub(self.schedule.begin_us);
            let due = (elapsed_us as f64 * rate / 1e6) as u64 + 1;
            let begins = usize::try_from(due.saturating_sub(handed_out)).unwrap_or(0);
            self.due.add_permits(begins);
            handed_out = handed_out.max(due);
            if now_us >= self.schedule.end_us || self.remaining.get() == 0 {
                break;
            }
            let next_us = self.intended_us(handed_out, rate).max(now_us + ROUND_US);
            sleep_us(&timer, next_us.min(self.schedule.end_us) - now_us).await?;
        }
        // Every turn that became due is still taken, however late; behind them each client finds that there is none.
        self.due.add_permits(Semaphore::MAX_PERMITS / 2);
        Ok(())
    }

    fn intended_us(&self, number: u64, rate: f64) -> u64 {
        self.schedule.begin_us + (number as f64 * 1e6 / rate) as u64
    }
}

async fn sleep_us(timer: &AsyncFd<OwnedFd>, us: u64) -> std::io::Result<()> {
    let value =
        Timespec { tv_sec: (us / 1_000_000) as i64, tv_nsec: ((us % 1_000_000) * 1_000).max(1) as i64 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    rustix::time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    loop {
        let mut ready = timer.readable().await?;
        let mut expirations = [0; 8];
        match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)) {
            Ok(result) => return result.map(|_| ()),
            Err(_would_block) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use sternpost_engine::base::clock::SimulatedClock;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(future))
    }

    #[test]
    fn an_open_loop_counts_from_the_intended_moment_even_when_nobody_came() {
        let clock = Arc::new(SimulatedClock::default());
        let schedule = Schedule { begin_us: 0, measure_us: 0, end_us: 1_000_000 };
        let pace = Pace::new(clock.clone(), schedule, Some(10.0), None);
        block_on(async {
            // The generator was away for the whole second; all ten operations are handed out, each with its own moment.
            clock.advance(1_000_000);
            let runner = tokio::task::spawn_local(pace.clone().run());
            let mut intended = Vec::new();
            while let Some(turn) = pace.next().await {
                assert_eq!(turn.begun_us, 1_000_000);
                intended.push(turn.intended_us);
            }
            assert_eq!(intended, (0..10).map(|k| k * 100_000).collect::<Vec<_>>());
            runner.abort();
        });
    }

    #[test]
    fn a_closed_loop_ends_by_number_and_leaves_the_warm_up_out() {
        let clock = Arc::new(SimulatedClock::default());
        let schedule = Schedule { begin_us: 0, measure_us: 10, end_us: u64::MAX };
        let pace = Pace::new(clock.clone(), schedule, None, Some(3));
        block_on(async {
            let warm_up = pace.next().await.expect("the warm-up has no bound by number");
            assert!(!pace.is_measured(&warm_up));
            clock.advance(10);
            let mut measured = 0;
            while let Some(turn) = pace.next().await {
                assert!(pace.is_measured(&turn));
                measured += 1;
            }
            assert_eq!(measured, 3);
        });
    }

    #[test]
    fn a_real_timer_keeps_the_rate() {
        let clock: Clock = Arc::new(sternpost_engine::base::clock::MonotonicClock::default());
        let begin_us = clock.now_us();
        let schedule = Schedule { begin_us, measure_us: begin_us, end_us: begin_us + 50_000 };
        let pace = Pace::new(clock, schedule, Some(2_000.0), None);
        block_on(async {
            let runner = tokio::task::spawn_local(pace.clone().run());
            let mut count = 0;
            while pace.next().await.is_some() {
                count += 1;
            }
            assert_eq!(count, 100);
            runner.await.unwrap().unwrap();
        });
    }
}
