//! The process: sockets, data directory, member, listeners, signals, in this order, and back.
//!
//! **Start.**
//! 1. sockets are opened, so that a port in use is found before the data directory is touched,
//! 2. the data directory is made if needed (mode 0700) and looked at: one of etcd's own is refused; the log is put where it shall be, and a snapshot is
//!    imported if one is named,
//! 3. the member starts: the log is replayed (`server.rs`),
//! 4. listeners accept; the ready line is logged; the supervisor is told,
//! 5. the device is measured in the background, if it was not measured before.
//!
//! **Stop**, on SIGTERM or SIGINT: health says not serving · sockets close and connections are told to go away · watches end · other streams
//! are cut after [`STREAMS_CUT`] · what is left gets until [`DRAIN`] · a checkpoint is made of what
//! is in memory, and the log is closed. The caller then ends the process by the same signal.
//!
//! **Failure.** Whatever prevents the start is one line for the user, see [`Stopped`].
use crate::answers::AnswerBudget;
use crate::audit::Audit;
use crate::backups::{self, Backups, BackupsOptions};
use crate::comparison::Intervals;
use crate::config::{Config, Loaded, LogLevel, Notice, url};
use crate::diagnostics::Diagnostics;
use crate::discovery::{self, Discovery};
use crate::gateway::Gateway;
use crate::grpc::{Grpc, GrpcBounds, GrpcServices};
use crate::grpc_limits::InflightBudget;
use crate::http::{HttpState, client_routes, log_listening, monitor_routes};
use crate::import_at_start;
use crate::join;
use crate::listener::{ConnectionSettings, Listener, Served, Shutdown};
use crate::log_directory;
use crate::logging::{self, Value};
use crate::metrics::Metrics;
use crate::node::{Node, NodeOptions};
use crate::peers::{Peers, Writes};
use crate::request::limits::Limits;
use crate::request::members::MemberLimits;
use crate::server::{AuthOptions, Server, ServerOptions, StartError, StartedReplicator};
use crate::services::router::GrpcRouter;
use crate::supervisor::Supervisor;
use crate::tls::Tls;
use crate::tls::accept::ClientTls;
use crate::tls::expiry::{self, Expiry};
use crate::warnings::{self, Warnings};
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use sternpost_engine::checkpoint::{CheckpointEvent, CheckpointOptions};
use sternpost_engine::log::OpenProgress;
use sternpost_engine::log::calibration::{self, CalibrationReport};
use sternpost_engine::mvcc::StoreOptions;
use sternpost_engine::options::LogOptions;
use sternpost_engine::scrub::{self, Scrubber};
use sternpost_engine::wal::SyncMethod;
use sternpost_replication::raft::state::has_staged_only;
use sternpost_replication::transport::WriteWindow;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long streams may go on after the stop began.
pub const STREAMS_CUT: Duration = Duration::from_millis(100);
/// How long the newest lines of the audit stream may take to be written.
const AUDIT_END: Duration = Duration::from_secs(2);
/// How long connections may take to finish.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Why the process stopped serving.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// SIGTERM.
    Terminated,
    /// SIGINT.
    Interrupted,
    /// This member was removed from its cluster: its data is of no use any more.
    Removed,
    /// The state of another member was fetched: it is put in place of ours at the next start, which is to follow.
    StateFetched,
    /// The data of this member differs from that of these, which are most: it serves nobody any more. Never returned by [`run`].
    Differs {
        /// By id.
        from: Vec<u64>,
    },
}

impl Stopped {
    /// The number of the signal by which it stopped.
    pub fn signal(&self) -> Option<i32> {
        match self {
            Stopped::Terminated => Some(SignalKind::terminate().as_raw_value()),
            Stopped::Interrupted => Some(SignalKind::interrupt().as_raw_value()),
            Stopped::Removed | Stopped::StateFetched | Stopped::Differs { .. } => None,
        }
    }
}

/// Serves until a signal comes. The error is one line for the user.
pub async fn run(loaded: Loaded) -> Result<Stopped, String> {
    let Loaded { mut config, settings, notices } = loaded;
    for notice in &notices {
        log_notice(notice);
    }
    log_settings(&settings);
    raise_descriptor_limit();
    // Signals are taken from here on: one that comes while the log is replayed must not cut it short unnoticed.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;

    let sockets = Sockets::open(&config)?;
    let has_data = !look_at_directory(&config)?;
    let is_new = import_at_start::is_to_begin_anew(&config, !has_data)? || !has_data;
    if is_new {
        tokio::select! {
            found = discovery::find_members(&mut config) => found?,
            _ = terminate.recv() => return Ok(Stopped::Terminated),
            _ = interrupt.recv() => return Ok(Stopped::Interrupted),
        }
    } else if matches!(config.discovery, Some(Discovery::Registry(_))) {
        tracing::warn!("discovery token is ignored since cluster already initialized; valid logs are found");
    }
    prepare_directory(&config, is_new)?;
    log_directory::place(&config.data_dir, config.wal_dir.as_deref(), is_new)?;
    if let Some(file) = config.import_snapshot.clone() {
        let (importing, members) = (config.clone(), first_members(&config));
        let imported = tokio::task::spawn_blocking(move || import_at_start::run(&importing, &file, &members));
        tokio::select! {
            imported = imported => imported.unwrap_or_else(|error| Err(error.to_string()))?,
            // What is there is not opened by anything, and begun anew.
            _ = terminate.recv() => return Ok(Stopped::Terminated),
            _ = interrupt.recv() => return Ok(Stopped::Interrupted),
        }
    }
    let tls = Tls::open(&config)?;
    if is_new && config.initial_cluster_existing {
        let (joining, tls) = (config.clone(), tls.clone());
        let joined = tokio::task::spawn_blocking(move || join::fetch_first_state(&joining, &tls));
        tokio::select! {
            joined = joined => joined.unwrap_or_else(|error| Err(error.to_string()))?,
            _ = terminate.recv() => return Ok(Stopped::Terminated),
            _ = interrupt.recv() => return Ok(Stopped::Interrupted),
        }
    }
    if is_new && !config.initial_cluster_existing {
        let (starting, tls) = (config.clone(), tls.clone());
        let asked = tokio::task::spawn_blocking(move || join::refuse_lost_data(&starting, &tls)).await;
        asked.unwrap_or_else(|error| Err(error.to_string()))?;
    }
    if config.force_new_cluster && !is_new {
        let (forcing, tls) = (config.clone(), tls.clone());
        let asked = tokio::task::spawn_blocking(move || join::refuse_needless_force(&forcing, &tls)).await;
        asked.unwrap_or_else(|error| Err(error.to_string()))?;
    }
    let metrics = Arc::new(Metrics::new(&GrpcRouter::SERVICES, config.metrics_extensive));
    let watching = tokio::spawn(watch_certificates(Expiry::new(tls.sides(), metrics.certificates.clone())));
    let starting = start_member(&config, &tls, metrics.clone());
    let Member { server, diagnostics, node, peers } = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(Stopped::Terminated),
        _ = interrupt.recv() => return Ok(Stopped::Interrupted),
    };
    let supervisor = Arc::new(Supervisor::from_environment());
    let (watched, health) = (supervisor.clone(), diagnostics.clone());
    // To the end of the process: fetching a state below takes minutes.
    tokio::spawn(async move { watched.watch(health).await });

    let differing = match &peers {
        // Its last run found that its data differs, and did not come to an end of that.
        Some(peers) if peers.is_quarantined_for_state() => Some(Vec::new()),
        Some(_) if config.initial_corrupt_check => tokio::select! {
            biased;
            difference = server.comparison.difference() => Some(difference.from),
            () = server.comparison.judge_first() => None,
            _ = terminate.recv() => return Ok(Stopped::Terminated),
            _ = interrupt.recv() => return Ok(Stopped::Interrupted),
        },
        _ => None,
    };
    if let (Some(from), Some(peers)) = (differing, &peers) {
        // Nobody is served from it.
        drop(sockets);
        let stopped = repair(peers, &server, from, &mut terminate, &mut interrupt).await;
        watching.abort();
        close_member(server, Some(Arc::clone(peers))).await?;
        return stopped;
    }

    let looking_for_room = tokio::spawn(warnings::run(
        server.pipeline.shared_warnings(),
        Arc::clone(&server.pipeline),
        config.data_dir.clone(),
        metrics.space_warnings.clone(),
    ));
    let audit = start_audit(&config, &metrics)?;
    let shutdown = Shutdown::default();
    let state_rate = metrics.state_rate.clone();
    let known_peers = diagnostics.peers.clone();
    sockets.serve(&config, &tls, &server, diagnostics, metrics, audit.clone(), &shutdown);
    tracing::info!("ready to serve client requests");
    for url in &config.listen_client_urls {
        log_listening(url);
    }
    supervisor.ready();
    node.calibrate(calibration::DELAY, log_calibration);
    let place = node.place();
    let scrubber = match config.scrub_bytes_per_second.min(*scrub::RATE_RANGE.end()) {
        0 => None,
        rate => {
            let started = Scrubber::start(server.store().clone(), rate, Some(place));
            Some(started.map_err(|error| error.to_string())?)
        }
    };

    let membership = server.pipeline.membership();
    let following = Following::start(&config, &tls, node, peers, &server, state_rate, known_peers);
    let mut stopped = tokio::select! {
        _ = terminate.recv() => Stopped::Terminated,
        _ = interrupt.recv() => Stopped::Interrupted,
        () = membership.removed(removal_grace(&config)) => Stopped::Removed,
        () = join::keep_up(&following.peers) => Stopped::StateFetched,
        difference = server.comparison.difference() => Stopped::Differs { from: difference.from },
    };
    // What is followed by another start is no end for who supervises the process.
    if !matches!(stopped, Stopped::StateFetched | Stopped::Differs { .. }) {
        supervisor.stopping();
    }
    match &stopped {
        Stopped::Removed => {
            tracing::warn!(
                "this member was removed from its cluster and stops; its data directory can be removed"
            );
        }
        Stopped::StateFetched => {
            tracing::info!("the state of another member is here; this member starts again with it");
        }
        Stopped::Differs { .. } => {
            // Before clients are let go of: a read that asks the group is refused from now on.
            if let Some(peers) = following.peers.borrow().clone() {
                let quarantined = tokio::task::spawn_blocking(move || peers.quarantine()).await;
                if let Err(error) = quarantined.unwrap_or_else(|error| Err(error.to_string())) {
                    tracing::error!(
                        error,
                        "this member could not be taken out of its cluster; it is tried again"
                    );
                }
            }
        }
        _ => tracing::info!(
            signal = if stopped == Stopped::Terminated { "terminated" } else { "interrupt" },
            "received signal; shutting down"
        ),
    }
    let peers = following.stop();
    watching.abort();
    looking_for_room.abort();
    server.announce_stop();
    // It ends with the 256 KiB under way.
    drop(scrubber);
    shutdown.begin();
    server.watch.close();
    if tokio::time::timeout(STREAMS_CUT, shutdown.drained()).await.is_err() {
        shutdown.cut();
        if tokio::time::timeout(DRAIN, shutdown.drained()).await.is_err() {
            tracing::warn!("some connections did not finish in time and are dropped");
        }
    }
    if let Some(audit) = audit
        && tokio::time::timeout(AUDIT_END, audit.end()).await.is_err()
    {
        tracing::warn!("the newest lines of the audit stream could not be written");
    }
    if let (Stopped::Differs { from }, Some(peers)) = (&mut stopped, &peers) {
        let from = std::mem::take(from);
        stopped = repair(peers, &server, from, &mut terminate, &mut interrupt).await?;
    }
    close_member(server, peers).await?;
    Ok(stopped)
}

/// Fetches a state in the place of one that differs, unless a signal comes before; it is in place after the next start.
async fn repair(
    peers: &Arc<Peers>,
    server: &Server,
    from: Vec<u64>,
    terminate: &mut Signal,
    interrupt: &mut Signal,
) -> Result<Stopped, String> {
    tokio::select! {
        fetched = join::fetch_sound_state(peers, &server.comparison, from) => {
            fetched?;
            tracing::info!("the state of another member is here; this member starts again with it");
            Ok(Stopped::StateFetched)
        }
        _ = terminate.recv() => Ok(Stopped::Terminated),
        _ = interrupt.recv() => Ok(Stopped::Interrupted),
    }
}

/// Closes the log, then the connections to other members.
async fn close_member(server: Server, peers: Option<Arc<Peers>>) -> Result<(), String> {
    let stopped_well = server.stop().await;
    if let Some(peers) = peers {
        // Its threads may be in the middle of something.
        let _ = tokio::task::spawn_blocking(move || peers.stop()).await;
    }
    stopped_well?;
    tracing::info!("closed the member");
    Ok(())
}

/// Opens the audit stream, if there shall be one.
fn start_audit(config: &Config, metrics: &Metrics) -> Result<Option<Arc<Audit>>, String> {
    let Some(options) = config.audit.clone() else { return Ok(None) };
    let started = Audit::start(options, metrics.audit.clone());
    started.map(Some).map_err(|error| format!("--audit-log: {error}"))
}

/// Looks at the certificates until the task is ended.
async fn watch_certificates(mut certificates: Expiry) {
    let mut ticks = tokio::time::interval(expiry::LOOK_INTERVAL);
    loop {
        ticks.tick().await;
        certificates.look();
    }
}

/// How long a removed member stays, so that the others can elect a leader with its vote: a few election timeouts, each up to twice as long.
fn removal_grace(config: &Config) -> Duration {
    Duration::from_millis(500) + 6 * Duration::from_millis(config.raft_timers_ms().1.into())
}

/// What keeps this member in touch with the others, from the moment that there are some.
struct Following {
    peers: join::PeersWatch,
    task: tokio::task::JoinHandle<()>,
    is_stopping: Arc<AtomicBool>,
}

impl Following {
    fn start(
        config: &Config,
        tls: &Tls,
        node: Node,
        peers: Option<Arc<Peers>>,
        server: &Server,
        state_rate: prometheus::Gauge,
        known_peers: Arc<OnceLock<Weak<Peers>>>,
    ) -> Self {
        let (tell, heard) = watch::channel(peers);
        let is_stopping = Arc::new(AtomicBool::new(false));
        let (config, tls, stopping) = (config.clone(), tls.clone(), Arc::clone(&is_stopping));
        let (store, membership) = (server.store().clone(), server.pipeline.shared_membership());
        let task = tokio::spawn(async move {
            if tell.borrow().is_none() {
                // On a thread that may wait.
                let waiting = tokio::task::spawn_blocking(move || {
                    let raft = node.wait_for_group(|| stopping.load(Ordering::Relaxed))?;
                    // One that was alone has nobody's promises.
                    Some(Peers::new(&config, &tls, raft, store, membership, Arc::default()))
                });
                match waiting.await {
                    Ok(Some(Ok(peers))) => drop(tell.send_replace(Some(Arc::new(peers)))),
                    Ok(Some(Err(error))) => {
                        tracing::error!(
                            error,
                            "other members cannot be spoken to; correct the flags and restart"
                        );
                    }
                    _ => {}
                }
            }
            let peers = tell.borrow().clone();
            if let Some(peers) = peers {
                let _ = known_peers.set(Arc::downgrade(&peers));
                peers.follow(state_rate).await;
            }
        });
        Self { peers: heard, task, is_stopping }
    }

    /// Ends it; what has connections is to be stopped when the log is closed.
    fn stop(self) -> Option<Arc<Peers>> {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.task.abort();
        self.peers.borrow().clone()
    }
}

/// Raises the limit of open files as far as the process may: each connection takes one and each segment of the data directory, of which
/// there are some twenty for a GiB. Go programs, etcd among them, find it raised by their runtime; 1,024 is the usual start.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        let current = limit.current.map_or("none".into(), |count| count.to_string());
        tracing::warn!(limit = current, error = %error, "the limit of open files could not be raised");
    }
}

/// Logs a notice of the settings.
fn log_notice(notice: &Notice) {
    let fields: Vec<(&str, Value<'_>)> =
        notice.fields.iter().map(|(name, value)| (name.as_str(), Value::Text(value))).collect();
    let level = if notice.warning { LogLevel::Warn } else { LogLevel::Info };
    logging::emit(level, file!(), line!(), &notice.message, &fields);
}

/// Logs the settings in effect, fields named as the flags: tools look there for what a member runs with.
fn log_settings(settings: &crate::config::flags::Settings) {
    use crate::config::options::{Group, Kind};
    let mut fields: Vec<(&str, Value<'_>)> = vec![
        ("sternpost-version", Value::Text(env!("CARGO_PKG_VERSION"))),
        ("etcd-version", Value::Text(crate::config::ETCD_VERSION)),
    ];
    for (spec, value) in settings.effective().filter(|(spec, _)| spec.group != Group::Ignored) {
        let secret = spec.name == "discovery-password" || spec.name == "discovery-user";
        fields.push((
            spec.name,
            match spec.kind {
                Kind::Uint | Kind::Uint32 => Value::Uint(settings.uint(spec.name)),
                Kind::Int => Value::Int(settings.int(spec.name)),
                Kind::Flag => Value::Bool(settings.flag(spec.name)),
                Kind::Urls => match url::parse_list(value) {
                    Ok(urls) => Value::List(urls.iter().map(ToString::to_string).collect()),
                    Err(_) => Value::Text(value),
                },
                _ if secret && !value.is_empty() => Value::Text("redacted"),
                _ => Value::Text(value),
            },
        ));
    }
    logging::emit(LogLevel::Info, file!(), line!(), "starting a member", &fields);
}

/// Open sockets, by what they will serve.
struct Sockets {
    clients: Vec<Listener>,
    http: Vec<Listener>,
    metrics: Vec<Listener>,
}

impl Sockets {
    fn open(config: &Config) -> Result<Self, String> {
        let bind = |urls: &[url::Url]| Listener::bind_all(urls, config.reuse_port);
        Ok(Self {
            clients: bind(&config.listen_client_urls)?,
            http: bind(&config.listen_client_http_urls)?,
            metrics: bind(&config.listen_metrics_urls)?,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a server come together here")]
    fn serve(
        self,
        config: &Config,
        tls: &Tls,
        server: &Server,
        diagnostics: Arc<Diagnostics>,
        metrics: Arc<Metrics>,
        audit: Option<Arc<Audit>>,
        shutdown: &Shutdown,
    ) {
        let services = GrpcServices::default().with_router(&GrpcRouter::SERVICES, server.grpc.clone());
        let bounds = GrpcBounds {
            message_bytes_max: config.message_bytes_max(),
            warning_unary_duration: config.warning_unary_request_duration,
        };
        let (inflight, answers) = (diagnostics.inflight.clone(), diagnostics.answers.clone());
        let grpc = Grpc::new(&services, bounds, inflight, answers, metrics.clone(), shutdown.clone());
        let grpc = Arc::new(grpc.with_audit(audit));
        let state = Arc::new(HttpState {
            health: diagnostics.clone(),
            metrics: metrics.clone(),
            samples: diagnostics,
            host_whitelist: config.host_whitelist.clone(),
            origins: config.cors.clone(),
            gateway: config.has_gateway.then(|| Gateway::new(grpc.clone())),
        });
        let grpc = Some(grpc);
        let client_http = Some(client_routes(state.clone()));
        let beside_grpc = if self.http.is_empty() { client_http.clone() } else { None };
        // Those who scrape come from an address of their certificate, as in etcd; clients from anywhere.
        let secure = |checks_san| {
            tls.clients.as_ref().map(|side| {
                Arc::new(ClientTls::new(Arc::clone(side), checks_san, config.client_tls.client_cert_auth))
            })
        };
        let for_clients = secure(false);
        let listeners = [
            (self.clients, Served { grpc, http: beside_grpc, tls: for_clients.clone() }),
            (self.http, Served { grpc: None, http: client_http, tls: for_clients }),
            (self.metrics, Served { grpc: None, http: Some(monitor_routes(state)), tls: secure(true) }),
        ];
        let settings = ConnectionSettings::new(config);
        for (sockets, served) in listeners {
            for socket in sockets {
                tokio::spawn(socket.serve(
                    served.clone(),
                    settings.clone(),
                    metrics.clone(),
                    shutdown.clone(),
                ));
            }
        }
    }
}

/// Refuses a data directory that is not ours. True if there is no data in it yet.
fn look_at_directory(config: &Config) -> Result<bool, String> {
    let directory = &config.data_dir;
    let shown = directory.display();
    if directory.join("member").is_dir() {
        return Err(format!(
            "the data directory {shown} holds data of etcd (member/); a directory of etcd cannot be opened, give another --data-dir"
        ));
    }
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot read the data directory {shown}: {error}"))
        }
        _ => Ok(has_staged_only(directory)),
    }
}

/// Makes the data directory if there is none. The first members of a new one make sense.
fn prepare_directory(config: &Config, is_new: bool) -> Result<(), String> {
    let directory = &config.data_dir;
    if is_new {
        config.check_bootstrap()?;
    }
    if directory.exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| format!("cannot make the data directory {}: {error}", directory.display()))
}

/// A member without its listeners for clients.
struct Member {
    server: Server,
    diagnostics: Arc<Diagnostics>,
    node: Node,
    /// None for one alone.
    peers: Option<Arc<Peers>>,
}

async fn start_member(config: &Config, tls: &Tls, metrics: Arc<Metrics>) -> Result<Member, String> {
    let election = Duration::from_millis(config.raft_timers_ms().1.into());
    if let Some(directory) = config.backup_dir.as_ref().filter(|directory| !directory.is_dir()) {
        return Err(format!("--backup-dir: there is no directory {}", directory.display()));
    }
    let options = ServerOptions {
        name: config.name.clone(),
        initial_cluster: first_members(config),
        initial_names_known: config.initial_names_known,
        initial_cluster_token: config.initial_cluster_token.clone(),
        advertise_client_urls: config.advertise_client_urls.iter().map(ToString::to_string).collect(),
        quota_bytes: config.quota_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        limits: Limits {
            request_bytes_max: config.request_bytes_max,
            txn_operations_max: config.txn_ops_max,
        },
        message_bytes_max: config.message_bytes_max(),
        warning_apply_duration: config.warning_apply_duration,
        request_timeout: config.request_timeout(),
        lease_ttl_min: config.lease_ttl_min_s(),
        members: MemberLimits { is_strict: config.strict_reconfig_check, learners_max: config.learners_max },
        lease_grace: election,
        store: StoreOptions { memtable_bytes: config.memtable_bytes },
        auth: AuthOptions {
            token: config.auth_token.clone(),
            simple_ttl_s: config.auth_token_ttl_s,
            bcrypt_cost: config.bcrypt_cost,
        },
        watch_progress_interval: config.watch_progress_interval,
        comparison: Intervals { plain: config.compare_interval, deep: config.compare_deep_interval },
        auto_compaction: config.auto_compaction,
        metrics,
        warnings: Arc::new(Warnings::new(config.warnings_in_status)),
        backups: Arc::new(Backups::new(BackupsOptions {
            directory: config.backup_dir.clone(),
            data_directory: config.data_dir.clone(),
            bytes_per_second: config.state_bytes_per_second,
            bytes_per_second_min: config.state_bytes_per_second_min,
        })),
    };
    let backups = Arc::clone(&options.backups);
    let log = LogOptions {
        io_backend: config.io_backend(),
        // The flag takes these names and "auto".
        wal_sync: SyncMethod::from_name(&config.wal_sync),
        ..LogOptions::default()
    };
    let mut checkpoint = CheckpointOptions::default();
    checkpoint.shelf.cache_bytes = config.cache_bytes;
    let (node_config, tls) = (config.clone(), tls.clone());
    let (report, started) = tokio::sync::oneshot::channel();
    let server = Server::start_with(options, move |machine, genesis, membership| {
        let (store, promises) = (machine.store().clone(), machine.promises());
        let options = NodeOptions {
            log,
            checkpoint,
            genesis,
            progress: Box::new(log_progress()),
            on_checkpoint: Box::new(log_checkpoint),
            force_alone: node_config.force_new_cluster,
        };
        let node = Node::start(&node_config, options, machine)?;
        let opened = node.opened();
        tracing::info!(
            cluster_id = format!("{:x}", opened.cluster_id),
            member_id = format!("{:x}", opened.member_id),
            created = opened.created,
            backend = ?opened.backend,
            wal_sync = %opened.sync_method,
            records = opened.recovery.records_count,
            bytes = opened.recovery.bytes,
            "opened the log"
        );
        if let Some(cut) = &opened.recovery.cut {
            tracing::warn!(
                ?cut,
                "cut what a crash left unfinished off the end of the log; none of it was acknowledged"
            );
        }
        if !opened.recovery.rewritten {
            tracing::warn!(
                bytes = opened.recovery.unproven_bytes,
                "the device has no room to write the newest groups of the log once more; if a sync failed before this \
                 start, a power cut may take them until the next write is durable"
            );
        }
        let (cluster_id, member_id) = (opened.cluster_id, opened.member_id);
        // Before the member says its name to the cluster: that needs the others.
        let peers = match &node {
            // Nobody to speak to yet.
            Node::Single(_) => None,
            Node::Raft(raft) => {
                let peers = Peers::start(&node_config, &tls, Arc::clone(raft), store, membership, promises);
                Some(Arc::new(peers.map_err(StartError::Options)?))
            }
        };
        let replicator = node.replicator();
        let _ = report.send((node, peers));
        Ok(StartedReplicator { replicator, cluster_id, member_id })
    })
    .await
    .map_err(|error| match error {
        StartError::Options(what) => what,
        StartError::Engine(error) => {
            format!("cannot open the data directory {}: {error}", config.data_dir.display())
        }
    })?;
    let (node, peers) = started.await.map_err(|_| "the log was not opened".to_string())?;
    let stats_node = node.clone();
    backups.serve(backed_up(node.clone()));
    let diagnostics = Diagnostics {
        pipeline: server.pipeline.clone(),
        member_id: server.header.member_id(),
        feature_gates: config.feature_gates.clone(),
        inflight: InflightBudget::new(config.inflight_bytes_max),
        answers: AnswerBudget::new(config.answer_bytes_max),
        disk_stats: Box::new(move || stats_node.disk_stats()),
        peers: Arc::default(),
    };
    Ok(Member { server, diagnostics: Arc::new(diagnostics), node, peers })
}

/// What backups need of a member.
fn backed_up(node: Node) -> backups::Member {
    let holding = node.clone();
    backups::Member {
        hold: Box::new(move || holding.hold()),
        writes: Box::new(move || {
            let (node, mut writes) = (node.clone(), Writes::default());
            Box::new(move || match node.disk_stats() {
                Some((wal, _)) => writes.since_last(wal.ack),
                None => WriteWindow::default(),
            })
        }),
    }
}

/// The initial cluster, by name. Flags that no longer fit are no reason not to start on data that is there, as in etcd: then it is this
/// member alone, and nothing comes of it. A new directory does not get here with them (`prepare_directory`).
fn first_members(config: &Config) -> Vec<(String, Vec<String>)> {
    let texts = |urls: &[url::Url]| urls.iter().map(ToString::to_string).collect();
    if !config.initial_cluster.iter().any(|(name, _)| *name == config.name) {
        return vec![(config.name.clone(), texts(&config.initial_advertise_peer_urls))];
    }
    config.initial_cluster.iter().map(|(name, urls)| (name.clone(), texts(urls))).collect()
}

/// Logs what the measurement of the device gave.
fn log_calibration(result: sternpost_engine::Result<CalibrationReport>) {
    match result {
        Ok(report) => tracing::info!(
            device = report.device,
            before = %report.before,
            chosen = %report.chosen,
            measured = report.measurements.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            "measured how groups of the log become durable fastest on this device"
        ),
        Err(error) => tracing::warn!(%error, "cannot measure the device; the log is made durable as before"),
    }
}

/// Logs how far the opening is: that it waits, and each tenth of the replay of a long log.
fn log_progress() -> impl FnMut(OpenProgress<'_>) + Send {
    const WORTH_TELLING_BYTES: u64 = 256 << 20;
    let mut tenths_told = 0;
    move |progress| match progress {
        OpenProgress::Waiting(sentence) => tracing::warn!("{sentence}"),
        OpenProgress::Replaying(replay) => {
            let tenths = replay.bytes_done * 10 / replay.bytes_total.max(1);
            if replay.bytes_total >= WORTH_TELLING_BYTES && tenths > tenths_told {
                tenths_told = tenths;
                tracing::info!(
                    bytes_done = replay.bytes_done,
                    bytes_total = replay.bytes_total,
                    "replaying the log"
                );
            }
        }
    }
}

/// A line for each checkpoint, and for one that fails.
fn log_checkpoint(event: CheckpointEvent<'_>) {
    match event {
        CheckpointEvent::Made(report) => tracing::info!(
            records_written = report.records_written,
            records_skipped = report.records_skipped,
            records_killed = report.records_killed,
            records_cleaned = report.records_cleaned,
            revision_bytes = report.revision_bytes,
            page_bytes = report.page_bytes,
            segments_removed = report.segments_removed,
            took_ms = report.duration_us / 1000,
            "made a checkpoint"
        ),
        CheckpointEvent::Upkeep(report) => tracing::info!(
            records_killed = report.records_killed,
            records_cleaned = report.records_cleaned,
            revision_bytes = report.revision_bytes,
            page_bytes = report.page_bytes,
            segments_removed = report.segments_removed,
            took_ms = report.duration_us / 1000,
            "swept and cleaned"
        ),
        CheckpointEvent::Failing(error) => tracing::error!(
            %error,
            "a checkpoint failed and is tried again; until one is made the log and the memory grow"
        ),
        CheckpointEvent::Broken(error) => {
            tracing::error!(%error, "no further checkpoint is made and writes are refused; restart the server")
        }
    }
}
