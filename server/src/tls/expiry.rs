//! Certificates that are about to expire, told in time: in the log and as a metric.
//!
//! **Why.** A certificate that has expired takes nothing away from connections that stand; it keeps everybody from making new ones. A cluster therefore
//! seems well until its members restart, and then falls apart as a whole, since certificates that were made together expire together.
//!
//! **Contract.** [`Expiry::look`] is called every [`LOOK_INTERVAL`], and reads changed files on the way, so that a bad one is complained about before somebody
//! connects. A certificate with less than [`WARN_S`] left is warned about once a day, one that has expired is an error once an hour; those of CA bundles are
//! only ever warned about, since an old one may lie beside its successor. The metric says when each expires, whatever is left; of a bundle, the first.
use super::side::{InUse, Side};
use prometheus::GaugeVec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Between two looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// From when on somebody is told: as long as the lives of certificates that are renewed by programs leave room for.
const WARN_S: i64 = 30 * DAY_S;
const DAY_S: i64 = 24 * HOUR_S;
const HOUR_S: i64 = 3_600;

/// See the module.
pub struct Expiry {
    sides: Vec<Arc<Side>>,
    metric: GaugeVec,
    /// When a certificate was last told of, by its flag and serial number.
    told_s: BTreeMap<(&'static str, String), i64>,
}

/// What is to be said of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    Fine,
    Soon { left_s: i64 },
    Over,
    NotYet,
}

fn age(valid: (i64, i64), now_s: i64) -> Age {
    let left_s = valid.1 - now_s;
    match () {
        () if left_s < 0 => Age::Over,
        () if now_s < valid.0 => Age::NotYet,
        () if left_s < WARN_S => Age::Soon { left_s },
        () => Age::Fine,
    }
}

impl Expiry {
    /// Of the certificates of these sides; `metric` has the label `flag`.
    pub fn new(sides: Vec<Arc<Side>>, metric: GaugeVec) -> Self {
        Self { sides, metric, told_s: BTreeMap::new() }
    }

    /// Looks now, and tells.
    #[expect(clippy::disallowed_methods, reason = "certificates expire by the wall clock")]
    pub fn look(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let in_use: Vec<InUse> =
            self.sides.iter().flat_map(|side| side.in_use().into_iter().chain(side.authorities())).collect();
        self.told_s.retain(|(flag, serial), _| {
            in_use.iter().any(|one| one.flag == *flag && one.facts.serial == *serial)
        });
        let mut ends: BTreeMap<&str, i64> = BTreeMap::new();
        for one in in_use {
            let end_s = ends.entry(one.flag).or_insert(i64::MAX);
            *end_s = one.facts.valid.1.min(*end_s);
            self.tell(&one, now_s);
        }
        for (flag, end_s) in ends {
            self.metric.with_label_values(&[flag]).set(end_s as f64);
        }
    }

    fn tell(&mut self, one: &InUse, now_s: i64) {
        let age = age(one.facts.valid, now_s);
        let again_s = if age == Age::Over && !one.is_authority { HOUR_S } else { DAY_S };
        let told = self.told_s.entry((one.flag, one.facts.serial.clone())).or_insert(i64::MIN);
        if age == Age::Fine || now_s.saturating_sub(*told) < again_s {
            return;
        }
        *told = now_s;
        let (flag, file, certificate) = (one.flag, &one.path, one.facts.to_string());
        match age {
            Age::Fine => {}
            Age::Soon { .. } | Age::Over if one.is_authority => tracing::warn!(
                flag,
                file,
                certificate,
                "a certificate of a CA bundle has expired or expires soon; put its successor beside it, have new certificates signed by that, \
                 and take it out; no restart is needed"
            ),
            Age::Soon { left_s } => tracing::warn!(
                flag,
                file,
                certificate,
                days_left = left_s / DAY_S,
                "a certificate expires soon; put a new one in its place, no restart is needed"
            ),
            Age::Over => tracing::error!(
                flag,
                file,
                certificate,
                "a certificate has expired: connections that stand go on, new ones are refused by the other side; put a new one in its place, no \
                 restart is needed"
            ),
            Age::NotYet => tracing::warn!(
                flag,
                file,
                certificate,
                "a certificate is not valid yet, or the clock of this machine is wrong"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_a_month_before_its_end() {
        let valid = (1_000, 1_000 + 365 * DAY_S);
        assert_eq!(age(valid, 999), Age::NotYet);
        assert_eq!(age(valid, 1_000), Age::Fine);
        assert_eq!(age(valid, 1_000 + 334 * DAY_S), Age::Fine);
        assert_eq!(age(valid, 1_000 + 336 * DAY_S), Age::Soon { left_s: 29 * DAY_S });
        assert_eq!(age(valid, valid.1), Age::Soon { left_s: 0 });
        assert_eq!(age(valid, valid.1 + 1), Age::Over);
        // One that lives for a week is told of from its first day on.
        assert_eq!(age((0, 7 * DAY_S), 1), Age::Soon { left_s: 7 * DAY_S - 1 });
    }
}
