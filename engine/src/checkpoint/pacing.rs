//! How fast writes are taken while checkpoints lag behind: ever more slowly instead of not at all.
//!
//! **Why.** With three runs open nothing more may be applied until one is durable. Reached at full speed that is a pause of as long as a
//! checkpoint takes, seconds at times. Slowed down in front of it, writers go at the speed of the disk, and each of them waits milliseconds.
//!
//! **Data.** The *debt*, in runs: those that are open, and how full the active memtable is. Below [`FREE_SHARE`] of what is allowed nothing
//! is limited. Above it writes are taken at the rate that uses up the room that is left just when the checkpoint under way should be durable,
//! as the last ones were. If that was right there is room for one more run by then, and the next one has as long: in the steady state the
//! rate is that of the checkpoints, without steps to swing between (LevelDB sleeps a millisecond for each write, RocksDB changes its rate by
//! factors). If it takes longer, the rate falls with the room, towards [`RATE_SHARE_MIN`] of the usual one.
//!
//! **Does not know** the clock, the queue, or what is written.
use std::collections::VecDeque;
use std::time::Duration;

/// Of the debt that is allowed, the share that costs nothing.
const FREE_SHARE: f64 = 0.6;
/// What may be taken at once, in time at the rate.
const BURST: Duration = Duration::from_millis(5);
/// The longest time until the owner asks again.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// A checkpoint is never counted as nearer to its end than this share of its usual time.
const LEFT_SHARE_MIN: f64 = 0.5;
/// The slowest rate, as a share of that of the checkpoints: something always goes on.
const RATE_SHARE_MIN: f64 = 0.002;
/// Weight of the newest checkpoint in the averages.
const NEWEST: f64 = 0.5;

/// What may be taken now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Intake {
    /// Everything.
    All,
    /// So many bytes, the last write whole: at least 1.
    Bytes(u64),
    /// Nothing for so many microseconds: at least 1.
    WaitUs(u64),
}

impl Intake {
    /// Takes that much from the front of a queue.
    pub(super) fn take<T>(self, queue: &mut VecDeque<T>, bytes_of: impl Fn(&T) -> usize) -> VecDeque<T> {
        let limit = match self {
            Self::All => return std::mem::take(queue),
            Self::Bytes(limit) => limit,
            Self::WaitUs(_) => return VecDeque::new(),
        };
        let (mut count, mut bytes) = (0, 0);
        for item in &*queue {
            if bytes >= limit {
                break;
            }
            count += 1;
            bytes += bytes_of(item) as u64;
        }
        queue.drain(..count).collect()
    }

    /// How long the owner of a queue may sleep, with or without something left in it.
    pub(super) fn sleep_us_max(self, is_left: bool) -> u64 {
        match self {
            Self::WaitUs(us) if is_left => us,
            _ if is_left => 0,
            _ => u64::MAX,
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    runs_max: usize,
    /// Bytes taken in for one run, and how long its checkpoint took: averages, none before the first.
    run_bytes: Option<f64>,
    run_us: Option<f64>,
    /// Bytes taken since the last cut.
    taken_bytes: u64,
    /// Of each open run the bytes that it tells about; none for one that was cut early, whose time is mostly not spent on bytes.
    open: VecDeque<Option<u64>>,
    /// When the checkpoint under way was first seen.
    begun_us: Option<u64>,
    /// Bytes that may be taken; below zero what was taken too much.
    allowance_bytes: f64,
    refilled_us: u64,
    /// Bytes per microsecond while limited.
    rate: Option<f64>,
}

impl Pacer {
    pub(super) fn new(runs_max: usize) -> Self {
        Self {
            runs_max,
            run_bytes: None,
            run_us: None,
            taken_bytes: 0,
            open: VecDeque::new(),
            begun_us: None,
            allowance_bytes: 0.0,
            refilled_us: 0,
            rate: None,
        }
    }

    /// Bytes of writes were taken in.
    pub(super) fn took(&mut self, bytes: u64) {
        self.taken_bytes += bytes;
        if self.rate.is_some() {
            self.allowance_bytes -= bytes as f64;
        }
    }

    /// A run was cut; `full`: because its memtable was.
    pub(super) fn cut(&mut self, full: bool) {
        let bytes = std::mem::take(&mut self.taken_bytes);
        self.open.push_back((full && bytes > 0).then_some(bytes));
    }

    /// The oldest open run is durable; its checkpoint took so long.
    pub(super) fn done(&mut self, took_us: u64) {
        self.begun_us = None;
        if let Some(bytes) = self.open.pop_front().flatten() {
            average(&mut self.run_bytes, bytes as f64);
            average(&mut self.run_us, took_us.max(1) as f64);
        }
    }

    /// How long the checkpoint of a full memtable takes, if there was one.
    pub(super) fn run_us(&self) -> Option<u64> {
        self.run_us.map(|us| us as u64)
    }

    /// What may be taken now. `runs`: open ones; `under_way`: whether one of them is being written; `filled`: the share of the
    /// active memtable that is used.
    pub(super) fn intake(&mut self, runs: usize, under_way: bool, filled: f64, now_us: u64) -> Intake {
        if !under_way {
            self.begun_us = None;
        }
        let begun_us = under_way.then(|| *self.begun_us.get_or_insert(now_us));
        let rate = match (self.run_bytes, self.run_us) {
            (Some(bytes), Some(us)) => {
                let age_us = begun_us.map_or(0, |begun| now_us.saturating_sub(begun)) as f64;
                self.share(runs as f64 + filled.clamp(0.0, 1.0), age_us / us).map(|share| share * bytes / us)
            }
            _ => None,
        };
        let Some(rate) = rate else {
            self.rate = None;
            return Intake::All;
        };
        let burst_bytes = (rate * BURST.as_micros() as f64).max(1.0);
        if self.rate.is_none() {
            self.allowance_bytes = burst_bytes;
        } else {
            let elapsed_us = now_us.saturating_sub(self.refilled_us) as f64;
            self.allowance_bytes = (self.allowance_bytes + rate * elapsed_us).min(burst_bytes);
        }
        self.refilled_us = now_us;
        self.rate = Some(rate);
        if self.allowance_bytes >= 1.0 {
            return Intake::Bytes(self.allowance_bytes as u64);
        }
        let wait_us = (1.0 - self.allowance_bytes) / rate;
        Intake::WaitUs((wait_us.min(WAIT_MAX.as_micros() as f64) as u64).max(1))
    }

    /// The rate as a share of the checkpoints' own, at this debt, with the one under way at this age as a share of its usual time.
    /// None where nothing is limited.
    fn share(&self, debt: f64, age: f64) -> Option<f64> {
        let most = self.runs_max as f64;
        let left = (1.0 - age).max(LEFT_SHARE_MIN);
        (debt > most * FREE_SHARE).then(|| ((most - debt) / left).max(RATE_SHARE_MIN))
    }
}

fn average(of: &mut Option<f64>, newest: f64) {
    *of = Some(of.map_or(newest, |old| old + (newest - old) * NEWEST));
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_BYTES: u64 = 64_000_000;
    const RUN_US: u64 = 2_000_000;

    fn pacer() -> Pacer {
        let mut pacer = Pacer::new(3);
        assert_eq!(
            pacer.intake(2, true, 1.0, 0),
            Intake::All,
            "nothing is known before the first checkpoint"
        );
        pacer.took(RUN_BYTES);
        pacer.cut(true);
        pacer.done(RUN_US);
        pacer
    }

    #[test]
    fn nothing_is_limited_below_the_free_share() {
        let mut pacer = pacer();
        assert_eq!(pacer.intake(1, true, 0.7, 0), Intake::All);
        assert!(matches!(pacer.intake(1, true, 0.9, 0), Intake::Bytes(_)));
        assert_eq!(pacer.intake(0, false, 1.0, 0), Intake::All);
    }

    #[test]
    fn the_room_that_is_left_lasts_until_the_checkpoint_is_done() {
        let pacer = pacer();
        assert_eq!(pacer.share(2.0, 0.0), Some(1.0), "one more run fits, and one is written in that time");
        assert_eq!(pacer.share(2.5, 0.5), Some(1.0));
        assert_eq!(pacer.share(2.5, 0.0), Some(0.5));
        assert_eq!(pacer.share(2.5, 7.0), Some(1.0), "it may be done any moment, and not at once");
        assert_eq!(pacer.share(3.0, 7.0), Some(RATE_SHARE_MIN));
        assert_eq!(pacer.share(1.7, 0.0), None);
    }

    #[test]
    fn a_queue_gives_what_the_intake_says() {
        let taken = |intake: Intake, sizes: &[usize]| {
            let mut queue = VecDeque::from(sizes.to_vec());
            let taken = intake.take(&mut queue, |size| *size);
            (taken.len(), intake.sleep_us_max(!queue.is_empty()))
        };
        assert_eq!(taken(Intake::All, &[1, 2, 3]), (3, u64::MAX));
        assert_eq!(taken(Intake::Bytes(1), &[5, 2]), (1, 0), "the last one whole");
        assert_eq!(taken(Intake::Bytes(6), &[5, 2, 9]), (2, 0));
        assert_eq!(taken(Intake::Bytes(7), &[5, 2]), (2, u64::MAX));
        assert_eq!(taken(Intake::WaitUs(9), &[5]), (0, 9));
        assert_eq!(taken(Intake::WaitUs(9), &[]), (0, u64::MAX));
    }

    #[test]
    fn a_run_that_was_cut_early_tells_nothing_about_the_speed() {
        let mut pacer = pacer();
        pacer.took(10);
        pacer.cut(false);
        pacer.done(RUN_US);
        assert_eq!(pacer.intake(2, false, 0.0, 0), Intake::Bytes(160_000));
    }

    #[test]
    fn what_was_taken_too_much_is_waited_for() {
        let mut pacer = pacer();
        let Intake::Bytes(burst) = pacer.intake(2, false, 0.0, 0) else { panic!("limited") };
        // 32 bytes a microsecond, for five milliseconds.
        assert_eq!(burst, 160_000);
        pacer.took(burst + 32_000);
        assert_eq!(pacer.intake(2, false, 0.0, 0), Intake::WaitUs(1000));
        assert!(matches!(pacer.intake(2, false, 0.0, 1500), Intake::Bytes(16_000)));
        pacer.took(100_000_000);
        assert_eq!(pacer.intake(2, false, 0.0, 1500), Intake::WaitUs(WAIT_MAX.as_micros() as u64));
    }

    /// Writers ten times as fast as the disk, which takes so long for one run after another. The longest time in which nothing was taken,
    /// and what was written as a share of what the disk could take.
    fn race(times_us: &[u64]) -> (u64, f64) {
        const TICK_US: u64 = 100;
        let mut pacer = pacer();
        let (mut open, mut active, mut age_us, mut done) = (0_usize, 0_u64, 0_u64, 0_usize);
        let (mut longest_us, mut paused_us, mut written) = (0, 0, 0_u64);
        while done < 60 {
            let now_us = written_us(done, times_us) + age_us;
            if open > 0 {
                age_us += TICK_US;
                let took_us = times_us[done % times_us.len()];
                if age_us >= took_us {
                    (open, age_us, done) = (open - 1, 0, done + 1);
                    pacer.done(took_us);
                }
            }
            let wanted = 10 * RUN_BYTES * TICK_US / RUN_US;
            let taken = match pacer.intake(open, open > 0, active as f64 / RUN_BYTES as f64, now_us) {
                _ if open >= 3 => 0,
                Intake::All => wanted,
                Intake::Bytes(bytes) => bytes.min(wanted).next_multiple_of(1024),
                Intake::WaitUs(_) => 0,
            };
            paused_us = if taken == 0 { paused_us + TICK_US } else { 0 };
            longest_us = longest_us.max(paused_us);
            pacer.took(taken);
            (active, written) = (active + taken, written + taken);
            if active >= RUN_BYTES {
                (open, active) = (open + 1, 0);
                pacer.cut(true);
            }
        }
        (longest_us, written as f64 / (done as u64 * RUN_BYTES) as f64)
    }

    fn written_us(done: usize, times_us: &[u64]) -> u64 {
        (0..done).map(|run| times_us[run % times_us.len()]).sum()
    }

    #[test]
    fn writers_settle_at_the_speed_of_the_disk() {
        let (longest_us, share) = race(&[RUN_US]);
        assert!(longest_us <= 5_000 && (0.95..1.1).contains(&share), "{longest_us} us, {share}");
    }

    #[test]
    fn a_checkpoint_that_takes_three_times_as_long_is_no_pause() {
        let (longest_us, share) = race(&[RUN_US, RUN_US, 3 * RUN_US]);
        assert!(longest_us <= 10_000 && (0.9..1.1).contains(&share), "{longest_us} us, {share}");
    }
}
