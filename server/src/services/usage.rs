//! The Usage service: what this member and its cluster are used for, and how much of it is let be.
//!
//! Only root may call it. It answers by what this member has; a learner answers too, but takes no change.
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::apply::prefix_quota::PrefixUse;
use crate::request::Pipeline;
use crate::warnings::{Thing, Warning};
use crate::wire::sternpostpb as pb;
use crate::wire::sternpostpb::usage_server::Usage;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct UsageService {
    pipeline: Arc<Pipeline>,
}

impl UsageService {
    /// Answers from `pipeline` for whom it knows as root.
    pub fn new(pipeline: Arc<Pipeline>) -> Self {
        Self { pipeline }
    }
}

fn warning(of: &Warning) -> pb::Warning {
    pb::Warning {
        of: of.thing.name().to_owned(),
        prefix: match &of.thing {
            Thing::Prefix(prefix) => prefix.clone().into(),
            Thing::Quota | Thing::Disk => Default::default(),
        },
        rung: of.rung as i32,
        used: of.fill.used,
        limit: of.fill.limit,
        text: of.text(),
    }
}

#[tonic::async_trait]
impl Usage for UsageService {
    async fn prefix_quotas(
        &self,
        request: Request<pb::PrefixQuotasRequest>,
    ) -> Result<Response<pb::PrefixQuotasResponse>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let one = |of: &PrefixUse| pb::PrefixQuota {
            prefix: of.prefix.clone(),
            keys_max: of.keys_max,
            keys: of.keys,
        };
        let quotas = self.pipeline.view().prefix_quotas().iter().map(one).collect();
        Ok(Response::new(pb::PrefixQuotasResponse { quotas }))
    }

    async fn set_prefix_quota(
        &self,
        request: Request<pb::SetPrefixQuotaRequest>,
    ) -> Result<Response<pb::SetPrefixQuotaResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let pb::SetPrefixQuotaRequest { prefix, keys_max } = request.into_inner();
        let revision = self.pipeline.set_prefix_quota(prefix, keys_max, &who).await?;
        Ok(Response::new(pb::SetPrefixQuotaResponse { revision }))
    }

    async fn warnings(
        &self,
        request: Request<pb::WarningsRequest>,
    ) -> Result<Response<pb::WarningsResponse>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let warnings = self.pipeline.warnings().list().iter().map(warning).collect();
        Ok(Response::new(pb::WarningsResponse { warnings }))
    }
}
