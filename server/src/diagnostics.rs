//! What the server says of itself: health, versions, numbers for metrics. All of it is read from others at the moment of asking.
use crate::answers::AnswerBudget;
use crate::apply::{EMPTY_STORE_BYTES, records};
use crate::auth::origin::Credential;
use crate::config::ETCD_CLUSTER_VERSION;
use crate::grpc_limits::InflightBudget;
use crate::http::{Alarm, HealthSource, ReadCheck};
use crate::metrics::HistogramSample;
use crate::metrics::export::{MetricSource, Sample, resample};
use crate::peers::Peers;
use crate::request::Pipeline;
use crate::wire::etcdserverpb::{AlarmType, RangeRequest};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::wal::{StageLatency, WalStats};

/// Asks the log for its statistics; none before it has any.
pub type DiskStatsSource = Box<dyn Fn() -> Option<(WalStats, CheckpointStats)> + Send + Sync>;

/// See the module.
pub struct Diagnostics {
    /// Requests and reads.
    pub pipeline: Arc<Pipeline>,
    /// This member.
    pub member_id: u64,
    /// Feature gates as configured: name, stage, on.
    pub feature_gates: Vec<(&'static str, &'static str, bool)>,
    /// Room for request bodies.
    pub inflight: Arc<InflightBudget>,
    /// Bytes of answers.
    pub answers: Arc<AnswerBudget>,
    /// The numbers of the log and of the checkpoints.
    pub disk_stats: DiskStatsSource,
    /// The other members, once there are some.
    pub peers: Arc<OnceLock<Weak<Peers>>>,
}

impl HealthSource for Diagnostics {
    fn alarms(&self) -> Vec<Alarm> {
        let alarms = self.pipeline.view().alarms();
        alarms
            .iter()
            .map(|alarm| match alarm.alarm() {
                AlarmType::Nospace => Alarm::NoSpace,
                AlarmType::Corrupt => Alarm::Corrupt,
                AlarmType::None => Alarm::Unknown,
            })
            .collect()
    }

    fn has_leader(&self) -> bool {
        self.pipeline.replicator().status().leader != 0
    }

    fn is_learner(&self) -> bool {
        self.pipeline.membership().is_learner()
    }

    fn read(&self, linearizable: bool) -> ReadCheck {
        let pipeline = Arc::clone(&self.pipeline);
        Box::pin(async move {
            let smallest = RangeRequest {
                key: vec![0].into(),
                limit: 1,
                keys_only: true,
                serializable: !linearizable,
                ..RangeRequest::default()
            };
            pipeline.range(smallest, &Credential::Internal).await.map(drop).map_err(|error| error.to_string())
        })
    }

    fn cluster_version(&self) -> Option<String> {
        Some(ETCD_CLUSTER_VERSION.into())
    }

    fn is_auth_enabled(&self) -> bool {
        self.pipeline.view().auth().is_enabled()
    }
}

impl MetricSource for Diagnostics {
    fn sample(&self) -> Sample {
        let status = self.pipeline.replicator().status();
        let store = self.pipeline.store().stats();
        let view = self.pipeline.view();
        let (applied, asked) = (&view.counters, &self.pipeline.counters);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut sample = Sample {
            has_leader: status.leader != 0,
            is_leader: status.leader == self.member_id,
            is_learner: self.is_learner(),
            leader_changes: status.leader_changes_count,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            pending_count: status.pending_count,
            quota_bytes: u64::try_from(self.pipeline.options().quota.as_reported()).unwrap_or(0),
            member_id: self.member_id,
            cluster_version: ETCD_CLUSTER_VERSION.rsplit_once('.').map(|(version, _)| version.into()),
            feature_gates: self.feature_gates.clone(),
            alarms: Vec::new(),
            db_bytes: u64::try_from(view.size_bytes()).unwrap_or(0),
            db_in_use_bytes: u64::try_from(EMPTY_STORE_BYTES).unwrap_or(0) + store.retained_bytes,
            quarantined_count: store.quarantined_count,
            keys_count: store.keys_count,
            revision: store.revision,
            compact_revision: store.compact_revision,
            auth_revision: view.auth().revision(),
            proposals_failed: count(&asked.proposals_failed),
            ranges: count(&asked.ranges),
            puts: count(&applied.puts),
            deletes: count(&applied.keys_deleted),
            txns: count(&applied.txns) + count(&asked.read_only_txns),
            leases_granted: count(&applied.leases_granted),
            leases_revoked: count(&applied.leases_revoked),
            leases_expired: count(&applied.leases_expired),
            inflight_bytes: self.inflight.used_bytes() as u64,
            answer_bytes: self.answers.held_bytes() as u64,
            answers_refused: self.answers.refused() as u64,
            lists_reading: self.answers.turns_taken() as u64,
            lists_waiting: self.answers.turns_waiting() as u64,
            prefix_quotas: view.prefix_quotas().len() as u64,
            refused_by_prefix: count(&applied.refused_by_prefix),
            ..Sample::default()
        };
        for alarm in view.alarms() {
            let name = match alarm.alarm() {
                AlarmType::Nospace => "NOSPACE",
                AlarmType::Corrupt => "CORRUPT",
                AlarmType::None => continue,
            };
            sample.alarms.push((alarm.member_id, name));
        }
        sample.members = records::members(self.pipeline.store()).iter().map(|member| member.id).collect();
        if let Some(peers) = self.peers.get().and_then(Weak::upgrade) {
            sample.is_fetching = peers.is_fetching();
            sample.peers = peers.samples();
        }
        if let Some((wal, checkpoints)) = (self.disk_stats)() {
            sample.reserve_bytes = checkpoints.reserve.held_bytes;
            sample.reserve_wanted_bytes = checkpoints.reserve.wanted_bytes;
            sample.wal_sync = in_seconds("etcd_disk_wal_fsync_duration_seconds", &wal.write_sync);
            sample.wal_write_bytes = wal.group_bytes;
            sample.commits = in_seconds("etcd_disk_backend_commit_duration_seconds", &checkpoints.commits);
        }
        sample
    }
}

fn in_seconds(metric: &str, stage: &StageLatency) -> HistogramSample {
    let latencies = stage.histogram.iter_recorded();
    let counts = latencies.map(|step| (step.value_iterated_to(), step.count_since_last_iteration()));
    resample(metric, counts, stage.sum_us)
}
