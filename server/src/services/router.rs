//! From a gRPC path to its service.
//!
//! **Contract.** A `tower` service over any HTTP body; every answer is a gRPC answer, also to a path that nothing serves. All
//! requests on the client port that carry `application/grpc` come through here.
//!
//! **Why not tonic's own routes**: they go through axum's router, which boxes request and service once more for every call. The
//! paths are six fixed prefixes.
use super::cluster::ClusterService;
use super::kv::KvService;
use super::lease::LeaseService;
use super::maintenance::MaintenanceService;
use crate::wire::etcdserverpb::cluster_server::ClusterServer;
use crate::wire::etcdserverpb::kv_server::KvServer;
use crate::wire::etcdserverpb::lease_server::LeaseServer;
use crate::wire::etcdserverpb::maintenance_server::MaintenanceServer;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Service, StdError};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;

/// The services of the client port.
#[derive(Clone)]
pub struct GrpcRouter {
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    health: HealthServer<HealthService>,
}

impl GrpcRouter {
    /// Routes to these services; a message above `message_bytes_max` is refused before it is read.
    pub fn new(
        kv: KvService,
        lease: LeaseService,
        cluster: ClusterService,
        maintenance: MaintenanceService,
        health: HealthServer<HealthService>,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            kv: KvServer::new(kv).max_decoding_message_size(message_bytes_max),
            lease: LeaseServer::new(lease).max_decoding_message_size(message_bytes_max),
            cluster: ClusterServer::new(cluster).max_decoding_message_size(message_bytes_max),
            maintenance: MaintenanceServer::new(maintenance).max_decoding_message_size(message_bytes_max),
            health,
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
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
        match service {
            Some("etcdserverpb.KV") => self.kv.call(request),
            Some("etcdserverpb.Lease") => self.lease.call(request),
            Some("etcdserverpb.Cluster") => self.cluster.call(request),
            Some("etcdserverpb.Maintenance") => self.maintenance.call(request),
            Some("grpc.health.v1.Health") => self.health.call(request),
            // The text is grpc-go's, which is what clients of etcd see.
            Some(service) => refuse(Status::unimplemented(format!("unknown service {service}"))),
            None => refuse(Status::unimplemented(format!("malformed method name: {path:?}"))),
        }
    }
}

fn refuse(status: Status) -> Answer {
    Box::pin(std::future::ready(Ok(status.into_http())))
}
