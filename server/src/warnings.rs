//! Warnings before something is full: the data before its quota, the disk, and what may begin with a prefix.
//!
//! **Why.** NOSPACE comes when nothing can be put any more, and stays until somebody has made room and disarmed it. Whoever hears of it at four fifths has a week for what takes an
//! hour.
//!
//! **States.** Each thing that can be full stands on a [`Rung`]. It climbs as soon as it is as full as the rung says, and climbs down only when it is [`SLACK_PERCENT`] below, so that
//! nothing flutters; all the way down by itself, with nothing to disarm.
//!
//! **Where they are heard**: each climb in the log (the top again every hour), as a metric, and by name in [`Warnings::list`], which `sternctl warnings` asks for. Not in etcd's list of alarms: whatever
//! stands there makes `etcdctl endpoint health`, and those who read it, call a member unhealthy; in the errors of etcd's Status, by which others judge likewise, only by
//! `--warnings-in-status`.
//!
//! **Does not know** what is done about it.
use crate::apply::prefix_quota::PrefixUse;
use crate::request::Pipeline;
use parking_lot::Mutex;
use prometheus::GaugeVec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How far below a rung a thing has to be to climb down from it.
const SLACK_PERCENT: u64 = 3;
/// Between two words about a thing that stays on the top rung.
const AGAIN: Duration = Duration::from_hours(1);

/// How near to full a thing is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Rung {
    /// There is room.
    #[default]
    None,
    /// From 80 % on.
    Notice,
    /// From 90 % on.
    Warning,
    /// From 95 % on.
    Critical,
}

impl Rung {
    const CLIMB: [(Rung, u64); 3] = [(Rung::Critical, 95), (Rung::Warning, 90), (Rung::Notice, 80)];

    /// The rung after this one of something that is so full.
    #[must_use]
    pub fn next(self, percent: u64) -> Self {
        let highest = |percent: u64| {
            Self::CLIMB.iter().find(|(_, from)| percent >= *from).map_or(Self::None, |(rung, _)| *rung)
        };
        let (up, down) = (highest(percent), highest(percent.saturating_add(SLACK_PERCENT)));
        // Between the two it stays where it is.
        self.clamp(up, down)
    }
}

/// What can be full.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Thing {
    /// The data, which has a quota.
    Quota,
    /// The file system of the data directory.
    Disk,
    /// A prefix with a quota of keys.
    Prefix(Vec<u8>),
}

impl Thing {
    /// All that there are.
    pub const NAMES: [&str; 3] = ["quota", "disk", "prefix"];

    /// As the metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Disk => "disk",
            Self::Prefix(_) => "prefix",
        }
    }
}

/// How full it is: bytes, of a prefix keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// What there is.
    pub used: u64,
    /// What there may be.
    pub limit: u64,
}

impl Fill {
    /// In percent, rounded down; something that may hold nothing is full.
    pub fn percent(self) -> u64 {
        let percent = u128::from(self.used) * 100;
        percent
            .checked_div(u128::from(self.limit))
            .map_or(100, |percent| u64::try_from(percent).unwrap_or(u64::MAX))
    }
}

/// A thing that is nearly full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// It.
    pub thing: Thing,
    /// How near.
    pub rung: Rung,
    /// As of the last look.
    pub fill: Fill,
}

impl Warning {
    /// A sentence for people: what is nearly full, and what happens then.
    pub fn text(&self) -> String {
        let Fill { used, limit } = self.fill;
        let percent = self.fill.percent();
        match &self.thing {
            Thing::Quota => format!(
                "the data takes {percent} % of its quota ({used} of {limit} bytes); when it is used up, puts are refused until there is less and NOSPACE is disarmed"
            ),
            Thing::Disk => format!(
                "the file system of the data directory is {percent} % full ({used} of {limit} bytes); when it is, puts are refused"
            ),
            Thing::Prefix(prefix) => format!(
                "keys that begin with \"{}\" are {percent} % of their quota ({used} of {limit}); when it is used up, more are refused",
                prefix.escape_ascii()
            ),
        }
    }
}

struct Standing {
    rung: Rung,
    fill: Fill,
    /// When it was last told of.
    told: Instant,
}

/// See the module. Shared by who looks and who is asked.
#[derive(Default)]
pub struct Warnings {
    standing: Mutex<BTreeMap<Thing, Standing>>,
    is_in_status: bool,
}

impl std::fmt::Debug for Warnings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Warnings {
    /// Nothing is full yet. With `is_in_status` they are among the errors of etcd's Status.
    pub fn new(is_in_status: bool) -> Self {
        Self { standing: Mutex::default(), is_in_status }
    }

    /// True if Status names them.
    pub fn is_in_status(&self) -> bool {
        self.is_in_status
    }

    /// Everything that is nearly full.
    pub fn list(&self) -> Vec<Warning> {
        let standing = self.standing.lock();
        let near = standing.iter().filter(|(_, standing)| standing.rung > Rung::None);
        near.map(|(thing, standing)| Warning {
            thing: thing.clone(),
            rung: standing.rung,
            fill: standing.fill,
        })
        .collect()
    }

    /// Takes how full everything is now; answers what is to be told, those that climbed down to the bottom with the rung none.
    fn take(&self, fills: Vec<(Thing, Fill)>, now: Instant) -> Vec<Warning> {
        let mut standing = self.standing.lock();
        // A quota that was taken back is none that is used up.
        standing.retain(|thing, _| fills.iter().any(|(other, _)| other == thing));
        let mut told = Vec::new();
        for (thing, fill) in fills {
            let before = standing.get(&thing).map_or(Rung::None, |standing| standing.rung);
            let rung = before.next(fill.percent());
            let is_due = rung == Rung::Critical
                && standing.get(&thing).is_some_and(|standing| now.duration_since(standing.told) >= AGAIN);
            let is_told = rung > before || (rung == Rung::None && before > Rung::None) || is_due;
            if is_told {
                told.push(Warning { thing: thing.clone(), rung, fill });
            }
            let last = standing.get(&thing).map_or(now, |standing| standing.told);
            standing.insert(thing, Standing { rung, fill, told: if is_told { now } else { last } });
        }
        told
    }
}

fn tell(warning: &Warning) {
    let (of, text) = (warning.thing.name(), warning.text());
    let Fill { used, limit } = warning.fill;
    match warning.rung {
        Rung::None => tracing::info!(of, used, limit, "there is room again"),
        Rung::Critical => tracing::error!(of, used, limit, "nearly full: {text}"),
        Rung::Notice | Rung::Warning => tracing::warn!(of, used, limit, "nearly full: {text}"),
    }
}

/// How full the file system of a directory is, for who is not root. None where it does not say.
fn disk_fill(directory: &Path) -> Option<Fill> {
    let space = rustix::fs::statvfs(directory).ok()?;
    let limit = space.f_blocks.saturating_mul(space.f_frsize);
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    (limit > 0).then(|| Fill { used: limit.saturating_sub(free), limit })
}

fn fills(pipeline: &Pipeline, disk: Option<Fill>) -> Vec<(Thing, Fill)> {
    let mut fills = Vec::new();
    // Status says -1 for no quota.
    if let Ok(limit) = u64::try_from(pipeline.options().quota.as_reported()) {
        let used = u64::try_from(pipeline.view().size_bytes()).unwrap_or(0);
        fills.push((Thing::Quota, Fill { used, limit }));
    }
    fills.extend(disk.map(|fill| (Thing::Disk, fill)));
    let of_prefix =
        |of: &PrefixUse| (Thing::Prefix(of.prefix.to_vec()), Fill { used: of.keys, limit: of.keys_max });
    fills.extend(pipeline.view().prefix_quotas().iter().map(of_prefix));
    fills
}

/// Looks until the task is ended; `metric` has the label `of`.
pub async fn run(warnings: Arc<Warnings>, pipeline: Arc<Pipeline>, directory: PathBuf, metric: GaugeVec) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let directory = directory.clone();
        // It may wait for the disk.
        let disk = tokio::task::spawn_blocking(move || disk_fill(&directory)).await.ok().flatten();
        warnings.take(fills(&pipeline, disk), Instant::now()).iter().for_each(tell);
        let listed = warnings.list();
        for name in Thing::NAMES {
            let of_name = listed.iter().filter(|warning| warning.thing.name() == name);
            let highest = of_name.map(|warning| warning.rung as u8).max().unwrap_or(0);
            metric.with_label_values(&[name]).set(f64::from(highest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(used: u64) -> Fill {
        Fill { used, limit: 1000 }
    }

    #[test]
    fn a_thing_climbs_at_once_and_climbs_down_with_some_slack() {
        let mut rung = Rung::None;
        let mut steps = Vec::new();
        for percent in [50, 79, 80, 82, 79, 78, 77, 76, 91, 88, 87, 86, 96, 93, 92, 91, 100, 40] {
            rung = rung.next(percent);
            steps.push(rung as u8);
        }
        //                 50 79 80 82 79 78 77 76 91 88 87 86 96 93 92 91 100 40
        assert_eq!(steps, [0, 0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 1, 3, 3, 3, 2, 3, 0]);
        assert_eq!(Rung::None.next(u64::MAX), Rung::Critical);
    }

    #[test]
    fn each_climb_is_told_once_the_top_every_hour_and_the_end_of_it_too() {
        let warnings = Warnings::default();
        let begun = Instant::now();
        let take_at = |used: u64, now: Instant| -> Vec<u8> {
            let told = warnings.take(vec![(Thing::Quota, fill(used))], now);
            told.iter().map(|warning| warning.rung as u8).collect()
        };
        let take = |used: u64| take_at(used, begun);
        assert!(take(100).is_empty());
        assert_eq!(take(801), [1]);
        assert!(take(850).is_empty());
        assert_eq!(take(970), [3]);
        assert!(take(971).is_empty());
        let listed = warnings.list();
        assert_eq!(listed, [Warning { thing: Thing::Quota, rung: Rung::Critical, fill: fill(971) }]);
        assert!(listed[0].text().starts_with("the data takes 97 % of its quota (971 of 1000 bytes)"));
        assert_eq!(take_at(971, begun + AGAIN), [3]);
        assert!(take_at(971, begun + AGAIN).is_empty());
        assert!(take(901).is_empty(), "climbing down is told at the bottom");
        assert_eq!(warnings.list()[0].rung, Rung::Warning);
        assert_eq!(take(10), [0]);
        assert!(warnings.list().is_empty());
    }

    #[test]
    fn what_may_hold_nothing_is_full_and_a_quota_that_is_taken_back_warns_of_nothing() {
        assert_eq!(Fill { used: 0, limit: 0 }.percent(), 100);
        assert_eq!(Fill { used: u64::MAX, limit: 1 }.percent(), u64::MAX);
        let warnings = Warnings::default();
        let prefix = Thing::Prefix(b"p/\xff".to_vec());
        warnings.take(vec![(prefix, Fill { used: 9, limit: 10 })], Instant::now());
        assert!(
            warnings.list()[0]
                .text()
                .starts_with("keys that begin with \"p/\\xff\" are 90 % of their quota (9 of 10)")
        );
        assert!(warnings.take(Vec::new(), Instant::now()).is_empty());
        assert!(warnings.list().is_empty());
    }

    #[test]
    fn a_file_system_says_how_full_it_is() {
        let fill = disk_fill(Path::new("/")).unwrap();
        assert!(fill.used > 0 && fill.used <= fill.limit);
        assert_eq!(disk_fill(Path::new("/there/is/nothing/here")), None);
    }
}
