//! The election timeout that a member goes by, from what its network, its disk and its processor have been like lately.
//!
//! **Data.** Three distributions of times: round trips to other members, writes of the log, and how late ticks come. Once a second
//!
//! ```text
//! T = 10 × (99 % of the round trips) + 2 × (99.9 % of the writes) + (99.9 % of the lags),  from T0 to 1 s
//! ```
//!
//! where T0 is the timeout that was configured (design 2.4). From look to look T grows by half at most and shrinks by a tenth at most; the distributions forget
//! half of what they know in eleven seconds.
//!
//! **How it is carried out.** The tick is stretched by T / T0 (rule 16): the library counts ticks, so heartbeats, elections and check-quorum keep
//! their ratio, and each member still draws from T to 2 T.
//!
//! **Why members must agree, and how.** A leader that goes by a longer T sends fewer heartbeats. So T is in every frame, and a follower goes by its leader's where
//! that is longer. One that has not heard of the last step yet waits long enough all the same: heartbeats come every fifth of T, and 1.5 T / 5 is less than T.
//!
//! **Does not know** clocks, or what a tick does.

/// No timeout is longer: a cluster that needs more is to be given its flags.
const ELECTION_US_MAX: u64 = 1_000_000;
/// Between two looks.
const LOOK_US: u64 = 1_000_000;
/// Slots of a distribution: from 64 us to 64 us × 2^20, which is a minute, two to an octave.
const SLOTS: usize = 41;
/// What one time counts, so that forgetting has something to take from.
const WEIGHT: u64 = 1 << 10;

/// How often which time was taken, about; what was long ago counts less.
#[derive(Clone, Debug)]
pub(super) struct Times {
    counts: [u64; SLOTS],
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: [0; SLOTS] }
    }
}

/// The longest time of a slot.
fn bound_us(slot: usize) -> u64 {
    let octave = 64_u64 << (slot / 2);
    if slot.is_multiple_of(2) { octave } else { octave + octave / 2 }
}

impl Times {
    pub(super) fn note(&mut self, us: u64) {
        let slot = (0..SLOTS).find(|slot| us <= bound_us(*slot)).unwrap_or(SLOTS - 1);
        self.counts[slot] += WEIGHT;
    }

    /// The time that all but so many of a thousand do not exceed, to the next bound; 0 if there is none.
    fn all_but(&self, thousandths: u64) -> u64 {
        let beyond_max = self.counts.iter().sum::<u64>() * thousandths / 1_000;
        let mut beyond = 0;
        let slots = self.counts.iter().enumerate().rev();
        let mut slots = slots.skip_while(|(_, count)| {
            beyond += **count;
            beyond <= beyond_max
        });
        slots.next().map_or(0, |(slot, _)| bound_us(slot))
    }

    fn forget(&mut self) {
        self.counts.iter_mut().for_each(|count| *count -= *count / 16 + u64::from(*count < 16 && *count > 0));
    }
}

/// See the module.
pub(super) struct Pace {
    /// T0.
    base_us: u64,
    is_adaptive: bool,
    pub(super) round_trips: Times,
    pub(super) writes: Times,
    pub(super) lags: Times,
    /// T by what was seen here.
    own_us: u64,
    next_look_us: u64,
}

impl Pace {
    /// With a configured timeout, from which it never departs unless it is adaptive.
    pub(super) fn new(base_us: u64, is_adaptive: bool) -> Self {
        let (round_trips, writes, lags) = Default::default();
        Self {
            base_us: base_us.max(1),
            is_adaptive,
            round_trips,
            writes,
            lags,
            own_us: base_us,
            next_look_us: 0,
        }
    }

    /// The timeout to go by at `now_us`; `leader_us` is that of the leader, where somebody else leads and has said one.
    pub(super) fn election_us(&mut self, now_us: u64, leader_us: Option<u64>) -> u64 {
        if !self.is_adaptive {
            return self.base_us;
        }
        if now_us >= self.next_look_us {
            self.next_look_us = now_us + LOOK_US;
            self.look();
        }
        let leader_us = leader_us.unwrap_or(0).min(ELECTION_US_MAX);
        self.own_us.max(leader_us).max(self.base_us)
    }

    fn look(&mut self) {
        let wanted_us = 10 * self.round_trips.all_but(10) + 2 * self.writes.all_but(1) + self.lags.all_but(1);
        let wanted_us = wanted_us.min(ELECTION_US_MAX).max(self.base_us);
        self.own_us = if wanted_us > self.own_us {
            wanted_us.min(self.own_us + self.own_us / 2)
        } else {
            wanted_us.max(self.own_us - self.own_us / 10)
        };
        [&mut self.round_trips, &mut self.writes, &mut self.lags].into_iter().for_each(Times::forget);
    }

    /// `tick_us` as it is with that timeout.
    pub(super) fn stretched(&self, tick_us: u64, election_us: u64) -> u64 {
        tick_us * election_us / self.base_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0_US: u64 = 150_000;

    /// Looks for so many seconds, in each of which the same was seen.
    fn after(pace: &mut Pace, begun_s: u64, seconds: u64, see: impl Fn(&mut Pace)) -> Vec<u64> {
        (begun_s..begun_s + seconds)
            .map(|second| {
                see(pace);
                pace.election_us(second * LOOK_US, None)
            })
            .collect()
    }

    #[test]
    fn a_quantile_is_the_bound_behind_which_no_more_lie() {
        let mut times = Times::default();
        assert_eq!(times.all_but(10), 0);
        (0..990).for_each(|_| times.note(100));
        (0..10).for_each(|_| times.note(5_000));
        assert_eq!((times.all_but(10), times.all_but(1)), (128, 6_144));
        times.note(5_000);
        assert_eq!(times.all_but(10), 6_144);
        times.note(u64::MAX);
        for _ in 0..10_000 {
            times.forget();
        }
        assert_eq!(times.all_but(0), 0, "all is forgotten");
    }

    #[test]
    fn where_all_is_quick_the_timeout_is_the_configured_one() {
        let mut pace = Pace::new(T0_US, true);
        let seen = after(&mut pace, 0, 20, |pace| {
            pace.round_trips.note(400);
            (0..1_000).for_each(|_| pace.writes.note(4_000));
            (0..100).for_each(|_| pace.lags.note(100));
        });
        assert!(seen.iter().all(|us| *us == T0_US), "{seen:?}");
    }

    #[test]
    fn it_grows_by_half_and_shrinks_by_a_tenth_at_most_and_stays_within_its_bounds() {
        let mut pace = Pace::new(T0_US, true);
        let grown = after(&mut pace, 0, 10, |pace| pace.round_trips.note(300_000));
        assert_eq!(grown[..3], [225_000, 337_500, 506_250]);
        assert_eq!(grown[9], ELECTION_US_MAX);
        let shrunk = after(&mut pace, 10, 300, |pace| (0..100).for_each(|_| pace.round_trips.note(100)));
        assert!(shrunk.windows(2).all(|pair| pair[1] >= pair[0] - pair[0] / 10), "{shrunk:?}");
        assert_eq!(shrunk[299], T0_US);
    }

    #[test]
    fn a_follower_goes_by_the_longer_one_of_its_own_and_its_leaders() {
        let mut pace = Pace::new(T0_US, true);
        assert_eq!(pace.election_us(0, Some(400_000)), 400_000);
        assert_eq!(pace.election_us(1, Some(100_000)), T0_US);
        assert_eq!(pace.election_us(2, Some(u64::MAX)), ELECTION_US_MAX);
        assert_eq!(pace.election_us(3, None), T0_US);
        assert_eq!(pace.stretched(10_000, 400_000), 26_666);
    }

    #[test]
    fn flags_that_are_given_are_followed() {
        let mut pace = Pace::new(T0_US, false);
        let seen = after(&mut pace, 0, 10, |pace| pace.round_trips.note(300_000));
        assert!(seen.iter().all(|us| *us == T0_US), "{seen:?}");
        assert_eq!(pace.election_us(u64::MAX, Some(900_000)), T0_US);
    }
}
