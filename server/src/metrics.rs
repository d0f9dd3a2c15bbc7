//! Metrics: etcd's names over this server's own numbers.
//!
//! **Reading order.** [`names`] is the table; this file holds the handles that the server's parts increment, made once from the table;
//! [`export`] reads what is sampled only when asked and writes the text.
//!
//! **Contract.** A handle is an atomic behind an `Arc`: incrementing one on the hot path is one atomic addition, never a lookup of a name
//! or a label. What another layer already counts (positions, sizes, the log's latencies) is not counted twice: it is sampled at the moment
//! of a scrape through [`export::MetricSource`].
pub mod export;
pub mod names;
pub mod timing;

use crate::audit::AuditMetrics;
use crate::heavy::HeavyHitters;
use crate::warnings::Thing;
use names::{CODES, Kind, METHODS, METRICS, MethodKind, MetricSpec};
use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Every handle of the server.
pub struct Metrics {
    registry: Registry,
    /// What clients call.
    pub grpc: GrpcMetrics,
    /// Requests by the client's API version.
    pub client_versions: ClientVersions,
    /// Answers of `/health` that said healthy.
    pub health_success: IntCounter,
    /// Answers of `/health` that said unhealthy.
    pub health_failures: IntCounter,
    /// Last result by type and name.
    pub healthcheck: GaugeVec,
    /// Checks by type, name and status.
    pub healthchecks: IntCounterVec,
    /// Watch streams and watchers.
    pub watch: WatchMetrics,
    /// Comparison of the members.
    pub comparison: ComparisonMetrics,
    /// Bytes of messages from clients.
    pub client_received_bytes: IntCounter,
    /// Bytes of messages to clients.
    pub client_sent_bytes: IntCounter,
    /// Open client connections.
    pub connections: IntGauge,
    /// Client connections accepted.
    pub connections_accepted: IntCounter,
    /// Requests refused for lack of room for their bodies.
    pub requests_refused: IntCounter,
    /// How fast the state is given away.
    pub state_rate: Gauge,
    /// When certificates expire, by the flag that names them.
    pub certificates: GaugeVec,
    /// What costs the most; it has no series, since names come from clients.
    pub heavy: Arc<HeavyHitters>,
    /// Lines of the audit stream.
    pub audit: AuditMetrics,
    /// How near to full things are, by what.
    pub space_warnings: GaugeVec,
    /// How long things take.
    pub timing: timing::Timing,
    /// Answers of `/metrics`, by code.
    pub scrapes: IntCounterVec,
    /// Those in progress.
    pub scrapes_in_progress: IntGauge,
    sampled: export::Sampled,
}

/// Handles of the comparison of members.
#[derive(Clone)]
pub struct ComparisonMetrics {
    /// Marks at which most members had what this one has.
    pub agreed: IntCounter,
    /// Index of the newest of them.
    pub agreed_index: IntGauge,
    /// Members that differed at the newest mark, this one if it did.
    pub differing: IntGauge,
}

/// Handles of the watch hub.
#[derive(Clone)]
pub struct WatchMetrics {
    /// Open streams.
    pub streams: IntGauge,
    /// Watchers.
    pub watchers: IntGauge,
    /// Watchers behind the head.
    pub lagging: IntGauge,
    /// Events put into queues.
    pub events: IntCounter,
    /// Events in queues.
    pub queued_events: IntGauge,
    /// Bytes in queues.
    pub queued_bytes: IntGauge,
    /// Times that a watcher fell behind.
    pub lagged: IntCounter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Makes and registers everything. `services` are the gRPC services that the server serves; `extensive` adds their latencies.
    pub fn new(services: &[&str], extensive: bool) -> Self {
        let registry = Registry::new();
        let r = Registrar { registry: &registry };
        Self {
            grpc: GrpcMetrics::new(&r, services, extensive),
            client_versions: ClientVersions::new(r.counter_by("etcd_server_client_requests_total")),
            health_success: r.counter("etcd_server_health_success"),
            health_failures: r.counter("etcd_server_health_failures"),
            healthcheck: r.gauge_by("etcd_server_healthcheck"),
            healthchecks: r.counter_by("etcd_server_healthchecks_total"),
            watch: WatchMetrics {
                streams: r.int_gauge("etcd_debugging_mvcc_watch_stream_total"),
                watchers: r.int_gauge("etcd_debugging_mvcc_watcher_total"),
                lagging: r.int_gauge("etcd_debugging_mvcc_slow_watcher_total"),
                events: r.counter("etcd_debugging_mvcc_events_total"),
                queued_events: r.int_gauge("etcd_debugging_mvcc_pending_events_total"),
                queued_bytes: r.int_gauge("sternpost_watch_queued_bytes"),
                lagged: r.counter("sternpost_watch_lagged_total"),
            },
            comparison: ComparisonMetrics {
                agreed: r.counter("sternpost_comparison_agreed_total"),
                agreed_index: r.int_gauge("sternpost_comparison_agreed_index"),
                differing: r.int_gauge("sternpost_comparison_differing_members"),
            },
            client_received_bytes: r.counter("etcd_network_client_grpc_received_bytes_total"),
            client_sent_bytes: r.counter("etcd_network_client_grpc_sent_bytes_total"),
            connections: r.int_gauge("sternpost_client_connections"),
            connections_accepted: r.counter("sternpost_client_connections_accepted_total"),
            requests_refused: r.counter("sternpost_request_refused_total"),
            state_rate: r.gauge("sternpost_state_bytes_per_second"),
            certificates: r.gauge_by("sternpost_tls_certificate_expiration_timestamp_seconds"),
            heavy: Arc::default(),
            audit: AuditMetrics {
                lines: r.counter("sternpost_audit_lines_total"),
                lost: r.counter("sternpost_audit_lost_total"),
            },
            space_warnings: space_warnings(&r),
            timing: timing::Timing::new(&r),
            scrapes: r.counter_by("promhttp_metric_handler_requests_total"),
            scrapes_in_progress: r.int_gauge("promhttp_metric_handler_requests_in_flight"),
            sampled: export::Sampled::new(&r),
            registry,
        }
    }
}

/// The series of everything that can be full are there from the start.
fn space_warnings(r: &Registrar<'_>) -> GaugeVec {
    let gauges = r.gauge_by("sternpost_space_warning");
    for name in Thing::NAMES {
        gauges.with_label_values(&[name]).set(0.0);
    }
    gauges
}

/// Makes handles from rows of the table and registers them.
pub(crate) struct Registrar<'a> {
    registry: &'a Registry,
}

impl Registrar<'_> {
    fn spec(name: &str) -> &'static MetricSpec {
        METRICS
            .iter()
            .find(|spec| spec.name == name)
            .unwrap_or_else(|| panic!("no row for the metric {name}"))
    }

    fn register<C: Collector + Clone + 'static>(&self, handle: C) -> C {
        self.registry.register(Box::new(handle.clone())).expect("a row is registered once");
        handle
    }

    fn opts(spec: &MetricSpec) -> Opts {
        Opts::new(spec.name, spec.help)
    }

    fn histogram_opts(spec: &MetricSpec) -> HistogramOpts {
        HistogramOpts::new(spec.name, spec.help).buckets(spec.kind.bounds())
    }

    pub(crate) fn counter(&self, name: &str) -> IntCounter {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Counter && spec.labels.is_empty(), "{name}");
        self.register(IntCounter::with_opts(Self::opts(spec)).expect("rows have valid names"))
    }

    pub(crate) fn counter_by(&self, name: &str) -> IntCounterVec {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Counter && !spec.labels.is_empty(), "{name}");
        self.register(IntCounterVec::new(Self::opts(spec), spec.labels).expect("rows have valid names"))
    }

    pub(crate) fn int_gauge(&self, name: &str) -> IntGauge {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Gauge && spec.labels.is_empty(), "{name}");
        self.register(IntGauge::with_opts(Self::opts(spec)).expect("rows have valid names"))
    }

    pub(crate) fn gauge(&self, name: &str) -> Gauge {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Gauge && spec.labels.is_empty(), "{name}");
        self.register(Gauge::with_opts(Self::opts(spec)).expect("rows have valid names"))
    }

    pub(crate) fn gauge_by(&self, name: &str) -> GaugeVec {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Gauge && !spec.labels.is_empty(), "{name}");
        self.register(GaugeVec::new(Self::opts(spec), spec.labels).expect("rows have valid names"))
    }

    pub(crate) fn histogram(&self, name: &str) -> Histogram {
        let spec = Self::spec(name);
        assert!(spec.labels.is_empty(), "{name}");
        self.register(Histogram::with_opts(Self::histogram_opts(spec)).expect("rows have valid names"))
    }

    pub(crate) fn histogram_by(&self, name: &str) -> HistogramVec {
        let spec = Self::spec(name);
        assert!(!spec.labels.is_empty(), "{name}");
        self.register(
            HistogramVec::new(Self::histogram_opts(spec), spec.labels).expect("rows have valid names"),
        )
    }

    /// A counter whose value another layer keeps.
    pub(crate) fn sampled_counter(&self, name: &str) -> SampledCounter {
        let spec = Self::spec(name);
        assert!(spec.kind == Kind::Counter && spec.labels.is_empty(), "{name}");
        self.register(SampledCounter(Gauge::with_opts(Self::opts(spec)).expect("rows have valid names")))
    }

    /// Series by one or two labels whose values another layer keeps.
    pub(crate) fn sampled_family(&self, name: &str) -> SampledFamily {
        let spec = Self::spec(name);
        assert!(!spec.labels.is_empty(), "{name}");
        let labels = spec.labels.iter().map(ToString::to_string).collect();
        let desc = Desc::new(spec.name.into(), spec.help.into(), labels, HashMap::new());
        self.register(SampledFamily {
            spec,
            desc: Arc::new(desc.expect("rows have valid names")),
            series: Arc::default(),
        })
    }

    /// A histogram whose counts another layer keeps.
    pub(crate) fn sampled_histogram(&self, name: &str) -> SampledHistogram {
        let spec = Self::spec(name);
        assert!(spec.labels.is_empty(), "{name}");
        let desc = Desc::new(spec.name.into(), spec.help.into(), Vec::new(), HashMap::new());
        self.register(SampledHistogram {
            spec,
            desc: Arc::new(desc.expect("rows have valid names")),
            value: Arc::default(),
        })
    }
}

/// A counter that is set at the moment of a scrape.
#[derive(Clone)]
pub(crate) struct SampledCounter(pub(crate) Gauge);

impl Collector for SampledCounter {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        for family in &mut families {
            family.set_field_type(prometheus::proto::MetricType::COUNTER);
            for metric in family.mut_metric() {
                let mut counter = prometheus::proto::Counter::default();
                counter.set_value(self.0.get());
                metric.set_counter(counter);
            }
        }
        families
    }
}

/// Counts of a histogram kept elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramSample {
    /// For each bound of the row, how many values were at most that large.
    pub cumulative: Vec<u64>,
    /// How many values there were.
    pub count: u64,
    /// Their sum, in the metric's unit.
    pub sum: f64,
}

impl HistogramSample {
    fn to_proto(&self, spec: &MetricSpec) -> prometheus::proto::Histogram {
        let buckets = spec.kind.bounds().into_iter().enumerate().map(|(index, bound)| {
            let mut bucket = prometheus::proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(self.cumulative.get(index).copied().unwrap_or(0));
            bucket
        });
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(self.count);
        histogram.set_sample_sum(self.sum);
        histogram
    }
}

/// A histogram that is set at the moment of a scrape.
#[derive(Clone)]
pub(crate) struct SampledHistogram {
    spec: &'static MetricSpec,
    desc: Arc<Desc>,
    value: Arc<parking_lot::Mutex<HistogramSample>>,
}

impl SampledHistogram {
    pub(crate) fn set(&self, sample: HistogramSample) {
        *self.value.lock() = sample;
    }
}

impl Collector for SampledHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        use prometheus::proto::{Metric, MetricType};
        let mut metric = Metric::from_label(Vec::new());
        metric.set_histogram(self.value.lock().to_proto(self.spec));
        let mut family = MetricFamily::default();
        family.set_name(self.spec.name.into());
        family.set_help(self.spec.help.into());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

/// A value of a series that is kept elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SampledValue {
    Number(f64),
    Histogram(HistogramSample),
}

/// Series by labels that are set at the moment of a scrape; those that are not set then are gone.
#[derive(Clone)]
pub(crate) struct SampledFamily {
    spec: &'static MetricSpec,
    desc: Arc<Desc>,
    series: Arc<parking_lot::Mutex<Vec<SampledSeries>>>,
}

/// The values of its labels, and its own.
type SampledSeries = (Vec<String>, SampledValue);

impl SampledFamily {
    pub(crate) fn set(&self, series: Vec<SampledSeries>) {
        *self.series.lock() = series;
    }
}

impl Collector for SampledFamily {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricType};
        let series = self.series.lock();
        let metrics = series.iter().map(|(values, value)| {
            let pair = |(name, value): (&&str, &String)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value.clone());
                pair
            };
            let mut metric = Metric::from_label(self.spec.labels.iter().zip(values).map(pair).collect());
            match value {
                SampledValue::Number(number) if self.spec.kind == Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(*number);
                    metric.set_counter(counter);
                }
                SampledValue::Number(number) => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(*number);
                    metric.set_gauge(gauge);
                }
                SampledValue::Histogram(sample) => metric.set_histogram(sample.to_proto(self.spec)),
            }
            metric
        });
        let metrics: Vec<Metric> = metrics.collect();
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(self.spec.name.into());
        family.set_help(self.spec.help.into());
        family.set_field_type(match self.spec.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram { .. } | Kind::HistogramDefault => MetricType::HISTOGRAM,
        });
        family.set_metric(metrics);
        vec![family]
    }
}

/// Handles of one gRPC method.
pub struct MethodMetrics {
    /// `/service/Method`.
    pub path: String,
    /// How its messages flow.
    pub kind: MethodKind,
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: [IntCounter; CODES.len()],
    handling_s: Option<Histogram>,
}

impl MethodMetrics {
    /// An RPC started.
    pub fn start(&self) {
        self.started.inc();
    }

    /// Messages came in.
    pub fn receive(&self, messages: u64) {
        self.received.inc_by(messages);
    }

    /// Messages went out.
    pub fn send(&self, messages: u64) {
        self.sent.inc_by(messages);
    }

    /// An RPC ended with this code, after this many seconds. An unknown code counts as Unknown.
    pub fn finish(&self, code: usize, seconds: f64) {
        self.handled[if code < CODES.len() { code } else { 2 }].inc();
        if let Some(handling) = &self.handling_s {
            handling.observe(seconds);
        }
    }

    /// True when [`MethodMetrics::finish`] uses the time.
    pub fn is_timed(&self) -> bool {
        self.handling_s.is_some()
    }
}

/// Handles of all methods that are served, by path. All are made at the start, so that every series is there with 0.
pub struct GrpcMetrics {
    methods: HashMap<String, Arc<MethodMetrics>>,
}

impl GrpcMetrics {
    fn new(r: &Registrar<'_>, services: &[&str], extensive: bool) -> Self {
        let started = r.counter_by("grpc_server_started_total");
        let handled = r.counter_by("grpc_server_handled_total");
        let received = r.counter_by("grpc_server_msg_received_total");
        let sent = r.counter_by("grpc_server_msg_sent_total");
        let handling = extensive.then(|| r.histogram_by("grpc_server_handling_seconds"));
        let mut methods = HashMap::new();
        for (service, names) in METHODS.iter().filter(|(service, _)| services.contains(service)) {
            for &(method, kind) in *names {
                let labels = [kind.label(), service, method];
                let path = format!("/{service}/{method}");
                let metrics = MethodMetrics {
                    path: path.clone(),
                    kind,
                    started: started.with_label_values(&labels),
                    received: received.with_label_values(&labels),
                    sent: sent.with_label_values(&labels),
                    handled: CODES
                        .map(|code| handled.with_label_values(&[code, kind.label(), service, method])),
                    handling_s: handling.as_ref().map(|handling| handling.with_label_values(&labels)),
                };
                methods.insert(path, Arc::new(metrics));
            }
        }
        Self { methods }
    }

    /// The handles of a path; none if no such method is served.
    pub fn method(&self, path: &str) -> Option<&Arc<MethodMetrics>> {
        self.methods.get(path)
    }

    /// All methods that are served.
    pub fn methods(&self) -> impl Iterator<Item = &Arc<MethodMetrics>> {
        self.methods.values()
    }
}

/// `etcd_server_client_requests_total`, with a bound on the versions that clients can make up.
pub struct ClientVersions {
    counters: IntCounterVec,
    known: RwLock<Vec<ClientVersion>>,
}

struct ClientVersion {
    version: Box<str>,
    unary: IntCounter,
    stream: IntCounter,
}

/// Versions told apart; further ones count as `other`.
const CLIENT_VERSIONS_MAX: usize = 32;

impl ClientVersions {
    fn new(counters: IntCounterVec) -> Self {
        Self { counters, known: RwLock::new(Vec::new()) }
    }

    /// Counts one request of a client that named this version.
    pub fn count(&self, version: &str, unary: bool) {
        let known = self.known.read();
        if let Some(entry) = known.iter().find(|entry| *entry.version == *version) {
            if unary {
                entry.unary.inc()
            } else {
                entry.stream.inc()
            }
            return;
        }
        let full = known.len() >= CLIENT_VERSIONS_MAX;
        drop(known);
        if full && version != "other" {
            return self.count("other", unary);
        }
        let mut known = self.known.write();
        if !known.iter().any(|entry| *entry.version == *version) {
            known.push(ClientVersion {
                version: version.into(),
                unary: self.counters.with_label_values(&["unary", version]),
                stream: self.counters.with_label_values(&["stream", version]),
            });
        }
        drop(known);
        self.count(version, unary);
    }
}
