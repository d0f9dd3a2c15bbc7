//! The Auth service.
use super::header::HeaderSource;
use super::{check_metadata, credential};
use crate::apply::command::Kind;
use crate::request::Pipeline;
use crate::wire::etcdserverpb as pb;
use crate::wire::etcdserverpb::auth_server::Auth;
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct AuthService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl AuthService {
    /// Answers from `pipeline` under `header`.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header }
    }

    /// Carries out a change; its header.
    async fn change<M: Message>(
        &self,
        kind: Kind,
        request: Request<M>,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.change_auth(kind, &request.into_inner(), &who).await?;
        Ok(Some(self.header.at(revision)))
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let (enabled, auth_revision, revision) = self.pipeline.auth_status(&credential(&request)).await?;
        let header = Some(self.header.at(revision));
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let (token, revision) = self.pipeline.authenticate(request.into_inner()).await?;
        Ok(Response::new(pb::AuthenticateResponse { header: Some(self.header.at(revision)), token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.user_add(request.into_inner(), &who).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header: Some(self.header.at(revision)) }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.user_change_password(request.into_inner(), &who).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header: Some(self.header.at(revision)) }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let roles = self.pipeline.user_get(&request.get_ref().name, &credential(&request)).await?;
        Ok(Response::new(pb::AuthUserGetResponse { header: Some(self.header.current()), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let users = self.pipeline.user_list(&credential(&request)).await?;
        Ok(Response::new(pb::AuthUserListResponse { header: Some(self.header.current()), users }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let perm = self.pipeline.role_get(&request.get_ref().role, &credential(&request)).await?;
        Ok(Response::new(pb::AuthRoleGetResponse { header: Some(self.header.current()), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let roles = self.pipeline.role_list(&credential(&request)).await?;
        Ok(Response::new(pb::AuthRoleListResponse { header: Some(self.header.current()), roles }))
    }

    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let header = self.change(Kind::AuthEnable, request).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self.change(Kind::AuthDisable, request).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let header = self.change(Kind::UserDelete, request).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let header = self.change(Kind::UserGrantRole, request).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let header = self.change(Kind::UserRevokeRole, request).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let header = self.change(Kind::RoleAdd, request).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let header = self.change(Kind::RoleDelete, request).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let header = self.change(Kind::RoleGrantPermission, request).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let header = self.change(Kind::RoleRevokePermission, request).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}
