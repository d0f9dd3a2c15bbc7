//! The Cluster service. Headers have no revision here, as in etcd.
use super::check_metadata;
use super::header::HeaderSource;
use crate::apply::records;
use crate::request::Pipeline;
use crate::wire::etcdserverpb::cluster_server::Cluster;
use crate::wire::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use crate::wire::status::ApiError;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What a change of membership answers.
const FIXED: ApiError = ApiError::Unimplemented("changes of the membership are not served yet");

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
        _request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(FIXED.into())
    }

    async fn member_remove(
        &self,
        _request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(FIXED.into())
    }

    async fn member_update(
        &self,
        _request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(FIXED.into())
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        if request.into_inner().linearizable {
            self.pipeline.read_barrier().await?;
        }
        let members = records::members(self.pipeline.store());
        Ok(Response::new(MemberListResponse { header: Some(self.header.without_revision()), members }))
    }

    async fn member_promote(
        &self,
        _request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(FIXED.into())
    }
}
