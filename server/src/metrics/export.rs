//! What `/metrics` answers: values sampled at that moment, then all families as Prometheus text.
//!
//! **Contract.** [`MetricSource`] is asked once for each scrape; it must not block on a disk or a network. Process numbers come from
//! `/proc/self`; where that cannot be read their series keep their last value.
use super::{
    HistogramSample, Metrics, Registrar, SampledCounter, SampledFamily, SampledHistogram, SampledValue,
};
use prometheus::{Encoder, Gauge, GaugeVec, TextEncoder};
use std::time::SystemTime;

/// Numbers that other layers keep, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// A leader is known.
    pub has_leader: bool,
    /// This member leads.
    pub is_leader: bool,
    /// This member is a learner.
    pub is_learner: bool,
    /// Leader changes seen.
    pub leader_changes: u64,
    /// Last committed index.
    pub committed_index: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Commands proposed and not yet applied.
    pub pending_count: u64,
    /// Quota in bytes, 0 for none.
    pub quota_bytes: u64,
    /// This member's id.
    pub member_id: u64,
    /// The cluster's version as `3.7`; none while it is not decided.
    pub cluster_version: Option<String>,
    /// Feature gates: name, stage, on.
    pub feature_gates: Vec<(&'static str, &'static str, bool)>,
    /// Raised alarms: member and type (`NOSPACE`, `CORRUPT`).
    pub alarms: Vec<(u64, &'static str)>,
    /// Bytes that the data takes.
    pub db_bytes: u64,
    /// Bytes of retained records.
    pub db_in_use_bytes: u64,
    /// Room kept back on disk.
    pub reserve_bytes: u64,
    /// What it shall be.
    pub reserve_wanted_bytes: u64,
    /// Places on disk that are known to be damaged.
    pub quarantined_count: usize,
    /// Live keys.
    pub keys_count: u64,
    /// Current revision.
    pub revision: i64,
    /// Compact revision.
    pub compact_revision: i64,
    /// Revision of users and roles.
    pub auth_revision: u64,
    /// Durable writes of the log, in seconds, over the bounds of `etcd_disk_wal_fsync_duration_seconds`.
    pub wal_sync: HistogramSample,
    /// Bytes written to the log.
    pub wal_write_bytes: u64,
    /// Commands refused or given up.
    pub proposals_failed: u64,
    /// Ranges read.
    pub ranges: u64,
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Transactions.
    pub txns: u64,
    /// Leases granted.
    pub leases_granted: u64,
    /// Leases revoked.
    pub leases_revoked: u64,
    /// Leases that expired.
    pub leases_expired: u64,
    /// Bytes of request bodies held.
    pub inflight_bytes: u64,
    /// Bytes of answers held.
    pub answer_bytes: u64,
    /// Requests refused for that.
    pub answers_refused: u64,
    /// Lists that are being put together.
    pub lists_reading: u64,
    /// Lists that wait for that.
    pub lists_waiting: u64,
    /// Prefixes with a quota.
    pub prefix_quotas: u64,
    /// Commands refused for one.
    pub refused_by_prefix: u64,
    /// Writing the superblock, in seconds, over the bounds of `etcd_disk_backend_commit_duration_seconds`.
    pub commits: HistogramSample,
    /// Another member's state is fetched.
    pub is_fetching: bool,
    /// Ids of all members, this one too.
    pub members: Vec<u64>,
    /// The other members.
    pub peers: Vec<PeerSample>,
}

/// What was sent to and received from another member.
#[derive(Clone, Debug, Default)]
pub struct PeerSample {
    /// Its id.
    pub id: u64,
    /// It can be sent to.
    pub is_connected: bool,
    /// Bytes to it.
    pub sent_bytes: u64,
    /// Bytes from it.
    pub received_bytes: u64,
    /// Frames for it that were given up, and attempts to connect that failed.
    pub send_failures: u64,
    /// Of those the frames of the control lane.
    pub control_failures: u64,
    /// Connections that ended by themselves.
    pub losses: u64,
    /// Round trips in seconds, over the bounds of `etcd_network_peer_round_trip_time_seconds`.
    pub round_trips: HistogramSample,
}

/// Who knows the numbers of a [`Sample`].
pub trait MetricSource: Send + Sync {
    /// The numbers now.
    fn sample(&self) -> Sample;
}

/// Handles that are set at a scrape.
pub(super) struct Sampled {
    has_leader: Gauge,
    is_leader: Gauge,
    is_learner: Gauge,
    leader_changes: SampledCounter,
    committed_index: Gauge,
    applied_index: Gauge,
    pending: Gauge,
    quota_bytes: Gauge,
    member_id: GaugeVec,
    version: GaugeVec,
    cluster_version: GaugeVec,
    feature_enabled: GaugeVec,
    alarms: GaugeVec,
    db_bytes: Gauge,
    db_in_use_bytes: Gauge,
    reserve_bytes: Gauge,
    reserve_wanted_bytes: Gauge,
    quarantined: Gauge,
    keys: Gauge,
    revision: Gauge,
    compact_revision: Gauge,
    auth_revision: Gauge,
    wal_sync: SampledHistogram,
    wal_write_bytes: Gauge,
    proposals_failed: SampledCounter,
    ranges: SampledCounter,
    puts: SampledCounter,
    deletes: SampledCounter,
    txns: SampledCounter,
    leases_granted: SampledCounter,
    leases_revoked: SampledCounter,
    leases_expired: SampledCounter,
    inflight_bytes: Gauge,
    answer_bytes: Gauge,
    answers_refused: SampledCounter,
    lists_reading: Gauge,
    lists_waiting: Gauge,
    prefix_quotas: Gauge,
    refused_by_prefix: SampledCounter,
    commits: SampledHistogram,
    is_fetching: Gauge,
    heartbeat_failures: SampledCounter,
    known_peers: SampledFamily,
    active_peers: SampledFamily,
    peer_losses: SampledFamily,
    peer_sent_bytes: SampledFamily,
    peer_received_bytes: SampledFamily,
    peer_send_failures: SampledFamily,
    peer_round_trips: SampledFamily,
    used_fds: Gauge,
    fds_limit: Gauge,
    virtual_bytes_max: Gauge,
    received_bytes: SampledCounter,
    transmitted_bytes: SampledCounter,
    cpu_s: SampledCounter,
    open_fds: Gauge,
    max_fds: Gauge,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
}

impl Sampled {
    #[expect(clippy::disallowed_methods, reason = "the start of the process is a wall clock time")]
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        r.gauge("process_start_time_seconds").set(started.as_secs_f64());
        Self {
            has_leader: r.gauge("etcd_server_has_leader"),
            is_leader: r.gauge("etcd_server_is_leader"),
            is_learner: r.gauge("etcd_server_is_learner"),
            leader_changes: r.sampled_counter("etcd_server_leader_changes_seen_total"),
            committed_index: r.gauge("etcd_server_proposals_committed_total"),
            applied_index: r.gauge("etcd_server_proposals_applied_total"),
            pending: r.gauge("etcd_server_proposals_pending"),
            quota_bytes: r.gauge("etcd_server_quota_backend_bytes"),
            member_id: r.gauge_by("etcd_server_id"),
            version: r.gauge_by("etcd_server_version"),
            cluster_version: r.gauge_by("etcd_cluster_version"),
            feature_enabled: r.gauge_by("etcd_server_feature_enabled"),
            alarms: r.gauge_by("etcd_debugging_server_alarms"),
            db_bytes: r.gauge("etcd_mvcc_db_total_size_in_bytes"),
            db_in_use_bytes: r.gauge("etcd_mvcc_db_total_size_in_use_in_bytes"),
            reserve_bytes: r.gauge("sternpost_disk_reserve_bytes"),
            reserve_wanted_bytes: r.gauge("sternpost_disk_reserve_wanted_bytes"),
            quarantined: r.gauge("sternpost_disk_quarantined_units"),
            keys: r.gauge("etcd_debugging_mvcc_keys_total"),
            revision: r.gauge("etcd_debugging_mvcc_current_revision"),
            compact_revision: r.gauge("etcd_debugging_mvcc_compact_revision"),
            auth_revision: r.gauge("etcd_debugging_auth_revision"),
            wal_sync: r.sampled_histogram("etcd_disk_wal_fsync_duration_seconds"),
            wal_write_bytes: r.gauge("etcd_disk_wal_write_bytes_total"),
            proposals_failed: r.sampled_counter("etcd_server_proposals_failed_total"),
            ranges: r.sampled_counter("etcd_mvcc_range_total"),
            puts: r.sampled_counter("etcd_mvcc_put_total"),
            deletes: r.sampled_counter("etcd_mvcc_delete_total"),
            txns: r.sampled_counter("etcd_mvcc_txn_total"),
            leases_granted: r.sampled_counter("etcd_debugging_lease_granted_total"),
            leases_revoked: r.sampled_counter("etcd_debugging_lease_revoked_total"),
            leases_expired: r.sampled_counter("etcd_debugging_server_lease_expired_total"),
            inflight_bytes: r.gauge("sternpost_request_inflight_bytes"),
            answer_bytes: r.gauge("sternpost_answer_bytes"),
            answers_refused: r.sampled_counter("sternpost_answer_refused_total"),
            lists_reading: r.gauge("sternpost_lists_reading"),
            lists_waiting: r.gauge("sternpost_lists_waiting"),
            prefix_quotas: r.gauge("sternpost_prefix_quotas"),
            refused_by_prefix: r.sampled_counter("sternpost_prefix_quota_refused_total"),
            commits: r.sampled_histogram("etcd_disk_backend_commit_duration_seconds"),
            is_fetching: r.gauge("etcd_server_snapshot_apply_in_progress_total"),
            heartbeat_failures: r.sampled_counter("etcd_server_heartbeat_send_failures_total"),
            known_peers: r.sampled_family("etcd_network_known_peers"),
            active_peers: r.sampled_family("etcd_network_active_peers"),
            peer_losses: r.sampled_family("etcd_network_disconnected_peers_total"),
            peer_sent_bytes: r.sampled_family("etcd_network_peer_sent_bytes_total"),
            peer_received_bytes: r.sampled_family("etcd_network_peer_received_bytes_total"),
            peer_send_failures: r.sampled_family("etcd_network_peer_sent_failures_total"),
            peer_round_trips: r.sampled_family("etcd_network_peer_round_trip_time_seconds"),
            used_fds: r.gauge("os_fd_used"),
            fds_limit: r.gauge("os_fd_limit"),
            virtual_bytes_max: r.gauge("process_virtual_memory_max_bytes"),
            received_bytes: r.sampled_counter("process_network_receive_bytes_total"),
            transmitted_bytes: r.sampled_counter("process_network_transmit_bytes_total"),
            cpu_s: r.sampled_counter("process_cpu_seconds_total"),
            open_fds: r.gauge("process_open_fds"),
            max_fds: r.gauge("process_max_fds"),
            resident_bytes: r.gauge("process_resident_memory_bytes"),
            virtual_bytes: r.gauge("process_virtual_memory_bytes"),
        }
    }

    fn set(&self, sample: Sample) {
        self.has_leader.set(f64::from(sample.has_leader));
        self.is_leader.set(f64::from(sample.is_leader));
        self.is_learner.set(f64::from(sample.is_learner));
        self.leader_changes.0.set(number(sample.leader_changes));
        self.committed_index.set(number(sample.committed_index));
        self.applied_index.set(number(sample.applied_index));
        self.pending.set(number(sample.pending_count));
        self.quota_bytes.set(number(sample.quota_bytes));
        self.member_id.reset();
        self.member_id.with_label_values(&[&format!("{:x}", sample.member_id)]).set(1.0);
        self.version.with_label_values(&[crate::config::ETCD_VERSION]).set(1.0);
        self.cluster_version.reset();
        if let Some(version) = &sample.cluster_version {
            self.cluster_version.with_label_values(&[version]).set(1.0);
        }
        for (name, stage, on) in &sample.feature_gates {
            self.feature_enabled.with_label_values(&[name, stage]).set(f64::from(*on));
        }
        self.alarms.reset();
        for (member, alarm) in &sample.alarms {
            self.alarms.with_label_values(&[format!("{member:x}").as_str(), alarm]).set(1.0);
        }
        self.db_bytes.set(number(sample.db_bytes));
        self.db_in_use_bytes.set(number(sample.db_in_use_bytes));
        self.reserve_bytes.set(number(sample.reserve_bytes));
        self.reserve_wanted_bytes.set(number(sample.reserve_wanted_bytes));
        self.quarantined.set(number(sample.quarantined_count as u64));
        self.keys.set(number(sample.keys_count));
        self.revision.set(number(sample.revision.unsigned_abs()));
        self.auth_revision.set(number(sample.auth_revision));
        self.compact_revision.set(if sample.compact_revision < 0 {
            -1.0
        } else {
            number(sample.compact_revision.unsigned_abs())
        });
        self.wal_sync.set(sample.wal_sync);
        self.wal_write_bytes.set(number(sample.wal_write_bytes));
        self.proposals_failed.0.set(number(sample.proposals_failed));
        self.ranges.0.set(number(sample.ranges));
        self.puts.0.set(number(sample.puts));
        self.deletes.0.set(number(sample.deletes));
        self.txns.0.set(number(sample.txns));
        self.leases_granted.0.set(number(sample.leases_granted));
        self.leases_revoked.0.set(number(sample.leases_revoked));
        self.leases_expired.0.set(number(sample.leases_expired));
        self.inflight_bytes.set(number(sample.inflight_bytes));
        self.answer_bytes.set(number(sample.answer_bytes));
        self.answers_refused.0.set(number(sample.answers_refused));
        self.lists_reading.set(number(sample.lists_reading));
        self.lists_waiting.set(number(sample.lists_waiting));
        self.prefix_quotas.set(number(sample.prefix_quotas));
        self.refused_by_prefix.0.set(number(sample.refused_by_prefix));
        self.commits.set(sample.commits);
        self.is_fetching.set(f64::from(u8::from(sample.is_fetching)));
        self.set_peers(sample.member_id, &sample.peers);
        let known = sample.members.iter().map(|id| {
            (vec![format!("{:x}", sample.member_id), format!("{id:x}")], SampledValue::Number(1.0))
        });
        self.known_peers.set(known.collect());
        self.set_process();
    }

    fn set_peers(&self, member_id: u64, peers: &[PeerSample]) {
        let hex = |id: u64| format!("{id:x}");
        let by_peer = |family: &SampledFamily, value: &dyn Fn(&PeerSample) -> SampledValue| {
            family.set(peers.iter().map(|peer| (vec![hex(peer.id)], value(peer))).collect());
        };
        let by_pair = |family: &SampledFamily, value: &dyn Fn(&PeerSample) -> u64| {
            let series = peers
                .iter()
                .map(|peer| (vec![hex(member_id), hex(peer.id)], SampledValue::Number(number(value(peer)))));
            family.set(series.collect());
        };
        let of = |value: u64| SampledValue::Number(number(value));
        by_pair(&self.active_peers, &|peer| u64::from(peer.is_connected));
        by_pair(&self.peer_losses, &|peer| peer.losses);
        by_peer(&self.peer_sent_bytes, &|peer| of(peer.sent_bytes));
        by_peer(&self.peer_received_bytes, &|peer| of(peer.received_bytes));
        by_peer(&self.peer_send_failures, &|peer| of(peer.send_failures));
        by_peer(&self.peer_round_trips, &|peer| SampledValue::Histogram(peer.round_trips.clone()));
        self.heartbeat_failures.0.set(number(peers.iter().map(|peer| peer.control_failures).sum()));
    }

    fn set_process(&self) {
        use rustix::process::{Resource, getrlimit};
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "a metric is a double")]
        self.cpu_s.0.set(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // The directory's own descriptor is among them.
            let used = number(entries.count().saturating_sub(1) as u64);
            self.open_fds.set(used);
            self.used_fds.set(used);
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            self.max_fds.set(number(limit));
            self.fds_limit.set(number(limit));
        }
        self.virtual_bytes_max.set(getrlimit(Resource::As).current.map_or(-1.0, number));
        // Names in one line, values in the next.
        let netstat = std::fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
        let mut of_ip = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
        if let (Some(names), Some(values)) = (of_ip.next(), of_ip.next()) {
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                match (name, value.parse::<u64>()) {
                    ("InOctets", Ok(bytes)) => self.received_bytes.0.set(number(bytes)),
                    ("OutOctets", Ok(bytes)) => self.transmitted_bytes.0.set(number(bytes)),
                    _ => {}
                }
            }
        }
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            for (name, gauge) in [("VmRSS:", &self.resident_bytes), ("VmSize:", &self.virtual_bytes)] {
                if let Some(kib) = status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
                {
                    gauge.set(number(kib * 1024));
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric is a double")]
fn number(value: u64) -> f64 {
    value as f64
}

impl Metrics {
    /// The text of `/metrics`.
    pub fn scrape(&self, source: &dyn MetricSource) -> Vec<u8> {
        self.sampled.set(source.sample());
        let mut text = Vec::with_capacity(128 << 10);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }
}

/// Turns a histogram kept elsewhere, as (upper bound in microseconds, count) pairs in rising order, into a sample over the bounds (in
/// seconds) of the named metric. A count is put under the first bound that is not below its own upper bound.
pub fn resample(name: &str, counts_us: impl IntoIterator<Item = (u64, u64)>, sum_us: u64) -> HistogramSample {
    let bounds = Registrar::spec(name).kind.bounds();
    let mut cumulative = vec![0; bounds.len()];
    let mut total = 0;
    for (upper_us, count) in counts_us {
        total += count;
        let upper_s = number(upper_us) / 1e6;
        for (bound, slot) in bounds.iter().zip(&mut cumulative) {
            if upper_s <= *bound {
                *slot += count;
            }
        }
    }
    HistogramSample { cumulative, count: total, sum: number(sum_us) / 1e6 }
}

/// `docs/metrics.md`, generated from the table.
pub fn document() -> String {
    use std::fmt::Write;
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from `server/src/metrics/names.rs`; the test `metrics_document_is_current` compares them.\n\n\
         `GET /metrics` on a client URL or on `--listen-metrics-urls`, Prometheus text. Names, labels and buckets are etcd 3.7's, those that\n\
         start with `sternpost_` are our own. A metric of etcd that has no true source here is absent rather than constant.\n\n\
         | Name | Type | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for spec in super::METRICS {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            spec.name,
            spec.kind.name(),
            spec.labels.join(", "),
            spec.help
        );
    }
    text.push_str(
        "\n## Not here\n\nMetrics of etcd 3.7.3 that have no counterpart. `*` stands for any ending.\n\n| Name | Why |\n|---|---|\n",
    );
    for (name, why) in super::names::ABSENT {
        let _ = writeln!(text, "| `{name}` | {why} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::names::METRICS;
    use super::super::timing::Timed;
    use super::*;
    use crate::apply::command::Kind;
    use std::time::Duration;

    struct Fixed;

    impl MetricSource for Fixed {
        fn sample(&self) -> Sample {
            Sample {
                has_leader: true,
                member_id: 0xabc,
                cluster_version: Some("3.7".into()),
                feature_gates: vec![("LeaseCheckpoint", "ALPHA", false)],
                alarms: vec![(0xabc, "NOSPACE")],
                compact_revision: -1,
                leader_changes: 1,
                members: vec![0xabc, 0xdef],
                peers: vec![PeerSample { id: 0xdef, is_connected: true, ..PeerSample::default() }],
                wal_sync: resample(
                    "etcd_disk_wal_fsync_duration_seconds",
                    [(900, 3), (1_500, 2), (99_000_000, 1)],
                    104_000_000,
                ),
                ..Sample::default()
            }
        }
    }

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.scrape(&Fixed)).unwrap()
    }

    #[test]
    fn every_row_of_the_table_is_on_the_endpoint() {
        let metrics = Metrics::new(&["etcdserverpb.KV"], true);
        metrics.client_versions.count("3.7.0", true);
        metrics.healthcheck.with_label_values(&["livez", "serializable_read"]).set(1.0);
        metrics.healthchecks.with_label_values(&["livez", "serializable_read", "success"]).inc();
        metrics.certificates.with_label_values(&["--cert-file"]).set(1.0);
        metrics.scrapes.with_label_values(&["200"]).inc();
        metrics.timing.request(Timed::Range).end(true);
        metrics.timing.range(true, Duration::ZERO);
        metrics.timing.of_applies(Duration::ZERO).applied(Kind::Put, true, 0);
        metrics.timing.promoted(Err("etcdserver: can only promote a learner member"));
        let text = text(&metrics);
        for spec in METRICS {
            assert!(text.contains(&format!("# TYPE {} {}\n", spec.name, spec.kind.name())), "{}", spec.name);
        }
    }

    #[test]
    fn methods_are_there_with_zero_before_the_first_call() {
        let metrics = Metrics::new(&["etcdserverpb.Watch"], false);
        let text = text(&metrics);
        for line in [
            "grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0",
            "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        assert!(!text.contains("etcdserverpb.KV"), "only what is served");
        assert!(!text.contains("grpc_server_handling_seconds"), "only with --metrics=extensive");
    }

    #[test]
    fn sampled_values_are_those_of_the_moment() {
        let metrics = Metrics::new(&[], false);
        let text = text(&metrics);
        for line in [
            "etcd_server_has_leader 1",
            "etcd_server_leader_changes_seen_total 1",
            "etcd_server_id{server_id=\"abc\"} 1",
            "etcd_server_version{server_version=\"3.7.3\"} 1",
            "etcd_debugging_mvcc_compact_revision -1",
            "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"abc\"} 1",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 3",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 5",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"8.192\"} 5",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 6",
            "etcd_disk_wal_fsync_duration_seconds_sum 104",
            "etcd_disk_wal_fsync_duration_seconds_count 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let resident = text.lines().find(|line| line.starts_with("process_resident_memory_bytes")).unwrap();
        assert!(resident.split(' ').nth(1).unwrap().parse::<f64>().unwrap() > 1e6, "{resident}");
    }

    #[test]
    fn clients_cannot_make_up_series_without_bound() {
        let metrics = Metrics::new(&[], false);
        for version in 0..1000 {
            metrics.client_versions.count(&version.to_string(), true);
        }
        let series = text(&metrics)
            .lines()
            .filter(|line| line.starts_with("etcd_server_client_requests_total{"))
            .count();
        assert_eq!(series, 2 * 33);
    }
}
