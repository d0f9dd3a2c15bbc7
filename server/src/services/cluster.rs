//! The Cluster service. Headers have no revision here, as in etcd.
use super::header::HeaderSource;
use super::{check_metadata, credential};
use crate::apply::records;
use crate::request::Pipeline;
use crate::wire::etcdserverpb::cluster_server::Cluster;
use crate::wire::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct ClusterService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl ClusterService {
    /// Answers from `pipeline` under `header`.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let (member, members) = self.pipeline.member_add(request.into_inner(), &who).await?;
        let header = Some(self.header.without_revision());
        Ok(Response::new(MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let members = self.pipeline.member_remove(request.into_inner().id, &who).await?;
        Ok(Response::new(MemberRemoveResponse { header: Some(self.header.without_revision()), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let members = self.pipeline.member_update(id, peer_ur_ls, &who).await?;
        Ok(Response::new(MemberUpdateResponse { header: Some(self.header.without_revision()), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        if request.into_inner().linearizable {
            self.pipeline.read_barrier().await?;
        }
        self.pipeline.check_user(&who).await?;
        let members = records::members(self.pipeline.store());
        Ok(Response::new(MemberListResponse { header: Some(self.header.without_revision()), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let members = self.pipeline.member_promote(request.into_inner().id, &who).await?;
        Ok(Response::new(MemberPromoteResponse { header: Some(self.header.without_revision()), members }))
    }
}
