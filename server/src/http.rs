//! The HTTP side of the client port: health, readiness, version, metrics, and the JSON gateway ([`crate::gateway`]). Everything else is 404.
//!
//! **Contract.** Paths, methods, codes, bodies and texts are etcd's, because probes and scripts compare them. Checks run in the order of
//! their table (etcd's order is random). What the checks ask comes from [`HealthSource`]; this file holds no state.
//!
//! **Source**: `server/etcdserver/api/etcdhttp` of etcd 3.7.3.
pub mod access;

use crate::config::{ETCD_VERSION, Url};
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::metrics::export::MetricSource;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// An alarm as health checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum Alarm {
    NoSpace,
    Corrupt,
    Unknown,
}

impl Alarm {
    /// etcd's name.
    pub fn name(self) -> &'static str {
        match self {
            Alarm::NoSpace => "NOSPACE",
            Alarm::Corrupt => "CORRUPT",
            Alarm::Unknown => "UNKNOWN",
        }
    }
}

/// Outcome of a read that a check makes; the error is etcd's text.
pub type ReadCheck = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// What the checks ask the server.
pub trait HealthSource: Send + Sync + 'static {
    /// Raised alarms.
    fn alarms(&self) -> Vec<Alarm>;
    /// Whether a leader is known.
    fn has_leader(&self) -> bool;
    /// Whether this member is a learner.
    fn is_learner(&self) -> bool;
    /// Reads one key, behind a read barrier if `linearizable`, with the time limit of a request.
    fn read(&self, linearizable: bool) -> ReadCheck;
    /// The cluster's version, none while it is not decided.
    fn cluster_version(&self) -> Option<String>;
    /// Whether users have to say who they are.
    fn is_auth_enabled(&self) -> bool;
}

/// Marks requests that came by TLS.
#[derive(Clone, Copy, Debug)]
pub struct ByTls;

/// Where a request comes from, for the log.
#[derive(Clone, Debug)]
pub struct ClientAddress(pub Arc<str>);

/// What the handlers share.
pub struct HttpState {
    /// Answers the checks.
    pub health: Arc<dyn HealthSource>,
    /// Handles that are exported.
    pub metrics: Arc<Metrics>,
    /// Numbers that are sampled.
    pub samples: Arc<dyn MetricSource>,
    /// Host names that requests may use; none for any.
    pub host_whitelist: Option<Vec<String>>,
    /// Origins of pages that may read answers; none for any.
    pub origins: Option<Vec<String>>,
    /// The JSON gateway, if it is served.
    pub gateway: Option<Arc<Gateway>>,
}

/// Routes of a client URL.
pub fn client_routes(state: Arc<HttpState>) -> Router {
    let others = monitor_paths().route("/version", any(version)).with_state(state.clone());
    Router::new().fallback(move |request: Request| access::answer(state, others, request))
}

/// Routes of a URL of `--listen-metrics-urls`.
pub fn monitor_routes(state: Arc<HttpState>) -> Router {
    monitor_paths().with_state(state)
}

fn monitor_paths() -> Router<Arc<HttpState>> {
    Router::new()
        .route("/health", any(health))
        .route("/livez", any(|state, request| all_checks(state, "livez", request)))
        .route("/livez/{check}", any(|state, path, request| one_check(state, "livez", path, request)))
        .route("/readyz", any(|state, request| all_checks(state, "readyz", request)))
        .route("/readyz/{check}", any(|state, path, request| one_check(state, "readyz", path, request)))
        .route("/metrics", any(metrics))
        .fallback(not_found)
}

/// As Go's `http.Error`.
pub(crate) fn plain_error(status: StatusCode, text: &str) -> Response {
    let mut response = (status, format!("{text}\n")).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

async fn not_found() -> Response {
    plain_error(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed() -> Response {
    let mut response = plain_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

async fn version(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let cluster = state.health.cluster_version();
    let body = format!(
        "{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{}\",\"storage\":\"{}\"}}",
        cluster.as_deref().unwrap_or("not_decided"),
        cluster.as_deref().unwrap_or("unknown"),
    );
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    state.metrics.scrapes_in_progress.inc();
    let text = state.metrics.scrape(state.samples.as_ref());
    state.metrics.scrapes_in_progress.dec();
    state.metrics.scrapes.with_label_values(&["200"]).inc();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], Body::from(text)).into_response()
}

/// Values of a parameter in the query, decoded, in order.
fn parameters<'a>(request: &'a Request, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let query = request.uri().query().unwrap_or("");
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

/// Undoes the encoding of a path: `%xx` is a byte; what is no such escape stays.
pub(crate) fn decode_path(path: &str) -> String {
    match path.contains('%') {
        true => decode(&path.replace('+', "%2B")),
        false => path.to_owned(),
    }
}

/// Undoes the encoding of a query: `+` is a space, `%xx` a byte; what is no such escape stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => {
                match (char::from(*high).to_digit(16), char::from(*low).to_digit(16)) {
                    (Some(high), Some(low)) => {
                        rest = after;
                        u8::try_from(high * 16 + low).unwrap_or(b'%')
                    }
                    _ => b'%',
                }
            }
            (byte, _) => *byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn health(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let excluded: Vec<String> = parameters(&request, "exclude").collect();
    let serializable = parameters(&request, "serializable").next().as_deref() == Some("true");
    let reason = health_reason(state.health.as_ref(), &excluded, serializable).await;
    match reason {
        None => {
            state.metrics.health_success.inc();
            "{\"health\":\"true\",\"reason\":\"\"}".into_response()
        }
        Some(reason) => {
            state.metrics.health_failures.inc();
            let body = format!("{{\"health\":\"false\",\"reason\":{}}}", json_text(&reason));
            tracing::warn!(output = body, status_code = 503, "/health error");
            plain_error(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

async fn health_reason(source: &dyn HealthSource, excluded: &[String], serializable: bool) -> Option<String> {
    for alarm in source.alarms() {
        if !excluded.iter().any(|name| name == alarm.name()) {
            return Some(format!("ALARM {}", alarm.name()));
        }
    }
    if !serializable && !source.has_leader() {
        return Some("RAFT NO LEADER".into());
    }
    source.read(!serializable).await.err().map(|text| format!("RANGE ERROR:{text}"))
}

/// A JSON string as Go writes it: also `<`, `>` and `&` are escaped.
fn json_text(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            c if u32::from(c) < 0x20 || "<>&".contains(c) => drop(write!(json, "\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// Checks of a kind, in the order in which they run.
fn checks(kind: &str) -> &'static [&'static str] {
    match kind {
        "livez" => &["serializable_read"],
        _ => &["data_corruption", "serializable_read", "linearizable_read", "non_learner"],
    }
}

async fn run_check(source: &dyn HealthSource, check: &str) -> Result<(), String> {
    match check {
        "data_corruption" if source.alarms().contains(&Alarm::Corrupt) => {
            Err("alarm activated: CORRUPT".into())
        }
        "serializable_read" => source.read(false).await,
        "linearizable_read" => source.read(true).await,
        "non_learner" if source.is_learner() => Err("not supported for learner".into()),
        _ => Ok(()),
    }
}

async fn all_checks(State(state): State<Arc<HttpState>>, kind: &'static str, request: Request) -> Response {
    let excluded: Vec<String> = parameters(&request, "exclude").filter(|name| !name.is_empty()).collect();
    let names: Vec<&str> = checks(kind)
        .iter()
        .copied()
        .filter(|name| !excluded.iter().any(|excluded| excluded == name))
        .collect();
    if let Some(unknown) = excluded.iter().find(|name| !checks(kind).contains(&name.as_str())) {
        tracing::warn!(missing_health_checks = unknown, "some health checks cannot be excluded");
    }
    answer_checks(&state, kind, &names, request).await
}

async fn one_check(
    State(state): State<Arc<HttpState>>,
    kind: &'static str,
    Path(check): Path<String>,
    request: Request,
) -> Response {
    match checks(kind).iter().copied().find(|name| *name == check) {
        Some(check) => answer_checks(&state, kind, &[check], request).await,
        None => not_found().await,
    }
}

async fn answer_checks(state: &HttpState, kind: &'static str, names: &[&str], request: Request) -> Response {
    if request.method() != Method::GET {
        return method_not_allowed();
    }
    let verbose = parameters(&request, "verbose").next().is_some();
    drop(request);
    let mut detail = String::new();
    let mut failed = false;
    for name in names {
        let outcome = run_check(state.health.as_ref(), name).await;
        let (status, result) = match &outcome {
            Ok(()) => ("success", 1.0),
            Err(_) => ("error", 0.0),
        };
        state.metrics.healthcheck.with_label_values(&[kind, name]).set(result);
        state.metrics.healthchecks.with_label_values(&[kind, name, status]).inc();
        match outcome {
            Ok(()) => drop(writeln!(detail, "[+]{name} ok")),
            Err(text) => {
                failed = true;
                let _ = writeln!(detail, "[-]{name} failed: {text}");
            }
        }
    }
    if failed {
        tracing::error!(path = kind, reason = detail, status_code = 503, "Health check error");
        return plain_error(StatusCode::SERVICE_UNAVAILABLE, &detail);
    }
    let body = if verbose { format!("{detail}ok\n") } else { "ok\n".into() };
    let mut response = body.into_response();
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// What etcd logs when it listens on a URL.
pub fn log_listening(url: &Url) {
    let traffic = if url.scheme.is_unix() { "unix" } else { "grpc+http" };
    if url.scheme.is_secure() {
        tracing::info!(traffic, address = url.address, "serving client traffic securely");
    } else {
        tracing::info!(
            traffic,
            address = url.address,
            "serving client traffic insecurely; this is strongly discouraged!"
        );
    }
}
