//! The Usage service: what this member and its cluster are used for, and how much of it is let be.
//!
//! Only root may call it. It answers by what this member has; a learner answers too, but takes no change.
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::apply::prefix_quota::PrefixUse;
use crate::heavy::{Counts, Dimension, HeavyHitters};
use crate::request::Pipeline;
use crate::warnings::{Thing, Warning};
use crate::wire::sternpostpb as pb;
use crate::wire::sternpostpb::heavy_hitters_request::Dimension as Asked;
use crate::wire::sternpostpb::usage_server::Usage;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct UsageService {
    pipeline: Arc<Pipeline>,
    heavy: Arc<HeavyHitters>,
}

impl UsageService {
    /// Answers from `pipeline` and `heavy` for whom the one knows as root.
    pub fn new(pipeline: Arc<Pipeline>, heavy: Arc<HeavyHitters>) -> Self {
        Self { pipeline, heavy }
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

fn heavy_hitter((name, counts): (Vec<u8>, Counts)) -> pb::HeavyHitter {
    let Counts { cost, error, requests, failed, received_bytes, sent_bytes } = counts;
    pb::HeavyHitter { name: name.into(), cost, error, requests, failed, received_bytes, sent_bytes }
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

    async fn heavy_hitters(
        &self,
        request: Request<pb::HeavyHittersRequest>,
    ) -> Result<Response<pb::HeavyHittersResponse>, Status> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(&request)).await?;
        let request = request.into_inner();
        let dimension = match Asked::try_from(request.dimension) {
            Ok(Asked::Prefix) => Dimension::Prefix,
            Ok(Asked::Method) => Dimension::Method,
            Ok(Asked::Client) => Dimension::Client,
            Err(_) => return Err(Status::invalid_argument("sternpost: an unknown dimension")),
        };
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let report = self.heavy.report(dimension, limit);
        Ok(Response::new(pb::HeavyHittersResponse {
            covered_s: report.covered.as_secs(),
            total_cost: report.total_cost,
            entries: report.entries.into_iter().map(heavy_hitter).collect(),
        }))
    }
}
