//! The table of metrics: every name that `/metrics` shows, with its type, labels and meaning, and the table of gRPC methods.
//!
//! **Contract.** N1: a metric is registered only through its row here, and every row is registered, so that `docs/metrics.md`, generated
//! from this table, is what the endpoint shows. N2: every metric has a true source; a name that etcd has and that would be a constant here
//! is absent, and [`ABSENT`] says why.
//!
//! **Source**: names, labels and buckets are those of etcd 3.7.3 and of go-grpc-middleware's Prometheus provider, because dashboards and
//! alerts are written against them. Names that start with `sternpost_` are ours.

/// Type of a metric.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets: `count` upper bounds from `start`, each `factor` times the one before.
    Histogram {
        /// First upper bound.
        start: f64,
        /// Ratio of neighbours.
        factor: f64,
        /// How many, besides +Inf.
        count: usize,
    },
    /// Prometheus' default buckets, 5 ms to 10 s.
    HistogramDefault,
}

impl Kind {
    /// Upper bounds of the buckets, empty for the other types.
    pub fn bounds(self) -> Vec<f64> {
        match self {
            Kind::Counter | Kind::Gauge => Vec::new(),
            Kind::HistogramDefault => prometheus::DEFAULT_BUCKETS.to_vec(),
            Kind::Histogram { start, factor, count } => {
                std::iter::successors(Some(start), |bound| Some(bound * factor)).take(count).collect()
            }
        }
    }

    /// The type as the text format names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram { .. } | Kind::HistogramDefault => "histogram",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct MetricSpec {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Label names; empty for a single series.
    pub labels: &'static [&'static str],
    /// Meaning and unit.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: Kind::Counter, labels: &[], help }
}

const fn gauge(name: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: Kind::Gauge, labels: &[], help }
}

const fn histogram(
    name: &'static str,
    start: f64,
    factor: f64,
    count: usize,
    help: &'static str,
) -> MetricSpec {
    MetricSpec { name, kind: Kind::Histogram { start, factor, count }, labels: &[], help }
}

impl MetricSpec {
    const fn by(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }
}

const GRPC_LABELS: &[&str] = &["grpc_type", "grpc_service", "grpc_method"];

/// All metrics, in the order of the document.
#[rustfmt::skip]
pub static METRICS: &[MetricSpec] = &[
    // Server.
    gauge("etcd_server_has_leader", "1 if a leader is known."),
    gauge("etcd_server_is_leader", "1 if this member leads."),
    gauge("etcd_server_is_learner", "1 if this member is a learner."),
    counter("etcd_server_leader_changes_seen_total", "Leader changes seen."),
    gauge("etcd_server_proposals_committed_total", "Index of the last committed log entry."),
    gauge("etcd_server_proposals_applied_total", "Index of the last applied log entry."),
    gauge("etcd_server_proposals_pending", "Commands proposed and not yet applied."),
    counter("etcd_server_proposals_failed_total", "Commands refused or given up."),
    gauge("etcd_server_quota_backend_bytes", "Quota in bytes; 0 when there is none."),
    gauge("etcd_server_id", "1 for this member's id in hexadecimal.").by(&["server_id"]),
    gauge("etcd_server_version", "1 for the release of etcd that is reproduced.").by(&["server_version"]),
    gauge("etcd_cluster_version", "1 for the cluster's version, major and minor.").by(&["cluster_version"]),
    gauge("etcd_server_feature_enabled", "1 for a feature gate that is on, 0 for one that is off.").by(&["name", "stage"]),
    counter("etcd_server_client_requests_total", "Requests by the API version that the client names.").by(&["type", "client_api_version"]),
    counter("etcd_server_health_success", "Answers of /health that said healthy."),
    counter("etcd_server_health_failures", "Answers of /health that said unhealthy."),
    gauge("etcd_server_healthcheck", "Last result of a check of /livez or /readyz.").by(&["type", "name"]),
    counter("etcd_server_healthchecks_total", "Checks of /livez and /readyz by result.").by(&["type", "name", "status"]),
    MetricSpec {
        name: "etcd_server_request_duration_seconds",
        kind: Kind::Histogram { start: 0.001, factor: 2.0, count: 14 },
        labels: &["type", "success"],
        help: "Time of a request from its checks to its result, by what it asks for.",
    },
    MetricSpec {
        name: "etcd_server_apply_duration_seconds",
        kind: Kind::Histogram { start: 0.0001, factor: 2.0, count: 20 },
        labels: &["version", "op", "success"],
        help: "Time of applying a command of the log.",
    },
    counter("etcd_server_slow_apply_total", "Commands whose application took longer than --warning-apply-duration."),
    MetricSpec {
        name: "etcd_server_range_duration_seconds",
        kind: Kind::Histogram { start: 0.0001, factor: 2.0, count: 20 },
        labels: &["success"],
        help: "Time of reading a range from the store; of one that is too large to be held, of measuring it.",
    },
    counter("etcd_server_read_indexes_failed_total", "Barriers of linearizable reads that failed."),
    counter("etcd_server_slow_read_indexes_total", "Barriers of linearizable reads that took longer than half a second."),
    counter("etcd_server_heartbeat_send_failures_total", "Frames of the control lane that could not be sent."),
    gauge("etcd_server_snapshot_apply_in_progress_total", "1 while this member fetches the state of another one."),
    counter("etcd_server_learner_promote_successes", "Learners made voters while this member led."),
    counter("etcd_server_learner_promote_failures", "Learners that were not, by etcd's text.").by(&["Reason"]),
    gauge("etcd_debugging_server_alarms", "1 for a raised alarm.").by(&["server_id", "alarm_type"]),
    counter("etcd_debugging_server_lease_expired_total", "Leases that expired."),
    // Disk.
    histogram("etcd_disk_wal_fsync_duration_seconds", 0.001, 2.0, 14, "Time of a durable write of the log, from submission to completion."),
    histogram("etcd_disk_backend_commit_duration_seconds", 0.001, 2.0, 14, "Time of making a checkpoint count: the superblock and its syncs."),
    histogram("etcd_disk_backend_snapshot_duration_seconds", 0.01, 2.0, 17, "Time of sending a snapshot to a client."),
    histogram("etcd_disk_backend_defrag_duration_seconds", 0.1, 2.0, 13, "Time of answering Defragment, which has nothing to do."),
    gauge("etcd_disk_defrag_inflight", "1 while Defragment is being answered."),
    gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log."),
    gauge("sternpost_disk_reserve_bytes", "Room kept back on disk so that a full one can be made less full; less than wanted: given up because the disk is full, or there was never enough room."),
    gauge("sternpost_disk_reserve_wanted_bytes", "The size that the reserve on disk shall have."),
    gauge("sternpost_disk_quarantined_units", "Places on disk that are known to be damaged, each of which fails the reads that need it; above 0 restore from a backup or salvage."),
    // Data.
    gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes that the data takes, as in Status.dbSize."),
    gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of retained records, as in Status.dbSizeInUse."),
    counter("etcd_mvcc_range_total", "Ranges read."),
    counter("etcd_mvcc_put_total", "Keys put, those in transactions included."),
    counter("etcd_mvcc_delete_total", "Keys deleted, those in transactions included."),
    counter("etcd_mvcc_txn_total", "Transactions."),
    gauge("etcd_debugging_mvcc_keys_total", "Live keys."),
    gauge("etcd_debugging_mvcc_current_revision", "Current revision."),
    gauge("etcd_debugging_mvcc_compact_revision", "Compact revision."),
    gauge("etcd_debugging_mvcc_db_compaction_last", "When a compaction was applied last, seconds since 1970; 0: not since the start."),
    histogram("etcd_mvcc_hash_duration_seconds", 0.01, 2.0, 15, "Time of answering Hash."),
    histogram("etcd_mvcc_hash_rev_duration_seconds", 0.01, 2.0, 15, "Time of answering HashKV."),
    gauge("etcd_debugging_auth_revision", "Revision of users and roles."),
    // Watch.
    gauge("etcd_debugging_mvcc_watch_stream_total", "Open watch streams."),
    gauge("etcd_debugging_mvcc_watcher_total", "Watchers."),
    gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers behind the head: reading history, or of a stream that is not read."),
    counter("etcd_debugging_mvcc_events_total", "Events put into the queues of watch streams."),
    gauge("etcd_debugging_mvcc_pending_events_total", "Events in the queues of watch streams."),
    gauge("sternpost_watch_queued_bytes", "Encoded bytes in the queues of watch streams."),
    counter("sternpost_watch_lagged_total", "Times that a watcher fell behind because its stream was not read."),
    // Lease.
    counter("etcd_debugging_lease_granted_total", "Leases granted."),
    counter("etcd_debugging_lease_revoked_total", "Leases revoked."),
    counter("etcd_debugging_lease_renewed_total", "Leases renewed by this member as leader."),
    histogram("etcd_debugging_lease_ttl_total", 1.0, 2.0, 24, "TTLs of leases when they were granted, in seconds."),
    // Comparison of the members.
    counter("sternpost_comparison_agreed_total", "Comparisons in which most members had the same data as this one."),
    gauge("sternpost_comparison_agreed_index", "Index of the log up to which that is known."),
    gauge("sternpost_comparison_differing_members", "Members whose data differed from that of most at the newest comparison; 1 on a member that differs itself."),
    // Network.
    gauge("etcd_network_known_peers", "1 for a member of the cluster, this one too.").by(&["Local", "Remote"]),
    gauge("etcd_network_active_peers", "1 for a member that can be sent to.").by(&["Local", "Remote"]),
    counter("etcd_network_disconnected_peers_total", "Connections with a member that ended by themselves.").by(&["Local", "Remote"]),
    counter("etcd_network_peer_sent_bytes_total", "Bytes sent to a member, log and control.").by(&["To"]),
    counter("etcd_network_peer_received_bytes_total", "Bytes received from a member, log and control.").by(&["From"]),
    counter("etcd_network_peer_sent_failures_total", "Frames for a member that were given up, and attempts to connect to it that failed.").by(&["To"]),
    MetricSpec {
        name: "etcd_network_peer_round_trip_time_seconds",
        kind: Kind::Histogram { start: 0.0001, factor: 2.0, count: 16 },
        labels: &["To"],
        help: "Round trips of pings to a member.",
    },
    counter("etcd_network_client_grpc_received_bytes_total", "Bytes of gRPC messages from clients."),
    counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of gRPC messages to clients."),
    gauge("sternpost_client_connections", "Open client connections."),
    counter("sternpost_client_connections_accepted_total", "Client connections accepted."),
    gauge("sternpost_request_inflight_bytes", "Bytes of request bodies held."),
    counter("sternpost_request_refused_total", "Requests refused because --max-inflight-bytes was reached."),
    gauge("sternpost_answer_bytes", "Bytes of answers that clients have not taken yet, with a KiB for each request in progress."),
    counter("sternpost_answer_refused_total", "Requests refused because of --max-answer-bytes."),
    gauge("sternpost_lists_reading", "Lists and pieces of range streams that are being put together."),
    gauge("sternpost_lists_waiting", "Those that wait for that, so that not too many are at once."),
    gauge("sternpost_prefix_quotas", "Prefixes with a quota of keys."),
    counter("sternpost_prefix_quota_refused_total", "Commands refused for the quota of a prefix."),
    counter("sternpost_audit_lines_total", "Lines of the audit stream that were written."),
    counter("sternpost_audit_lost_total", "Lines of the audit stream that were lost, because they came too fast or could not be written."),
    gauge("sternpost_space_warning", "How near to full the data is to its quota, the disk, and the fullest prefix to its quota: 1 from 80 %, 2 from 90 %, 3 from 95 % on.").by(&["of"]),
    gauge("sternpost_state_bytes_per_second", "How fast other members may fetch the state from this one now, bytes a second; 0 is no limit, and while this member is alone."),
    gauge("sternpost_tls_certificate_expiration_timestamp_seconds", "When the certificate that a flag names expires, seconds since 1970.").by(&["flag"]),
    counter("grpc_server_started_total", "RPCs started.").by(GRPC_LABELS),
    counter("grpc_server_handled_total", "RPCs completed, by code.").by(&["grpc_code", "grpc_type", "grpc_service", "grpc_method"]),
    counter("grpc_server_msg_received_total", "Messages received.").by(GRPC_LABELS),
    counter("grpc_server_msg_sent_total", "Messages sent.").by(GRPC_LABELS),
    MetricSpec {
        name: "grpc_server_handling_seconds",
        kind: Kind::HistogramDefault,
        labels: GRPC_LABELS,
        help: "Time from an RPC's start to its end; only with --metrics=extensive.",
    },
    // Process.
    counter("process_cpu_seconds_total", "CPU time, seconds."),
    gauge("process_open_fds", "Open file descriptors."),
    gauge("process_max_fds", "Limit of open file descriptors."),
    gauge("process_resident_memory_bytes", "Resident memory."),
    gauge("process_virtual_memory_bytes", "Virtual memory."),
    gauge("process_virtual_memory_max_bytes", "Limit of virtual memory; -1 if there is none."),
    counter("process_network_receive_bytes_total", "Bytes received by this network namespace."),
    counter("process_network_transmit_bytes_total", "Bytes sent by this network namespace."),
    gauge("os_fd_used", "Open file descriptors."),
    gauge("os_fd_limit", "Limit of open file descriptors."),
    counter("promhttp_metric_handler_requests_total", "Answers of /metrics, by code.").by(&["code"]),
    gauge("promhttp_metric_handler_requests_in_flight", "Answers of /metrics that are being made."),
    gauge("process_start_time_seconds", "Start of the process, seconds since 1970."),
];

/// Metrics of etcd that are not here, and why; a name that ends with `*` stands for all that begin so.
pub static ABSENT: &[(&str, &str)] = &[
    ("go_*", "of Go's runtime"),
    ("etcd_server_go_version", "of Go's runtime"),
    ("etcd_grpc_proxy_*", "of etcd's gRPC proxy, which does not exist here"),
    ("etcd_debugging_store_*", "of the API of version 2"),
    ("etcd_debugging_disk_backend_commit_*", "of bbolt: the steps of its commits"),
    ("etcd_mvcc_db_open_read_transactions", "of bbolt: reads here hold no transaction open"),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "compactions pause nobody here"),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "compactions pause nobody here"),
    (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "a compaction is swept by later checkpoints, together with others",
    ),
    (
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "a compaction is swept by later checkpoints, together with others",
    ),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", "not counted yet"),
    (
        "etcd_debugging_server_watch_send_loop_*",
        "there is no such loop: what is sent waits in queues, whose sizes are shown",
    ),
    (
        "etcd_network_peer_received_failures_total",
        "not counted yet: a frame that cannot be read ends its connection",
    ),
    ("etcd_network_server_stream_failures_total", "not counted yet"),
    ("etcd_network_snapshot_*", "not counted yet: states that members fetch are told of in the log"),
    ("etcd_debugging_snap_save_*", "of etcd's snapshot files of raft: checkpoints take their place"),
    ("etcd_snap_*", "of etcd's snapshot files of raft: checkpoints take their place"),
    (
        "etcd_disk_wal_write_duration_seconds",
        "a write of the log and its sync are one operation here: etcd_disk_wal_fsync_duration_seconds",
    ),
];

/// How messages flow in a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many requests, many responses.
    BidiStream,
}

impl MethodKind {
    /// The value of the label `grpc_type`.
    pub fn label(self) -> &'static str {
        match self {
            MethodKind::Unary => "unary",
            MethodKind::ServerStream => "server_stream",
            MethodKind::BidiStream => "bidi_stream",
        }
    }
}

use MethodKind::{BidiStream, ServerStream, Unary};

/// Methods of the services on the client port, by service. A service counts only if the server was built with it.
#[rustfmt::skip]
pub static METHODS: &[(&str, &[(&str, MethodKind)])] = &[
    ("etcdserverpb.KV", &[
        ("Range", Unary), ("RangeStream", ServerStream), ("Put", Unary), ("DeleteRange", Unary), ("Txn", Unary), ("Compact", Unary),
    ]),
    ("etcdserverpb.Watch", &[("Watch", BidiStream)]),
    ("etcdserverpb.Lease", &[
        ("LeaseGrant", Unary), ("LeaseRevoke", Unary), ("LeaseKeepAlive", BidiStream), ("LeaseTimeToLive", Unary), ("LeaseLeases", Unary),
    ]),
    ("etcdserverpb.Cluster", &[
        ("MemberAdd", Unary), ("MemberRemove", Unary), ("MemberUpdate", Unary), ("MemberList", Unary), ("MemberPromote", Unary),
    ]),
    ("sternpostpb.Backups", &[("Create", ServerStream), ("List", Unary)]),
    ("sternpostpb.Ranges", &[("Sums", Unary), ("Parts", Unary), ("Keys", Unary)]),
    ("sternpostpb.Usage", &[("PrefixQuotas", Unary), ("SetPrefixQuota", Unary), ("Warnings", Unary), ("HeavyHitters", Unary)]),
    ("etcdserverpb.Maintenance", &[
        ("Alarm", Unary), ("Status", Unary), ("Defragment", Unary), ("Hash", Unary), ("HashKV", Unary), ("Snapshot", ServerStream),
        ("MoveLeader", Unary), ("Downgrade", Unary),
    ]),
    ("etcdserverpb.Auth", &[
        ("AuthEnable", Unary), ("AuthDisable", Unary), ("AuthStatus", Unary), ("Authenticate", Unary), ("UserAdd", Unary), ("UserGet", Unary),
        ("UserList", Unary), ("UserDelete", Unary), ("UserChangePassword", Unary), ("UserGrantRole", Unary), ("UserRevokeRole", Unary),
        ("RoleAdd", Unary), ("RoleGet", Unary), ("RoleList", Unary), ("RoleDelete", Unary), ("RoleGrantPermission", Unary),
        ("RoleRevokePermission", Unary),
    ]),
    ("v3lockpb.Lock", &[("Lock", Unary), ("Unlock", Unary)]),
    ("v3electionpb.Election", &[
        ("Campaign", Unary), ("Proclaim", Unary), ("Leader", Unary), ("Observe", ServerStream), ("Resign", Unary),
    ]),
    ("grpc.health.v1.Health", &[("Check", Unary), ("Watch", ServerStream)]),
];

/// gRPC codes in the order of their numbers, as the label `grpc_code` spells them.
pub static CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
