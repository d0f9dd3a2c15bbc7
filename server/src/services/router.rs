//! From a gRPC path to its service.
//!
//! **Contract.** A `tower` service over any HTTP body; every answer is a gRPC answer, also to a path that nothing serves. All
//! requests on the client port that carry `application/grpc` come through here.
//!
//! **Why not tonic's own routes**: they go through axum's router, which boxes request and service once more for every call. The
//! paths are eleven fixed prefixes.
use super::auth::AuthService;
use super::backups::BackupsService;
use super::cluster::ClusterService;
use super::election::ElectionService;
use super::health::HealthService;
use super::kv::KvService;
use super::lease::LeaseService;
use super::lock::LockService;
use super::maintenance::MaintenanceService;
use super::ranges::RangesService;
use super::usage::UsageService;
use super::watch::WatchService;
use crate::wire::etcdserverpb::auth_server::AuthServer;
use crate::wire::etcdserverpb::cluster_server::ClusterServer;
use crate::wire::etcdserverpb::kv_server::KvServer;
use crate::wire::etcdserverpb::lease_server::LeaseServer;
use crate::wire::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::wire::sternpostpb::backups_server::BackupsServer;
use crate::wire::sternpostpb::ranges_server::RangesServer;
use crate::wire::sternpostpb::usage_server::UsageServer;
use crate::wire::v3electionpb::election_server::ElectionServer;
use crate::wire::v3lockpb::lock_server::LockServer;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Service, StdError};
use tonic_health::pb::health_server::HealthServer;

// tonic's generated servers leave the text of an unknown method empty, so the methods are known here.
const KV_METHODS: &[&str] = &["Range", "Put", "Txn", "DeleteRange", "Compact", "RangeStream"];
const LEASE_METHODS: &[&str] =
    &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"];
const CLUSTER_METHODS: &[&str] =
    &["MemberList", "MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote"];
const MAINTENANCE_METHODS: &[&str] =
    &["Status", "Alarm", "Defragment", "Hash", "HashKV", "Snapshot", "MoveLeader", "Downgrade"];
const WATCH_METHODS: &[&str] = &["Watch"];
const AUTH_METHODS: &[&str] = &[
    "AuthEnable",
    "AuthDisable",
    "AuthStatus",
    "Authenticate",
    "UserAdd",
    "UserGet",
    "UserList",
    "UserDelete",
    "UserChangePassword",
    "UserGrantRole",
    "UserRevokeRole",
    "RoleAdd",
    "RoleGet",
    "RoleList",
    "RoleDelete",
    "RoleGrantPermission",
    "RoleRevokePermission",
];
const LOCK_METHODS: &[&str] = &["Lock", "Unlock"];
const ELECTION_METHODS: &[&str] = &["Campaign", "Proclaim", "Leader", "Observe", "Resign"];
const BACKUPS_METHODS: &[&str] = &["Create", "List"];
const RANGES_METHODS: &[&str] = &["Sums", "Parts", "Keys"];
const USAGE_METHODS: &[&str] = &["PrefixQuotas", "SetPrefixQuota", "Warnings", "HeavyHitters"];
const HEALTH_METHODS: &[&str] = &["Check", "Watch"];

/// The services of the client port.
#[derive(Clone)]
pub struct GrpcRouter {
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    auth: AuthServer<AuthService>,
    watch: WatchService,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
    backups: BackupsServer<BackupsService>,
    ranges: RangesServer<RangesService>,
    usage: UsageServer<UsageService>,
    health: HealthServer<HealthService>,
}

impl GrpcRouter {
    /// Names of the services.
    pub const SERVICES: [&str; 12] = [
        "etcdserverpb.KV",
        "etcdserverpb.Watch",
        "etcdserverpb.Lease",
        "etcdserverpb.Cluster",
        "etcdserverpb.Maintenance",
        "etcdserverpb.Auth",
        "v3lockpb.Lock",
        "v3electionpb.Election",
        "sternpostpb.Backups",
        "sternpostpb.Ranges",
        "sternpostpb.Usage",
        "grpc.health.v1.Health",
    ];

    /// Routes to these services; a message above `message_bytes_max` is refused before it is read.
    #[expect(clippy::too_many_arguments, reason = "one for each service")]
    pub fn new(
        kv: KvService,
        lease: LeaseService,
        cluster: ClusterService,
        maintenance: MaintenanceService,
        auth: AuthService,
        watch: WatchService,
        lock: LockService,
        election: ElectionService,
        backups: BackupsService,
        ranges: RangesService,
        usage: UsageService,
        health: HealthService,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            kv: KvServer::new(kv).max_decoding_message_size(message_bytes_max),
            lease: LeaseServer::new(lease).max_decoding_message_size(message_bytes_max),
            cluster: ClusterServer::new(cluster).max_decoding_message_size(message_bytes_max),
            maintenance: MaintenanceServer::new(maintenance).max_decoding_message_size(message_bytes_max),
            auth: AuthServer::new(auth).max_decoding_message_size(message_bytes_max),
            watch,
            lock: LockServer::new(lock).max_decoding_message_size(message_bytes_max),
            election: ElectionServer::new(election).max_decoding_message_size(message_bytes_max),
            backups: BackupsServer::new(backups).max_decoding_message_size(message_bytes_max),
            ranges: RangesServer::new(ranges).max_decoding_message_size(message_bytes_max),
            usage: UsageServer::new(usage).max_decoding_message_size(message_bytes_max),
            health: HealthServer::new(health).max_decoding_message_size(message_bytes_max),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<B> Service<http::Request<B>> for GrpcRouter
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answer {
        let path = request.uri().path();
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return refuse(format!("malformed method name: {path:?}"));
        };
        let methods = match service {
            "etcdserverpb.KV" => KV_METHODS,
            "etcdserverpb.Lease" => LEASE_METHODS,
            "etcdserverpb.Cluster" => CLUSTER_METHODS,
            "etcdserverpb.Maintenance" => MAINTENANCE_METHODS,
            "etcdserverpb.Auth" => AUTH_METHODS,
            "etcdserverpb.Watch" => WATCH_METHODS,
            "v3lockpb.Lock" => LOCK_METHODS,
            "v3electionpb.Election" => ELECTION_METHODS,
            "sternpostpb.Backups" => BACKUPS_METHODS,
            "sternpostpb.Ranges" => RANGES_METHODS,
            "sternpostpb.Usage" => USAGE_METHODS,
            "grpc.health.v1.Health" => HEALTH_METHODS,
            _ => return refuse(format!("unknown service {service}")),
        };
        if !methods.contains(&method) {
            return refuse(format!("unknown method {method} for service {service}"));
        }
        match service {
            "etcdserverpb.KV" => self.kv.call(request),
            "etcdserverpb.Lease" => self.lease.call(request),
            "etcdserverpb.Cluster" => self.cluster.call(request),
            "etcdserverpb.Maintenance" => self.maintenance.call(request),
            "etcdserverpb.Auth" => self.auth.call(request),
            "etcdserverpb.Watch" => self.watch.call(request),
            "v3lockpb.Lock" => self.lock.call(request),
            "v3electionpb.Election" => self.election.call(request),
            "sternpostpb.Backups" => self.backups.call(request),
            "sternpostpb.Ranges" => self.ranges.call(request),
            "sternpostpb.Usage" => self.usage.call(request),
            _ => self.health.call(request),
        }
    }
}

/// Answers a path that nothing serves. The texts are grpc-go's, which is what clients of etcd see.
fn refuse(text: String) -> Answer {
    Box::pin(std::future::ready(Ok(Status::unimplemented(text).into_http())))
}
