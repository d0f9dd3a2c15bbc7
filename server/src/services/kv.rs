//! The KV service.
use super::header::HeaderSource;
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::answers::{AnswerClass, AnswerShare, WHOLE_BYTES_MAX};
use crate::large_answer::LargeAnswer;
use crate::request::Pipeline;
use crate::request::range_stream::RangeChunks;
use crate::request::read::read_many;
use crate::wire::convert;
use crate::wire::etcdserverpb::kv_server::Kv;
use crate::wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use crate::wire::status::ApiError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use sternpost_engine::mvcc::BoundedRange;
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
        let share = request.extensions().get::<Arc<AnswerShare>>().cloned();
        // Without a connection that counts it, nothing else could be done with a large answer than to hold it.
        let bytes_max = if share.is_some() { WHOLE_BYTES_MAX as u64 } else { u64::MAX };
        let outcome = match self.pipeline.range_bounded(request.into_inner(), &who, bytes_max).await? {
            BoundedRange::Whole(outcome) => outcome,
            BoundedRange::Large(range) if range.has_pages() => {
                let header = self.header.at(range.revision());
                let mut stands_for = Response::new(RangeResponse::default());
                stands_for.extensions_mut().insert(LargeAnswer { range, header });
                return Ok(stands_for);
            }
            BoundedRange::Large(range) => {
                // What is sorted is held until it is: twice, while it is encoded.
                let bytes = range.bytes_to_hold().saturating_add(range.bytes());
                let share = share.ok_or_else(|| Status::internal("a range without a bound is too large"))?;
                let _held =
                    share.begin_with(AnswerClass::List, usize::try_from(bytes).unwrap_or(usize::MAX))?;
                read_many(self.pipeline.store(), || range.read()).map_err(ApiError::from)?
            }
        };
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
