//! v3electionpb.Election. Errors as in [`super::lock`].
use super::header::HeaderSource;
use super::{check_metadata, credential, untranslated};
use crate::recipes::{Recipes, Said};
use crate::request::Pipeline;
use crate::wire::status::ApiError;
use crate::wire::v3electionpb::election_server::Election;
use crate::wire::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Words of leaders that wait for a client; it then holds its watcher back, whose queue has bounds of its own.
const OBSERVED_MAX: usize = 1;

/// See the module.
#[derive(Clone)]
pub struct ElectionService {
    recipes: Recipes,
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl ElectionService {
    /// Answers by `recipes` under `header`.
    pub fn new(recipes: Recipes, pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { recipes, pipeline, header }
    }
}

fn no_leader_given() -> Status {
    Status::unknown(r#""leader" field must be provided"#)
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let office = self.recipes.campaign(&name, lease, value, &who).await.map_err(untranslated)?;
        let header = Some(self.header.at(office.revision));
        let leader = LeaderKey { name, key: office.key, rev: office.created, lease: office.lease };
        Ok(Response::new(CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = leader.ok_or_else(no_leader_given)?;
        let said = self.recipes.proclaim(key, rev, lease, value, &who).await;
        Ok(Response::new(ProclaimResponse { header: Some(self.header.at(said.map_err(untranslated)?)) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let said = self.recipes.leader(&request.into_inner().name, &who).await.map_err(untranslated)?;
        Ok(Response::new(response(&self.header, said)))
    }

    type ObserveStream = Observed;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Observed>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let (sender, receiver) = mpsc::channel(OBSERVED_MAX);
        tokio::spawn(self.recipes.clone().observe(request.into_inner().name, who, sender));
        Ok(Response::new(Observed { receiver, header: self.header.clone() }))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let leader = request.into_inner().leader.ok_or_else(no_leader_given)?;
        let resigned = self.recipes.resign(leader.key, leader.rev, leader.lease, &who).await;
        Ok(Response::new(ResignResponse { header: Some(self.header.at(resigned.map_err(untranslated)?)) }))
    }
}

fn response(header: &HeaderSource, (revision, kv): Said) -> LeaderResponse {
    LeaderResponse { header: Some(header.at(revision)), kv: Some(kv.into()) }
}

/// What the leaders say, as it comes. Dropping it ends whoever observes.
pub struct Observed {
    receiver: mpsc::Receiver<Result<Said, ApiError>>,
    header: HeaderSource,
}

impl Stream for Observed {
    type Item = Result<LeaderResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let said = self.receiver.poll_recv(context);
        said.map(|said| said.map(|said| said.map(|said| response(&self.header, said)).map_err(untranslated)))
    }
}
