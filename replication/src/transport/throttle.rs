//! How fast this member gives its state away: as fast as allowed while nobody notices, and less as soon as its own writes take longer.
//!
//! **Contract.** Sans-IO: [`Throttle::handle`] is told, about once a second, what the writes of this member's log took since the last time, and says a rate in bytes a
//! second. Additive increase, multiplicative decrease, between a floor and a ceiling. While nobody fetches, the same windows say what is usual; while somebody does,
//! the rate goes down where the p99 is above [`NOTICED_PERCENT`] of that.
//!
//! **Rules.** A1: the rate lies between floor and ceiling, whatever is told. A2: what stays above the usual at the floor is not the fetch's doing, so the usual follows it,
//! slowly; else more load would hold a fetch at its floor for ever. A3: writes that are too few to say anything slow nobody down.
//!
//! **Does not know** where the numbers come from, and who is given what.

/// Of the usual p99; more is noticed. Clients should see at most twice their usual p99, and the log's writes are only a part of that.
const NOTICED_PERCENT: u64 = 150;
/// What is left of the rate after a window that was noticed.
const DECREASE_PERCENT: u64 = 60;
/// The rate grows by the ceiling in so many seconds.
const INCREASE_SECONDS: u64 = 16;
/// Writes of a window that say something of a p99.
const WRITES_MIN: u64 = 30;
/// Quiet windows that are remembered; their median is the usual.
const QUIET_WINDOWS: usize = 15;
/// Below this a difference is noise: a tenth of a millisecond more is nobody's trouble.
const USUAL_US_MIN: u64 = 200;
/// An increase is for the time since the last one, but a call that comes late is no reason to jump.
const STEP_US_MAX: u64 = 2_000_000;

/// What the writes of a while took.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteWindow {
    /// Writes that ended in it.
    pub count: u64,
    /// 99 of 100 took at most this; of no meaning if there were none.
    pub p99_us: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Throttle {
    floor: u64,
    ceiling: u64,
    rate: u64,
    told_us: u64,
    was_given: bool,
    /// The p99s of the newest quiet windows, a ring.
    quiet_us: [u64; QUIET_WINDOWS],
    quiet_count: usize,
}

impl Throttle {
    /// Both in bytes a second. A ceiling of 0 is no limit: then there is nothing to adapt. A floor that is not below the ceiling fixes the rate.
    pub fn new(floor: u64, ceiling: u64) -> Self {
        let floor = floor.max(1).min(ceiling);
        let quiet_us = [0; QUIET_WINDOWS];
        Self { floor, ceiling, rate: ceiling, told_us: 0, was_given: false, quiet_us, quiet_count: 0 }
    }

    /// Bytes a second; 0 is no limit.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// A window ended at `now_us`; `is_given`: somebody is fetching the state. The rate from now on.
    pub fn handle(&mut self, now_us: u64, is_given: bool, window: WriteWindow) -> u64 {
        let step_us = now_us.saturating_sub(self.told_us).min(STEP_US_MAX);
        self.told_us = now_us;
        let was_given = std::mem::replace(&mut self.was_given, is_given);
        if self.floor == self.ceiling {
            return self.rate;
        }
        let says_something = window.count >= WRITES_MIN;
        if !is_given {
            // The first window behind a fetch is partly its.
            if says_something && !was_given {
                self.note_quiet(window.p99_us);
            }
            // The next fetch begins where it can do no harm, if there is somebody to be harmed.
            self.rate = if says_something { self.clamp(self.ceiling / 4) } else { self.ceiling };
            return self.rate;
        }
        let usual_us = self.usual_us();
        if says_something && usual_us.is_none() {
            // Never quiet since the start. What is seen first is better than nothing to go by, and A2 corrects it.
            self.note_quiet(window.p99_us);
        }
        let is_noticed = says_something
            && usual_us.is_some_and(|usual_us| {
                window.p99_us.saturating_mul(100) > usual_us.saturating_mul(NOTICED_PERCENT)
            });
        if is_noticed && self.rate == self.floor {
            // A2.
            self.note_quiet(usual_us.unwrap_or(0).saturating_mul(5) / 4);
        } else if is_noticed {
            self.rate = self.clamp(self.rate / 100 * DECREASE_PERCENT);
        } else {
            // A3.
            let step = u128::from(self.ceiling / INCREASE_SECONDS) * u128::from(step_us) / 1_000_000;
            let step = u64::try_from(step).unwrap_or(u64::MAX);
            self.rate = self.clamp(self.rate.saturating_add(step));
        }
        assert!(self.floor <= self.rate, "A1: {} is below the floor {}", self.rate, self.floor);
        assert!(self.rate <= self.ceiling, "A1: {} is above the ceiling {}", self.rate, self.ceiling);
        self.rate
    }

    fn clamp(&self, rate: u64) -> u64 {
        rate.clamp(self.floor, self.ceiling)
    }

    fn note_quiet(&mut self, p99_us: u64) {
        self.quiet_us[self.quiet_count % QUIET_WINDOWS] = p99_us;
        self.quiet_count += 1;
    }

    /// The median of the quiet windows.
    fn usual_us(&self) -> Option<u64> {
        let mut known = self.quiet_us;
        let known = &mut known[..self.quiet_count.min(QUIET_WINDOWS)];
        known.sort_unstable();
        known.get(known.len() / 2).map(|median| (*median).max(USUAL_US_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;
    const MIB: u64 = 1 << 20;

    fn window(p99_us: u64) -> WriteWindow {
        WriteWindow { count: 400, p99_us }
    }

    /// So many windows of a second; the rate then.
    fn run(throttle: &mut Throttle, seconds: u64, is_given: bool, told: impl Fn(u64) -> WriteWindow) -> u64 {
        for _ in 0..seconds {
            let now_us = throttle.told_us + SECOND_US;
            throttle.handle(now_us, is_given, told(throttle.rate()));
        }
        throttle.rate()
    }

    #[test]
    fn it_settles_where_writes_begin_to_take_longer() {
        let mut throttle = Throttle::new(8 * MIB, 96 * MIB);
        run(&mut throttle, 20, false, |_| window(1_000));
        assert_eq!(throttle.rate(), 24 * MIB, "a fetch begins with a quarter");
        // Nobody notices 40 MiB a second.
        let disk = |rate: u64| window(if rate > 40 * MIB { 4_000 } else { 1_100 });
        let mut most = 0;
        let mut total = 0;
        for _ in 0..100 {
            let rate = run(&mut throttle, 1, true, disk);
            most = most.max(rate);
            total += rate;
        }
        assert!(most <= 46 * MIB, "one step above, at most: {most}");
        let mean = total / 100;
        assert!(mean > 28 * MIB, "most of what can be had: {mean}");
    }

    #[test]
    fn with_nobody_to_disturb_it_takes_all() {
        let mut throttle = Throttle::new(8 * MIB, 96 * MIB);
        assert_eq!(run(&mut throttle, 5, false, |_| WriteWindow::default()), 96 * MIB);
        // A3: three slow writes say nothing.
        let few = |_| WriteWindow { count: 3, p99_us: 900_000 };
        assert_eq!(run(&mut throttle, 20, true, few), 96 * MIB);
        let mut busy = Throttle::new(8 * MIB, 96 * MIB);
        run(&mut busy, 20, false, |_| window(1_000));
        assert_eq!(run(&mut busy, 20, true, |_| window(1_200)), 96 * MIB, "busy, and not disturbed");
    }

    #[test]
    fn a_disk_that_is_slow_for_other_reasons_does_not_hold_it_at_the_floor_for_ever() {
        let mut throttle = Throttle::new(8 * MIB, 96 * MIB);
        run(&mut throttle, 20, false, |_| window(1_000));
        assert_eq!(run(&mut throttle, 10, true, |_| window(10_000)), 8 * MIB);
        assert!(run(&mut throttle, 200, true, |_| window(10_000)) > 90 * MIB, "A2: that is usual now");
    }

    #[test]
    fn windows_of_a_fetch_are_not_taken_for_quiet_ones() {
        let mut throttle = Throttle::new(8 * MIB, 96 * MIB);
        run(&mut throttle, 20, false, |_| window(1_000));
        for _ in 0..30 {
            run(&mut throttle, 3, true, |_| window(1_200));
            run(&mut throttle, 1, false, |_| window(9_000));
        }
        assert_eq!(throttle.usual_us(), Some(1_000));
    }

    #[test]
    fn whatever_it_is_told_it_stays_between_floor_and_ceiling() {
        for (floor, ceiling) in [(0, 0), (8 * MIB, 0), (8 * MIB, 4 * MIB), (0, 1), (5, 5), (1, u64::MAX)] {
            let mut throttle = Throttle::new(floor, ceiling);
            for (number, p99_us) in [0, 1, 1 << 40, 70, 1 << 40, 1 << 40, 0].into_iter().enumerate() {
                let now_us = [3, u64::MAX, 0, 5][number % 4];
                let rate = throttle.handle(now_us, number != 2, window(p99_us));
                assert!(floor.min(ceiling) <= rate && rate <= ceiling, "A1: {rate} of {floor} to {ceiling}");
            }
        }
        let mut fixed = Throttle::new(50 * MIB, 50 * MIB);
        assert_eq!(run(&mut fixed, 20, true, |_| window(1 << 40)), 50 * MIB);
    }
}
