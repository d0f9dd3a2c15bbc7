//! The Backups service: backups of this member's data directory while it serves.
//!
//! Only root may call it, on this member alone: what is made lies on its disk. A learner answers too.
use super::{check_metadata_of_learner, credential};
use crate::backups::{Backups, Wanted};
use crate::request::Pipeline;
use crate::wire::status::ApiError;
use crate::wire::sternpostpb::backups_server::Backups as BackupsApi;
use crate::wire::sternpostpb::{
    CreateBackupRequest, CreateBackupResponse, ListBackupsRequest, ListBackupsResponse,
};
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct BackupsService {
    pipeline: Arc<Pipeline>,
    backups: Arc<Backups>,
}

impl BackupsService {
    /// Makes `backups` for whom `pipeline` knows as root.
    pub fn new(pipeline: Arc<Pipeline>, backups: Arc<Backups>) -> Self {
        Self { pipeline, backups }
    }
}

#[tonic::async_trait]
impl BackupsApi for BackupsService {
    type CreateStream = ReceiverStream<Result<CreateBackupResponse, Status>>;

    async fn create(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<Self::CreateStream>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let CreateBackupRequest { name, base, copy } = request.into_inner();
        let revision_min = self.pipeline.store().revision();
        let wanted = Wanted { name, base, copy, revision_min };
        let backups = Arc::clone(&self.backups);
        // It looks at directories.
        let begun = tokio::task::spawn_blocking(move || backups.begin(wanted)).await;
        Ok(Response::new(ReceiverStream::new(begun.map_err(|_| ApiError::Stopped)??)))
    }

    async fn list(
        &self,
        request: Request<ListBackupsRequest>,
    ) -> Result<Response<ListBackupsResponse>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let backups = Arc::clone(&self.backups);
        let listed = tokio::task::spawn_blocking(move || backups.list()).await;
        Ok(Response::new(listed.map_err(|_| ApiError::Stopped)??))
    }
}
