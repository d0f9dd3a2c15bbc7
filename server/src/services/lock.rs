//! v3lockpb.Lock.
//!
//! **Contract.** Errors of the recipe come with the code Unknown and etcd's text, as from etcd, whose service lets its own client library's errors
//! through untranslated.
use super::header::HeaderSource;
use super::{check_metadata, credential, untranslated};
use crate::recipes::Recipes;
use crate::request::Pipeline;
use crate::wire::v3lockpb::lock_server::Lock;
use crate::wire::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct LockService {
    recipes: Recipes,
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl LockService {
    /// Answers by `recipes` under `header`.
    pub fn new(recipes: Recipes, pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { recipes, pipeline, header }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let LockRequest { name, lease } = request.into_inner();
        let lock = self.recipes.lock(&name, lease, &who).await.map_err(untranslated)?;
        Ok(Response::new(LockResponse { header: Some(self.header.at(lock.revision)), key: lock.key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.recipes.unlock(request.into_inner().key, &who).await.map_err(untranslated)?;
        Ok(Response::new(UnlockResponse { header: Some(self.header.at(revision)) }))
    }
}
