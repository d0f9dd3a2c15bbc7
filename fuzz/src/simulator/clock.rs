//! What a member's clock says while the world's goes on: it runs at its own rate, and jumps.
//!
//! **Contract.** A clock begins at 0 when its process does, and never goes back. Times of the world and of the clock are microseconds.
//!
//! **Does not know** what time is used for.

/// Rates are in millionths; this is the world's own.
pub(super) const RATE_PPM: u64 = 1_000_000;
/// Clocks differ from the world's by at most so much, either way.
pub(super) const DRIFT_PPM_MAX: u64 = 50_000;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// When its process began.
    begun_us: u64,
    rate_ppm: u64,
    /// By how much it has jumped.
    ahead_us: u64,
}

impl Clock {
    /// The clock of a process that begins at `now_us`.
    pub(super) fn new(now_us: u64, rate_ppm: u64) -> Self {
        Self { begun_us: now_us, rate_ppm, ahead_us: 0 }
    }

    /// What it says when it is `now_us` in the world.
    pub(super) fn local_us(&self, now_us: u64) -> u64 {
        let passed_us = u128::from(now_us.saturating_sub(self.begun_us));
        self.ahead_us + (passed_us * u128::from(self.rate_ppm) / u128::from(RATE_PPM)) as u64
    }

    /// The first moment of the world at which it says `local_us` or more.
    pub(super) fn world_us(&self, local_us: u64) -> u64 {
        let passed_us = u128::from(local_us.saturating_sub(self.ahead_us));
        let rate_ppm = u128::from(self.rate_ppm);
        self.begun_us + (passed_us * u128::from(RATE_PPM)).div_ceil(rate_ppm) as u64
    }

    /// It jumps.
    pub(super) fn jump(&mut self, by_us: u64) {
        self.ahead_us += by_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_at_every_rate_and_behind_a_jump() {
        for rate_ppm in [RATE_PPM - DRIFT_PPM_MAX, RATE_PPM, RATE_PPM + DRIFT_PPM_MAX] {
            let mut clock = Clock::new(1_000, rate_ppm);
            clock.jump(77);
            for local_us in [77, 78, 1_000, 999_999_937] {
                let world_us = clock.world_us(local_us);
                assert!(clock.local_us(world_us) >= local_us);
                assert!(local_us == 77 || clock.local_us(world_us - 1) < local_us);
            }
        }
    }
}
