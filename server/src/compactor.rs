//! Automatic compaction: history older than a time, or more than so many revisions, is forgotten without anybody asking.
//!
//! **Data.** [`Schedule`] is a state machine over (time, revision): it notes the revision at each sample, and says when which one is to be compacted at.
//! It has no clock and no store; [`run`] gives it both.
//!
//! **Contract**, as etcd 3.7.3. Every member samples, and only the leader compacts, so a new leader goes on with what it has seen for itself.
//! - *periodic*: ten samples in a retention, or in an hour of a longer one. After the first whole retention, and then every retention or hour, whichever is
//!   shorter, it compacts at the revision of one retention ago. A compaction that fails is tried again at the next sample.
//! - *revision*: every five minutes it compacts so that the given number of revisions is kept.
//!
//! Nothing is compacted at a revision at which it was done before.
//!
//! **Source**: `server/etcdserver/api/v3compactor` of etcd 3.7.3.
use crate::auth::origin::Credential;
use crate::request::Pipeline;
use crate::wire::etcdserverpb::CompactionRequest;
use crate::wire::status::ApiError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between compactions by number.
const REVISION_INTERVAL: Duration = Duration::from_mins(5);
/// Longest time between compactions by age.
const PERIOD_MAX: Duration = Duration::from_hours(1);
/// Samples in a retention, or in an hour of a longer one.
const SAMPLES: u32 = 10;
/// The shortest retention that is taken: more often than every 10 ms nobody looks.
pub const RETENTION_MIN: Duration = Duration::from_millis(100);

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retention {
    /// All history that is not older than this, which is at least [`RETENTION_MIN`].
    Age(Duration),
    /// So many revisions, at least one.
    Revisions(i64),
}

/// See the module.
#[derive(Debug)]
pub struct Schedule {
    retention: Retention,
    /// By age: the newest revisions that were sampled, the oldest one retention old.
    samples: VecDeque<i64>,
    samples_max: usize,
    /// By age: when it compacted last, or began.
    last: Duration,
    /// By age: so long after `last`.
    wait: Duration,
    /// What it compacted at, 0 before the first time.
    compacted: i64,
}

impl Schedule {
    /// Begins at time 0.
    pub fn new(retention: Retention) -> Self {
        let mut schedule = Self {
            retention,
            samples: VecDeque::new(),
            samples_max: 1,
            last: Duration::ZERO,
            wait: Duration::ZERO,
            compacted: 0,
        };
        if let Retention::Age(age) = retention {
            let samples = age.as_nanos() / schedule.interval().as_nanos().max(1);
            schedule.samples_max = usize::try_from(samples).unwrap_or(usize::MAX).saturating_add(1);
            schedule.wait = age;
        }
        schedule
    }

    /// Time between samples.
    pub fn interval(&self) -> Duration {
        match self.retention {
            Retention::Age(age) => age.min(PERIOD_MAX) / SAMPLES,
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }

    /// The store is at `revision`. To be called once for each interval, at its begin.
    pub fn sample(&mut self, revision: i64) {
        if matches!(self.retention, Retention::Age(_)) {
            self.samples.push_back(revision);
            if self.samples.len() > self.samples_max {
                self.samples.pop_front();
            }
        }
    }

    /// The revision to compact at now, at the end of an interval, if it is time; `revision` is the store's.
    pub fn due(&self, now: Duration, revision: i64) -> Option<i64> {
        let target = match self.retention {
            Retention::Age(_) if now.saturating_sub(self.last) < self.wait => return None,
            Retention::Age(_) => *self.samples.front()?,
            Retention::Revisions(kept) => revision.saturating_sub(kept),
        };
        (target > 0 && target != self.compacted).then_some(target)
    }

    /// It was compacted at `revision`, which [`Self::due`] said.
    pub fn succeeded(&mut self, now: Duration, revision: i64) {
        self.compacted = revision;
        self.last = now;
        if let Retention::Age(age) = self.retention {
            self.wait = age.min(PERIOD_MAX);
        }
    }
}

/// Compacts for ever, whenever this member leads.
pub async fn run(pipeline: Arc<Pipeline>, retention: Retention) {
    let begin = Instant::now();
    let mut schedule = Schedule::new(retention);
    loop {
        schedule.sample(pipeline.store().revision());
        tokio::time::sleep(schedule.interval()).await;
        let leads = pipeline.replicator().status().proved_term.is_some();
        let Some(revision) = schedule.due(begin.elapsed(), pipeline.store().revision()).filter(|_| leads)
        else {
            continue;
        };
        let started = Instant::now();
        let request = CompactionRequest { revision, physical: false };
        match pipeline.compact(request, &Credential::Internal).await {
            // Somebody compacted further: that will do.
            Ok(_) | Err(ApiError::Compacted) => {
                schedule.succeeded(begin.elapsed(), revision);
                let took = format!("{:?}", started.elapsed());
                tracing::info!(revision, ?retention, took, "completed auto compaction");
            }
            Err(error) => {
                let again_in = format!("{:?}", schedule.interval());
                tracing::warn!(revision, ?retention, again_in, %error, "failed auto compaction");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `intervals` of them from interval number `first` on, with the revision `100 + number` at each begin; answers (number, revision) of each compaction.
    fn run_for(
        schedule: &mut Schedule,
        first: u32,
        intervals: u32,
        mut succeeds: impl FnMut(u32) -> bool,
    ) -> Vec<(u32, i64)> {
        let mut done = Vec::new();
        for number in first..first + intervals {
            schedule.sample(100 + i64::from(number));
            let now = schedule.interval() * (number + 1);
            if let Some(revision) = schedule.due(now, 101 + i64::from(number)) {
                done.push((number, revision));
                if succeeds(number) {
                    schedule.succeeded(now, revision);
                }
            }
        }
        done
    }

    #[test]
    fn by_age_it_keeps_one_retention() {
        let mut schedule = Schedule::new(Retention::Age(Duration::from_mins(5)));
        assert_eq!(schedule.interval(), Duration::from_secs(30));
        let done = run_for(&mut schedule, 0, 40, |_| true);
        // After the tenth interval, at what was there ten intervals ago; then every ten.
        assert_eq!(done, [(9, 100), (19, 109), (29, 119), (39, 129)]);
    }

    #[test]
    fn by_a_long_age_it_compacts_every_hour() {
        let mut schedule = Schedule::new(Retention::Age(Duration::from_hours(3)));
        assert_eq!(schedule.interval(), Duration::from_mins(6));
        let done = run_for(&mut schedule, 0, 60, |_| true);
        assert_eq!(done, [(29, 100), (39, 109), (49, 119), (59, 129)]);
    }

    #[test]
    fn what_failed_is_tried_at_the_next_sample() {
        let mut schedule = Schedule::new(Retention::Age(Duration::from_mins(5)));
        let done = run_for(&mut schedule, 0, 23, |number| number >= 12);
        assert_eq!(done, [(9, 100), (10, 100), (11, 101), (12, 102), (22, 112)]);
    }

    #[test]
    fn nothing_is_compacted_twice() {
        let mut schedule = Schedule::new(Retention::Age(Duration::from_secs(10)));
        for number in 0..100 {
            schedule.sample(7);
            let now = Duration::from_secs(number + 1);
            if let Some(revision) = schedule.due(now, 7) {
                assert_eq!((number, revision), (9, 7), "an idle store has nothing new to forget");
                schedule.succeeded(now, revision);
            }
        }
    }

    #[test]
    fn by_number_it_keeps_so_many() {
        let mut schedule = Schedule::new(Retention::Revisions(50));
        assert_eq!(schedule.interval(), Duration::from_mins(5));
        assert_eq!(schedule.due(Duration::ZERO, 50), None, "there are no more");
        assert_eq!(schedule.due(Duration::ZERO, 150), Some(100));
        schedule.succeeded(Duration::ZERO, 100);
        assert_eq!(schedule.due(Duration::ZERO, 150), None);
        assert_eq!(schedule.due(Duration::ZERO, 151), Some(101));
        assert_eq!(Schedule::new(Retention::Revisions(i64::MAX)).due(Duration::ZERO, 9), None);
    }
}
