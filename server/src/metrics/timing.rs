//! How long requests, commands, barriers and hashes take.
//!
//! **Contract.** Handles are found by a number, never by a label; a series exists from its first observation on, as in etcd. [`Timer`] counts as a failure where
//! nobody ends it: its request was given up.
//!
//! **Does not know** what is timed.
use super::{Metrics, Registrar};
use crate::apply::ApplyTimes;
use crate::apply::command::Kind;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Kinds of commands, with room.
const OPERATIONS_MAX: usize = 64;
/// A read that only reads, in the place of a command's kind.
const RANGE: usize = 62;
const READ_ONLY_TXN: usize = 63;
/// A barrier that took longer is slow: what etcd waits before it asks once more.
const BARRIER_SLOW: Duration = Duration::from_millis(500);

/// What is timed from a request's check to its result.
#[derive(Clone, Copy, Debug)]
pub enum Timed {
    /// A command.
    Command(Kind),
    /// A range.
    Range,
    /// A transaction that only reads.
    ReadOnlyTxn,
}

impl Timed {
    fn slot(self) -> usize {
        match self {
            Self::Command(kind) => kind as usize,
            Self::Range => RANGE,
            Self::ReadOnlyTxn => READ_ONLY_TXN,
        }
    }

    /// As etcd names it.
    fn name(self) -> &'static str {
        match self {
            Self::Command(kind) => operation(kind),
            Self::Range => "Range",
            Self::ReadOnlyTxn => "ReadonlyTxn",
        }
    }
}

/// etcd's name of a command; marks and quotas of prefixes are ours.
fn operation(kind: Kind) -> &'static str {
    match kind {
        Kind::Put => "Put",
        Kind::DeleteRange => "DeleteRange",
        Kind::Txn => "Txn",
        Kind::Compact => "Compaction",
        Kind::LeaseGrant => "LeaseGrant",
        Kind::LeaseRevoke | Kind::LeaseExpire => "LeaseRevoke",
        Kind::Alarm => "Alarm",
        Kind::MemberPublish => "ClusterMemberAttrSet",
        Kind::MemberAdd => "MemberAdd",
        Kind::MemberRemove => "MemberRemove",
        Kind::MemberPromote => "MemberPromote",
        Kind::MemberUpdate => "MemberUpdate",
        Kind::Mark => "Mark",
        Kind::AuthEnable => "AuthEnable",
        Kind::AuthDisable => "AuthDisable",
        Kind::Authenticate => "Authenticate",
        Kind::UserAdd => "AuthUserAdd",
        Kind::UserDelete => "AuthUserDelete",
        Kind::UserChangePassword => "AuthUserChangePassword",
        Kind::UserGrantRole => "AuthUserGrantRole",
        Kind::UserRevokeRole => "AuthUserRevokeRole",
        Kind::RoleAdd => "AuthRoleAdd",
        Kind::RoleDelete => "AuthRoleDelete",
        Kind::RoleGrantPermission => "AuthRoleGrantPermission",
        Kind::RoleRevokePermission => "AuthRoleRevokePermission",
        Kind::PrefixQuota => "PrefixQuota",
    }
}

/// Histograms by operation and success, each looked up once.
struct ByOutcome {
    family: HistogramVec,
    handles: [[OnceLock<Histogram>; 2]; OPERATIONS_MAX],
}

impl ByOutcome {
    fn new(family: HistogramVec) -> Self {
        Self { family, handles: std::array::from_fn(|_| Default::default()) }
    }

    /// `labels` without the last one, which is the success.
    fn observe(&self, slot: usize, labels: &[&str], is_success: bool, seconds: f64) {
        let Some(handle) = self.handles.get(slot).map(|handles| &handles[usize::from(is_success)]) else {
            return;
        };
        let make = || {
            let success = if is_success { "true" } else { "false" };
            self.family.with_label_values(&[labels, &[success]].concat())
        };
        handle.get_or_init(make).observe(seconds);
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Timing {
    handles: Arc<Handles>,
}

struct Handles {
    requests: ByOutcome,
    applies: ByOutcome,
    slow_applies: IntCounter,
    compacted_last: IntGauge,
    ranges: ByOutcome,
    slow_barriers: IntCounter,
    failed_barriers: IntCounter,
    hash: Histogram,
    hash_of_revision: Histogram,
    snapshot: Histogram,
    defragment: Histogram,
    defragments_in_progress: IntGauge,
    renewals: IntCounter,
    ttls: Histogram,
    promoted: IntCounter,
    promote_failures: IntCounterVec,
}

impl Default for Timing {
    /// Handles that no endpoint shows.
    fn default() -> Self {
        Metrics::new(&[], false).timing
    }
}

impl Timing {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let handles = Handles {
            requests: ByOutcome::new(r.histogram_by("etcd_server_request_duration_seconds")),
            applies: ByOutcome::new(r.histogram_by("etcd_server_apply_duration_seconds")),
            slow_applies: r.counter("etcd_server_slow_apply_total"),
            compacted_last: r.int_gauge("etcd_debugging_mvcc_db_compaction_last"),
            ranges: ByOutcome::new(r.histogram_by("etcd_server_range_duration_seconds")),
            slow_barriers: r.counter("etcd_server_slow_read_indexes_total"),
            failed_barriers: r.counter("etcd_server_read_indexes_failed_total"),
            hash: r.histogram("etcd_mvcc_hash_duration_seconds"),
            hash_of_revision: r.histogram("etcd_mvcc_hash_rev_duration_seconds"),
            snapshot: r.histogram("etcd_disk_backend_snapshot_duration_seconds"),
            defragment: r.histogram("etcd_disk_backend_defrag_duration_seconds"),
            defragments_in_progress: r.int_gauge("etcd_disk_defrag_inflight"),
            renewals: r.counter("etcd_debugging_lease_renewed_total"),
            ttls: r.histogram("etcd_debugging_lease_ttl_total"),
            promoted: r.counter("etcd_server_learner_promote_successes"),
            promote_failures: r.counter_by("etcd_server_learner_promote_failures"),
        };
        Self { handles: Arc::new(handles) }
    }

    /// A request begins.
    pub fn request(&self, timed: Timed) -> Timer {
        Timer { timing: self.clone(), timed, begun: Instant::now(), is_over: false }
    }

    /// The store was asked for a range, which took so long.
    pub fn range(&self, is_success: bool, took: Duration) {
        self.handles.ranges.observe(RANGE, &[], is_success, took.as_secs_f64());
    }

    /// A barrier that was not ready at once.
    pub fn barrier(&self, is_success: bool, took: Duration) {
        if !is_success {
            self.handles.failed_barriers.inc();
        }
        if took > BARRIER_SLOW {
            self.handles.slow_barriers.inc();
        }
    }

    /// `Hash`, of everything on disk.
    pub fn hash(&self) -> Lasting {
        Lasting::new(&self.handles.hash, None)
    }

    /// `HashKV`.
    pub fn hash_of_revision(&self) -> Lasting {
        Lasting::new(&self.handles.hash_of_revision, None)
    }

    /// A snapshot that is sent.
    pub fn snapshot(&self) -> Lasting {
        Lasting::new(&self.handles.snapshot, None)
    }

    /// `Defragment`.
    pub fn defragment(&self) -> Lasting {
        Lasting::new(&self.handles.defragment, Some(&self.handles.defragments_in_progress))
    }

    /// This member, the leader, renewed a lease.
    pub fn renewed(&self) {
        self.handles.renewals.inc();
    }

    /// This member, the leader, was asked to promote a learner. The reason is one of etcd's few texts.
    pub fn promoted(&self, result: Result<(), &str>) {
        match result {
            Ok(()) => self.handles.promoted.inc(),
            Err(reason) => self.handles.promote_failures.with_label_values(&[reason]).inc(),
        }
    }

    /// For the state machine; a command that takes longer than this is slow.
    pub fn of_applies(&self, slow: Duration) -> Box<dyn ApplyTimes> {
        Box::new(Applies { handles: self.handles.clone(), slow, started: Instant::now() })
    }
}

/// A request in progress.
pub struct Timer {
    timing: Timing,
    timed: Timed,
    begun: Instant,
    is_over: bool,
}

impl Timer {
    /// It has its result.
    pub fn end(mut self, is_success: bool) {
        self.observe(is_success);
        self.is_over = true;
    }

    fn observe(&self, is_success: bool) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let labels = [self.timed.name()];
        self.timing.handles.requests.observe(self.timed.slot(), &labels, is_success, seconds);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if !self.is_over {
            self.observe(false);
        }
    }
}

/// Something that lasts until this is dropped.
pub struct Lasting {
    histogram: Histogram,
    in_progress: Option<IntGauge>,
    begun: Instant,
}

impl Lasting {
    fn new(histogram: &Histogram, in_progress: Option<&IntGauge>) -> Self {
        if let Some(gauge) = in_progress {
            gauge.inc();
        }
        Self { histogram: histogram.clone(), in_progress: in_progress.cloned(), begun: Instant::now() }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.histogram.observe(self.begun.elapsed().as_secs_f64());
        if let Some(gauge) = &self.in_progress {
            gauge.dec();
        }
    }
}

struct Applies {
    handles: Arc<Handles>,
    slow: Duration,
    started: Instant,
}

impl ApplyTimes for Applies {
    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn granted(&self, ttl_s: i64) {
        #[expect(clippy::cast_precision_loss, reason = "a metric is a double")]
        self.handles.ttls.observe(ttl_s as f64);
    }

    #[expect(clippy::disallowed_methods, reason = "the metric is a time of day")]
    fn applied(&self, kind: Kind, is_success: bool, took_us: u64) {
        let took = Duration::from_micros(took_us);
        self.handles.applies.observe(kind as usize, &["v3", operation(kind)], is_success, took.as_secs_f64());
        if took > self.slow {
            self.handles.slow_applies.inc();
            tracing::warn!(?took, "expected-duration" = ?self.slow, operation = operation(kind), "apply request took too long");
        }
        if kind == Kind::Compact
            && is_success
            && let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)
        {
            self.handles.compacted_last.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_given_up_has_failed() {
        let timing = Timing::default();
        timing.request(Timed::Command(Kind::Put)).end(true);
        drop(timing.request(Timed::Command(Kind::Put)));
        timing.request(Timed::Range).end(true);
        let count = |name: &str, success: &str| {
            timing.handles.requests.family.with_label_values(&[name, success]).get_sample_count()
        };
        assert_eq!((count("Put", "true"), count("Put", "false")), (1, 1));
        assert_eq!((count("Range", "true"), count("Range", "false")), (1, 0));
    }

    #[test]
    fn slow_commands_are_counted_beside() {
        let timing = Timing::default();
        let applies = timing.of_applies(Duration::from_millis(100));
        applies.applied(Kind::Txn, true, 100_000);
        applies.applied(Kind::Compact, false, 101_000);
        assert_eq!((timing.handles.slow_applies.get(), timing.handles.compacted_last.get()), (1, 0));
        applies.applied(Kind::Compact, true, 0);
        assert!(timing.handles.compacted_last.get() > 1_700_000_000, "seconds since 1970");
        let lasting = timing.defragment();
        assert_eq!(timing.handles.defragments_in_progress.get(), 1);
        drop(lasting);
        let sum =
            (timing.handles.defragments_in_progress.get(), timing.handles.defragment.get_sample_count());
        assert_eq!(sum, (0, 1));
    }
}
