//! The Lease service. Keepalives do not touch the log.
use super::header::HeaderSource;
use super::{check_metadata, credential};
use crate::auth::origin::Credential;
use crate::lease::Leases;
use crate::lease::keeper::LeaseKeeper;
use crate::request::Pipeline;
use crate::wire::etcdserverpb::lease_server::Lease;
use crate::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// See the module.
#[derive(Clone)]
pub struct LeaseService {
    pipeline: Arc<Pipeline>,
    leases: Arc<Leases>,
    keeper: LeaseKeeper,
    header: HeaderSource,
}

impl LeaseService {
    /// Answers from `pipeline` and `leases` under `header`.
    pub fn new(
        pipeline: Arc<Pipeline>,
        leases: Arc<Leases>,
        keeper: LeaseKeeper,
        header: HeaderSource,
    ) -> Self {
        Self { pipeline, leases, keeper, header }
    }

    async fn keep_alive(
        self,
        request: LeaseKeepAliveRequest,
        who: Arc<Credential>,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        self.pipeline.check_renew(&who, request.id).await?;
        // Before the renewal, so that an answer never says a revision at which the lease was already revoked.
        let header = Some(self.header.current());
        let ttl = self.keeper.renew(request.id).await?;
        Ok(LeaseKeepAliveResponse { header, id: request.id, ttl })
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let (id, ttl) = self.pipeline.lease_grant(request.into_inner(), &who).await?;
        let header = Some(self.header.current());
        Ok(Response::new(LeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.lease_revoke(request.into_inner().id, &who).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.header.at(revision)) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let (service, who) = (self.clone(), Arc::new(credential(&request)));
        // One at a time and in order, as etcd answers; nothing is read from the client before the answer is taken.
        let answers = request.into_inner().then(move |request| {
            let (service, who) = (service.clone(), Arc::clone(&who));
            async move { service.keep_alive(request?, who).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let origin = self.pipeline.check_user(&credential(&request)).await?;
        let request = request.into_inner();
        let remaining = self.keeper.remaining(request.id).await?;
        // For the keys: what the leader counts by is applied here too then.
        self.pipeline.read_barrier().await?;
        let mut response =
            LeaseTimeToLiveResponse { id: request.id, ttl: -1, ..LeaseTimeToLiveResponse::default() };
        if let Some(remaining) = remaining {
            response.ttl = remaining.ttl;
            response.granted_ttl = remaining.granted_ttl;
            if request.keys {
                response.keys = self.pipeline.store().lease_keys(request.id);
                // Of no other keys than those, so afterwards.
                self.pipeline.check_lease_keys(&origin, &response.keys)?;
            }
        }
        response.header = Some(self.header.current());
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let leases = self.leases.list();
        self.pipeline.check_lease_list(&credential(&request), &leases).await?;
        let leases = leases.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.header.current()), leases }))
    }
}
