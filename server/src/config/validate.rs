//! Raw values into a [`Config`]: ranges, combinations, URLs, with etcd's texts for what is wrong.
//!
//! **Contract.** The order of the checks is that of etcd's `Config.Validate`, so that of several mistakes the same one is named. What can
//! only be judged with the data directory at hand (the initial cluster counts only on an empty one) is [`Config::check_bootstrap`].
//!
//! **Source**: `server/embed/config.go`, `server/embed/config_logging.go`, `server/config/config.go` of etcd 3.7.3.
use super::audit;
use super::discovery;
use super::flags::{self, Settings, parse_duration_ns};
use super::options::FEATURE_GATES;
use super::tls::{self, TlsSettings};
use super::url::{self, Url};
use super::{ConfigError, Notice};
use crate::audit::AuditOptions;
use crate::auth::password;
use crate::compactor::{RETENTION_MIN, Retention};
use crate::discovery::Discovery;
use std::path::PathBuf;
use std::time::Duration;
use sternpost_engine::io::BackendChoice;

/// Lines below this level are not written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    Panic,
    Fatal,
}

/// Shape of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are etcd's")]
pub enum LogFormat {
    Json,
    Console,
}

/// Where log lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the places")]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
}

/// Checked settings, as the parts of the server read them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this member.
    pub name: String,
    /// Directory of the data.
    pub data_dir: PathBuf,
    /// Where the log is, if not in it.
    pub wal_dir: Option<PathBuf>,
    /// What a new data directory begins with.
    pub import_snapshot: Option<PathBuf>,
    /// By how much its revision goes on; 0 for not at all.
    pub import_bump_revision: u64,
    /// Its SHA-256 is not asked for.
    pub import_skip_hash_check: bool,
    /// Where clients connect: gRPC, and HTTP unless `listen_client_http_urls` has some.
    pub listen_client_urls: Vec<Url>,
    /// Where clients connect for HTTP alone.
    pub listen_client_http_urls: Vec<Url>,
    /// Where metrics and health are served alone.
    pub listen_metrics_urls: Vec<Url>,
    /// Where peers would connect; not opened by a single member.
    pub listen_peer_urls: Vec<Url>,
    /// Shown in the member list.
    pub advertise_client_urls: Vec<Url>,
    /// Peer URLs of this member, sorted; its id derives from them.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// Members by name, sorted by name, each with its sorted peer URLs.
    pub initial_cluster: Vec<(String, Vec<Url>)>,
    /// Distinguishes clusters; ids derive from it.
    pub initial_cluster_token: String,
    /// True when the member is to join a running cluster.
    pub initial_cluster_existing: bool,
    /// Refuse changes of the membership that would lose the quorum.
    pub strict_reconfig_check: bool,
    /// An existing member removes all others and goes on alone.
    pub force_new_cluster: bool,
    /// Most learners.
    pub learners_max: usize,
    /// Quota in bytes; none when it is switched off.
    pub quota_bytes: Option<u64>,
    /// Most operations in one list of a transaction.
    pub txn_ops_max: usize,
    /// Largest encoded request in bytes. What a gRPC message may hold is [`Config::message_bytes_max`].
    pub request_bytes_max: usize,
    /// Bytes of request bodies held at once over all connections.
    pub inflight_bytes_max: usize,
    /// Bytes of answers held at once.
    pub answer_bytes_max: usize,
    /// Memory for pages and values read from disk.
    pub cache_bytes: usize,
    /// Bytes that the scrubber reads a second; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// Bytes a second of our state that other members may fetch; 0 for no limit.
    pub state_bytes_per_second: u64,
    /// As slow as that becomes when our own writes take longer for it; not below that, the rate is fixed.
    pub state_bytes_per_second_min: u64,
    /// An election begins as soon as the leader's process is known to be gone.
    pub quick_elections: bool,
    /// Where backups of this member are written; none are made without.
    pub backup_dir: Option<PathBuf>,
    /// The audit stream, where there is one.
    pub audit: Option<AuditOptions>,
    /// What is nearly full is among the errors of Status.
    pub warnings_in_status: bool,
    /// Bytes of the log kept for members that are away.
    pub wal_retain_bytes: u64,
    /// Size at which a memtable is written to disk.
    pub memtable_bytes: usize,
    /// HTTP/2 streams of one connection.
    pub concurrent_streams_max: u32,
    /// Time between pings to a client, none for never.
    pub keepalive_interval: Option<Duration>,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
    /// Set SO_REUSEPORT on listeners.
    pub reuse_port: bool,
    /// Heartbeat.
    pub heartbeat_interval: Duration,
    /// Election timeout, from which others derive.
    pub election_timeout: Duration,
    /// True if one of the two was given.
    pub timers_are_given: bool,
    /// Time between progress notifications of watches.
    pub watch_progress_interval: Duration,
    /// Between comparisons of the members' sums.
    pub compare_interval: Duration,
    /// Between comparisons of all their data; none for never.
    pub compare_deep_interval: Option<Duration>,
    /// What automatic compaction keeps; none where it is off.
    pub auto_compaction: Option<Retention>,
    /// How the first members are found, if not by `initial_cluster`.
    pub discovery: Option<Discovery>,
    /// Every member has the same names in `initial_cluster`.
    pub initial_names_known: bool,
    /// Compare with the others before serving anybody.
    pub initial_corrupt_check: bool,
    /// A slower unary request is logged.
    pub warning_unary_request_duration: Duration,
    /// A command that takes longer to apply is logged.
    pub warning_apply_duration: Duration,
    /// Lines below it are not written.
    pub log_level: LogLevel,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// Where log lines go, at least one place.
    pub log_outputs: Vec<LogOutput>,
    /// Latency histograms for every gRPC method.
    pub metrics_extensive: bool,
    /// Host names that HTTP requests may use; none for any.
    pub host_whitelist: Option<Vec<String>>,
    /// Origins of pages that may read answers over HTTP; none for any.
    pub cors: Option<Vec<String>>,
    /// Whether the JSON gateway is served.
    pub has_gateway: bool,
    /// Feature gates in effect: name, stage, on.
    pub feature_gates: Vec<(&'static str, &'static str, bool)>,
    /// `auto`, `ring` or `syscall`.
    pub io_backend: String,
    /// `auto`, `linked`, `dsync` or `separate`.
    pub wal_sync: String,
    /// Threads that serve connections, 0 for one a core.
    pub worker_threads: usize,
    /// Kind of tokens, with its settings.
    pub auth_token: String,
    /// Life of a simple token, seconds.
    pub auth_token_ttl_s: u64,
    /// Cost of password hashes, one that bcrypt has.
    pub bcrypt_cost: u32,
    /// TLS with clients.
    pub client_tls: TlsSettings,
    /// TLS with members.
    pub peer_tls: TlsSettings,
}

impl Config {
    /// How long a request may take at most: 5 s and twice the election timeout, as in etcd.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// Least lease TTL in seconds: 1.5 election timeouts, rounded up, as in etcd.
    pub fn lease_ttl_min_s(&self) -> i64 {
        let election_ticks = self.election_timeout.as_millis() / self.heartbeat_interval.as_millis().max(1);
        let least_ms = (3 * election_ticks).div_ceil(2) * self.heartbeat_interval.as_millis();
        i64::try_from(least_ms.div_ceil(1000)).unwrap_or(i64::MAX)
    }

    /// Largest gRPC message in bytes, and the size from which watch responses are fragmented.
    pub fn message_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(512 * 1024)
    }

    /// Checks that count only while the data directory is empty: etcd's, in etcd's order. May look names
    /// up, where the same URLs are written differently.
    pub fn check_bootstrap(&self) -> Result<(), String> {
        let Some((_, urls)) = self.initial_cluster.iter().find(|(name, _)| *name == self.name) else {
            return Err(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                self.name
            ));
        };
        // A member that joins is known by the URLs it was added with, which its own flag need not repeat.
        if !self.initial_cluster_existing {
            self.check_own_peer_urls(urls)?;
        }
        let mut all: Vec<&Url> = self.initial_cluster.iter().flat_map(|(_, urls)| urls).collect();
        all.sort();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(format!("initial cluster {} has duplicate url", self.initial_cluster_text()));
        }
        Ok(())
    }

    /// The initial cluster says of this member what the member says of itself.
    fn check_own_peer_urls(&self, urls: &[Url]) -> Result<(), String> {
        let own = &self.initial_advertise_peer_urls;
        let Err(difference) = same_addresses(own, urls) else { return Ok(()) };
        let not_in = |these: &[Url], those: &[Url], prefix: &str| {
            let missing = these.iter().filter(|url| !those.contains(url));
            missing.map(|url| format!("{prefix}{url}")).collect::<Vec<_>>().join(",")
        };
        let missing = not_in(urls, own, &format!("{}=", self.name));
        if !missing.is_empty() {
            return Err(format!(
                "--initial-cluster has {missing} but missing from --initial-advertise-peer-urls={} ({difference})",
                join(own)
            ));
        }
        let mut said: Vec<String> = own.iter().map(|url| format!("{}={url}", self.name)).collect();
        said.sort();
        Err(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            not_in(own, urls, ""),
            said.join(",")
        ))
    }

    /// The initial cluster as its flag would say it, in order.
    fn initial_cluster_text(&self) -> String {
        let pairs =
            self.initial_cluster.iter().flat_map(|(name, urls)| urls.iter().map(move |url| (name, url)));
        let mut pairs: Vec<String> = pairs.map(|(name, url)| format!("{name}={url}")).collect();
        pairs.sort();
        pairs.join(",")
    }

    /// Heartbeat and election timeout between members, in milliseconds: as given, the other one then being etcd's default;
    /// if neither is given, 30 and 150.
    pub fn raft_timers_ms(&self) -> (u32, u32) {
        if !self.timers_are_given {
            return (30, 150);
        }
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        (ms(self.heartbeat_interval), ms(self.election_timeout))
    }

    /// How the device is spoken to.
    pub fn io_backend(&self) -> BackendChoice {
        match self.io_backend.as_str() {
            "ring" => BackendChoice::Ring,
            "syscall" => BackendChoice::Syscall,
            _ => BackendChoice::Auto,
        }
    }

    /// Where to listen for peers, without TLS or with it.
    pub fn peer_listen_addresses(&self, is_secure: bool) -> Result<Vec<std::net::SocketAddr>, String> {
        let listen = |url: &Url| {
            url.check_bind()?
                .ok_or_else(|| format!("--listen-peer-urls has {url}: peers are served over TCP alone"))
        };
        self.listen_peer_urls.iter().filter(|url| url.scheme.is_secure() == is_secure).map(listen).collect()
    }
}

/// Whether two sorted lists of URLs name the same addresses; the error is the difference as etcd says it. Names are looked up only if the
/// texts differ.
fn same_addresses(own: &[Url], given: &[Url]) -> Result<(), String> {
    if own == given {
        return Ok(());
    }
    let quoted =
        |urls: &[Url]| urls.iter().map(|url| format!("{:?}", url.to_string())).collect::<Vec<_>>().join(" ");
    if own.len() != given.len() {
        return Err(format!("len([{}]) != len([{}])", quoted(own), quoted(given)));
    }
    let resolved = |urls: &[Url]| -> Result<Vec<String>, String> {
        let mut resolved = urls.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        resolved.sort_unstable();
        Ok(resolved)
    };
    let (own, given) = (resolved(own)?, resolved(given)?);
    match own.iter().zip(&given).find(|(own, given)| own != given) {
        None => Ok(()),
        Some((own, given)) => Err(format!("resolved urls: {own:?} != {given:?}")),
    }
}

/// A URL with its name as an address; the first of IPv4 if there is one, as Go's resolver prefers them.
fn resolve(url: &Url) -> Result<String, String> {
    use std::net::ToSocketAddrs;
    if url.scheme.is_unix() {
        return Ok(url.to_string());
    }
    let found = url.address.to_socket_addrs().map_err(|error| format!("failed to resolve {url}: {error}"))?;
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|address| !address.is_ipv4());
    let first = found.first().ok_or_else(|| format!("failed to resolve {url}: it has no address"))?;
    Ok(format!("{}://{first}", url.scheme.name()))
}

fn join(urls: &[Url]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

const ELECTION_MS_MAX: u64 = 50_000;
const REQUEST_BYTES_RECOMMENDED: u64 = 10 << 20;
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;
const QUOTA_BYTES_RECOMMENDED: u64 = 8 << 30;

/// What automatic compaction keeps. A bare number is hours, or revisions; a duration by number means its nanoseconds, as in etcd.
fn auto_compaction(settings: &Settings) -> Result<Option<Retention>, String> {
    let given = settings.text("auto-compaction-retention");
    let is_periodic = match settings.text("auto-compaction-mode") {
        "periodic" => true,
        "revision" => false,
        "" => return Err("undefined auto-compaction-mode".into()),
        mode => return Err(format!("unknown auto-compaction-mode {mode:?}")),
    };
    let too_large = || format!("--auto-compaction-retention is too large (set to {given})");
    let kept = match given.parse::<u64>() {
        _ if given.is_empty() => 0,
        Ok(hours) if is_periodic => {
            let nanoseconds = hours.checked_mul(3_600_000_000_000).and_then(|ns| i64::try_from(ns).ok());
            nanoseconds.ok_or_else(too_large)?
        }
        Ok(revisions) => i64::try_from(revisions).map_err(|_| too_large())?,
        Err(_) => parse_duration_ns(given).ok_or_else(|| {
            let digits = given.strip_prefix(['-', '+']).unwrap_or(given);
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let what = if is_number { "missing unit in" } else { "invalid" };
            format!("error parsing CompactionRetention: time: {what} duration {given:?}")
        })?,
    };
    match u64::try_from(kept) {
        Ok(0) => Ok(None),
        Ok(_) if !is_periodic => Ok(Some(Retention::Revisions(kept))),
        Ok(nanoseconds) if Duration::from_nanos(nanoseconds) >= RETENTION_MIN => {
            Ok(Some(Retention::Age(Duration::from_nanos(nanoseconds))))
        }
        // etcd divides by zero, or turns as fast as it can.
        _ => Err(format!(
            "--auto-compaction-retention must be at least {RETENTION_MIN:?}, or 0 for none (set to {given})"
        )),
    }
}

/// Where backups go. Not into what is backed up: nobody but the engine writes there.
fn backup_dir(given: &str, data_dir: &str) -> Result<Option<PathBuf>, String> {
    if given.is_empty() {
        return Ok(None);
    }
    let absolute = |path: &str| std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let (directory, data_dir) = (absolute(given), absolute(data_dir));
    if directory.starts_with(&data_dir) {
        return Err(format!("--backup-dir={given} lies in the data directory {}", data_dir.display()));
    }
    Ok(Some(directory))
}

/// The cost of password hashes; one that bcrypt does not have is etcd's default, with etcd's warning.
fn bcrypt_cost(settings: &Settings, notices: &mut Vec<Notice>) -> u32 {
    let given = settings.uint("bcrypt-cost");
    let fitting = u32::try_from(given).ok().filter(|cost| password::COST_RANGE.contains(cost));
    fitting.unwrap_or_else(|| {
        notices.push(
            Notice::warning("use default bcrypt cost instead of the invalid given cost")
                .with("min-cost", &password::COST_RANGE.start().to_string())
                .with("max-cost", &password::COST_RANGE.end().to_string())
                .with("default-cost", &password::COST_DEFAULT.to_string())
                .with("given-cost", &given.to_string()),
        );
        password::COST_DEFAULT
    })
}

/// Checks the settings and makes the [`Config`].
pub(super) fn validate(settings: &Settings, notices: &mut Vec<Notice>) -> Result<Config, ConfigError> {
    build(settings, notices).map_err(ConfigError::Invalid)
}

fn build(settings: &Settings, notices: &mut Vec<Notice>) -> Result<Config, String> {
    if settings.text("discovery-fallback") == "proxy" {
        return Err(
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"".into()
        );
    }
    let (log_outputs, log_level, log_format) = logging(settings, notices)?;

    let urls = |name: &str| url::parse_list(settings.text(name));
    let listen_peer_urls = urls("listen-peer-urls")?;
    let listen_client_urls = urls("listen-client-urls")?;
    let listen_client_http_urls = urls("listen-client-http-urls")?;
    let listen_metrics_urls = urls("listen-metrics-urls")?;
    for url in listen_peer_urls
        .iter()
        .chain(&listen_client_urls)
        .chain(&listen_client_http_urls)
        .chain(&listen_metrics_urls)
    {
        url.check_bind()?;
    }

    let initial_advertise_peer_urls = urls("initial-advertise-peer-urls")?;
    for url in &initial_advertise_peer_urls {
        url.check_host().map_err(|reason| {
            format!(
                "--initial-advertise-peer-urls {:?} must be \"host:port\" ({reason})",
                join(&initial_advertise_peer_urls)
            )
        })?;
    }
    let advertise_client_urls =
        if settings.is_given("listen-client-urls") && !settings.is_given("advertise-client-urls") {
            Vec::new()
        } else {
            urls("advertise-client-urls")?
        };
    for url in &advertise_client_urls {
        url.check_host().map_err(|reason| {
            format!(
                "--advertise-client-urls {:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" ({reason})",
                join(&advertise_client_urls)
            )
        })?;
    }

    let heartbeat_ms = settings.uint("heartbeat-interval");
    let election_ms = settings.uint("election-timeout");
    if heartbeat_ms == 0 {
        return Err("--heartbeat-interval must be >0 (set to 0ms)".into());
    }
    if election_ms == 0 {
        return Err("--election-timeout must be >0 (set to 0ms)".into());
    }
    if heartbeat_ms.saturating_mul(5) > election_ms {
        return Err(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
        ));
    }
    if election_ms > ELECTION_MS_MAX {
        return Err(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        ));
    }
    if !listen_client_urls.is_empty() && advertise_client_urls.is_empty() {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".into());
    }
    discovery::check(settings)?;
    let auto_compaction = auto_compaction(settings)?;
    let feature_gates = feature_gates(settings, notices)?;
    if settings.duration_ns("compact-hash-check-time") <= 0 {
        return Err(format!(
            "--compact-hash-check-time must be >0 (set to {})",
            settings.text("compact-hash-check-time")
        ));
    }
    tls::check_versions(settings)?;

    let name = settings.text("name").to_string();
    let data_dir = match settings.text("data-dir") {
        "" => {
            let default = format!("{name}.etcd");
            notices.push(Notice::warning("'data-dir' was empty; using default").with("data-dir", &default));
            default
        }
        given => given.to_string(),
    };
    let backup_dir = backup_dir(settings.text("backup-dir"), &data_dir)?;
    let path_of = |flag: &str| Some(settings.text(flag)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let initial_cluster = initial_cluster(settings, &name, &initial_advertise_peer_urls)?;

    let request_bytes = settings.uint("max-request-bytes");
    if request_bytes > REQUEST_BYTES_RECOMMENDED {
        notices.push(
            Notice::warning("exceeded recommended request limit")
                .with("max-request-bytes", &request_bytes.to_string())
                .with("recommended-request-bytes", &REQUEST_BYTES_RECOMMENDED.to_string()),
        );
    }
    let quota_bytes = match settings.int("quota-backend-bytes") {
        0 => Some(QUOTA_BYTES_DEFAULT),
        given => u64::try_from(given).ok(),
    };
    if quota_bytes.is_some_and(|bytes| bytes > QUOTA_BYTES_RECOMMENDED) {
        notices.push(
            Notice::warning("quota exceeds the maximum value that etcd recommends")
                .with("quota-size-bytes", settings.text("quota-backend-bytes")),
        );
    }
    let bcrypt_cost = bcrypt_cost(settings, notices);
    let mut config = Config {
        auth_token: settings.text("auth-token").to_string(),
        auth_token_ttl_s: settings.uint("auth-token-ttl"),
        bcrypt_cost,
        name,
        data_dir: data_dir.into(),
        wal_dir: path_of("wal-dir"),
        import_snapshot: path_of("import-snapshot"),
        import_bump_revision: settings.uint("import-bump-revision"),
        import_skip_hash_check: settings.flag("import-skip-hash-check"),
        listen_client_urls,
        listen_client_http_urls,
        listen_metrics_urls,
        listen_peer_urls,
        advertise_client_urls,
        initial_advertise_peer_urls,
        initial_cluster,
        initial_cluster_token: settings.text("initial-cluster-token").to_string(),
        initial_cluster_existing: settings.text("initial-cluster-state") == "existing",
        strict_reconfig_check: settings.flag("strict-reconfig-check"),
        force_new_cluster: settings.flag("force-new-cluster"),
        learners_max: usize::try_from(settings.int("max-learners")).unwrap_or(0),
        quota_bytes,
        txn_ops_max: size(settings.uint("max-txn-ops")),
        request_bytes_max: size(request_bytes),
        inflight_bytes_max: size(settings.uint("max-inflight-bytes")),
        answer_bytes_max: size(settings.uint("max-answer-bytes")),
        cache_bytes: size(settings.uint("cache-bytes")),
        scrub_bytes_per_second: settings.uint("scrub-bytes-per-second"),
        state_bytes_per_second_min: settings.uint("state-bytes-per-second-min"),
        state_bytes_per_second: settings.uint("state-bytes-per-second"),
        quick_elections: settings.flag("quick-elections"),
        backup_dir,
        audit: audit::of(settings)?,
        warnings_in_status: settings.flag("warnings-in-status"),
        wal_retain_bytes: settings.uint("wal-retain-bytes"),
        memtable_bytes: size(settings.uint("memtable-bytes")),
        concurrent_streams_max: u32::try_from(settings.uint("max-concurrent-streams")).unwrap_or(u32::MAX),
        keepalive_interval: positive(settings.duration_ns("grpc-keepalive-interval")),
        keepalive_timeout: positive(settings.duration_ns("grpc-keepalive-timeout")).unwrap_or(Duration::MAX),
        reuse_port: settings.flag("socket-reuse-port"),
        heartbeat_interval: Duration::from_millis(heartbeat_ms),
        election_timeout: Duration::from_millis(election_ms),
        timers_are_given: settings.is_given("heartbeat-interval") || settings.is_given("election-timeout"),
        watch_progress_interval: watch_progress_interval(settings, notices),
        discovery: discovery::of(settings),
        initial_names_known: true,
        compare_interval: interval(settings, "compact-hash-check-time").unwrap_or(Duration::from_mins(1)),
        compare_deep_interval: interval(settings, "corrupt-check-time"),
        auto_compaction,
        initial_corrupt_check: feature_gates
            .iter()
            .any(|&(name, _, is_on)| name == "InitialCorruptCheck" && is_on),
        warning_unary_request_duration: positive(settings.duration_ns("warning-unary-request-duration"))
            .unwrap_or(Duration::from_millis(300)),
        warning_apply_duration: positive(settings.duration_ns("warning-apply-duration"))
            .unwrap_or(Duration::from_millis(100)),
        log_level,
        log_format,
        log_outputs,
        metrics_extensive: settings.text("metrics") == "extensive",
        host_whitelist: match settings.text("host-whitelist") {
            "" | "*" => None,
            _ => Some(settings.list("host-whitelist")).filter(|hosts| !hosts.iter().any(|host| host == "*")),
        },
        cors: match settings.text("cors") {
            "" | "*" => None,
            _ => Some(urls("cors")?.iter().map(ToString::to_string).collect()),
        },
        has_gateway: settings.flag("enable-grpc-gateway"),
        feature_gates,
        io_backend: settings.text("io-backend").to_string(),
        wal_sync: settings.text("wal-sync").to_string(),
        worker_threads: size(settings.uint("worker-threads")).min(1024),
        client_tls: TlsSettings::of_clients(settings),
        peer_tls: TlsSettings::of_peers(settings),
    };
    tls::fill(&mut config, settings, notices)?;
    Ok(config)
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn positive(ns: i64) -> Option<Duration> {
    u64::try_from(ns).ok().filter(|ns| *ns > 0).map(Duration::from_nanos)
}

/// A duration that is none where it is not above zero.
pub(super) fn interval(settings: &Settings, name: &str) -> Option<Duration> {
    u64::try_from(settings.duration_ns(name)).ok().filter(|ns| *ns > 0).map(Duration::from_nanos)
}

fn watch_progress_interval(settings: &Settings, notices: &mut Vec<Notice>) -> Duration {
    const LEAST: Duration = Duration::from_millis(100);
    match positive(settings.duration_ns("watch-progress-notify-interval")) {
        None => Duration::from_mins(10),
        Some(given) if given < LEAST => {
            notices.push(
                Notice::warning("adjusting watch progress notify interval to minimum period")
                    .with("min-watch-progress-notify-interval", "100ms"),
            );
            LEAST
        }
        Some(given) => given,
    }
}

fn logging(
    settings: &Settings,
    notices: &mut Vec<Notice>,
) -> Result<(Vec<LogOutput>, LogLevel, LogFormat), String> {
    match settings.text("logger") {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".into()),
        other => return Err(format!("unknown logger option {other:?}")),
    }
    let mut words = settings.list("log-outputs");
    if words.is_empty() {
        words.push("default".into());
    }
    if words.len() > 1 && words.iter().any(|word| word == "default") {
        return Err("multi logoutput for \"default\" is not supported yet".into());
    }
    let mut outputs: Vec<LogOutput> = Vec::new();
    for word in words {
        let output = match word.as_str() {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            "systemd/journal" => {
                notices.push(
                    Notice::warning("the journal's own protocol is not served yet, logging to stderr")
                        .with("flag", "log-outputs"),
                );
                LogOutput::Stderr
            }
            _ => LogOutput::File(word.into()),
        };
        if !outputs.contains(&output) {
            outputs.push(output);
        }
    }
    let level = match settings.text("log-level").to_ascii_lowercase().as_str() {
        "debug" => LogLevel::Debug,
        "info" | "" => LogLevel::Info,
        "warn" | "warning" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "panic" | "dpanic" => LogLevel::Panic,
        "fatal" => LogLevel::Fatal,
        _ => return Err(format!("unrecognized level: {:?}", settings.text("log-level"))),
    };
    let format = match settings.text("log-format") {
        "json" | "" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => return Err(format!("unknown log format: {other}, supported values json, console")),
    };
    Ok((outputs, level, format))
}

fn feature_gates(
    settings: &Settings,
    notices: &mut Vec<Notice>,
) -> Result<Vec<(&'static str, &'static str, bool)>, String> {
    let mut gates: Vec<(&'static str, &'static str, bool)> =
        FEATURE_GATES.iter().map(|&(name, stage, default, _)| (name, stage, default)).collect();
    for (name, on) in flags::feature_gates(settings.text("feature-gates"))? {
        for gate in gates.iter_mut().filter(|gate| gate.0 == name) {
            gate.2 = on;
        }
    }
    let is_on = |name: &str| gates.iter().any(|gate| gate.0 == name && gate.2);
    if is_on("LeaseCheckpointPersist") && !is_on("LeaseCheckpoint") {
        return Err(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
                .into(),
        );
    }
    let changed: Vec<&str> = FEATURE_GATES
        .iter()
        .filter(|(name, _, default, satisfied)| is_on(name) != *default && !satisfied)
        .map(|gate| gate.0)
        .collect();
    if !changed.is_empty() {
        notices.push(
            Notice::warning("feature gates are accepted and have no effect yet")
                .with("flag", "feature-gates")
                .with("value", &changed.join(",")),
        );
    }
    Ok(gates)
}

fn initial_cluster(settings: &Settings, name: &str, own: &[Url]) -> Result<Vec<(String, Vec<Url>)>, String> {
    let text = settings.text("initial-cluster");
    if !settings.is_given("initial-cluster") {
        return Ok(vec![(name.to_string(), own.to_vec())]);
    }
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (member, url) = part.split_once('=').unwrap_or((part, ""));
        let url =
            url::parse_one(url).map_err(|reason| format!("error setting up initial cluster: {reason}"))?;
        match members.iter_mut().find(|(known, _)| known == member) {
            Some((_, known)) => known.push(url),
            None => members.push((member.to_string(), vec![url])),
        }
    }
    for (_, urls) in &mut members {
        urls.sort();
    }
    members.sort();
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::super::{Request, load};
    use super::*;

    fn attempt(arguments: &[&str]) -> Result<(Config, Vec<Notice>), ConfigError> {
        match load(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>(), &[])? {
            Request::Serve(loaded) => Ok((loaded.config, loaded.notices)),
            Request::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn defaults_are_etcds() {
        let (config, _) = attempt(&[]).unwrap();
        assert_eq!(config.name, "default");
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(join(&config.listen_client_urls), "http://localhost:2379");
        assert_eq!(config.quota_bytes, Some(2_147_483_648));
        assert_eq!(config.message_bytes_max(), 1_572_864 + 524_288);
        assert_eq!(config.request_timeout(), Duration::from_secs(7));
        assert_eq!(config.lease_ttl_min_s(), 2);
        assert_eq!(config.watch_progress_interval, Duration::from_secs(600));
        assert_eq!(config.keepalive_interval, Some(Duration::from_secs(7200)));
        assert_eq!(config.concurrent_streams_max, u32::MAX);
        config.check_bootstrap().unwrap();
    }

    #[test]
    fn name_alone_makes_the_initial_cluster() {
        let (config, _) =
            attempt(&["--name=m1", "--initial-advertise-peer-urls=http://10.0.0.1:2380"]).unwrap();
        assert_eq!(config.initial_cluster.len(), 1);
        assert_eq!(config.initial_cluster[0].0, "m1");
        assert_eq!(join(&config.initial_cluster[0].1), "http://10.0.0.1:2380");
        config.check_bootstrap().unwrap();
    }

    #[test]
    fn mistakes_have_etcds_texts() {
        for (arguments, text) in [
            (
                &["--listen-client-urls=http://127.0.0.1:1"][..],
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            (
                &["--listen-client-urls=http://a.b:1", "--advertise-client-urls=http://a.b:1"],
                "expected IP in URL for binding (http://a.b:1)",
            ),
            (
                &["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
            ),
            (
                &["--listen-metrics-urls=https://127.0.0.1:1"],
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            ),
            (
                &["--advertise-client-urls=http://:1"],
                "--advertise-client-urls \"http://:1\" must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" (unexpected empty host (http://:1))",
            ),
            (&["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)"),
            (&["--election-timeout=0"], "--election-timeout must be >0 (set to 0ms)"),
            (
                &["--election-timeout=400"],
                "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            ),
            (
                &["--election-timeout=60000"],
                "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            ),
            (&["--auto-compaction-mode=never"], "unknown auto-compaction-mode \"never\""),
            (
                &["--auto-compaction-retention=soon"],
                "error parsing CompactionRetention: time: invalid duration \"soon\"",
            ),
            (
                &["--auto-compaction-retention=-5"],
                "error parsing CompactionRetention: time: missing unit in duration \"-5\"",
            ),
            (
                &["--auto-compaction-retention=5ms"],
                "--auto-compaction-retention must be at least 100ms, or 0 for none (set to 5ms)",
            ),
            (
                &["--auto-compaction-retention=9999999999999"],
                "--auto-compaction-retention is too large (set to 9999999999999)",
            ),
            (&["--logger=capnslog"], "--logger=capnslog is removed in v3.5"),
            (&["--logger=x"], "unknown logger option \"x\""),
            (&["--log-outputs=default,stderr"], "multi logoutput for \"default\" is not supported yet"),
            (&["--log-level=loud"], "unrecognized level: \"loud\""),
            (&["--log-format=xml"], "unknown log format: xml, supported values json, console"),
            (&["--compact-hash-check-time=0s"], "--compact-hash-check-time must be >0 (set to 0s)"),
            (
                &["--discovery-fallback=proxy"],
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
            ),
            (
                &["--initial-cluster=a="],
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
            ),
            (
                &["--feature-gates=LeaseCheckpointPersist=true"],
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            ),
        ] {
            assert_eq!(attempt(arguments).map(drop), Err(ConfigError::Invalid(text.into())), "{arguments:?}");
        }
        assert_eq!(
            attempt(&["--feature-gates=Nope=true"]).map(drop),
            Err(ConfigError::Usage(
                "invalid value \"Nope=true\" for flag -feature-gates: unrecognized feature gate: Nope".into()
            ))
        );
    }

    #[test]
    fn bootstrap_wants_this_member_in_the_initial_cluster() {
        let complaint = |arguments: &[&str]| attempt(arguments).unwrap().0.check_bootstrap().unwrap_err();
        assert_eq!(
            complaint(&["--name=a", "--initial-cluster=b=http://localhost:2380"]),
            "couldn't find local name \"a\" in the initial cluster configuration"
        );
        assert_eq!(
            complaint(&["--name=a", "--initial-cluster=a=http://localhost:1"]),
            "--initial-cluster has a=http://localhost:1 but missing from --initial-advertise-peer-urls=http://localhost:2380 \
             (resolved urls: \"http://127.0.0.1:2380\" != \"http://127.0.0.1:1\")"
        );
        let one = "--initial-advertise-peer-urls=http://1.1.1.1:1";
        let two = "--initial-advertise-peer-urls=http://1.1.1.1:1,http://1.1.1.1:2";
        assert_eq!(
            complaint(&["--name=a", one, "--initial-cluster=a=http://1.1.1.1:1,a=http://1.1.1.1:2"]),
            "--initial-cluster has a=http://1.1.1.1:2 but missing from --initial-advertise-peer-urls=http://1.1.1.1:1 \
             (len([\"http://1.1.1.1:1\"]) != len([\"http://1.1.1.1:1\" \"http://1.1.1.1:2\"]))"
        );
        assert_eq!(
            complaint(&["--name=a", two, "--initial-cluster=a=http://1.1.1.1:1"]),
            "--initial-advertise-peer-urls has http://1.1.1.1:2 but missing from \
             --initial-cluster=a=http://1.1.1.1:1,a=http://1.1.1.1:2"
        );
        assert_eq!(
            complaint(&[
                "--name=a",
                one,
                "--initial-cluster=b=http://1.1.1.1:2,a=http://1.1.1.1:1,c=http://1.1.1.1:2"
            ]),
            "initial cluster a=http://1.1.1.1:1,b=http://1.1.1.1:2,c=http://1.1.1.1:2 has duplicate url"
        );
        let three =
            "--initial-cluster=a=http://localhost:2380,b=http://localhost:3380,c=http://localhost:4380";
        attempt(&["--name=a", three]).unwrap().0.check_bootstrap().unwrap();
        let (config, _) = attempt(&["--name=a", "--initial-cluster=a=http://127.0.0.1:2380"]).unwrap();
        config.check_bootstrap().unwrap();
    }

    #[test]
    fn timers_between_members_are_short_unless_one_is_given() {
        let timers = |arguments: &[&str]| attempt(arguments).unwrap().0.raft_timers_ms();
        assert_eq!(timers(&[]), (30, 150));
        assert_eq!(timers(&["--heartbeat-interval=100"]), (100, 1000));
        assert_eq!(timers(&["--election-timeout=500"]), (100, 500));
        assert_eq!(timers(&["--heartbeat-interval=50", "--election-timeout=250"]), (50, 250));
    }

    #[test]
    fn kubeadms_arguments_without_tls_are_taken() {
        let (config, notices) = attempt(&[
            "--name=node1",
            "--advertise-client-urls=http://10.0.0.1:2379",
            "--listen-client-urls=http://127.0.0.1:2379,http://10.0.0.1:2379",
            "--listen-peer-urls=http://10.0.0.1:2380",
            "--initial-advertise-peer-urls=http://10.0.0.1:2380",
            "--initial-cluster=node1=http://10.0.0.1:2380",
            "--data-dir=/var/lib/etcd",
            "--snapshot-count=10000",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--watch-progress-notify-interval=5s",
            "--feature-gates=InitialCorruptCheck=true",
        ])
        .unwrap();
        assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
        assert_eq!(notices.iter().filter(|notice| notice.warning).count(), 1, "{notices:?}");
        assert!(config.feature_gates.contains(&("InitialCorruptCheck", "ALPHA", true)));
        config.check_bootstrap().unwrap();
    }

    #[test]
    fn quota_zero_is_two_gibibytes_and_negative_is_none() {
        assert_eq!(attempt(&["--quota-backend-bytes=0"]).unwrap().0.quota_bytes, Some(2 << 30));
        assert_eq!(attempt(&["--quota-backend-bytes=-1"]).unwrap().0.quota_bytes, None);
        assert_eq!(attempt(&["--quota-backend-bytes=100"]).unwrap().0.quota_bytes, Some(100));
    }
}
