//! A member from its options to a running server, and back.
//!
//! **Start**, in this order:
//! 1. ids and genesis from the initial cluster (used only by a new directory),
//! 2. an empty store, the waiters, the lessor, the state machine over them,
//! 3. the replicator: opens the directory and replays the log into the machine; returns when all that was ever acknowledged is
//!    there,
//! 4. every lease gets its full TTL,
//! 5. pipeline and services,
//! 6. background tasks: time-outs of waiters, expiry of leases,
//! 7. the member says its name and client URLs, if they are new,
//! 8. health says SERVING. Whoever listens may now.
//!
//! **Stop**, in this order: health says NOT_SERVING · (the caller stops listening and drains) · background tasks end · the
//! replicator finishes what is queued and closes the log · whoever still waits hears that the server stopped.
use crate::apply::{AppliedView, Machine, Notice, Notices, Quota, records};
use crate::auth::password::{self, Passwords};
use crate::auth::token::{SIMPLE_TTL_DEFAULT_S, Tokens};
use crate::backups::Backups;
use crate::compactor::{self, Retention};
use crate::comparison::marks::Marks;
use crate::comparison::{self, Comparison, Intervals};
use crate::identity;
use crate::lease::keeper::LeaseKeeper;
use crate::lease::{self, LeaseNotices, Leases};
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::recipes::Recipes;
use crate::request::id;
use crate::request::limits::Limits;
use crate::request::members::{self, MemberLimits};
use crate::request::wait::{self, Waiters};
use crate::request::{Pipeline, PipelineOptions, WAITERS_MAX};
use crate::services::auth::AuthService;
use crate::services::backups::BackupsService;
use crate::services::cluster::ClusterService;
use crate::services::election::ElectionService;
use crate::services::header::HeaderSource;
use crate::services::health::HealthService;
use crate::services::kv::KvService;
use crate::services::lease::LeaseService;
use crate::services::lock::LockService;
use crate::services::maintenance::MaintenanceService;
use crate::services::ranges::RangesService;
use crate::services::router::GrpcRouter;
use crate::services::usage::UsageService;
use crate::services::watch::{WatchOptions, WatchService};
use crate::warnings::Warnings;
use crate::watch::{OutboxLimits, WatchHub};
use crate::wire::etcdserverpb::Member;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::base::clock::MonotonicClock;
use sternpost_engine::mvcc::{Store, StoreOptions, StoreWriter};
use sternpost_replication::{Genesis, Replicator};
use tokio::task::JoinSet;

/// What a member is started with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name of this member; must be in `initial_cluster`.
    pub name: String,
    /// Members by name with their peer URLs; used only by a new data directory.
    pub initial_cluster: Vec<(String, Vec<String>)>,
    /// Every member has the same names in `initial_cluster`.
    pub initial_names_known: bool,
    /// Distinguishes clusters with the same URLs; used only by a new data directory.
    pub initial_cluster_token: String,
    /// Where clients reach this member, for the member list.
    pub advertise_client_urls: Vec<String>,
    /// Most bytes the store may hold; none is no limit.
    pub quota_bytes: Option<i64>,
    /// Bounds on requests.
    pub limits: Limits,
    /// Largest gRPC message.
    pub message_bytes_max: usize,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Least TTL of a lease, seconds.
    pub lease_ttl_min: i64,
    /// For changes of the membership.
    pub members: MemberLimits,
    /// Added to every lease's TTL when this member begins to lead: an election timeout.
    pub lease_grace: Duration,
    /// Sizes of the store.
    pub store: StoreOptions,
    /// How clients show who they are.
    pub auth: AuthOptions,
    /// Time between progress notifications of watches.
    pub watch_progress_interval: Duration,
    /// How often the members are compared.
    pub comparison: Intervals,
    /// What automatic compaction keeps, none where it is off.
    pub auto_compaction: Option<Retention>,
    /// A command that takes longer to apply is logged and counted as slow.
    pub warning_apply_duration: Duration,
    /// Where the parts of the server count.
    pub metrics: Arc<Metrics>,
    /// Backups of the member; [`Backups::serve`] is called when it runs.
    pub backups: Arc<Backups>,
    /// What is nearly full; somebody else looks.
    pub warnings: Arc<Warnings>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let name = "default".to_owned();
        let limits = Limits::default();
        Self {
            initial_cluster: vec![(name.clone(), vec!["http://localhost:2380".to_owned()])],
            name,
            initial_names_known: true,
            initial_cluster_token: "etcd-cluster".to_owned(),
            advertise_client_urls: vec!["http://localhost:2379".to_owned()],
            quota_bytes: Some(crate::apply::quota::QUOTA_BYTES_DEFAULT),
            message_bytes_max: limits.request_bytes_max + (512 << 10),
            limits,
            request_timeout: Duration::from_secs(7),
            lease_ttl_min: 2,
            members: MemberLimits::default(),
            lease_grace: Duration::ZERO,
            store: StoreOptions::default(),
            auth: AuthOptions::default(),
            watch_progress_interval: Duration::from_mins(10),
            comparison: Intervals::default(),
            auto_compaction: None,
            warning_apply_duration: Duration::from_millis(100),
            metrics: Arc::new(Metrics::new(&GrpcRouter::SERVICES, false)),
            backups: Arc::default(),
            warnings: Arc::default(),
        }
    }
}

/// How clients show who they are.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// `--auth-token`: a kind and its settings.
    pub token: String,
    /// Life of a simple token, seconds; 0 is etcd's default.
    pub simple_ttl_s: u64,
    /// Cost of password hashes, of [`password::COST_RANGE`].
    pub bcrypt_cost: u32,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            token: "simple".to_owned(),
            simple_ttl_s: SIMPLE_TTL_DEFAULT_S,
            bcrypt_cost: password::COST_DEFAULT,
        }
    }
}

/// Why a member did not start.
#[derive(Clone, Debug)]
pub enum StartError {
    /// The options contradict one another or the data directory; says how.
    Options(String),
    /// The data directory could not be opened.
    Engine(sternpost_engine::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(what) => f.write_str(what),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Options(_) => None,
            Self::Engine(error) => Some(error),
        }
    }
}

impl From<sternpost_engine::Error> for StartError {
    fn from(error: sternpost_engine::Error) -> Self {
        Self::Engine(error)
    }
}

/// A replicator that holds everything that was acknowledged, and who it is.
pub struct StartedReplicator {
    /// It.
    pub replicator: Arc<dyn Replicator>,
    /// Identity of the cluster, from the data directory.
    pub cluster_id: u64,
    /// Identity of this member, from the data directory.
    pub member_id: u64,
}

/// A running member, without its listeners.
pub struct Server {
    /// What services call.
    pub pipeline: Arc<Pipeline>,
    /// Leases in time.
    pub leases: Arc<Leases>,
    /// Watches.
    pub watch: Arc<WatchHub>,
    /// This member beside the others.
    pub comparison: Arc<Comparison>,
    /// Headers of answers.
    pub header: HeaderSource,
    /// The gRPC services of the client port.
    pub grpc: GrpcRouter,
    health: HealthService,
    replicator: Arc<dyn Replicator>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts a member over what `start_replicator` makes of the state machine and the genesis; it may block.
    pub async fn start_with<F>(options: ServerOptions, start_replicator: F) -> Result<Self, StartError>
    where
        F: FnOnce(Machine, Genesis, Arc<Membership>) -> Result<StartedReplicator, StartError>
            + Send
            + 'static,
    {
        let of_options =
            if options.initial_names_known { identity::genesis } else { identity::genesis_without_names };
        let genesis = of_options(&options.name, &options.initial_cluster, &options.initial_cluster_token)
            .map_err(StartError::Options)?;
        let membership = Arc::new(Membership::default());
        let AuthOptions { token, simple_ttl_s, bcrypt_cost } = options.auth.clone();
        // Reads the files of keys.
        let opening = tokio::task::spawn_blocking(move || {
            Tokens::open(&token, simple_ttl_s, Arc::new(MonotonicClock::default()))
        });
        let opened = opening.await.unwrap_or_else(|error| Err(error.to_string()));
        let tokens = Arc::new(opened.map_err(StartError::Options)?);
        let (store, writer) = StoreWriter::new(options.store.clone());
        let view = Arc::new(AppliedView::default());
        let waiters = Arc::new(Waiters::new(WAITERS_MAX, options.request_timeout));
        let leases = Arc::new(Leases::new(options.lease_grace, Arc::new(MonotonicClock::default())));
        let quota = Quota::new(options.quota_bytes);
        let watch = WatchHub::new(store.clone(), OutboxLimits::default(), options.metrics.watch.clone());
        let marks = Arc::new(Marks::default());
        let machine = Machine::new(
            writer,
            Arc::clone(&view),
            Arc::clone(&waiters) as _,
            Box::new(ServerNotices {
                leases: LeaseNotices(Arc::clone(&leases)),
                watch: Arc::clone(&watch),
                membership: Arc::clone(&membership),
                marks: Arc::clone(&marks),
                store: store.clone(),
                tokens: Arc::clone(&tokens),
            }),
            quota,
        );
        let machine = machine.with_times(options.metrics.timing.of_applies(options.warning_apply_duration));
        let handed = Arc::clone(&membership);
        let started = tokio::task::spawn_blocking(move || start_replicator(machine, genesis, handed));
        let StartedReplicator { replicator, cluster_id, member_id } = started
            .await
            .map_err(|_| StartError::Options("the start ended with a broken invariant".to_owned()))??;
        leases.extend_all();
        membership.set_member(member_id, &store);

        let pipeline = Pipeline::new(
            Arc::clone(&replicator),
            store.clone(),
            Arc::clone(&view),
            Arc::clone(&waiters),
            PipelineOptions {
                limits: options.limits,
                quota,
                timeout: options.request_timeout,
                lease_ttl_min: options.lease_ttl_min,
                members: options.members,
            },
            Arc::clone(&membership),
            id::wall_clock_ms(),
        );
        let pipeline = pipeline.with_auth(tokens, Passwords::new(bcrypt_cost));
        let pipeline = pipeline.with_warnings(Arc::clone(&options.warnings));
        let pipeline = Arc::new(pipeline.with_timing(options.metrics.timing.clone()));
        let header = HeaderSource::new(cluster_id, member_id, store.clone(), view);
        let keeper = LeaseKeeper::new(Arc::clone(&pipeline), Arc::clone(&leases));
        let comparison = Comparison::new(marks, Arc::clone(&pipeline), options.metrics.comparison.clone());
        let comparison = Arc::new(comparison);
        answer_others(&pipeline, &keeper, &comparison);
        let health = HealthService::default();
        let recipes = Recipes::new(Arc::clone(&pipeline), Arc::clone(&watch));
        let grpc = GrpcRouter::new(
            KvService::new(Arc::clone(&pipeline), header.clone()),
            LeaseService::new(Arc::clone(&pipeline), Arc::clone(&leases), keeper, header.clone()),
            ClusterService::new(Arc::clone(&pipeline), header.clone()),
            MaintenanceService::new(Arc::clone(&pipeline), header.clone()),
            AuthService::new(Arc::clone(&pipeline), header.clone()),
            WatchService::new(
                Arc::clone(&watch),
                Arc::clone(&pipeline),
                header.clone(),
                WatchOptions {
                    fragment_bytes: options.message_bytes_max,
                    progress_interval: options.watch_progress_interval,
                },
            ),
            LockService::new(recipes.clone(), Arc::clone(&pipeline), header.clone()),
            ElectionService::new(recipes, Arc::clone(&pipeline), header.clone()),
            BackupsService::new(Arc::clone(&pipeline), Arc::clone(&options.backups)),
            RangesService::new(Arc::clone(&pipeline), header.clone()),
            UsageService::new(Arc::clone(&pipeline), Arc::clone(&options.metrics.heavy)),
            health.clone(),
            options.message_bytes_max,
        );

        let mut tasks = JoinSet::new();
        tasks.spawn(run_ticks(waiters));
        tasks.spawn(lease::run_expiry(Arc::clone(&leases), Arc::clone(&pipeline)));
        tasks.spawn(Arc::clone(&watch).run());
        tasks.spawn(Arc::clone(&comparison).make_marks(options.comparison));
        tasks.spawn(Arc::clone(&comparison).compare_all());
        if let Some(retention) = options.auto_compaction {
            tasks.spawn(compactor::run(Arc::clone(&pipeline), retention));
        }
        let mut server =
            Self { pipeline, leases, watch, comparison, header, grpc, health, replicator, tasks };
        server.publish(&options, &store).await;
        server.health.set_serving(true);
        Ok(server)
    }

    /// Tells the cluster this member's name and client URLs, if they are not what it knows. A failure is no reason not to serve: a full
    /// device or a cluster without a leader must not keep readers away. It is then tried in the background until it is taken.
    async fn publish(&mut self, options: &ServerOptions, store: &Store) {
        let known = records::member(store, self.header.member_id());
        if known.is_some_and(|known| {
            known.name == options.name && known.client_ur_ls == options.advertise_client_urls
        }) {
            return;
        }
        let member = Member {
            id: self.header.member_id(),
            name: options.name.clone(),
            client_ur_ls: options.advertise_client_urls.clone(),
            ..Member::default()
        };
        if let Err(error) = self.pipeline.publish_member(member.clone()).await {
            tracing::warn!(%error, "failed to publish local member to cluster; it is tried again");
            self.tasks.spawn(publish_until_taken(Arc::clone(&self.pipeline), member));
        }
    }

    /// The store, to read and watch.
    pub fn store(&self) -> &Store {
        self.pipeline.store()
    }

    /// Says on health that this member is about to stop; listeners are stopped next, by the caller.
    pub fn announce_stop(&self) {
        self.health.set_serving(false);
        // Whoever follows leads before this member's clients have let it go.
        let _ = self.replicator.transfer_leader(0);
    }

    /// Ends the background tasks, finishes what is queued and closes the log.
    pub async fn stop(mut self) -> Result<(), String> {
        self.announce_stop();
        self.tasks.shutdown().await;
        let replicator = Arc::clone(&self.replicator);
        let closed = tokio::task::spawn_blocking(move || replicator.shutdown()).await;
        closed.unwrap_or_else(|_| Err("closing the log ended with a broken invariant".to_owned()))
    }
}

/// Who hears what the state machine says.
struct ServerNotices {
    leases: LeaseNotices,
    watch: Arc<WatchHub>,
    membership: Arc<Membership>,
    marks: Arc<Marks>,
    store: Store,
    tokens: Arc<Tokens>,
}

impl Notices for ServerNotices {
    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Compacting => self.watch.before_compaction(),
            Notice::MembersChanged => self.membership.look(&self.store),
            Notice::Marked { mark, replay } => self.marks.push(mark, replay),
            Notice::TokenAssigned { user, letters, index } => self.tokens.assigned(user, letters, index),
            Notice::TokensDropped { user } => self.tokens.dropped(&user),
            Notice::AuthDisabled => self.tokens.clear(),
            lease => self.leases.notice(lease),
        }
    }
}

/// Answers what the servers of other members ask, by the first byte of the question.
fn answer_others(pipeline: &Arc<Pipeline>, keeper: &LeaseKeeper, comparison: &Arc<Comparison>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let (answering, keeper, comparison) = (Arc::clone(pipeline), keeper.clone(), Arc::clone(comparison));
    pipeline.replicator().answer_with(Box::new(move |question, reply| {
        if question.first() == Some(&comparison::QUESTION) {
            let comparison = Arc::clone(&comparison);
            runtime.spawn(async move { comparison.answer(&question, reply).await });
        } else if question.first() == Some(&members::QUESTION) {
            let pipeline = Arc::clone(&answering);
            runtime.spawn(async move { pipeline.answer_member_question(&question, reply).await });
        } else {
            let keeper = keeper.clone();
            runtime.spawn(async move { keeper.answer(&question, reply).await });
        }
    }));
}

/// Between two attempts to publish: an attempt may fail at once.
const PUBLISH_PAUSE: Duration = Duration::from_secs(1);

async fn publish_until_taken(pipeline: Arc<Pipeline>, member: Member) {
    loop {
        tokio::time::sleep(PUBLISH_PAUSE).await;
        match pipeline.publish_member(member.clone()).await {
            Ok(()) => return tracing::info!("published local member to cluster"),
            Err(error) => tracing::debug!(%error, "failed to publish local member to cluster"),
        }
    }
}

async fn run_ticks(waiters: Arc<Waiters>) {
    let mut ticks = tokio::time::interval(wait::TICK);
    // A member that was frozen gives its waiters the time they had left.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        waiters.tick();
    }
}
