//! The KV service.
use super::header::HeaderSource;
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::request::Pipeline;
use crate::request::range_stream::RangeChunks;
use crate::wire::convert;
use crate::wire::etcdserverpb::kv_server::Kv;
use crate::wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct KvService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl KvService {
    /// Answers from `pipeline` under `header`.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        if request.get_ref().serializable {
            check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        } else {
            check_metadata(request.metadata(), &self.pipeline)?;
        }
        let who = credential(&request);
        let outcome = self.pipeline.range(request.into_inner(), &who).await?;
        let header = self.header.at(outcome.revision);
        Ok(Response::new(convert::range_response(outcome, Some(header))))
    }

    type RangeStreamStream = RangeStream;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<RangeStream>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let chunks = self.pipeline.range_stream(request.into_inner(), &who).await?;
        Ok(Response::new(RangeStream { chunks, header: self.header.clone() }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let outcome = self.pipeline.put(request.into_inner(), &who).await?;
        let header = self.header.at(outcome.revision);
        Ok(Response::new(convert::put_response(outcome, Some(header))))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let outcome = self.pipeline.delete_range(request.into_inner(), &who).await?;
        let header = self.header.at(outcome.revision);
        Ok(Response::new(convert::delete_range_response(outcome, Some(header))))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let outcome = self.pipeline.txn(request.into_inner(), &who).await?;
        let header = self.header.at(outcome.revision);
        Ok(Response::new(convert::txn_response(outcome, Some(header))))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.compact(request.into_inner(), &who).await?;
        Ok(Response::new(CompactionResponse { header: Some(self.header.at(revision)) }))
    }
}

/// Chunks of a range as they are asked for; each is read when the transport has room for it.
pub struct RangeStream {
    chunks: RangeChunks,
    header: HeaderSource,
}

impl Stream for RangeStream {
    type Item = Result<RangeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(chunk) = self.chunks.next() else { return Poll::Ready(None) };
        Poll::Ready(Some(chunk.map_err(Status::from).map(|mut chunk| {
            chunk.response.header = chunk.header_revision.map(|revision| self.header.at(revision));
            RangeStreamResponse { range_response: Some(chunk.response) }
        })))
    }
}
